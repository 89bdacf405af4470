//! The loop: what the kernel, the clock and people say goes into the core, what it decides is carried out.
//!
//! # Theory of operation
//! One thread waits in `epoll` for signals (a child's end among them), the guard, the room that speaks HTTP, the output
//! of every replica and its notices of OOM kills, and for the time that the core has asked to be called at. Everything
//! becomes an [`Input`]; every [`Effect`] is performed at once and answers, if it answers, with a further input. Nothing
//! is decided here.

mod answers;
mod errands;
mod exposition;
mod metrics;
mod past;
mod serving;
mod standing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use plimsoll_core::stack::effect::{Backend, Readiness};
use plimsoll_core::stack::input::{End, HostSample, Measured};
use plimsoll_core::stack::{Command, Effect, Event, Input, Instance, Name, Request, Stack};
use plimsoll_gateway::control::{Answer as Text, Door, Question, Reply, Stream};
use plimsoll_gateway::desk::{Plea, Session, Verdict};
use plimsoll_gateway::{Gateway, Limits as PortLimits, State, Told};
use plimsoll_kernel::boundary::Boundary;
use plimsoll_kernel::cgroup::{Found, teardown};
use plimsoll_kernel::clock::{self, Instant};
use plimsoll_kernel::host::{group_memory, machine_memory};
use plimsoll_kernel::procfs::{CpuTimes, parse_cpu_times, parse_loadavg, parse_pressure, read_file};
use plimsoll_kernel::resident;
use plimsoll_kernel::signal::{SignalFd, SignalSet};
use plimsoll_kernel::spawn::{self, Wait};
use plimsoll_model::ending::RootExit;
use plimsoll_model::stack::ServiceSpec;
use plimsoll_model::{Limits, Member, OnLimit, RunId};
use plimsoll_store::{Registration, RunningTree, inbox};
use rustix::event::epoll;
use rustix::process::Signal;

use super::StackOptions;
use super::journal::Journal;
use super::output::Logs;
use super::replica::{Ground, Replica};
use crate::front::boot_id;
use crate::keeper::kill_tagged;
use errands::Errand;
use metrics::Sums;
use standing::Standing;

/// Questions that wait for the loop; more are told that nobody answers.
const QUESTIONS: usize = 64;

/// What agents and their turns have to tell; one more is told again a moment later.
const PLEAS: usize = 4096;

/// Bytes read of a replica's output at a time, and by far the most that waits in memory.
const CHUNK: usize = 64 << 10;

/// A port closes with so much grace for what has begun.
const CLOSING: Duration = Duration::from_secs(5);

/// A tree is killed for so long at a time: the loop has others to look after.
const ONE_TRY: Duration = Duration::from_millis(50);

/// What would not die is killed again after this, and after longer and longer pauses.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// So often is looked whether those that were admitted to the budget are still there.
const LOOK_FOR_GUESTS: Duration = Duration::from_millis(500);

/// What people are shown of memory is not older than this.
const FRESH: Duration = Duration::from_millis(500);

/// So long after the last start, memory that only starts need is given back.
const AT_REST: Duration = Duration::from_secs(2);

/// A public address that could not be had is tried again after this.
const RETRY_PORTS: Duration = Duration::from_secs(1);

const SIGNALS: u64 = 0;
const GUARD: u64 = 1;
const BELL: u64 = 2;
const SHORTAGE: u64 = 3;
const FIRST_REPLICA: u64 = 16;

/// What the room that speaks HTTP hands over.
enum Word {
    Asked(Question, Reply),
    Told(Told),
    Undelivered(String),
}

