//! How long a device takes for a piece of work that it has for itself.

use unicorn_core::{BatchShape, Block, BlockKind, Crossing, KvType};

use super::machine::DeviceModel;

/// A piece of work on a device.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(crate) struct Piece {
    /// Seconds that the device works on it where nothing else uses its memory.
    pub seconds: f64,
    /// Bytes that it reads of its memory meanwhile.
    pub bytes: f64,
    /// Seconds in which the residual stream comes in before that, beside other work.
    pub import: f64,
    /// Seconds in which it goes out after that, beside other work.
    pub export: f64,
}

/// What running these blocks over a batch of this shape takes. `width` is that of the residual stream.
pub(crate) fn piece(
    device: &DeviceModel,
    blocks: &[Block],
    shape: &BatchShape,
    kv: KvType,
    crossing: Crossing,
    width: usize,
) -> Piece {
    let mut piece = Piece::default();
    let mut before: Option<(&Block, Piece)> = None;
    for block in blocks {
        // Layers are mostly alike, and what they cost is the same then.
        let alike = before.filter(|(other, _)| is_like(block, other)).map(|(_, piece)| piece);
        let this = alike.unwrap_or_else(|| block_alone(device, block, shape, kv));
        piece.seconds += this.seconds;
        piece.bytes += this.bytes;
        before = Some((block, this));
    }
    let bytes = (shape.rows() * width * size_of::<f32>()) as f64;
    let hop = device.crossing_seconds.value + bytes / device.crossing_bytes_per_second.value;
    let [import, export] = [crossing.import, crossing.export].map(|crosses| if crosses { hop } else { 0.0 });
    if device.crosses_beside {
        Piece { import, export, ..piece }
    } else {
        Piece { seconds: piece.seconds + import + export, ..piece }
    }
}

/// True for blocks of one kind with the same shapes and types: they cost the same.
fn is_like(a: &Block, b: &Block) -> bool {
    let same = |(a, b): (&unicorn_core::Weight, &unicorn_core::Weight)| {
        (a.ty, a.rows, a.cols) == (b.ty, b.rows, b.cols)
    };
    let (wa, wb) = (a.weights(), b.weights());
    a.kind() == b.kind() && a.state() == b.state() && wa.len() == wb.len() && wa.into_iter().zip(wb).all(same)
}

/// Rows of the model's width that a short convolution reads and writes for each of its own: both gates, the values, and the result.
const CONV_TOUCHES: usize = 4;

fn block_alone(device: &DeviceModel, block: &Block, shape: &BatchShape, kv: KvType) -> Piece {
    let cost = block.cost(shape, kv);
    let read = device.read_bytes_per_second.value;
    let rows = match block.kind() {
        BlockKind::Head => shape.outputs,
        _ => shape.rows(),
    };
    if rows == 0 {
        return Piece::default();
    }
    let products = cost.matrix_flops.iter().map(|(ty, flops)| {
        let elements = *flops as f64 / (2 * rows) as f64;
        elements * device.product(*ty, rows)
    });
    let tokens = shape.rows().div_ceil(shape.spans.len().max(1));
    let state = match block {
        // Each row is read and written a few times, and little is done with it.
        Block::ShortConv { spec, .. } => {
            (CONV_TOUCHES * rows * spec.width * size_of::<f32>()) as f64 / read + cost.kv_bytes as f64 / read
        }
        _ => (cost.attention_flops as f64 * device.attention.at(tokens)).max(cost.kv_bytes as f64 / read),
    };
    let beside = match block.kind() {
        BlockKind::Embedding => cost.weight_bytes as f64 / read,
        BlockKind::Mixer => device.mixer.at(rows),
        BlockKind::Ffn => device.ffn.at(rows),
        BlockKind::Head => device.head.at(rows) + logits(device, block, rows),
    };
    let seconds = products.sum::<f64>() + state + beside;
    Piece { seconds, bytes: cost.bytes() as f64, ..Piece::default() }
}

