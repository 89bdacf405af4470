//! Time, and what happens in it: the machine, the operators, and a core that is told of both.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use plimsoll_core::stack::input::{Command, Outcome, Probe, Remembered};
use plimsoll_core::stack::{Answer, Effect, Event, Input, Instance, Name, Request, Stack, Turn};

use plimsoll_model::stack::ServiceSpec;

use crate::machine::{Happened, Machine};
use crate::random::Random;
use crate::rules::{Broken, Rules};
use crate::{Failure, Options, Report, makeup};

const MIB: u64 = 1 << 20;

/// Trouble lasts for so many inputs at most.
const TROUBLE_STEPS: u64 = 260;

/// Longer than any pause of the core, once in four seeds.
const CALM: Duration = Duration::from_secs(420);

/// Longer than any but that of the evicted.
const SHORT_CALM: Duration = Duration::from_secs(130);

/// And a start, with all that makes it healthy, is over after this.
const LAST_MOMENT: Duration = Duration::from_secs(60);

/// Whatever takes more steps without time passing goes round in circles.
const AT_ONCE: u32 = 400;

/// So many lines lead up to a failure.
const TRACE: usize = 400;

/// Something that will be.
#[derive(Debug, Clone)]
enum Plan {
    Input(Input),
    Probe { instance: Instance, probe: u64, gives_up: bool },
    Look(Vec<Instance>),
    Heard(Happened),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Trouble,
    Calm,
    Down,
}

