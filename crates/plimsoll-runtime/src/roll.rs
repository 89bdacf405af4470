//! The roll of a tree: who is in it, who of them is large and by what command, and who was and is gone.

use std::time::Duration;

use plimsoll_core::redact;
use plimsoll_kernel::clock::Instant;
use plimsoll_kernel::tree::command_line;
use plimsoll_model::Member;
use plimsoll_model::certificate::Largest;

/// Members whose commands go into the certificate.
const LARGEST: usize = 5;

/// Who was large and went is remembered so long: the kernel's kill is known to us a moment after it.
const LOST_KEPT: Duration = Duration::from_secs(2);

/// Pids kept as a hint for reading the kernel's log.
const PIDS_KEPT: usize = 64;

/// Who is in a tree, as of the last call.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    /// Largest first.
    pub(crate) members: Vec<Member>,
    /// The largest of them, as the certificate shows them.
    pub(crate) largest: Vec<Largest>,
    /// Everyone ever seen, up to a bound.
    pub(crate) pids: Vec<i32>,
    /// The root and the command that it was started with, secrets hidden: it may be gone before anybody was called.
    root: Option<(i32, String)>,
    /// Who was among the largest and is gone, or is being emptied, and since when.
    lost: Vec<(Instant, Largest)>,
}

impl Roll {
    /// Takes down who is there, largest first, and the commands of the largest while they can still be asked. The values
    /// of `secrets` are not shown.
    pub(crate) fn call(&mut self, members: Vec<Member>, secrets: &[String]) {
        let before = std::mem::take(&mut self.largest);
        self.largest = members
            .iter()
            .take(LARGEST)
            .map(|member| {
                // A process that is ending has no command line any more; what it had is kept.
                let known = before.iter().find(|known| known.pid == member.pid).map(|known| known.command.clone());
                let command = command_line(member.pid)
                    .map(|line| redact::redact_command(&line, secrets).join(" "))
                    .or(known)
                    .or_else(|| self.root.as_ref().filter(|(pid, _)| *pid == member.pid).map(|(_, line)| line.clone()))
                    .unwrap_or_else(|| format!("[{}]", member.name));
                Largest { pid: member.pid, command, memory_bytes: member.memory_bytes, depth: member.depth }
            })
            .collect();
        let now = Instant::now();
        self.lost.retain(|(since, _)| now < since.after(LOST_KEPT));
        self.lost.extend(lost(&before, &members).map(|one| (now, one.clone())));
        members.iter().for_each(|member| self.note_pid(member.pid));
        self.members = members;
    }

    /// The root and its command, secrets hidden.
    pub(crate) fn note_root(&mut self, pid: i32, command: String) {
        self.note_pid(pid);
        self.root = Some((pid, command));
    }

    /// Somebody is known to be in it.
    pub(crate) fn note_pid(&mut self, pid: i32) {
        if self.pids.len() < PIDS_KEPT && !self.pids.contains(&pid) {
            self.pids.push(pid);
        }
    }

    /// The kernel's kill was quicker than the call: whom it took has to be among the largest.
    pub(crate) fn bring_back_the_lost(&mut self) {
        let lost = self.lost.drain(..).map(|(_, one)| one);
        self.largest = with_lost(std::mem::take(&mut self.largest), lost);
    }
}

/// Those of the largest that are no longer there, or have lost most of what they held, as one who is being killed has.
fn lost<'a>(before: &'a [Largest], now: &'a [Member]) -> impl Iterator<Item = &'a Largest> {
    let is_there = |one: &Largest| now.iter().any(|it| it.pid == one.pid && it.memory_bytes >= one.memory_bytes / 2);
    before.iter().filter(move |one| !is_there(one))
}

/// The largest, with those who went just now as they were.
fn with_lost(largest: Vec<Largest>, lost: impl Iterator<Item = Largest>) -> Vec<Largest> {
    let mut all: Vec<Largest> = largest.into_iter().chain(lost).collect();
    all.sort_by(|a, b| b.memory_bytes.cmp(&a.memory_bytes).then(a.pid.cmp(&b.pid)));
    let mut known = Vec::new();
    all.retain(|one| {
        !known.contains(&one.pid) && {
            known.push(one.pid);
            true
        }
    });
    all.truncate(LARGEST);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn large(pid: i32, memory_bytes: u64) -> Largest {
        Largest { pid, command: format!("command {pid}"), memory_bytes, depth: 1 }
    }

    fn member(pid: i32, memory_bytes: u64) -> Member {
        Member { pid, start_ticks: 1, parent: 1, depth: 1, name: "name".into(), memory_bytes }
    }

    /// A browser whose renderer the kernel kills: the next look finds it emptied, or only the others.
    #[test]
    fn whom_the_kernel_killed_stays_the_largest() {
        let before = [large(7, 500), large(3, 90), large(4, 80)];
        for now in [vec![member(3, 95), member(4, 80), member(7, 2)], vec![member(3, 95), member(4, 80)]] {
            let gone: Vec<Largest> = lost(&before, &now).cloned().collect();
            assert_eq!(gone, [large(7, 500)]);
            let listed = now.iter().map(|one| large(one.pid, one.memory_bytes)).collect();
            let pids: Vec<i32> = with_lost(listed, gone.into_iter()).iter().map(|one| one.pid).collect();
            assert_eq!(pids, [7, 3, 4]);
        }
        assert_eq!(lost(&before, &[member(7, 480), member(3, 90), member(4, 80)]).count(), 0);
    }
}
