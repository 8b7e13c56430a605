//! The wiring shared by all commands: a model's files, its text side, a device, and the engine over them.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use unicorn_core::{Device, KvType, ModelSpec, WeightSource};
use unicorn_engine::{
    DRAFT_MAX, Engine, EngineOptions, KvStore, Leeway, LoadProgress, Overseer, fit, perplexity,
};
use unicorn_model::{ModelError, Notice, OpenModel, TextSide};
use unicorn_text::Tokenizer;

use crate::args::DeviceArgs;
use crate::canary;
use crate::clean::one_line;
use crate::config::Config;
pub use crate::context::ContextChoice;
use crate::exit::usage;
use crate::kv_disk::{self, About, Kept};
use crate::memory::{self, Refused};
use crate::memory_max::MemoryMax;
use crate::output::say;
use crate::planner::{self, Grader, Load, Place, Placed, Wish};
use crate::progress::{self, Fetched};
use crate::units;

/// Where the model meant by `--model` lies; it is fetched first where it must be.
pub fn find_model(name: &str, config: &Config) -> anyhow::Result<Fetched> {
    let reference = unicorn_hub::resolve(name)?;
    Ok(progress::fetch(&reference, config)?)
}

/// The tokenizer of a model, whose weights need not be there.
pub fn open_tokenizer(model: &Fetched, config: &Config) -> anyhow::Result<Tokenizer> {
    let open = unicorn_model::open_tokenizer(&model.path).map_err(|error| named(&model.path, error))?;
    warn(&open.notices, model, config);
    Ok(open.tokenizer)
}

/// Opens a model's files and tells what had to be guessed.
pub fn open_model(fetched: &Fetched, config: &Config) -> anyhow::Result<OpenModel> {
    let model = unicorn_model::open(&fetched.path).map_err(|error| named(&fetched.path, error))?;
    warn(&model.notices, fetched, config);
    Ok(model)
}

/// Tells the notices, but for files of whose lack the user was told when the model was looked up.
fn warn(notices: &[Notice], model: &Fetched, config: &Config) {
    let told = |notice: &Notice| match notice {
        Notice::MissingFile { file, .. } => model.lacking.iter().any(|name| file.ends_with(name)),
        _ => false,
    };
    for notice in notices.iter().filter(|notice| config.talks() && !told(notice)) {
        say!("warning: {notice}");
    }
}

/// Errors where a model writes no text, with what it is for.
pub fn refuse_encoder(spec: &ModelSpec) -> anyhow::Result<()> {
    if spec.is_encoder() {
        let name = one_line(&spec.name);
        return Err(usage(format!(
            "{name} is an encoder, which turns texts into vectors and writes none: `unicorn embed -m MODEL TEXT`"
        )));
    }
    Ok(())
}

/// Names the model, unless the error names the file itself.
fn named(path: &Path, error: ModelError) -> anyhow::Error {
    match error.path() {
        Some(_) => error.into(),
        None => anyhow::Error::new(error).context(format!("cannot open model {}", path.display())),
    }
}

/// How the engine is to be set up.
#[derive(Clone, Debug)]
pub struct EngineChoice<'a> {
    /// Device and threads.
    pub device: &'a DeviceArgs,
    /// Which device runs which part.
    pub place: &'a Place,
    /// What it shall be fast at.
    pub load: Load,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// Context in tokens.
    pub context: ContextChoice,
    /// Memory that may be taken; `None` is all that there is.
    pub memory: Option<&'a MemoryMax>,
    /// Whether texts are to be scored, for which many rows of logits are read at once.
    pub scores: bool,
    /// Whether next tokens are guessed, several of which are read at once.
    pub drafts: bool,
    /// Positions that the KV cache holds for all sequences together, fewer where they do not fit; `None` for as many as they can have.
    pub kv_tokens: Option<usize>,
    /// Requests that wait at most beyond those that run.
    pub queue: usize,
    /// Beginnings of texts that are kept for the next that begins like them; `None` for the engine's own number.
    pub kept: Option<usize>,
    /// Rows of logits that are read at once beyond one for each sequence; 0 for none.
    pub rows: usize,
    /// Who looks at samples of what is computed; `None` for nobody.
    pub canary: Option<&'a canary::Wish>,
    /// Disk that computed pages of all models may take; 0 keeps none. `None` where the model need not be told from others either.
    pub disk_bytes: Option<u64>,
}

/// A context that nobody asked for may become shorter where it does not fit, but not shorter than this.
const CONTEXT_MIN: usize = 2048;

/// Largest chat template file that is read, in bytes; the ones in use have less than 20 kB.
const TEMPLATE_BYTES_MAX: u64 = 1 << 20;

