//! Turns on their way: from whoever asks, over the supervisor's word which session takes it, to an agent and back.
//!
//! ```text
//! asker ─ Turns::begin ─► Plea::Ask ─► supervisor ─► Verdict::Assign ─► agent ─ pieces ─► Tape ─► every asker of the turn
//! ```
//! What an agent answers is written on a *tape* that its askers read, each at its own pace: a request that is sent again
//! while its turn runs reads the same one. When the last asker has gone for [`LINGER`] the turn is given up, unless
//! somebody wants it to go on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use plimsoll_model::pool::PoolSpec;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::agent::{Agent, Message, Piece, Prompt};
use crate::desk::{Denial, Outcome, Plea, Session, Turn, Verdict};

/// A turn whose askers have gone goes on for so long: one that asks again finds it running.
const LINGER: Duration = Duration::from_secs(2);

/// An answer of more than this is none, bytes.
const LONGEST_ANSWER: usize = 32 << 20;

/// What came from an agent is told to the supervisor at most so often.
const HEARD_EVERY: Duration = Duration::from_secs(1);

/// A word that the supervisor could not take is told again after this.
const AGAIN: Duration = Duration::from_millis(5);

/// After an agent's output has closed within a turn, its end is waited for so long: it says why.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Tells the supervisor; false when it has too much to hear at this moment.
pub(crate) type Plead = Box<dyn Fn(Plea) -> bool + Send>;

/// Every turn and session of this room.
pub(crate) struct Turns {
    plead: Plead,
    pools: RefCell<BTreeMap<Arc<str>, Arc<PoolSpec>>>,
    sessions: RefCell<BTreeMap<Session, Rc<Seat>>>,
    /// Turns that wait for a session.
    asked: RefCell<BTreeMap<Turn, oneshot::Sender<Result<(Session, bool), Denial>>>>,
    last: Cell<u64>,
    /// Turns that are on their way, by pool, conversation and content, for those that ask again.
    running: RefCell<BTreeMap<Same, Rc<Tape>>>,
    /// Turns that run now.
    active: Cell<u64>,
    ids: Cell<u64>,
    since: u64,
}

/// What makes two requests one turn.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Same {
    pub(crate) pool: Arc<str>,
    pub(crate) key: Arc<str>,
    pub(crate) content: u64,
}

/// One session's process.
struct Seat {
    agent: Agent,
    /// Why its process is gone, once it is.
    ended: RefCell<Option<String>>,
    /// Why its turn was stopped.
    interrupted: RefCell<Option<String>>,
    changed: Notify,
}

/// A turn to be taken.
pub(crate) struct Ask {
    pub(crate) pool: Arc<str>,
    /// Its conversation; `None` belongs to none.
    pub(crate) key: Option<Arc<str>>,
    pub(crate) system: Option<String>,
    /// What a process that knows nothing is told.
    pub(crate) history: Vec<Message>,
    /// What one that knows the conversation is told.
    pub(crate) news: Vec<Message>,
    /// Requests with this in common are one turn.
    pub(crate) same: Option<Same>,
    /// It goes on when nobody waits for it any more.
    pub(crate) goes_on: bool,
}

/// Why a turn has no answer, or none to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It got no session.
    Denied(Denial),
    /// The agent refused it in good order.
    Refused(String),
    /// It was stopped: it took too long.
    Stopped(String),
    /// Its session broke.
    Broken(String),
}

/// What is on a tape.
#[derive(Debug, Clone)]
pub(crate) enum Note {
    /// It has a session.
    Began,
    /// More of the answer.
    Delta(String),
    /// The whole of it, and its cost.
    Final(String, Option<crate::agent::Usage>),
    /// There is no (more) answer.
    Failed(Failure),
}

/// What one turn has said so far, for everybody who wants to hear it.
pub(crate) struct Tape {
    notes: RefCell<Vec<Note>>,
    changed: Notify,
    readers: Cell<usize>,
    goes_on: Cell<bool>,
}

/// One who reads a tape, from its beginning.
pub(crate) struct Reader {
    tape: Rc<Tape>,
    at: usize,
}

