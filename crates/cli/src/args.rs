//! The command line as typed. Nothing here is interpreted beyond its syntax; `config.rs` resolves it.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};

use crate::bench_spec::{ShapeChoice, WeightType};
pub use crate::commands::embed::EmbedArgs;
pub use crate::commands::kv::KvCommandArgs;
pub use crate::commands::serve::ServeArgs;
use crate::context::ContextChoice;
use crate::devices::Tier;
use crate::memory_max::MemoryMax;
use crate::parse::{self, OrAuto};
use crate::planner::Place;
use crate::settings::AnswerArgs;
pub use crate::shared_args::{
    CONTEXT_ALIASES, DeviceArgs, KvArgs, KvDiskArgs, MemoryArgs, ModelArgs, PlaceArgs,
};

const EXAMPLES: &str = "\
Examples:
  unicorn run \"What is the capital of France?\"      one answer, streamed
  unicorn run                                       a chat with history; /help lists its commands
  unicorn serve                                     an OpenAI-compatible server and a chat page on port 8080
  git diff | unicorn run -m qwen3-4b \"Review:\"     stdin is appended to the prompt
  unicorn bench -p 512 -n 128                       how fast, and how near to the machine's limits
  unicorn bench --shape llama-8b:q4_k               how fast a model would be, before downloading it

Exit codes:
  0 done   1 failed   2 wrong usage   130 interrupted by Ctrl-C   141 the reader of stdout went away

Environment:
  UNICORN_MODEL    default of --model
  UNICORN_API_KEY  what clients of `serve` have to bring; several are separated by commas
  UNICORN_KV_DIR   folder of KV caches that are kept on disk; `unicorn kv` lists them
  HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE    as for every Hugging Face tool
  NO_COLOR         no colours";

/// Runs large language models on every compute unit of this machine.
#[derive(Parser, Debug)]
#[command(name = "unicorn", version, after_help = EXAMPLES, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub global: GlobalArgs,
}

#[derive(Args, Debug)]
pub struct GlobalArgs {
    /// Say what was decided: device, kernels, placement, memory
    #[arg(short, long, global = true, help_heading = "Messages")]
    pub verbose: bool,
    /// Say only errors on stderr
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Messages")]
    pub quiet: bool,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    #[command(visible_alias = "chat")]
    Run(RunArgs),
    #[command(visible_alias = "server")]
    Serve(ServeArgs),
    #[command(visible_alias = "download")]
    Pull(PullArgs),
    #[command(visible_aliases = ["list", "ls"])]
    Models(ModelsArgs),
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    Kv(KvCommandArgs),
    Bench(BenchArgs),
    Plan(PlanArgs),
    Perplexity(PerplexityArgs),
    #[command(visible_alias = "embeddings")]
    Embed(EmbedArgs),
    #[command(visible_alias = "show")]
    Inspect(InspectArgs),
    Tokenize(TokenizeArgs),
    Devices(DevicesArgs),
    Selftest(SelftestArgs),
    Completions(CompletionsArgs),
}

/// Answer a prompt, or chat
///
/// With PROMPT, or with text on stdin, one answer is streamed to stdout. With neither, a chat starts; `/help` lists its
/// commands. A model's name alone starts that model: `unicorn run gemma3-270m` is `unicorn run -m gemma3-270m`. Figures
/// go to stderr: tokens per second for reading the prompt and for writing the answer.
///
/// Text on stdin is appended to PROMPT, and how much it was is said. A pipe that has sent nothing when the model is
/// loaded, and for 3 s at least, is left alone: --stdin waits for it however long it takes, --no-stdin never looks
/// (in `while read` loops, over ssh). Text that comes too late ends the run with an error. Without PROMPT, or with - in
/// its place, stdin is read to its end.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  unicorn run \"What is the capital of France?\"
  unicorn run -m ./Qwen3-0.6B-Q8_0.gguf --temp 0 \"Write a haiku about rain\"
  unicorn run --system \"Answer in French.\"
  unicorn run --continue
  echo 'Once upon a time' | unicorn run --raw --max-tokens 64 --seed 7")]
