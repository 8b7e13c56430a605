//! `unicorn kv`.

mod args;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use serde::Serialize;
use unicorn_store::{Removed, StoredModel, list, remove};

pub use args::KvCommandArgs;
use args::{KvCommand, KvRmArgs};

use crate::clean::one_line;
use crate::config::Config;
use crate::devices::cache::ago;
use crate::exit::{Exit, usage};
use crate::kv_disk::{About, absolute};
use crate::output::Out;
use crate::table::{Align, Table};
use crate::units;

/// The pages of one model on its devices.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Line {
    model: String,
    file: String,
    kv: String,
    devices: Vec<String>,
    folder: String,
    pages: u64,
    bytes: u64,
    /// Tokens that they stand for, where that is known.
    tokens: Option<u64>,
    /// Seconds since 1970.
    last_used: Option<u64>,
}

impl Line {
    fn new(stored: StoredModel, root: &Path) -> Line {
        // What cannot be read says nothing; its pages can be removed all the same.
        let about: About = serde_json::from_str(&stored.about).unwrap_or_default();
        let seconds = |at: SystemTime| at.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs());
        Line {
            model: about.model,
            file: about.file,
            kv: about.kv,
            devices: about.devices,
            folder: root.join(&stored.folder).display().to_string(),
            pages: stored.pages,
            bytes: stored.bytes,
            tokens: about.page_tokens.and_then(|tokens| tokens.checked_mul(stored.pages)),
            last_used: stored.used.and_then(seconds),
        }
    }

    /// Whether a person may mean it by this.
    fn is_meant(&self, name: &str) -> bool {
        let file = Path::new(&self.file);
        let is = |part: Option<&std::ffi::OsStr>| part.is_some_and(|part| *part == *name);
        let folder = Path::new(&self.folder);
        self.model.eq_ignore_ascii_case(name)
            || [file, folder].iter().any(|path| *path == Path::new(name) || is(path.file_name()))
            || is(file.file_stem())
    }
}

/// Lists or removes.
pub fn run(args: &KvCommandArgs, config: &Config) -> anyhow::Result<Exit> {
    let root = match &config.kv_dir {
        Ok(Some(root)) => root,
        Ok(None) => anyhow::bail!("there is no cache folder; UNICORN_KV_DIR names one"),
        Err(error) => return Err(anyhow!("{error}")),
    };
    let lines: Vec<Line> = list(root)?.into_iter().map(|stored| Line::new(stored, root)).collect();
    match &args.what {
        None => show(&lines, root, args.json),
        Some(KvCommand::Rm(rm)) => take_out(rm, &lines, root, config),
    }
}

fn show(lines: &[Line], root: &Path, json: bool) -> anyhow::Result<Exit> {
    let text = if json { serde_json::to_string_pretty(lines)? + "\n" } else { render(lines, root) };
    let mut out = Out::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Exit::Done)
}

fn render(lines: &[Line], root: &Path) -> String {
    if lines.is_empty() {
        return format!("nothing is kept in {}\n", root.display());
    }
    let columns = ["model", "type", "device"].map(|name| (name, Align::Left));
    let figures = ["pages", "size", "tokens"].map(|name| (name, Align::Right));
    let [a, b, c] = columns;
    let [d, e, f] = figures;
    let mut table = Table::new([a, b, c, d, e, f, ("last used", Align::Left)]);
    for line in lines {
        let name = if line.model.is_empty() { &line.folder } else { &line.model };
        let used = line.last_used.map(|at| ago(UNIX_EPOCH + std::time::Duration::from_secs(at)));
        table.row([
            one_line(name),
            one_line(&line.kv),
            one_line(&line.devices.join(", ")),
            line.pages.to_string(),
            units::bytes(line.bytes),
            line.tokens.map(|tokens| tokens.to_string()).unwrap_or_default(),
            used.unwrap_or_else(|| "never".to_owned()),
        ]);
    }
    let total: u64 = lines.iter().map(|line| line.bytes).sum();
    format!("{}{} in {}\n", table.text(), units::bytes(total), root.display())
}

/// The file of a model that is named as `--model` names it, where it is here.
fn file_of(name: &str, config: &Config) -> Option<String> {
    let reference = unicorn_hub::resolve(name).ok()?;
    unicorn_hub::cached(&reference, &config.hub).map(|file| absolute(&file))
}

fn take_out(args: &KvRmArgs, lines: &[Line], root: &Path, config: &Config) -> anyhow::Result<Exit> {
    let mut meant: BTreeSet<usize> = if args.all { (0..lines.len()).collect() } else { BTreeSet::new() };
    for name in &args.models {
        let file = file_of(name, config);
        let is = |line: &&Line| line.is_meant(name) || file.as_ref().is_some_and(|file| *file == line.file);
        let found: Vec<usize> = (0..lines.len()).filter(|i| is(&&lines[*i])).collect();
        if found.is_empty() {
            return Err(usage(format!("no pages of {name} are kept; `unicorn kv` lists those that are")));
        }
        meant.extend(found);
    }
    let mut removed = Removed::default();
    for i in meant {
        let folder = Path::new(&lines[i].folder).file_name().and_then(|name| name.to_str());
        let one = remove(root, folder.unwrap_or_default())?;
        removed.pages += one.pages;
        removed.bytes += one.bytes;
    }
    let mut out = Out::stdout();
    match args.json {
        true => writeln!(out, "{}", serde_json::json!({"pages": removed.pages, "bytes": removed.bytes}))?,
        false => writeln!(out, "{} pages removed, {} freed", removed.pages, units::bytes(removed.bytes))?,
    }
    out.flush()?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(about: &str) -> Line {
        let stored = StoredModel {
            folder: "kv-00".into(),
            about: about.into(),
            pages: 3,
            bytes: 12_000,
            used: Some(UNIX_EPOCH + std::time::Duration::from_secs(5)),
        };
        Line::new(stored, Path::new("/c/kv"))
    }

    #[test]
    fn a_folder_that_does_not_tell_is_listed_all_the_same() {
        let known =
            line(r#"{"model":"Tiny","file":"/m/tiny.gguf","kv":"F16","page_tokens":64,"devices":["cpu"]}"#);
        assert_eq!((known.tokens, known.last_used), (Some(192), Some(5)));
        for name in ["tiny", "Tiny", "tiny.gguf", "/m/tiny.gguf", "kv-00", "/c/kv/kv-00"] {
            assert!(known.is_meant(name), "{name}");
        }
        for name in ["", "m", "tin", "gguf", "/m", "kv"] {
            assert!(!known.is_meant(name), "{name}");
        }
        for about in ["", "{", "[]", r#"{"model":7}"#, r#"{"page_tokens":18446744073709551615}"#] {
            let unknown = line(about);
            assert_eq!((unknown.pages, unknown.tokens), (3, None), "{about}");
            assert!(render(&[unknown], Path::new("/c/kv")).contains("kv-00"));
        }
        let text = render(&[known], Path::new("/c/kv"));
        assert!(text.contains("Tiny   F16   cpu         3  12.0 kB     192"), "{text}");
    }
}
