//! Normal requests, whose answers are known from having been asked alone, and clients that leave in the middle of one.

use std::io::Write;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::http::{Client, Reply, events, request, streamed};

/// Requests whose answers are compared.
const ASKS: usize = 48;

/// How a request ended that did not fail.
pub enum Outcome {
    /// As it should.
    Fine,
    /// With the text that it has alone.
    Same,
    /// The server had no room, and said when to come back.
    Refused,
}

struct Ask {
    body: Value,
    text: String,
}

/// Requests with their answers.
pub struct Asks {
    model: String,
    asks: Vec<Ask>,
}

/// Prompts of a few lengths; some begin alike, so that they share pages.
fn body(model: &str, index: usize) -> Value {
    let beginning = "Many requests begin with the same words, which the server need not read twice. ";
    let prompt = format!("{}{} times {}", beginning.repeat([0, 0, 1, 1, 2][index % 5]), index % 7, index);
    json!({"model": model, "prompt": prompt, "max_tokens": ([1, 8, 24, 60][index % 4]), "temperature": 0})
}

impl Asks {
    /// Asks each alone.
    pub fn answered_alone(client: Client, model: &str) -> Result<Asks> {
        let ask = |index| {
            let body = body(model, index);
            let text = text(&client.post("/v1/completions", &body)?)?;
            Ok(Ask { body, text })
        };
        Ok(Asks { model: model.to_owned(), asks: (0..ASKS).map(ask).collect::<Result<_>>()? })
    }

    /// Asks each alone once more.
    pub fn check_again(&self, client: Client) -> Result<()> {
        for ask in &self.asks {
            compare(&text(&client.post("/v1/completions", &ask.body)?)?, ask)?;
        }
        Ok(())
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    fn choose(&self, random: u64) -> &Ask {
        &self.asks[(random % self.asks.len() as u64) as usize]
    }

    /// A normal request of one of several kinds.
    pub fn ask(&self, client: Client, random: u64) -> Result<Outcome> {
        let (ask, rest) = (self.choose(random), random / self.asks.len() as u64);
        match rest % 10 {
            0..=3 => known(&client.post("/v1/completions", &ask.body)?, ask),
            4..=6 => self.ask_streamed(client, ask),
            7 => {
                let messages = json!([{"role": "user", "content": ask.body["prompt"]}]);
                let body = json!({"model": self.model, "messages": messages, "max_tokens": 6, "n": 2, "seed": rest % 100, "temperature": 1});
                let reply = client.post("/v1/chat/completions", &body)?;
                // A model without a template says so.
                fine(&reply, &[200, 400])
            }
            8 => fine(&client.post("/tokenize", &json!({"content": ask.body["prompt"]}))?, &[200]),
            _ => fine(
                &client.get(
                    ["/metrics", "/health", "/slots", "/props", "/v1/models"][(rest / 10 % 5) as usize],
                )?,
                &[200],
            ),
        }
    }

    fn ask_streamed(&self, client: Client, ask: &Ask) -> Result<Outcome> {
        let reply = client.post("/v1/completions", &stream(&ask.body))?;
        if is_refusal(&reply) {
            return Ok(Outcome::Refused);
        }
        ensure!(reply.status == 200 && reply.body.ends_with(b"data: [DONE]\n\n"), "a stream without its end");
        compare(&streamed(&events(&reply.body)?)?, ask)
    }

    /// As the bytes of a request.
    pub fn bytes(&self, random: u64) -> Vec<u8> {
        request("POST", "/v1/completions", Some(self.choose(random).body.to_string().as_bytes()))
    }

    /// The answer to [`Asks::bytes`].
    pub fn judge(&self, reply: &Reply, random: u64) -> Result<Outcome> {
        known(reply, self.choose(random))
    }

    /// Asks for more than anyone waits for, and leaves: at once, before the first event, or after a few.
    pub fn leave(&self, client: Client, random: u64) -> Result<()> {
        let (ask, rest) = (self.choose(random), random / self.asks.len() as u64);
        let mut body = ask.body.clone();
        // As many as the context holds.
        body["max_tokens"] = 100_000.into();
        body["n"] = (1 + rest % 2).into();
        let path = "/v1/completions";
        match rest / 2 % 4 {
            0 => {
                let bytes = request("POST", path, Some(body.to_string().as_bytes()));
                client.connect()?.write_all(&bytes)?;
            }
            1 => {
                let bytes = request("POST", path, Some(body.to_string().as_bytes()));
                let mut stream = client.connect()?;
                stream.write_all(&bytes)?;
                std::thread::sleep(std::time::Duration::from_millis(rest / 8 % 60));
            }
            _ => {
                let mut answer = client.begin(path, &stream(&body))?;
                for _ in 0..rest / 8 % 12 {
                    // A refusal is short.
                    if answer.part()?.is_none() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

fn stream(body: &Value) -> Value {
    let mut body = body.clone();
    body["stream"] = true.into();
    body
}

fn text(reply: &Reply) -> Result<String> {
    ensure!(reply.status == 200, "{}: {}", reply.status, String::from_utf8_lossy(&reply.body));
    Ok(reply.json()?["choices"][0]["text"].as_str().context("an answer without text")?.to_owned())
}

fn compare(text: &str, ask: &Ask) -> Result<Outcome> {
    if text != ask.text {
        bail!("wrong text for {}: {text:?} in place of {:?}", ask.body["prompt"], ask.text);
    }
    Ok(Outcome::Same)
}

fn is_refusal(reply: &Reply) -> bool {
    reply.status == 429
}

fn known(reply: &Reply, ask: &Ask) -> Result<Outcome> {
    match is_refusal(reply) {
        true => Ok(Outcome::Refused),
        false => compare(&text(reply)?, ask),
    }
}

fn fine(reply: &Reply, statuses: &[u16]) -> Result<Outcome> {
    match is_refusal(reply) {
        true => Ok(Outcome::Refused),
        false if statuses.contains(&reply.status) => Ok(Outcome::Fine),
        false => bail!("{}: {}", reply.status, String::from_utf8_lossy(&reply.body)),
    }
}
