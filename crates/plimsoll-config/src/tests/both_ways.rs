//! The parser and the schema agree: key by key, on what is right and on what is wrong.

use serde_json::{Map, Value, json};

use super::load;
use crate::keys::{self, Kind, Table};
use crate::schema;

/// A value that is right where no key is: nothing takes a list in a list.
const NONSENSE: &str = "[[]]";

/// Each table with a file that has a map of it at `@`, and where in the schema it is.
fn tables() -> Vec<(&'static Table, &'static str, &'static str)> {
    const SERVICE: &str = "services: { other: { command: x }, store: { command: x }, api: { ";
    let service = |keys: &str| -> &'static str { Box::leak(format!("{SERVICE}{keys} }} }}").into_boxed_str()) };
    let api = "/properties/services/additionalProperties";
    let under = |rest: &str| -> &'static str { Box::leak(format!("{api}{rest}").into_boxed_str()) };
    const POOL: &str = "{ pools: { assistant: { command: x, protocol: claude, ";
    vec![
        (&keys::POOL, "{ pools: { assistant: { @ } } }", "/properties/pools/additionalProperties"),
        (
            &keys::QUEUE,
            Box::leak(format!("{POOL} queue: {{ @ }} }} }} }}").into_boxed_str()),
            "/properties/pools/additionalProperties/properties/queue",
        ),
        (
            &keys::GATEWAY,
            Box::leak(format!("{POOL} }} }}, gateway: {{ @ }} }}").into_boxed_str()),
            "/properties/gateway",
        ),
        (
            &keys::CAMPFIRE,
            Box::leak(format!("{POOL} }} }}, gateway: {{ campfire: {{ @ }} }} }}").into_boxed_str()),
            "/properties/gateway/properties/campfire",
        ),
        (&keys::STACK, "{ @ }", ""),
        (&keys::BUDGET, "{ services: { a: { command: x } }, budget: { @ } }", "/properties/budget"),
        (&keys::ALERT, "{ services: { api: { command: x } }, alerts: [{ @ }] }", "/properties/alerts/items"),
        (&keys::SERVICE, service("@"), under("")),
        (&keys::DEPLOY, service("command: x, deploy: { @ }"), under("/properties/deploy")),
        (
            &keys::RESOURCES,
            service("command: x, deploy: { resources: { @ } }"),
            under("/properties/deploy/properties/resources"),
        ),
        (
            &keys::LIMITS,
            service("command: x, deploy: { resources: { limits: { @ } } }"),
            under("/properties/deploy/properties/resources/properties/limits"),
        ),
        (
            &keys::RESERVATIONS,
            service("command: x, deploy: { resources: { reservations: { @ } } }"),
            under("/properties/deploy/properties/resources/properties/reservations"),
        ),
        (&keys::HEALTH, service("command: x, healthcheck: { @ }"), under("/properties/healthcheck")),
        (&keys::PRESSURE, service("command: x, on_pressure: { @ }"), under("/properties/on_pressure")),
        (&keys::SCALE, service("command: x, mem_limit: 9m, cpus: 1, scale: { @ }"), under("/properties/scale")),
        (
            &keys::ENV_FILE,
            service("command: x, env_file: [{ @ }]"),
            under("/properties/env_file/anyOf/1/items/anyOf/1"),
        ),
        (
            &keys::DEPENDENCY,
            service("command: x, healthcheck: { test: x }, depends_on: { other: { @ } }"),
            under("/properties/depends_on/anyOf/1/additionalProperties/anyOf/0"),
        ),
    ]
}

/// What else has to stand beside a key.
fn beside(table: &Table, key: &str) -> String {
    let mut keys: Vec<String> = table
        .keys
        .iter()
        .filter(|other| table.required.contains(&other.name) && other.name != key)
        .map(|other| format!("{}: {}", other.name, other.example))
        .collect();
    match (table.what, key) {
        ("a service", "memswap_limit" | "mem_reservation" | "scale") => keys.push("mem_limit: 512m".to_owned()),
        ("a pool", "memswap_limit" | "mem_reservation" | "recycle_above") => keys.push("mem_limit: 512m".to_owned()),
        ("a pool", "max_turns_jitter") => keys.push("max_turns: 10".to_owned()),
        ("the file", key) if !keys::EITHER.contains(&key) => keys.push("services: { z: { command: x } }".to_owned()),
        ("`healthcheck`", key) if key != "test" => keys.push("test: x".to_owned()),
        _ => {}
    }
    keys.join(", ")
}

