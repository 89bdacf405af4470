//! How services begin, are kept alive, and end.

use std::path::Path;
use std::time::Duration;

use plimsoll_kernel::procfs::{Process, parse_stat};

use super::world::{Check, World, command_line, ensure, group_of, memory_line};
use crate::harness::{TAG, Tier, alive, command, eventually};

fn start_ticks(pid: i32) -> u64 {
    let text = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    parse_stat(&text).map_or(0, |stat| stat.start_ticks)
}

/// The order is that of dependencies; on the way down nobody is asked before those that need it are gone.
pub(super) fn up_in_order_and_down_in_reverse(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  a: { command: [@work, mark, --file, $DIR/marks, --name, a, --ms, "100"], depends_on: [b, d] }
  b: { command: [@work, mark, --file, $DIR/marks, --name, b, --ms, "100"], depends_on: [c] }
  c: { command: [@work, mark, --file, $DIR/marks, --name, c, --ms, "100"] }
  d: { command: [@work, mark, --file, $DIR/marks, --name, d, --ms, "100"], depends_on: [c] }
"#,
        &[("a", 1), ("b", 1), ("c", 1), ("d", 1)],
    )?;
    world.until("all have begun", |world| world.lines("marks").len() == 4)?;
    let at = |name: &str| world.pid(name, 1).map(start_ticks);
    ensure!(at("c")? <= at("b")? && at("c")? <= at("d")?, "c began later than those that need it");
    ensure!(at("b")? <= at("a")? && at("d")? <= at("a")?, "a began before what it needs");
    let seq = |kind: &str, name: &str| world.events_of(kind, name).first().and_then(|row| row["seq"].as_u64());
    ensure!(
        seq("started", "c") < seq("starting", "b") && seq("started", "b") < seq("starting", "a"),
        "{}",
        world.story()
    );
    world.down()?;
    let marks: Vec<String> = world.lines("marks").into_iter().skip(4).collect();
    let place = |line: &str| marks.iter().position(|mark| mark == line).ok_or(format!("no `{line}` in {marks:?}"));
    for (needs, needed) in [("a", "b"), ("a", "d"), ("b", "c"), ("d", "c")] {
        let (gone, asked) = (place(&format!("{needs} down"))?, place(&format!("{needed} term"))?);
        ensure!(gone < asked, "{needed} was asked before {needs} was gone: {marks:?}");
    }
    ensure!(marks.len() == 8, "{marks:?}");
    Ok(())
}

