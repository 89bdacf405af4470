//! Chaos: a stack of all kinds of services, killed at random together with plimsoll itself, ordered about, its disk full
//! now and then. Whatever happens: nothing is left over, no event is lost, counters never go back, and `status` is what
//! `/proc` and the groups say.
//!
//! The sequence of actions is a function of the seed alone; who exactly is hit depends on who is there.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::procfs::Process;
use serde_json::Value;

use crate::harness::{DEADLINE, Options, Random, Tier, children};
use crate::stack::doors::free_port;
use crate::stack::world::{Check, World, command_line, ensure, environment, group_of, limit_in, memory_line, parent};

const STACK: &str = r#"
budget: { memory: 400m }
services:
  web:
    command: [@work, serve, --port, "${PORT}"]
    healthcheck: { test: [CMD, @work, get, "http://127.0.0.1:${PORT}/health"], interval: 500ms, timeout: 20s, retries: 5, start_period: 60s, start_interval: 200ms }
    listen: LISTEN
    mem_limit: 48m
    restart: always
    min_available: 1
    scale: { min: 1, max: 3 }
    deploy: { replicas: 2 }
  crasher: { command: [@work, die-after, "700"], mem_limit: 32m, restart: always }
  leaker: { command: [@work, hog, --bytes, 400m, --rate, 25m], mem_limit: 40m, restart: "on-failure:20" }
  forker: { command: [@work, forker], mem_limit: 64m, pids_limit: 200, restart: always }
  daemons: { command: [@work, leavers], mem_limit: 48m, restart: unless-stopped }
  deaf: { command: [@work, ignore-term], mem_limit: 32m, stop_grace_period: 300ms, restart: always }
  checked:
    command: [@work, sleep]
    mem_limit: 32m
    restart: always
    environment: { COLOR: "VERSION" }
    healthcheck: { test: [CMD-SHELL, "test ! -e $DIR/sick"], interval: 200ms, timeout: 20s, retries: 2 }
  chatty:
    command: [@work, chatter, "10"]
    mem_limit: 32m
    restart: always
    depends_on: { checked: { condition: service_healthy }, deaf: { condition: service_started } }
"#;

const NAMES: [&str; 8] = ["web", "crasher", "leaker", "forker", "daemons", "deaf", "checked", "chatty"];

