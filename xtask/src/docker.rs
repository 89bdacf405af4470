//! A Docker Engine of our own for the time of a test: no bridge, no iptables, everything it writes in one folder, its
//! groups under one name that begins with `plimsoll`; gone afterwards with all of that.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use crate::exec::{Failure, Guarded, command, output, stream, succeed, which};
use crate::workspace::{self, Binaries};
use crate::{exec, packages};

/// The memory limit of the container: its own line, which a tree inside must not make it meet.
pub(crate) const MEMORY: &str = "512m";

/// A fork bomb inside stops at this many tasks: nobody else bounds it there.
const TASKS: &str = "512";

const IMAGE: &str = "plimsoll-test";

/// A running engine with our image.
#[derive(Debug)]
pub(crate) struct Engine {
    daemon: Guarded,
    folder: PathBuf,
    group: String,
}

/// `cargo xtask docker -- COMMAND…`: runs a command in the test container.
pub(crate) fn main(args: &[String]) -> Result<ExitCode, Failure> {
    let command = match args {
        [separator, command @ ..] if separator == "--" && !command.is_empty() => command,
        _ => return Err(Failure("usage: cargo xtask docker -- COMMAND [ARG…]".to_owned())),
    };
    packages::install(packages::TESTS)?;
    available()?;
    let binaries = workspace::build()?;
    let engine = Engine::start(&binaries)?;
    match stream(engine.run(command), Duration::from_secs(3600), |line| println!("{line}"))? {
        exec::Ended::Code(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        exec::Ended::Deadline => Err(Failure("the container was stopped at its deadline".to_owned())),
    }
}

/// Can an engine run here? The reason why not otherwise.
pub(crate) fn available() -> Result<(), Failure> {
    for program in ["dockerd", "docker", "containerd", "runc", "tar", "umount", "setpriv"] {
        if which(program).is_none() {
            return Err(Failure(format!("a container needs {program}, which is not here")));
        }
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failure("a Docker Engine of our own needs root".to_owned()));
    }
    Ok(())
}

