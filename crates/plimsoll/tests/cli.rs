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

/// The verbs of a stack that runs. Without groups its replicas are kept otherwise, which nothing here shows.
#[test]
fn a_stack_and_its_verbs() {
    let place = Place::new("stack");
    let cases = trycmd::TestCases::new();
    cases
        .env("PLIMSOLL_STATE_DIR", place.path("state").display().to_string())
        .env("PLIMSOLL_RUNTIME_DIR", place.path("run").display().to_string())
        .env("COLUMNS", "200")
        .env("TZ", "UTC")
        .case("tests/cmd/running/verbs.trycmd");
    let ran = std::panic::catch_unwind(|| cases.run());
    // A step that failed may have left it up; where all went well there is nothing to stop.
    let (code, said) = place.shell("$PLIMSOLL down");
    assert!(ran.is_err() || code == Some(1), "it was still up: {said}");
    ran.unwrap_or_else(|why| std::panic::resume_unwind(why));
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
    let empty = output_with(&dir.0, PLIMSOLL, &["explain", ""]);
    assert_eq!(empty.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&empty.stderr).contains("the name is empty"));
    refused(&[&made[0].id.as_str()[..12]], &["the beginning of 3 ids", made[1].id.as_str()]);
    let mut store = CertificateStore::open(&dir.0).unwrap();
    for n in 4..20 {
        store.insert(&Certificate { id: RunId::new(1_700_000_000_000, n), ..made[0].clone() }).unwrap();
    }
    refused(&[&made[0].id.as_str()[..12]], &["the beginning of at least 10 ids"]);
}

/// Directories in which runs really are started, on the tier that is everywhere.
struct Place(TempDir);

#[expect(clippy::unwrap_used, reason = "test code")]
impl Place {
    fn new(what: &str) -> Self {
        let dir = TempDir(std::env::temp_dir().join(format!("plimsoll-run-{what}-{}", std::process::id())));
        std::fs::create_dir_all(&dir.0).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.0.join(name)
    }

    fn names(&self, dir: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(dir)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// `$PLIMSOLL` in a shell: its exit code and what it said.
    #[expect(clippy::disallowed_methods, reason = "a user's shell, from outside")]
    fn shell(&self, script: &str) -> (Option<i32>, String) {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).current_dir(&self.0.0).env("PLIMSOLL", PLIMSOLL);
        command.env("PLIMSOLL_STATE_DIR", self.path("state")).env("PLIMSOLL_RUNTIME_DIR", self.path("run"));
        let output = command.env_remove("PLIMSOLL_ID").output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    }
}

#[test]
fn of_several_values_of_a_variable_the_child_gets_the_last() {
    let place = Place::new("env");
    let run = "$PLIMSOLL run --boundary watchdog -e A=1 -e A=2 -- cat /proc/self/environ";
    let script = &format!("{run} | tr '\\0' '\\n' | grep '^A='");
    assert_eq!(place.shell(script), (Some(0), "A=2\n".to_owned()));
}

#[test]
fn a_refused_run_leaves_no_file_and_keeps_the_old_one() {
    let place = Place::new("refused");
    // The registry cannot be written, which shows only when the files are open.
    std::fs::create_dir_all(place.path("run")).unwrap();
    std::fs::write(place.path("run/runs"), "in the way").unwrap();
    std::fs::write(place.path("rep.json"), "old").unwrap();
    let (code, said) =
        place.shell("chmod 700 run; $PLIMSOLL run --boundary watchdog --report rep.json --log-file lg -- echo it ran");
    assert!(code == Some(125) && !said.contains("it ran\n"), "{said}");
    assert_eq!(std::fs::read_to_string(place.path("rep.json")).unwrap(), "old");
    assert!(!place.path("lg").exists());

    // A longer report is replaced whole, through a link also where there is none yet.
    std::fs::remove_file(place.path("run/runs")).unwrap();
    std::fs::write(place.path("rep.json"), "x".repeat(100_000)).unwrap();
    std::os::unix::fs::symlink("behind.json", place.path("link.json")).unwrap();
    for report in ["rep.json", "link.json"] {
        let ran = place.shell(&format!("$PLIMSOLL run --boundary watchdog --report {report} -- true"));
        assert_eq!(ran, (Some(0), String::new()));
        let text = std::fs::read_to_string(place.path(report)).unwrap();
        serde_json::from_str::<Certificate>(&text).unwrap();
    }
    assert!(place.path("link.json").is_symlink() && place.path("behind.json").is_file());
}

