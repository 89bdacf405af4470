//! The whole file: budget, alerts, services, pools, and what they have to do with each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use plimsoll_model::pool::{GatewaySpec, PoolSpec, RedisSpec};
use plimsoll_model::size::Human;
use plimsoll_model::stack::{
    AlertSpec, BudgetSpec, Condition, Delivery, Gauge, RestartPolicy, ServiceSpec, StackSpec, Threshold,
};

use crate::finding::{Finding, nearest, quote};
use crate::gateway;
use crate::keys;
use crate::pool;
use crate::reader::{Bad, Field, Fields, Reader, percent, size};
use crate::service;
use crate::source::Place;
use crate::yaml::{Node, Value};

/// Cycles that are told; a file with more has a mistake that makes them all.
const MOST_CYCLES: usize = 5;

/// The stack, and whether limits over the budget are an error; `None` when the file is no map.
pub(crate) fn read(reader: &mut Reader<'_>, root: &Node) -> Option<(StackSpec, bool)> {
    let Some(fields) = reader.known_fields(root, 0..0, &keys::STACK) else {
        let finding = Finding::error("type", format!("the file is {}", root.what()));
        let finding = finding.at(reader.place(root.span.clone())).label("expected a map");
        reader.push(finding.help("a file begins with keys such as `services:`; `plimsoll init` writes one"));
        return None;
    };
    let (budget, strict) = budget(reader, &fields);
    if keys::EITHER.iter().all(|key| fields.get(key).is_none()) {
        let finding = Finding::error("missing_key", "the file has no `services` and no `pools`");
        let help = "for example `services: { api: { command: [python3, app.py] } }`";
        reader.push(finding.at(reader.place(root.span.clone())).help(help));
    }
    let services = services(reader, &fields);
    let pools = pools(reader, &fields, &services);
    let gateway = gateway::read(reader, &fields);
    let redis = fields.get("redis").and_then(|field| reader.value(&field, redis));
    addresses(reader, &services.specs, gateway.as_ref());
    let alerts = alerts(reader, &fields, &services);
    Some((StackSpec { budget, alerts, services: services.specs, pools, gateway, redis }, strict))
}

fn budget(reader: &mut Reader<'_>, fields: &Fields<'_>) -> (BudgetSpec, bool) {
    let mut budget = BudgetSpec::default();
    let top = fields.get("strict").and_then(|field| Some((reader.flag(&field)?, field)));
    let mut inner = None;
    if let Some(fields) = fields.get("budget").and_then(|field| reader.fields(&field, &keys::BUDGET)) {
        if let Some(memory) = fields.get("memory").and_then(|field| reader.amount(&field)) {
            budget.memory = memory;
        }
        if let Some(reserve) = fields.get("reserve").and_then(|field| reader.size(&field)) {
            budget.reserve = reserve;
        }
        inner = fields.get("strict").and_then(|field| Some((reader.flag(&field)?, field)));
    }
    if let (Some((a, _)), Some((b, field))) = (&top, &inner)
        && a != b
    {
        reader.bad(field, Bad::new("it is the other way round at the top of the file").help("keep one of the two"));
    }
    (budget, top.or(inner).is_some_and(|(strict, _)| strict))
}

/// All services, those with mistakes by their names alone.
struct Services {
    names: BTreeSet<String>,
    specs: BTreeMap<String, ServiceSpec>,
}

