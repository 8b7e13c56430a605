//! Ragged batches: slices of several sequences that run through the blocks together. A batch is checked when it is made, so that
//! devices can trust it.

use std::sync::Arc;

use crate::output::{OutputRow, SLOTS, Select};
use crate::{BatchShape, Span, StateLayout};

/// A sequence known to the engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// A page of state: the same number names one page of every mixer of a state group.
pub type PageId = u32;

/// Consecutive tokens of one sequence. A prefill chunk has many tokens, a decode step one.
#[derive(Clone, PartialEq, Debug)]
pub struct Slice {
    /// Whose tokens these are.
    pub sequence: SequenceId,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Position of the first token; the state of earlier positions is there already.
    pub start: u32,
    /// For every state group the pages of positions `0 .. start + tokens.len()`, in order: entry `i` holds positions
    /// `i * page_tokens ..`. Entries of positions that a sliding window no longer sees may name any page of the pool.
    ///
    /// For groups of recurrent state: the page of the state before `start`, which at position 0 nobody reads; those of `snapshots`; and the
    /// page of the state after the last token. Where first and last are the same, state is updated in place.
    pub tables: Vec<Vec<PageId>>,
    /// Positions between `start` and the end, ascending: the recurrent state after the token before each is kept too.
    pub snapshots: Vec<u32>,
    /// The one token is what the device kept in this slot last ([`OutputRow::keep`]); `tokens` holds a token that stands in for it. The
    /// embedding must be on the device of the head, and comes after the work that kept the token.
    pub slot: Option<u32>,
}

impl Slice {
    /// One past the last position.
    pub fn end(&self) -> usize {
        self.start as usize + self.tokens.len()
    }

    /// The page in which a group of recurrent state has the state before the slice; `None` at the first position.
    pub fn state_before(&self, group: usize) -> Option<PageId> {
        self.tables[group].first().copied().filter(|_| self.start > 0)
    }

    /// Where a group of recurrent state writes states: the page, and the tokens of the slice that have gone into the state by then.
    pub fn states_after(&self, group: usize) -> impl Iterator<Item = (usize, PageId)> + '_ {
        let inside = self.snapshots.iter().map(|position| (position - self.start) as usize);
        inside.chain([self.tokens.len()]).zip(self.tables[group].iter().skip(1).copied())
    }
}

/// What batches for one model on one engine are held against.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BatchLimits {
    /// Token ids lie below this.
    pub vocab: usize,
    /// State that the devices reserved; `None` for blocks without state, whose slices have no tables.
    pub state: Option<StateLayout>,
}

/// A ragged batch. Rows are the tokens of all slices, concatenated in order.
#[derive(Clone, PartialEq, Debug)]
pub struct Batch {
    slices: Vec<Slice>,
    outputs: Vec<OutputRow>,
    rows: usize,
    limits: Arc<BatchLimits>,
    /// Tokens of the longest slice, where slices are known to be whole sequences.
    whole: Option<usize>,
}

