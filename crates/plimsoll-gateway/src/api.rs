//! What clients ask of pools: chat completions, models, webhooks, sessions. Everything else is [`crate::control`]'s.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Mutex;
use tokio::time::{Instant, Interval, timeout};

use crate::chat::response::{Chunks, Finish, Head, Usage};
use crate::chat::structured::Format;
use crate::chat::{self, Message, Problem, Role, models, request};
use crate::control::{Door, Words, reply};
use crate::desk::Verdict;
use crate::poster;
use crate::secret::Secret;
use crate::serving::{Ask, Turns};
use crate::tape::{Failure, Note, Reader};
use crate::tokens::Known;
use crate::webhook::{self, Answered, Echoes};

/// A body has to be here after so long.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The pools' side of this room.
pub(crate) struct Api {
    turns: Rc<Turns>,
    began: Instant,
    /// When that was, seconds since 1970.
    born: u64,
    answers: Cell<u64>,
    campfire: RefCell<Option<String>>,
    answered: RefCell<Answered>,
    echoes: RefCell<Echoes>,
    /// Rooms into which late answers are posted, one after the other.
    posting: RefCell<BTreeMap<String, Rc<Mutex<()>>>>,
}

impl Api {
    pub(crate) fn new(turns: Rc<Turns>) -> Rc<Self> {
        Rc::new(Self {
            turns,
            began: Instant::now(),
            born: now(),
            answers: Cell::new(0),
            campfire: RefCell::default(),
            answered: RefCell::default(),
            echoes: RefCell::default(),
            posting: RefCell::default(),
        })
    }

    /// What the supervisor says.
    pub(crate) fn hear(&self, verdict: Verdict) {
        if let Verdict::Settings(settings) = &verdict {
            self.campfire.borrow_mut().clone_from(&settings.campfire);
        }
        self.turns.hear(verdict);
    }

    /// Answers what is asked of pools; hands back what is not.
    pub(crate) async fn answer(
        self: &Rc<Self>,
        door: &Door,
        known: Option<Known>,
        request: Request<Incoming>,
    ) -> Result<Response<Words>, Box<Request<Incoming>>> {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let pools = self.turns.pools();
        let answered = match (request.method(), parts.as_slice()) {
            (&Method::POST, ["v1", "chat", "completions"]) => self.complete(door, known, request).await,
            (&Method::GET, ["v1", "models"]) => {
                Ok(json(models::list(&pools, |pool| door.is_for(known, pool), self.born)))
            }
            (&Method::GET, ["v1", "models", id]) => match models::pool_of(&pools, id) {
                Some((pool, _)) if door.is_for(known, pool) => Ok(json(models::one(id, self.born))),
                _ => Err(Problem::no_model(id)),
            },
            (&Method::POST, ["webhook", pool] | ["webhook", pool, _]) => {
                return Ok(self.webhook(door, known, pool, request).await);
            }
            (&Method::DELETE, ["api", "v1", "sessions", key]) => {
                self.turns.close(None, unescaped(key).as_str().into()).await;
                Ok(empty(StatusCode::ACCEPTED))
            }
            (_, ["v1", ..]) => {
                Err(Problem { status: 404, ..Problem::invalid("", "there is nothing here: POST /v1/chat/completions") })
            }
            _ => return Err(Box::new(request)),
        };
        Ok(answered.unwrap_or_else(|problem| refused(&problem)))
    }

    /// `POST /v1/chat/completions`.
    async fn complete(
        self: &Rc<Self>,
        door: &Door,
        known: Option<Known>,
        request: Request<Incoming>,
    ) -> Result<Response<Words>, Problem> {
        door.take(known, self.began.elapsed()).map_err(Problem::rate)?;
        let headers = request.headers().clone();
        let body = whole(request.into_body(), request::LARGEST_BODY).await?;
        let asked = request::Request::parse(&body)?;
        drop(body);
        let pools = self.turns.pools();
        let pool = models::pool_of(&pools, &asked.model).map(|(pool, _)| pool.clone());
        let pool = pool.filter(|pool| door.is_for(known, pool)).ok_or_else(|| Problem::no_model(&asked.model))?;
        let key = asked.session(headers.get("x-session-id").map(HeaderValue::as_bytes))?;
        let is_retry = is_retry(&headers);
        // They hold the buffer that the connection reads into.
        drop(headers);
        let head = Head { id: self.next_id(), created: now(), model: asked.model.clone() };
        if asked.format != Format::Text {
            return self.structured(&pool, key, asked, head).await;
        }
        let ask = Ask {
            print: asked.print(key.as_deref()),
            pool,
            key,
            messages: asked.messages,
            instruction: None,
            is_streamed: asked.stream,
            is_aside: false,
            is_retry,
            goes_on: false,
        };
        let reader = self.turns.begin(ask)?;
        if asked.stream {
            return streamed(reader, Chunks::new(head, asked.include_usage)).await;
        }
        let (text, usage) = reader.whole().await.map_err(|failure| problem(&head.model, failure))?;
        Ok(json(head.completion(&text, Finish::Stop, cost(usage))))
    }

