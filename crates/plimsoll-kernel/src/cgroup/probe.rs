//! What this machine gives us: the hierarchies, where we may make groups, and so which boundary a tree gets.

use std::path::{Path, PathBuf};

use plimsoll_model::spec::BoundaryChoice;
use plimsoll_model::{Boundary, Limits, RunId};
use rustix::fs::{Access, AtFlags, CWD, accessat};

use super::files::Dir;
use crate::procfs::{CgroupLine, CgroupMount, Version, parse_mountinfo, parse_proc_cgroup, read_file};

/// The control group hierarchies as this process sees them.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    mounts: Vec<CgroupMount>,
    own: Vec<CgroupLine>,
}

/// Where a tree's group is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parent {
    /// Below one directory of the unified hierarchy.
    V2 {
        /// The directory that groups are made in.
        base: PathBuf,
        /// Its path below the hierarchy's root, as kmsg names it.
        path: String,
        /// Directories and paths of the groups whose limits hold there too, nearest first.
        ancestors: Vec<(PathBuf, String)>,
        /// A delegated group in which our own process sits, when `base` is below it.
        delegated: Option<PathBuf>,
    },
    /// Below one directory a controller.
    V1 {
        /// On the memory hierarchy.
        memory: PathBuf,
        /// On the pids hierarchy.
        pids: Option<PathBuf>,
        /// On the cpu hierarchy.
        cpu: Option<PathBuf>,
        /// On the freezer hierarchy.
        freezer: Option<PathBuf>,
        /// On a v2 mount beside them, for `cgroup.kill`.
        unified: Option<PathBuf>,
        /// Path of the memory directory below the hierarchy's root, as kmsg names it.
        path: String,
        /// Directories and paths of the memory groups whose limits hold there too, nearest first.
        ancestors: Vec<(PathBuf, String)>,
    },
}

/// A memory group that we are in and cannot change: a container's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surrounding {
    /// Its directory.
    pub dir: PathBuf,
    /// Its path as kmsg names it.
    pub path: String,
    /// Which version's files it has.
    pub version: Boundary,
    /// Its limit, bytes.
    pub limit: u64,
}

impl Parent {
    /// The same, one step further down: the group of this run, in which others are made.
    #[must_use]
    pub fn below(&self, id: &str) -> Self {
        let step = |path: &str| format!("{}/{id}", path.trim_end_matches('/'));
        let with_own = |own: PathBuf, path: &str, above: &[(PathBuf, String)]| {
            std::iter::once((own, step(path))).chain(above.iter().cloned()).collect()
        };
        match self {
            Self::V2 { base, path, ancestors, .. } => Self::V2 {
                ancestors: with_own(base.join(id), path, ancestors),
                base: base.join(id),
                path: step(path),
                delegated: None,
            },
            Self::V1 { memory, pids, cpu, freezer, unified, path, ancestors } => Self::V1 {
                ancestors: with_own(memory.join(id), path, ancestors),
                memory: memory.join(id),
                pids: pids.as_ref().map(|dir| dir.join(id)),
                // Only made for a run with a quota of its own.
                cpu: cpu.clone(),
                freezer: freezer.as_ref().map(|dir| if unified.is_none() { dir.join(id) } else { dir.clone() }),
                unified: unified.as_ref().map(|dir| dir.join(id)),
                path: step(path),
            },
        }
    }
}

/// What was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The strongest boundary that this machine gives us (or that was chosen).
    pub boundary: Boundary,
    /// Where groups are made; `None` on the watchdog tier.
    pub parent: Option<Parent>,
    /// Why it is this boundary and no stronger one, in one line.
    pub reason: String,
    /// The tightest memory limit around us.
    pub surrounding: Option<Surrounding>,
    /// Whether the kernel counts swap against groups; without it a swap limit cannot be set.
    pub swap_accounting: bool,
}

/// Why no boundary as asked for can be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// `PLIMSOLL_CGROUP_PARENT` names a group that cannot be used.
    #[error("PLIMSOLL_CGROUP_PARENT={parent}: {why}")]
    Parent {
        /// The value.
        parent: String,
        /// Why not.
        why: String,
    },
    /// `--boundary cgroup` where none can be had.
    #[error("--boundary cgroup: {0}")]
    NoCgroup(String),
}

