//! All kernels of a block, from its shapes alone: what suits the number of rows, or the other way to the same result where a selftest found
//! that wrong. Every block is looked at alone, so what it is placed or batched with changes nothing.

use unicorn_core::{DeviceOptions, KvType, TensorType};

use super::attention::kv_suffix;
use super::block::{
    AttentionShape, BlockShape, EncoderAttentionShape, EncoderFfnShape, FfnShape, HeadShape, ShortConvShape,
    WeightShape,
};
use super::flash::{FlashProblem, flash_kernel};
use super::form::{Form, form};
use super::linear::{Fold, VECTOR_TOKENS, linear_vector};
use super::path::{Path, path};
use super::problem::Problem;
use super::product::{matrix_product, may_split};
use super::tier::{Tier, TiledOutput, tier};
use crate::profile::GpuProfile;

/// Rows of the batches that stand for all small and all large ones.
const FEW: usize = 1;
const MANY: usize = 512;

/// What the choice of kernels depends on beside the block.
#[derive(Clone, Copy)]
pub(crate) struct Router<'a> {
    /// The device, with the kernels to avoid.
    pub gpu: &'a GpuProfile,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// What the user asked for.
    pub options: &'a DeviceOptions,
}

/// One operation of a block and the shader that runs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Selected {
    /// Name of the operation, as in profiles.
    pub op: &'static str,
    /// Name of the SPIR-V module.
    pub shader: String,
    /// Type of what it reads: of its weights, of the KV cache, else F32.
    pub ty: TensorType,
    /// Small beside the block's other kernels: not worth a line where kernels are listed for people.
    minor: bool,
}

/// A kernel that a block needs and cannot have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Lacking {
    /// The operation.
    pub op: String,
    /// Type of what it reads.
    pub ty: TensorType,
}

/// How a batch goes through a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Way {
    path: Path,
    /// Attention in tiles of rows.
    flash: bool,
}

