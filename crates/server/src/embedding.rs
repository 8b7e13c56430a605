//! Texts that become vectors, in terms that all APIs share.

use axum::http::StatusCode;
use serde_json::Value;
use tokio::task::JoinSet;
use unicorn_engine::{EmbedRequest, FinishReason};
use unicorn_text::EncodeOptions;

use crate::error::ApiError;
use crate::fields::Fields;
use crate::http::client::Client;
use crate::job::blocking;
use crate::registry::InUse;
use crate::turns::TEXTS_MAX;
use crate::worker::Progress;

/// Tokens of all texts of one request, as OpenAI has it.
const TOKENS_MAX: usize = 300_000;

/// What becomes of a text that the context does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Long {
    Refuse,
    /// Its end is left out.
    Cut,
}

/// A text or its token ids.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Text {
    Plain(String),
    Ids(Vec<u32>),
}

/// The texts in a field: one, a list of them, a list of token ids, or a list of such lists. Each comes with its path.
pub(crate) fn texts(fields: &Fields<'_>, name: &str) -> Result<Vec<(String, Text)>, ApiError> {
    let ids = |list: &[Value], at: &str| {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids: Option<Vec<u32>> = list.iter().map(id).collect();
        ids.filter(|ids| !ids.is_empty())
            .map(Text::Ids)
            .ok_or_else(|| fields.wrong(at, "must be texts or token ids"))
    };
    match fields.required(name, fields.get(name))? {
        Value::String(text) if text.is_empty() => Err(fields.wrong(name, "is empty")),
        Value::String(text) => Ok(vec![(name.to_owned(), Text::Plain(text.clone()))]),
        Value::Array(list) if list.first().is_some_and(Value::is_number) => {
            Ok(vec![(name.to_owned(), ids(list, name)?)])
        }
        Value::Array(list) if list.len() > TEXTS_MAX => {
            Err(fields.wrong(name, format!("has {} texts, at most {TEXTS_MAX} are taken", list.len())))
        }
        Value::Array(list) => {
            let one = |(i, value): (usize, &Value)| {
                let at = format!("{name}[{i}]");
                let text = match value {
                    Value::String(text) if text.is_empty() => return Err(fields.wrong(&at, "is empty")),
                    Value::String(text) => Text::Plain(text.clone()),
                    Value::Array(list) => ids(list, &at)?,
                    _ => return Err(fields.wrong(&at, "must be a text or a list of token ids")),
                };
                Ok((at, text))
            };
            list.iter().enumerate().map(one).collect()
        }
        _ => Err(fields.wrong(name, "must be a text, token ids, or a list of these")),
    }
}

/// The tokens of texts with the special ones that the model wants around them; token ids are taken as they are.
async fn tokens(model: &InUse, texts: Vec<(String, Text)>, long: Long) -> Result<Vec<Vec<u32>>, ApiError> {
    let model = model.clone();
    blocking(move || {
        let (mut all, mut total) = (Vec::with_capacity(texts.len()), 0);
        for (at, text) in texts {
            let tokens = tokens_of(&model, &at, text, long)?;
            total += tokens.len();
            if total > TOKENS_MAX {
                let message = format!("more than {TOKENS_MAX} tokens in all: several requests can have them");
                return Err(ApiError::param(at, message));
            }
            all.push(tokens);
        }
        Ok(all)
    })
    .await
}

