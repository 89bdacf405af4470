//! `top` without a terminal: pictures of made-up stacks, any model in any area, and keys.
//!
//! The pictures are files in `tests/`; `PLIMSOLL_WRITE_PICTURES=1 cargo test -p plimsoll verb` writes them anew.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use plimsoll_core::stack::Stage;
use plimsoll_core::stack::snapshot::{BudgetRow, HealthWord, HostRow, ScaleRow, ServiceRow, Snapshot, State};
use plimsoll_gateway::control::Command;
use plimsoll_kernel::procfs;
use plimsoll_model::Cause;
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;
use ratatui::style::Color;

use super::super::view::{Process, Tree, View};
use super::draw::{self, Look};
use super::model::{Effect, Focus, KEPT_EVENTS, KEPT_LOOKS, Message, Model};
use crate::tone::Tone;

const MIB: u64 = 1 << 20;
const PLAIN: Look = Look { is_coloured: false };
const COLOURED: Look = Look { is_coloured: true };

fn row(name: &str, replica: u32, state: State, used: u64, line: u64) -> ServiceRow {
    let runs = matches!(state, State::Running | State::Unhealthy);
    ServiceRow {
        name: name.into(),
        replica,
        state,
        pid: runs.then_some(4000 + replica as i32),
        listen: None,
        port: None,
        memory_bytes: used * MIB,
        limit_bytes: line * MIB,
        admitted_bytes: line * MIB / 2,
        stage: Stage::of(used, line),
        cpu_percent: 3.4,
        throttled_percent: 0.0,
        processes: 1,
        restarts: 0,
        attempt: 0,
        max_attempts: Some(3),
        circuit_open: false,
        oom_kills: 0,
        last_cause: None,
        health: HealthWord::None,
        uptime_ms: runs.then_some(61_000),
        forecast_ms: None,
        waiting: None,
        scale: ScaleRow { current: 1, target: 1, min: 1, max: 1 },
    }
}

pub(in super::super) fn view(services: Vec<ServiceRow>) -> View {
    let used = services.iter().map(|row| row.memory_bytes).sum();
    let limit = 2048 * MIB;
    View {
        stack: Snapshot {
            host: HostRow {
                load_1m: Some(1.25),
                swap_used_bytes: Some(0),
                io_wait_percent: Some(2.0),
                available_bytes: Some(14 << 30),
            },
            budget: BudgetRow {
                limit_bytes: limit,
                used_bytes: used,
                admitted_bytes: limit * 3 / 4,
                stage: Stage::of(used, limit),
                forecast_ms: Some(192_000),
                queued: 1,
            },
            services,
            pools: Vec::new(),
            sessions: Vec::new(),
            alerts: Vec::new(),
        },
        troubles: Vec::new(),
    }
}

/// Nine services, one of which grows.
pub(in super::super) fn nine(grown: u64) -> View {
    let mut rows = vec![
        row("api", 1, State::Running, 210, 512),
        row("api", 2, State::Unhealthy, 190, 512),
        row("crawler", 1, State::Running, grown, 256),
        row("importer", 1, State::Starting, 0, 200),
        row("mailer", 1, State::Stopped, 0, 64),
        row("reports", 1, State::Failed, 0, 128),
        row("search", 1, State::BackingOff, 0, 256),
        row("store", 1, State::Running, 48, 64),
        row("thumbnails", 1, State::Running, 20, 128),
    ];
    (rows[0].health, rows[1].health) = (HealthWord::Healthy, HealthWord::Unhealthy);
    rows[0].listen = Some("127.0.0.1:8080".to_owned());
    rows[..2].iter_mut().for_each(|row| (row.scale.target, row.scale.max) = (2, 2));
    rows[2].forecast_ms = Some(48_000);
    rows[2].cpu_percent = 99.6;
    rows[3].waiting =
        Some(plimsoll_core::stack::event::Waiting::Room { needed_bytes: 200 * MIB, free_bytes: 90 * MIB });
    (rows[5].restarts, rows[5].attempt, rows[5].last_cause) = (12, 3, Some(Cause::MemoryLimit));
    (rows[6].restarts, rows[6].attempt, rows[6].last_cause) = (2, 2, Some(Cause::MemoryLimitParent));
    rows[8].throttled_percent = 37.0;
    view(rows)
}

