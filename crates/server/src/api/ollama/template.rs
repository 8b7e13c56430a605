//! What a chat template tells of its model.

use unicorn_model::TextSide;

/// The chat template of a model, if it has one that can be used.
pub(super) fn source(text: &TextSide) -> Option<&str> {
    text.template().ok().flatten().map(|template| template.source())
}

/// Whether a chat template has a place for what is thought.
pub(super) fn can_think(template: &str) -> bool {
    ["enable_thinking", "<think>", "reasoning_effort", "reasoning_content"]
        .iter()
        .any(|word| template.contains(word))
}
