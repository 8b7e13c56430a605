//! Calls and thoughts: whatever the grammar admits, the reader understands, however the text is cut.

mod common;

use std::time::Instant;

use common::{Numbers, accepts, answer, smollm2};
use serde_json::{Value, json};
use unicorn_grammar::{AnswerRules, Body, Dialect, Matcher, Piece, Reader, Thinking, Tool, ToolChoice};

fn tools() -> Vec<Tool> {
    vec![
        Tool {
            name: "get_weather".to_owned(),
            description: Some("Tells the weather.".to_owned()),
            parameters: json!({"type": "object", "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 1, "maximum": 14},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            }, "required": ["city"]}),
            strict: false,
        },
        Tool {
            name: "search".to_owned(),
            description: None,
            parameters: json!({"type": "object", "properties": {
                "filters": {"type": "array", "items": {"type": "object", "properties": {"key": {"type": "string"}}}},
            }, "required": ["filters"]}),
            strict: true,
        },
        Tool { name: "now".to_owned(), description: None, parameters: json!({}), strict: false },
    ]
}

/// What templates of each dialect hold.
const TEMPLATES: [(&str, &str); 9] = [
    ("hermes", "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>"),
    ("qwen-xml", "<tool_call><function=f><parameter=a>"),
    ("llama3", "<|start_header_id|>{\"name\": \"f\", \"parameters\": {}}"),
    ("mistral", "[TOOL_CALLS][{"),
    ("mistral-args", "[TOOL_CALLS]f[ARGS]"),
    ("mistral-id", "[TOOL_CALLS]f[CALL_ID]c[ARGS]"),
    ("lfm2", "<|tool_call_start|>[f()]<|tool_call_end|>"),
    ("gemma", "<|tool_call>call:f{a:<|\"|>x<|\"|>}<tool_call|>"),
    ("generic", ""),
];

/// The dialect of this name, of a model that does not think.
fn dialect(name: &str) -> Dialect {
    let (_, template) = TEMPLATES.iter().find(|(of, _)| *of == name).expect("a dialect");
    Dialect::detect(template)
}

/// All of them, of models that think.
fn dialects() -> Vec<Dialect> {
    let thinking = |(name, template): &(&str, &str)| {
        let dialect = Dialect::detect(&format!("{template}<think></think>"));
        assert_eq!(dialect.name(), *name);
        dialect
    };
    TEMPLATES.iter().map(thinking).collect()
}

/// Everything that a reader makes of a text, with adjacent pieces joined.
#[derive(Debug, Default, PartialEq, Clone)]
struct Read {
    text: String,
    reasoning: String,
    calls: Vec<(String, String, String)>,
    ended: usize,
}

fn read(dialect: &Dialect, rules: &AnswerRules<'_>, parts: &[&str]) -> Read {
    let mut reader = Reader::new(dialect, rules, 7);
    let mut pieces = Vec::new();
    for part in parts {
        pieces.extend(reader.push(part));
    }
    pieces.extend(reader.finish());
    let mut all = Read::default();
    for piece in pieces {
        match piece {
            Piece::Text(text) => all.text += &text,
            Piece::Reasoning(text) => all.reasoning += &text,
            Piece::CallStart { index, id, name } => {
                assert_eq!(index, all.calls.len());
                all.calls.push((id, name, String::new()));
            }
            Piece::CallArguments { index, delta } => all.calls[index].2 += &delta,
            Piece::CallEnd { .. } => all.ended += 1,
        }
    }
    assert_eq!(reader.has_calls(), !all.calls.is_empty());
    all
}

/// The same text cut at random places.
fn cut<'t>(text: &'t str, numbers: &mut Numbers) -> Vec<&'t str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut length = (1 + numbers.below(6)).min(rest.len());
        while !rest.is_char_boundary(length) {
            length += 1;
        }
        let (part, more) = rest.split_at(length);
        parts.push(part);
        rest = more;
    }
    parts
}

