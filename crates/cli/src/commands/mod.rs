//! One file per subcommand.

pub mod bench;
pub mod completions;
pub mod devices;
pub mod embed;
pub mod inspect;
pub mod kv;
pub mod models;
pub mod perplexity;
pub mod plan;
pub mod pull;
pub mod rm;
pub mod run;
pub mod selftest;
pub mod serve;
pub mod tokenize;
