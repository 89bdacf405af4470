//! The body of `POST /v1/chat/completions`.
//!
//! What we know is read, each key by itself so that a mistake names it; what we do not know is skipped without being built up
//! in memory, for clients send dozens of keys that mean nothing here. An image or a sound is refused: an agent would answer
//! as if it had seen it.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::problem::Problem;
use super::schema::Schema;
use super::structured::Format;

/// The largest body that is read, bytes. Read no more of a request than this and one byte.
pub const LARGEST_BODY: usize = 8 << 20;
/// A conversation with more messages is too long for any model.
const MOST_MESSAGES: usize = 10_000;
/// Parts of one message.
const MOST_PARTS: usize = 1000;
/// A schema is checked with each answer, and takes memory while the turn runs; bytes.
const LARGEST_SCHEMA: usize = 64 << 10;
/// A session's key is part of tables, logs and names of files.
const LONGEST_SESSION: usize = 256;
/// Longer is no name of a model.
const LONGEST_MODEL: usize = 256;

/// A request that was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The model as it was asked for: a pool, or one of its further names.
    pub model: String,
    /// At least one.
    pub messages: Vec<Message>,
    /// The answer is wanted in pieces.
    pub stream: bool,
    /// `stream_options.include_usage`.
    pub include_usage: bool,
    /// `response_format`.
    pub format: Format,
    /// `metadata.session_id`; a header goes before it, see [`Request::session`].
    pub session: Option<Arc<str>>,
    /// Whom the client asks for.
    pub user: Option<String>,
}

/// One message, its text parts joined.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Message {
    /// Whose.
    pub role: Role,
    /// What; empty of an assistant that only called a tool.
    pub content: String,
}

impl Message {
    /// A message of somebody's.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// How the assistant has to be: `system`, or `developer` as it is called now.
    System,
    /// Whoever asks.
    User,
    /// Whoever answers.
    Assistant,
    /// What a tool of the client's gave.
    Tool,
}

impl Role {
    /// Its word, where a message goes on to an agent or a store.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }

    /// Who goes by this word; `developer` is a system, and `function` a tool.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Some(match word {
            "system" | "developer" => Self::System,
            "user" => Self::User,
            "assistant" => Self::Assistant,
            "tool" | "function" => Self::Tool,
            _ => return None,
        })
    }
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    stream: Option<&'a RawValue>,
    #[serde(borrow)]
    stream_options: Option<&'a RawValue>,
    #[serde(borrow)]
    response_format: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
    #[serde(borrow)]
    n: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    role: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    text: Option<&'a RawValue>,
    #[serde(borrow)]
    refusal: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Wanted<'a> {
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    json_schema: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    name: Option<&'a RawValue>,
    #[serde(borrow)]
    schema: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Options<'a> {
    #[serde(borrow)]
    include_usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    session_id: Option<&'a RawValue>,
}

