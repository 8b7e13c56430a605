//! From messages or text to prompt tokens.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use unicorn_text::{DateTime, EncodeOptions, RenderOptions};

use crate::conversation::Conversation;
use crate::session::TextSide;

/// A prompt as tokens.
pub type Tokens = Vec<u32>;

/// The conversation in the model's own format, ready for the next answer; `None` for a model without one.
pub fn chat(text: &TextSide, conversation: &Conversation) -> anyhow::Result<Option<Tokens>> {
    let Some(template) = text.template()? else { return Ok(None) };
    let messages = serde_json::to_value(conversation.messages())?;
    let options = RenderOptions { now: now(), ..RenderOptions::default() };
    let rendered = template.render(&messages, &options).context("chat template")?;
    let options = EncodeOptions { parse_special: true, add_special: false };
    let mut tokens = text.tokenizer.encode(&rendered, options)?;
    // Most templates write the beginning-of-sequence token themselves; those that do not rely on the tokenizer.
    if let Some(bos) = text.tokenizer.bos().filter(|_| text.tokenizer.adds_bos())
        && tokens.first() != Some(&bos)
    {
        tokens.insert(0, bos);
    }
    Ok(Some(tokens))
}

/// Text to be continued as it is. Special tokens written out in it count as such where `special` is set.
pub fn raw(text: &TextSide, prompt: &str, special: bool) -> anyhow::Result<Tokens> {
    let options = EncodeOptions { parse_special: special, add_special: true };
    Ok(text.tokenizer.encode(prompt, options)?)
}

/// The date that templates may tell the model, in UTC.
fn now() -> Option<DateTime> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    date_time(i64::try_from(since.as_secs()).ok()?)
}

/// Seconds since 1970 as a date of the Gregorian calendar. Years begin in March here, so that the leap day comes last.
fn date_time(seconds: i64) -> Option<DateTime> {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let days = days + 719_468; // since 0000-03-01
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    Some(DateTime {
        year: year + era * 400 + next,
        month: u8::try_from(month).ok()?,
        day: u8::try_from(day).ok()?,
        hour: u8::try_from(second / 3600).ok()?,
        minute: u8::try_from(second / 60 % 60).ok()?,
        second: u8::try_from(second % 60).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let date = |seconds| {
            let d = date_time(seconds).unwrap();
            format!("{}-{:02}-{:02} {:02}:{:02}:{:02}", d.year, d.month, d.day, d.hour, d.minute, d.second)
        };
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_868_799), "2000-02-29 23:59:59");
        assert_eq!(date(1_709_251_200), "2024-03-01 00:00:00");
        assert_eq!(date(1_798_761_599), "2026-12-31 23:59:59");
    }
}
