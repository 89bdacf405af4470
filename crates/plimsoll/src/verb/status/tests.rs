use plimsoll_core::stack::Stage;
use plimsoll_core::stack::event::Waiting;
use plimsoll_model::Cause;
use proptest::prelude::*;

use super::super::top::tests::{check, nine, trees, view};
use super::super::view::{Process, Tree};
use super::*;

#[test]
fn pages() {
    let mut full = nine(237);
    full.troubles = vec!["journal: the disk does not take it (is it full?)".to_owned()];
    full.stack.alerts = vec!["memory > 80%".to_owned()];
    check("src/verb/status/tests/nine.txt", &page(&full, false));
    let mut calm = nine(20);
    calm.stack.services.retain(|row| row.state == State::Running);
    calm.stack.services.iter_mut().for_each(|row| (row.throttled_percent, row.forecast_ms) = (0.0, None));
    check("src/verb/status/tests/calm.txt", &page(&calm, false));
    check("src/verb/status/tests/none.txt", &page(&view(Vec::new()), false));
    check("src/verb/status/tests/ps.txt", &processes(&Trees { trees: trees() }, false));
    assert_eq!(processes(&Trees::default(), false), "no process runs\n");
}

/// One session of a pool answers, two wait for room; another pool is given time.
#[test]
fn a_page_of_pools() {
    let pool = |name: &str, waiting, circuit| PoolRow {
        name: name.into(),
        sessions: 1,
        warm: 0,
        busy: 1,
        starting: 0,
        waiting,
        queued: 2,
        processes: 2,
        memory_bytes: 300 << 20,
        limit_bytes: Some(600 << 20),
        max_sessions: 4,
        turns: 7,
        refused: 0,
        recycled: 1,
        closed: 2,
        circuit,
        failed_starts: if circuit == Switch::Open { 5 } else { 0 },
        retry_ms: (circuit == Switch::Open).then_some(4000),
        survivors: 0,
    };
    let session = |replica, state, waiting| SessionRow {
        pool: "bot".into(),
        replica,
        key: (state == SessionState::Busy).then(|| "room-1".into()),
        state,
        waiting,
        pid: (state == SessionState::Busy).then_some(4242),
        memory_bytes: if state == SessionState::Busy { 300 << 20 } else { 0 },
        limit_bytes: Some(600 << 20),
        admitted_bytes: 0,
        processes: if state == SessionState::Busy { 2 } else { 0 },
        turns: if state == SessionState::Busy { 3 } else { 0 },
        context_percent: None,
        age_ms: None,
        idle_ms: None,
        turn_ms: None,
    };
    let room = || Some(Waiting::Room { needed_bytes: 600 << 20, free_bytes: 100 << 20 });
    let mut view = view(Vec::new());
    view.stack.pools = vec![pool("bot", 2, Switch::Closed), pool("broken", 0, Switch::Open)];
    view.stack.sessions = vec![
        session(1, SessionState::Busy, None),
        session(2, SessionState::Waiting, room()),
        session(3, SessionState::Waiting, room()),
    ];
    check("src/verb/status/tests/pools.txt", &page(&view, false));
}

#[test]
fn colour_changes_no_word() {
    let coloured = page(&nine(237), true);
    assert!(coloured.contains("\x1b[38;5;208m92\x1b[0m"), "{coloured}");
    let mut rest = coloured.as_str();
    let mut plain = String::new();
    while let Some((before, behind)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        rest = behind.split_once('m').unwrap().1;
    }
    assert_eq!(plain + rest, page(&nine(237), false));
}

/// The longest of everything: words are shortened, never broken off.
#[test]
fn causes_and_states_are_whole_words() {
    let mut view = nine(237);
    for row in &mut view.stack.services {
        row.name = "a-service-with-a-very-long-name".into();
        (row.replica, row.restarts, row.attempt, row.max_attempts) = (12, 123_456, 10, Some(20));
        (row.state, row.pid, row.health) = (State::BackingOff, Some(1), HealthWord::Unhealthy);
        (row.memory_bytes, row.limit_bytes, row.stage) = (1023 << 20, 1023 << 30, Stage::Shed);
        (row.cpu_percent, row.throttled_percent, row.forecast_ms) = (1599.6, 100.0, Some(3_599_000));
        row.last_cause = Some(Cause::MemoryLimitParent);
        row.waiting = None;
    }
    let page = page(&view, false);
    for line in page.lines().skip(4).take(9) {
        assert!(line.chars().count() <= WIDTH, "{line}");
        for word in ["…/12 ", " backing_off ", " 10/20 ", " 123456 ", " parent mem ", " 59m59s"] {
            assert!(line.contains(word), "{word}: {line}");
        }
    }
}

proptest! {
    #[test]
    fn eighty_columns_are_enough(
        names in prop::collection::vec("[a-z._-]{1,63}", 1..9), number in any::<u64>(), small in any::<u32>(),
        float in 0.0..1e5f64, states in prop::collection::vec(0..7usize, 9),
    ) {
        let mut view = nine(1);
        view.stack.services.truncate(names.len());
        let all = [
            State::Starting, State::Running, State::Unhealthy, State::BackingOff, State::Stopping, State::Stopped,
            State::Failed,
        ];
        for (row, (name, state)) in view.stack.services.iter_mut().zip(names.iter().zip(states)) {
            row.name = name.as_str().into();
            (row.state, row.memory_bytes, row.limit_bytes, row.restarts) = (all[state], number / 3, number, number % 100_000);
            (row.replica, row.attempt) = (small % 1000, small % 100);
            (row.cpu_percent, row.throttled_percent, row.forecast_ms) = (float, float / 1000.0, Some(number));
        }
        let page = page(&view, false);
        prop_assert!(page.lines().all(|line| line.chars().count() <= WIDTH), "{}", page);
    }

    #[test]
    fn trees_fit_as_well(depth in 1..40i32, service in "[a-z]{1,40}", name in ".{0,15}") {
        let processes = (1..=depth).map(|pid| Process {
            pid, start_ticks: None, parent: pid - 1, name: name.clone(), memory_bytes: u64::MAX,
        });
        let tree = Tree { service: service.as_str().into(), replica: 1, processes: processes.collect() };
        let shown = super::processes(&Trees { trees: vec![tree] }, false);
        prop_assert!(shown.lines().all(|line| line.chars().count() <= WIDTH), "{}", shown);
    }
}