pub(super) struct Supervisor<'o> {
    options: &'o mut StackOptions,
    stack: Stack,
    began: Instant,
    todo: VecDeque<Effect>,
    /// What is in the journal and not told yet, with its row.
    telling: Vec<(Event, String)>,
    id: RunId,
    budget: Boundary,
    /// What is in force as its limit, bytes.
    budget_bytes: u64,
    /// Tells of memory becoming short in it.
    shortage: Option<OwnedFd>,
    found: Found,
    reports: PathBuf,
    registration: Registration,
    mask: SignalSet,
    null: OwnedFd,
    epoll: OwnedFd,
    replicas: BTreeMap<Instance, Replica>,
    roots: BTreeMap<i32, Instance>,
    tokens: BTreeMap<u64, Instance>,
    next_token: u64,
    /// Trees that were killed and are not proven gone, and when they are killed again.
    dying: Vec<Dying>,
    empties: Vec<Empty>,
    errands: BTreeMap<i32, Errand>,
    webhooks: SyncSender<(String, String)>,
    journal: Journal,
    logs: Logs,
    gateway: Gateway,
    /// Asks the loop, from the room's thread.
    ask: Asker,
    /// Sessions by their generation.
    sessions: BTreeMap<u64, Instance>,
    /// Users that sessions have.
    users: BTreeSet<u32>,
    words: Receiver<Word>,
    pleas: Receiver<Plea>,
    /// The bell was rung for pleas, and they were not looked for since.
    pleaded: Arc<AtomicBool>,
    replies: BTreeMap<u64, Reply>,
    /// Rooms of others' runs in our budget: each is held until its stream is closed.
    leases: BTreeMap<u64, Stream>,
    next_request: u64,
    events: Vec<Stream>,
    followers: Vec<(Option<String>, Stream)>,
    sums: Sums,
    standing: Standing,
    cpu_times: Option<CpuTimes>,
    io_wait_percent: Option<f64>,
    /// When all trees were looked at because somebody asked.
    looked_at: Option<Instant>,
    /// What goes wrong at this moment beside the services themselves, by what it is about.
    troubles: BTreeMap<String, String>,
    /// Public addresses that could not be opened.
    unopened: BTreeMap<Name, (SocketAddr, Vec<Backend>)>,
    retry_ports: Option<Instant>,
    /// When what starts needed is given back.
    give_back: Option<Instant>,
    finished: bool,
}

/// What the loop hears and says, apart from the trees.
struct Outside {
    null: OwnedFd,
    epoll: OwnedFd,
    logs: Logs,
    gateway: Gateway,
    ask: Asker,
    words: Receiver<Word>,
    pleas: Receiver<Plea>,
    pleaded: Arc<AtomicBool>,
    webhooks: SyncSender<(String, String)>,
}

/// Hands a question to the loop.
type Asker = Arc<dyn Fn(Question, Reply) + Send + Sync>;

/// A tree that was killed and is not proven gone.
struct Dying {
    replica: Replica,
    again: Instant,
    pause: Duration,
}

