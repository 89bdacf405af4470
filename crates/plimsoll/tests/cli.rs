//! What the command line says: help, and the mistakes that are found before anything starts. Each `.trycmd` file holds
//! commands with their output and exit code; `TRYCMD=overwrite cargo test -p plimsoll --test cli` writes them anew (figures
//! of the machine have to be made `[..]` again).

use std::path::{Path, PathBuf};
use std::process::Output;

use plimsoll_model::{Cause, Certificate, RunId};
use plimsoll_store::CertificateStore;

/// Directories that are not there, and are not made for a mistake.
const STATE: &str = "/nonexistent/plimsoll/state";
const RUNTIME: &str = "/nonexistent/plimsoll/runtime";

#[test]
fn the_words_of_the_command_line() {
    trycmd::TestCases::new()
        .env("PLIMSOLL_STATE_DIR", STATE)
        .env("PLIMSOLL_RUNTIME_DIR", RUNTIME)
        .env("COLUMNS", "200")
        .case("tests/cmd/*.trycmd")
        .run();
    assert!(!Path::new("/nonexistent").exists());
}

#[expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "the one place here that starts a process")]
fn output_with(state: &Path, program: &str, args: &[&str]) -> Output {
    let mut command = std::process::Command::new(program);
    command.args(args).env("PLIMSOLL_STATE_DIR", state).env("PLIMSOLL_RUNTIME_DIR", RUNTIME);
    command.output().unwrap()
}

fn output_of(program: &str, args: &[&str]) -> Output {
    output_with(Path::new(STATE), program, args)
}

const PLIMSOLL: &str = env!("CARGO_BIN_EXE_plimsoll");

#[test]
fn manual_pages_of_every_verb() {
    let dir = std::env::temp_dir().join(format!("plimsoll-man-{}", std::process::id()));
    assert!(output_of(PLIMSOLL, &["man", dir.to_str().unwrap()]).status.success());
    for page in ["", "-run", "-explain", "-doctor", "-health", "-completions", "-man"] {
        let text = std::fs::read_to_string(dir.join(format!("plimsoll{page}.1"))).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    std::fs::remove_dir_all(dir).unwrap();
    let main = output_of(PLIMSOLL, &["man"]);
    assert!(main.status.success() && String::from_utf8_lossy(&main.stdout).contains("plimsoll\\-run(1)"));
}

#[test]
fn completions_of_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = output_of(PLIMSOLL, &["completions", shell]);
        assert!(script.status.success(), "{shell}");
        let text = String::from_utf8(script.stdout).unwrap();
        assert!(text.contains("idle-timeout") && text.contains("explain"), "{shell}: {text}");
        if shell == "bash" {
            let checked = output_of("bash", &["-n", "-c", &text]);
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        }
    }
}

struct TempDir(PathBuf);

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A history of three: `crawler`, `api`, `crawler`, their ids alike in the first twelve characters.
#[expect(clippy::unwrap_used, reason = "test code")]
fn history(what: &str) -> (TempDir, Vec<Certificate>) {
    let dir = TempDir(std::env::temp_dir().join(format!("plimsoll-explain-{what}-{}", std::process::id())));
    std::fs::create_dir_all(&dir.0).unwrap();
    let base: Certificate = serde_json::from_str(
        r#"{"schema":"plimsoll.certificate/1","id":"0000000000000000","name":"","command":["node","x.js"],"boundary":"cgroup2",
            "started_at":"2026-01-02T03:04:05Z","ended_at":"2026-01-02T03:04:09Z","runtime_ms":4000,"exit":{"code":null,"signal":9},
            "cause":"memory_limit","confidence":"certain","evidence":[{"source":"memory.events","detail":"oom_kill 0 -> 1"}],
            "memory":{"limit_bytes":1048576,"peak_bytes":1048576,"swap_limit_bytes":0,"growth_bytes_per_s":0,"largest":[]},
            "tree":{"peak_processes":1,"killed_inside":1,"survivors":0},"advice":"Raise it."}"#,
    )
    .unwrap();
    let mut store = CertificateStore::open(&dir.0).unwrap();
    let made = ["crawler", "api", "crawler"].iter().zip(1..).map(|(name, n)| Certificate {
        id: RunId::new(1_700_000_000_000, n),
        name: (*name).to_owned(),
        cause: if n == 2 { Cause::Stopped } else { Cause::MemoryLimit },
        ..base.clone()
    });
    let made: Vec<_> = made.collect();
    for one in &made {
        store.insert(one).unwrap();
    }
    (dir, made)
}

#[test]
fn explain_finds_by_name_id_and_last() {
    let (dir, made) = history("found");
    let json = |args: &[&str]| {
        let output = output_with(&dir.0, PLIMSOLL, &[&["explain", "--json"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Certificate>>()
    };
    assert_eq!(json(&[]), [made[2].clone()]);
    assert_eq!(json(&["last"]), [made[2].clone()]);
    assert_eq!(json(&["api"]), [made[1].clone()]);
    assert_eq!(json(&["crawler"]), [made[2].clone()]);
    assert_eq!(json(&[made[0].id.as_str()]), [made[0].clone()]);
    assert_eq!(json(&[&made[0].id.as_str().to_uppercase()]), [made[0].clone()]);
    assert_eq!(json(&["--list"]), [made[2].clone(), made[1].clone(), made[0].clone()]);
    assert_eq!(json(&["--list", "crawler"]), [made[2].clone(), made[0].clone()]);

    let text = String::from_utf8(output_with(&dir.0, PLIMSOLL, &["explain", "api"]).stdout).unwrap();
    assert!(text.starts_with("api: stopped (certain)\n") && text.contains("\nAdvice\n  Raise it.\n"), "{text}");
    let list = String::from_utf8(output_with(&dir.0, PLIMSOLL, &["explain", "--list"]).stdout).unwrap();
    assert_eq!(list.lines().count(), 4, "{list}");
}

#[test]
fn explain_says_what_is_near_when_it_finds_nothing() {
    let (dir, made) = history("near");
    let refused = |args: &[&str], words: &[&str]| {
        let output = output_with(&dir.0, PLIMSOLL, &[&["explain"], args].concat());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        for word in words {
            assert!(text.contains(word), "{args:?}: {text}");
        }
    };
    refused(&["crawlr"], &["`crawlr`", "names like it: crawler", "--list"]);
    refused(&["--list", "apo"], &["`apo`", "api"]);
    refused(&["zebra"], &["no certificate of `zebra`"]);
    refused(&[&made[0].id.as_str()[..12]], &["the beginning of 3 ids", made[1].id.as_str()]);
}

#[test]
fn a_damaged_history_is_set_aside_with_a_note() {
    let (dir, _) = history("damaged");
    for suffix in ["-wal", "-shm"] {
        std::fs::remove_file(dir.0.join(format!("plimsoll.db{suffix}"))).unwrap();
    }
    std::fs::write(dir.0.join("plimsoll.db"), vec![7; 5000]).unwrap();
    let output = output_with(&dir.0, PLIMSOLL, &["explain"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("plimsoll: note: ") && text.contains("plimsoll.db.corrupt-1"), "{text}");
    assert_eq!(std::fs::read(dir.0.join("plimsoll.db.corrupt-1")).unwrap(), vec![7; 5000]);
}
