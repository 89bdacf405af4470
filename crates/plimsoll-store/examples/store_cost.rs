//! What storing costs a `run`: microseconds for open + insert + close of one certificate, and for registering a run.
//! `cargo run --release -p plimsoll-store --example store_cost`, with a directory as argument to choose the disk.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measuring tool: it stops at the first error and prints"
)]

use std::path::PathBuf;

use plimsoll_model::{Certificate, RunId};
use plimsoll_store::{CertificateStore, Registration, RunningTree};

#[expect(clippy::disallowed_methods, reason = "measures, decides nothing")]
fn micros(work: impl FnOnce()) -> f64 {
    let start = std::time::Instant::now();
    work();
    start.elapsed().as_secs_f64() * 1e6
}

fn show(what: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{what:<32} p50 {:>7.0} µs   p90 {:>7.0} µs   p99 {:>7.0} µs   max {:>7.0} µs",
        at(0.5),
        at(0.9),
        at(0.99),
        at(1.0)
    );
}

fn private_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let of = |name: &str| -> u64 {
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    };
    of("Private_Clean:") + of("Private_Dirty:")
}

fn main() {
    let base = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = base.join(format!("plimsoll-store-cost-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut certificate: Certificate = serde_json::from_str(
        r#"{"schema":"plimsoll.certificate/1","id":"0123456789abcdef","name":"true","command":["/bin/true"],"boundary":"cgroup1",
            "started_at":"2026-01-01T00:00:00.123456789Z","ended_at":"2026-01-01T00:00:00.223456789Z","runtime_ms":4,"exit":{"code":0,"signal":null},
            "cause":"exited","confidence":"certain","evidence":[{"source":"wait status","detail":"exit code 0"},{"source":"memory.oom_control","detail":"oom_kill 0 -> 0"}],
            "memory":{"limit_bytes":67108864,"peak_bytes":1000000,"swap_limit_bytes":0,"growth_bytes_per_s":0,"largest":[],"last_minute":[]},
            "tree":{"peak_processes":1,"killed_inside":0,"survivors":0},"advice":""}"#,
    )
    .unwrap();
    let before = private_kib();
    let times = (0..2000u32)
        .map(|n| {
            certificate.id = RunId::new(1_700_000_000_000 + u64::from(n), n);
            micros(|| {
                let mut store = CertificateStore::open(&dir).unwrap();
                store.insert(&certificate).unwrap();
            })
        })
        .collect();
    show("certificate: open+insert+close", times);
    println!("private memory {before} KiB before, {} KiB after", private_kib());
    let mut tree: RunningTree = serde_json::from_str(
        r#"{"schema":"plimsoll.running/1","id":"0123456789abcdef","name":"true","command":["/bin/true"],"boundary":"cgroup1",
            "boot_id":"6f1e0c0a-0000-0000-0000-000000000000","started_at":"2026-01-01T00:00:00Z","memory_limit_bytes":67108864,"swap_limit_bytes":0,
            "groups":["/sys/fs/cgroup/memory/plimsoll/0123456789abcdef","/sys/fs/cgroup/pids/plimsoll/0123456789abcdef"],"parents":[],"root":null,"members":[]}"#,
    )
    .unwrap();
    let (mut register, mut update, mut remove) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..2000 {
        tree.id = RunId::new(1, n);
        let mut registration = None;
        register.push(micros(|| registration = Some(Registration::register(&dir, &tree).unwrap())));
        let registration = registration.unwrap();
        update.push(micros(|| registration.update(&tree).unwrap()));
        remove.push(micros(|| registration.remove().unwrap()));
    }
    show("registry: register", register);
    show("registry: update", update);
    show("registry: remove", remove);
    std::fs::remove_dir_all(&dir).unwrap();
}
