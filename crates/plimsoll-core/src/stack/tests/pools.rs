//! Pools: what is told of sessions, and of agents that end within their first turn and have never said a word.

use plimsoll_model::pool::{Isolation, PoolSpec, Protocol, QueueSpec, Rehydrate, Reuse};

use super::super::effect::Denial;
use super::super::input::Outcome;
use super::super::name::{Name, Turn};
use super::super::snapshot::{SessionState, Switch};
use super::*;

/// A pool, and what became of each turn.
struct Pool {
    bench: Bench,
    turns: u64,
}

/// What became of a turn.
#[derive(Debug, PartialEq, Eq)]
enum Got {
    Session(Instance),
    Denied,
}

impl Pool {
    fn new(protocol: Protocol, warm: u32) -> Self {
        let mut pool = Self::of(service(), protocol, warm);
        pool.run_and_ready();
        pool
    }

    /// Nothing has come of its starts yet.
    fn of(process: ServiceSpec, protocol: Protocol, warm: u32) -> Self {
        let spec = PoolSpec {
            process,
            protocol,
            models: Vec::new(),
            max_sessions: 4,
            warm,
            reuse: Reuse::Session,
            rehydrate: Rehydrate::Replay,
            isolation: Isolation::None,
            pass_environment: Vec::new(),
            max_line: MIB,
            start_timeout: S(30),
            turn_timeout: S(600),
            first_byte_timeout: S(120),
            stall_timeout: S(120),
            idle_ttl: S(300),
            max_age: None,
            max_turns: None,
            max_turns_jitter: 0,
            recycle_above: None,
            max_context: None,
            queue: QueueSpec::default(),
        };
        let mut bench = Bench { stack: Stack::new(1000 * MIB, 2), now: S(100), effects: Vec::new() };
        let budget = BudgetSpec { memory: Amount::Percent(100.0), reserve: 0 };
        let pools = BTreeMap::from([("bot".to_owned(), spec)]);
        bench.step(Input::Load { request: None, spec: Arc::new(StackSpec { budget, pools, ..StackSpec::default() }) });
        Self { bench, turns: 0 }
    }

    /// All starts of the last step come to something that can take a turn.
    fn run_and_ready(&mut self) -> Option<Got> {
        let mut got = None;
        let mut starts = self.bench.starts();
        loop {
            got = got.or_else(|| self.got());
            let Some(instance) = starts.pop() else { return got };
            self.bench.run(&instance);
            got = got.or_else(|| self.got());
            self.bench.step(Input::Ready { instance });
            starts.extend(self.bench.starts());
        }
    }

    fn got(&self) -> Option<Got> {
        self.bench.effects.iter().find_map(|effect| match effect {
            Effect::Assign { instance, .. } => Some(Got::Session(instance.clone())),
            Effect::Deny { denial: Denial::Circuit(_), .. } => Some(Got::Denied),
            _ => None,
        })
    }

    /// A turn of this conversation, or of none.
    fn ask(&mut self, key: Option<&str>) -> Got {
        self.turns += 1;
        let (turn, key) = (Turn(self.turns), key.map(Name::from));
        let ask = Input::Ask { turn, pool: "bot".into(), key, is_anew: false, resumes: false };
        self.bench.step(ask);
        self.run_and_ready().unwrap()
    }

    /// A turn in which whoever gets it ends after some time and has said nothing. Answers whether it got anybody.
    fn dies(&mut self, key: Option<&str>, after: Duration) -> bool {
        match self.ask(key) {
            Got::Denied => false,
            Got::Session(instance) => {
                self.pass(after);
                self.bench.exit(&instance, Cause::Exited);
                self.run_and_ready();
                // Long enough for a warm one to have proven itself, and for another start.
                self.pass(S(3));
                true
            }
        }
    }

    fn is_open(&self) -> bool {
        self.bench.stack.snapshot(self.bench.now).pools[0].circuit == Switch::Open
    }

    /// Time passes, and what is started meanwhile comes to something.
    fn pass(&mut self, time: Duration) {
        self.bench.effects = self.bench.pass(time);
        self.run_and_ready();
    }
}

