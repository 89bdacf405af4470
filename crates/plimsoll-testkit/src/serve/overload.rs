//! Ten times the load that the budget can hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use plimsoll_kernel::clock::Instant;

use super::scene::{Client, POOL, Scene, refused, said};
use crate::stack::world::{Check, ensure};

/// Sessions that the pool may have: far more than the budget has room for.
const MOST: usize = 60;

/// So many ask at once.
const CROWD: usize = 80;

/// Whoever is refused comes again after this, whatever it was told: the load stays what it is.
const AGAIN: Duration = Duration::from_secs(1);

/// Nobody is killed for memory, everybody is answered or refused in good order, and as much is answered as when just those
/// ask whom the budget has room for.
pub(super) fn ten_times_what_fits(scene: &mut Scene) -> Check {
    if scene.is_guest {
        return scene.world.leave_out("where all is emulated the processor is what bounds it, not the budget");
    }
    super::watchdogs::script(scene, r#"{"start": ["!leak 45m"], "every": ["!peak 10m", "!sleep 300ms"]}"#);
    let keys = format!("mem_limit: 128m, max_sessions: {MOST}, reuse: any, queue: {{ max: 16, timeout: 3s }}, ");
    scene.up_with("jsonl", ", --script, $DIR/script.json", &keys, MOST)?;
    // Until it is known what a turn costs, and all who fit are there.
    let first = Crowd::gather(scene.client, CROWD);
    first.answers_in(Duration::from_secs(5), || {});
    first.leave()?;
    let (mut admitted, mut under_flood, mut alone, mut refusals) = (0, 0, 0, 0);
    // By turns, so that whatever else the machine does hits both.
    for _ in 0..3 {
        let flood = Crowd::gather(scene.client, CROWD);
        flood.answers_in(Duration::from_secs(1), || {});
        under_flood += flood.answers_in(Duration::from_secs(5), || {
            admitted = admitted.max(scene.pool()["busy"].as_u64().unwrap_or(0) as usize);
        });
        refusals += flood.leave()?;
        ensure!(admitted > 0 && admitted * 5 <= CROWD, "{admitted} at once: {CROWD} are no overload");
        scene.until_pool("all is quiet", |pool| pool["busy"] == 0 && pool["queued"] == 0)?;
        let fitting = Crowd::gather(scene.client, admitted);
        fitting.answers_in(Duration::from_secs(1), || {});
        alone += fitting.answers_in(Duration::from_secs(5), || {
            // As under the flood: whoever looks costs the same in both.
            scene.pool();
        });
        fitting.leave()?;
    }
    ensure!(refusals > 0, "nobody was refused");
    println!(
        "     {admitted} admitted: {under_flood} answers under {CROWD} who ask, {alone} under {admitted}; {refusals} refusals"
    );
    ensure!(
        under_flood * 10 >= alone * 9,
        "{under_flood} answers under ten times the load, {alone} under just what fits"
    );
    let killed = scene.world.events_of("ended", POOL);
    let for_memory: Vec<_> = killed.iter().filter(|row| row["cause"].as_str().is_none_or(is_of_memory)).collect();
    ensure!(for_memory.is_empty(), "{for_memory:?}");
    Ok(())
}

fn is_of_memory(cause: &str) -> bool {
    matches!(cause, "memory_limit" | "memory_limit_parent" | "host_oom")
}

/// Many who ask again and again.
struct Crowd {
    over: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    askers: Vec<JoinHandle<Result<u64, String>>>,
}

impl Crowd {
    fn gather(client: Client, count: usize) -> Self {
        let (over, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let asker = |_| {
            let (over, answers) = (over.clone(), answers.clone());
            std::thread::spawn(move || {
                let mut refusals = 0;
                while !over.load(Relaxed) {
                    let reply = client.ask(None, "x")?;
                    if reply.status == 429 {
                        refused(&reply, 429)?;
                        refusals += 1;
                        std::thread::sleep(AGAIN);
                    } else {
                        said(&reply)?;
                        answers.fetch_add(1, Relaxed);
                    }
                }
                Ok(refusals)
            })
        };
        let askers = (0..count).map(asker).collect();
        Self { over, answers, askers }
    }

    /// How many are answered within some time; somebody looks meanwhile.
    fn answers_in(&self, time: Duration, mut look: impl FnMut()) -> u64 {
        let (began, before) = (Instant::now(), self.answers.load(Relaxed));
        while began.elapsed() < time {
            look();
            std::thread::sleep(Duration::from_millis(50));
        }
        self.answers.load(Relaxed) - before
    }

    /// Everybody goes: how many refusals there were.
    fn leave(self) -> Result<u64, String> {
        self.over.store(true, Relaxed);
        let ends = self.askers.into_iter().map(|asker| asker.join().map_err(|_| "an asker broke off".to_owned())?);
        ends.sum()
    }
}
