//! plimsoll itself is killed, its stores are damaged, its disk is full: no process is lost, and no history.

use std::io::Write;
use std::time::Duration;

use super::world::{Check, World, ensure};

const DAEMONS: &str = r#"
budget: { memory: 512m }
services:
  daemons: { command: [sh, -c, "env -i setsid sleep 775 & exec $ME work leavers"], restart: always }
  marks: { command: [@work, mark, --file, $DIR/marks, --name, m], restart: always }
  deaf: { command: [@work, ignore-term], stop_grace_period: 500ms, depends_on: [marks] }
"#;

fn up_with_daemons(world: &mut World) -> Check {
    world.up_with(DAEMONS, &[("daemons", 1), ("marks", 1), ("deaf", 1)])?;
    world.until("all are there", |world| {
        world.everybody().len() >= 8 && world.lines("marks").iter().any(|line| line == "m up")
    })
}

/// After SIGKILL of the supervisor everything is gone, and the next `up` starts clean.
pub(super) fn supervisor_killed(world: &mut World) -> Check {
    for _ in 0..3 {
        up_with_daemons(world)?;
        world.kill_supervisor()?;
    }
    // Nobody was asked: it was at once.
    ensure!(!world.lines("marks").iter().any(|line| line == "m term"), "{:?}", world.lines("marks"));
    up_with_daemons(world)?;
    ensure!(world.rows().len() == 3, "{}", world.story());
    world.down()
}

/// After SIGKILL of the guard the supervisor stops everything in order.
pub(super) fn guard_killed(world: &mut World) -> Check {
    up_with_daemons(world)?;
    world.kill_guard()?;
    ensure!(world.lines("marks") == ["m up", "m term", "m down"], "{:?}", world.lines("marks"));
    ensure!(world.said().contains("guard"), "{}", world.said());
    up_with_daemons(world)?;
    world.down()
}

/// After SIGKILL of both at the same instant the next plimsoll of any verb sweeps; `up` itself as well.
pub(super) fn both_killed_then_swept(world: &mut World) -> Check {
    up_with_daemons(world)?;
    world.kill_both()?;
    up_with_daemons(world)?;
    // And when it is `up` that comes next.
    let old: Vec<i32> = world.everybody();
    world.kill_both_and_leave()?;
    up_with_daemons(world)?;
    let both: Vec<i32> = world.everybody().into_iter().filter(|pid| old.contains(pid)).collect();
    ensure!(both.is_empty(), "of the life before: {both:?}");
    world.down()
}

/// Counters, and the numbers of rows, go on over all kinds of deaths of the supervisor.
pub(super) fn counters_and_rows_go_on(world: &mut World) -> Check {
    world.write(
        r#"
budget: { memory: 512m }
services:
  leaky:
    command: [sh, -c, "echo x >>$DIR/leaks; test $$(wc -l <$DIR/leaks) -eq 2 && exec $ME work hog --bytes 400m; exec $ME work sleep"]
    mem_limit: 48m
    restart: always
  crashes: { command: [sh, -c, "echo x >>$DIR/crashes; test $$(wc -l <$DIR/crashes) -ge 3 && exec $ME work sleep; exit 1"], restart: always }
"#,
    );
    world.up()?;
    world.wait_state("crashes", 1, "running")?;
    world.wait_state("leaky", 1, "running")?;
    world.until("crashes has settled", |world| world.row("crashes", 1)["restarts"] == 2)?;
    world.kill_supervisor()?;
    world.up()?;
    world.until("it met its line", |world| world.row("leaky", 1)["oom_kills"].as_u64() >= Some(1))?;
    world.until("it is back", |world| {
        world.row("leaky", 1)["state"] == "running" && world.row("leaky", 1)["restarts"] == 1
    })?;
    world.until("crashes runs", |world| world.row("crashes", 1)["state"] == "running")?;
    ensure!(world.row("crashes", 1)["restarts"] == 2, "{}", world.row("crashes", 1));
    let kills = world.row("leaky", 1)["oom_kills"].clone();
    world.kill_both()?;
    world.up()?;
    world.wait_state("leaky", 1, "running")?;
    for (name, restarts) in [("leaky", 1), ("crashes", 2)] {
        ensure!(world.row(name, 1)["restarts"] == restarts, "{}", world.row(name, 1));
    }
    ensure!(world.row("leaky", 1)["oom_kills"] == kills, "{} against {kills}", world.row("leaky", 1));
    world.down()?;
    world.up()?;
    ensure!(
        world.row("crashes", 1)["restarts"] == 2 && world.row("leaky", 1)["oom_kills"] == kills,
        "{}",
        world.story()
    );
    ensure!(world.events().iter().filter(|row| row["event"] == "loaded").count() == 4, "not four lives");
    Ok(())
}

