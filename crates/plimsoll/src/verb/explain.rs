//! `plimsoll explain`: finds a certificate and shows it.

use std::process::ExitCode;

use plimsoll_model::Certificate;
use plimsoll_store::{CertificateError, CertificateStore, Paths};

use crate::cli::ExplainArgs;
use crate::fault::Fault;
use crate::{output, render};

/// Certificates that a list shows.
const LISTED: u32 = 20;
/// Ids that are shown when a beginning fits several.
const AMBIGUOUS: usize = 10;
/// Fewer characters of an id are a guess and no prefix.
const LEAST_PREFIX: usize = 3;

pub(crate) fn main(args: &ExplainArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    if args.which.as_deref() == Some("") {
        return Err(Fault::usage(
            "the name is empty, and no run has an empty one",
            "leave it out for the run that ended last; `plimsoll explain --list` shows the latest ones",
        ));
    }
    if let Err(error) = paths.check_state() {
        output::error(&format!("plimsoll: warning: {error}"));
    }
    let Some(mut store) = CertificateStore::open_existing(paths.state()).map_err(|error| unreadable(&error))? else {
        return Err(empty(paths));
    };
    let found = if args.list { list(&mut store, args) } else { one(&mut store, args) };
    for notice in store.notices() {
        output::error(&format!("plimsoll: note: {notice}"));
    }
    match found.map_err(|error| unreadable(&error))? {
        Found::Text(text) => Ok(output::print(&text)),
        Found::Nothing => Err(empty(paths)),
        Found::Ambiguous(mut ids) => {
            let least = if ids.len() > AMBIGUOUS { "at least " } else { "" };
            ids.truncate(AMBIGUOUS);
            Err(Fault::failed(
                format!("`{}` is the beginning of {least}{} ids", args.which.as_deref().unwrap_or_default(), ids.len()),
                format!("write more of one of them: {}", ids.join(", ")),
            ))
        }
        Found::Unknown(near) => {
            let message = format!("there is no certificate of `{}`", args.which.as_deref().unwrap_or_default());
            let near = if near.is_empty() { String::new() } else { format!("names like it: {}\n", near.join(", ")) };
            Err(Fault::failed(message, format!("{near}`plimsoll explain --list` shows the latest ones")))
        }
    }
}

enum Found {
    Text(String),
    Nothing,
    Ambiguous(Vec<String>),
    Unknown(Vec<String>),
}

fn list(store: &mut CertificateStore, args: &ExplainArgs) -> Result<Found, CertificateError> {
    let certificates = match &args.which {
        None => store.list(LISTED)?,
        Some(name) => store.list_of(name, LISTED)?,
    };
    match (&args.which, certificates.is_empty()) {
        (None, true) => Ok(Found::Nothing),
        (Some(name), true) => Ok(Found::Unknown(near(name, &store.names()?))),
        (_, false) if args.json => Ok(Found::Text(certificates.iter().map(json).collect())),
        (_, false) => Ok(Found::Text(render::table(&certificates))),
    }
}

fn one(store: &mut CertificateStore, args: &ExplainArgs) -> Result<Found, CertificateError> {
    let shown =
        |certificate: &Certificate| Found::Text(if args.json { json(certificate) } else { render::full(certificate) });
    let which = match args.which.as_deref() {
        None | Some("last") => return Ok(store.last()?.as_ref().map_or(Found::Nothing, shown)),
        Some(which) => which,
    };
    if let Some(certificate) = store.by_name(which)? {
        return Ok(shown(&certificate));
    }
    if which.len() >= LEAST_PREFIX {
        let certificates = store.by_id_prefix(&which.to_ascii_lowercase(), AMBIGUOUS as u32 + 1)?;
        match certificates.as_slice() {
            [] => {}
            [certificate] => return Ok(shown(certificate)),
            several => return Ok(Found::Ambiguous(several.iter().map(|one| one.id.to_string()).collect())),
        }
    }
    Ok(Found::Unknown(near(which, &store.names()?)))
}

fn json(certificate: &Certificate) -> String {
    // Strings, numbers and lists of them always have a JSON form.
    serde_json::to_string(certificate).unwrap_or_default() + "\n"
}

/// Names that may have been meant, the nearest first.
fn near(wanted: &str, names: &[String]) -> Vec<String> {
    let likeness = |name: &String| {
        let contained = !wanted.is_empty() && (name.contains(wanted) || wanted.contains(name.as_str()));
        if contained { 1.0 } else { strsim::jaro_winkler(wanted, name) }
    };
    let mut near: Vec<_> =
        names.iter().map(|name| (likeness(name), name)).filter(|(likeness, _)| *likeness > 0.75).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(5).map(|(_, name)| name.escape_debug().to_string()).collect()
}

fn empty(paths: &Paths) -> Fault {
    Fault::failed(
        format!("there are no certificates in {}: none has been stored there yet", paths.state().display()),
        "plimsoll run -- COMMAND stores one, or says why it could not; PLIMSOLL_STATE_DIR names another directory",
    )
}

fn unreadable(error: &CertificateError) -> Fault {
    Fault::failed(error.to_string(), "check the directory's owner and its disk, or set PLIMSOLL_STATE_DIR")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names() {
        let names = ["crawler", "crawl", "api", "import-1", "import-2"].map(str::to_owned);
        assert_eq!(near("crawlr", &names), ["crawl", "crawler"]);
        assert_eq!(near("import", &names), ["import-1", "import-2"]);
        assert_eq!(near("zebra", &names), [""; 0]);
        assert_eq!(near("", &names), [""; 0]);
    }
}
