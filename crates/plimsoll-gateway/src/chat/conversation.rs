//! What of a request is new to a conversation, and how somebody is told the rest who has not heard it.
//!
//! Clients of the chat API send all they know each time. What is stored is compared from the beginning: where all of it is
//! there again, only what follows is new. Where the client says that it went otherwise (a message was edited, an answer is
//! wanted again), the process that heard the former words is of no use: a fresh one is told the client's version.

use super::problem::Problem;
use super::request::{Message, Request, Role};

/// How a conversation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'r> {
    /// As it was: these are new.
    On {
        /// At least one, and none of the assistant's at the end.
        new: &'r [Message],
        /// The request did not repeat what is stored: it goes on behind that.
        appended: bool,
    },
    /// Otherwise than it was: what is stored counts no longer, and no process that heard it can be used.
    Anew {
        /// What is said to have been before.
        before: &'r [Message],
        /// What is to be answered.
        new: &'r [Message],
    },
}

/// Finds how a request goes on with what is stored of its conversation, which is empty for a new one.
///
/// # Errors
/// 400 when there is nothing to answer: the last message is the assistant's.
pub fn step<'r>(stored: &[Message], request: &'r [Message]) -> Result<Step<'r>, Problem> {
    if request.last().is_none_or(|last| last.role == Role::Assistant) {
        let message = "there is nothing to answer: the last message is the assistant's";
        return Err(Problem::invalid("messages", message));
    }
    let is_repeated = stored.len() < request.len() && stored.iter().zip(request).all(|(a, b)| is_same(a, b));
    if is_repeated {
        return Ok(Step::On { new: &request[stored.len()..], appended: false });
    }
    // Some clients keep no history and leave it to the session.
    if let [Message { role: Role::User, .. }] = request {
        return Ok(Step::On { new: request, appended: true });
    }
    let from = request.iter().rposition(|message| message.role == Role::Assistant).map_or(0, |at| at + 1);
    let (before, new) = request.split_at(from);
    Ok(Step::Anew { before, new })
}

/// Spaces around a text get lost on the way through clients.
fn is_same(a: &Message, b: &Message) -> bool {
    a.role == b.role && a.content.trim() == b.content.trim()
}

/// What is stored once a turn was answered: what the client will repeat the next time.
#[must_use]
pub fn stored(before: &[Message], request: &Request, step: Step<'_>, answer: &str) -> Vec<Message> {
    let said = match step {
        Step::On { appended: true, new } => [before, new].concat(),
        Step::On { appended: false, .. } | Step::Anew { .. } => request.messages.clone(),
    };
    said.into_iter().chain([Message::new(Role::Assistant, answer)]).collect()
}

/// What fits into `most` bytes of what was said before: all that says how the assistant has to be, then the latest. How many
/// are left out comes with it. Message contents count; a single one that is too long is left out, too.
#[must_use]
pub fn latest(before: &[Message], most: usize) -> (Vec<&Message>, usize) {
    let mut left = most;
    let mut keeps = vec![false; before.len()];
    let is_system = |index: usize| before[index].role == Role::System;
    let systems = (0..before.len()).filter(|&index| is_system(index));
    for index in systems {
        if let Some(rest) = left.checked_sub(before[index].content.len()) {
            (keeps[index], left) = (true, rest);
        }
    }
    for index in (0..before.len()).rev().filter(|&index| !is_system(index)) {
        // A hole in the middle would be another conversation: the first that is too long ends it.
        let Some(rest) = left.checked_sub(before[index].content.len()) else { break };
        (keeps[index], left) = (true, rest);
    }
    let kept: Vec<&Message> =
        before.iter().zip(&keeps).filter(|(_, keeps)| **keeps).map(|(message, _)| message).collect();
    let dropped = before.len() - kept.len();
    (kept, dropped)
}

