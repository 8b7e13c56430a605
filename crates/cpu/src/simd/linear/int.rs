//! Kernels for integer weights: activations as signed bytes (or words), exact integer sums per 32 columns, then
//! `sum += dot * (d * scale) + m * (scale * activation sum)` in f32, groups in ascending order.
//!
//! With one row of activations (decode) codes go from memory through registers into the dot product. With more, a chunk
//! of a panel is unpacked into L1-resident scratch and reused for every tile of rows. Both do the same arithmetic, so the same
//! row gives the same bits either way.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::activations::IntTile;
use super::encoding::{Encoding, codes, scales};
use super::group_words::{AUX_HALVES, AUX_PAIRS, AUX_SCALE, AUX_SUM, AUX_WORDS};
use super::job::PanelJob;
use super::kind::Kind;
use super::layout::{GROUP, PANEL_ROWS, Panel};
use super::panel_vector::{GroupColumns, PanelVector};
use super::tile_job::{IntTileJob, Strides};

/// Bytes of unpacked codes: half of a 32 KiB L1 cache.
const SCRATCH_BYTES: usize = 16 << 10;
/// Bytes of a group's unpacked codes as bytes.
const GROUP_BYTES: usize = GROUP * PANEL_ROWS;
/// Groups in scratch when codes are bytes.
const GROUPS_MAX: usize = SCRATCH_BYTES / GROUP_BYTES;

/// Scales of a group for all 16 rows, widened.
#[repr(C, align(64))]
struct ScaleLine {
    d: [f32; 16],
    m: [f32; 16],
    half: [[i32; 16]; 2],
    half_min: [i32; 16],
}

/// An unpacked chunk of up to two panels.
#[repr(C, align(64))]
struct Scratch {
    codes: [u8; SCRATCH_BYTES],
    scales: [ScaleLine; GROUPS_MAX],
}

/// One row of activations against whole panels, up to four at a time: more streams from memory are faster than one.
///
/// # Safety
/// As [`super::job::PanelFn`]; the activations must have one row.
#[inline(always)]
pub(super) unsafe fn decode<S: PanelVector, E: Encoding>(job: &PanelJob<'_>) {
    // SAFETY: by the caller's contract.
    unsafe {
        let x = job.x.int_tile(0, 0);
        let groups = job.x.cols() / GROUP;
        let mut p = 0;
        while p + 4 <= job.count {
            decode_panels::<S, E, 4>(job, p, groups, &x);
            p += 4;
        }
        while p + 2 <= job.count {
            decode_panels::<S, E, 2>(job, p, groups, &x);
            p += 2;
        }
        if p < job.count {
            decode_panels::<S, E, 1>(job, p, groups, &x);
        }
    }
}

#[inline(always)]
unsafe fn decode_panels<S: PanelVector, E: Encoding, const P: usize>(
    job: &PanelJob<'_>,
    p: usize,
    groups: usize,
    x: &IntTile,
) {
    // SAFETY: by the caller's contract.
    unsafe {
        let panels: [Panel; P] = std::array::from_fn(|i| job.matrix.panel(job.panel + p + i));
        // Four long streams keep the hardware prefetchers busy; hints would only take their buffers.
        let prefetching = P < 4 || panels[0].is_short();
        let mut sums = [[S::zero_f(); 2]; P];
        for g in 0..groups {
            for i in 0..P {
                if prefetching {
                    prefetch::<S, E>(&panels[i], g, P);
                }
                group::<S, E>(&panels[i], g, x, &mut sums[i]);
            }
        }
        for i in 0..P {
            for v in 0..PANEL_ROWS / S::LANES {
                S::store_f(job.out.add((p + i) * job.out_stride + v * S::LANES), sums[i][v]);
            }
        }
    }
}

