//! Peers that Debian does not bring up to date: from npm and PyPI, in folders of their own under cargo's output.

use std::path::PathBuf;

use crate::exec::{Failure, command, succeed, which};
use crate::workspace;

/// Versions that the tables were measured with.
const PM2: &str = "pm2@7.0.4";
const SUPERVISOR: &str = "supervisor==4.3.0";
const FASTAPI: [&str; 2] = ["fastapi==0.165.0", "uvicorn[standard]==0.54.0"];
/// To the version, and no later one unseen: 1.82.7 and 1.82.8 were another's who stole keys (BerriAI/litellm#24518).
const LITELLM: [&str; 1] = ["litellm[proxy]==1.82.6"];

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

/// The folder of supervisord and supervisorctl, installed when it is missing.
pub(crate) fn supervisor() -> Result<PathBuf, Failure> {
    from_pypi("venv", "supervisord", &[SUPERVISOR])
}

/// The folder of a python that has FastAPI, and of uvicorn; installed when it is missing.
pub(crate) fn fastapi() -> Result<PathBuf, Failure> {
    from_pypi("fastapi", "uvicorn", &FASTAPI)
}

/// The folder of LiteLLM's proxy, installed when it is missing.
pub(crate) fn litellm() -> Result<PathBuf, Failure> {
    from_pypi("litellm", "litellm", &LITELLM)
}

/// The programs' folder of an environment with these packages, made when `program` is not there.
fn from_pypi(name: &str, program: &str, packages: &[&str]) -> Result<PathBuf, Failure> {
    let folder = workspace::scratch("peers")?.join(name);
    let bin = folder.join("bin");
    if !bin.join(program).exists() {
        succeed(command("python3").args(["-m", "venv"]).arg(&folder))?;
        let install = ["install", "--quiet", "--disable-pip-version-check"];
        succeed(command(bin.join("pip")).args(install).args(packages))?;
    }
    Ok(bin)
}
