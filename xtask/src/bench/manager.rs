//! plimsoll, pm2 and supervisord, each as its users start it, with the same services and in a folder of its own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::procfs::{self, Process};
use plimsoll_kernel::{signal, tree};

use crate::exec::{Failure, command};
use crate::{peers, workspace};

/// A start, or an end, takes so long at most.
const PATIENCE: Duration = Duration::from_secs(900);

/// Who looks after services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Ours.
    Plimsoll,
    /// From npm.
    Pm2,
    /// From PyPI.
    Supervisord,
}

/// All three, ours first.
pub(super) const ALL: [Kind; 3] = [Kind::Plimsoll, Kind::Pm2, Kind::Supervisord];

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Plimsoll => "plimsoll",
            Self::Pm2 => "pm2",
            Self::Supervisord => "supervisord",
        }
    }
}

/// Where their programs are.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) plimsoll: PathBuf,
    pub(super) testkit: PathBuf,
    pm2: PathBuf,
    supervisor: PathBuf,
    scratch: PathBuf,
}

impl Tools {
    /// Builds ours as they are released, and installs the others.
    pub(super) fn get() -> Result<Self, Failure> {
        let binaries = workspace::build_release()?;
        Ok(Self {
            plimsoll: binaries.plimsoll,
            testkit: binaries.testkit,
            pm2: peers::pm2()?,
            supervisor: peers::supervisor()?,
            scratch: workspace::scratch("bench-up")?,
        })
    }
}

/// One of the three at work. Dropped it is ended by its own command, and whoever is left then by pid.
pub(super) struct Manager<'t> {
    tools: &'t Tools,
    kind: Kind,
    folder: PathBuf,
    child: Option<Child>,
    /// Its process, or ours' two.
    own: Vec<Process>,
}

impl<'t> Manager<'t> {
    /// Prepares it; nothing runs yet, except pm2's daemon, which its users have running.
    pub(super) fn new(tools: &'t Tools, kind: Kind) -> Result<Self, Failure> {
        let folder = tools.scratch.join(kind.name());
        let mut manager = Self { tools, kind, folder, child: None, own: Vec::new() };
        if kind == Kind::Pm2 && manager.folder.join("home/pm2.pid").exists() {
            // A run that was killed left its daemon.
            manager.pm2(&["kill"])?;
        }
        if manager.folder.exists() {
            std::fs::remove_dir_all(&manager.folder).map_err(Failure::on("empty", &manager.folder))?;
        }
        std::fs::create_dir_all(&manager.folder).map_err(Failure::on("make", &manager.folder))?;
        if kind == Kind::Pm2 {
            manager.pm2(&["ping"])?;
            manager.own = vec![manager.pm2_daemon()?];
        }
        Ok(manager)
    }

    /// Starts so many services of this command, and answers when that began. They may not run yet.
    pub(super) fn start(&mut self, services: usize, service: &[String]) -> Result<Instant, Failure> {
        let file = self.write(services, service)?;
        let began = Instant::now();
        match self.kind {
            Kind::Plimsoll => {
                let mut up = self.plimsoll();
                up.args(["up", "-f"]).arg(file).stdout(Stdio::null()).stderr(self.log()?);
                self.child = Some(spawn(&mut up)?);
            }
            Kind::Supervisord => {
                let mut daemon = command(self.tools.supervisor.join("supervisord"));
                daemon.arg("-n").arg("-c").arg(file).stdout(Stdio::null()).stderr(self.log()?);
                self.child = Some(spawn(&mut daemon)?);
            }
            Kind::Pm2 => self.pm2(&["start", &file.display().to_string()])?,
        }
        Ok(began)
    }

