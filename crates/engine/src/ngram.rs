//! Drafts out of the sequence itself: where its last tokens stood before, what followed then may follow again ("prompt lookup decoding",
//! Saxena 2023). Costs nothing but a search, and pays where an answer repeats its prompt: edits, summaries, code.

use crate::Drafter;

/// Tokens at the end that are looked for, at most and at least.
const MATCH_MAX: usize = 8;
const MATCH_MIN: usize = 3;

/// Continues what followed the latest of the longest earlier occurrences of the last tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct NgramDrafter;

impl Drafter for NgramDrafter {
    fn draft(&mut self, tokens: &[u32], max: usize) -> Vec<u32> {
        let Some(next) = continuation(tokens) else { return Vec::new() };
        let mut drafts: Vec<u32> = Vec::with_capacity(max);
        for at in next..next + max {
            // A text that repeats itself right up to its end goes on with what was drafted.
            drafts.push(tokens.get(at).copied().unwrap_or_else(|| drafts[at - tokens.len()]));
        }
        drafts
    }
}

/// Where the text goes on behind the latest of the longest matches; before the end.
fn continuation(tokens: &[u32]) -> Option<usize> {
    let (mut best, mut longest) = (None, MATCH_MIN - 1);
    let last = *tokens.last()?;
    for end in (1..tokens.len()).rev() {
        if tokens[end - 1] != last {
            continue;
        }
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
        let length = pairs.take(MATCH_MAX).take_while(|(a, b)| a == b).count();
        if length > longest {
            (best, longest) = (Some(end), length);
            if length == MATCH_MAX {
                break;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(tokens: &[u32], max: usize) -> Vec<u32> {
        NgramDrafter.draft(tokens, max)
    }

    #[test]
    fn the_latest_of_the_longest_matches_goes_on() {
        assert_eq!(draft(&[1, 2, 3, 4, 5, 9, 1, 2, 3], 2), [4, 5]);
        // Four tokens match behind the first, three behind the later one.
        assert_eq!(draft(&[1, 2, 3, 4, 7, 8, 2, 3, 4, 9, 9, 1, 2, 3, 4], 1), [7]);
        assert_eq!(draft(&[1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3], 1), [8]);
    }

    #[test]
    fn short_matches_are_none() {
        assert!(draft(&[1, 2, 3, 1, 2], 4).is_empty());
        assert!(draft(&[], 4).is_empty() && draft(&[1], 4).is_empty());
        assert!(draft(&[1, 1, 1, 1], 0).is_empty());
    }

    #[test]
    fn a_period_goes_on_beyond_the_end() {
        assert_eq!(draft(&[5, 5, 5, 5], 4), [5; 4]);
        assert_eq!(draft(&[1, 2, 3, 1, 2, 3, 1, 2], 7), [3, 1, 2, 3, 1, 2, 3]);
    }
}
