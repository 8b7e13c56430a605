//! How long the context of an engine is to be.

/// How long the context is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContextChoice {
    /// Exactly this; an error where the model allows less.
    Exactly(usize),
    /// The model's, but not more than this.
    AtMost(usize),
    /// The model's, however long.
    Model,
}

impl ContextChoice {
    /// The context in tokens for a model trained on `model_max` of them. Errors with one line for people.
    pub fn resolve(self, model_max: usize) -> Result<usize, String> {
        match self {
            ContextChoice::Exactly(n) if n > model_max => {
                Err(format!("a context of {n} tokens: the model was trained for {model_max} at most"))
            }
            ContextChoice::Exactly(n) => Ok(n),
            ContextChoice::AtMost(n) => Ok(n.min(model_max)),
            ContextChoice::Model => Ok(model_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_stay_within_the_model() {
        assert_eq!(ContextChoice::AtMost(8192).resolve(2048), Ok(2048));
        assert_eq!(ContextChoice::AtMost(8192).resolve(131_072), Ok(8192));
        assert_eq!(ContextChoice::Exactly(100).resolve(2048), Ok(100));
        assert_eq!(ContextChoice::Model.resolve(131_072), Ok(131_072));
        let error = ContextChoice::Exactly(4096).resolve(2048).unwrap_err();
        assert!(error.contains("4096") && error.contains("2048"), "{error}");
    }
}
