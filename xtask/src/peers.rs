//! Peers that Debian does not bring up to date: from npm and PyPI, in folders of their own under cargo's output.

use std::path::PathBuf;

use crate::exec::{Failure, command, succeed, which};
use crate::workspace;

/// Versions that the tables were measured with.
const PM2: &str = "pm2@7.0.4";
const SUPERVISOR: &str = "supervisor==4.3.0";
const FASTAPI: &str = "fastapi==0.165.0";
const UVICORN: &str = "uvicorn[standard]==0.54.0";

/// pm2's command, installed when it is missing.
pub(crate) fn pm2() -> Result<PathBuf, Failure> {
    let folder = workspace::scratch("peers")?.join("npm");
    let program = folder.join("node_modules/.bin/pm2");
    if !program.exists() {
        let npm = which("npm").ok_or_else(|| Failure("npm is not here, and pm2 comes from it".into()))?;
        let mut install = command(npm);
        install.args(["install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"]).arg(&folder).arg(PM2);
        succeed(&mut install)?;
    }
    Ok(program)
}

/// The folder of a Python that has FastAPI and uvicorn, installed when they are missing.
pub(crate) fn fastapi() -> Result<PathBuf, Failure> {
    let folder = workspace::scratch("peers")?.join("fastapi");
    let bin = folder.join("bin");
    if !bin.join("uvicorn").exists() {
        succeed(command("python3").args(["-m", "venv"]).arg(&folder))?;
        let install = ["install", "--quiet", "--disable-pip-version-check", FASTAPI, UVICORN];
        succeed(command(bin.join("pip")).args(install))?;
    }
    Ok(bin)
}

/// The folder of supervisord and supervisorctl, installed when it is missing.
pub(crate) fn supervisor() -> Result<PathBuf, Failure> {
    let folder = workspace::scratch("peers")?.join("venv");
    let bin = folder.join("bin");
    if !bin.join("supervisord").exists() {
        succeed(command("python3").args(["-m", "venv"]).arg(&folder))?;
        let install = ["install", "--quiet", "--disable-pip-version-check", SUPERVISOR];
        succeed(command(bin.join("pip")).args(install))?;
    }
    Ok(bin)
}
