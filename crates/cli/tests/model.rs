//! Commands on a tiny model with random weights: streams, exit codes, formats.

mod support;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{broken_model, output, stderr, stdout, tiny_model, unicorn};

const TEMPLATE: &str =
    "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}<|turn|>assistant: ";

struct Fixture {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl Fixture {
    fn new(template: Option<&str>) -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        let model = tiny_model(folder.path(), template);
        Fixture { folder, model }
    }

    fn command(&self, name: &str) -> Command {
        let mut command = unicorn(self.folder.path());
        command.arg(name).arg("-m").arg(&self.model).args(["--threads", "1", "--device", "cpu"]);
        command
    }

    fn run(&self, args: &[&str]) -> std::process::Output {
        output(self.command("run").args(args))
    }
}

fn with_input(command: &mut Command, text: &str) -> std::process::Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn an_answer_goes_to_stdout_and_figures_to_stderr() {
    let tiny = Fixture::new(Some(TEMPLATE));
    let out = tiny.run(&["--seed", "1", "-n", "16", "hello"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert!(!stdout(&out).trim().is_empty() && stdout(&out).ends_with('\n'));
    let said = stderr(&out);
    assert!(
        said.starts_with("prompt: ") && said.contains("| answer: 16 tokens") && said.contains("tok/s"),
        "{said}"
    );
    assert!(said.contains("--max-tokens"), "{said}");
    let quiet = tiny.run(&["--seed", "1", "-n", "16", "-q", "hello"]);
    assert_eq!(stdout(&quiet), stdout(&out));
    assert!(quiet.stderr.is_empty(), "{}", stderr(&quiet));
}

#[test]
fn the_seed_decides_the_text_and_threads_do_not() {
    let tiny = Fixture::new(Some(TEMPLATE));
    let text = |args: &[&str]| stdout(&tiny.run(&[args, &["-n", "32", "--temp", "1.5", "hello"]].concat()));
    assert_eq!(text(&["--seed", "7"]), text(&["--seed", "7"]));
    assert_ne!(text(&["--seed", "7"]), text(&["--seed", "8"]));
    let two = output(
        unicorn(tiny.folder.path())
            .args(["run", "--threads", "2", "--seed", "7", "-n", "32", "--temp", "1.5", "hello", "-m"])
            .arg(&tiny.model),
    );
    assert_eq!(stdout(&two), text(&["--seed", "7"]));
}

#[test]
fn stdin_is_the_prompt_or_follows_it() {
    let tiny = Fixture::new(None);
    let greedy = ["--temp", "0", "-n", "8", "--raw"];
    let joined = tiny.run(&[&greedy[..], &["one\n\ntwo"]].concat());
    let piped = with_input(tiny.command("run").args(greedy), "one\n\ntwo");
    let both = with_input(tiny.command("run").args(greedy).arg("one"), "two");
    assert_eq!(joined.status.code(), Some(0), "{}", stderr(&joined));
    assert_eq!(stdout(&joined), stdout(&piped));
    assert_eq!(stdout(&joined), stdout(&both));
}

#[test]
fn drafts_change_no_text_and_are_counted() {
    let tiny = Fixture::new(None);
    let greedy = ["--temp", "0", "-n", "200", "--raw", "one two one two one two one two"];
    let plain = tiny.run(&greedy);
    let drafted = tiny.run(&[&greedy[..], &["--draft", "ngram"]].concat());
    assert_eq!(stdout(&drafted), stdout(&plain));
    assert!(stderr(&drafted).contains("drafted tokens accepted"), "{}", stderr(&drafted));
    assert!(!stderr(&plain).contains("drafted"));
}

#[test]
fn a_model_without_template_says_so() {
    let tiny = Fixture::new(None);
    let out = tiny.run(&["-n", "4", "--temp", "0", "hello"]);
    assert!(stderr(&out).contains("no chat template"), "{}", stderr(&out));
    let raw = tiny.run(&["-n", "4", "--temp", "0", "--raw", "hello"]);
    assert!(!stderr(&raw).contains("template"), "{}", stderr(&raw));
    assert_eq!(stdout(&raw), stdout(&out));
}

#[test]
fn a_broken_template_matters_only_where_it_is_used() {
    let tiny = Fixture::new(Some("{% for %}"));
    let out = tiny.run(&["-n", "4", "hello"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("chat template") && stderr(&out).contains("--raw"), "{}", stderr(&out));
    assert_eq!(tiny.run(&["-n", "4", "--raw", "hello"]).status.code(), Some(0));
}

#[test]
fn prompts_and_contexts_that_are_too_long_are_named() {
    let tiny = Fixture::new(None);
    let prompt = "word ".repeat(50);
    let long = tiny.run(&["--ctx", "64", "--raw", &prompt]);
    assert_eq!(long.status.code(), Some(1));
    assert!(stderr(&long).contains("the context holds 64"), "{}", stderr(&long));
    let context = tiny.run(&["--ctx", "2000000", "hello"]);
    assert_eq!(context.status.code(), Some(2));
    assert!(stderr(&context).contains("1048576"), "{}", stderr(&context));
}

#[test]
fn verbose_says_what_was_decided() {
    let tiny = Fixture::new(Some(TEMPLATE));
    let said = stderr(&tiny.run(&["-v", "-n", "2", "hello"]));
    for part in ["tiny.gguf", "llama", "context 8192", "KV", "cpu", "seed", "ready after"] {
        assert!(said.contains(part), "{part} missing in\n{said}");
    }
}

/// A run that goes on until it is stopped, after its first output.
fn endless(tiny: &Fixture) -> Child {
    let mut child = tiny
        .command("run")
        .args(["--ctx", "200000", "--raw", "hello"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 8]).unwrap();
    child
}

fn wait(child: &mut Child) -> Option<i32> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("still running after 20 s");
}

#[test]
fn a_reader_that_goes_away_ends_the_run_quietly() {
    let tiny = Fixture::new(None);
    let mut child = endless(&tiny);
    drop(child.stdout.take());
    assert_eq!(wait(&mut child), Some(141));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_the_answer_and_prints_figures() {
    let tiny = Fixture::new(None);
    let mut child = endless(&tiny);
    // Reads on, so that the pipe does not fill.
    let mut rest = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || rest.read_to_end(&mut Vec::new()));
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    assert_eq!(wait(&mut child), Some(130));
    reader.join().unwrap().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("prompt: ") && said.contains("interrupted"), "{said}");
}

#[test]
fn inspect_shows_metadata_tensors_and_totals() {
    let tiny = Fixture::new(None);
    let out = output(unicorn(tiny.folder.path()).arg("inspect").arg(&tiny.model));
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    for part in ["GGUF version 3", "general.name", "Tiny", "blk.0.attn_k.weight", "16 x 32", "F32"] {
        assert!(stdout(&out).contains(part), "{part} missing in\n{}", stdout(&out));
    }
    let json = output(unicorn(tiny.folder.path()).arg("inspect").arg("--json").arg(&tiny.model));
    let value: serde_json::Value = serde_json::from_str(&stdout(&json)).expect("JSON");
    assert_eq!(value["architecture"], "llama");
    assert_eq!(value["tensors"].as_array().map(Vec::len), Some(12));
}

#[test]
fn a_file_that_is_no_model_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.gguf");
    std::fs::write(&path, b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    for args in [&["inspect"][..], &["run", "x", "-m"], &["bench", "-m"], &["tokenize", "-m"]] {
        let out = output(unicorn(folder.path()).args(args).arg(&path));
        assert_eq!(out.status.code(), Some(1), "{args:?}: {}", stderr(&out));
        assert!(stderr(&out).starts_with("error: ") && stderr(&out).contains("bad.gguf"), "{}", stderr(&out));
    }
}

#[test]
fn tokenize_prints_ids() {
    let tiny = Fixture::new(None);
    let ids = |args: &[&str]| {
        let mut command = unicorn(tiny.folder.path());
        let out = with_input(command.arg("tokenize").arg("-m").arg(&tiny.model).args(args), "he<|turn|>");
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        stdout(&out)
    };
    assert_eq!(ids(&["--special"]), "256 257\n");
    assert_eq!(ids(&[]).split(' ').count(), 9);
    assert!(ids(&["--special", "-v"]).lines().nth(1).unwrap().contains("<|turn|>"));
}

#[test]
fn bench_prints_the_same_tests_in_every_format() {
    let tiny = Fixture::new(None);
    let bench = |args: &[&str]| {
        let out =
            output(tiny.command("bench").args(["-p", "8", "-n", "4", "-d", "0,16", "-r", "2"]).args(args));
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        stdout(&out)
    };
    let json: serde_json::Value = serde_json::from_str(&bench(&["-o", "json"])).expect("JSON");
    let tests: Vec<&str> = json.as_array().unwrap().iter().map(|row| row["test"].as_str().unwrap()).collect();
    assert_eq!(tests, ["pp8", "tg4", "pp8 @ d16", "tg4 @ d16"]);
    for row in json.as_array().unwrap() {
        let speed = &row["tokens_per_second"];
        let (median, min, max) = (speed["median"].as_f64(), speed["min"].as_f64(), speed["max"].as_f64());
        assert!(min > Some(0.0) && min <= median && median <= max, "{row}");
        assert!(row["share_of_roof"].as_f64() > Some(0.0), "{row}");
        assert_eq!(row["model"], "Tiny");
        assert!(row["device"].as_str().unwrap().starts_with("cpu"));
    }
    for (format, first) in [("md", "| model"), ("table", "model")] {
        let text = bench(&["-o", format]);
        assert!(text.starts_with(first), "{text}");
        assert!(tests.iter().all(|test| text.contains(test)), "{text}");
    }
}

#[test]
fn kernels_are_shown_in_the_format_asked_for() {
    let tiny = Fixture::new(None);
    let bench = |format: &str| {
        let args = ["-p", "8", "-n", "0", "-r", "1", "--profile", "-o", format];
        output(tiny.command("bench").args(args))
    };
    let json = bench("json");
    assert_eq!(json.status.code(), Some(0), "{}", stderr(&json));
    assert!(json.stderr.is_empty(), "{}", stderr(&json));
    let value: serde_json::Value = serde_json::from_str(&stdout(&json)).expect("JSON");
    let kernels = value[0]["profile"][0]["kernels"].as_array().expect("kernels");
    let share: f64 = kernels.iter().filter_map(|k| k["share"].as_f64()).sum();
    assert!(kernels.len() > 3 && (share - 1.0).abs() < 1e-6, "{value}");
    for (format, bar) in [("md", true), ("table", false)] {
        let out = bench(format);
        let text = stdout(&out);
        assert!(text.contains("\npp8 on cpu, one run") && text.contains("ffn_down"), "{text}");
        assert_eq!(text.contains("| kernel"), bar, "{text}");
        assert!(!stderr(&out).contains("ffn_down"), "{}", stderr(&out));
    }
}

#[test]
fn numbers_of_other_programs_mean_the_same_here() {
    let tiny = Fixture::new(None);
    let said = stderr(&tiny.run(&["-v", "-c", "0", "-n", "2", "--seed", "-1", "--top-k", "-1", "hello"]));
    for part in ["context 1048576 tokens", "top-k 0", "max-tokens 2"] {
        assert!(said.contains(part), "{part} missing in\n{said}");
    }
    // Without a limit an answer ends where the context does.
    let full = tiny.run(&["-c", "64", "-n", "-1", "--raw", "hello"]);
    assert!(stderr(&full).contains("the context is full"), "{}", stderr(&full));
}

#[test]
fn more_threads_than_processors_are_warned_of() {
    let tiny = Fixture::new(None);
    let available = std::thread::available_parallelism().unwrap().get();
    let run = |threads: usize, extra: &[&str]| {
        let mut command = unicorn(tiny.folder.path());
        command.args(["run", "--raw", "-n", "2", "--device", "cpu", "hello", "-m"]).arg(&tiny.model);
        stderr(&output(command.args(["--threads", &threads.to_string()]).args(extra)))
    };
    let said = run(available + 1, &[]);
    let warnings = said.lines().filter(|line| line.contains("more threads than that")).count();
    assert_eq!(warnings, 1, "{said}");
    assert!(!run(available, &[]).contains("more threads"));
    assert_eq!(run(available + 1, &["-q"]), "");
}

/// The shell that sets a limit is there on every Unix.
#[cfg(target_os = "linux")]
#[test]
fn a_model_larger_than_the_limit_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let run = |limit_kib: u64| {
        let line = format!(
            "ulimit -v {limit_kib} && exec \"$0\" bench --shape 1b:q8_0 --device cpu -t 1 -p 1 -n 0 -r 1"
        );
        let mut command = Command::new("sh");
        command.arg("-c").arg(line).arg(env!("CARGO_BIN_EXE_unicorn"));
        output(command.env("HOME", folder.path()).env_remove("XDG_CACHE_HOME").stdin(Stdio::null()))
    };
    let refused = run(1 << 20);
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    for part in ["cannot load llama-1b:q8_0", "it does not fit into memory", "scratch", "ulimit -v"] {
        assert!(stderr(&refused).contains(part), "{part} missing in\n{}", stderr(&refused));
    }
}

