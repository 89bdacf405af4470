//! `/proc/PID/stat` and `/proc/PID/task/TID/children`: who somebody is, and whose child.

use super::{number, signed, signed32};

/// One process, as `/proc/PID/stat` tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat<'a> {
    /// Process id, in the namespace of the mount of `/proc`.
    pub pid: i32,
    /// The short name, raw: it may hold blanks, brackets, newlines and bytes that are no UTF-8. At most 15 bytes for a
    /// program, up to 63 for a kernel thread.
    pub name: &'a [u8],
    /// `R` running, `S` sleeping, `D` waiting for a disk, `T` stopped, `t` traced, `Z` zombie, `X` dead, `I` idle.
    pub state: char,
    /// Parent's pid; 0 when it is outside our pid namespace or there is none.
    pub parent: i32,
    /// Process group.
    pub process_group: i32,
    /// Session.
    pub session: i32,
    /// Controlling terminal's device number; 0 without one.
    pub tty_nr: i32,
    /// Foreground process group of that terminal; -1 without one.
    pub tpgid: i32,
    /// `PF_KTHREAD` is set: a kernel thread.
    pub kernel_thread: bool,
    /// Clock ticks spent in user mode.
    pub utime_ticks: u64,
    /// Clock ticks spent in the kernel.
    pub stime_ticks: u64,
    /// Threads; 0 or 1 for a zombie.
    pub threads: u32,
    /// Start, clock ticks since boot (field 22).
    pub start_ticks: u64,
    /// Resident pages, as exact as the kernel's per-cpu counters (some dozens of pages off).
    pub rss_pages: u64,
}

impl Stat<'_> {
    /// It has ended and waits to be reaped (or is being torn down): it holds no memory and cannot be killed.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Reads the line of `/proc/PID/stat`. The name ends at the *last* bracket, since it may hold brackets itself.
#[must_use]
pub fn parse_stat(line: &[u8]) -> Option<Stat<'_>> {
    const PF_KTHREAD: u64 = 0x0020_0000;
    let open = line.iter().position(|&byte| byte == b'(')?;
    let close = line.iter().rposition(|&byte| byte == b')')?;
    let pid = signed32(line.get(..open)?.strip_suffix(b" ")?)?;
    let name = line.get(open + 1..close)?;
    let rest = line.get(close + 1..)?.strip_prefix(b" ")?;
    // The last field that is read must have one behind it: what the buffer cut off is not a number.
    let seen = rest.iter().rposition(|byte| matches!(byte, b' ' | b'\n'))?;
    let mut fields = rest[..seen].split(|&byte| byte == b' ');
    let state = match fields.next()? {
        [letter] if letter.is_ascii_alphabetic() => char::from(*letter),
        _ => return None,
    };
    let parent = signed32(fields.next()?)?;
    let process_group = signed32(fields.next()?)?;
    let session = signed32(fields.next()?)?;
    let tty_nr = signed32(fields.next()?)?;
    let tpgid = signed32(fields.next()?)?;
    let flags = number(fields.next()?)?;
    let mut fields = fields.skip(4); // page faults
    let utime_ticks = number(fields.next()?)?;
    let stime_ticks = number(fields.next()?)?;
    let mut fields = fields.skip(4); // times of reaped children, priority, nice
    let threads = u32::try_from(signed(fields.next()?)?).ok()?;
    let mut fields = fields.skip(1); // itrealvalue
    let start_ticks = number(fields.next()?)?;
    let mut fields = fields.skip(1); // virtual size
    let rss_pages = u64::try_from(signed(fields.next()?)?.max(0)).ok()?;
    Some(Stat {
        pid,
        name,
        state,
        parent,
        process_group,
        session,
        tty_nr,
        tpgid,
        kernel_thread: flags & PF_KTHREAD != 0,
        utime_ticks,
        stime_ticks,
        threads,
        start_ticks,
        rss_pages,
    })
}

/// The pids in a `children` file. A word that is no pid, or whose end is not there, is passed over.
pub fn parse_children(text: &[u8]) -> impl Iterator<Item = i32> + '_ {
    let end = text.iter().rposition(|byte| matches!(byte, b' ' | b'\n')).unwrap_or(0);
    text[..end].split(|byte| matches!(byte, b' ' | b'\n')).filter_map(signed32).filter(|&pid| pid > 0)
}
