//! A whole model on the device and on the CPU, side by side: greedy answers and perplexity.

use std::io::Write;
use std::sync::Arc;

use anyhow::Context;
use unicorn_core::WeightSource;
use unicorn_engine::Engine;
use unicorn_engine::agree::{Agreement, agree};
use unicorn_engine::perplexity::{Estimate, PerplexityOptions, perplexity};
use unicorn_text::{EncodeOptions, Tokenizer};

use super::explain::{Rounding, Unexplained};
use super::report::Report;
use crate::args::{DeviceArgs, SelftestArgs};
use crate::config::Config;
use crate::devices::DeviceChoice;
use crate::exit::{Exit, usage};
use crate::interrupt::Catch;
use crate::open_device::open_limited;
use crate::output::{Out, say};
use crate::planner::{Load, Place, Placed};
use crate::session::{ContextChoice, EngineChoice, Session, engine_on};
use crate::text_file::read_text;

/// Tokens of a context whose second half is scored.
const PERPLEXITY_CONTEXT: usize = 256;
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

/// A model whole on a device, to answer and to score.
fn choice_of(device: &DeviceArgs, context: ContextChoice) -> EngineChoice<'_> {
    let kv = unicorn_core::KvType::F16;
    EngineChoice {
        canary: None,
        kv_tokens: None,
        queue: 0,
        kept: None,
        rows: 0,
        disk_bytes: None,
        device,
        place: &Place::One,
        kv,
        context,
        load: Load::default(),
        memory: None,
        scores: true,
        drafts: false,
    }
}

/// Compares and judges. Fails where a difference is not explained by rounding.
pub fn run(args: &SelftestArgs, model: &str, config: &Config, report: &mut Report) -> anyhow::Result<Exit> {
    // Before minutes of answers.
    if let Some(text) = &args.text {
        std::fs::File::open(text).with_context(|| text.display().to_string())?;
    }
    let longest = PROMPTS.iter().map(|p| p.len()).max().unwrap_or(0).saturating_add(args.tokens);
    let context = ContextChoice::Exactly(longest.max(PERPLEXITY_CONTEXT));
    let cpu = args.device.on(DeviceChoice::cpu());
    // Once for both, so that what it lacks is told once.
    let fetched = crate::session::find_model(model, config)?;
    let mut base = Session::of(&fetched, &choice_of(&cpu, context), config)?;
    let path = &fetched.path;
    let opened =
        unicorn_model::open(path).with_context(|| format!("cannot open model {}", path.display()))?;
    let device = open_limited(&args.device, args.tier, config)?;
    let choice = choice_of(&args.device, context);
    let source: Arc<dyn WeightSource> = opened.source.clone();
    let mut engine = engine_on(
        Placed::one(device, &opened.spec)?,
        &opened.spec,
        &source,
        &choice,
        None,
        config,
        &mut |_| {},
    )?;
    let name = engine.devices().first().map_or(String::new(), |d| d.profile().name.clone());

    let mut out = Out::stdout();
    let mut say_all = |line: &str| -> anyhow::Result<()> {
        writeln!(out, "{line}")?;
        out.flush()?;
        report.line(line)
    };
    let mut answers = Vec::new();
    let mut text = String::new();
    let catch = Catch::new();
    for (i, prompt) in PROMPTS.iter().take(args.prompts).enumerate() {
        let tokens = encode(&base.text.tokenizer, prompt)?;
        let got = agree(&mut base.engine, &mut engine, &tokens, args.tokens)?;
        say_all(&format!("prompt {:2}: {}", i + 1, line(&got, &base.text.tokenizer)))?;
        text.push_str(prompt);
        text.push_str(&base.text.tokenizer.decode(&got.tokens, true));
        text.push_str("\n\n");
        answers.push(got);
        if catch.pressed() {
            return Ok(Exit::Interrupted);
        }
    }
    let judged = Judged::of(&answers, args.margin);
    judged.lines(args.tokens).iter().try_for_each(|line| say_all(line))?;
    let far = match compare_perplexity(args, &mut base, &mut engine, text)? {
        None => {
            say_all("perplexity: too little text for two contexts; --text names a longer one")?;
            false
        }
        Some((cpu, other)) => {
            let difference = other.perplexity / cpu.perplexity - 1.0;
            let allowed = judged.rounding.perplexity_allowed(other.tokens);
            say_all(&format!(
                "perplexity: cpu {:.4}, {name} {:.4}: {:+.3} %; over {} tokens rounding explains {:.3} %",
                cpu.perplexity,
                other.perplexity,
                difference * 100.0,
                other.tokens,
                allowed * 100.0
            ))?;
            difference.is_nan() || difference.abs() > allowed
        }
    };
    let agrees = judged.agrees() && !far;
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
) -> anyhow::Result<Option<(Estimate, Estimate)>> {
    let text = match &args.text {
        None => continued,
        Some(path) => read_text(path, TEXT_BYTES_MAX)?,
    };
    let tokens = encode(&base.text.tokenizer, &text)?;
    if tokens.len() < 2 * PERPLEXITY_CONTEXT {
        if let Some(path) = &args.text {
            let (has, needs) = (tokens.len(), 2 * PERPLEXITY_CONTEXT);
            return Err(usage(format!(
                "--text {}: {has} tokens, at least {needs} are needed",
                path.display()
            )));
        }
        return Ok(None);
    }
    let bos = base.text.tokenizer.bos().filter(|_| base.text.tokenizer.adds_bos());
    let options = PerplexityOptions { context: PERPLEXITY_CONTEXT, chunks: Some(args.chunks), bos };
    let of = |engine: &mut Engine, name: &str| -> anyhow::Result<Estimate> {
        let mut each = |e: Estimate| {
            say!("perplexity on {name}: [{}/{}] {:.4}", e.chunks, e.chunks_total, e.perplexity);
        };
        Ok(perplexity(engine, &tokens, options, &mut each)?)
    };
    Ok(Some((of(&mut base.engine, "cpu")?, of(engine, "the device")?)))
}

