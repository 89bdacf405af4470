//! What is said of wrong files.

use proptest::prelude::*;

use super::{load, load_with, service, told};
use crate::{Severity, fits};

fn of_service(lines: &str) -> String {
    told(&service(lines)).join("\n")
}

#[test]
fn several_at_once_in_order_and_shown() {
    let read = load(
        "budget: { memory: 120% }
services:
  api:
    command: []
    mem_limt: 512m
    restart: sometimes
  web:
    mem_limit: [1]
    command: python3 web.py
    depends_on: [ap]
pools: {}
",
    );
    assert_eq!(
        told(&read),
        [
            "1:19 `memory`: `120%` is no percentage: write more than 0% and at most 100%",
            "4:14 `command`: there is no command in it",
            "5:5 the service `api` has no key `mem_limt`",
            "6:14 `restart`: `sometimes` is no restart policy: no, always, on-failure[:n], unless-stopped",
            "8:16 `mem_limit` is a list",
            "10:18 `web` depends on `ap`, and there is no such service",
            "11:8 `pools`: there is none",
        ]
    );
    let shown = read.unwrap_err().to_string();
    for part in [
        "error: the service `api` has no key `mem_limt`\n --> /srv/plimsoll.yaml:5:5\n  |\n5 |     mem_limt: 512m\n  |     ^^^^^^^^\n  |\n  = help: a similar key exists: `mem_limit`\n",
        "8 |     mem_limit: [1]\n  |                ^^^ expected a size\n  |\n  = help: for example `mem_limit: 512m`\n",
        "= help: a similar one exists: `api`",
    ] {
        assert!(shown.contains(part), "{shown}");
    }
}

#[test]
fn keys() {
    assert_eq!(of_service("ports: ['80:80']"), "4:5 the service `api` has no key `ports`");
    for (text, message, help) in [
        ("services: {}", "`services`: there is none", "for example"),
        ("budget: {}", "the file has no `services`", "services: {"),
        ("pools: {}", "`pools`: there is none", "for example"),
        ("pools: [a]", "`pools` is a list", "for example"),
        (
            "max_sessions: 1\nservices: { a: { command: x } }",
            "the file has no key `max_sessions`",
            "below the pool's name",
        ),
        ("gateway: 7070\nservices: { a: { command: x } }", "`gateway` is a single value", "listen: 7070"),
        ("gateway: { port: 7070 }\nservices: { a: { command: x } }", "`gateway` has no key `port`", "`listen`"),
        (
            "gateway: { campfire: { url: x } }\nservices: { a: { command: x } }",
            "`campfire` has no `base_url`",
            "http://",
        ),
        ("imports: {}\nservices: { a: { command: x } }", "`imports` is not yet supported", "take it out"),
        ("sevices: {}", "the file has no key `sevices`", "`services`"),
        ("mem_limit: 1g\nservices: { a: { command: x } }", "the file has no key `mem_limit`", "further right"),
        ("version: '3'\nservices: { a: { command: x } }", "the file has no key `version`", "leave it out"),
        ("services: { a: { image: redis } }", "the service `a` has no `command`", "for example `command:"),
        ("services: { a: { image: redis } }", "the service `a` has no key `image`", "there are no images here"),
        ("services: { a: { command: x, memLimit: 9m } }", "has no key `memLimit`", "`mem_limit`"),
        ("services: { a: { command: x, zebra: 9m } }", "has no key `zebra`", "known are `command`"),
        ("services: { a: { command: x, command: y } }", "`command` is written twice", "keep one"),
        ("services: { a: { command: x }, a: { command: y } }", "`a` is written twice", "keep one"),
        ("services: { a: }", "the service `a` is empty", "below its name"),
        ("services: { a: x }", "the service `a` is a single value", "below its name"),
        ("services: { 'a b': { command: x } }", "the name `a b` has a character", "names are"),
        ("services: { ..: { command: x } }", "the name `..` has a character", "names are"),
        ("services: { '': { command: x } }", "the name `` is empty", "names are"),
        ("services: [a]", "`services` is a list", "for example"),
        ("[a]", "the file is a list", "plimsoll init"),
        ("a", "the file is a single value", "plimsoll init"),
        ("", "has nothing in it", "plimsoll init"),
        ("# only\n---\n", "the file is empty", "plimsoll init"),
        ("a: b: c", "this is no YAML", "quotation marks"),
        ("a: \"x", "this is no YAML", "quotation mark"),
        ("services: { a: { command: [x, ${PORT}] } }", "this is no YAML", "`\"${PORT}\"`"),
        ("strict: true\nbudget: { strict: false }\nservices: { a: { command: x } }", "the other way round", "keep one"),
        ("budget: 80%\nservices: { a: { command: x } }", "`budget` is a single value", "memory: 80%"),
        ("alerts: { when: x }\nservices: { a: { command: x } }", "`alerts` is a map", "for example"),
    ] {
        let errors = load(text).unwrap_err();
        let found = errors.findings.iter().find(|finding| finding.message.contains(message));
        let found = found.unwrap_or_else(|| panic!("{text}\n{errors}"));
        assert!(found.help.contains(help), "{text}\n{errors}");
        assert!(found.place.is_some() || text.is_empty(), "{text}");
    }
}