impl Hierarchies {
    /// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`; what cannot be read counts as absent.
    #[must_use]
    pub fn read() -> Self {
        Self {
            mounts: parse_mountinfo(&read_file("/proc/self/mountinfo").unwrap_or_default()),
            own: parse_proc_cgroup(&read_file("/proc/self/cgroup").unwrap_or_default()),
        }
    }

    fn v2(&self) -> Option<&CgroupMount> {
        self.mounts.iter().find(|mount| mount.version == Version::V2)
    }

    fn v1(&self, controller: &str) -> Option<&CgroupMount> {
        self.mounts
            .iter()
            .find(|mount| mount.version == Version::V1 && mount.controllers.iter().any(|name| name == controller))
    }

    /// Our own group's path on a hierarchy: `None` names the unified one.
    fn own_path(&self, controller: Option<&str>) -> Option<&Path> {
        let line = self.own.iter().find(|line| match controller {
            None => line.hierarchy == 0,
            Some(name) => line.controllers.iter().any(|own| own == name),
        })?;
        Some(&line.path)
    }

    /// Our own group's directory on a mount. Inside a container the mount's root may be the container's group, or the
    /// paths may be those of a namespace: the longest reading that exists wins.
    fn own_dir(&self, mount: &CgroupMount, controller: Option<&str>) -> Option<PathBuf> {
        let own = self.own_path(controller)?;
        let below = own.strip_prefix(&mount.root).unwrap_or_else(|_| Path::new(""));
        Some(join(&mount.mount_point, below))
    }

    /// Whether the memory controller is on the unified hierarchy.
    #[must_use]
    pub fn memory_on_v2(&self) -> bool {
        self.v1("memory").is_none()
            && self.v2().is_some_and(|mount| has_word(&Dir(mount.mount_point.clone()), "cgroup.controllers", "memory"))
    }

    /// Whether we are part of a tree that Plimsoll holds by a group of the unified hierarchy.
    fn in_a_tree(&self, parent: Option<&str>) -> bool {
        let Some(mount) = self.v2() else { return false };
        let named = parent.and_then(|parent| relative(parent).ok()).map(|parent| mount.mount_point.join(parent));
        self.own_dir(mount, None).as_deref().and_then(|own| tree_around(own, named.as_deref())).is_some()
    }

    /// `v2`, `v1`, `hybrid` (both) or `none`: what is mounted.
    #[must_use]
    pub fn layout(&self) -> &'static str {
        match (self.v2().is_some(), self.v1("memory").is_some()) {
            (true, true) => "hybrid",
            (true, false) => "v2",
            (false, true) => "v1",
            (false, false) => "none",
        }
    }

    /// The tightest memory limit that holds for us, from our own group upwards.
    #[must_use]
    pub fn surrounding(&self) -> Option<Surrounding> {
        let (mount, controller, version, file) = match self.v1("memory") {
            Some(mount) => (mount, Some("memory"), Boundary::Cgroup1, "memory.limit_in_bytes"),
            None => (self.v2()?, None, Boundary::Cgroup2, "memory.max"),
        };
        let own = self.own_dir(mount, controller)?;
        own.ancestors()
            .take_while(|dir| dir.starts_with(&mount.mount_point))
            .filter_map(|dir| {
                let limit = Dir(dir.to_owned()).limit(file).ok()??;
                Some(Surrounding { dir: dir.to_owned(), path: kernel_path(mount, dir), version, limit })
            })
            .min_by_key(|group| group.limit)
    }
}

/// `mount + below` without a slash too many.
fn join(mount: &Path, below: &Path) -> PathBuf {
    let below = below.strip_prefix("/").unwrap_or(below);
    if below.as_os_str().is_empty() { mount.to_owned() } else { mount.join(below) }
}

/// A directory's path as the kernel names its group.
fn kernel_path(mount: &CgroupMount, dir: &Path) -> String {
    let below = dir.strip_prefix(&mount.mount_point).unwrap_or(dir);
    let path = join(&mount.root, below);
    let text = path.to_string_lossy().into_owned();
    if text.starts_with('/') { text } else { format!("/{text}") }
}

fn has_word(dir: &Dir, file: &str, word: &str) -> bool {
    dir.read(file).is_ok_and(|text| text.split_whitespace().any(|found| found == word))
}

fn writable(dir: &Path) -> Result<(), String> {
    accessat(CWD, dir, Access::WRITE_OK, AtFlags::EACCESS).map_err(|errno| match errno {
        rustix::io::Errno::ROFS => format!("{} is mounted read-only", dir.display()),
        rustix::io::Errno::ACCESS => format!("{} is not writable for this user", dir.display()),
        rustix::io::Errno::NOENT => format!("{} does not exist", dir.display()),
        errno => format!("{}: {errno}", dir.display()),
    })
}

