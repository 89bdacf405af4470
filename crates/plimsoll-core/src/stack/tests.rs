//! Whole stories of small stacks, step by step. Long and wild ones are the simulator's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_model::ending::Decision;
use plimsoll_model::stack::{
    Amount, Ask, BudgetSpec, Condition, HealthSpec, Priority, RestartPolicy, ScaleSpec, ServiceSpec, StackSpec,
};
use plimsoll_model::{Cause, OnLimit};
use proptest::prelude::*;

use super::effect::Readiness;
use super::event::Reason;
use super::input::{End, HostSample, Measured, Probe, TreeSample};
use super::snapshot::State;
use super::{Answer, Command, Effect, Event, Input, Instance, Refusal, Request, Stack, Stage};

mod pools;
mod resuming;

/// A service with every default.
pub(super) fn service() -> ServiceSpec {
    ServiceSpec {
        command: vec!["sleep".to_owned(), "inf".to_owned()],
        environment: BTreeMap::new(),
        working_dir: PathBuf::from("/"),
        mem_limit: None,
        mem_reservation: None,
        memswap_limit: None,
        cpu_micros: None,
        pids_limit: None,
        restart: RestartPolicy::No,
        stop_grace_period: Duration::from_secs(10),
        stop_signal: 15,
        depends_on: BTreeMap::new(),
        healthcheck: None,
        priority: Priority::Normal,
        on_limit: OnLimit::Tree,
        on_pressure: None,
        listen: None,
        min_available: 0,
        replicas: 1,
        scale: None,
    }
}

const MIB: u64 = 1 << 20;
const S: fn(u64) -> Duration = Duration::from_secs;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A stack whose effects are carried out by hand.
struct Bench {
    stack: Stack,
    now: Duration,
    /// Of the last step.
    effects: Vec<Effect>,
}

impl Bench {
    /// On a machine of 1,000 MiB all of which is the budget.
    fn new(services: &[(&str, ServiceSpec)]) -> Self {
        let mut bench = Self { stack: Stack::new(1000 * MIB, 2), now: S(100), effects: Vec::new() };
        bench.load(services);
        bench
    }

    fn load(&mut self, services: &[(&str, ServiceSpec)]) -> Answer {
        let services = services.iter().map(|(name, spec)| ((*name).to_owned(), spec.clone())).collect();
        let budget = BudgetSpec { memory: Amount::Percent(100.0), reserve: 0 };
        let spec = Arc::new(StackSpec { budget, services, ..StackSpec::default() });
        self.step(Input::Load { request: Some(Request(0)), spec });
        self.answer(0)
    }

    fn step(&mut self, input: Input) {
        self.effects.clear();
        self.stack.step(self.now, input, &mut self.effects);
    }

    fn command(&mut self, request: u64, command: Command) {
        self.step(Input::Command { request: Request(request), command });
    }

    /// Time passes; what is due meanwhile is done at its time, and whatever is probed is healthy.
    fn pass(&mut self, time: Duration) -> Vec<Effect> {
        let until = self.now + time;
        let mut all = Vec::new();
        while let Some(due) = self.stack.next_due().filter(|&due| due <= until) {
            self.now = due.max(self.now);
            self.step(Input::Tick);
            let mut done = std::mem::take(&mut self.effects);
            for effect in &done {
                if let Effect::Probe { instance, probe, .. } = effect {
                    let (instance, probe) = (instance.clone(), *probe);
                    self.stack.step(
                        self.now,
                        Input::Probed { instance, probe, outcome: Probe::Healthy },
                        &mut self.effects,
                    );
                }
            }
            all.append(&mut done);
            all.append(&mut self.effects);
        }
        self.now = until;
        all
    }

    fn answer(&self, of: u64) -> Answer {
        let mut answers = self.effects.iter().filter_map(|effect| match effect {
            Effect::Answer { request, answer } if *request == Request(of) => Some(answer.clone()),
            _ => None,
        });
        answers.next_back().unwrap()
    }