#[test]
fn what_the_grammar_admits_the_reader_understands() {
    let tools = tools();
    let ends =
        ["\"", "}", "]", "\"}", "</", "tool", "_", "call", ">", "function", "parameter", "\n", "think"];
    let mut calls = 0;
    for dialect in dialects() {
        for (choice, thinking) in [
            (ToolChoice::Required, Thinking::Over),
            (ToolChoice::Required, Thinking::Begun),
            (ToolChoice::Required, Thinking::Possible),
            (ToolChoice::Named("search".to_owned()), Thinking::Over),
            (ToolChoice::Auto, Thinking::Over),
        ] {
            let rules = AnswerRules {
                tools: &tools,
                choice: choice.clone(),
                parallel: true,
                thinking,
                ..AnswerRules::default()
            };
            let grammar = dialect.grammar(smollm2(), &rules).unwrap().unwrap();
            for seed in 0..6 {
                let Some(text) = answer(&grammar, seed, &ends) else { continue };
                let whole = read(&dialect, &rules, &[&text]);
                let mut numbers = Numbers(seed);
                for _ in 0..3 {
                    assert_eq!(
                        read(&dialect, &rules, &cut(&text, &mut numbers)),
                        whole,
                        "{}: {text:?}",
                        dialect.name()
                    );
                }
                if choice != ToolChoice::Auto {
                    assert!(!whole.calls.is_empty(), "{} {thinking:?}: {text:?}", dialect.name());
                    assert_eq!(whole.text, "", "{} {thinking:?}: {text:?}", dialect.name());
                }
                assert_eq!(whole.ended, whole.calls.len(), "{}: {text:?}", dialect.name());
                for (id, name, arguments) in &whole.calls {
                    assert_eq!(id.len(), 9, "{id}");
                    let tool = tools.iter().find(|tool| tool.name == *name);
                    let tool = tool.unwrap_or_else(|| panic!("{}: {name:?} in {text:?}", dialect.name()));
                    let value: Value = serde_json::from_str(arguments).unwrap_or_else(|error| {
                        panic!("{}: {error}: {arguments:?} in {text:?}", dialect.name())
                    });
                    let schema = &tool.parameters;
                    assert!(jsonschema::is_valid(schema, &value), "{}: {value}", dialect.name());
                    if let ToolChoice::Named(wanted) = &choice {
                        assert_eq!(name, wanted);
                    }
                    calls += 1;
                }
            }
        }
    }
    assert!(calls > 60, "only {calls} calls");
}

#[test]
fn calls_are_read_as_each_dialect_writes_them() {
    let tools = tools();
    let weather = r#"{"city":"Bern","days":3}"#;
    let one = vec![("get_weather", weather)];
    let two = vec![("get_weather", weather), ("now", "{}")];
    for (name, text, calls) in [
        (
            "hermes",
            "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\":\"Bern\",\"days\":3}}\n</tool_call>",
            &one,
        ),
        (
            "generic",
            "Let me see.\n<tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Bern\",\"days\":3}}</tool_call>\n<tool_call>{\"name\":\"now\",\"arguments\":{}}</tool_call>",
            &two,
        ),
        (
            "qwen-xml",
            "Let me see.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nBern\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            &one,
        ),
        (
            "mistral",
            "Let me see.[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\":\"Bern\",\"days\":3}}, {\"name\": \"now\", \"arguments\": {}}]",
            &two,
        ),
        (
            "mistral-args",
            "Let me see.[TOOL_CALLS]get_weather[ARGS]{\"city\":\"Bern\",\"days\":3}[TOOL_CALLS]now[ARGS]{}",
            &two,
        ),
        (
            "lfm2",
            "Let me see.<|tool_call_start|>[get_weather(city='Bern', days=3), now()]<|tool_call_end|>",
            &two,
        ),
        (
            "gemma",
            "Let me see.<|tool_call>call:get_weather{city:<|\"|>Bern<|\"|>,days:3}<tool_call|><|tool_call>call:now{}<tool_call|>",
            &two,
        ),
        (
            "mistral-id",
            "Let me see.[TOOL_CALLS]get_weather[CALL_ID]abcdefgh1[ARGS]{\"city\":\"Bern\",\"days\":3}",
            &one,
        ),
    ] {
        let dialect = dialect(name);
        let rules = AnswerRules { tools: &tools, parallel: true, ..AnswerRules::default() };
        let found = read(&dialect, &rules, &[text]);
        assert_eq!(found.text, "Let me see.", "{name}");
        let told: Vec<(&str, &str)> = found.calls.iter().map(|(_, n, a)| (n.as_str(), a.as_str())).collect();
        assert_eq!(&told, calls, "{name}");
        let grammar = dialect.grammar(smollm2(), &rules).unwrap().unwrap();
        assert!(accepts(&grammar, text), "{name}");
        let single = AnswerRules { parallel: false, ..rules.clone() };
        let single = dialect.grammar(smollm2(), &single).unwrap().unwrap();
        assert_eq!(accepts(&single, text), calls.len() == 1, "{name}");
        let no_calls = AnswerRules { choice: ToolChoice::None, ..rules };
        assert_eq!(read(&dialect, &no_calls, &[text]).text, text, "{name}");
    }
    let llama = dialect("llama3");
    let rules = AnswerRules { tools: &tools, ..AnswerRules::default() };
    for text in [
        r#"{"name": "get_weather", "parameters": {"city":"Bern","days":3}}"#,
        r#"<|python_tag|>{"name": "get_weather", "parameters": {"city":"Bern","days":3}}"#,
    ] {
        let found = read(&llama, &rules, &[text]);
        assert_eq!((found.calls[0].1.as_str(), found.calls[0].2.as_str()), ("get_weather", weather));
        assert_eq!(found.text, "");
        assert!(accepts(&llama.grammar(smollm2(), &rules).unwrap().unwrap(), text));
    }
    assert_eq!(read(&llama, &rules, &["An {object}"]).text, "An {object}");
}

