//! The matrix kernel of attention: a few rows of broadcast values times vectors along the other dimension. It serves
//! both products: scores = queries x transposed keys, and output += probabilities x values.
//!
//! Every output element is summed over the depth in ascending order, one fused multiply-add per step, whatever the shape
//! of the call: results do not depend on how many rows share a call.

use crate::simd::float_vector::FloatVector;

/// Rows per call at most, and the interleaving of packed queries.
pub(super) const GROUP: usize = 6;

/// An element that loads as floats.
pub(super) trait Element: Copy {
    /// Loads `LANES` elements.
    ///
    /// # Safety
    /// The CPU has the instruction set of `S`, and the pointer is valid for `LANES` elements.
    unsafe fn load<S: FloatVector>(p: *const Self) -> S::F;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: FloatVector>(p: *const f32) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load(p) }
    }
}

/// Half floats as bits.
impl Element for u16 {
    #[inline(always)]
    unsafe fn load<S: FloatVector>(p: *const u16) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f16(p) }
    }
}

/// Where a factor lies: element `(row, k)` of the left factor at `row * row_step + k * depth_step`.
#[derive(Clone, Copy)]
pub(super) struct Left {
    pub(super) start: *const f32,
    pub(super) row_step: usize,
    pub(super) depth_step: usize,
}

/// `c[row][v * LANES ..] (+)= sum_k left[row][k] * right[v][k * right_step ..]` for `R` rows and `V` vectors; rows of `c` are
/// `c_step` apart.
///
/// # Safety
/// The CPU has the instruction set of `S`; all addressed elements are valid, those of `c` for writing.
#[inline(always)]
pub(super) unsafe fn multiply<S: FloatVector, E: Element, const R: usize, const V: usize>(
    left: Left,
    right: [*const E; V],
    right_step: usize,
    depth: usize,
    c: *mut f32,
    c_step: usize,
    accumulate: bool,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); V]; R];
        if accumulate {
            for r in 0..R {
                for v in 0..V {
                    sums[r][v] = S::load(c.add(r * c_step + v * S::LANES));
                }
            }
        }
        for k in 0..depth {
            let at = left.start.add(k * left.depth_step);
            if R < V {
                let mut a = [S::splat(0.0); R];
                for r in 0..R {
                    a[r] = S::splat(*at.add(r * left.row_step));
                }
                for v in 0..V {
                    let b = E::load::<S>(right[v].add(k * right_step));
                    for r in 0..R {
                        sums[r][v] = S::fma(a[r], b, sums[r][v]);
                    }
                }
            } else {
                let mut b = [S::splat(0.0); V];
                for v in 0..V {
                    b[v] = E::load::<S>(right[v].add(k * right_step));
                }
                for r in 0..R {
                    let a = S::splat(*at.add(r * left.row_step));
                    for v in 0..V {
                        sums[r][v] = S::fma(a, b[v], sums[r][v]);
                    }
                }
            }
        }
        for r in 0..R {
            for v in 0..V {
                S::store(c.add(r * c_step + v * S::LANES), sums[r][v]);
            }
        }
    }
}
