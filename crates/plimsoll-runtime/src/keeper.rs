//! The process that keeps one tree: starts its root, watches, judges, kills the rest, writes the certificate.
//!
//! # Theory of operation
//! A single thread waits in `poll` for: the front (a signal to pass on, or its death), a child's end, the kernel's OOM
//! notice, and the next thing that is due (a look at memory, a time limit, the end of the grace after SIGTERM). The
//! first reason to end the tree is kept as the decision; then evidence is gathered, everything is killed until nothing
//! is left, the verdict is drawn, the groups go, and the certificate is stored. Ending happens in one place
//! ([`Keeper::finish`]) whatever the reason, also when the front inherits a tree whose keeper was killed.

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use plimsoll_core::history::History;
use plimsoll_core::thrash::Thrash;
use plimsoll_core::verdict::verdict;
use plimsoll_core::watch::{Look, Watch, victim};
use plimsoll_kernel::boundary::Boundary;
use plimsoll_kernel::busy::{BusyGauge, BusyMark};
use plimsoll_kernel::cgroup::probe::Surrounding;
use plimsoll_kernel::cgroup::{surroundings, teardown};
use plimsoll_kernel::clock::{self, Instant};
use plimsoll_kernel::landlock::Ruleset;
use plimsoll_kernel::procfs::Process;
use plimsoll_kernel::pty::is_in_foreground;
use plimsoll_kernel::signal::{self, SignalFd, SignalSet};
use plimsoll_kernel::spawn::{self, Job, Launch, SpawnError, Step, Wait};
use plimsoll_kernel::tree::{Tree, members_of_group, name_of, raise_scores, tagged};
use plimsoll_model::ending::{Decision, Delta, Ending, PassedOn, RootExit, Victim};
use plimsoll_model::{Cause, Certificate, Member, OnLimit, Sample};
use plimsoll_store::ProcessRef;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::certify::{Facts, certify};
use crate::channel::{End, Message};
use crate::front::{Prepared, host_oom_kills, swap_limit, unmake};
use crate::log::LogReport;
use crate::relay::{Ends, Relay};
use crate::roll::Roll;

/// How often a tree is looked at for its history when no line asks for more.
const HISTORY_EVERY: Duration = Duration::from_secs(1);

/// Never two looks closer than this.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);

/// Where a group holds the line, looks only gather evidence and need not be as close.
const SHORTEST_GROUP_LOOK: Duration = Duration::from_millis(5);

/// The registry learns of new members so often.
const NOTE_EVERY: Duration = Duration::from_millis(100);

/// And no more than this part of the time is spent on it, or on listing: one in so many.
const NOTE_COST: u32 = 20;

/// Members are listed for the certificate at most so often: who is large changes slowly, and looks are many.
const LIST_EVERY: Duration = Duration::from_millis(10);

/// Members of a group far from its line are listed so often.
const LIST_AT_LEISURE: Duration = Duration::from_secs(5);

/// A group at its line is asked how it fares so often.
const STRAIN_EVERY: Duration = Duration::from_millis(500);

/// Members that are still listed anew between the decision to end them and the kill.
const LISTED_AT_THE_END: usize = 64;

/// Far from the line members are measured at most so often,
const MEASURE_EVERY: Duration = Duration::from_secs(1);

/// and for no more than this part of the time: one in so many.
const MEASURE_COST: u32 = 1000;

/// A measurement walks at most so many bytes of mappings, so that it does not itself take too long.
const MEASURE_AT_MOST: u64 = 1 << 30;

/// The variable by which a tree's members can be told when all else is lost.
pub const TAG: &str = "PLIMSOLL_ID";

/// Keeps one tree.
pub(crate) struct Keeper<'a> {
    prepared: Prepared<'a>,
    /// `None` when the front is the heir of a keeper that was killed.
    front: Option<End>,
    /// Copying of the tree's streams, when an option needs them seen.
    relay: Option<Relay>,
    tree: Tree,
    history: History,
    started: Instant,
    root: Option<Process>,
    /// What the program is to be run by, when that is not there.
    interpreter: Option<String>,
    roll: Roll,
    surrounding: Option<Around>,
    busy: Option<BusyGauge>,
    /// When the members were last read.
    read: Option<BusyMark>,
    /// Members that we killed for memory while the tree went on (`--on-limit largest`).
    victims: Vec<Victim>,
    /// The last signal that was passed on to the root.
    passed_on: Option<PassedOn>,
    /// When the members are to be listed again, since the start.
    list_next: Duration,
    /// When the members may be measured again though the line is far, since the start.
    measure_next: Duration,
    thrash: Thrash,
    /// When the group was last asked how it fares, since the start.
    strained: Duration,
}

/// The container around us, whose limit ends us all.
struct Around {
    group: Surrounding,
    gauge: surroundings::Gauges,
    before: Option<plimsoll_model::ending::GroupCounters>,
}

/// Why the loop ended.
struct Finish {
    exit: RootExit,
    decision: Option<Decision>,
}

impl<'a> Keeper<'a> {
    pub(crate) fn new(prepared: Prepared<'a>, front: End) -> Self {
        Self::with(prepared, Some(front))
    }

