//! What runs beside the replicas for a moment: health tests, hooks, and whatever tells somebody of an alert. Each has a
//! time at which it is ended, and there are never more than so many.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use plimsoll_core::stack::input::Probe;
use plimsoll_core::stack::{Event, Input, Instance};
use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::signal;
use plimsoll_kernel::spawn::{Job, Launch};
use plimsoll_model::ending::RootExit;
use plimsoll_model::stack::{Ask, Delivery, ServiceSpec};
use rustix::process::Signal;

use super::Supervisor;
use crate::keeper::TAG;
use crate::stack::notify::inherited;
use crate::stack::replica::{environment, with_port};

/// A hook or an alert's command that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(60);

/// Hooks and alerts' commands that run at a time; health tests are one a replica.
const MOST: usize = 64;

/// Webhooks that wait for their turn.
const WAITING: usize = 64;

/// A webhook's server has so long for each step.
const WEBHOOK_PATIENCE: Duration = Duration::from_secs(5);

/// Something that runs, and until when.
pub(super) struct Errand {
    what: What,
    pub(super) deadline: Instant,
}

enum What {
    Test { instance: Instance, probe: u64 },
    Hook(Instance),
    Alert,
}

impl Supervisor<'_> {
    /// One has ended; whether it was one.
    pub(super) fn errand_ended(&mut self, pid: i32, exit: RootExit) -> bool {
        let Some(errand) = self.errands.remove(&pid) else { return false };
        let why = match exit {
            RootExit::Code(0) => None,
            RootExit::Code(code) => Some(format!("code {code}")),
            RootExit::Signal(number) => Some(signal::name(number)),
            RootExit::NotStarted { .. } | RootExit::Unknown => Some("it vanished".to_owned()),
        };
        match (errand.what, why) {
            (What::Test { instance, probe }, why) => {
                let outcome = why.map_or(Probe::Healthy, Probe::Failed);
                self.input(Input::Probed { instance, probe, outcome });
            }
            (What::Hook(instance), Some(why)) => self.note(&instance, &format!("its hook failed: {why}")),
            (What::Alert, Some(why)) => self.note_all(&format!("the alert's command failed: {why}")),
            (_, None) => {}
        }
        true
    }

    pub(super) fn end_slow_errands(&mut self) {
        let now = Instant::now();
        let slow = self.errands.iter().filter(|(_, errand)| now >= errand.deadline).map(|(pid, _)| *pid);
        for pid in slow.collect::<Vec<i32>>() {
            let _ = signal::send(-pid, Signal::KILL.as_raw());
            let _ = signal::send(pid, Signal::KILL.as_raw());
            let Some(errand) = self.errands.remove(&pid) else { continue };
            match errand.what {
                What::Test { instance, probe } => {
                    self.input(Input::Probed { instance, probe, outcome: Probe::TimedOut });
                }
                What::Hook(instance) => self.note(&instance, "its hook took longer than a minute, and was ended"),
                What::Alert => self.note_all("the alert's command took longer than a minute, and was ended"),
            }
        }
    }

    /// A replica is gone: nobody waits for what it was asked.
    pub(super) fn forget_errands(&mut self, of: &Instance) {
        let is_of = |what: &What| matches!(what, What::Test { instance, .. } | What::Hook(instance) if instance == of);
        // They were in its group, and went with it; their ends are reaped without a meaning.
        self.errands.retain(|_, errand| !is_of(&errand.what));
    }

    /// Starts something for a replica, in its group.
    fn beside(
        &self,
        instance: &Instance,
        spec: Option<&ServiceSpec>,
        command: &[String],
        more: &[(&str, String)],
    ) -> Result<i32, String> {
        let replica = self.replicas.get(instance).ok_or("it does not run")?;
        let spec = spec.or_else(|| self.options.spec.services.get(&*instance.service)).ok_or("it is not known")?;
        let words: Vec<OsString> = command.iter().map(|word| with_port(word, replica.port).into()).collect();
        let (join, into) = replica.boundary.entrance();
        let null = Some(self.null.as_fd());
        let launch = Launch {
            command: &words,
            env: environment(spec, self.id.as_str(), instance, replica.port, more, inherited().collect()),
            workdir: Some(&spec.working_dir),
            stdio: [null; 3],
            join,
            into,
            lock: Some(self.registration.as_fd()),
            oom_score_adj: None,
            user: None,
            bounds: None,
            job: Job::Own,
            mask: self.mask,
        };
        launch.start().map_err(|error| format!("{}: {error}", command.first().map_or("", String::as_str)))
    }

    pub(super) fn probe(&mut self, instance: Instance, probe: u64, spec: &ServiceSpec, timeout: Duration) {
        let Some(health) = &spec.healthcheck else { return };
        match self.beside(&instance, Some(spec), &health.test, &[]) {
            Ok(pid) => {
                let deadline = Instant::now().after(timeout);
                self.errands.insert(pid, Errand { what: What::Test { instance, probe }, deadline });
            }
            Err(why) => self.input(Input::Probed { instance, probe, outcome: Probe::NotRun(why) }),
        }
    }

    pub(super) fn ask(&mut self, instance: &Instance, ask: &Ask, stage: &str) {
        match ask {
            Ask::Signal(number) => {
                if let Some(replica) = self.replicas.get(instance) {
                    let _ = signal::send(replica.root.pid, *number);
                }
            }
            Ask::Command(command) => {
                let started = self
                    .is_room_for_another()
                    .and_then(|()| self.beside(instance, None, command, &[("PLIMSOLL_STAGE", stage.to_owned())]));
                match started {
                    Ok(pid) => self.run_errand(pid, What::Hook(instance.clone())),
                    Err(why) => self.note(instance, &format!("its hook did not start: {why}")),
                }
            }
        }
    }

    fn run_errand(&mut self, pid: i32, what: What) {
        self.errands.insert(pid, Errand { what, deadline: Instant::now().after(PATIENCE) });
    }

    fn is_room_for_another(&self) -> Result<(), String> {
        let others = self.errands.values().filter(|errand| !matches!(errand.what, What::Test { .. })).count();
        if others < MOST { Ok(()) } else { Err(format!("{MOST} hooks and alerts' commands run already")) }
    }

    pub(super) fn deliver(&mut self, delivery: Delivery, event: &Event) {
        let body = serde_json::to_string(event).unwrap_or_default();
        match delivery {
            Delivery::Command(command) => {
                match self.is_room_for_another().and_then(|()| self.alert_command(&command, body)) {
                    Ok(pid) => self.run_errand(pid, What::Alert),
                    Err(why) => self.note_all(&format!("the alert's command did not start: {why}")),
                }
            }
            Delivery::Webhook(url) => {
                if self.webhooks.try_send((url, body)).is_err() {
                    self.note_all(&format!("a webhook is not called: {WAITING} others wait for theirs"));
                }
            }
        }
    }

    fn alert_command(&self, command: &[String], body: String) -> Result<i32, String> {
        let words: Vec<OsString> = command.iter().map(OsString::from).collect();
        let mut env: Vec<(OsString, OsString)> = inherited().filter(|(key, _)| key != TAG).collect();
        env.push(("PLIMSOLL_EVENT".into(), body.into()));
        env.push((TAG.into(), self.id.as_str().into()));
        let null = Some(self.null.as_fd());
        let launch = Launch {
            command: &words,
            env,
            workdir: Some(&self.options.directory),
            stdio: [null; 3],
            join: Vec::new(),
            into: None,
            lock: Some(self.registration.as_fd()),
            oom_score_adj: None,
            user: None,
            bounds: None,
            job: Job::Own,
            mask: self.mask,
        };
        launch.start().map_err(|error| format!("{}: {error}", command.first().map_or("", String::as_str)))
    }
}

