//! Requests through a service's port, against nginx and HAProxy before the same replicas.
//!
//! The replicas are an nginx that answers a hundred bytes from memory, so that the balancers are what is measured. All
//! of them, the load and the balancer, share this machine: the rate says what a request costs in all, and the time of
//! the balancer's own process beside it what the balancer adds. Each balancer has one thread and kept connections to
//! the replicas, sets the same headers and writes no log of requests; they take turns, round by round.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use plimsoll_kernel::procfs;

use super::run::{children, ticks};
use super::{Row, median};
use crate::exec::{Failure, command, output, succeed};
use crate::workspace;

/// Connections that keep everything busy, and such that queue for nothing.
const BUSY: u32 = 64;
const CALM: u32 = 2;

pub(super) fn measure(quick: bool) -> Result<Vec<Row>, Failure> {
    let rounds = if quick { 3 } else { 11 };
    let scratch = workspace::scratch("bench-listen")?;
    let replicas = [free_port()?, free_port()?];
    let mut sides = [
        Side::start("direct", replicas[0], replica(&scratch, replicas)?)?,
        Side::of("nginx", |port| nginx(&scratch, port, replicas))?,
        Side::of("HAProxy", |port| haproxy(&scratch, port, replicas))?,
        Side::of("plimsoll", |port| ours(port, replicas))?,
    ];
    for _ in 0..rounds {
        for side in &mut sides {
            side.load(BUSY)?;
        }
    }
    for _ in 0..rounds {
        for side in &mut sides {
            side.load(CALM)?;
        }
    }
    let [direct, nginx, haproxy, ours] = sides.each_mut().map(Side::result);
    let best = if nginx.rate >= haproxy.rate { ("nginx", nginx.rate) } else { ("HAProxy", haproxy.rate) };
    let share = ours.rate / best.1.max(1.0);
    let added = |side: &Measured| side.p99.as_secs_f64() * 1e3 - direct.p99.as_secs_f64() * 1e3;
    let rate = |side: &Measured| format!("{:.0}/s ({:.1} µs of its own each)", side.rate, side.own_us);
    let late = |side: &Measured| format!("{:.2} ms, {:+.2}", side.p99.as_secs_f64() * 1e3, added(side));
    Ok(vec![
        Row {
            what: format!("requests through `listen`, {BUSY} connections, median of {rounds} rounds"),
            ours: rate(&ours),
            theirs: format!(
                "nginx {}, HAProxy {}, a replica itself {:.0}/s",
                rate(&nginx),
                rate(&haproxy),
                direct.rate
            ),
            ratio: format!("{share:.2} × {}", best.0),
            goal: "≥ 0.7 ×",
            met: share >= 0.7,
        },
        Row {
            what: format!("p99 through `listen`, {CALM} connections, and what is added to a replica's own"),
            ours: late(&ours),
            theirs: format!(
                "nginx {}, HAProxy {}, a replica itself {:.2} ms",
                late(&nginx),
                late(&haproxy),
                direct.p99.as_secs_f64() * 1e3
            ),
            ratio: "–".into(),
            goal: "≤ 1 ms added",
            met: added(&ours) <= 1.0,
        },
    ])
}

/// Something that answers at a port, and what was measured of it.
struct Side {
    name: &'static str,
    port: u16,
    process: Child,
    rates: Vec<f64>,
    own_us: Vec<f64>,
    p99s: Vec<Duration>,
}

struct Measured {
    rate: f64,
    own_us: f64,
    p99: Duration,
}

impl Side {
    fn of(name: &'static str, start: impl Fn(u16) -> Result<Child, Failure>) -> Result<Self, Failure> {
        let port = free_port()?;
        Self::start(name, port, start(port)?)
    }

    fn start(name: &'static str, port: u16, process: Child) -> Result<Self, Failure> {
        let mut side = Self { name, port, process, rates: vec![], own_us: vec![], p99s: vec![] };
        for _ in 0..500 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Ok(side);
            }
            if let Ok(Some(status)) = side.process.try_wait() {
                return Err(Failure(format!("{name} ended: {status}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(Failure(format!("{name} does not listen")))
    }

    /// One round of two seconds.
    fn load(&mut self, connections: u32) -> Result<(), Failure> {
        let url = format!("http://127.0.0.1:{}/", self.port);
        let before = self.ticks();
        let said = output(command("wrk").args(["-t1", &format!("-c{connections}"), "-d2s", "--latency", &url]))?;
        let spent = (self.ticks() - before) as f64 / procfs::ticks_per_second() as f64;
        let load = read_wrk(&said).ok_or_else(|| Failure(format!("{}: wrk says {said}", self.name)))?;
        if connections == BUSY {
            self.rates.push(load.rate);
            self.own_us.push(spent * 1e6 / load.requests.max(1.0));
        } else {
            self.p99s.push(load.p99);
        }
        Ok(())
    }

    /// What its process and those below it used so far.
    fn ticks(&self) -> u64 {
        let pid = self.process.id() as i32;
        ticks(pid) + children(pid).into_iter().map(ticks).sum::<u64>()
    }

    fn result(&mut self) -> Measured {
        Measured { rate: middle(&mut self.rates), own_us: middle(&mut self.own_us), p99: median(&mut self.p99s) }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // nginx and HAProxy end their workers at this; ours ends with its input, and with this.
        let _ = plimsoll_kernel::signal::send(self.process.id() as i32, 15);
        let _ = self.process.wait();
    }
}

fn middle(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Load {
    requests: f64,
    rate: f64,
    p99: Duration,
}

/// What wrk prints at its end; `None` when it tells of errors, or of nothing.
fn read_wrk(said: &str) -> Option<Load> {
    if said.contains("Socket errors") || said.contains("Non-2xx") {
        return None;
    }
    let mut load = Load { requests: f64::NAN, rate: f64::NAN, p99: Duration::ZERO };
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["99%", time] => {
                let at = time.find(|letter: char| letter.is_alphabetic())?;
                let unit = match &time[at..] {
                    "us" => 1e-6,
                    "ms" => 1e-3,
                    "s" => 1.0,
                    _ => return None,
                };
                load.p99 = Duration::from_secs_f64(time[..at].parse::<f64>().ok()? * unit);
            }
            [requests, "requests", "in", ..] => load.requests = requests.parse().ok()?,
            ["Requests/sec:", rate] => load.rate = rate.parse().ok()?,
            _ => {}
        }
    }
    (load.requests > 0.0 && load.rate > 0.0).then_some(load)
}

/// A port that was free a moment ago.
fn free_port() -> Result<u16, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|error| Failure(format!("no port is free: {error}")))
}

