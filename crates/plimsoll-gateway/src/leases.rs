//! Conversations that several machines serve: who has which, what was said, and what was answered, in Redis.
//!
//! A turn of a conversation is taken under a *lease*: for its time no other machine has one of it. Each lease has a *fencing
//! token* that grows with every one that is given, and only the newest may write: a machine that slept, or was cut off, for
//! longer than its lease cannot mix its words into what another one has said since. What was said, the next token and the
//! version of the conversation lie in one server, and each step is one script there, so that it happens whole or not at all.
//!
//! ```text
//! plimsoll:talk:POOL:KEY    a hash: fence, holder and till (its lease), waiter and waits (who is next), version, last, bytes
//! plimsoll:said:POOL:KEY    a list: a JSON object a message, oldest first
//! plimsoll:done:POOL:KEY:P  an answer, for who sends the same request again
//! plimsoll:seen:POOL:ID     a webhook's message that was answered
//! plimsoll:echo:P           what was said in a room
//! plimsoll:node:ID          a machine that serves now
//! plimsoll:late:ID          a hash: what this machine has to answer later
//! plimsoll:nodes            a set: machines that have, or had, such a hash
//! ```

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, FromRedisValue, RedisError, Script, ScriptInvocation};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::agent::Usage;
use crate::chat::{Message, Role};
use crate::serving::Talk;
use crate::tape::Same;

/// A lease that is not renewed is over after this.
const LEASE: Duration = Duration::from_secs(10);

/// So much earlier its holder no longer trusts it: clocks do not run alike, and an agent needs its time to stop.
const MARGIN: Duration = Duration::from_secs(1);

/// It is renewed so often.
const RENEWED: Duration = Duration::from_secs(3);

/// Who wants a lease that another machine has asks again after this, at least and at most,
const SOONEST: Duration = Duration::from_millis(10);
const LATEST: Duration = Duration::from_millis(100);

/// and is the next one when it is free, if it has asked within this time.
const NEXT_FOR: Duration = Duration::from_millis(500);

/// Redis has so long to be connected to, and to answer.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// One that does not answer is asked again after this.
const PAUSE: Duration = Duration::from_millis(100);

/// Whoever wants to begin a turn is refused when it has not answered for so long.
const PATIENCE: Duration = Duration::from_secs(3);

/// A conversation of which nothing was heard for so long is forgotten.
const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// What was said is cut to `KEPT` bytes when it is more than `LONGEST`, as in a file.
const LONGEST: usize = 4 << 20;
const KEPT: usize = 2 << 20;

/// An answer is known to those that ask again for so long. Longer ones than this, bytes, are not.
const DONE_FOR: Duration = Duration::from_secs(60);
const LONGEST_DONE: usize = 1 << 20;

/// So much is answered later at most, by one machine.
const MOST_LATE: usize = 1000;

/// In each script the time is the server's own, in milliseconds.
const NOW: &str = "local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)\n";

/// KEYS: talk. ARGV: node, a lease's and a waiter's time, how long it is kept, ms. {token, version}, or {0, time left}.
/// A machine has one turn of a conversation at a time: a lease of its own that is left over, from an answer that did not
/// come here, is in nobody's way.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NOW}\
local held, till, waiter, waits = unpack(redis.call('HMGET', KEYS[1], 'holder', 'till', 'waiter', 'waits'))
local is_next = not waiter or waiter == ARGV[1] or tonumber(waits) <= now
local is_own = held and string.sub(held, 1, #ARGV[1] + 1) == ARGV[1] .. ':'
if held and not is_own and tonumber(till) > now then
    if is_next then redis.call('HSET', KEYS[1], 'waiter', ARGV[1], 'waits', string.format('%.0f', now + ARGV[3])) end
    return {{0, tonumber(till) - now}}
end
if not is_next then return {{0, tonumber(waits) - now}} end
redis.call('HDEL', KEYS[1], 'waiter', 'waits')
local fence = redis.call('HINCRBY', KEYS[1], 'fence', 1)
redis.call('HSET', KEYS[1], 'holder', ARGV[1] .. ':' .. fence, 'till', string.format('%.0f', now + ARGV[2]))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {{fence, tonumber(redis.call('HGET', KEYS[1], 'version') or 0)}}"
    ))
});

/// KEYS: talk. ARGV: holder, a lease's time, ms. Whether it is still the holder's.
static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{NOW}\
if redis.call('HGET', KEYS[1], 'holder') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'till', string.format('%.0f', now + ARGV[2]))
return 1"
    ))
});

