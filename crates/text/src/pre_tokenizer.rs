//! The named pre-tokenizers: expressions that cut a text into the words that BPE works on.
//!
//! GGUF files store only a name (`tokenizer.ggml.pre`). The expressions are those of the `tokenizer.json`
//! files that the names stand for. Those that group digits from the right by looking ahead take quadratic time on
//! long numbers; what they do is written out instead ([`Step::Thousands`]).

use fancy_regex::{Regex, RegexBuilder};

use crate::TextError;

/// A pre-tokenizer as data.
pub(crate) struct PreTokenizerSpec {
    /// Each is applied to the pieces that the one before leaves; what lies between matches is a piece too.
    pub expressions: &'static [&'static str],
    /// A word that is a token as a whole is not merged up from its bytes.
    pub ignore_merges: bool,
    /// Whether BOS is added where the file does not say.
    pub add_bos: bool,
    /// Words are UTF-8 text with `▁` for spaces, rather than bytes in the GPT-2 alphabet.
    pub raw_text: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As published, but for the lookbehind: after a chunk of white space no line break follows in the same run, and to
/// look for one after every chunk would take quadratic time.
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|(?<![^\S\r\n])\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const YOUTU_SCRIPTS: &str = r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+";
const KIMI: &str = r"\p{Han}+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const SPARK: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##;
const CJK_AND_KANA: &str = "[一-龥぀-ゟ゠-ヿ]+";
const CJK_TO_HANGUL: &str = "[一-龥ࠀ-一가-퟿]+";
const ASIAN_SCRIPTS: &str = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+";
const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
/// Stands for groups of three that are counted from the right end of a run of numbers.
const DIGITS_FROM_RIGHT: &str = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))";
/// The same with decimal digits, where a shorter group at the left stays with what precedes it.
const CUTS_FROM_RIGHT: &str = r"(?=(\d{3})+(?!\d))";
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const LINES: &str = r"[^\n]+|\n+";
const DIGIT: &str = r"\p{N}";
const DIGITS_3: &str = r"\p{N}{1,3}";

/// Finds a pre-tokenizer by the name that GGUF files use.
pub(crate) fn named(name: &str) -> Option<PreTokenizerSpec> {
    let expressions: &'static [&'static str] = match name {
        "default" => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2"
        | "jina-v5-nano" | "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" | "glm5" => &[LLAMA3],
        "jais-2" => &[JAIS2],
        "minicpm5" => &[DIGITS_3, MINICPM5],
        "deepseek-llm" => &[
            "[\r\n]",
            DEEPSEEK_LETTERS,
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            CJK_TO_HANGUL,
            r"\p{N}+",
        ],
        "deepseek-coder" => &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_TO_HANGUL, DIGIT],
        "deepseek-v3" | "hunyuan-dense" | "joyai-llm" | "hy_v4" => &[DIGITS_3, CJK_AND_KANA, DEEPSEEK3],
        "spark2_5" => &[DIGITS_3, CJK_AND_KANA, SPARK, DIGIT],
        "youtu" => &[YOUTU_SCRIPTS, YOUTU],
        "falcon" => &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        "starcoder" | "refact" | "command-r" | "smollm" | "codeshell" | "exaone" | "minerva-7b"
        | "mellum2" => &[DIGIT, GPT2],
        "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "gigachat" | "jina-v2-es" | "jina-v2-de" | "a.x-4.0"
        | "mellum" | "modern-bert" | "jina-v1-en" | "jina-v2-code" | "roberta-bpe" | "exaone4" | "mpt"
        | "olmo" | "jais" | "trillion" | "granite-docling" => &[GPT2],
        "qwen2" | "deepseek-r1-qwen" | "kormo" | "f2llmv2" | "megrez" | "stablelm2" | "hunyuan"
        | "solar-open" | "grok-2" => &[QWEN2],
        "qwen35" => &[QWEN35],
        "poro-chat" | "bloom" | "gpt3-finnish" => &[BLOOM],
        "viking" => &[BLOOM, DIGIT],
        "tekken" => &[TEKKEN],
        "chameleon" => &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
        "gpt-4o" | "llama4" | "kanana2" | "talkie" | "minimax-m2" | "granite-embed-multi-97m" => &[O200K],
        "tiny_aya" | "cohere2moe" => &[DIGITS_FROM_RIGHT, O200K],
        "kimi-k2" => &[KIMI],
        "superbpe" => &[r"\p{N}+", CUTS_FROM_RIGHT],
        "bailingmoe" | "bailingmoe2" | "llada-moe" => &[BAILING],
        "seed-coder" => &[SEED_CODER],
        "ufakzeka" => &[UFAKZEKA],
        "afmoe" => &[DIGITS_FROM_RIGHT, ASIAN_SCRIPTS, DEEPSEEK3],
        "laguna" => &[LINES, QWEN2],
        "exaone-moe" => &[EXAONE_MOE],
        "gemma4" | "granite-embed-multi-311m" | "sarvam-moe" => &[LINES],
        _ => return None,
    };
    let llama3 = matches!(
        name,
        "llama3"
            | "llama-v3"
            | "llama-bpe"
            | "falcon3"
            | "falcon-h1"
            | "pixtral"
            | "midm-2.0"
            | "lfm2"
            | "jina-v5-nano"
    );
    let ignore_merges =
        matches!(name, "minicpm5" | "youtu" | "glm4" | "glm5" | "tekken" | "granite-embed-multi-97m");
    Some(PreTokenizerSpec {
        expressions,
        ignore_merges: llama3 || ignore_merges,
        add_bos: llama3 || matches!(name, "tekken" | "chameleon"),
        raw_text: matches!(name, "gemma4" | "granite-embed-multi-311m" | "sarvam-moe"),
    })
}

