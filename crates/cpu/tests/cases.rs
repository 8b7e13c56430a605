//! The case table on the devices of this crate, and proof that the table can fail.

use std::time::{SystemTime, UNIX_EPOCH};

use unicorn_cases::{CaseError, Flawed, judge, run, select};
use unicorn_core::{Activation, Block, Device, RopeStyle, Slice};
use unicorn_cpu::ReferenceDevice;

/// A new seed for every run; failures print it.
fn fresh_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64)
}

/// Runs all cases that match and panics with the list of those that failed.
fn check(device: &dyn Device, filter: &str) {
    let (oracle, seed) = (ReferenceDevice::new(), fresh_seed());
    let cases = select(filter);
    assert!(!cases.is_empty(), "no case matches {filter:?}");
    let mut failures = Vec::new();
    for case in &cases {
        match judge(case, device, &oracle, seed) {
            Ok(outcome) if outcome.passed() => {}
            Ok(outcome) => failures.push(outcome.to_string()),
            Err(error) => failures.push(error.to_string()),
        }
    }
    let name = &device.profile().name;
    assert!(failures.is_empty(), "{name}: {} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

#[test]
fn the_order_of_cases_changes_nothing() {
    // A cache in Q8_0, which heads of 80 cannot have, comes before them.
    let device = ReferenceDevice::new();
    for filter in ["kv-q8_0 decodes", "dim80"] {
        check(&device, filter);
    }
}

#[test]
fn reference_equals_itself() {
    // Proves that the table runs: pages are valid, shapes agree, no input gives values that are not finite.
    check(&ReferenceDevice::new(), "");
}

/// The reference device, before something is made wrong in it.
fn reference() -> Flawed<ReferenceDevice> {
    Flawed::new(ReferenceDevice::new())
}

/// Every matching case must notice the flaw.
fn must_fail(flaw: &str, filter: &str, device: &Flawed<ReferenceDevice>) {
    let (oracle, seed) = (ReferenceDevice::new(), fresh_seed());
    let mut cases = select(filter);
    // Their names have those of other blocks in them.
    cases.retain(|c| c.name.starts_with("encoder") == filter.starts_with("encoder"));
    assert!(!cases.is_empty(), "no case matches {filter:?}");
    for case in cases {
        match run(&case, device, &oracle, seed) {
            Ok(outcome) => assert!(!outcome.passed(), "{flaw} went unnoticed: {outcome}"),
            Err(CaseError::Contract { .. }) => {}
            Err(error) => panic!("{flaw}: {error}"),
        }
    }
}

/// What is wrong, which cases must notice, and the edit that makes it so.
type Flaw = (&'static str, &'static str, fn(&mut Block));

/// An edit of an attention block; others are left alone.
macro_rules! attention {
    (|$spec:ident, $weights:ident| $edit:expr) => {
        |block| {
            #[allow(unused_variables)]
            if let Block::Attention { spec: $spec, weights: $weights } = block {
                $edit;
            }
        }
    };
}

#[test]
fn wrong_attention_fails() {
    let flaws: [Flaw; 14] = [
        ("window off by one", "attention/f32 /window", attention!(|s, w| s.window = s.window.map(|n| n + 1))),
        (
            "the other pairing",
            "attention/f32 rope",
            attention!(|s, w| s.rope.style = match s.rope.style {
                RopeStyle::Normal => RopeStyle::Neox,
                RopeStyle::Neox => RopeStyle::Normal,
            }),
        ),
        (
            "one pair too few",
            "attention/f32 rope-normal",
            attention!(|s, w| s.rope.frequencies = s.rope.frequencies[1..].into()),
        ),
        ("no magnitude", "rope-yarn", attention!(|s, w| s.rope.magnitude = 1.0)),
        ("scale off by 1 %", "attention/f32 kv-f32/gqa", attention!(|s, w| s.scale *= 1.01)),
        ("scale off by 20 %", "attention/ mixed", attention!(|s, w| s.scale *= 1.2)),
        ("no soft cap", "attention/ /cap", attention!(|s, w| s.soft_cap = None)),
        (
            "norms of q and k swapped",
            "qk-norm",
            attention!(|s, w| {
                let w = w.as_mut();
                std::mem::swap(&mut w.q_norm, &mut w.k_norm)
            }),
        ),
        ("no bias on q", "/bias", attention!(|s, w| w.q_bias = None)),
        ("no bias on k", "/bias", attention!(|s, w| w.k_bias = None)),
        ("no bias on v", "/bias", attention!(|s, w| w.v_bias = None)),
        ("no bias on o", "/bias-all", attention!(|s, w| w.o_bias = None)),
        ("no post norm", "attention/ /post", attention!(|s, w| (s.post_norm, w.post_norm) = (None, None))),
        ("no offset", "attention/ /offset", attention!(|s, w| s.norm.weight_offset = 0.0)),
    ];
    for (flaw, filter, block) in flaws {
        must_fail(flaw, filter, &reference().block(block));
    }
}

#[test]
fn wrong_cache_use_fails() {
    let wrong_page: fn(&mut Slice) = |slice| {
        if slice.start > 0 {
            slice.tables[0].rotate_left(1);
        }
    };
    must_fail("pages out of order", "attention/f32 past512", &reference().slice(wrong_page));
    // A shift of all positions alike is invisible to rotary scores; one of new positions alone is not.
    let late: fn(&mut Slice) = |slice| {
        if slice.start > 0 && slice.tokens.len() == 1 {
            slice.start -= 1;
        }
    };
    must_fail("position off by one", "attention/f32 past31/", &reference().slice(late));
}

#[test]
fn wrong_states_fail() {
    let taps: fn(&mut Block) = |block| {
        if let Block::ShortConv { weights, .. } = block {
            weights.conv.span.offset += 4;
        }
    };
    must_fail("taps of the position before", "short_conv/", &reference().block(taps));
    let fresh: fn(&mut Slice) = |slice| {
        let start = std::mem::take(&mut slice.start);
        slice.snapshots.iter_mut().for_each(|position| *position -= start);
    };
    must_fail("a state that is not read", "short_conv/f32 ragged", &reference().slice(fresh));
    let early: fn(&mut Slice) = |slice| {
        slice.snapshots.iter_mut().filter(|p| **p > slice.start + 1).for_each(|p| *p -= 1);
    };
    must_fail("a snapshot of the row before", "short_conv/f32 many", &reference().slice(early));
    let lost: fn(&mut Slice) = |slice| {
        if slice.snapshots.is_empty() && slice.start > 0 {
            slice.tables[0].rotate_left(1);
        }
    };
    must_fail("states read from where they go", "short_conv/f32 ragged", &reference().slice(lost));
}

#[test]
fn wrong_ffn_fails() {
    let swapped: fn(&mut Block) = |block| {
        if let Block::Ffn { weights, .. } = block {
            let weights = weights.as_mut();
            std::mem::swap(&mut weights.gate, &mut weights.up);
        }
    };
    must_fail("gate and up swapped", "ffn/ t4", &reference().block(swapped));
    let relabelled: fn(&mut Block) = |block| {
        if let Block::Ffn { spec, .. } = block {
            spec.activation = match spec.activation {
                Activation::Silu => Activation::GeluTanh,
                Activation::GeluTanh => Activation::Silu,
            };
        }
    };
    // Two-bit weights are too coarse to tell them apart with every draw.
    must_fail("the other activation", "ffn/f", &reference().block(relabelled));
    let no_post: fn(&mut Block) = |block| {
        if let Block::Ffn { spec, weights } = block {
            (spec.post_norm, weights.post_norm) = (None, None);
        }
    };
    must_fail("no post norm", "ffn/ post", &reference().block(no_post));
    let nan: fn(&mut [f32]) = |rows| rows[0] = f32::NAN;
    must_fail("one value is no number", "ffn/ t1/", &reference().residual(nan));
    let noisy: fn(&mut [f32]) = |rows| {
        let last = rows.len() - 1;
        rows[last] += 1.0;
    };
    must_fail("one value is off", "ffn/ t33", &reference().residual(noisy));
}

#[test]
fn wrong_head_and_embedding_fail() {
    let no_cap: fn(&mut Block) = |block| {
        if let Block::Head { spec, .. } = block {
            spec.soft_cap = None;
        }
    };
    must_fail("no soft cap", "linear/ /cap", &reference().block(no_cap));
    let eps: fn(&mut Block) = |block| {
        if let Block::Head { spec, .. } = block {
            spec.norm.eps = 0.1;
        }
    };
    must_fail("epsilon of 0.1", "linear/ x1536", &reference().block(eps));
    let scale: fn(&mut Block) = |block| {
        if let Block::Embedding { spec, .. } = block {
            spec.scale *= 1.0001;
        }
    };
    must_fail("scale off by 0.01 %", "embedding/", &reference().block(scale));
}

#[test]
fn wrong_encoders_fail() {
    let flaws: [Flaw; 9] = [
        ("another token type", "encoder_embedding/f32", |block| {
            if let Block::EncoderEmbedding { weights, .. } = block {
                weights.token_types.span.offset += 4;
            }
        }),
        ("positions off by one", "encoder_embedding/f32", |block| {
            if let Block::EncoderEmbedding { spec, weights } = block {
                weights.positions.span.offset += 4 * spec.width as u64;
            }
        }),
        ("scale off by 1 %", "encoder_attention/f32 +", |block| {
            if let Block::EncoderAttention { spec, .. } = block {
                spec.scale *= 1.01;
            }
        }),
        ("queries and keys swapped", "encoder_attention/ +", |block| {
            if let Block::EncoderAttention { weights, .. } = block {
                let w = weights.as_mut();
                std::mem::swap(&mut w.q, &mut w.k);
            }
        }),
        ("biases of q and v swapped", "encoder_attention/", |block| {
            if let Block::EncoderAttention { weights, .. } = block {
                let w = weights.as_mut();
                std::mem::swap(&mut w.q_bias, &mut w.v_bias);
            }
        }),
        ("epsilon of 0.1 in attention", "encoder_attention/", |block| {
            if let Block::EncoderAttention { spec, .. } = block {
                spec.norm_eps = 0.1;
            }
        }),
        ("epsilon of 0.1", "encoder_ffn/", |block| {
            if let Block::EncoderFfn { spec, .. } = block {
                spec.norm_eps = 0.1;
            }
        }),
        ("another bias of the hidden layer", "encoder_ffn/", |block| {
            if let Block::EncoderFfn { weights, .. } = block {
                weights.up_bias.span.offset += 4;
            }
        }),
        ("weight and bias of the norm swapped", "encoder_ffn/", |block| {
            if let Block::EncoderFfn { weights, .. } = block {
                let norm = &mut weights.norm;
                std::mem::swap(&mut norm.weight, &mut norm.bias);
            }
        }),
    ];
    for (flaw, filter, block) in flaws {
        must_fail(flaw, filter, &reference().block(block));
    }
    let turned: fn(&mut Slice) = |slice| slice.tokens.reverse();
    must_fail("tokens in another order", "encoder_embedding/", &reference().slice(turned));
}

#[test]
fn a_seed_names_a_comparison() {
    let case = select("ffn/f32").remove(0);
    let noisy: fn(&mut [f32]) = |rows| rows.iter_mut().for_each(|v| *v *= 1.000_001);
    let device = reference().residual(noisy);
    let at = |seed| run(&case, &device, &ReferenceDevice::new(), seed).unwrap();
    assert_eq!(at(7), at(7));
    assert_ne!(at(7).nrmse, at(8).nrmse);
}
