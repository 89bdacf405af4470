//! The state directory (what outlives a boot) and the runtime directory (what does not).

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The facts that decide where the directories are: variables as they were set, and who we are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// `PLIMSOLL_STATE_DIR`.
    pub state_dir: Option<OsString>,
    /// `PLIMSOLL_RUNTIME_DIR`.
    pub runtime_dir: Option<OsString>,
    /// `XDG_STATE_HOME`.
    pub xdg_state_home: Option<OsString>,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
    /// Effective user id.
    pub uid: u32,
}

impl Environment {
    /// Reads the process's own environment: the one place here that does.
    #[must_use]
    pub fn from_env() -> Self {
        Self {
            state_dir: std::env::var_os("PLIMSOLL_STATE_DIR"),
            runtime_dir: std::env::var_os("PLIMSOLL_RUNTIME_DIR"),
            xdg_state_home: std::env::var_os("XDG_STATE_HOME"),
            xdg_runtime_dir: std::env::var_os("XDG_RUNTIME_DIR"),
            home: std::env::var_os("HOME"),
            uid: rustix::process::geteuid().as_raw(),
        }
    }
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// It could not be made or looked at.
    #[error("cannot use the directory {path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Something else stands there.
    #[error("{path} is no directory")]
    NoDirectory {
        /// What stands there.
        path: PathBuf,
    },
    /// Others could write into it: what is read there decides what is killed, or is believed about why it was.
    #[error("the directory {path} belongs to user {owner} with mode {mode:o}: others could write there")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Its permission bits.
        mode: u32,
    },
}

impl PathsError {
    /// What the user can do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        "chmod go-w takes the right to write from others where the directory is yours; else set PLIMSOLL_STATE_DIR and \
         PLIMSOLL_RUNTIME_DIR to directories of your own that only you can write to"
    }
}

/// Where everything lies. Nothing is made before it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    state: PathBuf,
    runtime: PathBuf,
    uid: u32,
}

impl Paths {
    /// Chooses the directories. A variable that is empty counts as unset; a relative `XDG_*` is ignored, as its
    /// specification asks; a relative `PLIMSOLL_*` is relative to the working directory.
    #[must_use]
    pub fn resolve(env: &Environment) -> Self {
        let own = |name: &Option<OsString>| {
            let path = PathBuf::from(name.as_ref().filter(|text| !text.is_empty())?);
            Some(std::path::absolute(&path).unwrap_or(path))
        };
        let xdg = |name: &Option<OsString>| {
            let path = Path::new(name.as_ref()?);
            path.is_absolute().then(|| path.join("plimsoll"))
        };
        let root = env.uid == 0;
        // Without a session (cron, a bare container) there is no runtime directory of the user's own: one under /tmp, whose
        // owner is checked before it is used.
        let temporary = || PathBuf::from(format!("/tmp/plimsoll-{}", env.uid));
        let state = own(&env.state_dir).unwrap_or_else(|| match root {
            true => PathBuf::from("/var/lib/plimsoll"),
            false => xdg(&env.xdg_state_home)
                .or_else(|| {
                    let home = Path::new(env.home.as_ref()?);
                    home.is_absolute().then(|| home.join(".local/state/plimsoll"))
                })
                .unwrap_or_else(|| temporary().join("state")),
        });
        let runtime = own(&env.runtime_dir).unwrap_or_else(|| match root {
            true => PathBuf::from("/run/plimsoll"),
            false => xdg(&env.xdg_runtime_dir).unwrap_or_else(temporary),
        });
        Self { state, runtime, uid: env.uid }
    }

    /// These directories, whatever the environment says.
    #[must_use]
    pub fn named(state: &Path, runtime: &Path) -> Self {
        let (state_dir, runtime_dir) = (Some(state.into()), Some(runtime.into()));
        Self::resolve(&Environment { state_dir, runtime_dir, ..Environment::from_env() })
    }

    /// [`Self::resolve`] of the process's own environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self::resolve(&Environment::from_env())
    }

    /// The state directory, which may not be there yet.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The runtime directory, which may not be there yet.
    #[must_use]
    pub fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// The socket on which a running Plimsoll answers.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.runtime.join("control.sock")
    }

    /// The state directory, made (0700) where it is missing. It has to be ours alone: who can write there can put another
    /// history in the place of ours.
    ///
    /// # Errors
    /// It cannot be made, is no directory, or others could write there.
    pub fn make_state(&self) -> Result<&Path, PathsError> {
        make(&self.state)?;
        self.check_state()?;
        Ok(&self.state)
    }

    /// Whether the state directory is there and ours alone; `false` when there is none.
    ///
    /// # Errors
    /// It is no directory, or others could write there.
    pub fn check_state(&self) -> Result<bool, PathsError> {
        self.check(&self.state)
    }

    /// The runtime directory, made (0700) where it is missing. What stands in it decides what is killed after a crash, so it
    /// has to be ours alone.
    ///
    /// # Errors
    /// It cannot be made, is no directory, or others could write there.
    pub fn make_runtime(&self) -> Result<&Path, PathsError> {
        let path = self.runtime.as_path();
        make(path)?;
        self.check_runtime()?;
        Ok(path)
    }

    /// Whether the runtime directory is there and ours alone; `false` when there is none.
    ///
    /// # Errors
    /// It is no directory, or others could write there.
    pub fn check_runtime(&self) -> Result<bool, PathsError> {
        self.check(&self.runtime)
    }

    fn check(&self, path: &Path) -> Result<bool, PathsError> {
        // Not following a link: under /tmp a stranger could have put one there.
        let found = match std::fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(PathsError::Io { path: path.to_owned(), source }),
        };
        let found = if found.is_symlink() && [0, self.uid].contains(&found.uid()) {
            std::fs::metadata(path).map_err(|source| PathsError::Io { path: path.to_owned(), source })?
        } else {
            found
        };
        let mode = found.mode() & 0o7777;
        match (found.is_dir(), found.uid() == self.uid && mode & 0o022 == 0) {
            (false, _) => Err(PathsError::NoDirectory { path: path.to_owned() }),
            (true, false) => Err(PathsError::Unsafe { path: path.to_owned(), owner: found.uid(), mode }),
            (true, true) => Ok(true),
        }
    }
}

