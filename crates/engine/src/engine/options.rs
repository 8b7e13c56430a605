//! Engine options.

use std::sync::Arc;

use unicorn_core::{Canary, KvType};

use crate::EngineError;
use crate::kv_store::KvStore;
use crate::memory::MemoryLimit;

/// Who looks at samples of what the devices compute. Two are equal when they are the same.
#[derive(Clone, Default)]
pub struct Overseer(pub Option<Arc<dyn Canary>>);

impl Overseer {
    /// The canary, where it looks at anything.
    pub(crate) fn looking(&self) -> Option<&Arc<dyn Canary>> {
        self.0.as_ref().filter(|canary| canary.looks())
    }
}

impl PartialEq for Overseer {
    fn eq(&self, other: &Overseer) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

impl Eq for Overseer {}

impl std::fmt::Debug for Overseer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_some() { "Overseer(canary)" } else { "Overseer(nobody)" })
    }
}

/// Sizes and limits of an engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EngineOptions {
    /// Tokens of a sequence at most, prompt and answer together.
    pub context: usize,
    /// Sequences that run at once.
    pub sequences_max: usize,
    /// Requests that wait at most beyond those that run.
    pub queue_max: usize,
    /// Element type of the KV cache.
    pub kv_type: KvType,
    /// Positions per KV page; a multiple of 32.
    pub page_tokens: usize,
    /// KV pages; `None` takes enough for `sequences_max` sequences of `context` tokens.
    pub kv_pages: Option<usize>,
    /// Tokens per step, decoding sequences included.
    pub prefill_chunk: usize,
    /// While sequences generate, prompts are read in pieces so that no batch takes longer than so many milliseconds, as far as the batches
    /// before tell; 16 tokens are read at least.
    pub stall_ms_max: u64,
    /// Finished sequences kept for prefix reuse (see [`crate::Request::keep`]), one that another begins with not counted; 0 keeps none. They live in
    /// free pages and give way to running sequences page by page.
    pub kept_max: usize,
    /// A step that always takes the likeliest token is launched before the one before has landed, where one device has the whole model: the
    /// device feeds itself.
    pub ahead: bool,
    /// Rows of a batch that are read, at most; `None` for one of each sequence.
    pub outputs_max: Option<usize>,
    /// Memory that may be taken; without any, what there is is found out by loading.
    pub memory_limits: Vec<MemoryLimit>,
    /// Who looks at samples of what the devices compute; residual streams have buffers in host memory then.
    pub overseer: Overseer,
    /// Where kept pages outlive the engine, and where it looks for pages that others saved; `None` for nowhere.
    pub store: Option<KvStore>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            context: 4096,
            sequences_max: 1,
            queue_max: 64,
            kv_type: KvType::F16,
            page_tokens: 64,
            kv_pages: None,
            prefill_chunk: 512,
            stall_ms_max: 100,
            kept_max: 4,
            ahead: true,
            outputs_max: None,
            memory_limits: Vec::new(),
            overseer: Overseer::default(),
            store: None,
        }
    }
}

impl EngineOptions {
    /// KV pages of the pool.
    pub fn pages(&self) -> usize {
        let each = self.context.div_ceil(self.page_tokens.max(1));
        self.kv_pages.unwrap_or(each.saturating_mul(self.sequences_max))
    }

    /// Errors with the name of the first option that is out of range for a model trained on `context_max` tokens.
    pub fn validate(&self, context_max: usize) -> Result<(), EngineError> {
        let at_least_one = [
            ("context", self.context),
            ("sequences_max", self.sequences_max),
            ("prefill_chunk", self.prefill_chunk),
            ("kv_pages", self.pages()),
        ];
        for (name, value) in at_least_one {
            if value == 0 {
                return Err(EngineError::option(name, value, "must be at least 1"));
            }
        }
        if self.page_tokens == 0 || !self.page_tokens.is_multiple_of(32) {
            return Err(EngineError::option("page_tokens", self.page_tokens, "must be a multiple of 32"));
        }
        if self.context > context_max {
            let reason = format!("the model was trained for {context_max} tokens");
            return Err(EngineError::option("context", self.context, reason));
        }
        if self.pages() > u32::MAX as usize / 2 {
            return Err(EngineError::option("kv_pages", self.pages(), "page numbers have 31 bits"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_options_are_named() {
        let base = EngineOptions::default;
        let cases = [
            ("context", EngineOptions { context: 0, ..base() }),
            ("context", EngineOptions { context: 8193, ..base() }),
            ("sequences_max", EngineOptions { sequences_max: 0, ..base() }),
            ("prefill_chunk", EngineOptions { prefill_chunk: 0, ..base() }),
            ("page_tokens", EngineOptions { page_tokens: 48, ..base() }),
            ("page_tokens", EngineOptions { page_tokens: 0, ..base() }),
            ("kv_pages", EngineOptions { kv_pages: Some(0), ..base() }),
            ("kv_pages", EngineOptions { sequences_max: usize::MAX, ..base() }),
        ];
        for (expected, options) in cases {
            match options.validate(8192) {
                Err(EngineError::Option { name, .. }) => assert_eq!(name, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        assert!(base().validate(8192).is_ok());
        assert_eq!(base().pages(), 64);
    }
}
