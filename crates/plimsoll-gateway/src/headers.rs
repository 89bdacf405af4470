//! What of a message is for the next hop only, and what a replica must know about the client: pure edits of headers.

use std::net::IpAddr;

use hyper::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Uri, Version};

/// Headers that end at the next hop, whatever `Connection` says (RFC 9110 §7.6.1 and two that it forgot).
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers without which a message means something else: no `Connection` header may take them away.
const KEPT: [HeaderName; 3] = [header::HOST, header::CONTENT_LENGTH, header::TRAILER];

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const HTTP: HeaderValue = HeaderValue::from_static("http");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Why a request cannot be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// HTTP/1.1 demands a host, and more than one is a trick.
    #[error("the request must name one host")]
    Host,
    /// An address that is none.
    #[error("the request's address is not understood")]
    Address,
}

/// Removes every hop-by-hop header, and every one that `Connection` names.
pub fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        // Nearly always it is `keep-alive` or `close`, and nothing is left to do.
        let named: Vec<HeaderName> = tokens(headers, header::CONNECTION)
            .filter(|token| !token.eq_ignore_ascii_case("keep-alive") && !token.eq_ignore_ascii_case("close"))
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            .collect();
        for name in named.iter().filter(|name| !KEPT.contains(name)) {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// The words of a header that is a list.
fn tokens(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

fn has_token(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

/// What the connection becomes if both sides agree, such as `websocket`. Another HTTP is none of it: an upgrade to
/// h2c would hide all further requests from us.
#[must_use]
pub fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    if !has_token(headers, header::CONNECTION, "upgrade") || has_token(headers, header::UPGRADE, "h2c") {
        return None;
    }
    headers.get(header::UPGRADE).cloned()
}

/// Makes a client's request one of ours to a replica: HTTP/1.1, the path alone as its address, the host as the client
/// said it, nothing hop-by-hop but a wanted upgrade, and who asked.
///
/// A peer on this machine is believed what it says about whom it forwards for (it may be the proxy that holds the
/// certificate); what anybody else says about that is replaced.
///
/// # Errors
/// When the request names no host, several, or no address.
pub fn to_replica(parts: &mut Parts, peer: IpAddr, upgrade: Option<&HeaderValue>) -> Result<(), Unfit> {
    let wants_trailers = has_token(&parts.headers, header::TE, "trailers");
    strip(&mut parts.headers);
    // The server's side has answered it already.
    parts.headers.remove(header::EXPECT);

    // HTTP/2 says the host in the address, and so does HTTP/1.1 to what it takes for a proxy; there it counts more
    // than the header (RFC 9112 §3.2.2).
    if let Some(authority) = parts.uri.authority() {
        let value = HeaderValue::from_str(authority.as_str()).map_err(|_| Unfit::Host)?;
        parts.headers.insert(header::HOST, value);
    }
    let mut hosts = parts.headers.get_all(header::HOST).into_iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.clone(),
        (None, None) if parts.version < Version::HTTP_11 => {
            parts.headers.insert(header::HOST, HeaderValue::from_static("localhost"));
            HeaderValue::from_static("localhost")
        }
        _ => return Err(Unfit::Host),
    };
    if parts.uri.scheme().is_some() || parts.uri.authority().is_some() {
        let path = parts.uri.path_and_query().cloned().ok_or(Unfit::Address)?;
        parts.uri = Uri::from(path);
    }
    parts.version = Version::HTTP_11;

    let headers = &mut parts.headers;
    let trusted = peer.to_canonical().is_loopback();
    let address = text_of(peer)?;
    if !trusted {
        headers.remove(header::FORWARDED);
    }
    match headers.entry(FORWARDED_FOR) {
        Entry::Occupied(mut said) if trusted => {
            let before: Vec<&[u8]> = said.iter().map(HeaderValue::as_bytes).collect();
            let all = [before.join(&b", "[..]), address.as_bytes().to_vec()].join(&b", "[..]);
            said.insert(HeaderValue::from_bytes(&all).map_err(|_| Unfit::Host)?);
        }
        Entry::Occupied(mut said) => {
            said.insert(address);
        }
        Entry::Vacant(none) => {
            none.insert(address);
        }
    }
    for (name, value) in [(FORWARDED_PROTO, HTTP), (FORWARDED_HOST, host)] {
        match headers.entry(name) {
            Entry::Occupied(_) if trusted => {}
            Entry::Occupied(mut said) => {
                said.insert(value);
            }
            Entry::Vacant(none) => {
                none.insert(value);
            }
        }
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade.clone());
    } else if wants_trailers {
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
        headers.insert(header::TE, TRAILERS);
    }
    Ok(())
}

fn text_of(peer: IpAddr) -> Result<HeaderValue, Unfit> {
    if peer == IpAddr::from([127, 0, 0, 1]) {
        return Ok(HeaderValue::from_static("127.0.0.1"));
    }
    HeaderValue::from_str(&peer.to_canonical().to_string()).map_err(|_| Unfit::Host)
}