    fn starts(&self) -> Vec<Instance> {
        starts(&self.effects)
    }

    /// The trees that the last step asked to stop or killed.
    fn ended(&self) -> Vec<String> {
        let ended = self.effects.iter().filter_map(|effect| match effect {
            Effect::Stop { instance, .. } | Effect::Kill { instance, .. } => Some(instance.to_string()),
            _ => None,
        });
        ended.collect()
    }

    fn run(&mut self, instance: &Instance) {
        self.step(Input::Started { instance: instance.clone(), pid: 7, port: Some(4000) });
    }

    /// All starts of the last step come to something, and those that follow from that.
    fn run_all(&mut self) {
        let mut starts = self.starts();
        while let Some(instance) = starts.pop() {
            self.run(&instance);
            starts.extend(self.starts());
        }
    }

    fn exit(&mut self, instance: &Instance, cause: Cause) {
        let code = (cause == Cause::Exited).then_some(0);
        let end = End { cause, code, signal: None, bytes_freed: MIB, peak_bytes: None, oom_kills: 0, survivors: 0 };
        self.step(Input::Exited { instance: instance.clone(), end });
    }

    /// What all of these hold, in MiB.
    fn sample(&mut self, held: &[(&Instance, u64)]) {
        let trees = held.iter().map(|&(instance, mib)| TreeSample {
            instance: instance.clone(),
            memory_bytes: mib * MIB,
            cpu: Duration::ZERO,
            periods: self.now.as_millis() as u64 / 100,
            throttled: 0,
            processes: 1,
            oom_kills: 0,
        });
        let budget_used_bytes = Some(held.iter().map(|(_, mib)| mib * MIB).sum());
        let trees = trees.collect();
        self.step(Input::Sampled(Measured { trees, budget_used_bytes, host: HostSample::default() }));
    }

    fn states(&self) -> Vec<State> {
        self.stack.snapshot(self.now).services.iter().map(|row| row.state).collect()
    }

    fn has(&self, is: impl Fn(&Event) -> bool) -> bool {
        self.effects.iter().any(|effect| matches!(effect, Effect::Emit(event) if is(event)))
    }
}

fn starts(effects: &[Effect]) -> Vec<Instance> {
    let starts = effects.iter().filter_map(|effect| match effect {
        Effect::Start { instance, .. } => Some(instance.clone()),
        _ => None,
    });
    starts.collect()
}

fn always() -> ServiceSpec {
    ServiceSpec { restart: RestartPolicy::Always, ..service() }
}

fn checked() -> HealthSpec {
    HealthSpec {
        test: vec!["true".to_owned()],
        interval: S(10),
        timeout: S(1),
        retries: 2,
        start_period: S(0),
        start_interval: S(1),
    }
}

#[test]
fn starts_follow_dependencies_and_down_goes_back() {
    let mut store = ServiceSpec { healthcheck: Some(checked()), ..always() };
    store.stop_grace_period = S(3);
    let mut api = always();
    api.depends_on.insert("store".to_owned(), Condition::Healthy);
    let mut bench = Bench::new(&[("api", api), ("store", store)]);
    let store = bench.starts();
    assert_eq!(format!("{store:?}"), "[store/1#1]");
    bench.run(&store[0]);
    assert!(bench.starts().is_empty(), "it runs and is not healthy yet");
    let api = starts(&bench.pass(S(2)));
    assert_eq!(format!("{api:?}"), "[api/1#2]");
    bench.run(&api[0]);
    assert_eq!(bench.states(), [State::Running, State::Running]);

    bench.command(1, Command::Down);
    assert_eq!(bench.ended(), ["api/1"], "the one that depends goes first");
    bench.exit(&api[0], Cause::Stopped);
    assert_eq!(bench.ended(), ["store/1"]);
    let late = bench.pass(S(3));
    assert!(late.iter().any(|effect| matches!(effect, Effect::Kill { .. })), "its grace is over");
    bench.exit(&store[0], Cause::Stopped);
    assert_eq!((bench.answer(1), bench.stack.is_finished()), (Answer::Done, true));
    assert!(bench.effects.contains(&Effect::Finished));
    assert_eq!(bench.stack.next_due(), None);
    bench.command(2, Command::Start("api".into()));
    assert_eq!(bench.answer(2), Answer::Refused(Refusal::Stopping));
}