/// Adds one group's products to the sums of a panel.
#[inline(always)]
unsafe fn group<S: PanelVector, E: Encoding>(panel: &Panel, g: usize, x: &IntTile, sums: &mut [S::F; 2]) {
    // SAFETY: by the caller's contract.
    unsafe {
        let aux = x.aux.add(g * AUX_WORDS);
        for v in 0..PANEL_ROWS / S::LANES {
            let q = codes::<S, E>(panel, g, v);
            let s = scales::<S, E>(panel, g, v);
            let dot = if E::CODING.wide && S::WORDS {
                let words = x.words.add(g * GROUP * 2);
                let mut dot = S::zero();
                for j in 0..8 {
                    let (even, odd) = split::<S>(q[j]);
                    dot = S::add32(dot, S::madd16(even, S::splat_at(words.add(8 * j))));
                    dot = S::add32(dot, S::madd16(odd, S::splat_at(words.add(8 * j + 4))));
                }
                dot
            } else {
                let bytes = x.bytes.add(g * GROUP);
                let pairs = aux.add(AUX_PAIRS);
                if E::CODING.halves {
                    let (mut a, mut b) =
                        (start::<S, E>(pairs, GroupColumns::First), start::<S, E>(pairs, GroupColumns::Last));
                    for j in 0..4 {
                        a = S::dot(a, q[j], S::splat_at(bytes.add(4 * j)));
                        b = S::dot(b, q[j + 4], S::splat_at(bytes.add(4 * j + 16)));
                    }
                    S::add32(S::finish_scaled(a, s.half[0]), S::finish_scaled(b, s.half[1]))
                } else {
                    let mut dot = start::<S, E>(pairs, GroupColumns::Full);
                    for j in 0..8 {
                        dot = S::dot(dot, q[j], S::splat_at(bytes.add(4 * j)));
                    }
                    S::finish(dot)
                }
            };
            let scale = S::splat_f(*aux.add(AUX_SCALE).cast::<f32>());
            sums[v] = S::fma(S::to_f32(dot), S::mul_f(s.d, scale), sums[v]);
            if E::CODING.offset {
                sums[v] = if E::CODING.halves {
                    let halves = S::splat_at(aux.add(AUX_HALVES).cast());
                    let min = S::to_f32(S::madd16(s.half_min, halves));
                    S::fma(min, S::mul_f(s.m, scale), sums[v])
                } else {
                    S::fma(s.m, S::splat_f(*aux.add(AUX_SUM).cast::<f32>()), sums[v])
                };
            }
        }
    }
}

/// Asks for what the loop reads a little later: hardware prefetchers stop at page ends and at the jumps between planes.
#[inline(always)]
unsafe fn prefetch<S: PanelVector, E: Encoding>(panel: &Panel, g: usize, panels: usize) {
    // SAFETY: prefetching may name any address.
    unsafe {
        let ahead = panel.ahead() * panels;
        for line in 0..E::CODING.format.low_bits {
            S::prefetch(panel.low(g).wrapping_add(ahead + 64 * line));
        }
        for line in 0..E::CODING.format.high_bits {
            S::prefetch(panel.high(g).wrapping_add(ahead + 64 * line));
        }
        S::prefetch(panel.scales(g).wrapping_add(ahead));
    }
}

#[inline(always)]
unsafe fn start<S: PanelVector, E: Encoding>(pairs: *const i32, part: GroupColumns) -> S::I {
    let center = E::CODING.center_at::<S>();
    // SAFETY: by the caller's contract.
    unsafe { if center == 0 { S::zero() } else { S::start(pairs, 1, S::center(center, part), part) } }
}

/// Even and odd columns of signed bytes as words.
#[inline(always)]
unsafe fn split<S: PanelVector>(bytes: S::I) -> (S::I, S::I) {
    // SAFETY: by the caller's contract.
    unsafe { (S::sar16_8(S::shift16(bytes, 8)), S::sar16_8(bytes)) }
}

/// Any number of rows of activations against panels, [`R`] vectors of rows at a time.
///
/// # Safety
/// As [`super::job::PanelFn`].
#[inline(always)]
pub(super) unsafe fn tiles<S: PanelVector, E: Encoding>(job: &PanelJob<'_>) {
    // SAFETY: by the caller's contract; `chunk` groups of `at_once` panels fit the scratch.
    unsafe {
        let mut scratch = MaybeUninit::<Scratch>::uninit();
        let scratch = scratch.as_mut_ptr();
        let codes_at = (&raw mut (*scratch).codes).cast::<u8>();
        let scales_at = (&raw mut (*scratch).scales).cast::<ScaleLine>();
        let at_once = R * S::LANES / PANEL_ROWS;
        let group_bytes = if E::CODING.wide && S::WORDS { 2 * GROUP_BYTES } else { GROUP_BYTES };
        let groups = job.x.cols() / GROUP;
        let chunk_max = SCRATCH_BYTES / group_bytes / at_once;
        // Chunks of equal length, so that the last is not a stub.
        let chunk = groups.div_ceil(groups.div_ceil(chunk_max).max(1)).max(1);
        for p in (0..job.count).step_by(at_once) {
            let out = job.out.add(p * job.out_stride);
            // An odd last panel is computed twice, into the same place.
            let pair = at_once == 2 && p + 1 < job.count;
            let strides = if at_once == 1 {
                Strides { codes: 4 * S::LANES, scales: S::LANES, out: S::LANES }
            } else if pair {
                Strides { codes: chunk * group_bytes, scales: chunk * LINE_WORDS, out: job.out_stride }
            } else {
                Strides { codes: 0, scales: 0, out: 0 }
            };
            for first in (0..groups).step_by(chunk) {
                let range = first..groups.min(first + chunk);
                for c in 0..1 + pair as usize {
                    let panel = job.matrix.panel(job.panel + p + c);
                    let (codes, lines) = (codes_at.add(c * chunk * group_bytes), scales_at.add(c * chunk));
                    unpack::<S, E>(&panel, &range, codes, lines);
                }
                let mut row = 0;
                for tile in job.tile..job.tile + job.tiles {
                    let x = job.x.int_tile(tile, first);
                    let job = IntTileJob {
                        codes: codes_at,
                        lines: scales_at.cast(),
                        strides,
                        groups: range.len(),
                        center: E::CODING.center_at::<S>(),
                        quads: if E::CODING.halves { 4 } else { 8 },
                        x,
                        resume: first > 0,
                        out: out.add(row * PANEL_ROWS),
                    };
                    match x.width {
                        4 => S::int_tile::<E::Kind, 4>(&job),
                        3 => S::int_tile::<E::Kind, 3>(&job),
                        2 => S::int_tile::<E::Kind, 2>(&job),
                        _ => S::int_tile::<E::Kind, 1>(&job),
                    }
                    row += x.width;
                }
            }
        }
    }
}

