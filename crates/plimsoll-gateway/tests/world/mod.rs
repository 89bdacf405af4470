//! What the tests stand on: replicas as real processes that can be killed, a gateway before them, and plain clients.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use plimsoll_gateway::{Backend, Gateway, Limits, State, Tally, Told};

/// Whoever waits longer for something has found a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The one place here that starts a process.
#[expect(clippy::disallowed_methods, reason = "replicas and real clients, from outside")]
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> std::process::Command {
    std::process::Command::new(program)
}

/// A replica: this test's own binary in a role. Killed when dropped.
pub(crate) struct Replica {
    pub(crate) instance: u64,
    pub(crate) port: u16,
    child: Child,
    /// Open as long as it lives: it may still say something.
    _said: ChildStdout,
}

/// Tells a process that it is a replica, and where it listens.
const PORT: &str = "PLIMSOLL_TEST_PORT";

static INSTANCES: AtomicU64 = AtomicU64::new(70_001);

impl Replica {
    pub(crate) fn start() -> Self {
        Self::start_at(0)
    }

    /// On a port that is known before; 0 for a free one.
    pub(crate) fn start_at(port: u16) -> Self {
        let instance = INSTANCES.fetch_add(1, Ordering::Relaxed);
        let mut child = command(std::env::current_exe().unwrap())
            .args(["a_replica_answers_by_itself", "--exact", "--nocapture"])
            .env(PORT, port.to_string())
            .env("PLIMSOLL_TEST_INSTANCE", instance.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = child.stdout.take().unwrap();
        read_until(&mut said, "PORT ");
        let port = read_until(&mut said, "\n").trim().parse().unwrap();
        Self { instance, port, child, _said: said }
    }

    pub(crate) fn name(&self) -> String {
        self.instance.to_string()
    }

    pub(crate) fn up(&self) -> Backend {
        Backend { instance: self.instance, port: self.port, state: State::Up }
    }

    /// SIGKILL, and reaped: nobody listens on its port any more.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits for its own end.
    pub(crate) fn ended(&mut self) {
        self.child.wait().unwrap();
    }

    /// Asks it past the gateway.
    pub(crate) fn ask(&self, path: &str) -> String {
        get(SocketAddr::from(([127, 0, 0, 1], self.port)), path).1
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A gateway with one service, `api`.
pub(crate) struct World {
    pub(crate) gateway: Gateway,
    pub(crate) address: SocketAddr,
    told: Mutex<Receiver<Told>>,
}

impl World {
    pub(crate) fn new(limits: Limits) -> Self {
        let (tell, told) = sync_channel(1024);
        let mut gateway = Gateway::start(move |word| tell.try_send(word).unwrap(), |_| true, || {}).unwrap();
        let address = gateway.open("api", "127.0.0.1:0".parse().unwrap(), limits).unwrap();
        Self { gateway, address, told: Mutex::new(told) }
    }

    pub(crate) fn before<'a>(replicas: impl IntoIterator<Item = &'a Replica>) -> Self {
        let world = Self::new(Limits::default());
        world.route(replicas);
        world
    }

    pub(crate) fn route<'a>(&self, replicas: impl IntoIterator<Item = &'a Replica>) {
        self.gateway.route("api", replicas.into_iter().map(Replica::up).collect());
    }

    pub(crate) fn tally(&self) -> Tally {
        self.gateway.port("api").unwrap().1.tally()
    }

    /// Waits until the counters say so.
    pub(crate) fn until(&self, what: &str, is_so: impl Fn(Tally) -> bool) {
        wait_until(what, || is_so(self.tally()));
    }

    pub(crate) fn hear(&self) -> Told {
        self.told.lock().unwrap().recv_timeout(PATIENCE).expect("a word")
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.told.lock().unwrap().try_recv().is_err()
    }

    /// A GET's status and body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        get(self.address, path)
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address)
    }
}

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / 2 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("{what} never came");
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let said = exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"));
    let (head, body) = split(&said);
    (status(head), body.to_owned())
}

pub(crate) fn post(address: SocketAddr, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let request =
        format!("POST {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    let said = exchange(address, &request);
    let (head, body) = split(&said);
    (status(head), body.to_owned())
}

/// Sends it and reads until the other side closes.
pub(crate) fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = connect(address);
    // A refusal may come, and the connection go, before all was sent.
    let _ = stream.write_all(request.as_bytes());
    let mut said = Vec::new();
    let _ = stream.read_to_end(&mut said);
    String::from_utf8_lossy(&said).into_owned()
}

pub(crate) fn split(said: &str) -> (&str, &str) {
    said.split_once("\r\n\r\n").unwrap_or((said, ""))
}

pub(crate) fn status(head: &str) -> u16 {
    head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status: {head:?}"))
}

