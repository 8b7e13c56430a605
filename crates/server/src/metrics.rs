//! Counters in Prometheus' text format, under vLLM's names where it has them.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use unicorn_engine::{Counters, FinishReason, Timings};

use crate::model::Care;

/// Why a request ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Finished {
    finished_reason: &'static str,
}

/// What was asked and how it was answered.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

/// How a model was opened after its devices were lost.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Recovered {
    how: &'static str,
}

/// Bounds of histograms in seconds, as vLLM has them.
const FIRST_TOKEN: [f64; 16] =
    [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 60.0];
const NEXT_TOKEN: [f64; 14] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5];
const WHOLE: [f64; 12] = [0.1, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 600.0];

/// A figure that engines count: name, help, and which counter.
type Told = (&'static str, &'static str, fn(&Counters) -> u64);

/// What is told of pages on disk.
const KV_DISK: [Told; 5] = [
    ("unicorn_kv_saved_pages_total", "Pages that went to the disk", |c| c.saved_pages),
    ("unicorn_kv_unsaved_pages_total", "Pages that left memory before they could be saved", |c| {
        c.unsaved_pages
    }),
    ("unicorn_kv_restored_pages_total", "Pages that came from the disk", |c| c.restored_pages),
    ("unicorn_kv_restored_tokens_total", "Prompt tokens that came from the disk", |c| c.restored_tokens),
    ("unicorn_kv_failed_reads_total", "Pages on disk that could not be used", |c| c.failed_reads),
];

