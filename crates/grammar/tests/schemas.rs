//! Schemas as grammars: what they accept, what random answers look like to an independent validator, and what is refused.

mod common;

use common::{JSON_ENDS, accepts, answer, gemma3, smollm2};
use serde_json::{Value, json};
use unicorn_grammar::{Grammar, GrammarError, Strictness};

/// A schema with values that satisfy it and values that do not.
type Case = (Value, Vec<Value>, Vec<Value>);

/// Of each of these, random answers are validated, too.
fn honoured() -> Vec<Case> {
    [scalars(), objects(), structures()].concat()
}

fn scalars() -> Vec<Case> {
    vec![
        (
            json!({"type": "integer", "minimum": -3, "maximum": 12}),
            vec![json!(-3), json!(0), json!(12)],
            vec![json!(-4), json!(13), json!(1.5)],
        ),
        (
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1.25}),
            vec![json!(0.001), json!(1.25), json!(1)],
            vec![json!(0), json!(1.3), json!(-1)],
        ),
        (
            json!({"type": "number", "multipleOf": 0.25, "maximum": 9007199254740991u64}),
            vec![json!(0.25), json!(7), json!(-1.5)],
            vec![json!(0.3)],
        ),
        (
            json!({"type": "number", "not": {"multipleOf": 3}, "minimum": 1, "maximum": 12.5}),
            vec![json!(4), json!(6.5), json!(12.25)],
            vec![json!(6), json!(6.0), json!(0)],
        ),
        (
            json!({"type": "integer", "multipleOf": 7, "minimum": 10, "exclusiveMaximum": 28}),
            vec![json!(14), json!(21)],
            vec![json!(28), json!(7), json!(15)],
        ),
        (
            json!({"type": "string", "pattern": "^[a-c]+$", "minLength": 2, "maxLength": 4}),
            vec![json!("ab"), json!("abca")],
            vec![json!("a"), json!("abcab"), json!("ad")],
        ),
        (
            json!({"enum": ["a", 1, null, {"x": [1, 2]}]}),
            vec![json!("a"), json!(1), json!(null), json!({"x": [1, 2]})],
            vec![json!("b"), json!({"x": [1]})],
        ),
        (
            json!({"not": {"enum": ["a", "b", 3]}, "type": ["string", "integer"]}),
            vec![json!("c"), json!(4)],
            vec![json!("a"), json!(3)],
        ),
        (
            json!({"type": "string", "not": {"pattern": "^x-"}}),
            vec![json!("y-"), json!("x")],
            vec![json!("x-1")],
        ),
        (
            json!({"oneOf": [{"type": "integer", "multipleOf": 3}, {"type": "integer", "multipleOf": 5}]}),
            vec![json!(3), json!(5), json!(9)],
            vec![json!(15), json!(0), json!(7)],
        ),
    ]
}

fn objects() -> Vec<Case> {
    vec![
        (
            json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                   "oneOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            vec![json!({"a": 1}), json!({"b": 1}), json!({"a": 1, "c": 2})],
            vec![json!({}), json!({"a": 1, "b": 2})],
        ),
        (
            json!({"type": "object", "properties": {"kind": {"enum": ["x", "y"]}, "size": {"type": "integer"}},
                   "required": ["kind"], "additionalProperties": false,
                   "if": {"properties": {"kind": {"const": "x"}}}, "then": {"required": ["size"]},
                   "else": {"properties": {"size": false}}}),
            vec![json!({"kind": "x", "size": 1}), json!({"kind": "y"})],
            vec![json!({"kind": "x"}), json!({"kind": "y", "size": 1})],
        ),
        (
            json!({"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}, "additionalProperties": false}),
            vec![json!({}), json!({"b": 1}), json!({"a": 1, "b": 2})],
            vec![json!({"a": 1})],
        ),
        (
            json!({"type": "object", "patternProperties": {"^s": {"type": "string"}, "x$": {"maxLength": 3}}, "additionalProperties": {"type": "integer"}}),
            vec![json!({"sa": "long text"}), json!({"sx": "abc"}), json!({"other": 1}), json!({"x": "ab"})],
            vec![json!({"sx": "abcd"}), json!({"sx": 1}), json!({"other": "a"})],
        ),
        (
            json!({"type": "object", "propertyNames": {"pattern": "^[a-z]{2}$"}, "additionalProperties": {"type": "boolean"}}),
            vec![json!({}), json!({"ab": true})],
            vec![json!({"abc": true}), json!({"ab": 1})],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}},
                   "additionalProperties": false, "minProperties": 1, "maxProperties": 2}),
            vec![json!({"a": null}), json!({"b": null, "c": null})],
            vec![json!({}), json!({"a": null, "b": null, "c": null})],
        ),
    ]
}