/// Our own groups are made below this one, where nothing else says where.
const DEFAULT_PARENT: &str = "plimsoll";

/// Finds the boundary for the choice. `parent` is the value of `PLIMSOLL_CGROUP_PARENT`. Makes and writes nothing.
///
/// # Errors
/// [`ProbeError`] when the choice, or the named parent, cannot be had.
pub fn probe(choice: BoundaryChoice, parent: Option<&str>) -> Result<Found, ProbeError> {
    let hierarchies = Hierarchies::read();
    let surrounding = hierarchies.surrounding();
    let watchdog = |reason: String| Found {
        boundary: Boundary::Watchdog,
        parent: None,
        reason,
        surrounding: surrounding.clone(),
        swap_accounting: false,
    };
    if choice == BoundaryChoice::Watchdog {
        return Ok(watchdog("it was asked for".into()));
    }
    if hierarchies.memory_on_v2() && hierarchies.in_a_tree(parent) {
        let why = "we run in a tree that plimsoll holds, and a v2 group with processes in it cannot be divided; its line \
                   holds for us as well";
        return if choice == BoundaryChoice::Cgroup {
            Err(ProbeError::NoCgroup(why.into()))
        } else {
            Ok(watchdog(why.into()))
        };
    }
    let found = if hierarchies.memory_on_v2() {
        find_v2(&hierarchies, parent).map(|(parent, reason)| (Boundary::Cgroup2, parent, reason))
    } else if hierarchies.v1("memory").is_some() {
        find_v1(&hierarchies, parent).map(|(parent, reason)| (Boundary::Cgroup1, parent, reason))
    } else {
        Err("no cgroup hierarchy with a memory controller is mounted".into())
    };
    match found {
        Ok((boundary, parent, reason)) => {
            let swap_accounting = match &parent {
                Parent::V1 { .. } => hierarchies
                    .v1("memory")
                    .is_some_and(|mount| mount.mount_point.join("memory.memsw.limit_in_bytes").exists()),
                // The root has no swap files; the zero that stands in /proc/meminfo is checked by the caller.
                Parent::V2 { .. } => true,
            };
            Ok(Found { boundary, parent: Some(parent), reason, surrounding, swap_accounting })
        }
        Err(why) => match parent {
            Some(parent) => Err(ProbeError::Parent { parent: parent.to_owned(), why }),
            None if choice == BoundaryChoice::Cgroup => Err(ProbeError::NoCgroup(why)),
            None => Ok(watchdog(why)),
        },
    }
}

/// The groups of this run that are there now, where groups are made by default or below `parent`: for a run whose record
/// is lost.
#[must_use]
pub fn groups_of(id: RunId, parent: Option<&str>) -> Vec<PathBuf> {
    let hierarchies = Hierarchies::read();
    let named = parent.and_then(|parent| relative(parent).ok());
    let groups = hierarchies.mounts.iter().flat_map(|mount| {
        let controller = mount.controllers.first().map(String::as_str);
        let own = hierarchies.own_dir(mount, controller).map(|own| own.join(DEFAULT_PARENT));
        let default = mount.mount_point.join(DEFAULT_PARENT);
        let named = named.as_ref().map(|named| mount.mount_point.join(named));
        [Some(default), own, named].into_iter().flatten().map(|base| base.join(id.as_str())).collect::<Vec<_>>()
    });
    let mut found: Vec<PathBuf> = groups.filter(|dir| dir.is_dir()).collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The name of a parent group as given, made relative; refuses what climbs out or names no group.
fn relative(parent: &str) -> Result<PathBuf, String> {
    let path = Path::new(parent);
    let path = path.strip_prefix("/").unwrap_or(path);
    if path.as_os_str().is_empty() || path.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return Err("write the path of a group below the hierarchy's root, such as /plimsoll".into());
    }
    Ok(path.to_owned())
}

/// Groups whose limits hold for what is made in `base`: itself and all above it, the mount's root excepted when it is
/// the hierarchy's root, which has no limit.
fn ancestors(mount: &CgroupMount, base: &Path) -> Vec<(PathBuf, String)> {
    base.ancestors()
        .take_while(|dir| dir.starts_with(&mount.mount_point))
        .filter(|dir| *dir != mount.mount_point || mount.root != Path::new("/"))
        .map(|dir| (dir.to_owned(), kernel_path(mount, dir)))
        .collect()
}