#[test]
fn values() {
    for (lines, message) in [
        ("mem_limit: 5m", "`mem_limit`: 5 MiB is below 6 MiB"),
        ("mem_limit: 0", "nothing at all"),
        ("mem_limit: lots", "`lots` is no size"),
        ("mem_limit: 80%", "`80%` is no size"),
        ("mem_limit:", "`mem_limit` is empty"),
        ("mem_limit: ''", "there is nothing in it"),
        ("mem_limit: ${NOBODY}", "there is nothing in it"),
        ("mem_limit: 9m\nmem_reservation: 10m", "10 MiB are reserved, and the limit is 9 MiB"),
        ("mem_limit: 9m\nmemswap_limit: 8m", "`memswap_limit` of 8 MiB is below the memory limit of 9 MiB"),
        ("memswap_limit: 8m", "there is no `mem_limit`"),
        ("mem_limit: 9m\ndeploy: { resources: { limits: { memory: 10m } } }", "have distinct values"),
        (
            "cpus: 1\ndeploy: { resources: { limits: { cpus: 2 } } }",
            "`cpus` and `deploy.resources` have distinct values",
        ),
        ("cpus: 0", "a hundredth of a core"),
        ("cpus: one", "no number of cores"),
        ("pids_limit: 0", "not even one process"),
        ("pids_limit: 99999999", "no more than 4194304"),
        ("restart: on-failure:x", "`x` is no number of times"),
        ("restart: on-failure:0", "0 times is never"),
        ("restart: on_failure", "no restart policy"),
        ("restart: no:3", "no restart policy"),
        ("stop_grace_period: soon", "no duration"),
        ("stop_signal: SIGTREM", "`SIGTREM` is no signal"),
        ("priority: high", "is not one of its words: `critical`, `normal` or `best-effort`"),
        ("on_limit: larges", "is not one of its words"),
        ("on_pressure: {}", "neither `command` nor `signal`"),
        ("on_pressure: { signal: USR1, command: x }", "here are both"),
        ("listen: 0", "port 0 is any port"),
        ("listen: 65536", "no port"),
        ("listen: 80:8080", "`80` is no address"),
        ("listen: example.org:80", "`example.org` is no address"),
        ("min_available: 2", "2 can never be had of 1"),
        ("min_available: -1", "no whole number"),
        ("scale: 3", "`scale` is a single value"),
        ("scale: { min: 1 }", "`scale` has no `max`"),
        ("scale: { min: 3, max: 2, target_cpu: 1% }\ncpus: 1", "at least 3 and at most 2 replicas"),
        ("scale: { min: 0, max: 2 }", "no whole number from 1"),
        ("scale: { max: 2, target_memory: 70% }", "a percentage of `mem_limit`, which is not set"),
        ("scale: { max: 2, target_cpu: 70% }", "a percentage of `cpus`, which is not set"),
        ("scale: { max: 2, target_cpu: 70 }\ncpus: 1", "`70` is no percentage"),
        ("scale: { max: 2, target_cpu: 70% }\ncpus: 1\ndeploy: { replicas: 3 }", "3 is outside `scale`"),
        ("scale: { max: 2 }", "warning: `scale` has no target"),
        ("deploy: { replicas: 99999 }", "no whole number"),
        ("deploy: { restart_policy: {} }", "`deploy` has no key `restart_policy`"),
        ("healthcheck: {}", "`healthcheck` has no `test`"),
        ("healthcheck: { test: [] }", "there is no command in it"),
        ("healthcheck: { test: '' }", "there is no command in it"),
        ("healthcheck: { test: [CMD] }", "there is no command behind CMD"),
        ("healthcheck: { test: [CMD, ''] }", "there is no command behind CMD"),
        ("healthcheck: { test: [curl, x] }", "begins with CMD, CMD-SHELL or NONE"),
        ("healthcheck: { test: [CMD, x], interval: 0s }", "no time at all"),
        ("healthcheck: { test: [CMD, x], retries: 0 }", "no whole number from 1"),
        ("healthcheck: { test: [CMD, x], disable: maybe }", "neither `true` nor `false`"),
        ("environment: { PLIMSOLL_ID: x }", "set by Plimsoll itself"),
        ("environment: ['=x']", "without a name"),
        ("environment: { A: [x] }", "`environment` is a list"),
        ("environment: { A: \"\\0\" }", "no variable can be `A`"),
        ("environment: x", "`environment` is a single value"),
        ("environment: { PORT: 80 }\nlisten: 80", "warning: `PORT` is set for all replicas alike"),
        ("env_file: none.env", "/srv/none.env cannot be read"),
        ("depends_on: api", "`depends_on` is a single value"),
        ("depends_on: [api]", "`api` depends on itself"),
        ("depends_on: { api: { condition: heathy } }", "is not one of its words: `service_started`"),
        ("depends_on: { api: x }", "the dependency `api` is a single value"),
        ("working_dir: \"a\\0\"", "no path has a zero byte"),
    ] {
        let told = of_service(lines);
        assert!(told.contains(message), "{lines}\n{told}");
    }
}

