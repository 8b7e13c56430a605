//! What is written down of a request: figures and names, never what was said.

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::json;
use unicorn_engine::Timings;

use crate::model::Loader;

/// Notices that a client is told, at most.
const NOTICES_MAX: usize = 8;

/// A request as it is answered. Everybody who works at its answer holds it; when the last one lets go, a stream's too, it is written down.
pub(crate) struct Record {
    id: String,
    route: String,
    method: String,
    began: Instant,
    status: AtomicU16,
    told: Mutex<Told>,
    /// Who writes it down, if anybody does.
    log: Option<Arc<dyn Loader>>,
}

#[derive(Default)]
struct Told {
    model: Option<String>,
    answers: Vec<Ended>,
    notices: Vec<String>,
}

/// An answer that has ended.
struct Ended {
    finish: &'static str,
    timings: Timings,
}

impl Record {
    /// Of a request that has just come. `log` writes it down in the end.
    pub fn new(id: &str, method: &str, route: &str, log: Option<Arc<dyn Loader>>) -> Record {
        Record {
            id: id.to_owned(),
            route: route.to_owned(),
            method: method.to_owned(),
            began: Instant::now(),
            status: AtomicU16::new(0),
            told: Mutex::default(),
            log,
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer begins with this status.
    pub fn answered(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
    }

    /// This model answers.
    pub fn model(&self, id: &str) {
        self.told().model = Some(id.to_owned());
    }

    /// What could not be honoured as it was asked for.
    pub fn notices(&self, notices: &[String]) {
        let mut told = self.told();
        let new: Vec<String> =
            notices.iter().filter(|notice| !told.notices.contains(notice)).cloned().collect();
        told.notices.extend(new);
        told.notices.truncate(NOTICES_MAX);
    }

    /// All of these in a line that a header may hold; `None` where there are none.
    pub fn notice(&self) -> Option<String> {
        const LENGTH_MAX: usize = 1000;
        let line = self.told().notices.join("; ");
        let plain = |c: char| if (' '..='~').contains(&c) { c } else { '?' };
        (!line.is_empty()).then(|| line.chars().take(LENGTH_MAX).map(plain).collect())
    }

    /// An answer has ended, for this reason.
    pub fn ended(&self, finish: &'static str, timings: &Timings) {
        self.told().answers.push(Ended { finish, timings: *timings });
    }

    fn line(&self) -> String {
        let told = self.told();
        let sum =
            |of: fn(&Timings) -> usize| told.answers.iter().map(|answer| of(&answer.timings)).sum::<usize>();
        let most = |of: fn(&Timings) -> f64| told.answers.iter().map(|a| of(&a.timings)).fold(0.0, f64::max);
        let rounded = |seconds: f64| (seconds * 1e6).round() / 1e6;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let first = told.answers.first().map(|answer| answer.timings).unwrap_or_default();
        let status = Some(self.status.load(Ordering::Relaxed)).filter(|status| *status > 0);
        json!({
            "time": rounded(time), "id": self.id, "method": self.method, "route": self.route, "model": told.model,
            "status": status, "seconds": rounded(self.began.elapsed().as_secs_f64()),
            "finish": told.answers.iter().map(|answer| answer.finish).collect::<Vec<_>>(),
            "prompt_tokens": first.prompt_tokens, "cached_tokens": first.reused_tokens,
            "completion_tokens": sum(|t| t.generated_tokens), "queue_seconds": rounded(most(|t| t.queue_seconds)),
            "prefill_seconds": rounded(most(|t| t.prefill_seconds)),
            "decode_seconds": rounded(most(|t| t.decode_seconds)),
        })
        .to_string()
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.log(&self.line());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_fit_into_a_header() {
        let record = Record::new("req_1", "POST", "/", None);
        assert_eq!(record.notice(), None);
        record.notices(&["tool \"f\": pätt\nern".into(), "x".repeat(5000)]);
        record.notices(&["tool \"f\": pätt\nern".into()]);
        let line = record.notice().unwrap();
        assert!(line.starts_with("tool \"f\": p?tt?ern; xxx") && line.len() == 1000, "{line}");
    }

    #[test]
    fn a_line_has_figures_of_all_answers() {
        let record = Record::new("req_1", "POST", "/v1/completions", None);
        record.model("m");
        record.answered(200);
        let timings =
            Timings { prompt_tokens: 7, reused_tokens: 2, generated_tokens: 3, ..Timings::default() };
        record.ended("stop", &timings);
        record.ended("length", &timings);
        let line: serde_json::Value = serde_json::from_str(&record.line()).unwrap();
        assert_eq!((&line["prompt_tokens"], &line["completion_tokens"]), (&json!(7), &json!(6)));
        assert_eq!((&line["finish"], &line["status"]), (&json!(["stop", "length"]), &json!(200)));
        assert!(!record.line().contains('\n'));
    }
}
