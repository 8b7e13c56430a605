//! `unicorn perplexity`.

use std::io::Write;

use anyhow::Context;
use unicorn_engine::perplexity::{Estimate, PerplexityOptions, perplexity};
use unicorn_text::EncodeOptions;

use crate::args::PerplexityArgs;
use crate::config::Config;
use crate::exit::Exit;
use crate::output::{Out, say};
use crate::session::{ContextChoice, EngineChoice, Session};

/// Largest text read, in bytes.
const TEXT_BYTES_MAX: u64 = 1 << 30;

/// Measures the perplexity of a text; the last line on stdout is `perplexity: X +/- E`.
pub fn run(args: &PerplexityArgs, config: &Config) -> anyhow::Result<Exit> {
    let text = read(args)?;
    let context = ContextChoice::Exactly(args.ctx);
    let choice = EngineChoice { device: &args.device, kv: args.kv.kv, context };
    let mut session = Session::open(config.model(&args.model), &choice, config)?;
    let tokenizer = &session.text.tokenizer;
    let tokens = tokenizer.encode(&text, EncodeOptions { parse_special: false, add_special: true })?;
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let options = PerplexityOptions { context: args.ctx, chunks: args.chunks, bos };
    let mut each = |estimate: Estimate| {
        if config.talks() {
            say!("{}", running(&estimate));
        }
    };
    let estimate = perplexity(&mut session.engine, &tokens, options, &mut each)?;
    anyhow::ensure!(
        estimate.perplexity.is_finite(),
        "the model's output is not finite: its file may be damaged"
    );
    let mut out = Out::stdout();
    writeln!(out, "perplexity: {:.4} +/- {:.5}", estimate.perplexity, estimate.error)?;
    out.flush()?;
    Ok(Exit::Done)
}

fn read(args: &PerplexityArgs) -> anyhow::Result<String> {
    let named = || args.file.display().to_string();
    let bytes = std::fs::metadata(&args.file).with_context(named)?.len();
    if bytes > TEXT_BYTES_MAX {
        anyhow::bail!("{}: {bytes} bytes is more than the limit of {TEXT_BYTES_MAX}", named());
    }
    std::fs::read_to_string(&args.file).with_context(named)
}

fn running(e: &Estimate) -> String {
    format!("[{}/{}] {:.4} +/- {:.5}", e.chunks, e.chunks_total, e.perplexity, e.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_estimates_count_their_contexts() {
        let e = Estimate { chunks: 2, chunks_total: 8, tokens: 510, perplexity: 32.17131, error: 0.5 };
        assert_eq!(running(&e), "[2/8] 32.1713 +/- 0.50000");
    }
}
