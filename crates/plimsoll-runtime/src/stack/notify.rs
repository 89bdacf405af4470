//! What the service manager hears of us (`sd_notify`): that the stack has started, how it fares, and that the loop turns.
//!
//! One datagram a message, `NAME=value` a line, to the socket that `NOTIFY_SOCKET` names: a path, or `@name` for an
//! abstract one. Nobody waits for it: a manager that does not read loses a message.

use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;

/// Variables that speak to us alone: whoever inherited them would speak for us.
const OURS: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// How we fare is told at most so often.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// The longest status, bytes.
const LONGEST: usize = 1000;

/// Our environment without what is for us alone.
pub(super) fn inherited() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(key, _)| !OURS.iter().any(|ours| key == ours))
}

/// The way to the service manager.
#[derive(Debug)]
pub(super) struct Notifier {
    socket: UnixDatagram,
    address: SocketAddr,
    /// Between two signs of life; without a watchdog, between two words on how we fare.
    every: Duration,
    has_watchdog: bool,
    due: Instant,
    status: String,
}

impl Notifier {
    /// As the environment says; `None` where no manager listens.
    pub(super) fn from_env() -> Option<Self> {
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        // The manager knows the guard, our parent.
        let pids = [rustix::process::getpid().as_raw_nonzero().get(), parent];
        let var = |name: &str| std::env::var(name).ok();
        Self::new(&std::env::var_os("NOTIFY_SOCKET")?, watchdog(var("WATCHDOG_USEC"), var("WATCHDOG_PID"), &pids))
    }

    fn new(name: &OsStr, watchdog: Option<Duration>) -> Option<Self> {
        let address = match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok()?,
            [b'/', ..] => SocketAddr::from_pathname(name).ok()?,
            _ => return None,
        };
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        // Half of it, so that one that comes late is still in time.
        let every = watchdog.map_or(STATUS_EVERY, |watchdog| (watchdog / 2).min(STATUS_EVERY));
        let has_watchdog = watchdog.is_some();
        Some(Self { socket, address, every, has_watchdog, due: Instant::now(), status: String::new() })
    }

    fn send(&self, text: &str) {
        let _ = self.socket.send_to_addr(text.as_bytes(), &self.address);
    }

    /// When it wants to be called at the latest.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// The loop turns; `status` is asked for how we fare.
    pub(super) fn turn(&mut self, status: impl FnOnce() -> String) {
        if Instant::now() < self.due {
            return;
        }
        self.due = Instant::now().after(self.every);
        let mut text = String::new();
        if self.has_watchdog {
            text.push_str("WATCHDOG=1\n");
        }
        let status = one_line(&status());
        if status != self.status {
            text.push_str(&format!("STATUS={status}\n"));
            self.status = status;
        }
        if !text.is_empty() {
            self.send(&text);
        }
    }

    /// It has started, or has taken a file anew.
    pub(super) fn ready(&mut self) {
        self.send("READY=1\n");
    }

    /// A file is being taken.
    pub(super) fn reloading(&mut self) {
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}\n", Instant::now().since_boot().as_micros()));
    }

    /// Everything is being stopped.
    pub(super) fn stopping(&mut self) {
        self.send("STOPPING=1\n");
    }
}

/// The time after which the manager takes us for hung, when it is us whom it watches.
fn watchdog(usec: Option<String>, pid: Option<String>, ours: &[i32]) -> Option<Duration> {
    let watched = pid.is_none_or(|pid| pid.parse().is_ok_and(|pid: i32| ours.contains(&pid)));
    let usec = usec?.parse().ok().filter(|&usec: &u64| usec > 0)?;
    watched.then(|| Duration::from_micros(usec))
}

fn one_line(text: &str) -> String {
    let mut line = text.replace(['\n', '\r'], " ");
    while line.len() > LONGEST {
        line.pop();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hear(socket: &UnixDatagram) -> String {
        let mut text = [0; 2048];
        let length = socket.recv(&mut text).unwrap();
        String::from_utf8(text[..length].to_vec()).unwrap()
    }

    fn story(name: &OsStr, manager: &UnixDatagram) {
        manager.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut notifier = Notifier::new(name, Some(Duration::from_millis(20))).unwrap();
        notifier.turn(|| "1 of 2 services\nrun".to_owned());
        assert_eq!(hear(manager), "WATCHDOG=1\nSTATUS=1 of 2 services run\n");
        notifier.turn(|| panic!("it is not time yet"));
        while Instant::now() < notifier.due() {
            std::thread::sleep(Duration::from_millis(1));
        }
        notifier.turn(|| "1 of 2 services run".to_owned());
        assert_eq!(hear(manager), "WATCHDOG=1\n");
        notifier.ready();
        assert_eq!(hear(manager), "READY=1\n");
        notifier.reloading();
        let text = hear(manager);
        let at = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").and_then(|at| at.trim_end().parse::<u64>().ok());
        assert!(at.is_some_and(|at| at > 0), "{text}");
        notifier.stopping();
        assert_eq!(hear(manager), "STOPPING=1\n");
    }

    #[test]
    fn a_manager_at_a_path_and_at_an_abstract_name() {
        let path = std::env::temp_dir().join(format!("plimsoll-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        story(path.as_os_str(), &UnixDatagram::bind(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        let name = format!("plimsoll-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        story(OsStr::new(&format!("@{name}")), &UnixDatagram::bind_addr(&address).unwrap());
    }

    #[test]
    fn a_manager_that_is_gone_or_does_not_read_is_not_waited_for() {
        let mut notifier = Notifier::new(OsStr::new("/nonexistent/notify"), None).unwrap();
        notifier.ready();
        let name = format!("plimsoll-deaf-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _deaf = UnixDatagram::bind_addr(&address).unwrap();
        let mut notifier = Notifier::new(OsStr::new(&format!("@{name}")), None).unwrap();
        (0..10_000).for_each(|_| notifier.ready());
        assert!(Notifier::new(OsStr::new("relative"), None).is_none());
        assert!(Notifier::new(OsStr::new(""), None).is_none());
    }

    #[test]
    fn the_watchdog_is_for_whom_it_names() {
        let of = |usec: &str, pid: Option<&str>| watchdog(Some(usec.to_owned()), pid.map(str::to_owned), &[7, 8]);
        assert_eq!(of("2000000", None), Some(Duration::from_secs(2)));
        assert_eq!(of("2000000", Some("8")), Some(Duration::from_secs(2)));
        assert_eq!(of("2000000", Some("9")), None);
        assert_eq!((of("0", None), of("x", None), watchdog(None, None, &[])), (None, None, None));
    }

    #[test]
    fn a_status_is_one_short_line() {
        assert!(one_line(&"é".repeat(2000)).len() <= LONGEST);
    }
}
