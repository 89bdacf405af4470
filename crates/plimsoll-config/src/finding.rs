//! What is wrong with a file, or only strange about it: where, why, and what to do.

use std::fmt;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use crate::source::Place;

/// Findings that are kept; a file with more has one mistake many times.
const MOST: usize = 50;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// It can, but perhaps not as it was meant.
    Warning,
}

impl Severity {
    /// Its word in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing that is wrong, or strange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of finding it is: a word that stays the same from version to version.
    pub id: &'static str,
    /// How bad.
    pub severity: Severity,
    /// What, and why.
    pub message: String,
    /// The service that it is about.
    pub service: Option<String>,
    /// The key of that service that it is about.
    pub key: Option<&'static str>,
    /// Where.
    pub place: Option<Place>,
    /// A few words for that place; may be empty.
    pub label: String,
    /// Another place that has to do with it, and a few words for that.
    pub related: Option<(Place, String)>,
    /// What to do; may be empty.
    pub help: String,
}

impl Finding {
    /// An error without a place.
    pub(crate) fn error(id: &'static str, message: impl Into<String>) -> Self {
        Self {
            id,
            severity: Severity::Error,
            message: in_one_line(message.into()),
            service: None,
            key: None,
            place: None,
            label: String::new(),
            related: None,
            help: String::new(),
        }
    }

    pub(crate) fn warning(id: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(id, message) }
    }

    pub(crate) fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }

    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = help.into();
        self
    }

    pub(crate) fn related(mut self, place: Place, label: impl Into<String>) -> Self {
        self.related = Some((place, label.into()));
        self
    }

    pub(crate) fn of(mut self, service: impl Into<String>, key: &'static str) -> Self {
        self.service = Some(service.into());
        self.key = Some(key);
        self
    }

    /// As the Rust compiler shows its own: the message, the place with its line, what to do. Ends without a line break.
    #[must_use]
    pub fn render(&self, look: Look) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(self.message.as_str()));
        if let Some(place) = &self.place {
            let related = self.related.as_ref();
            let (text, line, span, other) = place.shown(related.map(|(place, _)| place));
            let mut primary = AnnotationKind::Primary.span(span);
            if !self.label.is_empty() {
                primary = primary.label(self.label.as_str());
            }
            let mut snippet = Snippet::source(text).line_start(line).path(place.file()).annotation(primary);
            if let (Some(span), Some((_, label))) = (other, related) {
                snippet = snippet.annotation(AnnotationKind::Context.span(span).label(label.as_str()));
            }
            group = group.element(snippet);
        }
        for line in self.help.lines() {
            group = group.element(Level::HELP.message(line));
        }
        let renderer = if look.color { Renderer::styled() } else { Renderer::plain() };
        renderer.term_width(look.width).render(&[group])
    }
}

/// How findings are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// With colours: for a terminal whose user did not set `NO_COLOR`.
    pub color: bool,
    /// Columns at which long lines of a file are cut.
    pub width: usize,
}

impl Default for Look {
    fn default() -> Self {
        Self { color: false, width: 140 }
    }
}

/// Findings as they come, each place and message once.
#[derive(Debug, Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub(crate) fn push(&mut self, finding: Finding) {
        // What an anchor brings to several places is wrong once.
        let known = |other: &Finding| other.message == finding.message && other.place == finding.place;
        if self.0.len() < MOST && !self.0.iter().any(known) {
            self.0.push(finding);
        }
    }

    /// Whatever else is found is not kept.
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= MOST
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.0.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// In the order of their places, file by file; those without a place first.
    pub(crate) fn into_sorted(mut self) -> Vec<Finding> {
        self.0.sort_by(|a, b| key(a).cmp(&key(b)));
        self.0
    }
}

fn key(finding: &Finding) -> Option<(&str, usize)> {
    finding.place.as_ref().map(|place| (place.file(), place.start()))
}

/// Why a file cannot be used: at least one error, and the warnings that go with it, in the order of their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// Errors and warnings.
    pub findings: Vec<Finding>,
}

