//! What can be asked, and how it is written as a method and a path.

use hyper::Method;

/// A question, or a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// `GET /health`: how it is, for whoever watches.
    Health,
    /// `GET /ready`: whether it takes work.
    Ready,
    /// `GET /metrics`, in Prometheus' text.
    Metrics,
    /// `GET /api/v1/status`.
    Status,
    /// `GET /api/v1/events`: a stream from now on.
    Events,
    /// `GET /api/v1/processes`: the trees.
    Processes,
    /// `GET /api/v1/sessions`: of all pools.
    Sessions,
    /// `GET /api/v1/certificates`, the newest first.
    Certificates,
    /// `GET /api/v1/certificates/ID`.
    Certificate(String),
    /// `GET /api/v1/logs?service=NAME&tail=N&follow=true`, on the socket alone.
    Logs {
        /// Of which service; of all.
        service: Option<String>,
        /// So many of the last lines; all that are kept.
        tail: Option<u64>,
        /// And those that come.
        follow: bool,
    },
    /// `POST`, on the socket alone.
    Do(Command),
}

/// What the owner wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `/api/v1/down`.
    Down,
    /// `/api/v1/reload`: read the file again.
    Reload,
    /// `/api/v1/services/NAME/restart`.
    Restart(String),
    /// `/api/v1/services/NAME/start`.
    Start(String),
    /// `/api/v1/services/NAME/stop`.
    Stop(String),
    /// `/api/v1/services/NAME/scale?replicas=N`.
    Scale {
        /// Which service.
        service: String,
        /// How many.
        replicas: u32,
    },
    /// `/api/v1/join?name=NAME&bytes=N&patience_ms=N`: room for somebody else's run; held as long as the answer, a stream,
    /// is not closed.
    Join {
        /// What it is called.
        name: String,
        /// How much, bytes.
        bytes: u64,
        /// How long it waits at most, milliseconds.
        patience_ms: u64,
    },
}

impl Question {
    /// Only the owner may ask it: it changes something, or its answer may hold a secret.
    #[must_use]
    pub fn is_for_the_owner(&self) -> bool {
        matches!(self, Self::Do(_) | Self::Logs { .. })
    }
}

impl Command {
    /// What to `POST` to.
    #[must_use]
    pub fn target(&self) -> String {
        match self {
            Self::Down => "/api/v1/down".into(),
            Self::Reload => "/api/v1/reload".into(),
            Self::Restart(service) => format!("/api/v1/services/{service}/restart"),
            Self::Start(service) => format!("/api/v1/services/{service}/start"),
            Self::Stop(service) => format!("/api/v1/services/{service}/stop"),
            Self::Scale { service, replicas } => format!("/api/v1/services/{service}/scale?replicas={replicas}"),
            Self::Join { name, bytes, patience_ms } => {
                format!("/api/v1/join?name={name}&bytes={bytes}&patience_ms={patience_ms}")
            }
        }
    }
}

/// Why it is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Miss {
    NotFound,
    /// It is there with this method.
    Method(&'static str),
    Bad(&'static str),
}

/// Reads a question. Names and ids need no escapes: they are letters, digits, `.`, `_` and `-`.
pub(crate) fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Question, Miss> {
    let gets = |question: Question| match *method {
        Method::GET | Method::HEAD => Ok(question),
        _ => Err(Miss::Method("GET, HEAD")),
    };
    let does = |command: Command| match *method {
        Method::POST => Ok(Question::Do(command)),
        _ => Err(Miss::Method("POST")),
    };
    let mut steps = path.strip_prefix('/').ok_or(Miss::NotFound)?.split('/');
    let steps: [Option<&str>; 6] = std::array::from_fn(|_| steps.next());
    match steps {
        [Some("health"), None, ..] => gets(Question::Health),
        [Some("ready"), None, ..] => gets(Question::Ready),
        [Some("metrics"), None, ..] => gets(Question::Metrics),
        [Some("api"), Some("v1"), Some(what), id, action, None] => match (what, id, action) {
            ("status", None, None) => gets(Question::Status),
            ("events", None, None) => gets(Question::Events),
            ("processes", None, None) => gets(Question::Processes),
            ("sessions", None, None) => gets(Question::Sessions),
            ("certificates", None, None) => gets(Question::Certificates),
            ("certificates", Some(id), None) => gets(Question::Certificate(name(id)?)),
            ("logs", None, None) => gets(logs(query)?),
            ("down", None, None) => does(Command::Down),
            ("reload", None, None) => does(Command::Reload),
            ("join", None, None) => does(join(query)?),
            ("services", Some(service), Some("restart")) => does(Command::Restart(name(service)?)),
            ("services", Some(service), Some("start")) => does(Command::Start(name(service)?)),
            ("services", Some(service), Some("stop")) => does(Command::Stop(name(service)?)),
            ("services", Some(service), Some("scale")) => {
                let replicas = value(query, "replicas").and_then(|number| number.parse().ok());
                let replicas = replicas.ok_or(Miss::Bad("scale takes replicas=N"))?;
                does(Command::Scale { service: name(service)?, replicas })
            }
            _ => Err(Miss::NotFound),
        },
        _ => Err(Miss::NotFound),
    }
}

fn join(query: Option<&str>) -> Result<Command, Miss> {
    let name = value(query, "name").map(name).transpose()?.ok_or(Miss::Bad("join takes name=NAME"))?;
    let number = |key: &str| value(query, key).and_then(|number| number.parse().ok());
    let bytes = number("bytes").ok_or(Miss::Bad("join takes bytes=N"))?;
    let patience_ms = number("patience_ms").ok_or(Miss::Bad("join takes patience_ms=N"))?;
    Ok(Command::Join { name, bytes, patience_ms })
}

fn logs(query: Option<&str>) -> Result<Question, Miss> {
    let tail = value(query, "tail").map(str::parse).transpose().map_err(|_| Miss::Bad("tail takes a number"))?;
    let service = value(query, "service").map(name).transpose()?;
    let follow = matches!(value(query, "follow"), Some("true" | "1"));
    Ok(Question::Logs { service, tail, follow })
}

fn value<'a>(query: Option<&'a str>, key: &str) -> Option<&'a str> {
    query?.split('&').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| value)
}