/// One text for an agent that takes a prompt and no messages (`claude`, `exec`): what was said before, in at most `most`
/// bytes, then what is to be answered. A single user message without anything before it is itself.
#[must_use]
pub fn prompt(before: &[Message], new: &[Message], most: usize) -> String {
    if let ([], [Message { role: Role::User, content }]) = (before, new) {
        return content.clone();
    }
    let (before, dropped) = latest(before, most);
    // A request's own history is part of what is new when it is the first of its conversation.
    let last = new.iter().rposition(|message| message.role == Role::Assistant).map_or(0, |at| at + 1);
    let (more, asked) = new.split_at(last);
    let all = || before.iter().copied().chain(more);
    let mut text = String::new();
    for message in all().chain(asked).filter(|message| message.role == Role::System) {
        text += &message.content;
        text += "\n\n";
    }
    let mut has_history = false;
    for message in all().filter(|message| message.role != Role::System) {
        if !has_history {
            text += "This is the conversation so far";
            if dropped > 0 {
                text += &format!(" ({dropped} earlier messages are left out)");
            }
            text += ".\n\n";
            has_history = true;
        }
        text += &format!("{}: {}\n\n", speaker(message.role), message.content);
    }
    if has_history {
        text += "Answer what follows.\n\n";
    }
    let asked: Vec<&Message> = asked.iter().filter(|message| message.role != Role::System).collect();
    match asked.as_slice() {
        [Message { role: Role::User, content }] => text += content,
        asked => {
            let lines: Vec<String> =
                asked.iter().map(|message| format!("{}: {}", speaker(message.role), message.content)).collect();
            text += &lines.join("\n\n");
        }
    }
    text
}

