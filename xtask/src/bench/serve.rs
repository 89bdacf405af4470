//! What pools and the gateway cost: turns through `plimsoll up` against the same agent behind bare pipes, and against a
//! wrapper as people write it (FastAPI and uvicorn, one agent a conversation).
//!
//! The agent is compiled and answers at once, so that what is measured is what lies before it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::procfs;
use rustix::event::epoll;

use super::run::{children, ticks};
use super::{Row, median, milliseconds, print, ratio};
use crate::exec::{Failure, Guarded, command};
use crate::{peers, workspace};

/// Conversations at a time.
const KEYS: usize = 64;

type Part = (&'static str, fn(&Bench) -> Result<Vec<Row>, Failure>);

const PARTS: [Part; 6] = [
    ("warm", |bench| bench.warm().map(|row| vec![row])),
    ("cold", |bench| bench.cold().map(|row| vec![row])),
    ("latency", |bench| bench.latency().map(|row| vec![row])),
    ("throughput", Bench::throughput),
    ("streams", Bench::streams),
    ("slope", |bench| bench.slope().map(|row| vec![row])),
];

/// `cargo xtask bench serve [--quick] [PART…]`.
pub(super) fn main(args: &[String]) -> Result<ExitCode, Failure> {
    let (chosen, quick) = super::chosen(args, PARTS.iter().map(|(name, _)| *name))?;
    crate::packages::install(crate::packages::BENCHMARKS)?;
    println!("{}\n", super::run::machine());
    let binaries = workspace::build_release()?;
    let agent = vec![binaries.testkit.display().to_string(), "agent".into(), "--protocol".into(), "jsonl".into()];
    let bench = Bench { plimsoll: binaries.plimsoll, agent, quick };
    let (mut rows, mut failed): (Vec<Row>, Vec<String>) = Default::default();
    for (name, measure) in PARTS.iter().filter(|(name, _)| chosen.contains(name)) {
        eprintln!("measuring: {name}");
        match measure(&bench) {
            Ok(more) => rows.extend(more),
            Err(why) => failed.push(format!("{name}: {why}")),
        }
    }
    print(&rows);
    failed.iter().for_each(|why| println!("not measured: {why}"));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Bench {
    plimsoll: PathBuf,
    agent: Vec<String>,
    quick: bool,
}

/// A `plimsoll up` with one pool.
struct Stack {
    up: Guarded,
    dir: PathBuf,
    address: SocketAddr,
}

impl Stack {
    fn start(bench: &Bench, pool: &str) -> Result<Self, Failure> {
        let dir = workspace::scratch(&format!("serve-{}", std::process::id()))?;
        std::fs::create_dir_all(&dir).map_err(Failure::on("make", &dir))?;
        let address = free_address()?;
        let agent: Vec<String> = bench.agent.iter().map(|word| format!("{word:?}")).collect();
        let file = format!(
            "budget: {{ memory: 70% }}\npools:\n  bench:\n    command: [{}]\n    protocol: jsonl\n    mem_limit: 64m\n    \
             queue: {{ max: 10000, timeout: 60s }}\n{pool}\ngateway: {{ listen: \"{address}\" }}\n",
            agent.join(", ")
        );
        let path = dir.join("plimsoll.yaml");
        std::fs::write(&path, file).map_err(Failure::on("write", &path))?;
        let mut up = command(&bench.plimsoll);
        up.arg("up").arg("-f").arg(&path).stderr(Stdio::null()).stdout(Stdio::null());
        up.env("PLIMSOLL_STATE_DIR", dir.join("state")).env("PLIMSOLL_RUNTIME_DIR", dir.join("run"));
        let stack = Self { up: Guarded::start(&mut up)?, dir, address };
        let began = Instant::now();
        while Client::connect(address).is_err() {
            if began.elapsed() > Duration::from_secs(20) {
                return Err(Failure("plimsoll up does not answer".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(stack)
    }

    /// The guard and the supervisor.
    fn own(&self) -> Vec<i32> {
        let guard = self.up.pid();
        std::iter::once(guard).chain(children(guard).into_iter().take(1)).collect()
    }

    fn resident(&self) -> u64 {
        let rollup = |pid: i32| {
            let mut buffer = [0; 4096];
            procfs::read_of(pid, "smaps_rollup", &mut buffer).ok().and_then(procfs::parse_smaps_rollup)
        };
        self.own().into_iter().filter_map(rollup).map(|rollup| rollup.rss).sum()
    }

    fn stop(mut self) {
        self.up.terminate();
        let _ = self.up.wait_for(Duration::from_secs(60));
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn free_address() -> Result<SocketAddr, Failure> {
    let bound = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    bound.map_err(|error| Failure(format!("no port: {error}")))
}

/// A client with one connection.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { stream: BufReader::with_capacity(16 << 10, stream) })
    }

    fn send(&mut self, key: &str, stream: bool, text: &str) -> std::io::Result<()> {
        self.send_with("", key, stream, text)
    }

    /// As [`Self::send`], with more lines in its head; `text` as it stands in JSON.
    fn send_with(&mut self, head: &str, key: &str, stream: bool, text: &str) -> std::io::Result<()> {
        let body = format!(
            "{{\"model\":\"bench\",\"stream\":{stream},\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}}]}}"
        );
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             x-session-id: {key}\r\n{head}content-length: {}\r\n\r\n",
            body.len()
        );
        self.stream.get_mut().write_all((head + &body).as_bytes())
    }

    /// Asks, and reads the whole answer: its status.
    fn ask(&mut self, key: &str) -> std::io::Result<u16> {
        self.send(key, false, "hello")?;
        let head = Head::read(&mut self.stream)?;
        let status = head.first.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0);
        head.skip_body(&mut self.stream)?;
        Ok(status)
    }

    /// Closes a conversation's session.
    fn close(&mut self, key: &str) -> Result<(), Failure> {
        let asked = format!("DELETE /api/v1/sessions/{key} HTTP/1.1\r\nhost: localhost\r\n\r\n");
        let sent = self.stream.get_mut().write_all(asked.as_bytes());
        let head = sent.and_then(|()| Head::read(&mut self.stream)).map_err(|error| Failure(error.to_string()))?;
        head.skip_body(&mut self.stream).map_err(|error| Failure(error.to_string()))
    }

    fn ask_well(&mut self, key: &str) -> Result<Duration, Failure> {
        let began = Instant::now();
        match self.ask(key) {
            Ok(200) => Ok(began.elapsed()),
            Ok(status) => Err(Failure(format!("a turn was answered with {status}"))),
            Err(error) => Err(Failure(format!("a turn was not answered: {error}"))),
        }
    }
}

/// What comes before a body, of a request or an answer.
struct Head {
    first: String,
    length: usize,
}

impl Head {
    fn read(stream: &mut impl BufRead) -> std::io::Result<Self> {
        let (mut head, mut line) = (Self { first: String::new(), length: 0 }, String::new());
        loop {
            line.clear();
            if stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let text = line.trim_end();
            if text.is_empty() {
                return Ok(head);
            }
            if head.first.is_empty() {
                text.clone_into(&mut head.first);
            } else if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                head.length = value.trim().parse().unwrap_or(0);
            }
        }
    }

    fn skip_body(&self, stream: &mut impl Read) -> std::io::Result<()> {
        stream.read_exact(&mut vec![0; self.length])
    }
}

/// The same agent behind bare pipes.
struct Bare {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Bare {
    fn start(agent: &[String]) -> Result<Self, Failure> {
        let mut start = command(&agent[0]);
        start.args(&agent[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = start.spawn().map_err(|error| Failure(format!("{}: {error}", agent[0])))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure("the agent has no pipes".to_owned()));
        };
        Ok(Self { child, stdin, stdout: BufReader::new(stdout) })
    }

    fn ask(&mut self) -> Result<(), Failure> {
        let turn = "{\"type\":\"turn\",\"id\":\"1\",\"session\":\"s\",\"messages\":[{\"role\":\"user\",\"content\":\"hello\"}]}\n";
        let failed = |error: std::io::Error| Failure(format!("the bare agent does not answer: {error}"));
        self.stdin.write_all(turn.as_bytes()).map_err(failed)?;
        let mut line = String::new();
        while !line.contains("\"final\"") {
            line.clear();
            if self.stdout.read_line(&mut line).map_err(failed)? == 0 {
                return Err(Failure("the bare agent has ended".to_owned()));
            }
        }
        Ok(())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

impl Bench {
    fn count(&self, full: usize) -> usize {
        if self.quick { full / 5 } else { full }
    }

    /// A first turn that finds a warm process, less one that finds its own.
    fn warm(&self) -> Result<Row, Failure> {
        let stack = Stack::start(self, "    max_sessions: 1000\n    warm: 8\n    isolation: none")?;
        std::thread::sleep(Duration::from_secs(1));
        let mut client = Client::connect(stack.address).map_err(|error| Failure(error.to_string()))?;
        let (mut taken, mut known) = (Vec::new(), Vec::new());
        for turn in 0..self.count(500) {
            let key = format!("warm-{turn}");
            taken.push(client.ask_well(&key)?);
            known.push(client.ask_well(&key)?);
            // Warm ones are made again meanwhile.
            std::thread::sleep(Duration::from_millis(20));
        }
        stack.stop();
        let (whole, own) = (percentile(&mut taken, 99), percentile(&mut known, 99));
        Ok(Row {
            what: "a first turn that takes a warm session, whole request, p99".into(),
            ours: milliseconds(whole),
            theirs: format!("a further turn of the same session {}", milliseconds(own)),
            ratio: format!("{} more", milliseconds(whole.saturating_sub(own))),
            goal: "≤ 1 ms p99",
            met: whole.saturating_sub(own) <= Duration::from_millis(1),
        })
    }

    /// A first turn that has to start a process.
    fn cold(&self) -> Result<Row, Failure> {
        let stack = Stack::start(self, "    max_sessions: 1000\n    isolation: none")?;
        let mut client = Client::connect(stack.address).map_err(|error| Failure(error.to_string()))?;
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for turn in 0..self.count(300) {
            ours.push(client.ask_well(&format!("cold-{turn}"))?);
            let began = Instant::now();
            Bare::start(&self.agent)?.ask()?;
            bare.push(began.elapsed());
        }
        stack.stop();
        let (ours, bare) = (median(&mut ours), median(&mut bare));
        Ok(Row {
            what: "a first turn that starts its session, whole request, median".into(),
            ours: milliseconds(ours),
            theirs: format!("bare spawn of the agent and a turn {}", milliseconds(bare)),
            ratio: format!("{:.2} × bare", ratio(ours, bare)),
            goal: "≤ 1.1 × bare",
            met: ratio(ours, bare) <= 1.1,
        })
    }

    /// What is added to a turn at 2,000 a second, 64 conversations.
    fn latency(&self) -> Result<Row, Failure> {
        let stack = Stack::start(self, &format!("    max_sessions: {KEYS}\n    isolation: none"))?;
        let seconds = if self.quick { 4 } else { 20 };
        let address = stack.address;
        let mut ours = paced(seconds, |number| {
            let mut client = Client::connect(address).map_err(|error| Failure(error.to_string()))?;
            let key = format!("key-{number}");
            client.ask_well(&key)?;
            Ok(Box::new(move || client.ask_well(&key).map(drop)))
        })?;
        stack.stop();
        let mut bare = paced(seconds, |_| {
            let mut agent = Bare::start(&self.agent)?;
            agent.ask()?;
            Ok(Box::new(move || agent.ask()))
        })?;
        let (ours99, bare99) = (percentile(&mut ours, 99), percentile(&mut bare, 99));
        let added = ours99.saturating_sub(bare99);
        Ok(Row {
            what: format!("p99 at 2,000 turns/s, {KEYS} conversations, {seconds} s"),
            ours: format!("{} (median {})", milliseconds(ours99), milliseconds(percentile(&mut ours, 50))),
            theirs: format!("bare pipes {} (median {})", milliseconds(bare99), milliseconds(percentile(&mut bare, 50))),
            ratio: format!("{} added", milliseconds(added)),
            goal: "≤ 1 ms added",
            met: added <= Duration::from_millis(1),
        })
    }

    /// Turns a second of one core, as many as 16 clients can ask for.
    fn throughput(&self) -> Result<Vec<Row>, Failure> {
        let seconds = if self.quick { 3 } else { 10 };
        let stack = Stack::start(self, &format!("    max_sessions: {KEYS}\n    isolation: none"))?;
        let ours = per_core(stack.address, &stack.own(), seconds)?;
        stack.stop();
        let row = |theirs: &str, rate: f64| Row {
            what: format!("turns a second of one core, {KEYS} conversations"),
            ours: format!("{ours:.0}"),
            theirs: format!("{theirs} {rate:.0}"),
            ratio: format!("{:.1} ×", ours / rate),
            goal: "≥ 20 ×",
            met: ours >= 20.0 * rate,
        };
        let wrapper = Python::wrapper(&self.agent)?;
        let rate = per_core(wrapper.address, &[wrapper.up.pid()], seconds)?;
        wrapper.stop();
        let mut rows = vec![row("FastAPI and uvicorn wrapper", rate)];
        let mock = mock()?;
        let proxy = Python::litellm(mock)?;
        let rate = per_core(proxy.address, &[proxy.up.pid()], seconds)?;
        proxy.stop();
        rows.push(row("LiteLLM's proxy before a mock that answers at once", rate));
        Ok(rows)
    }

    /// Open streams with a token each a second: many of few turns, and some of a session each.
    fn streams(&self) -> Result<Vec<Row>, Failure> {
        // A port takes connections up to half of the files that may be open.
        let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        let (many, some) = if self.quick { (2_000, 64) } else { (10_000, 256) };
        let many = many.min(files as usize / 2);
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let each = |one: &Streams| one.held.saturating_sub(one.empty) as f64 / one.count as f64 / 1024.0;
        let told = |one: &Streams| {
            let Streams { held, late, seen, worst, .. } = one;
            let (held, each) = (megabytes(*held), each(one));
            let worst = worst.as_millis();
            format!("{held:.0} MB, {each:.1} KiB each; {late} of {seen} tokens late, the longest pause {worst} ms")
        };
        let all = self.stream(many, KEYS)?;
        let own = self.stream(some, some)?;
        Ok(vec![
            Row {
                what: format!(
                    "{many} open streams of {KEYS} turns (the same request sent again reads its turn), a token each a second"
                ),
                ours: told(&all),
                theirs: "–".into(),
                ratio: "–".into(),
                goal: "10,000: ≤ 150 MB, none late by more than 100 ms",
                met: many >= 10_000 && all.held <= 150_000_000 && all.late == 0,
            },
            Row {
                what: format!(
                    "{some} open streams, each of a session of its own; its session's part of our memory with it"
                ),
                ours: told(&own),
                theirs: "–".into(),
                ratio: "–".into(),
                goal: "none late by more than 100 ms",
                met: own.late == 0,
            },
        ])
    }

    fn stream(&self, count: usize, turns: usize) -> Result<Streams, Failure> {
        let pool = format!("    max_sessions: {turns}\n    isolation: none\n    stall_timeout: 10m");
        let stack = Stack::start(self, &pool)?;
        let empty = stack.resident();
        let failed = |error: std::io::Error| Failure(format!("a stream: {error}"));
        let text = format!("!deltas 1000\\n!pace 1s\\n{}", "and on ".repeat(40));
        let mut open = Vec::new();
        for number in 0..count {
            let mut client = Client::connect(stack.address).map_err(failed)?;
            let head = if number < turns { "" } else { "x-stainless-retry-count: 1\r\n" };
            client.send_with(head, &format!("stream-{}", number % turns), true, &text).map_err(failed)?;
            open.push(client.stream.into_inner());
            if number < turns {
                // Turns begin when people ask, not all in the same instant of a second.
                std::thread::sleep(Duration::from_secs(1) / turns as u32);
            }
        }
        let mut watched = Watched::new(open)?;
        let began = Instant::now();
        while watched.begun < count {
            watched.look()?;
            if began.elapsed() > Duration::from_secs(120) {
                return Err(Failure(format!("only {} of {count} streams have begun", watched.begun)));
            }
        }
        let until = Instant::now().after(Duration::from_secs(if self.quick { 8 } else { 30 }));
        while Instant::now() < until {
            watched.look()?;
        }
        let held = stack.resident();
        stack.stop();
        let Watched { seen, late, worst, .. } = watched;
        Ok(Streams { count, empty, held, seen, late, worst })
    }

    /// Our memory over many turns.
    ///
    /// What is kept for use has bounds, and grows until they are met: so they are met before memory is looked at. Most
    /// entries has what is remembered of conversations, one each. A conversation that grew for the whole time would be replayed
    /// to a new process in longer and longer pieces, up to its file's bound: each one here ends after some turns, and
    /// another one takes its place.
    fn slope(&self) -> Result<Row, Failure> {
        const KNOWN: u64 = 4096;
        const LONG: u64 = 250;
        let (first, turns) = if self.quick { (20_000, 20_000) } else { (150_000, 100_000u64) };
        let stack = Stack::start(self, &format!("    max_sessions: {KEYS}\n    isolation: none\n    max_turns: 100"))?;
        let (done, conversations) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut samples: Vec<(f64, f64)> = Vec::new();
        let is_over = |done: u64| done >= first + turns;
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..8)
                .map(|_| {
                    let (done, conversations, address) = (&done, &conversations, stack.address);
                    scope.spawn(move || -> Result<(), Failure> {
                        let mut client = Client::connect(address).map_err(|error| Failure(error.to_string()))?;
                        let mut own: Vec<(u64, u64)> = vec![(0, u64::MAX); KEYS / 8];
                        for at in (0..own.len()).cycle() {
                            let (number, had) = &mut own[at];
                            // Until enough are known each is new.
                            let long = if conversations.load(Ordering::Relaxed) < KNOWN + 200 { 1 } else { LONG };
                            if *had >= long {
                                if *had < u64::MAX {
                                    client.close(&format!("slope-{number}"))?;
                                }
                                (*number, *had) = (conversations.fetch_add(1, Ordering::Relaxed), 0);
                            }
                            if is_over(done.fetch_add(1, Ordering::Relaxed)) {
                                return Ok(());
                            }
                            client.ask_well(&format!("slope-{number}"))?;
                            *had += 1;
                        }
                        Ok(())
                    })
                })
                .collect();
            while !is_over(done.load(Ordering::Relaxed)) && clients.iter().any(|client| !client.is_finished()) {
                let done = done.load(Ordering::Relaxed);
                if done >= first {
                    samples.push((done as f64, stack.resident() as f64));
                }
                std::thread::sleep(Duration::from_millis(250));
            }
            clients
                .into_iter()
                .try_for_each(|client| client.join().unwrap_or_else(|_| Err(Failure("a client panicked".to_owned()))))
        })?;
        let (count, last) = (samples.len(), samples.last().map_or(0.0, |sample| sample.1 / f64::from(1 << 20)));
        stack.stop();
        let (slope, half) = regression(&samples).ok_or_else(|| Failure("too few samples".into()))?;
        let (low, high) = (slope - half, slope + half);
        Ok(Row {
            what: format!(
                "our memory over {turns} turns, {KEYS} conversations of {LONG} turns at a time, after {first} turns and {KNOWN} conversations; {count} samples, {last:.1} MiB at the end"
            ),
            ours: format!("{slope:.2} B a turn, 95 % within {low:.2} to {high:.2}"),
            theirs: "–".into(),
            ratio: "–".into(),
            goal: "the interval contains 0, its end ≤ 16 B",
            met: low <= 0.0 && (0.0..=16.0).contains(&high),
        })
    }
}

/// What people run instead, in Python.
struct Python {
    up: Guarded,
    address: SocketAddr,
}

impl Python {
    /// A wrapper as people write it.
    fn wrapper(agent: &[String]) -> Result<Self, Failure> {
        let address = free_address()?;
        let mut up = command(peers::fastapi()?.join("python"));
        up.arg(workspace::root().join("xtask/src/bench/wrapper.py")).arg(address.port().to_string()).args(agent);
        Self::start(up, address)
    }

    /// LiteLLM's proxy, which asks whoever answers at `mock`.
    fn litellm(mock: SocketAddr) -> Result<Self, Failure> {
        let address = free_address()?;
        let file = workspace::scratch("serve-litellm")?.join("config.yaml");
        let model =
            serde_json::json!({ "model": "openai/mock", "api_base": format!("http://{mock}/v1"), "api_key": "x" });
        let all = serde_json::json!({ "model_list": [{ "model_name": "bench", "litellm_params": model }] });
        std::fs::write(&file, all.to_string()).map_err(Failure::on("write", &file))?;
        let bin = peers::litellm()?;
        let mut up = command(bin.join("litellm"));
        up.arg("--config").arg(&file).args(["--host", "127.0.0.1", "--telemetry", "False", "--port"]);
        up.arg(address.port().to_string());
        // Nothing is fetched, and nothing is logged of a request.
        up.env("LITELLM_LOCAL_MODEL_COST_MAP", "True").env("LITELLM_LOG", "ERROR");
        Self::start(up, address)
    }

    fn start(mut up: std::process::Command, address: SocketAddr) -> Result<Self, Failure> {
        up.stdout(Stdio::null()).stderr(Stdio::null());
        let python = Self { up: Guarded::start(&mut up)?, address };
        let began = Instant::now();
        while Client::connect(address).is_err() {
            if began.elapsed() > Duration::from_secs(90) {
                return Err(Failure(format!("{:?} does not answer", up.get_program())));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(python)
    }

    fn stop(mut self) {
        self.up.terminate();
        let _ = self.up.wait_for(Duration::from_secs(10));
    }
}

/// A model's server that answers every request at once and with the same words, until this process ends.
fn mock() -> Result<SocketAddr, Failure> {
    const BODY: &str = "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"mock\",\"choices\":[{\
        \"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"hello\",\"refusal\":null},\"logprobs\":null,\
        \"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}";
    let failed = |error: std::io::Error| Failure(format!("the mock cannot listen: {error}"));
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}", BODY.len());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let mut stream = BufReader::new(stream);
                while Head::read(&mut stream).and_then(|head| head.skip_body(&mut stream)).is_ok() {
                    if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                        break;
                    }
                }
            });
        }
    });
    Ok(address)
}