impl Router<'_> {
    /// The path of a batch's products, of `rows` rows: for a head, those that it is asked for.
    pub(crate) fn path(&self, block: &BlockShape, rows: usize) -> Path {
        if self.options.batch_invariant {
            return Path::Vector;
        }
        let suits = path(rows, block.is_float(), self.gpu);
        let trusted = |path| self.products(block, path).iter().all(|s| !self.gpu.avoids(&s.shader));
        if self.gpu.avoid.is_empty() || trusted(suits) || !trusted(suits.other()) {
            suits
        } else {
            suits.other()
        }
    }

    /// Whether attention of a batch runs in tiles of rows rather than row by row, where its products take `path`. `suits` is which of them
    /// is faster.
    pub(crate) fn flash(&self, block: &AttentionShape, path: Path, suits: bool) -> bool {
        if self.options.batch_invariant {
            return false;
        }
        let trusted = |flash| !self.gpu.avoids(&self.attention_shader(block, flash));
        // Tiles leave f16, which mat-vec kernels of float weights do not take.
        let suits = suits && (path == Path::Matrix || !block.output.is_float());
        if self.gpu.avoid.is_empty() || trusted(suits) || !trusted(!suits) { suits } else { !suits }
    }

    /// Whether gate and up run as one kernel on a path: where they are of one type, nobody asked for the parts, and that path's kernel
    /// can be trusted.
    pub(crate) fn fuses(&self, ffn: &FfnShape, path: Path) -> bool {
        let shader = || product_shader(&ffn.gate, Some(ffn.activation), self.gpu, path);
        self.options.fused_ffn && ffn.gate.ty == ffn.up.ty && !self.gpu.avoids(&shader())
    }

    /// Every kernel that any batch may record for a block, each once.
    pub(crate) fn kernels(&self, block: &BlockShape) -> Vec<Selected> {
        let mut all: Vec<Selected> = Vec::new();
        for selected in self.ways(block).into_iter().flat_map(|way| self.selected(block, way)) {
            if !all.iter().any(|s| (s.op, &s.shader) == (selected.op, &selected.shader)) {
                all.push(selected);
            }
        }
        all
    }

    /// The first kernel that a block may need and that is not there, by `exists`, or is to be avoided; its op then says so.
    pub(crate) fn lacking(&self, block: &BlockShape, exists: impl Fn(&str) -> bool) -> Option<Lacking> {
        let wrong = |s: &Selected| !exists(&s.shader) || self.gpu.avoids(&s.shader);
        let Selected { op, shader, ty, .. } = self.kernels(block).into_iter().find(wrong)?;
        let op = match exists(&shader) {
            true => format!("{op} but {shader}, which was found wrong with this driver,"),
            false => op.to_owned(),
        };
        Some(Lacking { op, ty })
    }

    /// The kernels of a block for few and for many rows, one line an operation: `op: shader`.
    pub(crate) fn describe(&self, block: &BlockShape) -> Vec<String> {
        let of = |rows: usize| {
            let mut all = self.selected(block, self.way(block, rows, rows == MANY));
            all.retain(|s| !s.minor);
            all
        };
        let (few, many) = (of(FEW), of(MANY));
        let other = |of: &[Selected], op: &str| of.iter().find(|s| s.op == op).map(|s| s.shader.clone());
        let mut lines: Vec<String> = few
            .iter()
            .map(|Selected { op, shader, .. }| match other(&many, op) {
                Some(same) if same == *shader => format!("{op}: {shader}"),
                Some(many) => format!("{op}: {shader}, {many} for many tokens"),
                None => format!("{op}: {shader} for few tokens"),
            })
            .collect();
        let alone = many.iter().filter(|s| other(&few, s.op).is_none());
        lines.extend(alone.map(|Selected { op, shader, .. }| format!("{op}: {shader} for many tokens")));
        lines
    }

    /// The way of batches of `rows` rows. `suits`: they are sequences long enough for attention in tiles.
    fn way(&self, block: &BlockShape, rows: usize, suits: bool) -> Way {
        let path = self.path(block, rows);
        let flash = match block {
            BlockShape::Attention(a) => self.flash(a, path, suits),
            _ => false,
        };
        Way { path, flash }
    }

    /// All ways that batches of any size take. Up to [`VECTOR_TOKENS`] rows attention goes row by row, where that can be trusted; beyond, it
    /// depends on how many each sequence has.
    fn ways(&self, block: &BlockShape) -> Vec<Way> {
        let batches = [(FEW, false), (VECTOR_TOKENS, false), (MANY, false), (MANY, true)];
        let mut ways = Vec::new();
        for way in batches.map(|(rows, suits)| self.way(block, rows, suits)) {
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        ways
    }

    /// The kernels of a block on one way, in the order in which they run.
    fn selected(&self, block: &BlockShape, way: Way) -> Vec<Selected> {
        match block {
            BlockShape::Embedding(table) => {
                let shader = format!("embedding_{}", table.ty.name().to_lowercase());
                vec![Selected { op: "embedding", shader, ty: table.ty, minor: false }]
            }
            BlockShape::Attention(a) => self.attention(a, way),
            BlockShape::ShortConv(c) => self.short_conv(c, way.path),
            BlockShape::Ffn(f) => self.ffn(f, way.path),
            BlockShape::Head(h) => self.head(h, way.path),
            BlockShape::EncoderEmbedding(table) => {
                let shader = format!("embedding_{}", table.ty.name().to_lowercase());
                let embedding = Selected { op: "embedding", shader, ty: table.ty, minor: false };
                vec![embedding, minor("layer_norm", "layer_norm")]
            }
            BlockShape::EncoderAttention(a) => self.encoder_attention(a, way.path),
            BlockShape::EncoderFfn(f) => self.encoder_ffn(f, way.path),
            BlockShape::EncoderHead => vec![minor("hidden", "norm")],
        }
    }

    fn attention(&self, a: &AttentionShape, Way { path, flash }: Way) -> Vec<Selected> {
        let mut all = vec![minor("norm", "norm")];
        for (op, weight) in &a.inputs {
            all.extend(self.product_and_sum(op, weight, path));
        }
        let cache = |op, shader| Selected { op, shader, ty: self.kv.tensor_type(), minor: false };
        all.push(cache("rope_kv", format!("rope_kv_{}", kv_suffix(self.kv))));
        all.push(cache("attention", self.attention_shader(a, flash)));
        let form = form(a.output.ty, path, self.gpu);
        if flash {
            all.push(minor("attention_merge", "flash_merge"));
            all.extend((form == Form::Quantized).then(|| minor("quantize", "quantize")));
        } else if form == Form::Quantized && !a.head_dim.is_multiple_of(32) {
            // A group of 32 may lie in two heads, which are quantized together then.
            all.push(minor("quantize", "norm"));
        }
        // Tiles of rows leave f16, which only tiled products take of float weights.
        let path = if flash && a.output.is_float() { Path::Matrix } else { path };
        all.extend(self.product_and_sum("attention_output", &a.output, path));
        all.extend(a.output_bias.then(|| minor("add_bias", "add_bias")));
        all.extend(a.post_norm.then(|| minor("post_norm", "norm")));
        all
    }

    fn short_conv(&self, c: &ShortConvShape, path: Path) -> Vec<Selected> {
        let mut all = vec![minor("norm", "norm")];
        all.extend(self.product_and_sum("short_conv_input", &c.input, path));
        all.push(Selected { minor: false, ..minor("short_conv", "short_conv") });
        all.push(minor("short_conv_states", "short_conv"));
        let quantized = form(c.output.ty, path, self.gpu) == Form::Quantized;
        all.extend(quantized.then(|| minor("quantize", "norm")));
        all.extend(self.product_and_sum("short_conv_output", &c.output, path));
        all
    }

    fn ffn(&self, f: &FfnShape, path: Path) -> Vec<Selected> {
        let mut all = vec![minor("norm", "norm")];
        let down = form(f.down.ty, path, self.gpu);
        if self.fuses(f, path) {
            all.push(self.product("ffn_gate_up", &f.gate, Some(f.activation), path));
            // Products on matrix units write f16 at best.
            let matrices = matches!(tier(f.gate.ty, self.gpu), Tier::Cooperative(_));
            let apart = down == Form::Quantized && matrices && path == Path::Matrix;
            all.extend(apart.then(|| minor("quantize", "quantize")));
        } else {
            all.extend(self.product_and_sum("ffn_gate", &f.gate, path));
            all.extend(self.product_and_sum("ffn_up", &f.up, path));
            all.push(Selected { minor: false, ..minor("ffn_glu", "glu") });
            all.extend((down == Form::Quantized).then(|| minor("quantize", "norm")));
        }
        all.extend(self.product_and_sum("ffn_down", &f.down, path));
        all.extend(f.post_norm.then(|| minor("post_norm", "norm")));
        all
    }

    fn encoder_attention(&self, a: &EncoderAttentionShape, path: Path) -> Vec<Selected> {
        let mut all = vec![minor("input", "norm")];
        for (op, weight) in &a.inputs {
            all.extend(self.product_and_sum(op, weight, path));
        }
        all.push(minor("add_bias", "add_bias"));
        all.push(Selected { minor: false, ..minor("attention", "encoder_attention") });
        let quantized = form(a.output.ty, path, self.gpu) == Form::Quantized;
        all.extend(quantized.then(|| minor("quantize", "norm")));
        all.extend(self.product_and_sum("attention_output", &a.output, path));
        all.push(minor("layer_norm", "layer_norm"));
        all
    }

    fn encoder_ffn(&self, f: &EncoderFfnShape, path: Path) -> Vec<Selected> {
        let mut all = vec![minor("input", "norm"), minor("add_bias", "add_bias")];
        all.extend(self.product_and_sum("ffn_up", &f.up, path));
        all.push(minor("gelu", "gelu"));
        let quantized = form(f.down.ty, path, self.gpu) == Form::Quantized;
        all.extend(quantized.then(|| minor("quantize", "norm")));
        all.extend(self.product_and_sum("ffn_down", &f.down, path));
        all.push(minor("layer_norm", "layer_norm"));
        all
    }

    fn head(&self, h: &HeadShape, path: Path) -> Vec<Selected> {
        let mut all = vec![minor("norm", "norm"), minor("hidden", "norm")];
        all.extend(self.product_and_sum("head", &h.weight, path));
        all.extend(h.soft_cap.then(|| minor("soft_cap", "soft_cap")));
        all.extend(["mask_logits", "take_logits", "top_k"].map(|op| minor(op, op)));
        all
    }

    /// The matrix products of a block on a path, by which the path is trusted or not.
    fn products(&self, block: &BlockShape, path: Path) -> Vec<Selected> {
        let product = |op, weight| self.product(op, weight, None, path);
        match block {
            BlockShape::Embedding(_) => Vec::new(),
            BlockShape::Attention(a) => {
                let inputs = a.inputs.iter().map(|(op, weight)| product(*op, weight));
                inputs.chain([product("attention_output", &a.output)]).collect()
            }
            BlockShape::ShortConv(c) => {
                vec![product("short_conv_input", &c.input), product("short_conv_output", &c.output)]
            }
            BlockShape::Ffn(f) if self.fuses(f, path) => {
                let fused = self.product("ffn_gate_up", &f.gate, Some(f.activation), path);
                vec![fused, product("ffn_down", &f.down)]
            }
            BlockShape::Ffn(f) => {
                vec![product("ffn_gate", &f.gate), product("ffn_up", &f.up), product("ffn_down", &f.down)]
            }
            BlockShape::Head(h) => vec![product("head", &h.weight)],
            BlockShape::EncoderEmbedding(_) | BlockShape::EncoderHead => Vec::new(),
            BlockShape::EncoderAttention(a) => {
                let inputs = a.inputs.iter().map(|(op, weight)| product(*op, weight));
                inputs.chain([product("attention_output", &a.output)]).collect()
            }
            BlockShape::EncoderFfn(f) => vec![product("ffn_up", &f.up), product("ffn_down", &f.down)],
        }
    }

    fn product(
        &self,
        op: &'static str,
        weight: &WeightShape,
        activation: Option<u32>,
        path: Path,
    ) -> Selected {
        let shader = product_shader(weight, activation, self.gpu, path);
        Selected { op, shader, ty: weight.ty, minor: false }
    }

    /// A product, and the sum of its splits where some number of rows splits it.
    fn product_and_sum(&self, op: &'static str, weight: &WeightShape, path: Path) -> Vec<Selected> {
        let WeightShape { ty, rows, cols } = *weight;
        let mut all = vec![self.product(op, weight, None, path)];
        let splits = path == Path::Matrix && may_split(ty, [rows, cols], self.gpu);
        all.extend(splits.then(|| minor("split_sum", "split_sum")));
        all
    }

    fn attention_shader(&self, a: &AttentionShape, flash: bool) -> String {
        if !flash {
            return format!("attention_decode_{}", kv_suffix(self.kv));
        }
        let problem = FlashProblem {
            head_dim: a.head_dim,
            kv_heads: a.kv_heads,
            group: a.heads / a.kv_heads.max(1),
            kv: self.kv,
            page_tokens: 64,
            splits: 1,
        };
        flash_kernel(&problem, self.gpu).kernel.shader
    }
}

/// A small kernel that reads no weight matrix.
fn minor(op: &'static str, shader: &str) -> Selected {
    Selected { op, shader: shader.to_owned(), ty: TensorType::F32, minor: true }
}

/// The shader of a product.
fn product_shader(weight: &WeightShape, activation: Option<u32>, gpu: &GpuProfile, path: Path) -> String {
    let WeightShape { ty, rows, cols } = *weight;
    let kernel = match path {
        Path::Vector => linear_vector(ty, [rows, cols], 1, Fold { activation, ..Fold::default() }, gpu),
        Path::Matrix => {
            let output = TiledOutput::Float;
            let problem = Problem { ty, rows, cols, tokens: MANY, activation, output };
            matrix_product(&problem, gpu).kernel
        }
    };
    kernel.shader
}
