//! `cargo xtask test` and `soak`: every family of tests, one after the other, whatever the others say; a table at the end.

use std::process::ExitCode;
use std::time::Duration;

use plimsoll_kernel::clock::Instant;

use crate::docker::{self, Engine};
use crate::exec::{Ended, Failure, command, stream, which};
use crate::furnish::{self, Furniture};
use crate::guest::{self, Boot, Mode};
use crate::place::{self, Place};
use crate::suite::{SEED, Suite};
use crate::summary::{self, Counts, Row, Verdict};
use crate::workspace::{self, Binaries};
use crate::{deny, fuzz, packages, peers, sim};

/// How much of what is counted in hundreds is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A seeded part, for every change.
    Part,
    /// All of it.
    Whole,
}

/// What a family runs.
#[derive(Debug, Clone, Copy)]
enum Work {
    /// `cargo fmt --check`.
    Format,
    /// Clippy, warnings being errors.
    Lints,
    /// Licences, bans and sources of dependencies.
    Dependencies,
    /// Everything that `cargo test` finds.
    Cargo,
    /// The fuzz targets, each with so many inputs.
    Fuzz,
    /// The stack's state machine against made-up machines.
    Sim,
    /// A suite of the test kit in a place.
    Kit(Suite, Place),
    /// Programs that people run, held for real.
    RealPrograms,
    /// What surrounds `up`: the background, service managers, Prometheus, process 1.
    Packaging,
    /// Clients that people use against pools: SDKs and a command.
    Clients,
    /// The image of `packaging/docker`.
    Image,
    /// The second incident's example: on this machine or in a container.
    ChatBot(Place),
    /// The third incident's example.
    ChatWrapper,
    /// The fourth incident's example: on this machine or in a container.
    RunawayWorker(Place),
    /// The fifth incident's example: on this machine or in a guest.
    Laptop(Place),
}

struct Family {
    name: &'static str,
    work: Work,
}

const fn family(name: &'static str, work: Work) -> Family {
    Family { name, work }
}

const FAMILIES: &[Family] = &[
    family("format", Work::Format),
    family("lints", Work::Lints),
    family("dependencies", Work::Dependencies),
    family("cargo", Work::Cargo),
    family("fuzz", Work::Fuzz),
    family("sim", Work::Sim),
    family("conform_machine", Work::Kit(Suite::Conform, Place::Machine)),
    family("conform_unprivileged", Work::Kit(Suite::Conform, Place::Unprivileged)),
    family("conform_container", Work::Kit(Suite::Conform, Place::Container)),
    family("conform_v2", Work::Kit(Suite::Conform, Place::Guest(Mode::V2))),
    family("conform_v2_swap", Work::Kit(Suite::Conform, Place::Guest(Mode::V2Swap))),
    family("conform_v2_delegated", Work::Kit(Suite::Conform, Place::Guest(Mode::V2Delegated))),
    family("conform_v1", Work::Kit(Suite::Conform, Place::Guest(Mode::V1))),
    family("conform_hybrid", Work::Kit(Suite::Conform, Place::Guest(Mode::Hybrid))),
    family("verdicts_machine", Work::Kit(Suite::Verdicts, Place::Machine)),
    family("verdicts_unprivileged", Work::Kit(Suite::Verdicts, Place::Unprivileged)),
    family("verdicts_v2", Work::Kit(Suite::Verdicts, Place::Guest(Mode::V2))),
    family("survivors_machine", Work::Kit(Suite::Survivors, Place::Machine)),
    family("survivors_unprivileged", Work::Kit(Suite::Survivors, Place::Unprivileged)),
    family("survivors_v2", Work::Kit(Suite::Survivors, Place::Guest(Mode::V2))),
    family("stack_machine", Work::Kit(Suite::Stack, Place::Machine)),
    family("stack_v2", Work::Kit(Suite::Stack, Place::Guest(Mode::V2))),
    family("stack_v2_delegated", Work::Kit(Suite::Stack, Place::Guest(Mode::V2Delegated))),
    family("serve_machine", Work::Kit(Suite::Serve, Place::Machine)),
    family("serve_unprivileged", Work::Kit(Suite::Serve, Place::Unprivileged)),
    family("serve_v2", Work::Kit(Suite::Serve, Place::Guest(Mode::V2))),
    family("chaos_machine", Work::Kit(Suite::Chaos, Place::Machine)),
    family("chaos_v2", Work::Kit(Suite::Chaos, Place::Guest(Mode::V2))),
    family("real", Work::RealPrograms),
    family("packaging", Work::Packaging),
    family("clients", Work::Clients),
    family("image", Work::Image),
    family("example_bot_machine", Work::ChatBot(Place::Machine)),
    family("example_bot_container", Work::ChatBot(Place::Container)),
    family("example_wrapper", Work::ChatWrapper),
    family("example_runaway_machine", Work::RunawayWorker(Place::Machine)),
    family("example_runaway_container", Work::RunawayWorker(Place::Container)),
    family("example_laptop_machine", Work::Laptop(Place::Machine)),
    family("example_laptop_v2", Work::Laptop(Place::Guest(Mode::V2))),
];