fn of_pool(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    let protocol = if lines.contains("protocol:") { "" } else { "    protocol: claude\n" };
    told(&load(&format!("pools:\n  bot:\n    command: [x]\n{protocol}{lines}"))).join("\n")
}

#[test]
fn pools() {
    for (lines, message) in [
        ("protocol: json", "is not one of its words: `claude`, `jsonl` or `exec`"),
        ("reuse: all", "is not one of its words: `session` or `any`"),
        ("rehydrate: never", "is not one of its words"),
        ("isolation: full", "is not one of its words"),
        ("max_sessions: 0", "no whole number from 1"),
        ("warm: -1", "no whole number from 0"),
        ("idle_ttl: 0s", "no time at all"),
        ("max_turns: 0", "no whole number from 1"),
        ("max_turns: 5\nmax_turns_jitter: 5", "5 turns fewer than 5 leave none"),
        ("max_turns_jitter: 5", "it makes `max_turns` smaller by chance, which is not set"),
        ("max_context: 80", "`80` is no percentage"),
        ("max_age: 0", "no time at all"),
        ("mem_limit: 5m", "`mem_limit`: 5 MiB is below 6 MiB"),
        ("mem_limit: 9m\nrecycle_above: 10m", "`recycle_above` of 10 MiB is over the memory limit of 9 MiB"),
        ("mem_limit: 9m\nmem_reservation: 10m", "10 MiB are reserved, and the limit is 9 MiB"),
        ("memswap_limit: 8m", "there is no `mem_limit`"),
        ("recycle_above: 80%", "`80%` is no size"),
        ("start_timeout: 0", "no time at all"),
        ("first_byte_timeout: soon", "no duration"),
        ("stall_timeout: []", "`stall_timeout` is a list"),
        ("turn_timeout: 0", "no time at all"),
        ("queue: 5", "`queue` is a single value"),
        ("queue: { size: 5 }", "`queue` has no key `size`"),
        ("queue: { timeout: 0 }", "no time at all"),
        ("max_line: 1k", "1 KiB is no length of a line"),
        ("max_line: 2g", "2 GiB is no length of a line"),
        ("models: haiku", "`models` is a single value"),
        ("models: ['a b']", "`a b` is no name of a model"),
        ("models: [a, a]", "`a` is written twice"),
        ("models: [bot]", "the pool `bot` is offered under its own name already"),
        ("pass_environment: [A=1]", "`A=1` is no variable's name"),
        ("environment: { PLIMSOLL_ID: x }", "set by Plimsoll itself"),
        ("env_file: none.env", "/srv/none.env cannot be read"),
        ("stop_signal: SIGTREM", "`SIGTREM` is no signal"),
        ("restart: always", "the pool `bot` has no key `restart`"),
        ("listen: 80", "the pool `bot` has no key `listen`"),
        ("scale: { max: 2 }", "the pool `bot` has no key `scale`"),
        ("command: [x, $PORT]", "`command` is written twice"),
        ("on_pressure: { command: [a, $PORT] }", "warning: the variable `PORT` is not set"),
        ("protocol: exec\nmax_turns: 3", "warning: `max_turns` has no effect: `protocol: exec` has a process a turn"),
        ("protocol: exec\nmax_context: 3%", "warning: `max_context` has no effect"),
        ("protocol: jsonl\nmax_context: 3%", "warning: `max_context` has no effect"),
        ("protocol: jsonl\nrehydrate: resume", "warning: `rehydrate` has no effect: `protocol: claude` alone"),
        ("protocol: exec\nrehydrate: resume", "warning: `rehydrate` has no effect: `protocol: claude` alone"),
    ] {
        let told = of_pool(lines);
        assert!(told.contains(message), "{lines}\n{told}");
    }
    for (text, message, help) in [
        ("pools: { a: { protocol: exec } }", "the pool `a` has no `command`", "for example `command"),
        ("pools: { a: { command: x } }", "the pool `a` has no `protocol`", "for example `protocol: claude`"),
        ("pools: { a: x }", "the pool `a` is a single value", "`command: [claude]` below its name"),
        ("pools: { 'a b': { command: x, protocol: exec } }", "the name `a b` has a character", "names are"),
        ("pools: { a: { command: x, protocol: exec, maxSessions: 1 } }", "has no key `maxSessions`", "`max_sessions`"),
        ("pools: { a: { command: x, protocol: exec, idle_tl: 1 } }", "has no key `idle_tl`", "`idle_ttl`"),
        ("pools: { a: { command: x, protocol: exec, max_requests: 1 } }", "no key `max_requests`", "`max_turns`"),
        ("pools: { a: { command: x, protocol: jsnl } }", "`jsnl` is not one of its words", "`jsonl`"),
        (
            "services: { a: { command: x } }\npools: { a: { command: x, protocol: exec } }",
            "`a` is a service and a pool",
            "call one of them otherwise",
        ),
        (
            "pools: { a: { command: x, protocol: exec, models: [m] }, b: { command: x, protocol: exec, models: [m] } }",
            "the pools `a` and `b` are both offered as `m`",
            "take one of the two away",
        ),
        (
            "pools: { a: { command: x, protocol: exec, models: [b] }, b: { command: x, protocol: exec } }",
            "`b` is the name of another pool",
            "take one of the two away",
        ),
    ] {
        let errors = load(text).unwrap_err();
        let found = errors.findings.iter().find(|finding| finding.message.contains(message));
        let found = found.unwrap_or_else(|| panic!("{text}\n{errors}"));
        assert!(found.help.contains(help) && found.place.is_some(), "{text}\n{errors}");
    }
    let told = of_pool("restart: always\nmem_limt: 9m\nmax_turns: 5\nmax_turns_jitter: 5");
    assert_eq!(
        told,
        "5:5 the pool `bot` has no key `restart`\n6:5 the pool `bot` has no key `mem_limt`\n8:23 5 turns fewer than 5 leave none"
    );
}

