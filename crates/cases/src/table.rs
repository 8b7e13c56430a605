//! The table itself.

mod attention;
mod encoder;
mod names;
pub(crate) mod short_conv;

use unicorn_core::{
    Activation, Block, EmbeddingSpec, FfnSpec, FfnWeights, HeadSpec, KvType, NormSpec, Span, TensorType,
};

use crate::synthetic::{Fill, SyntheticLayout};
use crate::{Case, Tolerance};
use TensorType::*;
use names::lower;

/// Every case, cheap ops first.
pub fn table() -> Vec<Case> {
    let mut cases = embedding();
    cases.extend(linear());
    cases.extend(ffn());
    cases.extend(attention::attention());
    cases.extend(encoder::encoder());
    cases.extend(short_conv::short_conv());
    cases
}

/// The cases whose names contain every part of the filter, see [`Case::matches`].
pub fn select(filter: &str) -> Vec<Case> {
    table().into_iter().filter(|c| c.matches(filter)).collect()
}

/// `n` new tokens of one sequence.
fn tokens(n: usize) -> Vec<Span> {
    vec![Span::new(0, n)]
}

fn embedding() -> Vec<Case> {
    let mut cases = Vec::new();
    for ty in TensorType::ALL {
        for (width, n, scale) in [(256, 1, 1.0), (256, 7, 16.0), (768, 33, 1.0)] {
            let table = SyntheticLayout::default().matrix("token_embd", ty, 50, width);
            cases.push(Case {
                name: format!("embedding/{}/50x{width}/t{n}", lower(ty)),
                block: Block::Embedding { spec: EmbeddingSpec { width, vocab: 50, scale }, table },
                batch: tokens(n),
                kv: KvType::F32,
                tolerance: Tolerance::embedding(),
            });
        }
    }
    cases
}

/// Matrix products, as heads whose norm weights are one.
fn linear() -> Vec<Case> {
    let mut cases = Vec::new();
    for ty in TensorType::ALL {
        // (rows, cols): few and odd rows, the shortest row, rows longer than one cache line of blocks.
        let shapes: [(usize, usize); 6] = match ty.block_len() {
            1 => [(1, 32), (17, 576), (576, 1536), (1000, 72), (64, 80), (33, 1024)],
            32 => [(1, 32), (17, 576), (576, 1536), (1000, 96), (64, 160), (33, 1024)],
            _ => [(1, 256), (17, 512), (576, 1536), (1000, 256), (64, 768), (33, 1024)],
        };
        for (shape, (rows, cols)) in shapes.into_iter().enumerate() {
            let counts: &[usize] = match shape {
                1 => &[1, 2, 3, 4, 5, 7, 8, 16, 33, 64],
                2 => &[1, 8, 33],
                _ => &[1, 5],
            };
            cases.extend(counts.iter().map(|n| head(ty, rows, cols, *n, None)));
        }
        cases.push(head(ty, 300, 512, 3, Some(2.0)));
    }
    // Across the edges of every tile: rows and tokens that are no multiple of any, an odd number of column groups, few rows.
    for (ty, rows, cols, n) in [
        (Q4_0, 300, 544, 200),
        (Q8_0, 130, 96, 131),
        (Q4_1, 97, 160, 70),
        (Q4_K, 300, 768, 200),
        (Q6_K, 161, 256, 129),
        (Q2_K, 65, 768, 65),
        (F16, 300, 544, 200),
        (F32, 129, 72, 131),
        (BF16, 65, 40, 257),
        (MXFP4, 1, 96, 140),
        (Q5_K, 3, 512, 9),
    ] {
        cases.push(head(ty, rows, cols, n, None));
    }
    cases
}

fn head(ty: TensorType, vocab: usize, width: usize, n: usize, soft_cap: Option<f32>) -> Case {
    let mut layout = SyntheticLayout::default();
    // A capped head also has a real norm.
    let (fill, suffix) = if soft_cap.is_some() { (Fill::Norm, "/cap") } else { (Fill::Ones, "") };
    Case {
        name: format!("linear/{}/{vocab}x{width}/t{n}{suffix}", lower(ty)),
        block: Block::Head {
            spec: HeadSpec { width, vocab, norm: NormSpec::rms(1e-6), soft_cap },
            norm: layout.tensor("output_norm", fill, 1, width),
            weight: layout.matrix("output", ty, vocab, width),
        },
        batch: tokens(n),
        kv: KvType::F32,
        tolerance: Tolerance::linear(ty),
    }
}

struct FfnCase {
    types: [TensorType; 3],
    width: usize,
    hidden: usize,
    tokens: usize,
    activation: Activation,
    post_norm: bool,
    weight_offset: f32,
}

