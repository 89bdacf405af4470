//! Debian packages that tests and benchmarks need beyond Rust, gcc, Python and Node, each with its reason.

use std::path::Path;

use crate::exec::{Failure, command, output, succeed, which};

/// A package, what it must bring (a program in `PATH` or a file), and why we need it.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: &'static str,
    /// Present = nothing to install, whoever put it there.
    pub(crate) brings: &'static str,
    pub(crate) reason: &'static str,
}

const fn package(name: &'static str, brings: &'static str, reason: &'static str) -> Package {
    Package { name, brings, reason }
}

/// What the tests need.
pub(crate) const TESTS: &[Package] = &[
    package("busybox-static", "/bin/busybox", "the userland of the guest and of the container image"),
    package(
        "qemu-system-x86",
        "qemu-system-x86_64",
        "boots a kernel with real cgroup v2, which the machine at hand may not have",
    ),
    package("docker.io", "dockerd", "an ordinary container: read-only cgroup mount, its own memory limit"),
    package("containerd", "containerd", "dockerd starts it"),
    package("runc", "runc", "containerd starts it"),
    package(
        "util-linux",
        "setpriv",
        "drops to an unprivileged user without capabilities; fixes addresses for the fuzz targets",
    ),
    package("chromium", "chromium", "the real browser that the tests hold at its line"),
    package("g++", "c++", "compiles libFuzzer, which makes up inputs for the parsers"),
    package("less", "less", "the real full-screen program that the tests drive through a terminal"),
    package("procps", "ps", "an opinion other than ours on which processes there are"),
    package("nodejs", "node", "the real runtime under which agents run"),
    package("python3", "python3", "drives the tests of real programs"),
    package("curl", "curl", "a real client of both versions of HTTP"),
    package(
        "redis-server",
        "redis-server",
        "the real store of the laptop's nine services, and what several machines agree by",
    ),
    package("prometheus", "promtool", "Prometheus' own opinion on our metrics and alert rules"),
    package(
        "python3-prometheus-client",
        "/usr/lib/python3/dist-packages/prometheus_client/__init__.py",
        "a real parser of metrics, from /usr/bin/python3",
    ),
    package("systemd", "systemd-analyze", "its own opinion on our unit"),
    package("nghttp2-client", "h2load", "a real client with many requests on one HTTP/2 connection"),
];

/// What only the benchmarks need, for the other side of their tables.
pub(crate) const BENCHMARKS: &[Package] = &[
    package("cgroup-tools", "cgexec", "the established way to run one command in a group"),
    package(
        "python3-psutil",
        "/usr/lib/python3/dist-packages/psutil/__init__.py",
        "the established way to sample processes, from /usr/bin/python3",
    ),
    package("nginx", "nginx", "an established balancer, and a fast replica behind all of them"),
    package("haproxy", "haproxy", "another established balancer"),
    package("wrk", "wrk", "the load before the balancers"),
];

impl Package {
    pub(crate) fn is_here(&self) -> bool {
        if self.brings.starts_with('/') { Path::new(self.brings).exists() } else { which(self.brings).is_some() }
    }
}

/// May packages be installed here? The reason why not otherwise.
pub(crate) fn can_install() -> Result<(), Failure> {
    if which("apt-get").is_none() {
        return Err(Failure("this is no Debian: there is no apt-get".to_owned()));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Failure("installing packages needs root".to_owned()));
    }
    Ok(())
}

/// Installs those of `packages` that are missing. Where that cannot be done, says so and goes on: whoever needs one finds
/// it missing and says what it skips.
pub(crate) fn install(packages: &[Package]) -> Result<(), Failure> {
    let missing: Vec<&Package> = packages.iter().filter(|package| !package.is_here()).collect();
    if missing.is_empty() {
        println!("packages: all {} are here", packages.len());
        return Ok(());
    }
    for package in &missing {
        println!("packages: {} is missing: {}", package.name, package.reason);
    }
    if let Err(why) = can_install() {
        println!("packages: not installed: {why}");
        return Ok(());
    }
    update()?;
    let mut apt = apt_get();
    apt.args(["install", "--yes", "--no-install-recommends"]).args(missing.iter().map(|package| package.name));
    succeed(&mut apt)?;
    match missing.iter().find(|package| !package.is_here()) {
        Some(package) => Err(Failure(format!("{} was installed and yet {} is not here", package.name, package.brings))),
        None => Ok(()),
    }
}

/// Refreshes the lists of what can be had.
pub(crate) fn update() -> Result<(), Failure> {
    succeed(apt_get().args(["update", "--quiet"]))
}

/// Downloads the package file of `name` into `folder`.
pub(crate) fn download(name: &str, folder: &Path) -> Result<(), Failure> {
    succeed(apt_get().args(["download", name]).current_dir(folder))
}

/// The first package that `name` depends on whose name begins with `prefix`.
pub(crate) fn dependency(name: &str, prefix: &str) -> Result<String, Failure> {
    let depends = output(command("apt-cache").args(["depends", "--no-recommends", "--no-suggests", name]))?;
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|dependency| dependency.starts_with(prefix))
        .map(str::to_owned)
        .ok_or_else(|| Failure(format!("{name} depends on no {prefix}…: it says {depends:?}")))
}

fn apt_get() -> std::process::Command {
    let mut apt = command("apt-get");
    // dockerd must not be started by its package, and no question may wait for an answer.
    apt.env("DEBIAN_FRONTEND", "noninteractive").env("RUNLEVEL", "1");
    apt.args(["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "-o", "Dpkg::Use-Pty=0"]);
    apt
}

/// `cargo xtask packages [--install]`: what is needed, and why; or gets it.
pub(crate) fn main(args: &[String]) -> Result<std::process::ExitCode, Failure> {
    match args {
        [] => {
            for package in TESTS.iter().chain(BENCHMARKS) {
                let state = if package.is_here() { "here" } else { "missing" };
                println!("{:<18}{state:<9}{}", package.name, package.reason);
            }
        }
        [install] if install == "--install" => {
            install_all(TESTS)?;
            install_all(BENCHMARKS)?;
        }
        _ => return Err(Failure("usage: cargo xtask packages [--install]".to_owned())),
    }
    Ok(std::process::ExitCode::SUCCESS)
}

fn install_all(packages: &[Package]) -> Result<(), Failure> {
    can_install()?;
    install(packages)
}