/// Makes a directory and its parents, 0700; one that is there is left as it is.
fn make(path: &Path) -> Result<(), PathsError> {
    let failed = |source| PathsError::Io { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(PathsError::NoDirectory { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::tests::TempDir;
    use std::os::unix::fs::PermissionsExt;

    fn user(uid: u32) -> Environment {
        Environment { uid, ..Environment::default() }
    }

    #[test]
    fn defaults_of_root_and_of_a_user() {
        let root =
            Paths::resolve(&Environment { home: Some("/root".into()), xdg_state_home: Some("/x".into()), ..user(0) });
        assert_eq!(root.state(), Path::new("/var/lib/plimsoll"));
        assert_eq!(root.runtime(), Path::new("/run/plimsoll"));
        assert_eq!(root.control_socket(), Path::new("/run/plimsoll/control.sock"));

        let session = Paths::resolve(&Environment {
            xdg_state_home: Some("/home/u/state".into()),
            xdg_runtime_dir: Some("/run/user/7".into()),
            ..user(7)
        });
        assert_eq!(session.state(), Path::new("/home/u/state/plimsoll"));
        assert_eq!(session.runtime(), Path::new("/run/user/7/plimsoll"));

        let bare = Paths::resolve(&Environment {
            home: Some("/home/u".into()),
            xdg_state_home: Some("relative".into()),
            xdg_runtime_dir: Some(OsString::new()),
            ..user(7)
        });
        assert_eq!(bare.state(), Path::new("/home/u/.local/state/plimsoll"));
        assert_eq!(bare.runtime(), Path::new("/tmp/plimsoll-7"));
        assert_eq!(Paths::resolve(&user(7)).state(), Path::new("/tmp/plimsoll-7/state"));
    }

    #[test]
    fn our_own_variables_win_and_empty_ones_do_not() {
        let named = Environment { state_dir: Some("/a/b".into()), runtime_dir: Some("r".into()), ..user(0) };
        let paths = Paths::resolve(&named);
        assert_eq!(paths.state(), Path::new("/a/b"));
        assert!(paths.runtime().is_absolute() && paths.runtime().ends_with("r"), "{}", paths.runtime().display());
        let empty = Environment { state_dir: Some(OsString::new()), ..user(0) };
        assert_eq!(Paths::resolve(&empty).state(), Path::new("/var/lib/plimsoll"));
    }

    #[test]
    fn made_for_us_alone_and_refused_when_others_could_write() {
        let temp = TempDir::new("paths");
        let uid = Environment::from_env().uid;
        let at = |dir: &Path| {
            Paths::resolve(&Environment {
                runtime_dir: Some(dir.into()),
                state_dir: Some(dir.join("s").into()),
                ..user(uid)
            })
        };
        let dir = temp.path().join("deep/runtime");
        let paths = at(&dir);
        assert!(!paths.check_runtime().unwrap());
        paths.make_runtime().unwrap();
        paths.make_state().unwrap();
        assert_eq!(std::fs::metadata(&dir).unwrap().mode() & 0o7777, 0o700);
        assert!(paths.check_runtime().unwrap());

        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(paths.make_runtime(), Err(PathsError::Unsafe { mode: 0o777, .. })));
        // Whoever shares the group is one of the others.
        for dir in [paths.runtime(), paths.state()] {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o770)).unwrap();
        }
        assert!(matches!(paths.make_runtime(), Err(PathsError::Unsafe { mode: 0o770, .. })));
        assert!(matches!(paths.make_state(), Err(PathsError::Unsafe { mode: 0o770, .. })));
        for dir in [paths.runtime(), paths.state()] {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        assert!(paths.make_runtime().is_ok() && paths.make_state().is_ok());

        std::fs::write(temp.path().join("file"), "").unwrap();
        let file = at(&temp.path().join("file"));
        assert!(matches!(file.make_runtime(), Err(PathsError::NoDirectory { .. })));
        assert!(file.make_state().is_err());

        let stranger = Paths { uid: uid + 1, ..at(temp.path()) };
        assert!(matches!(stranger.make_runtime(), Err(PathsError::Unsafe { .. })));
        std::os::unix::fs::symlink(temp.path(), temp.path().join("link")).unwrap();
        let linked = Paths { uid: uid + 1, ..at(&temp.path().join("link")) };
        assert!(linked.make_runtime().is_err());
    }
}
