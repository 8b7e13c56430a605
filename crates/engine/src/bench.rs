//! The tests `ppN` and `tgN` of llama-bench: prompt processing and token generation on random tokens, without sampling.

use std::sync::Arc;
use std::time::Instant;

use unicorn_core::{BatchShape, Cost, Instrument, KernelTime, Select, Span};

use crate::engine::Evaluator;
use crate::placement::Phase;
use crate::request::{Event, FinishReason, Request};
use crate::sampling::uniform;
use crate::{Engine, EngineError, SamplingOptions};

/// What to time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Test {
    /// `ppN`: a prompt of this many tokens, logits after the last one.
    Prefill(usize),
    /// `tgN`: this many tokens one by one, with logits after each. The next token is random, not sampled.
    Decode(usize),
    /// `tgN xM`: this many tokens of each of so many sequences, by requests that the engine batches and samples as it does all others.
    Together {
        /// Tokens of a sequence.
        tokens: usize,
        /// Sequences, all at once.
        sequences: usize,
    },
}

impl Test {
    /// Tokens of one sequence.
    pub fn length(self) -> usize {
        match self {
            Test::Prefill(n) | Test::Decode(n) | Test::Together { tokens: n, .. } => n,
        }
    }

    /// Sequences at once.
    pub fn sequences(self) -> usize {
        match self {
            Test::Prefill(_) | Test::Decode(_) => 1,
            Test::Together { sequences, .. } => sequences,
        }
    }

    /// Tokens of a repetition, of all sequences together.
    pub fn total(self) -> usize {
        self.length().saturating_mul(self.sequences())
    }

    /// Tokens of one sequence; none is an error.
    fn tokens(self) -> Result<usize, EngineError> {
        if self.total() == 0 {
            return Err(EngineError::option("bench tokens", 0, "must be at least 1"));
        }
        Ok(self.length())
    }

    /// What runs before the first measurement, so that kernels are compiled and caches and clocks are warm.
    fn warm_up(self) -> Test {
        match self {
            Test::Prefill(n) => Test::Prefill(n),
            Test::Decode(n) => Test::Decode(n.min(WARM_UP_MAX)),
            Test::Together { tokens, sequences } => {
                Test::Together { tokens: tokens.min(WARM_UP_MAX), sequences }
            }
        }
    }
}

/// Times of one test.
#[derive(Clone, PartialEq, Debug)]
pub struct BenchResult {
    /// What was timed.
    pub test: Test,
    /// Tokens in the KV cache beforehand.
    pub depth: usize,
    /// Seconds per repetition.
    pub seconds: Vec<f64>,
    /// Tokens per second per repetition.
    pub tokens_per_second: Vec<f64>,
    /// Bytes and operations of one repetition.
    pub cost: Cost,
}

impl BenchResult {
    /// `pp512`, `tg128`, with `@ dN` at a depth.
    pub fn name(&self) -> String {
        let name = match self.test {
            Test::Prefill(n) => format!("pp{n}"),
            Test::Decode(n) => format!("tg{n}"),
            Test::Together { tokens, sequences } => format!("tg{tokens} x{sequences}"),
        };
        if self.depth == 0 { name } else { format!("{name} @ d{}", self.depth) }
    }

    /// Median, smallest and largest tokens per second.
    pub fn median_min_max(&self) -> (f64, f64, f64) {
        let mut sorted = self.tokens_per_second.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => (0.0, 0.0, 0.0),
            n => ((sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0, sorted[0], sorted[n - 1]),
        }
    }
}

/// Times prompts of `n` tokens at `depth`, after one warm-up run.
#[cfg(test)]
pub(crate) fn prefill(
    engine: &mut Engine,
    n: usize,
    depth: usize,
    repetitions: usize,
) -> Result<BenchResult, EngineError> {
    run(engine, Test::Prefill(n), depth, repetitions, Select::Logits, &mut |_| true)
}

/// Times `n` single tokens at `depth`, after a warm-up.
#[cfg(test)]
pub(crate) fn decode(
    engine: &mut Engine,
    n: usize,
    depth: usize,
    repetitions: usize,
) -> Result<BenchResult, EngineError> {
    run(engine, Test::Decode(n), depth, repetitions, Select::Logits, &mut |_| true)
}

