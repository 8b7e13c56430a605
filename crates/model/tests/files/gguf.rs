//! The GGUF parser: values, and every class of malformed file with an error that names the field.

use unicorn_model::gguf::{Gguf as Parsed, GgufError, Value, parse};

use crate::writer::{Gguf, T, V, array, string};

fn read(g: &Gguf) -> Result<Parsed, GgufError> {
    parse(&g.bytes()[..])
}

/// The message of the error that a file gives.
#[track_caller]
fn error(g: &Gguf) -> String {
    error_of(&g.bytes())
}

#[track_caller]
fn error_of(bytes: &[u8]) -> String {
    parse(bytes).expect_err("malformed file was accepted").to_string()
}

fn two() -> Gguf {
    Gguf::default().f32("one", &[32, 2]).f32("two", &[8])
}

#[test]
fn reads_values_and_tensors() {
    for version in [2, 3] {
        let mut g = two()
            .key("a.u8", V::U8(7))
            .key("a.i32", V::I32(-3))
            .key("a.u64", V::U64(1 << 40))
            .key("a.f32", V::F32(0.5))
            .key("a.bool", V::Bool(1))
            .key("a.text", V::Str("héllo"))
            .key("a.texts", V::Strs(vec!["x", "", "yz"]))
            .key("a.floats", V::F32s(vec![1.0, -2.0]))
            .key("a.flags", V::Bools(vec![true, false]));
        g.version = version;
        let p = read(&g).unwrap();
        assert_eq!(p.version(), version);
        assert_eq!(p.int("a.u8").unwrap(), Some(7));
        assert_eq!(p.int("a.u64").unwrap(), Some(1 << 40));
        assert_eq!(p.float("a.f32").unwrap(), Some(0.5));
        assert_eq!(p.bool("a.bool").unwrap(), Some(true));
        assert_eq!(p.string("a.text").unwrap().as_deref(), Some("héllo"));
        assert_eq!(p.strings("a.texts").unwrap().unwrap(), ["x", "", "yz"]);
        assert_eq!(p.floats("a.floats").unwrap().unwrap(), [1.0, -2.0]);
        assert_eq!(p.get("a.i32"), Some(Value::I32(-3)));
        assert_eq!(p.array("a.flags").unwrap().unwrap().iter().last(), Some(Value::Bool(false)));
        assert_eq!(p.int("absent").unwrap(), None);
        assert_eq!(p.metadata().map(|(k, _)| k.to_owned()).collect::<Vec<_>>().len(), 9);
        let [one, two] = p.tensors() else { panic!("two tensors") };
        assert_eq!((one.name.as_str(), &one.shape[..], one.bytes), ("one", &[2, 32][..], 256));
        assert_eq!(two.offset, one.offset + 256);
        assert_eq!(one.offset % 32, 0);
    }
}

#[test]
fn getters_name_the_key_and_both_types() {
    let p = read(&Gguf::default().key("k", V::Str("x")).key("n", V::I32(-1)).key("t", V::Strs(vec!["a"])))
        .unwrap();
    assert_eq!(p.int("k").unwrap_err().to_string(), "key k: expected an integer, found string");
    assert_eq!(p.bool("k").unwrap_err().to_string(), "key k: expected bool, found string");
    assert_eq!(p.float("k").unwrap_err().to_string(), "key k: expected a number, found string");
    assert_eq!(p.array("k").unwrap_err().to_string(), "key k: expected an array, found string");
    assert_eq!(p.int("n").unwrap_err().to_string(), "key n: -1 is out of range for a count");
    assert_eq!(p.string("n").unwrap_err().to_string(), "key n: expected string, found i32");
    assert_eq!(
        p.ints("t").unwrap_err().to_string(),
        "key t: expected array of integers, found array of string"
    );
    assert_eq!(
        p.floats("t").unwrap_err().to_string(),
        "key t: expected array of numbers, found array of string"
    );
}

