//! What former plimsolls left when all of their processes were killed: found in the registry, ended, certified.

use std::path::Path;
use std::time::Duration;

use plimsoll_kernel::cgroup::probe::groups_of;
use plimsoll_kernel::cgroup::teardown;
use plimsoll_kernel::clock;
use plimsoll_kernel::procfs::Process;
use plimsoll_kernel::tree::kill_process;
use plimsoll_model::certificate::{Exit, Memory, SCHEMA, Tree};
use plimsoll_model::{Cause, Certificate, Confidence, Evidence, RunId};
use plimsoll_store::registry::leftovers;
use plimsoll_store::{RegistryError, RunningTree, inbox};

use crate::front::boot_id;
use crate::keeper::kill_tagged;

/// One run that was swept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// Its name, or its id where the record was not readable.
    pub name: String,
    /// Processes that were ended.
    pub ended: usize,
    /// What could not be done.
    pub trouble: Option<String>,
}

/// Ends and removes what is left of every run whose plimsoll processes are gone. Cheap when there is none.
///
/// # Errors
/// The registry could not be read.
pub fn sweep(runtime_dir: &Path, state_dir: &Path) -> Result<Vec<Swept>, RegistryError> {
    let mut swept = Vec::new();
    for leftover in leftovers(runtime_dir)? {
        let id = leftover.id;
        // The record of another boot names pids that mean nothing now; without a record tag and groups name the run alone.
        let pids_hold = leftover.is_of_boot(&boot_id()) || leftover.tree.is_none();
        let record = leftover.tree.clone();
        let mut one =
            Swept { name: record.as_ref().map_or_else(|| id.to_string(), |r| r.name.clone()), ended: 0, trouble: None };
        if pids_hold {
            one.ended = end(id, record.as_ref(), &mut one.trouble);
        }
        if let Some(record) = record
            && let Err(error) = inbox::append(state_dir, &certify(&record, one.ended))
        {
            one.trouble.get_or_insert(format!("the certificate is not stored: {error}"));
        }
        // A group that would not go is tried again by the next one.
        if one.trouble.is_none() {
            leftover.remove()?;
        }
        swept.push(one);
    }
    Ok(swept)
}

/// By group, by pid and start time, and by tag: each finds what the others may miss.
fn end(id: RunId, record: Option<&RunningTree>, trouble: &mut Option<String>) -> usize {
    let (groups, parents) = match record {
        Some(record) => (record.groups.clone(), record.parents.clone()),
        None => (groups_of(id, std::env::var("PLIMSOLL_CGROUP_PARENT").ok().as_deref()), Vec::new()),
    };
    let mut ended = teardown::members_of(&groups).len();
    let left = teardown::kill_until_empty(&groups, || {});
    if !left.is_empty() {
        *trouble = Some(format!("{} processes do not die", left.len()));
    }
    if let Some(record) = record {
        for member in record.members.iter().chain(&record.root) {
            let process = Process { pid: member.pid, start_ticks: member.start_ticks };
            if process.is_alive() {
                ended += 1;
                kill_process(process);
                wait_gone(process);
            }
        }
    }
    let line = format!("{}={id}", crate::keeper::TAG);
    ended += plimsoll_kernel::tree::tagged(&line).iter().filter(|process| process.is_alive()).count();
    if !kill_tagged(id.as_str(), || {}).is_empty() {
        *trouble = Some("some of its processes do not die".into());
    }
    if let Err(error) = teardown::remove(&groups, &parents, teardown::BUSY) {
        *trouble = Some(error.to_string());
    }
    ended
}

fn wait_gone(process: Process) {
    let began = clock::Instant::now();
    while process.is_alive() && began.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn certify(record: &RunningTree, ended: usize) -> Certificate {
    let now = clock::wall();
    let runtime = now.duration_since(record.started_at);
    Certificate {
        schema: SCHEMA.to_owned(),
        id: record.id,
        name: record.name.clone(),
        command: record.command.clone(),
        boundary: record.boundary,
        started_at: record.started_at,
        ended_at: now,
        runtime_ms: u64::try_from(runtime.as_millis()).unwrap_or(0),
        exit: Exit { code: None, signal: None },
        cause: Cause::Stopped,
        confidence: Confidence::Certain,
        evidence: vec![Evidence {
            source: "plimsoll".into(),
            detail: format!("both plimsoll processes of this run were killed; {ended} processes were swept afterwards"),
        }],
        memory: Memory {
            limit_bytes: record.memory_limit_bytes,
            peak_bytes: 0,
            swap_limit_bytes: record.swap_limit_bytes,
            growth_bytes_per_s: 0,
            largest: Vec::new(),
            last_minute: Vec::new(),
        },
        tree: Tree { peak_processes: u32::try_from(record.members.len()).unwrap_or(0), killed_inside: 0, survivors: 0 },
        advice:
            "Find out who killed plimsoll itself (the kernel's log names OOM kills); the tree could not outlive it."
                .into(),
    }
}
