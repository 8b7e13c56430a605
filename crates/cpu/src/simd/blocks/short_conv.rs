//! The short convolution: norm and projection, gates and taps over each slice's channels, output projection.

use std::sync::Arc;

use unicorn_core::{RateKind, ShortConvSpec};

use super::label::Label;
use super::norm::Norm;
use super::region::{Inputs, Needs, Product, Region};
use crate::simd::level::SimdLevel;
use crate::simd::linear::{Epilogue, PackedMatrix};
use crate::simd::pool::Worker;
use crate::simd::short_conv::{CHANNELS, Convolution, States, convolve};

/// Values of a slice per grab at least.
const GRAB_VALUES: usize = 4096;

/// A loaded short convolution.
pub(crate) struct ShortConvBlock {
    pub(crate) spec: ShortConvSpec,
    norm: Norm,
    input: Arc<PackedMatrix>,
    output: Arc<PackedMatrix>,
    /// `[kernel, width]`.
    taps: Arc<[f32]>,
    pub(crate) states: Option<States>,
    labels: [Label; 3],
}

impl ShortConvBlock {
    /// Wraps the weights; the states come later.
    pub(crate) fn new(
        spec: &ShortConvSpec,
        norm: Norm,
        [input, output]: [Arc<PackedMatrix>; 2],
        taps: Arc<[f32]>,
        level: SimdLevel,
    ) -> ShortConvBlock {
        let labels = [
            Label::product("short_conv_input", &[&input]),
            Label { name: format!("short_conv {level}"), rate: RateKind::Float },
            Label::product("short_conv_output", &[&output]),
        ];
        ShortConvBlock { spec: spec.clone(), norm, input, output, taps, states: None, labels }
    }

    pub(super) fn labels(&self) -> &[Label; 3] {
        &self.labels
    }

    /// Shared memory for `rows` rows.
    pub(crate) fn needs(&self, rows: usize) -> Needs {
        Needs { hidden: rows * 3 * self.spec.width, ..Needs::default() }
    }

    /// Adds the block's output to the residual stream.
    ///
    /// # Safety
    /// As [`super::Loaded::run`]. The batch's pages have been checked.
    ///
    /// # Panics
    /// When there are no states.
    pub(super) unsafe fn run(&self, worker: &Worker, region: &Region) {
        let (rows, width) = (region.row_count(), self.spec.width);
        let [input_label, label, output_label] = &self.labels;
        let (input, output, hidden) = (&*self.input, &*self.output, region.buffers.hidden);
        // SAFETY: the outputs of a step are disjoint; what earlier ones wrote is read inside of steps.
        unsafe {
            region.start_marks(worker);
            let x = region.normed(&self.norm, rows, input.activation_forms(), |row| row);
            region.multiply(worker, &x, &[Product { matrix: input, out: hidden, epilogue: Epilogue::Store }]);
            let per_row = |matrix: &PackedMatrix| 2 * (matrix.rows() * matrix.cols()) as u64;
            region.mark(worker, input_label, input.bytes() as u64, rows as u64 * per_row(input));

            self.convolve(worker, region);
            let states = region.batch.slices().iter().filter(|s| s.start > 0).count();
            let bytes = size_of_val(&*self.taps) + states * self.spec.state_floats() * size_of::<f32>();
            let flops = rows * width * (2 * self.spec.kernel + 2);
            region.mark(worker, label, bytes as u64, flops as u64);

            let x = Inputs {
                rows,
                cols: width,
                forms: output.activation_forms(),
                fill: |row, _: &mut _, _: &mut _, quantize: &dyn Fn(&[f32])| {
                    quantize(hidden.read(row * 3 * width..row * 3 * width + width));
                },
            };
            region.add_to_residual(worker, &x, output, None, None);
            region.mark(worker, output_label, output.bytes() as u64, rows as u64 * per_row(output));
        }
    }

    /// A step over the channels of every slice.
    ///
    /// # Safety
    /// As [`ShortConvBlock::run`].
    unsafe fn convolve(&self, worker: &Worker, region: &Region) {
        let Some(states) = &self.states else { panic!("a short convolution without states") };
        let (width, slices) = (self.spec.width, region.batch.slices());
        let parts = width.div_ceil(CHANNELS);
        let grain = (GRAB_VALUES * slices.len() / (CHANNELS * region.row_count())).max(1);
        worker.step(slices.len() * parts, grain, |range| {
            for part in range {
                let (index, first) = (part / parts, part % parts * CHANNELS);
                let (slice, row, group) = (&slices[index], region.rows.first[index], states.layout().group);
                let after: Vec<_> =
                    slice.states_after(group).map(|(rows, page)| (rows, states.page(page))).collect();
                let work = Convolution {
                    width,
                    taps: &self.taps,
                    rows: region.buffers.hidden,
                    range: row..row + slice.tokens.len(),
                    channels: first..width.min(first + CHANNELS),
                    before: slice.state_before(group).map(|page| states.page(page)),
                    after: &after,
                };
                // SAFETY: each part of the channels of a slice is given to one thread, and slices share no page that one of them writes.
                unsafe { convolve(region.level, &work) };
            }
        });
    }
}
