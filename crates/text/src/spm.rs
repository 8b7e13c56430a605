//! SentencePiece BPE: the adjacent pair whose joined text is the token of highest score is merged first.
//!
//! SentencePiece vocabularies store no merges. Looking the joined text up in the vocabulary gives the same
//! answer as rebuilding the merges (600k of them for Gemma) and costs nothing at start.
//! Kudo and Richardson, "SentencePiece", 2018.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use crate::vocabulary::{TokenKind, Vocabulary};

/// What SPM needs beside the vocabulary.
pub(crate) struct Spm {
    /// Score by token id; higher is merged earlier.
    pub scores: Vec<f32>,
    pub byte_ids: Box<[Option<u32>; 256]>,
    pub unknown: Option<u32>,
    /// Text at the start, or after a special token, gets a space in front.
    pub space_prefix: bool,
}

#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    /// Length in bytes, 0 once merged into the one before.
    length: u32,
    prev: u32,
    next: u32,
}

struct Candidate {
    score: f32,
    left: u32,
    length: u32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Candidate {}

impl Spm {
    /// Appends the ids of `text`, in which spaces are already written `▁`.
    pub(crate) fn encode(&self, vocabulary: &Vocabulary, text: &str, output: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(at, (start, c))| Symbol {
                start: start as u32,
                length: c.len_utf8() as u32,
                prev: (at as u32).wrapping_sub(1),
                next: at as u32 + 1,
            })
            .collect();
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() as u32 {
            queue.extend(self.candidate(vocabulary, text, &symbols, right - 1, right));
        }
        while let Some(best) = queue.pop() {
            let left = symbols[best.left as usize];
            let Some(&right) = symbols.get(left.next as usize) else { continue };
            if left.length == 0 || left.length + right.length != best.length {
                continue; // one of the two has been merged since
            }
            symbols[left.next as usize].length = 0;
            symbols[best.left as usize] = Symbol { length: best.length, next: right.next, ..left };
            if let Some(next) = symbols.get_mut(right.next as usize) {
                next.prev = best.left;
            }
            queue.extend(self.candidate(vocabulary, text, &symbols, left.prev, best.left));
            queue.extend(self.candidate(vocabulary, text, &symbols, best.left, right.next));
        }
        for symbol in symbols.iter().filter(|symbol| symbol.length > 0) {
            let piece = &text[symbol.start as usize..(symbol.start + symbol.length) as usize];
            match self.find(vocabulary, piece) {
                Some(id) => output.push(id),
                None => self.encode_bytes(piece, output),
            }
        }
    }

    fn candidate(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        symbols: &[Symbol],
        left: u32,
        right: u32,
    ) -> Option<Candidate> {
        let (a, b) = (symbols.get(left as usize)?, symbols.get(right as usize)?);
        let length = a.length + b.length;
        if length as usize > vocabulary.longest_bytes() {
            return None;
        }
        let id = self.find(vocabulary, &text[a.start as usize..(a.start + length) as usize])?;
        Some(Candidate { score: self.scores.get(id as usize).copied()?, left, length })
    }

    /// A token that text may become: control, unknown and byte tokens are not text.
    fn find(&self, vocabulary: &Vocabulary, piece: &str) -> Option<u32> {
        let id = vocabulary.find(piece)?;
        match vocabulary.kind(id)? {
            TokenKind::Normal | TokenKind::UserDefined | TokenKind::Unused => Some(id),
            TokenKind::Unknown | TokenKind::Control | TokenKind::Byte => None,
        }
    }

    fn encode_bytes(&self, piece: &str, output: &mut Vec<u32>) {
        let ids: Option<Vec<u32>> = piece.bytes().map(|byte| self.byte_ids[byte as usize]).collect();
        match ids {
            Some(ids) => output.extend(ids),
            None => output.extend(self.unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_score_first_bytes_last() {
        let tokens = ["<unk>", "<s>", "<0xC3>", "<0xA9>", "a", "b", "ab", "bc", "c", "<", "s>", "s", ">"];
        let vocabulary = Vocabulary::new(&tokens, |i| match i {
            0 => TokenKind::Unknown,
            1 => TokenKind::Control,
            2 | 3 => TokenKind::Byte,
            _ => TokenKind::Normal,
        })
        .unwrap();
        let mut scores = vec![0.0; tokens.len()];
        scores[6] = -2.0;
        scores[7] = -1.0;
        let spm = Spm { scores, byte_ids: vocabulary.byte_fallback(), unknown: Some(0), space_prefix: true };
        let mut ids = Vec::new();
        spm.encode(&vocabulary, "abcé日<s>", &mut ids);
        // "bc" wins over "ab"; é by bytes; 日 has no byte tokens; "<s>" must not become the control token
        assert_eq!(ids, [4, 7, 2, 3, 0, 9, 10]);
    }
}
