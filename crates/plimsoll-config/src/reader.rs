//! From nodes to values: maps by their tables, single values with their variables filled in, each mistake a finding.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use plimsoll_model::stack::Amount;
use plimsoll_model::{duration, size};

use crate::finding::{Finding, Findings, nearest, quote};
use crate::interpolate::{Filler, LONGEST, Wrong};
use crate::keys::{self, Key, Table};
use crate::source::{Place, Source};
use crate::yaml::{Entry, Node, Value};

/// What all values together may grow to when variables and files of variables are filled in, bytes.
const MOST_FILLED: usize = 32 << 20;
/// The kernel's smallest quota, 1 ms, of the usual period, 100 ms.
const LEAST_CPU_MICROS: u64 = 10_000;
/// `PID_MAX_LIMIT`.
const MOST_PIDS: u64 = 4 << 20;
/// More replicas than this are a slip of a key.
const MOST_REPLICAS: u32 = 10_000;

/// What the world outside the file gives.
#[derive(Clone, Copy)]
pub(crate) struct Outside<'a> {
    /// Our own environment.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
    /// Other files.
    pub(crate) files: &'a dyn Fn(&Path) -> io::Result<String>,
    /// Relative paths begin here.
    pub(crate) base: &'a Path,
}

/// Reads one file.
pub(crate) struct Reader<'a> {
    pub(crate) source: Arc<Source>,
    pub(crate) outside: Outside<'a>,
    /// Variables of `.env`.
    pub(crate) dotenv: BTreeMap<String, String>,
    pub(crate) findings: Findings,
    /// The service or pool that is being read.
    pub(crate) service: Option<String>,
    /// What is being read has a port of its own, and `${PORT}` is left to stand where that may be.
    pub(crate) has_port: bool,
    /// Where a service or pool, or a key of it, stands; itself by an empty key.
    pub(crate) places: BTreeMap<(String, &'static str), Place>,
    /// Files of variables, by path.
    pub(crate) sources: BTreeMap<PathBuf, Result<Arc<Source>, (io::ErrorKind, String)>>,
    filled: usize,
}

/// A key of a map that was read, with its value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'n> {
    pub(crate) key: &'static Key,
    key_span: &'n Range<usize>,
    pub(crate) node: &'n Node,
}

impl<'n> Field<'n> {
    /// The same for one item of its list.
    pub(crate) fn item(self, node: &'n Node) -> Self {
        Self { node, ..self }
    }

    /// The value's place, or the key's when there is no value to see.
    pub(crate) fn span(&self) -> Range<usize> {
        if self.node.span.is_empty() { self.key_span.clone() } else { self.node.span.clone() }
    }
}

/// The keys of one map.
pub(crate) struct Fields<'n> {
    table: &'static Table,
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// The key with its value, if it was written.
    pub(crate) fn get(&self, name: &str) -> Option<Field<'n>> {
        let key = self.table.key(name);
        debug_assert!(key.is_some(), "{name} is in no table");
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        Some(Field { key: key?, key_span: &entry.key_span, node: &entry.value })
    }
}

/// Why a value is wrong, and what to do; without that, the key's example is shown.
pub(crate) struct Bad {
    pub(crate) why: String,
    pub(crate) help: Option<String>,
}