fn ffn() -> Vec<Case> {
    let mut cases = Vec::new();
    for ty in TensorType::ALL {
        let shapes = if ty.block_len() == 256 { [(256, 768), (512, 256)] } else { [(192, 576), (320, 96)] };
        for (width, hidden) in shapes {
            for n in [1, 4, 33] {
                cases.push(ffn_case(&FfnCase {
                    types: [ty; 3],
                    width,
                    hidden,
                    tokens: n,
                    activation: Activation::Silu,
                    post_norm: false,
                    weight_offset: 0.0,
                }));
            }
        }
        for (n, post_norm, weight_offset) in [(1, true, 0.0), (6, true, 1.0), (2, false, 1.0)] {
            let (width, hidden) = shapes[0];
            let activation = Activation::GeluTanh;
            let types = [ty; 3];
            let case = FfnCase { types, width, hidden, tokens: n, activation, post_norm, weight_offset };
            cases.push(ffn_case(&case));
        }
    }
    // Across the edges of every tile.
    for (ty, width, hidden, n, post_norm) in [
        (Q4_0, 160, 416, 150, false),
        (F16, 160, 416, 150, true),
        (Q4_K, 256, 768, 150, true),
        (Q3_K, 256, 256, 67, false),
        (Q5_1, 96, 96, 130, false),
    ] {
        let activation = Activation::Silu;
        let types = [ty; 3];
        let case = FfnCase { types, width, hidden, tokens: n, activation, post_norm, weight_offset: 0.0 };
        cases.push(ffn_case(&case));
    }
    // Mixtures that files have, and pairs that share no kernel.
    for types in [
        [Q4_K, Q4_K, Q6_K],
        [Q5_0, Q5_0, Q8_0],
        [Q4_0, Q4_0, Q4_1],
        [Q4_K, Q6_K, Q5_K],
        [F16, Q8_0, Q4_0],
        [Q4_0, F32, BF16],
        [IQ4_NL, IQ4_XS, Q3_K],
        [MXFP4, MXFP4, Q2_K],
    ] {
        for n in [1, 2, 17] {
            cases.push(ffn_case(&FfnCase {
                types,
                width: 256,
                hidden: 512,
                tokens: n,
                activation: Activation::Silu,
                post_norm: false,
                weight_offset: 0.0,
            }));
        }
    }
    cases
}

fn ffn_case(c: &FfnCase) -> Case {
    let mut layout = SyntheticLayout::default();
    let [gate, up, down] = c.types;
    let types = if gate == up && up == down { lower(gate) } else { c.types.map(lower).join("+") };
    let norm = NormSpec { weight_offset: c.weight_offset, ..NormSpec::rms(1e-6) };
    let activation = match c.activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu",
    };
    let mut name = format!("ffn/{types}/{}x{}/t{}/{activation}", c.width, c.hidden, c.tokens);
    name.push_str(if c.post_norm { "/post" } else { "" });
    name.push_str(if c.weight_offset != 0.0 { "/offset" } else { "" });
    Case {
        name,
        block: Block::Ffn {
            spec: FfnSpec {
                width: c.width,
                hidden: c.hidden,
                activation: c.activation,
                norm,
                post_norm: c.post_norm.then_some(norm),
            },
            weights: Box::new(FfnWeights {
                norm: layout.norm("ffn_norm", c.width),
                gate: layout.matrix("ffn_gate", gate, c.hidden, c.width),
                up: layout.matrix("ffn_up", up, c.hidden, c.width),
                down: layout.matrix("ffn_down", down, c.width, c.hidden),
                post_norm: c.post_norm.then(|| layout.norm("ffn_post_norm", c.width)),
            }),
        },
        batch: tokens(c.tokens),
        kv: KvType::F32,
        tolerance: Tolerance::ffn(&c.types),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_filters_find_them() {
        let cases = table();
        let names: HashSet<&str> = cases.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
        for ty in TensorType::ALL {
            for op in
                ["embedding", "linear", "ffn", "attention", "short_conv", "encoder_attention", "encoder_ffn"]
            {
                let found = select(&format!("{op}/{}/", lower(ty)));
                assert!(found.iter().any(|c| c.types() == [ty]), "no {op} case for {ty}");
            }
        }
        assert_eq!(select("").len(), cases.len());
        assert!(select("ffn silu").iter().all(|c| c.name.starts_with("ffn") && c.name.contains("silu")));
        assert!(select("no such case").is_empty());
    }

    /// A canary judges what is served by the same tolerances.
    #[test]
    fn one_function_has_the_tolerance_of_every_case() {
        for case in table() {
            assert_eq!(case.tolerance, Tolerance::of_block(&case.block, case.kv), "{}", case.name);
        }
    }

    #[test]
    fn work_is_counted() {
        let case = select("linear/q8_0/17x576/t3").remove(0);
        assert_eq!(case.flops(), 2 * 17 * 576 * 3);
        assert_eq!(case.bytes(), 17 * 576 / 32 * 34 + 576 * 4);
        // Every row sees every row.
        let case = select("encoder_attention/f16/64x2x64/t200").remove(0);
        assert_eq!(case.flops(), 2 * 4 * 64 * 128 * 200 + 4 * 128 * 200 * 200);
        for case in table() {
            let (looks_up, copies) = (case.name.contains("embedding"), case.name.starts_with("encoder_head"));
            assert!((case.bytes() > 0 || copies) && case.rows() > 0, "{}", case.name);
            assert!(case.flops() > 0 || looks_up || copies, "{}", case.name);
        }
    }
}
