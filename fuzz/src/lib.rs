//! What the targets share: values out of the input's bytes, and the way the kernel writes them.
//!
//! Every target uses its input twice. As text it goes to the parsers as it is: whatever they make of it must stay the same
//! when it is written down and read again. As a supply of numbers and names it fills a well-formed file, of which the
//! parser has to answer exactly what was put in.

use libfuzzer_sys::arbitrary::{Arbitrary, Unstructured};

/// The input as a supply of values; when it is used up, all further numbers are 0.
#[derive(Debug)]
pub struct Values<'d>(Unstructured<'d>);

impl<'d> Values<'d> {
    /// Values out of `data`.
    #[must_use]
    pub fn new(data: &'d [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    /// The next value.
    pub fn take<T: Arbitrary<'d> + Default>(&mut self) -> T {
        self.0.arbitrary().unwrap_or_default()
    }

    /// The next number below `end`, of many magnitudes: most numbers of a real file are small.
    pub fn below(&mut self, end: u64) -> u64 {
        let shift = self.take::<u8>() % 64;
        (self.take::<u64>() >> shift) % end.max(1)
    }

    /// A place in something of this length, its end included.
    pub fn place(&mut self, length: usize) -> usize {
        self.take::<u16>() as usize % (length + 1)
    }

    /// At most `longest` bytes.
    pub fn bytes(&mut self, longest: usize) -> &'d [u8] {
        let length = self.place(longest).min(self.0.len());
        self.0.bytes(length).unwrap_or_default()
    }

    /// Whether the input is used up.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The largest number of kilobytes whose bytes fit into 64 bits.
pub const KILOBYTES: u64 = u64::MAX >> 10;

/// A line of `meminfo`, `status` or `smaps_rollup`; `bytes` are whole kilobytes.
#[must_use]
pub fn kilobytes(key: &str, bytes: u64) -> String {
    format!("{key}:{:>16} kB\n", bytes >> 10)
}

/// What is left of `text` when the buffer was too small for it.
#[must_use]
pub fn cut(text: &[u8], length: usize) -> &[u8] {
    &text[..length.min(text.len())]
}
