use plimsoll_model::host::{
    Container, Disk, HostMemory, Leftover, OomHistory, Overcommit, Stalls, Tasks, Tier, Zombies,
};

use super::*;

const G: u64 = 1 << 30;
const M: u64 = 1 << 20;

/// A machine with nothing to complain of.
fn healthy() -> HostFacts {
    HostFacts {
        kernel: "6.12.48-cloud-amd64".into(),
        processors: 4,
        is_root: true,
        landlock: Some(7),
        tier: Tier {
            boundary: Boundary::Cgroup2,
            reason: "the unified hierarchy is writable".into(),
            layout: "v2".into(),
            swap_accounting: true,
            refused: Vec::new(),
        },
        container: None,
        memory: HostMemory { total: 16 * G, available: 12 * G, swap_total: 4 * G, swap_used: 0 },
        group: None,
        overcommit: Some(Overcommit { mode: 0, committed: G, limit: 8 * G }),
        panic_on_oom: false,
        oom_score_adj: Some(0),
        pressure: Some(Stalls::default()),
        load: Some(0.5),
        io_wait_percent: Some(0.0),
        tasks: Some(Tasks { now: 300, limit: 32768 }),
        oom: OomHistory { kills: Some(Vec::new()), since_boot: Some(0) },
        zombies: Vec::new(),
        large: Vec::new(),
        orphans: Vec::new(),
        leftovers: Vec::new(),
        state_disk: Some(Disk { path: "/var/lib/plimsoll".into(), available: 50 * G, total: 100 * G }),
    }
}

fn group(limit: u64, used: u64, swap_limit: Option<u64>) -> Option<GroupMemory> {
    Some(GroupMemory { path: "/sys/fs/cgroup".into(), limit, used, swap_limit, oom_kills: Some(0) })
}

fn docker() -> Option<Container> {
    Some(Container { kind: "docker".into(), hint: "/.dockerenv".into() })
}

fn process(pid: i32, command: &str, memory: u64, hours: u64) -> ProcessFact {
    let command = command.split(' ').map(str::to_owned).collect();
    ProcessFact { pid, parent: 1, command, memory, age: Duration::from_secs(hours * 3600) }
}

fn kill(scope: OomScope, group: Option<&str>) -> OomKill {
    OomKill {
        scope,
        oom_group: group.map(str::to_owned),
        task_group: group.map(str::to_owned),
        task: "chrome".into(),
        pid: 77,
    }
}

/// The named check, of facts that were changed by `change`.
fn with(name: &str, change: impl FnOnce(&mut HostFacts)) -> Check {
    let mut facts = healthy();
    change(&mut facts);
    let checks = checks(&facts);
    for check in &checks {
        assert_eq!(check.fix.is_empty(), check.status == Status::Ok, "{check:?}");
        assert!(!check.found.is_empty(), "{check:?}");
        assert!(!check.fix.contains('\n') && !check.found.contains('\n'), "{check:?}");
    }
    checks.into_iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}"))
}

#[track_caller]
fn expect(check: &Check, status: Status, found: &str, fix: &str) {
    assert_eq!(check.status, status, "{check:?}");
    assert!(check.found.contains(found), "{check:?}");
    assert!(check.fix.contains(fix), "{check:?}");
}

#[test]
fn a_healthy_machine() {
    let checks = checks(&healthy());
    assert_eq!(worst(&checks), Status::Ok, "{checks:#?}");
    let mut names: Vec<_> = checks.iter().map(|check| check.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), checks.len(), "names are unique");
}

#[test]
fn boundary() {
    let tier = |boundary| move |facts: &mut HostFacts| facts.tier.boundary = boundary;
    expect(&with("boundary", tier(Boundary::Cgroup1)), Status::Ok, "cgroup1 (", "");
    let mut check = with("boundary", |facts| {
        facts.tier.refused = vec![("--memory-high".into(), "cgroup v1 has no throttling line".into())];
    });
    expect(&check, Status::Ok, "refuses --memory-high (cgroup v1 has no throttling line)", "");
    check = with("boundary", tier(Boundary::Watchdog));
    expect(&check, Status::Warn, "held by sampling", "mount -t cgroup2");
    check = with("boundary", |facts| {
        tier(Boundary::Watchdog)(facts);
        facts.is_root = false;
    });
    expect(&check, Status::Warn, "", "Delegate=yes");
    check = with("boundary", |facts| {
        tier(Boundary::Watchdog)(facts);
        facts.container = docker();
    });
    expect(&check, Status::Warn, "", "docker run --privileged");
}

