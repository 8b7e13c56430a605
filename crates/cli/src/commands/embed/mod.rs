//! `unicorn embed`.

mod args;

use std::collections::HashMap;
use std::io::Write;
use std::time::Instant;

use anyhow::{anyhow, bail, ensure};
use serde::Serialize;
use unicorn_core::{Pooling, SequenceId};
use unicorn_engine::{AdmissionError, EmbedRequest, Event, FinishReason};
use unicorn_text::{EncodeOptions, Tokenizer};

use crate::config::Config;
use crate::context::ContextChoice;
use crate::exit::{Exit, usage};
use crate::interrupt::Catch;
use crate::output::{Out, say};
use crate::planner::Load;
use crate::session::{EngineChoice, Session, find_model, open_model};
use crate::text_file::read_text;
use crate::trace::Trace;

pub use args::EmbedArgs;

/// Largest file of texts, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Texts in the engine at once: enough short ones for a large batch.
pub const TEXTS_AT_ONCE: usize = 64;
/// The same for a model that keeps state for each of them.
const TEXTS_AT_ONCE_GENERATING: usize = 4;
/// Tokens of a text at most where the model allows more.
pub const CONTEXT_MAX: usize = 8192;

/// One line of the output.
#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    tokens: usize,
    embedding: &'a [f32],
}

/// Prints a vector for each text.
pub fn run(args: &EmbedArgs, config: &Config) -> anyhow::Result<Exit> {
    let texts = texts(args)?;
    let name = config.model_named(&args.model).ok_or_else(|| {
        usage("no model is named: -m MODEL, best one that is made for this, such as minilm")
    })?;
    let fetched = find_model(name, config)?;
    let model = open_model(&fetched, config)?;
    let defaults = model.embedding_defaults()?;
    let encodes = model.spec.is_encoder();
    let pooling = args.pooling.or(defaults.pooling).unwrap_or(Pooling::Mean);
    let tokens_max = defaults.tokens_max.unwrap_or(CONTEXT_MAX).min(CONTEXT_MAX);
    let sequences = if encodes { TEXTS_AT_ONCE } else { TEXTS_AT_ONCE_GENERATING };
    let place = &args.place.of(&args.device);
    let choice = EngineChoice {
        canary: None,
        disk_bytes: None,
        device: &args.device,
        place,
        kv: args.kv.kv,
        context: ContextChoice::AtMost(tokens_max),
        load: Load { prompt: 512, decode: 0, sequences: sequences.min(texts.len()), ..Load::default() },
        memory: args.memory.memory_max.as_ref(),
        scores: false,
        drafts: false,
        kv_tokens: None,
        queue: 0,
        kept: None,
        rows: 0,
    };
    let mut session = Session::of_model(model, &fetched, &choice, config, &mut |_| {})?;
    let context = session.engine.options().context;
    let texts = encode(texts, &session.text.tokenizer, context)?;
    let trace = Trace::start(&mut session.engine, args.place.trace.as_deref(), config)?;
    let start = Instant::now();
    let mut run = Run { session: &mut session, texts: &texts, printed: 0, vectors: HashMap::new() };
    let exit = run.all(pooling, defaults.normalize.unwrap_or(true))?;
    trace.finish(&mut session.engine)?;
    if config.talks() && exit == Exit::Done {
        let tokens: usize = texts.iter().map(|t| t.tokens.len()).sum();
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        let rate = texts.len() as f64 / seconds;
        say!("{} texts of {tokens} tokens, pooled by {pooling}: {rate:.1} texts/s", texts.len());
    }
    Ok(exit)
}

fn texts(args: &EmbedArgs) -> anyhow::Result<Vec<String>> {
    let Some(file) = &args.file else {
        let empty = args.texts.iter().position(|text| text.trim().is_empty());
        return match empty {
            Some(at) => Err(usage(format!("text {} is empty", at + 1))),
            None => Ok(args.texts.clone()),
        };
    };
    let text = read_text(file, FILE_BYTES_MAX)?;
    Ok(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}

/// A text with its tokens.
struct Text {
    text: String,
    tokens: Vec<u32>,
}

/// Errors before anything is computed where a text is too long, naming it.
fn encode(texts: Vec<String>, tokenizer: &Tokenizer, context: usize) -> anyhow::Result<Vec<Text>> {
    let encoded = texts.into_iter().enumerate().map(|(i, text)| {
        let options = EncodeOptions { parse_special: false, add_special: true };
        let tokens = tokenizer.encode(&text, options)?;
        let count = tokens.len();
        ensure!(count <= context, "text {} has {count} tokens, the model takes {context}", i + 1);
        ensure!(count > 0, "text {} has no tokens", i + 1);
        Ok(Text { text, tokens })
    });
    encoded.collect()
}

struct Run<'a> {
    session: &'a mut Session,
    texts: &'a [Text],
    /// Texts whose lines are out.
    printed: usize,
    /// Vectors that wait for those of earlier texts, by number of the text.
    vectors: HashMap<usize, Vec<f32>>,
}

impl Run<'_> {
    /// Keeps the engine busy and prints lines in order. Ctrl-C ends it with what is out by then.
    fn all(&mut self, pooling: Pooling, normalize: bool) -> anyhow::Result<Exit> {
        let (catch, mut out) = (Catch::new(), Out::stdout());
        let mut asked: HashMap<SequenceId, usize> = HashMap::new();
        let mut next = 0;
        while self.printed < self.texts.len() {
            if catch.pressed() {
                asked.keys().for_each(|id| {
                    self.session.engine.cancel(*id);
                });
                out.flush()?;
                return Ok(Exit::Interrupted);
            }
            while let Some(text) = self.texts.get(next) {
                let request = EmbedRequest::new(text.tokens.clone(), pooling, normalize);
                match self.session.engine.add_embedding(request) {
                    Ok(id) => asked.insert(id, next),
                    // Those that run make room for it.
                    Err(AdmissionError::QueueFull { .. }) => break,
                    Err(error) => return Err(error.into()),
                };
                next += 1;
            }
            if self.session.engine.is_idle() {
                return Err(anyhow!("the engine lost a text"));
            }
            for event in self.session.engine.step()? {
                self.take(event, &mut asked)?;
            }
            self.print(&mut out)?;
        }
        out.flush()?;
        Ok(Exit::Done)
    }

    fn take(&mut self, event: Event, asked: &mut HashMap<SequenceId, usize>) -> anyhow::Result<()> {
        match event {
            Event::Embedding { sequence, vector } => {
                if let Some(at) = asked.get(&sequence) {
                    self.vectors.insert(*at, vector);
                }
            }
            Event::Finished { sequence, reason, .. } => {
                let number = asked.remove(&sequence).map_or(0, |at| at + 1);
                match reason {
                    FinishReason::Embedded | FinishReason::Cancelled => {}
                    FinishReason::Device(failure) => bail!("text {number}: {failure}"),
                    FinishReason::OutOfKvPages => bail!("text {number}: the KV cache is too small for it"),
                    _ => bail!("text {number}: the model's output is not finite: its file may be damaged"),
                }
            }
            Event::Token { .. } | Event::PromptLogprobs { .. } => {}
        }
        Ok(())
    }

    /// The lines whose turn it is.
    fn print(&mut self, out: &mut Out) -> anyhow::Result<()> {
        while let Some(vector) = self.vectors.remove(&self.printed) {
            let Text { text, tokens } = &self.texts[self.printed];
            let line = Line { text, tokens: tokens.len(), embedding: &vector };
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
            self.printed += 1;
        }
        Ok(())
    }
}
