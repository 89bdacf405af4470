//! Who runs on this machine: the large, the lost, the unreaped.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use plimsoll_model::host::{Leftover, ProcessFact, Zombies};

use super::{read_text, uptime};
use crate::procfs::{
    Process, for_each_pid, page_size, parse_smaps_rollup, parse_stat, parse_status_memory, read_all_of,
    read_environ_of, read_of, ticks_per_second,
};

/// Reads of `smaps_rollup` in one look: it walks the whole address space and holds its lock.
const ROLLUPS: u32 = 500;

/// Above this a process is counted by what is resident: the walk would take a second or more.
const WALKABLE: u64 = 16 << 30;

#[derive(Debug, Clone)]
struct Row {
    process: Process,
    parent: i32,
    session: i32,
    name: String,
    zombie: bool,
    rss: u64,
}

/// All processes of one instant, kernel threads left out.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: HashMap<i32, Row>,
    children: HashMap<i32, Vec<i32>>,
    uptime: Duration,
    rollups: Cell<u32>,
}

impl Table {
    /// Reads `/proc`; who cannot be read (any more) is not in it.
    pub(super) fn read() -> Self {
        let mut table = Self { uptime: uptime().unwrap_or_default(), ..Self::default() };
        let page = page_size();
        let mut buffer = [0; 1024];
        let scan = for_each_pid(|pid| {
            let Ok(text) = read_of(pid, "stat", &mut buffer) else { return };
            let Some(stat) = parse_stat(text).filter(|stat| !stat.kernel_thread) else { return };
            let row = Row {
                process: Process { pid, start_ticks: stat.start_ticks },
                parent: stat.parent,
                session: stat.session,
                name: String::from_utf8_lossy(stat.name).into_owned(),
                zombie: stat.is_ended(),
                rss: stat.rss_pages.saturating_mul(page),
            };
            table.children.entry(row.parent).or_default().push(pid);
            table.rows.insert(pid, row);
        });
        // Without /proc there is nothing to tell, and doctor says so by what is missing.
        let _ = scan;
        table
    }

    /// Processes that hold at least so many bytes, largest first.
    pub(super) fn large(&self, bytes: u64) -> Vec<ProcessFact> {
        let mut large: Vec<ProcessFact> = self
            .rows
            .values()
            .filter(|row| !row.zombie && row.rss + self.swapped(row) >= bytes.max(1))
            .map(|row| self.fact(row, self.memory(row)))
            .filter(|fact| fact.memory >= bytes)
            .collect();
        large.sort_by_key(|fact| std::cmp::Reverse(fact.memory));
        large
    }

    /// Agents and browsers of at least this age whose parent went before them, largest first; each with all that
    /// descends from it.
    pub(super) fn orphans(&self, old: Duration) -> Vec<ProcessFact> {
        let mut orphans: Vec<ProcessFact> = self
            .rows
            .values()
            .filter(|row| !row.zombie && self.age(row) >= old && self.is_orphan(row))
            .filter(|row| looks_like_agent(&row.name, &arguments(row.process.pid)) && !is_service(row.process.pid))
            .map(|row| self.fact(row, self.subtree_memory(row)))
            .collect();
        orphans.sort_by_key(|fact| std::cmp::Reverse(fact.memory));
        orphans
    }

    /// Zombies with the parent who should have reaped them.
    pub(super) fn zombies(&self) -> Vec<(Process, Zombies)> {
        let zombies = self.rows.values().filter(|row| row.zombie);
        zombies
            .map(|row| {
                let parent_command = self.rows.get(&row.parent).map_or_else(|| vec!["?".to_owned()], command);
                let zombies = Zombies { parent: row.parent, parent_command, count: 1, example: row.name.clone() };
                (row.process, zombies)
            })
            .collect()
    }

