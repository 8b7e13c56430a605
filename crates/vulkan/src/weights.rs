//! Weights in device memory: read from the source once, split into planes on the way, kept once per span.

use std::sync::Arc;

use unicorn_core::{DeviceError, NormSpec, TensorType, Weight, WeightSource, quant};

use crate::context::Context;
use crate::layout::{self, Planes};
use crate::memory::{Buffer, Place};
use crate::select::TILE_PADDING;
use crate::transfer::Uploader;

/// A matrix in device memory.
pub(crate) struct Matrix {
    pub(crate) ty: TensorType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    buffer: Buffer,
    high: u64,
    scale: u64,
}

/// Planes start at multiples of this, so that 16-byte loads are aligned.
const ALIGN: u64 = 256;

/// Bytes behind the last row, so that tiled products may load whole tiles of rows.
fn padding(rows: usize, row_bytes: u64) -> u64 {
    (rows.next_multiple_of(TILE_PADDING) - rows) as u64 * row_bytes
}

impl Matrix {
    /// Loads a matrix. Quantized types are split into planes; float types are copied as they are.
    pub(crate) fn load(
        context: &Arc<Context>,
        uploader: &Uploader,
        weight: &Weight,
        source: &dyn WeightSource,
    ) -> Result<Matrix, DeviceError> {
        let device = &context.profile().name;
        let fail = |e: crate::VulkanError| e.into_device_error(device);
        let name = |source| DeviceError::Weight { tensor: weight.name.clone(), source };
        let (ty, rows, cols) = (weight.ty, weight.rows, weight.cols);
        let Some(p) = layout::planes(ty) else {
            let bytes = weight.span.bytes + padding(rows, (cols * ty.block_bytes()) as u64);
            let buffer = Buffer::new(context, Place::Device, bytes, &weight.name).map_err(fail)?;
            uploader.fill(&buffer, 0, weight.span.bytes, |at, out| {
                source.read(&weight.span, at, out).map_err(name)
            })?;
            return Ok(Matrix { ty, rows, cols, buffer, high: 0, scale: 0 });
        };
        let groups = (rows * cols / 32) as u64;
        let up = |v: u64| v.next_multiple_of(ALIGN);
        let high = up(groups * p.low as u64);
        let scale = high + up(groups * p.high as u64);
        let row_groups = (cols / 32) as u64;
        let widest = row_groups * (p.low.max(p.high).max(p.scale.div_ceil(p.groups))) as u64;
        let bytes = scale + up(groups / p.groups as u64 * p.scale as u64) + padding(rows, widest);
        let buffer = Buffer::new(context, Place::Device, bytes, &weight.name).map_err(fail)?;
        let matrix = Matrix { ty, rows, cols, buffer, high, scale };
        if context.compile_only() {
            return Ok(matrix);
        }
        matrix.fill_planes(p, uploader, weight, source)?;
        Ok(matrix)
    }

    /// Reads blocks in pieces, splits them, and uploads each plane's piece.
    fn fill_planes(
        &self,
        p: Planes,
        uploader: &Uploader,
        weight: &Weight,
        source: &dyn WeightSource,
    ) -> Result<(), DeviceError> {
        const PIECE: usize = 8192;
        let block = self.ty.block_bytes();
        let total = self.rows * self.cols / self.ty.block_len();
        let mut bytes = vec![0u8; PIECE * block];
        let mut low = vec![0u8; PIECE * p.groups * p.low];
        let mut high = vec![0u8; PIECE * p.groups * p.high];
        let mut scale = vec![0u8; PIECE * p.scale];
        for first in (0..total).step_by(PIECE) {
            let count = PIECE.min(total - first);
            let piece = &mut bytes[..count * block];
            source
                .read(&weight.span, (first * block) as u64, piece)
                .map_err(|source| DeviceError::Weight { tensor: weight.name.clone(), source })?;
            for (i, b) in piece.chunks_exact(block).enumerate() {
                let g = i * p.groups;
                layout::split_block(
                    self.ty,
                    b,
                    &mut low[g * p.low..][..p.groups * p.low],
                    &mut high[g * p.high..][..p.groups * p.high],
                    &mut scale[i * p.scale..][..p.scale],
                );
            }
            let g = (first * p.groups) as u64;
            uploader.write(&self.buffer, g * p.low as u64, &low[..count * p.groups * p.low])?;
            uploader.write(
                &self.buffer,
                self.high + g * p.high as u64,
                &high[..count * p.groups * p.high],
            )?;
            uploader.write(&self.buffer, self.scale + (first * p.scale) as u64, &scale[..count * p.scale])?;
        }
        Ok(())
    }

    /// Addresses of the three planes.
    pub(crate) fn planes(&self) -> [u64; 3] {
        let base = self.buffer.address();
        [base, base + self.high, base + self.scale]
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> u64 {
        self.buffer.bytes()
    }

    /// True for float types, whose products take f32 activations.
    pub(crate) fn is_float(&self) -> bool {
        !self.ty.is_quantized()
    }
}

/// Reads a small tensor as f32.
pub(crate) fn read_vector(weight: &Weight, source: &dyn WeightSource) -> Result<Vec<f32>, DeviceError> {
    let mut bytes = vec![0u8; weight.span.bytes as usize];
    source
        .read(&weight.span, 0, &mut bytes)
        .map_err(|source| DeviceError::Weight { tensor: weight.name.clone(), source })?;
    let mut out = vec![0f32; weight.elements()];
    quant::dequantize(weight.ty, &bytes, &mut out);
    Ok(out)
}

/// Uploads f32 values.
pub(crate) fn upload_f32(
    context: &Arc<Context>,
    uploader: &Uploader,
    values: &[f32],
    what: &str,
) -> Result<Buffer, DeviceError> {
    let bytes = 4 * values.len() as u64;
    let buffer = Buffer::new(context, Place::Device, bytes, what)
        .map_err(|e| e.into_device_error(&context.profile().name))?;
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    uploader.write(&buffer, 0, &raw)?;
    Ok(buffer)
}

/// A norm's weight, with the spec's offset already added.
pub(crate) fn upload_norm(
    context: &Arc<Context>,
    uploader: &Uploader,
    spec: &NormSpec,
    weight: &Weight,
    source: &dyn WeightSource,
) -> Result<Buffer, DeviceError> {
    let mut values = read_vector(weight, source)?;
    values.iter_mut().for_each(|v| *v += spec.weight_offset);
    upload_f32(context, uploader, &values, &weight.name)
}
