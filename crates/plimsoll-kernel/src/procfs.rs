//! Reading `/proc` and the small files of cgroups.
//!
//! Two halves. The parsers take the bytes of one file and never touch the kernel, so that they can be fed garbage: they
//! answer `None` (or an error with the text) and never panic, and the ones that run for every process of every sample
//! ([`parse_stat`], [`parse_statm`], [`parse_smaps_rollup`], [`parse_children`], [`flat_keyed`]) allocate nothing. The
//! readers ([`read_of`], [`read_all_of`], [`Process`]) open, read and close once, with the path built on the stack.
//!
//! A number counts only when its end is visible (a blank or a newline behind it): a buffer that was too small must not
//! turn 123456 into 1234.

mod cgroup;
mod machine;
mod memory;
mod read;
mod stat;

pub use cgroup::{
    CgroupLine, CgroupMount, CpuMax, CpuStat, LimitError, Version, flat_keyed, parse_cpu_max, parse_cpu_stat,
    parse_flat_keyed, parse_limit_value, parse_mountinfo, parse_proc_cgroup,
};
pub use machine::{
    CpuTimes, LoadAvg, Pressure, Stall, Uptime, parse_cpu_times, parse_loadavg, parse_pressure, parse_uptime,
    parse_vmstat_field,
};
pub use memory::{
    Meminfo, Rollup, Statm, StatusMemory, parse_meminfo, parse_smaps_rollup, parse_statm, parse_status_memory,
    parse_status_vm_swap,
};
pub use read::{
    Process, ReadError, for_each_pid, page_size, read_all_of, read_environ_of, read_file, read_into, read_of,
    ticks_per_second,
};
pub use stat::{Stat, parse_children, parse_stat};

/// Decimal digits and nothing else; `None` when empty, mixed, or above 64 bits.
fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |sum, &byte| match byte {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// The same with a minus allowed in front.
fn signed(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => 0i64.checked_sub_unsigned(number(digits)?),
        None => i64::try_from(number(text)?).ok(),
    }
}

/// A pid or another signed 32-bit number.
fn signed32(text: &[u8]) -> Option<i32> {
    i32::try_from(signed(text)?).ok()
}

/// Thousandths out of `12.34`; the point and what is behind it may be missing, digits below a thousandth are dropped.
fn thousandths(text: &[u8]) -> Option<u64> {
    let mut halves = text.splitn(2, |&byte| byte == b'.');
    let whole = number(halves.next()?)?;
    let fraction = match halves.next() {
        None => 0,
        Some(digits) => {
            number(digits)?;
            let mut places = digits.iter().map(|byte| u64::from(byte - b'0')).chain(std::iter::repeat(0));
            places.by_ref().take(3).fold(0, |sum, digit| sum * 10 + digit)
        }
    };
    whole.checked_mul(1000)?.checked_add(fraction)
}

/// Lines that are complete: what follows the last newline is dropped.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let end = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
    text[..end].split(|&byte| byte == b'\n').filter(|line| !line.is_empty())
}

/// The words of a line.
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|byte| matches!(byte, b' ' | b'\t' | b'\n')).filter(|word| !word.is_empty())
}

/// Bytes out of the value of a `Key:    123 kB` line.
fn kilobytes(value: &[u8]) -> Option<u64> {
    let mut words = words(value);
    let number = number(words.next()?)?;
    (words.next()? == b"kB").then(|| number.checked_mul(1024)).flatten()
}

/// Splits `Key: value` lines.
fn keyed(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    lines(text).filter_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        Some((&line[..colon], &line[colon + 1..]))
    })
}

#[cfg(test)]
mod tests;
