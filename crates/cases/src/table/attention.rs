//! Attention cases: head shapes, what modifies scores, cache types, batches, weight types.

use unicorn_core::rope::RopeScaling;
use unicorn_core::{
    AttentionSpec, AttentionWeights, Block, KvType, NormSpec, RopeSpec, RopeStyle, Span, TensorType,
};

use super::names::lower;
use crate::synthetic::{SyntheticLayout, weight_rms};
use crate::{Case, Tolerance};

/// What varies. `what` names the case beside type, heads and cache.
#[derive(Clone)]
struct Attention {
    what: String,
    ty: TensorType,
    /// Types of the value and output matrices where they differ.
    v_o: Option<[TensorType; 2]>,
    kv: KvType,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope: RopeStyle,
    /// Rotated elements of a head; all where `None`.
    rope_dims: Option<usize>,
    scaling: RopeScaling,
    window: Option<usize>,
    soft_cap: Option<f32>,
    qk_norm: bool,
    /// Biases of q, k and v; of o.
    bias: [bool; 2],
    post_norm: bool,
    weight_offset: f32,
    batch: Vec<Span>,
}

impl Default for Attention {
    fn default() -> Attention {
        Attention {
            what: "plain".into(),
            ty: TensorType::F32,
            v_o: None,
            kv: KvType::F32,
            width: 96,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            rope: RopeStyle::Neox,
            rope_dims: None,
            scaling: RopeScaling::None,
            window: None,
            soft_cap: None,
            qk_norm: false,
            bias: [false; 2],
            post_norm: false,
            weight_offset: 0.0,
            batch: mixed(),
        }
    }
}

/// Decode steps and prefill chunks of several sequences, across page borders.
fn mixed() -> Vec<Span> {
    vec![
        Span::new(0, 5),
        Span::new(31, 1),
        Span::new(64, 3),
        Span::new(40, 1),
        Span::new(0, 1),
        Span::new(29, 6),
    ]
}

const KV_TYPES: [KvType; 3] = [KvType::F32, KvType::F16, KvType::Q8_0];

pub(super) fn attention() -> Vec<Case> {
    let mut cases = shapes();
    cases.extend(features());
    cases.extend(batches());
    cases.extend(types());
    cases.extend(many_rows());
    cases.iter().map(case).collect()
}

/// Group ratios and head sizes, for every cache type that can hold them.
fn shapes() -> Vec<Attention> {
    let mut cases = Vec::new();
    for kv in KV_TYPES {
        for (heads, kv_heads) in [(3, 3), (9, 3), (8, 2), (8, 1), (2, 1), (14, 2)] {
            cases.push(Attention { what: "gqa".into(), kv, heads, kv_heads, ..Attention::default() });
        }
        for head_dim in [16, 64, 80, 96, 128, 256] {
            // Q8_0 blocks do not straddle heads.
            if kv != KvType::Q8_0 || head_dim % 32 == 0 {
                cases.push(Attention { what: "dim".into(), kv, head_dim, ..Attention::default() });
            }
        }
    }
    cases
}

/// Everything that a spec can switch on, alone and together.
fn features() -> Vec<Attention> {
    let a = |what: &str, edit: &dyn Fn(&mut Attention)| {
        let mut case = Attention { what: what.into(), ..Attention::default() };
        edit(&mut case);
        case
    };
    let yarn = RopeScaling::Yarn {
        factor: 4.0,
        original_context: 64,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
    };
    let mut cases = vec![
        a("rope-normal", &|c| c.rope = RopeStyle::Normal),
        a("rope-normal-partial", &|c| (c.rope, c.rope_dims) = (RopeStyle::Normal, Some(32))),
        a("rope-neox-partial", &|c| c.rope_dims = Some(24)),
        a("rope-yarn", &|c| c.scaling = yarn.clone()),
        a("cap", &|c| c.soft_cap = Some(2.0)),
        a("qk-norm", &|c| c.qk_norm = true),
        a("bias", &|c| c.bias = [true, false]),
        a("bias-all", &|c| c.bias = [true, true]),
        a("post", &|c| c.post_norm = true),
        a("offset", &|c| (c.weight_offset, c.qk_norm, c.post_norm) = (1.0, true, true)),
    ];
    for window in [1, 8, 33, 64] {
        cases.push(a(&format!("window{window}"), &|c| c.window = Some(window)));
    }
    for kv in KV_TYPES {
        cases.push(a("everything", &|c| {
            (c.kv, c.heads, c.kv_heads, c.head_dim) = (kv, 4, 1, 256);
            (c.window, c.soft_cap, c.weight_offset) = (Some(16), Some(3.0), 1.0);
            (c.qk_norm, c.post_norm, c.bias) = (true, true, [true, true]);
        }));
    }
    cases
}

