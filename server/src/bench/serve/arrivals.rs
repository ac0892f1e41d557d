//! When each request is sent.

use std::time::Duration;

use super::rng::Rng;
use crate::cli::{BenchServeArgs, RampUp};

/// Times since the start, ascending: gaps are drawn from a gamma distribution whose shape is the burstiness
/// (1 is a Poisson process), and stretched so that the whole run takes `count / rate`.
pub fn times(args: &BenchServeArgs, count: usize) -> Vec<Duration> {
    let mut rng = Rng::new(args.workload.seed ^ 0xA221_7A15);
    let mut at = 0.0;
    let mut times: Vec<f64> = (0..count)
        .map(|i| {
            let rate = rate_at(args, i as f64 / count.max(1) as f64);
            if rate.is_finite() {
                at += rng.gamma_of_mean_one(args.burstiness) / rate;
            }
            at
        })
        .collect();
    if args.ramp_up.is_none() && at > 0.0 {
        let stretch = count as f64 / args.request_rate / at;
        times.iter_mut().for_each(|t| *t *= stretch);
    }
    times.into_iter().map(|t| Duration::try_from_secs_f64(t).unwrap_or(Duration::MAX)).collect()
}

fn rate_at(args: &BenchServeArgs, progress: f64) -> f64 {
    match args.ramp_up {
        None => args.request_rate,
        Some(ramp) => match ramp.strategy {
            RampUp::Linear => ramp.start_rps + (ramp.end_rps - ramp.start_rps) * progress,
            RampUp::Exponential => ramp.start_rps * (ramp.end_rps / ramp.start_rps).powf(progress),
        },
    }
}