/// Nothing starts before what it needs is healthy or has done its work; what needs a failed one is told so.
pub(super) fn healthy_and_completed_dependencies(world: &mut World) -> Check {
    world.write(
        r#"
budget: { memory: 512m }
services:
  db:
    command: [@work, sleep]
    healthcheck: { test: [CMD, test, -e, $DIR/ready], interval: 100ms, timeout: 30s, retries: 10000 }
  migrate:
    command: [sh, -c, "test -e $DIR/ready && echo x >>$DIR/migrated"]
    depends_on: { db: { condition: service_healthy } }
  api:
    command: [sh, -c, "test -e $DIR/migrated && exec $ME work sleep"]
    depends_on: { migrate: { condition: service_completed_successfully } }
  fails: { command: [sh, -c, "exit 3"] }
  never:
    command: [sh, -c, "echo x >>$DIR/never"]
    depends_on: { fails: { condition: service_completed_successfully } }
"#,
    );
    world.up()?;
    world.until("db runs", |world| !world.row("db", 1)["pid"].is_null())?;
    for _ in 0..20 {
        for name in ["migrate", "api"] {
            let row = world.row(name, 1);
            ensure!(row["pid"].is_null() && row["state"] == "starting", "{row}");
            let waits = row["waiting"]["dependency"].as_str().unwrap_or_default().to_owned();
            ensure!(waits == if name == "api" { "migrate" } else { "db" }, "{row}");
        }
        ensure!(world.row("db", 1)["health"] == "starting", "{}", world.row("db", 1));
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(world.path("ready"), "").map_err(|error| error.to_string())?;
    world.wait_state("api", 1, "running")?;
    ensure!(world.lines("migrated").len() == 1, "{:?}", world.lines("migrated"));
    let done = world.row("migrate", 1);
    ensure!(done["state"] == "stopped" && done["last_cause"] == "exited", "{done}");
    let queued = world.events_of("queued", "never");
    let is_over = queued.iter().any(|row| row["is_over"] == true && row["dependency"] == "fails");
    ensure!(is_over, "{queued:?}");
    ensure!(world.row("never", 1)["pid"].is_null() && world.text("never").is_empty(), "{}", world.story());
    Ok(())
}

/// Who is started again, how often, and what it is called when it is given up.
pub(super) fn restart_policies(world: &mut World) -> Check {
    world.write(
        r#"
budget: { memory: 512m }
services:
  no: { command: [sh, -c, "echo x >>$DIR/no; exit 1"] }
  done: { command: [sh, -c, "echo x >>$DIR/done; exit 0"] }
  two: { command: [sh, -c, "echo x >>$DIR/two; exit 1"], restart: "on-failure:2" }
  fine: { command: [sh, -c, "echo x >>$DIR/fine; exit 0"], restart: on-failure }
  always:
    command: [sh, -c, "echo x >>$DIR/always; test $$(wc -l <$DIR/always) -ge 4 && exec $ME work sleep; exit 0"]
    restart: always
"#,
    );
    world.up()?;
    world.wait_state("two", 1, "failed")?;
    world.wait_state("always", 1, "running")?;
    world.until("the others are over", |world| {
        ["no", "done", "fine"].iter().all(|name| !world.events_of("ended", name).is_empty())
    })?;
    world.until("always has settled", |world| world.lines("always").len() == 4)?;
    let starts: Vec<usize> = ["no", "done", "two", "fine"].iter().map(|name| world.lines(name).len()).collect();
    ensure!(starts == [1, 1, 3, 1], "starts of no, done, two, fine: {starts:?}");
    let row = world.row("two", 1);
    ensure!(row["attempt"] == 2 && row["max_attempts"] == 2 && row["restarts"] == 2, "{row}");
    ensure!(row["pid"].is_null() && row["last_cause"] == "failed", "{row}");
    let table = world.done(&["status"])?;
    let line = table.lines().find(|line| line.starts_with("two/1")).unwrap_or_default().to_owned();
    ensure!(line.contains("failed") && line.contains("2/2"), "{table}");
    ensure!(world.row("no", 1)["state"] == "failed", "{}", world.row("no", 1));
    ensure!(
        world.row("fine", 1)["state"] == "stopped" && world.row("done", 1)["state"] == "stopped",
        "{}",
        world.story()
    );
    ensure!(world.row("always", 1)["restarts"] == 3, "{}", world.row("always", 1));
    // 100 ms, doubled each time.
    let delays: Vec<u64> =
        world.events_of("restarting", "always").iter().filter_map(|r| r["delay_ms"].as_u64()).collect();
    ensure!(delays == [100, 200, 400], "{delays:?}");
    let row = world.events_of("failed", "two").pop().unwrap_or_default();
    ensure!(row["attempts"] == 2, "{row}");
    // By hand it begins anew.
    drop(world.tell(&["start", "two"]));
    world.until("it has failed again", |world| {
        world.row("two", 1)["state"] == "failed" && world.lines("two").len() == 6
    })?;
    Ok(())
}

/// After ten good seconds the first restart is immediate, and a new row begins.
pub(super) fn a_good_run_is_restarted_at_once(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  good: { command: [sh, -c, "sleep 11; exit 1"], restart: "on-failure:1" }
"#,
        &[("good", 1)],
    )?;
    world.until("it is started a third time", |world| world.events_of("started", "good").len() == 3)?;
    for row in world.events_of("restarting", "good") {
        ensure!(row["delay_ms"] == 0 && row["attempt"] == 1, "{row}");
    }
    Ok(())
}

