//! The blocks, as every thread of a region runs them, and what they share.
//!
//! All threads walk the same list of operations. A step whose inputs other threads wrote starts behind a barrier; a step that is
//! cheaper to repeat than to wait for (norm and quantization of a single row) is done by every thread for itself.

mod attention;
mod embedding;
mod ffn;
mod head;

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::time::Instant;

use unicorn_core::{Batch, NormSpec, RateKind, TensorType, TopEntry};

pub(crate) use attention::{AttentionBlock, QkNorm};
pub(crate) use embedding::EmbeddingBlock;
pub(crate) use ffn::FfnBlock;
pub(crate) use head::{HeadBlock, HeadResult, head_group};

use super::attention::{BatchRows, Plan, Scratch as AttentionScratch};
use super::level::SimdLevel;
use super::linear::{ActivationForms, Activations, Epilogue, OutputView, PackedMatrix, linear};
use super::pool::Worker;
use super::rms_norm::{rms_norm, rms_norm_add};
use super::shared::{PerThread, SharedSlice};

/// Rows times columns up to which every thread quantizes all rows for itself.
const REDUNDANT_ELEMENTS: usize = 2048;
/// Rows per grab when threads share the quantization: whole tiles of activations.
const QUANTIZE_ROWS: usize = 12;
/// Bytes of weights per grab: a part of the L2 cache.
const GRAB_BYTES: usize = 96 << 10;
/// Panels per grab at least: what a kernel call takes at once.
const GRAB_PANELS: usize = 4;
/// Grabs per thread at least, where panels suffice.
const GRABS_PER_THREAD: usize = 6;

/// A norm with its weight.
#[derive(Clone)]
pub(crate) struct Norm {
    pub(crate) weight: Arc<[f32]>,
    pub(crate) eps: f32,
}

impl Norm {
    /// The weight has its offset added already.
    pub(crate) fn new(spec: &NormSpec, weight: Arc<[f32]>) -> Norm {
        Norm { weight, eps: spec.eps }
    }
}

/// A loaded block.
pub(crate) enum Loaded {
    Embedding(EmbeddingBlock),
    Attention(Box<AttentionBlock>),
    Ffn(FfnBlock),
    Head(HeadBlock),
}

impl Loaded {
    /// Kernels, one line each.
    pub(crate) fn describe(&self) -> Vec<String> {
        match self {
            Loaded::Embedding(b) => vec![b.label.name.clone()],
            Loaded::Attention(b) => b.labels().map(|l| l.name.clone()).to_vec(),
            Loaded::Ffn(b) => b.labels().map(|l| l.name.clone()).to_vec(),
            Loaded::Head(b) => b.labels().map(|l| l.name.clone()).to_vec(),
        }
    }

    /// Model width.
    pub(crate) fn width(&self) -> usize {
        match self {
            Loaded::Embedding(b) => b.spec.width,
            Loaded::Attention(b) => b.spec.width,
            Loaded::Ffn(b) => b.spec.width,
            Loaded::Head(b) => b.spec.width,
        }
    }

    /// Runs the block on one thread of a region.
    ///
    /// # Safety
    /// All threads call it for the same sequence of blocks, over one region's shared buffers.
    pub(crate) unsafe fn run(&self, worker: &Worker, region: &Region) {
        // SAFETY: the caller's.
        unsafe {
            match self {
                Loaded::Embedding(b) => b.run(worker, region),
                Loaded::Attention(b) => b.run(worker, region),
                Loaded::Ffn(b) => b.run(worker, region),
                Loaded::Head(b) => b.run(worker, region),
            }
        }
    }
}

/// Name and bounding rate of a kernel, for profiles.
#[derive(Clone, Debug)]
pub(crate) struct Label {
    pub(crate) name: String,
    pub(crate) rate: RateKind,
}

impl Label {
    /// `op types kernel` for a product with these matrices.
    fn product(op: &str, matrices: &[&PackedMatrix]) -> Label {
        let mut types: Vec<TensorType> = matrices.iter().map(|m| m.ty()).collect();
        types.dedup();
        let mut kernels: Vec<&str> = matrices.iter().map(|m| m.kernel().name()).collect();
        kernels.dedup();
        let types: Vec<String> = types.iter().map(|t| t.name().to_lowercase()).collect();
        let rate = matrices.first().map_or(RateKind::Float, |m| m.kernel().rate());
        Label { name: format!("{op} {} {}", types.join("+"), kernels.join("+")), rate }
    }
}

/// Time of one step on thread 0, the wait for the other threads included.
pub(crate) struct Mark {
    pub(crate) label: Label,
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) flops: u64,
}

/// What a thread keeps for itself.
#[derive(Default)]
pub(crate) struct ThreadScratch {
    activations: Activations,
    attention: AttentionScratch,
    /// A row on its way to quantization.
    row: Vec<f32>,
    /// Best logits of parts of output rows.
    pub(crate) tops: Vec<(usize, Vec<TopEntry>)>,
    /// Filled on thread 0 while profiling.
    pub(crate) marks: Vec<Mark>,
    last_mark: Option<Instant>,
}

impl ThreadScratch {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.activations.capacity_bytes() + (self.attention.capacity() + self.row.capacity()) * 4
    }
}

/// Activations of many rows, filled by all threads.
#[derive(Default)]
pub(crate) struct SharedActivations(UnsafeCell<Activations>);

// SAFETY: shaped by thread 0 alone between two barriers, see `Region::quantized`.
unsafe impl Sync for SharedActivations {}

impl SharedActivations {
    /// Bytes held, outside of a region.
    pub(crate) fn bytes(&mut self) -> usize {
        self.0.get_mut().capacity_bytes()
    }
}

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
}