/// Compiled expressions.
pub(crate) struct PreTokenizer {
    steps: Vec<Step>,
}

enum Step {
    /// Every match is a piece, and what lies between; an empty match is a cut.
    Matches(Regex),
    /// Every run that matches is cut into groups of three from its right end.
    Thousands {
        run: Regex,
        /// Whether a run also ends the piece before it where its first group has fewer than three.
        isolates: bool,
    },
}

impl Step {
    fn new(expression: &str) -> Result<Self, TextError> {
        // The limit counts the places where nothing matches, too, so that it would refuse long texts. That these
        // expressions take linear time is what the tests below hold.
        let compile = |e: &str| {
            let built = RegexBuilder::new(e).backtrack_limit(usize::MAX).build();
            built.map_err(|error| TextError::Expression(error.to_string()))
        };
        Ok(match expression {
            DIGITS_FROM_RIGHT => Self::Thousands { run: compile(r"\p{N}+")?, isolates: true },
            CUTS_FROM_RIGHT => Self::Thousands { run: compile(r"\d+")?, isolates: false },
            other => Self::Matches(compile(other)?),
        })
    }

    fn split<'t>(&self, piece: &'t str, pieces: &mut Vec<&'t str>) -> Result<(), TextError> {
        let (Self::Matches(expression) | Self::Thousands { run: expression, .. }) = self;
        let mut end = 0;
        let mut cut = |to: usize| {
            pieces.extend(Some(&piece[end..to]).filter(|piece| !piece.is_empty()));
            end = to;
        };
        for found in expression.find_iter(piece) {
            let found = found.map_err(|error| TextError::Expression(error.to_string()))?;
            match self {
                Self::Matches(_) => {
                    cut(found.start());
                    cut(found.end());
                }
                Self::Thousands { isolates, .. } => {
                    let count = found.as_str().chars().count();
                    let groups = found
                        .as_str()
                        .char_indices()
                        .enumerate()
                        .filter(|(at, _)| (count - at).is_multiple_of(3) || (*isolates && *at == 0));
                    groups.for_each(|(_, (at, _))| cut(found.start() + at));
                    if *isolates {
                        cut(found.end());
                    }
                }
            }
        }
        cut(piece.len());
        Ok(())
    }
}

impl PreTokenizer {
    pub(crate) fn new(expressions: &[&str]) -> Result<Self, TextError> {
        Ok(Self { steps: expressions.iter().map(|e| Step::new(e)).collect::<Result<_, _>>()? })
    }

