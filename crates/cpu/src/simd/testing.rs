//! Shared by the tests of this folder.

use unicorn_core::quant::Random;

/// A generator with a fresh seed, printed so that a failure can be repeated.
pub(crate) fn random_source(test: &str) -> Random {
    use std::hash::{BuildHasher, Hasher};
    let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
    println!("{test}: seed {seed}");
    Random::new(seed)
}
