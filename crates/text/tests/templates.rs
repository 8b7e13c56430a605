//! Chat templates of many model makers against what Python's Jinja2 makes of them
//! (`xtask/golden/chat_templates.py`), and templates that try to do harm.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use unicorn_text::{ChatTemplate, DateTime, RenderOptions, TemplateError};

/// Templates and conversations that do not come out as in Jinja2, with the reason.
const UNSUPPORTED: &[(&str, &[&str], &str)] = &[
    (
        "CohereForAI-c4ai-command-r-plus-tool_use.jinja",
        &["chat", "chat_open", "reasoning", "no_thinking", "parts"],
        NONE_IS_EMPTY,
    ),
    ("LFM2.5-8B-A1B.jinja", &["two_calls"], NONE_IS_EMPTY),
    (
        "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja",
        &["chat", "chat_open", "reasoning", "no_thinking"],
        NONE_IS_EMPTY,
    ),
    (
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja",
        &["chat", "chat_open", "reasoning", "no_thinking"],
        NONE_IS_EMPTY,
    ),
    ("llama-cpp-deepseek-r1.jinja", &["tools", "tools_answered", "two_calls"], GENERATOR),
    ("meetkai-functionary-medium-v3.1.jinja", &["tools", "tools_answered", "two_calls"], MARKUP),
];

const NONE_IS_EMPTY: &str =
    "a loop over None, or a search in it, finds nothing where Python raises a TypeError";
const GENERATOR: &str = "tojson accepts the result of a filter where Python refuses to serialize a generator";
const MARKUP: &str = "text added to a string marked `safe` stays as it is where Jinja2 escapes it for HTML";

fn render(source: &str, golden: &Value, arguments: &Value) -> Result<String, TemplateError> {
    let text = |key: &str| golden[key].as_str().unwrap();
    let now = golden["now"].as_array().unwrap();
    let now = |at: usize| now[at].as_i64().unwrap();
    let mut arguments = arguments.as_object().unwrap().clone();
    let messages = arguments.remove("messages").unwrap();
    let options = RenderOptions {
        add_generation_prompt: arguments.remove("add_generation_prompt").unwrap().as_bool().unwrap(),
        tools: arguments.remove("tools"),
        documents: arguments.remove("documents"),
        kwargs: arguments,
        now: Some(DateTime {
            year: now(0),
            month: now(1) as u8,
            day: now(2) as u8,
            hour: now(3) as u8,
            minute: now(4) as u8,
            second: now(5) as u8,
        }),
        as_given: true,
        ..RenderOptions::default()
    };
    // With the template's own special tokens, so that marks in the messages would show where they do harm.
    let mut controls = vec![text("bos_token").to_owned(), text("eos_token").to_owned()];
    controls.extend(special_tokens(source));
    let template = ChatTemplate::new(source, &common::byte_tokenizer(&controls))?.unwrap();
    Ok(template.render(&messages, &options)?.prompt.plain_text().to_owned())
}

/// What looks like a special token in a template: `<|..|>`, `<｜..｜>`, `[INST]`, `<start_of_turn>`.
fn special_tokens(source: &str) -> BTreeSet<String> {
    let mut tokens = BTreeSet::new();
    for (open, close) in [("<|", "|>"), ("<｜", "｜>"), ("[", "]"), ("<start_of_", ">"), ("<end_of_", ">")]
    {
        for (at, _) in source.match_indices(open) {
            let Some(end) = source[at..].find(close).map(|end| at + end + close.len()) else { continue };
            let token = &source[at..end];
            let inner = &token[open.len()..token.len() - close.len()];
            let is_name = |c: char| c.is_ascii_uppercase() || c == '_' || (open != "[" && c.is_alphabetic());
            if !inner.is_empty() && inner.chars().all(is_name) {
                tokens.insert(token.to_owned());
            }
        }
    }
    tokens
}

/// What differs, or nothing.
fn difference(expected: &Value, found: Result<String, TemplateError>) -> Option<String> {
    if let Some(error) = expected["error"].as_str() {
        return match (error.strip_prefix("TemplateError: "), found) {
            (Some(message), Err(TemplateError::Raised(found))) if message == found => None,
            (Some(_), found) => Some(format!("expected `{error}`, found {found:?}")),
            (None, Err(_)) => None,
            (None, Ok(text)) => Some(format!("expected `{error}`, found text {text:?}")),
        };
    }
    let text = match found {
        Ok(text) => text,
        Err(error) => return Some(format!("expected text, found error `{error}`")),
    };
    let (begin, same) = match expected["text"].as_str() {
        Some(whole) => (whole, whole == text),
        None => {
            let digest: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
            (expected["begin"].as_str().unwrap(), expected["sha256"] == digest.as_str())
        }
    };
    if same {
        return None;
    }
    let common = text.char_indices().zip(begin.chars()).find(|((_, a), b)| a != b);
    let at = common.map_or(text.len().min(begin.len()), |((at, _), _)| at);
    let near = |text: &str| {
        text[..text.len().min(text.ceil_char_boundary(at + 80))][at.min(text.len())..].to_owned()
    };
    Some(format!("byte {at}: expected {:?}, found {:?}", near(begin), near(&text)))
}

