//! What a running stack answers about itself, as the views take it: `status`, `ps` and `top` read the same.

use plimsoll_core::stack::Name;
use plimsoll_core::stack::snapshot::{HealthWord, ServiceRow, Snapshot, State};
use plimsoll_model::Cause;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::columns::Cell;
use crate::fault::Fault;
use crate::tone::Tone;

/// Where the services stand.
pub(super) const STATUS: &str = "/api/v1/status";

/// Where their processes stand.
pub(super) const PROCESSES: &str = "/api/v1/processes";

/// The stack at one instant.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct View {
    #[serde(flatten)]
    pub(super) stack: Snapshot,
    /// What the supervisor itself cannot do, such as write to a full disk; in words.
    #[serde(default)]
    pub(super) troubles: Vec<String>,
}

/// All processes of the stack.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct Trees {
    pub(super) trees: Vec<Tree>,
}

/// Those of one replica.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Tree {
    pub(super) service: Name,
    pub(super) replica: u32,
    pub(super) processes: Vec<Process>,
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// With the pid it names a process for good; an older supervisor does not tell it.
    #[serde(default)]
    pub(super) start_ticks: Option<u64>,
    pub(super) parent: i32,
    pub(super) name: String,
    pub(super) memory_bytes: u64,
}

/// Reads an answer.
pub(super) fn read<T: DeserializeOwned>(json: &str) -> Result<T, Fault> {
    serde_json::from_str(json).map_err(|error| {
        Fault::failed(format!("the answer is not understood: {error}"), "is the plimsoll that runs of another version?")
    })
}

impl Tree {
    /// Its processes from the root down, the largest child first, each behind the branches that lead to it.
    pub(super) fn branches(&self) -> Vec<(String, &Process)> {
        let is_member = |pid: i32| self.processes.iter().any(|process| process.pid == pid);
        let children = |parent: Option<i32>| {
            let is_child = |process: &&Process| match parent {
                Some(parent) => process.parent == parent && process.pid != parent,
                None => !is_member(process.parent) || process.parent == process.pid,
            };
            let mut children: Vec<&Process> = self.processes.iter().filter(is_child).collect();
            children.sort_by_key(|process| std::cmp::Reverse(process.memory_bytes));
            children
        };
        // A list that was gathered while processes came and went may hold a circle: nobody is shown twice.
        let (mut shown, mut lines) = (std::collections::BTreeSet::new(), Vec::new());
        let mut open: Vec<(String, String, &Process)> =
            children(None).into_iter().rev().map(|root| (String::new(), String::new(), root)).collect();
        while let Some((branch, below, process)) = open.pop() {
            if !shown.insert(process.pid) {
                continue;
            }
            let children = children(Some(process.pid));
            for (index, child) in children.into_iter().rev().enumerate() {
                let (own, behind) = if index == 0 { ("└─ ", "   ") } else { ("├─ ", "│  ") };
                open.push((format!("{below}{own}"), format!("{below}{behind}"), child));
            }
            lines.push((branch, process));
        }
        lines
    }
}

/// A size in at most six characters, for tables: `312M`, `1.2G`.
pub(super) fn brief(bytes: u64) -> String {
    let text = plimsoll_model::size::Human(bytes).to_string();
    let (number, unit) = text.split_once(' ').unwrap_or((&text, ""));
    let unit = unit.trim_end_matches("iB").trim_end_matches('B');
    // Three digits say it.
    let number = if number.len() > 4 { number.split('.').next().unwrap_or(number) } else { number };
    format!("{number}{unit}")
}

/// A time to come or gone in at most six characters, for tables: `45s`, `3m12s`, `2h05m`, `4d`.
pub(super) fn brief_time(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        86_400..8_640_000 => format!("{}d", seconds / 86_400),
        _ => ">99d".to_owned(),
    }
}

/// A forecast in a table: what lies beyond a day is none.
pub(super) fn forecast(ms: Option<u64>) -> Cell {
    match ms {
        Some(ms @ 0..60_000) => Cell::new(brief_time(ms)).tone(Tone::Bad),
        Some(ms @ 60_000..600_000) => Cell::new(brief_time(ms)).tone(Tone::Notice),
        Some(ms @ 600_000..86_400_000) => Cell::new(brief_time(ms)),
        _ => Cell::default(),
    }
}

