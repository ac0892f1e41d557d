//! The machine's limits, and figures beside them.

use serde_json::{Value, json};

use super::cost::Work;
use crate::cli::EngineArgs;
use crate::device::{self, DeviceOptions, MachineLimits};

/// Bytes and operations a second, for output: `12.3 GB/s`.
pub fn per_second(value: f64, unit: &str) -> String {
    const PREFIXES: [(&str, f64); 5] = [("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)];
    let (prefix, scale) = PREFIXES.into_iter().find(|p| value >= p.1).unwrap_or(("", 1.0));
    format!("{:.1} {prefix}{unit}/s", value / scale)
}

/// Measures the device that ran, while it is idle; `None`, with a notice, where that is not known how.
pub fn measure(args: &EngineArgs, device: &str) -> Option<MachineLimits> {
    match device::measure_limits(device, DeviceOptions::of(args)) {
        Ok(limits) => limits,
        Err(e) => {
            tracing::warn!("the machine's limits were not measured: {e}");
            None
        }
    }
}

/// Work that took some time, against the least time it could have taken.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub work: Work,
    pub seconds: f64,
}

impl Rate {
    /// Bytes read a second.
    pub fn bytes_per_s(&self) -> f64 {
        self.work.bytes / self.seconds
    }

    /// Operations a second.
    pub fn flop_per_s(&self) -> f64 {
        self.work.flop / self.seconds
    }

    /// Share of the roofline: the least time by the tighter of the two limits, over the time it took.
    /// Above 1 for a model that stays in the caches, which are faster than memory.
    pub fn share(&self, limits: &MachineLimits) -> f64 {
        let by_memory_s = self.work.bytes / limits.read_bytes_per_s;
        let by_arithmetic_s = self.work.flop / limits.flop_per_s;
        by_memory_s.max(by_arithmetic_s) / self.seconds
    }

    /// `20.1 GB/s (83 % of 24.2 GB/s), 10.2 GFLOP/s (5 % of 200.1 GFLOP/s)`
    pub fn text(&self, limits: Option<&MachineLimits>) -> String {
        let part = |rate: f64, unit: &str, limit: Option<f64>| {
            let figure = per_second(rate, unit);
            match limit {
                Some(limit) => {
                    format!("{figure} ({:.0} % of {})", 100.0 * rate / limit, per_second(limit, unit))
                }
                None => figure,
            }
        };
        let read = part(self.bytes_per_s(), "B", limits.map(|l| l.read_bytes_per_s));
        let multiply = part(self.flop_per_s(), "FLOP", limits.map(|l| l.flop_per_s));
        format!("{read}, {multiply}")
    }

    /// The same figures for a file.
    pub fn json(&self, limits: Option<&MachineLimits>) -> Value {
        json!({
            "seconds": self.seconds,
            "bytes": self.work.bytes,
            "flop": self.work.flop,
            "bytes_per_s": self.bytes_per_s(),
            "flop_per_s": self.flop_per_s(),
            "share_of_limit": limits.map(|l| self.share(l)),
        })
    }
}

/// The limits for a file; null where there are none.
pub fn json_of(limits: Option<&MachineLimits>) -> Value {
    limits.map_or(Value::Null, |l| {
        json!({
            "read_bytes_per_s": l.read_bytes_per_s,
            "flop_per_s": l.flop_per_s,
            "threads": l.threads,
            "kernels": l.kernels,
        })
    })
}

/// One line about the limits.
pub fn line_of(limits: &MachineLimits) -> String {
    format!(
        "Machine limit: {} read, {} ({} threads, {})",
        per_second(limits.read_bytes_per_s, "B"),
        per_second(limits.flop_per_s, "FLOP"),
        limits.threads,
        limits.kernels,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: MachineLimits =
        MachineLimits { read_bytes_per_s: 2e10, flop_per_s: 1e11, threads: 2, kernels: "avx2" };

    #[test]
    fn the_tighter_limit_counts() {
        let reading = Rate { work: Work { bytes: 1e10, flop: 1e10 }, seconds: 1.0 };
        assert!((reading.share(&LIMITS) - 0.5).abs() < 1e-12);
        let computing = Rate { work: Work { bytes: 1e9, flop: 1.6e11 }, seconds: 2.0 };
        assert!((computing.share(&LIMITS) - 0.8).abs() < 1e-12);
        let text = reading.text(Some(&LIMITS));
        assert_eq!(text, "10.0 GB/s (50 % of 20.0 GB/s), 10.0 GFLOP/s (10 % of 100.0 GFLOP/s)");
        assert_eq!(reading.text(None), "10.0 GB/s, 10.0 GFLOP/s");
        assert_eq!(computing.json(None)["share_of_limit"], Value::Null);
    }
}
