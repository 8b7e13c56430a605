//! Where the prompt comes from: the command line, stdin, both, and what is easily taken for it.

mod support;

use std::io::{PipeWriter, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use support::{output, stderr, stdout, tiny_model, unicorn};

/// Shows what reached the model: this many words, each a token.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}";

struct Fixture {
    folder: tempfile::TempDir,
    model: PathBuf,
}

impl Fixture {
    fn new() -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        let model = tiny_model(folder.path(), Some(TEMPLATE));
        Fixture { folder, model }
    }

    /// `unicorn run` with a short answer.
    fn run(&self) -> Command {
        self.run_with(1, 2)
    }

    fn run_with(&self, threads: usize, tokens: usize) -> Command {
        let mut command = unicorn(self.folder.path());
        command.args(["run", "--device", "cpu", "--temp", "0"]);
        command.arg("--threads").arg(threads.to_string()).arg("-n").arg(tokens.to_string());
        command.arg("-m").arg(&self.model);
        command
    }

    fn with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut command = self.run();
        with_input(command.args(args), input)
    }

    /// Tokens of the prompt that the model read: one per byte here.
    fn prompt_tokens(out: &Output) -> usize {
        assert_eq!(out.status.code(), Some(0), "{}", stderr(out));
        let said = stderr(out);
        let (_, figures) = said.split_once("prompt: ").expect("figures");
        figures.split(' ').next().and_then(|n| n.parse().ok()).expect("a number")
    }
}

fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// A pipe that stays open while the writer lives.
fn held_open(command: &mut Command) -> PipeWriter {
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdin(reader).stdout(Stdio::piped()).stderr(Stdio::piped());
    writer
}

#[test]
fn text_on_stdin_is_appended_and_that_is_said() {
    let tiny = Fixture::new();
    let alone = Fixture::prompt_tokens(&output(tiny.run().arg("abc")));
    let both = tiny.with_input(&["abc"], b"some lines\n");
    assert!(stderr(&both).contains("11 bytes from stdin appended"), "{}", stderr(&both));
    assert!(stderr(&both).contains("--no-stdin"), "{}", stderr(&both));
    assert_eq!(Fixture::prompt_tokens(&both), alone + 2 + 11);
    let quiet = tiny.with_input(&["-q", "abc"], b"some lines\n");
    assert_eq!((quiet.status.code(), stderr(&quiet).as_str()), (Some(0), ""));
    let dash = tiny.with_input(&["-"], b"abc");
    assert_eq!(Fixture::prompt_tokens(&dash), alone, "- stands for stdin");
}

#[test]
fn stdin_that_is_left_alone_stays_for_others() {
    let tiny = Fixture::new();
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(b"second\nthird\n").unwrap();
    let mut command = tiny.run();
    command.args(["--no-stdin", "first"]).stdin(reader.try_clone().unwrap());
    let out = output(&mut command);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert!(!stderr(&out).contains("stdin"), "{}", stderr(&out));
    drop(writer);
    let mut rest = String::new();
    { reader }.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "second\nthird\n");
}

#[cfg(unix)]
#[test]
fn a_silent_pipe_does_not_block() {
    let tiny = Fixture::new();
    let mut command = tiny.run();
    let writer = held_open(command.arg("abc"));
    let out = command.spawn().unwrap().wait_with_output().unwrap();
    drop(writer);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert!(stderr(&out).contains("nothing came on stdin"), "{}", stderr(&out));
}

#[cfg(unix)]
#[test]
fn slow_text_is_waited_for_and_late_text_is_an_error() {
    let tiny = Fixture::new();
    let mut command = tiny.run();
    let mut writer = held_open(command.arg("abc"));
    let child = command.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    writer.write_all(b"slow").unwrap();
    drop(writer);
    let out = child.wait_with_output().unwrap();
    assert!(stderr(&out).contains("4 bytes from stdin appended"), "{}", stderr(&out));

    let mut command = tiny.run_with(1, 30_000);
    let mut writer = held_open(command.args(["--ctx", "40000", "abc"]));
    let mut child = command.spawn().unwrap();
    let mut said = child.stderr.take().unwrap();
    said.read_exact(&mut [0; "nothing came".len()]).unwrap();
    writer.write_all(b"late").unwrap();
    let out = child.wait_with_output().unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert_eq!(out.status.code(), Some(1), "{rest}");
    assert!(rest.contains("error: text came on stdin after the wait"), "{rest}");
}

#[cfg(unix)]
#[test]
fn text_that_was_asked_for_is_waited_for() {
    let tiny = Fixture::new();
    let mut command = tiny.run();
    let mut writer = held_open(command.args(["--stdin", "abc"]));
    let child = command.spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(3500));
    writer.write_all(b"very late").unwrap();
    drop(writer);
    let out = child.wait_with_output().unwrap();
    assert!(stderr(&out).contains("9 bytes from stdin appended"), "{}", stderr(&out));
}

#[test]
fn stdin_is_text() {
    let tiny = Fixture::new();
    let plain = Fixture::prompt_tokens(&tiny.with_input(&[], b"abc"));
    for input in [&b"\xef\xbb\xbfabc"[..], b"\xff\xfea\0b\0c\0", b"\xfe\xff\0a\0b\0c"] {
        assert_eq!(Fixture::prompt_tokens(&tiny.with_input(&[], input)), plain, "{input:?}");
    }
    let bad = tiny.with_input(&[], b"abc\xff");
    assert_eq!(bad.status.code(), Some(1));
    assert!(stderr(&bad).contains("0xff at offset 3"), "{}", stderr(&bad));
}

