//! Lines of JSON, as the contract has them.

use serde::{Deserialize, Serialize};

use super::dialog::Word;
use super::loose::{Scalar, first};
use super::piece::{Piece, Usage};
use super::prompt::{Message, Prompt, Role};

/// What a line says; `id` is the turn's, where the agent tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// A part of an answer.
    Delta {
        /// Of which turn.
        id: Option<String>,
        /// The part.
        text: String,
    },
    /// A turn is answered.
    Final {
        /// Which.
        id: Option<String>,
        /// The answer; `None`: the deltas.
        text: Option<String>,
        /// What it cost.
        usage: Option<Usage>,
        /// How much of the model's context is used, per cent.
        context_percent: Option<f64>,
    },
    /// A turn failed.
    Error {
        /// Which.
        id: Option<String>,
        /// Why.
        message: String,
    },
    /// An object that tells nothing that matters here.
    Other,
    /// No object of JSON.
    Garbage,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Scalar<'a>,
    #[serde(borrow, default)]
    id: Scalar<'a>,
    #[serde(borrow, default)]
    text: Scalar<'a>,
    #[serde(borrow, default)]
    message: Scalar<'a>,
    #[serde(borrow, default)]
    context_percent: Scalar<'a>,
}

#[derive(Deserialize)]
struct Costs<'a> {
    #[serde(borrow)]
    usage: Tokens<'a>,
}

#[derive(Deserialize)]
struct Tokens<'a> {
    #[serde(borrow, default)]
    prompt_tokens: Scalar<'a>,
    #[serde(borrow, default)]
    completion_tokens: Scalar<'a>,
}

/// Reads a line of at most the splitter's length.
#[must_use]
pub fn parse(line: &[u8]) -> Said {
    if first(line) != Some(b'{') {
        return Said::Garbage;
    }
    let Ok(read) = serde_json::from_slice::<Line<'_>>(line) else { return Said::Garbage };
    let id = read.id.name();
    match read.kind.word() {
        "delta" => match read.text.text() {
            Some(text) => Said::Delta { id, text },
            None => Said::Other,
        },
        "final" => Said::Final {
            id,
            text: read.text.text(),
            usage: usage(line),
            context_percent: read.context_percent.number(),
        },
        "error" => {
            let message = read.message.text().filter(|message| !message.is_empty());
            Said::Error { id, message: message.unwrap_or_else(|| "the agent failed and does not say why".to_owned()) }
        }
        _ => Said::Other,
    }
}

/// What a turn cost; an answer is none the worse for a cost that cannot be read.
fn usage(line: &[u8]) -> Option<Usage> {
    let tokens = serde_json::from_slice::<Costs<'_>>(line).ok()?.usage;
    let (read, written) = (tokens.prompt_tokens.count(), tokens.completion_tokens.count());
    (read.is_some() || written.is_some())
        .then(|| Usage { prompt_tokens: read.unwrap_or(0), completion_tokens: written.unwrap_or(0) })
}

/// The turn that runs, if one does.
#[derive(Debug, Default)]
pub struct Dialog(Option<Progress>);

