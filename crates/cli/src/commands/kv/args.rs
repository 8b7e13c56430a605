//! What may be typed after `kv`.

use clap::{Args, Subcommand};

/// List the KV caches that are kept on disk, or remove them
///
/// `run` and `serve` keep what they computed for prompts and answers in pages on disk, so that the same beginning is not read again: after a
/// restart, in another process, on another day. They are found by content: the model's own, the text's, and that of the devices. --kv-disk
/// sets how much disk they may take, and 0 keeps none. They lie in UNICORN_KV_DIR, else in `unicorn/kv` in the cache folder
/// ($XDG_CACHE_HOME, ~/.cache), for their owner alone, and nothing but time is lost with them.
///
/// The chats that `unicorn run --continue` goes on with are text and no pages: they lie in `unicorn/chats` in the state folder
/// ($XDG_STATE_HOME, ~/.local/state), the last 20 of each model, and are not touched here.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:
  unicorn kv
  unicorn kv rm smollm2-135m
  unicorn kv rm --all")]
pub struct KvCommandArgs {
    #[command(subcommand)]
    pub what: Option<KvCommand>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Subcommand, Debug)]
pub enum KvCommand {
    #[command(visible_alias = "remove")]
    Rm(KvRmArgs),
}

/// Remove what is kept on disk of models' KV caches
///
/// Who uses a model meanwhile goes on without its pages.
#[derive(Args, Debug)]
pub struct KvRmArgs {
    /// Models as `unicorn kv` lists them, or their files or folders of pages
    #[arg(value_name = "MODEL", required_unless_present = "all", conflicts_with = "all")]
    pub models: Vec<String>,
    /// Those of all models
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
