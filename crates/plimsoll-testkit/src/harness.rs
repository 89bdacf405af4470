//! Running a built plimsoll from outside, and looking for what it left without asking it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::tree::tagged;
use serde_json::Value;

/// No step of a test takes longer on the slowest machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// The variable that marks whatever a test starts.
pub(crate) const TAG: &str = "PLIMSOLL_TEST_TAG";

/// Which boundary is tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// cgroup v1.
    Cgroup1,
    /// cgroup v2.
    Cgroup2,
    /// No group.
    Watchdog,
}

impl Tier {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup1 => "cgroup1",
            Self::Cgroup2 => "cgroup2",
            Self::Watchdog => "watchdog",
        }
    }

    /// The value for `--boundary`.
    pub(crate) fn choice(self) -> &'static str {
        if self == Self::Watchdog { "watchdog" } else { "cgroup" }
    }
}

/// What was asked of the test program.
#[derive(Clone)]
pub(crate) struct Options {
    args: Vec<String>,
    pub(crate) plimsoll: PathBuf,
    pub(crate) tier: Tier,
    pub(crate) scratch: PathBuf,
}

impl Options {
    pub(crate) fn parse(args: &[String]) -> Self {
        let plimsoll = argument(args, "--plimsoll").unwrap_or_else(|| "plimsoll".into());
        let tier = match argument(args, "--tier").as_deref() {
            Some("cgroup1") => Tier::Cgroup1,
            Some("cgroup2") => Tier::Cgroup2,
            Some("watchdog") | None => Tier::Watchdog,
            Some(other) => panic!("no tier {other}"),
        };
        let scratch = argument(args, "--scratch").map_or_else(std::env::temp_dir, PathBuf::from);
        let scratch = scratch.join(format!("plimsoll-testkit-{}", std::process::id()));
        std::fs::create_dir_all(&scratch).expect("a scratch directory");
        Self { args: args.to_vec(), plimsoll: plimsoll.into(), tier, scratch }
    }

    pub(crate) fn number(&self, name: &str, default: u64) -> u64 {
        argument(&self.args, name).map_or(default, |text| text.parse().expect("a number"))
    }

    pub(crate) fn text(&self, name: &str) -> Option<String> {
        argument(&self.args, name)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        flag(&self.args, name)
    }
}

/// The value behind an option.
pub(crate) fn argument(args: &[String], name: &str) -> Option<String> {
    let at = args.iter().position(|arg| arg == name)?;
    args.get(at + 1).cloned()
}

/// Whether a flag was given.
pub(crate) fn flag(args: &[String], name: &str) -> bool {
    args.iter().any(|arg| arg == name)
}

/// This program.
pub(crate) fn me() -> PathBuf {
    std::env::current_exe().expect("our own path")
}

/// The one place where tests start processes.
#[expect(clippy::disallowed_methods, reason = "tests start plimsoll and its workloads as users do, from outside")]
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// A generator of numbers that a seed replays: SplitMix64 (Steele, Lea and Flood 2014).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// How a run of plimsoll ended, seen from outside.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The certificate, when one was written.
    pub(crate) report: Value,
    /// Processes with the tag that were alive at the instant when it had returned.
    pub(crate) left: usize,
}

impl Outcome {
    pub(crate) fn cause(&self) -> &str {
        self.report["cause"].as_str().unwrap_or("")
    }

    pub(crate) fn confidence(&self) -> &str {
        self.report["confidence"].as_str().unwrap_or("")
    }
}

/// A plimsoll to be tested, with directories of its own.
pub(crate) struct Bench {
    pub(crate) plimsoll: PathBuf,
    pub(crate) tier: Tier,
    pub(crate) dir: PathBuf,
    pub(crate) parent: Option<String>,
    /// Starts plimsoll as a shell with job control does: in a group of its own.
    pub(crate) own_group: bool,
    /// Groups that stood before this test: somebody else's, or of a test that was killed.
    pub(crate) before: Vec<String>,
}

/// A started run.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) tag: String,
    files: [PathBuf; 3],
}

impl Bench {
    pub(crate) fn new(options: &Options, name: &str) -> Self {
        let dir = options.scratch.join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        Self {
            plimsoll: options.plimsoll.clone(),
            tier: options.tier,
            dir,
            parent: None,
            own_group: false,
            before: groups_of_plimsoll(None),
        }
    }

    /// Another one in the same directories.
    pub(crate) fn new_in(other: &Self) -> Self {
        Self {
            plimsoll: other.plimsoll.clone(),
            tier: other.tier,
            dir: other.dir.clone(),
            parent: None,
            own_group: false,
            before: other.before.clone(),
        }
    }

    /// A plimsoll command with the test's own directories.
    pub(crate) fn verb(&self, verb: &str) -> Command {
        let mut command = command(&self.plimsoll);
        command
            .arg(verb)
            .env("PLIMSOLL_STATE_DIR", self.dir.join("state"))
            .env("PLIMSOLL_RUNTIME_DIR", self.dir.join("run"));
        if let Some(parent) = &self.parent {
            command.env("PLIMSOLL_CGROUP_PARENT", parent);
        }
        command
    }

