//! Answers that come later than their request: a room's message is acknowledged at once, and answered by a post.
//!
//! What was acknowledged is answered: who is refused for now asks again, in the room's order, and with Redis another machine
//! goes on with it when this one dies.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::api::{Api, now};
use crate::chat::{Message, Role};
use crate::desk::Denial;
use crate::leases::Leases;
use crate::poster;
use crate::secret::Secret;
use crate::serving::{Ask, BEAT};
use crate::tape::Failure;
use crate::webhook;

/// So many answers are on their way at most; one more message is refused, and may come again.
const MOST: usize = 256;

/// Who was refused a session asks again, so often at most, and after so long at most.
const TRIES: u32 = 20;
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What of a room's message is needed to answer it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Late {
    pool: String,
    room: String,
    /// The room's way, which has the bot's key in it.
    path: Option<String>,
    id: Option<String>,
    text: String,
}

/// Answers that are on their way.
#[derive(Default)]
pub(crate) struct Lates {
    /// By room: one after the other.
    rooms: RefCell<BTreeMap<String, Rc<Mutex<()>>>>,
    count: Cell<usize>,
    last: Cell<u64>,
    /// The Redis in which it is looked for what others leave behind.
    watched: RefCell<Option<Rc<Leases>>>,
}

impl Late {
    pub(crate) fn new(pool: &Arc<str>, message: &webhook::Message) -> Self {
        Self {
            pool: (**pool).to_owned(),
            room: message.room.clone(),
            path: message.path.as_ref().map(|path| path.expose().to_owned()),
            id: message.id.clone(),
            text: message.text.clone(),
        }
    }

    /// The turn that it is; `is_again` when it may have been answered before.
    pub(crate) fn ask(&self, is_again: bool) -> Ask {
        let mut hasher = DefaultHasher::new();
        self.id.hash(&mut hasher);
        Ask {
            pool: self.pool.as_str().into(),
            key: Some(format!("room-{}", self.room).into()),
            messages: vec![Message::new(Role::User, self.text.as_str())],
            instruction: None,
            is_streamed: false,
            is_aside: false,
            is_alone: false,
            // Without an id it is like no other.
            print: self.id.as_ref().map_or(0, |_| hasher.finish()),
            is_retry: is_again && self.id.is_some(),
            goes_on: true,
        }
    }
}

impl Api {
    /// Takes it upon itself to answer a message; false if it cannot now.
    pub(crate) async fn answer_later(self: &Rc<Self>, late: Late, address: Secret) -> bool {
        if self.late.count.get() >= MOST {
            return false;
        }
        let leases = self.turns.leases();
        let number = self.late.last.get() + 1;
        self.late.last.set(number);
        // In the order of their coming, on whichever machine.
        let id = leases.as_ref().map(|leases| format!("{:012}:{number:09}:{}", now(), leases.node()));
        let id = id.unwrap_or_default();
        if let Some(leases) = &leases
            && !matches!(leases.keep(&id, &serde_json::to_string(&late).unwrap_or_default()).await, Ok(true))
        {
            return false;
        }
        self.begin_late(late, id, address, false);
        true
    }

    fn begin_late(self: &Rc<Self>, late: Late, id: String, address: Secret, is_again: bool) {
        self.late.count.set(self.late.count.get() + 1);
        let api = self.clone();
        // Who came first is first in line, and its turn is asked for in the same order.
        let room = self.late.rooms.borrow_mut().entry(late.room.clone()).or_default().clone();
        tokio::task::spawn_local(async move {
            let line = room.lock();
            let is_over = api.reply(&late, &address, is_again, line).await;
            if is_over && let Some(leases) = api.turns.leases() {
                // What cannot be told now is told to nobody: at worst the answer is posted once more.
                let _ = leases.done(&id).await;
            }
            drop(room);
            // Where nobody else posts, the place is free.
            api.late.rooms.borrow_mut().retain(|_, lock| Rc::strong_count(lock) > 1);
            api.late.count.set(api.late.count.get() - 1);
        });
    }

    /// Posts an answer into its room once it is there. False if another machine should see to it.
    async fn reply(
        &self,
        late: &Late,
        address: &Secret,
        is_again: bool,
        line: impl Future<Output = tokio::sync::MutexGuard<'_, ()>>,
    ) -> bool {
        let Ok(mut reader) = self.turns.begin(late.ask(is_again)) else { return true };
        let _turn = line.await;
        let mut tries = 0;
        let text = loop {
            let wait = match reader.whole().await {
                Ok((text, _)) => break text,
                Err(Failure::Denied(Denial::Stopping)) => return false,
                Err(Failure::Denied(
                    Denial::Full(wait)
                    | Denial::Late(wait)
                    | Denial::Short(wait)
                    | Denial::Circuit(wait)
                    | Denial::Unproven(wait),
                )) if tries < TRIES => wait.min(LONGEST_WAIT),
                Err(_) => return true,
            };
            tries += 1;
            sleep(wait).await;
            match self.turns.begin(late.ask(true)) {
                Ok(again) => reader = again,
                Err(_) => return true,
            }
        };
        if let Some(text) = webhook::said(&text) {
            self.say(&late.room, text).await;
            poster::post(address, text).await;
        }
        true
    }

    /// With Redis: from now on messages that a machine has acknowledged and can no longer answer are answered here.
    pub(crate) fn look_for_orphans(self: &Rc<Self>) {
        let leases = self.turns.leases();
        let is_watched = match (&leases, &*self.late.watched.borrow()) {
            (Some(leases), Some(watched)) => Rc::ptr_eq(leases, watched),
            (None, _) => true,
            (Some(_), None) => false,
        };
        if is_watched {
            return;
        }
        self.late.watched.borrow_mut().clone_from(&leases);
        let Some(leases) = leases else { return };
        let api = self.clone();
        tokio::task::spawn_local(async move {
            while api.turns.leases().is_some_and(|now| Rc::ptr_eq(&now, &leases)) {
                for (id, text) in leases.inherit().await.unwrap_or_default() {
                    let late: Option<Late> = serde_json::from_str(&text).ok();
                    let base = api.campfire.borrow().clone();
                    match late.map(|late| (base.zip(late.path.clone()), late)) {
                        Some((Some((base, path)), late)) => {
                            api.begin_late(late, id, Secret::new(format!("{base}{path}")), true);
                        }
                        _ => drop(leases.done(&id).await),
                    }
                }
                sleep(BEAT).await;
            }
        });
    }
}
