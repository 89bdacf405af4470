//! What agents say: three protocols, and what is none of them.

use serde_json::Value;

use super::scene::{Scene, refused, said, words};
use crate::harness::Tier;
use crate::stack::world::{Check, ensure};

const TEXT: &str = "caf\u{e9} \u{1f600} \"quoted\" \\ <b>html</b> and more of it";

/// A stream's words are those of the answer in one piece; its last event is the end.
fn streams_as_it_answers(scene: &Scene) -> Check {
    let whole = scene.say("a", &format!("!deltas 7\n{TEXT}"))?;
    ensure!(whole == format!("echo: {TEXT}"), "{whole}");
    let events = scene.client.stream("b", &format!("!deltas 7\n!pace 20ms\n{TEXT}"))?.events()?;
    ensure!(words(&events) == whole, "{:?}", words(&events));
    ensure!(events.last() == Some(&Value::from("[DONE]")), "{:?}", events.last());
    let with_words = events.iter().filter(|event| event["choices"][0]["delta"]["content"].is_string()).count();
    ensure!(with_words >= 5, "{with_words} parts: it was not streamed");
    let ended = events.iter().filter(|event| event["choices"][0]["finish_reason"] == "stop").count();
    ensure!(ended == 1, "{ended} ends");
    Ok(())
}

pub(super) fn the_words_of_claude(scene: &mut Scene) -> Check {
    scene.up_with("claude", "", "max_sessions: 2, ", 2)?;
    streams_as_it_answers(scene)?;
    // It asks whether it may use a tool, and gets an answer.
    let tool = scene.say("a", "!tool\nx")?;
    ensure!(tool.starts_with("tool: ") && tool != "tool: no answer", "{tool}");
    let failed = refused(&scene.client.ask(Some("a"), "!error out of credits\nx")?, 502)?;
    ensure!(failed.contains("out of credits"), "{failed}");
    ensure!(scene.say("a", "x")? == "echo: x", "no answer after one that failed");
    Ok(())
}

pub(super) fn the_words_of_jsonl(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", ", --ids", "max_sessions: 2, ", 2)?;
    streams_as_it_answers(scene)?;
    let one = scene.process("a")?;
    let failed = refused(&scene.client.ask(Some("a"), "!error out of credits\nx")?, 502)?;
    ensure!(failed.contains("out of credits"), "{failed}");
    // What fails in good order costs no process.
    ensure!(scene.process("a")? == one, "it was replaced");
    Ok(())
}

/// `exec`: the prompt on its input, the answer on its output, and its end is the end.
pub(super) fn a_process_a_turn(scene: &mut Scene) -> Check {
    scene.up_with("exec", "", "max_sessions: 2, ", 2)?;
    streams_as_it_answers(scene)?;
    let pids = [scene.say("a", "pid")?, scene.say("c", "pid")?];
    ensure!(pids[0].trim() != pids[1].trim(), "{pids:?}");
    let failed = refused(&scene.client.ask(Some("d"), "!exit 3\nx")?, 502)?;
    ensure!(failed.contains('3') || failed.contains("without an answer"), "{failed}");
    scene.until_pool("all are gone", |pool| pool["sessions"] == 0)?;
    ensure!(scene.world.everybody().is_empty(), "left: {:?}", scene.world.everybody());
    Ok(())
}

/// Garbage, every byte there is, a long line, a second answer: none of it reaches whoever asks.
pub(super) fn whatever_is_no_word_is_skipped(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", ", --ids", "max_sessions: 1, mem_limit: 128m, max_line: 8m, ", 1)?;
    let one = scene.process("a")?;
    for deed in ["!garbage", "!binary", "!line 5m", "!twice", "!late"] {
        let answer = scene.say("a", &format!("{deed}\nwords"))?;
        ensure!(answer == "echo: words", "{deed}: {answer:?}");
        let answer = scene.say("a", "and then")?;
        ensure!(answer == "echo: and then", "after {deed}: {answer:?}");
    }
    ensure!(scene.process("a")? == one, "it was replaced");
    Ok(())
}

pub(super) fn a_line_that_is_too_long(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, mem_limit: 128m, max_line: 1m, ", 1)?;
    let one = scene.process("a")?;
    let why = refused(&scene.client.ask(Some("a"), "!line 5m\nx")?, 502)?;
    ensure!(why.contains("line"), "{why}");
    let other = scene.process("a")?;
    ensure!(other != one && !one.is_alive(), "{one:?} then {other:?}");
    Ok(())
}

/// At once, in the middle of its answer, with its output closed: told, and the conversation goes on elsewhere.
pub(super) fn an_agent_that_ends_within_its_turn(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, first_byte_timeout: 3s, stop_grace_period: 1s, ", 1)?;
    for deed in ["!exit 3", "!cut 3", "!close", "!child hold\n!exit 0"] {
        let one = scene.process("a")?;
        // Where a run of its own keeps it, that holds the output, too: its silence is what is seen.
        let is_unseen = deed == "!close" && scene.world.tier == Tier::Watchdog;
        let status = if is_unseen { 504 } else { 502 };
        let why = refused(&scene.client.ask(Some("a"), &format!("{deed}\nx"))?, status)?;
        ensure!(!why.is_empty(), "{deed}: no reason");
        let other = scene.process("a")?;
        ensure!(other != one && !one.is_alive(), "{deed}: {one:?} then {other:?}");
    }
    let events = scene.client.stream("a", "!deltas 3\n!cut 3\nabcdef")?.events()?;
    let last = events.last().cloned().unwrap_or_default();
    ensure!(last["error"]["message"].is_string() && !words(&events).is_empty(), "{events:?}");
    said(&scene.client.ask(Some("a"), "x")?).map(drop)
}
