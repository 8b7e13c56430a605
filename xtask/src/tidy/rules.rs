//! Rules about single files.

use std::collections::HashSet;

use super::finding::Finding;
use super::source::Source;

const LINES_MAX: usize = 800;

/// Crates whose kernels and drivers need `unsafe`.
const UNSAFE_CRATES: &[&str] = &["crates/cpu/", "crates/vulkan/", "crates/npu/"];

/// The binary: it alone reads environment and arguments. xtask is a developer's tool.
const ENVIRONMENT_CRATES: &[&str] = &["crates/cli/", "xtask/"];

/// Where the binary's own output is written: one layer, which keeps what files say from steering the terminal. Nothing else under
/// `crates/` prints.
const PRINTING_FILES: &[&str] = &["crates/cli/src/output.rs"];

/// How many `unwrap` and `expect` a file may have outside tests, and why none of them can fail.
const PANICS_ALLOWED: &[(&str, usize, &str)] = &[];

/// Folders of the machine that something was written on, put together here so that this file is clean.
const MACHINE_PATHS: &[&str] = &[concat!("/", "work/"), concat!("/", "home/"), concat!("/", "root/")];

/// Files that the rules read.
pub fn is_text(path: &str) -> bool {
    let extensions = ["rs", "py", "comp", "glsl", "md", "toml", "sh", "yml", "yaml"];
    let extension = path.rsplit('/').next().unwrap_or(path).rsplit_once('.').map_or("", |(_, e)| e);
    !path.starts_with("tests/data/") && (extensions.contains(&extension) || path.starts_with(".ci/"))
}

/// Files that by their place or name are test code.
pub fn is_test_path(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let in_folder = |folder: &str| path.contains(&format!("/{folder}/"));
    path.starts_with("fuzz/")
        || in_folder("tests")
        || in_folder("benches")
        || in_folder("examples")
        || name == "tests.rs"
        || name.ends_with("_tests.rs")
}

/// Applies every rule to one file.
pub fn check(source: &Source<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    length(source, &mut findings);
    machine_paths(source, &mut findings);
    if source.path.ends_with(".rs") {
        leftovers(source, &mut findings);
        environment(source, &mut findings);
        unsafe_code(source, &mut findings);
        panics(source, &mut findings);
        printing(source, &mut findings);
    }
    findings
}

fn finding(source: &Source<'_>, line: usize, message: impl Into<String>) -> Finding {
    Finding { file: source.path.to_string(), line, message: message.into() }
}

fn length(source: &Source<'_>, findings: &mut Vec<Finding>) {
    let counted = ["rs", "comp", "glsl", "py"].iter().any(|e| source.path.ends_with(&format!(".{e}")));
    if counted && source.raw.len() > LINES_MAX {
        findings.push(finding(
            source,
            0,
            format!("{} lines, more than {LINES_MAX}: split the file", source.raw.len()),
        ));
    }
}

fn machine_paths(source: &Source<'_>, findings: &mut Vec<Finding>) {
    for (i, line) in source.raw.iter().enumerate() {
        if let Some(path) = MACHINE_PATHS.iter().find(|path| line.contains(*path)) {
            findings.push(finding(source, i + 1, format!("names a folder of one machine ({path})")));
        }
    }
}

/// Marks of unfinished work, in tests too.
fn leftovers(source: &Source<'_>, findings: &mut Vec<Finding>) {
    for (i, (code, raw)) in source.code.iter().zip(&source.raw).enumerate() {
        for name in ["todo!", "unimplemented!", "dbg!"] {
            if has_word(code, name) {
                findings.push(finding(source, i + 1, format!("{name} is left")));
            }
        }
        if has_word(code, "#[ignore") {
            findings.push(finding(source, i + 1, "a test that never runs (#[ignore])"));
        }
        let comment = raw.len() > code.trim_end().len() && raw.contains("//");
        if comment
            && !code.contains("FIXME")
            && raw.split("//").skip(1).any(|c| has_word(c, concat!("FIX", "ME")))
        {
            findings.push(finding(source, i + 1, concat!("FIX", "ME is left")));
        }
    }
}

fn environment(source: &Source<'_>, findings: &mut Vec<Finding>) {
    if ENVIRONMENT_CRATES.iter().any(|c| source.path.starts_with(c)) {
        return;
    }
    for (line, code, _) in source.production() {
        let reads = ["env::var", "env::vars", "env::var_os", "env::args", "env::args_os", "option_env!"];
        if reads.iter().any(|name| has_word(code, name)) {
            findings.push(finding(source, line, "reads the environment; only crates/cli may"));
        }
    }
}

fn printing(source: &Source<'_>, findings: &mut Vec<Finding>) {
    if !source.path.starts_with("crates/") || PRINTING_FILES.contains(&source.path) {
        return;
    }
    for (line, code, _) in source.production() {
        let prints = ["println!", "print!", "eprintln!", "eprint!", "io::stdout", "io::stderr"];
        // Whether a stream is a terminal may be asked anywhere.
        let asks = code.contains("is_terminal");
        if let Some(name) = prints.iter().find(|name| has_word(code, name) && !asks) {
            findings.push(finding(source, line, format!("{name} outside the output layer of crates/cli")));
        }
    }
}

