//! `unicorn bench`: prompt processing and token generation of a model or of a shape.

use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, anyhow};
use unicorn_cases::{shapes, synthetic::SyntheticSource};
use unicorn_core::{Device, Roofline};
use unicorn_engine::Engine;
use unicorn_engine::bench::{BenchResult, Test, run as bench};

use super::report::{Row, render};
use super::{profile, roof};
use crate::args::{BenchModelArgs, OutputFormat};
use crate::config::Config;
use crate::exit::{Exit, usage};
use crate::interrupt::Catch;
use crate::output::{Out, say};
use crate::session::{ContextChoice, EngineChoice, explain, find_model, open_engine};
use crate::units;

/// One test at one depth.
type Plan = Vec<(Test, usize)>;

/// Runs all tests and prints one row for each.
pub fn run(args: &BenchModelArgs, config: &Config) -> anyhow::Result<Exit> {
    let plan = plan(&args.prompt, &args.generate, &args.depth)?;
    let start = Instant::now();
    let mut engine = open(args, longest(&plan), config)?;
    if config.explains() {
        explain(&engine, start);
    }
    let device = first_device(&engine)?;
    let roof = device.measure()?;
    if config.talks() && args.output != OutputFormat::Json {
        say!("{}", limits(&*device, &roof));
    }
    let catch = Catch::new();
    let mut rows = Vec::new();
    for (test, depth) in plan {
        device.set_profiling(args.profile);
        let result = bench(&mut engine, test, depth, args.repetitions, &mut |_| !catch.pressed())?;
        if args.profile {
            say!("{}\n{}", result.name(), profile::table(&device.kernel_times(), &roof).text());
        }
        if catch.pressed() {
            break;
        }
        rows.push(row(&engine, &result, &*device, &roof));
        if config.talks() && args.output == OutputFormat::Table && !args.profile {
            let (median, ..) = result.median_min_max();
            say!("{}", config.style.dim(&format!("{}: {:.2} tok/s", result.name(), median)));
        }
    }
    let mut out = Out::stdout();
    out.write_all(render(&rows, args.output)?.as_bytes())?;
    out.flush()?;
    Ok(if catch.pressed() { Exit::Interrupted } else { Exit::Done })
}

/// All tests, depth by depth, prompts first. Zero tokens are no test.
fn plan(prompts: &[usize], generated: &[usize], depths: &[usize]) -> anyhow::Result<Plan> {
    let prompts = prompts.iter().filter(|n| **n > 0).map(|n| Test::Prefill(*n));
    let generated = generated.iter().filter(|n| **n > 0).map(|n| Test::Decode(*n));
    let tests: Vec<Test> = prompts.chain(generated).collect();
    if tests.is_empty() {
        return Err(usage("nothing to measure: -p and -n are both 0"));
    }
    Ok(depths.iter().flat_map(|depth| tests.iter().map(move |test| (*test, *depth))).collect())
}

/// Context that the longest test needs.
fn longest(plan: &Plan) -> usize {
    let tokens = |test: &Test| match test {
        Test::Prefill(n) | Test::Decode(n) => *n,
    };
    plan.iter().map(|(test, depth)| tokens(test).saturating_add(*depth)).max().unwrap_or(1)
}

fn open(args: &BenchModelArgs, context: usize, config: &Config) -> anyhow::Result<Engine> {
    let context = ContextChoice::Exactly(context);
    let choice = EngineChoice { device: &args.device, kv: args.kv.kv, context };
    let Some(shape) = &args.shape else {
        let path = find_model(config.model(&args.model), config)?;
        let model =
            unicorn_model::open(&path).with_context(|| format!("cannot open model {}", path.display()))?;
        return open_engine(&model.spec, &*model.source, &choice);
    };
    let mut spec = shapes::model(&shape.size, shape.ty).with_context(|| format!("no shape {shape}"))?;
    spec.name = shape.to_string();
    open_engine(&spec, &SyntheticSource::new(0), &choice)
}

fn first_device(engine: &Engine) -> anyhow::Result<Arc<dyn Device>> {
    engine.devices().first().cloned().ok_or_else(|| anyhow!("the engine has no device"))
}

fn limits(device: &dyn Device, roof: &Roofline) -> String {
    let profile = device.profile();
    format!(
        "{}: {}, {} workers; measured: reads {}, integer {}, float {}",
        profile.name,
        profile.description,
        profile.workers,
        units::bandwidth(roof.read_bytes_per_second),
        units::arithmetic(roof.integer_ops_per_second, "OP"),
        units::arithmetic(roof.float_ops_per_second, "FLOP")
    )
}

fn row(engine: &Engine, result: &BenchResult, device: &dyn Device, roof: &Roofline) -> Row {
    let spec = engine.spec();
    Row {
        test: result.name(),
        tokens_per_second: result.median_min_max().into(),
        device: device.profile().name.clone(),
        model: spec.name.clone(),
        share_of_roof: roof::share(result, roof, device),
        model_bytes: spec.weight_bytes(),
        parameters: spec.parameters(),
        workers: device.profile().workers,
        repetitions: result.seconds.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::of_error;

    #[test]
    fn plans_cross_tests_with_depths() {
        let plan = plan(&[512, 0], &[128], &[0, 4096]).unwrap();
        let (pp, tg) = (Test::Prefill(512), Test::Decode(128));
        assert_eq!(plan, [(pp, 0), (tg, 0), (pp, 4096), (tg, 4096)]);
        assert_eq!(longest(&plan), 4608);
    }

    #[test]
    fn nothing_to_measure_is_a_usage_error() {
        assert_eq!(of_error(&plan(&[0], &[0], &[0]).unwrap_err()), Exit::Usage);
    }
}
