//! `/v1/embeddings`

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use serde::Serialize;

use crate::app::App;
use crate::embedding::{Long, Vectors, dimensions, embed, texts};
use crate::error::ApiError;
use crate::fields::Fields;
use crate::http::body::JsonBody;
use crate::http::client::Client;

/// The answer.
#[derive(Serialize)]
pub(crate) struct Embeddings {
    object: &'static str,
    model: String,
    data: Vec<Embedding>,
    usage: Usage,
}

#[derive(Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Written,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Written {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Turns texts into vectors.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    client: Client,
    JsonBody(body): JsonBody,
) -> Result<Json<Embeddings>, ApiError> {
    let fields = Fields::of(&body)?;
    let base64 = fields.choice("encoding_format", &["float", "base64"])? == Some("base64");
    let model = app.registry.get(fields.required("model", fields.str("model")?)?, true).await?;
    let texts = texts(&fields, "input")?;
    if texts.is_empty() {
        return Err(fields.wrong("input", "is empty"));
    }
    let dimensions = dimensions(&fields, &model)?;
    // The texts are taken out of it, and it may be large.
    drop(body);
    let vectors = embed(&model, client, texts, Long::Refuse, true, dimensions).await?;
    Ok(Json(whole(&model.id, vectors, base64)))
}

fn whole(model: &str, vectors: Vectors, base64: bool) -> Embeddings {
    let one = |(index, vector): (usize, Vec<f32>)| {
        let embedding = if base64 { Written::Base64(encoded(&vector)) } else { Written::Numbers(vector) };
        Embedding { object: "embedding", index, embedding }
    };
    Embeddings {
        object: "list",
        model: model.to_owned(),
        data: vectors.vectors.into_iter().enumerate().map(one).collect(),
        usage: Usage { prompt_tokens: vectors.tokens, total_tokens: vectors.tokens },
    }
}

/// The numbers in little endian, base64.
fn encoded(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;

    #[test]
    fn vectors_are_written_as_numbers_or_base64() {
        let vectors = Vectors { vectors: vec![vec![1.0, -0.5], vec![0.0, 2.0]], tokens: 9 };
        let written = to_value(whole("m", vectors.clone(), false)).unwrap();
        assert_eq!(written["data"][0], json!({"object": "embedding", "index": 0, "embedding": [1.0, -0.5]}));
        assert_eq!(written["data"][1]["index"], 1);
        assert_eq!(written["usage"], json!({"prompt_tokens": 9, "total_tokens": 9}));
        // struct.pack("<2f", 1.0, -0.5)
        let written = to_value(whole("m", vectors, true)).unwrap();
        assert_eq!(written["data"][0]["embedding"], "AACAPwAAAL8=");
    }
}
