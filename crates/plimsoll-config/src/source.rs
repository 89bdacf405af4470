//! Texts that were read, and places in them.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A text, and what it is called in messages.
#[derive(PartialEq, Eq)]
pub(crate) struct Source {
    name: String,
    text: String,
    /// Where each line begins, bytes.
    lines: Vec<usize>,
}

impl Source {
    pub(crate) fn new(name: impl Into<String>, text: impl Into<String>) -> Arc<Self> {
        let text = text.into();
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Arc::new(Self { name: name.into(), text, lines })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The line, counted from 0, that has this byte.
    fn line_of(&self, at: usize) -> usize {
        self.lines.partition_point(|&start| start <= at) - 1
    }

    /// A line without its end.
    fn line(&self, line: usize) -> Range<usize> {
        let start = self.lines[line];
        let end = self.lines.get(line + 1).map_or(self.text.len(), |next| next - 1);
        start..start + self.text[start..end].trim_end_matches('\r').len()
    }
}

/// A stretch of one line of a text that was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Place {
    source: Arc<Source>,
    span: Range<usize>,
}

impl Place {
    /// What of the span lies in its first line; a span outside the text, or across a character, is moved to the next place
    /// that can be shown.
    pub(crate) fn new(source: &Arc<Source>, span: Range<usize>) -> Self {
        let text = source.text();
        let boundary = |mut at: usize| {
            at = at.min(text.len());
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            at
        };
        let start = boundary(span.start);
        let line = source.line(source.line_of(start));
        let start = start.min(line.end);
        let end = boundary(span.end).clamp(start, line.end);
        Self { source: Arc::clone(source), span: start..end }
    }

    /// The file, as it was named.
    #[must_use]
    pub fn file(&self) -> &str {
        self.source.name()
    }

    /// The line, from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        self.source.line_of(self.span.start) + 1
    }

    /// The column in characters, from 1.
    #[must_use]
    pub fn column(&self) -> usize {
        let line = self.source.line(self.line() - 1);
        self.source.text()[line.start..self.span.start].chars().count() + 1
    }

    pub(crate) fn start(&self) -> usize {
        self.span.start
    }

    pub(crate) fn is_in(&self, source: &Arc<Source>) -> bool {
        Arc::ptr_eq(&self.source, source)
    }

    /// The lines that these places are on and all between, the number of the first, and the places within that text.
    pub(crate) fn shown<'p>(&'p self, other: Option<&'p Self>) -> (&'p str, usize, Range<usize>, Option<Range<usize>>) {
        let other = other.filter(|other| other.is_in(&self.source));
        let lines = [Some(self), other].into_iter().flatten().map(|place| place.line() - 1);
        let (first, last) = lines.fold((usize::MAX, 0), |(first, last), line| (first.min(line), last.max(line)));
        let (start, end) = (self.source.line(first).start, self.source.line(last).end);
        let within = |place: &Self| place.span.start - start..place.span.end - start;
        (&self.source.text()[start..end], first + 1, within(self), other.map(within))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file(), self.line(), self.column())
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_and_columns_are_counted_from_one_in_characters() {
        let source = Source::new("f", "ä: 1\r\nbé: [\n2]\n");
        let at = |span| Place::new(&source, span).to_string();
        assert_eq!(at(0..2), "f:1:1");
        assert_eq!(at(4..5), "f:1:4");
        assert_eq!(at(7..13), "f:2:1");
        assert_eq!(at(12..20), "f:2:5");
        assert_eq!(at(17..17), "f:4:1");
        assert_eq!(at(99..120), "f:4:1");
        assert_eq!(Place::new(&source, 7..20).shown(None), ("bé: [", 2, 0..6, None));
    }

    proptest! {
        #[test]
        fn any_span_of_any_text_can_be_shown(text in ".{0,30}\n?.{0,30}", span in 0usize..80, length in 0usize..80) {
            let source = Source::new("f", text);
            let place = Place::new(&source, span..span + length);
            let (line, number, range, _) = place.shown(None);
            prop_assert_eq!(number, place.line());
            prop_assert!(line.get(range).is_some() && !line.contains('\n'));
            prop_assert!(place.column() >= 1);
        }
    }
}