/// The document as JSON, with the types that YAML gives plain scalars.
fn json_of(text: &str) -> Value {
    let source = crate::source::Source::new("f", text);
    let mut findings = crate::finding::Findings::default();
    let root = crate::yaml::read(&source, &mut findings);
    fn value(node: &crate::yaml::Node, text: &str) -> Value {
        match &node.value {
            _ if node.is_null() => Value::Null,
            crate::yaml::Value::Scalar(scalar) => {
                let quoted = text[node.span.clone()].starts_with(['"', '\'']);
                match serde_json::from_str(&scalar.text) {
                    Ok(value @ (Value::Bool(_) | Value::Number(_))) if !quoted => value,
                    _ => json!(scalar.text),
                }
            }
            crate::yaml::Value::List(items) => items.iter().map(|item| value(item, text)).collect(),
            crate::yaml::Value::Map(entries) => {
                let entry = |entry: &crate::yaml::Entry| (entry.key.clone(), value(&entry.value, text));
                Value::Object(entries.iter().map(entry).collect::<Map<_, _>>())
            }
        }
    }
    root.map_or(Value::Null, |root| value(&root, text))
}

/// Whether a value is right by a schema, for as much of JSON Schema as ours needs; a word that it does not know is a
/// failure, so that none is written that means nothing.
fn is_valid(schema: &Value, value: &Value) -> bool {
    let schema = schema.as_object().unwrap();
    let all = |key: &str| schema.get(key).and_then(Value::as_array);
    let one = |name: &str| match (name, value) {
        ("object", Value::Object(_)) | ("array", Value::Array(_)) | ("string", Value::String(_)) => true,
        ("boolean", Value::Bool(_)) | ("null", Value::Null) | ("number", Value::Number(_)) => true,
        ("integer", Value::Number(number)) => number.is_i64() || number.is_u64(),
        ("object" | "array" | "string" | "boolean" | "null" | "number" | "integer", _) => false,
        _ => panic!("no such type: {name}"),
    };
    let matches = |pattern: &str, text: &str| regex_lite::Regex::new(pattern).unwrap().is_match(text);
    schema.iter().all(|(word, is)| match (word.as_str(), value) {
        ("$schema" | "title" | "description", _) => is.is_string(),
        ("type", _) => match is {
            Value::Array(names) => names.iter().any(|name| one(name.as_str().unwrap())),
            name => one(name.as_str().unwrap()),
        },
        ("enum", value) => is.as_array().unwrap().contains(value),
        ("anyOf", value) => is.as_array().unwrap().iter().any(|schema| is_valid(schema, value)),
        ("pattern", Value::String(text)) => matches(is.as_str().unwrap(), text),
        ("minLength", Value::String(text)) => text.chars().count() as u64 >= is.as_u64().unwrap(),
        ("minimum", Value::Number(number)) => number.as_f64().unwrap() >= is.as_f64().unwrap(),
        ("minItems", Value::Array(items)) => items.len() as u64 >= is.as_u64().unwrap(),
        ("minProperties", Value::Object(object)) => object.len() as u64 >= is.as_u64().unwrap(),
        ("required", Value::Object(object)) => {
            is.as_array().unwrap().iter().all(|key| object.contains_key(key.as_str().unwrap()))
        }
        ("propertyNames", Value::Object(object)) => object.keys().all(|key| is_valid(is, &json!(key))),
        ("prefixItems", Value::Array(items)) => {
            items.iter().zip(is.as_array().unwrap()).all(|(item, schema)| is_valid(schema, item))
        }
        ("items", Value::Array(items)) => {
            let first = all("prefixItems").map_or(0, Vec::len);
            items.iter().skip(first).all(|item| is_valid(is, item))
        }
        ("properties", Value::Object(object)) => {
            object.iter().all(|(key, value)| is.get(key).is_none_or(|schema| is_valid(schema, value)))
        }
        ("patternProperties", Value::Object(object)) => object.iter().all(|(key, value)| {
            is.as_object().unwrap().iter().all(|(pattern, schema)| !matches(pattern, key) || is_valid(schema, value))
        }),
        ("additionalProperties", Value::Object(object)) => object.iter().all(|(key, value)| {
            let named = schema.get("properties").is_some_and(|known| known.get(key).is_some());
            let patterns = schema.get("patternProperties").and_then(Value::as_object);
            let patterned = patterns.is_some_and(|known| known.keys().any(|pattern| matches(pattern, key)));
            named || patterned || (is != &json!(false) && is_valid(is, value))
        }),
        (
            "pattern"
            | "minLength"
            | "minimum"
            | "minItems"
            | "minProperties"
            | "required"
            | "propertyNames"
            | "prefixItems"
            | "items"
            | "properties"
            | "patternProperties"
            | "additionalProperties",
            _,
        ) => true,
        (word, _) => panic!("the schema has the word {word}"),
    })
}

