//! What an agent says: taken from its pipe as fast as somebody listens, and to the end.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::unix::pipe::Receiver;

use super::dialog::{Dialog, Word};
use super::lines::Lines;
use super::piece::Piece;
use super::pieces::{Giver, NotGiven};
use super::{PART, Phase, Shared};

/// Bytes that are taken from the pipe at once.
const CHUNK: usize = 32 << 10;

/// Bytes between two turns that are read and forgotten, if a line may not be longer. Whoever says more talks to itself.
const UNASKED: usize = 1 << 20;

/// Reads in a row before others have their turn.
const IN_A_ROW: u32 = 32;

/// A pipe holds at most so much, as it comes from the kernel.
const PIPE: usize = 1 << 20;

/// What a look at the pipe gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Read(usize),
    Empty,
    Closed,
}

/// Why nothing more is heard.
enum End {
    /// Its output is closed.
    Closed,
    /// Its process is gone: why.
    Gone(String),
    /// It is not understood, or does not listen: why.
    Failed(String),
}

/// One agent's reader.
struct Reader {
    stdout: Receiver,
    shared: Rc<Shared>,
    lines: Lines,
    /// Whoever asked for the turn that runs, while that listens.
    answer: Option<Giver>,
    had_turn: bool,
    /// What came of the last chunk.
    words: Vec<Word>,
    unasked: usize,
    unasked_at_most: usize,
}

/// Reads until the output ends, the process is gone, or it cannot be understood any more.
pub(super) async fn read(stdout: Receiver, shared: Rc<Shared>, max_line: usize) {
    let mut reader = Reader {
        stdout,
        shared,
        lines: Lines::new(max_line),
        answer: None,
        had_turn: false,
        words: Vec::new(),
        unasked: 0,
        unasked_at_most: UNASKED.max(max_line),
    };
    let end = reader.listen().await;
    reader.end(end).await;
}

impl Reader {
    async fn listen(&mut self) -> End {
        let shared = self.shared.clone();
        let mut in_a_row = 0;
        loop {
            let is_asked = shared.asked.borrow().is_some();
            if is_asked && let Err(end) = self.begin().await {
                return end;
            }
            let ended = shared.ended.borrow().clone();
            if ended.is_some() || shared.is_deaf.get() {
                // It has said what it will say; a pipe that others hold open is not waited for.
                let looked = self.exhaust().await;
                return match (ended, looked) {
                    (Some(why), Ok(()) | Err(End::Closed)) => End::Gone(why),
                    (_, Err(end)) => end,
                    (None, Ok(())) => End::Failed("the agent does not read its input".to_owned()),
                };
            }
            in_a_row += 1;
            if in_a_row == IN_A_ROW {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
            if self.is_early() {
                shared.to_reader.notified().await;
                continue;
            }
            tokio::select! {
                biased;
                () = shared.to_reader.notified() => {}
                looked = poll_fn(|context| self.poll_chunk(context)) => {
                    // Also what came before something that is not understood.
                    let handed_on = self.hand_on().await;
                    match handed_on.and(looked) {
                        Ok(Look::Closed) => return End::Closed,
                        Ok(Look::Read(_) | Look::Empty) => {}
                        Err(end) => return end,
                    }
                }
            }
        }
    }

    /// Begins the turn that is asked for. What the agent said before answers nothing.
    async fn begin(&mut self) -> Result<(), End> {
        if !self.is_early() {
            self.exhaust().await?;
        }
        let Some(asked) = self.shared.asked.take() else { return Ok(()) };
        (self.answer, self.had_turn, self.unasked) = (Some(asked.answer), true, 0);
        let mut dialog = self.shared.dialog.borrow_mut();
        let said = dialog.begin(&asked.prompt);
        self.shared.say(said);
        self.shared.outbox.borrow_mut().is_complete = dialog.is_for_one_turn();
        Ok(())
    }

    /// What a process for one turn says is the answer, also when it does not wait for the question.
    fn is_early(&self) -> bool {
        !self.had_turn && self.shared.dialog.borrow().is_for_one_turn()
    }

    /// Hears what is in the pipe by now. It asks the kernel: what the runtime knows of the pipe is older.
    async fn exhaust(&mut self) -> Result<(), End> {
        let mut taken = 0;
        while taken < PIPE {
            let looked = self.hear_chunk();
            self.hand_on().await?;
            match looked? {
                Look::Read(count) => taken += count,
                Look::Empty => break,
                Look::Closed => return Err(End::Closed),
            }
        }
        Ok(())
    }

    /// The chunk lies on the stack: an agent that is silent costs no buffer.
    fn hear_chunk(&mut self) -> Result<Look, End> {
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        match rustix::io::read(&self.stdout, &mut chunk[..]) {
            Ok((read, _)) => self.heard(Ok(read)),
            Err(errno) => self.heard(Err(errno.into())),
        }
    }

    /// As [`Self::hear_chunk`], when there is something. A chunk that is not full has emptied the pipe, which the runtime
    /// knows without asking again.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Result<Look, End>> {
        let mut chunk = [MaybeUninit::uninit(); CHUNK];
        let mut chunk = ReadBuf::uninit(&mut chunk);
        let read = ready!(Pin::new(&mut self.stdout).poll_read(context, &mut chunk));
        Poll::Ready(self.heard(read.map(|()| chunk.filled())))
    }

