//! Words that are never shown: a token, or an address that lets whoever knows it write.

use std::fmt;
use std::hint::black_box;

/// A text that neither a message nor a log shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that has to send it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Is it this one? The time it takes tells how long the shown text is, and not where the two differ.
    ///
    /// Ten lines instead of the crate `subtle`: `black_box` is what it too keeps the compiler with from stopping early.
    #[must_use]
    pub fn is(&self, shown: &[u8]) -> bool {
        let own = self.0.as_bytes();
        let mut differ = usize::from(own.len() != shown.len());
        for (index, byte) in shown.iter().enumerate() {
            // Beyond its own end it is compared with itself again, so that every byte shown costs the same.
            let own = own.get(index % own.len().max(1)).copied().unwrap_or_default();
            differ |= usize::from(black_box(own ^ byte));
        }
        black_box(differ) == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn it_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)), "… Some(\n    …,\n)");
        assert_eq!(secret.expose(), "hunter2");
    }

    proptest! {
        #[test]
        fn it_is_itself_alone(own in ".{0,20}", shown in prop::collection::vec(any::<u8>(), 0..20)) {
            let secret = Secret::new(own.clone());
            prop_assert!(secret.is(own.as_bytes()));
            prop_assert_eq!(secret.is(&shown), own.as_bytes() == shown);
            // Neither the text twice nor its beginning.
            let twice = own.repeat(2);
            prop_assert_eq!(secret.is(twice.as_bytes()), own.is_empty());
            prop_assert_eq!(secret.is(&own.as_bytes()[..own.len() / 2]), own.is_empty());
        }
    }
}
