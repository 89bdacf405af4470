//! Turns on their way: from whoever asks, over the supervisor's word which session takes it, to an agent and back.
//!
//! ```text
//! asker ─ Turns::begin ─► Plea::Ask ─► supervisor ─► Verdict::Assign ─► agent ─ pieces ─► Tape ─► every asker of the turn
//! ```
//! What an agent answers is written on a *tape* that its askers read, each at its own pace: a request that is sent again
//! while its turn runs reads the same one. When the last asker has gone for [`LINGER`](crate::tape::LINGER) the turn is given up, unless
//! somebody wants it to go on.

mod past;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use plimsoll_model::pool::{PoolSpec, Protocol, RedisSpec};
use plimsoll_store::agents::Agents;
use plimsoll_store::conversations::{Conversations, Spoken};
use tokio::sync::{Mutex, Notify, OwnedMutexGuard, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::agent::{Agent, Piece, Prompt, Usage};
use crate::chat::conversation::{self, Print, Step};
use crate::chat::{Message, Problem, Role};
use crate::desk::{Denial, Outcome, Plea, Session, Settings, Turn, Verdict};
use crate::leases::{Cut, Lease, Leases};
use crate::tape::{Failure, Note, Reader, Same, Tape, Tapes};
use past::{Knowledge, is_forgetful};

/// An answer of more than this is none, bytes.
const LONGEST_ANSWER: usize = 32 << 20;

/// What came from an agent is told to the supervisor at most so often.
const HEARD_EVERY: Duration = Duration::from_secs(1);

/// A word that the supervisor could not take is told again after this.
const AGAIN: Duration = Duration::from_millis(5);

/// So many conversations are compared without reading what was said in them.
const MOST_KNOWN: usize = 4096;

/// Whether Redis is there is asked so often.
pub(crate) const BEAT: Duration = Duration::from_secs(2);

/// Whoever could not be served because of it comes again after this.
pub(crate) const REDIS_BACK: Duration = Duration::from_secs(5);

/// A turn that is over so soon is not told to have begun to be answered.
const SOON: Duration = Duration::from_millis(50);

/// After an agent's output has closed within a turn, its end is waited for so long: it says why.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// Tells the supervisor; false when it has too much to hear at this moment.
pub(crate) type Plead = Box<dyn Fn(Plea) -> bool>;

/// Every turn and session of this room.
pub(crate) struct Turns {
    plead: Plead,
    pools: RefCell<Rc<Pools>>,
    sessions: RefCell<BTreeMap<Session, Rc<Seat>>>,
    /// Turns that wait for a session.
    asked: RefCell<BTreeMap<Turn, oneshot::Sender<Assigned>>>,
    last: Cell<u64>,
    /// Turns that are on their way, or were a moment ago, for those that ask again.
    tapes: RefCell<Tapes>,
    conversations: RefCell<Option<Conversations>>,
    /// What agents call them.
    agents: RefCell<Option<Agents>>,
    /// With Redis, conversations are there and not in this machine's files.
    leases: RefCell<Option<(RedisSpec, Rc<Leases>)>>,
    /// With Redis, turns of one conversation wait for each other here: a machine has one lease of it.
    lines: RefCell<BTreeMap<Talk, Arc<Mutex<()>>>>,
    /// What the process that has it knows of each conversation that was heard of lately.
    known: RefCell<BTreeMap<Talk, Known>>,
    /// A conversation could not be written the last time.
    is_troubled: Cell<bool>,
    counts: Arc<Counts>,
}

/// Pools by their names.
type Pools = BTreeMap<Arc<str>, Arc<PoolSpec>>;

/// A conversation: its pool and its key.
pub(crate) type Talk = (Arc<str>, Arc<str>);

/// What is compared of a conversation, as of which version; without Redis there is but one.
#[derive(Debug, Clone, Copy)]
struct Known {
    print: Print,
    version: u64,
}

/// A conversation that is this machine's alone, for the time of a turn.
struct Hold {
    lease: Lease,
    print: Print,
    /// Another machine has gone on with it since a process here did.
    is_stale: bool,
    /// Let go of after the lease.
    _turn: OwnedMutexGuard<()>,
}

/// A session, and whether it is new to the turn's conversation; or why there is none.
type Assigned = Result<(Session, bool), Denial>;

/// What this room has served, read by others.
#[derive(Debug, Default)]
pub struct Counts {
    /// Turns that run or wait now.
    pub active: AtomicU64,
    /// Turns that were asked for.
    pub requests: AtomicU64,
    /// Turns that ended without an answer.
    pub errors: AtomicU64,
}

/// One session's process.
struct Seat {
    agent: Agent,
    /// Whether it answers one turn by ending.
    is_exec: bool,
    /// The agent's own name for the conversation that it was started to take up again.
    resumed: Option<String>,
    has_had_turn: Cell<bool>,
    /// Its first turn will show whether its agent has taken that up.
    is_on_trial: Cell<bool>,
    /// Why its process is gone, once it is, and whether that is a failure.
    ended: RefCell<Option<(String, bool)>>,
    /// Why its turn was stopped.
    interrupted: RefCell<Option<String>>,
    changed: Notify,
}

/// A turn to be taken.
pub(crate) struct Ask {
    pub(crate) pool: Arc<str>,
    /// Its conversation; `None` belongs to none.
    pub(crate) key: Option<Arc<str>>,
    /// What was sent: all of the conversation, or what is new of it.
    pub(crate) messages: Vec<Message>,
    /// Said to the agent besides, and remembered nowhere.
    pub(crate) instruction: Option<String>,
    /// The client is given the answer in pieces, and will repeat these.
    pub(crate) is_streamed: bool,
    /// What is new was never sent by the client, and is not remembered, nor is the answer.
    pub(crate) is_aside: bool,
    /// Its conversation is this request's alone: no other machine has to know of it.
    pub(crate) is_alone: bool,
    /// A request with the same print is the same, if it is sent again.
    pub(crate) print: u64,
    /// The client sends it again: if it runs, or has just been answered, it is not begun anew.
    pub(crate) is_retry: bool,
    /// It goes on when nobody waits for it any more.
    pub(crate) goes_on: bool,
}

/// A turn that has its session, and all that is known of it.
struct Taken<'t> {
    turn: Turn,
    session: Session,
    seat: &'t Seat,
    ask: &'t Ask,
    step: Step<'t>,
    tape: &'t Tape,
    hold: Option<&'t Hold>,
}

