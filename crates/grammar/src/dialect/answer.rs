//! What an answer may be, and the pieces that it is read into.

use serde_json::Value;

/// A tool that may be called.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// A JSON Schema of its arguments, which are an object.
    pub parameters: Value,
    /// Whether a schema that cannot be honoured is refused. Else it is relaxed.
    pub strict: bool,
}

/// Whether tools are called.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// Not at all.
    None,
    /// Once at least.
    Required,
    /// This one.
    Named(String),
}

/// What a model thinks before it answers, as the end of its prompt has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Thinking {
    /// It may begin to think, if it ever does.
    #[default]
    Possible,
    /// The prompt has begun a thought, which the answer goes on with.
    Begun,
    /// It does not think: the prompt says so.
    Over,
}

/// What the text of an answer has to be.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Body<'a> {
    /// Anything.
    #[default]
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that satisfies a schema; what cannot be honoured is refused.
    Schema(&'a Value),
    /// What a regular expression matches.
    Regex(&'a str),
    /// One of these.
    Choice(&'a [String]),
    /// What a grammar in Lark's syntax describes.
    Lark(&'a str),
    /// What a grammar in llama.cpp's syntax describes.
    Gbnf(&'a str),
}

/// What an answer may be.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AnswerRules<'a> {
    /// What its text has to be, where there are no calls.
    pub body: Body<'a>,
    /// Tools that may be called.
    pub tools: &'a [Tool],
    /// Whether they are.
    pub choice: ToolChoice,
    /// Whether an answer may hold several calls.
    pub parallel: bool,
    /// Whether the model thinks before it answers.
    pub thinking: Thinking,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// What is said.
    Text(String),
    /// What is thought.
    Reasoning(String),
    /// A call begins.
    CallStart {
        /// Number of the call, from 0.
        index: usize,
        /// What a result refers to.
        id: String,
        /// The tool.
        name: String,
    },
    /// More of a call's arguments: all together they are one JSON object.
    CallArguments {
        /// Number of the call.
        index: usize,
        /// The text to append.
        delta: String,
    },
    /// A call is complete.
    CallEnd {
        /// Number of the call.
        index: usize,
    },
}

/// An id of a call: nine letters and digits, which is what the strictest templates ask for.
pub(super) fn call_id(seed: u64, index: usize) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    // SplitMix64, so that near seeds give ids that are far apart.
    let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (0..9)
        .map(|_| {
            let letter = ALPHABET[(z % 62) as usize];
            z /= 62;
            char::from(letter)
        })
        .collect()
}
