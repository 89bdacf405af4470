//! One service of the file.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_model::OnLimit;
use plimsoll_model::size::Human;
use plimsoll_model::stack::{Ask, Condition, HealthSpec, Priority, RestartPolicy, ScaleSpec, ServiceSpec};

use crate::dotenv;
use crate::finding::{Finding, nearest, quote};
use crate::keys::{self, Table};
use crate::reader::{Bad, Field, Fields, Reader};
use crate::source::Place;
use crate::yaml::{Entry, Value};

/// Below this the kernel can find nothing to kill and storms; Docker's minimum as well.
const LEAST_MEMORY: u64 = 6 << 20;
/// A name is part of messages, tables, files and groups.
const LONGEST_NAME: usize = 63;
/// Variables by which Plimsoll speaks to what it starts.
const OURS: [&str; 2] = ["PLIMSOLL_ID", "PLIMSOLL_STAGE_FILE"];

/// One service as it stands alone.
pub(crate) struct Read {
    /// `None` when something in it is wrong; all of that is reported.
    pub(crate) spec: Option<ServiceSpec>,
    /// What it depends on, with the places.
    pub(crate) depends: Vec<(String, Condition, Place)>,
}

pub(crate) fn read(reader: &mut Reader<'_>, entry: &Entry) -> Read {
    let mut read = Read { spec: None, depends: Vec::new() };
    reader.service = Some(entry.key.clone());
    if let Some(fields) = named(reader, entry, &keys::SERVICE, "command: [python3, app.py]") {
        read.depends = depends(reader, &fields);
        let on = read.depends.iter().map(|(name, condition, _)| (name.clone(), *condition)).collect();
        read.spec = spec(reader, &fields, on);
    }
    reader.service = None;
    read
}

/// The keys of the service or pool that is being read, whose name is checked and whose place is kept; `None` when it is no
/// map, which is reported with an `example` of a key.
pub(crate) fn named<'n>(
    reader: &mut Reader<'_>,
    entry: &'n Entry,
    table: &'static Table,
    example: &str,
) -> Option<Fields<'n>> {
    check_name(reader, entry);
    reader.places.insert((entry.key.clone(), ""), reader.place(entry.key_span.clone()));
    let fields = reader.known_fields(&entry.value, entry.key_span.clone(), table);
    if fields.is_none() {
        let span = if entry.value.span.is_empty() { entry.key_span.clone() } else { entry.value.span.clone() };
        let message = format!("{} is {}", reader.what(table), entry.value.what());
        let finding = Finding::error("type", message).at(reader.place(span)).label("expected a map");
        reader.push(finding.help(format!("for example `{example}` below its name")));
    }
    fields
}

fn check_name(reader: &mut Reader<'_>, entry: &Entry) {
    let is_first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_part = |c: char| is_first(c) || c == '.' || c == '-';
    let why = match entry.key.chars().next() {
        None => "is empty",
        Some(_) if entry.key.len() > LONGEST_NAME => "is longer than 63 characters",
        Some(first) if !is_first(first) || !entry.key.chars().all(is_part) => "has a character that no name has",
        Some(_) => return,
    };
    let finding = Finding::error("service_name", format!("the name {} {why}", quote(&entry.key)));
    let help = "names are letters, digits, `.`, `_` and `-`, and begin with a letter, a digit or `_`";
    reader.push(finding.at(reader.place(entry.key_span.clone())).help(help));
}

