//! Webhooks of rooms: the answer in the 200, or posted later; each message once; no talk among bots.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use super::scene::{Client, POOL, Scene};
use crate::harness::eventually;
use crate::http::{self, Reply};
use crate::stack::world::{Check, ensure};

/// A message in a room, as the server tells of it.
pub(super) fn message(id: u64, room: u64, text: &str) -> Value {
    json!({
        "user": {"id": 7, "name": "Ann"},
        "room": {"id": room, "name": "All"},
        "message": {"id": id, "body": {"plain": text, "html": format!("<p>{text}</p>")}},
    })
}

pub(super) fn hook(client: Client, message: &Value) -> Result<Reply, String> {
    let body = message.to_string();
    http::post(client.port, &format!("/webhook/{POOL}"), &[], body.as_bytes()).map_err(|error| error.to_string())
}

pub(super) fn the_answer_is_in_the_200(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 2, ", 2)?;
    let reply = hook(scene.client, &message(1, 1, "hello there"))?;
    ensure!(reply.status == 200 && reply.text() == "echo: hello there", "{reply:?}");
    ensure!(reply.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{reply:?}");
    // Markup is not touched.
    let reply = hook(scene.client, &message(2, 1, "!say <b>bold</b> & more"))?;
    ensure!(reply.text() == "<b>bold</b> & more", "{reply:?}");
    // The same message again, a bot's, and what we said ourselves: no answer, and nobody is asked.
    let mut bot = message(3, 1, "beep");
    bot["user"]["bot"] = true.into();
    for again in [message(1, 1, "hello there"), bot, message(4, 1, "echo: hello there")] {
        let reply = hook(scene.client, &again)?;
        ensure!(reply.status == 204 && reply.body.is_empty(), "{again}: {reply:?}");
    }
    let older = json!({"creator": {"id": 7, "name": "Ann"}, "room": {"id": 1, "name": "All"}, "content": "turns"});
    let reply = hook(scene.client, &older)?;
    ensure!(reply.status == 200 && reply.text() == "3", "{reply:?}");
    // Another room is another conversation.
    let reply = hook(scene.client, &message(6, 2, "history"))?;
    ensure!(reply.text() == "history", "{reply:?}");
    for (body, status) in [("{}", 400), ("no json", 400)] {
        let target = format!("/webhook/{POOL}");
        let reply = http::post(scene.client.port, &target, &[], body.as_bytes()).map_err(|error| error.to_string())?;
        ensure!(reply.status == status && reply.body.is_empty(), "{body}: {reply:?}");
    }
    let reply = http::post(scene.client.port, "/webhook/nobody", &[], b"{}").map_err(|error| error.to_string())?;
    ensure!(reply.status == 404 && reply.body.is_empty(), "{reply:?}");
    Ok(())
}

/// What was posted: path and body.
pub(super) type Posted = Arc<Mutex<Vec<(String, String)>>>;

/// A server that takes what is posted: its port.
pub(super) fn server(posted: Posted) -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    let port = listener.local_addr().map_err(|error| error.to_string())?.port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
            let text = loop {
                let count = stream.read(&mut buffer).unwrap_or(0);
                all.extend_from_slice(&buffer[..count]);
                let text = String::from_utf8_lossy(&all).into_owned();
                let length = text.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
                });
                let is_whole = text.split_once("\r\n\r\n").is_some_and(|(_, body)| Some(body.len()) >= length);
                if count == 0 || is_whole {
                    break text;
                }
            };
            let _ = stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                posted.lock().expect("a list").push((path, body.to_owned()));
            }
        }
    });
    Ok(port)
}

/// With the server's address: 204 at once, and the answers arrive in their order, by POST.
pub(super) fn the_answer_is_posted_into_its_room(scene: &mut Scene) -> Check {
    let posted = Posted::default();
    let port = server(posted.clone())?;
    let campfire = format!(", campfire: {{ base_url: \"http://127.0.0.1:{port}\" }}");
    scene.write_with("jsonl", "", "max_sessions: 2, ", &campfire);
    scene.up(2)?;
    let path = "/rooms/1/9-s3cretKEY/messages";
    for (id, text) in [(1, "!sleep 500ms\n!say <b>one</b>"), (2, "two"), (1, "again"), (3, "three")] {
        let mut message = message(id, 1, text);
        message["room"]["path"] = path.into();
        let reply = hook(scene.client, &message)?;
        ensure!(reply.status == 204 && reply.header("content-type").is_none(), "{reply:?}");
    }
    let all = || posted.lock().expect("a list").clone();
    ensure!(eventually(|| all().len() >= 3), "{:?}\n{}", all(), scene.world.story());
    std::thread::sleep(Duration::from_millis(300));
    let wanted: Vec<(String, String)> =
        ["<b>one</b>", "echo: two", "echo: three"].map(|text| (path.to_owned(), text.to_owned())).to_vec();
    ensure!(all() == wanted, "{:?}", all());
    // The room's key is nowhere in what we wrote.
    let told = scene.world.said() + &scene.world.text("state/events.jsonl") + &scene.world.log(POOL);
    ensure!(!told.contains("s3cretKEY"), "the room's key is told");
    Ok(())
}
