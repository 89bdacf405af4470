//! Lines, and what happens close to them.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::world::{Check, World, command_line, ensure, environment, group_of, limit_in, memory_line};
use crate::harness::Tier;

const MIB: u64 = 1 << 20;

/// Every limit of a service stands in its group, and everybody of it is in that group; the budget is the limit of the
/// group around all of them.
pub(super) fn limits_are_in_force(world: &mut World) -> Check {
    if world.tier == Tier::Watchdog {
        return refused_without_groups(world);
    }
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  api:
    command: [@work, sleepers, --count, "3"]
    mem_limit: 64m
    mem_reservation: 32m
    memswap_limit: 64m
    cpus: 0.5
    pids_limit: 50
    deploy: { replicas: 2 }
  best: { command: [@work, sleep], mem_limit: 32m, priority: best-effort }
  first: { command: [@work, sleep], mem_limit: 32m, priority: critical }
  rest: { command: [@work, sleep] }
"#,
        &[("api", 1), ("api", 2), ("best", 1), ("first", 1), ("rest", 1)],
    )?;
    let mut groups = Vec::new();
    for replica in [1, 2] {
        let pid = world.pid("api", replica)?;
        let memory = group_of(pid, "memory").ok_or("no group")?;
        let is = |group: &std::path::Path, files: &[&str], wanted: u64| {
            let found = limit_in(group, files);
            if found == Some(wanted) { Ok(()) } else { Err(format!("{files:?} of {group:?}: {found:?}, not {wanted}")) }
        };
        is(&memory, &["memory.limit_in_bytes", "memory.max"], 64 * MIB)?;
        is(&memory, &["memory.soft_limit_in_bytes", "memory.low"], 32 * MIB)?;
        let swap = if world.tier == Tier::Cgroup2 { 0 } else { 64 * MIB };
        let file = ["memory.memsw.limit_in_bytes", "memory.swap.max"];
        if file.iter().any(|file| memory.join(file).exists()) {
            is(&memory, &file, swap)?;
        }
        is(&group_of(pid, "pids").ok_or("no group")?, &["pids.max"], 50)?;
        let cpu = group_of(pid, "cpu").ok_or("no group")?;
        let quota = std::fs::read_to_string(cpu.join("cpu.max"))
            .or_else(|_| std::fs::read_to_string(cpu.join("cpu.cfs_quota_us")));
        ensure!(quota.as_ref().is_ok_and(|quota| quota.trim().starts_with("50000")), "{quota:?}");
        let budget = memory.parent().ok_or("no parent")?;
        is(budget, &["memory.limit_in_bytes", "memory.max"], 512 * MIB)?;
        groups.push(memory);
    }
    ensure!(groups[0] != groups[1], "two replicas in one group: {groups:?}");
    ensure!(world.replica_groups().len() == 5, "{:?}", world.replica_groups());
    // Everybody of a service, by his environment, is in the group of its root.
    world.until("all sleepers run", |world| world.members().len() == 2 * 4 + 3)?;
    for pid in world.members() {
        let group = group_of(pid, "memory").unwrap_or_default();
        let api = command_line(pid).contains("sleepers") || environment(pid, "PLIMSOLL_SERVICE") == "api";
        ensure!(groups.contains(&group) == api, "{pid} ({}) is in {group:?}", command_line(pid));
    }
    let score = |name| {
        let text = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", world.pid(name, 1)?));
        text.map_err(|error| error.to_string())
    };
    ensure!(score("best")?.trim() == "1000" && score("rest")?.trim() == "300", "{:?}", score("best"));
    ensure!(score("first")?.trim() == "0", "{:?}", score("first"));
    // Without a limit: what the reservations of the others leave.
    let rest = memory_line(world.pid("rest", 1)?);
    ensure!(rest == Some((512 - 64) * MIB), "{rest:?}");
    for row in world.rows() {
        let pid = row["pid"].as_i64().unwrap_or(0) as i32;
        ensure!(memory_line(pid) == row["limit_bytes"].as_u64(), "{row}: {:?}", memory_line(pid));
    }
    Ok(())
}

