//! Every type, level and shape against float64 products of core's scalar dequantizer. Inputs are fresh on every run; a failure
//! prints the seed.

use std::time::SystemTime;

use unicorn_core::quant::{Random, dequantize, quantize, random_blocks};
use unicorn_core::{Activation, TensorType, Weight, WeightError, WeightSource, WeightSpan};

use super::activations::INT_TILE;
use super::*;
use crate::simd::level::SimdLevel;

/// Weights in memory.
pub(super) struct Bytes(pub Vec<u8>);

impl WeightSource for Bytes {
    fn read(&self, span: &WeightSpan, offset: u64, buf: &mut [u8]) -> Result<(), WeightError> {
        let (start, len) = ((span.offset + offset) as usize, buf.len());
        let error = WeightError::OutOfSpan { offset, len: len as u64, span: span.bytes };
        buf.copy_from_slice(self.0.get(start..start + len).ok_or(error)?);
        Ok(())
    }
}

pub(super) fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = now.as_nanos() as u64;
    println!("seed {seed}");
    seed
}

/// A weight with its elements as the reference reads them.
struct Case {
    weight: Weight,
    source: Bytes,
    values: Vec<f64>,
}

fn case(ty: TensorType, rows: usize, cols: usize, random: &mut Random) -> Case {
    // Half of the cases have all bit patterns, half look like rounded weights.
    let bytes = if random.below(2) == 0 {
        random_blocks(ty, rows, cols, random.bits())
    } else {
        let mut bytes = Vec::new();
        for _ in 0..rows {
            quantize(ty, &random.normals(cols, 0.05), &mut bytes);
        }
        bytes
    };
    let mut values = vec![0f32; rows * cols];
    dequantize(ty, &bytes, &mut values);
    let span = WeightSpan { file: 0, offset: 0, bytes: bytes.len() as u64 };
    let weight = Weight { name: format!("{ty}"), ty, rows, cols, span };
    Case { weight, source: Bytes(bytes), values: values.into_iter().map(f64::from).collect() }
}

pub(super) fn fill(x: &mut PackedActivations, values: &[f32], cols: usize, forms: ActivationForms) {
    x.reset(values.len() / cols, cols, forms);
    for (row, v) in values.chunks_exact(cols).enumerate() {
        // SAFETY: one thread.
        unsafe { x.quantize_row(row, v) };
    }
}

/// The activations as the kernel sees them.
fn seen(x: &PackedActivations, values: &[f32]) -> Vec<f64> {
    let cols = x.cols();
    let mut out: Vec<f64> = values.iter().map(|v| *v as f64).collect();
    if x.forms().contains(ActivationForms::FLOATS) {
        return out;
    }
    for (i, v) in out.iter_mut().enumerate() {
        let (row, k) = (i / cols, i % cols);
        // SAFETY: inside the buffers, in forms that are filled.
        unsafe {
            let tile = x.int_tile(row / INT_TILE, k / 32);
            let t = row % INT_TILE;
            let scale = f32::from_bits(*tile.aux.add(t) as u32);
            let quad = k % 32 / 4 * tile.width + t;
            let code = if x.forms().contains(ActivationForms::BYTES) {
                *tile.bytes.add(quad * 4 + k % 4) as i8 as f64
            } else {
                let pair = (k % 32 / 4 * 2 + k % 2) * tile.width + t;
                *tile.words.cast::<i16>().add(pair * 2 + k % 4 / 2) as f64
            };
            *v = scale as f64 * code;
        }
    }
    out
}

/// `(sum w x, sum |w x|)`.
fn dot(w: &[f64], x: &[f64]) -> (f64, f64) {
    w.iter().zip(x).fold((0.0, 0.0), |(s, m), (w, x)| (s + w * x, m + (w * x).abs()))
}

fn shapes(ty: TensorType) -> Vec<(usize, usize)> {
    match ty.block_len() {
        1 => vec![(1, 1), (17, 7), (33, 100), (40, 576), (64, 1536), (5, 257)],
        32 => vec![(1, 32), (17, 64), (33, 96), (64, 576), (40, 1536), (5, 1056)],
        _ => vec![(1, 256), (17, 512), (33, 768), (40, 1536), (5, 2304)],
    }
}

fn product(w: &PackedMatrix, x: &PackedActivations, epilogue: Epilogue<'_>, out: &mut [f32], stride: usize) {
    let view = OutputView::new(out, w.rows(), stride);
    // SAFETY: one thread.
    unsafe { linear(w, x, 0..w.panels(), 0..x.rows(), view, epilogue) };
}

