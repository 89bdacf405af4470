//! Signals and error numbers by their names, numbered as on x86, Arm and RISC-V.

/// Signals of a fault of the program itself.
const CRASHES: [i32; 7] = [4, 5, 6, 7, 8, 11, 31];

const SIGNALS: [&str; 32] = [
    "signal 0",
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// Name of a signal: `SIGTERM`, or `signal 34` where it has none.
#[must_use]
pub fn signal_name(signal: i32) -> String {
    let name = usize::try_from(signal).ok().and_then(|number| SIGNALS.get(number));
    name.map_or_else(|| format!("signal {signal}"), |&name| name.to_owned())
}

/// Whether this signal is one of a fault of the program itself.
#[must_use]
pub fn is_crash(signal: i32) -> bool {
    CRASHES.contains(&signal)
}

/// The error of a start in words, with its name in front.
#[must_use]
pub fn errno_words(errno: i32) -> String {
    let words = match errno {
        1 => "EPERM: not permitted",
        2 => "ENOENT: no such file, or not found in PATH",
        5 => "EIO: the disk answered with an error",
        7 => "E2BIG: the arguments and the environment are too long",
        8 => "ENOEXEC: no program that this machine can run (a script needs a first line such as #!/bin/sh)",
        11 => "EAGAIN: no further process is allowed",
        12 => "ENOMEM: no memory to start it",
        13 => "EACCES: not executable, or not permitted",
        20 => "ENOTDIR: a part of the path is no directory",
        21 => "EISDIR: it is a directory",
        23 | 24 => "EMFILE: too many open files",
        26 => "ETXTBSY: the file is being written",
        36 => "ENAMETOOLONG: the path is too long",
        40 => "ELOOP: the path's links lead in a circle",
        80 => "ELIBBAD: its interpreter cannot be run",
        number => return format!("error number {number}"),
    };
    words.to_owned()
}

/// Why a program was not executed. "No such file" of one that is there means its interpreter.
#[must_use]
pub fn not_started(errno: i32, interpreter: Option<&str>) -> String {
    match interpreter {
        Some(interpreter) => format!("ENOENT: the program is there, and its interpreter {interpreter} is not"),
        None => errno_words(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named() {
        assert_eq!(
            (signal_name(9), signal_name(31), signal_name(64)),
            ("SIGKILL".into(), "SIGSYS".into(), "signal 64".into())
        );
        assert_eq!(signal_name(i32::MIN), format!("signal {}", i32::MIN));
        assert!(
            ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGSYS", "SIGTRAP"]
                .iter()
                .all(|name| (1..32).any(|signal| signal_name(signal) == *name && is_crash(signal)))
        );
        assert!(errno_words(2).starts_with("ENOENT"));
    }
}
