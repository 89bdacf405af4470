//! Certificates on their way into the history: lines at the end of one file, taken over by whoever opens the history next.
//!
//! Storing a certificate is on the path of every `run`, in a process that is to stay small and quick. A line at the end of
//! a file costs a tenth of what opening the database does, in time and in memory; explaining an end is rare, and can do the
//! rest. Nobody waits for long:
//! - Writers share the lock, readers take it alone: what a reader has taken over it cuts off, and no line is lost between.
//! - A reader that is killed in between leaves lines that are in the history already; taken over again they change nothing.
//! - A line that was torn (a full disk) is passed over; every line begins with a line end, so that it tears no other.
//! - A whole line that is no certificate to us is a later version's: it is kept aside, for that version.
//! - A writer that finds the file long takes it over itself.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use plimsoll_model::Certificate;
use rustix::fs::FlockOperation;

use crate::certificates::{CertificateError, CertificateStore};

/// The file's name in the state directory.
pub const FILE_NAME: &str = "certificates.inbox";

/// Lines of a later version are kept in this file.
pub const ASIDE: &str = "certificates.inbox.aside";

/// Bytes from which on a writer takes the lines over into the history itself.
const LONG: u64 = 256 << 10;

/// Bytes that are read at the most: a file that grew beyond this was not written by us alone.
const LONGEST: u64 = 64 << 20;

/// Stores a certificate. It is in the history from now on, as every reader sees it.
///
/// # Errors
/// The file cannot be made, locked or written; the disk may be full.
pub fn append(dir: &Path, certificate: &Certificate) -> Result<(), CertificateError> {
    let path = dir.join(FILE_NAME);
    let json = serde_json::to_string(certificate).map_err(|source| CertificateError::Json {
        id: certificate.id.to_string(),
        path: path.clone(),
        source,
    })?;
    let length = open(&path, FlockOperation::LockShared)
        .and_then(|mut file| {
            // One write: at the end of the file, whoever else writes there.
            file.write_all(format!("\n{json}\n").as_bytes())?;
            Ok(file.metadata()?.len())
        })
        .map_err(|source| CertificateError::File { action: "write", path: path.clone(), source })?;
    if length > LONG {
        // The certificate is stored whether or not this goes well; what is wrong shows itself to the next reader.
        drop(CertificateStore::open(dir));
    }
    Ok(())
}

/// Whether there is anything to take over.
pub(crate) fn is_empty(dir: &Path) -> bool {
    std::fs::metadata(dir.join(FILE_NAME)).map_or(true, |file| file.len() == 0)
}

/// Hands all lines to `keep`, oldest first, and cuts them off when it has kept them.
pub(crate) fn take_over(
    dir: &Path,
    keep: impl FnOnce(&[Certificate]) -> Result<(), CertificateError>,
) -> Result<(), CertificateError> {
    let path = dir.join(FILE_NAME);
    let failed = |action| move |path: PathBuf, source| CertificateError::File { action, path, source };
    let mut file = open(&path, FlockOperation::LockExclusive).map_err(|source| failed("open")(path.clone(), source))?;
    let mut text = Vec::new();
    let read = io::Seek::rewind(&mut file).and_then(|()| (&mut file).take(LONGEST).read_to_end(&mut text));
    read.map_err(|source| failed("read")(path.clone(), source))?;
    let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let (mut certificates, mut aside) = (Vec::<Certificate>::new(), Vec::new());
    for line in lines {
        match serde_json::from_slice(line) {
            Ok(certificate) => certificates.push(certificate),
            Err(_) if serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok() => {
                aside.extend_from_slice(line);
                aside.push(b'\n');
            }
            Err(_) => {}
        }
    }
    keep(&certificates)?;
    if !aside.is_empty() {
        let path = dir.join(ASIDE);
        let kept = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
        kept.and_then(|mut file| file.write_all(&aside)).map_err(|source| failed("write")(path, source))?;
    }
    file.set_len(0).map_err(|source| failed("cut")(path, source))
}