fn agree(text: &str, right: bool) {
    let read = super::load_with(text, &[(".env.api", "A=1"), ("api.env", "A=1")]);
    assert_eq!(read.is_ok(), right, "{text}\n{}", super::told(&read).join("\n"));
    assert_eq!(is_valid(&schema(), &json_of(text)), right, "the schema: {text}");
}

#[test]
fn every_key_is_read_and_in_the_schema() {
    for (table, file, place) in tables() {
        let schema = schema();
        let known = schema.pointer(place).unwrap_or_else(|| panic!("nothing at {place}"));
        let mut names: Vec<_> = known["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let mut ours: Vec<_> = table.keys.iter().map(|key| key.name).collect();
        names.sort_unstable();
        ours.sort_unstable();
        assert_eq!(names, ours, "{place}");
        for key in table.keys {
            let with =
                |name: &str, value: &str| file.replace('@', &format!("{name}: {value}, {}", beside(table, name)));
            agree(&with(key.name, key.example), true);
            // Whoever does not read a key does not see what is wrong with it.
            agree(&with(key.name, NONSENSE), false);
            agree(&with(key.name, "~"), false);
            assert!(!key.about.is_empty() && known["properties"][key.name]["description"] == key.about);
            // A slip of it is refused by both, and an extension taken by both.
            agree(
                &file.replace(
                    '@',
                    &format!("{}: {}, {}q: 1, {}", key.name, key.example, key.name, beside(table, key.name)),
                ),
                false,
            );
            agree(
                &file.replace(
                    '@',
                    &format!("{}: {}, x-y: {NONSENSE}, {}", key.name, key.example, beside(table, key.name)),
                ),
                true,
            );
        }
        for required in table.required {
            agree(&file.replace('@', &beside(table, required)), false);
        }
        for (name, help) in table.foreign {
            assert!(table.key(name).is_none() && !help.is_empty(), "{name}");
        }
    }
}

#[test]
fn kinds_agree() {
    let of = |name: &str| keys::SERVICE.key(name).map(|key| key.kind);
    assert!(matches!(of("cpus"), Some(Kind::Cores)));
    for (key, right, wrong) in [
        (
            "mem_limit",
            &["512m", "536870912", "1.5g", "\"2 GiB\"", "'${A:-9m}'", "' 7MB '", "64.m"][..],
            &["x", "80%", "-1", "'1 m m'", "true"][..],
        ),
        ("cpus", &["1", "0.5", ".5", "'2'"], &["x", "-1", "1e3x"]),
        ("pids_limit", &["1", "-1", "'7'"], &["x", "1.5", "'-2'"]),
        ("stop_grace_period", &["10", "1.5", "500ms", "1h30m", "1.5s"], &["x", "10 s", "5 m", "-1"]),
        ("stop_signal", &["9", "TERM", "sigusr1", "RTMIN+1", "SIGRTMAX"], &["''", "-9", "'TERM!'"]),
        ("restart", &["no", "always", "on-failure:3", "'${A:-no}'"], &["on-failure:", "never", "1"]),
        ("listen", &["80", "127.0.0.1:80", "'[::1]:80'", "localhost:80"], &["x", "'80:'", "-1", "example.org:80"]),
        ("priority", &["critical", "'normal'", "'${A:-normal}'"], &["high", "1"]),
        ("min_available", &["0", "'1'"], &["-1", "x", "1.5"]),
        ("environment", &["{ A: 1, B: ~, C: true }", "[A=1]", "{}", "[]"], &["x", "{ A: [] }", "{ A: {} }"]),
        (
            "env_file",
            &[".env.api", "[.env.api, { path: api.env }]", "[]"],
            &["{ path: api.env }", "[{ required: false }]"],
        ),
        ("command", &["x y", "[x, 1, true]"], &["''", "[]", "[[]]", "{}"]),
        (
            "depends_on",
            &["[store]", "{ store: }", "{ store: {} }", "{ store: { condition: service_started } }", "[]"],
            &["store", "{ store: { condition: x } }"],
        ),
        (
            "healthcheck",
            &["{ test: a b }", "{ test: [NONE] }", "{ disable: true }"],
            &["{ test: [curl] }", "{ test: [] }", "x"],
        ),
        ("working_dir", &["a", "1"], &["[]", "{}"]),
    ] {
        let file = |value: &str| {
            let command = if key == "command" { "" } else { "command: x, " };
            format!("services: {{ store: {{ command: x }}, api: {{ {command}{key}: {value} }} }}")
        };
        right.iter().for_each(|value| agree(&file(value), true));
        wrong.iter().for_each(|value| agree(&file(value), false));
    }
}

#[test]
fn kinds_of_pools_agree() {
    for (key, right, wrong) in [
        ("models", &["[haiku, 'a/b:c', 4]", "[]", "['${A:-x}']"][..], &["haiku", "[{}]"][..]),
        ("protocol", &["claude", "'jsonl'", "exec", "'${A:-exec}'"], &["Claude", "json"]),
        ("reuse", &["session", "any"], &["all"]),
        ("rehydrate", &["resume", "replay", "none"], &["never"]),
        ("isolation", &["session", "none"], &["user"]),
        ("max_sessions", &["1", "'9'"], &["0", "-1", "1.5"]),
        ("warm", &["0", "2"], &["-1", "x"]),
        ("max_context", &["80%", "'12.5%'"], &["80", "0.8"]),
        ("idle_ttl", &["5m", "90"], &["'5 m'", "-1"]),
        ("pass_environment", &["[A, B_C]"], &["A", "{ A: 1 }"]),
        ("queue", &["{}", "{ max: 0 }"], &["32", "[]"]),
    ] {
        let file = |value: &str| {
            let protocol = if key == "protocol" { "" } else { "protocol: claude, " };
            format!("pools: {{ a: {{ command: x, {protocol}{key}: {value} }} }}")
        };
        right.iter().for_each(|value| agree(&file(value), true));
        wrong.iter().for_each(|value| agree(&file(value), false));
    }
    for (gateway, right) in [
        ("{ listen: 7070 }", true),
        ("{ listen: '[::1]:7070', hosts: [a.b, localhost], campfire: { base_url: 'http://h:3000/' } }", true),
        ("7070", false),
        ("{ campfire: {} }", false),
        ("{ campfire: { base_url: 'https://h' } }", false),
    ] {
        agree(&format!("services: {{ z: {{ command: x }} }}\ngateway: {gateway}"), right);
    }
}

#[test]
fn addresses_of_redis_agree() {
    for (address, right) in [
        ("redis://127.0.0.1", true),
        ("'redis://u:p@[::1]:6379/15'", true),
        ("'${A:-redis://h}'", true),
        ("127.0.0.1:6379", false),
        ("6379", false),
        ("{ url: redis://h }", false),
    ] {
        agree(&format!("services: {{ z: {{ command: x }} }}\nredis: {address}"), right);
    }
}

#[test]
fn the_examples_are_valid() {
    assert!(load(crate::STARTER).is_ok());
    assert!(is_valid(&schema(), &json_of(crate::STARTER)));
    agree("services: {}", false);
    agree("pools: {}", false);
    agree("budget: {}", false);
    agree("gateway: {}", false);
    agree("pools: { 'a b': { command: x, protocol: exec } }", false);
    agree("x-p: &p { pools: { a: { command: x, protocol: exec } } }\n<<: *p", true);
    agree("{ services: { 'a b': { command: x } } }", false);
    agree("x-a: &a { command: [x] }\nservices: { a: *a }", true);
}
