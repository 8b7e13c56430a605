//! What may be typed after `serve`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::context::ContextChoice;
use crate::parse;
use crate::settings::DraftChoice;
use crate::shared_args::{CONTEXT_ALIASES, DeviceArgs, KvArgs, KvDiskArgs, MemoryArgs, PlaceArgs};

/// Serve models over HTTP: OpenAI's API and a chat page
///
/// Programs that speak to OpenAI work with http://127.0.0.1:8080/v1 as their base URL. A browser shows a chat page at the address itself. Only this machine
/// can connect, unless --host says otherwise; then set UNICORN_API_KEY or --api-key-file, so that not everybody can use it.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:
  unicorn serve
  unicorn serve -m qwen3-4b -m gemma3-270m --port 8000
  unicorn serve --models-dir ~/models --models-max 2
  UNICORN_API_KEY=secret unicorn serve --host 0.0.0.0")]
pub struct ServeArgs {
    /// Known name, file, directory, or Hugging Face `owner/repo[:quant]`; may be repeated, the first is the default [default: smollm2-135m]
    ///
    /// Models that are not on this machine are fetched first. The first is loaded at once, others when they are asked for.
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::AnyPath, help_heading = "Models")]
    pub model: Vec<String>,
    /// Folder of models that may be asked for by their file's or folder's name
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Models")]
    pub models_dir: Option<PathBuf>,
    /// Models that are loaded at once; the one asked least lately goes first
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse::positive, allow_negative_numbers = true, help_heading = "Models")]
    pub models_max: usize,
    /// Another name for a model, as in `NAME=MODEL`, or for the default one as in `NAME`; one `*` stands for anything
    ///
    /// `gpt-*` and `claude-*` mean the default model unless said otherwise.
    #[arg(long, value_name = "NAME[=MODEL]", help_heading = "Models")]
    pub alias: Vec<String>,
    /// Chat template to use in place of the models' own, a Jinja file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Models")]
    pub chat_template: Option<PathBuf>,
    /// Address to listen on; 0.0.0.0 for all of this machine's
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Network")]
    pub host: IpAddr,
    /// Port to listen on; 0 for any that is free
    #[arg(short, long, value_name = "PORT", default_value = "8080", help_heading = "Network")]
    pub port: u16,
    /// File with API keys, one a line, lines that begin with `#` are comments; clients must bring one of them, or of those in UNICORN_API_KEY
    ///
    /// UNICORN_API_KEY holds a key, or several with commas between them.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Network")]
    pub api_key_file: Option<PathBuf>,
    /// Origin whose web pages may call, such as https://chat.example; * for all
    #[arg(long, value_name = "ORIGIN", help_heading = "Network")]
    pub cors_origin: Vec<String>,
    /// Name under which clients may reach this server, beside localhost and numbers
    #[arg(long, value_name = "NAME", help_heading = "Network")]
    pub allow_host: Vec<String>,
    /// Seconds in which a client must send the head of a request
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = parse::positive, allow_negative_numbers = true, help_heading = "Network")]
    pub head_timeout: usize,
    /// Seconds in which a client must send the body of a request
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse::positive, allow_negative_numbers = true, help_heading = "Network")]
    pub body_timeout: usize,
    /// Requests that run at once; more wait
    #[arg(long, aliases = ["parallel", "max-num-seqs", "sequences"], value_name = "N", default_value = "16", value_parser = parse::positive, allow_negative_numbers = true, help_heading = "Load")]
    pub slots: usize,
    /// Requests that wait beyond those that run; more are refused
    #[arg(long, value_name = "N", default_value = "256", value_parser = parse::count, allow_negative_numbers = true, help_heading = "Load")]
    pub queue: usize,
    /// Longest context of a request in tokens, prompt and answer; 0 for all that the model allows [default: the model's, 32768 at most]
    #[arg(
        short,
        long,
        aliases = CONTEXT_ALIASES,
        value_name = "TOKENS",
        value_parser = parse::context,
        allow_negative_numbers = true,
        help_heading = "Load"
    )]
    pub ctx: Option<ContextChoice>,
    /// Tokens that the KV cache holds for all requests together [default: 65536, or one context where that is longer; less where it does not fit]
    #[arg(long, value_name = "TOKENS", value_parser = parse::positive, allow_negative_numbers = true, help_heading = "Load")]
    pub kv_tokens: Option<usize>,
    /// Guess the next tokens and verify several at once, as in `run`; it stops by itself in requests where it loses time [default: no guesses]
    #[arg(long, value_name = "HOW", help_heading = "Load")]
    pub draft: Option<DraftChoice>,
    /// Share of the time that may go into computing samples of answers again on the processor, to find kernels that compute wrong; 1% is plenty [default: none]
    ///
    /// A kernel that is wrong several times is not used any more, and answers that it may have touched are computed again or end with an error.
    #[arg(long, value_name = "PERCENT", value_parser = parse::share, allow_negative_numbers = true, help_heading = "Load")]
    pub canary: Option<f64>,
    /// Write a line of JSON to stderr for each request when it has ended: model, route, status, tokens and times, nothing that was said
    #[arg(long, help_heading = "Load")]
    pub log_requests: bool,
    /// Seconds that running answers may take once the server is told to end
    #[arg(long, value_name = "SECONDS", default_value = "30", help_heading = "Load")]
    pub drain: u32,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub kv: KvArgs,
    #[command(flatten)]
    pub disk: KvDiskArgs,
}
