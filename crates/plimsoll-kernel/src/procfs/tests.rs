use proptest::prelude::*;

use super::*;

/// Names as they come: any bytes, at most 15, and the ones that mislead most often.
fn names() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..16),
        prop::sample::select(vec![
            &b"a) R 1 2 3"[..],
            b"(sd-pam)",
            b"tmux: server",
            b")",
            b") ",
            b"((((",
            b"a\nb",
            b"kworker/0:1H-kb",
            b"",
            b"x) Z 0 0 0 0 0",
        ])
        .prop_map(<[u8]>::to_vec),
    ]
}

fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let bits = prop::sample::select(vec![
        &b"12"[..],
        b" ",
        b"\n",
        b")",
        b"(",
        b":",
        b"kB",
        b"max",
        b"-",
        b",",
        b"/",
        b"Rss",
        b"Pss",
        b"oom_kill",
        b"\\040",
        b"cgroup",
        b"some avg10=",
        b"total=",
        b"18446744073709551616",
        b"cpu ",
        b"\xff",
        b".",
        b"\t",
    ]);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(bits, 0..60).prop_map(|bits| bits.concat()),
    ]
}

proptest! {
    #[test]
    fn no_parser_panics(text in garbage()) {
        let _ = parse_stat(&text);
        let _ = parse_children(&text).count();
        let _ = parse_statm(&text);
        let _ = parse_smaps_rollup(&text);
        let _ = parse_status_memory(&text);
        let _ = parse_status_vm_swap(&text);
        let _ = parse_meminfo(&text);
        let _ = parse_loadavg(&text);
        let _ = parse_uptime(&text);
        let _ = parse_cpu_times(&text);
        let _ = parse_vmstat_field(&text, "oom_kill");
        let _ = parse_pressure(&text);
        let _ = parse_proc_cgroup(&text);
        let _ = parse_mountinfo(&text);
        let _ = parse_flat_keyed(&text).count();
        let _ = parse_limit_value(&text);
        let _ = parse_cpu_max(&text);
        let _ = parse_cpu_stat(&text);
    }

    #[test]
    fn stat_is_read_back(
        name in names(),
        pid in 1..i32::MAX,
        ids in prop::array::uniform5(-1..i32::MAX),
        state in prop::sample::select(vec!['R', 'S', 'D', 'T', 't', 'Z', 'X', 'I']),
        kernel_thread in any::<bool>(),
        numbers in prop::array::uniform5(0..u64::MAX),
        threads in 0..100_000u32,
        rss in 0..i64::MAX as u64,
    ) {
        let flags = 0x40_0000u64 | if kernel_thread { 0x20_0000 } else { 0 };
        let [utime, stime, start, size, limit] = numbers;
        let mut line = format!("{pid} (").into_bytes();
        line.extend_from_slice(&name);
        let [parent, group, session, tty, tpgid] = ids;
        line.extend_from_slice(
            format!(
                ") {state} {parent} {group} {session} {tty} {tpgid} {flags} 1 2 3 4 {utime} {stime} -7 8 20 -5 {threads} 0 \
                 {start} {size} {rss} {limit} 1 1 0 0\n"
            )
            .as_bytes(),
        );
        let stat = parse_stat(&line);
        prop_assert_eq!(stat, Some(Stat {
            pid,
            name: &name,
            state,
            parent,
            process_group: group,
            session,
            tty_nr: tty,
            tpgid,
            kernel_thread,
            utime_ticks: utime,
            stime_ticks: stime,
            threads,
            start_ticks: start,
            rss_pages: rss,
        }));
        // Cut off anywhere before the field behind the last one, nothing is taken for a number that is half of one.
        let whole = format!("{rss} {limit}").len() + " 1 1 0 0\n".len();
        for cut in 0..line.len() - whole + rss.to_string().len() {
            if let Some(half) = parse_stat(&line[..cut]) {
                // Only a name that looks like a whole line gets this far.
                prop_assert!(name.contains(&b')'), "{half:?}");
            }
        }
    }

    #[test]
    fn statm_is_read_back(size in any::<u64>(), resident in any::<u64>(), shared in any::<u64>()) {
        let line = format!("{size} {resident} {shared} 5 0 123 0\n");
        prop_assert_eq!(parse_statm(line.as_bytes()), Some(Statm { size, resident, shared }));
        prop_assert_eq!(parse_statm(&line.as_bytes()[..format!("{size} {resident} {shared}").len()]), None);
    }

    #[test]
    fn rollup_is_read_back(kb in prop::array::uniform7(0u64..1 << 40)) {
        let [rss, pss, clean, dirty, anonymous, swap, swap_pss] = kb;
        let text = format!(
            "556dfe247000-7ffdd0f3f000 ---p 00000000 00:00 0                          [rollup]\n\
             Rss:     {rss:>8} kB\nPss:   {pss:>8} kB\nPss_Dirty:             112 kB\nPrivate_Clean: {clean:>8} kB\n\
             Private_Dirty: {dirty} kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\nSwapPss:  {swap_pss} kB\nLocked: 0 kB\n"
        );
        let expected = Rollup {
            rss: rss << 10,
            pss: pss << 10,
            private: (clean + dirty) << 10,
            anonymous: anonymous << 10,
            swap: swap << 10,
            swap_pss: swap_pss << 10,
        };
        prop_assert_eq!(parse_smaps_rollup(text.as_bytes()), Some(expected));
    }

    #[test]
    fn status_is_read_back(name in "[a-zA-Z0-9:\\\\ ()]{0,15}", kb in prop::array::uniform5(0u64..1 << 40)) {
        let [peak, anon, file, shmem, swap] = kb;
        let text = format!(
            "Name:\t{name}\nUmask:\t0022\nPid:\t1\nVmHWM:\t{peak:>8} kB\nRssAnon:\t{anon:>8} kB\nRssFile:\t{file} kB\n\
             RssShmem:\t{shmem} kB\nVmSwap:\t{swap:>8} kB\nThreads:\t1\n"
        );
        let expected = StatusMemory {
            peak_rss: peak << 10,
            rss_anon: anon << 10,
            rss_file: file << 10,
            rss_shmem: shmem << 10,
            swap: swap << 10,
        };
        prop_assert_eq!(parse_status_memory(text.as_bytes()), Some(expected));
        prop_assert_eq!(parse_status_vm_swap(text.as_bytes()), Some(swap << 10));
    }

    #[test]
    fn children_are_read_back(pids in prop::collection::vec(1..i32::MAX, 0..50)) {
        let text: String = pids.iter().map(|pid| format!("{pid} ")).collect();
        prop_assert_eq!(parse_children(text.as_bytes()).collect::<Vec<_>>(), pids.clone());
        if let Some((_, whole)) = pids.split_last() {
            prop_assert_eq!(parse_children(text.trim_end().as_bytes()).collect::<Vec<_>>(), whole);
        }
    }

    #[test]
    fn limits_are_read_back(bytes in 0..(1u64 << 63) - (1 << 30)) {
        prop_assert_eq!(parse_limit_value(format!("{bytes}\n").as_bytes()), Ok(Some(bytes)));
    }

    #[test]
    fn flat_keys_are_read_back(pairs in prop::collection::btree_map("[a-z_]{1,20}", any::<u64>(), 0..20)) {
        let text: String = pairs.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
        for (key, value) in &pairs {
            prop_assert_eq!(flat_keyed(text.as_bytes(), key), Some(*value));
        }
        prop_assert_eq!(parse_flat_keyed(text.as_bytes()).count(), pairs.len());
        prop_assert_eq!(flat_keyed(text.as_bytes(), "NONE"), None);
    }

    #[test]
    fn groups_are_read_back(id in 0..100u32, path in "/[^\n]{0,40}", controllers in prop::collection::vec("[a-z]{1,8}", 0..4)) {
        let text = format!("{id}:{}:{path}\n0::/\n", controllers.join(","));
        let read = parse_proc_cgroup(text.as_bytes());
        prop_assert_eq!(read.len(), 2);
        prop_assert_eq!(&read[0], &CgroupLine { hierarchy: id, controllers, path: path.into() });
    }

    #[test]
    fn mounts_are_read_back(point in "/[^\n]{0,30}", root in "/[^\n]{0,30}", read_only in any::<bool>(), optional in 0..3usize) {
        let escape = |path: &str| {
            path.bytes().fold(Vec::new(), |mut out, byte| {
                if matches!(byte, b' ' | b'\t' | b'\n' | b'\\' | b'#') {
                    out.extend_from_slice(format!("\\{byte:03o}").as_bytes());
                } else {
                    out.push(byte);
                }
                out
            })
        };
        let mode = if read_only { "ro" } else { "rw" };
        let mut line = b"36 35 0:30 ".to_vec();
        line.extend_from_slice(&escape(&root));
        line.push(b' ');
        line.extend_from_slice(&escape(&point));
        line.extend_from_slice(format!(" {mode},nosuid,relatime{} - cgroup cgroup rw,cpu,cpuacct,xattr\n", " master:1".repeat(optional)).as_bytes());
        prop_assert_eq!(parse_mountinfo(&line), vec![CgroupMount {
            version: Version::V1,
            mount_point: point.into(),
            root: root.into(),
            controllers: vec!["cpu".into(), "cpuacct".into()],
            read_only,
        }]);
    }

    #[test]
    fn loads_are_read_back(a in 0u64..100_000, running in 0u64..1000, total in 0u64..100_000, last in 1..i32::MAX) {
        let text = format!("{}.{:02} 0.05 16.40 {running}/{total} {last}\n", a / 100, a % 100);
        let load = parse_loadavg(text.as_bytes()).unwrap();
        prop_assert!((load.load1 - a as f64 / 100.0).abs() < 1e-9);
        prop_assert_eq!((load.running, load.total, load.last_pid), (running, total, last));
    }
}

