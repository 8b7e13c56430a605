//! Keys and values on their way into the cache.

use super::scratch::Scratch;
use super::shapes::{Heads, Projections};
use crate::simd::float_vector::{FloatVector, SimdFunction, dispatch};
use crate::simd::kv::KvHead;
use crate::simd::level::SimdLevel;
use crate::simd::rms_norm::inverse_rms;
use crate::simd::rope::rotate;

/// Norms, rotates and stores the key and the value of one batch row for one KV head.
///
/// # Safety
/// No other thread touches this position of this head until the next barrier.
pub(crate) unsafe fn store_row(
    level: SimdLevel,
    heads: &Heads,
    from: &Projections,
    cache: KvHead,
    kv_head: usize,
    row: usize,
    position: usize,
    scratch: &mut Scratch,
) {
    dispatch(level, Store { heads, from, cache, kv_head, row, position, scratch });
}

struct Store<'a> {
    heads: &'a Heads<'a>,
    from: &'a Projections<'a>,
    cache: KvHead<'a>,
    kv_head: usize,
    row: usize,
    position: usize,
    scratch: &'a mut Scratch,
}

impl SimdFunction for Store<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: FloatVector>(self) {
        let Store { heads, from, cache, kv_head, row, position, scratch } = self;
        let (dim, kv_heads) = (heads.dim, heads.heads / heads.group);
        let at = (row * kv_heads + kv_head) * dim;
        let norm = heads.qk_norm.map(|(_, k, eps)| (k, eps));
        // SAFETY: the caller dispatched to `S`, and gives this position to this thread.
        unsafe {
            prepare::<S>(heads, from, row, &from.k[at..at + dim], norm, &mut scratch.head);
            cache.store::<S>(position, &scratch.head, &from.v[at..at + dim]);
        }
    }
}

/// Copies a head into `out`, norms and rotates it.
#[inline(always)]
pub(super) unsafe fn prepare<S: FloatVector>(
    heads: &Heads,
    from: &Projections,
    row: usize,
    head: &[f32],
    norm: Option<(&[f32], f32)>,
    out: &mut Vec<f32>,
) {
    out.clear();
    out.extend_from_slice(head);
    // SAFETY: the caller's.
    unsafe {
        if let Some((weight, eps)) = norm {
            let scale = inverse_rms::<S>(head, eps);
            for (o, w) in out.iter_mut().zip(weight) {
                *o = *o * scale * w;
            }
        }
        rotate::<S>(heads.rope_style, &from.rope[row * from.rope_row..][..from.rope_row], out);
    }
}
