//! The /commands of a chat.

/// One line of `/help`: command, arguments, what it does.
pub const HELP: [(&str, &str, &str); 11] = [
    ("/help", "", "this list"),
    ("/clear", "", "forget the conversation; the system prompt stays"),
    ("/system", "[TEXT]", "show the system prompt, or set it; \"\" takes it away"),
    (
        "/set",
        "[NAME VALUE]",
        "show the settings, or set one: temp, top-k, top-p, min-p, seed, max-tokens, ...",
    ),
    ("/retry", "", "answer the last question again"),
    ("/undo", "", "take back the last question and its answer"),
    ("/stats", "", "speed, context and memory so far"),
    ("/save", "FILE", "write the conversation to a JSON file"),
    ("/load", "FILE", "continue a saved conversation"),
    ("/bye", "", "leave; so do exit, quit, bye, :q, Ctrl-D, and Ctrl-C twice"),
    ("\"\"\"", "", "begins and ends a message of several lines; so does \\ at the end of a line"),
];

/// A line typed at the prompt.
#[derive(Clone, PartialEq, Debug)]
pub enum Entry {
    /// Nothing to do.
    Empty,
    /// A message to the model.
    Message(String),
    /// A command.
    Command(Command),
    /// Something that begins like a command and is none; says why.
    Mistake(String),
}

/// A parsed command.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    Help,
    Clear,
    System(Option<String>),
    Set(Option<(String, String)>),
    Retry,
    Undo,
    Stats,
    Save(String),
    Load(String),
    Bye,
}

/// Understands what was typed. A line beginning with one slash and a letter is a command; a path such as `/etc/fstab says …` is
/// a mistake rather than a message, so that a mistyped command is never sent to the model. The words with which other programs are
/// left count as commands too. A leading space sends any line to the model.
pub fn parse(typed: &str) -> Entry {
    match typed.trim_end().to_ascii_lowercase().as_str() {
        "exit" | "quit" | "bye" | "exit()" | "quit()" | ":q" | ":q!" | ":wq" => {
            return Entry::Command(Command::Bye);
        }
        "?" | "help" => return Entry::Command(Command::Help),
        _ => {}
    }
    if !typed.starts_with('/') {
        let message = message(typed);
        return if message.trim().is_empty() { Entry::Empty } else { Entry::Message(message) };
    }
    let (name, rest) = typed.split_once(char::is_whitespace).unwrap_or((typed, ""));
    let rest = rest.trim();
    let argument = (!rest.is_empty()).then(|| message(rest));
    let required = |make: fn(String) -> Command| match argument.clone() {
        Some(value) => Entry::Command(make(value)),
        None => Entry::Mistake(format!("{name} needs an argument; /help lists the commands")),
    };
    let command = match name {
        "/help" | "/?" => Command::Help,
        "/clear" | "/reset" | "/new" => Command::Clear,
        "/system" if rest == "\"\"" => Command::System(Some(String::new())),
        "/system" => Command::System(argument),
        "/set" => match rest.split_once(char::is_whitespace) {
            Some((key, value)) => Command::Set(Some((key.to_owned(), value.trim().to_owned()))),
            None if rest.is_empty() => Command::Set(None),
            None => return Entry::Mistake(format!("/set {rest} needs a value")),
        },
        "/retry" => Command::Retry,
        "/undo" => Command::Undo,
        "/stats" => Command::Stats,
        "/save" => return required(Command::Save),
        "/load" => return required(Command::Load),
        "/bye" | "/exit" | "/quit" | "/q" => Command::Bye,
        _ => {
            return Entry::Mistake(format!(
                "no command {name}; /help lists them, a leading space sends the line as it is"
            ));
        }
    };
    Entry::Command(command)
}

/// True when the typed text is whole: no open `"""`, no trailing backslash.
pub fn is_complete(typed: &str) -> bool {
    let body = body(typed);
    match body.strip_prefix(FENCE) {
        Some(inner) => inner.trim_end().ends_with(FENCE),
        None => !typed.ends_with('\\'),
    }
}

const FENCE: &str = "\"\"\"";

/// What follows `/system`, else all of it: fences may stand there too.
fn body(typed: &str) -> &str {
    let typed = typed.trim_start();
    typed.strip_prefix("/system").map(str::trim_start).unwrap_or(typed)
}

/// The text meant: fences taken off, a backslash before a line's end taken as the line's end alone.
fn message(typed: &str) -> String {
    let trimmed = typed.trim();
    let fenced = trimmed.strip_prefix(FENCE).and_then(|inner| inner.strip_suffix(FENCE));
    match fenced {
        Some(inner) => inner.trim_matches('\n').to_owned(),
        None => trimmed.replace("\\\n", "\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(parse("  "), Entry::Empty);
        assert_eq!(parse("hello "), Entry::Message("hello".into()));
        assert_eq!(parse(" /etc is a folder"), Entry::Message("/etc is a folder".into()));
        assert_eq!(parse("\"\"\"\na\n  b\n\"\"\""), Entry::Message("a\n  b".into()));
        assert_eq!(parse("a \\\nb"), Entry::Message("a \nb".into()));
        assert_eq!(parse("\"\"\"\"\"\""), Entry::Empty);
    }

    #[test]
    fn commands() {
        assert_eq!(parse("/help"), Entry::Command(Command::Help));
        assert_eq!(parse("/system"), Entry::Command(Command::System(None)));
        assert_eq!(parse("/system  Be brief. "), Entry::Command(Command::System(Some("Be brief.".into()))));
        assert_eq!(parse("/system \"\""), Entry::Command(Command::System(Some(String::new()))));
        let set = Command::Set(Some(("temp".into(), "0.5".into())));
        assert_eq!(parse("/set temp  0.5"), Entry::Command(set));
        assert_eq!(parse("/save a b.json"), Entry::Command(Command::Save("a b.json".into())));
        assert!(matches!(parse("/save"), Entry::Mistake(_)));
        assert!(matches!(parse("/set temp"), Entry::Mistake(_)));
        assert!(matches!(parse("/hlep"), Entry::Mistake(_)));
    }

    #[test]
    fn the_usual_words_leave_and_help() {
        for line in ["exit", "quit", "bye", ":q", "EXIT ", "quit()", "/exit"] {
            assert_eq!(parse(line), Entry::Command(Command::Bye), "{line}");
        }
        assert_eq!(parse("?"), Entry::Command(Command::Help));
        for line in [" exit", "exit the loop", "? what", "bye bye", "\"\"\"exit\"\"\""] {
            assert!(matches!(parse(line), Entry::Message(_)), "{line}");
        }
    }

    #[test]
    fn completeness() {
        assert!(is_complete("hello"));
        assert!(!is_complete("hello \\"));
        assert!(!is_complete("\"\"\"a"));
        assert!(!is_complete("\"\"\""));
        assert!(is_complete("\"\"\"a\nb\"\"\""));
        assert!(!is_complete("/system \"\"\"a"));
        assert!(is_complete("say \"\"\" please"));
    }
}
