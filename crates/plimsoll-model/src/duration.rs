//! Durations as people write them: `500ms`, `30s`, `5m`, `1h30m`; a plain number is seconds.

use std::fmt;
use std::time::Duration;

/// Why a duration was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// The text is no sequence of numbers with units.
    #[error("`{0}` is no duration: write 500ms, 30s, 5m, 1h30m, or plain seconds")]
    Syntax(String),
    /// More than a hundred years.
    #[error("`{0}` is longer than a hundred years")]
    TooLong(String),
}

/// The longest duration taken: a hundred years, in nanoseconds.
const LONGEST_NS: u128 = 100 * 365 * 24 * 3600 * 1_000_000_000;

/// Reads a duration: numbers with units `d h m s ms us ns` in any number, added up (`1h30m`, `1.5s`); a plain number is
/// seconds.
///
/// # Errors
/// [`DurationError`] names the text as it was given.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let syntax = || DurationError::Syntax(text.to_owned());
    let too_long = || DurationError::TooLong(text.to_owned());
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(syntax());
    }
    let mut total: u128 = 0;
    let mut first = true;
    while !rest.is_empty() {
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, behind) = rest.split_at(split);
        let unit_end = behind.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(unit_end);
        let unit_ns: u128 = match unit {
            "" if first && behind.is_empty() => 1_000_000_000,
            "ns" => 1,
            "us" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            "d" => 86_400_000_000_000,
            _ => return Err(syntax()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(syntax());
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_long())? };
        let digits = &fraction[..fraction.len().min(15)];
        let part: u128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| syntax())? };
        total += u128::from(whole) * unit_ns + part * unit_ns / 10u128.pow(digits.len() as u32);
        if total > LONGEST_NS {
            return Err(too_long());
        }
        rest = behind;
        first = false;
    }
    Ok(Duration::new((total / 1_000_000_000) as u64, (total % 1_000_000_000) as u32))
}

/// Prints a duration for people: the two largest units (`1h 30m`, `4.2s`, `250ms`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Human(pub Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        let (s, m, h, d) = (ms / 1000, ms / 60_000, ms / 3_600_000, ms / 86_400_000);
        let text = match ms {
            0..1000 => format!("{ms}ms"),
            1000..60_000 if ms % 1000 / 100 == 0 => format!("{s}s"),
            1000..60_000 => format!("{s}.{}s", ms % 1000 / 100),
            60_000..3_600_000 => format!("{m}m {}s", s % 60),
            3_600_000..86_400_000 => format!("{h}h {}m", m % 60),
            _ => format!("{d}d {}h", h % 24),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn as_people_write_them() {
        for (text, ms) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1.5s", 1_500),
            ("10", 10_000),
            ("0", 0),
            ("1d", 86_400_000),
            ("0.25", 250),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration() {
        for text in ["", "s", "5x", "-1s", "1h30", "1..2s", "5 m", "1H", "."] {
            assert!(matches!(parse(text), Err(DurationError::Syntax(_))), "{text}");
        }
        assert!(matches!(parse("40000d"), Err(DurationError::TooLong(_))));
        assert!(matches!(parse("99999999999999999999999s"), Err(DurationError::TooLong(_))));
    }

    #[test]
    fn for_people() {
        for (ms, text) in [(250, "250ms"), (4_230, "4.2s"), (5_000, "5s"), (90_000, "1m 30s"), (5_400_000, "1h 30m")] {
            assert_eq!(Human(Duration::from_millis(ms)).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn parts_add_up(h in 0u64..100, m in 0u64..100, s in 0u64..100, ms in 0u64..10_000) {
            let sum = Duration::from_millis(((h * 60 + m) * 60 + s) * 1000 + ms);
            prop_assert_eq!(parse(&format!("{h}h{m}m{s}s{ms}ms")), Ok(sum));
        }
    }
}
