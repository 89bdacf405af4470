//! Where the test kit runs: each place gives one tier for real.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::docker::{self, Engine};
use crate::exec::{Ended, Failure, command, stream, which};
use crate::guest::{self, Boot, Mode};
use crate::workspace::Binaries;

/// The user and group that own nothing.
const NOBODY: u32 = 65534;

/// A place to run the test kit in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// This machine, on its own cgroups.
    Machine,
    /// This machine, as a user without capabilities or a writable group.
    Unprivileged,
    /// An ordinary container: read-only cgroups and a memory limit of its own.
    Container,
    /// A kernel of its own.
    Guest(Mode),
}

impl Place {
    /// Does it exist here? The reason why not otherwise.
    pub(crate) fn available(self) -> Result<(), Failure> {
        match self {
            Self::Machine => machine_tier().map(|_| ()),
            Self::Unprivileged if !rustix::process::geteuid().is_root() => Ok(()),
            Self::Unprivileged => which("setpriv")
                .map(|_| ())
                .ok_or_else(|| Failure("dropping privileges needs setpriv (util-linux)".to_owned())),
            Self::Container => docker::available(),
            Self::Guest(_) => guest::available(),
        }
    }

    /// The boundary that plimsoll finds there.
    pub(crate) fn tier(self) -> Result<&'static str, Failure> {
        match self {
            Self::Machine => machine_tier(),
            Self::Unprivileged | Self::Container => Ok("watchdog"),
            Self::Guest(mode) => Ok(mode.boundary()),
        }
    }
}

/// Runs the test kit with `arguments` in `place` until `deadline` from now, a line of its output at a time.
pub(crate) fn run(
    place: Place,
    binaries: &Binaries,
    arguments: &[String],
    memory_mib: u32,
    deadline: Duration,
    on_line: impl FnMut(&str),
) -> Result<Ended, Failure> {
    let testkit =
        || std::iter::once("plimsoll-testkit".to_owned()).chain(arguments.iter().cloned()).collect::<Vec<_>>();
    match place {
        Place::Machine => {
            let folder = Folder::make(binaries)?;
            stream(folder.testkit(None, arguments), deadline, on_line)
        }
        Place::Unprivileged => {
            let folder = Folder::make(binaries)?;
            let user = rustix::process::geteuid().is_root().then_some(NOBODY);
            stream(folder.testkit(user, arguments), deadline, on_line)
        }
        Place::Container => {
            let engine = Engine::start(binaries)?;
            stream(engine.run(&testkit()), deadline, on_line)
        }
        Place::Guest(mode) => {
            let boot = Boot { mode, memory_mib, command: &testkit(), deadline, furniture: None };
            guest::run(binaries, &boot, on_line)
        }
    }
}

/// The boundary of this machine's own cgroups, as far as we may make groups in them.
fn machine_tier() -> Result<&'static str, Failure> {
    let root = Path::new("/sys/fs/cgroup");
    if !rustix::process::geteuid().is_root() {
        return Err(Failure("making groups on this machine needs root".to_owned()));
    }
    let writable = |folder: &Path| rustix::fs::access(folder, rustix::fs::Access::WRITE_OK).is_ok();
    let v2 = root.join("cgroup.controllers");
    if v2.exists() {
        let controllers = std::fs::read_to_string(&v2).map_err(Failure::on("read", &v2))?;
        if !controllers.split_whitespace().any(|controller| controller == "memory") {
            return Err(Failure(format!("this machine's cgroup v2 has no memory controller: {controllers:?}")));
        }
        return if writable(root) {
            Ok("cgroup2")
        } else {
            Err(Failure("this machine's cgroup v2 mount is read-only".to_owned()))
        };
    }
    let v1 = root.join("memory");
    if !v1.join("memory.limit_in_bytes").exists() {
        return Err(Failure("this machine has no memory cgroup, of neither version".to_owned()));
    }
    if writable(&v1) { Ok("cgroup1") } else { Err(Failure("this machine's memory cgroup is read-only".to_owned())) }
}

/// A folder under /tmp with copies of the binaries that any user can run, and a home; removed with this value.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn make(binaries: &Binaries) -> Result<Self, Failure> {
        let folder = std::env::temp_dir().join(format!("plimsoll-test-{}", std::process::id()));
        std::fs::create_dir(&folder).map_err(Failure::on("make", &folder))?;
        let folder = Self(folder);
        use std::os::unix::fs::PermissionsExt;
        let open = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
                .map_err(Failure::on("open to all", path))
        };
        open(&folder.0, 0o755)?;
        for file in [&binaries.plimsoll, &binaries.testkit] {
            let copy = folder.0.join(file.file_name().unwrap_or_default());
            std::fs::copy(file, &copy).map_err(Failure::on("copy", file))?;
            open(&copy, 0o755)?;
        }
        let home = folder.0.join("home");
        std::fs::create_dir(&home).map_err(Failure::on("make", &home))?;
        open(&home, 0o777)?;
        Ok(folder)
    }

    /// The test kit, as `user` where one is given; whatever it writes goes below the home.
    fn testkit(&self, user: Option<u32>, arguments: &[String]) -> std::process::Command {
        let program = self.0.join("plimsoll-testkit");
        let mut testkit = match user {
            Some(user) => {
                let mut setpriv = command("setpriv");
                setpriv.arg(format!("--reuid={user}")).arg(format!("--regid={user}"));
                setpriv.args(["--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--"]).arg(program);
                setpriv
            }
            None => command(program),
        };
        let home = self.0.join("home");
        testkit.args(arguments).arg("--plimsoll").arg(self.0.join("plimsoll")).arg("--scratch").arg(&home);
        testkit.current_dir(&home).env("HOME", &home).env("TMPDIR", &home);
        testkit.env("PLIMSOLL_STATE_DIR", home.join("state")).env("PLIMSOLL_RUNTIME_DIR", home.join("run"));
        // Ours may name folders that this user cannot even look into.
        testkit.env("PATH", "/usr/local/bin:/usr/bin:/bin");
        testkit.env_remove("PLIMSOLL_CGROUP_PARENT").env_remove("PLIMSOLL_ID");
        testkit
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            println!("cannot remove {}: {error}", self.0.display());
        }
    }
}
