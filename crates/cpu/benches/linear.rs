//! Matrix products per type: decode (one row, weights from memory) in GB/s and prefill (many rows) in GMAC/s, on one thread, with
//! the share of the measured roof.
//!
//! `cargo bench -p unicorn-cpu --bench linear [-- TYPE..]`

use std::time::Instant;

use unicorn_core::quant::{Random, random_blocks};
use unicorn_core::{RateKind, TensorType, Weight, WeightError, WeightSource, WeightSpan};
use unicorn_cpu::simd::linear::{Epilogue, OutputView, PackedActivations, PackedMatrix, linear};
use unicorn_cpu::simd::{SimdLevel, roofline};

/// Features and columns of one matrix: the width of a small model.
const SHAPES: [(usize, usize); 2] = [(1536, 576), (576, 1536)];
/// Rows of a prefill.
const PREFILL_ROWS: usize = 256;
/// Weights per type: larger than a last-level cache.
const POOL_BYTES: usize = 96 << 20;

struct Bytes(Vec<u8>);

impl WeightSource for Bytes {
    fn read(&self, _: &WeightSpan, offset: u64, buf: &mut [u8]) -> Result<(), WeightError> {
        buf.copy_from_slice(&self.0[offset as usize..][..buf.len()]);
        Ok(())
    }
}

fn main() {
    let wanted: Vec<TensorType> = std::env::args().skip(1).filter_map(|a| TensorType::parse(&a)).collect();
    let level = SimdLevel::detect();
    let roof = roofline::measure(level, 1);
    println!(
        "{level}, one thread: read {:.1} GB/s, int8 {:.1} GMAC/s, f32 {:.1} GMAC/s",
        roof.read_bytes_per_second / 1e9,
        roof.integer_ops_per_second / 2e9,
        roof.float_ops_per_second / 2e9
    );
    println!("type    shape        load GB/s   decode GB/s  roof   prefill GMAC/s  roof");
    for ty in TensorType::ALL {
        if !wanted.is_empty() && !wanted.contains(&ty) {
            continue;
        }
        for (rows, cols) in SHAPES {
            if cols % ty.block_len() == 0 {
                bench(ty, rows, cols, level, &roof);
            }
        }
    }
}

fn bench(ty: TensorType, rows: usize, cols: usize, level: SimdLevel, roof: &unicorn_core::Roofline) {
    let bytes = random_blocks(ty, rows, cols, 1);
    let span = WeightSpan { file: 0, offset: 0, bytes: bytes.len() as u64 };
    let weight = Weight { name: "w".into(), ty, rows, cols, span };
    let source = Bytes(bytes);
    let load = || match PackedMatrix::load(&weight, &source, level) {
        Ok(matrix) => matrix,
        Err(error) => panic!("{error}"),
    };
    let copies = POOL_BYTES / source.0.len() + 1;
    let pool: Vec<PackedMatrix> = (0..copies).map(|_| load()).collect();
    let load_rate = source.0.len() as f64 / best(20, || drop(load())) / 1e9;
    let mut random = Random::new(2);

    // Times are minima of short pieces: other programs on the machine disturb few of them.
    let x = activations(&pool[0], 1, &mut random);
    let mut out = vec![0f32; rows];
    let mut pieces = vec![f64::INFINITY; copies.div_ceil(4)];
    for _ in 0..5 {
        for (piece, matrices) in pieces.iter_mut().zip(pool.chunks(4)) {
            let seconds = best(1, || matrices.iter().for_each(|w| product(w, &x, &mut out)));
            *piece = piece.min(seconds);
        }
    }
    let decode_rate = pool.iter().map(PackedMatrix::bytes).sum::<usize>() as f64 / pieces.iter().sum::<f64>();

    let x = activations(&pool[0], PREFILL_ROWS, &mut random);
    let mut out = vec![0f32; PREFILL_ROWS * rows];
    let prefill =
        pool.iter().take(30).fold(f64::INFINITY, |t, w| t.min(best(1, || product(w, &x, &mut out))));
    let prefill_rate = (PREFILL_ROWS * rows * cols) as f64 / prefill;
    let peak = roof.rate(if ty.is_quantized() { RateKind::Integer } else { RateKind::Float }) / 2.0;
    println!(
        "{:<7} {rows:>4} x {cols:<4} {load_rate:>10.2} {:>12.2} {:>5.0}% {:>14.1} {:>5.0}%",
        ty.name(),
        decode_rate / 1e9,
        100.0 * decode_rate / roof.read_bytes_per_second,
        prefill_rate / 1e9,
        100.0 * prefill_rate / peak
    );
}

fn best(n: usize, mut run: impl FnMut()) -> f64 {
    let seconds = |run: &mut dyn FnMut()| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..n).map(|_| seconds(&mut run)).fold(f64::INFINITY, f64::min)
}

fn activations(w: &PackedMatrix, rows: usize, random: &mut Random) -> PackedActivations {
    let mut x = PackedActivations::new();
    x.reset(rows, w.cols(), w.activation_forms());
    for row in 0..rows {
        // SAFETY: one thread.
        unsafe { x.quantize_row(row, &random.normals(w.cols(), 1.0)) };
    }
    x
}

fn product(w: &PackedMatrix, x: &PackedActivations, out: &mut [f32]) {
    let view = OutputView::new(out, w.rows(), w.rows());
    // SAFETY: one thread.
    unsafe { linear(w, x, 0..w.panels(), 0..x.rows(), view, Epilogue::Store) };
}
