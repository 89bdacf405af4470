//! Seeds against the core as it is, and against a core with one rule broken.

use plimsoll_sim::{Options, Rule, run};

/// Every change runs so many here; `cargo xtask sim` runs more.
const SEEDS: u64 = 300;

#[test]
fn every_rule_holds() {
    for seed in 0..SEEDS {
        if let Err(failure) = run(seed, Options::default()) {
            let again = run(seed, Options { trace: true, ..Options::default() });
            panic!("{}", again.expect_err(&failure.to_string()));
        }
    }
}