/// What every nginx here has: no log, no end of kept connections, nothing outside `scratch`.
fn nginx_with(scratch: &Path, name: &str, servers: &str) -> Result<Child, Failure> {
    let folder = scratch.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {folder}/{name}-{what}; "))
        .concat();
    let text = format!(
        "worker_processes 1; daemon off; pid {folder}/{name}.pid; error_log {folder}/{name}.log;
         events {{ worker_connections 4096; }}
         http {{ access_log off; keepalive_requests 1000000000; {temporary}{servers} }}"
    );
    let file = write(scratch, &format!("{name}.conf"), &text)?;
    let log = format!("{folder}/{name}.log");
    spawn(command("nginx").arg("-e").arg(log).arg("-c").arg(file))
}

fn replica(scratch: &Path, ports: [u16; 2]) -> Result<Child, Failure> {
    let body = "x".repeat(100);
    let server =
        |port: u16| format!("server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ return 200 {body}; }} }}");
    nginx_with(scratch, "replicas", &ports.map(server).concat())
}

fn nginx(scratch: &Path, port: u16, replicas: [u16; 2]) -> Result<Child, Failure> {
    let [a, b] = replicas;
    let servers = format!(
        "upstream replicas {{ least_conn; server 127.0.0.1:{a}; server 127.0.0.1:{b}; keepalive 128;
           keepalive_requests 1000000000; }}
         server {{ listen 127.0.0.1:{port} backlog=4096; location / {{ proxy_pass http://replicas;
           proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $http_host;
           proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
           proxy_set_header X-Forwarded-Host $http_host; }} }}"
    );
    nginx_with(scratch, "nginx", &servers)
}

fn haproxy(scratch: &Path, port: u16, replicas: [u16; 2]) -> Result<Child, Failure> {
    let [a, b] = replicas;
    let text = format!(
        "global\n  nbthread 1\n  maxconn 4096\n\
         defaults\n  mode http\n  timeout connect 3s\n  timeout client 60s\n  timeout server 60s\n  option forwardfor\n\
         frontend port\n  bind 127.0.0.1:{port}\n  default_backend replicas\n\
         backend replicas\n  balance leastconn\n  http-reuse always\n\
         \x20 http-request set-header X-Forwarded-Proto http\n\
         \x20 http-request set-header X-Forwarded-Host %[req.hdr(host)]\n\
         \x20 server a 127.0.0.1:{a}\n  server b 127.0.0.1:{b}\n"
    );
    let file = write(scratch, "haproxy.cfg", &text)?;
    spawn(command("haproxy").arg("-db").arg("-f").arg(file))
}

/// The gateway's own balancer with nothing around it.
fn ours(port: u16, replicas: [u16; 2]) -> Result<Child, Failure> {
    let build = ["build", "--quiet", "--release", "--package", "plimsoll-gateway", "--example", "balance"];
    succeed(workspace::cargo().args(build))?;
    let program = workspace::target().join(workspace::host()?).join("release/examples/balance");
    let mut balance = command(program);
    balance.arg(format!("127.0.0.1:{port}")).args(replicas.map(|port| port.to_string())).stdin(Stdio::piped());
    spawn(&mut balance)
}

fn write(scratch: &Path, name: &str, text: &str) -> Result<PathBuf, Failure> {
    let file = scratch.join(name);
    std::fs::write(&file, text).map_err(Failure::on("write", &file))?;
    Ok(file)
}

fn spawn(command: &mut std::process::Command) -> Result<Child, Failure> {
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map_err(|error| Failure(format!("cannot start {:?}: {error}", command.get_program())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says() {
        let said = "Running 2s test @ http://127.0.0.1:1/\n  1 threads and 2 connections\n  Latency Distribution\n\
            \x20    50%   90.00us\n     99%    1.25ms\n  26967 requests in 2.01s, 7.11MB read\n\
            Requests/sec:  13416.42\nTransfer/sec:      3.54MB\n";
        let load = read_wrk(said).unwrap();
        assert_eq!((load.requests, load.rate, load.p99), (26967.0, 13416.42, Duration::from_micros(1250)));
        assert!(read_wrk(&format!("{said}  Socket errors: connect 1\n")).is_none());
        assert!(read_wrk("").is_none());
    }
}
