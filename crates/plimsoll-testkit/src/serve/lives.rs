//! A session's life: how long a conversation keeps its process, why that is replaced, and that nothing is left of it.

use std::collections::BTreeSet;
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::procfs::Process;

use super::scene::{POOL, Scene, joined, refused, said};
use crate::harness::Tier;
use crate::http;
use crate::stack::world::{Check, ensure};

/// The same key, the same process; other keys have others, at the same time.
pub(super) fn a_conversation_keeps_its_process(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 2, ", 2)?;
    let (one, other) = (scene.process("a")?, scene.process("b")?);
    ensure!(one != other, "two conversations share {}", one.pid);
    ensure!(scene.process("a")? == one && scene.process("b")? == other, "a process was replaced");
    let (a, b) = (scene.client.later(Some("a"), "!sleep 1s\nx"), scene.client.later(Some("b"), "!sleep 1s\ny"));
    scene.until_pool("both are busy", |pool| pool["busy"] == 2)?;
    ensure!(said(&joined(a)?)? == "echo: x" && said(&joined(b)?)? == "echo: y", "answers were mixed");
    ensure!(scene.say("a", "turns")? == "4", "a turn was taken twice, or by another");
    // Each was told of its own conversation alone.
    ensure!(scene.say("b", "history")? == "pid | pid | !sleep 1s\ny | history", "{}", scene.say("b", "history")?);
    let children: Vec<i32> = scene.sessions().iter().filter_map(|row| row["pid"].as_i64()).map(|p| p as i32).collect();
    ensure!(children.contains(&one.pid) && children.contains(&other.pid), "{children:?}: other roots");
    // The next plimsoll here has to find them: what a session's environment says of directories is not what counts.
    let kept = if scene.world.tier == Tier::Watchdog { 2 } else { 0 };
    let runs = std::fs::read_dir(scene.world.path("run/runs")).into_iter().flatten().flatten();
    let names: Vec<String> = runs.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let registered = names.iter().filter(|name| name.ends_with(".json")).count();
    ensure!(registered == 1 + kept, "the stack and {kept} runs that keep sessions: {names:?}");
    Ok(())
}

/// Five turns at once: one after the other, in the order in which they came.
pub(super) fn turns_of_a_conversation_are_in_order(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 3, ", 3)?;
    let mut askers = Vec::new();
    for number in 0..5u64 {
        askers.push(scene.client.later(Some("a"), &format!("!sleep 200ms\nturn {number}")));
        // It has come when it waits; the first one does not.
        scene.until_pool("it has come", |pool| {
            let taken = pool["turns"].as_u64().unwrap_or(0) + pool["busy"].as_u64().unwrap_or(0);
            taken + pool["queued"].as_u64().unwrap_or(0) > number
        })?;
    }
    for (number, asker) in askers.into_iter().enumerate() {
        let answer = said(&joined(asker)?)?;
        ensure!(answer == format!("echo: turn {number}"), "{number}: {answer}");
    }
    let history = scene.say("a", "history")?;
    let told: Vec<&str> = history.split(" | ").collect();
    let wanted: Vec<String> = (0..5).map(|number| format!("!sleep 200ms\nturn {number}")).collect();
    ensure!(told[..told.len() - 1] == wanted, "{history}");
    ensure!(scene.world.events_of("started", POOL).len() == 1, "more than one process");
    Ok(())
}

/// Nobody asks for a while: the session goes, its conversation does not.
pub(super) fn idle_sessions_are_closed(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, idle_ttl: 1s, ", 1)?;
    let one = scene.process("a")?;
    let closed = scene.wait_closed("idle for")?;
    ensure!(!one.is_alive(), "{} lives", one.pid);
    ensure!(closed["key"] == "a" && closed["is_recycled"] == false && closed["turns"] == 1, "{closed}");
    ensure!(scene.world.everybody().is_empty() && scene.world.held() == 0, "something is left");
    let history = scene.say("a", "history")?;
    ensure!(history == format!("pid | {} | history", one.pid), "{history}");
    Ok(())
}

/// Asks for the process again until it is another one: that, once the old one is gone.
fn another(scene: &Scene, old: Process) -> Result<Process, String> {
    let new = scene.process("a")?;
    ensure!(new != old, "{} was not replaced", old.pid);
    ensure!(!old.is_alive(), "{} lives", old.pid);
    Ok(new)
}