/// What only a group can enforce is refused by name.
fn refused_without_groups(world: &World) -> Check {
    for key in ["cpus: 0.5", "pids_limit: 50", "memswap_limit: 128m"] {
        world.write(&format!("services: {{ api: {{ command: [@work, sleep], mem_limit: 64m, {key} }} }}"));
        let answer = world.tell(&["up"]);
        ensure!(answer.code == Some(2), "{key}: {answer:?}");
        let name = key.split(':').next().unwrap_or_default();
        ensure!(answer.err.contains(name) && answer.err.contains("watchdog"), "{key}: {}", answer.err);
    }
    Ok(())
}

/// How many processes the kernel has killed in a group, by its own counter.
fn oom_kills(pid: i32) -> Option<u64> {
    let group = group_of(pid, "memory")?;
    let text = std::fs::read_to_string(group.join("memory.oom_control"))
        .or_else(|_| std::fs::read_to_string(group.join("memory.events")));
    text.ok()?.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// A service that meets its line is named, certified and started again; its neighbours do not notice.
pub(super) fn oom_at_its_own_line(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  leaky:
    command: [sh, -c, "echo begun; if [ -e $DIR/once ]; then exec $ME work sleep; fi; touch $DIR/once; exec $ME work hog --bytes 400m --rate 200m"]
    mem_limit: 48m
    restart: on-failure:3
  neighbour: { command: [@work, sleepers, --count, "2"], mem_limit: 48m }
"#,
        &[("neighbour", 1)],
    )?;
    let before = (world.pid("neighbour", 1)?, world.rows().len());
    let ended = world.wait_event("ended", "leaky")?;
    ensure!(ended["cause"] == "memory_limit" && ended["oom_kills"].as_u64() >= Some(1), "{ended}");
    world.until("it runs again", |world| world.events_of("started", "leaky").len() == 2)?;
    world.wait_state("leaky", 1, "running")?;
    let row = world.row("leaky", 1);
    ensure!(row["restarts"] == 1 && row["attempt"] == 1 && row["max_attempts"] == 3, "{row}");
    ensure!(row["oom_kills"].as_u64() >= Some(1) && row["last_cause"] == "memory_limit", "{row}");
    let table = world.done(&["status"])?;
    ensure!(table.contains("1/3"), "{table}");
    ensure!(table.lines().all(|line| line.chars().count() <= 80), "wider than 80 columns: {table}");
    ensure!((world.pid("neighbour", 1)?, world.rows().len()) == before, "the neighbour noticed: {}", world.story());
    if world.tier != Tier::Watchdog {
        ensure!(oom_kills(before.0) == Some(0), "in the neighbour's group: {:?}", oom_kills(before.0));
    }
    let certificate = world.explain("leaky")?;
    ensure!(certificate["cause"] == "memory_limit" && certificate["confidence"] == "certain", "{certificate}");
    ensure!(certificate["memory"]["limit_bytes"] == 48 * MIB, "{certificate}");
    ensure!(
        certificate["memory"]["largest"][0]["command"].as_str().is_some_and(|c| c.contains("hog")),
        "{certificate}"
    );
    // Our own lines stand between the service's, in the order in which it happened.
    let log = world.done(&["logs", "leaky"])?;
    let marks = ["| begun", "* OOM-killed", "* restarting", "* restarting, attempt 1/3", "* started", "| begun"];
    let mut lines = log.lines().skip_while(|line| !line.contains("| begun"));
    for mark in marks {
        ensure!(lines.any(|line| line.contains(mark)), "no `{mark}` where it belongs in:\n{log}");
    }
    Ok(())
}

