//! What agents say over their pipes: stream-json, lines of JSON, and any bytes at all.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_fuzz::Values;
use plimsoll_gateway::agent::dialog::{Dialog, Word};
use plimsoll_gateway::agent::lines::Lines;
use plimsoll_gateway::agent::{Message, Piece, Prompt, Role};
use plimsoll_gateway::desk::Turn;
use plimsoll_model::pool::Protocol;

fuzz_target!(|data: &[u8]| {
    let mut values = Values::new(data);
    let longest = 1 + values.place(4 << 10);
    let chunk = 1 + values.place(300);
    for protocol in [Protocol::Claude, Protocol::Jsonl, Protocol::Exec] {
        let (words, is_whole) = hear(protocol, data, data.len().max(1), longest);
        let again = hear(protocol, data, chunk, longest);
        if protocol == Protocol::Exec {
            assert_eq!(text(&words), String::from_utf8_lossy(data));
            assert_eq!(text(&again.0), text(&words));
        } else {
            assert_eq!(again, (words, is_whole), "in chunks of {chunk}");
        }
    }
});

/// A turn, interrupted in the middle, and whatever comes after it; whether no line was too long.
fn hear(protocol: Protocol, data: &[u8], chunk: usize, longest: usize) -> (Vec<Word>, bool) {
    let (mut dialog, mut lines, mut words) = (Dialog::new(protocol), Lines::new(longest), Vec::new());
    dialog.start();
    let message = Message { role: Role::User, content: "hello".to_owned() };
    let prompt = Prompt { turn: Turn(1), session: "s".to_owned(), messages: vec![message], system: None };
    assert!(!dialog.begin(&prompt).is_empty());
    dialog.interrupt();
    let mut is_whole = true;
    for chunk in data.chunks(chunk) {
        if dialog.has_lines() {
            is_whole = lines.push(chunk, |line| dialog.hear(line, |word| words.push(word))).is_ok();
        } else {
            dialog.hear(chunk, |word| words.push(word));
        }
        assert!(lines.held() <= longest);
        if !is_whole {
            break;
        }
    }
    lines.finish(|line| dialog.hear(line, |word| words.push(word)));
    dialog.end(None, |word| words.push(word));
    assert!(!dialog.is_in_turn());
    let pieces: Vec<&Piece> =
        words.iter().filter_map(|word| if let Word::Piece(piece) = word { Some(piece) } else { None }).collect();
    assert_eq!(pieces.iter().filter(|piece| piece.is_last()).count(), 1, "{pieces:?}");
    assert!(pieces.last().is_some_and(|piece| piece.is_last()), "{pieces:?}");
    assert!(pieces.iter().all(|piece| **piece != Piece::Delta(String::new())));
    let replies = words.iter().filter_map(|word| if let Word::Reply(said) = word { Some(said) } else { None });
    for said in replies {
        let line = said.strip_suffix(b"\n").expect("a line");
        assert!(serde_json::from_slice::<serde_json::Value>(line).is_ok(), "{}", said.escape_ascii());
    }
    (words, is_whole)
}

fn text(words: &[Word]) -> String {
    let part = |word: &Word| if let Word::Piece(Piece::Delta(text)) = word { Some(text.clone()) } else { None };
    words.iter().filter_map(part).collect()
}
