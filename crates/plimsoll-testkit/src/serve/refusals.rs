//! Bad input at the gateway's port: refused in the API's own shape, and nothing is started for it.

use std::io::Write;

use serde_json::json;

use super::scene::{POOL, Scene, refused, said};
use crate::http;
use crate::stack::world::{Check, ensure};

/// Nothing was started, and the next one is answered.
fn unharmed(scene: &Scene) -> Check {
    ensure!(scene.world.events_of("starting", POOL).is_empty(), "something was started");
    ensure!(scene.say("a", "x")? == "echo: x", "no answer");
    Ok(())
}

pub(super) fn bodies_that_are_none(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, ", 1)?;
    let message = r#""messages":[{"role":"user","content":"x"}]"#;
    let bad: &[(u16, String)] = &[
        (400, String::new()),
        (400, "{".to_owned()),
        (400, "[]".to_owned()),
        (400, "null".to_owned()),
        (400, "{}".to_owned()),
        (400, format!("{{{message}}}")),
        (400, r#"{"model":"bot"}"#.to_owned()),
        (400, r#"{"model":"bot","messages":[]}"#.to_owned()),
        (400, r#"{"model":"bot","messages":{}}"#.to_owned()),
        (400, r#"{"model":"bot","messages":["x"]}"#.to_owned()),
        (400, r#"{"model":"bot","messages":[{"role":"king","content":"x"}]}"#.to_owned()),
        (400, r#"{"model":"bot","messages":[{"role":"assistant","content":"x"}]}"#.to_owned()),
        (400, format!(r#"{{"model":7,{message}}}"#)),
        (400, format!(r#"{{"model":"bot","stream":"yes",{message}}}"#)),
        (400, format!("{{\"model\":\"bot\",\"x\":{}", "[".repeat(1 << 20))),
        (404, format!(r#"{{"model":"nobody",{message}}}"#)),
    ];
    for (status, body) in bad {
        let shown: String = body.chars().take(60).collect();
        let why =
            refused(&scene.client.post(&[], body.as_bytes())?, *status).map_err(|why| format!("{shown}: {why}"))?;
        ensure!(!why.is_empty(), "{shown}: no words");
    }
    let mut no_text = br#"{"model":"bot","messages":[{"role":"user","content":""#.to_vec();
    no_text.extend(b"\xff\xfe\"}]}");
    refused(&scene.client.post(&[], &no_text)?, 400)?;
    let long = "k".repeat(300);
    for key in ["", &long] {
        refused(&scene.client.post(&[("x-session-id", key)], &super::scene::Client::body("x", false))?, 400)?;
    }
    unharmed(scene)
}

/// Nine megabytes that come, and a hundred that are only promised.
pub(super) fn bodies_that_are_too_large(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, ", 1)?;
    let before = scene.client.health()?.1["memory"]["self_rss_mb"].as_f64().unwrap_or(0.0);
    let body = super::scene::Client::body(&"x".repeat(9 << 20), false);
    refused(&scene.client.post(&[], &body)?, 413)?;
    let request = http::request(
        scene.client.port,
        "POST",
        "/v1/chat/completions",
        &[("content-length", "104857600")],
        &vec![b' '; 10 << 20],
    );
    let stream = http::dial(scene.client.port).map_err(|error| error.to_string())?;
    refused(&http::exchange(stream, &request).map_err(|error| error.to_string())?, 413)?;
    let after = scene.client.health()?.1["memory"]["self_rss_mb"].as_f64().unwrap_or(0.0);
    ensure!((after as u64) < before as u64 + 64, "{before} MiB, then {after} MiB");
    unharmed(scene)
}

/// Foreign names, too many headers, half a head: refused or closed, and others are served.
pub(super) fn heads_that_are_refused(scene: &mut Scene) -> Check {
    scene.up_with("jsonl", "", "max_sessions: 1, ", 1)?;
    let body = super::scene::Client::body("x", false);
    let reply = scene.client.post(&[("host", "evil.example")], &body)?;
    ensure!(reply.status == 403, "{reply:?}");
    let reply = scene.client.post(&[("origin", "https://evil.example")], &body)?;
    ensure!(reply.status == 403, "{reply:?}");
    let names: Vec<String> = (0..2000).map(|number| format!("x-{number}")).collect();
    let headers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "y")).collect();
    let long = "y".repeat(1 << 20);
    for headers in [&headers[..], &[("x-long", long.as_str())]] {
        // It may be cut off in the middle of what it says.
        let reply = http::post(scene.client.port, "/v1/chat/completions", headers, &body);
        ensure!(reply.as_ref().map_or(true, |reply| (400..500).contains(&reply.status)), "{reply:?}");
    }
    let mut half = http::dial(scene.client.port).map_err(|error| error.to_string())?;
    half.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: loc").map_err(|error| error.to_string())?;
    let reply = http::exchange(
        http::dial(scene.client.port).map_err(|error| error.to_string())?,
        b"\x16\x03\x01 no http at all\r\n\r\n",
    );
    ensure!(reply.as_ref().map_or(true, |reply| reply.status == 400), "{reply:?}");
    let reply = http::post(scene.client.port, "/v1/nowhere", &[], b"").map_err(|error| error.to_string())?;
    refused(&reply, 404)?;
    unharmed(scene)
}

/// A token is for its pools, and for so many requests; the token itself is told nowhere.
pub(super) fn tokens_and_their_rates(scene: &mut Scene) -> Check {
    let secrets = ["s3cret-s3cret-of-all", "s3cret-s3cret-and-slow", "s3cret-s3cret-of-others"];
    std::fs::write(
        scene.world.path("token"),
        format!("{}\n{} pools={POOL} rate=2/h\n{} pools={POOL} rate=9/m\n", secrets[0], secrets[1], secrets[2]),
    )
    .map_err(|error| error.to_string())?;
    scene.write_with("jsonl", "", "max_sessions: 1, ", ", token_file: token");
    scene.up(1)?;
    let body = super::scene::Client::body("x", false);
    let ask = |token: &str| scene.client.post(&[("authorization", &format!("Bearer {token}"))], &body);
    // On the loopback nobody needs one.
    ensure!(said(&ask("s3cret-s3cret-of-nobody")?)? == "echo: x", "a key that is none");
    for _ in 0..2 {
        ensure!(said(&ask(secrets[1])?)? == "echo: x", "a token that is known");
    }
    let why = refused(&ask(secrets[1])?, 429)?;
    ensure!(why.contains("rate"), "{why}");
    for _ in 0..4 {
        ensure!(said(&ask(secrets[0])?)? == "echo: x", "another one has its own rate");
    }
    // Who cannot set a header has it in the way; it is the same one.
    let hook = json!({"user": {"name": "Ann"}, "room": {"id": 1}, "message": {"id": 1, "body": {"plain": "hi"}}});
    let hooked = |token: &str| {
        http::post(scene.client.port, &format!("/webhook/{POOL}/{token}"), &[], hook.to_string().as_bytes())
            .map_err(|error| error.to_string())
    };
    let limited = hooked(secrets[1])?;
    ensure!(limited.status == 429 && limited.header("retry-after").is_some() && limited.body.is_empty(), "{limited:?}");
    ensure!(hooked(secrets[2])?.text() == "echo: hi", "a webhook with its token");
    let told = scene.world.said()
        + &scene.world.text("state/events.jsonl")
        + &scene.world.log(POOL)
        + &scene.world.status().unwrap_or_default().to_string();
    ensure!(!told.contains("s3cret"), "a token is told");
    Ok(())
}
