//! A whole model on the device and on the CPU, side by side: greedy answers and perplexity.

use std::io::Write;

use anyhow::Context;
use unicorn_engine::Engine;
use unicorn_engine::agree::{Agreement, agree};
use unicorn_engine::perplexity::{PerplexityOptions, perplexity};
use unicorn_text::{EncodeOptions, Tokenizer};

use super::Report;
use crate::args::{DeviceArgs, SelftestArgs};
use crate::config::Config;
use crate::devices::DeviceChoice;
use crate::exit::{Exit, usage};
use crate::interrupt::Catch;
use crate::output::{Out, say};
use crate::session::{ContextChoice, EngineChoice, Session, engine_on};

/// Tokens of a context whose second half is scored.
const PERPLEXITY_CONTEXT: usize = 256;
/// Largest difference of perplexity, relative to the CPU's.
const PERPLEXITY_TOLERANCE: f64 = 0.005;
/// Largest text read, in bytes.
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// Beginnings that a model of any size continues, of several kinds and lengths.
const PROMPTS: [&str; 20] = [
    "The capital of France is",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n",
    "The three primary colours are",
    "To make a cup of tea, first",
    "In 1969, two astronauts",
    "Dear Sir or Madam,\n\nI am writing to",
    "The quick brown fox jumps over the lazy dog. The dog",
    "Q: What is the largest planet of the solar system?\nA:",
    "1, 1, 2, 3, 5, 8, 13,",
    "A recipe for pancakes:\n\n- 2 eggs\n- 250 ml of milk\n-",
    "The theory of evolution explains",
    "She opened the door and saw",
    "SELECT name, price FROM products WHERE",
    "The main difference between a virus and a bacterium is",
    "Il était une fois",
    "If it rains tomorrow, we will",
    "The stock market fell sharply on Monday after",
    "fn main() {\n    let numbers = vec![3, 1, 2];\n",
];

/// Compares and judges. Fails where a difference is not explained by rounding.
pub fn run(args: &SelftestArgs, model: &str, config: &Config, report: &mut Report) -> anyhow::Result<Exit> {
    let longest = PROMPTS.iter().map(|p| p.len()).max().unwrap_or(0) + args.tokens;
    let context = ContextChoice::Exactly(longest.max(PERPLEXITY_CONTEXT));
    let kv = unicorn_core::KvType::F16;
    let cpu = DeviceArgs { device: Some(DeviceChoice::cpu()), threads: args.device.threads };
    let mut base = Session::open(model, &EngineChoice { device: &cpu, kv, context }, config)?;
    let path = crate::session::find_model(model, config)?;
    let opened =
        unicorn_model::open(&path).with_context(|| format!("cannot open model {}", path.display()))?;
    let device = crate::devices::open_limited(&args.device, args.tier, config)?.device;
    let choice = EngineChoice { device: &args.device, kv, context };
    let mut engine = engine_on(device, &opened.spec, &*opened.source, &choice)?;
    let name = engine.devices().first().map_or(String::new(), |d| d.profile().name.clone());

    let mut out = Out::stdout();
    let mut say_all = |line: &str| -> anyhow::Result<()> {
        writeln!(out, "{line}")?;
        out.flush()?;
        report.line(line)
    };
    let mut judged = Judged::default();
    let mut text = String::new();
    let catch = Catch::new();
    for (i, prompt) in PROMPTS.iter().take(args.prompts).enumerate() {
        let tokens = encode(&base.text.tokenizer, prompt)?;
        let got = agree(&mut base.engine, &mut engine, &tokens, args.tokens)?;
        let explained = judged.add(&got, args.margin);
        say_all(&format!("prompt {:2}: {}", i + 1, line(&got, &base.text.tokenizer, explained)))?;
        text.push_str(prompt);
        text.push_str(&base.text.tokenizer.decode(&got.tokens, true));
        text.push_str("\n\n");
        if catch.pressed() {
            return Ok(Exit::Interrupted);
        }
    }
    let same = judged.same;
    say_all(&format!(
        "answers: {same} of {} the same over {} tokens, {} part where rounding explains it (margin up to {}), {} do not; \
         logits differ by {:.4} (rms) where they spread over {:.2}",
        judged.all(),
        args.tokens,
        judged.explained,
        args.margin,
        judged.unexplained,
        judged.rms(),
        judged.spread()
    ))?;
    let far = match compare_perplexity(args, &mut base, &mut engine, text)? {
        None => {
            say_all("perplexity: too little text for two contexts; --text names a longer one")?;
            false
        }
        Some((cpu, other)) => {
            let difference = other / cpu - 1.0;
            say_all(&format!("perplexity: cpu {cpu:.4}, {name} {other:.4}: {:+.3} %", difference * 100.0))?;
            difference.is_nan() || difference.abs() > PERPLEXITY_TOLERANCE
        }
    };
    let agrees = judged.unexplained == 0 && !far;
    let verdict = if agrees { "agrees with" } else { "DIFFERS from" };
    say_all(&format!("{name} {verdict} the cpu device on {}", opened.spec.name))?;
    Ok(if agrees { Exit::Done } else { Exit::Failed })
}

