//! The lines of stream-json: what an agent says, and what it is told. Unknown kinds are skipped, as its own clients do.

use serde::{Deserialize, Serialize};

use crate::agent::loose::{Scalar, Texts, Window, first};
use crate::agent::piece::Usage;

/// What a line says.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// A turn begins.
    Init {
        /// The agent's name of the conversation.
        session: Option<String>,
    },
    /// A message of the model begins to be streamed.
    Begins,
    /// A part of the model's text.
    Delta(String),
    /// A message of the model, or a part of it, once more as a whole.
    Message {
        /// Which; a message may come in parts.
        id: Option<String>,
        /// All its text.
        text: String,
        /// Tokens that the model has before it now.
        context: Option<u64>,
    },
    /// A turn is over.
    Result(Box<Outcome>),
    /// It wants something of us.
    Asks {
        /// Under which name the answer is expected.
        request: String,
        /// What: the subtype.
        what: String,
    },
    /// It answers what we wanted.
    Answers {
        /// What that was.
        request: String,
        /// Why it did not do it.
        error: Option<String>,
    },
    /// A line that is well and tells nothing that matters here.
    Other,
    /// No line of this protocol.
    Garbage,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Outcome {
    /// `success`, `error_during_execution`, `error_max_turns`, …
    pub subtype: String,
    /// Whether it failed, whatever the subtype says.
    pub is_error: bool,
    /// The answer, or what went wrong.
    pub text: Option<String>,
    /// What else went wrong.
    pub errors: String,
    /// What it cost.
    pub usage: Option<Usage>,
    /// The size of the model's context, tokens.
    pub window: Option<u64>,
    /// The agent's name of the conversation.
    pub session: Option<String>,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Scalar<'a>,
    #[serde(borrow, default)]
    subtype: Scalar<'a>,
    /// Set for what an agent below the agent says: its use of a tool, no part of the answer.
    #[serde(borrow, default)]
    parent_tool_use_id: Scalar<'a>,
}

#[derive(Deserialize)]
struct Init<'a> {
    #[serde(borrow, default)]
    session_id: Scalar<'a>,
}

#[derive(Deserialize)]
struct Stream<'a> {
    #[serde(borrow)]
    event: Event<'a>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Scalar<'a>,
    #[serde(borrow, default)]
    delta: Option<Delta<'a>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Scalar<'a>,
    #[serde(borrow, default)]
    text: Scalar<'a>,
}

#[derive(Deserialize)]
struct Assistant<'a> {
    #[serde(borrow)]
    message: Message<'a>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    id: Scalar<'a>,
    #[serde(default)]
    content: Texts,
    #[serde(borrow, default)]
    usage: Option<Tokens<'a>>,
}

#[derive(Deserialize)]
struct Tokens<'a> {
    #[serde(borrow, default)]
    input_tokens: Scalar<'a>,
    #[serde(borrow, default)]
    cache_creation_input_tokens: Scalar<'a>,
    #[serde(borrow, default)]
    cache_read_input_tokens: Scalar<'a>,
    #[serde(borrow, default)]
    output_tokens: Scalar<'a>,
}

impl Tokens<'_> {
    fn usage(&self) -> Option<Usage> {
        let read = [&self.input_tokens, &self.cache_creation_input_tokens, &self.cache_read_input_tokens];
        let mut read = read.into_iter().filter_map(Scalar::count);
        let written = self.output_tokens.count();
        let first = read.next();
        (first.is_some() || written.is_some()).then(|| Usage {
            prompt_tokens: read.fold(first.unwrap_or(0), u64::saturating_add),
            completion_tokens: written.unwrap_or(0),
        })
    }
}

#[derive(Deserialize)]
struct Ending<'a> {
    #[serde(borrow, default)]
    subtype: Scalar<'a>,
    #[serde(borrow, default)]
    is_error: Scalar<'a>,
    #[serde(borrow, default)]
    result: Scalar<'a>,
    #[serde(default)]
    errors: Texts,
    #[serde(borrow, default)]
    usage: Option<Tokens<'a>>,
    #[serde(default, rename = "modelUsage")]
    models: Window,
    #[serde(borrow, default)]
    session_id: Scalar<'a>,
}

#[derive(Deserialize)]
struct Asked<'a> {
    #[serde(borrow, default)]
    request_id: Scalar<'a>,
    #[serde(borrow)]
    request: Subtype<'a>,
}

#[derive(Deserialize)]
struct Subtype<'a> {
    #[serde(borrow, default)]
    subtype: Scalar<'a>,
}

