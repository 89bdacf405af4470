//! The small server: questions as an enum, answers from a closure, over the control socket and the gateway's port.
//!
//! Who may ask is decided by the [`Door`]. The socket is for the same user and root alone, and takes commands. The port
//! takes questions only, from whoever names this machine as its host (a web page that had a name point here does not)
//! and, where the address is reached from outside, has the token.

mod door;
mod handing;
mod patient;
mod question;
pub(crate) mod reply;

pub use door::Door;
pub use question::{Command, Question};
pub use reply::{Answer, Kind, Reply, Stream};

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::api::{self, Api};
use crate::chat::Problem;
use crate::limits::open_files;
use crate::serve::is_ours;
use door::Listening;
use handing::Handing;
use patient::Patient;
use question::Miss;
pub(crate) use reply::Words;

/// What knows the answers.
pub(crate) type Answerer = Box<dyn Fn(Question, Reply) + Send>;

/// Connections at the control socket,
const CONNECTIONS: usize = 128;

/// and at a port at most, and half of the files that may be open: each may be a stream that is open for hours, and sessions
/// need files too.
const MOST_CONNECTIONS: usize = 16_384;

/// A question's line and headers, bytes.
const HEAD_BYTES: usize = 16 << 10;

/// Between two heads of a connection, and for the end of one.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// Serves a door until everything is `leaving`; what was asked before is answered to the end.
pub(crate) async fn serve(door: Door, answerer: Answerer, api: Rc<Api>, leaving: watch::Receiver<bool>) {
    let answerer = Rc::new(answerer);
    let Ok(listening) = door.listening() else { return };
    let door = Rc::new(door);
    let crowd = Rc::new(());
    let mut over = leaving.clone();
    loop {
        let accept = async {
            match &listening {
                Listening::Socket(listener) => listener.accept().await.map(|(stream, _)| {
                    if door.admits(&stream) {
                        spawn(stream, &door, &answerer, &api, &crowd, &leaving);
                    }
                }),
                Listening::Port(listener) => listener.accept().await.map(|(stream, _)| {
                    let _ = stream.set_nodelay(true);
                    spawn(stream, &door, &answerer, &api, &crowd, &leaving);
                }),
            }
        };
        let accepted = tokio::select! {
            accepted = accept => accepted,
            _ = over.wait_for(|&is_leaving| is_leaving) => return,
        };
        if accepted.is_err_and(|error| is_ours(&error)) {
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Serves one connection, unless there are too many.
fn spawn<S>(
    stream: S,
    door: &Rc<Door>,
    answerer: &Rc<Answerer>,
    api: &Rc<Api>,
    crowd: &Rc<()>,
    leaving: &watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let most = if door.is_socket() { CONNECTIONS } else { (open_files() / 2).clamp(CONNECTIONS, MOST_CONNECTIONS) };
    if Rc::strong_count(crowd) > most {
        return;
    }
    let (door, answerer, crowd, mut leaving) = (door.clone(), answerer.clone(), crowd.clone(), leaving.clone());
    let api = api.clone();
    tokio::task::spawn_local(async move {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME).max_header_size(HEAD_BYTES);
        let mut stream = Patient::new(stream);
        let is_full = stream.is_full();
        loop {
            let handing = Rc::new(Handing::default());
            let service = service_fn(|request: Request<Incoming>| {
                let (door, answerer, api) = (door.clone(), answerer.clone(), api.clone());
                let handing = handing::stays(&request).then(|| handing.clone());
                // On the heap as long as it runs: a connection keeps the room of its service's future for its whole life.
                Box::pin(async move {
                    let response = answer(&door, &answerer, &api, request).await;
                    Ok::<_, Infallible>(match &handing {
                        Some(handing) => handing::put(handing, response),
                        None => response,
                    })
                })
            });
            let mut connection = builder.serve_connection(TokioIo::new(stream), service);
            let mut is_leaving = false;
            let telling = loop {
                let handed = poll_fn(|context| match Pin::new(&mut connection).poll(context) {
                    Poll::Ready(_) => Poll::Ready(None),
                    Poll::Pending if is_full.get() => Poll::Pending,
                    Poll::Pending => handing.take().map_or(Poll::Pending, |telling| Poll::Ready(Some(telling))),
                });
                tokio::select! {
                    handed = handed => break handed,
                    _ = leaving.wait_for(|&is_leaving| is_leaving), if !is_leaving => is_leaving = true,
                }
                Pin::new(&mut connection).graceful_shutdown();
            };
            let Some(telling) = telling else { break };
            let parts = connection.into_parts();
            stream = parts.io.into_inner();
            stream.read_first(&parts.read_buf);
            if handing::tell(&mut stream, telling).await.is_err() || is_leaving {
                break;
            }
        }
        drop(crowd);
    });
}

async fn answer(door: &Door, answerer: &Answerer, api: &Rc<Api>, request: Request<Incoming>) -> Response<Words> {
    let known = match door.check(request.uri(), request.headers()) {
        Ok(known) => known,
        Err(why) if request.uri().path().starts_with("/v1/") && why.status() == StatusCode::UNAUTHORIZED => {
            return api::refused(&Problem::unauthorized(&why.to_string()));
        }
        Err(why) => return refuse(why.status(), &why.to_string(), None),
    };
    let request = match api.answer(door, known, request).await {
        Ok(response) => return response,
        Err(request) => *request,
    };
    let question = match question::parse(request.method(), request.uri().path(), request.uri().query()) {
        Ok(question) => question,
        Err(Miss::NotFound) => return refuse(StatusCode::NOT_FOUND, "there is nothing here", None),
        Err(Miss::Method(allow)) => return refuse(StatusCode::METHOD_NOT_ALLOWED, "not with this method", Some(allow)),
        Err(Miss::Bad(why)) => return refuse(StatusCode::BAD_REQUEST, why, None),
    };
    if question.is_for_the_owner() && !door.is_socket() {
        return refuse(StatusCode::FORBIDDEN, "this is answered on the control socket alone", None);
    }
    let (reply, coming) = Reply::new();
    answerer(question, reply);
    match coming.await {
        Ok(response) => response.map(Words::Sent),
        Err(_) => refuse(StatusCode::SERVICE_UNAVAILABLE, "nobody answers: plimsoll is stopping", None),
    }
}

fn refuse(status: StatusCode, words: &str, allow: Option<&'static str>) -> Response<Words> {
    let answer = Answer { status: status.as_u16(), ..Answer::text(format!("{words}\n")) };
    let mut response = reply::response(answer).map(Words::Sent);
    if let Some(allow) = allow {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    }
    response
}