#[derive(Debug)]
struct Progress {
    id: String,
    is_interrupted: bool,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Told<'a> {
    Turn { id: &'a str, session: &'a str, messages: Vec<&'a Message> },
    Cancel { id: &'a str },
    Pressure { stage: &'a str, scale: f64 },
}

impl Told<'_> {
    fn line(&self) -> Vec<u8> {
        // Nothing of it can fail: no map with odd keys, no writer but memory.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// How memory is spoken of.
pub(super) fn pressure(stage: &str, scale: f64) -> Vec<u8> {
    Told::Pressure { stage, scale }.line()
}

impl Dialog {
    pub(super) fn is_in_turn(&self) -> bool {
        self.0.is_some()
    }

    pub(super) fn begin(&mut self, prompt: &Prompt) -> Vec<u8> {
        let id = prompt.turn.0.to_string();
        let system = prompt.system.as_ref().map(|text| Message { role: Role::System, content: text.clone() });
        let messages = system.iter().chain(&prompt.messages).collect();
        let line = Told::Turn { id: &id, session: &prompt.session, messages }.line();
        self.0 = Some(Progress { id, is_interrupted: false });
        line
    }

    pub(super) fn interrupt(&mut self) -> Option<Vec<u8>> {
        let turn = self.0.as_mut().filter(|turn| !turn.is_interrupted)?;
        turn.is_interrupted = true;
        Some(Told::Cancel { id: &turn.id }.line())
    }

    pub(super) fn hear(&mut self, line: &[u8], mut say: impl FnMut(Word)) {
        let said = parse(line);
        if said == Said::Garbage {
            if first(line).is_some() {
                say(Word::Garbage);
            }
            return;
        }
        // Between turns there is nobody to tell; an answer to an earlier turn is nobody's either.
        let Some(turn) = &self.0 else { return };
        let is_interrupted = turn.is_interrupted;
        let is_mine = |id: &Option<String>| id.as_ref().is_none_or(|id| *id == turn.id);
        let piece = match said {
            Said::Delta { id, text } if is_mine(&id) && !text.is_empty() => Piece::Delta(text),
            Said::Final { id, text, usage, context_percent } if is_mine(&id) => {
                Piece::Final { text, usage, context_percent, agent_session: None }
            }
            Said::Error { id, .. } if is_mine(&id) && is_interrupted => Piece::Interrupted,
            Said::Error { id, message } if is_mine(&id) => Piece::Failed(message),
            Said::Other => Piece::Alive,
            _ => return,
        };
        if piece.is_last() {
            self.0 = None;
        }
        say(Word::Piece(piece));
    }

    pub(super) fn end(&mut self, why: &str, mut say: impl FnMut(Word)) {
        if self.0.take().is_some() {
            say(Word::Piece(Piece::Broken(why.to_owned())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::prompt::ask;
    use super::*;

    fn hear(dialog: &mut Dialog, line: &str) -> Vec<Word> {
        let mut words = Vec::new();
        dialog.hear(line.as_bytes(), |word| words.push(word));
        words
    }

    #[test]
    fn what_is_said_is_the_contracts() {
        let mut dialog = Dialog::default();
        let mut prompt = ask(7, "hi \"you\"\n");
        prompt.system = Some("be brief".into());
        let expected = concat!(
            r#"{"type":"turn","id":"7","session":"s","messages":[{"role":"system","content":"be brief"},"#,
            r#"{"role":"user","content":"hi \"you\"\n"}]}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(dialog.begin(&prompt)).unwrap(), expected);
        assert_eq!(dialog.interrupt().unwrap(), b"{\"type\":\"cancel\",\"id\":\"7\"}\n");
        assert_eq!(dialog.interrupt(), None);
        let expected = b"{\"type\":\"pressure\",\"stage\":\"degrade\",\"scale\":0.5}\n";
        assert_eq!(pressure("degrade", 0.5), expected);
    }

    #[test]
    fn a_turn() {
        let mut dialog = Dialog::default();
        assert_eq!(hear(&mut dialog, r#"{"type":"final","text":"unasked"}"#), []);
        dialog.begin(&ask(1, "hi"));
        assert_eq!(hear(&mut dialog, r#"{"type":"delta","text":"a"}"#), [Word::Piece(Piece::Delta("a".into()))]);
        assert_eq!(hear(&mut dialog, "warning"), [Word::Garbage]);
        assert_eq!(hear(&mut dialog, " "), []);
        assert_eq!(hear(&mut dialog, r#"{"type":"log","text":"a"}"#), [Word::Piece(Piece::Alive)]);
        let last = r#"{"type":"final","usage":{"prompt_tokens":3,"completion_tokens":2},"context_percent":12.5}"#;
        let expected = Piece::Final {
            text: None,
            usage: Some(Usage { prompt_tokens: 3, completion_tokens: 2 }),
            context_percent: Some(12.5),
            agent_session: None,
        };
        assert_eq!(hear(&mut dialog, last), [Word::Piece(expected)]);
        assert_eq!(hear(&mut dialog, last), []);
    }

    #[test]
    fn an_answer_to_another_turn_is_nobodys() {
        let mut dialog = Dialog::default();
        dialog.begin(&ask(2, "hi"));
        for line in [
            r#"{"type":"final","text":"old","id":"1"}"#,
            r#"{"type":"delta","text":"old","id":1}"#,
            r#"{"type":"error","message":"old","id":"x"}"#,
        ] {
            assert_eq!(hear(&mut dialog, line), []);
        }
        assert_eq!(hear(&mut dialog, r#"{"type":"delta","text":"mine","id":2}"#).len(), 1);
    }

    #[test]
    fn an_error_after_an_interrupt_is_its_answer() {
        let mut dialog = Dialog::default();
        dialog.begin(&ask(1, "hi"));
        dialog.interrupt();
        assert_eq!(hear(&mut dialog, r#"{"type":"error","message":"cancelled"}"#), [Word::Piece(Piece::Interrupted)]);
        dialog.begin(&ask(2, "hi"));
        let failed = hear(&mut dialog, r#"{"type":"error"}"#);
        assert!(matches!(&failed[..], [Word::Piece(Piece::Failed(_))]));
    }
}
