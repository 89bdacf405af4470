//! `plimsoll man [DIR]`.

use std::process::ExitCode;

use crate::cli::{ManArgs, grammar};
use crate::fault::Fault;

pub(crate) fn main(args: &ManArgs) -> Result<ExitCode, Fault> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        // Writing into memory does not fail.
        let _ = clap_mangen::Man::new(grammar()).render(&mut page);
        return Ok(crate::output::print(&String::from_utf8_lossy(&page)));
    };
    let failed = |error: std::io::Error| {
        Fault::failed(
            format!("the manual pages cannot be written to {}: {error}", dir.display()),
            "name a directory that you may write to",
        )
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(grammar(), dir).map_err(failed)?;
    Ok(ExitCode::SUCCESS)
}
