//! The first request of an engine, which nobody waits for.

use unicorn_core::Pooling;
use unicorn_engine::{EmbedRequest, Engine, Event, FinishReason, Request};

/// Runs a prompt and two steps, or a text, so that what devices do only once is done before someone waits for it.
pub(crate) fn warm_up(engine: &mut Engine) -> Result<(), String> {
    let tokens = engine.options().context.saturating_sub(2).min(32).min(engine.spec().vocab);
    let prompt: Vec<u32> = (0..tokens as u32).collect();
    if prompt.is_empty() {
        return Ok(());
    }
    let added = match engine.spec().is_encoder() {
        true => engine.add_embedding(EmbedRequest::new(prompt, Pooling::Mean, true)),
        false => engine.add(Request { prompt, max_tokens: Some(2), ..Request::default() }),
    };
    added.map_err(|error| format!("the first request was refused: {error}"))?;
    while !engine.is_idle() {
        for event in engine.step().map_err(|error| error.to_string())? {
            if let Event::Finished { reason: FinishReason::Device(failure), .. } = event {
                return Err(format!("the first request failed: {failure}"));
            }
        }
    }
    Ok(())
}
