//! YAML as a tree whose every node knows where it stands: aliases and merge keys are resolved, within bounds.
//!
//! Scalars stay text: which of them is a number or a size is said by the key that they belong to, after variables were
//! filled in. So nothing is lost on the way (`1.10` is no float, `no` no boolean).

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Tag};

use crate::finding::{Finding, Findings, quote};
use crate::source::{Place, Source};

/// How deep lists and maps may lie in one another; our own grammar needs seven.
const DEEPEST: u32 = 40;
/// What all nodes together may weigh once their aliases are resolved: one each, and one more for each 64 bytes of text.
const HEAVIEST: u64 = 400_000;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) value: Value,
    /// Bytes of the text; of an alias, where its anchor stands.
    pub(crate) span: Range<usize>,
    /// How many lists and maps lie in one another here, this one included.
    height: u32,
    weight: u64,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

#[derive(Debug, Clone)]
pub(crate) struct Scalar {
    pub(crate) text: String,
    /// Without quotes: nothing at all, `~` and `null` are then no value.
    plain: bool,
}

/// A key of a map with its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Range<usize>,
    pub(crate) value: Node,
}

impl Node {
    fn scalar(text: String, plain: bool, span: Range<usize>) -> Self {
        let weight = 1 + text.len() as u64 / 64;
        Self { value: Value::Scalar(Scalar { text, plain }), span, height: 0, weight }
    }

    fn list(items: Vec<Self>, span: Range<usize>) -> Self {
        let height = 1 + items.iter().map(|item| item.height).max().unwrap_or(0);
        let weight = 1 + items.iter().map(|item| item.weight).sum::<u64>();
        Self { value: Value::List(items), span, height, weight }
    }

    fn map(entries: Vec<Entry>, span: Range<usize>) -> Self {
        let height = 1 + entries.iter().map(|entry| entry.value.height).max().unwrap_or(0);
        let weight = 1 + entries.iter().map(|entry| 1 + entry.value.weight).sum::<u64>();
        Self { value: Value::Map(entries), span, height, weight }
    }