    /// An answer that has to be JSON: it is looked at as a whole, and asked for once more if it will not do.
    async fn structured(
        &self,
        pool: &Arc<str>,
        key: Option<Arc<str>>,
        asked: request::Request,
        head: Head,
    ) -> Result<Response<Words>, Problem> {
        let own = key.is_none();
        // The second question has to find whoever answered the first.
        let key = key.unwrap_or_else(|| format!("once-{}", head.id).into());
        let question = |messages: Vec<Message>, instruction: Option<String>| Ask {
            pool: pool.clone(),
            key: Some(key.clone()),
            messages,
            instruction,
            is_streamed: false,
            // What is remembered is what the client knows: its question and the answer that it was given.
            is_aside: true,
            print: 0,
            is_retry: false,
            goes_on: false,
        };
        let answered = async {
            let ask = question(asked.messages.clone(), asked.format.instruction());
            let (text, usage) =
                self.turns.begin(ask)?.whole().await.map_err(|failure| problem(&head.model, failure))?;
            let why = match asked.format.take(&text) {
                Ok(taken) => return Ok((taken.to_owned(), cost(usage))),
                Err(why) => why,
            };
            let again = question(vec![Message::new(Role::User, asked.format.ask_again(&why))], None);
            let again = self.turns.begin(again)?.whole().await.map_err(|failure| problem(&head.model, failure))?;
            let taken = asked.format.take(&again.0).map_err(|why| Format::failed(&why))?;
            Ok((taken.to_owned(), cost(again.1)))
        };
        let answered = answered.await;
        if own {
            self.turns.close(Some(pool.clone()), key).await;
        } else if let Ok((text, _)) = &answered {
            let said = [&*asked.messages, &[Message::new(Role::Assistant, text.as_str())]].concat();
            self.turns.store(pool, &key, &said, asked.messages.len() > 1);
        }
        let (text, usage) = answered?;
        if !asked.stream {
            return Ok(json(head.completion(&text, Finish::Stop, usage)));
        }
        let chunks = Chunks::new(head, asked.include_usage);
        Ok(events(Words::Whole((chunks.first() + &chunks.words(&text) + &chunks.end(Finish::Stop, usage)).into())))
    }

    /// `POST /webhook/POOL`: a message in a room of Campfire's.
    async fn webhook(
        self: &Rc<Self>,
        door: &Door,
        known: Option<Known>,
        pool: &str,
        request: Request<Incoming>,
    ) -> Response<Words> {
        if let Err(wait) = door.take(known, self.began.elapsed()) {
            return later(StatusCode::TOO_MANY_REQUESTS, wait);
        }
        let pool = self.turns.pools().get_key_value(pool).map(|(name, _)| name.clone());
        let Some(pool) = pool.filter(|pool| door.is_for(known, pool)) else { return empty(StatusCode::NOT_FOUND) };
        let body = match whole(request.into_body(), webhook::LARGEST_BODY).await {
            Ok(body) => body,
            Err(problem) => return empty(StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_REQUEST)),
        };
        let Ok(message) = webhook::Message::parse(&body) else { return empty(StatusCode::BAD_REQUEST) };
        let now = self.began.elapsed();
        if message.is_bot || self.echoes.borrow().is_ours(now, &message) {
            return empty(StatusCode::NO_CONTENT);
        }
        let is_first = message.id.as_ref().is_none_or(|id| self.answered.borrow_mut().is_first(now, &pool, id));
        if !is_first {
            return empty(StatusCode::NO_CONTENT);
        }
        let ask = Ask {
            pool: pool.clone(),
            key: Some(format!("room-{}", message.room).into()),
            messages: vec![Message::new(Role::User, message.text.as_str())],
            instruction: None,
            is_streamed: false,
            is_aside: false,
            print: 0,
            is_retry: false,
            goes_on: true,
        };
        let reader = match self.turns.begin(ask) {
            Ok(reader) => reader,
            Err(_) => return empty(StatusCode::BAD_REQUEST),
        };
        let address = message.reply_to(self.campfire.borrow().as_deref());
        match address {
            Some(address) => {
                let api = self.clone();
                tokio::task::spawn_local(async move { api.reply(reader, message, address).await });
                empty(StatusCode::NO_CONTENT)
            }
            None => match reader.whole().await {
                Ok((text, _)) => match webhook::said(&text) {
                    Some(text) => {
                        self.echoes.borrow_mut().say(self.began.elapsed(), &message.room, text);
                        text_of(text)
                    }
                    None => empty(StatusCode::NO_CONTENT),
                },
                Err(failure) => {
                    // It may come again.
                    message.id.iter().for_each(|id| self.answered.borrow_mut().forget(&pool, id));
                    let problem = problem(&pool, failure);
                    match problem.retry_after_s {
                        Some(seconds) => later(status(problem.status), Duration::from_secs(seconds.into())),
                        None => empty(status(problem.status)),
                    }
                }
            },
        }
    }

    /// Posts an answer into its room once it is there; answers of one room in their order.
    async fn reply(&self, reader: Reader, message: webhook::Message, address: Secret) {
        let Ok((text, _)) = reader.whole().await else { return };
        let Some(text) = webhook::said(&text) else { return };
        let room = self.posting.borrow_mut().entry(message.room.clone()).or_default().clone();
        let turn = room.lock().await;
        self.echoes.borrow_mut().say(self.began.elapsed(), &message.room, text);
        poster::post(&address, text).await;
        drop(turn);
        drop(room);
        // Nobody else posts into it: its place is free.
        self.posting.borrow_mut().retain(|_, lock| Rc::strong_count(lock) > 1);
    }

    /// A name for an answer, never twice in one life of plimsoll.
    fn next_id(&self) -> String {
        self.answers.set(self.answers.get() + 1);
        format!("chatcmpl-{:x}{:08x}", self.born, self.answers.get())
    }
}

