//! The first request of an engine, which nobody waits for.

use unicorn_engine::{Engine, Event, FinishReason, Request};

/// Runs a prompt and two steps, so that what devices do only once is done before someone waits for it.
pub(crate) fn warm_up(engine: &mut Engine) -> Result<(), String> {
    let tokens = engine.options().context.saturating_sub(2).min(32).min(engine.spec().vocab);
    let prompt: Vec<u32> = (0..tokens as u32).collect();
    if prompt.is_empty() {
        return Ok(());
    }
    let request = Request { prompt, max_tokens: Some(2), ..Request::default() };
    engine.add(request).map_err(|error| format!("the first request was refused: {error}"))?;
    while !engine.is_idle() {
        for event in engine.step().map_err(|error| error.to_string())? {
            if let Event::Finished { reason: FinishReason::Device(failure), .. } = event {
                return Err(format!("the first request failed: {failure}"));
            }
        }
    }
    Ok(())
}
