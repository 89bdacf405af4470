//! cargo-deny: licences, bans and sources of every crate in the graph.

use std::path::PathBuf;

use crate::exec::{Failure, command, succeed, which};
use crate::workspace;

const VERSION: &str = "0.20.2";

/// Commands that run `cargo-deny check` over what can be checked without a network: for us, and for the fuzz targets.
pub(crate) fn checks() -> Result<[std::process::Command; 2], Failure> {
    let program = program()?;
    Ok(["Cargo.toml", "fuzz/Cargo.toml"].map(|manifest| {
        let mut deny = command(&program);
        deny.current_dir(workspace::root()).args(["--workspace", "--manifest-path", manifest, "--config", "deny.toml"]);
        deny.args(["check", "bans", "licenses", "sources"]);
        deny
    }))
}

/// The installed cargo-deny, else one of our own under cargo's output, compiled the first time.
fn program() -> Result<PathBuf, Failure> {
    if let Some(installed) = which("cargo-deny") {
        return Ok(installed);
    }
    let folder = workspace::scratch(&format!("cargo-deny-{VERSION}"))?;
    let ours = folder.join("bin/cargo-deny");
    if !ours.exists() {
        let mut cargo = workspace::cargo();
        // Unoptimised: it compiles in a minute and a half on two cores and runs for less than a second.
        cargo
            .args(["install", "--locked", "--debug", "--quiet", "--version", VERSION, "--root"])
            .arg(&folder)
            .arg("cargo-deny");
        cargo.current_dir("/"); // our own flags for static binaries are not meant for it
        succeed(&mut cargo)?;
    }
    Ok(ours)
}
