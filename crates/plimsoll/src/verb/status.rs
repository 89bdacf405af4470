//! `plimsoll status` and `plimsoll ps`.

use std::collections::BTreeSet;
use std::process::ExitCode;

use plimsoll_core::stack::snapshot::{
    HealthWord, PoolRow, ServiceRow, SessionRow, SessionState, Snapshot, State, Switch,
};
use plimsoll_model::size::Human;
use plimsoll_store::Paths;

use super::control::text;
use super::view::{self, PROCESSES, STATUS, Trees, View, brief, brief_time, percent};
use crate::columns::{Cell, Column, GiveWay, Table};
use crate::fault::Fault;
use crate::output;
use crate::render::{safe, wrapped};
use crate::tone::{self, Tone};

/// Tables are read in windows of this width, in mails and in tickets.
const WIDTH: usize = 80;

/// Show services: state, memory against their lines, restarts, health
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  plimsoll status          a table, and below it what needs attention
  plimsoll status --json   for scripts
  plimsoll top             the same, live

Columns: MEMORY is held / line, % of the line; CPU% of one core; THR% share of
time in which the `cpus` quota stopped it; ATTEMPT restarts in a row / allowed;
LINE IN until the line is met if it goes on as in the last minute; LAST why
the run before ended. Columns in which nothing stands are left out; where room
is short, running ✓ is one that is healthy.")]
pub(crate) struct StatusArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Show the process trees of all services
#[derive(Debug, clap::Args)]
pub(crate) struct PsArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn status(args: &StatusArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    if args.json {
        return Ok(output::print(&(text(paths, STATUS)? + "\n")));
    }
    let view: View = view::read(&text(paths, STATUS)?)?;
    Ok(output::print(&page(&view, tone::is_stdout_coloured())))
}

pub(crate) fn ps(args: &PsArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    if args.json {
        return Ok(output::print(&(text(paths, PROCESSES)? + "\n")));
    }
    let trees: Trees = view::read(&text(paths, PROCESSES)?)?;
    Ok(output::print(&processes(&trees, tone::is_stdout_coloured())))
}

/// All of it, at most 80 columns wide.
fn page(view: &View, is_coloured: bool) -> String {
    let stack = &view.stack;
    let mut page = head(stack, is_coloured);
    if !stack.services.is_empty() {
        page.push('\n');
        page.push_str(&services(&stack.services).text(is_coloured));
    }
    if !stack.pools.is_empty() {
        page.push('\n');
        page.push_str(&pools(&stack.pools).text(is_coloured));
    }
    if !stack.sessions.is_empty() {
        page.push('\n');
        page.push_str(&sessions(&stack.sessions).text(is_coloured));
    }
    let notes = notes(view);
    if !notes.is_empty() {
        page.push('\n');
    }
    for (tone, note) in notes {
        let mut lines = String::new();
        wrapped(&mut lines, "  ", &safe(&note));
        lines.lines().for_each(|line| page.push_str(&(tone.paint(line, is_coloured) + "\n")));
    }
    page
}

fn head(stack: &Snapshot, is_coloured: bool) -> String {
    let (budget, host) = (&stack.budget, &stack.host);
    let share = percent(budget.used_bytes, budget.limit_bytes);
    let stage = Tone::of_stage(budget.stage).paint(budget.stage.as_str(), is_coloured);
    let mut head = format!(
        "budget  {} of {} ({share} %), {stage}; {} promised",
        Human(budget.used_bytes),
        Human(budget.limit_bytes),
        Human(budget.admitted_bytes)
    );
    if let Some(ms) = budget.forecast_ms.filter(|&ms| ms < 86_400_000) {
        head.push_str(&format!("; met in {}", brief_time(ms)));
    }
    let mut facts = Vec::new();
    facts.extend(host.load_1m.map(|load| format!("load {load:.1}")));
    facts.extend(host.available_bytes.map(|bytes| format!("{} available", Human(bytes))));
    facts.extend(host.swap_used_bytes.filter(|&bytes| bytes > 0).map(|bytes| format!("{} swapped", Human(bytes))));
    facts.extend(host.io_wait_percent.map(|share| format!("{share:.0} % io wait")));
    if !facts.is_empty() {
        head.push_str(&format!("\nhost    {}", facts.join(", ")));
    }
    head + "\n"
}

fn services(rows: &[ServiceRow]) -> Table {
    let each = |cell: fn(&ServiceRow) -> Cell| rows.iter().map(cell).collect::<Vec<Cell>>();
    let table = Table::new([
        Column::left("SERVICE", each(|row| Cell::new(format!("{}/{}", row.name, row.replica)).tone(Tone::Strong))),
        Column::left("STATE", each(view::state)),
        Column::right("MEMORY", each(memory)),
        Column::right("%", each(share)),
        Column::right("CPU%", each(|row| if_running(row, format!("{:.0}", row.cpu_percent)))),
        Column::right("THR%", each(throttled)),
        Column::right("RESTARTS", each(|row| Cell::new(row.restarts.to_string()))),
        Column::right("ATTEMPT", each(view::attempt)),
        Column::left("HEALTH", each(health)),
        Column::left("LAST", each(|row| view::cause(row.last_cause))),
        Column::right("LINE IN", each(|row| view::forecast(row.forecast_ms))),
    ]);
    // The state tells the worst of health, and `top` and --json tell all of it.
    table.fit(
        WIDTH,
        &[
            GiveWay::Short("MEMORY"),
            GiveWay::Short("LAST"),
            GiveWay::Closer,
            GiveWay::Short("STATE"),
            GiveWay::Drop("HEALTH"),
            GiveWay::Cut("SERVICE", 16),
            GiveWay::Drop("THR%"),
            GiveWay::Cut("SERVICE", 7),
        ],
    )
}

