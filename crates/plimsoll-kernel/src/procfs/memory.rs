//! What a process or the machine holds: `statm`, `smaps_rollup`, `status`, `meminfo`.

use super::{keyed, kilobytes, number};

/// The first three numbers of `/proc/PID/statm`, in pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statm {
    /// Address space, pages.
    pub size: u64,
    /// Resident, pages: anonymous, file and shared memory.
    pub resident: u64,
    /// The resident pages that are file or shared memory: `resident - shared` is anonymous.
    pub shared: u64,
}

/// Reads `/proc/PID/statm`.
#[must_use]
pub fn parse_statm(line: &[u8]) -> Option<Statm> {
    let seen = line.iter().rposition(|byte| matches!(byte, b' ' | b'\n'))?;
    let mut fields = line[..seen].split(|&byte| byte == b' ').map(number);
    Some(Statm { size: fields.next()??, resident: fields.next()??, shared: fields.next()?? })
}

/// `/proc/PID/smaps_rollup`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rollup {
    /// Resident.
    pub rss: u64,
    /// Resident, each page divided by the number of those who share it.
    pub pss: u64,
    /// The part of `rss` that belongs to nobody else.
    pub private: u64,
    /// Anonymous part of `rss`.
    pub anonymous: u64,
    /// Swapped out.
    pub swap: u64,
    /// Swapped out, divided as `pss`.
    pub swap_pss: u64,
}

/// Reads `/proc/PID/smaps_rollup`; `None` without `Rss` and `Pss` (a kernel thread's file is empty). Lines an older
/// kernel does not have count as 0.
#[must_use]
pub fn parse_smaps_rollup(text: &[u8]) -> Option<Rollup> {
    let mut rollup = Rollup::default();
    let (mut rss, mut pss) = (None, None);
    for (key, value) in keyed(text) {
        match key {
            b"Rss" => rss = kilobytes(value),
            b"Pss" => pss = kilobytes(value),
            b"Private_Clean" | b"Private_Dirty" => {
                rollup.private = rollup.private.saturating_add(kilobytes(value)?);
            }
            b"Anonymous" => rollup.anonymous = kilobytes(value)?,
            b"Swap" => rollup.swap = kilobytes(value)?,
            b"SwapPss" => rollup.swap_pss = kilobytes(value)?,
            _ => {}
        }
    }
    Some(Rollup { rss: rss?, pss: pss?, ..rollup })
}

/// The memory lines of `/proc/PID/status`, in bytes. Cheap: counters, no walk over the address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StatusMemory {
    /// The most that was resident at one time.
    pub peak_rss: u64,
    /// Anonymous.
    pub rss_anon: u64,
    /// Mapped files.
    pub rss_file: u64,
    /// Shared memory and tmpfs.
    pub rss_shmem: u64,
    /// Swapped-out anonymous memory.
    pub swap: u64,
}

/// Reads the memory lines of `/proc/PID/status`; `None` where there are none: a zombie or a kernel thread.
#[must_use]
pub fn parse_status_memory(text: &[u8]) -> Option<StatusMemory> {
    let mut memory = StatusMemory::default();
    let mut any = false;
    for (key, value) in keyed(text) {
        let place = match key {
            b"VmHWM" => &mut memory.peak_rss,
            b"RssAnon" => &mut memory.rss_anon,
            b"RssFile" => &mut memory.rss_file,
            b"RssShmem" => &mut memory.rss_shmem,
            b"VmSwap" => &mut memory.swap,
            _ => continue,
        };
        *place = kilobytes(value)?;
        any = true;
    }
    any.then_some(memory)
}

/// `VmSwap` of `/proc/PID/status`, bytes.
#[must_use]
pub fn parse_status_vm_swap(text: &[u8]) -> Option<u64> {
    keyed(text).find(|(key, _)| *key == b"VmSwap").and_then(|(_, value)| kilobytes(value))
}

/// `/proc/meminfo`, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Meminfo {
    /// All that the kernel manages.
    pub total: u64,
    /// What new work could have without swapping (the kernel's estimate); free memory and caches on kernels before 3.14.
    pub available: u64,
    /// Wholly unused.
    pub free: u64,
    /// Swap there is.
    pub swap_total: u64,
    /// Swap unused.
    pub swap_free: u64,
    /// What is promised to processes.
    pub committed: u64,
    /// What may be promised, when overcommit is off.
    pub commit_limit: u64,
}

/// Reads `/proc/meminfo`; `None` without `MemTotal` and `MemFree`.
#[must_use]
pub fn parse_meminfo(text: &[u8]) -> Option<Meminfo> {
    let mut info = Meminfo::default();
    let (mut total, mut free, mut available, mut caches) = (None, None, None, 0u64);
    for (key, value) in keyed(text) {
        match key {
            b"MemTotal" => total = kilobytes(value),
            b"MemFree" => free = kilobytes(value),
            b"MemAvailable" => available = kilobytes(value),
            b"Buffers" | b"Cached" => caches = caches.saturating_add(kilobytes(value)?),
            b"SwapTotal" => info.swap_total = kilobytes(value)?,
            b"SwapFree" => info.swap_free = kilobytes(value)?,
            b"Committed_AS" => info.committed = kilobytes(value)?,
            b"CommitLimit" => info.commit_limit = kilobytes(value)?,
            _ => {}
        }
    }
    let (total, free) = (total?, free?);
    Some(Meminfo { total, free, available: available.unwrap_or(free.saturating_add(caches)), ..info })
}
