//! The loop: what the kernel, the clock and people say goes into the core, what it decides is carried out.
//!
//! # Theory of operation
//! One thread waits in `epoll` for signals (a child's end among them), the guard, the room that speaks HTTP, the output
//! of every replica and its notices of OOM kills, and for the time that the core has asked to be called at. Everything
//! becomes an [`Input`]; every [`Effect`] is performed at once and answers, if it answers, with a further input. Nothing
//! is decided here.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use plimsoll_core::stack::effect::Backend;
use plimsoll_core::stack::input::{End, HostSample, Measured, Probe};
use plimsoll_core::stack::snapshot::Snapshot;
use plimsoll_core::stack::{Answer, Command, Effect, Event, Input, Instance, Name, Refusal, Request, Stack};
use plimsoll_gateway::control::{self, Answer as Text, Door, Kind, Question, Reply, Stream};
use plimsoll_gateway::{Gateway, Limits as PortLimits, State, Told};
use plimsoll_kernel::boundary::Boundary;
use plimsoll_kernel::cgroup::{Found, teardown};
use plimsoll_kernel::clock::{self, Instant};
use plimsoll_kernel::host::machine_memory;
use plimsoll_kernel::procfs::{parse_loadavg, read_file};
use plimsoll_kernel::signal::{self, SignalFd, SignalSet};
use plimsoll_kernel::spawn::{self, Job, Launch, Wait};
use plimsoll_model::ending::RootExit;
use plimsoll_model::stack::{Ask, Delivery, ServiceSpec};
use plimsoll_model::{Limits, OnLimit, RunId};
use plimsoll_store::{CertificateStore, Registration, RunningTree, inbox};
use rustix::event::epoll;
use rustix::process::Signal;

use super::StackOptions;
use super::output::Logs;
use super::replica::{Ground, Replica, environment, with_port};
use crate::front::boot_id;

/// Questions that wait for the loop; more are told that nobody answers.
const QUESTIONS: usize = 64;

/// Bytes read of a replica's output at a time, and by far the most that waits in memory.
const CHUNK: usize = 64 << 10;

/// A port closes with so much grace for what has begun.
const CLOSING: Duration = Duration::from_secs(5);

const SIGNALS: u64 = 0;
const GUARD: u64 = 1;
const BELL: u64 = 2;
const FIRST_REPLICA: u64 = 16;

/// What the room that speaks HTTP hands over.
enum Word {
    Asked(Question, Reply),
    Told(Told),
}

/// A health test that runs.
struct Test {
    instance: Instance,
    probe: u64,
    deadline: Instant,
}

pub(super) struct Supervisor<'o> {
    options: &'o mut StackOptions,
    stack: Stack,
    began: Instant,
    todo: VecDeque<Effect>,
    id: RunId,
    budget: Boundary,
    found: Found,
    registration: Registration,
    mask: SignalSet,
    null: OwnedFd,
    epoll: OwnedFd,
    replicas: BTreeMap<Instance, Replica>,
    roots: BTreeMap<i32, Instance>,
    tokens: BTreeMap<u64, Instance>,
    next_token: u64,
    tests: BTreeMap<i32, Test>,
    logs: Logs,
    gateway: Gateway,
    words: Receiver<Word>,
    replies: BTreeMap<u64, Reply>,
    next_request: u64,
    events: Vec<Stream>,
    followers: Vec<(Option<String>, Stream)>,
    counters: BTreeMap<&'static str, u64>,
    finished: bool,
}