/// How a tree is started, held and ended: what a replica of a service and a session of a pool have in common. All that only
/// services have stands at its default; `None` when something is wrong, all of which is reported.
pub(crate) fn process(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    deploy: &Deploy<'_>,
    grace: Duration,
) -> Option<ServiceSpec> {
    // All keys are read before anything is given up, so that all mistakes are told.
    let command = fields.get("command").map(|field| reader.command(&field, true));
    let environment = environment(reader, fields);
    let working_dir = fields.get("working_dir").map(|field| reader.path(&field));

    let mem_limit = limit(reader, fields.get("mem_limit"), deploy.memory, Reader::size);
    if let Some((bytes, field)) = mem_limit
        && bytes < LEAST_MEMORY
    {
        let bad = Bad::new(format!("{} is below 6 MiB, where the kernel finds nothing it could kill", Human(bytes)));
        reader.bad(&field, bad.help(format!("the least is `{}: 6m`", field.key.name)));
    }
    let mem_reservation = limit(reader, fields.get("mem_reservation"), deploy.reservation, Reader::size);
    if let (Some((limit, at)), Some((reservation, field))) = (mem_limit, mem_reservation)
        && reservation > limit
    {
        let message = format!("{} are reserved, and the limit is {}", Human(reservation), Human(limit));
        conflict(reader, "reservation_over_limit", &message, &field, &at, "the limit", "reserve at most the limit");
    }
    // Written, if perhaps not understood.
    let has_memory = fields.get("mem_limit").or(deploy.memory).is_some();
    let memswap_limit = swap(reader, fields, mem_limit, has_memory);
    let cpus = limit(reader, fields.get("cpus"), deploy.cpus, Reader::cores);
    let pids = limit(reader, fields.get("pids_limit"), deploy.pids, Reader::pids);
    for (key, field) in [("mem_limit", mem_limit), ("mem_reservation", mem_reservation)] {
        if let Some((_, field)) = field {
            keep_place(reader, key, &field);
        }
    }

    let stop_grace_period = fields.get("stop_grace_period").map(|field| reader.duration(&field));
    let stop_signal = fields.get("stop_signal").map(|field| reader.signal(&field));
    let priority = fields.get("priority").map(|field| {
        let values = [Priority::Critical, Priority::Normal, Priority::BestEffort];
        reader.word(&field, &words(keys::PRIORITIES, &values))
    });
    let on_limit = fields
        .get("on_limit")
        .map(|field| reader.word(&field, &words(keys::VICTIMS, &[OnLimit::Tree, OnLimit::Largest])));
    let on_pressure = fields.get("on_pressure").and_then(|field| pressure(reader, &field));

    // `None` inside is a mistake that has been told; the outer one takes the default.
    Some(ServiceSpec {
        command: command??,
        environment,
        working_dir: working_dir.unwrap_or_else(|| Some(reader.outside.base.to_owned()))?,
        mem_limit: mem_limit.map(|(bytes, _)| bytes),
        mem_reservation: mem_reservation.map(|(bytes, _)| bytes),
        memswap_limit,
        cpu_micros: cpus.map(|(micros, _)| micros),
        pids_limit: pids.and_then(|(pids, _)| pids),
        stop_grace_period: stop_grace_period.unwrap_or(Some(grace))?,
        stop_signal: stop_signal.unwrap_or(Some(libc::SIGTERM))?,
        priority: priority.unwrap_or(Some(Priority::Normal))?,
        on_limit: on_limit.unwrap_or(Some(OnLimit::Tree))?,
        on_pressure,
        restart: RestartPolicy::No,
        depends_on: BTreeMap::new(),
        healthcheck: None,
        listen: None,
        min_available: 0,
        replicas: 1,
        scale: None,
    })
}

/// Keeps where a key of what is being read stands, for findings that come later.
fn keep_place(reader: &mut Reader<'_>, key: &'static str, field: &Field<'_>) {
    if let Some(name) = reader.service.clone() {
        reader.places.insert((name, key), reader.place(field.span()));
    }
}