pub struct RunArgs {
    /// What to answer; without it and with a terminal on stdin, a chat starts
    pub prompt: Option<String>,
    /// The prompt, where a model's name came first
    #[arg(value_name = "PROMPT", hide = true)]
    pub second: Option<String>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// System prompt, before everything else [default: what suits the model; an empty text leaves it to the chat template]
    #[arg(
        long,
        alias = "system-prompt",
        value_name = "TEXT",
        conflicts_with = "raw",
        help_heading = "Prompt"
    )]
    pub system: Option<String>,
    /// Continue the text as it is, without the model's chat template; special tokens such as <|im_start|> in it count as such
    #[arg(long, help_heading = "Prompt")]
    pub raw: bool,
    /// Chat template to use in place of the model's own, a Jinja file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "raw", help_heading = "Prompt")]
    pub chat_template: Option<PathBuf>,
    /// Go on with the last chat or answer of this model; `unicorn kv --help` tells where they are kept
    #[arg(long = "continue", conflicts_with = "raw", help_heading = "Prompt")]
    pub go_on: bool,
    /// Wait for text on stdin, however long it takes to come
    #[arg(long, conflicts_with = "no_stdin", help_heading = "Prompt")]
    pub stdin: bool,
    /// Leave stdin alone
    #[arg(long, help_heading = "Prompt")]
    pub no_stdin: bool,
    /// Longest context in tokens: prompt, history and answer; 0 for all that the model allows [default: the model's, 8192 at most]
    #[arg(
        short,
        long,
        aliases = CONTEXT_ALIASES,
        value_name = "TOKENS",
        value_parser = parse::context,
        allow_negative_numbers = true,
        help_heading = "Prompt"
    )]
    pub ctx: Option<ContextChoice>,
    #[command(flatten)]
    pub answer: AnswerArgs,
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

/// Fetch a model into the Hugging Face cache folder
///
/// An interrupted download resumes where it stopped. Files are checked against their SHA-256 and appear whole or
/// not at all. The path to the model is printed on stdout.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  unicorn pull smollm2-135m
  unicorn pull ggml-org/gemma-3-270m-it-GGUF:q8_0
  unicorn pull https://huggingface.co/Qwen/Qwen3-0.6B-GGUF/blob/main/Qwen3-0.6B-Q8_0.gguf")]
pub struct PullArgs {
    /// A known name, a Hugging Face `owner/repo[@revision][:quant]`, or an address there
    #[arg(value_name = "MODEL")]
    pub name: String,
    /// Ask the source for a newer version of a model that is there already
    #[arg(long)]
    pub refresh: bool,
}

/// List the known models and those in the cache
#[derive(Args, Debug)]
pub struct ModelsArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Remove models from the cache
///
/// Files that other models in the cache use stay. Nothing outside the cache folder is touched.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  unicorn rm smollm2-135m
  unicorn rm --yes ggml-org/gemma-3-270m-it-GGUF:q8_0 Qwen/Qwen3-0.6B")]
pub struct RmArgs {
    /// Names as `unicorn models` lists them; `owner/repo` is all of a repository
    #[arg(value_name = "MODEL", required = true)]
    pub names: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

/// Measure speed, with the share of what the machine could do
///
/// Tests are named as in llama-bench: `ppN` reads a prompt of N tokens, `tgN` writes N tokens, ` @ dN` after N tokens
/// of context. The share is that of the measured read bandwidth (tg) or arithmetic rate (pp). Lists separated by
/// commas run each value.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Examples:
  unicorn bench -m smollm2-135m -p 128,512 -n 128 -d 0,4096
  unicorn bench --shape llama-8b:q4_k -r 3 --output md
  unicorn bench --shape 8b --type q4_k --device vulkan -p 512 -n 128 -d 0,8192 --profile
  unicorn bench --profile -n 0
  unicorn bench ffn --tokens 1,128 --width 4096 --hidden 16384 --type f16")]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: Option<BenchCommand>,
    #[command(flatten)]
    pub run: BenchModelArgs,
}

#[derive(Subcommand, Debug)]
pub enum BenchCommand {
    Ffn(BenchFfnArgs),
}

/// A model, or a well-known shape in its place.
#[derive(Args, Debug)]
pub struct SubjectArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// A well-known shape with random weights in place of a model, SIZE:TYPE, or SIZE with --type: 135m, 1b, 3b or llama-8b; q4_0, q4_k, q8_0, f16, ...
    #[arg(long, value_name = "SHAPE", conflicts_with = "model", help_heading = "Model")]
    pub shape: Option<ShapeChoice>,
    /// Type of the matrices of --shape
    #[arg(
        long = "type",
        value_name = "TYPE",
        requires = "shape",
        conflicts_with = "model",
        help_heading = "Model"
    )]
    pub ty: Option<WeightType>,
}