impl<'o> Supervisor<'o> {
    /// Makes the budget's group and opens the control socket. Nothing runs yet.
    ///
    /// # Errors
    /// In words; nothing is left behind then.
    pub(super) fn new(options: &'o mut StackOptions, mask: SignalSet) -> Result<Self, String> {
        let wall = clock::wall();
        let mut random = [0; 4];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let id = RunId::new(wall.as_millisecond().unsigned_abs(), u32::from_ne_bytes(random));
        let Some(parent) = options.found.parent.clone() else {
            return Err(format!("services are held by groups, and none can be had here: {}", options.found.reason));
        };
        let total = options.spec.budget.bytes(options.total);
        // No swap beyond it where that can be said; one replica goes at the kernel's choice, never all.
        let limits = Limits {
            memory: Some(total),
            memory_swap: options.found.swap_accounting.then_some(total),
            ..Limits::default()
        };
        let (groups, parents) = plimsoll_kernel::boundary::planned(&options.found, id.as_str(), &limits);
        let record = RunningTree {
            schema: plimsoll_store::registry::SCHEMA.to_owned(),
            id,
            name: "up".to_owned(),
            command: vec!["plimsoll".to_owned(), "up".to_owned()],
            boundary: options.found.boundary,
            boot_id: boot_id(),
            started_at: wall,
            memory_limit_bytes: Some(total),
            swap_limit_bytes: None,
            groups,
            parents,
            root: None,
            members: Vec::new(),
        };
        let door = Door::socket(&options.socket).map_err(|error| error.to_string())?;
        let registration = Registration::register(&options.runtime_dir, &record).map_err(|error| error.to_string())?;
        let undo = |registration: Registration, why: String| {
            let _ = registration.remove();
            why
        };
        let budget = match Boundary::make(&options.found, id.as_str(), &limits, OnLimit::Largest) {
            Ok(budget) => budget,
            Err(error) => return Err(undo(registration, error.to_string())),
        };
        let rest = Self::descriptors(options, door);
        let (null, epoll, logs, gateway, words) = match rest {
            Ok(rest) => rest,
            Err(why) => {
                let _ = budget.remove();
                return Err(undo(registration, why));
            }
        };
        let found = Found { parent: Some(parent.below(id.as_str())), ..options.found.clone() };
        Ok(Self {
            stack: Stack::new(options.total, options.cores),
            options,
            began: Instant::now(),
            todo: VecDeque::new(),
            id,
            budget,
            found,
            registration,
            mask,
            null,
            epoll,
            replicas: BTreeMap::new(),
            roots: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: FIRST_REPLICA,
            tests: BTreeMap::new(),
            logs,
            gateway,
            words,
            replies: BTreeMap::new(),
            next_request: 1,
            events: Vec::new(),
            followers: Vec::new(),
            counters: BTreeMap::new(),
            finished: false,
        })
    }

