//! What a user wrote in `plimsoll.yaml`, read into [`StackSpec`].
//!
//! ```text
//! text ── yaml: nodes with their places ── keys: which there are ── reader: values, variables filled in ─► StackSpec
//!                                                    └─► schema                └─► findings, in order of their places
//! ```
//!
//! All mistakes of a file are told at once, each with its line. Nothing is ignored silently. What a file may take is
//! bounded: its size, how deep it is, what its aliases and variables grow to.
//!
//! [`read`] is for files, [`parse`] the same without a file system, [`fits`] what a machine's size makes of it, [`schema`]
//! the grammar for editors, [`STARTER`] a file to begin with.

mod dotenv;
mod finding;
mod gateway;
mod interpolate;
mod keys;
mod pool;
mod reader;
mod schema;
mod service;
mod signal;
mod source;
mod split;
mod stack;
#[cfg(test)]
mod tests;
mod yaml;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use plimsoll_model::stack::StackSpec;

pub use finding::{ConfigErrors, Finding, Look, Severity, render};
pub use schema::schema;
pub use source::Place;
pub use stack::fits;

use reader::{Outside, Reader};
use source::Source;

/// Names of the file, the first one there is.
pub const FILE_NAMES: [&str; 2] = ["plimsoll.yaml", "plimsoll.yml"];

/// The largest file that is read, bytes.
pub const LARGEST: usize = 1 << 20;

/// A commented file to begin with; it is right as it stands.
pub const STARTER: &str = include_str!("starter.yaml");

/// A file that was read and is right.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What was asked for.
    pub spec: StackSpec,
    /// Limits over the budget are an error.
    pub strict: bool,
    /// What is strange, in the order of the places.
    pub warnings: Vec<Finding>,
    /// The file.
    pub file: PathBuf,
    /// All files that were read for it: itself, `.env`, every `env_file`.
    pub files: Vec<PathBuf>,
    places: BTreeMap<(String, &'static str), Place>,
}

impl Loaded {
    /// Where a service or pool stands, or with a key (`mem_limit`, `mem_reservation`, `scale`, `depends_on`, `listen`) that
    /// key's value.
    #[must_use]
    pub fn place(&self, service: &str, key: Option<&'static str>) -> Option<&Place> {
        self.places.get(&(service.to_owned(), key.unwrap_or_default()))
    }

    /// What a machine or container of `total` bytes makes of it, with places: see [`fits`].
    #[must_use]
    pub fn fits(&self, total: u64) -> Vec<Finding> {
        let mut findings = fits(&self.spec, total, self.strict);
        for finding in &mut findings {
            let service = finding.service.clone().unwrap_or_default();
            finding.place = self.place(&service, finding.key).or_else(|| self.place(&service, None)).cloned();
        }
        findings
    }
}

/// The file in this folder, by its usual names.
#[must_use]
pub fn find(folder: &Path) -> Option<PathBuf> {
    FILE_NAMES.map(|name| folder.join(name)).into_iter().find(|path| path.exists())
}

/// Reads a file, `.env` beside it, and the files of variables that it names. `env` is our own environment.
///
/// # Errors
/// All that is wrong with it: what cannot be read, is no YAML, is no key, no value, or contradicts itself.
pub fn read(path: &Path, env: impl Fn(&str) -> Option<String>) -> Result<Loaded, ConfigErrors> {
    let whole = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let text = read_text(path).map_err(|error| {
        let finding = Finding::error("unreadable", format!("{} cannot be read: {error}", path.display()));
        let help = match error.kind() {
            io::ErrorKind::NotFound => "`plimsoll init` writes a file to begin with",
            io::ErrorKind::PermissionDenied => "check the file's owner and mode",
            _ => "name a text file in UTF-8 of at most 1 MiB",
        };
        ConfigErrors::one(finding.help(help))
    })?;
    load(&text, path, &whole, &env, &read_text)
}

/// The same for a text that is at hand. `path` is what it is called, and where relative paths begin; `files` reads others.
///
/// # Errors
/// All that is wrong with it, as [`read`] has it.
pub fn parse(
    text: &str,
    path: &Path,
    env: impl Fn(&str) -> Option<String>,
    files: impl Fn(&Path) -> io::Result<String>,
) -> Result<Loaded, ConfigErrors> {
    load(text, path, path, &env, &files)
}

/// A text file of bounded size.
fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > LARGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
        io::Error::new(io::ErrorKind::InvalidData, format!("it is no text in UTF-8, in line {line}"))
    })
}

fn load(
    text: &str,
    shown: &Path,
    whole: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    files: &dyn Fn(&Path) -> io::Result<String>,
) -> Result<Loaded, ConfigErrors> {
    let shown = shown.display().to_string();
    if text.len() > LARGEST {
        return Err(ConfigErrors::one(Finding::error("too_large", format!("{shown} is larger than 1 MiB"))));
    }
    let source = Source::new(shown, text);
    let base = whole.parent().unwrap_or(whole);
    let mut reader = Reader::new(&source, Outside { env, files, base });
    let root = yaml::read(&source, &mut reader.findings);
    let read = match root {
        Some(root) => {
            dotenv(&mut reader);
            stack::read(&mut reader, &root)
        }
        None if reader.findings.has_errors() => None,
        None => {
            let finding = Finding::error("missing_key", format!("{} has nothing in it", source.name()));
            reader.push(finding.help("`plimsoll init` writes a file to begin with"));
            None
        }
    };
    let Reader { findings, places, sources, .. } = reader;
    let failed = findings.has_errors();
    let findings = findings.into_sorted();
    let Some((spec, strict)) = read.filter(|_| !failed) else { return Err(ConfigErrors { findings }) };
    let others = sources.into_iter().filter(|(_, read)| read.is_ok()).map(|(path, _)| path);
    let files = std::iter::once(whole.to_owned()).chain(others).collect();
    Ok(Loaded { spec, strict, warnings: findings, file: whole.to_owned(), files, places })
}

/// Variables of `.env` beside the file, if there is one.
fn dotenv(reader: &mut Reader<'_>) {
    let path = reader.outside.base.join(".env");
    let source = match reader.variables_file(&path) {
        Ok(source) => source,
        Err((io::ErrorKind::NotFound, _)) => return,
        Err((_, why)) => {
            let finding = Finding::error("env_file", format!("{} cannot be read: {why}", path.display()));
            reader.push(finding.help("variables of the file come from there: make it readable, or take it away"));
            return;
        }
    };
    let read = dotenv::parse(source.text(), reader.outside.env, false);
    service::report(reader, &source, &read);
    reader.dotenv = read.values;
}
