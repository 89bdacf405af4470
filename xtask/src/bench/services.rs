//! What it costs to look after services, and how fast that is: plimsoll, pm2 and supervisord with the same ones.
//!
//! A service sleeps, except where its start is timed: then it is the testkit's beacon, which says when it ran, by the
//! clock that all of them share. Memory and processor time are those of the supervisors themselves: ours are two
//! processes, the others one each, and services count for nobody.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::{procfs, signal};

use super::manager::{ALL, Kind, Manager, Tools};
use super::run::ticks;
use super::{Row, median, milliseconds, ratio};
use crate::exec::Failure;

const MIB: f64 = 1024.0 * 1024.0;

/// Ours, pm2's and supervisord's.
type Three<T> = [T; 3];

/// Does it for each of the three.
fn each<T>(mut work: impl FnMut(Kind) -> Result<T, Failure>) -> Result<Three<T>, Failure> {
    let [ours, pm2, supervisord] = ALL;
    Ok([work(ours)?, work(pm2)?, work(supervisord)?])
}

/// All three with so many sleeping services.
fn sleepers<'t>(tools: &'t Tools, services: usize) -> Result<Three<Manager<'t>>, Failure> {
    each(|kind| {
        let mut manager = Manager::new(tools, kind)?;
        manager.start_sleepers(services)?;
        Ok(manager)
    })
}

fn stop<'t>(managers: impl IntoIterator<Item = Manager<'t>>) -> Result<(), Failure> {
    // All are ended, whatever the first one says.
    managers.into_iter().map(Manager::stop).fold(Ok(()), |all, one| all.and(one))
}

/// Resident memory of processes, and the same with shared pages divided, bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    rss: u64,
    pss: u64,
}

fn held(pids: &[i32]) -> Result<Held, Failure> {
    let mut held = Held::default();
    for pid in pids {
        let mut buffer = [0; 4096];
        let rollup = procfs::read_of(*pid, "smaps_rollup", &mut buffer).ok().and_then(procfs::parse_smaps_rollup);
        let rollup = rollup.ok_or_else(|| Failure(format!("smaps_rollup of {pid} is not readable")))?;
        held.rss += rollup.rss;
        held.pss += rollup.pss;
    }
    Ok(held)
}

/// Memory of the supervisors at 0, 100 and 1,000 services.
pub(super) fn memory(tools: &Tools, quick: bool) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for (services, goal, words) in [(0, 5.0, "≤ 5 MiB"), (100, 8.0, "≤ 8 MiB"), (1000, 20.0, "≤ 20 MiB")] {
        // pm2 takes minutes to start a thousand.
        let is_left_out = |kind| quick && kind == Kind::Pm2 && services > 100;
        let [ours, pm2, supervisord] = each(|kind| {
            if is_left_out(kind) {
                return Ok(None);
            }
            let mut manager = Manager::new(tools, kind)?;
            manager.start_sleepers(services)?;
            // Its first looks belong to it.
            std::thread::sleep(Duration::from_secs(if quick { 7 } else { 60 }));
            let held = held(&manager.own())?;
            manager.stop()?;
            Ok(Some(held))
        })?;
        let show = |held: Option<Held>| {
            held.map_or("not with --quick".to_owned(), |held| {
                format!("{:.1} MiB (PSS {:.1})", held.rss as f64 / MIB, held.pss as f64 / MIB)
            })
        };
        let mib = |held: Option<Held>| held.map_or(f64::NAN, |held| held.rss as f64 / MIB);
        rows.push(Row {
            what: format!("memory of all our processes, {services} services, RSS"),
            ours: show(ours),
            theirs: format!("pm2 {}, supervisord {}", show(pm2), show(supervisord)),
            ratio: format!("{:.2} × pm2, {:.2} × supervisord", mib(ours) / mib(pm2), mib(ours) / mib(supervisord)),
            goal: words,
            met: mib(ours) <= goal,
        });
    }
    Ok(rows)
}

