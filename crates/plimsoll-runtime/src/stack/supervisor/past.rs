//! Conversations that their agents take up again (`--resume`): what an agent keeps of one in its home outlives that home, and
//! is given to the next process, which lives at the same path.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use plimsoll_core::stack::{Instance, Name};
use plimsoll_gateway::agent::claude;
use plimsoll_model::pool::{Isolation, PoolSpec, Protocol};
use plimsoll_model::stack::ServiceSpec;
use plimsoll_store::agents::Agents;

use super::Supervisor;
use crate::stack::seat::{self, Seat};

/// What a process is to take up again.
pub(super) struct Past {
    key: Name,
    /// The agent's own name for it.
    name: String,
    /// Where the process before it lived.
    seat: Option<String>,
}

impl Supervisor<'_> {
    /// What an agent keeps of a conversation that a process is started for.
    pub(super) fn past(&self, instance: &Instance, resumes: Option<&Name>) -> Option<Past> {
        let key = resumes.filter(|_| self.options.spec.pools.get(&*instance.service).is_some_and(claude::resumes))?;
        let agents = Agents::of(&self.options.state_dir);
        let name = agents.named(&instance.service, key)?.name;
        Some(Past { key: key.clone(), name, seat: agents.seat(&instance.service, key) })
    }

    /// What a session's folder is called: never as one of another conversation, also of another life of ours.
    pub(super) fn seat_name(&self, instance: &Instance, past: Option<&Past>) -> String {
        let own = || format!("{}.{}.{}.{}", instance.service, instance.replica, instance.generation, self.id.as_str());
        past.and_then(|past| past.seat.clone()).unwrap_or_else(own)
    }

    /// Gives a process what its agent kept. Answers the name by which it is to take that up, if there is something.
    pub(super) fn give(&mut self, instance: &Instance, seat: &Seat, past: Past) -> Option<String> {
        let pool = self.options.spec.pools.get(&*instance.service)?;
        let Some(home) = seat.home().filter(|_| !keeps_elsewhere(pool)) else { return Some(past.name) };
        let agents = Agents::of(&self.options.state_dir);
        let given = agents.give(&instance.service, &past.key, &past.name, &home, seat.user);
        let is_given = *given.as_ref().unwrap_or(&false);
        self.trouble(&about(instance), given.err().map(|error| error.to_string()));
        is_given.then_some(past.name)
    }

    /// A session has a conversation from now on: what its agent keeps of it is to outlive its home.
    pub(super) fn sit(&mut self, instance: &Instance, key: Option<&Name>) {
        let pool = self.options.spec.pools.get(&*instance.service);
        let Some(key) = key.filter(|_| pool.is_some_and(|pool| claude::resumes(pool) && !keeps_elsewhere(pool))) else {
            return;
        };
        let seat = self.replicas.get_mut(instance).and_then(|replica| replica.seat.as_mut());
        let Some(seat) = seat.filter(|seat| seat.home().is_some() && seat.key.is_none()) else { return };
        seat.key = Some(key.clone());
        let sat = Agents::of(&self.options.state_dir).sit(&instance.service, key, &seat.name);
        self.trouble(&about(instance), sat.err().map(|error| error.to_string()));
    }

    /// Nothing is left of a session: what its agent kept stays.
    pub(super) fn keep(&mut self, instance: &Instance, seat: &Seat) {
        let pool = self.options.spec.pools.get(&*instance.service);
        let Some((key, home)) = seat.key.as_ref().zip(seat.home()).filter(|_| pool.is_some_and(claude::resumes)) else {
            return;
        };
        let kept = Agents::of(&self.options.state_dir).keep(&instance.service, key, &seat.name, &home);
        self.trouble(&about(instance), kept.err().map(|error| error.to_string()));
    }
}

fn about(instance: &Instance) -> String {
    format!("transcripts of {}", instance.service)
}

/// Whether agents of a pool keep what they keep elsewhere than in a session's home, where it lasts by itself.
fn keeps_elsewhere(pool: &PoolSpec) -> bool {
    let config = "CLAUDE_CONFIG_DIR";
    let is_passed = pool.pass_environment.iter().any(|name| name == config) && std::env::var_os(config).is_some();
    let is_set = ["HOME", config].iter().any(|&name| pool.process.environment.contains_key(name));
    pool.isolation == Isolation::None || is_passed || is_set
}

/// Removes what sessions of a life that is over have left, and keeps of it what their agents kept. All of them are gone.
pub(super) fn clear_sessions(runtime_dir: &Path, state_dir: &Path) {
    let root = runtime_dir.join(seat::FOLDER);
    let home = |seat: &str| -> PathBuf { root.join(seat).join(seat::HOME) };
    let agents = Agents::of(state_dir);
    if root.exists() {
        for (pool, key, seat) in agents.seated(|seat| home(seat).exists()) {
            // What cannot be kept is told again.
            let _ = agents.keep(&pool, &key, &seat, &home(&seat));
        }
    }
    let _ = std::fs::remove_dir_all(root);
}

/// The command with which an agent is started: what its protocol needs is added.
pub(super) fn as_started(pool: &PoolSpec, spec: &Arc<ServiceSpec>, resumed: Option<&str>) -> Arc<ServiceSpec> {
    match pool.protocol {
        Protocol::Claude => {
            Arc::new(ServiceSpec { command: claude::arguments(&spec.command, resumed), ..(**spec).clone() })
        }
        Protocol::Jsonl | Protocol::Exec => spec.clone(),
    }
}
