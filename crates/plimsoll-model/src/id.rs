//! The id of a run: short, unique, sorted by time, and safe as a file or group name.

use std::fmt;
use std::str::FromStr;

/// Sixteen characters of Crockford's base 32 in lower case: 48 bits of milliseconds since 1970, then 32 random bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId([u8; 16]);

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

impl RunId {
    /// Joins a time (milliseconds since 1970, 48 bits are kept) and a random number.
    #[must_use]
    pub fn new(unix_ms: u64, random: u32) -> Self {
        let bits = (u128::from(unix_ms & ((1 << 48) - 1)) << 32) | u128::from(random);
        let mut text = [0; 16];
        for (place, byte) in text.iter_mut().enumerate() {
            *byte = ALPHABET[(bits >> (75 - 5 * place)) as usize & 31];
        }
        Self(text)
    }

    /// The sixteen characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The bytes come from ALPHABET alone, which is ASCII.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is not sixteen characters of the alphabet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no id")]
pub struct IdError(String);

impl FromStr for RunId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes: [u8; 16] = text.as_bytes().try_into().map_err(|_| IdError(text.to_owned()))?;
        if bytes.iter().all(|b| ALPHABET.contains(b)) { Ok(Self(bytes)) } else { Err(IdError(text.to_owned())) }
    }
}

impl serde::Serialize for RunId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.as_str())
    }
}

impl<'de> serde::Deserialize<'de> for RunId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sorted_by_time_and_read_back(a in 0u64..1 << 48, b in 0u64..1 << 48, r in any::<u32>(), q in any::<u32>()) {
            let (x, y) = (RunId::new(a, r), RunId::new(b, q));
            if a != b {
                prop_assert_eq!(a < b, x < y);
            }
            prop_assert_eq!(x.to_string().parse(), Ok(x));
        }

        #[test]
        fn strangers_are_refused(text in ".{0,20}") {
            if let Ok(id) = text.parse::<RunId>() {
                prop_assert_eq!(id.as_str(), text);
            }
        }
    }
}
