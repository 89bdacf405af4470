//! Prometheus' text format, version 0.0.4: a family at a time, its samples behind its two comments.

use std::fmt::Write;

/// What a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// The text so far.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// Begins a family. Its name begins with `plimsoll_`, has a base unit in it, and `_total` at the end of a counter's.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        debug_assert!(name.starts_with("plimsoll_") && name.ends_with("_total") == (kind == Kind::Counter), "{name}");
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.begin(name, kind, help);
        Family { text: &mut self.0, name }
    }

    /// A gauge without labels.
    pub(super) fn gauge(&mut self, name: &'static str, help: &str, value: f64) {
        self.family(name, Kind::Gauge, help).sample(&[], value);
    }

    /// A counter without labels.
    pub(super) fn counter(&mut self, name: &'static str, help: &str, value: u64) {
        self.family(name, Kind::Counter, help).sample(&[], value as f64);
    }

    /// Begins a family of histograms.
    pub(super) fn histogram(&mut self, name: &'static str, help: &str) -> Histogram<'_> {
        self.begin(name, "histogram", help);
        Histogram { text: &mut self.0, name }
    }

    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        // A help text has other escapes than a label: no quotes.
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// The whole text.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// A family that is being written.
pub(super) struct Family<'t> {
    text: &'t mut String,
    name: &'static str,
}

impl Family<'_> {
    /// One sample; labels in the same order each time.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        sample(self.text, self.name, labels, value);
    }
}

/// A family of histograms that is being written.
pub(super) struct Histogram<'t> {
    text: &'t mut String,
    name: &'static str,
}

impl Histogram<'_> {
    /// One histogram: how many fell into each bucket, by its upper bound, and behind the last bound; and their sum.
    pub(super) fn sample(&mut self, labels: &[(&str, &str)], buckets: &[(f64, u64)], rest: u64, sum: f64) {
        let mut up_to = 0;
        let bucket = format!("{}_bucket", self.name);
        for (bound, count) in buckets {
            up_to += count;
            let bound = bound.to_string();
            sample(self.text, &bucket, &[labels, &[("le", &bound)]].concat(), up_to as f64);
        }
        up_to += rest;
        sample(self.text, &bucket, &[labels, &[("le", "+Inf")]].concat(), up_to as f64);
        sample(self.text, &format!("{}_sum", self.name), labels, sum);
        sample(self.text, &format!("{}_count", self.name), labels, up_to as f64);
    }
}

fn sample(text: &mut String, name: &str, labels: &[(&str, &str)], value: f64) {
    text.push_str(name);
    for (at, (label, value)) in labels.iter().enumerate() {
        text.push(if at == 0 { '{' } else { ',' });
        let _ = write!(text, "{label}=\"");
        for letter in value.chars() {
            match letter {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
    }
    if !labels.is_empty() {
        text.push('}');
    }
    let _ = match value {
        f64::INFINITY => writeln!(text, " +Inf"),
        f64::NEG_INFINITY => writeln!(text, " -Inf"),
        value => writeln!(text, " {value}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_the_format_says() {
        let mut page = Exposition::default();
        page.gauge("plimsoll_budget_bytes", "Two\nlines and a \\.", 1.5);
        page.counter("plimsoll_kills_total", "Kills.", 1 << 40);
        let mut family = page.family("plimsoll_x", Kind::Gauge, "X.");
        family.sample(&[("a", "quote \" slash \\ line\nend"), ("b", "é")], f64::INFINITY);
        let mut histogram = page.histogram("plimsoll_wait_seconds", "W.");
        histogram.sample(&[("s", "a")], &[(0.5, 2), (1.0, 3)], 4, 12.25);
        let text = "\
# HELP plimsoll_budget_bytes Two\\nlines and a \\\\.
# TYPE plimsoll_budget_bytes gauge
plimsoll_budget_bytes 1.5
# HELP plimsoll_kills_total Kills.
# TYPE plimsoll_kills_total counter
plimsoll_kills_total 1099511627776
# HELP plimsoll_x X.
# TYPE plimsoll_x gauge
plimsoll_x{a=\"quote \\\" slash \\\\ line\\nend\",b=\"é\"} +Inf
# HELP plimsoll_wait_seconds W.
# TYPE plimsoll_wait_seconds histogram
plimsoll_wait_seconds_bucket{s=\"a\",le=\"0.5\"} 2
plimsoll_wait_seconds_bucket{s=\"a\",le=\"1\"} 5
plimsoll_wait_seconds_bucket{s=\"a\",le=\"+Inf\"} 9
plimsoll_wait_seconds_sum{s=\"a\"} 12.25
plimsoll_wait_seconds_count{s=\"a\"} 9
";
        assert_eq!(page.finish(), text);
    }
}