fn check_type(ty: TensorType, tokens: &[usize]) {
    let mut random = Random::new(fresh_seed());
    for level in SimdLevel::available() {
        for (rows, cols) in shapes(ty) {
            let c = case(ty, rows, cols, &mut random);
            let w = PackedMatrix::load(&c.weight, &c.source, level).unwrap();
            let mut x = PackedActivations::new();
            for n in tokens {
                let values = random.normals(n * cols, 1.0);
                fill(&mut x, &values, cols, w.activation_forms());
                let exact = seen(&x, &values);
                let mut out = vec![f32::NAN; n * rows];
                product(&w, &x, Epilogue::Store, &mut out, rows);
                for r in 0..*n {
                    let raw: Vec<f64> = values[r * cols..][..cols].iter().map(|v| *v as f64).collect();
                    for i in 0..rows {
                        let (got, row) = (out[r * rows + i] as f64, &c.values[i * cols..][..cols]);
                        let (want, size) = dot(row, &exact[r * cols..][..cols]);
                        let at = format!("{ty} {level} {rows}x{cols}, row {r} of {n}, feature {i}");
                        assert!((got - want).abs() <= 1e-5 * size, "{at}: {got} for {want} (sizes {size})");
                        // Rounding activations to 8 bits: half a step of 1/127 of the group's maximum, averaged over many terms.
                        let (want, size) = dot(row, &raw);
                        let slack = 0.03 * size * (32.0 / cols.max(32) as f64).sqrt() + 1e-6 * size;
                        assert!(
                            (got - want).abs() <= slack,
                            "{at}: {got} for {want} unrounded (sizes {size})"
                        );
                    }
                }
            }
        }
    }
}

macro_rules! type_tests {
    ($($name:ident = $ty:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            check_type(TensorType::$ty, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 33]);
        }
    )*};
}

type_tests!(
    linear_f32 = F32,
    linear_f16 = F16,
    linear_bf16 = BF16,
    linear_q4_0 = Q4_0,
    linear_q4_1 = Q4_1,
    linear_q5_0 = Q5_0,
    linear_q5_1 = Q5_1,
    linear_q8_0 = Q8_0,
    linear_q2_k = Q2_K,
    linear_q3_k = Q3_K,
    linear_q4_k = Q4_K,
    linear_q5_k = Q5_K,
    linear_q6_k = Q6_K,
    linear_iq4_nl = IQ4_NL,
    linear_iq4_xs = IQ4_XS,
    linear_mxfp4 = MXFP4,
);

/// The largest sums that a type can produce: every code and every activation at its extreme.
#[test]
fn extreme_codes_do_not_overflow() {
    let cols = 256;
    for level in SimdLevel::available() {
        for ty in TensorType::ALL.into_iter().filter(|t| t.is_quantized()) {
            for pattern in [0x00u8, 0xff] {
                let mut bytes = random_blocks(ty, 16, cols, 1);
                let scales: Vec<usize> = match ty {
                    TensorType::Q2_K => vec![80, 81, 82, 83],
                    TensorType::Q3_K => vec![108, 109],
                    TensorType::Q6_K => vec![208, 209],
                    TensorType::MXFP4 => vec![0],
                    TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => {
                        vec![0, 1, 2, 3]
                    }
                    _ => vec![0, 1],
                };
                for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                    for (i, b) in block.iter_mut().enumerate() {
                        if !scales.contains(&i) {
                            *b = pattern;
                        }
                    }
                    if ty == TensorType::Q8_0 && pattern == 0 {
                        block[2..].fill(0x80);
                    }
                }
                let mut values = vec![0f32; 16 * cols];
                dequantize(ty, &bytes, &mut values);
                let span = WeightSpan { file: 0, offset: 0, bytes: bytes.len() as u64 };
                let weight = Weight { name: "w".into(), ty, rows: 16, cols, span };
                let w = PackedMatrix::load(&weight, &Bytes(bytes), level).unwrap();
                for sign in [1.0f32, -1.0] {
                    for n in [1, 4] {
                        let input = vec![sign; n * cols];
                        let mut x = PackedActivations::new();
                        fill(&mut x, &input, cols, w.activation_forms());
                        let mut out = vec![0f32; n * 16];
                        product(&w, &x, Epilogue::Store, &mut out, 16);
                        for (i, got) in out.iter().enumerate() {
                            let row: Vec<f64> =
                                values[i % 16 * cols..][..cols].iter().map(|v| *v as f64).collect();
                            let (want, size) = dot(&row, &vec![sign as f64; cols]);
                            let error = (*got as f64 - want).abs();
                            assert!(error <= 1e-5 * size, "{ty} {level} {pattern} {sign}: {got} for {want}");
                        }
                    }
                }
            }
        }
    }
}

