//! The three instruments and the Prometheus text format 0.0.4. Observing is a few relaxed atomic additions.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts per bucket and their sum. Values are integers in units of `1 / per_unit`: nanoseconds for times,
/// ones for counts.
#[derive(Debug)]
pub struct Histogram {
    /// Upper bounds, ascending, as printed.
    bounds: Vec<f64>,
    /// The same in integer units.
    limits: Vec<u64>,
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
    per_unit: f64,
}

impl Histogram {
    /// Of durations; bounds in seconds.
    pub fn of_seconds(bounds: &[f64]) -> Self {
        Self::new(bounds, 1e9)
    }

    /// Of counts.
    pub fn of_counts(bounds: &[u64]) -> Self {
        let bounds: Vec<f64> = bounds.iter().map(|b| *b as f64).collect();
        Self::new(&bounds, 1.0)
    }

    fn new(bounds: &[f64], per_unit: f64) -> Self {
        Histogram {
            bounds: bounds.to_vec(),
            limits: bounds.iter().map(|b| (b * per_unit).round() as u64).collect(),
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            per_unit,
        }
    }

    /// Adds one duration.
    pub fn observe(&self, time: Duration) {
        self.observe_units(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds one count.
    pub fn observe_count(&self, count: u64) {
        self.observe_units(count);
    }

    fn observe_units(&self, value: u64) {
        let bucket = self.limits.partition_point(|l| *l < value);
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum.fetch_add(value, Relaxed);
    }

    /// Writes the series of one label set.
    pub fn write(&self, out: &mut String, name: &str, labels: &str) {
        self.write_up_to(f64::INFINITY, out, name, labels);
    }

    /// The same without the bounds above `most`.
    pub fn write_up_to(&self, most: f64, out: &mut String, name: &str, labels: &str) {
        let shown = self.bounds.partition_point(|bound| *bound <= most);
        let mut counts: Vec<u64> = self.counts.iter().map(|c| c.load(Relaxed)).collect();
        let rest = counts.drain(shown..).sum();
        counts.push(rest);
        let sum = self.sum.load(Relaxed) as f64 / self.per_unit;
        write_histogram(out, name, labels, &self.bounds[..shown], &counts, sum);
    }

    /// Observations so far.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|c| c.load(Relaxed)).sum()
    }
}

/// Writes `# HELP` and `# TYPE` of a metric.
pub fn write_header(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Writes one sample; `labels` is `a="b",c="d"` without braces, or empty.
pub fn write_sample(out: &mut String, name: &str, labels: &str, value: f64) {
    let _ = if labels.is_empty() {
        writeln!(out, "{name} {}", Number(value))
    } else {
        writeln!(out, "{name}{{{labels}}} {}", Number(value))
    };
}

/// Writes the buckets, sum and count of a histogram; `counts` has one entry per bound and one for the rest.
pub fn write_histogram(out: &mut String, name: &str, labels: &str, bounds: &[f64], counts: &[u64], sum: f64) {
    let mut total = 0;
    for (i, count) in counts.iter().enumerate() {
        total += count;
        let bound = bounds.get(i).map_or("+Inf".to_string(), |b| Number(*b).to_string());
        let comma = if labels.is_empty() { "" } else { "," };
        let _ = writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}.0");
    }
    write_sample(out, &format!("{name}_sum"), labels, sum);
    write_sample(out, &format!("{name}_count"), labels, total as f64);
}

/// Escapes a label value.
pub fn escape_label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// 1, 2, 5, 10, 20, 50 ... up to `most`.
pub fn one_two_five(most: u64) -> Vec<u64> {
    let mut bounds = Vec::new();
    let mut decade = 1u64;
    loop {
        for digit in [1, 2, 5] {
            let Some(bound) = decade.checked_mul(digit).filter(|b| *b <= most) else { return bounds };
            bounds.push(bound);
        }
        decade = decade.saturating_mul(10);
    }
}

/// Floats as prometheus_client prints them: always with a point or an exponent.
struct Number(f64);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.fract() == 0.0 && self.0.abs() < 1e16 {
            write!(f, "{:.1}", self.0)
        } else {
            write!(f, "{}", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_bounds_inclusive() {
        let h = Histogram::of_seconds(&[0.001, 0.5, 1.0]);
        for ms in [1, 2, 500, 501, 5000] {
            h.observe(Duration::from_millis(ms));
        }
        let mut out = String::new();
        h.write(&mut out, "x", "a=\"b\"");
        assert_eq!(
            out,
            "x_bucket{a=\"b\",le=\"0.001\"} 1.0\nx_bucket{a=\"b\",le=\"0.5\"} 3.0\nx_bucket{a=\"b\",le=\"1.0\"} 4.0\n\
             x_bucket{a=\"b\",le=\"+Inf\"} 5.0\nx_sum{a=\"b\"} 6.004\nx_count{a=\"b\"} 5.0\n"
        );
    }

    #[test]
    fn bounds_beyond_what_can_be_are_not_shown() {
        let h = Histogram::of_counts(&one_two_five(1000));
        [1, 7, 10].into_iter().for_each(|count| h.observe_count(count));
        let mut out = String::new();
        h.write_up_to(10.0, &mut out, "x", "");
        let shown: Vec<&str> = out.lines().collect();
        assert_eq!(
            shown,
            [
                "x_bucket{le=\"1.0\"} 1.0",
                "x_bucket{le=\"2.0\"} 1.0",
                "x_bucket{le=\"5.0\"} 1.0",
                "x_bucket{le=\"10.0\"} 3.0",
                "x_bucket{le=\"+Inf\"} 3.0",
                "x_sum 18.0",
                "x_count 3.0"
            ]
        );
    }

    #[test]
    fn one_two_five_stops_at_the_limit() {
        assert_eq!(one_two_five(100), [1, 2, 5, 10, 20, 50, 100]);
        assert_eq!(one_two_five(1), [1]);
        assert_eq!(one_two_five(4096).last(), Some(&2000));
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escape_label("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
