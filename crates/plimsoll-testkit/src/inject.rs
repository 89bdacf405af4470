//! Ground truth for verdicts: deaths of known causes, and what the certificate says of them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use crate::harness::{Bench, Options, Outcome, Random, Tier};

/// The kernel logs at most ten OOM kills in five seconds (`oom_kill_process` rate-limits its lines), and on cgroup v1 only
/// the log tells whose limit it was: deaths closer together are judged right, but cannot be judged certain.
const OOM_KILLS_APART: Duration = Duration::from_millis(700);

/// What is really done to a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Truth {
    Exited,
    Failed,
    Crashed,
    MemoryLimit,
    MemoryLimitParent,
    HostOom,
    Timeout,
    IdleTimeout,
    Stopped,
    ExternalKill,
    ExternalSignal,
    StartFailed,
}

impl Truth {
    fn cause(self) -> &'static str {
        match self {
            Self::Exited => "exited",
            Self::Failed => "failed",
            Self::Crashed => "crashed",
            Self::MemoryLimit => "memory_limit",
            Self::MemoryLimitParent => "memory_limit_parent",
            Self::HostOom => "host_oom",
            Self::Timeout => "timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::Stopped => "stopped",
            Self::ExternalKill => "external_kill",
            Self::ExternalSignal => "external_signal",
            Self::StartFailed => "start_failed",
        }
    }
}

const EVERYWHERE: [Truth; 10] = [
    Truth::Exited,
    Truth::Failed,
    Truth::Crashed,
    Truth::MemoryLimit,
    Truth::Timeout,
    Truth::IdleTimeout,
    Truth::Stopped,
    Truth::ExternalKill,
    Truth::ExternalSignal,
    Truth::StartFailed,
];

