//! Agents: processes that answer turns over a pair of pipes.
//!
//! An [`Agent`] is one process's pipes and what is spoken over them. Two tasks of this thread serve it: [`reader`] takes
//! its output apart ([`lines`]), lets the protocol make something of it ([`dialog`]: [`claude`], [`jsonl`], [`exec`]) and
//! hands the turn's pieces ([`piece`]) to whoever asked; [`writer`] says what is to be said. They never wait for each
//! other, so that an agent that writes before it reads holds nothing up; and a reader whose listener is slow stops
//! reading, so that the pipe fills and the agent waits.
//!
//! When the process is gone is not seen here: a grandchild may hold the pipe open. Whoever knows says so
//! ([`Agent::end`]).

pub mod claude;
pub mod dialog;
pub mod exec;
pub mod jsonl;
pub mod lines;
mod loose;
pub mod piece;
mod pieces;
pub mod prompt;
mod reader;
mod writer;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll};

use plimsoll_model::pool::Protocol;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use dialog::Dialog;
pub use piece::{Piece, Usage};
use pieces::{Giver, Taker};
pub use prompt::{Message, Prompt, Role};
use writer::Outbox;

/// A delta is handed on in parts of at most so many bytes.
const PART: usize = 32 << 10;

/// An agent is no longer to be spoken with: why, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);

/// Where an agent is between its start and its end, as far as its pipes tell.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Starting,
    Ready,
    /// It has had its only turn.
    Used,
    Broken(String),
}

/// Is told each line that was not understood.
type OnGarbage = Box<dyn Fn(&[u8])>;

/// A turn that was asked for and has not begun.
struct Asked {
    prompt: Prompt,
    answer: Giver,
}

/// What the agent's handle and its two tasks share.
struct Shared {
    dialog: RefCell<Dialog>,
    phase: watch::Sender<Phase>,
    asked: RefCell<Option<Asked>>,
    /// A turn was asked for and its last piece has not been handed on.
    is_busy: Cell<bool>,
    /// Its process is gone: why.
    ended: RefCell<Option<String>>,
    /// It does not take what we say.
    is_deaf: Cell<bool>,
    to_reader: Notify,
    outbox: RefCell<Outbox>,
    to_writer: Notify,
    garbage: Cell<u64>,
    on_garbage: OnGarbage,
}

impl Shared {
    /// Says something, in its turn.
    fn say(&self, bytes: Vec<u8>) {
        if self.outbox.borrow_mut().put(bytes) {
            self.to_writer.notify_one();
        } else {
            self.deaf();
        }
    }

    fn deaf(&self) {
        self.is_deaf.set(true);
        self.to_reader.notify_one();
    }

    fn broken(&self) -> Option<String> {
        match &*self.phase.borrow() {
            Phase::Starting => Some("the agent is not ready yet".to_owned()),
            Phase::Ready => None,
            Phase::Used => Some("the agent has had its only turn".to_owned()),
            Phase::Broken(why) => Some(why.clone()),
        }
    }

    fn become_ready(&self) {
        self.phase.send_if_modified(|phase| {
            let was = *phase == Phase::Starting;
            if was {
                *phase = Phase::Ready;
            }
            was
        });
    }

    /// The first reason stays.
    fn break_down(&self, why: String) {
        self.phase.send_if_modified(|phase| {
            let was = !matches!(phase, Phase::Broken(_) | Phase::Used);
            if was {
                *phase = Phase::Broken(why);
            }
            was
        });
    }
}

/// One process's two pipes and what is spoken over them. It lives on the thread that it was adopted on; dropped, both pipes
/// are closed.
pub struct Agent {
    shared: Rc<Shared>,
    tasks: [JoinHandle<()>; 2],
}

impl Agent {
    /// Takes a process's standard input and output. Lines of its output may have `max_line` bytes. `on_garbage` is told each
    /// line that is none of its protocol's, to be logged (with a bound); it must not ask the agent anything.
    ///
    /// # Errors
    /// When these are no pipes, or no event queue takes them. Outside a [`tokio::task::LocalSet`] or local runtime it panics.
    pub fn adopt(
        protocol: Protocol,
        max_line: u64,
        stdin: OwnedFd,
        stdout: OwnedFd,
        on_garbage: impl Fn(&[u8]) + 'static,
    ) -> io::Result<Self> {
        let (stdin, stdout) = (Sender::from_owned_fd(stdin)?, Receiver::from_owned_fd(stdout)?);
        let shared = Rc::new(Shared {
            dialog: RefCell::new(Dialog::new(protocol)),
            phase: watch::Sender::new(Phase::Starting),
            asked: RefCell::default(),
            is_busy: Cell::new(false),
            ended: RefCell::default(),
            is_deaf: Cell::new(false),
            to_reader: Notify::new(),
            outbox: RefCell::default(),
            to_writer: Notify::new(),
            garbage: Cell::new(0),
            on_garbage: Box::new(on_garbage),
        });
        let max_line = usize::try_from(max_line).unwrap_or(usize::MAX);
        let tasks = [
            tokio::task::spawn_local(reader::read(stdout, shared.clone(), max_line)),
            tokio::task::spawn_local(writer::write(stdin, shared.clone())),
        ];
        Ok(Self { shared, tasks })
    }

