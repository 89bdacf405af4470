//! One pool of the file: a session's process in the words of a service, and how its turns go.

use std::collections::BTreeMap;
use std::time::Duration;

use plimsoll_model::pool::{Isolation, PoolSpec, Protocol, QueueSpec, Rehydrate, Reuse};
use plimsoll_model::size::Human;
use plimsoll_model::stack::ServiceSpec;

use crate::finding::{Finding, quote};
use crate::keys;
use crate::reader::{Bad, Field, Fields, Reader};
use crate::service::{self, Deploy, conflict, words};
use crate::source::Place;
use crate::yaml::Entry;

/// A message of an agent fits into this; less is a slip of the unit.
const LEAST_LINE: u64 = 4 << 10;
/// A line is held as a whole: more than this is no bound.
const MOST_LINE: u64 = 1 << 30;
/// A model's name is part of messages and metrics.
const LONGEST_MODEL: usize = 128;

/// One pool as it stands alone.
pub(crate) struct Read {
    /// `None` when something in it is wrong; all of that is reported.
    pub(crate) spec: Option<PoolSpec>,
    /// The names under which it is offered, beside its own, with the places.
    pub(crate) models: Vec<(String, Place)>,
}

pub(crate) fn read(reader: &mut Reader<'_>, entry: &Entry) -> Read {
    let mut read = Read { spec: None, models: Vec::new() };
    reader.service = Some(entry.key.clone());
    reader.has_port = false;
    if let Some(fields) = service::named(reader, entry, &keys::POOL, "command: [claude]") {
        if let Some(field) = fields.get("models") {
            let names = reader.texts(&field, model);
            read.models = names.into_iter().map(|(name, field)| (name, reader.place(field.span()))).collect();
        }
        let models = read.models.iter().map(|(name, _)| name.clone()).collect();
        let process = service::process(reader, &fields, &Deploy::default(), Duration::from_secs(5));
        read.spec = spec(reader, &fields, process, models);
    }
    reader.service = None;
    reader.has_port = true;
    read
}

