//! `unicorn rm`.

use std::io::{BufRead, IsTerminal, Write};

use unicorn_hub::removal;

use crate::args::RmArgs;
use crate::config::Config;
use crate::exit::{Exit, usage};
use crate::output::{Out, say};
use crate::units;

/// Removes models from the cache. All names are looked up before anything is removed.
pub fn run(args: &RmArgs, config: &Config) -> anyhow::Result<Exit> {
    let mut names = args.names.clone();
    names.sort();
    names.dedup();
    let removals: Vec<_> = names.iter().map(|name| removal(name, &config.hub)).collect::<Result<_, _>>()?;
    if !args.yes {
        let terminal = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
        if !terminal {
            return Err(usage("removing a model is not asked for without a terminal: give --yes"));
        }
        for removal in &removals {
            say!("{}: {}", removal.name(), units::bytes(removal.bytes()));
            removal.folders().for_each(|folder| say!("  {}", folder.display()));
        }
        say!("Remove? [y/N] ");
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            return Ok(Exit::Failed);
        }
    }
    let mut out = Out::stdout();
    for removal in &removals {
        removal.carry_out()?;
        writeln!(out, "{}: removed, {} freed", removal.name(), units::bytes(removal.bytes()))?;
    }
    out.flush()?;
    Ok(Exit::Done)
}