/// Makes a replica's response one of ours to the client. `switched` when it is the 101 that begins a tunnel, whose
/// `Connection` and `Upgrade` are the client's to see.
pub fn to_client(headers: &mut HeaderMap, switched: bool) {
    let upgrade = if switched { headers.get(header::UPGRADE).cloned() } else { None };
    strip(headers);
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Request;
    use proptest::prelude::*;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const FAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    fn request(uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn text<'a>(parts: &'a Parts, name: &str) -> Vec<&'a str> {
        parts.headers.get_all(name).into_iter().map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn a_request_for_a_replica() {
        let mut parts = request(
            "http://shop.test:8080/a?b=c",
            &[
                ("host", "other.test"),
                ("connection", "keep-alive, X-Secret, Host, content-length"),
                ("x-secret", "1"),
                ("content-length", "0"),
                ("te", "gzip, trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("proxy-authorization", "Basic x"),
                ("expect", "100-continue"),
                ("x-forwarded-for", "198.51.100.1"),
                ("x-forwarded-proto", "https"),
                ("forwarded", "for=198.51.100.1"),
                ("accept", "*/*"),
            ],
        );
        assert_eq!(upgrade(&parts.headers), None);
        let mut far = request("/", &[]);
        far.clone_from(&parts);
        to_replica(&mut parts, LOCAL, None).unwrap();
        assert_eq!(parts.uri, "/a?b=c");
        assert_eq!(text(&parts, "host"), ["shop.test:8080"]);
        assert_eq!(text(&parts, "x-forwarded-for"), ["198.51.100.1, 127.0.0.1"]);
        assert_eq!(text(&parts, "x-forwarded-proto"), ["https"]);
        assert_eq!(text(&parts, "x-forwarded-host"), ["shop.test:8080"]);
        assert_eq!((text(&parts, "connection"), text(&parts, "te")), (vec!["te"], vec!["trailers"]));
        assert_eq!(text(&parts, "content-length"), ["0"]);
        for gone in ["x-secret", "transfer-encoding", "upgrade", "proxy-authorization", "expect"] {
            assert!(!parts.headers.contains_key(gone), "{gone}");
        }
        assert_eq!(text(&parts, "accept"), ["*/*"]);

        // Who is not on this machine may say what it likes.
        to_replica(&mut far, FAR, None).unwrap();
        assert_eq!(text(&far, "x-forwarded-for"), ["192.0.2.7"]);
        assert_eq!(text(&far, "x-forwarded-proto"), ["http"]);
        assert!(!far.headers.contains_key("forwarded"));
    }

    #[test]
    fn a_tunnel_is_asked_for_and_agreed_to() {
        let mut parts = request(
            "/ws",
            &[
                ("host", "a"),
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "websocket"),
                ("sec-websocket-key", "k"),
            ],
        );
        let to = upgrade(&parts.headers);
        assert_eq!(to, Some(HeaderValue::from_static("websocket")));
        to_replica(&mut parts, LOCAL, to.as_ref()).unwrap();
        assert_eq!((text(&parts, "connection"), text(&parts, "upgrade")), (vec!["upgrade"], vec!["websocket"]));
        assert_eq!(text(&parts, "sec-websocket-key"), ["k"]);

        let mut answer = parts.headers.clone();
        to_client(&mut answer, true);
        assert_eq!(answer.get("upgrade").unwrap(), "websocket");
        to_client(&mut answer, false);
        assert!(!answer.contains_key("upgrade") && !answer.contains_key("connection"));
    }

    #[test]
    fn one_host() {
        assert_eq!(to_replica(&mut request("/", &[]), LOCAL, None), Err(Unfit::Host));
        assert_eq!(to_replica(&mut request("/", &[("host", "a"), ("host", "b")]), LOCAL, None), Err(Unfit::Host));
        let mut old = request("/", &[]);
        old.version = Version::HTTP_10;
        assert_eq!(to_replica(&mut old, LOCAL, None), Ok(()));
        let mut star = request("*", &[("host", "a")]);
        assert_eq!(to_replica(&mut star, LOCAL, None), Ok(()));
        assert_eq!(star.uri, "*");
    }

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => "[a-z][a-z0-9-]{0,8}",
            2 => prop::sample::select(HOP_BY_HOP.map(|name| name.as_str().to_owned()).to_vec()),
            1 => prop::sample::select(KEPT.map(|name| name.as_str().to_owned()).to_vec()),
        ]
    }

    proptest! {
        /// Whatever is sent, nothing hop-by-hop and nothing that `Connection` named is left, and all else is as it was
        /// and in its order.
        #[test]
        fn nothing_of_one_hop_is_left(
            sent in prop::collection::vec((name(), "[ -~]{0,12}"), 0..20),
            named in prop::collection::vec(name(), 0..5),
            scattered in any::<bool>(),
        ) {
            let mut headers = HeaderMap::new();
            for (name, value) in &sent {
                headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value.trim()).unwrap());
            }
            headers.remove(header::CONNECTION);
            if scattered {
                for name in &named {
                    headers.append(header::CONNECTION, HeaderValue::from_str(name).unwrap());
                }
            } else {
                headers.insert(header::CONNECTION, HeaderValue::from_str(&named.join(" ,")).unwrap());
            }
            let before = headers.clone();
            strip(&mut headers);
            for (name, _) in &before {
                let goes = HOP_BY_HOP.contains(name)
                    || (named.iter().any(|one| one == name.as_str())
                        && !KEPT.contains(name)
                        && name != "keep-alive"
                        && name != "close");
                let left: Vec<_> = headers.get_all(name).into_iter().collect();
                if goes {
                    prop_assert!(left.is_empty(), "{name} is left");
                } else {
                    prop_assert_eq!(left, before.get_all(name).into_iter().collect::<Vec<_>>());
                }
            }
        }

        #[test]
        fn whoever_asks_the_replica_is_told_the_peer(
            said in prop::collection::vec("[ -~]{0,20}", 0..4), peer in any::<[u8; 4]>(),
        ) {
            let mut parts = request("/", &[("host", "a")]);
            for value in &said {
                parts.headers.append(FORWARDED_FOR, HeaderValue::from_str(value.trim()).unwrap());
            }
            let peer = IpAddr::from(peer);
            to_replica(&mut parts, peer, None).unwrap();
            let told = text(&parts, "x-forwarded-for");
            prop_assert_eq!(told.len(), 1);
            prop_assert_eq!(told[0].rsplit(", ").next().unwrap(), peer.to_string());
        }
    }
}