#[derive(Args, Debug)]
pub struct BenchModelArgs {
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// Prompt lengths in tokens; 0 for none
    #[arg(
        short = 'p',
        long,
        value_name = "N,..",
        value_delimiter = ',',
        value_parser = parse::count,
        allow_negative_numbers = true,
        default_value = "512",
        help_heading = "Tests"
    )]
    pub prompt: Vec<usize>,
    /// Numbers of tokens to write; 0 for none
    #[arg(
        short = 'n',
        long,
        value_name = "N,..",
        value_delimiter = ',',
        value_parser = parse::count,
        allow_negative_numbers = true,
        default_value = "128",
        help_heading = "Tests"
    )]
    pub generate: Vec<usize>,
    /// Sequences that write at once; with more than one they are requests, batched and sampled as any
    #[arg(
        long,
        value_name = "N,..",
        value_delimiter = ',',
        value_parser = parse::positive,
        allow_negative_numbers = true,
        default_value = "1",
        help_heading = "Tests"
    )]
    pub sequences: Vec<usize>,
    /// Depths: tokens already in the context
    #[arg(
        short,
        long,
        value_name = "N,..",
        value_delimiter = ',',
        value_parser = parse::count,
        allow_negative_numbers = true,
        default_value = "0",
        help_heading = "Tests"
    )]
    pub depth: Vec<usize>,
    /// Repetitions of each test, after one unmeasured
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = parse::repetitions, allow_negative_numbers = true, help_heading = "Tests")]
    pub repetitions: usize,
    /// What a written token brings back to the host
    #[arg(long, value_name = "WHAT", default_value = "top", help_heading = "Tests")]
    pub select: SelectArg,
    /// Show where the time goes, kernel by kernel, from one more run with every kernel timed
    #[arg(long, help_heading = "Tests")]
    pub profile: bool,
    /// Format on stdout
    #[arg(short, long, value_name = "FORMAT", default_value = "table", help_heading = "Tests")]
    pub output: OutputFormat,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub kv: KvArgs,
}

/// One SwiGLU feed-forward block on random weights
///
/// Where the device has the choice, a line with gate, up and activation fused into one kernel stands beside one with each apart. Times are
/// the GPU's own where it has timestamps, and wall time over many blocks in one submission; reading results back is in neither.
#[derive(Args, Debug)]
pub struct BenchFfnArgs {
    /// Tokens in the batch [default: 1,8,32,128,512,2048 on a GPU, 128 elsewhere]
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = parse::positive, allow_negative_numbers = true)]
    pub tokens: Vec<usize>,
    /// Model width
    #[arg(long, value_name = "N", default_value = "4096", value_parser = parse::positive, allow_negative_numbers = true)]
    pub width: usize,
    /// Hidden width
    #[arg(long, value_name = "N", default_value = "16384", value_parser = parse::positive, allow_negative_numbers = true)]
    pub hidden: usize,
    /// Type of the weights: f32, f16, q8_0, q4_k, ...
    #[arg(long = "type", visible_alias = "dtype", value_name = "TYPE", default_value = "f16")]
    pub dtype: WeightType,
    /// Best tier of matrix kernels that a GPU may use [default: the best it has]
    #[arg(long, value_name = "TIER")]
    pub tier: Option<Tier>,
    /// Repetitions, after one unmeasured
    #[arg(short, long, value_name = "N", default_value = "5", value_parser = parse::repetitions, allow_negative_numbers = true)]
    pub repetitions: usize,
    /// Format on stdout
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: OutputFormat,
    #[command(flatten)]
    pub device: DeviceArgs,
}

/// Predict how fast a model would be, on which devices, before loading it
///
/// The devices are measured once, which takes some seconds each, and their figures are kept. Every placement worth a thought is then run
/// through the engine's own schedule on these figures. Of the model only the beginning of its files is read. `run`, `bench` and
/// `perplexity` take the placement that is chosen here; `bench`, and `run` with --verbose, tell how right its prediction was, which corrects
/// the next ones.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  unicorn plan -m smollm2-135m
  unicorn plan --shape llama-8b:q4_k --prompt 4096 --decode 256
  unicorn plan -m ./model.gguf --place mixer=cpu,ffn=vulkan
  unicorn plan --shape 8b:q4_k --simulate phoenix")]