/// The same row gives the same bits alone, in any batch, in any range of rows and panels.
#[test]
fn results_do_not_depend_on_the_batch() {
    let mut random = Random::new(fresh_seed());
    for level in SimdLevel::available() {
        for ty in TensorType::ALL {
            let (rows, cols, n) = (72, 1536, if level == SimdLevel::Scalar { 9 } else { 131 });
            let c = case(ty, rows, cols, &mut random);
            let w = PackedMatrix::load(&c.weight, &c.source, level).unwrap();
            let values = random.normals(n * cols, 1.0);
            let (mut all, mut one) = (PackedActivations::new(), PackedActivations::new());
            fill(&mut all, &values, cols, w.activation_forms());
            let mut batch = vec![0f32; n * rows];
            product(&w, &all, Epilogue::Store, &mut batch, rows);
            for r in (0..n).filter(|r| *r < 9 || r % 7 == 0 || *r > 115) {
                fill(&mut one, &values[r * cols..][..cols], cols, w.activation_forms());
                let mut single = vec![0f32; rows];
                product(&w, &one, Epilogue::Store, &mut single, rows);
                assert_eq!(single, batch[r * rows..][..rows], "{ty} {level} row {r}");
            }
            let mut parts = vec![0f32; n * rows];
            let rows_cut = [0, 1, n / 3, n / 2 + 1, n];
            for range in rows_cut.windows(2) {
                for panel in 0..w.panels() {
                    let view = OutputView::new(&mut parts, rows, rows);
                    // SAFETY: one thread.
                    unsafe {
                        linear(&w, &all, panel..panel + 1, range[0]..range[1], view, Epilogue::Store);
                    }
                }
            }
            assert!(parts == batch, "{ty} {level}: cut in ranges");
        }
    }
}

#[test]
fn epilogues() {
    let mut random = Random::new(fresh_seed());
    for level in SimdLevel::available() {
        for n in [1, 5] {
            let (rows, cols, stride) = (37, 64, 40);
            let c = case(TensorType::Q8_0, rows, cols, &mut random);
            let w = PackedMatrix::load(&c.weight, &c.source, level).unwrap();
            let values = random.normals(n * cols, 1.0);
            let bias = random.normals(rows, 1.0);
            let before = random.normals(n * stride, 1.0);
            let mut x = PackedActivations::new();
            fill(&mut x, &values, cols, w.activation_forms());
            let run = |epilogue: Epilogue<'_>| {
                let mut out = before.clone();
                product(&w, &x, epilogue, &mut out, stride);
                out
            };
            let (plain, added) = (run(Epilogue::Store), run(Epilogue::Add));
            let (biased, both) = (run(Epilogue::Bias(&bias)), run(Epilogue::AddBias(&bias)));
            for i in 0..n * stride {
                let column = i % stride;
                if column >= rows {
                    assert_eq!(
                        [plain[i], added[i], biased[i], both[i]],
                        [before[i]; 4],
                        "padding was written"
                    );
                    continue;
                }
                assert_eq!(added[i], plain[i] + before[i]);
                assert_eq!(biased[i], plain[i] + bias[column]);
                assert_eq!(both[i], plain[i] + bias[column] + before[i]);
            }
        }
    }
}

#[test]
fn gated_products() {
    let mut random = Random::new(fresh_seed());
    let mixes = [
        (TensorType::Q4_0, TensorType::Q4_0),
        (TensorType::Q5_0, TensorType::Q8_0),
        (TensorType::F16, TensorType::F16),
        (TensorType::F16, TensorType::Q4_K),
    ];
    for level in SimdLevel::available() {
        for (ty_gate, ty_up) in mixes {
            for n in [1, 3, 130] {
                let (rows, cols) = (41, 256);
                let (a, b) = (case(ty_gate, rows, cols, &mut random), case(ty_up, rows, cols, &mut random));
                let gate = PackedMatrix::load(&a.weight, &a.source, level).unwrap();
                let up = PackedMatrix::load(&b.weight, &b.source, level).unwrap();
                let values = random.normals(n * cols, 2.0);
                let mut x = PackedActivations::new();
                fill(&mut x, &values, cols, gate.activation_forms() | up.activation_forms());
                let (mut g, mut u) = (vec![0f32; n * rows], vec![0f32; n * rows]);
                product(&gate, &x, Epilogue::Store, &mut g, rows);
                product(&up, &x, Epilogue::Store, &mut u, rows);
                for activation in [Activation::Silu, Activation::GeluTanh] {
                    let mut out = vec![0f32; n * rows];
                    for range in [0..2, 2..gate.panels()] {
                        let view = OutputView::new(&mut out, rows, rows);
                        // SAFETY: one thread.
                        unsafe { linear_glu(&gate, &up, &x, range, 0..n, activation, view) };
                    }
                    for i in 0..n * rows {
                        let z = g[i] as f64;
                        let act = match activation {
                            Activation::Silu => z / (1.0 + (-z).exp()),
                            Activation::GeluTanh => {
                                let u = (2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z * z * z);
                                0.5 * z * (1.0 + u.tanh())
                            }
                        };
                        let want = act * u[i] as f64;
                        let slack = 1e-5 * (want.abs() + (z * u[i] as f64).abs()) + 1e-12;
                        let got = out[i] as f64;
                        assert!((got - want).abs() <= slack, "{ty_gate} {ty_up} {level}: {got} for {want}");
                    }
                }
            }
        }
    }
}

