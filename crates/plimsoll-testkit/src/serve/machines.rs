//! Several machines that serve the same pools, with a real Redis between them. A machine is a `plimsoll up` with directories
//! and a port of its own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use plimsoll_kernel::signal;
use serde_json::json;

use super::rooms::{self, Posted, hook};
use super::scene::{Client, POOL, Scene, joined, refused, said};
use crate::harness::{Random, command, eventually};
use crate::http;
use crate::stack::doors::free_port;
use crate::stack::world::{Check, ensure};

/// The program, which not every guest has.
const SERVER: &str = "redis-server";

/// A server that loses nothing that it acknowledged.
struct Redis {
    dir: PathBuf,
    port: u16,
    server: Child,
}

impl Redis {
    fn start(dir: PathBuf) -> Result<Self, String> {
        std::fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        let port = free_port();
        let server = serve(&dir, port)?;
        let redis = Self { dir, port, server };
        redis.wait()?;
        Ok(redis)
    }

    fn wait(&self) -> Check {
        ensure!(eventually(|| self.answers()), "{SERVER} does not answer");
        Ok(())
    }

    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let mut answer = [0; 5];
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut answer).is_ok() && &answer == b"+PONG"
    }

    fn kill(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }

    fn restart(&mut self) -> Check {
        self.server = serve(&self.dir, self.port)?;
        self.wait()
    }

    fn send(&self, number: i32) -> Check {
        signal::send(self.server.id() as i32, number).map_err(|error| error.to_string())
    }

    fn pause(&self) -> Check {
        self.send(19)
    }

    fn go_on(&self) -> Check {
        self.send(18)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn serve(dir: &PathBuf, port: u16) -> Result<Child, String> {
    let mut server = command(SERVER);
    server.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    server.args(["--appendonly", "yes", "--appendfsync", "always"]);
    server.arg("--dir").arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    server.spawn().map_err(|error| format!("{SERVER}: {error}"))
}

/// Two machines and what is between them.
struct Two<'s> {
    one: &'s mut Scene,
    other: Scene,
    redis: Redis,
}

impl<'s> Two<'s> {
    /// `None` where there is no Redis to be had.
    fn up(one: &'s mut Scene, gateway: &str, most: usize) -> Result<Option<Self>, String> {
        let is_there = command(SERVER).arg("--version").stdout(Stdio::null()).status().is_ok();
        if !is_there && one.is_guest {
            one.world.leave_out("there is no redis-server in this guest")?;
            return Ok(None);
        }
        let redis = Redis::start(one.world.path("redis"))?;
        let mut other = one.another();
        for scene in [&mut *one, &mut other] {
            scene.top = format!("redis: redis://127.0.0.1:{}\n", redis.port);
            scene.write_with("jsonl", "", &format!("max_sessions: {most}, "), gateway);
            scene.up(most)?;
        }
        Ok(Some(Self { one, other, redis }))
    }

    fn both(&self) -> [Client; 2] {
        [self.one.client, self.other.client]
    }

    /// The other machine is no case of its own: what holds of each in the end is looked at here.
    fn end(mut self) -> Check {
        self.other.end_count()?;
        if self.other.world.is_up() {
            self.other.no_survivors()?;
            self.other.world.down()?;
        }
        self.other.world.clean()?;
        self.other.world.audit()?;
        self.other.world.end();
        let _ = std::fs::remove_dir_all(&self.other.world.dir);
        Ok(())
    }
}