/// Reads from `stream` until `end` was read.
pub(crate) fn read_until(stream: &mut impl Read, end: &str) -> String {
    let mut said = Vec::new();
    let mut byte = [0];
    while !said.ends_with(end.as_bytes()) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "it ended after {:?}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Whether this process was started as a replica.
pub(crate) fn is_replica() -> bool {
    std::env::var_os(PORT).is_some()
}

/// What a replica does: HTTP/1.1 by hand, so that it can also do wrong.
pub(crate) fn replica() {
    let port: u16 = std::env::var(PORT).unwrap().parse().unwrap();
    let name = std::env::var("PLIMSOLL_TEST_INSTANCE").unwrap();
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    println!("PORT {}", listener.local_addr().unwrap().port());
    std::io::stdout().flush().unwrap();
    let steps = Arc::new((Mutex::new(0u64), Condvar::new()));
    for stream in listener.incoming() {
        let (stream, name, steps) = (stream.unwrap(), name.clone(), steps.clone());
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while let Some(request) = read_request(&mut reader) {
                let is_last = request.headers.get("connection").is_some_and(|what| what == "close");
                let served = serve(&request, stream.try_clone().unwrap(), &mut reader, &name, &steps);
                if is_last || served.is_none() {
                    return;
                }
            }
        });
    }
}

struct Asked {
    line: String,
    path: String,
    head: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|&read| read > 0)?;
    let (mut head, mut headers) = (String::new(), HashMap::new());
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok().filter(|&read| read > 0)?;
        if header == "\r\n" {
            break;
        }
        head.push_str(&header);
        let (name, value) = header.trim_end().split_once(": ")?;
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = Vec::new();
    if let Some(length) = headers.get("content-length") {
        body.resize(length.parse().ok()?, 0);
        reader.read_exact(&mut body).ok()?;
    } else if headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size).ok()?;
            let size = usize::from_str_radix(size.trim(), 16).ok()?;
            let mut chunk = vec![0; size];
            reader.read_exact(&mut chunk).ok()?;
            body.extend(chunk);
            let mut end = String::new();
            while reader.read_line(&mut end).ok()? > 2 && size == 0 {
                head.push_str(&std::mem::take(&mut end));
            }
            if size == 0 {
                break;
            }
        }
    }
    let line = line.trim_end().to_owned();
    let path = line.split(' ').nth(1)?.to_owned();
    Some(Asked { line, path, head, headers, body })
}

/// Answers one request; `None` ends the connection.
fn serve(
    asked: &Asked,
    mut stream: TcpStream,
    reader: &mut BufReader<TcpStream>,
    name: &str,
    steps: &(Mutex<u64>, Condvar),
) -> Option<()> {
    let (count, moved) = steps;
    let step = |beyond: u64| drop(moved.wait_while(count.lock().unwrap(), |count| *count <= beyond).unwrap());
    let mut say = |text: &str| stream.write_all(text.as_bytes()).ok();
    let whole = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    match asked.path.as_str() {
        "/who" => say(&whole(name)),
        "/echo" => {
            let body = String::from_utf8_lossy(&asked.body);
            say(&whole(&format!("{}\n{}\n{body}", asked.line, asked.head.replace('\r', ""))))
        }
        "/length" => say(&whole(&asked.body.len().to_string())),
        "/die" => std::process::abort(),
        path if path.strip_prefix("/die-if/") == Some(name) => std::process::abort(),
        path if path.starts_with("/die-if/") => say(&whole(name)),
        "/die-late" => {
            say("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789")?;
            step(0);
            std::process::abort()
        }
        "/next" => {
            *count.lock().unwrap() += 1;
            moved.notify_all();
            say(&whole("moved"))
        }
        "/wait" => {
            step(0);
            say(&whole("waited"))
        }
        "/events" => {
            say("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")?;
            for event in 0..3 {
                let text = format!("data: {event}\n\n");
                say(&format!("{:x}\r\n{text}\r\n", text.len()))?;
                step(event);
            }
            say("0\r\n\r\n")
        }
        "/trailers" => say(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n",
        ),
        "/close" => {
            say("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok")?;
            None
        }
        "/nonsense" => {
            say("this is no HTTP\r\n\r\n")?;
            None
        }
        "/none" => say("HTTP/1.1 204 No Content\r\n\r\n"),
        "/big" => {
            say(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 64 << 20))?;
            let chunk = "x".repeat(1 << 20);
            (0..64).try_for_each(|_| say(&chunk))
        }
        "/socket" => {
            assert_eq!(asked.headers.get("upgrade").map(String::as_str), Some("websocket"));
            say("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\nx-by: me\r\n\r\n")?;
            let mut buffer = [0; 1024];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                stream.write_all(&buffer[..read]).ok()?;
            }
            None
        }
        _ => say("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
    }
}
