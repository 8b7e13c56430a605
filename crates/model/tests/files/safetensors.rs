//! The safetensors header: every class of malformed file.

use unicorn_model::safetensors::{HEADER_BYTES_MAX, parse};

use crate::writer::safetensors;

#[track_caller]
fn error(header: &str, data: &[u8]) -> String {
    parse(&safetensors(header, data)[..]).expect_err("malformed file was accepted").to_string()
}

#[test]
fn reads_tensors_in_the_order_of_their_bytes() {
    let header = r#"{"b":{"dtype":"F16","shape":[2,2],"data_offsets":[4,12]},"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"e":{"dtype":"I64","shape":[0],"data_offsets":[12,12]}}   "#;
    let bytes = safetensors(header, &[0; 12]);
    let h = parse(&bytes[..]).unwrap();
    assert_eq!(h.metadata, [("format".to_owned(), "pt".to_owned())]);
    let names: Vec<_> = h.tensors.iter().map(|t| (t.name.as_str(), t.ty.name(), t.bytes)).collect();
    assert_eq!(names, [("a", "F32", 4), ("b", "F16", 8), ("e", "I64", 0)]);
    assert_eq!(h.tensors[0].offset, 8 + header.len() as u64);
}

#[test]
fn header_length() {
    let text = parse(&[1, 2, 3][..]).unwrap_err().to_string();
    assert_eq!(text, "header length ends at byte 8, past the end of the file (3 bytes)");
    let mut bytes = safetensors("{}", &[]);
    bytes[0] = 3;
    assert_eq!(
        parse(&bytes[..]).unwrap_err().to_string(),
        "header ends at byte 11, past the end of the file (10 bytes)"
    );
    bytes[..8].copy_from_slice(&(HEADER_BYTES_MAX + 1).to_le_bytes());
    assert!(parse(&bytes[..]).unwrap_err().to_string().contains("more than the limit of 100000000 bytes"));
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(parse(&bytes[..]).unwrap_err().to_string().contains("more than the limit"));
}

#[test]
fn header_json() {
    for header in
        ["", "[]", "{", "{\"a\":1}", "{} x", "null", "{\"__metadata__\":3}", "{\"__metadata__\":{\"k\":1}}"]
    {
        assert!(error(header, &[]).starts_with("header: "), "{header}");
    }
    let text = error(r#"{"a":{"dtype":"F32","shape":[1]}}"#, &[0; 4]);
    assert!(text.contains("tensor a") && text.contains("data_offsets"), "{text}");
    let text = error(r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, &[0; 4]);
    assert!(text.contains("tensor a"), "{text}");
    let text = error(r#"{"a":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}}"#, &[0; 4]);
    assert!(text.contains("tensor a") && text.contains("at most 8"), "{text}");
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    assert!(error(&deep, &[]).starts_with("header: "));
}

#[test]
fn offsets_and_sizes() {
    let one = |offsets: &str| {
        error(&format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#), &[0; 8])
    };
    assert_eq!(one("[8,0]"), "tensor a: data_offsets [8, 0] are not a range inside the 8 bytes of data");
    assert!(one("[4,12]").contains("[4, 12]"));
    assert!(one("[0,18446744073709551615]").contains("not a range"));
    assert_eq!(one("[0,4]"), "tensor a: shape [2] of F32 takes 8 bytes, but data_offsets span 4");
    let text = error(
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}}"#,
        &[0; 8],
    );
    assert!(text.starts_with("tensor a: shape") && text.ends_with("overflows"), "{text}");
}

#[test]
fn overlaps_holes_and_duplicates() {
    let two = |a: &str, b: &str, len: usize| {
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        );
        error(&header, &vec![0; len])
    };
    assert_eq!(two("[0,4]", "[2,6]", 6), "tensors a and b overlap");
    assert_eq!(two("[0,4]", "[0,4]", 4), "tensors a and b overlap");
    assert_eq!(two("[0,4]", "[6,10]", 10), "bytes 4..6 of the data belong to no tensor");
    assert_eq!(two("[1,5]", "[5,9]", 9), "bytes 0..1 of the data belong to no tensor");
    assert_eq!(two("[0,4]", "[4,8]", 9), "bytes 8..9 of the data belong to no tensor");
    let header = r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#;
    assert_eq!(error(header, &[0; 8]), "tensor a occurs twice");
}

#[test]
fn truncation_at_every_length_is_an_error() {
    let header = r#"{"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
    let bytes = safetensors(header, &[0; 8]);
    parse(&bytes[..]).unwrap();
    for len in 0..bytes.len() {
        assert!(parse(&bytes[..len]).is_err(), "{len}");
    }
}