/// Drives programs that people run; prints closing lines as the others do.
const REAL_PROGRAMS: &str = "tests/real/run.py";

/// Drives `up` and the files of `packaging/`; prints closing lines as the others do.
const PACKAGING: &str = "tests/packaging/run.py";

/// Drives clients of the chat API, which it gets from PyPI and npm; prints closing lines as the others do.
const CLIENTS: &str = "tests/clients/run.py";

/// The second incident, before and after: its folder.
const CHAT_BOT: &str = "examples/incidents/2-chat-bot";

/// The third incident, before and after.
const CHAT_WRAPPER: &str = "examples/incidents/3-chat-wrapper/run.py";

/// The fourth incident, before and after: its folder.
const RUNAWAY_WORKER: &str = "examples/incidents/4-runaway-worker";

/// The fifth incident, before and after: its folder.
const LAPTOP: &str = "examples/incidents/5-laptop";

/// The laptop of 2 GiB, and a machine around it.
const LAPTOP_GUEST_MIB: u32 = 3072;

/// So much slower an emulated machine is taken to be.
const LAPTOP_GUEST_SLOWNESS: &str = "12";

impl Extent {
    /// What takes a family this long hangs.
    fn family_deadline(self) -> Duration {
        Duration::from_secs(match self {
            Self::Part => 30 * 60,
            Self::Whole => 6 * 3600,
        })
    }

    /// After this the rest fails unrun: a table that tells so is worth more than being cut off (CI does that after 90
    /// minutes).
    fn deadline(self) -> Duration {
        Duration::from_secs(match self {
            Self::Part => 80 * 60,
            Self::Whole => 24 * 3600,
        })
    }
}

