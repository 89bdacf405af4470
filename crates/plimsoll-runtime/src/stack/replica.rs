//! One running tree of a stack: its group, its root, its output on the way to the log, and how it ends.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use plimsoll_core::history::History;
use plimsoll_core::redact;
use plimsoll_core::stack::Instance;
use plimsoll_core::stack::input::TreeSample;
use plimsoll_core::thrash::Thrash;
use plimsoll_core::verdict::verdict;
use plimsoll_core::watch::victim;
use plimsoll_kernel::boundary::Boundary;
use plimsoll_kernel::cgroup::{Found, teardown};
use plimsoll_kernel::clock::{self, Instant};
use plimsoll_kernel::kmsg::Kmsg;
use plimsoll_kernel::landlock::Ruleset;
use plimsoll_kernel::procfs::Process;
use plimsoll_kernel::signal::{self, SignalSet};
use plimsoll_kernel::spawn::{Job, Launch, SpawnError};
use plimsoll_kernel::tree::{kill_process, members_of_group, raise_scores};
use plimsoll_model::ending::{Decision, Delta, Ending, RootExit, Victim};
use plimsoll_model::stack::ServiceSpec;
use plimsoll_model::{Cause, Certificate, Evidence, Limits, Member, OnLimit, RunId, Sample};

use super::kept::{self, Kept};
use super::seat::Seat;
use crate::certify::{Facts, certify};
use crate::front::host_oom_kills;
use crate::keeper::TAG;
use crate::roll::Roll;

/// Members that are listed at a time.
const LISTED: usize = 64;

/// Far from its line nobody is listed; closer, at most so often.
const LIST_EVERY: Duration = Duration::from_millis(20);

/// At its line it is asked how it fares so often.
const STRAIN_EVERY: Duration = Duration::from_millis(500);

/// Whoever cannot be killed for so long (a dead disk) counts as surviving.
const PATIENCE: Duration = Duration::from_secs(30);

/// A tree that runs.
pub(super) struct Replica {
    pub(super) instance: Instance,
    pub(super) id: RunId,
    pub(super) boundary: Boundary,
    pub(super) root: Process,
    /// Where there is no group: the run that keeps it.
    kept: Option<Kept>,
    pub(super) port: Option<u16>,
    /// Its output; `None` when it has closed it.
    pub(super) output: Option<OwnedFd>,
    /// A session's standard input and output, until they are handed on.
    pub(super) pipes: Option<(OwnedFd, OwnedFd)>,
    /// Where a session lives.
    pub(super) seat: Option<Seat>,
    /// Tells of kills in its group.
    pub(super) oom_events: Option<OwnedFd>,
    pub(super) on_limit: OnLimit,
    command: Vec<String>,
    /// Values that are shown nowhere.
    secrets: Vec<String>,
    limits: Limits,
    started: Instant,
    started_at: jiff::Timestamp,
    history: History,
    kmsg: Option<Kmsg>,
    host_oom_kills: Option<u64>,
    /// Why it is being ended, when that was our decision,
    pub(super) decision: Option<Decision>,
    /// and what it held when that was decided, bytes.
    held: u64,
    roll: Roll,
    /// When it was last listed, and last asked how it fares, since its start.
    listed: Duration,
    strained: Duration,
    thrash: Thrash,
    /// Members that we killed for memory while it went on (`on_limit: largest`).
    victims: Vec<Victim>,
    ending: Option<Begun>,
}

/// An end that has begun.
struct Begun {
    exit: RootExit,
    at: jiff::Timestamp,
    since: Instant,
    runtime: Duration,
    bytes_freed: u64,
    /// Who was left when it was last killed.
    survivors: usize,
}

/// What a look at a tree found.
pub(super) struct Looked {
    pub(super) sample: TreeSample,
    /// It sits at its line and gets nowhere: the line, bytes.
    pub(super) stuck_at: Option<u64>,
}

/// A process that runs, and our ends of what it says and hears.
struct Launched {
    child: i32,
    output: OwnedFd,
    pipes: Option<(OwnedFd, OwnedFd)>,
}