#[test]
fn addresses_of_redis() {
    for (address, message) in [
        ("store:6379", "no `redis://` address"),
        ("rediss://store", "no `redis://` address"),
        ("redis://", "names no host"),
        ("redis://:hunter2@", "names no host"),
        ("redis://:hunter2@store:0", "a wrong port"),
        ("redis://:hunter2@store/two", "the number of a database"),
        ("redis://:hunter2@store/2?x", "the number of a database"),
        ("\"redis://:hunter2 @store\"", "has no spaces in it"),
    ] {
        let told = told(&load(&format!("services: {{ a: {{ command: x }} }}\nredis: {address}\n"))).join("\n");
        assert!(told.contains(message), "{address}\n{told}");
        assert!(!told.contains("hunter2"), "{address}\n{told}");
    }
    let read = load("services: { a: { command: x } }\nredis: redis://:hunter2@store\n").unwrap();
    assert_eq!(read.spec.redis.as_ref().unwrap().url, "redis://:hunter2@store");
    assert!(!format!("{:?}", read.spec).contains("hunter2"));
}

#[test]
fn gateways() {
    for (gateway, message) in [
        (
            "{ listen: 0.0.0.0:7070 }",
            "`listen` at 0.0.0.0:7070 is reached from other machines, and there is no `token_file`",
        ),
        ("{ listen: '[::]:7070' }", "and there is no `token_file`"),
        ("{ listen: 192.0.2.1:80 }", "and there is no `token_file`"),
        ("{ listen: 0 }", "port 0 is any port"),
        ("{ listen: bot.internal:80 }", "`bot.internal` is no address"),
        ("{ hosts: bot }", "`hosts` is a single value"),
        ("{ hosts: ['http://bot'] }", "`http://bot` is no name of a host"),
        ("{ hosts: ['bot:80'] }", "`bot:80` is no name of a host"),
        ("{ token_file: \"a\\0\" }", "no path has a zero byte"),
        ("{ token: secret }", "`gateway` has no key `token`"),
        ("{ campfire: { base_url: 'http://h/a' } }", "has more in it than scheme, host and port"),
        ("{ campfire: { base_url: 'http://u:p@h' } }", "has more in it than scheme, host and port"),
        ("{ campfire: { base_url: 'https://h' } }", "no `http://` address"),
        ("{ campfire: { base_url: 'http://' } }", "names no host"),
    ] {
        let told = told(&load(&format!("services: {{ a: {{ command: x }} }}\ngateway: {gateway}\n"))).join("\n");
        assert!(told.contains(message), "{gateway}\n{told}");
    }
    for listen in ["127.0.0.2:80", "'[::1]:80'", "'[::ffff:127.0.0.1]:80'", "localhost:80"] {
        let read = load(&format!("services: {{ a: {{ command: x }} }}\ngateway: {{ listen: {listen} }}\n"));
        assert_eq!(told(&read), [""; 0], "{listen}");
    }
    let clash = |gateway: &str| {
        let text = format!(
            "{gateway}services: {{ a: {{ command: x, listen: 7070 }} }}\npools: {{ p: {{ command: x, protocol: exec }} }}\n"
        );
        told(&load(&text))
    };
    assert_eq!(clash(""), ["1:38 the gateway and `a` both listen at port 7070"]);
    assert_eq!(clash("gateway: { listen: 7070 }\n"), ["2:38 the gateway and `a` both listen at port 7070"]);
    assert_eq!(clash("gateway: { listen: 7071 }\n"), [""; 0]);
}

