//! What a Campfire server's bots are sent, and what is said back: pure shapes.
//!
//! Both forms of its payload are read, `{user, room, message}` and the older `{creator, room, content}`. The path of the
//! room has the bot's key in it, so it is a [`Secret`] from the moment it is read.
//!
//! ## Answers
//! - With a reply address (the room's path, and a base URL that is configured): 204 without a content type at once, as
//!   Campfire waits 7 s only; the answer is posted later, as it is. HTML stays HTML.
//! - Without one: the answer is the body of the 200, as text. Nothing to say is a 204, too: an empty 200 would be written
//!   into the room.
//! - Whatever is refused is told by its status without a body. Campfire uploads a body of any other type into the room,
//!   whatever its status is.
//!
//! ## No loops
//! A bot's reply in a room wakes the other bots there. Three things break the circle:
//! - a message whose sender is called a bot by the payload is not answered;
//! - a message id is answered once for each pool ([`Answered`]), however often it comes;
//! - what we said ourselves is recognised when it comes in again ([`Echoes`]). What the server calls our reply is not known
//!   in time (the webhook of another bot can overtake the 201), so it is recognised by its text, in its room, within a
//!   minute. Very short texts are not: a person who says "yes" right behind a bot is to be heard.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::Deserialize;

use crate::secret::Secret;

/// The largest payload, bytes.
pub const LARGEST_BODY: usize = 256 << 10;
/// Longer is no id, name or path of a room.
const LONGEST_NAME: usize = 512;
/// Message ids that are remembered, and how long: Campfire itself does not repeat, a proxy before us may for minutes.
const MOST_ANSWERED: usize = 4096;
pub(crate) const ANSWERED_FOR: Duration = Duration::from_secs(3600);
/// Texts of ours that are remembered, and how long.
const MOST_ECHOES: usize = 1024;
pub(crate) const ECHO_FOR: Duration = Duration::from_secs(60);
/// Shorter texts are anybody's.
const LEAST_ECHO: usize = 8;

/// A message in a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The room's id: with the pool, it is the conversation.
    pub room: String,
    /// Where the room's messages are posted, below the server's address.
    pub path: Option<Secret>,
    /// The message's id; the older form has none.
    pub id: Option<String>,
    /// Who wrote it.
    pub user: String,
    /// The payload calls the writer a bot.
    pub is_bot: bool,
    /// What was written, plain where there is a plain form.
    pub text: String,
}

/// Why a payload is none. The status is 400 each time; what was sent is not repeated, as there may be a key in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// No JSON, or another shape.
    #[error(
        "the body is no webhook of Campfire: JSON with `user`, `room` and `message`, or `creator`, `room` and `content`"
    )]
    Shape,
    /// There is nothing to answer.
    #[error("the message has no text")]
    Empty,
    /// The room cannot be told from others.
    #[error("the room has no id, or one that is too long")]
    Room,
    /// The path would lead elsewhere.
    #[error("the room's path is none: it begins with `/`, and has neither spaces nor line ends")]
    Path,
}

#[derive(Deserialize)]
struct Payload {
    user: Option<Person>,
    creator: Option<Person>,
    room: Room,
    message: Option<Body>,
    content: Option<String>,
}

#[derive(Deserialize)]
struct Person {
    name: Option<String>,
    #[serde(default)]
    bot: bool,
    #[serde(rename = "type")]
    kind: Option<String>,
    role: Option<String>,
}

#[derive(Deserialize)]
struct Room {
    id: Id,
    path: Option<String>,
}

#[derive(Deserialize)]
struct Body {
    id: Option<Id>,
    body: Option<Written>,
}

#[derive(Deserialize)]
struct Written {
    plain: Option<String>,
    html: Option<String>,
}

/// Numbers in one version, texts in another.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Number(i64),
    Text(String),
}

impl Id {
    fn into_text(self) -> Option<String> {
        match self {
            Self::Number(number) => Some(number.to_string()),
            Self::Text(text) => (!text.is_empty() && text.len() <= LONGEST_NAME).then_some(text),
        }
    }
}