/// What these processes are asked for, a second of one core.
fn per_core(address: SocketAddr, pids: &[i32], seconds: u64) -> Result<f64, Failure> {
    let used = || pids.iter().map(|&pid| ticks(pid)).sum::<u64>();
    flood(address, 1)?;
    let before = used();
    let turns = flood(address, seconds)?;
    Ok(turns as f64 * procfs::ticks_per_second() as f64 / (used() - before).max(1) as f64)
}

/// Sixteen clients ask as fast as they are answered: turns.
fn flood(address: SocketAddr, seconds: u64) -> Result<u64, Failure> {
    let until = Instant::now().after(Duration::from_secs(seconds));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..16)
            .map(|number| {
                scope.spawn(move || -> Result<u64, Failure> {
                    let mut client = Client::connect(address).map_err(|error| Failure(error.to_string()))?;
                    let mut turns = 0;
                    while Instant::now() < until {
                        client.ask_well(&format!("flood-{}", number * 4 + turns % 4))?;
                        turns += 1;
                    }
                    Ok(turns)
                })
            })
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().unwrap_or_else(|_| Err(Failure("a client panicked".to_owned()))))
            .sum()
    })
}

type Ask = Box<dyn FnMut() -> Result<(), Failure> + Send>;

/// 64 askers, each at its own instants, 2,000 times a second together: how long each turn took from when it was due.
fn paced(seconds: u64, ask: impl Fn(usize) -> Result<Ask, Failure>) -> Result<Vec<Duration>, Failure> {
    let asks: Vec<Ask> = (0..KEYS).map(ask).collect::<Result<_, _>>()?;
    let every = Duration::from_secs(1) * KEYS as u32 / 2000;
    let begin = Instant::now().after(Duration::from_millis(200));
    std::thread::scope(|scope| {
        let clients: Vec<_> = asks
            .into_iter()
            .enumerate()
            .map(|(number, mut ask)| {
                scope.spawn(move || -> Result<Vec<Duration>, Failure> {
                    let mut due = begin.after(every * number as u32 / KEYS as u32);
                    let end = begin.after(Duration::from_secs(seconds));
                    let mut times = Vec::new();
                    while due < end {
                        std::thread::sleep(due.since(Instant::now()));
                        let began = Instant::now();
                        ask()?;
                        times.push(began.elapsed());
                        due = due.after(every);
                    }
                    Ok(times)
                })
            })
            .collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.join().unwrap_or_else(|_| Err(Failure("a client panicked".to_owned())))?);
        }
        Ok(all)
    })
}

