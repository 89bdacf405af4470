//! The kernel's log: who was killed for memory, and for whose limit.
//!
//! The `oom-kill:` line (kernel 5.0 and later) is made for programs and has kept its shape; the "Killed process" text
//! has not. Lines count only when the kernel itself wrote them: what a program writes to `/dev/kmsg` carries another
//! facility, so no tree can forge its own cause of death.

use std::os::fd::OwnedFd;
use std::time::Duration;

use plimsoll_model::ending::{OomKill, OomScope};
use rustix::fs::{CWD, Mode, OFlags, SeekFrom, openat, seek};
use rustix::io::Errno;

/// A record and its prefix are at most this long (`CONSOLE_EXT_LOG_MAX`).
const RECORD: usize = 8192;

/// Records read at one go: a log that is flooded while we read must not hold us for ever.
const AT_ONCE: usize = 200_000;

/// The kernel's log, open behind its newest record.
#[derive(Debug)]
pub struct Kmsg {
    fd: OwnedFd,
    joiner: Joiner,
    lost: bool,
}

/// An OOM kill of the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastOomKill {
    /// When, since boot, by the clock of the kernel's log (within milliseconds of the monotonic clock).
    pub at: Duration,
    /// Who, and for whose limit.
    pub kill: OomKill,
}

impl Kmsg {
    /// Opens the log at its end; `None` where it cannot be read (no `/dev/kmsg` in most containers, no privilege).
    #[must_use]
    pub fn open_at_end() -> Option<Self> {
        Self::open(SeekFrom::End(0))
    }

    fn open(place: SeekFrom) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(CWD, c"/dev/kmsg", flags, Mode::empty()).ok()?;
        seek(&fd, place).ok()?;
        Some(Self { fd, joiner: Joiner::default(), lost: false })
    }

    /// The OOM kills that were logged since the last call, or since the log was opened.
    pub fn oom_kills(&mut self) -> Vec<OomKill> {
        self.read().into_iter().map(|past| past.kill).collect()
    }

    /// Records were overwritten before they were read (or could not be read): "no kill was logged" is not known.
    #[must_use]
    pub fn has_lost_records(&self) -> bool {
        self.lost
    }

    fn read(&mut self) -> Vec<PastOomKill> {
        let mut kills = Vec::new();
        let mut buffer = [0; RECORD];
        for _ in 0..AT_ONCE {
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(0) | Err(Errno::AGAIN) => return kills,
                Ok(length) => {
                    kills.extend(parse_record(&buffer[..length]).and_then(|record| self.joiner.take(&record)))
                }
                Err(Errno::INTR) => {}
                // Overrun: the next read goes on at the oldest record that is left. A record longer than any should be
                // is skipped by the kernel.
                Err(Errno::PIPE | Errno::INVAL) => self.lost = true,
                Err(_) => break,
            }
        }
        self.lost = true;
        kills
    }
}

/// All OOM kills that the kernel's log still holds, oldest first; `None` where the log cannot be read.
#[must_use]
pub fn past_oom_kills() -> Option<Vec<PastOomKill>> {
    Some(Kmsg::open(SeekFrom::Start(0))?.read())
}

/// One record of `/dev/kmsg`: `6,416,2866475418,-;text`, then lines of ` KEY=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Who wrote it: 0 is the kernel.
    pub facility: u32,
    /// Microseconds since boot.
    pub at_us: u64,
    /// The text, escapes undone, without a newline at its end.
    pub text: String,
}

/// Reads one record; `None` when it is none.
#[must_use]
pub fn parse_record(record: &[u8]) -> Option<Record> {
    let semicolon = record.iter().position(|&byte| byte == b';')?;
    let head = std::str::from_utf8(&record[..semicolon]).ok()?;
    let mut head = head.split(',');
    let priority: u32 = head.next()?.parse().ok()?;
    let _sequence: u64 = head.next()?.parse().ok()?;
    let at_us = head.next()?.parse().ok()?;
    let body = &record[semicolon + 1..];
    let text = body.split(|&byte| byte == b'\n').next()?;
    Some(Record { facility: priority >> 3, at_us, text: unescape(text) })
}

