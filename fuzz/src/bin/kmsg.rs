//! The kernel's log: records, and the lines that tell who was killed for memory.

#![no_main]

use libfuzzer_sys::fuzz_target;
use plimsoll_fuzz::Values;
use plimsoll_kernel::kmsg::{Record, parse_oom_kill, parse_record};
use plimsoll_model::ending::{OomKill, OomScope};

fuzz_target!(|data: &[u8]| {
    if let Some(read) = parse_record(data) {
        let again = record(&read);
        assert_eq!(parse_record(again.as_bytes()), Some(read), "{again}");
    }
    let text = String::from_utf8_lossy(data);
    if let Some(kill) = parse_oom_kill(&text) {
        assert!(kill.pid > 0);
        assert_eq!(kill.scope == OomScope::Group, text.starts_with("oom-kill:constraint=CONSTRAINT_MEMCG,"));
    }
    a_kill_is_itself(data);
});

/// Whatever the victim called itself, the line says who it was and for whose limit it died.
fn a_kill_is_itself(data: &[u8]) {
    let mut values = Values::new(data);
    let (at_us, uid, facility, host) = (values.take(), values.take::<u32>(), values.take::<u16>(), values.take());
    let pid = i32::try_from(values.below(i32::MAX as u64) + 1).unwrap_or(1);
    // Groups may have blanks and brackets; a comma would make their end a guess.
    let mut group = || format!("/{}", String::from_utf8_lossy(values.bytes(40)).replace([',', '\n'], "_"));
    let (outer, inner) = (group(), group());
    for name in [cut_name(data), values.bytes(15)] {
        let kill = OomKill {
            scope: if host { OomScope::Host } else { OomScope::Group },
            oom_group: (!host).then(|| outer.clone()),
            task_group: Some(inner.clone()),
            task: String::from_utf8_lossy(name).into_owned(),
            pid,
        };
        let constraint = if host { "CONSTRAINT_NONE" } else { "CONSTRAINT_MEMCG" };
        let limit = kill.oom_group.as_ref().map_or("global_oom".to_owned(), |group| format!("oom_memcg={group}"));
        let line = format!(
            "oom-kill:constraint={constraint},nodemask=(null),cpuset=/,mems_allowed=0-1,{limit},\
             task_memcg={inner},task={},pid={pid},uid={uid}",
            kill.task
        );
        assert_eq!(parse_oom_kill(&line), Some(kill), "{line:?}");
        let given = Record { facility: u32::from(facility), at_us, text: line };
        assert_eq!(parse_record(record(&given).as_bytes()), Some(given));
    }
}

/// A name has at most 15 bytes.
fn cut_name(data: &[u8]) -> &[u8] {
    &data[..data.len().min(15)]
}

/// As the kernel writes it: everything that is not printable ASCII is escaped.
fn record(record: &Record) -> String {
    let text: String = record
        .text
        .bytes()
        .map(|byte| match byte {
            b'\\' => "\\x5c".to_owned(),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        })
        .collect();
    format!("{},416,{},-;{text}\n SUBSYSTEM=memory\n", record.facility << 3 | 6, record.at_us)
}