    /// The front in the place of a keeper that was killed: it can only end the tree.
    pub(crate) fn heir(prepared: Prepared<'a>) -> Self {
        let ran = clock::wall().duration_since(prepared.record.started_at);
        let ran = Duration::try_from(ran).unwrap_or_default();
        let mut heir = Self::with(prepared, None);
        heir.started = heir.started.before(ran);
        heir
    }

    fn with(prepared: Prepared<'a>, front: Option<End>) -> Self {
        let surrounding = prepared.found.surrounding.clone().and_then(|group| {
            let gauge = surroundings::Gauges::open(&group)?;
            let before = gauge.counters();
            Some(Around { group, gauge, before })
        });
        let list_next = match prepared.boundary {
            Boundary::Watchdog => Duration::ZERO,
            Boundary::V1(_) | Boundary::V2(_) => LIST_AT_LEISURE,
        };
        Self {
            prepared,
            front,
            relay: None,
            tree: Tree::below(rustix::process::getpid().as_raw_nonzero().get()),
            history: History::new(),
            started: Instant::now(),
            root: None,
            interpreter: None,
            roll: Roll::default(),
            surrounding,
            busy: None,
            read: None,
            victims: Vec::new(),
            passed_on: None,
            list_next,
            measure_next: MEASURE_EVERY,
            thrash: Thrash::default(),
            strained: Duration::ZERO,
        }
    }

    /// Runs the tree to its end and tells the front.
    pub(crate) fn run(mut self) {
        // Children's ends are waited for from before the first child, so that none is missed.
        let child_ends = SignalFd::new(&SignalSet::of(&[Signal::CHILD.as_raw()]));
        let oom_events = self.prepared.boundary.oom_events();
        let started = spawn::become_subreaper().and(child_ends).and_then(|ends| Ok((ends, oom_events?)));
        let (child_ends, oom_events) = match started {
            Ok(both) => both,
            Err(error) => return self.refuse(&error.to_string()),
        };
        // Crossing one of these wakes us even where a look would come late. Before the start, for the kernel takes its time
        // (an RCU grace period each).
        let crossings = match (self.prepared.spec.on_limit, self.prepared.spec.limits.memory) {
            (OnLimit::Largest, Some(line)) => self.prepared.boundary.thresholds(&[line / 2, line / 4 * 3]),
            _ => None,
        };
        let finish = match self.start() {
            Ok(()) => self.watch(&child_ends, oom_events.as_ref(), crossings.as_ref()),
            Err(SpawnError::Interpreter(missing)) => {
                self.interpreter = Some(missing.display().to_string());
                Finish { exit: RootExit::NotStarted { errno: rustix::io::Errno::NOENT.raw_os_error() }, decision: None }
            }
            Err(SpawnError::Step { step: Step::Exec | Step::Workdir, source }) => {
                Finish { exit: RootExit::NotStarted { errno: source.raw_os_error().unwrap_or(0) }, decision: None }
            }
            Err(SpawnError::Step { step: Step::OomScore, source }) => {
                let value = self.prepared.spec.limits.oom_score_adj.unwrap_or_default();
                return self.refuse(&oom_score_words(value, &source));
            }
            Err(error) => return self.refuse(&error.to_string()),
        };
        let by_itself = finish.decision.is_none() && !matches!(finish.exit, RootExit::Signal(_) | RootExit::Unknown);
        let (code, text) = self.finish(finish.exit, finish.decision);
        self.say_over(code, by_itself, text);
    }

    fn say_over(&self, code: u8, by_itself: bool, text: String) {
        let Some(front) = &self.front else { return };
        front.say(&Message::Over { code, by_itself, text });
        // One that was stopped with its tree has nothing to be stopped for any more.
        if rustix::process::getppid().is_some_and(|parent| parent.as_raw_nonzero().get() == self.prepared.front) {
            let _ = signal::send(self.prepared.front, Signal::CONT.as_raw());
        }
    }

    /// It could not be started as asked for: undo, and say why.
    fn refuse(mut self, why: &str) {
        let mut reap = || while spawn::wait_any().is_some() {};
        teardown::kill_until_empty(&self.prepared.boundary.directories(), &mut reap);
        self.tree.kill_until_empty(&mut reap);
        let _ = self.prepared.boundary.remove();
        let text = format!("plimsoll: error: {}: {why}\n", self.prepared.spec.name);
        let _ = self.forget();
        unmake(&self.prepared.made);
        self.say_over(125, true, text);
    }