fn tokens_of(model: &InUse, at: &str, text: Text, long: Long) -> Result<Vec<u32>, ApiError> {
    let mut tokens = match text {
        Text::Ids(ids) => ids,
        Text::Plain(text) => {
            let text = match long {
                Long::Cut => model.beginning(&text),
                // An encoder's tokens may stand for any number of bytes, and are found in one pass.
                Long::Refuse if model.encodes => &text,
                Long::Refuse => {
                    model.check_text(&text, at)?;
                    &text
                }
            };
            let options = EncodeOptions { parse_special: false, add_special: true };
            model.text.tokenizer.encode(text, options).map_err(|error| ApiError::param(at, error))?
        }
    };
    if let Some(id) = tokens.iter().find(|id| **id as usize >= model.vocab) {
        return Err(ApiError::param(at, format!("{id} is no token id of this model")));
    }
    if tokens.is_empty() {
        return Err(ApiError::param(at, "has no tokens"));
    }
    if long == Long::Cut {
        cut(&mut tokens, model.context);
    }
    if tokens.len() > model.context {
        let message = format!("has {} tokens, the model takes {}", tokens.len(), model.context);
        return Err(ApiError { code: Some("context_length_exceeded"), ..ApiError::param(at, message) });
    }
    Ok(tokens)
}

/// Leaves out what is too much before the last token, which is often a special one.
fn cut(tokens: &mut Vec<u32>, most: usize) {
    if let Some(last) = tokens.last().copied().filter(|_| tokens.len() > most && most > 0) {
        tokens.truncate(most - 1);
        tokens.push(last);
    }
}

/// Vectors in the order of their texts.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Vectors {
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub tokens: usize,
}

/// Turns texts into vectors; `normalize` gives them the length 1. `dimensions` keeps the first so many numbers of each.
pub(crate) async fn embed(
    model: &InUse,
    client: Client,
    texts: Vec<(String, Text)>,
    long: Long,
    normalize: bool,
    dimensions: Option<usize>,
) -> Result<Vectors, ApiError> {
    let pooling = model.pooling.clone().map_err(|why| {
        let message = format!("{} gives no vectors here: {why}", model.id);
        ApiError { code: Some("not_supported"), ..ApiError::new(StatusCode::NOT_IMPLEMENTED, message) }
    })?;
    let _turn = model.turns.enter(texts.len()).await?;
    let tokens = tokens(model, texts, long).await?;
    let count = tokens.iter().map(Vec::len).sum();
    let Client { group, scope, record } = client;
    if let Some(record) = record {
        record.model(&model.id);
    }
    let request = |tokens| EmbedRequest { group, scope, ..EmbedRequest::new(tokens, pooling, normalize) };
    let mut vectors = run(model, tokens.into_iter().map(request)).await?;
    if let Some(dimensions) = dimensions {
        vectors.iter_mut().for_each(|vector| shorten(vector, dimensions));
    }
    Ok(Vectors { vectors, tokens: count })
}

/// Hands texts to the engine, no more at once than it runs, so that others have their turn between them. Dropping this gives them up.
async fn run(
    model: &InUse,
    requests: impl ExactSizeIterator<Item = EmbedRequest>,
) -> Result<Vec<Vec<f32>>, ApiError> {
    let mut vectors = vec![Vec::new(); requests.len()];
    let (mut requests, mut running) = (requests.enumerate(), JoinSet::new());
    loop {
        while running.len() < model.sequences_max
            && let Some((at, request)) = requests.next()
        {
            let model = model.clone();
            running.spawn(async move { Ok((at, vector(&model, request).await?)) });
        }
        let Some(done) = running.join_next().await else { return Ok(vectors) };
        let (at, vector) = done.unwrap_or_else(|_| Err(ApiError::internal("a text was lost")))?;
        vectors[at] = vector;
    }
}

