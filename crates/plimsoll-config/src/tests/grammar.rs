//! What right files mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use plimsoll_model::OnLimit;
use plimsoll_model::pool::{GatewaySpec, Isolation, PoolSpec, Protocol, QueueSpec, Rehydrate, Reuse};
use plimsoll_model::stack::{
    AlertSpec, Amount, Ask, BudgetSpec, Condition, Delivery, Gauge, HealthSpec, Priority, RestartPolicy, ScaleSpec,
    ServiceSpec, Threshold,
};

use super::{load, load_with, service, told};

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn api(lines: &str) -> ServiceSpec {
    match service(lines) {
        Ok(loaded) => loaded.spec.services["api"].clone(),
        Err(errors) => panic!("{lines}\n{errors}"),
    }
}

const WHOLE: &str = r#"
budget: { memory: 80%, reserve: 1g }
alerts:
  - { when: "memory > 80%", for: 10s, command: [./page.sh] }
  - { when: "service api rss > 500m", webhook: "http://127.0.0.1:9/hook" }
services:
  store: { command: redis-server --port 6379, healthcheck: { test: redis-cli ping } }
  api:
    command: [python3, app.py, --port, "${PORT}"]
    environment: { MODE: prod }
    mem_limit: 512m
    mem_reservation: 256m
    memswap_limit: 1g
    cpus: 1.5
    pids_limit: 100
    restart: on-failure:3
    stop_grace_period: 1m30s
    stop_signal: SIGINT
    depends_on: { store: { condition: service_healthy } }
    healthcheck: { test: [CMD, curl, -f, "http://127.0.0.1:${PORT}/health"], interval: 30s, timeout: 10s, retries: 5, start_period: 5s }
    priority: best-effort
    on_limit: largest
    on_pressure: { command: [./shrink.sh] }
    listen: 8080
    min_available: 1
    scale: { min: 1, max: 4, target_memory: 70%, target_cpu: 60.5% }
"#;

#[test]
fn the_whole_grammar() {
    let loaded = load(WHOLE).unwrap();
    assert_eq!(told(&Ok(loaded.clone())), [""; 0]);
    let spec = loaded.spec;
    assert_eq!(spec.budget, BudgetSpec { memory: Amount::Percent(80.0), reserve: 1 << 30 });
    assert_eq!(
        spec.alerts,
        [
            AlertSpec {
                when: "memory > 80%".to_owned(),
                gauge: Gauge::BudgetMemory,
                above: true,
                threshold: Threshold::Percent(80.0),
                lasting: Duration::from_secs(10),
                deliver: Some(Delivery::Command(words(&["/srv/page.sh"]))),
            },
            AlertSpec {
                when: "service api rss > 500m".to_owned(),
                gauge: Gauge::ServiceMemory("api".to_owned()),
                above: true,
                threshold: Threshold::Number(500 << 20),
                lasting: Duration::ZERO,
                deliver: Some(Delivery::Webhook("http://127.0.0.1:9/hook".to_owned())),
            },
        ]
    );
    assert_eq!(
        spec.services["api"],
        ServiceSpec {
            command: words(&["python3", "app.py", "--port", "${PORT}"]),
            environment: BTreeMap::from([("MODE".to_owned(), "prod".to_owned())]),
            working_dir: PathBuf::from("/srv"),
            mem_limit: Some(512 << 20),
            mem_reservation: Some(256 << 20),
            memswap_limit: Some(1 << 30),
            cpu_micros: Some(1_500_000),
            pids_limit: Some(100),
            restart: RestartPolicy::OnFailure(Some(3)),
            stop_grace_period: Duration::from_secs(90),
            stop_signal: 2,
            depends_on: BTreeMap::from([("store".to_owned(), Condition::Healthy)]),
            healthcheck: Some(HealthSpec {
                test: words(&["curl", "-f", "http://127.0.0.1:${PORT}/health"]),
                interval: Duration::from_secs(30),
                timeout: Duration::from_secs(10),
                retries: 5,
                start_period: Duration::from_secs(5),
                start_interval: Duration::from_secs(5),
            }),
            priority: Priority::BestEffort,
            on_limit: OnLimit::Largest,
            on_pressure: Some(Ask::Command(words(&["./shrink.sh"]))),
            listen: Some(([127, 0, 0, 1], 8080).into()),
            min_available: 1,
            replicas: 1,
            scale: Some(ScaleSpec { min: 1, max: 4, target_memory: Some(70.0), target_cpu: Some(60.5) }),
        }
    );
    let store = &spec.services["store"];
    assert_eq!(store.command, ["redis-server", "--port", "6379"]);
    let health = store.healthcheck.as_ref().unwrap();
    assert_eq!(health.test, ["/bin/sh", "-c", "redis-cli ping"]);
    assert_eq!((health.interval, health.retries), (Duration::from_secs(30), 3));
}