#[derive(Deserialize)]
struct Answered<'a> {
    #[serde(borrow)]
    response: Answer<'a>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    subtype: Scalar<'a>,
    #[serde(borrow, default)]
    request_id: Scalar<'a>,
    #[serde(borrow, default)]
    error: Scalar<'a>,
}

/// Reads a line of at most the splitter's length. Nothing of it is kept but what it says.
#[must_use]
pub fn parse(line: &[u8]) -> Said {
    if first(line) != Some(b'{') {
        return Said::Garbage;
    }
    let Ok(head) = serde_json::from_slice::<Head<'_>>(line) else { return Said::Garbage };
    read(&head, line).unwrap_or(Said::Garbage)
}

fn read(head: &Head<'_>, line: &[u8]) -> serde_json::Result<Said> {
    Ok(match head.kind.word() {
        "stream_event" | "assistant" if !head.parent_tool_use_id.is_nothing() => Said::Other,
        "stream_event" => stream(serde_json::from_slice::<Stream<'_>>(line)?.event),
        "assistant" => {
            let message = serde_json::from_slice::<Assistant<'_>>(line)?.message;
            let context = message.usage.and_then(|tokens| tokens.usage());
            let context = context.map(|usage| usage.prompt_tokens.saturating_add(usage.completion_tokens));
            Said::Message { id: message.id.text(), text: message.content.0, context }
        }
        "result" => Said::Result(Box::new(result(line))),
        "system" if head.subtype.word() == "init" => {
            Said::Init { session: serde_json::from_slice::<Init<'_>>(line)?.session_id.text() }
        }
        "control_request" => {
            let asked = serde_json::from_slice::<Asked<'_>>(line)?;
            match asked.request_id.text() {
                Some(request) => Said::Asks { request, what: asked.request.subtype.text().unwrap_or_default() },
                None => Said::Garbage,
            }
        }
        "control_response" => {
            let answer = serde_json::from_slice::<Answered<'_>>(line)?.response;
            let failed = answer.subtype.word() == "error";
            let error = failed.then(|| answer.error.text().unwrap_or_else(|| "it does not say why".to_owned()));
            Said::Answers { request: answer.request_id.text().unwrap_or_default(), error }
        }
        _ => Said::Other,
    })
}

fn stream(event: Event<'_>) -> Said {
    match (event.kind.word(), event.delta) {
        ("message_start", _) => Said::Begins,
        ("content_block_delta", Some(delta)) if delta.kind.word() == "text_delta" => {
            delta.text.text().map_or(Said::Other, Said::Delta)
        }
        _ => Said::Other,
    }
}

/// A turn that is over is over, however badly that is written.
fn result(line: &[u8]) -> Outcome {
    match serde_json::from_slice::<Ending<'_>>(line) {
        Ok(ending) => Outcome {
            subtype: ending.subtype.text().unwrap_or_default(),
            is_error: ending.is_error.is_true(),
            text: ending.result.text(),
            errors: ending.errors.0,
            usage: ending.usage.and_then(|tokens| tokens.usage()),
            window: ending.models.0,
            session: ending.session_id.text(),
        },
        Err(error) => Outcome {
            is_error: true,
            text: Some(format!("the agent's result cannot be read: {error}")),
            ..Outcome::default()
        },
    }
}

#[derive(Serialize)]
struct User<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    message: Content<'a>,
    parent_tool_use_id: Option<()>,
    session_id: &'static str,
}

#[derive(Serialize)]
struct Content<'a> {
    role: &'static str,
    content: &'a str,
}

