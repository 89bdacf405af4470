//! What the tests of this tree share.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_model::OnLimit;
use plimsoll_model::stack::{Priority, RestartPolicy, ServiceSpec};

/// A service with every default.
pub(super) fn service() -> ServiceSpec {
    ServiceSpec {
        command: vec!["sleep".to_owned(), "inf".to_owned()],
        environment: BTreeMap::new(),
        working_dir: PathBuf::from("/"),
        mem_limit: None,
        mem_reservation: None,
        memswap_limit: None,
        cpu_micros: None,
        pids_limit: None,
        restart: RestartPolicy::No,
        stop_grace_period: Duration::from_secs(10),
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
    }
}
