//! The crate `async-openai`, unchanged, against the server: each check on a line of its own, as the clients in other languages have it.

use anyhow::{Context, Result, ensure};
use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::types::chat::ChatCompletionMessageToolCalls;
use futures::StreamExt;
use serde_json::{Value, json};

const QUESTION: &str = "What is the capital of France?";

struct Trial {
    client: Client<OpenAIConfig>,
    model: String,
    embedder: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, model, embedder] = arguments.as_slice() else { anyhow::bail!("usage: BASE MODEL EMBEDDER") };
    let config = OpenAIConfig::new().with_api_base(format!("{base}/v1")).with_api_key("unused");
    let trial =
        Trial { client: Client::with_config(config), model: model.clone(), embedder: embedder.clone() };
    tell("chat", trial.chat().await);
    tell("stream", trial.stream().await);
    tell("forced_tool", trial.forced_tool().await);
    tell("structured", trial.structured().await);
    tell("completion", trial.completion().await);
    tell("models", trial.models().await);
    tell("responses", trial.responses().await);
    match embedder.is_empty() {
        true => println!("NOT RUN embeddings: no embedding model is served"),
        false => tell("embeddings", trial.embeddings().await),
    }
    Ok(())
}

fn tell(name: &str, result: Result<()>) {
    match result {
        Ok(()) => println!("ok {name}"),
        Err(error) => println!("FAILED {name}: {}", format!("{error:#}").replace('\n', " ")),
    }
}

fn parameters() -> Value {
    let cities = json!(["Paris", "London", "Rome"]);
    json!({"type": "object", "properties": {"city": {"type": "string", "enum": cities}}, "required": ["city"],
        "additionalProperties": false})
}

fn is_city(arguments: &str) -> Result<()> {
    let value: Value = serde_json::from_str(arguments).with_context(|| arguments.to_owned())?;
    ensure!(["Paris", "London", "Rome"].contains(&value["city"].as_str().unwrap_or_default()), "{arguments}");
    Ok(())
}

impl Trial {
    fn body(&self, more: Value) -> Value {
        let messages = json!([{"role": "user", "content": QUESTION}]);
        let mut body =
            json!({"model": self.model, "messages": messages, "max_completion_tokens": 48, "temperature": 0});
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        body
    }

    async fn chat(&self) -> Result<()> {
        let answer = self.client.chat().create(serde_json::from_value(self.body(json!({})))?).await?;
        let text = answer.choices[0].message.content.clone().context("no content")?;
        ensure!(
            text.contains("Paris") && answer.usage.is_some_and(|usage| usage.completion_tokens > 0),
            "{text}"
        );
        Ok(())
    }

    async fn stream(&self) -> Result<()> {
        let mut stream =
            self.client.chat().create_stream(serde_json::from_value(self.body(json!({})))?).await?;
        let mut text = String::new();
        while let Some(chunk) = stream.next().await {
            for choice in chunk?.choices {
                text += &choice.delta.content.unwrap_or_default();
            }
        }
        ensure!(text.contains("Paris"), "{text}");
        Ok(())
    }

    async fn forced_tool(&self) -> Result<()> {
        let tool =
            json!({"type": "function", "function": {"name": "get_weather", "parameters": parameters()}});
        let body = self.body(json!({"tools": [tool], "tool_choice": "required"}));
        let answer = self.client.chat().create(serde_json::from_value(body)?).await?;
        let calls = answer.choices[0].message.tool_calls.clone().context("no call")?;
        let Some(ChatCompletionMessageToolCalls::Function(call)) = calls.first() else {
            anyhow::bail!("{calls:?}")
        };
        is_city(&call.function.arguments)
    }

    async fn structured(&self) -> Result<()> {
        let schema = json!({"name": "city", "strict": true, "schema": parameters()});
        let body = self.body(json!({"response_format": {"type": "json_schema", "json_schema": schema}}));
        let answer = self.client.chat().create(serde_json::from_value(body)?).await?;
        is_city(&answer.choices[0].message.content.clone().context("no content")?)
    }

    async fn completion(&self) -> Result<()> {
        let body = json!({"model": self.model, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0});
        let answer = self
            .client
            .completions()
            .create(serde_json::from_value::<async_openai::types::completions::CreateCompletionRequest>(
                body,
            )?)
            .await?;
        ensure!(answer.choices[0].text.contains("Paris"), "{}", answer.choices[0].text);
        Ok(())
    }

    async fn models(&self) -> Result<()> {
        let models = self.client.models().list().await?;
        ensure!(models.data.iter().any(|model| model.id == self.model), "{models:?}");
        Ok(())
    }

    async fn responses(&self) -> Result<()> {
        let body = json!({"model": self.model, "input": QUESTION, "max_output_tokens": 48, "temperature": 0});
        let answer = self
            .client
            .responses()
            .create(serde_json::from_value::<async_openai::types::responses::CreateResponse>(body)?)
            .await?;
        ensure!(serde_json::to_string(&answer.output)?.contains("Paris"), "{:?}", answer.output);
        Ok(())
    }

    async fn embeddings(&self) -> Result<()> {
        let body = json!({"model": self.embedder, "input": ["a text", "another"]});
        let answer = self.client.embeddings().create(serde_json::from_value(body)?).await?;
        ensure!(
            answer.data.len() == 2 && answer.data[0].embedding.len() > 8,
            "{} vectors",
            answer.data.len()
        );
        Ok(())
    }
}
