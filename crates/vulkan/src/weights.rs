//! Weights in device memory: read from the source once, split into planes on the way, kept once per span.

use std::sync::Arc;

use unicorn_core::{DeviceError, NormSpec, TensorType, Weight, WeightSource, quant};

use crate::context::Context;
use crate::layout::{self, Planes};
use crate::memory::Buffer;
use crate::place::Place;
use crate::select::{TILE_PADDING, WeightShape};
use crate::transfer::{ByteRange, PIECE_BYTES, Uploader};

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

/// Bytes of a row in the plane where rows are longest.
fn widest_row(p: Planes, cols: usize) -> u64 {
    (cols / 32 * p.low.max(p.high).max(p.scale.div_ceil(p.groups))) as u64
}

/// Where planes of a matrix start and how long it is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Offsets {
    high: u64,
    scale: u64,
    bytes: u64,
}

impl Offsets {
    /// Of `groups` groups of 32 columns.
    fn new(p: Planes, groups: u64) -> Offsets {
        let up = |v: u64| v.next_multiple_of(ALIGN);
        let high = up(groups * p.low as u64);
        let scale = high + up(groups * p.high as u64);
        Offsets { high, scale, bytes: scale + up(groups / p.groups as u64 * p.scale as u64) }
    }

    /// The ranges that blocks `first .. first + count` fill in the planes of low bits, high bits and scales.
    fn parts(&self, p: Planes, first: u64, count: u64) -> [ByteRange; 3] {
        let part = |start: u64, bytes: usize| (start + first * bytes as u64, count * bytes as u64);
        [part(0, p.low * p.groups), part(self.high, p.high * p.groups), part(self.scale, p.scale)]
    }
}

/// Some blocks of one of the weights that make up a matrix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Blocks {
    /// Index of the weight.
    weight: usize,
    /// First block in the weight.
    first: u64,
    /// First block in the matrix.
    at: u64,
    count: u64,
}

/// Cuts weights of `blocks` blocks each, stacked in this order, into pieces of at most `most` blocks.
fn pieces(blocks: &[u64], most: u64) -> Vec<Blocks> {
    let mut out = Vec::new();
    let mut base = 0;
    for (weight, total) in blocks.iter().enumerate() {
        let starts = (0..*total).step_by(most as usize);
        out.extend(starts.map(|first| Blocks {
            weight,
            first,
            at: base + first,
            count: most.min(total - first),
        }));
        base += total;
    }
    out
}

/// Where the planes of a matrix of `blocks` blocks start, and how long it is with its padding.
fn packed(ty: TensorType, rows: usize, cols: usize, blocks: u64) -> (Offsets, u64) {
    let block_bytes = ty.block_bytes() as u64;
    let (offsets, row_bytes) = match layout::planes(ty) {
        Some(p) => (Offsets::new(p, blocks * p.groups as u64), widest_row(p, cols)),
        None => (Offsets { high: 0, scale: 0, bytes: blocks * block_bytes }, cols as u64 * block_bytes),
    };
    (offsets, offsets.bytes + padding(rows, row_bytes))
}

/// Bytes that weights of one type and width will hold as one matrix; 0 for none.
pub(crate) fn packed_bytes(weights: &[&Weight]) -> u64 {
    let Some(head) = weights.first() else { return 0 };
    let blocks = weights.iter().map(|w| (w.elements() / w.ty.block_len()) as u64).sum();
    packed(head.ty, weights.iter().map(|w| w.rows).sum(), head.cols, blocks).1
}

impl Matrix {
    /// Loads a matrix. Quantized types are split into planes; float types are copied as they are.
    pub(crate) fn load(
        context: &Arc<Context>,
        uploader: &Uploader,
        weight: &Weight,
        source: &dyn WeightSource,
    ) -> Result<Matrix, DeviceError> {
        Matrix::load_stacked(context, uploader, &[weight], source)
    }

    /// Loads several weights of one type and width as one matrix, the rows of each after those of the one before: row `r` of the second is row
    /// `first.rows + r`.
    ///
    /// Errors when there is none, when types or widths differ, when memory is short or a read fails.
    pub(crate) fn load_stacked(
        context: &Arc<Context>,
        uploader: &Uploader,
        weights: &[&Weight],
        source: &dyn WeightSource,
    ) -> Result<Matrix, DeviceError> {
        let device = &context.profile().name;
        let invalid = |what: String| DeviceError::Invalid { device: device.clone(), what };
        let head = weights.first().ok_or_else(|| invalid("a matrix of no weights".into()))?;
        let (ty, cols) = (head.ty, head.cols);
        let block_bytes = ty.block_bytes() as u64;
        for w in weights {
            if (w.ty, w.cols) != (ty, cols) {
                return Err(invalid(format!("{} has another type or width than {}", w.name, head.name)));
            }
            let blocks = (w.elements() / ty.block_len()) as u64;
            if !cols.is_multiple_of(ty.block_len()) || w.span.bytes != blocks * block_bytes {
                return Err(invalid(format!("{} has {} bytes, not {blocks} blocks", w.name, w.span.bytes)));
            }
        }
        let rows = weights.iter().map(|w| w.rows).sum::<usize>();
        let blocks: Vec<u64> = weights.iter().map(|w| w.span.bytes / block_bytes).collect();
        let planes = layout::planes(ty);
        let (offsets, bytes) = packed(ty, rows, cols, blocks.iter().sum());
        let buffer = Buffer::new(context, Place::Device, bytes, &head.name)
            .map_err(|e| e.into_device_error(device))?;
        let read = |p: &Blocks, out: &mut [u8]| {
            let w = weights[p.weight];
            let failed = |source| DeviceError::Weight { tensor: w.name.clone(), source };
            source.read(&w.span, p.first * block_bytes, out).map_err(failed)
        };
        match planes {
            Some(p) => fill_planes(p, ty, &offsets, uploader, &buffer, &blocks, read)?,
            None => {
                let list = pieces(&blocks, PIECE_BYTES / block_bytes);
                let parts: Vec<[ByteRange; 1]> =
                    list.iter().map(|b| [(b.at * block_bytes, b.count * block_bytes)]).collect();
                uploader.fill_pieces(&buffer, &parts, |i, _, [out]| read(&list[i], out))?;
            }
        }
        Ok(Matrix { ty, rows, cols, buffer, high: offsets.high, scale: offsets.scale })
    }