/// With the model's own control tokens; its template is found for what it is.
#[test]
fn gemma_calls_with_its_own_tokens() {
    let data =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/test-data/llama.cpp-models");
    let template = std::fs::read_to_string(data.join("templates/google-gemma-4-31B-it.jinja")).unwrap();
    let dialect = Dialect::detect(&template);
    assert_eq!(dialect.name(), "gemma");
    let vocabulary = common::open("llama.cpp-models/ggml-vocab-gemma-4.gguf");
    for mark in ["<|tool_call>", "<tool_call|>", "<|\"|>"] {
        assert!(vocabulary.tokenizer().token_id(mark).is_some(), "{mark}");
    }
    let tools = tools();
    let rules = AnswerRules { tools: &tools, parallel: true, ..AnswerRules::default() };
    let grammar = dialect.grammar(&vocabulary, &rules).unwrap().unwrap();
    let text = "Well.<|tool_call>call:get_weather{city:<|\"|>\"Bern\", {x:1}\n<|\"|>,unit:<|\"|>celsius<|\"|>}<tool_call|><|tool_call>call:search{filters:[{\"key\":\"a\"}]}<tool_call|>";
    assert!(accepts(&grammar, text));
    for wrong in [
        "<|tool_call>call:get_weather{days:3}<tool_call|>",
        "<|tool_call>call:get_weather{city:\"Bern\"}<tool_call|>",
        "<|tool_call>call:get_weather{city:<|\"|>Bern<|\"|>,unit:<|\"|>kelvin<|\"|>}<tool_call|>",
        "<|tool_call>call:unknown{}<tool_call|>",
    ] {
        assert!(!accepts(&grammar, wrong), "{wrong}");
    }
    let mut numbers = Numbers(5);
    for _ in 0..5 {
        let found = read(&dialect, &rules, &cut(text, &mut numbers));
        assert_eq!(found.text, "Well.");
        let arguments: Vec<Value> =
            found.calls.iter().map(|(_, _, arguments)| serde_json::from_str(arguments).unwrap()).collect();
        let expected =
            [json!({"city": "\"Bern\", {x:1}\n", "unit": "celsius"}), json!({"filters": [{"key": "a"}]})];
        assert_eq!(arguments, expected);
    }
}

/// A small model would go on with white space for ever.
#[test]
fn space_within_calls_is_bounded() {
    let tools = tools();
    let calls = [
        "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>",
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "{\"name\": \"now\", \"parameters\": {}}",
        "[TOOL_CALLS][{\"name\": \"now\", \"arguments\": {}}]",
        "[TOOL_CALLS]now[ARGS]{}",
        "<|tool_call_start|>[now()]<|tool_call_end|>",
        "<|tool_call>call:now{}<tool_call|>",
    ];
    let encode = |text: &str| smollm2().tokenizer().encode(text, Default::default()).unwrap();
    let space: Vec<u32> = [" ", "\n", "\t"].iter().flat_map(|text| encode(text)).collect();
    for dialect in dialects() {
        let rules = AnswerRules { tools: &tools, choice: ToolChoice::Required, ..AnswerRules::default() };
        let grammar = dialect.grammar(smollm2(), &rules).unwrap().unwrap();
        let mut tried = 0;
        for call in calls.iter().filter(|call| accepts(&grammar, call)) {
            let ids = encode(call);
            for length in 0..ids.len() {
                let mut matcher = Matcher::new(&grammar);
                for id in &ids[..length] {
                    matcher.accept(*id).unwrap();
                }
                let mut blank = 0;
                while let Some(id) = {
                    let mask = matcher.mask().unwrap().expect("a mask");
                    space.iter().find(|id| mask.allows(**id))
                } {
                    matcher.accept(*id).unwrap();
                    blank += 1;
                    assert!(blank < 100, "{}: behind {length} tokens of {call}", dialect.name());
                }
                tried += 1;
            }
        }
        assert!(tried > 0, "{}", dialect.name());
    }
}

