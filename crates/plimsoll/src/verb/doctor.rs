//! `plimsoll doctor`: what is wrong with this machine, and what to do about it.

use std::io::Write;
use std::process::ExitCode;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, presets};
use plimsoll_core::doctor::{Check, Status, checks, worst};
use plimsoll_kernel::cgroup::probe::{Found, unsupported};
use plimsoll_kernel::cgroup::{Hierarchies, Parent, probe};
use plimsoll_kernel::host::{Query, look};
use plimsoll_model::host::{HostFacts, Leftover, Tier};
use plimsoll_model::spec::BoundaryChoice;
use plimsoll_model::{Boundary, Limits};
use plimsoll_store::{Paths, registry};
use serde::Serialize;

/// Examine this machine: boundary, limits, swap, pressure, OOM kills, zombies, orphans, leftovers
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Looks, prints, and answers 1 when a check failed.
pub(crate) fn run(args: &DoctorArgs) -> ExitCode {
    let (facts, extra) = examine();
    let mut rows = extra;
    rows.extend(checks(&facts));
    let text = if args.json { json(&facts, &rows) } else { table(&rows) };
    // A reader that went away (`| head`) is no failure of the checks.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    if worst(&rows) == Status::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The facts, and checks that the facts have no place for: those of our own set-up.
fn examine() -> (HostFacts, Vec<Check>) {
    let mut extra = Vec::new();
    let parent = std::env::var("PLIMSOLL_CGROUP_PARENT").ok().filter(|parent| !parent.is_empty());
    let found = probe(BoundaryChoice::Auto, parent.as_deref()).or_else(|error| {
        extra.push(Check {
            name: "cgroup_parent",
            status: Status::Fail,
            found: error.to_string(),
            fix: "unset PLIMSOLL_CGROUP_PARENT, or name a group that this user may write".to_owned(),
        });
        probe(BoundaryChoice::Auto, None)
    });
    let hierarchies = Hierarchies::read();
    let (tier, group, parents) = match &found {
        Ok(found) => {
            let group = found.surrounding.as_ref().map(|group| (group.dir.clone(), group.version));
            (tier(found, &hierarchies), group, parents(found.parent.as_ref()))
        }
        Err(error) => {
            let tier = Tier {
                boundary: Boundary::Watchdog,
                reason: error.to_string(),
                layout: hierarchies.layout().to_owned(),
                swap_accounting: false,
                refused: Vec::new(),
            };
            (tier, hierarchies.surrounding().map(|group| (group.dir, group.version)), Vec::new())
        }
    };
    let paths = Paths::from_env();
    let (mut live, left) = registered(&paths, &mut extra);
    // We may be in a run ourselves.
    live.extend(std::env::var("PLIMSOLL_ID"));
    let mut facts = look(Query { tier, group, parents, live, state_dir: paths.state().to_owned() });
    // A run that was started during the look is none that was left.
    let since = registry::running(paths.runtime()).unwrap_or_default();
    facts.leftovers.retain(|found| !since.iter().any(|run| found.what.contains(run.id.as_str())));
    for (found, id) in left {
        // A run that left both a file and a group, or processes, is told once.
        let mut told = false;
        for known in facts.leftovers.iter_mut().filter(|known| known.what.contains(&id)) {
            (known.registered, told) = (true, true);
        }
        if !told {
            facts.leftovers.push(found);
        }
    }
    (facts, extra)
}

fn tier(found: &Found, hierarchies: &Hierarchies) -> Tier {
    let alone = [
        (Limits { memory_reservation: Some(1), ..Limits::default() }, false),
        (Limits { memory_high: Some(1), ..Limits::default() }, false),
        (Limits { cpu_micros: Some(1), ..Limits::default() }, false),
        (Limits { pids: Some(1), ..Limits::default() }, false),
        (Limits { memory: Some(1), memory_swap: Some(2), ..Limits::default() }, true),
    ];
    let refused = alone.iter().filter_map(|(limits, swap)| unsupported(found, limits, *swap));
    Tier {
        boundary: found.boundary,
        reason: found.reason.clone(),
        layout: hierarchies.layout().to_owned(),
        swap_accounting: found.swap_accounting,
        refused: refused.map(|(option, why)| (option.to_owned(), why)).collect(),
    }
}

/// Directories in which groups of runs are made.
fn parents(parent: Option<&Parent>) -> Vec<std::path::PathBuf> {
    match parent {
        None => Vec::new(),
        Some(Parent::V2 { base, .. }) => vec![base.clone()],
        Some(Parent::V1 { memory, pids, cpu, freezer, unified, .. }) => {
            [Some(memory), pids.as_ref(), cpu.as_ref(), freezer.as_ref(), unified.as_ref()]
                .into_iter()
                .flatten()
                .cloned()
                .collect()
        }
    }
}

/// Ids of the runs that are alive, and the files of those whose Plimsoll is gone, each with its id.
fn registered(paths: &Paths, extra: &mut Vec<Check>) -> (Vec<String>, Vec<(Leftover, String)>) {
    if let Err(error) = paths.check_state() {
        let found = error.to_string();
        extra.push(Check { name: "state_dir", status: Status::Fail, found, fix: error.help().to_owned() });
    }
    let mut trouble = |found: String, fix: &str| {
        extra.push(Check { name: "runtime_dir", status: Status::Fail, found, fix: fix.to_owned() });
    };
    match paths.check_runtime() {
        Ok(true) => {}
        Ok(false) => return (Vec::new(), Vec::new()),
        Err(error) => {
            trouble(error.to_string(), error.help());
            return (Vec::new(), Vec::new());
        }
    }
    let runs = registry::running(paths.runtime());
    let left = registry::leftovers(paths.runtime());
    match (runs, left) {
        (Ok(runs), Ok(left)) => {
            let live = runs.into_iter().map(|run| run.id.to_string()).collect();
            let left = left.map(|left| {
                let what = format!("the registered run {}", left.id);
                (Leftover { what, pids: Vec::new(), groups: Vec::new(), registered: true }, left.id.to_string())
            });
            (live, left.collect())
        }
        (Err(error), _) | (_, Err(error)) => {
            trouble(
                error.to_string(),
                "give the runtime directory to this user, or point PLIMSOLL_RUNTIME_DIR at another",
            );
            (Vec::new(), Vec::new())
        }
    }
}

/// A row a check, at most 80 columns.
fn table(rows: &[Check]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(80);
    table.set_header(["CHECK", "STATUS", "FOUND"]);
    for row in rows {
        let found = if row.fix.is_empty() { row.found.clone() } else { format!("{}\nfix: {}", row.found, row.fix) };
        table.add_row([row.name, row.status.as_str(), &found]);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == 2 { 0 } else { 2 }));
        if index < 2 {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let mut text: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    let count = |status| rows.iter().filter(|row| row.status == status).count();
    text += &format!("\n{} ok, {} warn, {} fail\n", count(Status::Ok), count(Status::Warn), count(Status::Fail));
    text
}

#[derive(Serialize)]
struct Report<'a> {
    boundary: &'static str,
    memory: Memory,
    checks: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Memory {
    total_bytes: u64,
    available_bytes: u64,
    limit_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    status: &'static str,
    found: &'a str,
    fix: &'a str,
}

fn json(facts: &HostFacts, rows: &[Check]) -> String {
    let report = Report {
        boundary: facts.tier.boundary.as_str(),
        memory: Memory {
            total_bytes: facts.memory.total,
            available_bytes: facts.memory.available,
            limit_bytes: facts.group.as_ref().map(|group| group.limit),
        },
        checks: rows
            .iter()
            .map(|row| Row { name: row.name, status: row.status.as_str(), found: &row.found, fix: &row.fix })
            .collect(),
    };
    serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_in_eighty_columns() {
        let (facts, _) = examine();
        let mut rows = checks(&facts);
        rows.push(Check {
            name: "default_memory_swap",
            status: Status::Warn,
            found: format!("{} {}", "x".repeat(200), "words ".repeat(40)),
            fix: "y".repeat(150),
        });
        let text = table(&rows);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(rows.iter().all(|row| text.contains(row.name)), "{text}");
    }

    #[test]
    fn the_contracts_json() {
        let (facts, _) = examine();
        let rows = checks(&facts);
        let value: serde_json::Value = serde_json::from_str(&json(&facts, &rows)).unwrap();
        let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&value), ["boundary", "checks", "memory"]);
        assert_eq!(keys(&value["memory"]), ["available_bytes", "limit_bytes", "total_bytes"]);
        for check in value["checks"].as_array().unwrap() {
            assert_eq!(keys(check), ["fix", "found", "name", "status"]);
            assert!(["ok", "warn", "fail"].contains(&check["status"].as_str().unwrap()));
        }
    }
}
