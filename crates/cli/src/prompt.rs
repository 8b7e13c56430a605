//! From messages or text to prompt tokens.

use anyhow::Context;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use unicorn_model::TextSide;
use unicorn_text::{Adjustment, DateTime, EncodeOptions, RenderOptions};

use crate::config::Config;
use crate::conversation::Conversation;
use crate::output::say;

/// A prompt as tokens.
pub type Tokens = Vec<u32>;

/// A conversation as tokens, ready for the next answer.
pub struct ChatPrompt {
    /// The prompt.
    pub tokens: Tokens,
    /// What the model's template made necessary.
    adjustments: Vec<Adjustment>,
}

impl ChatPrompt {
    /// Says how the conversation differs from what was asked for, each difference once.
    pub fn tell(&self, config: &Config) {
        static TOLD: Mutex<Vec<Adjustment>> = Mutex::new(Vec::new());
        let mut told = TOLD.lock().unwrap_or_else(PoisonError::into_inner);
        for adjustment in &self.adjustments {
            if config.talks() && !told.contains(adjustment) {
                say!("{adjustment}");
                told.push(adjustment.clone());
            }
        }
    }
}

/// The conversation in the model's own format, ready for the next answer; `None` for a model without one.
pub fn chat(text: &TextSide, conversation: &Conversation) -> anyhow::Result<Option<ChatPrompt>> {
    let template = text.template().context("--raw goes without the chat template")?;
    let Some(template) = template else { return Ok(None) };
    let messages = serde_json::to_value(conversation.messages())?;
    let now = date(conversation.began().unwrap_or_else(SystemTime::now));
    let options = RenderOptions { now, ..RenderOptions::default() };
    let rendered = template.render(&messages, &options)?;
    let tokens = text.tokenizer.encode_prompt(&rendered.prompt)?;
    Ok(Some(ChatPrompt { tokens, adjustments: rendered.adjustments }))
}

/// Text to be continued as it is. Special tokens written out in it count as such where `special` is set.
pub fn raw(text: &TextSide, prompt: &str, special: bool) -> anyhow::Result<Tokens> {
    let options = EncodeOptions { parse_special: special, add_special: true };
    Ok(text.tokenizer.encode(prompt, options)?)
}

/// The date that templates may tell the model, in UTC.
fn date(time: SystemTime) -> Option<DateTime> {
    let since = time.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_secs()).ok().map(DateTime::from_unix)
}
