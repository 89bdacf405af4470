//! What clients ask of pools: chat completions, models, webhooks, sessions. Everything else is [`crate::control`]'s.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, Interval, timeout};

use crate::chat::response::{Chunks, Finish, Head, Usage};
use crate::chat::structured::Format;
use crate::chat::{self, Message, Problem, Role, models, request};
use crate::control::{Door, Words, reply};
use crate::desk::Verdict;
use crate::late::{Late, Lates};
use crate::leases::Cut;
use crate::serving::{Ask, REDIS_BACK, Turns};
use crate::tape::{Failure, Note, Reader, Same};
use crate::tokens::Known;
use crate::webhook::{self, Answered, Echoes};

/// A body has to be here after so long.
const BODY_TIME: Duration = Duration::from_secs(30);

/// The pools' side of this room.
pub(crate) struct Api {
    pub(crate) turns: Rc<Turns>,
    began: Instant,
    /// When that was, seconds since 1970.
    born: u64,
    answers: Cell<u64>,
    pub(crate) campfire: RefCell<Option<String>>,
    answered: RefCell<Answered>,
    echoes: RefCell<Echoes>,
    /// Answers that come later.
    pub(crate) late: Lates,
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
            late: Lates::default(),
        })
    }

    /// What the supervisor says.
    pub(crate) fn hear(self: &Rc<Self>, verdict: Verdict) {
        let settings = if let Verdict::Settings(settings) = &verdict { Some(settings.clone()) } else { None };
        self.turns.hear(verdict);
        if let Some(settings) = settings {
            *self.campfire.borrow_mut() = settings.campfire;
            self.look_for_orphans();
        }
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
            return self.structured(&pool, key, asked, head, is_retry).await;
        }
        let ask = Ask {
            print: asked.print(key.as_deref()),
            pool,
            key,
            messages: asked.messages,
            instruction: None,
            is_streamed: asked.stream,
            is_aside: false,
            is_alone: false,
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
        is_retry: bool,
    ) -> Result<Response<Words>, Problem> {
        let (model, is_streamed, include_usage) = (head.model.clone(), asked.stream, asked.include_usage);
        let print = asked.print(key.as_deref());
        let same = key.clone().map(|key| Same { pool: pool.clone(), key, print });
        let reader = match same.as_ref().filter(|_| is_retry).and_then(|same| self.turns.again(same)) {
            Some(reader) => reader,
            None => self.ask_structured(pool, key, asked, same, &head)?,
        };
        let (text, usage) = reader.whole().await.map_err(|failure| problem(&model, failure))?;
        let usage = cost(usage);
        if !is_streamed {
            return Ok(json(head.completion(&text, Finish::Stop, usage)));
        }
        let chunks = Chunks::new(head, include_usage);
        Ok(events(Words::Whole((chunks.first() + &chunks.words(&text) + &chunks.end(Finish::Stop, usage)).into())))
    }

    /// Asks once, and once more if need be; to its asker both are one turn.
    fn ask_structured(
        &self,
        pool: &Arc<str>,
        key: Option<Arc<str>>,
        asked: request::Request,
        same: Option<Same>,
        head: &Head,
    ) -> Result<Reader, Problem> {
        let own = key.is_none();
        // The second question has to find whoever answered the first.
        let key = key.unwrap_or_else(|| format!("once-{}", head.id).into());
        let (pool, turns) = (pool.clone(), self.turns.clone());
        let question = {
            let (pool, key) = (pool.clone(), key.clone());
            move |messages: Vec<Message>, instruction: Option<String>| Ask {
                pool: pool.clone(),
                key: Some(key.clone()),
                messages,
                instruction,
                is_streamed: false,
                // What is remembered is what the client knows: its question and the answer that it was given.
                is_aside: true,
                is_alone: own,
                print: 0,
                is_retry: false,
                goes_on: false,
            }
        };
        let first = self.turns.begin(question(asked.messages.clone(), asked.format.instruction()))?;
        let close = Closing(own.then(|| (turns.clone(), pool.clone(), key.clone())));
        let work = async move {
            let _close = close;
            let (text, usage) = first.whole().await?;
            let answer = match asked.format.take(&text) {
                Ok(taken) => (taken.to_owned(), usage),
                Err(why) => {
                    let messages = vec![Message::new(Role::User, asked.format.ask_again(&why))];
                    let again = turns.begin(question(messages, None)).map_err(|no| Failure::Refused(no.message))?;
                    let (text, more) = again.whole().await?;
                    let taken = asked.format.take(&text).map_err(|why| Failure::Refused(Format::failed(&why)))?;
                    (taken.to_owned(), both(usage, more))
                }
            };
            if !own {
                let said = [&*asked.messages, &[Message::new(Role::Assistant, answer.0.as_str())]].concat();
                let is_all = asked.messages.len() > 1;
                turns.remember(question(Vec::new(), None), &said, is_all).await.map_err(Failure::Denied)?;
            }
            Ok(answer)
        };
        Ok(self.turns.as_one(same, work))
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
        if message.is_bot {
            return empty(StatusCode::NO_CONTENT);
        }
        match self.is_to_be_answered(now, &pool, &message).await {
            Ok(true) => {}
            Ok(false) => return empty(StatusCode::NO_CONTENT),
            Err(_) => return later(StatusCode::SERVICE_UNAVAILABLE, REDIS_BACK),
        }
        let late = Late::new(&pool, &message);
        let address = message.reply_to(self.campfire.borrow().as_deref());
        if let Some(address) = address {
            return match self.answer_later(late, address).await {
                true => empty(StatusCode::NO_CONTENT),
                false => {
                    self.forget(&pool, &message).await;
                    later(StatusCode::SERVICE_UNAVAILABLE, REDIS_BACK)
                }
            };
        }
        let Ok(reader) = self.turns.begin(late.ask(false)) else { return empty(StatusCode::BAD_REQUEST) };
        match reader.whole().await {
            Ok((text, _)) => match webhook::said(&text) {
                Some(text) => {
                    self.say(&message.room, text).await;
                    text_of(text)
                }
                None => empty(StatusCode::NO_CONTENT),
            },
            Err(failure) => {
                // It may come again.
                self.forget(&pool, &message).await;
                let problem = problem(&pool, failure);
                match problem.retry_after_s {
                    Some(seconds) => later(status(problem.status), Duration::from_secs(seconds.into())),
                    None => empty(status(problem.status)),
                }
            }
        }
    }

    /// Whether a message is neither one that was answered, by any machine, nor what we said ourselves.
    async fn is_to_be_answered(&self, now: Duration, pool: &str, message: &webhook::Message) -> Result<bool, Cut> {
        let Some(leases) = self.turns.leases() else {
            return Ok(!self.echoes.borrow().is_ours(now, message)
                && message.id.as_ref().is_none_or(|id| self.answered.borrow_mut().is_first(now, pool, id)));
        };
        if let Some(echo) = webhook::echo(&message.room, &message.text)
            && leases.is_known(&echoed(echo)).await?
        {
            return Ok(false);
        }
        match &message.id {
            Some(id) => leases.is_first(&seen(pool, id), webhook::ANSWERED_FOR).await,
            None => Ok(true),
        }
    }

    /// A message was refused, and may come again.
    async fn forget(&self, pool: &str, message: &webhook::Message) {
        let Some(id) = &message.id else { return };
        match self.turns.leases() {
            // What cannot be taken back now is answered no more: twice would be worse.
            Some(leases) => drop(leases.forget(&seen(pool, id)).await),
            None => self.answered.borrow_mut().forget(pool, id),
        }
    }

    /// Remembers what is about to be said in a room, so that it is not answered when it comes in again.
    pub(crate) async fn say(&self, room: &str, text: &str) {
        match (self.turns.leases(), webhook::echo(room, text)) {
            (Some(leases), Some(echo)) => drop(leases.is_first(&echoed(echo), webhook::ECHO_FOR).await),
            (Some(_), None) => {}
            (None, _) => self.echoes.borrow_mut().say(self.began.elapsed(), room, text),
        }
    }

    /// A name for an answer, never twice in one life of plimsoll.
    fn next_id(&self) -> String {
        self.answers.set(self.answers.get() + 1);
        format!("chatcmpl-{:x}{:08x}", self.born, self.answers.get())
    }
}

fn seen(pool: &str, id: &str) -> String {
    format!("seen:{pool}:{id}")
}

fn echoed(echo: u64) -> String {
    format!("echo:{echo:016x}")
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

/// What two turns cost together, as far as the agent counts.
fn both(one: Option<crate::agent::Usage>, other: Option<crate::agent::Usage>) -> Option<crate::agent::Usage> {
    let (Some(one), Some(other)) = (one, other) else { return one.or(other) };
    Some(crate::agent::Usage {
        prompt_tokens: one.prompt_tokens.saturating_add(other.prompt_tokens),
        completion_tokens: one.completion_tokens.saturating_add(other.completion_tokens),
    })
}

/// Closes a session of one request alone, however that ends.
struct Closing(Option<(Rc<Turns>, Arc<str>, Arc<str>)>);

impl Drop for Closing {
    fn drop(&mut self) {
        if let Some((turns, pool, key)) = self.0.take() {
            tokio::task::spawn_local(async move { turns.close(Some(pool), key).await });
        }
    }
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
