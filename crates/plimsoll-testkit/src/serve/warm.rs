//! Processes that are started ahead, and who may share one.

use plimsoll_kernel::procfs::Process;

use super::scene::{POOL, Scene, said};
use crate::stack::world::{Check, ensure};

/// The pid of the warm one.
fn warm(scene: &Scene) -> Result<i64, String> {
    scene.until_pool("one is warm", |pool| pool["warm"] == 1)?;
    let rows = scene.sessions();
    let pid = rows.iter().find(|row| row["state"] == "warm").and_then(|row| row["pid"].as_i64());
    pid.ok_or_else(|| format!("no warm one: {rows:?}"))
}

/// A new conversation gets the process that is ready, and another one is made ready.
pub(super) fn a_warm_session_is_taken_and_replaced(scene: &mut Scene) -> Check {
    // Its start takes so long that whoever waited for one would notice.
    scene.up_with("claude", ", --start, \"!sleep 1s\"", "max_sessions: 3, warm: 1, ", 4)?;
    for number in 0..3 {
        let ready = warm(scene)?;
        let answer = scene.say(&format!("k{number}"), "pid")?;
        ensure!(answer == ready.to_string(), "{answer} took it, and {ready} was ready");
    }
    let started = scene.world.events_of("started", POOL).len();
    ensure!((3..=4).contains(&started), "{started} starts for three sessions and one ahead");
    // Once all places are taken one more is still ahead.
    warm(scene)?;
    Ok(())
}

/// `reuse: session`: requests of no conversation have a process each, which is gone after that.
pub(super) fn no_process_is_shared_between_requests(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, warm: 1, ", 2)?;
    let mut pids = Vec::new();
    for number in 0..5u64 {
        let pid = said(&scene.client.ask(None, "pid")?)?;
        ensure!(!pids.contains(&pid), "{pid} was shared: {pids:?}");
        scene.until_pool("it is closed", |pool| pool["closed"].as_u64() > Some(number))?;
        let left = pid.parse().ok().and_then(|pid| Process::of(pid).ok());
        ensure!(left.is_none_or(|left| !left.is_alive()), "{pid} lives");
        pids.push(pid);
    }
    Ok(())
}

/// `reuse: any`: they share one, until its turns are used up. Conversations share with nobody.
pub(super) fn unrelated_requests_share_a_process(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 2, reuse: any, max_turns: 3, ", 2)?;
    let pid = |scene: &Scene| said(&scene.client.ask(None, "pid")?);
    let first: Vec<String> = (0..3).map(|_| pid(scene)).collect::<Result<_, _>>()?;
    ensure!(first[0] == first[1] && first[1] == first[2], "{first:?}");
    let next = pid(scene)?;
    ensure!(next != first[0], "{next} went on");
    let own = scene.process("a")?;
    ensure!(own.pid.to_string() != next && pid(scene)? == next, "a conversation shares a process");
    // None of them hears what the others said.
    ensure!(!said(&scene.client.ask(None, "x")?)?.contains("pid"), "it knows of the others");
    Ok(())
}