#[test]
fn a_crash_after_a_good_run_is_answered_in_the_same_step() {
    let policy = RestartPolicy::OnFailure(Some(2));
    let mut bench = Bench::new(&[("a", ServiceSpec { restart: policy, ..service() })]);
    bench.run_all();
    bench.pass(S(11));
    let first = Instance { service: "a".into(), replica: 1, generation: 1 };
    bench.exit(&first, Cause::Crashed);
    let Effect::Start { instance, attempt: 1, .. } =
        bench.effects.iter().find(|e| matches!(e, Effect::Start { .. })).unwrap()
    else {
        panic!("{:?}", bench.effects)
    };
    let second = instance.clone();
    bench.run(&second);
    bench.exit(&first, Cause::Crashed);
    assert!(bench.starts().is_empty() && !bench.has(|event| matches!(event, Event::Ended { .. })), "old news");
    bench.exit(&second, Cause::Crashed);
    assert_eq!(bench.states(), [State::BackingOff]);
    let row = bench.stack.snapshot(bench.now).services.remove(0);
    assert_eq!((row.attempt, row.max_attempts, row.restarts), (2, Some(2), 2), "shown as attempt 2/2");
    let third = starts(&bench.pass(ms(100)));
    bench.run(&third[0]);
    bench.exit(&third[0], Cause::Crashed);
    assert!(bench.has(|event| matches!(event, Event::Failed { attempts: 2, .. })));
    assert_eq!(bench.states(), [State::Failed]);
    bench.pass(S(600));
    assert_eq!(bench.states(), [State::Failed]);
    bench.command(1, Command::Start("a".into()));
    assert_eq!(bench.starts().len(), 1, "by hand everything begins anew");
}

#[test]
fn unhealthy_ones_are_restarted_unless_nobody_wants_that() {
    for (restart, is_restarted) in [(RestartPolicy::No, false), (RestartPolicy::Always, true)] {
        let mut bench = Bench::new(&[("a", ServiceSpec { restart, healthcheck: Some(checked()), ..service() })]);
        let one = bench.starts().remove(0);
        bench.run(&one);
        bench.pass(S(5));
        for _ in 0..2 {
            bench.now = bench.stack.next_due().unwrap();
            bench.step(Input::Tick);
            while !bench.effects.iter().any(|effect| matches!(effect, Effect::Probe { .. })) {
                bench.now = bench.stack.next_due().unwrap();
                bench.step(Input::Tick);
            }
            let probe = bench.effects.iter().find_map(|effect| match effect {
                Effect::Probe { probe, .. } => Some(*probe),
                _ => None,
            });
            let outcome = Probe::Failed("500".to_owned());
            bench.step(Input::Probed { instance: one.clone(), probe: probe.unwrap(), outcome });
        }
        assert!(bench.has(|event| matches!(event, Event::Unhealthy { failures: 2, .. })));
        assert_eq!(bench.ended().len(), usize::from(is_restarted));
        assert_eq!(bench.states(), [if is_restarted { State::Stopping } else { State::Unhealthy }]);
    }
}

