//! A schema document: where its parts are, which draft it follows and what its references mean.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::error::GrammarError;

/// Levels of nesting at most.
const DEPTH_MAX: usize = 100;
/// Values in the whole document at most.
const VALUES_MAX: usize = 400_000;

/// The drafts that differ in what matters here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Draft {
    Draft4,
    Draft6,
    Draft7,
    Draft2019,
    Draft2020,
}

/// A schema document, checked for size and depth.
pub(crate) struct Document<'a> {
    root: &'a Value,
    pub(crate) draft: Draft,
    /// Whether the document says which draft it follows.
    declared: bool,
    /// What `$id` and `$anchor` name.
    names: HashMap<String, &'a Value>,
    /// Pointers of the schemas that were reached, by address.
    paths: HashMap<*const Value, String>,
}

impl<'a> Document<'a> {
    pub(crate) fn new(root: &'a Value) -> Result<Document<'a>, GrammarError> {
        check_size(root)?;
        let declared = root.get("$schema").and_then(Value::as_str);
        let draft = declared.map_or(Draft::Draft2020, draft_of);
        let mut names = HashMap::new();
        collect_names(root, &mut names);
        let paths = HashMap::from([(std::ptr::from_ref(root), String::new())]);
        Ok(Document { root, draft, declared: declared.is_some(), names, paths })
    }

    pub(crate) fn root(&self) -> &'a Value {
        self.root
    }

    /// The pointer of a schema that was reached.
    pub(crate) fn path(&self, schema: &Value) -> String {
        self.paths.get(&std::ptr::from_ref(schema)).cloned().unwrap_or_default()
    }

    /// Remembers where a part of a schema is.
    pub(crate) fn reach(&mut self, parent: &Value, steps: &[&str], child: &'a Value) -> &'a Value {
        let key = std::ptr::from_ref(child);
        if !self.paths.contains_key(&key) {
            let mut path = self.path(parent);
            for step in steps {
                path.push('/');
                path.push_str(&step.replace('~', "~0").replace('/', "~1"));
            }
            self.paths.insert(key, path);
        }
        child
    }

    /// Whether validators of the document's draft know a keyword. Without a declared draft every keyword counts.
    pub(crate) fn knows(&self, keyword: &str) -> bool {
        if !self.declared {
            return true;
        }
        match keyword {
            "const" | "contains" | "propertyNames" => self.draft >= Draft::Draft6,
            "if" | "then" | "else" => self.draft >= Draft::Draft7,
            "dependentRequired"
            | "dependentSchemas"
            | "unevaluatedProperties"
            | "unevaluatedItems"
            | "minContains"
            | "maxContains"
            | "$dynamicRef"
            | "$recursiveRef" => self.draft >= Draft::Draft2019,
            "prefixItems" => self.draft >= Draft::Draft2020,
            "additionalItems" => self.draft <= Draft::Draft2019,
            _ => true,
        }
    }

    /// Whether keywords beside a `$ref` count.
    pub(crate) fn ref_has_siblings(&self) -> bool {
        self.draft >= Draft::Draft2019
    }

    /// What a `$ref` means.
    pub(crate) fn resolve(&mut self, schema: &Value, reference: &str) -> Result<&'a Value, GrammarError> {
        let missing = |document: &Document<'_>, reason: &str| GrammarError::Unsupported {
            path: document.path(schema),
            keyword: "$ref".to_owned(),
            reason: format!("{reference:?} {reason}"),
        };
        let (base, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let own = self.root.get("$id").or_else(|| self.root.get("id")).and_then(Value::as_str);
        let own = own.map(|id| id.trim_end_matches('#'));
        let resource = if base.is_empty() || own == Some(base) {
            self.root
        } else {
            let found = self.names.get(base).or_else(|| self.names.get(base.rsplit('/').next()?)).copied();
            found.ok_or_else(|| missing(self, "is outside of the schema, and nothing is fetched"))?
        };
        if fragment.is_empty() {
            return Ok(resource);
        }
        let fragment = percent_decoded(fragment);
        if !fragment.starts_with('/') {
            let found = self.names.get(&format!("#{fragment}")).copied();
            return found.ok_or_else(|| missing(self, "names nothing in the schema"));
        }
        let found = resource.pointer(&fragment).ok_or_else(|| missing(self, "leads nowhere"))?;
        let prefix = self.path(resource);
        self.paths.entry(std::ptr::from_ref(found)).or_insert_with(|| prefix + &fragment);
        Ok(found)
    }

    /// The error for a keyword that cannot be honoured.
    pub(crate) fn unsupported(
        &self,
        schema: &Value,
        keyword: &str,
        reason: impl Into<String>,
    ) -> GrammarError {
        GrammarError::Unsupported {
            path: self.path(schema),
            keyword: keyword.to_owned(),
            reason: reason.into(),
        }
    }

    /// The error for a schema that is none.
    pub(crate) fn invalid(&self, schema: &Value, reason: impl Into<String>) -> GrammarError {
        GrammarError::Invalid { path: self.path(schema), reason: reason.into() }
    }
}

fn draft_of(uri: &str) -> Draft {
    match () {
        () if uri.contains("draft-03") || uri.contains("draft-04") => Draft::Draft4,
        () if uri.contains("draft-06") => Draft::Draft6,
        () if uri.contains("draft-07") => Draft::Draft7,
        () if uri.contains("2019-09") => Draft::Draft2019,
        () => Draft::Draft2020,
    }
}

/// Counts values and levels without recursion.
fn check_size(root: &Value) -> Result<(), GrammarError> {
    let mut waiting = vec![(root, 0)];
    let mut values = 0;
    while let Some((value, depth)) = waiting.pop() {
        values += 1;
        if depth > DEPTH_MAX {
            return Err(GrammarError::TooComplex(format!("the schema nests deeper than {DEPTH_MAX} levels")));
        }
        if values > VALUES_MAX {
            return Err(GrammarError::TooComplex(format!("the schema has more than {VALUES_MAX} values")));
        }
        match value {
            Value::Array(items) => waiting.extend(items.iter().map(|item| (item, depth + 1))),
            Value::Object(map) => waiting.extend(map.values().map(|item| (item, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

/// Finds what `$id`, `id` and `$anchor` name. A name that is given twice means the first.
fn collect_names<'a>(root: &'a Value, names: &mut HashMap<String, &'a Value>) {
    let mut waiting = vec![root];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(map) => {
                for name in named(map) {
                    names.entry(name).or_insert(value);
                }
                // Values of these are data, not schemas.
                let data = ["enum", "const", "default", "examples"];
                waiting.extend(map.iter().filter(|(key, _)| !data.contains(&key.as_str())).map(|(_, v)| v));
            }
            _ => {}
        }
    }
}

fn named(map: &Map<String, Value>) -> impl Iterator<Item = String> {
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    let anchor = text("$anchor").map(|anchor| format!("#{anchor}"));
    let id = text("$id").or_else(|| text("id"));
    let id =
        id.map(|id| if id.starts_with('#') { id.to_owned() } else { id.trim_end_matches('#').to_owned() });
    anchor.into_iter().chain(id)
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