#[test]
fn rows_expand_to_the_reference() {
    let mut random = Random::new(fresh_seed());
    for ty in TensorType::ALL {
        let (rows, cols) = (35, 512);
        let c = case(ty, rows, cols, &mut random);
        let w = PackedMatrix::load(&c.weight, &c.source, SimdLevel::detect()).unwrap();
        for r in [0, 15, 16, 34] {
            let mut out = vec![0f32; cols];
            w.dequantize_row(r, &mut out);
            for k in 0..cols {
                let want = c.values[r * cols + k];
                let slack = 1e-6 * want.abs() + 1e-9;
                assert!(
                    (out[k] as f64 - want).abs() <= slack,
                    "{ty} row {r} column {k}: {} for {want}",
                    out[k]
                );
            }
        }
    }
}

#[test]
fn panels_fill_in_parallel() {
    let mut random = Random::new(fresh_seed());
    let c = case(TensorType::Q4_K, 100, 512, &mut random);
    let level = SimdLevel::detect();
    let whole = PackedMatrix::load(&c.weight, &c.source, level).unwrap();
    let parts = PackedMatrix::allocate(TensorType::Q4_K, 100, 512, level).unwrap();
    std::thread::scope(|scope| {
        for range in [0..3, 3..4, 4..7] {
            let (parts, c) = (&parts, &c);
            // SAFETY: the ranges are disjoint.
            scope.spawn(move || unsafe { parts.fill_panels(&c.weight, &c.source, range).unwrap() });
        }
    });
    let (mut a, mut b) = (vec![0f32; 512], vec![0f32; 512]);
    for r in 0..100 {
        whole.dequantize_row(r, &mut a);
        parts.dequantize_row(r, &mut b);
        assert_eq!(a, b);
    }
}

#[test]
fn bad_requests_are_errors() {
    assert!(matches!(
        PackedMatrix::allocate(TensorType::Q4_K, 16, 100, SimdLevel::Scalar),
        Err(PackError::Columns { .. })
    ));
    assert!(matches!(
        PackedMatrix::allocate(TensorType::F32, usize::MAX / 8, 1 << 20, SimdLevel::Scalar),
        Err(PackError::OutOfMemory { .. })
    ));
    let mut random = Random::new(fresh_seed());
    let mut c = case(TensorType::Q8_0, 20, 64, &mut random);
    c.source.0.truncate(1000);
    let loaded = PackedMatrix::load(&c.weight, &c.source, SimdLevel::Scalar);
    assert!(matches!(loaded, Err(PackError::Read(_))));
}

/// NaN and infinities must not turn into plausible numbers.
#[test]
fn broken_activations_stay_broken() {
    let mut random = Random::new(fresh_seed());
    for level in SimdLevel::available() {
        for ty in [TensorType::Q4_0, TensorType::Q8_0, TensorType::Q6_K, TensorType::F16] {
            let c = case(ty, 16, 256, &mut random);
            let w = PackedMatrix::load(&c.weight, &c.source, level).unwrap();
            for bad in [f32::NAN, f32::INFINITY] {
                let mut values = random.normals(256, 1.0);
                values[77] = bad;
                let mut x = PackedActivations::new();
                fill(&mut x, &values, 256, w.activation_forms());
                let mut out = vec![0f32; 16];
                product(&w, &x, Epilogue::Store, &mut out, 16);
                assert!(out.iter().filter(|v| v.is_finite()).count() <= 2, "{ty} {level} {bad}: {out:?}");
            }
        }
    }
}

#[test]
fn zero_and_tiny_groups() {
    for value in [0.0f32, 1e-38, -0.0] {
        let mut x = PackedActivations::new();
        fill(&mut x, &[value; 64], 64, ActivationForms::BYTES);
        assert!(seen(&x, &[value; 64]).iter().all(|v| *v == 0.0));
    }
}
