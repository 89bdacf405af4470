//! What is kept of one pool: its sessions, the turns that wait for one, and whether starts are worth a try.
//!
//! A pool is a service whose replicas are sessions: their processes are admitted, measured, evicted, ended and certified as
//! those of any service. What is its own is when there is one, and who has it:
//!
//! ```text
//! starting → warm → busy ⇄ idle → (recycling | closing) → gone
//! ```
//! A process takes on the first conversation that comes, and then keeps to it. When it is replaced, its conversation waits
//! until nothing is left of the old one: a pool never has more processes than `max_sessions` and `warm` together.
//!
//! A conversation that its agent can take up by itself (`--resume`) gets no process that runs already: one is started for it
//! alone, and is its own from the beginning.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use plimsoll_model::pool::PoolSpec;

use super::event::Recycle;
use super::name::{Name, Turn};

/// After so many failures in a row the circuit is open: who asks is told so at once, and a start is tried now and then.
const ROW: u32 = 5;

/// A process that nobody has taken and that ends earlier did not really start: not every protocol has a word for "ready".
pub(super) const PROVEN_AFTER: Duration = Duration::from_secs(2);

/// Between two starts that fail; doubled each time.
const SHORTEST: Duration = Duration::from_millis(100);

/// And at most so much.
const LONGEST: Duration = Duration::from_secs(60);

/// One pool.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    pub(super) spec: Arc<PoolSpec>,
    /// By the number of the replica.
    pub(super) sessions: BTreeMap<u32, Session>,
    /// In the order in which they came.
    pub(super) queue: VecDeque<Asked>,
    pub(super) circuit: Circuit,
    pub(super) counts: Counts,
    /// How long a turn takes, lately.
    pub(super) turn_time: Duration,
    /// A turn has a session, and there is no room for what it needs.
    pub(super) lacks_room: bool,
}

/// What a pool has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Counts {
    pub(super) turns: u64,
    pub(super) refused: u64,
    pub(super) recycled: u64,
    pub(super) closed: u64,
    pub(super) survivors: u64,
}

/// A turn that waits for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) turn: Turn,
    /// Its conversation.
    pub(super) key: Option<Name>,
    /// The process that knows its conversation is of no use for it.
    pub(super) is_anew: bool,
    /// An agent that is started for it can take its conversation up again.
    pub(super) resumes: bool,
    pub(super) since: Duration,
}

/// One process, from when it is wanted until nothing is left of it.
#[derive(Debug, Clone)]
pub(super) struct Session {
    pub(super) owner: Owner,
    pub(super) phase: Phase,
    /// That it has taken on.
    pub(super) turns: u32,
    pub(super) context_percent: Option<f64>,
    /// Its start came to something: it has said a word, or lived for a while since it could take a turn.
    pub(super) is_proven: bool,
    /// Something came from it within a turn.
    pub(super) has_spoken: bool,
    /// Nobody waits for it: it is for those to come.
    pub(super) is_ahead: bool,
    /// It is started to take its conversation up again.
    pub(super) resumes: bool,
}

/// Whose a session is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nobody's yet.
    None,
    /// A conversation's.
    Key(Name),
    /// One request's that belongs to no conversation.
    One,
    /// Everybody's whose request belongs to no conversation.
    Shared,
}

/// What a session is doing. That it is being ended is known by its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// It cannot take a turn yet; until then at the latest, once it runs.
    Starting(Option<Duration>),
    /// It has a turn.
    Busy(Running),
    /// It has none, since then.
    Idle(Duration),
}

/// A turn that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Running {
    pub(super) turn: Turn,
    pub(super) since: Duration,
    /// When something came last.
    pub(super) heard: Option<Duration>,
    /// It is being interrupted: how long that is waited for, and why the session is replaced then.
    pub(super) stop: Option<(Duration, Recycle)>,
}

impl Session {
    pub(super) fn new() -> Self {
        Self {
            owner: Owner::None,
            phase: Phase::Starting(None),
            turns: 0,
            context_percent: None,
            is_proven: false,
            has_spoken: false,
            is_ahead: true,
            resumes: false,
        }
    }