fn spec(reader: &mut Reader<'_>, fields: &Fields<'_>, depends_on: BTreeMap<String, Condition>) -> Option<ServiceSpec> {
    let deploy = Deploy::read(reader, fields);
    let process = process(reader, fields, &deploy, Duration::from_secs(10));
    for key in ["scale", "depends_on", "listen"] {
        if let Some(field) = fields.get(key) {
            keep_place(reader, key, &field);
        }
    }

    let restart = fields.get("restart").map(|field| restart(reader, &field));
    let healthcheck = fields.get("healthcheck").and_then(|field| health(reader, &field));
    let listen = fields.get("listen").and_then(|field| reader.value(&field, listen));
    let has_memory = fields.get("mem_limit").or(deploy.memory).is_some();
    let has_cpus = fields.get("cpus").or(deploy.cpus).is_some();
    let scale = fields.get("scale").and_then(|field| scale(reader, &field, has_memory, has_cpus));
    let replicas = replicas(reader, deploy.replicas, scale);
    let min_available = fields.get("min_available").map(|field| {
        let number = reader.count(&field, 0)?;
        let most = scale.map_or(replicas, |scale| scale.max);
        if number > most {
            let bad = Bad::new(format!("{number} can never be had of {most}"));
            reader.bad(&field, bad.help("choose fewer, or more replicas"));
        }
        Some(number)
    });
    let process = process?;
    let own_port = process.environment.get("PORT").is_some_and(|value| value != "${PORT}");
    if own_port && (listen.is_some() || replicas > 1 || scale.is_some()) {
        let finding = Finding::warning(
            "own_port",
            "`PORT` is set for all replicas alike, and takes the place of the replica's own port",
        );
        if let Some(field) = fields.get("environment").or(fields.get("env_file")) {
            reader.push(
                finding
                    .at(reader.place(field.span()))
                    .help("leave `PORT` out: Plimsoll sets it, a free port for each replica"),
            );
        }
    }
    Some(ServiceSpec {
        restart: restart.unwrap_or(Some(RestartPolicy::No))?,
        depends_on,
        healthcheck,
        listen,
        min_available: min_available.unwrap_or(Some(0))?,
        replicas,
        scale,
        ..process
    })
}

pub(crate) fn words<T: Copy>(words: &[&'static str], values: &[T]) -> Vec<(&'static str, T)> {
    words.iter().copied().zip(values.iter().copied()).collect()
}

/// Two keys that do not go together.
pub(crate) fn conflict(
    reader: &mut Reader<'_>,
    id: &'static str,
    message: &str,
    field: &Field<'_>,
    other: &Field<'_>,
    label: &str,
    help: &str,
) {
    let finding = Finding::error(id, message).at(reader.place(field.span()));
    let finding = finding.related(reader.place(other.span()), label).help(help);
    reader.push(Finding { key: Some(field.key.name), ..finding });
}

/// What stands under `deploy`.
#[derive(Default)]
pub(crate) struct Deploy<'n> {
    replicas: Option<Field<'n>>,
    memory: Option<Field<'n>>,
    cpus: Option<Field<'n>>,
    pids: Option<Field<'n>>,
    reservation: Option<Field<'n>>,
}

impl<'n> Deploy<'n> {
    fn read(reader: &mut Reader<'_>, fields: &Fields<'n>) -> Self {
        let mut found = Self::default();
        let Some(deploy) = fields.get("deploy").and_then(|field| reader.fields(&field, &keys::DEPLOY)) else {
            return found;
        };
        found.replicas = deploy.get("replicas");
        let resources = deploy.get("resources").and_then(|field| reader.fields(&field, &keys::RESOURCES));
        let Some(resources) = resources else { return found };
        if let Some(limits) = resources.get("limits").and_then(|field| reader.fields(&field, &keys::LIMITS)) {
            found.memory = limits.get("memory");
            found.cpus = limits.get("cpus");
            found.pids = limits.get("pids");
        }
        let reserved = resources.get("reservations").and_then(|field| reader.fields(&field, &keys::RESERVATIONS));
        if let Some(reserved) = reserved {
            found.reservation = reserved.get("memory");
            if let Some(field) = reserved.get("cpus")
                && reader.cores(&field).is_some()
            {
                let finding = Finding::warning("no_effect", "reserved processor time has no effect, as in Compose");
                reader.push(finding.at(reader.place(field.span())).help("leave it out; `cpus` is the limit"));
            }
        }
        found
    }
}

/// A limit that can be written in two places, which then have to agree.
fn limit<'n, 'r, T: PartialEq + Copy>(
    reader: &mut Reader<'r>,
    own: Option<Field<'n>>,
    deploy: Option<Field<'n>>,
    read: impl Fn(&mut Reader<'r>, &Field<'_>) -> Option<T>,
) -> Option<(T, Field<'n>)> {
    let one = |reader: &mut Reader<'r>, field: Option<Field<'n>>| {
        let field = field?;
        Some((read(reader, &field)?, field))
    };
    match (one(reader, own), one(reader, deploy)) {
        (Some((a, field)), Some((b, other))) => {
            if a != b {
                let message = format!("`{}` and `deploy.resources` have distinct values", field.key.name);
                conflict(reader, "distinct_values", &message, &other, &field, "and here", "keep one of the two");
            }
            Some((b, other))
        }
        (found, None) | (None, found) => found,
    }
}

