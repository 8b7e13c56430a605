//! Everything that a developer runs, as `cargo xtask COMMAND`.

mod bench_json;
mod ci;
mod clients;
mod compare;
mod data;
mod deny;
mod e2e;
mod gate;
mod golden;
mod http;
mod lavapipe;
mod load;
mod mesa;
mod metadata;
mod page;
mod peers;
mod picture;
mod schemas;
mod served;
mod sh;
mod shaders;
mod shape_file;
mod soak;
mod stats;
mod tally;
mod test;
mod tidy;

use clap::{Parser, Subcommand};

/// Developer tasks of the Unicorn Execution Engine
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the tests need, then run them all, real models included
    Test(test::Args),
    /// What continuous integration runs: fmt, tidy, licences, clippy, fuzz targets, shaders, test
    Ci,
    /// Check the house rules: crate edges, import circles, unused public items, unsafe code, panics, leftovers
    Tidy,
    /// Check licences, sources and doubled versions of all dependencies
    Licences(deny::Args),
    /// Run other programs' clients against the server
    Clients(clients::Args),
    /// Ask the server thousands of things, a third of them cancelled, malformed or slow
    Soak(soak::Args),
    /// Measure the server with several clients at once
    Load(load::Args),
    /// Fetch the test data without running a test
    Data,
    /// Regenerate the reference data under tests/data
    Golden(golden::Args),
    /// Build llama.cpp to compare with
    Peers(peers::Args),
    /// Compile the compute shaders to the committed SPIR-V, or check it
    Shaders(shaders::Args),
    /// Test the chat page in a headless Chromium, and take pictures of it
    Page(page::Args),
    /// Draw a trace as SVG, for documents
    Picture(picture::Args),
    /// Hold structured output against JSONSchemaBench and MaskBench
    Schemas(schemas::Args),
    /// Race llama.cpp: interleaved runs, medians, spread, ratio
    Compare(compare::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Test(args) => test::run(&args),
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
        Command::Licences(args) => deny::run(&args),
        Command::Clients(args) => clients::run(&args),
        Command::Soak(args) => soak::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Data => data::install().map(|_| ()),
        Command::Golden(args) => golden::run(&args),
        Command::Peers(args) => peers::run(&args),
        Command::Shaders(args) => shaders::run(&args),
        Command::Page(args) => page::run(&args),
        Command::Picture(args) => picture::run(&args),
        Command::Schemas(args) => schemas::run(&args),
        Command::Compare(args) => compare::run(&args),
    }
}