/// Undoes the `\x0a` of everything that is not printable ASCII; what is no UTF-8 then is replaced.
fn unescape(text: &[u8]) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, behind)) = rest.split_first() {
        let escaped = match (byte, behind) {
            (b'\\', [b'x', high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                plain.push(high << 4 | low);
                rest = &behind[3..];
            }
            None => {
                plain.push(byte);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Puts lines together that other processors' messages cut in pieces: the kernel writes the line in four steps.
#[derive(Debug, Default)]
struct Joiner {
    begun: Option<(u64, String)>,
}

impl Joiner {
    /// The kill that this record tells of, or completes.
    fn take(&mut self, record: &Record) -> Option<PastOomKill> {
        if record.facility != 0 {
            return None;
        }
        let (at_us, text) = if record.text.starts_with("oom-kill:") {
            (record.at_us, record.text.clone())
        } else if record.text.starts_with(',') {
            let (at_us, begun) = self.begun.take()?;
            (at_us, begun + &record.text)
        } else {
            return None;
        };
        match parse_oom_kill(&text) {
            Some(kill) => {
                self.begun = None;
                Some(PastOomKill { at: Duration::from_micros(at_us), kill })
            }
            None => {
                self.begun = (text.len() < RECORD).then_some((at_us, text));
                None
            }
        }
    }
}

/// Reads an `oom-kill:` line:
/// `oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a/b,task=NAME,pid=N,uid=U`,
/// with `global_oom` in the place of `oom_memcg=…` when the machine ran out. A task's name (at most 15 bytes) may hold
/// commas and look like fields; its pid is the last one of the line.
#[must_use]
pub fn parse_oom_kill(line: &str) -> Option<OomKill> {
    let fields = line.strip_prefix("oom-kill:constraint=")?;
    let (constraint, _) = fields.split_once(',')?;
    let (front, uid) = fields.rsplit_once(",uid=")?;
    uid.trim_end().parse::<u32>().ok()?;
    let (front, pid) = front.rsplit_once(",pid=")?;
    let pid = pid.parse().ok().filter(|&pid| pid > 0)?;
    // The first place where a name can begin: a program chooses its name more freely than its group.
    let shortest = front.len().saturating_sub(",task=".len() + NAME);
    let (begin, _) = front.match_indices(",task=").find(|&(place, _)| place >= shortest)?;
    let task = front[begin + ",task=".len()..].to_owned();
    let (front, task_group) = match front[..begin].split_once(",task_memcg=") {
        Some((front, group)) => (front, Some(group.to_owned())),
        None => (&front[..begin], None),
    };
    let oom_group = front.split_once(",oom_memcg=").map(|(_, group)| group.to_owned());
    let scope = if constraint == "CONSTRAINT_MEMCG" { OomScope::Group } else { OomScope::Host };
    Some(OomKill { scope, oom_group, task_group, task, pid })
}

/// Bytes in a task's name, at most; more after what is no UTF-8 was replaced by three bytes each.
const NAME: usize = 15 * 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REAL: &str = "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/outer,\
                        task_memcg=/outer/inner,task=py, x,pid=7,uid,pid=9247,uid=0";

    #[test]
    fn a_real_line() {
        let expected = OomKill {
            scope: OomScope::Group,
            oom_group: Some("/outer".into()),
            task_group: Some("/outer/inner".into()),
            task: "py, x,pid=7,uid".into(),
            pid: 9247,
        };
        assert_eq!(parse_oom_kill(REAL), Some(expected.clone()));
        let record = format!("6,416,2866475418,-;{REAL}\n SUBSYSTEM=memory\n");
        let record = parse_record(record.as_bytes()).unwrap();
        let at = Duration::from_micros(2_866_475_418);
        assert_eq!(Joiner::default().take(&record), Some(PastOomKill { at, kill: expected }));
    }

    #[test]
    fn the_machine_ran_out() {
        let line = "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
                    task_memcg=/user.slice/session-1.scope,task=chrome,pid=12,uid=1000";
        let kill = parse_oom_kill(line).unwrap();
        assert_eq!((kill.scope, kill.oom_group, kill.pid), (OomScope::Host, None, 12));
        assert_eq!(kill.task_group.as_deref(), Some("/user.slice/session-1.scope"));
        for constraint in ["CONSTRAINT_CPUSET", "CONSTRAINT_MEMORY_POLICY"] {
            assert_eq!(
                parse_oom_kill(&line.replace("CONSTRAINT_NONE", constraint)).map(|kill| kill.scope),
                Some(OomScope::Host)
            );
        }
    }

    #[test]
    fn a_program_cannot_forge_a_line() {
        let record = parse_record(format!("14,416,28,-;{REAL}\n").as_bytes()).unwrap();
        assert_eq!(record.facility, 1);
        assert_eq!(Joiner::default().take(&record), None);
    }

    #[test]
    fn a_line_in_pieces() {
        for cut in ["oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null)", &REAL[..REAL.find(",task=").unwrap()]] {
            let mut joiner = Joiner::default();
            let record = |text: &str| Record { facility: 0, at_us: 5, text: text.into() };
            assert_eq!(joiner.take(&record(cut)), None);
            assert_eq!(joiner.take(&record("eth0: link up")), None);
            let kill = joiner.take(&record(&REAL[cut.len()..]));
            assert_eq!(kill.map(|past| past.kill), parse_oom_kill(REAL));
        }
    }

    proptest! {
        #[test]
        fn lines_are_read_back(
            group in "(/[a-zA-Z0-9_.:@ -]{1,20}){0,4}",
            below in "(/[a-zA-Z0-9_.,=é-]{1,20}){0,2}",
            task in prop_oneof!["[ -~]{0,15}", prop::sample::select(vec![
                "a,task=b".to_owned(), ",task=,task=".to_owned(), "x,pid=1,uid=2".to_owned(), "a\nb".to_owned(), "é,ü,ß".to_owned(),
            ])],
            pid in 1..i32::MAX,
            uid in any::<u32>(),
        ) {
            let line = format!(
                "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg={group},\
                 task_memcg={group}{below},task={task},pid={pid},uid={uid}"
            );
            let escaped: String = line.bytes().map(|byte| match byte {
                b'\\' => "\\x5c".to_owned(),
                b' '..=b'~' => char::from(byte).to_string(),
                _ => format!("\\x{byte:02x}"),
            }).collect();
            let record = parse_record(format!("6,1,2,-;{escaped}\n").as_bytes()).unwrap();
            prop_assert_eq!(&record.text, &line);
            prop_assert_eq!(parse_oom_kill(&record.text), Some(OomKill {
                scope: OomScope::Group,
                oom_group: Some(group.clone()),
                task_group: Some(format!("{group}{below}")),
                task,
                pid,
            }));
        }

        #[test]
        fn garbage_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..300), text in ".{0,200}") {
            let _ = parse_record(&bytes);
            let _ = parse_oom_kill(&text);
            let _ = parse_oom_kill(&format!("oom-kill:constraint={text},task={text},pid={text},uid={text}"));
            let _ = parse_oom_kill(&format!("oom-kill:constraint={text},task={text},pid=1,uid=1"));
        }
    }
}