pub(in super::super) fn trees() -> Vec<Tree> {
    let process = |pid, parent, name: &str, mib| Process {
        pid,
        start_ticks: Some(100 + pid as u64),
        parent,
        name: name.to_owned(),
        memory_bytes: mib * MIB,
    };
    let crawler = vec![
        process(4001, 1, "node", 60),
        process(4010, 4001, "chromium", 120),
        process(4011, 4010, "renderer", 33),
        process(4012, 4010, "gpu", 9),
        process(4020, 4001, "ffmpeg", 12),
    ];
    let api = vec![process(4001, 1, "python3", 210)];
    vec![
        Tree { service: "api".into(), replica: 1, processes: api },
        Tree { service: "crawler".into(), replica: 1, processes: crawler },
    ]
}

fn event(seq: u64, json: &str) -> plimsoll_runtime::stack::journal::Row {
    let at = format!("2026-11-24T10:00:{:02}.456Z", seq % 60);
    serde_json::from_str(&format!(r#"{{"seq":{seq},"at":"{at}",{json}}}"#)).unwrap()
}

/// A stack that was watched for a minute.
fn model() -> Model {
    let mut model = Model::default();
    for second in 0..60 {
        model.hear(Message::Looked { view: Box::new(nine(60 + 3 * second)), trees: trees() });
    }
    let crawler = r#""service":"crawler","replica":1,"generation":7"#;
    let stored = [
        r#""event":"loaded","services":9,"budget_bytes":2147483648"#.to_owned(),
        format!(r#""event":"started",{crawler},"pid":4001,"port":null"#),
        format!(
            r#""event":"tree_stage",{crawler},"from":"normal","to":"alert","used_bytes":215000000,"limit_bytes":268435456,
            "forecast_ms":60000"#
        ),
        r#""event":"alert_firing","alert":"memory > 80%","value":81.0,"threshold":80.0"#.to_owned(),
    ];
    model.hear(Message::Stored(stored.iter().zip(1..).map(|(json, seq)| event(seq, json)).collect()));
    model.select(2);
    model
}

fn picture(model: &Model, look: Look, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(model, look, frame.area(), frame.buffer_mut())).unwrap();
    terminal
}

fn text(terminal: &Terminal<TestBackend>) -> String {
    let buffer = terminal.backend().buffer();
    let width = usize::from(buffer.area.width);
    let lines = buffer.content().chunks(width.max(1));
    lines.map(|line| line.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned() + "\n").collect()
}

/// Compares with a file of this crate.
pub(in super::super) fn check(name: &str, shown: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os("PLIMSOLL_WRITE_PICTURES").is_some() {
        std::fs::write(&file, shown).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(expected == shown, "{} differs:\n{shown}", file.display());
}

#[test]
fn pictures() {
    let mut model = model();
    check("src/verb/top/tests/80x24.txt", &text(&picture(&model, PLAIN, 80, 24)));
    check("src/verb/top/tests/120x40.txt", &text(&picture(&model, PLAIN, 120, 40)));
    check("src/verb/top/tests/least.txt", &text(&picture(&model, PLAIN, 60, 14)));
    check("src/verb/top/tests/small.txt", &text(&picture(&model, PLAIN, 40, 8)));
    press(&mut model, "\tj");
    check("src/verb/top/tests/tree.txt", &text(&picture(&model, PLAIN, 80, 24)));
    press(&mut model, "K");
    check("src/verb/top/tests/kill.txt", &text(&picture(&model, PLAIN, 80, 24)));
    press(&mut model, "n?");
    check("src/verb/top/tests/help.txt", &text(&picture(&model, PLAIN, 80, 24)));
    press(&mut model, "?");
    model.hear(Message::Gone("nobody answers at /run/plimsoll/control.sock: Connection refused".to_owned()));
    check("src/verb/top/tests/gone.txt", &text(&picture(&model, PLAIN, 80, 24)));
    check("src/verb/top/tests/empty.txt", &text(&picture(&Model::default(), PLAIN, 80, 24)));
}

#[test]
fn stages_have_their_colours_and_no_color_has_none() {
    let model = model();
    let coloured = picture(&model, COLOURED, 80, 24);
    let buffer = coloured.backend().buffer();
    let line =
        text(&coloured).lines().position(|line| line.contains("crawler/1  ") || line.contains("crawler/1 ")).unwrap();
    let cells: Vec<_> = (0..80).map(|x| &buffer[(x, line as u16)]).collect();
    let bar = cells.iter().find(|cell| cell.symbol() == "━").unwrap();
    assert_eq!(bar.fg, Color::Indexed(208), "237 of 256 MiB is degrade");
    for width in [60, 80, 200] {
        let plain = picture(&model, PLAIN, width, 30);
        assert!(
            plain.backend().buffer().content().iter().all(|cell| (cell.fg, cell.bg) == (Color::Reset, Color::Reset))
        );
    }
}

fn key(letter: char) -> KeyEvent {
    let code = match letter {
        '\t' => KeyCode::Tab,
        '\x1b' => KeyCode::Esc,
        '↓' => KeyCode::Down,
        '↑' => KeyCode::Up,
        letter => KeyCode::Char(letter),
    };
    KeyEvent::new(code, KeyModifiers::NONE)
}

fn press(model: &mut Model, keys: &str) -> Vec<Effect> {
    keys.chars().filter_map(|letter| model.press(key(letter))).collect()
}

#[test]
fn commands_are_confirmed() {
    let mut model = model();
    assert_eq!(press(&mut model, "ry"), [Effect::Tell(Command::Restart("crawler".to_owned()))]);
    assert_eq!(press(&mut model, "sy"), [Effect::Tell(Command::Stop("crawler".to_owned()))]);
    assert_eq!(press(&mut model, "S"), [Effect::Tell(Command::Start("crawler".to_owned()))]);
    for no in ["rn", "r\x1b", "sq", "K\t", "Kr"] {
        assert_eq!(press(&mut model, no), [], "{no:?}");
        assert!(model.dialog.is_none());
    }
    assert_eq!(press(&mut model, "y"), []);
    assert_eq!(press(&mut model, "q"), [Effect::Quit]);
    assert_eq!(press(&mut model, "\x1b"), [Effect::Quit]);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut model, "r");
    assert_eq!(model.press(interrupt), Some(Effect::Quit));
}

#[test]
fn a_kill_names_the_process_for_good() {
    let mut model = model();
    let kill = |pid: i32, name: &str| {
        let process = procfs::Process { pid, start_ticks: 100 + pid as u64 };
        vec![Effect::Kill(process, format!("{name} (pid {pid})"))]
    };
    assert_eq!(press(&mut model, "Ky"), kill(4001, "node"));
    assert_eq!(press(&mut model, "\t↓↓Ky"), kill(4011, "renderer"));
    assert_eq!(press(&mut model, "\x1bKy"), kill(4001, "node"), "in the table it is the root");
    // Between the question and the answer somebody else came to the same place: the question stands.
    press(&mut model, "K");
    model.hear(Message::Looked { view: Box::new(nine(10)), trees: Vec::new() });
    assert_eq!(press(&mut model, "y"), kill(4001, "node"));
    assert_eq!(press(&mut model, "K"), [], "there is no process now");
    assert_eq!(model.said, Some((Tone::Notice, "it has no process".to_owned())));
    let mut old = trees();
    old[1].processes[0].start_ticks = None;
    model.hear(Message::Looked { view: Box::new(nine(10)), trees: old });
    assert_eq!(press(&mut model, "Ky"), []);
}

#[test]
fn the_selection_follows_its_replica() {
    let mut model = model();
    assert_eq!(model.row().map(|row| &*row.name), Some("crawler"));
    let mut less = nine(10);
    less.stack.services.remove(0);
    model.hear(Message::Looked { view: Box::new(less.clone()), trees: trees() });
    assert_eq!((model.row().map(|row| &*row.name), model.place()), (Some("crawler"), 1));
    less.stack.services.remove(1);
    model.hear(Message::Looked { view: Box::new(less), trees: trees() });
    assert_eq!(model.row().map(|row| &*row.name), Some("importer"), "whoever stands in its place");
    assert_eq!(press(&mut model, "G↓k"), []);
    assert_eq!(model.row().map(|row| &*row.name), Some("store"));
    press(&mut model, "g↑");
    assert_eq!(model.place(), 0);
    press(&mut model, "\t");
    assert_eq!(model.focus, Focus::Tree);
}

#[test]
fn nobody_is_commanded_who_is_gone() {
    let mut model = model();
    model.hear(Message::Gone("nobody answers".to_owned()));
    assert_eq!(press(&mut model, "rysySKy"), []);
    model.hear(Message::Looked { view: Box::new(nine(10)), trees: trees() });
    assert!(model.gone.is_none());
    assert_eq!(press(&mut model, "ry").len(), 1);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut model = Model::default();
    for second in 0..1200 {
        model.hear(Message::Looked { view: Box::new(nine(second % 200)), trees: Vec::new() });
        model.hear(Message::Event(Box::new(event(second, r#""event":"going_down""#))));
    }
    assert!(model.budget.len() == KEPT_LOOKS && model.memory.values().all(|line| line.len() == KEPT_LOOKS));
    assert_eq!(model.events.len(), KEPT_EVENTS);
    model.hear(Message::Looked { view: Box::new(view(Vec::new())), trees: Vec::new() });
    assert!(model.memory.is_empty());
}

prop_compose! {
    fn any_row()(
        name in "[a-z._-]{1,40}", replica in 0..20u32, state in 0..7usize, used in any::<u64>(), line in any::<u64>(),
        stage in 0..4usize, numbers in any::<(f64, f64, u64, u32, Option<u32>, Option<u64>)>(), small in any::<bool>(),
    ) -> ServiceRow {
        let states = [State::Starting, State::Running, State::Unhealthy, State::BackingOff, State::Stopping, State::Stopped, State::Failed];
        let (cpu_percent, throttled_percent, restarts, attempt, max_attempts, forecast_ms) = numbers;
        let small = if small { 200 * MIB } else { u64::MAX };
        ServiceRow {
            memory_bytes: used % small, limit_bytes: line % small, stage: Stage::ALL[stage], cpu_percent, throttled_percent,
            restarts, attempt, max_attempts, forecast_ms, ..row(&name, replica, states[state], 0, 0)
        }
    }
}

prop_compose! {
    fn any_process()(pid in 1..20i32, parent in 0..20i32, name in ".{0,20}", memory_bytes in any::<u64>()) -> Process {
        Process { pid, parent, name, memory_bytes, start_ticks: Some(1) }
    }
}

prop_compose! {
    fn any_look()(
        rows in prop::collection::vec(any_row(), 0..15), used in any::<u64>(), limit in any::<u64>(), stage in 0..4usize,
        processes in prop::collection::vec(any_process(), 0..15), words in prop::collection::vec(".{0,100}", 0..3),
    ) -> (View, Vec<Tree>) {
        let trees = rows.iter().map(|row| Tree {
            service: row.name.clone(), replica: row.replica, processes: processes.clone(),
        }).collect();
        let mut view = view(rows.into_iter().map(|row| ServiceRow { memory_bytes: row.memory_bytes / 20, ..row }).collect());
        (view.stack.budget.used_bytes, view.stack.budget.limit_bytes) = (used, limit);
        view.stack.budget.stage = Stage::ALL[stage];
        view.troubles = words;
        (view, trees)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_model_is_drawn_in_any_area(
        looks in prop::collection::vec(any_look(), 0..4),
        keys in prop::collection::vec(prop::sample::select("jkgG\tKrsSyn?h\x1b↓↑".chars().collect::<Vec<char>>()), 0..12),
        (width, height) in (0..260u16, 0..90u16), is_coloured in any::<bool>(), is_gone in any::<bool>(),
    ) {
        let mut model = Model::default();
        for (view, trees) in looks {
            model.hear(Message::Looked { view: Box::new(view), trees });
            keys.iter().for_each(|&letter| { let _ = model.press(key(letter)); });
            if is_gone {
                model.hear(Message::Gone("x".to_owned()));
            }
            let look = Look { is_coloured };
            let shown = picture(&model, look, width, height);
            // Nothing that a program named itself steers the terminal.
            prop_assert!(!shown.backend().buffer().content().iter().any(|cell| cell.symbol().chars().any(char::is_control)));
            // Somebody may draw it beside other things, too.
            let mut buffer = ratatui::buffer::Buffer::empty(Rect::new(0, 0, 100, 30));
            draw::draw(&model, look, Rect::new(90, 20, width, height), &mut buffer);
            draw::draw(&model, look, Rect::new(5, 2, 70, 20), &mut buffer);
        }
    }
}

/// Found by two of them that outlived their terminal at full speed.
#[test]
fn a_terminal_that_was_hung_up_is_no_terminal() {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY;
    let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty()).unwrap();
    super::is_there(slave.as_fd(), Duration::ZERO).unwrap();
    drop(master);
    assert!(super::is_there(slave.as_fd(), Duration::from_secs(30)).is_err());
}