#[test]
fn a_reload_touches_what_differs() {
    let (a, b) = (always(), always());
    let mut bench = Bench::new(&[("a", a.clone()), ("b", b.clone())]);
    bench.run_all();
    let mut changed = b;
    changed.priority = Priority::Critical;
    changed.restart = RestartPolicy::UnlessStopped;
    let lists = |answer| match answer {
        Answer::Loaded { added, restarted, adapted, removed } => [added, restarted, adapted, removed]
            .map(|list| list.iter().map(|name| name.to_string()).collect::<String>()),
        other => panic!("{other:?}"),
    };
    assert_eq!(lists(bench.load(&[("a", a.clone()), ("b", changed.clone())])), ["", "", "b", ""]);
    assert!(bench.ended().is_empty(), "nothing that needs a restart");
    changed.command.push("-v".to_owned());
    assert_eq!(lists(bench.load(&[("a", a.clone()), ("b", changed.clone())])), ["", "b", "", ""]);
    assert_eq!(bench.ended(), ["b/1"]);
    assert_eq!(lists(bench.load(&[("b", changed), ("c", a)])), ["c", "", "", "a"]);
    assert_eq!(bench.ended(), ["a/1"]);
}

#[test]
fn a_rolling_restart_keeps_what_has_to_be_available() {
    let two = ServiceSpec { replicas: 2, min_available: 1, ..always() };
    let mut bench = Bench::new(&[("a", two)]);
    let both = bench.starts();
    both.iter().for_each(|instance| bench.run(instance));
    bench.command(1, Command::Restart("a".into()));
    assert_eq!(bench.ended(), ["a/1"], "one at a time");
    bench.exit(&both[0], Cause::Stopped);
    let new = bench.starts();
    assert_eq!(new.len(), 1);
    assert!(bench.ended().is_empty(), "the other one waits for it");
    bench.run(&new[0]);
    assert_eq!(bench.ended(), ["a/2"]);
    bench.exit(&both[1], Cause::Stopped);
    let new = bench.starts();
    bench.run(&new[0]);
    assert_eq!(bench.answer(1), Answer::Done);
}

#[test]
fn a_single_one_that_has_to_be_available_is_replaced_by_another_first() {
    let one = ServiceSpec { min_available: 1, mem_reservation: Some(100 * MIB), ..always() };
    let mut bench = Bench::new(&[("a", one)]);
    let old = bench.starts().remove(0);
    bench.run(&old);
    bench.command(1, Command::Restart("a".into()));
    assert!(bench.ended().is_empty());
    let extra = bench.starts().remove(0);
    assert_eq!(extra.replica, 2);
    bench.run(&extra);
    assert_eq!(bench.ended(), ["a/1"]);
    bench.exit(&old, Cause::Stopped);
    assert!(bench.starts().is_empty(), "the extra one has taken its place");
    assert_eq!((bench.answer(1), bench.states()), (Answer::Done, vec![State::Running]));
}

#[test]
fn without_room_for_another_a_restart_is_refused_and_nothing_goes() {
    let one = ServiceSpec { min_available: 1, mem_reservation: Some(600 * MIB), ..always() };
    let mut bench = Bench::new(&[("a", one)]);
    bench.run_all();
    bench.command(1, Command::Restart("a".into()));
    let effects = bench.pass(S(40));
    bench.effects = effects;
    assert!(matches!(bench.answer(1), Answer::Refused(Refusal::NoRoom { .. })));
    assert!(bench.ended().is_empty());
    assert_eq!(bench.states(), [State::Running], "the extra one waits no longer");
}

