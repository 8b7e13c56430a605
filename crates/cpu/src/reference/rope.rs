//! Rotary position embedding (Su et al. 2021).

use unicorn_core::RopeSpec;

/// Turns the pairs of one head to `position`, in place.
pub(crate) fn rope(spec: &RopeSpec, position: u32, head: &mut [f64]) {
    for (i, frequency) in spec.frequencies.iter().enumerate() {
        let (sin, cos) = (position as f64 * *frequency as f64).sin_cos();
        let (a, b) = spec.pair(i);
        let (x, y) = (head[a] * spec.magnitude as f64, head[b] * spec.magnitude as f64);
        head[a] = x * cos - y * sin;
        head[b] = x * sin + y * cos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use unicorn_core::{RopeStyle, rope::RopeScaling};

    #[test]
    fn quarter_turn_of_each_pairing() {
        let quarter = std::f32::consts::FRAC_PI_2;
        for (style, want) in
            [(RopeStyle::Normal, [-2.0, 1.0, 3.0, 4.0, 9.0]), (RopeStyle::Neox, [-3.0, 2.0, 1.0, 4.0, 9.0])]
        {
            // Pair 0 turns by 90 degrees, pair 1 not at all, and the fifth element is past the rotated ones.
            let spec = RopeSpec { style, frequencies: [quarter, 0.0].into(), magnitude: 2.0 };
            let mut head = [1.0, 2.0, 3.0, 4.0, 9.0];
            rope(&spec, 1, &mut head);
            for i in 0..5 {
                let want = want[i] * if i < 4 { 2.0 } else { 1.0 };
                assert!((head[i] - want).abs() < 1e-6, "{style:?} {i}: {} not {want}", head[i]);
            }
        }
    }

    #[test]
    fn scores_depend_on_distance_alone() {
        let spec = RopeSpec::new(RopeStyle::Neox, 8, 100.0, &RopeScaling::None);
        let score = |p: u32, q: u32| {
            let (mut a, mut b) = ([1.0, -2.0, 0.5, 3.0, 1.5, 0.25, -1.0, 2.0], [0.5; 8]);
            rope(&spec, p, &mut a);
            rope(&spec, q, &mut b);
            a.iter().zip(&b).map(|(a, b)| a * b).sum::<f64>()
        };
        assert!((score(3, 10) - score(40, 47)).abs() < 1e-9);
        assert!((score(3, 10) - score(3, 11)).abs() > 1e-3);
    }
}
