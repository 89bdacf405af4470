//! Durations as people write them.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use plimsoll_fuzz::Values;
use plimsoll_model::duration::{DurationError, Human, parse};

/// The longest duration.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    match parse(&text) {
        Ok(duration) => understood(&text, duration),
        Err(DurationError::Syntax(told) | DurationError::TooLong(told)) => assert_eq!(told, text),
    }
    let mut values = Values::new(data);
    let parts: [u64; 7] = std::array::from_fn(|_| values.below(u64::MAX));
    let units = [("d", 86_400_000_000_000), ("h", 3_600_000_000_000), ("m", 60_000_000_000), ("s", 1_000_000_000)];
    let units = units.into_iter().chain([("ms", 1_000_000), ("us", 1_000), ("ns", 1u128)]);
    let (mut written, mut sum) = (String::new(), 0);
    for ((unit, nanos), part) in units.zip(parts) {
        written += &format!("{part}{unit}");
        sum += u128::from(part) * nanos;
        let read = parse(&written).map(|duration| duration.as_nanos());
        if sum <= LONGEST.as_nanos() {
            assert_eq!(read, Ok(sum), "{written}");
        } else {
            assert_eq!(read, Err(DurationError::TooLong(written.clone())));
        }
    }
});

fn understood(text: &str, duration: Duration) {
    assert!(duration <= LONGEST);
    assert_eq!(parse(&format!("{}ns", duration.as_nanos())), Ok(duration));
    assert_eq!(parse(&format!("\t{text} ")), Ok(duration));
    let text = text.trim();
    if text.ends_with(|c: char| c.is_ascii_lowercase()) {
        // Parts add up, and two durations behind one another are one.
        let twice = parse(&text.repeat(2));
        assert!(
            twice == Ok(duration * 2) || (matches!(twice, Err(DurationError::TooLong(_))) && duration * 2 > LONGEST)
        );
    } else {
        assert_eq!(parse(&format!("{text}s")), Ok(duration), "a plain number is seconds");
    }
    // What is shown means no more, and about the same.
    let shown = Human(duration).to_string();
    let read = parse(&shown.replace(' ', "")).expect(&shown);
    assert!(read <= duration && duration - read <= (duration / 10).max(Duration::from_millis(1)), "{shown}");
}
