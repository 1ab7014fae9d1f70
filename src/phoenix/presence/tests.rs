//! The metas and their spelling, byte by byte.

use std::sync::Arc;

use serde_json::{Value, json, value::to_raw_value};

use super::*;
use crate::broker::{JsonObject, subscriber::Frame};

const NOW_S: f64 = 1_700_000_000.123_4;

fn raw(value: &Value) -> Box<RawValue> {
    to_raw_value(value).expect("JSON")
}

fn visitor(claim: Option<&str>) -> Visitor {
    let claim = claim.map(|claim| serde_json::from_str(claim).expect("JSON"));
    Visitor { key: "ada".to_owned(), claim }
}

/// A meta as clients see it, without its reference.
fn shown(meta: &Meta) -> String {
    let mut json = String::new();
    let persona = Persona { key: "k".into(), meta: meta.clone() };
    push_meta(&mut json, &Member { persona, reference: "r".into(), previous: None });
    json.replace(r#","phx_ref":"r"}"#, "}")
}

fn text(value: &Value) -> JsonText {
    JsonText::from_raw(&raw(value)).expect("strict JSON")
}

fn meta(claim: Option<&str>) -> Result<String, MetaFault> {
    Profile::of(visitor(claim), NOW_S).map(|(_, persona)| shown(&persona.meta))
}

#[test]
fn a_meta_is_the_time_of_the_join_and_the_claim_without_reserved_members() {
    for (claim, expected) in [
        (None, r#"{"online_at":1700000000123}"#),
        (Some("{}"), r#"{"online_at":1700000000123}"#),
        (
            Some(r#"{ "name" : "A\"da", "n": 1.50, "deep": {"a": [1]} }"#),
            r#"{"online_at":1700000000123,"deep":{"a": [1]},"n":1.50,"name":"A\"da"}"#,
        ),
        (
            Some(r#"{"online_at":1,"phx_ref":"x","phx_ref_prev":"y","phx":"z"}"#),
            r#"{"online_at":1700000000123,"phx":"z"}"#,
        ),
        (Some(r#"{"phx_ref":"x"}"#), r#"{"online_at":1700000000123}"#),
        (Some(r#"{"custom":1,"z":2}"#), r#"{"online_at":1700000000123,"z":2,"custom":1}"#),
        (Some(r#"{"\"":1}"#), r#"{"online_at":1700000000123,"\"":1}"#),
    ] {
        assert_eq!(meta(claim).as_deref(), Ok(expected), "{claim:?}");
    }
}

#[test]
fn custom_is_replaced_whatever_it_was() {
    let (_, persona) = Profile::of(visitor(Some(r#"{"custom":1,"z":2}"#)), NOW_S).expect("a meta");
    for custom in [json!({"a": [1]}), json!(null), json!("x"), json!(1)] {
        let meta = Meta { custom: Some(text(&custom)), ..persona.meta.clone() };
        let expected = format!(r#"{{"online_at":1700000000123,"z":2,"custom":{custom}}}"#);
        assert_eq!(shown(&meta), expected);
    }
}

#[test]
fn a_meta_has_a_kilobyte_at_most() {
    let frame = r#"{"online_at":1700000000123,"a":""}"#.len();
    let claim = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - frame));
    assert_eq!(meta(Some(&claim(1_024))).map(|meta| meta.len()), Ok(1_024));
    assert_eq!(meta(Some(&claim(1_025))), Err(MetaFault::TooLarge));
    let (profile, _) = Profile::of(visitor(None), NOW_S).expect("a meta");
    let frame = r#"{"online_at":1700000000123,"custom":""}"#.len();
    let custom = |bytes: usize| text(&json!("x".repeat(bytes - frame)));
    assert_eq!(profile.check(Some(&custom(1_024))), Ok(()));
    assert_eq!(profile.check(Some(&custom(1_025))), Err(MetaFault::TooLarge));
}

#[test]
fn a_meta_is_nested_no_deeper_than_a_payload() {
    let nested = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    assert!(meta(Some(&nested(127))).is_ok());
    assert_eq!(meta(Some(&nested(128))), Err(MetaFault::TooDeep));
}

#[test]
fn a_meta_that_strict_readers_refuse_is_not_made() {
    for part in [
        r#""\ud800""#,
        r#"[1e999]"#,
        r#"{"a":1,"a":2}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"\udfff":1}"#,
        r#"1,"part":2"#,
        r#"1,"p\u0061rt":2"#,
        r#"1,"\ud800":2"#,
    ] {
        let object = format!(r#"{{"part":{part}}}"#);
        assert_eq!(meta(Some(&object)), Err(MetaFault::NotStrict), "{object}");
        let update = object.replace("part", "custom").replace("p\\u0061rt", "c\\u0075stom");
        let raw: &RawValue = serde_json::from_str(&update).expect("JSON");
        assert_eq!(custom(raw).map(|_| ()), Err(MetaFault::NotStrict), "{update}");
    }
}

#[test]
fn custom_is_found_in_an_object_and_nowhere_else() {
    for (payload, expected) in [
        (r#"{"custom":{"a":1},"b":2}"#, Some(r#"{"a":1}"#)),
        (r#"{"custom":null}"#, Some("null")),
        ("{}", None),
        (r#"{"Custom":1}"#, None),
        ("[]", None),
        (r#"["custom"]"#, None),
        ("null", None),
        ("\"custom\"", None),
    ] {
        let raw: &RawValue = serde_json::from_str(payload).expect("JSON");
        let found = custom(raw);
        let found = found.as_ref().map(|c| c.as_ref().map(JsonText::as_str)).map_err(|e| *e);
        assert_eq!(found, Ok(expected), "{payload}");
    }
}

fn member(key: &str, meta: &str, reference: &str, previous: Option<&str>) -> Arc<Member> {
    let info = JsonObject::parse(meta).expect("an object");
    let meta = Meta { since_ms: 7, info: Some(info), custom: None };
    Arc::new(Member {
        persona: Persona { key: key.into(), meta },
        reference: reference.into(),
        previous: previous.map(Into::into),
    })
}

fn roster(members: &[Arc<Member>]) -> Roster {
    members.iter().collect()
}

#[test]
fn members_are_spelled_by_key_with_their_references() {
    let all = roster(&[
        member("b\"", r#"{"n":1}"#, "r1", None),
        member("a", r#"{"n":2}"#, "r2", Some("r0")),
        member("a", "{ }", "r3", None),
    ]);
    let expected = concat!(
        r#"{"a":{"metas":[{"online_at":7,"n":2,"phx_ref":"r2","phx_ref_prev":"r0"},{"online_at":7,"phx_ref":"r3"}]},"#,
        r#""b\"":{"metas":[{"online_at":7,"n":1,"phx_ref":"r1"}]}}"#
    );
    assert_eq!(spell_members(&all), expected);
    assert_eq!(spell_members(&Roster::default()), "{}");
}

#[test]
fn a_change_has_always_both_sides_and_no_refs() {
    let joins = roster(&[member("a", r#"{"n":1}"#, "r2", Some("r1"))]);
    let leaves = roster(&[member("a", r#"{"n":0}"#, "r1", None)]);
    let both = concat!(
        r#"{"joins":{"a":{"metas":[{"online_at":7,"n":1,"phx_ref":"r2","phx_ref_prev":"r1"}]}},"#,
        r#""leaves":{"a":{"metas":[{"online_at":7,"n":0,"phx_ref":"r1"}]}}}"#
    );
    let [only_joins, only_leaves] = [
        r#"{"joins":{"a":{"metas":[{"online_at":7,"n":1,"phx_ref":"r2","phx_ref_prev":"r1"}]}},"leaves":{}}"#,
        r#"{"joins":{},"leaves":{"a":{"metas":[{"online_at":7,"n":0,"phx_ref":"r1"}]}}}"#,
    ];
    for (change, payload) in [
        (Change { joins: joins.clone(), leaves: leaves.clone(), ..Change::default() }, both),
        (Change { joins, ..Change::default() }, only_joins),
        (Change { leaves, ..Change::default() }, only_leaves),
    ] {
        let topic = "presence:app:room";
        let v2 = format!(r#"[null,null,"{topic}","presence_diff",{payload}]"#);
        let only =
            |text: String| [ChangeFrame { frame: Frame::Text(text.into()), except: Vec::new() }];
        assert_eq!(encode_change(Version::V2, topic, &change), only(v2));
        let v1 = format!(
            r#"{{"topic":"{topic}","event":"presence_diff","ref":null,"payload":{payload}}}"#
        );
        assert_eq!(encode_change(Version::V1, topic, &change), only(v1));
    }
}
