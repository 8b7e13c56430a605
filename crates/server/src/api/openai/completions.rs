//! `/v1/completions`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio_stream::StreamMap;
use unicorn_text::{Detokenizer, EncodeOptions, Tokenizer};

use super::usage::{FINGERPRINT, finish_reason, finite, timings, usage};
use crate::app::App;
use crate::error::{ApiError, Dialect};
use crate::fields::Fields;
use crate::generation::{Answer, Delta, End, Finish, Generation, Part, Scored, Spelled, collect_all};
use crate::http::body::JsonBody;
use crate::http::client::Client;
use crate::http::sse::{self, Events};
use crate::job::{self, Ask, fresh_id, now_seconds};
use crate::registry::InUse;
use crate::sampling;
use crate::shape::{Shape, ToolChoice};

/// Most likely tokens that may be asked for; OpenAI has 5, others more.
const LOGPROBS_MAX: usize = 20;
/// Prompts of one request.
const PROMPTS_MAX: usize = 128;

struct Form {
    id: String,
    created: u64,
    model: String,
    include_usage: bool,
    /// Answers to each prompt.
    choices: usize,
    /// Scores are asked for.
    scores: bool,
    /// What each answer begins with: its prompt, where that is wanted.
    echoes: Vec<Echo>,
}

/// The prompt of an answer that begins with it.
#[derive(Clone, Default)]
struct Echo {
    text: String,
    /// Its first token, which nothing stands before, where its tokens are scored.
    first: Option<Spelled>,
    /// It has no other.
    alone: bool,
    /// The last token of the prompt, also where that is not wanted.
    last: Option<u32>,
}

/// Where tokens stand in the text that is sent, in characters. A control token has no place in it.
struct Offsets {
    detokenizer: Detokenizer,
    at: usize,
}

impl Offsets {
    /// Of an answer with this beginning.
    fn new(echo: &Echo, tokenizer: &Tokenizer) -> Offsets {
        let after = if echo.first.is_some() { None } else { echo.last };
        Offsets { detokenizer: tokenizer.detokenizer_after(after, true), at: 0 }
    }

    fn next(&mut self, token: u32) -> usize {
        let at = self.at;
        self.at += self.detokenizer.push(token).chars().count();
        at
    }
}

impl Echo {
    /// The scores of the prompt, those of the answer behind them.
    fn logprobs(&self, prompt: &[Scored], tokens: &[Scored], offsets: &mut Offsets) -> Value {
        match &self.first {
            None => logprobs(tokens, offsets),
            Some(first) => {
                offsets.next(first.id);
                let mut all = logprobs(&[prompt, tokens].concat(), offsets);
                let front: [(&str, Value); 4] = [
                    ("tokens", first.text.as_str().into()),
                    ("token_logprobs", Value::Null),
                    ("top_logprobs", Value::Null),
                    ("text_offset", 0.into()),
                ];
                for (name, value) in front {
                    if let Some(Value::Array(list)) = all.get_mut(name) {
                        list.insert(0, value);
                    }
                }
                all
            }
        }
    }
}

/// Continues texts.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    client: Client,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let body = Arc::new(body);
    let fields = Fields::of(&body)?;
    let model = app.registry.get(fields.required("model", fields.str("model")?)?, true).await?;
    let choices = fields.count("n", 1, app.options.choices_max)?.unwrap_or(1);
    if let Some(best) = fields.count("best_of", 1, app.options.choices_max)?
        && best != choices
    {
        return Err(fields.wrong("best_of", "must be as large as n"));
    }
    if fields.str("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(fields.wrong("suffix", "is not supported: this model only continues"));
    }
    let stream = fields.bool("stream")?.unwrap_or(false);
    let include_usage = match fields.object("stream_options")? {
        Some(options) => options.bool("include_usage")?.unwrap_or(false),
        None => false,
    };
    let echo = fields.bool("echo")?.unwrap_or(false);
    let mut ask = Ask { client, ..ask(&fields, &model)? };
    if echo {
        ask.prompt_logprobs = ask.logprobs;
    }
    let shape = Shape { tools: Vec::new(), choice: ToolChoice::Auto, ..Shape::of_chat(&fields)? };
    let (asked, of) = (body.clone(), model.clone());
    let prompts = job::blocking(move || prompts(&Fields::of(&asked)?, &of)).await?;
    let mut form = Form {
        id: fresh_id("cmpl-"),
        created: now_seconds(),
        model: model.id.clone(),
        include_usage,
        choices,
        scores: ask.logprobs.is_some(),
        echoes: Vec::new(),
    };
    let mut generations = Vec::with_capacity(prompts.len() * choices);
    for prompt in prompts {
        let tokenizer = &model.text.tokenizer;
        let first = prompt.first().filter(|_| ask.prompt_logprobs.is_some());
        let echoed = Echo {
            text: if echo { tokenizer.decode(&prompt, true) } else { String::new() },
            first: first.map(|id| Spelled::new(*id, tokenizer)),
            alone: prompt.len() == 1,
            last: prompt.last().copied(),
        };
        generations.extend(job::start(&model, &shape, Ask { prompt, ..ask.clone() }, None, choices).await?);
        form.echoes.resize(generations.len(), echoed);
    }
    if stream {
        return Ok(sse::respond(app.options.ping, |events| send(events, generations, form, model)));
    }
    // What was asked takes memory that others may want meanwhile.
    drop(body);
    Ok(Json(whole(&form, &collect_all(generations).await?, &model.text.tokenizer)).into_response())
}

