//! The command line of `unicorn embed`.

use std::path::PathBuf;

use clap::{Args, ValueHint};
use unicorn_core::Pooling;

use crate::args::{DeviceArgs, KvArgs, MemoryArgs, ModelArgs, PlaceArgs};

/// Turn texts into vectors
///
/// One line of JSON for each text goes to stdout, in the order of the texts: the text, its tokens, and its vector. Models made for this,
/// such as minilm, say themselves how a vector comes of a text; every other model works too, with the mean of its tokens.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  unicorn embed -m minilm \"The cat sat on the mat.\" \"A feline rested.\"
  unicorn embed -m minilm --file sentences.txt > vectors.jsonl")]
pub struct EmbedArgs {
    /// The texts
    #[arg(value_name = "TEXT", conflicts_with = "file", required_unless_present = "file")]
    pub texts: Vec<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// A file with one text a line, UTF-8; - for stdin; empty lines are left out
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Text")]
    pub file: Option<PathBuf>,
    /// How the tokens of a text become one vector: mean, cls (the first) or last [default: what the model's files say, else mean]
    #[arg(long, value_name = "HOW", value_parser = pooling, help_heading = "Text")]
    pub pooling: Option<Pooling>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub kv: KvArgs,
}

fn pooling(name: &str) -> Result<Pooling, String> {
    let known = || Pooling::ALL.map(|(_, name)| name).join(", ");
    Pooling::parse(name).ok_or_else(|| format!("there are {}", known()))
}
