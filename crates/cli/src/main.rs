//! The binary `unicorn`: reads flags and environment, opens models and devices, wires everything together.
//!
//! Flags as typed (`args`) and the environment become one [`config::Config`]; everyone else takes typed structs.

mod args;
mod argv;
mod bench_spec;
mod canary;
mod chat;
mod chats;
mod clean;
mod commands;
mod config;
mod context;
mod conversation;
mod devices;
mod environment;
mod exit;
mod generate;
mod hints;
mod interrupt;
mod kv_disk;
mod memory;
mod memory_max;
mod model_name;
mod model_spec;
mod open_device;
mod output;
mod parse;
mod planner;
mod preview;
mod progress;
mod prompt;
mod session;
mod settings;
mod shared_args;
mod stdin;
mod table;
mod term;
mod text_file;
mod trace;
mod units;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::{BenchCommand, Cli, Command};
use crate::config::Config;
use crate::exit::Exit;

fn main() -> ExitCode {
    let line: Vec<OsString> = std::env::args_os().collect();
    let cli = match parse_line(&line) {
        Ok(cli) => cli,
        Err(error) => {
            output::show_usage(&error, &line);
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code()));
        }
    };
    let config = Config::from_environment(&cli.global);
    interrupt::install();
    let exit = dispatch(&cli.command, &config).unwrap_or_else(|error| {
        let exit = exit::of_error(&error);
        if exit != Exit::PipeClosed {
            exit::show(&error, config.style);
        }
        exit
    });
    exit.into()
}

/// Parses the command line. What is refused is explained to people who know other programs.
fn parse_line(line: &[OsString]) -> Result<Cli, clap::Error> {
    if let Some(error) = hints::swallowed_flag(line) {
        return Err(error);
    }
    let is_model = |name: &str| unicorn_hub::resolve(name).is_ok();
    argv::parse(line).map_err(|error| hints::explain(error, line, &Cli::command(), is_model))
}

fn dispatch(command: &Command, config: &Config) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => commands::run::run(args, config),
        Command::Serve(args) => commands::serve::run(args, config),
        Command::Pull(args) => commands::pull::run(args, config),
        Command::Models(args) => commands::models::run(args, config),
        Command::Kv(args) => commands::kv::run(args, config),
        Command::Rm(args) => commands::rm::run(args, config),
        Command::Bench(args) => match &args.what {
            Some(BenchCommand::Ffn(args)) => commands::bench::ffn::run(args, config),
            None => commands::bench::model::run(&args.run, config),
        },
        Command::Plan(args) => commands::plan::run(args, config),
        Command::Perplexity(args) => commands::perplexity::run(args, config),
        Command::Embed(args) => commands::embed::run(args, config),
        Command::Inspect(args) => commands::inspect::run(args, config),
        Command::Tokenize(args) => commands::tokenize::run(args, config),
        Command::Devices(args) => commands::devices::run(args, config),
        Command::Selftest(args) => commands::selftest::run(args, config),
        Command::Completions(args) => commands::completions::run(args),
    }
}