#[test]
fn the_words_for_no_limit() {
    for text in ["max\n", "max", "-1\n", "9223372036854771712\n", "9223372036854710272\n", "18446744073709551615\n"] {
        assert_eq!(parse_limit_value(text.as_bytes()), Ok(None), "{text}");
    }
    for text in ["", "\n", "-2", "maximum", "1.5", "18446744073709551616", "12 13"] {
        assert!(parse_limit_value(text.as_bytes()).is_err(), "{text}");
    }
    assert_eq!(parse_cpu_max(b"max 100000\n"), Some(CpuMax { quota_us: None, period_us: 100_000 }));
    assert_eq!(parse_cpu_max(b"150000 100000\n"), Some(CpuMax { quota_us: Some(150_000), period_us: 100_000 }));
}

#[test]
fn groups_of_either_version() {
    let mounts = parse_mountinfo(
        b"31 23 0:28 / /sys/fs/cgroup ro,relatime - tmpfs tmpfs rw,mode=755\n\
          35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro,nosuid shared:9 master:2 - cgroup cgroup rw,memory\n\
          40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
          41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n",
    );
    let short: Vec<_> =
        mounts.iter().map(|m| (m.version, m.root.to_str().unwrap(), m.controllers.join(","), m.read_only)).collect();
    assert_eq!(
        short,
        [
            (Version::V1, "/docker/abc", "memory".into(), true),
            (Version::V1, "/", "name=systemd".into(), false),
            (Version::V2, "/", String::new(), false),
        ]
    );
}