/// Why a batch is none.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum BatchError {
    /// No slice, or a slice without tokens.
    #[error("a batch without tokens{}", .0.map_or(String::new(), |s| format!(" of sequence {}", s.0)))]
    Empty(Option<SequenceId>),
    /// A token id is outside the vocabulary.
    #[error("token {token} in a vocabulary of {vocab}")]
    Token {
        /// Token id.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A slice ends behind the last position.
    #[error("sequence {}: position {end} of at most {positions}", .sequence.0)]
    Position {
        /// Whose slice.
        sequence: SequenceId,
        /// One past its last position.
        end: usize,
        /// Positions that a sequence may have.
        positions: usize,
    },
    /// A slice has not one page table for each state group.
    #[error("sequence {}: {tables} page tables for {groups} state groups", .sequence.0)]
    Tables {
        /// Whose slice.
        sequence: SequenceId,
        /// Tables given.
        tables: usize,
        /// Groups of the layout.
        groups: usize,
    },
    /// A page table is too short or too long.
    #[error("sequence {}: {pages} pages of {page_tokens} positions for {end} positions", .sequence.0)]
    Pages {
        /// Whose slice.
        sequence: SequenceId,
        /// Pages given.
        pages: usize,
        /// Positions per page.
        page_tokens: usize,
        /// One past the slice's last position.
        end: usize,
    },
    /// Snapshots do not ascend within their slice.
    #[error("sequence {}: a snapshot at position {position}: they ascend between {start} and {end}", .sequence.0)]
    Snapshot {
        /// Whose slice.
        sequence: SequenceId,
        /// The position.
        position: usize,
        /// The slice's first position.
        start: usize,
        /// One past its last.
        end: usize,
    },
    /// A slice does not name, for a group of recurrent state, the states that it starts from, keeps and ends in.
    #[error("sequence {}: {pages} pages of state, of {wanted}", .sequence.0)]
    States {
        /// Whose slice.
        sequence: SequenceId,
        /// Pages given.
        pages: usize,
        /// Pages wanted.
        wanted: usize,
    },
    /// A page lies outside the pool.
    #[error("sequence {}: page {page} of {pages}", .sequence.0)]
    Page {
        /// Whose slice.
        sequence: SequenceId,
        /// The page.
        page: PageId,
        /// Pages of the pool.
        pages: usize,
    },
    /// A page that a slice writes is used a second time: threads would race on it.
    #[error("sequence {}: page {page} is written and used twice in one batch", .sequence.0)]
    Shared {
        /// Whose slice.
        sequence: SequenceId,
        /// The page.
        page: PageId,
    },
    /// Output rows do not ascend or lie outside the batch.
    #[error("output row {row} of {rows}{}", if .row < .rows { ": rows must ascend" } else { "" })]
    Output {
        /// The row.
        row: usize,
        /// Rows of the batch.
        rows: usize,
    },
    /// A selection asks for no token or for more than there are.
    #[error("the best {k} of {vocab} tokens")]
    Top {
        /// Tokens asked for.
        k: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A mask is for another vocabulary or allows no token.
    #[error(
        "output row {row}: a mask of {words} words that allows no token, or not one for each 32 of {vocab} tokens"
    )]
    Mask {
        /// The row.
        row: usize,
        /// Words of the mask.
        words: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A slot does not exist, feeds a slice of several tokens, or is to keep two tokens, or one that is not the best of unedited logits.
    #[error(
        "slot {slot} of {SLOTS}: it holds one token, the best of a row that selects without edits, for a slice of one"
    )]
    Slot {
        /// The slot.
        slot: u32,
    },
    /// A row whose hidden state is read has edits, which are for logits.
    #[error("output row {row}: edits of logits, but its hidden state is asked for")]
    Hidden {
        /// The row.
        row: usize,
    },
    /// Something else than the only slice of its sequence, from its first position on, in a batch of whole sequences.
    #[error("sequence {}: a slice from position {start} on, where whole sequences are wanted", .sequence.0)]
    Part {
        /// Whose slice.
        sequence: SequenceId,
        /// Its first position.
        start: usize,
    },
    /// An adjustment is of a token outside the vocabulary, does not ascend, or is no number that later arithmetic can use.
    #[error(
        "output row {row}: the adjustment of token {token}: tokens must ascend below {vocab}, with sound numbers"
    )]
    Adjustment {
        /// The row.
        row: usize,
        /// Token id.
        token: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
}

impl Batch {
    /// Checks everything that a device would have to: tokens, positions, pages and their owners, output rows.
    ///
    /// Errors name the first thing that is wrong.
    pub fn new(
        slices: Vec<Slice>,
        outputs: Vec<OutputRow>,
        limits: &Arc<BatchLimits>,
    ) -> Result<Batch, BatchError> {
        let vocab = limits.vocab;
        if slices.is_empty() {
            return Err(BatchError::Empty(None));
        }
        for slice in &slices {
            if slice.tokens.is_empty() {
                return Err(BatchError::Empty(Some(slice.sequence)));
            }
            if let Some(&token) = slice.tokens.iter().find(|t| **t as usize >= vocab) {
                return Err(BatchError::Token { token, vocab });
            }
        }
        check_slots(&slices, &outputs)?;
        check_state(&slices, limits.state.as_ref())?;
        let rows = slices.iter().map(|s| s.tokens.len()).sum();
        check_outputs(&outputs, rows, vocab)?;
        Ok(Batch { slices, outputs, rows, limits: limits.clone(), whole: None })
    }

    /// A batch for mixers that see all of a slice at once: each slice has all tokens of its sequence.
    ///
    /// Errors as [`Batch::new`], and when a slice begins behind position 0 or is not the only one of its sequence.
    pub fn of_whole_sequences(
        slices: Vec<Slice>,
        outputs: Vec<OutputRow>,
        limits: &Arc<BatchLimits>,
    ) -> Result<Batch, BatchError> {
        let mut seen = std::collections::HashSet::new();
        if let Some(part) =
            slices.iter().find(|s| s.start != 0 || s.slot.is_some() || !seen.insert(s.sequence))
        {
            return Err(BatchError::Part { sequence: part.sequence, start: part.start as usize });
        }
        let mut batch = Batch::new(slices, outputs, limits)?;
        batch.whole = batch.slices.iter().map(|s| s.tokens.len()).max();
        Ok(batch)
    }