fn services(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Services {
    let mut all = Services { names: BTreeSet::new(), specs: BTreeMap::new() };
    let Some(field) = fields.get("services") else { return all };
    let Value::Map(entries) = &field.node.value else {
        reader.wrong_type(&field, "a map");
        return all;
    };
    if entries.is_empty() {
        reader.bad(&field, Bad::new("there is none"));
    }
    all.names = entries.iter().map(|entry| entry.key.clone()).collect();
    let mut depends: BTreeMap<String, Vec<(String, Condition, Place)>> = BTreeMap::new();
    for entry in entries {
        let read = service::read(reader, entry);
        depends.insert(entry.key.clone(), read.depends);
        all.specs.extend(read.spec.map(|spec| (entry.key.clone(), spec)));
    }
    dependencies(reader, &all, &depends);
    cycles(reader, &depends);
    all
}

fn pools(reader: &mut Reader<'_>, fields: &Fields<'_>, services: &Services) -> BTreeMap<String, PoolSpec> {
    let mut specs = BTreeMap::new();
    let Some(field) = fields.get("pools") else { return specs };
    let Value::Map(entries) = &field.node.value else {
        reader.wrong_type(&field, "a map");
        return specs;
    };
    if entries.is_empty() {
        reader.bad(&field, Bad::new("there is none"));
    }
    let mut models = BTreeMap::new();
    for entry in entries {
        if services.names.contains(&entry.key) {
            let message = format!("{} is a service and a pool", quote(&entry.key));
            let finding = Finding::error("name_twice", message).at(reader.place(entry.key_span.clone()));
            let finding = match reader.places.get(&(entry.key.clone(), "")) {
                Some(place) => finding.related(place.clone(), "the service"),
                None => finding,
            };
            reader
                .push(finding.help("call one of them otherwise: `stop`, `logs` and `status` know both by their names"));
        }
        let read = pool::read(reader, entry);
        models.insert(entry.key.clone(), read.models);
        specs.extend(read.spec.map(|spec| (entry.key.clone(), spec)));
    }
    pool::names(reader, &models);
    specs
}

/// Whether what services depend on is there, and can become what it has to.
fn dependencies(reader: &mut Reader<'_>, all: &Services, depends: &BTreeMap<String, Vec<(String, Condition, Place)>>) {
    for (name, on) in depends {
        for (other, condition, place) in on {
            // To look for a similar name among thousands, thousands of times, takes its time.
            if reader.findings.is_full() {
                return;
            }
            let finding = if !all.names.contains(other) {
                let message = format!("{} depends on {}, and there is no such service", quote(name), quote(other));
                let finding = Finding::error("unknown_service", message).label("no such service");
                finding.help(similar(other, &all.names))
            } else if let Some(spec) = all.specs.get(other) {
                match (condition, spec) {
                    (Condition::Healthy, ServiceSpec { healthcheck: None, .. }) => {
                        let message = format!("{} has no health check: running is healthy", quote(other));
                        Finding::warning("no_healthcheck", message)
                            .help(format!("add a `healthcheck` to {}", quote(other)))
                    }
                    (
                        Condition::CompletedSuccessfully,
                        ServiceSpec { restart: RestartPolicy::Always | RestartPolicy::UnlessStopped, .. },
                    ) => {
                        let message = format!(
                            "{} is waited for to complete, and is started again whenever it does",
                            quote(other)
                        );
                        Finding::warning("never_completes", message)
                            .help("give it `restart: no` or `restart: on-failure`")
                    }
                    (_, ServiceSpec { replicas: 0, .. }) => {
                        let message = format!("{} depends on {}, which has no replicas", quote(name), quote(other));
                        Finding::warning("no_replicas", message).help("it begins when the other is scaled up")
                    }
                    _ => continue,
                }
            } else {
                continue;
            };
            reader.push(Finding { service: Some(name.clone()), key: Some("depends_on"), ..finding.at(place.clone()) });
        }
    }
}

fn similar(name: &str, names: &BTreeSet<String>) -> String {
    /// Among more names than these nobody is helped by one that is only similar.
    const COMPARED: usize = 1000;
    match nearest(name, names.iter().take(COMPARED).map(String::as_str)) {
        Some(near) => format!("a similar one exists: {}", quote(near)),
        None => {
            let known: Vec<String> = names.iter().take(10).map(|name| quote(name)).collect();
            let more = if names.len() > known.len() { ", …" } else { "" };
            format!("services are {}{more}", known.join(", "))
        }
    }
}

/// Services that wait for each other in a circle.
fn cycles(reader: &mut Reader<'_>, depends: &BTreeMap<String, Vec<(String, Condition, Place)>>) {
    // Whoever depends on nothing that is left is no part of a circle; what is left in the end depends on one.
    let mut left: BTreeMap<&str, Vec<(&str, &Place)>> = depends
        .iter()
        .map(|(name, on)| (name.as_str(), on.iter().map(|(other, _, place)| (other.as_str(), place)).collect()))
        .collect();
    for _ in 0..MOST_CYCLES {
        peel(&mut left);
        let Some((&first, _)) = left.iter().next() else { return };
        let mut path: Vec<(&str, &Place)> = Vec::new();
        let mut at: BTreeMap<&str, usize> = BTreeMap::new();
        let mut name = first;
        while !at.contains_key(name) {
            at.insert(name, path.len());
            let Some(next) = left[name].iter().find(|(other, _)| left.contains_key(other)) else { return };
            path.push((name, next.1));
            name = next.0;
        }
        let circle = &path[at[name]..];
        let mut names: Vec<&str> = circle.iter().map(|(name, _)| *name).collect();
        names.push(name);
        let shown = if names.len() > 12 {
            format!("{} → … → {name}", names[..10].join(" → "))
        } else {
            names.join(" → ")
        };
        let message = if circle.len() == 1 {
            format!("{} depends on itself", quote(name))
        } else {
            format!("services wait for each other in a circle: {shown}")
        };
        let finding = Finding::error("dependency_cycle", message).at(circle[0].1.clone());
        let finding = finding.help("one of them has to begin without the other");
        reader.push(Finding { service: Some(circle[0].0.to_owned()), key: Some("depends_on"), ..finding });
        for (name, _) in circle {
            left.remove(name);
        }
    }
}

/// Takes away, again and again, whoever depends on nothing that is left.
fn peel(left: &mut BTreeMap<&str, Vec<(&str, &Place)>>) {
    let mut waiting: BTreeMap<&str, usize> = BTreeMap::new();
    let mut back: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, on) in left.iter() {
        let on: BTreeSet<&str> = on.iter().map(|(other, _)| *other).filter(|other| left.contains_key(other)).collect();
        waiting.insert(name, on.len());
        for other in on {
            back.entry(other).or_default().push(name);
        }
    }
    let mut free: Vec<&str> = waiting.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect();
    while let Some(name) = free.pop() {
        left.remove(name);
        for waiter in back.get(name).into_iter().flatten() {
            if let Some(count) = waiting.get_mut(waiter) {
                *count -= 1;
                if *count == 0 {
                    free.push(waiter);
                }
            }
        }
    }
}