    /// One that is to take this conversation up again.
    pub(super) fn resuming(key: Name) -> Self {
        Self { owner: Owner::Key(key), is_ahead: false, resumes: true, ..Self::new() }
    }

    pub(super) fn is_warm(&self) -> bool {
        self.owner == Owner::None && matches!(self.phase, Phase::Idle(_))
    }

    pub(super) fn running(&self) -> Option<&Running> {
        match &self.phase {
            Phase::Busy(running) => Some(running),
            _ => None,
        }
    }
}

impl Pool {
    pub(super) fn new(spec: Arc<PoolSpec>) -> Self {
        Self {
            spec,
            sessions: BTreeMap::new(),
            queue: VecDeque::new(),
            circuit: Circuit::default(),
            counts: Counts::default(),
            turn_time: Duration::from_secs(5),
            lacks_room: false,
        }
    }

    /// The session of a conversation.
    pub(super) fn of_key(&self, key: &Name) -> Option<(u32, &Session)> {
        self.sessions
            .iter()
            .find(|(_, one)| matches!(&one.owner, Owner::Key(owner) if owner == key))
            .map(|(n, s)| (*n, s))
    }

    /// The session that has a turn.
    pub(super) fn of_turn(&self, turn: Turn) -> Option<u32> {
        self.sessions.iter().find(|(_, one)| one.running().is_some_and(|running| running.turn == turn)).map(|(n, _)| *n)
    }

    /// Whether nobody waits for this one.
    pub(super) fn is_ahead(&self, number: u32) -> bool {
        self.sessions.get(&number).is_some_and(|session| session.is_ahead)
    }

    /// The conversation that this one is started to take up again.
    pub(super) fn resumed(&self, number: u32) -> Option<Name> {
        let session = self.sessions.get(&number).filter(|session| session.resumes)?;
        if let Owner::Key(key) = &session.owner { Some(key.clone()) } else { None }
    }

    /// No agent takes this conversation up again: whoever is next with it is told.
    pub(super) fn give_up_resuming(&mut self, key: &Name) {
        self.queue.iter_mut().filter(|asked| asked.key.as_ref() == Some(key)).for_each(|asked| asked.resumes = false);
    }

    /// Sessions that are somebody's.
    pub(super) fn owned(&self) -> usize {
        self.sessions.values().filter(|one| one.owner != Owner::None).count()
    }

    /// Processes at most.
    pub(super) fn most(&self) -> usize {
        self.spec.max_sessions as usize + self.spec.warm as usize
    }

    /// Everything that waits for somebody waits so much longer: nobody is blamed for a jump of the clock.
    pub(super) fn shift(&mut self, by: Duration) {
        self.queue.iter_mut().for_each(|asked| asked.since += by);
        for session in self.sessions.values_mut() {
            match &mut session.phase {
                Phase::Starting(until) => *until = until.map(|until| until + by),
                Phase::Busy(running) => {
                    running.since += by;
                    running.heard = running.heard.map(|heard| heard + by);
                    running.stop = running.stop.take().map(|(until, why)| (until + by, why));
                }
                Phase::Idle(_) => {}
            }
        }
    }

    /// A turn took so long.
    pub(super) fn took(&mut self, time: Duration) {
        self.turn_time = (self.turn_time * 7 + time) / 8;
    }

    /// When one more is worth another try: after those that wait, as long as turns take lately; 1 to 120 s.
    pub(super) fn retry_after(&self) -> Duration {
        let at_a_time = u32::try_from(self.owned().max(1)).unwrap_or(u32::MAX);
        let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX).saturating_add(1);
        let wait = self.turn_time.saturating_mul(waiting) / at_a_time;
        wait.clamp(Duration::from_secs(1), Duration::from_secs(120))
    }
}

/// Whether starts are worth a try.
///
/// There are two rows of failures. A start has failed when the process ends before anybody took it and before it was proven.
/// A process is *silent* when it ends within its first turn and has not said a word: an agent that is broken does that to
/// everybody, and a question that ends whoever hears it does it to one conversation alone. So of each conversation one counts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Circuit {
    /// Failed starts in a row.
    starts: u32,
    /// Silent processes in a row.
    silent: u32,
    /// The conversations of those.
    whose: BTreeSet<Name>,
    /// No start before.
    pub(super) until: Duration,
}

