//! Rotary position embedding (Su et al. 2021): a table of cosines and sines per batch row, and the rotation of one head.

use unicorn_core::{RopeSpec, RopeStyle};

use super::float_vector::FloatVector;

/// Floats in a table row: cosines, then sines. Interleaved pairs store each cosine twice and the sine with both signs, so
/// that a rotation is `x * cos + swap(x) * sin`.
pub(crate) fn table_row_len(spec: &RopeSpec) -> usize {
    match spec.style {
        RopeStyle::Normal => 4 * spec.frequencies.len(),
        RopeStyle::Neox => 2 * spec.frequencies.len(),
    }
}

/// Fills a table row for `position`. Angles are computed in double precision: at position 100 000 a single-precision
/// product would be off by thousandths of a radian.
pub(crate) fn fill_table_row(spec: &RopeSpec, position: u32, row: &mut [f32]) {
    let (cosines, sines) = row.split_at_mut(row.len() / 2);
    for (i, frequency) in spec.frequencies.iter().enumerate() {
        let (sin, cos) = (f64::from(position) * f64::from(*frequency)).sin_cos();
        let sin = (sin * f64::from(spec.magnitude)) as f32;
        let cos = (cos * f64::from(spec.magnitude)) as f32;
        match spec.style {
            RopeStyle::Neox => (cosines[i], sines[i]) = (cos, sin),
            RopeStyle::Normal => {
                (cosines[2 * i], cosines[2 * i + 1]) = (cos, cos);
                (sines[2 * i], sines[2 * i + 1]) = (-sin, sin);
            }
        }
    }
}

/// Rotates one head in place by a row of the table.
///
/// # Safety
/// The CPU has the instruction set of `S`.
///
/// # Panics
/// When the head is shorter than the rotated elements.
#[inline(always)]
pub(crate) unsafe fn rotate<S: FloatVector>(style: RopeStyle, table_row: &[f32], head: &mut [f32]) {
    let (cosines, sines) = table_row.split_at(table_row.len() / 2);
    let n = cosines.len();
    let whole = n - n % S::LANES;
    match style {
        RopeStyle::Normal => {
            let head = &mut head[..n];
            for i in (0..whole).step_by(S::LANES) {
                // SAFETY: all three slices have `n` elements.
                unsafe {
                    let x = S::load(head.as_ptr().add(i));
                    let turned = S::mul(S::swap_pairs(x), S::load(sines.as_ptr().add(i)));
                    let y = S::fma(x, S::load(cosines.as_ptr().add(i)), turned);
                    S::store(head.as_mut_ptr().add(i), y);
                }
            }
            for i in (whole..n).step_by(2) {
                let (a, b) = (head[i], head[i + 1]);
                head[i] = a * cosines[i] + b * sines[i];
                head[i + 1] = b * cosines[i + 1] + a * sines[i + 1];
            }
        }
        RopeStyle::Neox => {
            let (first, second) = head[..2 * n].split_at_mut(n);
            for i in (0..whole).step_by(S::LANES) {
                // SAFETY: all four slices have `n` elements.
                unsafe {
                    let (a, b) = (S::load(first.as_ptr().add(i)), S::load(second.as_ptr().add(i)));
                    let (cos, sin) = (S::load(cosines.as_ptr().add(i)), S::load(sines.as_ptr().add(i)));
                    S::store(first.as_mut_ptr().add(i), S::sub(S::mul(a, cos), S::mul(b, sin)));
                    S::store(second.as_mut_ptr().add(i), S::fma(b, cos, S::mul(a, sin)));
                }
            }
            for i in whole..n {
                let (a, b) = (first[i], second[i]);
                first[i] = a * cosines[i] - b * sines[i];
                second[i] = b * cosines[i] + a * sines[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::float_vector::{SimdFunction, dispatch};
    use crate::simd::level::SimdLevel;
    use crate::simd::testing::random_source;
    use unicorn_core::rope::RopeScaling;

    struct Rotate<'a>(RopeStyle, &'a [f32], &'a mut [f32]);
    impl SimdFunction for Rotate<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: FloatVector>(self) {
            // SAFETY: dispatched.
            unsafe { rotate::<S>(self.0, self.1, self.2) }
        }
    }

    #[test]
    fn equals_plain_rotation() {
        let mut random = random_source("rope");
        for level in SimdLevel::available() {
            for style in [RopeStyle::Normal, RopeStyle::Neox] {
                for (dims, head_dim) in [(64, 64), (32, 64), (24, 40), (2, 8), (128, 128)] {
                    let mut spec = RopeSpec::new(style, dims, 10_000.0, &RopeScaling::None);
                    spec.magnitude = 1.25;
                    for position in [0u32, 1, 77, 131_071] {
                        let x: Vec<f32> = (0..head_dim).map(|_| random.normal()).collect();
                        let mut row = vec![0.0; table_row_len(&spec)];
                        fill_table_row(&spec, position, &mut row);
                        let mut y = x.clone();
                        dispatch(level, Rotate(style, &row, &mut y));
                        let mut want: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
                        for i in 0..dims / 2 {
                            let (j, k) = spec.pair(i);
                            let (sin, cos) = (f64::from(position) * f64::from(spec.frequencies[i])).sin_cos();
                            let (a, b) = (want[j], want[k]);
                            want[j] = 1.25 * (a * cos - b * sin);
                            want[k] = 1.25 * (a * sin + b * cos);
                        }
                        for i in 0..head_dim {
                            assert!(
                                (f64::from(y[i]) - want[i]).abs() < 1e-6,
                                "{level:?} {style:?} {dims} {i}"
                            );
                        }
                    }
                }
            }
        }
    }
}