/// Two services cannot have one address, nor can one have the gateway's.
fn addresses(reader: &mut Reader<'_>, specs: &BTreeMap<String, ServiceSpec>, gateway: Option<&GatewaySpec>) {
    let mut taken: BTreeMap<u16, BTreeMap<IpAddr, &str>> = BTreeMap::new();
    // The gateway has no name that a service could have.
    let gateway = gateway.map(|gateway| ("", gateway.listen));
    let all = specs.iter().filter_map(|(name, spec)| Some((name.as_str(), spec.listen?)));
    let called = |name: &str| if name.is_empty() { "the gateway".to_owned() } else { quote(name) };
    for (name, address) in gateway.into_iter().chain(all) {
        let others = taken.entry(address.port()).or_default();
        // The address of all takes the port of each.
        let same = others.get(&address.ip());
        let all = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
        let clash = same.or_else(|| all.iter().find_map(|all| others.get(all)));
        let clash = clash.or_else(|| others.values().next().filter(|_| address.ip().is_unspecified()));
        if let Some(other) = clash {
            let place = |name: &str| reader.places.get(&(name.to_owned(), "listen")).cloned();
            let message = format!("{} and {} both listen at port {}", called(other), called(name), address.port());
            let mut finding = Finding::error("listen_twice", message).help("give one of them another port");
            if let Some(second) = place(name) {
                finding = match place(other) {
                    // Services are by name here, and the later one in the file is the one to show.
                    Some(first) if first.start() < second.start() => finding.at(second).related(first, "and here"),
                    Some(first) => finding.at(first).related(second, "and here"),
                    // The gateway's default stands nowhere.
                    None => finding.at(second),
                };
            }
            reader.push(Finding { service: Some(name.to_owned()), key: Some("listen"), ..finding });
        }
        others.insert(address.ip(), name);
    }
}

fn alerts(reader: &mut Reader<'_>, fields: &Fields<'_>, services: &Services) -> Vec<AlertSpec> {
    let Some(field) = fields.get("alerts") else { return Vec::new() };
    let Value::List(items) = &field.node.value else {
        reader.wrong_type(&field, "a list");
        return Vec::new();
    };
    items.iter().filter_map(|item| alert(reader, &field.item(item), services)).collect()
}

