//! The thread that speaks HTTP, and how the supervisor talks with it: never waiting, never losing a word.
//!
//! Addresses are bound on the caller's thread, so that a port that is taken is told at once and by name. Routes lie in
//! a tray, one a service, where a newer one replaces an older one that was not picked up yet: each is the whole truth,
//! so the tray has a bound and is never full. What the caller waits for ([`Told`]) comes through the closure that it
//! gave, on this thread; it should hand it on and return.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::api::Api;
use crate::balancer::{Backend, Balancer, Phase};
use crate::control::{self, Answerer, Door, Question, Reply};
use crate::counters::{Counters, Tally};
use crate::desk::{Plea, Verdict};
use crate::limits::Limits;
use crate::serve;
use crate::serving::{Counts, Plead, Turns};

/// What a caller waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A draining replica has `left` requests outstanding: 0, or its patience is over.
    Drained {
        /// Its service.
        service: Arc<str>,
        /// Which start of it.
        instance: u64,
        /// Requests that it still has.
        left: u32,
    },
    /// A port is closed, and `left` requests were cut off.
    Closed {
        /// Its service.
        service: Arc<str>,
        /// Requests that had not ended.
        left: u64,
    },
}

/// Why a port or socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The address is not to be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// An address that others than this machine reach, without a token.
    #[error("{0} can be reached from outside this machine: that needs a token")]
    NeedsToken(SocketAddr),
    /// The thread could not be started.
    #[error("cannot start the thread that speaks HTTP: {0}")]
    Thread(io::Error),
}

/// Answers that have begun may take so long to be heard, when everything stops.
const LAST_WORDS: Duration = Duration::from_secs(1);

pub(crate) type Hear = Rc<dyn Fn(Told)>;

/// What the thread is to do.
enum Order {
    Open(Arc<str>, std::net::TcpListener, Limits, Arc<Counters>, watch::Receiver<Phase>),
    Drain(Arc<str>, u64, Duration),
    Close(Arc<str>, watch::Sender<Phase>, Duration),
    Serve(Door, Answerer),
    Stop(Duration),
}

#[derive(Default)]
struct Tray {
    /// Few, and each for something that the caller did before: a file's services bound their number.
    orders: Vec<Order>,
    /// Each for something that the supervisor's core decided.
    verdicts: Vec<Verdict>,
    routes: BTreeMap<Arc<str>, Vec<Backend>>,
}

struct Shared {
    tray: Mutex<Tray>,
    bell: Notify,
}

impl Shared {
    fn put(&self, change: impl FnOnce(&mut Tray)) {
        change(&mut self.tray.lock().unwrap_or_else(PoisonError::into_inner));
        self.bell.notify_one();
    }
}

/// A service's port, as the caller's side knows it.
struct Port {
    address: SocketAddr,
    counters: Arc<Counters>,
    phase: watch::Sender<Phase>,
}

