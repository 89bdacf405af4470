//! What people and their requests see: public ports, replicas, new files, refusals.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::world::{Check, World, command_line, ensure};
use crate::http;

/// A port that nobody has at this moment.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// Clients that ask again and again.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    pub(crate) fn start(port: u16, clients: usize) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let client = |_| {
            let (stop, answered) = (stop.clone(), answered.clone());
            std::thread::spawn(move || {
                let mut failures = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match http::get(&format!("http://127.0.0.1:{port}/pid")) {
                        Ok((200, _)) => drop(answered.fetch_add(1, Ordering::Relaxed)),
                        Ok((status, body)) => failures.push(format!("{status} {body}")),
                        Err(error) => failures.push(error.to_string()),
                    }
                }
                failures
            })
        };
        let clients = (0..clients).map(client).collect();
        Self { stop, answered, clients }
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends it: what was not answered.
    pub(crate) fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|client| client.join().expect("a client")).collect()
    }
}

const WEB: &str = r#"
budget: { memory: 512m }
services:
  web:
    command: [@work, serve, --port, "${PORT}"]
    healthcheck: { test: [CMD, @work, get, "http://127.0.0.1:${PORT}/health"], interval: 300ms, timeout: 30s, retries: 100, start_period: 60s }
    listen: LISTEN
    mem_limit: 64m
    restart: always
    deploy: { replicas: REPLICAS }
"#;

fn web(port: u16, replicas: u32) -> String {
    WEB.replace("LISTEN", &port.to_string()).replace("REPLICAS", &replicas.to_string())
}

/// Several requests that take their time, begun together: their statuses.
fn slow(port: u16, count: usize, ms: u64) -> Vec<JoinHandle<String>> {
    let one = |_| {
        std::thread::spawn(move || match http::get(&format!("http://127.0.0.1:{port}/slow/{ms}")) {
            Ok((status, body)) => format!("{status} {body}"),
            Err(error) => error.to_string(),
        })
    };
    (0..count).map(one).collect()
}

/// One of three replicas meets its line: the others and their clients do not notice.
pub(super) fn an_oom_costs_no_request(world: &mut World) -> Check {
    let port = free_port();
    world.up_with(&web(port, 3), &[("web", 1), ("web", 2), ("web", 3)])?;
    let before = [world.pid("web", 1)?, world.pid("web", 3)?];
    let load = Load::start(port, 4);
    let checked = oom_under_load(world, &load);
    let failures = load.end();
    checked?;
    ensure!(failures.is_empty(), "{} requests were not answered: {:?}", failures.len(), failures.first());
    ensure!([world.pid("web", 1)?, world.pid("web", 3)?] == before, "{}", world.story());
    Ok(())
}

fn oom_under_load(world: &World, load: &Load) -> Check {
    world.until("requests are answered", |_| load.answered() > 40)?;
    let port = world.row("web", 2)["port"].as_u64().ok_or("no port")?;
    let answer = http::get(&format!("http://127.0.0.1:{port}/grow"));
    ensure!(answer.is_err(), "it did not die: {answer:?}");
    let ended = world.wait_event("ended", "web")?;
    ensure!(ended["replica"] == 2 && ended["cause"] == "memory_limit", "{ended}");
    world.wait_state("web", 2, "running")?;
    let so_far = load.answered();
    world.until("requests go on", |_| load.answered() > so_far + 40)
}