/// The vector of one text.
async fn vector(model: &InUse, request: EmbedRequest) -> Result<Vec<f32>, ApiError> {
    let _place = model.turns.place().await?;
    let submitted = model.worker.embed(request).await;
    let mut progress = submitted
        .map_err(|why| ApiError::unavailable(format!("the engine of this model has stopped: {why}"), 5))?
        .map_err(|error| ApiError::admission(error, "input"))?;
    match progress.next().await {
        Some(Progress::Embedding(vector)) => Ok(vector),
        Some(Progress::Finished { reason, .. }) => Err(match reason {
            FinishReason::NotFinite => ApiError::internal(
                "the vector of a text is not finite: the model's file, a kernel or the driver is wrong; `unicorn selftest` looks for it",
            ),
            FinishReason::Context => ApiError::internal("a text is longer than what the model takes by now"),
            FinishReason::OutOfKvPages => ApiError::internal("the KV cache is too small for a text"),
            FinishReason::Cancelled => ApiError::unavailable("the server is shutting down", 5),
            FinishReason::Device(failure) => ApiError::internal(failure.to_string()),
            _ => ApiError::internal("a text did not become a vector"),
        }),
        Some(Progress::Broken(why)) => Err(ApiError::internal(why)),
        _ => Err(ApiError::unavailable("the engine of this model has stopped", 5)),
    }
}

/// The number of dimensions that a request wants, which may be fewer than the model has.
pub(crate) fn dimensions(fields: &Fields<'_>, model: &InUse) -> Result<Option<usize>, ApiError> {
    fields.count("dimensions", 1, model.facts().width)
}

/// Keeps the first numbers of a vector and gives it the length 1 again. Good for models that were trained for it (Kusupati et al., "Matryoshka
/// Representation Learning", 2022), and what the client asks for in any case.
fn shorten(vector: &mut Vec<f32>, dimensions: usize) {
    if dimensions >= vector.len() {
        return;
    }
    vector.truncate(dimensions);
    let length = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(input: Value) -> Result<Vec<(String, Text)>, ApiError> {
        texts(&Fields::of(&json!({"input": input})).unwrap(), "input")
    }

    #[test]
    fn texts_come_in_four_forms() {
        let plain = |at: &str, text: &str| (at.to_owned(), Text::Plain(text.to_owned()));
        let ids = |at: &str, ids: &[u32]| (at.to_owned(), Text::Ids(ids.to_vec()));
        assert_eq!(read(json!("a")), Ok(vec![plain("input", "a")]));
        assert_eq!(read(json!(["a", "b"])), Ok(vec![plain("input[0]", "a"), plain("input[1]", "b")]));
        assert_eq!(read(json!([1, 2])), Ok(vec![ids("input", &[1, 2])]));
        assert_eq!(
            read(json!([[1], [2, 3], "c"])),
            Ok(vec![ids("input[0]", &[1]), ids("input[1]", &[2, 3]), plain("input[2]", "c")])
        );
        assert_eq!(read(json!([])), Ok(vec![]));
    }

    #[test]
    fn wrong_texts_are_named() {
        for (input, param) in [
            (Value::Null, "input"),
            (json!(7), "input"),
            (json!([1, "a"]), "input"),
            (json!([1, -1]), "input"),
            (json!(["a", 7]), "input[1]"),
            (json!(["a", []]), "input[1]"),
            (json!(""), "input"),
            (json!(["a", ""]), "input[1]"),
            (json!(vec!["a"; 2049]), "input"),
        ] {
            assert_eq!(read(input).unwrap_err().param.as_deref(), Some(param));
        }
    }

    #[test]
    fn shortened_vectors_have_the_length_one() {
        let mut vector = vec![0.6, 0.0, 0.8];
        shorten(&mut vector, 3);
        assert_eq!(vector, [0.6, 0.0, 0.8]);
        shorten(&mut vector, 2);
        assert_eq!(vector, [1.0, 0.0]);
        let mut nothing = vec![0.0, 0.0, 1.0];
        shorten(&mut nothing, 2);
        assert_eq!(nothing, [0.0, 0.0]);
    }

    #[test]
    fn what_is_cut_off_keeps_its_last_token() {
        let mut tokens = vec![101, 1, 2, 3, 102];
        cut(&mut tokens, 5);
        assert_eq!(tokens, [101, 1, 2, 3, 102]);
        cut(&mut tokens, 3);
        assert_eq!(tokens, [101, 1, 102]);
    }
}
