//! A stack with one pool, whoever asks it, and who counts its processes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use plimsoll_kernel::procfs::Process;
use serde_json::{Value, json};

use crate::harness::{Options, TAG, eventually};
use crate::http::{self, Reply};
use crate::stack::doors::free_port;
use crate::stack::world::{Check, World, ensure};

/// The pool's name.
pub(super) const POOL: &str = "bot";

/// Between two counts.
const EVERY: Duration = Duration::from_millis(2);

/// A stack with one pool.
pub(super) struct Scene {
    pub(super) world: World,
    pub(super) client: Client,
    /// The machine is emulated.
    pub(super) is_guest: bool,
    options: Options,
    /// Further lines at the top of the file.
    pub(super) top: String,
    most: usize,
    count: Option<Count>,
}

/// Counts the pool's processes again and again.
struct Count {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(usize, u64)>,
}

/// One who asks at the gateway's port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub(super) port: u16,
}

/// An answer that is being streamed.
pub(super) struct Streamed {
    stream: TcpStream,
    heard: Vec<u8>,
}

impl Scene {
    pub(super) fn new(options: &Options) -> Self {
        let client = Client { port: free_port() };
        Self {
            world: World::new(options),
            client,
            is_guest: options.flag("--guest"),
            options: options.clone(),
            top: String::new(),
            most: 0,
            count: None,
        }
    }

    /// Another machine's: with directories and a port of its own.
    pub(super) fn another(&self) -> Self {
        Self::new(&self.options)
    }

    /// Writes a file with one pool of this program's agent: its protocol, the agent's further words (`, --ids`), and further
    /// keys, each `key: value, `.
    pub(super) fn write(&self, protocol: &str, words: &str, keys: &str) {
        self.write_with(protocol, words, keys, "");
    }

    /// The same, with further keys of `gateway:`.
    pub(super) fn write_with(&self, protocol: &str, words: &str, keys: &str, gateway: &str) {
        let (port, line) = (self.client.port, if keys.contains("mem_limit") { "" } else { "mem_limit: 64m, " });
        // A tag is how whoever is left is found, and an agent sees of our variables only what is listed.
        self.world.write(&format!(
            "budget: {{ memory: 512m }}\n{}\
             gateway: {{ listen: \"127.0.0.1:{port}\"{gateway} }}\n\
             pools:\n  {POOL}: {{ {line}{keys}pass_environment: [{TAG}, SHOWN], protocol: {protocol}, \
             command: [$ME, agent, --protocol, {protocol}{words}] }}\n",
            self.top,
        ));
    }

