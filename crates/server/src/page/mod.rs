//! The chat page: static files inside the binary, and the headers that go with them.
//!
//! Where there are keys the page wants one like every other route: the browser asks for it as for a password, and brings it with what the
//! page asks then. What it talks to is `/v1/models`,
//! `/v1/chat/completions`, `/props` and `/health`, by addresses relative to its own.

use std::sync::LazyLock;

use sha2::{Digest, Sha256};

/// A file of the page.
pub struct Asset {
    /// Value of `Content-Type`.
    pub content_type: &'static str,
    /// The file.
    pub body: &'static [u8],
    /// Value of `ETag`, with its quotes: a hash of the file.
    pub etag: String,
}

/// Value of `Content-Security-Policy` for every file of the page: its own scripts and styles, its own server, and nothing else. No
/// script can turn text into HTML (`require-trusted-types-for`).
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'; trusted-types 'none'";

/// Value of `Cache-Control`: a browser asks each time, and the tag answers, so that a new binary brings a new page.
pub const CACHE_CONTROL: &str = "no-cache";

/// Further headers for every file of the page, names in small letters.
pub const HEADERS: [(&str, &str); 4] = [
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

macro_rules! file {
    ($name:literal, $kind:expr) => {
        (concat!("/page/", $name), $kind, include_bytes!($name) as &[u8])
    };
}

const FILES: &[(&str, &str, &[u8])] = &[
    ("/", HTML, include_bytes!("index.html")),
    file!("style.css", CSS),
    file!("answer.css", CSS),
    file!("mark.svg", SVG),
    file!("theme.js", JS),
    file!("app.js", JS),
    file!("desk.js", JS),
    file!("run.js", JS),
    file!("api.js", JS),
    file!("tree.js", JS),
    file!("store.js", JS),
    file!("transfer.js", JS),
    file!("prefs.js", JS),
    file!("sidebar.js", JS),
    file!("transcript.js", JS),
    file!("message.js", JS),
    file!("composer.js", JS),
    file!("settings.js", JS),
    file!("dom.js", JS),
    file!("markdown.js", JS),
    file!("blocks.js", JS),
    file!("highlight.js", JS),
    file!("math.js", JS),
    file!("symbols.js", JS),
];

static ASSETS: LazyLock<Vec<(&str, Asset)>> = LazyLock::new(|| {
    let asset = |&(path, content_type, body): &(&'static str, &'static str, &'static [u8])| {
        let hash = Sha256::digest(body);
        let hex: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        (path, Asset { content_type, body, etag: format!("\"{hex}\"") })
    };
    FILES.iter().map(asset).collect()
});

/// The file at a path of the server, such as `/` or `/page/style.css`.
pub fn asset(path: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|(name, _)| *name == path).map(|(_, asset)| asset)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// Namespaces are names, not addresses that anything is loaded from.
    const NAMESPACES: [&str; 2] = ["http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML"];

    fn text(path: &str) -> &'static str {
        let asset = asset(path).unwrap_or_else(|| panic!("{path} is not served"));
        std::str::from_utf8(asset.body).unwrap()
    }

    /// What stands between `before` and the next `after`, each time.
    fn between<'t>(text: &'t str, before: &str, after: char) -> Vec<&'t str> {
        text.split(before).skip(1).filter_map(|rest| rest.split(after).next()).collect()
    }

    #[test]
    fn every_file_of_the_folder_is_served() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/page");
        let there: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "mod.rs")
            .map(|name| if name == "index.html" { "/".to_string() } else { format!("/page/{name}") })
            .collect();
        let served: BTreeSet<String> = FILES.iter().map(|(path, ..)| path.to_string()).collect();
        assert_eq!(there, served);
        assert!(asset("/page/../Cargo.toml").is_none() && asset("/page/").is_none() && asset("").is_none());
    }

    #[test]
    fn every_reference_leads_to_a_file() {
        let html = text("/");
        let mut references = between(html, "src=\"", '"');
        references
            .extend(between(html, "href=\"", '"').into_iter().filter(|address| !address.starts_with('#')));
        assert!(references.len() >= 5, "{references:?}");
        for reference in references {
            text(&format!("/{reference}"));
        }
        let mut imports = 0;
        for (path, ..) in FILES.iter().filter(|(path, ..)| path.ends_with(".js")) {
            for name in between(text(path), "from './", '\'') {
                text(&format!("/page/{name}"));
                imports += 1;
            }
        }
        assert!(imports > 20, "{imports} imports found");
    }

    #[test]
    fn nothing_comes_from_outside() {
        for (path, ..) in FILES {
            let mut text = text(path).to_string();
            for name in NAMESPACES {
                text = text.replace(name, "");
            }
            for scheme in ["http://", "https://", "url(", "@import", "\"//", "'//"] {
                assert!(!text.contains(scheme), "{path} names {scheme}");
            }
        }
    }

    #[test]
    fn the_policy_is_kept() {
        let html = text("/");
        for inline in ["<style", " style=", "javascript:", " onclick=", " onload=", "<base"] {
            assert!(!html.contains(inline), "index.html holds {inline}");
        }
        assert!(between(html, "<script", '>').iter().all(|tag| tag.contains("src=\"page/")));
        let forbidden = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "DOMParser",
        ];
        for (path, ..) in FILES.iter().filter(|(path, ..)| path.ends_with(".js")) {
            for name in forbidden {
                assert!(!text(path).contains(name), "{path} uses {name}");
            }
            assert!(text(path).lines().count() < 500, "{path} is too long");
        }
        for name in ["script-src 'self';", "connect-src 'self';", "default-src 'none';"] {
            assert!(CONTENT_SECURITY_POLICY.contains(name), "{name}");
        }
        assert!(!CONTENT_SECURITY_POLICY.contains("unsafe"));
        assert!(HEADERS.iter().all(|(name, value)| !name.is_empty() && !value.is_empty()));
        assert_eq!(CACHE_CONTROL, "no-cache");
    }

    #[test]
    fn tags_tell_files_apart() {
        let tags: BTreeSet<&str> = ASSETS.iter().map(|(_, asset)| asset.etag.as_str()).collect();
        assert_eq!(tags.len(), FILES.len());
        assert!(tags.iter().all(|tag| tag.len() == 34 && tag.starts_with('"') && tag.ends_with('"')));
        assert_eq!(asset("/").unwrap().content_type, HTML);
    }
}