fn spec(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    process: Option<ServiceSpec>,
    models: Vec<String>,
) -> Option<PoolSpec> {
    // All keys are read before anything is given up, so that all mistakes are told.
    let protocol = word(reader, fields, "protocol", keys::PROTOCOLS, PROTOCOLS);
    let reuse = word(reader, fields, "reuse", keys::REUSES, [Reuse::Session, Reuse::Any]);
    let rehydrations = [Rehydrate::Resume, Rehydrate::Replay, Rehydrate::None];
    let rehydrate = word(reader, fields, "rehydrate", keys::REHYDRATIONS, rehydrations);
    let isolation = word(reader, fields, "isolation", keys::ISOLATIONS, [Isolation::Session, Isolation::None]);

    let max_sessions = count(reader, fields, "max_sessions", 1);
    let warm = count(reader, fields, "warm", 0);
    let max_turns = count(reader, fields, "max_turns", 1);
    let max_turns_jitter = jitter(reader, fields, max_turns.flatten());

    let idle_ttl = time(reader, fields, "idle_ttl");
    let max_age = time(reader, fields, "max_age");
    let start_timeout = time(reader, fields, "start_timeout");
    let first_byte_timeout = time(reader, fields, "first_byte_timeout");
    let stall_timeout = time(reader, fields, "stall_timeout");
    let turn_timeout = time(reader, fields, "turn_timeout");

    let max_context = fields.get("max_context").map(|field| reader.percent(&field));
    let recycle_above = fields.get("recycle_above").map(|field| reader.size(&field));
    let line = process.as_ref().and_then(|process| process.mem_limit);
    if let (Some(Some(above)), Some(limit), Some(field), Some(at)) =
        (recycle_above, line, fields.get("recycle_above"), fields.get("mem_limit"))
        && above > limit
    {
        let message = format!("`recycle_above` of {} is over the memory limit of {}", Human(above), Human(limit));
        let help = "after a turn a session is replaced above the one, and at the other it is killed: choose less";
        conflict(reader, "recycle_over_limit", &message, &field, &at, "the limit", help);
    }
    let max_line = fields.get("max_line").map(|field| {
        let bytes = reader.size(&field)?;
        if !(LEAST_LINE..=MOST_LINE).contains(&bytes) {
            reader.bad(&field, Bad::new(format!("{} is no length of a line: 4 KiB to 1 GiB", Human(bytes))));
        }
        Some(bytes)
    });
    let queue = fields.get("queue").map(|field| queue(reader, &field));
    let pass_environment = fields.get("pass_environment").map(|field| reader.texts(&field, variable));
    let pass_environment = pass_environment.unwrap_or_default().into_iter().map(|(name, _)| name).collect();
    if let Some(Some(protocol)) = protocol {
        without_effect(reader, fields, protocol, rehydrate.flatten());
    }

    // `None` inside is a mistake that has been told; the outer one takes the default.
    let minutes = |minutes: u64| Some(Duration::from_secs(60 * minutes));
    let protocol = protocol??;
    let context = if protocol == Protocol::Claude { Some(80.0) } else { None };
    Some(PoolSpec {
        process: process?,
        protocol,
        models,
        reuse: reuse.unwrap_or(Some(Reuse::Session))?,
        max_sessions: max_sessions.unwrap_or(Some(8))?,
        warm: warm.unwrap_or(Some(0))?,
        idle_ttl: idle_ttl.unwrap_or(minutes(5))?,
        max_turns: max_turns.map_or(Some(None), |turns| turns.map(Some))?,
        max_turns_jitter,
        max_context: max_context.map_or(Some(context), |percent| percent.map(Some))?,
        max_age: max_age.map_or(Some(None), |age| age.map(Some))?,
        recycle_above: recycle_above.map_or(Some(None), |bytes| bytes.map(Some))?,
        start_timeout: start_timeout.unwrap_or(Some(Duration::from_secs(30)))?,
        first_byte_timeout: first_byte_timeout.unwrap_or(minutes(2))?,
        stall_timeout: stall_timeout.unwrap_or(minutes(5))?,
        turn_timeout: turn_timeout.unwrap_or(minutes(10))?,
        queue: queue.unwrap_or(Some(QueueSpec::default()))?,
        rehydrate: rehydrate.unwrap_or(Some(Rehydrate::Resume))?,
        max_line: max_line.unwrap_or(Some(64 << 20))?,
        isolation: isolation.unwrap_or(Some(Isolation::Session))?,
        pass_environment,
    })
}

const PROTOCOLS: [Protocol; 3] = [Protocol::Claude, Protocol::Jsonl, Protocol::Exec];