/// All counters of a server.
pub(crate) struct Metrics {
    registry: Registry,
    running: Gauge<i64, AtomicI64>,
    waiting: Gauge<i64, AtomicI64>,
    cache_use: Gauge<f64, AtomicU64>,
    cache_kept: Gauge<f64, AtomicU64>,
    preemptions: Gauge<i64, AtomicI64>,
    prompt_tokens: Counter,
    generated_tokens: Counter,
    prefix_queries: Counter,
    prefix_hits: Counter,
    drafted_tokens: Counter,
    accepted_tokens: Counter,
    finished: Family<Finished, Counter>,
    first_token: Histogram,
    next_token: Histogram,
    queue: Histogram,
    whole: Histogram,
    answered: Family<Answered, Counter>,
    slow_clients: Counter,
    engines_stopped: Counter,
    recoveries: Family<Recovered, Counter>,
    recovery_seconds: Counter<f64, AtomicU64>,
    batches_cut: Gauge<i64, AtomicI64>,
    /// What the pages on disk did, in the order of [`KV_DISK`].
    kv_disk: [Gauge<i64, AtomicI64>; 5],
    canary_samples: Gauge<i64, AtomicI64>,
    canary_wrong: Gauge<i64, AtomicI64>,
    canary_quarantined: Gauge<i64, AtomicI64>,
    canary_doubted: Gauge<i64, AtomicI64>,
    canary_seconds: Gauge<f64, AtomicU64>,
    loads: Counter,
    load_failures: Counter,
    unloads: Counter,
    embeddings: Counter,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        let histogram = |bounds: &[f64]| Histogram::new(bounds.iter().copied());
        let mut metrics = Metrics {
            registry: Registry::default(),
            running: Gauge::default(),
            waiting: Gauge::default(),
            cache_use: Gauge::default(),
            cache_kept: Gauge::default(),
            preemptions: Gauge::default(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            prefix_queries: Counter::default(),
            prefix_hits: Counter::default(),
            drafted_tokens: Counter::default(),
            accepted_tokens: Counter::default(),
            finished: Family::default(),
            first_token: histogram(&FIRST_TOKEN),
            next_token: histogram(&NEXT_TOKEN),
            queue: histogram(&WHOLE),
            whole: histogram(&WHOLE),
            answered: Family::default(),
            slow_clients: Counter::default(),
            engines_stopped: Counter::default(),
            recoveries: Family::default(),
            recovery_seconds: Counter::default(),
            batches_cut: Gauge::default(),
            kv_disk: Default::default(),
            canary_samples: Gauge::default(),
            canary_wrong: Gauge::default(),
            canary_quarantined: Gauge::default(),
            canary_doubted: Gauge::default(),
            canary_seconds: Gauge::default(),
            loads: Counter::default(),
            load_failures: Counter::default(),
            unloads: Counter::default(),
            embeddings: Counter::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let mut registry = Registry::default();
        let vllm = &mut registry;
        vllm.register("vllm:num_requests_running", "Requests that run", self.running.clone());
        vllm.register("vllm:num_requests_waiting", "Requests that wait", self.waiting.clone());
        vllm.register(
            "unicorn_kv_cache_kept_ratio",
            "Share of the KV cache that is kept for prompts that begin alike, free for others",
            self.cache_kept.clone(),
        );
        vllm.register("vllm:kv_cache_usage_perc", "Share of the KV cache in use", self.cache_use.clone());
        // A counter that is kept elsewhere: its name has to carry what the library would add.
        vllm.register(
            "vllm:num_preemptions_total",
            "Requests sent back to the queue",
            self.preemptions.clone(),
        );
        vllm.register("vllm:prompt_tokens", "Tokens of prompts", self.prompt_tokens.clone());
        vllm.register("vllm:generation_tokens", "Tokens generated", self.generated_tokens.clone());
        vllm.register("vllm:prefix_cache_queries", "Prompt tokens looked up", self.prefix_queries.clone());
        vllm.register(
            "vllm:prefix_cache_hits",
            "Prompt tokens found in the prefix cache",
            self.prefix_hits.clone(),
        );
        vllm.register("vllm:spec_decode_num_draft_tokens", "Tokens guessed", self.drafted_tokens.clone());
        vllm.register(
            "vllm:spec_decode_num_accepted_tokens",
            "Guessed tokens that were right",
            self.accepted_tokens.clone(),
        );
        vllm.register("vllm:request_success", "Requests that ended, by reason", self.finished.clone());
        vllm.register("vllm:time_to_first_token_seconds", "Until the first token", self.first_token.clone());
        vllm.register("vllm:time_per_output_token_seconds", "Between two tokens", self.next_token.clone());
        vllm.register("vllm:request_queue_time_seconds", "In the queue", self.queue.clone());
        vllm.register("vllm:e2e_request_latency_seconds", "From asking to the end", self.whole.clone());
        let own = &mut registry;
        own.register("unicorn_http_requests", "Requests by route and status", self.answered.clone());
        own.register(
            "unicorn_slow_clients",
            "Streams given up because nobody took them",
            self.slow_clients.clone(),
        );
        own.register("unicorn_engines_stopped", "Engines that lost a device", self.engines_stopped.clone());
        own.register("unicorn_recoveries", "Engines that went on after that", self.recoveries.clone());
        own.register(
            "unicorn_recovery_seconds",
            "Seconds that requests waited for that",
            self.recovery_seconds.clone(),
        );
        own.register(
            "unicorn_batches_cut_total",
            "Batches for which a device found no memory",
            self.batches_cut.clone(),
        );
        for ((name, help, _), gauge) in KV_DISK.iter().zip(&self.kv_disk) {
            own.register(*name, *help, gauge.clone());
        }
        self.register_canary(&mut registry);
        let own = &mut registry;
        own.register("unicorn_model_loads", "Models loaded", self.loads.clone());
        own.register(
            "unicorn_model_load_failures",
            "Models that could not be loaded",
            self.load_failures.clone(),
        );
        own.register("unicorn_model_unloads", "Models unloaded", self.unloads.clone());
        own.register("unicorn_embeddings", "Texts that became vectors", self.embeddings.clone());
        self.registry = registry;
    }

    fn register_canary(&self, own: &mut Registry) {
        own.register(
            "unicorn_canary_samples_total",
            "Rows of batches that were computed again, to find kernels that compute wrong",
            self.canary_samples.clone(),
        );
        own.register("unicorn_canary_wrong_total", "How many of these were wrong", self.canary_wrong.clone());
        own.register(
            "unicorn_canary_quarantined_total",
            "Kernels that were found wrong and are not used any more",
            self.canary_quarantined.clone(),
        );
        own.register(
            "unicorn_canary_requests_ended_total",
            "Requests that ended because their answer may be wrong",
            self.canary_doubted.clone(),
        );
        own.register(
            "unicorn_canary_seconds_total",
            "Seconds that taking out rows and computing them again took",
            self.canary_seconds.clone(),
        );
    }

    /// A first token came, this long after the request.
    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// Another token came, this long after the one before.
    pub fn next_token(&self, after: Duration) {
        self.next_token.observe(after.as_secs_f64());
    }

    /// A request ended in the engine.
    pub fn finished(&self, reason: &FinishReason, timings: &Timings, whole: Duration, slow_client: bool) {
        let finished_reason = match reason {
            // As vLLM counts what is pooled.
            FinishReason::Stop | FinishReason::Embedded => "stop",
            FinishReason::Length | FinishReason::Context => "length",
            FinishReason::Cancelled => "abort",
            _ => "error",
        };
        self.finished.get_or_create(&Finished { finished_reason }).inc();
        if *reason == FinishReason::Embedded {
            self.embeddings.inc();
        }
        self.prompt_tokens.inc_by(timings.prompt_tokens as u64);
        self.generated_tokens.inc_by(timings.generated_tokens as u64);
        self.prefix_queries.inc_by(timings.prompt_tokens as u64);
        self.prefix_hits.inc_by(timings.reused_tokens as u64);
        self.drafted_tokens.inc_by(timings.drafted_tokens as u64);
        self.accepted_tokens.inc_by(timings.accepted_tokens as u64);
        self.queue.observe(timings.queue_seconds);
        self.whole.observe(whole.as_secs_f64());
        if slow_client {
            self.slow_clients.inc();
        }
    }

    /// A request ended with its engine, which tells nothing of it any more.
    pub fn broken(&self, whole: Duration, slow_client: bool) {
        self.finished.get_or_create(&Finished { finished_reason: "error" }).inc();
        self.whole.observe(whole.as_secs_f64());
        if slow_client {
            self.slow_clients.inc();
        }
    }

    /// A request was answered. `route` is the pattern, not what was asked, so that there are few.
    pub fn answered(&self, route: &str, status: u16) {
        self.answered.get_or_create(&Answered { route: route.to_owned(), status }).inc();
    }

    /// An engine lost a device.
    pub fn engine_stopped(&self) {
        self.engines_stopped.inc();
    }

    /// A model was opened again after a device was lost, and requests went on after that long.
    pub fn recovered(&self, care: &Care, after: Duration) {
        let how = match care {
            Care::Usual => "usual",
            Care::Small => "small",
            Care::Without(_) => "elsewhere",
        };
        self.recoveries.get_or_create(&Recovered { how }).inc();
        self.recovery_seconds.inc_by(after.as_secs_f64());
    }

    /// A model was loaded.
    pub fn loaded(&self) {
        self.loads.inc();
    }

    /// A model could not be loaded.
    pub fn load_failed(&self) {
        self.load_failures.inc();
    }

    /// A model was unloaded.
    pub fn unloaded(&self) {
        self.unloads.inc();
    }

    /// Everything as text. What the engines count at this moment is handed in.
    pub fn text(&self, engines: &[Counters]) -> String {
        let sum = |of: fn(&Counters) -> usize| engines.iter().map(of).sum::<usize>();
        self.running.set(sum(|c| c.running) as i64);
        self.waiting.set(sum(|c| c.waiting) as i64);
        self.preemptions.set(engines.iter().map(|c| c.preemptions as i64).sum());
        self.batches_cut.set(engines.iter().map(|c| c.batches_cut as i64).sum());
        for ((_, _, of), gauge) in KV_DISK.iter().zip(&self.kv_disk) {
            gauge.set(engines.iter().map(|c| of(c) as i64).sum());
        }
        self.canary_samples.set(engines.iter().map(|c| c.canary.samples as i64).sum());
        self.canary_wrong.set(engines.iter().map(|c| c.canary.wrong as i64).sum());
        self.canary_quarantined.set(engines.iter().map(|c| c.canary.quarantined as i64).sum());
        self.canary_doubted.set(engines.iter().map(|c| c.doubted as i64).sum());
        self.canary_seconds.set(engines.iter().map(|c| c.canary.seconds).sum());
        let (pages, unused) = (sum(|c| c.pages), sum(|c| c.pages_free + c.pages_kept));
        self.cache_use.set(pages.saturating_sub(unused) as f64 / pages.max(1) as f64);
        self.cache_kept.set(sum(|c| c.pages_kept) as f64 / pages.max(1) as f64);
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_told_under_known_names() {
        let metrics = Metrics::new();
        metrics.first_token(Duration::from_millis(30));
        metrics.answered("/v1/models", 200);
        let timings =
            Timings { prompt_tokens: 7, reused_tokens: 3, generated_tokens: 2, ..Timings::default() };
        metrics.finished(&FinishReason::Stop, &timings, Duration::from_secs(1), true);
        metrics.finished(&FinishReason::Embedded, &Timings::default(), Duration::from_secs(1), false);
        let text = metrics.text(&[Counters {
            running: 1,
            waiting: 2,
            pages: 8,
            pages_free: 3,
            pages_kept: 1,
            ..Counters::default()
        }]);
        for line in [
            "vllm:num_requests_running 1",
            "vllm:num_requests_waiting 2",
            "vllm:kv_cache_usage_perc 0.5",
            "unicorn_kv_cache_kept_ratio 0.125",
            "vllm:prompt_tokens_total 7",
            "vllm:prefix_cache_hits_total 3",
            "vllm:request_success_total{finished_reason=\"stop\"} 2",
            "unicorn_embeddings_total 1",
            "vllm:time_to_first_token_seconds_count 1",
            "unicorn_slow_clients_total 1",
            "unicorn_http_requests_total{route=\"/v1/models\",status=\"200\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