/// Stopped on request: `unless-stopped` stays so over a new `up`, `always` does not.
pub(super) fn stopped_stays_stopped(world: &mut World) -> Check {
    let yaml = r#"
budget: { memory: 512m }
services:
  unless: { command: [@work, sleep], restart: unless-stopped }
  always: { command: [@work, sleep], restart: always }
  other: { command: [@work, sleep] }
"#;
    world.up_with(yaml, &[("unless", 1), ("always", 1), ("other", 1)])?;
    let other = world.pid("other", 1)?;
    for name in ["unless", "always"] {
        let pid = world.pid(name, 1)?;
        let process = Process::of(pid).map_err(|error| error.to_string())?;
        world.done(&["stop", name])?;
        ensure!(!process.is_alive(), "{name} lives when stop has returned");
        ensure!(world.row(name, 1)["state"] == "stopped", "{}", world.row(name, 1));
    }
    ensure!(world.pid("other", 1)? == other && world.workers() == [other], "{:?}", world.workers());
    world.down()?;
    world.up()?;
    world.wait_state("other", 1, "running")?;
    world.wait_state("always", 1, "running")?;
    ensure!(world.row("unless", 1)["pid"].is_null(), "{}", world.row("unless", 1));
    world.done(&["start", "unless"])?;
    ensure!(world.row("unless", 1)["state"] == "running", "{}", world.row("unless", 1));
    world.down()?;
    world.up()?;
    world.wait_state("unless", 1, "running")
}

/// An unhealthy one is told, and replaced where the policy restarts; where it does not, it is left alone.
pub(super) fn unhealthy_is_restarted(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  again:
    command: [@work, sleep]
    restart: always
    healthcheck: &check { test: [CMD-SHELL, "test ! -e $DIR/sick"], interval: 150ms, timeout: 30s, retries: 2 }
  alone: { command: [@work, sleep], healthcheck: *check }
"#,
        &[("again", 1), ("alone", 1)],
    )?;
    let before = (world.pid("again", 1)?, world.pid("alone", 1)?);
    std::fs::write(world.path("sick"), "").map_err(|error| error.to_string())?;
    for name in ["again", "alone"] {
        let row = world.wait_event("unhealthy", name)?;
        ensure!(row["failures"] == 2 && row["why"].as_str().is_some_and(|why| why.contains("code 1")), "{row}");
    }
    ensure!(world.row("alone", 1)["state"] == "unhealthy", "{}", world.row("alone", 1));
    std::fs::remove_file(world.path("sick")).map_err(|error| error.to_string())?;
    world.wait_state("alone", 1, "running")?;
    world.until("a new one is healthy", |world| {
        let row = world.row("again", 1);
        row["state"] == "running" && row["pid"] != before.0
    })?;
    ensure!(world.pid("alone", 1)? == before.1, "it was restarted");
    let stopping = world.events_of("stopping", "again");
    ensure!(stopping.iter().any(|row| row["reason"] == "unhealthy"), "{stopping:?}");
    ensure!(world.explain("again")?["cause"] == "stopped", "{}", world.explain("again")?);
    Ok(())
}

/// A test that nobody can run says nothing about the service: told once, and the service goes on.
pub(super) fn a_probe_that_cannot_run_is_told(world: &mut World) -> Check {
    world.write(
        r#"
budget: { memory: 512m }
services:
  api:
    command: [@work, sleep]
    restart: always
    healthcheck: { test: [CMD, /nowhere/probe], interval: 50ms, timeout: 30s, retries: 1 }
"#,
    );
    world.up()?;
    let row = world.wait_event("probe_not_run", "api")?;
    ensure!(row["why"].as_str().is_some_and(|why| why.contains("/nowhere/probe")), "{row}");
    let pid = world.pid("api", 1)?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(world.pid("api", 1)? == pid && world.events_of("probe_not_run", "api").len() == 1, "{}", world.story());
    ensure!(world.events_of("ended", "api").is_empty(), "{}", world.story());
    ensure!(world.row("api", 1)["health"] == "starting", "{}", world.row("api", 1));
    ensure!(world.said().contains("cannot be probed"), "{}", world.said());
    Ok(())
}

