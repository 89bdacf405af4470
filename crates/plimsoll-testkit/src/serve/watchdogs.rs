//! What takes too long: each is interrupted, its session replaced, and both are told. And starts that fail.

use std::time::Duration;

use plimsoll_kernel::clock::Instant;

use super::scene::{POOL, Scene, refused};
use crate::stack::world::{Check, ensure};

/// A turn of `question` is stopped with 504, its session replaced by `why`, and the conversation goes on without it.
fn is_stopped(scene: &mut Scene, words: &str, keys: &str, question: &str, why: &str) -> Check {
    scene.up_with("jsonl", words, &format!("max_sessions: 1, stop_grace_period: 1s, {keys}"), 1)?;
    let one = scene.process("a")?;
    let message = refused(&scene.client.ask(Some("a"), question)?, 504)?;
    ensure!(message.contains(why), "the reason is not told: {message}");
    let told = scene.world.wait_event("interrupted", POOL)?;
    ensure!(told["why"].as_str().is_some_and(|words| words.contains(why)), "{told}");
    let closed = scene.wait_closed(why)?;
    ensure!(closed["is_recycled"] == true && closed["key"] == "a", "{closed}");
    ensure!(!one.is_alive(), "{} lives", one.pid);
    ensure!(scene.process("a")? != one, "the same process");
    Ok(())
}

/// An agent that is never ready: whoever waits is told so at last.
pub(super) fn a_start_that_takes_too_long(scene: &mut Scene) -> Check {
    scene.up_with("claude", ", --start, \"!hang\"", "max_sessions: 1, start_timeout: 500ms, ", 1)?;
    refused(&scene.client.ask(Some("a"), "x")?, 503)?;
    let closed = scene.wait_closed("it was not ready")?;
    ensure!(closed["is_recycled"] == true && closed["turns"] == 0, "{closed}");
    scene.world.wait_event("circuit_opened", POOL)?;
    Ok(())
}

pub(super) fn a_first_byte_that_does_not_come(scene: &mut Scene) -> Check {
    is_stopped(scene, "", "first_byte_timeout: 700ms, ", "!sleep 60s\nx", "nothing of an answer")
}

/// It does not even hear that it is interrupted.
pub(super) fn an_agent_that_hears_nothing(scene: &mut Scene) -> Check {
    is_stopped(scene, "", "first_byte_timeout: 700ms, ", "!child hold\n!hang\nx", "nothing of an answer")
}

pub(super) fn an_answer_that_stalls(scene: &mut Scene) -> Check {
    is_stopped(scene, "", "stall_timeout: 1500ms, ", "!pace 60s\n!deltas 3\nabcdef", "nothing more of its answer")
}

/// Its words come, and do not end. A stream that has begun says so in its last event.
pub(super) fn a_turn_that_takes_too_long(scene: &mut Scene) -> Check {
    let question = format!("!pace 200ms\n!deltas 500\n{}", "words ".repeat(200));
    is_stopped(scene, "", "turn_timeout: 1500ms, ", &question, "its turn was not over")?;
    let events = scene.client.stream("a", &question)?.events()?;
    let last = events.last().cloned().unwrap_or_default();
    ensure!(last["error"]["message"].as_str().is_some_and(|why| why.contains("not over")), "{last}");
    ensure!(!super::scene::words(&events).is_empty(), "nothing came before");
    Ok(())
}

pub(super) fn script(scene: &Scene, text: &str) {
    let new = scene.world.path("script.new");
    std::fs::write(&new, text).expect("a file");
    std::fs::rename(new, scene.world.path("script.json")).expect("a file");
}

/// Starts fail again and again: whoever asks is told so at once, health says it, and once they succeed all is well again.
pub(super) fn the_circuit_opens_and_closes_by_itself(scene: &mut Scene) -> Check {
    script(scene, r#"{"start": ["!exit 7"]}"#);
    scene.up_with("claude", ", --script, $DIR/script.json", "max_sessions: 2, ", 2)?;
    refused(&scene.client.ask(Some("a"), "x")?, 503)?;
    scene.until_pool("the circuit is open", |pool| pool["circuit"] == "open")?;
    let began = Instant::now();
    for _ in 0..10 {
        refused(&scene.client.ask(Some("a"), "x")?, 503)?;
    }
    ensure!(began.elapsed() < Duration::from_secs(3), "ten refusals took {:?}", began.elapsed());
    let (status, health) = scene.client.health()?;
    ensure!(status == 503, "every circuit is open: {status} {health}");
    ensure!(health["status"] != "ok" && health["recovery_attempts"].as_u64() > Some(0), "{health}");
    script(scene, "{}");
    scene.until_pool("the circuit is closed", |pool| pool["circuit"] == "closed")?;
    scene.world.wait_event("circuit_closed", POOL)?;
    ensure!(scene.say("a", "x")? == "echo: x", "no answer");
    let (status, health) = scene.client.health()?;
    ensure!(status == 200 && health["recovery_attempts"] == 0, "{status} {health}");
    Ok(())
}

/// Without a word for "ready": a warm process that ends as soon as it runs: started again with pauses, and nobody's turn is given to it for ever.
pub(super) fn an_agent_that_only_ends_is_not_started_for_ever(scene: &mut Scene) -> Check {
    script(scene, r#"{"start": ["!exit 7"]}"#);
    scene.up_with("jsonl", ", --script, $DIR/script.json", "max_sessions: 1, warm: 1, ", 2)?;
    scene.until_pool("the circuit is open", |pool| pool["circuit"] == "open")?;
    let starts = |scene: &Scene| scene.world.events_of("starting", POOL).len();
    let before = starts(scene);
    std::thread::sleep(Duration::from_secs(3));
    ensure!(starts(scene) <= before + 2, "{} starts in three seconds", starts(scene) - before);
    // It may be asked in the moment in which a trial runs.
    let denied = (0..3).any(|_| scene.client.ask(None, "x").is_ok_and(|reply| refused(&reply, 503).is_ok()));
    ensure!(denied, "nobody is told that it does not start");
    script(scene, "{}");
    scene.until_pool("one is warm", |pool| pool["warm"] == 1 && pool["failed_starts"] == 0)?;
    ensure!(scene.say("a", "x")? == "echo: x", "no answer");
    Ok(())
}

/// Silent in their first turn, each of them, and long after their start: told at once from the fifth room on; one room alone
/// closes the pool for nobody.
pub(super) fn agents_that_end_in_each_first_turn(scene: &mut Scene) -> Check {
    script(scene, r#"{"every": ["!sleep 700ms", "!exit 7"]}"#);
    scene.up_with("jsonl", ", --script, $DIR/script.json", "max_sessions: 1, ", 1)?;
    for _ in 0..6 {
        refused(&scene.client.ask(Some("a"), "x")?, 502)?;
    }
    for room in ["b", "c", "d", "e"] {
        scene.until_pool("the circuit is closed", |pool| pool["circuit"] == "closed" && pool["failed_starts"] == 0)?;
        refused(&scene.client.ask(Some(room), "x")?, 502)?;
    }
    scene.until_pool("the circuit is open", |pool| pool["circuit"] == "open" && pool["failed_starts"] == 5)?;
    refused(&scene.client.ask(Some("f"), "x")?, 503)?;
    script(scene, "{}");
    // That it starts says nothing: it has to answer.
    scene.until_pool("a trial is there", |pool| pool["warm"] == 1 && pool["circuit"] == "open")?;
    ensure!(scene.say("f", "x")? == "echo: x", "no answer");
    scene.until_pool("the circuit is closed", |pool| pool["circuit"] == "closed")?;
    Ok(())
}