fn speaker(role: Role) -> &'static str {
    match role {
        Role::System => "System",
        Role::User => "User",
        Role::Assistant => "Assistant",
        Role::Tool => "Tool",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::structured::Format;
    use proptest::prelude::*;

    fn user(text: &str) -> Message {
        Message::new(Role::User, text)
    }

    fn bot(text: &str) -> Message {
        Message::new(Role::Assistant, text)
    }

    fn system(text: &str) -> Message {
        Message::new(Role::System, text)
    }

    fn request(messages: &[Message]) -> Request {
        let messages = messages.to_vec();
        Request {
            model: "m".to_owned(),
            messages,
            stream: false,
            include_usage: false,
            format: Format::Text,
            session: None,
            user: None,
        }
    }

    #[test]
    fn what_is_new() {
        let stored = [system("s"), user("1"), bot("a")];
        let whole = [system("s"), user("1"), bot("a \n"), user("2")];
        assert_eq!(step(&stored, &whole), Ok(Step::On { new: &whole[3..], appended: false }));
        assert_eq!(step(&[], &whole), Ok(Step::On { new: &whole, appended: false }));
        // Only the new words.
        let alone = [user("2")];
        assert_eq!(step(&stored, &alone), Ok(Step::On { new: &alone, appended: true }));
        assert_eq!(step(&stored, &[user("1")]), Ok(Step::On { new: &[user("1")], appended: true }));
        // An edited message, another system, an answer that is wanted again.
        let edited = [system("s"), user("one"), bot("a"), user("2")];
        assert_eq!(step(&stored, &edited), Ok(Step::Anew { before: &edited[..3], new: &edited[3..] }));
        let again = [system("s"), user("1")];
        assert_eq!(step(&stored, &again), Ok(Step::Anew { before: &[], new: &again }));
        // Nothing to answer.
        for nothing in [&stored[..], &[], &[user("1"), bot("b")]] {
            assert_eq!(step(&stored, nothing).unwrap_err().param.as_deref(), Some("messages"));
        }
    }

    #[test]
    fn what_is_stored() {
        let before = [user("1"), bot("a")];
        let asked = request(&[user("2")]);
        let on = step(&before, &asked.messages).unwrap();
        assert_eq!(stored(&before, &asked, on, "b"), [user("1"), bot("a"), user("2"), bot("b")]);
        let otherwise = request(&[user("x"), bot("y"), user("2")]);
        let anew = step(&before, &otherwise.messages).unwrap();
        assert_eq!(stored(&before, &otherwise, anew, "b"), [user("x"), bot("y"), user("2"), bot("b")]);
    }

    #[test]
    fn prompts() {
        assert_eq!(prompt(&[], &[user("hi")], 0), "hi");
        assert_eq!(prompt(&[], &[system("be kind"), user("hi")], 0), "be kind\n\nhi");
        assert_eq!(
            prompt(&[system("s"), user("1"), bot("a")], &[user("2")], 100),
            "s\n\nThis is the conversation so far.\n\nUser: 1\n\nAssistant: a\n\nAnswer what follows.\n\n2"
        );
        // The whole of a first request.
        assert_eq!(
            prompt(&[], &[user("1"), bot("a"), user("2"), user("3")], 0),
            "This is the conversation so far.\n\nUser: 1\n\nAssistant: a\n\nAnswer what follows.\n\nUser: 2\n\nUser: 3"
        );
        assert_eq!(
            prompt(&[user("long"), bot("a"), user("2"), bot("b")], &[user("3")], 3),
            "This is the conversation so far (1 earlier messages are left out).\n\n\
             Assistant: a\n\nUser: 2\n\nAssistant: b\n\nAnswer what follows.\n\n3"
        );
        assert_eq!(prompt(&[], &[system("do it")], 0), "do it\n\n");
    }

    fn message() -> impl Strategy<Value = Message> {
        let role = prop::sample::select(vec![Role::System, Role::User, Role::Assistant, Role::Tool]);
        (role, "[a-c]{0,3}").prop_map(|(role, content)| Message { role, content })
    }

    fn messages(most: usize) -> impl Strategy<Value = Vec<Message>> {
        prop::collection::vec(message(), 0..most)
    }

    proptest! {
        /// A client that repeats all it was told, and asks on, is asked for no more than that, turn after turn.
        #[test]
        fn who_repeats_all_goes_on(first in messages(6), turns in prop::collection::vec(("[a-z]{1,5}", "[a-z ]{0,5}"), 1..6)) {
            let mut told: Vec<Message> = Vec::new();
            let mut said: Vec<Message> = first;
            said.push(user("begin"));
            for (answer, next) in turns {
                let asked = request(&said);
                let on = step(&told, &asked.messages).unwrap();
                prop_assert_eq!(on, Step::On { new: &asked.messages[told.len()..], appended: false });
                told = stored(&told, &asked, on, &answer);
                said.push(bot(&answer));
                prop_assert_eq!(&told, &said);
                said.push(user(&next));
            }
        }

        /// A client that keeps nothing goes on, too.
        #[test]
        fn who_repeats_nothing_goes_on(turns in prop::collection::vec(("[a-z]{1,5}", "[a-z]{1,5}"), 1..8)) {
            let mut told: Vec<Message> = Vec::new();
            for (index, (asks, answer)) in turns.iter().enumerate() {
                let asked = request(&[user(asks)]);
                let on = step(&told, &asked.messages).unwrap();
                prop_assert_eq!(on, Step::On { new: &asked.messages, appended: index > 0 });
                told = stored(&told, &asked, on, answer);
                prop_assert_eq!(told.len(), 2 * (index + 1));
            }
        }

        /// Nothing that was asked is lost, nothing is told twice, and there is always something to answer.
        #[test]
        fn nothing_is_lost(before in messages(6), asked in messages(6)) {
            match step(&before, &asked) {
                Ok(Step::On { new, appended: false }) => {
                    prop_assert!(before.iter().zip(&asked).all(|(a, b)| is_same(a, b)));
                    prop_assert_eq!(before.len() + new.len(), asked.len());
                    prop_assert!(!new.is_empty());
                }
                Ok(Step::On { new, appended: true }) => prop_assert_eq!(new, &asked[..]),
                Ok(Step::Anew { before, new }) => {
                    prop_assert_eq!(&[before, new].concat(), &asked);
                    prop_assert!(!new.is_empty() && new.iter().all(|message| message.role != Role::Assistant));
                }
                Err(_) => prop_assert!(asked.last().is_none_or(|last| last.role == Role::Assistant)),
            }
        }

        #[test]
        fn a_replay_is_bounded_and_in_order(before in messages(12), new in messages(4), most in 0usize..20) {
            let (kept, dropped) = latest(&before, most);
            prop_assert_eq!(kept.len() + dropped, before.len());
            prop_assert!(kept.iter().map(|message| message.content.len()).sum::<usize>() <= most);
            let mut rest = before.iter();
            prop_assert!(kept.iter().all(|one| rest.any(|other| std::ptr::eq(*one, other))));
            // Of what was said, the latest, without a hole.
            let talk: Vec<&Message> = before.iter().filter(|message| message.role != Role::System).collect();
            let told: Vec<&Message> = kept.iter().copied().filter(|message| message.role != Role::System).collect();
            prop_assert_eq!(&talk[talk.len() - told.len()..], &told[..]);
            let text = prompt(&before, &new, most);
            prop_assert!(new.iter().all(|message| text.contains(&message.content)));
        }
    }
}