/// The tool dies and its agent lives.
pub(super) fn on_limit_largest_keeps_the_root(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  agent:
    command: [sh, -c, "$ME work root-heavy --root-bytes 56m --bytes 500m; echo went on; exec $ME work sleep"]
    mem_limit: 96m
    on_limit: largest
"#,
        &[("agent", 1)],
    )?;
    let pid = world.pid("agent", 1)?;
    world.until("its tool was killed", |world| world.log("agent").contains("| went on"))?;
    ensure!(world.pid("agent", 1)? == pid, "the root was restarted");
    ensure!(world.events_of("ended", "agent").is_empty(), "{}", world.story());
    if world.tier != Tier::Watchdog {
        ensure!(oom_kills(pid) >= Some(1), "{:?}", oom_kills(pid));
    }
    world.until("the kill is counted", |world| world.row("agent", 1)["oom_kills"].as_u64() >= Some(1))?;
    Ok(())
}

/// Close to its line a workload is told by its file and asked by a signal, and told again when it has let go.
pub(super) fn stage_file_and_a_signal_under_pressure(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  api:
    command: [@work, hold, --bytes, 60m]
    mem_limit: 64m
    on_pressure: { signal: SIGUSR1 }
  calm: { command: [@work, sleep], mem_limit: 64m }
"#,
        &[("calm", 1)],
    )?;
    world.until("it was asked", |world| world.log("api").contains("let go"))?;
    let pid = world.pid("api", 1)?;
    let file = environment(pid, "PLIMSOLL_STAGE_FILE");
    ensure!(!file.is_empty(), "PLIMSOLL_STAGE_FILE is not set");
    let read = || -> Value {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    };
    let told = world.events_of("tree_stage", "api");
    let up = told.iter().any(|row| matches!(row["to"].as_str(), Some("degrade" | "shed")));
    ensure!(up, "no event: {told:?}");
    // It stays for ten seconds: what swings around a mark is told once.
    let stage = read();
    ensure!(matches!(stage["stage"].as_str(), Some("degrade" | "shed")), "{file}: {stage}");
    ensure!(stage["scale"].as_f64() < Some(1.0) && stage["since"].is_string(), "{stage}");
    ensure!(world.row("calm", 1)["stage"] == "normal", "{}", world.row("calm", 1));
    world.until("it is told that it is over", |_| read()["stage"] == "normal")?;
    ensure!(world.row("api", 1)["pid"] == pid, "it was restarted");
    Ok(())
}

/// A command of `on_pressure` runs with the stage in its environment, in the service's own group.
pub(super) fn a_hook_under_pressure(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 512m }
services:
  api:
    command: [@work, hold, --bytes, 60m]
    mem_limit: 64m
    on_pressure: { command: [sh, -c, "echo $$PLIMSOLL_STAGE $$PLIMSOLL_SERVICE >>$DIR/hook; cat /proc/self/cgroup >$DIR/where"] }
"#,
        &[("api", 1)],
    )?;
    world.until("the hook ran", |world| !world.text("where").is_empty())?;
    let line = world.lines("hook").first().cloned().unwrap_or_default();
    ensure!(line == "degrade api" || line == "shed api", "{line:?}");
    if world.tier == Tier::Watchdog {
        return Ok(());
    }
    let group = group_of(world.pid("api", 1)?, "memory").unwrap_or_default();
    let name = group.file_name().unwrap_or_default().to_string_lossy().into_owned();
    ensure!(world.text("where").contains(&name), "{} and {group:?}", world.text("where"));
    Ok(())
}