/// A line, with its newline.
fn line(value: &impl Serialize) -> Vec<u8> {
    // Nothing of what is written here can fail: no map with odd keys, no writer but memory.
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// What a user says.
pub(super) fn user(text: &str) -> Vec<u8> {
    let message = Content { role: "user", content: text };
    line(&User { kind: "user", message, parent_tool_use_id: None, session_id: "default" })
}

/// The first thing that is said.
pub(super) fn initialize(request: &str) -> Vec<u8> {
    line(&serde_json::json!({
        "type": "control_request", "request_id": request, "request": {"subtype": "initialize", "hooks": null},
    }))
}

/// The turn that runs is to end.
pub(super) fn interrupt(request: &str) -> Vec<u8> {
    line(&serde_json::json!({
        "type": "control_request", "request_id": request, "request": {"subtype": "interrupt"},
    }))
}

/// A tool may not be used.
pub(super) fn deny(request: &str) -> Vec<u8> {
    let message = "nobody is here to be asked; allow the tool in the pool's command (--allowedTools)";
    line(&serde_json::json!({
        "type": "control_response",
        "response": {
            "subtype": "success", "request_id": request, "response": {"behavior": "deny", "message": message},
        },
    }))
}

/// We cannot do what it wants.
pub(super) fn refuse(request: &str, what: &str) -> Vec<u8> {
    let error = format!("not done here: {what}");
    line(&serde_json::json!({
        "type": "control_response", "response": {"subtype": "error", "request_id": request, "error": error},
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_real_one() {
        let init = br#"{"type":"system","subtype":"init","cwd":"/x","session_id":"s1","tools":[],"model":"m"}"#;
        assert_eq!(parse(init), Said::Init { session: Some("s1".into()) });
        let delta = br#"{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel\u00e9"}},"parent_tool_use_id":null}"#;
        assert_eq!(parse(delta), Said::Delta("Hel\u{e9}".into()));
        let thought = br#"{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"thinking_delta","thinking":"hm"}}}"#;
        assert_eq!(parse(thought), Said::Other);
        let below = br#"{"type":"assistant","message":{"content":[{"type":"text","text":"x"}]},"parent_tool_use_id":"toolu_1"}"#;
        assert_eq!(parse(below), Said::Other);
        let message = br#"{"type":"assistant","message":{"model":"m","id":"msg_1","role":"assistant","content":[{"type":"text","text":"Hello"},{"type":"tool_use","text":"no","input":{}},{"text":"!","type":"text"}],"usage":{"input_tokens":3,"cache_read_input_tokens":10,"output_tokens":2}},"parent_tool_use_id":null}"#;
        let expected = Said::Message { id: Some("msg_1".into()), text: "Hello!".into(), context: Some(15) };
        assert_eq!(parse(message), expected);
        let result = br#"{"type":"result","subtype":"success","is_error":false,"duration_ms":55,"num_turns":1,"result":"Hello!","stop_reason":null,"session_id":"s1","usage":{"input_tokens":1,"cache_creation_input_tokens":2,"output_tokens":4},"modelUsage":{"a":{"contextWindow":100},"b":{"contextWindow":200000,"x":[]}},"permission_denials":[]}"#;
        let Said::Result(outcome) = parse(result) else { panic!() };
        assert_eq!(outcome.usage, Some(Usage { prompt_tokens: 3, completion_tokens: 4 }));
        assert_eq!((outcome.window, outcome.text.as_deref(), outcome.is_error), (Some(200_000), Some("Hello!"), false));
        let asks = br#"{"type":"control_request","request_id":"q","request":{"subtype":"can_use_tool","tool_name":"Write","input":{}}}"#;
        assert_eq!(parse(asks), Said::Asks { request: "q".into(), what: "can_use_tool".into() });
        let answers = br#"{"type":"control_response","response":{"subtype":"success","request_id":"a","response":{}}}"#;
        assert_eq!(parse(answers), Said::Answers { request: "a".into(), error: None });
    }

    #[test]
    fn garbage_is_garbage_and_a_bad_result_is_an_end() {
        for line in
            [&b""[..], b"npm warn", b"[]", b"{", b"{\"type\":\"assistant\",\"message\":3}", b"{\"type\":\"\xff\"}"]
        {
            assert_eq!(parse(line), Said::Garbage, "{}", line.escape_ascii());
        }
        for line in
            [&b"{}"[..], b"{\"type\":3}", b"{\"type\":\"rate_limit_event\",\"x\":[[[]]]}", b"  {\"type\":null}\r"]
        {
            assert_eq!(parse(line), Said::Other, "{}", line.escape_ascii());
        }
        let Said::Result(outcome) = parse(br#"{"type":"result","usage":"none"}"#) else { panic!() };
        assert!(outcome.is_error);
        let Said::Result(outcome) = parse(br#"{"type":"result","is_error":null,"result":[1],"errors":{"a":1}}"#) else {
            panic!()
        };
        assert_eq!(*outcome, Outcome::default());
    }

    #[test]
    fn what_is_nested_deep_is_no_stack_overflow() {
        let deep = format!("{{\"type\":\"x\",\"a\":{}", "[".repeat(1 << 20));
        assert_eq!(parse(deep.as_bytes()), Said::Garbage);
        let deep = format!("{{\"type\":\"result\",\"usage\":{}", "{\"a\":".repeat(1 << 20));
        assert_eq!(parse(deep.as_bytes()), Said::Garbage);
    }
}
