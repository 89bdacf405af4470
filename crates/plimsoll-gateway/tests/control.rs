//! The control socket and the gateway's port, asked by our own client and by curl.

#![expect(clippy::unwrap_used, reason = "test code")]

use std::io::{BufRead, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use plimsoll_gateway::client::{ClientError, ask};
use plimsoll_gateway::control::{Answer, Command, Door, Kind, Question, Reply};
use plimsoll_gateway::{Gateway, GatewayError};

const PATIENCE: Duration = Duration::from_secs(60);

struct Folder(PathBuf);

impl Folder {
    fn new(what: &str) -> Self {
        let path = std::env::temp_dir().join(format!("plimsoll-gateway-{what}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("control")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A gateway whose questions come out here, to be answered from this thread as the supervisor would.
fn gateway(doors: Vec<Door>) -> (Gateway, Receiver<(Question, Reply)>) {
    let gateway = Gateway::start(|_| {}, |_| true, || {}).unwrap();
    let (hand, questions) = sync_channel(16);
    for door in doors {
        let hand = hand.clone();
        gateway.serve(door, move |question, reply| {
            let _ = hand.try_send((question, reply));
        });
    }
    (gateway, questions)
}

#[test]
fn the_last_answer_is_heard_although_everything_stops() {
    for round in 0..50 {
        let folder = Folder::new(&format!("last-{round}"));
        let (gateway, questions) = gateway(vec![Door::socket(&folder.socket()).unwrap()]);
        let socket = folder.socket();
        let asks = std::thread::spawn(move || {
            ask(&socket, "POST", &Command::Down.target(), Some(PATIENCE)).and_then(|response| response.text(1000))
        });
        let (question, reply) = questions.recv_timeout(PATIENCE).unwrap();
        assert_eq!(question, Question::Do(Command::Down));
        reply.send(Answer::text("done\n"));
        gateway.stop(PATIENCE);
        assert_eq!(asks.join().unwrap().unwrap(), "done\n");
    }
}

#[test]
fn questions_reach_whoever_knows_and_come_back() {
    let folder = Folder::new("questions");
    let (_gateway, questions) = gateway(vec![Door::socket(&folder.socket()).unwrap()]);
    assert_eq!(std::fs::metadata(folder.socket()).unwrap().permissions().mode() & 0o777, 0o600);

    let answers = std::thread::spawn(move || {
        for (question, reply) in &questions {
            match question {
                Question::Status => reply.send(Answer::json(r#"{"services":[]}"#)),
                Question::Do(Command::Restart(service)) => reply.send(Answer {
                    status: 503,
                    retry_after_s: Some(7),
                    ..Answer::text(format!("{service} has no room\n"))
                }),
                Question::Events => {
                    let stream = reply.stream(Kind::Events);
                    for event in 0..3 {
                        assert!(stream.send(format!("data: {event}\n\n")));
                    }
                }
                Question::Certificates => reply.send(Answer::json("x".repeat(100_000))),
                Question::Health => drop(reply),
                other => panic!("{other:?}"),
            }
        }
    });
    let get = |target: &str| ask(&folder.socket(), "GET", target, Some(PATIENCE)).unwrap();
    let status = get("/api/v1/status");
    assert_eq!((status.status, status.text(1000).unwrap().as_str()), (200, r#"{"services":[]}"#));
    let refused = ask(&folder.socket(), "POST", &Command::Restart("api".into()).target(), Some(PATIENCE)).unwrap();
    assert_eq!((refused.status, refused.retry_after_s), (503, Some(7)));
    assert_eq!(refused.text(1000).unwrap(), "api has no room\n");
    let lines: Vec<String> = get("/api/v1/events").reader().lines().map(Result::unwrap).collect();
    assert_eq!(lines, ["data: 0", "", "data: 1", "", "data: 2", ""]);
    assert!(matches!(get("/api/v1/certificates").text(99_999), Err(ClientError::TooLong(99_999))));
    assert_eq!(get("/api/v1/certificates").text(100_000).unwrap().len(), 100_000);
    assert_eq!(get("/health").status, 503);
    assert_eq!(get("/nothing").status, 404);
    assert_eq!(get("/api/v1/down").status, 405);
    drop(_gateway);
    answers.join().unwrap();
    assert!(!folder.socket().exists());
    let gone = ask(&folder.socket(), "GET", "/health", Some(PATIENCE)).unwrap_err();
    assert!(matches!(gone, ClientError::NotThere { .. }), "{gone}");
}

#[test]
fn a_reader_that_goes_or_sleeps_is_let_go() {
    let folder = Folder::new("readers");
    let (_gateway, questions) = gateway(vec![Door::socket(&folder.socket()).unwrap()]);
    let response = std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&folder.socket(), "GET", "/api/v1/events", Some(PATIENCE)).unwrap());
        let (question, reply) = questions.recv_timeout(PATIENCE).unwrap();
        assert_eq!(question, Question::Events);
        let stream = reply.stream(Kind::Events);
        assert!(stream.send("data: 1\n\n"));
        let response = asked.join().unwrap();
        // It sleeps: what it has not read is bounded, and then it is let go.
        let mut sent = 0u32;
        while stream.send(vec![b'x'; 64 << 10]) {
            sent += 1;
            assert!(sent < 1_000, "nobody reads, and everything is kept");
            if sent.is_multiple_of(50) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        drop(stream);
        response
    });
    drop(response);
    // One that goes is noticed without a word to it.
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| ask(&folder.socket(), "GET", "/api/v1/events", Some(PATIENCE)).unwrap());
        let stream = questions.recv_timeout(PATIENCE).unwrap().1.stream(Kind::Events);
        drop(asked.join().unwrap());
        for _ in 0..10_000 {
            if stream.is_closed() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("nobody noticed");
    });
}

#[test]
fn a_socket_that_is_in_use_is_left_alone_and_a_leftover_replaced() {
    let folder = Folder::new("sockets");
    let (_gateway, questions) = gateway(vec![Door::socket(&folder.socket()).unwrap()]);
    let answers = std::thread::spawn(move || {
        for (_, reply) in &questions {
            reply.send(Answer::text("here"));
        }
    });
    let taken = Door::socket(&folder.socket()).unwrap_err();
    assert!(matches!(taken, GatewayError::Listen { .. }), "{taken}");
    let here = || ask(&folder.socket(), "GET", "/ready", Some(PATIENCE)).unwrap().text(100).unwrap();
    assert_eq!(here(), "here");
    drop(_gateway);
    answers.join().unwrap();

    // As SIGKILL leaves it: a socket without anybody.
    drop(std::os::unix::net::UnixListener::bind(folder.socket()).unwrap());
    let (_gateway, questions) = gateway(vec![Door::socket(&folder.socket()).unwrap()]);
    std::thread::spawn(move || {
        for (_, reply) in &questions {
            reply.send(Answer::text("here"));
        }
    });
    assert_eq!(here(), "here");
}

#[test]
fn the_port_takes_questions_from_this_machine_alone() {
    let door = Door::port("127.0.0.1:0".parse().unwrap(), vec!["bot.internal".into()], None).unwrap();
    let address = door.address().unwrap();
    let (_gateway, questions) = gateway(vec![door]);
    std::thread::spawn(move || {
        for (_, reply) in &questions {
            reply.send(Answer { kind: Kind::Prometheus, ..Answer::text("plimsoll_up 1\n") });
        }
    });
    let said = |method: &str, path: &str, headers: &str| {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{method} {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n").unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    };
    let fine = said("GET", "/metrics", "host: localhost\r\n");
    assert!(fine.starts_with("HTTP/1.1 200 ") && fine.ends_with("plimsoll_up 1\n"), "{fine}");
    assert!(fine.contains("content-type: text/plain; version=0.0.4"), "{fine}");
    assert!(said("GET", "/metrics", "host: bot.internal:7070\r\n").starts_with("HTTP/1.1 200 "));
    assert!(said("GET", "/metrics", "host: evil.test\r\n").starts_with("HTTP/1.1 403 "));
    assert!(said("GET", "/metrics", "host: localhost\r\norigin: http://evil.test\r\n").starts_with("HTTP/1.1 403 "));
    // Commands and logs are the owner's, and the owner has the socket.
    assert!(said("POST", "/api/v1/down", "host: localhost\r\ncontent-length: 0\r\n").starts_with("HTTP/1.1 403 "));
    assert!(said("GET", "/api/v1/logs", "host: localhost\r\n").starts_with("HTTP/1.1 403 "));
}

/// The mode keeps strangers out; should somebody open it, the peer's user does.
#[test]
fn a_stranger_is_not_answered_even_where_the_mode_lets_it_in() {
    if !rustix::process::geteuid().is_root() {
        return; // nobody else can be played
    }
    let folder = Folder::new("strangers");
    let (_gateway, questions) = gateway(vec![Door::socket(&folder.socket()).unwrap()]);
    std::thread::spawn(move || {
        for (_, reply) in &questions {
            reply.send(Answer::text("here"));
        }
    });
    let curl = |user: &str| {
        let mut curl = command("setpriv");
        curl.args([
            "--reuid",
            user,
            "--clear-groups",
            "curl",
            "--silent",
            "--max-time",
            "60",
            "http://localhost/health",
        ]);
        let output = curl.arg("--unix-socket").arg(folder.socket()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(curl("0"), "here");
    std::fs::set_permissions(folder.socket(), std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(curl("65534"), "");
    assert_eq!(curl("0"), "here");
}

#[expect(clippy::disallowed_methods, reason = "the one place here that starts a process")]
fn command(program: &str) -> std::process::Command {
    std::process::Command::new(program)
}