/// Causes deaths and prints the confusion matrix.
pub(crate) fn run(options: &Options) -> ExitCode {
    let (deaths, seed) = (options.number("--deaths", 120), options.number("--seed", 1));
    let mut truths = EVERYWHERE.to_vec();
    let parent =
        (options.tier != Tier::Watchdog && rustix::process::geteuid().is_root()).then(|| Parent::make(options.tier));
    if parent.is_some() {
        truths.push(Truth::MemoryLimitParent);
    }
    // Only in a guest: the machine itself runs out.
    if options.flag("--guest") {
        truths.push(Truth::HostOom);
    }
    if let Some(only) = options.text("--only") {
        truths =
            [Truth::HostOom].iter().chain(&truths).copied().filter(|truth| truth.cause() == only).take(1).collect();
        assert!(!truths.is_empty(), "no cause {only}");
    }
    let mut matrix: BTreeMap<(Truth, String), u64> = BTreeMap::new();
    let (mut right, mut wrong_certain) = (0, 0);
    let mut certain: BTreeMap<Truth, (u64, u64)> = BTreeMap::new();
    for number in 0..deaths {
        let truth = truths[(number % truths.len() as u64) as usize];
        let death = seed.wrapping_mul(1_000_003).wrapping_add(number);
        let outcome = inject(options, truth, &mut Random::new(death), parent.as_ref());
        if matches!(truth, Truth::MemoryLimit | Truth::MemoryLimitParent) {
            std::thread::sleep(OOM_KILLS_APART);
        }
        let hit = outcome.cause() == truth.cause();
        let sure = outcome.confidence() == "certain";
        right += u64::from(hit);
        wrong_certain += u64::from(!hit && sure);
        let count = certain.entry(truth).or_default();
        count.0 += u64::from(hit && sure);
        count.1 += 1;
        if !hit {
            println!("MISS death {death}: {truth:?}: code {:?} {} {}", outcome.code, outcome.report, outcome.stderr);
        }
        *matrix.entry((truth, outcome.cause().to_owned())).or_default() += 1;
    }
    drop(parent);
    println!("verdicts on {}: {deaths} deaths, seed {seed}", options.tier.as_str());
    println!("{:<20} {:<20} {:>6}", "truth", "verdict", "count");
    for ((truth, verdict), count) in &matrix {
        let mark = if truth.cause() == verdict { "" } else { "  <- wrong" };
        println!("{:<20} {verdict:<20} {count:>6}{mark}", truth.cause());
    }
    let mut unsure = 0;
    for (truth, (sure, all)) in &certain {
        println!("{:<20} certain in {sure} of {all}", truth.cause());
        let must = matches!(truth, Truth::MemoryLimit | Truth::Timeout | Truth::Stopped | Truth::IdleTimeout);
        unsure += u64::from(must && sure * 100 < all * 95);
    }
    println!("evicted and recycled are decisions of pools and budgets: `run` cannot cause them");
    println!("right {right} of {deaths}; certain and wrong: {wrong_certain}");
    let wrong = deaths - right;
    let good = wrong_certain == 0 && right * 100 >= deaths * 99 && unsure == 0;
    println!("{right} passed, {wrong} failed");
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn inject(options: &Options, truth: Truth, random: &mut Random, parent: Option<&Parent>) -> Outcome {
    let mut bench = Bench::new(options, "inject");
    let line = format!("{}m", 16 + random.below(32));
    let pause = Duration::from_millis(random.below(40));
    let quiet = ["--quiet", "--stop-timeout", "100ms"];
    let run = |bench: &Bench, options: &[&str], program: &[&str]| bench.run(&[&quiet, options].concat(), program);
    match truth {
        Truth::Exited => match random.below(3) {
            0 => run(&bench, &[], &["true"]),
            1 => run(&bench, &["-m", &line], &["@hog", "--bytes", "8m"]),
            _ => run(&bench, &[], &["@quit-leaving"]),
        },
        Truth::Failed => {
            // 137 and 143 of a root's own making are traps: nothing was killed.
            let code = *random.pick(&[1, 2, 3, 42, 126, 137, 143, 255]);
            run(&bench, &["-m", &line], &["sh", "-c", &format!("exit {code}")])
        }
        Truth::Crashed => run(&bench, &[], &["@crash", &random.pick(&[4, 5, 6, 7, 8, 11, 31]).to_string()]),
        Truth::MemoryLimit => match random.below(3) {
            0 => run(&bench, &["-m", &line], &["@hog", "--bytes", "400m"]),
            1 => run(&bench, &["-m", &line], &["@hog", "--bytes", "200m", "--rate", "600m"]),
            _ => run(&bench, &["-m", &line], &["@grandchild-hog", "--bytes", "300m", "--depth", "1"]),
        },
        Truth::MemoryLimitParent => {
            bench.parent = parent.map(|parent| parent.name.clone());
            match random.below(2) {
                0 => run(&bench, &["-m", "200m"], &["@hog", "--bytes", "400m"]),
                _ => run(&bench, &[], &["@hog", "--bytes", "400m"]),
            }
        }
        Truth::HostOom => run(&bench, &[], &["@hog", "--bytes", "64g", "--chunk", "8m"]),
        Truth::Timeout => {
            let program: &[&str] = random.pick::<&[&str]>(&[&["sleep", "60"][..], &["@ignore-term"], &["@stop-self"]]);
            run(&bench, &["--timeout", &format!("{}ms", 30 + pause.as_millis())], program)
        }
        Truth::IdleTimeout => run(
            &bench,
            &["--idle-timeout", &format!("{}ms", 60 + pause.as_millis())],
            &["sh", "-c", "echo x; sleep 60"],
        ),
        Truth::Stopped => {
            let program: &[&str] = random.pick::<&[&str]>(&[&["sleep", "60"][..], &["@ignore-term"], &["@say-signal"]]);
            signalled(&bench, &quiet, program, pause, |running| (running.front(), 15))
        }
        Truth::ExternalKill => match random.below(2) {
            0 => run(&bench, &["-m", &line], &["@crash", "9"]),
            _ => signalled(&bench, &quiet, &["sleep", "60"], pause, |running| (running.root().unwrap_or(0), 9)),
        },
        Truth::ExternalSignal => {
            let signal = *random.pick(&[1, 2, 10, 12, 14, 15]);
            match random.below(2) {
                0 => run(&bench, &[], &["@crash", &signal.to_string()]),
                _ => {
                    signalled(&bench, &quiet, &["sleep", "60"], pause, |running| (running.root().unwrap_or(0), signal))
                }
            }
        }
        Truth::StartFailed => match random.below(3) {
            0 => run(&bench, &[], &["plimsoll-no-such-program"]),
            1 => run(&bench, &[], &["/"]),
            _ => {
                let file = bench.dir.join("no-program");
                std::fs::write(&file, "\u{1}").expect("a file");
                let mut mode = std::fs::metadata(&file).expect("the file").permissions();
                std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
                std::fs::set_permissions(&file, mode).expect("the mode");
                run(&bench, &[], &[&file.display().to_string()])
            }
        },
    }
}

/// Starts a tree, waits until its root runs, and sends a signal.
fn signalled(
    bench: &Bench,
    options: &[&str],
    program: &[&str],
    pause: Duration,
    whom: impl Fn(&crate::harness::Running) -> (i32, i32),
) -> Outcome {
    let running = bench.start(options, program);
    running.wait_for_root();
    std::thread::sleep(pause);
    let (pid, signal) = whom(&running);
    assert!(pid > 0, "there is no such process");
    plimsoll_kernel::signal::send(pid, signal).expect("a signal");
    running.wait()
}

/// A parent group with a line lower than the trees' own.
struct Parent {
    name: String,
    dirs: Vec<std::path::PathBuf>,
}

impl Parent {
    fn make(tier: Tier) -> Self {
        let name = format!("plimsoll-inject-{}", std::process::id());
        let (mounts, file): (&[&str], &str) = match tier {
            Tier::Cgroup1 => (&["/sys/fs/cgroup/memory"], "memory.limit_in_bytes"),
            _ => (&["/sys/fs/cgroup"], "memory.max"),
        };
        let dirs: Vec<_> = mounts.iter().map(|mount| std::path::Path::new(mount).join(&name)).collect();
        for dir in &dirs {
            std::fs::create_dir(dir).expect("a parent group");
            std::fs::write(dir.join(file), (64u64 << 20).to_string()).expect("its limit");
        }
        if tier == Tier::Cgroup1 {
            let _ = std::fs::write(dirs[0].join("memory.memsw.limit_in_bytes"), (64u64 << 20).to_string());
        } else {
            let _ = std::fs::write(dirs[0].join("memory.swap.max"), "0");
        }
        Self { name: format!("/{name}"), dirs }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for mount in ["pids", "cpu", "freezer", "unified"] {
            let _ = std::fs::remove_dir(format!("/sys/fs/cgroup/{mount}{}", self.name));
        }
        for dir in &self.dirs {
            let _ = std::fs::remove_dir(dir);
        }
    }
}