impl Bad {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), help: None }
    }

    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &Arc<Source>, outside: Outside<'a>) -> Self {
        Self {
            source: Arc::clone(source),
            outside,
            dotenv: BTreeMap::new(),
            findings: Findings::default(),
            service: None,
            has_port: true,
            places: BTreeMap::new(),
            sources: BTreeMap::new(),
            filled: 0,
        }
    }

    pub(crate) fn place(&self, span: Range<usize>) -> Place {
        Place::new(&self.source, span)
    }

    /// Adds a finding about the service that is being read.
    pub(crate) fn push(&mut self, mut finding: Finding) {
        if finding.service.is_none() {
            finding.service.clone_from(&self.service);
        }
        self.findings.push(finding);
    }

    /// A value is wrong.
    pub(crate) fn bad(&mut self, field: &Field<'_>, bad: Bad) {
        let help = bad.help.unwrap_or_else(|| example(field.key));
        let finding = Finding::error("value", format!("`{}`: {}", field.key.name, bad.why));
        self.push(Finding { key: Some(field.key.name), ..finding.at(self.place(field.span())).help(help) });
    }

    /// Something else was written than has to stand there.
    pub(crate) fn wrong_type(&mut self, field: &Field<'_>, expected: &str) {
        let finding = Finding::error("type", format!("`{}` is {}", field.key.name, field.node.what()));
        let finding = finding.at(self.place(field.span())).label(format!("expected {expected}"));
        self.push(Finding { key: Some(field.key.name), ..finding.help(example(field.key)) });
    }

    /// The keys of a map, unknown ones reported; `None` when it is no map, which is reported too.
    pub(crate) fn fields<'n>(&mut self, field: &Field<'n>, table: &'static Table) -> Option<Fields<'n>> {
        let Value::Map(_) = &field.node.value else {
            self.wrong_type(field, "a map");
            return None;
        };
        self.known_fields(field.node, field.key_span.clone(), table)
    }

    /// The same for a node without a key of a table; `None` when it is no map, which is for the caller to report.
    pub(crate) fn known_fields<'n>(
        &mut self,
        node: &'n Node,
        name: Range<usize>,
        table: &'static Table,
    ) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else { return None };
        for entry in entries {
            if table.key(&entry.key).is_none() && !entry.key.starts_with("x-") {
                self.unknown(entry, table);
            }
        }
        for required in table.required {
            if !entries.iter().any(|entry| entry.key == *required) {
                let help = table.key(required).map(example).unwrap_or_default();
                let name = if name.is_empty() { node.span.clone() } else { name.clone() };
                let finding = Finding::error("missing_key", format!("{} has no `{required}`", self.what(table)));
                self.push(finding.at(self.place(name)).help(help));
            }
        }
        Some(Fields { table, entries })
    }

    fn unknown(&mut self, entry: &Entry, table: &'static Table) {
        if self.findings.is_full() {
            return;
        }
        let name = quote(&entry.key);
        let is_stack = std::ptr::eq(table, &keys::STACK);
        let of = self.what(table);
        let (id, message, help) = if is_stack && keys::LATER.contains(&entry.key.as_str()) {
            let message = format!("{name} is not yet supported by this version");
            ("not_yet_supported", message, "take it out of the file until it is".to_owned())
        } else {
            let names = table.keys.iter().map(|key| key.name);
            let help = if let Some((_, help)) = table.foreign.iter().find(|(name, _)| *name == entry.key) {
                (*help).to_owned()
            } else if let Some(near) = nearest(&entry.key, names.clone()) {
                format!("a similar key exists: `{near}`")
            } else if is_stack && keys::SERVICE.key(&entry.key).is_some() {
                "it is a key of a service, and belongs further right, below the service's name".to_owned()
            } else if is_stack && keys::POOL.key(&entry.key).is_some() {
                "it is a key of a pool, and belongs further right, below the pool's name".to_owned()
            } else {
                let known: Vec<String> = names.map(|name| format!("`{name}`")).collect();
                format!("known are {}", known.join(", "))
            };
            ("unknown_key", format!("{of} has no key {name}"), help)
        };
        let place = self.place(entry.key_span.clone());
        self.push(Finding::error(id, message).at(place).help(help));
    }

    /// What a map is, a service or a pool by its name.
    pub(crate) fn what(&self, table: &'static Table) -> String {
        match &self.service {
            Some(name) if std::ptr::eq(table, &keys::SERVICE) => format!("the service {}", quote(name)),
            Some(name) if std::ptr::eq(table, &keys::POOL) => format!("the pool {}", quote(name)),
            _ => table.what.to_owned(),
        }
    }

    /// A single value as text, variables filled in; `None` when it is none, which is reported.
    pub(crate) fn text(&mut self, field: &Field<'_>, keeps_port: bool) -> Option<String> {
        match &field.node.value {
            Value::Scalar(scalar) if !field.node.is_null() => {
                self.fill(&scalar.text, field.key.name, field.node.span.clone(), keeps_port)
            }
            _ => {
                self.wrong_type(field, &field.key.kind.expected());
                None
            }
        }
    }

    /// Fills in the variables of a text that stands at `span`.
    pub(crate) fn fill(&mut self, text: &str, key: &str, span: Range<usize>, keeps_port: bool) -> Option<String> {
        if !text.contains('$') {
            return self.spend(text.len(), span).then(|| text.to_owned());
        }
        let (env, dotenv) = (self.outside.env, &self.dotenv);
        let lookup = |name: &str| env(name).or_else(|| dotenv.get(name).cloned());
        let mut filler = Filler::new(&lookup, keeps_port && self.has_port);
        let filled = filler.fill(text);
        let mut unset = std::mem::take(&mut filler.unset);
        unset.sort();
        unset.dedup();
        for name in unset {
            let finding = Finding::warning("unset_variable", format!("the variable {} is not set", quote(&name)))
                .at(self.place(self.variable(&name, &span)))
                .label("empty here")
                .help(format!("set it in the environment or in `.env`, or give it a default: `${{{name}:-…}}`"));
            self.push(finding);
        }
        let finding = match filled {
            Ok(filled) => return self.spend(filled.len(), span).then_some(filled),
            Err(Wrong::Syntax(rest)) => Finding::error("variable", format!("`{key}`: {} is no variable", quote(&rest)))
                .help("write `${NAME}` or `${NAME:-default}` for a variable, and `$$` for a plain dollar sign")
                .at(self.place(span)),
            Err(Wrong::Required { name, message }) => {
                let place = self.place(self.variable(&name, &span));
                let message = if message.is_empty() { "is required, and not set".to_owned() } else { message };
                Finding::error("required_variable", format!("the variable {}: {message}", quote(&name)))
                    .help("set it in the environment or in `.env` beside this file")
                    .at(place)
            }
            Err(Wrong::TooDeep) => {
                Finding::error("variable", format!("`{key}`: too many variables within one another"))
                    .at(self.place(span))
            }
            Err(Wrong::TooLong) => Finding::error(
                "variable",
                format!("`{key}`: longer than {} with its variables", size::Human(LONGEST as u64)),
            )
            .at(self.place(span)),
        };
        self.push(finding);
        None
    }

    /// Where in a value a variable stands: its name, or the whole value when it cannot be seen there.
    fn variable(&self, name: &str, span: &Range<usize>) -> Range<usize> {
        let raw = self.source.text().get(span.clone()).unwrap_or_default();
        let found = [format!("${{{name}"), format!("${name}")]
            .iter()
            .find_map(|written| raw.find(written.as_str()).map(|at| at..at + written.len()));
        let Some(found) = found else { return span.clone() };
        let brace = usize::from(raw[found.end..].starts_with('}'));
        span.start + found.start..span.start + found.end + brace
    }

    /// Counts what values grow to; false, and reported, when that is beyond bounds.
    pub(crate) fn spend(&mut self, bytes: usize, span: Range<usize>) -> bool {
        self.filled = self.filled.saturating_add(bytes);
        if self.filled <= MOST_FILLED {
            return true;
        }
        // Once: all that follows would say the same.
        if self.filled - bytes <= MOST_FILLED {
            let finding = Finding::error("too_large", "the file grows beyond all bounds with its variables filled in");
            self.push(finding.at(self.place(span)).help("check for very long variables"));
        }
        false
    }

    /// A single value, understood by `read`.
    pub(crate) fn value<T>(&mut self, field: &Field<'_>, read: impl FnOnce(&str) -> Result<T, Bad>) -> Option<T> {
        let text = self.text(field, false)?;
        if text.trim().is_empty() {
            self.bad(field, Bad::new("there is nothing in it"));
            return None;
        }
        match read(text.trim()) {
            Ok(value) => Some(value),
            Err(bad) => {
                self.bad(field, bad);
                None
            }
        }
    }

    /// The value that goes with one of these words.
    pub(crate) fn word<T: Copy>(&mut self, field: &Field<'_>, words: &[(&'static str, T)]) -> Option<T> {
        let expected = field.key.kind.expected();
        self.value(field, |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, value)| *value).ok_or_else(|| {
                let bad = Bad::new(format!("{} is not one of its words: {expected}", quote(text)));
                // `healthy` is `service_healthy`.
                let part = || words.iter().map(|(word, _)| *word).find(|word| text.len() > 2 && word.contains(text));
                match nearest(text, words.iter().map(|(word, _)| *word)).or_else(part) {
                    Some(near) => bad.help(format!("a similar word exists: `{near}`")),
                    None => bad,
                }
            })
        })
    }

    pub(crate) fn flag(&mut self, field: &Field<'_>) -> Option<bool> {
        self.value(field, |text| match text {
            "true" | "True" | "TRUE" => Ok(true),
            "false" | "False" | "FALSE" => Ok(false),
            _ => Err(Bad::new(format!("{} is neither `true` nor `false`", quote(text)))),
        })
    }

    pub(crate) fn size(&mut self, field: &Field<'_>) -> Option<u64> {
        let name = field.key.name;
        self.value(field, |text| match size(text)? {
            0 => Err(Bad::new("nothing at all is no amount of memory").help(format!("leave `{name}` out for none"))),
            bytes => Ok(bytes),
        })
    }

    /// Bytes; `None` inside for -1, which is no limit.
    pub(crate) fn size_or_minus(&mut self, field: &Field<'_>) -> Option<Option<u64>> {
        self.value(field, |text| if text == "-1" { Ok(None) } else { size(text).map(Some) })
    }

    pub(crate) fn amount(&mut self, field: &Field<'_>) -> Option<Amount> {
        self.value(field, |text| {
            if text.ends_with('%') {
                return percent(text).map(Amount::Percent);
            }
            match size(text) {
                Ok(0) => Err(Bad::new("nothing at all is no amount of memory")),
                Ok(bytes) => Ok(Amount::Bytes(bytes)),
                Err(bad) => Err(Bad::new(format!("{}, or a percentage such as 80%", bad.why))),
            }
        })
    }

    pub(crate) fn percent(&mut self, field: &Field<'_>) -> Option<f64> {
        self.value(field, percent)
    }

    pub(crate) fn duration(&mut self, field: &Field<'_>) -> Option<Duration> {
        self.value(field, |text| duration::parse(text).map_err(|error| Bad::new(error.to_string())))
    }

    /// A duration that is some time.
    pub(crate) fn time(&mut self, field: &Field<'_>) -> Option<Duration> {
        match self.duration(field)? {
            Duration::ZERO => {
                self.bad(field, Bad::new("no time at all"));
                None
            }
            time => Some(time),
        }
    }

    /// Replicas, or another small number.
    pub(crate) fn count(&mut self, field: &Field<'_>, least: u32) -> Option<u32> {
        self.value(field, |text| {
            let wrong = || Bad::new(format!("{} is no whole number from {least} to {MOST_REPLICAS}", quote(text)));
            let number: u32 = digits(text).and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
            if (least..=MOST_REPLICAS).contains(&number) { Ok(number) } else { Err(wrong()) }
        })
    }

    /// Processes; `None` inside for -1, which is no limit.
    pub(crate) fn pids(&mut self, field: &Field<'_>) -> Option<Option<u64>> {
        let name = field.key.name;
        self.value(field, |text| {
            if text == "-1" {
                return Ok(None);
            }
            match digits(text).and_then(|text| text.parse().ok()) {
                Some(0u64) => Err(Bad::new("not even one process would be left")
                    .help(format!("the least is `{name}: 1`, and -1 is no limit"))),
                Some(number) if number <= MOST_PIDS => Ok(Some(number)),
                Some(_) => Err(Bad::new(format!("the kernel has no more than {MOST_PIDS} pids"))
                    .help(format!("leave `{name}` out for no limit"))),
                None => Err(Bad::new(format!("{} is no whole number from 1", quote(text)))),
            }
        })
    }

    /// Millionths of a core, read digit by digit so that what was written is what is set.
    pub(crate) fn cores(&mut self, field: &Field<'_>) -> Option<u64> {
        let name = field.key.name;
        self.value(field, |text| {
            let wrong = || Bad::new(format!("{} is no number of cores", quote(text)));
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
            if whole.is_empty() && fraction.is_empty() || !is_number(whole) || !is_number(fraction) {
                return Err(wrong());
            }
            let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
            let part: u64 = format!("{fraction:0<6}")[..6].parse().map_err(|_| wrong())?;
            let micros = whole.checked_mul(1_000_000).and_then(|micros| micros.checked_add(part)).ok_or_else(wrong)?;
            if micros < LEAST_CPU_MICROS {
                return Err(Bad::new("the kernel shares out no less than a hundredth of a core")
                    .help(format!("the least is `{name}: 0.01`; leave it out for no limit")));
            }
            Ok(micros)
        })
    }

    pub(crate) fn signal(&mut self, field: &Field<'_>) -> Option<i32> {
        self.value(field, |text| {
            crate::signal::number(text).ok_or_else(|| {
                let bad = Bad::new(format!("{} is no signal", quote(text)));
                let upper = text.to_ascii_uppercase();
                let names = crate::signal::NAMES.iter().map(|(name, _)| *name);
                match nearest(upper.strip_prefix("SIG").unwrap_or(&upper), names) {
                    Some(near) => bad.help(format!("a similar one exists: `SIG{near}`")),
                    None => bad,
                }
            })
        })
    }

    /// A path, relative ones from the file's folder.
    pub(crate) fn path(&mut self, field: &Field<'_>) -> Option<PathBuf> {
        let base = self.outside.base;
        self.value(field, |text| match text {
            text if text.contains('\0') => Err(Bad::new("no path has a zero byte in it")),
            text => Ok(base.join(text.strip_prefix("./").unwrap_or(text))),
        })
    }

    /// A list of texts, each with its place, understood by `read`; those that are wrong are reported and left out.
    pub(crate) fn texts<'n>(
        &mut self,
        field: &Field<'n>,
        read: impl Fn(&str) -> Result<String, Bad>,
    ) -> Vec<(String, Field<'n>)> {
        let Value::List(items) = &field.node.value else {
            self.wrong_type(field, &field.key.kind.expected());
            return Vec::new();
        };
        let mut all = Vec::new();
        for item in items {
            let field = field.item(item);
            all.extend(self.value(&field, &read).map(|text| (text, field)));
        }
        all
    }

    /// A command and its arguments: a list of words, or one text that is split into words.
    pub(crate) fn command(&mut self, field: &Field<'_>, keeps_port: bool) -> Option<Vec<String>> {
        let words = match &field.node.value {
            Value::List(items) => {
                let words: Vec<_> = items.iter().map(|item| self.text(&field.item(item), keeps_port)).collect();
                words.into_iter().collect::<Option<Vec<String>>>()?
            }
            _ => {
                let text = self.text(field, keeps_port)?;
                match crate::split::split(&text) {
                    Ok(read) => {
                        if let Some(sign) = read.for_a_shell {
                            let message = format!(
                                "`{}`: {} is handed to the program as it is: no shell is started",
                                field.key.name,
                                quote(&sign)
                            );
                            let help =
                                "for a shell's line write [sh, -c, \"…\"]; for the sign itself use a list of words";
                            self.push(Finding::warning("shell_sign", message).at(self.place(field.span())).help(help));
                        }
                        read.words
                    }
                    Err(why) => {
                        self.bad(field, Bad::new(why).help("write a list of words, which needs no quoting"));
                        return None;
                    }
                }
            }
        };
        let why = match words.first() {
            None => "there is no command in it",
            Some(program) if program.is_empty() => "the program's name is empty",
            Some(_) if words.iter().any(|word| word.contains('\0')) => "no argument can have a zero byte in it",
            Some(_) => return Some(words),
        };
        self.bad(field, Bad::new(why));
        None
    }

    /// A file of variables, read once.
    pub(crate) fn variables_file(&mut self, path: &Path) -> Result<Arc<Source>, (io::ErrorKind, String)> {
        if let Some(known) = self.sources.get(path) {
            return known.clone();
        }
        // Shown as a user would write it: from the file's folder, when it lies there.
        let shown = path.strip_prefix(self.outside.base).unwrap_or(path).display().to_string();
        let read = match (self.outside.files)(path) {
            Ok(text) if text.len() <= crate::LARGEST => Ok(Source::new(shown, text)),
            Ok(_) => Err((io::ErrorKind::FileTooLarge, "it is larger than 1 MiB".to_owned())),
            Err(error) => Err((error.kind(), error.to_string())),
        };
        self.sources.insert(path.to_owned(), read.clone());
        read
    }
}

/// A line of the key with a value that is right.
fn example(key: &Key) -> String {
    format!("for example `{}: {}`", key.name, key.example)
}

fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

/// Bytes.
pub(crate) fn size(text: &str) -> Result<u64, Bad> {
    size::parse(text).map_err(|error| Bad::new(error.to_string()))
}

/// Per cent, above 0 and at most 100.
pub(crate) fn percent(text: &str) -> Result<f64, Bad> {
    let wrong = || Bad::new(format!("{} is no percentage: write more than 0% and at most 100%", quote(text)));
    let number = text.strip_suffix('%').ok_or_else(wrong)?.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let number: f64 = match (digits(whole), digits(fraction)) {
        (Some(_), Some(_)) => number.parse().map_err(|_| wrong())?,
        _ => return Err(wrong()),
    };
    if number > 0.0 && number <= 100.0 { Ok(number) } else { Err(wrong()) }
}
