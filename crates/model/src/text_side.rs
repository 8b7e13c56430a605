//! The text side of a model: all that stands between messages and token ids.

use unicorn_text::{ChatTemplate, TemplateError, Tokenizer};

use crate::error::ModelError;
use crate::notice::Notice;
use crate::open::OpenModel;
use crate::recommended::Recommended;
use crate::text::OpenTokenizer;

/// Tokenizer, chat template and what the model recommends.
#[derive(Debug)]
pub struct TextSide {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// A template that cannot be compiled is an error only where it is needed.
    template: Result<Option<ChatTemplate>, TemplateError>,
    /// How the model wants its answers written.
    pub recommended: Recommended,
    /// Ids that end an answer, ascending.
    pub stop_tokens: Vec<u32>,
}

impl TextSide {
    /// Reads the text side of a model; what had to be guessed comes back too.
    ///
    /// # Errors
    /// What is wrong with the tokenizer's or the template's files. A template that does not compile is none of these: see [`TextSide::template`].
    pub fn open(model: &OpenModel) -> Result<(TextSide, Vec<Notice>), ModelError> {
        let OpenTokenizer { tokenizer, notices } = model.tokenizer()?;
        let source = model.chat_template()?;
        let template = source.map_or(Ok(None), |source| ChatTemplate::new(&source, &tokenizer));
        let defaults = model.generation_defaults();
        let recommended = Recommended {
            temperature: defaults.temperature,
            top_k: defaults.top_k.map(|k| k as usize),
            top_p: defaults.top_p,
            min_p: defaults.min_p,
            repeat_penalty: defaults.repeat_penalty,
            system: None,
        };
        let recommended = recommended.or_by_name(&model.spec.name);
        let mut stop_tokens = tokenizer.end_tokens().to_vec();
        stop_tokens.extend(&defaults.stop_tokens);
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        Ok((TextSide { template, tokenizer, recommended, stop_tokens }, notices))
    }

    /// Uses the template in `source` in place of the model's own.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`]; `Ok(false)` where there is no template in `source`, and the model's own stays.
    pub fn set_template(&mut self, source: &str) -> Result<bool, TemplateError> {
        let template = ChatTemplate::new(source, &self.tokenizer)?;
        let holds = template.is_some();
        if holds {
            self.template = Ok(template);
        }
        Ok(holds)
    }

    /// The chat template; `None` for models that only continue text.
    ///
    /// # Errors
    /// Why the model's own cannot be compiled.
    pub fn template(&self) -> Result<Option<&ChatTemplate>, TemplateError> {
        self.template.as_ref().map(Option::as_ref).map_err(Clone::clone)
    }
}
