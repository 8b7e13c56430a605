//! The blocks of encoders: products and attention as they are elsewhere, and a LayerNorm of the residual stream behind each.

use std::sync::Arc;

use unicorn_core::{EncoderAttentionSpec, EncoderEmbeddingSpec, EncoderFfnSpec};

use super::attention::Projection;
use super::builder::{Builder, NormRows, NormTo, flat_groups};
use super::embedding::EmbeddingBlock;
use super::linear::{Input, Output, Product, Quantize};
use crate::arguments::Arguments;
use crate::kernel::Kernel;
use crate::memory::Buffer;
use crate::select::{self, EncoderAttentionShape, EncoderFfnShape, Form};
use crate::weights::Matrix;

/// Threads that attend for a head of a row.
const ATTENTION_THREADS: usize = 64;

/// A LayerNorm with its weights.
pub(crate) struct LayerNorm {
    pub(crate) weight: Buffer,
    pub(crate) bias: Buffer,
    pub(crate) eps: f32,
}

impl LayerNorm {
    /// Norms the residual stream, to which the rows of a table at the tokens' positions are added before if there is one.
    fn record(&self, b: &mut Builder<'_>, table: Option<&Buffer>) {
        let (s, width) = (b.scratch, b.scratch.sizes.width);
        let threads = select::workgroup(width.next_multiple_of(32).clamp(64, 512), b.gpu);
        let kernel = Kernel {
            shader: "layer_norm".into(),
            constants: vec![threads, table.is_some() as u32],
            subgroup: select::subgroup(b.gpu),
        };
        let arguments = Arguments::new()
            .addresses([s.residual.address(), self.weight.address(), self.bias.address()])
            .addresses([table.map_or(0, Buffer::address), s.batch.address()])
            .u32(width)
            .f32(self.eps);
        let reads: [&Buffer; 2] = [&s.residual, &s.batch];
        b.dispatch("layer_norm", kernel, arguments, [b.rows, 1, 1], &reads, &[&s.residual]);
        b.prepared = false;
    }
}

/// Embedding of tokens and positions.
pub(crate) struct EncoderEmbeddingBlock {
    pub(crate) spec: EncoderEmbeddingSpec,
    pub(crate) tokens: EmbeddingBlock,
    /// f32 `[positions, width]`, with the embedding of the token type.
    pub(crate) positions: Buffer,
    pub(crate) norm: LayerNorm,
}

impl EncoderEmbeddingBlock {
    pub(crate) fn record(&self, b: &mut Builder<'_>) {
        self.tokens.record(b, None);
        self.norm.record(b, Some(&self.positions));
    }
}

/// Attention over whole sequences.
pub(crate) struct EncoderAttentionBlock {
    pub(crate) spec: EncoderAttentionSpec,
    /// Queries, keys and values, in this order.
    pub(crate) inputs: Vec<Projection>,
    pub(crate) o: Arc<Matrix>,
    /// q, k and v biases, one after the other.
    pub(crate) bias: Buffer,
    pub(crate) o_bias: Buffer,
    pub(crate) norm: LayerNorm,
}

impl EncoderAttentionBlock {
    pub(crate) fn shape(&self) -> EncoderAttentionShape {
        EncoderAttentionShape {
            inputs: self.inputs.iter().map(|p| (p.op, p.matrix.shape())).collect(),
            output: self.o.shape(),
        }
    }

    pub(crate) fn record(&self, b: &mut Builder<'_>) {
        let (s, rows) = (b.scratch, b.rows);
        let inner = self.spec.heads * self.spec.head_dim;
        let matrices: Vec<&Matrix> = self.inputs.iter().map(|p| &*p.matrix).collect();
        let input = b.plain_input(&matrices);
        let mut column = 0;
        for Projection { op, matrix } in &self.inputs {
            let out = Output {
                y: Some(&s.qkv),
                column,
                stride: 3 * inner,
                accumulate: false,
                quantize: Quantize::No,
            };
            b.product(Product { op, matrix, gated: None }, input.of(b.form(matrix)), out, rows);
            column += matrix.rows;
        }
        b.add_bias(&s.qkv, &self.bias, 3 * inner);
        let input = self.attend(b);
        b.add_to_residual("attention_output", &self.o, Some(&self.o_bias), input, None, None);
        self.norm.record(b, None);
    }

