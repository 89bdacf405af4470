//! What was said in a conversation before, and who tells it to a process that is new to it (`rehydrate:`).
//!
//! | | the process | is told |
//! |---|---|---|
//! | `resume` | is started for the conversation alone: its agent takes its own transcript up again | what is new |
//! | `replay` | is any that is free | what is stored, and what is new |
//! | `none` | is any that is free | what the client sends; what was stored before is forgotten |
//!
//! An agent takes up what it was when the process before it ended. Whether that is what is stored now is known by a print of
//! what was said, written down with the agent's own name for the conversation after each answer: where they differ, the
//! process that was started is of no use, and the conversation is told to another one. So it is where the agent says that it
//! knows no such conversation.

use plimsoll_model::pool::Rehydrate;
use plimsoll_store::agents::Named;

use super::{Ask, Seat, Turns};
use crate::agent::{Piece, claude};
use crate::chat::conversation::Step;

/// What an agent says of a conversation that it does not have (Claude Code, on standard error or in a result's `errors`).
const NOT_FOUND: &str = "No conversation found";

/// What a process knows of a turn's conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knowledge {
    /// All that was said before.
    All,
    /// Nothing.
    Nothing,
    /// Something else.
    Other,
}

impl Turns {
    /// The agent's own name for a turn's conversation, if it can take it up again: as it is stored now.
    fn agent_name(&self, ask: &Ask) -> Option<String> {
        let key = ask.key.as_ref()?;
        self.pools.borrow().get(&ask.pool).filter(|pool| claude::resumes(pool))?;
        let named = self.agents.borrow().as_ref()?.named(&ask.pool, key)?;
        (named.said == self.print(ask).to_string()).then_some(named.name)
    }

    /// Whether a process that is started for a turn's conversation can take it up again.
    pub(super) fn can_resume(&self, ask: &Ask, is_anew: bool) -> bool {
        !is_anew && self.agent_name(ask).is_some()
    }

    /// What a process knows of the conversation of a turn that it gets; `fresh`: it was started for anybody, and this is its
    /// first.
    pub(super) fn knowledge(&self, ask: &Ask, step: &Step<'_>, fresh: bool, seat: &Seat) -> Knowledge {
        let is_first = !seat.has_had_turn.replace(true);
        match &seat.resumed {
            _ if fresh => Knowledge::Nothing,
            _ if !is_first => Knowledge::All,
            // It was to take the conversation up again, and there was nothing that it could have been given.
            None => Knowledge::Nothing,
            Some(name) => {
                let is_so = matches!(step, Step::On { .. }) && self.agent_name(ask).as_ref() == Some(name);
                seat.is_on_trial.set(is_so);
                if is_so { Knowledge::All } else { Knowledge::Other }
            }
        }
    }

    /// What counts of a request for a process that knows nothing: with `none` the request alone, and what was stored before
    /// counts no longer.
    pub(super) fn begin_anew<'a>(&self, ask: &'a Ask, step: Step<'a>) -> Step<'a> {
        let pools = self.pools.borrow();
        match pools.get(&ask.pool).map(|pool| pool.rehydrate) {
            Some(Rehydrate::None) => Step::Anew { before: &[], new: &ask.messages },
            _ => step,
        }
    }

    /// A turn was answered and is stored: what the agent calls the conversation, if it may be asked for by that name.
    pub(super) fn note_agent(&self, ask: &Ask, name: Option<String>) {
        let agents = self.agents.borrow();
        let Some((agents, key)) = agents.as_ref().zip(ask.key.as_ref()) else { return };
        let resumes = self.pools.borrow().get(&ask.pool).is_some_and(|pool| claude::resumes(pool));
        // A disk that is full costs the conversation this alone: it is told again.
        let _ = match name.filter(|_| resumes) {
            Some(name) => agents.name(&ask.pool, key, Named { name, said: self.print(ask).to_string() }),
            None => agents.forget(&ask.pool, key),
        };
    }
}