fn alert(reader: &mut Reader<'_>, field: &Field<'_>, services: &Services) -> Option<AlertSpec> {
    let Some(fields) = reader.known_fields(field.node, field.span(), &keys::ALERT) else {
        let finding = Finding::error("type", format!("an alert is {}", field.node.what()));
        let finding = finding.at(reader.place(field.span())).label("expected a map");
        reader.push(finding.help("for example `- { when: \"memory > 80%\", for: 10s }`"));
        return None;
    };
    let when = fields.get("when").map(|field| {
        let read = reader.value(&field, |text| condition(text, services).map(|read| (text.to_owned(), read)));
        (read, field)
    });
    let lasting = fields.get("for").map(|field| reader.duration(&field));
    let command = fields.get("command").map(|field| (reader.command(&field, false), field));
    let webhook = fields.get("webhook").map(|field| (reader.value(&field, address), field));
    let deliver = match (command, webhook) {
        (None, None) => None,
        (Some((command, _)), None) => {
            let mut command = command?;
            // It runs in no folder that the user would know: what is a path is made whole.
            if command[0].contains('/') && !Path::new(&command[0]).is_absolute() {
                let program = command[0].strip_prefix("./").unwrap_or(&command[0]);
                command[0] = reader.outside.base.join(program).to_string_lossy().into_owned();
            }
            Some(Delivery::Command(command))
        }
        (None, Some((webhook, _))) => Some(Delivery::Webhook(webhook?)),
        (Some((_, command)), Some((_, webhook))) => {
            let finding =
                Finding::error("distinct_values", "an alert goes to a command or to a webhook, and here are both");
            let finding = finding.at(reader.place(webhook.span())).related(reader.place(command.span()), "and here");
            reader.push(finding.help("write two alerts"));
            return None;
        }
    };
    let (when, (gauge, above, threshold)) = when?.0?;
    Some(AlertSpec {
        when,
        gauge,
        above,
        threshold,
        lasting: lasting.unwrap_or(Some(std::time::Duration::ZERO))?,
        deliver,
    })
}

/// `memory > 80%`, `service NAME rss > 500m`: what is compared, whether it has to be above, with what.
fn condition(text: &str, services: &Services) -> Result<(Gauge, bool, Threshold), Bad> {
    let example = "for example `memory > 80%`, `service api rss > 500m`, `service api restarts > 3`";
    let Some(at) = text.find(['<', '>', '=', '!']) else {
        return Err(Bad::new("nothing is compared in it").help(example));
    };
    let (what, rest) = text.split_at(at);
    let sign: String = rest.chars().take_while(|c| "<>=!".contains(*c)).collect();
    let above = match sign.as_str() {
        ">" => true,
        "<" => false,
        _ => return Err(Bad::new(format!("{} compares nothing", quote(&sign))).help("write `>` or `<`")),
    };
    let limit = rest[sign.len()..].trim();
    let words: Vec<&str> = what.split_whitespace().collect();
    let gauges = ["rss", "memory", "restarts"];
    match words.as_slice() {
        ["memory"] => {
            let threshold = if limit.ends_with('%') {
                Threshold::Percent(percent(limit)?)
            } else {
                Threshold::Number(size(limit)?)
            };
            Ok((Gauge::BudgetMemory, above, threshold))
        }
        ["service", name, gauge] => {
            if !services.names.contains(*name) {
                let bad = Bad::new(format!("there is no service {}", quote(name)));
                return Err(bad.help(similar(name, &services.names)));
            }
            match *gauge {
                "restarts" => match limit.parse() {
                    Ok(number) if !limit.starts_with('+') => {
                        Ok((Gauge::ServiceRestarts((*name).to_owned()), above, Threshold::Number(number)))
                    }
                    _ => Err(Bad::new(format!("{} is no number of restarts", quote(limit))).help(example)),
                },
                "rss" | "memory" if limit.ends_with('%') => {
                    if services.specs.get(*name).is_some_and(|spec| spec.mem_limit.is_none()) {
                        let bad =
                            Bad::new(format!("a percentage of the `mem_limit` of {}, which has none", quote(name)));
                        return Err(bad.help("add `mem_limit` to the service, or compare with a size"));
                    }
                    Ok((Gauge::ServiceMemory((*name).to_owned()), above, Threshold::Percent(percent(limit)?)))
                }
                "rss" | "memory" => {
                    Ok((Gauge::ServiceMemory((*name).to_owned()), above, Threshold::Number(size(limit)?)))
                }
                other => {
                    let bad =
                        Bad::new(format!("{} of a service is not measured: rss, memory or restarts", quote(other)));
                    Err(match nearest(other, gauges) {
                        Some(near) => bad.help(format!("a similar word exists: `{near}`")),
                        None => bad.help(example),
                    })
                }
            }
        }
        _ => {
            let bad = Bad::new(format!("{} is nothing that can be compared", quote(what.trim())));
            Err(bad.help("on the left stands `memory`, or `service NAME` with `rss`, `memory` or `restarts`"))
        }
    }
}

