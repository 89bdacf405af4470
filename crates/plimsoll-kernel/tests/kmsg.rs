//! A real process of a real group is killed for memory, and the kernel's log says so.

use std::path::{Path, PathBuf};

use plimsoll_kernel::kmsg::{Kmsg, past_oom_kills};
use plimsoll_kernel::procfs::{Version, parse_mountinfo, read_file};
use plimsoll_model::ending::OomScope;

/// A group with a limit of 16 MiB; gone when dropped.
struct Group(PathBuf);

impl Group {
    fn make() -> Option<Self> {
        let mounts = parse_mountinfo(&read_file("/proc/self/mountinfo").ok()?);
        mounts.iter().filter(|mount| mount.root == Path::new("/")).find_map(|mount| {
            let limit = match mount.version {
                Version::V1 if mount.controllers.iter().any(|name| name == "memory") => "memory.limit_in_bytes",
                Version::V1 => return None,
                Version::V2 => "memory.max",
            };
            let path = mount.mount_point.join(format!("plimsoll-test-kmsg-{}", std::process::id()));
            std::fs::create_dir(&path).ok()?;
            let group = Self(path);
            // Without the limit there is no group for us: a hog runs inside a boundary or not at all.
            std::fs::OpenOptions::new().write(true).open(group.0.join(limit)).ok()?;
            std::fs::write(group.0.join(limit), "16777216").ok()?;
            std::fs::write(group.0.join("memory.swap.max"), "0").ok();
            std::fs::write(group.0.join("memory.memsw.limit_in_bytes"), "16777216").ok();
            Some(group)
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the hog is started inside the group that the test made")]
fn hog(group: &Path) -> std::io::Result<std::process::Child> {
    // `tail` keeps the last lines, and a file of zeros is one line without an end.
    let script = "echo $$ > \"$0/cgroup.procs\" && exec tail -n 1 /dev/zero";
    std::process::Command::new("sh").arg("-c").arg(script).arg(group).spawn()
}

#[test]
fn the_log_names_the_victim() {
    let (Some(mut kmsg), Some(group)) = (Kmsg::open_at_end(), Group::make()) else {
        assert!(std::env::var_os("CI").is_none(), "needs root, /dev/kmsg and a writable memory group");
        println!("skipped: needs root, /dev/kmsg and a writable memory group");
        return;
    };
    let mut child = hog(&group.0).unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    child.wait().unwrap();
    // The line is written before the signal is sent, so it is there once the victim is.
    let kills = kmsg.oom_kills();
    let kill = kills.iter().find(|kill| kill.pid == pid).unwrap_or_else(|| panic!("{pid} is not among {kills:?}"));
    assert_eq!((kill.scope, kill.task.as_str()), (OomScope::Group, "tail"));
    let name = group.0.file_name().unwrap().to_str().unwrap();
    assert!(kill.oom_group.as_deref().is_some_and(|path| path.ends_with(name)), "{kill:?}");
    assert_eq!(kill.oom_group, kill.task_group);
    assert!(!kmsg.has_lost_records());
    let past = past_oom_kills().unwrap();
    assert!(past.iter().any(|past| past.kill == *kill && !past.at.is_zero()));
}
