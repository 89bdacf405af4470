//! Sizes as people write them.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_fuzz::Values;
use plimsoll_model::size::{Human, SizeError, parse};

/// The largest size.
const LARGEST: u64 = i64::MAX as u64;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    match parse(&text) {
        Ok(bytes) => understood(&text, bytes),
        Err(SizeError::Syntax(told) | SizeError::TooLarge(told)) => assert_eq!(told, text),
    }
    let mut values = Values::new(data);
    let number = values.below(u64::MAX);
    for (unit, shift) in [("", 0), ("k", 10), ("Mb", 20), (" GiB", 30), ("t", 40), ("P", 50)] {
        let expected = (number <= LARGEST >> shift).then(|| number << shift);
        assert_eq!(parse(&format!("{number}{unit}")).ok(), expected, "{number}{unit}");
    }
    for_people(number);
});

fn understood(text: &str, bytes: u64) {
    assert!(bytes <= LARGEST);
    assert_eq!(parse(&bytes.to_string()), Ok(bytes));
    assert_eq!(parse(&text.to_ascii_uppercase()), Ok(bytes));
    assert_eq!(parse(&format!(" {text}\n")), Ok(bytes));
    // The same by other means: near enough, for those round.
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = "bkmgtp".find(unit.trim().chars().next().unwrap_or('b').to_ascii_lowercase()).expect("a unit") * 10;
    let expected = number.parse::<f64>().expect("a number") * (1u64 << shift) as f64;
    assert!((bytes as f64 - expected).abs() <= 1.0 + expected * 1e-12, "{text}: {bytes}, not {expected}");
}

/// What is shown can be typed in, and means about the same.
fn for_people(bytes: u64) {
    let shown = Human(bytes).to_string();
    if shown.ends_with("EiB") {
        return; // shown, never taken
    }
    let read = parse(&shown).expect(&shown);
    assert!(read.abs_diff(bytes) <= bytes / 10, "{bytes}: {shown}");
}