impl Request {
    /// Reads a body.
    ///
    /// # Errors
    /// 413 when it is larger than [`LARGEST_BODY`]; else 400, and the key that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        if body.len() > LARGEST_BODY {
            return Err(Problem::too_large(LARGEST_BODY));
        }
        let text = std::str::from_utf8(body).map_err(|error| {
            let message = format!("the body is no UTF-8: the byte at {} is none", error.valid_up_to());
            Problem::invalid("", message).code("invalid_utf8")
        })?;
        // A struct can be read from a list as well, and none is meant here.
        if !text.trim_ascii_start().starts_with('{') {
            return Err(Problem::invalid("", "the body is no JSON object").code("invalid_json"));
        }
        let body: Body<'_> = serde_json::from_str(text).map_err(|error| {
            Problem::invalid("", format!("the body is no JSON as it has to be: {error}")).code("invalid_json")
        })?;

        let model: String = read(body.model, "model", "a text")?.ok_or_else(|| missing("model"))?;
        if model.len() > LONGEST_MODEL {
            return Err(Problem::no_model(&model));
        }
        match read::<i64>(body.n, "n", "a whole number")? {
            None | Some(1) => {}
            Some(_) => return Err(Problem::invalid("n", "an agent gives one answer: `n` has to be 1")),
        }
        let options: Option<Options<'_>> = object(body.stream_options, "stream_options")?;
        let usage = options.and_then(|options| options.include_usage);
        let metadata: Option<Metadata<'_>> = object(body.metadata, "metadata")?;
        let session: Option<String> =
            read(metadata.and_then(|metadata| metadata.session_id), "metadata.session_id", "a text")?;
        Ok(Self {
            model,
            messages: messages(body.messages.ok_or_else(|| missing("messages"))?)?,
            stream: read(body.stream, "stream", "true or false")?.unwrap_or(false),
            include_usage: read(usage, "stream_options.include_usage", "true or false")?.unwrap_or(false),
            format: body.response_format.map(format).transpose()?.unwrap_or_default(),
            session: session.map(|key| session_key(&key, "metadata.session_id")).transpose()?,
            user: read(body.user, "user", "a text")?,
        })
    }

    /// The conversation that it belongs to: by the header `X-Session-Id`, else by `metadata.session_id`.
    ///
    /// # Errors
    /// 400 when the header is no key of a session.
    pub fn session(&self, header: Option<&[u8]>) -> Result<Option<Arc<str>>, Problem> {
        let Some(header) = header else { return Ok(self.session.clone()) };
        let text = std::str::from_utf8(header).map_err(|_| bad_session("X-Session-Id"))?;
        session_key(text, "X-Session-Id").map(Some)
    }

    /// Two requests with the same one ask the same: a client that tries again by itself sends it again.
    #[must_use]
    pub fn print(&self, session: Option<&str>) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.model, &self.messages, self.stream, self.format.word(), session, &self.user).hash(&mut hasher);
        hasher.finish()
    }
}

/// A session's key: 1 to 256 bytes without control characters.
///
/// # Errors
/// 400 with `param` when it is none.
pub fn session_key(text: &str, param: &str) -> Result<Arc<str>, Problem> {
    let text = text.trim();
    if text.is_empty() || text.len() > LONGEST_SESSION || text.chars().any(char::is_control) {
        return Err(bad_session(param));
    }
    Ok(text.into())
}

fn bad_session(param: &str) -> Problem {
    Problem::invalid(param, format!("`{param}` is no session: write 1 to {LONGEST_SESSION} bytes without line ends"))
}

fn missing(param: &str) -> Problem {
    Problem::invalid(param, format!("`{param}` is missing")).code("missing_required_parameter")
}

fn wrong(param: &str, expected: &str) -> Problem {
    Problem::invalid(param, format!("`{param}` has to be {expected}")).code("invalid_type")
}

/// The value of a key; null is as if it were not there.
fn read<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>, param: &str, expected: &str) -> Result<Option<T>, Problem> {
    raw.map(|raw| serde_json::from_str(raw.get()).map_err(|_| wrong(param, expected))).transpose()
}

/// The same for an object of known keys.
fn object<'a, T: Deserialize<'a>>(raw: Option<&'a RawValue>, param: &str) -> Result<Option<T>, Problem> {
    if raw.is_some_and(|raw| !raw.get().starts_with('{')) {
        return Err(wrong(param, "an object"));
    }
    read(raw, param, "an object")
}

fn messages(raw: &RawValue) -> Result<Vec<Message>, Problem> {
    let list: List<'_, MOST_MESSAGES> = read(Some(raw), "messages", "a list")?.unwrap_or_default();
    if list.more {
        return Err(Problem::invalid("messages", format!("there are more than {MOST_MESSAGES} messages")));
    }
    if list.items.is_empty() {
        return Err(Problem::invalid("messages", "there is no message to answer"));
    }
    list.items.iter().enumerate().map(|(index, raw)| message(raw, &format!("messages[{index}]"))).collect()
}

