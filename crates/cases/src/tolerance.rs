//! How far a device may be from the float64 reference, and why.

use unicorn_core::{Block, DeviceKind, KvType, TensorType};

/// Largest allowed errors, both relative to the root mean square of the reference.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Tolerance {
    /// Root mean square of the error.
    pub nrmse: f64,
    /// Largest single error.
    pub max_error: f64,
}

impl Tolerance {
    /// Errors of many roundings are close to normal: one in a hundred million lies past six deviations.
    fn normal(nrmse: f64) -> Tolerance {
        Tolerance { nrmse, max_error: 6.0 * nrmse }
    }

    /// Against an oracle that rounds activations as the kernels do.
    ///
    /// What is left are sums in f32, and activations so close to a tie that such a sum decides: about one in 10^5 falls the other way, one
    /// step of 127. In a product that shifts the results of its row by some 0.1 %; in a block later products round what follows from it.
    pub fn rounded(products: usize) -> Tolerance {
        let nrmse = if products == 1 { 3e-4 } else { 4e-3 };
        Tolerance { nrmse, max_error: 20.0 * nrmse }
    }

    /// A block, as a device of this kind runs it over so many rows.
    pub(crate) fn of(block: &Block, kv: KvType, kind: DeviceKind, rows: usize) -> Tolerance {
        Tolerance::of_block(block, kv).on(kind, block, rows)
    }

    /// A block with a KV cache of this type, with activations in full or in 8 bits.
    pub(crate) fn of_block(block: &Block, kv: KvType) -> Tolerance {
        match block {
            Block::Embedding { .. } => Tolerance::embedding(),
            Block::Head { weight, .. } => Tolerance::linear(weight.ty),
            Block::Ffn { weights, .. } => Tolerance::ffn(&[weights.gate.ty, weights.up.ty, weights.down.ty]),
            Block::ShortConv { weights, .. } => Tolerance::short_conv(weights.input.ty),
            Block::EncoderEmbedding { .. } => Tolerance::encoder_embedding(),
            Block::EncoderAttention { weights, .. } => Tolerance::encoder(weights.q.ty),
            Block::EncoderFfn { weights, .. } => Tolerance::encoder(weights.up.ty),
            // What is pooled is not judged by its tolerance alone.
            Block::EncoderHead { .. } => Tolerance::embedding(),
            Block::Attention { weights, .. } => {
                let types = [&weights.q, &weights.k, &weights.v, &weights.o].map(|w| w.ty);
                let worst = types.into_iter().find(|ty| ty.is_quantized()).unwrap_or(types[0]);
                Tolerance::attention(worst, kv)
            }
        }
    }

    /// The same on a device of this kind: GPUs keep activations of more rows than these as f16.
    pub(crate) fn on(self, kind: DeviceKind, block: &Block, rows: usize) -> Tolerance {
        const FEW: usize = 2;
        let half = kind == DeviceKind::Vulkan
            && rows > FEW
            && !matches!(block, Block::Embedding { .. } | Block::EncoderEmbedding { .. });
        if half { self.half_activations(matches!(block, Block::Attention { .. })) } else { self }
    }

    /// So many times as much.
    pub(crate) fn times(self, factor: f64) -> Tolerance {
        Tolerance { nrmse: self.nrmse * factor, max_error: self.max_error * factor }
    }

    /// Table lookup: the only rounding is the product with the scale.
    pub fn embedding() -> Tolerance {
        Tolerance::normal(1e-6)
    }

    /// Table lookup with a norm behind it: sums of a row in f32.
    pub fn encoder_embedding() -> Tolerance {
        Tolerance::normal(2e-6)
    }

    /// A block of an encoder, whose norm has the residual stream in it: what the block adds is a third of that.
    ///
    /// Quantized weights: two products in a row, each off by 0.65 %, or by 1.5 % where a row has few blocks.
    pub fn encoder(ty: TensorType) -> Tolerance {
        Tolerance::normal(if ty.is_quantized() { 0.01 } else { 1e-5 })
    }

    /// One matrix product.
    ///
    /// Float weights: f32 products and sums over 1536 elements give about 1e-6. Quantized weights: kernels round
    /// activations to 8 bits, in steps of `max / 127`. For normal values `max` is 2.1 deviations in blocks of 32 and 2.8 in
    /// blocks of 256, so the error is `2.1 / 127 / sqrt(12)` = 0.5 % or 0.65 % of the output. A single row of 256 inputs has one step alone:
    /// its largest value lies past 6.6 deviations, for 1.5 %, once in ten million rows.
    pub fn linear(ty: TensorType) -> Tolerance {
        Tolerance::normal(if ty.is_quantized() { 0.015 } else { 1e-5 })
    }

    /// For devices that keep activations of many tokens as f16.
    ///
    /// Rounding one factor of every product to 11 bits, and the weights too where they have more, leaves `2 * 2^-12 / sqrt(3)` = 0.03 % of
    /// the output; a block has two or three such products in a row, and attention an exponential between them. The single errors of
    /// attention (`long_tail`) are not normal over a long sequence: its first rows average few positions and are several times the root
    /// mean square of all, and so are their errors.
    fn half_activations(self, long_tail: bool) -> Tolerance {
        let half = Tolerance::normal(1.5e-3);
        let most = if long_tail { 20.0 * half.nrmse } else { half.max_error };
        Tolerance { nrmse: self.nrmse.max(half.nrmse), max_error: self.max_error.max(most) }
    }

    /// A feed-forward block.
    ///
    /// Quantized weights: gate and up each carry the error of one product, and their product, which `down` reads, has long
    /// tails: its largest of 32 is about 4 deviations (1 % error), of 256 about 8 (2 %).
    pub fn ffn(types: &[TensorType]) -> Tolerance {
        let nrmse = types.iter().map(|ty| match ty.block_len() {
            1 => 1e-5,
            32 => 0.02,
            _ => 0.03,
        });
        Tolerance::normal(nrmse.fold(0.0, f64::max))
    }

    /// A short convolution.
    ///
    /// Float weights: what random weights make of three factors is a thousandth of the residual stream, to whose f32 it is rounded: 6e-8 of
    /// values up to 4. Quantized weights: the gates carry the error of one product each, and what they gate is multiplied by both and goes
    /// through another.
    pub fn short_conv(ty: TensorType) -> Tolerance {
        if ty.is_quantized() { Tolerance::ffn(&[ty]) } else { Tolerance::normal(1e-4) }
    }

    /// An attention block.
    ///
    /// Float weights: the angle of position 1000 in f32 is off by up to 3e-5; a half-float cache adds roundings that fall
    /// the other way and lets kernels keep queries as half floats; with a Q8_0 cache kernels may round queries to 8 bits.
    /// Quantized weights: four products of 0.65 % each, two of which meet inside the exponential.
    pub fn attention(ty: TensorType, kv: KvType) -> Tolerance {
        let weights = if ty.is_quantized() { 0.03 } else { 1e-4 };
        let cache = match kv {
            KvType::F32 => 0.0,
            KvType::F16 => 1e-3,
            KvType::Q8_0 => 0.02,
        };
        Tolerance::normal(f64::max(weights, cache))
    }
}
