//! `unicorn tokenize`.

use std::io::Write;

use unicorn_text::EncodeOptions;

use crate::args::TokenizeArgs;
use crate::config::Config;
use crate::exit::Exit;
use crate::output::Out;
use crate::table::clip;
use crate::{session, stdin};

/// Prints the ids of the text on stdin.
pub fn run(args: &TokenizeArgs, config: &Config) -> anyhow::Result<Exit> {
    let model = session::find_model(config.model(&args.model), config)?;
    let tokenizer = session::open_tokenizer(&model, config)?;
    let text = stdin::read_to_end()?;
    let ids =
        tokenizer.encode(&text, EncodeOptions { parse_special: args.special, add_special: !args.no_bos })?;
    let mut out = Out::stdout();
    if config.explains() {
        for id in &ids {
            let shown = tokenizer.token_bytes(*id).unwrap_or_default();
            writeln!(out, "{id:>8}  {}", clip(&String::from_utf8_lossy(&shown), 80))?;
        }
    } else {
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(out, "{}", ids.join(" "))?;
    }
    out.flush()?;
    Ok(Exit::Done)
}