    fn descriptors(
        options: &StackOptions,
        door: Door,
    ) -> Result<(OwnedFd, OwnedFd, Logs, Gateway, Receiver<Word>), String> {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(|e| e.to_string())?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| error.to_string())?;
        let logs = Logs::new(options.state_dir.join("logs")).map_err(|error| error.to_string())?;
        let bell =
            rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK)
                .map_err(|error| error.to_string())?;
        let bell = Arc::new(bell);
        epoll::add(&epoll, &*bell, epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)
            .map_err(|e| e.to_string())?;
        let (say, words) = sync_channel::<Word>(QUESTIONS);
        let ring = move |say: &SyncSender<Word>, bell: &OwnedFd, word: Word| {
            if say.try_send(word).is_ok() {
                let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
            }
        };
        let (say_told, bell_told) = (say.clone(), bell.clone());
        let gateway = Gateway::start(move |told| ring(&say_told, &bell_told, Word::Told(told)))
            .map_err(|error| error.to_string())?;
        gateway.serve(door, move |question, reply| ring(&say, &bell, Word::Asked(question, reply)));
        Ok((null.into(), epoll, logs, gateway, words))
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn input(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.stack.step(self.now(), input, &mut effects);
        self.todo.extend(effects);
    }

    /// Runs until everything is down.
    pub(super) fn run(mut self, signals: &SignalFd, guard: &OwnedFd) -> Result<(), String> {
        let add = |fd: &dyn AsFd, data: u64| {
            epoll::add(&self.epoll, fd.as_fd(), epoll::EventData::new_u64(data), epoll::EventFlags::IN)
                .map_err(|error| error.to_string())
        };
        add(signals, SIGNALS)?;
        add(guard, GUARD)?;
        let spec = self.options.spec.clone();
        self.input(Input::Load { request: None, spec });
        self.perform();
        while !(self.finished && self.replicas.is_empty()) {
            self.wait(signals, guard);
            self.end_slow_tests();
            if self.stack.next_due().is_some_and(|due| self.now() >= due) {
                self.input(Input::Tick);
            }
            self.perform();
        }
        self.close();
        Ok(())
    }

    fn wait(&mut self, signals: &SignalFd, guard: &OwnedFd) {
        let mut due = self.stack.next_due().map(|due| due.saturating_sub(self.now()));
        for test in self.tests.values() {
            let left = test.deadline.since(Instant::now());
            due = Some(due.map_or(left, |due| due.min(left)));
        }
        let timeout = due.map(|due| rustix::event::Timespec {
            tv_sec: i64::try_from(due.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(due.subsec_nanos()),
        });
        let mut ready = Vec::with_capacity(64);
        if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), timeout.as_ref()).is_err() {
            return;
        }
        for event in ready {
            match event.data.u64() {
                SIGNALS => self.hear(signals),
                GUARD => {
                    let _ = epoll::delete(&self.epoll, guard);
                    self.note_all("its guard was killed: everything is stopped");
                    self.down();
                }
                BELL => {
                    while let Ok(word) = self.words.try_recv() {
                        self.answer_word(word);
                    }
                }
                token => self.replica_ready(token),
            }
        }
    }

    fn down(&mut self) {
        let request = self.request(None);
        self.input(Input::Command { request, command: Command::Down });
    }

    fn request(&mut self, reply: Option<Reply>) -> Request {
        let number = self.next_request;
        self.next_request += 1;
        if let Some(reply) = reply {
            self.replies.insert(number, reply);
        }
        Request(number)
    }

    fn hear(&mut self, signals: &SignalFd) {
        while let Some(received) = signals.next() {
            if received.signal == Signal::CHILD.as_raw() {
                continue;
            }
            if received.signal == Signal::HUP.as_raw() {
                self.reload(None);
            } else {
                self.down();
            }
        }
        self.reap();
    }

    fn reap(&mut self) {
        while let Some((pid, wait)) = spawn::wait_any() {
            self.child_ended(pid, wait);
        }
    }

    fn child_ended(&mut self, pid: i32, wait: Wait) {
        let exit = match wait {
            Wait::Exited(code) => RootExit::Code(code),
            Wait::Signaled(signal) => RootExit::Signal(signal),
            Wait::Stopped(_) | Wait::Continued => return,
        };
        if let Some(instance) = self.roots.get(&pid).cloned() {
            self.end(&instance, exit);
        } else if let Some(test) = self.tests.remove(&pid) {
            let outcome = match exit {
                RootExit::Code(0) => Probe::Healthy,
                RootExit::Code(code) => Probe::Failed(format!("code {code}")),
                RootExit::Signal(number) => Probe::Failed(signal::name(number)),
                RootExit::NotStarted { .. } | RootExit::Unknown => Probe::NotRun("it vanished".to_owned()),
            };
            self.input(Input::Probed { instance: test.instance, probe: test.probe, outcome });
        }
    }

    /// Ends what is left of a tree, certifies it, and tells the core.
    fn end(&mut self, instance: &Instance, exit: RootExit) {
        let Some(replica) = self.replicas.remove(instance) else { return };
        let (root, who) = (replica.root.pid, instance.to_string());
        self.roots.remove(&root);
        self.tokens.retain(|_, of| of != instance);
        // What it still has to say is in the pipe.
        if let Some(output) = &replica.output {
            self.drain_output(output, instance);
        }
        if let Some(line) = self.logs.finish(&instance.service, &who) {
            self.follow(&instance.service, &line);
        }
        let mut others = Vec::new();
        let ended = replica.end(exit, || {
            let mut found = None;
            while let Some((pid, wait)) = spawn::wait_any() {
                match wait {
                    Wait::Exited(code) if pid == root => found = Some(RootExit::Code(code)),
                    Wait::Signaled(signal) if pid == root => found = Some(RootExit::Signal(signal)),
                    _ => others.push((pid, wait)),
                }
            }
            found
        });
        let certificate = &ended.certificate;
        let end = End {
            cause: certificate.cause,
            code: certificate.exit.code,
            signal: certificate.exit.signal,
            bytes_freed: ended.bytes_freed,
            peak_bytes: Some(certificate.memory.peak_bytes),
            oom_kills: ended.oom_kills,
        };
        self.input(Input::Exited { instance: instance.clone(), end });
        // The next start does not wait for the disk.
        self.perform();
        if let Err(error) = inbox::append(&self.options.state_dir, certificate) {
            self.note(instance, &format!("its certificate is not stored: {error}"));
        }
        if let Some(trouble) = &ended.trouble {
            self.note(instance, &format!("a group is left behind: {trouble}"));
        }
        for (pid, wait) in others {
            self.child_ended(pid, wait);
        }
    }

    fn replica_ready(&mut self, token: u64) {
        let Some(instance) = self.tokens.get(&(token & !1)).cloned() else { return };
        if token & 1 == 0 {
            let Some(output) = self.replicas.get_mut(&instance).and_then(|replica| replica.output.take()) else {
                return;
            };
            if self.read_output(&output, &instance) {
                if let Some(replica) = self.replicas.get_mut(&instance) {
                    replica.output = Some(output);
                }
            } else {
                let _ = epoll::delete(&self.epoll, &output);
            }
            return;
        }
        let Some(replica) = self.replicas.get(&instance) else { return };
        if let Some(events) = &replica.oom_events {
            let mut buffer = [0; 1024];
            let _ = match replica.boundary {
                Boundary::V2(_) => rustix::io::pread(events, &mut buffer, 0),
                _ => rustix::io::read(events, &mut buffer),
            };
        }
        // The notice comes before its kill is counted; a look a moment later counts it.
        let began = Instant::now();
        while replica.boundary.oom_kills().unwrap_or(0) == 0 && began.elapsed() < Duration::from_millis(20) {
            std::thread::sleep(Duration::from_micros(200));
        }
        if replica.boundary.oom_kills().unwrap_or(0) > 0 && replica.on_limit == OnLimit::Tree {
            self.end(&instance, RootExit::Unknown);
        }
    }

    /// Reads one chunk; `false` when it has closed its output.
    fn read_output(&mut self, output: &OwnedFd, instance: &Instance) -> bool {
        let mut buffer = vec![0; CHUNK];
        match rustix::io::read(output, &mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                for line in self.logs.take(&instance.service, &instance.to_string(), &buffer[..count]) {
                    self.follow(&instance.service, &line);
                }
                true
            }
            Err(error) => error == rustix::io::Errno::AGAIN || error == rustix::io::Errno::INTR,
        }
    }

    fn drain_output(&mut self, output: &OwnedFd, instance: &Instance) {
        // At most what a pipe holds: whoever writes on is about to be killed.
        for _ in 0..16 {
            let mut left = [rustix::event::PollFd::new(output, rustix::event::PollFlags::IN)];
            let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            let ready = rustix::event::poll(&mut left, Some(&now)).is_ok_and(|count| count > 0);
            if !ready || !self.read_output(output, instance) {
                return;
            }
        }
    }

    fn end_slow_tests(&mut self) {
        let now = Instant::now();
        let slow: Vec<i32> = self.tests.iter().filter(|(_, test)| now >= test.deadline).map(|(pid, _)| *pid).collect();
        for pid in slow {
            let _ = signal::send(-pid, Signal::KILL.as_raw());
            let _ = signal::send(pid, Signal::KILL.as_raw());
            if let Some(test) = self.tests.remove(&pid) {
                self.input(Input::Probed { instance: test.instance, probe: test.probe, outcome: Probe::TimedOut });
            }
        }
    }

    fn follow(&mut self, service: &Name, line: &str) {
        self.followers.retain(|(of, stream)| of.as_deref().is_some_and(|of| of != &**service) || stream.send(line));
    }

    fn note(&mut self, instance: &Instance, text: &str) {
        let line = self.logs.note(&instance.service, &instance.to_string(), text);
        self.follow(&instance.service, &line);
    }

    fn note_all(&mut self, text: &str) {
        (self.options.say)(text);
    }
}

