//! Kernels for float weights: f32 activations, fused multiply-adds over ascending columns.

use std::mem::MaybeUninit;

use unicorn_core::TensorType;

use super::job::PanelJob;
use super::layout::{PANEL_ROWS, Panel};
use super::panel_vector::PanelVector;
use super::tile_job::FloatTileJob;

/// Floats of weights converted at a time: half of a 32 KiB L1 cache.
const SCRATCH_FLOATS: usize = 4 << 10;

/// A float type as a compile-time parameter.
pub(super) trait FloatEncoding: Copy {
    /// The type.
    const TYPE: TensorType;
}

macro_rules! encodings {
    ($($name:ident = $ty:ident),*) => {$(
        #[derive(Clone, Copy)]
        pub(super) struct $name;
        impl FloatEncoding for $name {
            const TYPE: TensorType = TensorType::$ty;
        }
    )*};
}
encodings!(Single = F32, Half = F16, Brain = BF16);

/// The weights of `LANES` rows from `v * LANES` on at column `k`.
#[inline(always)]
unsafe fn weights<S: PanelVector, E: FloatEncoding>(panel: &Panel, k: usize, v: usize) -> S::F {
    // SAFETY: by the caller's contract.
    unsafe {
        let column = panel.low(k);
        match E::TYPE {
            TensorType::F16 => S::load_f16(column.add(v * S::LANES * 2)),
            TensorType::BF16 => S::load_bf16(column.add(v * S::LANES * 2)),
            _ => S::load_f(column.cast::<f32>().add(v * S::LANES)),
        }
    }
}

/// One row of activations against whole panels, four at a time: a sum is one chain of additions, so that several rows of sums
/// must be under way to hide the latency.
///
/// # Safety
/// As [`super::job::PanelFn`]; the activations must have one row.
#[inline(always)]
pub(super) unsafe fn decode<S: PanelVector, E: FloatEncoding>(job: &PanelJob<'_>) {
    // SAFETY: by the caller's contract.
    unsafe {
        let mut p = 0;
        while p + 4 <= job.count {
            decode_panels::<S, E, 4>(job, p);
            p += 4;
        }
        while p + 2 <= job.count {
            decode_panels::<S, E, 2>(job, p);
            p += 2;
        }
        if p < job.count {
            decode_panels::<S, E, 1>(job, p);
        }
    }
}

#[inline(always)]
unsafe fn decode_panels<S: PanelVector, E: FloatEncoding, const P: usize>(job: &PanelJob<'_>, p: usize) {
    // SAFETY: by the caller's contract.
    unsafe {
        let (_, x) = job.x.float_tile(0, 0);
        let vectors = PANEL_ROWS / S::LANES;
        let panels: [Panel; P] = std::array::from_fn(|i| job.matrix.panel(job.panel + p + i));
        let mut sums = [[S::zero_f(); 2]; P];
        for k in 0..job.x.cols() {
            let a = S::splat_f(*x.add(k));
            for i in 0..P {
                for v in 0..vectors {
                    sums[i][v] = S::fma(weights::<S, E>(&panels[i], k, v), a, sums[i][v]);
                }
            }
        }
        for i in 0..P {
            for v in 0..vectors {
                S::store_f(job.out.add((p + i) * job.out_stride + v * S::LANES), sums[i][v]);
            }
        }
    }
}

/// Vectors of weight rows that a tile kernel works on: both halves of a panel with AVX2, two panels with AVX-512.
const R: usize = 2;

#[repr(align(64))]
struct Scratch(#[allow(dead_code)] [f32; SCRATCH_FLOATS]);

/// Any number of rows of activations against panels. Weights go to scratch as `[column][row]`, a panel after the other.
///
/// # Safety
/// As [`super::job::PanelFn`].
#[inline(always)]
pub(super) unsafe fn tiles<S: PanelVector, E: FloatEncoding>(job: &PanelJob<'_>) {
    // SAFETY: by the caller's contract; `chunk` columns of `at_once` panels fit the scratch.
    unsafe {
        let mut scratch = MaybeUninit::<Scratch>::uninit();
        let scratch = scratch.as_mut_ptr().cast::<f32>();
        let at_once = R * S::LANES / PANEL_ROWS;
        let cols = job.x.cols();
        let chunk_max = SCRATCH_FLOATS / PANEL_ROWS / at_once;
        let chunk = cols.div_ceil(cols.div_ceil(chunk_max).max(1)).max(1);
        for p in (0..job.count).step_by(at_once) {
            let out = job.out.add(p * job.out_stride);
            // An odd last panel is computed twice, into the same place.
            let pair = at_once == 2 && p + 1 < job.count;
            let (weight_stride, out_stride) = if at_once == 1 {
                (S::LANES, S::LANES)
            } else if pair {
                (chunk * PANEL_ROWS, job.out_stride)
            } else {
                (0, 0)
            };
            for first in (0..cols).step_by(chunk) {
                let len = chunk.min(cols - first);
                for c in 0..1 + pair as usize {
                    let panel = job.matrix.panel(job.panel + p + c);
                    for k in 0..len {
                        for v in 0..PANEL_ROWS / S::LANES {
                            let at = scratch.add((c * chunk + k) * PANEL_ROWS + v * S::LANES);
                            S::store_f(at, weights::<S, E>(&panel, first + k, v));
                        }
                    }
                }
                let mut row = 0;
                for tile in job.tile..job.tile + job.tiles {
                    let (width, x) = job.x.float_tile(tile, first);
                    let job = FloatTileJob {
                        weights: scratch,
                        weight_stride,
                        len,
                        x,
                        resume: first > 0,
                        out: out.add(row * PANEL_ROWS),
                        out_stride,
                    };
                    match width {
                        6 => S::float_tile::<6>(&job),
                        5 => S::float_tile::<5>(&job),
                        4 => S::float_tile::<4>(&job),
                        3 => S::float_tile::<3>(&job),
                        2 => S::float_tile::<2>(&job),
                        _ => S::float_tile::<1>(&job),
                    }
                    row += width;
                }
            }
        }
    }
}

/// `R` vectors of weight rows times `T` rows of activations.
///
/// # Safety
/// The job must describe valid memory and the processor have the level of `S`.
#[inline(always)]
pub(super) unsafe fn tile<S: PanelVector, const T: usize>(job: &FloatTileJob) {
    // SAFETY: by the caller's contract.
    unsafe {
        let FloatTileJob { weights, weight_stride, x, out, out_stride, .. } = *job;
        let mut sums = [[S::zero_f(); R]; T];
        if job.resume {
            for t in 0..T {
                for r in 0..R {
                    sums[t][r] = S::load_f(out.add(t * PANEL_ROWS + r * out_stride));
                }
            }
        }
        for k in 0..job.len {
            let mut column = [S::zero_f(); R];
            for r in 0..R {
                column[r] = S::load_f(weights.add(k * PANEL_ROWS + r * weight_stride));
            }
            for t in 0..T {
                let a = S::splat_f(*x.add(k * T + t));
                for r in 0..R {
                    sums[t][r] = S::fma(column[r], a, sums[t][r]);
                }
            }
        }
        for t in 0..T {
            for r in 0..R {
                S::store_f(out.add(t * PANEL_ROWS + r * out_stride), sums[t][r]);
            }
        }
    }
}
