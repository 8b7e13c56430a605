//! `unicorn bench`: prompt processing and token generation of a model or of a shape.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::anyhow;
use unicorn_cases::synthetic::SyntheticSource;
use unicorn_core::{Instrument, ModelSpec, Roofline, Select, WeightSource};
use unicorn_engine::Engine;
use unicorn_engine::bench::{BenchResult, Test, profile as bench_profile, run as bench};

use super::profile::Profile;
use super::report::{Predicted, Row, render};
use super::roof;
use crate::args::{BenchModelArgs, OutputFormat, SelectArg};
use crate::config::Config;
use crate::exit::{Exit, usage};
use crate::interrupt::Catch;
use crate::output::{Out, say, say_styled};
use crate::planner::figures::Phase;
use crate::planner::{Grader, Load, grades};
use crate::session::{ContextChoice, EngineChoice, engine_on, explain, find_model, open_devices};
use crate::trace::Trace;
use crate::units;

/// Tests, each at a depth: tokens that are in the context before it.
type Tests = Vec<(Test, usize)>;

/// Runs all tests and prints one row for each.
pub fn run(args: &BenchModelArgs, config: &Config) -> anyhow::Result<Exit> {
    let tests = tests(&args.prompt, &args.generate, &args.sequences, &args.depth)?;
    let start = Instant::now();
    let Benched { mut engine, grader, devices, roofs, load_seconds } = open(args, &tests, config)?;
    if config.explains() {
        explain(&engine, start);
    }
    let (Some(device), Some(roof)) = (devices.first(), roofs.first().copied()) else {
        return Err(anyhow!("the engine has no device"));
    };
    let talks = config.talks() && args.output != OutputFormat::Json;
    if talks {
        devices.iter().zip(&roofs).for_each(|(device, roof)| say!("{}", limits(&**device, roof)));
        say!("{}", loaded(engine.spec(), &**device, load_seconds));
    }
    let select = match args.select {
        SelectArg::Top => Select::Top(1),
        SelectArg::Top40 => Select::Top(40),
        SelectArg::Logits => Select::Logits,
    };
    // Ctrl-C ends the program at once while there is nothing to show; later, after the repetition at hand, or at once when pressed again.
    let trace = Trace::start(&mut engine, args.place.trace.as_deref(), config)?;
    let mut catch: Option<Catch> = None;
    let pressed = |catch: &Option<Catch>| catch.as_ref().is_some_and(Catch::pressed);
    let mut rows = Vec::new();
    for (test, depth) in tests {
        let mut each = |_| !pressed(&catch);
        let result = bench(&mut engine, test, depth, args.repetitions, select, &mut each)?;
        if pressed(&catch) {
            break;
        }
        catch.get_or_insert_with(Catch::new);
        let mut row = row(&engine, &result, &devices, &roof, load_seconds);
        if let Some(grader) = &grader {
            row.predicted = grade(grader, &engine, &result, config)?;
        }
        if config.talks() && args.output == OutputFormat::Table {
            let (median, ..) = result.median_min_max();
            say_styled(&config.style.dim(&format!("{}: {:.2} tok/s", result.name(), median)));
        }
        if args.profile {
            let times = bench_profile(&mut engine, &devices, test, depth, select)?.into_iter();
            row.profile = times.map(|(device, times)| Profile::of(device, &times, &roof)).collect();
        }
        rows.push(row);
    }
    trace.finish(&mut engine)?;
    if args.profile && talks {
        devices.iter().for_each(|device| say!("memory after the tests: {}", memory(&**device)));
    }
    let mut out = Out::stdout();
    out.write_all(render(&rows, args.output)?.as_bytes())?;
    out.flush()?;
    Ok(if pressed(&catch) { Exit::Interrupted } else { Exit::Done })
}

/// All tests, depth by depth, prompts first. Zero tokens are no test.
fn tests(
    prompts: &[usize],
    generated: &[usize],
    sequences: &[usize],
    depths: &[usize],
) -> anyhow::Result<Tests> {
    let prompts = prompts.iter().filter(|n| **n > 0).map(|n| Test::Prefill(*n));
    let of = |tokens: usize| {
        sequences.iter().map(move |sequences| match *sequences {
            1 => Test::Decode(tokens),
            sequences => Test::Together { tokens, sequences },
        })
    };
    let generated = generated.iter().filter(|n| **n > 0).flat_map(|n| of(*n));
    let tests: Vec<Test> = prompts.chain(generated).collect();
    if tests.is_empty() {
        return Err(usage("nothing to measure: -p and -n are both 0"));
    }
    Ok(depths.iter().flat_map(|depth| tests.iter().map(move |test| (*test, *depth))).collect())
}

