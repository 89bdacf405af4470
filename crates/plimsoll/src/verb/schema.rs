//! `plimsoll schema`: the grammar of `plimsoll.yaml`, for editors.

use std::process::ExitCode;

/// Print the JSON Schema of plimsoll.yaml, for editors
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  plimsoll schema > plimsoll.schema.json

An editor that speaks to yaml-language-server takes it from a line in the file:
  # yaml-language-server: $schema=plimsoll.schema.json")]
pub(crate) struct SchemaArgs {}

pub(crate) fn main() -> ExitCode {
    // Strings, numbers and lists of them always have a JSON form.
    let text = serde_json::to_string_pretty(&plimsoll_config::schema()).unwrap_or_default();
    crate::output::print(&(text + "\n"))
}