/// Lengths of past and chunk.
fn batches() -> Vec<Attention> {
    let mut cases = Vec::new();
    for kv in KV_TYPES {
        for (past, tokens) in
            [(0, 1), (1, 1), (31, 1), (512, 1), (1000, 1), (0, 33), (1, 64), (512, 40), (0, 150)]
        {
            let batch = vec![Span::new(past, tokens)];
            cases.push(Attention {
                what: format!("past{past}/t{tokens}"),
                kv,
                batch: batch.clone(),
                ..Attention::default()
            });
            if past >= 512 {
                cases.push(Attention {
                    what: format!("past{past}/t{tokens}/window300"),
                    kv,
                    window: Some(300),
                    batch,
                    ..Attention::default()
                });
            }
        }
        for (what, window, batch) in splits() {
            cases.push(Attention {
                what: format!("splits/{what}"),
                kv,
                window,
                batch,
                ..Attention::default()
            });
        }
        cases.extend(decodes(kv));
    }
    cases
}

/// Decode steps of more sequences than a matrix-vector product takes: rows that are alone with their position and rows that are not, over
/// several splits, within windows, and more rows than one dispatch of attention takes.
fn decodes(kv: KvType) -> Vec<Attention> {
    let lengths = || (0..9).map(|i| Span::new(17 * i, 1)).collect::<Vec<_>>();
    let long = || [0, 700, 63, 64, 5, 300, 127, 128, 1, 31, 32].map(|past| Span::new(past, 1)).to_vec();
    let pairs =
        || [(0, 4), (700, 1), (62, 3), (128, 2), (9, 1)].map(|(past, rows)| Span::new(past, rows)).to_vec();
    let many = || (0..140).map(|i| Span::new(if i % 70 == 64 { 300 } else { i % 3 }, 1)).collect::<Vec<_>>();
    let a = |what: &str, batch: Vec<Span>, edit: &dyn Fn(&mut Attention)| {
        let mut case = Attention { what: format!("decodes{what}"), kv, batch, ..Attention::default() };
        edit(&mut case);
        case
    };
    let mut cases = vec![
        a("", lengths(), &|_| {}),
        a("/long", long(), &|_| {}),
        a("/window100", long(), &|c| c.window = Some(100)),
        a("/pairs", pairs(), &|_| {}),
        a("/pairs/window20", pairs(), &|c| c.window = Some(20)),
        a("/many", many(), &|_| {}),
    ];
    if kv == KvType::F16 {
        cases.extend([
            a("/gqa7", long(), &|c| (c.heads, c.kv_heads) = (14, 2)),
            a("/mqa6", long(), &|c| (c.heads, c.kv_heads, c.head_dim) = (6, 1, 128)),
            a("/mha", long(), &|c| (c.heads, c.kv_heads) = (3, 3)),
            a("/dim80", pairs(), &|c| (c.head_dim, c.ty, c.width) = (80, TensorType::Q8_0, 96)),
            a("/everything", long(), &|c| {
                (c.heads, c.kv_heads, c.ty, c.width) = (4, 1, TensorType::Q4_0, 128);
                (c.window, c.soft_cap, c.weight_offset) = (Some(130), Some(3.0), 1.0);
                (c.qk_norm, c.post_norm, c.bias) = (true, true, [true, true]);
            }),
        ]);
    }
    cases
}

