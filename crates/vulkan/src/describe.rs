//! What was selected for a loaded block, one line an operation: `op: shader`.

use unicorn_core::KvType;

use crate::blocks::{AttentionBlock, GpuBlock};
use crate::profile::GpuProfile;
use crate::select::{self, FlashProblem, Fold, Path, Problem, TiledOutput};
use crate::weights::Matrix;

/// Tokens of the batch that stands for all large ones.
const MANY: usize = 512;

/// One operation of a block and the shader that runs it.
pub(crate) struct Selected {
    pub(crate) op: &'static str,
    pub(crate) shader: String,
}

/// The kernels of a block, of one token and of many. `fused` is whether gate and up of a feed-forward block may run as one.
pub(crate) fn describe(block: &GpuBlock, gpu: &GpuProfile, kv: KvType, fused: bool) -> Vec<String> {
    let few = selected(block, gpu, kv, fused, Path::Vector);
    let many = selected(block, gpu, kv, fused, Path::Matrix);
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

/// The kernels of a block in batches that take a path.
pub(crate) fn selected(
    block: &GpuBlock,
    gpu: &GpuProfile,
    kv: KvType,
    fused: bool,
    path: Path,
) -> Vec<Selected> {
    let named = |op, shader| Selected { op, shader };
    let linear = |op, m: &Matrix, activation| named(op, product(m, activation, gpu, path));
    match block {
        GpuBlock::Embedding(e) => {
            vec![named("embedding", format!("embedding_{}", e.table.ty.name().to_lowercase()))]
        }
        GpuBlock::Attention(a) => {
            let kv_type = kv;
            let kv = select::kv_suffix(kv);
            let inputs = a.inputs.iter().map(|p| linear(p.op, &p.matrix, None));
            let mut all: Vec<Selected> = inputs.collect();
            all.push(named("rope_kv", format!("rope_kv_{kv}")));
            match path {
                Path::Vector => all.push(named("attention", format!("attention_decode_{kv}"))),
                Path::Matrix => all.push(named("attention", flash(a, kv_type, gpu))),
            }
            all.push(linear("attention_output", &a.o, None));
            all
        }
        GpuBlock::Ffn(f) if f.fuses(gpu, fused, path) => {
            vec![linear("ffn_gate_up", &f.gate, Some(f.activation)), linear("ffn_down", &f.down, None)]
        }
        GpuBlock::Ffn(f) => vec![
            linear("ffn_gate", &f.gate, None),
            linear("ffn_up", &f.up, None),
            named("ffn_glu", "glu".to_owned()),
            linear("ffn_down", &f.down, None),
        ],
        GpuBlock::Head(h) => vec![linear("head", &h.weight, None)],
    }
}

/// The shader of attention of many rows.
fn flash(a: &AttentionBlock, kv: KvType, gpu: &GpuProfile) -> String {
    let spec = &a.spec;
    let problem = FlashProblem {
        head_dim: spec.head_dim,
        kv_heads: spec.kv_heads,
        group: spec.heads / spec.kv_heads,
        kv,
        page_tokens: 64,
        splits: 1,
    };
    select::flash_kernel(&problem, gpu).kernel.shader
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
