//! What a process holds: `statm`, `smaps_rollup`, the memory lines of `status`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_fuzz::{KILOBYTES, Values, cut, kilobytes};
use plimsoll_kernel::procfs::{
    Rollup, Statm, StatusMemory, parse_smaps_rollup, parse_statm, parse_status_memory, parse_status_vm_swap,
};

fuzz_target!(|data: &[u8]| {
    let mut values = Values::new(data);
    statm(data, &mut values);
    rollup(data, &mut values);
    status(data, &mut values);
});

fn statm(data: &[u8], values: &mut Values<'_>) {
    let line = |statm: Statm| format!("{} {} {} 7 0 99 0\n", statm.size, statm.resident, statm.shared).into_bytes();
    if let Some(statm) = parse_statm(data) {
        assert_eq!(parse_statm(&line(statm)), Some(statm));
    }
    let given = Statm { size: values.take(), resident: values.take(), shared: values.take() };
    let line = line(given);
    assert_eq!(parse_statm(&line), Some(given));
    let seen = cut(&line, values.place(line.len()));
    assert!(parse_statm(seen).is_none_or(|statm| statm == given), "{}", seen.escape_ascii());
}

fn rollup(data: &[u8], values: &mut Values<'_>) {
    if let Some(Rollup { rss, pss, private: _, anonymous, swap, swap_pss }) = parse_smaps_rollup(data) {
        assert!([rss, pss, anonymous, swap, swap_pss].iter().all(|bytes| bytes % 1024 == 0));
    }
    let mut next = || values.below(KILOBYTES + 1) << 10;
    let (rss, pss, anonymous, swap, swap_pss) = (next(), next(), next(), next(), next());
    let (clean, dirty) = (next(), next());
    let text = [
        "55d0c0a0f000-7ffd1a5fe000 ---p 00000000 00:00 0                          [rollup]\n".to_owned(),
        kilobytes("Rss", rss),
        kilobytes("Pss", pss),
        kilobytes("Pss_Anon", 5 << 10),
        kilobytes("Private_Clean", clean),
        kilobytes("Private_Dirty", dirty),
        kilobytes("Anonymous", anonymous),
        kilobytes("Swap", swap),
        kilobytes("SwapPss", swap_pss),
    ]
    .concat();
    let given = Rollup { rss, pss, private: clean.saturating_add(dirty), anonymous, swap, swap_pss };
    assert_eq!(parse_smaps_rollup(text.as_bytes()), Some(given), "{text}");
    // Lines that were cut off count as those that an older kernel does not have.
    let seen = cut(text.as_bytes(), values.place(text.len()));
    if let Some(part) = parse_smaps_rollup(seen) {
        assert_eq!((part.rss, part.pss), (rss, pss));
        assert!(part.private == given.private || part.private == clean || part.private == 0);
        let pairs = [(part.anonymous, anonymous), (part.swap, swap), (part.swap_pss, swap_pss)];
        assert!(pairs.iter().all(|&(seen, whole)| seen == 0 || seen == whole), "{}", seen.escape_ascii());
    }
}

fn status(data: &[u8], values: &mut Values<'_>) {
    let _ = parse_status_vm_swap(data);
    if let Some(memory) = parse_status_memory(data) {
        assert_eq!(memory.swap % 1024, 0);
    }
    let mut next = || values.below(KILOBYTES + 1) << 10;
    let (peak_rss, rss_anon, rss_file, rss_shmem, swap) = (next(), next(), next(), next(), next());
    let given = StatusMemory { peak_rss, rss_anon, rss_file, rss_shmem, swap };
    // The kernel escapes newlines and backslashes in a name, so that it cannot look like a line; all else stands as it is.
    let name: String = data
        .iter()
        .take(16)
        .map(|&byte| match byte {
            b'\n' => "\\n".to_owned(),
            b'\\' => "\\\\".to_owned(),
            other => char::from(other).to_string(),
        })
        .collect();
    let text = [
        format!("Name:\t{name}\nUmask:\t0022\nState:\tS (sleeping)\n"),
        kilobytes("VmHWM", peak_rss),
        kilobytes("VmRSS", 1 << 20),
        kilobytes("RssAnon", rss_anon),
        kilobytes("RssFile", rss_file),
        kilobytes("RssShmem", rss_shmem),
        kilobytes("VmSwap", swap),
        "Threads:\t1\n".to_owned(),
    ]
    .concat();
    assert_eq!(parse_status_memory(text.as_bytes()), Some(given), "{text}");
    assert_eq!(parse_status_vm_swap(text.as_bytes()), Some(swap), "{text}");
}