    /// Starts `plimsoll run` with these options on this command; a first word `@x` is workload x of this program.
    pub(crate) fn start(&self, options: &[&str], program: &[&str]) -> Running {
        self.start_with(options, program, Stdio::null())
    }

    pub(crate) fn start_with(&self, options: &[&str], program: &[&str], stdin: Stdio) -> Running {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{}-{number}", std::process::id());
        let file = |name: &str| self.dir.join(format!("{name}-{number}"));
        let files = [file("stdout"), file("stderr"), file("report")];
        let create = |path: &Path| File::create(path).expect("a file");
        let mut command = self.verb("run");
        command.args(["--boundary", self.tier.choice()]);
        command.args(["-e", &format!("{TAG}={tag}")]).arg("--report").arg(&files[2]);
        command.args(options).arg("--");
        match program.split_first() {
            Some((first, rest)) if first.starts_with('@') => {
                command.arg(me()).arg("work").arg(&first[1..]).args(rest);
            }
            _ => {
                command.args(program);
            }
        }
        // The tag is on plimsoll itself too: a scan after its end must not find even that.
        if self.own_group {
            command.process_group(0);
        }
        command.env(TAG, &tag).stdin(stdin).stdout(create(&files[0])).stderr(create(&files[1]));
        Running { child: command.spawn().expect("plimsoll"), tag, files }
    }

    /// Runs one to its end.
    pub(crate) fn run(&self, options: &[&str], program: &[&str]) -> Outcome {
        self.start(options, program).wait()
    }

    /// Groups and registry files that are left, by name.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        if let Ok(entries) = std::fs::read_dir(self.dir.join("run/runs")) {
            left.extend(entries.flatten().map(|entry| entry.path().display().to_string()));
        }
        left.extend(
            groups_of_plimsoll(self.parent.as_deref()).into_iter().filter(|group| !self.before.contains(group)),
        );
        left
    }
}

/// Directories in the `plimsoll` groups (or a named parent) of all hierarchies.
pub(crate) fn groups_of_plimsoll(parent: Option<&str>) -> Vec<String> {
    let parent = parent.unwrap_or("plimsoll").trim_start_matches('/').to_owned();
    let text = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    plimsoll_kernel::procfs::parse_mountinfo(&text)
        .into_iter()
        .filter_map(|mount| std::fs::read_dir(mount.mount_point.join(&parent)).ok())
        .flat_map(|entries| entries.flatten().filter(|entry| entry.path().is_dir()))
        .map(|entry| entry.path().display().to_string())
        .collect()
}

/// Pids that are alive and carry this tag.
pub(crate) fn alive(tag: &str) -> Vec<i32> {
    tagged(&format!("{TAG}={tag}"))
        .into_iter()
        .filter(|process| process.is_alive())
        .map(|process| process.pid)
        .collect()
}

/// Waits until a condition holds; `false` when it never did.
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < DEADLINE {
        if condition() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    false
}

impl Running {
    /// pid of the front.
    pub(crate) fn front(&self) -> i32 {
        self.child.id() as i32
    }

    /// pid of the keeper: the front's only child.
    pub(crate) fn keeper(&self) -> Option<i32> {
        children(self.front()).first().copied()
    }

    /// pid of the root of the tree.
    pub(crate) fn root(&self) -> Option<i32> {
        children(self.keeper()?).first().copied()
    }

    /// Waits until the root runs its program.
    pub(crate) fn wait_for_root(&self) -> Option<i32> {
        let mut root = None;
        eventually(|| {
            root = self.root().filter(|&pid| executable(pid) != executable(self.front()));
            root.is_some() || executable(self.front()).is_none()
        });
        root
    }

    /// What it has printed so far.
    pub(crate) fn printed(&self) -> String {
        std::fs::read_to_string(&self.files[0]).unwrap_or_default()
    }

    /// Waits for its end; kills it and fails after the deadline.
    pub(crate) fn wait(mut self) -> Outcome {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            if began.elapsed() > DEADLINE {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return Outcome {
                    code: None,
                    signal: None,
                    stdout: self.printed(),
                    stderr: format!("{}\n(still running after {DEADLINE:?})", read(&self.files[1])),
                    report: Value::Null,
                    left: 0,
                };
            }
            std::thread::sleep(Duration::from_micros(500));
        };
        let left = alive(&self.tag).len();
        let outcome = Outcome {
            code: status.code(),
            signal: status.signal(),
            stdout: read(&self.files[0]),
            stderr: read(&self.files[1]),
            report: serde_json::from_str(&read(&self.files[2])).unwrap_or(Value::Null),
            left,
        };
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
        outcome
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// The program that a process runs.
fn executable(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

/// A process's children, by a look at all processes.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}
