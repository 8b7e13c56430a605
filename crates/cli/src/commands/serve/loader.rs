//! How the server's models are found and opened.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use unicorn_core::{DeviceKind, ModelSpec, Pooling};
use unicorn_engine::Engine;
use unicorn_model::{OpenModel, TextSide};
use unicorn_server::{Care, Description, LoadError, LoadedModel, Loader, ModelEntry, ModelFacts, Outline};

use super::args::ServeArgs;
use crate::canary::{self, Coop};
use crate::clean::one_line;
use crate::commands::embed;
use crate::config::Config;
use crate::devices;
use crate::memory::Refused;
use crate::output::say;
use crate::planner::{Load, Place};
use crate::progress::Fetched;
use crate::session::{self, ContextChoice, EngineChoice, Session, find_model, open_model};
use crate::shared_args::DeviceArgs;

/// Context where nobody asks for another: the first prompts of coding agents have up to 19,000 tokens.
const CONTEXT_MAX: usize = 32_768;
/// Tokens in the KV cache where nobody asks for more.
const KV_TOKENS: usize = 65_536;

/// Beginnings of texts that are kept; what they take is bounded by the KV cache.
const KEPT: usize = 256;
/// Rows of logits that are read at once to score prompts.
const ROWS: usize = 32;

/// A model on this machine.
#[derive(Clone, Debug)]
struct Known {
    id: String,
    path: PathBuf,
    lacking: Vec<String>,
}

/// Opens the models named on the command line and those in a folder.
pub struct ModelLoader {
    args: ServeArgs,
    config: Config,
    named: Vec<Known>,
    template: Option<String>,
    /// What canaries have found, by model.
    canaries: Mutex<HashMap<String, Arc<Coop>>>,
}

impl ModelLoader {
    /// Finds the models, fetching those that are not here.
    pub fn new(args: &ServeArgs, template: Option<String>, config: &Config) -> anyhow::Result<ModelLoader> {
        let mut named = Vec::new();
        let default = [config.default_model().to_owned()];
        let names = match (args.model.is_empty(), &args.models_dir) {
            (true, None) => &default[..],
            _ => &args.model[..],
        };
        for name in names {
            let Fetched { path, lacking } = find_model(name, config)?;
            named.push(Known { id: id_of(name), path, lacking });
        }
        let loader = ModelLoader {
            args: args.clone(),
            config: config.clone(),
            named,
            template,
            canaries: Mutex::default(),
        };
        anyhow::ensure!(
            !loader.known().is_empty(),
            "{}: there is no model in it",
            args.models_dir.as_deref().unwrap_or(Path::new("--models-dir")).display()
        );
        Ok(loader)
    }

    /// Where the canaries of a model keep what they find.
    fn coop(&self, id: &str) -> Arc<Coop> {
        let mut canaries = self.canaries.lock().unwrap_or_else(PoisonError::into_inner);
        canaries.entry(id.to_owned()).or_default().clone()
    }

    /// The model with this id.
    fn find(&self, id: &str) -> Result<Known, LoadError> {
        let known = self.known().into_iter().find(|known| known.id == id);
        known.ok_or_else(|| format!("{id} is not there any more").into())
    }

    /// All models: the named ones, then those in the folder by name. Of two with one id the first counts.
    fn known(&self) -> Vec<Known> {
        let mut known = self.named.clone();
        for (id, path) in self.args.models_dir.as_deref().map(in_folder).unwrap_or_default() {
            if known.iter().all(|other| other.id != id) {
                known.push(Known { id, path, lacking: Vec::new() });
            }
        }
        known
    }
}

/// What requests call a model: a file's name without its ending, any other name as it is.
fn id_of(name: &str) -> String {
    let path = Path::new(name);
    match path.exists() {
        true => path.file_stem().map_or_else(|| name.to_owned(), |stem| stem.to_string_lossy().into_owned()),
        false => name.to_owned(),
    }
}

/// The models in a folder: GGUF files, of split ones the first, and folders with a `config.json`. Links that lead out of it are not followed.
fn in_folder(folder: &Path) -> BTreeMap<String, PathBuf> {
    let Ok(root) = folder.canonicalize() else { return BTreeMap::new() };
    let entries = std::fs::read_dir(&root).into_iter().flatten().flatten();
    let model = |entry: std::fs::DirEntry| {
        let path = entry.path().canonicalize().ok().filter(|path| path.starts_with(&root))?;
        let name = entry.file_name().into_string().ok()?;
        if path.is_dir() {
            return path.join("config.json").is_file().then_some((name, path));
        }
        let stem = name.strip_suffix(".gguf")?;
        let shard = stem.rsplit_once("-of-").and_then(|(before, _)| before.rsplit_once('-'));
        match shard.filter(|(_, number)| number.len() == 5 && number.bytes().all(|b| b.is_ascii_digit())) {
            Some((base, "00001")) => Some((base.to_owned(), path)),
            Some(_) => None,
            None => Some((stem.to_owned(), path)),
        }
    };
    entries.filter_map(model).collect()
}

