//! Certificates: one SQLite file in the state directory, its history bounded.
//!
//! What ends is appended to the [`inbox`]; whoever opens the history takes it over. Several may do so at once:
//! - The file is made complete under another name and then renamed, with the directory locked, so nobody ever sees it
//!   half made and switching to the write-ahead log never races.
//! - A writer does not checkpoint as it closes (that is two `fsync`); whoever passes a [`CHECKPOINT_EVERY`]th does, and starts the
//!   log afresh, because the next process reads all of it.
//! - A file that is damaged, or that a newer Plimsoll wrote, is renamed and a new one made; the caller hears of it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll_model::Certificate;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use crate::inbox;

/// The file's name in the state directory.
pub const FILE_NAME: &str = "plimsoll.db";

/// Certificates kept, by count; up to [`TRIM_EVERY`] more stand until they are trimmed.
pub const HISTORY: u64 = 10_000;

const TRIM_EVERY: i64 = 64;
const CHECKPOINT_EVERY: i64 = 16;

/// `user_version` of files of this shape.
const SCHEMA_VERSION: i64 = 1;

/// `seq` counts insertions, so the order of ends costs no index of its own. Columns that are searched stand before `json`,
/// whose overflow pages a search then never touches.
const SCHEMA: &str = "
    CREATE TABLE certificates (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        ended_at_ms INTEGER NOT NULL,
        cause TEXT NOT NULL,
        json TEXT NOT NULL
    ) STRICT;";

/// Longest wait for another writer. An insert holds the lock for well under a millisecond; a disk may not.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);

/// Why certificates could not be read or stored.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// SQLite, or the system below it, refused.
    #[error("cannot {action} the certificates in {path}: {source}")]
    Database {
        /// What was attempted: `open`, `store`, `read`.
        action: &'static str,
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A file beside the database could not be made, locked or renamed.
    #[error("cannot {action} {path}: {source}")]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A stored certificate is not of this shape.
    #[error("the certificate {id} in {path} cannot be understood: {source}")]
    Json {
        /// Its id.
        id: String,
        /// The database.
        path: PathBuf,
        /// Where it is wrong.
        source: serde_json::Error,
    },
}

/// What the user ought to know: a database was set aside and a new one begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// It was damaged.
    Corrupt {
        /// Where it is now.
        kept: PathBuf,
    },
    /// A newer Plimsoll wrote it.
    Newer {
        /// Where it is now.
        kept: PathBuf,
        /// Its schema version.
        version: i64,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt { kept } => {
                write!(
                    f,
                    "the history of certificates was damaged; it is kept as {} and a new one begun",
                    kept.display()
                )
            }
            Self::Newer { kept, version } => write!(
                f,
                "the history of certificates is of a newer Plimsoll (schema {version}, this one writes {SCHEMA_VERSION}); it is \
                 kept as {} and a new one begun",
                kept.display()
            ),
        }
    }
}

/// The certificates of one state directory.
#[derive(Debug)]
pub struct CertificateStore {
    connection: Connection,
    dir: PathBuf,
    path: PathBuf,
    notices: Vec<Notice>,
}

/// What one look at a database said.
enum Look {
    Good(Connection),
    Missing,
    Corrupt,
    Newer(i64),
}

impl CertificateStore {
    /// Opens the certificates of a state directory that exists, what waits in the [`inbox`] included; the file is made
    /// where it is missing.
    ///
    /// # Errors
    /// The directory cannot be written, the disk is full, or the system refused otherwise.
    pub fn open(dir: &Path) -> Result<Self, CertificateError> {
        let path = dir.join(FILE_NAME);
        let mut notices = Vec::new();
        let connection = match look(&path)? {
            Look::Good(connection) => connection,
            _ => renew(dir, &path, false, &mut notices)?,
        };
        let mut store = Self { connection, dir: dir.to_owned(), path, notices };
        if !inbox::is_empty(dir) {
            inbox::take_over(dir, |certificates| store.insert_all(certificates))?;
        }
        Ok(store)
    }

