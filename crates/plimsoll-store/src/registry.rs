//! Which trees are running: one file a run, locked as long as one of its Plimsoll processes lives.
//!
//! The lock (`flock`) belongs to the open file, which the keeper inherits by `fork` and the tree does not (close-on-exec).
//! So "the lock can be taken" is "both are gone", whatever became of them, and what the file lists has to be swept.
//! The first line says what is known before the start and is never written again; the second, who was seen since. A second
//! line that is torn (a full disk, a kill) loses the members, never the groups.
//! A file is made under another name, locked, and only then renamed: nobody finds it unlocked while its run lives.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use plimsoll_model::{Boundary, RunId};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

/// The `schema` of every file of this shape.
pub const SCHEMA: &str = "plimsoll.running/1";

/// Most members written down; groups and tags find the rest.
pub const MAX_MEMBERS: usize = 4096;

/// Largest file read back, bytes: 4,096 members take under 200 KiB, a command line at most 128 KiB each argument.
const MAX_FILE: u64 = 16 << 20;

/// A process, named for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessRef {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot.
    pub start_ticks: u64,
}

/// What has to be known of a run to end it and to certify its end when all of its Plimsoll processes are gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningTree {
    /// [`SCHEMA`].
    pub schema: String,
    /// Id of the run.
    pub id: RunId,
    /// Name of the run.
    pub name: String,
    /// Command and arguments, secrets already redacted.
    pub command: Vec<String>,
    /// What holds it.
    pub boundary: Boundary,
    /// The kernel's boot id: pids and groups of another boot mean nothing.
    pub boot_id: String,
    /// When it was started, UTC.
    pub started_at: jiff::Timestamp,
    /// The line, bytes; `None` is unlimited.
    pub memory_limit_bytes: Option<u64>,
    /// Swap allowed beside the line, bytes; `None` where no limit of it is in force.
    pub swap_limit_bytes: Option<u64>,
    /// Groups made for it: absolute directories, to be emptied and removed.
    pub groups: Vec<PathBuf>,
    /// Groups above them that were made as well: removed if they are empty, never emptied.
    pub parents: Vec<PathBuf>,
    /// The root of the tree, once it runs.
    #[serde(skip)]
    pub root: Option<ProcessRef>,
    /// Members seen last, at most [`MAX_MEMBERS`].
    #[serde(skip)]
    pub members: Vec<ProcessRef>,
}

/// The second line.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SeenLast {
    root: Option<ProcessRef>,
    members: Vec<ProcessRef>,
}

/// Why a run could not be registered or leftovers not be found.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A file could not be worked on.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A path in it is no UTF-8.
    #[error("cannot write down the run {id}: {source}")]
    Encode {
        /// Id of the run.
        id: RunId,
        /// What does not fit.
        source: serde_json::Error,
    },
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RegistryError {
    let path = path.to_owned();
    move |source| RegistryError::Io { action, path, source }
}

/// The directory of the runs in a runtime directory.
fn runs(runtime: &Path) -> PathBuf {
    runtime.join("runs")
}

/// A line of the file.
fn encode(id: RunId, line: &impl Serialize) -> Result<Vec<u8>, RegistryError> {
    let mut text = serde_json::to_vec(line).map_err(|source| RegistryError::Encode { id, source })?;
    text.push(b'\n');
    Ok(text)
}

fn encode_seen(tree: &RunningTree) -> Result<Vec<u8>, RegistryError> {
    let members = tree.members[..tree.members.len().min(MAX_MEMBERS)].to_vec();
    encode(tree.id, &SeenLast { root: tree.root, members })
}

/// Our own run's file, locked. Dropping it only closes the file, for both of a run's processes hold one after `fork`.
#[derive(Debug)]
pub struct Registration {
    file: File,
    path: PathBuf,
    /// Where the second line begins.
    first_line: u64,
}

