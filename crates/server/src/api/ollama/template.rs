//! What a model's chat template says about it.

use unicorn_grammar::Dialect;
use unicorn_model::TextSide;
use unicorn_text::ChatTemplate;

/// The chat template of a model, if it has one that can be used.
pub(super) fn source(text: &TextSide) -> Option<&str> {
    text.template().ok().flatten().map(ChatTemplate::source)
}

/// Whether a model with this template shows what it thinks.
pub(super) fn can_think(template: &str) -> bool {
    Dialect::detect(template).reasons()
}