fn unsafe_code(source: &Source<'_>, findings: &mut Vec<Finding>) {
    let may = UNSAFE_CRATES.iter().any(|c| source.path.starts_with(c));
    let justified_as_a_whole = may && has_common_reason(source);
    for (i, code) in source.code.iter().enumerate() {
        if !has_word(code, "unsafe") {
            continue;
        }
        if !may {
            findings.push(finding(source, i + 1, "unsafe outside the device crates"));
            continue;
        }
        // What an `unsafe fn` asks of its callers is told in its documentation, where clippy looks after it.
        let claims = ["unsafe {", "unsafe impl"].iter().any(|form| has_word(code, form))
            || code.trim_end().ends_with("unsafe");
        if claims && !justified_as_a_whole && !is_justified(source, i) {
            findings.push(finding(source, i + 1, "unsafe without a SAFETY line above it"));
        }
    }
}

/// True where the file gives one reason for all its blocks, beside the `allow` that silences clippy's own rule: files
/// of one-line wrappers around intrinsics.
fn has_common_reason(source: &Source<'_>) -> bool {
    let silenced = "allow(clippy::undocumented_unsafe_blocks)";
    source.raw.iter().position(|line| line.contains(silenced)).is_some_and(|at| {
        let near = at.saturating_sub(2)..(at + 2).min(source.raw.len());
        source.raw[near].iter().any(|line| line.contains("SAFETY"))
    })
}

/// True where the line, or the comments and attributes right above its statement, say why it is safe.
fn is_justified(source: &Source<'_>, at: usize) -> bool {
    if source.raw[at].contains("SAFETY") {
        return true;
    }
    for line in source.raw[..at].iter().rev() {
        let text = line.trim();
        if text.contains("SAFETY") {
            return true;
        }
        // A statement may begin some lines above its `unsafe`; where one ends, the search does.
        let ends = text.is_empty() || text.ends_with([';', '}', '{']);
        if ends && !text.starts_with("//") && !text.starts_with("#[") {
            return false;
        }
    }
    false
}

/// `unwrap` and `expect` on lines that are not for tests alone. An `expect` without a message right behind it is a method of
/// the crate's own.
fn panic_lines<'s>(source: &'s Source<'_>) -> impl Iterator<Item = usize> + 's {
    let expects = |code: &str, raw: &str| {
        code.contains(".expect(") && [".expect(\"", ".expect(&"].iter().any(|e| raw.contains(e))
    };
    let panics = move |code: &str, raw: &str| code.contains(".unwrap()") || expects(code, raw);
    source.production().filter(move |(_, code, raw)| panics(code, raw)).map(|(line, ..)| line)
}

fn allowance(path: &str) -> usize {
    PANICS_ALLOWED.iter().find(|(file, ..)| *file == path).map_or(0, |(_, count, _)| *count)
}

fn panics(source: &Source<'_>, findings: &mut Vec<Finding>) {
    let lines: Vec<usize> = panic_lines(source).collect();
    let allowed = allowance(source.path);
    if lines.len() > allowed {
        let message = format!("unwrap or expect outside tests ({} of {allowed} allowed)", lines.len());
        findings.extend(lines.into_iter().map(|line| finding(source, line, message.clone())));
    }
}

/// Allowances that are no longer needed are taken back.
pub fn unused_allowances(sources: &[(String, String)], test_files: &HashSet<String>) -> Vec<Finding> {
    let used = |path: &str| {
        let (_, text) = sources.iter().find(|(p, _)| p == path)?;
        Some(panic_lines(&Source::new(path, text, test_files.contains(path))).count())
    };
    let unused = PANICS_ALLOWED.iter().filter(|(path, count, _)| used(path) != Some(*count));
    unused
        .map(|(path, count, _)| Finding {
            file: path.to_string(),
            line: 0,
            message: format!(
                "{count} panics are allowed, {} are there: correct the table",
                used(path).unwrap_or(0)
            ),
        })
        .collect()
}

