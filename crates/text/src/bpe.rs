//! Byte-pair encoding over token ids: merge the adjacent pair of lowest rank until none is left.
//!
//! The `tokenizers` crate serves `tokenizer.json`; for the merges of a GGUF file its builder costs
//! several times what reading the file costs (owned strings, two maps of the vocabulary, a format
//! per merge), which would be a large part of the time to the first token.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use hashbrown::HashMap;

use crate::TextError;
use crate::vocabulary::Vocabulary;

/// Marks a symbol that was merged into the one before it.
const MERGED: u32 = u32::MAX;

/// Merge rules: a pair of ids to its rank and the id of the merged token.
pub(crate) struct Merges(HashMap<u64, (u32, u32)>);

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

impl Merges {
    /// Reads rules of the form `left right`, best first. A rule with a token that the vocabulary lacks can
    /// never lead to a token and is left out, as is one that makes a control token of text; of two rules for one pair the first holds.
    pub(crate) fn new<S: AsRef<str>>(vocabulary: &Vocabulary, rules: &[S]) -> Result<Self, TextError> {
        let mut map = HashMap::with_capacity(rules.len());
        let mut merged = String::new();
        for (rank, rule) in rules.iter().enumerate() {
            let rule = rule.as_ref();
            // The left token may itself begin with a space.
            let skip = rule.chars().next().map_or(0, char::len_utf8);
            let at = rule[skip..].find(' ').ok_or(TextError::BadMerge(rank))? + skip;
            let (left, right) = (&rule[..at], &rule[at + 1..]);
            merged.clear();
            merged.push_str(left);
            merged.push_str(right);
            if let (Some(left), Some(right), Some(id)) =
                (vocabulary.find(left), vocabulary.find(right), vocabulary.find_text(&merged))
            {
                map.entry(pair(left, right)).or_insert((rank as u32, id));
            }
        }
        Ok(Self(map))
    }

    fn get(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        self.0.get(&pair(left, right)).copied()
    }
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// Index of the neighbours, `u32::MAX` at the ends.
    prev: u32,
    next: u32,
}

/// Buffers of the merge loop, reused from word to word.
#[derive(Default)]
pub(crate) struct MergeScratch {
    symbols: Vec<Symbol>,
    /// (rank, position of the left symbol, left id, right id)
    queue: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
}

impl MergeScratch {
    /// Merges the tokens in `ids` as far as the rules go and appends the result to `output`.
    pub(crate) fn merge(&mut self, merges: &Merges, ids: impl Iterator<Item = u32>, output: &mut Vec<u32>) {
        self.symbols.clear();
        self.queue.clear();
        for (at, id) in (0u32..).zip(ids) {
            self.symbols.push(Symbol { id, prev: at.wrapping_sub(1), next: at + 1 });
        }
        let Some(last) = self.symbols.last_mut() else { return };
        last.next = u32::MAX;
        for at in 1..self.symbols.len() {
            self.offer(merges, at as u32 - 1, at as u32);
        }
        while let Some(Reverse((_, at, left_id, right_id))) = self.queue.pop() {
            let left = self.symbols[at as usize];
            let Some(&right) = self.symbols.get(left.next as usize) else { continue };
            if left.id != left_id || right.id != right_id {
                continue; // one of the two has been merged since
            }
            let Some((_, id)) = merges.get(left_id, right_id) else { continue };
            self.symbols[left.next as usize].id = MERGED;
            self.symbols[at as usize] = Symbol { id, prev: left.prev, next: right.next };
            if let Some(next) = self.symbols.get_mut(right.next as usize) {
                next.prev = at;
            }
            self.offer(merges, left.prev, at);
            self.offer(merges, at, right.next);
        }
        output.extend(self.symbols.iter().map(|symbol| symbol.id).filter(|&id| id != MERGED));
    }

    fn offer(&mut self, merges: &Merges, left: u32, right: u32) {
        let (Some(a), Some(b)) = (self.symbols.get(left as usize), self.symbols.get(right as usize)) else {
            return;
        };
        if let Some((rank, _)) = merges.get(a.id, b.id) {
            self.queue.push(Reverse((rank, left, a.id, b.id)));
        }
    }
}

/// The printable stand-ins that byte-level BPE (GPT-2) uses for the 256 bytes.
pub(crate) struct ByteAlphabet {
    chars: [char; 256],
}

impl ByteAlphabet {
    pub(crate) fn new() -> Self {
        let mut chars = ['\0'; 256];
        let mut spare = 256u32;
        for byte in 0..=255u8 {
            let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            chars[byte as usize] = if printable {
                char::from(byte)
            } else {
                spare += 1;
                char::from_u32(spare - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
            };
        }
        Self { chars }
    }

    pub(crate) fn char(&self, byte: u8) -> char {
        self.chars[byte as usize]
    }

    /// The id of the token that is just this byte, for every byte that has one.
    pub(crate) fn token_ids(&self, vocabulary: &Vocabulary) -> Box<[Option<u32>; 256]> {
        let mut utf8 = [0; 4];
        Box::new(self.chars.map(|c| vocabulary.find(c.encode_utf8(&mut utf8))))
    }

    /// The bytes that `token` stands for; a token with other characters stands for its own text.
    pub(crate) fn decode(token: &str) -> Vec<u8> {
        let byte = |c: char| {
            let direct = matches!(u32::from(c), 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
            if direct {
                return u8::try_from(u32::from(c)).ok();
            }
            // The spare characters stand for the other bytes in ascending order.
            match u32::from(c) {
                code @ 0x100..=0x120 => Some((code - 0x100) as u8),
                code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
                0x143 => Some(0xAD),
                _ => None,
            }
        };
        token.chars().map(byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::TokenKind;

    #[test]
    fn every_byte_survives_the_alphabet() {
        let alphabet = ByteAlphabet::new();
        let text: String = (0..=255u8).map(|b| alphabet.char(b)).collect();
        assert_eq!(ByteAlphabet::decode(&text), (0..=255u8).collect::<Vec<_>>());
        assert_eq!(alphabet.char(b' '), 'Ġ');
        assert_eq!(ByteAlphabet::decode("日"), "日".as_bytes());
    }

    #[test]
    fn merges_by_rank_and_leftmost_first() {
        let tokens = ["a", "b", "ab", "aba", "aa"];
        let vocabulary = Vocabulary::new(&tokens, |_| TokenKind::Normal).unwrap();
        let merges = Merges::new(&vocabulary, &["a b", "ab a", "a a", "a missing"]).unwrap();
        let mut output = Vec::new();
        MergeScratch::default().merge(&merges, [0, 0, 1, 0, 0, 0].into_iter(), &mut output);
        // a ab a a a, then aba before aa
        assert_eq!(output, [0, 3, 4]);
        assert!(matches!(Merges::new(&vocabulary, &["ab"]), Err(TextError::BadMerge(0))));
    }
}
