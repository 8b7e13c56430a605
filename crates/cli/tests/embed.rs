//! `unicorn embed` on a tiny encoder, and on a tiny model that generates.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::{output, stderr, stdout, tiny_model, unicorn};

fn bert(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny").join(name)
}

fn command(name: &str, home: &Path, model: &Path) -> Command {
    let mut command = unicorn(home);
    command.arg(name).arg("-m").arg(model).args(["--threads", "1", "--device", "cpu"]);
    command
}

/// The vectors that were printed, with their texts.
fn vectors(out: &Output) -> Vec<(String, Vec<f64>)> {
    assert_eq!(out.status.code(), Some(0), "{}", stderr(out));
    let line = |line: &str| {
        let value: Value = serde_json::from_str(line).expect("a line of JSON");
        let vector = value["embedding"].as_array().into_iter().flatten().filter_map(Value::as_f64);
        (value["text"].as_str().expect("the text").to_owned(), vector.collect())
    };
    stdout(out).lines().map(line).collect()
}

fn length(vector: &[f64]) -> f64 {
    vector.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[test]
fn texts_become_lines_in_their_order() {
    let home = tempfile::tempdir().unwrap();
    let texts = ["The cat sat on the mat.", "river bank", "money"];
    let run = |model: &str| output(command("embed", home.path(), &bert(model)).args(texts));
    let out = run("bert");
    let got = vectors(&out);
    assert_eq!(got.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>(), texts);
    for (text, vector) in &got {
        assert_eq!(vector.len(), 32, "{text}");
        assert!((length(vector) - 1.0).abs() < 1e-5, "{text}");
    }
    assert!(stderr(&out).contains("3 texts") && stderr(&out).contains("pooled by mean"), "{}", stderr(&out));
    // The same from the other format, and from a file.
    for ((_, a), (_, b)) in got.iter().zip(vectors(&run("bert.gguf"))) {
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
    }
    let file = home.path().join("texts.txt");
    std::fs::write(&file, texts.join("\n\n") + "\n").unwrap();
    let out = output(command("embed", home.path(), &bert("bert")).arg("-q").arg("--file").arg(&file));
    assert_eq!(vectors(&out), got);
    assert!(out.stderr.is_empty(), "{}", stderr(&out));
}

#[test]
fn pooling_is_what_was_asked_for() {
    let home = tempfile::tempdir().unwrap();
    let with = |pooling: &str| {
        let out = output(command("embed", home.path(), &bert("bert")).args(["--pooling", pooling, "a cat"]));
        vectors(&out).remove(0).1
    };
    let [mean, cls, last] = ["mean", "cls", "last"].map(with);
    assert!(mean != cls && cls != last && mean != last);
    let out = output(command("embed", home.path(), &bert("bert")).args(["--pooling", "max", "a cat"]));
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("mean, cls, last"), "{}", stderr(&out));
}

#[test]
fn a_model_that_generates_embeds_too() {
    let home = tempfile::tempdir().unwrap();
    let model = tiny_model(home.path(), None);
    let texts: Vec<String> = (0..9).map(|i| format!("text {i} of several")).collect();
    let got = vectors(&output(command("embed", home.path(), &model).args(&texts)));
    assert_eq!(got.len(), 9);
    assert!(got.iter().all(|(_, v)| v.len() == 32 && (length(v) - 1.0).abs() < 1e-5));
    assert_ne!(got[0].1, got[1].1);
}

#[test]
fn mistakes_are_named() {
    let home = tempfile::tempdir().unwrap();
    let fails = |args: &[&str], code: i32, part: &str| {
        let out = output(command("embed", home.path(), &bert("bert")).args(args));
        assert_eq!(out.status.code(), Some(code), "{args:?}: {}", stderr(&out));
        assert!(stderr(&out).contains(part), "{args:?}: {}", stderr(&out));
        assert!(out.stdout.is_empty());
    };
    fails(&[], 2, "TEXT");
    fails(&["a", "  "], 2, "text 2 is empty");
    fails(&["--file", "none.txt"], 1, "none.txt");
    let long = "cat ".repeat(60);
    fails(&["a", &long], 1, "text 2 has 62 tokens, the model takes 48");
    let out = output(unicorn(home.path()).args(["embed", "text"]));
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("-m MODEL"), "{}", stderr(&out));
}

#[test]
fn what_needs_a_model_that_writes_says_what_to_do() {
    let home = tempfile::tempdir().unwrap();
    let text = home.path().join("text.txt");
    std::fs::write(&text, "some text").unwrap();
    let text = text.display().to_string();
    for (name, args) in [
        ("run", &["hello"][..]),
        ("perplexity", &["--file", &text]),
        ("bench", &["-p", "8", "-n", "0", "-r", "1"]),
    ] {
        let out = output(command(name, home.path(), &bert("bert")).args(args));
        assert_eq!(out.status.code(), Some(2), "{name}: {}", stderr(&out));
        assert!(stderr(&out).contains("unicorn embed"), "{name}: {}", stderr(&out));
    }
}
