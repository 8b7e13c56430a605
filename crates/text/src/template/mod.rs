//! Chat templates: Jinja as Python's Jinja2 renders it under the transformers library.
//!
//! Templates come from model files and are untrusted. A template can reach nothing but its arguments: no
//! file, no clock, no other template. What it does and produces is paid for with fuel, but for two things that
//! [`engine`] names, and ends at a deadline.
//!
//! A rendered conversation is a [`Prompt`], which tells the special tokens that the template wrote from those
//! that stand in messages; see [`specials`]. Conversations that a template refuses or would lose are reshaped
//! where that helps; see [`conversation`].

mod conversation;
mod date;
mod engine;
mod error;
mod json;
mod methods;
mod print;
mod specials;

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::prompt::{Prompt, unused_char};
use crate::tokenizer::Tokenizer;
use engine::{Arguments, Engine, Scalars};
use specials::{Reach, SpecialTexts};

pub use conversation::Adjustment;
pub use date::DateTime;
pub use error::TemplateError;

/// Arguments of a render beside the messages.
#[derive(Debug, Clone)]
pub struct RenderOptions {
    /// Ends the prompt with the header of the assistant's turn.
    pub add_generation_prompt: bool,
    /// Tool definitions as the API receives them, a list; `None` in templates where absent.
    pub tools: Option<Value>,
    /// Documents for retrieval-augmented answers, a list; `None` in templates where absent.
    pub documents: Option<Value>,
    /// Further variables (`enable_thinking`, ...). They cannot replace those that are set here.
    pub kwargs: Map<String, Value>,
    /// What `strftime_now` tells; without it the function is not defined.
    pub now: Option<DateTime>,
    /// Upper bound on work: one unit pays for one instruction or for 64 bytes of produced text.
    pub fuel: u64,
    /// Hands the messages to the template as they are, whatever it makes of them.
    pub as_given: bool,
}

impl RenderOptions {
    /// Enough for prompts of a few million characters, used up in well under a second.
    pub(crate) const FUEL: u64 = 1_000_000;
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            tools: None,
            documents: None,
            kwargs: Map::new(),
            now: None,
            fuel: Self::FUEL,
            as_given: false,
        }
    }
}

/// A conversation in the model's format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// For [`Tokenizer::encode_prompt`].
    pub prompt: Prompt,
    /// What had to be changed in the conversation, or is lost; empty for most models.
    pub adjustments: Vec<Adjustment>,
}

/// Variables and functions that extra arguments cannot replace.
const RESERVED: &[&str] = &[
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "raise_exception",
    "strftime_now",
    "namespace",
    "range",
    "dict",
];

/// A compiled chat template and the tokenizer for which it renders.
pub struct ChatTemplate {
    engine: Engine,
    specials: Arc<SpecialTexts>,
    source: String,
}

