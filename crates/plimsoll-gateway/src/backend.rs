//! One replica as a port sees it: what it has to answer, the idle connections to it, and whether it was there lately.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Request;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::balancer::{Backend, State};
use crate::limits::{Limits, READ_BUFFER};

/// What is sent to a replica after the head.
pub(crate) enum ToReplica {
    /// Nothing, or what was kept of it so that it can be sent again.
    Held(Bytes),
    /// What the client sends, as it comes.
    Streamed(Incoming),
}

/// A connection that can take a request.
pub(crate) type Sender = SendRequest<ToReplica>;

/// A replica that is or was behind a port. It outlives its route as long as a request is outstanding.
pub(crate) struct Replica {
    pub(crate) instance: u64,
    port: u16,
    pub(crate) state: Cell<State>,
    /// Its route is gone, or it drains: nothing new, and no connection is kept.
    pub(crate) leaving: Cell<bool>,
    pub(crate) outstanding: Cell<u32>,
    /// Oldest first.
    idle: RefCell<Vec<(Sender, Instant)>>,
    sweeping: Cell<bool>,
    /// Nobody was there: not before this instant again.
    shunned: Cell<Option<Instant>>,
    patience: Cell<Duration>,
}

/// Between two attempts to connect to a replica that was not there: it may have been started a moment ago and listen
/// in the next, so the first is short.
const SHUN: Duration = Duration::from_millis(5);
const SHUN_AT_MOST: Duration = Duration::from_millis(250);

impl Replica {
    pub(crate) fn new(backend: &Backend) -> Rc<Self> {
        Rc::new(Self {
            instance: backend.instance,
            port: backend.port,
            state: Cell::new(backend.state),
            leaving: Cell::new(false),
            outstanding: Cell::new(0),
            idle: RefCell::default(),
            sweeping: Cell::new(false),
            shunned: Cell::new(None),
            patience: Cell::new(SHUN),
        })
    }

    pub(crate) fn is(&self, backend: &Backend) -> bool {
        self.instance == backend.instance && self.port == backend.port
    }

    /// It takes requests now.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state.get(), State::Up | State::Spare) && self.reopens().is_none()
    }

    /// When it may be tried again, if not now.
    pub(crate) fn reopens(&self) -> Option<Instant> {
        let until = self.shunned.get()?;
        if until > Instant::now() {
            return Some(until);
        }
        self.shunned.set(None);
        None
    }

    /// Nobody was there.
    pub(crate) fn shun(&self) {
        let patience = self.patience.get();
        self.shunned.set(Some(Instant::now() + patience));
        self.patience.set((patience * 2).min(SHUN_AT_MOST));
    }

    /// Gives it nothing new.
    pub(crate) fn leave(&self) {
        self.leaving.set(true);
        self.idle.borrow_mut().clear();
    }

    /// An idle connection that is not known to be closed, the one that was used last.
    pub(crate) fn idle(&self, limits: &Limits) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        while let Some((sender, since)) = idle.pop() {
            if sender.is_ready() && since.elapsed() < limits.idle {
                return Some(sender);
            }
        }
        None
    }

    /// A new connection.
    pub(crate) async fn connect(&self, limits: &Limits) -> Result<Sender, NotThere> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let stream = match timeout(limits.connect, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if crate::serve::is_ours(&error) => return Err(NotThere::OurFault),
            Ok(Err(_)) | Err(_) => return Err(NotThere::Replica),
        };
        let _ = stream.set_nodelay(true);
        let mut builder = http1::Builder::new();
        builder.max_buf_size(READ_BUFFER);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(|_| NotThere::Replica)?;
        // How it ends is told to the request that it has; without one it is nobody's concern.
        tokio::task::spawn_local(async move {
            let _ = connection.with_upgrades().await;
        });
        self.patience.set(SHUN);
        Ok(sender)
    }

    /// Keeps a connection whose exchange is over.
    fn keep(self: &Rc<Self>, sender: Sender, limits: &Rc<Limits>) {
        if self.leaving.get() || sender.is_closed() {
            return;
        }
        if !sender.is_ready() {
            // The response is here and the request not yet gone, or its end not yet seen by the connection's own task.
            let (replica, limits) = (self.clone(), limits.clone());
            tokio::task::spawn_local(async move {
                let mut sender = sender;
                if let Ok(Ok(())) = timeout(limits.idle, sender.ready()).await {
                    replica.keep(sender, &limits);
                }
            });
            return;
        }
        let mut idle = self.idle.borrow_mut();
        if idle.len() < limits.idle_connections {
            idle.push((sender, Instant::now()));
        }
        if !self.sweeping.replace(true) {
            let (replica, limits) = (self.clone(), limits.clone());
            tokio::task::spawn_local(async move { replica.sweep(limits.idle).await });
        }
    }

    /// Closes idle connections in time, as long as there are any.
    async fn sweep(&self, after: Duration) {
        loop {
            tokio::time::sleep(after).await;
            let mut idle = self.idle.borrow_mut();
            let old = idle.iter().take_while(|(sender, since)| sender.is_closed() || since.elapsed() >= after).count();
            idle.drain(..old);
            if idle.is_empty() {
                idle.shrink_to_fit();
                self.sweeping.set(false);
                return;
            }
        }
    }
}

/// Why there is no new connection; nothing was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotThere {
    /// It refused, or took too long.
    Replica,
    /// We have no file or port left for it.
    OurFault,
}

/// The connection of one exchange, kept for the next one when the response was read to its end.
pub(crate) struct Lent {
    sender: Option<Sender>,
    replica: Rc<Replica>,
    limits: Rc<Limits>,
}

impl Lent {
    pub(crate) fn new(sender: Sender, replica: &Rc<Replica>, limits: &Rc<Limits>) -> Self {
        Self { sender: Some(sender), replica: replica.clone(), limits: limits.clone() }
    }

    pub(crate) fn send(
        &mut self,
        request: Request<ToReplica>,
    ) -> impl Future<Output = Result<hyper::Response<Incoming>, hyper::client::conn::TrySendError<Request<ToReplica>>>> + use<>
    {
        // It is there until `give_back`.
        let sent = self.sender.as_mut().map(|sender| sender.try_send_request(request));
        async move {
            match sent {
                Some(sent) => sent.await,
                None => std::future::pending().await,
            }
        }
    }

    /// The response was read to its end.
    pub(crate) fn give_back(&mut self) {
        if let Some(sender) = self.sender.take() {
            self.replica.keep(sender, &self.limits);
        }
    }
}

impl Body for ToReplica {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Held(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Held(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Streamed(incoming) => Pin::new(incoming).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Held(bytes) => bytes.is_empty(),
            Self::Streamed(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Held(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Streamed(incoming) => incoming.size_hint(),
        }
    }
}