fn word<T: Copy, const N: usize>(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    name: &str,
    known: &[&'static str],
    values: [T; N],
) -> Option<Option<T>> {
    fields.get(name).map(|field| reader.word(&field, &words(known, &values)))
}

fn count(reader: &mut Reader<'_>, fields: &Fields<'_>, name: &str, least: u32) -> Option<Option<u32>> {
    fields.get(name).map(|field| reader.count(&field, least))
}

fn time(reader: &mut Reader<'_>, fields: &Fields<'_>, name: &str) -> Option<Option<Duration>> {
    fields.get(name).map(|field| reader.time(&field))
}

/// How many turns fewer it may be; at least one turn has to be left.
fn jitter(reader: &mut Reader<'_>, fields: &Fields<'_>, turns: Option<u32>) -> u32 {
    let Some(field) = fields.get("max_turns_jitter") else { return 0 };
    let Some(jitter) = reader.count(&field, 0) else { return 0 };
    let Some(at) = fields.get("max_turns") else {
        let bad = Bad::new("it makes `max_turns` smaller by chance, which is not set");
        reader.bad(&field, bad.help("add `max_turns`"));
        return jitter;
    };
    if let Some(turns) = turns
        && jitter >= turns
    {
        let message = format!("{jitter} turns fewer than {turns} leave none");
        let help = "`max_turns_jitter` is less than `max_turns`";
        conflict(reader, "jitter_over_turns", &message, &field, &at, "`max_turns`", help);
    }
    jitter
}

fn queue(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<QueueSpec> {
    let fields = reader.fields(field, &keys::QUEUE)?;
    let default = QueueSpec::default();
    let max = count(reader, &fields, "max", 0);
    let timeout = time(reader, &fields, "timeout");
    Some(QueueSpec { max: max.unwrap_or(Some(default.max))?, timeout: timeout.unwrap_or(Some(default.timeout))? })
}

/// Keys that were written and mean nothing with this protocol.
fn without_effect(reader: &mut Reader<'_>, fields: &Fields<'_>, protocol: Protocol, rehydrate: Option<Rehydrate>) {
    let is_resumed = rehydrate == Some(Rehydrate::Resume);
    let why = |key: &str| match (protocol, key) {
        (Protocol::Exec, "max_turns") => Some("`protocol: exec` has a process a turn"),
        (Protocol::Exec, "max_context") => Some("`protocol: exec` does not tell how much of a context is used"),
        (Protocol::Jsonl, "max_context") => Some("`protocol: jsonl` does not tell how much of a context is used"),
        (Protocol::Jsonl | Protocol::Exec, "rehydrate") if is_resumed => {
            Some("`protocol: claude` alone has a word for it, and the others are told what is stored, as with `replay`")
        }
        _ => None,
    };
    for key in ["max_turns", "max_context", "rehydrate"] {
        if let (Some(field), Some(why)) = (fields.get(key), why(key)) {
            let finding = Finding::warning("no_effect", format!("`{key}` has no effect: {why}"));
            let finding = finding.at(reader.place(field.span())).help("leave it out");
            reader.push(Finding { key: Some(field.key.name), ..finding });
        }
    }
}

fn model(text: &str) -> Result<String, Bad> {
    if text.len() > LONGEST_MODEL || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        let bad = Bad::new(format!("{} is no name of a model", quote(text)));
        return Err(bad.help(format!("a name has no spaces and at most {LONGEST_MODEL} bytes")));
    }
    Ok(text.to_owned())
}

fn variable(text: &str) -> Result<String, Bad> {
    if text.contains(['=', '\0']) {
        let bad = Bad::new(format!("{} is no variable's name", quote(text)));
        return Err(bad.help("it is a list of names; `environment` sets values"));
    }
    Ok(text.to_owned())
}

/// Whoever asks by a name has to find one pool.
pub(crate) fn names(reader: &mut Reader<'_>, models: &BTreeMap<String, Vec<(String, Place)>>) {
    let mut taken: BTreeMap<&str, (&str, Option<&Place>)> =
        models.keys().map(|pool| (pool.as_str(), (pool.as_str(), None))).collect();
    for (pool, names) in models {
        for (name, place) in names {
            let Some((other, first)) = taken.get(name.as_str()).copied() else {
                taken.insert(name, (pool, Some(place)));
                continue;
            };
            let message = match first {
                None if other == pool => format!("the pool {} is offered under its own name already", quote(pool)),
                None => format!("{} is the name of another pool", quote(name)),
                Some(_) if other == pool => format!("{} is written twice", quote(name)),
                Some(_) => {
                    format!("the pools {} and {} are both offered as {}", quote(other), quote(pool), quote(name))
                }
            };
            let mut finding = Finding::error("model_twice", message).at(place.clone());
            let own = || reader.places.get(&(other.to_owned(), "")).cloned();
            if let Some(first) = first.cloned().or_else(own) {
                finding = finding.related(first, "here already");
            }
            let finding = finding.help("a name is that of one pool: take one of the two away");
            reader.push(Finding { service: Some(pool.clone()), key: Some("models"), ..finding });
        }
    }
}
