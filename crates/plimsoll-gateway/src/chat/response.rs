//! What is said back: one completion, or a stream of chunks.
//!
//! A stream is the chunk with the role, the words as they come, the chunk with the reason of the end, the usage if it was
//! asked for, and [`DONE`]. What goes wrong before the first chunk is a status with JSON, after it an event: see
//! [`super::Problem`].

use serde::{Serialize, Serializer};

/// The end of a stream.
pub const DONE: &str = "data: [DONE]\n\n";

/// What all pieces of one answer have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `chatcmpl-…`, of this answer alone.
    pub id: String,
    /// When it began, seconds since 1970.
    pub created: u64,
    /// The model as it was asked for.
    pub model: String,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Finish {
    /// It is whole.
    #[default]
    Stop,
    /// The agent had no room for more.
    Length,
}

impl Finish {
    fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// Tokens as the agent counted them; 0 where it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Of what it was told.
    pub prompt_tokens: u64,
    /// Of what it said.
    pub completion_tokens: u64,
}

impl Serialize for Usage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Counts {
            prompt_tokens: u64,
            completion_tokens: u64,
            total_tokens: u64,
        }
        let total_tokens = self.prompt_tokens.saturating_add(self.completion_tokens);
        let Self { prompt_tokens, completion_tokens } = *self;
        Counts { prompt_tokens, completion_tokens, total_tokens }.serialize(serializer)
    }
}

impl Head {
    /// The whole answer, as one JSON object.
    #[must_use]
    pub fn completion(&self, text: &str, finish: Finish, usage: Usage) -> String {
        let message = Message { role: "assistant", content: text, refusal: None };
        let choice = Choice { index: 0, message, logprobs: None, finish_reason: finish.word() };
        let Self { id, created, model } = self;
        let completion =
            Completion { id, object: "chat.completion", created: *created, model, choices: [choice], usage };
        serde_json::to_string(&completion).unwrap_or_default()
    }
}

/// The pieces of a streamed answer, each one event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunks {
    head: Head,
    include_usage: bool,
}

impl Chunks {
    /// The model's name.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.head.model
    }

    /// Of an answer; with `include_usage` as the request had it.
    #[must_use]
    pub fn new(head: Head, include_usage: bool) -> Self {
        Self { head, include_usage }
    }

    /// The first one: who speaks.
    #[must_use]
    pub fn first(&self) -> String {
        self.event(Some((Delta { role: Some("assistant"), content: Some("") }, None)), None)
    }

    /// Some words.
    #[must_use]
    pub fn words(&self, text: &str) -> String {
        self.event(Some((Delta { role: None, content: Some(text) }, None)), None)
    }

    /// All that comes behind the last words: the reason of the end, the usage if it was asked for, and the end itself.
    #[must_use]
    pub fn end(&self, finish: Finish, usage: Usage) -> String {
        let mut text = self.event(Some((Delta { role: None, content: None }, Some(finish.word()))), None);
        if self.include_usage {
            text += &self.event(None, Some(usage));
        }
        text + DONE
    }

    fn event(&self, said: Option<(Delta<'_>, Option<&'static str>)>, usage: Option<Usage>) -> String {
        let choice = said.map(|(delta, finish_reason)| Piece { index: 0, delta, logprobs: None, finish_reason });
        let Head { id, created, model } = &self.head;
        let chunk = Chunk {
            id,
            object: "chat.completion.chunk",
            created: *created,
            model,
            choices: choice.as_slice(),
            usage: self.include_usage.then_some(usage),
        };
        format!("data: {}\n\n", serde_json::to_string(&chunk).unwrap_or_default())
    }
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: [Choice<'a>; 1],
    usage: Usage,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    message: Message<'a>,
    logprobs: Option<()>,
    finish_reason: &'a str,
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'a str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: &'a [Piece<'a>],
    /// With `include_usage` every chunk has the key; in all but one it is null.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct Piece<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'a str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn head() -> Head {
        Head { id: "chatcmpl-1".to_owned(), created: 7, model: "m".to_owned() }
    }

    /// The objects of a stream, which ends as it has to.
    fn read(stream: &str) -> Vec<Value> {
        let stream = stream.strip_suffix(DONE).unwrap();
        let events = stream.split_terminator("\n\n");
        events.map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }

    #[test]
    fn a_completion() {
        let usage = Usage { prompt_tokens: 3, completion_tokens: 4 };
        let read: Value = serde_json::from_str(&head().completion("hi \"you\"", Finish::Length, usage)).unwrap();
        assert_eq!(
            read,
            json!({
                "id": "chatcmpl-1", "object": "chat.completion", "created": 7, "model": "m",
                "choices": [{
                    "index": 0, "finish_reason": "length", "logprobs": null,
                    "message": {"role": "assistant", "content": "hi \"you\"", "refusal": null},
                }],
                "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
            })
        );
    }

    #[test]
    fn a_stream() {
        let chunks = Chunks::new(head(), false);
        let text = chunks.first() + &chunks.words("hi") + &chunks.end(Finish::Stop, Usage::default());
        let chunk = |delta: Value, finish: Value| {
            json!({
                "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m",
                "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
            })
        };
        assert_eq!(
            read(&text),
            [
                chunk(json!({"role": "assistant", "content": ""}), Value::Null),
                chunk(json!({"content": "hi"}), Value::Null),
                chunk(json!({}), json!("stop")),
            ]
        );
    }

    #[test]
    fn with_usage_every_chunk_has_it() {
        let chunks = Chunks::new(head(), true);
        let text = chunks.first() + &chunks.end(Finish::Stop, Usage { prompt_tokens: 1, completion_tokens: u64::MAX });
        let all = read(&text);
        assert_eq!(all.len(), 3);
        assert!(all[..2].iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
        assert_eq!((&all[2]["choices"], &all[2]["usage"]["total_tokens"]), (&json!([]), &json!(u64::MAX)));
    }

    proptest! {
        /// Whatever is said, in whatever pieces, is what the client puts together.
        #[test]
        fn words_come_through(pieces in prop::collection::vec("(?s).{0,20}", 0..10), usage in any::<bool>()) {
            let chunks = Chunks::new(head(), usage);
            let mut text = chunks.first();
            for piece in &pieces {
                text += &chunks.words(piece);
            }
            text += &chunks.end(Finish::Stop, Usage::default());
            let said: String = read(&text).iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect();
            prop_assert_eq!(&said, &pieces.concat());
            let whole: Value = serde_json::from_str(&head().completion(&said, Finish::Stop, Usage::default())).unwrap();
            prop_assert_eq!(whole["choices"][0]["message"]["content"].as_str(), Some(said.as_str()));
        }
    }
}