#[test]
fn one_victim_at_a_time_and_its_bytes_first() {
    let best_effort = ServiceSpec { priority: Priority::BestEffort, mem_limit: Some(900 * MIB), ..always() };
    let critical = ServiceSpec { priority: Priority::Critical, mem_limit: Some(900 * MIB), ..always() };
    let mut bench = Bench::new(&[("a", best_effort.clone()), ("b", best_effort), ("c", critical)]);
    let all = bench.starts();
    all.iter().for_each(|instance| bench.run(instance));
    let [c, a, b] = [&all[0], &all[1], &all[2]];
    assert_eq!(format!("{all:?}"), "[c/1#1, a/1#2, b/1#3]", "by priority");
    bench.now += S(1);
    bench.sample(&[(a, 200), (b, 160), (c, 600)]);
    assert!(bench.has(|event| matches!(event, Event::BudgetStage { to: Stage::Shed, .. })));
    assert!(bench.has(|event| matches!(event, Event::Evicted { instance, .. } if instance == a)));
    assert_eq!(bench.ended(), ["a/1"]);
    for _ in 0..3 {
        bench.now += ms(100);
        bench.sample(&[(a, 200), (b, 200), (c, 650)]);
        assert!(!bench.has(|event| matches!(event, Event::Evicted { .. })), "the first one is on its way");
    }
    bench.exit(a, Cause::Evicted);
    bench.now += ms(100);
    bench.sample(&[(b, 300), (c, 690)]);
    assert!(bench.has(|event| matches!(event, Event::Accounted { .. })));
    assert!(bench.has(|event| matches!(event, Event::Evicted { instance, .. } if instance == b)));
    bench.exit(b, Cause::Evicted);
    bench.now += ms(100);
    bench.sample(&[(c, 990)]);
    assert!(bench.has(|event| matches!(event, Event::NobodyToEvict { .. })) && bench.ended().is_empty());
    // They come back once there is room again, and not before their pause is over.
    bench.now += ms(100);
    bench.sample(&[(c, 100)]);
    assert_eq!(bench.states(), [State::BackingOff, State::BackingOff, State::Running]);
    let mut back = Vec::new();
    for _ in 0..30 {
        back.extend(starts(&bench.pass(S(1))));
        bench.sample(&[(c, 100)]);
        back.extend(bench.starts());
    }
    assert_eq!(back.len(), 2, "{back:?}");
    let rows = bench.stack.snapshot(bench.now).services;
    let counted: Vec<(u64, u32)> = rows.iter().map(|row| (row.restarts, row.attempt)).collect();
    assert_eq!(counted, [(1, 0), (1, 0), (0, 0)], "restarts that are no attempts of their policies");
}

#[test]
fn whoever_asks_while_nobody_is_up_waits_for_those_that_come_soon() {
    let web = ServiceSpec { listen: Some(([127, 0, 0, 1], 80).into()), healthcheck: Some(checked()), ..always() };
    let mut bench = Bench::new(&[("web", web)]);
    // A route is told when it has changed.
    let mut routed = Vec::new();
    let mut hear = |effects: &[Effect]| {
        for effect in effects {
            if let Effect::Route { backends, .. } = effect {
                routed = backends.iter().map(|one| one.readiness).collect::<Vec<_>>();
            }
        }
        routed.clone()
    };
    assert_eq!(hear(&bench.effects), [Readiness::Soon], "it starts");
    let mut one = bench.starts().remove(0);
    bench.run(&one);
    assert_eq!(hear(&bench.pass(S(1))), [Readiness::Ready]);
    // It crashes at once again and again: as long as the next start is near, it is waited for.
    let mut waited = Vec::new();
    for _ in 0..12 {
        bench.exit(&one, Cause::Crashed);
        waited.push(hear(&bench.effects) == [Readiness::Soon]);
        let later = bench.pass(S(61));
        hear(&later);
        one = starts(&later).pop().unwrap_or_else(|| panic!("{later:?}"));
        bench.run(&one);
        hear(&bench.effects);
    }
    // 100 ms doubled each time are over 10 s with the eighth; after the tenth it is a minute each time.
    assert_eq!(waited, [true, true, true, true, true, true, true, false, false, false, false, false]);
    bench.command(1, Command::Stop("web".into()));
    bench.exit(&one, Cause::Stopped);
    assert!(hear(&bench.effects).is_empty(), "it is not to run");
}

