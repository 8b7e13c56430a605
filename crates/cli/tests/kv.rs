//! What outlives a run: chats that go on, and pages of the KV cache on disk.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use support::{named_tiny_model, output, stderr, stdout, unicorn};

const TEMPLATE: &str =
    "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}<|turn|>a: ";

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Fixture {
        Fixture::with(Some(TEMPLATE))
    }

    fn with(template: Option<&str>) -> Fixture {
        let folder = tempfile::tempdir().expect("a folder");
        named_tiny_model(folder.path(), "Tiny", template);
        Fixture { folder }
    }

    fn home(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self) -> Command {
        let mut command = unicorn(self.home());
        let model = self.home().join("tiny.gguf");
        command.arg("run").arg("-m").arg(model).args(["--threads", "1", "--device", "cpu", "--temp", "0"]);
        command
    }

    /// An answer of four tokens.
    fn run(&self, args: &[&str]) -> Output {
        output(self.command().args(["-n", "4"]).args(args))
    }

    fn kv(&self, args: &[&str]) -> Output {
        output(unicorn(self.home()).arg("kv").args(args))
    }

    fn json(&self) -> Vec<serde_json::Value> {
        let out = self.kv(&["--json"]);
        assert!(out.status.success(), "{}", stderr(&out));
        serde_json::from_str(&stdout(&out)).expect("a list")
    }

    fn chats(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.home().join(".local/state/unicorn/chats"));
        entries.into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    }
}

/// The messages of a chat that was kept, each with its role.
fn contents(chat: &Path) -> Vec<String> {
    let chat: serde_json::Value = serde_json::from_slice(&std::fs::read(chat).unwrap()).unwrap();
    let text = |m: &serde_json::Value| format!("{} {}", m["role"], m["content"]).replace('"', "");
    chat["messages"].as_array().unwrap().iter().map(text).collect()
}

#[test]
fn an_answer_is_continued_with_what_was_said_before() {
    let tiny = Fixture::new();
    assert!(tiny.run(&["--system", "Be brief.", "the first question"]).status.success());
    let [chat] = &tiny.chats()[..] else { panic!("one chat") };
    let before = contents(chat);
    assert_eq!(
        (before.len(), &before[0][..], &before[1][..]),
        (3, "system Be brief.", "user the first question")
    );

    let on = tiny.run(&["--continue", "and the second"]);
    let said = stderr(&on);
    assert!(said.contains("continuing after 1 question, just now: the first question"), "{said}");
    let after = contents(&tiny.chats()[0]);
    assert_eq!((tiny.chats().len(), after.len()), (1, 5));
    assert_eq!(after[..3], before[..]);
    assert_eq!(after[3], "user and the second");
    assert!(after[4].starts_with("assistant "));
    assert_eq!(after[4].trim_start_matches("assistant ").is_empty(), stdout(&on).trim().is_empty());

    // What was said before is in the prompt: one token a byte, and each turn has some more.
    let alone = tiny.run(&["--kv-disk", "0", "--system", "Be brief.", "and the second"]);
    let prompt = |out: &Output| -> usize {
        let said = stderr(out);
        let line = said.lines().find(|line| line.starts_with("prompt: ")).expect("figures").to_owned();
        line["prompt: ".len()..].split(' ').next().unwrap().replace(',', "").parse().unwrap()
    };
    assert!(prompt(&on) > prompt(&alone) + "the first question".len(), "{said}");

    // Another answer is another chat, and the one that is continued next.
    tiny.run(&["another"]);
    assert_eq!(tiny.chats().len(), 2);
    let said = stderr(&tiny.run(&["--continue", "-q", "more"]));
    assert!(said.is_empty(), "{said}");
    assert!(tiny.chats().iter().any(|chat| contents(chat).contains(&"user more".to_owned())));
}

