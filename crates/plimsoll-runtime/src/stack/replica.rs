//! One running tree of a stack: its group, its root, its output on the way to the log, and how it ends.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use plimsoll_core::history::History;
use plimsoll_core::stack::Instance;
use plimsoll_core::verdict::{Verdict, verdict};
use plimsoll_core::{advice, redact};
use plimsoll_kernel::boundary::Boundary;
use plimsoll_kernel::cgroup::{Found, teardown};
use plimsoll_kernel::clock::{self, Instant};
use plimsoll_kernel::kmsg::Kmsg;
use plimsoll_kernel::procfs::Process;
use plimsoll_kernel::signal::SignalSet;
use plimsoll_kernel::spawn::{Job, Launch, SpawnError};
use plimsoll_kernel::tree::{command_line, members_of_group};
use plimsoll_model::certificate::{Exit, Largest, Memory, SCHEMA, Tree as TreeFacts};
use plimsoll_model::ending::{Decision, Delta, Ending, RootExit};
use plimsoll_model::stack::ServiceSpec;
use plimsoll_model::{Certificate, Limits, Member, RunId, Sample};

use crate::front::host_oom_kills;
use crate::keeper::TAG;

/// Members whose commands go into the certificate.
const LARGEST: usize = 5;

/// Members that are listed at the end.
const LISTED: usize = 64;

/// A tree that runs.
pub(super) struct Replica {
    pub(super) instance: Instance,
    pub(super) id: RunId,
    pub(super) boundary: Boundary,
    pub(super) root: Process,
    pub(super) port: Option<u16>,
    /// Its output; `None` when it has closed it.
    pub(super) output: Option<OwnedFd>,
    /// Tells of kills in its group.
    pub(super) oom_events: Option<OwnedFd>,
    pub(super) on_limit: plimsoll_model::OnLimit,
    command: Vec<String>,
    /// Values that are shown nowhere.
    secrets: Vec<String>,
    limits: Limits,
    started: Instant,
    started_at: jiff::Timestamp,
    history: History,
    kmsg: Option<Kmsg>,
    host_oom_kills: Option<u64>,
    /// Why it is being ended, when that was our decision.
    pub(super) decision: Option<Decision>,
    /// Pids that were seen, the root first.
    pids: Vec<i32>,
}

/// What every start of a stack has in common.
pub(super) struct Ground<'a> {
    /// The budget's group, in which the replicas' are made.
    pub(super) found: &'a Found,
    /// The stack's own id: the tag of everybody in it.
    pub(super) tag: &'a str,
    pub(super) mask: SignalSet,
    /// `/dev/null`, for standard input.
    pub(super) null: BorrowedFd<'a>,
    /// The registry's lock, which a child on its way to exec must not hold.
    pub(super) lock: BorrowedFd<'a>,
}

/// Fills in `${PORT}`, the one variable that the file leaves open.
pub(super) fn with_port(text: &str, port: Option<u16>) -> String {
    port.map_or_else(|| text.to_owned(), |port| text.replace("${PORT}", &port.to_string()))
}

/// The environment of a replica, or of what runs for it.
pub(super) fn environment(
    spec: &ServiceSpec,
    tag: &str,
    instance: &Instance,
    port: Option<u16>,
    more: &[(&str, String)],
) -> Vec<(OsString, OsString)> {
    let mut own: Vec<(OsString, OsString)> =
        spec.environment.iter().map(|(key, value)| (key.into(), with_port(value, port).into())).collect();
    let mut set = |key: &str, value: String| {
        own.retain(|(known, _)| known != key);
        own.push((key.into(), value.into()));
    };
    if let Some(port) = port
        && !spec.environment.contains_key("PORT")
    {
        set("PORT", port.to_string());
    }
    set("PLIMSOLL_SERVICE", instance.service.to_string());
    set("PLIMSOLL_REPLICA", instance.replica.to_string());
    more.iter().for_each(|(key, value)| set(key, value.clone()));
    set(TAG, tag.to_owned());
    let mut all: Vec<_> = std::env::vars_os().filter(|(key, _)| !own.iter().any(|(ours, _)| ours == key)).collect();
    all.append(&mut own);
    all
}