#[test]
fn what_was_counted_outlives_its_replica() {
    let mut bench = Bench::new(&[("a", ServiceSpec { replicas: 3, ..always() })]);
    bench.run_all();
    let restarts = |bench: &Bench| bench.stack.snapshot(bench.now).services.iter().map(|row| row.restarts).sum::<u64>();
    for replica in [1, 3] {
        let generation = u64::from(replica);
        bench.exit(&Instance { service: "a".into(), replica, generation }, Cause::Crashed);
    }
    assert_eq!(restarts(&bench), 2);
    // The first one has no run at this moment: it is the first to go.
    bench.command(1, Command::Scale("a".into(), 1));
    let two = Instance { service: "a".into(), replica: 2, generation: 2 };
    bench.command(2, Command::Scale("a".into(), 0));
    bench.exit(&two, Cause::Stopped);
    bench.command(3, Command::Scale("a".into(), 2));
    assert_eq!(restarts(&bench), 2, "{:?}", bench.stack.snapshot(bench.now).services);
}

#[test]
fn a_kill_for_memory_is_counted_once() {
    let mut bench = Bench::new(&[("a", always())]);
    let one = bench.starts().remove(0);
    bench.run(&one);
    bench.now += S(1);
    let tree = TreeSample {
        instance: one.clone(),
        memory_bytes: MIB,
        cpu: Duration::ZERO,
        periods: 0,
        throttled: 0,
        processes: 1,
        oom_kills: 2,
    };
    let trees = vec![tree];
    bench.step(Input::Sampled(Measured { trees, budget_used_bytes: None, host: HostSample::default() }));
    let end = End {
        cause: Cause::MemoryLimit,
        code: None,
        signal: Some(9),
        bytes_freed: 1,
        peak_bytes: None,
        oom_kills: 3,
        survivors: 0,
    };
    bench.step(Input::Exited { instance: one, end });
    let row = bench.stack.snapshot(bench.now).services.remove(0);
    assert_eq!(row.oom_kills, 3, "two of these were seen before its end");
}

#[test]
fn the_ladder_tells_asks_and_reclaims() {
    let spec = ServiceSpec { mem_limit: Some(100 * MIB), on_pressure: Some(Ask::Signal(10)), ..always() };
    let mut bench = Bench::new(&[("a", spec)]);
    let one = bench.starts().remove(0);
    bench.run(&one);
    bench.now += S(1);
    bench.sample(&[(&one, 85)]);
    assert!(bench.effects.iter().any(|e| matches!(e, Effect::Stage { stage: Stage::Alert, .. })));
    bench.now += S(1);
    bench.sample(&[(&one, 92)]);
    let instance = one.clone();
    assert!(bench.effects.contains(&Effect::Stage { instance: instance.clone(), stage: Stage::Degrade, scale: 0.5 }));
    assert!(bench.effects.contains(&Effect::Ask {
        instance: instance.clone(),
        ask: Ask::Signal(10),
        stage: Stage::Degrade
    }));
    let line = 100 * MIB;
    assert!(bench.effects.contains(&Effect::Reclaim { instance, bytes: 92 * MIB - line / 100 * 85 }));
    let row = bench.stack.snapshot(bench.now).services.remove(0);
    assert_eq!((row.stage, row.forecast_ms), (Stage::Degrade, Some(1142)), "8 MiB left at 7 a second");
    let asked = bench.pass(S(31));
    assert!(asked.iter().any(|effect| matches!(effect, Effect::Ask { .. })), "it is asked again");
}

#[test]
fn what_gets_nowhere_is_ended() {
    let mut bench = Bench::new(&[("a", always())]);
    let one = bench.starts().remove(0);
    bench.run(&one);
    bench.step(Input::Livelocked { instance: one.clone(), usage: 5, limit: 6 });
    let decision = Decision::MemoryLimit { usage: 5, limit: 6 };
    assert!(bench.effects.contains(&Effect::Kill { instance: one, decision }));
}

