//! `plimsoll check`: is this `plimsoll.yaml` right, and does it fit where we are?

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use plimsoll_config::{Finding, Loaded, Look, Severity};
use plimsoll_model::pool::{PoolSpec, Protocol};
use plimsoll_model::size::Human;
use plimsoll_model::stack::{RestartPolicy, ServiceSpec};
use serde::Serialize;

use crate::fault::{Fault, USAGE};
use crate::output;

/// Check a plimsoll.yaml, and whether it fits this machine or container
///
/// All mistakes are told at once, each with its line. What is right is summed up: replicas, limits and reservations of each
/// service, sessions of each pool, against the budget of where we are. Nothing is started.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  plimsoll check                  plimsoll.yaml here
  plimsoll check srv/stack.yaml   another file
  plimsoll check --json           for scripts

Exit code: 0 right, 2 wrong.")]
pub(crate) struct CheckArgs {
    /// The file, or its folder [default: plimsoll.yaml or plimsoll.yml here]
    pub(crate) file: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn main(args: &CheckArgs) -> Result<ExitCode, Fault> {
    let file = file(args.file.as_deref())?;
    let here = super::health::here();
    let read = plimsoll_config::read(&file, |name| std::env::var(name).ok());
    let (loaded, findings) = match read {
        Ok(loaded) => {
            let mut findings = loaded.warnings.clone();
            findings.extend(here.as_ref().map(|(_, usage)| loaded.fits(usage.limit_bytes)).unwrap_or_default());
            (Some(loaded), findings)
        }
        Err(errors) => (None, errors.findings),
    };
    let wrong = findings.iter().any(|finding| finding.severity == Severity::Error);
    let place = here.as_ref().map(|(of, usage)| (of.as_str(), usage.limit_bytes));
    let shown = if args.json {
        output::print(&json(&file, loaded.as_ref(), &findings, place))
    } else {
        if !findings.is_empty() {
            output::error(&(plimsoll_config::render(&findings, look()) + "\n"));
        }
        match &loaded {
            Some(loaded) if !wrong => output::print(&table(loaded, place)),
            _ => ExitCode::SUCCESS,
        }
    };
    if wrong {
        if !args.json {
            output::error(&format!("plimsoll: error: {}: {}", file.display(), count(&findings)));
        }
        return Ok(ExitCode::from(USAGE));
    }
    Ok(shown)
}

/// The file that is meant.
pub(super) fn file(named: Option<&Path>) -> Result<PathBuf, Fault> {
    let folder = match named {
        Some(path) if !path.is_dir() => return Ok(path.to_owned()),
        Some(folder) => folder,
        None => Path::new(""),
    };
    plimsoll_config::find(folder).ok_or_else(|| {
        let place = named.map_or("here".to_owned(), |folder| format!("in {}", folder.display()));
        Fault::usage(
            format!("there is no {} {place}", plimsoll_config::FILE_NAMES.join(" and no ")),
            "`plimsoll init` writes one; `plimsoll check FILE` names another",
        )
    })
}

/// Colours only for somebody who sees them and did not say no.
pub(super) fn look() -> Look {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    Look { color: std::io::stderr().is_terminal() && !refused && !dumb, ..Look::default() }
}

fn count(findings: &[Finding]) -> String {
    let of = |severity, word: &str| match findings.iter().filter(|finding| finding.severity == severity).count() {
        0 => None,
        1 => Some(format!("1 {word}")),
        n => Some(format!("{n} {word}s")),
    };
    let counts = [of(Severity::Error, "error"), of(Severity::Warning, "warning")];
    counts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn restart(policy: RestartPolicy) -> String {
    match policy {
        RestartPolicy::No => "no".to_owned(),
        RestartPolicy::Always => "always".to_owned(),
        RestartPolicy::OnFailure(None) => "on-failure".to_owned(),
        RestartPolicy::OnFailure(Some(times)) => format!("on-failure:{times}"),
        RestartPolicy::UnlessStopped => "unless-stopped".to_owned(),
    }
}

fn cores(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Claude => "claude",
        Protocol::Jsonl => "jsonl",
        Protocol::Exec => "exec",
    }
}

/// What services or pools together may take at most and are promised at least, in bytes.
#[derive(Clone, Copy)]
struct Sums {
    limits: u64,
    reserved: u64,
}

impl Sums {
    /// Of processes, each with the most and the fewest of it that there may be.
    fn of<'s>(shares: impl Iterator<Item = (&'s ServiceSpec, u32, u32)>) -> Self {
        shares.fold(Self { limits: 0, reserved: 0 }, |sums, (process, most, least)| {
            let share = |bytes: Option<u64>, count: u32| bytes.unwrap_or(0).saturating_mul(count.into());
            Self {
                limits: sums.limits.saturating_add(share(process.mem_limit, most)),
                reserved: sums.reserved.saturating_add(share(process.mem_reservation, least)),
            }
        })
    }

    fn of_services(loaded: &Loaded) -> Self {
        let services = loaded.spec.services.values();
        Self::of(services.map(|service| (service, service.most_replicas(), service.least_replicas())))
    }

    fn of_pools(loaded: &Loaded) -> Self {
        let pools = loaded.spec.pools.values();
        Self::of(pools.map(|pool| (&pool.process, pool.most_processes(), pool.least_processes())))
    }

    fn plus(self, other: Self) -> Self {
        Self {
            limits: self.limits.saturating_add(other.limits),
            reserved: self.reserved.saturating_add(other.reserved),
        }
    }
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or("-".to_owned(), |bytes| Human(bytes).to_string())
}