fn ask(fields: &Fields<'_>, model: &InUse) -> Result<Ask, ApiError> {
    let tokenizer = &model.text.tokenizer;
    let sampling = sampling::options(fields, &model.text.recommended, tokenizer, sampling::fresh_seed())?;
    Ok(Ask {
        prompt: Vec::new(),
        sampling,
        // As OpenAI has it where nothing is said.
        max_tokens: Some(fields.count("max_tokens", 0, usize::MAX >> 12)?.unwrap_or(16)),
        stops: sampling::stops(fields, "stop")?,
        ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
        logprobs: fields.count("logprobs", 0, LOGPROBS_MAX)?,
        prompt_logprobs: None,
        priority: job::priority(fields)?,
        client: Client::default(),
        prompt_field: "prompt",
    })
}

/// The prompts: a text, a list of texts, a list of token ids, or a list of such lists. Takes its time: call it where that may be.
fn prompts(fields: &Fields<'_>, model: &InUse) -> Result<Vec<Vec<u32>>, ApiError> {
    let value = fields.required("prompt", fields.get("prompt"))?;
    let text = |text: &str, at: &str| {
        model.check_text(text, at)?;
        let options = EncodeOptions { parse_special: true, add_special: true };
        model.text.tokenizer.encode(text, options).map_err(|error| fields.wrong(at, error))
    };
    let ids = |list: &[Value], at: &str| {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Option<Vec<u32>> = list.iter().map(id).collect();
        ids.ok_or_else(|| fields.wrong(at, "must be texts or token ids"))
    };
    let prompts = match value {
        Value::String(prompt) => vec![text(prompt, "prompt")?],
        Value::Array(list) if list.len() > PROMPTS_MAX && !list[0].is_number() => {
            return Err(fields.wrong("prompt", format!("has {} prompts, at most {PROMPTS_MAX}", list.len())));
        }
        Value::Array(list) if list.first().is_some_and(Value::is_number) => vec![ids(list, "prompt")?],
        Value::Array(list) => {
            let one = |(i, value): (usize, &Value)| match value {
                Value::String(prompt) => text(prompt, &format!("prompt[{i}]")),
                Value::Array(list) => ids(list, &format!("prompt[{i}]")),
                _ => Err(fields.wrong(&format!("prompt[{i}]"), "must be a text or a list of token ids")),
            };
            list.iter().enumerate().map(one).collect::<Result<_, _>>()?
        }
        _ => return Err(fields.wrong("prompt", "must be a text, token ids, or a list of these")),
    };
    match prompts.iter().position(Vec::is_empty) {
        None if !prompts.is_empty() => Ok(prompts),
        _ => Err(fields.wrong("prompt", "is empty")),
    }
}