    fn heard(&mut self, read: io::Result<&[u8]>) -> Result<Look, End> {
        match read {
            Ok([]) => Ok(Look::Closed),
            Ok(chunk) => self.hear(chunk).map(|()| Look::Read(chunk.len())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(Look::Empty),
            Err(error) => Err(End::Failed(format!("the agent's output cannot be read: {error}"))),
        }
    }

    fn hear(&mut self, chunk: &[u8]) -> Result<(), End> {
        let mut dialog = self.shared.dialog.borrow_mut();
        let was_asked = dialog.is_in_turn();
        if dialog.has_lines() {
            let (shared, words) = (&*self.shared, &mut self.words);
            let pushed = self.lines.push(chunk, |line| hear_line(&mut dialog, line, shared, words));
            pushed.map_err(|error| End::Failed(error.to_string()))?;
        } else {
            dialog.hear(chunk, |word| self.words.push(word));
        }
        if dialog.is_in_turn() {
            if self.words.is_empty() {
                self.words.push(Word::Piece(Piece::Alive));
            }
        } else if !was_asked {
            self.unasked += chunk.len();
            if self.unasked > self.unasked_at_most {
                let limit = self.unasked_at_most;
                return Err(End::Failed(format!("the agent said more than {limit} bytes without being asked")));
            }
        }
        Ok(())
    }

    /// Does what the words want, in their order.
    async fn hand_on(&mut self) -> Result<(), End> {
        let mut words = std::mem::take(&mut self.words);
        for word in words.drain(..) {
            match word {
                Word::Piece(piece) => self.give(piece).await,
                Word::Reply(said) => self.shared.say(said),
                Word::Ready => self.shared.become_ready(),
                Word::Unfit(why) => return Err(End::Failed(why)),
                Word::Garbage => {}
            }
        }
        // Its room is used again, unless that is large.
        if words.capacity() <= 16 {
            self.words = words;
        }
        Ok(())
    }

    /// Waits until there is room for a piece, so that the pipe fills and the agent waits as well.
    async fn give(&mut self, piece: Piece) {
        if piece.is_last() {
            self.shared.is_busy.set(false);
        }
        let Some(answer) = &self.answer else { return };
        let is_last = piece.is_last();
        let is_heard = match piece {
            // Where there is no room for it there is something better to be heard.
            Piece::Alive => answer.try_give(piece) != Err(NotGiven::Gone),
            Piece::Delta(text) if text.len() > PART => give_parts(answer, &text).await,
            piece => answer.give(piece).await,
        };
        if is_last || !is_heard {
            self.answer = None;
        }
    }

    async fn end(mut self, end: End) {
        let why = self.hear_the_end(end);
        let _ = self.hand_on().await;
        if let Some(asked) = self.shared.asked.take() {
            self.shared.is_busy.set(false);
            let _ = asked.answer.try_give(Piece::Broken(why));
        }
    }

    /// Why it is over, in words.
    fn hear_the_end(&mut self, end: End) -> String {
        let mut dialog = self.shared.dialog.borrow_mut();
        let (shared, words) = (&*self.shared, &mut self.words);
        if matches!(end, End::Closed | End::Gone(_)) {
            self.lines.finish(|line| hear_line(&mut dialog, line, shared, words));
        }
        let known = match &end {
            End::Closed => None,
            End::Gone(why) | End::Failed(why) => Some(why.as_str()),
        };
        dialog.end(known, |word| words.push(word));
        let is_starting = *shared.phase.borrow() == Phase::Starting;
        let why = match end {
            End::Closed if is_starting => "the agent closed its output before it was ready".to_owned(),
            End::Closed => "the agent closed its output".to_owned(),
            End::Gone(why) | End::Failed(why) => why,
        };
        if self.had_turn && dialog.is_for_one_turn() {
            shared.phase.send_replace(Phase::Used);
        } else {
            shared.break_down(why.clone());
        }
        why
    }
}

fn hear_line(dialog: &mut Dialog, line: &[u8], shared: &Shared, words: &mut Vec<Word>) {
    dialog.hear(line, |word| match word {
        Word::Garbage => {
            shared.garbage.set(shared.garbage.get() + 1);
            (shared.on_garbage)(line);
        }
        Word::Piece(Piece::Alive) if words.last() == Some(&Word::Piece(Piece::Alive)) => {}
        word => words.push(word),
    });
}

/// Whether somebody listened to the end.
async fn give_parts(answer: &Giver, mut text: &str) -> bool {
    while !text.is_empty() {
        let (part, rest) = text.split_at(text.floor_char_boundary(PART));
        if !answer.give(Piece::Delta(part.to_owned())).await {
            return false;
        }
        text = rest;
    }
    true
}