/// A test that hangs failed at its timeout, and all of it is gone.
pub(super) fn a_probe_that_hangs_is_ended(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  api:
    command: [@work, sleepers, --count, "1"]
    healthcheck: { test: [CMD-SHELL, "test -e $DIR/fine && exit; sleep 771 & sleep 772"], interval: 50ms, timeout: 300ms, retries: 3 }
  calm: { command: [@work, sleep] }
"#,
        &[("calm", 1)],
    )?;
    let row = world.wait_event("unhealthy", "api")?;
    ensure!(row["failures"] == 3 && row["why"] == "it took too long", "{row}");
    let pid = world.pid("api", 1)?;
    let probes = |world: &World| {
        let members = world.members().into_iter().map(command_line);
        members.filter(|line| line.contains("sleep 77")).count()
    };
    // One probe at a time: whatever the ones before left is gone. (Its shell has both numbers in its words.)
    for _ in 0..30 {
        ensure!(probes(world) <= 3, "{} of probes", probes(world));
        std::thread::sleep(Duration::from_millis(20));
    }
    std::fs::write(world.path("fine"), "").map_err(|error| error.to_string())?;
    world.wait_state("api", 1, "running")?;
    ensure!(world.pid("api", 1)? == pid, "it was restarted");
    world.until("no probe is left", |world| probes(world) == 0)
}

/// The signal that was asked for, then its grace, then SIGKILL.
pub(super) fn stop_signal_then_grace_then_kill(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  polite:
    command: [sh, -c, "trap 'echo got INT; exit 0' INT; trap 'echo got TERM; exit 1' TERM; echo ready; while :; do sleep 0.05; done"]
    stop_signal: SIGINT
    stop_grace_period: 60s
  deaf: { command: [sh, -c, "trap '' TERM; echo ready; while :; do sleep 1; done"], stop_grace_period: 300ms }
  none: { command: [sh, -c, "trap 'echo got TERM; exit 0' TERM; echo ready; while :; do sleep 0.05; done"], stop_grace_period: 0s }
  asleep: { command: [@work, stop-self], stop_grace_period: 60s }
"#,
        &[("polite", 1), ("deaf", 1), ("none", 1), ("asleep", 1)],
    )?;
    world.until("all are ready", |world| {
        ["polite", "deaf", "none"].iter().all(|name| world.log(name).contains("| ready"))
    })?;
    for name in ["polite", "deaf", "none", "asleep"] {
        world.done(&["stop", name])?;
    }
    ensure!(world.members().is_empty(), "{:?}", world.members());
    ensure!(
        world.log("polite").contains("| got INT") && !world.log("polite").contains("got TERM"),
        "{}",
        world.log("polite")
    );
    ensure!(world.events_of("killing", "polite").is_empty(), "killed before its grace was over");
    let ended = |name: &str| world.events_of("ended", name).pop().unwrap_or_default();
    ensure!(ended("polite")["cause"] == "stopped" && ended("polite")["code"] == 0, "{}", ended("polite"));
    ensure!(
        world.events_of("stopping", "deaf").len() == 1 && world.events_of("killing", "deaf").len() == 1,
        "{}",
        world.story()
    );
    ensure!(ended("deaf")["cause"] == "stopped" && ended("deaf")["signal"] == 9, "{}", ended("deaf"));
    ensure!(
        world.events_of("stopping", "none").is_empty() && !world.log("none").contains("got TERM"),
        "{}",
        world.story()
    );
    ensure!(
        ended("asleep")["cause"] == "stopped" && world.events_of("killing", "asleep").is_empty(),
        "{}",
        ended("asleep")
    );
    Ok(())
}

