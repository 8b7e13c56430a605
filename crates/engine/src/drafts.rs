//! Drafts: guesses of the next tokens, which the model verifies in one batch. They change how many tokens a step brings, never which.

/// Guesses how one sequence goes on.
pub trait Drafter: std::fmt::Debug + Send {
    /// Up to `max` tokens that may follow `tokens`, in order; none where there is no guess. `tokens` are the prompt and what was generated,
    /// and only ever grow.
    fn draft(&mut self, tokens: &[u32], max: usize) -> Vec<u32>;
}

/// What has become of a sequence's drafts.
#[derive(Debug)]
pub(crate) struct Drafting {
    drafter: Box<dyn Drafter>,
    throttle: Throttle,
    /// Tokens drafted.
    pub drafted: usize,
    /// Tokens of these that were what the model chose.
    pub accepted: usize,
}

impl Drafting {
    pub fn new(drafter: Box<dyn Drafter>) -> Drafting {
        Drafting { drafter, throttle: Throttle::default(), drafted: 0, accepted: 0 }
    }

    /// At most `max` tokens below `vocab` that may follow.
    pub fn draft(&mut self, tokens: &[u32], max: usize, vocab: usize) -> Vec<u32> {
        let max = max.min(self.throttle.length(tokens.len()));
        if max == 0 {
            return Vec::new();
        }
        let mut drafts = self.drafter.draft(tokens, max);
        drafts.truncate(max);
        let sound = drafts.iter().take_while(|t| (**t as usize) < vocab).count();
        drafts.truncate(sound);
        drafts
    }

    /// No more drafts.
    pub fn stop(&mut self) {
        self.throttle.resume = usize::MAX;
    }

    /// A step of one token took so many seconds, `None` where others held it up; `accepted` of `drafted` tokens behind it were what the model chose. The sequence has `len`
    /// tokens now.
    pub fn learn(&mut self, drafted: usize, accepted: usize, len: usize, seconds: Option<f64>) {
        self.drafted += drafted;
        self.accepted += accepted;
        self.throttle.learn(drafted, accepted, len, seconds);
    }
}

/// How long drafts are, and whether there are any. What they cost depends on the device: on a GPU a few rows more cost next to nothing, on a
/// CPU they may cost as much as a step each. So steps are timed: where drafts lose time there are none for a while, for longer each time.
#[derive(Debug)]
struct Throttle {
    length: usize,
    /// Seconds of a step without drafts, of late; `None` until there were some.
    plain: Option<f64>,
    /// Steps without drafts that are to be timed before the next draft.
    untimed: usize,
    /// Time that drafts saved of late, in steps without drafts.
    credit: f64,
    /// Tokens without drafts after the next failure.
    pause: usize,
    /// Drafts go on when the sequence has as many tokens.
    resume: usize,
}

/// Tokens of the first draft, and of one after a failure.
const LENGTH_MIN: usize = 4;
/// Tokens that are drafted at once at most.
pub const LENGTH_MAX: usize = 16;
/// Steps that are timed before the first draft.
const TIMED_STEPS: usize = 2;
/// Weight of the latest step in the seconds of a step.
const STEP_WEIGHT: f64 = 0.25;
/// What is left of the credit when the next draft is counted.
const CREDIT_KEPT: f64 = 0.8;
/// Drafts pause below this credit.
const CREDIT_MIN: f64 = -3.0;
const PAUSE_FIRST: usize = 16;
const PAUSE_MAX: usize = 1024;

impl Default for Throttle {
    fn default() -> Throttle {
        Throttle {
            length: LENGTH_MIN,
            plain: None,
            untimed: TIMED_STEPS,
            credit: 0.0,
            pause: PAUSE_FIRST,
            resume: 0,
        }
    }
}

impl Throttle {
    /// Tokens to draft at most when the sequence has `len`.
    fn length(&self, len: usize) -> usize {
        if len < self.resume || self.untimed > 0 { 0 } else { self.length }
    }

