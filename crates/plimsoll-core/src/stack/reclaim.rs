//! How much the kernel is asked to take from a tree (`memory.reclaim`): small steps, and rarer ones when they give little.

use std::time::Duration;

/// One step at most, bytes. The kernel works on a step for as long as it takes.
const STEP: u64 = 64 << 20;

/// Less than this is not worth asking for, bytes.
const CRUMB: u64 = 1 << 20;

/// Between two steps.
const SHORTEST: Duration = Duration::from_secs(5);

/// Between two steps that gave nothing.
const LONGEST: Duration = Duration::from_secs(80);

/// The reclaiming of one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reclaim {
    next: Duration,
    pause: Duration,
    /// What was held when it was asked last, and how much it was asked for.
    asked: Option<(u64, u64)>,
}

impl Reclaim {
    /// Judges a look of a tree that holds `usage` and should hold `wanted` bytes: how much to ask for, if at all.
    pub fn look(&mut self, now: Duration, usage: u64, wanted: u64) -> Option<u64> {
        let excess = usage.saturating_sub(wanted);
        if excess < CRUMB {
            *self = Self { next: self.next, ..Self::default() };
            return None;
        }
        if now < self.next {
            return None;
        }
        // A tenth of what was asked for is little: what it holds is in use, and pushing it out again and again only makes
        // it slow.
        let gave_little = self.asked.is_some_and(|(held, bytes)| held.saturating_sub(usage) < bytes / 10);
        self.pause = if gave_little { (self.pause * 2).min(LONGEST) } else { SHORTEST };
        let bytes = excess.min(STEP);
        self.asked = Some((usage, bytes));
        self.next = now + self.pause;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn rarer_when_it_gives_little() {
        let mut reclaim = Reclaim::default();
        let asked: Vec<u64> =
            (0..400).filter(|&s| reclaim.look(Duration::from_secs(s), 100 * MIB, 90 * MIB) == Some(10 * MIB)).collect();
        assert_eq!(asked, [0, 5, 15, 35, 75, 155, 235, 315, 395]);
    }

    #[test]
    fn in_steps_while_it_gives() {
        let mut reclaim = Reclaim::default();
        let mut held = 300 * MIB;
        let mut steps = 0;
        for s in 0..60 {
            if let Some(bytes) = reclaim.look(Duration::from_secs(s), held, 90 * MIB) {
                assert!(bytes <= STEP);
                held -= bytes;
                steps += 1;
            }
        }
        assert_eq!((held, steps), (90 * MIB, 4));
        assert_eq!(reclaim.look(Duration::from_secs(99), 90 * MIB, 90 * MIB), None);
    }
}
