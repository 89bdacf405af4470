//! Where pools are asked.

use std::net::{Ipv4Addr, SocketAddr};

use plimsoll_model::pool::GatewaySpec;

use crate::finding::{Finding, quote};
use crate::keys;
use crate::reader::{Bad, Field, Fields, Reader};
use crate::service::listen;
use crate::stack::address;

/// Where it listens when nothing else is said: this machine alone can ask there.
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7070);

/// The gateway, with the default address when there are only pools that want one; `None` when nobody does, or when
/// something is wrong, all of which is reported.
pub(crate) fn read(reader: &mut Reader<'_>, fields: &Fields<'_>) -> Option<GatewaySpec> {
    let Some(field) = fields.get("gateway") else {
        let plain = GatewaySpec { listen: LISTEN, token_file: None, hosts: Vec::new(), campfire: None };
        return fields.get("pools").map(|_| plain);
    };
    let fields = reader.fields(&field, &keys::GATEWAY)?;
    let at = fields.get("listen");
    let listen = at.map(|field| reader.value(&field, listen));
    let token_file = fields.get("token_file").map(|field| reader.path(&field));
    let hosts = fields.get("hosts").map(|field| reader.texts(&field, host)).unwrap_or_default();
    let campfire = fields.get("campfire").map(|field| campfire(reader, &field));
    if let (Some(Some(address)), Some(at), None) = (listen, at, &token_file)
        && !address.ip().to_canonical().is_loopback()
    {
        let message = format!("`listen` at {address} is reached from other machines, and there is no `token_file`");
        let finding = Finding::error("no_token_file", message).at(reader.place(at.span()));
        let help = "add `token_file: token`, a file with a token a line, or listen at 127.0.0.1";
        reader.push(Finding { key: Some("listen"), ..finding.help(help) });
    }
    if let Some(at) = at {
        reader.places.insert((String::new(), "listen"), reader.place(at.span()));
    }
    Some(GatewaySpec {
        listen: listen.unwrap_or(Some(LISTEN))?,
        token_file: token_file.map_or(Some(None), |path| path.map(Some))?,
        hosts: hosts.into_iter().map(|(name, _)| name).collect(),
        campfire: campfire.map_or(Some(None), |url| url.map(Some))?,
    })
}

/// A name as it stands in `Host`, without a port.
fn host(text: &str) -> Result<String, Bad> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let is_v6 = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|v6| v6.parse::<std::net::Ipv6Addr>().is_ok());
    if is_v6 || text.chars().all(is_part) {
        return Ok(text.to_ascii_lowercase());
    }
    let bad = Bad::new(format!("{} is no name of a host", quote(text)));
    Err(bad.help("a name alone, such as `bot.internal`: without `http://`, port or path"))
}

fn campfire(reader: &mut Reader<'_>, field: &Field<'_>) -> Option<String> {
    let fields = reader.fields(field, &keys::CAMPFIRE)?;
    let field = fields.get("base_url")?;
    reader.value(&field, |text| {
        let url = address(text)?;
        let bare = url.trim_end_matches('/');
        if bare.strip_prefix("http://").is_none_or(|rest| rest.contains(['/', '?', '#', '@'])) {
            let bad = Bad::new(format!("{} has more in it than scheme, host and port", quote(text)));
            return Err(bad.help("the way to a room comes with each message"));
        }
        Ok(bare.to_owned())
    })
}