#[test]
fn defaults() {
    let plain = api("");
    assert_eq!(
        plain,
        ServiceSpec {
            command: words(&["x"]),
            environment: BTreeMap::new(),
            working_dir: PathBuf::from("/srv"),
            mem_limit: None,
            mem_reservation: None,
            memswap_limit: None,
            cpu_micros: None,
            pids_limit: None,
            restart: RestartPolicy::No,
            stop_grace_period: Duration::from_secs(10),
            stop_signal: 15,
            depends_on: BTreeMap::new(),
            healthcheck: None,
            priority: Priority::Normal,
            on_limit: OnLimit::Tree,
            on_pressure: None,
            listen: None,
            min_available: 0,
            replicas: 1,
            scale: None,
        }
    );
    let loaded = service("").unwrap();
    assert_eq!((loaded.spec.budget, loaded.strict), (BudgetSpec::default(), false));
    assert_eq!(loaded.file, Path::new("/srv/plimsoll.yaml"));
}

#[test]
fn limits_in_both_of_composes_ways() {
    let deploy = "deploy: { replicas: 3, resources: { limits: { memory: 64M, cpus: '0.50', pids: 7 }, reservations: { memory: 32M } } }";
    let spec = api(deploy);
    assert_eq!(
        (spec.mem_limit, spec.mem_reservation, spec.memswap_limit),
        (Some(64 << 20), Some(32 << 20), Some(64 << 20))
    );
    assert_eq!((spec.cpu_micros, spec.pids_limit, spec.replicas), (Some(500_000), Some(7), 3));
    assert_eq!(api(&format!("mem_limit: 64m\n{deploy}")).mem_limit, Some(64 << 20));
    assert_eq!(api("mem_limit: 67108864").mem_limit, Some(64 << 20));
    assert_eq!(api("mem_limit: \"64 MiB\"").mem_limit, Some(64 << 20));
    // -1 is as much as there is.
    assert_eq!(api("mem_limit: 64m\nmemswap_limit: -1\npids_limit: -1").memswap_limit, None);
    assert_eq!(api("cpus: .5").cpu_micros, Some(500_000));
    let cpus = service("deploy: { resources: { reservations: { cpus: 0.5 } } }");
    assert_eq!(told(&cpus), ["4:50 warning: reserved processor time has no effect, as in Compose"]);
}

#[test]
fn words_of_single_keys() {
    for (text, policy) in [
        ("no", RestartPolicy::No),
        ("\"no\"", RestartPolicy::No),
        ("always", RestartPolicy::Always),
        ("unless-stopped", RestartPolicy::UnlessStopped),
        ("on-failure", RestartPolicy::OnFailure(None)),
        ("on-failure:7", RestartPolicy::OnFailure(Some(7))),
    ] {
        assert_eq!(api(&format!("restart: {text}")).restart, policy, "{text}");
    }
    for (text, address) in [
        ("8080", "127.0.0.1:8080"),
        ("localhost:80", "127.0.0.1:80"),
        ("0.0.0.0:8080", "0.0.0.0:8080"),
        ("\"[::1]:8080\"", "[::1]:8080"),
        ("${LISTEN:-9}", "127.0.0.1:9"),
    ] {
        assert_eq!(api(&format!("listen: {text}")).listen, address.parse().ok(), "{text}");
    }
    assert_eq!(api("on_pressure: { signal: USR1 }").on_pressure, Some(Ask::Signal(10)));
    assert_eq!(api("stop_signal: 9").stop_signal, 9);
    assert_eq!(api("working_dir: ./a").working_dir, Path::new("/srv/a"));
    assert_eq!(api("working_dir: ${HOME_DIR}/a").working_dir, Path::new("/home/x/a"));
    assert_eq!(
        api("healthcheck: { test: [CMD-SHELL, 'a | b'] }").healthcheck.unwrap().test,
        ["/bin/sh", "-c", "a | b"]
    );
    assert_eq!(api("healthcheck: { test: [NONE] }").healthcheck, None);
    assert_eq!(api("healthcheck: { test: [CMD, x], disable: true }").healthcheck, None);
    assert_eq!(api("deploy: { replicas: 0 }").replicas, 0);
    assert_eq!(api("scale: { min: 2, max: 3, target_cpu: 50% }\ncpus: 1").replicas, 2);
    assert_eq!(api("scale: { max: 3, target_cpu: 50% }\ncpus: 1\ndeploy: { replicas: 3 }").replicas, 3);
    let depends = "services: { a: { command: x, depends_on: [b, c] }, b: { command: x }, c: { command: x } }";
    let depends = load(depends).unwrap().spec.services["a"].depends_on.clone();
    assert_eq!(depends, BTreeMap::from([("b".to_owned(), Condition::Started), ("c".to_owned(), Condition::Started)]));
}

