//! What a killed process leaves: its registration can be taken, its certificates are whole.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code, helpers included")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use plimsoll_model::certificate::{self, Exit, Memory, Tree};
use plimsoll_model::{Boundary, Cause, Certificate, Confidence, RunId};
use plimsoll_store::registry::{self, leftovers, running};
use plimsoll_store::{CertificateStore, Registration, RunningTree};

/// Tells a process which role it plays.
const ROLE: &str = "PLIMSOLL_TEST_ROLE";

struct TempDir(PathBuf);

impl TempDir {
    fn new(what: &str) -> Self {
        let path = std::env::temp_dir().join(format!("plimsoll-store-{what}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs one of the roles in [`play`] in a process of its own: this program again, for the one test that plays them.
#[expect(clippy::disallowed_methods, reason = "the one place here that starts a process: this test's own binary")]
fn role(name: &str, dir: &Path, number: u32) -> Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["a_role_is_played_in_a_process_of_its_own", "--exact", "--nocapture"])
        .env(ROLE, name)
        .env("PLIMSOLL_TEST_DIR", dir)
        .env("PLIMSOLL_TEST_NUMBER", number.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // It outlives whom it reports to.
        .stderr(if name == "just lives" { Stdio::null() } else { Stdio::inherit() })
        .spawn()
        .unwrap()
}

fn asked() -> (PathBuf, u32) {
    let dir = std::env::var_os("PLIMSOLL_TEST_DIR").unwrap().into();
    (dir, std::env::var("PLIMSOLL_TEST_NUMBER").unwrap().parse().unwrap())
}

fn wait_for_ready(child: &mut Child) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("READY")), "the role ended early");
}

fn say_ready_and_wait() {
    println!("READY");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().lines().next();
}

fn certificate(number: u32) -> Certificate {
    Certificate {
        schema: certificate::SCHEMA.to_owned(),
        id: RunId::new(1_700_000_000_000, number),
        name: "crash".to_owned(),
        command: vec!["true".to_owned()],
        boundary: Boundary::Watchdog,
        started_at: jiff::Timestamp::UNIX_EPOCH,
        ended_at: jiff::Timestamp::UNIX_EPOCH,
        runtime_ms: 0,
        exit: Exit { code: Some(0), signal: None },
        cause: Cause::Exited,
        confidence: Confidence::Certain,
        evidence: Vec::new(),
        memory: Memory {
            limit_bytes: None,
            peak_bytes: 0,
            swap_limit_bytes: None,
            growth_bytes_per_s: 0,
            largest: Vec::new(),
            last_minute: Vec::new(),
        },
        tree: Tree { peak_processes: 1, killed_inside: 0, survivors: 0 },
        advice: String::new(),
    }
}

fn tree(number: u32) -> RunningTree {
    RunningTree {
        schema: registry::SCHEMA.to_owned(),
        id: RunId::new(1_700_000_000_000, number),
        name: "crash".to_owned(),
        command: vec!["true".to_owned()],
        boundary: Boundary::Watchdog,
        boot_id: "boot".to_owned(),
        started_at: jiff::Timestamp::UNIX_EPOCH,
        memory_limit_bytes: None,
        swap_limit_bytes: None,
        groups: Vec::new(),
        parents: Vec::new(),
        root: None,
        members: Vec::new(),
    }
}

fn play(role: &str) {
    match role {
        "just lives" => say_ready_and_wait(),
        "registers and starts a child" => {
            let (dir, number) = asked();
            let _registration = Registration::register(&dir, &tree(number)).unwrap();
            let mut child = self::role("just lives", &dir, number);
            wait_for_ready(&mut child);
            say_ready_and_wait();
        }
        "stores for ever" => {
            let (dir, number) = asked();
            println!("READY");
            for n in 0.. {
                CertificateStore::open(&dir).unwrap().insert(&certificate(number * 1_000_000 + n)).unwrap();
            }
        }
        "stores a hundred" => {
            let (dir, number) = asked();
            for n in 0..100 {
                let mut store = CertificateStore::open(&dir).unwrap();
                store.insert(&certificate(number * 1000 + n)).unwrap();
                assert!(store.notices().is_empty());
            }
        }
        other => unreachable!("no role {other}"),
    }
}

#[test]
fn a_role_is_played_in_a_process_of_its_own() {
    if let Ok(role) = std::env::var(ROLE) {
        return play(&role);
    }
    let dir = TempDir::new("role");
    let mut child = role("just lives", &dir.0, 0);
    wait_for_ready(&mut child);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "it did not stay");
}

#[test]
fn a_killed_process_lets_go_though_its_child_lives() {
    let dir = TempDir::new("kill");
    let mut child = role("registers and starts a child", &dir.0, 1);
    wait_for_ready(&mut child);
    assert_eq!(leftovers(&dir.0).unwrap().count(), 0);
    assert_eq!(running(&dir.0).unwrap(), [tree(1)]);
    child.kill().unwrap();
    child.wait().unwrap();
    // The grandchild goes too when its stdin ends, sooner or later: it never had the lock.
    let found: Vec<_> = leftovers(&dir.0).unwrap().collect();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].tree, Some(tree(1)));
}

#[test]
fn processes_store_at_once_from_nothing() {
    let dir = TempDir::new("processes");
    let children: Vec<_> = (0..8).map(|n| role("stores a hundred", &dir.0, n)).collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(CertificateStore::open(&dir.0).unwrap().list(u32::MAX).unwrap().len(), 800);
}

#[test]
fn killed_while_storing_the_history_stays_whole() {
    let dir = TempDir::new("storing");
    let mut stored = 0;
    for round in 0..20 {
        let mut children: Vec<_> = (0..2).map(|n| role("stores for ever", &dir.0, round * 2 + n)).collect();
        for child in &mut children {
            wait_for_ready(child);
        }
        // At another instant each round: after that many more certificates.
        let mut store = CertificateStore::open(&dir.0).unwrap();
        while store.list(u32::MAX).unwrap().len() < stored + 1 + round as usize {}
        for mut child in children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        drop(store);
        let mut store = CertificateStore::open(&dir.0).unwrap();
        assert!(store.notices().is_empty(), "{:?}", store.notices());
        stored = store.list(u32::MAX).unwrap().len();
    }
}