fn encode(tokenizer: &Tokenizer, text: &str) -> anyhow::Result<Vec<u32>> {
    Ok(tokenizer.encode(text, EncodeOptions { parse_special: false, add_special: true })?)
}

/// Perplexity on the CPU and on the device; `None` without enough text.
fn compare_perplexity(
    args: &SelftestArgs,
    base: &mut Session,
    engine: &mut Engine,
    continued: String,
) -> anyhow::Result<Option<(f64, f64)>> {
    let text = match &args.text {
        None => continued,
        Some(path) => {
            let named = || path.display().to_string();
            let bytes = std::fs::metadata(path).with_context(named)?.len();
            if bytes > TEXT_BYTES_MAX {
                return Err(usage(format!("{}: {bytes} bytes is more than {TEXT_BYTES_MAX}", named())));
            }
            std::fs::read_to_string(path).with_context(named)?
        }
    };
    let tokens = encode(&base.text.tokenizer, &text)?;
    if tokens.len() < 2 * PERPLEXITY_CONTEXT {
        return Ok(None);
    }
    let bos = base.text.tokenizer.bos().filter(|_| base.text.tokenizer.adds_bos());
    let options = PerplexityOptions { context: PERPLEXITY_CONTEXT, chunks: Some(args.chunks), bos };
    let of = |engine: &mut Engine, name: &str| -> anyhow::Result<f64> {
        let mut each = |e: unicorn_engine::perplexity::Estimate| {
            say!("perplexity on {name}: [{}/{}] {:.4}", e.chunks, e.chunks_total, e.perplexity);
        };
        Ok(perplexity(engine, &tokens, options, &mut each)?.perplexity)
    };
    Ok(Some((of(&mut base.engine, "cpu")?, of(engine, "the device")?)))
}

/// Sums over all prompts.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
struct Judged {
    same: usize,
    explained: usize,
    unexplained: usize,
    rms_squared: f64,
    spread_squared: f64,
}

impl Judged {
    /// Counts an answer; whether its difference, if any, is one that rounding explains.
    fn add(&mut self, got: &Agreement, margin_max: f32) -> bool {
        self.rms_squared += got.logit_rms * got.logit_rms;
        self.spread_squared += got.logit_spread * got.logit_spread;
        match got.difference {
            None => self.same += 1,
            Some(d) if d.margin() <= margin_max => self.explained += 1,
            Some(_) => {
                self.unexplained += 1;
                return false;
            }
        }
        true
    }

    fn all(&self) -> usize {
        self.same + self.explained + self.unexplained
    }

    fn rms(&self) -> f64 {
        (self.rms_squared / self.all().max(1) as f64).sqrt()
    }

    fn spread(&self) -> f64 {
        (self.spread_squared / self.all().max(1) as f64).sqrt()
    }
}

/// What is said about one prompt.
fn line(got: &Agreement, tokenizer: &Tokenizer, explained: bool) -> String {
    let rms = got.logit_rms;
    let Some(d) = got.difference else {
        return format!("same, {} tokens; logits differ by {rms:.4} (rms)", got.tokens.len());
    };
    let text = |token: u32| tokenizer.token_text(token).unwrap_or_default();
    format!(
        "same for {} tokens, then {:?} on the cpu (by {:.4}) and {:?} on the device (by {:.4}); logits differ by {rms:.4} (rms): {}",
        d.after,
        text(d.first),
        d.margin_first,
        text(d.second),
        d.margin_second,
        if explained { "near enough" } else { "NOT explained" }
    )
}

#[cfg(test)]
mod tests {
    use unicorn_engine::agree::Difference;

    use super::*;

    #[test]
    fn margins_decide() {
        let answer = |margin: Option<f32>| Agreement {
            tokens: vec![1],
            difference: margin.map(|m| Difference {
                after: 1,
                first: 1,
                second: 2,
                margin_first: m,
                margin_second: 0.0,
            }),
            logit_rms: 0.1,
            logit_spread: 3.0,
        };
        let mut judged = Judged::default();
        assert!(judged.add(&answer(None), 0.5));
        assert!(judged.add(&answer(Some(0.25)), 0.5));
        assert!(!judged.add(&answer(Some(0.75)), 0.5));
        assert!(!judged.add(&answer(Some(f32::NAN)), 0.5));
        assert_eq!((judged.same, judged.explained, judged.unexplained, judged.all()), (1, 1, 2, 4));
        assert!((judged.rms() - 0.1).abs() < 1e-9 && (judged.spread() - 3.0).abs() < 1e-9);
    }
}
