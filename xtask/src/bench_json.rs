//! What `unicorn bench --output json` and `llama-bench -o json` report.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

/// One test of one run.
#[derive(Clone, PartialEq, Debug)]
pub struct Rate {
    /// As llama-bench names it: `pp512`, `tg128`, with ` @ d4096` behind it at a depth.
    pub test: String,
    pub tokens_per_second: f64,
    /// Between 0 and 1; of our own runs only.
    pub share_of_roof: Option<f64>,
}

/// Reads our own report.
pub fn unicorn(json: &str) -> Result<Vec<Rate>> {
    #[derive(Deserialize)]
    struct Speed {
        median: f64,
    }
    #[derive(Deserialize)]
    struct Entry {
        test: String,
        tokens_per_second: Speed,
        share_of_roof: Option<f64>,
    }
    let entries: Vec<Entry> = serde_json::from_str(json).context("output of unicorn bench")?;
    ensure!(!entries.is_empty(), "unicorn bench reported no test");
    let rate = |e: Entry| Rate {
        test: e.test,
        tokens_per_second: e.tokens_per_second.median,
        share_of_roof: e.share_of_roof,
    };
    Ok(entries.into_iter().map(rate).collect())
}

/// Reads llama-bench's report, and the commit it was built from.
pub fn llama(json: &str) -> Result<(Vec<Rate>, String)> {
    #[derive(Deserialize)]
    struct Entry {
        build_commit: String,
        n_prompt: u64,
        n_gen: u64,
        #[serde(default)]
        n_depth: u64,
        avg_ts: f64,
    }
    let entries: Vec<Entry> = serde_json::from_str(json).context("output of llama-bench")?;
    let commit = entries.first().context("llama-bench reported no test")?.build_commit.clone();
    let rate = |e: &Entry| {
        let mut test = match (e.n_prompt, e.n_gen) {
            (prompt, 0) => format!("pp{prompt}"),
            (0, generated) => format!("tg{generated}"),
            (prompt, generated) => format!("pp{prompt}+tg{generated}"),
        };
        if e.n_depth > 0 {
            test.push_str(&format!(" @ d{}", e.n_depth));
        }
        Rate { test, tokens_per_second: e.avg_ts, share_of_roof: None }
    };
    Ok((entries.iter().map(rate).collect(), commit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_report() {
        let json = r#"[{"test": "pp512", "tokens_per_second": {"median": 100.5, "min": 99, "max": 101},
            "device": "cpu", "model": "m", "share_of_roof": 0.61}]"#;
        let expected = Rate { test: "pp512".into(), tokens_per_second: 100.5, share_of_roof: Some(0.61) };
        assert_eq!(unicorn(json).unwrap(), [expected]);
        assert!(unicorn("[]").is_err());
        assert!(unicorn("error: no model").is_err());
    }

    #[test]
    fn their_report() {
        let json = r#"[{"build_commit": "0c1e570", "n_prompt": 512, "n_gen": 0, "n_depth": 0, "avg_ts": 224.4},
            {"build_commit": "0c1e570", "n_prompt": 0, "n_gen": 128, "n_depth": 64, "avg_ts": 50.0}]"#;
        let (rates, commit) = llama(json).unwrap();
        assert_eq!(commit, "0c1e570");
        let tests: Vec<(&str, f64)> = rates.iter().map(|r| (r.test.as_str(), r.tokens_per_second)).collect();
        assert_eq!(tests, [("pp512", 224.4), ("tg128 @ d64", 50.0)]);
        assert!(llama("[]").is_err());
    }
}
