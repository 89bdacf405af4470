//! What the test kit is asked to do, and how much of it.

use crate::place::Place;
use crate::test::Extent;

/// One of the test kit's subcommands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suite {
    /// The conformance suite: every promise of a boundary.
    Conform,
    /// Deaths whose cause is known, against the verdicts.
    Verdicts,
    /// Random trees, of which nothing may survive.
    Survivors,
    /// Stacks of services (`up`), a promise a case.
    Stack,
    /// Pools of agents behind the gateway, a promise a case.
    Serve,
    /// A stack in which everything is killed at random, plimsoll too.
    Chaos,
}

/// The seed of the part that CI runs, so that a failure there happens again here.
pub(crate) const SEED: u64 = 20_261_124;

impl Suite {
    /// The test kit's arguments in a place that gives this tier (`cgroup1`, `cgroup2`, `watchdog`).
    pub(crate) fn arguments(self, tier: &str, place: Place, extent: Extent) -> Vec<String> {
        let count = |part: &'static str, whole: &'static str| match extent {
            Extent::Part => part,
            Extent::Whole => whole,
        };
        let seed = SEED.to_string();
        let mut words: Vec<&str> = match self {
            Self::Conform => vec!["conform", "--tier", tier],
            Self::Verdicts => vec!["inject", "--tier", tier, "--deaths", count("120", "1000"), "--seed", &seed],
            Self::Stack => vec!["stack", "--tier", tier],
            Self::Serve => vec!["serve", "--tier", tier],
            // Two minutes, and an hour in the soak; half of that where all of it is emulated.
            Self::Chaos => {
                let seconds = if matches!(place, Place::Guest(_)) { count("60", "1800") } else { count("120", "3600") };
                vec![
                    "chaos",
                    "--tier",
                    tier,
                    "--seconds",
                    seconds,
                    "--seed",
                    &seed,
                    "--instants",
                    count("1000", "10000"),
                ]
            }
            Self::Survivors => vec!["survive", "--tier", tier, "--trees", count("150", "2000"), "--seed", &seed],
        };
        // Verdicts: the machine's own out-of-memory killer too, this machine is made for it. Pools: no overload, see there.
        if matches!(self, Self::Verdicts | Self::Serve) && matches!(place, Place::Guest(_)) {
            words.push("--guest");
        }
        words.into_iter().map(str::to_owned).collect()
    }

    /// The memory of the guest that it runs in, in MiB.
    pub(crate) fn guest_memory_mib(self) -> u32 {
        match self {
            // All of it is filled again and again, slowly where the guest is emulated.
            Self::Verdicts => 512,
            Self::Conform | Self::Survivors | Self::Stack | Self::Serve | Self::Chaos => 1024,
        }
    }

    /// Whether some failures are allowed, as the suite's own exit code then says.
    pub(crate) fn has_a_bound(self) -> bool {
        self == Self::Verdicts // at least 99 % right, none wrong that is certain
    }
}
