//! Posts a text to an `http://` address: a late answer on its way into its room.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use hyper::client::conn::http1;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::secret::Secret;

/// A server has so long for each attempt,
const PATIENCE: Duration = Duration::from_secs(10);

/// which is made again after these pauses: it may be restarting.
const PAUSES: [Duration; 3] = [Duration::from_millis(500), Duration::from_secs(2), Duration::from_secs(8)];

/// Posts; whether it was taken. What went wrong for good is given up, for nobody can be told.
pub(crate) async fn post(address: &Secret, text: &str) -> bool {
    for pause in PAUSES.iter().map(Some).chain([None]) {
        match timeout(PATIENCE, once(address, text)).await {
            Ok(Some(status)) if status < 500 => return status < 300,
            _ => {}
        }
        match pause {
            Some(pause) => sleep(*pause).await,
            None => return false,
        }
    }
    false
}

async fn once(address: &Secret, text: &str) -> Option<u16> {
    let uri: Uri = address.expose().parse().ok()?;
    let authority = uri.authority()?.clone();
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::task::spawn_local(connection);
    let mut request = Request::new(Whole(Bytes::copy_from_slice(text.as_bytes())));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.path_and_query()?.as_str().parse().ok()?;
    request.headers_mut().insert(header::HOST, HeaderValue::from_str(authority.as_str()).ok()?);
    request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    let answered = sender.send_request(request).await.ok().map(|response| response.status().as_u16());
    connection.abort();
    answered
}

/// A body of one piece.
struct Whole(Bytes);

impl Body for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = std::mem::take(&mut self.0);
        Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))))
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.0.len() as u64)
    }
}
