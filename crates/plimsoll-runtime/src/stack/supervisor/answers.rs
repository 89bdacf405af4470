//! What people ask over the control socket, and what they are answered.

use std::time::Duration;

use plimsoll_core::stack::snapshot::Snapshot;
use plimsoll_core::stack::{Answer, Command, Input, Name, Refusal, Request};
use plimsoll_gateway::Told;
use plimsoll_gateway::control::{self, Answer as Text, Kind, Question, Reply};
use plimsoll_store::CertificateStore;

use super::{Supervisor, Word};

/// What people ask.
impl Supervisor<'_> {
    pub(super) fn answer_word(&mut self, word: Word) {
        let (question, reply) = match word {
            Word::Asked(question, reply) => (question, reply),
            Word::Told(Told::Drained { service, instance, .. }) => {
                let drained = self.replicas.keys().find(|one| *one.service == *service && one.generation == instance);
                if let Some(instance) = drained.cloned() {
                    self.input(Input::Drained { instance });
                }
                return;
            }
            Word::Told(Told::Closed { .. }) => return,
            Word::Undelivered(why) => return self.note_all(&format!("a webhook failed: {why}")),
        };
        match question {
            Question::Status => {
                self.look_again();
                reply.send(Text::json(self.status()));
            }
            Question::Health => reply.send(self.health()),
            Question::Ready => reply.send(self.ready()),
            Question::Metrics => reply.send(Text { kind: Kind::Prometheus, ..Text::text(self.metrics()) }),
            Question::Events => self.events.push(reply.stream(Kind::Events)),
            Question::Sessions => {
                self.look_again();
                let sessions = self.snapshot().sessions;
                reply.send(Text::json(serde_json::json!({ "sessions": sessions }).to_string()));
            }
            Question::Processes => reply.send(Text::json(self.processes())),
            Question::Certificates | Question::Certificate(_) => reply.send(self.certificates(&question)),
            Question::Logs { service, tail, follow } => self.send_logs(reply, service, tail, follow),
            Question::Do(control::Command::Reload) => self.reload(Some(reply)),
            Question::Do(command) => {
                let command = match command {
                    control::Command::Down | control::Command::Reload => Command::Down,
                    control::Command::Restart(name) => Command::Restart(name.as_str().into()),
                    control::Command::Start(name) => Command::Start(name.as_str().into()),
                    control::Command::Stop(name) => Command::Stop(name.as_str().into()),
                    control::Command::Join { name, bytes, patience_ms } => {
                        Command::Join { name, bytes, patience: Duration::from_millis(patience_ms) }
                    }
                    control::Command::Scale { service, replicas } => Command::Scale(service.as_str().into(), replicas),
                };
                let request = self.request(Some(reply));
                self.input(Input::Command { request, command });
            }
        }
    }

    /// The core's answer. Whoever was admitted keeps its room as long as it keeps the answer open.
    pub(super) fn answer(&mut self, request: Request, answer: &Answer) {
        let Some(reply) = self.replies.remove(&request.0) else { return };
        if *answer == Answer::Admitted {
            let lease = reply.stream(Kind::Text);
            if lease.send("admitted\n") {
                self.leases.insert(request.0, lease);
            } else {
                self.input(Input::Left { request });
            }
        } else {
            reply.send(in_words(answer));
        }
    }

    /// Those that have gone give their room back, and those that wait no longer their place.
    pub(super) fn see_off_guests(&mut self) {
        let gone = self.leases.iter().filter(|(_, lease)| lease.is_closed()).map(|(&number, _)| number);
        let given_up = self.replies.iter().filter(|(_, reply)| reply.is_closed()).map(|(&number, _)| number);
        for number in gone.chain(given_up).collect::<Vec<u64>>() {
            self.leases.remove(&number);
            self.replies.remove(&number);
            // Of a command that was no join this means nothing.
            self.input(Input::Left { request: Request(number) });
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        self.stack.snapshot(self.now())
    }

    fn status(&self) -> String {
        /// The snapshot, and what the core knows nothing of.
        #[derive(serde::Serialize)]
        struct Shown {
            #[serde(flatten)]
            snapshot: Snapshot,
            troubles: Vec<String>,
            /// Their issue is still to come; the shape is the contract's.
            imports: [(); 0],
        }
        let troubles = self.troubles.iter().map(|(about, why)| format!("{about}: {why}")).collect();
        let shown = Shown { snapshot: self.snapshot(), troubles, imports: [] };
        serde_json::to_string(&shown).unwrap_or_default()
    }

    fn processes(&self) -> String {
        let trees: Vec<_> = self
            .replicas
            .values()
            .map(|replica| {
                let members: Vec<_> = replica
                    .members()
                    .iter()
                    .map(|member| {
                        serde_json::json!({
                            "pid": member.pid, "start_ticks": member.start_ticks, "parent": member.parent,
                            "depth": member.depth, "name": member.name, "memory_bytes": member.memory_bytes,
                        })
                    })
                    .collect();
                serde_json::json!({
                    "service": replica.instance.service, "replica": replica.instance.replica, "processes": members,
                })
            })
            .collect();
        serde_json::json!({ "trees": trees }).to_string()
    }

    fn certificates(&self, question: &Question) -> Text {
        let found = CertificateStore::open(&self.options.state_dir).and_then(|mut store| match question {
            Question::Certificate(id) => store.by_id_prefix(id, 1),
            _ => store.list(100),
        });
        match (found, question) {
            (Ok(all), Question::Certificate(_)) => match all.first() {
                Some(one) => Text::json(serde_json::to_vec(one).unwrap_or_default()),
                None => Text { status: 404, ..Text::text("no certificate of this id\n") },
            },
            (Ok(all), _) => Text::json(serde_json::to_vec(&all).unwrap_or_default()),
            (Err(error), _) => Text { status: 500, ..Text::text(format!("{error}\n")) },
        }
    }

    fn send_logs(&mut self, reply: Reply, service: Option<String>, tail: Option<u64>, follow: bool) {
        let spec = &self.options.spec;
        let names = spec.services.keys().chain(spec.pools.keys());
        let known: Vec<Name> = names.map(|name| Name::from(name.as_str())).collect();
        let meant: Vec<Name> = match &service {
            Some(name) => known.into_iter().filter(|known| &**known == name.as_str()).collect(),
            None => known,
        };
        if meant.is_empty() {
            let name = service.unwrap_or_default();
            return reply.send(Text { status: 404, ..Text::text(format!("no service is called `{name}`\n")) });
        }
        let count = usize::try_from(tail.unwrap_or(10_000)).unwrap_or(10_000).min(10_000);
        let lines = self.logs.tail(&meant, count).concat();
        let stream = reply.stream(Kind::Text);
        if (lines.is_empty() || stream.send(lines)) && follow {
            self.followers.push((service, stream));
        }
    }
}

fn in_words(answer: &Answer) -> Text {
    match answer {
        Answer::Done | Answer::Admitted => Text::text("done\n"),
        Answer::Loaded { added, restarted, adapted, removed } => {
            let list = |what: &str, names: &[Name]| {
                let names: Vec<&str> = names.iter().map(|name| &**name).collect();
                if names.is_empty() { String::new() } else { format!("{what}: {}\n", names.join(", ")) }
            };
            let text =
                [list("added", added), list("replaced", restarted), list("adapted", adapted), list("removed", removed)];
            let text = text.concat();
            Text::text(if text.is_empty() { "no service has changed\n".to_owned() } else { text })
        }
        Answer::Refused(why) => {
            let (status, retry_after_s) = match why {
                Refusal::UnknownService(_) => (404, None),
                Refusal::NoRoom { retry_after, .. } => (429, u32::try_from(retry_after.as_secs()).ok()),
                _ => (409, None),
            };
            Text { status, retry_after_s, ..Text::text(format!("{why}\n")) }
        }
    }
}
