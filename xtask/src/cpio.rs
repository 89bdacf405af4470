//! Writes the archive that a kernel unpacks as its first root ("newc": one ASCII header a file, all parts padded to four
//! bytes; no compression).

use std::path::Path;

use crate::exec::Failure;

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// An archive in the making. Folders must be added before what they hold.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(crate) fn folder(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    /// A file that may be run.
    pub(crate) fn program(&mut self, path: &str, content: &[u8]) {
        self.entry(path, PROGRAM, (0, 0), content);
    }

    /// As [`Archive::program`], its content being that of `file`.
    pub(crate) fn program_from(&mut self, path: &str, file: &Path) -> Result<(), Failure> {
        let content = std::fs::read(file).map_err(Failure::on("read", file))?;
        self.program(path, &content);
        Ok(())
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK, (0, 0), target.as_bytes());
    }

    pub(crate) fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    /// The archive's bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries, // inode number
            mode,
            0, // uid
            0, // gid
            1, // links
            0, // time
            u32::try_from(content.len()).unwrap_or(u32::MAX),
            0, // device of the file's own
            0,
            device.0,
            device.1,
            u32::try_from(path.len()).unwrap_or(u32::MAX).saturating_add(1),
            0, // checksum, unused in this format
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn parts_start_at_multiples_of_four_and_sizes_are_hexadecimal() {
        let mut archive = Archive::default();
        archive.program("a", b"hello, world 17 b");
        let bytes = archive.finish();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[54..62], b"00000011");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(&bytes[112..129], b"hello, world 17 b");
        assert_eq!(&bytes[132..138], b"070701");
        assert_eq!(bytes.len() % 4, 0);
    }
}