/// Reads the file that `--chat-template` names.
pub fn read_template(file: &Path) -> anyhow::Result<String> {
    if file.as_os_str() == "-" {
        return Err(usage("--chat-template wants a file: stdin is for the prompt"));
    }
    let named = || format!("--chat-template {}", file.display());
    let mut text = String::new();
    let opened = File::open(file).with_context(named)?;
    opened.take(TEMPLATE_BYTES_MAX + 1).read_to_string(&mut text).with_context(named)?;
    anyhow::ensure!(text.len() as u64 <= TEMPLATE_BYTES_MAX, "{}: too large for a template", named());
    Ok(text)
}

/// Uses the template in `source`, which was read from `file`, in place of the model's own.
pub fn set_template(text: &mut TextSide, file: &Path, source: &str) -> anyhow::Result<()> {
    let named = || format!("--chat-template {}", file.display());
    anyhow::ensure!(text.set_template(source).with_context(named)?, "{}: it holds no template", named());
    Ok(())
}

/// A model ready to answer.
pub struct Session {
    /// The model on its device.
    pub engine: Engine,
    /// What tells predictions beside measurements, with `--verbose` and where the devices were measured.
    pub grader: Option<Grader>,
    /// Its text side.
    pub text: TextSide,
    /// Tells the model from others, where that was asked for.
    pub fingerprint: Option<[u8; 32]>,
    /// Pages on disk, where any are kept. Dropped after the engine, which writes there.
    pub kept: Option<Kept>,
}

/// How long is waited for pages that are not saved yet, before a person may type again.
const SAVE_MAX: Duration = Duration::from_millis(500);
/// The same before the program ends.
const SAVE_LAST_MAX: Duration = Duration::from_secs(10);

impl Session {
    /// Saves pages for another day, as far as that takes no time that a person notices.
    pub fn save(&mut self) {
        self.engine.flush(Instant::now() + SAVE_MAX);
    }

    /// Saves the pages that are kept, and ends. Nothing is waited for where none are kept on disk.
    pub fn end(mut self) {
        self.engine.flush(Instant::now() + SAVE_LAST_MAX);
        // The store writes what waits when the last who has it is gone.
        drop(self);
    }

    /// Finds the model, and opens it and the device.
    pub fn open(model: &str, choice: &EngineChoice<'_>, config: &Config) -> anyhow::Result<Session> {
        Session::of(&find_model(model, config)?, choice, config)
    }

    /// Opens model and device. The tokenizer is built on a thread of its own while the weights load.
    pub fn of(fetched: &Fetched, choice: &EngineChoice<'_>, config: &Config) -> anyhow::Result<Session> {
        let model = open_model(fetched, config)?;
        refuse_encoder(&model.spec)?;
        Session::of_model(model, fetched, choice, config, &mut |_| {})
    }

    /// As [`Session::of`], of an opened model, which may be one that only turns texts into vectors. `progress` is told how far it is.
    pub fn of_model(
        model: OpenModel,
        fetched: &Fetched,
        choice: &EngineChoice<'_>,
        config: &Config,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> anyhow::Result<Session> {
        let start = Instant::now();
        let path = &fetched.path;
        let (text, engine) = std::thread::scope(|scope| {
            let text = std::thread::Builder::new().spawn_scoped(scope, || open_text(&model, fetched, config));
            let engine = open_engine(&model, path, choice, config, progress);
            let text = match text {
                Ok(text) => text.join().unwrap_or_else(|_| Err(anyhow!("building the tokenizer panicked"))),
                // The system has no thread left: one after the other does it too.
                Err(_) => open_text(&model, fetched, config),
            };
            (text, engine)
        });
        let text = text.map_err(|error| match error.downcast() {
            Ok(error) => named(path, error),
            Err(error) => error.context(format!("cannot open model {}", path.display())),
        })?;
        let Running { engine, grader, fingerprint, kept } = engine?;
        let session = Session { text, engine, grader, fingerprint, kept };
        if config.explains() {
            say!("{}", path.display());
            explain(&session.engine, start);
            if let (Some(kept), Some(bytes)) = (&session.kept, choice.disk_bytes) {
                kv_disk::explain(kept, bytes);
            }
        }
        Ok(session)
    }
}

fn open_text(model: &OpenModel, fetched: &Fetched, config: &Config) -> anyhow::Result<TextSide> {
    let (text, notices) = TextSide::open(model)?;
    warn(&notices, fetched, config);
    Ok(text)
}

/// What is said about a model that only continues text.
pub fn no_template(system: bool) -> &'static str {
    if system {
        "this model has no chat template: the prompt is continued as it is, and --system is not used"
    } else {
        "this model has no chat template: the prompt is continued as it is"
    }
}

/// An engine with what belongs to it.
struct Running {
    engine: Engine,
    grader: Option<Grader>,
    fingerprint: Option<[u8; 32]>,
    kept: Option<Kept>,
}

