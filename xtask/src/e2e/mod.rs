//! End-to-end tests: the release binary on real models.

mod answers;
mod field;
mod harness;
mod perplexity;
mod vulkan;

use std::path::Path;
use std::time::Instant;

use crate::data::TestData;
use crate::tally::Tally;
use harness::{Bench, Outcome, Test};
use perplexity::{GEMMA3_PERPLEXITY, GEMMA3_VULKAN_CONTEXT, SMOLLM2_PERPLEXITY, SMOLLM2_VULKAN_CONTEXT};

const TESTS: &[(&str, Test)] = &[
    ("capital_of_france", answers::capital_of_france),
    ("first_token", answers::first_token),
    ("same_text_for_any_thread_count", answers::same_text_for_any_thread_count),
    ("peak_memory", answers::peak_memory),
    ("bench_json", answers::bench_reports),
    ("models_lists_the_cache", answers::models_lists_the_cache),
    ("a_file_that_is_no_model", answers::a_file_that_is_no_model),
    ("wrong_files_are_named", field::wrong_files_are_named),
    ("the_environment_cannot_panic", field::the_environment_cannot_panic),
    ("special_tokens_in_a_prompt_are_text", field::special_tokens_in_a_prompt_are_text),
    ("a_loop_keeps_its_lines", field::a_loop_keeps_its_lines),
    ("a_silent_pipe_does_not_block", field::a_silent_pipe_does_not_block),
    ("perplexity_smollm2", |b| perplexity::perplexity(b, &b.data.smollm2, SMOLLM2_PERPLEXITY)),
    ("perplexity_gemma3", |b| perplexity::perplexity(b, &b.data.gemma3, GEMMA3_PERPLEXITY)),
    ("perplexity_smollm2_vulkan", |b| {
        perplexity::vulkan_perplexity(b, &b.data.smollm2, SMOLLM2_VULKAN_CONTEXT)
    }),
    ("perplexity_gemma3_vulkan", |b| perplexity::vulkan_perplexity(b, &b.data.gemma3, GEMMA3_VULKAN_CONTEXT)),
    ("two_devices_smollm2", |b| {
        perplexity::two_devices(
            b,
            &b.data.smollm2,
            &["mixer=cpu,ffn=vulkan:0", "mixer=vulkan:0,ffn=cpu", "0-14=cpu,15-29=vulkan:0"],
        )
    }),
    ("two_devices_gemma3", |b| perplexity::two_devices(b, &b.data.gemma3, &["mixer=cpu,ffn=vulkan:0"])),
    ("phases_on_two_devices", answers::phases_on_two_devices),
    ("vulkan_kernels", vulkan::kernels),
    ("vulkan_kernels_and_validation", vulkan::kernels_and_validation),
];

/// Runs the tests whose names contain `only`, reporting as `cargo test` does.
pub fn run(binary: &Path, data: &TestData, only: &str) -> Tally {
    let tests: Vec<&(&str, Test)> = TESTS.iter().filter(|(name, _)| name.contains(only)).collect();
    println!("\n     Running end-to-end tests on real models\n\nrunning {} tests", tests.len());
    let mut tally = Tally::default();
    let begin = Instant::now();
    for (name, test) in &tests {
        match test(&Bench { binary, data }) {
            Ok(Outcome::Passed(note)) => {
                tally.passed += 1;
                println!(
                    "test e2e::{name} ... ok{}",
                    if note.is_empty() { note } else { format!(" ({note})") }
                );
            }
            Ok(Outcome::NotRun(reason)) => {
                tally.not_run += 1;
                println!("test e2e::{name} ... {}: {reason}", crate::tally::NOT_RUN);
            }
            Err(error) => {
                tally.failed += 1;
                println!("test e2e::{name} ... FAILED\n    {error:#}");
            }
        }
    }
    let verdict = if tally.failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        tally.passed,
        tally.failed,
        TESTS.len() - tests.len(),
        begin.elapsed().as_secs_f32()
    );
    tally
}
