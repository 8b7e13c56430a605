//! What is known of a model before its weights are fetched, so that the caller can refuse it then.

/// The beginning of a model.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Preview<'a> {
    /// A safetensors model.
    Safetensors {
        /// `config.json`.
        config: &'a [u8],
        /// Names of all files that make the model.
        files: &'a [&'a str],
    },
    /// A GGUF model.
    Gguf {
        /// The first bytes of its (first) file, a megabyte at most.
        head: &'a [u8],
        /// Bytes of that file, where the hub told.
        bytes: Option<u64>,
    },
}

/// Called once with the beginning of a model that is about to be fetched; the error is why it is not to be.
pub(crate) type Check<'a> = dyn Fn(Preview<'_>) -> Result<(), String> + 'a;