impl AsFd for Registration {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Registration {
    /// Writes a run down. The runtime directory has to exist (`Paths::make_runtime`).
    ///
    /// # Errors
    /// The file cannot be made, written or locked; nothing is left behind then.
    pub fn register(runtime: &Path, tree: &RunningTree) -> Result<Self, RegistryError> {
        let mut text = encode(tree.id, tree)?;
        let first_line = text.len() as u64;
        text.append(&mut encode_seen(tree)?);
        let dir = runs(runtime);
        let path = dir.join(format!("{}.json", tree.id));
        let new = dir.join(format!(".{}.new", tree.id));
        // A sweeper may take the new file for a dead one in the instant before it is locked: then once more.
        let mut attempts = 0;
        loop {
            attempts += 1;
            let file = match OpenOptions::new().write(true).read(true).create_new(true).mode(0o600).open(&new) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < 100 => {
                    match std::fs::DirBuilder::new().mode(0o700).create(&dir) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(failed("make", &dir)(error));
                        }
                        _ => continue,
                    }
                }
                opened => opened.map_err(failed("make", &new))?,
            };
            let written = rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .map_err(|errno| failed("lock", &new)(errno.into()))
                .and_then(|()| file.write_all_at(&text, 0).map_err(failed("write", &new)))
                .and_then(|()| match std::fs::rename(&new, &path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < 100 => Ok(false),
                    renamed => renamed.map(|()| true).map_err(failed("rename", &new)),
                });
            match written {
                Ok(true) => return Ok(Self { file, path, first_line }),
                Ok(false) => {}
                Err(error) => {
                    let _ = std::fs::remove_file(&new);
                    return Err(error);
                }
            }
        }
    }

    /// Where it is written down.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes down who is in the tree now, in place, for a rename would lose the lock.
    ///
    /// # Errors
    /// The file cannot be written; what it says of the members may be torn then, and counts as nothing.
    pub fn update(&self, tree: &RunningTree) -> Result<(), RegistryError> {
        let text = encode_seen(tree)?;
        self.file.write_all_at(&text, self.first_line).map_err(failed("write", &self.path))?;
        // The other process of the run may have written more than we know of: its length is asked for, not remembered.
        let length = self.first_line + text.len() as u64;
        if self.file.metadata().map_err(failed("look at", &self.path))?.len() > length {
            self.file.set_len(length).map_err(failed("shorten", &self.path))?;
        }
        Ok(())
    }

    /// The run is over and nothing of it is left: forgets it. One that is gone already is fine.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> Result<(), RegistryError> {
        unlink(&self.path)
    }
}

fn unlink(path: &Path) -> Result<(), RegistryError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}

/// A run whose Plimsoll processes are all gone. While it is held nobody else sweeps it; dropping it leaves it to the next.
#[derive(Debug)]
pub struct Leftover {
    /// Id of the run, from the file's name: groups and tags carry it.
    pub id: RunId,
    /// What was written down; `None` when it cannot be understood.
    pub tree: Option<RunningTree>,
    path: PathBuf,
    _lock: File,
}

impl Leftover {
    /// Whether it is of the boot with this id; pids and groups of another one must not be touched. A file that cannot be
    /// understood does not tell: `false`.
    #[must_use]
    pub fn is_of_boot(&self, boot_id: &str) -> bool {
        self.tree.as_ref().is_some_and(|tree| tree.boot_id == boot_id)
    }

    /// It is swept: forgets it.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(self) -> Result<(), RegistryError> {
        unlink(&self.path)
    }
}

/// The runs that nobody looks after any more. Files that appear or vanish meanwhile are no error; new files that were
/// never finished are removed.
///
/// # Errors
/// The directory cannot be read. There being none is fine: there are no runs then.
pub fn leftovers(runtime: &Path) -> Result<impl Iterator<Item = Leftover>, RegistryError> {
    let dir = runs(runtime);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => Some(entries),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed("read", &dir)(error)),
    };
    Ok(entries.into_iter().flatten().filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?;
        if name.starts_with('.') && name.ends_with(".new") {
            if let Some(_lock) = take(&path) {
                let _ = std::fs::remove_file(&path);
            }
            return None;
        }
        let id = id_of(name)?;
        let lock = take(&path)?;
        let tree = parse(&lock, id);
        Some(Leftover { id, tree, path, _lock: lock })
    }))
}

/// The runs that somebody looks after. One that is just being written may be missing.
///
/// # Errors
/// As [`leftovers`].
pub fn running(runtime: &Path) -> Result<Vec<RunningTree>, RegistryError> {
    let dir = runs(runtime);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed("read", &dir)(error)),
    };
    let mut trees: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let id = id_of(path.file_name()?.to_str()?)?;
            let file = open(&path)?;
            // A shared lock: two that look at the same time must not take each other for the run.
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
                Ok(()) => None,
                Err(_) => (0..3).find_map(|_| parse(&file, id)),
            }
        })
        .collect();
    trees.sort_by_key(|tree| tree.id);
    Ok(trees)
}