#[test]
fn joins_wait_for_room_or_are_told_when_to_come_again() {
    let spec = ServiceSpec { mem_reservation: Some(700 * MIB), stop_grace_period: S(20), ..always() };
    let mut bench = Bench::new(&[("a", spec)]);
    let one = bench.starts().remove(0);
    bench.run(&one);
    let join = |mib: u64, patience| Command::Join { name: "run".to_owned(), bytes: mib * MIB, patience };
    bench.command(1, join(300, S(0)));
    assert_eq!(bench.answer(1), Answer::Admitted);
    bench.command(2, join(1, S(0)));
    let Answer::Refused(Refusal::NoRoom { free_bytes: 0, retry_after, .. }) = bench.answer(2) else { panic!() };
    assert_eq!(retry_after, S(30), "nobody knows");
    bench.command(3, Command::Stop("a".into()));
    bench.command(4, join(1, S(0)));
    let Answer::Refused(Refusal::NoRoom { retry_after, .. }) = bench.answer(4) else { panic!() };
    assert_eq!(retry_after, S(20), "by then the one that is stopping is gone");
    bench.command(5, join(400, S(60)));
    bench.exit(&one, Cause::Stopped);
    assert_eq!((bench.answer(3), bench.answer(5)), (Answer::Done, Answer::Admitted));
    bench.command(6, join(2000, S(60)));
    assert!(matches!(bench.answer(6), Answer::Refused(Refusal::NeverFits { .. })));
    assert_eq!(bench.stack.snapshot(bench.now).budget.admitted_bytes, 700 * MIB);
    for request in 0..100 {
        bench.command(100 + request, join(900, S(60)));
    }
    assert!(matches!(bench.answer(199), Answer::Refused(Refusal::NoRoom { .. })), "the queue is bounded");
}

#[test]
fn replicas_follow_the_load() {
    let scale = ScaleSpec { min: 1, max: 4, target_memory: Some(50.0), target_cpu: None };
    let spec =
        ServiceSpec { mem_limit: Some(100 * MIB), mem_reservation: Some(50 * MIB), scale: Some(scale), ..always() };
    let mut bench = Bench::new(&[("a", spec)]);
    let one = bench.starts().remove(0);
    bench.run(&one);
    bench.now += S(1);
    bench.sample(&[(&one, 75)]);
    let new = starts(&bench.pass(S(16)));
    assert_eq!(format!("{new:?}"), "[a/2#2]", "75 % used and 50 % wanted: two");
    bench.command(1, Command::Scale("a".into(), 9));
    assert!(matches!(bench.answer(1), Answer::Refused(Refusal::Replicas { least: 1, most: 4, .. })));
    bench.command(2, Command::Scale("a".into(), 3));
    assert_eq!(bench.starts().len(), 1);
    assert_eq!(bench.stack.snapshot(bench.now).services[0].scale.target, 3);
}

#[test]
fn nobody_is_blamed_for_a_jump() {
    let spec = ServiceSpec { healthcheck: Some(checked()), stop_grace_period: S(5), ..always() };
    let mut bench = Bench::new(&[("a", spec.clone()), ("b", spec)]);
    let all = bench.starts();
    all.iter().for_each(|instance| bench.run(instance));
    bench.pass(S(9));
    bench.command(1, Command::Stop("b".into()));
    assert_eq!(bench.ended(), ["b/1"]);
    bench.now += S(4000);
    bench.step(Input::Tick);
    assert!(bench.has(|event| matches!(event, Event::TimeJumped { by_ms } if *by_ms > 3_990_000)));
    assert!(bench.ended().is_empty(), "its grace goes on from here");
    assert!(!bench.has(|event| matches!(event, Event::Unhealthy { .. })));
}

