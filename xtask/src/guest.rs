//! Real kernels in QEMU: Debian's cloud kernel with a root of its own in memory, for the kinds of cgroups that the machine
//! at hand does not have.
//!
//! The archive that the kernel unpacks holds busybox, our two static binaries and an `/init` that mounts what the mode
//! says, runs one command, tells its exit code on the serial console behind a marker and powers off. No disk, no network.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::cpio::Archive;
use crate::exec::{Ended, Failure, command, stream, succeed, which};
use crate::furnish::{Furniture, furnish};
use crate::packages;
use crate::workspace::{self, Binaries};

const USAGE: &str =
    "usage: cargo xtask guest [--mode v2|v2-swap|v2-delegated|v1|hybrid] [--memory MIB] -- COMMAND [ARG…]";

/// What the guest tells its command's exit code with. Nothing else in the guest prints it.
const MARKER: &str = "plimsoll-guest-exit:";

/// Which cgroups the guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Version 2 alone, every controller enabled below the root, no swap.
    V2,
    /// The same, with swap (compressed memory) turned on.
    V2Swap,
    /// Version 2, as an ordinary user to whom a group has been given, which `PLIMSOLL_CGROUP_PARENT` names.
    V2Delegated,
    /// Version 1 alone: no v2 mount, so no `cgroup.kill`.
    V1,
    /// Version 1 controllers and an otherwise empty v2 mount at `unified`.
    Hybrid,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::V2 => "v2",
            Self::V2Swap => "v2-swap",
            Self::V2Delegated => "v2-delegated",
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
        }
    }

    /// The name of the boundary that plimsoll finds there.
    pub(crate) fn boundary(self) -> &'static str {
        match self {
            Self::V2 | Self::V2Swap | Self::V2Delegated => "cgroup2",
            Self::V1 | Self::Hybrid => "cgroup1",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::V2, Self::V2Swap, Self::V2Delegated, Self::V1, Self::Hybrid].into_iter().find(|mode| mode.name() == name)
    }

    /// The lines of `/init` that mount the cgroups.
    fn mounts(self) -> String {
        const V2: &str = "mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
            for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$c >/sys/fs/cgroup/cgroup.subtree_control; done\n";
        const SWAP: &str = "for m in lzo-rle zsmalloc zram; do insmod /modules/$m.ko || echo \"guest: no module $m\"; done\n\
            echo 512M >/sys/block/zram0/disksize && mkswap /dev/zram0 >/dev/null && swapon /dev/zram0 || echo 'guest: no swap'\n";
        // The user's own processes need a group beside the one for trees: a group with processes has no controllers.
        const DELEGATED: &str = "cd /sys/fs/cgroup; mkdir -p delegated/session delegated/trees\n\
            for c in memory pids cpu; do echo +$c >delegated/cgroup.subtree_control; done\n\
            chown nobody:nogroup delegated/cgroup.procs\n\
            for d in session trees; do chown nobody:nogroup delegated/$d delegated/$d/cgroup.procs delegated/$d/cgroup.threads \
            delegated/$d/cgroup.subtree_control; done\n";
        const V1: &str = "mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup\n\
            for c in memory pids cpu cpuacct cpuset freezer devices blkio; do\n\
            mkdir /sys/fs/cgroup/$c; mount -t cgroup -o $c cgroup /sys/fs/cgroup/$c; done\n";
        const UNIFIED: &str = "mkdir /sys/fs/cgroup/unified; mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified\n";
        match self {
            Self::V2 => V2.to_owned(),
            Self::V2Swap => format!("{V2}{SWAP}"),
            Self::V2Delegated => format!("{V2}{DELEGATED}"),
            Self::V1 => V1.to_owned(),
            Self::Hybrid => format!("{V1}{UNIFIED}"),
        }
    }

    /// The line of `/init` that runs the command.
    fn start(self) -> &'static str {
        match self {
            Self::V2Delegated => {
                "cd /home; export PLIMSOLL_CGROUP_PARENT=/delegated/trees XDG_STATE_HOME=/home/state XDG_RUNTIME_DIR=/home/run\n\
                 sh -c 'echo $$ >/sys/fs/cgroup/delegated/session/cgroup.procs; exec su -s /bin/sh nobody -c \"sh /command\"' \
                 </dev/null\n"
            }
            Self::V2 | Self::V2Swap | Self::V1 | Self::Hybrid => "cd /root; sh /command </dev/null\n",
        }
    }
}

/// A kernel out of its package.
#[derive(Debug)]
struct Kernel {
    image: PathBuf,
    /// `lib/modules/VERSION`.
    modules: PathBuf,
}

/// One boot: what to run, and in what kind of machine.
#[derive(Debug)]
pub(crate) struct Boot<'a> {
    pub(crate) mode: Mode,
    pub(crate) memory_mib: u32,
    pub(crate) command: &'a [String],
    pub(crate) deadline: Duration,
    /// What it needs beside busybox and our binaries.
    pub(crate) furniture: Option<Furniture<'a>>,
}