/// A row a service, a row a pool, their sums, the budget of where we are, and where pools are asked.
fn table(loaded: &Loaded, here: Option<(&str, u64)>) -> String {
    let (services, pools) = (Sums::of_services(loaded), Sums::of_pools(loaded));
    let mut text = String::new();
    if !loaded.spec.services.is_empty() {
        text += &service_table(loaded, services);
        text.push('\n');
    }
    if !loaded.spec.pools.is_empty() {
        text += &pool_table(loaded, pools);
        text.push('\n');
    }
    match here {
        Some((of, total)) => {
            let budget = loaded.spec.budget.bytes(total);
            let left = Human(budget.saturating_sub(services.plus(pools).reserved));
            text += &format!("budget: {} of the {} {of}; {left} not reserved\n", Human(budget), Human(total));
        }
        None => text += "budget: not known, for /proc/meminfo cannot be read\n",
    }
    if let Some(gateway) = &loaded.spec.gateway {
        let tokens = if gateway.token_file.is_some() { "with a token" } else { "without a token" };
        text += &format!("gateway: {}, {tokens}\n", gateway.listen);
    }
    text
}

fn service_table(loaded: &Loaded, sums: Sums) -> String {
    let row = |(name, service): (&String, &ServiceSpec)| {
        let replicas = match service.scale {
            Some(scale) => format!("{}-{}", scale.min, scale.max),
            None => service.replicas.to_string(),
        };
        [
            name.clone(),
            replicas,
            size(service.mem_limit),
            size(service.mem_reservation),
            service.cpu_micros.map_or("-".to_owned(), |micros| cores(micros).to_string()),
            restart(service.restart),
            service.listen.map_or("-".to_owned(), |address| address.to_string()),
        ]
    };
    let rows = loaded.spec.services.iter().map(row);
    columns(["SERVICE", "REPLICAS", "LIMIT", "RESERVED", "CPUS", "RESTART", "LISTEN"], rows, sums)
}

fn pool_table(loaded: &Loaded, sums: Sums) -> String {
    let row = |(name, pool): (&String, &PoolSpec)| {
        let models = if pool.models.is_empty() { "-".to_owned() } else { pool.models.join(", ") };
        let (limit, reserved) = (size(pool.process.mem_limit), size(pool.process.mem_reservation));
        let sessions = pool.max_sessions.to_string();
        [name.clone(), sessions, limit, reserved, pool.warm.to_string(), protocol(pool.protocol).to_owned(), models]
    };
    columns(
        ["POOL", "SESSIONS", "LIMIT", "RESERVED", "WARM", "PROTOCOL", "MODELS"],
        loaded.spec.pools.iter().map(row),
        sums,
    )
}

/// Rows with their sums in the third and fourth column.
fn columns(header: [&str; 7], rows: impl Iterator<Item = [String; 7]>, sums: Sums) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(80);
    table.set_header(header);
    for row in rows {
        table.add_row(row);
    }
    let total = ["all".to_owned(), String::new(), Human(sums.limits).to_string(), Human(sums.reserved).to_string()];
    table.add_row(total.into_iter().chain([String::new(), String::new(), String::new()]));
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == 6 { 0 } else { 2 }));
        if (1..5).contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[derive(Serialize)]
struct Report<'a> {
    file: String,
    ok: bool,
    budget: Option<Budget<'a>>,
    services: Vec<Service<'a>>,
    pools: Vec<Pool<'a>>,
    gateway: Option<Gateway>,
    total: Option<Total>,
    findings: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Budget<'a> {
    of: &'a str,
    total_bytes: u64,
    limit_bytes: u64,
    strict: bool,
}

