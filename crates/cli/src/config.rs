//! From what was typed and what the environment says to one resolved configuration. The only reader of the environment.

use std::ffi::OsString;
use std::path::PathBuf;

use unicorn_hub::{HubConfig, SettingError};

use crate::args::{GlobalArgs, ModelArgs};
use crate::devices::Faults;
use crate::environment::Environment;
use crate::term::Style;

/// The model used when none is named.
pub const DEFAULT_MODEL: &str = "smollm2-135m";

/// What every command needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// How much is said on stderr.
    pub messages: Messages,
    /// Colours on stderr.
    pub style: Style,
    /// Where models are kept and fetched from.
    pub hub: HubConfig,
    /// Model named by the environment.
    model: Option<String>,
    /// API keys that clients of a server have to bring; `None` where the environment does not speak of keys.
    pub api_keys: Option<Vec<String>>,
    /// What shall go wrong, to see what becomes of it.
    pub faults: Faults,
    /// Folder for state that outlives a run (history), if the system has one.
    pub state_dir: Option<PathBuf>,
    /// Folder for what can be found out again (measurements, selftests), if the system has one.
    pub cache_dir: Option<PathBuf>,
    /// Folder for pages of KV caches, if the system has one.
    pub kv_dir: Result<Option<PathBuf>, SettingError>,
}

/// How much is said on stderr.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Messages {
    /// Errors only.
    Errors,
    /// Figures, notices, progress.
    Normal,
    /// What was decided, too.
    Decisions,
}

impl Config {
    /// Reads the environment and the flags that all commands share.
    pub fn from_environment(global: &GlobalArgs) -> Config {
        Config::new(global, &Environment::of_process())
    }

    fn new<F: Fn(&str) -> Option<OsString>>(global: &GlobalArgs, environment: &Environment<F>) -> Config {
        let messages = match (global.quiet, global.verbose) {
            (true, _) => Messages::Errors,
            (_, true) => Messages::Decisions,
            _ => Messages::Normal,
        };
        // Nothing depends on these two folders, so one that cannot be told is none.
        let folder = |name: &str, below_home: &str| environment.base(name, below_home).ok().flatten();
        let cache_dir = folder("XDG_CACHE_HOME", ".cache").map(|cache| cache.join("unicorn"));
        let kv_dir = environment
            .path("UNICORN_KV_DIR")
            .map(|named| named.or_else(|| cache_dir.as_ref().map(|cache| cache.join("kv"))));
        let model = environment.text("UNICORN_MODEL").map(|name| match name.starts_with('~') {
            true => environment
                .path("UNICORN_MODEL")
                .ok()
                .flatten()
                .map_or(name, |path| path.display().to_string()),
            false => name,
        });
        Config {
            messages,
            style: Style::stderr(environment.text("NO_COLOR").is_some()),
            model,
            api_keys: environment.set("UNICORN_API_KEY").map(|text| keys(&text)),
            faults: Faults::parse(&environment.text("UNICORN_FAULTS").unwrap_or_default()),
            state_dir: folder("XDG_STATE_HOME", ".local/state"),
            cache_dir,
            kv_dir,
            hub: environment.hub(),
        }
    }

    /// The model where no flag names one: the environment's, else the default.
    pub fn default_model(&self) -> &str {
        self.model.as_deref().unwrap_or(DEFAULT_MODEL)
    }

    /// The model that the command line or the environment names.
    pub fn model_named<'a>(&'a self, args: &'a ModelArgs) -> Option<&'a str> {
        args.model.as_deref().or(self.model.as_deref())
    }

    /// The model meant: the flag, else the environment, else the default.
    pub fn model<'a>(&'a self, args: &'a ModelArgs) -> &'a str {
        args.model.as_deref().unwrap_or(self.default_model())
    }

    /// True unless `--quiet`.
    pub fn talks(&self) -> bool {
        self.messages >= Messages::Normal
    }

    /// True with `--verbose`.
    pub fn explains(&self) -> bool {
        self.messages >= Messages::Decisions
    }
}

/// The keys in a variable, separated by commas or lines; blanks around them do not count. There are no comments: a key may begin with `#`.
fn keys(text: &str) -> Vec<String> {
    let keys = text.split([',', '\n', '\r']).map(str::trim);
    keys.filter(|key| !key.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(quiet: bool, pairs: &'static [(&str, &str)]) -> Config {
        let variable = |name: &str| pairs.iter().find(|p| p.0 == name).map(|p| OsString::from(p.1));
        Config::new(&GlobalArgs { verbose: false, quiet }, &Environment::new(variable))
    }

    #[test]
    fn flag_then_environment_then_default() {
        let unset = ModelArgs { model: None };
        let flag = ModelArgs { model: Some("b".into()) };
        assert_eq!(config(false, &[]).model(&unset), DEFAULT_MODEL);
        assert_eq!(config(false, &[("UNICORN_MODEL", "a")]).model(&unset), "a");
        assert_eq!(config(false, &[("UNICORN_MODEL", "")]).model(&unset), DEFAULT_MODEL);
        assert_eq!(config(false, &[("UNICORN_MODEL", "a")]).model(&flag), "b");
        let home = config(false, &[("UNICORN_MODEL", "~/m.gguf"), ("HOME", "/u")]);
        assert_eq!(home.model(&unset), "/u/m.gguf");
    }

    #[test]
    fn keys_stand_in_lines_or_between_commas() {
        assert_eq!(keys(" a, b\n#c\n\nd e\r\n"), ["a", "b", "#c", "d e"]);
        assert_eq!(keys(" ,\n"), [] as [&str; 0]);
        // Set to nothing is not the same as not set: a server must not be open by mistake.
        assert_eq!(config(false, &[]).api_keys, None);
        assert_eq!(config(false, &[("UNICORN_API_KEY", "")]).api_keys, Some(Vec::new()));
        assert_eq!(config(false, &[("UNICORN_API_KEY", "#s3cret")]).api_keys, Some(vec!["#s3cret".into()]));
    }

    #[test]
    fn state_and_messages() {
        assert_eq!(config(false, &[("HOME", "/u")]).state_dir, Some(PathBuf::from("/u/.local/state")));
        assert_eq!(config(false, &[("XDG_STATE_HOME", "/s"), ("HOME", "/u")]).state_dir, Some("/s".into()));
        assert_eq!(config(false, &[("HOME", "/u")]).cache_dir, Some("/u/.cache/unicorn".into()));
        assert_eq!(config(false, &[("XDG_CACHE_HOME", "/c")]).cache_dir, Some("/c/unicorn".into()));
        assert_eq!(config(false, &[("XDG_CACHE_HOME", "")]).cache_dir, None);
        let kv = |pairs| config(false, pairs).kv_dir;
        assert_eq!(kv(&[("HOME", "/u")]), Ok(Some("/u/.cache/unicorn/kv".into())));
        assert_eq!(kv(&[("HOME", "/u"), ("UNICORN_KV_DIR", "~/pages")]), Ok(Some("/u/pages".into())));
        assert_eq!(kv(&[("XDG_CACHE_HOME", "")]), Ok(None));
        assert_eq!(kv(&[("UNICORN_KV_DIR", "$NONE/x")]).unwrap_err().origin, "UNICORN_KV_DIR");
        assert!(!config(true, &[]).talks() && config(false, &[]).talks() && !config(false, &[]).explains());
    }
}