    /// Cuts `text` into words, which together are the whole text.
    pub(crate) fn split<'t>(&self, text: &'t str) -> Result<Vec<&'t str>, TextError> {
        let mut pieces = vec![text];
        let mut next = Vec::new();
        for step in &self.steps {
            for piece in pieces.drain(..) {
                step.split(piece, &mut next)?;
            }
            std::mem::swap(&mut pieces, &mut next);
        }
        pieces.retain(|piece| !piece.is_empty());
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: &str = "a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r \
        dbrx deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 \
        f2llmv2 falcon falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish \
        granite-docling granite-embed-multi-311m granite-embed-multi-97m grok-2 hunyuan hunyuan-dense \
        hy_v4 jais jais-2 jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano \
        joyai-llm kanana2 kimi-k2 kormo laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez \
        mellum mellum2 midm-2.0 minerva-7b minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral \
        poro-chat qwen2 qwen35 refact roberta-bpe sarvam-moe seed-coder smaug-bpe smollm solar-open \
        spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya trillion ufakzeka viking youtu";

    #[test]
    fn every_name_compiles_and_keeps_the_text() {
        let text =
            "Hello  world's 12345678 日本語 x\r\n\r\n  \tYOU'LL <sentinel:7> ça! 한국어 ไทย\u{1F600}  ";
        for name in NAMES.split(' ') {
            let spec = named(name).unwrap_or_else(|| panic!("{name} is missing"));
            let pieces = PreTokenizer::new(spec.expressions).unwrap().split(text).unwrap();
            assert_eq!(pieces.concat(), text, "{name}");
            assert!(pieces.iter().all(|p| !p.is_empty()), "{name}");
        }
        assert!(named("no-such-name").is_none());
    }

    fn words(name: &str, text: &'static str) -> Vec<&'static str> {
        PreTokenizer::new(named(name).unwrap().expressions).unwrap().split(text).unwrap()
    }

    #[test]
    fn digits_are_grouped_as_the_name_says() {
        assert_eq!(words("llama-bpe", "1234567"), ["123", "456", "7"]);
        assert_eq!(words("afmoe", "1234567"), ["1", "234", "567"]);
        assert_eq!(words("tiny_aya", "12345 6"), ["12", "345", " ", "6"]);
        assert_eq!(words("superbpe", "a 12345"), ["a ", "12", "345"]);
        assert_eq!(words("qwen2", "12 3"), ["1", "2", " ", "3"]);
    }

    #[test]
    fn groups_from_the_right_are_those_of_the_expressions() {
        for expression in [DIGITS_FROM_RIGHT, CUTS_FROM_RIGHT] {
            let by_hand = PreTokenizer::new(&[expression]).unwrap();
            let by_expression = PreTokenizer { steps: vec![Step::Matches(Regex::new(expression).unwrap())] };
            for text in [
                "",
                "1",
                "12",
                "123",
                "1234",
                "12345",
                "123456",
                "1234567",
                "a1",
                "a1234b",
                "1234.5678",
                "½1234½",
                "½½",
                "12½3456",
                "١٢٣٤",
                "1 22 333 4444",
                "Ⅷ1",
                "x½12345678½y",
                "一2345二",
            ] {
                assert_eq!(by_hand.split(text).unwrap(), by_expression.split(text).unwrap(), "{text}");
            }
        }
    }

    const JAIS2_PUBLISHED: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";

    #[test]
    fn white_space_of_jais_2_is_cut_as_the_published_expression_does() {
        let ours = PreTokenizer::new(&[JAIS2]).unwrap();
        let published = PreTokenizer::new(&[JAIS2_PUBLISHED]).unwrap();
        let blanks = [" ", " ", "\t", "\u{A0}", "\u{3000}", "\u{85}", "\u{2028}", "\u{B}"];
        let others = ["\n", "\r", "\r\n", "a", "1", ".", "'s", "é", "中", "\u{301}", "\u{1F600}"];
        let mut state = 1u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % bound
        };
        for _ in 0..3000 {
            let mut text = String::new();
            for _ in 0..below(12) {
                let longest = [3, 20, 1200][below(3)];
                match below(2) {
                    0 => (0..below(longest)).for_each(|_| text += blanks[below(blanks.len())]),
                    _ => text += others[below(others.len())],
                }
            }
            assert_eq!(ours.split(&text).unwrap(), published.split(&text).unwrap(), "{text:?}");
        }
        for blanks in 0..1100 {
            for (before, after) in
                [("", ""), ("", "a"), (".\n", ""), ("\n", "\na"), ("a", " ."), ("1\t", "\r")]
            {
                let text = format!("{before}{}{after}", " ".repeat(blanks));
                assert_eq!(ours.split(&text).unwrap(), published.split(&text).unwrap(), "{text:?}");
            }
        }
    }

    /// Long runs of every kind of character, and repeats that make expressions try again and again.
    const REPEATED: &[&str] = &[
        "1",
        "a",
        "A",
        " ",
        "\n",
        "\r\n",
        "\t",
        ".",
        "'",
        "(",
        "$",
        "e\u{301}",
        "\u{301}",
        "½",
        "中",
        "あ",
        "한",
        "ก",
        "\u{1F600}",
        "\u{200D}",
        "\u{A0}",
        "\u{3000}",
        "Aa",
        "aA",
        "a1",
        "1a",
        "a ",
        " a",
        "1 ",
        "12 ",
        " .",
        "a.",
        "'s",
        "'S ",
        "a'll",
        "\n ",
        " \n",
        "/",
        "\r",
        "I",
        "IMGIMG",
        "IMGIMGABCDE",
        "<sentinel:",
        "<sentinel:1",
        "ǅ",
        "ʰ",
        "a\u{301} ",
        "é中",
        "中1",
        "\u{0}",
        "\u{FFFD}",
        "!a",
        "-A",
        "|",
        "，",
        "\t\t ",
    ];

    /// Whether the time for a repeated text grows faster than the text.
    fn grows_faster(tokenizer: &PreTokenizer, unit: &str, tail: &str) -> bool {
        use std::time::{Duration, Instant};
        // Other work on the machine only ever adds to a time: the shortest of some counts.
        let time = |bytes: usize, attempts: usize| {
            let text = unit.repeat(bytes / unit.len()) + tail;
            let once = |_| {
                let start = Instant::now();
                assert!(!tokenizer.split(&text).unwrap().is_empty());
                start.elapsed()
            };
            (0..attempts).map(once).min().unwrap_or_default()
        };
        // Linear time is four times for each of the two steps, quadratic time sixteen. The first is quick and sorts out most.
        time(100_000, 1) > time(25_000, 1) * 6
            && time(400_000, 4) > time(100_000, 4) * 8 + Duration::from_millis(10)
    }

    #[test]
    fn time_grows_with_the_text_and_no_faster() {
        let published = PreTokenizer::new(&[JAIS2_PUBLISHED]).unwrap();
        assert!((0..5).any(|_| grows_faster(&published, " ", "")), "the measure sees no quadratic time");
        let mut seen: Vec<&[&str]> = Vec::new();
        let mut slow = Vec::new();
        for name in NAMES.split(' ') {
            let expressions = named(name).unwrap().expressions;
            if seen.contains(&expressions) {
                continue;
            }
            seen.push(expressions);
            let tokenizer = PreTokenizer::new(expressions).unwrap();
            for unit in REPEATED {
                // The tail is what a greedy expression has to give back.
                for tail in ["", "a"] {
                    if (0..3).all(|_| grows_faster(&tokenizer, unit, tail)) {
                        slow.push(format!("{name} {unit:?} {tail:?}"));
                    }
                }
            }
        }
        assert!(slow.is_empty(), "{slow:#?}");
    }

    #[test]
    fn spaces_and_contractions() {
        assert_eq!(words("gpt-2", "I'll  go "), ["I", "'ll", " ", " go", " "]);
        assert_eq!(words("llama-bpe", "I'LL go\n\nnow"), ["I", "'LL", " go", "\n\n", "now"]);
        assert_eq!(words("gpt-4o", "HelloWorld's x"), ["Hello", "World's", " x"]);
        assert_eq!(words("gemma4", "a b\n\nc"), ["a b", "\n\n", "c"]);
    }
}