/// Opens the file, making it when it is missing, and waits for the lock.
fn open(path: &Path, lock: FlockOperation) -> io::Result<File> {
    let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    rustix::fs::flock(&file, lock)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::tests::{TempDir, certificate};

    fn ids(dir: &Path) -> Vec<String> {
        let mut all = CertificateStore::open(dir).unwrap().list(u32::MAX).unwrap();
        all.reverse();
        all.iter().map(|one| one.id.to_string()).collect()
    }

    #[test]
    fn a_line_of_a_later_version_is_kept_aside_and_a_torn_one_is_not() {
        let dir = TempDir::new("inbox-later");
        append(dir.path(), &certificate(1, "x")).unwrap();
        let path = dir.path().join(FILE_NAME);
        let later = r#"{"schema":"plimsoll.certificate/2","cause":"boredom"}"#;
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("{text}\n{later}\n\n{}\n", &text[..text.len() / 2])).unwrap();
        append(dir.path(), &certificate(2, "x")).unwrap();
        assert_eq!(ids(dir.path()).len(), 2);
        assert!(is_empty(dir.path()));
        assert_eq!(std::fs::read_to_string(dir.path().join(ASIDE)).unwrap(), format!("{later}\n"));
    }

    #[test]
    fn what_is_appended_is_in_the_history_once_and_in_order() {
        let dir = TempDir::new("inbox");
        let all: Vec<Certificate> = (0..5).map(|n| certificate(n, "x")).collect();
        for one in &all[..3] {
            append(dir.path(), one).unwrap();
        }
        let text = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
        let wanted = |count: usize| all[..count].iter().map(|one| one.id.to_string()).collect::<Vec<_>>();
        assert_eq!(ids(dir.path()), wanted(3));
        assert!(is_empty(dir.path()));
        // A reader that was killed before it cut them off: they come again.
        std::fs::write(dir.path().join(FILE_NAME), &text).unwrap();
        append(dir.path(), &all[3]).unwrap();
        assert_eq!(ids(dir.path()), wanted(4));
        append(dir.path(), &all[4]).unwrap();
        assert_eq!(ids(dir.path()), wanted(5));
    }

    #[test]
    fn a_torn_line_tears_no_other() {
        let dir = TempDir::new("torn-inbox");
        append(dir.path(), &certificate(0, "x")).unwrap();
        let path = dir.path().join(FILE_NAME);
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() - 1 {
            std::fs::write(&path, &whole[..cut]).unwrap();
            append(dir.path(), &certificate(1, "x")).unwrap();
            let mut kept = Vec::new();
            take_over(dir.path(), |all| {
                kept = all.iter().map(|one| one.id).collect();
                Ok(())
            })
            .unwrap();
            assert_eq!(kept.last(), Some(&certificate(1, "x").id), "cut at {cut}");
        }
    }

    #[test]
    fn a_long_one_is_taken_over_by_its_writer() {
        let dir = TempDir::new("long-inbox");
        let mut longest = 0;
        for number in 0..600 {
            append(dir.path(), &certificate(number, "x")).unwrap();
            longest = longest.max(std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().len());
        }
        assert!(longest < LONG + 8192, "{longest}");
        assert_eq!(ids(dir.path()).len(), 600);
    }

    #[test]
    fn writers_and_readers_at_once_lose_nothing() {
        let dir = TempDir::new("busy-inbox");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let dir = dir.path();
                scope.spawn(move || (0..50).for_each(|n| append(dir, &certificate(writer * 1000 + n, "x")).unwrap()));
            }
            for _ in 0..2 {
                scope.spawn(|| (0..20).for_each(|_| drop(CertificateStore::open(dir.path()).unwrap())));
            }
        });
        assert_eq!(ids(dir.path()).len(), 200);
    }
}