#[test]
fn bench_ffn_prints_the_figures_of_the_old_benchmark() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        "bench", "ffn", "--device", "cpu", "--tokens", "8,1", "--width", "64", "--hidden", "128", "--dtype",
        "f16", "-r", "2",
    ];
    let out = output(unicorn(folder.path()).args(args));
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    for part in
        ["ms", "average", "min", "max", "FLOP/s", "tokens/s", "gate+up FLOP/s", "down FLOP/s", "wall time"]
    {
        assert!(stdout(&out).contains(part), "{part} missing in\n{}", stdout(&out));
    }
    let json = output(unicorn(folder.path()).args(args).args(["-o", "json"]));
    let value: serde_json::Value = serde_json::from_str(&stdout(&json)).expect("JSON");
    assert!(value[0]["gflop_per_second"].as_f64() > Some(0.0), "{value}");
    let tokens: Vec<u64> = value.as_array().unwrap().iter().filter_map(|r| r["tokens"].as_u64()).collect();
    assert_eq!(tokens, [1, 8]);
    assert!(value[0]["down_gflop_per_second"].as_f64() > Some(0.0), "{value}");
}

#[test]
fn perplexity_ends_with_the_result() {
    let tiny = Fixture::new(None);
    let text = tiny.folder.path().join("text.txt");
    std::fs::write(&text, "the quick brown fox jumps over the lazy dog. ".repeat(20)).unwrap();
    let run = |extra: &[&str]| output(tiny.command("perplexity").arg("--file").arg(&text).args(extra));
    let out = run(&["--ctx", "64", "--chunks", "3"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let last = stdout(&out);
    let (value, error) = last.trim().strip_prefix("perplexity: ").unwrap().split_once(" +/- ").unwrap();
    assert!(value.parse::<f64>().unwrap() > 1.0 && error.parse::<f64>().unwrap() > 0.0, "{last}");
    assert!(stderr(&out).contains("[3/3] "), "{}", stderr(&out));
    // From stdin, where a byte order mark is no text.
    let words = std::fs::read_to_string(&text).unwrap();
    let from_stdin = |text: &str| {
        let mut command = tiny.command("perplexity");
        with_input(command.args(["--file", "-", "--ctx", "64", "--chunks", "3"]), text)
    };
    for piped in [words.clone(), format!("\u{feff}{words}")] {
        let piped = from_stdin(&piped);
        assert_eq!(stdout(&piped), stdout(&out), "{}", stderr(&piped));
    }
    let empty = from_stdin(" \n");
    assert_eq!(empty.status.code(), Some(1));
    assert!(stderr(&empty).contains("stdin: there is no text in it"), "{}", stderr(&empty));
    let short = run(&["--ctx", "4096"]);
    assert_eq!(short.status.code(), Some(1));
    assert!(stderr(&short).contains("the text has"), "{}", stderr(&short));
}

/// Kernels for many rows at once, whose sums depend on the number of rows, are not even chosen then.
#[test]
fn texts_can_be_made_independent_of_what_they_are_batched_with() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = tiny_model(folder.path(), None);
    let probe = output(unicorn(folder.path()).args(["devices", "--json"]));
    let devices = match stdout(&probe).contains("vulkan:0") {
        true => vec!["cpu", "vulkan:0"],
        false => {
            println!("NOT RUN: no Vulkan driver here");
            vec!["cpu"]
        }
    };
    for device in devices {
        let run = |more: &[&str]| {
            let mut command = unicorn(folder.path());
            command
                .arg("run")
                .arg("-m")
                .arg(&model)
                .args(["--device", device, "-v", "-n", "2", "--raw", "hello"]);
            let out = output(command.args(more));
            assert_eq!(out.status.code(), Some(0), "{device}: {}", stderr(&out));
            stderr(&out)
        };
        assert_eq!(run(&[]).contains("for many tokens"), device != "cpu");
        assert!(!run(&["--batch-invariant"]).contains("for many tokens"), "{device}");
    }
}

/// One logit of a vocabulary that is no number is enough, whether all of them are looked at or a device picks the largest.
#[test]
fn an_output_that_is_not_finite_is_an_error_and_no_text() {
    let probe = output(unicorn(&std::env::temp_dir()).args(["devices", "--json"]));
    let mut devices = vec!["cpu", "cpu:scalar", "reference"];
    if stdout(&probe).contains("vulkan:0") {
        devices.push("vulkan:0");
    } else {
        println!("NOT RUN: no Vulkan driver here");
    }
    for weight in [f32::NAN, f32::INFINITY] {
        let folder = tempfile::tempdir().expect("a folder");
        let model = broken_model(folder.path(), weight);
        for device in &devices {
            for temperature in ["0", "1"] {
                let mut command = unicorn(folder.path());
                command.arg("run").arg("-m").arg(&model).args(["--device", device, "-n", "4", "hello"]);
                let out = output(command.args(["--temp", temperature]));
                assert_eq!(out.status.code(), Some(1), "{weight} {device} {temperature}: {}", stderr(&out));
                assert!(stderr(&out).contains("not finite"), "{device}: {}", stderr(&out));
                assert!(stdout(&out).trim().is_empty(), "{device}: {}", stdout(&out));
            }
        }
    }
}