/// An `http://` address that something can be sent to.
pub(crate) fn address(text: &str) -> Result<String, Bad> {
    let Some(rest) = text.strip_prefix("http://") else {
        let bad = Bad::new(format!("{} is no `http://` address", quote(text)));
        return Err(if text.starts_with("https://") {
            bad.help("TLS is not spoken here: name a relay on this machine, or use `command` with curl")
        } else {
            bad
        });
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if !is_host_and_port(host) {
        return Err(Bad::new(format!("{} names no host, or a wrong port", quote(text))));
    }
    no_spaces(text)
}

/// `HOST` or `HOST:PORT`.
fn is_host_and_port(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        // A colon within the brackets of an IPv6 address is none before a port.
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_port =
        |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    !host.is_empty() && port.is_none_or(is_port)
}

fn no_spaces(text: &str) -> Result<String, Bad> {
    if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(Bad::new("an address has no spaces in it").help("write %20 for a space"));
    }
    Ok(text.to_owned())
}

/// A Redis server's address. What is wrong is told without it: there may be a password in it.
fn redis(text: &str) -> Result<RedisSpec, Bad> {
    let example = "for example `redis://127.0.0.1:6379`, or `redis://:${REDIS_PASSWORD}@store:6379/2`";
    let Some(rest) = text.strip_prefix("redis://") else {
        let bad = Bad::new("it is no `redis://` address");
        return Err(if text.starts_with("rediss://") {
            bad.help("TLS is not spoken here: name a relay on this machine")
        } else {
            bad.help(example)
        });
    };
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if !is_host_and_port(host) {
        return Err(Bad::new("it names no host, or a wrong port").help(example));
    }
    if !database.is_empty() && database.parse::<u8>().is_err() {
        return Err(Bad::new("behind its `/` stands the number of a database, and nothing else").help(example));
    }
    Ok(RedisSpec { url: no_spaces(text)? })
}

