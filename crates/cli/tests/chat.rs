//! Chats at a terminal: what ends them, what does not, and what is shown.
#![cfg(target_os = "linux")]

mod support;

use std::process::Command;

use support::terminal::Terminal;
use support::{named_tiny_model, output, stdout, unicorn};

const TEMPLATE: &str =
    "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}<|turn|>a: ";
const STRICT: &str = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role here') }}\
    {% endif %}{{ m.content }}{% endfor %}";

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new(name: &str, template: Option<&str>) -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        named_tiny_model(folder.path(), name, template);
        Fixture { folder }
    }

    fn command(&self, name: &str) -> Command {
        let mut command = unicorn(self.folder.path());
        let model = self.folder.path().join("tiny.gguf");
        command.arg(name).arg("-m").arg(model).args(["--threads", "1", "--device", "cpu"]);
        command
    }

    fn chat(&self, args: &[&str]) -> Terminal {
        let mut command = self.command("run");
        command.args(args);
        Terminal::start(command)
    }
}

#[test]
fn a_template_that_refuses_a_message_does_not_end_the_chat() {
    let tiny = Fixture::new("Tiny", Some(STRICT));
    let mut chat = tiny.chat(&["-n", "2"]);
    chat.line("the first question");
    chat.wait_for("answer: 2 tokens");
    // Whether the system prompt is refused or put elsewhere, the chat goes on.
    chat.line("/system Be brief.");
    chat.line("the second question");
    chat.line("/system \"\"");
    chat.wait_for("no system prompt any more");
    chat.line("/load no-such-file.json");
    chat.wait_for("no-such-file.json");
    chat.line("the third question");
    chat.wait_for("answer: 2 tokens");
    chat.line("/undo");
    chat.wait_for("taken back: the third question");
    chat.line("/bye");
    assert_eq!(chat.end().0, Some(0));
}

#[test]
fn a_template_that_fails_takes_only_its_message() {
    let fails = "{% if messages[-1].content == 'bad' %}{{ raise_exception('not this one') }}{% endif %}\
        {% for m in messages %}{{ m.content }}{% endfor %}";
    let tiny = Fixture::new("Tiny", Some(fails));
    let mut chat = tiny.chat(&["-n", "2"]);
    chat.line("good");
    chat.wait_for("answer: 2 tokens");
    chat.line("bad");
    chat.wait_for("error: ");
    chat.wait_for("not this one");
    chat.wait_for("/clear");
    chat.line("/retry");
    chat.wait_for("answer: 2 tokens");
    chat.line("/undo");
    chat.wait_for("taken back: good");
    chat.line("/undo");
    chat.wait_for("nothing to take back");
    chat.line("exit");
    assert_eq!(chat.end().0, Some(0));
}

#[test]
fn a_message_that_is_too_long_takes_nothing_with_it() {
    let tiny = Fixture::new("Tiny", Some(TEMPLATE));
    let mut chat = tiny.chat(&["--ctx", "64", "-n", "2"]);
    chat.line("short");
    chat.wait_for("answer: 2 tokens");
    chat.line(&"long ".repeat(40));
    chat.wait_for("the context holds 64");
    chat.wait_for("make room");
    // The answer before stays, too, when it cannot be given anew.
    chat.line(&format!("/system {}", "long ".repeat(40)));
    chat.line("/retry");
    chat.wait_for("the context holds 64");
    chat.line("/undo");
    chat.wait_for("taken back: short");
    chat.line("quit");
    assert_eq!(chat.end().0, Some(0));
}

#[test]
fn ctrl_c_drops_a_line_and_leaves_when_pressed_twice() {
    let tiny = Fixture::new("Tiny", Some(TEMPLATE));
    let mut chat = tiny.chat(&["-n", "2"]);
    for _ in 0..2 {
        chat.wait_for("or /help");
        chat.press("half a line");
        chat.wait_for("line");
        chat.press("\x03");
    }
    chat.wait_for("or /help");
    chat.press("\x03");
    chat.wait_for("press Ctrl-C again");
    // What comes between makes the next press a first one again.
    chat.line("?");
    chat.wait_for("/retry");
    chat.wait_for("or /help");
    chat.press("\x03");
    chat.wait_for("press Ctrl-C again");
    chat.wait_for("or /help");
    chat.press("\x03");
    let (code, seen) = chat.end();
    assert_eq!(code, Some(0));
    assert!(!seen.contains("answer:"), "a dropped line was sent:\n{seen}");
}

#[test]
fn ctrl_c_stops_an_answer_and_keeps_the_chat() {
    let tiny = Fixture::new("Tiny", Some(TEMPLATE));
    let mut chat = tiny.chat(&["--ctx", "200000"]);
    chat.line("hello");
    chat.wait_for_answer(64);
    // The terminal is not the one that controls the process, so it sends no signal by itself.
    let kill = Command::new("kill").args(["-INT", &chat.id().to_string()]).status().unwrap();
    assert!(kill.success());
    chat.wait_for("interrupted");
    chat.line(":q");
    assert_eq!(chat.end().0, Some(0));
}

