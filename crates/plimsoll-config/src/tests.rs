mod both_ways;
mod grammar;
mod mistakes;

use std::io;
use std::path::Path;

use crate::{ConfigErrors, Loaded, parse};

/// Reads a text as `/srv/plimsoll.yaml`. The environment has `HOME_DIR=/home/x` and an empty `EMPTY`; files are `.env` and
/// what `files` holds, by name.
fn load_with(text: &str, files: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    let env = |name: &str| match name {
        "HOME_DIR" => Some("/home/x".to_owned()),
        "EMPTY" => Some(String::new()),
        _ => None,
    };
    let read = |path: &Path| {
        let name = path.strip_prefix("/srv").unwrap_or(path);
        let found = files.iter().find(|(known, _)| Path::new(known) == name);
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    parse(text, Path::new("/srv/plimsoll.yaml"), env, read)
}

fn load(text: &str) -> Result<Loaded, ConfigErrors> {
    load_with(text, &[])
}

/// The one service `api` with these lines beside a command.
fn service(lines: &str) -> Result<Loaded, ConfigErrors> {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    load(&format!("services:\n  api:\n    command: [x]\n{lines}"))
}

/// All findings, a line each: place, severity where it is a warning, message.
fn told(read: &Result<Loaded, ConfigErrors>) -> Vec<String> {
    let findings = match read {
        Ok(loaded) => &loaded.warnings,
        Err(errors) => &errors.findings,
    };
    let line = |finding: &crate::Finding| {
        let place = finding.place.as_ref().map(|place| format!("{}:{} ", place.line(), place.column()));
        let word = if finding.severity == crate::Severity::Warning { "warning: " } else { "" };
        format!("{}{word}{}", place.unwrap_or_default(), finding.message)
    };
    findings.iter().map(line).collect()
}
