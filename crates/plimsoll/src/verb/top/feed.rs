//! Where `top` hears from: three threads that ask, listen and tell, and one bounded queue to the screen.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use plimsoll_gateway::control::Command;
use plimsoll_store::Paths;

use super::super::control::{answer_to, text_within};
use super::super::events::{Heard, follow};
use super::super::view::{self, PROCESSES, STATUS, Trees, View};
use super::model::{KEPT_EVENTS, Message};
use crate::fault::Fault;
use crate::tone::Tone;

/// The stack is looked at so often, and one that is gone is looked for.
const EVERY: Duration = Duration::from_secs(1);

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(3);

/// Messages that wait for the screen, and commands that wait for those before them.
const BEHIND: usize = 64;
const COMMANDS: usize = 4;

/// Begins. The threads end with the process, or when nobody listens any more.
pub(super) fn start(paths: &Paths) -> (Receiver<Message>, SyncSender<Command>) {
    let paths = Arc::new(paths.clone());
    let (messages, heard) = sync_channel(BEHIND);
    let (commands, told) = sync_channel(COMMANDS);
    let begin = |work: fn(&Paths, &SyncSender<Message>)| {
        let (paths, messages) = (Arc::clone(&paths), messages.clone());
        thread::spawn(move || work(&paths, &messages));
    };
    begin(look);
    begin(listen);
    thread::spawn(move || tell(&paths, &told, &messages));
    (heard, commands)
}

/// One look at everything.
pub(super) fn glance(paths: &Paths) -> Result<Message, Fault> {
    let view: View = view::read(&text_within(paths, STATUS, PATIENCE)?)?;
    let trees: Trees = view::read(&text_within(paths, PROCESSES, PATIENCE)?)?;
    Ok(Message::Looked { view: Box::new(view), trees: trees.trees })
}

fn look(paths: &Paths, messages: &SyncSender<Message>) {
    while messages.send(glance(paths).unwrap_or_else(|fault| Message::Gone(fault.message))).is_ok() {
        thread::sleep(EVERY);
    }
}

fn listen(paths: &Paths, messages: &SyncSender<Message>) {
    let mut is_heard = true;
    while is_heard {
        // That nobody answers is told by those who look.
        let _ = follow(paths, KEPT_EVENTS, |heard| {
            let message = match heard {
                Heard::Stored(rows) => Message::Stored(rows),
                Heard::New(row) => Message::Event(row),
            };
            is_heard = messages.send(message).is_ok();
            is_heard
        });
        thread::sleep(EVERY);
    }
}

fn tell(paths: &Paths, commands: &Receiver<Command>, messages: &SyncSender<Message>) {
    for command in commands {
        let message = match answer_to(paths, &command) {
            Ok(_) => Message::Answered(Tone::Good, format!("{}: done", words(&command))),
            Err(fault) => Message::Answered(Tone::Bad, fault.message),
        };
        if messages.send(message).is_err() {
            return;
        }
    }
}

pub(super) fn words(command: &Command) -> String {
    match command {
        Command::Restart(name) => format!("restart {name}"),
        Command::Stop(name) => format!("stop {name}"),
        Command::Start(name) => format!("start {name}"),
        other => other.target(),
    }
}
