//! Stories of a pool whose agents take their conversations up again by themselves.

use plimsoll_model::pool::{Isolation, PoolSpec, Protocol, QueueSpec, Rehydrate, Reuse};

use super::super::effect::Denial;
use super::super::input::Outcome;
use super::super::name::{Name, Turn};
use super::*;

fn pool() -> PoolSpec {
    PoolSpec {
        process: ServiceSpec { mem_limit: Some(100 * MIB), ..service() },
        protocol: Protocol::Claude,
        models: Vec::new(),
        reuse: Reuse::Session,
        max_sessions: 2,
        warm: 1,
        idle_ttl: S(300),
        max_turns: None,
        max_turns_jitter: 0,
        max_context: None,
        max_age: None,
        recycle_above: None,
        start_timeout: S(30),
        first_byte_timeout: S(120),
        stall_timeout: S(300),
        turn_timeout: S(600),
        queue: QueueSpec { max: 8, timeout: S(30) },
        rehydrate: Rehydrate::Resume,
        max_line: 1 << 20,
        isolation: Isolation::None,
        pass_environment: Vec::new(),
    }
}

/// A stack of one pool, with so much memory, after the start of what is started ahead.
fn pooled(pool: PoolSpec, memory_mib: u64) -> (Bench, Vec<Instance>) {
    let mut bench = Bench { stack: Stack::new(memory_mib * MIB, 2), now: S(100), effects: Vec::new() };
    let budget = BudgetSpec { memory: Amount::Percent(100.0), reserve: 0 };
    let pools = BTreeMap::from([("bot".to_owned(), pool)]);
    let spec = StackSpec { budget, pools, ..StackSpec::default() };
    bench.step(Input::Load { request: None, spec: Arc::new(spec) });
    let ahead = bench.starts();
    ahead.iter().for_each(|instance| bench.ready(instance));
    (bench, ahead)
}

/// What became of a turn: its session, and whether that is new to it.
type Assigned = Option<(Instance, bool)>;

impl Bench {
    fn ready(&mut self, instance: &Instance) {
        self.run(instance);
        self.step(Input::Ready { instance: instance.clone() });
    }

    fn ask(&mut self, turn: u64, key: &str, resumes: bool) {
        let (pool, key) = (Name::from("bot"), Some(Name::from(key)));
        self.step(Input::Ask { turn: Turn(turn), pool, key, is_anew: false, resumes });
    }

    fn done(&mut self, turn: u64, instance: &Instance, outcome: Outcome) {
        let (turn, instance) = (Turn(turn), instance.clone());
        self.step(Input::TurnDone { turn, instance, outcome, context_percent: None });
    }

    fn assigned(&self, to: u64) -> Assigned {
        self.effects.iter().find_map(|effect| match effect {
            Effect::Assign { turn, instance, fresh, .. } if *turn == Turn(to) => Some((instance.clone(), *fresh)),
            _ => None,
        })
    }

    /// The only start of the last step, and for which conversation it is.
    fn started(&self) -> (Instance, Option<String>) {
        let starts = self.effects.iter().filter_map(|effect| match effect {
            Effect::Start { instance, resumes, .. } => Some((instance.clone(), resumes.as_ref().map(Name::to_string))),
            _ => None,
        });
        let starts: Vec<_> = starts.collect();
        assert_eq!(starts.len(), 1, "{starts:?}");
        starts.into_iter().next().unwrap()
    }
}

#[test]
fn one_is_started_for_the_conversation_and_knows_it() {
    let (mut bench, ahead) = pooled(pool(), 1000);
    bench.ask(1, "a", true);
    assert_eq!(bench.assigned(1), None, "a process that runs already knows nothing of it");
    let (own, key) = bench.started();
    assert_eq!(key.as_deref(), Some("a"));
    // Another conversation takes what is warm meanwhile.
    bench.ask(2, "b", false);
    assert_eq!(bench.assigned(2), Some((ahead[0].clone(), true)));
    bench.ready(&own);
    assert_eq!(bench.assigned(1), Some((own.clone(), false)));
    bench.done(1, &own, Outcome::Answered);
    bench.ask(3, "a", true);
    assert_eq!(bench.assigned(3), Some((own, false)), "it is there: nothing is to be taken up");
}

#[test]
fn who_cannot_take_anything_up_takes_what_is_there() {
    for (rehydrate, protocol) in [
        (Rehydrate::Replay, Protocol::Claude),
        (Rehydrate::None, Protocol::Claude),
        (Rehydrate::Resume, Protocol::Jsonl),
    ] {
        let (mut bench, ahead) = pooled(PoolSpec { rehydrate, protocol, ..pool() }, 1000);
        bench.ask(1, "a", true);
        assert_eq!(bench.assigned(1), Some((ahead[0].clone(), true)), "{rehydrate:?} {protocol:?}");
    }
}