/// Bytes of a file, or of the files in a folder, and when the newest was written.
fn size_and_time(path: &Path) -> (u64, u64) {
    let files: Vec<PathBuf> = match path.is_dir() {
        true => std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect(),
        false => vec![path.to_owned()],
    };
    let metadata = files.iter().filter_map(|file| std::fs::metadata(file).ok()).filter(|m| m.is_file());
    metadata.fold((0, 0), |(bytes, newest), file| {
        let time = file.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        (bytes + file.len(), newest.max(time.map_or(0, |time| time.as_secs())))
    })
}

impl Loader for ModelLoader {
    fn models(&self) -> Vec<ModelEntry> {
        let entry = |known: Known| {
            let (bytes, created) = size_and_time(&known.path);
            ModelEntry { id: known.id, bytes, created }
        };
        self.known().into_iter().map(entry).collect()
    }

    fn load(&self, id: &str, care: &Care, progress: &mut dyn FnMut(f32)) -> Result<LoadedModel, LoadError> {
        let known = self.find(id)?;
        open_with(self, &known, care, progress).map_err(|error| refusal(&known, &error))
    }

    fn tell(&self, line: &str) {
        if self.config.talks() {
            say!("{}", one_line(line));
        }
    }

    fn log(&self, line: &str) {
        // Asked for by a flag, so that `--quiet` does not count.
        say!("{line}");
    }

    fn describe(&self, id: &str) -> Result<Description, LoadError> {
        let known = self.find(id)?;
        describe(self, &known).map_err(|error| refusal(&known, &error))
    }

    fn outline(&self, id: &str) -> Result<Outline, LoadError> {
        let known = self.find(id)?;
        outline(self, &known).map_err(|error| refusal(&known, &error))
    }
}

/// What went wrong with a model, with the path of its file and, for others, without.
fn refusal(known: &Known, error: &anyhow::Error) -> LoadError {
    let memory = error.downcast_ref::<Refused>().is_some();
    let message = one_line(&format!("{error:#}"));
    let name =
        known.path.file_name().map_or_else(|| known.id.clone(), |name| name.to_string_lossy().into_owned());
    let mut told = message.replace(&known.path.display().to_string(), &name);
    if let Some(folder) = known.path.parent().filter(|folder| folder.parent().is_some()) {
        told = told.replace(&format!("{}{}", folder.display(), std::path::MAIN_SEPARATOR), "");
    }
    LoadError { message, told, memory }
}

fn open_with(
    loader: &ModelLoader,
    known: &Known,
    care: &Care,
    progress: &mut dyn FnMut(f32),
) -> anyhow::Result<LoadedModel> {
    let ServeArgs { device, place, .. } = &loader.args;
    if !matches!(care, Care::Without(_)) {
        // Before any device is open that this is about.
        canary::settle(&loader.coop(&known.id), &loader.config)?;
    }
    match care {
        Care::Usual => open(loader, known, device, &place.of(device), progress),
        Care::Small => {
            let device = DeviceArgs { small: true, ..device.clone() };
            open(loader, known, &device, &place.of(&device), progress)
        }
        Care::Without(lost) => {
            let mut why = anyhow::anyhow!("there is no other device");
            for choice in devices::unasked() {
                let device = DeviceArgs { small: true, ..device.on(choice.clone()) };
                match open(loader, known, &device, &Place::One, progress) {
                    Ok(model) if model.engine.devices().iter().all(|d| d.profile().name != *lost) => {
                        return Ok(model);
                    }
                    Ok(_) => {}
                    Err(error) => why = error.context(choice.to_string()),
                }
            }
            Err(why)
        }
    }
}

fn open(
    loader: &ModelLoader,
    known: &Known,
    device: &DeviceArgs,
    place: &Place,
    progress: &mut dyn FnMut(f32),
) -> anyhow::Result<LoadedModel> {
    let ModelLoader { args, config, template, .. } = loader;
    let fetched = Fetched { path: known.path.clone(), lacking: known.lacking.clone() };
    let model = open_model(&fetched, config)?;
    let pooling = match model.embedding_defaults() {
        Ok(defaults) => Ok(defaults.pooling.unwrap_or(Pooling::Mean)),
        // One that writes can do that still.
        Err(why) if !model.spec.is_encoder() => Err(one_line(&why.to_string())),
        Err(why) => return Err(why.into()),
    };
    let wish = canary::Wish { share: args.canary, coop: loader.coop(&known.id) };
    let choice = EngineChoice { canary: Some(&wish), ..choice(args, device, place, &model)? };
    let mut session = Session::of_model(model, &fetched, &choice, config, &mut |done| {
        progress(done.loaded_bytes as f32 / done.total_bytes.max(1) as f32);
    })?;
    if let (Some(file), Some(source)) = (&args.chat_template, template) {
        session::set_template(&mut session.text, file, source)?;
    }
    let facts = running(&session.engine, facts(session.engine.spec(), size_and_time(&known.path).1));
    let drafts = choice.drafts;
    Ok(LoadedModel { engine: session.engine, text: session.text, facts, drafts, pooling })
}