#[test]
fn pressure_and_throttling() {
    let text = b"some avg10=1.50 avg60=0.07 avg300=0.00 total=12345\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=77\n";
    let pressure = parse_pressure(text).unwrap();
    assert_eq!((pressure.some.avg10, pressure.some.total_us), (1.5, 12345));
    assert_eq!(pressure.full.map(|full| (full.avg10, full.total_us)), Some((0.25, 77)));
    let v1 = parse_cpu_stat(b"nr_periods 10\nnr_throttled 3\nthrottled_time 5000000\n").unwrap();
    let v2 =
        parse_cpu_stat(b"usage_usec 9\nuser_usec 1\nnr_periods 10\nnr_throttled 3\nthrottled_usec 5000\n").unwrap();
    assert_eq!(CpuStat { usage_us: None, ..v2 }, v1);
    assert_eq!(v2.usage_us, Some(9));
}

#[test]
fn this_machine() {
    let mut buffer = [0; 4096];
    let me = i32::try_from(std::process::id()).unwrap();
    let stat = parse_stat(read_of(me, "stat", &mut buffer).unwrap()).unwrap();
    assert_eq!((stat.pid, stat.kernel_thread), (me, false));
    let process = Process { pid: me, start_ticks: stat.start_ticks };
    assert_eq!(Process::of(me), Ok(process));
    assert!(process.is_alive());
    assert!(!Process { start_ticks: process.start_ticks + 1, ..process }.is_alive());
    let statm = parse_statm(read_of(me, "statm", &mut buffer).unwrap()).unwrap();
    assert!(statm.resident > 0);
    assert!(parse_smaps_rollup(read_of(me, "smaps_rollup", &mut buffer).unwrap()).is_some_and(|r| r.pss > 0));
    assert!(parse_status_memory(read_of(me, "status", &mut buffer).unwrap()).is_some_and(|s| s.rss_anon > 0));
    let mut pids = Vec::new();
    for_each_pid(|pid| pids.push(pid)).unwrap();
    assert!(pids.contains(&me));
    let mut text = Vec::new();
    read_all_of(me, "cmdline", &mut text).unwrap();
    assert!(!text.is_empty());
    assert!(parse_meminfo(&read_file("/proc/meminfo").unwrap()).is_some_and(|m| m.available <= m.total));
    assert!(parse_loadavg(&read_file("/proc/loadavg").unwrap()).is_some_and(|load| load.total > 0));
    assert!(parse_uptime(&read_file("/proc/uptime").unwrap()).is_some());
    assert!(parse_cpu_times(&read_file("/proc/stat").unwrap()).is_some_and(|times| times.total > 0));
    assert!(parse_vmstat_field(&read_file("/proc/vmstat").unwrap(), "oom_kill").is_some());
    assert!(read_file("/proc/nothing").unwrap_err().to_string().starts_with("cannot read /proc/nothing: "));
    assert!(read_of(me, &"x".repeat(80), &mut buffer).is_err());
}
