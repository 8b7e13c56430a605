//! Other grammars than schemas, what attacks cost, and what a token costs.

mod common;

use std::time::{Duration, Instant};

use common::{accepts, answer, gemma3, smollm2};
use serde_json::{Value, json};
use unicorn_grammar::{Grammar, GrammarError, Matcher, Strictness, Vocabulary};
use unicorn_text::EncodeOptions;

#[test]
fn regular_expressions_and_choices_match_as_a_whole() {
    let grammar = Grammar::regex(smollm2(), r"[0-9]{3}-(yes|no)").unwrap();
    assert!(accepts(&grammar, "123-yes") && !accepts(&grammar, "123-maybe") && !accepts(&grammar, "12"));
    let choice = Grammar::choice(smollm2(), &["red".to_owned(), "reddish".to_owned()]).unwrap();
    assert!(accepts(&choice, "red") && accepts(&choice, "reddish") && !accepts(&choice, "redd"));
    assert!(matches!(Grammar::choice(smollm2(), &[]), Err(GrammarError::Unsatisfiable { .. })));
    assert!(matches!(Grammar::regex(smollm2(), "(a"), Err(GrammarError::Syntax { .. })));
    assert!(Grammar::regex(smollm2(), "(?=a)b").is_err());
}

#[test]
fn end_tokens_are_allowed_where_the_grammar_may_end() {
    let vocabulary = smollm2();
    let grammar = Grammar::choice(vocabulary, &["red".to_owned(), "reddish".to_owned()]).unwrap();
    let end = vocabulary.ends()[0];
    let mut matcher = Matcher::new(&grammar);
    assert!(!matcher.mask().unwrap().unwrap().allows(end) && !matcher.may_end());
    assert!(Matcher::new(&grammar).accept(end).is_err());
    for id in vocabulary.tokenizer().encode("red", EncodeOptions::default()).unwrap() {
        assert!(!matcher.accept(id).unwrap());
    }
    let mask = matcher.mask().unwrap().unwrap();
    assert!(vocabulary.ends().iter().all(|end| mask.allows(*end)) && mask.fits(vocabulary.size()));
    assert!(matcher.accept(end).unwrap(), "complete");
    assert!(matcher.mask().is_err() && matcher.accept(end).is_err());
}

#[test]
fn lark_and_gbnf_grammars_are_followed() {
    let lark = Grammar::lark(smollm2(), "start: \"a\" item+\nitem: /[0-9]/ | \"(\" item \")\"").unwrap();
    assert!(accepts(&lark, "a1(2)") && !accepts(&lark, "a") && !accepts(&lark, "a(1"));
    assert!(Grammar::lark(smollm2(), "begin: \"a\"").is_err());

    let flat = Grammar::gbnf(smollm2(), "root ::= \"x\" [a-c]{1,2} tail?\ntail ::= \"-\" [0-9]+").unwrap();
    assert!(
        accepts(&flat, "xab-10") && accepts(&flat, "xc") && !accepts(&flat, "x") && !accepts(&flat, "xabc")
    );
    let nested = Grammar::gbnf(
        smollm2(),
        "root ::= expr\nexpr ::= term (\"+\" term)*\nterm ::= [0-9]+ | [a-z]* \"x\" | \"(\" expr \")\"",
    );
    let nested = nested.unwrap();
    assert!(accepts(&nested, "1+(22+abx)") && !accepts(&nested, "(1") && !accepts(&nested, "ab"));
    for seed in 0..5 {
        if let Some(text) = answer(&nested, seed, &[")", "1", "x"]) {
            assert!(accepts(&nested, &text), "{text}");
        }
    }
    assert!(matches!(Grammar::gbnf(smollm2(), "root ::= other"), Err(GrammarError::Syntax { .. })));
}

/// What must be refused, or compiled, in under a second, and never costs the process.
fn attacks() -> Vec<(&'static str, Value)> {
    let mut nested = json!({"type": "string"});
    for _ in 0..3000 {
        nested = json!({"items": nested});
    }
    let groups = "(a|b)".repeat(60_000);
    let depth = format!("{}a{}", "(".repeat(5_000), ")".repeat(5_000));
    let many: Vec<String> = (0..60_000).map(|i| format!("value number {i}")).collect();
    let wide: Vec<Value> = (0..40)
        .map(|i| json!({"properties": {format!("p{i}"): {"type": "integer"}, "q": {"minimum": i}}}))
        .collect();
    vec![
        ("nesting", nested),
        (
            "reference circle",
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}]}, "b": {"$ref": "#/$defs/a"}}}),
        ),
        ("groups", json!({"type": "string", "pattern": groups})),
        ("groups within groups", json!({"type": "string", "pattern": depth})),
        ("repetition", json!({"type": "string", "pattern": "^(a{0,1000000000}b){0,1000000000}$"})),
        (
            "nested repetition",
            json!({"type": "string", "pattern": "^((((a{1,1000}){1,1000}){1,1000}){1,1000})$"}),
        ),
        ("long strings", json!({"type": "string", "minLength": 1_000_000_000u64})),
        ("long arrays", json!({"type": "array", "minItems": 1_000_000_000u64, "items": {"type": "integer"}})),
        ("large enum", json!({"enum": many})),
        ("exponential oneOf", json!({"oneOf": wide})),
        (
            "exponential allOf",
            json!({"allOf": (0..30).map(|i| json!({"anyOf": [{"required": [format!("a{i}")]}, {"required": [format!("b{i}")]}]})).collect::<Vec<_>>()}),
        ),
        (
            "many optional properties",
            json!({"type": "object", "additionalProperties": false, "properties":
            (0..5000).map(|i| (format!("property{i}"), json!({"type": "string"}))).collect::<serde_json::Map<_, _>>()}),
        ),
        ("huge bound", json!({"type": "integer", "minimum": 1e308, "maximum": 1.7e308})),
    ]
}