/// A thread that calls webhooks one after the other; `failed` hears of each that came to nothing.
pub(super) fn webhooks(failed: impl Fn(String) + Send + 'static) -> std::io::Result<SyncSender<(String, String)>> {
    let (say, calls): (_, Receiver<(String, String)>) = sync_channel(WAITING);
    let work = move || {
        while let Ok((url, body)) = calls.recv() {
            if let Err(why) = post(&url, &body) {
                failed(format!("{url}: {why}"));
            }
        }
    };
    std::thread::Builder::new().name("webhooks".to_owned()).stack_size(128 << 10).spawn(work)?;
    Ok(say)
}

/// Posts an event to an `http://` address; anything but a 2xx is a failure.
fn post(url: &str, body: &str) -> Result<(), String> {
    let rest = url.strip_prefix("http://").ok_or("only http:// is spoken here")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
    let words = |error: std::io::Error| error.to_string();
    let address = std::net::ToSocketAddrs::to_socket_addrs(&address).map_err(words)?.next().ok_or("no address")?;
    let mut stream = std::net::TcpStream::connect_timeout(&address, WEBHOOK_PATIENCE).map_err(words)?;
    stream.set_write_timeout(Some(WEBHOOK_PATIENCE)).map_err(words)?;
    stream.set_read_timeout(Some(WEBHOOK_PATIENCE)).map_err(words)?;
    write!(
        stream,
        "POST /{path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
    .map_err(words)?;
    let mut line = String::new();
    let mut answer = BufReader::new(std::io::Read::take(stream, 1 << 10));
    answer.read_line(&mut line).map_err(words)?;
    match line.split_whitespace().nth(1) {
        Some(code) if code.starts_with('2') => Ok(()),
        Some(code) => Err(format!("it answered {code}")),
        None => Err("it did not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn server(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut text = [0; 4096];
            let mut heard = String::new();
            while !heard.ends_with('}') {
                let count = stream.read(&mut text).unwrap();
                heard.push_str(&String::from_utf8_lossy(&text[..count]));
            }
            stream.write_all(answer.as_bytes()).unwrap();
            heard
        });
        (url, thread)
    }

    #[test]
    fn a_webhook_is_posted_and_its_answer_read() {
        let (url, thread) = server("HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(post(&url, "{\"event\":\"x\"}"), Ok(()));
        let heard = thread.join().unwrap();
        assert!(
            heard.starts_with("POST /hook HTTP/1.1\r\n") && heard.ends_with("\r\n\r\n{\"event\":\"x\"}"),
            "{heard}"
        );
        let (url, thread) = server("HTTP/1.1 500 Oh\r\n\r\n");
        assert_eq!(post(&url, "{}"), Err("it answered 500".to_owned()));
        thread.join().unwrap();
        assert!(post("https://example.invalid/", "{}").is_err());
    }

    #[test]
    fn a_webhook_that_fails_is_told_of() {
        let (say, hear) = sync_channel(1);
        let calls = webhooks(move |why| say.send(why).unwrap()).unwrap();
        calls.send(("http://127.0.0.1:9/x".to_owned(), "{}".to_owned())).unwrap();
        assert!(hear.recv().unwrap().starts_with("http://127.0.0.1:9/x: "));
    }
}
