//! Sessions are kept apart: users, folders, variables. Seen from outside, and tried by the agents themselves.

use std::os::unix::fs::MetadataExt;

use plimsoll_kernel::landlock;

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
    let has_users = has_users(scene);
    let landlock = landlock::version();
    if !has_users && landlock.is_none() {
        return Ok(());
    }
    let users = [user(one)?, user(other)?];
    let home = environment(one, "HOME");
    std::fs::write(format!("{home}/diary"), "private").map_err(|error| error.to_string())?;
    if has_users {
        ensure!(users[0] != users[1] && !users.contains(&0), "{users:?}");
        std::os::unix::fs::chown(format!("{home}/diary"), Some(users[0]), None).map_err(|error| error.to_string())?;
    } else {
        kept_by_landlock(scene, [one, other], landlock >= Some(landlock::SIGNALS))?;
    }
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

/// Sessions of one user write in their own folders alone, and can only signal their own processes.
fn kept_by_landlock(scene: &Scene, [one, other]: [i32; 2], has_signals: bool) -> Check {
    let (home, beside) = (environment(one, "HOME"), scene.world.path("beside").display().to_string());
    let work = std::fs::read_link(format!("/proc/{other}/cwd")).map_err(|error| error.to_string())?;
    for folder in [environment(other, "HOME"), environment(other, "TMPDIR"), work.display().to_string()] {
        let written = scene.say("b", &format!("!write {folder}/own"))?;
        ensure!(written == "written", "its own {folder}: {written}");
    }
    for path in [format!("{home}/foreign"), format!("{home}/diary"), beside, "/dev/shm/plimsoll-foreign".to_owned()] {
        let written = scene.say("b", &format!("!write {path}"))?;
        ensure!(written.starts_with("cannot write: "), "{path}: {written}");
    }
    ensure!(scene.say("b", "!write /dev/null")? == "written", "not even /dev/null");
    for pid in [one, scene.world.supervisor_pid()].into_iter().filter(|_| has_signals) {
        let asked = scene.say("b", &format!("!signal {pid}"))?;
        ensure!(asked.starts_with("cannot signal: "), "{pid}: {asked}");
    }
    Ok(())
}

/// Whether each session has a user of its own here.
fn has_users(scene: &Scene) -> bool {
    is_root() && scene.world.tier != Tier::Watchdog
}

/// Where users of their own cannot be had, it is told.
pub(super) fn what_is_not_in_force_is_told(scene: &mut Scene) -> Check {
    if has_users(scene) {
        return scene.world.leave_out("each session has a user of its own here");
    }
    scene.up_with("jsonl", "", "max_sessions: 1, ", 1)?;
    scene.process("a")?;
    let status = scene.world.status().unwrap_or_default();
    let troubles = status["troubles"].to_string();
    ensure!(troubles.contains("isolation") && troubles.contains("Landlock"), "{troubles}");
    let (_, health) = scene.client.health()?;
    ensure!(health["status"] != "ok", "{health}");
    Ok(())
}
