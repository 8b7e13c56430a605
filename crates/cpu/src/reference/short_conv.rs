//! The short convolution of LFM2, over states that lie in pages.

use unicorn_core::{Batch, ShortConvSpec, StateCopy, StateLayout, StateSpec, StateWay};

use super::{Matrix, rms_norm_rows};

/// Where the states of a group lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct StatesLayout {
    /// Index of the group: that of its pages in a slice.
    pub(crate) group: usize,
    /// States in the pool.
    pub(crate) pages: usize,
    /// Values of a state.
    pub(crate) floats: usize,
}

impl StatesLayout {
    /// The layout for mixers that keep this.
    ///
    /// Errors when nothing is reserved for them.
    pub(crate) fn of(layout: &StateLayout, spec: StateSpec, floats: usize) -> Result<StatesLayout, String> {
        let group = layout
            .group(spec)
            .ok_or_else(|| format!("a mixer that keeps {spec}, for which no pages are,"))?;
        Ok(StatesLayout { group, pages: layout.groups[group].pages, floats })
    }

    /// Bytes of all states; `None` where they cannot be counted.
    pub(crate) fn bytes(&self) -> Option<usize> {
        self.pages.checked_mul(self.floats)?.checked_mul(size_of::<f32>())
    }

    /// Copies pages of `values`, `[pages, floats]`, to the host or from it; returns the bytes.
    pub(crate) fn copy(&self, values: &mut [f32], copy: &StateCopy) -> Result<u64, String> {
        if let Some(page) = copy.pages.iter().find(|p| **p as usize >= self.pages) {
            return Err(format!("page {page} of {}", self.pages));
        }
        let (StateWay::Save(host) | StateWay::Restore(host)) = &copy.way;
        if host.rows() < copy.pages.len() || host.width() != self.floats {
            return Err(format!("{} pages of {} words in {host:?}", copy.pages.len(), self.floats));
        }
        for (row, page) in copy.pages.iter().enumerate() {
            let state = &mut values[*page as usize * self.floats..][..self.floats];
            if matches!(copy.way, StateWay::Restore(_)) {
                let mut bytes = vec![0; self.floats * 4];
                host.read_part(row, 0, &mut bytes);
                let value = |b: &[u8; 4]| f32::from_ne_bytes(*b);
                state.iter_mut().zip(bytes.as_chunks().0).for_each(|(v, b)| *v = value(b));
            } else {
                let bytes: Vec<u8> = state.iter().flat_map(|v| v.to_ne_bytes()).collect();
                host.write_part(row, 0, &bytes);
            }
        }
        Ok((copy.pages.len() * self.floats * 4) as u64)
    }
}

/// The states of one mixer, `[pages, floats]`.
pub(super) struct States {
    pub layout: StatesLayout,
    pub values: Vec<f32>,
}

impl States {
    pub fn new(layout: StatesLayout) -> States {
        States { layout, values: vec![0.0; layout.pages * layout.floats] }
    }
}

/// Tensors of a short convolution; shapes as in [`ShortConvWeights`](unicorn_core::ShortConvWeights).
pub(super) struct ShortConv {
    pub spec: ShortConvSpec,
    pub norm: Matrix,
    pub input: Matrix,
    pub conv: Matrix,
    pub output: Matrix,
}

impl ShortConv {
    /// What the block adds to `x[rows, width]`; leaves the states that the batch names.
    pub fn forward(&self, x: &[f64], batch: &Batch, states: &mut States) -> Vec<f64> {
        let ShortConvSpec { width, kernel, norm } = self.spec;
        let (group, floats) = (states.layout.group, states.layout.floats);
        let mut n = x.to_vec();
        rms_norm_rows(&norm, &self.norm, &mut n);
        let gates = self.input.multiply(width, None, &n);
        let mut rows = gates.chunks_exact(3 * width);
        let mut gated = Vec::with_capacity(x.len());
        for slice in batch.slices() {
            // u of the positions before the slice and in it, `[kernel - 1 + tokens, width]`.
            let mut u = vec![0.0; floats];
            if let Some(page) = slice.state_before(group) {
                let state = &states.values[page as usize * floats..][..floats];
                u.iter_mut().zip(state).for_each(|(u, s)| *u = *s as f64);
            }
            for (at, row) in rows.by_ref().take(slice.tokens.len()).enumerate() {
                u.extend((0..width).map(|c| row[c] * row[2 * width + c]));
                gated.extend((0..width).map(|c| {
                    let tap = |i: usize| self.conv[c * kernel + i] as f64 * u[(at + i) * width + c];
                    row[width + c] * (0..kernel).map(tap).sum::<f64>()
                }));
            }
            for (tokens, page) in slice.states_after(group) {
                let state = &mut states.values[page as usize * floats..][..floats];
                state.iter_mut().zip(&u[tokens * width..]).for_each(|(s, u)| *s = *u as f32);
            }
        }
        self.output.multiply(width, None, &gated)
    }
}
