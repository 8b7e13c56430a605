//! One submission as all threads of a region see it, and the steps that blocks share.

use std::ops::Range;
use std::time::Instant;

use unicorn_core::Batch;

use super::label::{Label, Mark};
use super::norm::Norm;
use super::scratch::{SharedActivations, ThreadScratch};
use crate::simd::attention::{BatchRows, Partition, Scratch as AttentionScratch};
use crate::simd::level::SimdLevel;
use crate::simd::linear::{ActivationForms, Epilogue, OutputView, PackedActivations, PackedMatrix, linear};
use crate::simd::pool::Worker;
use crate::simd::rms_norm::{rms_norm, rms_norm_add};
use crate::simd::shared::{PerThread, SharedSlice};

/// Rows times columns up to which every thread quantizes all rows for itself.
pub(crate) const REDUNDANT_ELEMENTS: usize = 2048;
/// Rows per grab of a norm.
const NORM_ROWS: usize = 4;
/// Rows per grab when threads share the quantization: whole tiles of activations.
const QUANTIZE_ROWS: usize = 12;
/// Bytes of weights per grab: a part of the L2 cache.
const GRAB_BYTES: usize = 96 << 10;
/// Panels per grab at least: what a kernel call takes at once.
const GRAB_PANELS: usize = 4;
/// Grabs per thread at least, where panels suffice.
const GRABS_PER_THREAD: usize = 6;

/// A table of rotations for one rope spec: a row of `row` floats per batch row.
#[derive(Clone, Copy)]
pub(crate) struct RopeTable<'a> {
    pub(crate) rope: usize,
    pub(crate) row: usize,
    pub(crate) values: SharedSlice<'a, f32>,
}

/// Floats that a region's blocks need in shared buffers.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Needs {
    pub(crate) q: usize,
    pub(crate) kv: usize,
    /// Outputs before a post norm.
    pub(crate) y: usize,
    pub(crate) hidden: usize,
    pub(crate) partials: usize,
    pub(crate) logits: usize,
}

impl Needs {
    /// The larger of each.
    pub(crate) fn join(self, other: Needs) -> Needs {
        Needs {
            q: self.q.max(other.q),
            kv: self.kv.max(other.kv),
            y: self.y.max(other.y),
            hidden: self.hidden.max(other.hidden),
            partials: self.partials.max(other.partials),
            logits: self.logits.max(other.logits),
        }
    }
}

/// Shared buffers of a region.
#[derive(Clone, Copy)]
pub(crate) struct Buffers<'a> {
    pub(crate) q: SharedSlice<'a, f32>,
    pub(crate) k: SharedSlice<'a, f32>,
    pub(crate) v: SharedSlice<'a, f32>,
    pub(crate) attended: SharedSlice<'a, f32>,
    pub(crate) y: SharedSlice<'a, f32>,
    pub(crate) hidden: SharedSlice<'a, f32>,
    pub(crate) partials: SharedSlice<'a, f32>,
    /// Logits: all of the output where these are asked for, else of one group of output rows.
    pub(crate) logits: SharedSlice<'a, f32>,
    /// `[rows that ask for all logits, vocab]`, where not every row does.
    pub(crate) wanted: SharedSlice<'a, f32>,
    /// `[rows that ask for hidden states, width]`.
    pub(crate) states: SharedSlice<'a, f32>,
}

/// One submission, as all threads see it.
pub(crate) struct Region<'a> {
    pub(crate) level: SimdLevel,
    pub(crate) batch: &'a Batch,
    /// Of all rows.
    pub(crate) tokens: &'a [u32],
    pub(crate) rows: &'a BatchRows,
    /// The residual stream `[rows, width]`.
    pub(crate) x: SharedSlice<'a, f32>,
    pub(crate) buffers: Buffers<'a>,
    pub(crate) activations: &'a SharedActivations,
    pub(crate) threads: &'a PerThread<ThreadScratch>,
    pub(crate) partitions: &'a [Partition],
    pub(crate) ropes: &'a [RopeTable<'a>],
    pub(crate) profiling: bool,
}

/// Writes row `i` of activations: hands it to the last argument, made in the buffer where it does not lie in memory.
pub(crate) trait FillRow: Fn(usize, &mut AttentionScratch, &mut Vec<f32>, &dyn Fn(&[f32])) {}

impl<F: Fn(usize, &mut AttentionScratch, &mut Vec<f32>, &dyn Fn(&[f32]))> FillRow for F {}

