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

fn ask(mut stream: impl Read + Write, method: &str, target: &str, host: &str) -> io::Result<(u16, String)> {
    let length = if method == "POST" { "content-length: 0\r\n" } else { "" };
    let head = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{length}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let broken = || io::Error::new(io::ErrorKind::UnexpectedEof, "the answer broke off");
    let end = all.windows(4).position(|part| part == b"\r\n\r\n").ok_or_else(broken)?;
    let head = String::from_utf8_lossy(&all[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(broken)?;
    let mut body = all[end + 4..].to_vec();
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    if header("transfer-encoding:") == Some("chunked") {
        body = dechunk(&body).ok_or_else(broken)?;
    } else if let Some(length) = header("content-length:").and_then(|length| length.parse::<usize>().ok())
        && body.len() < length
    {
        return Err(broken());
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
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