/// KEYS: talk. ARGV: holder.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('HGET', KEYS[1], 'holder') == ARGV[1] then redis.call('HDEL', KEYS[1], 'holder', 'till') end",
    )
});

/// KEYS: talk, said, done. ARGV: holder, whether it is all that was said, how long it is kept, the bytes from which and to
/// which it is cut, how long the answer is known, the answer or nothing, then messages. The new version, or 0: it is no
/// longer the holder's. The same again changes nothing.
static COMMIT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local held, last, version, bytes = unpack(redis.call('HMGET', KEYS[1], 'holder', 'last', 'version', 'bytes'))
if last == ARGV[1] then return tonumber(version) end
if held ~= ARGV[1] then return 0 end
bytes = tonumber(bytes or 0)
if ARGV[2] == '1' then redis.call('DEL', KEYS[2]); bytes = 0 end
for i = 8, #ARGV do redis.call('RPUSH', KEYS[2], ARGV[i]); bytes = bytes + #ARGV[i] end
if bytes > tonumber(ARGV[4]) then
    while bytes > tonumber(ARGV[5]) and redis.call('LLEN', KEYS[2]) > 1 do bytes = bytes - #redis.call('LPOP', KEYS[2]) end
end
if ARGV[7] ~= '' then redis.call('SET', KEYS[3], ARGV[7], 'PX', ARGV[6]) end
redis.call('HSET', KEYS[1], 'last', ARGV[1], 'bytes', bytes)
redis.call('HDEL', KEYS[1], 'holder', 'till')
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return redis.call('HINCRBY', KEYS[1], 'version', 1)",
    )
});

/// KEYS: late, nodes. ARGV: node, how many at most, id, text. Whether it is kept.
static KEEP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
return 1",
    )
});

/// KEYS: the life sign and the late of another machine, ours, nodes. ARGV: the other machine, ours. All that was the other's,
/// if it serves no longer.
static INHERIT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('EXISTS', KEYS[1]) == 1 then return {} end
local all = redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do redis.call('HSET', KEYS[3], all[i], all[i + 1]) end
redis.call('DEL', KEYS[2])
redis.call('SREM', KEYS[4], ARGV[1])
if #all > 0 then redis.call('SADD', KEYS[4], ARGV[2]) end
return all",
    )
});

/// Why nothing can be proven: Redis did not answer as it should, in its words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut(pub(crate) String);

impl From<RedisError> for Cut {
    fn from(error: RedisError) -> Self {
        Self(error.to_string())
    }
}

/// What the machines that serve the same pools agree on.
pub(crate) struct Leases {
    client: Client,
    connection: Mutex<Option<MultiplexedConnection>>,
    /// This machine, in this life: no other one has its name.
    node: String,
}

/// One conversation, for the time of one turn this machine's alone.
pub(crate) struct Lease {
    leases: Rc<Leases>,
    talk: Talk,
    /// The machine and the token.
    holder: String,
    /// Of what was said, when it was taken.
    version: u64,
    /// When it was asked for what was last granted: it is good from then on for [`LEASE`] at least.
    proven: Cell<Instant>,
    is_over: Cell<bool>,
}

/// A message as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    role: String,
    content: String,
}

/// An answer as it is kept.
#[derive(Serialize, Deserialize)]
struct Done {
    text: String,
    tokens: Option<(u64, u64)>,
}

impl Leases {
    /// Nothing is asked of the server yet. Each value is a machine of its own.
    ///
    /// # Errors
    /// It is no address, in words without it; or there are no random numbers.
    pub(crate) fn new(url: &str) -> Result<Rc<Self>, String> {
        // What is wrong with an address is told without it: there may be a password in it.
        let client = Client::open(url).map_err(|_| "its address is none".to_owned())?;
        let mut name = [0; 8];
        rustix::rand::getrandom(&mut name, rustix::rand::GetRandomFlags::empty()).map_err(|error| error.to_string())?;
        let node = format!("{:016x}", u64::from_ne_bytes(name));
        Ok(Rc::new(Self { client, connection: Mutex::new(None), node }))
    }