/// What is known of a stack on a machine, or in a container, of `total` bytes: reservations that cannot be had together, a
/// budget that is nothing, limits that together are over it (an error if `strict`, else a warning).
///
/// Reservations count for the fewest replicas there may be, limits for the most. Of a pool, those processes count as the
/// fewest that are started ahead, or the one without which it is of no use, and as the most all that there may be. Whatever
/// has no limit takes what is left, and does not count. A pool whose single session may be larger than the budget is an
/// error: its line would never be met.
#[must_use]
pub fn fits(spec: &StackSpec, total: u64, strict: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let budget = spec.budget.bytes(total);
    if let plimsoll_model::stack::Amount::Bytes(asked) = spec.budget.memory
        && asked > budget
    {
        let message = format!("the budget of {} is more than there is, and counts as {}", Human(asked), Human(budget));
        let help = format!("there are {} here, of which {} stay in reserve", Human(total), Human(spec.budget.reserve));
        findings.push(Finding::warning("budget_over_machine", message).help(help));
    }
    if budget == 0 {
        let message = format!(
            "nothing is left for the budget: the reserve of {} takes all of the {} there are",
            Human(spec.budget.reserve),
            Human(total)
        );
        findings.push(Finding::error("no_budget", message).help("lower `budget.reserve`"));
        return findings;
    }
    let mut reserved: Vec<(&String, u64, u64, u64)> = Vec::new();
    let mut alone = false;
    for holder in holders(spec) {
        let Some(bytes) = holder.process.mem_reservation else { continue };
        if bytes > budget {
            alone = true;
            let (one, name) = (holder.one, quote(holder.name));
            let message =
                format!("one {one} of {name} reserves {}, and the whole budget is {}", Human(bytes), Human(budget));
            let help = format!("reserve {} less, or raise `budget.memory`", Human(bytes - budget));
            let finding = Finding::error("reservation_over_budget", message).help(help);
            findings.push(finding.of(holder.name, "mem_reservation"));
        }
        reserved.push((holder.name, bytes, holder.least, bytes.saturating_mul(holder.least)));
    }
    let sum = reserved.iter().fold(0u64, |sum, (.., bytes)| sum.saturating_add(*bytes));
    if sum > budget && !alone {
        let over = Human(sum - budget);
        let message =
            format!("reservations of {} do not fit into the budget of {}: {over} too much", Human(sum), Human(budget));
        reserved.sort_by_key(|(.., bytes)| std::cmp::Reverse(*bytes));
        let listed = list(&reserved);
        let finding = Finding::error("reservations_over_budget", message);
        let finding =
            finding.help(format!("reserved: {listed}\nlower them by {over} together, or raise `budget.memory`"));
        // The largest one is where most can be won.
        findings.push(finding.of(reserved[0].0, "mem_reservation"));
    }
    for (name, pool) in &spec.pools {
        let Some(bytes) = pool.process.mem_limit.filter(|bytes| *bytes > budget) else { continue };
        let message = format!(
            "one session of {} may hold {}, and the whole budget is {}",
            quote(name),
            Human(bytes),
            Human(budget)
        );
        let help = format!("lower its `mem_limit` by {}, or raise `budget.memory`", Human(bytes - budget));
        findings.push(Finding::error("session_over_budget", message).help(help).of(name, "mem_limit"));
    }
    let mut limits: Vec<(&String, u64, u64, u64)> = holders(spec)
        .filter_map(|Holder { name, process, most, .. }| {
            let bytes = process.mem_limit?;
            Some((name, bytes, most, bytes.saturating_mul(most)))
        })
        .collect();
    let sum = limits.iter().fold(0u64, |sum, (.., bytes)| sum.saturating_add(*bytes));
    if sum > budget {
        let over = Human(sum - budget);
        let who = if spec.pools.is_empty() { "services" } else { "services and sessions" };
        let message = format!(
            "limits of {} are over the budget of {} by {over}: not all {who} can be at theirs",
            Human(sum),
            Human(budget)
        );
        limits.sort_by_key(|(.., bytes)| std::cmp::Reverse(*bytes));
        let (make, help): (fn(&'static str, String) -> Finding, _) = if strict {
            (|id, message| Finding::error(id, message), "lower them, raise `budget.memory`, or leave `strict` out")
        } else {
            (
                |id, message| Finding::warning(id, message),
                "who goes first then is said by `priority`; `strict: true` makes this an error",
            )
        };
        let finding = make("limits_over_budget", message);
        findings.push(finding.help(format!("limits: {}\n{help}", list(&limits))).of(limits[0].0, "mem_limit"));
    }
    findings
}

/// Processes with one line each.
struct Holder<'s> {
    name: &'s String,
    /// What one of them is called.
    one: &'static str,
    process: &'s ServiceSpec,
    /// The fewest there may be.
    least: u64,
    /// The most.
    most: u64,
}

/// Whoever takes part in the budget.
fn holders(spec: &StackSpec) -> impl Iterator<Item = Holder<'_>> {
    let services = spec.services.iter().map(|(name, service)| Holder {
        name,
        one: "replica",
        process: service,
        least: service.least_replicas().into(),
        most: service.most_replicas().into(),
    });
    let pools = spec.pools.iter().map(|(name, pool)| Holder {
        name,
        one: "session",
        process: &pool.process,
        least: pool.least_processes().into(),
        most: pool.most_processes().into(),
    });
    services.chain(pools)
}

/// `store 3 × 1 GiB, api 512 MiB`.
fn list(shares: &[(&String, u64, u64, u64)]) -> String {
    const SHOWN: usize = 6;
    let share = |(name, bytes, count, _): &(&String, u64, u64, u64)| {
        let times = if *count == 1 { String::new() } else { format!("{count} × ") };
        format!("{name} {times}{}", Human(*bytes))
    };
    let shown: Vec<String> = shares.iter().take(SHOWN).map(share).collect();
    let more = shares.len().saturating_sub(SHOWN);
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    format!("{}{more}", shown.join(", "))
}
