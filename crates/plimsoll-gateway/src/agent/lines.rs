//! Lines out of whatever pieces a pipe gives, none longer than may be.

/// A line is longer than may be: nothing that comes after it can be read any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line of its output is longer than {longest} bytes (the pool's max_line)")]
pub struct TooLong {
    /// What was allowed, bytes without the newline.
    pub longest: usize,
}

/// Splits what it is fed with. It holds the beginning of one line, never more than a line may have.
#[derive(Debug)]
pub struct Lines {
    begun: Vec<u8>,
    longest: usize,
    is_over: bool,
}

/// What an idle splitter may keep of its buffer.
const KEPT: usize = 4 << 10;

impl Lines {
    /// A splitter for lines of at most `longest` bytes.
    #[must_use]
    pub fn new(longest: usize) -> Self {
        Self { begun: Vec::new(), longest, is_over: false }
    }

    /// Gives every line that `chunk` completes to `each`, without its newline; what is left waits for the next chunk. A
    /// line that came whole is not copied.
    ///
    /// # Errors
    /// When a line is too long, now and from then on; the lines before it have been given.
    pub fn push(&mut self, mut chunk: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), TooLong> {
        while let Some(end) = chunk.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = (&chunk[..end], &chunk[end + 1..]);
            if self.begun.is_empty() {
                self.fits(line.len())?;
                each(line);
            } else {
                self.hold(line)?;
                each(&self.begun);
                self.forget();
            }
            chunk = rest;
        }
        self.hold(chunk)
    }

    /// The end of input: what was begun is a line as well.
    pub fn finish(&mut self, mut each: impl FnMut(&[u8])) {
        if !self.begun.is_empty() && !self.is_over {
            each(&self.begun);
        }
        self.forget();
    }

    /// Bytes of a line that has begun.
    #[must_use]
    pub fn held(&self) -> usize {
        self.begun.len()
    }

    fn fits(&mut self, length: usize) -> Result<(), TooLong> {
        self.is_over |= length > self.longest;
        if self.is_over {
            self.begun = Vec::new();
            return Err(TooLong { longest: self.longest });
        }
        Ok(())
    }

    fn hold(&mut self, part: &[u8]) -> Result<(), TooLong> {
        let length = self.begun.len() + part.len();
        self.fits(length)?;
        if length > self.begun.capacity() {
            // Twice as much, as ever, but not beyond the longest line.
            let room = (2 * length).min(self.longest);
            self.begun.reserve_exact(room - self.begun.len());
        }
        self.begun.extend_from_slice(part);
        Ok(())
    }

    fn forget(&mut self) {
        self.begun.clear();
        if self.begun.capacity() > KEPT {
            self.begun = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(longest: usize, chunks: &[&[u8]]) -> (Vec<Vec<u8>>, bool) {
        let (mut lines, mut out) = (Lines::new(longest), Vec::new());
        for chunk in chunks {
            let went = lines.push(chunk, |line| out.push(line.to_vec()));
            assert!(lines.held() <= longest && lines.begun.capacity() <= longest.max(8));
            if went.is_err() {
                assert_eq!(lines.held(), 0);
                return (out, true);
            }
        }
        lines.finish(|line| out.push(line.to_vec()));
        (out, false)
    }

    #[test]
    fn a_line_may_be_as_long_as_it_may() {
        assert_eq!(split(3, &[b"abc\nde", b"f\n"]), (vec![b"abc".to_vec(), b"def".to_vec()], false));
        assert_eq!(split(3, &[b"abc\nde", b"fg\nh\n"]), (vec![b"abc".to_vec()], true));
        assert_eq!(split(3, &[b"\n\nx"]), (vec![vec![], vec![], b"x".to_vec()], false));
    }

    #[test]
    fn too_long_once_is_too_long_for_ever() {
        let mut lines = Lines::new(2);
        assert!(lines.push(b"abc", |_| {}).is_err());
        assert!(lines.push(b"\nx\n", |_| panic!("a line out of the middle")).is_err());
    }

    proptest! {
        #[test]
        fn the_same_lines_whatever_the_chunks(
            bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            cuts in prop::collection::vec(0usize..400, 0..12),
            longest in 0usize..60,
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let whole = split(longest, &[&bytes]);
            prop_assert_eq!(&split(longest, &chunks), &whole);
            let mut expected: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
            if expected.last().is_some_and(|last| last.is_empty()) {
                expected.pop();
            }
            let fitting = expected.iter().take_while(|line| line.len() <= longest).count();
            prop_assert_eq!(whole.1, fitting < expected.len());
            prop_assert_eq!(whole.0, expected[..fitting].to_vec());
        }
    }
}