/// Seconds of the logits of so many rows, beside the product.
fn logits(device: &DeviceModel, block: &Block, rows: usize) -> f64 {
    match block {
        Block::Head { weight, .. } => (weight.rows * rows) as f64 * device.logit(weight.ty),
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::machine::{Curve, Origin};
    use crate::planner::testing::device;
    use crate::testing::{recurrent_spec, tiny_spec};

    #[test]
    fn a_step_by_hand() {
        let spec = tiny_spec(2);
        let mut device = device("a", 0);
        let curve = |points: &[(usize, f64)]| Curve::new(points, Origin::Measured).unwrap();
        device.products[0].1 = curve(&[(1, 1e-3), (11, 2e-3)]);
        device.attention = curve(&[(1, 1e-5)]);
        (device.mixer, device.ffn, device.head) =
            (curve(&[(1, 1.0)]), curve(&[(1, 2.0)]), curve(&[(1, 3.0)]));
        (device.crossing_seconds.value, device.crossing_bytes_per_second.value) = (10.0, 16.0);
        device.read_bytes_per_second.value = 1e9;
        let time = |blocks: std::ops::Range<usize>, shape: &BatchShape, crossing| {
            piece(&device, &spec.blocks[blocks], shape, KvType::F16, crossing, 4).seconds
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        // 4 matrices of 4 x 4; 6 rows are in the middle between 1 and 11; of 6 tokens 21 pairs are seen, 16 operations each.
        let six = BatchShape::one(0, 6, 1);
        let none = Crossing::default();
        near(time(1..2, &six, none), 64.0 * 1.5e-3 + 21.0 * 16.0 * 1e-5 + 1.0);
        near(time(2..3, &six, none), 96.0 * 1.5e-3 + 2.0);
        // The head computes one row.
        near(time(5..6, &six, none), 256.0 * 1e-3 + 3.0);
        near(time(5..6, &BatchShape::one(0, 6, 0), none), 0.0);
        let mut slow = device.clone();
        slow.logits = vec![(unicorn_core::TensorType::F32, crate::planner::testing::figure(0.5))];
        let head = piece(&slow, &spec.blocks[5..6], &six, KvType::F16, none, 4).seconds;
        near(head, 256.0 * 1e-3 + 3.0 + 64.0 * 0.5);
        // In and out: 6 rows of 16 bytes.
        let both = Crossing { import: true, export: true };
        near(time(2..3, &six, both) - time(2..3, &six, none), 2.0 * (10.0 + 6.0));
        let beside = DeviceModel { crosses_beside: true, ..device.clone() };
        let beside = piece(&beside, &spec.blocks[2..3], &six, KvType::F16, both, 4);
        near(beside.seconds, time(2..3, &six, none));
        assert_eq!((beside.import, beside.export), (16.0, 16.0));
        near(time(1..5, &six, none), 2.0 * (time(1..2, &six, none) + time(2..3, &six, none)));
        // One token each of two sequences: two rows for the products, one token for attention.
        let two = BatchShape { spans: vec![unicorn_core::Span::new(9, 1); 2], outputs: 2 };
        near(time(1..2, &two, none), 64.0 * 1.1e-3 + 320.0 * 1e-5 + 1.0);
    }

    #[test]
    fn a_short_convolution_is_no_attention() {
        let spec = recurrent_spec(2);
        let mut device = device("a", 0);
        device.read_bytes_per_second.value = 1e3;
        let time = |device: &DeviceModel, block: usize| {
            let six = BatchShape::one(9, 6, 1);
            let blocks = &spec.blocks[block..block + 1];
            piece(device, blocks, &six, KvType::F16, Crossing::default(), 4).seconds
        };
        let mut slow = device.clone();
        slow.attention = Curve::constant(1.0, Origin::Measured).unwrap();
        assert!(time(&slow, 1) > time(&device, 1) + 1.0);
        assert_eq!(time(&slow, 3), time(&device, 3));
        // Four times 6 rows of 4 floats, and a state of 8 floats.
        let without =
            DeviceModel { read_bytes_per_second: crate::planner::testing::figure(1e30), ..device.clone() };
        assert!((time(&device, 3) - time(&without, 3) - (4.0 * 6.0 * 16.0 + 32.0) / 1e3).abs() < 1e-9);
    }
}