/// The SDKs say so when they try again by themselves.
fn is_retry(headers: &HeaderMap) -> bool {
    let count = headers.get("x-stainless-retry-count").and_then(|value| value.to_str().ok());
    count.and_then(|count| count.parse::<u32>().ok()).is_some_and(|count| count > 0)
}

/// Streams an answer. What goes wrong before its first word is told with a status of its own.
async fn streamed(mut reader: Reader, chunks: Chunks) -> Result<Response<Words>, Problem> {
    let first = loop {
        match reader.next().await {
            Note::Began => {}
            Note::Failed(failure) => return Err(problem(chunks.model(), failure)),
            note => break Some(note),
        }
    };
    Ok(events(Words::Told(Box::new(Telling::new(reader, chunks, first)))))
}

/// An answer that is told as it comes: a body that reads its turn's tape.
#[derive(Debug)]
pub(crate) struct Telling {
    reader: Reader,
    chunks: Chunks,
    /// A note that was read already.
    next: Option<Note>,
    stage: Stage,
    alive: Option<Box<Interval>>,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not said who speaks.
    Greets,
    /// No word has come yet.
    Silent,
    /// Words have come.
    Speaks,
    Over,
}

impl Telling {
    /// `next` was read already.
    pub(crate) fn new(reader: Reader, chunks: Chunks, next: Option<Note>) -> Self {
        Self { reader, chunks, next, stage: Stage::Greets, alive: None }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// The next piece; none after the last.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<String>> {
        match self.stage {
            Stage::Greets => {
                self.stage = Stage::Silent;
                return Poll::Ready(Some(self.chunks.first()));
            }
            Stage::Over => return Poll::Ready(None),
            Stage::Silent | Stage::Speaks => {}
        }
        loop {
            let note = match self.next.take() {
                Some(note) => note,
                None => match self.reader.poll_next(context) {
                    Poll::Ready(note) => note,
                    Poll::Pending => return reply::poll_alive(&mut self.alive, context).map(Some),
                },
            };
            if let Some(alive) = &mut self.alive {
                alive.reset();
            }
            let (text, stage) = match note {
                Note::Began => continue,
                Note::Delta(delta) => (self.chunks.words(&delta), Stage::Speaks),
                Note::Final(text, usage) => {
                    let said = self.stage == Stage::Speaks;
                    let rest = if said { String::new() } else { self.chunks.words(&text) };
                    (rest + &self.chunks.end(Finish::Stop, cost(usage)), Stage::Over)
                }
                Note::Failed(failure) => (problem(self.chunks.model(), failure).event(), Stage::Over),
            };
            self.stage = stage;
            return Poll::Ready(Some(text));
        }
    }
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

/// A request's body, bounded in size and time.
async fn whole(mut body: Incoming, most: usize) -> Result<Vec<u8>, Problem> {
    let read = async {
        let mut all = Vec::new();
        while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            let frame = frame.map_err(|_| Problem::invalid("", "the body broke off"))?;
            if let Ok(data) = frame.into_data() {
                if all.len() + data.len() > most {
                    return Err(Problem::too_large(most));
                }
                all.extend_from_slice(&data);
            }
        }
        Ok(all)
    };
    let slow = || Problem { status: 408, ..Problem::invalid("", "the body took too long") };
    timeout(BODY_TIME, read).await.unwrap_or_else(|_| Err(slow()))
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn typed(words: Words, kind: &'static str) -> Response<Words> {
    let mut response = Response::new(words);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn json(body: String) -> Response<Words> {
    typed(Words::Whole(body.into()), "application/json")
}

fn events(words: Words) -> Response<Words> {
    typed(words, "text/event-stream")
}

fn text_of(text: &str) -> Response<Words> {
    typed(Words::Whole(text.to_owned().into()), "text/plain; charset=utf-8")
}

fn empty(code: StatusCode) -> Response<Words> {
    let mut response = Response::new(Words::Whole(Bytes::new()));
    *response.status_mut() = code;
    response
}

fn later(code: StatusCode, wait: Duration) -> Response<Words> {
    let mut response = empty(code);
    let seconds = chat::problem::retry_after_s(wait);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// A problem in the API's own shape.
pub(crate) fn refused(problem: &Problem) -> Response<Words> {
    let mut response = json(problem.json());
    *response.status_mut() = status(problem.status);
    for (name, value) in problem.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}

/// Seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "the wire wants the time of day")]
fn now() -> u64 {
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
