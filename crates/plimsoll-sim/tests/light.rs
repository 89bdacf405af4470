//! A busy pool, minute after minute, each of its light steps compared with a whole one: sessions that come, take turns, are
//! idle, old, too large, replaced and closed.

#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_core::stack::input::{End, HostSample, Measured, Outcome, TreeSample};
use plimsoll_core::stack::{Effect, Input, Instance, Stack, Turn};
use plimsoll_model::Cause;
use plimsoll_sim::Random;

const MIB: u64 = 1 << 20;

fn file(random: &mut Random) -> String {
    let mut choose = |of: &[&str]| of[random.between(0, of.len() as u64 - 1) as usize].to_owned();
    let lines = [
        choose(&["max_sessions: 4", "max_sessions: 8"]),
        choose(&["warm: 0", "warm: 1"]),
        choose(&["reuse: any", "reuse: session"]),
        choose(&["idle_ttl: 5m", "idle_ttl: 20s"]),
        choose(&["max_turns: 1000", "max_turns: 20"]),
        choose(&["mem_limit: 64m", "mem_limit: 64m\n    recycle_above: 50m", "mem_limit: 64m\n    max_age: 1m"]),
        choose(&["stall_timeout: 20m", "stall_timeout: 3s"]),
        choose(&["first_byte_timeout: 20m", "first_byte_timeout: 5s"]),
    ];
    format!(
        "budget: {{ memory: 1g }}\npools:\n  bot:\n    command: [agent]\n    protocol: jsonl\n    {}\n\
         gateway: {{ listen: \"127.0.0.1:7072\" }}\n",
        lines.join("\n    ")
    )
}

/// A stack, and what is going to be told to it.
struct World {
    random: Random,
    now: Duration,
    stack: Stack,
    plans: BTreeMap<(Duration, u64), Input>,
    planned: u64,
    light: u64,
    steps: u64,
}

impl World {
    fn plan(&mut self, after: Duration, input: Input) {
        self.planned += 1;
        self.plans.insert((self.now + after, self.planned), input);
    }

    fn step(&mut self, input: Input) {
        let mut effects = Vec::new();
        let told = format!("{input:?}");
        match self.stack.step_both_ways(self.now, input, &mut effects) {
            Ok(is_light) => self.light += u64::from(is_light),
            Err(why) => panic!("{told} at {:?}: {why}", self.now),
        }
        self.steps += 1;
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let ms = Duration::from_millis;
        match effect {
            Effect::Start { instance, .. } => {
                self.plan(ms(2), Input::Started { instance: instance.clone(), pid: 7, port: None });
                self.plan(ms(5), Input::Ready { instance });
            }
            Effect::Hangup { instance, .. } | Effect::Stop { instance, .. } | Effect::Kill { instance, .. } => {
                let (cause, code, signal) = (Cause::Stopped, Some(0), None);
                let end = End { cause, code, signal, bytes_freed: 0, peak_bytes: None, oom_kills: 0, survivors: 0 };
                self.plan(ms(3), Input::Exited { instance, end });
            }
            Effect::Assign { turn, instance, .. } => {
                let long = if self.random.one_in(20) { self.random.ms(1, 8_000) } else { self.random.ms(1, 400) };
                self.plan(long / 2, Input::Heard { instance: instance.clone() });
                let outcome = if self.random.one_in(50) { Outcome::Broken("x".into()) } else { Outcome::Answered };
                self.plan(long, Input::TurnDone { turn, instance, outcome, context_percent: None });
            }
            Effect::Interrupt { instance, .. } => self.plan(ms(1), Input::Lost { instance, why: "x".into() }),
            Effect::Look { instances } => {
                let trees: Vec<TreeSample> = instances.into_iter().map(|instance| self.sample(instance)).collect();
                let host = HostSample::default();
                self.plan(ms(1), Input::Sampled(Measured { trees, budget_used_bytes: None, host }));
            }
            _ => {}
        }
    }

    fn sample(&mut self, instance: Instance) -> TreeSample {
        let memory_bytes = self.random.between(20, 60) * MIB;
        TreeSample { instance, memory_bytes, cpu: Duration::ZERO, periods: 0, throttled: 0, processes: 1, oom_kills: 0 }
    }
}

fn minutes(seed: u64) -> (u64, u64) {
    let mut random = Random::new(seed);
    let file = file(&mut random);
    let nothing = |_: &Path| Err(std::io::Error::from(std::io::ErrorKind::NotFound));
    let spec = plimsoll_config::parse(&file, Path::new("/srv/plimsoll.yaml"), |_| None, nothing).unwrap().spec;
    let (stack, plans) = (Stack::new(2000 * MIB, 2), BTreeMap::new());
    let mut world = World { random, now: Duration::from_secs(9), stack, plans, planned: 0, light: 0, steps: 0 };
    world.step(Input::Load { request: None, spec: Arc::new(spec) });
    let keys = world.random.between(2, 12);
    for turn in 0..400 {
        let after = world.random.ms(0, 180_000);
        let key = world.random.percent(90).then(|| format!("k{}", world.random.between(1, keys)).as_str().into());
        let is_anew = world.random.one_in(40);
        let resumes = key.is_some() && !is_anew && world.random.one_in(3);
        world.plan(after, Input::Ask { turn: Turn(turn), pool: "bot".into(), key, is_anew, resumes });
        if world.random.one_in(20) {
            world.plan(after + Duration::from_secs(1), Input::Withdraw { turn: Turn(turn) });
        }
    }
    let end = world.now + Duration::from_secs(240);
    while world.now < end {
        let plan = world.plans.keys().next().map(|(at, _)| *at);
        let Some(next) = [plan, world.stack.next_due()].into_iter().flatten().min() else { break };
        world.now = world.now.max(next);
        match world.plans.first_entry().filter(|plan| plan.key().0 <= world.now) {
            Some(plan) => {
                let input = plan.remove();
                world.step(input);
            }
            None => world.step(Input::Tick),
        }
    }
    (world.light, world.steps)
}

#[test]
fn a_light_step_comes_to_the_same_as_a_whole_one() {
    let (mut light, mut steps) = (0, 0);
    for seed in 0..20 {
        let played = minutes(seed);
        light += played.0;
        steps += played.1;
    }
    println!("{light} of {steps} steps were light");
    assert!(light > steps / 10, "{light} of {steps}: they are not looked at");
}