/// A step of a start that could not be taken.
struct Step {
    why: String,
    /// What the kernel answered to the child, if it came so far.
    errno: Option<i32>,
}

/// A tree that never ran.
pub(super) struct NotStarted {
    /// In words.
    pub(super) why: String,
    pub(super) certificate: Certificate,
}

impl NotStarted {
    fn certified(
        step: Step,
        id: RunId,
        name: &str,
        command: &[String],
        boundary: plimsoll_model::Boundary,
        at: jiff::Timestamp,
        limits: &Limits,
    ) -> Self {
        let ending = Ending {
            exit: RootExit::NotStarted { errno: step.errno.unwrap_or(0) },
            decision: None,
            victims: Vec::new(),
            passed_on: None,
            interpreter: None,
            own: None,
            ancestors: Vec::new(),
            kmsg: None,
            host_oom_kill: None,
            pids: Vec::new(),
            unreadable: Vec::new(),
        };
        let mut judged = verdict(&ending);
        judged.evidence.insert(0, Evidence { source: "plimsoll".to_owned(), detail: step.why.clone() });
        let facts = Facts {
            id,
            name,
            command,
            boundary,
            started_at: at,
            ended_at: at,
            runtime: Duration::ZERO,
            limit_bytes: limits.memory,
            swap_limit_bytes: limits.memory_swap.zip(limits.memory).map(|(all, ram)| all.saturating_sub(ram)),
            largest: &[],
            history: &History::new(),
            peak_processes: None,
            survivors: 0,
        };
        Self { why: step.why, certificate: certify(facts, &ending, &judged) }
    }
}

/// What every start of a stack has in common.
pub(super) struct Ground<'a> {
    /// The budget's group, in which the replicas' are made.
    pub(super) found: &'a Found,
    /// The stack's own id: the tag of everybody in it.
    pub(super) tag: &'a str,
    pub(super) mask: SignalSet,
    /// Where runs that keep replicas report.
    pub(super) reports: &'a Path,
    /// Our state and runtime directories: those of runs that keep replicas as well, and no session may look at them.
    pub(super) folders: [&'a Path; 2],
    /// `/dev/null`, for standard input.
    pub(super) null: BorrowedFd<'a>,
    /// The registry's lock, which a child on its way to exec must not hold.
    pub(super) lock: BorrowedFd<'a>,
}

/// Fills in `${PORT}`, the one variable that the file leaves open.
pub(super) fn with_port(text: &str, port: Option<u16>) -> String {
    port.map_or_else(|| text.to_owned(), |port| text.replace("${PORT}", &port.to_string()))
}

/// The environment of a replica, or of what runs for it: what is `around`, and over it what is its own.
pub(super) fn environment(
    spec: &ServiceSpec,
    tag: &str,
    instance: &Instance,
    port: Option<u16>,
    more: &[(&str, String)],
    around: Vec<(OsString, OsString)>,
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
    let mut all = around;
    all.retain(|(key, _)| !own.iter().any(|(ours, _)| ours == key));
    all.append(&mut own);
    all
}