/// Tokens of a decode test that its warm-up runs at most.
const WARM_UP_MAX: usize = 32;

/// Runs a test. The KV cache is emptied between repetitions and filled to `depth` outside the timed part; one run at that depth goes before
/// them. A decode step returns what `select` asks for, as a sampler would. `each` gets the seconds of every repetition and ends the
/// test by returning false.
///
/// Errors when `n` is 0, `n + depth` leaves the engine's context, or a device fails.
pub fn run(
    engine: &mut Engine,
    test: Test,
    depth: usize,
    repetitions: usize,
    select: Select,
    each: &mut dyn FnMut(f64) -> bool,
) -> Result<BenchResult, EngineError> {
    test.tokens()?;
    let cost = cost(engine, test, depth);
    let mut tokens = Tokens { drawn: 0, vocab: engine.spec().vocab };
    let mut seconds = Vec::with_capacity(repetitions);
    let mut note = |time| {
        seconds.push(time);
        seconds.len() < repetitions && each(time)
    };
    if matches!(test, Test::Together { .. }) {
        together(engine, test.warm_up(), depth, &mut tokens)?;
        while note(together(engine, test, depth, &mut tokens)?) {}
    } else {
        let mut evaluator = engine.evaluator();
        evaluator.prefill(&tokens.draw(depth), false)?;
        time(&mut evaluator, test.warm_up(), select, &mut tokens)?;
        loop {
            refill(&mut evaluator, depth, &mut tokens)?;
            if !note(time(&mut evaluator, test, select, &mut tokens)?) {
                break;
            }
        }
    }
    let tokens_per_second = seconds.iter().map(|s| test.total() as f64 / s.max(1e-12)).collect();
    Ok(BenchResult { test, depth, seconds, tokens_per_second, cost })
}

/// Seconds in which requests write the tokens of a test once all of them have begun to write: as many tokens as are written after that,
/// at this rate, make up the test.
fn together(engine: &mut Engine, test: Test, depth: usize, tokens: &mut Tokens) -> Result<f64, EngineError> {
    let (length, sequences) = (test.tokens()?, test.sequences());
    for scope in 0..sequences as u64 {
        let request = Request {
            // Prompts that begin alike by chance are read all the same.
            scope,
            prompt: tokens.draw(depth.max(1)),
            max_tokens: Some(length + 1),
            sampling: SamplingOptions { temperature: 0.0, ..SamplingOptions::default() },
            ..Request::default()
        };
        if let Err(error) = engine.add(request) {
            let reason = error.to_string();
            return Err(EngineError::option("bench sequences", sequences, reason));
        }
    }
    let mut begun = std::collections::HashSet::new();
    let (mut start, mut written) = (Instant::now(), 0usize);
    while !engine.is_idle() {
        for event in engine.step()? {
            match event {
                Event::Token { sequence, .. } if begun.len() < sequences => {
                    begun.insert(sequence);
                    start = Instant::now();
                }
                Event::PromptLogprobs { .. } => {}
                Event::Token { .. } => written += 1,
                Event::Embedding { .. } => {}
                Event::Finished { reason: FinishReason::Device(failure), .. } => {
                    return Err(EngineError::Run(failure.0));
                }
                Event::Finished { reason: FinishReason::Length, .. } => {}
                Event::Finished { reason, .. } => {
                    return Err(EngineError::option(
                        "bench sequences",
                        sequences,
                        format!("one ended early: {reason:?}"),
                    ));
                }
            }
        }
    }
    let each = start.elapsed().as_secs_f64() / written.max(1) as f64;
    Ok(each * test.total() as f64)
}

/// Kernel times of a device, by its name.
pub type DeviceTimes = (String, Vec<KernelTime>);