/// What a product is to be computed of: activations that are made once a step needs them.
pub(crate) struct Inputs<F> {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) forms: ActivationForms,
    pub(crate) fill: F,
}

/// A product `x W^T` of a set that shares its activations.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a PackedMatrix,
    pub(crate) out: SharedSlice<'a, f32>,
    pub(crate) epilogue: Epilogue<'a>,
}

impl Region<'_> {
    /// Number of batch rows.
    pub(crate) fn row_count(&self) -> usize {
        self.rows.slice.len()
    }

    /// This thread's scratch.
    ///
    /// # Safety
    /// As [`PerThread::get`]: one reference at a time.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn scratch(&self, worker: &Worker) -> &mut ThreadScratch {
        // SAFETY: the caller's.
        unsafe { self.threads.get(worker.index) }
    }

    /// Row `row` of the residual stream.
    ///
    /// # Safety
    /// Nobody writes it until the next barrier.
    pub(crate) unsafe fn residual(&self, row: usize, width: usize) -> &[f32] {
        // SAFETY: the caller's.
        unsafe { self.x.read(row * width..(row + 1) * width) }
    }

    /// A step over `count` panels, or what else a product is cut into, with its activations. Few rows of them are prepared by every
    /// thread that takes a part, for itself; many are shared, which is a step before this one.
    ///
    /// # Safety
    /// All threads call it at the same step.
    pub(crate) unsafe fn step_over<F: FillRow>(
        &self,
        worker: &Worker,
        inputs: &Inputs<F>,
        count: usize,
        grain: usize,
        mut f: impl FnMut(&PackedActivations, Range<usize>),
    ) {
        let Inputs { rows, cols, forms, fill } = inputs;
        let own = *rows == 1 || rows * cols <= REDUNDANT_ELEMENTS || worker.threads() == 1;
        if !own {
            // SAFETY: the caller's.
            unsafe { self.share_activations(worker, inputs) };
        }
        let mut prepared = false;
        worker.step(count, grain, |part| {
            if !own {
                // SAFETY: written in earlier steps.
                return f(unsafe { &*self.activations.0.get() }, part);
            }
            // SAFETY: this thread's own; no other reference is alive.
            let ThreadScratch { activations, attention, row: buffer, .. } = unsafe { self.scratch(worker) };
            if !prepared {
                activations.reset(*rows, *cols, *forms);
                for row in 0..*rows {
                    // SAFETY: these activations are this thread's own.
                    fill(row, attention, buffer, &|x| unsafe { activations.quantize_row(row, x) });
                }
                prepared = true;
            }
            f(activations, part);
        });
    }

    /// Fills the shared activations, in a step that shapes them and one for the rows.
    ///
    /// # Safety
    /// As [`Region::step_over`].
    unsafe fn share_activations<F: FillRow>(&self, worker: &Worker, inputs: &Inputs<F>) {
        let Inputs { rows, cols, forms, fill } = inputs;
        // SAFETY: one part, so one thread; the steps that read the activations before are done.
        worker.step(1, 1, |_| unsafe { (*self.activations.0.get()).reset(*rows, *cols, *forms) });
        worker.step(*rows, QUANTIZE_ROWS, |part| {
            // SAFETY: this thread's own; no other reference is alive.
            let ThreadScratch { attention, row: buffer, .. } = unsafe { self.scratch(worker) };
            // SAFETY: shaped in the step before; here only rows are written, each by one thread.
            let shared = unsafe { &*self.activations.0.get() };
            for row in part {
                // SAFETY: every row is given to one thread.
                fill(row, attention, buffer, &|x| unsafe { shared.quantize_row(row, x) });
            }
        });
    }

    /// Normed rows of the residual stream as activations; `row(i)` is the i-th row's place in the stream.
    pub(crate) fn normed(
        &self,
        norm: &Norm,
        rows: usize,
        forms: ActivationForms,
        row: impl Fn(usize) -> usize,
    ) -> Inputs<impl FillRow> {
        let width = norm.weight.len();
        let fill =
            move |i: usize, _: &mut AttentionScratch, buffer: &mut Vec<f32>, quantize: &dyn Fn(&[f32])| {
                buffer.resize(width, 0.0);
                // SAFETY: no step that reads the residual stream writes it.
                let x = unsafe { self.residual(row(i), width) };
                rms_norm(self.level, x, &norm.weight, norm.eps, buffer);
                quantize(buffer);
            };
        Inputs { rows, cols: width, forms, fill }
    }

    /// A step that computes products of the same activations.
    ///
    /// # Safety
    /// All threads call it at the same step; outputs are disjoint, and `x` is not made from them.
    pub(crate) unsafe fn multiply<F: FillRow>(&self, worker: &Worker, x: &Inputs<F>, products: &[Product]) {
        let grains: Vec<usize> = products.iter().map(|p| grain(p.matrix, worker.threads())).collect();
        let counts = products.iter().zip(&grains).map(|(p, g)| p.matrix.panels().div_ceil(*g));
        let total = counts.clone().sum();
        let products_step = |x: &PackedActivations, part: Range<usize>| {
            let mut first = 0;
            for ((product, grain), count) in products.iter().zip(&grains).zip(counts.clone()) {
                let panels = part.start.max(first)..part.end.min(first + count);
                if panels.start < panels.end {
                    let (start, end) = ((panels.start - first) * grain, (panels.end - first) * grain);
                    let panels = start..end.min(product.matrix.panels());
                    let cols = product.matrix.rows();
                    // SAFETY: panels are given to one thread each, so the columns written are disjoint.
                    unsafe {
                        let out = OutputView::from_raw(product.out.pointer(0), product.out.len(), cols, cols);
                        linear(product.matrix, x, panels, 0..x.rows(), out, product.epilogue);
                    }
                }
                first += count;
            }
        };
        // SAFETY: the caller's.
        unsafe { self.step_over(worker, x, total, 1, products_step) };
    }

    /// The last product of a block: adds it to the residual stream, through a norm where there is one.
    ///
    /// # Safety
    /// As [`Region::multiply`].
    pub(crate) unsafe fn add_to_residual<F: FillRow>(
        &self,
        worker: &Worker,
        x: &Inputs<F>,
        matrix: &PackedMatrix,
        bias: Option<&[f32]>,
        post_norm: Option<&Norm>,
    ) {
        let (rows, width) = (x.rows, matrix.rows());
        // SAFETY: the caller's; every row of the norm is given to one thread.
        unsafe {
            let Some(norm) = post_norm else {
                let epilogue = bias.map_or(Epilogue::Add, Epilogue::AddBias);
                return self.multiply(worker, x, &[Product { matrix, out: self.x, epilogue }]);
            };
            let (out, epilogue) = (self.buffers.y, bias.map_or(Epilogue::Store, Epilogue::Bias));
            self.multiply(worker, x, &[Product { matrix, out, epilogue }]);
            worker.step(rows, NORM_ROWS, |part| {
                for row in part {
                    let range = row * width..(row + 1) * width;
                    let y = out.read(range.clone());
                    rms_norm_add(self.level, y, &norm.weight, norm.eps, self.x.write(range));
                }
            });
        }
    }

    /// Starts timing a block.
    ///
    /// # Safety
    /// As [`Region::scratch`].
    pub(crate) unsafe fn start_marks(&self, worker: &Worker) {
        if self.profiling && worker.index == 0 {
            worker.settle();
            // SAFETY: the caller's.
            unsafe { self.scratch(worker) }.last_mark = Some(Instant::now());
        }
    }

    /// Books the time since the last mark, that of all steps before this call.
    ///
    /// # Safety
    /// As [`Region::scratch`].
    pub(crate) unsafe fn mark(&self, worker: &Worker, label: &Label, bytes: u64, flops: u64) {
        if !self.profiling || worker.index != 0 {
            return;
        }
        worker.settle();
        // SAFETY: the caller's.
        let scratch = unsafe { self.scratch(worker) };
        let now = Instant::now();
        let since = scratch.last_mark.replace(now).unwrap_or(now);
        let seconds = (now - since).as_secs_f64();
        scratch.marks.push(Mark { label: label.clone(), seconds, bytes, flops });
    }
}

/// Panels per grab of a matrix: a part of the L2 cache, yet several grabs per thread.
pub(crate) fn grain(matrix: &PackedMatrix, threads: usize) -> usize {
    let panels = matrix.panels().max(1);
    let by_bytes = GRAB_BYTES * panels / matrix.bytes().max(1);
    let by_threads = panels / (threads * GRABS_PER_THREAD);
    by_bytes.min(by_threads).max(GRAB_PANELS)
}