    /// Processes that carry the id of a run of ours that is not alive, one entry a run.
    pub(super) fn left_processes(&self, live: &[String]) -> Vec<Leftover> {
        let mut found: std::collections::BTreeMap<String, Vec<i32>> = std::collections::BTreeMap::new();
        for row in self.rows.values().filter(|row| !row.zombie) {
            if let Tag::Ours(id) = tag(row.process.pid)
                && !live.contains(&id)
            {
                found.entry(id).or_default().push(row.process.pid);
            }
        }
        let leftover =
            |(id, pids)| Leftover { what: format!("PLIMSOLL_ID={id}"), pids, groups: Vec::new(), registered: false };
        found.into_iter().map(leftover).collect()
    }

    /// Whether a plimsoll looks after one of them: then its run is alive, whatever its environment shows. A keeper that was
    /// killed is nobody's parent any more.
    pub(super) fn are_kept(&self, pids: &[i32]) -> bool {
        let parent = |pid: &i32| self.rows.get(&self.rows.get(pid)?.parent);
        pids.iter().filter_map(parent).any(|parent| parent.name == "plimsoll")
    }

    fn fact(&self, row: &Row, memory: u64) -> ProcessFact {
        let Process { pid, .. } = row.process;
        ProcessFact { pid, parent: row.parent, command: command(row), memory, age: self.age(row) }
    }

    fn age(&self, row: &Row) -> Duration {
        self.uptime.saturating_sub(Duration::from_millis(row.process.start_ticks * 1000 / ticks_per_second().max(1)))
    }

    /// Its parent is not the one who started it. A child inherits its parent's session unless it opens its own, so a
    /// session that is neither its parent's nor its own came from somebody who is gone. Below pid 1 the session proves
    /// nothing when it is its own: then an init as pid 1 is the sign, since an init of a container starts one program.
    fn is_orphan(&self, row: &Row) -> bool {
        let adopted = |parent: &Row| row.session != parent.session && row.session != row.process.pid;
        match self.rows.get(&row.parent) {
            Some(parent) if row.parent == 1 => is_init(&parent.name) || adopted(parent),
            Some(parent) => adopted(parent),
            None => false,
        }
    }

    fn swapped(&self, row: &Row) -> u64 {
        let mut buffer = [0; 4096];
        let status = read_of(row.process.pid, "status", &mut buffer).ok().and_then(parse_status_memory);
        status.map_or(0, |status| status.swap)
    }

    /// Proportional share and swap where it may be read and is cheap enough, else what is resident and swapped.
    fn memory(&self, row: &Row) -> u64 {
        if row.rss <= WALKABLE && self.rollups.get() < ROLLUPS {
            self.rollups.set(self.rollups.get() + 1);
            let mut buffer = [0; 4096];
            let rollup = read_of(row.process.pid, "smaps_rollup", &mut buffer).ok().and_then(parse_smaps_rollup);
            if let Some(rollup) = rollup {
                return rollup.pss.saturating_add(rollup.swap_pss);
            }
        }
        row.rss.saturating_add(self.swapped(row))
    }

    fn subtree_memory(&self, root: &Row) -> u64 {
        let mut sum = 0u64;
        let mut waiting = vec![root.process.pid];
        // Parents that change while the table is read cannot make a circle longer than the table.
        for _ in 0..=self.rows.len() {
            let Some(pid) = waiting.pop() else { break };
            if let Some(row) = self.rows.get(&pid) {
                sum = sum.saturating_add(self.memory(row));
            }
            waiting.extend(self.children.get(&pid).into_iter().flatten());
        }
        sum
    }
}

/// Whose run a process belongs to, by its environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tag {
    /// A run with this id, of this user and this runtime directory.
    Ours(String),
    /// Another user's, or that of a Plimsoll with another runtime directory, of whose runs we know nothing.
    Foreign,
    /// No run's, or not ours to read.
    None,
}

