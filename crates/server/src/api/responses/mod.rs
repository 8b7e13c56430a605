//! OpenAI's Responses API.

mod events;
mod items;
mod request;
pub(crate) mod store;
mod tools;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use self::events::Writer;
use self::request::{Keep, Request};
use crate::app::App;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::generation::Generation;
use crate::http::body::JsonBody;
use crate::http::client::Client;
use crate::http::sse::{self, Events};
use crate::job;
use crate::registry::InUse;

/// Items of a list, at most.
const PAGE_MAX: usize = 100;

/// Errors about the conversation are about `input` here.
fn about_input(error: ApiError) -> ApiError {
    match error.param.as_deref() {
        Some("messages") => {
            let message = error.message.replacen("messages", "input", 1);
            ApiError { message, param: Some("input".into()), ..error }
        }
        _ => error,
    }
}

/// Answers a conversation.
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    client: Client,
    JsonBody(body): JsonBody,
) -> Result<Response, ApiError> {
    let fields = Fields::of(&body)?;
    let model = app.registry.get(fields.required("model", fields.str("model")?)?, true).await?;
    let request = {
        // What is referred to may be long. The body is not needed any more then.
        let (app, model) = (app.clone(), model.clone());
        job::blocking(move || request::read(&Fields::of(&body)?, &model, &app.responses, client)).await?
    };
    let Request { conversation, shape, ask, frame, stream, keep } = request;
    let generations = job::converse(&model, conversation, &shape, ask, 1).await.map_err(about_input)?;
    let generation = generations.into_iter().next();
    let mut generation = generation.ok_or_else(|| ApiError::internal("nothing answers"))?;
    let mut writer = Writer::new(frame, generation.prompt_tokens());
    if stream {
        let ping = app.options.ping;
        return Ok(sse::respond(ping, |events| send(events, generation, writer, keep, app, model)));
    }
    while let Some(delta) = generation.next().await {
        writer.push(delta);
    }
    if let Some(error) = writer.failure() {
        return Err(error.clone());
    }
    if !writer.ended() {
        return Err(ApiError::internal("the answer ended without an end"));
    }
    let response = writer.response();
    put(&app, keep, &response);
    Ok(Json(response).into_response())
}

fn put(app: &App, keep: Option<Keep>, response: &Value) {
    if let Some(Keep { owner, previous, input }) = keep {
        app.responses.put(owner, previous, &input, response);
    }
}

/// Sends the answer as it comes.
async fn send(
    events: Events,
    mut generation: Generation,
    mut writer: Writer,
    keep: Option<Keep>,
    app: Arc<App>,
    model: InUse,
) -> Option<()> {
    for (name, event) in writer.begin() {
        events.named(name, &event).await?;
    }
    let mut keep = keep;
    while let Some(delta) = events.next(&mut generation).await {
        let told = writer.push(delta);
        if writer.ended() {
            // Before the client is told, so that it can go on from it at once.
            put(&app, keep.take(), &writer.response());
        }
        for (name, event) in told {
            events.named(name, &event).await?;
        }
    }
    if !writer.ended() {
        let (name, event) = writer.broken("the answer ended without an end");
        events.named(name, &event).await?;
    }
    drop(model);
    Some(())
}

/// Counts the tokens that a conversation would have.
pub(crate) async fn input_tokens(
    State(app): State<Arc<App>>,
    client: Client,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let fields = Fields::of(&body)?;
    let model = app.registry.get(fields.required("model", fields.str("model")?)?, true).await?;
    let (conversation, shape) =
        job::blocking(move || request::prompt(&Fields::of(&body)?, &app.responses, client.scope)).await?;
    let prompt = job::prompt(&model, conversation, &shape).await.map_err(about_input)?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": prompt.tokens.len()})))
}

/// Conversations are not made shorter here: clients do that themselves where they are told so.
pub(crate) async fn compact() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "conversations are not compacted here; send the whole one")
}

fn lost(id: &str) -> ApiError {
    let error = ApiError::new(StatusCode::NOT_FOUND, format!("the response {id} is not kept here"));
    ApiError { code: Some("response_not_found"), ..error }
}

/// What stands behind the `?` of an address.
type Asked = Query<HashMap<String, String>>;

/// A response that is kept.
pub(crate) async fn get(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(asked): Asked,
    client: Client,
) -> Result<Json<Value>, ApiError> {
    if asked.get("stream").is_some_and(|stream| stream != "false") {
        return Err(ApiError::param("stream", "a response that has ended is not streamed again"));
    }
    job::blocking(move || app.responses.response(client.scope, &id).map(Json).ok_or_else(|| lost(&id))).await
}

/// Forgets a response.
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    client: Client,
) -> Result<Json<Value>, ApiError> {
    match app.responses.remove(client.scope, &id) {
        true => Ok(Json(json!({"id": id, "object": "response", "deleted": true}))),
        false => Err(lost(&id)),
    }
}

/// The items that a response answered.
pub(crate) async fn input_items(
    State(app): State<Arc<App>>,
    Path(id): Path<String>,
    Query(page): Asked,
    client: Client,
) -> Result<Json<Value>, ApiError> {
    let find = move || app.responses.input(client.scope, &id).ok_or_else(|| lost(&id));
    list(job::blocking(find).await?, &page).map(Json)
}

fn list(mut items: Vec<Value>, page: &HashMap<String, String>) -> Result<Value, ApiError> {
    let limit = match page.get("limit") {
        None => 20,
        Some(text) => text
            .parse()
            .ok()
            .filter(|limit| (1..=PAGE_MAX).contains(limit))
            .ok_or_else(|| ApiError::param("limit", format!("must be a number from 1 to {PAGE_MAX}")))?,
    };
    match page.get("order").map(String::as_str) {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return Err(ApiError::param("order", "must be asc or desc")),
    }
    if let Some(after) = page.get("after") {
        let at = items.iter().position(|item| item["id"] == after.as_str());
        let at = at.ok_or_else(|| ApiError::param("after", "is the id of no item in this list"))?;
        items.drain(..=at);
    }
    let more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Value>| item.map_or_else(|| "".into(), |item| item["id"].clone());
    let (first, last) = (id(items.first()), id(items.last()));
    Ok(json!({"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": more}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_listed_in_pages() {
        let items: Vec<Value> = (0..5).map(|i| json!({"id": format!("i{i}")})).collect();
        let page = |asked: &[(&str, &str)]| {
            list(
                items.clone(),
                &asked.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            )
        };
        let all = page(&[]).unwrap();
        assert_eq!(
            (&all["first_id"], &all["last_id"], &all["has_more"]),
            (&json!("i4"), &json!("i0"), &json!(false))
        );
        let some = page(&[("limit", "2"), ("order", "asc"), ("after", "i1")]).unwrap();
        assert_eq!((&some["data"], &some["has_more"]), (&json!([{"id": "i2"}, {"id": "i3"}]), &json!(true)));
        let none = page(&[("order", "asc"), ("after", "i4")]).unwrap();
        assert_eq!((&none["data"], &none["first_id"]), (&json!([]), &json!("")));
        for wrong in [("limit", "0"), ("limit", "x"), ("order", "up"), ("after", "i9")] {
            assert_eq!(page(&[wrong]).unwrap_err().param.as_deref(), Some(wrong.0));
        }
    }
}