#[test]
fn kernel() {
    let release = |text: &str| {
        let text = text.to_owned();
        with("kernel", move |facts| facts.kernel = text)
    };
    expect(&release("5.14.0"), Status::Ok, "5.14.0", "");
    expect(&release("5.10.0-28-amd64"), Status::Warn, "no cgroup.kill", "5.14");
    expect(&release("4.19.0"), Status::Fail, "too old", "5.14");
    expect(&release("odd"), Status::Ok, "odd", "");
}

#[test]
fn container() {
    expect(&with("container", |_| ()), Status::Ok, "none", "");
    expect(
        &with("container", |facts| facts.group = group(G, 0, Some(0))),
        Status::Ok,
        "1 GiB of memory and no swap",
        "",
    );
    expect(
        &with("container", |facts| facts.container = docker()),
        Status::Warn,
        "without a memory limit",
        "--memory-swap",
    );
    let check = with("container", |facts| {
        facts.container = docker();
        facts.group = group(2 * G, 0, Some(2 * G));
        facts.group.as_mut().unwrap().oom_kills = Some(3);
    });
    expect(&check, Status::Ok, "2 GiB of memory and 2 GiB of swap at /sys/fs/cgroup, 3 killed", "");
}

#[test]
fn memory() {
    // The chat bot's server: 163 MB available of 1.9 GB.
    let check =
        with("memory", |facts| facts.memory = HostMemory { total: 1946 * M, available: 163 * M, ..facts.memory });
    expect(&check, Status::Warn, "163 MiB of 1.9 GiB left", "end what is not needed");
    let check = with("memory", |facts| {
        facts.memory.available = 200 * M;
        facts.large = vec![process(9, "worker", 15 * G, 3)];
    });
    expect(&check, Status::Fail, "", "worker (pid 9) 15 GiB");
    // The container counts, however much the machine has.
    let check = with("memory", |facts| facts.group = group(G, 900 * M, Some(0)));
    expect(&check, Status::Warn, "124 MiB of the 1 GiB around us", "");
    let check = with("memory", |facts| facts.memory = HostMemory::default());
    expect(&check, Status::Warn, "/proc/meminfo", "mount");
}

#[test]
fn swap() {
    expect(&with("swap", |facts| facts.memory.swap_total = 0), Status::Warn, "none", "fallocate -l 4G");
    let check = with("swap", |facts| {
        facts.memory.swap_total = 0;
        facts.container = docker();
    });
    expect(&check, Status::Ok, "none", "");
    // The runaway worker's machine: 16 of 19 GB.
    let check = with("swap", |facts| {
        facts.memory.swap_total = 19 * G;
        facts.memory.swap_used = 16 * G;
    });
    expect(&check, Status::Fail, "16 GiB of 19 GiB", "VmSwap");
    expect(&with("swap", |facts| facts.memory.swap_used = 2 * G), Status::Warn, "2 GiB of 4 GiB", "");
}

#[test]
fn swap_that_doubles_limits() {
    let check = |limit| with("swap_limits", move |facts| facts.group = group(512 * M, 0, limit));
    expect(&check(Some(0)), Status::Ok, "counted", "");
    expect(&check(Some(512 * M)), Status::Warn, "512 MiB around us is really 1 GiB", "--memory-swap 536870912");
    expect(&check(None), Status::Warn, "without bounds", "--memory-swap");
    let check = with("swap_limits", |facts| facts.tier.swap_accounting = false);
    expect(&check, Status::Warn, "does not count swap", "swapaccount=1");
    let check = with("swap_limits", |facts| {
        facts.memory.swap_total = 0;
        facts.group = group(512 * M, 0, None);
    });
    expect(&check, Status::Ok, "no swap", "");
}

