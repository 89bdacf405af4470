//! The project's own chores: `cargo xtask VERB`. One file a verb, and what they share beside them.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a tool for the terminal and nothing else")]

mod bench;
mod cpio;
mod deny;
mod docker;
mod exec;
mod furnish;
mod fuzz;
mod guest;
mod options;
mod packages;
mod peers;
mod place;
mod sim;
mod suite;
mod summary;
mod test;
mod workspace;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask VERB
  test [FAMILY…]     all tests, or those families whose names begin so; --list names them
  soak [FAMILY…]     the same with whole counts
  fuzz [TARGET…]     the parsers against made-up inputs: --runs N, --seconds N, --seed N, --replay FILE, --list
  sim                the stack's state machine against made-up machines: --seeds N, --seed S
  guest -- COMMAND   a command on a kernel of its own: --mode v2|v2-swap|v2-delegated|v1|hybrid, --memory MIB
  docker -- COMMAND  a command in an ordinary container with a memory limit of its own
  bench run|up|serve what `run`, `up` and pools cost, both sides measured in one run; --quick for a fifth of the rounds
  options            write docs/options.md, the options by tier, from the conformance suite
  packages           what tests and benchmarks need from Debian, and why; --install gets it";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (verb, rest) = args.split_first().map_or(("help", &[][..]), |(verb, rest)| (verb.as_str(), rest));
    let done = match verb {
        "test" => test::main(test::Extent::Part, rest),
        "soak" => test::main(test::Extent::Whole, rest),
        "fuzz" => fuzz::main(rest),
        "sim" => sim::main(rest),
        "bench" => bench::main(rest),
        "guest" => guest::main(rest),
        "docker" => docker::main(rest),
        "options" => options::main(),
        "packages" => packages::main(rest),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprintln!("xtask: unknown verb {other:?}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    done.unwrap_or_else(|why| {
        eprintln!("xtask: {why}");
        ExitCode::FAILURE
    })
}
