//! How many texts become vectors at once, so that neither the engine's queue nor memory fills with them.

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::ApiError;

/// Texts of one request, as OpenAI has it.
pub(crate) const TEXTS_MAX: usize = 2048;
/// Texts of all requests whose vectors are kept until the last of their request is there.
const HELD_MAX: usize = 4 * TEXTS_MAX;

/// The bounds of one model. Who waits for one of them gets it in turn.
pub(crate) struct Turns {
    requests: Semaphore,
    held: Semaphore,
    places: Semaphore,
}

/// Keeps a request within the bounds until it is dropped.
pub(crate) struct Turn<'a> {
    _request: SemaphorePermit<'a>,
    _texts: SemaphorePermit<'a>,
}

impl Turns {
    /// For an engine that runs this many sequences, beside which this many requests may wait.
    pub fn new(sequences_max: usize, queue_max: usize) -> Turns {
        let semaphore = |permits: usize| Semaphore::new(permits.clamp(1, Semaphore::MAX_PERMITS));
        Turns {
            requests: semaphore(sequences_max.saturating_add(queue_max)),
            held: semaphore(HELD_MAX),
            places: semaphore(sequences_max),
        }
    }

    /// Lets in a request of so many texts, [`TEXTS_MAX`] at most, once there is room for their vectors. Errors where too many wait already.
    pub async fn enter(&self, texts: usize) -> Result<Turn<'_>, ApiError> {
        let request =
            self.requests.try_acquire().map_err(|_| ApiError::queue_full("too many requests wait"))?;
        let texts = u32::try_from(texts.min(TEXTS_MAX)).unwrap_or(u32::MAX);
        let texts = self.held.acquire_many(texts).await.map_err(closed)?;
        Ok(Turn { _request: request, _texts: texts })
    }

    /// A place in the engine for one text.
    pub async fn place(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        self.places.acquire().await.map_err(closed)
    }
}

/// Nothing closes the bounds.
fn closed(error: impl std::fmt::Display) -> ApiError {
    ApiError::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_too_much_waits_or_is_refused() {
        let turns = Turns::new(1, 4);
        let wait = Duration::from_millis(20);
        let mut large = Vec::new();
        for _ in 0..HELD_MAX / TEXTS_MAX {
            large.push(turns.enter(TEXTS_MAX).await.unwrap());
        }
        assert!(tokio::time::timeout(wait, turns.enter(1)).await.is_err(), "the vectors have no room");
        // The one that gave up waiting has left.
        large.pop();
        let small = turns.enter(1).await.unwrap();
        let last = turns.enter(1).await.unwrap();
        let refused = turns.enter(1).await.err().expect("too many wait");
        assert_eq!((refused.status.as_u16(), refused.code), (429, Some("queue_full")));
        drop(small);
        let place = turns.place().await.unwrap();
        assert!(tokio::time::timeout(wait, turns.place()).await.is_err());
        drop((place, last));
        drop(turns.place().await.unwrap());
    }
}
