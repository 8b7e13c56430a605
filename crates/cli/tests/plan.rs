//! `unicorn plan`, and what `bench` and `run` make of it.

mod support;

use std::path::Path;
use std::process::Output;

use serde_json::Value;
use support::{output, stderr, stdout, tiny_model, unicorn};

fn plan(home: &Path, words: &[&str]) -> Output {
    output(unicorn(home).arg("plan").args(words))
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", stderr(output));
    serde_json::from_str(&stdout(output)).unwrap_or_else(|e| panic!("{e}: {}", stdout(output)))
}

#[test]
fn a_machine_that_is_not_here_is_planned_for() {
    let home = tempfile::tempdir().unwrap();
    let words = ["--shape", "8b:q4_k", "--simulate", "phoenix"];
    let text = plan(home.path(), &words);
    assert_eq!(text.status.code(), Some(0), "{}", stderr(&text));
    for part in ["Radeon 780M", "XDNA 1", "estimated", "<- this", "tok/s", "[#"] {
        assert!(stdout(&text).contains(part), "{part} missing in\n{}", stdout(&text));
    }
    let value = json(&plan(home.path(), &[&words[..], &["--output", "json"]].concat()));
    assert!(value["prefill_tokens_per_second"].as_f64().unwrap() > 100.0);
    assert!(value["decode_tokens_per_second"].as_f64().unwrap() > 5.0);
    assert!(value["memory_bytes"]["DDR5-5600, two channels"].as_u64().unwrap() > 4_000_000_000);
    assert!(value["simulated"].as_str().unwrap().contains("not here"));
    // Nothing of this machine was measured for it.
    assert!(!home.path().join(".cache").exists());
    // What is asked for is what is shown, and a budget counts.
    let asked = [&words[..], &["--place", "mixer=vulkan,ffn=npu", "--output", "json"]].concat();
    assert_eq!(json(&plan(home.path(), &asked))["placement"], "mixer=vulkan,ffn=npu");
    // A device that is not here has a budget of its own, and others have theirs.
    let npu = [&words[..], &["--place", "mixer=vulkan,ffn=npu", "--memory-max", "2TB,npu=1G"]].concat();
    let npu = plan(home.path(), &npu);
    assert_eq!(npu.status.code(), Some(1));
    assert!(
        stdout(&npu).contains("npu would need") && stdout(&npu).contains("of 1.00 GB"),
        "{}",
        stdout(&npu)
    );
    let small = plan(home.path(), &[&words[..], &["--memory-max", "1G"]].concat());
    assert_eq!(small.status.code(), Some(1));
    assert!(
        stdout(&small).contains("does not fit") && stdout(&small).contains("of 1.00 GB"),
        "{}",
        stdout(&small)
    );
}

#[test]
fn a_machine_has_the_devices_that_it_has() {
    let home = tempfile::tempdir().unwrap();
    let words = ["--shape", "8b:q4_k", "--simulate", "phoenix", "--place"];
    // As many names as the machine has devices are still other names.
    let strange = plan(home.path(), &[&words[..], &["embedding=foo,head=foo,mixer=bar,ffn=baz"]].concat());
    assert_eq!(strange.status.code(), Some(2));
    assert!(stderr(&strange).contains("there is no device foo"), "{}", stderr(&strange));
    // Many long prompts are not all simulated one after the other.
    let many = ["--shape", "1b:q4_k", "--simulate", "h100", "--sequences", "8", "-p", "60000", "-n", "8"];
    let value = json(&plan(home.path(), &[&many[..], &["--output", "json"]].concat()));
    assert!(value["prefill_tokens_per_second"].as_f64().unwrap() > 10.0);
}

#[test]
fn two_names_of_one_device_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny_model(home.path(), None);
    let mut command = unicorn(home.path());
    let place = ["--raw", "--place", "mixer=cpu,ffn=cpu:scalar", "a"];
    let output = output(command.arg("run").arg("-m").arg(&model).args(place));
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("are one device, cpu"), "{}", stderr(&output));
}

