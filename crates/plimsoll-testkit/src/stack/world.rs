//! A stack of a test's own: its file, its directories, its supervisor; and what can be seen of it without asking it.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::procfs::{CgroupMount, Process, Version, parse_mountinfo, parse_proc_cgroup, parse_stat};
use plimsoll_kernel::signal;
use serde_json::Value;

use crate::harness::{DEADLINE, Options, TAG, Tier, alive, children, command, eventually, me};
use crate::http;

pub(crate) type Check = Result<(), String>;

/// Fails the case with what was seen.
macro_rules! ensure {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            return Err(format!("{} [{}]", format!($($what)+), stringify!($condition)));
        }
    };
}
pub(crate) use ensure;

/// What a verb answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// One stack.
pub(crate) struct World {
    plimsoll: PathBuf,
    pub(crate) tier: Tier,
    pub(crate) dir: PathBuf,
    /// On everybody in it, `plimsoll up` included.
    pub(crate) tag: String,
    /// Given to `plimsoll up` as well.
    pub(crate) env: Vec<(String, String)>,
    guard: Option<Child>,
    /// The supervisor that runs now, or ran last.
    supervisor: Option<Process>,
    /// The groups of all its lives.
    groups: BTreeSet<PathBuf>,
    /// Mounted by this test: unmounted at its end.
    mounted: Vec<PathBuf>,
    /// The supervisor was killed: what ran then has no row about its end.
    pub(crate) was_killed: bool,
    /// Rows or certificates were lost on purpose.
    pub(crate) history_is_lost: bool,
    /// Why the case could not be tried here.
    pub(crate) left_out: Option<&'static str>,
}

