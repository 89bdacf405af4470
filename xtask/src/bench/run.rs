//! What `plimsoll run` costs, and how fast a tree goes.

use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use plimsoll_core::watch::{Look, Watch};
use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::tree::Tree;
use plimsoll_kernel::{procfs, signal, spawn};

use super::{Row, median, milliseconds, print, ratio};
use crate::exec::{Failure, command, output, succeed, which};
use crate::workspace::{self, Binaries};

/// A bench and its binaries.
struct Bench {
    binaries: Binaries,
    scratch: PathBuf,
    quick: bool,
}

/// A part of the table.
type Part = fn(&Bench) -> Result<Vec<Row>, Failure>;

/// Runs of the bench are registered here, apart from all others.
const RUNTIME_DIR: &str = "/run/plimsoll-bench";

const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn main(args: &[String]) -> Result<ExitCode, Failure> {
    crate::packages::install(crate::packages::TESTS)?;
    crate::packages::install(crate::packages::BENCHMARKS)?;
    let bench = Bench {
        binaries: workspace::build_release()?,
        scratch: workspace::scratch("bench")?,
        quick: args.iter().any(|arg| arg == "--quick"),
    };
    println!("{}\n", machine());
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    let parts: [(&str, Part); 7] = [
        ("wrapping", wrapping),
        ("memory", memory),
        ("sleepers", sleepers),
        ("bomb", bomb),
        ("sampling", sampling),
        ("idle", idle),
        ("overshoot", overshoot),
    ];
    let (chosen, _) = super::chosen(args, parts.iter().map(|(name, _)| *name))?;
    for (name, part) in parts.into_iter().filter(|(name, _)| chosen.contains(name)) {
        eprintln!("measuring: {name}");
        match part(&bench) {
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

pub(super) fn machine() -> String {
    let text = |path: &str| String::from_utf8_lossy(&procfs::read_file(path).unwrap_or_default()).into_owned();
    let cpu = text("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": an unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = procfs::parse_meminfo(text("/proc/meminfo").as_bytes()).map_or(0, |info| info.total >> 30);
    format!(
        "{cores} cores of {}, {memory} GiB, Linux {}",
        model.trim_start_matches([':', '\t', ' ']),
        text("/proc/sys/kernel/osrelease").trim()
    )
}

impl Bench {
    fn plimsoll(&self, options: &[&str], program: &[&str]) -> std::process::Command {
        let mut run = command(&self.binaries.plimsoll);
        run.arg("run").args(options).arg("--").args(program);
        run.env("PLIMSOLL_STATE_DIR", self.scratch.join("state")).env("PLIMSOLL_RUNTIME_DIR", RUNTIME_DIR);
        run.stdout(Stdio::null());
        run
    }

    fn testkit(&self) -> String {
        self.binaries.testkit.display().to_string()
    }

    fn rounds(&self, full: usize) -> usize {
        if self.quick { full / 5 + 1 } else { full }
    }
}

fn timed(mut command: std::process::Command) -> Result<Duration, Failure> {
    let began = Instant::now();
    let status = command.status().map_err(|error| Failure(format!("{command:?}: {error}")))?;
    let took = began.elapsed();
    if status.success() { Ok(took) } else { Err(Failure(format!("{command:?}: {status}"))) }
}

/// `/bin/true`, bare and wrapped, in turn.
fn wrapping(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let group = V1Group::make("plimsoll-bench-wrap", &["memory", "pids"])?;
    std::fs::write(group.file("memory", "memory.limit_in_bytes"), "67108864").map_err(text)?;
    let spec = format!("memory,pids:{}", group.name);
    let (mut bare, mut prlimit, mut cgexec, mut ours) = (vec![], vec![], vec![], vec![]);
    let docker = docker_works();
    let mut docker_times = vec![];
    for round in 0..bench.rounds(200) {
        bare.push(timed(command("/bin/true"))?);
        let mut with = command("prlimit");
        with.args(["--as=1073741824", "/bin/true"]);
        prlimit.push(timed(with)?);
        let mut with = command("cgexec");
        with.args(["-g", &spec, "/bin/true"]);
        cgexec.push(timed(with)?);
        ours.push(timed(bench.plimsoll(&["-m", "64m", "--pids-limit", "64"], &["/bin/true"]))?);
        if docker && round < 5 {
            let mut with = command("docker");
            with.args(["run", "--rm", "--network", "none", "-m", "64m", "busybox", "true"]);
            docker_times.push(timed(with)?);
        }
    }
    let (bare, prlimit, cgexec, ours) =
        (median(&mut bare), median(&mut prlimit), median(&mut cgexec), median(&mut ours));
    let docker = if docker { milliseconds(median(&mut docker_times)) } else { "no engine here".into() };
    Ok(vec![Row {
        what: "`run -m 64m --pids-limit 64 -- /bin/true`, certificate stored".into(),
        ours: milliseconds(ours),
        theirs: format!(
            "cgexec {}, bare {}, prlimit {}, docker run: {docker}",
            milliseconds(cgexec),
            milliseconds(bare),
            milliseconds(prlimit)
        ),
        ratio: format!("{:.2} × cgexec", ratio(ours, cgexec)),
        goal: "≤ 1.5 × cgexec",
        met: ratio(ours, cgexec) <= 1.5,
    }])
}

fn docker_works() -> bool {
    which("docker").is_some()
        && command("docker").args(["image", "inspect", "busybox"]).output().is_ok_and(|o| o.status.success())
}

/// Private memory of our two processes while a tree is held.
fn memory(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for tier in ["cgroup", "watchdog"] {
        let mut run = bench.plimsoll(&["-m", "64m", "--boundary", tier], &["sleep", "30"]).spawn().map_err(text)?;
        std::thread::sleep(Duration::from_secs(3));
        let front = run.id() as i32;
        let pids: Vec<i32> = std::iter::once(front).chain(children(front)).collect();
        let (mut private, mut pss) = (0, 0);
        for pid in &pids {
            let mut buffer = [0; 4096];
            let rollup = procfs::read_of(*pid, "smaps_rollup", &mut buffer).ok().and_then(procfs::parse_smaps_rollup);
            let rollup = rollup.ok_or_else(|| Failure("smaps_rollup is not readable".into()))?;
            private += rollup.private;
            pss += rollup.pss;
        }
        signal::send(front, 15).map_err(text)?;
        let _ = run.wait();
        rows.push(Row {
            what: format!("private memory of our {} processes, one tree held ({tier})", pids.len()),
            ours: format!("{:.2} MiB (PSS {:.2})", private as f64 / MIB, pss as f64 / MIB),
            theirs: "earlyoom 1.8, OxMgr 6.5, systemd-oomd 8.9, pm2 57 MB RSS (published)".into(),
            ratio: "–".into(),
            goal: "≤ 3 MiB",
            met: private as f64 / MIB <= 3.0,
        });
    }
    Ok(rows)
}

pub(super) fn children(pid: i32) -> Vec<i32> {
    let mut text = Vec::new();
    if procfs::read_all_of(pid, &format!("task/{pid}/children"), &mut text).is_err() {
        return Vec::new();
    }
    procfs::parse_children(&text).collect()
}

/// Groups of our own on v1 hierarchies and the v2 mount beside them, or on v2 alone.
struct V1Group {
    name: String,
    dirs: Vec<(String, PathBuf)>,
}

impl V1Group {
    fn make(name: &str, controllers: &[&str]) -> Result<Self, Failure> {
        let name = format!("{name}-{}", std::process::id());
        let mut dirs = Vec::new();
        for controller in controllers {
            let dir = Path::new("/sys/fs/cgroup").join(controller).join(&name);
            std::fs::create_dir(&dir).map_err(Failure::on("make", &dir))?;
            dirs.push(((*controller).to_owned(), dir));
        }
        Ok(Self { name, dirs })
    }

    fn file(&self, controller: &str, file: &str) -> PathBuf {
        self.dirs.iter().find(|(name, _)| name == controller).map(|(_, dir)| dir.join(file)).unwrap_or_default()
    }

    /// Starts a program inside.
    fn start(&self, program: &[&str]) -> Result<Child, Failure> {
        let procs: Vec<String> =
            self.dirs.iter().map(|(_, dir)| format!("echo 0 > {}/cgroup.procs", dir.display())).collect();
        let script = format!("{}; exec \"$@\"", procs.join("; "));
        command("sh").args(["-c", &script, "sh"]).args(program).stdout(Stdio::null()).spawn().map_err(text)
    }

    /// From `cgroup.kill` until `populated 0`.
    fn kill(&self) -> Result<Duration, Failure> {
        let began = Instant::now();
        std::fs::write(self.file("unified", "cgroup.kill"), "1").map_err(text)?;
        wait_empty(&self.file("unified", "cgroup.events"))?;
        Ok(began.elapsed())
    }
}

impl Drop for V1Group {
    fn drop(&mut self) {
        for (_, dir) in &self.dirs {
            for _ in 0..200 {
                if std::fs::remove_dir(dir).is_ok() || !dir.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// Until the group of this `cgroup.events` has nobody in it, or is gone.
fn wait_empty(events: &Path) -> Result<(), Failure> {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(60) {
        match std::fs::read_to_string(events) {
            Ok(text) if text.contains("populated 1") => std::thread::sleep(Duration::from_micros(200)),
            _ => return Ok(()),
        }
    }
    Err(Failure(format!("{} is still populated", events.display())))
}

/// The v2 directory of the bench's run that is under way, by the registry that only the bench uses.
fn our_group() -> Result<PathBuf, Failure> {
    let runs = Path::new(RUNTIME_DIR).join("runs");
    let entries = std::fs::read_dir(&runs).map_err(Failure::on("read", &runs))?;
    let id = entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_suffix(".json").map(str::to_owned));
    let group = id.map(|id| Path::new("/sys/fs/cgroup/unified/plimsoll").join(id)).filter(|group| group.is_dir());
    group.ok_or_else(|| Failure("no run is under way".into()))
}

fn processes_in(group: &Path) -> usize {
    std::fs::read_to_string(group.join("cgroup.procs")).map_or(0, |text| text.lines().count())
}

fn wait_for(what: &str, condition: impl Fn() -> bool) -> Result<(), Failure> {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > Duration::from_secs(60) {
            return Err(Failure(format!("{what}: it never came to that")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How our run is brought to its end.
#[derive(Clone, Copy)]
enum How {
    /// SIGTERM without grace.
    Stop,
    /// plimsoll itself is killed.
    Killed,
}

/// Raw and ours in turn: from the kill until the group is empty.
fn killing(
    bench: &Bench,
    workload: &[&str],
    options: &[&str],
    least: usize,
    how: How,
    rounds: usize,
) -> Result<(Duration, Duration), Failure> {
    let (mut raw, mut ours) = (vec![], vec![]);
    for _ in 0..bench.rounds(rounds) {
        let group = V1Group::make("plimsoll-bench-kill", &["memory", "pids", "unified"])?;
        if let Some(at) = options.iter().position(|option| *option == "--pids-limit") {
            std::fs::write(group.file("pids", "pids.max"), options[at + 1]).map_err(text)?;
        }
        let mut child = group.start(workload)?;
        wait_for("raw", || processes_in(&group.file("unified", "")) >= least)?;
        raw.push(group.kill()?);
        let _ = child.wait();
        drop(group);

        let all = [options, &["--quiet", "--stop-timeout", "0s"]].concat();
        let mut run = bench.plimsoll(&all, workload).spawn().map_err(text)?;
        wait_for("a group", || our_group().is_ok())?;
        let group = our_group()?;
        wait_for("ours", || processes_in(&group) >= least)?;
        let began = Instant::now();
        signal::send(
            run.id() as i32,
            match how {
                How::Stop => 15,
                How::Killed => 9,
            },
        )
        .map_err(text)?;
        wait_empty(&group.join("cgroup.events"))?;
        ours.push(began.elapsed());
        let _ = run.wait();
        wait_for("the end", || !group.exists())?;
    }
    Ok((median(&mut raw), median(&mut ours)))
}

fn sleepers(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let testkit = bench.testkit();
    let workload = [testkit.as_str(), "work", "sleepers", "--count", "1000"];
    let (raw, ours) = killing(bench, &workload, &["-m", "4g"], 1001, How::Stop, 9)?;
    let (raw_again, killed) = killing(bench, &workload, &["-m", "4g"], 1001, How::Killed, 9)?;
    let allowed = raw_again.mul_f64(1.2) + Duration::from_millis(50);
    Ok(vec![
        Row {
            what: "1,000 sleepers, kill to empty".into(),
            ours: milliseconds(ours),
            theirs: format!("raw cgroup.kill {}", milliseconds(raw)),
            ratio: format!("{:.2} ×", ratio(ours, raw)),
            goal: "≤ 1.2 ×",
            met: ratio(ours, raw) <= 1.2,
        },
        Row {
            what: "the same after SIGKILL of plimsoll".into(),
            ours: milliseconds(killed),
            theirs: format!("raw cgroup.kill {}", milliseconds(raw_again)),
            ratio: format!("{:.2} ×", ratio(killed, raw_again)),
            goal: "≤ 1.2 × + 50 ms",
            met: killed <= allowed,
        },
    ])
}

fn bomb(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let testkit = bench.testkit();
    let workload = [testkit.as_str(), "work", "forkbomb"];
    let (raw, ours) = killing(bench, &workload, &["-m", "4g", "--pids-limit", "512"], 480, How::Stop, 9)?;
    Ok(vec![Row {
        what: "fork bomb under 512 pids, kill to empty".into(),
        ours: milliseconds(ours),
        theirs: format!("raw cgroup.kill {}", milliseconds(raw)),
        ratio: format!("{:.2} ×", ratio(ours, raw)),
        goal: "≤ 2 ×",
        met: ratio(ours, raw) <= 2.0,
    }])
}

/// One sample of a tree of a thousand, against the bare reads and the established tools.
fn sampling(bench: &Bench) -> Result<Vec<Row>, Failure> {
    // The thousand are below this process, which adopts their orphans.
    spawn::become_subreaper().map_err(|error| Failure(error.to_string()))?;
    let mut parent = command(bench.testkit())
        .args(["work", "sleepers", "--count", "1000"])
        .stdout(Stdio::null())
        .spawn()
        .map_err(text)?;
    let mut tree = Tree::below(std::process::id() as i32);
    wait_for("a thousand", || {
        let mut probe = Tree::below(std::process::id() as i32);
        probe.discover();
        probe.sample().processes >= 1001
    })?;
    tree.discover();
    let pids: Vec<i32> = tree.processes().map(|process| process.pid).collect();
    let (mut ours, mut bare, mut ps, mut psutil) = (vec![], vec![], vec![], vec![]);
    let script = "import psutil,sys,time\nt=time.perf_counter()\nn=sum(psutil.Process(int(p)).memory_info().rss for p in sys.argv[1:])\nprint(time.perf_counter()-t)";
    for round in 0..bench.rounds(100) {
        let began = Instant::now();
        tree.discover();
        std::hint::black_box(tree.sample());
        ours.push(began.elapsed());
        let began = Instant::now();
        for &pid in &pids {
            let mut buffer = [0; 128];
            let _ = std::hint::black_box(procfs::read_of(pid, "statm", &mut buffer));
        }
        bare.push(began.elapsed());
        if round < 7 {
            let mut with = command("ps");
            with.args(["-eo", "pid,rss"]).stdout(Stdio::null());
            ps.push(timed(with)?);
            let seconds =
                output(command("/usr/bin/python3").args(["-c", script]).args(pids.iter().map(i32::to_string)))?;
            psutil.push(Duration::from_secs_f64(seconds.trim().parse().unwrap_or(0.0)));
        }
    }
    for pid in &pids {
        let _ = signal::send(*pid, 9);
    }
    let _ = parent.wait();
    while spawn::wait_any().is_some() {}
    let (ours, bare) = (median(&mut ours), median(&mut bare));
    Ok(vec![Row {
        what: format!("one sample of {} processes", pids.len()),
        ours: milliseconds(ours),
        theirs: format!(
            "bare reads {}, ps {}, psutil {}",
            milliseconds(bare),
            milliseconds(median(&mut ps)),
            milliseconds(median(&mut psutil))
        ),
        ratio: format!("{:.2} × bare", ratio(ours, bare)),
        goal: "≤ 1.3 × the bare reads",
        met: ratio(ours, bare) <= 1.3,
    }])
}

/// What watching a hundred idle processes costs.
fn idle(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let testkit = bench.testkit();
    let workload = [testkit.as_str(), "work", "sleepers", "--count", "100"];
    let mut run =
        bench.plimsoll(&["--boundary", "watchdog", "-m", "256m", "--quiet"], &workload).spawn().map_err(text)?;
    let front = run.id() as i32;
    std::thread::sleep(Duration::from_secs(3));
    let keeper = children(front).first().copied().ok_or_else(|| Failure("no keeper".into()))?;
    let used = || ticks(front) + ticks(keeper);
    let before = used();
    let seconds = if bench.quick { 20 } else { 60 };
    std::thread::sleep(Duration::from_secs(seconds));
    let spent = (used() - before) as f64 / procfs::ticks_per_second() as f64;
    signal::send(front, 15).map_err(text)?;
    let _ = run.wait();
    let share = spent / seconds as f64 * 100.0;
    Ok(vec![Row {
        what: format!("watchdog, 100 idle processes for {seconds} s, line 256 MiB"),
        ours: format!("{share:.2} % of a core"),
        theirs: "systemd-oomd 0.3 %, oomd 6 % at 1 s (published)".into(),
        ratio: "–".into(),
        goal: "≤ 0.3 % of one core",
        met: share <= 0.3,
    }])
}

pub(super) fn ticks(pid: i32) -> u64 {
    let mut buffer = [0; 1024];
    let stat = procfs::read_of(pid, "stat", &mut buffer).ok().and_then(procfs::parse_stat);
    stat.map_or(0, |stat| stat.utime_ticks + stat.stime_ticks)
}

/// Over the line: our watchdog for real, fixed intervals simulated with a hog of the measured speed.
fn overshoot(bench: &Bench) -> Result<Vec<Row>, Failure> {
    let rate = hog_rate(bench)?;
    let mut rows = Vec::new();
    for (procs, after, runs) in [("1", "0s", 200), ("4", "0s", 200), ("1", "10s", 200), ("4", "10s", 200)] {
        let runs = bench.rounds(runs).to_string();
        let said = output(
            command(bench.testkit())
                .args(["overshoot", "--plimsoll"])
                .arg(&bench.binaries.plimsoll)
                .args(["--line", "256m", "--procs", procs, "--after", after, "--runs", &runs]),
        )?;
        let said: serde_json::Value =
            serde_json::from_str(said.trim()).map_err(|error| Failure(format!("{error}: {said}")))?;
        let over = |name: &str| said["overshoot_bytes"][name].as_f64().unwrap_or(f64::NAN) / MIB;
        rows.push(Row {
            what: format!("watchdog overshoot, {procs} hog(s), after {after}, {runs} runs"),
            ours: format!("median {:.1}, p99 {:.1}, max {:.1} MiB", over("median"), over("p99"), over("max")),
            theirs: format!(
                "polls simulated, p99: 100 ms {:.0}, 2 s {:.0}, 30 s {:.0} MiB",
                simulated(rate, Duration::from_millis(100)),
                simulated(rate, Duration::from_secs(2)),
                simulated(rate, Duration::from_secs(30))
            ),
            ratio: format!("{:.1} GiB/s hog", rate as f64 / MIB / 1024.0),
            goal: "p99 ≤ 32 MiB",
            met: over("p99") <= 32.0,
        });
    }
    Ok(rows)
}

/// How fast a hog touches memory here, bytes a second.
fn hog_rate(bench: &Bench) -> Result<u64, Failure> {
    let mut times = Vec::new();
    for _ in 0..5 {
        let mut run = bench.plimsoll(&["-m", "1g", "--quiet"], &[&bench.testkit(), "work", "hog", "--bytes", "768m"]);
        let began = Instant::now();
        succeed(&mut run)?;
        times.push(began.elapsed());
    }
    Ok(((768u64 << 20) as f64 / median(&mut times).as_secs_f64()) as u64)
}

/// 99th percentile in MiB of what a poll at a fixed interval finds over a line of 256 MiB, from 200 phases: the same
/// policy object asks the question, the interval is not its own.
fn simulated(rate: u64, interval: Duration) -> f64 {
    let line = 256u64 << 20;
    let mut over: Vec<u64> = (0..200u32)
        .map(|phase| {
            let mut watch = Watch::new(line, 1, interval);
            let mut now = interval * phase / 200;
            loop {
                let held = (now.as_secs_f64() * rate as f64) as u64;
                match watch.look(now, held, held, Duration::ZERO) {
                    Look::Met | Look::Measure => return held - line,
                    Look::Again(_) => now += interval,
                }
            }
        })
        .collect();
    over.sort_unstable();
    over[197] as f64 / MIB
}

fn text(error: std::io::Error) -> Failure {
    Failure(error.to_string())
}
