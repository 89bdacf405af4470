//! The small files of groups: one value with `max`, `cpu.max`, flat keyed files, `cpu.stat`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_fuzz::{Values, cut};
use plimsoll_kernel::procfs::{
    CpuMax, CpuStat, flat_keyed, parse_cpu_max, parse_cpu_stat, parse_flat_keyed, parse_limit_value,
};

fuzz_target!(|data: &[u8]| {
    let mut values = Values::new(data);
    limit(data);
    let value = values.take();
    whole_number(value);
    whole_number(u64::MAX - value);
    whole_number(values.below(100));
    // What says "no limit", or is garbage, is never a number, whatever stands around it.
    for text in [[data, b"max"].concat(), [b"max", data].concat(), [b"-", data].concat()] {
        assert!(!matches!(parse_limit_value(&text), Ok(Some(_))), "{}", text.escape_ascii());
    }
    flat(data, &mut values);
    cpu(data, &mut values);
});

fn limit(data: &[u8]) {
    let word = data.trim_ascii();
    match parse_limit_value(data) {
        Ok(Some(value)) => {
            let digits: Vec<u8> = word.iter().copied().skip_while(|&byte| byte == b'0').collect();
            let shown = if value == 0 { String::new() } else { value.to_string() };
            assert_eq!(digits, shown.as_bytes(), "{}", word.escape_ascii());
        }
        Ok(None) => assert!(word == b"max" || word == b"-1" || word.iter().all(u8::is_ascii_digit)),
        Err(error) => assert_eq!(error.0, String::from_utf8_lossy(word)),
    }
}

/// A number is itself, unless it is within a gibibyte of the largest signed one or above: that is v1's "no limit".
fn whole_number(value: u64) {
    let expected = (value < (1 << 63) - (1 << 30)).then_some(value);
    assert_eq!(parse_limit_value(format!("{value}\n").as_bytes()), Ok(expected));
    let below_zero = parse_limit_value(format!("-{value}\n").as_bytes());
    assert_eq!(below_zero.ok(), (value == 1).then_some(None), "-{value}");
}

fn flat(data: &[u8], values: &mut Values<'_>) {
    let pairs: Vec<(&[u8], u64)> = parse_flat_keyed(data).collect();
    let again: Vec<u8> =
        pairs.iter().flat_map(|(key, value)| [*key, format!(" {value}\n").as_bytes()].concat()).collect();
    assert!(parse_flat_keyed(&again).eq(pairs.iter().copied()), "{}", again.escape_ascii());
    for (key, _) in &pairs {
        if let Ok(key) = std::str::from_utf8(key) {
            let first = pairs.iter().find(|(name, _)| *name == key.as_bytes()).map(|(_, value)| *value);
            assert_eq!(flat_keyed(data, key), first, "{key}");
        }
    }
    // Of a file that was cut off the beginning is seen, and no number that is none.
    let mut seen = parse_flat_keyed(cut(data, values.place(data.len())));
    assert!(pairs.iter().map_while(|pair| Some((pair, seen.next()?))).all(|(pair, seen)| *pair == seen));
    assert_eq!(seen.next(), None);
}

fn cpu(data: &[u8], values: &mut Values<'_>) {
    let _ = parse_cpu_max(data);
    let (quota_us, period_us) = (values.below(1 << 62), values.take());
    for quota_us in [None, Some(quota_us)] {
        let quota = quota_us.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
        let text = format!("{quota} {period_us}\n");
        assert_eq!(parse_cpu_max(text.as_bytes()), Some(CpuMax { quota_us, period_us }), "{text}");
    }
    let shown = |stat: CpuStat| {
        let CpuStat { usage_us, periods, throttled, throttled_us } = stat;
        let usage = usage_us.map(|usage| format!("usage_usec {usage}\n")).unwrap_or_default();
        format!("{usage}user_usec 7\nnr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec {throttled_us}\n")
    };
    let given = CpuStat {
        usage_us: values.take(),
        periods: values.take(),
        throttled: values.take(),
        throttled_us: values.take(),
    };
    for stat in [Some(given), parse_cpu_stat(data)].into_iter().flatten() {
        assert_eq!(parse_cpu_stat(shown(stat).as_bytes()), Some(stat));
    }
}
