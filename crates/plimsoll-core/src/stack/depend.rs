//! Who depends on whom: the order of starts, and its reverse for stops.
//!
//! Only a first start waits for its dependencies. A service that has run and is restarted does not: as with Compose, the
//! loss of a database is no reason to hold down what could already be reconnecting.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_model::stack::{Condition, ServiceSpec};

use super::name::Name;

/// What a service's replicas amount to, for those that depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reached {
    /// A replica of it runs.
    pub started: bool,
    /// A replica of it is available.
    pub healthy: bool,
    /// All of it has ended with code 0.
    pub completed: bool,
    /// It is over: nothing of it runs or will by itself.
    pub over: bool,
}

impl Reached {
    /// Whether a condition is met. What did its work and ended has been started, and was healthy enough for it.
    #[must_use]
    pub fn meets(&self, condition: Condition) -> bool {
        match condition {
            Condition::Started => self.started || self.completed,
            Condition::Healthy => self.healthy || self.completed,
            Condition::CompletedSuccessfully => self.completed,
        }
    }
}

/// The services in an order in which each one stands behind all that it depends on; by name where that leaves a choice.
/// Unknown dependencies are ignored. What stands in a cycle, which the configuration does not let through, comes last.
#[must_use]
pub fn order<'a>(services: impl Iterator<Item = (&'a Name, &'a ServiceSpec)>) -> Vec<Name> {
    let mut waits: BTreeMap<&Name, BTreeSet<&str>> = BTreeMap::new();
    for (name, spec) in services {
        waits.insert(name, spec.depends_on.keys().map(String::as_str).collect());
    }
    let known: BTreeSet<Name> = waits.keys().map(|&name| name.clone()).collect();
    for dependencies in waits.values_mut() {
        dependencies.retain(|dependency| known.contains(*dependency));
    }
    let mut order: Vec<Name> = Vec::with_capacity(waits.len());
    while !waits.is_empty() {
        let ready: Vec<&Name> =
            waits.iter().filter(|(_, dependencies)| dependencies.is_empty()).map(|(&name, _)| name).collect();
        if ready.is_empty() {
            order.extend(waits.keys().map(|&name| name.clone()));
            return order;
        }
        for name in &ready {
            waits.remove(name);
        }
        for dependencies in waits.values_mut() {
            dependencies.retain(|dependency| !ready.iter().any(|name| &***name == *dependency));
        }
        order.extend(ready.into_iter().cloned());
    }
    order
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::stack::tests::service;
    use proptest::prelude::*;

    #[test]
    fn what_is_depended_on_comes_first() {
        let mut specs = BTreeMap::new();
        for (name, on) in [("a", "b"), ("b", "c"), ("c", "unknown"), ("z", "c")] {
            let mut spec = service();
            spec.depends_on.insert(on.to_owned(), Condition::Started);
            specs.insert(Name::from(name), spec);
        }
        let order: Vec<String> = order(specs.iter()).iter().map(ToString::to_string).collect();
        assert_eq!(order, ["c", "b", "z", "a"]);
    }

    #[test]
    fn conditions() {
        let running = Reached { started: true, ..Reached::default() };
        assert!(running.meets(Condition::Started) && !running.meets(Condition::Healthy));
        let done = Reached { completed: true, over: true, ..Reached::default() };
        assert!(done.meets(Condition::Started) && done.meets(Condition::CompletedSuccessfully));
        assert!(!Reached { over: true, ..Reached::default() }.meets(Condition::Started));
    }

    proptest! {
        #[test]
        fn everybody_once_and_behind_their_dependencies(edges in prop::collection::vec((0usize..20, 0usize..20), 0..60)) {
            let mut specs: BTreeMap<Name, ServiceSpec> =
                (0..20).map(|n| (Name::from(format!("s{n:02}").as_str()), service())).collect();
            let names: Vec<Name> = specs.keys().cloned().collect();
            // Upwards only, so that there are no cycles.
            for &(a, b) in edges.iter().filter(|(a, b)| a > b) {
                specs.get_mut(&names[a]).unwrap().depends_on.insert(names[b].to_string(), Condition::Started);
            }
            let order = order(specs.iter());
            prop_assert_eq!(order.len(), specs.len());
            let place = |name: &str| order.iter().position(|other| &**other == name).unwrap();
            for (name, spec) in &specs {
                prop_assert!(spec.depends_on.keys().all(|on| place(on) < place(name)));
            }
        }

        #[test]
        fn a_cycle_loses_nobody(edges in prop::collection::vec((0usize..8, 0usize..8), 0..30)) {
            let mut specs: BTreeMap<Name, ServiceSpec> =
                (0..8).map(|n| (Name::from(format!("s{n}").as_str()), service())).collect();
            let names: Vec<Name> = specs.keys().cloned().collect();
            for (a, b) in edges {
                specs.get_mut(&names[a]).unwrap().depends_on.insert(names[b].to_string(), Condition::Started);
            }
            let mut order = order(specs.iter());
            order.sort();
            prop_assert_eq!(order, names);
        }
    }
}
