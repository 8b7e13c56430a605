//! What Ollama's requests to answer have in common.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use serde_json::{Map, Value, json};

use super::answer::{Form, Kind};
use super::keep::{Kept, keep_alive};
use crate::app::App;
use crate::error::ApiError;
use crate::fields::{Fields, kind};
use crate::http::client::Client;
use crate::job::Ask;
use crate::model::ModelEntry;
use crate::registry::{InUse, Standing};
use crate::sampling;
use crate::shape::{Format, Shape, Tool, check_tools, function_tool};

/// Most likely tokens that may be asked for.
const TOP_LOGPROBS_MAX: usize = 20;

/// The model's name in a request: `model`, or `name` as old programs write.
pub(super) fn name<'a>(fields: &Fields<'a>) -> Result<&'a str, ApiError> {
    let name = fields.str("model")?.or(fields.str("name")?);
    fields.required("model", name.filter(|name| !name.is_empty()))
}

/// The entry of a model. An unknown one is told in Ollama's words, which programs look for.
pub(super) fn find(app: &App, name: &str) -> Result<ModelEntry, ApiError> {
    app.registry.find(name).map_err(|error| match error.status {
        StatusCode::NOT_FOUND => {
            let known: Vec<String> = app.registry.entries().into_iter().map(|entry| entry.id).collect();
            let message = format!("model '{name}' not found; there is: {}", known.join(", "));
            ApiError { message, ..error }
        }
        _ => error,
    })
}

/// A request whose model is loaded.
pub(super) struct Opened {
    /// The model's name as the request has it.
    pub name: String,
    pub model: InUse,
    pub kept: Kept,
    pub started: Instant,
    /// What the request waited for its model.
    pub load: Duration,
}

/// Finds the model of a request and loads it where it must be.
pub(super) async fn open(app: &Arc<App>, fields: &Fields<'_>) -> Result<Opened, ApiError> {
    let started = Instant::now();
    let name = name(fields)?.to_owned();
    let stay = keep_alive(fields)?;
    let model = app.registry.get(&find(app, &name)?.id, true).await?;
    let kept = Kept::new(app, &model, stay);
    Ok(Opened { name, model, kept, started, load: started.elapsed() })
}

/// How a request begins.
pub(super) enum Begun {
    /// It had no content: this is all.
    Done(Value),
    Opened(Opened, Form),
}

/// Opens the model of a request. One without content only loads its model, or unloads it where it is to be kept for no time.
pub(super) async fn begin(
    app: &Arc<App>,
    fields: &Fields<'_>,
    kind: Kind,
    has_content: bool,
) -> Result<Begun, ApiError> {
    if !has_content && let Some(name) = unload(app, fields).await? {
        return Ok(Begun::Done(Form::of_name(kind, name).nothing("unload")));
    }
    let opened = open(app, fields).await?;
    let form = Form::of(kind, &opened.name, opened.started, opened.load);
    match has_content {
        true => Ok(Begun::Opened(opened, form)),
        false => Ok(Begun::Done(form.nothing("load"))),
    }
}

/// Unloads the model of a request without content that is to keep it for no time; its name comes back then.
async fn unload<'a>(app: &Arc<App>, fields: &Fields<'a>) -> Result<Option<&'a str>, ApiError> {
    if keep_alive(fields)? != Some(Duration::ZERO) {
        return Ok(None);
    }
    let name = name(fields)?;
    let id = find(app, name)?.id;
    if !app.registry.unload(&id).await && app.registry.standing(&id) == Standing::Ready {
        // Someone has it: it goes when that is done.
        let model = app.registry.get(&id, false).await?;
        app.registry.let_go(model, Duration::ZERO);
    }
    Ok(Some(name))
}

/// The `options` of a request.
pub(super) fn options<'a>(fields: &Fields<'a>) -> Result<Fields<'a>, ApiError> {
    static NONE: LazyLock<Value> = LazyLock::new(|| json!({}));
    match fields.object("options")? {
        Some(options) => Ok(options),
        None => Fields::at(&NONE, "options"),
    }
}

/// True unless a request wants its answer in one piece.
pub(super) fn streams(fields: &Fields<'_>) -> Result<bool, ApiError> {
    Ok(fields.bool("stream")?.unwrap_or(true))
}

