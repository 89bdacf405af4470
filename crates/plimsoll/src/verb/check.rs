//! `plimsoll check`: is this `plimsoll.yaml` right, and does it fit where we are?

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use plimsoll_config::{Finding, Loaded, Look, Severity};
use plimsoll_model::size::Human;
use plimsoll_model::stack::{RestartPolicy, ServiceSpec};
use serde::Serialize;

use crate::fault::{Fault, USAGE};
use crate::output;

/// Check a plimsoll.yaml, and whether it fits this machine or container
///
/// All mistakes are told at once, each with its line. What is right is summed up: replicas, limits and reservations of each
/// service, against the budget of where we are. Nothing is started.
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

/// What all services together may take at most and are promised at least, in bytes.
fn sums(loaded: &Loaded) -> (u64, u64) {
    let sum = |share: &dyn Fn(&ServiceSpec) -> Option<u64>| {
        loaded.spec.services.values().filter_map(share).fold(0u64, u64::saturating_add)
    };
    let limits = sum(&|service| Some(service.mem_limit?.saturating_mul(service.most_replicas().into())));
    let reserved = sum(&|service| Some(service.mem_reservation?.saturating_mul(service.least_replicas().into())));
    (limits, reserved)
}

/// A row a service, the sums, and the budget of where we are.
fn table(loaded: &Loaded, here: Option<(&str, u64)>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_width(80);
    table.set_header(["SERVICE", "REPLICAS", "LIMIT", "RESERVED", "CPUS", "RESTART", "LISTEN"]);
    let size = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| Human(bytes).to_string());
    for (name, service) in &loaded.spec.services {
        let replicas = match service.scale {
            Some(scale) => format!("{}-{}", scale.min, scale.max),
            None => service.replicas.to_string(),
        };
        table.add_row([
            name.clone(),
            replicas,
            size(service.mem_limit),
            size(service.mem_reservation),
            service.cpu_micros.map_or("-".to_owned(), |micros| cores(micros).to_string()),
            restart(service.restart),
            service.listen.map_or("-".to_owned(), |address| address.to_string()),
        ]);
    }
    let (limits, reserved) = sums(loaded);
    let total = ["all".to_owned(), String::new(), Human(limits).to_string(), Human(reserved).to_string()];
    table.add_row(total.into_iter().chain([String::new(), String::new(), String::new()]));
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == 6 { 0 } else { 2 }));
        if (1..5).contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let mut text: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    text.push('\n');
    match here {
        Some((of, total)) => {
            let budget = loaded.spec.budget.bytes(total);
            let left = Human(budget.saturating_sub(reserved));
            text += &format!("budget: {} of the {} {of}; {left} not reserved\n", Human(budget), Human(total));
        }
        None => text += "budget: not known, for /proc/meminfo cannot be read\n",
    }
    text
}

#[derive(Serialize)]
struct Report<'a> {
    file: String,
    ok: bool,
    budget: Option<Budget<'a>>,
    services: Vec<Service<'a>>,
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
        let (limit_bytes, reservation_bytes) = sums(loaded);
        let left_bytes = budget.as_ref().map(|budget| budget.limit_bytes.saturating_sub(reservation_bytes));
        Total { limit_bytes, reservation_bytes, left_bytes }
    });
    let report = Report {
        file: file.display().to_string(),
        ok: !findings.iter().any(|finding| finding.severity == Severity::Error),
        services: loaded.map(services).unwrap_or_default(),
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