fn id_of(name: &str) -> Option<RunId> {
    name.strip_suffix(".json")?.parse().ok()
}

/// Opens a plain file, never through a link and never waiting on a pipe.
fn open(path: &Path) -> Option<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path).ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// Opens and locks a file that nobody holds and that still has its name.
fn take(path: &Path) -> Option<File> {
    let file = open(path)?;
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
    // Its run may have ended, or renamed it, between the two calls above.
    let (held, named) = (file.metadata().ok()?, std::fs::symlink_metadata(path).ok()?);
    (held.nlink() > 0 && held.ino() == named.ino() && held.dev() == named.dev()).then_some(file)
}

fn parse(file: &File, id: RunId) -> Option<RunningTree> {
    let length = file.metadata().ok()?.len().min(MAX_FILE);
    let mut text = vec![0; length as usize];
    let mut filled = 0;
    while filled < text.len() {
        match file.read_at(&mut text[filled..], filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    let mut lines = text[..filled].split(|&byte| byte == b'\n');
    let mut tree: RunningTree = serde_json::from_slice(lines.next()?).ok()?;
    let seen: SeenLast = lines.next().and_then(|line| serde_json::from_slice(line).ok()).unwrap_or_default();
    (tree.root, tree.members) = (seen.root, seen.members);
    // A file of another schema, or under another's name, is not to be acted on by its words.
    (tree.schema == SCHEMA && tree.id == id).then_some(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::tests::TempDir;
    use proptest::prelude::*;

    fn tree(number: u32) -> RunningTree {
        RunningTree {
            schema: SCHEMA.to_owned(),
            id: RunId::new(1_700_000_000_000, number),
            name: "api".to_owned(),
            command: vec!["sleep".to_owned(), "60".to_owned()],
            boundary: Boundary::Cgroup1,
            boot_id: "b".to_owned(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            memory_limit_bytes: Some(1 << 20),
            swap_limit_bytes: None,
            groups: vec!["/sys/fs/cgroup/memory/plimsoll/x".into()],
            parents: vec!["/sys/fs/cgroup/memory/plimsoll".into()],
            root: None,
            members: Vec::new(),
        }
    }

    fn left(dir: &Path) -> Vec<Leftover> {
        leftovers(dir).unwrap().collect()
    }

    #[test]
    fn held_while_one_of_two_descriptors_is_open() {
        let dir = TempDir::new("held");
        assert!(left(dir.path()).is_empty());
        let ours = Registration::register(dir.path(), &tree(1)).unwrap();
        // What `fork` does: a second descriptor of the same open file.
        let keeper = ours.file.try_clone().unwrap();
        assert!(left(dir.path()).is_empty());
        assert_eq!(running(dir.path()).unwrap(), [tree(1)]);
        let grown = RunningTree {
            root: Some(ProcessRef { pid: 7, start_ticks: 99 }),
            members: (0..5000).map(|n| ProcessRef { pid: n, start_ticks: 3 }).collect(),
            ..tree(1)
        };
        ours.update(&grown).unwrap();
        assert_eq!(running(dir.path()).unwrap()[0].members.len(), MAX_MEMBERS);
        ours.update(&RunningTree { members: Vec::new(), ..grown.clone() }).unwrap();
        drop(ours);
        assert!(left(dir.path()).is_empty(), "the keeper still holds it");
        drop(keeper);
        assert!(running(dir.path()).unwrap().is_empty());

        let mut found = left(dir.path());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].tree, Some(RunningTree { members: Vec::new(), ..grown }));
        assert!(found[0].is_of_boot("b") && !found[0].is_of_boot("c"));
        assert!(left(dir.path()).is_empty(), "one sweeper at a time");
        drop(found.pop());
        let again = left(dir.path()).pop().unwrap();
        again.remove().unwrap();
        assert!(left(dir.path()).is_empty());
        assert_eq!(std::fs::read_dir(runs(dir.path())).unwrap().count(), 0);
    }

    #[test]
    fn a_torn_second_line_loses_the_members_alone() {
        let dir = TempDir::new("second");
        let ours = Registration::register(dir.path(), &tree(1)).unwrap();
        let known = ProcessRef { pid: 7, start_ticks: 99 };
        let grown = RunningTree { root: Some(known), members: vec![known; 3], ..tree(1) };
        ours.update(&grown).unwrap();
        let path = ours.path().to_owned();
        drop(ours);
        assert_eq!(left(dir.path())[0].tree, Some(grown));
        let text = std::fs::read(&path).unwrap();
        let first = text.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for cut in first..text.len() - 1 {
            std::fs::write(&path, &text[..cut]).unwrap();
            assert_eq!(left(dir.path())[0].tree, Some(tree(1)), "cut at {cut}");
        }
    }

    #[test]
    fn removed_is_gone_and_twice_is_fine() {
        let dir = TempDir::new("removed");
        let ours = Registration::register(dir.path(), &tree(1)).unwrap();
        std::fs::remove_file(ours.path()).unwrap();
        ours.remove().unwrap();
        assert!(left(dir.path()).is_empty());
    }

    #[test]
    fn torn_and_strange_files() {
        let dir = TempDir::new("torn");
        drop(Registration::register(dir.path(), &tree(1)).unwrap());
        let dir_of_runs = runs(dir.path());
        let file = dir_of_runs.join(format!("{}.json", tree(1).id));
        let text = std::fs::read(&file).unwrap();
        std::fs::write(&file, &text[..text.len() / 2]).unwrap();
        // Another run's words under this name, an unfinished file, and what is none of ours.
        std::fs::write(dir_of_runs.join(format!("{}.json", tree(2).id)), &text).unwrap();
        std::fs::write(dir_of_runs.join(format!(".{}.new", tree(3).id)), "{").unwrap();
        std::fs::write(dir_of_runs.join("README.json"), "{}").unwrap();
        std::fs::create_dir(dir_of_runs.join(format!("{}.json", tree(4).id))).unwrap();
        std::os::unix::fs::symlink(&file, dir_of_runs.join(format!("{}.json", tree(5).id))).unwrap();
        let mut found = left(dir.path());
        found.sort_by_key(|one| one.id);
        let ids: Vec<_> = found.iter().map(|one| (one.id, one.tree.is_some(), one.is_of_boot("b"))).collect();
        assert_eq!(ids, [(tree(1).id, false, false), (tree(2).id, false, false)]);
        assert!(!dir_of_runs.join(format!(".{}.new", tree(3).id)).exists());
        assert!(dir_of_runs.join("README.json").exists());
    }

    /// Registering and sweeping at once: a sweeper never gets a live run, and a run is always registered.
    #[test]
    fn registering_races_with_sweeping() {
        let dir = TempDir::new("race");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::Relaxed) {
                        assert!(left(dir.path()).is_empty());
                        let _ = running(dir.path()).unwrap();
                    }
                });
            }
            let writers: Vec<_> = (0..4)
                .map(|writer| {
                    let dir = dir.path();
                    scope.spawn(move || {
                        for n in 0..300 {
                            let tree = tree(writer * 1000 + n);
                            let ours = Registration::register(dir, &tree).unwrap();
                            ours.update(&tree).unwrap();
                            assert!(ours.path().exists());
                            ours.remove().unwrap();
                        }
                    })
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(std::fs::read_dir(runs(dir.path())).unwrap().count(), 0);
    }

    proptest! {
        /// Whatever is left of a file, its id is found, and its words are used only when they are whole.
        #[test]
        fn any_bytes(cut in 0usize..400, flips in prop::collection::vec((0usize..400, any::<u8>()), 0..3)) {
            let dir = TempDir::new("bytes");
            drop(Registration::register(dir.path(), &tree(1)).unwrap());
            let file = runs(dir.path()).join(format!("{}.json", tree(1).id));
            let mut text = std::fs::read(&file).unwrap();
            text.truncate(cut);
            let length = text.len().max(1);
            for (at, byte) in flips {
                if let Some(place) = text.get_mut(at % length) {
                    *place ^= byte;
                }
            }
            std::fs::write(&file, &text).unwrap();
            let found = left(dir.path());
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].id, tree(1).id);
        }

        #[test]
        fn written_is_read(name in ".{0,40}", command in prop::collection::vec(".{0,40}", 0..4), members in prop::collection::vec((any::<i32>(), any::<u64>()), 0..50)) {
            let dir = TempDir::new("written");
            let members = members.into_iter().map(|(pid, start_ticks)| ProcessRef { pid, start_ticks }).collect();
            let tree = RunningTree { name, command, members, ..tree(1) };
            drop(Registration::register(dir.path(), &tree).unwrap());
            let found = left(dir.path()).pop().unwrap();
            prop_assert_eq!(found.tree.as_ref(), Some(&tree));
        }
    }
}