fn message(raw: &RawValue, param: &str) -> Result<Message, Problem> {
    let said: Said<'_> = object(Some(raw), param)?.ok_or_else(|| wrong(param, "an object"))?;
    let at = format!("{param}.role");
    let role: String = read(said.role, &at, "a text")?.ok_or_else(|| missing(&at))?;
    let role = Role::of(&role).ok_or_else(|| {
        Problem::invalid(at, "a role is `system`, `developer`, `user`, `assistant` or `tool`").code("invalid_value")
    })?;
    let at = format!("{param}.content");
    let content = match said.content {
        Some(raw) if raw.get().starts_with('[') => parts(raw, &at)?,
        Some(raw) => read(Some(raw), &at, "a text or a list of parts")?.unwrap_or_default(),
        // It called a tool, or said no.
        None if role == Role::Assistant => {
            read(said.refusal, &format!("{param}.refusal"), "a text")?.unwrap_or_default()
        }
        None => return Err(missing(&at)),
    };
    Ok(Message { role, content })
}

/// Text parts, joined.
fn parts(raw: &RawValue, param: &str) -> Result<String, Problem> {
    let list: List<'_, MOST_PARTS> = read(Some(raw), param, "a list")?.unwrap_or_default();
    if list.more {
        return Err(Problem::invalid(param, format!("there are more than {MOST_PARTS} parts in it")));
    }
    let mut text = String::new();
    for (index, raw) in list.items.iter().enumerate() {
        let param = format!("{param}[{index}]");
        let part: Part<'_> = object(Some(raw), &param)?.ok_or_else(|| wrong(&param, "an object"))?;
        let at = format!("{param}.type");
        let kind: String = read(part.kind, &at, "a text")?.ok_or_else(|| missing(&at))?;
        let (said, at) = match kind.as_str() {
            "text" => (part.text, format!("{param}.text")),
            "refusal" => (part.refusal, format!("{param}.refusal")),
            _ => {
                let kind: String = kind.chars().take(40).flat_map(char::escape_debug).collect();
                let message = format!("a part of the type `{kind}` cannot be given to an agent: send text");
                return Err(Problem::invalid(at, message).code("unsupported_content"));
            }
        };
        text += &read::<String>(said, &at, "a text")?.ok_or_else(|| missing(&at))?;
    }
    Ok(text)
}

fn format(raw: &RawValue) -> Result<Format, Problem> {
    const PARAM: &str = "response_format";
    let wanted: Wanted<'_> = object(Some(raw), PARAM)?.ok_or_else(|| wrong(PARAM, "an object"))?;
    let kind: Option<String> = read(wanted.kind, "response_format.type", "a text")?;
    match kind.as_deref() {
        None => Err(missing("response_format.type")),
        Some("text") => Ok(Format::Text),
        Some("json_object") => Ok(Format::Object),
        Some("json_schema") => {
            let at = "response_format.json_schema";
            let named: Named<'_> = object(wanted.json_schema, at)?.ok_or_else(|| missing(at))?;
            let name: Option<String> = read(named.name, "response_format.json_schema.name", "a text")?;
            name.ok_or_else(|| missing("response_format.json_schema.name"))?;
            let at = "response_format.json_schema.schema";
            // The API's document lets it be left out: then any JSON object will do.
            let Some(raw) = named.schema else { return Ok(Format::Object) };
            if raw.get().len() > LARGEST_SCHEMA {
                let message = format!("the schema is larger than {} KiB", LARGEST_SCHEMA >> 10);
                return Err(Problem::invalid(at, message));
            }
            let value = read(Some(raw), at, "an object")?.unwrap_or_default();
            let schema = Schema::new(value);
            let schema = schema.map_err(|why| Problem::invalid(at, why.to_string()).code("unsupported_schema"))?;
            Ok(Format::Schema(Arc::new(schema)))
        }
        Some(_) => {
            let message = "a format is `text`, `json_object` or `json_schema`";
            Err(Problem::invalid("response_format.type", message).code("invalid_value"))
        }
    }
}

/// A list of at most so many values, which are not looked into yet.
#[derive(Default)]
struct List<'a, const MOST: usize> {
    items: Vec<&'a RawValue>,
    /// There were more.
    more: bool,
}