impl World {
    pub(crate) fn new(options: &Options) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Short names: the path of a socket has to fit into 107 bytes.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = options.scratch.join(format!("w{number}"));
        std::fs::create_dir_all(&dir).expect("a directory");
        Self {
            // Verbs run in the test's own folder.
            plimsoll: std::fs::canonicalize(&options.plimsoll).unwrap_or_else(|_| options.plimsoll.clone()),
            tier: options.tier,
            dir,
            tag: format!("stack-{}-{number}", std::process::id()),
            env: Vec::new(),
            guard: None,
            supervisor: None,
            groups: BTreeSet::new(),
            mounted: Vec::new(),
            was_killed: false,
            history_is_lost: false,
            left_out: None,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the file: `@work` is this program's, `$DIR` the test's folder.
    pub(crate) fn write(&self, yaml: &str) {
        self.write_as("plimsoll.yaml", yaml);
    }

    pub(crate) fn write_as(&self, name: &str, yaml: &str) {
        let text = yaml.replace("@work", &format!("{}, work", me().display()));
        let text = text.replace("$ME", &me().display().to_string()).replace("$DIR", &self.dir.display().to_string());
        std::fs::write(self.path(name), text).expect("the file");
    }

    /// A verb, with the test's own directories.
    pub(crate) fn verb(&self, words: &[&str]) -> Command {
        let mut verb = command(&self.plimsoll);
        verb.args(words)
            .current_dir(&self.dir)
            .env("PLIMSOLL_STATE_DIR", self.path("state"))
            .env("PLIMSOLL_RUNTIME_DIR", self.path("run"))
            .stdin(Stdio::null());
        verb
    }

    /// Runs a verb to its end; killed at the deadline.
    pub(crate) fn tell(&self, words: &[&str]) -> Answer {
        self.run(self.verb(words))
    }

    pub(crate) fn run(&self, verb: Command) -> Answer {
        self.run_for(verb, DEADLINE)
    }

    /// Runs a command, which is killed after so long; then it has no exit code.
    pub(crate) fn run_for(&self, mut verb: Command, longest: Duration) -> Answer {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let files = ["out", "err"].map(|name| self.path(&format!("{name}-{number}")));
        let open = |path: &Path| File::create(path).expect("a file");
        let mut child = verb.stdout(open(&files[0])).stderr(open(&files[1])).spawn().expect("plimsoll");
        let began = Instant::now();
        let code = loop {
            match child.try_wait().expect("a child") {
                Some(status) => break status.code(),
                None if began.elapsed() > longest => {
                    let _ = child.kill();
                    let _ = child.wait();
                    break None;
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let [out, err] = files.map(|file| {
            let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap_or_default()).into_owned();
            let _ = std::fs::remove_file(file);
            text
        });
        Answer { code, out, err }
    }

    /// A verb that has to succeed: what it printed.
    pub(crate) fn done(&self, words: &[&str]) -> Result<String, String> {
        let answer = self.tell(words);
        ensure!(answer.code == Some(0), "{words:?}: {answer:?}\n{}", self.story());
        Ok(answer.out)
    }

    /// Starts `plimsoll up` and waits until it answers.
    pub(crate) fn up(&mut self) -> Check {
        assert!(self.guard.is_none(), "one is up already");
        let err = File::options().append(true).create(true).open(self.path("up.err")).expect("a file");
        let mut up = self.verb(&["up"]);
        up.env(TAG, &self.tag).envs(self.env.iter().cloned());
        up.stdout(err.try_clone().expect("a file")).stderr(err);
        self.guard = Some(up.spawn().expect("plimsoll"));
        let mut ended = false;
        let answers = eventually(|| {
            ended = self.guard.as_mut().is_none_or(|guard| guard.try_wait().is_ok_and(|status| status.is_some()));
            ended || self.status().is_some()
        });
        ensure!(answers && !ended, "plimsoll up does not answer: {}", self.said());
        self.supervisor = children(self.guard_pid()).first().and_then(|&pid| Process::of(pid).ok());
        ensure!(self.supervisor.is_some(), "the guard has no child: {}", self.said());
        self.note_groups();
        Ok(())
    }

    /// Writes the file, starts, and waits until all of these run.
    pub(crate) fn up_with(&mut self, yaml: &str, running: &[(&str, u32)]) -> Check {
        self.write(yaml);
        self.up()?;
        running.iter().try_for_each(|(name, replica)| self.wait_state(name, *replica, "running"))
    }

    pub(crate) fn is_up(&self) -> bool {
        self.guard.is_some()
    }

    pub(crate) fn guard_pid(&self) -> i32 {
        self.guard.as_ref().map_or(0, |guard| guard.id() as i32)
    }

    pub(crate) fn supervisor_pid(&self) -> i32 {
        self.supervisor.map_or(0, |supervisor| supervisor.pid)
    }

    /// Waits for the end of `plimsoll up`: its exit code.
    pub(crate) fn wait_up(&mut self) -> Result<Option<i32>, String> {
        let Some(mut guard) = self.guard.take() else { return Ok(None) };
        let mut status = None;
        eventually(|| {
            status = guard.try_wait().ok().flatten();
            status.is_some()
        });
        let Some(status) = status else {
            self.guard = Some(guard);
            return Err(format!("plimsoll up does not end: {}", self.story()));
        };
        Ok(status.code())
    }

    /// The registry says which groups are made for this life.
    fn note_groups(&mut self) {
        for record in self.records() {
            let text = std::fs::read_to_string(record).unwrap_or_default();
            let first: Value = serde_json::from_str(text.lines().next().unwrap_or_default()).unwrap_or_default();
            let groups = first["groups"].as_array().into_iter().flatten().filter_map(Value::as_str);
            self.groups.extend(groups.map(PathBuf::from));
        }
    }

    fn records(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("run/runs")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    }

    /// The groups of replicas that stand now: the children of the budget's, in the hierarchy that limits memory.
    pub(crate) fn replica_groups(&self) -> Vec<PathBuf> {
        replica_groups(self.groups.iter())
    }

    /// Replicas that something holds: their groups, or the runs that keep them where there are no groups.
    pub(crate) fn held(&self) -> usize {
        if self.tier != Tier::Watchdog {
            return self.replica_groups().len();
        }
        children(self.supervisor_pid()).into_iter().filter(|&pid| command_line(pid).contains("--kept")).count()
    }

    /// For a look from another thread: who is alive of each replica.
    pub(crate) fn census(&self) -> Census {
        let supervisor = self.supervisor_pid();
        Census { tier: self.tier, supervisor, groups: self.groups.iter().cloned().collect() }
    }

    /// Everybody in a replica's tree, whatever he forgot: by its group, or below the run that keeps it.
    pub(crate) fn tree(&self, name: &str, replica: u32) -> Result<Vec<Process>, String> {
        let root = self.pid(name, replica)?;
        let pids: Vec<i32> = if self.tier == Tier::Watchdog {
            let mut all = vec![parent(root).ok_or("no keeper")?];
            let mut at = 0;
            while at < all.len() {
                all.extend(children(all[at]));
                at += 1;
            }
            all.split_off(1)
        } else {
            let group = group_of(root, "memory").ok_or("no group")?;
            let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            text.lines().filter_map(|pid| pid.parse().ok()).collect()
        };
        Ok(pids.into_iter().filter_map(|pid| Process::of(pid).ok()).collect())
    }

    /// Who is alive of all services, but for those that keep them.
    pub(crate) fn workers(&self) -> Vec<i32> {
        self.members().into_iter().filter(|&pid| executable(pid) != executable(self.guard_pid())).collect()
    }

    /// Who is alive and carries the tag, apart from `plimsoll up` itself.
    pub(crate) fn members(&self) -> Vec<i32> {
        let ours = [self.guard_pid(), self.supervisor_pid()];
        alive(&self.tag).into_iter().filter(|pid| !ours.contains(pid)).collect()
    }

    /// Who is in any group of any life, whatever tag he carries.
    pub(crate) fn in_groups(&self) -> Vec<i32> {
        let mut found = Vec::new();
        let mut todo: Vec<PathBuf> = self.groups.iter().cloned().collect();
        while let Some(group) = todo.pop() {
            let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            let below = std::fs::read_dir(&group).into_iter().flatten().flatten().map(|entry| entry.path());
            todo.extend(below.filter(|path| path.is_dir()));
        }
        found
    }

    /// Who is in a group; where there are none, who carries the tag.
    pub(crate) fn everybody(&self) -> Vec<i32> {
        if self.tier == Tier::Watchdog { self.workers() } else { self.in_groups() }
    }

    /// What is left of all lives: processes, groups, registry files.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            alive(&self.tag).iter().map(|pid| format!("{pid} ({})", command_line(*pid))).collect();
        left.extend(self.in_groups().iter().map(|pid| format!("{pid} in a group ({})", command_line(*pid))));
        left.extend(self.groups.iter().filter(|group| group.exists()).map(|group| group.display().to_string()));
        left.extend(self.records().iter().map(|file| file.display().to_string()));
        left
    }

    /// What the control socket says, asked without plimsoll's own client.
    pub(crate) fn status(&self) -> Option<Value> {
        let (status, body) = http::ask_socket(&self.path("run/control.sock"), "GET", "/api/v1/status").ok()?;
        (status == 200).then(|| serde_json::from_str(&body).ok()).flatten()
    }

    pub(crate) fn rows(&self) -> Vec<Value> {
        self.status().and_then(|status| status["services"].as_array().cloned()).unwrap_or_default()
    }

    /// The row of a replica; null where there is none.
    pub(crate) fn row(&self, name: &str, replica: u32) -> Value {
        self.rows().into_iter().find(|row| row["name"] == name && row["replica"] == replica).unwrap_or_default()
    }

    /// The pid of a replica's root, as far as it runs.
    pub(crate) fn pid(&self, name: &str, replica: u32) -> Result<i32, String> {
        let row = self.row(name, replica);
        let pid = row["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.ok_or_else(|| format!("{name}/{replica} does not run: {row}\n{}", self.story()))
    }

    /// Waits for something.
    pub(crate) fn until(&self, what: &str, mut condition: impl FnMut(&Self) -> bool) -> Check {
        let holds = eventually(|| {
            let holds = condition(self);
            if !holds {
                std::thread::sleep(Duration::from_millis(10));
            }
            holds
        });
        ensure!(holds, "it never came to this: {what}\n{}", self.story());
        Ok(())
    }

    pub(crate) fn wait_state(&self, name: &str, replica: u32, state: &str) -> Check {
        self.until(&format!("{name}/{replica} is {state}"), |world| world.row(name, replica)["state"] == state)
    }

    /// All rows of the journal, oldest first.
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut rows = Vec::new();
        for name in ["events.jsonl.2", "events.jsonl.1", "events.jsonl"] {
            let text = std::fs::read_to_string(self.path("state").join(name)).unwrap_or_default();
            rows.extend(text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()));
        }
        rows
    }

    /// Events of a kind about a service.
    pub(crate) fn events_of(&self, kind: &str, service: &str) -> Vec<Value> {
        self.events().into_iter().filter(|row| row["event"] == kind && row["service"] == service).collect()
    }

    pub(crate) fn wait_event(&self, kind: &str, service: &str) -> Result<Value, String> {
        let mut found = Value::Null;
        self.until(&format!("{kind} {service}"), |world| {
            found = world.events_of(kind, service).last().cloned().unwrap_or_default();
            !found.is_null()
        })?;
        Ok(found)
    }

    /// A service's log file.
    pub(crate) fn log(&self, service: &str) -> String {
        let file = self.path("state/logs").join(format!("{service}.log"));
        String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
    }

    /// What `plimsoll up` has said, in all its lives.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path("up.err")).unwrap_or_default()).into_owned()
    }

    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }

    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        self.text(name).lines().map(str::to_owned).collect()
    }

    /// The newest certificate of a name.
    pub(crate) fn explain(&self, name: &str) -> Result<Value, String> {
        let text = self.done(&["explain", name, "--json"])?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// For whoever looks into a failure: the last words and the present state.
    pub(crate) fn story(&self) -> String {
        let said = self.said();
        let from = said.lines().count().saturating_sub(25);
        let said: Vec<&str> = said.lines().skip(from).collect();
        let rows: Vec<String> = self
            .rows()
            .iter()
            .map(|row| {
                format!(
                    "{}/{} {} pid {} attempt {} {}",
                    row["name"], row["replica"], row["state"], row["pid"], row["attempt"], row["waiting"]
                )
            })
            .collect();
        format!("  it said:\n    {}\n  status:\n    {}", said.join("\n    "), rows.join("\n    "))
    }

    /// `down`, and proof of what it says: nobody is left when it returns, and soon plimsoll itself has ended with 0.
    pub(crate) fn down(&mut self) -> Check {
        let known = self.in_groups();
        let answer = self.tell(&["down"]);
        ensure!(answer.code == Some(0), "down: {answer:?}\n{}", self.story());
        let left: Vec<String> = self.members().into_iter().map(|pid| format!("{pid} {}", command_line(pid))).collect();
        ensure!(left.is_empty(), "alive when down had returned: {left:?}");
        let left: Vec<i32> = self.in_groups();
        ensure!(left.is_empty(), "in groups when down had returned: {left:?}, before {known:?}");
        let code = self.wait_up()?;
        ensure!(code == Some(0), "up ended with {code:?}: {}", self.said());
        self.clean()
    }

    /// Nothing is left. At once, as `up` has ended.
    pub(crate) fn clean(&mut self) -> Check {
        let left = self.leftovers();
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    }

    /// Sends a signal to one of ours.
    pub(crate) fn send(&self, pid: i32, number: i32) -> Check {
        signal::send(pid, number).map_err(|error| format!("signal {number} to {pid}: {error}"))
    }

    /// SIGKILL for the supervisor: soon everything is gone, and the guard ends with 1.
    pub(crate) fn kill_supervisor(&mut self) -> Check {
        self.was_killed = true;
        self.send(self.supervisor_pid(), 9)?;
        let code = self.wait_up()?;
        ensure!(code == Some(1), "up ended with {code:?}: {}", self.said());
        self.clean()
    }

    /// SIGKILL for the guard: the supervisor stops everything.
    pub(crate) fn kill_guard(&mut self) -> Check {
        self.send(self.guard_pid(), 9)?;
        self.wait_up()?;
        let gone = eventually(|| self.leftovers().is_empty());
        ensure!(gone, "left behind: {:?}\n{}", self.leftovers(), self.said());
        Ok(())
    }

    /// SIGKILL for both at the same instant: what they held is nobody's.
    pub(crate) fn kill_both_and_leave(&mut self) -> Check {
        self.was_killed = true;
        let supervisor = self.supervisor.ok_or("no supervisor")?;
        for number in [19, 9] {
            self.send(self.guard_pid(), number)?;
            self.send(supervisor.pid, number)?;
        }
        self.wait_up()?;
        // Its last thread holds the lock until it has ended as well.
        let threads = || std::fs::read_dir(format!("/proc/{}/task", supervisor.pid)).map_or(0, Iterator::count);
        ensure!(eventually(|| !supervisor.is_alive() && threads() <= 1), "the supervisor does not die");
        Ok(())
    }

    /// The same, and the next verb sweeps.
    pub(crate) fn kill_both(&mut self) -> Check {
        self.kill_both_and_leave()?;
        let answer = self.tell(&["explain", "--list"]);
        let left = self.leftovers();
        ensure!(left.is_empty(), "left after the sweep: {left:?} {answer:?}");
        Ok(())
    }

    /// Mounts a small disk of memory; `false` when this user may not.
    pub(crate) fn mount(&mut self, name: &str, size: &str) -> bool {
        let at = self.path(name);
        std::fs::create_dir_all(&at).expect("a directory");
        let mounted = command("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size},mode=700"), "plimsoll-test"])
            .arg(&at)
            .stderr(Stdio::null())
            .status();
        let mounted = mounted.is_ok_and(|status| status.success());
        if mounted {
            self.mounted.push(at);
        }
        mounted
    }

    fn unmount(&mut self) {
        for at in std::mem::take(&mut self.mounted) {
            if !command("umount").arg(&at).status().is_ok_and(|status| status.success()) {
                println!("cannot unmount {}", at.display());
            }
        }
    }

    /// What holds of the journal whatever happened: rows are numbered without a gap; a run that started has ended, unless
    /// the supervisor was killed meanwhile; and who has ended has a certificate of the same cause.
    pub(crate) fn audit(&self) -> Check {
        if self.history_is_lost || !self.path("state").exists() {
            return Ok(());
        }
        let events = self.events();
        for pair in events.windows(2) {
            let (one, other) = (pair[0]["seq"].as_u64(), pair[1]["seq"].as_u64());
            ensure!(one.map(|seq| seq + 1) == other, "the journal has a gap: {} then {}", pair[0], pair[1]);
        }
        let is_cut = self.path("state/events.jsonl.2").exists();
        ensure!(is_cut || events.first().is_none_or(|row| row["seq"] == 1), "the journal begins at {}", events[0]);
        let key = |row: &Value| format!("{}/{}#{}@{}", row["service"], row["replica"], row["generation"], row["life"]);
        let (mut life, mut running) = (0u64, BTreeSet::new());
        let mut told = Vec::new();
        for row in &events {
            let mut row = row.clone();
            row["life"] = life.into();
            match row["event"].as_str().unwrap_or_default() {
                "started" => {
                    ensure!(running.insert(key(&row)), "started twice: {row}");
                }
                "ended" => {
                    let known = running.remove(&key(&row)) || row["cause"] == "start_failed";
                    ensure!(known, "ended and never started: {row}");
                    let one = (row["service"].as_str().unwrap_or_default().to_owned(), row["cause"].clone());
                    told.push((row["at"].as_str().unwrap_or_default().to_owned(), one));
                }
                "loaded" if is_first_of_a_life(&row, &events) => {
                    ensure!(running.is_empty() || self.was_killed, "no end of {running:?}");
                    running.clear();
                    life += 1;
                }
                _ => {}
            }
        }
        ensure!(running.is_empty() || self.was_killed || self.is_up(), "no end of {running:?}");
        self.audit_certificates(told)
    }

    fn audit_certificates(&self, told: Vec<(String, (String, Value))>) -> Check {
        // Read from the store itself: a list that is shown is cut off.
        let all = plimsoll_store::CertificateStore::open(&self.path("state")).and_then(|mut store| store.list(1 << 20));
        let all = all.map_err(|error| format!("the certificates cannot be read: {error}"))?;
        let mut stored: Vec<(String, Value)> =
            all.iter().map(|one| (one.name.clone(), Value::from(one.cause.as_str()))).collect();
        let (ends, kept) = (told.len(), stored.len());
        // A store that is full has let go of the oldest: of the chaos of an hour not all is there.
        let is_full = kept >= plimsoll_store::certificates::HISTORY as usize;
        let oldest = all.iter().map(|one| one.ended_at).min().filter(|_| is_full);
        let since = oldest.map(|oldest| (oldest + Duration::from_secs(60)).to_string()).unwrap_or_default();
        let mut lacking = Vec::new();
        for (_, one) in told.into_iter().filter(|(at, (_, cause))| *at >= since && cause != "start_failed") {
            match stored.iter().position(|other| *other == one) {
                Some(at) => drop(stored.swap_remove(at)),
                None => lacking.push(one),
            }
        }
        ensure!(lacking.is_empty(), "of {ends} ends and {kept} certificates, without one: {lacking:?}");
        Ok(())
    }

    /// It cannot be tried here, which is counted.
    pub(crate) fn leave_out(&mut self, why: &'static str) -> Check {
        self.left_out = Some(why);
        Ok(())
    }

    /// Ends whatever is left, whatever the test did.
    pub(crate) fn end(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
        if let Some(supervisor) = self.supervisor.filter(|supervisor| supervisor.is_alive()) {
            let gone = || !supervisor.is_alive();
            if !eventually(gone) {
                let _ = signal::send(supervisor.pid, 9);
                eventually(gone);
            }
        }
        drop(self.tell(&["explain", "--list"]));
        for pid in alive(&self.tag).into_iter().chain(self.in_groups()) {
            let _ = signal::send(pid, 9);
        }
        self.unmount();
    }
}