/// True where `word` stands by itself, not as part of a longer name.
fn has_word(text: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        let open_end = word.ends_with(part);
        !(before.is_some_and(part) || open_end && after.is_some_and(part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<(usize, String)> {
        let source = Source::new(path, text, is_test_path(path));
        check(&source).into_iter().map(|f| (f.line, f.message)).collect()
    }

    fn lines(path: &str, text: &str) -> Vec<usize> {
        found(path, text).into_iter().map(|(line, _)| line).collect()
    }

    const LIB: &str = "crates/engine/src/a.rs";

    #[test]
    fn long_files() {
        assert_eq!(lines(LIB, &"x\n".repeat(801)), [0]);
        assert_eq!(lines(LIB, &"x\n".repeat(800)), [0; 0]);
        assert_eq!(lines("docs/a.md", &"x\n".repeat(801)), [0; 0]);
    }

    #[test]
    fn folders_of_one_machine() {
        let text = concat!("fine\n\"/", "work/x\"\n# /", "home/me\n");
        assert_eq!(lines("a.md", text), [2, 3]);
        assert_eq!(lines("a.md", "work/x and /proc/self\n"), [0; 0]);
    }

    #[test]
    fn leftovers_are_found_in_tests_too() {
        assert_eq!(
            lines("crates/a/tests/t.rs", "todo!()\n unimplemented!()\n dbg!(x)\n#[ignore]\n"),
            [1, 2, 3, 4]
        );
        assert_eq!(lines(LIB, concat!("// FIX", "ME: later\nlet x = 1; // a FIX", "ME\n")), [1, 2]);
        assert_eq!(lines(LIB, "// todo!()\nlet s = \"dbg!\";\nmy_todo!();\n"), [0; 0]);
    }

    #[test]
    fn environment_reads() {
        let text = "let a = std::env::var(\"X\");\nlet b = env::args();\n";
        assert_eq!(lines(LIB, text), [1, 2]);
        assert_eq!(lines("crates/cli/src/main.rs", text), [0; 0]);
        assert_eq!(lines(LIB, &format!("#[cfg(test)]\nmod t {{\n{text}}}\n")), [0; 0]);
        assert_eq!(lines(LIB, "env!(\"CARGO_PKG_VERSION\");\nstd::env::consts::OS;\n"), [0; 0]);
    }

    #[test]
    fn only_the_output_layer_prints() {
        let text = "println!();\neprint!(\"x\");\nwriteln!(io::stdout(), \"x\")?;\nlet t = io::stderr().is_terminal();\nlet o = Out::stdout();\n";
        assert_eq!(lines("crates/cli/src/chat/mod.rs", text), [1, 2, 3]);
        assert_eq!(lines(LIB, text), [1, 2, 3]);
        for fine in [PRINTING_FILES[0], "crates/cli/tests/usage.rs", "xtask/src/main.rs"] {
            assert_eq!(lines(fine, text), [0; 0], "{fine}");
        }
        assert_eq!(lines(LIB, "// println!()\nlet x = \"print!\";\nmy_println!();\n"), [0; 0]);
    }

    #[test]
    fn unsafe_code_stays_where_it_belongs() {
        assert_eq!(lines(LIB, "// SAFETY: none\nunsafe { f() }\n"), [2]);
        let cpu = "crates/cpu/src/a.rs";
        assert_eq!(lines(cpu, "let x = 1;\nunsafe { f() }\n"), [2]);
        assert_eq!(lines(cpu, "// SAFETY: len checked\nunsafe { f() }\n"), [0; 0]);
        assert_eq!(lines(cpu, "// SAFETY: len checked\nlet x =\n    unsafe { f() };\n"), [0; 0]);
        assert_eq!(lines(cpu, "// SAFETY: of a\na();\nunsafe { f() }\n"), [3]);
        assert_eq!(lines(cpu, "unsafe impl Send for A {}\n"), [1]);
        assert_eq!(lines(cpu, "/// # Safety\n/// Needs AVX2.\n#[inline]\npub unsafe fn f() {}\n"), [0; 0]);
        let allow = "#![allow(clippy::undocumented_unsafe_blocks)]";
        assert_eq!(lines(cpu, &format!("{allow} // SAFETY: of all\n\nunsafe {{ f() }}\n")), [0; 0]);
        assert_eq!(lines(cpu, &format!("{allow}\n\n\nunsafe {{ f() }}\n")), [4]);
        assert_eq!(lines(cpu, "#![deny(unsafe_op_in_unsafe_fn)]\n// unsafe\n"), [0; 0]);
    }

    #[test]
    fn panics_outside_tests() {
        assert_eq!(lines(LIB, "a.unwrap();\nb.expect(\"c\");\nd.unwrap_or(1);\ne.expect(f)?;\n"), [1, 2]);
        assert_eq!(lines(LIB, "#[cfg(test)]\nmod t {\n    fn a() { b.unwrap(); }\n}\n"), [0; 0]);
        assert_eq!(lines("crates/a/tests/t.rs", "a.unwrap();\n"), [0; 0]);
    }

    #[test]
    fn allowances_have_reasons() {
        assert!(PANICS_ALLOWED.iter().all(|(_, count, reason)| *count > 0 && !reason.is_empty()));
    }

    #[test]
    fn text_files() {
        for path in ["a/b.rs", "ARCHITECTURE.md", ".ci/run", "x.comp"] {
            assert!(is_text(path), "{path}");
        }
        for path in ["tests/data/x.md", "a.gguf", "LICENSE-MIT"] {
            assert!(!is_text(path), "{path}");
        }
    }
}