/// One thing that is done to the stack.
#[derive(Debug, Clone, Copy)]
enum Action {
    KillRoot(u64),
    KillMember(u64),
    KillChild(u64),
    KillSupervisor,
    KillGuard,
    KillBoth,
    DownAndUp,
    Restart(&'static str),
    Stop(&'static str),
    Start(&'static str),
    Scale(u64),
    Reload,
    Change(u64),
    Spoil,
    FillLogs,
    FreeLogs,
    Sicken,
    Heal,
    Wait(u64),
}

fn next(random: &mut Random) -> Action {
    let (kind, number) = (random.below(100), random.next());
    let name = NAMES[(number % NAMES.len() as u64) as usize];
    match kind {
        0..=21 => Action::KillRoot(number),
        22..=35 => Action::KillMember(number),
        36..=43 => Action::KillChild(number),
        44 => Action::KillSupervisor,
        45 => Action::KillGuard,
        46 => Action::KillBoth,
        47 => Action::DownAndUp,
        48..=55 => Action::Restart(name),
        56..=61 => Action::Stop(name),
        62..=70 => Action::Start(name),
        71..=76 => Action::Scale(1 + number % 3),
        77..=78 => Action::Reload,
        79..=81 => Action::Change(number % 5),
        82 => Action::Spoil,
        83..=84 => Action::FillLogs,
        85..=87 => Action::FreeLogs,
        88..=89 => Action::Sicken,
        90..=92 => Action::Heal,
        _ => Action::Wait(number % 800),
    }
}

/// A command whose answer is waited for later.
struct Asked {
    words: String,
    child: Child,
    since: Instant,
}

struct Chaos {
    world: World,
    random: Random,
    has_disk: bool,
    port: u16,
    version: u64,
    asked: Vec<Asked>,
    /// Restarts and OOM kills of each service's first replica, the most that was ever shown.
    counters: BTreeMap<String, (u64, u64)>,
    done: Vec<String>,
    instants: u64,
    second_looks: u64,
    deaths: u64,
    actions: u64,
}

/// Runs it.
pub(crate) fn run(options: &Options) -> ExitCode {
    let (seconds, seed) = (options.number("--seconds", 60), options.number("--seed", 1));
    let instants = options.number("--instants", 1000);
    let mut chaos = Chaos {
        world: World::new(options),
        random: Random::new(seed),
        has_disk: false,
        port: free_port(),
        version: 0,
        asked: Vec::new(),
        counters: BTreeMap::new(),
        done: Vec::new(),
        instants: 0,
        second_looks: 0,
        deaths: 0,
        actions: 0,
    };
    let result = chaos.go(Duration::from_secs(seconds), instants);
    let ends = chaos.world.events().iter().filter(|row| row["event"] == "ended").count();
    let Chaos { instants, second_looks, deaths, actions, .. } = chaos;
    println!(
        "chaos on {}, seed {seed}: {actions} actions, {deaths} deaths of plimsoll, {ends} ends, status was right at \
         {instants} instants ({second_looks} of them at a second look)",
        options.tier.as_str()
    );
    let failed = u64::from(result.is_err());
    if let Err(why) = &result {
        let from = chaos.done.len().saturating_sub(25);
        println!("FAIL seed {seed}: {why}\n  the last actions: {}", chaos.done[from..].join(", "));
        println!("  replay: chaos --seconds {seconds} --seed {seed}");
    }
    chaos.world.end();
    for mut asked in std::mem::take(&mut chaos.asked) {
        let _ = asked.child.kill();
        let _ = asked.child.wait();
    }
    println!("{instants} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Chaos {
    fn go(&mut self, longest: Duration, instants: u64) -> Check {
        let state = self.world.path("state");
        std::fs::create_dir_all(&state).map_err(|error| error.to_string())?;
        std::fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .map_err(|error| error.to_string())?;
        self.has_disk = self.world.mount("state/logs", "512k");
        self.write();
        self.world.up()?;
        let began = Instant::now();
        while began.elapsed() < longest || self.instants < instants {
            let action = next(&mut self.random);
            let (checks, pause) = (2 + self.random.below(6), self.random.below(60));
            self.actions += 1;
            self.done.push(format!("{action:?}"));
            self.act(action)?;
            for _ in 0..checks {
                std::thread::sleep(Duration::from_millis(pause));
                self.check()?;
            }
            self.hear(false)?;
        }
        self.world.down()?;
        self.hear(true)?;
        self.world.audit()
    }

    fn write(&self) {
        let yaml =
            if self.world.tier == Tier::Watchdog { STACK.replace("pids_limit: 200, ", "") } else { STACK.to_owned() };
        let yaml = yaml.replace("LISTEN", &self.port.to_string()).replace("VERSION", &self.version.to_string());
        self.world.write(&yaml);
    }

    /// Does it and proves, where plimsoll dies of it, that nothing is left.
    fn act(&mut self, action: Action) -> Check {
        match action {
            Action::KillRoot(number) => {
                let rows = self.world.rows();
                let pids: Vec<i64> = rows.iter().filter_map(|row| row["pid"].as_i64()).collect();
                self.kill(&pids.into_iter().map(|pid| pid as i32).collect::<Vec<i32>>(), number);
            }
            Action::KillMember(number) => self.kill(&self.world.everybody(), number),
            // Roots, health tests, orphans that it has adopted.
            Action::KillChild(number) => self.kill(&children(self.world.supervisor_pid()), number),
            Action::KillSupervisor => {
                self.deaths += 1;
                self.world.kill_supervisor()?;
                self.again()?;
            }
            Action::KillGuard => {
                self.deaths += 1;
                self.world.kill_guard()?;
                self.again()?;
            }
            Action::KillBoth => {
                self.deaths += 1;
                self.world.kill_both()?;
                self.again()?;
            }
            Action::DownAndUp => {
                self.deaths += 1;
                self.world.down()?;
                self.again()?;
            }
            Action::Restart(name) => self.ask(&["restart", name]),
            Action::Stop(name) => self.ask(&["stop", name]),
            Action::Start(name) => self.ask(&["start", name]),
            Action::Scale(count) => self.ask(&["scale", &format!("web={count}")]),
            Action::Reload => self.ask(&["up"]),
            Action::Change(version) => {
                self.version = version;
                self.write();
                self.ask(&["up"]);
            }
            Action::Spoil => {
                self.world.write("services: [");
                let answer = self.world.tell(&["up"]);
                self.write();
                ensure!(answer.code == Some(2), "a file with mistakes: {answer:?}");
            }
            Action::FillLogs if self.has_disk => {
                let mut file =
                    std::fs::File::create(self.world.path("state/logs/filler")).map_err(|e| e.to_string())?;
                while file.write(&[b'x'; 4096]).is_ok_and(|count| count > 0) {}
            }
            Action::FreeLogs => drop(std::fs::remove_file(self.world.path("state/logs/filler"))),
            Action::Sicken => drop(std::fs::write(self.world.path("sick"), "")),
            Action::Heal => drop(std::fs::remove_file(self.world.path("sick"))),
            Action::Wait(ms) => std::thread::sleep(Duration::from_millis(ms)),
            Action::FillLogs => {}
        }
        Ok(())
    }

    fn kill(&self, pids: &[i32], number: u64) {
        if !pids.is_empty() {
            // Who is gone already is gone.
            let _ = self.world.send(pids[(number % pids.len() as u64) as usize], 9);
        }
    }

    /// Asks for something; its answer is looked at later, for others may come between.
    fn ask(&mut self, words: &[&str]) {
        let mut verb = self.world.verb(words);
        let child = verb.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("plimsoll");
        self.asked.push(Asked { words: words.join(" "), child, since: Instant::now() });
    }

    /// Takes answers: whatever they are, they have to come. `all`: waits for them, for plimsoll has ended. Before that who
    /// waits for a service to run may wait for long: he goes.
    fn hear(&mut self, all: bool) -> Check {
        loop {
            let mut left = Vec::new();
            for mut asked in std::mem::take(&mut self.asked) {
                match asked.child.try_wait().map_err(|error| error.to_string())? {
                    Some(status) => {
                        let known = matches!(status.code(), Some(0 | 1));
                        ensure!(known, "`{}` ended with {status}", asked.words);
                    }
                    None if asked.since.elapsed() < DEADLINE => left.push(asked),
                    None => {
                        let _ = asked.child.kill();
                        let _ = asked.child.wait();
                        let may_last = ["start", "restart", "scale"].iter().any(|verb| asked.words.starts_with(verb));
                        let fine = may_last && !all;
                        ensure!(fine, "`{}` has no answer\n{}", asked.words, self.world.story());
                    }
                }
            }
            self.asked = left;
            if !all || self.asked.is_empty() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Comes up again after a death of any kind; the journal has no hole.
    fn again(&mut self) -> Check {
        // Answers that were waited for break off, and that is an answer.
        self.hear(true)?;
        self.world.audit()?;
        self.world.up()
    }

    /// `status` is what `/proc` and the groups say. They may differ for as long as it takes to notice something; then a
    /// second look at both sides agrees.
    fn check(&mut self) -> Check {
        let began = Instant::now();
        let mut looks = 0;
        loop {
            let differs = match self.world.status() {
                None => "it does not answer".to_owned(),
                Some(status) => match self.compare(&status) {
                    Ok(()) => break,
                    Err(why) => why,
                },
            };
            looks += 1;
            if began.elapsed() > DEADLINE {
                return Err(format!("status is wrong at {looks} looks: {differs}\n{}", self.world.story()));
            }
            std::thread::sleep(Duration::from_millis(looks.min(50)));
        }
        self.instants += 1;
        self.second_looks += u64::from(looks > 0);
        Ok(())
    }

    fn compare(&mut self, status: &Value) -> Check {
        let rows = status["services"].as_array().cloned().unwrap_or_default();
        let (mut groups, mut roots): (Vec<PathBuf>, Vec<i32>) = (Vec::new(), Vec::new());
        for row in &rows {
            self.count(row)?;
            let state = row["state"].as_str().unwrap_or_default();
            let Some(pid) = row["pid"].as_i64().map(|pid| pid as i32) else {
                ensure!(!matches!(state, "running" | "unhealthy"), "{row} runs without a pid");
                continue;
            };
            ensure!(!matches!(state, "stopped" | "failed" | "backing_off"), "{row} has a pid");
            ensure!(Process::of(pid).is_ok_and(|process| process.is_alive()), "{row} is not alive");
            let mut above = parent(pid);
            if self.world.tier == Tier::Watchdog {
                above = above.and_then(parent).and_then(parent); // its keeper's front
            }
            ensure!(above == Some(self.world.supervisor_pid()), "{row} is below {above:?}");
            let who = (environment(pid, "PLIMSOLL_SERVICE"), environment(pid, "PLIMSOLL_REPLICA"));
            ensure!(row["name"] == who.0.as_str() && row["replica"].as_u64() == who.1.parse().ok(), "{row} is {who:?}");
            roots.push(pid);
            if self.world.tier == Tier::Watchdog {
                continue;
            }
            let group = group_of(pid, "memory").ok_or_else(|| format!("{row} has no group"))?;
            let line = memory_line(pid);
            ensure!(line == row["limit_bytes"].as_u64(), "{row} has the line {line:?}");
            let budget = group.parent().unwrap_or(Path::new("/"));
            let whole = limit_in(budget, &["memory.limit_in_bytes", "memory.max"]);
            ensure!(
                whole == status["budget"]["limit_bytes"].as_u64(),
                "the budget is {whole:?}, not {}",
                status["budget"]
            );
            groups.push(group);
        }
        if self.world.tier == Tier::Watchdog {
            ensure!(self.world.held() == roots.len(), "{} are held, {} run", self.world.held(), roots.len());
            return Ok(());
        }
        let mut there = self.world.replica_groups();
        groups.sort();
        there.sort();
        ensure!(groups == there, "groups of replicas: {groups:?}, there are {there:?}");
        for pid in self.world.members() {
            let group = group_of(pid, "memory").unwrap_or_default();
            ensure!(groups.contains(&group), "{pid} ({}) is in {group:?}, of no replica", command_line(pid));
        }
        Ok(())
    }

    fn count(&mut self, row: &Value) -> Check {
        if row["replica"] != 1 {
            return Ok(());
        }
        let name = row["name"].as_str().unwrap_or_default().to_owned();
        let now = (row["restarts"].as_u64().unwrap_or(0), row["oom_kills"].as_u64().unwrap_or(0));
        let most = self.counters.entry(name).or_default();
        let fine = now.0 >= most.0 && now.1 >= most.1;
        ensure!(fine, "a counter goes back: restarts and kills were {most:?} and are {now:?}: {row}");
        *most = now;
        Ok(())
    }
}