/// `cargo xtask test|soak [FAMILY…]`.
pub(crate) fn main(extent: Extent, args: &[String]) -> Result<ExitCode, Failure> {
    if args.iter().any(|arg| arg == "--list") {
        FAMILIES.iter().for_each(|family| println!("{}", family.name));
        return Ok(ExitCode::SUCCESS);
    }
    // Without its script there is no such family.
    let real = workspace::root().join(REAL_PROGRAMS).exists();
    let is_chosen = |name: &str| args.is_empty() || args.iter().any(|arg| name.starts_with(arg.as_str()));
    let is_there = |work: Work| real || !matches!(work, Work::RealPrograms);
    let chosen: Vec<&Family> =
        FAMILIES.iter().filter(|family| is_chosen(family.name) && is_there(family.work)).collect();
    if let Some(unknown) = args.iter().find(|arg| !FAMILIES.iter().any(|family| family.name.starts_with(arg.as_str())))
    {
        return Err(Failure(format!("no family begins with {unknown:?}; `cargo xtask test --list` names them")));
    }
    heading("packages");
    packages::install(packages::TESTS)?;
    let mut runner = Runner { extent, started: Instant::now(), binaries: None };
    let rows: Vec<Row> = chosen.iter().map(|family| runner.run(family)).collect();
    let fine = summary::print(&rows);
    Ok(if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Under CI nothing may be skipped.
fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

fn heading(name: &str) {
    println!("\n==== {name}");
}

struct Runner {
    extent: Extent,
    started: Instant,
    /// The binaries, built when the first family needs them; or why that failed.
    binaries: Option<Result<Binaries, String>>,
}

impl Runner {
    fn run(&mut self, family: &Family) -> Row {
        heading(family.name);
        let start = Instant::now();
        let (mut counts, verdict) = self.judge(family.work);
        match &verdict {
            Verdict::Failed(why) => {
                println!("{} FAILED: {why}", family.name);
                counts.failed = counts.failed.max(1); // what could not even count is a failure
            }
            Verdict::Skipped(why) => {
                println!("{} skipped: {why}", family.name);
                counts.skipped += 1;
            }
            Verdict::Passed => {}
        }
        let Counts { passed, failed, skipped } = counts;
        println!("{}: {passed} passed, {failed} failed, {skipped} skipped", family.name);
        let took = start.elapsed();
        println!("{} took {:.1} s", family.name, took.as_secs_f64());
        Row { family: family.name, counts, took, verdict }
    }

    fn judge(&mut self, work: Work) -> (Counts, Verdict) {
        if let Err(why) = available(work) {
            let verdict =
                if is_ci() { Verdict::Failed(format!("CI skips nothing: {why}")) } else { Verdict::Skipped(why.0) };
            return (Counts::default(), verdict);
        }
        let left = self.extent.deadline().saturating_sub(self.started.elapsed());
        if left.is_zero() {
            return (Counts::default(), Verdict::Failed("there was no time left for it".to_owned()));
        }
        let mut counts = Counts::default();
        let ended = self.perform(work, left.min(self.extent.family_deadline()), &mut counts);
        let verdict = match ended {
            Err(why) => Verdict::Failed(why.0),
            Ok(ended) if !ended.is_success() => Verdict::Failed(ended.to_string()),
            Ok(_) if counts.failed > 0 && matches!(work, Work::Kit(suite, _) if suite.has_a_bound()) => {
                println!("{} of {} missed, within the suite's bound", counts.failed, counts.passed + counts.failed);
                counts.failed = 0;
                Verdict::Passed
            }
            Ok(_) if counts.failed > 0 => Verdict::Failed("it ended well and yet counts failures".to_owned()),
            Ok(_) if counts.skipped > 0 && is_ci() => {
                Verdict::Failed("CI skips nothing, and this skipped something".to_owned())
            }
            Ok(_) if counts.passed == 0 => Verdict::Failed("it ran no test".to_owned()),
            Ok(_) => Verdict::Passed,
        };
        (counts, verdict)
    }

    fn perform(&mut self, work: Work, deadline: Duration, counts: &mut Counts) -> Result<Ended, Failure> {
        match work {
            Work::Format => {
                let (mut ours, mut targets) = (workspace::cargo(), fuzz::cargo("fmt"));
                ours.args(["fmt", "--all", "--check"]);
                targets.arg("--check");
                each([ours, targets], deadline, counts)
            }
            Work::Lints => {
                let (mut ours, mut targets) = (workspace::cargo(), fuzz::cargo("clippy"));
                ours.args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]);
                targets.args(["--no-default-features", "--", "--deny", "warnings"]); // so without compiling libFuzzer
                each([ours, targets], deadline, counts)
            }
            Work::Dependencies => {
                println!("known vulnerabilities are not checked: that needs a network (cargo deny check advisories)");
                each(deny::checks()?, deadline, counts)
            }
            Work::Cargo => {
                let mut cargo = workspace::cargo();
                cargo.args(["test", "--workspace", "--no-fail-fast"]);
                stream(cargo, deadline, |line| {
                    println!("{line}");
                    if let Some(more) = Counts::of_cargo(line) {
                        counts.add(more);
                    }
                })
            }
            Work::Fuzz => fuzz::run(&fuzz::targets()?, fuzz::Effort::of(self.extent), deadline, counts),
            Work::Sim => Ok(sim::run(SEED, sim::seeds(self.extent), deadline, counts)),
            Work::Kit(suite, place) => {
                let arguments = suite.arguments(place.tier()?, place, self.extent);
                println!("plimsoll-testkit {}", arguments.join(" "));
                place::run(place, self.binaries()?, &arguments, suite.guest_memory_mib(), deadline, |line| {
                    closing(line, counts)
                })
            }
            Work::RealPrograms => {
                let binaries = self.binaries()?;
                let mut python = command("python3");
                python.arg(REAL_PROGRAMS).current_dir(workspace::root());
                python.env("PLIMSOLL", &binaries.plimsoll).env("PLIMSOLL_TESTKIT", &binaries.testkit);
                stream(python, deadline, |line| closing(line, counts))
            }
            Work::Packaging => {
                // Debian's own, which has Debian's modules.
                let mut python = command("/usr/bin/python3");
                python.arg(PACKAGING).current_dir(workspace::root()).env("PLIMSOLL", &self.binaries()?.plimsoll);
                stream(python, deadline, |line| closing(line, counts))
            }
            Work::Clients => {
                let binaries = self.binaries()?;
                let mut python = command("python3");
                python.arg(CLIENTS).current_dir(workspace::root());
                python.env("PLIMSOLL", &binaries.plimsoll).env("PLIMSOLL_TESTKIT", &binaries.testkit);
                python.env("PLIMSOLL_CLIENTS", workspace::scratch("clients")?);
                stream(python, deadline, |line| closing(line, counts))
            }
            Work::Image => {
                let binaries = self.binaries()?;
                let engine = Engine::start(binaries)?;
                let commands = engine.packaged(binaries)?;
                counts.passed += 1;
                each(commands, deadline, counts)
            }
            Work::ChatBot(Place::Container) => self.run_contained_bot(deadline, counts),
            Work::ChatBot(_) => self.run_chat(&[&format!("{CHAT_BOT}/run.py")], deadline, counts),
            Work::ChatWrapper => {
                let requests = if self.extent == Extent::Part { "700" } else { "7000" };
                self.run_chat(&[CHAT_WRAPPER, "--requests", requests], deadline, counts)
            }
            Work::RunawayWorker(place) => self.run_runaway_worker(place, deadline, counts),
            Work::Laptop(place) => self.run_laptop(place, deadline, counts),
        }
    }

    /// A python that has FastAPI, with these arguments.
    fn run_chat(&mut self, arguments: &[&str], deadline: Duration, counts: &mut Counts) -> Result<Ended, Failure> {
        let mut python = command(peers::fastapi()?.join("python"));
        python.args(arguments).current_dir(workspace::root()).env("PLIMSOLL", &self.binaries()?.plimsoll);
        stream(python, deadline, |line| closing(line, counts))
    }

    /// Plimsoll as process 1 of a container that is restarted and killed.
    fn run_contained_bot(&mut self, deadline: Duration, counts: &mut Counts) -> Result<Ended, Failure> {
        const IMAGE: &str = "chat-bot";
        let folder = workspace::root().join(CHAT_BOT);
        let engine = Engine::start(self.binaries()?)?;
        engine.build_up(IMAGE, &folder, &["agent.py", "container.yaml"])?;
        let mut python = command("python3");
        python.arg(folder.join("run.py")).args(["--container", IMAGE]).envs(engine.environment());
        python.args(docker::programs(&[]).iter().map(|argument| format!("--docker-run={argument}")));
        stream(python, deadline, |line| closing(line, counts))
    }

    fn run_runaway_worker(&mut self, place: Place, deadline: Duration, counts: &mut Counts) -> Result<Ended, Failure> {
        let (seed, lot) = (SEED.to_string(), self.extent == Extent::Part);
        let extent: &[&str] = if lot { &["--lot", &seed] } else { &["--whole"] };
        let binaries = self.binaries()?;
        let folder = workspace::root().join(RUNAWAY_WORKER);
        let script = folder.join("run.py").display().to_string();
        if place == Place::Container {
            // As the recipe has it: plimsoll is the entrypoint, and another one inside holds the worker. A runaway that
            // nobody holds would make the entrypoint end all of it.
            let held = ["run", "-m", "1100m", "--", "/usr/bin/python3", &script, "--phase", "after"];
            let engine = Engine::start(binaries)?;
            let docker = engine.entrypoint("1200m", &folder, &[held.as_slice(), extent].concat());
            return stream(docker, deadline, |line| closing(line, counts));
        }
        let mut python = command("python3");
        python.arg(script).args(extent).env("PLIMSOLL", &binaries.plimsoll);
        stream(python, deadline, |line| closing(line, counts))
    }

    fn run_laptop(&mut self, place: Place, deadline: Duration, counts: &mut Counts) -> Result<Ended, Failure> {
        let binaries = self.binaries()?;
        let folder = workspace::root().join(LAPTOP);
        if let Place::Guest(mode) = place {
            let command = ["env", "PLIMSOLL=/bin/plimsoll", "python3", &format!("{}/run.py", furnish::FOLDER)];
            let command = [command.as_slice(), &["--slow", LAPTOP_GUEST_SLOWNESS]].concat();
            let command: Vec<String> = command.into_iter().map(str::to_owned).collect();
            let furniture = Some(Furniture { folder: &folder, programs: &["redis-server", "redis-cli"] });
            let boot = Boot { mode, memory_mib: LAPTOP_GUEST_MIB, command: &command, deadline, furniture };
            return guest::run(binaries, &boot, |line| closing(line, counts));
        }
        let mut python = command("python3");
        python.arg(folder.join("run.py")).env("PLIMSOLL", &binaries.plimsoll);
        stream(python, deadline, |line| closing(line, counts))
    }

    fn binaries(&mut self) -> Result<&Binaries, Failure> {
        let built = self.binaries.get_or_insert_with(|| workspace::build().map_err(|why| why.0));
        built.as_ref().map_err(|why| Failure(why.clone()))
    }
}

