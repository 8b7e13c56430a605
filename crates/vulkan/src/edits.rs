//! Edits of the rows whose best tokens are asked for. Masks are applied on the GPU. Adjusted logits are few: the GPU takes them out of their
//! row, the host adjusts them as it always does, since shaders divide less exactly, and puts them among the best of the rest. Rows that ask for
//! all logits are edited by the host.

use std::sync::Arc;

use unicorn_core::{Adjustment, Batch, HeadOutput, OutputRow, Select, TokenMask, TopEntry};

/// Logits that a workgroup takes.
pub(crate) const TAKE_THREADS: usize = 64;

/// What a recording depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct EditShape {
    /// Some row has a mask.
    pub(crate) masked: bool,
    /// Workgroups that take logits out; a power of two, so that one recording serves lists of similar lengths.
    pub(crate) takes: usize,
}

impl EditShape {
    pub(crate) fn of(batch: &Batch) -> EditShape {
        let groups = take_count(batch).div_ceil(TAKE_THREADS);
        EditShape {
            masked: mask_words(batch) > 0,
            takes: if groups == 0 { 0 } else { groups.next_power_of_two() },
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == EditShape { masked: false, takes: 0 }
    }
}

/// The output rows whose logits are computed: output rows are numbered among these.
pub(crate) fn scored(batch: &Batch) -> impl Iterator<Item = &OutputRow> + Clone {
    batch.outputs().iter().filter(|o| o.select != Select::Hidden)
}

/// `(number among the rows with logits, slot)` of the rows whose best token the device keeps.
pub(crate) fn keeps(batch: &Batch) -> impl Iterator<Item = (usize, u32)> {
    scored(batch).enumerate().filter_map(|(i, o)| o.keep.map(|slot| (i, slot)))
}

fn selects(row: &OutputRow) -> Option<usize> {
    if let Select::Top(k) = row.select { Some(k) } else { None }
}

/// The masks of the output rows that select; `None` for other rows and where all tokens are allowed.
fn masks(batch: &Batch) -> impl Iterator<Item = Option<&Arc<TokenMask>>> {
    scored(batch).map(|o| o.edits.mask.as_ref().filter(|_| selects(o).is_some()))
}

/// Words that [`mask_table`] has at most.
pub(crate) fn mask_words(batch: &Batch) -> usize {
    let words: usize = masks(batch).flatten().map(|mask| mask.words().len()).sum();
    if words == 0 { 0 } else { words + scored(batch).count() }
}

/// As `mask_logits.comp` reads them: for each output row the word at which its mask begins, 0 for none; then the masks, each once.
pub(crate) fn mask_table(batch: &Batch) -> Vec<u32> {
    if mask_words(batch) == 0 {
        return Vec::new();
    }
    let mut table = vec![0; scored(batch).count()];
    let mut known: Vec<(&Arc<TokenMask>, u32)> = Vec::new();
    for (row, mask) in masks(batch).enumerate() {
        let Some(mask) = mask else { continue };
        table[row] = match known.iter().find(|k| Arc::ptr_eq(k.0, mask)) {
            Some(known) => known.1,
            None => {
                let at = table.len() as u32;
                known.push((mask, at));
                table.extend(mask.words());
                at
            }
        };
    }
    table
}

/// The adjustments of the output rows that select, with the row's number among the output rows.
fn taken(batch: &Batch) -> impl Iterator<Item = (u32, &Adjustment)> {
    let rows = (0..).zip(scored(batch)).filter(|(_, o)| selects(o).is_some());
    rows.flat_map(|(row, o)| o.edits.adjustments.iter().map(move |a| (row, a)))
}

/// Logits that are taken out of their rows.
pub(crate) fn take_count(batch: &Batch) -> usize {
    taken(batch).count()
}

/// As `take_logits.comp` reads them: how many, a word of padding, then `(output row, token)` each.
pub(crate) fn take_list(batch: &Batch) -> Vec<u32> {
    let places: Vec<u32> = taken(batch).flat_map(|(row, a)| [row, a.token]).collect();
    if places.is_empty() { places } else { [vec![places.len() as u32 / 2, 0], places].concat() }
}

/// What the batch asked for. `logits` are those of the rows that ask for all, `hidden` the
/// hidden states, `selected` holds `most` pairs for every row with logits, `taken` what
/// was taken out.
pub(crate) fn output(
    batch: &Batch,
    mut logits: Vec<f32>,
    hidden: Vec<f32>,
    selected: &[TopEntry],
    most: usize,
    mut taken: impl Iterator<Item = f32>,
) -> HeadOutput {
    let mut whole = logits.chunks_exact_mut(batch.limits().vocab.max(1));
    let mut top = Vec::new();
    for (row, asked) in scored(batch).enumerate() {
        let Some(k) = selects(asked) else {
            whole.next().into_iter().for_each(|logits| asked.edits.apply(0, logits));
            continue;
        };
        let listed = selected.iter().skip(row * most).take(most).copied();
        let adjusted = asked.edits.adjustments.iter().zip(taken.by_ref());
        let adjusted = adjusted.map(|(a, logit)| TopEntry { token: a.token, logit: a.apply(logit) });
        let allowed = |e: &TopEntry| asked.edits.mask.as_ref().is_none_or(|mask| mask.allows(e.token));
        let all = listed.chain(adjusted.filter(allowed)).filter(TopEntry::is_choosable);
        let mut list: Vec<TopEntry> = all.collect();
        list.sort_unstable_by(TopEntry::rank);
        list.truncate(k);
        top.push(list);
    }
    HeadOutput { logits, top, hidden }
}

#[cfg(test)]
mod tests {
    use unicorn_core::{BatchLimits, Edits, SequenceId, Slice};

