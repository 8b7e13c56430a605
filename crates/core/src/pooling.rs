//! How the hidden states of a text become one vector.

/// How the hidden states of a text become one vector.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Pooling {
    /// The mean over all tokens.
    Mean,
    /// The first token's, which BERT calls `[CLS]`.
    Cls,
    /// The last token's.
    Last,
}

impl Pooling {
    /// Every way with its name.
    pub const ALL: [(Pooling, &str); 3] =
        [(Pooling::Mean, "mean"), (Pooling::Cls, "cls"), (Pooling::Last, "last")];

    /// Parses `mean`, `cls` or `last`.
    pub fn parse(name: &str) -> Option<Pooling> {
        Pooling::ALL.into_iter().find(|(_, known)| *known == name).map(|(pooling, _)| pooling)
    }
}

impl std::fmt::Display for Pooling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = Pooling::ALL.into_iter().find(|(pooling, _)| pooling == self);
        f.pad(name.map_or("", |(_, name)| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (pooling, name) in Pooling::ALL {
            assert_eq!((Pooling::parse(name), pooling.to_string()), (Some(pooling), name.to_owned()));
        }
        assert_eq!(Pooling::parse("max"), None);
    }
}
