//! What clients ask of pools: chat completions, models, sessions. Everything else is [`crate::control`]'s.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use plimsoll_model::pool::PoolSpec;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::agent::{Message, Role};
use crate::chat::models;
use crate::chat::problem::Problem;
use crate::chat::response::{Chunks, Finish, Head, Usage};
use crate::control::Words;
use crate::serving::{Ask, Failure, Note, Reader, Same, Turns};

/// A body that is larger is refused, bytes.
const LARGEST_BODY: usize = 16 << 20;

/// A body has to be here after so long.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Events of a stream that wait for its client; meanwhile the agent's answer waits on its tape.
const BEHIND: usize = 16;

/// A client that takes nothing of its stream for so long is gone.
const SLOWEST: Duration = Duration::from_secs(60);

/// Answers what is asked of pools; hands back what is not.
pub(crate) async fn answer(
    turns: &Rc<Turns>,
    request: Request<Incoming>,
) -> Result<Response<Words>, Box<Request<Incoming>>> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let answered = match (request.method(), parts.as_slice()) {
        (&Method::POST, ["v1", "chat", "completions"]) => complete(turns, request).await,
        (&Method::GET, ["v1", "models"]) => Ok(json(models::list(&turns.pools(), |_| true, turns.since()))),
        (&Method::GET, ["v1", "models", id]) => match turns.pool(id) {
            Some(_) => Ok(json(models::one(id, turns.since()))),
            None => Err(Problem::no_model(id)),
        },
        (&Method::DELETE, ["api", "v1", "sessions", key]) => {
            turns.close(None, unescaped(key).as_str().into()).await;
            Ok(empty(StatusCode::ACCEPTED))
        }
        (_, ["v1", ..]) => Err(Problem { status: 404, ..Problem::invalid("", format!("there is nothing at {path}")) }),
        _ => return Err(Box::new(request)),
    };
    Ok(answered.unwrap_or_else(|problem| refused(&problem)))
}

/// `POST /v1/chat/completions`.
async fn complete(turns: &Rc<Turns>, request: Request<Incoming>) -> Result<Response<Words>, Problem> {
    let headers = request.headers().clone();
    let body = whole(request.into_body()).await?;
    let asked = read(&body)?;
    let model = asked.model.clone();
    let (pool, spec) = turns.pool(&model).ok_or_else(|| Problem::no_model(&model))?;
    let key = session(&headers, &asked);
    let head = Head { id: format!("chatcmpl-{}", turns.next_id()), created: now(), model: model.clone() };
    let (stream, include_usage) = (asked.stream, asked.include_usage);
    let reader = turns.begin(turn(turns, pool, &spec, key, asked, &headers));
    if stream {
        return streamed(reader, Chunks::new(head, include_usage), &model).await;
    }
    let (text, usage) = reader.whole().await.map_err(|failure| problem(&model, failure))?;
    Ok(json(head.completion(&text, Finish::Stop, cost(usage))))
}

/// A chat request as a turn.
fn turn(
    turns: &Rc<Turns>,
    pool: Arc<str>,
    _spec: &PoolSpec,
    key: Option<Arc<str>>,
    asked: Asked,
    headers: &HeaderMap,
) -> Ask {
    let mut hasher = DefaultHasher::new();
    asked.messages.iter().for_each(|message| (message.role.word(), &message.content).hash(&mut hasher));
    let content = hasher.finish();
    let _ = (turns, headers);
    let system: Vec<&str> =
        asked.messages.iter().filter(|one| one.role == Role::System).map(|one| one.content.as_str()).collect();
    let system = (!system.is_empty()).then(|| system.join("\n\n"));
    let history: Vec<Message> = asked.messages.iter().filter(|one| one.role != Role::System).cloned().collect();
    let news = history.last().cloned().into_iter().collect();
    let same = key.clone().map(|key| Same { pool: pool.clone(), key, content });
    Ask { pool, key, system, history, news, same, goes_on: false }
}

