//! What whoever reaches the gateway's port sends: a chat request, a webhook, a schema with an answer. The same input is each
//! of them; a schema is its first line, the answer the rest.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use plimsoll_gateway::chat::conversation::{Print, Step, step};
use plimsoll_gateway::chat::request::Request;
use plimsoll_gateway::chat::schema::Schema;
use plimsoll_gateway::chat::structured::Format;
use plimsoll_gateway::tokens::{Tokens, bearer};
use plimsoll_gateway::webhook::{Message, said};

fn chat(data: &[u8]) {
    let request = match Request::parse(data) {
        Ok(request) => request,
        Err(problem) => {
            assert!(matches!(problem.status, 400 | 404 | 413));
            let body: serde_json::Value = serde_json::from_str(&problem.json()).expect("an error is JSON");
            assert_eq!(body["error"].as_object().map(serde_json::Map::len), Some(4));
            return;
        }
    };
    assert!(!request.messages.is_empty());
    assert_eq!(request, Request::parse(data).expect("what was read once is read again"));
    let half = request.messages.len() / 2;
    if let Ok(Step::On { new, appended: false }) = step(&Print::of(&request.messages[..half]), &request.messages) {
        assert_eq!(new.len(), request.messages.len() - half);
    }
}

fn structured(text: &str) {
    let Some((schema, answer)) = text.split_once('\n') else { return };
    if let Ok(schema) = serde_json::from_str(schema)
        && let Ok(schema) = Schema::new(schema)
        && let Ok(taken) = Format::Schema(Arc::new(schema)).take(answer)
    {
        assert!(serde_json::from_str::<serde_json::Value>(taken).is_ok() && answer.contains(taken));
    }
}

fuzz_target!(|data: &[u8]| {
    chat(data);
    if let Ok(message) = Message::parse(data) {
        assert!(said(&message.text).is_some() && !message.room.is_empty());
        let path = message.path.as_ref().map_or("", |path| path.expose());
        assert!(path.is_empty() || path.starts_with('/'));
    }
    assert!(bearer(data).is_none_or(|token| !token.is_empty()));
    if let Ok(text) = std::str::from_utf8(data) {
        structured(text);
        if let Ok(tokens) = Tokens::parse(text) {
            let _ = tokens.find(data);
        }
    }
});
