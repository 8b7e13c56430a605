//! Weights expanded to f32, kept once per tensor.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use super::linear::linear;
use super::rounding::ActivationRounding;
use unicorn_core::{DeviceError, TensorType, Weight, WeightSource, WeightSpan, quant};

/// An expanded tensor, row-major.
#[derive(Clone)]
pub(super) struct Matrix {
    values: Arc<Vec<f32>>,
    /// How products round their inputs.
    rounding: Option<ActivationRounding>,
}

impl Matrix {
    /// [`linear`] with these weights, its input rounded first if the device does so.
    pub fn multiply(&self, cols: usize, bias: Option<&[f32]>, x: &[f64]) -> Vec<f64> {
        let Some(rounding) = self.rounding else { return linear(&self.values, cols, bias, x) };
        let mut x = x.to_vec();
        x.chunks_exact_mut(cols).for_each(|row| rounding.round(row));
        linear(&self.values, cols, bias, &x)
    }
}

impl Deref for Matrix {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

/// What makes two weights the same memory.
type Key = (WeightSpan, TensorType);

/// All tensors in use; those of unloaded blocks go with their last user.
#[derive(Default)]
pub(super) struct Weights {
    tensors: HashMap<Key, Weak<Vec<f32>>>,
    /// How products with quantized weights round their inputs.
    pub rounding: Option<ActivationRounding>,
    /// Bytes read since the device was opened.
    pub bytes_read: u64,
}

impl Weights {
    /// Reads and expands a tensor unless it is already there.
    pub fn load(&mut self, weight: &Weight, source: &dyn WeightSource) -> Result<Matrix, DeviceError> {
        let key = (weight.span, weight.ty);
        let rounding = self.rounding.filter(|_| weight.ty.is_quantized());
        if let Some(tensor) = self.tensors.get(&key).and_then(Weak::upgrade) {
            return Ok(Matrix { values: tensor, rounding });
        }
        let mut values = vec![0.0; weight.elements()];
        let mut row = vec![0; weight.row_bytes()];
        for (r, values) in values.chunks_exact_mut(weight.cols.max(1)).enumerate() {
            source
                .read(&weight.span, (r * row.len()) as u64, &mut row)
                .map_err(|source| DeviceError::Weight { tensor: weight.name.clone(), source })?;
            quant::dequantize(weight.ty, &row, values);
        }
        self.bytes_read += weight.span.bytes;
        let tensor = Arc::new(values);
        self.tensors.insert(key, Arc::downgrade(&tensor));
        Ok(Matrix { values: tensor, rounding })
    }

    /// Like [`Weights::load`] for a tensor that a block may lack.
    pub fn load_optional(
        &mut self,
        weight: &Option<Weight>,
        source: &dyn WeightSource,
    ) -> Result<Option<Matrix>, DeviceError> {
        weight.as_ref().map(|w| self.load(w, source)).transpose()
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().filter_map(Weak::upgrade).map(|t| t.len() as u64 * 4).sum()
    }

    /// Forgets tensors that no block uses.
    pub fn sweep(&mut self) {
        self.tensors.retain(|_, t| t.strong_count() > 0);
    }
}