fn structures() -> Vec<Case> {
    let object = |properties: Value| json!({"type": "object", "properties": properties, "additionalProperties": false});
    vec![
        (
            json!({"type": "array", "items": {"enum": ["r", "g", "b"]}, "uniqueItems": true, "minItems": 1}),
            vec![json!(["b", "r"]), json!(["g"])],
            vec![json!([]), json!(["r", "r"])],
        ),
        (
            json!({"type": "array", "contains": {"const": 1}, "items": {"type": "integer", "minimum": 0, "maximum": 3}, "maxItems": 3}),
            vec![json!([1]), json!([0, 2, 1])],
            vec![json!([]), json!([0, 2, 3]), json!([1, 1, 1, 1])],
        ),
        (
            json!({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": false, "minItems": 1}),
            vec![json!(["a"]), json!(["a", 1])],
            vec![json!([]), json!([1]), json!(["a", 1, 2])],
        ),
        (
            json!({"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties":
                {"value": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                "required": ["value"], "additionalProperties": false}}}),
            vec![json!({"value": 1, "children": [{"value": 2}]})],
            vec![json!({"value": 1, "children": [{}]})],
        ),
        (
            json!({"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {
                "a": {"type": "object", "properties": {"child": {"$ref": "#/$defs/a"}}, "additionalProperties": false},
                "b": {"properties": {"child": {"$ref": "#/$defs/b"}}}}}),
            vec![json!({}), json!({"child": {"child": {}}})],
            vec![json!({"child": {"other": 1}})],
        ),
        (
            object(json!({"when": {"format": "date", "type": "string"}})),
            vec![json!({"when": "2024-02-29"})],
            vec![json!({"when": "2023-02-29"})],
        ),
        (json!({"not": {"required": ["a"]}, "type": "object"}), vec![json!({"b": 1})], vec![json!({"a": 1})]),
        (
            json!({"not": {"type": "object", "additionalProperties": {"type": "string"}}}),
            vec![json!({"a": 1}), json!(1)],
            vec![json!({"a": "b"}), json!({})],
        ),
    ]
}

#[test]
fn schemas_accept_their_values_and_no_others() {
    for (schema, valid, invalid) in honoured() {
        let grammar = Grammar::json_schema(smollm2(), &schema, Strictness::Strict)
            .unwrap_or_else(|error| panic!("{schema}: {error}"));
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        for value in valid {
            assert!(validator.is_valid(&value), "{schema}: {value}");
            assert!(accepts(&grammar, &value.to_string()), "{schema} refuses {value}");
        }
        for value in invalid {
            assert!(!validator.is_valid(&value), "{schema}: {value}");
            assert!(!accepts(&grammar, &value.to_string()), "{schema} accepts {value}");
        }
    }
}