/// How the engine of a model is set up. An encoder keeps nothing between batches, so that it can have more texts at once, and guesses nothing.
fn choice<'a>(
    args: &'a ServeArgs,
    device: &'a DeviceArgs,
    place: &'a Place,
    model: &OpenModel,
) -> anyhow::Result<EngineChoice<'a>> {
    let choice = EngineChoice {
        kv_tokens: Some(args.kv_tokens.unwrap_or(KV_TOKENS)),
        device,
        place,
        kv: args.kv.kv,
        context: context(args, model)?,
        memory: args.memory.memory_max.as_ref(),
        scores: false,
        drafts: args.draft.is_some(),
        load: Load { sequences: args.slots, ..Load::default() },
        queue: args.queue,
        kept: Some(KEPT),
        rows: ROWS,
        canary: None,
        disk_bytes: Some(args.disk.bytes()),
    };
    if !model.spec.is_encoder() {
        return Ok(choice);
    }
    let sequences = args.slots.max(embed::TEXTS_AT_ONCE);
    let load = Load { prompt: 512, decode: 0, sequences, ..Load::default() };
    Ok(EngineChoice { kv_tokens: None, drafts: false, load, kept: None, rows: 0, ..choice })
}

fn describe(loader: &ModelLoader, known: &Known) -> anyhow::Result<Description> {
    let ModelLoader { args, template, .. } = loader;
    let model = unicorn_model::open(&known.path)?;
    let (mut text, _) = TextSide::open(&model)?;
    if let (Some(file), Some(source)) = (&args.chat_template, template) {
        session::set_template(&mut text, file, source)?;
    }
    let context = context(args, &model)?.resolve(model.spec.context_max).map_err(anyhow::Error::msg)?;
    Ok(Description { text, facts: facts(&model.spec, size_and_time(&known.path).1), context })
}

fn outline(loader: &ModelLoader, known: &Known) -> anyhow::Result<Outline> {
    let model = unicorn_model::open(&known.path)?;
    let spec = &model.spec;
    let context = context(&loader.args, &model)?.resolve(spec.context_max).map_err(anyhow::Error::msg)?;
    Ok(Outline { facts: facts(spec, size_and_time(&known.path).1), context, vocab: spec.vocab })
}

/// The context that is asked for. `--ctx` is meant for models that write: an encoder takes as long a text as it can, up to that.
fn context(args: &ServeArgs, model: &OpenModel) -> anyhow::Result<ContextChoice> {
    if !model.spec.is_encoder() {
        return Ok(args.ctx.unwrap_or(ContextChoice::AtMost(CONTEXT_MAX)));
    }
    let most = model.embedding_defaults()?.tokens_max.unwrap_or(embed::CONTEXT_MAX);
    Ok(ContextChoice::AtMost(match args.ctx {
        Some(ContextChoice::Exactly(n) | ContextChoice::AtMost(n)) => most.min(n),
        Some(ContextChoice::Model) | None => most,
    }))
}

/// What is known once a model runs.
fn running(engine: &Engine, facts: ModelFacts) -> ModelFacts {
    let report = engine.report();
    let held = report.devices.iter().filter(|device| device.kind != DeviceKind::Cpu);
    ModelFacts {
        gpu_bytes: held.map(|d| d.memory.weights + d.memory.kv + d.memory.scratch).sum(),
        devices: engine.devices().iter().map(|device| device.profile().name.clone()).collect(),
        placement: report.placement.join("; "),
        ..facts
    }
}

fn facts(spec: &ModelSpec, created: u64) -> ModelFacts {
    ModelFacts {
        name: spec.name.clone(),
        architecture: spec.architecture.clone(),
        parameters: spec.parameters(),
        weight_bytes: spec.weight_bytes(),
        quantization: main_type(spec),
        width: spec.width,
        encodes: spec.is_encoder(),
        context_trained: spec.context_max,
        created,
        ..ModelFacts::default()
    }
}

/// The type of most of the weights.
fn main_type(spec: &ModelSpec) -> String {
    let mut bytes: BTreeMap<&str, u64> = BTreeMap::new();
    for weight in spec.blocks.iter().flat_map(|block| block.weights()) {
        *bytes.entry(weight.ty.name()).or_default() += weight.span.bytes;
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or_else(String::new, |(name, _)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_offers_what_can_be_opened_and_nothing_outside() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let touch = |path: &Path| std::fs::write(path, b"x").unwrap();
        for name in ["a.gguf", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "notes.txt"] {
            touch(&folder.path().join(name));
        }
        for name in ["hf", "empty"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        touch(&folder.path().join("hf/config.json"));
        touch(&outside.path().join("out.gguf"));
        #[cfg(unix)]
        std::os::unix::fs::symlink(outside.path().join("out.gguf"), folder.path().join("link.gguf")).unwrap();
        let found: Vec<String> = in_folder(folder.path()).into_keys().collect();
        assert_eq!(found, ["a", "big", "hf"]);
        assert!(in_folder(&outside.path().join("missing")).is_empty());
    }
}
