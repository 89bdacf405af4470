//! Which container we are in, if any.

use plimsoll_model::host::Container;

use super::{read, read_text};

/// What to look at; separate from the kernel so that each kind can be tried.
#[derive(Debug, Clone, Default)]
struct Hints {
    /// Our pid namespace, and our cgroup namespace, are the machine's own.
    own_namespaces: bool,
    dockerenv: bool,
    containerenv: bool,
    kubernetes: bool,
    /// The variable `container` of pid 1, or of ours.
    variable: Option<String>,
    /// `/proc/1/cgroup` and `/proc/self/cgroup`.
    groups: String,
    /// `/proc/self/mountinfo`, the line of `/`.
    root_mount: String,
}

/// The container we are in; `None` on a plain machine.
pub(super) fn detect() -> Option<Container> {
    // The machine's first namespaces have fixed numbers.
    let own = |name: &str, number: &str| {
        std::fs::read_link(format!("/proc/self/ns/{name}"))
            .map_or(true, |link| link.to_string_lossy() == format!("{name}:[{number}]"))
    };
    let environment = read("/proc/1/environ").unwrap_or_default();
    let variable = environment
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(b"container="))
        .map(|value| String::from_utf8_lossy(value).into_owned())
        .or_else(|| std::env::var("container").ok())
        .filter(|value| !value.is_empty());
    let groups = ["/proc/1/cgroup", "/proc/self/cgroup"].map(|path| read_text(path).unwrap_or_default()).concat();
    let mounts = read("/proc/self/mountinfo").unwrap_or_default();
    let mounts = String::from_utf8_lossy(&mounts);
    let root_mount = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap_or_default().to_owned();
    judge(&Hints {
        own_namespaces: own("pid", "4026531836") && own("cgroup", "4026531835"),
        dockerenv: std::path::Path::new("/.dockerenv").exists(),
        containerenv: std::path::Path::new("/run/.containerenv").exists(),
        kubernetes: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
        variable,
        groups,
        root_mount,
    })
}

fn judge(hints: &Hints) -> Option<Container> {
    let container = |kind: &str, hint: &str| Some(Container { kind: kind.to_owned(), hint: hint.to_owned() });
    if let Some(value) = &hints.variable {
        return container(value, "the variable `container`");
    }
    let kind = [
        ("kubernetes", "kubepods"),
        ("docker", "/docker"),
        ("containerd", "containerd"),
        ("podman", "libpod"),
        ("lxc", "/lxc"),
    ];
    for (text, place) in [(&hints.groups, "its control group"), (&hints.root_mount, "its root file system")] {
        if let Some((kind, _)) = kind.iter().find(|(_, word)| text.contains(word)) {
            // systemd runs the engines themselves in groups of these names: there the namespaces are the machine's.
            let is_engine = text.contains("/docker.service") || text.contains("/containerd.service");
            if !(hints.own_namespaces && is_engine) {
                return container(kind, place);
            }
        }
    }
    // A machine made out of a container's image keeps the file: it counts only in other namespaces.
    if hints.own_namespaces {
        return None;
    }
    match hints {
        Hints { kubernetes: true, .. } => container("kubernetes", "KUBERNETES_SERVICE_HOST"),
        Hints { dockerenv: true, .. } => container("docker", "/.dockerenv"),
        Hints { containerenv: true, .. } => container("podman", "/run/.containerenv"),
        _ => container("container", "its own pid or cgroup namespace"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_by_its_hint() {
        let plain = Hints { own_namespaces: true, ..Hints::default() };
        let kind = |hints: &Hints| judge(hints).map(|container| container.kind);
        assert_eq!(kind(&plain), None);
        assert_eq!(kind(&Hints { dockerenv: true, ..plain.clone() }), None);
        assert_eq!(kind(&Hints { groups: "0::/system.slice/docker.service\n".into(), ..plain.clone() }), None);
        let inside = Hints::default();
        for (hints, expected) in [
            (Hints { dockerenv: true, ..inside.clone() }, "docker"),
            (Hints { containerenv: true, ..inside.clone() }, "podman"),
            (Hints { kubernetes: true, dockerenv: true, ..inside.clone() }, "kubernetes"),
            (Hints { variable: Some("systemd-nspawn".into()), ..inside.clone() }, "systemd-nspawn"),
            (Hints { groups: "4:memory:/docker/0123\n".into(), ..inside.clone() }, "docker"),
            (Hints { groups: "4:memory:/docker/0123\n".into(), ..plain.clone() }, "docker"),
            (
                Hints { groups: "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-1\n".into(), ..inside.clone() },
                "kubernetes",
            ),
            (
                Hints {
                    root_mount: "9 1 0:5 / / rw - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A".into(),
                    ..inside.clone()
                },
                "docker",
            ),
            (inside.clone(), "container"),
        ] {
            assert_eq!(kind(&hints).as_deref(), Some(expected), "{hints:?}");
        }
    }
}