impl Seat {
    /// Waits until nothing is left of its process.
    async fn is_gone(&self) {
        while self.ended.borrow().is_none() {
            self.changed.notified().await;
        }
    }
}

impl Turns {
    pub(crate) fn new(plead: Plead, counts: Arc<Counts>) -> Rc<Self> {
        Rc::new(Self {
            plead,
            pools: RefCell::default(),
            sessions: RefCell::default(),
            asked: RefCell::default(),
            last: Cell::new(0),
            tapes: RefCell::default(),
            conversations: RefCell::default(),
            agents: RefCell::default(),
            leases: RefCell::default(),
            lines: RefCell::default(),
            known: RefCell::default(),
            is_troubled: Cell::new(false),
            counts,
        })
    }

    /// All pools.
    pub(crate) fn pools(&self) -> Rc<Pools> {
        self.pools.borrow().clone()
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
            Verdict::Pools(pools) => *self.pools.borrow_mut() = Rc::new(pools),
            Verdict::Settings(settings) => self.set(settings),
            Verdict::Adopt { session, pool, stdin, stdout, resumed } => {
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
                    is_exec: spec.protocol == Protocol::Exec,
                    resumed,
                    has_had_turn: Cell::new(false),
                    is_on_trial: Cell::new(false),
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
            Verdict::Ended { session, why, is_failed } => {
                if let Some(seat) = self.sessions.borrow_mut().remove(&session) {
                    *seat.ended.borrow_mut() = Some((why.clone(), is_failed));
                    seat.agent.end(&why);
                    seat.changed.notify_waiters();
                }
            }
        }
    }

    fn set(self: &Rc<Self>, settings: Settings) {
        let opened = settings.state_dir.as_deref().map(Conversations::open).transpose();
        self.trouble("conversations", opened.as_ref().err().map(|error| format!("they are not kept: {error}")));
        *self.conversations.borrow_mut() = opened.unwrap_or_default();
        *self.agents.borrow_mut() = settings.state_dir.as_deref().map(Agents::of);
        if self.leases.borrow().as_ref().map(|(spec, _)| spec) == settings.redis.as_ref() {
            return;
        }
        // What is known is of the versions of another place.
        self.known.borrow_mut().clear();
        let leases = settings.redis.map(|spec| Leases::new(&spec.url).map(|leases| (spec, leases))).transpose();
        self.trouble("redis", leases.as_ref().err().cloned());
        *self.leases.borrow_mut() = leases.unwrap_or_default();
        if let Some((_, leases)) = &*self.leases.borrow() {
            tokio::task::spawn_local(self.clone().watch(leases.clone()));
        }
    }