/// Can it be done here? The reason why not otherwise.
fn available(work: Work) -> Result<(), Failure> {
    match work {
        Work::Kit(_, place) => place.available(),
        Work::RealPrograms => programs(),
        Work::ChatBot(place) | Work::RunawayWorker(place) | Work::Laptop(place) => {
            programs().and_then(|()| place.available())
        }
        Work::Packaging | Work::ChatWrapper => programs().and_then(|()| Place::Machine.available()),
        Work::Clients if which("npm").is_none() => {
            Err(Failure("npm is not here, and the SDK of Node comes from it".into()))
        }
        Work::Clients => programs().and_then(|()| Place::Machine.available()),
        Work::Image => Place::Container.available(),
        Work::Fuzz if which("c++").is_none() => Err(Failure("there is no c++ to compile libFuzzer with".to_owned())),
        Work::Fuzz | Work::Format | Work::Lints | Work::Dependencies | Work::Cargo | Work::Sim => Ok(()),
    }
}

/// Are the programs here that people run? The reason why not otherwise.
fn programs() -> Result<(), Failure> {
    let absent = packages::TESTS.iter().find(|package| !package.is_here());
    absent.map_or(Ok(()), |package| Err(Failure(format!("{} is not here: {}", package.name, package.reason))))
}

/// Runs checks that are one test each, one after the other, whatever the others say.
fn each(
    commands: impl IntoIterator<Item = std::process::Command>,
    deadline: Duration,
    counts: &mut Counts,
) -> Result<Ended, Failure> {
    let mut all = Ended::Code(0);
    for command in commands {
        let ended = stream(command, deadline, |line| println!("{line}"))?;
        if ended.is_success() {
            counts.passed += 1;
        } else {
            counts.failed += 1;
            all = ended;
        }
    }
    Ok(all)
}

/// Prints a line; when it is a closing line it becomes the count, as the last one sums up.
fn closing(line: &str, counts: &mut Counts) {
    match Counts::of_closing_line(line) {
        Some(closing) => *counts = closing, // ours follows, with the family's name
        None => println!("{line}"),
    }
}