#[test]
fn commands() {
    for (command, message) in [
        ("[]", "there is no command in it"),
        ("''", "there is no command in it"),
        ("['']", "the program's name is empty"),
        ("[x, [y]]", "`command` is a list"),
        ("{ a: b }", "`command` is a map"),
        ("[x, ]\n    command2: y", "has no key `command2`"),
        ("\"a 'b\"", "a single quotation mark is never closed"),
        ("[\"a\\0\"]", "zero byte"),
        ("a && b", "warning: `command`: `&&` is handed to the program as it is"),
        ("[x, \"$\"]", "`$` is no variable"),
        ("[x, \"${\"]", "`${` is no variable"),
        ("[x, \"${A:?it is needed}\"]", "the variable `A`: it is needed"),
        ("[x, \"${A?}\"]", "the variable `A`: is required, and not set"),
        ("[x, $A]", "warning: the variable `A` is not set"),
    ] {
        let told = told(&load(&format!("services:\n  api:\n    command: {command}\n"))).join("\n");
        assert!(told.contains(message), "{command}\n{told}");
    }
    let read = load("services:\n  api:\n    command: [x, \"a ${NOBODY} b\"]\n");
    assert_eq!(told(&read), ["3:21 warning: the variable `NOBODY` is not set"]);
}