#[test]
fn a_trace_that_cannot_be_written_is_told_before_the_answer() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny_model(home.path(), None);
    let path = home.path().join("missing/trace.json");
    let mut command = unicorn(home.path());
    let output =
        output(command.arg("run").arg("-m").arg(&model).args(["--raw", "--trace"]).arg(&path).arg("a"));
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
    assert!(
        stderr(&output).contains("--trace") && stderr(&output).contains("missing"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn this_machine_is_measured_once_and_predictions_are_graded() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny_model(home.path(), None);
    let model = model.to_str().unwrap();
    let run = |words: &[&str]| output(unicorn(home.path()).args(words));
    let bench = ["bench", "-m", model, "-p", "64", "-n", "16", "-r", "2", "--device", "cpu", "-o", "json"];
    // Nothing is measured unasked, and nothing predicted without.
    assert!(json(&run(&bench))[0]["predicted"].is_null());
    let words = ["-m", model, "--place", "0=cpu", "--prompt", "64", "--decode", "16"];
    let first = plan(home.path(), &words);
    assert!(stderr(&first).contains("measuring cpu"), "{}", stderr(&first));
    assert!(
        stdout(&first).contains("measured") && !stdout(&first).contains("corrected"),
        "{}",
        stdout(&first)
    );
    let again = plan(home.path(), &[&words[..], &["-o", "json"]].concat());
    assert!(!stderr(&again).contains("measuring"), "{}", stderr(&again));
    let again = json(&again);
    assert_eq!(again["devices"][0]["origin"], "measured");
    let rows = json(&run(&bench));
    for row in rows.as_array().unwrap() {
        assert!(row["predicted"]["tokens_per_second"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["predicted"]["error"].is_f64() && row["predicted"]["correction"].is_null(), "{row}");
    }
    // What was learned shows, and the next prediction is what was measured.
    let corrected = json(&plan(home.path(), &[&words[..], &["-o", "json"]].concat()));
    assert_eq!(corrected["candidates"][0]["decode"]["corrected_from_runs"], 1);
    let measured = rows[1]["tokens_per_second"]["median"].as_f64().unwrap();
    let predicted = corrected["decode_tokens_per_second"].as_f64().unwrap();
    let before = again["decode_tokens_per_second"].as_f64().unwrap();
    let off = |predicted: f64| (predicted / measured).ln().abs();
    assert!(off(predicted) <= off(before) + 0.05, "{before}, then {predicted}, measured {measured}");
    assert!(stdout(&plan(home.path(), &words)).contains("from 1 run"));
    let told = run(&["run", "-v", "-m", model, "--device", "cpu", "-n", "16", "--raw", "hello"]);
    assert_eq!(told.status.code(), Some(0), "{}", stderr(&told));
    assert!(stderr(&told).contains("answer: predicted"), "{}", stderr(&told));
    let anew = plan(home.path(), &[&words[..], &["--recalibrate"]].concat());
    assert!(stderr(&anew).contains("measuring cpu") && !stdout(&anew).contains("from"), "{}", stdout(&anew));
}

#[test]
fn impossible_plans_are_usage_errors() {
    let home = tempfile::tempdir().unwrap();
    let phoenix = ["--shape", "8b:q4_k", "--simulate", "phoenix"];
    let cases: [(&[&str], &str); 8] = [
        (&["--prompt", "0", "--decode", "0"], "nothing to plan"),
        (&["--memory-max", "6X"], "`6X` is no size"),
        (&["--memory-max", "6"], "`6` has no unit"),
        (&["--memory-max", "npu=1G,tpu=6G"], "there is no device tpu; there are vulkan:0, cpu, npu"),
        (&["--place", "mixer=tpu,ffn=cpu"], "there is no device tpu"),
        (&["--place", "0-99=cpu"], "32 layers"),
        (&["--ctx", "100"], "less than a prompt of 512"),
        (&["--sequences", "0"], "--sequences"),
    ];
    for (words, part) in cases {
        let refused = plan(home.path(), &[&phoenix[..], words].concat());
        assert_eq!(refused.status.code(), Some(2), "{words:?}: {}", stderr(&refused));
        assert!(stderr(&refused).contains(part), "{words:?}: {}", stderr(&refused));
    }
    let unknown = plan(home.path(), &["--shape", "8b:q4_k", "--simulate", "nowhere"]);
    assert!(
        unknown.status.code() == Some(2) && stderr(&unknown).contains("strix-halo"),
        "{}",
        stderr(&unknown)
    );
    let broken = home.path().join("machine.json");
    std::fs::write(&broken, "{\"name\": 1}").unwrap();
    let broken = plan(home.path(), &["--shape", "8b:q4_k", "--simulate", broken.to_str().unwrap()]);
    assert_eq!(broken.status.code(), Some(1));
    assert!(
        stderr(&broken).contains("machine.json") && stderr(&broken).contains("line 1"),
        "{}",
        stderr(&broken)
    );
}
