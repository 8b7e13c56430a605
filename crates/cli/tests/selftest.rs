//! The loop of the selftest: what it found wrong is remembered, and the device avoids it, another runs in its place, or it refuses.

mod support;

use std::path::PathBuf;
use std::process::Output;

use support::{output, stderr, stdout, tiny_model, unicorn};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().expect("a folder"))
    }

    fn run(&self, args: &[&str]) -> Output {
        output(unicorn(self.0.path()).args(args))
    }

    /// One short test; its outcome is the file that the others edit.
    fn selftest(&self, device: &str) -> Output {
        self.run(&["selftest", "--device", device, "--only", "ffn/f16 t1/", "--seed", "1"])
    }

    /// The one remembered selftest.
    fn verdict(&self) -> PathBuf {
        let folder = self.0.path().join(".cache/unicorn/devices");
        let files = std::fs::read_dir(folder).expect("findings");
        let mut paths = files.map(|f| f.expect("an entry").path());
        paths.find(|p| p.to_string_lossy().ends_with(".selftest.json")).expect("a remembered selftest")
    }

    /// Writes into the remembered selftest that these kernels were wrong.
    fn accuse(&self, kernels: &[&str]) {
        let path = self.verdict();
        let text = std::fs::read(&path).expect("the verdict");
        let mut value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let cases = value["finding"]["cases"].as_u64();
        assert!(cases > Some(0), "{value}");
        let case = a_case();
        let wrong = kernels.iter().map(|kernel| serde_json::json!({ "kernel": kernel, "cases": [case] }));
        value["finding"]["wrong"] = wrong.collect();
        std::fs::write(&path, value.to_string()).expect("the verdict can be written");
    }

    fn ffn(&self, device: &str) -> Output {
        let shape = ["--width", "64", "--hidden", "128", "--tokens", "1", "-r", "1", "-v"];
        self.run(&[&["bench", "ffn", "--device", device][..], &shape].concat())
    }
}

/// The name of a case that [`Home::selftest`] runs.
fn a_case() -> String {
    let home = Home::new();
    let report = home.0.path().join("report.txt");
    let path = report.to_str().expect("a path");
    let args = ["selftest", "--device", "reference", "--only", "ffn/f16 t1/", "--report", path];
    assert_eq!(home.run(&args).status.code(), Some(0));
    let text = std::fs::read_to_string(&report).expect("a report");
    let line = text.lines().find_map(|line| line.strip_prefix("ok")).expect("a case");
    line.split(':').next().expect("a name").trim().to_owned()
}

#[test]
fn a_processor_with_a_wrong_kernel_runs_plain_code_and_refuses_where_that_is_wrong() {
    for (device, code) in [("cpu", 0), ("cpu:scalar", 1)] {
        let home = Home::new();
        let model = tiny_model(home.0.path(), None);
        let model = model.to_str().expect("a path");
        let ask = || home.run(&["run", "-m", model, "--device", device, "-n", "2", "--raw", "hello"]);
        assert_eq!(home.selftest(device).status.code(), Some(0));
        assert_eq!(ask().status.code(), Some(0));
        home.accuse(&["ffn_down f16 fast"]);
        let heeded = ask();
        let said = stderr(&heeded);
        assert_eq!(heeded.status.code(), Some(code), "{said}");
        for part in ["ffn_down f16 fast", "selftest"] {
            assert!(said.contains(part), "{part} missing in\n{said}");
        }
        assert_eq!(said.contains("cpu:scalar runs in its place"), code == 0, "{said}");
        // The selftest itself still opens the device, and clears it.
        assert_eq!(home.selftest(device).status.code(), Some(0));
        let cleared = ask();
        assert!(cleared.status.code() == Some(0) && !stderr(&cleared).contains("selftest"));
    }
}

