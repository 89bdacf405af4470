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