fn pools(rows: &[PoolRow]) -> Table {
    let each = |cell: fn(&PoolRow) -> Cell| rows.iter().map(cell).collect::<Vec<Cell>>();
    let count = |count: u64| if count == 0 { Cell::new("0").tone(Tone::Faint) } else { Cell::new(count.to_string()) };
    let table = Table::new([
        Column::left("POOL", each(|row| Cell::new(row.name.to_string()).tone(Tone::Strong))),
        Column::right("SESSIONS", each(|row| Cell::new(format!("{}/{}", row.sessions, row.max_sessions)))),
        Column::right("BUSY", rows.iter().map(|row| count(row.busy.into())).collect::<Vec<Cell>>()),
        Column::right("WARM", rows.iter().map(|row| count(row.warm.into())).collect::<Vec<Cell>>()),
        Column::right("QUEUED", rows.iter().map(|row| count(row.queued.into())).collect::<Vec<Cell>>()),
        Column::right("MEMORY", each(|row| Cell::new(Human(row.memory_bytes).to_string()))),
        Column::right("TURNS", rows.iter().map(|row| count(row.turns)).collect::<Vec<Cell>>()),
        Column::right("RECYCLED", rows.iter().map(|row| count(row.recycled)).collect::<Vec<Cell>>()),
        Column::left("CIRCUIT", each(circuit)),
        Column::right(
            "SURVIVORS",
            each(|row| {
                let tone = if row.survivors == 0 { Tone::Faint } else { Tone::Bad };
                Cell::new(row.survivors.to_string()).tone(tone)
            }),
        ),
    ]);
    table.fit(WIDTH, &[GiveWay::Closer, GiveWay::Cut("POOL", 12)])
}

fn circuit(row: &PoolRow) -> Cell {
    match row.circuit {
        Switch::Closed => Cell::new("closed").tone(Tone::Faint),
        Switch::Open => Cell::new("open").tone(Tone::Bad),
    }
}

fn sessions(rows: &[SessionRow]) -> Table {
    let each = |cell: fn(&SessionRow) -> Cell| rows.iter().map(cell).collect::<Vec<Cell>>();
    let table = Table::new([
        Column::left("SESSION", each(|row| Cell::new(format!("{}/{}", row.pool, row.replica)).tone(Tone::Strong))),
        Column::left("KEY", each(|row| row.key.as_ref().map_or(Cell::default(), |key| Cell::new(safe(key))))),
        Column::left("STATE", each(session_state)),
        Column::right("PID", each(|row| row.pid.map_or(Cell::default(), |pid| Cell::new(pid.to_string())))),
        Column::right("MEMORY", each(|row| Cell::new(Human(row.memory_bytes).to_string()))),
        Column::right("PROCS", each(|row| Cell::new(row.processes.to_string()))),
        Column::right("TURNS", each(|row| Cell::new(row.turns.to_string()))),
        Column::right("AGE", each(|row| row.age_ms.map_or(Cell::default(), |ms| Cell::new(brief_time(ms))))),
        Column::right("IDLE", each(|row| row.idle_ms.map_or(Cell::default(), |ms| Cell::new(brief_time(ms))))),
    ]);
    table.fit(WIDTH, &[GiveWay::Closer, GiveWay::Cut("KEY", 16), GiveWay::Cut("SESSION", 12)])
}

fn session_state(row: &SessionRow) -> Cell {
    let tone = match row.state {
        SessionState::Busy => Tone::Good,
        SessionState::Waiting | SessionState::Starting | SessionState::Recycling | SessionState::Closing => {
            Tone::Notice
        }
        SessionState::Warm | SessionState::Idle => Tone::Plain,
    };
    Cell::new(row.state.as_str()).tone(tone)
}

fn is_running(row: &ServiceRow) -> bool {
    row.pid.is_some()
}

fn if_running(row: &ServiceRow, text: String) -> Cell {
    if is_running(row) { Cell::new(text) } else { Cell::default() }
}

fn memory(row: &ServiceRow) -> Cell {
    let (used, line) = (row.memory_bytes, row.limit_bytes);
    if is_running(row) {
        Cell::new(format!("{} / {}", Human(used), Human(line))).short(format!("{}/{}", brief(used), brief(line)))
    } else {
        Cell::new(format!("- / {}", Human(line))).short(format!("-/{}", brief(line))).tone(Tone::Faint)
    }
}