impl Circuit {
    /// A start has failed; whether the circuit opened with it.
    pub(super) fn failed(&mut self, now: Duration) -> bool {
        let was_open = self.is_open();
        self.starts = self.starts.saturating_add(1);
        self.wait(now);
        !was_open && self.is_open()
    }

    /// A process was silent in a turn of this conversation, or of none; whether the circuit opened with it.
    pub(super) fn silent(&mut self, now: Duration, key: Option<&Name>) -> bool {
        let was_open = self.is_open();
        // A trial that comes to nothing counts, whoever asked; and so nothing is added to an open one's conversations.
        let is_another = was_open || key.is_none_or(|key| self.whose.insert(key.clone()));
        self.silent = self.silent.saturating_add(u32::from(is_another));
        if self.is_open() {
            self.wait(now);
        }
        !was_open && self.is_open()
    }

    fn wait(&mut self, now: Duration) {
        let delay = SHORTEST.saturating_mul(1 << (self.failures() - 1).min(16)).min(LONGEST);
        self.until = now + if self.is_open() { delay.max(Duration::from_secs(5)) } else { delay };
    }

    /// A start came to something; whether the circuit was open until then.
    pub(super) fn started(&mut self) -> bool {
        let was_open = self.is_open();
        self.starts = 0;
        if !self.is_open() {
            self.until = Duration::ZERO;
        }
        was_open && !self.is_open()
    }

    /// Something came from an agent within a turn; whether the circuit was open until then.
    pub(super) fn spoke(&mut self) -> bool {
        std::mem::take(self).is_open()
    }

    /// Failures in a row, of whichever kind.
    fn failures(&self) -> u32 {
        self.starts.max(self.silent)
    }

    /// Failures in a row that somebody has to know of: processes that are silent here and there say nothing of the others.
    pub(super) fn told(&self) -> u32 {
        if self.is_open() { self.failures() } else { self.starts }
    }

    /// Who needs a start is told so at once.
    pub(super) fn is_open(&self) -> bool {
        self.failures() >= ROW
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn a_circuit_opens_after_a_row_and_closes_with_a_success() {
        let mut circuit = Circuit::default();
        let opened: Vec<bool> = (0..12).map(|_| circuit.failed(S(100))).collect();
        assert_eq!(opened.iter().position(|&opens| opens), Some(4));
        assert_eq!(opened.iter().filter(|&&opens| opens).count(), 1);
        assert_eq!(circuit.until, S(160), "a trial a minute in the end");
        assert!(circuit.started() && !circuit.is_open() && circuit.until == S(0));
        circuit.failed(S(1));
        assert_eq!(circuit.until, S(1) + SHORTEST);
    }

    #[test]
    fn one_conversation_does_not_open_it_and_several_do() {
        let name = |number: u32| Name::from(format!("room-{number}").as_str());
        let mut circuit = Circuit::default();
        for _ in 0..50 {
            assert!(!circuit.silent(S(1), Some(&name(0))));
        }
        assert_eq!((circuit.silent, circuit.whose.len(), circuit.told(), circuit.until), (1, 1, 0, S(0)));
        // That a start comes to something says nothing of turns.
        let opened: Vec<bool> =
            (1..8).map(|room| (circuit.started(), circuit.silent(S(1), Some(&name(room)))).1).collect();
        assert_eq!(opened.iter().position(|&opens| opens), Some(3));
        assert_eq!(opened.iter().filter(|&&opens| opens).count(), 1);
        assert!(!circuit.started() && circuit.is_open());
        let (until, whose) = (circuit.until, circuit.whose.clone());
        assert!(!circuit.silent(until, Some(&name(0))) && circuit.until > until, "a trial counts, whoever asked");
        assert_eq!(circuit.whose, whose);
        assert!(circuit.spoke() && circuit == Circuit::default());
        // Requests of no conversation have nothing in common.
        let opened: Vec<bool> = (0..5).map(|_| circuit.silent(S(1), None)).collect();
        assert_eq!(opened, [false, false, false, false, true]);
    }
}
