//! A service's port before real processes, asked by real clients.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "test code")]

mod world;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use plimsoll_gateway::{Backend, GatewayError, Limits, State, Told};
use world::{PATIENCE, Replica, World, command, exchange, get, post, read_until, split, status, wait_until};

/// Also what the tests below start as a replica: this program again, for this test alone, with a port to listen at.
#[test]
fn a_replica_answers_by_itself() {
    if world::is_replica() {
        return world::replica();
    }
    let replica = Replica::start();
    assert_eq!(replica.ask("/who"), replica.name());
}

fn curl(arguments: &[&str]) -> String {
    let output =
        command("curl").args(["--silent", "--show-error", "--max-time", "60"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "curl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn requests_go_round_and_to_the_least_busy() {
    let replicas = [Replica::start(), Replica::start(), Replica::start()];
    let world = World::before(&replicas);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..30 {
        *counts.entry(world.get("/who").1).or_default() += 1;
    }
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [10, 10, 10]);

    // Two are busy: everything goes to the third.
    std::thread::scope(|scope| {
        let waits: Vec<_> = (0..2).map(|_| scope.spawn(|| world.get("/wait"))).collect();
        world.until("two busy replicas", |tally| tally.outstanding == 2);
        let free: Vec<String> = (0..10).map(|_| world.get("/who").1).collect();
        assert!(free.iter().all(|name| *name == free[0]), "{free:?}");
        for replica in &replicas {
            replica.ask("/next");
        }
        waits.into_iter().for_each(|wait| assert_eq!(wait.join().unwrap(), (200, "waited".into())));
    });
    let tally = world.tally();
    assert_eq!((tally.responses, tally.retries, tally.outstanding), ([0, 42, 0, 0, 0], 0, 0));
    assert_eq!(tally.latency.iter().sum::<u64>(), 42);
}

#[test]
fn a_spare_is_asked_when_there_is_no_other() {
    let replicas = [Replica::start(), Replica::start()];
    let world = World::new(Limits::default());
    let spare = Backend { state: State::Spare, ..replicas[0].up() };
    world.gateway.route("api", vec![spare, replicas[1].up()]);
    assert!((0..6).all(|_| world.get("/who").1 == replicas[1].name()));
    world.gateway.route("api", vec![spare]);
    assert_eq!(world.get("/who").1, replicas[0].name());
}

#[test]
fn curl_speaks_both_versions() {
    let replica = Replica::start();
    let world = World::before([&replica]);
    let url = |path: &str| format!("http://{}{path}", world.address);
    let upload = std::env::temp_dir().join(format!("plimsoll-gateway-upload-{}", std::process::id()));
    std::fs::write(&upload, vec![b'x'; 3 << 20]).unwrap();
    let data = format!("@{}", upload.display());
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        assert_eq!(curl(&[version, &url("/who")]), replica.name());
        let echo = curl(&[version, "-H", "Keep-Alive: 5", "-H", "X-Own: 1", "-d", "hello", &url("/echo")]);
        assert!(echo.starts_with("POST /echo HTTP/1.1\n"), "{echo}");
        assert!(echo.ends_with("\nhello"), "{echo}");
        for line in [
            format!("host: {}", world.address),
            "x-forwarded-for: 127.0.0.1".into(),
            "x-forwarded-proto: http".into(),
            format!("x-forwarded-host: {}", world.address),
            "x-own: 1".into(),
            "content-length: 5".into(),
        ] {
            assert_eq!(echo.lines().filter(|one| **one == line).count(), 1, "{line} in {echo}");
        }
        assert!(!echo.contains("keep-alive"), "{echo}");
        // With a length, and without one; the client waits for our 100 first.
        let length = (3 << 20).to_string();
        assert_eq!(curl(&[version, "--data-binary", &data, "-H", "Expect: 100-continue", &url("/length")]), length);
        assert_eq!(curl(&[version, "-T", &data[1..], "-H", "Transfer-Encoding: chunked", &url("/length")]), length);
        assert_eq!(curl(&[version, "-X", "PUT", "-d", "kept", &url("/length")]), "4");
        let head = curl(&[version, "--head", &url("/who")]);
        assert!(head.contains("content-length: ") && head.contains(" 200"), "{head}");
        assert_eq!(
            curl(&[version, "-o", "/dev/null", "-w", "%{http_code} %{http_version}", &url("/none")])
                .split_once(' ')
                .unwrap()
                .0,
            "204"
        );
        assert_eq!(curl(&[version, "-o", "/dev/null", "-w", "%{size_download}", &url("/big")]), (64 << 20).to_string());
        assert_eq!(curl(&[version, &url("/close")]), "ok");
    }
    std::fs::remove_file(&upload).unwrap();
    wait_until("an end of all connections", || world.tally().connections == 0);
    assert_eq!(world.tally().outstanding, 0);
}