    /// Starts what was written, and from then on counts: `most` processes at once.
    pub(super) fn up(&mut self, most: usize) -> Check {
        self.most = most;
        self.world.up()?;
        let port = self.client.port;
        self.world.until("the gateway listens", |_| TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        let (census, stop) = (self.world.census(), Arc::new(AtomicBool::new(false)));
        let over = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut top, mut looks) = (0, 0);
            let mut is_last = false;
            // Once more at the end: what was started last is seen as well.
            while !std::mem::replace(&mut is_last, over.load(Ordering::Relaxed)) {
                top = top.max(census.count().len());
                looks += 1;
                std::thread::sleep(EVERY);
            }
            (top, looks)
        });
        self.count = Some(Count { stop, thread });
        Ok(())
    }

    /// Writes and starts a pool.
    pub(super) fn up_with(&mut self, protocol: &str, words: &str, keys: &str, most: usize) -> Check {
        self.write(protocol, words, keys);
        self.up(most)
    }

    /// There were never too many processes.
    pub(super) fn end_count(&mut self) -> Check {
        let Some(count) = self.count.take() else { return Ok(()) };
        count.stop.store(true, Ordering::Relaxed);
        let (top, looks) = count.thread.join().map_err(|_| "the count broke off".to_owned())?;
        ensure!(top <= self.most, "{top} processes at once, and {} are the most; {looks} looks", self.most);
        // Whoever counts has to see something, or it proves nothing.
        let started = self.world.events_of("started", POOL).len();
        ensure!(looks > 0 && (top > 0 || started == 0), "none of {started} processes was seen in {looks} looks");
        Ok(())
    }

    /// Plimsoll itself knows of none that it could not end.
    pub(super) fn no_survivors(&self) -> Check {
        let pool = self.pool();
        ensure!(pool["survivors"] == 0, "{pool}");
        Ok(())
    }

    /// The pool's row.
    pub(super) fn pool(&self) -> Value {
        let status = self.world.status().unwrap_or_default();
        status["pools"].as_array().into_iter().flatten().find(|row| row["name"] == POOL).cloned().unwrap_or_default()
    }

    /// All sessions, as the control socket lists them.
    pub(super) fn sessions(&self) -> Vec<Value> {
        let asked = http::ask_socket(&self.world.path("run/control.sock"), "GET", "/api/v1/sessions");
        let answer = asked.ok().and_then(|(_, body)| serde_json::from_str::<Value>(&body).ok()).unwrap_or_default();
        answer["sessions"].as_array().cloned().unwrap_or_default()
    }

    /// Waits for something about the pool's row.
    pub(super) fn until_pool(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Check {
        let mut last = Value::Null;
        let holds = eventually(|| {
            last = self.pool();
            condition(&last) || {
                std::thread::sleep(Duration::from_millis(5));
                false
            }
        });
        ensure!(holds, "it never came to this: {what}: {last} {:?}\n{}", self.sessions(), self.world.story());
        Ok(())
    }

    /// Asks in a conversation: the answer.
    pub(super) fn say(&self, key: &str, text: &str) -> Result<String, String> {
        said(&self.client.ask(Some(key), text)?).map_err(|why| format!("{why}\n{}", self.world.story()))
    }

    /// The process of a conversation, by what it says itself; alive now.
    pub(super) fn process(&self, key: &str) -> Result<Process, String> {
        let pid = self.say(key, "pid")?;
        let pid = pid.parse().map_err(|_| format!("no pid: {pid}"))?;
        Process::of(pid).map_err(|error| format!("{pid}: {error}"))
    }

    /// Waits until a session's end is told: its row in the journal.
    pub(super) fn wait_closed(&self, why: &str) -> Result<Value, String> {
        let mut found = Value::Null;
        let closed = |world: &World| {
            let rows = world.events_of("session_closed", POOL);
            rows.into_iter().rfind(|row| row["why"].as_str().is_some_and(|words| words.contains(why)))
        };
        self.world.until(&format!("a session is closed: {why}"), |world| {
            found = closed(world).unwrap_or_default();
            !found.is_null()
        })?;
        Ok(found)
    }
}

impl Client {
    /// A chat request's body.
    pub(super) fn body(text: &str, stream: bool) -> Vec<u8> {
        let body = json!({"model": POOL, "stream": stream, "messages": [{"role": "user", "content": text}]});
        body.to_string().into_bytes()
    }

    /// Posts a chat request.
    pub(super) fn post(self, headers: &[(&str, &str)], body: &[u8]) -> Result<Reply, String> {
        http::post(self.port, "/v1/chat/completions", headers, body).map_err(|error| error.to_string())
    }

    /// Asks, in a conversation or in none.
    pub(super) fn ask(self, key: Option<&str>, text: &str) -> Result<Reply, String> {
        let key = key.map(|key| ("x-session-id", key));
        self.post(key.as_slice(), &Self::body(text, false))
    }

    /// The same from a thread.
    pub(super) fn later(self, key: Option<&str>, text: &str) -> JoinHandle<Result<Reply, String>> {
        let (key, text) = (key.map(str::to_owned), text.to_owned());
        std::thread::spawn(move || self.ask(key.as_deref(), &text))
    }

