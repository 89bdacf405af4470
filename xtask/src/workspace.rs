//! Where things are: the checkout, cargo's output, our own scratch folder; and the binaries that the system tests drive.

use std::path::{Path, PathBuf};

use crate::exec::{Failure, command, output, succeed};

/// The two static binaries.
#[derive(Debug)]
pub(crate) struct Binaries {
    pub(crate) plimsoll: PathBuf,
    pub(crate) testkit: PathBuf,
}

/// The checkout's root.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Cargo's output folder.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A folder of ours under cargo's output, made when missing; `cargo clean` removes it.
pub(crate) fn scratch(name: &str) -> Result<PathBuf, Failure> {
    let folder = target().join("xtask").join(name);
    std::fs::create_dir_all(&folder).map_err(Failure::on("make", &folder))?;
    Ok(folder)
}

/// A cargo command in the checkout.
pub(crate) fn cargo() -> std::process::Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Builds the binaries that the system tests drive, with the profile made for them.
pub(crate) fn build() -> Result<Binaries, Failure> {
    build_with("system")
}

/// Builds them as they are released.
pub(crate) fn build_release() -> Result<Binaries, Failure> {
    build_with("release")
}

fn build_with(profile: &str) -> Result<Binaries, Failure> {
    succeed(cargo().args([
        "build",
        "--quiet",
        "--profile",
        profile,
        "--package",
        "plimsoll",
        "--package",
        "plimsoll-testkit",
    ]))?;
    let folder = target().join(host()?).join(profile);
    Ok(Binaries { plimsoll: folder.join("plimsoll"), testkit: folder.join("plimsoll-testkit") })
}

/// The target that we build for, by name: this machine's.
pub(crate) fn host() -> Result<String, Failure> {
    let version = output(command("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| Failure(format!("rustc -vV names no host: {version:?}")))
}
