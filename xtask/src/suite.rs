//! What the test kit is asked to do, and how much of it.

use crate::test::Extent;

/// One of the test kit's subcommands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// The conformance suite: every promise of a boundary.
    Conform,
    /// Deaths whose cause is known, against the verdicts.
    Verdicts,
    /// The machine's own out-of-memory killer; only ever in a guest.
    HostOom,
    /// Random trees, of which nothing may survive.
    Survivors,
}

/// The seed of the part that CI runs, so that a failure there happens again here.
const SEED: &str = "20261124";

impl Suite {
    /// The test kit's arguments on a tier (`cgroup1`, `cgroup2`, `watchdog`).
    pub(crate) fn arguments(self, tier: &str, extent: Extent) -> Vec<String> {
        let count = |part: &'static str, whole: &'static str| match extent {
            Extent::Part => part,
            Extent::Whole => whole,
        };
        let words: &[&str] = match self {
            Self::Conform => &["conform", "--tier", tier],
            Self::Verdicts => &["inject", "--tier", tier, "--deaths", count("120", "1000"), "--seed", SEED],
            Self::HostOom => {
                &["inject", "--tier", tier, "--only", "host_oom", "--deaths", count("5", "50"), "--seed", SEED]
            }
            Self::Survivors => &["survive", "--tier", tier, "--trees", count("150", "2000"), "--seed", SEED],
        };
        words.iter().map(|&word| word.to_owned()).collect()
    }

    /// The memory of the guest that it runs in, in MiB.
    pub(crate) fn guest_memory_mib(self) -> u32 {
        match self {
            // All of it is filled again and again, slowly where the guest is emulated.
            Self::HostOom => 512,
            Self::Conform | Self::Verdicts | Self::Survivors => 1024,
        }
    }
}
