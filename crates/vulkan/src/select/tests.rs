//! What holds for all kinds of kernels.

use unicorn_core::{KvType, TensorType};

use super::test_gpus::gpu;
use super::*;

#[test]
fn a_row_never_leaves_its_subgroup_and_a_workgroup_fits() {
    let gpus = [
        gpu("780M", 32, 64, 64, 1024, 32, true),
        gpu("H100", 32, 32, 32, 1024, 32, false),
        gpu("Arc", 8, 32, 32, 1024, 64, false),
        gpu("llvmpipe", 8, 8, 8, 1024, 32, false),
    ];
    for gpu in &gpus {
        for cols in [32, 64, 576, 1536, 4096, 14336] {
            let kernel = linear_vector(TensorType::Q4_K, [4096, cols], 1, Fold::default(), gpu);
            let (threads, lanes) = (kernel.constants[0], kernel.constants[2]);
            assert!(lanes <= subgroup(gpu) && lanes.is_power_of_two(), "{} {cols}", gpu.name);
            assert_eq!(threads, lanes * VECTOR_ROWS as u32);
            assert_eq!(workgroup(threads as usize, gpu), threads, "{} {cols}", gpu.name);
            assert!(crate::shaders::words(&kernel.shader).is_some());
        }
    }
}

#[test]
fn some_tokens_of_float_weights_go_to_the_matrix_units_of_discrete_gpus() {
    let h100 = crate::profiles::recorded("h100");
    let apu = crate::profiles::recorded("780m");
    for (gpu, float, most) in [(&h100, true, 2), (&h100, false, 8), (&apu, true, 8), (&apu, false, 8)] {
        assert_eq!(path(most, float, gpu), Path::Vector);
        assert_eq!(path(most + 1, float, gpu), Path::Matrix);
    }
}

#[test]
fn every_type_has_its_kernels() {
    let gpu = gpu("H100", 32, 32, 32, 1024, 32, false);
    for ty in TensorType::ALL {
        for activation in [None, Some(0)] {
            let kernel = linear_vector(ty, [512, 512], 1, Fold { activation, ..Fold::default() }, &gpu);
            assert!(crate::shaders::words(&kernel.shader).is_some(), "{}", kernel.shader);
        }
        let embedding = format!("embedding_{}", ty.name().to_lowercase());
        assert!(crate::shaders::words(&embedding).is_some(), "{embedding}");
    }
}

#[test]
fn few_recordings_serve_all_lengths() {
    let served: std::collections::BTreeSet<_> = (1..=8192).map(served_positions).collect();
    assert_eq!(served.len(), 6);
    for positions in [1, 256, 257, 5000] {
        assert!(served_positions(positions) >= positions);
    }
}

#[test]
fn decode_splits_cover_every_row_up_to_the_longest() {
    // `split_positions` of the shader.
    let size = |n: usize, wanted: usize| 64 * n.div_ceil(64 * wanted);
    for wanted in [4, 16, 44, 128] {
        for longest in [1usize, 64, 65, 500, 1024, 1025, 5000, 20_000, 131_072] {
            let most = (1..=longest).map(|n| n.div_ceil(size(n, wanted))).max();
            assert!(most.is_some_and(|m| m <= decode_splits(longest, wanted)), "{longest} {wanted}");
            // Every dispatch of a batch finds room for its partial results.
            let splits = decode_splits(longest, wanted);
            for rows in [1, 8, 9, 64, 1000, 5000] {
                let dispatched = rows.min(decode_rows(splits));
                assert!(dispatched > 0 && dispatched * splits <= decode_records(rows, longest));
            }
            assert!(decode_rows(splits) >= VECTOR_TOKENS);
        }
    }
}

#[test]
fn decode_tiles_fit_shared_memory_and_registers() {
    let gpus = [gpu("H100", 32, 32, 32, 1024, 32, false), gpu("llvmpipe", 8, 8, 8, 1024, 32, false)];
    for gpu in &gpus {
        for head_dim in [8, 16, 64, 80, 96, 128, 256] {
            for group in 1..=16 {
                for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
                    let t = decode_tiles(head_dim, group, kv, gpu);
                    let floats = (t.part + 2) * head_dim as u32
                        + t.subgroups * t.part * (head_dim as u32 + 2)
                        + t.part * 128;
                    assert!(floats * 4 < 32 << 10, "{head_dim} {group}");
                    assert!(t.part * t.parts >= group as u32 && t.part * (t.parts - 1) < group as u32);
                    assert_eq!(t.threads, t.subgroups * subgroup(gpu));
                    // Sums of the lots share memory with those of the subgroups.
                    assert!(t.lots >= 1 && t.lots <= t.subgroups && t.flight >= 1);
                    assert!(subgroup(gpu).is_multiple_of(t.lanes));
                }
            }
        }
    }
}