#[test]
fn templates_render_as_in_jinja2() {
    let golden = include_str!("../../../tests/data/templates/golden.json");
    let golden: Value = serde_json::from_str(golden).unwrap();
    let folder = common::llama_cpp_models().join("templates");
    let unsupported: BTreeMap<(&str, &str), &str> = UNSUPPORTED
        .iter()
        .flat_map(|(template, cases, reason)| cases.iter().map(|case| ((*template, *case), *reason)))
        .collect();
    let (mut total, mut wrong) = (0, Vec::new());
    for (name, results) in golden["templates"].as_object().unwrap() {
        let source = std::fs::read_to_string(folder.join(name)).unwrap();
        for (case, expected) in results.as_object().unwrap() {
            total += 1;
            let found = render(&source, &golden, &golden["conversations"][case]);
            let listed = unsupported.get(&(name.as_str(), case.as_str()));
            match (difference(expected, found), listed) {
                (Some(difference), None) => wrong.push(format!("{name} / {case}: {difference}")),
                (None, Some(reason)) => {
                    wrong.push(format!("{name} / {case} works now: take it off the list ({reason})"));
                }
                _ => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {total} renderings:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(total, 560);
}

/// Renders a hostile template: it must end in an error, soon, and without much memory.
#[track_caller]
fn refused(source: &str) -> TemplateError {
    eprintln!("{source:.160}");
    let start = Instant::now();
    let messages = json!([{"role": "user", "content": "a".repeat(100_000)}]);
    let tokenizer = common::byte_tokenizer(&["<s>".to_owned(), "</s>".to_owned()]);
    let options = RenderOptions { as_given: true, ..RenderOptions::default() };
    let result = ChatTemplate::new(source, &tokenizer)
        .and_then(|template| template.expect("a template").render(&messages, &options));
    let elapsed = start.elapsed();
    assert!(elapsed < Duration::from_secs(1), "{source:.80}: {elapsed:?}");
    match result {
        Ok(text) => panic!("{source:.80}: rendered {} bytes", text.prompt.plain_text().len()),
        Err(error) => error,
    }
}

#[test]
fn endless_work_is_refused() {
    for source in [
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(1) }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ range(100000000) | list | sum }}",
        "{{ range(100000000) | map('string') | join }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
    ] {
        refused(source);
    }
}

#[test]
fn huge_texts_are_refused() {
    for source in [
        "{{ 'a' * 1000000000 }}",
        "{{ 'a' * 10 ** 18 }}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ [ns.s] | join }}",
        "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | string }}",
        "{% set m = messages[0].content %}{{ m.replace('a', m) }}",
        "{% set m = messages[0].content %}{{ m | replace('a', m) }}",
        "{% set m = messages[0].content %}{{ m.join([m] * 100000) }}",
        "{% set m = messages[0].content %}{{ [m] * 100000 | join }}{{ ([m] * 100000) | join(m) }}",
        "{% set m = messages[0].content %}{{ ([m] * 100000) | tojson }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 1000000000) }}",
        "{{ '%1000000000s' | format('a') }}",
        "{{ 'a' | indent(1000000000, true) }}",
        "{{ [1, 2] | tojson(indent=1000000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ [[[1] * 10000] * 10000] * 10000 | tojson }}",
    ] {
        refused(source);
    }
}

#[test]
fn deeply_nested_sources_are_refused() {
    let open = 60_000;
    refused(&format!("{{{{ {}1{} }}}}", "(".repeat(open), ")".repeat(open)));
    refused(&format!("{{{{ {}1{} }}}}", "[".repeat(open), "]".repeat(open)));
    refused(&format!("{{{{ {}1 }}}}{{{{ x.y.z }}}}", "not ".repeat(open - 1000)));
    refused(&format!("{{{{ {}1 }}}}{{{{ x.y.z }}}}", "-".repeat(open)));
    refused(&format!("{{{{ 1{} }}}}{{{{ x.y.z }}}}", " ** 1".repeat(open / 2)));
    refused(&format!("{{{{ 1{} }}}}{{{{ x.y.z }}}}", " + 1".repeat(open - 1000)));
    refused(&format!("{{{{ x{} }}}}", ".y".repeat(open)));
    refused(&format!("{{{{ x{} }}}}{{{{ x.y.z }}}}", "|list".repeat(open / 2)));
    refused(&format!("{}{}{{{{ x.y.z }}}}", "{% if 1 %}".repeat(open / 4), "{% endif %}".repeat(open / 4)));
    refused(&format!("{{% if 0 %}}{}{{% endif %}}{{{{ x.y.z }}}}", "{% elif 0 %}".repeat(open / 4)));
}

#[test]
fn deeply_nested_values_are_refused() {
    for (grow, depth) in [("[ns.s]", 100_000), ("{'a': ns.s}", 100_000), ("(ns.s,)", 100_000)] {
        let nested = format!(
            "{{% set ns = namespace(s=[]) %}}{{% for i in range({depth}) %}}{{% set ns.s = {grow} %}}{{% endfor %}}"
        );
        refused(&format!("{nested}{{{{ raise_exception('dropped') }}}}"));
        refused(&format!("{nested}{{{{ ns.s | tojson }}}}"));
        refused(&format!("{nested}{{{{ ns.s }}}}{{{{ raise_exception('printed') }}}}"));
        refused(&format!("{nested}{{{{ ns.s == {grow} }}}}{{{{ raise_exception('compared') }}}}"));
    }
}

#[test]
fn nothing_outside_is_in_reach() {
    for source in [
        "{% include 'other' %}",
        "{% import '/etc/passwd' as x %}",
        "{% extends 'chat' %}",
        "{{ debug() }}",
        "{{ strftime_now('%Y') }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__mro__[1] }}",
    ] {
        refused(source);
    }
}
