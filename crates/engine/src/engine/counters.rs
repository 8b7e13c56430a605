//! Figures of a running engine, for metrics and for people.

use unicorn_core::{CanaryCounts, SequenceId};

/// What an engine holds now, and what it has done since it was made.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Counters {
    /// Sequences that wait.
    pub waiting: usize,
    /// Sequences that run.
    pub running: usize,
    /// Pages of state in all groups together.
    pub pages: usize,
    /// Pages that nobody holds.
    pub pages_free: usize,
    /// Pages that only the prefix cache holds: they give way to running sequences.
    pub pages_kept: usize,
    /// Times that a running sequence was sent back to the queue.
    pub preemptions: u64,
    /// Tokens of the prompts that have left the queue.
    pub prompt_tokens: u64,
    /// How many of them the prefix cache had.
    pub reused_tokens: u64,
    /// How many of these came from a store.
    pub restored_tokens: u64,
    /// Pages that went to the store, each state group's by itself.
    pub saved_pages: u64,
    /// Their bytes.
    pub saved_bytes: u64,
    /// Pages that were to go there and did not: there was no memory for the copy, or the store did not keep them.
    pub unsaved_pages: u64,
    /// Pages that came from the store, each state group's by itself.
    pub restored_pages: u64,
    /// Their bytes.
    pub restored_bytes: u64,
    /// Pages that the store had and that could not be read.
    pub failed_reads: u64,
    /// Tokens chosen, stop tokens included.
    pub generated_tokens: u64,
    /// Tokens that drafters guessed and the model verified.
    pub drafted_tokens: u64,
    /// How many of them were what the model chose.
    pub accepted_tokens: u64,
    /// Batches for which a device found no memory, and which were cut in smaller ones.
    pub batches_cut: u64,
    /// Sequences that were ended because their tokens may be wrong.
    pub doubted: u64,
    /// What the canary has done.
    pub canary: CanaryCounts,
}

/// What a sequence is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SequenceState {
    /// It waits for a place or for pages; one that has run before will be computed again.
    Waiting,
    /// Its prompt is being read.
    Prefill,
    /// It generates.
    Decode,
}

/// A sequence as it is now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SequenceInfo {
    /// Whose.
    pub id: SequenceId,
    /// What it does.
    pub state: SequenceState,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of prompt and answer that are computed, reused ones included.
    pub computed_tokens: usize,
    /// Tokens chosen.
    pub generated_tokens: usize,
}