impl Tape {
    fn new(goes_on: bool) -> Rc<Self> {
        Rc::new(Self {
            notes: RefCell::default(),
            changed: Notify::new(),
            readers: Cell::new(0),
            goes_on: Cell::new(goes_on),
        })
    }

    fn write(&self, note: Note) {
        self.notes.borrow_mut().push(note);
        self.changed.notify_waiters();
    }

    fn read(self: &Rc<Self>) -> Reader {
        self.readers.set(self.readers.get() + 1);
        Reader { tape: self.clone(), at: 0 }
    }

    /// Waits until nobody has read it for [`LINGER`].
    async fn left_alone(&self) {
        loop {
            if self.goes_on.get() {
                return std::future::pending().await;
            }
            if self.readers.get() == 0 {
                sleep(LINGER).await;
                if self.readers.get() == 0 && !self.goes_on.get() {
                    return;
                }
            }
            self.changed.notified().await;
        }
    }
}

impl Reader {
    /// The next note. After a final or failed one there is none, and it must not be asked for.
    pub(crate) async fn next(&mut self) -> Note {
        loop {
            let changed = self.tape.changed.notified();
            let note = self.tape.notes.borrow().get(self.at).cloned();
            match note {
                Some(note) => {
                    self.at += 1;
                    return note;
                }
                None => changed.await,
            }
        }
    }

    /// The turn goes on without its reader.
    pub(crate) fn let_it_go_on(&self) {
        self.tape.goes_on.set(true);
    }

    /// The whole answer.
    pub(crate) async fn whole(mut self) -> Result<(String, Option<crate::agent::Usage>), Failure> {
        loop {
            match self.next().await {
                Note::Began | Note::Delta(_) => {}
                Note::Final(text, usage) => return Ok((text, usage)),
                Note::Failed(failure) => return Err(failure),
            }
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.tape.readers.set(self.tape.readers.get() - 1);
        self.tape.changed.notify_waiters();
    }
}

impl Turns {
    pub(crate) fn new(plead: Plead) -> Rc<Self> {
        Rc::new(Self {
            plead,
            pools: RefCell::default(),
            sessions: RefCell::default(),
            asked: RefCell::default(),
            last: Cell::new(0),
            running: RefCell::default(),
            active: Cell::new(0),
            ids: Cell::new(0),
            since: crate::api::now(),
        })
    }

    /// A pool by its name, or by one of its models'.
    pub(crate) fn pool(&self, name: &str) -> Option<(Arc<str>, Arc<PoolSpec>)> {
        let pools = self.pools.borrow();
        let found = pools
            .get_key_value(name)
            .or_else(|| pools.iter().find(|(_, pool)| pool.models.iter().any(|model| model == name)));
        found.map(|(name, pool)| (name.clone(), pool.clone()))
    }

    /// All pools.
    pub(crate) fn pools(&self) -> BTreeMap<Arc<str>, Arc<PoolSpec>> {
        self.pools.borrow().clone()
    }

    /// A name for an answer, never twice in one life of plimsoll.
    pub(crate) fn next_id(&self) -> String {
        self.ids.set(self.ids.get() + 1);
        format!("{:x}{:08x}", self.since, self.ids.get())
    }

    /// When this room was opened, seconds since 1970.
    pub(crate) fn since(&self) -> u64 {
        self.since
    }

    /// Turns that run or wait.
    pub(crate) fn active(&self) -> u64 {
        self.active.get()
    }

    /// Asks the supervisor to close a session.
    pub(crate) async fn close(&self, pool: Option<Arc<str>>, key: Arc<str>) {
        self.say(Plea::Close { pool, key }).await;
    }

    async fn say(&self, plea: Plea) {
        while !(self.plead)(plea.clone()) {
            sleep(AGAIN).await;
        }
    }