/// What cannot be read, or is of a newer plimsoll, is kept aside and told; the stack runs all the same.
pub(super) fn stores_that_cannot_be_read_are_kept(world: &mut World) -> Check {
    let yaml = "services: { one: { command: [@work, sleep], mem_limit: 64m } }";
    world.up_with(yaml, &[("one", 1)])?;
    world.down()?;
    let state = world.path("state");
    let aside = |begin: &str| -> Vec<Vec<u8>> {
        let entries = std::fs::read_dir(&state).into_iter().flatten().flatten();
        let matching = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(begin));
        matching.filter_map(|entry| std::fs::read(entry.path()).ok()).collect()
    };
    for text in ["{\"schema\":\"plimsoll.st", r#"{"schema":"plimsoll.stack/99","news":true}"#] {
        std::fs::write(state.join("stack.json"), text).map_err(|error| error.to_string())?;
        world.up()?;
        world.wait_state("one", 1, "running")?;
        ensure!(aside("stack.json.aside-").iter().any(|kept| kept == text.as_bytes()), "{text} is not kept");
        ensure!(world.said().contains("stack.json"), "{}", world.said());
        world.down()?;
        // A second's resolution is in its name.
        std::thread::sleep(Duration::from_millis(1100));
    }
    // A torn row, as a full disk leaves it, tears no other.
    let journal = std::fs::File::options().append(true).open(state.join("events.jsonl"));
    journal.and_then(|mut file| file.write_all(b"{\"seq\":9999,\"at\":\"20")).map_err(|error| error.to_string())?;
    world.up()?;
    world.wait_state("one", 1, "running")?;
    world.down()?;
    // The certificates' store.
    drop(world.done(&["explain", "--list"])?);
    for suffix in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(state.join(format!("plimsoll.db{suffix}")));
    }
    std::fs::write(state.join("plimsoll.db"), vec![7; 5000]).map_err(|error| error.to_string())?;
    world.up()?;
    world.wait_state("one", 1, "running")?;
    world.down()?;
    ensure!(world.explain("one")?["cause"] == "stopped", "no certificate after a damaged store");
    ensure!(aside("plimsoll.db.corrupt").contains(&vec![7; 5000]), "the damaged store is not kept");
    // What was certified before is in what was set aside.
    world.history_is_lost = true;
    Ok(())
}

/// Two supervisors on one state directory would write one journal: the second is refused.
pub(super) fn a_second_up_on_the_same_state(world: &mut World) -> Check {
    world.up_with("services: { one: { command: [@work, sleep], mem_limit: 64m } }", &[("one", 1)])?;
    let pid = world.pid("one", 1)?;
    let mut up = world.verb(&["up"]);
    up.env("PLIMSOLL_RUNTIME_DIR", world.path("run2"));
    // It would run for ever: it is asked to end after a while, and then it has failed.
    let second = world.run_for(up, Duration::from_secs(5));
    ensure!(second.code == Some(1), "the second one was not refused: {second:?}");
    ensure!(second.err.contains("state"), "{second:?}");
    ensure!(world.pid("one", 1)? == pid, "{}", world.story());
    Ok(())
}