    /// Tokens of the longest slice, if the batch is known to have [whole sequences](Batch::of_whole_sequences).
    pub fn whole(&self) -> Option<usize> {
        self.whole
    }

    /// The parts; each has at least one token.
    pub fn slices(&self) -> &[Slice] {
        &self.slices
    }

    /// Rows, ascending, that the head reads.
    pub fn outputs(&self) -> &[OutputRow] {
        &self.outputs
    }

    /// Number of tokens (rows of the residual stream); at least one.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// What the batch was held against.
    pub fn limits(&self) -> &Arc<BatchLimits> {
        &self.limits
    }

    /// Positions before and rows of every slice: what the cost of a batch depends on.
    pub fn spans(&self) -> Vec<Span> {
        self.slices.iter().map(|s| Span { past: s.start as usize, tokens: s.tokens.len() }).collect()
    }

    /// The most tokens that a row's selection asks for; `None` where no row asks for the best ones.
    pub fn top(&self) -> Option<usize> {
        let top = |o: &OutputRow| if let Select::Top(k) = o.select { Some(k) } else { None };
        self.outputs.iter().filter_map(top).max()
    }

    /// Output rows that ask for all logits.
    pub fn logit_rows(&self) -> usize {
        self.outputs.iter().filter(|o| o.select == Select::Logits).count()
    }

    /// Output rows that ask for hidden states.
    pub fn hidden_rows(&self) -> usize {
        self.outputs.iter().filter(|o| o.select == Select::Hidden).count()
    }

    /// The tokens of all rows; `slots` are those of the device.
    pub fn row_tokens(&self, slots: &[u32]) -> Vec<u32> {
        let mut tokens: Vec<u32> = self.slices.iter().flat_map(|s| &s.tokens).copied().collect();
        for (row, slot) in self.feeds() {
            tokens[row] = slots.get(slot as usize).copied().unwrap_or(0);
        }
        tokens
    }

    /// `(row, slot)` of the rows whose token comes from a slot of the device.
    pub fn feeds(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let mut end = 0;
        let row = move |s: &Slice| {
            end += s.tokens.len();
            s.slot.map(|slot| (end - 1, slot))
        };
        self.slices.iter().filter_map(row)
    }

    /// `(number among the output rows, slot)` of the rows whose best token the device keeps.
    pub fn keeps(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.outputs.iter().enumerate().filter_map(|(i, o)| o.keep.map(|slot| (i, slot)))
    }

    /// True where both batches have tokens of one sequence: the later one then reads state that the earlier one writes.
    pub fn shares_sequence(&self, other: &Batch) -> bool {
        self.slices.iter().any(|a| other.slices.iter().any(|b| a.sequence == b.sequence))
    }
}

impl From<&Batch> for BatchShape {
    fn from(batch: &Batch) -> BatchShape {
        BatchShape { spans: batch.spans(), outputs: batch.outputs().len() }
    }
}

fn check_outputs(outputs: &[OutputRow], rows: usize, vocab: usize) -> Result<(), BatchError> {
    for (i, output) in outputs.iter().enumerate() {
        let row = output.row as usize;
        if row >= rows || (i > 0 && outputs[i - 1].row >= output.row) {
            return Err(BatchError::Output { row, rows });
        }
        if let Select::Top(k) = output.select
            && (k == 0 || k > vocab)
        {
            return Err(BatchError::Top { k, vocab });
        }
        check_edits(output, vocab)?;
    }
    Ok(())
}

fn check_slots(slices: &[Slice], outputs: &[OutputRow]) -> Result<(), BatchError> {
    let feeds = slices.iter().filter_map(|s| s.slot.map(|slot| (slot, s.tokens.len() == 1)));
    let fit = |o: &OutputRow| matches!(o.select, Select::Top(_)) && o.edits.is_empty();
    let keeps = outputs.iter().filter_map(|o| o.keep.map(|slot| (slot, fit(o))));
    let mut kept: Vec<u32> = keeps.clone().map(|(slot, _)| slot).collect();
    if let Some((slot, _)) = feeds.chain(keeps).find(|(slot, sound)| !sound || *slot as usize >= SLOTS) {
        return Err(BatchError::Slot { slot });
    }
    kept.sort_unstable();
    let twice = kept.windows(2).find(|w| w[0] == w[1]);
    twice.map_or(Ok(()), |w| Err(BatchError::Slot { slot: w[0] }))
}

