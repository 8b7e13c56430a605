//! The portable kernel: reads the same panels, one row at a time, in plain Rust.

use super::activations::{FLOAT_TILE, INT_TILE};
use super::encoding::{Coding, row_group};
use super::group_words::{AUX_HALVES, AUX_SCALE, AUX_WORDS};
use super::job::PanelJob;
use super::layout::{GROUP, PANEL_ROWS};
use super::matrix::float_at;

/// Integer weights of any type, any number of rows of activations.
///
/// # Safety
/// As [`super::job::PanelFn`].
pub(super) unsafe fn integers(job: &PanelJob<'_>) {
    let coding = Coding::of(job.matrix.ty());
    let rows = job.tiles * INT_TILE;
    for p in 0..job.count {
        for lane in 0..PANEL_ROWS {
            // SAFETY: by the caller's contract.
            unsafe {
                let out = job.out.add(p * job.out_stride + lane);
                let panel = job.matrix.panel(job.panel + p);
                for g in 0..job.x.cols() / GROUP {
                    let w = row_group(&coding, &panel, g, lane);
                    for row in 0..rows {
                        let x = job.x.int_tile(job.tile + row / INT_TILE, g);
                        let (t, width) = (row % INT_TILE, x.width);
                        if t >= width {
                            break;
                        }
                        let sum = out.add(row * PANEL_ROWS);
                        let before = if g == 0 { 0.0 } else { *sum };
                        *sum = before + group_product(&w, x.bytes.add(t * 4), width * 4, x.aux.add(t), width);
                    }
                }
            }
        }
    }
}

/// One group of one weight row times one row of activations.
#[inline(always)]
unsafe fn group_product(
    w: &super::encoding::RowGroup,
    bytes: *const u8,
    quad_stride: usize,
    aux: *const i32,
    aux_stride: usize,
) -> f32 {
    const { assert!(AUX_WORDS > AUX_HALVES) };
    // SAFETY: by the caller's contract.
    unsafe {
        let mut dots = [0i32; 2];
        for q in 0..8 {
            let quad = bytes.add(q * quad_stride).cast::<[i8; 4]>().read();
            for i in 0..4 {
                dots[q / 4] += w.codes[4 * q + i] as i32 * quad[i] as i32;
            }
        }
        let scale = f32::from_bits(*aux.add(AUX_SCALE * aux_stride) as u32);
        let halves = *aux.add(AUX_HALVES * aux_stride);
        let sums = [halves as i16 as f32, (halves >> 16) as f32];
        let product = w.scale[0] * dots[0] as f32 + w.scale[1] * dots[1] as f32;
        scale * (product + (w.offset[0] * sums[0] + w.offset[1] * sums[1]))
    }
}

/// Float weights, any number of rows of activations.
///
/// # Safety
/// As [`super::job::PanelFn`].
pub(super) unsafe fn floats(job: &PanelJob<'_>) {
    let rows = job.tiles * FLOAT_TILE;
    for p in 0..job.count {
        // SAFETY: by the caller's contract.
        let panel = unsafe { job.matrix.panel(job.panel + p) };
        for row in 0..rows {
            // SAFETY: by the caller's contract.
            unsafe {
                let (width, x) = job.x.float_tile(job.tile + row / FLOAT_TILE, 0);
                let t = row % FLOAT_TILE;
                if t >= width {
                    break;
                }
                let mut sums = [0f32; PANEL_ROWS];
                for k in 0..job.x.cols() {
                    let a = *x.add(k * width + t);
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        *sum += float_at(job.matrix.ty(), &panel, k, lane) * a;
                    }
                }
                let out = job.out.add(p * job.out_stride + row * PANEL_ROWS);
                out.cast::<[f32; PANEL_ROWS]>().write_unaligned(sums);
            }
        }
    }
}
