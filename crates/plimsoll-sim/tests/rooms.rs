//! The chat bot whose agents stayed, over twelve hours: ten rooms on a server of 1.9 GiB without swap, of which 78 MB are its
//! own, agents of 160 MB that hold 400 MB in a turn. The file is the example's with the incident's own sizes.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_core::stack::input::Outcome;
use plimsoll_core::stack::{Effect, Input, Instance, Name, Stack, Turn};
use plimsoll_sim::{Happened, Life, Machine, Random, Shape};

const MIB: u64 = 1 << 20;
const TOTAL: u64 = 1945 * MIB;
const SERVER: u64 = 78 * MIB;
const AGENT: u64 = 160 * MIB;
const TURN: u64 = 400 * MIB;

const ROOMS: u64 = 10;
const HOURS: u64 = 12;
const IDLE: Duration = Duration::from_secs(300);

const FILE: &str = r#"
budget: { memory: 1g }
pools:
  bot:
    command: [agent]
    protocol: jsonl
    max_sessions: 1
    warm: 0
    idle_ttl: 5m
    mem_limit: 600m
    stop_grace_period: 5s
    queue: { max: 20, timeout: 10m }
gateway: { listen: "127.0.0.1:7072" }
"#;

/// What is going to happen.
enum Plan {
    Input(Input),
    Look(Vec<Instance>),
    Message(u64),
}

/// A bot's day.
struct Day {
    now: Duration,
    random: Random,
    stack: Stack,
    machine: Machine,
    plans: BTreeMap<(Duration, u64), Plan>,
    planned: u64,
    turns: u64,
    asked: BTreeSet<u64>,
    answered: u64,
    starts: u64,
    most_agents: usize,
    most_bytes: u64,
}

impl Day {
    fn new(seed: u64) -> Self {
        let loaded = plimsoll_config::parse(
            FILE,
            Path::new("/srv/plimsoll.yaml"),
            |_| None,
            |_| Err(std::io::Error::from(std::io::ErrorKind::NotFound)),
        );
        let spec = Arc::new(loaded.unwrap().spec);
        let budget = spec.budget.bytes(TOTAL);
        let mut machine = Machine::new(TOTAL, budget);
        machine.others = SERVER;
        let mut day = Self {
            now: Duration::ZERO,
            random: Random::new(seed),
            stack: Stack::new(TOTAL, 2),
            machine,
            plans: BTreeMap::new(),
            planned: 0,
            turns: 0,
            asked: BTreeSet::new(),
            answered: 0,
            starts: 0,
            most_agents: 0,
            most_bytes: 0,
        };
        day.step(Input::Load { request: None, spec });
        for room in 0..ROOMS {
            // All at once in the morning, which is the worst.
            day.plan(Duration::from_secs(1), Plan::Message(room));
        }
        day
    }

    fn plan(&mut self, after: Duration, plan: Plan) {
        self.planned += 1;
        self.plans.insert((self.now + after, self.planned), plan);
    }

    /// Lets everything happen until then.
    fn until(&mut self, end: Duration) {
        loop {
            let plan = self.plans.keys().next().map(|&(at, _)| at);
            let next = [plan, self.stack.next_due(), self.machine.next()].into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            let mut happened = Vec::new();
            self.machine.advance(self.now, &mut happened);
            for news in happened {
                let input = match news {
                    Happened::Started(instance, pid) => {
                        // The real one takes so long to say that it is there.
                        let ready = Input::Ready { instance: instance.clone() };
                        let after = self.random.ms(1400, 12_000);
                        self.plan(after, Plan::Input(ready));
                        Input::Started { instance, pid, port: None }
                    }
                    Happened::StartFailed(instance) => panic!("{instance} did not start"),
                    Happened::Exited(instance, end) => Input::Exited { instance, end },
                };
                self.step(input);
            }
            self.look_around();
            let first = self.plans.first_entry().filter(|entry| entry.key().0 <= self.now).map(|entry| entry.remove());
            match first {
                Some(Plan::Input(input)) => self.step(input),
                Some(Plan::Look(instances)) => {
                    let measured = self.machine.measure(self.now, instances.iter());
                    self.step(Input::Sampled(measured));
                }
                Some(Plan::Message(room)) => self.message(room),
                None => self.step(Input::Tick),
            }
        }
        self.now = end;
    }

