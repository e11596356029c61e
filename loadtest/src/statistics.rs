//! The statistics of turns: medians, noise, and the judgement of a change.
//!
//! A turn is one measurement of a case in a system that is started for it. A change between two
//! groups of turns counts as beyond noise if its size exceeds both
//!
//! * three standard deviations, estimated by the larger median absolute deviation of the two
//!   groups times 1.4826, and
//! * five percent of the older median.
//!
//! With fewer than three turns in a group nothing is judged.

use serde::{Deserialize, Serialize};

/// The fewest turns whose spread says anything.
pub const MIN_TURNS: usize = 3;
/// The standard deviation of a normal distribution by its median absolute deviation.
const DEVIATION_FACTOR: f64 = 1.4826;
const DEVIATIONS: f64 = 3.0;
/// The smallest change that counts, as a part of the older median.
const SMALLEST_CHANGE: f64 = 0.05;

/// The direction in which a value improves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Lower,
    Higher,
}

/// The values of one case in all turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub median: f64,
    /// The median absolute deviation.
    pub deviation: f64,
    /// In the order of the turns.
    pub values: Vec<f64>,
}

impl Spread {
    /// `None` without a value.
    pub fn of(values: Vec<f64>) -> Option<Self> {
        let middle = median(&values)?;
        let distances: Vec<f64> = values.iter().map(|value| (value - middle).abs()).collect();
        Some(Self {
            median: middle,
            deviation: median(&distances)?,
            values,
        })
    }
}

/// The middle value, or the mean of the two middle ones.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = *sorted.get((sorted.len() / 2).checked_sub(1)?)?;
    Some(f64::midpoint(lower, upper))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Better,
    Worse,
    Noise,
    /// A group has fewer than [`MIN_TURNS`] turns.
    TooFewTurns,
}

impl Verdict {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Noise => "within noise",
            Self::TooFewTurns => "too few turns",
        }
    }
}

/// Judges the change from `old` to `new`.
pub fn judge(old: &Spread, new: &Spread, better: Better) -> Verdict {
    if old.values.len().min(new.values.len()) < MIN_TURNS {
        return Verdict::TooFewTurns;
    }
    let change = new.median - old.median;
    if change.abs() <= noise(old, new) {
        return Verdict::Noise;
    }
    match (better, change > 0.0) {
        (Better::Lower, false) | (Better::Higher, true) => Verdict::Better,
        (Better::Lower, true) | (Better::Higher, false) => Verdict::Worse,
    }
}

/// The largest change that counts as noise.
fn noise(old: &Spread, new: &Spread) -> f64 {
    let deviation = DEVIATIONS * DEVIATION_FACTOR * old.deviation.max(new.deviation);
    deviation.max(SMALLEST_CHANGE * old.median.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: &[f64]) -> Spread {
        Spread::of(values.to_vec()).unwrap()
    }

    #[test]
    fn median_of_an_even_number_is_the_mean_of_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[]), None);
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn one_outlier_does_not_widen_the_noise() {
        let outlier = spread(&[10.0, 10.2, 90.0, 9.8, 10.1]);
        assert_eq!(outlier.median, 10.1);
        assert!(outlier.deviation < 0.4, "{outlier:?}");
    }

    #[test]
    fn change_beyond_noise_is_better_or_worse_by_its_direction() {
        let old = spread(&[10.0, 10.1, 9.9]);
        let slower = spread(&[12.0, 12.1, 11.9]);
        assert_eq!(judge(&old, &slower, Better::Lower), Verdict::Worse);
        assert_eq!(judge(&old, &slower, Better::Higher), Verdict::Better);
        assert_eq!(judge(&slower, &old, Better::Lower), Verdict::Better);
        assert_eq!(judge(&slower, &old, Better::Higher), Verdict::Worse);
    }

    #[test]
    fn change_within_the_deviation_or_five_percent_is_noise() {
        let wide = spread(&[10.0, 14.0, 6.0]);
        let moved = spread(&[15.0, 15.0, 15.0]);
        assert_eq!(judge(&wide, &moved, Better::Lower), Verdict::Noise);
        assert_eq!(judge(&moved, &wide, Better::Lower), Verdict::Noise);
        let exact = spread(&[100.0, 100.0, 100.0]);
        let near = spread(&[104.0, 104.0, 104.0]);
        assert_eq!(judge(&exact, &near, Better::Lower), Verdict::Noise);
    }

    #[test]
    fn first_failures_are_worse_than_none() {
        let (none, some) = (spread(&[0.0, 0.0, 0.0]), spread(&[2.0, 2.0, 2.0]));
        assert_eq!(judge(&none, &some, Better::Lower), Verdict::Worse);
        assert_eq!(judge(&none, &none, Better::Lower), Verdict::Noise);
    }

    #[test]
    fn two_turns_are_not_judged() {
        let (two, three) = (spread(&[1.0, 1.0]), spread(&[9.0, 9.0, 9.0]));
        assert_eq!(judge(&two, &three, Better::Lower), Verdict::TooFewTurns);
        assert_eq!(judge(&three, &two, Better::Lower), Verdict::TooFewTurns);
    }
}