impl Message {
    /// Reads a payload of either form.
    ///
    /// # Errors
    /// See [`Unfit`].
    pub fn parse(body: &[u8]) -> Result<Self, Unfit> {
        if body.len() > LARGEST_BODY {
            return Err(Unfit::Shape);
        }
        let payload: Payload = serde_json::from_slice(body).map_err(|_| Unfit::Shape)?;
        let user = payload.user.or(payload.creator);
        let (id, text) = match (payload.message, payload.content) {
            (Some(message), _) => {
                let written = message.body;
                let text = written.and_then(|written| {
                    let plain = written.plain.filter(|plain| !plain.trim().is_empty());
                    plain.or_else(|| written.html.map(|html| plain_of(&html)))
                });
                (message.id.and_then(Id::into_text), text)
            }
            (None, Some(content)) => (None, Some(content)),
            (None, None) => return Err(Unfit::Shape),
        };
        let text = text.filter(|text| !text.trim().is_empty()).ok_or(Unfit::Empty)?;
        let is_visible = |byte: u8| byte.is_ascii_graphic();
        let path = match payload.room.path.filter(|path| !path.is_empty()) {
            Some(path) if path.starts_with('/') && path.len() <= LONGEST_NAME && path.bytes().all(is_visible) => {
                Some(Secret::new(path))
            }
            Some(_) => return Err(Unfit::Path),
            None => None,
        };
        let is_bot = user.as_ref().is_some_and(|user| {
            let says = |word: &Option<String>| word.as_ref().is_some_and(|word| word.eq_ignore_ascii_case("bot"));
            user.bot || says(&user.kind) || says(&user.role)
        });
        let mut user = user.and_then(|user| user.name).unwrap_or_default();
        user.truncate(user.floor_char_boundary(LONGEST_NAME));
        Ok(Self { room: payload.room.id.into_text().ok_or(Unfit::Room)?, path, id, user, is_bot, text })
    }

    /// The whole address that a later reply is posted to; without one the answer is the body of the 200. `base` is scheme,
    /// host and port of the server, without a slash at its end.
    #[must_use]
    pub fn reply_to(&self, base: Option<&str>) -> Option<Secret> {
        Some(Secret::new(format!("{}{}", base?, self.path.as_ref()?.expose())))
    }
}

/// What of an agent's answer is said in the room: all of it, as it is; nothing when there is nothing to see in it, which the
/// server would refuse.
#[must_use]
pub fn said(answer: &str) -> Option<&str> {
    (!answer.trim().is_empty()).then_some(answer)
}

/// Ids of messages that were answered, or are being answered, for each pool.
#[derive(Debug, Default)]
pub struct Answered(Recent<(String, String)>);

impl Answered {
    /// Is it the first time that this pool is to answer this message? From then on it is not. `now` counts from any
    /// beginning that stays the same.
    pub fn is_first(&mut self, now: Duration, pool: &str, id: &str) -> bool {
        self.0.insert(now, (pool.to_owned(), id.to_owned()), MOST_ANSWERED, ANSWERED_FOR)
    }

    /// It was refused and may come again.
    pub fn forget(&mut self, pool: &str, id: &str) {
        self.0.remove(&(pool.to_owned(), id.to_owned()));
    }
}

/// What we said, by room.
#[derive(Debug, Default)]
pub struct Echoes(Recent<u64>);

impl Echoes {
    /// Remembers what is about to be said in a room.
    pub fn say(&mut self, now: Duration, room: &str, text: &str) {
        if let Some(print) = echo(room, text) {
            // What is said again is remembered for longer.
            self.0.remove(&print);
            self.0.insert(now, print, MOST_ECHOES, ECHO_FOR);
        }
    }

