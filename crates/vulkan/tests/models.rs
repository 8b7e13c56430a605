//! Whole tiny models of every architecture on every Vulkan device that is here, against the logits that `transformers` computes in
//! float64: from GGUF and from safetensors, through the kernels of many rows, those of few, and both in one sequence, with caches in F32
//! and F16. (Their heads are too short for a cache in Q8_0, which devices refuse for them.)
//!
//! No harness: what could not run is said to be NOT RUN, and not counted as passed. Where `UNICORN_REQUIRE_VULKAN` is set, as continuous
//! integration sets it, it counts as failed.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use unicorn_cases::golden::{Chunks, GOLDEN_MODELS, Golden, greedy, logits, relative_error};
use unicorn_cases::golden_encoder::{GoldenEncoder, hidden};
use unicorn_core::{Device, DeviceOptions, Instrument, KvType, WeightSource};
use unicorn_vulkan::{Candidate, Context, Library, LibraryOptions, Limit, VulkanDevice, VulkanOptions};

/// A case that nothing rounds to half floats in: up to four rows a batch, as in decoding, and a cache in F32.
///
/// The weights are F32, so activations are too (they become 8 bits for quantized weights alone), and what is left are angles, norms and
/// sums in f32 as on the CPU, whose tolerance this is.
const TOLERANCE_FLOAT: f32 = 1e-4;
/// More rows a batch, or a cache in F16.
///
/// Activations, and weights on their way into a tile, keep 11 bits, as do K and V in the cache. `Tolerance::half_activations` allows one
/// block 0.15 % (rms) for that; a model has 4 to 14 of them in a row, and the largest of 10480 logits is off by some four times the rms.
/// The largest logit, which errors are relative to, is some four times the rms of all. Seen: up to 0.4 %.
const TOLERANCE_HALF: f32 = 6e-3;

/// The encoder among the tiny models.
const ENCODER: &str = "bert";

/// A way to feed the tokens.
struct Feed {
    name: &'static str,
    chunks: Chunks<'static>,
    /// Whether any batch has more rows than the kernels for few take.
    many_rows: bool,
}

/// All of them for one file format; the first two for the other, which holds the same weights.
const FEEDS: [Feed; 8] = [
    Feed { name: "whole", chunks: &[&[40]], many_rows: true },
    Feed { name: "one by one", chunks: &[&[1]], many_rows: false },
    Feed { name: "by fours", chunks: &[&[4]], many_rows: false },
    Feed { name: "by sevens", chunks: &[&[7]], many_rows: true },
    Feed { name: "13, then one by one", chunks: &[&[13, 1]], many_rows: true },
    Feed { name: "whole beside one by one", chunks: &[&[40], &[1]], many_rows: true },
    Feed { name: "two one by one", chunks: &[&[1], &[2, 1]], many_rows: false },
    Feed { name: "three one by one", chunks: &[&[1], &[2, 1], &[3, 1]], many_rows: true },
];
const CACHES: [KvType; 2] = [KvType::F32, KvType::F16];

/// Kernels of these models that a device is told to do without, and which others then do all the work.
const AVOIDED: [(&str, &[&str]); 4] = [
    ("as it is", &[]),
    (
        "without kernels of few rows",
        &["linear_f32", "linear_glu_f32", "attention_decode_f32", "attention_decode_f16"],
    ),
    ("without attention of few rows", &["attention_decode_f32", "attention_decode_f16"]),
    (
        "without kernels of many rows",
        &[
            "matmul_cooperative_f32",
            "matmul_cooperative_glu_f32",
            "matmul_plain_f32",
            "matmul_plain_glu_f32",
            "flash_matrix2_f32",
            "flash_matrix2_f16",
            "flash_cooperative_f32",
            "flash_cooperative_f16",
            "flash_plain_f32",
            "flash_plain_f16",
        ],
    ),
];

fn tolerance(feed: &Feed, kv: KvType, avoided: &[&str]) -> f32 {
    if feed.many_rows || !avoided.is_empty() || kv != KvType::F32 { TOLERANCE_HALF } else { TOLERANCE_FLOAT }
}

