//! Methods of Python's `str`, `list` and `dict` that templates call.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::specials::SpecialTexts;

/// A format string longer than this, or a number in it with more digits than `FORMAT_DIGITS_MAX`, is an attack.
const FORMAT_BYTES_MAX: usize = 1 << 16;
const FORMAT_DIGITS_MAX: usize = 4;

/// Calls a method of a built-in type. Those that would change the value are unknown, as in Jinja2's sandbox.
pub(super) fn call(
    state: &mut State,
    value: &Value,
    method: &str,
    args: &[Value],
    guard: Option<(&SpecialTexts, char)>,
) -> Result<Value, Error> {
    match value.as_str() {
        Some(text) => match string_method(state, text, method, args, guard)? {
            Some(result) => Ok(result),
            None => pycompat::unknown_method_callback(state, value, method, args),
        },
        None if value.kind() == ValueKind::Seq && method == "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == *wanted);
            at.map(Value::from).ok_or_else(|| invalid("the list does not contain this value"))
        }
        None if matches!(value.kind(), ValueKind::Seq | ValueKind::Map) && method == "copy" => {
            let () = from_args(args)?;
            Ok(value.clone())
        }
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

fn invalid(reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason.into())
}

/// Pays for text before it is made.
fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64 + 1)
}

/// `text.replace(old, new, count)`. Where something is removed and the text around it would become a special
/// token, a mark makes text of that.
pub(super) fn replace(
    state: &State,
    text: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
    guard: Option<(&SpecialTexts, char)>,
) -> Result<Value, Error> {
    pay(state, text.len())?;
    let limit = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let found = text.matches(old).count().min(limit);
    pay(state, found.saturating_mul(new.len()))?;
    Ok(match guard {
        Some((specials, mark)) if new.is_empty() && found > 0 => {
            let (mut rest, mut seams) = (String::with_capacity(text.len()), Vec::new());
            for (at, piece) in text.splitn(limit.saturating_add(1), old).enumerate() {
                seams.extend(Some(rest.len()).filter(|_| at > 0));
                rest.push_str(piece);
            }
            specials.mark_seams(&rest, &seams, mark).into()
        }
        _ => text.replacen(old, new, limit).into(),
    })
}

fn string_method(
    state: &State,
    text: &str,
    method: &str,
    args: &[Value],
    guard: Option<(&SpecialTexts, char)>,
) -> Result<Option<Value>, Error> {
    pay(state, text.len())?;
    let tuple = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from).to_vec()));
    Ok(Some(match method {
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(state, text, old, new, count, guard)?
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            join(state, text, items)?
        }
        "format" => {
            let digits = text.split(|c: char| !c.is_ascii_digit()).map(str::len).max().unwrap_or(0);
            let nested = text.contains(":{") || text.matches('{').count() > 1000;
            if text.len() > FORMAT_BYTES_MAX || digits > FORMAT_DIGITS_MAX || nested {
                return Err(invalid("format: the format string is too large"));
            }
            return Ok(None);
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "partition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (before, after) = text.split_once(separator).unwrap_or((text, ""));
            tuple([before, if before.len() < text.len() { separator } else { "" }, after])
        }
        "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            match text.rsplit_once(separator) {
                Some((before, after)) => tuple([before, separator, after]),
                None => tuple(["", "", text]),
            }
        }
        "rsplit" => {
            let (separator, splits): (Option<&str>, Option<i64>) = from_args(args)?;
            rsplit(text, separator, splits)
        }
        "index" | "rindex" => {
            let (wanted,): (&str,) = from_args(args)?;
            let at = if method == "index" { text.find(wanted) } else { text.rfind(wanted) };
            let at = at.ok_or_else(|| invalid("substring not found"))?;
            text[..at].chars().count().into()
        }
        "casefold" => {
            let () = from_args(args)?;
            text.to_lowercase().into()
        }
        "isdecimal" => {
            let () = from_args(args)?;
            (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).into()
        }
        _ => return Ok(None),
    }))
}

fn join(state: &State, separator: &str, items: &Value) -> Result<Value, Error> {
    let mut output = String::new();
    for (at, item) in items.try_iter()?.enumerate() {
        if at > 0 {
            output.push_str(separator);
        }
        // Python joins strings only; anything else is an error there.
        let item = item.as_str().ok_or_else(|| {
            invalid(format!("sequence item {at}: expected str instance, {} found", item.kind()))
        })?;
        pay(state, separator.len() + item.len())?;
        output.push_str(item);
    }
    Ok(output.into())
}

fn rsplit(text: &str, separator: Option<&str>, splits: Option<i64>) -> Value {
    let limit = splits.and_then(|n| usize::try_from(n).ok()).map_or(usize::MAX, |n| n.saturating_add(1));
    let mut parts: Vec<Value> = match separator {
        Some(separator) => text.rsplitn(limit, separator).map(Value::from).collect(),
        None => {
            let mut parts = Vec::new();
            let mut rest = text.trim_end();
            while !rest.is_empty() && parts.len() + 1 < limit {
                let start = rest
                    .rfind(char::is_whitespace)
                    .map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
                parts.push(Value::from(&rest[start..]));
                rest = rest[..start].trim_end();
            }
            parts.extend(Some(rest).filter(|rest| !rest.is_empty()).map(Value::from));
            parts
        }
    };
    parts.reverse();
    Value::from(parts)
}
