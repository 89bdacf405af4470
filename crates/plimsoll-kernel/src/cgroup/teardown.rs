//! Emptying and removing groups, by their directories alone: the same for a tree that ends and for what a former
//! plimsoll left behind.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::files::{Dir, open};
use crate::KernelError;
use crate::clock::Instant;

/// How long a tree may take to die before its rest counts as surviving: a process in an uninterruptible call (a dead
/// disk, a hung mount) cannot be killed by anybody.
const PATIENCE: Duration = Duration::from_secs(30);

/// While members of a v2 group die they are not killed again for so long.
const AT_ONE_GO: Duration = Duration::from_secs(2);

/// Kills everything in the directories of one group until nothing is left. Calls `reap` often, so that those of the
/// dead that are children of this process go too. Answers who is left after [`PATIENCE`]: nobody, or a bug or a dead disk.
pub fn kill_until_empty(dirs: &[PathBuf], reap: impl FnMut()) -> Vec<i32> {
    kill_for(dirs, PATIENCE, reap)
}

/// The same for as long as the caller has time; it may come again.
pub fn kill_for(dirs: &[PathBuf], patience: Duration, mut reap: impl FnMut()) -> Vec<i32> {
    let groups: Vec<Dir> = dirs.iter().map(|path| Dir(path.clone())).collect();
    if is_empty(&groups) {
        reap();
        return Vec::new();
    }
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    let mut through_kernel = true;
    loop {
        kill_once(&groups, through_kernel);
        wait_unpopulated(&groups, pause, patience.min(AT_ONE_GO));
        reap();
        if is_empty(&groups) {
            return Vec::new();
        }
        if start.elapsed() > patience {
            return members(&groups);
        }
        // A member that is in one hierarchy's group but not in the unified one is not reached by cgroup.kill.
        through_kernel = pause < Duration::from_millis(2);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

fn kill_once(groups: &[Dir], through_kernel: bool) {
    if through_kernel {
        let mut killed = false;
        for group in groups {
            killed |= group.file("cgroup.kill").exists() && group.write("cgroup.kill", "1").is_ok();
        }
        if killed {
            return;
        }
    }
    let freezer = groups.iter().find(|group| group.write("freezer.state", "FROZEN").is_ok());
    if let Some(freezer) = freezer {
        // FREEZING may stick while a member sits in the kernel; half a second does for all others, and the caller
        // comes again until the group is empty.
        let start = Instant::now();
        while freezer.read("freezer.state").is_ok_and(|state| state == "FREEZING")
            && start.elapsed() < Duration::from_millis(500)
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    for group in groups {
        for below in group.with_groups_below() {
            for pid in below.procs().unwrap_or_default() {
                kill_member(pid, &below);
            }
        }
    }
    if let Some(freezer) = freezer {
        // SIGKILL has no effect on the frozen: thaw, whatever happened above.
        let _ = freezer.write("freezer.state", "THAWED");
    }
}

/// A pid of the list can end and be taken by a stranger before the signal: the pidfd pins whoever has it, and his group
/// tells whether he is the member.
fn kill_member(pid: i32, group: &Dir) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let own_groups = std::fs::read_to_string(format!("/proc/{}/cgroup", pid.as_raw_nonzero())).unwrap_or_default();
    let name = group.0.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if own_groups.lines().any(|line| line.rsplit('/').next() == Some(&name)) {
        // ESRCH: it ended by itself, which is as good.
        let _ = pidfd_send_signal(handle, Signal::KILL);
    }
}

/// Waits up to `longest` for a v2 directory of the group to become unpopulated; without one just waits.
fn wait_unpopulated(groups: &[Dir], longest: Duration, most: Duration) {
    let until = Instant::now().after(longest);
    let events = groups.iter().find_map(|group| open(&group.file("cgroup.events"), OFlags::RDONLY).ok());
    let Some(events) = events else {
        std::thread::sleep(longest);
        return;
    };
    let mut longest = longest.max(most);
    loop {
        let mut buffer = [0; 128];
        match rustix::io::pread(&events, &mut buffer, 0) {
            Ok(count) if !buffer[..count].windows(11).any(|window| window == b"populated 1") => return,
            Ok(_) => {}
            // The group is gone.
            Err(_) => return,
        }
        // While members of the v2 group die, waiting costs nothing; the kernel's notification ends it.
        let step = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        // Nobody is reaped meanwhile: the dead do not count, and reaping takes processors from those that are to die.
        let _ = poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&step));
        longest = longest.saturating_sub(Duration::from_millis(5));
        if longest.is_zero() && Instant::now() > until {
            return;
        }
    }
}

/// Whether nobody is in any of them: where the kernel says so of the v2 directory, the others are asked only then.
fn is_empty(groups: &[Dir]) -> bool {
    !groups.iter().rev().any(populated) && members(groups).is_empty()
}

fn populated(group: &Dir) -> bool {
    group.keyed("cgroup.events", "populated").is_ok_and(|value| value == 1)
}

/// Everyone in any of the groups or below them; a directory that is gone has nobody.
fn members(groups: &[Dir]) -> Vec<i32> {
    let mut all: Vec<i32> = groups.iter().flat_map(Dir::all_procs).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Members of the groups with these directories.
#[must_use]
pub fn members_of(dirs: &[PathBuf]) -> Vec<i32> {
    members(&dirs.iter().map(|path| Dir(path.clone())).collect::<Vec<_>>())
}

/// So long a group that is empty may be busy all the same.
pub const BUSY: Duration = Duration::from_secs(5);

/// Removes the group's directories (and what the tree itself made below them), then those parents that are empty.
/// rmdir can answer EBUSY for a while after the last exit, so it is tried again with back-off.
///
/// # Errors
/// The directory that could not be removed within `patience`.
pub fn remove(dirs: &[PathBuf], parents: &[PathBuf], patience: Duration) -> Result<(), KernelError> {
    for dir in dirs {
        let mut pause = Duration::from_micros(50);
        let start = Instant::now();
        while let Err(source) = remove_tree(dir) {
            if start.elapsed() > patience {
                return Err(KernelError::Write { path: dir.clone(), value: "rmdir".into(), source });
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(100));
        }
    }
    for parent in parents {
        // Others may be in it: then it stays, and whoever leaves last removes it.
        let _ = Dir(parent.clone()).remove();
    }
    Ok(())
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match Dir(dir.to_owned()).remove() {
        Ok(()) => Ok(()),
        Err(error) => {
            // A tree may make groups below its own (a container engine in it does).
            for entry in std::fs::read_dir(dir)?.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_tree(&entry.path())?;
                }
            }
            Dir(dir.to_owned()).remove().map_err(|_| error)
        }
    }
}
