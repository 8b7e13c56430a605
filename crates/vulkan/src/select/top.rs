//! Selection of the largest logits.

use super::limits::{subgroup, workgroup};
use crate::kernel::Kernel;
use crate::profile::GpuProfile;

/// How the largest logits of a row are found: the slices of a row each by a workgroup, then their pairs by one.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct TopKernels {
    /// The kernel that reads logits.
    pub first: Kernel,
    /// Slices of a row.
    pub slices: usize,
    /// The kernel that reads the slices' pairs; `None` where there is one slice.
    pub second: Option<Kernel>,
}

impl TopKernels {
    /// `(value, id)` pairs of all slices of a row.
    pub(crate) fn pairs(&self, k: usize) -> usize {
        if self.second.is_some() { self.slices * k } else { 0 }
    }
}

/// Values of a thread of the first dispatch, at least.
const EACH: usize = 8;
/// Threads of the first dispatch.
const THREADS: usize = 256;

/// Pairs of a row that a plan for at most `k` of `count` logits may have.
pub(crate) fn top_pairs_most(count: usize, k: usize, gpu: &GpuProfile) -> usize {
    count.div_ceil(EACH * workgroup(THREADS, gpu) as usize) * k
}

/// The `k` largest of `count` logits.
pub(crate) fn top(count: usize, k: usize, gpu: &GpuProfile) -> TopKernels {
    let kernel = |threads: u32, count: usize, pairs: bool, last: bool| Kernel {
        shader: "top_k".into(),
        constants: vec![threads, count.div_ceil(threads as usize) as u32, pairs as u32, last as u32],
        subgroup: subgroup(gpu),
    };
    let threads = workgroup(THREADS, gpu);
    // At least four values for each that is kept, so that the second dispatch has less to do than the first.
    let each = (4 * k).div_ceil(threads as usize).clamp(EACH, 32);
    let slice = (each * threads as usize).min(count.max(1));
    let slices = count.div_ceil(slice).max(1);
    let pairs = slices * k;
    // As few threads as hold the pairs in a few registers each: rounds are short where few subgroups take part.
    let second_threads = workgroup(pairs.div_ceil(4).next_multiple_of(64).clamp(64, 1024), gpu);
    TopKernels {
        first: kernel(threads, slice, false, slices == 1),
        slices,
        second: (slices > 1).then(|| kernel(second_threads, pairs, true, true)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profiles;

    #[test]
    fn slices_cover_the_vocabulary_and_pairs_the_slices() {
        for gpu in profiles::all() {
            let name = &gpu.name;
            for count in [1, 7, 64, 2048, 2049, 49_152, 128_256, 262_144] {
                for k in [1, 2, 40, 256].into_iter().filter(|k| *k <= count) {
                    let plan = top(count, k, &gpu);
                    let held = |k: &Kernel| (k.constants[0] * k.constants[1]) as usize;
                    assert!(plan.slices * held(&plan.first) >= count, "{name} {count} {k}");
                    assert!((plan.slices - 1) * held(&plan.first) < count, "{name} {count} {k}");
                    assert!(plan.pairs(k) <= top_pairs_most(count, k, &gpu), "{name} {count} {k}");
                    match &plan.second {
                        Some(second) => assert!(held(second) >= plan.pairs(k), "{name} {count} {k}"),
                        None => assert_eq!((plan.slices, plan.pairs(k), plan.first.constants[3]), (1, 0, 1)),
                    }
                }
            }
        }
    }
}