    /// Starts so many sleeping services, and waits until all of them run.
    pub(super) fn start_sleepers(&mut self, services: usize) -> Result<(), Failure> {
        let sleep = crate::exec::which("sleep").ok_or_else(|| Failure("there is no sleep".into()))?;
        let began = self.start(services, &[sleep.display().to_string(), "infinity".into()])?;
        loop {
            if self.is_up(services)? {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                return Err(Failure(format!("{}: not all of {services} services run", self.kind.name())));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// So many of its services run their own program.
    fn is_up(&mut self, services: usize) -> Result<bool, Failure> {
        self.find_own()?;
        let is_sleeping = |pid: &i32| {
            let mut buffer = [0; 64];
            procfs::read_of(*pid, "comm", &mut buffer).is_ok_and(|name| name == b"sleep\n")
        };
        // Without services: it has said that it is ready.
        Ok(self.own.len() == self.processes()
            && self.services().iter().filter(|pid| is_sleeping(pid)).count() >= services
            && (services > 0 || self.answers()?))
    }

    fn answers(&self) -> Result<bool, Failure> {
        Ok(self.status_command().status().map_err(|error| Failure(error.to_string()))?.success())
    }

    /// How many processes it consists of.
    fn processes(&self) -> usize {
        if self.kind == Kind::Plimsoll { 2 } else { 1 }
    }

    fn find_own(&mut self) -> Result<(), Failure> {
        let Some(child) = &mut self.child else { return Ok(()) };
        if let Some(status) = child.try_wait().map_err(|error| Failure(error.to_string()))? {
            let log = std::fs::read_to_string(self.folder.join("said")).unwrap_or_default();
            return Err(Failure(format!("{} ended ({status}): {log}", self.kind.name())));
        }
        let main = child.id() as i32;
        if self.own.len() < self.processes() {
            let own = std::iter::once(main).chain(if self.kind == Kind::Plimsoll { children(main) } else { vec![] });
            self.own = own.filter_map(|pid| Process::of(pid).ok()).collect();
        }
        Ok(())
    }

    /// Its own processes, by pid.
    pub(super) fn own(&self) -> Vec<i32> {
        self.own.iter().map(|process| process.pid).collect()
    }

    /// Roots of its services, by pid.
    fn services(&self) -> Vec<i32> {
        self.own.last().map(|last| children(last.pid)).unwrap_or_default()
    }

    /// The command that shows all services, ready to run.
    pub(super) fn status_command(&self) -> Command {
        let mut status = match self.kind {
            Kind::Plimsoll => {
                let mut status = self.plimsoll();
                status.arg("status");
                status
            }
            Kind::Pm2 => {
                let mut list = self.pm2_command();
                list.arg("ls");
                list
            }
            Kind::Supervisord => {
                let mut status = self.supervisorctl();
                status.arg("status");
                status
            }
        };
        status.stdout(Stdio::null()).stderr(Stdio::null());
        status
    }

    /// Ends it and all its services.
    ///
    /// # Errors
    /// When somebody was left; he is killed then.
    pub(super) fn stop(mut self) -> Result<(), Failure> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Failure> {
        let _ = self.find_own();
        let all: Vec<i32> = self.own().into_iter().chain(self.services()).collect();
        let mut left: Vec<Process> = all.into_iter().filter_map(|pid| Process::of(pid).ok()).collect();
        let said = match self.kind {
            Kind::Plimsoll if self.child.is_some() => quietly(self.plimsoll().arg("down")),
            Kind::Supervisord if self.child.is_some() => quietly(self.supervisorctl().arg("shutdown")),
            Kind::Pm2 if !self.own.is_empty() => self.pm2(&["kill"]),
            _ => Ok(()),
        };
        let began = Instant::now();
        let longest = if said.is_ok() { Duration::from_secs(60) } else { Duration::from_secs(2) };
        while !left.is_empty() && began.elapsed() < longest {
            if let Some(child) = &mut self.child {
                let _ = child.try_wait();
            }
            left.retain(|process| process.is_alive());
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(mut child) = self.child.take() {
            if !left.is_empty() {
                let _ = signal::send(child.id() as i32, 15);
                std::thread::sleep(Duration::from_secs(2));
            }
            left.iter().for_each(|process| tree::kill_process(*process));
            if child.try_wait().is_ok_and(|ended| ended.is_none()) {
                let _ = child.kill();
            }
            let _ = child.wait();
        } else {
            left.iter().for_each(|process| tree::kill_process(*process));
        }
        if self.kind == Kind::Plimsoll && !left.is_empty() {
            // Any verb sweeps what a killed one left.
            let _ = self.status_command().status();
        }
        self.own.clear();
        match (left.len(), said) {
            (0, _) => Ok(()),
            (count, Ok(())) => Err(Failure(format!("{} left {count} processes behind", self.kind.name()))),
            (_, Err(why)) => Err(why),
        }
    }

    fn write(&self, services: usize, service: &[String]) -> Result<PathBuf, Failure> {
        let folder = self.folder.display();
        let (name, text) = match self.kind {
            Kind::Plimsoll => {
                let list = serde_json::json!(service);
                let mut text = "services:\n".to_owned();
                for number in 0..services {
                    text.push_str(&format!("  s{number}:\n    command: {list}\n    restart: always\n"));
                }
                if services == 0 {
                    text.push_str(&format!("  s:\n    command: {list}\n    deploy: {{ replicas: 0 }}\n"));
                }
                ("plimsoll.yaml", text)
            }
            Kind::Pm2 => {
                let (program, arguments) = service.split_first().ok_or_else(|| Failure("no command".into()))?;
                let app = |number: usize| {
                    serde_json::json!({
                        "name": format!("s{number}"), "script": program, "args": arguments, "interpreter": "none",
                    })
                };
                let apps: Vec<serde_json::Value> = (0..services).map(app).collect();
                ("services.json", serde_json::json!({ "apps": apps }).to_string())
            }
            Kind::Supervisord => {
                let mut text = format!(
                    "[unix_http_server]\nfile={folder}/socket\n\
                     [supervisord]\nlogfile={folder}/log\npidfile={folder}/pid\nchildlogdir={folder}\nminfds=16384\n\
                     [rpcinterface:supervisor]\n\
                     supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\
                     [supervisorctl]\nserverurl=unix://{folder}/socket\n"
                );
                let line = service.join(" ");
                for number in 0..services {
                    // startsecs=0: it counts as started at once, and so comes back as fast as it can.
                    text.push_str(&format!("[program:s{number}]\ncommand={line}\nautorestart=true\nstartsecs=0\n"));
                }
                ("supervisord.conf", text)
            }
        };
        let file = self.folder.join(name);
        std::fs::File::create(&file)
            .and_then(|mut opened| opened.write_all(text.as_bytes()))
            .map_err(Failure::on("write", &file))?;
        Ok(file)
    }

    fn log(&self) -> Result<std::fs::File, Failure> {
        let file = self.folder.join("said");
        std::fs::File::create(&file).map_err(Failure::on("write", &file))
    }

    fn plimsoll(&self) -> Command {
        let mut plimsoll = command(&self.tools.plimsoll);
        plimsoll.env("PLIMSOLL_STATE_DIR", self.folder.join("state"));
        plimsoll.env("PLIMSOLL_RUNTIME_DIR", self.folder.join("run"));
        plimsoll
    }

    fn supervisorctl(&self) -> Command {
        let mut control = command(self.tools.supervisor.join("supervisorctl"));
        control.arg("-c").arg(self.folder.join("supervisord.conf"));
        control
    }

    fn pm2_command(&self) -> Command {
        let mut pm2 = command(&self.tools.pm2);
        pm2.env("PM2_HOME", self.folder.join("home"));
        pm2
    }

    fn pm2(&self, args: &[&str]) -> Result<(), Failure> {
        quietly(self.pm2_command().args(args))
    }

    fn pm2_daemon(&self) -> Result<Process, Failure> {
        let file = self.folder.join("home/pm2.pid");
        let text = std::fs::read_to_string(&file).map_err(Failure::on("read", &file))?;
        let process = text.trim().parse().ok().and_then(|pid| Process::of(pid).ok());
        process.ok_or_else(|| Failure(format!("pm2's daemon is not there: {text:?}")))
    }
}

impl Drop for Manager<'_> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Children of a process, of all its threads.
fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).into_iter().flatten();
    let threads = threads.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut all = Vec::new();
    for thread in threads {
        let mut text = Vec::new();
        if procfs::read_all_of(pid, &format!("task/{thread}/children"), &mut text).is_ok() {
            all.extend(procfs::parse_children(&text));
        }
    }
    all
}

fn spawn(command: &mut Command) -> Result<Child, Failure> {
    command.spawn().map_err(|error| Failure(format!("cannot start {:?}: {error}", command.get_program())))
}

/// Runs it to its end without its words, which it repeats when it fails.
fn quietly(command: &mut Command) -> Result<(), Failure> {
    let told = format!("{command:?}");
    let output = command.output().map_err(|error| Failure(format!("cannot start {told}: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Failure(format!("{told}: {}: {}", output.status, String::from_utf8_lossy(&said).trim_end())))
}