#[test]
fn alignment_key_is_used() {
    let mut g = two().key("general.alignment", V::U32(128));
    g.alignment = 128;
    assert!(read(&g).unwrap().tensors().iter().all(|t| t.offset % 128 == 0));
}

#[test]
fn bad_magic_and_version() {
    let mut g = two();
    g.magic = *b"GGML";
    assert_eq!(error(&g), r#"magic is GGML, not "GGUF""#.replace("GGML", "\"GGML\""));
    g = two();
    for version in [0, 1, 4, 65_535] {
        g.version = version;
        assert_eq!(error(&g), format!("version {version} is not supported (only 2 and 3 are)"));
    }
    for version in [3u32.swap_bytes(), 2u32.swap_bytes()] {
        g.version = version;
        assert!(error(&g).contains("big-endian"));
    }
}

#[test]
fn counts_beyond_the_file() {
    for huge in [u64::MAX, 1 << 60, 1000] {
        let mut g = two();
        g.tensor_count = Some(huge);
        assert!(
            error(&g).starts_with(&format!("tensor_count: {huge} entries need at least")),
            "{}",
            error(&g)
        );
        let mut g = two();
        g.key_count = Some(huge);
        assert!(error(&g).starts_with(&format!("metadata_kv_count: {huge} entries need")), "{}", error(&g));
    }
}

#[test]
fn lengths_beyond_the_file() {
    let huge = (1u64 << 60).to_le_bytes();
    let text = error(&two().key("k", V::Raw(8, huge.to_vec())));
    assert!(text.starts_with("value of key k ends at byte") && text.contains("past the end"), "{text}");
    for element in [0u32, 4, 8, 10] {
        for count in [1u64 << 60, u64::MAX] {
            let raw = [&element.to_le_bytes()[..], &count.to_le_bytes()].concat();
            let text = error(&two().key("k", V::Raw(9, raw)));
            assert!(text.contains("of key k ends at byte"), "{text}");
        }
    }
    let mut bytes = two().head()[..24].to_vec();
    bytes.extend(u64::MAX.to_le_bytes());
    bytes.extend([0; 64]);
    assert!(error_of(&bytes).starts_with("name of tensor 0 ends at byte"), "{}", error_of(&bytes));
}

#[test]
fn bad_values() {
    assert_eq!(error(&two().key("k", V::Raw(13, vec![0; 8]))), "key k: unknown value type 13");
    let raw = array(99, 1, [0; 8]);
    assert_eq!(error(&two().key("k", V::Raw(9, raw))), "key k: unknown value type 99");
    let raw = array(9, 1, [0; 16]);
    assert_eq!(error(&two().key("k", V::Raw(9, raw))), "key k: arrays of arrays are not supported");
    assert_eq!(error(&two().key("k", V::Bool(2))), "key k: 2 is not a bool (0 or 1)");
    assert_eq!(error(&two().key("k", V::Raw(9, array(7, 2, [1, 9])))), "key k: 9 is not a bool (0 or 1)");
    let invalid = [&2u64.to_le_bytes()[..], &[0xff, 0xfe]].concat();
    assert_eq!(error(&two().key("k", V::Raw(8, invalid.clone()))), "value of key k is not valid UTF-8");
    // In an array it matters to those who read the array.
    let p = read(&two().key("k", V::Raw(9, array(8, 1, invalid)))).unwrap();
    assert_eq!(p.strings("k").unwrap_err().to_string(), "element 0 of key k is not valid UTF-8");
}

#[test]
fn duplicate_keys() {
    let mut g = two().key("k", V::U8(1));
    g.keys.push(("k".into(), V::U8(2)));
    assert_eq!(error(&g), "key k occurs twice");
}

#[test]
fn alignment_must_be_a_power_of_two() {
    for bad in [0, 3, 48, u32::MAX] {
        let text = error(&two().key("general.alignment", V::U32(bad)));
        assert_eq!(text, format!("general.alignment: {bad} is not a power of two"));
    }
    let text = error(&two().key("general.alignment", V::Str("32")));
    assert_eq!(text, "key general.alignment: expected an integer, found string");
    // The largest powers push the data past the end, or past every end.
    for huge in [1u64 << 40, 1 << 63] {
        let text = error(&Gguf::default().f32("one", &[8]).key("general.alignment", V::U64(huge)));
        assert!(text.starts_with("tensor one: bytes") && text.contains("past the end"), "{text}");
    }
}

#[test]
fn bad_dimensions() {
    let with = |dims: &[u64], ty: u32| {
        let mut g = two();
        g.tensor("two").dims = dims.to_vec();
        g.tensor("two").ty = ty;
        error(&g)
    };
    assert_eq!(with(&[1, 1, 1, 1, 8], 0), "tensor two: n_dims is 5, more than 4");
    assert_eq!(with(&[8, 0], 0), "tensor two: dimension 1 is zero");
    assert!(with(&[1 << 40, 1 << 40], 0).starts_with("tensor two: dimensions [1099511627776, 109951162"));
    assert!(with(&[u64::MAX], 0).contains("overflow"));
    assert!(with(&[1 << 62], 0).contains("overflow"));
    for id in [4, 5, 31, 32, 33, 43, u32::MAX] {
        assert_eq!(with(&[8], id), format!("tensor two: unknown tensor type id {id}"));
    }
    let text = "tensor two: rows of 33 elements are no multiple of the 32 elements of a Q4_0 block";
    assert_eq!(with(&[33], 2), text);
    let text = "tensor two: rows of 32 elements are no multiple of the 256 elements of a Q4_K block";
    assert_eq!(with(&[32, 8], 12), text);
}

#[test]
fn bad_offsets() {
    let with = |offset: u64| {
        let mut g = two();
        g.tensor("two").offset = Some(offset);
        error(&g)
    };
    assert_eq!(with(257), "tensor two: offset 257 is no multiple of the alignment 32");
    assert_eq!(with(0), "tensors one and two overlap");
    assert_eq!(with(224), "tensors one and two overlap");
    assert!(with(288).starts_with("tensor two: bytes"), "{}", with(288));
    assert!(with(1 << 40).contains("reach past the end of the file"));
    assert!(with(u64::MAX - 31).ends_with("overflows"), "{}", with(u64::MAX - 31));
    let mut g = two();
    g.tensor("one").offset = Some(256);
    assert!(error(&g).contains("past the end") || error(&g).contains("overlap"));
}

#[test]
fn types_without_kernels_can_be_listed() {
    let mut g = two();
    g.tensors.push(T {
        name: "ids".into(),
        dims: vec![4],
        ty: 26,
        offset: None,
        bytes: 16,
        data: Vec::new(),
    });
    let p = read(&g).unwrap();
    assert_eq!(p.tensors()[2].ty.name(), "I32");
}

#[test]
fn truncation_at_every_length_is_an_error() {
    let g = two().key("k", V::Strs(vec!["one", "two"])).key("n", V::U32(1));
    let bytes = g.bytes();
    // The last tensor ends 32 bytes before the padding does.
    let needed = parse(&bytes[..]).unwrap().tensors().iter().map(|t| t.offset + t.bytes).max().unwrap();
    for len in 0..needed as usize {
        let text = error_of(&bytes[..len]);
        let named = ["magic", "version", "count", "key", "tensor"].iter().any(|f| text.contains(f));
        assert!(named, "{len}: {text}");
    }
    parse(&bytes[..needed as usize]).unwrap();
}

#[test]
fn strings_do_not_reach_into_what_follows() {
    // The length of a key's name says 2^32 more than it has.
    let mut bytes = Gguf::default().key("key", V::U8(1)).bytes();
    bytes[28] = 1;
    assert!(error_of(&bytes).starts_with("name of metadata key 0 ends at byte"), "{}", error_of(&bytes));
    assert_eq!(string("ab"), [2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
}