    /// From q, k and v to the input of the output product.
    fn attend<'a>(&self, b: &mut Builder<'a>) -> Input<'a> {
        let (s, rows) = (b.scratch, b.rows);
        let (heads, dim) = (self.spec.heads, self.spec.head_dim);
        let form = b.form(&self.o);
        let half = form == Form::Half;
        let y = if half { &s.half_wide } else { &s.wide };
        let kernel = Kernel {
            shader: "encoder_attention".into(),
            constants: vec![
                select::workgroup(ATTENTION_THREADS, b.gpu),
                heads as u32,
                dim as u32,
                half as u32,
            ],
            subgroup: select::subgroup(b.gpu),
        };
        let arguments = Arguments::new()
            .addresses([s.qkv.address(), s.batch.address(), y.address()])
            .f32(self.spec.scale);
        let pairs: usize = b.spans.iter().map(|(_, rows)| rows * rows).sum();
        let d = b.dispatch("attention", kernel, arguments, [heads, rows, 1], &[&s.qkv, &s.batch], &[y]);
        d.flops = (4 * pairs * heads * dim) as u64;
        match form {
            Form::Half => Input::Half(&s.half_wide),
            Form::Float => Input::Float(&s.wide),
            Form::Quantized => {
                b.norm("quantize", &s.wide, None, heads * dim, NormTo::Inner, NormRows::All);
                Input::Inner
            }
        }
    }
}

/// Feed-forward network without a gate.
pub(crate) struct EncoderFfnBlock {
    pub(crate) spec: EncoderFfnSpec,
    pub(crate) up: Arc<Matrix>,
    pub(crate) down: Arc<Matrix>,
    pub(crate) up_bias: Buffer,
    pub(crate) down_bias: Buffer,
    pub(crate) norm: LayerNorm,
}

impl EncoderFfnBlock {
    pub(crate) fn shape(&self) -> EncoderFfnShape {
        EncoderFfnShape { up: self.up.shape(), down: self.down.shape() }
    }

    pub(crate) fn record(&self, b: &mut Builder<'_>) {
        let (s, rows, hidden) = (b.scratch, b.rows, self.spec.hidden);
        let input = b.plain_input(&[&self.up]);
        let out =
            Output { y: Some(&s.wide), column: 0, stride: hidden, accumulate: false, quantize: Quantize::No };
        let product = Product { op: "ffn_up", matrix: &self.up, gated: None };
        b.product(product, input.of(b.form(&self.up)), out, rows);
        let form = b.form(&self.down);
        let half = form == Form::Half;
        let kernel = Kernel { shader: "gelu".into(), constants: vec![256, half as u32], subgroup: 0 };
        let count = rows * hidden;
        let arguments = Arguments::new()
            .addresses([s.wide.address(), self.up_bias.address(), s.half_wide.address()])
            .u32(count)
            .u32(hidden);
        let y = if half { &s.half_wide } else { &s.wide };
        b.dispatch("gelu", kernel, arguments, flat_groups(count, 256), &[&s.wide], &[y]);
        let input = match form {
            Form::Half => Input::Half(&s.half_wide),
            Form::Float => Input::Float(&s.wide),
            Form::Quantized => {
                b.norm("quantize", &s.wide, None, hidden, NormTo::Inner, NormRows::All);
                Input::Inner
            }
        };
        b.add_to_residual("ffn_down", &self.down, Some(&self.down_bias), input, None, None);
        self.norm.record(b, None);
    }
}

/// The end of an encoder: the rows that were asked for as they are.
pub(crate) struct EncoderHeadBlock {
    pub(crate) width: usize,
}

impl EncoderHeadBlock {
    pub(crate) fn record(&self, b: &mut Builder<'_>) {
        b.hidden_states(None, self.width);
    }
}