/// The room's thread. Dropped without [`Self::stop`] it cuts everything off.
pub struct Gateway {
    shared: Arc<Shared>,
    ports: BTreeMap<Arc<str>, Port>,
    /// What services' former ports have counted, and still count while they drain.
    former: BTreeMap<Arc<str>, (Tally, Vec<Arc<Counters>>)>,
    /// Verdicts lie in the tray that the thread was not woken for.
    is_untold: AtomicBool,
    served: Arc<Counts>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Gateway {
    /// Starts the thread. It inherits the caller's mask of signals: block those that a file descriptor of the
    /// supervisor's takes before.
    ///
    /// `plead` takes what sessions and turns have to tell, without waiting, and answers whether it could: what it could not
    /// take it is told again. `wake` is called once for all pleas of a moment, after the last of them: to wake another
    /// thread costs more than all else that a plea does.
    ///
    /// # Errors
    /// When no thread or no event queue is to be had.
    pub fn start(
        hear: impl Fn(Told) + Send + 'static,
        plead: impl Fn(Plea) -> bool + Send + 'static,
        wake: impl Fn() + Send + 'static,
    ) -> Result<Self, GatewayError> {
        let shared = Arc::new(Shared { tray: Mutex::default(), bell: Notify::new() });
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let inside = shared.clone();
        let served = Arc::new(Counts::default());
        let counts = served.clone();
        let thread = std::thread::Builder::new()
            .name("plimsoll-http".into())
            // Everything of a connection lies on the heap; what is left are parsers with small arrays.
            .stack_size(512 << 10)
            .spawn(move || {
                let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
                match runtime {
                    Ok(runtime) => {
                        let _ = ready.send(Ok(()));
                        runtime.block_on(async {
                            let plead = together(plead, wake);
                            run(inside, Rc::new(hear), plead, counts).await;
                        });
                        runtime.shutdown_background();
                    }
                    Err(error) => {
                        let _ = ready.send(Err(error));
                    }
                }
            })
            .map_err(GatewayError::Thread)?;
        is_ready.recv().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map_err(GatewayError::Thread)?;
        Ok(Self {
            shared,
            ports: BTreeMap::new(),
            former: BTreeMap::new(),
            is_untold: AtomicBool::new(false),
            served,
            thread: Some(thread),
        })
    }

    /// Opens a service's port; requests are answered once a route is given. An address with port 0 gets a free one. The
    /// address that it has now. A port that the service had before is closed without grace.
    ///
    /// # Errors
    /// When the address is taken, or not this machine's.
    pub fn open(&mut self, service: &str, address: SocketAddr, limits: Limits) -> Result<SocketAddr, GatewayError> {
        let listen = |source: io::Error| GatewayError::Listen { address: address.to_string(), source };
        let listener = bind(address).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        self.close(service, Duration::ZERO);
        let service: Arc<str> = service.into();
        let counters = Arc::new(Counters::default());
        let (phase, see) = watch::channel(Phase::Open);
        let order = Order::Open(service.clone(), listener, limits, counters.clone(), see);
        self.shared.put(|tray| tray.orders.push(order));
        self.ports.insert(service, Port { address, counters, phase });
        Ok(address)
    }

    /// The replicas behind a service's port from now on: the whole list. For a service without a port, nothing.
    pub fn route(&self, service: &str, backends: Vec<Backend>) {
        if let Some((service, _)) = self.ports.get_key_value(service) {
            self.shared.put(|tray| {
                tray.routes.insert(service.clone(), backends);
            });
        }
    }

    /// Gives a replica no new request; [`Told::Drained`] follows, when none is outstanding or `patience` is over. It
    /// should be in no later route.
    pub fn drain(&self, service: &str, instance: u64, patience: Duration) {
        self.shared.put(|tray| {
            // A route that was not picked up yet must not bring it back.
            if let Some(backends) = tray.routes.get_mut(service) {
                backends.retain(|backend| backend.instance != instance);
            }
            tray.orders.push(Order::Drain(service.into(), instance, patience));
        });
    }

    /// Closes a service's port: no new connection, requests that have begun go on for `grace`. [`Told::Closed`] follows.
    pub fn close(&mut self, service: &str, grace: Duration) {
        if let Some((service, port)) = self.ports.remove_entry(service) {
            let (sum, counting) = self.former.entry(service.clone()).or_default();
            // Whoever alone holds one reads what it will always be.
            counting.retain(|counters| {
                let counts = Arc::strong_count(counters) > 1;
                if !counts {
                    *sum += counters.tally();
                }
                counts
            });
            counting.push(port.counters.clone());
            self.shared.put(|tray| {
                tray.routes.remove(&service);
                tray.orders.push(Order::Close(service, port.phase, grace));
            });
        }
    }

    /// Where a service's port is, and what it has counted.
    #[must_use]
    pub fn port(&self, service: &str) -> Option<(SocketAddr, Arc<Counters>)> {
        self.ports.get(service).map(|port| (port.address, port.counters.clone()))
    }

    /// What each service's ports have counted, the former ones among them: what only grows never begins anew.
    #[must_use]
    pub fn tallies(&self) -> BTreeMap<Arc<str>, Tally> {
        let mut all: BTreeMap<Arc<str>, Tally> = BTreeMap::new();
        for (service, (sum, counting)) in &self.former {
            let tally = all.entry(service.clone()).or_default();
            *tally += *sum;
            counting.iter().for_each(|counters| *tally += counters.tally());
        }
        for (service, port) in &self.ports {
            *all.entry(service.clone()).or_default() += port.counters.tally();
        }
        all
    }

    /// Says something about pools, sessions and turns. Words are heard in their order, once [`Self::wake`] is called.
    pub fn tell(&self, verdict: Verdict) {
        self.shared.tray.lock().unwrap_or_else(PoisonError::into_inner).verdicts.push(verdict);
        self.is_untold.store(true, Ordering::Relaxed);
    }

    /// Wakes the thread for what it was told, if it was told something.
    pub fn wake(&self) {
        if self.is_untold.swap(false, Ordering::Relaxed) {
            self.shared.bell.notify_one();
        }
    }

    /// What turns have come to.
    #[must_use]
    pub fn served(&self) -> &Counts {
        &self.served
    }

    /// Serves questions at a [`Door`]: the control socket or the gateway's port. `answer` is called on this room's
    /// thread and must not wait; it may hand the [`Reply`] to whoever knows.
    pub fn serve(&self, door: Door, answer: impl Fn(Question, Reply) + Send + 'static) {
        self.shared.put(|tray| tray.orders.push(Order::Serve(door, Box::new(answer))));
    }

    /// Closes everything, services' ports with `grace` for what has begun, and waits until that is done.
    pub fn stop(mut self, grace: Duration) {
        let services: Vec<Arc<str>> = self.ports.keys().cloned().collect();
        for service in services {
            self.close(&service, grace);
        }
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        if let Some(thread) = self.thread.take() {
            self.shared.put(|tray| tray.orders.push(Order::Stop(grace)));
            let _ = thread.join();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

/// A listening socket, closed on exec, whose queue takes a burst.
pub(crate) fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 4096)?;
    Ok(socket.into())
}

/// Pleads, and wakes whoever is to hear it when everybody else who can run has run: what they plead meanwhile is heard with it.
fn together(plead: impl Fn(Plea) -> bool + 'static, wake: impl Fn() + 'static) -> Plead {
    let has_more = Rc::new(Notify::new());
    let waits = has_more.clone();
    tokio::task::spawn_local(async move {
        loop {
            waits.notified().await;
            wake();
        }
    });
    Box::new(move |plea| {
        let sent = plead(plea);
        has_more.notify_one();
        sent
    })
}

/// The thread's loop.
async fn run(shared: Arc<Shared>, hear: Hear, plead: Plead, counts: Arc<Counts>) {
    let api = Api::new(Turns::new(plead, counts));
    let mut balancers: BTreeMap<Arc<str>, Rc<Balancer>> = BTreeMap::new();
    let mut closing = tokio::task::JoinSet::new();
    let (leave, leaving) = watch::channel(false);
    loop {
        shared.bell.notified().await;
        let Tray { orders, verdicts, routes } =
            std::mem::take(&mut *shared.tray.lock().unwrap_or_else(PoisonError::into_inner));
        verdicts.into_iter().for_each(|verdict| api.hear(verdict));
        for order in orders {
            match order {
                Order::Open(service, listener, limits, counters, phase) => {
                    // It is in non-blocking mode and bound: what could fail is a file for the event queue.
                    let Ok(listener) = TcpListener::from_std(listener) else { continue };
                    let balancer = Balancer::new(service.clone(), Rc::new(limits), counters, phase, hear.clone());
                    balancers.insert(service, balancer.clone());
                    tokio::task::spawn_local(serve::accept(listener, balancer));
                }
                Order::Drain(service, instance, patience) => match balancers.get(&service) {
                    Some(balancer) => balancer.drain(instance, patience),
                    None => hear(Told::Drained { service, instance, left: 0 }),
                },
                Order::Close(service, phase, grace) => {
                    let Some(balancer) = balancers.remove(&service) else {
                        hear(Told::Closed { service, left: 0 });
                        continue;
                    };
                    let hear = hear.clone();
                    closing.spawn_local(async move {
                        let _ = phase.send(Phase::Draining);
                        balancer.wake();
                        let left = serve::emptied(&balancer.counters, Instant::now() + grace).await;
                        let _ = phase.send(Phase::Cut);
                        balancer.route(&[]);
                        hear(Told::Closed { service, left });
                    });
                }
                Order::Serve(door, answerer) => {
                    tokio::task::spawn_local(control::serve(door, answerer, api.clone(), leaving.clone()));
                }
                Order::Stop(grace) => {
                    let all = async { while closing.join_next().await.is_some() {} };
                    // The ports have their own deadline, which is this one; a moment more lets them tell.
                    let _ = tokio::time::timeout(grace + Duration::from_secs(1), all).await;
                    // Whoever was answered hears it: the last answer is often that of `down`.
                    drop(leaving);
                    let _ = leave.send(true);
                    let _ = tokio::time::timeout(LAST_WORDS, leave.closed()).await;
                    return;
                }
            }
        }
        for (service, backends) in routes {
            if let Some(balancer) = balancers.get(&service) {
                balancer.route(&backends);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn what_a_service_has_counted_outlives_its_ports() {
        let mut gateway = Gateway::start(|_| {}, |_| true, || {}).unwrap();
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        for round in 1..=5u64 {
            gateway.open("api", any, Limits::default()).unwrap();
            let (_, counters) = gateway.port("api").unwrap();
            counters.retries.fetch_add(1, Relaxed);
            assert_eq!(gateway.tallies()["api"].retries, round);
        }
        gateway.close("api", Duration::ZERO);
        assert_eq!(gateway.tallies()["api"].retries, 5);
        gateway.stop(Duration::ZERO);
    }
}
