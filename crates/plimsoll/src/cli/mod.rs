//! What was typed. Values stay text here; what they mean is decided beside each verb's arguments ([`run`]).

pub(crate) mod run;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::fault::{Fault, USAGE};

pub(crate) use run::RunArgs;

use crate::verb::check::CheckArgs;
use crate::verb::control::{DownArgs, LogsArgs, RestartArgs, ScaleArgs, StartArgs, StopArgs};
use crate::verb::doctor::DoctorArgs;
use crate::verb::events::EventsArgs;
use crate::verb::health::HealthArgs;
use crate::verb::init::InitArgs;
use crate::verb::schema::SchemaArgs;
use crate::verb::shim::ShimArgs;
use crate::verb::status::{PsArgs, StatusArgs};
use crate::verb::top::TopArgs;
use crate::verb::up::UpArgs;

/// Owns every process tree it starts, holds each inside its memory line, and explains every death.
#[derive(Debug, Parser)]
#[command(
    name = "plimsoll",
    version,
    max_term_width = 80,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    after_help = "Examples:
  plimsoll run -m 512m -- python3 app.py   hold a program at 512 MiB
  plimsoll explain                         why did the last one end?
  plimsoll doctor                          what does this machine give us?

Exit codes: 0 fine, 1 the operation failed, 2 usage; `run` adds its own
(plimsoll run --help)."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(Box<RunArgs>),
    Explain(ExplainArgs),
    Doctor(DoctorArgs),
    Health(HealthArgs),
    Check(CheckArgs),
    Schema(SchemaArgs),
    Init(InitArgs),
    Up(UpArgs),
    Down(DownArgs),
    Status(StatusArgs),
    Ps(PsArgs),
    Top(TopArgs),
    Logs(LogsArgs),
    Events(EventsArgs),
    Restart(RestartArgs),
    Stop(StopArgs),
    Start(StartArgs),
    Scale(ScaleArgs),
    Shim(ShimArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Say why a tree ended
///
/// Shows the death certificate of a run: its cause and how sure that is, the evidence, its memory in the last minute, the
/// largest processes at the end, and advice. Normal ends have certificates too.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  plimsoll explain                   the run that ended last
  plimsoll explain api               the last run of that name
  plimsoll explain 06f3k2            by the beginning of its id
  plimsoll explain --list            the latest runs, a line each
  plimsoll explain api --json        for scripts

Exit code: 0 shown, 1 there is no such certificate.")]
pub(crate) struct ExplainArgs {
    /// A run's name, the beginning of its id, or `last`; with --list, a name
    #[arg(value_name = "NAME|ID|last")]
    pub(crate) which: Option<String>,
    /// Print JSON: the certificate, or with --list one object a line
    #[arg(long)]
    pub(crate) json: bool,
    /// List the latest certificates, newest first
    #[arg(long)]
    pub(crate) list: bool,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  plimsoll completions bash > /etc/bash_completion.d/plimsoll
  plimsoll completions zsh > ~/.zfunc/_plimsoll
  plimsoll completions fish > ~/.config/fish/completions/plimsoll.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Print the manual page, or write all of them into a directory
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  plimsoll man | man -l -
  plimsoll man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// Directory for plimsoll.1, plimsoll-run.1 and so on; made when missing
    pub(crate) dir: Option<PathBuf>,
}

/// The whole command line's grammar.
pub(crate) fn grammar() -> clap::Command {
    Cli::command()
}

/// Reads a command line, the program's name first. `Err` is a command line that asks for nothing further: help, version,
/// or a mistake that has been reported.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Verb, ExitCode> {
    let args: Vec<OsString> = args.into_iter().collect();
    let parsed = grammar().try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map(|cli| cli.verb).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => crate::output::print(&error.to_string()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            crate::output::error(error.to_string().trim_end());
            ExitCode::from(USAGE)
        }
        _ => fault_of(&error, args.get(1).and_then(|word| word.to_str())).report(),
    })
}

/// clap's words in our form: the first lines are what is wrong, its tips are help. `first`: the word behind `plimsoll`.
fn fault_of(error: &clap::Error, first: Option<&str>) -> Fault {
    let text = error.to_string();
    let said = text.split_once("\n\nUsage: ").map_or(text.trim_end(), |(said, _)| said);
    let (mut message, mut help) = (String::new(), Vec::new());
    for line in said.trim_start_matches("error: ").lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(tip) = line.strip_prefix("tip: ") {
            help.push(tip.to_owned());
        } else if line.starts_with("For more information") {
            continue;
        } else {
            if !message.is_empty() {
                message.push(' ');
            }
            message.push_str(line);
        }
    }
    let verb = match first.filter(|word| grammar().find_subcommand(word).is_some()) {
        Some(verb) => format!("plimsoll {verb}"),
        None => "plimsoll".to_owned(),
    };
    if error.kind() == ErrorKind::InvalidSubcommand {
        // clap weighs words of three letters too strictly: `rnu` is like nothing to it.
        if let Some(verb) = first.filter(|_| help.is_empty()).and_then(one_slip_away) {
            help.push(format!("a similar subcommand exists: '{verb}'"));
        }
        help.push("to run a command: plimsoll run -- COMMAND [ARG…]".to_owned());
    }
    help.push(format!("`{verb} --help` tells all of it"));
    Fault { code: USAGE, message, help: help.join("\n") }
}

/// The verb of which this word is one slip away: a letter too many, too few, wrong, or in its neighbour's place.
fn one_slip_away(word: &str) -> Option<String> {
    let grammar = grammar();
    let near = grammar.get_subcommands().find(|verb| strsim::osa_distance(verb.get_name(), word) == 1)?;
    Some(near.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        grammar().debug_assert();
    }

    #[test]
    fn a_slip_of_a_verb_is_recognised() {
        for (word, verb) in [("rnu", Some("run")), ("mna", Some("man")), ("docter", Some("doctor")), ("sleep", None)] {
            assert_eq!(one_slip_away(word).as_deref(), verb, "{word}");
        }
    }

    #[test]
    fn help_fits_eighty_columns() {
        let mut all = grammar();
        all.build();
        let pages: Vec<_> = std::iter::once(all.clone()).chain(all.get_subcommands().cloned()).collect();
        for mut page in pages {
            for text in [page.render_help().to_string(), page.render_long_help().to_string()] {
                for line in text.lines() {
                    assert!(line.chars().count() <= 80, "{}: {line}", page.get_name());
                }
            }
        }
    }
}
