//! The binary `unicorn`: reads flags and environment, opens models and devices, wires everything together.
//!
//! Flags as typed (`args`) and the environment become one [`config::Config`]; everyone else takes typed structs.

mod args;
mod bench_spec;
mod chat;
mod commands;
mod config;
mod devices;
mod environment;
mod exit;
mod generate;
mod interrupt;
mod output;
mod parse;
mod preview;
mod progress;
mod prompt;
mod session;
mod settings;
mod stdin;
mod table;
mod term;
mod units;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{BenchCommand, Cli, Command};
use crate::config::Config;
use crate::exit::Exit;
use crate::output::say;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout, mistakes to stderr; a reader that went away changes nothing.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage.code()));
        }
    };
    let config = Config::from_environment(&cli.global);
    interrupt::install();
    let exit = dispatch(&cli.command, &config).unwrap_or_else(|error| {
        let exit = exit::of_error(&error);
        if exit != Exit::PipeClosed {
            say!("{} {}", config.style.error("error:"), exit::describe(&error));
        }
        exit
    });
    exit.into()
}

fn dispatch(command: &Command, config: &Config) -> anyhow::Result<Exit> {
    match command {
        Command::Run(args) => commands::run::run(args, config),
        Command::Pull(args) => commands::pull::run(args, config),
        Command::Models(args) => commands::models::run(args, config),
        Command::Rm(args) => commands::rm::run(args, config),
        Command::Bench(args) => match &args.what {
            Some(BenchCommand::Ffn(args)) => commands::bench::ffn::run(args, config),
            None => commands::bench::model::run(&args.run, config),
        },
        Command::Perplexity(args) => commands::perplexity::run(args, config),
        Command::Inspect(args) => commands::inspect::run(args, config),
        Command::Tokenize(args) => commands::tokenize::run(args, config),
        Command::Devices(args) => commands::devices::run(args, config),
        Command::Selftest(args) => commands::selftest::run(args, config),
        Command::Completions(args) => commands::completions::run(args),
    }
}