/// Few rows against the borders of pages (32 positions) and of decode splits (64 and more): rows that attend to each other, rows that are
/// alone with their position, both together, and windows within and across splits.
fn splits() -> Vec<(&'static str, Option<usize>, Vec<Span>)> {
    let lengths = || [0, 63, 64, 127, 300, 31].map(|past| Span::new(past, 1)).to_vec();
    vec![
        ("rows-cross", None, vec![Span::new(60, 8)]),
        ("rows-after-prompt", None, vec![Span::new(700, 6)]),
        ("sequences", None, lengths()),
        ("sequences-window20", Some(20), lengths()),
        ("sequences-window100", Some(100), lengths()),
        ("rows-and-sequences", None, vec![Span::new(126, 4), Span::new(64, 1), Span::new(0, 3)]),
        ("larger-splits", None, vec![Span::new(1023, 1), Span::new(1024, 1), Span::new(1, 1)]),
        ("larger-splits-window1030", Some(1030), vec![Span::new(1100, 1)]),
    ]
}

/// Weight types, with the default cache.
fn types() -> Vec<Attention> {
    let mut cases = Vec::new();
    for ty in TensorType::ALL {
        for (what, batch) in [("decode", vec![Span::new(40, 1)]), ("mixed", mixed())] {
            cases.push(Attention {
                what: what.into(),
                ty,
                kv: KvType::F16,
                width: 256,
                batch,
                ..Attention::default()
            });
        }
    }
    // Q4_K_M files keep some value matrices in Q6_K; small models mix block lengths.
    for (what, ty, v_o) in [
        ("v-q6_k", TensorType::Q4_K, [TensorType::Q6_K, TensorType::Q4_K]),
        ("v-q8_0-o-q5_0", TensorType::Q4_K, [TensorType::Q8_0, TensorType::Q5_0]),
        ("v-f16-o-q4_0", TensorType::Q4_0, [TensorType::F16, TensorType::Q4_0]),
    ] {
        cases.push(Attention {
            what: what.into(),
            ty,
            v_o: Some(v_o),
            kv: KvType::F16,
            width: 256,
            ..Attention::default()
        });
    }
    for (ty, kv) in [(TensorType::Q8_0, KvType::Q8_0), (TensorType::Q4_K, KvType::Q8_0)] {
        cases.push(Attention {
            what: "cache".into(),
            ty,
            kv,
            width: 256,
            bias: [true; 2],
            ..Attention::default()
        });
    }
    cases
}

/// Many rows: several tiles of a sequence, sequences that end inside a tile, what a tile must mask, long pasts of few rows.
fn many_rows() -> Vec<Attention> {
    let ragged = || vec![Span::new(20, 33), Span::new(0, 70), Span::new(150, 9), Span::new(77, 1)];
    let a = |what: &str, kv: KvType, batch: Vec<Span>, edit: &dyn Fn(&mut Attention)| {
        let mut case = Attention { what: format!("rows/{what}"), kv, batch, ..Attention::default() };
        edit(&mut case);
        case
    };
    let mut cases = Vec::new();
    for kv in KV_TYPES {
        cases.push(a("ragged", kv, ragged(), &|_| {}));
        cases.push(a("ragged/window20", kv, ragged(), &|c| c.window = Some(20)));
        cases.push(a("past300/t130", kv, vec![Span::new(300, 130)], &|_| {}));
        cases.push(a("past300/t130/window100", kv, vec![Span::new(300, 130)], &|c| c.window = Some(100)));
        cases.push(a("split", kv, vec![Span::new(700, 12), Span::new(3, 20)], &|_| {}));
        cases.push(a("dim256", kv, vec![Span::new(30, 40)], &|c| c.head_dim = 256));
        if kv != KvType::Q8_0 {
            cases.push(a("dim80", kv, ragged(), &|c| c.head_dim = 80));
            cases.push(a("dim72", kv, vec![Span::new(30, 40)], &|c| c.head_dim = 72));
        }
    }
    let kv = KvType::F16;
    cases.extend([
        a("split/window300", kv, vec![Span::new(700, 12)], &|c| c.window = Some(300)),
        a("cap", kv, ragged(), &|c| (c.heads, c.kv_heads, c.soft_cap) = (6, 2, Some(2.0))),
        a("gqa3", kv, ragged(), &|c| (c.heads, c.kv_heads) = (9, 3)),
        a("mha", kv, ragged(), &|c| (c.heads, c.kv_heads) = (3, 3)),
        a("mqa8", kv, vec![Span::new(70, 67)], &|c| (c.heads, c.kv_heads, c.head_dim) = (8, 1, 32)),
        a("dim128/window70", kv, vec![Span::new(70, 67)], &|c| (c.head_dim, c.window) = (128, Some(70))),
        a("everything", kv, ragged(), &|c| {
            (c.heads, c.kv_heads, c.head_dim, c.ty, c.width) = (4, 1, 128, TensorType::Q8_0, 128);
            (c.window, c.soft_cap, c.weight_offset) = (Some(48), Some(3.0), 1.0);
            (c.qk_norm, c.post_norm, c.bias) = (true, true, [true, true]);
        }),
    ]);
    cases
}

