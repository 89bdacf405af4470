//! A process a turn: the prompt on its standard input; all that it says on its standard output is the answer.

use super::dialog::Word;
use super::piece::Piece;
use super::prompt::Prompt;

/// One turn, and the bytes of a character that has not come whole yet.
#[derive(Debug, Default)]
pub struct Dialog {
    state: State,
    begun: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    New,
    Asked,
    Answering,
    Over,
}

impl Dialog {
    pub(super) fn is_in_turn(&self) -> bool {
        matches!(self.state, State::Asked | State::Answering)
    }

    pub(super) fn begin(&mut self, prompt: &Prompt) -> Vec<u8> {
        self.state = State::Asked;
        prompt.text().into_bytes()
    }

    pub(super) fn hear(&mut self, heard: &[u8], mut say: impl FnMut(Word)) {
        if !self.is_in_turn() || heard.is_empty() {
            return;
        }
        self.state = State::Answering;
        let mut text = String::with_capacity(self.begun.len() + heard.len());
        let joined;
        let mut rest = heard;
        if !self.begun.is_empty() {
            self.begun.extend_from_slice(heard);
            joined = std::mem::take(&mut self.begun);
            rest = &joined;
        }
        for chunk in rest.utf8_chunks() {
            text.push_str(chunk.valid());
            let (invalid, is_last) = (chunk.invalid(), is_end(rest, chunk.invalid()));
            if is_last && may_go_on(invalid) {
                self.begun.extend_from_slice(invalid);
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        say(Word::Piece(if text.is_empty() { Piece::Alive } else { Piece::Delta(text) }));
    }

    pub(super) fn end(&mut self, mut say: impl FnMut(Word)) {
        match std::mem::replace(&mut self.state, State::Over) {
            State::New | State::Over => {}
            State::Asked => say(Word::Piece(Piece::Broken("the agent ended without an answer".to_owned()))),
            State::Answering => {
                if !std::mem::take(&mut self.begun).is_empty() {
                    say(Word::Piece(Piece::Delta(char::REPLACEMENT_CHARACTER.into())));
                }
                say(Word::Piece(Piece::Final { text: None, usage: None, context_percent: None, agent_session: None }));
            }
        }
    }
}

/// Whether `part` is where `whole` ends.
fn is_end(whole: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && std::ptr::eq(whole.as_ptr_range().end, part.as_ptr_range().end)
}

/// Whether bytes are the beginning of a character.
fn may_go_on(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::super::prompt::ask;
    use super::*;
    use proptest::prelude::*;

    fn answer(chunks: &[&[u8]]) -> (String, Option<Piece>) {
        let (mut dialog, mut text, mut last) = (Dialog::default(), String::new(), None);
        dialog.hear(b"a banner", |_| panic!("before the question"));
        assert_eq!(dialog.begin(&ask(1, "hi")), b"hi");
        let mut take = |word| match word {
            Word::Piece(Piece::Delta(part)) => text.push_str(&part),
            Word::Piece(Piece::Alive) => {}
            Word::Piece(piece) => assert!(last.replace(piece).is_none()),
            word => panic!("{word:?}"),
        };
        chunks.iter().for_each(|chunk| dialog.hear(chunk, &mut take));
        dialog.end(&mut take);
        dialog.end(&mut take);
        (text, last)
    }

    #[test]
    fn nothing_is_no_answer() {
        assert!(matches!(answer(&[]).1, Some(Piece::Broken(_))));
        assert!(matches!(answer(&[b"\n"]).1, Some(Piece::Final { .. })));
        assert_eq!(answer(&[b"caf\xc3"]).0, "caf\u{fffd}");
        assert_eq!(answer(&[b"caf\xc3", b"\xa9"]).0, "caf\u{e9}");
    }

    proptest! {
        #[test]
        fn the_same_text_whatever_the_chunks(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 1..80),
                ".{1,30}".prop_map(String::into_bytes).prop_filter("something", |bytes| !bytes.is_empty()),
            ],
            size in 1usize..9,
        ) {
            let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
            let (text, last) = answer(&chunks);
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
            prop_assert!(matches!(last, Some(Piece::Final { .. })), "{:?}", last);
        }
    }
}