#[cfg(unix)]
#[test]
fn chats_and_pages_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let tiny = Fixture::new();
    tiny.run(&["hello"]);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&tiny.chats()[0]), 0o600);
    let pages = PathBuf::from(tiny.json()[0]["folder"].as_str().unwrap());
    assert_eq!((mode(&pages), mode(pages.parent().unwrap())), (0o700, 0o700));
}

#[test]
fn nothing_is_kept_that_nobody_expects() {
    let tiny = Fixture::new();
    assert!(tiny.run(&["--kv-disk", "0", "hello"]).status.success());
    assert!(tiny.chats().is_empty() && tiny.json().is_empty());
    tiny.run(&["--raw", "hello"]);
    let mut command = tiny.command();
    command.args(["-n", "4"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through a pipe").unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    assert!(tiny.chats().is_empty(), "{:?}", tiny.chats());
    // There is nothing to go on with, then.
    let out = tiny.run(&["--continue", "more"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("no chat with this model to continue in"), "{}", stderr(&out));

    // Text through a pipe may be part of a chat that was asked for.
    tiny.run(&["first"]);
    let mut command = tiny.command();
    command.args(["-n", "4", "--continue", "--stdin", "and"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through a pipe").unwrap();
    assert!(child.wait().unwrap().success());
    let kept = contents(&tiny.chats()[0]);
    assert_eq!((kept.len(), &kept[0][..], &kept[2][..]), (4, "user first", "user and\\n\\nthrough a pipe"));
}

#[test]
fn a_chat_belongs_to_its_model() {
    let tiny = Fixture::new();
    tiny.run(&["hello"]);
    let other = Fixture::with(Some("{{ messages[-1].content }}"));
    let mut command = unicorn(tiny.home());
    command.arg("run").arg("-m").arg(other.home().join("tiny.gguf")).args([
        "--device",
        "cpu",
        "--continue",
        "x",
    ]);
    let out = output(&mut command);
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("no chat with this model"), "{}", stderr(&out));
    let base = Fixture::with(None);
    let out = base.run(&["--continue", "x"]);
    assert!(stderr(&out).contains("no chat template"), "{}", stderr(&out));
    let out = tiny.run(&["--continue", "--raw", "x"]);
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn a_damaged_chat_is_named_and_left_alone() {
    let tiny = Fixture::new();
    tiny.run(&["hello"]);
    let chat = tiny.chats().remove(0);
    std::fs::write(&chat, "{").unwrap();
    let out = tiny.run(&["--continue", "x"]);
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains(chat.to_str().unwrap()), "{}", stderr(&out));
    assert_eq!(std::fs::read(&chat).unwrap(), b"{");
}

#[test]
fn pages_are_listed_and_removed() {
    let tiny = Fixture::new();
    let out = tiny.kv(&[]);
    let root = tiny.home().join(".cache/unicorn/kv");
    assert_eq!(stdout(&out), format!("nothing is kept in {}\n", root.display()));
    tiny.run(&["hello"]);
    tiny.run(&["--kv", "f32", "hello"]);
    let mut listed = tiny.json();
    listed.sort_by_key(|line| line["kv"].to_string());
    assert_eq!(listed.len(), 2, "{listed:?}");
    for (line, kv) in listed.iter().zip(["F16", "F32"]) {
        assert_eq!(
            (&line["model"], &line["kv"], &line["devices"][0]),
            (&"Tiny".into(), &kv.into(), &"cpu".into())
        );
        assert_eq!(line["file"], tiny.home().join("tiny.gguf").to_str().unwrap());
        assert!(line["folder"].as_str().unwrap().starts_with(root.to_str().unwrap()));
        assert!(line["pages"].is_u64() && line["bytes"].is_u64() && line["tokens"].is_u64());
    }
    let text = stdout(&tiny.kv(&[]));
    assert!(text.contains("Tiny") && text.contains(root.to_str().unwrap()), "{text}");

    let out = tiny.kv(&["rm", "nothing-like-it"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("nothing-like-it"), "{}", stderr(&out));
    assert_eq!(tiny.kv(&["rm"]).status.code(), Some(2));
    let folder = listed[0]["folder"].as_str().unwrap();
    assert!(tiny.kv(&["rm", folder]).status.success());
    assert_eq!(tiny.json().len(), 1);
    let out = tiny.kv(&["rm", "--json", "tiny"]);
    let removed: serde_json::Value = serde_json::from_str(&stdout(&out)).expect("JSON");
    assert!(removed["pages"].is_u64() && removed["bytes"].is_u64());
    assert!(tiny.json().is_empty());
    tiny.run(&["hello"]);
    assert!(tiny.kv(&["rm", "--all"]).status.success() && tiny.json().is_empty());
    // The chats are no pages.
    assert!(!tiny.chats().is_empty());
}

#[test]
fn the_environment_names_the_folder_and_trouble_with_it_costs_no_answer() {
    let tiny = Fixture::new();
    let elsewhere = tiny.home().join("pages");
    let run = |folder: &str| output(tiny.command().args(["-n", "4", "hello"]).env("UNICORN_KV_DIR", folder));
    let there = run("~/pages");
    assert!(there.status.success() && elsewhere.join("lock").exists(), "{}", stderr(&there));
    assert!(!tiny.home().join(".cache/unicorn/kv").exists());

    std::fs::write(tiny.home().join("file"), "mine").unwrap();
    let cannot = run("~/file");
    assert!(cannot.status.success(), "{}", stderr(&cannot));
    assert_eq!(stdout(&cannot), stdout(&there));
    let said = stderr(&cannot);
    assert_eq!(
        said.lines().filter(|line| line.starts_with("warning: KV pages are not kept")).count(),
        1,
        "{said}"
    );

    let wrong = run("$NO_SUCH_VARIABLE/pages");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stderr(&wrong).contains("UNICORN_KV_DIR"), "{}", stderr(&wrong));
    let size = tiny.run(&["--kv-disk", "8", "hello"]);
    assert_eq!(size.status.code(), Some(2));
    assert!(stderr(&size).contains("`8` has no unit"), "{}", stderr(&size));
}

/// A prompt of several pages, one token a byte.
fn long() -> String {
    (0..60).map(|i| format!("line {i} of a long story\n")).collect()
}

#[test]
fn what_was_read_once_is_not_read_again_and_the_answer_is_the_same() {
    let tiny = Fixture::new();
    let long = long();
    let cold = tiny.run(&["--kv-disk", "0", &long]);
    let first = tiny.run(&[&long]);
    let listed = tiny.json();
    let pages = listed[0]["pages"].as_u64().unwrap();
    assert!(pages > 10 && listed[0]["bytes"].as_u64().unwrap() > 0, "{listed:?}\n{}", stderr(&first));
    assert_eq!(listed[0]["tokens"].as_u64().unwrap() % pages, 0);
    let second = tiny.run(&["-v", &long]);
    let said = stderr(&second);
    assert!(
        said.contains("from disk") && said.contains(&format!("KV pages on disk {pages} of this model")),
        "{said}"
    );
    let on = tiny.run(&["--continue", "and then?"]);
    assert!(stderr(&on).contains("from disk"), "{}", stderr(&on));
    assert_eq!((stdout(&first), stdout(&second)), (stdout(&cold), stdout(&cold)));
    // Another type of page is none of these.
    assert!(!stderr(&tiny.run(&["--kv", "f32", &long])).contains("from disk"));
    // Nor is anything of use once it is removed.
    assert!(tiny.kv(&["rm", "--all"]).status.success());
    assert!(!stderr(&tiny.run(&["--kv-disk", "0", &long])).contains("from disk"));
    let again = tiny.run(&[&long]);
    assert!(!stderr(&again).contains("from disk"), "{}", stderr(&again));
    assert_eq!(stdout(&again), stdout(&cold));
}

/// A template may tell the date. A chat of another day goes on with the one that it began with, else nothing of it could be used again.
#[test]
fn the_date_of_a_chat_is_that_of_its_beginning() {
    let template =
        "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}<|turn|>";
    let tiny = Fixture::with(Some(template));
    tiny.run(&[&long()]);
    let chat = tiny.chats().remove(0);
    let on = |began: &str| {
        let mut stored: serde_json::Value = serde_json::from_slice(&std::fs::read(&chat).unwrap()).unwrap();
        stored["began"] = began.parse::<u64>().map_or_else(|_| stored["began"].clone(), Into::into);
        std::fs::write(&chat, stored.to_string()).unwrap();
        stderr(&tiny.run(&["--continue", "and?"]))
    };
    assert!(on("as it was").contains("from disk"));
    let other_day = on("86400");
    assert!(other_day.contains("continuing") && !other_day.contains("from disk"), "{other_day}");
    assert!(on("86400").contains("from disk"));
}

#[test]
fn damaged_pages_cost_time_and_no_answer() {
    let tiny = Fixture::new();
    let long = long();
    let whole = tiny.run(&[&long]);
    let folder = PathBuf::from(tiny.json()[0]["folder"].as_str().unwrap());
    let mut damaged = 0;
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.file_name().to_string_lossy().ends_with(".page") {
            let mut bytes = std::fs::read(entry.path()).unwrap();
            let at = 200 + damaged % 100;
            bytes[at] ^= 1;
            std::fs::write(entry.path(), bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 10);
    let out = tiny.run(&[&long]);
    assert_eq!(stdout(&out), stdout(&whole));
    let said = stderr(&out);
    assert_eq!(said.lines().filter(|line| line.contains("warning: a saved page")).count(), 1, "{said}");
}

#[test]
fn a_bound_on_disk_holds_over_runs() {
    let tiny = Fixture::new();
    for n in 0..6 {
        let out = tiny.run(&["--kv-disk", "100kB", &format!("{n} {}", long())]);
        assert!(out.status.success(), "{}", stderr(&out));
    }
    let bytes = tiny.json()[0]["bytes"].as_u64().unwrap();
    assert!((1..=100_000).contains(&bytes), "{bytes}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_chat_goes_on_another_day() {
    use support::terminal::Terminal;
    let tiny = Fixture::new();
    let chat = |args: &[&str]| {
        let mut command = tiny.command();
        command.args(["-n", "2"]).args(args);
        Terminal::start(command)
    };
    let mut first = chat(&[]);
    first.line("what is rain");
    first.wait_for("answer: 2 tokens");
    first.line("and snow");
    first.wait_for("answer: 2 tokens");
    // What has an answer is kept at once, whatever ends the chat.
    let kept = || contents(&tiny.chats()[0]).contains(&"user and snow".to_owned());
    let begun = std::time::Instant::now();
    while !kept() {
        assert!(begun.elapsed().as_secs() < 20, "the second answer is not kept");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    first.line("/clear");
    first.wait_for("forgotten");
    first.line("/bye");
    assert_eq!(first.end().0, Some(0));

    let mut second = chat(&["--continue"]);
    second.wait_for("continuing after 2 questions, just now: and snow");
    second.line("/undo");
    second.wait_for("taken back: and snow");
    second.line("and ice");
    second.wait_for("answer: 2 tokens");
    second.line("/clear");
    second.line("something else");
    second.wait_for("answer: 2 tokens");
    second.line("/bye");
    assert_eq!(second.end().0, Some(0));
    let chats: Vec<Vec<String>> = tiny.chats().iter().map(|chat| contents(chat)).collect();
    assert_eq!(chats.len(), 2, "{chats:?}");
    let questions = |chat: &[String]| chat.iter().filter(|m| m.starts_with("user ")).count();
    let went_on = chats.iter().find(|chat| chat.contains(&"user and ice".to_owned())).unwrap();
    assert!(questions(went_on) == 2 && went_on.contains(&"user what is rain".to_owned()));
    assert_eq!(chats.iter().map(|chat| questions(chat)).sum::<usize>(), 3);
}