pub struct PlanArgs {
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// Tokens of a prompt; 0 for none
    #[arg(short, long, value_name = "N", default_value = "512", value_parser = parse::count, allow_negative_numbers = true, help_heading = "Load")]
    pub prompt: usize,
    /// Tokens of an answer; 0 for none
    #[arg(short = 'n', long, value_name = "N", default_value = "128", value_parser = parse::count, allow_negative_numbers = true, help_heading = "Load")]
    pub decode: usize,
    /// Equal requests at once
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse::sequences, allow_negative_numbers = true, help_heading = "Load")]
    pub sequences: usize,
    /// Longest context in tokens; 0 for all that the model allows [default: the load's]
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
    /// Predict this placement, beside each device alone; `auto` looks for the best
    #[arg(long, value_name = "RULES", help_heading = "Device")]
    pub place: Option<Place>,
    /// Memory that may be taken, of every device as in 6GiB, or of some as in cpu=8GiB,vulkan:0=6GiB [default: what there is]
    #[arg(long, value_name = "SIZE", help_heading = "Device")]
    pub memory_max: Option<MemoryMax>,
    /// A machine that is not here: phoenix, strix-point, strix-halo, 7900xtx, h100, or a file like theirs
    #[arg(long, value_name = "MACHINE", value_hint = ValueHint::FilePath, help_heading = "Device")]
    pub simulate: Option<String>,
    /// Measure the devices anew, and forget how right predictions were
    #[arg(long, conflicts_with = "simulate", help_heading = "Device")]
    pub recalibrate: bool,
    /// Worker threads of the CPU; 0 or -1 for the default [default: one per physical core]
    #[arg(short, long, value_name = "N", value_parser = parse::threads, allow_negative_numbers = true, conflicts_with = "simulate", help_heading = "Device")]
    pub threads: Option<OrAuto<usize>>,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Format on stdout
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: PlanFormat,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum PlanFormat {
    /// Text for people
    Table,
    /// One object
    Json,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SelectArg {
    /// The best token, chosen on the device: greedy decoding
    Top,
    /// The best 40, as the default sampling of `run` wants
    Top40,
    /// All logits, as llama-bench does
    Logits,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum OutputFormat {
    /// Aligned text
    Table,
    /// A list of objects
    Json,
    /// A Markdown table
    #[value(alias = "markdown")]
    Md,
}

/// Measure how well a model predicts a text
///
/// The text is cut into contexts of N tokens, and the second half of each is scored, as llama-perplexity does. The
/// running estimate goes to stderr, the result to stdout.
#[derive(Args, Debug)]
pub struct PerplexityArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Text to predict, UTF-8; - for stdin; special tokens in it are plain text
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Context length in tokens; 0 for all that the model allows [default: 512, or the model's where it is shorter]
    #[arg(
        short,
        long,
        aliases = CONTEXT_ALIASES,
        value_name = "TOKENS",
        value_parser = parse::context,
        allow_negative_numbers = true
    )]
    pub ctx: Option<ContextChoice>,
    /// Score only the first N contexts
    #[arg(long, value_name = "N", value_parser = parse::positive, allow_negative_numbers = true)]
    pub chunks: Option<usize>,
    #[command(flatten)]
    pub device: DeviceArgs,
    #[command(flatten)]
    pub place: PlaceArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    #[command(flatten)]
    pub kv: KvArgs,
}

/// Show a model file: metadata, tensors, sizes by type
///
/// FILE is a GGUF file (any shard of a split one), a safetensors file, or a directory as Hugging Face has them.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// File or directory; any other MODEL works too, of which only the beginnings of its files are fetched
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub file: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Turn the text on stdin into token ids on stdout
///
/// Ids are separated by spaces on one line; with --verbose one a line with its text. A newline at the end of stdin
/// is part of the text.
#[derive(Args, Debug)]
#[command(after_help = "Example:
  printf 'Hello world' | unicorn tokenize -m smollm2-135m")]
pub struct TokenizeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Read special tokens such as <|im_start|> in the text as such; otherwise they are plain text
    #[arg(long)]
    pub special: bool,
    /// Leave out the tokens that the model wants before and after a text
    #[arg(long)]
    pub no_bos: bool,
}