pub(crate) struct World {
    seed: u64,
    options: Options,
    random: Random,
    now: Duration,
    part: Part,
    stack: Stack,
    machine: Machine,
    rules: Rules,
    plans: BTreeMap<(Duration, u64), Plan>,
    planned: u64,
    next_operator: Duration,
    requests: u64,
    turns: u64,
    /// Turns that agents have.
    running: BTreeMap<Instance, Turn>,
    /// Sessions that were started to take a conversation up again, before their first turn.
    resuming: BTreeSet<Instance>,
    /// Inputs at one instant so far.
    at_once: (Duration, u32),
    /// Instances that once were, for news of them that come late.
    former: VecDeque<Instance>,
    report: Report,
    digest: DefaultHasher,
    trace: VecDeque<String>,
}

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let mut random = Random::new(seed);
        let total = random.between(512, 4096) * MIB;
        let cores = random.between(1, 4) as u32;
        let spec = makeup::stack(&mut random, total);
        #[cfg_attr(not(feature = "sabotage"), expect(unused_mut, reason = "only a broken one is changed"))]
        let mut stack = Stack::new(total, cores);
        #[cfg(feature = "sabotage")]
        if let Some(rule) = options.broken {
            stack.sabotage(rule);
        }
        let rules = Rules::new(total, cores, &spec);
        let machine = Machine::new(total, rules.budget());
        let now = random.ms(0, 1_000_000);
        Self {
            seed,
            options,
            random,
            now,
            part: Part::Trouble,
            stack,
            machine,
            rules,
            plans: BTreeMap::new(),
            planned: 0,
            next_operator: now,
            requests: 0,
            turns: 0,
            running: BTreeMap::new(),
            resuming: BTreeSet::new(),
            at_once: (now, 0),
            former: VecDeque::new(),
            report: Report::default(),
            digest: DefaultHasher::new(),
            trace: VecDeque::new(),
        }
    }

    pub(crate) fn run(mut self) -> Result<Report, Box<Failure>> {
        let begun = self.now;
        match self.history() {
            Ok(()) => {
                self.report.simulated = self.now - begun;
                self.report.oom_kills = self.machine.oom_kills();
                self.report.digest = self.digest.finish();
                Ok(self.report)
            }
            Err((rule, detail)) => Err(Box::new(Failure {
                seed: self.seed,
                step: self.report.steps,
                at: self.now,
                rule,
                detail,
                trace: self.trace.into_iter().collect(),
            })),
        }
    }

    fn history(&mut self) -> Result<(), Broken> {
        if self.random.one_in(3) {
            let known = self.memories();
            self.step(Input::Remember(known))?;
        }
        let spec = Arc::new(self.rules.spec().clone());
        self.step(Input::Load { request: None, spec })?;
        let steps = self.random.between(TROUBLE_STEPS / 2, TROUBLE_STEPS);
        while self.report.steps < steps {
            self.go_on()?;
        }
        self.calm_down()?;
        let is_long = self.random.one_in(4);
        let until = self.now + if is_long { CALM } else { SHORT_CALM };
        // Whoever is scaled up at the last moment is given his.
        while self.now < until || self.rules.is_beginning() && self.now < until + LAST_MOMENT {
            self.go_on()?;
        }
        let snapshot = self.stack.snapshot(self.now);
        self.rules.calm(&snapshot, is_long)?;
        self.part = Part::Down;
        let request = self.request();
        self.step(Input::Command { request, command: Command::Down })?;
        let until = self.now + Duration::from_secs(1000);
        while !self.stack.is_finished() && self.now < until && self.stack.next_due().is_some() {
            self.go_on()?;
        }
        self.rules.gone(&self.machine)
    }

    /// What a journal may know.
    fn memories(&mut self) -> Vec<Remembered> {
        let names: Vec<String> = self.rules.spec().services.keys().cloned().collect();
        let mut known = Vec::new();
        for name in names {
            let peaks = (0..self.random.between(0, 10)).map(|_| self.random.between(1, 300) * MIB).collect();
            known.push(Remembered {
                service: Name::from(name.as_str()),
                restarts: 3,
                oom_kills: 1,
                peaks,
                stopped: false,
            });
        }
        known
    }

    /// Nothing goes wrong from now on.
    fn calm_down(&mut self) -> Result<(), Broken> {
        self.part = Part::Calm;
        let budget = self.machine.budget;
        self.machine.heal(self.now, |instance| makeup::calm_life(&instance.service, budget / 100));
        // Agents become ready, and answer.
        let sessions: Vec<Instance> = self.machine.instances().filter(|one| self.is_session(one)).cloned().collect();
        for instance in sessions {
            self.plan(Duration::from_millis(20), Plan::Input(Input::Ready { instance: instance.clone() }));
            if let Some(turn) = self.running.get(&instance).copied() {
                self.answer(Duration::from_millis(50), instance, turn, Outcome::Answered);
            }
        }
        // Joins that wait are given up, and those that have room leave: they would take it for ever.
        for request in (1..=self.requests).map(Request) {
            self.step(Input::Left { request })?;
        }
        Ok(())
    }

    fn is_session(&self, instance: &Instance) -> bool {
        self.rules.spec().pools.contains_key(&*instance.service)
    }

    /// An agent will have answered.
    fn answer(&mut self, after: Duration, instance: Instance, turn: Turn, outcome: Outcome) {
        let context_percent = self.random.one_in(3).then(|| self.random.between(0, 100) as f64);
        self.plan(after, Plan::Input(Input::TurnDone { turn, instance, outcome, context_percent }));
    }

    /// An agent takes a turn; what becomes of it.
    fn take_turn(&mut self, instance: Instance, turn: Turn, key: Option<Name>) {
        self.report.turns += 1;
        self.running.insert(instance.clone(), turn);
        let is_resumed = self.resuming.remove(&instance);
        if self.part != Part::Trouble {
            return self.answer(Duration::from_millis(50), instance, turn, Outcome::Answered);
        }
        let first = self.random.ms(1, 4000);
        let whole = first + self.random.ms(1, 6000);
        if is_resumed && self.random.one_in(4) {
            let (pool, is_anew, resumes) = (instance.service.clone(), false, false);
            self.plan(first, Plan::Input(Input::Ask { turn, pool, key, is_anew, resumes }));
            return self.answer(first, instance, turn, Outcome::Forgot);
        }
        match self.random.between(0, 9) {
            // It hangs for ever, or in the middle.
            0 => {}
            1 => self.plan(first, Plan::Input(Input::Heard { instance })),
            2 => self.answer(whole, instance, turn, Outcome::Broken("its output is closed".to_owned())),
            _ => {
                self.plan(first, Plan::Input(Input::Heard { instance: instance.clone() }));
                self.answer(whole, instance, turn, Outcome::Answered);
            }
        }
    }

    /// Somebody wants something of a pool.
    fn ask_a_pool(&mut self) -> Result<(), Broken> {
        let names: Vec<Name> = self.rules.spec().pools.keys().map(|name| Name::from(name.as_str())).collect();
        let Some(pool) = self.random.of(&names).cloned() else { return Ok(()) };
        let key = Name::from(format!("key{}", self.random.between(0, 5)).as_str());
        let input = match self.random.between(0, 9) {
            0 if self.turns > 0 => Input::Withdraw { turn: Turn(self.random.between(1, self.turns)) },
            1 => Input::CloseSession { pool: self.random.one_in(2).then_some(pool), key },
            2 => {
                let sessions: Vec<Instance> =
                    self.machine.instances().filter(|one| self.is_session(one)).cloned().collect();
                let Some(instance) = self.random.of(&sessions).cloned() else { return Ok(()) };
                Input::Lost { instance, why: "its output is closed".to_owned() }
            }
            _ => {
                // Some ask several at a time.
                if self.random.one_in(2) {
                    self.turns += 1;
                    let ask = Input::Ask {
                        turn: Turn(self.turns),
                        pool: pool.clone(),
                        key: Some(key.clone()),
                        is_anew: false,
                        resumes: self.random.one_in(3),
                    };
                    self.step(ask)?;
                }
                self.turns += 1;
                let key = self.random.percent(70).then_some(key);
                let (is_anew, resumes) = (self.random.one_in(8), self.random.one_in(3));
                Input::Ask { turn: Turn(self.turns), pool, key, is_anew, resumes }
            }
        };
        self.step(input)
    }

    fn request(&mut self) -> Request {
        self.requests += 1;
        Request(self.requests)
    }

    fn plan(&mut self, after: Duration, plan: Plan) {
        self.planned += 1;
        self.plans.insert((self.now + after, self.planned), plan);
    }

    /// Lets the next thing happen.
    fn go_on(&mut self) -> Result<(), Broken> {
        let plan = self.plans.keys().next().map(|&(at, _)| at);
        let operator = (self.part == Part::Trouble).then_some(self.next_operator);
        let due = self.stack.next_due();
        let next = [plan, operator, due, self.machine.next()].into_iter().flatten().min();
        let Some(next) = next else { return Err(("liveness", "nothing is going to happen".to_owned())) };
        self.now = self.now.max(next);
        if self.part == Part::Trouble && self.random.one_in(150) {
            self.jump();
        }
        let mut happened = Vec::new();
        self.machine.advance(self.now, &mut happened);
        for news in happened {
            // News are told one after the other, each at its own step.
            self.plan(Duration::ZERO, Plan::Heard(news));
        }
        if let Some(sacrifice) = self.machine.take_sacrifice() {
            self.rules.sacrificed(&sacrifice)?;
        }
        let first = self.plans.first_entry().filter(|entry| entry.key().0 <= self.now).map(|entry| entry.remove());
        if let Some(plan) = first {
            return self.perform(plan);
        }
        if operator.is_some_and(|at| at <= self.now) {
            self.next_operator = self.now + self.random.ms(50, 6000);
            return self.operate();
        }
        self.step(Input::Tick)?;
        if self.stack.next_due().is_some_and(|due| due <= self.now) {
            return Err(("progress", "a step at its time leaves that time due".to_owned()));
        }
        Ok(())
    }

    fn perform(&mut self, plan: Plan) -> Result<(), Broken> {
        match plan {
            Plan::Input(input) => self.step(input),
            Plan::Look(instances) => {
                let measured = self.machine.measure(self.now, instances.iter());
                self.step(Input::Sampled(measured))
            }
            Plan::Probe { instance, probe, gives_up } => {
                let outcome = match self.machine.probe(self.now, &instance) {
                    Some(true) => Probe::Healthy,
                    Some(false) => Probe::Failed("not ready".to_owned()),
                    None if gives_up => Probe::TimedOut,
                    None => {
                        self.plan(Duration::from_secs(2), Plan::Probe { instance, probe, gives_up: true });
                        return Ok(());
                    }
                };
                self.step(Input::Probed { instance, probe, outcome })
            }
            Plan::Heard(Happened::Started(instance, pid)) => {
                let port = Some(20_000 + (pid % 10_000) as u16);
                let is_trouble = self.part == Part::Trouble;
                if self.is_session(&instance) && !(is_trouble && self.random.one_in(10)) {
                    let after = if is_trouble { self.random.ms(1, 3000) } else { Duration::from_millis(5) };
                    self.plan(after, Plan::Input(Input::Ready { instance: instance.clone() }));
                }
                self.step(Input::Started { instance, pid, port })
            }
            Plan::Heard(Happened::StartFailed(instance)) => {
                self.remember_former(&instance);
                self.step(Input::StartFailed { instance, why: "no such file".to_owned() })
            }
            Plan::Heard(Happened::Exited(instance, end)) => {
                self.report.ends += 1;
                self.remember_former(&instance);
                self.step(Input::Exited { instance, end })
            }
        }
    }

    fn remember_former(&mut self, instance: &Instance) {
        self.former.push_back(instance.clone());
        if self.former.len() > 20 {
            self.former.pop_front();
        }
    }

    /// The clock jumps: the machine slept, or the supervisor alone was not running.
    fn jump(&mut self) {
        let by = if self.random.one_in(2) { self.random.ms(100, 20_000) } else { self.random.ms(60_000, 4_000_000) };
        if self.random.one_in(2) {
            self.machine.sleep(by);
            let plans = std::mem::take(&mut self.plans);
            self.plans = plans.into_iter().map(|((at, n), plan)| ((at + by, n), plan)).collect();
        }
        self.now += by;
        self.next_operator = self.next_operator.max(self.now);
        self.rules.jumped(by);
        self.note(|| format!("the clock jumps by {by:?}"));
    }

    /// Somebody does something, or the surroundings change.
    fn operate(&mut self) -> Result<(), Broken> {
        if !self.rules.spec().pools.is_empty() && self.random.percent(60) {
            // Turns come thick and fast.
            self.next_operator = self.now + self.random.ms(1, 1500);
            return self.ask_a_pool();
        }
        let names: Vec<Name> = self.rules.spec().services.keys().map(|name| Name::from(name.as_str())).collect();
        let Some(name) = self.random.of(&names).cloned() else { return Ok(()) };
        let command = match self.random.between(0, 15) {
            0 | 1 => Command::Start(name),
            2 => Command::Stop(name),
            3 | 4 => Command::Restart(name),
            5 => Command::Scale(name, self.random.between(0, 5) as u32),
            6 | 7 => {
                let bytes = self.random.between(1, self.machine.budget / MIB) * MIB / 4;
                let patience = self.random.ms(0, 60_000);
                Command::Join { name: "run".to_owned(), bytes, patience }
            }
            8 | 9 => {
                let spec = makeup::edited(&mut self.random, self.rules.spec(), self.machine.total);
                let request = self.random.one_in(2).then(|| self.request());
                self.machine.budget = spec.budget.bytes(self.machine.total);
                return self.step(Input::Load { request, spec: Arc::new(spec) });
            }
            10 => {
                self.machine.others = self.machine.total / 100 * self.random.between(0, 70);
                return self.step(Input::Tick);
            }
            11 => {
                let instances: Vec<Instance> = self.machine.instances().cloned().collect();
                let Some(instance) = self.random.of(&instances).cloned() else { return Ok(()) };
                return self.step(Input::Livelocked { instance, usage: 100, limit: 100 });
            }
            12 => return self.late_news(),
            13 => {
                // Everything is looked at, unasked: the kernel has noticed something.
                let all: Vec<Instance> = self.machine.instances().cloned().collect();
                return self.perform(Plan::Look(all));
            }
            14 => {
                let instances: Vec<Instance> = self.machine.instances().cloned().collect();
                let Some(instance) = self.random.of(&instances).cloned() else { return Ok(()) };
                return self.step(Input::Drained { instance });
            }
            _ => return self.step(Input::Tick),
        };
        let request = self.request();
        self.step(Input::Command { request, command })
    }

    /// News of trees that are no more.
    fn late_news(&mut self) -> Result<(), Broken> {
        let former: Vec<Instance> = self.former.iter().cloned().collect();
        let Some(instance) = self.random.of(&former).cloned() else { return Ok(()) };
        let input = match self.random.between(0, 3) {
            0 => Input::Started { instance, pid: 1, port: None },
            1 => Input::Probed { instance, probe: 1, outcome: Probe::Failed("late".to_owned()) },
            2 => Input::Drained { instance },
            _ => Input::StartFailed { instance, why: "late".to_owned() },
        };
        self.step(input)
    }

    /// One step of the core, its effects on the machine, and the rules.
    fn step(&mut self, input: Input) -> Result<(), Broken> {
        self.report.steps += 1;
        if self.at_once.0 != self.now {
            self.at_once = (self.now, 0);
        }
        self.at_once.1 += 1;
        if self.at_once.1 > AT_ONCE {
            return Err(("progress", format!("{AT_ONCE} steps, and no time passes")));
        }
        self.note(|| match &input {
            Input::Sampled(measured) => {
                let trees: Vec<_> =
                    measured.trees.iter().map(|tree| (&tree.instance, tree.memory_bytes / MIB)).collect();
                let used = measured.budget_used_bytes.unwrap_or(0) / MIB;
                let host = measured.host.available_bytes.unwrap_or(0) / MIB;
                format!("> Sampled {trees:?}, {used} MiB in all, {host} MiB left")
            }
            Input::Load { spec, .. } => {
                let lines: Vec<String> =
                    spec.services.iter().map(|(name, one)| format!("\n    {name}: {}", told(one))).collect();
                let pools: Vec<String> = spec
                    .pools
                    .iter()
                    .map(|(name, pool)| {
                        format!(
                            "\n    {name}: {} and {} warm, {:?} {:?} turns {:?} queue {:?} idle {:?}, {}",
                            pool.max_sessions,
                            pool.warm,
                            pool.protocol,
                            pool.reuse,
                            pool.max_turns,
                            pool.queue,
                            pool.idle_ttl,
                            told(&pool.process)
                        )
                    })
                    .collect();
                format!("> Load {:?}{}{}", spec.budget, lines.concat(), pools.concat())
            }
            other => format!("> {other:?}"),
        });
        self.rules.input(self.now, &input);
        let mut effects = Vec::new();
        self.step_core(input, &mut effects)?;
        for effect in &effects {
            self.note(|| match effect {
                Effect::Start { instance, limits, attempt, resumes, .. } => {
                    let mib = limits.memory.unwrap_or(0) / MIB;
                    format!("  Start {instance:?} with {mib} MiB, attempt {attempt}, resumes {resumes:?}")
                }
                Effect::Probe { instance, probe, .. } => format!("  Probe {instance:?} {probe}"),
                other => format!("  {other:?}"),
            });
        }
        self.rules.effects(self.now, &effects)?;
        for effect in effects {
            self.carry_out(effect);
        }
        self.rules.keep(|name, number| self.stack.has_replica(name, number));
        let has_news = self.plans.values().any(|plan| matches!(plan, Plan::Heard(_)));
        if !has_news && !self.machine.instances().eq(self.rules.trees()) {
            let there: Vec<String> = self.machine.instances().map(ToString::to_string).collect();
            return Err(("owners", format!("on the machine are {there:?}")));
        }
        if self.report.steps.is_multiple_of(100) && !has_news {
            let snapshot = self.stack.snapshot(self.now);
            self.rules.snapshot(&snapshot, &self.machine)?;
        }
        Ok(())
    }

    fn step_core(&mut self, input: Input, effects: &mut Vec<Effect>) -> Result<(), Broken> {
        #[cfg(feature = "sabotage")]
        if self.options.both_ways {
            let is_light = self.stack.step_both_ways(self.now, input, effects).map_err(|why| ("light steps", why))?;
            self.report.light_steps += u64::from(is_light);
            return Ok(());
        }
        self.stack.step(self.now, input, effects);
        Ok(())
    }

    fn carry_out(&mut self, effect: Effect) {
        std::mem::discriminant(&effect).hash(&mut self.digest);
        self.now.hash(&mut self.digest);
        let now = self.now;
        let is_trouble = self.part == Part::Trouble;
        match effect {
            Effect::Start { instance, limits, resumes, .. } => {
                instance.hash(&mut self.digest);
                self.report.starts += 1;
                if resumes.is_some() {
                    self.report.resumed += 1;
                    self.resuming.insert(instance.clone());
                }
                let line = limits.memory.unwrap_or(self.machine.total);
                let life = if is_trouble {
                    makeup::life(&mut self.random, &instance.service, line)
                } else {
                    makeup::calm_life(&instance.service, line)
                };
                self.machine.start(now, instance, life, line, limits.oom_score_adj.unwrap_or(0));
            }
            Effect::Stop { instance, decision, .. } => {
                instance.hash(&mut self.digest);
                self.machine.stop(now, &instance, &decision);
            }
            Effect::Kill { instance, decision } => {
                instance.hash(&mut self.digest);
                self.machine.kill(now, &instance, &decision);
            }
            // Seldom the one who runs probes does not answer at all.
            Effect::Probe { .. } if is_trouble && self.random.one_in(40) => {}
            Effect::Probe { instance, probe, timeout, .. } => {
                let after = self.random.ms(1, 100).min(timeout);
                self.plan(after, Plan::Probe { instance, probe, gives_up: false });
            }
            Effect::Look { instances } => {
                let after = self.random.ms(0, 5);
                self.plan(after, Plan::Look(instances));
            }
            Effect::Drain { instance, patience } => {
                let after = if self.random.one_in(4) { patience * 2 } else { self.random.ms(0, 2000) };
                self.plan(after, Plan::Input(Input::Drained { instance }));
            }
            Effect::Reclaim { instance, bytes } => self.machine.reclaim(now, &instance, bytes),
            Effect::Answer { request, answer: Answer::Admitted } => {
                let after = self.random.ms(100, 60_000);
                self.plan(after, Plan::Input(Input::Left { request }));
            }
            Effect::Assign { turn, instance, key, .. } => self.take_turn(instance, turn, key),
            Effect::Interrupt { instance, .. } if !is_trouble || !self.random.one_in(4) => {
                if let Some(turn) = self.running.get(&instance).copied() {
                    let after = self.random.ms(1, 4000);
                    self.answer(after, instance, turn, Outcome::Interrupted);
                }
            }
            // Not every agent cares for the end of its input.
            Effect::Hangup { instance, decision } if !is_trouble || !self.random.one_in(3) => {
                self.machine.stop(now, &instance, &decision);
            }
            Effect::SessionGone { instance, .. } => {
                self.running.remove(&instance);
                self.resuming.remove(&instance);
            }
            Effect::Emit(Event::Evicted { .. }) => self.report.evictions += 1,
            _ => {}
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if self.options.trace {
            if self.trace.len() == TRACE {
                self.trace.pop_front();
            }
            self.trace.push_back(format!("{:9.3} {}", self.now.as_secs_f64(), line()));
        }
    }
}

/// A service in a line.
fn told(spec: &ServiceSpec) -> String {
    let mib = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| (bytes / MIB).to_string());
    format!(
        "{:?} {:?} limit {} reservation {} replicas {} {:?} at least {} after {:?} grace {:?} health {:?}",
        spec.priority,
        spec.restart,
        mib(spec.mem_limit),
        mib(spec.mem_reservation),
        spec.replicas,
        spec.scale.map(|scale| (scale.min, scale.max)),
        spec.min_available,
        spec.depends_on,
        spec.stop_grace_period,
        spec.healthcheck.as_ref().map(|health| (health.interval, health.retries)),
    )
}
