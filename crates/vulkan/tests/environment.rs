//! A broken installation of Vulkan gives a typed error or no device, and never a panic.

use std::path::Path;
use std::process::Command;

use unicorn_vulkan::{Library, LibraryOptions};

/// Set in the process that looks for devices.
const CHILD: &str = "UNICORN_TEST_CHILD";

/// Looks for devices and says what came of it, where it is started by the test below.
#[test]
fn looks_for_devices() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    match Library::load(LibraryOptions::default()).and_then(|library| library.candidates()) {
        Ok(found) => println!("ANSWER: {} devices", found.len()),
        Err(error) => println!("ANSWER: {error}"),
    }
}

/// What a process says that looks for devices with these variables set.
fn answer(variables: &[(&str, &Path)]) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "looks_for_devices", "--nocapture"]).env(CHILD, "1");
    child.envs(variables.iter().copied());
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{variables:?}: {}\n{text}{errors}", output.status);
    assert!(!errors.contains("panicked"), "{variables:?}: {errors}");
    let line = text.lines().find_map(|line| line.split_once("ANSWER: "));
    line.unwrap_or_else(|| panic!("{variables:?}: no answer\n{text}{errors}")).1.to_owned()
}

#[test]
fn broken_installations_are_told_apart_from_faults() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let here = answer(&[]);
    if !here.ends_with("devices") {
        // Without a loader the rest would all say the same.
        assert!(!here.is_empty());
        return;
    }
    let missing = folder.path().join("absent.json");
    let garbage = file("garbage.json", "{ \"ICD\": \0\u{1}");
    let empty = file("empty.json", "");
    let lost = file(
        "lost.json",
        r#"{ "file_format_version": "1.0.0", "ICD": { "library_path": "/nonexistent/driver.so", "api_version": "1.3.0" } }"#,
    );
    let itself = file(
        "itself.json",
        &format!(
            r#"{{ "file_format_version": "1.0.0", "ICD": {{ "library_path": "{}", "api_version": "1.3.0" }} }}"#,
            garbage.display()
        ),
    );
    for driver in [&missing, &garbage, &empty, &lost, &itself, &folder.path().to_owned()] {
        let said = answer(&[("VK_DRIVER_FILES", driver), ("VK_ICD_FILENAMES", driver)]);
        let known = ["no Vulkan driver is installed", "the Vulkan loader could not start"];
        assert!(known.iter().any(|k| said.contains(k)), "{}: {said}", driver.display());
    }
    // A loader that is none.
    file("libvulkan.so.1", "not a library");
    file("libvulkan.so", "not a library");
    let said = answer(&[("LD_LIBRARY_PATH", folder.path())]);
    assert!(said.contains("the Vulkan loader could not be loaded"), "{said}");
}
