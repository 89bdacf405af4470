//! `/proc/PID/stat` and `children`: who somebody is, and whose child.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_fuzz::{Values, cut};
use plimsoll_kernel::procfs::{Stat, parse_children, parse_stat};

fuzz_target!(|data: &[u8]| {
    if let Some(stat) = parse_stat(data) {
        assert!(stat.state.is_ascii_alphabetic());
        let again = [before(&stat), behind(&stat)].concat();
        assert_eq!(parse_stat(&again), Some(stat), "{}", again.escape_ascii());
    }
    a_name_is_itself(data);
    children(data);
});

/// Whatever a process calls itself, the line says of it what it says of any other.
fn a_name_is_itself(data: &[u8]) {
    let mut values = Values::new(data);
    let mut stat = Stat {
        pid: values.take(),
        name: &[],
        state: char::from(b'A' + values.take::<u8>() % 26),
        parent: values.take(),
        process_group: values.take(),
        session: values.take(),
        tty_nr: values.take(),
        tpgid: values.take(),
        kernel_thread: values.take(),
        utime_ticks: values.take(),
        stime_ticks: values.take(),
        threads: values.take(),
        start_ticks: values.take(),
        rss_pages: values.below(1 << 63),
    };
    let length = values.place(70);
    for name in [data, values.bytes(64)] {
        stat.name = name;
        let head = before(&stat);
        let line = [head.as_slice(), &behind(&stat)].concat();
        assert_eq!(parse_stat(&line), Some(stat), "{}", line.escape_ascii());
        // Behind the name a line may be cut off anywhere: then there is no answer, or the same.
        let seen = cut(&line, head.len() + length);
        assert!(parse_stat(seen).is_none_or(|seen| seen == stat), "{}", seen.escape_ascii());
    }
}

fn before(stat: &Stat<'_>) -> Vec<u8> {
    [format!("{} (", stat.pid).as_bytes(), stat.name, b")"].concat()
}

fn behind(stat: &Stat<'_>) -> Vec<u8> {
    let flags = if stat.kernel_thread { 0x0020_0040 } else { 0x0040_0100 };
    format!(
        " {} {} {} {} {} {} {flags} 1 2 3 4 {} {} 5 -6 20 -19 {} 0 {} 8192 {} 18446744073709551615 1 1 0 0\n",
        stat.state,
        stat.parent,
        stat.process_group,
        stat.session,
        stat.tty_nr,
        stat.tpgid,
        stat.utime_ticks,
        stat.stime_ticks,
        stat.threads,
        stat.start_ticks,
        stat.rss_pages,
    )
    .into_bytes()
}

fn children(data: &[u8]) {
    let all: Vec<i32> = parse_children(data).collect();
    assert!(all.iter().all(|&pid| pid > 0));
    let again: String = all.iter().map(|pid| format!("{pid} ")).collect();
    assert!(parse_children(again.as_bytes()).eq(all.iter().copied()));
    // Of a list that was cut off the beginning is seen, and never a pid that is none.
    let seen = cut(data, Values::new(data).place(data.len()));
    assert!(parse_children(seen).zip(&all).all(|(seen, &pid)| seen == pid));
    assert!(parse_children(seen).count() <= all.len());
}