    /// Addresses of the three planes.
    pub(crate) fn planes(&self) -> [u64; 3] {
        let base = self.buffer.address();
        [base, base + self.high, base + self.scale]
    }

    /// The memory.
    #[cfg(test)]
    pub(crate) fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Type and shape.
    pub(crate) fn shape(&self) -> WeightShape {
        WeightShape { ty: self.ty, rows: self.rows, cols: self.cols }
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

/// Reads blocks in pieces and splits each straight to where its planes go.
fn fill_planes(
    p: Planes,
    ty: TensorType,
    offsets: &Offsets,
    uploader: &Uploader,
    buffer: &Buffer,
    blocks: &[u64],
    read: impl Fn(&Blocks, &mut [u8]) -> Result<(), DeviceError> + Sync,
) -> Result<(), DeviceError> {
    let block = ty.block_bytes();
    let split_bytes = (p.low + p.high) * p.groups + p.scale;
    // Whole multiples of 64 blocks keep every part of a copy aligned.
    let most = PIECE_BYTES / block.max(split_bytes) as u64 / 64 * 64;
    let list = pieces(blocks, most);
    let parts: Vec<[ByteRange; 3]> = list.iter().map(|b| offsets.parts(p, b.at, b.count)).collect();
    uploader.fill_pieces(buffer, &parts, |i, host, [low, high, scale]| {
        let bytes = list[i].count as usize * block;
        if host.len() < bytes {
            host.resize(bytes, 0);
        }
        let bytes = &mut host[..bytes];
        read(&list[i], bytes)?;
        let (l, h) = (p.low * p.groups, p.high * p.groups);
        for (i, b) in bytes.chunks_exact(block).enumerate() {
            layout::split_block(
                ty,
                b,
                &mut low[i * l..][..l],
                &mut high[i * h..][..h],
                &mut scale[i * p.scale..][..p.scale],
            );
        }
        Ok(())
    })
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

#[cfg(test)]
mod tests {
    use unicorn_core::{WeightError, WeightSpan};

    use super::*;

    #[test]
    fn stacked_planes_follow_each_other() {
        for ty in TensorType::ALL {
            let Some(p) = layout::planes(ty) else { continue };
            // Two weights of 100 and 37 blocks: the parts of all pieces tile each plane, in matrix order.
            let offsets = Offsets::new(p, 137 * p.groups as u64);
            let list = pieces(&[100, 37], 64);
            assert_eq!(
                list.iter().map(|b| (b.weight, b.first, b.at, b.count)).collect::<Vec<_>>(),
                [(0, 0, 0, 64), (0, 64, 64, 36), (1, 0, 100, 37)]
            );
            let ends =
                [137 * (p.low * p.groups) as u64, 137 * (p.high * p.groups) as u64, 137 * p.scale as u64];
            for (plane, start) in [0, offsets.high, offsets.scale].into_iter().enumerate() {
                let mut at = start;
                for b in &list {
                    let (offset, bytes) = offsets.parts(p, b.at, b.count)[plane];
                    assert_eq!(offset, at, "{ty} plane {plane}");
                    at += bytes;
                }
                assert_eq!(at, start + ends[plane], "{ty} plane {plane}");
            }
            assert!(ends[0] <= offsets.high && offsets.high + ends[1] <= offsets.scale, "{ty}");
            assert!(offsets.scale + ends[2] <= offsets.bytes, "{ty}");
            assert!([offsets.high, offsets.scale, offsets.bytes].iter().all(|o| o % ALIGN == 0), "{ty}");
        }
    }

    #[test]
    fn tiles_of_rows_stay_inside_stacked_weights() {
        struct Nothing;
        impl WeightSource for Nothing {
            fn read(&self, _: &WeightSpan, _: u64, _: &mut [u8]) -> Result<(), WeightError> {
                Ok(())
            }
        }
        let context = Arc::new(Context::null(crate::profiles::recorded("h100")));
        let uploader = Uploader::new(&context);
        for ty in TensorType::ALL {
            let (cols, rows) = (512, [130, 3]);
            let weights = rows.map(|rows| {
                let bytes = (rows * ty.row_bytes(cols).unwrap()) as u64;
                Weight { name: "w".into(), ty, rows, cols, span: WeightSpan { file: 0, offset: 0, bytes } }
            });
            let list: Vec<&Weight> = weights.iter().collect();
            let matrix = Matrix::load_stacked(&context, &uploader, &list, &Nothing).unwrap();
            let tiles = matrix.rows.next_multiple_of(TILE_PADDING);
            let row_bytes = match layout::planes(ty) {
                Some(p) => {
                    let blocks = cols / 32 / p.groups;
                    [p.low * p.groups * blocks, p.high * p.groups * blocks, p.scale * blocks]
                }
                None => [ty.row_bytes(cols).unwrap(), 0, 0],
            };
            let planes = matrix.planes();
            for (start, bytes) in planes.iter().zip(row_bytes) {
                assert!(start - planes[0] + (tiles * bytes) as u64 <= matrix.bytes(), "{ty}");
            }
        }
    }
}