fn find_v1(hierarchies: &Hierarchies, parent: Option<&str>) -> Result<(Parent, String), String> {
    let Some(memory) = hierarchies.v1("memory") else { return Err("the memory controller is not mounted".into()) };
    let named = parent.map(relative).transpose()?;
    if let Some(named) = &named {
        let base = memory.mount_point.join(named);
        if !base.join("memory.limit_in_bytes").exists() {
            return Err(format!("there is no such group: make {} and give it to this user", base.display()));
        }
        writable(&base)?;
        if base.join("cgroup.procs").exists() {
            writable(&base.join("cgroup.procs")).map_err(|why| format!("it is not delegated to this user: {why}"))?;
        }
    }
    // Below that of the tree that we are part of, whose lines hold for us; else below the named group; else below our
    // own one where it was given to an ordinary user; else below the root.
    let base_on = |mount: &CgroupMount, controller: &str| -> Result<PathBuf, String> {
        let root = &mount.mount_point;
        // A parent that was made for us on the memory hierarchy alone is not made by us on the others.
        let there = named.as_ref().map(|named| root.join(named)).filter(|there| there.exists());
        let own = hierarchies.own_dir(mount, Some(controller));
        if let Some(tree) = own.as_deref().and_then(|own| tree_around(own, there.as_deref())) {
            return Ok(tree.to_owned());
        }
        if let Some(there) = there {
            return Ok(there);
        }
        if !rustix::process::geteuid().is_root() {
            let own = own.unwrap_or_else(|| root.clone());
            return writable(&own)
                .and_then(|()| writable(&own.join("cgroup.procs")))
                .map(|()| own.join(DEFAULT_PARENT));
        }
        writable(root).map(|()| root.join(DEFAULT_PARENT))
    };
    let base = base_on(memory, "memory")?;
    let usable = |controller: &str| {
        let mount = hierarchies.v1(controller)?;
        let base = base_on(mount, controller).ok()?;
        writable(if base.exists() { &base } else { &mount.mount_point }).is_ok().then_some(base)
    };
    let unified = hierarchies.v2().and_then(|mount| {
        let there = named.as_ref().map(|named| mount.mount_point.join(named)).filter(|there| there.exists());
        let own = hierarchies.own_dir(mount, None);
        let tree = own.as_deref().and_then(|own| tree_around(own, there.as_deref())).map(Path::to_owned);
        let base = tree.or(there).unwrap_or_else(|| mount.mount_point.join(DEFAULT_PARENT));
        // cgroup.kill came with 5.14; the root has none, but cgroup.pressure and cgroup.stat do not tell: a group that
        // is made without it falls back when it is killed.
        writable(&mount.mount_point).is_ok().then_some(base)
    });
    let reason = match (&named, &unified) {
        (Some(_), _) => "PLIMSOLL_CGROUP_PARENT names it".to_owned(),
        (None, Some(_)) => "memory is on v1; a v2 mount beside it gives cgroup.kill".to_owned(),
        (None, None) => "memory is on v1, without a v2 mount: trees are frozen, killed and thawed".to_owned(),
    };
    Ok((
        Parent::V1 {
            path: kernel_path(memory, &base),
            ancestors: ancestors(memory, &base),
            memory: base,
            pids: usable("pids"),
            cpu: usable("cpu"),
            freezer: usable("freezer"),
            unified,
        },
        reason,
    ))
}

