//! A tree that sits at its line and gets nowhere.
//!
//! At the line the kernel first drops file pages, the tree's own program among them. While those can be read again it
//! sees progress and kills nobody: the tree re-reads its code page by page, the disk is busy, and nothing moves, for
//! hours. A full page cache looks alike and is harmless. Three signs together tell the two apart: usage at the line,
//! little of it files, and the tree's processes waiting for memory all at once (`full` of the group's pressure, see the
//! kernel's `Documentation/accounting/psi.rst`):
//!
//! | left for files | waiting |
//! |---|---|
//! | up to 15 % of the line | nearly all of the time |
//! | next to nothing, and no swap to go to | a fifth of the time |
//!
//! The second row is a tree of many processes: one of them always has its page for the moment, so that seldom all wait
//! at once, and yet there is no memory that anybody could be given.

use std::time::Duration;

use plimsoll_model::Strain;

/// How long it has to last.
const LASTING: Duration = Duration::from_secs(5);

/// Anonymous memory that leaves too little for the program itself: this share of the line, in hundredths.
const ANONYMOUS_PERCENT: u64 = 85;

/// Waiting for this share of the time is getting nowhere, in hundredths.
const STALLED_PERCENT: u32 = 80;

/// Files that hold less than this share of the line, in hundredths, are what programs run from at the moment.
const BARE_PERCENT: u64 = 3;

/// Waiting for this share of the time is getting nowhere when the tree is bare, in hundredths.
const BARE_STALLED_PERCENT: u32 = 20;

/// Watches for it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Thrash {
    window: Option<Window>,
}

/// Looks that all found little left for files.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// When it began, since the start.
    since: Duration,
    /// The time waited by then.
    stalled: Duration,
    /// Whether all of its looks found next to nothing left.
    bare: bool,
}

impl Thrash {
    /// Whether this usage is close enough to the line to ask further.
    #[must_use]
    pub fn is_close(usage: u64, line: u64) -> bool {
        usage + (line / 64).max(1 << 20) >= line
    }

    /// Judges one look at `now` since the start; `strain` is `None` when usage is not close to the line. Answers whether
    /// the tree has got nowhere for long enough.
    pub fn look(&mut self, now: Duration, line: u64, may_swap: bool, strain: Option<Strain>) -> bool {
        let bare = |strain: &Strain| !may_swap && strain.file_bytes <= line / 100 * BARE_PERCENT;
        let full = |strain: &Strain| strain.anonymous_bytes >= line / 100 * ANONYMOUS_PERCENT;
        let Some(strain) = strain.filter(|strain| full(strain) || bare(strain)) else {
            self.window = None;
            return false;
        };
        let fresh = Window { since: now, stalled: strain.stalled, bare: bare(&strain) };
        let Some(window) = &mut self.window else {
            self.window = Some(fresh);
            return false;
        };
        window.bare &= fresh.bare;
        let lasted = now.saturating_sub(window.since);
        if lasted < LASTING {
            return false;
        }
        let stalled = strain.stalled.saturating_sub(window.stalled);
        let enough = if window.bare { BARE_STALLED_PERCENT } else { STALLED_PERCENT };
        // The window starts over, so that what was once does not count for ever.
        self.window = Some(fresh);
        stalled * 100 >= lasted * enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: u64 = 100 << 20;

    fn strain(anonymous: u64, file: u64, stalled: Duration) -> Strain {
        Strain { anonymous_bytes: anonymous, file_bytes: file, stalled }
    }

    /// A look every 500 ms at a tree of which so many hundredths are anonymous and files, and that waits so much.
    fn told(anonymous: u64, file: u64, may_swap: bool, stalled_percent: u32, looks: u32) -> bool {
        let mut thrash = Thrash::default();
        (0..looks).any(|n| {
            let now = Duration::from_millis(500) * n;
            let seen = strain(LINE / 100 * anonymous, LINE / 100 * file, now * stalled_percent / 100);
            thrash.look(now, LINE, may_swap, Some(seen))
        })
    }

    #[test]
    fn only_all_three_signs_together() {
        assert!(told(90, 10, false, 95, 12));
        assert!(!told(90, 10, false, 95, 10), "not yet long enough");
        assert!(!told(90, 10, false, 50, 100), "it waits and works");
        assert!(!told(50, 50, false, 95, 100), "page cache fills the rest");
        assert!(Thrash::is_close(LINE - 4096, LINE) && !Thrash::is_close(LINE / 2, LINE));
    }

    /// As measured of node and a browser at 700 MiB, which went on so for a minute.
    #[test]
    fn many_processes_seldom_wait_all_at_once() {
        assert!(told(96, 1, false, 29, 12));
        assert!(told(60, 1, false, 29, 12), "shared memory fills it as well");
        assert!(!told(96, 1, false, 10, 100), "it gets on");
        assert!(!told(96, 1, true, 29, 100), "it goes into swap, as it may");
        assert!(!told(92, 6, false, 29, 100), "there is something to give");
    }

    #[test]
    fn room_for_a_moment_counts() {
        let mut thrash = Thrash::default();
        for n in 0..100 {
            let now = Duration::from_millis(500) * n;
            let file = if n % 9 == 0 { LINE / 10 } else { 0 };
            assert!(!thrash.look(now, LINE, false, Some(strain(LINE / 10 * 9, file, now * 3 / 10))));
        }
    }

    #[test]
    fn a_moment_below_the_line_starts_over() {
        let mut thrash = Thrash::default();
        for n in 0..90 {
            let now = Duration::from_millis(500) * n;
            assert!(!thrash.look(now, LINE, false, (n % 9 != 0).then_some(strain(LINE, 0, now))));
        }
    }
}
