//! What an agent keeps of its conversations by itself, so that another process of it can take one up again.
//!
//! A folder a conversation, with up to three things in it:
//!
//! | what | who writes it | when |
//! |---|---|---|
//! | `name.json` | who talks with agents | after each answer: what the agent calls the conversation, and what was said by then |
//! | `seat.json` | who starts agents | with the first turn on a process: where that one lives |
//! | `projects/` | who starts agents | at a process's end: the transcripts from its home, which goes with it |
//!
//! An agent finds its transcript by the folder that it works in (claude-code #58591, #68525), so whoever takes a
//! conversation up again lives at the same path as the one before: that is why the seat is written down. The folders are
//! ours alone; a process gets a copy that belongs to its user. They are bounded: a conversation's transcripts in bytes, all
//! of them in bytes and in number; the oldest ones go.

use std::ffi::OsStr;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::digest;

/// The folder in the state directory.
const FOLDER: &str = "agents";

/// Where the transcripts are: in a home, and here.
const PROJECTS: &str = ".claude/projects";
const KEPT: &str = "projects";

/// A conversation of which an agent keeps more is told again instead, bytes.
const LARGEST: u64 = 16 << 20;

/// All transcripts together, bytes.
const LARGEST_OF_ALL: u64 = 512 << 20;

/// So many conversations are known, each with transcripts or without.
const MOST: usize = 1_000;

/// Files and folders of one conversation.
const MOST_FILES: u64 = 1_000;

/// Folders within folders.
const DEEPEST: u32 = 8;

/// An agent's own name for a conversation is no longer than this.
const LONGEST_NAME: usize = 128;

/// What an agent calls a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Its own name for it (`session_id`).
    pub name: String,
    /// What was said by then, as whoever wrote this compares it.
    pub said: String,
}

/// Whose a folder is: its name is a digest, and no proof.
#[derive(Debug, Serialize, Deserialize)]
struct Of<T> {
    pool: String,
    key: String,
    #[serde(flatten)]
    what: T,
}

/// Where the process lives, or lived, that has a conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Seated {
    seat: String,
    /// Of its transcripts that are kept.
    bytes: u64,
}

/// What agents keep, of one state directory.
#[derive(Debug, Clone)]
pub struct Agents {
    dir: PathBuf,
}

impl Agents {
    /// Those of this state directory. Nothing is made before there is something to keep.
    #[must_use]
    pub fn of(state_dir: &Path) -> Self {
        Self { dir: state_dir.join(FOLDER) }
    }

    /// What the agent calls a conversation.
    #[must_use]
    pub fn named(&self, pool: &str, key: &str) -> Option<Named> {
        read::<Named>(&self.folder(pool, key).join("name.json"), pool, key).filter(|named| is_name(&named.name))
    }