/// Processor time with a hundred services that do nothing; all three at the same time.
pub(super) fn idle(tools: &Tools, quick: bool) -> Result<Vec<Row>, Failure> {
    let managers = sleepers(tools, 100)?;
    // What a start costs is over, and each was asked once how things are.
    for manager in &managers {
        timed(manager.status_command())?;
    }
    std::thread::sleep(Duration::from_secs(12));
    let used = |manager: &Manager<'_>| manager.own().into_iter().map(ticks).sum::<u64>();
    let before = managers.each_ref().map(used);
    let seconds = if quick { 20 } else { 60 };
    std::thread::sleep(Duration::from_secs(seconds));
    let after = managers.each_ref().map(used);
    stop(managers)?;
    let share = |at: usize| {
        let spent = after[at].saturating_sub(before[at]) as f64 / procfs::ticks_per_second() as f64;
        spent / seconds as f64 * 100.0
    };
    let [ours, pm2, supervisord] = [share(0), share(1), share(2)];
    Ok(vec![Row {
        what: format!("our CPU with 100 idle services for {seconds} s"),
        ours: format!("{ours:.2} % of a core"),
        theirs: format!("pm2 {pm2:.2} %, supervisord {supervisord:.2} %"),
        ratio: format!("{:.2} × pm2, {:.2} × supervisord", ours / pm2, ours / supervisord),
        goal: "≤ 0.3 % of a core",
        met: ours <= 0.3,
    }])
}

/// The command that shows a hundred services, from its start to its end; in turn.
pub(super) fn status(tools: &Tools, quick: bool) -> Result<Vec<Row>, Failure> {
    let rounds = if quick { 7 } else { 35 };
    let managers = sleepers(tools, 100)?;
    let mut times: Three<Vec<Duration>> = Default::default();
    for _ in 0..rounds {
        for (manager, times) in managers.iter().zip(&mut times) {
            times.push(timed(manager.status_command())?);
        }
    }
    stop(managers)?;
    let [ours, pm2, supervisord] = times.each_mut().map(|times| median(times));
    Ok(vec![Row {
        what: format!("`status` with 100 services, whole command, median of {rounds}"),
        ours: milliseconds(ours),
        theirs: format!("`pm2 ls` {}, `supervisorctl status` {}", milliseconds(pm2), milliseconds(supervisord)),
        ratio: format!("{:.0} × as fast as pm2, {:.0} × supervisord", ratio(pm2, ours), ratio(supervisord, ours)),
        goal: "≤ 6 ms",
        met: ours <= Duration::from_millis(6),
    }])
}

/// From the command until a hundred services run; one after the other, in turn.
pub(super) fn start(tools: &Tools, quick: bool) -> Result<Vec<Row>, Failure> {
    let rounds = if quick { 2 } else { 5 };
    let mut times: Three<Vec<Duration>> = Default::default();
    for _ in 0..rounds {
        for (kind, times) in ALL.into_iter().zip(&mut times) {
            let mut manager = Manager::new(tools, kind)?;
            let beacons = Beacons::of(tools, kind)?;
            let began = manager.start(100, &beacons.command)?;
            let mut last = Duration::ZERO;
            for _ in 0..100 {
                last = last.max(beacons.next()?.at);
            }
            times.push(last.saturating_sub(began.since_boot()));
            manager.stop()?;
        }
    }
    let [ours, pm2, supervisord] = times.each_mut().map(|times| median(times));
    Ok(vec![Row {
        what: format!("`up` of 100 services until all run, median of {rounds}"),
        ours: milliseconds(ours),
        theirs: format!(
            "pm2 (its daemon runs already) {}, supervisord {}",
            milliseconds(pm2),
            milliseconds(supervisord)
        ),
        ratio: format!("{:.1} × as fast as pm2, {:.1} × supervisord", ratio(pm2, ours), ratio(supervisord, ours)),
        goal: "≥ 10 × as fast as pm2",
        met: ratio(pm2, ours) >= 10.0,
    }])
}