/// Streams an answer. What goes wrong before its first word is told with a status of its own.
async fn streamed(mut reader: Reader, chunks: Chunks, model: &str) -> Result<Response<Words>, Problem> {
    let mut first = loop {
        match reader.next().await {
            Note::Began => {}
            Note::Failed(failure) => return Err(problem(model, failure)),
            note => break Some(note),
        }
    };
    let (say, coming) = mpsc::channel(BEHIND);
    let model = model.to_owned();
    tokio::task::spawn_local(async move {
        // Whoever does not listen for a minute, or has gone, is not written to any more: the reader goes with this task.
        let send =
            async |text: String| timeout(SLOWEST, say.send(Bytes::from(text))).await.is_ok_and(|sent| sent.is_ok());
        if !send(chunks.first()).await {
            return;
        }
        let mut said = false;
        loop {
            let note = match first.take() {
                Some(note) => note,
                None => tokio::select! {
                    note = reader.next() => note,
                    () = say.closed() => return,
                },
            };
            let (text, is_over) = match note {
                Note::Began => continue,
                Note::Delta(delta) => {
                    said = true;
                    (chunks.words(&delta), false)
                }
                Note::Final(text, usage) => {
                    let rest = if said { String::new() } else { chunks.words(&text) };
                    (rest + &chunks.end(Finish::Stop, cost(usage)), true)
                }
                Note::Failed(failure) => (problem(&model, failure).event(), true),
            };
            if !send(text).await || is_over {
                return;
            }
        }
    });
    let mut response = Response::new(Words::Coming { coming, events: true, alive: None });
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

fn cost(usage: Option<crate::agent::Usage>) -> Usage {
    usage.map_or(Usage::default(), |usage| Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
    })
}

fn problem(model: &str, failure: Failure) -> Problem {
    match failure {
        Failure::Denied(denial) => Problem::denied(model, &denial),
        Failure::Refused(why) | Failure::Broken(why) => Problem::agent(&why),
        Failure::Stopped(why) => Problem { status: 504, ..Problem::agent(&why) },
    }
}

/// What a client asks.
struct Asked {
    model: String,
    messages: Vec<Message>,
    stream: bool,
    include_usage: bool,
    session: Option<String>,
}

fn read(body: &[u8]) -> Result<Asked, Problem> {
    let value: serde_json::Value =
        serde_json::from_slice(body).map_err(|error| Problem::invalid("", format!("the body is no JSON: {error}")))?;
    let text = |value: &serde_json::Value| value.as_str().map(str::to_owned);
    let model = text(&value["model"]).ok_or_else(|| Problem::invalid("model", "`model` has to be a text"))?;
    let messages =
        value["messages"].as_array().ok_or_else(|| Problem::invalid("messages", "`messages` has to be a list"))?;
    let messages = messages.iter().map(|message| Message {
        role: match message["role"].as_str() {
            Some("system" | "developer") => Role::System,
            Some("assistant") => Role::Assistant,
            _ => Role::User,
        },
        content: text(&message["content"]).unwrap_or_default(),
    });
    Ok(Asked {
        model,
        messages: messages.collect(),
        stream: value["stream"].as_bool().unwrap_or(false),
        include_usage: value["stream_options"]["include_usage"].as_bool().unwrap_or(false),
        session: text(&value["metadata"]["session_id"]),
    })
}

/// The conversation that a request belongs to.
fn session(headers: &HeaderMap, asked: &Asked) -> Option<Arc<str>> {
    let header = headers.get("x-session-id").and_then(|value| value.to_str().ok());
    header.or(asked.session.as_deref()).filter(|key| !key.is_empty()).map(Arc::from)
}

/// A request's body, bounded in size and time.
async fn whole(mut body: Incoming) -> Result<Vec<u8>, Problem> {
    let read = async {
        let mut all = Vec::new();
        while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let frame = frame.map_err(|_| Problem::invalid("", "the body broke off"))?;
            if let Ok(data) = frame.into_data() {
                if all.len() + data.len() > LARGEST_BODY {
                    return Err(Problem::too_large(LARGEST_BODY));
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(all)
    };
    let slow = || Problem { status: 408, ..Problem::invalid("", "the body took too long") };
    timeout(BODY_TIME, read).await.unwrap_or_else(|_| Err(slow()))
}

fn json(body: String) -> Response<Words> {
    let mut response = Response::new(Words::Whole(body.into()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn empty(status: StatusCode) -> Response<Words> {
    let mut response = Response::new(Words::Whole(Bytes::new()));
    *response.status_mut() = status;
    response
}

fn refused(problem: &Problem) -> Response<Words> {
    let mut response = json(problem.json());
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in problem.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the wire wants the time of day")]
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs())
}

/// `%20` and its like.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match code.and_then(|two| u8::from_str_radix(two, 16).ok()).filter(|_| byte == b'%') {
            Some(code) => {
                bytes.push(code);
                rest = &after[2..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