/// All answers together.
#[derive(Clone, PartialEq, Debug)]
struct Judged {
    all: usize,
    rounding: Rounding,
    /// Answers that part where rounding explains it.
    explained: usize,
    /// The other answers that part: prompts from 1, and why.
    unexplained: Vec<(usize, Unexplained)>,
    /// Where the margin comes closest to what rounding explains, or is furthest above it: the prompt from 1, the margin, what is explained.
    largest: Option<(usize, f32, f32)>,
}

impl Judged {
    /// `margin_max`: largest margin that is explained at all, in logits.
    fn of(answers: &[Agreement], margin_max: f32) -> Judged {
        let rounding = Rounding::of(answers, margin_max);
        let mut judged =
            Judged { all: answers.len(), rounding, explained: 0, unexplained: Vec::new(), largest: None };
        let parted = answers.iter().enumerate().filter_map(|(i, a)| Some((i + 1, a.difference.as_ref()?)));
        for (prompt, d) in parted {
            match rounding.objection(d) {
                None => judged.explained += 1,
                Some(why) => judged.unexplained.push((prompt, why)),
            }
            let (margin, allowed) = (d.margin(), rounding.margin_allowed(d));
            if judged.largest.is_none_or(|(_, m, a)| margin * a > m * allowed) {
                judged.largest = Some((prompt, margin, allowed));
            }
        }
        judged
    }

    fn agrees(&self) -> bool {
        self.unexplained.is_empty() && self.rounding.is_small()
    }

    /// What is said about all of them, `tokens` each.
    fn lines(&self, tokens: usize) -> Vec<String> {
        let Judged { all, rounding, explained, unexplained, largest } = self;
        let mut lines: Vec<String> = unexplained
            .iter()
            .map(|(prompt, why)| format!("prompt {prompt:2} is NOT explained: {why}"))
            .collect();
        let (others, same) = (unexplained.len(), all - explained - unexplained.len());
        lines.push(format!(
            "answers: {same} of {all} the same over {tokens} tokens, {explained} part where rounding explains it, {others} do not"
        ));
        if let Some((prompt, margin, allowed)) = largest {
            lines.push(format!(
                "largest margin: {margin:.4} logits at prompt {prompt}, where rounding explains {allowed:.4} (never above {})",
                rounding.margin_max
            ));
        }
        lines.push(format!(
            "logits differ by {:.4} (rms, median of the prompts); by {:.2} % of their spread over all, {}",
            rounding.rms,
            rounding.share_of_spread * 100.0,
            if rounding.is_small() { "as rounding does" } else { "which is NOT rounding" }
        ));
        lines
    }
}

/// What is said about one prompt.
fn line(got: &Agreement, tokenizer: &Tokenizer) -> String {
    let rms = got.logit_rms;
    let Some(d) = got.difference else {
        return format!("same, {} tokens; logits differ by {rms:.4} (rms)", got.tokens.len());
    };
    let text = |token: u32| tokenizer.token_text(token).unwrap_or_default();
    format!(
        "same for {} tokens, then {:?} on the cpu (by {:.4}) and {:?} on the device (by {:.4}), whose logits moved by {:+.4} and {:+.4}; \
         logits differ by {:.4} (rms) there, {rms:.4} in all",
        d.after,
        text(d.first),
        d.margin_first,
        text(d.second),
        d.margin_second,
        d.moved_first,
        d.moved_second,
        d.logit_rms
    )
}

#[cfg(test)]
mod tests {
    use unicorn_engine::agree::Difference;

    use super::*;

    fn answer(margin: Option<f32>) -> Agreement {
        let difference = margin.map(|m| Difference {
            after: 1,
            first: 1,
            second: 2,
            margin_first: m,
            margin_second: 0.0,
            moved_first: 0.0,
            moved_second: m,
            logit_rms: 0.1,
        });
        Agreement { tokens: vec![1], difference, logit_rms: 0.1, logit_spread: 3.0 }
    }

    #[test]
    fn margins_decide() {
        let good = Judged::of(&[answer(None), answer(Some(0.25)), answer(Some(0.125))], 0.75);
        assert!(good.agrees());
        assert_eq!((good.all, good.explained), (3, 2));
        let said = good.lines(64);
        assert!(said[0].contains("1 of 3 the same over 64 tokens, 2 part"), "{said:?}");
        assert!(said[1].contains("0.2500 logits at prompt 2, where rounding explains 0.5657"), "{said:?}");

        let bad = Judged::of(&[answer(Some(0.25)), answer(Some(0.6)), answer(Some(f32::NAN))], 0.75);
        assert!(!bad.agrees());
        assert_eq!(bad.unexplained.iter().map(|u| u.0).collect::<Vec<_>>(), [2, 3]);
        assert!(bad.lines(64)[0].starts_with("prompt  2 is NOT explained"), "{bad:?}");
        assert_eq!(bad.largest.map(|l| l.0), Some(3));
    }

    #[test]
    fn logits_that_are_far_apart_disagree_though_the_text_is_the_same() {
        let far = Agreement { logit_rms: 0.5, ..answer(None) };
        let judged = Judged::of(&[far], 0.75);
        assert!(judged.unexplained.is_empty() && !judged.agrees());
        assert!(judged.lines(1)[1].contains("NOT rounding"));
    }
}