#[test]
fn a_pool_all_of_whose_processes_are_silent_opens_its_circuit() {
    for (protocol, warm) in [(Protocol::Jsonl, 0), (Protocol::Jsonl, 1), (Protocol::Claude, 0), (Protocol::Claude, 1)] {
        for after in [ms(10), S(1), S(20)] {
            let mut pool = Pool::new(protocol, warm);
            let got: Vec<bool> = (0..12).map(|room| pool.dies(Some(&format!("room-{room}")), after)).collect();
            assert!(pool.is_open(), "{protocol:?} {warm} {after:?}: {got:?}");
            assert!(got[..5].iter().all(|&got| got), "{protocol:?} {warm} {after:?}: {got:?}");
            assert!(!got[6..].iter().any(|&got| got) || warm == 1, "{protocol:?} {warm} {after:?}: {got:?}");
            // The trial that answers closes it.
            pool.pass(S(70));
            let Got::Session(instance) = pool.ask(Some("room-99")) else { panic!("no trial: {protocol:?} {warm}") };
            pool.bench.step(Input::Heard { instance });
            assert!(!pool.is_open() && pool.bench.has(|event| matches!(event, Event::CircuitClosed { .. })));
        }
    }
}

#[test]
fn one_conversation_that_ends_its_process_each_time_harms_nobody_else() {
    for warm in [0, 1] {
        for after in [ms(10), S(3)] {
            let mut pool = Pool::new(Protocol::Jsonl, warm);
            for _ in 0..20 {
                assert!(pool.dies(Some("room-1"), after) && !pool.is_open());
            }
            assert!(matches!(pool.ask(Some("room-2")), Got::Session(_)));
        }
    }
}

#[test]
fn whoever_spoke_once_may_die_as_often_as_it_likes() {
    let mut pool = Pool::new(Protocol::Jsonl, 0);
    for room in 0..20 {
        let Got::Session(instance) = pool.ask(Some(&format!("room-{room}"))) else { panic!("no session") };
        pool.bench.step(Input::Heard { instance: instance.clone() });
        pool.bench.pass(ms(10));
        pool.bench.exit(&instance, Cause::Exited);
        assert!(!pool.is_open());
    }
}

#[test]
fn a_process_for_one_turn_that_is_quick_has_answered() {
    let mut pool = Pool::new(Protocol::Exec, 0);
    for _ in 0..20 {
        let Got::Session(instance) = pool.ask(None) else { panic!("no session") };
        let turn = Turn(pool.turns);
        pool.bench.pass(ms(10));
        pool.bench.exit(&instance, Cause::Exited);
        pool.bench.step(Input::TurnDone { turn, instance, outcome: Outcome::Answered, context_percent: None });
        assert!(!pool.is_open());
    }
    let row = &pool.bench.stack.snapshot(pool.bench.now).pools[0];
    assert_eq!((row.turns, row.failed_starts, row.retry_ms), (20, 0, None));
}

#[test]
fn whoever_waits_for_room_is_not_starting() {
    let process = ServiceSpec { mem_limit: Some(600 * MIB), mem_reservation: Some(600 * MIB), ..service() };
    let pool = Pool::of(process, Protocol::Jsonl, 3);
    assert!(pool.bench.has(|event| matches!(event, Event::Loaded { services: 0, pools: 1, .. })));
    let snapshot = pool.bench.stack.snapshot(pool.bench.now);
    let row = &snapshot.pools[0];
    assert_eq!((row.starting, row.waiting, row.warm), (1, 2, 0), "{snapshot:?}");
    let states: Vec<SessionState> = snapshot.sessions.iter().map(|row| row.state).collect();
    assert_eq!(states, [SessionState::Starting, SessionState::Waiting, SessionState::Waiting]);
    assert_eq!(
        snapshot.sessions[1].waiting.as_ref().unwrap().to_string(),
        "room: 600 MiB are needed, 400 MiB are free"
    );
    assert_eq!((&snapshot.sessions[0].waiting, snapshot.budget.queued), (&None, 2));
}

#[test]
fn what_is_in_a_file_is_counted_by_its_kind() {
    let words = |services, pools| Event::Loaded { services, pools, budget_bytes: 64 * MIB }.to_string();
    assert_eq!(words(2, 1), "2 services, 1 pool within a budget of 64 MiB");
    assert_eq!(words(1, 0), "1 service within a budget of 64 MiB");
    assert_eq!(words(0, 3), "3 pools within a budget of 64 MiB");
    assert_eq!(words(0, 0), "0 services within a budget of 64 MiB");
    // As they stand in a journal of before.
    let old = serde_json::json!({"event": "loaded", "services": 2, "budget_bytes": 64 * MIB});
    assert_eq!(serde_json::from_value::<Event>(old).unwrap().to_string(), "2 services within a budget of 64 MiB");
}
