//! As much HTTP as the tests speak: one request a connection, over TCP or a Unix socket. Written here and not taken from
//! plimsoll, for what is tested is not asked how it is tested.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::harness::DEADLINE;

/// Gets `http://HOST:PORT/PATH`: status and body.
pub(crate) fn get(url: &str) -> io::Result<(u16, String)> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    ask(stream, "GET", &format!("/{path}"), host)
}

/// Asks a control socket.
pub(crate) fn ask_socket(socket: &Path, method: &str, target: &str) -> io::Result<(u16, String)> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    ask(stream, method, target, "localhost")
}

fn ask(stream: impl Read + Write, method: &str, target: &str, host: &str) -> io::Result<(u16, String)> {
    let length = if method == "POST" { "content-length: 0\r\n" } else { "" };
    let head = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{length}connection: close\r\n\r\n");
    let reply = exchange(stream, head.as_bytes())?;
    Ok((reply.status, reply.text()))
}

/// What a server answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// In lower case.
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// A header's value, in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Posts a body to a port of this machine.
pub(crate) fn post(port: u16, target: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
    let stream = dial(port)?;
    exchange(stream, &request(port, "POST", target, headers, body))
}

/// A connection to a port of this machine.
pub(crate) fn dial(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    Ok(stream)
}

/// A request in full. A `host` or `content-length` among the headers stands for ours.
pub(crate) fn request(port: u16, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let has = |name: &str| headers.iter().any(|(header, _)| *header == name);
    let mut head = format!("{method} {target} HTTP/1.1\r\nconnection: close\r\n");
    if !has("host") {
        head += &format!("host: 127.0.0.1:{port}\r\n");
    }
    if !has("content-length") {
        head += &format!("content-length: {}\r\n", body.len());
    }
    headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
    [head.as_bytes(), b"\r\n", body].concat()
}

/// Says something and hears the answer to its end. A server that refuses need not have taken all of it.
pub(crate) fn exchange(mut stream: impl Read + Write, request: &[u8]) -> io::Result<Reply> {
    let said = stream.write_all(request);
    let mut all = Vec::new();
    let heard = stream.read_to_end(&mut all);
    let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "the answer broke off");
    let Some(end) = all.windows(4).position(|part| part == b"\r\n\r\n") else {
        return said.and(heard).and(Err(broken()));
    };
    let head = String::from_utf8_lossy(&all[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(broken)?;
    let mut reply = Reply { status, head, body: all[end + 4..].to_vec() };
    if reply.header("transfer-encoding") == Some("chunked") {
        reply.body = dechunk(&reply.body).ok_or_else(broken)?;
    } else if let Some(length) = reply.header("content-length").and_then(|length| length.parse::<usize>().ok())
        && reply.body.len() < length
    {
        return Err(broken());
    }
    Ok(reply)
}

fn dechunk(mut body: &[u8]) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let end = body.windows(2).position(|part| part == b"\r\n")?;
        let length = usize::from_str_radix(std::str::from_utf8(&body[..end]).ok()?.trim(), 16).ok()?;
        if length == 0 {
            return Some(all);
        }
        all.extend_from_slice(body.get(end + 2..end + 2 + length)?);
        body = body.get(end + 2 + length + 2..)?;
    }
}