fn replica_groups<'g>(groups: impl Iterator<Item = &'g PathBuf>) -> Vec<PathBuf> {
    let budget =
        groups.filter(|group| group.join("memory.limit_in_bytes").exists() || group.join("memory.max").exists());
    let below = budget.filter_map(|group| std::fs::read_dir(group).ok()).flat_map(|entries| entries.flatten());
    below.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// What is needed to count replicas that are alive, without asking plimsoll.
pub(crate) struct Census {
    tier: Tier,
    supervisor: i32,
    groups: Vec<PathBuf>,
}

impl Census {
    /// One process of each replica that had one at the same instant: in its group, or the run that keeps it.
    pub(crate) fn count(&self) -> Vec<Process> {
        let first = |group: PathBuf| {
            let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            text.lines().filter_map(|pid| Process::of(pid.parse().ok()?).ok()).find(|process| process.is_alive())
        };
        let seen: Vec<Process> = if self.tier == Tier::Watchdog {
            let kept = children(self.supervisor).into_iter().filter(|&pid| command_line(pid).contains("--kept"));
            kept.filter_map(|pid| Process::of(pid).ok()).collect()
        } else {
            replica_groups(self.groups.iter()).into_iter().filter_map(first).collect()
        };
        // One that went while others were looked at was not there with the later ones.
        seen.into_iter().filter(|process| process.is_alive()).collect()
    }
}

/// The row that follows a start of the supervisor, and not a reload: the journal knows the first one of each life by a
/// generation that begins anew.
fn is_first_of_a_life(row: &Value, events: &[Value]) -> bool {
    let at = row["seq"].as_u64();
    let behind = events.iter().filter(|other| other["seq"].as_u64() > at);
    // A reload may be the last word of a life: what follows then is the next one's first.
    let mut next = behind.filter(|other| other["event"] == "starting" || other["event"] == "loaded");
    next.next().is_some_and(|next| next["generation"] == 1)
}

/// The program that a process runs.
fn executable(pid: i32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/exe")).ok()
}

pub(crate) fn parent(pid: i32) -> Option<i32> {
    parse_stat(&std::fs::read(format!("/proc/{pid}/stat")).ok()?).map(|stat| stat.parent)
}

pub(crate) fn command_line(pid: i32) -> String {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&text).replace('\0', " ").trim().to_owned()
}