impl ConfigErrors {
    pub(crate) fn one(finding: Finding) -> Self {
        Self { findings: vec![finding] }
    }

    /// The errors among the findings.
    pub fn errors(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Error)
    }

    /// All findings, an empty line between two.
    #[must_use]
    pub fn render(&self, look: Look) -> String {
        render(&self.findings, look)
    }
}

/// Findings one after the other, an empty line between two.
#[must_use]
pub fn render(findings: &[Finding], look: Look) -> String {
    let shown: Vec<String> = findings.iter().map(|finding| finding.render(look)).collect();
    let mut text = shown.join("\n\n");
    if findings.len() >= MOST {
        text += "\n\nthere may be more: only the first of them are shown";
    }
    text
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(Look::default()))
    }
}

impl std::error::Error for ConfigErrors {}

/// A message in one line, whatever the names of files have in them.
fn in_one_line(message: String) -> String {
    if !message.contains(char::is_control) {
        return message;
    }
    let plain = |c: char| if c.is_control() { c.escape_debug().to_string() } else { c.to_string() };
    message.chars().map(plain).collect()
}

/// What a user wrote, fit to stand in a message: in backticks, in one line, not too long.
pub(crate) fn quote(text: &str) -> String {
    const LONGEST: usize = 60;
    let mut shown: String = text.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    // A quotation mark within backticks needs no escape.
    shown = shown.replace("\\\"", "\"").replace("\\'", "'");
    let more = if text.chars().nth(LONGEST).is_some() { "…" } else { "" };
    format!("`{shown}{more}`")
}

/// The one of these words that was most likely meant.
pub(crate) fn nearest<'w>(word: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    // `memLimit` and `mem-limit` are `mem_limit`.
    let plain = |word: &str| word.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let wanted = plain(word);
    if wanted.is_empty() || wanted.len() > 100 {
        return None;
    }
    let distance = |other: &'w str| (strsim::osa_distance(&wanted, &plain(other)), other);
    let (distance, found) = words.into_iter().map(distance).min_by_key(|(distance, _)| *distance)?;
    (distance <= wanted.len().div_ceil(4)).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    /// Found by the fuzzer: a file whose name has line ends in it.
    #[test]
    fn a_message_is_one_line() {
        let finding = Finding::error("env_file", "/srv/a\r\nb cannot be read");
        assert_eq!(finding.message, "/srv/a\\r\\nb cannot be read");
    }

    #[test]
    fn a_finding_as_the_compiler_shows_its_own() {
        let source = Source::new("plimsoll.yaml", "services:\n  api:\n    mem_limt: 512m\n");
        let finding = Finding::error("unknown_key", "`mem_limt` is no key of a service")
            .at(Place::new(&source, 21..29))
            .label("unknown")
            .related(Place::new(&source, 12..15), "of this one")
            .help("`mem_limit` is one\nanother line");
        assert_eq!(
            finding.render(Look::default()),
            "\
error: `mem_limt` is no key of a service
 --> plimsoll.yaml:3:5
  |
2 |   api:
  |   --- of this one
3 |     mem_limt: 512m
  |     ^^^^^^^^ unknown
  |
  = help: `mem_limit` is one
  = help: another line"
        );
        assert!(finding.render(Look { color: true, width: 80 }).contains("\u{1b}["));
    }

    #[test]
    fn slips_are_recognised() {
        let words = ["mem_limit", "memswap_limit", "restart", "cpus", "for"];
        for (word, found) in [
            ("mem_limt", Some("mem_limit")),
            ("memLimit", Some("mem_limit")),
            ("mem-limit", Some("mem_limit")),
            ("retsart", Some("restart")),
            ("cpu", Some("cpus")),
            ("fro", Some("for")),
            ("zebra", None),
            ("", None),
            ("é", None),
        ] {
            assert_eq!(nearest(word, words), found, "{word}");
        }
    }

    #[test]
    fn quoted_in_one_line() {
        assert_eq!(quote("a\n\"b\""), "`a\\n\"b\"`");
        assert_eq!(quote(&"x".repeat(99)).chars().count(), 63);
    }
}
