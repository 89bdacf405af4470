//! Every key of the file, once: the parser knows keys from here, and the schema is written from here.
//!
//! A table of a map has its keys with what they hold, an example and a sentence. [`crate::reader::Fields`] gives the
//! parser its keys by name and, in tests, sees to it that each one is read.

/// What a key holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// Any single value, as text.
    Text,
    /// `true` or `false`.
    Flag,
    /// `512m`.
    Size,
    /// `512m`, or -1 for no limit.
    SizeOrMinus,
    /// `80%` or `6g`.
    Amount,
    /// `70%`.
    Percent,
    /// `1.5`.
    Cores,
    /// A whole number, at least so much.
    Count(u32),
    /// A whole number from 1, or -1 for no limit.
    CountOrMinus,
    /// `30s`.
    Duration,
    /// `SIGTERM` or 15.
    Signal,
    /// `on-failure:3`.
    Restart,
    /// `8080` or `0.0.0.0:8080`.
    Listen,
    /// `memory > 80%`.
    When,
    /// `http://…`.
    Webhook,
    /// `redis://…`.
    Redis,
    /// One of these.
    Word(&'static [&'static str]),
    /// A list of words, or one text that is split into words.
    Command,
    /// `[CMD, …]`, `[CMD-SHELL, …]`, `[NONE]`, or a line for a shell.
    Test,
    /// A map, or a list of `NAME=value`.
    Environment,
    /// A path, or a list of paths.
    EnvFile,
    /// A list of services, or a map of them to conditions.
    Depends,
    /// A list of single values, as texts.
    Texts,
    /// A map of these keys.
    Map(&'static Table),
    /// A map of names to maps of these keys.
    Named(&'static Table),
    /// A list of maps of these keys.
    Each(&'static Table),
}

impl Kind {
    /// What it holds, with its article.
    pub(crate) fn expected(self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::Flag => "`true` or `false`".to_owned(),
            Self::Size | Self::SizeOrMinus => "a size".to_owned(),
            Self::Amount => "a size or a percentage".to_owned(),
            Self::Percent => "a percentage".to_owned(),
            Self::Cores => "a number of cores".to_owned(),
            Self::Count(least) => format!("a whole number from {least}"),
            Self::CountOrMinus => "a whole number from 1".to_owned(),
            Self::Duration => "a duration".to_owned(),
            Self::Signal => "a signal".to_owned(),
            Self::Restart => "a restart policy".to_owned(),
            Self::Listen => "a port or an address with a port".to_owned(),
            Self::When => "a condition".to_owned(),
            Self::Webhook => "an `http://` address".to_owned(),
            Self::Redis => "a `redis://` address".to_owned(),
            Self::Word(words) => {
                let (last, others) = words.split_last().unwrap_or((&"", &[]));
                let others: Vec<String> = others.iter().map(|word| format!("`{word}`")).collect();
                format!("{} or `{last}`", others.join(", "))
            }
            Self::Command => "a list of words, or one text".to_owned(),
            Self::Test => "a list that begins with CMD or CMD-SHELL, or one text".to_owned(),
            Self::Environment => "a map, or a list of NAME=value".to_owned(),
            Self::EnvFile => "a path, or a list of paths".to_owned(),
            Self::Depends => "a list of services, or a map of them".to_owned(),
            Self::Texts => "a list of texts".to_owned(),
            Self::Map(_) | Self::Named(_) => "a map".to_owned(),
            Self::Each(_) => "a list of maps".to_owned(),
        }
    }
}

/// One key of a map.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// A value that is right.
    pub(crate) example: &'static str,
    /// What it means.
    pub(crate) about: &'static str,
}

/// The keys of one map.
#[derive(Debug)]
pub(crate) struct Table {
    /// What the map is, for messages: `a service`.
    pub(crate) what: &'static str,
    pub(crate) keys: &'static [Key],
    /// Keys that must be there.
    pub(crate) required: &'static [&'static str],
    /// Keys that others know, or that are called otherwise here, with what to do.
    pub(crate) foreign: &'static [(&'static str, &'static str)],
}