impl<'de: 'a, 'a, const MOST: usize> Deserialize<'de> for List<'a, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading<'a, const MOST: usize>(std::marker::PhantomData<&'a ()>);

        impl<'de: 'a, 'a, const MOST: usize> Visitor<'de> for Reading<'a, MOST> {
            type Value = List<'a, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = List::default();
                while list.items.len() < MOST {
                    let Some(item) = seq.next_element()? else { return Ok(list) };
                    list.items.push(item);
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    list.more = true;
                }
                Ok(list)
            }
        }

        deserializer.deserialize_seq(Reading(std::marker::PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn parse(body: &Value) -> Result<Request, Problem> {
        Request::parse(body.to_string().as_bytes())
    }

    fn with(more: Value) -> Value {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    }

    fn said(content: Value) -> Value {
        with(json!({"messages": [{"role": "user", "content": content}]}))
    }

    #[test]
    fn what_is_known_is_read() {
        let request = parse(&json!({
            "model": "haiku",
            "messages": [
                {"role": "developer", "content": "be kind", "name": "x"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "assistant", "content": null, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "tool_call_id": "1", "content": "42"},
                {"role": "assistant", "refusal": "no"},
                {"role": "function", "name": "f", "content": "43"},
            ],
            "stream": true,
            "stream_options": {"include_usage": true, "include_obfuscation": true},
            "response_format": {"type": "json_object"},
            "metadata": {"session_id": " room-1 ", "other": 1},
            "user": "u",
            "n": 1,
        }))
        .unwrap();
        assert_eq!((request.model.as_str(), request.user.as_deref()), ("haiku", Some("u")));
        assert_eq!((request.stream, request.include_usage), (true, true));
        assert_eq!((request.session.as_deref(), request.format), (Some("room-1"), Format::Object));
        let expected = [
            (Role::System, "be kind"),
            (Role::User, "ab"),
            (Role::Assistant, ""),
            (Role::Tool, "42"),
            (Role::Assistant, "no"),
            (Role::Tool, "43"),
        ];
        assert_eq!(request.messages, expected.map(|(role, content)| Message::new(role, content)));
    }

    /// The request that the SDK's own suite sends.
    #[test]
    fn unknown_and_empty_fields_are_tolerated() {
        let request = parse(&with(json!({
            "audio": {"format": "wav", "voice": "alloy"}, "frequency_penalty": -2, "function_call": "none",
            "functions": [{"name": "name", "description": "description", "parameters": {"foo": "bar"}}],
            "logit_bias": {"foo": 0}, "logprobs": true, "max_completion_tokens": 0, "max_tokens": 0,
            "metadata": {"foo": "string"}, "modalities": ["text"], "moderation": {"model": "m"}, "n": null,
            "parallel_tool_calls": true, "prediction": {"content": "string", "type": "content"},
            "presence_penalty": -2, "prompt_cache_key": "k", "reasoning_effort": "none",
            "response_format": {"type": "text"}, "safety_identifier": "s", "seed": 0, "service_tier": "auto",
            "stop": "\n", "store": true, "stream": false, "stream_options": null, "temperature": 1,
            "tool_choice": "none", "tools": [], "top_logprobs": 0, "top_p": 1, "user": "user-1234",
            "verbosity": "low", "web_search_options": {"search_context_size": "low"},
        })))
        .unwrap();
        assert_eq!((request.session, request.format, request.stream), (None, Format::Text, false));
        // A mountain of something unknown costs nothing.
        assert!(parse(&with(json!({"unknown": vec![json!([[], {}, 0.5]); 10_000]}))).is_ok());
    }

    #[test]
    fn mistakes_name_their_key() {
        let schema = |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
        for (body, param, part) in [
            (json!([]), None, "no JSON object"),
            (json!("x"), None, "no JSON object"),
            (json!({"messages": []}), Some("model"), "`model` is missing"),
            (json!({"model": null, "messages": []}), Some("model"), "`model` is missing"),
            (json!({"model": 5, "messages": []}), Some("model"), "has to be a text"),
            (json!({"model": "m"}), Some("messages"), "`messages` is missing"),
            (with(json!({"messages": []})), Some("messages"), "no message to answer"),
            (with(json!({"messages": {}})), Some("messages"), "has to be a list"),
            (with(json!({"messages": vec![0; MOST_MESSAGES + 1]})), Some("messages"), "more than 10000"),
            (with(json!({"messages": ["hi"]})), Some("messages[0]"), "has to be an object"),
            (with(json!({"messages": [[1, 2, 3]]})), Some("messages[0]"), "has to be an object"),
            (with(json!({"messages": [{"content": "x"}]})), Some("messages[0].role"), "is missing"),
            (with(json!({"messages": [{"role": 1, "content": "x"}]})), Some("messages[0].role"), "a text"),
            (with(json!({"messages": [{"role": "boss", "content": "x"}]})), Some("messages[0].role"), "a role is"),
            (with(json!({"messages": [{"role": "user"}]})), Some("messages[0].content"), "is missing"),
            (said(json!(5)), Some("messages[0].content"), "a text or a list of parts"),
            (said(json!({})), Some("messages[0].content"), "a text or a list of parts"),
            (said(json!(["x"])), Some("messages[0].content[0]"), "has to be an object"),
            (said(json!([{"text": "x"}])), Some("messages[0].content[0].type"), "is missing"),
            (said(json!([{"type": "text"}])), Some("messages[0].content[0].text"), "is missing"),
            (
                said(json!(vec![json!({"type": "text", "text": ""}); 1001])),
                Some("messages[0].content"),
                "more than 1000",
            ),
            (
                said(json!([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": "x"}}])),
                Some("messages[0].content[1].type"),
                "`image_url` cannot be given to an agent",
            ),
            (with(json!({"n": 2})), Some("n"), "one answer"),
            (with(json!({"n": "1"})), Some("n"), "a whole number"),
            (with(json!({"stream": "yes"})), Some("stream"), "true or false"),
            (with(json!({"stream_options": true})), Some("stream_options"), "an object"),
            (
                with(json!({"stream_options": {"include_usage": 1}})),
                Some("stream_options.include_usage"),
                "true or false",
            ),
            (with(json!({"metadata": "x"})), Some("metadata"), "an object"),
            (with(json!({"metadata": {"session_id": 5}})), Some("metadata.session_id"), "a text"),
            (with(json!({"metadata": {"session_id": " "}})), Some("metadata.session_id"), "no session"),
            (with(json!({"metadata": {"session_id": "a\nb"}})), Some("metadata.session_id"), "no session"),
            (with(json!({"user": []})), Some("user"), "a text"),
            (with(json!({"response_format": "json"})), Some("response_format"), "an object"),
            (with(json!({"response_format": {}})), Some("response_format.type"), "is missing"),
            (with(json!({"response_format": {"type": "xml"}})), Some("response_format.type"), "a format is"),
            (
                with(json!({"response_format": {"type": "json_schema"}})),
                Some("response_format.json_schema"),
                "is missing",
            ),
            (
                with(json!({"response_format": {"type": "json_schema", "json_schema": {}}})),
                Some("response_format.json_schema.name"),
                "is missing",
            ),
            (
                with(json!({"response_format": schema(json!({"type": "objekt"}))})),
                Some("response_format.json_schema.schema"),
                "`objekt`",
            ),
            (
                with(json!({"response_format": schema(json!({"title": "x".repeat(LARGEST_SCHEMA)}))})),
                Some("response_format.json_schema.schema"),
                "larger than 64 KiB",
            ),
        ] {
            let problem = parse(&body).unwrap_err();
            let shown = &body.to_string()[..body.to_string().len().min(200)];
            assert_eq!((problem.status, problem.param.as_deref()), (400, param), "{shown}\n{problem:?}");
            assert!(problem.message.contains(part), "{shown}\n{problem:?}");
        }
    }

    #[test]
    fn what_is_no_json() {
        for (body, status, code) in [
            (&b""[..], 400, "invalid_json"),
            (b"{", 400, "invalid_json"),
            (b"{\"model\":\"m\",\"model\":\"m\"}", 400, "invalid_json"),
            (b"{\"model\":\"m\"} x", 400, "invalid_json"),
            (b"{\"model\":\"\xff\"}", 400, "invalid_utf8"),
            (&[b' '; LARGEST_BODY + 1], 413, "request_too_large"),
        ] {
            let problem = Request::parse(body).unwrap_err();
            assert_eq!((problem.status, problem.code), (status, Some(code)));
        }
        let lone = br#"{"model":"m","messages":[{"role":"user","content":"\ud800"}]}"#;
        assert_eq!(Request::parse(lone).unwrap_err().param.as_deref(), Some("messages[0].content"));
        let deep = format!("{{\"model\":\"m\",\"x\":{}", "[".repeat(1 << 20));
        assert_eq!(Request::parse(deep.as_bytes()).unwrap_err().status, 400);
    }

    /// The thread of this room has half a megabyte.
    #[test]
    fn a_small_stack_will_do() {
        let work = || {
            for deep in ["[".repeat(1 << 20), "{\"a\":".repeat(1 << 18)] {
                for key in ["x", "messages", "metadata", "response_format", "n", "model"] {
                    let body = format!("{{\"model\":\"m\",\"{key}\":{deep}");
                    assert_eq!(Request::parse(body.as_bytes()).unwrap_err().status, 400);
                }
            }
            let nested = "[".repeat(120) + &"]".repeat(120);
            for key in ["messages", "metadata", "response_format", "n"] {
                let body = format!("{{\"model\":\"m\",\"messages\":[],\"{key}\":{nested}}}");
                assert_eq!(Request::parse(body.as_bytes()).unwrap_err().status, 400);
            }
            let answer = format!("{{\"a\":{nested}}}");
            assert!(Format::Object.take(&answer).is_ok());
        };
        std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
    }

    #[test]
    fn a_session_by_header_first() {
        let request = parse(&with(json!({"metadata": {"session_id": "a"}}))).unwrap();
        assert_eq!(request.session(None).unwrap().as_deref(), Some("a"));
        assert_eq!(request.session(Some(b"b")).unwrap().as_deref(), Some("b"));
        for wrong in [&b""[..], b"\xff", &[b'x'; 257]] {
            assert_eq!(request.session(Some(wrong)).unwrap_err().param.as_deref(), Some("X-Session-Id"));
        }
    }

    #[test]
    fn the_same_request_has_the_same_print() {
        let one = parse(&with(json!({"temperature": 1}))).unwrap();
        let again = parse(&with(json!({}))).unwrap();
        let other = parse(&said(json!("ho"))).unwrap();
        assert_eq!(one.print(Some("s")), again.print(Some("s")));
        assert_ne!(one.print(Some("s")), one.print(None));
        assert_ne!(one.print(Some("s")), other.print(Some("s")));
    }

    /// Any JSON, of few words, so that known keys meet wrong values.
    fn any_json() -> impl Strategy<Value = Value> {
        const WORDS: [&str; 16] = [
            "model",
            "messages",
            "role",
            "user",
            "content",
            "type",
            "text",
            "stream",
            "n",
            "metadata",
            "session_id",
            "response_format",
            "json_schema",
            "schema",
            "name",
            "assistant",
        ];
        let word = prop::sample::select(WORDS.as_slice()).prop_map(str::to_owned);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            word.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 40, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(word.clone(), inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::parse(&body);
        }

        #[test]
        fn any_json_is_read_or_refused(body in any_json(), more in any_json()) {
            let _ = parse(&body);
            for key in ["messages", "response_format", "metadata", "stream_options", "n", "stream", "user"] {
                if let Err(problem) = parse(&with(json!({key: more.clone()}))) {
                    prop_assert_eq!(problem.status, 400);
                    prop_assert!(problem.param.is_some_and(|param| param.starts_with(key)));
                }
            }
        }

        /// A body that is cut off anywhere is refused.
        #[test]
        fn half_a_body_is_none(cut in 0usize..1000) {
            let body = with(json!({"stream": true, "metadata": {"session_id": "é"}})).to_string();
            let cut = cut % body.len();
            prop_assert!(Request::parse(&body.as_bytes()[..cut]).is_err());
        }

        #[test]
        fn texts_come_through(text in "(?s).{0,60}", parts in prop::collection::vec("(?s).{0,20}", 0..5)) {
            let request = parse(&said(json!(text))).unwrap();
            prop_assert_eq!(&request.messages[0].content, &text);
            let list: Vec<Value> = parts.iter().map(|part| json!({"type": "text", "text": part})).collect();
            prop_assert_eq!(&parse(&said(json!(list))).unwrap().messages[0].content, &parts.concat());
        }
    }
}