/// What the core decided.
impl Supervisor<'_> {
    fn perform(&mut self) {
        while let Some(effect) = self.todo.pop_front() {
            self.act(effect);
        }
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Start { instance, spec, limits, wants_port, .. } => self.start(instance, &spec, limits, wants_port),
            Effect::Stop { instance, signal: number, decision, .. } => {
                if let Some(replica) = self.replicas.get_mut(&instance) {
                    replica.decision.get_or_insert(decision);
                    let _ = signal::send(replica.root.pid, number);
                    let _ = signal::send(replica.root.pid, Signal::CONT.as_raw());
                }
            }
            Effect::Kill { instance, decision } => {
                if let Some(replica) = self.replicas.get_mut(&instance) {
                    replica.decision.get_or_insert(decision);
                    self.end(&instance, RootExit::Unknown);
                }
            }
            Effect::Probe { instance, probe, spec, timeout } => self.probe(instance, probe, &spec, timeout),
            Effect::Look { instances } => self.look(&instances),
            Effect::Stage { instance, stage, scale } => {
                let file = self.stage_file(&instance);
                let text = serde_json::json!({
                    "stage": stage.as_str(), "since": clock::wall().to_string(), "scale": scale,
                });
                let new = file.with_extension("new");
                // A workload that reads an old stage is told again with the next one.
                let _ = std::fs::write(&new, text.to_string()).and_then(|()| std::fs::rename(&new, &file));
            }
            Effect::Ask { instance, ask, stage } => self.ask(&instance, &ask, stage.as_str()),
            Effect::Reclaim { instance, bytes } => {
                if let Some(replica) = self.replicas.get(&instance) {
                    replica.boundary.reclaim(bytes);
                }
            }
            Effect::Route { service, listen, backends } => self.route(&service, listen, &backends),
            Effect::Drain { instance, patience } => {
                if self.gateway.port(&instance.service).is_some() {
                    self.gateway.drain(&instance.service, instance.generation, patience);
                } else {
                    self.input(Input::Drained { instance });
                }
            }
            Effect::Census => self.census(),
            Effect::Emit(event) => self.emit(&event),
            Effect::Deliver { delivery, event } => self.deliver(delivery, &event),
            Effect::Answer { request, answer } => {
                if let Some(reply) = self.replies.remove(&request.0) {
                    reply.send(in_words(&answer));
                }
            }
            Effect::Finished => self.finished = true,
        }
    }

    fn ground(&self) -> Ground<'_> {
        Ground {
            found: &self.found,
            tag: self.id.as_str(),
            mask: self.mask,
            null: self.null.as_fd(),
            lock: self.registration.as_fd(),
        }
    }

    fn start(&mut self, instance: Instance, spec: &ServiceSpec, limits: Limits, wants_port: bool) {
        let port = if wants_port { free_port() } else { None };
        let stage_file = self.stage_file(&instance);
        let started = Replica::start(&self.ground(), instance.clone(), spec, limits, port, &stage_file);
        let replica = match started {
            Ok(replica) => replica,
            Err(why) => return self.input(Input::StartFailed { instance, why }),
        };
        let token = self.next_token;
        self.next_token += 2;
        let watch = |fd: Option<&OwnedFd>, data: u64, flags| {
            fd.map(|fd| epoll::add(&self.epoll, fd, epoll::EventData::new_u64(data), flags))
        };
        let notices = match replica.boundary {
            Boundary::V2(_) => epoll::EventFlags::PRI,
            _ => epoll::EventFlags::IN,
        };
        let _ = watch(replica.output.as_ref(), token, epoll::EventFlags::IN);
        let _ = watch(replica.oom_events.as_ref(), token | 1, notices);
        self.tokens.insert(token, instance.clone());
        let pid = replica.root.pid;
        self.roots.insert(pid, instance.clone());
        self.replicas.insert(instance.clone(), replica);
        self.input(Input::Started { instance, pid, port });
    }

    fn stage_file(&self, instance: &Instance) -> PathBuf {
        let dir = self.options.runtime_dir.join("stages");
        let _ = std::fs::create_dir_all(&dir);
        dir.join(format!("{}.{}.json", instance.service, instance.replica))
    }

    /// Starts something for a replica, in its group: a health test, a hook.
    fn beside(
        &self,
        instance: &Instance,
        spec: Option<&ServiceSpec>,
        command: &[String],
        more: &[(&str, String)],
    ) -> Result<i32, String> {
        let replica = self.replicas.get(instance).ok_or("it does not run")?;
        let spec = spec.or_else(|| self.options.spec.services.get(&*instance.service)).ok_or("it is not known")?;
        let words: Vec<OsString> = command.iter().map(|word| with_port(word, replica.port).into()).collect();
        let (join, into) = replica.boundary.entrance();
        let null = Some(self.null.as_fd());
        let launch = Launch {
            command: &words,
            env: environment(spec, self.id.as_str(), instance, replica.port, more),
            workdir: Some(&spec.working_dir),
            stdio: [null; 3],
            join,
            into,
            lock: Some(self.registration.as_fd()),
            oom_score_adj: None,
            job: Job::Own,
            mask: self.mask,
        };
        launch.start().map_err(|error| error.to_string())
    }

    fn probe(&mut self, instance: Instance, probe: u64, spec: &ServiceSpec, timeout: Duration) {
        let Some(health) = &spec.healthcheck else { return };
        match self.beside(&instance, Some(spec), &health.test, &[]) {
            Ok(pid) => {
                let deadline = Instant::now().after(timeout);
                self.tests.insert(pid, Test { instance, probe, deadline });
            }
            Err(why) => self.input(Input::Probed { instance, probe, outcome: Probe::NotRun(why) }),
        }
    }

    fn look(&mut self, instances: &[Instance]) {
        let trees = instances.iter().filter_map(|instance| self.replicas.get_mut(instance)?.sample()).collect();
        let load = read_file("/proc/loadavg").ok();
        let memory = machine_memory();
        let host = HostSample {
            available_bytes: memory.as_ref().map(|memory| memory.available),
            memory_full_percent: None,
            load_1m: load.as_deref().and_then(parse_loadavg).map(|load| load.load1),
            swap_used_bytes: memory.as_ref().map(|memory| memory.swap_used),
            io_wait_percent: None,
        };
        let budget_used_bytes = self.budget.usage();
        self.input(Input::Sampled(Measured { trees, budget_used_bytes, host }));
    }

    fn ask(&mut self, instance: &Instance, ask: &Ask, stage: &str) {
        match ask {
            Ask::Signal(number) => {
                if let Some(replica) = self.replicas.get(instance) {
                    let _ = signal::send(replica.root.pid, *number);
                }
            }
            Ask::Command(command) => {
                if let Err(why) = self.beside(instance, None, command, &[("PLIMSOLL_STAGE", stage.to_owned())]) {
                    self.note(instance, &format!("its hook did not start: {why}"));
                }
            }
        }
    }

    fn route(&mut self, service: &Name, listen: Option<std::net::SocketAddr>, backends: &[Backend]) {
        let Some(address) = listen else { return self.gateway.close(service, CLOSING) };
        if self.gateway.port(service).is_none_or(|(open, _)| open != address)
            && let Err(error) = self.gateway.open(service, address, PortLimits::default())
        {
            self.note_all(&format!("{service}: {error}"));
            return;
        }
        let backends = backends
            .iter()
            .map(|backend| plimsoll_gateway::Backend {
                instance: backend.instance.generation,
                port: backend.port,
                state: if backend.spare { State::Spare } else { State::Up },
            })
            .collect();
        self.gateway.route(service, backends);
    }

    fn census(&mut self) {
        let tenth = self.options.total / 10;
        for replica in self.replicas.values() {
            for member in replica.members().iter().filter(|member| member.memory_bytes > tenth) {
                let row = serde_json::json!({
                    "at": clock::wall().to_string(), "event": "large_process", "service": replica.instance.service,
                    "replica": replica.instance.replica, "pid": member.pid, "parent": member.parent,
                    "name": member.name, "memory_bytes": member.memory_bytes,
                });
                (self.options.journal)(&row.to_string());
            }
        }
    }

    fn emit(&mut self, event: &Event) {
        if let Some(counter) = event.counter() {
            *self.counters.entry(counter).or_default() += 1;
        }
        let mut row = serde_json::to_value(event).unwrap_or_default();
        if let Some(fields) = row.as_object_mut() {
            fields.insert("at".to_owned(), clock::wall().to_string().into());
        }
        let row = row.to_string();
        (self.options.journal)(&row);
        self.events.retain(|stream| stream.send(format!("data: {row}\n\n")));
        let text = event.to_string();
        if let Some(service) = event.service().cloned() {
            let who = event.instance().map_or_else(|| service.to_string(), ToString::to_string);
            let words = text.strip_prefix(&format!("{who} ")).unwrap_or(&text);
            let line = self.logs.note(&service, &who, words);
            self.follow(&service, &line);
        }
        (self.options.say)(&text);
    }

    fn deliver(&mut self, delivery: Delivery, event: &Event) {
        let body = serde_json::to_string(event).unwrap_or_default();
        match delivery {
            Delivery::Command(command) => {
                let words: Vec<OsString> = command.iter().map(OsString::from).collect();
                let mut env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
                env.push(("PLIMSOLL_EVENT".into(), body.into()));
                let null = Some(self.null.as_fd());
                let launch = Launch {
                    command: &words,
                    env,
                    workdir: None,
                    stdio: [null; 3],
                    join: Vec::new(),
                    into: None,
                    lock: Some(self.registration.as_fd()),
                    oom_score_adj: None,
                    job: Job::Own,
                    mask: self.mask,
                };
                if let Err(error) = launch.start() {
                    self.note_all(&format!("the alert's command did not start: {error}"));
                }
            }
            Delivery::Webhook(url) => {
                // Nobody waits for a stranger: one thread each, which ends in seconds.
                let _ = std::thread::Builder::new().stack_size(64 << 10).spawn(move || post(&url, &body));
            }
        }
    }

    fn reload(&mut self, reply: Option<Reply>) {
        match (self.options.reload)() {
            Ok(spec) => {
                self.options.spec = spec.clone();
                let request = Some(self.request(reply));
                self.input(Input::Load { request, spec });
            }
            Err(why) => {
                self.note_all(&format!("the file is not taken, nothing is changed: {why}"));
                if let Some(reply) = reply {
                    reply.send(Text { status: 422, ..Text::text(why + "\n") });
                }
            }
        }
    }

    fn close(self) {
        let Self { gateway, budget, registration, options, .. } = self;
        gateway.stop(CLOSING);
        let dirs = budget.directories();
        teardown::kill_until_empty(&dirs, || while spawn::wait_any().is_some() {});
        let _ = budget.remove();
        let _ = std::fs::remove_dir_all(options.runtime_dir.join("stages"));
        let _ = registration.remove();
    }
}