#[test]
fn attacks_are_refused_or_compiled_in_time() {
    let vocabulary = smollm2();
    for (name, schema) in attacks() {
        let start = Instant::now();
        let result = Grammar::json_schema(vocabulary, &schema, Strictness::Strict);
        let elapsed = start.elapsed();
        println!(
            "{name}: {elapsed:?} {}",
            result.as_ref().map_or_else(ToString::to_string, |_| "compiled".to_owned())
        );
        // Twice the second that is promised: tests run beside each other.
        assert!(elapsed < Duration::from_secs(2), "{name} took {elapsed:?}");
        if let Ok(grammar) = result {
            let mask = Matcher::new(&grammar).mask();
            assert!(mask.map_or(true, |mask| mask.is_some()), "{name} is not constrained");
        }
        let relaxed = Instant::now();
        drop(Grammar::json_schema(vocabulary, &schema, Strictness::Relaxed));
        assert!(relaxed.elapsed() < Duration::from_secs(3), "{name} relaxed took {:?}", relaxed.elapsed());
    }
    for text in ["(".repeat(60_000), "(a|b)".repeat(60_000), "(a{0,1000000000}){0,1000000000}".to_owned()] {
        let start = Instant::now();
        drop(Grammar::regex(vocabulary, &text));
        drop(Grammar::lark(vocabulary, &format!("start: /{text}/")));
        drop(Grammar::lark(vocabulary, &format!("start: {text}")));
        drop(Grammar::gbnf(vocabulary, &format!("root ::= {text}")));
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
}

/// A schema as programs have them, with twenty properties.
fn twenty() -> Value {
    let property = |i: usize| match i % 4 {
        0 => json!({"type": "string"}),
        1 => json!({"type": "integer", "minimum": 0, "maximum": 1000}),
        2 => json!({"enum": ["alpha", "beta", "gamma"]}),
        _ => {
            json!({"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}})
        }
    };
    let properties: serde_json::Map<String, Value> =
        (0..20).map(|i| (format!("property_{i}"), property(i))).collect();
    let required: Vec<&String> = properties.keys().step_by(2).collect();
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

fn cost(name: &str, vocabulary: &Vocabulary) {
    let start = Instant::now();
    let grammar = Grammar::json_schema(vocabulary, &twenty(), Strictness::Strict).unwrap();
    let compile = start.elapsed();
    let value: serde_json::Map<String, Value> = (0..20)
        .map(|i| {
            let value = match i % 4 {
                0 => json!("some text with words in it"),
                1 => json!(17 * i),
                2 => json!("beta"),
                _ => json!([{"x": 1.5}, {"x": -20}]),
            };
            (format!("property_{i}"), value)
        })
        .collect();
    let text = Value::Object(value).to_string();
    let ids = vocabulary.tokenizer().encode(&text, EncodeOptions::default()).unwrap();
    for round in ["first", "again"] {
        let mut matcher = Matcher::new(&grammar);
        let mut masks = Vec::new();
        for id in &ids {
            let start = Instant::now();
            assert!(matcher.mask().unwrap().is_some());
            masks.push(start.elapsed());
            matcher.accept(*id).unwrap();
        }
        assert!(matcher.may_end());
        masks.sort();
        let mean = masks.iter().sum::<Duration>() / masks.len() as u32;
        println!(
            "{name} {round}: compile {compile:?}, {} tokens, mask mean {mean:?}, p50 {:?}, p99 {:?}",
            masks.len(),
            masks[masks.len() / 2],
            masks[masks.len() * 99 / 100]
        );
        assert!(mean < Duration::from_millis(20), "{name}: {mean:?} for a mask");
    }
}

#[test]
fn masks_are_fast_for_small_and_large_vocabularies() {
    cost("49k tokens", smollm2());
    let start = Instant::now();
    let gemma = gemma3();
    println!("262k tokens laid out in {:?}", start.elapsed());
    cost("262k tokens", gemma);
}
