//! Where a session lives: a home, a temporary and a working folder of its own, an environment of what it is to see, and,
//! where we are root, a user of its own, so that it can neither read another session's files nor look into its processes.
//!
//! The folders lie in the runtime directory, whose way in is opened for passing through alone, and go with the session.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use plimsoll_core::stack::Name;
use plimsoll_kernel::landlock;
use plimsoll_model::pool::{Isolation, PoolSpec};
use plimsoll_model::spec::Bounds;
use plimsoll_model::stack::ServiceSpec;

/// Users for sessions: a range that nobody else hands out (systemd's UIDS-GIDS lists it as unused).
const FIRST_USER: u32 = 60_578;
const LAST_USER: u32 = 61_183;

/// The folder in the runtime directory, and a session's home in its own.
pub(super) const FOLDER: &str = "sessions";
pub(super) const HOME: &str = "home";
const TMP: &str = "tmp";
const WORK: &str = "work";

/// Variables that every agent gets, where we have them.
const ALWAYS: [&str; 4] = ["PATH", "LANG", "TZ", "TERM"];

/// One session's place.
#[derive(Debug)]
pub(super) struct Seat {
    /// What its folder is called, which is used again only by a process that takes up its conversation.
    pub(super) name: String,
    /// `None` without isolation: then it lives where the pool does.
    dir: Option<PathBuf>,
    pub(super) user: Option<u32>,
    pass: Vec<String>,
    /// The conversation that it has, if what its agent keeps of that is to outlive it.
    pub(super) key: Option<Name>,
}

impl Seat {
    /// Makes the folders. The second answer says what could not be had, in words.
    ///
    /// # Errors
    /// In words: a folder could not be made.
    pub(super) fn make(
        runtime_dir: &Path,
        name: String,
        pool: &PoolSpec,
        taken: &BTreeSet<u32>,
        may_change_user: bool,
    ) -> Result<(Self, Option<String>), String> {
        let pass = pool.pass_environment.clone();
        if pool.isolation == Isolation::None {
            return Ok((Self { name, dir: None, user: None, pass, key: None }, None));
        }
        let user = match may_change_user {
            true => user_for(pool, taken),
            false => Err("sessions run as one user: without groups a run of our own keeps each".to_owned()),
        };
        let (user, lacking) = match user {
            Ok(user) => (Some(user), None),
            Err(why) => (None, Some(format!("{why}; {}", kept_apart()))),
        };
        let root = runtime_dir.join(FOLDER);
        let dir = root.join(&name);
        let made = (|| {
            if user.is_some() {
                open_passage(runtime_dir)?;
            }
            for folder in [HOME, TMP, WORK] {
                std::fs::create_dir_all(dir.join(folder))?;
                std::fs::set_permissions(dir.join(folder), mode(0o700))?;
                std::os::unix::fs::chown(dir.join(folder), user, user)?;
            }
            // Passed through, and not listed.
            std::fs::set_permissions(&root, mode(0o711))?;
            std::fs::set_permissions(&dir, mode(0o711))
        })();
        made.map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok((Self { name, dir: Some(dir), user, pass, key: None }, lacking))
    }

    /// Its home; `None` where it has none of its own.
    pub(super) fn home(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(HOME))
    }

    /// Where it works.
    pub(super) fn workdir(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join(WORK))
    }

    /// What it sees of our environment, and where its home is.
    pub(super) fn environment(&self) -> Vec<(OsString, OsString)> {
        let is_passed =
            |key: &str| ALWAYS.contains(&key) || key.starts_with("LC_") || self.pass.iter().any(|name| name == key);
        let mut all: Vec<(OsString, OsString)> = std::env::vars_os()
            .filter(|(key, _)| key.to_str().is_some_and(|key| is_passed(key) || self.dir.is_none() && key == "HOME"))
            .collect();
        if let Some(dir) = &self.dir {
            all.retain(|(key, _)| key != "HOME" && key != "TMPDIR");
            all.push(("HOME".into(), dir.join(HOME).into()));
            all.push(("TMPDIR".into(), dir.join(TMP).into()));
        }
        all
    }

    /// What it may reach where it has no user of its own: its folders, those that the pool's file names for what agents
    /// keep, and nothing of ours but the stages.
    pub(super) fn bounds(&self, spec: &ServiceSpec, hidden: [&Path; 2], stage_file: &Path) -> Option<Bounds> {
        let dir = self.dir.as_ref().filter(|_| self.user.is_none())?;
        let named = ["HOME", "TMPDIR", "CLAUDE_CONFIG_DIR"].iter().filter_map(|&name| spec.environment.get(name));
        let named = named.map(PathBuf::from).filter(|path| path.is_absolute() && path.is_dir());
        Some(Bounds {
            own: [HOME, TMP, WORK].iter().map(|folder| dir.join(folder)).chain(named).collect(),
            shown: stage_file.parent().map(Path::to_owned).into_iter().collect(),
            hidden: hidden.map(Path::to_owned).to_vec(),
        })
    }

    /// A word of its command: what begins with `./` is meant from where the pool is, and the session works elsewhere.
    pub(super) fn word(&self, word: &str, working_dir: &Path) -> OsString {
        match word.strip_prefix("./").filter(|_| self.dir.is_some()) {
            Some(rest) => working_dir.join(rest).into(),
            None => word.into(),
        }
    }

    /// Nothing of it is needed any more.
    pub(super) fn remove(&self) {
        if let Some(dir) = &self.dir {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// What keeps sessions of one user apart.
fn kept_apart() -> String {
    match landlock::version() {
        None => "they can read each other's files: this kernel has no Landlock, or has it switched off".to_owned(),
        Some(version) if version < landlock::SIGNALS => {
            format!("Landlock (version {version}) keeps them to their folders, but not from each other's signals")
        }
        Some(version) => format!("Landlock (version {version}) keeps them to their folders"),
    }
}

fn mode(mode: u32) -> std::fs::Permissions {
    std::fs::Permissions::from_mode(mode)
}

/// A user that no session has, or why there is none.
fn user_for(pool: &PoolSpec, taken: &BTreeSet<u32>) -> Result<u32, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("sessions run as one user: only root can give each its own".to_owned());
    }
    let program = pool.process.command.first().map(|word| pool.process.working_dir.join(word));
    let paths = [Some(pool.process.working_dir.clone()), program.filter(|path| path.exists())];
    if let Some(closed) = paths.iter().flatten().find_map(|path| closed_part(path)) {
        return Err(format!("sessions run as root: {} is closed to other users", closed.display()));
    }
    (FIRST_USER..=LAST_USER)
        .find(|user| !taken.contains(user))
        .ok_or_else(|| "sessions run as root: all users for them are taken".to_owned())
}

/// The part of a path through which others do not come.
fn closed_part(path: &Path) -> Option<PathBuf> {
    let is_closed = |path: &&Path| {
        std::fs::metadata(path).is_ok_and(|found| found.is_dir() && found.permissions().mode() & 0o001 == 0)
    };
    path.ancestors().filter(is_closed).last().map(Path::to_owned)
}

/// Others may pass through this folder, and into nothing of it but what is theirs.
fn open_passage(dir: &Path) -> std::io::Result<()> {
    if std::fs::metadata(dir)?.permissions().mode() & 0o777 == 0o711 {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir)?.flatten() {
        let path = entry.path();
        let found = std::fs::symlink_metadata(&path)?;
        if !found.is_symlink() && entry.file_name() != FOLDER {
            std::fs::set_permissions(&path, mode(found.permissions().mode() & 0o700))?;
        }
    }
    std::fs::set_permissions(dir, mode(0o711))
}
