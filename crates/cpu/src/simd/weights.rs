//! Weights in memory, each span once, filled by all threads of the pool.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use unicorn_core::{DeviceError, TensorType, Weight, WeightSource, WeightSpan, quant};

use super::errors::{failed, invalid, out_of_memory};
use super::level::SimdLevel;
use super::linear::{PackError, PackedMatrix};
use super::pool::Pool;

/// Bytes of a matrix that a thread reads and packs at a time.
const LOAD_BYTES: usize = 256 << 10;

/// What makes two weights the same memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    span: WeightSpan,
    ty: TensorType,
    rows: usize,
    cols: usize,
    /// Bits of the number added to every element.
    offset: u32,
}

impl Key {
    fn new(weight: &Weight, offset: f32) -> Key {
        Key {
            span: weight.span,
            ty: weight.ty,
            rows: weight.rows,
            cols: weight.cols,
            offset: offset.to_bits(),
        }
    }
}

/// The sizes of weights that are not loaded yet, each counted once.
#[derive(Default)]
pub(crate) struct WeightSizes {
    matrices: HashMap<Key, usize>,
    vectors: HashMap<Key, usize>,
}

impl WeightSizes {
    /// Counts a matrix.
    ///
    /// Errors where it could never be packed.
    pub(crate) fn matrix(&mut self, weight: &Weight) -> Result<(), DeviceError> {
        if !weight.cols.is_multiple_of(weight.ty.block_len()) {
            let (ty, cols) = (weight.ty, weight.cols);
            return Err(pack_error(weight, PackError::Columns { ty, cols }));
        }
        let bytes = PackedMatrix::packed_bytes(weight.ty, weight.rows, weight.cols);
        let absurd = || out_of_memory(format!("tensor {}", weight.name), weight.span.bytes);
        self.matrices.insert(Key::new(weight, 0.0), bytes.ok_or_else(absurd)?);
        Ok(())
    }

    /// Counts a vector that is kept as floats, `offset` added to each.
    pub(crate) fn vector(&mut self, weight: &Weight, offset: f32) {
        self.vectors.insert(Key::new(weight, offset), weight.elements().saturating_mul(size_of::<f32>()));
    }

    /// Bytes of all.
    pub(crate) fn bytes(&self) -> u64 {
        let all = self.matrices.values().chain(self.vectors.values());
        all.fold(0, |sum: u64, bytes| sum.saturating_add(*bytes as u64))
    }
}

/// Bytes of a matrix between file and device, on each thread.
pub(crate) fn load_bytes(weight: &Weight) -> usize {
    PackedMatrix::read_bytes(weight)
}

/// All weights of the loaded blocks.
#[derive(Default)]
pub(crate) struct WeightStore {
    matrices: HashMap<Key, Arc<PackedMatrix>>,
    vectors: HashMap<Key, Arc<[f32]>>,
    /// Bytes read from sources so far.
    pub(crate) copied: u64,
}

