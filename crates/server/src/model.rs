//! A model as the server sees it.

use unicorn_core::Pooling;
use unicorn_engine::Engine;
use unicorn_model::TextSide;

/// A model that was opened and is ready to answer.
pub struct LoadedModel {
    /// The model on its devices.
    pub engine: Engine,
    /// Tokenizer, template, recommendations.
    pub text: TextSide,
    /// What is told about it.
    pub facts: ModelFacts,
    /// Next tokens are guessed from the text so far, and several verified in one step.
    pub drafts: bool,
    /// How the hidden states of a text become one vector; a sentence where its files ask for what is not done here.
    pub pooling: Result<Pooling, String>,
}

/// What is told about a model.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct ModelFacts {
    /// As its files name it.
    pub name: String,
    /// As GGUF files name it: `llama`, `qwen3`, ...
    pub architecture: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Bytes of weights.
    pub weight_bytes: u64,
    /// Bytes that it holds on devices that are no processors.
    pub gpu_bytes: u64,
    /// Element type of most weights, for example `Q4_K`.
    pub quantization: String,
    /// Length of the residual stream.
    pub width: usize,
    /// It turns texts into vectors and writes none.
    pub encodes: bool,
    /// Longest context that it was trained for, in tokens.
    pub context_trained: usize,
    /// The devices that run it.
    pub devices: Vec<String>,
    /// Which part runs where, in a line.
    pub placement: String,
    /// Seconds since 1970 when its file was written.
    pub created: u64,
}

/// A model that was looked at and not loaded.
pub struct Description {
    /// Tokenizer, template, recommendations.
    pub text: TextSide,
    /// What is told about it. Nothing runs it yet, so that devices and placement are empty.
    pub facts: ModelFacts,
    /// Tokens of a sequence as it would be loaded, prompt and answer together.
    pub context: usize,
}

/// What the head of a model's file tells.
#[derive(Clone, PartialEq, Debug)]
pub struct Outline {
    /// As in [`Description`].
    pub facts: ModelFacts,
    /// As in [`Description`].
    pub context: usize,
    /// Tokens that it knows.
    pub vocab: usize,
}

/// A model that can be asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelEntry {
    /// The name that requests use.
    pub id: String,
    /// Bytes of memory that it takes, as far as is known before it is loaded.
    pub bytes: u64,
    /// Seconds since 1970 when its file was written.
    pub created: u64,
}

/// How a model is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Care {
    /// As the user wants it.
    Usual,
    /// Its devices were lost twice with the same requests: they are given less at a time.
    Small,
    /// The device of this name was lost again and again: on others of the machine.
    Without(String),
}

/// Why a model could not be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadError {
    /// A sentence for whoever runs the server, on one line.
    pub message: String,
    /// The same for those who ask: without the paths of files, for one.
    pub told: String,
    /// It did not fit beside what has memory already.
    pub memory: bool,
}

impl From<String> for LoadError {
    fn from(message: String) -> LoadError {
        LoadError { told: message.clone(), message, memory: false }
    }
}

impl From<&str> for LoadError {
    fn from(message: &str) -> LoadError {
        LoadError::from(message.to_owned())
    }
}

/// Opens models. The server knows neither files nor devices.
pub trait Loader: Send + Sync + 'static {
    /// The models that may be asked for, the default one first. Never empty.
    fn models(&self) -> Vec<ModelEntry>;

    /// Opens the model with this id; `progress` is told the share that is done, from 0 to 1. Takes as long as it takes.
    ///
    /// # Errors
    /// Where it cannot be opened with this care: where there are no other devices, for one.
    fn load(&self, id: &str, care: &Care, progress: &mut dyn FnMut(f32)) -> Result<LoadedModel, LoadError>;

    /// Looks at the model with this id without reading its weights.
    ///
    /// # Errors
    /// Where it cannot be opened.
    fn describe(&self, id: &str) -> Result<Description, LoadError>;

    /// Looks at the head of the file of the model with this id, and at nothing that takes long.
    ///
    /// # Errors
    /// Where it cannot be opened.
    fn outline(&self, id: &str) -> Result<Outline, LoadError>;

    /// Tells whoever runs the server, in a line.
    fn tell(&self, line: &str);

    /// Writes down a line of JSON about a request, where [`crate::ServerOptions::log_requests`] asks for them.
    fn log(&self, line: &str);
}