#[derive(Serialize)]
struct Service<'a> {
    name: &'a str,
    replicas: u32,
    cpus: Option<f64>,
    limit_bytes: Option<u64>,
    reservation_bytes: Option<u64>,
    scale: Option<Scale>,
    file: Option<&'a str>,
    line: Option<usize>,
}

#[derive(Serialize)]
struct Scale {
    min: u32,
    max: u32,
}

#[derive(Serialize)]
struct Pool<'a> {
    name: &'a str,
    protocol: &'static str,
    models: &'a [String],
    max_sessions: u32,
    warm: u32,
    cpus: Option<f64>,
    limit_bytes: Option<u64>,
    reservation_bytes: Option<u64>,
    file: Option<&'a str>,
    line: Option<usize>,
}

#[derive(Serialize)]
struct Gateway {
    listen: String,
    has_tokens: bool,
}

#[derive(Serialize)]
struct Total {
    limit_bytes: u64,
    reservation_bytes: u64,
    left_bytes: Option<u64>,
}

#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    severity: &'a str,
    service: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<usize>,
    column: Option<usize>,
    message: &'a str,
    fix: &'a str,
}

fn json(file: &Path, loaded: Option<&Loaded>, findings: &[Finding], here: Option<(&str, u64)>) -> String {
    let budget = loaded.zip(here).map(|(loaded, (of, total))| Budget {
        of,
        total_bytes: total,
        limit_bytes: loaded.spec.budget.bytes(total),
        strict: loaded.strict,
    });
    let total = loaded.map(|loaded| {
        let sums = Sums::of_services(loaded).plus(Sums::of_pools(loaded));
        let (limit_bytes, reservation_bytes) = (sums.limits, sums.reserved);
        let left_bytes = budget.as_ref().map(|budget| budget.limit_bytes.saturating_sub(reservation_bytes));
        Total { limit_bytes, reservation_bytes, left_bytes }
    });
    let report = Report {
        file: file.display().to_string(),
        ok: !findings.iter().any(|finding| finding.severity == Severity::Error),
        services: loaded.map(services).unwrap_or_default(),
        pools: loaded.map(pools).unwrap_or_default(),
        gateway: loaded
            .and_then(|loaded| loaded.spec.gateway.as_ref())
            .map(|gateway| Gateway { listen: gateway.listen.to_string(), has_tokens: gateway.token_file.is_some() }),
        findings: findings.iter().map(finding).collect(),
        budget,
        total,
    };
    serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
}

fn services(loaded: &Loaded) -> Vec<Service<'_>> {
    loaded
        .spec
        .services
        .iter()
        .map(|(name, service)| {
            let place = loaded.place(name, None);
            Service {
                name,
                replicas: service.replicas,
                cpus: service.cpu_micros.map(cores),
                limit_bytes: service.mem_limit,
                reservation_bytes: service.mem_reservation,
                scale: service.scale.map(|scale| Scale { min: scale.min, max: scale.max }),
                file: place.map(plimsoll_config::Place::file),
                line: place.map(plimsoll_config::Place::line),
            }
        })
        .collect()
}

fn pools(loaded: &Loaded) -> Vec<Pool<'_>> {
    loaded
        .spec
        .pools
        .iter()
        .map(|(name, pool)| {
            let place = loaded.place(name, None);
            Pool {
                name,
                protocol: protocol(pool.protocol),
                models: &pool.models,
                max_sessions: pool.max_sessions,
                warm: pool.warm,
                cpus: pool.process.cpu_micros.map(cores),
                limit_bytes: pool.process.mem_limit,
                reservation_bytes: pool.process.mem_reservation,
                file: place.map(plimsoll_config::Place::file),
                line: place.map(plimsoll_config::Place::line),
            }
        })
        .collect()
}