#[test]
fn defaults_that_cannot_be_enforced() {
    let defaults = |boundary, accounting, swap_total| {
        let mut facts = healthy();
        facts.tier.boundary = boundary;
        facts.tier.swap_accounting = accounting;
        facts.memory.swap_total = swap_total;
        unenforced_defaults(&facts)
    };
    assert_eq!(defaults(Boundary::Cgroup2, true, G), []);
    assert_eq!(defaults(Boundary::Watchdog, false, 0), []);
    for (boundary, found) in
        [(Boundary::Watchdog, "counts towards its line"), (Boundary::Cgroup1, "does not count swap")]
    {
        let checks = defaults(boundary, false, G);
        assert_eq!(checks.len(), 1);
        assert_eq!(checks[0].name, "default_memory_swap");
        expect(&checks[0], Status::Warn, found, "swapoff");
    }
}

#[test]
fn overcommit() {
    let mode = |mode, committed| {
        with("overcommit", move |facts| facts.overcommit = Some(Overcommit { mode, committed, limit: 8 * G }))
    };
    expect(&mode(1, 20 * G), Status::Ok, "always", "");
    expect(&mode(2, 2 * G), Status::Ok, "never", "");
    expect(&mode(2, 7 * G), Status::Warn, "7 GiB of 8 GiB", "vm.overcommit_memory=0");
    expect(&mode(2, 8 * G), Status::Fail, "", "");
    expect(&with("overcommit", |facts| facts.panic_on_oom = true), Status::Fail, "panic", "vm.panic_on_oom=0");
}

#[test]
fn isolation() {
    assert_eq!(super::isolation(&healthy()).status, Status::Ok);
    let alone = super::isolation(&HostFacts { is_root: false, ..healthy() });
    assert!(alone.status == Status::Warn && alone.found.contains("one user") && alone.fix.contains("as root"));
    assert!(alone.found.contains("Landlock (version 7)"), "{}", alone.found);
    let old = super::isolation(&HostFacts { is_root: false, landlock: Some(3), ..healthy() });
    assert!(old.status == Status::Warn && old.found.contains("signal each other"), "{}", old.found);
    let none = super::isolation(&HostFacts { is_root: false, landlock: None, ..healthy() });
    assert!(none.status == Status::Warn && none.found.contains("no Landlock"), "{}", none.found);
    let mut facts = healthy();
    facts.tier.boundary = Boundary::Watchdog;
    assert_eq!(super::isolation(&facts).status, Status::Warn);
}

#[test]
fn oom_score() {
    let score = |value| with("oom_score", move |facts| facts.oom_score_adj = value);
    expect(&score(Some(-1000)), Status::Fail, "nobody at the line", "--oom-score-adj 0");
    expect(&score(Some(-500)), Status::Warn, "-500", "--oom-score-adj 0");
    expect(&score(Some(500)), Status::Ok, "500", "");
    expect(&score(None), Status::Ok, "not readable", "");
}

#[test]
fn pressure() {
    let stalls = |memory_some, memory_full| {
        with("pressure", move |facts| facts.pressure = Some(Stalls { memory_some, memory_full, io_some: 0.0 }))
    };
    expect(&with("pressure", |facts| facts.pressure = None), Status::Warn, "off", "psi=1");
    expect(&stalls(3.0, 1.0), Status::Ok, "some 3.0 %", "");
    expect(&stalls(12.0, 1.0), Status::Warn, "some 12.0 %", "--memory");
    expect(&stalls(40.0, 30.0), Status::Fail, "full 30.0 %", "");
}