/// Whoever left his parent, his session, or his environment is still of the service: gone when it is stopped, and gone
/// when its root ends by itself.
pub(super) fn daemons_go_with_their_service(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  stays: { command: [sh, -c, "env -i setsid sleep 773 & exec $ME work leavers"] }
  quits: { command: [sh, -c, "env -i setsid sleep 774 & $ME work quit-leaving; while test ! -e $DIR/quit; do sleep 0.02; done"] }
"#,
        &[("stays", 1), ("quits", 1)],
    )?;
    world.until("all are there", |world| {
        world.tree("stays", 1).is_ok_and(|all| all.len() >= 5) && world.tree("quits", 1).is_ok_and(|all| all.len() >= 4)
    })?;
    let alive = |all: &[Process]| all.iter().filter(|process| process.is_alive()).map(|p| p.pid).collect::<Vec<i32>>();
    let stays = world.tree("stays", 1)?;
    world.done(&["stop", "stays"])?;
    ensure!(alive(&stays).is_empty(), "alive when stop has returned: {:?}", alive(&stays));
    let quits = world.tree("quits", 1)?;
    std::fs::write(world.path("quit"), "").map_err(|error| error.to_string())?;
    let ended = world.wait_event("ended", "quits")?;
    ensure!(ended["cause"] == "exited", "{ended}");
    ensure!(alive(&quits).is_empty(), "alive when its end is told: {:?}", alive(&quits));
    ensure!(world.in_groups().is_empty() && world.held() == 0, "{} are held", world.held());
    Ok(())
}

/// What cannot be started is told with its reason, and by the policy.
pub(super) fn a_program_that_is_not_there(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  absent: { command: [/nowhere/at/all], restart: "on-failure:1" }
  other: { command: [@work, sleep] }
"#,
        &[("other", 1)],
    )?;
    world.wait_state("absent", 1, "failed")?;
    let failed = world.events_of("start_failed", "absent");
    ensure!(failed.len() == 2, "{failed:?}");
    ensure!(failed[0]["why"].as_str().is_some_and(|why| why.contains("/nowhere/at/all")), "{failed:?}");
    ensure!(world.row("absent", 1)["last_cause"] == "start_failed", "{}", world.row("absent", 1));
    ensure!(world.held() == 1, "{} are held", world.held());
    // "Every end has a certificate", also that of what never ran.
    let certificate = world.explain("absent")?;
    ensure!(certificate["cause"] == "start_failed", "{certificate}");
    Ok(())
}

/// In the background, typed into a group that was delegated to us and has nobody else in it, as a unit of systemd has:
/// groups are made there, and afterwards it is as it was.
pub(super) fn detached_in_a_delegated_group(world: &mut World) -> Check {
    if world.tier != Tier::Cgroup2 || rustix::process::geteuid().is_root() {
        return world.leave_out("there is no group that was delegated to a user");
    }
    let trees = std::env::var("PLIMSOLL_CGROUP_PARENT").map_err(|_| "PLIMSOLL_CGROUP_PARENT names no group")?;
    let trees = Path::new("/sys/fs/cgroup").join(trees.trim_start_matches('/'));
    let group = trees.join("alone");
    let words = |error: std::io::Error| format!("{}: {error}", group.display());
    std::fs::write(trees.join("cgroup.subtree_control"), "+memory +pids +cpu").map_err(words)?;
    std::fs::create_dir(&group).map_err(words)?;
    world.write("budget: { memory: 512m }\nservices: { a: { command: [@work, sleep], mem_limit: 64m } }\n");
    let up = world.verb(&["up", "-d", "--wait", "60s"]);
    let mut inside = command("sh");
    inside.args(["-c", "echo $$ >\"$0\" && exec \"$@\""]).arg(group.join("cgroup.procs"));
    inside.arg(up.get_program()).args(up.get_args()).current_dir(&world.dir);
    inside.envs(up.get_envs().filter_map(|(name, value)| Some((name, value?))));
    inside.env(TAG, &world.tag).env_remove("PLIMSOLL_CGROUP_PARENT");
    let answer = world.run(inside);
    ensure!(answer.code == Some(0), "up -d: {answer:?} {}", world.text("state/up.log"));
    let line = memory_line(world.pid("a", 1)?);
    ensure!(line == Some(64 << 20), "its line is {line:?}");
    let place = group_of(world.pid("a", 1)?, "memory").unwrap_or_default();
    ensure!(place.starts_with(&group), "it is in {}", place.display());
    world.done(&["down"])?;
    let is_as_it_was = || std::fs::remove_dir(&group).is_ok();
    let left = || std::fs::read_dir(&group).map(|entries| entries.flatten().filter(|one| one.path().is_dir()).count());
    ensure!(eventually(is_as_it_was), "{} groups are left, {:?} are alive", left().unwrap_or(0), alive(&world.tag));
    Ok(())
}
