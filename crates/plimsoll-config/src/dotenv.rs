//! Files of variables, in Compose's grammar: `NAME=value`, `NAME: value`, `export NAME=value`, `NAME` alone for our own value;
//! values bare, in 'single quotes' (as they are) or in "double quotes" (with escapes), quoted ones over several lines;
//! comments behind `#`.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::interpolate::{Filler, Wrong};

/// A mistake, or a variable that is not there, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note<T> {
    pub(crate) what: T,
    pub(crate) span: Range<usize>,
}

/// What was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Variables {
    pub(crate) values: BTreeMap<String, String>,
    /// Lines that were not understood.
    pub(crate) wrong: Vec<Note<String>>,
    /// Variables in values that are not there.
    pub(crate) unset: Vec<Note<String>>,
}

/// Mistakes that are kept.
const MOST: usize = 20;

/// Reads such a file. Variables in values are filled in from `lookup` first and then from the lines above.
pub(crate) fn parse(text: &str, lookup: &dyn Fn(&str) -> Option<String>, keeps_port: bool) -> Variables {
    let mut read = Variables::default();
    let mut at = if text.starts_with('\u{feff}') { 3 } else { 0 };
    while at < text.len() && read.wrong.len() < MOST {
        let line = text[at..].split('\n').next().unwrap_or_default();
        let next = at + line.len() + 1;
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            at = next;
            continue;
        }
        at = match statement(text, at, lookup, keeps_port, &mut read) {
            Ok(end) => end,
            Err(what) => {
                let start = at + (line.len() - line.trim_start().len());
                read.wrong.push(Note { what, span: start..start + trimmed.len() });
                next
            }
        };
    }
    read
}

/// One variable that begins in the line at `at`: where the next line begins, or what is wrong.
fn statement(
    text: &str,
    at: usize,
    lookup: &dyn Fn(&str) -> Option<String>,
    keeps_port: bool,
    read: &mut Variables,
) -> Result<usize, String> {
    let line = text[at..].split('\n').next().unwrap_or_default();
    let line_end = at + line.len();
    let mut rest = line.trim_start();
    if let Some(behind) = rest.strip_prefix("export").filter(|behind| behind.starts_with(char::is_whitespace)) {
        rest = behind.trim_start();
    }
    let split = rest.find(['=', ':']);
    let name = rest[..split.unwrap_or(rest.len())].trim_end();
    check_name(name)?;
    let Some(split) = split else {
        // Our own value, if there is one.
        if let Some(value) = lookup(name) {
            read.values.insert(name.to_owned(), value);
        }
        return Ok(line_end + 1);
    };
    let value = rest[split + 1..].trim_start();
    let start = line_end - value.len();
    let (raw, end) = match value.chars().next() {
        Some(quote @ ('"' | '\'')) => {
            let inner = &text[start + 1..];
            let length = closing(inner, quote)
                .ok_or_else(|| format!("the value of `{name}` begins with a quotation mark that is never closed"))?;
            let after = start + 1 + length + 1;
            let behind = text[after..].split('\n').next().unwrap_or_default();
            if !matches!(behind.trim_start().chars().next(), None | Some('#')) {
                return Err(format!("something stands behind the quoted value of `{name}`"));
            }
            let inner = &inner[..length];
            let end = after + behind.len() + 1;
            if quote == '\'' {
                read.values.insert(name.to_owned(), inner.to_owned());
                return Ok(end);
            }
            (unescape(inner), end)
        }
        _ => {
            // A comment needs a space before it: `a#b` is a value.
            let bare = if value.starts_with('#') { "" } else { value.split(" #").next().unwrap_or_default() };
            (bare.trim_end().to_owned(), line_end + 1)
        }
    };
    let both = |name: &str| lookup(name).or_else(|| read.values.get(name).cloned());
    let mut filler = Filler::new(&both, keeps_port);
    let filled = filler.fill(&raw).map_err(|wrong| explain(name, wrong))?;
    let unset = std::mem::take(&mut filler.unset);
    let span = at + (line.len() - line.trim_start().len())..line_end;
    read.unset.extend(unset.into_iter().take(MOST).map(|what| Note { what, span: span.clone() }));
    read.values.insert(name.to_owned(), filled);
    Ok(end)
}

fn explain(name: &str, wrong: Wrong) -> String {
    match wrong {
        Wrong::Syntax(rest) => {
            format!(
                "the value of `{name}` has a dollar sign without a variable, `{}`: write `$$` for a plain one",
                rest.escape_debug()
            )
        }
        Wrong::Required { name: missing, message } if message.is_empty() => {
            format!("the value of `{name}` needs the variable `{missing}`, which is not set")
        }
        Wrong::Required { name: missing, message } => {
            format!("the value of `{name}` needs the variable `{missing}`, which is not set: {message}")
        }
        Wrong::TooDeep => format!("the value of `{name}` has too many variables within one another"),
        Wrong::TooLong => format!("the value of `{name}` is longer than 1 MiB"),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '[' | ']');
    match name.chars().find(|&c| !is_part(c)) {
        _ if name.is_empty() => Err("there is no name before the sign".to_owned()),
        Some(c) => Err(format!("{c:?} cannot be in the name of a variable")),
        None => Ok(()),
    }
}

/// Where the value is closed that begins before this text: at the first such quotation mark without a backslash.
fn closing(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at),
            _ => {}
        }
    }
    None
}