fn main() -> ExitCode {
    // As of the usual harness: words are parts of names, the rest are options for it.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str()));
    let begin = Instant::now();
    let (mut passed, mut failed) = (0, 0);
    let required = std::env::var_os("UNICORN_REQUIRE_VULKAN").is_some_and(|v| !v.is_empty() && v != "0");
    let devices = devices();
    for name in GOLDEN_MODELS.into_iter().chain([ENCODER]).filter(|name| wants(name)) {
        let check = |number| if name == ENCODER { check_encoder(number) } else { check(number, name) };
        let outcomes = match &devices {
            Ok(count) => (0..*count).map(check).collect(),
            Err(reason) => {
                println!("test models::{name} ... NOT RUN: {reason}");
                failed += usize::from(required);
                Vec::new()
            }
        };
        for outcome in outcomes {
            passed += usize::from(outcome.is_ok());
            failed += usize::from(outcome.is_err());
            match outcome {
                Ok(note) => println!("test models::{name} ... ok ({note})"),
                Err(error) => println!("test models::{name} ... FAILED\n    {error}"),
            }
        }
    }
    let (verdict, seconds) = (if failed == 0 { "ok" } else { "FAILED" }, begin.elapsed().as_secs_f32());
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out; finished in {seconds:.2}s\n"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn usable(library: &Library) -> Result<Vec<Candidate>, Box<dyn Error>> {
    Ok(library.candidates()?.into_iter().filter(|c| c.missing().is_empty()).collect())
}

/// How many devices can be tested; an error tells why none can.
fn devices() -> Result<usize, Box<dyn Error>> {
    match usable(&Library::load(LibraryOptions::default())?)?.len() {
        0 => Err("no Vulkan device has what the kernels need".into()),
        count => Ok(count),
    }
}

/// Opens a device, limited to plain products if asked.
fn open(number: usize, limit: Option<Limit>) -> Result<VulkanDevice, Box<dyn Error>> {
    let library = Library::load(LibraryOptions::default())?;
    let mut chosen = usable(&library)?.into_iter().nth(number).ok_or("the device is gone")?;
    if let Some(limit) = limit {
        chosen.profile = limit.apply(&chosen.profile)?;
    }
    let name = chosen.profile.name.clone();
    Ok(VulkanDevice::open(Context::open(library, &chosen)?, &name, &VulkanOptions::default())?)
}

/// Every feed and cache on the device as it is, without cooperative matrices if it has some, and the first feeds without either family of
/// kernels. Tells how close it came.
fn check(number: usize, name: &'static str) -> Result<String, Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny");
    let golden = Golden::read(&folder, name)?;
    let mut worst = Worst::default();
    let device = open(number, None)?;
    on_device(&device, &golden, &mut worst)?;
    feeds_itself(&device, &golden)?;
    if !device.context().profile().matrices.is_empty() {
        on_device(&open(number, Some(Limit::Plain))?, &golden, &mut worst)?;
    }
    Ok(format!("{}: errors up to {worst}", device.context().profile().name))
}

fn on_device(device: &VulkanDevice, golden: &Golden, worst: &mut Worst) -> Result<(), Box<dyn Error>> {
    for (file, feeds) in golden.files.iter().zip([&FEEDS[..], &FEEDS[..2]]) {
        check_file(device, golden, file, feeds, AVOIDED[0], worst)?;
    }
    for avoided in &AVOIDED[1..] {
        check_file(device, golden, &golden.files[0], &FEEDS[..2], *avoided, worst)?;
    }
    Ok(())
}

/// The encoder on the device as it is, without cooperative matrices if it has some, and without either family of products: a whole text,
/// alone and among others, through the kernels of many rows; and a short one through those of few.
fn check_encoder(number: usize) -> Result<String, Box<dyn Error>> {
    let golden = GoldenEncoder::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny"))?;
    let mut worst = Worst::default();
    let device = open(number, None)?;
    for (how, avoided) in AVOIDED {
        encoder_on(&device, &golden, how, avoided, &mut worst)?;
    }
    if !device.context().profile().matrices.is_empty() {
        encoder_on(&open(number, Some(Limit::Plain))?, &golden, "on plain products", &[], &mut worst)?;
    }
    Ok(format!("{}: errors up to {worst}", device.context().profile().name))
}

