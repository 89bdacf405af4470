//! A tree that sits at its line and gets nowhere.
//!
//! At the line the kernel first drops file pages, the tree's own program among them. While those can be read again it
//! sees progress and kills nobody: the tree re-reads its code page by page, the disk is busy, and nothing moves, for
//! hours. A full page cache looks alike and is harmless; three signs together tell the two apart: usage at the line,
//! nearly all of it anonymous, and all of the tree's processes waiting for memory nearly all of the time (`full` of the
//! group's pressure, see the kernel's `Documentation/accounting/psi.rst`).

use std::time::Duration;

/// How long it has to last.
const LASTING: Duration = Duration::from_secs(5);

/// Anonymous memory that leaves too little for the program itself: this share of the line, in hundredths.
const ANONYMOUS_PERCENT: u64 = 85;

/// Waiting for this share of the time is getting nowhere, in hundredths.
const STALLED_PERCENT: u32 = 80;

/// Watches for it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Thrash {
    /// When the window began, since the start, and the time waited by then.
    since: Option<(Duration, Duration)>,
}

impl Thrash {
    /// Whether this usage is close enough to the line to ask further.
    #[must_use]
    pub fn is_close(usage: u64, line: u64) -> bool {
        usage + (line / 64).max(1 << 20) >= line
    }

    /// Judges one look at `now` since the start; `strain` is anonymous bytes and the time waited so far, `None` when usage
    /// is not close to the line. Answers whether the tree has got nowhere for long enough.
    pub fn look(&mut self, now: Duration, line: u64, strain: Option<(u64, Duration)>) -> bool {
        let Some((_, stalled)) = strain.filter(|(anonymous, _)| *anonymous >= line / 100 * ANONYMOUS_PERCENT) else {
            self.since = None;
            return false;
        };
        let Some((since, before)) = self.since else {
            self.since = Some((now, stalled));
            return false;
        };
        let lasted = now.saturating_sub(since);
        if lasted < LASTING {
            return false;
        }
        // The window starts over, so that what was once does not count for ever.
        self.since = Some((now, stalled));
        stalled.saturating_sub(before) * 100 >= lasted * STALLED_PERCENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: u64 = 100 << 20;

    fn told(anonymous: u64, stalled_percent: u32, looks: u32) -> bool {
        let mut thrash = Thrash::default();
        (0..looks).any(|n| {
            let now = Duration::from_millis(500) * n;
            thrash.look(now, LINE, Some((anonymous, now * stalled_percent / 100)))
        })
    }

    #[test]
    fn only_all_three_signs_together() {
        assert!(told(LINE / 10 * 9, 95, 12));
        assert!(!told(LINE / 10 * 9, 95, 10), "not yet long enough");
        assert!(!told(LINE / 10 * 9, 50, 100), "it waits and works");
        assert!(!told(LINE / 2, 95, 100), "page cache fills the rest");
        assert!(Thrash::is_close(LINE - 4096, LINE) && !Thrash::is_close(LINE / 2, LINE));
    }

    #[test]
    fn a_moment_below_the_line_starts_over() {
        let mut thrash = Thrash::default();
        for n in 0..90 {
            let now = Duration::from_millis(500) * n;
            assert!(!thrash.look(now, LINE, (n % 9 != 0).then_some((LINE, now))));
        }
    }
}
