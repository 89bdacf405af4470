//! Which pool a model's name means, and the list of names.

use std::collections::BTreeMap;
use std::sync::Arc;

use plimsoll_model::pool::PoolSpec;
use serde::Serialize;

/// Pools by name, as the desk tells them.
pub type Pools = BTreeMap<Arc<str>, Arc<PoolSpec>>;

/// The pool that is offered under this name: its own, or one of its `models`.
#[must_use]
pub fn pool_of<'p>(pools: &'p Pools, model: &str) -> Option<(&'p Arc<str>, &'p Arc<PoolSpec>)> {
    let is_offered = |spec: &PoolSpec| spec.models.iter().any(|name| name == model);
    pools.get_key_value(model).or_else(|| pools.iter().find(|(_, spec)| is_offered(spec)))
}

/// The body of `GET /v1/models`: each pool that `may` be asked, with its further names behind it. `created` is the time of
/// the list's birth, seconds since 1970.
#[must_use]
pub fn list(pools: &Pools, may: impl Fn(&str) -> bool, created: u64) -> String {
    let mine = pools.iter().filter(|(name, _)| may(name));
    let names = mine.flat_map(|(name, spec)| std::iter::once(&**name).chain(spec.models.iter().map(String::as_str)));
    let data = names.map(|id| model(id, created)).collect();
    serde_json::to_string(&List { object: "list", data }).unwrap_or_default()
}

/// The body of `GET /v1/models/NAME`.
#[must_use]
pub fn one(id: &str, created: u64) -> String {
    serde_json::to_string(&model(id, created)).unwrap_or_default()
}

fn model(id: &str, created: u64) -> Model<'_> {
    Model { id, object: "model", created, owned_by: "plimsoll" }
}

#[derive(Serialize)]
struct List<'a> {
    object: &'a str,
    data: Vec<Model<'a>>,
}

#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'a str,
    created: u64,
    owned_by: &'a str,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use plimsoll_model::OnLimit;
    use plimsoll_model::pool::{Isolation, Protocol, QueueSpec, Rehydrate, Reuse};
    use plimsoll_model::stack::{Priority, RestartPolicy, ServiceSpec};
    use serde_json::{Value, json};
    use std::time::Duration;

    pub(crate) fn pools(all: &[(&str, &[&str])]) -> Pools {
        let process = ServiceSpec {
            command: vec!["x".to_owned()],
            environment: BTreeMap::new(),
            working_dir: "/".into(),
            mem_limit: None,
            mem_reservation: None,
            memswap_limit: None,
            cpu_micros: None,
            pids_limit: None,
            restart: RestartPolicy::No,
            stop_grace_period: Duration::ZERO,
            stop_signal: 15,
            depends_on: BTreeMap::new(),
            healthcheck: None,
            priority: Priority::Normal,
            on_limit: OnLimit::Tree,
            on_pressure: None,
            listen: None,
            min_available: 0,
            replicas: 1,
            scale: None,
        };
        let plain = PoolSpec {
            process,
            protocol: Protocol::Jsonl,
            models: Vec::new(),
            reuse: Reuse::Session,
            max_sessions: 1,
            warm: 0,
            idle_ttl: Duration::ZERO,
            max_turns: None,
            max_turns_jitter: 0,
            max_context: None,
            max_age: None,
            recycle_above: None,
            start_timeout: Duration::ZERO,
            first_byte_timeout: Duration::ZERO,
            stall_timeout: Duration::ZERO,
            turn_timeout: Duration::ZERO,
            queue: QueueSpec::default(),
            rehydrate: Rehydrate::Resume,
            max_line: 0,
            isolation: Isolation::Session,
            pass_environment: Vec::new(),
        };
        let pool = |(name, models): &(&str, &[&str])| {
            let models = models.iter().map(|name| (*name).to_owned()).collect();
            (Arc::from(*name), Arc::new(PoolSpec { models, ..plain.clone() }))
        };
        all.iter().map(pool).collect()
    }

    #[test]
    fn a_name_is_one_pools() {
        let pools = pools(&[("bot", &["haiku", "a/b"]), ("echo", &[])]);
        let named = |model: &str| pool_of(&pools, model).map(|(name, _)| &**name);
        assert_eq!((named("bot"), named("haiku"), named("a/b")), (Some("bot"), Some("bot"), Some("bot")));
        assert_eq!((named("echo"), named("Haiku"), named("")), (Some("echo"), None, None));
    }

    #[test]
    fn the_list_has_what_one_may_ask() {
        let pools = pools(&[("bot", &["haiku"]), ("echo", &[])]);
        let ids = |may: fn(&str) -> bool| {
            let read: Value = serde_json::from_str(&list(&pools, may, 7)).unwrap();
            assert_eq!(read["object"], "list");
            read["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids(|_| true), ["bot", "haiku", "echo"]);
        assert_eq!(ids(|name| name == "echo"), ["echo"]);
        let read: Value = serde_json::from_str(&one("bot", 7)).unwrap();
        assert_eq!(read, json!({"id": "bot", "object": "model", "created": 7, "owned_by": "plimsoll"}));
    }
}
