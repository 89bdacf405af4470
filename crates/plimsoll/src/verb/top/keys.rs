//! What a key means, by what is open: (model, key) → effect.

use plimsoll_gateway::control::Command;
use plimsoll_kernel::procfs;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Dialog, Effect, Focus, Model};
use crate::tone::Tone;

/// A page of a list.
const PAGE: usize = 10;

/// All keys, for the help.
pub(super) const KEYS: [(&str, &str); 9] = [
    ("↑ ↓  j k  g G", "select"),
    ("Tab  Enter", "to the process tree and back"),
    ("r", "restart the service, one replica after the other"),
    ("s", "stop the service, and leave it stopped"),
    ("S", "start a service that was stopped"),
    ("K", "SIGKILL to the root of the replica, or to the process"),
    ("", "that is selected in the tree; restarts follow policy"),
    ("q  Esc", "close what is open, leave"),
    ("Ctrl-Z", "back to the shell; fg returns"),
];

impl Model {
    pub(super) fn press(&mut self, key: KeyEvent) -> Option<Effect> {
        if key.kind == KeyEventKind::Release {
            return None;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c' | 'd') => Some(Effect::Quit),
                KeyCode::Char('z') => Some(Effect::Suspend),
                _ => None,
            };
        }
        if self.is_help_shown {
            self.is_help_shown = false;
            return None;
        }
        self.said = None;
        if let Some(dialog) = self.dialog.take() {
            // Whatever is no clear yes is a no.
            return matches!(key.code, KeyCode::Char('y' | 'Y')).then_some(dialog.effect);
        }
        match key.code {
            KeyCode::Char('q') => return Some(Effect::Quit),
            KeyCode::Esc if self.focus == Focus::Services => return Some(Effect::Quit),
            KeyCode::Esc => self.focus = Focus::Services,
            KeyCode::Char('?' | 'h') => self.is_help_shown = true,
            KeyCode::Tab | KeyCode::BackTab | KeyCode::Enter => {
                self.focus = if self.focus == Focus::Services { Focus::Tree } else { Focus::Services };
            }
            KeyCode::Up | KeyCode::Char('k') => self.go(|place| place.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.go(|place| place.saturating_add(1)),
            KeyCode::PageUp => self.go(|place| place.saturating_sub(PAGE)),
            KeyCode::PageDown => self.go(|place| place.saturating_add(PAGE)),
            KeyCode::Home | KeyCode::Char('g') => self.go(|_| 0),
            KeyCode::End | KeyCode::Char('G') => self.go(|_| usize::MAX),
            KeyCode::Char('r') => self.ask_about_service(
                "restart",
                "One replica after the other, the next when the one before is up.",
                Command::Restart,
            ),
            KeyCode::Char('s') => {
                self.ask_about_service("stop", "It stays stopped until it is started.", Command::Stop)
            }
            KeyCode::Char('S') => return self.start(),
            KeyCode::Char('K') => self.ask_to_kill(),
            _ => {}
        }
        None
    }

    fn go(&mut self, to: impl Fn(usize) -> usize) {
        match self.focus {
            Focus::Services => self.select(to(self.place())),
            Focus::Tree => self.select_process(to(self.process_place())),
        }
    }

    /// The selected service's name; says why there is nothing to command.
    fn commanded(&mut self) -> Option<String> {
        if self.gone.is_some() {
            self.say(Tone::Bad, "nobody is there to be told");
            return None;
        }
        self.row().map(|row| row.name.to_string())
    }

    fn ask_about_service(&mut self, what: &str, explained: &'static str, command: fn(String) -> Command) {
        let Some(name) = self.commanded() else { return };
        let question = format!("{what} {name}?");
        self.dialog = Some(Dialog { question, explained, effect: Effect::Tell(command(name)) });
    }

    fn start(&mut self) -> Option<Effect> {
        let name = self.commanded()?;
        Some(Effect::Tell(Command::Start(name)))
    }

    /// The process that is selected in the tree; from the table, the root.
    fn ask_to_kill(&mut self) {
        if self.commanded().is_none() {
            return;
        }
        let place = if self.focus == Focus::Tree { self.process_place() } else { 0 };
        let found = self.branches().get(place).map(|&(_, process)| process.clone());
        let Some(process) = found else {
            self.say(Tone::Notice, "it has no process");
            return;
        };
        let Some(start_ticks) = process.start_ticks else {
            self.say(Tone::Bad, "the plimsoll that runs is too old to tell who this pid is");
            return;
        };
        let label = format!("{} (pid {})", crate::render::safe(&process.name), process.pid);
        self.dialog = Some(Dialog {
            question: format!("kill {label} with SIGKILL?"),
            explained: "Nothing is saved by it, and the restart policy decides what follows.",
            effect: Effect::Kill(procfs::Process { pid: process.pid, start_ticks }, label),
        });
    }
}