    /// Asks for a stream.
    pub(super) fn stream(self, key: &str, text: &str) -> Result<Streamed, String> {
        let request =
            http::request(self.port, "POST", "/v1/chat/completions", &[("x-session-id", key)], &Self::body(text, true));
        let mut stream = http::dial(self.port).map_err(|error| error.to_string())?;
        stream.write_all(&request).map_err(|error| error.to_string())?;
        Ok(Streamed { stream, heard: Vec::new() })
    }

    /// `GET /health`: status and body.
    pub(super) fn health(self) -> Result<(u16, Value), String> {
        let answer = http::get(&format!("http://127.0.0.1:{}/health", self.port));
        let (status, body) = answer.map_err(|error| error.to_string())?;
        Ok((status, serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?))
    }
}

impl Streamed {
    /// Hears until some words came.
    pub(super) fn until(&mut self, words: &str) -> Check {
        let mut buffer = [0; 4096];
        while !self.heard.windows(words.len()).any(|part| part == words.as_bytes()) {
            let count = self.stream.read(&mut buffer).map_err(|error| format!("no {words:?}: {error}"))?;
            ensure!(count > 0, "no {words:?}: {}", String::from_utf8_lossy(&self.heard));
            self.heard.extend_from_slice(&buffer[..count]);
        }
        Ok(())
    }

    /// Hears it to its end: the events.
    pub(super) fn events(mut self) -> Result<Vec<Value>, String> {
        // What has come is the beginning of what there is to read.
        let heard = std::mem::take(&mut self.heard);
        let reply = http::exchange(Resumed { heard: &heard, at: 0, stream: &mut self.stream }, b"");
        let reply = reply.map_err(|error| error.to_string())?;
        ensure!(reply.status == 200, "{reply:?}");
        ensure!(reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream")), "{reply:?}");
        let text = reply.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        Ok(data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| Value::from(data))).collect())
    }
}

/// What was read already, then the rest.
struct Resumed<'r> {
    heard: &'r [u8],
    at: usize,
    stream: &'r mut TcpStream,
}

impl Read for Resumed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut left = &self.heard[self.at..];
        if left.is_empty() {
            return self.stream.read(buffer);
        }
        let count = left.read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

impl Write for Resumed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

/// The text of an answer, which has to be one.
pub(super) fn said(reply: &Reply) -> Result<String, String> {
    ensure!(reply.status == 200, "{} {}", reply.status, reply.text());
    let body: Value = serde_json::from_slice(&reply.body).map_err(|error| format!("{error}: {}", reply.text()))?;
    let text = body["choices"][0]["message"]["content"].as_str();
    text.map(str::to_owned).ok_or_else(|| format!("no answer: {body}"))
}

/// All words of a stream together.
pub(super) fn words(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

/// An error of the API's: all four keys are there, and this is its status. Its message.
pub(super) fn refused(reply: &Reply, status: u16) -> Result<String, String> {
    ensure!(reply.status == status, "{} instead of {status}: {}", reply.status, reply.text());
    let body: Value = serde_json::from_slice(&reply.body).map_err(|error| format!("{error}: {}", reply.text()))?;
    let error = body["error"].as_object().ok_or_else(|| format!("no error: {body}"))?;
    for key in ["message", "type", "param", "code"] {
        ensure!(error.contains_key(key), "no `{key}`: {body}");
    }
    if matches!(status, 429 | 503) {
        let after = reply.header("retry-after").and_then(|after| after.parse::<u32>().ok());
        ensure!(after.is_some_and(|after| (1..=120).contains(&after)), "Retry-After {after:?}: {reply:?}");
    }
    Ok(error["message"].as_str().unwrap_or_default().to_owned())
}

/// Waits for who asked from a thread.
pub(super) fn joined(asker: JoinHandle<Result<Reply, String>>) -> Result<Reply, String> {
    asker.join().map_err(|_| "an asker broke off".to_owned())?
}