#[test]
fn random_answers_satisfy_their_schemas() {
    for vocabulary in [smollm2(), gemma3()] {
        let mut finished = 0;
        for (schema, _, _) in honoured() {
            let grammar = Grammar::json_schema(vocabulary, &schema, Strictness::Strict).unwrap();
            let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
            for seed in 0..if vocabulary.size() > 100_000 { 3 } else { 12 } {
                let Some(text) = answer(&grammar, seed, &JSON_ENDS) else { continue };
                let value: Value =
                    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{schema}: {e}: {text}"));
                assert!(validator.is_valid(&value), "{schema}: {text}");
                finished += 1;
            }
        }
        assert!(finished > 50, "only {finished} walks came to an end");
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_with_its_place() {
    let refused = |schema: Value| Grammar::json_schema(smollm2(), &schema, Strictness::Strict).unwrap_err();
    for (schema, at, word) in [
        (json!({"properties": {"a": {"pattern": "(?=x)y"}}}), "/properties/a", "pattern"),
        (json!({"items": {"uniqueItems": true}}), "/items", "uniqueItems"),
        (json!({"type": "object", "unevaluatedProperties": false}), "", "unevaluatedProperties"),
        (json!({"$dynamicRef": "#x"}), "", "$dynamicRef"),
        (json!({"anyOf": [{"$ref": "https://example.com/x"}]}), "/anyOf/0", "$ref"),
        (json!({"not": {"format": "date"}}), "/not", "format"),
        (json!({"multipleOf": 1e-12}), "", "multipleOf"),
    ] {
        match refused(schema.clone()) {
            GrammarError::Unsupported { path, keyword, .. } => {
                assert_eq!((path.as_str(), keyword.as_str()), (at, word), "{schema}");
            }
            other => panic!("{schema}: {other}"),
        }
    }
    for schema in [
        json!(false),
        json!({"type": "string", "enum": [1]}),
        json!({"type": "object", "required": ["a"], "properties": {"a": false}}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "required": ["x"], "properties": {"x": {"$ref": "#/$defs/a"}}}}}),
        json!({"type": "integer", "minimum": 3, "maximum": 2}),
        json!({"type": "string", "pattern": "^a$", "minLength": 2}),
    ] {
        assert_eq!(refused(schema.clone()), GrammarError::Unsatisfiable { what: "schema" }, "{schema}");
    }
    for schema in [
        json!({"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}),
        json!({"allOf": [{"$ref": "#"}]}),
        json!({"type": "strin"}),
        json!({"properties": []}),
        json!(7),
    ] {
        assert!(matches!(refused(schema.clone()), GrammarError::Invalid { .. }), "{schema}");
    }
}

#[test]
fn schemas_of_tools_are_relaxed_where_they_must_be() {
    let schema = json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "url": {"type": "string", "format": "uri"},
            "path": {"type": "string", "pattern": "^(?!/)"},
            "limit": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991u64, "default": 10},
            "env": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "string"}},
            "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": true},
        },
        "required": ["url"],
        "additionalProperties": false,
    });
    let strict = Grammar::json_schema(smollm2(), &schema, Strictness::Strict);
    assert!(matches!(strict, Err(GrammarError::Unsupported { .. })));
    let grammar = Grammar::json_schema(smollm2(), &schema, Strictness::Relaxed).unwrap();
    let notices = grammar.notices().join("\n");
    assert!(notices.contains("\"pattern\" at \"/properties/path\""), "{notices}");
    assert!(notices.contains("\"uniqueItems\" at \"/properties/tags\""), "{notices}");
    assert_eq!(grammar.notices().len(), 2, "{notices}");
    assert!(accepts(
        &grammar,
        r#"{"url":"https://a.b/c","path":"/x","limit":5,"env":{"A":"b"},"tags":["a","a"]}"#
    ));
    assert!(!accepts(&grammar, r#"{"url":"https://a.b/c","limit":0}"#));
    assert!(!accepts(&grammar, r#"{"path":"x"}"#));
}

#[test]
fn white_space_is_tolerated_within_bounds() {
    let grammar = Grammar::json_object(smollm2()).unwrap();
    assert!(accepts(&grammar, "{\"a\": [1, 2], \"b\": {\n  \"c\": null\n}}"));
    assert!(accepts(&grammar, "{}"));
    assert!(!accepts(&grammar, "{\n\n\n\n}"));
    assert!(!accepts(&grammar, "[]"));
    assert!(!accepts(&grammar, "{} "), "nothing follows a value");
    assert!(!accepts(&grammar, " {}"));
}