/// `format` and `tools`.
pub(super) fn shape(fields: &Fields<'_>) -> Result<Shape, ApiError> {
    let format = match fields.get("format") {
        None => Format::Text,
        Some(Value::String(word)) => match word.as_str() {
            "" => Format::Text,
            "json" => Format::JsonObject,
            _ => return Err(fields.wrong("format", "must be \"json\" or a JSON schema")),
        },
        Some(schema @ Value::Object(_)) => Format::Schema(schema.clone()),
        Some(other) => {
            let message = format!("must be \"json\" or a JSON schema, not {}", kind(other));
            return Err(fields.wrong("format", message));
        }
    };
    Ok(Shape { format, format_field: "format", tools: tools(fields)?, ..Shape::default() })
}

fn tools(fields: &Fields<'_>) -> Result<Vec<Tool>, ApiError> {
    let tool = |(i, value): (usize, &Value)| {
        let tool = Fields::at(value, format!("tools[{i}]"))?;
        tool.choice("type", &["function"])?;
        function_tool(&tool.required("function", tool.object("function")?)?, "parameters")
    };
    let list = fields.list("tools")?.unwrap_or_default();
    let tools: Vec<Tool> = list.iter().enumerate().map(tool).collect::<Result<_, _>>()?;
    check_tools(&tools, "tools")?;
    Ok(tools)
}

/// What `think` tells the template: whether to think, and how hard.
pub(super) fn thinking(fields: &Fields<'_>, model: &InUse) -> Result<Map<String, Value>, ApiError> {
    let kwargs = think(fields)?;
    let wanted = kwargs.get("enable_thinking").is_some_and(|wanted| *wanted == json!(true));
    if wanted && !model.dialect.reasons() {
        // Ollama's words.
        let message = format!("\"{}\" does not support thinking", model.id);
        return Err(ApiError { param: Some("think".into()), ..ApiError::bad_request(message) });
    }
    Ok(kwargs)
}

fn think(fields: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let (wanted, effort) = match fields.get("think") {
        None => return Ok(Map::new()),
        Some(Value::Bool(wanted)) => (*wanted, None),
        Some(_) => {
            match fields.choice("think", &["low", "medium", "high", "max", "none", "true", "false"])? {
                Some("none" | "false") => (false, None),
                Some("true") | None => (true, None),
                Some(effort) => (true, Some(effort)),
            }
        }
    };
    let mut kwargs = Map::new();
    kwargs.insert("enable_thinking".into(), wanted.into());
    if let Some(effort) = effort {
        kwargs.insert("reasoning_effort".into(), effort.into());
    }
    Ok(kwargs)
}

/// What is asked for, with a prompt that came from `prompt_field`.
pub(super) fn ask(
    fields: &Fields<'_>,
    model: &InUse,
    client: Client,
    prompt: Vec<u32>,
    prompt_field: &'static str,
) -> Result<Ask, ApiError> {
    let options = options(fields)?;
    let tokenizer = &model.text.tokenizer;
    let sampling = sampling::options(&options, &model.text.recommended, tokenizer, sampling::fresh_seed());
    let sampling = sampling.map_err(|error| beneath("options", error))?;
    let max_tokens = max_tokens(&options, prompt.len())?;
    let top = fields.count("top_logprobs", 0, TOP_LOGPROBS_MAX)?;
    let scores = fields.bool("logprobs")?.unwrap_or(false);
    Ok(Ask {
        prompt,
        sampling,
        max_tokens,
        stops: sampling::stops(&options, "stop")?,
        ignore_eos: false,
        logprobs: scores.then(|| top.unwrap_or(0)),
        prompt_logprobs: None,
        priority: 0,
        client,
        prompt_field,
    })
}

/// Names the object that a wrong field is in, where that is not told yet.
fn beneath(path: &str, error: ApiError) -> ApiError {
    match &error.param {
        Some(param) if !param.starts_with(path) => {
            let message = error.message.strip_prefix(&format!("{param}: ")).unwrap_or(&error.message);
            ApiError::param(format!("{path}.{param}"), message)
        }
        _ => error,
    }
}