    /// A step took so many seconds, where that can be told.
    fn learn(&mut self, drafted: usize, accepted: usize, len: usize, seconds: Option<f64>) {
        if drafted > 0 {
            let length = if accepted == drafted { 2 * self.length } else { accepted + 1 };
            self.length = length.clamp(LENGTH_MIN, LENGTH_MAX);
        }
        let Some(seconds) = seconds else { return };
        let plain = self.plain.unwrap_or(seconds);
        if drafted == 0 {
            self.untimed = self.untimed.saturating_sub(1);
            self.plain = Some(plain + STEP_WEIGHT * (seconds - plain));
            return;
        }
        // No row costs more than a step of its own: what takes longer was held up by something else.
        let cost = (seconds / plain.max(1e-9)).min((drafted + 1) as f64);
        let saved = (accepted + 1) as f64 - cost;
        self.credit = CREDIT_KEPT * self.credit + saved;
        if self.credit < CREDIT_MIN {
            self.resume = len + self.pause;
            self.pause = (2 * self.pause).min(PAUSE_MAX);
            (self.credit, self.length) = (0.0, LENGTH_MIN);
        } else if self.credit > 0.0 {
            self.pause = PAUSE_FIRST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Timed on a device where every row costs as much as a step, or where rows are free.
    fn timed() -> Throttle {
        let mut throttle = Throttle::default();
        assert_eq!(throttle.length(1), 0);
        (0..TIMED_STEPS).for_each(|_| throttle.learn(0, 0, 1, Some(0.01)));
        throttle
    }

    #[test]
    fn what_is_accepted_in_full_is_followed_by_longer_drafts() {
        let mut throttle = timed();
        let mut lengths = Vec::new();
        for _ in 0..4 {
            let length = throttle.length(100);
            lengths.push(length);
            throttle.learn(length, length, 100, Some(0.011));
        }
        assert_eq!(lengths, [4, 8, 16, 16]);
        throttle.learn(16, 5, 100, Some(0.011));
        assert_eq!(throttle.length(100), 6);
    }

    #[test]
    fn pauses_grow_while_drafts_lose_time_and_shrink_again() {
        let mut throttle = timed();
        let fail = |throttle: &mut Throttle, len: usize| {
            for _ in 0..10 {
                match throttle.length(len) {
                    0 => return throttle.resume - len,
                    length => throttle.learn(length, 1, len, Some(0.01 * (1 + length) as f64)),
                }
            }
            panic!("drafts that fail go on");
        };
        assert_eq!(fail(&mut throttle, 100), 16);
        assert_eq!((throttle.length(115), throttle.length(116)), (0, 4));
        let pauses: Vec<usize> = (1..8).map(|i| fail(&mut throttle, 10_000 * i)).collect();
        assert_eq!(pauses, [32, 64, 128, 256, 512, 1024, 1024]);
        throttle.learn(4, 4, 90_000, Some(0.02));
        assert_eq!(fail(&mut throttle, 95_000), 16);
    }

    #[test]
    fn drafts_that_cost_nothing_go_on_though_most_are_wrong() {
        let mut throttle = timed();
        (0..100).for_each(|_| throttle.learn(4, 0, 100, Some(0.0105)));
        assert_eq!(throttle.length(100), 4);
    }

    #[test]
    fn steps_that_prompts_held_up_tell_nothing_about_drafts() {
        let mut throttle = timed();
        // Each would look like a step whose drafts cost as much as steps of their own.
        (0..100).for_each(|_| throttle.learn(4, 0, 100, None));
        assert_eq!(throttle.length(100), 4);
        (0..100).for_each(|_| throttle.learn(0, 0, 100, None));
        throttle.learn(4, 4, 100, None);
        assert_eq!(throttle.length(100), 8);
        (0..4).for_each(|_| throttle.learn(4, 0, 100, Some(0.05)));
        assert_eq!(throttle.length(100), 0);
    }

    #[test]
    fn drafts_are_bounded_whatever_a_drafter_says() {
        #[derive(Debug)]
        struct Wild;
        impl Drafter for Wild {
            fn draft(&mut self, _: &[u32], _: usize) -> Vec<u32> {
                vec![1, 2, 99, 3, 4, 5, 6, 7, 8]
            }
        }
        let mut drafting = Drafting::new(Box::new(Wild));
        (0..TIMED_STEPS).for_each(|_| drafting.learn(0, 0, 1, Some(0.01)));
        assert_eq!(drafting.draft(&[0], 9, 99), [1, 2]);
        assert_eq!(drafting.draft(&[0], 9, 100), [1, 2, 99, 3]);
        assert_eq!(drafting.draft(&[0], 1, 100), [1]);
        assert!(drafting.draft(&[0], 0, 100).is_empty());
    }
}
