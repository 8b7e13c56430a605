//! Whatever the environment holds, the program ends with an answer or an error that names the variable.

mod support;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use support::{output, stderr, stdout, unicorn};

/// A program that may use the network, with nothing but `variables` set, and no Python to fall back on.
fn online(home: &Path, variables: &[(&str, &OsStr)]) -> Command {
    let mut command = unicorn(home);
    command.env_clear().env("HOME", home).env("PATH", home).current_dir(home);
    command.env("HF_ENDPOINT", "https://127.0.0.1:1");
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command
}

#[test]
fn settings_of_the_network_never_panic_and_are_named() {
    let home = tempfile::tempdir().unwrap();
    let garbage = home.path().join("garbage.pem");
    std::fs::write(&garbage, b"\x00no certificate").unwrap();
    let long = "x".repeat(100_000);
    let cases: &[(&str, &str)] = &[
        ("ALL_PROXY", "socks5h://127.0.0.1:1"),
        ("all_proxy", "socks4://127.0.0.1:1"),
        ("HTTPS_PROXY", "http://127.0.0.1:1"),
        ("HTTPS_PROXY", "socks5h://"),
        ("https_proxy", "://"),
        ("HTTPS_PROXY", "http://user:secret@:x"),
        ("ALL_PROXY", &long),
        ("HF_ENDPOINT", "not an address"),
        ("HF_ENDPOINT", &long),
        ("HF_TOKEN", "two\nlines"),
        ("SSL_CERT_FILE", garbage.to_str().unwrap()),
        ("SSL_CERT_FILE", "/no/such/file"),
        ("SSL_CERT_DIR", "/no/such/folder"),
    ];
    for (name, value) in cases {
        let out = output(online(home.path(), &[(name, OsStr::new(value))]).args(["pull", "smollm2-135m"]));
        let said = stderr(&out);
        assert_eq!(out.status.code(), Some(1), "{name}: {said}");
        assert!(said.contains(name), "{name}: {said}");
        assert!(!said.contains("panicked") && !said.contains("secret"), "{name}: {said}");
    }
}

#[cfg(unix)]
#[test]
fn variables_that_are_not_utf8_never_panic() {
    use std::os::unix::ffi::OsStrExt;
    let home = tempfile::tempdir().unwrap();
    let value = OsStr::from_bytes(b"/\xff\xfe");
    for name in [
        "ALL_PROXY",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HOME",
        "HF_HUB_CACHE",
        "XDG_CACHE_HOME",
        "XDG_STATE_HOME",
        "HOME",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "UNICORN_MODEL",
        "HF_HUB_OFFLINE",
        "NO_COLOR",
    ] {
        for command in [&["pull", "smollm2-135m"][..], &["models"]] {
            let out = output(online(home.path(), &[(name, value)]).args(command));
            let said = stderr(&out);
            assert!(matches!(out.status.code(), Some(0 | 1)), "{name} {command:?}: {:?} {said}", out.status);
            assert!(!said.contains("panicked"), "{name}: {said}");
        }
    }
}

#[test]
fn folders_are_never_made_in_the_working_directory_unasked() {
    let home = tempfile::tempdir().unwrap();
    let here = tempfile::tempdir().unwrap();
    for (variables, named) in [
        (&[("HOME", "relative")][..], "HOME: "),
        (&[("HOME", "")], "HOME: "),
        (&[("HF_HOME", "~other/x")], "HF_HOME: "),
        (&[("HF_HUB_CACHE", "$NOTHING/x")], "HF_HUB_CACHE: "),
    ] {
        let mut command = unicorn(home.path());
        command.envs(variables.iter().copied()).env_remove("USERPROFILE").current_dir(here.path());
        let out = output(command.args(["pull", "smollm2-135m"]));
        let said = stderr(&out);
        assert!(out.status.code() == Some(1) && said.contains(named), "{variables:?}: {said}");
    }
    let out = output(unicorn(home.path()).env("HF_HOME", "~/x").current_dir(here.path()).args(["models"]));
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert_eq!(std::fs::read_dir(here.path()).unwrap().count(), 0);
}