    /// Nothing was written, or `null`.
    pub(crate) fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar(scalar) => scalar.plain && matches!(&*scalar.text, "" | "~" | "null" | "Null" | "NULL"),
            _ => false,
        }
    }

    /// What it is, for a message.
    pub(crate) fn what(&self) -> &'static str {
        match &self.value {
            _ if self.is_null() => "empty",
            Value::Scalar(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

/// The one document of the text; `None` when there is none in it, or when it is broken, which is then among the findings.
pub(crate) fn read(source: &Arc<Source>, findings: &mut Findings) -> Option<Node> {
    let mut options = granit_parser::Options::default();
    options.set_emit_comments(false);
    let mut builder =
        Builder { source, findings, open: Vec::new(), root: None, anchors: HashMap::new(), weight: 0, documents: 0 };
    let mut parser = Parser::new_from_str_with_options(source.text(), options);
    while let Some(next) = parser.next_event() {
        let taken = match next {
            Ok((event, span)) => builder.take(event, span.byte_range().unwrap_or(0..0)),
            Err(error) => Err(broken(source, &error)),
        };
        if let Err(finding) = taken {
            builder.findings.push(*finding);
            return None;
        }
    }
    builder.root
}

/// The parser's word for what it did not understand, in ours.
fn broken(source: &Arc<Source>, error: &ScanError) -> Box<Finding> {
    let at = error.marker().byte_offset().unwrap_or(0);
    let line = source.text()[..at.min(source.text().len())].rsplit('\n').next().unwrap_or_default();
    let help = match error.kind() {
        _ if line.ends_with('$') || line.contains("${") => {
            "within `[ ]` and `{ }` a variable needs quotation marks: `\"${PORT}\"`"
        }
        ErrorKind::TabNotAllowed | ErrorKind::TabInIndentation => "indent with spaces: YAML takes no tabs there",
        ErrorKind::UnknownAnchor => "define it before its first use: `key: &name …`, then `*name`",
        ErrorKind::UnclosedQuotedScalar => "close the quotation mark",
        ErrorKind::RecursionLimitExceeded => "lists and maps lie too deep in one another",
        _ => "a value that has `: `, ` #`, or begins with one of `{}[]&*!|>'\"%@` needs quotation marks",
    };
    syntax(source, format!("this is no YAML: {}", error.info()), at..at + 1, help)
}

fn syntax(source: &Arc<Source>, message: impl Into<String>, span: Range<usize>, help: &str) -> Box<Finding> {
    Box::new(Finding::error("syntax", message).at(Place::new(source, span)).help(help))
}

struct Builder<'a> {
    source: &'a Arc<Source>,
    findings: &'a mut Findings,
    /// Lists and maps that are not yet closed.
    open: Vec<Frame>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    weight: u64,
    documents: u32,
}

struct Frame {
    start: usize,
    anchor: usize,
    kind: Kind,
}

enum Kind {
    List(Vec<Node>),
    Map {
        entries: Vec<Entry>,
        /// Keys so far, with their places in `entries`.
        known: BTreeMap<String, usize>,
        /// A key that waits for its value.
        key: Option<(String, Range<usize>)>,
        /// Values of `<<`, in order.
        merged: Vec<Node>,
    },
}

impl Builder<'_> {
    fn error(&self, message: impl Into<String>, span: Range<usize>, help: &str) -> Box<Finding> {
        syntax(self.source, message, span, help)
    }

    fn take(&mut self, event: Event<'_>, span: Range<usize>) -> Result<(), Box<Finding>> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err(self.error(
                        "a second document begins here, and a file is one stack",
                        span,
                        "leave out the line `---` and all below it, or put that into a file of its own",
                    ));
                }
                Ok(())
            }
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = self.tag(tag.as_deref(), &span)?;
                let plain = style == ScalarStyle::Plain && !is_text;
                self.node(Node::scalar(text.into_owned(), plain, span), anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), &span)?;
                self.open(Frame { start: span.start, anchor, kind: Kind::List(Vec::new()) }, span)
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), &span)?;
                let kind = Kind::Map { entries: Vec::new(), known: BTreeMap::new(), key: None, merged: Vec::new() };
                self.open(Frame { start: span.start, anchor, kind }, span)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(frame) => self.close(frame, span.end),
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(self.error(
                        "this alias stands within what it stands for, and would never end",
                        span,
                        "write out what is meant",
                    ));
                };
                // What an alias brings weighs again.
                self.weight += node.weight;
                self.check(node.height, span)?;
                let node = node.clone();
                self.put(node)
            }
            _ => Ok(()),
        }
    }

    /// Whether the tag makes a text of what it stands before.
    fn tag(&self, tag: Option<&Tag>, span: &Range<usize>) -> Result<bool, Box<Finding>> {
        let Some(tag) = tag else { return Ok(false) };
        match tag.core_suffix() {
            Some("str") => Ok(true),
            Some("int" | "float" | "bool" | "null" | "map" | "seq") => Ok(false),
            _ => {
                let message = format!("the tag {} means nothing here", quote(&tag.original()));
                let help = "leave it out: Compose's `!reset` and `!override` need several files, and here is one";
                Err(self.error(message, span.clone(), help))
            }
        }
    }

    fn open(&mut self, frame: Frame, span: Range<usize>) -> Result<(), Box<Finding>> {
        if self.open.len() as u32 >= DEEPEST {
            return Err(self.too_deep(span));
        }
        self.open.push(frame);
        Ok(())
    }

    fn too_deep(&self, span: Range<usize>) -> Box<Finding> {
        self.error(
            format!("more than {DEEPEST} lists and maps lie in one another here"),
            span,
            "nothing of a stack lies deeper than seven",
        )
    }

    fn close(&mut self, frame: Frame, end: usize) -> Result<(), Box<Finding>> {
        let span = frame.start..end.max(frame.start);
        let node = match frame.kind {
            Kind::List(items) => Node::list(items, span),
            Kind::Map { mut entries, mut known, merged, .. } => {
                for from in merged {
                    for entry in self.mergeable(from)? {
                        // What stands in the map itself, or came first, counts.
                        if !known.contains_key(&entry.key) {
                            known.insert(entry.key.clone(), entries.len());
                            entries.push(entry);
                        }
                    }
                }
                Node::map(entries, span)
            }
        };
        self.node(node, frame.anchor)
    }

    fn mergeable(&self, from: Node) -> Result<Vec<Entry>, Box<Finding>> {
        let wrong =
            |span| self.error("`<<` takes in other maps, and this is none", span, "for example `<<: *defaults`");
        match from.value {
            Value::Map(entries) => Ok(entries),
            Value::List(items) => {
                let mut all = Vec::new();
                for item in items {
                    match item.value {
                        Value::Map(entries) => all.extend(entries),
                        _ => return Err(wrong(item.span)),
                    }
                }
                Ok(all)
            }
            Value::Scalar(_) => Err(wrong(from.span)),
        }
    }

    /// A value is whole: it goes into the list or map around it.
    fn node(&mut self, node: Node, anchor: usize) -> Result<(), Box<Finding>> {
        // Items of a list or map were weighed when they came; what is kept for an alias weighs again.
        let (scalar, kept) = (matches!(node.value, Value::Scalar(_)), anchor != 0);
        self.weight += if scalar { node.weight } else { 1 } + if kept { node.weight } else { 0 };
        self.check(node.height, node.span.clone())?;
        if kept {
            self.anchors.insert(anchor, node.clone());
        }
        self.put(node)
    }

    fn check(&self, height: u32, span: Range<usize>) -> Result<(), Box<Finding>> {
        if self.weight > HEAVIEST {
            return Err(self.error(
                "the file grows beyond all bounds here: its aliases stand for too much",
                span,
                "write out what is meant instead of aliases of aliases",
            ));
        }
        if height + self.open.len() as u32 > DEEPEST {
            return Err(self.too_deep(span));
        }
        Ok(())
    }

    fn put(&mut self, node: Node) -> Result<(), Box<Finding>> {
        let source = self.source;
        let Some(frame) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        let (entries, known, key, merged) = match &mut frame.kind {
            Kind::List(items) => {
                items.push(node);
                return Ok(());
            }
            Kind::Map { entries, known, key, merged } => (entries, known, key, merged),
        };
        match (key.take(), node.value) {
            (None, Value::Scalar(scalar)) => *key = Some((scalar.text, node.span)),
            (None, _) => {
                return Err(syntax(
                    source,
                    "a key has to be a single word, and this is a list or a map",
                    node.span,
                    "a value that begins with `{` or `[` needs quotation marks",
                ));
            }
            (Some((key, key_span)), value) => {
                let node = Node { value, ..node };
                let place = Place::new(source, key_span.clone());
                if key == "<<" {
                    merged.push(node);
                } else if let Some(&first) = known.get(&key) {
                    let first = Place::new(source, entries[first].key_span.clone());
                    self.findings.push(
                        Finding::error("duplicate_key", format!("{} is written twice", quote(&key)))
                            .at(place)
                            .label("again")
                            .related(first, "first here")
                            .help("keep one of the two"),
                    );
                } else {
                    known.insert(key.clone(), entries.len());
                    entries.push(Entry { key, key_span, value: node });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tree as JSON-like text, or the first finding.
    fn tree(text: &str) -> String {
        fn show(node: &Node) -> String {
            match &node.value {
                _ if node.is_null() => "null".to_owned(),
                Value::Scalar(scalar) => scalar.text.clone(),
                Value::List(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(",")),
                Value::Map(entries) => {
                    let entry = |entry: &Entry| format!("{}:{}", entry.key, show(&entry.value));
                    format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(","))
                }
            }
        }
        let (source, mut findings) = (Source::new("f", text), Findings::default());
        let root = read(&source, &mut findings);
        match (root, findings.into_sorted().first()) {
            (_, Some(finding)) => {
                let place = finding.place.as_ref().map(ToString::to_string).unwrap_or_default();
                format!("{place} {}", finding.message)
            }
            (Some(root), None) => show(&root),
            (None, None) => "nothing".to_owned(),
        }
    }

    #[test]
    fn scalars_stay_as_they_were_written() {
        assert_eq!(
            tree("a: 1.10\nb: no\nc: \"~\"\nd: ~\ne:\nf: !!str null\n"),
            "{a:1.10,b:no,c:~,d:null,e:null,f:null}"
        );
        assert_eq!(tree("a: [1, 'it''s', \"\\x41\"]\nb: |\n  x\n  y\n"), "{a:[1,it's,A],b:x\ny\n}");
        assert_eq!(tree("# nothing\n"), "nothing");
    }

    #[test]
    fn aliases_and_merges() {
        assert_eq!(tree("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}\nc: *x\n"), "{a:{k:1,l:2},b:{l:3,k:1},c:{k:1,l:2}}");
        assert_eq!(tree("a: &a {k: 1}\nb: &b {k: 2, m: 3}\nc:\n  <<: [*a, *b]\n"), "{a:{k:1},b:{k:2,m:3},c:{k:1,m:3}}");
        assert_eq!(tree("a: &x 1\na: &x 2\n"), "f:2:1 `a` is written twice");
        assert_eq!(tree("a: {<<: 1}"), "f:1:9 `<<` takes in other maps, and this is none");
    }

    #[test]
    fn what_is_refused_and_where() {
        for (text, said) in [
            ("a: [1\nb: 2", "this is no YAML"),
            ("a: *x", "f:1:4 this is no YAML: while parsing node, found unknown anchor"),
            ("a: &x [*x]", "f:1:8 this alias stands within what it stands for"),
            ("a: 1\n---\nb: 2\n", "f:2:1 a second document begins here"),
            ("? [a]\n: 1\n", "f:1:3 a key has to be a single word"),
            ("a: !reset 1\n", "the tag `!reset` means nothing here"),
            ("a:\n\tb: 1\n", "this is no YAML"),
        ] {
            assert!(tree(text).contains(said), "{text}: {}", tree(text));
        }
    }

    #[test]
    fn aliases_of_aliases_are_bounded() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..20 {
            let alias = vec![format!("*a{}", n - 1); 10].join(", ");
            text += &format!("a{n}: &a{n} [{alias}]\n");
        }
        assert!(tree(&text).contains("beyond all bounds"), "{}", tree(&text));
        let mut text = "a0: &a0 [x]\n".to_owned();
        for n in 1..50 {
            text += &format!("a{n}: &a{n} [*a{}]\n", n - 1);
        }
        assert!(tree(&text).contains("lie in one another"), "{}", tree(&text));
        let nested = format!("{}{}", "[".repeat(50), "]".repeat(50));
        assert!(tree(&nested).contains("lie in one another"), "{}", tree(&nested));
        let nested: String = (0..300).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        assert!(tree(&nested).contains("lie in one another"), "{}", tree(&nested));
        let long = format!("a: &a {}\nb: [{}]\n", "x".repeat(100_000), vec!["*a"; 1000].join(","));
        assert!(tree(&long).contains("beyond all bounds"));
    }
}