/// Tools beside a form of the text: the answer is a call or the text, and neither is taken for the other.
#[test]
fn a_text_of_a_form_is_no_call() {
    let tools = tools();
    let schema = json!({"type": "object", "properties": {
        "name": {"type": "string"}, "city": {"type": "string"}, "parameters": {"type": "integer"}}});
    let call = |dialect: &Dialect, arguments: &str| {
        let marked = AnswerRules { tools: &tools, choice: ToolChoice::Required, ..AnswerRules::default() };
        let grammar = dialect.grammar(smollm2(), &marked).unwrap().unwrap();
        let forms = [
            format!("{{\"name\": \"get_weather\", \"{arguments}\": {{\"city\": \"Bern\"}}}}"),
            format!("<|python_tag|>{{\"name\": \"get_weather\", \"{arguments}\": {{\"city\": \"Bern\"}}}}"),
            "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}</tool_call>".to_owned(),
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nBern\n</parameter>\n</function>\n</tool_call>".to_owned(),
            "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Bern\"}}]".to_owned(),
            "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Bern\"}".to_owned(),
            "<|tool_call_start|>[get_weather(city=\"Bern\")]<|tool_call_end|>".to_owned(),
            "<|tool_call>call:get_weather{city:<|\"|>Bern<|\"|>}<tool_call|>".to_owned(),
        ];
        forms.into_iter().filter(|text| accepts(&grammar, text)).collect::<Vec<_>>()
    };
    for dialect in dialects() {
        for thinking in [Thinking::Over, Thinking::Begun] {
            let body = Body::Schema(&schema);
            let rules = AnswerRules { body, tools: &tools, thinking, ..AnswerRules::default() };
            let thought = if thinking == Thinking::Begun { "hm</think>" } else { "" };
            let grammar = dialect.grammar(smollm2(), &rules).unwrap().unwrap();
            let mut numbers = Numbers(3);
            for text in [
                r#"{"city":"Bern"}"#,
                r#"{"name":"Bob"}"#,
                r#"{"name":"get_weather"}"#,
                r#"{"name":"get_weather","city":"Bern"}"#,
                r#"{"name":"get_weather","parameters":5}"#,
                r#"{"name":"a <tool_call>{\"name\": \"now\"}</tool_call> [TOOL_CALLS]now[ARGS]{} <|tool_call_start|>[now()]"}"#,
                "{}",
            ] {
                let whole = format!("{thought}{text}");
                assert!(accepts(&grammar, &whole), "{}: {whole}", dialect.name());
                for _ in 0..3 {
                    let found = read(&dialect, &rules, &cut(&whole, &mut numbers));
                    assert_eq!(
                        (found.text.as_str(), found.calls.len()),
                        (text, 0),
                        "{}: {whole}",
                        dialect.name()
                    );
                }
            }
            let calls = call(&dialect, "parameters");
            assert!(!calls.is_empty(), "{}", dialect.name());
            for text in calls {
                let whole = format!("{thought}{text}");
                assert!(accepts(&grammar, &whole), "{}: {whole}", dialect.name());
                for _ in 0..3 {
                    let found = read(&dialect, &rules, &cut(&whole, &mut numbers));
                    let calls: Vec<_> = found.calls.iter().map(|(_, name, _)| name.as_str()).collect();
                    assert_eq!(
                        (found.text.as_str(), &calls[..]),
                        ("", &["get_weather"][..]),
                        "{}: {whole}",
                        dialect.name()
                    );
                }
            }
        }
    }
}