/// What came of streams.
struct Streams {
    count: usize,
    /// Our memory without them, bytes,
    empty: u64,
    /// and with all of them.
    held: u64,
    /// Tokens after all had begun, those of them that came more than 1.1 s after the one before, and the longest pause.
    seen: u64,
    late: u64,
    worst: Duration,
}

/// Streams that are read as they come.
struct Watched {
    open: Vec<TcpStream>,
    epoll: OwnedFd,
    last: Vec<Option<Instant>>,
    begun: usize,
    seen: u64,
    late: u64,
    worst: Duration,
}

impl Watched {
    fn new(open: Vec<TcpStream>) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure(format!("streams cannot be watched: {error}"));
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        for (number, stream) in open.iter().enumerate() {
            stream.set_nonblocking(true).map_err(failed)?;
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&epoll, stream, data, epoll::EventFlags::IN).map_err(|errno| failed(errno.into()))?;
        }
        let last = vec![None; open.len()];
        Ok(Self { open, epoll, last, begun: 0, seen: 0, late: 0, worst: Duration::ZERO })
    }

    /// Reads what has come, or waits for a moment.
    fn look(&mut self) -> Result<(), Failure> {
        let mut ready = Vec::with_capacity(1024);
        let moment = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&moment));
        let mut buffer = [0; 16 << 10];
        for number in ready.iter().map(|event| event.data.u64() as usize) {
            let Ok(length) = self.open[number].read(&mut buffer) else { continue };
            if length == 0 {
                return Err(Failure("a stream has ended".to_owned()));
            }
            let said = &buffer[..length];
            if said.starts_with(b"HTTP/1.1 ") && !said.starts_with(b"HTTP/1.1 200") {
                return Err(Failure(format!("a stream was refused: {}", String::from_utf8_lossy(said))));
            }
            let tokens = said.windows(9).filter(|window| window == b"\"content\"").count() as u64;
            if tokens == 0 {
                continue;
            }
            let now = Instant::now();
            let Some(before) = self.last[number].replace(now) else {
                self.begun += 1;
                continue;
            };
            // The first ones come while others are still being started.
            if self.begun == self.open.len() {
                let pause = now.since(before);
                self.seen += tokens;
                self.late += u64::from(pause > Duration::from_millis(1100));
                self.worst = self.worst.max(pause);
            }
        }
        Ok(())
    }
}

/// The least-squares slope, and half the width of its 95 % interval.
fn regression(samples: &[(f64, f64)]) -> Option<(f64, f64)> {
    let count = samples.len() as f64;
    if samples.len() < 10 {
        return None;
    }
    let (mean_x, mean_y) =
        (samples.iter().map(|(x, _)| x).sum::<f64>() / count, samples.iter().map(|(_, y)| y).sum::<f64>() / count);
    let spread: f64 = samples.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let slope = samples.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum::<f64>() / spread;
    let error: f64 = samples.iter().map(|(x, y)| (y - mean_y - slope * (x - mean_x)).powi(2)).sum();
    Some((slope, 1.96 * (error / (count - 2.0) / spread).sqrt()))
}
