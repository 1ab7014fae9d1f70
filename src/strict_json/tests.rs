use std::{collections::BTreeMap, fmt};

use proptest::prelude::*;
use serde::de::{self, Deserialize, Deserializer, Visitor};

use super::*;

fn checked(json: &str) -> Result<(), NotStrict> {
    check(serde_json::from_str(json).expect("JSON"))
}

#[test]
fn values_that_every_reader_can_hold_pass() {
    let deepest = format!("{}{}", "[".repeat(128), "]".repeat(128));
    let most_digits = "9".repeat(308);
    let long_fraction = format!("0.{}1e340", "0".repeat(400));
    let many: Vec<_> = (0..100).map(|n| format!("\"{n}\":{n}")).collect();
    let many = format!("{{{}}}", many.join(","));
    for json in [
        "null",
        "true",
        "\"text\"",
        "{}",
        "[]",
        r#"{"a":1,"b":[true,false,null,{"a":"a","b":"a"}]}"#,
        r#"[{"a":1},{"a":1}]"#,
        r#"{"a":{"a":{"a":"a"}}}"#,
        r#"{"a":"b","b":"a"}"#,
        r#"{ "a" : "a" , "A" : "a" , "" : "" , " " : "" }"#,
        r#"{"\u0061":1,"\u0062":2,"c":3}"#,
        r#"["\"","\\","\\\\","\\u","\\ud800","\/\b\f\n\r\t"]"#,
        r#"["\ud83d\ude00","\uD83D\uDE00","\ud83d\ude00\ud83d\ude00","😀"]"#,
        r#"["\u0000","\uffff","\ufffe","\ud7ff","\ue000","\u007f"]"#,
        "[0,-0,-0.0,0e999,0E+999,-0e1000000000000000000000]",
        "[1e308,-1e308,1.7976931348623157e308,1e-999,1e-1000000000000000000000]",
        "[18446744073709551616,-9223372036854775809,123456789012345678901234567890]",
        &most_digits,
        &long_fraction,
        &deepest,
        &many,
    ] {
        assert_eq!(checked(json), Ok(()), "{json:.80}");
    }
}

#[test]
fn half_of_a_surrogate_pair_is_refused_wherever_it_stands() {
    for json in [
        r#""\ud800""#,
        r#""\uDBFF""#,
        r#""\udc00""#,
        r#""\uDFFF""#,
        r#""\ud800\ud800""#,
        r#""\ud83d\\ude00""#,
        r#""\ud83d \ude00""#,
        r#""\ud83d\n""#,
        r#""\ud83d\u0041""#,
        r#""\ude00\ud83d""#,
        r#""\ud83d\ude00\ud83d""#,
        r#""\\\ud83d""#,
        r#"{"\ud800":1}"#,
        r#"{"a":[{"b":"\ud800"}]}"#,
        r#"[{"a":{"\udfff":1}}]"#,
    ] {
        assert_eq!(checked(json), Err(NotStrict::LoneSurrogate), "{json}");
    }
}

#[test]
fn a_number_beyond_the_range_of_a_double_is_refused_however_it_is_written() {
    let too_many_digits = "9".repeat(309);
    let negative = format!("-{too_many_digits}");
    let fraction = format!("{too_many_digits}.5");
    for json in [
        "1e999",
        "-1e999",
        "1E+309",
        "1.8e308",
        "0.1e310",
        "1e10000000000000000000000000",
        r#"{"a":[1e999]}"#,
        &too_many_digits,
        &negative,
        &fraction,
    ] {
        assert_eq!(checked(json), Err(NotStrict::NumberTooLarge), "{json:.80}");
    }
}