#[test]
fn thoughts_are_told_from_what_is_said() {
    let dialect = Dialect::detect("<think></think>");
    let rules = AnswerRules::default();
    let found = read(&dialect, &rules, &["<thi", "nk>\nso <b", "> it\n</th", "ink>\n\nYes <", "think> no"]);
    assert_eq!((found.reasoning.as_str(), found.text.as_str()), ("\nso <b> it\n", "Yes <think> no"));
    let begun = AnswerRules { thinking: Thinking::Begun, ..AnswerRules::default() };
    let found = read(&dialect, &begun, &["still thinking</think>done"]);
    assert_eq!((found.reasoning.as_str(), found.text.as_str()), ("still thinking", "done"));
    assert_eq!(read(&dialect, &begun, &["never ends </thi"]).reasoning, "never ends </thi");
    assert_eq!(read(&dialect, &rules, &["plain", " text"]).text, "plain text");
    assert_eq!(read(&dialect, &rules, &["<thi"]).text, "<thi");
}

#[test]
fn formats_begin_behind_thoughts() {
    let dialect = Dialect::detect("<think></think>");
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    for (thinking, yes, no) in [
        (Thinking::Begun, vec!["I think {\"b\": 1}.</think>\n\n{\"a\":1}"], vec!["{\"a\":1}", "x</think>no"]),
        (
            Thinking::Possible,
            vec!["<think>x</think>{\"a\":1}", "{\"a\":1}"],
            vec!["x</think>{\"a\":1}", "<think>x"],
        ),
        (Thinking::Over, vec!["{\"a\":1}"], vec!["<think>x</think>{\"a\":1}"]),
    ] {
        let rules = AnswerRules { body: Body::Schema(&schema), thinking, ..AnswerRules::default() };
        let grammar = dialect.grammar(smollm2(), &rules).unwrap().unwrap();
        for text in yes {
            assert!(accepts(&grammar, text), "{thinking:?} {text}");
        }
        for text in no {
            assert!(!accepts(&grammar, text), "{thinking:?} {text}");
        }
    }
    assert!(dialect.grammar(smollm2(), &AnswerRules::default()).unwrap().is_none());
}

#[test]
fn free_text_needs_no_masks_until_a_call_may_begin() {
    let tools = tools();
    for thinking in [Thinking::Over, Thinking::Begun] {
        let dialect = Dialect::detect("<think></think>");
        let rules = AnswerRules { tools: &tools, thinking, ..AnswerRules::default() };
        let grammar = dialect.grammar(smollm2(), &rules).unwrap().unwrap();
        let mut matcher = Matcher::new(&grammar);
        let thought =
            if thinking == Thinking::Begun { "A thought with a <tool_call> in it. </think>\n" } else { "" };
        let text = format!(
            "{thought}Some words, then more. <tool_call>{{\"name\": \"now\", \"arguments\": {{}}}}</tool_call>"
        );
        let ids = smollm2().tokenizer().encode(&text, Default::default()).unwrap();
        let mut free = Vec::new();
        let start = Instant::now();
        for id in ids {
            free.push(matcher.mask().unwrap().is_none());
            matcher.accept(id).unwrap();
        }
        println!("{} tokens in {:?}", free.len(), start.elapsed());
        assert!(free.iter().filter(|free| **free).count() >= 5, "{free:?}");
        assert!(free.iter().rev().take(12).all(|free| !free), "a call is constrained: {free:?}");
        assert!(matcher.may_end());
    }
}

#[test]
fn a_strict_tool_is_refused_by_name() {
    let tool = |strict| Tool {
        name: "f".to_owned(),
        description: None,
        parameters: json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?!x)"}}}),
        strict,
    };
    let dialect = Dialect::detect("");
    let strict = [tool(true)];
    let rules = AnswerRules { tools: &strict, ..AnswerRules::default() };
    let error = dialect.grammar(smollm2(), &rules).unwrap_err().to_string();
    assert!(error.contains("tool \"f\"") && error.contains("pattern"), "{error}");
    let relaxed = [tool(false)];
    let rules = AnswerRules { tools: &relaxed, ..AnswerRules::default() };
    let grammar = dialect.grammar(smollm2(), &rules).unwrap().unwrap();
    assert!(grammar.notices()[0].contains("tool \"f\""), "{:?}", grammar.notices());
    let rules = AnswerRules { choice: ToolChoice::Named("g".to_owned()), ..rules };
    assert!(dialect.grammar(smollm2(), &rules).is_err());
}