/// After so many turns another process goes on, and knows what was said.
pub(super) fn max_turns_recycles(scene: &mut Scene) -> Check {
    // Long enough to be seen by whoever counts.
    scene.up_with("jsonl", ", --every, \"!sleep 20ms\"", "max_sessions: 1, max_turns: 2, ", 1)?;
    let mut all: Vec<Process> = Vec::new();
    for round in 0..4 {
        let one = scene.process("a")?;
        ensure!(all.iter().all(|old| *old != one && !old.is_alive()), "round {round}: {one:?} after {all:?}");
        let history = scene.say("a", "history")?;
        let lacking = all.iter().find(|old| !history.contains(&format!("pid | {} | history", old.pid)));
        ensure!(lacking.is_none(), "round {round}: no word of {lacking:?}: {history}");
        all.push(one);
    }
    scene.until_pool("the last one is gone", |pool| pool["recycled"] == 4)?;
    let closed = scene.wait_closed("2 turns")?;
    ensure!(closed["is_recycled"] == true && closed["key"] == "a", "{closed}");
    Ok(())
}

/// Not all are replaced after the same number of turns: some come up to two earlier.
pub(super) fn max_turns_differ(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, max_turns: 4, max_turns_jitter: 2, ", 1)?;
    for _ in 0..32 {
        scene.say("a", "x")?;
    }
    let rows = scene.world.events_of("session_closed", POOL);
    let turns: BTreeSet<u64> = rows.iter().filter_map(|row| row["turns"].as_u64()).collect();
    ensure!(rows.len() >= 7 && turns.iter().all(|turns| (2..=4).contains(turns)), "{turns:?}");
    ensure!(turns.len() > 1, "all alike: {rows:?}");
    Ok(())
}

/// The process is replaced when so much of its model's context is used, as the agent tells it.
pub(super) fn max_context_recycles(scene: &mut Scene) -> Check {
    for protocol in ["jsonl", "claude"] {
        scene.up_with(protocol, ", --window, \"1000\"", "max_sessions: 1, max_context: 80%, ", 1)?;
        let one = scene.process("a")?;
        ensure!(scene.process("a")? == one, "{protocol}: it was replaced at once");
        scene.say("a", &"word ".repeat(1000))?;
        let closed = scene.wait_closed("context")?;
        ensure!(closed["is_recycled"] == true && closed["key"] == "a", "{protocol}: {closed}");
        // What it is told anew may be too much again.
        ensure!(!one.is_alive() && scene.say("a", "x")? == "echo: x", "{protocol}: it did not go on");
        scene.end_count()?;
        scene.world.down()?;
        let _ = std::fs::remove_dir_all(scene.world.path("state"));
    }
    Ok(())
}

/// It holds too much after its turn: it is replaced, and the row says what that gave.
pub(super) fn recycle_above_after_a_turn(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, mem_limit: 128m, recycle_above: 48m, ", 1)?;
    let one = scene.process("a")?;
    scene.say("a", "!leak 64m\nx")?;
    let closed = scene.wait_closed("after its turn it held")?;
    let bytes = |name: &str| closed[name].as_u64().unwrap_or(0);
    ensure!(bytes("before_bytes") > 64 << 20 && bytes("freed_bytes") > 64 << 20, "{closed}");
    ensure!(bytes("before_bytes") - bytes("after_bytes") == bytes("freed_bytes"), "{closed}");
    another(scene, one)?;
    let history = scene.say("a", "history")?;
    ensure!(history.contains("!leak 64m\nx | echo: x"), "{history}");
    Ok(())
}

/// It is too old: it goes, even if nobody asks.
pub(super) fn max_age_recycles(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, max_age: 1500ms, ", 1)?;
    let one = scene.process("a")?;
    let closed = scene.wait_closed("old")?;
    ensure!(closed["is_recycled"] == true, "{closed}");
    another(scene, one)?;
    Ok(())
}