impl Table {
    pub(crate) fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

const fn key(name: &'static str, kind: Kind, example: &'static str, about: &'static str) -> Key {
    Key { name, kind, example, about }
}

pub(crate) const PRIORITIES: &[&str] = &["critical", "normal", "best-effort"];
pub(crate) const VICTIMS: &[&str] = &["tree", "largest"];
pub(crate) const CONDITIONS: &[&str] = &["service_started", "service_healthy", "service_completed_successfully"];

pub(crate) const PROTOCOLS: &[&str] = &["claude", "jsonl", "exec"];
pub(crate) const REUSES: &[&str] = &["session", "any"];
pub(crate) const REHYDRATIONS: &[&str] = &["resume", "replay", "none"];
pub(crate) const ISOLATIONS: &[&str] = &["session", "none"];

/// Top-level keys whose time comes with a later version.
pub(crate) const LATER: [&str; 1] = ["imports"];

/// One of these has to be in the file: without both there is nothing to run.
pub(crate) const EITHER: [&str; 2] = ["services", "pools"];

/// The file.
pub(crate) static STACK: Table = Table {
    what: "the file",
    keys: &[
        key(
            "budget",
            Kind::Map(&BUDGET),
            "{ memory: 80%, reserve: 1g }",
            "What all services and pools together may hold, of what this machine or container really has.",
        ),
        key(
            "strict",
            Kind::Flag,
            "true",
            "Makes an error of limits that together are over the budget; else they are a warning.",
        ),
        key(
            "alerts",
            Kind::Each(&ALERT),
            "[{ when: \"memory > 80%\", for: 10s }]",
            "Conditions that are told when they begin to hold: in the journal, in the metrics, and to whom you name.",
        ),
        key("services", Kind::Named(&SERVICE), "{ api: { command: [python3, app.py] } }", "What is to run, by name."),
        key(
            "pools",
            Kind::Named(&POOL),
            "{ assistant: { command: [claude], protocol: claude } }",
            "Agents that answer turns, by name: each conversation has a process of its own.",
        ),
        key(
            "gateway",
            Kind::Map(&GATEWAY),
            "{ listen: 7070 }",
            "Where pools are asked, by HTTP. With pools and without this key: at 127.0.0.1:7070.",
        ),
        key(
            "redis",
            Kind::Redis,
            "redis://127.0.0.1:6379",
            "Where several machines with the same pools keep conversations and agree on who has which. Default: each machine by itself.",
        ),
    ],
    required: &[],
    foreign: &[
        ("version", "leave it out: Compose no longer uses it either"),
        ("name", "leave it out: a stack is told apart by its state directory, PLIMSOLL_STATE_DIR"),
        ("networks", "leave it out: services share this machine's network"),
        ("volumes", "leave it out: services see this machine's files"),
        ("configs", "leave it out: services see this machine's files"),
        ("secrets", "leave it out: give a service the path of a file, or `env_file`"),
        ("include", "put all services into one file"),
    ],
};

/// `budget`.
pub(crate) static BUDGET: Table = Table {
    what: "`budget`",
    keys: &[
        key(
            "memory",
            Kind::Amount,
            "80%",
            "What all services together may hold: a size, or a percentage of this machine or container. Default: 80%.",
        ),
        key("reserve", Kind::Size, "1g", "Memory that is always left to the rest of the machine. Default: none."),
        key("strict", Kind::Flag, "true", "The same as `strict` at the top of the file."),
    ],
    required: &[],
    foreign: &[("limit", "it is called `memory` here"), ("mem_limit", "it is called `memory` here")],
};

/// One of `alerts`.
pub(crate) static ALERT: Table = Table {
    what: "an alert",
    keys: &[
        key(
            "when",
            Kind::When,
            "\"memory > 80%\"",
            "The condition: `memory > 80%` or `memory > 6g` of the budget; `service NAME rss > 500m`, `service NAME memory > 80%` of its limits, `service NAME restarts > 3`. `<` works too.",
        ),
        key("for", Kind::Duration, "10s", "How long it has to hold. Default: 0s."),
        key(
            "command",
            Kind::Command,
            "[./page.sh]",
            "A command that is run when it begins to hold; a path is relative to this file.",
        ),
        key(
            "webhook",
            Kind::Webhook,
            "\"http://127.0.0.1:9/hook\"",
            "An address that is sent the event, as JSON by HTTP POST.",
        ),
    ],
    required: &["when"],
    foreign: &[("if", "it is called `when` here"), ("condition", "it is called `when` here")],
};

/// One of `services`.
pub(crate) static SERVICE: Table = Table {
    what: "a service",
    keys: &[
        key(
            "command",
            Kind::Command,
            "[python3, app.py, --port, \"${PORT}\"]",
            "The command and its arguments. One text is split into words as a shell does, and no shell is started. `${PORT}` is one free port a replica.",
        ),
        key(
            "environment",
            Kind::Environment,
            "{ MODE: prod }",
            "Variables beside Plimsoll's own: a map, or a list of NAME=value. A name without a value takes the one from Plimsoll's environment or from `.env`.",
        ),
        key(
            "env_file",
            Kind::EnvFile,
            ".env.api",
            "Files of variables, relative to this file; later ones and `environment` win.",
        ),
        key("working_dir", Kind::Text, "./api", "Where it runs, relative to this file. Default: this file's folder."),
        key(
            "mem_limit",
            Kind::Size,
            "512m",
            "Hard line of memory of one replica, at least 6m. Default: what is left of the budget.",
        ),
        key(
            "mem_reservation",
            Kind::Size,
            "256m",
            "Memory that one replica is promised; nothing starts that the budget cannot promise.",
        ),
        key(
            "memswap_limit",
            Kind::SizeOrMinus,
            "512m",
            "Memory and swap of one replica together; -1 is as much swap as there is. Default: `mem_limit`, which is no swap.",
        ),
        key("cpus", Kind::Cores, "1.5", "Processor time of one replica, in cores."),
        key("pids_limit", Kind::CountOrMinus, "256", "Processes and threads of one replica; -1 is no limit."),
        key("deploy", Kind::Map(&DEPLOY), "{ replicas: 2 }", "Compose's other way to write limits and replicas."),
        key(
            "restart",
            Kind::Restart,
            "on-failure:3",
            "What happens when it ends: no (the default), always, on-failure, on-failure:3 (at most three times in a row), unless-stopped.",
        ),
        key("stop_grace_period", Kind::Duration, "10s", "Time between the stop signal and SIGKILL. Default: 10s."),
        key(
            "stop_signal",
            Kind::Signal,
            "SIGTERM",
            "The signal that asks it to end, by name or number. Default: SIGTERM.",
        ),
        key(
            "depends_on",
            Kind::Depends,
            "[store]",
            "What has to be there first: a list of services, or a map to `condition: service_started`, `service_healthy` or `service_completed_successfully`.",
        ),
        key(
            "healthcheck",
            Kind::Map(&HEALTH),
            "{ test: [CMD, curl, -f, \"http://127.0.0.1:${PORT}/health\"] }",
            "How it is found healthy. Without one, running is healthy.",
        ),
        key(
            "priority",
            Kind::Word(PRIORITIES),
            "best-effort",
            "Who goes first when the budget is short: best-effort, then normal (the default), never critical.",
        ),
        key(
            "on_limit",
            Kind::Word(VICTIMS),
            "tree",
            "Who goes at its memory line: the whole tree (the default), or the largest process below the root.",
        ),
        key(
            "on_pressure",
            Kind::Map(&PRESSURE),
            "{ signal: SIGUSR1 }",
            "How it is asked to hold less when memory gets short: a command or a signal.",
        ),
        key(
            "listen",
            Kind::Listen,
            "8080",
            "The one public port, balanced over the replicas: a port of 127.0.0.1, or an address with a port.",
        ),
        key("min_available", Kind::Count(0), "1", "Replicas that Plimsoll never takes away itself. Default: 0."),
        key(
            "scale",
            Kind::Map(&SCALE),
            "{ min: 1, max: 4, target_memory: 70% }",
            "How the number of replicas follows the load.",
        ),
    ],
    required: &["command"],
    foreign: &[
        ("image", "there are no images here: `command` says what to start"),
        ("build", "there are no images here: `command` says what to start"),
        ("entrypoint", "write all of it into `command`"),
        ("ports", "`listen: 8080` is the one public port, `${PORT}` the replica's own"),
        ("expose", "leave it out: services share this machine's network"),
        ("volumes", "leave it out: services see this machine's files; paths are relative to `working_dir`"),
        ("networks", "leave it out: services share this machine's network"),
        ("network_mode", "leave it out: services share this machine's network"),
        ("container_name", "leave it out: the service's name is its name"),
        ("hostname", "leave it out: services share this machine's name"),
        ("user", "leave it out: services run as the user that Plimsoll runs as"),
        ("logging", "leave it out: every service has a log of bounded size, `plimsoll logs`"),
        ("labels", "leave it out, or call it `x-labels`: keys that begin with `x-` are yours"),
        ("init", "leave it out: Plimsoll itself reaps orphans"),
        ("oom_score_adj", "`priority` says who goes first"),
        ("oom_kill_disable", "`priority: critical` is never evicted"),
        ("mem_swappiness", "`memswap_limit` says how much swap there is; the default is none"),
        ("cpu_shares", "`cpus` is the limit of processor time"),
        ("cpu_quota", "`cpus` is the limit of processor time"),
        ("cpu_period", "`cpus` is the limit of processor time"),
        ("profiles", "put these services into a file of their own"),
        ("extends", "use an anchor: `api: { <<: *defaults }`"),
        ("memory", "Compose's words: `mem_limit` is the limit, `mem_reservation` what is promised"),
        ("replicas", "Compose's words: `deploy: { replicas: 2 }`"),
        ("resources", "Compose's words: `deploy: { resources: … }`"),
        ("cmd", "it is called `command`"),
        ("env", "it is called `environment`"),
        ("workdir", "it is called `working_dir`"),
        ("cwd", "it is called `working_dir`"),
        ("port", "`listen: 8080` is the one public port, `${PORT}` the replica's own"),
    ],
};

/// One of `pools`.
pub(crate) static POOL: Table = Table {
    what: "a pool",
    keys: &[
        key(
            "command",
            Kind::Command,
            "[claude]",
            "The agent and its arguments. One text is split into words as a shell does, and no shell is started.",
        ),
        key(
            "protocol",
            Kind::Word(PROTOCOLS),
            "claude",
            "What it speaks: claude (the stream-json of the Claude Code CLI; its flags are added), jsonl (lines of JSON), exec (a process a turn: the prompt on its standard input, the answer on its standard output).",
        ),
        key(
            "models",
            Kind::Texts,
            "[haiku, sonnet]",
            "Further names under which it is offered as a model; no other pool has them.",
        ),
        key(
            "reuse",
            Kind::Word(REUSES),
            "session",
            "Who may share a process: session (the default: one conversation a process), any (unrelated requests without a session share it until it is replaced).",
        ),
        key(
            "max_sessions",
            Kind::Count(1),
            "8",
            "Processes at most that have, or had last, a conversation. Default: 8.",
        ),
        key("warm", Kind::Count(0), "1", "Processes that are started ahead, beside those. Default: 0."),
        key("idle_ttl", Kind::Duration, "5m", "A session without a turn for so long is closed. Default: 5m."),
        key("max_turns", Kind::Count(1), "10", "After so many turns the process is replaced. Default: never."),
        key(
            "max_turns_jitter",
            Kind::Count(0),
            "3",
            "Up to so many turns fewer, by chance, so that not all are replaced at once. Default: 0.",
        ),
        key(
            "max_context",
            Kind::Percent,
            "80%",
            "The process is replaced when so much of the model's context is used, where the agent tells. Default: 80% with `protocol: claude`.",
        ),
        key(
            "max_age",
            Kind::Duration,
            "8h",
            "After so long the process is replaced, once its turn is over. Default: never.",
        ),
        key(
            "mem_limit",
            Kind::Size,
            "400m",
            "Hard line of memory of one session's whole tree, at least 6m. Default: what is left of the budget.",
        ),
        key(
            "recycle_above",
            Kind::Size,
            "300m",
            "The process is replaced after a turn when its tree holds more; at most `mem_limit`. Default: never.",
        ),
        key(
            "mem_reservation",
            Kind::Size,
            "100m",
            "Memory that one session is promised; none starts that the budget cannot promise.",
        ),
        key(
            "memswap_limit",
            Kind::SizeOrMinus,
            "512m",
            "Memory and swap of one session together; -1 is as much swap as there is. Default: `mem_limit`, which is no swap.",
        ),
        key("cpus", Kind::Cores, "1.5", "Processor time of one session, in cores."),
        key("pids_limit", Kind::CountOrMinus, "256", "Processes and threads of one session; -1 is no limit."),
        key("start_timeout", Kind::Duration, "30s", "From its start until the agent can take a turn. Default: 30s."),
        key("first_byte_timeout", Kind::Duration, "2m", "From a turn's begin to its first byte. Default: 2m."),
        key("stall_timeout", Kind::Duration, "5m", "Without a byte within a turn. Default: 5m."),
        key("turn_timeout", Kind::Duration, "10m", "A whole turn. Default: 10m."),
        key("queue", Kind::Map(&QUEUE), "{ max: 32, timeout: 30s }", "Turns that wait for a session."),
        key(
            "rehydrate",
            Kind::Word(REHYDRATIONS),
            "resume",
            "How a conversation goes on in a new process: resume (the default: with `protocol: claude` one is started for it with `--resume`, so that the agent takes its own transcript up again; where there is none, or the command names a conversation itself, as replay), replay (whichever process is free is told the stored history), none (it begins anew: what was said before counts no longer, but for what a client itself sends again).",
        ),
        key(
            "max_line",
            Kind::Size,
            "64m",
            "A line of the agent's that is longer breaks its session, from 4k to 1g. Default: 64m.",
        ),
        key(
            "isolation",
            Kind::Word(ISOLATIONS),
            "session",
            "Whether sessions are kept apart: session (the default: a home, a temporary folder, a working folder and, as root, a user for each, else Landlock where the kernel has it), none (all run as Plimsoll does, in `working_dir`).",
        ),
        key(
            "pass_environment",
            Kind::Texts,
            "[HTTPS_PROXY]",
            "Variables of Plimsoll's own environment that the agent gets; of the others it gets PATH, LANG, LC_* and TZ alone.",
        ),
        key(
            "environment",
            Kind::Environment,
            "{ MODE: prod }",
            "Variables of the agent: a map, or a list of NAME=value. A name without a value takes the one from Plimsoll's environment or from `.env`.",
        ),
        key(
            "env_file",
            Kind::EnvFile,
            ".env.api",
            "Files of variables, relative to this file; later ones and `environment` win.",
        ),
        key(
            "working_dir",
            Kind::Text,
            "./agent",
            "Where it runs with `isolation: none`, and where a relative program is meant from; relative to this file. Default: this file's folder.",
        ),
        key(
            "stop_grace_period",
            Kind::Duration,
            "5s",
            "Time between the end of its input and the stop signal, and again until SIGKILL. Default: 5s.",
        ),
        key(
            "stop_signal",
            Kind::Signal,
            "SIGTERM",
            "The signal that asks it to end, by name or number. Default: SIGTERM.",
        ),
        key(
            "priority",
            Kind::Word(PRIORITIES),
            "best-effort",
            "Who goes first when the budget is short: best-effort, then normal (the default), never critical.",
        ),
        key(
            "on_limit",
            Kind::Word(VICTIMS),
            "tree",
            "Who goes at its memory line: the whole tree (the default), or the largest process below the root.",
        ),
        key(
            "on_pressure",
            Kind::Map(&PRESSURE),
            "{ signal: SIGUSR1 }",
            "How it is asked to hold less when memory gets short: a command or a signal.",
        ),
    ],
    required: &["command", "protocol"],
    foreign: &[
        ("image", "there are no images here: `command` says what to start"),
        ("build", "there are no images here: `command` says what to start"),
        ("cmd", "it is called `command`"),
        ("env", "it is called `environment`"),
        ("cwd", "it is called `working_dir`"),
        ("model", "it is called `models`, a list of names"),
        ("min_spare_servers", "it is called `warm`"),
        ("max_children", "it is called `max_sessions`"),
        ("max_requests", "it is called `max_turns`"),
        ("sessions", "`max_sessions` is how many there are at most, `warm` how many are started ahead"),
        ("replicas", "`max_sessions` is how many there are at most, `warm` how many are started ahead"),
        ("scale", "`max_sessions` is how many there are at most, `warm` how many are started ahead"),
        ("deploy", "write limits as `mem_limit`, `cpus` and `pids_limit`; `max_sessions` says how many"),
        ("restart", "leave it out: a session is replaced when it has to be, and `max_turns` and `max_age` say when"),
        ("listen", "`gateway: { listen: 127.0.0.1:7070 }` is where all pools are asked"),
        ("ports", "`gateway: { listen: 127.0.0.1:7070 }` is where all pools are asked"),
        ("healthcheck", "leave it out: `start_timeout`, `first_byte_timeout` and `stall_timeout` watch over its turns"),
        ("depends_on", "leave it out: a session is started when it is needed"),
        ("ttl", "it is called `idle_ttl`"),
        ("timeout", "it is called `turn_timeout`"),
        ("memory", "`mem_limit` is the hard line of one session, `recycle_above` the soft one"),
    ],
};

/// `queue`.
pub(crate) static QUEUE: Table = Table {
    what: "`queue`",
    keys: &[
        key("max", Kind::Count(0), "32", "Turns that wait at most; one more is refused. Default: 32."),
        key("timeout", Kind::Duration, "30s", "Whoever waited for so long is refused. Default: 30s."),
    ],
    required: &[],
    foreign: &[("size", "it is called `max` here"), ("length", "it is called `max` here")],
};

/// `gateway`.
pub(crate) static GATEWAY: Table = Table {
    what: "`gateway`",
    keys: &[
        key(
            "listen",
            Kind::Listen,
            "127.0.0.1:7070",
            "A port of 127.0.0.1, or an address with a port, which needs a `token_file` unless it is this machine's loopback. Default: 127.0.0.1:7070.",
        ),
        key(
            "token_file",
            Kind::Text,
            "token",
            "A file of tokens, relative to this one, a line each: TOKEN, then `pools=a,b` and `rate=60/m` where it is for some pools or so many requests alone. On the loopback none has to be shown, and one that is shown counts.",
        ),
        key(
            "hosts",
            Kind::Texts,
            "[bot.internal]",
            "Names under which it may be asked for, beside those of this machine.",
        ),
        key(
            "campfire",
            Kind::Map(&CAMPFIRE),
            "{ base_url: \"http://127.0.0.1:3000\" }",
            "The Campfire server whose webhooks are answered.",
        ),
    ],
    required: &[],
    foreign: &[
        ("port", "it is called `listen`: a port of 127.0.0.1, or an address with a port"),
        ("host", "`listen` is the address, `hosts` are names under which it may be asked for"),
        ("token", "put it into a file and name that: `token_file: token`"),
        ("tokens", "put them into a file and name that: `token_file: token`"),
        ("tls", "leave it out: TLS is for a proxy before it"),
    ],
};

/// `gateway.campfire`.
pub(crate) static CAMPFIRE: Table = Table {
    what: "`campfire`",
    keys: &[key(
        "base_url",
        Kind::Webhook,
        "\"http://127.0.0.1:3000\"",
        "Scheme, host and port of the server; the way to a room comes with each message.",
    )],
    required: &["base_url"],
    foreign: &[("url", "it is called `base_url`")],
};

/// `deploy`.
pub(crate) static DEPLOY: Table = Table {
    what: "`deploy`",
    keys: &[
        key("replicas", Kind::Count(0), "2", "Replicas to begin with. Default: 1, or `scale.min`."),
        key("resources", Kind::Map(&RESOURCES), "{ limits: { memory: 512m } }", "Limits and reservations."),
    ],
    required: &[],
    foreign: &[
        ("restart_policy", "`restart` of the service says it"),
        ("mode", "leave it out: there is one machine"),
        ("placement", "leave it out: there is one machine"),
        ("update_config", "leave it out: `up` again touches what changed"),
        ("rollback_config", "leave it out: `up` again touches what changed"),
        ("labels", "leave it out, or call it `x-labels`: keys that begin with `x-` are yours"),
    ],
};

/// `deploy.resources`.
pub(crate) static RESOURCES: Table = Table {
    what: "`deploy.resources`",
    keys: &[
        key(
            "limits",
            Kind::Map(&LIMITS),
            "{ memory: 512m, cpus: \"0.5\", pids: 256 }",
            "The same as `mem_limit`, `cpus` and `pids_limit`.",
        ),
        key("reservations", Kind::Map(&RESERVATIONS), "{ memory: 256m }", "The same as `mem_reservation`."),
    ],
    required: &[],
    foreign: &[("memory", "it belongs into `limits` or `reservations`"), ("cpus", "it belongs into `limits`")],
};

/// `deploy.resources.limits`.
pub(crate) static LIMITS: Table = Table {
    what: "`deploy.resources.limits`",
    keys: &[
        key("memory", Kind::Size, "512m", "The same as `mem_limit`."),
        key("cpus", Kind::Cores, "\"0.5\"", "The same as `cpus` of the service."),
        key("pids", Kind::CountOrMinus, "256", "The same as `pids_limit`."),
    ],
    required: &[],
    foreign: &[("mem_limit", "it is called `memory` here"), ("pids_limit", "it is called `pids` here")],
};

/// `deploy.resources.reservations`.
pub(crate) static RESERVATIONS: Table = Table {
    what: "`deploy.resources.reservations`",
    keys: &[
        key("memory", Kind::Size, "256m", "The same as `mem_reservation`."),
        key("cpus", Kind::Cores, "\"0.25\"", "Without effect, as in Compose."),
    ],
    required: &[],
    foreign: &[("devices", "leave it out: services see this machine's devices")],
};

/// `healthcheck`.
pub(crate) static HEALTH: Table = Table {
    what: "`healthcheck`",
    keys: &[
        key(
            "test",
            Kind::Test,
            "[CMD, curl, -f, \"http://127.0.0.1:${PORT}/health\"]",
            "The probe: [CMD, program, argument], [CMD-SHELL, line], or one text for /bin/sh. Exit code 0 is healthy. [NONE] is no health check.",
        ),
        key("interval", Kind::Duration, "30s", "Time between two probes. Default: 30s."),
        key("timeout", Kind::Duration, "10s", "A probe that takes longer failed. Default: 30s."),
        key("retries", Kind::Count(1), "3", "Failures in a row that make it unhealthy. Default: 3."),
        key("start_period", Kind::Duration, "5s", "Failures so soon after the start do not count. Default: 0s."),
        key("start_interval", Kind::Duration, "1s", "Time between two probes within the start period. Default: 5s."),
        key("disable", Kind::Flag, "true", "No health check: for one that an anchor brings along."),
    ],
    required: &[],
    foreign: &[("command", "it is called `test`"), ("cmd", "it is called `test`")],
};

/// `on_pressure`.
pub(crate) static PRESSURE: Table = Table {
    what: "`on_pressure`",
    keys: &[
        key(
            "command",
            Kind::Command,
            "[./shrink.sh]",
            "A command that is run where the service runs; `${PORT}` is the replica's port.",
        ),
        key("signal", Kind::Signal, "SIGUSR1", "A signal that its root is sent."),
    ],
    required: &[],
    foreign: &[],
};

/// `scale`.
pub(crate) static SCALE: Table = Table {
    what: "`scale`",
    keys: &[
        key("min", Kind::Count(1), "1", "Replicas at least. Default: 1."),
        key("max", Kind::Count(1), "4", "Replicas at most."),
        key("target_memory", Kind::Percent, "70%", "Wanted use of `mem_limit`."),
        key("target_cpu", Kind::Percent, "70%", "Wanted use of `cpus`."),
    ],
    required: &["max"],
    foreign: &[("cpu", "it is called `target_cpu`"), ("memory", "it is called `target_memory`")],
};

/// One of `env_file`, when it is a map.
pub(crate) static ENV_FILE: Table = Table {
    what: "a file of `env_file`",
    keys: &[
        key("path", Kind::Text, "./api.env", "The file, relative to this one."),
        key("required", Kind::Flag, "false", "Whether it has to be there. Default: true."),
    ],
    required: &["path"],
    foreign: &[("format", "leave it out: there is one format")],
};

/// One of `depends_on`, when it is a map.
pub(crate) static DEPENDENCY: Table = Table {
    what: "a dependency",
    keys: &[key(
        "condition",
        Kind::Word(CONDITIONS),
        "service_healthy",
        "What it has to have reached. Default: service_started.",
    )],
    required: &[],
    foreign: &[
        ("required", "leave it out: a dependency is always required here"),
        ("restart", "leave it out: a dependency's restart leaves others alone here"),
    ],
};
