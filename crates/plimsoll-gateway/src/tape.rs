//! What one turn says, written once and read by everybody who asked for it; and those of a moment ago.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::agent::Usage;
use crate::desk::Denial;

/// A turn whose askers have gone goes on for so long: one that asks again finds it running.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

/// Turns that are over are known to those that ask again: for so long, so many, and so many bytes of them.
const KNOWN_FOR: Duration = Duration::from_secs(60);
const MOST_KNOWN: usize = 1024;
const MOST_KNOWN_BYTES: usize = 8 << 20;

/// What makes two requests one turn.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Same {
    pub(crate) pool: Arc<str>,
    pub(crate) key: Arc<str>,
    pub(crate) print: u64,
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
    Final(String, Option<Usage>),
    /// There is no (more) answer.
    Failed(Failure),
}

/// What one turn has said so far, for everybody who wants to hear it.
#[derive(Debug)]
pub(crate) struct Tape {
    notes: RefCell<Vec<Note>>,
    /// Those who wait for the next note, by the readers' numbers.
    waiting: RefCell<BTreeMap<u64, Waker>>,
    /// A reader has gone.
    left: Notify,
    readers: Cell<usize>,
    last_reader: Cell<u64>,
    goes_on: bool,
    /// Its turn has not begun and never will: whoever sends it again is not to hear this.
    is_void: Cell<bool>,
}

/// One who reads a tape, from its beginning.
#[derive(Debug)]
pub(crate) struct Reader {
    tape: Rc<Tape>,
    number: u64,
    at: usize,
}

/// The tapes of turns that run, and of those that are just over.
#[derive(Default)]
pub(crate) struct Tapes {
    by: BTreeMap<Same, Rc<Tape>>,
    /// Those that are over, the oldest first, each with its bytes.
    over: VecDeque<(Instant, Same, Rc<Tape>, usize)>,
    bytes: usize,
}

impl Tape {
    pub(crate) fn new(goes_on: bool) -> Rc<Self> {
        Rc::new(Self {
            notes: RefCell::default(),
            waiting: RefCell::default(),
            left: Notify::new(),
            readers: Cell::new(0),
            last_reader: Cell::new(0),
            goes_on,
            is_void: Cell::new(false),
        })
    }

    pub(crate) fn write(&self, note: Note) {
        self.notes.borrow_mut().push(note);
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        waiting.into_values().for_each(Waker::wake);
    }

    /// Its turn never began: whoever sends it again begins it.
    pub(crate) fn void(&self) {
        self.is_void.set(true);
    }

    pub(crate) fn deny(&self, denial: Denial) {
        self.void();
        self.write(Note::Failed(Failure::Denied(denial)));
    }

    /// Whether it holds a whole answer.
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.notes.borrow().last(), Some(Note::Final(..)))
    }

    fn bytes(&self) -> usize {
        let notes = self.notes.borrow();
        let text = |note: &Note| match note {
            Note::Delta(text) | Note::Final(text, _) => text.capacity(),
            Note::Began | Note::Failed(_) => 0,
        };
        notes.capacity() * size_of::<Note>() + notes.iter().map(text).sum::<usize>()
    }

    pub(crate) fn read(self: &Rc<Self>) -> Reader {
        self.readers.set(self.readers.get() + 1);
        self.last_reader.set(self.last_reader.get() + 1);
        Reader { tape: self.clone(), number: self.last_reader.get(), at: 0 }
    }

    /// Waits until nobody has read it for [`LINGER`].
    pub(crate) async fn left_alone(&self) {
        loop {
            if self.goes_on {
                return std::future::pending().await;
            }
            if self.readers.get() == 0 {
                sleep(LINGER).await;
                if self.readers.get() == 0 && !self.goes_on {
                    return;
                }
            }
            self.left.notified().await;
        }
    }
}