fn fill(world: &World, name: &str) -> std::io::Result<u64> {
    let mut file = std::fs::File::create(world.path(name))?;
    let mut written = 0;
    for size in [4096, 64, 1] {
        let part = vec![b'x'; size];
        loop {
            match file.write(&part) {
                Ok(count) if count > 0 => written += count as u64,
                _ => break,
            }
        }
    }
    Ok(written)
}

/// No room for logs: services go on, it is said, and it is over when there is room again.
pub(super) fn a_full_disk_below_the_logs(world: &mut World) -> Check {
    std::fs::create_dir_all(world.path("state")).map_err(|error| error.to_string())?;
    std::fs::set_permissions(world.path("state"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .map_err(|error| error.to_string())?;
    if !world.mount("state/logs", "128k") {
        return world.leave_out("an ordinary user mounts nothing");
    }
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  talks: { command: [@work, chatter, "20"], mem_limit: 64m }
  crashes: { command: [@work, die-after, "700"], mem_limit: 64m, restart: always }
"#,
        &[("talks", 1)],
    )?;
    world.until("it talks", |world| world.log("talks").contains("| line 3"))?;
    let pid = world.pid("talks", 1)?;
    fill(world, "state/logs/filler").map_err(|error| error.to_string())?;
    world.until("it is told", |world| world.said().contains("logs: the disk does not take it"))?;
    let starts = world.events_of("started", "crashes").len();
    world.until("services are looked after", |world| world.events_of("started", "crashes").len() > starts)?;
    ensure!(world.pid("talks", 1)? == pid && world.row("talks", 1)["state"] == "running", "{}", world.story());
    ensure!(world.done(&["logs", "talks", "--tail", "3"])?.lines().count() == 3, "logs cannot be read");
    std::fs::remove_file(world.path("state/logs/filler")).map_err(|error| error.to_string())?;
    world.until("it is over", |world| world.said().contains("logs: all is well again"))?;
    let log = world.log("talks");
    ensure!(log.contains("lost") || log.contains("dropped"), "the log does not say that it lacks something:\n{log}");
    let last = log.lines().last().unwrap_or_default().to_owned();
    world.until("the log goes on", |world| world.log("talks").lines().last().is_some_and(|line| line != last))?;
    ensure!(world.pid("talks", 1)? == pid, "{}", world.story());
    Ok(())
}

/// No room for anything that is kept: the same, and a certificate and rows that could not be written are owned up to.
pub(super) fn a_full_disk_below_everything(world: &mut World) -> Check {
    if !world.mount("state", "2m") {
        return world.leave_out("an ordinary user mounts nothing");
    }
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  talks: { command: [@work, chatter, "20"], mem_limit: 64m }
  crashes: { command: [@work, die-after, "400"], mem_limit: 64m, restart: always }
"#,
        &[("talks", 1)],
    )?;
    let pid = world.pid("talks", 1)?;
    fill(world, "state/filler").map_err(|error| error.to_string())?;
    for about in ["journal: ", "logs: ", "certificates: "] {
        world.until(&format!("`{about}` is told"), |world| world.said().contains(about))?;
    }
    let restarts = world.row("crashes", 1)["restarts"].as_u64();
    world.until("services are looked after", |world| world.row("crashes", 1)["restarts"].as_u64() > restarts)?;
    ensure!(world.pid("talks", 1)? == pid, "{}", world.story());
    std::fs::remove_file(world.path("state/filler")).map_err(|error| error.to_string())?;
    for about in ["journal: ", "logs: ", "certificates: "] {
        world.until(&format!("`{about}` is over"), |world| {
            world.said().contains(&format!("{about}all is well again"))
        })?;
    }
    let before = world.row("crashes", 1)["restarts"].as_u64();
    world.kill_supervisor()?;
    world.up()?;
    world.wait_state("talks", 1, "running")?;
    ensure!(world.row("crashes", 1)["restarts"].as_u64() >= before, "{:?} then {}", before, world.row("crashes", 1));
    world.history_is_lost = true;
    Ok(())
}