#[test]
fn alerts() {
    for (alert, message) in [
        ("{ for: 1s }", "an alert has no `when`"),
        ("x", "an alert is a single value"),
        ("{ when: memory }", "nothing is compared"),
        ("{ when: memory >= 1g }", "`>=` compares nothing"),
        ("{ when: memory > lots }", "`lots` is no size"),
        ("{ when: memory > 101% }", "no percentage"),
        ("{ when: rss > 1g }", "`rss` is nothing that can be compared"),
        ("{ when: service ap rss > 1g }", "there is no service `ap`"),
        ("{ when: service api cpu > 1 }", "`cpu` of a service is not measured"),
        ("{ when: service api restarts > 1.5 }", "no number of restarts"),
        ("{ when: service api memory > 80% }", "the `mem_limit` of `api`, which has none"),
        ("{ when: memory > 1g, command: x, webhook: \"http://x/\" }", "here are both"),
        ("{ when: memory > 1g, webhook: \"https://x/\" }", "no `http://` address"),
        ("{ when: memory > 1g, webhook: \"http://\" }", "names no host"),
        ("{ when: memory > 1g, webhook: \"http://x:0/\" }", "names no host, or a wrong port"),
        ("{ when: memory > 1g, webhook: \"http://x/a b\" }", "no spaces"),
        ("{ when: memory > 1g, whom: me }", "an alert has no key `whom`"),
    ] {
        let told = told(&load(&format!("services: {{ api: {{ command: x }} }}\nalerts:\n  - {alert}\n"))).join("\n");
        assert!(told.contains(message), "{alert}\n{told}");
    }
}

#[test]
fn circles_are_shown_each_once() {
    let stack = |depends: &[(&str, &str)]| {
        let services: String =
            depends.iter().map(|(name, on)| format!("  {name}: {{ command: x, depends_on: [{on}] }}\n")).collect();
        told(&load(&format!("services:\n{services}")))
    };
    assert_eq!(stack(&[("a", "b"), ("b", "c"), ("c", "")]), [""; 0]);
    assert_eq!(
        stack(&[("a", "b"), ("b", "c"), ("c", "b"), ("d", "e, a"), ("e", "d")]),
        [
            "3:33 services wait for each other in a circle: b → c → b",
            "5:33 services wait for each other in a circle: d → e → d"
        ]
    );
    let long: Vec<(String, String)> = (0..2000).map(|n| (format!("s{n}"), format!("s{}", (n + 1) % 2000))).collect();
    let long: Vec<(&str, &str)> = long.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let told = stack(&long);
    assert!(told.len() == 1 && told[0].contains("s0 → s1 → ") && told[0].ends_with("… → s0"), "{told:?}");
}

#[test]
fn dependencies_that_will_not_do() {
    let read = load(
        "services:
  a: { command: x, depends_on: { b: { condition: service_healthy }, c: { condition: service_completed_successfully }, d: } }
  b: { command: x }
  c: { command: x, restart: always }
  d: { command: x, deploy: { replicas: 0 } }
",
    );
    assert_eq!(
        told(&read),
        [
            "2:34 warning: `b` has no health check: running is healthy",
            "2:69 warning: `c` is waited for to complete, and is started again whenever it does",
            "2:119 warning: `a` depends on `d`, which has no replicas",
        ]
    );
}

#[test]
fn one_address_for_two() {
    let stack = |a: &str, b: &str| {
        told(&load(&format!(
            "services:\n  z: {{ command: x, listen: \"{a}\" }}\n  b: {{ command: x, listen: \"{b}\" }}\n"
        )))
    };
    let clash = ["3:28 `b` and `z` both listen at port 80"];
    assert_eq!(stack("80", "127.0.0.1:80"), clash);
    assert_eq!(stack("0.0.0.0:80", "127.0.0.1:80"), clash);
    assert_eq!(stack("80", "[::]:80"), clash);
    assert_eq!(stack("80", "127.0.0.2:80"), [""; 0]);
    assert_eq!(stack("80", "81"), [""; 0]);
}