#[test]
fn alerts_about_everything_that_is_measured() {
    let one = |when: &str| {
        let text = format!("services: {{ a-b: {{ command: x, mem_limit: 9m }} }}\nalerts: [{{ when: \"{when}\" }}]");
        let alert = load(&text).map_err(|errors| errors.to_string()).unwrap().spec.alerts.remove(0);
        (alert.gauge, alert.above, alert.threshold)
    };
    let name = || "a-b".to_owned();
    assert_eq!(one("memory > 6g"), (Gauge::BudgetMemory, true, Threshold::Number(6 << 30)));
    assert_eq!(one("memory<12.5%"), (Gauge::BudgetMemory, false, Threshold::Percent(12.5)));
    assert_eq!(one("service a-b memory > 80%"), (Gauge::ServiceMemory(name()), true, Threshold::Percent(80.0)));
    assert_eq!(one("service  a-b  rss >500m"), (Gauge::ServiceMemory(name()), true, Threshold::Number(500 << 20)));
    assert_eq!(one("service a-b restarts > 3"), (Gauge::ServiceRestarts(name()), true, Threshold::Number(3)));
}

#[test]
fn anchors_merges_and_extensions() {
    let text = "
x-defaults: &defaults { restart: always, mem_limit: 9m, x-note: 1, environment: &env { A: 1 } }
x-unused: ${NOBODY:?never looked at}
services:
  a: { <<: *defaults, command: [x] }
  b: { <<: *defaults, command: [x], mem_limit: 10m, environment: { <<: *env, B: 2 } }
";
    let services = load(text).unwrap().spec.services;
    assert_eq!(services["a"].restart, RestartPolicy::Always);
    assert_eq!((services["a"].mem_limit, services["b"].mem_limit), (Some(9 << 20), Some(10 << 20)));
    assert_eq!(services["b"].environment.keys().collect::<Vec<_>>(), ["A", "B"]);
}

#[test]
fn environments() {
    let env = |lines: &str, files: &[(&str, &str)]| {
        let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
        let read = load_with(&format!("services:\n  api:\n    command: x\n{lines}"), files);
        let read = read.map_err(|errors| errors.to_string()).unwrap();
        let all = read.spec.services["api"].environment.clone();
        all.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
    };
    let project = [
        (".env", "FROM_ENV_FILE=e\nHOME_DIR=never\n"),
        ("a.env", "A=1\nB=$A-${FROM_ENV_FILE}\nP=$PORT\n"),
        ("d/b.env", "B='2'"),
    ];
    assert_eq!(env("environment: { A: 1, B: true, C: 1.10, D: '', E: }", &[]), ["A=1", "B=true", "C=1.10", "D="]);
    assert_eq!(env("environment: [A=1, B=x=y, C=, HOME_DIR, NOBODY]", &[]), ["A=1", "B=x=y", "C=", "HOME_DIR=/home/x"]);
    assert_eq!(env("environment: { FROM_ENV_FILE: }", &project), ["FROM_ENV_FILE=e"]);
    assert_eq!(
        env("environment: ['A=${FROM_ENV_FILE}$HOME_DIR', 'P=${PORT}', 'Q=$$PORT']", &project),
        ["A=e/home/x", "P=${PORT}", "Q=$PORT"]
    );
    assert_eq!(env("env_file: a.env", &project), ["A=1", "B=1-e", "P=${PORT}"]);
    assert_eq!(
        env("env_file: [./a.env, { path: d/b.env }, { path: none, required: false }]\nenvironment: [A=9]", &project),
        ["A=9", "B=2", "P=${PORT}"]
    );
    let loaded = load_with("services: { a: { command: x, env_file: a.env } }", &project).unwrap();
    assert_eq!(loaded.files, ["/srv/plimsoll.yaml", "/srv/.env", "/srv/a.env"].map(PathBuf::from));
}

