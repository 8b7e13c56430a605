//! Which of its kernels a loaded block takes in a batch: what suits the number of rows, or the other way to the same result where a selftest
//! found that wrong. Every block is looked at alone, so what it is placed or batched with changes nothing.

use unicorn_core::KvType;

use crate::blocks::{AttentionBlock, GpuBlock};
use crate::profile::GpuProfile;
use crate::select::{self, FlashProblem, Fold, Path, Problem, TiledOutput};
use crate::weights::Matrix;

/// Rows of the batches that stand for all small and all large ones.
const FEW: usize = 1;
const MANY: usize = 512;

/// What routes depend on beside the block.
#[derive(Clone, Copy)]
pub(crate) struct Router<'a> {
    pub(crate) gpu: &'a GpuProfile,
    /// Element type of the KV cache.
    pub(crate) kv: KvType,
    /// Gate and up of a feed-forward block may run as one kernel.
    pub(crate) fused_ffn: bool,
}

/// One operation of a block and the shader that runs it.
struct Selected {
    op: &'static str,
    shader: String,
}

impl Router<'_> {
    /// The path of a batch's products, of `rows` rows: for a head, those that it is asked for.
    pub(crate) fn path(&self, block: &GpuBlock, rows: usize) -> Path {
        let float = block.matrices().iter().all(|m| m.is_float());
        let suits = select::path(rows, float, self.gpu);
        let trusted = |path| self.products(block, path).iter().all(|s| !self.gpu.avoids(&s.shader));
        if self.gpu.avoid.is_empty() || trusted(suits) || !trusted(suits.other()) {
            suits
        } else {
            suits.other()
        }
    }

    /// Whether attention of a batch of `rows` rows runs in tiles of rows rather than row by row. `suits` is which of them is faster.
    pub(crate) fn flash(&self, block: &AttentionBlock, path: Path, suits: bool) -> bool {
        let trusted = |flash| !self.gpu.avoids(&self.attention_shader(block, flash));
        // Tiles leave f16, which mat-vec kernels of float weights do not take.
        let suits = suits && (path == Path::Matrix || !block.o.is_float());
        if self.gpu.avoid.is_empty() || trusted(suits) || !trusted(!suits) { suits } else { !suits }
    }

    /// A kernel that a block cannot do without although it is to be avoided, as `op: shader`.
    pub(crate) fn indispensable(&self, block: &GpuBlock) -> Option<String> {
        let mut all = self.selected(block, FEW).into_iter().chain(self.selected(block, MANY));
        all.find(|s| self.gpu.avoids(&s.shader)).map(|s| format!("{}: {}", s.op, s.shader))
    }

    /// The kernels of a block for few and for many rows, one line an operation: `op: shader`.
    pub(crate) fn describe(&self, block: &GpuBlock) -> Vec<String> {
        let (few, many) = (self.selected(block, FEW), self.selected(block, MANY));
        let other = |of: &[Selected], op: &str| of.iter().find(|s| s.op == op).map(|s| s.shader.clone());
        let mut lines: Vec<String> = few
            .iter()
            .map(|Selected { op, shader }| match other(&many, op) {
                Some(same) if same == *shader => format!("{op}: {shader}"),
                Some(many) => format!("{op}: {shader}, {many} for many tokens"),
                None => format!("{op}: {shader} for few tokens"),
            })
            .collect();
        let alone = many.iter().filter(|s| other(&few, s.op).is_none());
        lines.extend(alone.map(|Selected { op, shader }| format!("{op}: {shader} for many tokens")));
        lines
    }

    /// The kernels of a block in a batch of one sequence.
    fn selected(&self, block: &GpuBlock, rows: usize) -> Vec<Selected> {
        let path = self.path(block, rows);
        let mut all = self.products(block, path);
        match block {
            GpuBlock::Attention(a) => {
                let before_output = all.len() - 1;
                let shader = self.attention_shader(a, self.flash(a, path, rows == MANY));
                let rope = format!("rope_kv_{}", select::kv_suffix(self.kv));
                let attention =
                    [Selected { op: "rope_kv", shader: rope }, Selected { op: "attention", shader }];
                all.splice(before_output..before_output, attention);
            }
            GpuBlock::Embedding(e) => {
                let shader = format!("embedding_{}", e.table.ty.name().to_lowercase());
                all.push(Selected { op: "embedding", shader });
            }
            GpuBlock::Ffn(f) if !f.fuses(self.gpu, self.fused_ffn, path) => {
                all.insert(2, Selected { op: "ffn_glu", shader: "glu".to_owned() });
            }
            GpuBlock::Ffn(_) | GpuBlock::Head(_) => {}
        }
        all
    }

    /// The matrix products of a block on a path, in order.
    fn products(&self, block: &GpuBlock, path: Path) -> Vec<Selected> {
        let linear = |op, m: &Matrix, activation| {
            let shader = product(m, activation, self.gpu, path);
            Selected { op, shader }
        };
        match block {
            GpuBlock::Embedding(_) => Vec::new(),
            GpuBlock::Attention(a) => {
                let inputs = a.inputs.iter().map(|p| linear(p.op, &p.matrix, None));
                inputs.chain([linear("attention_output", &a.o, None)]).collect()
            }
            GpuBlock::Ffn(f) if f.fuses(self.gpu, self.fused_ffn, path) => {
                vec![linear("ffn_gate_up", &f.gate, Some(f.activation)), linear("ffn_down", &f.down, None)]
            }
            GpuBlock::Ffn(f) => vec![
                linear("ffn_gate", &f.gate, None),
                linear("ffn_up", &f.up, None),
                linear("ffn_down", &f.down, None),
            ],
            GpuBlock::Head(h) => vec![linear("head", &h.weight, None)],
        }
    }

    fn attention_shader(&self, a: &AttentionBlock, flash: bool) -> String {
        if !flash {
            return format!("attention_decode_{}", select::kv_suffix(self.kv));
        }
        let spec = &a.spec;
        let problem = FlashProblem {
            head_dim: spec.head_dim,
            kv_heads: spec.kv_heads,
            group: spec.heads / spec.kv_heads,
            kv: self.kv,
            page_tokens: 64,
            splits: 1,
        };
        select::flash_kernel(&problem, self.gpu).kernel.shader
    }
}

/// The shader of a product.
fn product(m: &Matrix, activation: Option<u32>, gpu: &GpuProfile, path: Path) -> String {
    let (ty, rows, cols) = (m.ty, m.rows, m.cols);
    let kernel = match path {
        Path::Vector => {
            select::linear_vector(ty, [rows, cols], 1, Fold { activation, ..Fold::default() }, gpu)
        }
        Path::Matrix => {
            let output = TiledOutput::Float;
            let problem = Problem { ty, rows, cols, tokens: MANY, activation, output };
            select::matrix_product(&problem, gpu).kernel
        }
    };
    kernel.shader
}
