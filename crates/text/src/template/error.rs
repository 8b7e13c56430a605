//! Why a conversation cannot be rendered.

/// Why a template cannot be compiled or rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The source is not a template.
    #[error("chat template, line {line}: {reason}")]
    Syntax {
        /// Line of the source, from 1; 0 if unknown.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// The template refused the conversation with `raise_exception`; this is its message.
    #[error("the chat template refuses the conversation: {0}")]
    Raised(String),
    /// The template leaves out the message that is to be answered, in every form that contents can have.
    #[error("the chat template leaves out the last {role} message: the model would not see it")]
    DropsMessage {
        /// The role of the message.
        role: String,
    },
    /// The template did not end within its fuel, or would have produced too much text.
    #[error("the chat template exceeds its limit on work and output")]
    OutOfFuel,
    /// The template did work that fuel does not count, for too long.
    #[error("the chat template did not end within {0} seconds")]
    Deadline(u64),
    /// The template is still at work on something for which it had no more time.
    #[error("the chat template has not ended with another conversation yet")]
    Late,
    /// The system gave no thread to render on, and the template or the conversation is too large to do without.
    #[error(
        "the system gives no thread, without which the chat template has too little memory for this: {0}"
    )]
    Thread(String),
    /// The conversation uses every character that could mark a place in it.
    #[error("the conversation uses all characters that Unicode sets aside for private use")]
    NoMark,
    /// An extra argument has the name of a variable that cannot be replaced.
    #[error("chat template argument `{0}` is reserved")]
    Reserved(String),
    /// Rendering failed.
    #[error("chat template, line {line}: {reason}")]
    Render {
        /// Line of the source, from 1; 0 if unknown.
        line: usize,
        /// What went wrong there.
        reason: String,
    },
}

impl TemplateError {
    /// Whether another form of the conversation would not help.
    pub(super) fn is_limit(&self) -> bool {
        matches!(
            self,
            Self::OutOfFuel
                | Self::Deadline(_)
                | Self::Late
                | Self::Thread(_)
                | Self::Reserved(_)
                | Self::NoMark
        )
    }
}