/// A killed service, from the kill until the first instruction of the one in its place. Each of twenty services is
/// killed once when it ran for longer than ten seconds, so that nobody's back-off counts; the three take turns.
pub(super) fn crash(tools: &Tools, quick: bool) -> Result<Vec<Row>, Failure> {
    const SERVICES: usize = 20;
    let mut sides = each(|kind| {
        let beacons = Beacons::of(tools, kind)?;
        let mut manager = Manager::new(tools, kind)?;
        manager.start(SERVICES, &beacons.command)?;
        let running = (0..SERVICES).map(|_| Ok(beacons.next()?.pid)).collect::<Result<Vec<i32>, Failure>>()?;
        Ok((manager, beacons, running))
    })?;
    let mut times: Three<Vec<Duration>> = Default::default();
    for _ in 0..if quick { 1 } else { 4 } {
        std::thread::sleep(Duration::from_secs(11));
        for at in 0..SERVICES {
            for ((_, beacons, running), times) in sides.iter_mut().zip(&mut times) {
                let began = Instant::now();
                signal::send(running[at], 9).map_err(|error| Failure(error.to_string()))?;
                let next = beacons.next()?;
                times.push(next.at.saturating_sub(began.since_boot()));
                running[at] = next.pid;
                // Whatever it still does for the one that is gone is over before the next.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    let all: usize = times[0].len();
    stop(sides.map(|(manager, ..)| manager))?;
    let [ours, pm2, supervisord] = times.each_mut().map(|times| median(times));
    let faster = ratio(pm2, ours).min(ratio(supervisord, ours));
    Ok(vec![Row {
        what: format!("kill -9 of a service until the new process runs, median of {all}"),
        ours: milliseconds(ours),
        theirs: format!("pm2 {}, supervisord {}", milliseconds(pm2), milliseconds(supervisord)),
        ratio: format!("{:.0} × as fast as pm2, {:.0} × supervisord", ratio(pm2, ours), ratio(supervisord, ours)),
        goal: "≤ 5 ms, ≥ 20 × as fast as both",
        met: ours <= Duration::from_millis(5) && faster >= 20.0,
    }])
}

fn timed(mut command: Command) -> Result<Duration, Failure> {
    let began = Instant::now();
    let status = command.status().map_err(|error| Failure(format!("{command:?}: {error}")))?;
    let took = began.elapsed();
    // supervisorctl's code tells of services, too; they all run.
    if status.success() { Ok(took) } else { Err(Failure(format!("{command:?}: {status}"))) }
}

/// Where services say that they run.
struct Beacons {
    socket: UnixDatagram,
    /// The service.
    command: Vec<String>,
}

/// One that runs, and since when, on the monotonic clock.
struct Beacon {
    pid: i32,
    at: Duration,
}

impl Beacons {
    fn of(tools: &Tools, kind: Kind) -> Result<Self, Failure> {
        let path = crate::workspace::scratch("bench-up")?.join(format!("beacons-{}", kind.name()));
        let command = vec![tools.testkit.display().to_string(), "work".into(), "beacon".into(), text(&path)];
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).map_err(Failure::on("listen on", &path))?;
        socket.set_read_timeout(Some(Duration::from_secs(120))).map_err(Failure::on("wait on", &path))?;
        Ok(Self { socket, command })
    }

    fn next(&self) -> Result<Beacon, Failure> {
        let mut said = [0; 64];
        let count = self.socket.recv(&mut said).map_err(|error| Failure(format!("no service started: {error}")))?;
        let words = String::from_utf8_lossy(&said[..count]).into_owned();
        let mut numbers = words.split(' ').map(str::parse::<u64>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(pid)), Some(Ok(nanos))) => Ok(Beacon { pid: pid as i32, at: Duration::from_nanos(nanos) }),
            _ => Err(Failure(format!("a beacon says {words:?}"))),
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
