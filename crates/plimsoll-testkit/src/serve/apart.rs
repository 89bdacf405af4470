//! Sessions are kept apart: users, folders, variables. Seen from outside, and tried by the agents themselves.

use std::os::unix::fs::MetadataExt;

use super::scene::Scene;
use crate::harness::Tier;
use crate::stack::world::{Check, ensure, environment};

fn user(pid: i32) -> Result<u32, String> {
    std::fs::metadata(format!("/proc/{pid}")).map(|found| found.uid()).map_err(|error| error.to_string())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Two sessions: users, homes and temporary folders of their own, and no way from one to the other.
pub(super) fn sessions_cannot_see_each_other(scene: &mut Scene) -> Check {
    scene.world.env.push(("HIDDEN".to_owned(), "a secret of ours".to_owned()));
    scene.world.env.push(("SHOWN".to_owned(), "for all".to_owned()));
    scene.up_with("jsonl", "", "max_sessions: 2, ", 2)?;
    let (one, other) = (scene.process("a")?.pid, scene.process("b")?.pid);
    for name in ["HOME", "TMPDIR"] {
        let folders = [environment(one, name), environment(other, name)];
        ensure!(folders[0] != folders[1] && folders.iter().all(|folder| !folder.is_empty()), "{name}: {folders:?}");
        let run = scene.world.path("run").display().to_string();
        ensure!(folders.iter().all(|folder| folder.starts_with(&run)), "{name}: {folders:?}");
    }
    ensure!(environment(one, "SHOWN") == "for all", "a listed variable is missing");
    ensure!(environment(one, "HIDDEN").is_empty(), "an unlisted variable is there");
    let own = scene.say("a", "!read /proc/self/environ")?;
    ensure!(own.contains("for all") && !own.contains("a secret of ours"), "{own}");
    let works = |pid: i32| std::fs::read_link(format!("/proc/{pid}/cwd"));
    ensure!(works(one).ok() != works(other).ok(), "both work in {:?}", works(one));
    if !is_root() || scene.world.tier == Tier::Watchdog {
        return Ok(());
    }
    let users = [user(one)?, user(other)?];
    ensure!(users[0] != users[1] && !users.contains(&0), "{users:?}");
    let home = environment(one, "HOME");
    std::fs::write(format!("{home}/diary"), "private").map_err(|error| error.to_string())?;
    std::os::unix::fs::chown(format!("{home}/diary"), Some(users[0]), None).map_err(|error| error.to_string())?;
    ensure!(scene.say("a", &format!("!read {home}/diary"))? == "private", "not even its own");
    let state = scene.world.path("state");
    for path in [
        format!("{home}/diary"),
        format!("/proc/{one}/environ"),
        format!("/proc/{one}/mem"),
        format!("/proc/{}/environ", scene.world.supervisor_pid()),
        state.join("events.jsonl").display().to_string(),
        scene.world.path("run/control.sock").display().to_string(),
    ] {
        let read = scene.say("b", &format!("!read {path}"))?;
        ensure!(read.starts_with("cannot read: "), "{path}: {read:?}");
    }
    // Nor does anybody find a list of the others.
    let folder = std::path::Path::new(&home).ancestors().nth(2).map(|path| path.display().to_string());
    let listed = std::fs::metadata(folder.unwrap_or_default()).map_err(|error| error.to_string())?;
    ensure!(listed.mode() & 0o044 == 0, "the folder of all sessions can be listed: {:o}", listed.mode());
    // With the sessions their folders go.
    scene.world.done(&["stop", super::scene::POOL])?;
    scene.world.until("its home is gone", |_| !std::path::Path::new(&home).exists())
}

/// Where users of their own cannot be had, it is told.
pub(super) fn what_is_not_in_force_is_told(scene: &mut Scene) -> Check {
    if is_root() && scene.world.tier != Tier::Watchdog {
        return scene.world.leave_out("each session has a user of its own here");
    }
    scene.up_with("jsonl", "", "max_sessions: 1, ", 1)?;
    scene.process("a")?;
    let status = scene.world.status().unwrap_or_default();
    ensure!(status["troubles"].to_string().contains("isolation"), "{}", status["troubles"]);
    let (_, health) = scene.client.health()?;
    ensure!(health["status"] != "ok", "{health}");
    Ok(())
}