#[test]
fn a_prompt_may_begin_with_a_dash() {
    let tiny = Fixture::new();
    let tokens = |args: &[&str]| Fixture::prompt_tokens(&output(tiny.run().args(args)));
    let six = tokens(&["_ item"]);
    for args in [&["- item"][..], &["--", "- item"], &["--", "--item"], &["-5 + 3"], &["-20050"]] {
        assert_eq!(tokens(args), six, "{args:?}");
    }
    assert_eq!(tokens(&["--system", "- be brief", "hello"]), tokens(&["--system", "_ be brief", "hello"]));
    let typo = output(tiny.run().args(["--temprature", "0"]));
    assert_eq!(typo.status.code(), Some(2));
    assert!(stderr(&typo).contains("--temprature"), "{}", stderr(&typo));
}

#[test]
fn a_models_name_in_the_prompts_place_is_the_model() {
    let tiny = Fixture::new();
    let run = |args: &[&str], input: &[u8]| {
        let mut command = unicorn(tiny.folder.path());
        command.args(["run", "--threads", "1", "--device", "cpu", "-n", "2"]);
        with_input(command.args(args), input)
    };
    let model = tiny.model.to_str().unwrap();
    let out = run(&[model], b"abc");
    assert_eq!(Fixture::prompt_tokens(&out), "user: abc".len());
    assert!(stderr(&out).contains("taken as the model"), "{}", stderr(&out));
    assert_eq!(Fixture::prompt_tokens(&run(&[model, "abc"], b"")), "user: abc".len());
    // A known name that is not here is still the model meant, not the default one's prompt.
    let known = run(&["gemma3-270m", "hello"], b"");
    assert_eq!(known.status.code(), Some(1));
    assert!(
        stderr(&known).contains("gemma3-270m") && stderr(&known).contains("offline"),
        "{}",
        stderr(&known)
    );
    // With -m it is a prompt, and so it is as a part of one.
    let prompt = output(tiny.run().arg("gemma3-270m"));
    assert_eq!(Fixture::prompt_tokens(&prompt), "user: gemma3-270m".len());
    for (args, part) in [(&["what", "is"][..], "in quotes"), (&["nowhere.gguf"], "nowhere.gguf")] {
        let out = run(args, b"");
        assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
        assert!(stderr(&out).contains(part), "{}", stderr(&out));
    }
}

#[test]
fn a_chat_template_can_be_brought() {
    let tiny = Fixture::new();
    let file = tiny.folder.path().join("own.jinja");
    let run = |file: &str| output(tiny.run().args(["--chat-template", file, "abc"]));
    let path = file.to_str().unwrap();
    std::fs::write(&file, "<<{{ messages[0].content }}>>").unwrap();
    assert_eq!(Fixture::prompt_tokens(&run(path)), "<<abc>>".len());
    for (text, part) in [(&b"{% for %}"[..], "line 1"), (b"\xff", "UTF-8")] {
        std::fs::write(&file, text).unwrap();
        let out = run(path);
        assert_eq!(out.status.code(), Some(1));
        assert!(stderr(&out).contains("own.jinja") && stderr(&out).contains(part), "{}", stderr(&out));
    }
    let missing = run("no-such.jinja");
    assert!(stderr(&missing).contains("no-such.jinja: No such file"), "{}", stderr(&missing));
    let stdin = run("-");
    assert_eq!(stdin.status.code(), Some(2));
    let raw = output(tiny.run().args(["--raw", "--chat-template", path, "hello"]));
    assert_eq!(raw.status.code(), Some(2));
}

#[test]
fn a_system_without_threads_is_no_reason_to_panic() {
    let tiny = Fixture::new();
    // A stack that no system has: every thread that is started fails.
    let starved = |command: &mut Command, input: &[u8]| {
        with_input(command.env("RUST_MIN_STACK", (1u64 << 46).to_string()), input)
    };
    for args in [&["abc"][..], &["-"], &["--raw", "abc"]] {
        let out = starved(tiny.run().args(args), b"text");
        assert_eq!(out.status.code(), Some(0), "{args:?}: {}", stderr(&out));
        assert!(stderr(&out).contains("answer: 2 tokens"), "{}", stderr(&out));
    }
    // Threads that cannot be had are done without.
    let several = starved(tiny.run_with(2, 2).arg("abc"), b"");
    assert_eq!(several.status.code(), Some(0), "{}", stderr(&several));
    assert!(stderr(&several).contains("answer: 2 tokens"), "{}", stderr(&several));
}

#[cfg(unix)]
#[test]
fn whatever_the_environment_holds_nothing_panics() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let tiny = Fixture::new();
    let bad = OsStr::from_bytes(b"\xff\x1b[2J");
    let mut command = tiny.run();
    for name in ["UNICORN_MODEL", "XDG_STATE_HOME", "XDG_CACHE_HOME", "NO_COLOR", "TERM", "COLUMNS", "LINES"]
    {
        command.env(name, bad);
    }
    let out = output(command.arg("hello"));
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let help = output(unicorn(tiny.folder.path()).args(["run", "--help"]).env("COLUMNS", "0"));
    assert_eq!(help.status.code(), Some(0));
    for args in
        [&["run".as_ref(), bad][..], &["run".as_ref(), "--device".as_ref(), "x\x1b[2J".as_ref()], &[bad]]
    {
        let out = output(unicorn(tiny.folder.path()).args(args));
        assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
        assert!(stderr(&out).starts_with("error: ") && !stderr(&out).contains('\x1b'), "{}", stderr(&out));
    }
    // As `nohup` leaves stdin.
    let write_only = std::fs::File::create(tiny.folder.path().join("nohup")).unwrap();
    let out = output(tiny.run().arg("hello").stdin(write_only));
    assert_eq!((out.status.code(), stdout(&out).is_empty()), (Some(0), false), "{}", stderr(&out));
}
