//! What events teach beyond one life of the supervisor: counters, peaks, and who was stopped on request.
//!
//! The memory is a fold over events: the same for those that happen and for those that are read back from a journal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::event::{Event, Reason};
use super::input::Remembered;
use super::name::Name;

/// So many of the last peaks are kept.
const PEAKS: usize = 8;

/// What is known of all services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    services: BTreeMap<Name, Known>,
}

/// What is known of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    restarts: u64,
    oom_kills: u64,
    peaks: Vec<u64>,
    stopped: bool,
}

impl Memory {
    /// Takes in one event. Answers whether it changed anything.
    pub fn hear(&mut self, event: &Event) -> bool {
        match event {
            Event::Restarting { instance, .. } => self.known(&instance.service).restarts += 1,
            Event::Ended { instance, oom_kills, peak_bytes, .. } => {
                let known = self.known(&instance.service);
                known.oom_kills += oom_kills;
                known.peaks.push(*peak_bytes);
                let old = known.peaks.len().saturating_sub(PEAKS);
                known.peaks.drain(..old);
            }
            Event::Stopping { instance, reason: Reason::Stopped, .. } => self.known(&instance.service).stopped = true,
            Event::Starting { instance, .. } => self.known(&instance.service).stopped = false,
            _ => return false,
        }
        true
    }

    /// Forgets all services but these.
    pub fn keep(&mut self, is_known: impl Fn(&str) -> bool) {
        self.services.retain(|name, _| is_known(name));
    }

    /// For [`super::Input::Remember`].
    #[must_use]
    pub fn remembered(&self) -> Vec<Remembered> {
        self.services
            .iter()
            .map(|(name, known)| Remembered {
                service: name.clone(),
                restarts: known.restarts,
                oom_kills: known.oom_kills,
                peaks: known.peaks.clone(),
                stopped: known.stopped,
            })
            .collect()
    }

    fn known(&mut self, service: &Name) -> &mut Known {
        self.services.entry(service.clone()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Instance;
    use plimsoll_model::Cause;

    fn instance() -> Instance {
        Instance { service: "api".into(), replica: 1, generation: 3 }
    }

    fn ended(peak_bytes: u64, oom_kills: u64) -> Event {
        Event::Ended {
            instance: instance(),
            cause: Cause::MemoryLimit,
            code: None,
            signal: Some(9),
            runtime_ms: 5,
            peak_bytes,
            freed_bytes: 1,
            oom_kills,
        }
    }

    #[test]
    fn counters_go_on_and_peaks_are_the_last_ones() {
        let mut memory = Memory::default();
        for peak in 1..=10 {
            assert!(memory.hear(&ended(peak, 2)));
        }
        let restarting = Event::Restarting {
            instance: instance(),
            attempt: 1,
            max_attempts: Some(3),
            delay_ms: 0,
            cause: Cause::MemoryLimit,
        };
        assert!(memory.hear(&restarting));
        assert!(!memory.hear(&Event::GoingDown));
        let read: Memory = serde_json::from_str(&serde_json::to_string(&memory).unwrap()).unwrap();
        assert_eq!(read, memory);
        let all = read.remembered();
        assert_eq!((all.len(), all[0].restarts, all[0].oom_kills), (1, 1, 20));
        assert_eq!(all[0].peaks, (3..=10).collect::<Vec<u64>>());
    }

    #[test]
    fn stopped_on_request_until_started_again() {
        let mut memory = Memory::default();
        memory.hear(&Event::Stopping { instance: instance(), reason: Reason::Stopped, grace_ms: 1 });
        assert!(memory.remembered()[0].stopped);
        memory.hear(&Event::Stopping { instance: instance(), reason: Reason::Down, grace_ms: 1 });
        assert!(memory.remembered()[0].stopped);
        memory.hear(&Event::Starting { instance: instance(), attempt: 0, max_attempts: None, claim_bytes: 1 });
        assert!(!memory.remembered()[0].stopped);
        memory.keep(|name| name != "api");
        assert!(memory.remembered().is_empty());
    }
}