/// Whether a piece, the `first` that came of a session's first turn or not, says that its agent has not taken up what it was
/// to. An agent that has tells at once that it begins: one that ends instead, without a word, has not.
pub(super) fn is_forgetful(piece: &Piece, is_first: bool) -> bool {
    match piece {
        Piece::Failed(why) => why.contains(NOT_FOUND),
        Piece::Broken(_) => is_first,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead, BufReader, Write};
    use std::os::fd::OwnedFd;
    use std::path::PathBuf;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;

    use plimsoll_model::pool::{PoolSpec, Protocol};
    use tokio::runtime::{Builder, LocalOptions};
    use tokio::sync::mpsc::{Receiver, Sender, channel};
    use tokio::time::timeout;

    use super::*;
    use crate::chat::{Message, Role};
    use crate::desk::{Outcome, Plea, Session, Settings, Turn, Verdict};
    use crate::serving::Counts;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// What an agent does with a turn.
    #[derive(Clone, Copy)]
    enum Does {
        Answer,
        NotFind,
        End,
    }

    /// The room, and whoever plays the supervisor.
    struct Room {
        turns: Rc<Turns>,
        pleas: Receiver<Plea>,
        asked: Receiver<String>,
        tell: Sender<String>,
        dir: PathBuf,
    }

    impl Drop for Room {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }

    impl Room {
        fn new(name: &str, rehydrate: Rehydrate) -> Self {
            let dir = std::env::temp_dir().join(format!("plimsoll-past-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&dir);
            let (plead, pleas) = channel(64);
            let (tell, asked) = channel(64);
            let turns = Turns::new(Box::new(move |plea| plead.try_send(plea).is_ok()), Arc::new(Counts::default()));
            let pools = crate::chat::models::tests::pools(&[("bot", &[])]);
            let claude = |(name, pool): (Arc<str>, Arc<PoolSpec>)| {
                (
                    name,
                    Arc::new(PoolSpec { protocol: Protocol::Claude, rehydrate, max_line: 1 << 20, ..(*pool).clone() }),
                )
            };
            let pools: BTreeMap<Arc<str>, Arc<PoolSpec>> = pools.into_iter().map(claude).collect();
            turns.hear(Verdict::Settings(Settings { state_dir: Some(dir.clone()), ..Settings::default() }));
            turns.hear(Verdict::Pools(pools));
            Self { turns, pleas, asked, tell, dir }
        }

        /// A process that speaks as the real one does, each turn as it is told; its name for the conversation is its number.
        fn adopt(&self, number: u64, resumed: Option<&str>, does: Does) {
            let (theirs, stdin) = std::io::pipe().unwrap();
            let (stdout, mut out) = std::io::pipe().unwrap();
            rustix::io::ioctl_fionbio(&stdin, true).unwrap();
            rustix::io::ioctl_fionbio(&stdout, true).unwrap();
            let tell = self.tell.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(theirs).lines().map_while(Result::ok) {
                    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
                    let answer = match (said["type"].as_str(), does) {
                        (Some("control_request"), _) => serde_json::json!({
                            "type": "control_response",
                            "response": {"subtype": "success", "request_id": said["request_id"], "response": {}},
                        }),
                        (_, Does::End) => return,
                        (_, Does::NotFind) => serde_json::json!({
                            "type": "result", "subtype": "error_during_execution", "is_error": true,
                            "errors": ["No conversation found with session ID: s"], "session_id": "s",
                        }),
                        (_, Does::Answer) => {
                            let content = said["message"]["content"].as_str().unwrap_or_default();
                            tell.blocking_send(content.to_owned()).unwrap();
                            serde_json::json!({
                                "type": "result", "subtype": "success", "is_error": false, "result": "yes",
                                "session_id": format!("s-{number}"),
                            })
                        }
                    };
                    if writeln!(out, "{answer}").is_err() {
                        return;
                    }
                }
            });
            let (session, resumed) = (Session(number), resumed.map(str::to_owned));
            let (stdin, stdout) = (OwnedFd::from(stdin), OwnedFd::from(stdout));
            self.turns.hear(Verdict::Adopt { session, pool: "bot".into(), stdin, stdout, resumed });
        }

        fn ask(&self, messages: &[Message]) -> crate::tape::Reader {
            let ask = Ask {
                pool: "bot".into(),
                key: Some("a".into()),
                messages: messages.to_vec(),
                instruction: None,
                is_streamed: false,
                is_aside: false,
                is_alone: false,
                print: 0,
                is_retry: false,
                goes_on: false,
            };
            self.turns.begin(ask).unwrap()
        }

        /// The next word to the supervisor that is not about how an agent fares.
        async fn plea(&mut self) -> Plea {
            loop {
                let plea = timeout(PATIENCE, self.pleas.recv()).await.unwrap().unwrap();
                if !matches!(plea, Plea::Ready { .. } | Plea::Heard { .. } | Plea::Lost { .. } | Plea::Trouble { .. }) {
                    return plea;
                }
            }
        }

        async fn ready(&mut self) {
            while !matches!(timeout(PATIENCE, self.pleas.recv()).await.unwrap().unwrap(), Plea::Ready { .. }) {}
        }

        /// A turn is asked for; whether it could be taken up.
        async fn asks(&mut self) -> (Turn, bool) {
            let Plea::Ask { turn, resumes, .. } = self.plea().await else { panic!("no turn is asked for") };
            (turn, resumes)
        }

        async fn ends(&mut self) -> Outcome {
            let Plea::Done { outcome, .. } = self.plea().await else { panic!("no turn ends") };
            outcome
        }

        /// What the agent was asked.
        async fn told(&mut self) -> String {
            timeout(PATIENCE, self.asked.recv()).await.unwrap().unwrap()
        }

        /// One turn from its question to its answer, on a new process: what that was told.
        async fn turn(&mut self, number: u64, text: &str) -> String {
            let reader = self.ask(&[Message::new(Role::User, text)]);
            let (turn, _) = self.asks().await;
            self.adopt(number, None, Does::Answer);
            self.ready().await;
            self.turns.hear(Verdict::Assign { turn, session: Session(number), fresh: true });
            assert_eq!(reader.whole().await.unwrap().0, "yes");
            assert_eq!(self.ends().await, Outcome::Answered);
            self.end(number);
            self.told().await
        }

        fn end(&self, number: u64) {
            let (session, why) = (Session(number), "it was closed".to_owned());
            self.turns.hear(Verdict::Ended { session, why, is_failed: false });
        }
    }

    fn run(test: impl Future<Output = ()>) {
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap().block_on(test);
    }

    fn user(text: &str) -> Message {
        Message::new(Role::User, text)
    }

    #[test]
    fn what_is_taken_up_again_is_not_told() {
        run(async {
            let mut room = Room::new("resume", Rehydrate::Resume);
            assert_eq!(room.turn(1, "one").await, "one");
            let reader = room.ask(&[user("two")]);
            let (turn, resumes) = room.asks().await;
            assert!(resumes);
            room.adopt(2, Some("s-1"), Does::Answer);
            room.ready().await;
            room.turns.hear(Verdict::Assign { turn, session: Session(2), fresh: false });
            assert_eq!((room.told().await, reader.whole().await.unwrap().0), ("two".to_owned(), "yes".to_owned()));
            assert_eq!(room.ends().await, Outcome::Answered);
            // A client that says that it was otherwise.
            let other = [user("1"), Message::new(Role::Assistant, "no"), user("3")];
            let _reader = room.ask(&other);
            assert!(!room.asks().await.1);
        });
    }

    #[test]
    fn what_is_not_taken_up_is_told() {
        run(async {
            for does in [Does::NotFind, Does::End] {
                let mut room = Room::new("forgot", Rehydrate::Resume);
                room.turn(1, "one").await;
                let reader = room.ask(&[user("two")]);
                let (turn, resumes) = room.asks().await;
                assert!(resumes);
                room.adopt(2, Some("s-1"), does);
                room.ready().await;
                room.turns.hear(Verdict::Assign { turn, session: Session(2), fresh: false });
                assert_eq!((room.asks().await, room.ends().await), ((turn, false), Outcome::Forgot));
                room.end(2);
                room.adopt(3, None, Does::Answer);
                room.ready().await;
                room.turns.hear(Verdict::Assign { turn, session: Session(3), fresh: true });
                let told = room.told().await;
                assert!(told.contains("user: one") && told.contains("yes") && told.ends_with("two"), "{told}");
                assert_eq!(reader.whole().await.unwrap().0, "yes");
                assert_eq!(room.ends().await, Outcome::Answered);
            }
        });
    }

    #[test]
    fn an_agent_that_had_nothing_to_take_up_is_told() {
        run(async {
            let mut room = Room::new("nothing", Rehydrate::Resume);
            room.turn(1, "one").await;
            let _reader = room.ask(&[user("two")]);
            let (turn, _) = room.asks().await;
            room.adopt(2, None, Does::Answer);
            room.ready().await;
            room.turns.hear(Verdict::Assign { turn, session: Session(2), fresh: false });
            let told = room.told().await;
            assert!(told.contains("user: one") && told.ends_with("two"), "{told}");
            assert_eq!(room.ends().await, Outcome::Answered);
            // Its second turn is no first one.
            let _reader = room.ask(&[user("three")]);
            let (turn, _) = room.asks().await;
            room.turns.hear(Verdict::Assign { turn, session: Session(2), fresh: false });
            assert_eq!(room.told().await, "three");
        });
    }

    #[test]
    fn what_is_stored_meanwhile_is_known_by_no_agent() {
        run(async {
            let mut room = Room::new("stale", Rehydrate::Resume);
            room.turn(1, "one").await;
            let _reader = room.ask(&[user("two")]);
            let (turn, resumes) = room.asks().await;
            assert!(resumes);
            // Somebody else goes on with it while the process starts.
            room.turns.store(&"bot".into(), &"a".into(), &[user("aside"), Message::new(Role::Assistant, "yes")], false);
            room.adopt(2, Some("s-1"), Does::Answer);
            room.ready().await;
            room.turns.hear(Verdict::Assign { turn, session: Session(2), fresh: false });
            assert_eq!((room.asks().await, room.ends().await), ((turn, false), Outcome::Forgot));
            let _reader = room.ask(&[user("three")]);
            assert!(!room.asks().await.1);
        });
    }

    #[test]
    fn with_none_nothing_is_told() {
        run(async {
            let mut room = Room::new("none", Rehydrate::None);
            room.turn(1, "one").await;
            assert_eq!(room.turn(2, "two").await, "two");
            // What counts from then on is what the process was told.
            let whole = [user("two"), Message::new(Role::Assistant, "yes"), user("three")];
            let _reader = room.ask(&whole);
            let Plea::Ask { is_anew, resumes, .. } = room.plea().await else { panic!("no turn is asked for") };
            assert!(!is_anew && !resumes, "the client repeats what this process was told, and no more");
        });
    }
}
