//! The wiring shared by all commands: a model's files, its text side, a device, and the engine over them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use unicorn_core::{Device, KvType, ModelSpec, WeightSource};
use unicorn_engine::{Engine, EngineOptions, Placement};
use unicorn_model::OpenModel;
use unicorn_text::{ChatTemplate, TemplateError, Tokenizer};

use crate::args::DeviceArgs;
use crate::config::Config;
use crate::devices;
use crate::exit::usage;
use crate::output::say;
use crate::progress;
use crate::settings::Recommended;
use crate::units;

/// Where the model meant by `--model` lies; it is fetched first where it must be.
pub fn find_model(name: &str, config: &Config) -> anyhow::Result<PathBuf> {
    let reference = unicorn_hub::resolve(name)?;
    Ok(progress::fetch(&reference, config)?)
}

/// The tokenizer of a model, whose weights need not be there.
pub fn open_tokenizer(path: &Path) -> anyhow::Result<Tokenizer> {
    unicorn_model::open_tokenizer(path).with_context(|| named(path))
}

fn named(path: &Path) -> String {
    format!("cannot open model {}", path.display())
}

/// How the engine is to be set up.
#[derive(Clone, Debug)]
pub struct EngineChoice<'a> {
    /// Device and threads.
    pub device: &'a DeviceArgs,
    /// Element type of the KV cache.
    pub kv: KvType,
    /// Context in tokens.
    pub context: ContextChoice,
}

/// How long the context is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContextChoice {
    /// Exactly this; an error where the model allows less.
    Exactly(usize),
    /// The model's, but not more than this.
    AtMost(usize),
}

impl ContextChoice {
    /// The context for a model trained on `model_max` tokens.
    pub fn resolve(self, model_max: usize) -> anyhow::Result<usize> {
        match self {
            ContextChoice::Exactly(n) if n > model_max => {
                Err(usage(format!("a context of {n} tokens: the model was trained for {model_max} at most")))
            }
            ContextChoice::Exactly(n) => Ok(n),
            ContextChoice::AtMost(n) => Ok(n.min(model_max)),
        }
    }
}

/// The text side of a model.
pub struct TextSide {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// A template that cannot be compiled is an error only where it is needed.
    template: Result<Option<ChatTemplate>, TemplateError>,
    /// What the model's files recommend.
    pub recommended: Recommended,
    /// Ids that end an answer.
    pub stop_tokens: Vec<u32>,
}

impl TextSide {
    /// The chat template; absent for models that only continue text.
    pub fn template(&self) -> anyhow::Result<Option<&ChatTemplate>> {
        match &self.template {
            Ok(template) => Ok(template.as_ref()),
            Err(error) => {
                Err(anyhow::Error::new(error.clone()).context("--raw goes without the chat template"))
            }
        }
    }
}

/// A model ready to answer.
pub struct Session {
    /// The model on its device.
    pub engine: Engine,
    /// Its text side.
    pub text: TextSide,
}

impl Session {
    /// Opens model and device. The tokenizer is built on a thread of its own while the weights load.
    pub fn open(model: &str, choice: &EngineChoice<'_>, config: &Config) -> anyhow::Result<Session> {
        let start = Instant::now();
        let path = find_model(model, config)?;
        let model = unicorn_model::open(&path).with_context(|| named(&path))?;
        let (text, engine) = std::thread::scope(|scope| {
            let text = scope.spawn(|| open_text(&model));
            let engine = open_engine(&model.spec, &*model.source, choice, config);
            let text = text.join().unwrap_or_else(|_| Err(anyhow!("building the tokenizer panicked")));
            (text, engine)
        });
        let session = Session { text: text.with_context(|| named(&path))?, engine: engine? };
        if config.explains() {
            say!("{}", path.display());
            explain(&session.engine, start);
        }
        Ok(session)
    }
}

fn open_text(model: &OpenModel) -> anyhow::Result<TextSide> {
    let tokenizer = model.tokenizer()?;
    let template = model.chat_template()?.map_or(Ok(None), |source| ChatTemplate::new(&source, &tokenizer));
    let defaults = model.generation_defaults()?;
    let recommended = Recommended {
        temperature: defaults.temperature,
        top_k: defaults.top_k.map(|k| k as usize),
        top_p: defaults.top_p,
        min_p: defaults.min_p,
        repeat_penalty: defaults.repeat_penalty,
        system: None,
    };
    let recommended = recommended.or_by_name(&model.spec.name);
    let mut stop_tokens = tokenizer.end_tokens().to_vec();
    stop_tokens.extend(&defaults.stop_tokens);
    stop_tokens.sort_unstable();
    stop_tokens.dedup();
    Ok(TextSide { template, tokenizer, recommended, stop_tokens })
}

/// Opens the device and loads the weights.
pub fn open_engine(
    spec: &ModelSpec,
    source: &dyn WeightSource,
    choice: &EngineChoice<'_>,
    config: &Config,
) -> anyhow::Result<Engine> {
    // Before a device is opened: a context that cannot be is wrong usage.
    choice.context.resolve(spec.context_max)?;
    engine_on(devices::open(choice.device, config)?.device, spec, source, choice)
}

/// Loads the weights on an open device.
pub fn engine_on(
    device: Arc<dyn Device>,
    spec: &ModelSpec,
    source: &dyn WeightSource,
    choice: &EngineChoice<'_>,
) -> anyhow::Result<Engine> {
    let context = choice.context.resolve(spec.context_max)?;
    let options = EngineOptions { context, kv_type: choice.kv, ..EngineOptions::default() };
    let placement = Placement::single(spec)?;
    let engine = Engine::new(spec, source, vec![device], placement, options, &mut |_| {});
    engine.with_context(|| format!("cannot load {}", spec.name))
}

/// Says what was decided.
pub fn explain(engine: &Engine, start: Instant) {
    let spec = engine.spec();
    say!(
        "model {}: {}, {} parameters, {} layers, {} of weights",
        spec.name,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Exit, of_error};

    #[test]
    fn contexts_stay_within_the_model() {
        assert_eq!(ContextChoice::AtMost(8192).resolve(2048).unwrap(), 2048);
        assert_eq!(ContextChoice::AtMost(8192).resolve(131_072).unwrap(), 8192);
        assert_eq!(ContextChoice::Exactly(100).resolve(2048).unwrap(), 100);
        let error = ContextChoice::Exactly(4096).resolve(2048).unwrap_err();
        assert_eq!(of_error(&error), Exit::Usage);
        assert!(error.to_string().contains("4096") && error.to_string().contains("2048"));
    }
}