#[test]
fn a_gpu_avoids_a_wrong_kernel_where_it_has_another() {
    let home = Home::new();
    if home.selftest("vulkan:0").status.code() != Some(0) {
        eprintln!("there is no Vulkan device here");
        return;
    }
    let before = home.ffn("vulkan:0");
    assert_eq!(before.status.code(), Some(0), "{}", stderr(&before));
    // `op: shader, shader for many tokens`.
    let said = stderr(&before);
    let kernels = |op: &str| {
        let line = said.lines().find_map(|l| l.strip_prefix(&format!("{op}: "))).expect("a kernel");
        let (few, many) = line.split_once(", ").expect("two kernels");
        let many = many.strip_suffix(" for many tokens").expect("the second");
        (format!("{op} {few}"), format!("{op} {many}"))
    };
    let (fused, fused_many) = kernels("ffn_gate_up");
    let (down, down_many) = kernels("ffn_down");

    for (accused, left) in [(&fused, &fused_many), (&fused_many, &fused)] {
        home.accuse(&[accused.as_str()]);
        let avoided = home.ffn("vulkan:0");
        let said = stderr(&avoided);
        assert_eq!(avoided.status.code(), Some(0), "{said}");
        assert!(said.contains(&format!("avoiding the kernel `{accused}`")), "{said}");
        let line = |kernel: &str| kernel.replacen(' ', ": ", 1);
        assert!(!said.contains(&line(accused)) && said.contains(&line(left)), "{said}");
        assert!(said.contains("ffn_glu: glu"), "{said}");
    }

    // Few tokens take the kernel of many.
    home.accuse(&[down.as_str()]);
    let avoided = home.ffn("vulkan:0");
    assert_eq!(avoided.status.code(), Some(0), "{}", stderr(&avoided));
    let many = down_many.replacen(' ', ": ", 1);
    assert!(stderr(&avoided).lines().any(|l| l == many), "{many} missing in\n{}", stderr(&avoided));

    // Nothing is left once every kernel of f16 products is wrong.
    home.accuse(&[down.as_str(), "ffn_down matmul_cooperative_f16", "ffn_down matmul_plain_f16"]);
    let refused = home.ffn("vulkan:0");
    assert_eq!(refused.status.code(), Some(1), "{}", stdout(&refused));
    for part in [down.split(' ').next_back().expect("a shader"), "selftest", "no kernel for"] {
        assert!(stderr(&refused).contains(part), "{part} missing in\n{}", stderr(&refused));
    }

    assert_eq!(home.selftest("vulkan:0").status.code(), Some(0));
    let after = home.ffn("vulkan:0");
    assert_eq!(after.status.code(), Some(0), "{}", stderr(&after));
    assert!(!stderr(&after).contains("avoiding"), "{}", stderr(&after));
}

#[test]
fn a_selftest_of_some_kernels_or_none_is_not_remembered() {
    let home = Home::new();
    let remembered = || {
        let files = std::fs::read_dir(home.0.path().join(".cache/unicorn/devices"));
        files.map_or(0, |f| f.filter_map(Result::ok).count())
    };
    let test = ["selftest", "--device", "vulkan:0", "--only", "ffn/f16 t1/"];
    let plain = home.run(&[&test[..], &["--tier", "plain"]].concat());
    if plain.status.code() != Some(0) {
        assert!(stderr(&plain).contains("cannot open device"), "{}", stderr(&plain));
        eprintln!("there is no Vulkan device here");
        return;
    }
    assert_eq!(remembered(), 0);
    assert_eq!(home.run(&[&test[..], &["--compile-only"]].concat()).status.code(), Some(0));
    assert_eq!(remembered(), 0);
    assert_eq!(home.run(&test).status.code(), Some(0));
    assert_eq!(remembered(), 1);
}

#[test]
fn limits_are_measured_once() {
    let home = Home::new();
    let list = |extra: &[&str]| {
        // No driver: a software one takes long to measure.
        let mut command = unicorn(home.0.path());
        command.env("VK_ICD_FILENAMES", "none").env("VK_DRIVER_FILES", "none");
        let out = output(command.args(["devices", "--json"]).args(extra));
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        let value: serde_json::Value = serde_json::from_str(&stdout(&out)).expect("JSON");
        let cpu =
            value.as_array().and_then(|all| all.iter().find(|d| d["kind"] == "cpu")).expect("a cpu").clone();
        (cpu["read_bytes_per_second"].as_f64().expect("a rate"), cpu)
    };
    let (first, cpu) = list(&[]);
    assert!(cpu["selftest"].as_str().is_some_and(|s| s.contains("never")), "{cpu}");
    assert_eq!(list(&[]).0, first, "the second time it is read back");
    assert_ne!(list(&["--fresh"]).0, first, "a new measurement never gives the same number to the bit");
}
