//! Conversations: what was said in each, so that it goes on in another process, also after plimsoll was killed.
//!
//! A file a conversation, a line a message, written before the answer is given: a conversation is read when its process is
//! new, appended to with each turn, and needed by nothing else, for which a database would be too much. A line that was cut
//! off by a crash is none. Each file has a bound (its oldest messages go), and so has their number (the files that were
//! written longest ago go).

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The folder in the state directory.
const FOLDER: &str = "conversations";

/// A conversation's file is cut when it is longer than this, bytes,
const LONGEST: u64 = 4 << 20;

/// to its newest messages of so many bytes.
const KEPT: usize = 2 << 20;

/// So many conversations are kept.
const MOST: usize = 10_000;

/// A name of a file is no longer than this.
const LONGEST_NAME: usize = 180;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spoken {
    /// `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// The conversations of one state directory.
#[derive(Debug)]
pub struct Conversations {
    dir: PathBuf,
}

impl Conversations {
    /// Makes the folder if it is missing, and forgets what is too much.
    ///
    /// # Errors
    /// The folder cannot be made or read.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        let dir = state_dir.join(FOLDER);
        // What people have said is nobody else's business.
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut files: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
        for entry in std::fs::read_dir(&dir)?.flatten() {
            if let Ok(written) = entry.metadata().and_then(|found| found.modified()) {
                files.push((written, entry.path()));
            }
        }
        files.sort();
        for (_, file) in files.iter().take(files.len().saturating_sub(MOST)) {
            std::fs::remove_file(file)?;
        }
        Ok(Self { dir })
    }

    /// What was said, oldest first; nothing of a conversation that is not known.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn read(&self, pool: &str, key: &str) -> io::Result<Vec<Spoken>> {
        let mut text = Vec::new();
        match File::open(self.file(pool, key)) {
            Ok(mut file) => file.read_to_end(&mut text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        Ok(text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
    }

    /// More was said.
    ///
    /// # Errors
    /// The disk is full, or the file cannot be written.
    pub fn append(&self, pool: &str, key: &str, said: &[Spoken]) -> io::Result<()> {
        let path = self.file(pool, key);
        let mut file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path)?;
        file.write_all(&lines(said, true))?;
        if file.metadata()?.len() > LONGEST {
            let all = self.read(pool, key)?;
            let mut held = 0;
            let newest = all.iter().rev().take_while(|one| {
                held += one.content.len();
                held <= KEPT
            });
            let kept = newest.count().max(1);
            self.replace(pool, key, &all[all.len() - kept..])?;
        }
        Ok(())
    }

    /// It was something else that was said.
    ///
    /// # Errors
    /// As [`Self::append`]; it stays as it was then.
    pub fn replace(&self, pool: &str, key: &str, said: &[Spoken]) -> io::Result<()> {
        let path = self.file(pool, key);
        let new = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&lines(said, false))?;
        std::fs::rename(&new, &path)
    }

    /// Nothing was ever said.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub fn forget(&self, pool: &str, key: &str) -> io::Result<()> {
        match std::fs::remove_file(self.file(pool, key)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn file(&self, pool: &str, key: &str) -> PathBuf {
        let name = |text: &str| -> String {
            let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
            let part = |byte: u8| if is_plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02x}") };
            text.bytes().map(part).collect()
        };
        let mut name = format!("{}.{}", name(pool), name(key));
        if name.len() > LONGEST_NAME {
            let digest = [fnv(key.as_bytes(), 0), fnv(key.as_bytes(), 1)];
            name.truncate(LONGEST_NAME - 40);
            name = format!("{name}.{:016x}{:016x}", digest[0], digest[1]);
        }
        self.dir.join(name + ".jsonl")
    }
}

/// A line a message. After what a crash may have cut off, what follows begins a line of its own.
fn lines(said: &[Spoken], follows: bool) -> Vec<u8> {
    let mut text = Vec::new();
    for one in said {
        if follows {
            text.push(b'\n');
        }
        // A text and a word are always JSON.
        text.extend(serde_json::to_vec(one).unwrap_or_default());
        text.push(b'\n');
    }
    text
}

/// FNV-1a, 64 bits: names, not secrets. http://www.isthe.com/chongo/tech/comp/fnv/
fn fnv(bytes: &[u8], salt: u8) -> u64 {
    let all = bytes.iter().chain(std::iter::once(&salt));
    all.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::tests::TempDir;
    use proptest::prelude::*;

    fn said(role: &str, content: &str) -> Spoken {
        Spoken { role: role.to_owned(), content: content.to_owned() }
    }

    fn open() -> (TempDir, Conversations) {
        let dir = TempDir::new("conversations");
        let conversations = Conversations::open(dir.path()).unwrap();
        (dir, conversations)
    }

    #[test]
    fn what_was_said_is_read_again() {
        let (dir, all) = open();
        assert_eq!(all.read("bot", "room 1").unwrap(), []);
        all.append("bot", "room 1", &[said("user", "hi\nthere"), said("assistant", "hello")]).unwrap();
        all.append("bot", "room 1", &[said("user", "more")]).unwrap();
        all.append("bot", "room 2", &[said("user", "other")]).unwrap();
        let again = Conversations::open(dir.path()).unwrap();
        let texts: Vec<String> = again.read("bot", "room 1").unwrap().into_iter().map(|one| one.content).collect();
        assert_eq!(texts, ["hi\nthere", "hello", "more"]);
        again.replace("bot", "room 1", &[said("user", "no")]).unwrap();
        assert_eq!(again.read("bot", "room 1").unwrap().len(), 1);
        again.forget("bot", "room 1").unwrap();
        again.forget("bot", "room 1").unwrap();
        assert_eq!(again.read("bot", "room 1").unwrap(), []);
        assert_eq!(again.read("bot", "room 2").unwrap().len(), 1);
    }

    #[test]
    fn a_line_that_was_cut_off_costs_no_other() {
        let (_dir, all) = open();
        all.append("bot", "a", &[said("user", "one")]).unwrap();
        let file = all.file("bot", "a");
        let mut text = std::fs::read(&file).unwrap();
        text.extend(b"\n{\"role\":\"user\",\"cont");
        std::fs::write(&file, text).unwrap();
        all.append("bot", "a", &[said("user", "two")]).unwrap();
        let texts: Vec<String> = all.read("bot", "a").unwrap().into_iter().map(|one| one.content).collect();
        assert_eq!(texts, ["one", "two"]);
    }

    #[test]
    fn a_long_one_keeps_what_is_new() {
        let (_dir, all) = open();
        for turn in 0..50 {
            all.append("bot", "a", &[said("user", &format!("{turn} {}", "x".repeat(100_000)))]).unwrap();
        }
        let kept = all.read("bot", "a").unwrap();
        assert!(kept.len() < 45 && kept.last().unwrap().content.starts_with("49 "), "{}", kept.len());
        assert!(std::fs::metadata(all.file("bot", "a")).unwrap().len() <= LONGEST);
    }

    proptest! {
        #[test]
        fn each_key_has_a_file_of_its_own(one in ".{0,300}", other in ".{0,300}") {
            let all = Conversations { dir: PathBuf::from("/x") };
            let (first, second) = (all.file("p", &one), all.file("p", &other));
            prop_assert_eq!(one == other, first == second);
            prop_assert!(first.parent() == Some(Path::new("/x")) && first.file_name().unwrap().len() <= 200);
        }
    }
}