#[test]
fn words_of_json() {
    let mut bench = Bench::new(&[("a", always())]);
    bench.run_all();
    let snapshot = serde_json::to_value(bench.stack.snapshot(bench.now)).unwrap();
    let row = &snapshot["services"][0];
    assert_eq!(
        (row["name"].as_str(), row["state"].as_str(), row["health"].as_str()),
        (Some("a"), Some("running"), Some("none"))
    );
    for key in [
        "replica",
        "pid",
        "listen",
        "memory_bytes",
        "limit_bytes",
        "stage",
        "cpu_percent",
        "throttled_percent",
        "processes",
        "restarts",
        "attempt",
        "max_attempts",
        "oom_kills",
        "last_cause",
        "health",
        "uptime_ms",
        "forecast_ms",
        "scale",
    ] {
        assert!(row.get(key).is_some(), "{key} is in the contract");
    }
    let instance = Instance { service: "api".into(), replica: 2, generation: 9 };
    let reason = Reason::Unhealthy { failures: 3 };
    let event = Event::Stopping { instance, reason, grace_ms: 10_000 };
    let json = serde_json::to_value(&event).unwrap();
    assert_eq!(
        json,
        serde_json::json!({"event": "stopping", "service": "api", "replica": 2, "generation": 9, "reason": "unhealthy",
            "failures": 3, "grace_ms": 10_000})
    );
    assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
    assert_eq!(event.to_string(), "api/2 stopping: unhealthy: 3 probes in a row failed; killed after 10s");
}

proptest! {
    #[test]
    fn any_news_in_any_order(news in prop::collection::vec((0u8..8, 1u32..4, 0u64..6, 0u64..20_000), 0..120)) {
        let spec = ServiceSpec { replicas: 3, healthcheck: Some(checked()), ..always() };
        let mut bench = Bench::new(&[("a", spec)]);
        for (kind, replica, generation, pause) in news {
            bench.now += ms(pause);
            let instance = Instance { service: "a".into(), replica, generation };
            match kind {
                0 => bench.run(&instance),
                1 => bench.exit(&instance, Cause::Crashed),
                2 => bench.step(Input::StartFailed { instance, why: String::new() }),
                3 => bench.step(Input::Drained { instance }),
                4 => bench.step(Input::Livelocked { instance, usage: 1, limit: 1 }),
                5 => bench.sample(&[(&instance, 2000)]),
                6 => bench.step(Input::Probed { instance, probe: 1, outcome: Probe::TimedOut }),
                _ => bench.command(generation, Command::Restart("a".into())),
            }
            let budget = bench.stack.snapshot(bench.now).budget;
            prop_assert!(budget.admitted_bytes <= budget.limit_bytes);
            prop_assert!(bench.stack.next_due().is_some());
        }
    }
}

#[test]
fn the_stack_has_started_when_nobody_is_waited_for_any_more() {
    let mut store = ServiceSpec { healthcheck: Some(checked()), ..always() };
    store.restart = RestartPolicy::OnFailure(Some(1));
    let mut api = always();
    api.depends_on.insert("store".to_owned(), Condition::Healthy);
    let spec = [("api", api), ("store", store)];
    let mut bench = Bench::new(&spec);
    let first = bench.starts();
    bench.run(&first[0]);
    assert!(!bench.stack.has_started(), "it is not healthy yet, and one waits for it");
    let starts_of_api = starts(&bench.pass(S(2)));
    assert!(!bench.stack.has_started());
    bench.run(&starts_of_api[0]);
    assert!(bench.stack.has_started());
    bench.exit(&starts_of_api[0], Cause::Crashed);
    assert!(bench.stack.has_started(), "once is enough");

    let mut bench = Bench::new(&spec);
    let first = bench.starts();
    bench.run(&first[0]);
    bench.exit(&first[0], Cause::Crashed);
    assert_eq!(bench.states(), [State::Starting, State::BackingOff]);
    assert!(!bench.stack.has_started(), "it is tried again");
    let again = starts(&bench.pass(S(1)));
    bench.run(&again[0]);
    bench.exit(&again[0], Cause::Crashed);
    assert_eq!(bench.states(), [State::Starting, State::Failed]);
    assert!(bench.stack.has_started(), "the one was given up, and the other waits for it in vain");

    let large = ServiceSpec { mem_reservation: Some(900 * MIB), ..always() };
    let mut bench = Bench::new(&[("a", large.clone()), ("b", large)]);
    bench.run_all();
    assert_eq!(bench.states(), [State::Running, State::Starting]);
    assert!(bench.stack.has_started(), "room may never come");
    bench.command(1, Command::Down);
    assert!(bench.stack.is_stopping());
}