/// What it is doing; in short, with what its health check says where that is more.
pub(super) fn state(row: &ServiceRow) -> Cell {
    let word = Cell::new(row.state.as_str()).tone(Tone::of_state(row.state));
    match (row.state, row.health) {
        (State::Running, HealthWord::Healthy) => word.short("running ✓"),
        _ => word,
    }
}

/// Why the run before ended; where room is short, in one short word.
pub(super) fn cause(cause: Option<Cause>) -> Cell {
    let Some(cause) = cause else { return Cell::default() };
    let short = match cause {
        Cause::MemoryLimit => "memory",
        Cause::MemoryLimitParent => "outside memory",
        Cause::IdleTimeout => "idle",
        Cause::ExternalKill => "killed",
        Cause::ExternalSignal => "signal",
        Cause::StartFailed => "no start",
        other => other.as_str(),
    };
    let tone = if plimsoll_core::stack::event::is_abnormal(cause) { Tone::Bad } else { Tone::Faint };
    Cell::new(cause.as_str()).short(short).tone(tone)
}

/// `2/3`: restarts in the present row, of those that are allowed.
pub(super) fn attempt(row: &ServiceRow) -> Cell {
    match (row.attempt, row.max_attempts) {
        (0, _) => Cell::default(),
        (attempt, Some(most)) if attempt >= most => Cell::new(format!("{attempt}/{most}")).tone(Tone::Bad),
        (attempt, Some(most)) => Cell::new(format!("{attempt}/{most}")).tone(Tone::Notice),
        (attempt, None) => Cell::new(attempt.to_string()).tone(Tone::Notice),
    }
}

/// Per cent of its line.
pub(super) fn percent(used: u64, line: u64) -> u64 {
    u64::try_from(u128::from(used) * 100 / u128::from(line.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn process(pid: i32, parent: i32, memory_bytes: u64) -> Process {
        Process { pid, parent, memory_bytes, start_ticks: None, name: format!("p{pid}") }
    }

    fn tree(processes: Vec<Process>) -> Tree {
        Tree { service: "api".into(), replica: 1, processes }
    }

    #[test]
    fn a_tree_is_drawn_from_its_root() {
        let tree = tree(vec![process(9, 7, 5), process(7, 5, 1), process(5, 1, 1), process(6, 5, 9), process(8, 7, 6)]);
        let lines: Vec<String> =
            tree.branches().iter().map(|(branch, process)| format!("{branch}{}", process.name)).collect();
        assert_eq!(lines, ["p5", "├─ p6", "└─ p7", "   ├─ p8", "   └─ p9"]);
    }

    #[test]
    fn brief_figures() {
        for (bytes, text) in [(0, "0"), (1 << 20, "1M"), (3 << 29, "1.5G"), (1_072_693_247, "1023M"), (1 << 40, "1T")] {
            assert_eq!(brief(bytes), text);
        }
        for (seconds, text) in [(0, "0s"), (59, "59s"), (61, "1m01s"), (7500, "2h05m"), (200_000, "2d")] {
            assert_eq!(brief_time(seconds * 1000), text);
        }
    }

    proptest! {
        #[test]
        fn nobody_is_drawn_twice(pairs in prop::collection::vec((1..9i32, 1..9i32, 0..9u64), 0..12)) {
            let tree = tree(pairs.into_iter().map(|(pid, parent, memory)| process(pid, parent, memory)).collect());
            let mut drawn: Vec<i32> = tree.branches().iter().map(|(_, process)| process.pid).collect();
            drawn.sort_unstable();
            let before = drawn.len();
            drawn.dedup();
            prop_assert_eq!(before, drawn.len());
        }

        #[test]
        fn brief_is_brief(number in any::<u64>()) {
            prop_assert!(brief(number).len() <= 6 && brief_time(number).len() <= 6, "{} {}", brief(number), brief_time(number));
        }
    }
}
