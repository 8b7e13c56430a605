//! The formats of JSON Schema as regular expressions of the whole string. Each describes a part of its format at least, and
//! nothing outside of it.

/// What a format asks for.
pub(crate) enum Format {
    /// This regular expression of the whole string.
    Is(&'static str),
    /// Nothing: validators take it as a remark.
    Remark,
}

macro_rules! octet {
    () => {
        "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    };
}
macro_rules! ipv4 {
    () => {
        concat!("(?:", octet!(), r"\.){3}", octet!())
    };
}
macro_rules! date {
    // 29 February is there in leap years only.
    () => {
        concat!(
            "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
            "|02-(?:0[1-9]|1[0-9]|2[0-8]))",
            "|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)"
        )
    };
}
macro_rules! time {
    () => {
        concat!(
            r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?",
            "(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
        )
    };
}
macro_rules! label {
    () => {
        // No two dashes side by side: in third and fourth place they would announce an encoding.
        "[A-Za-z0-9]{1,20}(?:-[A-Za-z0-9]{1,20}){0,2}"
    };
}
macro_rules! hostname {
    () => {
        concat!(label!(), r"(?:\.", label!(), "){0,3}")
    };
}
macro_rules! path_character {
    () => {
        "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9a-fA-F]{2})"
    };
}
macro_rules! authority {
    () => {
        concat!(
            "(?:(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9a-fA-F]{2})*@)?",
            "(?:[A-Za-z0-9._~-]*)(?::[0-9]{1,5})?"
        )
    };
}
macro_rules! tail {
    () => {
        concat!(r"(?:\?(?:", path_character!(), "|[/?])*)?", "(?:#(?:", path_character!(), "|[/?])*)?")
    };
}
macro_rules! uri {
    () => {
        concat!(
            "[A-Za-z][A-Za-z0-9+.-]*:(?://",
            authority!(),
            "(?:/",
            path_character!(),
            "*)*|/?",
            path_character!(),
            "+(?:/",
            path_character!(),
            "*)*)",
            tail!()
        )
    };
}

const DURATION: &str = concat!(
    "P(?:[0-9]{1,9}W|(?:[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?|[0-9]{1,9}M(?:[0-9]{1,9}D)?|[0-9]{1,9}D)",
    "(?:T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S))?",
    "|T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S))"
);
const EMAIL: &str = concat!("[A-Za-z0-9_%+-]{1,20}(?:[.][A-Za-z0-9_%+-]{1,20}){0,2}@", hostname!());
const IPV6: &str = concat!(
    "(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|::(?:[0-9a-fA-F]{1,4}:){0,6}[0-9a-fA-F]{1,4}|::",
    "|(?:[0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}|(?:[0-9a-fA-F]{1,4}:){1,7}:",
    "|(?:[0-9a-fA-F]{1,4}:){1,5}(?::[0-9a-fA-F]{1,4}){2}|(?:[0-9a-fA-F]{1,4}:){1,4}(?::[0-9a-fA-F]{1,4}){3}",
    "|(?:[0-9a-fA-F]{1,4}:){1,3}(?::[0-9a-fA-F]{1,4}){4}|(?:[0-9a-fA-F]{1,4}:){1,2}(?::[0-9a-fA-F]{1,4}){5}",
    "|::(?:[fF]{4}:)?",
    ipv4!()
);
const URI_REFERENCE: &str = concat!(
    uri!(),
    "|//",
    authority!(),
    "(?:/",
    path_character!(),
    "*)*",
    tail!(),
    "|(?:/(?:",
    path_character!(),
    "+(?:/",
    path_character!(),
    "*)*)?)?",
    tail!(),
    "|(?:[A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9a-fA-F]{2})+(?:/",
    path_character!(),
    "*)*",
    tail!()
);
/// Literals and simple expressions in braces.
const URI_TEMPLATE: &str =
    r"(?:[A-Za-z0-9._~:/?#@!$&()*+,;=-]|%[0-9a-fA-F]{2}|\{[+#./;?&]?[A-Za-z0-9_]+(?:,[A-Za-z0-9_]+)*\})*";
/// Characters that mean themselves, escapes, classes of letters and digits, groups one deep, and counts behind them.
const REGEX: &str = concat!(
    r"\^?(?:(?:[A-Za-z0-9 _/@:;,=<>#%&~!'-]|\\[dDwWsS.+*?^$()\[\]{}|/\\-]|\.",
    r"|\[\^?[A-Za-z0-9_]+(?:a-z)?(?:A-Z)?(?:0-9)?-?\]|\((?:\?:)?[A-Za-z0-9_ ]+(?:\|[A-Za-z0-9_ ]+)*\))[*+?]?)*\$?"
);

/// What a format asks for.
pub(crate) fn lookup(name: &str) -> Format {
    Format::Is(match name {
        "date" => date!(),
        "time" => time!(),
        "date-time" => concat!(date!(), "[tT]", time!()),
        "duration" => DURATION,
        "email" | "idn-email" => EMAIL,
        "hostname" | "idn-hostname" => hostname!(),
        "ipv4" => ipv4!(),
        "ipv6" => IPV6,
        "uuid" => "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
        "uri" | "iri" => uri!(),
        "uri-reference" | "iri-reference" => URI_REFERENCE,
        "uri-template" => URI_TEMPLATE,
        "json-pointer" => "(?:/(?:[^/~]|~[01])*)*",
        "relative-json-pointer" => "(?:0|[1-9][0-9]{0,8})(?:#|(?:/(?:[^/~]|~[01])*)*)",
        "regex" => REGEX,
        _ => return Format::Remark,
    })
}
