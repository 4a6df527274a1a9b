//! A result is one line of `name=value` pairs, for people and for the report.

use std::fmt::Write;
use std::time::Duration;

use crate::histogram::Histogram;

/// A line in the making.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line(String);

impl Line {
    /// Adds a pair. Blanks of the value become underscores.
    pub(crate) fn add(&mut self, name: &str, value: impl std::fmt::Display) -> &mut Self {
        let value = value.to_string().replace(' ', "_");
        let gap = if self.0.is_empty() { "" } else { " " };
        // Writing to a string does not fail.
        let _ = write!(self.0, "{gap}{name}={value}");
        self
    }

    /// Adds the percentiles of a histogram in milliseconds, their names behind `name`.
    pub(crate) fn latency(&mut self, name: &str, histogram: &Histogram) -> &mut Self {
        let percentiles = [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("p9999", 0.9999)];
        for (label, share) in percentiles {
            self.add(&format!("{name}{label}_ms"), millis(histogram.percentile(share)));
        }
        self.add(&format!("{name}max_ms"), millis(histogram.max()))
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

fn millis(duration: Duration) -> String {
    format!("{:.3}", duration.as_secs_f64() * 1e3)
}

/// The value of a name in a line.
pub(crate) fn value<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// The value of a name as a number.
pub(crate) fn number(line: &str, name: &str) -> Option<f64> {
    value(line, name)?.parse().ok()
}