    /// Tells when Redis cannot be reached, and when it can be again, also while nobody asks.
    async fn watch(self: Rc<Self>, leases: Rc<Leases>) {
        let mut is_cut = false;
        while self.leases().is_some_and(|now| Rc::ptr_eq(&now, &leases)) {
            let cut = leases.beat().await.err();
            if let Some(Cut(why)) = &cut
                && !is_cut
            {
                let why = format!("it cannot be reached, and conversations are refused: {why}");
                self.say(Plea::Trouble { about: "redis", why: Some(why) }).await;
            } else if cut.is_none() && is_cut {
                self.say(Plea::Trouble { about: "redis", why: None }).await;
            }
            is_cut = cut.is_some();
            sleep(BEAT).await;
        }
    }

    pub(crate) fn leases(&self) -> Option<Rc<Leases>> {
        self.leases.borrow().as_ref().map(|(_, leases)| leases.clone())
    }

    fn trouble(self: &Rc<Self>, about: &'static str, why: Option<String>) {
        let turns = self.clone();
        tokio::task::spawn_local(async move { turns.say(Plea::Trouble { about, why }).await });
    }

    /// Tells when an agent is ready, and when it is lost between two turns.
    async fn look_after(self: Rc<Self>, session: Session, seat: Rc<Seat>) {
        let ended = seat.is_gone();
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

    /// Begins a turn; or finds the one that is sent again. Its end comes even if nobody reads the tape.
    ///
    /// # Errors
    /// There is nothing to answer in it.
    pub(crate) fn begin(self: &Rc<Self>, ask: Ask) -> Result<Reader, Problem> {
        let same = ask.key.clone().map(|key| Same { pool: ask.pool.clone(), key, print: ask.print });
        if ask.is_retry
            && let Some(same) = &same
            && let Some(tape) = self.tapes.borrow().get(same)
        {
            return Ok(tape.read());
        }
        let is_anew = if self.shared(&ask).is_some() {
            // What was said is known with the lease; that there is something to answer is not a question of that.
            conversation::step(&Print::default(), &ask.messages).map(|_| false)?
        } else {
            goes_otherwise(&self.print(&ask), &ask)?
        };
        let tape = Tape::new(ask.goes_on);
        let reader = tape.read();
        if let Some(same) = &same {
            self.tapes.borrow_mut().begin(same.clone(), &tape);
        }
        self.counts.requests.fetch_add(1, Relaxed);
        self.counts.active.fetch_add(1, Relaxed);
        let turns = self.clone();
        tokio::task::spawn_local(async move {
            turns.take(ask, is_anew, &tape).await;
            turns.counts.active.fetch_sub(1, Relaxed);
            if !tape.is_answered() {
                turns.counts.errors.fetch_add(1, Relaxed);
            }
            if let Some(same) = same {
                turns.tapes.borrow_mut().end(same, &tape);
            }
        });
        Ok(reader)
    }

    /// What was asked and is sent again, if it runs or has just been answered.
    pub(crate) fn again(&self, same: &Same) -> Option<Reader> {
        self.tapes.borrow().get(same).map(Tape::read)
    }

    /// Several turns that are one to whoever asks, and to whoever asks again; given up when nobody waits for it any more.
    pub(crate) fn as_one(
        self: &Rc<Self>,
        same: Option<Same>,
        work: impl Future<Output = Result<(String, Option<Usage>), Failure>> + 'static,
    ) -> Reader {
        let tape = Tape::new(false);
        let reader = tape.read();
        if let Some(same) = &same {
            self.tapes.borrow_mut().begin(same.clone(), &tape);
        }
        let turns = self.clone();
        tokio::task::spawn_local(async move {
            let done = tokio::select! {
                done = work => Some(done),
                () = tape.left_alone() => None,
            };
            match done {
                Some(Ok((text, usage))) => tape.write(Note::Final(text, usage)),
                Some(Err(Failure::Denied(denial))) => tape.deny(denial),
                Some(Err(failure)) => tape.write(Note::Failed(failure)),
                None => tape.void(),
            }
            if let Some(same) = same {
                turns.tapes.borrow_mut().end(same, &tape);
            }
        });
        reader
    }

    /// What is compared of a turn's conversation; read from its file when it was not heard of for long.
    fn print(&self, ask: &Ask) -> Print {
        let Some(key) = &ask.key else { return Print::default() };
        let talk = (ask.pool.clone(), key.clone());
        if let Some(known) = self.known.borrow().get(&talk) {
            return known.print;
        }
        let print = Print::of(&self.stored(ask));
        self.know(talk, Known { print, version: 0 });
        print
    }

    fn know(&self, talk: Talk, is_known: Known) {
        let mut known = self.known.borrow_mut();
        if known.len() >= MOST_KNOWN && !known.contains_key(&talk) {
            known.pop_first();
        }
        known.insert(talk, is_known);
    }

    /// With Redis: where a turn's conversation is kept, and its key.
    fn shared(&self, ask: &Ask) -> Option<(Rc<Leases>, Arc<str>)> {
        self.leases().zip(ask.key.clone().filter(|_| !ask.is_alone))
    }

    /// With Redis: waits until a turn's conversation is this machine's alone. It needs none without, or without a key.
    async fn hold(&self, ask: &Ask) -> Result<Option<Hold>, Denial> {
        let Some((leases, key)) = self.shared(ask) else { return Ok(None) };
        let talk = (ask.pool.clone(), key);
        let spec = self.pools.borrow().get(&ask.pool).cloned().ok_or(Denial::UnknownPool)?;
        let line = {
            let mut lines = self.lines.borrow_mut();
            lines.retain(|_, line| Arc::strong_count(line) > 1);
            let line = lines.entry(talk.clone()).or_default().clone();
            // Those that have a session, or wait for one, hold theirs too; `line` itself is one more.
            let of_pool = lines.iter().filter(|((pool, _), _)| *pool == ask.pool);
            let there: usize = of_pool.map(|(_, line)| Arc::strong_count(line) - 1).sum();
            if there > (spec.max_sessions.saturating_add(spec.queue.max)) as usize {
                return Err(Denial::Full(Duration::from_secs(1)));
            }
            line
        };
        let held = async {
            let turn = line.lock_owned().await;
            let lease = leases.take(&talk).await?;
            let version = lease.version();
            let known = self.known.borrow().get(&talk).copied().filter(|known| known.version == version);
            let print = match known {
                Some(known) => known.print,
                None => Print::of(&lease.said().await?),
            };
            Ok::<_, Cut>(Hold { lease, print, is_stale: known.is_none() && version > 0, _turn: turn })
        };
        match timeout(spec.queue.timeout, held).await {
            Ok(held) => held.map(Some).map_err(|_| Denial::Unproven(REDIS_BACK)),
            Err(_) => Err(Denial::Late(Duration::from_secs(1))),
        }
    }

    /// What was said in a turn's conversation, by this machine's files.
    fn stored(&self, ask: &Ask) -> Vec<Message> {
        let conversations = self.conversations.borrow();
        let Some((all, key)) = conversations.as_ref().zip(ask.key.as_ref()) else { return Vec::new() };
        let spoken = all.read(&ask.pool, key).unwrap_or_default();
        spoken.into_iter().filter_map(|one| Some(Message::new(Role::of(&one.role)?, one.content))).collect()
    }

    /// What was said in a conversation, from now on, beside its turns.
    ///
    /// # Errors
    /// With Redis: it does not answer, or another machine does not let go of the conversation.
    pub(crate) async fn remember(self: &Rc<Self>, ask: Ask, said: &[Message], is_all: bool) -> Result<(), Denial> {
        match (self.hold(&ask).await?, &ask.key) {
            (Some(hold), _) => {
                self.commit(&ask, &hold, said, is_all, None).await.map_err(|_| Denial::Unproven(REDIS_BACK))
            }
            (None, Some(key)) => {
                self.store(&ask.pool, key, said, is_all);
                Ok(())
            }
            (None, None) => Ok(()),
        }
    }

    /// The same within its turn, in Redis.
    async fn commit(
        &self,
        ask: &Ask,
        hold: &Hold,
        said: &[Message],
        is_all: bool,
        answered: Option<(&str, Option<Usage>)>,
    ) -> Result<(), Cut> {
        let Some(key) = ask.key.clone() else { return Ok(()) };
        let same = Same { pool: ask.pool.clone(), key: key.clone(), print: ask.print };
        let answered = answered.map(|(text, usage)| (&same, text, usage));
        let version = hold.lease.commit(said, is_all, answered).await?;
        let mut print = if is_all { Print::default() } else { hold.print };
        said.iter().for_each(|message| print.add(message));
        self.know((ask.pool.clone(), key), Known { print, version });
        Ok(())
    }

    /// The same in this machine's files.
    fn store(self: &Rc<Self>, pool: &Arc<str>, key: &Arc<str>, said: &[Message], is_all: bool) {
        let conversations = self.conversations.borrow();
        let Some(all) = conversations.as_ref() else { return };
        let spoken = |one: &Message| Spoken { role: one.role.word().to_owned(), content: one.content.clone() };
        let spoken: Vec<Spoken> = said.iter().map(spoken).collect();
        let stored = if is_all { all.replace(pool, key, &spoken) } else { all.append(pool, key, &spoken) };
        // A disk that is full costs a conversation its memory, and no answer; it is told.
        let is_troubled = stored.is_err();
        if self.is_troubled.replace(is_troubled) != is_troubled {
            self.trouble("conversations", stored.err().map(|error| format!("one could not be written: {error}")));
        }
        if let Some(Known { print, .. }) = self.known.borrow_mut().get_mut(&(pool.clone(), key.clone())) {
            *print = if is_all { Print::default() } else { *print };
            said.iter().for_each(|message| print.add(message));
        }
    }

    /// A turn from its question to the last piece of its answer.
    async fn take(self: &Rc<Self>, ask: Ask, is_anew: bool, tape: &Tape) {
        let hold = tokio::select! {
            hold = self.hold(&ask) => hold,
            () = tape.left_alone() => return tape.void(),
        };
        let hold = match hold {
            Ok(hold) => hold,
            Err(denial) => return tape.deny(denial),
        };
        let mut is_anew = is_anew;
        if let Some(hold) = &hold {
            if ask.is_retry
                && let Some((text, usage)) = self.answered(&ask).await
            {
                return tape.write(Note::Final(text, usage));
            }
            // That there is something to answer was looked at before.
            is_anew = hold.is_stale || goes_otherwise(&hold.print, &ask).unwrap_or(true);
        }
        let mut lost = pin!(async {
            match &hold {
                Some(hold) => hold.lease.lost().await,
                None => std::future::pending().await,
            }
        });
        let turn = Turn(self.last.get() + 1);
        self.last.set(turn.0);
        let (pool, key, resumes) = (ask.pool.clone(), ask.key.clone(), self.can_resume(&ask, is_anew));
        let mut assigned = self.wait(turn);
        self.say(Plea::Ask { turn, pool, key, is_anew, resumes }).await;
        while let Some(again) = self.attempt(turn, &ask, hold.as_ref(), assigned, tape, lost.as_mut()).await {
            assigned = again;
        }
    }

    /// Waits for what becomes of a turn.
    fn wait(&self, turn: Turn) -> oneshot::Receiver<Assigned> {
        let (answer, assigned) = oneshot::channel();
        self.asked.borrow_mut().insert(turn, answer);
        assigned
    }

    /// A turn on the session that it gets. One more wait where that knows nothing of what it was to take up again.
    async fn attempt(
        self: &Rc<Self>,
        turn: Turn,
        ask: &Ask,
        hold: Option<&Hold>,
        assigned: oneshot::Receiver<Assigned>,
        tape: &Tape,
        mut lost: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<oneshot::Receiver<Assigned>> {
        let is_lost = tokio::select! {
            assigned = assigned => Err(assigned),
            () = tape.left_alone() => Ok(false),
            () = &mut lost => Ok(true),
        };
        let assigned = match is_lost {
            Err(assigned) => assigned,
            Ok(is_lost) => {
                // It may have been assigned at this very moment: the supervisor then has it interrupted.
                self.asked.borrow_mut().remove(&turn);
                if is_lost {
                    tape.deny(Denial::Unproven(REDIS_BACK));
                } else {
                    tape.void();
                }
                self.say(Plea::Withdraw { turn }).await;
                return None;
            }
        };
        let (session, fresh) = match assigned {
            Ok(Ok(assigned)) => assigned,
            Ok(Err(denial)) => {
                tape.deny(denial);
                return None;
            }
            Err(_) => {
                tape.deny(Denial::Stopping);
                return None;
            }
        };
        let seat = self.sessions.borrow().get(&session).cloned();
        let Some(seat) = seat else {
            let why = "its session has just ended".to_owned();
            tape.write(Note::Failed(Failure::Broken(why.clone())));
            self.say(Plea::Done { turn, session, outcome: Outcome::Broken(why), context_percent: None }).await;
            return None;
        };
        if let Some((hold, key)) = hold.zip(ask.key.clone()) {
            // From here on the process knows what this turn tells it.
            self.know((ask.pool.clone(), key), Known { print: hold.print, version: hold.lease.version() });
        }
        // Without a lease, turns before it may have gone on with the conversation while it waited.
        let step = conversation::step(&self.print(ask), &ask.messages).ok()?;
        let (outcome, context_percent) = match self.knowledge(ask, &step, fresh, &seat) {
            Knowledge::Other => (Outcome::Forgot, None),
            knowledge => {
                tape.write(Note::Began);
                let fresh = knowledge == Knowledge::Nothing;
                let step = if fresh { self.begin_anew(ask, step) } else { step };
                let is_told_all = fresh && matches!(step, Step::On { appended: true, .. });
                match if is_told_all { self.said(ask, hold).await } else { Ok(Vec::new()) } {
                    Ok(stored) => {
                        let prompt = prompt(turn, ask, fresh, &stored, step);
                        let taken = Taken { turn, session, seat: &seat, ask, step, tape, hold };
                        self.listen(taken, prompt, lost).await
                    }
                    Err(Cut(_)) => {
                        tape.deny(Denial::Unproven(REDIS_BACK));
                        (Outcome::Interrupted, None)
                    }
                }
            }
        };
        let again = (outcome == Outcome::Forgot).then(|| self.wait(turn));
        if again.is_some() {
            // First: its session may be gone before anybody hears of that, and turns behind it wait as well.
            let (pool, key) = (ask.pool.clone(), ask.key.clone());
            self.say(Plea::Ask { turn, pool, key, is_anew: false, resumes: false }).await;
        }
        self.say(Plea::Done { turn, session, outcome, context_percent }).await;
        again
    }

    /// What was said in a turn's conversation, wherever that is kept.
    async fn said(&self, ask: &Ask, hold: Option<&Hold>) -> Result<Vec<Message>, Cut> {
        match hold {
            Some(hold) => hold.lease.said().await,
            None => Ok(self.stored(ask)),
        }
    }

    /// The answer that another machine gave to the same request a moment ago.
    async fn answered(&self, ask: &Ask) -> Option<(String, Option<Usage>)> {
        let (leases, key) = self.leases().zip(ask.key.clone())?;
        leases.answered(&Same { pool: ask.pool.clone(), key, print: ask.print }).await.ok().flatten()
    }

    /// Hears an agent's answer to its end.
    async fn listen(
        self: &Rc<Self>,
        taken: Taken<'_>,
        prompt: Prompt,
        mut lost: Pin<&mut impl Future<Output = ()>>,
    ) -> (Outcome, Option<f64>) {
        let Taken { turn, session, seat, ask, step, tape, hold } = taken;
        let mut answer = seat.agent.turn(prompt);
        // It is the first on an agent that was to take its conversation up again, if it did.
        let is_trial = seat.is_on_trial.replace(false);
        let mut text = String::new();
        // When the supervisor is to be told that something came.
        let mut tell: Option<Instant> = None;
        let mut has_come = false;
        let mut is_left = false;
        let mut is_lost = false;
        // One for the whole turn: a wait that began anew with each piece would never end while an agent talks.
        let mut left_alone = pin!(tape.left_alone());
        loop {
            let piece = tokio::select! {
                // Whether somebody listens is asked first: an agent that talks all the time leaves no other moment.
                biased;
                () = &mut left_alone, if !is_left => {
                    is_left = true;
                    self.say(Plea::Withdraw { turn }).await;
                    continue;
                }
                () = &mut lost, if !is_lost => {
                    // What it still says is nobody's: another machine may have a turn of this conversation by now.
                    is_lost = true;
                    tape.deny(Denial::Unproven(REDIS_BACK));
                    self.say(Plea::Withdraw { turn }).await;
                    continue;
                }
                piece = answer.next() => piece,
                () = sleep_until(tell.unwrap_or_else(Instant::now)), if tell.is_some() => {
                    tell = None;
                    self.say(Plea::Heard { session }).await;
                    continue;
                }
            };
            let is_stopped = is_left || seat.interrupted.borrow().is_some();
            if is_trial
                && !is_stopped
                && text.is_empty()
                && piece.as_ref().is_some_and(|one| is_forgetful(one, !has_come))
            {
                return (Outcome::Forgot, None);
            }
            tell = tell.or_else(|| Some(Instant::now() + if has_come { HEARD_EVERY } else { SOON }));
            has_come = true;
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
                Some(Piece::Final { text: whole, usage, context_percent, agent_session }) => {
                    let given = if ask.is_streamed && !text.is_empty() { Some(text.clone()) } else { None };
                    let text = whole.unwrap_or(text);
                    if seat.is_exec
                        && timeout(LAST_WORDS, seat.is_gone()).await.is_ok()
                        && let Some((why, true)) = seat.ended.borrow().clone()
                    {
                        // The end of its output is the end of its answer only if it ended as it should.
                        tape.write(Note::Failed(Failure::Broken(why.clone())));
                        return (Outcome::Broken(why), None);
                    }
                    if is_lost {
                        return (Outcome::Interrupted, None);
                    }
                    if let Some(key) = ask.key.as_ref().filter(|_| !ask.is_aside) {
                        // Before it is answered: what was acknowledged is known after a crash as well.
                        let (said, is_all) = match step {
                            Step::On { new, .. } => (new, false),
                            Step::Anew { .. } => (&*ask.messages, true),
                        };
                        let said = [said, &[Message::new(Role::Assistant, given.as_deref().unwrap_or(&text))]].concat();
                        match hold {
                            None => self.store(&ask.pool, key, &said, is_all),
                            Some(hold) => {
                                let answered = (ask.print != 0).then_some((text.as_str(), usage));
                                if self.commit(ask, hold, &said, is_all, answered).await.is_err() {
                                    tape.deny(Denial::Unproven(REDIS_BACK));
                                    return (Outcome::Interrupted, None);
                                }
                            }
                        }
                        self.note_agent(ask, agent_session);
                    }
                    tape.write(Note::Final(text, usage));
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
        let _ = timeout(LAST_WORDS, seat.is_gone()).await;
        let stopped = seat.interrupted.take();
        let better = seat.ended.borrow().clone().map(|(why, _)| why);
        tape.write(Note::Failed(match (stopped, better) {
            (Some(why), _) => Failure::Stopped(why),
            (None, Some(better)) => Failure::Broken(format!("{why}: {better}")),
            (None, None) => Failure::Broken(why),
        }));
        None
    }
}

/// Whether a request says that its conversation, of which this is known, went otherwise: not of one that is new.
fn goes_otherwise(print: &Print, ask: &Ask) -> Result<bool, Problem> {
    Ok(matches!(conversation::step(print, &ask.messages)?, Step::Anew { .. }) && !print.is_empty())
}

/// What an agent is asked: all of it when its process is new to the conversation, else what is new.
fn prompt(turn: Turn, ask: &Ask, fresh: bool, stored: &[Message], step: Step<'_>) -> Prompt {
    let told: Vec<&Message> = match step {
        Step::On { new, appended: true } if fresh => stored.iter().chain(new).collect(),
        Step::On { new, .. } if !fresh => new.iter().collect(),
        _ => ask.messages.iter().collect(),
    };
    let (system, messages): (Vec<&Message>, Vec<&Message>) =
        told.into_iter().partition(|message| message.role == Role::System);
    let system: Vec<&str> =
        system.iter().map(|message| message.content.as_str()).chain(ask.instruction.as_deref()).collect();
    let mut system = (!system.is_empty()).then(|| system.join("\n\n"));
    let mut messages: Vec<Message> = messages.into_iter().cloned().collect();
    // Where nobody asks, how the agent is to be is the question.
    if !messages.iter().any(|message| matches!(message.role, Role::User | Role::Tool)) {
        messages.extend(system.take().map(|text| Message::new(Role::User, text)));
    }
    Prompt { turn, session: ask.key.as_deref().unwrap_or("default").to_owned(), messages, system }
}
