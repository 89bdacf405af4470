//! More who ask than sessions: an order, an end of patience, and words for those that are refused.

use std::time::Duration;

use plimsoll_kernel::clock::Instant;

use super::scene::{Scene, joined, refused, said};
use crate::stack::world::{Check, ensure};

/// One place, and several that want it: first come, first served.
pub(super) fn who_waits_is_served_in_order(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, ", 1)?;
    let mut askers = vec![scene.client.later(Some("k0"), "!sleep 1s\n0")];
    scene.until_pool("it runs", |pool| pool["busy"] == 1)?;
    for number in 1..5 {
        // Conversations, and requests of none among them.
        let key = (number != 3).then(|| format!("k{number}"));
        askers.push(scene.client.later(key.as_deref(), &format!("!sleep 100ms\n{number}")));
        scene.until_pool("it waits", |pool| pool["queued"] == number)?;
    }
    for (number, asker) in askers.into_iter().enumerate() {
        ensure!(said(&joined(asker)?)? == format!("echo: {number}"), "{number}");
    }
    let rows = scene.world.events_of("session_closed", super::scene::POOL);
    let order: Vec<&str> = rows.iter().map(|row| row["key"].as_str().unwrap_or("-")).collect();
    ensure!(order.starts_with(&["k0", "k1", "k2", "-"]), "{order:?}");
    Ok(())
}

/// As many wait as may: one more is refused at once, and told when to come again.
pub(super) fn one_more_than_may_wait(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, queue: { max: 2, timeout: 60s }, ", 1)?;
    let first = scene.client.later(Some("a"), "!sleep 3s\nx");
    scene.until_pool("it runs", |pool| pool["busy"] == 1)?;
    let second = scene.client.later(Some("b"), "x");
    scene.until_pool("one waits", |pool| pool["queued"] == 1)?;
    let third = scene.client.later(Some("a"), "y");
    scene.until_pool("two wait", |pool| pool["queued"] == 2)?;
    let began = Instant::now();
    for key in [Some("c"), Some("a"), None] {
        refused(&scene.client.ask(key, "x")?, 429)?;
    }
    ensure!(began.elapsed() < Duration::from_secs(2), "a refusal took {:?}", began.elapsed());
    for asker in [first, second, third] {
        said(&joined(asker)?)?;
    }
    ensure!(scene.pool()["refused"] == 3, "{}", scene.pool());
    Ok(())
}

/// Nobody waits for longer than the file says.
pub(super) fn who_waits_for_too_long(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, queue: { max: 9, timeout: 1s }, ", 1)?;
    let first = scene.client.later(Some("a"), "!sleep 4s\nx");
    scene.until_pool("it runs", |pool| pool["busy"] == 1)?;
    let began = Instant::now();
    refused(&scene.client.ask(Some("b"), "x")?, 429)?;
    let waited = began.elapsed();
    ensure!(waited >= Duration::from_millis(900) && waited < Duration::from_millis(3500), "it waited {waited:?}");
    said(&joined(first)?)?;
    said(&scene.client.ask(Some("b"), "x")?).map(drop)
}
