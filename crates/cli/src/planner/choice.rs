//! What a person may say about a placement, and about what it is to be fast at.

use std::str::FromStr;

use unicorn_engine::PlaceRules;

/// Which device runs which part.
#[derive(Clone, PartialEq, Debug)]
pub enum Place {
    /// The planner decides among the devices that may be taken unasked.
    Auto,
    /// As the rules say.
    Rules(PlaceRules),
    /// All on one device.
    One,
}

impl FromStr for Place {
    type Err = unicorn_engine::PlaceError;

    fn from_str(text: &str) -> Result<Place, unicorn_engine::PlaceError> {
        if text.trim() == "auto" { Ok(Place::Auto) } else { text.parse().map(Place::Rules) }
    }
}

/// Tokens of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Load {
    /// Positions before its prompt.
    pub past: usize,
    /// Tokens of its prompt; 0 for none.
    pub prompt: usize,
    /// Tokens of its answer; 0 for none.
    pub decode: usize,
    /// Equal requests at once.
    pub sequences: usize,
}

impl Default for Load {
    /// What is planned for where nobody says how much there is to do.
    fn default() -> Load {
        Load { past: 0, prompt: 512, decode: 128, sequences: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_is_a_placement_and_the_rest_are_rules() {
        assert_eq!("auto".parse::<Place>().unwrap(), Place::Auto);
        assert!(matches!("mixer=cpu,ffn=vulkan".parse::<Place>().unwrap(), Place::Rules(_)));
        assert!("automatic".parse::<Place>().is_err());
    }
}