/// Runs a test once more with every kernel of `devices`, the engine's own, timed. Timing kernels costs speed, so it is no part of [`run`]. The times leave out the filling
/// to `depth` and a warm-up.
///
/// Errors as [`run`] does.
pub fn profile(
    engine: &mut Engine,
    devices: &[Arc<dyn Instrument>],
    test: Test,
    depth: usize,
    select: Select,
) -> Result<Vec<DeviceTimes>, EngineError> {
    test.tokens()?;
    let switch = |on| devices.iter().for_each(|d| d.set_profiling(on));
    let mut tokens = Tokens { drawn: 0, vocab: engine.spec().vocab };
    let mut timed = || {
        if matches!(test, Test::Together { .. }) {
            together(engine, test.warm_up(), depth, &mut tokens)?;
            switch(true);
            return together(engine, test, depth, &mut tokens);
        }
        let mut evaluator = engine.evaluator();
        evaluator.prefill(&tokens.draw(depth), false)?;
        switch(true);
        time(&mut evaluator, test.warm_up(), select, &mut tokens)?;
        refill(&mut evaluator, depth, &mut tokens)?;
        switch(true);
        time(&mut evaluator, test, select, &mut tokens)
    };
    let ran = timed();
    let times = devices.iter().map(|d| (d.profile().name.clone(), d.kernel_times())).collect();
    switch(false);
    ran.map(|_| times)
}

/// Random token ids, the same in every run of the program.
struct Tokens {
    drawn: u64,
    vocab: usize,
}

impl Tokens {
    fn draw(&mut self, n: usize) -> Vec<u32> {
        let first = self.drawn;
        self.drawn += n as u64;
        (first..self.drawn).map(|i| (uniform(0x62656e6368, i) * self.vocab as f64) as u32).collect()
    }
}

/// Goes back to `depth`, and fills the state up to there again where a sliding window has moved on.
fn refill(evaluator: &mut Evaluator<'_>, depth: usize, tokens: &mut Tokens) -> Result<(), EngineError> {
    let reached = evaluator.rewind(depth);
    evaluator.prefill(&tokens.draw(depth - reached), false).map(|_| ())
}

/// Seconds of one repetition.
fn time(
    evaluator: &mut Evaluator<'_>,
    test: Test,
    select: Select,
    tokens: &mut Tokens,
) -> Result<f64, EngineError> {
    let drawn = tokens.draw(test.tokens()?);
    let start = Instant::now();
    match test {
        Test::Prefill(_) => {
            evaluator.prefill(&drawn, true)?;
        }
        Test::Decode(_) | Test::Together { .. } => {
            for token in &drawn {
                // What comes back is on the host now, where a sampler would read it.
                std::hint::black_box(evaluator.feed(&[*token], &[0], select)?);
            }
        }
    }
    Ok(start.elapsed().as_secs_f64())
}