    /// What the supervisor says.
    pub(crate) fn hear(self: &Rc<Self>, verdict: Verdict) {
        match verdict {
            Verdict::Pools(pools) => *self.pools.borrow_mut() = pools,
            Verdict::Adopt { session, pool, stdin, stdout } => {
                let spec = self.pools.borrow().get(&pool).cloned();
                let Some(spec) = spec else { return };
                let adopted = Agent::adopt(spec.protocol, spec.max_line, stdin, stdout, |_| ());
                let Ok(agent) = adopted else {
                    let turns = self.clone();
                    tokio::task::spawn_local(async move {
                        let why = "its input and output could not be watched".to_owned();
                        turns.say(Plea::Lost { session, why }).await;
                    });
                    return;
                };
                let seat = Rc::new(Seat {
                    agent,
                    ended: RefCell::default(),
                    interrupted: RefCell::default(),
                    changed: Notify::new(),
                });
                self.sessions.borrow_mut().insert(session, seat.clone());
                tokio::task::spawn_local(self.clone().look_after(session, seat));
            }
            Verdict::Assign { turn, session, fresh } => {
                if let Some(asked) = self.asked.borrow_mut().remove(&turn) {
                    let _ = asked.send(Ok((session, fresh)));
                }
            }
            Verdict::Deny { turn, denial } => {
                if let Some(asked) = self.asked.borrow_mut().remove(&turn) {
                    let _ = asked.send(Err(denial));
                }
            }
            Verdict::Interrupt { session, why } => {
                if let Some(seat) = self.sessions.borrow().get(&session) {
                    *seat.interrupted.borrow_mut() = Some(why);
                    seat.agent.interrupt();
                }
            }
            Verdict::Hangup { session } => {
                if let Some(seat) = self.sessions.borrow().get(&session) {
                    seat.agent.hangup();
                }
            }
            Verdict::Stage { session, stage, scale } => {
                if let Some(seat) = self.sessions.borrow().get(&session) {
                    seat.agent.stage(stage, scale);
                }
            }
            Verdict::Ended { session, why } => {
                if let Some(seat) = self.sessions.borrow_mut().remove(&session) {
                    *seat.ended.borrow_mut() = Some(why.clone());
                    seat.agent.end(&why);
                    seat.changed.notify_waiters();
                }
            }
        }
    }

