//! Clients that go away, and those that ask again.

use super::scene::{Client, POOL, Scene, joined, said};
use crate::stack::world::{Check, World, ensure};

/// The connection is closed in the middle of a stream: the agent is interrupted, the session replaced.
pub(super) fn one_that_goes_away_cancels_its_turn(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, ", 1)?;
    let one = scene.process("a")?;
    let question = format!("!child hold\n!pace 200ms\n!deltas 500\n{}", "words ".repeat(200));
    let mut stream = scene.client.stream("a", &question)?;
    stream.until("\"wor\"")?;
    drop(stream);
    let closed = scene.wait_closed("whoever asked has gone")?;
    ensure!(closed["is_recycled"] == true && closed["key"] == "a" && !one.is_alive(), "{closed}");
    ensure!(scene.world.everybody().is_empty(), "left: {:?}", scene.world.everybody());
    let history = scene.say("a", "history")?;
    ensure!(!history.contains("words"), "a turn without an answer is remembered: {history}");
    // One that waits and goes away has nothing started for it.
    let busy = scene.client.later(Some("a"), "!sleep 4s\nx");
    scene.until_pool("it runs", |pool| pool["busy"] == 1)?;
    let waiting = scene.client.stream("b", "x")?;
    scene.until_pool("it waits", |pool| pool["queued"] == 1)?;
    drop(waiting);
    scene.until_pool("it waits no longer", |pool| pool["queued"] == 0)?;
    said(&joined(busy)?)?;
    let of_b = |world: &World| world.events_of("session_closed", POOL).iter().any(|row| row["key"] == "b");
    ensure!(!of_b(&scene.world) && scene.say("a", "turns")? == "3", "something ran for nobody");
    Ok(())
}

/// The same request again, said to be so, while the first one runs: the agent is asked once, and both are answered.
pub(super) fn one_that_asks_again_joins_the_turn(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 2, ", 2)?;
    let question = "!sleep 2s\nonce";
    let first = scene.client.later(Some("a"), question);
    scene.until_pool("it runs", |pool| pool["busy"] == 1)?;
    let again = [("x-session-id", "a"), ("x-stainless-retry-count", "1")];
    let body = Client::body(question, false);
    let second = scene.client.post(&again, &body)?;
    ensure!(said(&second)? == "echo: once" && said(&joined(first)?)? == "echo: once", "another answer");
    // And soon after it was answered as well.
    ensure!(said(&scene.client.post(&again, &body)?)? == "echo: once", "another answer");
    let history = scene.say("a", "history")?;
    ensure!(history == format!("{question} | history"), "{history}");
    // One whose first client went away finds its turn still running.
    let lost = scene.client.stream("b", "!sleep 3s\nfound")?;
    scene.until_pool("it runs", |pool| pool["busy"] == 1)?;
    drop(lost);
    let again = [("x-session-id", "b"), ("x-stainless-retry-count", "1")];
    let events = scene.client.post(&again, &Client::body("!sleep 3s\nfound", true))?;
    ensure!(events.status == 200 && events.text().contains("[DONE]"), "{events:?}");
    ensure!(scene.say("b", "turns")? == "2", "it was asked twice");
    Ok(())
}