/// Bytes and operations of one repetition, batch by batch as they are run.
fn cost(engine: &Engine, test: Test, depth: usize) -> Cost {
    let (spec, options) = (engine.spec(), engine.options());
    let mut total = Cost::default();
    if let Test::Together { tokens, sequences } = test {
        // Each group of sequences that runs apart reads all weights.
        let share = sequences.div_ceil(engine.lanes(Phase::Decode)).max(1);
        for past in depth.max(1)..depth.max(1) + tokens {
            for first in (0..sequences).step_by(share) {
                let group = share.min(sequences - first);
                let shape = BatchShape { spans: vec![Span::new(past, 1); group], outputs: group };
                total.add(&spec.cost(&shape, options.kv_type));
            }
        }
        return total;
    }
    let (n, chunk) = match test {
        Test::Prefill(n) => (n, options.prefill_chunk),
        _ => (test.length(), 1),
    };
    for start in (0..n).step_by(chunk) {
        let rows = chunk.min(n - start);
        let read = matches!(test, Test::Decode(_)) || start + rows == n;
        total.add(&spec.cost(&BatchShape::one(depth + start, rows, usize::from(read)), options.kv_type));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::EngineOptions;
    use crate::testing::{FakeDevice, engine_of, engine_on};

    #[test]
    fn tests_run_and_are_named() {
        let mut engine =
            engine_of(EngineOptions { context: 96, prefill_chunk: 16, ..EngineOptions::default() });
        let pp = prefill(&mut engine, 40, 0, 3).unwrap();
        assert_eq!((pp.name().as_str(), pp.seconds.len(), pp.tokens_per_second.len()), ("pp40", 3, 3));
        let tg = decode(&mut engine, 8, 50, 2).unwrap();
        assert_eq!(tg.name(), "tg8 @ d50");
        assert!(tg.tokens_per_second.iter().all(|t| *t > 0.0));
        let (free, all) = engine.state_pages();
        assert_eq!(free, all);
    }

    #[test]
    fn sequences_write_together() {
        let options =
            EngineOptions { context: 96, sequences_max: 3, prefill_chunk: 16, ..EngineOptions::default() };
        let mut engine = engine_of(options);
        let test = Test::Together { tokens: 10, sequences: 3 };
        let result = run(&mut engine, test, 20, 2, Select::Top(1), &mut |_| true).unwrap();
        assert_eq!((result.name().as_str(), result.seconds.len()), ("tg10 x3 @ d20", 2));
        assert!(
            result.tokens_per_second.iter().zip(&result.seconds).all(|(t, s)| (t * s - 30.0).abs() < 1e-6)
        );
        let step = |past| {
            engine.spec().cost(
                &BatchShape { spans: vec![Span::new(past, 1); 3], outputs: 3 },
                engine.options().kv_type,
            )
        };
        assert_eq!(result.cost.weight_bytes, 10 * step(20).weight_bytes);
        let few =
            run(&mut engine, Test::Together { tokens: 80, sequences: 3 }, 20, 1, Select::Top(1), &mut |_| {
                true
            });
        assert!(matches!(few, Err(EngineError::Option { .. })), "{few:?}");
    }

    #[test]
    fn each_can_end_a_test() {
        let mut engine = engine_of(EngineOptions::default());
        let mut calls = 0;
        let mut stop = |_| {
            calls += 1;
            calls < 2
        };
        assert_eq!(
            run(&mut engine, Test::Decode(3), 0, 9, Select::Top(1), &mut stop).unwrap().seconds.len(),
            2
        );
    }

    #[test]
    fn costs_follow_the_batches() {
        let engine = engine_of(EngineOptions { prefill_chunk: 16, ..EngineOptions::default() });
        let spec = engine.spec().clone();
        let each = |start, rows, outputs| {
            spec.cost(&BatchShape::one(start, rows, outputs), engine.options().kv_type)
        };
        let mut expected = each(7, 16, 0);
        expected.add(&each(23, 4, 1));
        assert_eq!(cost(&engine, Test::Prefill(20), 7), expected);
        let mut expected = each(7, 1, 1);
        expected.add(&each(8, 1, 1));
        assert_eq!(cost(&engine, Test::Decode(2), 7), expected);
    }

    #[test]
    fn a_profile_leaves_the_engine_as_it_was() {
        let device = FakeDevice::plain();
        let mut engine = engine_on(device.clone(), EngineOptions { context: 96, ..EngineOptions::default() });
        let devices: Vec<Arc<dyn Instrument>> = vec![device];
        let times = profile(&mut engine, &devices, Test::Decode(3), 20, Select::Logits).unwrap();
        assert_eq!(times.len(), engine.devices().len());
        assert_eq!(times[0].0, engine.devices()[0].profile().name);
        let (free, all) = engine.state_pages();
        assert_eq!(free, all);
        let empty = profile(&mut engine, &devices, Test::Decode(0), 0, Select::Logits);
        assert!(matches!(empty, Err(EngineError::Option { .. })));
    }

    #[test]
    fn bad_sizes_are_errors() {
        let mut engine = engine_of(EngineOptions { context: 64, ..EngineOptions::default() });
        assert!(matches!(decode(&mut engine, 0, 0, 1), Err(EngineError::Option { .. })));
        assert!(matches!(prefill(&mut engine, 60, 10, 1), Err(EngineError::Context { .. })));
    }

    #[test]
    fn median_of_even_and_odd() {
        let of = |tokens_per_second: &[f64]| {
            let tokens_per_second = tokens_per_second.to_vec();
            let (test, cost) = (Test::Decode(1), Cost::default());
            BenchResult { test, depth: 0, seconds: vec![], tokens_per_second, cost }.median_min_max()
        };
        assert_eq!(of(&[3.0, 1.0, 2.0]), (2.0, 1.0, 3.0));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), (2.5, 1.0, 4.0));
        assert_eq!(of(&[]), (0.0, 0.0, 0.0));
    }
}