    /// The agent has told what it calls a conversation. What could be no name of a file is not kept.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn name(&self, pool: &str, key: &str, named: Named) -> io::Result<()> {
        if !is_name(&named.name) {
            return self.forget(pool, key);
        }
        self.write(pool, key, "name.json", named)?;
        // Seldom, and then for many to come.
        if std::fs::read_dir(&self.dir)?.count() > MOST {
            self.bound(LARGEST_OF_ALL, MOST / 10 * 9);
        }
        Ok(())
    }

    /// Where the process lives, or lived, that has a conversation.
    #[must_use]
    pub fn seat(&self, pool: &str, key: &str) -> Option<String> {
        Some(read::<Seated>(&self.folder(pool, key).join("seat.json"), pool, key)?.seat).filter(|seat| is_name(seat))
    }

    /// A process has a conversation, and lives there. What was kept before is of no use any more: the process has more, or
    /// knows other words; and if the machine goes down with it, what was kept lacks what was said since.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn sit(&self, pool: &str, key: &str, seat: &str) -> io::Result<()> {
        remove(&self.folder(pool, key).join(KEPT))?;
        self.write(pool, key, "seat.json", Seated { seat: seat.to_owned(), bytes: 0 })
    }

    /// A process is gone that had a conversation: the transcripts in its home are kept, of its user's own files alone. Where
    /// they are too large, or are none, nothing is; nor of a conversation that has no name, which nobody can ask for again.
    ///
    /// # Errors
    /// They cannot be copied; then nothing is kept.
    pub fn keep(&self, pool: &str, key: &str, seat: &str, home: &Path) -> io::Result<()> {
        if self.named(pool, key).is_none() {
            return self.forget(pool, key);
        }
        let kept = self.folder(pool, key).join(KEPT);
        remove(&kept)?;
        // A link in its place leads to what is not its own.
        let own = std::fs::symlink_metadata(home)?.uid();
        if !std::fs::symlink_metadata(home.join(".claude")).is_ok_and(|found| found.is_dir() && found.uid() == own) {
            return Ok(());
        }
        self.write(pool, key, "seat.json", Seated { seat: seat.to_owned(), bytes: 0 })?;
        let mut copy = Copy { from: own, to: None, bytes: 0, files: 0 };
        if let Err(error) = copy.folder(&home.join(PROJECTS), &kept, 0) {
            let _ = remove(&kept);
            return if error.kind() == io::ErrorKind::FileTooLarge { Ok(()) } else { Err(error) };
        }
        self.write(pool, key, "seat.json", Seated { seat: seat.to_owned(), bytes: copy.bytes })?;
        self.bound(LARGEST_OF_ALL, MOST);
        Ok(())
    }

    /// Gives a home what is kept of a conversation, for its user. Answers whether the transcript of that name is among it.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn give(&self, pool: &str, key: &str, name: &str, home: &Path, user: Option<u32>) -> io::Result<bool> {
        let kept = self.folder(pool, key).join(KEPT);
        if !has_transcript(&kept, OsStr::new(&format!("{name}.jsonl")), 0) {
            return Ok(false);
        }
        let claude = home.join(".claude");
        make(&claude)?;
        chown(&claude, user, user)?;
        let own = std::fs::symlink_metadata(&kept)?.uid();
        Copy { from: own, to: Some(user), bytes: 0, files: 0 }.folder(&kept, &home.join(PROJECTS), 0)?;
        Ok(true)
    }

    /// The conversations of the processes that lived there: pool, key and seat.
    #[must_use]
    pub fn seated(&self, is_there: impl Fn(&str) -> bool) -> Vec<(String, String, String)> {
        let folders = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let seats = folders.filter_map(|entry| {
            let text = std::fs::read(entry.path().join("seat.json")).ok()?;
            let of: Of<Seated> = serde_json::from_slice(&text).ok()?;
            (is_name(&of.what.seat) && is_there(&of.what.seat)).then_some((of.pool, of.key, of.what.seat))
        });
        seats.collect()
    }

    /// Nothing is known of a conversation any more.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(&self, pool: &str, key: &str) -> io::Result<()> {
        remove(&self.folder(pool, key))
    }

    /// The oldest ones go until no more than that are left.
    fn bound(&self, bytes: u64, most: usize) {
        let folders = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut all: Vec<(SystemTime, u64, PathBuf)> = folders
            .filter_map(|entry| {
                let folder = entry.path();
                let written = ["name.json", "seat.json"].map(|file| std::fs::metadata(folder.join(file)));
                let written = written.into_iter().flatten().filter_map(|found| found.modified().ok()).max();
                let text = std::fs::read(folder.join("seat.json")).unwrap_or_default();
                let held = serde_json::from_slice::<Seated>(&text).map_or(0, |seated| seated.bytes);
                Some((written.or_else(|| entry.metadata().ok()?.modified().ok())?, held, folder))
            })
            .collect();
        all.sort();
        let (mut held, mut left) = (all.iter().map(|(_, bytes, _)| bytes).sum::<u64>(), all.len());
        for (_, one, folder) in all {
            if held <= bytes && left <= most {
                break;
            }
            if remove(&folder).is_ok() {
                (held, left) = (held - one, left - 1);
            }
        }
    }

    fn write<T: Serialize>(&self, pool: &str, key: &str, file: &str, what: T) -> io::Result<()> {
        let folder = self.folder(pool, key);
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        let text = serde_json::to_vec(&Of { pool: pool.to_owned(), key: key.to_owned(), what })?;
        // What a crash has cut off is never read.
        let new = folder.join(format!("{file}.new"));
        let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        open.write_all(&text)?;
        std::fs::rename(&new, folder.join(file))
    }

    fn folder(&self, pool: &str, key: &str) -> PathBuf {
        self.dir.join(digest(pool.bytes().chain([0]).chain(key.bytes())))
    }
}

fn read<T: DeserializeOwned>(file: &Path, pool: &str, key: &str) -> Option<T> {
    let of: Of<T> = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (of.pool == pool && of.key == key).then_some(of.what)
}

/// Whether it may be a word of a command and a part of a path.
fn is_name(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=LONGEST_NAME).contains(&text.len()) && !text.starts_with(['-', '.']) && text.bytes().all(is_plain)
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Whether a file of that name is there.
fn has_transcript(folder: &Path, name: &OsStr, depth: u32) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| match entry.file_type() {
        Ok(kind) if kind.is_file() => entry.file_name() == name,
        Ok(kind) if kind.is_dir() => depth < DEEPEST && has_transcript(&entry.path(), name, depth + 1),
        _ => false,
    })
}

