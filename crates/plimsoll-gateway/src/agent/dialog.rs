//! What one agent and we say to each other, without the pipes: what is heard becomes [`Word`]s, what is to be said becomes
//! bytes. The three protocols behind one face.

use plimsoll_model::pool::Protocol;

use super::piece::Piece;
use super::prompt::Prompt;
use super::{claude, exec, jsonl};

/// What becomes of something that was heard.
#[derive(Debug, Clone, PartialEq)]
pub enum Word {
    /// A piece of the turn that runs. The last one ends it.
    Piece(Piece),
    /// Bytes to be said in return.
    Reply(Vec<u8>),
    /// The agent can take turns.
    Ready,
    /// The agent will never take a turn: why.
    Unfit(String),
    /// It was no line of the protocol.
    Garbage,
}

/// A conversation with one process. It hears between turns as well and makes nothing of it.
#[derive(Debug)]
pub enum Dialog {
    /// Stream-json.
    Claude(claude::Dialog),
    /// Lines of JSON.
    Jsonl(jsonl::Dialog),
    /// A prompt, an answer.
    Exec(exec::Dialog),
}

impl Dialog {
    /// Nothing has been said yet.
    #[must_use]
    pub fn new(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Claude => Self::Claude(claude::Dialog::default()),
            Protocol::Jsonl => Self::Jsonl(jsonl::Dialog::default()),
            Protocol::Exec => Self::Exec(exec::Dialog::default()),
        }
    }

    /// Whether it speaks lines; else any bytes are heard as they come.
    #[must_use]
    pub fn has_lines(&self) -> bool {
        !matches!(self, Self::Exec(_))
    }

    /// Whether its process is for one turn, whose question ends with the end of input.
    #[must_use]
    pub fn is_for_one_turn(&self) -> bool {
        matches!(self, Self::Exec(_))
    }

    /// Whether a turn runs.
    #[must_use]
    pub fn is_in_turn(&self) -> bool {
        match self {
            Self::Claude(dialog) => dialog.is_in_turn(),
            Self::Jsonl(dialog) => dialog.is_in_turn(),
            Self::Exec(dialog) => dialog.is_in_turn(),
        }
    }

    /// What is said first; [`Word::Ready`] follows. `None`: the agent is ready.
    pub fn start(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Claude(dialog) => dialog.start(),
            Self::Jsonl(_) | Self::Exec(_) => None,
        }
    }

    /// Begins a turn: what is said. One that runs is forgotten.
    pub fn begin(&mut self, prompt: &Prompt) -> Vec<u8> {
        match self {
            Self::Claude(dialog) => dialog.begin(prompt),
            Self::Jsonl(dialog) => dialog.begin(prompt),
            Self::Exec(dialog) => dialog.begin(prompt),
        }
    }

    /// Hears a line, or bytes where there are none.
    pub fn hear(&mut self, heard: &[u8], say: impl FnMut(Word)) {
        match self {
            Self::Claude(dialog) => dialog.hear(heard, say),
            Self::Jsonl(dialog) => dialog.hear(heard, say),
            Self::Exec(dialog) => dialog.hear(heard, say),
        }
    }

    /// How a turn is stopped: what is said, once a turn. `None` when none runs or the protocol has no word for it.
    pub fn interrupt(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Claude(dialog) => dialog.interrupt(),
            Self::Jsonl(dialog) => dialog.interrupt(),
            Self::Exec(_) => None,
        }
    }

    /// How memory is spoken of; `None` where the protocol has no word for it.
    #[must_use]
    pub fn pressure(&self, stage: &str, scale: f64) -> Option<Vec<u8>> {
        match self {
            Self::Jsonl(_) => Some(jsonl::pressure(stage, scale)),
            Self::Claude(_) | Self::Exec(_) => None,
        }
    }

    /// Nothing more will be heard; `why` is known by others, or it is just the end of its output.
    pub fn end(&mut self, why: Option<&str>, say: impl FnMut(Word)) {
        let why = why.unwrap_or("the agent closed its output in the middle of a turn");
        match self {
            Self::Claude(dialog) => dialog.end(why, say),
            Self::Jsonl(dialog) => dialog.end(why, say),
            Self::Exec(dialog) => dialog.end(say),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::lines::Lines;
    use super::super::prompt::ask;
    use super::*;
    use proptest::prelude::*;

    /// Lines that mean something, and such that nearly do.
    fn line() -> impl Strategy<Value = Vec<u8>> {
        let known: [&[u8]; 18] = [
            br#"{"type":"system","subtype":"init","session_id":"s"}"#,
            br#"{"type":"stream_event","event":{"type":"message_start","message":{}}}"#,
            br#"{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"d"}}}"#,
            br#"{"type":"assistant","message":{"id":"m","content":[{"type":"text","text":"whole"}],"usage":{}}}"#,
            br#"{"type":"result","subtype":"success","is_error":false,"result":"whole","usage":{"input_tokens":1}}"#,
            br#"{"type":"result","subtype":"error_during_execution","is_error":false,"errors":["x"]}"#,
            br#"{"type":"control_request","request_id":"r","request":{"subtype":"can_use_tool"}}"#,
            br#"{"type":"control_request","request_id":"r","request":{"subtype":"x"}}"#,
            br#"{"type":"control_response","response":{"subtype":"success","request_id":"plimsoll_1"}}"#,
            br#"{"type":"control_response","response":{"subtype":"error","request_id":"plimsoll_1","error":"no"}}"#,
            br#"{"type":"delta","text":"d"}"#,
            br#"{"type":"delta","text":"e","id":"1"}"#,
            br#"{"type":"final","text":"whole","id":"1"}"#,
            br#"{"type":"final","usage":{"prompt_tokens":1e300,"completion_tokens":-1}}"#,
            br#"{"type":"error","message":"no"}"#,
            b"npm warn",
            b"",
            b"{}",
        ];
        let known = prop::sample::select(known.map(<[u8]>::to_vec).to_vec());
        let damaged = (known.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut line, at, byte)| {
            if !line.is_empty() {
                let at = at.index(line.len());
                line[at] = byte;
            }
            line
        });
        prop_oneof![6 => known, 1 => damaged, 1 => prop::collection::vec(any::<u8>(), 0..40)]
    }

    #[derive(Debug, Clone)]
    enum Act {
        Hear(Vec<u8>),
        Begin,
        Interrupt,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn a_turn_has_one_end_and_nothing_comes_between_turns(
            protocol in prop::sample::select(vec![Protocol::Claude, Protocol::Jsonl, Protocol::Exec]),
            acts in prop::collection::vec(
                prop_oneof![6 => line().prop_map(Act::Hear), 1 => Just(Act::Begin), 1 => Just(Act::Interrupt)], 0..40),
            ended in any::<bool>(),
        ) {
            let mut dialog = Dialog::new(protocol);
            if let Some(first) = dialog.start() {
                prop_assert!(first.ends_with(b"\n"));
            }
            let (mut runs, mut turn, mut interrupts) = (false, 0, 0);
            for act in acts {
                let mut words = Vec::new();
                match act {
                    Act::Hear(line) => dialog.hear(&line, |word| words.push(word)),
                    Act::Begin if !(runs || turn > 0 && dialog.is_for_one_turn()) => {
                        (runs, turn, interrupts) = (true, turn + 1, 0);
                        let said = dialog.begin(&ask(turn, "hello\nyou"));
                        // One line, whatever is in the text.
                        let newlines = said.iter().filter(|&&byte| byte == b'\n').count();
                        prop_assert!(newlines == 1 && (!dialog.has_lines() || said.ends_with(b"\n")));
                    }
                    Act::Begin => {}
                    Act::Interrupt => {
                        let said = dialog.interrupt();
                        interrupts += u32::from(said.is_some());
                        prop_assert!(said.is_none() || runs);
                        prop_assert!(interrupts <= 1);
                    }
                }
                for word in words {
                    match word {
                        Word::Piece(piece) => {
                            prop_assert!(runs, "{:?} between turns", piece);
                            prop_assert!(piece != Piece::Delta(String::new()));
                            prop_assert!(piece != Piece::Interrupted || interrupts > 0);
                            runs = !piece.is_last();
                        }
                        Word::Reply(said) => prop_assert!(said.ends_with(b"\n")),
                        Word::Ready | Word::Unfit(_) | Word::Garbage => {}
                    }
                }
                prop_assert_eq!(dialog.is_in_turn(), runs);
            }
            let mut last = Vec::new();
            dialog.end(ended.then_some("killed"), |word| last.push(word));
            let ends = last.iter().filter(|word| matches!(word, Word::Piece(piece) if piece.is_last())).count();
            prop_assert_eq!(ends, usize::from(runs), "{:?}", last);
            prop_assert!(!dialog.is_in_turn());
        }

        #[test]
        fn the_same_words_whatever_the_chunks(
            lines in prop::collection::vec(line(), 0..12),
            size in 1usize..70,
            protocol in prop::sample::select(vec![Protocol::Claude, Protocol::Jsonl]),
        ) {
            let mut bytes = lines.join(&b'\n');
            bytes.push(b'\n');
            let words = |size: usize| {
                let (mut dialog, mut lines, mut words) = (Dialog::new(protocol), Lines::new(1 << 10), Vec::new());
                dialog.start();
                dialog.begin(&ask(1, "x"));
                for chunk in bytes.chunks(size) {
                    lines.push(chunk, |line| dialog.hear(line, |word| words.push(word))).unwrap();
                }
                words
            };
            prop_assert_eq!(words(size), words(bytes.len()));
        }
    }
}