fn find_v2(hierarchies: &Hierarchies, parent: Option<&str>) -> Result<(Parent, String), String> {
    let Some(mount) = hierarchies.v2() else { return Err("no cgroup2 mount".into()) };
    let found = |base: PathBuf, delegated: Option<PathBuf>, reason: &str| {
        let parent =
            Parent::V2 { path: kernel_path(mount, &base), ancestors: ancestors(mount, &base), base, delegated };
        Ok((parent, reason.to_owned()))
    };
    if let Some(parent) = parent {
        let base = mount.mount_point.join(relative(parent)?);
        if !base.join("cgroup.subtree_control").exists() {
            return Err(format!("there is no such group: make {} and give it to this user", base.display()));
        }
        for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
            writable(&base.join(file)).map_err(|why| format!("it is not delegated to this user: {why}"))?;
        }
        if !has_word(&Dir(base.clone()), "cgroup.controllers", "memory") {
            return Err("the memory controller is not enabled there: write +memory to the cgroup.subtree_control of \
                        the group above"
                .into());
        }
        return found(base, None, "PLIMSOLL_CGROUP_PARENT names it");
    }
    let own = hierarchies.own_dir(mount, None);
    if let Some(own) = own.filter(|own| is_delegated(mount, own)) {
        if has_word(&Dir(own.clone()), "cgroup.controllers", "memory") {
            return found(own.join(DEFAULT_PARENT), Some(own), "our own group is delegated to us");
        }
        return Err(format!("{} is delegated to us without the memory controller", own.display()));
    }
    let root = &mount.mount_point;
    writable(root)?;
    if !has_word(&Dir(root.clone()), "cgroup.subtree_control", "memory") {
        return Err(format!(
            "the memory controller is not enabled for groups of {}: `echo '+memory +pids +cpu' > {}`",
            root.display(),
            root.join("cgroup.subtree_control").display()
        ));
    }
    found(root.join(DEFAULT_PARENT), None, "the unified hierarchy is writable")
}

/// The group of the tree that a process in this group is part of, when Plimsoll holds it: groups are named by run ids.
/// A parent that was named for somewhere else counts more; one above the tree was named for the tree itself.
fn tree_around<'o>(own: &'o Path, named: Option<&Path>) -> Option<&'o Path> {
    own.ancestors()
        .take_while(|dir| named.is_none_or(|named| *dir != named && dir.starts_with(named)))
        .find(|dir| dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<RunId>().is_ok()))
}

/// A group is delegated when its owner gave it to this user, when systemd says so, or when it is the root of a
/// container's own namespace.
fn is_delegated(mount: &CgroupMount, own: &Path) -> bool {
    for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
        if writable(&own.join(file)).is_err() {
            return false;
        }
    }
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    let marked = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0; 4];
        rustix::fs::getxattr(own, *name, &mut value).is_ok_and(|length| &value[..length] == b"1")
    });
    // Only the real root lacks memory.max: the root of a namespace is a container's own group.
    marked || (own == mount.mount_point && own.join("memory.max").exists())
}

/// An explicit option that the boundary cannot enforce: the option's name and why.
#[must_use]
pub fn unsupported(found: &Found, limits: &Limits, swap_asked_for: bool) -> Option<(&'static str, String)> {
    let no = |option, why: &str| Some((option, why.to_owned()));
    match &found.parent {
        None => match limits {
            Limits { memory_high: Some(_), .. } => no("--memory-high", "only the kernel can slow a tree down"),
            Limits { memory_reservation: Some(_), .. } => {
                no("--memory-reservation", "only the kernel can protect memory from reclaim")
            }
            Limits { cpu_micros: Some(_), .. } => no("--cpus", "only the kernel can share out processor time"),
            Limits { pids: Some(_), .. } => no("--pids-limit", "only the kernel can refuse a fork"),
            Limits { memory, memory_swap, .. } if swap_asked_for && memory != memory_swap => {
                no("--memory-swap", "the watchdog counts memory and swap together, so the total is --memory")
            }
            _ => None,
        },
        Some(Parent::V1 { pids, cpu, .. }) => match limits {
            Limits { memory_high: Some(_), .. } => no("--memory-high", "cgroup v1 has no throttling line"),
            Limits { cpu_micros: Some(_), .. } if cpu.is_none() => {
                no("--cpus", "the v1 cpu controller is not mounted writable")
            }
            Limits { pids: Some(_), .. } if pids.is_none() => {
                no("--pids-limit", "the v1 pids controller is not mounted writable")
            }
            _ if swap_asked_for && !found.swap_accounting => {
                no("--memory-swap", "this kernel does not count swap (boot it with swapaccount=1)")
            }
            _ => None,
        },
        Some(Parent::V2 { base, .. }) => {
            let nearest = base.ancestors().find(|dir| dir.join("cgroup.controllers").exists());
            let has = |word| nearest.is_some_and(|dir| has_word(&Dir(dir.to_owned()), "cgroup.controllers", word));
            if limits.cpu_micros.is_some() && !has("cpu") {
                return no("--cpus", "the cpu controller is not enabled here");
            }
            if limits.pids.is_some() && !has("pids") {
                return no("--pids-limit", "the pids controller is not enabled here");
            }
            None
        }
    }
}
