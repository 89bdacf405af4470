//! `plimsoll.yaml`: written by people, with whatever editors and templates make of it. The same input is the file and every
//! file of variables that it names.

#![no_main]

use std::io;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use plimsoll_config::{Loaded, Look, Severity, render};
use plimsoll_model::stack::{Amount, Gauge};

fn read(text: &str) -> Result<Loaded, plimsoll_config::ConfigErrors> {
    let env = |name: &str| name.starts_with('A').then(|| name.repeat(2));
    let files = |path: &Path| {
        let known = path.extension().is_some_and(|kind| kind == "env") || path.ends_with(".env");
        if known { Ok(text.to_owned()) } else { Err(io::Error::from(io::ErrorKind::NotFound)) }
    };
    plimsoll_config::parse(text, Path::new("/srv/plimsoll.yaml"), env, files)
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let loaded = match read(text) {
        Ok(loaded) => loaded,
        Err(errors) => {
            assert!(errors.errors().count() > 0);
            for finding in &errors.findings {
                assert!(!finding.message.is_empty() && !finding.message.contains('\n'), "{finding:?}");
                assert!(finding.place.as_ref().is_none_or(|place| place.line() > 0 && place.column() > 0));
            }
            let shown = errors.render(Look { color: data.len().is_multiple_of(2), width: 80 });
            assert!(shown.contains("error"), "{shown}");
            return;
        }
    };
    let again = read(text).expect("what was read once is read again");
    assert_eq!(again.spec, loaded.spec);
    assert!(loaded.warnings.iter().all(|finding| finding.severity == Severity::Warning));
    let spec = &loaded.spec;
    assert!(!spec.services.is_empty() || !spec.pools.is_empty());
    assert!(spec.pools.is_empty() || spec.gateway.is_some());
    if let Amount::Percent(percent) = spec.budget.memory {
        assert!(percent > 0.0 && percent <= 100.0);
    }
    for (name, service) in &spec.services {
        assert!(!name.is_empty() && !name.contains('/') && !name.starts_with('.'), "{name}");
        assert!(loaded.place(name, None).is_some());
        assert!(service.command.first().is_some_and(|program| !program.is_empty()));
        assert!(service.working_dir.is_absolute());
        assert!(service.depends_on.keys().all(|other| spec.services.contains_key(other) && other != name));
        assert!(service.mem_limit.is_none_or(|bytes| bytes >= 6 << 20));
        assert!(service.mem_reservation.zip(service.mem_limit).is_none_or(|(reserved, limit)| reserved <= limit));
        assert!(service.memswap_limit.zip(service.mem_limit).is_none_or(|(swap, limit)| swap >= limit));
        assert!(service.least_replicas() <= service.replicas && service.replicas <= service.most_replicas());
        assert!(service.min_available <= service.most_replicas());
        let texts = service.command.iter().chain(service.environment.values()).chain(service.environment.keys());
        assert!(texts.into_iter().all(|text| !text.contains('\0')));
    }
    let mut models: Vec<&String> = spec.pools.keys().collect();
    for (name, pool) in &spec.pools {
        assert!(!spec.services.contains_key(name) && loaded.place(name, None).is_some(), "{name}");
        assert!(pool.max_sessions >= 1 && pool.most_processes() >= pool.least_processes());
        assert!(pool.max_turns.is_none_or(|turns| turns > pool.max_turns_jitter));
        assert!(pool.recycle_above.zip(pool.process.mem_limit).is_none_or(|(soft, hard)| soft <= hard));
        assert!(pool.process.command.first().is_some_and(|program| !program.is_empty()));
        assert!(pool.process.listen.is_none() && pool.process.scale.is_none() && pool.process.depends_on.is_empty());
        models.extend(&pool.models);
    }
    let names = models.len();
    models.sort_unstable();
    models.dedup();
    assert_eq!(models.len(), names, "a model is that of one pool");
    if let Some(gateway) = &spec.gateway {
        assert!(gateway.listen.ip().to_canonical().is_loopback() || gateway.token_file.is_some());
    }
    for alert in &spec.alerts {
        if let Gauge::ServiceMemory(name) | Gauge::ServiceRestarts(name) = &alert.gauge {
            assert!(spec.services.contains_key(name), "{name}");
        }
    }
    for total in [0, 100 << 20, u64::MAX] {
        let _ = render(&loaded.fits(total), Look::default());
    }
});