/// Context that the longest test needs.
fn longest(tests: &Tests) -> usize {
    // Requests begin with a token at least, and the first one that they write is not counted.
    let tokens = |test: &Test| test.length().saturating_add(if test.sequences() > 1 { 2 } else { 0 });
    tests.iter().map(|(test, depth)| tokens(test).saturating_add(*depth)).max().unwrap_or(1)
}

/// The load that a placement is to be fast at: the longest of all prompts and the longest of all answers.
fn load(tests: &Tests) -> Load {
    let prompts = tests.iter().filter(|(test, _)| matches!(test, Test::Prefill(_)));
    let answers = tests.iter().filter(|(test, _)| !matches!(test, Test::Prefill(_)));
    Load {
        past: tests.iter().map(|(_, depth)| *depth).min().unwrap_or(0),
        prompt: prompts.map(|(test, _)| test.length()).max().unwrap_or(0),
        decode: answers.map(|(test, _)| test.length()).max().unwrap_or(0),
        sequences: tests.iter().map(|(test, _)| test.sequences()).max().unwrap_or(1),
    }
}

/// What was predicted for a test, which is told with the error and kept with it.
fn grade(
    grader: &Grader,
    engine: &Engine,
    result: &BenchResult,
    config: &Config,
) -> anyhow::Result<Option<Predicted>> {
    let (length, sequences) = (result.test.length(), result.test.sequences());
    let (phase, prompt, decode) = match result.test {
        Test::Prefill(_) => (Phase::Prefill, length, 0),
        Test::Decode(_) | Test::Together { .. } => (Phase::Decode, 0, length),
    };
    let load = Load { past: result.depth, prompt, decode, sequences };
    let Some(prediction) = grader.predict(engine.spec(), engine.options(), load, config)? else {
        return Ok(None);
    };
    let (measured, ..) = result.median_min_max();
    if let Some(line) = grader.grade(engine.spec(), phase, &prediction, measured, config)
        && config.explains()
    {
        say!("{line}");
    }
    let of = match phase {
        Phase::Prefill => prediction.prefill,
        Phase::Decode => prediction.decode,
    };
    Ok(of.map(|predicted| Predicted {
        tokens_per_second: predicted.tokens_per_second(),
        error: predicted.tokens_per_second() / measured.max(1e-12) - 1.0,
        correction: grades::corrected(&predicted.correction),
    }))
}

/// What is timed.
struct Benched {
    engine: Engine,
    /// What knows the devices' figures, where they were measured for the planner.
    grader: Option<Grader>,
    /// In the order of the placement; at least one.
    devices: Vec<Arc<dyn Instrument>>,
    roofs: Vec<Roofline>,
    /// Seconds that loading the weights took once the devices were open.
    load_seconds: f64,
}

fn open(args: &BenchModelArgs, tests: &Tests, config: &Config) -> anyhow::Result<Benched> {
    let choice = EngineChoice {
        canary: None,
        kv_tokens: None,
        queue: 0,
        kept: None,
        rows: 0,
        disk_bytes: None,
        device: &args.device,
        place: &args.place.of(&args.device),
        kv: args.kv.kv,
        context: ContextChoice::Exactly(longest(tests)),
        load: load(tests),
        memory: args.memory.memory_max.as_ref(),
        scores: false,
        drafts: false,
    };
    let (spec, source): (ModelSpec, Arc<dyn WeightSource>) = match &args.subject.shape {
        None => {
            let fetched = find_model(config.model(&args.subject.model), config)?;
            let model = crate::session::open_model(&fetched, config)?;
            crate::session::refuse_encoder(&model.spec)?;
            (model.spec, model.source)
        }
        Some(shape) => {
            let spec = shape.spec(args.subject.ty).map_err(usage)?;
            (spec, Arc::new(SyntheticSource::new(0)))
        }
    };
    let placed = open_devices(&spec, &choice, config)?;
    // Before the weights take the memory that measuring wants.
    let roofs = placed.opened.iter().map(|o| o.limits(config)).collect::<anyhow::Result<Vec<Roofline>>>()?;
    let devices = placed.opened.iter().map(|o| o.device.clone()).collect();
    let grader = Grader::new(&placed, &spec, config)?;
    let start = Instant::now();
    let engine = engine_on(placed, &spec, &source, &choice, None, config, &mut |_| {})?;
    Ok(Benched { engine, grader, devices, roofs, load_seconds: start.elapsed().as_secs_f64() })
}