const POOLS: &str = r#"
pools:
  assistant:
    command: [claude, --model, haiku]
    protocol: claude
    models: [haiku, sonnet]
    reuse: any
    max_sessions: 12
    warm: 2
    idle_ttl: 1m
    max_turns: 10
    max_turns_jitter: 3
    max_context: 60%
    max_age: 8h
    mem_limit: 400m
    recycle_above: 300m
    start_timeout: 31s
    first_byte_timeout: 32s
    stall_timeout: 33s
    turn_timeout: 34s
    queue: { max: 5, timeout: 6s }
    rehydrate: replay
    max_line: 1m
    isolation: none
    pass_environment: [HTTPS_PROXY, ANTHROPIC_API_KEY]
    environment: { MODE: prod, HOME_DIR: }
    working_dir: agents
    mem_reservation: 100m
    memswap_limit: 500m
    cpus: 0.5
    pids_limit: 64
    priority: best-effort
    on_limit: largest
    on_pressure: { signal: USR1 }
    stop_grace_period: 3s
    stop_signal: INT
gateway: { listen: "0.0.0.0:7071", token_file: token, hosts: [Bot.internal, "[::1]"], campfire: { base_url: "http://127.0.0.1:3000/" } }
"#;

#[test]
fn the_whole_grammar_of_pools() {
    let loaded = load(POOLS).map_err(|errors| errors.to_string()).unwrap();
    assert_eq!(told(&Ok(loaded.clone())), [""; 0]);
    let seconds = Duration::from_secs;
    let process = ServiceSpec {
        command: words(&["claude", "--model", "haiku"]),
        environment: BTreeMap::from(
            [("MODE", "prod"), ("HOME_DIR", "/home/x")].map(|(k, v)| (k.to_owned(), v.to_owned())),
        ),
        working_dir: PathBuf::from("/srv/agents"),
        mem_limit: Some(400 << 20),
        mem_reservation: Some(100 << 20),
        memswap_limit: Some(500 << 20),
        cpu_micros: Some(500_000),
        pids_limit: Some(64),
        stop_grace_period: seconds(3),
        stop_signal: 2,
        priority: Priority::BestEffort,
        on_limit: OnLimit::Largest,
        on_pressure: Some(Ask::Signal(10)),
        ..api("")
    };
    let expected = PoolSpec {
        process,
        protocol: Protocol::Claude,
        models: words(&["haiku", "sonnet"]),
        reuse: Reuse::Any,
        max_sessions: 12,
        warm: 2,
        idle_ttl: seconds(60),
        max_turns: Some(10),
        max_turns_jitter: 3,
        max_context: Some(60.0),
        max_age: Some(seconds(8 * 3600)),
        recycle_above: Some(300 << 20),
        start_timeout: seconds(31),
        first_byte_timeout: seconds(32),
        stall_timeout: seconds(33),
        turn_timeout: seconds(34),
        queue: QueueSpec { max: 5, timeout: seconds(6) },
        rehydrate: Rehydrate::Replay,
        max_line: 1 << 20,
        isolation: Isolation::None,
        pass_environment: words(&["HTTPS_PROXY", "ANTHROPIC_API_KEY"]),
    };
    assert_eq!(loaded.spec.pools, BTreeMap::from([("assistant".to_owned(), expected)]));
    let gateway = GatewaySpec {
        listen: ([0, 0, 0, 0], 7071).into(),
        token_file: Some(PathBuf::from("/srv/token")),
        hosts: words(&["bot.internal", "[::1]"]),
        campfire: Some("http://127.0.0.1:3000".to_owned()),
    };
    assert_eq!(loaded.spec.gateway, Some(gateway));
    assert_eq!(loaded.place("assistant", None).unwrap().to_string(), "/srv/plimsoll.yaml:3:3");
    assert_eq!(loaded.place("assistant", Some("mem_limit")).unwrap().line(), 15);
}