/// `cargo xtask guest`.
pub(crate) fn main(args: &[String]) -> Result<ExitCode, Failure> {
    let mut mode = Mode::V2;
    let mut memory_mib = 1024;
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        match arg.as_str() {
            "--mode" => {
                let name = rest.next().map_or("", String::as_str);
                mode = Mode::from_name(name).ok_or_else(|| Failure(format!("unknown mode {name:?}\n{USAGE}")))?;
            }
            "--memory" => {
                let value = rest.next().map_or("", String::as_str);
                memory_mib = value.parse().map_err(|_| Failure(format!("no number of MiB: {value:?}\n{USAGE}")))?;
            }
            "--" => break,
            other => return Err(Failure(format!("unknown option {other:?}\n{USAGE}"))),
        }
    }
    let command: Vec<String> = rest.cloned().collect();
    if command.is_empty() {
        return Err(Failure(USAGE.to_owned()));
    }
    packages::install(packages::TESTS)?;
    available()?;
    let binaries = workspace::build()?;
    let boot = Boot { mode, memory_mib, command: &command, deadline: Duration::from_secs(3600), furniture: None };
    match run(&binaries, &boot, |line| println!("{line}"))? {
        Ended::Code(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Ended::Deadline => Err(Failure("the guest was killed at its deadline".to_owned())),
    }
}

/// Can a guest be booted here? The reason why not otherwise.
pub(crate) fn available() -> Result<(), Failure> {
    if !cfg!(target_arch = "x86_64") {
        return Err(Failure("guests are wired for x86-64 only".to_owned()));
    }
    for program in ["qemu-system-x86_64", "apt-get", "dpkg"] {
        if which(program).is_none() {
            return Err(Failure(format!("a guest needs {program}, which is not here")));
        }
    }
    if !Path::new("/bin/busybox").exists() {
        return Err(Failure("a guest needs /bin/busybox (Debian's busybox-static), which is not here".to_owned()));
    }
    Ok(())
}

/// Boots, runs the command, hands each line that it prints to `on_line`, and answers how the command ended.
///
/// An emulated kernel has been seen to stand still: a soft lockup, twice, within thousands of trees, all of which passed when
/// they were run again. It panics then, with its stack on the console, and a fresh one is booted, once.
pub(crate) fn run(binaries: &Binaries, boot: &Boot<'_>, mut on_line: impl FnMut(&str)) -> Result<Ended, Failure> {
    let mut stood_still = false;
    let first = run_once(binaries, boot, |line| {
        stood_still |= line.contains(LOCKUP);
        on_line(line);
    });
    if first.is_err() && stood_still {
        println!("guest: its kernel stood still, and why is above; all again on a fresh one");
        return run_once(binaries, boot, on_line);
    }
    first
}

/// What a kernel says that panics because it stands still.
const LOCKUP: &str = "softlockup: hung tasks";

fn run_once(binaries: &Binaries, boot: &Boot<'_>, mut on_line: impl FnMut(&str)) -> Result<Ended, Failure> {
    let kernel = kernel()?;
    let image = kernel.image.file_name().unwrap_or_default().to_string_lossy();
    println!("guest: {image}, {}, {} MiB, {}", boot.mode.name(), boot.memory_mib, accelerator());
    remove_stale()?;
    let initrd = workspace::scratch(&format!("guest-{}", std::process::id()))?.join("initrd");
    std::fs::write(&initrd, root(binaries, &kernel, boot)?).map_err(Failure::on("write", &initrd))?;
    let mut qemu = command("setpriv"); // so that it goes with us, whatever ends us
    qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-accel", accelerator()])
        .args(["-smp", "2", "-m", &boot.memory_mib.to_string()])
        .args([
            "-display",
            "none",
            "-vga",
            "none",
            "-nic",
            "none",
            "-monitor",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initrd)
        // loglevel=1: the kernel's own words stay in its log, where the tests read them, and off the console.
        // panic=-1: a guest that stands still in a panic would be found only at the deadline.
        // watchdog_thresh=30: a kernel that stands still for a minute panics; ours is slow, and shares the machine.
        .args([
            "-append",
            "console=ttyS0 quiet loglevel=1 panic=-1 oops=panic softlockup_panic=1 watchdog_thresh=30 psi=1 swapaccount=1",
        ]);
    let mut exit = None;
    let mut last = String::new();
    let ended = stream(qemu, boot.deadline, |line| {
        let line = line.trim_end_matches('\r');
        match line.strip_prefix(MARKER).map(str::parse::<i32>) {
            Some(Ok(code)) => exit = Some(code),
            _ => {
                line.clone_into(&mut last);
                on_line(line);
            }
        }
    });
    let _ = std::fs::remove_file(&initrd);
    if let Some(folder) = initrd.parent() {
        let _ = std::fs::remove_dir(folder);
    }
    match (ended?, exit) {
        (_, Some(code)) => Ok(Ended::Code(code)),
        (Ended::Deadline, None) => Ok(Ended::Deadline),
        (Ended::Code(code), None) => Err(Failure(format!(
            "the guest ended (qemu: exit code {code}) before its command did; its last words: {last:?}"
        ))),
    }
}

/// Removes what guests left whose xtask was killed.
fn remove_stale() -> Result<(), Failure> {
    for folder in files(&workspace::scratch("")?)? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(pid) = name.strip_prefix("guest-")
            && !Path::new("/proc").join(pid).exists()
        {
            std::fs::remove_dir_all(&folder).map_err(Failure::on("remove", &folder))?;
        }
    }
    Ok(())
}

