//! How long the machine's processors were busy: one read, where reading every member of a tree costs as many reads as it
//! has members. Memory is not filled without a processor, so whoever knows this much need not look more closely.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use crate::clock::Instant;
use crate::procfs::parse_uptime;

/// `/proc/uptime` has two digits after the point, so that a difference is wrong by up to this much.
const GRAIN: Duration = Duration::from_millis(10);

/// `f_type` of a real `/proc`; a container's stand-in for the file (lxcfs) tells the container's own idle time.
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// Reads it over and over.
#[derive(Debug)]
pub struct BusyGauge {
    uptime: OwnedFd,
    processors: u32,
}

/// A moment to count from.
#[derive(Debug, Clone, Copy)]
pub struct BusyMark {
    at: Instant,
    idle: Duration,
}

impl BusyGauge {
    /// `None` where the machine's idle time cannot be trusted or read.
    #[must_use]
    pub fn open() -> Option<Self> {
        let uptime = rustix::fs::open("/proc/uptime", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let is_real = rustix::fs::fstatfs(&uptime).ok()?.f_type == PROC_SUPER_MAGIC;
        // SAFETY: sysconf takes a number.
        let processors = u32::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).ok()?;
        is_real.then_some(Self { uptime, processors })
    }

    /// Marks this moment.
    #[must_use]
    pub fn mark(&self) -> Option<BusyMark> {
        // The clock first: what passes between the two reads counts as busy.
        let at = Instant::now();
        Some(BusyMark { at, idle: self.idle()? })
    }

    /// At most so much processor time was spent by anybody since the mark, waiting for a disk and what the hypervisor
    /// took included.
    #[must_use]
    pub fn since(&self, mark: BusyMark) -> Option<Duration> {
        let idle = self.idle()?.saturating_sub(mark.idle);
        Some((mark.at.elapsed() * self.processors + GRAIN).saturating_sub(idle))
    }

    fn idle(&self) -> Option<Duration> {
        let mut buffer = [0; 64];
        let length = rustix::io::pread(&self.uptime, &mut buffer, 0).ok()?;
        Some(parse_uptime(&buffer[..length])?.idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_process_is_never_missed() {
        let gauge = BusyGauge::open().unwrap();
        for _ in 0..20 {
            let mark = gauge.mark().unwrap();
            let own = |()| rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
            let began = own(());
            let mut spent = Duration::ZERO;
            while spent < Duration::from_millis(15) {
                let now = own(());
                spent = Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
                    - Duration::new(began.tv_sec as u64, began.tv_nsec as u32);
            }
            let busy = gauge.since(mark).unwrap();
            assert!(busy >= spent, "{busy:?} of {spent:?}");
        }
    }
}