/// Check every kernel of a device against the reference
///
/// Runs the table of kernel and block cases on the device and on plain float64 loops with the same random weights and input.
/// Drivers differ: this tells whether yours computes what the kernels say. A kernel that is found wrong is remembered for this device,
/// driver and version of unicorn, and not used until a selftest finds it right.
///
/// With --model, greedy answers to 20 prompts and the perplexity of a text are compared with the CPU's instead.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  unicorn selftest --device vulkan --report report.txt
  unicorn selftest --device vulkan --model smollm2-135m
  unicorn selftest --device cpu:avx2 --only \"ffn q4_k\"")]
pub struct SelftestArgs {
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Best tier of matrix kernels that a GPU may use [default: the best it has]
    #[arg(long, value_name = "TIER")]
    pub tier: Option<Tier>,
    /// Cases whose names contain all of these words
    #[arg(long, value_name = "WORDS", default_value = "", conflicts_with = "model")]
    pub only: String,
    /// Seed of the random weights and inputs; -1 for the default [default: fresh, and printed]
    #[arg(long, value_name = "N", value_parser = parse::seed, allow_negative_numbers = true, conflicts_with = "model")]
    pub seed: Option<OrAuto<u64>>,
    /// Write one line per case, or per prompt, to this file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report: Option<PathBuf>,
    /// Write what the driver tells about each compiled kernel to this file, a line of JSON each
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "model")]
    pub kernels: Option<PathBuf>,
    /// Compile every kernel of the table and of models of well-known shapes, but run none
    #[arg(long, conflicts_with_all = ["report", "seed", "model"])]
    pub compile_only: bool,
    /// Run under the Vulkan validation layer; any message of it is a failure
    #[arg(long, conflicts_with = "model")]
    pub validate: bool,
    /// Compare whole answers of this model with those of the CPU
    #[arg(short, long, value_name = "MODEL", value_hint = ValueHint::AnyPath, help_heading = "Whole model")]
    pub model: Option<String>,
    /// Prompts to continue, 20 at most
    #[arg(long, value_name = "N", default_value = "20", value_parser = parse::prompts, allow_negative_numbers = true, help_heading = "Whole model")]
    pub prompts: usize,
    /// Tokens of each continuation
    #[arg(long, value_name = "N", default_value = "64", value_parser = parse::positive, allow_negative_numbers = true, help_heading = "Whole model")]
    pub tokens: usize,
    /// Text for the perplexity [default: the prompts with the CPU's continuations]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "model", help_heading = "Whole model")]
    pub text: Option<PathBuf>,
    /// Contexts of 256 tokens to score
    #[arg(long, value_name = "N", default_value = "8", value_parser = parse::positive, allow_negative_numbers = true, help_heading = "Whole model")]
    pub chunks: usize,
    /// Largest margin, in logits, that rounding may explain where two answers part
    ///
    /// Less where the logits of the two devices differ little: what is explained follows from that difference.
    #[arg(long, value_name = "LOGITS", default_value = "0.75", value_parser = parse::non_negative, allow_hyphen_values = true, help_heading = "Whole model")]
    pub margin: f32,
}

/// List the devices with their memory and measured limits
#[derive(Args, Debug)]
pub struct DevicesArgs {
    /// Measure anew, whatever was measured before
    #[arg(long)]
    pub fresh: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Worker threads of the CPU; 0 or -1 for the default [default: one per physical core]
    #[arg(short, long, value_name = "N", value_parser = parse::threads, allow_negative_numbers = true)]
    pub threads: Option<OrAuto<usize>>,
}

