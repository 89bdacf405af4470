//! Where one may ask, and who.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::header::{self, HeaderMap};
use hyper::{StatusCode, Uri};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::gateway::{GatewayError, bind};
use crate::tokens::{Buckets, Known, Tokens, bearer};

/// A bound address with its rules.
#[derive(Debug)]
pub struct Door {
    bound: Bound,
    /// Names under which this machine is known, beside the loopback's.
    hosts: Vec<String>,
    /// What a stranger has to show; on the loopback nobody is one, and a token that is shown counts for its pools and rate.
    tokens: Option<Tokens>,
    needs_token: bool,
    buckets: RefCell<Buckets>,
}

#[derive(Debug)]
enum Bound {
    Socket(std::os::unix::net::UnixListener, PathBuf),
    Port(std::net::TcpListener, SocketAddr),
}

/// A door in the runtime's hands.
pub(super) enum Listening {
    Socket(UnixListener),
    Port(TcpListener),
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Turned {
    #[error("this name is not known here: gateway.hosts adds names")]
    Host,
    #[error("a page of another origin may not ask here: gateway.hosts adds names")]
    Origin,
    #[error("the token is missing or another one")]
    Token,
}

impl Turned {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Host | Self::Origin => StatusCode::FORBIDDEN,
            Self::Token => StatusCode::UNAUTHORIZED,
        }
    }
}

impl Door {
    /// The control socket at `path`, mode 0600. What a plimsoll that is gone left there is replaced.
    ///
    /// # Errors
    /// When somebody answers there, or the path is no place for a socket (or longer than the 107 bytes of one).
    pub fn socket(path: &Path) -> Result<Self, GatewayError> {
        let failed = |source: io::Error| GatewayError::Listen { address: path.display().to_string(), source };
        if BlockingStream::connect(path).is_ok() {
            return Err(failed(io::ErrorKind::AddrInUse.into()));
        }
        // It gets its name only with its mode: nobody can come in between.
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let _ = std::fs::remove_file(&new);
        let listener = std::os::unix::net::UnixListener::bind(&new).map_err(failed)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        std::fs::rename(&new, path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self {
            bound: Bound::Socket(listener, path.to_owned()),
            hosts: Vec::new(),
            tokens: None,
            needs_token: false,
            buckets: RefCell::default(),
        })
    }

    /// A TCP port. `hosts` are names (without a port) under which it may be asked beside the loopback's. An address that
    /// others than this machine reach needs `tokens`; on the loopback none has to be shown.
    ///
    /// # Errors
    /// When the address is taken or not this machine's, or a token is missing.
    pub fn port(address: SocketAddr, hosts: Vec<String>, tokens: Option<Tokens>) -> Result<Self, GatewayError> {
        let is_local = address.ip().to_canonical().is_loopback();
        if !is_local && tokens.is_none() {
            return Err(GatewayError::NeedsToken(address));
        }
        let failed = |source: io::Error| GatewayError::Listen { address: address.to_string(), source };
        let listener = bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mut hosts = hosts;
        if !is_local && !address.ip().is_unspecified() {
            hosts.push(address.ip().to_string());
        }
        let buckets = RefCell::new(tokens.as_ref().map(Tokens::buckets).unwrap_or_default());
        Ok(Self { bound: Bound::Port(listener, address), hosts, tokens, needs_token: !is_local, buckets })
    }