    /// Tells when an agent is ready, and when it is lost between two turns.
    async fn look_after(self: Rc<Self>, session: Session, seat: Rc<Seat>) {
        let ended = async {
            while seat.ended.borrow().is_none() {
                seat.changed.notified().await;
            }
        };
        let work = async {
            if let Err(why) = seat.agent.start().await {
                return self.say(Plea::Lost { session, why: why.0 }).await;
            }
            self.say(Plea::Ready { session }).await;
            let why = seat.agent.lost().await;
            // Within a turn the turn's own end tells it.
            if !seat.agent.is_busy() {
                self.say(Plea::Lost { session, why: why.0 }).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = ended => {}
        }
    }

    /// Begins a turn, or finds the one that is the same and runs. Its end comes even if nobody reads the tape.
    pub(crate) fn begin(self: &Rc<Self>, ask: Ask) -> Reader {
        if let Some(same) = &ask.same
            && let Some(tape) = self.running.borrow().get(same)
        {
            return tape.read();
        }
        let tape = Tape::new(ask.goes_on);
        let reader = tape.read();
        if let Some(same) = &ask.same {
            self.running.borrow_mut().insert(same.clone(), tape.clone());
        }
        self.active.set(self.active.get() + 1);
        let turns = self.clone();
        tokio::task::spawn_local(async move {
            let same = ask.same.clone();
            turns.take(ask, &tape).await;
            if let Some(same) = same {
                turns.running.borrow_mut().remove(&same);
            }
            turns.active.set(turns.active.get() - 1);
        });
        reader
    }

    /// A turn from its question to the last piece of its answer.
    async fn take(self: &Rc<Self>, ask: Ask, tape: &Tape) {
        let turn = Turn(self.last.get() + 1);
        self.last.set(turn.0);
        let (answer, assigned) = oneshot::channel();
        self.asked.borrow_mut().insert(turn, answer);
        self.say(Plea::Ask { turn, pool: ask.pool.clone(), key: ask.key.clone() }).await;
        let assigned = tokio::select! {
            assigned = assigned => assigned,
            () = tape.left_alone() => {
                // It may have been assigned at this very moment: the supervisor then has it interrupted.
                self.asked.borrow_mut().remove(&turn);
                return self.say(Plea::Withdraw { turn }).await;
            }
        };
        let (session, fresh) = match assigned {
            Ok(Ok(assigned)) => assigned,
            Ok(Err(denial)) => return tape.write(Note::Failed(Failure::Denied(denial))),
            Err(_) => return tape.write(Note::Failed(Failure::Denied(Denial::Stopping))),
        };
        let seat = self.sessions.borrow().get(&session).cloned();
        let Some(seat) = seat else {
            let why = "its session has just ended".to_owned();
            tape.write(Note::Failed(Failure::Broken(why.clone())));
            return self.say(Plea::Done { turn, session, outcome: Outcome::Broken(why), context_percent: None }).await;
        };
        tape.write(Note::Began);
        let messages = if fresh { ask.history } else { ask.news };
        let prompt =
            Prompt { turn, session: ask.key.as_deref().unwrap_or("default").to_owned(), messages, system: ask.system };
        let (outcome, context_percent) = self.listen(turn, session, &seat, prompt, tape).await;
        self.say(Plea::Done { turn, session, outcome, context_percent }).await;
    }

    /// Hears an agent's answer to its end.
    async fn listen(
        &self,
        turn: Turn,
        session: Session,
        seat: &Seat,
        prompt: Prompt,
        tape: &Tape,
    ) -> (Outcome, Option<f64>) {
        let mut answer = seat.agent.turn(prompt);
        let mut text = String::new();
        let mut told: Option<Instant> = None;
        let mut is_left = false;
        loop {
            let piece = tokio::select! {
                piece = answer.next() => piece,
                () = tape.left_alone(), if !is_left => {
                    is_left = true;
                    self.say(Plea::Withdraw { turn }).await;
                    continue;
                }
            };
            if told.is_none_or(|told| told.elapsed() >= HEARD_EVERY) {
                told = Some(Instant::now());
                self.say(Plea::Heard { session }).await;
            }
            match piece {
                Some(Piece::Delta(delta)) => {
                    if text.len() + delta.len() > LONGEST_ANSWER {
                        let why = format!("its answer is longer than {} MiB", LONGEST_ANSWER >> 20);
                        tape.write(Note::Failed(Failure::Broken(why.clone())));
                        return (Outcome::Broken(why), None);
                    }
                    text.push_str(&delta);
                    tape.write(Note::Delta(delta));
                }
                Some(Piece::Alive) => {}
                Some(Piece::Final { text: whole, usage, context_percent, .. }) => {
                    tape.write(Note::Final(whole.unwrap_or(text), usage));
                    return (Outcome::Answered, context_percent);
                }
                Some(Piece::Failed(why)) => {
                    tape.write(Note::Failed(Failure::Refused(why)));
                    return (Outcome::Answered, None);
                }
                Some(Piece::Interrupted) => {
                    let why = seat.interrupted.take().unwrap_or_else(|| "it was interrupted".to_owned());
                    tape.write(Note::Failed(Failure::Stopped(why)));
                    return (Outcome::Interrupted, None);
                }
                Some(Piece::Broken(why)) => {
                    return (Outcome::Broken(why.clone()), self.broken(turn, session, seat, why, tape).await);
                }
                None => return (Outcome::Broken("its answer broke off".to_owned()), None),
            }
        }
    }

    /// A session broke within a turn: the supervisor is told, and soon knows better why.
    async fn broken(&self, turn: Turn, session: Session, seat: &Seat, why: String, tape: &Tape) -> Option<f64> {
        let outcome = Outcome::Broken(why.clone());
        self.say(Plea::Done { turn, session, outcome, context_percent: None }).await;
        let ended = async {
            while seat.ended.borrow().is_none() {
                seat.changed.notified().await;
            }
        };
        let _ = timeout(LAST_WORDS, ended).await;
        let stopped = seat.interrupted.take();
        let better = seat.ended.borrow().clone();
        tape.write(Note::Failed(match (stopped, better) {
            (Some(why), _) => Failure::Stopped(why),
            (None, Some(better)) => Failure::Broken(format!("{why}: {better}")),
            (None, None) => Failure::Broken(why),
        }));
        None
    }
}