/// KVM, when the processor says that it can; a device node alone does not mean that guests run (they may hang in it).
fn accelerator() -> &'static str {
    let can = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|info| {
        info.lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split(' ').any(|flag| flag == "vmx" || flag == "svm"))
    });
    let may = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if can && may { "kvm" } else { "tcg,thread=multi" }
}

/// The kernel that `linux-image-cloud-amd64` stands for now, unpacked under `target/xtask`; downloaded the first time.
fn kernel() -> Result<Kernel, Failure> {
    let folder = workspace::scratch("kernel")?;
    if let Some(kernel) = unpacked(&folder) {
        return Ok(kernel);
    }
    let meta = "linux-image-cloud-amd64";
    let find = || packages::dependency(meta, "linux-image-");
    let name = match find() {
        Ok(name) => name,
        // Without lists of packages nothing is found; only root can fetch them.
        Err(_) if packages::can_install().is_ok() => packages::update().and_then(|()| find())?,
        Err(error) => return Err(error),
    };
    println!("guest: downloading {name}");
    if packages::download(&name, &folder).is_err() {
        packages::can_install()?; // the lists may be older than the mirror
        packages::update()?;
        packages::download(&find()?, &folder)?;
    }
    let package = files(&folder)?
        .into_iter()
        .find(|file| file.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| Failure(format!("apt-get download left no package in {}", folder.display())))?;
    succeed(command("dpkg").arg("--extract").arg(&package).arg(&folder))?;
    std::fs::remove_file(&package).map_err(Failure::on("remove", &package))?;
    unpacked(&folder).ok_or_else(|| Failure(format!("{name} holds no boot/vmlinuz-… with its lib/modules")))
}

fn unpacked(folder: &Path) -> Option<Kernel> {
    let image = files(&folder.join("boot"))
        .ok()?
        .into_iter()
        .find(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))?;
    let name = image.file_name()?.to_string_lossy().into_owned();
    let version = name.strip_prefix("vmlinuz-")?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|path| folder.join(path).join(version))
        .into_iter()
        .find(|path| path.is_dir())?;
    Some(Kernel { image, modules })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(folder).map_err(Failure::on("list", folder))?;
    Ok(entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect())
}

/// The guest's root.
fn root(binaries: &Binaries, kernel: &Kernel, boot: &Boot<'_>) -> Result<Vec<u8>, Failure> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "etc", "home", "modules", "proc", "root", "run", "sys", "tmp", "var", "var/lib"] {
        archive.folder(folder);
    }
    archive.character_device("dev/console", 5, 1);
    archive.program_from("bin/busybox", Path::new("/bin/busybox"))?;
    archive.program_from("bin/plimsoll", &binaries.plimsoll)?;
    archive.program_from("bin/plimsoll-testkit", &binaries.testkit)?;
    archive.symlink("usr", "."); // what names /usr/bin finds it
    archive.program("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/sh\n");
    archive.program("etc/group", b"root:x:0:\nnogroup:x:65534:\n");
    if let Some(furniture) = &boot.furniture {
        furnish(&mut archive, furniture)?;
    }
    if boot.mode == Mode::V2Swap {
        for (module, path) in [
            ("lzo-rle", "kernel/crypto/lzo-rle.ko"), // what zram compresses with
            ("zsmalloc", "kernel/mm/zsmalloc.ko"),   // where zram puts it
            ("zram", "kernel/drivers/block/zram/zram.ko"),
        ] {
            archive.program_from(&format!("modules/{module}.ko"), &kernel.modules.join(path))?;
        }
    }
    let words: Vec<String> = boot.command.iter().map(|word| quote(word)).collect();
    archive.program("command", format!("{}\n", words.join(" ")).as_bytes());
    let init = format!(
        "#!/bin/busybox sh\n\
         export PATH=/bin HOME=/root TERM=dumb LANG=C.UTF-8\n\
         /bin/busybox mount -t proc proc /proc\n\
         /bin/busybox --install -s /bin\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs dev /dev\n\
         mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm\n\
         ln -sf /proc/self/fd /dev/fd; ln -sf pts/ptmx /dev/ptmx; chmod 666 /dev/pts/ptmx\n\
         ifconfig lo 127.0.0.1 up\n\
         mount -t tmpfs tmp /tmp; chmod 1777 /tmp; mount -t tmpfs -o mode=755 run /run; chmod 777 /home\n\
         {}\
         {}\
         code=$?; echo; echo {MARKER}$code\n\
         poweroff -f\n",
        boot.mode.mounts(),
        boot.mode.start(),
    );
    archive.program("init", init.as_bytes());
    Ok(archive.finish())
}

/// A word as a shell reads it back.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::quote;

    #[test]
    fn a_quoted_word_has_no_quote_that_ends_it() {
        assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
    }
}
