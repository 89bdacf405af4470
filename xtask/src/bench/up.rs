//! What `up` costs: a part a promise of the table, each with both sides in one run.

use std::process::ExitCode;

use super::manager::Tools;
use super::{Row, listen, print, services};
use crate::exec::Failure;

/// A part of the table; `true` for fewer rounds.
enum Part {
    /// Of the supervisors.
    Services(fn(&Tools, bool) -> Result<Vec<Row>, Failure>),
    /// Of the balancers.
    Listen,
}

/// The parts by name.
const PARTS: &[(&str, Part)] = &[
    ("memory", Part::Services(services::memory)),
    ("idle", Part::Services(services::idle)),
    ("crash", Part::Services(services::crash)),
    ("status", Part::Services(services::status)),
    ("start", Part::Services(services::start)),
    ("listen", Part::Listen),
];

/// `cargo xtask bench up [--quick] [PART…]`.
pub(super) fn main(args: &[String]) -> Result<ExitCode, Failure> {
    let (chosen, quick) = super::chosen(args, PARTS.iter().map(|(name, _)| *name))?;
    crate::packages::install(crate::packages::BENCHMARKS)?;
    println!("{}\n", super::run::machine());
    let (mut rows, mut failed): (Vec<Row>, Vec<String>) = Default::default();
    let mut tools = None;
    for (name, part) in PARTS.iter().filter(|(name, _)| chosen.contains(name)) {
        eprintln!("measuring: {name}");
        let measured = match part {
            Part::Listen => listen::measure(quick),
            Part::Services(measure) => {
                if tools.is_none() {
                    tools = Some(Tools::get()?);
                }
                tools.as_ref().map_or(Ok(Vec::new()), |tools| measure(tools, quick))
            }
        };
        match measured {
            Ok(more) => rows.extend(more),
            Err(why) => failed.push(format!("{name}: {why}")),
        }
    }
    print(&rows);
    for why in &failed {
        println!("not measured: {why}");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