fn check_edits(output: &OutputRow, vocab: usize) -> Result<(), BatchError> {
    let (row, edits) = (output.row as usize, &output.edits);
    if output.select == Select::Hidden && !edits.is_empty() {
        return Err(BatchError::Hidden { row });
    }
    if let Some(mask) = edits.mask.as_ref().filter(|mask| !mask.fits(vocab)) {
        return Err(BatchError::Mask { row, words: mask.words().len(), vocab });
    }
    let mut next = 0;
    for adjustment in &edits.adjustments {
        let token = adjustment.token;
        if (token as usize) < next || token as usize >= vocab || !adjustment.is_sound() {
            return Err(BatchError::Adjustment { row, token, vocab });
        }
        next = token as usize + 1;
    }
    Ok(())
}

fn check_state(slices: &[Slice], layout: Option<&StateLayout>) -> Result<(), BatchError> {
    let groups = layout.map_or(0, |l| l.groups.len());
    for slice in slices {
        let (sequence, tables) = (slice.sequence, slice.tables.len());
        if tables != groups {
            return Err(BatchError::Tables { sequence, tables, groups });
        }
        let positions = layout.map_or(u32::MAX as usize, |l| l.positions);
        let (start, end) = (slice.start as usize, slice.end());
        if end > positions {
            return Err(BatchError::Position { sequence, end, positions });
        }
        let mut last = start;
        for position in slice.snapshots.iter().map(|p| *p as usize) {
            if position <= last || position >= end {
                return Err(BatchError::Snapshot { sequence, position, start, end });
            }
            last = position;
        }
    }
    let Some(layout) = layout else { return Ok(()) };
    for (group, of) in layout.groups.iter().enumerate() {
        if of.spec.is_recurrent() {
            check_states(slices, of.pages, group)
        } else {
            check_group(slices, layout, group)
        }?;
    }
    Ok(())
}

/// Errors when a state is missing or outside the pool, or a page that a slice writes is used a second time: only its last state may take
/// the place of the one that it starts from.
fn check_states(slices: &[Slice], pool: usize, group: usize) -> Result<(), BatchError> {
    let mut written: Vec<(PageId, usize)> = Vec::new();
    for (index, slice) in slices.iter().enumerate() {
        let (sequence, pages) = (slice.sequence, &slice.tables[group]);
        let wanted = slice.snapshots.len() + 2;
        if pages.len() != wanted {
            return Err(BatchError::States { sequence, pages: pages.len(), wanted });
        }
        if let Some(&page) = pages.iter().find(|p| **p as usize >= pool) {
            return Err(BatchError::Page { sequence, page, pages: pool });
        }
        written.extend(pages[1..].iter().map(|page| (*page, index)));
    }
    written.sort_unstable();
    let shared = |page, index: usize| BatchError::Shared { sequence: slices[index].sequence, page };
    if let Some(twice) = written.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(shared(twice[1].0, twice[1].1));
    }
    for (index, slice) in slices.iter().enumerate() {
        let Some(page) = slice.state_before(group) else { continue };
        let in_place = slice.tables[group].last() == Some(&page);
        if !in_place && written.binary_search_by_key(&page, |w| w.0).is_ok() {
            return Err(shared(page, index));
        }
    }
    Ok(())
}