fn encoder_on(
    device: &VulkanDevice,
    golden: &GoldenEncoder,
    how: &str,
    avoided: &[&str],
    worst: &mut Worst,
) -> Result<(), Box<dyn Error>> {
    let avoid = avoided.iter().map(|kernel| (*kernel).to_owned()).collect();
    device.configure(&DeviceOptions { avoid, ..DeviceOptions::default() })?;
    let (whole, few) = (&golden.tokens[..], &golden.tokens[..2]);
    for file in &golden.files {
        let model = unicorn_model::open(file)?;
        let source: Arc<dyn WeightSource> = model.source.clone();
        let on = |device: &dyn Device, texts: &[&[u32]]| hidden(device, &model.spec.blocks, &source, texts);
        let float = if avoided.is_empty() { TOLERANCE_FLOAT } else { TOLERANCE_HALF };
        let runs = [
            ("a whole text", on(device, &[whole])?.swap_remove(0), &golden.hidden, TOLERANCE_HALF),
            (
                "among others",
                on(device, &[few, whole, &whole[..9]])?.swap_remove(1),
                &golden.hidden,
                TOLERANCE_HALF,
            ),
            ("two tokens", on(device, &[few])?.swap_remove(0), &golden.short, float),
        ];
        for (what, got, want, allowed) in runs {
            let error = relative_error(&got, want);
            if error.is_nan() || error > allowed {
                let (on, file) = (&device.profile().description, file.display());
                return Err(format!("{on} {how}: {file} {what}: error {error:.1e} of {allowed:.0e}").into());
            }
            worst.add(error, allowed);
        }
    }
    Ok(())
}

/// Steps that take their tokens from where the device keeps them bring the tokens that others bring.
fn feeds_itself(device: &VulkanDevice, golden: &Golden) -> Result<(), Box<dyn Error>> {
    device.configure(&DeviceOptions::default())?;
    let model = unicorn_model::open(&golden.files[0])?;
    let source: Arc<dyn WeightSource> = model.source.clone();
    let run = |ahead| greedy(device, &model.spec.blocks, &source, &golden.tokens[..9], 12, ahead);
    let (told, kept) = (run(false)?, run(true)?);
    if told != kept {
        return Err(format!(
            "{}: {told:?} where the host reads on, {kept:?} by itself",
            device.profile().name
        )
        .into());
    }
    Ok(())
}

fn check_file(
    device: &VulkanDevice,
    golden: &Golden,
    file: &Path,
    feeds: &[Feed],
    (how, avoided): (&str, &[&str]),
    worst: &mut Worst,
) -> Result<(), Box<dyn Error>> {
    let avoid = avoided.iter().map(|kernel| (*kernel).to_owned()).collect();
    device.configure(&DeviceOptions { avoid, ..DeviceOptions::default() })?;
    let model = unicorn_model::open(file)?;
    for (feed, kv) in feeds.iter().flat_map(|feed| CACHES.map(|kv| (feed, kv))) {
        let source: Arc<dyn WeightSource> = model.source.clone();
        let all = logits(device, &model.spec.blocks, &source, &golden.tokens, feed.chunks, kv)?;
        let error = all.iter().map(|got| relative_error(got, &golden.logits)).fold(0.0, f32::max);
        let allowed = tolerance(feed, kv, avoided);
        if error > allowed {
            let (on, file, feed) = (&device.profile().description, file.display(), feed.name);
            return Err(format!(
                "{on} {how}: {file} {feed}, cache {kv:?}: error {error:.1e} of {allowed:.0e}"
            )
            .into());
        }
        worst.add(error, allowed);
    }
    Ok(())
}

/// The largest error under each tolerance.
#[derive(Default)]
struct Worst(Vec<(f32, f32)>);

impl Worst {
    fn add(&mut self, error: f32, allowed: f32) {
        match self.0.iter_mut().find(|(a, _)| *a == allowed) {
            Some((_, most)) => *most = most.max(error),
            None => self.0.push((allowed, error)),
        }
    }
}

impl std::fmt::Display for Worst {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = self.0.iter().map(|(allowed, error)| format!("{error:.1e} of {allowed:.0e}"));
        f.write_str(&all.collect::<Vec<_>>().join(", "))
    }
}