    /// Says what has to be said first and waits until the agent can take a turn. To be called once; how long that may take
    /// is for others to judge.
    ///
    /// # Errors
    /// When it never will.
    pub async fn start(&self) -> Result<(), Broken> {
        let mut phase = self.shared.phase.subscribe();
        let first = self.shared.dialog.borrow_mut().start();
        match first {
            Some(first) => self.shared.say(first),
            None => self.shared.become_ready(),
        }
        // The sender is ours: it cannot be gone.
        let phase = phase.wait_for(|phase| *phase != Phase::Starting).await;
        match phase.as_deref() {
            Ok(Phase::Broken(why)) => Err(Broken(why.clone())),
            _ => Ok(()),
        }
    }

    /// Asks. One turn at a time: what cannot begin has [`Piece::Broken`] as its only piece.
    pub fn turn(&self, prompt: Prompt) -> Answer {
        let (answer, pieces) = pieces::way();
        let refused =
            self.shared.broken().or_else(|| self.is_busy().then(|| "the agent has a turn already".to_owned()));
        match refused {
            Some(why) => drop(answer.try_give(Piece::Broken(why))),
            None => {
                self.shared.is_busy.set(true);
                self.shared.asked.replace(Some(Asked { prompt, answer }));
                self.shared.to_reader.notify_one();
            }
        }
        Answer { pieces, is_over: false }
    }

    /// Whether a turn runs: also one whose [`Answer`] was dropped, until the agent has ended it.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.shared.is_busy.get()
    }

    /// Asks the agent to stop the turn that runs; its last piece follows when it does. Whether there was something to ask
    /// for: not when no turn runs, it was asked before, or the protocol has no word for it (`exec`).
    pub fn interrupt(&self) -> bool {
        if let Some(asked) = self.shared.asked.take() {
            self.shared.is_busy.set(false);
            let _ = asked.answer.try_give(Piece::Interrupted);
            return true;
        }
        let said = self.shared.dialog.borrow_mut().interrupt();
        said.is_some_and(|said| {
            self.shared.say(said);
            true
        })
    }

    /// Tells it that memory gets short or no longer is, where its protocol has a word for that. The newest word alone
    /// reaches an agent that is slow to listen.
    pub fn stage(&self, stage: &str, scale: f64) {
        if let Some(said) = self.shared.dialog.borrow().pressure(stage, scale) {
            self.shared.outbox.borrow_mut().stage = Some(said);
            self.shared.to_writer.notify_one();
        }
    }

    /// Closes its standard input: end of input means finish and exit. What the pipe does not take at once is not said any
    /// more.
    pub fn hangup(&self) {
        self.shared.outbox.borrow_mut().hangup = true;
        self.shared.to_writer.notify_one();
    }

    /// Its process is gone: `why`, in words for whoever waits for its answer. What the pipe still holds is heard before.
    pub fn end(&self, why: &str) {
        self.shared.ended.borrow_mut().get_or_insert_with(|| why.to_owned());
        self.shared.to_reader.notify_one();
        self.hangup();
    }

    /// Waits until the agent is no longer to be spoken with, within a turn or between two. For an agent of one turn that had
    /// it, for ever.
    pub async fn lost(&self) -> Broken {
        let mut phase = self.shared.phase.subscribe();
        let lost = phase.wait_for(|phase| matches!(phase, Phase::Broken(_))).await;
        match lost.as_deref() {
            Ok(Phase::Broken(why)) => Broken(why.clone()),
            _ => std::future::pending().await,
        }
    }

    /// The agent's own name for its conversation, once it has told.
    #[must_use]
    pub fn agent_session(&self) -> Option<String> {
        match &*self.shared.dialog.borrow() {
            Dialog::Claude(dialog) => dialog.session().map(str::to_owned),
            Dialog::Jsonl(_) | Dialog::Exec(_) => None,
        }
    }

    /// Lines so far that were none of its protocol's.
    #[must_use]
    pub fn garbage(&self) -> u64 {
        self.shared.garbage.get()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// The pieces of one turn, as they come. Whoever does not take them makes the agent wait; dropped, the rest of the turn is
/// heard and forgotten.
#[derive(Debug)]
pub struct Answer {
    pieces: Taker,
    is_over: bool,
}

impl Answer {
    /// The next piece; `None` after the last one.
    pub async fn next(&mut self) -> Option<Piece> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`Self::next`], for who polls.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Piece>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        self.pieces.poll_take(context).map(|piece| {
            // Without a last piece: the agent was dropped.
            let piece = piece.unwrap_or_else(|| Piece::Broken("the session was closed".to_owned()));
            self.is_over = piece.is_last();
            Some(piece)
        })
    }
}