/// Errors when pages are missing or outside the pool, or one that a slice writes is used by another, or twice by itself.
fn check_group(slices: &[Slice], layout: &StateLayout, group: usize) -> Result<(), BatchError> {
    let (page_tokens, pool) = (layout.page_tokens, layout.groups[group].pages);
    let mut written: Vec<(PageId, usize, usize)> = Vec::new();
    for (index, slice) in slices.iter().enumerate() {
        let (sequence, pages, end) = (slice.sequence, &slice.tables[group], slice.end());
        if pages.len() != end.div_ceil(page_tokens) {
            return Err(BatchError::Pages { sequence, pages: pages.len(), page_tokens, end });
        }
        if let Some(&page) = pages.iter().find(|p| **p as usize >= pool) {
            return Err(BatchError::Page { sequence, page, pages: pool });
        }
        let first = slice.start as usize / page_tokens;
        written.extend((first..pages.len()).map(|at| (pages[at], index, at)));
    }
    written.sort_unstable();
    if let Some(twice) = written.windows(2).find(|w| w[0].0 == w[1].0) {
        return Err(BatchError::Shared { sequence: slices[twice[1].1].sequence, page: twice[1].0 });
    }
    for (index, slice) in slices.iter().enumerate() {
        // Entries that no row of the slice sees may name pages of others.
        let seen = layout.groups[group].spec.first_seen(slice.start as usize) / page_tokens;
        for (at, page) in slice.tables[group].iter().enumerate().skip(seen) {
            let found = written.binary_search_by_key(page, |w| w.0).map(|i| written[i]);
            if found.is_ok_and(|(_, owner, there)| (owner, there) != (index, at)) {
                return Err(BatchError::Shared { sequence: slice.sequence, page: *page });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Adjustment, Edits, HeadOutput, KvType, RowOutput, StateGroup, StateSpec, TokenMask, TopEntry,
    };

    fn limits(groups: &[StateSpec]) -> Arc<BatchLimits> {
        let groups = groups.iter().map(|spec| StateGroup { spec: *spec, pages: 8 }).collect();
        let state = StateLayout { page_tokens: 32, positions: 512, ty: KvType::F16, groups };
        Arc::new(BatchLimits { vocab: 100, state: Some(state) })
    }

    fn slice(id: u64, start: u32, tokens: usize, pages: &[u32]) -> Slice {
        let (sequence, tokens) = (SequenceId(id), vec![7; tokens]);
        Slice { sequence, tokens, start, tables: vec![pages.to_vec()], snapshots: vec![], slot: None }
    }

    fn make(slices: Vec<Slice>) -> Result<Batch, BatchError> {
        Batch::new(slices, vec![], &limits(&[StateSpec::Paged]))
    }

    #[test]
    fn good_batches_are_made() {
        let shared_prefix = vec![slice(1, 40, 2, &[0, 1]), slice(2, 33, 1, &[0, 2]), slice(3, 0, 32, &[3])];
        let batch = make(shared_prefix).unwrap();
        assert_eq!(batch.rows(), 35);
        assert_eq!(batch.spans()[1], Span { past: 33, tokens: 1 });
        let none = Arc::new(BatchLimits { vocab: 10, state: None });
        let bare = Slice { tables: vec![], ..slice(1, 0, 4, &[]) };
        assert!(Batch::new(vec![bare], vec![], &none).is_ok());
    }

    #[test]
    fn what_a_device_would_have_to_check_is_refused_by_name() {
        let one = |s: Slice| make(vec![s]).unwrap_err();
        assert_eq!(make(vec![]), Err(BatchError::Empty(None)));
        assert_eq!(one(slice(4, 0, 0, &[])), BatchError::Empty(Some(SequenceId(4))));
        let bad = Slice { tokens: vec![3, 100], ..slice(1, 0, 2, &[0]) };
        assert_eq!(one(bad), BatchError::Token { token: 100, vocab: 100 });
        assert!(matches!(one(slice(1, 512, 1, &[0; 17])), BatchError::Position { end: 513, .. }));
        assert!(matches!(one(slice(1, u32::MAX, 1, &[0])), BatchError::Position { .. }));
        assert!(matches!(one(slice(1, 30, 3, &[0])), BatchError::Pages { pages: 1, end: 33, .. }));
        assert!(matches!(one(slice(1, 0, 3, &[0, 1])), BatchError::Pages { pages: 2, .. }));
        assert!(matches!(one(slice(1, 0, 3, &[8])), BatchError::Page { page: 8, pages: 8, .. }));
        let two = Slice { tables: vec![vec![0], vec![0]], ..slice(1, 0, 1, &[]) };
        assert!(matches!(one(two), BatchError::Tables { tables: 2, groups: 1, .. }));
    }

    #[test]
    fn a_page_that_is_written_has_one_user() {
        let shared = |slices: Vec<Slice>| matches!(make(slices), Err(BatchError::Shared { .. }));
        assert!(shared(vec![slice(1, 0, 3, &[0]), slice(2, 0, 3, &[0])]));
        assert!(shared(vec![slice(1, 0, 3, &[0]), slice(2, 40, 3, &[0, 1])]));
        assert!(shared(vec![slice(2, 40, 3, &[0, 1]), slice(1, 0, 3, &[0])]));
        assert!(shared(vec![slice(1, 0, 40, &[5, 5])]));
        assert!(shared(vec![slice(1, 33, 1, &[5, 5])]));
        assert!(!shared(vec![slice(1, 32, 1, &[0, 1]), slice(2, 32, 1, &[0, 2])]));
    }

    #[test]
    fn a_window_may_name_any_page_for_what_it_no_longer_sees() {
        let limits = limits(&[StateSpec::Paged, StateSpec::Window(40)]);
        let with = |window: &[u32]| {
            let tables = vec![vec![0, 1, 2, 3], window.to_vec()];
            let other = Slice { tables: vec![vec![7], vec![6]], ..slice(2, 0, 1, &[]) };
            Batch::new(vec![Slice { tables, ..slice(1, 100, 4, &[]) }, other], vec![], &limits)
        };
        // Position 100 sees 61 on: the first page is out of sight.
        assert!(with(&[3, 1, 2, 3]).is_ok());
        assert!(with(&[6, 1, 2, 3]).is_ok());
        assert!(matches!(with(&[0, 3, 2, 3]), Err(BatchError::Shared { page: 3, .. })));
        assert!(matches!(with(&[9, 1, 2, 3]), Err(BatchError::Page { page: 9, .. })));
    }

    #[test]
    fn recurrent_state_names_where_it_comes_from_and_goes_to() {
        let limits = limits(&[StateSpec::Recurrent { floats: 4 }]);
        let at = |id, start: u32, snapshots: &[u32], pages: &[u32]| Slice {
            snapshots: snapshots.to_vec(),
            ..slice(id, start, 10, pages)
        };
        let make = |slices| Batch::new(slices, vec![], &limits);
        let one = |snapshots: &[u32], pages: &[u32]| make(vec![at(1, 20, snapshots, pages)]);
        // In place, beside what it starts from, with snapshots, and from nothing, where the first page is not read.
        let good = [
            at(1, 20, &[], &[0, 0]),
            at(2, 20, &[], &[1, 2]),
            at(3, 20, &[21, 29], &[3, 4, 5, 6]),
            at(4, 0, &[], &[7, 7]),
        ];
        let batch = make(good.to_vec()).unwrap();
        let states: Vec<_> = batch.slices()[2].states_after(0).collect();
        assert_eq!((batch.slices()[2].state_before(0), states), (Some(3), vec![(1, 4), (9, 5), (10, 6)]));
        assert_eq!(batch.slices()[3].state_before(0), None);
        // Two sequences may start from the same snapshot.
        assert!(make(vec![at(1, 20, &[], &[0, 1]), at(2, 20, &[], &[0, 2])]).is_ok());
        assert!(matches!(one(&[], &[0]), Err(BatchError::States { pages: 1, wanted: 2, .. })));
        assert!(matches!(one(&[25], &[0, 1]), Err(BatchError::States { pages: 2, wanted: 3, .. })));
        assert!(matches!(one(&[], &[0, 8]), Err(BatchError::Page { page: 8, .. })));
        for snapshots in [&[20, 25][..], &[25, 25], &[25, 30], &[26, 25]] {
            assert!(
                matches!(one(snapshots, &[0, 1, 2, 3]), Err(BatchError::Snapshot { .. })),
                "{snapshots:?}"
            );
        }
        // A page that is written has one user: no snapshot takes the place of another state, nor does the state of another sequence.
        let shared = |slices: Vec<Slice>| matches!(make(slices), Err(BatchError::Shared { .. }));
        assert!(shared(vec![at(1, 20, &[25], &[0, 0, 1])]));
        assert!(shared(vec![at(1, 20, &[25], &[0, 1, 1])]));
        assert!(shared(vec![at(1, 20, &[], &[0, 0]), at(2, 20, &[], &[0, 1])]));
        assert!(shared(vec![at(1, 20, &[], &[0, 1]), at(2, 20, &[], &[1, 2])]));
        assert!(shared(vec![at(1, 20, &[], &[0, 2]), at(2, 20, &[], &[1, 2])]));
    }

    #[test]
    fn outputs_ascend_within_the_batch_and_ask_for_what_there_is() {
        let ask = |outputs: &[(u32, Select)]| {
            let outputs = outputs.iter().map(|(row, select)| OutputRow::new(*row, *select));
            Batch::new(vec![slice(1, 0, 4, &[0])], outputs.collect(), &limits(&[StateSpec::Paged]))
        };
        let batch = ask(&[(0, Select::Top(3)), (2, Select::Logits), (3, Select::Top(1))]).unwrap();
        assert_eq!((batch.top(), batch.logit_rows()), (Some(3), 1));
        assert!(matches!(ask(&[(4, Select::Logits)]), Err(BatchError::Output { row: 4, rows: 4 })));
        let twice = ask(&[(1, Select::Logits), (1, Select::Logits)]).unwrap_err();
        assert!(twice.to_string().contains("must ascend"), "{twice}");
        assert!(matches!(ask(&[(1, Select::Top(0))]), Err(BatchError::Top { k: 0, .. })));
        assert!(matches!(ask(&[(1, Select::Top(101))]), Err(BatchError::Top { k: 101, .. })));
    }

    #[test]
    fn output_rows_are_found_again_or_refused() {
        let outputs = vec![
            OutputRow::new(0, Select::Top(1)),
            OutputRow::new(1, Select::Logits),
            OutputRow::new(2, Select::Top(2)),
        ];
        let batch = Batch::new(vec![slice(1, 0, 4, &[0])], outputs, &limits(&[StateSpec::Paged])).unwrap();
        let entry = |token| TopEntry { token, logit: 1.0 };
        let mut output = HeadOutput {
            logits: vec![0.5; 100],
            top: vec![vec![entry(4)], vec![entry(5), entry(6)]],
            ..HeadOutput::default()
        };
        let rows = output.rows(&batch).unwrap();
        assert_eq!(rows[0], RowOutput::Top(&[entry(4)]));
        assert!(matches!(rows[1], RowOutput::Logits(l) if l.len() == 100));
        assert_eq!(rows[2], RowOutput::Top(&[entry(5), entry(6)]));
        // Shorter where nothing else can be chosen; never longer, out of order, or with what cannot be chosen.
        let with = |list: Vec<TopEntry>| HeadOutput { top: vec![vec![entry(4)], list], ..output.clone() };
        assert!(with(vec![entry(5)]).rows(&batch).is_some() && with(vec![]).rows(&batch).is_some());
        assert_eq!(with(vec![entry(5), entry(6), entry(7)]).rows(&batch), None);
        assert_eq!(with(vec![entry(6), entry(5)]).rows(&batch), None);
        assert_eq!(with(vec![entry(100)]).rows(&batch), None);
        assert_eq!(with(vec![TopEntry { token: 5, logit: f32::NEG_INFINITY }]).rows(&batch), None);
        output.top.pop();
        assert_eq!(output.rows(&batch), None);
        let short = HeadOutput { logits: vec![0.5; 99], ..HeadOutput::default() };
        assert_eq!(short.rows(&batch), None);
    }

    #[test]
    fn whole_sequences_begin_at_their_first_position_and_come_once() {
        let none = Arc::new(BatchLimits { vocab: 10, state: None });
        let bare = |id, start, tokens| Slice { tables: vec![], ..slice(id, start, tokens, &[]) };
        let whole = |slices| Batch::of_whole_sequences(slices, vec![], &none);
        let batch = whole(vec![bare(1, 0, 4), bare(2, 0, 7), bare(3, 0, 1)]).unwrap();
        assert_eq!(batch.whole(), Some(7));
        assert_eq!(Batch::new(vec![bare(1, 0, 4)], vec![], &none).unwrap().whole(), None);
        let part = |id, start| Err(BatchError::Part { sequence: SequenceId(id), start });
        assert_eq!(whole(vec![bare(1, 0, 4), bare(2, 3, 7)]), part(2, 3));
        assert_eq!(whole(vec![bare(1, 0, 4), bare(1, 0, 2)]), part(1, 0));
        assert_eq!(whole(vec![Slice { slot: Some(1), ..bare(4, 0, 1) }]), part(4, 0));
    }

    #[test]
    fn hidden_states_come_in_rows_of_one_width_and_unedited() {
        let rows = [(0, Select::Hidden), (1, Select::Top(1)), (3, Select::Hidden)];
        let outputs: Vec<OutputRow> = rows.map(|(row, select)| OutputRow::new(row, select)).to_vec();
        let make = |outputs| Batch::new(vec![slice(1, 0, 4, &[0])], outputs, &limits(&[StateSpec::Paged]));
        let batch = make(outputs.clone()).unwrap();
        assert_eq!((batch.hidden_rows(), batch.logit_rows()), (2, 0));
        let with = |hidden: Vec<f32>| HeadOutput { hidden, top: vec![vec![]], ..HeadOutput::default() };
        let output = with(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let rows = output.rows(&batch).unwrap();
        assert_eq!(rows[0], RowOutput::Hidden(&[1.0, 2.0, 3.0]));
        assert_eq!(rows[2], RowOutput::Hidden(&[4.0, 5.0, 6.0]));
        assert_eq!(with(vec![1.0; 5]).rows(&batch), None);
        assert_eq!(with(vec![]).rows(&batch), None);
        let mut edited = outputs;
        edited[2].edits.adjustments.push(Adjustment::none(3));
        assert_eq!(make(edited), Err(BatchError::Hidden { row: 3 }));
    }

    #[test]
    fn slots_keep_and_feed_single_tokens() {
        let with = |slots: [Option<u32>; 2], keeps: [Option<u32>; 2], select, edits: Edits| {
            let slices = vec![
                Slice { slot: slots[0], ..slice(1, 3, 1, &[0]) },
                Slice { slot: slots[1], ..slice(2, 3, 2, &[1]) },
            ];
            let output =
                |(row, keep)| OutputRow { keep, edits: edits.clone(), ..OutputRow::new(row, select) };
            let outputs = [(0, keeps[0]), (2, keeps[1])].map(output).to_vec();
            Batch::new(slices, outputs, &limits(&[StateSpec::Paged]))
        };
        let (top, none) = (Select::Top(2), Edits::default);
        let batch = with([Some(7), None], [Some(7), Some(3)], top, none()).unwrap();
        assert_eq!(batch.feeds().collect::<Vec<_>>(), [(0, 7)]);
        assert_eq!(batch.keeps().collect::<Vec<_>>(), [(0, 7), (1, 3)]);
        let output = HeadOutput {
            top: vec![vec![TopEntry { token: 5, logit: 1.0 }], vec![]],
            ..HeadOutput::default()
        };
        assert_eq!(output.kept(&batch).collect::<Vec<_>>(), [(7, 5), (3, 0)]);
        let slot = |made: Result<Batch, BatchError>| match made {
            Err(BatchError::Slot { slot }) => slot,
            other => panic!("{other:?}"),
        };
        assert_eq!(slot(with([None, Some(4)], [None, None], top, none())), 4);
        assert_eq!(slot(with([Some(1024), None], [None, None], top, none())), 1024);
        assert_eq!(slot(with([None, None], [None, Some(1024)], top, none())), 1024);
        assert_eq!(slot(with([None, None], [Some(5), Some(5)], top, none())), 5);
        assert_eq!(slot(with([None, None], [Some(6), None], Select::Logits, none())), 6);
        let edits = Edits { adjustments: vec![Adjustment::none(1)], mask: None };
        assert_eq!(slot(with([None, None], [Some(8), None], top, edits)), 8);
    }

    #[test]
    fn edits_are_for_the_vocabulary_and_hold_what_comes_back() {
        let ask = |edits: Edits| {
            let outputs = vec![OutputRow { edits, ..OutputRow::new(0, Select::Top(2)) }];
            Batch::new(vec![slice(1, 0, 1, &[0])], outputs, &limits(&[StateSpec::Paged]))
        };
        let mask = |words: &[u32]| {
            ask(Edits { mask: Some(Arc::new(TokenMask::new(words.to_vec()))), ..Edits::default() })
        };
        let adjust =
            |adjustments: &[Adjustment]| ask(Edits { adjustments: adjustments.to_vec(), mask: None });
        let batch = mask(&[0, 0b110, 0, 0]).unwrap();
        assert!(matches!(mask(&[1; 3]), Err(BatchError::Mask { row: 0, words: 3, vocab: 100 })));
        assert!(matches!(mask(&[0, 0, 0, 1 << 4]), Err(BatchError::Mask { .. })));
        let of = Adjustment::none;
        assert!(adjust(&[of(0), of(7), of(99)]).is_ok());
        let bad = [f32::NAN, f32::INFINITY, 0.0, -1.0].map(|divisor| Adjustment { divisor, ..of(9) });
        let others =
            [Adjustment { bias: f32::INFINITY, ..of(9) }, Adjustment { penalties: [0.0, f32::NAN], ..of(9) }];
        for adjustment in bad.into_iter().chain(others) {
            assert!(matches!(adjust(&[of(3), adjustment]), Err(BatchError::Adjustment { token: 9, .. })));
        }
        assert!(matches!(adjust(&[of(3), of(3)]), Err(BatchError::Adjustment { token: 3, .. })));
        assert!(matches!(adjust(&[of(100)]), Err(BatchError::Adjustment { token: 100, .. })));
        let listed = |tokens: &[u32]| {
            let list = tokens.iter().map(|token| TopEntry { token: *token, logit: 0.5 }).collect();
            HeadOutput { top: vec![list], ..HeadOutput::default() }.rows(&batch).is_some()
        };
        assert!(listed(&[33, 34]) && listed(&[34]) && listed(&[]));
        assert!(!listed(&[33, 35]) && !listed(&[1]));
    }
}