    fn start(&mut self) -> Result<(), SpawnError> {
        let ends =
            self.prepared.output.take().map_or_else(|| Ok(Ends::default()), |plan| plan.open(self.prepared.front))?;
        if let Some(pty) = ends.terminal() {
            pty.lead_session()?;
        }
        let Prepared { spec, boundary, mask, job, id, registration, .. } = &self.prepared;
        let (join, into) = boundary.entrance();
        let mut env: Vec<_> = std::env::vars_os()
            .filter(|(key, _)| key != TAG && !spec.env.iter().any(|(ours, _)| ours == key))
            .collect();
        env.extend(spec.env.iter().cloned());
        env.push((TAG.into(), id.as_str().into()));
        let bounds = spec.bounds.as_ref().map(Ruleset::of).transpose()?.flatten();
        let launch = Launch {
            command: &spec.command,
            env,
            workdir: spec.workdir.as_deref(),
            stdio: ends.child_stdio(),
            join,
            into,
            lock: Some(registration.as_fd()),
            oom_score_adj: spec.limits.oom_score_adj,
            user: None,
            bounds: bounds.as_ref(),
            job: match ends.terminal() {
                Some(pty) if ends.in_foreground() => Job::Foreground(pty.slave().as_raw_fd()),
                _ => *job,
            },
            mask: *mask,
        };
        let pid = launch.start()?;
        // While its program is only being loaded: a count of the whole machine takes the kernel a while to write.
        self.prepared.host_oom_kills = host_oom_kills();
        self.started = Instant::now();
        self.root = Process::of(pid).ok();
        self.roll.note_pid(pid);
        self.tree.set_root(pid);
        // Only now: the root was forked from a process with a single thread.
        self.relay = match ends.start() {
            Ok(relay) => Some(relay),
            Err(error) => {
                self.tree.kill_known();
                return Err(error.into());
            }
        };
        // The root runs in its session and with our priority as it was; from here on ours is our own. Outside the
        // session no key and no hang-up of the terminal reaches us. Without a terminal we stay in it, beside our group:
        // where the parent is in another session nothing of job control stops a process.
        let _ = match self.prepared.job {
            Job::Shared => rustix::process::setsid().map(|_| ()),
            _ => rustix::process::setpgid(None, None),
        };
        spawn::run_before_others();
        self.prepared.record.root = self.root.map(reference);
        // The registry is for the next plimsoll: without it only the tag and the groups are left to sweep by.
        let _ = self.prepared.registration.update(&self.prepared.record);
        Ok(())
    }

    /// Waits and acts until there is a reason to end the tree.
    fn watch(&mut self, child_ends: &SignalFd, oom_events: Option<&OwnedFd>, crossings: Option<&OwnedFd>) -> Finish {
        let spec = self.prepared.spec;
        let mut watch = self.line().map(|line| {
            let shortest = if self.own_kill() { SHORTEST_LOOK } else { SHORTEST_GROUP_LOOK };
            Watch::new(line, cores(), shortest)
        });
        if matches!(self.prepared.boundary, Boundary::Watchdog) {
            self.busy = BusyGauge::open();
        }
        let mut next_look = Instant::now();
        // Whom no group lists is written down soon after his birth: the next plimsoll may have to find him.
        let mut next_note = matches!(self.prepared.boundary, Boundary::Watchdog).then(Instant::now);
        let mut grace: Option<(Instant, Decision)> = None;
        let timeout = spec.timeout.map(|limit| (self.started.after(limit), limit));
        let mut kills_seen = 0;
        let mut oom_pending: Option<Instant> = None;
        loop {
            let now = Instant::now();
            // What is due.
            if let Some((until, decision)) = &grace
                && now >= *until
            {
                return Finish { exit: RootExit::Unknown, decision: Some(decision.clone()) };
            }
            if let Some((at, limit)) = timeout
                && grace.is_none()
                && now >= at
            {
                grace = Some(self.terminate(Decision::Timeout(limit)));
                continue;
            }
            if now >= next_look {
                match self.look(watch.as_mut()) {
                    Seen::Fine(pause) => next_look = now.after(pause),
                    Seen::Met(decision) => return Finish { exit: RootExit::Unknown, decision: Some(decision) },
                }
            }
            if next_note.is_some_and(|at| now >= at) {
                self.tree.discover();
                self.note_members();
                next_note = Some(Instant::now().after(NOTE_EVERY.max(now.elapsed() * NOTE_COST)));
            }
            // The kernel's notice comes before its kill is counted: look again until it is, for a while.
            if let Some(since) = oom_pending {
                let kills = self.prepared.boundary.oom_kills().unwrap_or(0);
                if kills > kills_seen {
                    kills_seen = kills;
                    oom_pending = None;
                    if spec.on_limit == OnLimit::Tree {
                        return Finish { exit: RootExit::Unknown, decision: None };
                    }
                } else if since.elapsed() > Duration::from_secs(1) {
                    oom_pending = None;
                }
            }

            if let (Some(limit), Some(relay), None) = (spec.idle_timeout, &self.relay, &grace)
                && relay.idle() >= limit
            {
                grace = Some(self.terminate(Decision::IdleTimeout(limit)));
            }

            let mut due = next_note.map_or(next_look, |at| at.min(next_look));
            if let (Some(limit), Some(relay), None) = (spec.idle_timeout, &self.relay, &grace) {
                due = due.min(Instant::now().after(limit.saturating_sub(relay.idle())));
            }
            if let Some((until, _)) = &grace {
                due = due.min(*until);
            } else if let Some((at, _)) = timeout {
                due = due.min(at);
            }
            if oom_pending.is_some() {
                due = due.min(Instant::now().after(Duration::from_millis(1)));
            }
            let ready = self.wait_until(due, child_ends, oom_events, crossings);
            if ready.front
                && let Some(end) = self.hear(&mut grace)
            {
                return end;
            }
            if ready.oom {
                oom_pending = Some(Instant::now());
            }
            if ready.crossing {
                next_look = Instant::now();
            }
            if ready.child {
                while child_ends.next().is_some() {}
                if let Some(exit) = self.reap() {
                    return Finish { exit, decision: grace.map(|(_, decision)| decision) };
                }
            }
        }
    }