/// Escapes of double quotes; `\$` becomes `$$`, which is a dollar sign once variables are filled in.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('a') => out.push('\u{7}'),
            Some('b') => out.push('\u{8}'),
            Some('f') => out.push('\u{c}'),
            Some('v') => out.push('\u{b}'),
            Some('$') => out.push_str("$$"),
            Some(c @ ('"' | '\\')) => out.push(c),
            Some(other) => out.extend(['\\', other]),
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ours(name: &str) -> Option<String> {
        (name == "OURS").then(|| "mine".to_owned())
    }

    fn read(text: &str) -> Vec<(String, String)> {
        let read = parse(text, &ours, false);
        assert_eq!(read.wrong, [], "{text}");
        read.values.into_iter().collect()
    }

    #[test]
    fn composes_own_vectors() {
        for (text, name, value) in [
            ("FOO=bar", "FOO", "bar"),
            ("FOO =bar", "FOO", "bar"),
            ("FOO= bar", "FOO", "bar"),
            ("FOO=\"bar\"", "FOO", "bar"),
            ("FOO='bar'", "FOO", "bar"),
            ("FOO=\"escaped\\\"bar\"", "FOO", "escaped\"bar"),
            ("FOO=\"'d'\"", "FOO", "'d'"),
            ("OPTION_A: 1", "OPTION_A", "1"),
            ("OPTION_A: Foo=bar", "OPTION_A", "Foo=bar"),
            ("OPTION_A=1:B", "OPTION_A", "1:B"),
            ("export OPTION_A=2", "OPTION_A", "2"),
            ("export OPTION_B='\\n'", "OPTION_B", "\\n"),
            ("export exportFoo=2", "exportFoo", "2"),
            ("exportFOO=2", "exportFOO", "2"),
            ("export_FOO =2", "export_FOO", "2"),
            ("export.FOO= 2", "export.FOO", "2"),
            ("export\tOPTION_A=2", "OPTION_A", "2"),
            ("\texport OPTION_A=2", "OPTION_A", "2"),
            ("FOO=\"bar\\nbaz\"", "FOO", "bar\nbaz"),
            ("FOO.BAR=foobar", "FOO.BAR", "foobar"),
            ("FOO=foobar=", "FOO", "foobar="),
            ("FOO=bar ", "FOO", "bar"),
            ("FOO=bar # this is foo", "FOO", "bar"),
            ("FOO=bar#baz", "FOO", "bar#baz"),
            ("FOO=", "FOO", ""),
            ("FOO= # nothing", "FOO", ""),
            ("FOO=\"bar#baz\" # comment", "FOO", "bar#baz"),
            ("FOO='bar#baz' # comment", "FOO", "bar#baz"),
            ("FOO=\"ba#r\"", "FOO", "ba#r"),
            ("   KEY=value", "KEY", "value"),
            ("KEY=value\r\n", "KEY", "value"),
            ("\u{feff}KEY=value", "KEY", "value"),
            ("FOO=\"foo\\$BAR\"", "FOO", "foo$BAR"),
            ("FOO=\"foo\\${BAR}\"", "FOO", "foo${BAR}"),
            ("BAR='quote $FOO'", "BAR", "quote $FOO"),
            ("OURS", "OURS", "mine"),
            (
                "A=postgres://localhost:5432/database?sslmode=disable",
                "A",
                "postgres://localhost:5432/database?sslmode=disable",
            ),
            ("A=\"first\nsecond\"\n", "A", "first\nsecond"),
            ("A='first\n# second'\n", "A", "first\n# second"),
        ] {
            assert_eq!(read(text), [(name.to_owned(), value.to_owned())], "{text}");
        }
        assert_eq!(read("\n\r\n\t\t \n# c\n\t # c\nTHEIRS\n"), []);
    }

    #[test]
    fn values_above_are_filled_in_below() {
        let values = |text| read(text).into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
        assert_eq!(values("FOO=test\nZ=$FOO"), ["FOO=test", "Z=test"]);
        assert_eq!(values("FOO=test\nZ=${FOO}bar"), ["FOO=test", "Z=testbar"]);
        assert_eq!(values("FOO=test\nZ=\"quote $FOO\""), ["FOO=test", "Z=quote test"]);
        assert_eq!(values("FOO=test\nZ=\"foo\\${FOO} ${FOO}\""), ["FOO=test", "Z=foo${FOO} test"]);
        // Our own come first.
        assert_eq!(values("OURS=theirs\nZ=$OURS"), ["OURS=theirs", "Z=mine"]);
        let read = parse("A=1\n Z=$NOBODY\n", &ours, false);
        assert_eq!(read.unset, [Note { what: "NOBODY".to_owned(), span: 5..14 }]);
        assert_eq!(parse("Z=$PORT", &ours, true).values["Z"], "${PORT}");
    }

    #[test]
    fn mistakes_are_told_each() {
        let wrong = |text: &str| {
            let read = parse(text, &ours, false);
            read.wrong.into_iter().map(|note| (note.span, note.what)).collect::<Vec<_>>()
        };
        let found = wrong("lol$wut\nA=1\n=x\nB C=2\n\"K\"=1\nD=\"1\" 2\nE=${}\nF=${X:?gone}\nG='open\nH=1");
        let spans: Vec<_> = found.iter().map(|(span, _)| span.start).collect();
        assert_eq!(spans, [0, 12, 15, 21, 27, 35, 41, 54], "{found:?}");
        assert!(found[0].1.contains("'$'") && found[7].1.contains("never closed"), "{found:?}");
    }

    proptest! {
        #[test]
        fn never_panics(text in "[ A-C=:'\"#$\\{\\}\\\\\n\ré-]{0,60}") {
            let read = parse(&text, &ours, true);
            for note in read.wrong.iter().chain(&read.unset) {
                prop_assert!(text.get(note.span.clone()).is_some());
            }
        }

        #[test]
        fn what_is_written_in_single_quotes_is_read_back(value in "[^'\\\\]{0,40}") {
            prop_assert_eq!(read(&format!("A='{value}'")), [("A".to_owned(), value)]);
        }
    }
}