/// Memory and swap together; by default no swap.
fn swap(
    reader: &mut Reader<'_>,
    fields: &Fields<'_>,
    limit: Option<(u64, Field<'_>)>,
    has_memory: bool,
) -> Option<u64> {
    let memory = limit.map(|(bytes, _)| bytes);
    let Some(field) = fields.get("memswap_limit") else { return memory };
    let Some(total) = reader.size_or_minus(&field) else { return memory };
    let Some((memory, at)) = limit else {
        if !has_memory {
            let bad = Bad::new("it is the total of memory and swap, and there is no `mem_limit`");
            reader.bad(&field, bad.help("add `mem_limit`"));
        }
        return None;
    };
    match total {
        Some(total) if total < memory => {
            let message = format!(
                "`memswap_limit` of {} is below the memory limit of {}: it is their total",
                Human(total),
                Human(memory)
            );
            let help = "as much as the limit allows no swap, more than that allows some, -1 allows any";
            conflict(reader, "swap_below_memory", &message, &field, &at, "the limit", help);
            Some(memory)
        }
        total => total,
    }
}

fn restart(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<RestartPolicy> {
    reader.value(field, |text| {
        let (word, times) = match text.split_once(':') {
            Some((word, times)) => (word, Some(times)),
            None => (text, None),
        };
        match (word, times) {
            ("no", None) => Ok(RestartPolicy::No),
            ("always", None) => Ok(RestartPolicy::Always),
            ("unless-stopped", None) => Ok(RestartPolicy::UnlessStopped),
            ("on-failure", None) => Ok(RestartPolicy::OnFailure(None)),
            ("on-failure", Some(times)) => match times.parse() {
                Ok(0) => Err(Bad::new("0 times is never").help("write `restart: no`")),
                Ok(times) if !text.contains('+') => Ok(RestartPolicy::OnFailure(Some(times))),
                _ => Err(Bad::new(format!("{} is no number of times", quote(times)))),
            },
            _ => {
                let all = ["no", "always", "on-failure", "unless-stopped"];
                let bad = Bad::new(format!(
                    "{} is no restart policy: no, always, on-failure[:n], unless-stopped",
                    quote(text)
                ));
                Err(match nearest(word, all) {
                    Some(near) if near != word => bad.help(format!("a similar one exists: `{near}`")),
                    _ => bad,
                })
            }
        }
    })
}

/// A port of 127.0.0.1, or an address with a port.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, Bad> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (Some(host), port),
        None => (None, text),
    };
    let port = match port.parse::<u16>() {
        Ok(0) => return Err(Bad::new("port 0 is any port, and nobody would know which")),
        Ok(number) if port.bytes().all(|byte| byte.is_ascii_digit()) => number,
        _ => return Err(Bad::new(format!("{} is no port: ports are 1 to 65535", quote(port)))),
    };
    let address = match host {
        None | Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(host) => {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            let parsed = match bare {
                Some(v6) => v6.parse().map(IpAddr::V6).ok(),
                None => host.parse().map(IpAddr::V4).ok(),
            };
            parsed.ok_or_else(|| {
                let bad = Bad::new(format!("{} is no address", quote(host)));
                if host.bytes().all(|byte| byte.is_ascii_digit()) {
                    bad.help("there is no mapping: `listen` is the public port, and `${PORT}` the replica's own")
                } else {
                    bad.help("write an IP address: `0.0.0.0:8080` for all of IPv4, `[::]:8080` for all")
                }
            })?
        }
    };
    Ok(SocketAddr::new(address, port))
}