    async fn connection(&self) -> Result<MultiplexedConnection, Cut> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_TIME))
            .set_response_timeout(Some(ANSWER_TIME));
        let new = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        *connection = Some(new.clone());
        Ok(new)
    }

    /// After an error that is not the server's own word the connection is of no use.
    async fn heard<T>(&self, answer: Result<T, RedisError>) -> Result<T, Cut> {
        if let Err(error) = &answer
            && (error.is_io_error() || error.is_connection_dropped() || error.is_timeout())
        {
            *self.connection.lock().await = None;
        }
        Ok(answer?)
    }

    async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, Cut> {
        let mut connection = self.connection().await?;
        let answer = script.invoke_async(&mut connection).await;
        self.heard(answer).await
    }

    async fn ask<T: FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, Cut> {
        let mut connection = self.connection().await?;
        let answer = command.query_async(&mut connection).await;
        self.heard(answer).await
    }

    /// Whether the server takes what is written; until [`LEASE`] is over this machine is known to serve.
    pub(crate) async fn beat(&self) -> Result<(), Cut> {
        let key = format!("plimsoll:node:{}", self.node);
        self.ask(redis::cmd("SET").arg(key).arg(1).arg("PX").arg(millis(LEASE))).await
    }

    /// Keeps what is to be answered later, until [`Self::done`] says that it was. `id` is no other machine's either. False
    /// when there is too much of it.
    pub(crate) async fn keep(&self, id: &str, text: &str) -> Result<bool, Cut> {
        let mut script = KEEP.key(late(&self.node));
        script.key("plimsoll:nodes").arg(&self.node).arg(MOST_LATE).arg(id).arg(text);
        self.run(&script).await
    }

    /// It was answered, or never will be.
    pub(crate) async fn done(&self, id: &str) -> Result<(), Cut> {
        self.ask(redis::cmd("HDEL").arg(late(&self.node)).arg(id)).await
    }

    /// What machines that serve no longer had to answer: from now on it is this one's. Ids, in their order, and texts.
    pub(crate) async fn inherit(&self) -> Result<Vec<(String, String)>, Cut> {
        let nodes: Vec<String> = self.ask(redis::cmd("SMEMBERS").arg("plimsoll:nodes")).await?;
        let mut all = Vec::new();
        for node in nodes.iter().filter(|node| **node != self.node) {
            let mut script = INHERIT.key(format!("plimsoll:node:{node}"));
            script.key(late(node)).key(late(&self.node)).key("plimsoll:nodes").arg(node).arg(&self.node);
            all.extend(self.run::<Vec<(String, String)>>(&script).await?);
        }
        all.sort();
        Ok(all)
    }

    /// This machine, in this life.
    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Waits for the lease of a conversation until another machine has none of it.
    ///
    /// # Errors
    /// The server has not answered for [`PATIENCE`].
    pub(crate) async fn take(self: &Rc<Self>, talk: &Talk) -> Result<Lease, Cut> {
        let mut script = TAKE.key(key("talk", talk));
        script.arg(&self.node).arg(millis(LEASE)).arg(millis(NEXT_FOR)).arg(millis(KEPT_FOR));
        let mut wait = SOONEST;
        let mut patience = Instant::now() + PATIENCE;
        loop {
            let asked = Instant::now();
            match self.run::<(u64, u64)>(&script).await {
                Ok((0, left)) => {
                    patience = Instant::now() + PATIENCE;
                    sleep(wait.min(Duration::from_millis(left.max(1)))).await;
                    wait = (wait * 2).min(LATEST);
                }
                Ok((token, version)) => {
                    return Ok(Lease {
                        leases: self.clone(),
                        talk: talk.clone(),
                        holder: format!("{}:{token}", self.node),
                        version,
                        proven: Cell::new(asked),
                        is_over: Cell::new(false),
                    });
                }
                Err(cut) if Instant::now() >= patience => return Err(cut),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// The answer to the same request, if it was given a moment ago.
    pub(crate) async fn answered(&self, same: &Same) -> Result<Option<(String, Option<Usage>)>, Cut> {
        let done: Option<Vec<u8>> = self.ask(redis::cmd("GET").arg(done(same))).await?;
        let done = done.and_then(|done| serde_json::from_slice::<Done>(&done).ok());
        Ok(done.map(|done| {
            let usage = |(prompt_tokens, completion_tokens)| Usage { prompt_tokens, completion_tokens };
            (done.text, done.tokens.map(usage))
        }))
    }

    /// Is it the first time, for `time`, that this is heard of, on any machine? From then on it is not.
    pub(crate) async fn is_first(&self, what: &str, time: Duration) -> Result<bool, Cut> {
        let mut command = redis::cmd("SET");
        command.arg(format!("plimsoll:{what}")).arg(1).arg("NX").arg("PX").arg(millis(time));
        Ok(self.ask::<Option<String>>(&command).await?.is_some())
    }

    /// Has [`Self::is_first`] been asked of it?
    pub(crate) async fn is_known(&self, what: &str) -> Result<bool, Cut> {
        self.ask(redis::cmd("EXISTS").arg(format!("plimsoll:{what}"))).await
    }

    /// It is as if it had never been heard of.
    pub(crate) async fn forget(&self, what: &str) -> Result<(), Cut> {
        self.ask(redis::cmd("DEL").arg(format!("plimsoll:{what}"))).await
    }
}

impl Lease {
    /// Grows with each turn, on whichever machine.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// It cannot be trusted any longer after this.
    fn until(&self) -> Instant {
        self.proven.get() + LEASE - MARGIN
    }

    /// Renews it for as long as it is polled, and returns when it can no longer be proven to be this machine's.
    pub(crate) async fn lost(&self) {
        let mut script = RENEW.key(key("talk", &self.talk));
        script.arg(&self.holder).arg(millis(LEASE));
        loop {
            sleep_until((self.proven.get() + RENEWED).max(Instant::now() + PAUSE).min(self.until())).await;
            let asked = Instant::now();
            match timeout_at(self.until(), self.leases.run::<bool>(&script)).await {
                Ok(Ok(true)) => self.proven.set(asked),
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(_)) if Instant::now() >= self.until() => return,
                Ok(Err(_)) => {}
            }
        }
    }

    /// What was said, oldest first.
    ///
    /// # Errors
    /// The lease was over before the server answered.
    pub(crate) async fn said(&self) -> Result<Vec<Message>, Cut> {
        let mut command = redis::cmd("LRANGE");
        command.arg(key("said", &self.talk)).arg(0).arg(-1);
        let said: Vec<Vec<u8>> = self.insist(async || self.leases.ask(&command).await).await?;
        let said = said.iter().filter_map(|one| serde_json::from_slice::<Kept>(one).ok());
        Ok(said.filter_map(|one| Some(Message::new(Role::of(&one.role)?, one.content))).collect())
    }

    /// More was said, or all of it anew, and so it was answered: the new version. It ends the lease.
    ///
    /// # Errors
    /// It was another machine's already, and nothing is changed; or the server did not answer in time, and nobody knows.
    pub(crate) async fn commit(
        &self,
        said: &[Message],
        is_all: bool,
        answered: Option<(&Same, &str, Option<Usage>)>,
    ) -> Result<u64, Cut> {
        let line = |done: Done| serde_json::to_string(&done).unwrap_or_default();
        let kept = answered.map_or_else(String::new, |(_, text, usage)| {
            let tokens = usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens));
            line(Done { text: text.to_owned(), tokens })
        });
        let kept = if kept.len() > LONGEST_DONE { String::new() } else { kept };
        let mut script = COMMIT.key(key("talk", &self.talk));
        script.key(key("said", &self.talk)).key(answered.map_or_else(String::new, |(same, ..)| done(same)));
        script.arg(&self.holder).arg(u8::from(is_all)).arg(millis(KEPT_FOR)).arg(LONGEST).arg(KEPT);
        script.arg(millis(DONE_FOR)).arg(kept);
        for one in said {
            let kept = Kept { role: one.role.word().to_owned(), content: one.content.clone() };
            script.arg(serde_json::to_string(&kept).unwrap_or_default());
        }
        match self.insist(async || self.leases.run::<u64>(&script).await).await? {
            0 => Err(Cut("another machine has taken the conversation over".to_owned())),
            version => {
                self.is_over.set(true);
                Ok(version)
            }
        }
    }

    /// Asks until there is an answer, or the lease is over.
    async fn insist<T>(&self, ask: impl AsyncFn() -> Result<T, Cut>) -> Result<T, Cut> {
        let last = RefCell::new(Cut("it did not answer in time".to_owned()));
        let asked = async {
            loop {
                match ask().await {
                    Ok(answer) => return answer,
                    Err(cut) => *last.borrow_mut() = cut,
                }
                sleep(PAUSE).await;
            }
        };
        let answer = timeout_at(self.until(), asked).await;
        answer.map_err(|_| last.take())
    }
}

