//! Conversations: what was said in each, so that it goes on in another process, also after plimsoll was killed.
//!
//! A file a conversation, a line a message, written before the answer is given: a conversation is read when its process is
//! new, appended to with each turn, and needed by nothing else, for which a database would be too much. A line that was cut
//! off by a crash is none. Each file has a bound (its oldest messages go), and so has their number (the files that were
//! written longest ago go).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::digest::digest;

/// The folder in the state directory.
const FOLDER: &str = "conversations";

/// A conversation's file is cut when it is longer than this, bytes,
const LONGEST: u64 = 4 << 20;

/// to its newest messages of so many bytes.
const KEPT: usize = 2 << 20;

/// So many conversations are kept.
const MOST: usize = 10_000;

/// So many files are kept open, those that were written to last: to open one costs more than to write to it.
const OPEN: usize = 64;

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
    open: RefCell<Open>,
}

/// Files that are open, by their names, each with the time of its last use.
#[derive(Debug, Default)]
struct Open {
    files: BTreeMap<String, (u64, File)>,
    uses: u64,
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
        Ok(Self { dir, open: RefCell::default() })
    }

    /// What was said, oldest first; nothing of a conversation that is not known.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn read(&self, pool: &str, key: &str) -> io::Result<Vec<Spoken>> {
        let mut text = Vec::new();
        match File::open(self.dir.join(name(pool, key))) {
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
        let (name, text) = (name(pool, key), lines(said, true));
        let mut open = self.open.borrow_mut();
        let mut file = open.take(&name).map_or_else(|| self.appended(&name), Ok)?;
        file.write_all(&text)?;
        let mut found = file.metadata()?;
        if found.nlink() == 0 {
            // Somebody has removed it meanwhile: what is said from now on is another one.
            file = self.appended(&name)?;
            file.write_all(&text)?;
            found = file.metadata()?;
        }
        if found.len() <= LONGEST {
            open.keep(name, file);
        } else {
            drop(open);
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
        let name = name(pool, key);
        let path = self.dir.join(&name);
        let new = path.with_extension("new");
        self.open.borrow_mut().take(&name);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&lines(said, false))?;
        std::fs::rename(&new, &path)
    }

    /// Nothing was ever said.
    ///
    /// # Errors
    /// The file is there and cannot be removed.
    pub fn forget(&self, pool: &str, key: &str) -> io::Result<()> {
        let name = name(pool, key);
        self.open.borrow_mut().take(&name);
        match std::fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn appended(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.dir.join(name))
    }
}

impl Open {
    fn take(&mut self, name: &str) -> Option<File> {
        self.files.remove(name).map(|(_, file)| file)
    }

    /// Keeps one; whoever was used longest ago is closed for it.
    fn keep(&mut self, name: String, file: File) {
        if self.files.len() >= OPEN
            && let Some(oldest) = self.files.iter().min_by_key(|(_, (used, _))| *used).map(|(name, _)| name.clone())
        {
            self.files.remove(&oldest);
        }
        self.uses += 1;
        self.files.insert(name, (self.uses, file));
    }
}

/// The name of a conversation's file.
fn name(pool: &str, key: &str) -> String {
    let mut name = String::with_capacity(pool.len() + key.len() + 7);
    spell(pool, &mut name);
    name.push('.');
    spell(key, &mut name);
    if name.len() > LONGEST_NAME {
        name.truncate(LONGEST_NAME - 40);
        name = format!("{name}.{}", digest(key.bytes()));
    }
    name + ".jsonl"
}

/// Writes out what a name of a file may not have.
fn spell(text: &str, name: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_".contains(&byte) {
            name.push(char::from(byte));
        } else {
            let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or_default();
            name.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
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
        let file = all.dir.join(name("bot", "a"));
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
        assert!(std::fs::metadata(all.dir.join(name("bot", "a"))).unwrap().len() <= LONGEST);
    }

    #[test]
    fn a_file_that_was_removed_or_replaced_is_not_written_to() {
        let (_dir, all) = open();
        let texts = || all.read("bot", "a").unwrap().into_iter().map(|one| one.content).collect::<Vec<_>>();
        all.append("bot", "a", &[said("user", "one")]).unwrap();
        std::fs::remove_file(all.dir.join(name("bot", "a"))).unwrap();
        all.append("bot", "a", &[said("user", "two")]).unwrap();
        assert_eq!(texts(), ["two"]);
        all.replace("bot", "a", &[said("user", "three")]).unwrap();
        all.append("bot", "a", &[said("user", "four")]).unwrap();
        assert_eq!(texts(), ["three", "four"]);
        all.forget("bot", "a").unwrap();
        all.append("bot", "a", &[said("user", "five")]).unwrap();
        assert_eq!(texts(), ["five"]);
    }

    #[test]
    fn few_files_are_open_and_none_is_lost() {
        let (_dir, all) = open();
        for round in 0..2 {
            for key in 0..OPEN + 10 {
                all.append("bot", &key.to_string(), &[said("user", &round.to_string())]).unwrap();
                assert!(all.open.borrow().files.len() <= OPEN);
            }
        }
        for key in 0..OPEN + 10 {
            assert_eq!(all.read("bot", &key.to_string()).unwrap().len(), 2);
        }
    }

    proptest! {
        #[test]
        fn each_key_has_a_file_of_its_own(one in ".{0,300}", other in ".{0,300}") {
            let (first, second) = (name("p", &one), name("p", &other));
            prop_assert_eq!(one == other, first == second);
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_%.".contains(&byte);
            prop_assert!(first.bytes().all(is_plain) && first.len() <= 200, "{}", first);
        }
    }
}
