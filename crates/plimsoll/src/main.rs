//! `plimsoll`: parses what was typed, hands it to the room that does it, prints what comes back.
//!
//! [`cli`] is what was typed and what it means, [`verb`] has one file for each verb, [`render`] turns certificates into text
//! without printing it, [`columns`] lays out tables, [`tone`] says what is loud, [`output`] prints.

mod cli;
mod columns;
mod fault;
mod output;
mod render;
mod tone;
mod verb;

use std::process::ExitCode;

use cli::Verb;
use plimsoll_gateway::control::Command;
use plimsoll_store::Paths;

fn main() -> ExitCode {
    let verb = match cli::parse(std::env::args_os()) {
        Ok(verb) => verb,
        Err(ended) => return ended,
    };
    let paths = paths(&verb);
    sweep(&paths);
    let done = match verb {
        Verb::Run(args) => verb::run::main(&args, &paths),
        Verb::Explain(args) => verb::explain::main(&args, &paths),
        Verb::Doctor(args) => Ok(verb::doctor::run(&args)),
        Verb::Health(args) => verb::health::run(&args),
        Verb::Check(args) => verb::check::main(&args),
        Verb::Schema(_) => Ok(verb::schema::main()),
        Verb::Init(args) => verb::init::main(&args),
        Verb::Shim(args) => verb::shim::main(&args),
        Verb::Up(args) => verb::up::up_main(&args, &paths),
        Verb::Down(_) => verb::control::down(&paths),
        Verb::Status(args) => verb::status::status(&args, &paths),
        Verb::Ps(args) => verb::status::ps(&args, &paths),
        Verb::Top(args) => verb::top::main(&args, &paths),
        Verb::Logs(args) => verb::control::logs(&args, &paths),
        Verb::Events(args) => verb::events::events(&args, &paths),
        Verb::Restart(args) => verb::control::tell(&paths, &Command::Restart(args.name)),
        Verb::Stop(args) => verb::control::tell(&paths, &Command::Stop(args.name)),
        Verb::Start(args) => verb::control::tell(&paths, &Command::Start(args.name)),
        Verb::Scale(args) => verb::control::scale(&args, &paths),
        Verb::Completions(args) => verb::completions::main(&args),
        Verb::Man(args) => verb::man::main(&args),
    };
    done.unwrap_or_else(|fault| fault.report())
}

/// Where everything lies: as the environment has it, unless another plimsoll started this one for its own purposes.
fn paths(verb: &Verb) -> Paths {
    match verb {
        Verb::Run(args) if let [state, runtime] = args.kept.as_slice() => Paths::named(state, runtime),
        _ => Paths::from_env(),
    }
}

/// What killed plimsolls left behind is ended first, whatever is asked for. Without a runtime directory there is none.
fn sweep(paths: &Paths) {
    if !paths.check_runtime().unwrap_or(false) {
        return;
    }
    // A directory that cannot be made is reported by the verb that needs it; the certificates of what is swept are then
    // lost, and the sweep is not.
    let state = paths.make_state().unwrap_or(paths.state());
    match plimsoll_runtime::sweep(paths.runtime(), state) {
        Ok(swept) => {
            for one in swept {
                let trouble = one.trouble.map(|trouble| format!("; {trouble}")).unwrap_or_default();
                output::error(&format!(
                    "plimsoll: note: {}: its plimsoll had been killed; swept {} processes{trouble}",
                    one.name, one.ended
                ));
            }
        }
        Err(error) => output::error(&format!("plimsoll: warning: leftovers were not looked for: {error}")),
    }
}
