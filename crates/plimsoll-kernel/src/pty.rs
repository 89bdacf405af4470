//! A terminal of the tree's own, and the user's made raw while it stands between.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, getpgrp, ioctl_tiocsctty, setsid, test_kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{
    OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr, tcsetpgrp, tcsetwinsize,
};

use crate::KernelError;
use crate::procfs::{parse_stat, read_file};

/// Both sides of a pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    master: OwnedFd,
    slave: OwnedFd,
}

fn failed(call: &'static str) -> impl FnOnce(rustix::io::Errno) -> KernelError {
    move |error| KernelError::Call { call, source: error.into() }
}

impl Pty {
    /// Opens one with the modes and the size of `like`.
    ///
    /// # Errors
    /// The kernel's: no pseudo-terminals here, or too many open files.
    pub fn open(like: BorrowedFd<'_>) -> Result<Self, KernelError> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).map_err(failed("openpt"))?;
        grantpt(&master).map_err(failed("grantpt"))?;
        unlockpt(&master).map_err(failed("unlockpt"))?;
        let slave = ioctl_tiocgptpeer(&master, flags).map_err(failed("TIOCGPTPEER"))?;
        let pty = Self { master, slave };
        pty.take_modes(like);
        copy_size(like, pty.master());
        Ok(pty)
    }

    /// Sets the modes that `like` has now.
    pub fn take_modes(&self, like: BorrowedFd<'_>) {
        if let Ok(modes) = tcgetattr(like) {
            let _ = tcsetattr(&self.slave, OptionalActions::Now, &modes);
        }
    }

    /// Our side.
    #[must_use]
    pub fn master(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }

    /// The child's side.
    #[must_use]
    pub fn slave(&self) -> BorrowedFd<'_> {
        self.slave.as_fd()
    }

    /// Puts this process at the head of a session whose terminal this is. Its children in groups of their own are then
    /// to it what a shell's jobs are to the shell: Ctrl-Z stops them and it is told.
    ///
    /// # Errors
    /// This process leads a group, or the kernel does not give it the terminal.
    pub fn lead_session(&self) -> Result<(), KernelError> {
        setsid().map_err(failed("setsid"))?;
        ioctl_tiocsctty(&self.slave).map_err(failed("TIOCSCTTY"))
    }

    /// Gives the terminal to a group of this process's session, or takes it back (`None`). SIGTTOU must be blocked.
    pub fn give_to(&self, group: Option<i32>) {
        let group = group.map_or(Some(getpgrp()), Pid::from_raw);
        if let Some(group) = group {
            // It may have ended.
            let _ = tcsetpgrp(&self.slave, group);
        }
    }

    /// Closes the child's side here: once the tree has closed it too, reading from ours ends.
    #[must_use]
    pub fn into_master(self) -> OwnedFd {
        self.master
    }
}

/// Whether both are the same terminal, under whatever names they were opened.
#[must_use]
pub fn same_terminal(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    let device = |fd: BorrowedFd<'_>| {
        let mut device: libc::c_uint = 0;
        // SAFETY: TIOCGDEV writes one unsigned int.
        (unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGDEV, &raw mut device) } == 0).then_some(device)
    };
    device(a).is_some_and(|found| device(b) == Some(found))
}

/// Whether this process may read from its terminal; one without a terminal has nobody to ask.
#[must_use]
pub fn is_in_foreground(pid: i32) -> bool {
    let line = read_file(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse_stat(&line).is_some_and(|stat| !stat.is_ended() && (stat.tty_nr == 0 || stat.tpgid == stat.process_group))
}

/// The terminal as it was given to this process.
pub struct Given {
    terminal: OwnedFd,
    modes: Termios,
}

impl Given {
    /// `None` without a terminal, or in the background: then it is somebody else's.
    #[must_use]
    pub fn remember() -> Option<Self> {
        let terminal: OwnedFd = std::fs::File::open("/dev/tty").ok()?.into();
        if tcgetpgrp(&terminal).ok()? != getpgrp() {
            return None;
        }
        let modes = tcgetattr(&terminal).ok()?;
        Some(Self { terminal, modes })
    }

    /// Gives it back: a foreground group that has ended leaves the terminal to nobody, and a program that was killed
    /// leaves it in its own `modes`. A terminal that has gone to somebody else meanwhile is left alone. SIGTTOU must be
    /// blocked.
    pub fn give_back(&self, modes: bool) {
        let ours = getpgrp();
        let theirs = tcgetpgrp(&self.terminal).ok().filter(|&group| group != ours);
        if let Some(group) = theirs {
            if test_kill_process_group(group) != Err(rustix::io::Errno::SRCH) {
                return;
            }
            let _ = tcsetpgrp(&self.terminal, ours);
        }
        if modes {
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.modes);
        }
    }
}

/// Gives one terminal the window size of another; the kernel tells its foreground group.
pub fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    if let Ok(size) = tcgetwinsize(from) {
        let _ = tcsetwinsize(to, size);
    }
}

/// A terminal in raw mode; dropping it brings back the modes it had, unless somebody else has set others meanwhile.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
    raw: Termios,
}

impl RawTerminal {
    /// Makes it raw.
    ///
    /// # Errors
    /// It is no terminal.
    pub fn enter(terminal: BorrowedFd<'_>) -> Result<Self, KernelError> {
        let before = tcgetattr(terminal).map_err(failed("tcgetattr"))?;
        let terminal = rustix::io::fcntl_dupfd_cloexec(terminal, 3).map_err(failed("fcntl(F_DUPFD)"))?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw).map_err(failed("tcsetattr"))?;
        Ok(Self { terminal, before, raw })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let modes = |of: &Termios| (of.input_modes, of.output_modes, of.local_modes);
        if tcgetattr(&self.terminal).is_ok_and(|now| modes(&now) != modes(&self.raw)) {
            return;
        }
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_modes_come_over_and_go_back() {
        let outer = Pty::open(rustix::stdio::stdin()).unwrap();
        let size = rustix::termios::Winsize { ws_row: 31, ws_col: 97, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(outer.slave(), size).unwrap();
        let inner = Pty::open(outer.slave()).unwrap();
        let found = tcgetwinsize(inner.slave()).unwrap();
        assert_eq!((found.ws_row, found.ws_col), (31, 97));

        let before = tcgetattr(outer.slave()).unwrap().local_modes;
        let raw = RawTerminal::enter(outer.slave()).unwrap();
        assert_ne!(tcgetattr(outer.slave()).unwrap().local_modes, before);
        drop(raw);
        assert_eq!(tcgetattr(outer.slave()).unwrap().local_modes, before);

        // What somebody else has set meanwhile stays.
        let raw = RawTerminal::enter(outer.slave()).unwrap();
        let mut theirs = tcgetattr(outer.slave()).unwrap();
        theirs.local_modes |= rustix::termios::LocalModes::ECHO;
        tcsetattr(outer.slave(), OptionalActions::Now, &theirs).unwrap();
        drop(raw);
        assert_eq!(tcgetattr(outer.slave()).unwrap().local_modes, theirs.local_modes);
    }

    #[test]
    fn terminals_are_told_apart() {
        let [one, other] = [(); 2].map(|()| Pty::open(rustix::stdio::stdin()).unwrap());
        let again = rustix::io::fcntl_dupfd_cloexec(one.slave(), 3).unwrap();
        assert!(same_terminal(one.slave(), again.as_fd()));
        assert!(!same_terminal(one.slave(), other.slave()));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(!same_terminal(file.as_fd(), file.as_fd()));
    }
}
