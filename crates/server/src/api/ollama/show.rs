//! `/api/show`: what a model is and can do.

use std::fmt::Write;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};
use unicorn_model::TextSide;

use super::request::{find, name};
use super::template::{can_think, source};
use super::time::of_seconds;
use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::http::body::JsonBody;
use crate::job::blocking;
use crate::model::ModelFacts;

/// What a model can do. Calls of tools are enforced whatever the template, so that every model that chats can call.
fn capabilities(encodes: bool, template: Option<&str>) -> Vec<&'static str> {
    if encodes {
        return vec!["embedding"];
    }
    let mut can = vec!["completion"];
    can.extend(template.map(|_| "tools"));
    can.extend(template.filter(|template| can_think(template)).map(|_| "thinking"));
    can
}

/// A number of parameters as Ollama writes it: 134.5M, 8.0B.
fn count(parameters: u64) -> String {
    let parameters = parameters as f64;
    match parameters {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n if n >= 1e6 => format!("{:.2}M", n / 1e6),
        n => format!("{:.2}K", n / 1e3),
    }
}

/// The `details` of a model; empty where nothing is known.
pub(super) fn details(facts: Option<&ModelFacts>) -> Value {
    let family = facts.map(|facts| facts.architecture.as_str()).unwrap_or_default();
    let families: Vec<&str> = facts.iter().map(|_| family).collect();
    json!({
        "parent_model": "", "format": "gguf", "family": family, "families": families,
        "parameter_size": facts.map(|facts| count(facts.parameters)).unwrap_or_default(),
        "quantization_level": facts.map(|facts| facts.quantization.as_str()).unwrap_or_default(),
    })
}

/// Ollama's `parameters`: what holds where a request says nothing, one a line.
fn parameters(text: &TextSide, context: usize) -> String {
    let mut lines = format!("num_ctx {context}\n");
    let recommended = &text.recommended;
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(lines, "{name} {value}");
        }
    };
    line("temperature", recommended.temperature.map(|n| n.to_string()));
    line("top_k", recommended.top_k.map(|n| n.to_string()));
    line("top_p", recommended.top_p.map(|n| n.to_string()));
    line("min_p", recommended.min_p.map(|n| n.to_string()));
    line("repeat_penalty", recommended.repeat_penalty.map(|n| n.to_string()));
    for token in &text.stop_tokens {
        line("stop", text.tokenizer.token_text(*token).map(|text| format!("{text:?}")));
    }
    lines
}

fn modelfile(id: &str, template: Option<&str>, parameters: &str) -> String {
    let mut file = format!("FROM {id}\n");
    if let Some(template) = template {
        let _ = writeln!(
            file,
            "# The template is Jinja, as the model's files have it.\nTEMPLATE \"\"\"{template}\"\"\""
        );
    }
    for line in parameters.lines() {
        let _ = writeln!(file, "PARAMETER {line}");
    }
    file
}

fn model_info(facts: &ModelFacts, text: &TextSide, context: usize) -> Value {
    let mut info = Map::new();
    let arch = &facts.architecture;
    info.insert("general.architecture".into(), arch.as_str().into());
    info.insert("general.name".into(), facts.name.as_str().into());
    info.insert("general.parameter_count".into(), facts.parameters.into());
    // What can be used here, which may be less than what the model was trained for.
    info.insert(format!("{arch}.context_length"), context.into());
    info.insert(format!("{arch}.embedding_length"), facts.width.into());
    info.insert(format!("{arch}.vocab_size"), text.tokenizer.vocab_size().into());
    info.into()
}

fn shown(id: &str, facts: &ModelFacts, text: &TextSide, context: usize) -> Value {
    let template = source(text);
    let parameters = parameters(text, context);
    json!({
        "modelfile": modelfile(id, template, &parameters),
        "parameters": parameters.trim_end(),
        "template": template.unwrap_or_default(),
        "details": details(Some(facts)),
        "model_info": model_info(facts, text, context),
        "capabilities": capabilities(facts.encodes, template),
        "modified_at": of_seconds(facts.created),
    })
}

/// Tells about a model. One that is not loaded is only looked at.
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let id = find(&app, name(&Fields::of(&body)?)?)?.id;
    let ready = app.registry.ready().into_iter().find(|model| model.id == id);
    if let Some(model) = ready {
        return Ok(Json(shown(&id, &model.facts(), &model.text, model.context)));
    }
    let registry = app.registry.clone();
    blocking(move || {
        let described = registry.describe(&id)?;
        Ok(Json(shown(&id, &described.facts, &described.text, described.context)))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_ollama_does() {
        let written = [134_515_008, 8_030_261_248, 268_098_176, 1_000_000_000, 45_000].map(count);
        assert_eq!(written, ["134.52M", "8.0B", "268.10M", "1.0B", "45.00K"]);
    }

    #[test]
    fn capabilities_follow_the_template() {
        assert_eq!(capabilities(true, None), ["embedding"]);
        assert_eq!(capabilities(false, None), ["completion"]);
        assert_eq!(capabilities(false, Some("{{ messages }}")), ["completion", "tools"]);
        let thinks = "{% if add_generation_prompt %}<think>{% endif %}";
        assert_eq!(capabilities(false, Some(thinks)), ["completion", "tools", "thinking"]);
    }

    #[test]
    fn the_model_file_can_be_read_back() {
        let file = modelfile("m", Some("{{ x }}"), "num_ctx 5\nstop \"<|end|>\"");
        assert!(file.starts_with("FROM m\n"), "{file}");
        assert!(file.contains("TEMPLATE \"\"\"{{ x }}\"\"\"\nPARAMETER num_ctx 5\nPARAMETER stop"), "{file}");
    }
}
