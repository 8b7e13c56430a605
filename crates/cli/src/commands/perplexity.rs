//! `unicorn perplexity`.

use std::io::Write;

use unicorn_engine::perplexity::{Estimate, PerplexityOptions, perplexity};
use unicorn_text::EncodeOptions;

use crate::args::PerplexityArgs;
use crate::config::Config;
use crate::context::ContextChoice;
use crate::exit::Exit;
use crate::output::{Out, say};
use crate::planner::Load;
use crate::session::{EngineChoice, Session};
use crate::text_file::read_text;
use crate::trace::Trace;

/// Largest text read, in bytes.
const TEXT_BYTES_MAX: u64 = 1 << 30;

/// The context that published figures use.
const CONTEXT: usize = 512;

/// Measures the perplexity of a text; the last line on stdout is `perplexity: X +/- E`.
pub fn run(args: &PerplexityArgs, config: &Config) -> anyhow::Result<Exit> {
    let text = read_text(&args.file, TEXT_BYTES_MAX)?;
    let context = args.ctx.unwrap_or(ContextChoice::AtMost(CONTEXT));
    // Whole contexts are read, and nothing is written.
    let load = Load { prompt: CONTEXT, decode: 0, ..Load::default() };
    let place = &args.place.of(&args.device);
    let memory = args.memory.memory_max.as_ref();
    let choice = EngineChoice {
        canary: None,
        kv_tokens: None,
        queue: 0,
        kept: None,
        rows: 0,
        disk_bytes: None,
        device: &args.device,
        place,
        kv: args.kv.kv,
        context,
        load,
        memory,
        scores: true,
        drafts: false,
    };
    let mut session = Session::open(config.model(&args.model), &choice, config)?;
    let tokenizer = &session.text.tokenizer;
    let tokens = tokenizer.encode(&text, EncodeOptions { parse_special: false, add_special: true })?;
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let options = PerplexityOptions { context: session.engine.options().context, chunks: args.chunks, bos };
    let mut each = |estimate: Estimate| {
        if config.talks() {
            say!("{}", running(&estimate));
        }
    };
    let trace = Trace::start(&mut session.engine, args.place.trace.as_deref(), config)?;
    let estimate = perplexity(&mut session.engine, &tokens, options, &mut each)?;
    anyhow::ensure!(
        estimate.perplexity.is_finite(),
        "the model's output is not finite: its file may be damaged"
    );
    trace.finish(&mut session.engine)?;
    let mut out = Out::stdout();
    writeln!(out, "perplexity: {:.4} +/- {:.5}", estimate.perplexity, estimate.error)?;
    out.flush()?;
    Ok(Exit::Done)
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