/// A copy of a folder: plain files and folders of one user, and nothing that leads out of it.
struct Copy {
    from: u32,
    /// Whose the copy is to be; `None`: ours.
    to: Option<Option<u32>>,
    bytes: u64,
    files: u64,
}

impl Copy {
    fn folder(&mut self, from: &Path, to: &Path, depth: u32) -> io::Result<()> {
        let found = match std::fs::symlink_metadata(from) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            found => found?,
        };
        if !found.is_dir() || found.uid() != self.from {
            return Ok(());
        }
        self.count(0, depth)?;
        make(to)?;
        for entry in std::fs::read_dir(from)? {
            let entry = entry?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type()?;
            if kind.is_dir() {
                self.folder(&from, &to, depth + 1)?;
            } else if kind.is_file() {
                self.file(&from, &to, depth)?;
            }
        }
        self.hand_over(to)
    }

    fn file(&mut self, from: &Path, to: &Path, depth: u32) -> io::Result<()> {
        // What has taken its place meanwhile is not followed, and not waited for.
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let mut source = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(from)?;
        let found = source.metadata()?;
        // Another name of somebody else's file is no file of its own.
        if found.uid() != self.from || found.nlink() > 1 {
            return Ok(());
        }
        self.count(found.len(), depth)?;
        let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut source, &mut copy)?;
        self.hand_over(to)
    }

    fn count(&mut self, bytes: u64, depth: u32) -> io::Result<()> {
        self.bytes += bytes;
        self.files += 1;
        if self.bytes > LARGEST || self.files > MOST_FILES || depth > DEEPEST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(())
    }

    fn hand_over(&self, path: &Path) -> io::Result<()> {
        self.to.map_or(Ok(()), |user| chown(path, user, user))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::tests::TempDir;
    use std::fs::File;

    fn named(name: &str) -> Named {
        Named { name: name.to_owned(), said: "2:ab".to_owned() }
    }

    /// A home with a transcript.
    fn home(dir: &Path, name: &str, text: &str) -> PathBuf {
        let home = dir.join(format!("home-{name}"));
        let folder = home.join(PROJECTS).join("-run-x-work");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.jsonl")), text).unwrap();
        home
    }

    fn empty(dir: &Path) -> PathBuf {
        let home = dir.join("new");
        let _ = std::fs::remove_dir_all(&home);
        std::fs::create_dir(&home).unwrap();
        home
    }

    #[test]
    fn what_an_agent_calls_a_conversation_is_known_again() {
        let dir = TempDir::new("agents");
        let agents = Agents::of(dir.path());
        assert_eq!(agents.named("bot", "a"), None);
        agents.name("bot", "a", named("s-1")).unwrap();
        assert_eq!(Agents::of(dir.path()).named("bot", "a"), Some(named("s-1")));
        assert_eq!((agents.named("bot", "b"), agents.named("other", "a")), (None, None));
        // A name is a word of a command, and of a path.
        for bad in ["", "--model=x", "../x", "a b", ".x", &"x".repeat(LONGEST_NAME + 1)] {
            agents.name("bot", "a", named("s-1")).unwrap();
            agents.name("bot", "a", named(bad)).unwrap();
            assert_eq!(agents.named("bot", "a"), None, "{bad:?}");
        }
    }

    #[test]
    fn a_folder_of_another_conversation_is_none() {
        let dir = TempDir::new("agents-digest");
        let agents = Agents::of(dir.path());
        agents.name("bot", "a", named("s-1")).unwrap();
        agents.sit("bot", "a", "bot.1").unwrap();
        // As if both had the same digest.
        std::fs::rename(agents.folder("bot", "a"), agents.folder("bot", "b")).unwrap();
        assert_eq!((agents.named("bot", "b"), agents.seat("bot", "b")), (None, None));
    }

    #[test]
    fn a_transcript_outlives_its_home() {
        let dir = TempDir::new("agents-keep");
        let agents = Agents::of(dir.path());
        let old = home(dir.path(), "s-1", "words\n");
        std::fs::write(old.join(".claude/.credentials.json"), "secret").unwrap();
        agents.sit("bot", "a", "bot.1").unwrap();
        agents.keep("bot", "a", "bot.1", &old).unwrap();
        assert_eq!(agents.seat("bot", "a"), None, "nobody can ask for it");
        agents.name("bot", "a", named("s-1")).unwrap();
        agents.sit("bot", "a", "bot.1").unwrap();
        assert_eq!(agents.seated(|seat| seat == "bot.1"), [("bot".to_owned(), "a".to_owned(), "bot.1".to_owned())]);
        agents.keep("bot", "a", "bot.1", &old).unwrap();
        std::fs::remove_dir_all(&old).unwrap();
        assert_eq!(agents.seat("bot", "a").as_deref(), Some("bot.1"));
        let new = empty(dir.path());
        assert!(!agents.give("bot", "a", "s-2", &new, None).unwrap(), "another transcript");
        assert!(!new.join(".claude").exists());
        assert!(agents.give("bot", "a", "s-1", &new, None).unwrap());
        let given = new.join(PROJECTS).join("-run-x-work/s-1.jsonl");
        assert_eq!(std::fs::read_to_string(given).unwrap(), "words\n");
        assert!(!new.join(".claude/.credentials.json").exists(), "more than transcripts was kept");
        // It is nobody else's.
        for folder in [&agents.dir, &agents.folder("bot", "a")] {
            assert_eq!(std::fs::metadata(folder).unwrap().mode() & 0o777, 0o700);
        }
        // The next process has the conversation, and more to say of it than this.
        agents.sit("bot", "a", "bot.1").unwrap();
        assert!(!agents.give("bot", "a", "s-1", &empty(dir.path()), None).unwrap());
        agents.forget("bot", "a").unwrap();
        agents.forget("bot", "a").unwrap();
        assert_eq!(agents.seat("bot", "a"), None);
    }

    #[test]
    fn nothing_is_kept_that_leads_elsewhere() {
        let dir = TempDir::new("agents-links");
        let agents = Agents::of(dir.path());
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "secret").unwrap();
        let old = home(dir.path(), "s-1", "words\n");
        let folder = old.join(PROJECTS).join("-run-x-work");
        std::os::unix::fs::symlink(&secret, folder.join("s-2.jsonl")).unwrap();
        std::fs::hard_link(&secret, folder.join("s-3.jsonl")).unwrap();
        std::os::unix::fs::symlink(dir.path(), folder.join("all")).unwrap();
        agents.name("bot", "a", named("s-1")).unwrap();
        agents.keep("bot", "a", "bot.1", &old).unwrap();
        for name in ["s-2", "s-3"] {
            assert!(!agents.give("bot", "a", name, &empty(dir.path()), None).unwrap(), "{name}");
        }
        assert!(agents.give("bot", "a", "s-1", &empty(dir.path()), None).unwrap());
        // All of it is a link.
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(old.join(".claude"), other.join(".claude")).unwrap();
        agents.name("bot", "b", named("s-1")).unwrap();
        agents.keep("bot", "b", "bot.2", &other).unwrap();
        assert!(!agents.give("bot", "b", "s-1", &empty(dir.path()), None).unwrap());
    }

    #[test]
    fn what_is_too_large_is_not_kept() {
        let dir = TempDir::new("agents-large");
        let agents = Agents::of(dir.path());
        let old = home(dir.path(), "s-1", "words\n");
        let file = File::options().write(true).open(old.join(PROJECTS).join("-run-x-work/s-1.jsonl")).unwrap();
        file.set_len(LARGEST + 1).unwrap();
        agents.name("bot", "a", named("s-1")).unwrap();
        agents.keep("bot", "a", "bot.1", &old).unwrap();
        assert!(!agents.give("bot", "a", "s-1", &empty(dir.path()), None).unwrap());
        assert!(!agents.folder("bot", "a").join(KEPT).exists());
    }

    #[test]
    fn the_oldest_go() {
        let dir = TempDir::new("agents-bound");
        let agents = Agents::of(dir.path());
        for key in 0..6u32 {
            let old = home(dir.path(), &format!("s-{key}"), &"x".repeat(1000));
            agents.name("bot", &key.to_string(), named("s-1")).unwrap();
            agents.keep("bot", &key.to_string(), "bot.1", &old).unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + u64::from(key));
            for file in ["name.json", "seat.json"] {
                let file = File::options().write(true).open(agents.folder("bot", &key.to_string()).join(file));
                file.unwrap().set_modified(at).unwrap();
            }
        }
        let left = |agents: &Agents| -> Vec<u32> {
            (0..6).filter(|key| agents.seat("bot", &key.to_string()).is_some()).collect()
        };
        agents.bound(u64::MAX, 5);
        assert_eq!(left(&agents), [1, 2, 3, 4, 5]);
        agents.bound(3500, 5);
        assert_eq!(left(&agents), [3, 4, 5]);
    }
}