/// A safetensors model of an architecture that nobody has, as complete as files can be.
fn cached_model(cache: &Path, folder: &str) {
    let snapshot = cache.join(folder).join("snapshots/c1");
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::write(snapshot.join("config.json"), r#"{"architectures": ["NobodyForCausalLM"]}"#).unwrap();
    std::fs::write(snapshot.join("tokenizer.json"), "{}").unwrap();
    let header = br#"{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let mut weights = (header.len() as u64).to_le_bytes().to_vec();
    weights.extend(header);
    weights.extend([0; 4]);
    std::fs::write(snapshot.join("model.safetensors"), weights).unwrap();
}

#[test]
fn models_are_listed_with_what_keeps_them_from_running_and_removed_by_name() {
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join("hub");
    let hub = |args: &[&str]| output(unicorn(home.path()).env("HF_HUB_CACHE", "~/hub").args(args));
    for folder in ["models--owner--one", "models--owner--two"] {
        cached_model(&cache, folder);
    }
    for name in ["models", "list", "ls"] {
        let text = stdout(&hub(&[name]));
        let line = text.lines().find(|line| line.starts_with("owner/one")).unwrap_or_default();
        assert!(line.contains("cannot run: ") && line.contains("NobodyForCausalLM"), "{text}");
    }
    // Nothing is asked where nobody can answer, and nothing is removed where one name is wrong.
    let out = hub(&["rm", "owner/one"]);
    assert!(out.status.code() == Some(2) && stderr(&out).contains("--yes"), "{}", stderr(&out));
    let out = hub(&["rm", "--yes", "owner/one", "owner/tow"]);
    assert!(
        out.status.code() == Some(1) && stderr(&out).contains("did you mean `owner/two`?"),
        "{}",
        stderr(&out)
    );
    let out = hub(&["rm", "-y", home.path().to_str().unwrap()]);
    assert!(out.status.code() == Some(1) && stderr(&out).contains("outside the cache"), "{}", stderr(&out));
    assert!(cache.join("models--owner--one").exists());
    let out = hub(&["remove", "-y", "owner/one", "owner/one", "owner/two"]);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert!(stdout(&out).contains("owner/one: removed"), "{}", stdout(&out));
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 0);
}

#[test]
fn files_that_a_cache_lacks_are_named_once() {
    let home = tempfile::tempdir().unwrap();
    let snapshot = home.path().join("hub/models--owner--tiny/snapshots/c1");
    std::fs::create_dir_all(&snapshot).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny/qwen2");
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(model.join(file), snapshot.join(file)).unwrap();
    }
    let lacking = |args: &[&str]| {
        let out = output(unicorn(home.path()).env("HF_HUB_CACHE", "~/hub").args(args));
        assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
        let text = stderr(&out);
        let lines = text
            .lines()
            .filter(|line| line.contains("generation_config") || line.contains("tokenizer_config"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let run = ["run", "hi", "-n", "1", "--device", "cpu", "-m"];
    for (command, all) in [(&run[..], true), (&["tokenize", "-m"], false)] {
        let told = lacking(&[command, &["owner/tiny"]].concat());
        let [line] = &told[..] else { panic!("{told:?}") };
        for part in [
            "warning: owner/tiny: the cache lacks generation_config.json, tokenizer_config.json",
            "not known without",
        ] {
            assert!(line.contains(part), "{line}");
        }
        // A folder that is no part of the cache: nobody else tells it.
        let told = lacking(&[command, &[snapshot.to_str().unwrap()]].concat());
        let missing = |name: &str| told.iter().any(|line| line.contains(&format!("{name} is missing; ")));
        assert!(!all || missing("generation_config.json") && missing("tokenizer_config.json"), "{told:?}");
    }
}