impl Engine {
    /// Starts the engine and gives it the image.
    pub(crate) fn start(binaries: &Binaries) -> Result<Self, Failure> {
        let name = format!("plimsoll-docker-{}", std::process::id());
        // Not under target/: the path of a socket may have 107 bytes, and containerd's are long.
        let folder = Path::new("/tmp").join(&name);
        std::fs::create_dir(&folder).map_err(Failure::on("make", &folder))?;
        let log_path = folder.join("dockerd.log");
        let log = std::fs::File::create(&log_path).map_err(Failure::on("make", &log_path))?;
        let mut daemon = command("setpriv"); // so that it goes with us, whatever ends us
        daemon
            .args([
                "--pdeathsig",
                "TERM",
                "--",
                "dockerd",
                "--iptables=false",
                "--ip6tables=false",
                "--ip-forward=false",
            ])
            .args([
                "--ip-masq=false",
                "--bridge=none",
                "--storage-driver=vfs",
                "--exec-opt",
                "native.cgroupdriver=cgroupfs",
            ])
            .arg(format!("--cgroup-parent=/{name}"))
            .arg("--data-root")
            .arg(folder.join("data"))
            .arg("--exec-root")
            .arg(folder.join("exec"))
            .arg("--pidfile")
            .arg(folder.join("pid"))
            .arg("--host")
            .arg(host(&folder))
            .stdout(log.try_clone().map_err(Failure::on("share", &log_path))?)
            .stderr(log);
        // No configuration of the machine's own engine must count.
        let config = folder.join("daemon.json");
        std::fs::write(&config, "{}").map_err(Failure::on("write", &config))?;
        daemon.arg("--config-file").arg(&config);
        // What containerd leaves behind comes to us, to be reaped: not every machine's pid 1 does that.
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            println!("docker: cannot adopt what is orphaned: {error}");
        }
        let daemon = match Guarded::start(&mut daemon) {
            Ok(daemon) => daemon,
            Err(why) => {
                let _ = std::fs::remove_dir_all(&folder);
                return Err(why);
            }
        };
        let mut engine = Self { daemon, folder, group: name };
        engine.wait_until_ready(&log_path)?;
        engine.import(binaries)?;
        Ok(engine)
    }

    /// `args` in a fresh container of [`MEMORY`].
    pub(crate) fn run(&self, args: &[String]) -> Command {
        let mut docker = self.container(MEMORY);
        // A shell as pid 1 reaps what is orphaned, as an init in an image does; it must not exec the command.
        docker.args([IMAGE, "/bin/sh", "-c", "\"$@\"; exit $?", "sh"]).args(args);
        docker
    }

    /// `plimsoll` with `args` as the entrypoint of a container of that much memory, which has this machine's programs and
    /// `folder`, read-only, at the same place.
    pub(crate) fn entrypoint(&self, memory: &str, folder: &Path, args: &[&str]) -> Command {
        let mut docker = self.container(memory);
        docker
            .args(programs(&[folder]))
            .args(["--memory-swap", memory, "--env", "PATH=/usr/bin:/bin", "--entrypoint", "/bin/plimsoll", IMAGE])
            .args(args);
        docker
    }

    /// Builds `image`: ours, and these files of `folder` in /app, the last of which is the one that `plimsoll up` is given.
    pub(crate) fn build_up(&self, image: &str, folder: &Path, files: &[&str]) -> Result<(), Failure> {
        let recipe = self.folder.join("Dockerfile");
        let text = format!(
            "FROM {IMAGE}\nENV PATH=/usr/bin:/bin PLIMSOLL_STATE_DIR=/var/lib/plimsoll\nWORKDIR /app\nCOPY {} /app/\n\
             ENTRYPOINT [\"/bin/plimsoll\", \"up\", \"-f\", \"{}\"]\n",
            files.join(" "),
            files.last().copied().unwrap_or_default()
        );
        std::fs::write(&recipe, text).map_err(Failure::on("write", &recipe))?;
        let mut build = self.docker();
        build.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--network", "none", "--tag", image, "--file"]);
        succeed(build.arg(recipe).arg(folder).stdout(Stdio::null()))
    }

    /// What makes a `docker` that somebody else starts speak with this engine.
    pub(crate) fn environment(&self) -> [(&'static str, String); 2] {
        [("DOCKER_HOST", host(&self.folder)), ("DOCKER_CONFIG", self.folder.join("client").display().to_string())]
    }

    /// Builds the image of `packaging/docker`, sees that there is nothing in it but plimsoll, and answers commands in
    /// containers of it that have to succeed.
    pub(crate) fn packaged(&self, binaries: &Binaries) -> Result<[Command; 2], Failure> {
        const PACKAGED: &str = "plimsoll-packaged";
        let context = self.folder.join("context");
        std::fs::create_dir(&context).map_err(Failure::on("make", &context))?;
        std::fs::copy(&binaries.plimsoll, context.join("plimsoll")).map_err(Failure::on("copy", &binaries.plimsoll))?;
        let recipe = workspace::root().join("packaging/docker/Dockerfile");
        let mut build = self.docker();
        // The builder that Debian's package brings; the other one is a package of its own.
        build.env("DOCKER_BUILDKIT", "0").args(["build", "--network", "none", "--tag", PACKAGED, "--file"]);
        succeed(build.arg(recipe).arg(&context))?;
        let made = output(self.docker().args(["create", "--network", "none", PACKAGED]))?;
        let archive = self.folder.join("packaged.tar");
        succeed(self.docker().args(["export", made.trim(), "--output"]).arg(&archive))?;
        let listed = output(command("tar").arg("--list").arg("--file").arg(&archive))?;
        // What the engine itself puts into every container is empty files and folders.
        let engines = [".dockerenv", "dev/", "etc/", "proc/", "sys/", "var/"];
        let ours: Vec<&str> =
            listed.lines().filter(|name| !engines.iter().any(|engine| name.starts_with(engine))).collect();
        if ours != ["bin/", "bin/plimsoll"] {
            return Err(Failure(format!("the image holds {ours:?}")));
        }
        let start = |args: &[&str]| {
            let mut docker = self.container("128m");
            docker.arg(PACKAGED).args(args);
            docker
        };
        Ok([start(&["run", "-m", "32m", "--", "plimsoll", "--version"]), start(&["health"])])
    }

    /// The beginning of a `docker run`: ordinary capabilities, a read-only cgroup mount, so much memory, no network.
    fn container(&self, memory: &str) -> Command {
        let mut docker = self.docker();
        docker.args(["run", "--rm", "--network", "none", "--memory", memory]);
        docker.args(["--pids-limit", TASKS, "--tmpfs", "/tmp:mode=1777"]);
        docker
    }

    fn docker(&self) -> Command {
        let mut docker = command("docker");
        docker.arg("--host").arg(host(&self.folder)).arg("--config").arg(self.folder.join("client"));
        docker
    }

    fn wait_until_ready(&mut self, log: &Path) -> Result<(), Failure> {
        for _ in 0..600 {
            if let Some(code) = self.daemon.ended() {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                let last: Vec<&str> = said.lines().rev().take(8).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                return Err(Failure(format!("dockerd ended with exit code {code}:\n{}", last.join("\n"))));
            }
            let mut ask = self.docker();
            ask.arg("version").stdout(Stdio::null()).stderr(Stdio::null());
            if succeed(&mut ask).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(Failure("dockerd did not answer in a minute".to_owned()))
    }

    fn import(&self, binaries: &Binaries) -> Result<(), Failure> {
        let root = self.folder.join("image");
        let make = |path: &Path| std::fs::create_dir_all(path).map_err(Failure::on("make", path));
        for folder in ["bin", "etc", "root", "tmp", "run", "var/lib"] {
            make(&root.join(folder))?;
        }
        let busybox = Path::new("/bin/busybox");
        for file in [busybox, &binaries.plimsoll, &binaries.testkit] {
            let to = root.join("bin").join(file.file_name().unwrap_or_default());
            std::fs::copy(file, &to).map_err(Failure::on("copy to the image", file))?;
        }
        for applet in output(command(busybox).arg("--list"))?.lines().filter(|applet| *applet != "busybox") {
            let link = root.join("bin").join(applet);
            std::os::unix::fs::symlink("busybox", &link).map_err(Failure::on("link", &link))?;
        }
        for (file, content) in [
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
            ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        ] {
            let file = root.join(file);
            std::fs::write(&file, content).map_err(Failure::on("write", &file))?;
        }
        let archive = self.folder.join("image.tar");
        succeed(command("tar").arg("--create").arg("--file").arg(&archive).arg("--directory").arg(&root).arg("."))?;
        let mut import = self.docker();
        import.args(["import", "--change", "ENV PATH=/bin"]).arg(&archive).arg(IMAGE).stdout(Stdio::null());
        succeed(&mut import)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Containers first, as the engine leaves them running when it is killed.
        let mut list = self.docker();
        if let Ok(containers) = output(list.args(["ps", "--quiet"])) {
            for container in containers.lines() {
                let mut kill = self.docker();
                kill.args(["kill", container]).stdout(Stdio::null()).stderr(Stdio::null());
                let _ = succeed(&mut kill);
            }
        }
        self.daemon.terminate();
        if self.daemon.wait_for(Duration::from_secs(30)).is_none() {
            self.daemon.kill();
        }
        end_processes_of(&self.folder);
        while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        let _ = rustix::process::set_child_subreaper(None);
        unmount_below(&self.folder);
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            println!("docker: cannot remove {}: {error}", self.folder.display());
        }
        remove_groups(&self.group);
    }
}