fn case(a: &Attention) -> Case {
    let mut layout = SyntheticLayout::default();
    let (q_row, kv_row) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
    let norm = NormSpec { weight_offset: a.weight_offset, ..NormSpec::rms(1e-6) };
    let [v_ty, o_ty] = a.v_o.unwrap_or([a.ty; 2]);
    let weights = AttentionWeights {
        norm: layout.norm("attn_norm", a.width),
        q: layout.matrix("attn_q", a.ty, q_row, a.width),
        k: layout.matrix("attn_k", a.ty, kv_row, a.width),
        v: layout.matrix("attn_v", v_ty, kv_row, a.width),
        o: layout.matrix("attn_output", o_ty, a.width, q_row),
        q_bias: a.bias[0].then(|| layout.bias("attn_q_bias", q_row)),
        k_bias: a.bias[0].then(|| layout.bias("attn_k_bias", kv_row)),
        v_bias: a.bias[0].then(|| layout.bias("attn_v_bias", kv_row)),
        o_bias: a.bias[1].then(|| layout.bias("attn_output_bias", a.width)),
        q_norm: a.qk_norm.then(|| layout.norm("attn_q_norm", a.head_dim)),
        k_norm: a.qk_norm.then(|| layout.norm("attn_k_norm", a.head_dim)),
        post_norm: a.post_norm.then(|| layout.norm("attn_post_norm", a.width)),
    };
    let spec = AttentionSpec {
        width: a.width,
        heads: a.heads,
        kv_heads: a.kv_heads,
        head_dim: a.head_dim,
        scale: scale(a),
        rope: RopeSpec::new(a.rope, a.rope_dims.unwrap_or(a.head_dim), 10_000.0, &a.scaling),
        window: a.window,
        soft_cap: a.soft_cap,
        norm,
        qk_norm: a.qk_norm.then_some(norm),
        post_norm: a.post_norm.then_some(norm),
    };
    let heads = format!("{}x{}x{}", a.heads, a.kv_heads, a.head_dim);
    let kv = lower(a.kv.tensor_type());
    Case {
        name: format!("attention/{}/{heads}/kv-{kv}/{}", lower(a.ty), a.what),
        block: Block::Attention { spec, weights: Box::new(weights) },
        batch: a.batch.clone(),
        kv: a.kv,
        tolerance: Tolerance::attention(a.ty, a.kv),
    }
}

/// The factor that spreads scores by about 1.5, so that positions and scores matter: with flat weights every error in a score
/// would average out.
fn scale(a: &Attention) -> f32 {
    let element = |offset: f32| 1.0 + offset;
    let square = if a.qk_norm {
        element(a.weight_offset).powi(2)
    } else {
        let product = a.width as f32 * (weight_rms(a.ty) * element(a.weight_offset)).powi(2);
        product + if a.bias[0] { 0.3f32.powi(2) } else { 0.0 }
    };
    1.5 / (square * (a.head_dim as f32).sqrt())
}
