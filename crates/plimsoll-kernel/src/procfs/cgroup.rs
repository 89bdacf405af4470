//! Where groups are and what their small files say: `/proc/PID/cgroup`, `/proc/self/mountinfo`, limits, flat keyed files.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::{lines, number, words};

/// One line of `/proc/PID/cgroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupLine {
    /// 0 is the unified hierarchy (v2).
    pub hierarchy: u32,
    /// Controllers of a v1 hierarchy, or `name=…` for one without; empty for v2.
    pub controllers: Vec<String>,
    /// The group, from the root of our cgroup namespace; begins with `/..` when it is outside of that.
    pub path: PathBuf,
}

/// Reads `/proc/PID/cgroup`; a line that is none is passed over.
#[must_use]
pub fn parse_proc_cgroup(text: &[u8]) -> Vec<CgroupLine> {
    lines(text)
        .filter_map(|line| {
            let mut parts = line.splitn(3, |&byte| byte == b':');
            let hierarchy = u32::try_from(number(parts.next()?)?).ok()?;
            let controllers = comma_list(parts.next()?)?;
            let path = parts.next()?;
            path.starts_with(b"/").then(|| CgroupLine { hierarchy, controllers, path: path_of(path.to_vec()) })
        })
        .collect()
}

/// Which kind of cgroup file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Controllers in hierarchies of their own.
    V1,
    /// The unified hierarchy.
    V2,
}

/// One mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupMount {
    /// v1 or v2.
    pub version: Version,
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// The group that is seen at the mount point; `/` unless only a part is mounted (Docker on v1).
    pub root: PathBuf,
    /// Controllers of a v1 hierarchy, or `name=…`; empty for v2.
    pub controllers: Vec<String>,
    /// The mount, or its file system, is read-only.
    pub read_only: bool,
}

/// Controllers of v1, to tell them from the other mount options.
const CONTROLLERS: [&str; 15] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// The cgroup mounts of `/proc/PID/mountinfo`, in the file's order: of two on one mount point the later one is seen.
#[must_use]
pub fn parse_mountinfo(text: &[u8]) -> Vec<CgroupMount> {
    lines(text).filter_map(mount_line).collect()
}

/// `36 35 98:0 /root /point rw,noatime master:1 - cgroup cgroup rw,memory`
fn mount_line(line: &[u8]) -> Option<CgroupMount> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    // Optional fields sit between the mount options and the dash.
    let dash = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let version = match *fields.get(dash + 1)? {
        b"cgroup" => Version::V1,
        b"cgroup2" => Version::V2,
        _ => return None,
    };
    let (root, point) = (unescape(fields.get(3)?), unescape(fields.get(4)?));
    let options = comma_list(fields.get(5)?)?;
    let super_options = comma_list(fields.get(dash + 3)?)?;
    let read_only = options.iter().chain(&super_options).any(|option| option == "ro");
    let controllers = match version {
        Version::V1 => super_options
            .into_iter()
            .filter(|option| CONTROLLERS.contains(&option.as_str()) || option.starts_with("name="))
            .collect(),
        Version::V2 => Vec::new(),
    };
    Some(CgroupMount { version, mount_point: path_of(point), root: path_of(root), controllers, read_only })
}

/// Undoes the kernel's `\040` for blanks, tabs, newlines, backslashes and hashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        match (byte, behind) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(byte);
                rest = behind;
            }
        }
    }
    plain
}

fn path_of(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// Words between commas; `None` when they are no UTF-8.
fn comma_list(text: &[u8]) -> Option<Vec<String>> {
    let text = std::str::from_utf8(text).ok()?;
    Some(text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect())
}

/// The value of one key of a flat keyed file (`memory.events`, `memory.stat`, `memory.oom_control`, `vmstat`).
#[must_use]
pub fn flat_keyed(text: &[u8], key: &str) -> Option<u64> {
    parse_flat_keyed(text).find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| value)
}

/// All pairs of a flat keyed file, in order; lines that are none are passed over.
pub fn parse_flat_keyed(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    lines(text).filter_map(|line| {
        let blank = line.iter().position(|&byte| byte == b' ')?;
        Some((&line[..blank], number(&line[blank + 1..])?))
    })
}

/// A limit that is neither a number nor a word for "no limit".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no limit: expected a number or `max`")]
pub struct LimitError(pub String);

/// Reads a limit (`memory.max`, `memory.limit_in_bytes`, `pids.max`, `cpu.cfs_quota_us`). No limit is `None`: the word
/// `max`, -1, and v1's "as much as there is", which is the largest signed number rounded down to a page.
///
/// # Errors
/// [`LimitError`] with the text.
pub fn parse_limit_value(text: &[u8]) -> Result<Option<u64>, LimitError> {
    // Pages have at most 64 KiB, huge ones 1 GiB; nobody has a limit within a gibibyte of 8 EiB.
    const UNLIMITED: u64 = (1 << 63) - (1 << 30);
    let word = text.trim_ascii();
    if word == b"max" || word == b"-1" {
        return Ok(None);
    }
    match number(word) {
        Some(value) if value >= UNLIMITED => Ok(None),
        Some(value) => Ok(Some(value)),
        None => Err(LimitError(String::from_utf8_lossy(word).into_owned())),
    }
}

/// `cpu.max` of v2, or quota and period of v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuMax {
    /// Microseconds of processor time in each period; `None` is unlimited.
    pub quota_us: Option<u64>,
    /// Microseconds.
    pub period_us: u64,
}

/// Reads `cpu.max`: `max 100000`, `150000 100000`.
#[must_use]
pub fn parse_cpu_max(text: &[u8]) -> Option<CpuMax> {
    let mut words = words(text);
    let quota_us = parse_limit_value(words.next()?).ok()?;
    Some(CpuMax { quota_us, period_us: number(words.next()?)? })
}

/// `cpu.stat` of either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuStat {
    /// Microseconds of processor time used (v2 only).
    pub usage_us: Option<u64>,
    /// Periods in which somebody ran, as long as there is a quota.
    pub periods: u64,
    /// Those in which the quota ran out.
    pub throttled: u64,
    /// Microseconds that were waited for a new period.
    pub throttled_us: u64,
}

/// Reads `cpu.stat` of v2 (`usage_usec`, `throttled_usec`) or v1 (`throttled_time`, in nanoseconds); `None` when it
/// holds none of the known keys.
#[must_use]
pub fn parse_cpu_stat(text: &[u8]) -> Option<CpuStat> {
    let mut stat = CpuStat::default();
    let mut any = false;
    for (key, value) in parse_flat_keyed(text) {
        match key {
            b"usage_usec" => stat.usage_us = Some(value),
            b"nr_periods" => stat.periods = value,
            b"nr_throttled" => stat.throttled = value,
            b"throttled_usec" => stat.throttled_us = value,
            b"throttled_time" => stat.throttled_us = value / 1000,
            _ => continue,
        }
        any = true;
    }
    any.then_some(stat)
}