    /// Whether the line is ours to hold, or ours to choose the victim at.
    fn own_kill(&self) -> bool {
        matches!(self.prepared.boundary, Boundary::Watchdog) || self.prepared.spec.on_limit == OnLimit::Largest
    }

    /// The line that looks are timed by: the tree's own, and without a group also the container's.
    fn line(&self) -> Option<u64> {
        let own = self.prepared.spec.limits.memory;
        match (&self.prepared.boundary, &self.surrounding) {
            (Boundary::Watchdog, Some(around)) => Some(own.unwrap_or(u64::MAX).min(around.group.limit)),
            _ => own,
        }
    }

    fn wait_until(
        &self,
        due: Instant,
        child_ends: &SignalFd,
        oom_events: Option<&OwnedFd>,
        crossings: Option<&OwnedFd>,
    ) -> Ready {
        let pause = due.since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(pause.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        // A descriptor that is not there is stood in for by one that is, with nothing asked of it.
        let none = PollFd::new(child_ends, PollFlags::empty());
        let front = self.front.as_ref().map_or(none.clone(), |front| PollFd::new(front, PollFlags::IN));
        let oom_flags = match self.prepared.boundary {
            Boundary::V2(_) => PollFlags::PRI,
            _ => PollFlags::IN,
        };
        let mut fds = [
            front,
            PollFd::new(child_ends, PollFlags::IN),
            oom_events.map_or(none.clone(), |fd| PollFd::new(fd, oom_flags)),
            crossings.map_or(none, |fd| PollFd::new(fd, PollFlags::IN)),
        ];
        if poll(&mut fds, Some(&timeout)).is_err() {
            return Ready::default();
        }
        let is = |at: usize| !fds[at].revents().is_empty();
        let ready = Ready {
            front: self.front.is_some() && is(0),
            child: is(1),
            oom: oom_events.is_some() && is(2),
            crossing: crossings.is_some() && is(3),
        };
        // Read so that the next wait waits; on v2 reading the file is what re-arms the notice.
        let mut buffer = [0; 1024];
        if ready.oom
            && let Some(fd) = oom_events
        {
            let _ = match self.prepared.boundary {
                Boundary::V2(_) => rustix::io::pread(fd, &mut buffer, 0),
                _ => rustix::io::read(fd, &mut buffer),
            };
        }
        if ready.crossing
            && let Some(fd) = crossings
        {
            let _ = rustix::io::read(fd, &mut buffer);
        }
        ready
    }

    /// What the front has to say; an end of the loop when it is gone.
    fn hear(&mut self, grace: &mut Option<(Instant, Decision)>) -> Option<Finish> {
        let front = self.front.as_ref()?;
        match front.hear() {
            Some(Message::Signal { signal: number, sender, seen }) => {
                self.passed_on = Some(PassedOn { signal: number, sender });
                self.pass_on(number, sender, seen);
                if number == Signal::TERM.as_raw() && grace.is_none() {
                    let by = if sender > 0 { format!(" by pid {sender}") } else { String::new() };
                    let decision = Decision::Stopped(format!("SIGTERM was sent to plimsoll{by}"));
                    *grace = Some((Instant::now().after(self.prepared.spec.stop_timeout), decision));
                    self.wake_stopped();
                }
                None
            }
            Some(_) => None,
            None => {
                let reason =
                    format!("plimsoll (pid {}) was killed, and the tree was ended with it", self.prepared.front);
                self.front = None;
                // At once: the user's shell has the terminal already.
                if let Some(relay) = &mut self.relay {
                    relay.detach();
                }
                Some(Finish { exit: RootExit::Unknown, decision: Some(Decision::Bereft(reason)) })
            }
        }
    }

    /// Passes on what was sent to the front. At a terminal of the tree's own, what the user's terminal says is said again.
    fn pass_on(&mut self, number: i32, sender: i32, seen: bool) {
        let Some(root) = self.root else { return };
        let from_terminal = sender == 0;
        let mut whole_group = false;
        if let Some(relay) = self.relay.as_mut().filter(|relay| relay.has_terminal()) {
            if number == Signal::WINCH.as_raw() {
                relay.resize();
                if from_terminal {
                    return;
                }
            }
            if number == Signal::CONT.as_raw() {
                if is_in_foreground(self.prepared.front) {
                    relay.attach(root.pid);
                } else {
                    relay.detach();
                }
            }
            // A key, and what undoes Ctrl-Z, is for all of a job.
            whole_group = from_terminal || number == Signal::CONT.as_raw();
        }
        if !seen {
            let _ = signal::send(if whole_group { -root.pid } else { root.pid }, number);
        }
    }

    /// A signal stopped the root: the front stops too, and leaves the user's terminal to the shell.
    fn stopped(&mut self, root: i32, number: i32) {
        if let Some(relay) = self.relay.as_mut().filter(|relay| relay.has_terminal()) {
            let asks = number == Signal::TTIN.as_raw() || number == Signal::TTOU.as_raw();
            if asks && !relay.is_attached() && is_in_foreground(self.prepared.front) {
                // It was in the background of its terminal, and may have it.
                relay.attach(root);
                let _ = signal::send(-root, Signal::CONT.as_raw());
                return;
            }
            relay.detach();
        }
        if let Some(front) = &self.front {
            front.say(&Message::Stopped { root, signal: number });
        }
    }

    /// Asks the root to end, and answers until when it may take its time.
    fn terminate(&mut self, decision: Decision) -> (Instant, Decision) {
        if let Some(root) = self.root {
            let _ = signal::send(root.pid, Signal::TERM.as_raw());
        }
        self.wake_stopped();
        (Instant::now().after(self.prepared.spec.stop_timeout), decision)
    }

    /// A stopped process acts on SIGTERM only once it runs.
    fn wake_stopped(&self) {
        if let Some(root) = self.root {
            let _ = signal::send(root.pid, Signal::CONT.as_raw());
        }
    }

    /// Waits for all that ended; answers the root's end when it is among them.
    fn reap(&mut self) -> Option<RootExit> {
        let root = self.root.map(|root| root.pid);
        let mut exit = None;
        while let Some((pid, wait)) = spawn::wait_any() {
            if Some(pid) != root {
                continue;
            }
            match wait {
                Wait::Exited(code) => exit = Some(RootExit::Code(code)),
                Wait::Signaled(signal) => exit = Some(RootExit::Signal(signal)),
                Wait::Stopped(signal) => self.stopped(pid, signal),
                Wait::Continued => {}
            }
        }
        exit
    }

    /// One look at the tree's memory.
    fn look(&mut self, watch: Option<&mut Watch>) -> Seen {
        let began = Instant::now();
        match self.prepared.boundary {
            Boundary::Watchdog => self.look_at_members(watch, began),
            Boundary::V1(_) | Boundary::V2(_) => self.look_at_group(watch, began),
        }
    }

    fn look_at_group(&mut self, watch: Option<&mut Watch>, began: Instant) -> Seen {
        let Some(usage) = self.prepared.boundary.usage() else { return Seen::Fine(HISTORY_EVERY) };
        let processes = self.prepared.boundary.processes().unwrap_or(0);
        let at = began.since(self.started);
        self.push(at, usage, processes);
        let largest = self.prepared.spec.on_limit == OnLimit::Largest;
        let past_half = watch.as_ref().is_some_and(|watch| usage >= watch.line() / 2);
        // Past half of the line the members are listed, for the certificate and for the choice of the victim; before,
        // at leisure.
        if past_half || at >= self.list_next {
            self.list_next = at + LIST_AT_LEISURE;
            let pids = self.prepared.boundary.members();
            if largest && past_half {
                raise_scores(pids.iter().copied(), self.root.map_or(0, |root| root.pid));
            }
            self.list_members(&pids);
        }
        let Some(watch) = watch else { return Seen::Fine(HISTORY_EVERY) };
        if at >= self.strained + STRAIN_EVERY {
            self.strained = at;
            let close = Thrash::is_close(usage, watch.line());
            let strain = if close { self.prepared.boundary.strain() } else { None };
            if self.thrash.look(at, watch.line(), self.may_swap(), strain) {
                return self.thrashing(Decision::MemoryLimit { usage, limit: watch.line() });
            }
        }
        let cost = began.elapsed();
        match watch.look(at, usage.min(watch.line() - 1), usage.min(watch.line() - 1), cost) {
            // Page cache may fill a group to its line for long; nothing is lost by looking at leisure then.
            Look::Again(pause) if !largest => Seen::Fine(pause.max(cost * 50).min(HISTORY_EVERY)),
            Look::Again(pause) => Seen::Fine(pause),
            Look::Met | Look::Measure => Seen::Fine(SHORTEST_GROUP_LOOK),
        }
    }

    /// Whether the tree may go on in swap when its RAM is full.
    fn may_swap(&self) -> bool {
        swap_limit(self.prepared.spec, self.prepared.found).is_none_or(|swap| swap > 0)
    }

    /// The kernel will not end it: we do, the largest below the root first where that was asked for.
    fn thrashing(&mut self, decision: Decision) -> Seen {
        self.list_members(&self.prepared.boundary.members());
        let members = self.roll.members.iter().map(|member| (member.pid, member.depth, member.memory_bytes));
        let chosen = victim(members).filter(|_| self.prepared.spec.on_limit == OnLimit::Largest);
        let chosen = chosen.and_then(|pid| self.roll.members.iter().find(|member| member.pid == pid));
        let Some(member) = chosen else { return Seen::Met(decision) };
        plimsoll_kernel::tree::kill_process(Process { pid: member.pid, start_ticks: member.start_ticks });
        self.victims.push(sacrificed(member, decision));
        Seen::Fine(STRAIN_EVERY)
    }

    fn list_members(&mut self, pids: &[i32]) {
        let root = self.root.map_or(0, |root| root.pid);
        let members = members_of_group(pids, root);
        if !members.is_empty() {
            self.remember(members);
        }
    }

    fn remember(&mut self, members: Vec<Member>) {
        self.roll.call(members, &self.prepared.options.secrets);
    }

    fn push(&mut self, at: Duration, bytes: u64, processes: u64) {
        self.history.push(Sample {
            at_ms: at.as_millis() as u64,
            memory_bytes: bytes,
            processes: u32::try_from(processes).unwrap_or(u32::MAX),
        });
    }

    fn look_at_members(&mut self, watch: Option<&mut Watch>, began: Instant) -> Seen {
        let at = began.since(self.started);
        if let (Some(watch), Some(busy), Some(read)) = (&watch, &self.busy, self.read)
            && let Some(pause) = busy.since(read).and_then(|busy| watch.spare(at, busy))
        {
            return Seen::Fine(pause);
        }
        self.read = self.busy.as_ref().and_then(BusyGauge::mark);
        self.tree.discover();
        let mut held = self.tree.sample();
        let line = self.prepared.spec.limits.memory.unwrap_or(u64::MAX);
        // Measured while there is time for it: later only differences to the measurement are in doubt, and those are
        // small. At the line the measurement itself would take longer than the growth leaves; far from it, it lets looks
        // be rarer.
        let (in_doubt, headroom) = (held.upper - held.lower, line.saturating_sub(held.upper));
        let near = held.upper >= line / 2 && in_doubt > headroom.max(line / 32);
        let at_leisure = in_doubt > headroom / 8 && at >= self.measure_next;
        if held.lower < line && (held.upper >= line || near || at_leisure) {
            let began = Instant::now();
            held = self.tree.measure(MEASURE_AT_MOST);
            self.measure_next = at + MEASURE_EVERY.max(began.elapsed() * MEASURE_COST);
        }
        self.push(at, held.upper, u64::from(held.processes));
        // A measurement that could not be completed leaves the upper bound to decide: the line is a promise.
        if held.upper >= line {
            return self.met(Decision::MemoryLimit { usage: held.upper, limit: line });
        }
        if let Some(decision) = self.container_met(held.upper) {
            return self.met(decision);
        }
        let cost = began.elapsed();
        if (held.upper >= line / 2 || self.roll.members.is_empty()) && at >= self.list_next {
            let began = Instant::now();
            self.remember(self.tree.members());
            self.list_next = at + LIST_EVERY.max(began.elapsed() * NOTE_COST);
        }
        let Some(watch) = watch else { return Seen::Fine(HISTORY_EVERY) };
        let container = self.surrounding.as_ref().and_then(|around| around.gauge.usage()).unwrap_or(0);
        let room_around =
            self.surrounding.as_ref().map_or(u64::MAX, |around| around.group.limit.saturating_sub(container));
        // The nearer of the two lines sets the pace.
        let room = (line - held.upper).min(room_around.max(1));
        let as_if = watch.line().saturating_sub(room);
        match watch.look(at, 0, as_if.min(watch.line() - 1), cost) {
            Look::Again(pause) => Seen::Fine(pause),
            Look::Met | Look::Measure => Seen::Fine(SHORTEST_LOOK),
        }
    }

    /// The line is met: by choice the largest below the root goes, else everything.
    fn met(&mut self, decision: Decision) -> Seen {
        if self.prepared.spec.on_limit == OnLimit::Tree {
            return self.end_at_once(decision);
        }
        let members = self.tree.members();
        let chosen = victim(members.iter().map(|member| (member.pid, member.depth, member.memory_bytes)));
        let Some(member) = members.iter().find(|member| Some(member.pid) == chosen) else {
            return self.end_at_once(decision);
        };
        let pid = member.pid;
        let mut victim = sacrificed(member, decision);
        // It may have become another program since it was found; once it is killed nobody can ask.
        victim.name = name_of(pid).unwrap_or(victim.name);
        self.remember(members);
        self.tree.kill(pid);
        self.victims.push(victim);
        // Killing is not freeing: no second victim before the first one's bytes came back.
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            self.tree.sample();
            let held =
                self.tree.members().iter().find(|member| member.pid == pid).map_or(0, |member| member.memory_bytes);
            if held == 0 {
                break;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        Seen::Fine(Duration::ZERO)
    }

    /// The signal first, the book-keeping after it: what runs away does so by megabytes a millisecond.
    fn end_at_once(&mut self, decision: Decision) -> Seen {
        self.tree.kill_known();
        self.remember(self.tree.members());
        Seen::Met(decision)
    }

    /// Whether the container around us is about to meet its limit, by this tree's doing: then the tree goes first.
    fn container_met(&self, held: u64) -> Option<Decision> {
        let around = self.surrounding.as_ref()?;
        let limit = around.group.limit;
        // The kernel's charge runs ahead of ours by what is cached for a CPU; below this much is too late.
        let margin = (limit / 50).clamp(1 << 20, 16 << 20);
        let usage = around.gauge.usage()?;
        if usage < limit - margin {
            return None;
        }
        let usage = around.gauge.working_set()?;
        // Ending a tree that holds next to nothing would bring nothing back.
        (usage >= limit - margin && held >= margin).then(|| Decision::MemoryLimitParent {
            whose: around.group.path.clone(),
            usage,
            limit,
        })
    }

    fn note_members(&mut self) {
        let record = &mut self.prepared.record;
        if !self.tree.processes().map(reference).eq(record.members.iter().copied()) {
            record.members = self.tree.processes().map(reference).collect();
            let _ = self.prepared.registration.update(record);
        }
    }
}

/// Ending.
impl Keeper<'_> {
    /// Ends the tree for this reason, leaves nothing behind, and certifies the end. Answers the exit code and what to
    /// print.
    pub(crate) fn finish(&mut self, exit: RootExit, decision: Option<Decision>) -> (u8, String) {
        let dirs = self.prepared.boundary.directories();
        if !matches!(exit, RootExit::NotStarted { .. }) {
            let pids = self.prepared.boundary.members();
            // Many are killed first: what the last look saw of them has to do, or some of them.
            if pids.len() <= LISTED_AT_THE_END || self.roll.members.is_empty() {
                self.list_members(&pids[..pids.len().min(LISTED_AT_THE_END)]);
            }
        }
        let by_kernel = decision.is_none() && self.prepared.boundary.oom_kills().is_some_and(|kills| kills > 0);
        if by_kernel || !self.victims.is_empty() {
            // The kill was quicker than our list: whom it took has to be in there.
            self.roll.bring_back_the_lost();
        }
        let ended_at = clock::wall();
        let runtime = self.started.elapsed();
        let mut exit = exit;
        let root = self.root.map(|root| root.pid);
        let mut reap = || {
            while let Some((pid, wait)) = spawn::wait_any() {
                match wait {
                    Wait::Exited(code) if Some(pid) == root => exit = RootExit::Code(code),
                    Wait::Signaled(signal) if Some(pid) == root => exit = RootExit::Signal(signal),
                    _ => {}
                }
            }
        };
        let mut survivors = teardown::kill_until_empty(&dirs, &mut reap);
        // Without a group this is the whole tree; with one, whoever moved to another group and is still below us.
        survivors.extend(self.tree.kill_until_empty(&mut reap));
        if matches!(self.prepared.boundary, Boundary::Watchdog) && self.front.is_none() {
            // A keeper was killed: whom init adopted before us is known by the tag alone.
            survivors.extend(kill_tagged(self.prepared.id.as_str(), &mut reap));
        }

        let logged = self.relay.take().map(Relay::finish);
        let ending = self.ending(exit, decision);
        let mut judged = verdict(&ending);
        if self.prepared.spec.on_limit == OnLimit::Tree && judged.killed_inside > 0 && ending.decision.is_none() {
            // At the line everything goes: a root that was quicker than we, and ended by itself when it saw its child
            // die, ended of that all the same.
            judged = verdict(&Ending { exit: RootExit::Signal(Signal::KILL.as_raw()), ..ending.clone() });
        }
        let peak_processes = self.prepared.boundary.peak_processes();
        let removed = self.prepared.boundary.remove();
        let spec = self.prepared.spec;
        let facts = Facts {
            id: self.prepared.id,
            name: &spec.name,
            command: &self.prepared.options.redacted,
            boundary: self.prepared.boundary.kind(),
            started_at: self.prepared.record.started_at,
            ended_at,
            runtime,
            limit_bytes: spec.limits.memory,
            swap_limit_bytes: swap_limit(spec, self.prepared.found),
            largest: &self.roll.largest,
            history: &self.history,
            peak_processes,
            survivors: survivors.len(),
        };
        let certificate = certify(facts, &ending, &judged);
        let mut text = String::new();
        let mut complain = |what: String| text.push_str(&format!("plimsoll: warning: {what}\n"));
        match logged {
            Some(None) => complain("the output's end could not be written within ten seconds, and is lost".into()),
            Some(Some(LogReport { dropped })) if dropped > 0 => {
                complain(format!("{dropped} bytes of output were dropped"))
            }
            _ => {}
        }
        if let Err(error) = removed {
            complain(format!("a group is left behind: {error}; the next plimsoll tries again"));
        } else {
            let _ = self.forget();
        }
        if self.prepared.options.store
            && let Err(error) = self.store(&certificate)
        {
            complain(format!("the certificate is not stored: {error}"));
        }
        if let Some(mut report) = self.prepared.report.take() {
            let written = serde_json::to_vec_pretty(&certificate)
                .map_err(std::io::Error::from)
                .and_then(|json| {
                    // A pipe or a device has nothing to be cut.
                    report.set_len(0).or_else(|cut| if report.metadata()?.is_file() { Err(cut) } else { Ok(()) })?;
                    Ok(json)
                })
                .and_then(|json| report.write_all(&json).and_then(|()| report.write_all(b"\n")));
            if let Err(error) = written {
                complain(format!("the report is not written: {error}"));
            }
        }
        if !self.prepared.options.quiet {
            text.push_str(&(self.prepared.options.render)(&certificate));
        }
        (self.exit_code(&certificate), text)
    }

    fn forget(&self) -> std::io::Result<()> {
        std::fs::remove_file(self.prepared.registration.path())
    }

    fn store(&self, certificate: &Certificate) -> Result<(), plimsoll_store::CertificateError> {
        plimsoll_store::inbox::append(self.prepared.options.state_dir, certificate)
    }

    fn ending(&mut self, exit: RootExit, decision: Option<Decision>) -> Ending {
        let mut unreadable = Vec::new();
        let own = match self.prepared.boundary.counters() {
            Ok(own) => own,
            Err(error) => {
                unreadable.push(error.to_string());
                None
            }
        };
        let mut ancestors = self.prepared.boundary.ancestors();
        if let Some(around) = &self.surrounding
            && let (Some(before), Some(after)) = (&around.before, around.gauge.counters())
            && !ancestors.iter().any(|group| group.path == after.path)
        {
            ancestors.push(surroundings::since(before, &after));
        }
        let host_oom_kill =
            self.prepared.host_oom_kills.zip(host_oom_kills()).map(|(before, after)| Delta { before, after });
        // The log is read only when there is a death to explain: it may be long, and a clean end has no line in it.
        let clean = matches!(exit, RootExit::Code(0) | RootExit::NotStarted { .. })
            && host_oom_kill.is_some_and(|kills| kills.moved() == 0);
        let kmsg = match &mut self.prepared.kmsg {
            Some(_) if clean => Some(Vec::new()),
            Some(kmsg) => {
                let kills = kmsg.oom_kills();
                if kmsg.has_lost_records() {
                    unreadable.push("/dev/kmsg: records were overwritten before they were read".into());
                }
                (!kmsg.has_lost_records() || !kills.is_empty()).then_some(kills)
            }
            None => {
                unreadable.push("/dev/kmsg".into());
                None
            }
        };
        if host_oom_kill.is_none() {
            unreadable.push("/proc/vmstat".into());
        }
        Ending {
            exit,
            interpreter: self.interpreter.clone(),
            decision,
            victims: std::mem::take(&mut self.victims),
            passed_on: self.passed_on,
            own,
            ancestors,
            kmsg,
            host_oom_kill,
            pids: self.roll.pids.clone(),
            unreadable,
        }
    }

    fn exit_code(&self, certificate: &Certificate) -> u8 {
        let own = || match (certificate.exit.code, certificate.exit.signal) {
            (Some(code), _) => code as u8,
            (None, Some(signal)) => 128u8.saturating_add(signal as u8),
            (None, None) => 125,
        };
        match certificate.cause {
            Cause::Timeout | Cause::IdleTimeout => 124,
            Cause::StartFailed => {
                let missing = certificate.evidence.iter().any(|e| e.detail.contains("ENOENT"));
                if missing { 127 } else { 126 }
            }
            Cause::MemoryLimit | Cause::MemoryLimitParent | Cause::HostOom
                if self.prepared.spec.on_limit == OnLimit::Tree =>
            {
                137
            }
            _ => own(),
        }
    }
}

/// Kills all that carry this run's tag, wherever they are now.
pub(crate) fn kill_tagged(id: &str, mut reap: impl FnMut()) -> Vec<i32> {
    let line = format!("{TAG}={id}");
    let began = Instant::now();
    loop {
        let left: Vec<Process> = tagged(&line).into_iter().filter(|process| process.is_alive()).collect();
        if left.is_empty() {
            return Vec::new();
        }
        if began.elapsed() > Duration::from_secs(10) {
            return left.iter().map(|process| process.pid).collect();
        }
        for process in left {
            plimsoll_kernel::tree::kill_process(process);
        }
        reap();
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Why a score was refused, and what is not.
fn oom_score_words(value: i16, source: &std::io::Error) -> String {
    let ours = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let most = ours.trim().parse::<i16>().map_or_else(|_| "a higher one".to_owned(), |ours| format!("{ours} or more"));
    format!(
        "--oom-score-adj {value}: {source}: raising it needs no privilege, lowering it does\n  help: choose {most}, or run \
         as root (CAP_SYS_RESOURCE)"
    )
}

/// What a wait ended for.
#[derive(Default)]
struct Ready {
    front: bool,
    child: bool,
    oom: bool,
    crossing: bool,
}

/// What a look saw.
enum Seen {
    Fine(Duration),
    Met(Decision),
}

fn sacrificed(member: &Member, reason: Decision) -> Victim {
    Victim { pid: member.pid, name: member.name.clone(), memory_bytes: member.memory_bytes, reason }
}

fn reference(process: Process) -> ProcessRef {
    ProcessRef { pid: process.pid, start_ticks: process.start_ticks }
}

fn cores() -> u32 {
    // Not `available_parallelism`: quotas spread over a period, a burst within one runs on all of these.
    rustix::thread::sched_getaffinity(None).map_or(1, |cpus| cpus.count())
}