#[test]
fn load_and_io_wait() {
    expect(&with("load", |facts| facts.load = Some(16.5)), Status::Fail, "16.5 on 4", "--cpus");
    expect(&with("load", |facts| facts.load = Some(9.0)), Status::Warn, "9.0", "");
    let wait = |percent, io_some| {
        with("io_wait", move |facts| {
            facts.io_wait_percent = Some(percent);
            facts.pressure = Some(Stalls { io_some, ..Stalls::default() });
            facts.memory.swap_used = G;
        })
    };
    expect(&wait(27.0, 60.0), Status::Fail, "27 %", "plimsoll run --memory");
    expect(&wait(49.0, 1.0), Status::Warn, "swap is in use", "");
    expect(&wait(12.0, 60.0), Status::Warn, "12 %", "");
    let check = with("io_wait", |facts| facts.io_wait_percent = Some(15.0));
    expect(&check, Status::Warn, "15 %", "iotop");
}

#[test]
fn tasks() {
    let tasks = |now| with("tasks", move |facts| facts.tasks = Some(Tasks { now, limit: 1000 }));
    expect(&tasks(850), Status::Warn, "850 of 1000", "--pids-limit");
    expect(&tasks(990), Status::Fail, "", "");
}

#[test]
fn oom_kills() {
    let history = |kills: Option<Vec<(u64, OomKill)>>, since_boot| {
        with("oom_kills", move |facts| {
            let kills =
                kills.map(|kills| kills.into_iter().map(|(age, kill)| (Duration::from_secs(age), kill)).collect());
            facts.oom = OomHistory { kills, since_boot };
        })
    };
    expect(&history(None, Some(4)), Status::Warn, "4 since boot", "dmesg");
    expect(&history(None, None), Status::Ok, "not readable", "");
    expect(&history(Some(Vec::new()), Some(2)), Status::Ok, "older than the kernel's log", "");
    let group = || kill(OomScope::Group, Some("/docker/abc"));
    expect(
        &history(Some(vec![(120, group()), (7200, kill(OomScope::Host, None))]), Some(2)),
        Status::Warn,
        "2 since boot; last: chrome (pid 77, 2m 0s ago, limit of /docker/abc); chrome (pid 77, 2h 0m ago, the machine ran out)",
        "raise the limit of /docker/abc, or hold chrome at a line of its own",
    );
    let ours = format!("/plimsoll/{}", RunId::new(1, 2));
    let check = history(Some(vec![(60, kill(OomScope::Group, Some(&ours)))]), Some(1));
    expect(&check, Status::Ok, "at plimsoll's own lines: chrome (pid 77", "");
    let check = history(Some(vec![(60, kill(OomScope::Group, Some(&ours))), (120, group())]), Some(2));
    expect(&check, Status::Warn, "last: chrome (pid 77, 2m 0s ago, limit of /docker/abc)", "");
    expect(
        &history(Some(vec![(120, kill(OomScope::Host, None))]), Some(1)),
        Status::Fail,
        "",
        "plimsoll run -m SIZE -- chrome",
    );
    expect(&history(Some(vec![(90 * 86_400, group())]), Some(1)), Status::Ok, "90d", "");
}

#[test]
fn zombies() {
    let zombies = |count, parent, container| {
        with("zombies", move |facts| {
            facts.container = container;
            facts.zombies = vec![Zombies {
                parent,
                parent_command: vec!["node".into(), "server.js".into()],
                count,
                example: "chrome".into(),
            }];
        })
    };
    expect(&zombies(3, 40, None), Status::Warn, "3 (chrome) of pid 40 `node server.js`", "kill 40");
    expect(&zombies(300, 1, docker()), Status::Fail, "300", "--init");
    expect(&zombies(3, 1, None), Status::Warn, "", "restart pid 1");
}

#[test]
fn large_processes() {
    let check = with("large_processes", |facts| {
        facts.large = vec![process(7, "node worker.js", 2 * G, 1), process(8, "chrome", 1700 * M, 1)];
    });
    expect(
        &check,
        Status::Warn,
        "node worker.js (pid 7) 2 GiB 12 %; chrome (pid 8) 1.7 GiB 10 %",
        "run -m 3072m -- node",
    );
    let check = with("large_processes", |facts| facts.large = vec![process(7, "worker", 15 * G, 1)]);
    expect(&check, Status::Fail, "93 %", "plimsoll run -m 16384m");
    // Measured against the container where there is one.
    let check = with("large_processes", |facts| {
        facts.group = group(2 * G, G, Some(0));
        facts.large = vec![process(7, "python3 import.py", 1300 * M, 1)];
    });
    expect(&check, Status::Fail, "63 %", "");
}