impl Replica {
    /// Makes its group, puts the limits in force and starts its root.
    ///
    /// # Errors
    /// In words: what could not be done. Nothing is left behind then.
    pub(super) fn start(
        ground: &Ground<'_>,
        instance: Instance,
        spec: &ServiceSpec,
        limits: Limits,
        port: Option<u16>,
        stage_file: &Path,
    ) -> Result<Self, String> {
        let started_at = clock::wall();
        let mut random = [0; 4];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let id = RunId::new(started_at.as_millisecond().unsigned_abs(), u32::from_ne_bytes(random));
        let boundary =
            Boundary::make(ground.found, id.as_str(), &limits, spec.on_limit).map_err(|error| error.to_string())?;
        let started = Self::launch(ground, &boundary, &instance, spec, &limits, port, stage_file);
        let (pid, output) = match started {
            Ok(started) => started,
            Err(why) => {
                teardown::kill_until_empty(&boundary.directories(), || {});
                let _ = boundary.remove();
                return Err(why);
            }
        };
        let root = Process::of(pid).unwrap_or(Process { pid, start_ticks: 0 });
        let command: Vec<String> = spec.command.iter().map(|word| with_port(word, port)).collect();
        let secrets = redact::secret_values(spec.environment.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        Ok(Self {
            oom_events: boundary.oom_events().ok().flatten(),
            command: redact::redact_command(&command, &secrets),
            secrets,
            on_limit: spec.on_limit,
            instance,
            id,
            boundary,
            root,
            port,
            output: Some(output),
            limits,
            started: Instant::now(),
            started_at,
            history: History::new(),
            kmsg: Kmsg::open_at_end(),
            host_oom_kills: host_oom_kills(),
            decision: None,
            pids: vec![pid],
        })
    }

    fn launch(
        ground: &Ground<'_>,
        boundary: &Boundary,
        instance: &Instance,
        spec: &ServiceSpec,
        limits: &Limits,
        port: Option<u16>,
        stage_file: &Path,
    ) -> Result<(i32, OwnedFd), String> {
        let (output, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| e.to_string())?;
        rustix::io::ioctl_fionbio(&output, true).map_err(|error| error.to_string())?;
        let command: Vec<OsString> = spec.command.iter().map(|word| with_port(word, port).into()).collect();
        let stage = [("PLIMSOLL_STAGE_FILE", stage_file.display().to_string())];
        let (join, into) = boundary.entrance();
        let launch = Launch {
            command: &command,
            env: environment(spec, ground.tag, instance, port, &stage),
            workdir: Some(&spec.working_dir),
            stdio: [Some(ground.null), Some(theirs.as_fd()), Some(theirs.as_fd())],
            join,
            into,
            lock: Some(ground.lock),
            oom_score_adj: limits.oom_score_adj,
            job: Job::Own,
            mask: ground.mask,
        };
        let pid = launch.start().map_err(|error| match error {
            SpawnError::Step { step, source } => format!("{}: {step}: {source}", spec.command[0]),
            other => other.to_string(),
        })?;
        Ok((pid, output))
    }

    /// What it holds and has used, for a sample; `None` when the kernel does not tell (any more).
    pub(super) fn sample(&mut self) -> Option<plimsoll_core::stack::input::TreeSample> {
        let memory_bytes = self.boundary.usage()?;
        let processes = u32::try_from(self.boundary.processes().unwrap_or(0)).unwrap_or(u32::MAX);
        let at_ms = self.started.elapsed().as_millis() as u64;
        self.history.push(Sample { at_ms, memory_bytes, processes });
        let cpu = self.boundary.cpu().unwrap_or_default();
        Some(plimsoll_core::stack::input::TreeSample {
            instance: self.instance.clone(),
            memory_bytes,
            cpu: cpu.used,
            periods: cpu.periods,
            throttled: cpu.throttled,
            processes,
            oom_kills: self.boundary.oom_kills().unwrap_or(0),
        })
    }

    /// Its members now, largest first.
    pub(super) fn members(&self) -> Vec<Member> {
        let pids = self.boundary.members();
        members_of_group(&pids[..pids.len().min(LISTED)], self.root.pid)
    }

    /// Ends all of it, proves that, and certifies. `reap` waits for the dead that are our children, and answers how the
    /// root ended when it is among them.
    pub(super) fn end(mut self, exit: RootExit, mut reap: impl FnMut() -> Option<RootExit>) -> Ended {
        let mut exit = exit;
        let members = self.members();
        let bytes_freed = self.boundary.usage().unwrap_or(0);
        let largest: Vec<Largest> = members
            .iter()
            .take(LARGEST)
            .map(|member| Largest {
                pid: member.pid,
                command: command_line(member.pid).map_or_else(
                    || format!("[{}]", member.name),
                    |line| redact::redact_command(&line, &self.secrets).join(" "),
                ),
                memory_bytes: member.memory_bytes,
                depth: member.depth,
            })
            .collect();
        self.pids.extend(members.iter().map(|member| member.pid));
        let ended_at = clock::wall();
        let runtime = self.started.elapsed();
        let survivors = teardown::kill_until_empty(&self.boundary.directories(), || exit = reap().unwrap_or(exit));
        let own = self.boundary.counters().ok().flatten();
        let host = self.host_oom_kills.zip(host_oom_kills()).map(|(before, after)| Delta { before, after });
        let kmsg = self.kmsg.as_mut().map(Kmsg::oom_kills);
        let ending = Ending {
            exit,
            decision: self.decision.clone(),
            victims: Vec::new(),
            passed_on: None,
            interpreter: None,
            own,
            ancestors: self.boundary.ancestors(),
            unreadable: if kmsg.is_none() { vec!["/dev/kmsg".to_owned()] } else { Vec::new() },
            kmsg,
            host_oom_kill: host,
            pids: self.pids.clone(),
        };
        let judged = verdict(&ending);
        let peak_processes = self.boundary.peak_processes();
        let certificate =
            self.certificate(&ending, &judged, ended_at, runtime, largest, peak_processes, survivors.len());
        let removed = self.boundary.remove();
        Ended {
            oom_kills: judged.killed_inside,
            bytes_freed,
            certificate,
            trouble: removed.err().map(|error| error.to_string()),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "each is gathered at its own moment of the end")]
    fn certificate(
        &self,
        ending: &Ending,
        judged: &Verdict,
        ended_at: jiff::Timestamp,
        runtime: Duration,
        largest: Vec<Largest>,
        peak_processes: Option<u64>,
        survivors: usize,
    ) -> Certificate {
        let peak = ending.own.as_ref().and_then(|own| own.peak).unwrap_or(0).max(self.history.peak_bytes());
        let (code, signal) = match ending.exit {
            RootExit::Code(code) => (Some(code), None),
            RootExit::Signal(signal) => (None, Some(signal)),
            RootExit::NotStarted { .. } | RootExit::Unknown => (None, None),
        };
        let seen = u64::from(self.history.peak_processes());
        let mut certificate = Certificate {
            schema: SCHEMA.to_owned(),
            id: self.id,
            name: self.instance.service.to_string(),
            command: self.command.clone(),
            boundary: self.boundary.kind(),
            started_at: self.started_at,
            ended_at,
            runtime_ms: runtime.as_millis() as u64,
            exit: Exit { code, signal },
            cause: judged.cause,
            confidence: judged.confidence,
            evidence: judged.evidence.clone(),
            memory: Memory {
                limit_bytes: self.limits.memory,
                peak_bytes: peak,
                swap_limit_bytes: self
                    .limits
                    .memory_swap
                    .zip(self.limits.memory)
                    .map(|(all, ram)| all.saturating_sub(ram)),
                growth_bytes_per_s: self.history.growth(),
                largest,
                last_minute: self.history.last_minute(),
            },
            tree: TreeFacts {
                peak_processes: u32::try_from(peak_processes.unwrap_or(0).max(seen)).unwrap_or(u32::MAX),
                killed_inside: judged.killed_inside,
                survivors: u32::try_from(survivors).unwrap_or(u32::MAX),
            },
            advice: String::new(),
        };
        certificate.advice = advice::advice(&certificate, ending);
        certificate
    }
}

/// A tree that is gone.
pub(super) struct Ended {
    pub(super) certificate: Certificate,
    pub(super) bytes_freed: u64,
    pub(super) oom_kills: u64,
    pub(super) trouble: Option<String>,
}