impl Default for Cut {
    fn default() -> Self {
        Self("it did not answer".to_owned())
    }
}

impl Drop for Lease {
    /// Whoever waits for it need not wait until it runs out.
    fn drop(&mut self) {
        if self.is_over.get() {
            return;
        }
        let (leases, talk, holder) = (self.leases.clone(), self.talk.clone(), std::mem::take(&mut self.holder));
        tokio::task::spawn_local(async move {
            let mut script = RELEASE.key(key("talk", &talk));
            script.arg(holder);
            // If it does not come there, the lease runs out by itself.
            let _ = leases.run::<()>(&script).await;
        });
    }
}

/// A pool's name has no colon in it.
fn key(what: &str, (pool, key): &Talk) -> String {
    format!("plimsoll:{what}:{pool}:{key}")
}

fn late(node: &str) -> String {
    format!("plimsoll:late:{node}")
}

fn done(same: &Same) -> String {
    format!("plimsoll:done:{}:{}:{:016x}", same.pool, same.key, same.print)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::process::{Child, Command, Stdio};
    use tokio::runtime::{Builder, LocalOptions};

    /// A real server, without a disk.
    struct Server {
        child: Child,
        url: String,
    }

    impl Server {
        #[allow(clippy::disallowed_methods, reason = "a test's own server, ended with it")]
        fn start() -> Self {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
            let child = Command::new("redis-server")
                .args([
                    "--port",
                    &port,
                    "--bind",
                    "127.0.0.1",
                    "--save",
                    "",
                    "--dir",
                    "/tmp",
                    "--requirepass",
                    "hunter2",
                ])
                .stdout(Stdio::null())
                .spawn();
            Self { child: child.unwrap(), url: format!("redis://:hunter2@127.0.0.1:{port}/1") }
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    /// Two machines at one server.
    fn with_two(work: impl AsyncFnOnce(Rc<Leases>, Rc<Leases>)) {
        let server = Server::start();
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let (one, other) = (Leases::new(&server.url).unwrap(), Leases::new(&server.url).unwrap());
            while one.beat().await.is_err() {
                sleep(SOONEST).await;
            }
            work(one, other).await;
        });
    }

    fn talk() -> Talk {
        ("bot".into(), "a:b c".into())
    }

    fn turn(text: &str) -> Vec<Message> {
        vec![Message::new(Role::User, text), Message::new(Role::Assistant, "ok")]
    }

    /// As if its time had passed.
    async fn run_out(leases: &Leases) {
        leases.ask::<()>(redis::cmd("HSET").arg(key("talk", &talk())).arg("till").arg(1)).await.unwrap();
    }

    #[test]
    fn only_the_newest_token_writes() {
        with_two(async |one, other| {
            let first = one.take(&talk()).await.unwrap();
            run_out(&one).await;
            let second = other.take(&talk()).await.unwrap();
            assert_eq!((first.version(), second.version()), (0, 0));
            assert!(first.commit(&turn("late"), false, None).await.is_err());
            // Whether it renews or not: it has nothing to renew.
            assert!(tokio::time::timeout(LEASE / 2, first.lost()).await.is_ok());
            assert_eq!(second.commit(&turn("in time"), false, None).await, Ok(1));
            drop((first, second));
            let third = one.take(&talk()).await.unwrap();
            assert_eq!((third.version(), third.said().await.unwrap()), (1, turn("in time")));
        });
    }

    #[test]
    fn the_same_commit_again_changes_nothing() {
        with_two(async |one, other| {
            let first = one.take(&talk()).await.unwrap();
            assert_eq!(first.commit(&turn("x"), false, None).await, Ok(1));
            assert_eq!(first.commit(&turn("x"), false, None).await, Ok(1));
            let second = other.take(&talk()).await.unwrap();
            assert_eq!(second.said().await.unwrap().len(), 2);
            // All of it anew.
            assert_eq!(second.commit(&turn("y"), true, None).await, Ok(2));
            assert_eq!(one.take(&talk()).await.unwrap().said().await.unwrap(), turn("y"));
        });
    }

    #[test]
    fn whoever_waits_is_next() {
        with_two(async |one, other| {
            let first = one.take(&talk()).await.unwrap();
            let waiting = async {
                let lease = other.take(&talk()).await.unwrap();
                lease.commit(&turn("other"), false, None).await.unwrap()
            };
            let greedy = async {
                // The other one has asked by now.
                sleep(LATEST * 3).await;
                first.commit(&turn("one"), false, None).await.unwrap();
                one.take(&talk()).await.unwrap().version()
            };
            assert_eq!(tokio::join!(waiting, greedy), (2, 2), "the one that asked first did not come first");
        });
    }

    #[test]
    fn a_lease_that_is_dropped_is_free_at_once() {
        with_two(async |one, other| {
            drop(one.take(&talk()).await.unwrap());
            let taken = tokio::time::timeout(LEASE / 2, other.take(&talk())).await;
            assert!(taken.is_ok_and(|taken| taken.is_ok()));
        });
    }

    #[test]
    fn a_long_one_keeps_what_is_new() {
        with_two(async |one, _| {
            for number in 0..6 {
                let said = [Message::new(Role::User, format!("{number} {}", "x".repeat(1 << 20)))];
                let lease = one.take(&talk()).await.unwrap();
                lease.commit(&said, false, None).await.unwrap();
                let kept = lease.said().await.unwrap();
                assert!(kept.iter().map(|one| one.content.len()).sum::<usize>() <= LONGEST);
                assert!(kept.last().unwrap().content.starts_with(&number.to_string()));
            }
        });
    }

    #[test]
    fn answers_and_messages_are_known_for_a_while() {
        with_two(async |one, other| {
            let same = Same { pool: "bot".into(), key: "a:b c".into(), print: 7 };
            assert_eq!(other.answered(&same).await, Ok(None));
            let usage = Usage { prompt_tokens: 3, completion_tokens: 4 };
            let lease = one.take(&talk()).await.unwrap();
            lease.commit(&turn("x"), false, Some((&same, "ok", Some(usage)))).await.unwrap();
            assert_eq!(other.answered(&same).await, Ok(Some(("ok".to_owned(), Some(usage)))));
            assert_eq!(other.answered(&Same { print: 8, ..same }).await, Ok(None));
            let id = "seen:bot:1";
            assert_eq!(one.is_first(id, LEASE).await, Ok(true));
            assert_eq!((other.is_first(id, LEASE).await, other.is_known(id).await), (Ok(false), Ok(true)));
            one.forget(id).await.unwrap();
            assert_eq!(other.is_first(id, LEASE).await, Ok(true));
        });
    }

    #[test]
    fn what_a_dead_machine_had_to_answer_is_inherited_once() {
        with_two(async |one, other| {
            assert_eq!(one.keep("1", "hello").await, Ok(true));
            assert_eq!(one.keep("2", "there").await, Ok(true));
            one.done("2").await.unwrap();
            one.beat().await.unwrap();
            other.beat().await.unwrap();
            assert_eq!(other.inherit().await, Ok(Vec::new()), "it lives");
            one.ask::<()>(redis::cmd("DEL").arg(format!("plimsoll:node:{}", one.node))).await.unwrap();
            assert_eq!(other.inherit().await, Ok(vec![("1".to_owned(), "hello".to_owned())]));
            assert_eq!(other.inherit().await, Ok(Vec::new()));
            other.ask::<()>(redis::cmd("DEL").arg(format!("plimsoll:node:{}", other.node))).await.unwrap();
            assert_eq!(
                one.inherit().await,
                Ok(vec![("1".to_owned(), "hello".to_owned())]),
                "it is not lost with the heir"
            );
            for number in 1..MOST_LATE {
                assert_eq!(one.keep(&format!("n{number}"), "x").await, Ok(true));
            }
            assert_eq!(one.keep("more", "x").await, Ok(false));
        });
    }

    #[test]
    fn what_is_wrong_is_told_without_the_password() {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let nobody = Leases::new(&format!("redis://u:hunter2@{closed}")).unwrap();
            let Cut(why) = nobody.beat().await.unwrap_err();
            assert!(!why.contains("hunter2") && !why.is_empty(), "{why}");
            assert!(nobody.take(&talk()).await.is_err());
        });
        assert!(Leases::new("no address:hunter2").is_err_and(|why| !why.contains("hunter2")));
        let server = Server::start();
        runtime.block_on(async {
            let wrong = Leases::new(&server.url.replace("hunter2", "hunter3")).unwrap();
            let mut cut = wrong.beat().await.unwrap_err();
            while cut.0.contains("refused") {
                sleep(SOONEST).await;
                cut = wrong.beat().await.unwrap_err();
            }
            assert!(!cut.0.contains("hunter"), "{}", cut.0);
        });
    }
}