/// Vectors of weight rows that a tile kernel works on: both halves of a panel with AVX2, two panels with AVX-512.
const R: usize = 2;
/// 32-bit words of a [`ScaleLine`].
const LINE_WORDS: usize = size_of::<ScaleLine>() / 4;

/// Unpacks groups of a panel: codes `[group][quad][row 16][4]` (words: two lines per quad and vector), scales widened.
#[inline(always)]
unsafe fn unpack<S: PanelVector, E: Encoding>(
    panel: &Panel,
    groups: &Range<usize>,
    out: *mut u8,
    lines: *mut ScaleLine,
) {
    // SAFETY: by the caller's contract.
    unsafe {
        for (i, g) in groups.clone().enumerate() {
            for v in 0..PANEL_ROWS / S::LANES {
                let q = codes::<S, E>(panel, g, v);
                for j in 0..8 {
                    if E::CODING.wide && S::WORDS {
                        let (even, odd) = split::<S>(q[j]);
                        let at = out.add(i * 2 * GROUP_BYTES + j * 128);
                        S::store(at.add(v * S::LANES * 4), even);
                        S::store(at.add(64 + v * S::LANES * 4), odd);
                    } else {
                        S::store(out.add(i * GROUP_BYTES + j * 64 + v * S::LANES * 4), q[j]);
                    }
                }
                let s = scales::<S, E>(panel, g, v);
                let line = lines.add(i);
                S::store_f((&raw mut (*line).d).cast::<f32>().add(v * S::LANES), s.d);
                if E::CODING.offset {
                    S::store_f((&raw mut (*line).m).cast::<f32>().add(v * S::LANES), s.m);
                }
                if E::CODING.halves {
                    let half = (&raw mut (*line).half).cast::<i32>();
                    S::store(half.add(v * S::LANES).cast(), s.half[0]);
                    S::store(half.add(16 + v * S::LANES).cast(), s.half[1]);
                    S::store((&raw mut (*line).half_min).cast::<i32>().add(v * S::LANES).cast(), s.half_min);
                }
            }
        }
    }
}

