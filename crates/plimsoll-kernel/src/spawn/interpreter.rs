//! Why exec says "no such file" of a file that is there: it asks for an interpreter (a script's first line, a program's
//! loader) that is not.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The kernel reads so much of a script.
const FIRST_LINE: usize = 256;

/// The interpreter that this file asks for, or the interpreter's own, when it is not there. Relative paths are relative to
/// `dir`.
pub(super) fn missing(file: &Path, dir: &Path) -> Option<PathBuf> {
    let mut file = dir.join(file);
    // An interpreter may be a script itself; the kernel follows five.
    for _ in 0..5 {
        let interpreter = asked_for(&File::open(&file).ok()?).ok()??;
        file = dir.join(&interpreter);
        if !file.exists() {
            return Some(interpreter);
        }
    }
    None
}

fn asked_for(file: &File) -> io::Result<Option<PathBuf>> {
    let mut head = [0; FIRST_LINE];
    let length = file.read_at(&mut head, 0)?;
    let head = &head[..length];
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|&byte| byte == b'\n').next().unwrap_or_default();
        let word = line.split(|byte| matches!(byte, b' ' | b'\t' | 0)).find(|word| !word.is_empty());
        return Ok(word.map(path));
    }
    if head.starts_with(b"\x7fELF") { loader(file, head) } else { Ok(None) }
}

/// `PT_INTERP` of an ELF file with our own byte order; another one's is not run here anyway.
fn loader(file: &File, head: &[u8]) -> io::Result<Option<PathBuf>> {
    const PT_INTERP: u64 = 3;
    // Where the fields are: `e_phoff`, `e_phentsize`, `e_phnum`, then `p_offset`, `p_filesz`, and the size of the long ones.
    let (table, size, count, offset, length, long) = match head.get(4) {
        Some(1) => (28, 42, 44, 4, 16, 4),
        Some(2) => (32, 54, 56, 8, 32, 8),
        _ => return Ok(None),
    };
    let number = |bytes: &[u8], at: usize, size: usize| {
        let mut value = [0; 8];
        let from = if cfg!(target_endian = "big") { 8 - size } else { 0 };
        value[from..from + size].copy_from_slice(bytes.get(at..at + size)?);
        Some(u64::from_ne_bytes(value))
    };
    let field = |at, size| number(head, at, size).unwrap_or(0);
    let (table, size, count) = (field(table, long), field(size, 2), field(count, 2));
    for index in 0..count {
        let mut entry = [0; 56];
        let read = file.read_at(&mut entry, table.saturating_add(index * size))?;
        let field = |at, size| number(&entry[..read], at, size).unwrap_or(0);
        if field(0, 4) == PT_INTERP {
            let mut name = vec![0; field(length, long).min(4096) as usize];
            file.read_exact_at(&mut name, field(offset, long))?;
            return Ok(name.split(|&byte| byte == 0).next().filter(|name| !name.is_empty()).map(path));
        }
    }
    Ok(None)
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_scripts_and_of_programs() {
        let dir = std::env::temp_dir().join(format!("plimsoll-interpreter-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let file = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.join(name), bytes).unwrap();
            missing(Path::new(name), &dir)
        };
        assert_eq!(file("gone", b"#! /nonexistent/x -e\nexit"), Some("/nonexistent/x".into()));
        assert_eq!(file("carried", b"#!/bin/sh\r\n"), Some("/bin/sh\r".into()));
        assert_eq!(file("relative", b"#!gone"), Some("/nonexistent/x".into()));
        assert_eq!(file("fine", b"#!/bin/sh\n"), None);
        assert_eq!(file("circle", b"#!circle\n"), None);
        for bytes in [&b""[..], b"#!", b"#!\n", b"echo", b"\x7fELF", b"\x7fELF\x02\x01"] {
            assert_eq!(file("other", bytes), None, "{bytes:?}");
        }
        // A program that is dynamically linked, its loader's name spoilt.
        let mut program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        if let Some(loader) = asked_for(&File::open(std::env::current_exe().unwrap()).unwrap()).unwrap() {
            assert!(loader.is_absolute() && loader.exists(), "{}", loader.display());
            let name = loader.as_os_str().as_bytes().to_owned();
            let at = program.windows(name.len()).position(|window| window == name).unwrap();
            program[at + 1] = b'!';
            let spoilt = path(&program[at..at + name.len()]);
            assert_eq!(file("program", &program), Some(spoilt));
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