/// A variable that a process was started with.
pub(crate) fn environment(pid: i32, name: &str) -> String {
    let text = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let found = text.split('\0').find_map(|one| one.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_default().to_owned()
}

/// The group that a process is in, of a controller.
pub(crate) fn group_of(pid: i32, controller: &str) -> Option<PathBuf> {
    let lines = parse_proc_cgroup(&std::fs::read(format!("/proc/{pid}/cgroup")).ok()?);
    let mounts = parse_mountinfo(&std::fs::read("/proc/self/mountinfo").ok()?);
    let is_of = |names: &[String]| names.iter().any(|name| name == controller);
    let place = |path: &Path, mount: &CgroupMount| {
        let below = path.strip_prefix(&mount.root).or_else(|_| path.strip_prefix("/")).ok()?;
        Some(mount.mount_point.join(below))
    };
    if let Some(line) = lines.iter().find(|line| is_of(&line.controllers)) {
        return place(&line.path, mounts.iter().find(|mount| is_of(&mount.controllers))?);
    }
    let line = lines.iter().find(|line| line.hierarchy == 0)?;
    place(&line.path, mounts.iter().find(|mount| mount.version == Version::V2)?)
}

/// A number in a file of a group: of the first of these files that is there. `max` is the largest number.
pub(crate) fn limit_in(group: &Path, files: &[&str]) -> Option<u64> {
    let text = files.iter().find_map(|file| std::fs::read_to_string(group.join(file)).ok())?;
    let text = text.trim();
    if text == "max" { Some(u64::MAX) } else { text.parse().ok() }
}

/// The line that is in force for the group of a process, bytes.
pub(crate) fn memory_line(pid: i32) -> Option<u64> {
    limit_in(&group_of(pid, "memory")?, &["memory.limit_in_bytes", "memory.max"])
}