fn name(text: &str) -> Result<String, Miss> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !text.is_empty() && text.len() <= 128 && text.bytes().all(fits) {
        Ok(text.to_owned())
    } else {
        Err(Miss::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_question_has_its_path() {
        let get = |path: &str, query| parse(&Method::GET, path, query);
        assert_eq!(get("/health", None), Ok(Question::Health));
        assert_eq!(get("/ready", Some("x")), Ok(Question::Ready));
        assert_eq!(get("/metrics", None), Ok(Question::Metrics));
        assert_eq!(get("/api/v1/status", None), Ok(Question::Status));
        assert_eq!(get("/api/v1/events", None), Ok(Question::Events));
        assert_eq!(get("/api/v1/processes", None), Ok(Question::Processes));
        assert_eq!(get("/api/v1/certificates", None), Ok(Question::Certificates));
        assert_eq!(get("/api/v1/certificates/01j", None), Ok(Question::Certificate("01j".into())));
        let logs =
            |service: Option<&str>, tail, follow| Question::Logs { service: service.map(Into::into), tail, follow };
        assert_eq!(get("/api/v1/logs", None), Ok(logs(None, None, false)));
        assert_eq!(get("/api/v1/logs", Some("tail=5&service=api&follow=1")), Ok(logs(Some("api"), Some(5), true)));
        assert_eq!(get("/api/v1/logs", Some("tail=x")), Err(Miss::Bad("tail takes a number")));
    }

    #[test]
    fn strangers_and_wrong_methods() {
        for path in
            ["", "/", "health", "/health/", "/api/v1", "/api/v2/status", "/api/v1/certificates/", "/api/v1/status/x"]
        {
            assert_eq!(parse(&Method::GET, path, None), Err(Miss::NotFound), "{path}");
        }
        for path in ["/api/v1/services/a%2f/stop", "/api/v1/services/../stop/x", "/api/v1/services//stop"] {
            assert_eq!(parse(&Method::POST, path, None), Err(Miss::NotFound), "{path}");
        }
        assert_eq!(parse(&Method::GET, "/api/v1/down", None), Err(Miss::Method("POST")));
        assert_eq!(parse(&Method::POST, "/api/v1/status", None), Err(Miss::Method("GET, HEAD")));
        assert!(matches!(parse(&Method::POST, "/api/v1/services/a/scale", Some("replicas=-1")), Err(Miss::Bad(_))));
    }

    proptest! {
        #[test]
        fn commands_are_read_back(service in "[a-zA-Z0-9._-]{1,30}", replicas in any::<u32>(), bytes in any::<u64>(), which in 0..7) {
            let command = match which {
                0 => Command::Down,
                1 => Command::Reload,
                2 => Command::Restart(service),
                3 => Command::Start(service),
                4 => Command::Stop(service),
                5 => Command::Join { name: service, bytes, patience_ms: u64::from(replicas) },
                _ => Command::Scale { service, replicas },
            };
            let target = command.target();
            let (path, query) = target.split_once('?').map_or((target.as_str(), None), |(path, query)| (path, Some(query)));
            prop_assert_eq!(parse(&Method::POST, path, query), Ok(Question::Do(command)));
        }

        #[test]
        fn no_path_panics(path in ".{0,40}", query in proptest::option::of(".{0,40}")) {
            let _ = parse(&Method::POST, &path, query.as_deref());
        }
    }
}
