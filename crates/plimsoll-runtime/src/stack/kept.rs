//! A replica where no group can be had: kept by a `plimsoll run` of its own, whose watchdog holds its line.
//!
//! That run is two processes, the front (our child) and the keeper below it; the tree is below the keeper, which adopts
//! whoever would leave. When the front is gone the keeper ends the tree, whatever became of us.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll_kernel::boundary::Cpu;
use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::procfs::{Process, parse_children, parse_stat, read_all_of, read_of, ticks_per_second};
use plimsoll_kernel::signal;
use plimsoll_kernel::tree::{Tree, name_of};
use plimsoll_model::spec::Bounds;
use plimsoll_model::{Certificate, Limits, Member, OnLimit};
use rustix::process::Signal;

/// A run that has not started its command by then has failed to.
const START: Duration = Duration::from_secs(5);

/// Members are measured so often; between two times what they hold is bounded from above.
const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// Bytes of mappings walked in one measurement.
const MEASURE: u64 = 256 << 20;

/// The run that keeps a tree.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) front: i32,
    /// It has not been waited for: the pid is its own.
    front_is_ours: bool,
    keeper: Option<Process>,
    tree: Tree,
    report: PathBuf,
    measured: Option<Instant>,
    /// Of members that have ended nobody tells; what was seen is never taken back.
    cpu: Duration,
}

/// The command that keeps `command`: ourselves, registered where we are: what it is started with may say nothing of that.
pub(super) fn command(
    command: &[OsString],
    [state_dir, runtime_dir]: [&Path; 2],
    name: &str,
    limits: &Limits,
    on_limit: OnLimit,
    report: &Path,
    bounds: Option<&Bounds>,
) -> Vec<OsString> {
    let mut words: Vec<OsString> =
        ["/proc/self/exe", "run", "--boundary", "watchdog", "--quiet", "--kept"].map(OsString::from).to_vec();
    words.extend([state_dir, runtime_dir].map(OsString::from));
    let mut option = |option: &str, value: OsString| words.extend([OsString::from(option), value]);
    option("--name", name.into());
    option("--report", report.into());
    // How long it has is our affair: we kill it when its grace is over.
    option("--stop-timeout", "24h".into());
    if let Some(bytes) = limits.memory {
        option("--memory", bytes.to_string().into());
        if on_limit == OnLimit::Largest {
            option("--on-limit", "largest".into());
        }
    }
    if let Some(score) = limits.oom_score_adj {
        option("--oom-score-adj", score.to_string().into());
    }
    if let Some(bounds) = bounds {
        for (name, folders) in [("--own", &bounds.own), ("--show", &bounds.shown), ("--conceal", &bounds.hidden)] {
            words.extend(folders.iter().flat_map(|folder| [name.into(), folder.into()]));
        }
    }
    words.push("--".into());
    words.extend(command.iter().cloned());
    words
}

impl Kept {
    /// Waits until the run has started its command, and answers with its root. `None` when it came to nothing: then the
    /// front has ended or is about to.
    pub(super) fn find(front: i32, report: PathBuf) -> (Self, Option<Process>) {
        let began = Instant::now();
        let mut kept = Self {
            front,
            front_is_ours: true,
            keeper: None,
            tree: Tree::below(front),
            report,
            measured: None,
            cpu: Duration::ZERO,
        };
        while began.elapsed() < START && !has_ended(front) {
            if let Some(keeper) = first_child(front)
                && let Some(root) = first_child(keeper)
            {
                kept.keeper = Process::of(keeper).ok();
                kept.tree = Tree::below(keeper);
                kept.tree.set_root(root);
                return (kept, Process::of(root).ok());
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        (kept, None)
    }

    /// What the tree holds at most, bytes, how many processes it has, and the processor time that was seen.
    pub(super) fn look(&mut self) -> (u64, u32, Cpu) {
        self.tree.discover();
        let mut held = self.tree.sample();
        if self.measured.is_none_or(|at| at.elapsed() >= MEASURE_EVERY) {
            held = self.tree.measure(MEASURE);
            self.measured = Some(Instant::now());
        }
        let ticks: u64 = self.tree.processes().filter_map(|process| ticks_of(process.pid)).sum();
        self.cpu = self.cpu.max(Duration::from_millis(ticks * 1000 / ticks_per_second()));
        (held.upper, held.processes, Cpu { used: self.cpu, periods: 0, throttled: 0 })
    }

    /// The members, largest first.
    pub(super) fn members(&self) -> Vec<Member> {
        let mut members = self.tree.members();
        for member in &mut members {
            // It was found before it became what it is.
            member.name = name_of(member.pid).unwrap_or_else(|| std::mem::take(&mut member.name));
        }
        members
    }

    /// Sends a signal to the run, which passes it on to its root and knows from then on why that ends.
    pub(super) fn signal(&self, number: i32) {
        if self.front_is_ours {
            let _ = signal::send(self.front, number);
        }
    }

    /// Our child has been waited for.
    pub(super) fn front_ended(&mut self) {
        self.front_is_ours = false;
    }

    /// Has the keeper end the tree, and waits for that, for so long at most. Answers whether nobody is left.
    pub(super) fn kill(&mut self, patience: Duration, mut reap: impl FnMut() -> bool) -> bool {
        let began = Instant::now();
        if self.front_is_ours {
            let _ = signal::send(self.front, Signal::KILL.as_raw());
        }
        loop {
            self.front_is_ours &= !reap();
            let is_alive = |process: &Process| process.is_alive();
            if !self.front_is_ours && !self.keeper.as_ref().is_some_and(is_alive) {
                // The keeper is the last to go, unless somebody killed it: then we are those who adopted the tree.
                let left: Vec<Process> = self.tree.processes().filter(is_alive).collect();
                if left.is_empty() {
                    return true;
                }
                left.into_iter().for_each(plimsoll_kernel::tree::kill_process);
            }
            if began.elapsed() >= patience {
                return false;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// The certificate that the keeper wrote; it is not stored elsewhere.
    pub(super) fn certificate(&self) -> Option<Certificate> {
        let json = std::fs::read(&self.report).ok();
        let _ = std::fs::remove_file(&self.report);
        serde_json::from_slice(&json?).ok()
    }
}

fn first_child(pid: i32) -> Option<i32> {
    let mut text = Vec::new();
    read_all_of(pid, &format!("task/{pid}/children"), &mut text).ok()?;
    parse_children(&text).next()
}

fn has_ended(pid: i32) -> bool {
    let mut buffer = [0; 1024];
    read_of(pid, "stat", &mut buffer).ok().and_then(parse_stat).is_none_or(|stat| stat.is_ended())
}

fn ticks_of(pid: i32) -> Option<u64> {
    let mut buffer = [0; 1024];
    let stat = parse_stat(read_of(pid, "stat", &mut buffer).ok()?)?;
    Some(stat.utime_ticks + stat.stime_ticks)
}
