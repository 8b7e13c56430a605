//! The processor's limits, measured: what kernels are compared with.

use std::hint::black_box;
use std::time::{Duration, Instant};

use unicorn_core::Roofline;

use super::level::SimdLevel;
use super::linear::Allocation;

/// Bytes read per thread: larger than the last-level cache of most processors, shared among threads.
const READ_BYTES: usize = 64 << 20;
/// Time for each of the two arithmetic rates.
const BURST: Duration = Duration::from_millis(40);
/// Steps between looks at the clock.
const STEPS: usize = 20_000;

/// Measures `threads` threads at once, as many as there are processors at most, and adds their rates up. Takes about 0.2 s.
/// Where the system refuses threads, fewer measure.
pub fn measure(level: SimdLevel, threads: usize) -> Roofline {
    // More threads than processors gain nothing here but each takes its memory.
    let processors = std::thread::available_parallelism().map_or(threads, usize::from);
    let threads = threads.min(processors).max(1);
    let level = level.or_narrower();
    let all = |f: fn(SimdLevel) -> f64| -> f64 {
        std::thread::scope(|scope| {
            let start = |_| std::thread::Builder::new().spawn_scoped(scope, move || f(level)).ok();
            let others: Vec<_> = (1..threads).map_while(start).collect();
            let own = f(level);
            own + others.into_iter().map(|h| h.join().unwrap_or(0.0)).sum::<f64>()
        })
    };
    Roofline {
        read_bytes_per_second: all(read_rate),
        integer_ops_per_second: all(integer_rate),
        float_ops_per_second: all(float_rate),
        matrix_ops_per_second: None,
        copy_bytes_per_second: None,
    }
}

/// Bytes per second of this thread reading memory once, the best of three passes.
fn read_rate(_level: SimdLevel) -> f64 {
    let Some(memory) = Allocation::zeroed(READ_BYTES) else { return 0.0 };
    // SAFETY: the memory is this function's alone.
    let buffer = unsafe { std::slice::from_raw_parts_mut(memory.as_ptr(), READ_BYTES) };
    // Touched, so that pages exist.
    buffer.chunks_exact_mut(4096).for_each(|page| page[0] = 1);
    let best = (0..3)
        .map(|_| {
            let start = Instant::now();
            black_box(sum(black_box(buffer)));
            start.elapsed()
        })
        .min();
    best.map_or(0.0, |best| READ_BYTES as f64 / best.as_secs_f64())
}

fn sum(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if SimdLevel::Avx2.is_available() {
        // SAFETY: AVX2 is there.
        return unsafe { x86::sum(bytes) };
    }
    bytes.as_chunks::<8>().0.iter().fold(0, |s, c| s.wrapping_add(u64::from_le_bytes(*c)))
}

/// Integer operations (two per multiply-add) per second of this thread, operands in registers.
fn integer_rate(level: SimdLevel) -> f64 {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is available.
        SimdLevel::Avx2 => rate(|| unsafe { x86::bytes_256(STEPS) }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is available.
        SimdLevel::Avx512 => rate(|| unsafe { x86::bytes_512(STEPS) }),
        _ => rate(|| {
            let mut sums = [0i32; 32];
            for i in 0..STEPS as i32 {
                sums.iter_mut().for_each(|s| *s = s.wrapping_add(black_box(i).wrapping_mul(3)));
            }
            black_box(sums);
            STEPS * 32
        }),
    }
}

/// Floating-point operations (two per multiply-add) per second of this thread, operands in registers.
fn float_rate(level: SimdLevel) -> f64 {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is available.
        SimdLevel::Avx2 => rate(|| unsafe { x86::floats_256(STEPS) }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level is available.
        SimdLevel::Avx512 => rate(|| unsafe { x86::floats_512(STEPS) }),
        _ => rate(|| {
            let mut sums = [0f32; 32];
            let factor = black_box(0.5f32);
            for _ in 0..STEPS {
                sums.iter_mut().for_each(|s| *s = *s * factor + 1.0);
            }
            black_box(sums);
            STEPS * 32
        }),
    }
}