fn health(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<HealthSpec> {
    let fields = reader.fields(field, &keys::HEALTH)?;
    let test = fields.get("test").map(|field| (test(reader, &field), field));
    let mut time = |name: &str, default: Duration| match fields.get(name) {
        Some(field) => reader.time(&field),
        None => Some(default),
    };
    let interval = time("interval", Duration::from_secs(30));
    let timeout = time("timeout", Duration::from_secs(30));
    let start_interval = time("start_interval", Duration::from_secs(5));
    let start_period = fields.get("start_period").map(|field| reader.duration(&field));
    let retries = fields.get("retries").map(|field| reader.count(&field, 1));
    if fields.get("disable").is_some_and(|field| reader.flag(&field) == Some(true)) {
        return None;
    }
    let Some((test, _)) = test else {
        let finding = Finding::error("missing_key", "`healthcheck` has no `test`").at(reader.place(field.span()));
        reader.push(finding.help("for example `test: [CMD, curl, -f, \"http://127.0.0.1:${PORT}/health\"]`"));
        return None;
    };
    Some(HealthSpec {
        test: test??,
        interval: interval?,
        timeout: timeout?,
        retries: retries.unwrap_or(Some(3))?,
        start_period: start_period.unwrap_or(Some(Duration::ZERO))?,
        start_interval: start_interval?,
    })
}

/// The probe's command; `Some(None)` for NONE.
fn test(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Option<Vec<String>>> {
    let Value::List(items) = &field.node.value else {
        let line = reader.text(field, true)?;
        if line.trim().is_empty() {
            reader.bad(field, Bad::new("there is no command in it"));
            return None;
        }
        return Some(Some(vec!["/bin/sh".to_owned(), "-c".to_owned(), line]));
    };
    let words: Vec<_> = items.iter().map(|item| reader.text(&field.item(item), true)).collect();
    let words = words.into_iter().collect::<Option<Vec<String>>>()?;
    let (how, rest) = match words.split_first() {
        Some((how, rest)) => (how.as_str(), rest),
        None => ("", &[][..]),
    };
    let bad = match how {
        "NONE" if rest.is_empty() => return Some(None),
        "CMD" | "CMD-SHELL" if rest.first().is_none_or(|program| program.trim().is_empty()) => {
            Bad::new(format!("there is no command behind {how}"))
        }
        "CMD" | "CMD-SHELL" if rest.iter().any(|word| word.contains('\0')) => {
            Bad::new("no argument can have a zero byte in it")
        }
        "CMD" => return Some(Some(rest.to_vec())),
        "CMD-SHELL" => {
            let shell = ["/bin/sh", "-c"].map(str::to_owned);
            return Some(Some(shell.into_iter().chain(rest.iter().cloned()).collect()));
        }
        "" => Bad::new("there is no command in it"),
        "NONE" => Bad::new("NONE stands alone"),
        other => Bad::new(format!("a list begins with CMD, CMD-SHELL or NONE, and this one with {}", quote(other)))
            .help("put CMD before the program, or CMD-SHELL before a line for a shell"),
    };
    reader.bad(field, bad);
    None
}

fn pressure(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<Ask> {
    let fields = reader.fields(field, &keys::PRESSURE)?;
    let command = fields.get("command").map(|field| (reader.command(&field, true), field));
    let signal = fields.get("signal").map(|field| (reader.signal(&field), field));
    match (command, signal) {
        (Some((command, _)), None) => command.map(Ask::Command),
        (None, Some((signal, _))) => signal.map(Ask::Signal),
        (Some((_, command)), Some((_, signal))) => {
            let message = "`on_pressure` asks by a command or by a signal, and here are both";
            conflict(reader, "distinct_values", message, &signal, &command, "and here", "keep one of the two");
            None
        }
        (None, None) => {
            reader.bad(field, Bad::new("it has neither `command` nor `signal`"));
            None
        }
    }
}

fn scale(reader: &mut Reader<'_>, field: &Field<'_>, has_memory: bool, has_cpus: bool) -> Option<ScaleSpec> {
    if let Value::Scalar(_) = &field.node.value {
        let finding =
            Finding::error("type", format!("`scale` is {}", field.node.what())).at(reader.place(field.span()));
        let help = "`deploy: { replicas: 2 }` is a fixed number; `scale: { min: 1, max: 4, target_memory: 70% }` follows the load";
        reader.push(finding.label("expected a map").help(help));
        return None;
    }
    let fields = reader.fields(field, &keys::SCALE)?;
    let min = fields.get("min").map(|field| (reader.count(&field, 1), field));
    let max = fields.get("max").map(|field| (reader.count(&field, 1), field));
    let mut target = |name: &str, has_limit: bool, limit: &str| {
        let field = fields.get(name)?;
        let percent = reader.percent(&field);
        if percent.is_some() && !has_limit {
            let bad = Bad::new(format!("it is a percentage of `{limit}`, which is not set"));
            reader.bad(&field, bad.help(format!("add `{limit}` to the service")));
        }
        percent
    };
    let target_memory = target("target_memory", has_memory, "mem_limit");
    let target_cpu = target("target_cpu", has_cpus, "cpus");
    let (least, most) = (min.map_or(Some(1), |(min, _)| min)?, max?.0?);
    if let (Some((_, min)), Some((_, max))) = (min, max)
        && least > most
    {
        let message = format!("at least {least} and at most {most} replicas cannot be had");
        conflict(reader, "scale", &message, &min, &max, "at most", "`min` is at most `max`");
        return None;
    }
    if fields.get("target_memory").is_none() && fields.get("target_cpu").is_none() {
        let finding = Finding::warning("no_target", "`scale` has no target: the number of replicas follows nothing");
        let finding = finding.at(reader.place(field.span()));
        reader.push(finding.help("add `target_memory: 70%` or `target_cpu: 70%`"));
    }
    Some(ScaleSpec { min: least, max: most, target_memory, target_cpu })
}

fn replicas(reader: &mut Reader<'_>, field: Option<Field<'_>>, scale: Option<ScaleSpec>) -> u32 {
    let default = scale.map_or(1, |scale| scale.min);
    let Some(field) = field else { return default };
    let Some(number) = reader.count(&field, 0) else { return default };
    if let Some(scale) = scale
        && !(scale.min..=scale.max).contains(&number)
    {
        let bad = Bad::new(format!("{number} is outside `scale`, which is {} to {}", scale.min, scale.max));
        reader.bad(&field, bad.help("leave `replicas` out: it begins with `scale.min`"));
    }
    number
}

fn depends(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Vec<(String, Condition, Place)> {
    let Some(field) = fields.get("depends_on") else { return Vec::new() };
    let mut all: Vec<(String, Condition, Place)> = Vec::new();
    match &field.node.value {
        Value::List(items) => {
            for item in items {
                let field = field.item(item);
                if let Some(name) = reader.text(&field, false) {
                    all.push((name, Condition::Started, reader.place(field.span())));
                }
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                let place = reader.place(entry.key_span.clone());
                let condition =
                    if entry.value.is_null() { Some(Condition::Started) } else { condition(reader, &field, entry) };
                // A condition that is wrong was told; that the service is known is still to be seen.
                all.push((entry.key.clone(), condition.unwrap_or_default(), place));
            }
        }
        Value::Scalar(_) => reader.wrong_type(&field, &field.key.kind.expected()),
    }
    all
}

fn condition(reader: &mut Reader<'_>, field: &Field<'_>, entry: &Entry) -> Option<Condition> {
    let Some(fields) = reader.known_fields(&entry.value, entry.key_span.clone(), &keys::DEPENDENCY) else {
        let (key, what) = (quote(&entry.key), entry.value.what());
        let finding = Finding::error("type", format!("the dependency {key} is {what}"));
        let finding = finding.at(reader.place(field.item(&entry.value).span())).label("expected a map");
        reader.push(
            finding.help(format!("for example `{}: {{ condition: service_healthy }}`", entry.key.escape_debug())),
        );
        return None;
    };
    let values = [Condition::Started, Condition::Healthy, Condition::CompletedSuccessfully];
    match fields.get("condition") {
        Some(field) => reader.word(&field, &words(keys::CONDITIONS, &values)),
        None => Some(Condition::Started),
    }
}

/// Variables of `env_file` and, over them, of `environment`.
fn environment(reader: &mut Reader<'_>, fields: &Fields<'_>) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    if let Some(field) = fields.get("env_file") {
        env_files(reader, &field, &mut all);
    }
    let Some(field) = fields.get("environment") else { return all };
    match &field.node.value {
        Value::Map(entries) => {
            for entry in entries {
                let value = if entry.value.is_null() {
                    inherited(reader, &entry.key)
                } else {
                    reader.text(&field.item(&entry.value), true)
                };
                let field = if entry.value.span.is_empty() { field } else { field.item(&entry.value) };
                variable(reader, &field, entry.key.clone(), value, &mut all);
            }
        }
        Value::List(items) => {
            for item in items {
                let field = field.item(item);
                let Some(text) = reader.text(&field, true) else { continue };
                let (name, value) = match text.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (text.clone(), inherited(reader, &text)),
                };
                variable(reader, &field, name, value, &mut all);
            }
        }
        Value::Scalar(_) => reader.wrong_type(&field, &field.key.kind.expected()),
    }
    all
}

fn inherited(reader: &Reader<'_>, name: &str) -> Option<String> {
    (reader.outside.env)(name).or_else(|| reader.dotenv.get(name).cloned())
}

/// One variable goes into the environment, if its name can.
fn variable(
    reader: &mut Reader<'_>,
    field: &Field<'_>,
    name: String,
    value: Option<String>,
    all: &mut BTreeMap<String, String>,
) {
    let bad = if name.is_empty() {
        Bad::new("a variable without a name")
    } else if name.contains(['=', '\0']) || value.as_ref().is_some_and(|value| value.contains('\0')) {
        Bad::new(format!("no variable can be {} with this value", quote(&name)))
            .help("names have no `=`, and neither names nor values a zero byte")
    } else if OURS.contains(&name.as_str()) {
        Bad::new(format!("{} is set by Plimsoll itself", quote(&name))).help("give the variable another name")
    } else {
        if let Some(value) = value {
            all.insert(name, value);
        }
        return;
    };
    reader.bad(field, bad);
}

fn env_files(reader: &mut Reader<'_>, field: &Field<'_>, all: &mut BTreeMap<String, String>) {
    let mut files: Vec<(PathBuf, bool, Field<'_>)> = Vec::new();
    match &field.node.value {
        Value::List(items) => {
            for item in items {
                let field = field.item(item);
                let Value::Map(_) = &item.value else {
                    files.extend(reader.path(&field).map(|path| (path, true, field)));
                    continue;
                };
                let Some(fields) = reader.known_fields(item, field.span(), &keys::ENV_FILE) else { continue };
                let required = fields.get("required").and_then(|field| reader.flag(&field)).unwrap_or(true);
                if let Some(field) = fields.get("path") {
                    files.extend(reader.path(&field).map(|path| (path, required, field)));
                }
            }
        }
        _ => files.extend(reader.path(field).map(|path| (path, true, *field))),
    }
    for (path, required, field) in files {
        let source = match reader.variables_file(&path) {
            Ok(source) => source,
            Err((io::ErrorKind::NotFound, _)) if !required => continue,
            Err((_, why)) => {
                let finding = Finding::error("env_file", format!("{} cannot be read: {why}", path.display()));
                let help =
                    "paths are relative to the folder of this file; `{ path: …, required: false }` may be missing";
                reader.push(finding.at(reader.place(field.span())).help(help));
                continue;
            }
        };
        if !reader.spend(source.text().len(), field.span()) {
            return;
        }
        let (env, project) = (reader.outside.env, &reader.dotenv);
        let lookup = |name: &str| env(name).or_else(|| project.get(name).cloned());
        let read = dotenv::parse(source.text(), &lookup, reader.has_port);
        let size: usize = read.values.values().map(String::len).sum();
        report(reader, &source, &read);
        if !reader.spend(size, field.span()) {
            return;
        }
        for (name, value) in read.values {
            variable(reader, &field, name, Some(value), all);
        }
    }
}

/// What is wrong in a file of variables goes among the findings.
pub(crate) fn report(reader: &mut Reader<'_>, source: &Arc<crate::source::Source>, read: &dotenv::Variables) {
    for note in &read.wrong {
        let finding = Finding::error("env_file", note.what.clone()).at(Place::new(source, note.span.clone()));
        reader.push(finding.help("a line is `NAME=value`, `NAME=\"value\"`, `NAME='value'`, or a comment behind `#`"));
    }
    for note in &read.unset {
        let finding = Finding::warning("unset_variable", format!("the variable {} is not set", quote(&note.what)));
        let finding = finding.at(Place::new(source, note.span.clone())).label("empty here");
        reader.push(finding.help("set it, or write `$$` for a plain dollar sign"));
    }
}