impl Reader {
    /// The next note. After a final or failed one there is none, and it must not be asked for.
    pub(crate) async fn next(&mut self) -> Note {
        poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`Self::next`], for who polls.
    pub(crate) fn poll_next(&mut self, context: &Context<'_>) -> Poll<Note> {
        match self.tape.notes.borrow().get(self.at).cloned() {
            Some(note) => {
                self.at += 1;
                Poll::Ready(note)
            }
            None => {
                self.tape.waiting.borrow_mut().insert(self.number, context.waker().clone());
                Poll::Pending
            }
        }
    }

    /// The whole answer.
    pub(crate) async fn whole(mut self) -> Result<(String, Option<Usage>), Failure> {
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
        self.tape.waiting.borrow_mut().remove(&self.number);
        self.tape.left.notify_waiters();
    }
}

impl Tapes {
    /// The turn that is the same, unless it never began.
    pub(crate) fn get(&self, same: &Same) -> Option<&Rc<Tape>> {
        self.by.get(same).filter(|tape| !tape.is_void.get())
    }

    /// A turn begins. How many run at once is bounded where they are admitted.
    pub(crate) fn begin(&mut self, same: Same, tape: &Rc<Tape>) {
        self.by.insert(same, tape.clone());
    }

    /// It is over: the oldest of those that are go, as far as there are too many.
    pub(crate) fn end(&mut self, same: Same, tape: &Rc<Tape>) {
        if tape.is_void.get() {
            self.forget(&same, tape);
            return;
        }
        let bytes = tape.bytes();
        self.bytes += bytes;
        self.over.push_back((Instant::now(), same, tape.clone(), bytes));
        while let Some((since, ..)) = self.over.front()
            && (self.over.len() > MOST_KNOWN || self.bytes > MOST_KNOWN_BYTES || since.elapsed() >= KNOWN_FOR)
            && let Some((_, same, tape, bytes)) = self.over.pop_front()
        {
            self.bytes -= bytes;
            self.forget(&same, &tape);
        }
    }

    fn forget(&mut self, same: &Same, tape: &Rc<Tape>) {
        // The same turn may have been begun anew since.
        if self.by.get(same).is_some_and(|known| Rc::ptr_eq(known, tape)) {
            self.by.remove(same);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(key: usize) -> Same {
        Same { pool: "bot".into(), key: key.to_string().into(), print: 7 }
    }

    fn answered(bytes: usize) -> Rc<Tape> {
        let tape = Tape::new(false);
        tape.write(Note::Final("x".repeat(bytes), None));
        tape
    }

    #[tokio::test]
    async fn the_oldest_that_are_over_go_first_and_none_that_runs() {
        let mut tapes = Tapes::default();
        let running = Tape::new(false);
        tapes.begin(same(usize::MAX), &running);
        for key in 0..MOST_KNOWN + 10 {
            let tape = answered(1);
            tapes.begin(same(key), &tape);
            tapes.end(same(key), &tape);
        }
        assert!(tapes.get(&same(9)).is_none() && tapes.get(&same(10)).is_some());
        assert!(tapes.get(&same(usize::MAX)).is_some());
        assert_eq!(tapes.over.len(), MOST_KNOWN);
    }

    #[tokio::test]
    async fn what_is_kept_has_a_bound_in_bytes() {
        let mut tapes = Tapes::default();
        for key in 0..40 {
            let tape = answered(1 << 20);
            tapes.begin(same(key), &tape);
            tapes.end(same(key), &tape);
            assert!(tapes.bytes <= MOST_KNOWN_BYTES);
        }
        assert!(tapes.get(&same(39)).is_some() && tapes.get(&same(0)).is_none());
        assert_eq!(tapes.by.len(), tapes.over.len());
    }

    #[tokio::test]
    async fn one_that_was_begun_anew_outlives_its_first_try() {
        let mut tapes = Tapes::default();
        let (first, second) = (answered(1), Tape::new(false));
        tapes.begin(same(0), &first);
        tapes.end(same(0), &first);
        tapes.begin(same(0), &second);
        for key in 1..=MOST_KNOWN {
            let tape = answered(1);
            tapes.begin(same(key), &tape);
            tapes.end(same(key), &tape);
        }
        assert!(Rc::ptr_eq(tapes.get(&same(0)).unwrap(), &second));
    }
}
