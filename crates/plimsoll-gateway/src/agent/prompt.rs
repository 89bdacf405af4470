//! What an agent is asked.

pub use crate::chat::{Message, Role};
use crate::desk::Turn;

/// One turn's question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Which turn.
    pub turn: Turn,
    /// Of which conversation, in words for the agent.
    pub session: String,
    /// What is new to this process, the oldest first; mostly one message of a user.
    pub messages: Vec<Message>,
    /// How the agent is to behave, when this process was not told yet.
    pub system: Option<String>,
}

impl Prompt {
    /// The whole question as one text, for protocols that know no messages. What users said last is the question; what was
    /// said before is told as a report.
    #[must_use]
    pub fn text(&self) -> String {
        let asked = self.messages.iter().rev().take_while(|message| message.role != Role::Assistant).count();
        let (before, question) = self.messages.split_at(self.messages.len() - asked);
        let mut parts: Vec<String> = Vec::new();
        if let Some(system) = &self.system {
            parts.push(format!("<system>\n{system}\n</system>"));
        }
        if !before.is_empty() {
            let told = before.iter().map(|message| format!("{}: {}", message.role.word(), message.content));
            let told: Vec<String> = told.collect();
            parts.push(format!("<conversation>\n{}\n</conversation>", told.join("\n\n")));
        }
        parts.extend(question.iter().map(|message| message.content.clone()));
        parts.join("\n\n")
    }
}

#[cfg(test)]
pub(super) fn ask(turn: u64, text: &str) -> Prompt {
    let message = Message { role: Role::User, content: text.to_owned() };
    Prompt { turn: Turn(turn), session: "s".to_owned(), messages: vec![message], system: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_question_is_itself_and_a_history_is_told() {
        let mut prompt = ask(1, "and now?");
        assert_eq!(prompt.text(), "and now?");
        prompt.messages.insert(0, Message { role: Role::User, content: "hello".to_owned() });
        assert_eq!(prompt.text(), "hello\n\nand now?");
        prompt.messages.insert(1, Message { role: Role::Assistant, content: "good day".to_owned() });
        prompt.system = Some("be brief".to_owned());
        assert_eq!(
            prompt.text(),
            "<system>\nbe brief\n</system>\n\n<conversation>\nuser: hello\n\nassistant: good day\n</conversation>\n\n\
             and now?"
        );
    }
}
