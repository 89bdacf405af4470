//! Counts read from what a family of tests prints, and the table at the end.

use std::time::Duration;

/// Tests that passed, failed or were not run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`, the closing line of one of cargo's test binaries.
    pub(crate) fn of_cargo(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut parts = counts.split("; ");
        let mut next = |word: &str| parts.next()?.strip_suffix(word)?.trim().parse().ok();
        Some(Self { passed: next("passed")?, failed: next("failed")?, skipped: next("ignored")? })
    }

    /// Reads `3 passed, 0 failed[, 1 skipped]`, alone on its line but for one word with a colon before it.
    pub(crate) fn of_closing_line(line: &str) -> Option<Self> {
        let line = line.trim();
        let counts =
            line.split_once(": ").map_or(line, |(word, counts)| if word.contains(' ') { line } else { counts });
        let mut parts = counts.split(", ");
        let passed = parts.next()?.strip_suffix(" passed")?.parse().ok()?;
        let failed = parts.next()?.strip_suffix(" failed")?.parse().ok()?;
        let skipped = match parts.next() {
            Some(part) => part.strip_suffix(" skipped")?.parse().ok()?,
            None => 0,
        };
        if parts.next().is_some() {
            return None;
        }
        Some(Self { passed, failed, skipped })
    }
}

/// How a family ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    /// Why.
    Failed(String),
    /// Why it could not be run here.
    Skipped(String),
}

/// One row of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) family: &'static str,
    pub(crate) counts: Counts,
    pub(crate) took: Duration,
    pub(crate) verdict: Verdict,
}

/// Prints the table and, last, the total as a closing line. Answers whether all is well.
pub(crate) fn print(rows: &[Row]) -> bool {
    println!("\n{:<24}{:>8}{:>8}{:>8}{:>9}  result", "family", "passed", "failed", "skipped", "seconds");
    let mut total = Counts::default();
    let mut took = Duration::ZERO;
    for row in rows {
        let result = match &row.verdict {
            Verdict::Passed => "ok".to_owned(),
            Verdict::Failed(why) => format!("FAILED: {}", why.lines().next().unwrap_or_default()),
            Verdict::Skipped(why) => format!("skipped: {why}"),
        };
        let Counts { passed, failed, skipped } = row.counts;
        println!("{:<24}{passed:>8}{failed:>8}{skipped:>8}{:>9.1}  {result}", row.family, row.took.as_secs_f64());
        total.add(row.counts);
        took += row.took;
    }
    println!("{:<24}{:>8}{:>8}{:>8}{:>9.1}\n", "all", total.passed, total.failed, total.skipped, took.as_secs_f64());
    println!("total: {} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    rows.iter().all(|row| !matches!(row.verdict, Verdict::Failed(_)))
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn reads_what_cargo_prints() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        assert_eq!(Counts::of_cargo(line), Some(Counts { passed: 3, failed: 1, skipped: 2 }));
        assert_eq!(Counts::of_cargo("test result of something else"), None);
    }

    #[test]
    fn reads_closing_lines_and_nothing_like_them() {
        let read = |line| Counts::of_closing_line(line);
        assert_eq!(read("12 passed, 1 failed"), Some(Counts { passed: 12, failed: 1, skipped: 0 }));
        assert_eq!(
            read("conform: 12 passed, 0 failed, 3 skipped\r"),
            Some(Counts { passed: 12, failed: 0, skipped: 3 })
        );
        assert_eq!(read("two words: 12 passed, 0 failed"), None);
        assert_eq!(read("12 passed"), None);
        assert_eq!(read("12 passed, 0 failed, 1 skipped, 9 lost"), None);
    }
}