/// What people ask.
impl Supervisor<'_> {
    fn answer_word(&mut self, word: Word) {
        let (question, reply) = match word {
            Word::Asked(question, reply) => (question, reply),
            Word::Told(Told::Drained { service, instance, .. }) => {
                let drained = self.replicas.keys().find(|one| *one.service == *service && one.generation == instance);
                if let Some(instance) = drained.cloned() {
                    self.input(Input::Drained { instance });
                }
                return;
            }
            Word::Told(Told::Closed { .. }) => return,
        };
        match question {
            Question::Status => reply.send(Text::json(self.status())),
            Question::Health | Question::Ready => reply.send(Text::json(self.health())),
            Question::Metrics => reply.send(Text { kind: Kind::Prometheus, ..Text::text(self.metrics()) }),
            Question::Events => self.events.push(reply.stream(Kind::Events)),
            Question::Processes => reply.send(Text::json(self.processes())),
            Question::Certificates | Question::Certificate(_) => reply.send(self.certificates(&question)),
            Question::Logs { service, tail, follow } => self.send_logs(reply, service, tail, follow),
            Question::Do(control::Command::Reload) => self.reload(Some(reply)),
            Question::Do(command) => {
                let command = match command {
                    control::Command::Down | control::Command::Reload => Command::Down,
                    control::Command::Restart(name) => Command::Restart(name.as_str().into()),
                    control::Command::Start(name) => Command::Start(name.as_str().into()),
                    control::Command::Stop(name) => Command::Stop(name.as_str().into()),
                    control::Command::Scale { service, replicas } => Command::Scale(service.as_str().into(), replicas),
                };
                let request = self.request(Some(reply));
                self.input(Input::Command { request, command });
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        self.stack.snapshot(self.now())
    }

    fn status(&self) -> String {
        let mut value = serde_json::to_value(self.snapshot()).unwrap_or_default();
        if let Some(fields) = value.as_object_mut() {
            // Their issues are still to come; the shape is the contract's.
            fields.insert("pools".to_owned(), serde_json::json!([]));
            fields.insert("imports".to_owned(), serde_json::json!([]));
        }
        value.to_string()
    }

    fn health(&self) -> String {
        let own = read_file("/proc/self/statm").ok().and_then(|text| {
            let text = String::from_utf8_lossy(&text).into_owned();
            text.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        let own = own.unwrap_or(0) * 4096;
        let all = own + self.budget.usage().unwrap_or(0);
        let restarts: u64 = self.snapshot().services.iter().map(|row| row.restarts).sum();
        serde_json::json!({
            "status": if self.finished { "stopping" } else { "ok" },
            "memory": {"rss_mb": all as f64 / 1048576.0, "self_rss_mb": own as f64 / 1048576.0},
            "active_queries": 0,
            "stats": {"total_requests": 0, "total_errors": 0, "restart_count": restarts},
            "recovery_attempts": 0,
        })
        .to_string()
    }

    fn metrics(&self) -> String {
        let snapshot = self.snapshot();
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, rows: Vec<(String, f64)>| {
            text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
            rows.iter().for_each(|(labels, value)| text.push_str(&format!("{name}{labels} {value}\n")));
        };
        let each = |value: fn(&plimsoll_core::stack::snapshot::ServiceRow) -> f64| {
            let label = |row: &plimsoll_core::stack::snapshot::ServiceRow| {
                format!("{{service=\"{}\",replica=\"{}\"}}", row.name, row.replica)
            };
            snapshot.services.iter().map(|row| (label(row), value(row))).collect::<Vec<_>>()
        };
        let one = |value: u64| vec![(String::new(), value as f64)];
        family("plimsoll_budget_limit_bytes", "gauge", "What all services may hold.", one(snapshot.budget.limit_bytes));
        family("plimsoll_budget_used_bytes", "gauge", "What all services hold.", one(snapshot.budget.used_bytes));
        family("plimsoll_service_memory_bytes", "gauge", "What a replica holds.", each(|row| row.memory_bytes as f64));
        family("plimsoll_service_limit_bytes", "gauge", "A replica's line.", each(|row| row.limit_bytes as f64));
        family("plimsoll_service_processes", "gauge", "A replica's processes.", each(|row| f64::from(row.processes)));
        family("plimsoll_service_restarts_total", "counter", "A replica's restarts.", each(|row| row.restarts as f64));
        family("plimsoll_service_oom_kills_total", "counter", "Killed for memory.", each(|row| row.oom_kills as f64));
        for (name, count) in &self.counters {
            family(name, "counter", "Events of this kind.", one(*count));
        }
        text
    }

    fn processes(&self) -> String {
        let trees: Vec<_> = self
            .replicas
            .values()
            .map(|replica| {
                let members: Vec<_> = replica
                    .members()
                    .iter()
                    .map(|member| {
                        serde_json::json!({
                            "pid": member.pid, "parent": member.parent, "depth": member.depth, "name": member.name,
                            "memory_bytes": member.memory_bytes,
                        })
                    })
                    .collect();
                serde_json::json!({
                    "service": replica.instance.service, "replica": replica.instance.replica, "processes": members,
                })
            })
            .collect();
        serde_json::json!({ "trees": trees }).to_string()
    }

    fn certificates(&self, question: &Question) -> Text {
        let found = CertificateStore::open(&self.options.state_dir).and_then(|mut store| match question {
            Question::Certificate(id) => store.by_id_prefix(id, 1),
            _ => store.list(100),
        });
        match (found, question) {
            (Ok(all), Question::Certificate(_)) => match all.first() {
                Some(one) => Text::json(serde_json::to_vec(one).unwrap_or_default()),
                None => Text { status: 404, ..Text::text("no certificate of this id\n") },
            },
            (Ok(all), _) => Text::json(serde_json::to_vec(&all).unwrap_or_default()),
            (Err(error), _) => Text { status: 500, ..Text::text(format!("{error}\n")) },
        }
    }

    fn send_logs(&mut self, reply: Reply, service: Option<String>, tail: Option<u64>, follow: bool) {
        let known: Vec<Name> = self.options.spec.services.keys().map(|name| Name::from(name.as_str())).collect();
        let meant: Vec<Name> = match &service {
            Some(name) => known.into_iter().filter(|known| &**known == name.as_str()).collect(),
            None => known,
        };
        if meant.is_empty() {
            let name = service.unwrap_or_default();
            return reply.send(Text { status: 404, ..Text::text(format!("no service is called `{name}`\n")) });
        }
        let count = usize::try_from(tail.unwrap_or(10_000)).unwrap_or(10_000).min(10_000);
        let lines = self.logs.tail(&meant, count).concat();
        let stream = reply.stream(Kind::Text);
        if (lines.is_empty() || stream.send(lines)) && follow {
            self.followers.push((service, stream));
        }
    }
}

fn in_words(answer: &Answer) -> Text {
    match answer {
        Answer::Done | Answer::Admitted => Text::text("done\n"),
        Answer::Loaded { added, restarted, adapted, removed } => {
            let list = |what: &str, names: &[Name]| {
                let names: Vec<&str> = names.iter().map(|name| &**name).collect();
                if names.is_empty() { String::new() } else { format!("{what}: {}\n", names.join(", ")) }
            };
            let text =
                [list("added", added), list("replaced", restarted), list("adapted", adapted), list("removed", removed)];
            let text = text.concat();
            Text::text(if text.is_empty() { "nothing has changed\n".to_owned() } else { text })
        }
        Answer::Refused(why) => {
            let (status, retry_after_s) = match why {
                Refusal::UnknownService(_) => (404, None),
                Refusal::NoRoom { retry_after, .. } => (429, u32::try_from(retry_after.as_secs()).ok()),
                _ => (409, None),
            };
            Text { status, retry_after_s, ..Text::text(format!("{why}\n")) }
        }
    }
}

/// A port that nobody has at this moment.
fn free_port() -> Option<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).ok()?;
    Some(listener.local_addr().ok()?.port())
}

/// Posts an event to an `http://` address; whoever does not answer within seconds has not heard it.
fn post(url: &str, body: &str) {
    let Some((host, path)) = url.strip_prefix("http://").map(|rest| rest.split_once('/').unwrap_or((rest, ""))) else {
        return;
    };
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let patience = Duration::from_secs(5);
    let Some(address) = std::net::ToSocketAddrs::to_socket_addrs(&address).ok().and_then(|mut all| all.next()) else {
        return;
    };
    let Ok(mut stream) = std::net::TcpStream::connect_timeout(&address, patience) else { return };
    let _ = stream.set_write_timeout(Some(patience));
    let _ = write!(
        stream,
        "POST /{path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
}

/// Signals that the supervisor acts on.
pub(super) fn signals() -> SignalSet {
    SignalSet::of(&[
        Signal::CHILD.as_raw(),
        Signal::TERM.as_raw(),
        Signal::INT.as_raw(),
        Signal::HUP.as_raw(),
        Signal::QUIT.as_raw(),
    ])
}