#[test]
fn many_streams_share_a_connection() {
    let replicas = [Replica::start(), Replica::start()];
    let world = World::before(&replicas);
    let output = command("h2load")
        .args([
            "--requests",
            "2000",
            "--clients",
            "2",
            "--max-concurrent-streams",
            "100",
            "--connection-active-timeout",
            "60",
        ])
        .arg(format!("http://{}/who", world.address))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
    assert_eq!(world.tally().responses, [0, 2000, 0, 0, 0]);
    wait_until("an end of all connections", || world.tally().connections == 0);
    assert_eq!(world.tally().outstanding, 0);
}

#[test]
fn pythons_own_server_and_its_old_http() {
    let folder = std::env::temp_dir().join(format!("plimsoll-gateway-python-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("page"), "from python").unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut python = command("python3")
        .args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()])
        .current_dir(&folder)
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // It is up before it listens: whoever asks waits for it.
    let world = World::new(Limits { wait: PATIENCE, ..Limits::default() });
    world.gateway.route("api", vec![Backend { instance: 1, port, state: State::Up }]);
    for _ in 0..3 {
        let said = exchange(world.address, "GET /page HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
        assert_eq!(split(&said).1, "from python");
    }
    assert_eq!(world.get("/none").0, 404);
    let _ = python.kill();
    let _ = python.wait();
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn events_arrive_one_by_one() {
    let replica = Replica::start();
    let world = World::before([&replica]);
    let mut stream = world.connect();
    stream.write_all(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let head = read_until(&mut stream, "\r\n\r\n");
    assert!(head.contains("content-type: text/event-stream"), "{head}");
    for event in 0..3 {
        // The next one is sent only when we ask for it: this one was not waiting for company.
        read_until(&mut stream, &format!("data: {event}\n\n"));
        assert_eq!(world.tally().outstanding, 1);
        replica.ask("/next");
    }
    read_until(&mut stream, "0\r\n\r\n");
    wait_until("the end", || world.tally().outstanding == 0);

    // A reader that goes takes its request with it.
    let mut stream = world.connect();
    stream.write_all(b"GET /events HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    read_until(&mut stream, "data: 0\n\n");
    drop(stream);
    wait_until("the end", || world.tally().outstanding == 0);
}

#[test]
fn trailers_and_pipelines() {
    let replica = Replica::start();
    let world = World::before([&replica]);
    let mut stream = world.connect();
    let request = "GET /trailers HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n";
    stream.write_all(request.repeat(2).as_bytes()).unwrap();
    for _ in 0..2 {
        let said = read_until(&mut stream, "0\r\nx-sum: 42\r\n\r\n");
        assert!(said.contains("abc"), "{said}");
    }
    let chunked = "POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n\
        3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n";
    let said = exchange(world.address, chunked);
    assert!(said.ends_with("\nabc") && said.contains("x-sum: 7"), "{said}");
}

const UPGRADE: &[u8] = b"GET /socket HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n";

#[test]
fn a_tunnel_counts_until_it_is_closed() {
    let replica = Replica::start();
    let mut world = World::before([&replica]);
    let mut stream = world.connect();
    // What is sent along with the head belongs to the tunnel.
    stream.write_all(&[UPGRADE, b"first"].concat()).unwrap();
    let head = read_until(&mut stream, "\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket") && head.contains("x-by: me"),
        "{head}"
    );
    read_until(&mut stream, "first");
    for round in 0..100 {
        let words = format!("words {round} {}", "x".repeat(round * 97));
        stream.write_all(words.as_bytes()).unwrap();
        read_until(&mut stream, &words);
    }
    assert_eq!(world.tally().outstanding, 1);
    world.gateway.drain("api", replica.instance, PATIENCE);
    assert_eq!(world.get("/who").0, 503);
    stream.write_all(b"still here").unwrap();
    read_until(&mut stream, "still here");
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap(), 0);
    assert_eq!(world.hear(), Told::Drained { service: "api".into(), instance: replica.instance, left: 0 });
    assert_eq!(world.tally().responses, [1, 0, 0, 0, 1]);

    // A port's end cuts what does not end by itself.
    world.route([&replica]);
    let mut stream = world.connect();
    stream.write_all(UPGRADE).unwrap();
    read_until(&mut stream, "\r\n\r\n");
    world.gateway.close("api", Duration::from_millis(20));
    assert_eq!(world.hear(), Told::Closed { service: "api".into(), left: 1 });
    assert_eq!(stream.read_to_end(&mut Vec::new()).unwrap_or(0), 0);
}

/// The same with the library that people use, on both ends.
#[test]
fn a_websocket_of_nodes_own() {
    // Node has a client of its own; the server's side is a few lines.
    let script = r#"
const http = require('http'), crypto = require('crypto');
const server = http.createServer();
server.on('upgrade', (request, socket) => {
  const accept = crypto.createHash('sha1').update(request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11').digest('base64');
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`);
  socket.on('data', frame => {   // one masked frame of text under 126 bytes, sent back unmasked
    const length = frame[1] & 127, mask = frame.subarray(2, 6), body = frame.subarray(6, 6 + length).map((byte, at) => byte ^ mask[at % 4]);
    if ((frame[0] & 15) === 1) socket.write(Buffer.concat([Buffer.from([0x81, length]), body]));
    else socket.end();
  });
});
server.listen(0, '127.0.0.1', () => console.log('PORT ' + server.address().port));
"#;
    if !command("node")
        .args(["-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"])
        .status()
        .is_ok_and(|status| status.success())
    {
        println!("this node has no WebSocket of its own");
        return;
    }
    let mut server = command("node").args(["-e", script]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut out = server.stdout.take().unwrap();
    let port: u16 = read_until(&mut out, "\n").trim().strip_prefix("PORT ").unwrap().parse().unwrap();
    let world = World::new(Limits::default());
    world.gateway.route("api", vec![Backend { instance: 1, port, state: State::Up }]);
    let client = format!(
        "const s = new WebSocket('ws://{}/'); let n = 0;
        s.onopen = () => s.send('0');
        s.onmessage = m => {{ if (m.data !== String(n)) process.exit(3); n += 1; n < 50 ? s.send(String(n)) : s.close(); }};
        s.onclose = () => process.exit(n === 50 ? 0 : 4); s.onerror = e => process.exit(5);",
        world.address
    );
    let done = command("node").args(["-e", &client]).status().unwrap();
    let _ = server.kill();
    let _ = server.wait();
    assert!(done.success(), "{done}");
}

#[test]
fn one_that_dies_before_it_answers_costs_nothing() {
    let put = |path: &str, body: String| {
        let length = body.len();
        format!("PUT {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}")
    };
    for round in 0..7 {
        let (mut victim, other) = (Replica::start(), Replica::start());
        let world = World::before([&victim, &other]);
        // A kept connection to each.
        assert_eq!((world.get("/who").0, world.get("/who").0), (200, 200));
        let path = format!("/die-if/{}", victim.name());
        let mut names = Vec::new();
        while lives(&victim) {
            let said = match round {
                0..=2 => world.get(&path),
                3 | 4 => {
                    // One that is kept is repeated, one that is too long to be kept is not.
                    let body = if round == 3 { "kept".to_owned() } else { "x".repeat(100 << 10) };
                    let said = exchange(world.address, &put(&path, body));
                    (status(split(&said).0), split(&said).1.to_owned())
                }
                // What is not idempotent is not repeated once it has left.
                _ => post(world.address, &path, "once"),
            };
            names.push(said);
        }
        victim.ended();
        if round < 4 {
            assert!(names.iter().all(|said| *said == (200, other.name())), "{names:?}");
            assert!(world.tally().retries >= 1);
        } else {
            // Perhaps more than one: a dying process's socket takes connections to its last moment.
            assert!(names.iter().any(|said| said.0 == 502), "{names:?}");
            assert!(names.iter().all(|said| said.0 == 502 || *said == (200, other.name())), "{names:?}");
        }
        // Nobody is there any more: everything finds its way, a POST too, for nothing of it was sent.
        for _ in 0..6 {
            assert_eq!(world.get("/who"), (200, other.name()));
            assert_eq!(post(world.address, "/length", "abc"), (200, "3".into()));
        }
    }
}

/// Somebody listens at its port.
fn lives(replica: &Replica) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", replica.port)).is_ok()
}

#[test]
fn one_that_is_killed_from_outside_costs_nothing() {
    let (mut victim, other) = (Replica::start(), Replica::start());
    let world = World::before([&victim, &other]);
    std::thread::scope(|scope| {
        let waits: Vec<_> = (0..8).map(|_| scope.spawn(|| world.get("/wait"))).collect();
        world.until("eight who wait", |tally| tally.outstanding == 8);
        victim.kill();
        world.until("four more at the other", |tally| tally.retries >= 4);
        other.ask("/next");
        waits.into_iter().for_each(|wait| assert_eq!(wait.join().unwrap(), (200, "waited".into())));
    });
}

#[test]
fn a_response_that_began_is_not_begun_again() {
    let (victim, other) = (Replica::start(), Replica::start());
    let world = World::before([&victim]);
    let mut stream = world.connect();
    stream.write_all(b"GET /die-late HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    read_until(&mut stream, "0123456789");
    world.route([&victim, &other]);
    // It dies without an answer to this either.
    let mut nudge = world::connect(std::net::SocketAddr::from(([127, 0, 0, 1], victim.port)));
    let _ = nudge.write_all(b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    wait_until("the end", || world.tally().outstanding == 0);
    assert_eq!(world.tally().retries, 0);
}

#[test]
fn a_request_that_kills_takes_three() {
    let replicas: Vec<Replica> = (0..5).map(|_| Replica::start()).collect();
    let world = World::before(&replicas);
    assert_eq!(world.get("/die").0, 502);
    // The last one closes its connection a moment before its port.
    wait_until("three are dead", || replicas.iter().filter(|replica| lives(replica)).count() == 2);
    assert_eq!(world.tally().retries, 2);
}

#[test]
fn nonsense_is_told_and_not_repeated() {
    let replica = Replica::start();
    let world = World::before([&replica]);
    assert_eq!(world.get("/nonsense"), (502, "the replica's answer is no HTTP\n".into()));
    assert_eq!(world.tally().retries, 0);
}

#[test]
fn without_a_replica_it_says_so_and_while_one_starts_it_waits() {
    let world = World::new(Limits { waiting: 3, wait: PATIENCE, ..Limits::default() });
    let said = exchange(world.address, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    assert!(said.starts_with("HTTP/1.1 503 ") && said.contains("retry-after: 1\r\n"), "{said}");
    assert_eq!(split(&said).1, "no replica is up\n");

    let replica = Replica::start();
    world.gateway.route("api", vec![Backend { state: State::Starting, ..replica.up() }]);
    std::thread::scope(|scope| {
        let waits: Vec<_> = (0..3).map(|_| scope.spawn(|| post(world.address, "/who", ""))).collect();
        world.until("three who wait", |tally| tally.waiting == 3);
        // The queue has a bound.
        assert_eq!(world.get("/who").0, 503);
        world.route([&replica]);
        waits.into_iter().for_each(|wait| assert_eq!(wait.join().unwrap(), (200, replica.name())));
    });
    // Nothing is to be expected any more: nobody waits.
    world.gateway.route("api", vec![Backend { state: State::Starting, ..replica.up() }]);
    std::thread::scope(|scope| {
        let wait = scope.spawn(|| world.get("/who"));
        world.until("one who waits", |tally| tally.waiting == 1);
        world.gateway.route("api", vec![]);
        assert_eq!(wait.join().unwrap().0, 503);
    });
    // Nor at a port that closes.
    let mut closing = World::new(Limits { wait: PATIENCE, ..Limits::default() });
    closing.gateway.route("api", vec![Backend { state: State::Starting, ..replica.up() }]);
    let (address, counters) = closing.gateway.port("api").unwrap();
    let wait = std::thread::spawn(move || get(address, "/who"));
    wait_until("one who waits", || counters.tally().waiting == 1);
    closing.gateway.close("api", PATIENCE);
    assert_eq!(wait.join().unwrap().0, 503);
    assert_eq!(closing.hear(), Told::Closed { service: "api".into(), left: 0 });
    // Nor for ever.
    let brief = World::new(Limits { wait: Duration::from_millis(20), ..Limits::default() });
    brief.gateway.route("api", vec![Backend { state: State::Starting, ..replica.up() }]);
    assert_eq!(brief.get("/who").0, 503);
    assert_eq!((world.tally().refused, brief.tally().refused), (3, 1));
}

#[test]
fn the_only_one_dies_and_comes_back() {
    let mut replica = Replica::start();
    let port = replica.port;
    let world = World::new(Limits { wait: PATIENCE, ..Limits::default() });
    world.route([&replica]);
    let waited = std::thread::scope(|scope| {
        let wait = scope.spawn(|| world.get("/wait"));
        world.until("one who waits", |tally| tally.outstanding == 1);
        replica.kill();
        world.until("another attempt", |tally| tally.retries >= 1);
        // The route has not changed: it was not told of the death yet, and knocks.
        let back = Replica::start_at(port);
        back.ask("/next");
        (wait.join().unwrap(), back.ask("/who"), back.name())
    });
    assert_eq!(waited.0, (200, "waited".into()));
    assert_eq!(waited.1, waited.2);
}

#[test]
fn draining_gives_nothing_new_and_tells_when_it_is_empty() {
    let (goes, stays) = (Replica::start(), Replica::start());
    let world = World::before([&goes]);
    std::thread::scope(|scope| {
        let wait = scope.spawn(|| world.get("/wait"));
        world.until("one who waits", |tally| tally.outstanding == 1);
        world.route([&goes, &stays]);
        world.gateway.drain("api", goes.instance, PATIENCE);
        world.route([&stays]);
        assert!((0..8).all(|_| world.get("/who") == (200, stays.name())));
        assert!(world.is_silent(), "it is not empty");
        goes.ask("/next");
        assert_eq!(wait.join().unwrap(), (200, "waited".into()));
        assert_eq!(world.hear(), Told::Drained { service: "api".into(), instance: goes.instance, left: 0 });
    });
    // One that has nothing is empty at once; so is one that nobody knows; and patience ends.
    world.gateway.drain("api", 4711, PATIENCE);
    assert_eq!(world.hear(), Told::Drained { service: "api".into(), instance: 4711, left: 0 });
    std::thread::scope(|scope| {
        let wait = scope.spawn(|| world.get("/wait"));
        world.until("one who waits", |tally| tally.outstanding == 1);
        world.gateway.drain("api", stays.instance, Duration::from_millis(20));
        assert_eq!(world.hear(), Told::Drained { service: "api".into(), instance: stays.instance, left: 1 });
        stays.ask("/next");
        assert_eq!(wait.join().unwrap(), (200, "waited".into()));
    });
    assert!(world.is_silent(), "told twice");
}

#[test]
fn a_port_closes_when_what_has_begun_is_done() {
    let replica = Replica::start();
    let mut world = World::before([&replica]);
    let (address, counters) = world.gateway.port("api").unwrap();
    let mut idle = world.connect();
    idle.write_all(b"GET /who HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    read_until(&mut idle, &replica.name());
    let wait = std::thread::spawn(move || get(address, "/wait"));
    wait_until("one who waits", || counters.tally().outstanding == 1);
    world.gateway.close("api", PATIENCE);
    // The idle connection is closed, and no new one is taken.
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0);
    wait_until("a closed port", || std::net::TcpStream::connect(address).is_err());
    replica.ask("/next");
    assert_eq!(wait.join().unwrap(), (200, "waited".into()));
    assert_eq!(world.hear(), Told::Closed { service: "api".into(), left: 0 });
    // The address is free again, and what is taken is told by name.
    let again = world.gateway.open("api", address, Limits::default()).unwrap();
    assert_eq!(again, address);
    let taken = world.gateway.open("other", address, Limits::default()).unwrap_err();
    assert!(matches!(taken, GatewayError::Listen { .. }), "{taken}");
    assert!(taken.to_string().contains(&address.to_string()), "{taken}");
}

#[test]
fn the_end_of_all_lets_what_has_begun_finish() {
    let replica = Replica::start();
    let World { gateway, address, .. } = World::before([&replica]);
    let counters = gateway.port("api").unwrap().1;
    let wait = std::thread::spawn(move || get(address, "/wait"));
    wait_until("one who waits", || counters.tally().outstanding == 1);
    let stop = std::thread::spawn(move || gateway.stop(PATIENCE));
    wait_until("a closed port", || std::net::TcpStream::connect(address).is_err());
    replica.ask("/next");
    assert_eq!(wait.join().unwrap(), (200, "waited".into()));
    stop.join().unwrap();
}

#[test]
fn ten_thousand_requests_and_not_one_lost() {
    const REQUESTS: u64 = 10_000;
    let stays = Replica::start();
    let mut victim = Replica::start();
    let world = World::before([&stays, &victim]);
    let (left, done) = (AtomicU64::new(REQUESTS), AtomicBool::new(false));
    let mut deaths = 0;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|client| {
                let (world, left) = (&world, &left);
                scope.spawn(move || {
                    let mut failures = Vec::new();
                    let mut stream = world.connect();
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                        let method = if client % 2 == 0 { "GET" } else { "PUT" };
                        let body = if client % 2 == 0 { "" } else { "content-length: 4\r\n\r\nkept" };
                        let end = if body.is_empty() { "\r\n" } else { "" };
                        write!(stream, "{method} /length HTTP/1.1\r\nhost: a\r\n{body}{end}").unwrap();
                        let head = read_until(&mut stream, "\r\n\r\n");
                        let mut byte = [0];
                        stream.read_exact(&mut byte).unwrap();
                        let expected = if client % 2 == 0 { b'0' } else { b'4' };
                        if status(&head) != 200 || byte[0] != expected {
                            failures.push(head);
                            stream = world.connect();
                        }
                    }
                    failures
                })
            })
            .collect();
        let killer = scope.spawn(|| {
            let mut deaths = 0;
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(30));
                victim.kill();
                deaths += 1;
                // For a while nobody has told the gateway.
                std::thread::sleep(Duration::from_millis(20));
                world.route([&stays]);
                victim = Replica::start();
                world.route([&stays, &victim]);
            }
            deaths
        });
        let failures: Vec<String> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        deaths = killer.join().unwrap();
        assert_eq!(failures, Vec::<String>::new());
    });
    let tally = world.tally();
    println!("{deaths} deaths, {} repeats", tally.retries);
    assert!(deaths > 0);
    assert_eq!(tally.responses, [0, REQUESTS, 0, 0, 0]);
}

#[test]
fn who_sends_too_much_is_told() {
    let replica = Replica::start();
    let world = World::before([&replica]);
    let bomb = |middle: &str| {
        let said = exchange(world.address, &format!("GET {middle}connection: close\r\n\r\n"));
        status(split(&said).0)
    };
    let many: String = (0..150).map(|number| format!("x-{number}: y\r\n")).collect();
    assert_eq!(bomb(&format!("/who HTTP/1.1\r\nhost: a\r\n{many}")), 431);
    assert_eq!(bomb(&format!("/who HTTP/1.1\r\nhost: a\r\nx: {}\r\n", "y".repeat(100 << 10))), 431);
    assert_eq!(bomb(&format!("/{} HTTP/1.1\r\nhost: a\r\n", "y".repeat(9 << 10))), 414);
    assert_eq!(bomb("/who HTTP/1.1\r\n"), 400);
    assert_eq!(bomb("/who HTTP/1.1\r\nhost: a\r\nhost: b\r\n"), 400);
    let both = "POST /length HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
        0\r\n\r\nGET /die HTTP/1.1\r\nhost: a\r\n\r\n";
    let said = exchange(world.address, both);
    assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "a smuggled second request was answered: {said}");
    assert_eq!(status(&exchange(world.address, "CONNECT a:80 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")), 501);
    // HTTP/2 has its own way to say it: the stream is refused, or answered 431.
    let url = format!("http://{}/who", world.address);
    let header = format!("x: {}", "y".repeat(100 << 10));
    let output = command("curl")
        .args(["--silent", "--http2-prior-knowledge", "--max-time", "60", "-w", " %{http_code}", "-H", &header, &url])
        .output()
        .unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).ends_with(" 200"), "{output:?}");
    assert_eq!(world.get("/who"), (200, replica.name()));
}

/// How an HTTP/2 connection begins; settings have to follow.
const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[test]
fn who_is_too_slow_is_let_go() {
    let replica = Replica::start();
    let world = World::new(Limits { head_time: Duration::from_millis(200), ..Limits::default() });
    world.route([&replica]);
    for begin in ["", "P", "PRI * HTTP", PREFACE, "GET /who HTTP/1.1\r\nhost:", "GET /who HTTP/1.1\r\nhost: a\r\n\r\n"]
    {
        let mut slow = world.connect();
        slow.write_all(begin.as_bytes()).unwrap();
        // It is closed without our doing; the last one after its answer, for it sends no other head.
        let mut said = Vec::new();
        let _ = slow.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        assert_eq!(said.ends_with(&replica.name()), begin.contains("host: a"), "{begin:?}: {said:?}");
    }
    // A stream has no such limit, however slow.
    let mut stream = world.connect();
    stream.write_all(b"POST /length HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 3\r\n\r\n").unwrap();
    for byte in b"abc" {
        std::thread::sleep(Duration::from_millis(300));
        stream.write_all(&[*byte]).unwrap();
    }
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("HTTP/1.1 200 ") && said.ends_with('3'), "{said}");
    wait_until("an end of all connections", || world.tally().connections == 0);
}

#[test]
fn one_connection_too_many() {
    let replica = Replica::start();
    let world = World::new(Limits { connections: 4, ..Limits::default() });
    world.route([&replica]);
    let held: Vec<_> = (0..4).map(|_| world.connect()).collect();
    world.until("four connections", |tally| tally.connections == 4);
    let (code, words) = world.get("/who");
    assert_eq!((code, words.as_str()), (503, "too many connections\n"));
    assert_eq!(world.tally().connections_refused, 1);
    drop(held);
    world.until("none", |tally| tally.connections == 0);
    assert_eq!(world.get("/who").0, 200);
}

#[test]
fn a_reader_that_does_not_read_holds_the_replica_back() {
    let replica = Replica::start();
    let world = World::before([&replica]);
    let mut stream = world.connect();
    stream.write_all(b"GET /big HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    read_until(&mut stream, "\r\n\r\n");
    // 64 MiB are on their way, and nobody reads: what we hold of it must not grow with it.
    std::thread::sleep(Duration::from_millis(500));
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(resident * 4096 < 48 << 20, "{} MiB", (resident * 4096) >> 20);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 64 << 20);
}
