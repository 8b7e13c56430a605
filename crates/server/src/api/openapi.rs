//! The OpenAPI document of all routes.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// Written by hand; a test compares it with the routes, others compare answers with it.
pub(crate) const DOCUMENT: &str = include_str!("openapi.json");

/// The document.
pub(crate) async fn document() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).expect("JSON")
    }

    fn refs<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| refs(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| refs(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = document();
        let mut found = Vec::new();
        refs(&document, &mut found);
        for reference in &found {
            let pointer = reference.strip_prefix('#').expect("a reference within the document");
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
        for name in document["components"]["schemas"].as_object().unwrap().keys() {
            let reference = format!("#/components/schemas/{name}");
            assert!(found.contains(&reference.as_str()), "{name} is used nowhere");
        }
    }

    #[test]
    fn operations_are_told_in_full() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        let mut ids = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in
                item.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters")
            {
                let at = format!("{method} {path}");
                assert!(operation["summary"].is_string() && operation["responses"].is_object(), "{at}");
                let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{at}"));
                assert!(ids.insert(id.to_owned()), "{id} is there twice");
                assert_eq!(
                    *method == "post" && !path.contains("blobs"),
                    operation["requestBody"].is_object(),
                    "{at}"
                );
            }
        }
    }
}
