//! The times at which requests of an open loop are sent, whether earlier ones are answered or not.
//!
//! The gaps are exponential (a Poisson process), as those of independent clients. The same seed gives
//! the same times, so that every turn and every commit gets the same load.

use std::time::Duration;

/// A sequence of pseudo-random numbers (SplitMix64), which a seed determines.
#[derive(Clone, Debug)]
pub struct Sequence(u64);

impl Sequence {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number, in `0.0..1.0`.
    pub fn next_fraction(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The 53 bits of a float's fraction.
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The arrivals of `per_second` requests on average, as times since the start, within `length`.
pub fn poisson(per_second: f64, length: Duration, seed: u64) -> Vec<Duration> {
    let mut sequence = Sequence::new(seed);
    let mut arrivals = Vec::new();
    let mut at = 0.0;
    if per_second <= 0.0 {
        return arrivals;
    }
    loop {
        // 1 - fraction is never 0.
        at -= (1.0 - sequence.next_fraction()).ln() / per_second;
        if at >= length.as_secs_f64() {
            return arrivals;
        }
        arrivals.push(Duration::from_secs_f64(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn arrivals_have_the_rate_and_are_in_order() {
        let arrivals = poisson(100.0, MINUTE, 1);
        // Four standard deviations around 6,000.
        assert!(
            (5_690..=6_310).contains(&arrivals.len()),
            "{}",
            arrivals.len()
        );
        assert!(arrivals.is_sorted());
        assert!(arrivals.last().unwrap() < &MINUTE);
    }

    #[test]
    fn gaps_are_exponential() {
        let arrivals = poisson(100.0, MINUTE, 2);
        let gaps = arrivals.windows(2).map(|pair| pair[1] - pair[0]);
        let mean = Duration::from_millis(10);
        let above_the_mean = gaps.filter(|gap| *gap > mean).count() as f64;
        // A gap exceeds the mean with the probability 1/e.
        let share = above_the_mean / arrivals.len() as f64;
        assert!((share - (-1.0f64).exp()).abs() < 0.03, "{share}");
    }

    #[test]
    fn seed_determines_the_arrivals() {
        assert_eq!(poisson(50.0, MINUTE, 3), poisson(50.0, MINUTE, 3));
        assert_ne!(poisson(50.0, MINUTE, 3), poisson(50.0, MINUTE, 4));
    }

    #[test]
    fn rate_of_zero_has_no_arrivals() {
        assert!(poisson(0.0, MINUTE, 1).is_empty());
    }

    #[test]
    fn fractions_fill_their_range() {
        let mut sequence = Sequence::new(9);
        let fractions: Vec<f64> = (0..10_000).map(|_| sequence.next_fraction()).collect();
        assert!(
            fractions
                .iter()
                .all(|fraction| (0.0..1.0).contains(fraction))
        );
        let mean = fractions.iter().sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