/// Over its line everything of it goes, whoever asked is told why, and the next turn finds another process.
pub(super) fn the_hard_line(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 2, mem_limit: 64m, ", 2)?;
    let (one, other) = (scene.process("a")?, scene.process("b")?);
    let why = refused(&scene.client.ask(Some("a"), "!child\n!leak 256m\nx")?, 502)?;
    ensure!(why.contains("line") || why.contains("memory"), "the cause is not told: {why}");
    let ended = scene.world.wait_event("ended", POOL)?;
    ensure!(ended["cause"] == "memory_limit", "{ended}");
    another(scene, one)?;
    ensure!(scene.process("b")? == other, "the other one was replaced");
    // What was not answered was not said.
    let history = scene.say("a", "history")?;
    ensure!(!history.contains("!leak"), "{history}");
    Ok(())
}

/// A child that left the session and holds the output open goes with it, and nothing waits for it.
pub(super) fn children_go_with_their_session(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, max_turns: 1, ", 1)?;
    for _ in 0..2 {
        let pid = scene.say("a", "!child hold\nchildren")?;
        let child = pid.parse().ok().and_then(|pid| Process::of(pid).ok());
        let began = Instant::now();
        // It goes with its first turn, too: only its pid can be had.
        let another = scene.say("a", "pid")?;
        ensure!(child.is_none_or(|child| !child.is_alive()), "{pid} lives beside {another}");
        // Far less than the grace of five seconds, twice.
        ensure!(began.elapsed() < Duration::from_secs(8), "{:?} passed", began.elapsed());
    }
    scene.until_pool("all are gone", |pool| pool["recycled"] == 4)?;
    ensure!(scene.world.everybody().is_empty(), "{:?}", scene.world.everybody());
    Ok(())
}

/// Neither the end of its input nor SIGTERM ends it: SIGKILL does, after the grace.
pub(super) fn whoever_ignores_everything_is_ended(scene: &mut Scene) -> Check {
    let words = ", --start, \"!ignore-eof\", --start, \"!ignore-term\"";
    scene.up_with("jsonl", words, "max_sessions: 1, max_turns: 1, stop_grace_period: 1s, ", 1)?;
    let one = scene.process("a")?;
    let began = Instant::now();
    another(scene, one)?;
    ensure!(began.elapsed() < Duration::from_secs(20), "{:?} passed", began.elapsed());
    scene.until_pool("both are gone", |pool| pool["recycled"] == 2)?;
    let killed = scene.world.events_of("killing", POOL);
    ensure!(!killed.is_empty(), "nobody was killed: {}", scene.world.story());
    Ok(())
}

/// `DELETE /api/v1/sessions/KEY`: it goes, and its conversation may go on.
pub(super) fn closed_on_request(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 2, ", 2)?;
    let one = scene.process("a b")?;
    let socket = scene.world.path("run/control.sock");
    let asked = |key: &str| http::ask_socket(&socket, "DELETE", &format!("/api/v1/sessions/{key}"));
    let (status, body) = asked("a%20b").map_err(|error| error.to_string())?;
    ensure!((200..300).contains(&status), "{status} {body}");
    let closed = scene.wait_closed("stopped on request")?;
    ensure!(closed["key"] == "a b" && !one.is_alive(), "{closed}");
    let (status, _) = asked("nobody").map_err(|error| error.to_string())?;
    ensure!(status < 500, "an unknown key: {status}");
    ensure!(scene.process("a b")? != one, "the same process");
    Ok(())
}

/// SIGKILL for the supervisor in the middle of a turn: everything is gone; after `up` the conversation goes on.
pub(super) fn a_conversation_outlives_the_supervisor(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 2, ", 2)?;
    let said_before = scene.say("a", "remember this")?;
    let one = scene.process("a")?;
    let asker = scene.client.later(Some("a"), "!child hold\n!sleep 60s\nnever answered");
    scene.until_pool("the turn runs", |pool| pool["busy"] == 1)?;
    scene.end_count()?;
    scene.world.kill_supervisor()?;
    ensure!(!one.is_alive(), "{} lives", one.pid);
    let answer = joined(asker);
    ensure!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(|reply| reply.status >= 500), "{answer:?}");
    scene.up(2)?;
    let history = scene.say("a", "history")?;
    let wanted = format!("remember this | {said_before} | pid | {} | history", one.pid);
    ensure!(history == wanted, "{history}");
    Ok(())
}