/// The only replica is killed, and later replaced on request: whoever asks meanwhile waits for the next one.
pub(super) fn the_end_of_the_only_one_costs_no_request(world: &mut World) -> Check {
    let port = free_port();
    // Nobody is up yet: whoever asks now waits as well.
    world.write(&web(port, 1));
    world.up()?;
    world.until("the port is open", |_| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    let load = Load::start(port, 4);
    let checked = ends_under_load(world, &load);
    let failures = load.end();
    checked?;
    ensure!(failures.is_empty(), "{} requests were not answered: {:?}", failures.len(), failures.first());
    Ok(())
}

fn ends_under_load(world: &World, load: &Load) -> Check {
    world.wait_state("web", 1, "running")?;
    let another = |old: i32| {
        world.until("another one runs", |world| {
            world.row("web", 1)["state"] == "running" && world.pid("web", 1).is_ok_and(|pid| pid != old)
        })?;
        let so_far = load.answered();
        world.until("requests go on", |_| load.answered() > so_far + 40)
    };
    another(0)?;
    for _ in 0..3 {
        let old = world.pid("web", 1)?;
        world.send(old, 9)?;
        another(old)?;
    }
    let old = world.pid("web", 1)?;
    world.done(&["restart", "web"])?;
    another(old)
}

/// More replicas, then fewer: what they were asked before is answered.
pub(super) fn scale_out_and_in(world: &mut World) -> Check {
    let port = free_port();
    world.up_with(&web(port, 1), &[("web", 1)])?;
    world.done(&["scale", "web=3"])?;
    ensure!(world.rows().len() == 3 && world.rows().iter().all(|row| row["state"] == "running"), "{}", world.story());
    ensure!(world.held() == 3, "{} are held", world.held());
    let pids = |answers: &[String]| {
        let mut pids: Vec<String> = answers.iter().map(|one| one.replace("200 ", "")).collect();
        pids.sort();
        pids.dedup();
        pids
    };
    // Those that run at once are spread over all of them.
    let answers: Vec<String> = slow(port, 6, 500).into_iter().map(|one| one.join().expect("a client")).collect();
    ensure!(answers.iter().all(|one| one.starts_with("200 ")) && pids(&answers).len() == 3, "{answers:?}");
    let first = world.pid("web", 1)?;
    let waiting = slow(port, 6, 2500);
    std::thread::sleep(Duration::from_millis(700));
    world.done(&["scale", "web=1"])?;
    let answers: Vec<String> = waiting.into_iter().map(|one| one.join().expect("a client")).collect();
    ensure!(answers.iter().all(|one| one.starts_with("200 ")), "{answers:?}");
    world.until("one is left", |world| world.rows().len() == 1 && world.held() == 1)?;
    ensure!(world.pid("web", 1)? == first, "{}", world.story());
    let tree: Vec<i32> = world.tree("web", 1)?.iter().map(|process| process.pid).collect();
    let strangers: Vec<i32> = world.workers().into_iter().filter(|pid| !tree.contains(pid)).collect();
    // A health test that was just begun, or has just ended, is none.
    ensure!(strangers.iter().all(|&pid| !command_line(pid).contains("serve")), "{strangers:?}");
    let refused = world.tell(&["scale", "web=100000"]);
    ensure!(refused.code == Some(1) && refused.err.contains("web"), "{refused:?}");
    Ok(())
}

/// A public port that somebody else has: the services run, it is told, and it opens once it is free.
pub(super) fn a_port_that_is_taken(world: &mut World) -> Check {
    let other = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let port = other.local_addr().map_err(|error| error.to_string())?.port();
    world.up_with(&web(port, 1), &[("web", 1)])?;
    world.until("it is told", |world| world.said().contains("the port of web"))?;
    let pid = world.pid("web", 1)?;
    drop(other);
    world.until("it opens", |_| {
        http::get(&format!("http://127.0.0.1:{port}/pid")).is_ok_and(|(status, _)| status == 200)
    })?;
    ensure!(world.pid("web", 1)? == pid, "it was restarted");
    world.until("that is told, too", |world| world.said().contains("all is well again"))?;
    // And when it is all over the port is free again.
    world.down()?;
    world.until("the port is free", |_| TcpListener::bind(("127.0.0.1", port)).is_ok())
}

/// `up` again, or SIGHUP: what did not change is not touched.
pub(super) fn reload_touches_what_changed(world: &mut World) -> Check {
    let yaml = |extra: &str, color: &str, priority: &str| {
        format!(
            r#"
budget: {{ memory: 512m }}
services:
  same: {{ command: [@work, sleep], mem_limit: 64m, priority: {priority} }}
  changed: {{ command: [@work, sleep], mem_limit: 64m, environment: {{ COLOR: {color} }} }}
  {extra}: {{ command: [@work, sleep], mem_limit: 64m }}
"#
        )
    };
    world.up_with(&yaml("old", "red", "normal"), &[("same", 1), ("changed", 1), ("old", 1)])?;
    let (same, changed) = (world.pid("same", 1)?, world.pid("changed", 1)?);
    ensure!(world.done(&["up"])?.contains("no service has changed"), "an unchanged file");
    world.write(&yaml("new", "blue", "normal"));
    let said = world.done(&["up"])?;
    for line in ["added: new", "replaced: changed", "removed: old"] {
        ensure!(said.contains(line), "no `{line}`: {said}");
    }
    world.until("it is so", |world| {
        let pids = [world.row("same", 1)["pid"].clone(), world.row("changed", 1)["pid"].clone()];
        world.row("new", 1)["state"] == "running"
            && world.row("old", 1).is_null()
            && pids[0] == same
            && pids[1] != changed
            && world.row("changed", 1)["state"] == "running"
    })?;
    let color = std::fs::read(format!("/proc/{}/environ", world.pid("changed", 1)?)).unwrap_or_default();
    ensure!(String::from_utf8_lossy(&color).contains("COLOR=blue"), "the old environment");
    world.until("the old one is gone", |world| world.held() == 3 && world.workers().len() == 3)?;
    // By the signal, and to the guard, whom a user knows.
    let pids = [world.pid("changed", 1)?, world.pid("new", 1)?];
    world.write(&yaml("new", "blue", "best-effort"));
    let loads = world.events().iter().filter(|row| row["event"] == "loaded").count();
    world.send(world.guard_pid(), 1)?;
    world.until("the signal was heard", |world| {
        world.events().iter().filter(|row| row["event"] == "loaded").count() > loads
    })?;
    ensure!(
        [world.pid("changed", 1)?, world.pid("new", 1)?] == pids && world.pid("same", 1)? == same,
        "{}",
        world.story()
    );
    // Only what that takes: a priority needs no restart.
    ensure!(world.events_of("started", "same").len() == 1, "{}", world.story());
    Ok(())
}

/// A file with mistakes changes nothing, whoever brings it.
pub(super) fn an_invalid_file_changes_nothing(world: &mut World) -> Check {
    world.up_with("services: { one: { command: [@work, sleep], mem_limit: 64m } }", &[("one", 1)])?;
    let pid = world.pid("one", 1)?;
    world.write(
        "services: { one: { command: [@work, sleep], mem_limt: 32m }, two: { command: [x], depends_on: [three] } }",
    );
    let again = world.tell(&["up"]);
    ensure!(again.code == Some(2), "{again:?}");
    ensure!(again.err.contains("`mem_limit`") && again.err.contains("`three`"), "not all mistakes: {}", again.err);
    world.send(world.guard_pid(), 1)?;
    world.until("the signal's file is told", |world| world.said().contains("nothing is changed"))?;
    std::fs::remove_file(world.path("plimsoll.yaml")).map_err(|error| error.to_string())?;
    let count = world.said().matches("nothing is changed").count();
    world.send(world.guard_pid(), 1)?;
    world.until("no file is told, too", |world| world.said().matches("nothing is changed").count() > count)?;
    ensure!(world.pid("one", 1)? == pid && world.rows().len() == 1, "{}", world.story());
    Ok(())
}

/// What cannot come true is refused before anything starts, with what and by how much.
pub(super) fn what_cannot_be_is_refused(world: &mut World) -> Check {
    let cases: &[(&str, &[&str])] = &[
        (
            "budget: { memory: 64m }\nservices: { big: { command: [x], mem_reservation: 128m } }",
            &["big", "128 MiB", "64 MiB"],
        ),
        (
            "budget: { memory: 100m }\nservices: { one: { command: [x], mem_reservation: 60m }, two: { command: [x], mem_reservation: 70m } }",
            &["130 MiB", "100 MiB", "30 MiB", "one", "two"],
        ),
        (
            "services: { a: { command: [x], depends_on: [b] }, b: { command: [x], depends_on: [a] } }",
            &["circle", "a", "b"],
        ),
        ("services: { a: { command: [x], depends_on: [c] } }", &["`c`"]),
        ("services: { a: { command: [x], memlimit: 1g } }", &["memlimit", "mem_limit"]),
        ("services: { a: { command: [x], restart: perhaps } }", &["perhaps"]),
        ("services: [", &["plimsoll.yaml"]),
        (
            "strict: true\nbudget: { memory: 64m }\nservices: { a: { command: [x], mem_limit: 100m } }",
            &["100 MiB", "64 MiB"],
        ),
    ];
    for (yaml, words) in cases {
        world.write(yaml);
        let answer = world.tell(&["up"]);
        ensure!(answer.code == Some(2), "{yaml}: {answer:?}");
        for word in *words {
            ensure!(answer.err.contains(word), "{yaml}: the message lacks `{word}`: {}", answer.err);
        }
    }
    let empty = world.tell(&["up", "-f", "nowhere.yaml"]);
    ensure!(empty.code == Some(2) && empty.err.contains("nowhere.yaml"), "{empty:?}");
    ensure!(!world.path("run").exists() && !world.path("state").exists(), "directories were made");
    for verb in [&["down"][..], &["status"], &["restart", "x"], &["logs"]] {
        let answer = world.tell(verb);
        ensure!(answer.code == Some(1) && answer.err.contains("plimsoll up"), "{verb:?}: {answer:?}");
    }
    // A limit of this machine's: no such parent.
    world.write("services: { a: { command: [x] } }");
    let mut up = world.verb(&["up"]);
    up.env("PLIMSOLL_CGROUP_PARENT", "/plimsoll-no-such-parent");
    let answer = world.run(up);
    ensure!(answer.code == Some(1) && answer.err.contains("plimsoll-no-such-parent"), "{answer:?}");
    Ok(())
}

/// `restart` of a service behind a port: one replica after the other, and nobody waits.
pub(super) fn restart_one_after_the_other(world: &mut World) -> Check {
    let port = free_port();
    world.up_with(&web(port, 2).replace("mem_limit", "min_available: 1\n    mem_limit"), &[("web", 1), ("web", 2)])?;
    let before: Vec<i64> = world.rows().iter().filter_map(|row| row["pid"].as_i64()).collect();
    let load = Load::start(port, 3);
    let restarted = world
        .until("requests are answered", |_| load.answered() > 20)
        .and_then(|()| world.done(&["restart", "web"]).map(drop));
    let so_far = load.answered();
    let went_on = world.until("requests go on", |_| load.answered() > so_far + 20);
    let failures = load.end();
    restarted?;
    went_on?;
    ensure!(failures.is_empty(), "{} requests were not answered: {:?}", failures.len(), failures.first());
    let after: Vec<i64> = world.rows().iter().filter_map(|row| row["pid"].as_i64()).collect();
    ensure!(after.len() == 2 && !after.iter().any(|pid| before.contains(pid)), "{before:?} then {after:?}");
    let refused = world.tell(&["restart", "nobody"]);
    ensure!(refused.code == Some(1) && refused.err.contains("nobody"), "{refused:?}");
    Ok(())
}
