//! Which tokens end an answer.

use crate::vocabulary::{TokenKind, Vocabulary};

/// Tokens that end an answer, whatever kind the file gives them: nobody writes them in text.
const END_MARKERS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "<|fim_pad|>",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "[e~[",
];

/// Tokens that end an answer unless the file says that they are ordinary text.
const END_MARKERS_IF_SPECIAL: &[&str] =
    &["</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[PAD]", "<PAD>"];

/// Collects the tokens that end an answer, in ascending order, and makes control tokens of the markers among them: those that
/// the model's files name, and those that the vocabulary has under a text that is known to end an answer.
pub(crate) fn end_tokens(vocabulary: &mut Vocabulary, named: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut ends: Vec<u32> = END_MARKERS.iter().filter_map(|text| vocabulary.find(text)).collect();
    let markers = ends.clone();
    ends.extend(named);
    let special = |id: &u32| vocabulary.kind(*id).is_some_and(|kind| kind != TokenKind::Normal);
    ends.extend(END_MARKERS_IF_SPECIAL.iter().filter_map(|text| vocabulary.find(text)).filter(special));
    let has = |text: &str| vocabulary.find(text).is_some();
    // In the Harmony format `<|end|>` ends a message but not the answer.
    let harmony = (has("<|return|>") && has("<|call|>")) || (has("<|calls|>") && has("<|flush|>"));
    // Gemma 4 has `</s>` as the HTML tag.
    let html = has("<|tool_response>");
    let kept: Vec<u32> = [("<|end|>", harmony), ("</s>", html)]
        .iter()
        .filter(|(_, keep)| *keep)
        .filter_map(|(text, _)| vocabulary.find(text))
        .collect();
    ends.retain(|id| !kept.contains(id));
    ends.sort_unstable();
    ends.dedup();
    for id in markers.into_iter().filter(|id| !kept.contains(id)) {
        vocabulary.set_kind(id, TokenKind::Control);
    }
    ends
}