    /// Where a port listens; `None` of a socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.bound {
            Bound::Socket(..) => None,
            Bound::Port(_, address) => Some(*address),
        }
    }

    pub(super) fn is_socket(&self) -> bool {
        matches!(self.bound, Bound::Socket(..))
    }

    pub(super) fn listening(&self) -> io::Result<Listening> {
        match &self.bound {
            Bound::Socket(listener, _) => Ok(Listening::Socket(UnixListener::from_std(listener.try_clone()?)?)),
            Bound::Port(listener, _) => Ok(Listening::Port(TcpListener::from_std(listener.try_clone()?)?)),
        }
    }

    /// Is whoever connected to the socket the same user, or root? The mode says so too, but a mode can be changed.
    pub(super) fn admits(&self, stream: &UnixStream) -> bool {
        let ours = rustix::process::geteuid().as_raw();
        stream.peer_cred().is_ok_and(|peer| peer.uid() == ours || peer.uid() == 0)
    }

    /// May this question be asked here? With which token, where one is asked for.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<Known>, Turned> {
        if self.is_socket() {
            return Ok(None); // no page of a browser reaches it
        }
        let mut names = headers.get_all(header::HOST).into_iter();
        let named = match (uri.authority(), names.next(), names.next()) {
            (Some(authority), ..) => Some(authority.as_str()),
            (None, Some(host), None) => host.to_str().ok(),
            _ => None,
        };
        if !named.is_some_and(|host| is_known(host, &self.hosts)) {
            return Err(Turned::Host);
        }
        for origin in headers.get_all(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            if !host.is_some_and(|host| is_known(host, &self.hosts)) {
                return Err(Turned::Origin);
            }
        }
        let Some(tokens) = &self.tokens else { return Ok(None) };
        let in_header = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        // Whoever cannot set a header has it in the path: `/webhook/POOL/TOKEN`.
        let in_path = uri.path().strip_prefix("/webhook/").and_then(|rest| rest.split_once('/'));
        let shown = in_header.or(in_path.map(|(_, token)| token.as_bytes()));
        let known = shown.and_then(|shown| tokens.find(shown));
        if known.is_none() && self.needs_token { Err(Turned::Token) } else { Ok(known) }
    }

    /// Whether a token is for this pool.
    pub(crate) fn is_for(&self, known: Option<Known>, pool: &str) -> bool {
        match (&self.tokens, known) {
            (Some(tokens), Some(known)) => tokens.is_for(known, pool),
            _ => true,
        }
    }

    /// Takes one request of a token's rate.
    ///
    /// # Errors
    /// How long until there is one again.
    pub(crate) fn take(&self, known: Option<Known>, now: Duration) -> Result<(), Duration> {
        known.map_or(Ok(()), |known| self.buckets.borrow_mut().take(known, now))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Bound::Socket(_, path) = &self.bound {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Is `host`, with or without a port, this machine's loopback or one of `hosts`?
fn is_known(host: &str, hosts: &[String]) -> bool {
    let name = if let Some(rest) = host.strip_prefix('[') {
        match rest.split_once(']') {
            Some((name, port)) if port.is_empty() || is_port(port) => name,
            _ => return false,
        }
    } else {
        match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            Some(_) => return false,
            None => host,
        }
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        || hosts.iter().any(|known| known.trim_matches(['[', ']']).eq_ignore_ascii_case(name))
}

fn is_port(text: &str) -> bool {
    text.strip_prefix(':').is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        all.iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn tokens(token: &str) -> Option<Tokens> {
        Some(Tokens::parse(token).unwrap())
    }

    #[test]
    fn names_of_this_machine() {
        let hosts = vec!["bot.internal".to_owned()];
        for ours in [
            "localhost",
            "LocalHost:80",
            "localhost.",
            "127.0.0.1:7070",
            "127.8.9.1",
            "[::1]",
            "[::1]:1",
            "BOT.internal:7070",
        ] {
            assert!(is_known(ours, &hosts), "{ours}");
        }
        for not in [
            "",
            "evil.test",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "bot.internal@evil.test",
            "[::1",
            "[::1]x",
            "::1",
            "192.0.2.1",
            "localhost:80:80",
            "localhost:x",
        ] {
            assert!(!is_known(not, &hosts), "{not}");
        }
    }

    #[test]
    fn a_page_of_another_origin_is_turned_away() {
        let door =
            Door::port("127.0.0.1:0".parse().unwrap(), vec!["bot.internal".into()], tokens("unusedunusedunused"))
                .unwrap();
        let check = |all: &[(&'static str, &'static str)]| door.check(&Uri::from_static("/"), &headers(all)).map(drop);
        assert_eq!(check(&[("host", "localhost:7070")]), Ok(()));
        assert_eq!(check(&[("host", "localhost"), ("origin", "http://localhost:3000")]), Ok(()));
        assert_eq!(check(&[("host", "bot.internal"), ("origin", "https://bot.internal")]), Ok(()));
        assert_eq!(check(&[]), Err(Turned::Host));
        assert_eq!(check(&[("host", "rebound.test")]), Err(Turned::Host));
        for origin in
            ["null", "http://evil.test", "file://", "http://localhost.evil.test", "http://localhost@evil.test"]
        {
            assert_eq!(check(&[("host", "localhost"), ("origin", origin)]), Err(Turned::Origin), "{origin}");
        }
    }

    /// There no token is needed, and one that nobody knows is none: SDKs send some key or other.
    #[test]
    fn on_the_loopback_a_token_counts_if_it_is_known() {
        let both = tokens("s3cret-s3cret-s3cret pools=bot rate=1/h\nanother-another-another");
        let door = Door::port("127.0.0.1:0".parse().unwrap(), vec![], both).unwrap();
        let shown = |value: Option<&'static str>| {
            let mut all = headers(&[("host", "localhost")]);
            all.extend(value.map(|value| (header::AUTHORIZATION, HeaderValue::from_static(value))));
            door.check(&Uri::from_static("/"), &all).unwrap()
        };
        assert_eq!((shown(None), shown(Some("Bearer unused"))), (None, None));
        let known = shown(Some("Bearer s3cret-s3cret-s3cret"));
        assert!(door.is_for(known, "bot") && !door.is_for(known, "other") && door.is_for(None, "other"));
        assert!(door.take(known, Duration::ZERO).is_ok() && door.take(known, Duration::ZERO).is_err());
        assert!(door.take(None, Duration::ZERO).is_ok());
    }

    #[test]
    fn from_outside_only_with_the_token() {
        let outside = "0.0.0.0:0".parse().unwrap();
        assert!(matches!(Door::port(outside, vec![], None), Err(GatewayError::NeedsToken(_))));
        let door = Door::port(outside, vec!["bot.internal".into()], tokens("s3cret-s3cret-s3cret")).unwrap();
        let check = |value| {
            let mut all = headers(&[("host", "bot.internal")]);
            all.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            door.check(&Uri::from_static("/"), &all).map(drop)
        };
        assert_eq!(check("Bearer s3cret-s3cret-s3cret"), Ok(()));
        let in_path = Uri::from_static("/webhook/bot/s3cret-s3cret-s3cret");
        assert_eq!(door.check(&in_path, &headers(&[("host", "bot.internal")])).map(drop), Ok(()));
        for wrong in
            ["", "Bearer ", "Bearer s3cret-s3cret-s3cre", "Bearer s3cret-s3cret-s3cret2", "s3cret-s3cret-s3cret"]
        {
            assert_eq!(check(wrong), Err(Turned::Token), "{wrong:?}");
        }
    }
}
