//! How a conversation goes on in a new process: what its agent takes up by itself, what it is told, and what is forgotten.

use std::path::PathBuf;

use plimsoll_kernel::procfs::Process;
use serde_json::json;

use super::scene::{POOL, Scene, said};
use crate::stack::world::{Check, World, ensure};

/// What begins a history that was told.
const TOLD: &str = "<conversation>";

/// Whether a process was started to take its conversation up again.
fn is_resumed(one: Process) -> Result<bool, String> {
    let words = std::fs::read(format!("/proc/{}/cmdline", one.pid)).map_err(|error| error.to_string())?;
    Ok(words.split(|&byte| byte == 0).any(|word| word.starts_with(b"--resume=")))
}

fn starts(world: &World) -> usize {
    world.events_of("started", POOL).len()
}

/// The folder in which what the agent keeps of the only conversation stands.
fn kept(scene: &Scene) -> Result<PathBuf, String> {
    let folders = std::fs::read_dir(scene.world.path("state/agents")).map_err(|error| error.to_string())?;
    let all: Vec<PathBuf> = folders.flatten().map(|entry| entry.path().join("projects")).collect();
    match &all[..] {
        [one] if one.exists() => Ok(one.clone()),
        other => Err(format!("{other:?}, which is not the transcripts of one conversation")),
    }
}

/// Its first process is replaced; the next one takes the conversation up and is not told the old words. A process that waits
/// for anybody is not used for it, and another conversation knows nothing of it.
pub(super) fn an_agent_takes_its_conversation_up_again(scene: &mut Scene) -> Check {
    scene.up_with("claude", "", "max_sessions: 2, warm: 1, max_turns: 2, ", 3)?;
    let one = scene.process("a")?;
    ensure!(!is_resumed(one)?, "nothing was there to be taken up");
    scene.say("a", "first words")?;
    let mut before = vec![one];
    let mut wanted = "pid | first words".to_owned();
    for round in 0..3 {
        let two = scene.process("a")?;
        ensure!(is_resumed(two)? && !before.contains(&two), "round {round}: {two:?} after {before:?}");
        ensure!(before.iter().all(|old| !old.is_alive()), "round {round}: two processes of one conversation");
        before.push(two);
        let history = scene.say("a", "history")?;
        wanted += " | pid | history";
        ensure!(history == wanted, "round {round}: {history:?}, not {wanted:?}");
    }
    ensure!(scene.say("b", "history")? == "history", "another conversation knows of it");
    // What is kept is ours alone, and the next one's transcripts are its user's.
    let folder = scene.world.path("state/agents").display().to_string();
    let read = scene.say("b", &format!("!read {folder}"))?;
    ensure!(read.starts_with("cannot read: "), "{read}");
    Ok(())
}

/// SIGKILL for the supervisor in the middle of a turn: the transcript was in the session's home, and is taken up by the next
/// life.
pub(super) fn a_transcript_outlives_the_supervisor(scene: &mut Scene) -> Check {
    scene.up_with("claude", "", "max_sessions: 2, ", 2)?;
    scene.say("a", "first words")?;
    let one = scene.process("a")?;
    scene.end_count()?;
    scene.world.kill_supervisor()?;
    ensure!(!one.is_alive(), "{} lives", one.pid);
    scene.up(2)?;
    let history = scene.say("a", "history")?;
    ensure!(history == "first words | pid | history", "{history}");
    ensure!(is_resumed(scene.process("a")?)?, "it was told");
    Ok(())
}

/// What the agent kept is gone: the conversation is told instead, by the only process that is started for it.
pub(super) fn a_transcript_that_is_lost(scene: &mut Scene) -> Check {
    scene.up_with("claude", "", "max_sessions: 1, idle_ttl: 500ms, ", 1)?;
    scene.say("a", "first words")?;
    scene.wait_closed("idle for")?;
    std::fs::remove_dir_all(kept(scene)?).map_err(|error| error.to_string())?;
    let before = starts(&scene.world);
    let history = scene.say("a", "history")?;
    ensure!(history.starts_with(TOLD) && history.contains("first words"), "{history}");
    ensure!(starts(&scene.world) == before + 1, "more than one start: {}", scene.world.story());
    Ok(())
}

/// An agent that does not find what it was to take up ends: the turn waits on, its conversation is told to the next process,
/// and no circuit opens, however often.
pub(super) fn an_agent_that_does_not_find_it(scene: &mut Scene) -> Check {
    refuses(scene, "")
}

/// The same, where it says so only when it is asked.
pub(super) fn an_agent_that_does_not_find_it_when_asked(scene: &mut Scene) -> Check {
    refuses(scene, ", --late-refusal")
}

fn refuses(scene: &mut Scene, words: &str) -> Check {
    scene.up_with("claude", words, "max_sessions: 1, max_turns: 1, ", 1)?;
    scene.say("a", "first words")?;
    for round in 1..7usize {
        scene.until_pool("it is gone", |pool| pool["sessions"] == 0)?;
        // Its transcripts are those of another folder's now.
        let kept = kept(scene)?;
        let folder = std::fs::read_dir(&kept).ok().and_then(|mut all| all.next()?.ok()).ok_or("no transcripts")?;
        std::fs::rename(folder.path(), kept.join("-elsewhere")).map_err(|error| error.to_string())?;
        let before = starts(&scene.world);
        let history = scene.say("a", "history")?;
        ensure!(history.starts_with(TOLD) && history.contains("first words"), "round {round}: {history}");
        ensure!(starts(&scene.world) == before + 2, "round {round}: {}", scene.world.story());
    }
    ensure!(scene.world.events_of("circuit_opened", POOL).is_empty(), "the circuit opened: {}", scene.world.story());
    Ok(())
}

/// `rehydrate: replay`: no agent is asked to take anything up.
pub(super) fn a_conversation_is_told(scene: &mut Scene) -> Check {
    scene.up_with("claude", "", "max_sessions: 1, max_turns: 2, rehydrate: replay, ", 1)?;
    scene.say("a", "first words")?;
    scene.say("a", "more words")?;
    ensure!(!is_resumed(scene.process("a")?)?, "it was started to take it up");
    let history = scene.say("a", "history")?;
    ensure!(history.starts_with(TOLD) && history.contains("echo: first words"), "{history}");
    ensure!(!scene.world.path("state/agents").exists(), "something is kept of agents that are not asked for it");
    Ok(())
}

/// `rehydrate: none`: the next process knows nothing of what was said, but for what the client itself says again.
pub(super) fn a_conversation_is_forgotten(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, max_turns: 2, rehydrate: none, ", 1)?;
    scene.say("a", "first words")?;
    ensure!(scene.say("a", "history")? == "first words | history", "its own process has forgotten");
    ensure!(scene.say("a", "history")? == "history", "the next one has been told");
    ensure!(scene.say("a", "history")? == "history | history", "it was told twice, or has forgotten");
    let user = |text: &str| json!({"role": "user", "content": text});
    let messages = [user("my own words"), json!({"role": "assistant", "content": "yes"}), user("history")];
    let body = json!({"model": POOL, "messages": messages}).to_string();
    let answer = said(&scene.client.post(&[("x-session-id", "a")], body.as_bytes())?)?;
    ensure!(answer == "my own words | yes | history", "{answer}");
    Ok(())
}
