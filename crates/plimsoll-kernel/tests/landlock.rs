//! Landlock against the kernel that is here; where it has none, there is nothing to see.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::ffi::OsString;
use std::path::Path;

use plimsoll_kernel::landlock::{self, Ruleset};
use plimsoll_kernel::signal::SignalSet;
use plimsoll_kernel::spawn::{Job, Launch, Wait, wait_for};
use plimsoll_model::spec::Bounds;

/// Runs a script of the shell in a folder, kept by rules or by none: its exit code.
fn run(script: &str, workdir: &Path, bounds: Option<&Ruleset>) -> Wait {
    let command: Vec<OsString> = ["/bin/sh", "-c", script].map(OsString::from).to_vec();
    let launch = Launch {
        command: &command,
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        workdir: Some(workdir),
        stdio: [None, None, None],
        join: Vec::new(),
        into: None,
        lock: None,
        oom_score_adj: None,
        user: None,
        bounds,
        job: Job::Own,
        mask: SignalSet::of(&[]),
    };
    wait_for(launch.start().unwrap()).unwrap()
}

#[test]
fn who_is_kept_reaches_its_own_and_nothing_hidden() {
    if landlock::version().is_none() {
        return;
    }
    let dir = std::env::temp_dir().join(format!("plimsoll-landlock-{}", std::process::id()));
    for folder in ["hidden/own/a", "hidden/own/b", "hidden/shown", "beside"] {
        std::fs::create_dir_all(dir.join(folder)).unwrap();
    }
    for file in ["hidden/secret", "hidden/shown/stage", "beside/words"] {
        std::fs::write(dir.join(file), "words").unwrap();
    }
    std::os::unix::fs::symlink(dir.join("hidden/secret"), dir.join("beside/link")).unwrap();
    let bounds = Bounds {
        own: vec![dir.join("hidden/own")],
        shown: vec![dir.join("hidden/shown")],
        hidden: vec![dir.join("hidden")],
    };
    let rules = Ruleset::of(&bounds).unwrap().unwrap();
    let may = [
        "cat beside/words",
        "cat hidden/shown/stage",
        "echo words > hidden/own/a/file && mv hidden/own/a/file hidden/own/b/file && rm hidden/own/b/file",
        "echo words > /dev/null",
        "sleep 30 & kill $!",
    ];
    let may_not = [
        "cat hidden/secret",
        "cat beside/link",
        "ls hidden",
        "echo words > beside/more",
        "echo words >> beside/words",
        "rm beside/words",
        "echo words > hidden/shown/stage",
        "mv hidden/own/b beside/b",
    ];
    let quiet = |script: &str| format!("{{ {script}; }} > /dev/null 2>&1");
    for script in may {
        assert_eq!(run(&quiet(script), &dir, Some(&rules)), Wait::Exited(0), "{script}");
    }
    for script in may_not {
        assert_ne!(run(&quiet(script), &dir, Some(&rules)), Wait::Exited(0), "{script}");
    }
    // Who may look at all processes for their performance (CAP_PERFMON) still may.
    if !rustix::process::geteuid().is_root() {
        assert_ne!(run(&quiet("cat /proc/$PPID/environ"), &dir, Some(&rules)), Wait::Exited(0));
    }
    if landlock::version() >= Some(landlock::SIGNALS) {
        assert_ne!(run("kill -0 $PPID 2> /dev/null", &dir, Some(&rules)), Wait::Exited(0));
    }
    // It was the rules: without them all of it is done.
    for script in may_not {
        assert_eq!(run(&quiet(script), &dir, None), Wait::Exited(0), "{script}");
        std::fs::write(dir.join("beside/words"), "words").unwrap();
    }
    std::fs::remove_dir_all(dir).unwrap();
}