fn share(row: &ServiceRow) -> Cell {
    if_running(row, percent(row.memory_bytes, row.limit_bytes).to_string()).tone(Tone::of_stage(row.stage))
}

fn throttled(row: &ServiceRow) -> Cell {
    if row.throttled_percent < 0.5 {
        return Cell::default();
    }
    Cell::new(format!("{:.0}", row.throttled_percent)).tone(Tone::Notice)
}

pub(super) fn health(row: &ServiceRow) -> Cell {
    match row.health {
        HealthWord::None => Cell::default(),
        HealthWord::Starting => Cell::new("starting").tone(Tone::Notice),
        HealthWord::Healthy => Cell::new("healthy").tone(Tone::Good),
        HealthWord::Unhealthy => Cell::new("unhealthy").tone(Tone::Bad),
    }
}

/// What stands below the table: what needs somebody first, then what waits, then addresses.
pub(super) fn notes(view: &View) -> Vec<(Tone, String)> {
    let rows = &view.stack.services;
    let who = |row: &ServiceRow| format!("{}/{}", row.name, row.replica);
    let mut notes: Vec<(Tone, String)> = Vec::new();
    notes.extend(view.troubles.iter().map(|trouble| (Tone::Bad, format!("trouble: {trouble}"))));
    notes.extend(view.stack.alerts.iter().map(|alert| (Tone::Bad, format!("alert: {alert}"))));
    for row in rows {
        if row.state == State::Failed {
            let text = format!("{} is given up: `plimsoll explain {}` says why", who(row), row.name);
            notes.push((Tone::Bad, text));
        }
        if row.circuit_open {
            notes.push((Tone::Bad, format!("{} was restarted too often: one try a minute", who(row))));
        }
    }
    for row in view.stack.pools.iter().filter(|row| row.circuit == Switch::Open) {
        let again = brief_time(row.retry_ms.unwrap_or(0));
        let text =
            format!("{} fails each time ({} times in a row), next trial in {again}", row.name, row.failed_starts);
        notes.push((Tone::Bad, text));
    }
    for row in rows {
        if let Some(waiting) = &row.waiting {
            notes.push((Tone::Notice, format!("{} waits for {waiting}", who(row))));
        }
    }
    for pool in &view.stack.pools {
        let is_its = |row: &&SessionRow| row.pool == pool.name;
        // Of many the first tells why: the others wait for the same.
        let first =
            view.stack.sessions.iter().filter(is_its).find_map(|row| Some((row.replica, row.waiting.as_ref()?)));
        if let Some((number, waiting)) = first {
            let wait = match pool.waiting {
                0 | 1 => "waits".to_owned(),
                count => format!("and {} more wait", count - 1),
            };
            notes.push((Tone::Notice, format!("{}/{number} {wait} for {waiting}", pool.name)));
        }
    }
    let mut told = BTreeSet::new();
    for row in rows {
        let scale = row.scale;
        let Some(listen) = row.listen.as_ref().filter(|_| told.insert(&row.name)) else { continue };
        let mut note = format!("{} listens on {listen}", row.name);
        if (scale.current, scale.target, scale.max) != (1, 1, 1) {
            note.push_str(&format!(", {} of {} replicas available", scale.current, scale.target));
        }
        if scale.max != scale.target {
            note.push_str(&format!(" (from {} to {})", scale.min, scale.max));
        }
        notes.push((Tone::Plain, note));
    }
    notes
}

/// All trees, at most 80 columns wide.
fn processes(trees: &Trees, is_coloured: bool) -> String {
    let mut cells: [Vec<Cell>; 4] = Default::default();
    for tree in &trees.trees {
        for (index, (branch, process)) in tree.branches().into_iter().enumerate() {
            let who = if index == 0 { format!("{}/{}", tree.service, tree.replica) } else { String::new() };
            let [services, pids, memory, names] = &mut cells;
            services.push(Cell::new(who).tone(Tone::Strong));
            pids.push(Cell::new(process.pid.to_string()));
            memory.push(Cell::new(Human(process.memory_bytes).to_string()).short(brief(process.memory_bytes)));
            names.push(Cell::new(branch + &safe(&process.name)));
        }
    }
    if cells[0].is_empty() {
        return "no process runs\n".to_owned();
    }
    let [services, pids, memory, names] = cells;
    let names = names.into_iter().map(|cell| Cell { text: deep(cell.text), ..cell });
    let table = Table::new([
        Column::left("SERVICE", services),
        Column::right("PID", pids),
        Column::right("MEMORY", memory),
        Column::left("PROCESS", names),
    ]);
    let order = [GiveWay::Cut("SERVICE", 16), GiveWay::Short("MEMORY"), GiveWay::Cut("PROCESS", 20)];
    table.fit(WIDTH, &order).text(is_coloured)
}

/// Of branches that are deeper than the window, the nearest count.
fn deep(text: String) -> String {
    const MOST: usize = 48;
    let length = text.chars().count();
    if length <= MOST { text } else { ['…'].into_iter().chain(text.chars().skip(length - MOST + 1)).collect() }
}

#[cfg(test)]
#[path = "status/tests.rs"]
mod tests;