/// One submission, as all threads see it.
pub(crate) struct Region<'a> {
    pub(crate) level: SimdLevel,
    pub(crate) batch: &'a Batch,
    pub(crate) rows: &'a BatchRows,
    /// The residual stream `[rows, width]`.
    pub(crate) x: SharedSlice<'a, f32>,
    pub(crate) buffers: Buffers<'a>,
    pub(crate) activations: &'a SharedActivations,
    pub(crate) threads: &'a PerThread<ThreadScratch>,
    pub(crate) plans: &'a [Plan],
    pub(crate) ropes: &'a [RopeTable<'a>],
    pub(crate) profiling: bool,
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

    /// Activations of `rows` rows; `fill` hands row `i` to its last argument. Few rows are prepared by every thread for itself, many
    /// are shared, with a barrier before and behind; then every earlier step is complete on return.
    ///
    /// # Safety
    /// All threads call it at the same step; nobody uses the shared activations of an earlier step any more.
    pub(crate) unsafe fn quantized<'s>(
        &'s self,
        worker: &Worker,
        rows: usize,
        cols: usize,
        forms: ActivationForms,
        fill: impl Fn(usize, &mut AttentionScratch, &mut Vec<f32>, &dyn Fn(&[f32])),
    ) -> &'s Activations {
        // SAFETY: this thread's own; no other reference is alive.
        let ThreadScratch { activations, attention, row: buffer, .. } = unsafe { self.scratch(worker) };
        if rows == 1 || rows * cols <= REDUNDANT_ELEMENTS || worker.threads() == 1 {
            activations.reset(rows, cols, forms);
            for row in 0..rows {
                // SAFETY: these activations are this thread's own.
                fill(row, attention, buffer, &|x| unsafe { activations.quantize_row(row, x) });
            }
            return activations;
        }
        if worker.index == 0 {
            // SAFETY: the other threads wait at the barrier, or still write what they computed from their own inputs.
            unsafe { (*self.activations.0.get()).reset(rows, cols, forms) };
        }
        worker.barrier();
        // SAFETY: shaped before the barrier; from here on only rows are written, each by one thread.
        let shared = unsafe { &*self.activations.0.get() };
        worker.dynamic(rows, QUANTIZE_ROWS, |part| {
            for row in part {
                // SAFETY: every row is given to one thread.
                fill(row, attention, buffer, &|x| unsafe { shared.quantize_row(row, x) });
            }
        });
        worker.barrier();
        shared
    }

    /// Normed rows of the residual stream as activations; `row(i)` is the i-th row's place in the stream.
    ///
    /// # Safety
    /// As [`Region::quantized`].
    pub(crate) unsafe fn normed(
        &self,
        worker: &Worker,
        norm: &Norm,
        rows: usize,
        forms: ActivationForms,
        row: impl Fn(usize) -> usize,
    ) -> &Activations {
        let width = norm.weight.len();
        // SAFETY: the residual stream is only written in steps that end with a barrier.
        unsafe {
            self.quantized(worker, rows, width, forms, |i, _, buffer, quantize| {
                buffer.resize(width, 0.0);
                rms_norm(self.level, self.residual(row(i), width), &norm.weight, norm.eps, buffer);
                quantize(buffer);
            })
        }
    }

    /// Computes products of the same activations; no barrier at the end.
    ///
    /// # Safety
    /// All threads call it at the same step; outputs are disjoint and touched by nothing else until the next barrier.
    pub(crate) unsafe fn multiply(&self, worker: &Worker, x: &Activations, products: &[Product]) {
        let grains: Vec<usize> = products.iter().map(|p| grain(p.matrix, worker.threads())).collect();
        let counts = products.iter().zip(&grains).map(|(p, g)| p.matrix.panels().div_ceil(*g));
        let total = counts.clone().sum();
        worker.dynamic(total, 1, |part| {
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
        });
    }

    /// The last product of a block: adds it to the residual stream, through a norm where there is one. Ends with a barrier.
    ///
    /// # Safety
    /// As [`Region::multiply`].
    pub(crate) unsafe fn add_to_residual(
        &self,
        worker: &Worker,
        x: &Activations,
        matrix: &PackedMatrix,
        bias: Option<&[f32]>,
        post_norm: Option<&Norm>,
    ) {
        let (rows, width) = (x.rows(), matrix.rows());
        // SAFETY: the caller's; a barrier separates the product from the norm of its rows.
        unsafe {
            let Some(norm) = post_norm else {
                let epilogue = bias.map_or(Epilogue::Add, Epilogue::AddBias);
                self.multiply(worker, x, &[Product { matrix, out: self.x, epilogue }]);
                return worker.barrier();
            };
            let (out, epilogue) = (self.buffers.y, bias.map_or(Epilogue::Store, Epilogue::Bias));
            self.multiply(worker, x, &[Product { matrix, out, epilogue }]);
            worker.barrier();
            for row in worker.share(rows, 1) {
                let range = row * width..(row + 1) * width;
                let y = out.read(range.clone());
                rms_norm_add(self.level, y, &norm.weight, norm.eps, self.x.write(range));
            }
            worker.barrier();
        }
    }

    /// Starts timing a block.
    ///
    /// # Safety
    /// As [`Region::scratch`].
    pub(crate) unsafe fn start_marks(&self, worker: &Worker) {
        if self.profiling && worker.index == 0 {
            // SAFETY: the caller's.
            unsafe { self.scratch(worker) }.last_mark = Some(Instant::now());
        }
    }

    /// Books the time since the last mark. Call behind a step's barrier.
    ///
    /// # Safety
    /// As [`Region::scratch`].
    pub(crate) unsafe fn mark(&self, worker: &Worker, label: &Label, bytes: u64, flops: u64) {
        if !self.profiling || worker.index != 0 {
            return;
        }
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