    /// What holds at every instant.
    fn look_around(&mut self) {
        let agents = self.machine.instances().count();
        let all = self.machine.instances().cloned().collect::<Vec<_>>();
        let measured = self.machine.measure(self.now, all.iter());
        self.most_agents = self.most_agents.max(agents);
        self.most_bytes = self.most_bytes.max(SERVER + measured.budget_used_bytes.unwrap_or(0));
    }

    fn message(&mut self, room: u64) {
        self.turns += 1;
        self.asked.insert(self.turns);
        let key = Some(Name::from(format!("room{room}").as_str()));
        self.step(Input::Ask { turn: Turn(self.turns), pool: Name::from("bot"), key, is_anew: false, resumes: false });
        // Some rooms are lively for a while, and some sleep for hours.
        let pause =
            if self.random.one_in(3) { self.random.ms(1000, 60_000) } else { self.random.ms(60_000, 5_400_000) };
        if self.now + pause < Duration::from_secs(HOURS * 3600) {
            self.plan(pause, Plan::Message(room));
        }
    }

    fn step(&mut self, input: Input) {
        if let Input::TurnDone { turn, instance, .. } = &input {
            self.machine.reshape(instance, Shape::Flat(AGENT));
            assert!(self.asked.remove(&turn.0), "{turn:?} is answered twice");
            self.answered += 1;
        }
        let mut effects = Vec::new();
        self.stack.step(self.now, input, &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let now = self.now;
        match effect {
            Effect::Start { instance, limits, .. } => {
                self.starts += 1;
                let line = limits.memory.unwrap_or(TOTAL);
                self.machine.start(now, instance, agent(), line, limits.oom_score_adj.unwrap_or(0));
            }
            // It does not go by itself when its input ends: that was the incident.
            Effect::Hangup { .. } => {}
            Effect::Stop { instance, decision, .. } => self.machine.stop(now, &instance, &decision),
            Effect::Kill { instance, decision } => self.machine.kill(now, &instance, &decision),
            Effect::Look { instances } => self.plan(Duration::from_millis(1), Plan::Look(instances)),
            Effect::Assign { turn, instance, .. } => {
                self.machine.reshape(&instance, Shape::Flat(TURN));
                let after = self.random.ms(5000, 30_000);
                let done = Input::TurnDone {
                    turn,
                    instance: instance.clone(),
                    outcome: Outcome::Answered,
                    context_percent: None,
                };
                self.plan(after / 2, Plan::Input(Input::Heard { instance }));
                self.plan(after, Plan::Input(done));
            }
            Effect::Deny { turn, denial } => panic!("{turn:?} is refused: {denial:?}"),
            Effect::Interrupt { instance, why } => panic!("{instance} is interrupted: {why}"),
            _ => {}
        }
    }
}

/// An agent that has to be told twice to go.
fn agent() -> Life {
    Life {
        start: Duration::from_millis(20),
        fails_to_start: false,
        shape: Shape::Flat(AGENT),
        ends: None,
        obeys: Some(Duration::from_millis(800)),
        dies: Duration::from_millis(50),
        ready: Duration::ZERO,
        hangs: None,
        is_throttled: false,
        gives_percent: 0,
    }
}

#[test]
fn one_agent_at_most_and_none_fails() {
    for seed in 0..20 {
        let mut day = Day::new(seed);
        for hour in [1, 2, 8, HOURS] {
            day.until(Duration::from_secs(hour * 3600));
            let agents = day.machine.instances().count();
            assert!(agents <= 1, "seed {seed}: {agents} agents at hour {hour}");
        }
        day.until(Duration::from_secs(HOURS * 3600) + Duration::from_secs(900) + IDLE);
        assert_eq!(day.machine.instances().count(), 0, "seed {seed}: when all is quiet none is left");
        assert!(day.asked.is_empty(), "seed {seed}: {} of {} wait for ever", day.asked.len(), day.turns);
        assert_eq!(day.answered, day.turns, "seed {seed}");
        assert_eq!(day.machine.oom_kills(), 0, "seed {seed}: -9");
        assert_eq!(day.most_agents, 1, "seed {seed}");
        assert_eq!(day.most_bytes, SERVER + TURN, "seed {seed}");
        println!("seed {seed}: {} messages, {} agents one after the other", day.turns, day.starts);
        assert!(day.turns > 100 && day.starts > ROOMS, "seed {seed}: too quiet a day");
    }
}