impl ChatTemplate {
    /// Compiles `source`, the model's own template or any other; `None` for one without content, which stands
    /// for no template. `bos_token` and `eos_token` in it are those of `tokenizer`.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] with the line of the fault, [`TemplateError::Thread`] where none can be made.
    pub fn new(source: &str, tokenizer: &Tokenizer) -> Result<Option<Self>, TemplateError> {
        let source = source.trim_start_matches('\u{feff}');
        if source.trim().is_empty() {
            return Ok(None);
        }
        let token = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        let engine = Engine::new(source, token(tokenizer.bos()), token(tokenizer.eos()))?;
        let specials = Arc::new(SpecialTexts::new(tokenizer.special_texts())?);
        Ok(Some(Self { engine, specials, source: source.to_owned() }))
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation: `messages` is the list that the chat API receives.
    ///
    /// A system message that the template refuses or leaves out is put in front of the first user message,
    /// neighbours of one role are joined where it wants roles in turn, and contents are handed over as lists
    /// of parts where it reads nothing else. [`Rendered::adjustments`] tells.
    ///
    /// # Errors
    /// What the template raises, what it does wrong, the loss of the message to be answered
    /// ([`TemplateError::DropsMessage`]), and the limits on work.
    pub fn render(&self, messages: &Value, options: &RenderOptions) -> Result<Rendered, TemplateError> {
        if let Some(name) = options.kwargs.keys().find(|name| RESERVED.contains(&name.as_str())) {
            return Err(TemplateError::Reserved(name.clone()));
        }
        let list = messages.as_array().filter(|list| !options.as_given && !list.is_empty());
        let Some(list) = list else {
            return Ok(Rendered { prompt: self.prompt(messages.clone(), options)?, adjustments: Vec::new() });
        };
        match self.adapt(list, options) {
            Ok((messages, adjustments)) => {
                Ok(Rendered { prompt: self.prompt(Value::Array(messages), options)?, adjustments })
            }
            Err(error) if error.is_limit() => Err(error),
            // The trial texts may be what was refused: a template can want JSON from a tool.
            Err(error) => match self.prompt(messages.clone(), options) {
                Ok(prompt) if conversation::holds_last(list, prompt.plain_text()) => {
                    Ok(Rendered { prompt, adjustments: Vec::new() })
                }
                _ => Err(error),
            },
        }
    }

    /// The shape of the conversation in which the template keeps most of it, and how it differs.
    fn adapt(
        &self,
        messages: &[Value],
        options: &RenderOptions,
    ) -> Result<(Vec<Value>, Vec<Adjustment>), TemplateError> {
        let mut refusal = None;
        let mut best: Option<(conversation::Fit, Vec<Adjustment>)> = None;
        for (shape, adjustments) in conversation::shapes(messages) {
            match self.fit(shape, options) {
                Err(error) if error.is_limit() => return Err(error),
                Err(error) => {
                    refusal.get_or_insert(error);
                }
                Ok(fit) if fit.lost.is_empty() => return Ok((fit.messages, adjustments)),
                Ok(fit) => {
                    if best.as_ref().is_none_or(|(other, _)| fit.lost.len() < other.lost.len()) {
                        best = Some((fit, adjustments));
                    }
                }
            }
        }
        match (best, refusal) {
            (Some((fit, mut adjustments)), _) => {
                if let Some(role) = fit.lost_question() {
                    return Err(TemplateError::DropsMessage { role });
                }
                adjustments.extend(fit.lost_roles().into_iter().map(|role| Adjustment::Dropped { role }));
                Ok((fit.messages, adjustments))
            }
            (None, Some(refusal)) => Err(refusal),
            (None, None) => Ok((messages.to_vec(), Vec::new())),
        }
    }

    /// Finds out, with marker words in the place of the contents, which messages the template keeps, and
    /// whether it keeps more of them as lists of parts or as plain strings.
    fn fit(&self, messages: Vec<Value>, options: &RenderOptions) -> Result<conversation::Fit, TemplateError> {
        let probe = |messages: Vec<Value>| {
            let trial = conversation::with_markers(&messages);
            let output = self.engine.render(self.arguments(trial, options), scalars(options))?;
            Ok(conversation::Fit { lost: conversation::lost(&messages, &output), messages })
        };
        let first = probe(messages.clone());
        let wanting = match &first {
            Ok(fit) if fit.lost.is_empty() => return first,
            Ok(fit) => fit.lost.clone(),
            Err(error) if error.is_limit() => return first,
            Err(_) => (0..messages.len()).collect(),
        };
        let mut best = first;
        for other in
            [conversation::as_parts(&messages, &wanting), conversation::as_strings(&messages, &wanting)]
        {
            if let Some(Ok(fit)) = other.map(probe)
                && best.as_ref().map_or(true, |best| fit.lost.len() < best.lost.len())
            {
                best = Ok(fit);
            }
        }
        best
    }

    /// Renders with every special token that stands in an argument marked as text.
    fn prompt(&self, messages: Value, options: &RenderOptions) -> Result<Prompt, TemplateError> {
        let arguments = self.arguments(messages, options);
        let mut texts = vec![self.source.as_str()];
        arguments.for_each_text(&mut |text| texts.push(text));
        let mark = unused_char(texts, &[]).ok_or(TemplateError::NoMark)?;
        let marked = |reach| arguments.marked(&self.specials, mark, reach);
        let guard = || Some((self.specials.clone(), mark));
        let render = |arguments| {
            let scalars = Scalars { guard: guard(), ..scalars(options) };
            Ok(Prompt::from_marked(&self.engine.render(arguments, scalars)?, mark))
        };
        let (narrow, wide) = (marked(Reach::Narrow), marked(Reach::Wide));
        let differs = narrow != wide;
        let prompt = render(narrow)?;
        if differs
            && let Ok(wider) = render(wide)
            && wider.plain_text() == prompt.plain_text()
        {
            return Ok(wider);
        }
        Ok(prompt)
    }

    fn arguments(&self, messages: Value, options: &RenderOptions) -> Arguments {
        Arguments {
            messages,
            tools: options.tools.clone(),
            documents: options.documents.clone(),
            kwargs: options.kwargs.clone(),
        }
    }
}

fn scalars(options: &RenderOptions) -> Scalars {
    Scalars {
        add_generation_prompt: options.add_generation_prompt,
        now: options.now,
        fuel: options.fuel,
        guard: None,
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source_bytes", &self.source.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GgufVocabulary;
    use serde_json::json;

    /// A template for a vocabulary of nothing but special tokens.
    fn template(source: &str) -> Result<ChatTemplate, TemplateError> {
        let tokens = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "a", "b", "ab"];
        let tokenizer = Tokenizer::from_gguf(GgufVocabulary {
            model: "gpt2".to_owned(),
            tokens: tokens.map(str::to_owned).to_vec(),
            token_types: vec![3, 3, 3, 3, 4, 1, 1, 1],
            merges: vec!["a b".to_owned()],
            bos: Some(0),
            eos: Some(1),
            ..GgufVocabulary::default()
        });
        ChatTemplate::new(source, &tokenizer.unwrap()).map(|template| template.expect("a template"))
    }

    impl ChatTemplate {
        /// The text that the template makes of these very messages.
        fn given(&self, messages: &Value) -> Result<String, TemplateError> {
            let now = Some(DateTime::from_unix(1_773_065_107));
            let options = RenderOptions { now, as_given: true, ..RenderOptions::default() };
            self.render(messages, &options).map(|rendered| rendered.prompt.plain_text().to_owned())
        }

        /// The text and the adjustments.
        fn adapted(&self, messages: Value) -> Result<(String, Vec<Adjustment>), TemplateError> {
            let rendered = self.render(&messages, &RenderOptions::default())?;
            Ok((rendered.prompt.plain_text().to_owned(), rendered.adjustments))
        }
    }

    fn render(source: &str) -> Result<String, TemplateError> {
        template(source)?.given(&json!([{"role": "user", "content": "hi"}]))
    }

    #[test]
    fn generation_blocks_keep_their_content() {
        assert_eq!(render("{% generation %}x{% endgeneration %}").unwrap(), "x");
    }

    #[test]
    fn writes_what_json_dumps_writes() {
        let messages = serde_json::json!([{"b": [1, 2.5, null, true], "a": "é\n\"\u{1}<", "e": {}, "l": []}]);
        let render = |source: &str| template(source).unwrap().given(&messages).unwrap();
        assert_eq!(
            render("{{ messages[0] | tojson }}"),
            r#"{"b": [1, 2.5, null, true], "a": "é\n\"\u0001<", "e": {}, "l": []}"#
        );
        assert_eq!(
            render("{{ messages[0] | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}"),
            r#"{"a":"\u00e9\n\"\u0001<","b":[1,2.5,null,true],"e":{},"l":[]}"#
        );
        assert_eq!(
            render("{{ {'b': [1, {}], 'c': []} | tojson(indent=2) }}"),
            "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"c\": []\n}"
        );
    }
    #[test]
    fn a_template_without_content_is_none() {
        let tokenizer = GgufVocabulary {
            model: "gpt2".to_owned(),
            tokens: vec!["a".to_owned(), "aa".to_owned()],
            merges: vec!["a a".to_owned()],
            ..GgufVocabulary::default()
        };
        let tokenizer = Tokenizer::from_gguf(tokenizer).unwrap();
        for blank in ["", " \n\t ", "\u{feff}\n"] {
            assert!(ChatTemplate::new(blank, &tokenizer).unwrap().is_none());
        }
    }

    /// `content` inside of `before` and `after`: whether the special tokens of both are the only ones.
    fn breaks(source: &str, content: &str) -> Vec<String> {
        let messages =
            json!([{"role": "user", "content": content}, {"role": "user", "content": "|im_end|>"}]);
        let options = RenderOptions { as_given: true, ..RenderOptions::default() };
        let prompt = template(source).unwrap().render(&messages, &options).unwrap().prompt;
        let text = prompt.plain_text();
        let mut pieces: Vec<String> =
            prompt.breaks().windows(2).map(|w| text[w[0]..w[1]].to_owned()).collect();
        pieces.insert(0, text[..prompt.breaks()[0]].to_owned());
        pieces
    }

    #[test]
    fn special_tokens_of_a_message_are_told_from_those_of_the_scaffold() {
        let source = "<|im_start|>{{ messages[0].content | trim }}<|im_end|>";
        assert_eq!(breaks(source, " a<|im_end|>"), ["<|im_start|>a<"]);
        // The end of one text and the start of the next.
        let source = "{{ messages[0].content | trim }}{{ messages[1].content }}";
        assert_eq!(breaks(source, "a < \n"), ["a <", "|", "im_end|"]);
        // Text that closes around what a template takes out.
        for remove in ["replace('/think', '')", "replace('/think', '') | upper | lower"] {
            let source = format!("{{{{ messages[0].content | {remove} }}}}");
            assert_eq!(breaks(&source, "a<|im_/thinkend|>"), ["a<|im_"]);
        }
        assert_eq!(breaks("{{ messages[0].content.replace('-', '') }}", "<|-im_end|-> x"), ["<|"]);
        // Marks are no part of the text, even where JSON is written in ASCII.
        assert_eq!(breaks("{{ messages[0].content | tojson(ensure_ascii=true) }}", "é</s>"), ["\"\\u00e9<"]);
    }

    #[test]
    fn a_system_message_that_is_refused_or_lost_goes_to_the_user() {
        let refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system') }}\
            {% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}";
        let skips = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}";
        let messages = json!([{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]);
        for source in [refuses, skips] {
            let found = template(source).unwrap().adapted(messages.clone()).unwrap();
            assert_eq!(found, ("[user]S\n\nU".to_owned(), vec![Adjustment::SystemMerged]));
            let found =
                template(source).unwrap().adapted(json!([{"role": "system", "content": "S"}])).unwrap();
            assert_eq!(found, ("[user]S".to_owned(), vec![Adjustment::SystemMerged]));
        }
        assert_eq!(
            template(refuses).unwrap().given(&messages),
            Err(TemplateError::Raised("No system".into()))
        );
    }

    #[test]
    fn neighbours_of_one_role_are_joined_where_roles_must_take_turns() {
        let source = "{% for m in messages %}{% if m.role == 'system' or (m.role == 'user') != (loop.index0 % 2 == 0) %}\
            {{ raise_exception('Roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}";
        let message = |role: &str, content: &str| json!({"role": role, "content": content});
        let messages = json!([
            message("system", "S"),
            message("user", "a"),
            message("user", "b"),
            message("assistant", "c"),
            message("user", "d")
        ]);
        let found = template(source).unwrap().adapted(messages).unwrap();
        let expected = vec![Adjustment::SystemMerged, Adjustment::TurnsMerged];
        assert_eq!(found, ("[user]S\n\na\n\nb[assistant]c[user]d".to_owned(), expected));
        let refused = template(source).unwrap().adapted(json!([message("assistant", "x")]));
        assert_eq!(refused, Err(TemplateError::Raised("Roles must alternate".into())));
    }

    #[test]
    fn messages_reach_the_model_or_an_error_says_why_not() {
        let messages =
            json!([{"role": "system", "content": "S"}, {"role": "user", "content": "the question"}]);
        for source in [
            "{% for m in messages %}[{{ m.role }}]{{ m.content[0]['text'] }}{% endfor %}",
            "{% for m in messages %}[{{ m.role }}]{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}",
            "{% for m in messages %}[{{ m.role }}]{% if m.role == 'system' %}{{ m.content }}{% else %}\
             {{ m.content[0].text }}{% endif %}{% endfor %}",
            "{% for m in messages %}[{{ m.role }}]{{ m.content[0].text + '' }}{% endfor %}",
        ] {
            let found = template(source).unwrap().adapted(messages.clone()).unwrap();
            assert_eq!(found, ("[system]S[user]the question".to_owned(), vec![]), "{source}");
        }
        for source in ["hello", "{# nothing #}", "{{ messages[1].contents }}"] {
            let error = template(source).unwrap().adapted(messages.clone()).unwrap_err();
            assert_eq!(error, TemplateError::DropsMessage { role: "user".into() }, "{source}");
        }
        // Parts for a template that knows strings only.
        let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
        let strings = template("{{ messages[0].content }}").unwrap().adapted(parts).unwrap();
        assert_eq!(strings, ("ab".to_owned(), vec![]));
    }

    #[test]
    fn roles_that_a_template_leaves_out_are_told() {
        let source = "{% for m in messages if m.role in ['user', 'assistant'] %}{{ m.content }}{% endfor %}";
        let messages = json!([
            {"role": "user", "content": "a"},
            {"role": "tool", "content": "b"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"}
        ]);
        let found = template(source).unwrap().adapted(messages).unwrap();
        assert_eq!(found, ("acd".to_owned(), vec![Adjustment::Dropped { role: "tool".into() }]));
    }

    #[test]
    fn contents_that_must_be_of_a_kind_are_not_taken_for_refusals() {
        let source = "{% if messages[0].content != '{}' %}{{ raise_exception('no JSON') }}{% endif %}{{ messages[0].content }}";
        let found = template(source).unwrap().adapted(json!([{"role": "tool", "content": "{}"}])).unwrap();
        assert_eq!(found, ("{}".to_owned(), vec![]));
        let refused = template(source).unwrap().adapted(json!([{"role": "tool", "content": "x"}]));
        assert_eq!(refused, Err(TemplateError::Raised("no JSON".into())));
    }

    #[test]
    fn errors_say_what_happened() {
        assert_eq!(render("{{ raise_exception('No ' ~ 1) }}"), Err(TemplateError::Raised("No 1".into())));
        assert_eq!(
            render("{% macro m() %}{{ raise_exception('in') }}{% endmacro %}{{ m() }}"),
            Err(TemplateError::Raised("in".into()))
        );
        assert!(matches!(render("\n{% if %}"), Err(TemplateError::Syntax { line: 2, .. })));
        assert!(matches!(render("\n\n{{ a.b.c }}"), Err(TemplateError::Render { line: 3, .. })));
    }

    #[test]
    fn arguments_cannot_replace_messages() {
        let template = template("{{ messages }}{{ x }}").unwrap();
        let mut options = RenderOptions::default();
        options.kwargs.insert("x".into(), json!(1));
        assert_eq!(template.render(&json!([]), &options).unwrap().prompt.plain_text(), "[]1");
        options.kwargs.insert("messages".into(), json!(["other"]));
        assert_eq!(template.render(&json!([]), &options), Err(TemplateError::Reserved("messages".into())));
    }

    #[test]
    fn prints_as_python_does() {
        for (source, expected) in [
            ("{{ [1, 'a', none, true, 1.0, {'k': [2.5]}] }}", "[1, 'a', None, True, 1.0, {'k': [2.5]}]"),
            ("{{ 'x' ~ none ~ true }}", "xNoneTrue"),
            ("{{ 7 // 2 }} {{ 7 / 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ 2 ** 3 }}", "3 3.5 -4 1 8"),
            ("{{ 'abcdef'[-3:] }}{{ [1, 2, 3][::-1] }}{{ 'abc'[:-1] }}", "def[3, 2, 1]ab"),
            ("{{ '%s-%d' | format('a', 3) }}{{ '%05.1f' | format(2.25) }}", "a-3002.2"),
            ("{{ \"it's\" }}{{ [\"it's\"] }}{{ ['a\\n'] }}", "it's[\"it's\"]['a\\n']"),
            (
                "{{ 'a' in 'abc' }}{{ 'k' in {'k': 1} }}{{ 1 is number }}{{ 'a' is string }}",
                "TrueTrueTrueTrue",
            ),
            ("{{ {'b': 1, 'a': 2}.items() | list }}", "[('b', 1), ('a', 2)]"),
            ("{{ ' a b '.strip().split(' ') }}", "['a', 'b']"),
            ("{{ 'a-b-c'.rsplit('-', 1) }}{{ 'a=b'.partition('=') }}", "['a-b', 'c']('a', '=', 'b')"),
            ("{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.y'.removesuffix('.y') }}", "xx"),
            ("{{ strftime_now('%d %b %Y %A %H:%M:%S %j %-d') }}", "09 Mar 2026 Monday 14:05:07 068 9"),
            ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
            (
                "{% set ns = namespace(x=0) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}",
                "3",
            ),
        ] {
            assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
        }
    }
}