impl WeightStore {
    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        let matrices: usize = self.matrices.values().map(|m| m.bytes()).sum();
        let vectors: usize = self.vectors.values().map(|v| size_of_val(&**v)).sum();
        (matrices + vectors) as u64
    }

    /// Frees what no block uses any more.
    pub(crate) fn sweep(&mut self) {
        self.matrices.retain(|_, m| Arc::strong_count(m) > 1);
        self.vectors.retain(|_, v| Arc::strong_count(v) > 1);
    }

    /// Makes every matrix present, reading the missing ones on all threads. Shapes have been checked against the spans.
    pub(crate) fn load_matrices(
        &mut self,
        weights: &[&Weight],
        source: &dyn WeightSource,
        level: SimdLevel,
        pool: &Pool,
    ) -> Result<Vec<Arc<PackedMatrix>>, DeviceError> {
        let mut missing: Vec<(&Weight, PackedMatrix)> = Vec::new();
        for weight in weights {
            let known = missing.iter().any(|(w, _)| Key::new(w, 0.0) == Key::new(weight, 0.0));
            if !known && !self.matrices.contains_key(&Key::new(weight, 0.0)) {
                let made = PackedMatrix::allocate(weight.ty, weight.rows, weight.cols, level);
                missing.push((weight, made.map_err(|e| pack_error(weight, e))?));
            }
        }
        fill(&missing, source, pool)?;
        for (weight, matrix) in missing {
            self.copied += weight.span.bytes;
            self.matrices.insert(Key::new(weight, 0.0), Arc::new(matrix));
        }
        let found = |w: &&Weight| self.matrices.get(&Key::new(w, 0.0)).cloned();
        let all: Option<Vec<_>> = weights.iter().map(found).collect();
        all.ok_or_else(|| failed("loading", "a weight is missing"))
    }

    /// A vector, or a table row by row, as floats; `offset` is added to each.
    pub(crate) fn load_vector(
        &mut self,
        weight: &Weight,
        offset: f32,
        source: &dyn WeightSource,
    ) -> Result<Arc<[f32]>, DeviceError> {
        let key = Key::new(weight, offset);
        if let Some(vector) = self.vectors.get(&key) {
            return Ok(Arc::clone(vector));
        }
        let mut values = self.floats(weight, source)?;
        values.iter_mut().for_each(|v| *v += offset);
        Ok(self.keep(key, values))
    }

    /// A matrix of few columns as floats, column by column. No weight is loaded both ways.
    pub(crate) fn load_columns(
        &mut self,
        weight: &Weight,
        source: &dyn WeightSource,
    ) -> Result<Arc<[f32]>, DeviceError> {
        let key = Key::new(weight, 0.0);
        if let Some(vector) = self.vectors.get(&key) {
            return Ok(Arc::clone(vector));
        }
        let values = self.floats(weight, source)?;
        let (rows, cols) = (weight.rows, weight.cols);
        Ok(self.keep(key, (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect()))
    }

    fn floats(&mut self, weight: &Weight, source: &dyn WeightSource) -> Result<Vec<f32>, DeviceError> {
        let mut bytes = vec![0; weight.row_bytes() * weight.rows];
        let unread = |source| DeviceError::Weight { tensor: weight.name.clone(), source };
        source.read(&weight.span, 0, &mut bytes).map_err(unread)?;
        let mut values = vec![0.0; weight.elements()];
        quant::dequantize(weight.ty, &bytes, &mut values);
        self.copied += bytes.len() as u64;
        Ok(values)
    }

    fn keep(&mut self, key: Key, values: Vec<f32>) -> Arc<[f32]> {
        let vector: Arc<[f32]> = values.into();
        self.vectors.insert(key, Arc::clone(&vector));
        vector
    }
}

/// Reads and packs matrices that nobody else knows yet.
fn fill(
    matrices: &[(&Weight, PackedMatrix)],
    source: &dyn WeightSource,
    pool: &Pool,
) -> Result<(), DeviceError> {
    if matrices.is_empty() {
        return Ok(());
    }
    let mut parts = Vec::new();
    for (i, (weight, matrix)) in matrices.iter().enumerate() {
        let panels = matrix.panels();
        let per_part = (LOAD_BYTES * panels / (weight.span.bytes as usize).max(1)).clamp(1, panels.max(1));
        parts.extend((0..panels).step_by(per_part).map(|p| (i, p..panels.min(p + per_part))));
    }
    let error: Mutex<Option<DeviceError>> = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let done = pool.run(&|worker| {
        worker.step(parts.len(), 1, |range| {
            for (i, panels) in &parts[range] {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let (weight, matrix) = &matrices[*i];
                // SAFETY: the parts are disjoint, and no other code knows the matrix.
                if let Err(e) = unsafe { matrix.fill_panels(weight, source, panels.clone()) } {
                    stop.store(true, Ordering::Relaxed);
                    let mut first = error.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert_with(|| pack_error(weight, e));
                }
            }
        });
    });
    if let Some(error) = error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    done.map_err(|e| failed("loading", e))
}

fn pack_error(weight: &Weight, error: PackError) -> DeviceError {
    match error {
        PackError::Read(source) => DeviceError::Weight { tensor: weight.name.clone(), source },
        PackError::OutOfMemory { .. } => out_of_memory(format!("tensor {}", weight.name), weight.span.bytes),
        other => invalid(format!("tensor {}: {other}", weight.name)),
    }
}
