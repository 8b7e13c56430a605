//! The words that lie beside the integer activations of each token and group of 32 columns: scale and sums of the codes.

/// Words of per-token, per-group data beside the quantized activations: see [`super::activations`].
pub(super) const AUX_WORDS: usize = 6;
/// Word of the scale (f32).
pub(super) const AUX_SCALE: usize = 0;
/// Word of scale times the sum of the codes (f32).
pub(super) const AUX_SUM: usize = 1;
/// Word of the negated sums of codes at columns 0, 1 and 2, 3 of all quads (two i16); the next two words cover the quads of
/// the first and of the last half.
pub(super) const AUX_PAIRS: usize = 2;
/// Word of the sums of the codes of the first and last 16 columns (two i16).
pub(super) const AUX_HALVES: usize = 5;
