//! What was selected for a loaded block, one line an operation: `op: shader`.

use unicorn_core::KvType;

use crate::blocks::GpuBlock;
use crate::profile::GpuProfile;
use crate::select::{self, Fold};
use crate::weights::Matrix;

/// The kernels of a block when it decodes one token. `fused` is whether gate and up of a feed-forward block may run as one.
pub(crate) fn describe(block: &GpuBlock, gpu: &GpuProfile, kv: KvType, fused: bool) -> Vec<String> {
    let linear = |op: &str, m: &Matrix, activation| {
        let fold = Fold { activation, ..Fold::default() };
        format!("{op}: {}", select::linear_vector(m.ty, m.cols, 1, fold, gpu).shader)
    };
    match block {
        GpuBlock::Embedding(e) => vec![format!("embedding: embedding_{}", e.table.ty.name().to_lowercase())],
        GpuBlock::Attention(a) => {
            let kv = select::kv_suffix(kv);
            vec![
                linear("attention_q", &a.q, None),
                linear("attention_k", &a.k, None),
                linear("attention_v", &a.v, None),
                format!("rope_kv: rope_kv_{kv}"),
                format!("attention: attention_decode_{kv}"),
                linear("attention_output", &a.o, None),
            ]
        }
        GpuBlock::Ffn(f) if f.fuses(gpu, fused) => {
            vec![linear("ffn_gate_up", &f.gate, Some(f.activation)), linear("ffn_down", &f.down, None)]
        }
        GpuBlock::Ffn(f) => vec![
            linear("ffn_gate", &f.gate, None),
            linear("ffn_up", &f.up, None),
            "ffn_glu: glu".to_owned(),
            linear("ffn_down", &f.down, None),
        ],
        GpuBlock::Head(h) => vec![linear("head", &h.weight, None)],
    }
}