/// The group of a tree that is gone, to be removed.
struct Empty {
    instance: Instance,
    group: Boundary,
    since: Instant,
    again: Instant,
    pause: Duration,
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
        let total = options.spec.budget.bytes(options.place.total);
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
        let (journal, notices) = Journal::open(&options.state_dir)?;
        notices.iter().for_each(|notice| (options.say)(notice));
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
        let Outside { null, epoll, logs, gateway, ask, words, pleas, pleaded, webhooks } = match rest {
            Ok(rest) => rest,
            Err(why) => {
                let _ = budget.remove();
                return Err(undo(registration, why));
            }
        };
        let parent = options.found.parent.as_ref().map(|parent| parent.below(id.as_str()));
        let found = Found { parent, ..options.found.clone() };
        let reports = options.runtime_dir.join("reports");
        // Of a supervisor that was killed: nobody reads them any more.
        let _ = std::fs::remove_dir_all(&reports);
        let _ = std::fs::remove_dir_all(options.runtime_dir.join("stages"));
        past::clear_sessions(&options.runtime_dir, &options.state_dir);
        if let Err(error) = std::fs::create_dir_all(&reports) {
            let _ = budget.remove();
            return Err(undo(registration, format!("{}: {error}", reports.display())));
        }
        Ok(Self {
            stack: Stack::new(options.place.total, options.cores),
            options,
            began: Instant::now(),
            todo: VecDeque::new(),
            telling: Vec::new(),
            id,
            budget,
            budget_bytes: total,
            shortage: None,
            found,
            reports,
            registration,
            mask,
            null,
            epoll,
            replicas: BTreeMap::new(),
            roots: BTreeMap::new(),
            tokens: BTreeMap::new(),
            next_token: FIRST_REPLICA,
            dying: Vec::new(),
            empties: Vec::new(),
            errands: BTreeMap::new(),
            webhooks,
            journal,
            logs,
            gateway,
            ask,
            sessions: BTreeMap::new(),
            users: BTreeSet::new(),
            words,
            pleas,
            pleaded,
            replies: BTreeMap::new(),
            leases: BTreeMap::new(),
            next_request: 1,
            events: Vec::new(),
            followers: Vec::new(),
            sums: Sums::default(),
            standing: Standing::new(),
            cpu_times: None,
            io_wait_percent: None,
            looked_at: None,
            troubles: BTreeMap::new(),
            unopened: BTreeMap::new(),
            retry_ports: None,
            give_back: Some(Instant::now().after(AT_REST)),
            finished: false,
        })
    }

    fn descriptors(options: &StackOptions, door: Door) -> Result<Outside, String> {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(|e| e.to_string())?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| error.to_string())?;
        let logs = Logs::new(options.state_dir.join("logs")).map_err(|error| error.to_string())?;
        let bell =
            rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK)
                .map_err(|error| error.to_string())?;
        let bell = Arc::new(bell);
        // By edge: each ring wakes once, and nobody has to read the bell.
        let ring_once = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &*bell, epoll::EventData::new_u64(BELL), ring_once).map_err(|e| e.to_string())?;
        let (say, words) = sync_channel::<Word>(QUESTIONS);
        let ring = move |say: &SyncSender<Word>, bell: &OwnedFd, word: Word| {
            if say.try_send(word).is_ok() {
                let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
            }
        };
        let (say_told, bell_told) = (say.clone(), bell.clone());
        let (say_failed, bell_failed) = (say.clone(), bell.clone());
        let webhooks = errands::webhooks(move |why| ring(&say_failed, &bell_failed, Word::Undelivered(why)))
            .map_err(|error| error.to_string())?;
        let (plead, pleas) = sync_channel::<Plea>(PLEAS);
        let (bell_plead, pleaded) = (bell.clone(), Arc::new(AtomicBool::new(false)));
        let is_pleaded = pleaded.clone();
        let plead = move |plea: Plea| plead.try_send(plea).is_ok();
        // Who has not come yet for the last ring finds what was pleaded since as well.
        let wake = move || {
            if !is_pleaded.swap(true, Ordering::SeqCst) {
                let _ = rustix::io::write(&*bell_plead, &1u64.to_ne_bytes());
            }
        };
        let gateway = Gateway::start(move |told| ring(&say_told, &bell_told, Word::Told(told)), plead, wake)
            .map_err(|error| error.to_string())?;
        let ask: Asker = Arc::new(move |question, reply| ring(&say, &bell, Word::Asked(question, reply)));
        let asked = ask.clone();
        gateway.serve(door, move |question, reply| asked(question, reply));
        Ok(Outside { null: null.into(), epoll, logs, gateway, ask, words, pleas, pleaded, webhooks })
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
        self.journal.keep(|name| spec.services.contains_key(name));
        let remembered = self.journal.remembered();
        self.input(Input::Remember(remembered));
        self.listen_for_shortage();
        self.tell_pools();
        self.input(Input::Load { request: None, spec });
        self.perform();
        self.open_gateway();
        self.tell_how_it_stands();
        while !(self.finished && self.replicas.is_empty() && self.dying.is_empty() && self.empties.is_empty()) {
            self.wait(signals, guard);
            self.end_slow_errands();
            self.bury(false);
            self.clear_up();
            self.retry_ports();
            self.give_back();
            self.see_off_guests();
            if self.stack.next_due().is_some_and(|due| self.now() >= due) {
                self.input(Input::Tick);
            }
            self.perform();
            self.tell_how_it_stands();
        }
        self.close();
        Ok(())
    }

    fn wait(&mut self, signals: &SignalFd, guard: &OwnedFd) {
        self.gateway.wake();
        let mut due = self.stack.next_due().map(|due| due.saturating_sub(self.now()));
        let now = Instant::now();
        let errands = self.errands.values().map(|errand| errand.deadline);
        // Nobody rings when a guest hangs up.
        let guests = (!self.leases.is_empty() || !self.replies.is_empty()).then(|| now.after(LOOK_FOR_GUESTS));
        let others = errands
            .chain(guests)
            .chain(self.dying.iter().map(|dying| dying.again))
            .chain(self.empties.iter().map(|empty| empty.again))
            .chain(self.retry_ports)
            .chain(self.give_back)
            .chain(self.standing.due());
        for at in others {
            let left = at.since(now);
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
                    // Before they are taken: what is pleaded from now on rings again.
                    self.pleaded.store(false, Ordering::SeqCst);
                    while let Ok(plea) = self.pleas.try_recv() {
                        self.plea(plea);
                    }
                }
                SHORTAGE => self.memory_is_short(),
                token => self.replica_ready(token),
            }
        }
    }

    /// Also between two looks the kernel tells when the budget fills up.
    fn listen_for_shortage(&mut self) {
        let marks = [70, 80, 90].map(|percent| self.budget_bytes / 100 * percent);
        self.shortage = self.budget.shortage(&marks);
        let flags = match self.budget {
            Boundary::V2(_) => epoll::EventFlags::PRI,
            _ => epoll::EventFlags::IN,
        };
        if let Some(fd) = &self.shortage {
            let _ = epoll::add(&self.epoll, fd, epoll::EventData::new_u64(SHORTAGE), flags);
        }
    }

    fn memory_is_short(&mut self) {
        if let (Boundary::V1(_), Some(fd)) = (&self.budget, &self.shortage) {
            let _ = rustix::io::read(fd, &mut [0; 8]);
        }
        let all: Vec<Instance> = self.replicas.keys().cloned().collect();
        self.look(&all);
    }

    /// What the file, or the machine, says of the budget now is put in force.
    fn adapt_budget(&mut self) {
        let bytes = self.snapshot().budget.limit_bytes;
        if bytes == self.budget_bytes {
            return;
        }
        match self.budget.change_memory(bytes, OnLimit::Largest) {
            Ok(()) => {
                self.budget_bytes = bytes;
                self.trouble("budget", None);
                if self.shortage.take().is_some() {
                    self.listen_for_shortage();
                }
            }
            Err(error) => self.trouble("budget", Some(format!("its limit stays as it was: {error}"))),
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
        } else {
            self.errand_ended(pid, exit);
        }
    }

    /// Ends what is left of a tree; when that is proven, it is certified, and the core is told.
    fn end(&mut self, instance: &Instance, exit: RootExit) {
        let Some(mut replica) = self.replicas.remove(instance) else {
            if let Some(dying) = self.dying.iter_mut().find(|dying| dying.replica.instance == *instance) {
                dying.replica.root_ended(exit);
            }
            return;
        };
        let who = instance.to_string();
        self.tokens.retain(|_, of| of != instance);
        // What it still has to say is in the pipe.
        if let Some(output) = replica.output.take() {
            self.drain_output(&output, instance);
        }
        if let Some(line) = self.logs.finish(&instance.service, &who) {
            self.follow(&instance.service, &line);
        }
        replica.begin_end(exit);
        self.dying.push(Dying { replica, again: Instant::now(), pause: FIRST_PAUSE });
        self.bury(false);
    }

    /// Kills those again that are due, or all, and lets those go that are proven gone.
    fn bury(&mut self, all: bool) {
        let now = Instant::now();
        for mut dying in std::mem::take(&mut self.dying) {
            if !all && now < dying.again {
                self.dying.push(dying);
                continue;
            }
            let root = dying.replica.child();
            let mut others = Vec::new();
            let gone = dying.replica.kill(ONE_TRY, || {
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
            if gone {
                self.buried(dying.replica);
            } else {
                dying.again = Instant::now().after(dying.pause);
                dying.pause = (dying.pause * 2).min(LONGEST_PAUSE);
                self.dying.push(dying);
            }
            for (pid, wait) in others {
                self.child_ended(pid, wait);
            }
        }
    }

    fn buried(&mut self, replica: Replica) {
        let instance = replica.instance.clone();
        self.roots.remove(&replica.child());
        self.forget_errands(&instance);
        self.sums.bury(&replica);
        if let Some(seat) = &replica.seat {
            self.keep(&instance, seat);
            seat.remove();
            if let Some(user) = seat.user {
                self.users.remove(&user);
            }
        }
        let Some(ended) = replica.finish() else { return };
        let certificate = &ended.certificate;
        self.sums.add_survivors(u64::from(certificate.tree.survivors));
        let end = End {
            cause: certificate.cause,
            code: certificate.exit.code,
            signal: certificate.exit.signal,
            bytes_freed: ended.bytes_freed,
            peak_bytes: Some(certificate.memory.peak_bytes),
            oom_kills: ended.oom_kills,
            survivors: certificate.tree.survivors,
        };
        // Before the end is told: a supervisor that is killed in between leaves no end without its certificate.
        let stored = inbox::append(&self.options.state_dir, certificate);
        self.trouble("certificates", stored.err().map(|error| error.to_string()));
        self.input(Input::Exited { instance: instance.clone(), end });
        // The next start does not wait for the removal of the empty group.
        self.perform();
        let empty =
            Empty { instance, group: ended.group, since: Instant::now(), pause: FIRST_PAUSE, again: Instant::now() };
        self.empties.push(empty);
        self.clear_up();
    }

    /// Removes groups that nobody is in. The kernel may call one busy for a while, which nobody waits for.
    fn clear_up(&mut self) {
        let now = Instant::now();
        for mut empty in std::mem::take(&mut self.empties) {
            if now < empty.again {
                self.empties.push(empty);
                continue;
            }
            let Err(trouble) = empty.group.remove_for(Duration::ZERO) else { continue };
            if empty.since.elapsed() > teardown::BUSY {
                self.note(&empty.instance, &format!("a group is left behind: {trouble}"));
                continue;
            }
            empty.again = Instant::now().after(empty.pause);
            empty.pause = (empty.pause * 2).min(LONGEST_PAUSE);
            self.empties.push(empty);
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

    /// Something beside the services goes wrong, or does no more: told at the edges, and shown as long as it lasts.
    fn trouble(&mut self, about: &str, why: Option<String>) {
        match why {
            Some(why) if !self.troubles.contains_key(about) => {
                self.note_all(&format!("{about}: {why}; services go on"));
                self.troubles.insert(about.to_owned(), why);
            }
            Some(_) => {}
            None => {
                if self.troubles.remove(about).is_some() {
                    self.note_all(&format!("{about}: all is well again"));
                }
            }
        }
    }
}

/// What the core decided.
impl Supervisor<'_> {
    fn perform(&mut self) {
        while let Some(effect) = self.todo.pop_front() {
            self.act(effect);
        }
        self.tell();
        self.journal.save_now_and_then();
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Start { instance, spec, limits, wants_port, resumes, .. } => {
                // Whoever got a session does not wait for others' processes.
                self.gateway.wake();
                self.start(instance, &spec, limits, wants_port, resumes.as_ref());
            }
            Effect::Stop { instance, signal: number, decision, .. } => {
                if let Some(replica) = self.replicas.get_mut(&instance) {
                    replica.decide(decision);
                    replica.ask_to_end(number);
                }
            }
            Effect::Kill { instance, decision } => {
                if let Some(replica) = self.replicas.get_mut(&instance) {
                    replica.decide(decision);
                    self.end(&instance, RootExit::Unknown);
                }
            }
            Effect::Probe { instance, probe, spec, timeout } => self.probe(instance, probe, &spec, timeout),
            Effect::Look { instances } => self.look(&instances),
            Effect::Stage { instance, stage, scale } => {
                if self.sessions.contains_key(&instance.generation) {
                    let session = Session(instance.generation);
                    self.gateway.tell(Verdict::Stage { session, stage: stage.as_str(), scale });
                }
                let dir = self.stages();
                let _ = std::fs::create_dir_all(&dir);
                let file = dir.join(stage_file(&instance));
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
            Effect::Route { service, listen, backends } => self.route(&service, listen, backends),
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
            Effect::Answer { request, answer } => self.answer(request, &answer),
            Effect::Finished => self.finished = true,
            Effect::Assign { turn, instance, key, fresh } => {
                self.sit(&instance, key.as_ref());
                let (turn, session) = (plimsoll_gateway::desk::Turn(turn.0), Session(instance.generation));
                self.gateway.tell(Verdict::Assign { turn, session, fresh });
            }
            Effect::Deny { turn, denial } => self.say_denied(turn, denial),
            Effect::Interrupt { instance, why } => {
                self.gateway.tell(Verdict::Interrupt { session: Session(instance.generation), why });
            }
            Effect::Hangup { instance, decision } => {
                if let Some(replica) = self.replicas.get_mut(&instance) {
                    replica.decide(decision);
                }
                self.gateway.tell(Verdict::Hangup { session: Session(instance.generation) });
            }
            Effect::SessionGone { instance, why, is_failed } => self.session_gone(&instance, why, is_failed),
        }
    }

    fn ground(&self) -> Ground<'_> {
        Ground {
            found: &self.found,
            tag: self.id.as_str(),
            reports: &self.reports,
            folders: [&self.options.state_dir, &self.options.runtime_dir],
            mask: self.mask,
            null: self.null.as_fd(),
            lock: self.registration.as_fd(),
        }
    }

    fn give_back(&mut self) {
        if self.give_back.is_some_and(|at| Instant::now() >= at) {
            self.give_back = None;
            resident::give_back();
        }
    }

    fn start(
        &mut self,
        instance: Instance,
        spec: &Arc<ServiceSpec>,
        limits: Limits,
        wants_port: bool,
        resumes: Option<&Name>,
    ) {
        self.give_back = Some(Instant::now().after(AT_REST));
        let port = if wants_port { free_port() } else { None };
        let stage_file = self.stages().join(stage_file(&instance));
        let past = self.past(&instance, resumes);
        let seat = match self.seat(&instance, past.as_ref()) {
            Ok(seat) => seat,
            Err(why) => return self.input(Input::StartFailed { instance, why }),
        };
        let resumed = seat.as_ref().zip(past).and_then(|(seat, past)| self.give(&instance, seat, past));
        let pool = self.options.spec.pools.get(&*instance.service);
        let spec = pool.map_or_else(|| spec.clone(), |pool| past::as_started(pool, spec, resumed.as_deref()));
        let user = seat.as_ref().and_then(|seat| seat.user);
        let started = Replica::start(&self.ground(), instance.clone(), &spec, limits, port, &stage_file, seat);
        let mut replica = match started {
            Ok(replica) => replica,
            Err(failed) => {
                if let Some(user) = user {
                    self.users.remove(&user);
                }
                let stored = inbox::append(&self.options.state_dir, &failed.certificate);
                self.trouble("certificates", stored.err().map(|error| error.to_string()));
                return self.input(Input::StartFailed { instance, why: failed.why });
            }
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
        self.adopt(&mut replica, resumed);
        // It is spoken with while its start is written down.
        self.gateway.wake();
        let pid = replica.root.pid;
        self.roots.insert(replica.child(), instance.clone());
        self.replicas.insert(instance.clone(), replica);
        self.input(Input::Started { instance, pid, port });
    }

    /// Where workloads are told of stages.
    fn stages(&self) -> PathBuf {
        self.options.runtime_dir.join("stages")
    }

    /// Far from their lines trees are looked at seldom; somebody who asks is not told of long ago.
    fn look_again(&mut self) {
        if self.looked_at.is_none_or(|at| at.elapsed() >= FRESH) {
            let all: Vec<Instance> = self.replicas.keys().cloned().collect();
            self.look(&all);
            self.looked_at = Some(Instant::now());
        }
    }

    fn look(&mut self, instances: &[Instance]) {
        let looks = instances.iter().filter_map(|instance| self.replicas.get_mut(instance)?.look());
        let (mut trees, mut stuck) = (Vec::new(), Vec::new());
        for look in looks {
            if let Some(limit) = look.stuck_at {
                stuck.push((look.sample.instance.clone(), look.sample.memory_bytes, limit));
            }
            trees.push(look.sample);
        }
        let host = self.look_at_the_machine();
        let budget_used_bytes = self.budget.usage();
        self.input(Input::Sampled(Measured { trees, budget_used_bytes, host }));
        for (instance, usage, limit) in stuck {
            self.input(Input::Livelocked { instance, usage, limit });
        }
        let behind = |is_behind: bool| is_behind.then(|| "the disk does not take it (is it full?)".to_owned());
        self.trouble("journal", behind(self.journal.is_behind()));
        self.trouble("logs", behind(self.logs.are_behind()));
    }

    fn look_at_the_machine(&mut self) -> HostSample {
        let load = read_file("/proc/loadavg").ok();
        let memory = machine_memory();
        let around = self.options.place.group.as_ref().and_then(|(dir, version)| group_memory(dir, *version));
        let around = around.map(|group| group.limit.saturating_sub(group.used));
        let pressure = read_file("/proc/pressure/memory").ok().as_deref().and_then(parse_pressure);
        if let Some(times) = read_file("/proc/stat").ok().as_deref().and_then(parse_cpu_times) {
            let before = self.cpu_times.unwrap_or_default();
            let passed = times.total.saturating_sub(before.total);
            // Of less than a tenth of a second the ticks tell nothing.
            if passed >= 10 * u64::from(self.options.cores) {
                if self.cpu_times.is_some() {
                    let waited = times.io_wait.saturating_sub(before.io_wait);
                    self.io_wait_percent = Some(waited as f64 * 100.0 / passed as f64);
                }
                self.cpu_times = Some(times);
            }
        }
        HostSample {
            // A container is full when its own limit is met, whatever the machine has.
            available_bytes: memory.as_ref().map(|memory| memory.available.min(around.unwrap_or(u64::MAX))),
            memory_full_percent: pressure.and_then(|pressure| pressure.full).map(|full| f64::from(full.avg10)),
            load_1m: load.as_deref().and_then(parse_loadavg).map(|load| load.load1),
            swap_used_bytes: memory.as_ref().map(|memory| memory.swap_used),
            io_wait_percent: self.io_wait_percent,
        }
    }

    fn route(&mut self, service: &Name, listen: Option<SocketAddr>, backends: Vec<Backend>) {
        self.unopened.remove(service);
        let about = format!("the port of {service}");
        let Some(address) = listen else {
            self.trouble(&about, None);
            return self.gateway.close(service, CLOSING);
        };
        if self.gateway.port(service).is_none_or(|(open, _)| open != address)
            && let Err(error) = self.gateway.open(service, address, PortLimits::default())
        {
            // Whoever has it may let it go.
            self.trouble(&about, Some(error.to_string()));
            self.unopened.insert(service.clone(), (address, backends));
            self.retry_ports.get_or_insert_with(|| Instant::now().after(RETRY_PORTS));
            return;
        }
        self.trouble(&about, None);
        let backends = backends
            .into_iter()
            .map(|backend| plimsoll_gateway::Backend {
                instance: backend.instance.generation,
                port: backend.port,
                state: match backend.readiness {
                    Readiness::Soon => State::Starting,
                    Readiness::Ready => State::Up,
                    Readiness::Spare => State::Spare,
                },
            })
            .collect();
        self.gateway.route(service, backends);
    }

    fn retry_ports(&mut self) {
        if self.retry_ports.is_none_or(|at| Instant::now() < at) {
            return;
        }
        self.retry_ports = None;
        for (service, (address, backends)) in std::mem::take(&mut self.unopened) {
            self.route(&service, Some(address), backends);
        }
    }

    fn census(&mut self) {
        if let Some(place) = (self.options.find_place)().filter(|place| *place != self.options.place) {
            self.input(Input::Capacity(place.total));
            self.options.place = place;
            self.adapt_budget();
        }
        let tenth = self.options.place.total / 10;
        let mut rows = Vec::new();
        for replica in self.replicas.values() {
            let members = replica.members();
            for member in members.iter().filter(|member| member.memory_bytes > tenth) {
                rows.push(Event::LargeProcess {
                    instance: replica.instance.clone(),
                    pid: member.pid,
                    name: member.name.clone(),
                    memory_bytes: member.memory_bytes,
                    tree: path_to(member.pid, &members),
                });
            }
        }
        rows.iter().for_each(|event| self.emit(event));
    }

    fn emit(&mut self, event: &Event) {
        // Without a health check it is available as soon as it runs: nobody has found it healthy.
        if let Event::Healthy { instance } = event
            && self.options.spec.services.get(&*instance.service).is_some_and(|spec| spec.healthcheck.is_none())
        {
            return;
        }
        self.sums.hear(event);
        let row = self.journal.write(event);
        self.telling.push((event.clone(), row));
    }

    /// Tells those who listen, in the order in which things happened. Nobody's start waits for that.
    fn tell(&mut self) {
        for (event, row) in std::mem::take(&mut self.telling) {
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
    }

    fn reload(&mut self, reply: Option<Reply>) {
        self.standing.reloading();
        match (self.options.reload)() {
            Ok(spec) => {
                self.options.spec = spec.clone();
                let request = Some(self.request(reply));
                self.tell_pools();
                self.input(Input::Load { request, spec });
                self.adapt_budget();
            }
            Err(why) => {
                self.note_all(&format!("the file is not taken, nothing is changed: {why}"));
                if let Some(reply) = reply {
                    reply.send(Text { status: 422, ..Text::text(why + "\n") });
                }
            }
        }
        self.standing.reloaded();
    }

    fn close(mut self) {
        self.journal.save();
        // Whoever listens on hears the end, and what is not answered will not be.
        self.events.clear();
        self.followers.clear();
        self.replies.clear();
        self.leases.clear();
        let Self { gateway, budget, registration, options, id, words, .. } = self;
        drop(words);
        gateway.stop(CLOSING);
        let dirs = budget.directories();
        let reap = || while spawn::wait_any().is_some() {};
        teardown::kill_until_empty(&dirs, reap);
        // Hooks and alerts' commands that still run, and where there are no groups whoever they started.
        kill_tagged(id.as_str(), reap);
        let _ = budget.remove();
        for folder in ["stages", "reports"] {
            let _ = std::fs::remove_dir_all(options.runtime_dir.join(folder));
        }
        past::clear_sessions(&options.runtime_dir, &options.state_dir);
        let _ = registration.remove();
    }
}

/// The name of the file that tells this replica of its stage.
fn stage_file(instance: &Instance) -> String {
    format!("{}.{}.json", instance.service, instance.replica)
}

/// The processes from the root down to this one, with their pids.
fn path_to(pid: i32, members: &[Member]) -> Vec<String> {
    let (mut path, mut at) = (Vec::new(), Some(pid));
    while let Some(member) = at.and_then(|pid| members.iter().find(|member| member.pid == pid)) {
        path.push(format!("{} ({})", member.name, member.pid));
        at = Some(member.parent).filter(|_| path.len() < 64);
    }
    path.reverse();
    path
}

/// A port that nobody has at this moment.
fn free_port() -> Option<u16> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).ok()?;
    Some(listener.local_addr().ok()?.port())
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