/// Opens the device and the pages on disk, and loads the weights.
fn open_engine(
    model: &OpenModel,
    path: &Path,
    choice: &EngineChoice<'_>,
    config: &Config,
    progress: &mut dyn FnMut(LoadProgress),
) -> anyhow::Result<Running> {
    let spec = &model.spec;
    let source: Arc<dyn WeightSource> = model.source.clone();
    let placed = open_devices(spec, choice, config)?;
    let grader = if config.explains() { Grader::new(&placed, spec, config)? } else { None };
    let fingerprint = choice.disk_bytes.map(|_| model.fingerprint()).transpose()?;
    let kept = match (fingerprint, choice.disk_bytes) {
        (Some(fingerprint), Some(bytes @ 1..)) => {
            let options = engine_options(spec, choice)?;
            let identity = kv_disk::identity(&fingerprint, spec, &options, &placed);
            kv_disk::open(identity, &About::new(spec, path, &options, &placed), bytes, config)?
        }
        _ => None,
    };
    let engine = engine_on(placed, spec, &source, choice, kept.as_ref(), config, progress)?;
    Ok(Running { engine, grader, fingerprint, kept })
}

/// Opens the devices for a model and places it on them.
pub fn open_devices(spec: &ModelSpec, choice: &EngineChoice<'_>, config: &Config) -> anyhow::Result<Placed> {
    // Before a device is opened: a context that cannot be is wrong usage.
    let (options, leeway) = (engine_options(spec, choice)?, leeway(choice));
    let EngineChoice { device, place, load, memory, .. } = *choice;
    planner::place(&Wish { device, place, options: &options, leeway, load, memory }, spec, config)
}

/// What may give way where memory is short: a context that nobody asked for, and the part of the KV cache beyond one sequence.
fn leeway(choice: &EngineChoice<'_>) -> Leeway {
    let context_min = matches!(choice.context, ContextChoice::AtMost(_)).then_some(CONTEXT_MIN);
    Leeway { kv_tokens: choice.kv_tokens, context_min }
}

/// The engine's options for a model.
pub fn engine_options(spec: &ModelSpec, choice: &EngineChoice<'_>) -> anyhow::Result<EngineOptions> {
    let context = choice.context.resolve(spec.context_max).map_err(usage)?;
    let (kv_type, sequences_max, queue_max) = (choice.kv, choice.load.sequences, choice.queue);
    let mut options =
        EngineOptions { context, kv_type, sequences_max, queue_max, ..EngineOptions::default() };
    let outputs = perplexity::outputs_max(spec.vocab, options.prefill_chunk.min(context));
    options.kept_max = choice.kept.unwrap_or(options.kept_max);
    let drafts = choice.drafts.then_some(sequences_max.saturating_mul(DRAFT_MAX + 1));
    let rows = (choice.rows > 0).then_some(sequences_max.saturating_add(choice.rows));
    options.outputs_max = choice.scores.then_some(outputs).max(drafts).max(rows);
    Ok(leeway(choice).wished(&options, context))
}

/// Loads the weights on open devices. Errors before the first is read where all of them cannot fit.
pub fn engine_on(
    placed: Placed,
    spec: &ModelSpec,
    source: &Arc<dyn WeightSource>,
    choice: &EngineChoice<'_>,
    kept: Option<&Kept>,
    config: &Config,
    progress: &mut dyn FnMut(LoadProgress),
) -> anyhow::Result<Engine> {
    let mut options = engine_options(spec, choice)?;
    options.store = kept.map(|kept| KvStore { pages: kept.store.clone(), identity: kept.identity });
    let Placed { opened, placements } = placed;
    let context = options.context;
    options.memory_limits = memory::limits(&opened, choice.memory);
    if let Some(wish) = choice.canary {
        options.overseer =
            Overseer(canary::start(wish, &opened, spec, source, options.kv_type, config.talks())?);
    }
    let cannot = || format!("cannot load {}", one_line(&spec.name));
    let devices: Vec<Arc<dyn Device>> = opened.into_iter().map(|o| o.device as Arc<dyn Device>).collect();
    let leeway = leeway(choice);
    let fitting = fit(spec, &devices, &placements, &options, &leeway).with_context(cannot)?;
    // Where nothing fits, the least that was wished is told.
    let options = fitting.unwrap_or_else(|| leeway.smallest(&options, context));
    if options.context < context && config.talks() {
        let fits = options.context;
        say!(
            "context {fits} tokens: {context} do not fit into memory; --ctx {context} tells what is missing"
        );
    }
    let made = Engine::new(spec, source, devices.clone(), placements.clone(), options.clone(), progress);
    made.map_err(|error| Refused::or_other(error, spec, &devices, &placements, &options, &leeway))
        .with_context(cannot)
}

/// Says what was decided.
pub fn explain(engine: &Engine, start: Instant) {
    let spec = engine.spec();
    say!(
        "model {}: {}, {} parameters, {} layers, {} of weights",
        one_line(&spec.name),
        spec.architecture,
        units::parameters(spec.parameters()),
        spec.layers(),
        units::bytes(spec.weight_bytes())
    );
    say!("context {} tokens, KV cache {}", engine.options().context, engine.options().kv_type.tensor_type());
    for line in engine.report().lines() {
        say!("{line}");
    }
    say!("ready after {}", units::seconds(start.elapsed().as_secs_f64()));
}
