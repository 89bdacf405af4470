//! `plimsoll top`: the stack, live, on the whole screen.
//!
//! [`feed`] hears, [`model`] knows, [`keys`] says what a key means, [`draw`] makes a picture of a model; only this file
//! touches the terminal.

mod draw;
mod feed;
mod keys;
mod model;
#[cfg(test)]
pub(super) mod tests;

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::time::Duration;

use plimsoll_gateway::control::Command;
use plimsoll_kernel::signal::{SignalFd, SignalSet, stop_by};
use plimsoll_kernel::tree::kill_process;
use plimsoll_store::Paths;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use self::draw::Look;
use self::model::{Effect, Message, Model};
use crate::fault::Fault;
use crate::tone::{self, Tone};

/// Show the stack live: memory against its lines, trees, events; restart, stop, kill
///
/// Arrows select, ? shows all keys. Nothing is restarted, stopped or killed without a question. When the supervisor goes,
/// it waits for the next one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code: 0 left with q, 1 no stack runs here, 2 this is no terminal.")]
pub(crate) struct TopArgs {}

/// Longest time between a message or a signal and the picture.
const TICK: Duration = Duration::from_millis(100);

const HANGUP: i32 = 1;
const INTERRUPT: i32 = 2;
const QUIT: i32 = 3;
const TERMINATE: i32 = 15;
const TERMINAL_STOP: i32 = 20;

pub(crate) fn main(_: &TopArgs, paths: &Paths) -> Result<ExitCode, Fault> {
    for (is_terminal, name) in [(io::stdin().is_terminal(), "stdin"), (io::stdout().is_terminal(), "stdout")] {
        if !is_terminal {
            return Err(Fault::usage(
                format!("top needs a terminal, and {name} is none"),
                "`plimsoll status` prints once, `plimsoll status --json` for scripts",
            ));
        }
    }
    let mut model = Model::default();
    model.hear(feed::glance(paths)?);
    let failed = |why: String| Fault::failed(why, "is this terminal still there?");
    // Taken before there is a second thread, so that none of them has it otherwise.
    let set = SignalSet::of(&[HANGUP, INTERRUPT, QUIT, TERMINATE, TERMINAL_STOP]);
    set.block().map_err(|error| failed(error.to_string()))?;
    let signals = SignalFd::new(&set).map_err(|error| failed(error.to_string()))?;
    let (messages, commands) = feed::start(paths);
    // Its panic hook gives the terminal back, too.
    let mut terminal = ratatui::try_init().map_err(|error| failed(error.to_string()))?;
    let ended = live(&mut terminal, &mut model, &signals, &messages, &commands);
    ratatui::restore();
    ended.map_err(|error| failed(format!("the terminal cannot be used: {error}")))
}

fn live(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    signals: &SignalFd,
    messages: &Receiver<Message>,
    commands: &SyncSender<Command>,
) -> io::Result<ExitCode> {
    let look = Look { is_coloured: !tone::is_colour_refused() };
    loop {
        terminal.draw(|frame| draw::draw(model, look, frame.area(), frame.buffer_mut()))?;
        loop {
            let mut is_changed = false;
            while let Ok(message) = messages.try_recv() {
                model.hear(message);
                is_changed = true;
            }
            if let Some(received) = signals.next() {
                if received.signal != TERMINAL_STOP {
                    return Ok(ExitCode::from(128 + u8::try_from(received.signal).unwrap_or(0)));
                }
                suspend(terminal)?;
                is_changed = true;
            }
            is_there(io::stdin().as_fd(), if is_changed { Duration::ZERO } else { TICK })?;
            if event::poll(Duration::ZERO)? {
                if let Event::Key(key) = event::read()?
                    && let Some(effect) = model.press(key)
                {
                    match effect {
                        Effect::Quit => return Ok(ExitCode::SUCCESS),
                        Effect::Suspend => suspend(terminal)?,
                        other => model.hear(perform(other, commands)),
                    }
                }
                is_changed = true;
            }
            if is_changed {
                break;
            }
        }
    }
}

/// Waits until a key is there, for so long at most. A terminal that was hung up is an error: whoever reads from it is
/// told at once that there is something, and finds nothing, again and again.
fn is_there(terminal: BorrowedFd<'_>, time: Duration) -> io::Result<()> {
    let mut fds = [PollFd::from_borrowed_fd(terminal, PollFlags::IN)];
    match poll(&mut fds, Timespec::try_from(time).ok().as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    if fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) {
        return Err(io::Error::new(io::ErrorKind::BrokenPipe, "it was closed"));
    }
    Ok(())
}

/// Does what was confirmed; answers what is said about it for now.
fn perform(effect: Effect, commands: &SyncSender<Command>) -> Message {
    match effect {
        Effect::Tell(command) => {
            let words = feed::words(&command);
            match commands.try_send(command) {
                Ok(()) => Message::Answered(Tone::Plain, format!("{words} …")),
                Err(TrySendError::Full(_)) => Message::Answered(Tone::Bad, "others are not done yet".to_owned()),
                Err(TrySendError::Disconnected(_)) => Message::Answered(Tone::Bad, "nobody is there".to_owned()),
            }
        }
        Effect::Kill(process, label) if process.is_alive() => {
            kill_process(process);
            Message::Answered(Tone::Notice, format!("{label} was sent SIGKILL"))
        }
        Effect::Kill(_, label) => Message::Answered(Tone::Notice, format!("{label} has ended meanwhile")),
        Effect::Quit | Effect::Suspend => Message::Answered(Tone::Plain, String::new()),
    }
}

/// Gives the terminal to whoever started us, until we are continued.
fn suspend(terminal: &mut DefaultTerminal) -> io::Result<()> {
    ratatui::restore();
    stop_by(TERMINAL_STOP, true);
    *terminal = ratatui::try_init()?;
    terminal.clear()
}
