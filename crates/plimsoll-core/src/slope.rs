//! How fast a tree grows: the Theil–Sen slope, the median over all pairs of samples, which whatever happens in under
//! 29 % of them does not move (Sen 1968, "Estimates of the regression coefficient based on Kendall's tau").

use plimsoll_model::Sample;

/// So many samples are looked at; of more, the latest.
const MOST: usize = 60;

/// Bytes a second over these samples, oldest first; 0 for fewer than two.
#[must_use]
pub fn growth_bytes_per_s(samples: &[Sample]) -> i64 {
    let samples = &samples[samples.len().saturating_sub(MOST)..];
    let mut slopes: Vec<f64> = Vec::with_capacity(samples.len() * samples.len().saturating_sub(1) / 2);
    for (at, first) in samples.iter().enumerate() {
        for second in &samples[at + 1..] {
            let passed_ms = second.at_ms as f64 - first.at_ms as f64;
            if passed_ms > 0.0 {
                slopes.push((second.memory_bytes as f64 - first.memory_bytes as f64) * 1000.0 / passed_ms);
            }
        }
    }
    let middle = slopes.len() / 2;
    if slopes.is_empty() {
        return 0;
    }
    let (_, median, _) = slopes.select_nth_unstable_by(middle, f64::total_cmp);
    *median as i64
}

/// Milliseconds until so many bytes are filled at this growth; `None` when it does not grow.
#[must_use]
pub fn forecast_ms(headroom_bytes: u64, growth_bytes_per_s: i64) -> Option<u64> {
    let growth = u64::try_from(growth_bytes_per_s).ok().filter(|&growth| growth > 0)?;
    u64::try_from(u128::from(headroom_bytes) * 1000 / u128::from(growth)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(at_ms: u64, memory_bytes: u64) -> Sample {
        Sample { at_ms, memory_bytes, processes: 1 }
    }

    proptest! {
        #[test]
        fn a_fifth_of_outliers_changes_nothing(
            rate in -(1i64 << 40)..1i64 << 40,
            outliers in prop::collection::vec((0usize..50, 0u64..1 << 60), 0..=10),
        ) {
            let mut samples: Vec<Sample> =
                (0..50).map(|s| sample(s * 1000, (1i64 << 50).saturating_add(rate * s as i64) as u64)).collect();
            for (at, bytes) in outliers {
                samples[at].memory_bytes = bytes;
            }
            // More than half of all pairs are untouched and have this very slope.
            let grown = growth_bytes_per_s(&samples);
            prop_assert!(grown.abs_diff(rate) <= 1, "{grown} for {rate}");
        }

        #[test]
        fn noise_evens_out(rate in 0u64..1 << 30, noise in prop::collection::vec(0u64..1 << 20, 60)) {
            let samples: Vec<Sample> =
                noise.iter().enumerate().map(|(s, noise)| sample(s as u64 * 1000, s as u64 * rate + noise)).collect();
            prop_assert!(growth_bytes_per_s(&samples).abs_diff(rate as i64) <= 1 << 19);
        }

        #[test]
        fn a_forecast_is_met(headroom in any::<u64>(), growth in any::<i64>()) {
            match forecast_ms(headroom, growth) {
                Some(ms) => prop_assert!(u128::from(ms) * growth as u128 <= u128::from(headroom) * 1000),
                None => prop_assert!(growth <= 0 || u128::from(headroom) * 1000 / growth as u128 > u64::MAX.into()),
            }
        }

        #[test]
        fn never_panics(samples in prop::collection::vec((any::<u64>(), any::<u64>()), 0..80)) {
            let samples: Vec<Sample> = samples.into_iter().map(|(at, bytes)| sample(at, bytes)).collect();
            let _ = growth_bytes_per_s(&samples);
        }
    }

    #[test]
    fn a_line_has_its_own_slope() {
        let samples: Vec<Sample> = (0..10).map(|s| sample(s * 500, 1000 + s * 50)).collect();
        assert_eq!(growth_bytes_per_s(&samples), 100);
        assert_eq!(growth_bytes_per_s(&samples[..1]), 0);
        assert_eq!(forecast_ms(1000, 100), Some(10_000));
        assert_eq!(forecast_ms(1000, -1), None);
        assert_eq!(forecast_ms(u64::MAX, 1), None);
    }
}