    use super::*;

    fn batch() -> Batch {
        let mask = Arc::new(TokenMask::of(40, [1, 2, 33]));
        let edits = |tokens: &[u32], masked: bool| Edits {
            adjustments: tokens.iter().map(|t| Adjustment { bias: 1.0, ..Adjustment::none(*t) }).collect(),
            mask: masked.then(|| mask.clone()),
        };
        let row = |row, select, edits| OutputRow { edits, ..OutputRow::new(row, select) };
        let outputs = vec![
            row(0, Select::Top(2), edits(&[2, 5], true)),
            row(1, Select::Logits, edits(&[7], true)),
            row(2, Select::Top(1), edits(&[], false)),
            row(3, Select::Top(3), edits(&[9], true)),
        ];
        let slice = Slice {
            sequence: SequenceId(1),
            tokens: vec![0; 4],
            start: 0,
            tables: vec![],
            snapshots: vec![],
            slot: None,
        };
        Batch::new(vec![slice], outputs, &Arc::new(BatchLimits { vocab: 40, state: None })).unwrap()
    }

    #[test]
    fn tables_hold_the_edits_of_rows_that_select() {
        let batch = batch();
        // The two rows share one mask.
        assert_eq!(mask_table(&batch), [4, 0, 0, 4, 0b110, 0b10]);
        assert_eq!(take_list(&batch), [3, 0, 0, 2, 0, 5, 3, 9]);
        assert_eq!(EditShape::of(&batch), EditShape { masked: true, takes: 1 });
        assert!(mask_table(&batch).len() <= mask_words(&batch));
    }

    #[test]
    fn what_was_taken_comes_back_adjusted() {
        let entry = |token, logit| TopEntry { token, logit };
        let none = entry(0, f32::NEG_INFINITY);
        let selected = [
            [entry(1, 3.0), entry(33, 2.0), none],
            [none; 3],
            [entry(8, 1.0), entry(4, 0.5), none],
            [entry(33, 1.0), none, none],
        ];
        let output =
            output(&batch(), vec![0.5; 40], vec![], selected.as_flattened(), 3, [1.5, 9.0, 9.0].into_iter());
        // Token 5 and token 9 are adjusted, but no mask allows them.
        assert_eq!(
            output.top,
            [vec![entry(1, 3.0), entry(2, 2.5)], vec![entry(8, 1.0)], vec![entry(33, 1.0)]]
        );
        let finite: Vec<usize> = (0..40).filter(|t| output.logits[*t] == 0.5).collect();
        assert_eq!(finite, [1, 2, 33]);
    }
}