/// Reads the tag of a process.
pub(super) fn tag(pid: i32) -> Tag {
    let mut environment = Vec::new();
    let owner = rustix::fs::stat(format!("/proc/{pid}")).map(|stat| stat.st_uid);
    let is_mine = owner == Ok(rustix::process::geteuid().as_raw());
    if read_environ_of(pid, &mut environment).is_err() {
        return if is_mine || owner.is_err() { Tag::None } else { Tag::Foreign };
    }
    let value = |key: &[u8]| {
        environment.split(|&byte| byte == 0).find_map(|entry| entry.strip_prefix(key)).filter(|value| !value.is_empty())
    };
    let id = value(b"PLIMSOLL_ID=").and_then(|id| std::str::from_utf8(id).ok());
    let Some(id) = id.filter(|id| id.parse::<plimsoll_model::RunId>().is_ok()) else { return Tag::None };
    let here = std::env::var_os("PLIMSOLL_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let same_place = value(b"PLIMSOLL_RUNTIME_DIR=") == here.as_deref().map(OsStrExt::as_bytes);
    if same_place && is_mine { Tag::Ours(id.to_owned()) } else { Tag::Foreign }
}

/// Those that are zombies still, by parent, most first.
pub(super) fn still_zombies(zombies: Vec<(Process, Zombies)>) -> Vec<Zombies> {
    let mut grouped: HashMap<i32, Zombies> = HashMap::new();
    for (process, zombie) in zombies {
        if matches!(process.state(), Ok(Some('Z'))) {
            grouped.entry(zombie.parent).and_modify(|group| group.count += 1).or_insert(zombie);
        }
    }
    let mut groups: Vec<Zombies> = grouped.into_values().collect();
    groups.sort_by_key(|group| (std::cmp::Reverse(group.count), group.parent));
    groups
}

/// Arguments of a process; none for one that has ended, or that is not ours to see.
fn arguments(pid: i32) -> Vec<String> {
    let mut text = Vec::new();
    if read_all_of(pid, "cmdline", &mut text).is_err() {
        return Vec::new();
    }
    let text = text.strip_suffix(b"\0").unwrap_or(&text);
    if text.is_empty() {
        return Vec::new();
    }
    text.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Its command and arguments, or its name in brackets.
fn command(row: &Row) -> Vec<String> {
    let arguments = arguments(row.process.pid);
    if arguments.is_empty() { vec![format!("[{}]", row.name)] } else { arguments }
}

fn is_init(name: &str) -> bool {
    const INITS: [&str; 12] = [
        "systemd",
        "init",
        "tini",
        "dumb-init",
        "docker-init",
        "catatonit",
        "s6-svscan",
        "runit",
        "openrc-init",
        "supervisord",
        "busybox",
        "pause",
    ];
    INITS.contains(&name)
}

/// systemd started it, as a service or as a desktop's program: it is looked after, whoever its parent is.
fn is_service(pid: i32) -> bool {
    let groups = read_text(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups
        .lines()
        .any(|line| line.contains("/app.slice/") || line.contains("/system.slice/") && line.ends_with(".service"))
}

/// Whether a process is one of those that agents leave behind: the agents themselves, their tool servers, browsers and
/// the programs that drive them. `name` is the kernel's short name, `arguments` the command line.
#[must_use]
pub fn looks_like_agent(name: &str, arguments: &[String]) -> bool {
    const PROGRAMS: [&str; 27] = [
        "aider",
        "amp",
        "chrome",
        "chrome-headless",
        "chrome_crashpad",
        "chromedriver",
        "chromium",
        "chromium-browse",
        "claude",
        "codex",
        "copilot",
        "crush",
        "cursor-agent",
        "firefox",
        "firefox-esr",
        "geckodriver",
        "gemini",
        "goose",
        "headless_shell",
        "msedge",
        "opencode",
        "playwright",
        "puppeteer",
        "qwen",
        "webkit2gtk",
        "chrome-linux",
        "openhands",
    ];
    const HINTS: [&str; 8] = [
        "claude-code",
        "playwright",
        "puppeteer",
        "chromedriver",
        "headless_shell",
        "--remote-debugging-port",
        "--headless",
        "selenium",
    ];
    let file_name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_lowercase();
    let is_program = |word: &str| PROGRAMS.contains(&file_name(word).as_str());
    if is_program(name) || arguments.first().is_some_and(|program| is_program(program)) {
        return true;
    }
    let program = arguments.first().map(|program| file_name(program)).unwrap_or_default();
    let interpreter = ["node", "npx", "npm", "bun", "deno", "python", "uv", "uvx", "sh", "bash"]
        .iter()
        .any(|word| program.starts_with(word));
    if !interpreter {
        return arguments.iter().any(|word| HINTS[5..].iter().any(|hint| word.starts_with(hint)));
    }
    // The script, or the module behind -m: what is interpreted, not what it is told.
    arguments.iter().skip(1).take(4).any(|word| {
        let word = word.to_lowercase();
        let script = file_name(&word);
        let is_tool_server = word.split(['/', '-', '_', '.', '@']).any(|part| part == "mcp");
        is_tool_server
            || is_program(script.trim_end_matches(".js").trim_end_matches(".mjs").trim_end_matches(".py"))
            || HINTS.iter().any(|hint| word.contains(hint))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(pid: i32, parent: i32, session: i32, name: &str) -> Row {
        let process = Process { pid, start_ticks: 1 };
        Row { process, parent, session, name: name.into(), zombie: false, rss: 0 }
    }

    #[test]
    fn who_lost_his_parent() {
        let orphan = |pid_1: &str, rows: &[Row], who: i32| {
            let mut table = Table::default();
            table.rows.insert(1, row(1, 0, 1, pid_1));
            table.rows.extend(rows.iter().map(|row| (row.process.pid, row.clone())));
            table.is_orphan(&table.rows[&who])
        };
        // Adopted by init, in a session whose leader is gone, or in its own.
        assert!(orphan("systemd", &[row(50, 1, 40, "claude")], 50));
        assert!(orphan("tini", &[row(50, 1, 50, "claude")], 50));
        // A container's server is pid 1: its own child is none, somebody else's is one.
        assert!(!orphan("python3", &[row(50, 1, 1, "claude")], 50));
        assert!(!orphan("python3", &[row(50, 1, 50, "claude")], 50));
        assert!(orphan("python3", &[row(50, 1, 40, "claude")], 50));
        // Adopted by a subreaper.
        assert!(orphan("systemd", &[row(30, 1, 30, "systemd"), row(50, 30, 40, "chrome")], 50));
        // An ordinary child, and one that opened its own session.
        assert!(!orphan("systemd", &[row(30, 1, 30, "bash"), row(50, 30, 30, "claude")], 50));
        assert!(!orphan("systemd", &[row(30, 1, 30, "bash"), row(50, 30, 50, "claude")], 50));
    }

    #[test]
    fn agents_and_browsers() {
        let looks = |line: &str| {
            let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
            looks_like_agent("x", &arguments)
        };
        for line in [
            "/usr/lib/chromium/chromium --type=renderer",
            "claude --output-format stream-json",
            "node /usr/local/bin/claude -p",
            "node /usr/lib/node_modules/@anthropic-ai/claude-code/cli.js",
            "node /srv/tools/mcp-server-github/index.js",
            "npx -y @modelcontextprotocol/server-mcp",
            "python3 -m my_mcp.server",
            "uvx mcp-server-time",
            "node /app/node_modules/playwright/cli.js run-server",
            "/opt/pw/headless_shell --no-sandbox",
            "/opt/browser --remote-debugging-port=0",
        ] {
            assert!(looks(line), "{line}");
        }
        for line in [
            "nginx -g daemon",
            "node server.js",
            "python3 app.py",
            "bash",
            "/usr/sbin/sshd -D",
            "vim claude.md",
            "less mcp.txt",
        ] {
            assert!(!looks(line), "{line}");
        }
        assert!(looks_like_agent("claude", &[]));
    }

    #[test]
    fn a_circle_of_parents_ends() {
        let mut table = Table::default();
        for (pid, parent) in [(5, 6), (6, 5)] {
            table.rows.insert(pid, row(pid, parent, 5, "x"));
            table.children.entry(parent).or_default().push(pid);
        }
        table.subtree_memory(&table.rows[&5]);
    }

    #[expect(clippy::disallowed_methods, reason = "what is looked for has to be there; each is ended by its pid")]
    fn command(program: &str) -> std::process::Command {
        std::process::Command::new(program)
    }

    #[test]
    fn a_zombie_and_who_left_it() {
        let mut child = command("true").spawn().unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        while !matches!(process.state(), Ok(Some('Z'))) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let found = still_zombies(Table::read().zombies());
        let mine = found.iter().find(|group| group.parent == me).unwrap();
        assert!(mine.count >= 1 && !mine.parent_command.is_empty(), "{found:?}");
        // One that is reaped before the second look was only about to be.
        let first = Table::read().zombies();
        child.wait().unwrap();
        assert!(
            !still_zombies(first.into_iter().filter(|(zombie, _)| *zombie == process).collect()).iter().any(|_| true)
        );
    }

    #[test]
    fn a_tagged_process_without_its_run() {
        // Each is looked at while it is still on its way through exec, or nearly so.
        for n in 0..100 {
            let id = plimsoll_model::RunId::new(n, std::process::id()).to_string();
            let mut child = command("sleep").arg("1000").env("PLIMSOLL_ID", &id).spawn().unwrap();
            let table = Table::read();
            let left = table.left_processes(&[]);
            let of_live = table.left_processes(std::slice::from_ref(&id));
            child.kill().unwrap();
            child.wait().unwrap();
            let found = left.iter().find(|left| left.what.ends_with(&id));
            assert_eq!(found.map(|left| left.pids.len()), Some(1), "{left:?}");
            assert!(!of_live.iter().any(|left| left.what.ends_with(&id)), "{of_live:?}");
        }
    }

    #[test]
    fn who_has_a_keeper_is_alive() {
        let row = |pid, parent, name: &str| {
            let process = Process { pid, start_ticks: 1 };
            (pid, Row { process, parent, session: 1, name: name.to_owned(), zombie: false, rss: 0 })
        };
        let rows = [row(1, 0, "init"), row(5, 1, "plimsoll"), row(6, 5, "env"), row(7, 1, "daemon")].into();
        let table = Table { rows, ..Table::default() };
        assert!(table.are_kept(&[7, 6]) && !table.are_kept(&[7, 99]) && !table.are_kept(&[]));
    }

    #[test]
    fn an_orphaned_agent() {
        let dir = std::env::temp_dir().join(format!("plimsoll-test-orphan-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let agent = dir.join("claude");
        std::fs::write(&agent, "#!/bin/sh\nwhile :; do sleep 1; done\n").unwrap();
        // The shell in a session of its own starts the agent and goes.
        let script = "sh \"$0/claude\" >/dev/null 2>&1 & echo $!";
        let output = command("setsid").args(["--wait", "sh", "-c", script]).arg(&dir).output().unwrap();
        let pid: i32 = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
        let table = Table::read();
        let (found, old) = (table.orphans(Duration::ZERO), table.orphans(Duration::from_secs(3600)));
        rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        let orphan = found.iter().find(|fact| fact.pid == pid).unwrap_or_else(|| panic!("{pid} is not in {found:?}"));
        assert!(orphan.command.iter().any(|word| word.ends_with("/claude")) && orphan.memory > 0, "{orphan:?}");
        assert!(!old.iter().any(|fact| fact.pid == pid), "it is not old");
    }

    #[test]
    fn a_large_process_is_found() {
        let table = Table::read();
        let me = i32::try_from(std::process::id()).unwrap();
        let found = table.large(1);
        assert!(found.iter().any(|fact| fact.pid == me && fact.memory > 0), "{found:?}");
        assert!(found.is_sorted_by(|a, b| a.memory >= b.memory));
        assert!(table.large(1 << 60).is_empty());
    }
}
