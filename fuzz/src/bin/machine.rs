//! How the machine is doing: `meminfo`, `loadavg`, `uptime`, `stat`, `vmstat`, `pressure/*`.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use plimsoll_fuzz::{KILOBYTES, Values, cut, kilobytes};
use plimsoll_kernel::procfs::{
    CpuTimes, Meminfo, Stall, Uptime, parse_cpu_times, parse_loadavg, parse_meminfo, parse_pressure, parse_uptime,
    parse_vmstat_field,
};

fuzz_target!(|data: &[u8]| {
    let mut values = Values::new(data);
    meminfo(data, &mut values);
    loadavg(data, &mut values);
    uptime(data, &mut values);
    cpu_times(data, &mut values);
    pressure(data, &mut values);
    let count = values.take();
    let text = format!("nr_free_pages 5\noom_kill_x 7\noom_kill {count}\nnr_unstable 0\n");
    assert_eq!(parse_vmstat_field(text.as_bytes(), "oom_kill"), Some(count));
    let _ = parse_vmstat_field(data, "oom_kill");
});

fn meminfo(data: &[u8], values: &mut Values<'_>) {
    if let Some(info) = parse_meminfo(data) {
        let whole = [info.total, info.free, info.swap_total, info.swap_free, info.committed, info.commit_limit];
        assert!(whole.iter().all(|bytes| bytes % 1024 == 0));
    }
    let mut next = || values.below(KILOBYTES + 1) << 10;
    let (total, free, buffers, cached, available) = (next(), next(), next(), next(), next());
    let (swap_total, swap_free, committed, commit_limit) = (next(), next(), next(), next());
    let old_kernel = values.take();
    let text = [
        kilobytes("MemTotal", total),
        kilobytes("MemFree", free),
        if old_kernel { String::new() } else { kilobytes("MemAvailable", available) },
        kilobytes("Buffers", buffers),
        kilobytes("Cached", cached),
        kilobytes("SwapCached", 1 << 10),
        kilobytes("SwapTotal", swap_total),
        kilobytes("SwapFree", swap_free),
        kilobytes("CommitLimit", commit_limit),
        kilobytes("Committed_AS", committed),
        "HugePages_Total:       0\n".to_owned(),
    ]
    .concat();
    let available = if old_kernel { free.saturating_add(buffers.saturating_add(cached)) } else { available };
    let given = Meminfo { total, available, free, swap_total, swap_free, committed, commit_limit };
    assert_eq!(parse_meminfo(text.as_bytes()), Some(given), "{text}");
    let seen = parse_meminfo(cut(text.as_bytes(), values.place(text.len())));
    assert!(seen.is_none_or(|info| info.total == total && info.free == free), "{text}");
}

fn loadavg(data: &[u8], values: &mut Values<'_>) {
    if let Some(load) = parse_loadavg(data) {
        assert!([load.load1, load.load5, load.load15].iter().all(|load| load.is_finite() && *load >= 0.0));
    }
    let (hundredths, running, total, last): (u32, u64, u64, i32) =
        (values.take(), values.take(), values.take(), values.take());
    let text = format!("{}.{:02} 0.05 16.40 {running}/{total} {last}\n", hundredths / 100, hundredths % 100);
    let load = parse_loadavg(text.as_bytes()).expect(&text);
    assert_eq!((load.running, load.total, load.last_pid), (running, total, last), "{text}");
    assert_eq!((load.load1 * 100.0).round(), f64::from(hundredths), "{text}");
    // Without its newline the line may be cut anywhere.
    assert_eq!(parse_loadavg(cut(text.as_bytes(), values.place(text.len() - 1))), None);
}

fn uptime(data: &[u8], values: &mut Values<'_>) {
    let line = |Uptime { up, idle }: Uptime| {
        let shown = |time: Duration| format!("{}.{:03}", time.as_secs(), time.subsec_millis());
        format!("{} {}\n", shown(up), shown(idle))
    };
    let given = Uptime {
        up: Duration::from_millis(values.below(u64::MAX)),
        idle: Duration::from_millis(values.below(u64::MAX)),
    };
    for uptime in [Some(given), parse_uptime(data)].into_iter().flatten() {
        let text = line(uptime);
        assert_eq!(parse_uptime(text.as_bytes()), Some(uptime), "{text}");
    }
}

fn cpu_times(data: &[u8], values: &mut Values<'_>) {
    if let Some(times) = parse_cpu_times(data) {
        let parts = times.idle.checked_add(times.io_wait).and_then(|sum| sum.checked_add(times.steal));
        assert!(parts.is_some_and(|parts| parts <= times.total));
    }
    // Ten numbers, of which the last two, guest time, are part of the first two.
    let ticks: [u64; 10] = std::array::from_fn(|_| values.below(u64::MAX));
    let shown = ticks.map(|ticks| ticks.to_string()).join(" ");
    let text = format!("cpu  {shown}\ncpu0 {shown}\nintr 1 2 3\n");
    let total = ticks[..8].iter().try_fold(0u64, |sum, &ticks| sum.checked_add(ticks));
    let given = total.map(|total| CpuTimes { total, idle: ticks[3], io_wait: ticks[4], steal: ticks[7] });
    assert_eq!(parse_cpu_times(text.as_bytes()), given, "{text}");
    assert_eq!(parse_cpu_times(format!("cpu0 {shown}\n").as_bytes()), None);
}

fn pressure(data: &[u8], values: &mut Values<'_>) {
    let sane = |stall: Stall| [stall.avg10, stall.avg60].iter().all(|part| part.is_finite() && *part >= 0.0);
    if let Some(pressure) = parse_pressure(data) {
        assert!(sane(pressure.some) && pressure.full.is_none_or(sane));
    }
    let (some, full): (u64, Option<u64>) = (values.take(), values.take());
    let percent = values.below(10_001);
    let line = |kind: &str, total: u64| {
        format!("{kind} avg10={}.{:02} avg60=0.25 avg300=0.00 total={total}\n", percent / 100, percent % 100)
    };
    let text = line("some", some) + &full.map(|full| line("full", full)).unwrap_or_default();
    let pressure = parse_pressure(text.as_bytes()).expect(&text);
    assert_eq!(pressure.some.total_us, some, "{text}");
    assert_eq!(pressure.full.map(|full| full.total_us), full, "{text}");
    assert_eq!((pressure.some.avg10 * 100.0).round(), percent as f32, "{text}");
    let seen = cut(text.as_bytes(), values.place(text.len()));
    assert!(parse_pressure(seen).is_none_or(|pressure| pressure.some.total_us == some), "{text}");
}