fn limits(device: &dyn Instrument, roof: &Roofline) -> String {
    let profile = device.profile();
    let copy = roof.copy_bytes_per_second.map(|c| format!(", copies {}", units::bandwidth(c)));
    let matrix = roof.matrix_ops_per_second.map(|m| format!(", matrix {}", units::arithmetic(m, "FLOP")));
    format!(
        "{}: {}, {} workers; measured: reads {}{}, integer {}, float {}{}",
        profile.name,
        profile.description,
        profile.workers,
        units::bandwidth(roof.read_bytes_per_second),
        copy.unwrap_or_default(),
        units::arithmetic(roof.integer_ops_per_second, "OP"),
        units::arithmetic(roof.float_ops_per_second, "FLOP"),
        matrix.unwrap_or_default()
    )
}

/// `loaded 4.9 GB in 1.2 s (4.1 GB/s); memory: ...`.
fn loaded(spec: &ModelSpec, device: &dyn Instrument, seconds: f64) -> String {
    let bytes = spec.weight_bytes();
    let rate = units::bandwidth(bytes as f64 / seconds.max(1e-9));
    let time = units::seconds(seconds);
    format!("loaded {} in {time} ({rate}); memory: {}", units::bytes(bytes), memory(device))
}

fn memory(device: &dyn Instrument) -> String {
    let m = device.memory();
    let [weights, kv, scratch, copied] = [m.weights, m.kv, m.scratch, m.copied].map(units::bytes);
    format!("weights {weights}, KV cache {kv}, scratch {scratch}; copied {copied}")
}

fn row(
    engine: &Engine,
    result: &BenchResult,
    devices: &[Arc<dyn Instrument>],
    roof: &Roofline,
    load_seconds: f64,
) -> Row {
    let spec = engine.spec();
    let per_second = result.median_min_max().0 / result.test.total() as f64;
    Row {
        test: result.name(),
        tokens_per_second: result.median_min_max().into(),
        device: devices.iter().map(|d| d.profile().name.as_str()).collect::<Vec<_>>().join(" + "),
        model: spec.name.clone(),
        // What several devices could do together depends on how they overlap.
        share_of_roof: match devices {
            [device] => Some(roof::share(result, roof, &**device)),
            _ => None,
        },
        bytes_per_second: result.cost.bytes() as f64 * per_second,
        flops_per_second: result.cost.flops() as f64 * per_second,
        model_bytes: spec.weight_bytes(),
        parameters: spec.parameters(),
        workers: devices.iter().map(|d| d.profile().workers).sum(),
        repetitions: result.seconds.len(),
        load_seconds,
        predicted: None,
        profile: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::of_error;

    #[test]
    fn every_test_is_run_at_every_depth() {
        let tests = tests(&[512, 0], &[128], &[1], &[0, 4096]).unwrap();
        let (pp, tg) = (Test::Prefill(512), Test::Decode(128));
        assert_eq!(tests, [(pp, 0), (tg, 0), (pp, 4096), (tg, 4096)]);
        assert_eq!(longest(&tests), 4608);
        assert_eq!(load(&tests), Load { past: 0, prompt: 512, decode: 128, sequences: 1 });
        let together = super::tests(&[0], &[128], &[1, 8], &[0]).unwrap();
        assert_eq!(together, [(tg, 0), (Test::Together { tokens: 128, sequences: 8 }, 0)]);
        assert_eq!(longest(&together), 130);
        assert_eq!(load(&together).sequences, 8);
        assert_eq!(longest(&vec![(pp, usize::MAX)]), usize::MAX);
    }

    #[test]
    fn nothing_to_measure_is_a_usage_error() {
        assert_eq!(of_error(&tests(&[0], &[0], &[1], &[0]).unwrap_err()), Exit::Usage);
    }
}
