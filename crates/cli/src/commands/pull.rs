//! `unicorn pull`.

use std::io::Write;

use unicorn_hub::HubConfig;

use crate::args::PullArgs;
use crate::config::Config;
use crate::exit::Exit;
use crate::output::Out;
use crate::progress;

/// Fetches a model and prints where it lies.
pub fn run(args: &PullArgs, config: &Config) -> anyhow::Result<Exit> {
    let reference = unicorn_hub::resolve(&args.name)?;
    let hub = HubConfig { refresh: args.refresh, ..config.hub.clone() };
    let path = progress::fetch_with(&reference, config, &hub)?.path;
    let mut out = Out::stdout();
    writeln!(out, "{}", path.display())?;
    out.flush()?;
    Ok(Exit::Done)
}
