//! What `top` knows and what it does with what it hears: (model, message) → effects. No terminal, socket or clock.

use std::collections::{BTreeMap, VecDeque};

use plimsoll_core::stack::snapshot::ServiceRow;
use plimsoll_core::stack::{Name, Stage};
use plimsoll_gateway::control::Command;
use plimsoll_kernel::procfs;
use plimsoll_runtime::stack::journal::Row;

use super::super::view::{Process, Tree, View};
use crate::tone::Tone;

/// Looks that are kept of each line, a second each.
pub(super) const KEPT_LOOKS: usize = 900;

/// Events that are kept.
pub(super) const KEPT_EVENTS: usize = 200;

/// Looks for which an answer stands.
const SAID_FOR: u32 = 8;

/// A replica of a service.
pub(super) type Who = (Name, u32);

/// A line at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Look {
    pub(super) used: u64,
    pub(super) line: u64,
    pub(super) stage: Stage,
}

/// Something happened.
pub(super) enum Message {
    /// The stack, asked a second ago or less.
    Looked { view: Box<View>, trees: Vec<Tree> },
    /// Nobody answers.
    Gone(String),
    /// The latest events, in place of all that were known: the listener has (again) begun.
    Stored(Vec<Row>),
    /// One more.
    Event(Box<Row>),
    /// What became of an effect.
    Answered(Tone, String),
}

/// Something is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    Quit,
    /// Give the terminal back and stop, as the shell's Ctrl-Z does.
    Suspend,
    Tell(Command),
    /// SIGKILL to this process and to nobody who got its pid since.
    Kill(procfs::Process, String),
}

/// A question that `y` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Dialog {
    pub(super) question: String,
    /// What it will mean.
    pub(super) explained: &'static str,
    pub(super) effect: Effect,
}

/// Which pane the arrows move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Focus {
    #[default]
    Services,
    Tree,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) view: Option<View>,
    pub(super) trees: Vec<Tree>,
    /// Why nobody answers, while that is so.
    pub(super) gone: Option<String>,
    pub(super) events: VecDeque<Row>,
    pub(super) memory: BTreeMap<Who, VecDeque<Look>>,
    pub(super) budget: VecDeque<Look>,
    selected: Option<Who>,
    /// Where the selected one stood: whoever takes its place is next.
    place: usize,
    pub(super) focus: Focus,
    /// Of the process that is selected in the tree.
    process: Option<i32>,
    pub(super) dialog: Option<Dialog>,
    pub(super) is_help_shown: bool,
    pub(super) said: Option<(Tone, String)>,
    /// Looks since then: the keys that stand in its place are wanted again.
    said_ago: u32,
}

impl Model {
    pub(super) fn hear(&mut self, message: Message) {
        match message {
            Message::Looked { view, trees } => self.look(*view, trees),
            Message::Gone(why) => {
                // Time goes on in the picture: nothing was seen.
                let lines = self.memory.values_mut().chain([&mut self.budget]);
                lines.for_each(|line| push(line, Look::default(), KEPT_LOOKS));
                self.gone = Some(why);
            }
            Message::Stored(rows) => {
                self.events.clear();
                rows.into_iter().for_each(|row| push(&mut self.events, row, KEPT_EVENTS));
            }
            Message::Event(row) => push(&mut self.events, *row, KEPT_EVENTS),
            Message::Answered(tone, text) => self.say(tone, text),
        }
    }

    pub(super) fn say(&mut self, tone: Tone, text: impl Into<String>) {
        (self.said, self.said_ago) = (Some((tone, text.into())), 0);
    }

    fn look(&mut self, view: View, trees: Vec<Tree>) {
        let budget = &view.stack.budget;
        let look = Look { used: budget.used_bytes, line: budget.limit_bytes, stage: budget.stage };
        push(&mut self.budget, look, KEPT_LOOKS);
        let rows = &view.stack.services;
        self.memory.retain(|who, _| rows.iter().any(|row| *who == who_of(row)));
        for row in rows {
            let look = Look { used: row.memory_bytes, line: row.limit_bytes, stage: row.stage };
            push(self.memory.entry(who_of(row)).or_default(), look, KEPT_LOOKS);
        }
        self.view = Some(view);
        self.trees = trees;
        self.gone = None;
        self.said_ago += 1;
        if self.said_ago > SAID_FOR {
            self.said = None;
        }
        self.settle();
    }

    /// Selects what is there: the same as before, else whoever stands in its place.
    fn settle(&mut self) {
        let found = self.rows().iter().position(|row| self.selected.as_ref().is_some_and(|who| *who == who_of(row)));
        self.select(found.unwrap_or(self.place));
        let is_there = |pid| self.branches().iter().any(|(_, process)| process.pid == pid);
        if !self.process.is_some_and(is_there) {
            self.process = self.branches().first().map(|(_, process)| process.pid);
        }
    }

    pub(super) fn rows(&self) -> &[ServiceRow] {
        self.view.as_ref().map_or(&[], |view| &view.stack.services)
    }

    /// Where in the table the selected one stands.
    pub(super) fn place(&self) -> usize {
        self.place
    }

    pub(super) fn row(&self) -> Option<&ServiceRow> {
        self.rows().get(self.place)
    }

    /// Selects a row of the table, or the nearest.
    pub(super) fn select(&mut self, place: usize) {
        let place = place.min(self.rows().len().saturating_sub(1));
        let who = self.rows().get(place).map(who_of);
        if who != self.selected {
            self.process = None;
        }
        (self.place, self.selected) = (place, who);
        if self.process.is_none() {
            self.process = self.branches().first().map(|(_, process)| process.pid);
        }
    }

    /// The processes of the selected replica, with the branches that lead to them.
    pub(super) fn branches(&self) -> Vec<(String, &Process)> {
        let tree = self
            .row()
            .and_then(|row| self.trees.iter().find(|tree| (&tree.service, tree.replica) == (&row.name, row.replica)));
        tree.map(Tree::branches).unwrap_or_default()
    }

    /// Where among those the selected process stands.
    pub(super) fn process_place(&self) -> usize {
        let branches = self.branches();
        branches.iter().position(|(_, process)| Some(process.pid) == self.process).unwrap_or(0)
    }

    pub(super) fn select_process(&mut self, place: usize) {
        let branches = self.branches();
        let chosen = branches.get(place.min(branches.len().saturating_sub(1))).map(|(_, process)| process.pid);
        self.process = chosen;
    }
}

pub(super) fn who_of(row: &ServiceRow) -> Who {
    (row.name.clone(), row.replica)
}

fn push<T>(queue: &mut VecDeque<T>, one: T, most: usize) {
    while queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(one);
}