#[test]
fn defaults_of_pools() {
    let pool = |protocol: &str| {
        let loaded = load(&format!("pools: {{ a: {{ command: [x], protocol: {protocol} }} }}")).unwrap();
        // There is always somewhere to ask.
        assert_eq!(loaded.spec.gateway.unwrap().listen, ([127, 0, 0, 1], 7070).into());
        loaded.spec.pools["a"].clone()
    };
    let seconds = Duration::from_secs;
    let expected = PoolSpec {
        process: ServiceSpec { stop_grace_period: seconds(5), ..api("") },
        protocol: Protocol::Claude,
        models: Vec::new(),
        reuse: Reuse::Session,
        max_sessions: 8,
        warm: 0,
        idle_ttl: seconds(300),
        max_turns: None,
        max_turns_jitter: 0,
        max_context: Some(80.0),
        max_age: None,
        recycle_above: None,
        start_timeout: seconds(30),
        first_byte_timeout: seconds(120),
        stall_timeout: seconds(300),
        turn_timeout: seconds(600),
        queue: QueueSpec { max: 32, timeout: seconds(30) },
        rehydrate: Rehydrate::Resume,
        max_line: 64 << 20,
        isolation: Isolation::Session,
        pass_environment: Vec::new(),
    };
    assert_eq!(pool("claude"), expected);
    assert_eq!(pool("jsonl"), PoolSpec { protocol: Protocol::Jsonl, max_context: None, ..expected });
    // Without pools and unasked, nothing listens; asked, it tells how the stack is.
    assert_eq!(service("").unwrap().spec.gateway, None);
    let both = load("services: { a: { command: x } }\ngateway: { listen: 9 }").unwrap().spec;
    assert_eq!((both.gateway.unwrap().listen.port(), both.pools.len()), (9, 0));
}

/// A session has no port of its own: the variable is one like any other.
#[test]
fn a_pool_has_no_port() {
    let read = |text: &str| load_with(text, &[(".env", "PORT=7\n"), ("a.env", "P=$PORT")]).unwrap().spec;
    let spec = read(
        "pools: { a: { command: [x, \"${PORT}\"], protocol: exec, env_file: a.env } }\nservices: { s: { command: [x, \"${PORT}\"] } }",
    );
    assert_eq!(spec.pools["a"].process.command, ["x", "7"]);
    assert_eq!(spec.pools["a"].process.environment["P"], "7");
    assert_eq!(spec.services["s"].command, ["x", "${PORT}"]);
}

#[test]
fn the_starters_pool_is_right() {
    let at = crate::STARTER.find("# pools:").unwrap();
    let once = |text: &str| -> String {
        let plain = |line: &str| line.replacen("# ", "", 1) + "\n";
        text.lines().filter(|line| !line.starts_with("# Where")).map(plain).collect()
    };
    let few = once(&crate::STARTER[at..]);
    assert_eq!(told(&load(&few)), [""; 0], "{few}");
    let bare = |line: &str| {
        let begun = line.trim_start();
        begun.strip_prefix("# ").map_or(line.to_owned(), |rest| line.replace(begun, rest)) + "\n"
    };
    let all: String = few.lines().map(bare).collect();
    let loaded = load_with(&all, &[("token", "t")]);
    assert_eq!(told(&loaded), [""; 0], "{all}");
    let spec = loaded.unwrap().spec;
    assert_eq!((spec.pools["assistant"].max_turns, spec.gateway.unwrap().hosts.len()), (Some(10), 1));
}

#[test]
fn the_starter_is_right() {
    let loaded = load(crate::STARTER).unwrap();
    assert_eq!(told(&Ok(loaded.clone())), [""; 0]);
    assert_eq!(loaded.fits(2 << 30), []);
    // What is commented out in it is right, too.
    let all: Vec<String> = crate::STARTER
        .lines()
        .map(|line| match line.split_once("# ") {
            Some((indent, rest))
                if indent.starts_with("  ") && indent.trim().is_empty() && !rest.starts_with("A list") =>
            {
                format!("{indent}{rest}")
            }
            _ => line.to_owned(),
        })
        .collect();
    let all = all
        .join("\n")
        .replace("    command: [./page.sh]", "  # -")
        .replace("env_file: .env.web", "")
        .replace("depends_on: { store", "x-depends: { store");
    let told = told(&load(&all));
    assert_eq!(told, [""; 0], "{all}");
}

#[test]
fn two_readings_of_one_file_are_equal() {
    assert_eq!(load(WHOLE).unwrap().spec, load(WHOLE).unwrap().spec);
}

#[test]
fn places_of_what_was_read() {
    let loaded = load(WHOLE).unwrap();
    assert_eq!(loaded.place("api", None).unwrap().to_string(), "/srv/plimsoll.yaml:8:3");
    assert_eq!(loaded.place("api", Some("mem_limit")).unwrap().to_string(), "/srv/plimsoll.yaml:11:16");
    assert_eq!(loaded.place("api", Some("restart")), None);
}
