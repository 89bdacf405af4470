//! How the machine is doing: `loadavg`, `uptime`, `stat`, `vmstat`, `pressure/*`.

use std::time::Duration;

use super::{flat_keyed, lines, number, signed32, thousandths, words};

/// `/proc/loadavg`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LoadAvg {
    /// Runnable tasks and tasks waiting for a disk, averaged over a minute.
    pub load1: f64,
    /// Over five minutes.
    pub load5: f64,
    /// Over fifteen.
    pub load15: f64,
    /// Tasks runnable now.
    pub running: u64,
    /// Tasks (threads) there are.
    pub total: u64,
    /// The pid that was given out last: it moves whenever anybody forks.
    pub last_pid: i32,
}

/// Reads `/proc/loadavg`.
#[must_use]
pub fn parse_loadavg(text: &[u8]) -> Option<LoadAvg> {
    let mut words = words(lines(text).next()?);
    let mut load = || Some(thousandths(words.next()?)? as f64 / 1000.0);
    let (load1, load5, load15) = (load()?, load()?, load()?);
    let mut tasks = words.next()?.splitn(2, |&byte| byte == b'/');
    let running = number(tasks.next()?)?;
    let total = number(tasks.next()?)?;
    Some(LoadAvg { load1, load5, load15, running, total, last_pid: signed32(words.next()?)? })
}

/// `/proc/uptime`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Uptime {
    /// Since boot, suspend included.
    pub up: Duration,
    /// Idle time, added up over all processors.
    pub idle: Duration,
}

/// Reads `/proc/uptime`.
#[must_use]
pub fn parse_uptime(text: &[u8]) -> Option<Uptime> {
    let mut words = words(lines(text).next()?).map(thousandths);
    let mut next = || Some(Duration::from_millis(words.next()??));
    Some(Uptime { up: next()?, idle: next()? })
}

/// The first line of `/proc/stat`: clock ticks since boot, added up over all processors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CpuTimes {
    /// All ticks that passed (guest time is part of user time and not counted again).
    pub total: u64,
    /// Idle without a wait for a disk.
    pub idle: u64,
    /// Idle while a task waited for a disk.
    pub io_wait: u64,
    /// Taken by the hypervisor.
    pub steal: u64,
}

/// Reads the `cpu` line of `/proc/stat`.
#[must_use]
pub fn parse_cpu_times(text: &[u8]) -> Option<CpuTimes> {
    let line = lines(text).find_map(|line| line.strip_prefix(b"cpu "))?;
    let mut ticks = [0u64; 8]; // user nice system idle iowait irq softirq steal
    let mut words = words(line);
    for (place, slot) in ticks.iter_mut().enumerate() {
        match words.next() {
            Some(word) => *slot = number(word)?,
            None if place >= 4 => break,
            None => return None,
        }
    }
    let total = ticks.iter().try_fold(0u64, |sum, &ticks| sum.checked_add(ticks))?;
    Some(CpuTimes { total, idle: ticks[3], io_wait: ticks[4], steal: ticks[7] })
}

/// One counter of `/proc/vmstat`, such as `oom_kill`.
#[must_use]
pub fn parse_vmstat_field(text: &[u8], name: &str) -> Option<u64> {
    flat_keyed(text, name)
}

/// One line of a pressure file.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stall {
    /// Percent of the last ten seconds.
    pub avg10: f32,
    /// Percent of the last minute.
    pub avg60: f32,
    /// Microseconds since boot, or since the group was made.
    pub total_us: u64,
}

/// A pressure file (`/proc/pressure/memory`, `memory.pressure`).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pressure {
    /// Time in which at least one task was stalled.
    pub some: Stall,
    /// Time in which all of them were; `cpu` has none on kernels before 5.13.
    pub full: Option<Stall>,
}

/// Reads a pressure file.
#[must_use]
pub fn parse_pressure(text: &[u8]) -> Option<Pressure> {
    let stall = |kind: &[u8]| {
        lines(text).find(|line| words(line).next() == Some(kind)).and_then(|line| {
            let mut stall = Stall::default();
            let mut total = None;
            for word in words(line).skip(1) {
                let mut halves = word.splitn(2, |&byte| byte == b'=');
                let (key, value) = (halves.next()?, halves.next()?);
                match key {
                    b"avg10" => stall.avg10 = thousandths(value)? as f32 / 1000.0,
                    b"avg60" => stall.avg60 = thousandths(value)? as f32 / 1000.0,
                    b"total" => total = Some(number(value)?),
                    _ => {}
                }
            }
            Some(Stall { total_us: total?, ..stall })
        })
    };
    Some(Pressure { some: stall(b"some")?, full: stall(b"full") })
}