#[test]
fn listed_values_stand_nowhere() {
    let place = Place::new("redact");
    let script = "PLIMSOLL_REDACT=MYVAR,OURS OURS=inherited77 $PLIMSOLL run --boundary watchdog --report rep -e MYVAR=listedvalue77 \
                  -- sh -c ': listedvalue77 inherited77; exit 3'; $PLIMSOLL explain --json; cat rep";
    let (_, said) = place.shell(script);
    assert!(said.contains(": *** ***; exit 3") && !said.contains("value77") && !said.contains("inherited77"), "{said}");
}

#[test]
fn a_missing_interpreter_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new("interpreter");
    std::fs::write(place.path("script"), "#!/nonexistent/x\n").unwrap();
    std::fs::set_permissions(place.path("script"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (code, said) = place.shell("$PLIMSOLL run --boundary watchdog -- ./script");
    assert_eq!(code, Some(127));
    assert!(said.contains("its interpreter /nonexistent/x is not") && !said.contains("PATH"), "{said}");
}

#[test]
fn a_full_disk_leaves_no_half_made_history() {
    let place = Place::new("full");
    // No file may be larger than 1 KiB, as if the disk were full: with this command a certificate is, and a record is not.
    let long = "x".repeat(500);
    let script = format!("trap '' XFSZ; ulimit -f 2; $PLIMSOLL run --boundary watchdog -- sh -c ': {long}'");
    let (code, said) = place.shell(&script);
    assert!(code == Some(0) && said.contains("the certificate is not stored"), "{said}");
    assert_eq!(place.names("state"), ["certificates.inbox"], "{said}");
    let (code, said) = place.shell("$PLIMSOLL explain");
    assert!(
        code == Some(1) && !said.contains("nothing has been run") && said.contains("none has been stored"),
        "{said}"
    );
}

#[test]
fn directories_that_others_can_write_to_are_refused() {
    let place = Place::new("modes");
    for (dir, mode) in [("state", "777"), ("state", "775"), ("run", "770")] {
        let script = format!("mkdir -p {dir}; chmod {mode} {dir}; $PLIMSOLL run --boundary watchdog -- echo it ran");
        let (code, said) = place.shell(&script);
        assert!(code == Some(125) && said.contains(mode) && said.contains("chmod go-w"), "{dir} {mode}: {said}");
        place.shell(&format!("chmod 700 {dir}"));
    }
    assert_eq!(place.shell("$PLIMSOLL run --boundary watchdog -- echo it ran").1, "it ran\n");
}

#[test]
fn lowering_the_oom_score_is_named_with_its_remedy() {
    let place = Place::new("score");
    // Without the capability, whoever runs the test.
    let script = "without=; if [ $(id -u) = 0 ]; then command -v setpriv >/dev/null || exit 77; \
                  without='setpriv --bounding-set -sys_resource --inh-caps -sys_resource'; fi; $without \
                  $PLIMSOLL run --boundary watchdog --oom-score-adj -5 --report rep -- true";
    let (code, said) = place.shell(script);
    if code != Some(77) {
        assert_eq!(code, Some(125), "{said}");
        for word in ["--oom-score-adj -5", "lowering it does", "help: choose"] {
            assert!(said.contains(word), "{said}");
        }
        assert!(!place.path("rep").exists());
    }
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

#[test]
fn events_are_kept_when_nothing_runs() {
    let place = Place::new("events");
    std::fs::create_dir_all(place.path("state")).unwrap();
    let row = |seq: u32| format!("{{\"seq\":{seq},\"at\":\"2026-01-02T03:04:05Z\",\"event\":\"going_down\"}}\n");
    let torn = "{\"seq\":3,\"at";
    std::fs::write(place.path("state/events.jsonl"), [row(1), row(2), torn.to_owned()].concat()).unwrap();
    let line = "2026-01-02 03:04:05  stopping everything\n";
    assert_eq!(place.shell("$PLIMSOLL events"), (Some(0), line.repeat(2)));
    assert_eq!(place.shell("$PLIMSOLL events --tail 1"), (Some(0), line.to_owned()));
    assert_eq!(place.shell("$PLIMSOLL events --json --tail 1"), (Some(0), row(2)));
    assert_eq!(place.shell("$PLIMSOLL events --tail 0"), (Some(0), String::new()));
    let (code, said) = place.shell("$PLIMSOLL events -f");
    assert!(code == Some(1) && said.contains("nobody answers at"), "{said}");
}

#[test]
fn top_needs_a_terminal() {
    let place = Place::new("top");
    for script in ["$PLIMSOLL top </dev/null", "$PLIMSOLL top | cat; exit 2"] {
        let (code, said) = place.shell(script);
        assert!(code == Some(2) && said.contains("top needs a terminal, and std"), "{said}");
    }
}
