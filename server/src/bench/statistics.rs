//! Averages and percentiles of measured times.

/// The mean; 0 of nothing.
pub fn mean(values: &[f64]) -> f64 {
    if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 }
}

/// The `percent`-th percentile, between neighbours in proportion (as numpy does); 0 of nothing.
pub fn percentile(values: &[f64], percent: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = percent / 100.0 * last as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    sorted[low] + part * (sorted[(low + 1).min(last)] - sorted[low])
}

/// The 50th percentile.
pub fn median(values: &[f64]) -> f64 {
    percentile(values, 50.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        let values = [4.0, 1.0, 3.0, 2.0];
        // numpy.percentile([4, 1, 3, 2], [0, 10, 50, 99, 100])
        for (percent, wanted) in [(0.0, 1.0), (10.0, 1.3), (50.0, 2.5), (99.0, 3.97), (100.0, 4.0)] {
            assert!((percentile(&values, percent) - wanted).abs() < 1e-12, "{percent}");
        }
        assert!((mean(&values) - 2.5).abs() < 1e-12 && (median(&[7.0]) - 7.0).abs() < 1e-12);
        assert!(percentile(&[], 50.0) == 0.0 && mean(&[]) == 0.0);
    }
}