/// Runs a case with two machines, with further keys of `gateway:`; whatever comes of it, the second one is ended.
fn with_two(scene: &mut Scene, gateway: &str, most: usize, case: impl FnOnce(&mut Two<'_>) -> Check) -> Check {
    let Some(mut two) = Two::up(scene, gateway, most)? else { return Ok(()) };
    let ran = case(&mut two);
    if ran.is_err() {
        two.other.world.end();
        return ran;
    }
    two.end()
}

/// A request that says that it is sent again.
fn again(client: Client, key: &str, text: &str) -> Result<http::Reply, String> {
    client.post(&[("x-session-id", key), ("x-stainless-retry-count", "1")], &Client::body(text, false))
}

/// All that was said in a conversation: its process is closed first, since only a new one is told what it said itself.
fn whole(scene: &Scene, key: &str) -> Result<String, String> {
    let path = format!("/api/v1/sessions/{key}");
    let closed = http::ask_socket(&scene.world.path("run/control.sock"), "DELETE", &path);
    ensure!(closed.as_ref().is_ok_and(|(status, _)| (200..300).contains(status)), "{closed:?}");
    scene.say(key, "history")
}

/// A conversation goes on at whichever machine, turns that come at the same time one after the other; nothing is told twice.
pub(super) fn any_machine_takes_any_turn(scene: &mut Scene) -> Check {
    with_two(scene, "", 3, |two| {
        let [one, other] = two.both();
        let mut wanted = Vec::new();
        for (number, client) in [one, other, other, one, other].into_iter().enumerate() {
            let text = format!("word {number}");
            ensure!(said(&client.ask(Some("a"), &text)?)? == format!("echo: {text}"), "turn {number}");
            wanted.extend([text.clone(), format!("echo: {text}")]);
        }
        // The process that has it here was not told what was said there, and is replaced.
        let history = said(&one.ask(Some("a"), "history")?)?;
        ensure!(history == format!("{} | history", wanted.join(" | ")), "{history}");
        // A client that repeats all it knows goes on as well.
        let messages: Vec<_> = wanted
            .iter()
            .enumerate()
            .map(|(at, text)| json!({"role": if at % 2 == 0 { "user" } else { "assistant" }, "content": text}))
            .chain([
                json!({"role": "user", "content": "history"}),
                json!({"role": "assistant", "content": history}),
                json!({"role": "user", "content": "turns"}),
            ])
            .collect();
        let body = json!({"model": POOL, "messages": messages}).to_string();
        let turns = said(&other.post(&[("x-session-id", "a")], body.as_bytes())?)?;
        ensure!(turns == "1", "the stale process took a turn, or two began: {turns}");
        // Both are asked at the same time.
        let askers: Vec<_> =
            (0..12).map(|number| two.both()[number % 2].later(Some("b"), &format!("n{number}"))).collect();
        for (number, asker) in askers.into_iter().enumerate() {
            let answer = said(&joined(asker)?)?;
            ensure!(answer == format!("echo: n{number}"), "{number}: {answer}");
        }
        let history = whole(&two.other, "b")?;
        let told: Vec<&str> = history.split(" | ").collect();
        ensure!(told.len() == 25, "{history}");
        for pair in told[..24].chunks(2) {
            ensure!(pair[1] == format!("echo: {}", pair[0]), "mixed: {history}");
        }
        // A message of a room is answered by one of them.
        let message = json!({
            "user": {"id": 7, "name": "Ann"}, "room": {"id": 5, "name": "All"},
            "message": {"id": 77, "body": {"plain": "hello there"}},
        });
        let hook = |client: Client, message: &serde_json::Value| {
            let body = message.to_string();
            http::post(client.port, &format!("/webhook/{POOL}"), &[], body.as_bytes())
                .map_err(|error| error.to_string())
        };
        let (first, second) = (hook(one, &message)?, hook(other, &message)?);
        ensure!(first.status == 200 && first.text() == "echo: hello there", "{first:?}");
        ensure!(second.status == 204 && second.body.is_empty(), "{second:?}");
        let echo = rooms::message(78, 5, "echo: hello there");
        let third = hook(other, &echo)?;
        ensure!(third.status == 204, "what we said ourselves: {third:?}");
        Ok(())
    })
}

/// The same request again, at the other machine, while the first one runs and after it: the agent is asked once.
pub(super) fn who_asks_again_elsewhere_is_answered_once(scene: &mut Scene) -> Check {
    with_two(scene, "", 2, |two| {
        let [one, other] = two.both();
        let question = "!sleep 2s\npid";
        let first = one.later(Some("a"), question);
        two.one.until_pool("it runs", |pool| pool["busy"] == 1)?;
        let second = said(&again(other, "a", question)?)?;
        let first = said(&joined(first)?)?;
        ensure!(first == second, "{first} and {second} answered");
        ensure!(said(&again(other, "a", question)?)? == first, "another answer");
        ensure!(two.other.world.events_of("started", POOL).is_empty(), "a process was started for it");
        let history = said(&other.ask(Some("a"), "history")?)?;
        ensure!(history == format!("{question} | {first} | history"), "{history}");
        Ok(())
    })
}

/// SIGKILL for all of one machine within a turn: soon the other one goes on, with all that was answered.
pub(super) fn a_machine_that_dies_loses_its_leases(scene: &mut Scene) -> Check {
    with_two(scene, "", 2, |two| {
        let [one, other] = two.both();
        said(&one.ask(Some("a"), "remember this")?)?;
        let lost = one.later(Some("a"), "!sleep 60s\nnever answered");
        two.one.until_pool("it runs", |pool| pool["busy"] == 1)?;
        two.one.end_count()?;
        two.one.world.kill_both()?;
        // It waits until the lease is over; one that never ended would have it refused by the queue's time.
        let history = said(&other.ask(Some("a"), "history")?)?;
        ensure!(history == "remember this | echo: remember this | history", "{history}");
        let lost = joined(lost);
        ensure!(lost.as_ref().map_or(true, |reply| reply.status != 200), "{lost:?}");
        // It comes back, and is one of two again.
        two.one.up(2)?;
        let turns = said(&one.ask(Some("a"), "history")?)?;
        ensure!(turns.ends_with(&format!("{history} | history")), "{turns}");
        Ok(())
    })
}

/// A machine dies after it has acknowledged a room's messages: the other one answers them, in their order, each once.
pub(super) fn what_was_acknowledged_is_answered(scene: &mut Scene) -> Check {
    let posted = Posted::default();
    let campfire = format!(", campfire: {{ base_url: \"http://127.0.0.1:{}\" }}", rooms::server(posted.clone())?);
    with_two(scene, &campfire, 2, |two| {
        let [one, other] = two.both();
        let all = || posted.lock().expect("a list").clone();
        let path = "/rooms/1/9-s3cretKEY/messages";
        let say = |client, id, text: &str| {
            let mut message = rooms::message(id, 1, text);
            message["room"]["path"] = path.into();
            let reply = hook(client, &message)?;
            ensure!(reply.status == 204, "{reply:?}");
            Ok::<_, String>(())
        };
        say(one, 1, "first")?;
        ensure!(eventually(|| all().len() == 1), "{:?}", all());
        say(one, 2, "!sleep 4s\nsecond")?;
        say(one, 3, "third")?;
        two.one.until_pool("it runs", |pool| pool["busy"] == 1)?;
        two.one.end_count()?;
        two.one.world.kill_both()?;
        ensure!(eventually(|| all().len() >= 3), "{:?}\n{}", all(), two.other.world.story());
        // Again, at the other machine: it was heard of.
        say(other, 3, "third")?;
        say(other, 4, "fourth")?;
        ensure!(eventually(|| all().len() >= 4), "{:?}", all());
        let wanted: Vec<_> =
            ["first", "second", "third", "fourth"].map(|text| (path.to_owned(), format!("echo: {text}"))).into();
        ensure!(all() == wanted, "{:?}", all());
        let told = two.other.world.said() + &two.other.world.text("state/events.jsonl") + &two.other.world.log(POOL);
        ensure!(!told.contains("s3cretKEY"), "the room's key is told");
        Ok(())
    })
}

/// One machine stands still within a turn for longer than its lease, and the other one goes on: what the first one's agent
/// says is not answered, and not in the conversation.
pub(super) fn a_machine_that_slept(scene: &mut Scene) -> Check {
    with_two(scene, "", 2, |two| {
        let [one, other] = two.both();
        said(&one.ask(Some("a"), "remember this")?)?;
        let late = one.later(Some("a"), "!sleep 2s\ntoo late");
        two.one.until_pool("it runs", |pool| pool["busy"] == 1)?;
        two.one.world.send(two.one.world.supervisor_pid(), 19)?;
        let history = other.ask(Some("a"), "history");
        two.one.world.send(two.one.world.supervisor_pid(), 18)?;
        let history = said(&history?)?;
        ensure!(history == "remember this | echo: remember this | history", "{history}");
        let why = refused(&joined(late)?, 503)?;
        ensure!(why.contains("prove"), "{why}");
        let again = said(&one.ask(Some("a"), "history")?)?;
        ensure!(again == format!("{history} | {history} | history"), "{again}");
        Ok(())
    })
}

/// SIGKILL for Redis: conversations are refused and why is told, what runs is answered once it is back, nothing is lost.
pub(super) fn redis_is_killed(scene: &mut Scene) -> Check {
    with_two(scene, "", 3, |two| {
        let [one, other] = two.both();
        said(&one.ask(Some("a"), "remember this")?)?;
        let running = one.later(Some("a"), "!sleep 7s\nit ran meanwhile");
        two.one.until_pool("it runs", |pool| pool["busy"] == 1)?;
        two.redis.kill();
        let why = refused(&other.ask(Some("b"), "hello")?, 503)?;
        ensure!(why.contains("Redis"), "{why}");
        let is_told =
            |scene: &Scene| scene.world.status().is_some_and(|status| status["troubles"].to_string().contains("redis"));
        for scene in [&*two.one, &two.other] {
            ensure!(eventually(|| is_told(scene)), "no trouble is told: {:?}", scene.world.status());
            let (code, health) = scene.client.health()?;
            ensure!(code == 200 && health["status"] == "degraded", "{code} {health}");
        }
        // What belongs to no conversation needs no proof.
        ensure!(said(&other.ask(None, "alone")?)? == "echo: alone", "without a conversation");
        let schema = json!({
            "model": POOL, "response_format": {"type": "json_object"},
            "messages": [{"role": "user", "content": "!say {\"a\": 1}"}],
        });
        ensure!(said(&other.post(&[], schema.to_string().as_bytes())?)? == "{\"a\": 1}", "nor does one by a schema");
        two.redis.restart()?;
        ensure!(said(&joined(running)?)? == "echo: it ran meanwhile", "what ran was lost");
        let history = said(&other.ask(Some("a"), "history")?)?;
        let wanted =
            "remember this | echo: remember this | !sleep 7s\nit ran meanwhile | echo: it ran meanwhile | history";
        ensure!(history == wanted, "{history}");
        for scene in [&*two.one, &two.other] {
            ensure!(eventually(|| !is_told(scene)), "the trouble stays: {:?}", scene.world.status());
        }
        Ok(())
    })
}

/// Redis does not answer for longer than a lease: what runs is given up before another machine could have it. For a moment
/// only: nobody notices.
pub(super) fn redis_is_paused(scene: &mut Scene) -> Check {
    with_two(scene, "", 2, |two| {
        let [one, other] = two.both();
        said(&one.ask(Some("a"), "remember this")?)?;
        let running = one.later(Some("a"), "!sleep 4s\nfor a moment");
        two.one.until_pool("it runs", |pool| pool["busy"] == 1)?;
        two.redis.pause()?;
        std::thread::sleep(Duration::from_secs(2));
        two.redis.go_on()?;
        ensure!(said(&joined(running)?)? == "echo: for a moment", "a short pause was noticed");
        let running = one.later(Some("a"), "!sleep 60s\nfor too long");
        two.one.until_pool("it runs", |pool| pool["busy"] == 1)?;
        two.redis.pause()?;
        let why = refused(&joined(running)?, 503)?;
        ensure!(why.contains("prove"), "{why}");
        let gone = two.one.until_pool("its session is replaced", |pool| pool["busy"] == 0);
        two.redis.go_on()?;
        gone?;
        let history = said(&other.ask(Some("a"), "history")?)?;
        let wanted = "remember this | echo: remember this | !sleep 4s\nfor a moment | echo: for a moment | history";
        ensure!(history == wanted, "{history}");
        let again = said(&one.ask(Some("a"), "history")?)?;
        ensure!(again == format!("{wanted} | {history} | history"), "{again}");
        Ok(())
    })
}

/// What one client has asked, and which of it was answered.
struct Said {
    key: String,
    /// The question, and whether it was answered.
    turns: Vec<(String, bool)>,
}

/// Clients of conversations ask any machine, and ask again when they are refused, while Redis is paused and killed, and a
/// machine is: each answered turn is in its conversation once and in its order, no other's words are, and no turn twice.
pub(super) fn nothing_is_lost_or_mixed(scene: &mut Scene) -> Check {
    const CLIENTS: u64 = 4;
    const SEED: u64 = 20_261_128;
    with_two(scene, "", 6, |two| {
        let is_over = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (both, is_over) = (two.both(), is_over.clone());
                std::thread::spawn(move || talk(number, Random::new(SEED + number), both, &is_over))
            })
            .collect();
        let rest = |millis| std::thread::sleep(Duration::from_millis(millis));
        let mut disturb = || -> Check {
            rest(2000);
            two.redis.pause()?;
            rest(1500);
            two.redis.go_on()?;
            rest(1500);
            two.redis.kill();
            rest(1000);
            two.redis.restart()?;
            rest(2000);
            two.other.end_count()?;
            two.other.world.kill_both()?;
            rest(2000);
            two.other.up(6)?;
            rest(3000);
            two.redis.pause()?;
            rest(11_000);
            two.redis.go_on()?;
            rest(4000);
            Ok(())
        };
        let disturbed = disturb();
        is_over.store(true, Ordering::Relaxed);
        let _ = two.redis.go_on();
        let clients: Vec<Said> = clients.into_iter().filter_map(|client| client.join().ok()).collect();
        disturbed?;
        ensure!(clients.len() as u64 == CLIENTS, "a client broke off");
        let answered: usize = clients.iter().flat_map(|one| &one.turns).filter(|(_, is)| *is).count();
        let asked: usize = clients.iter().map(|one| one.turns.len()).sum();
        println!("  {asked} turns, {answered} of them answered, seed {SEED}");
        ensure!(answered > 20, "only {answered} of {asked} were answered");
        for one in clients {
            let history = whole(two.one, &one.key)?;
            let told: Vec<&str> = history.split(" | ").collect();
            ensure!(told.len() % 2 == 1, "half a turn: {history}");
            let mut kept = told[..told.len() - 1].chunks(2);
            for (question, is_answered) in &one.turns {
                // One that was not answered may be there, once, or not.
                let is_here = kept.clone().next().is_some_and(|pair| pair[0] == question);
                ensure!(is_here || !is_answered, "{question} was answered, and is not there: {history}");
                if is_here {
                    let pair = kept.next().unwrap_or_default();
                    ensure!(pair[1] == format!("echo: {question}"), "mixed: {pair:?}");
                }
            }
            ensure!(kept.next().is_none(), "more than was asked, or twice: {:?}", kept.collect::<Vec<_>>());
        }
        Ok(())
    })
}

/// Asks one thing after the other, each again until it is answered or time is up.
fn talk(number: u64, mut random: Random, both: [Client; 2], is_over: &AtomicBool) -> Said {
    let key = format!("client-{number}");
    let mut turns = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let question = format!("{key} asks {}", turns.len());
        let mut is_answered = false;
        let mut tries = 0;
        while !(is_answered || tries > 0 && is_over.load(Ordering::Relaxed)) {
            let client = both[random.below(2) as usize];
            let reply = if tries == 0 { client.ask(Some(&key), &question) } else { again(client, &key, &question) };
            tries += 1;
            is_answered = reply.is_ok_and(|reply| said(&reply).is_ok_and(|text| text == format!("echo: {question}")));
            std::thread::sleep(Duration::from_millis(30));
        }
        turns.push((question, is_answered));
    }
    Said { key, turns }
}
