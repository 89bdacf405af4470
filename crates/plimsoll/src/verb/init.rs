//! `plimsoll init`: a commented `plimsoll.yaml` to begin with.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::fault::Fault;
use crate::output;

/// Write a commented plimsoll.yaml to begin with
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit code: 0 written, 1 the file is there already, or cannot be written.")]
pub(crate) struct InitArgs {
    /// The file, or its folder [default: plimsoll.yaml here]
    pub(crate) file: Option<PathBuf>,
}

pub(crate) fn main(args: &InitArgs) -> Result<ExitCode, Fault> {
    let path = match &args.file {
        Some(path) if !path.is_dir() => path.clone(),
        folder => {
            let folder = folder.as_deref().unwrap_or(Path::new(""));
            if let Some(other) = plimsoll_config::find(folder) {
                return Err(there(&other));
            }
            folder.join(plimsoll_config::FILE_NAMES[0])
        }
    };
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::AlreadyExists => there(&path),
        _ => Fault::failed(
            format!("{} cannot be written: {error}", path.display()),
            "name a file in a folder that you may write to",
        ),
    };
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(failed)?;
    if let Err(error) = file.write_all(plimsoll_config::STARTER.as_bytes()) {
        // Half a file would be in the way of the next attempt.
        let _ = std::fs::remove_file(&path);
        return Err(failed(error));
    }
    Ok(output::print(&format!(
        "{} is written; `plimsoll check` looks at it once you have changed it\n",
        path.display()
    )))
}

fn there(path: &Path) -> Fault {
    Fault::failed(
        format!("{} is there already, and stays as it is", path.display()),
        "`plimsoll check` looks at it; `plimsoll init FILE` writes another",
    )
}