/// Operations per second of a function that returns the multiply-adds it did.
fn rate(mut burst: impl FnMut() -> usize) -> f64 {
    // The first burst wakes wide vector units and raises the clock.
    burst();
    let (start, mut best) = (Instant::now(), 0f64);
    while start.elapsed() < BURST {
        let begin = Instant::now();
        let done = burst();
        best = best.max(2.0 * done as f64 / begin.elapsed().as_secs_f64());
    }
    best
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Reads four streams at once: more prefetchers work then, which on some processors takes a third less time.
    #[target_feature(enable = "avx2")]
    pub(super) fn sum(bytes: &[u8]) -> u64 {
        let mut sums = [_mm256_setzero_si256(); 4];
        let quarter = bytes.len() / 4 / 64 * 64;
        for at in (0..quarter).step_by(64) {
            for i in 0..4 {
                for half in [0, 32] {
                    // SAFETY: 64 bytes at `at` of quarter `i`.
                    let v = unsafe { _mm256_loadu_si256(bytes.as_ptr().add(i * quarter + at + half).cast()) };
                    sums[i] = _mm256_add_epi64(sums[i], v);
                }
            }
        }
        let all = _mm256_add_epi64(_mm256_add_epi64(sums[0], sums[1]), _mm256_add_epi64(sums[2], sums[3]));
        let mut lanes = [0u64; 4];
        // SAFETY: room for four words.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), all) };
        lanes.iter().fold(0, |s, v| s.wrapping_add(*v))
    }

    /// Chains of VPMADDUBSW and VPADDW.
    #[target_feature(enable = "avx2")]
    pub(super) fn bytes_256(steps: usize) -> usize {
        let mut sums = [_mm256_setzero_si256(); 12];
        let mut a = _mm256_set1_epi8(black_box(3));
        let b = _mm256_set1_epi8(black_box(5));
        for _ in 0..steps {
            for s in &mut sums {
                *s = _mm256_add_epi16(*s, _mm256_maddubs_epi16(a, *s));
            }
            a = _mm256_or_si256(a, b);
        }
        black_box(sums);
        steps * 12 * 32
    }

    /// Chains of VPDPBUSD.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub(super) fn bytes_512(steps: usize) -> usize {
        let mut sums = [_mm512_setzero_si512(); 12];
        let a = _mm512_set1_epi8(black_box(3));
        let b = _mm512_set1_epi8(black_box(5));
        for _ in 0..steps {
            for s in &mut sums {
                *s = _mm512_dpbusd_epi32(*s, a, b);
            }
        }
        black_box(sums);
        steps * 12 * 64
    }

    /// Chains of VFMADD.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn floats_256(steps: usize) -> usize {
        let mut sums = [_mm256_setzero_ps(); 12];
        let a = _mm256_set1_ps(black_box(0.5));
        for _ in 0..steps {
            for s in &mut sums {
                *s = _mm256_fmadd_ps(*s, a, a);
            }
        }
        black_box(sums);
        steps * 12 * 8
    }

    /// Chains of VFMADD.
    #[target_feature(enable = "avx512f")]
    pub(super) fn floats_512(steps: usize) -> usize {
        let mut sums = [_mm512_setzero_ps(); 12];
        let a = _mm512_set1_ps(black_box(0.5));
        for _ in 0..steps {
            for s in &mut sums {
                *s = _mm512_fmadd_ps(*s, a, a);
            }
        }
        black_box(sums);
        steps * 12 * 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_plausible() {
        for level in SimdLevel::available() {
            let roof = measure(level, 1);
            assert!(roof.read_bytes_per_second > 1e8, "{roof:?}");
            assert!(roof.float_ops_per_second > 1e8, "{roof:?}");
            assert!(roof.integer_ops_per_second > 1e8, "{roof:?}");
        }
    }
}