#[test]
fn a_terminal_that_goes_away_ends_the_chat() {
    let tiny = Fixture::new("Tiny", Some(TEMPLATE));
    let mut chat = tiny.chat(&["--ctx", "200000"]);
    chat.line("hello");
    chat.wait_for_answer(64);
    assert_eq!(chat.hang_up(), Some(1));
}

#[test]
fn a_paste_cannot_steer_the_terminal() {
    let tiny = Fixture::new("Tiny", Some(TEMPLATE));
    let mut chat = tiny.chat(&["-n", "2"]);
    chat.wait_for("or /help");
    chat.press("\x1b[200~ab\x1b[31mcd\x07\u{202e}ef\x1b[201~");
    chat.wait_for("ef");
    chat.press("\r");
    chat.wait_for("answer: 2 tokens");
    chat.line("exit");
    let (code, seen) = chat.end();
    assert_eq!(code, Some(0));
    assert!(seen.contains("cd␇\u{fffd}ef"), "{seen:?}");
    assert!(!seen.contains("\x1b[31m") && !seen.contains(['\x07', '\u{202e}']), "{seen:?}");
}

#[test]
fn bytes_that_are_no_text_do_not_end_the_chat() {
    let tiny = Fixture::new("Tiny", Some(TEMPLATE));
    let mut chat = tiny.chat(&["-n", "2"]);
    chat.wait_for("or /help");
    chat.press_bytes(b"\xff");
    chat.wait_for("not UTF-8");
    chat.line("hello");
    chat.wait_for("answer: 2 tokens");
    chat.line("bye");
    assert_eq!(chat.end().0, Some(0));
}

/// What steers a terminal or reorders text, line ends and tabs aside.
fn control(text: &str) -> Vec<char> {
    let reorders = |c: &char| ('\u{202a}'..='\u{202e}').contains(c) || ('\u{2066}'..='\u{2069}').contains(c);
    text.chars().filter(|c| (c.is_control() && !"\r\n\t".contains(*c)) || reorders(c)).collect()
}

const EVIL: &str = "Evil\x1b[31mRED\x1b]0;title\x07\u{9b}2J\u{202e}\x7fx\nerror: forged";

#[test]
fn a_models_name_cannot_steer_the_terminal() {
    let tiny = Fixture::new(EVIL, Some(TEMPLATE));
    let mut chat = tiny.chat(&["-n", "2", "-v"]);
    chat.wait_for("on cpu");
    chat.line("exit");
    let (_, seen) = chat.end();
    let greeting = seen.split(">>> ").next().unwrap_or_default();
    assert!(greeting.contains("Evil\\u001b[31mRED") && greeting.contains("\\u009b2J"), "{greeting}");
    // The editor switches bracketed paste on and brackets what it draws.
    let ours = ["\x1b[?2004h", "\x1b[?2026h", "\x1b[K"];
    let greeting = ours.iter().fold(greeting.to_owned(), |text, own| text.replace(own, ""));
    assert_eq!(control(&greeting), [], "{greeting:?}");
    assert!(!greeting.lines().any(|line| line.starts_with("error:")), "{greeting}");

    let bench: &[&str] = &["-p", "4", "-n", "0", "-r", "1"];
    let long: &[&str] = &["--ctx", "2000000", "hi"];
    for (name, args) in [("bench", bench), ("run", &["-v", "-n", "1", "hi"]), ("run", long)] {
        let mut command = tiny.command(name);
        let out = output(command.args(args));
        let piped = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(control(&piped), [], "{piped:?}");
        let mut command = tiny.command(name);
        command.args(args);
        let (_, seen) = Terminal::start(command).end();
        assert_eq!(control(&seen), [], "{name} {args:?}: {seen:?}");
    }
    let table = stdout(&output(tiny.command("bench").args(bench)));
    assert!(table.contains("Evil\\u001b[31m") && control(&table).is_empty(), "{table:?}");
    let json = stdout(&output(tiny.command("bench").args(bench).args(["-o", "json"])));
    assert_eq!(control(&json), [], "{json:?}");
    let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(value[0]["model"], EVIL);
}

#[test]
fn an_answer_is_cleaned_on_a_terminal_and_exact_in_a_pipe() {
    let tiny = Fixture::new("Tiny", None);
    let args =
        ["-n", "300", "--seed", "3", "--temp", "2", "--top-k", "64", "--top-p", "1", "--min-p", "0", "-q"];
    let mut command = tiny.command("run");
    command.args(args).args(["--raw", "hello"]);
    let piped = output(&mut command).stdout;
    let exact = String::from_utf8_lossy(&piped).into_owned();
    assert!(control(&exact).contains(&'\x1b'), "the model writes control characters: {exact:?}");
    let (code, seen) = Terminal::start(command).end();
    assert_eq!(code, Some(0));
    assert!(seen.contains("\\u001b"), "{seen:?}");
    assert_eq!(control(&seen), [], "{seen:?}");
}