#[test]
fn a_start_that_fails_is_not_tried_twice_and_opens_no_circuit() {
    let (mut bench, ahead) = pooled(PoolSpec { max_sessions: 1, max_turns: Some(1), ..pool() }, 1000);
    let mut warm = ahead[0].clone();
    for turn in 0..8 {
        bench.ask(turn, "a", true);
        let (own, key) = bench.started();
        assert_eq!(key.as_deref(), Some("a"));
        bench.run(&own);
        bench.exit(&own, Cause::Failed);
        assert!(!bench.has(|event| matches!(event, Event::CircuitOpened { .. })), "turn {turn}");
        assert_eq!(bench.assigned(turn), Some((warm.clone(), true)), "turn {turn}: it is told instead");
        let next = bench.starts();
        bench.done(turn, &warm, Outcome::Answered);
        bench.exit(&warm, Cause::Recycled);
        let next = next.into_iter().chain(bench.starts()).next().unwrap();
        bench.ready(&next);
        warm = next;
    }
}

#[test]
fn a_turn_that_is_not_understood_comes_before_all_others() {
    let (mut bench, _) = pooled(PoolSpec { warm: 0, ..pool() }, 1000);
    bench.ask(1, "a", true);
    let (own, _) = bench.started();
    bench.ready(&own);
    assert_eq!(bench.assigned(1), Some((own.clone(), false)));
    bench.ask(2, "a", true);
    bench.ask(1, "a", false);
    bench.done(1, &own, Outcome::Forgot);
    assert_eq!((bench.assigned(1), bench.assigned(2), bench.starts()), (None, None, Vec::new()), "one goes first");
    bench.exit(&own, Cause::Recycled);
    let (next, key) = bench.started();
    assert_eq!(key, None, "nor is it taken up by another");
    bench.ready(&next);
    assert_eq!((bench.assigned(1), bench.assigned(2)), (Some((next.clone(), true)), None));
    bench.done(1, &next, Outcome::Answered);
    assert_eq!(bench.assigned(2), Some((next, false)));
}

#[test]
fn a_turn_that_is_not_understood_outlives_its_session() {
    let (mut bench, _) = pooled(PoolSpec { warm: 0, ..pool() }, 1000);
    bench.ask(1, "a", true);
    let (own, _) = bench.started();
    bench.ready(&own);
    bench.ask(1, "a", false);
    // It is gone before anybody said why.
    bench.exit(&own, Cause::Failed);
    let (next, key) = bench.started();
    assert_eq!(key, None);
    bench.done(1, &own, Outcome::Forgot);
    bench.ready(&next);
    assert_eq!(bench.assigned(1), Some((next, true)));
}

#[test]
fn memory_comes_before_what_an_agent_remembers() {
    // Room for one process and not for another: it is told to the one that runs.
    let (mut bench, ahead) = pooled(pool(), 115);
    bench.sample(&[(&ahead[0], 95)]);
    bench.ask(1, "a", true);
    assert_eq!((bench.assigned(1), bench.starts()), (Some((ahead[0].clone(), true)), Vec::new()));
    assert!(bench.ended().is_empty());
}

#[test]
fn nobody_waits_any_more() {
    let (mut bench, _) = pooled(PoolSpec { warm: 0, max_sessions: 1, ..pool() }, 1000);
    bench.ask(1, "a", false);
    let (one, _) = bench.started();
    bench.ready(&one);
    // There is no place: it waits, and the other one is asked to go once it is idle.
    bench.ask(2, "b", true);
    assert_eq!(bench.starts(), Vec::new());
    bench.step(Input::Withdraw { turn: Turn(2) });
    bench.done(1, &one, Outcome::Answered);
    bench.exit(&one, Cause::Recycled);
    assert_eq!(bench.starts(), Vec::new(), "nobody wants it");
    // A client that says that it went otherwise is told to another one, even if one was to take it up.
    bench.ask(3, "b", true);
    let (own, _) = bench.started();
    bench.run(&own);
    bench.step(Input::Withdraw { turn: Turn(3) });
    let (pool, key) = (Name::from("bot"), Some(Name::from("b")));
    bench.step(Input::Ask { turn: Turn(4), pool, key, is_anew: true, resumes: true });
    bench.step(Input::Ready { instance: own.clone() });
    assert_eq!(bench.assigned(4), None, "it knows the former words");
    bench.exit(&own, Cause::Recycled);
    assert_eq!(bench.started().1, None);
    assert!(!bench.effects.iter().any(|e| matches!(e, Effect::Deny { denial: Denial::Circuit(_), .. })));
}