    /// Like [`Self::open`], but makes nothing: `None` when there never was a certificate.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_existing(dir: &Path) -> Result<Option<Self>, CertificateError> {
        let path = dir.join(FILE_NAME);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && inbox::is_empty(dir) => Ok(None),
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CertificateError::File { action: "look at", path, source })
            }
            _ => Self::open(dir).map(Some),
        }
    }

    /// What the user ought to know; grows when a damage shows later.
    #[must_use]
    pub fn notices(&self) -> &[Notice] {
        &self.notices
    }

    /// Stores a certificate. One that is already there (same id) stays as it is: who came first saw more.
    ///
    /// # Errors
    /// The disk is full, or the system refused otherwise; the history is unchanged then.
    pub fn insert(&mut self, certificate: &Certificate) -> Result<(), CertificateError> {
        self.insert_all(std::slice::from_ref(certificate))
    }

    /// Stores some, all of them or none.
    fn insert_all(&mut self, certificates: &[Certificate]) -> Result<(), CertificateError> {
        let mut rows = Vec::with_capacity(certificates.len());
        for certificate in certificates {
            let json = serde_json::to_string(certificate).map_err(|source| CertificateError::Json {
                id: certificate.id.to_string(),
                path: self.path.clone(),
                source,
            })?;
            rows.push((certificate, json));
        }
        self.guarded("store", |connection| {
            let transaction = connection.unchecked_transaction()?;
            let (mut stored, mut seq) = (0, 0);
            for (certificate, json) in &rows {
                stored += transaction
                    .prepare_cached("INSERT OR IGNORE INTO certificates (id, name, ended_at_ms, cause, json) VALUES (?1, ?2, ?3, ?4, ?5)")?
                    .execute((
                        certificate.id.as_str(),
                        &certificate.name,
                        certificate.ended_at.as_millisecond(),
                        certificate.cause.as_str(),
                        json,
                    ))?;
                seq = transaction.last_insert_rowid();
            }
            transaction.commit()?;
            let is_due = |every: i64| stored > 0 && seq / every > (seq - stored as i64) / every;
            if is_due(TRIM_EVERY) {
                connection.execute("DELETE FROM certificates WHERE seq <= ?1", [seq - HISTORY as i64])?;
            }
            if is_due(CHECKPOINT_EVERY) {
                // Others at work make it answer `busy`; the next one's turn comes.
                connection.busy_timeout(Duration::ZERO)?;
                let checkpoint = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
                connection.busy_timeout(BUSY_TIMEOUT)?;
                // The certificates are stored whether or not this went well; a damage shows itself to the next reader.
                drop(checkpoint);
            }
            Ok(())
        })
    }

    /// The certificate that was stored last.
    ///
    /// # Errors
    /// The system refused, or the certificate is not of this shape.
    pub fn last(&mut self) -> Result<Option<Certificate>, CertificateError> {
        Ok(self.select("ORDER BY seq DESC LIMIT 1", [])?.pop())
    }

    /// The latest certificate of a name.
    ///
    /// # Errors
    /// As [`Self::last`].
    pub fn by_name(&mut self, name: &str) -> Result<Option<Certificate>, CertificateError> {
        Ok(self.select("WHERE name = ?1 ORDER BY seq DESC LIMIT 1", [name])?.pop())
    }

    /// The certificates whose id begins so, newest first, at most `limit`. An empty prefix is every id's.
    ///
    /// # Errors
    /// As [`Self::last`].
    pub fn by_id_prefix(&mut self, prefix: &str, limit: u32) -> Result<Vec<Certificate>, CertificateError> {
        // A range, so that the index serves and no character of the prefix is a pattern; ids are ASCII.
        let end = format!("{prefix}\u{7f}");
        self.select("WHERE id >= ?1 AND id < ?2 ORDER BY seq DESC LIMIT ?3", (prefix, end, limit))
    }

    /// The newest certificates, newest first.
    ///
    /// # Errors
    /// As [`Self::last`].
    pub fn list(&mut self, limit: u32) -> Result<Vec<Certificate>, CertificateError> {
        self.select("ORDER BY seq DESC LIMIT ?1", [limit])
    }

    /// The newest certificates of a name, newest first.
    ///
    /// # Errors
    /// As [`Self::last`].
    pub fn list_of(&mut self, name: &str, limit: u32) -> Result<Vec<Certificate>, CertificateError> {
        self.select("WHERE name = ?1 ORDER BY seq DESC LIMIT ?2", (name, limit))
    }

    /// Every name of the history, the latest used first.
    ///
    /// # Errors
    /// As [`Self::last`].
    pub fn names(&mut self) -> Result<Vec<String>, CertificateError> {
        self.guarded("read", |connection| {
            connection
                .prepare("SELECT name FROM certificates GROUP BY name ORDER BY max(seq) DESC")?
                .query_map([], |row| row.get(0))?
                .collect()
        })
    }

    fn select<P: rusqlite::Params + Clone>(
        &mut self,
        tail: &str,
        params: P,
    ) -> Result<Vec<Certificate>, CertificateError> {
        let rows: Vec<(String, String)> = self.guarded("read", |connection| {
            connection
                .prepare_cached(&format!("SELECT id, json FROM certificates {tail}"))?
                .query_map(params.clone(), |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        let parse = |(id, json): (String, String)| {
            serde_json::from_str(&json).map_err(|source| CertificateError::Json { id, path: self.path.clone(), source })
        };
        rows.into_iter().map(parse).collect()
    }

    /// Runs a piece of work; when it meets damage, sets the file aside, begins a new one and runs the work once more.
    fn guarded<T>(
        &mut self,
        action: &'static str,
        work: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CertificateError> {
        let error = match work(&self.connection) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let result = if is_damage(&error) {
            self.connection = renew(&self.dir, &self.path, true, &mut self.notices)?;
            work(&self.connection)
        } else {
            Err(error)
        };
        result.map_err(|source| CertificateError::Database { action, path: self.path.clone(), source })
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
        // A table or column that our schema has and this file has not.
        || matches!(error, rusqlite::Error::SqliteFailure(_, Some(text)) if text.starts_with("no such "))
        || matches!(error, rusqlite::Error::SqlInputError { msg, .. } if msg.starts_with("no such "))
}

/// Opens a database that may be there, with all the settings a connection of ours has.
fn look(path: &Path) -> Result<Look, CertificateError> {
    let failed = |source| CertificateError::Database { action: "open", path: path.to_owned(), source };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match Connection::open_with_flags(path, flags) {
        Ok(connection) => connection,
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::CannotOpen) => {
            return match std::fs::metadata(path) {
                Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(Look::Missing),
                _ => Err(failed(error)),
            };
        }
        Err(error) => return Err(failed(error)),
    };
    let version = configure(&connection)
        .and_then(|()| connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0)).optional());
    match version {
        Ok(Some(SCHEMA_VERSION)) => Ok(Look::Good(connection)),
        Ok(Some(version)) if version > SCHEMA_VERSION => Ok(Look::Newer(version)),
        // Ours are never seen without a version: an empty file, or a stranger's database.
        Ok(_) => Ok(Look::Corrupt),
        Err(error) if is_damage(&error) => Ok(Look::Corrupt),
        Err(error) => Err(failed(error)),
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // 16 pages of cache: an insert touches about five. Checkpoints are ours to time (see the module's first lines).
    connection.execute_batch("PRAGMA cache_size = 16; PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = NORMAL;")
}

/// Makes the database, one process at a time, first setting aside what stands in its place and cannot be used. `doubted`:
/// somebody met damage in it, so every page is checked.
fn renew(dir: &Path, path: &Path, doubted: bool, notices: &mut Vec<Notice>) -> Result<Connection, CertificateError> {
    let file = |action, path: &Path, source| CertificateError::File { action, path: path.to_owned(), source };
    let lock = File::open(dir).map_err(|source| file("open", dir, source))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|errno| file("lock", dir, errno.into()))?;
    // Whoever held the lock before us may have done all of it.
    match look(path)? {
        Look::Good(connection) if !doubted || is_sound(&connection) => return Ok(connection),
        Look::Missing => {}
        Look::Good(_) | Look::Corrupt => {
            let kept = set_aside(path, "corrupt").map_err(|source| file("set aside", path, source))?;
            notices.push(Notice::Corrupt { kept });
        }
        Look::Newer(version) => {
            let kept = set_aside(path, "newer").map_err(|source| file("set aside", path, source))?;
            notices.push(Notice::Newer { kept, version });
        }
    }
    // A log without its database would be replayed into the new one.
    if beside(path, "-wal").exists() {
        set_aside(path, "corrupt").map_err(|source| file("set aside", &beside(path, "-wal"), source))?;
    }
    let new = dir.join(format!("{FILE_NAME}.new"));
    remove(&new)?;
    if let Err(error) = fill(&new, path) {
        // A full disk, most likely: what is half made takes its room and is of no use.
        let _ = remove(&new);
        return Err(error);
    }
    match look(path)? {
        Look::Good(connection) => Ok(connection),
        _ => Err(file("use the new", path, io::Error::from(io::ErrorKind::InvalidData))),
    }
}

/// Removes a database that is no longer, or not yet, in use, with the files that belong to it.
fn remove(path: &Path) -> Result<(), CertificateError> {
    for one in ["", "-wal", "-shm", "-journal"].map(|suffix| beside(path, suffix)) {
        match std::fs::remove_file(&one) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(CertificateError::File { action: "remove", path: one, source });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes an empty history as `new` and renames it to `path`.
fn fill(new: &Path, path: &Path) -> Result<(), CertificateError> {
    let file = |action, source| CertificateError::File { action, path: new.to_owned(), source };
    // Commands stand in it, so it is ours alone from its first byte on. The log's files take their permissions from it.
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(new)
        .map_err(|source| file("make", source))?;
    let failed = |source| CertificateError::Database { action: "make", path: path.to_owned(), source };
    let connection = Connection::open(new).map_err(failed)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(failed)?;
    debug_assert_eq!(mode, "wal");
    connection
        .execute_batch(&format!("BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"))
        .map_err(failed)?;
    // Closing the only connection folds the log into the file and removes it.
    connection.close().map_err(|(_, source)| failed(source))?;
    std::fs::rename(new, path).map_err(|source| file("rename", source))
}

fn is_sound(connection: &Connection) -> bool {
    let check: rusqlite::Result<String> = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    check.is_ok_and(|said| said == "ok")
        && connection.prepare("SELECT seq, id, name, ended_at_ms, cause, json FROM certificates").is_ok()
}

/// `path` with `suffix` behind its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Renames a database and the two files that belong to it; `None` of them is ever overwritten.
fn set_aside(path: &Path, why: &str) -> io::Result<PathBuf> {
    let free = |kept: &PathBuf| ["", "-wal", "-shm"].iter().all(|suffix| !beside(kept, suffix).exists());
    let kept = (1..=u32::MAX)
        .map(|n| beside(path, &format!(".{why}-{n}")))
        .find(free)
        .ok_or_else(|| io::Error::from(io::ErrorKind::AlreadyExists))?;
    // The log first: a crash in between must not leave it beside a new database.
    for suffix in ["-wal", "-shm", ""] {
        match std::fs::rename(beside(path, suffix), beside(&kept, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(kept)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use plimsoll_model::certificate::{self, Exit, Memory, Tree};
    use plimsoll_model::{Boundary, Cause, Confidence, Evidence, RunId};
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A directory of a test's own, removed when it ends.
    pub(crate) struct TempDir(PathBuf);

    impl TempDir {
        pub(crate) fn new(what: &str) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("plimsoll-store-{what}-{}-{next}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(crate) fn path(&self) -> &Path {
            &self.0
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    pub(crate) fn certificate(number: u32, name: &str) -> Certificate {
        let start = jiff::Timestamp::UNIX_EPOCH + jiff::SignedDuration::from_secs(1_700_000_000 + i64::from(number));
        Certificate {
            schema: certificate::SCHEMA.to_owned(),
            id: RunId::new(1_700_000_000_000 + u64::from(number) * 1000, number),
            name: name.to_owned(),
            command: vec!["/bin/true".to_owned(), "--flag".to_owned()],
            boundary: Boundary::Cgroup1,
            started_at: start,
            ended_at: start + jiff::SignedDuration::from_millis(4),
            runtime_ms: 4,
            exit: Exit { code: Some(0), signal: None },
            cause: Cause::Exited,
            confidence: Confidence::Certain,
            evidence: vec![Evidence { source: "memory.oom_control".to_owned(), detail: "oom_kill 0 -> 0".to_owned() }],
            memory: Memory {
                limit_bytes: Some(64 << 20),
                peak_bytes: 1 << 20,
                swap_limit_bytes: Some(0),
                growth_bytes_per_s: 0,
                largest: Vec::new(),
                last_minute: Vec::new(),
            },
            tree: Tree { peak_processes: 1, killed_inside: 0, survivors: 0 },
            advice: String::new(),
        }
    }

    fn names_in(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn stored_and_found_again() {
        let dir = TempDir::new("found");
        assert!(CertificateStore::open_existing(dir.path()).unwrap().is_none());
        assert!(names_in(dir.path()).is_empty());
        let mut store = CertificateStore::open(dir.path()).unwrap();
        assert_eq!(store.last().unwrap(), None);
        let all: Vec<_> = (0..5).map(|n| certificate(n, ["api", "web"][n as usize % 2])).collect();
        for one in &all {
            store.insert(one).unwrap();
        }
        drop(store);
        let mut store = CertificateStore::open_existing(dir.path()).unwrap().unwrap();
        assert_eq!(store.last().unwrap().as_ref(), all.last());
        assert_eq!(store.by_name("web").unwrap().as_ref(), Some(&all[3]));
        assert_eq!(store.by_name("we").unwrap(), None);
        assert_eq!(store.by_id_prefix(all[2].id.as_str(), 9).unwrap(), [all[2].clone()]);
        assert_eq!(store.by_id_prefix("", 9).unwrap().len(), 5);
        assert_eq!(store.by_id_prefix("zz", 9).unwrap(), []);
        assert_eq!(store.by_id_prefix("%", 9).unwrap(), []);
        assert_eq!(store.list(2).unwrap(), [all[4].clone(), all[3].clone()]);
        assert_eq!(store.list_of("web", 9).unwrap(), [all[3].clone(), all[1].clone()]);
        assert_eq!(store.names().unwrap(), ["api", "web"]);
        for name in names_in(dir.path()) {
            let mode = std::fs::metadata(dir.path().join(&name)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        assert!(store.notices().is_empty());
    }

    #[test]
    fn the_first_of_two_stays() {
        let dir = TempDir::new("twice");
        let mut store = CertificateStore::open(dir.path()).unwrap();
        let first = certificate(1, "api");
        store.insert(&first).unwrap();
        store.insert(&Certificate { advice: "later".to_owned(), ..first.clone() }).unwrap();
        assert_eq!(store.list(9).unwrap(), [first]);
    }

    #[test]
    fn history_and_log_are_bounded() {
        let dir = TempDir::new("bounded");
        let mut store = CertificateStore::open(dir.path()).unwrap();
        let base = certificate(0, "n");
        for n in 0..HISTORY as u32 + 500 {
            store.insert(&Certificate { id: RunId::new(u64::from(n), n), ..base.clone() }).unwrap();
        }
        let kept = store.list(u32::MAX).unwrap();
        assert!((HISTORY..HISTORY + TRIM_EVERY as u64).contains(&(kept.len() as u64)), "{}", kept.len());
        assert_eq!(kept[0].id, RunId::new(HISTORY + 499, HISTORY as u32 + 499));
        drop(store);
        let log = std::fs::metadata(dir.path().join("plimsoll.db-wal")).unwrap().len();
        assert!(log < 1 << 20, "{log}");
    }

    /// Eight at once, each insert with a connection of its own, from nothing: as eight loops of `plimsoll run` would.
    #[test]
    fn many_writers_from_the_first_moment() {
        for round in 0..3 {
            let dir = TempDir::new("writers");
            std::thread::scope(|scope| {
                for writer in 0..8 {
                    let dir = dir.path();
                    scope.spawn(move || {
                        for n in 0..100 {
                            let mut store = CertificateStore::open(dir).unwrap();
                            store.insert(&certificate(round * 10_000 + writer * 1000 + n, "w")).unwrap();
                            assert!(store.notices().is_empty(), "{:?}", store.notices());
                        }
                    });
                }
            });
            let mut store = CertificateStore::open(dir.path()).unwrap();
            assert_eq!(store.list(10_000).unwrap().len(), 800);
            assert_eq!(names_in(dir.path()), ["plimsoll.db", "plimsoll.db-shm", "plimsoll.db-wal"]);
        }
    }

    #[test]
    fn damage_is_kept_aside_and_told() {
        let garbage = |dir: &Path| std::fs::write(dir.join(FILE_NAME), vec![0xA5; 9000]).unwrap();
        let empty = |dir: &Path| std::fs::write(dir.join(FILE_NAME), "").unwrap();
        let stranger = |dir: &Path| {
            Connection::open(dir.join(FILE_NAME)).unwrap().execute_batch("CREATE TABLE t (x);").unwrap();
        };
        let no_table = |dir: &Path| {
            let text = format!("CREATE TABLE t (x); PRAGMA user_version = {SCHEMA_VERSION};");
            Connection::open(dir.join(FILE_NAME)).unwrap().execute_batch(&text).unwrap();
        };
        let damages: [&dyn Fn(&Path); 4] = [&garbage, &empty, &stranger, &no_table];
        for (case, damage) in damages.iter().enumerate() {
            let dir = TempDir::new("damage");
            for n in 1..3 {
                for suffix in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(dir.path().join(format!("{FILE_NAME}{suffix}")));
                }
                damage(dir.path());
                let before = std::fs::read(dir.path().join(FILE_NAME)).unwrap();
                let mut store = CertificateStore::open(dir.path()).unwrap();
                store.insert(&certificate(1, "a")).unwrap();
                assert_eq!(store.list(9).unwrap(), [certificate(1, "a")]);
                let kept = dir.path().join(format!("plimsoll.db.corrupt-{n}"));
                assert_eq!(store.notices(), [Notice::Corrupt { kept: kept.clone() }], "case {case}");
                assert_eq!(std::fs::read(kept).unwrap(), before, "case {case}");
            }
        }
    }

    #[test]
    fn a_newer_schema_is_kept_aside_and_told() {
        let dir = TempDir::new("newer");
        let mut store = CertificateStore::open(dir.path()).unwrap();
        store.insert(&certificate(1, "a")).unwrap();
        store.connection.execute_batch("PRAGMA user_version = 9").unwrap();
        drop(store);
        let mut store = CertificateStore::open(dir.path()).unwrap();
        let kept = dir.path().join("plimsoll.db.newer-1");
        assert_eq!(store.notices(), [Notice::Newer { kept: kept.clone(), version: 9 }]);
        assert!(store.notices()[0].to_string().contains("schema 9"));
        assert_eq!(store.list(9).unwrap(), []);
        let old = Connection::open(kept).unwrap();
        assert_eq!(old.query_row("SELECT count(*) FROM certificates", [], |row| row.get::<_, i64>(0)).unwrap(), 1);
    }

    #[test]
    fn an_orphaned_log_is_not_replayed() {
        let dir = TempDir::new("orphan");
        let mut store = CertificateStore::open(dir.path()).unwrap();
        store.insert(&certificate(1, "old")).unwrap();
        drop(store);
        assert!(dir.path().join("plimsoll.db-wal").exists());
        std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
        let mut store = CertificateStore::open(dir.path()).unwrap();
        assert_eq!(store.list(9).unwrap(), []);
        assert!(dir.path().join("plimsoll.db.corrupt-1-wal").exists());
    }

    #[test]
    fn a_directory_that_cannot_be_used_is_named() {
        let dir = TempDir::new("unusable");
        let missing = dir.path().join("missing");
        let error = CertificateStore::open(&missing).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
        std::fs::create_dir_all(dir.path().join("plimsoll.db")).unwrap();
        let error = CertificateStore::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("plimsoll.db"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever happened to the bytes of the files, opening and storing works, and nothing is lost silently.
        #[test]
        fn any_damage_is_survived(offsets in prop::collection::vec((0usize..64 << 10, any::<u8>()), 1..40), cut in prop::option::of(0u64..40_000), log: bool) {
            let dir = TempDir::new("bytes");
            let mut store = CertificateStore::open(dir.path()).unwrap();
            for n in 0..20 {
                store.insert(&certificate(n, "a")).unwrap();
            }
            drop(store);
            let path = dir.path().join(if log { "plimsoll.db-wal" } else { FILE_NAME });
            let mut bytes = std::fs::read(&path).unwrap();
            let length = bytes.len();
            for (offset, byte) in offsets {
                bytes[offset % length] ^= byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut as usize % length);
            }
            std::fs::write(&path, &bytes).unwrap();
            let mut store = CertificateStore::open(dir.path()).unwrap();
            let new = certificate(100, "new");
            store.insert(&new).unwrap();
            // A certificate whose text was changed is an error that names it, never a panic.
            match store.last() {
                Ok(found) => prop_assert_eq!(found, Some(new)),
                Err(error) => prop_assert!(matches!(error, CertificateError::Json { .. }), "{}", error),
            }
            let _ = store.list(100);
        }
    }
}