#[test]
fn files_of_variables_are_shown_in_their_own_lines() {
    let read = load_with(
        "services: { a: { command: x, env_file: sub/a.env } }",
        &[(".env", "OK=1\nwrong line\n"), ("sub/a.env", "A=$NOBODY\n\nB='open\n")],
    );
    let errors = read.unwrap_err().to_string();
    for part in [
        "--> .env:2:1\n  |\n2 | wrong line\n",
        "--> sub/a.env:3:1\n",
        "warning: the variable `NOBODY` is not set\n --> sub/a.env:1:1\n",
    ] {
        assert!(errors.contains(part), "{errors}");
    }
}

#[test]
fn bounds() {
    assert!(load(&"#".repeat(2 << 20)).unwrap_err().to_string().contains("larger than 1 MiB"));
    let long = |_: &str| Some("x".repeat(100_000));
    let text = format!("services: {{ a: {{ command: [{}] }} }}", vec!["$A"; 20_000].join(","));
    let read = crate::parse(&text, std::path::Path::new("/f"), long, |_| Err(std::io::ErrorKind::NotFound.into()));
    assert!(told(&read)[0].contains("beyond all bounds"), "{:?}", told(&read));
    let many: String = (0..500).map(|n| format!("  s{n}: {{ zebra{n}: 1 }}\n")).collect();
    let errors = load(&format!("services:\n{many}")).unwrap_err();
    assert_eq!(errors.findings.len(), 50);
    assert!(errors.to_string().ends_with("only the first of them are shown"));
}

#[test]
fn what_a_machine_makes_of_it() {
    let text = "
budget: { memory: 1g }
services:
  a: { command: x, mem_limit: 600m, mem_reservation: 300m, deploy: { replicas: 2 } }
  b: { command: x, mem_limit: 300m, mem_reservation: 200m, scale: { min: 1, max: 3, target_memory: 70% } }
  c: { command: x }
";
    let loaded = load(text).unwrap();
    let of = |total: u64, strict: bool| fits(&loaded.spec, total, strict);
    let messages = |total| of(total, false).into_iter().map(|finding| finding.message).collect::<Vec<_>>();
    assert_eq!(
        messages(4 << 30),
        ["limits of 2.1 GiB are over the budget of 1 GiB by 1.1 GiB: not all services can be at theirs"]
    );
    assert_eq!(of(4 << 30, false)[0].severity, Severity::Warning);
    assert_eq!(of(4 << 30, true)[0].severity, Severity::Error);
    assert_eq!(
        messages(700 << 20),
        [
            "the budget of 1 GiB is more than there is, and counts as 700 MiB",
            "reservations of 800 MiB do not fit into the budget of 700 MiB: 100 MiB too much",
            "limits of 2.1 GiB are over the budget of 700 MiB by 1.4 GiB: not all services can be at theirs",
        ]
    );
    let found = &loaded.fits(700 << 20)[1];
    assert!(
        found.help.contains("reserved: a 2 × 300 MiB, b 200 MiB\nlower them by 100 MiB together"),
        "{}",
        found.help
    );
    assert_eq!(found.place.as_ref().unwrap().to_string(), "/srv/plimsoll.yaml:4:54");
    assert_eq!(messages(250 << 20)[1], "one replica of `a` reserves 300 MiB, and the whole budget is 250 MiB");
    let reserve = load("budget: { reserve: 1g }\nservices: { a: { command: x } }").unwrap();
    assert_eq!(fits(&reserve.spec, 1 << 30, false)[0].id, "no_budget");
    assert_eq!(fits(&reserve.spec, 2 << 30, false), []);
}

