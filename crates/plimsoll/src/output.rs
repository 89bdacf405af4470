//! The two streams: the one place that writes to them.

use std::io::{self, Write};
use std::process::ExitCode;

/// Writes a result to stdout. A reader that has seen enough (`plimsoll explain | head -1`) is no failure.
pub(crate) fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(broken) if broken.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failed) => {
            error(&format!("plimsoll: error: cannot write to stdout: {failed}"));
            ExitCode::from(crate::fault::FAILED)
        }
    }
}

/// Writes a line to stderr, in one piece. When that fails there is nowhere left to say so.
pub(crate) fn error(line: &str) {
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}