/// `num_predict`, within `num_ctx`. What is not positive means no bound but the context's, as Ollama has it.
///
/// Ollama drops messages until a prompt fits into `num_ctx`. Here a prompt that is longer is an error, and a `num_ctx` above the server's
/// context has no effect.
fn max_tokens(options: &Fields<'_>, prompt: usize) -> Result<Option<usize>, ApiError> {
    let predict = options.integer("num_predict", -2, i64::MAX >> 12)?.filter(|n| *n > 0).map(|n| n as usize);
    let Some(context) = options.count("num_ctx", 0, usize::MAX >> 12)?.filter(|n| *n > 0) else {
        return Ok(predict);
    };
    if prompt >= context {
        let message = format!(
            "the prompt has {prompt} tokens, which {context} cannot hold with an answer; nothing is cut off here"
        );
        return Err(ApiError { code: Some("context_length_exceeded"), ..options.wrong("num_ctx", message) });
    }
    Ok(Some(predict.unwrap_or(usize::MAX).min(context - prompt)))
}

/// Errors where there are images: those models read text.
pub(super) fn no_images(fields: &Fields<'_>) -> Result<(), ApiError> {
    match fields.list("images")?.is_some_and(|images| !images.is_empty()) {
        true => Err(fields.wrong("images", "this model reads text only")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(body: &Value) -> Fields<'_> {
        Fields::of(body).unwrap()
    }

    #[test]
    fn the_context_of_a_request_bounds_its_answer_and_never_its_prompt() {
        let most = |body: Value, prompt| max_tokens(&Fields::at(&body, "options").unwrap(), prompt);
        assert_eq!(most(json!({}), 100), Ok(None));
        for unbounded in [-2, -1, 0] {
            assert_eq!(most(json!({"num_predict": unbounded}), 100), Ok(None));
        }
        assert_eq!(most(json!({"num_predict": 7, "num_ctx": 0}), 100), Ok(Some(7)));
        assert_eq!(most(json!({"num_predict": 7, "num_ctx": 104}), 100), Ok(Some(4)));
        assert_eq!(most(json!({"num_ctx": 4096}), 100), Ok(Some(3996)));
        let error = most(json!({"num_ctx": 100}), 100).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("options.num_ctx"));
        assert!(error.message.contains("100 tokens"), "{}", error.message);
        assert_eq!(
            most(json!({"num_predict": -3}), 1).unwrap_err().param.as_deref(),
            Some("options.num_predict")
        );
    }

    #[test]
    fn formats_and_tools_are_read() {
        let schema = json!({"type": "object"});
        for (format, expected) in [
            (Value::Null, Format::Text),
            (json!(""), Format::Text),
            (json!("json"), Format::JsonObject),
            (schema.clone(), Format::Schema(schema)),
        ] {
            assert_eq!(shape(&fields(&json!({"format": format}))).unwrap().format, expected);
        }
        for format in [json!("xml"), json!(7), json!([])] {
            let error = shape(&fields(&json!({"format": format}))).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("format"));
        }
        let body =
            json!({"tools": [{"function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}]});
        let names: Vec<String> = shape(&fields(&body)).unwrap().tools.into_iter().map(|t| t.name).collect();
        assert_eq!(names, ["f", "g"]);
        let body = json!({"tools": [{"type": "web"}]});
        assert_eq!(shape(&fields(&body)).unwrap_err().param.as_deref(), Some("tools[0].type"));
    }

    #[test]
    fn thinking_is_told_to_the_template() {
        let read = |value: Value| think(&fields(&json!({"think": value}))).map(Value::Object);
        assert_eq!(read(Value::Null), Ok(json!({})));
        assert_eq!(read(json!(false)), Ok(json!({"enable_thinking": false})));
        assert_eq!(read(json!("low")), Ok(json!({"enable_thinking": true, "reasoning_effort": "low"})));
        assert_eq!(read(json!("hard")).unwrap_err().param.as_deref(), Some("think"));
        assert_eq!(read(json!(3)).unwrap_err().param.as_deref(), Some("think"));
    }

    #[test]
    fn names_may_have_their_old_field() {
        assert_eq!(name(&fields(&json!({"name": "a"}))), Ok("a"));
        assert_eq!(name(&fields(&json!({"name": "a", "model": "b"}))), Ok("b"));
        assert_eq!(name(&fields(&json!({"model": ""}))).unwrap_err().param.as_deref(), Some("model"));
    }

    #[test]
    fn errors_of_options_name_them() {
        let of = |param: &str| beneath("options", ApiError::param(param, "is bad"));
        assert_eq!(of("repeat_penalty").message, "options.repeat_penalty: is bad");
        assert_eq!(of("options.top_p").message, "options.top_p: is bad");
    }
}