#[test]
fn orphans() {
    // Five agents of a bot that never closed them, on a server of 1.9 GB.
    let check = with("orphans", |facts| {
        facts.memory.total = 1946 * M;
        facts.orphans = (0..5).map(|n| process(100 + n, "claude --print", 160 * M, 8)).collect();
    });
    expect(
        &check,
        Status::Fail,
        "5 holding 800 MiB: claude --print (pid 100) 160 MiB, 8h 0m old;",
        "kill 100 101 102 103 104",
    );
    assert!(check.found.ends_with("; and 2 more"), "{check:?}");
    let check = with("orphans", |facts| facts.orphans = vec![process(5, "chromium", 200 * M, 2)]);
    expect(&check, Status::Warn, "1 holding 200 MiB", "kill 5");
}

#[test]
fn leftovers() {
    let left = |registered, pids: &[i32]| {
        let groups = ["/sys/fs/cgroup/plimsoll/x/in", "/sys/fs/cgroup/plimsoll/x"].map(Into::into).to_vec();
        Leftover { what: "/sys/fs/cgroup/plimsoll/x".into(), pids: pids.to_vec(), groups, registered }
    };
    let check = |all: Vec<Leftover>| with("leftovers", |facts| facts.leftovers = all);
    expect(&check(vec![left(true, &[])]), Status::Warn, "/plimsoll/x", "plimsoll run -- true");
    expect(&check(vec![left(true, &[7, 8])]), Status::Fail, "(2 processes)", "plimsoll run -- true");
    // No verb sweeps what no record tells of.
    let rmdir = "rmdir /sys/fs/cgroup/plimsoll/x/in /sys/fs/cgroup/plimsoll/x";
    assert_eq!(check(vec![left(false, &[])]).fix, rmdir);
    assert_eq!(check(vec![left(false, &[8, 7])]).fix, format!("kill -9 7 8; sleep 1; {rmdir}"));
    let tagged = Leftover { what: "PLIMSOLL_ID=x".into(), groups: Vec::new(), ..left(false, &[9]) };
    assert_eq!(check(vec![left(true, &[]), tagged]).fix, "plimsoll run -- true; kill -9 9");
}

#[test]
fn disk() {
    let disk = |available| with("disk", move |facts| facts.state_disk.as_mut().unwrap().available = available);
    expect(&disk(500 * M), Status::Warn, "500 MiB of 100 GiB free for /var/lib/plimsoll", "PLIMSOLL_STATE_DIR");
    expect(&disk(50 * M), Status::Fail, "50 MiB", "");
}

#[test]
fn command_lines_are_one_short_line() {
    let check = with("large_processes", |facts| {
        facts.large = vec![process(7, &format!("python3 -c x=1\n{}", "é".repeat(500)), 2 * G, 1)];
    });
    assert!(check.found.chars().count() < 120, "{check:?}");
    assert!(check.found.contains("python3 -c x=1 éé") && check.found.contains('…'), "{check:?}");
}

#[test]
fn secrets_are_not_shown() {
    let command = "node server.js --api-key sk-ant-secret-0123456789";
    let check = with("large_processes", |facts| facts.large = vec![process(7, command, 2 * G, 1)]);
    assert!(!check.found.contains("secret-0123") && !check.fix.contains("secret-0123"), "{check:?}");
    let check = with("orphans", |facts| facts.orphans = vec![process(7, command, 2 * G, 1)]);
    assert!(!check.found.contains("secret-0123"), "{check:?}");
    let check = with("zombies", |facts| {
        let parent_command = command.split(' ').map(str::to_owned).collect();
        facts.zombies = vec![Zombies { parent: 9, parent_command, count: 1, example: "x".into() }];
    });
    assert!(!check.found.contains("secret-0123"), "{check:?}");
}