#[test]
fn what_a_machine_makes_of_pools() {
    let loaded = load(
        "budget: { memory: 1g }
services: { a: { command: x, mem_limit: 100m, mem_reservation: 100m } }
pools:
  p: { command: x, protocol: exec, mem_limit: 300m, mem_reservation: 200m, max_sessions: 4, warm: 2 }
  q: { command: x, protocol: exec, mem_reservation: 50m }
",
    )
    .unwrap();
    let of = |total: u64| loaded.fits(total);
    let messages = |total| of(total).into_iter().map(|finding| finding.message).collect::<Vec<_>>();
    // Four sessions and two that are warm have a line each.
    let limits =
        "limits of 1.9 GiB are over the budget of 1 GiB by 876 MiB: not all services and sessions can be at theirs";
    assert_eq!(messages(2 << 30), [limits]);
    assert!(of(2 << 30)[0].help.contains("limits: p 6 × 300 MiB, a 100 MiB"));
    assert_eq!(of(2 << 30)[0].place.as_ref().unwrap().to_string(), "/srv/plimsoll.yaml:4:47");
    // Those that are warm are promised, and of `q` the one that there has to be.
    let tight = of(540 << 20);
    assert_eq!(tight[1].message, "reservations of 550 MiB do not fit into the budget of 540 MiB: 10 MiB too much");
    assert!(tight[1].help.contains("reserved: p 2 × 200 MiB, a 100 MiB, q 50 MiB"), "{}", tight[1].help);
    let small = of(250 << 20);
    let line = small.iter().find(|finding| finding.id == "session_over_budget").unwrap();
    assert_eq!(line.message, "one session of `p` may hold 300 MiB, and the whole budget is 250 MiB");
    assert_eq!((line.severity, line.place.as_ref().unwrap().line()), (Severity::Error, 4));
    assert!(
        messages(150 << 20)
            .contains(&"one session of `p` reserves 200 MiB, and the whole budget is 150 MiB".to_owned())
    );
}

const PIECES: &[&str] = &[
    "pools: ",
    "protocol: exec",
    "models: ",
    "gateway: ",
    "max_turns: 3",
    "queue: ",
    "services:",
    "\n",
    "  ",
    "    ",
    "- ",
    "a: ",
    "command: ",
    "[x, y]",
    "{ ",
    " }",
    "&a ",
    "*a",
    "<<: ",
    "mem_limit: ",
    "512m",
    "${A:-",
    "}",
    "$",
    "\"",
    "'",
    "alerts: ",
    "when: ",
    "memory > 80%",
    "scale: ",
    "min: 1",
    "max: 2",
    "budget: ",
    "80%",
    "# c\n",
    "---\n",
    "depends_on: ",
    "healthcheck: ",
    "test: ",
    "x-a: ",
    "environment: ",
    "A=1",
    "listen: ",
    "80",
    ", ",
    ": ",
    "deploy: ",
    "resources: ",
    "limits: ",
    "é",
    "!!str ",
    "| \n",
    "\t",
    "\0",
];

proptest! {
    #[test]
    fn any_text_is_read_or_refused_with_places(text in "(?s).{0,200}") {
        let read = load(&text);
        let _ = told(&read);
        if let Err(errors) = read {
            prop_assert!(errors.errors().count() > 0);
            let _ = errors.render(crate::Look { color: true, width: 40 });
        }
    }

    #[test]
    fn pieces_of_files_never_panic(pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40)) {
        let read = load_with(&pieces.concat(), &[(".env", "A=1\n")]);
        if let Err(errors) = &read {
            let _ = errors.to_string();
        }
        if let Ok(loaded) = read {
            for total in [0, 1 << 20, u64::MAX] {
                let _ = crate::render(&loaded.fits(total), crate::Look::default());
            }
        }
    }

    #[test]
    fn what_fits_is_within_the_budget(reserved in prop::collection::vec(0u64..2000, 1..6), total in 1u64..8000) {
        let services: String = reserved.iter().enumerate().filter(|(_, m)| **m > 0)
            .map(|(n, m)| format!("  s{n}: {{ command: x, mem_reservation: {m}m }}\n")).collect();
        let Ok(loaded) = load(&format!("budget: {{ memory: 100% }}\nservices:\n  z: {{ command: x }}\n{services}")) else {
            return Err(TestCaseError::fail("the file is right"));
        };
        let wrong = loaded.fits(total << 20).iter().any(|finding| finding.severity == Severity::Error);
        prop_assert_eq!(wrong, reserved.iter().sum::<u64>() > total);
    }
}
