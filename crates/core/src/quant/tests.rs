use super::k_affine::pack_scales_6bit;
use super::*;
use std::path::PathBuf;

fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/quant").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn expanded(ty: TensorType, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / ty.block_bytes() * ty.block_len()];
    dequantize(ty, bytes, &mut out);
    out
}

/// Root of the mean square.
fn rms(values: impl Iterator<Item = f32> + Clone) -> f64 {
    let n = values.clone().count() as f64;
    (values.map(|v| (v as f64).powi(2)).sum::<f64>() / n).sqrt()
}

#[test]
fn dequantize_gives_the_same_bits_as_the_gguf_package() {
    for ty in TensorType::ALL {
        let name = ty.name().to_lowercase();
        let blocks = golden(&format!("{name}.blocks"));
        assert!(blocks.len() > 4 * ty.block_bytes(), "{ty}: golden data is short");
        let got: Vec<u8> = expanded(ty, &blocks).iter().flat_map(|v| v.to_le_bytes()).collect();
        let want = golden(&format!("{name}.f32"));
        assert_eq!(got.len(), want.len(), "{ty}");
        let differing = got.chunks(4).zip(want.chunks(4)).position(|(a, b)| a != b);
        assert_eq!(differing, None, "{ty}: first differing element");
    }
}

#[test]
fn quantize_comes_back_within_the_error_of_the_type() {
    // Relative error of rounding normal values; half a step of a uniform code over about six deviations.
    let tolerance = |ty| match ty {
        TensorType::F32 => 0.0,
        TensorType::F16 => 3e-4,
        TensorType::BF16 => 2.5e-3,
        TensorType::Q8_0 => 0.007,
        TensorType::Q6_K => 0.025,
        TensorType::Q5_K | TensorType::Q5_1 | TensorType::Q5_0 => 0.05,
        TensorType::Q4_K | TensorType::Q4_1 | TensorType::Q4_0 => 0.1,
        TensorType::IQ4_NL | TensorType::IQ4_XS => 0.09,
        TensorType::MXFP4 => 0.14,
        TensorType::Q3_K => 0.2,
        TensorType::Q2_K => 0.36,
    };
    let mut random = Random::new(1);
    for deviation in [1.0, 0.02, 300.0] {
        let values = random.normals(8192, deviation);
        for ty in TensorType::ALL {
            let mut bytes = Vec::new();
            quantize(ty, &values, &mut bytes);
            assert_eq!(bytes.len(), ty.row_bytes(values.len()).unwrap());
            let back = expanded(ty, &bytes);
            let error = rms(back.iter().zip(&values).map(|(a, b)| a - b)) / rms(values.iter().copied());
            assert!(error <= tolerance(ty), "{ty}: relative error {error} at deviation {deviation}");
        }
    }
}

#[test]
fn quantize_keeps_zeros_and_signs() {
    for ty in TensorType::ALL {
        let mut bytes = Vec::new();
        quantize(ty, &[0.0; 256], &mut bytes);
        assert!(expanded(ty, &bytes).iter().all(|v| *v == 0.0), "{ty}: zeros");
        // Blocks of one sign exercise the minimum's clamp at zero and scales that saturate on one side.
        for sign in [1.0, -1.0] {
            let values: Vec<f32> = (0..256).map(|i| sign * (1.0 + (i * 37 % 256) as f32 / 256.0)).collect();
            bytes.clear();
            quantize(ty, &values, &mut bytes);
            let back = expanded(ty, &bytes);
            let error = rms(back.iter().zip(&values).map(|(a, b)| a - b)) / rms(values.iter().copied());
            assert!(error < 0.2, "{ty}: relative error {error} for sign {sign}");
        }
    }
}

#[test]
fn packed_scales_come_back() {
    let mut random = Random::new(2);
    for _ in 0..100 {
        let scales: [u8; 8] = std::array::from_fn(|_| random.below(64) as u8);
        let mins: [u8; 8] = std::array::from_fn(|_| random.below(64) as u8);
        let packed = pack_scales_6bit(&scales, &mins);
        for g in 0..8 {
            assert_eq!(scale_min_6bit(&packed, g), (scales[g], mins[g]));
        }
    }
}

#[test]
fn random_blocks_are_finite_and_of_weight_size() {
    for ty in TensorType::ALL {
        let bytes = random_blocks(ty, 16, 2048, 3);
        assert_eq!(bytes, random_blocks(ty, 16, 2048, 3), "{ty}: not deterministic");
        assert_ne!(bytes, random_blocks(ty, 16, 2048, 4), "{ty}: the seed does not matter");
        let values = expanded(ty, &bytes);
        let (size, mean) = (rms(values.iter().copied()), values.iter().sum::<f32>() / values.len() as f32);
        assert!(values.iter().all(|v| v.is_finite()), "{ty}");
        assert!((0.01..0.035).contains(&size) && mean.abs() < 0.01, "{ty}: rms {size} mean {mean}");
    }
}

#[test]
#[should_panic(expected = "Q4_0: 17 bytes")]
fn partial_blocks_are_refused() {
    dequantize(TensorType::Q4_0, &[0; 17], &mut [0.0; 32]);
}