/// When all together come to the budget, the best-effort one goes, and nobody else.
pub(super) fn best_effort_goes_when_the_budget_is_short(world: &mut World) -> Check {
    world.up_with(
        r#"
budget: { memory: 200m }
services:
  best: { command: [@work, hold, --bytes, 60m], mem_limit: 128m, mem_reservation: 20m, priority: best-effort, restart: always }
  first: { command: [@work, hold, --bytes, 90m], mem_limit: 160m, mem_reservation: 90m, priority: critical }
  grows:
    command: [@work, hold, --bytes, 10m, --from, $DIR/go, --until, $DIR/enough, --rate, 10m]
    mem_limit: 128m
    mem_reservation: 20m
"#,
        &[("best", 1), ("first", 1), ("grows", 1)],
    )?;
    let before = [world.pid("first", 1)?, world.pid("grows", 1)?];
    // What comes faster than the looks is the kernel's: growth begins when they have seen what is held.
    world.until("it is seen what they hold", |world| {
        world.status().unwrap_or_default()["budget"]["used_bytes"].as_u64() >= Some(155 * MIB)
    })?;
    std::fs::write(world.path("go"), "").map_err(|error| error.to_string())?;
    let evicted = world.wait_event("evicted", "best");
    std::fs::write(world.path("enough"), "").map_err(|error| error.to_string())?;
    let evicted = evicted?;
    ensure!(evicted["budget_bytes"] == 200 * MIB, "{evicted}");
    let ended = world.wait_event("ended", "best")?;
    ensure!(ended["cause"] == "evicted", "{ended}");
    world.until("what it held is accounted for", |world| !world.events_of("accounted", "best").is_empty())?;
    ensure!([world.pid("first", 1)?, world.pid("grows", 1)?] == before, "{}", world.story());
    let is_clean = |pid: &i32| world.tier == Tier::Watchdog || oom_kills(*pid) == Some(0);
    ensure!(before.iter().all(is_clean), "the kernel killed");
    ensure!(world.explain("best")?["cause"] == "evicted", "{}", world.explain("best")?);
    ensure!(world.row("best", 1)["pid"].is_null(), "it is back at once: {}", world.row("best", 1));
    Ok(())
}

/// A server that keeps what it is sent.
fn hook_server() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let shared = heard.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (mut text, mut buffer) = (String::new(), [0; 4096]);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
            while !text.ends_with('}') {
                match stream.read(&mut buffer) {
                    Ok(count) if count > 0 => text.push_str(&String::from_utf8_lossy(&buffer[..count])),
                    _ => break,
                }
            }
            let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n");
            shared.lock().expect("the list").push(text);
        }
    });
    (port, heard)
}

/// An alert that fires runs a command with the event and posts it, once.
pub(super) fn alerts_reach_a_command_and_a_server(world: &mut World) -> Check {
    let (port, heard) = hook_server();
    let yaml = r#"
budget: { memory: 512m }
alerts:
  - { when: "service api memory > 50%", command: [sh, -c, 'echo "$$PLIMSOLL_EVENT" >>$DIR/alert'] }
  - { when: "service api rss > 20m", webhook: "http://127.0.0.1:PORT/hook" }
  - { when: "service api rss > 20m", webhook: "http://127.0.0.1:1/nobody" }
  - { when: "service api rss > 60m", command: [sh, -c, 'echo never >>$DIR/never'] }
services:
  api: { command: [@work, hold, --bytes, 40m], mem_limit: 64m }
"#;
    world.up_with(&yaml.replace("PORT", &port.to_string()), &[("api", 1)])?;
    world.until("the command ran", |world| world.text("alert").ends_with("}\n"))?;
    world.until("the server was told", |_| !heard.lock().expect("the list").is_empty())?;
    let event: Value = serde_json::from_str(world.text("alert").trim()).map_err(|error| error.to_string())?;
    ensure!(event["event"] == "alert_firing" && event["alert"] == "service api memory > 50%", "{event}");
    ensure!(event["value"].as_f64() > Some(50.0) && event["threshold"] == 50.0, "{event}");
    let posted = heard.lock().expect("the list").clone();
    ensure!(posted[0].starts_with("POST /hook HTTP/1.1\r\n"), "{posted:?}");
    let body: Value = serde_json::from_str(posted[0].rsplit("\r\n").next().unwrap_or_default()).unwrap_or_default();
    ensure!(body["event"] == "alert_firing" && body["alert"] == "service api rss > 20m", "{posted:?}");
    world.until("the one that nobody took is told", |world| world.said().contains("127.0.0.1:1/nobody"))?;
    let firing = world.status().unwrap_or_default()["alerts"].as_array().map_or(0, Vec::len);
    ensure!(firing == 3, "{firing} alerts fire");
    // Further looks tell nothing anew.
    std::thread::sleep(Duration::from_millis(1500));
    ensure!(world.lines("alert").len() == 1 && heard.lock().expect("the list").len() == 1, "told again");
    ensure!(world.text("never").is_empty(), "the one that does not hold was told");
    Ok(())
}
