//! Sizes in Docker's grammar: `512m`, `1.5g`, `2GiB`, plain bytes; always 1024-based.

use std::fmt;

/// Why a size was not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The text is no number with a unit of the grammar.
    #[error("`{0}` is no size: write a number and a unit, such as 512m, 1.5g, 2GiB, or plain bytes")]
    Syntax(String),
    /// The number does not fit into 64 bits.
    #[error("`{0}` is larger than any memory: the largest size is 8 EiB")]
    TooLarge(String),
}

/// Reads a size in bytes. Units `b k m g t p` with an optional `b` or `ib` behind, any case; fractions are allowed
/// before a unit and rounded down to whole bytes.
///
/// # Errors
/// [`SizeError`] names the text as it was given.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let syntax = || SizeError::Syntax(text.to_owned());
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let unit = unit.trim_start().to_ascii_lowercase();
    let shift = match unit.as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(syntax()),
    };
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(syntax());
    }
    let too_large = || SizeError::TooLarge(text.to_owned());
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_large())? };
    // Eighteen digits of a fraction fit into 128 bits even times a pebibyte; further ones are below a byte.
    let digits = &fraction[..fraction.len().min(18)];
    let part: u128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| syntax())? };
    let part = (part << shift) / 10u128.pow(digits.len() as u32);
    let bytes = (u128::from(whole) << shift) + part;
    u64::try_from(bytes).ok().filter(|&bytes| bytes <= i64::MAX as u64).ok_or_else(too_large)
}

/// Prints a size for people: at most one decimal, the largest unit that leaves a number of at least 1 (`1.5 GiB`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Human(pub u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut unit = 0;
        let mut value = self.0 as f64;
        // 1023.95 would print as 1024.0: step up where rounding would.
        while value >= 1023.95 && unit < UNITS.len() - 1 {
            value /= 1024.0;
            unit += 1;
        }
        let text = if unit == 0 || (value * 10.0).round() % 10.0 == 0.0 {
            format!("{value:.0} {}", UNITS[unit])
        } else {
            format!("{value:.1} {}", UNITS[unit])
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn dockers_grammar() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512b", 512),
            ("64k", 64 << 10),
            ("512m", 512 << 20),
            ("512MB", 512 << 20),
            ("1.5g", 3 << 29),
            ("2GiB", 2 << 30),
            ("2 GiB", 2 << 30),
            (".5k", 512),
            ("1t", 1 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size() {
        for text in ["", "m", ".", "-1", "1.2.3m", "12x", "1 m m", "0x10", "1e3", "٣m", "80%"] {
            assert!(matches!(parse(text), Err(SizeError::Syntax(_))), "{text}");
        }
        for text in ["9999999999999999999999", "8192p", "99999999999g"] {
            assert!(matches!(parse(text), Err(SizeError::TooLarge(_))), "{text}");
        }
    }

    #[test]
    fn for_people() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (3 << 29, "1.5 GiB"), ((1 << 20) - 1, "1 MiB")]
        {
            assert_eq!(Human(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn plain_bytes_are_themselves(bytes in 0..i64::MAX as u64) {
            prop_assert_eq!(parse(&bytes.to_string()), Ok(bytes));
        }

        #[test]
        fn units_shift(n in 0u64..1 << 12, (unit, shift) in prop::sample::select(vec![("k", 10), ("mib", 20), ("GB", 30), ("t", 40)])) {
            prop_assert_eq!(parse(&format!("{n}{unit}")), Ok(n << shift));
        }
    }
}