/// `R` vectors of weight rows times `T` rows of activations over a chunk of groups.
///
/// # Safety
/// The job must describe valid memory and the processor have the level of `S`.
#[inline(always)]
pub(super) unsafe fn tile<S: PanelVector, K: Kind, const T: usize>(job: &IntTileJob) {
    // SAFETY: by the caller's contract.
    unsafe {
        let IntTileJob { strides, out, .. } = *job;
        let words = K::WIDE && S::WORDS;
        let mut sums = [[S::zero_f(); R]; T];
        if job.resume {
            for t in 0..T {
                for r in 0..R {
                    sums[t][r] = S::load_f(out.add(t * PANEL_ROWS + r * strides.out));
                }
            }
        }
        for g in 0..job.groups {
            let line = job.lines.add(g * LINE_WORDS);
            let aux = job.x.aux.add(g * AUX_WORDS * T);
            let bytes = job.x.bytes.wrapping_add(g * GROUP * T);
            let codes = job.codes.add(g * if words { 2 * GROUP_BYTES } else { GROUP_BYTES });
            let dots = if words {
                word_dots::<S, T>(codes, strides, job.x.words.add(g * GROUP * 2 * T), job.quads)
            } else if K::HALVES {
                half_dots::<S, K, T>(codes, line.add(32).cast(), strides, bytes, aux, job.center, job.quads)
            } else {
                let mut dots = byte_dots::<S, K, T>(
                    codes,
                    strides,
                    bytes,
                    aux,
                    job.center,
                    GroupColumns::Full,
                    job.quads,
                );
                for t in 0..T {
                    for r in 0..R {
                        dots[t][r] = S::finish(dots[t][r]);
                    }
                }
                dots
            };
            for t in 0..T {
                let scale = S::splat_f(*aux.add(AUX_SCALE * T + t).cast::<f32>());
                for r in 0..R {
                    let d = S::load_f(line.add(r * strides.scales));
                    sums[t][r] = S::fma(S::to_f32(dots[t][r]), S::mul_f(d, scale), sums[t][r]);
                    if K::OFFSET {
                        let m = S::load_f(line.add(16 + r * strides.scales));
                        sums[t][r] = if K::HALVES {
                            let min = S::load(line.add(64 + r * strides.scales).cast());
                            let halves = S::splat_at(aux.add(AUX_HALVES * T + t).cast());
                            S::fma(S::to_f32(S::madd16(min, halves)), S::mul_f(m, scale), sums[t][r])
                        } else {
                            S::fma(m, S::splat_f(*aux.add(AUX_SUM * T + t).cast::<f32>()), sums[t][r])
                        };
                    }
                }
            }
        }
        for t in 0..T {
            for r in 0..R {
                S::store_f(out.add(t * PANEL_ROWS + r * strides.out), sums[t][r]);
            }
        }
    }
}

#[inline(always)]
unsafe fn byte_dots<S: PanelVector, K: Kind, const T: usize>(
    codes: *const u8,
    strides: Strides,
    bytes: *const u8,
    aux: *const i32,
    center: i32,
    part: GroupColumns,
    quads: usize,
) -> [[S::I; R]; T] {
    // SAFETY: by the caller's contract.
    unsafe {
        let mut dots = [[S::zero(); R]; T];
        if K::CENTERED {
            let center = S::center(center, part);
            for t in 0..T {
                dots[t] = [S::start(aux.add(AUX_PAIRS * T + t), T, center, part); R];
            }
        }
        let (mut codes, mut bytes) = (codes, bytes);
        for _ in 0..quads {
            let mut w = [S::zero(); R];
            for r in 0..R {
                w[r] = S::load(codes.add(r * strides.codes));
            }
            for t in 0..T {
                let a = S::splat_at(bytes.add(t * 4));
                for r in 0..R {
                    dots[t][r] = S::dot(dots[t][r], w[r], a);
                }
            }
            codes = codes.add(64);
            bytes = bytes.wrapping_add(4 * T);
        }
        dots
    }
}

#[inline(always)]
unsafe fn half_dots<S: PanelVector, K: Kind, const T: usize>(
    codes: *const u8,
    half: *const i32,
    strides: Strides,
    bytes: *const u8,
    aux: *const i32,
    center: i32,
    quads: usize,
) -> [[S::I; R]; T] {
    // SAFETY: by the caller's contract.
    unsafe {
        let mut first = byte_dots::<S, K, T>(codes, strides, bytes, aux, center, GroupColumns::First, quads);
        for t in 0..T {
            for r in 0..R {
                let scale = S::load(half.add(r * strides.scales).cast());
                first[t][r] = S::finish_scaled(first[t][r], scale);
            }
        }
        let bytes = bytes.wrapping_add(16 * T);
        let last =
            byte_dots::<S, K, T>(codes.add(256), strides, bytes, aux, center, GroupColumns::Last, quads);
        for t in 0..T {
            for r in 0..R {
                let scale = S::load(half.add(16 + r * strides.scales).cast());
                first[t][r] = S::add32(first[t][r], S::finish_scaled(last[t][r], scale));
            }
        }
        first
    }
}

#[inline(always)]
unsafe fn word_dots<S: PanelVector, const T: usize>(
    codes: *const u8,
    strides: Strides,
    words: *const u8,
    quads: usize,
) -> [[S::I; R]; T] {
    // SAFETY: by the caller's contract.
    unsafe {
        let mut dots = [[S::zero(); R]; T];
        let (mut codes, mut words) = (codes, words);
        for _ in 0..2 * quads {
            let mut w = [S::zero(); R];
            for r in 0..R {
                w[r] = S::load(codes.add(r * strides.codes));
            }
            for t in 0..T {
                let a = S::splat_at(words.add(t * 4));
                for r in 0..R {
                    dots[t][r] = S::add32(dots[t][r], S::madd16(w[r], a));
                }
            }
            codes = codes.add(64);
            words = words.add(4 * T);
        }
        dots
    }
}
