//! Where groups are: `/proc/PID/cgroup` and the cgroup mounts of `mountinfo`.

#![no_main]

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use plimsoll_fuzz::Values;
use plimsoll_kernel::procfs::{CgroupLine, CgroupMount, Version, parse_mountinfo, parse_proc_cgroup};

fuzz_target!(|data: &[u8]| {
    let lines = parse_proc_cgroup(data);
    assert!(lines.iter().all(|line| line.path.has_root()));
    let again: Vec<u8> = lines.iter().flat_map(cgroup_line).collect();
    assert_eq!(parse_proc_cgroup(&again), lines, "{}", again.escape_ascii());

    let mounts = parse_mountinfo(data);
    for mount in &mounts {
        assert!(mount.version == Version::V1 || mount.controllers.is_empty());
    }
    for optional in ["", "shared:9 ", "master:1 propagate_from:2 "] {
        let again: Vec<u8> = mounts.iter().flat_map(|mount| mount_line(mount, optional)).collect();
        assert_eq!(parse_mountinfo(&again), mounts, "{}", again.escape_ascii());
    }
    any_path(data);
});

/// A folder may be called anything, and is found under that name.
fn any_path(data: &[u8]) {
    let mut values = Values::new(data);
    let (read_only, v1, hierarchy) = (values.take(), values.take(), values.take());
    let mut path = || {
        let path = [b"/", values.bytes(64)].concat();
        Path::new(std::ffi::OsStr::from_bytes(&path)).to_owned()
    };
    let (root, mount_point) = (path(), path());
    let controllers = if v1 { vec!["cpu".to_owned(), "cpuacct".to_owned()] } else { Vec::new() };
    let version = if v1 { Version::V1 } else { Version::V2 };
    let mount = CgroupMount { version, mount_point, root, controllers: controllers.clone(), read_only };
    let line = mount_line(&mount, "shared:1 ");
    let read = parse_mountinfo(&line);
    assert_eq!(read, [mount], "{}", line.escape_ascii());
    // In the other file paths are not escaped; the kernel lets no group's name have a newline in it.
    if let Some(mount) = read.into_iter().next().filter(|mount| !mount.root.as_os_str().as_bytes().contains(&b'\n')) {
        let line = CgroupLine { hierarchy, controllers, path: mount.root };
        assert_eq!(parse_proc_cgroup(&cgroup_line(&line)), [line]);
    }
}

fn cgroup_line(line: &CgroupLine) -> Vec<u8> {
    let head = format!("{}:{}:", line.hierarchy, line.controllers.join(","));
    [head.as_bytes(), line.path.as_os_str().as_bytes(), b"\n"].concat()
}

fn mount_line(mount: &CgroupMount, optional: &str) -> Vec<u8> {
    let kind = match mount.version {
        Version::V1 => "cgroup",
        Version::V2 => "cgroup2",
    };
    let mode = if mount.read_only { "ro" } else { "rw" };
    let controllers: String = mount.controllers.iter().map(|name| format!(",{name}")).collect();
    [
        b"36 35 0:30 ",
        escape(&mount.root).as_slice(),
        b" ",
        &escape(&mount.mount_point),
        format!(" {mode},nosuid,relatime {optional}- {kind} {kind} rw,xattr{controllers}\n").as_bytes(),
    ]
    .concat()
}

/// As the kernel does it.
fn escape(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\\' | b'#') {
            out.extend_from_slice(format!("\\{byte:03o}").as_bytes());
        } else {
            out.push(byte);
        }
    }
    out
}