    /// Is this message what we said in this room ourselves?
    #[must_use]
    pub fn is_ours(&self, now: Duration, message: &Message) -> bool {
        echo(&message.room, &message.text).is_some_and(|print| self.0.contains(now, &print, ECHO_FOR))
    }
}

/// What a room's text is recognised by, whatever became of its markup and its spaces on the way; nothing if it is very short.
pub(crate) fn echo(room: &str, text: &str) -> Option<u64> {
    let plain: String = plain_of(text).chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if plain.len() < LEAST_ECHO {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    (room, plain).hash(&mut hasher);
    Some(hasher.finish())
}

/// HTML without its tags, and with the few entities that a text is escaped by.
fn plain_of(html: &str) -> String {
    let mut plain = String::with_capacity(html.len());
    let mut rest = html;
    while let Some(at) = rest.find(['<', '&']) {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        const ENTITIES: [(&str, &str); 6] =
            [("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&"), ("&quot;", "\""), ("&#39;", "'"), ("&nbsp;", " ")];
        let entity = ENTITIES.iter().find(|(entity, _)| rest.starts_with(entity));
        // A tag begins with a letter or a slash: `a < b` has none.
        let is_tag = rest[1..].starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
        match (entity, rest.find('>')) {
            (Some((entity, c)), _) => {
                plain.push_str(c);
                rest = &rest[entity.len()..];
            }
            (None, Some(end)) if is_tag && rest.starts_with('<') => {
                plain.push(' ');
                rest = &rest[end + 1..];
            }
            _ => {
                plain.push_str(&rest[..1]);
                rest = &rest[1..];
            }
        }
    }
    plain.push_str(rest);
    plain.trim().to_owned()
}

/// What was seen lately: so many at most, each for so long. The oldest goes first.
#[derive(Debug)]
struct Recent<T> {
    since: BTreeMap<T, Duration>,
    order: VecDeque<(Duration, T)>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self { since: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<T: Ord + Clone> Recent<T> {
    fn insert(&mut self, now: Duration, one: T, most: usize, lasting: Duration) -> bool {
        while let Some((since, _)) = self.order.front()
            && (now.saturating_sub(*since) >= lasting || self.order.len() >= most)
        {
            self.pop();
        }
        if self.contains(now, &one, lasting) {
            return false;
        }
        self.since.insert(one.clone(), now);
        self.order.push_back((now, one));
        true
    }

    fn pop(&mut self) {
        // One that was removed and came again is in the order twice: the earlier place means nothing.
        if let Some((since, one)) = self.order.pop_front()
            && self.since.get(&one) == Some(&since)
        {
            self.since.remove(&one);
        }
    }

    fn contains(&self, now: Duration, one: &T, lasting: Duration) -> bool {
        self.since.get(one).is_some_and(|since| now.saturating_sub(*since) < lasting)
    }

    fn remove(&mut self, one: &T) {
        self.since.remove(one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NEW: &str = r#"{"user":{"id":7,"name":"Ann"},
        "room":{"id":42,"name":"All","path":"/rooms/42/9-s3cretKEY/messages"},
        "message":{"id":1001,"body":{"html":"<p>hi &amp; <b>ho</b></p>","plain":"hi & ho"},"path":"/rooms/42/@1001"}}"#;
    const OLD: &str = r#"{"creator":{"id":7,"name":"Ann"},"room":{"id":"42","name":"All"},"content":"hi"}"#;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn both_forms() {
        let new = Message::parse(NEW.as_bytes()).unwrap();
        assert_eq!((new.room.as_str(), new.id.as_deref(), new.user.as_str()), ("42", Some("1001"), "Ann"));
        assert_eq!((new.text.as_str(), new.is_bot), ("hi & ho", false));
        let address = new.reply_to(Some("http://127.0.0.1:3000")).unwrap();
        assert_eq!(address.expose(), "http://127.0.0.1:3000/rooms/42/9-s3cretKEY/messages");
        assert_eq!(new.reply_to(None), None);

        let old = Message::parse(OLD.as_bytes()).unwrap();
        let expected = Message {
            room: "42".to_owned(),
            path: None,
            id: None,
            user: "Ann".to_owned(),
            is_bot: false,
            text: "hi".to_owned(),
        };
        assert_eq!(old, expected);
        assert_eq!(old.reply_to(Some("http://h")), None);

        // Without a plain form, the other one is made plain.
        let html = Message::parse(NEW.replace("\"plain\":\"hi & ho\"", "\"plain\":\" \"").as_bytes()).unwrap();
        assert_eq!(html.text, "hi &  ho");
    }

    #[test]
    fn the_path_is_never_shown() {
        let message = Message::parse(NEW.as_bytes()).unwrap();
        let shown = format!("{message:?} {:?}", message.reply_to(Some("http://h")));
        assert!(!shown.contains("s3cret") && shown.contains('…'), "{shown}");
        for wrong in [
            NEW.replace("/rooms/42/9", "rooms/42/9"),
            NEW.replace("9-s3", "9 s3"),
            NEW.replace("\"id\":42", "\"id\":[]"),
        ] {
            let error = Message::parse(wrong.as_bytes()).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("cretKEY"));
        }
    }

    #[test]
    fn what_is_no_message() {
        for (body, why) in [
            ("", Unfit::Shape),
            ("[]", Unfit::Shape),
            ("{\"room\":{\"id\":1}}", Unfit::Shape),
            ("{\"content\":\"x\"}", Unfit::Shape),
            ("{\"room\":{\"id\":1},\"content\":5}", Unfit::Shape),
            ("{\"room\":{\"id\":\"\"},\"content\":\"x\"}", Unfit::Room),
            ("{\"room\":{\"id\":1},\"content\":\" \"}", Unfit::Empty),
            ("{\"room\":{\"id\":1},\"message\":{\"id\":1}}", Unfit::Empty),
            ("{\"room\":{\"id\":1,\"path\":\"http://evil.test/\"},\"content\":\"x\"}", Unfit::Path),
            ("{\"room\":{\"id\":1,\"path\":\"@evil.test/\"},\"content\":\"x\"}", Unfit::Path),
            ("{\"room\":{\"id\":1,\"path\":\"/a\\r\\nHost: b\"},\"content\":\"x\"}", Unfit::Path),
        ] {
            assert_eq!(Message::parse(body.as_bytes()), Err(why), "{body}");
        }
        let long = OLD.replace("hi", &"x".repeat(LARGEST_BODY));
        assert_eq!(Message::parse(long.as_bytes()), Err(Unfit::Shape));
        assert_eq!(Message::parse(b"{\"room\":{\"id\":1},\"content\":\"\xff\"}"), Err(Unfit::Shape));
    }

    /// The thread of this room has half a megabyte.
    #[test]
    fn a_small_stack_will_do() {
        let work = || {
            for deep in ["[".repeat(100_000), "{\"a\":".repeat(100_000)] {
                for body in [format!("{{\"room\":{{\"id\":{deep}"), format!("{{\"x\":{deep}"), deep.clone()] {
                    assert_eq!(Message::parse(&body.as_bytes()[..body.len().min(LARGEST_BODY)]), Err(Unfit::Shape));
                }
            }
            let nested = format!("{{\"room\":{{\"id\":{}1{}}},\"content\":\"x\"}}", "[".repeat(120), "]".repeat(120));
            assert_eq!(Message::parse(nested.as_bytes()), Err(Unfit::Shape));
        };
        std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
    }

    #[test]
    fn answers_as_they_are() {
        assert_eq!(said("<b>x</b>\n"), Some("<b>x</b>\n"));
        assert_eq!((said(""), said(" \n")), (None, None));
    }

    #[test]
    fn bots_are_not_answered() {
        for bot in ["\"bot\":true", "\"type\":\"Bot\"", "\"role\":\"bot\""] {
            let body = NEW.replace("\"name\":\"Ann\"", &format!("\"name\":\"Ann\",{bot}"));
            assert!(Message::parse(body.as_bytes()).unwrap().is_bot, "{bot}");
            let body = OLD.replace("\"name\":\"Ann\"", &format!("\"name\":\"Ann\",{bot}"));
            assert!(Message::parse(body.as_bytes()).unwrap().is_bot, "{bot}");
        }
    }

    #[test]
    fn once_a_pool() {
        let mut answered = Answered::default();
        assert!(answered.is_first(seconds(0), "a", "1"));
        assert!(!answered.is_first(seconds(3599), "a", "1"));
        assert!(answered.is_first(seconds(0), "b", "1"));
        answered.forget("a", "1");
        assert!(answered.is_first(seconds(3599), "a", "1"));
        // Its first place is forgotten, the second one counts.
        assert!(!answered.is_first(seconds(3700), "a", "1"));
        assert!(answered.is_first(seconds(3599 + 3600), "a", "1"));
    }

    #[test]
    fn our_own_words_come_back() {
        let mut echoes = Echoes::default();
        echoes.say(seconds(0), "42", "<p>The answer is <b>forty-two</b> &amp; no more.</p>");
        let heard = |room: &str, text: &str| Message {
            room: room.to_owned(),
            text: text.to_owned(),
            ..Message::parse(OLD.as_bytes()).unwrap()
        };
        assert!(echoes.is_ours(seconds(59), &heard("42", "The answer is forty-two & no more.")));
        assert!(echoes.is_ours(seconds(59), &heard("42", "the answer is\nforty-two &amp; no more.")));
        assert!(!echoes.is_ours(seconds(60), &heard("42", "The answer is forty-two & no more.")));
        assert!(!echoes.is_ours(seconds(1), &heard("43", "The answer is forty-two & no more.")));
        assert!(!echoes.is_ours(seconds(1), &heard("42", "The answer is forty-three & no more.")));
        echoes.say(seconds(0), "42", "Yes.");
        assert!(!echoes.is_ours(seconds(1), &heard("42", "Yes.")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Message::parse(&body);
        }

        #[test]
        fn any_shape_is_read_or_refused(
            id in "(1|-9|null|\"x\"|\\[\\]|1.5)", path in "(null|\"/a\"|\"b\"|5)", text in ".{0,20}", old in any::<bool>(),
        ) {
            let text = serde_json::to_string(&text).unwrap();
            let body = if old {
                format!("{{\"room\":{{\"id\":{id},\"path\":{path}}},\"content\":{text}}}")
            } else {
                format!("{{\"room\":{{\"id\":{id},\"path\":{path}}},\"message\":{{\"id\":{id},\"body\":{{\"html\":{text}}}}}}}")
            };
            let _ = Message::parse(body.as_bytes());
        }

        #[test]
        fn plain_never_panics_and_keeps_what_has_no_markup(text in ".{0,40}", markup in "[<>&a-z/;# ]{0,40}") {
            let _ = plain_of(&markup);
            let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            prop_assert_eq!(plain_of(&escaped), text.trim());
        }

        /// Never more than the bound, and within it and its time each one once.
        #[test]
        fn what_is_remembered_is_bounded(ids in prop::collection::vec((0u8..20, 0u64..5, any::<bool>()), 0..100)) {
            let mut recent = Recent::default();
            let mut now = 0;
            let mut first_at: BTreeMap<u8, u64> = BTreeMap::new();
            for (id, step, forget) in ids {
                now += step;
                let is_first = recent.insert(seconds(now), id, 50, seconds(10));
                if first_at.len() < 20 {
                    let expected = first_at.get(&id).is_none_or(|at| now - at >= 10);
                    prop_assert_eq!(is_first, expected);
                }
                if is_first {
                    first_at.insert(id, now);
                }
                if forget {
                    recent.remove(&id);
                    first_at.remove(&id);
                }
                prop_assert!(recent.order.len() <= 50 && recent.since.len() <= recent.order.len());
            }
        }
    }
}
