//! `plimsoll status` and `plimsoll ps`.

use std::process::ExitCode;

use plimsoll_core::stack::snapshot::{ServiceRow, Snapshot};
use plimsoll_model::size::Human;
use plimsoll_store::Paths;

use super::control::text;
use crate::fault::Fault;
use crate::output;

/// Show services: state, memory against their lines, restarts, health
#[derive(Debug, clap::Args)]
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
    let json = text(paths, "/api/v1/status")?;
    if args.json {
        return Ok(output::print(&(json + "\n")));
    }
    let snapshot: Snapshot = serde_json::from_str(&json).map_err(|error| Fault {
        code: 1,
        message: format!("the answer is not understood: {error}"),
        help: "is the plimsoll that runs of another version?".to_owned(),
    })?;
    Ok(output::print(&table(&snapshot)))
}

/// A table of at most 80 columns.
fn table(snapshot: &Snapshot) -> String {
    let budget = &snapshot.budget;
    let mut text = format!(
        "budget {} of {}, {}; promised {}\n\n{:<16} {:<11} {:>19} {:>5} {:>8} {:<9} {}\n",
        Human(budget.used_bytes),
        Human(budget.limit_bytes),
        budget.stage.as_str(),
        Human(budget.admitted_bytes),
        "SERVICE",
        "STATE",
        "MEMORY",
        "CPU%",
        "RESTARTS",
        "HEALTH",
        "LAST"
    );
    for row in &snapshot.services {
        text.push_str(&line(row));
    }
    text
}

fn line(row: &ServiceRow) -> String {
    let name: String = format!("{}/{}", row.name, row.replica).chars().take(16).collect();
    let memory = format!("{} / {}", Human(row.memory_bytes), Human(row.limit_bytes));
    let attempt = row.max_attempts.map_or_else(|| row.restarts.to_string(), |most| format!("{}/{most}", row.attempt));
    let health = serde_json::to_value(row.health).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    let last = row.last_cause.map_or("", plimsoll_model::Cause::as_str);
    let text = format!(
        "{name:<16} {:<11} {memory:>19} {:>5.0} {attempt:>8} {health:<9} {last}",
        row.state.as_str(),
        row.cpu_percent
    );
    text.trim_end().chars().take(80).collect::<String>() + "\n"
}

pub(crate) fn ps(args: &PsArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    let json = text(paths, "/api/v1/processes")?;
    if args.json {
        return Ok(output::print(&(json + "\n")));
    }
    let value: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
    let mut shown = format!("{:<18} {:>8} {:>12}  {}\n", "SERVICE", "PID", "MEMORY", "PROCESS");
    for tree in value["trees"].as_array().into_iter().flatten() {
        let who = format!("{}/{}", tree["service"].as_str().unwrap_or(""), tree["replica"]);
        for process in tree["processes"].as_array().into_iter().flatten() {
            let depth = process["depth"].as_u64().unwrap_or(0) as usize;
            let row = format!(
                "{who:<18} {:>8} {:>12}  {}{}",
                process["pid"],
                Human(process["memory_bytes"].as_u64().unwrap_or(0)).to_string(),
                "  ".repeat(depth.min(8)),
                process["name"].as_str().unwrap_or("")
            );
            shown.push_str(&(row.chars().take(80).collect::<String>() + "\n"));
        }
    }
    Ok(output::print(&shown))
}