/// The legacy `logprobs`: four lists.
fn logprobs(tokens: &[Scored], offsets: &mut Offsets) -> Value {
    let offsets: Vec<usize> = tokens.iter().map(|scored| offsets.next(scored.token.id)).collect();
    let top = |scored: &Scored| -> Map<String, Value> {
        scored.top.iter().map(|(token, logprob)| (token.text.clone(), finite(*logprob).into())).collect()
    };
    json!({
        "tokens": tokens.iter().map(|scored| &scored.token.text).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|scored| finite(scored.logprob)).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

fn whole(form: &Form, answers: &[Answer], tokenizer: &Tokenizer) -> Value {
    let choice = |(index, answer): (usize, &Answer)| {
        let echo = &form.echoes[index];
        let scores = match form.scores {
            false => Value::Null,
            true => echo.logprobs(&answer.prompt, &answer.tokens, &mut Offsets::new(echo, tokenizer)),
        };
        json!({
            "index": index, "text": format!("{}{}", echo.text, answer.text), "logprobs": scores,
            "finish_reason": finish_reason(&answer.end.finish),
        })
    };
    let ends: Vec<End> = answers.iter().map(|answer| answer.end.clone()).collect();
    json!({
        "id": form.id, "object": "text_completion", "created": form.created, "model": form.model,
        "system_fingerprint": FINGERPRINT,
        "choices": answers.iter().enumerate().map(choice).collect::<Vec<_>>(),
        "usage": usage_of(&ends, form.choices),
        "timings": timings(&ends[0].timings),
    })
}

/// The usage of several prompts with several answers each.
fn usage_of(ends: &[End], choices: usize) -> Value {
    let mut all = usage(ends);
    let prompts = ends.iter().step_by(choices);
    let prompt: usize = prompts.clone().map(|end| end.timings.prompt_tokens).sum();
    let cached: usize = prompts.map(|end| end.timings.reused_tokens).sum();
    let completion: usize = ends.iter().map(|end| end.timings.generated_tokens).sum();
    all["prompt_tokens"] = prompt.into();
    all["total_tokens"] = (prompt + completion).into();
    all["prompt_tokens_details"]["cached_tokens"] = cached.into();
    all
}

impl Form {
    fn chunk(&self, choices: Value) -> Value {
        let mut chunk = json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "system_fingerprint": FINGERPRINT, "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    fn text(&self, index: usize, text: &str, scores: Value, finish: Option<&'static str>) -> Value {
        self.chunk(json!([{"index": index, "text": text, "logprobs": scores, "finish_reason": finish}]))
    }
}

async fn send(events: Events, generations: Vec<Generation>, form: Form, model: InUse) -> Option<()> {
    let mut streams: StreamMap<usize, Generation> = generations.into_iter().enumerate().collect();
    let tokenizer = &model.text.tokenizer;
    let mut offsets: Vec<Offsets> = form.echoes.iter().map(|echo| Offsets::new(echo, tokenizer)).collect();
    // With scores the text of a prompt comes when they do; a token alone has none.
    for (index, echo) in form.echoes.iter().enumerate() {
        if echo.first.is_some() && echo.alone {
            let scores = echo.logprobs(&[], &[], &mut offsets[index]);
            events.data(&form.text(index, &echo.text, scores, None)).await?;
        } else if echo.first.is_none() && !echo.text.is_empty() {
            events.data(&form.text(index, &echo.text, Value::Null, None)).await?;
        }
    }
    let mut ends: Vec<(usize, End)> = Vec::new();
    while let Some((index, Delta { parts, tokens, prompt, end })) = events.next(&mut streams).await {
        let said: String = parts
            .into_iter()
            .filter_map(|part| match part {
                Part::Text(text) => Some(text),
                _ => None,
            })
            .collect();
        if !prompt.is_empty() {
            let echo = &form.echoes[index];
            let scores = echo.logprobs(&prompt, &[], &mut offsets[index]);
            events.data(&form.text(index, &echo.text, scores, None)).await?;
        }
        if !said.is_empty() || !tokens.is_empty() {
            let scores = match tokens.is_empty() {
                true => Value::Null,
                false => logprobs(&tokens, &mut offsets[index]),
            };
            events.data(&form.text(index, &said, scores, None)).await?;
        }
        match end {
            Some(End { finish: Finish::Failed(error), .. }) => {
                events.data(&error.body(Dialect::OpenAi)).await?;
                return events.done().await;
            }
            Some(end) => {
                events.data(&form.text(index, "", Value::Null, finish_reason(&end.finish))).await?;
                ends.push((index, end));
            }
            None => {}
        }
    }
    if form.include_usage {
        ends.sort_by_key(|(index, _)| *index);
        let ends: Vec<End> = ends.into_iter().map(|(_, end)| end).collect();
        let mut last = form.chunk(json!([]));
        last["usage"] = usage_of(&ends, form.choices);
        events.data(&last).await?;
    }
    drop(model);
    events.done().await
}
