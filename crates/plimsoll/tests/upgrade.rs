//! What an earlier version left behind is read by this one, and what a later one did is kept aside: see docs/upgrade.md.
//!
//! `state-0.1.0` was written by the first version: a stack with one service that was killed for memory and given up and one
//! that was stopped on request, two runs, and a third whose certificate is still on its way into the database. A version
//! that changes a format adds the folder of the one before, made the same way.

#![expect(clippy::unwrap_used, reason = "helpers of tests, which are allowed to")]

use std::path::{Path, PathBuf};
use std::process::Output;

use plimsoll_runtime::stack::journal::{Journal, tail};
use plimsoll_store::{CertificateStore, Notice};

/// A copy of a version's state directory, gone with this value.
struct State(PathBuf);

impl State {
    fn of(version: &str, test: &str) -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(format!("state-{version}"));
        let dir = std::env::temp_dir().join(format!("plimsoll-upgrade-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&dir).unwrap();
        for file in std::fs::read_dir(from).unwrap().flatten() {
            std::fs::copy(file.path(), dir.join(file.file_name())).unwrap();
        }
        Self(dir)
    }

    #[expect(clippy::disallowed_methods, reason = "the one place here that starts a process")]
    fn plimsoll(&self, args: &[&str]) -> Output {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_plimsoll"));
        command.args(args).env("PLIMSOLL_STATE_DIR", &self.0).env("PLIMSOLL_RUNTIME_DIR", self.0.join("run"));
        command.output().unwrap()
    }

    fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(&self.0).unwrap().flatten();
        names.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_state_of_the_first_version_is_read() {
    let state = State::of("0.1.0", "read");
    let listed = state.plimsoll(&["explain", "--list"]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.status.success() && listed.stderr.is_empty(), "{}", String::from_utf8_lossy(&listed.stderr));
    let shown: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split_whitespace().skip(2).collect()).collect();
    let causes: Vec<(&str, &str)> = shown.iter().map(|words| (words[0], words[1])).collect();
    let killed = ("leaky", "memory_limit");
    assert_eq!(
        causes,
        [("waiting", "failed"), ("crash", "crashed"), ("job", "exited"), ("api", "stopped"), killed, killed, killed]
    );
    let one = state.plimsoll(&["explain", "leaky", "--json"]);
    let one: serde_json::Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!((&one["memory"]["limit_bytes"], &one["confidence"]), (&(16 << 20).into(), &"certain".into()));

    let (journal, notices) = Journal::open(&state.0).unwrap();
    assert_eq!(notices, Vec::<String>::new());
    let known = journal.remembered();
    let facts: Vec<_> = known.iter().map(|k| (&*k.service, k.restarts, k.oom_kills, k.stopped)).collect();
    assert_eq!(facts, [("api", 0, 0, true), ("leaky", 2, 3, false)]);
    let rows = tail(&state.0, 1000);
    assert_eq!(rows.iter().map(|row| row.seq).collect::<Vec<u64>>(), (1..=23).collect::<Vec<u64>>());
    assert!(!state.names().iter().any(|name| name.contains("aside") || name.contains("newer")), "{:?}", state.names());
}

/// The way back: this version meets what a later one wrote.
#[test]
fn what_a_later_version_wrote_is_kept_aside() {
    let state = State::of("0.1.0", "newer");
    // `user_version` is the big-endian number at byte 60 of the file.
    let database = state.0.join("plimsoll.db");
    let mut bytes = std::fs::read(&database).unwrap();
    assert_eq!(bytes[60..64], [0, 0, 0, 1]);
    bytes[63] = 2;
    std::fs::write(&database, &bytes).unwrap();
    let memory = std::fs::read_to_string(state.0.join("stack.json")).unwrap().replace("stack/1", "stack/2");
    std::fs::write(state.0.join("stack.json"), &memory).unwrap();

    let store = CertificateStore::open(&state.0).unwrap();
    let [Notice::Newer { kept, version: 2 }] = store.notices() else { panic!("{:?}", store.notices()) };
    assert_eq!(std::fs::read(kept).unwrap(), bytes);
    drop(store);
    let (journal, notices) = Journal::open(&state.0).unwrap();
    assert!(notices.len() == 1 && notices[0].contains("another version (plimsoll.stack/2"), "{notices:?}");
    // Counters come from the rows of the journal then, as far as they go back.
    let leaky = journal.remembered().into_iter().find(|known| &*known.service == "leaky").unwrap();
    assert_eq!((leaky.restarts, leaky.oom_kills), (2, 3));
    let names = state.names();
    let aside = names.iter().find(|name| name.starts_with("stack.json.aside-")).unwrap();
    assert_eq!(std::fs::read_to_string(state.0.join(aside)).unwrap(), memory);
}
