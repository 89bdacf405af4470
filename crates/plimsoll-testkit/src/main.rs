//! Drives a built `plimsoll` from outside, as its users do, and checks what the contract promises.
//!
//! One static binary, so that it also runs where there is nothing else: in a guest with a bare kernel, in an empty
//! container. It is its own workload (`work …`): hogs, fork bombs, daemons, trees of random shape.
//!
//! ```text
//! plimsoll-testkit conform   --plimsoll PATH --tier cgroup1|cgroup2|watchdog [--filter TEXT] [--list] [--table]
//! plimsoll-testkit survive   --plimsoll PATH --tier T --trees N --seed S
//! plimsoll-testkit inject    --plimsoll PATH --tier T --deaths N --seed S [--guest] [--only CAUSE]
//! plimsoll-testkit stack     --plimsoll PATH --tier T [--filter TEXT] [--list]
//! plimsoll-testkit serve     --plimsoll PATH --tier T [--filter TEXT] [--list]
//! plimsoll-testkit chaos     --plimsoll PATH --tier T --seconds N --seed S [--instants N]
//! plimsoll-testkit overshoot --plimsoll PATH [--line 256m] [--runs N] [--procs N] [--after 10s]
//! plimsoll-testkit work      WORKLOAD …
//! plimsoll-testkit agent     --protocol claude|jsonl|exec …
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program of the tests")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on ends by saying where"
)]

mod agent;
mod chaos;
mod conform;
mod harness;
mod http;
mod inject;
mod overshoot;
mod serve;
mod stack;
mod survive;
mod work;

use std::process::ExitCode;

use harness::Options;
use plimsoll_kernel::signal;
use rustix::process::Signal;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let verb = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let suite = match verb.as_str() {
        "work" => return work::run(&rest),
        "agent" => return agent::run(&rest),
        "conform" => conform::run,
        "survive" => survive::run,
        "inject" => inject::run,
        "stack" => stack::run,
        "serve" => serve::run,
        "chaos" => chaos::run,
        "overshoot" => overshoot::run,
        _ => {
            eprintln!("usage: plimsoll-testkit conform|survive|inject|stack|serve|chaos|overshoot|work|agent …");
            return ExitCode::from(2);
        }
    };
    hear_as_a_shell_has_it();
    let options = Options::parse(&rest);
    let code = suite(&options);
    if code == ExitCode::SUCCESS {
        // After a failure it stays, for whoever looks into that.
        let _ = std::fs::remove_dir_all(&options.scratch);
    }
    code
}

/// Nobody whom we start ignores a signal because we were started so, as by `nohup` or behind `&` in a script: plimsoll hands
/// that on, and what a signal does is what many tests are about. (Of SIGPIPE, and of a mask, std frees whomever it starts.)
fn hear_as_a_shell_has_it() {
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM] {
        signal::reset(signal.as_raw());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_we_start_hears_every_signal() {
        let heard = |signal: i32| {
            let done =
                harness::command("/bin/sh").args(["-c", &format!("kill -{signal} $$; exit 7")]).status().unwrap();
            std::os::unix::process::ExitStatusExt::signal(&done) == Some(signal)
        };
        let numbers = [Signal::HUP, Signal::INT, Signal::QUIT].map(Signal::as_raw);
        numbers.into_iter().for_each(signal::ignore);
        assert_eq!(numbers.map(heard), [false; 3], "as under nohup");
        hear_as_a_shell_has_it();
        assert_eq!(numbers.map(heard), [true; 3]);
    }
}
