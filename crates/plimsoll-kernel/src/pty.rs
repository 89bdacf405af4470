//! A terminal of the child's own, and ours made raw while it stands between.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::KernelError;

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
        if let Ok(modes) = tcgetattr(like) {
            let _ = tcsetattr(&slave, OptionalActions::Now, &modes);
        }
        copy_size(like, master.as_fd());
        Ok(Self { master, slave })
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

    /// Closes the child's side here.
    #[must_use]
    pub fn into_master(self) -> OwnedFd {
        self.master
    }
}

/// Gives one terminal the window size of another; the kernel tells its foreground group.
pub fn copy_size(from: BorrowedFd<'_>, to: BorrowedFd<'_>) {
    if let Ok(size) = tcgetwinsize(from) {
        let _ = tcsetwinsize(to, size);
    }
}

/// A terminal in raw mode; dropping it brings back the modes it had.
#[derive(Debug)]
pub struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
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
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
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
    }
}
