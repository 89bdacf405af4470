//! Seeds against the core as it is, and against a core with one rule broken.

use plimsoll_sim::{Options, Rule, run};

/// Every `cargo test` runs so many; `cargo xtask sim` runs more.
const SEEDS: u64 = 200;

/// A broken rule is found within so many.
const MUTANT_SEEDS: u64 = 400;

fn broken(rule: Rule) -> Options {
    Options { broken: Some(rule), ..Options::default() }
}

#[test]
fn every_rule_holds() {
    for seed in 0..SEEDS {
        if let Err(failure) = run(seed, Options::default()) {
            let again = run(seed, Options { trace: true, ..Options::default() });
            panic!("{}", again.expect_err(&failure.to_string()));
        }
    }
}

#[test]
fn a_light_step_comes_to_the_same_as_a_whole_one() {
    let mut light = 0;
    for seed in 0..SEEDS {
        match run(seed, Options { both_ways: true, ..Options::default() }) {
            Ok(report) => light += report.light_steps,
            Err(failure) => panic!("{failure}"),
        }
    }
    assert!(light > 0, "none was light");
}

#[test]
fn a_seed_gives_its_run_again() {
    for seed in 0..20 {
        assert_eq!(
            run(seed, Options::default()),
            run(seed, Options { trace: true, ..Options::default() }),
            "seed {seed}"
        );
    }
    assert_ne!(run(1, Options::default()), run(2, Options::default()));
}

/// What no broken rule would let pass unseen: each is found, under its own name.
#[test]
fn every_broken_rule_is_found() {
    let mut unseen = Vec::new();
    for rule in Rule::ALL {
        let found = (0..MUTANT_SEEDS).find_map(|seed| run(seed, broken(rule)).err());
        match found {
            None => unseen.push(rule),
            Some(failure) => {
                println!(
                    "{rule:?}: seed {}, step {}: {}: {}",
                    failure.seed, failure.step, failure.rule, failure.detail
                );
                assert_eq!(failure.rule, name_of(rule), "{rule:?} is found as something else: {failure}");
                let again = run(failure.seed, broken(rule)).expect_err("the same seed fails again");
                assert_eq!((again.step, again.at, &again.detail), (failure.step, failure.at, &failure.detail));
            }
        }
    }
    assert!(unseen.is_empty(), "{unseen:?} broken, and nobody sees it within {MUTANT_SEEDS} seeds");
}

/// As what a broken rule is seen.
fn name_of(rule: Rule) -> &'static str {
    match rule {
        Rule::Budget => "budget",
        Rule::Receipt => "one victim at a time",
        Rule::CriticalLast => "critical last",
        Rule::RestartCount | Rule::Delay => "restarts",
        Rule::MinAvailable => "min_available",
        Rule::Dependencies => "dependencies",
        Rule::ReverseOrder => "stop order",
        Rule::LateStart | Rule::Wakeup => "liveness",
        Rule::EndTold => "every end is told",
        Rule::Grace => "grace",
        Rule::OneProcess => "sessions",
    }
}