impl Replica {
    /// Makes its group, puts the limits in force and starts its root.
    ///
    /// # Errors
    /// What could not be done, and the certificate of that. Nothing is left behind then.
    pub(super) fn start(
        ground: &Ground<'_>,
        instance: Instance,
        spec: &ServiceSpec,
        limits: Limits,
        port: Option<u16>,
        stage_file: &Path,
        seat: Option<Seat>,
    ) -> Result<Self, Box<NotStarted>> {
        let started_at = clock::wall();
        let mut random = [0; 4];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let id = RunId::new(started_at.as_millisecond().unsigned_abs(), u32::from_ne_bytes(random));
        let command: Vec<String> = spec.command.iter().map(|word| with_port(word, port)).collect();
        let secrets = redact::secret_values(spec.environment.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let command = redact::redact_command(&command, &secrets);
        let not_started = |step: Step| {
            let (name, boundary) = (&instance.service, ground.found.boundary);
            Box::new(NotStarted::certified(step, id, name, &command, boundary, started_at, &limits))
        };
        let boundary = Boundary::make(ground.found, id.as_str(), &limits, spec.on_limit)
            .map_err(|error| not_started(Step { why: error.to_string(), errno: None }))?;
        let report = matches!(boundary, Boundary::Watchdog).then(|| ground.reports.join(format!("{id}.json")));
        let started = Self::launch(
            ground,
            &boundary,
            &instance,
            spec,
            &limits,
            port,
            stage_file,
            report.as_deref(),
            seat.as_ref(),
        );
        let Launched { child, output, pipes } = match started {
            Ok(started) => started,
            Err(step) => {
                teardown::kill_until_empty(&boundary.directories(), || {});
                let _ = boundary.remove();
                seat.iter().for_each(Seat::remove);
                return Err(not_started(step));
            }
        };
        let (kept, root) = match report {
            Some(report) => {
                let (kept, root) = Kept::find(child, report);
                (Some(kept), root)
            }
            None => (None, Process::of(child).ok()),
        };
        let pid = root.map_or(child, |root| root.pid);
        let root = root.unwrap_or(Process { pid, start_ticks: 0 });
        let mut roll = Roll::default();
        roll.note_root(pid, command.join(" "));
        Ok(Self {
            oom_events: boundary.oom_events().ok().flatten(),
            command,
            secrets,
            on_limit: spec.on_limit,
            instance,
            id,
            boundary,
            root,
            kept,
            port,
            output: Some(output),
            pipes,
            seat,
            limits,
            started: Instant::now(),
            started_at,
            history: History::new(),
            kmsg: Kmsg::open_at_end(),
            host_oom_kills: host_oom_kills(),
            decision: None,
            held: 0,
            roll,
            listed: Duration::ZERO,
            strained: Duration::ZERO,
            thrash: Thrash::default(),
            victims: Vec::new(),
            ending: None,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "each is decided elsewhere, and all of them once")]
    fn launch(
        ground: &Ground<'_>,
        boundary: &Boundary,
        instance: &Instance,
        spec: &ServiceSpec,
        limits: &Limits,
        port: Option<u16>,
        stage_file: &Path,
        report: Option<&Path>,
        seat: Option<&Seat>,
    ) -> Result<Launched, Step> {
        let pipe = || {
            let (output, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(&output, true)?;
            Ok::<_, rustix::io::Errno>((output, theirs))
        };
        let no_pipe = |error| Step { why: format!("no pipe for its output: {error}"), errno: None };
        let (output, theirs) = pipe().map_err(no_pipe)?;
        // A session's input and output are spoken over; what it has to say to people comes on its standard error.
        let spoken = match seat {
            Some(_) => {
                let (stdin, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(no_pipe)?;
                rustix::io::ioctl_fionbio(&ours, true).map_err(no_pipe)?;
                let (answers, stdout) = pipe().map_err(no_pipe)?;
                Some(((stdin, stdout), (ours, answers)))
            }
            None => None,
        };
        let word = |word: &String| match seat {
            Some(seat) => seat.word(word, &spec.working_dir),
            None => with_port(word, port).into(),
        };
        let mut command: Vec<OsString> = spec.command.iter().map(word).collect();
        let mut env = match seat {
            Some(seat) => environment(spec, ground.tag, instance, port, &[], seat.environment()),
            None => environment(spec, ground.tag, instance, port, &[], super::notify::inherited().collect()),
        };
        let workdir = seat.and_then(Seat::workdir).unwrap_or_else(|| spec.working_dir.clone());
        let bounds = seat.and_then(|seat| seat.bounds(spec, ground.folders, stage_file));
        let mut ruleset = None;
        if let Some(report) = report {
            let bounds = bounds.as_ref();
            command = kept::command(&command, ground.folders, &instance.service, limits, spec.on_limit, report, bounds);
            // The run has a tag of its own, and ends its tree itself when it has lost us.
            env.retain(|(key, _)| key != TAG);
        } else if let Some(bounds) = &bounds {
            ruleset = Ruleset::of(bounds).map_err(|error| Step { why: error.to_string(), errno: None })?;
        }
        env.push(("PLIMSOLL_STAGE_FILE".into(), stage_file.into()));
        let (join, into) = boundary.entrance();
        let launch = Launch {
            command: &command,
            env,
            workdir: Some(&workdir),
            stdio: match &spoken {
                Some(((stdin, stdout), _)) => [Some(stdin.as_fd()), Some(stdout.as_fd()), Some(theirs.as_fd())],
                None => [Some(ground.null), Some(theirs.as_fd()), Some(theirs.as_fd())],
            },
            join,
            into,
            lock: Some(ground.lock),
            oom_score_adj: if report.is_some() { None } else { limits.oom_score_adj },
            user: seat.and_then(|seat| seat.user),
            bounds: ruleset.as_ref(),
            job: Job::Own,
            mask: ground.mask,
        };
        let pid = launch.start().map_err(|error| match error {
            SpawnError::Step { step, source } => {
                Step { why: format!("{}: {step}: {source}", spec.command[0]), errno: source.raw_os_error() }
            }
            other => Step { why: other.to_string(), errno: None },
        })?;
        Ok(Launched { child: pid, output, pipes: spoken.map(|(_, ours)| ours) })
    }

    /// What it holds and has used, and whether it gets anywhere; `None` when the kernel does not tell (any more).
    pub(super) fn look(&mut self) -> Option<Looked> {
        let (memory_bytes, processes, cpu) = match &mut self.kept {
            Some(kept) => kept.look(),
            None => {
                let processes = u32::try_from(self.boundary.processes().unwrap_or(0)).unwrap_or(u32::MAX);
                (self.boundary.usage()?, processes, self.boundary.cpu().unwrap_or_default())
            }
        };
        let at = self.started.elapsed();
        self.history.push(Sample { at_ms: at.as_millis() as u64, memory_bytes, processes });
        let line = self.limits.memory.unwrap_or(u64::MAX);
        if memory_bytes >= line / 2 && at >= self.listed + LIST_EVERY {
            self.listed = at;
            let members = self.members();
            if !members.is_empty() {
                if self.on_limit == OnLimit::Largest && self.kept.is_none() {
                    raise_scores(members.iter().map(|member| member.pid), self.root.pid);
                }
                self.roll.call(members, &self.secrets);
            }
        }
        let sample = TreeSample {
            instance: self.instance.clone(),
            memory_bytes,
            cpu: cpu.used,
            periods: cpu.periods,
            throttled: cpu.throttled,
            processes,
            oom_kills: self.oom_kills(),
        };
        Some(Looked { sample, stuck_at: self.is_stuck(at, memory_bytes) })
    }

    /// Times that it lost somebody for memory.
    pub(super) fn oom_kills(&self) -> u64 {
        times(self.on_limit, self.boundary.oom_kills().unwrap_or(0))
    }

    /// Whether it sits at the line that slows it down (`memory.high`, or else its limit) and gets nowhere. With
    /// `on_limit: largest` the largest below the root goes then, and it is given time.
    fn is_stuck(&mut self, at: Duration, usage: u64) -> Option<u64> {
        let line = self.limits.memory_high.or(self.limits.memory)?;
        if at < self.strained + STRAIN_EVERY {
            return None;
        }
        self.strained = at;
        let may_swap = self.limits.memory_swap.zip(self.limits.memory).is_none_or(|(all, ram)| all > ram);
        let strain = if Thrash::is_close(usage, line) { self.boundary.strain() } else { None };
        if !self.thrash.look(at, line, may_swap, strain) {
            return None;
        }
        let members = self.members();
        let chosen = victim(members.iter().map(|member| (member.pid, member.depth, member.memory_bytes)));
        let chosen = chosen.filter(|_| self.on_limit == OnLimit::Largest);
        let Some(member) = chosen.and_then(|pid| members.iter().find(|member| member.pid == pid)) else {
            return Some(line);
        };
        kill_process(Process { pid: member.pid, start_ticks: member.start_ticks });
        self.victims.push(Victim {
            pid: member.pid,
            name: member.name.clone(),
            memory_bytes: member.memory_bytes,
            reason: Decision::MemoryLimit { usage, limit: line },
        });
        None
    }

    /// Its members now, largest first.
    pub(super) fn members(&self) -> Vec<Member> {
        if let Some(kept) = &self.kept {
            return kept.members();
        }
        let pids = self.boundary.members();
        members_of_group(&pids[..pids.len().min(LISTED)], self.root.pid)
    }

    /// The process that we wait for: the root, or the run that keeps it.
    pub(super) fn child(&self) -> i32 {
        self.kept.as_ref().map_or(self.root.pid, |kept| kept.front)
    }

    /// Notes why it is ended, the first time, and what it holds now: by its end it may have given much of that back.
    pub(super) fn decide(&mut self, decision: Decision) {
        if self.decision.is_none() {
            self.decision = Some(decision);
            self.held = self.usage();
        }
    }

    /// What it holds, or held when that could be read last, bytes.
    fn usage(&self) -> u64 {
        let last = || self.history.last_minute().last().map_or(0, |sample| sample.memory_bytes);
        self.boundary.usage().unwrap_or_else(last)
    }

    /// Asks its root to end.
    pub(super) fn ask_to_end(&self, number: i32) {
        match &self.kept {
            Some(kept) => kept.signal(number),
            None => {
                let _ = signal::send(self.root.pid, number);
                let _ = signal::send(self.root.pid, rustix::process::Signal::CONT.as_raw());
            }
        }
    }

    /// Begins its end: gathers what can only be known before. Everything is to be killed then ([`Replica::kill`]).
    pub(super) fn begin_end(&mut self, exit: RootExit) {
        if self.ending.is_some() {
            return;
        }
        if let Some(kept) = &mut self.kept
            && exit != RootExit::Unknown
        {
            kept.front_ended();
        }
        let members = self.members();
        if !members.is_empty() {
            self.roll.call(members, &self.secrets);
        }
        self.ending = Some(Begun {
            exit,
            at: clock::wall(),
            since: Instant::now(),
            runtime: self.started.elapsed(),
            bytes_freed: self.usage().max(self.held),
            survivors: 0,
        });
    }

    /// Kills what is left, for so long at most. `reap` waits for the dead that are our children, and answers how the root
    /// ended when it is among them. Answers whether nothing is left, or nothing more can be done.
    pub(super) fn kill(&mut self, patience: Duration, mut reap: impl FnMut() -> Option<RootExit>) -> bool {
        let mut exit = None;
        if let Some(kept) = &mut self.kept {
            let gone = kept.kill(patience, || {
                exit = reap().or(exit);
                exit.is_some()
            });
            let Some(begun) = &mut self.ending else { return true };
            begun.exit = exit.unwrap_or(begun.exit);
            return gone || begun.since.elapsed() > PATIENCE;
        }
        let left = teardown::kill_for(&self.boundary.directories(), patience, || exit = reap().or(exit));
        let Some(begun) = &mut self.ending else { return true };
        begun.exit = exit.unwrap_or(begun.exit);
        begun.survivors = left.len();
        left.is_empty() || begun.since.elapsed() > PATIENCE
    }

    /// Its root's end came while it was being killed.
    pub(super) fn root_ended(&mut self, exit: RootExit) {
        if let Some(kept) = &mut self.kept {
            kept.front_ended();
        }
        if let Some(begun) = &mut self.ending {
            begun.exit = exit;
        }
    }

    /// Judges and certifies its end. Its group is still to be removed, for which nobody has to wait.
    pub(super) fn finish(mut self) -> Option<Ended> {
        let mut begun = self.ending.take()?;
        if let Some(certificate) = self.kept.as_ref().and_then(Kept::certificate) {
            if self.decision.is_none() || certificate.cause == Cause::MemoryLimit && self.is_to_be_replaced() {
                return Some(self.ended_as_kept(certificate, begun.bytes_freed));
            }
            // Only we know why; how its root ended, the keeper does.
            begun.exit = match (certificate.exit.code, certificate.exit.signal) {
                (Some(code), _) => RootExit::Code(code),
                (None, Some(number)) => RootExit::Signal(number),
                (None, None) => RootExit::Unknown,
            };
        }
        let own = self.boundary.counters().ok().flatten();
        let host = self.host_oom_kills.zip(host_oom_kills()).map(|(before, after)| Delta { before, after });
        let kmsg = self.kmsg.as_mut().map(Kmsg::oom_kills);
        let ending = Ending {
            exit: begun.exit,
            decision: self.decision.clone(),
            victims: std::mem::take(&mut self.victims),
            passed_on: None,
            interpreter: None,
            own,
            ancestors: self.boundary.ancestors(),
            unreadable: if kmsg.is_none() { vec!["/dev/kmsg".to_owned()] } else { Vec::new() },
            kmsg,
            host_oom_kill: host,
            pids: self.roll.pids.clone(),
        };
        let mut judged = verdict(&ending);
        let is_undecided = ending.decision.is_none() || self.is_to_be_replaced();
        if self.on_limit == OnLimit::Tree && judged.killed_inside > 0 && is_undecided {
            // At the line everything goes, also a root that saw its child die and was quicker than we.
            let killed = RootExit::Signal(rustix::process::Signal::KILL.as_raw());
            judged = verdict(&Ending { exit: killed, decision: None, ..ending.clone() });
        }
        if judged.killed_inside > 0 && is_undecided {
            self.roll.bring_back_the_lost();
        }
        let facts = Facts {
            id: self.id,
            name: &self.instance.service,
            command: &self.command,
            boundary: self.boundary.kind(),
            started_at: self.started_at,
            ended_at: begun.at,
            runtime: begun.runtime,
            limit_bytes: self.limits.memory,
            swap_limit_bytes: self.limits.memory_swap.zip(self.limits.memory).map(|(all, ram)| all.saturating_sub(ram)),
            largest: &self.roll.largest,
            history: &self.history,
            peak_processes: self.boundary.peak_processes(),
            survivors: begun.survivors,
        };
        let certificate = certify(facts, &ending, &judged);
        Some(Ended {
            oom_kills: times(self.on_limit, judged.killed_inside),
            bytes_freed: begun.bytes_freed,
            certificate,
            group: self.boundary,
        })
    }
}

impl Replica {
    /// A session is to be replaced also because its output closed: its line may have been why, and is heard of later.
    fn is_to_be_replaced(&self) -> bool {
        matches!(self.decision, Some(Decision::Recycled(_)))
    }

    /// The keeper's certificate is ours.
    fn ended_as_kept(self, certificate: Certificate, bytes_freed: u64) -> Ended {
        let own_kill = certificate.cause == Cause::MemoryLimit && certificate.tree.killed_inside == 0;
        let oom_kills = times(self.on_limit, certificate.tree.killed_inside + u64::from(own_kill));
        Ended { certificate, bytes_freed, oom_kills, group: self.boundary }
    }
}

/// How often a tree lost somebody for memory, of which so many processes were killed. Where everything goes at the line
/// that is once, however many there were: the kernel counts each, and whoever was quicker than we to be taken next.
fn times(on_limit: OnLimit, killed: u64) -> u64 {
    match on_limit {
        OnLimit::Tree => killed.min(1),
        OnLimit::Largest => killed,
    }
}

/// A tree that is gone.
pub(super) struct Ended {
    pub(super) certificate: Certificate,
    pub(super) bytes_freed: u64,
    pub(super) oom_kills: u64,
    /// Empty, and to be removed.
    pub(super) group: Boundary,
}