#[test]
fn a_repeated_key_is_refused_at_any_depth_and_however_it_is_escaped() {
    let object = |keys: &[String]| {
        let members: Vec<_> = keys.iter().map(|key| format!("\"{key}\":0")).collect();
        format!("{{{}}}", members.join(","))
    };
    let mut many: Vec<_> = (0..1_000).map(|n| format!("key {n}")).collect();
    assert_eq!(checked(&object(&many)), Ok(()));
    many.push("key 0".to_owned());
    let deep = format!("{}{}{}", r#"{"a":["#.repeat(60), r#"{"a":1,"a":1}"#, "]}".repeat(60));
    for json in [
        r#"{"n":1,"n":2}"#,
        r#"{"n":1,"n":1}"#,
        r#"{"":1,"":1}"#,
        r#"{"a":{},"b":[],"a":{}}"#,
        r#"{"a":{"b":1,"b":2}}"#,
        r#"[[{"a":1},{"b":1,"b":2}]]"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"\u0061":1,"\u0061":2}"#,
        r#"{"\/":1,"/":2}"#,
        r#"{"é":1,"\u00e9":2}"#,
        r#"{"\ud83d\ude00":1,"😀":2}"#,
        &object(&many),
        &deep,
    ] {
        assert_eq!(checked(json), Err(NotStrict::RepeatedKey), "{json:.80}");
    }
}

#[test]
fn nesting_beyond_the_limit_is_refused_without_reading_on() {
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let nested = |depth: usize| format!("{}1{}", open.repeat(depth), close.repeat(depth));
        for (depth, expected) in
            [(128, Ok(())), (129, Err(NotStrict::TooDeep)), (100_000, Err(NotStrict::TooDeep))]
        {
            assert_eq!(checked(&nested(depth)), expected, "{open} {depth}");
        }
    }
}

#[test]
fn the_end_of_a_string_and_its_escapes_are_found_at_any_length() {
    // `!`, `#`, `[` and `]` are the neighbours of the two bytes that the search looks for.
    for filler in ["a", "!", "#", "[", "]", "\u{7f}", "é", "\u{a2}", "€", "😀"] {
        for length in 0..40 {
            let text = filler.repeat(length);
            for (first, second) in [("", ""), ("\\\"", "#"), ("\\\\", "]"), ("#", "\\\"")] {
                let key = format!("{first}{text}{second}");
                let apart = format!(r#"{{"{key}":"{key}","{key}#":["{key}"]}}"#);
                assert_eq!(checked(&apart), Ok(()), "{apart}");
                let repeated = format!(r#"{{"{key}":"{key}","{key}":["{key}"]}}"#);
                assert_eq!(checked(&repeated), Err(NotStrict::RepeatedKey), "{repeated}");
                let halved = format!(r#"["{key}","{key}\ud800"]"#);
                assert_eq!(checked(&halved), Err(NotStrict::LoneSurrogate), "{halved}");
            }
        }
    }
}

/// JSON as read by a reader that refuses the same texts as this module.
#[derive(Debug)]
struct Strict;

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(StrictVisitor)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("strict JSON")
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_str<E>(self, _: &str) -> Result<Strict, E> {
        Ok(Strict)
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Strict, A::Error> {
        while seq.next_element::<Strict>()?.is_some() {}
        Ok(Strict)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Strict, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((key, value)) = map.next_entry::<String, Strict>()? {
            if members.insert(key, value).is_some() {
                return Err(de::Error::custom("repeated"));
            }
        }
        Ok(Strict)
    }
}

/// JSON, much of which has a fault that this module refuses.
fn json() -> impl Strategy<Value = String> {
    let text = prop::collection::vec(
        prop::sample::select(vec![
            "a",
            "b",
            "é",
            "\\\\",
            "\\\"",
            "\\n",
            "\\u0061",
            "\\u0062",
            "\\u00e9",
            "\\ud83d",
            "\\ude00",
            "\\ud83d\\ude00",
            "{",
            "]",
            ":",
            ",",
        ]),
        0..3,
    );
    let text = text.prop_map(|parts| format!("\"{}\"", parts.concat())).boxed();
    let scalar = prop_oneof![
        text.clone(),
        "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?",
        Just("null".to_owned()),
        Just("true".to_owned()),
    ];
    scalar.prop_recursive(4, 64, 20, move |inner| {
        let array = prop::collection::vec(inner.clone(), 0..5);
        let member = (text.clone(), inner).prop_map(|(key, value)| format!("{key} : {value}"));
        let object = prop::collection::vec(member, 0..20);
        prop_oneof![
            array.prop_map(|items| format!("[{}]", items.join(", "))),
            object.prop_map(|members| format!("{{{}}}", members.join(" ,"))),
        ]
    })
}

proptest! {
    #[test]
    fn exactly_the_json_that_a_strict_reader_refuses_is_refused(json in json()) {
        let is_read = serde_json::from_str::<Strict>(&json).is_ok();
        prop_assert_eq!(checked(&json).is_ok(), is_read, "{}", json);
    }
}
