//! What of a request is new to a conversation, and how somebody is told the rest who has not heard it.
//!
//! Clients of the chat API send all they know each time. What is stored is compared from the beginning: where all of it is
//! there again, only what follows is new. Where the client says that it went otherwise (a message was edited, an answer is
//! wanted again), the process that heard the former words is of no use: a fresh one is told the client's version.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::problem::Problem;
use super::request::{Message, Role};

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
pub fn step<'r>(stored: &Print, request: &'r [Message]) -> Result<Step<'r>, Problem> {
    if request.last().is_none_or(|last| last.role == Role::Assistant) {
        let message = "there is nothing to answer: the last message is the assistant's";
        return Err(Problem::invalid("messages", message));
    }
    let is_repeated = stored.count < request.len() && Print::of(&request[..stored.count]) == *stored;
    if is_repeated {
        return Ok(Step::On { new: &request[stored.count..], appended: false });
    }
    // Some clients keep no history and leave it to the session.
    if let [Message { role: Role::User, .. }] = request {
        return Ok(Step::On { new: request, appended: true });
    }
    let from = request.iter().rposition(|message| message.role == Role::Assistant).map_or(0, |at| at + 1);
    let (before, new) = request.split_at(from);
    Ok(Step::Anew { before, new })
}

/// What is compared of a conversation: how many messages it has, and a digest of them. Spaces around a text get lost on the
/// way through clients, and do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Print {
    count: usize,
    digest: u64,
}

impl Print {
    /// Of all these messages.
    #[must_use]
    pub fn of(messages: &[Message]) -> Self {
        let mut print = Self::default();
        messages.iter().for_each(|message| print.add(message));
        print
    }

    /// One more was said.
    pub fn add(&mut self, message: &Message) {
        let mut hasher = DefaultHasher::new();
        (self.digest, message.role, message.content.trim()).hash(&mut hasher);
        *self = Self { count: self.count + 1, digest: hasher.finish() };
    }

    /// Nothing was said yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// To be compared with one that was written down: by another build perhaps, which then differs.
impl fmt::Display for Print {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:016x}", self.count, self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// As whoever stores it does.
    fn told(before: &[Message], asked: &[Message], step: Step<'_>, answer: &str) -> Vec<Message> {
        match step {
            Step::On { new, .. } => [before, new, &[bot(answer)]].concat(),
            Step::Anew { .. } => [asked, &[bot(answer)]].concat(),
        }
    }

    fn how<'r>(stored: &[Message], asked: &'r [Message]) -> Result<Step<'r>, Problem> {
        step(&Print::of(stored), asked)
    }

    #[test]
    fn what_is_new() {
        let stored = [system("s"), user("1"), bot("a")];
        let whole = [system("s"), user("1"), bot("a \n"), user("2")];
        assert_eq!(how(&stored, &whole), Ok(Step::On { new: &whole[3..], appended: false }));
        assert_eq!(how(&[], &whole), Ok(Step::On { new: &whole, appended: false }));
        // Only the new words.
        let alone = [user("2")];
        assert_eq!(how(&stored, &alone), Ok(Step::On { new: &alone, appended: true }));
        assert_eq!(how(&stored, &[user("1")]), Ok(Step::On { new: &[user("1")], appended: true }));
        // An edited message, another system, an answer that is wanted again.
        let edited = [system("s"), user("one"), bot("a"), user("2")];
        assert_eq!(how(&stored, &edited), Ok(Step::Anew { before: &edited[..3], new: &edited[3..] }));
        let again = [system("s"), user("1")];
        assert_eq!(how(&stored, &again), Ok(Step::Anew { before: &[], new: &again }));
        // Nothing to answer.
        for nothing in [&stored[..], &[], &[user("1"), bot("b")]] {
            assert_eq!(how(&stored, nothing).unwrap_err().param.as_deref(), Some("messages"));
        }
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
            let mut known: Vec<Message> = Vec::new();
            let mut said: Vec<Message> = first;
            said.push(user("begin"));
            for (answer, next) in turns {
                let asked = said.clone();
                let on = how(&known, &asked).unwrap();
                prop_assert_eq!(on, Step::On { new: &asked[known.len()..], appended: false });
                known = told(&known, &asked, on, &answer);
                said.push(bot(&answer));
                prop_assert_eq!(&known, &said);
                said.push(user(&next));
            }
        }

        /// A client that keeps nothing goes on, too.
        #[test]
        fn who_repeats_nothing_goes_on(turns in prop::collection::vec(("[a-z]{1,5}", "[a-z]{1,5}"), 1..8)) {
            let mut known: Vec<Message> = Vec::new();
            for (index, (asks, answer)) in turns.iter().enumerate() {
                let asked = [user(asks)];
                let on = how(&known, &asked).unwrap();
                prop_assert_eq!(on, Step::On { new: &asked, appended: index > 0 });
                known = told(&known, &asked, on, answer);
                prop_assert_eq!(known.len(), 2 * (index + 1));
            }
        }

        /// Nothing that was asked is lost, nothing is told twice, and there is always something to answer.
        #[test]
        fn nothing_is_lost(before in messages(6), asked in messages(6)) {
            match how(&before, &asked) {
                Ok(Step::On { new, appended: false }) => {
                    let is_same = |(a, b): (&Message, &Message)| a.role == b.role && a.content.trim() == b.content.trim();
                    prop_assert!(before.iter().zip(&asked).all(is_same));
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
    }
}
