//! Median and bootstrap interval.

use serde::{Deserialize, Serialize};

const RESAMPLES: usize = 2000;
const SEED: u64 = 0x5eed;

/// A median with the interval that holds 95 % of the medians of resamples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The median.
    pub median: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Estimate {
    /// From at least one value.
    pub fn of(values: &[f64]) -> Self {
        let mut random = Random(SEED);
        let mut medians: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let draw = |_| values[random.below(values.len())];
                median(&(0..values.len()).map(draw).collect::<Vec<_>>())
            })
            .collect();
        medians.sort_by(f64::total_cmp);
        let at = |share: f64| medians[(share * (RESAMPLES - 1) as f64).round() as usize];
        Self {
            median: median(values),
            low: at(0.025),
            high: at(0.975),
        }
    }

    /// Whether the two intervals have a number in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

/// The middle value, or the mean of the two in the middle.
///
/// # Panics
///
/// Without a value.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// SplitMix64: the same values give the same interval on every machine.
struct Random(u64);

impl Random {
    const fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed as u128 * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        let estimate = Estimate::of(&[2.0; 5]);
        assert_eq!(
            (estimate.low, estimate.median, estimate.high),
            (2.0, 2.0, 2.0)
        );
    }

    /// Of five values, the median of a resample is the smallest if at least
    /// three of five draws are it: 5.8 % of resamples, more than 2.5 %.
    #[test]
    fn five_values_span_the_interval() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(
            (estimate.low, estimate.median, estimate.high),
            (1.0, 3.0, 5.0)
        );
    }

    /// The standard error of the median of n draws from 0..1 is 1 / (2 √n).
    #[test]
    fn the_interval_of_many_values_has_the_width_that_theory_says() {
        let mut random = Random(1);
        let values: Vec<f64> = (0..1000)
            .map(|_| random.below(1 << 30) as f64 / f64::from(1 << 30))
            .collect();
        let estimate = Estimate::of(&values);
        let expected = 2.0 * 1.96 / (2.0 * 1000f64.sqrt());
        let width = estimate.high - estimate.low;
        assert!((0.7..1.4).contains(&(width / expected)), "{estimate:?}");
        let deviation = (estimate.median - 0.5).abs();
        assert!(deviation < 3.0 / (2.0 * 1000f64.sqrt()), "{estimate:?}");
    }

    #[test]
    fn one_outlier_does_not_move_the_interval_of_many() {
        let mut values: Vec<f64> = (0..99).map(f64::from).collect();
        values.push(1e9);
        assert!(Estimate::of(&values).high < 70.0);
    }

    #[test]
    fn intervals_overlap_where_they_touch() {
        let estimate = |low, high| Estimate {
            median: low,
            low,
            high,
        };
        assert!(estimate(1.0, 2.0).overlaps(&estimate(2.0, 3.0)));
        assert!(estimate(2.0, 3.0).overlaps(&estimate(1.0, 4.0)));
        assert!(!estimate(1.0, 1.9).overlaps(&estimate(2.0, 3.0)));
    }
}