/// Print a completion script for a shell
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  unicorn completions bash > ~/.local/share/bash-completion/completions/unicorn
  unicorn completions zsh > \"${fpath[1]}/_unicorn\"
  unicorn completions fish > ~/.config/fish/completions/unicorn.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_number_may_be_negative_and_is_judged_by_its_flag() {
        fn walk(command: &clap::Command, each: &mut dyn FnMut(&clap::Command, &clap::Arg)) {
            command.get_arguments().for_each(|arg| each(command, arg));
            command.get_subcommands().for_each(|sub| walk(sub, each));
        }
        let mut seen = 0;
        walk(&Cli::command(), &mut |command, arg| {
            let names = arg.get_value_names().unwrap_or_default();
            let number = ["N", "N,..", "TOKENS", "T", "K", "P", "F", "LOGITS"];
            if arg.get_action().takes_values() && names.iter().any(|n| number.contains(&n.as_str())) {
                // `-inf` is a negative number to people, though not to clap.
                let taken = arg.is_allow_negative_numbers_set() || arg.is_allow_hyphen_values_set();
                assert!(taken, "{} --{}", command.get_name(), arg.get_id());
                seen += 1;
            }
        });
        assert!(seen > 25, "{seen}");
    }

    #[test]
    fn numbers_of_other_programs_parse() {
        for line in [
            &["unicorn", "run", "--seed", "-1", "-n", "-1", "--top-k", "-1", "-c", "0", "-t", "-1", "hi"][..],
            &["unicorn", "run", "--n-predict", "-2", "--ctx-size", "0", "--threads", "0", "--top-k=0", "hi"],
            &["unicorn", "chat", "--num-ctx", "4096", "--num-predict", "9", "--repetition-penalty", "1.1"],
            &["unicorn", "run", "--system-prompt", "x", "--typical-p", "1", "--dry-multiplier", "0", "hi"],
            &["unicorn", "perplexity", "-f", "-", "-c", "0", "-t", "-1"],
            &["unicorn", "selftest", "--seed", "-1"],
            &["unicorn", "bench", "-t", "-1", "-o", "markdown"],
            &["unicorn", "devices", "-t", "-1"],
        ] {
            Cli::try_parse_from(line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
        }
    }

    #[test]
    fn refused_numbers_are_named_with_their_flag() {
        let floats = ["--temp", "--top-p", "--min-p", "--typical", "--repeat-penalty", "--presence-penalty"];
        for flag in floats.into_iter().chain(["--frequency-penalty", "--dry"]) {
            for value in ["nan", "inf", "-inf", "1e39"] {
                let error = Cli::try_parse_from(["unicorn", "run", flag, value, "hi"]).expect_err(flag);
                let text = error.to_string();
                assert!(text.contains(flag) && text.contains(value), "{text}");
            }
        }
        let huge = "99999999999999999999";
        for (line, flag) in [
            (&["unicorn", "bench", "-p", "1,-1"][..], "--prompt"),
            (&["unicorn", "bench", "-n", huge], "--generate"),
            (&["unicorn", "bench", "-d", "-5"], "--depth"),
            (&["unicorn", "bench", "-r", "0"], "--repetitions"),
            (&["unicorn", "bench", "-r", "1000000000000"], "--repetitions"),
            (&["unicorn", "bench", "ffn", "--tokens", "-1"], "--tokens"),
            (&["unicorn", "bench", "ffn", "--width", "0"], "--width"),
            (&["unicorn", "perplexity", "-f", "x", "--chunks", "-1"], "--chunks"),
            (&["unicorn", "selftest", "--model", "x", "--margin", "nan"], "--margin"),
            (&["unicorn", "selftest", "--model", "x", "--tokens", "0"], "--tokens"),
            (&["unicorn", "run", "-n", huge, "hi"], "--max-tokens"),
            (&["unicorn", "run", "-c", "-1", "hi"], "--ctx"),
            (&["unicorn", "run", "--seed", "1.5", "hi"], "--seed"),
        ] {
            let text = Cli::try_parse_from(line).expect_err(flag).to_string();
            assert!(text.contains(flag) && text.contains("invalid value"), "{line:?}: {text}");
        }
    }

    #[test]
    fn lists_and_shapes_parse() {
        let cli = Cli::try_parse_from([
            "unicorn",
            "bench",
            "-p",
            "0,512",
            "-d",
            "0,4096",
            "--shape",
            "llama-8b:q4_k",
        ]);
        let Ok(Cli { command: Command::Bench(bench), .. }) = cli else { panic!("{cli:?}") };
        assert_eq!(bench.run.prompt, [0, 512]);
        assert_eq!(bench.run.depth, [0, 4096]);
        assert!(bench.run.subject.shape.is_some());
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            &["unicorn", "bench", "-m", "x", "--shape", "llama-8b:q4_k"][..],
            &["unicorn", "run", "--raw", "--system", "x"],
            &["unicorn", "run", "--temp", "-1"],
            &["unicorn", "run", "--top-p", "1.5"],
            &["unicorn", "run", "--threads", "-2"],
            &["unicorn", "run", "--device", "cpu:nonsense"],
            &["unicorn", "run", "--kv", "q3"],
            &["unicorn", "bench", "--type", "q4_k"],
            &["unicorn", "bench", "--shape", "8b", "--select", "none"],
            &["unicorn", "run", "--device", "vulkan:"],
            &["unicorn", "-q", "-v", "models"],
        ] {
            let error = Cli::try_parse_from(line).expect_err(&line.join(" "));
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }
}