/// Arguments of `docker run` that give a container this machine's programs and these folders, read-only, at the same place.
pub(crate) fn programs(folders: &[&Path]) -> Vec<String> {
    let shared = ["/usr", "/lib", "/lib64", "/etc"].map(Path::new);
    let shared = shared.iter().chain(folders);
    shared.map(|folder| format!("--volume={0}:{0}:ro", folder.display())).collect()
}

fn host(folder: &Path) -> String {
    format!("unix://{}/docker.sock", folder.display())
}

/// Ends the processes whose command line names our folder (containerd and its shims), by pid. The folder carries our own
/// pid in its name, so that nobody else's can be meant.
fn end_processes_of(folder: &Path) {
    let needle = folder.to_string_lossy().into_owned();
    for _ in 0..100 {
        let mut left = false;
        for pid in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) =
                pid.file_name().to_string_lossy().parse::<i32>().ok().and_then(rustix::process::Pid::from_raw)
            else {
                continue;
            };
            let line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains(&needle) {
                left = true;
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        if !left {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn unmount_below(folder: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(folder))
        .collect();
    for point in below.into_iter().rev() {
        let _ = succeed(command("umount").arg("--lazy").arg(point).stderr(Stdio::null()));
    }
}

/// Removes our group of that name from every hierarchy.
fn remove_groups(name: &str) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in mounts.lines().filter(|line| line.contains(" - cgroup ") || line.contains(" - cgroup2 ")) {
        if let Some(point) = line.split(' ').nth(4) {
            remove_group(&Path::new(point).join(name));
        }
    }
}

fn remove_group(group: &Path) {
    for below in std::fs::read_dir(group).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if below.is_dir() {
            remove_group(&below);
        }
    }
    for _ in 0..100 {
        match std::fs::remove_dir(group) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(50))
            }
            _ => return,
        }
    }
    println!("docker: {} is still busy", group.display());
}