fn finding(finding: &Finding) -> Row<'_> {
    let place = finding.place.as_ref();
    Row {
        id: finding.id,
        severity: finding.severity.as_str(),
        service: finding.service.as_deref(),
        file: place.map(plimsoll_config::Place::file),
        line: place.map(plimsoll_config::Place::line),
        column: place.map(plimsoll_config::Place::column),
        message: &finding.message,
        fix: &finding.help,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(name: &str) -> Loaded {
        let text = format!(
            "budget: {{ memory: 1g }}\nservices:\n  {name}: {{ command: x, mem_limit: 512m, mem_reservation: 100m, \
             cpus: 1.25, restart: unless-stopped, listen: \"[2001:db8:1111:2222:3333:4444:5555:6666]:65535\", \
             scale: {{ min: 2, max: 4, target_cpu: 70% }} }}\n  b: {{ command: x, env_file: a }}\n"
        );
        plimsoll_config::parse(&text, Path::new("/f.yaml"), |_| None, |_| Ok(String::new())).unwrap()
    }

    #[test]
    fn a_table_in_eighty_columns() {
        for name in ["api", &"long-name-".repeat(6)] {
            let text = table(&loaded(name), Some(("on this machine", 2 << 30)));
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
            for part in
                ["512 MiB", "1.25", "2-4", "2 GiB", "200 MiB", "budget: 1 GiB of the 2 GiB on this machine; 824 MiB"]
            {
                assert!(text.contains(part), "{text}");
            }
        }
        assert!(table(&loaded("a"), None).contains("not known"));
    }

    #[test]
    fn pools_in_a_table_of_their_own() {
        let text = "budget: { memory: 4g }\npools:\n  bot: { command: x, protocol: jsonl, mem_limit: 400m, \
                    mem_reservation: 100m, max_sessions: 4, warm: 2, models: [a, b] }\ngateway: { listen: 7071 }\n";
        let loaded = plimsoll_config::parse(text, Path::new("/f.yaml"), |_| None, |_| Ok(String::new())).unwrap();
        assert_eq!(
            table(&loaded, Some(("here", 8 << 30))),
            "POOL  SESSIONS    LIMIT  RESERVED  WARM  PROTOCOL  MODELS\n\
             bot          4  400 MiB   100 MiB     2  jsonl     a, b\n\
             all             2.3 GiB   200 MiB\n\n\
             budget: 4 GiB of the 8 GiB here; 3.8 GiB not reserved\n\
             gateway: 127.0.0.1:7071, without a token\n"
        );
        let text = json(Path::new("f.yaml"), Some(&loaded), &[], Some(("here", 8 << 30)));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["pools"][0]["name"], &value["pools"][0]["max_sessions"]), (&"bot".into(), &4.into()));
        assert_eq!((&value["pools"][0]["models"][1], &value["pools"][0]["line"]), (&"b".into(), &3.into()));
        assert_eq!(value["total"]["limit_bytes"], 6 * 400 * (1u64 << 20));
        assert_eq!(value["gateway"]["listen"], "127.0.0.1:7071");
    }

    #[test]
    fn one_json_object_whether_right_or_wrong() {
        let loaded = loaded("api");
        let findings = loaded.fits(1 << 30);
        let value: serde_json::Value =
            serde_json::from_str(&json(Path::new("f.yaml"), Some(&loaded), &findings, Some(("here", 1 << 30))))
                .unwrap();
        assert_eq!(value["ok"], true);
        assert_eq!(value["budget"]["limit_bytes"], 1 << 30);
        let service = &value["services"][0];
        assert_eq!(
            (&service["name"], &service["limit_bytes"], &service["line"]),
            (&"api".into(), &(512 << 20).into(), &3.into())
        );
        assert_eq!((&service["scale"]["min"], &service["cpus"]), (&2.into(), &1.25.into()));
        assert_eq!(value["total"]["reservation_bytes"], 200 << 20);
        let finding = &value["findings"][0];
        assert_eq!((&finding["id"], &finding["severity"]), (&"limits_over_budget".into(), &"warning".into()));
        assert_eq!((&finding["file"], &finding["line"]), (&"/f.yaml".into(), &3.into()));

        let errors = plimsoll_config::parse("a: 1", Path::new("f"), |_| None, |_| Ok(String::new())).unwrap_err();
        let value: serde_json::Value =
            serde_json::from_str(&json(Path::new("f"), None, &errors.findings, None)).unwrap();
        assert_eq!(
            (&value["ok"], &value["services"], &value["total"]),
            (&false.into(), &serde_json::json!([]), &().into())
        );
        assert_eq!(value["findings"][0]["column"], 1);
    }

    #[test]
    fn findings_are_counted() {
        let errors = plimsoll_config::parse("a: 1\nb: 1", Path::new("f"), |_| None, |_| Ok(String::new())).unwrap_err();
        assert_eq!(count(&errors.findings), "3 errors");
        assert_eq!(count(&loaded("a").fits(1 << 30)), "1 warning");
    }

    #[test]
    fn signals_are_called_as_the_kernel_side_calls_them() {
        for number in (1..32).chain([34, 40, 64]) {
            let name = plimsoll_kernel::signal::name(number);
            let name = if number < 32 { name } else { number.to_string() };
            let text = format!("services: {{ a: {{ command: x, stop_signal: {name} }} }}");
            let read = plimsoll_config::parse(&text, Path::new("f"), |_| None, |_| Ok(String::new())).unwrap();
            assert_eq!(read.spec.services["a"].stop_signal, number);
        }
    }
}
