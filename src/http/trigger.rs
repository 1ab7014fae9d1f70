//! The contents of a trigger's body, and how they are published.

use std::borrow::Cow;

use actix_web::{HttpResponse, http::header::ContentType};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Deserializer, Map, value::RawValue};

use super::{
    Services,
    error::ApiError,
    json::{FieldFault, Json, fault, flag, present, text},
};
use crate::{
    app::fields::Faults,
    broker::{
        JsonObject, OnceError, Payload, PayloadError, Publication, PublishError, Published,
        Receipt, Scope,
        idempotency::{IdempotencyKey, KeyOwner},
    },
    engine::ENTRY_BYTES_MAX,
    json::members,
};

/// The standard alphabet, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The members of one event, as received.
#[derive(Clone, Copy)]
pub(super) struct EventFields<'a> {
    topic: Option<&'a RawValue>,
    event: Option<&'a RawValue>,
    scope: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
    payload_base64: Option<&'a RawValue>,
    idempotency_key: Option<&'a RawValue>,
    position: Option<&'a RawValue>,
}

impl<'a> EventFields<'a> {
    const NAMES: [&'static str; 7] =
        ["topic", "event", "scope", "payload", "payload_base64", "idempotency_key", "position"];

    /// The fields of a body that consists of one event.
    ///
    /// # Errors
    /// [`ApiError::Malformed`].
    pub(super) fn of_body(json: &'a Json) -> Result<Self, ApiError> {
        json.members(Self::NAMES).map(Self::new)
    }

    /// The fields of one event in a list; `None` if it is not an object.
    pub(super) fn of_event(event: &'a RawValue) -> Option<Self> {
        members(Deserializer::from_str(event.get()), Self::NAMES).ok().map(Self::new)
    }

    fn new(members: [Option<&'a RawValue>; 7]) -> Self {
        let [topic, event, scope, payload, payload_base64, idempotency_key, position] = members;
        Self { topic, event, scope, payload, payload_base64, idempotency_key, position }
    }

    /// The options of a request with this single event.
    pub(super) fn request(&self, owner: KeyOwner<'_>, faults: &mut Faults) -> TriggerRequest {
        let positions = if note_flag(faults, "position", self.position) {
            Positions::Single
        } else {
            Positions::Untold
        };
        TriggerRequest { key: note_key(faults, self.idempotency_key, owner), positions }
    }

    /// Refuses an idempotency key of a single event of a bulk, because the bulk has one for all.
    pub(super) fn check_no_key(&self) -> Result<(), FieldFault> {
        match present(self.idempotency_key) {
            None => Ok(()),
            Some(_) => Err("must stand beside events, one for all of them".into()),
        }
    }

    /// The `topic` as text.
    pub(super) fn topic(&self) -> Result<Cow<'a, str>, FieldFault> {
        text(self.topic)
    }

    /// The `event` as text.
    pub(super) fn event(&self) -> Result<Cow<'a, str>, FieldFault> {
        text(self.event)
    }

    /// The `scope`; `public` if it is absent.
    pub(super) fn scope(&self) -> Result<Scope, FieldFault> {
        match present(self.scope) {
            None => Ok(Scope::public()),
            given => Scope::parse(&text(given)?).map_err(fault),
        }
    }

    /// The payload to publish: the `payload`, which is an object or a string that holds one, or the
    /// bytes that `payload_base64` holds; `{}` if both are absent.
    pub(super) fn payload(&self, bytes_max: usize) -> Result<Payload, PayloadFault> {
        let payload = match (present(self.payload), present(self.payload_base64)) {
            (None, None) => JsonObject::empty().into(),
            (Some(raw), None) => object(raw).map(Payload::from)?,
            (None, Some(raw)) => bytes(raw).map(Payload::Bytes)?,
            (Some(_), Some(_)) => {
                return Err(PayloadFault::invalid_base64("cannot come together with payload"));
            }
        };
        if payload.size_bytes() > bytes_max {
            return Err(PayloadFault::TooLarge { bytes_max });
        }
        Ok(payload)
    }
}

fn object(raw: &RawValue) -> Result<JsonObject, PayloadFault> {
    let object = match raw.get().starts_with('"') {
        true => text(Some(raw))
            .map_err(|_| PayloadError::NotJson)
            .and_then(|held| JsonObject::parse(&held)),
        false => JsonObject::from_raw(raw),
    };
    object.map_err(|error| {
        PayloadFault::invalid(match error {
            PayloadError::NotJson => "is not valid JSON",
            PayloadError::NotAnObject => "must be an object",
            PayloadError::NotStrict(fault) => fault.as_str(),
        })
    })
}

fn bytes(raw: &RawValue) -> Result<bytes::Bytes, PayloadFault> {
    let encoded = text(Some(raw)).map_err(|_| PayloadFault::invalid_base64("must be a string"))?;
    let decoded = BASE64.decode(encoded.as_bytes());
    decoded.map(Into::into).map_err(|_| PayloadFault::invalid_base64("is not valid base64"))
}

/// The reason why a payload is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PayloadFault {
    /// The payload is not an object, or its base64 is not valid.
    Invalid { field: &'static str, fault: &'static str },
    /// It has more bytes than this caller may send.
    TooLarge { bytes_max: usize },
}

impl PayloadFault {
    const fn invalid(fault: &'static str) -> Self {
        Self::Invalid { field: "payload", fault }
    }

    const fn invalid_base64(fault: &'static str) -> Self {
        Self::Invalid { field: "payload_base64", fault }
    }
}

/// The options of a trigger beside its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TriggerRequest {
    /// The events are published only once with this key.
    key: Option<IdempotencyKey>,
    positions: Positions,
}

/// The form in which the answer names the positions of the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Positions {
    /// The answer has no positions.
    Untold,
    /// The answer has the position of the only event.
    Single,
    /// The answer has a list of positions, in the order of the events.
    List,
}

impl TriggerRequest {
    /// The options of a bulk beside its events.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub(super) fn of_bulk(
        idempotency_key: Option<&RawValue>,
        position: Option<&RawValue>,
        owner: KeyOwner<'_>,
    ) -> Result<Self, ApiError> {
        let mut faults = Faults::default();
        let key = note_key(&mut faults, idempotency_key, owner);
        let positions = match note_flag(&mut faults, "position", position) {
            true => Positions::List,
            false => Positions::Untold,
        };
        faults.check()?;
        Ok(Self { key, positions })
    }
}

/// Returns whether a flag is set; records the fault of a bad one.
fn note_flag(faults: &mut Faults, field: &'static str, raw: Option<&RawValue>) -> bool {
    faults.note(field, flag(raw)) == Some(true)
}

/// Keeps a good idempotency key, if there is one; records the fault of a bad one.
fn note_key(
    faults: &mut Faults,
    raw: Option<&RawValue>,
    owner: KeyOwner<'_>,
) -> Option<IdempotencyKey> {
    let raw = present(raw)?;
    let key = text(Some(raw)).and_then(|key| IdempotencyKey::parse(&key, owner).map_err(fault));
    faults.note("idempotency_key", key)
}

/// Keeps a good payload, records the fault of a bad one.
///
/// # Errors
/// [`ApiError::TooLarge`], which concerns the request as a whole rather than one field.
pub(super) fn note_payload(
    faults: &mut Faults,
    read: Result<Payload, PayloadFault>,
) -> Result<Option<Payload>, ApiError> {
    match read {
        Ok(payload) => Ok(Some(payload)),
        Err(PayloadFault::TooLarge { bytes_max }) => {
            Err(ApiError::TooLarge { what: "payload", bytes_max })
        }
        Err(PayloadFault::Invalid { field, fault }) => {
            faults.add(field, fault);
            Ok(None)
        }
    }
}

/// Publishes either all events of one app or none. Answers at once with an empty object, or with
/// positions for a caller that asks for them.
///
/// Some subscribers cannot be sent bytes. If any event has bytes, the answer waits until all events
/// have been fanned out, and has the number of subscribers that were skipped as `skipped`, or `null` if
/// that took too long.
///
/// Events that were published before with the same idempotency key are not published again: the
/// answer is the one that the first caller got, but with positions only if this one asks for them.
///
/// # Errors
/// [`ApiError::Unavailable`] if the broker cannot accept the events now; [`ApiError::TooLarge`] if they are too
/// large together for the log of a cluster; [`ApiError::Invalid`] if the idempotency key was used with other content.
pub(super) async fn publish(
    services: &Services,
    request: TriggerRequest,
    publications: Vec<Publication>,
) -> Result<HttpResponse, ApiError> {
    let published = match request.key {
        Some(key) => services.topics.publish_once(key, publications).await,
        None => {
            services.topics.publish_all(publications).await.map(Published::Now).map_err(Into::into)
        }
    };
    let receipt = match published {
        Ok(Published::Now(receipt) | Published::Before(receipt)) => receipt,
        Err(OnceError::Refused(PublishError::Busy)) => return Err(ApiError::Unavailable),
        Err(OnceError::Refused(PublishError::TooLarge)) => {
            let what = "the sum of the request's events";
            return Err(ApiError::TooLarge { what, bytes_max: ENTRY_BYTES_MAX });
        }
        Err(OnceError::OtherContent) => {
            let fault = "was used with other content within the last 5 minutes";
            return Err(ApiError::invalid("idempotency_key", fault));
        }
    };
    Ok(answer(request.positions, receipt).await)
}

async fn answer(positions: Positions, receipt: Receipt) -> HttpResponse {
    if positions == Positions::Untold && !receipt.may_skip() {
        return HttpResponse::Ok().content_type(ContentType::json()).body("{}");
    }
    let mut answer = Map::new();
    let mut texts = receipt.positions().iter().map(ToString::to_string);
    match positions {
        Positions::Untold => {}
        Positions::Single => {
            answer.insert("position".into(), texts.next().into());
        }
        Positions::List => {
            answer.insert("positions".into(), texts.collect());
        }
    }
    if receipt.may_skip() {
        answer.insert("skipped".into(), receipt.skipped().await.into());
    }
    HttpResponse::Ok().json(answer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::http::body::{Body, BodySyntax};

    fn json_body(text: &str) -> Json {
        Json::from(bytes::Bytes::from(text.to_owned()))
    }

    fn payload(body: &str, bytes_max: usize) -> Result<String, PayloadFault> {
        let body = json_body(body);
        let fields = EventFields::of_body(&body).expect("an object");
        fields.payload(bytes_max).map(|payload| spelled(&payload))
    }

    /// The payload for an assertion: an object as its text, bytes as Rust would write them.
    fn spelled(payload: &Payload) -> String {
        match payload {
            Payload::Json(json) => json.as_str().to_owned(),
            Payload::Bytes(bytes) => format!("{bytes:?}"),
        }
    }

    #[test]
    fn a_payload_keeps_its_text() {
        for (case, body, expected) in [
            ("absent", r#"{}"#, "{}"),
            ("null", r#"{"payload":null}"#, "{}"),
            ("object", r#"{"payload":{"a" : 1.0,"b":1e2}}"#, r#"{"a" : 1.0,"b":1e2}"#),
            ("a key again at another place", r#"{"payload":{"a":{"a":2}}}"#, r#"{"a":{"a":2}}"#),
            (
                "large integers",
                r#"{"payload":{"a":-18446744073709551616}}"#,
                r#"{"a":-18446744073709551616}"#,
            ),
            ("zeros", r#"{"payload":{"a":-0,"b":1e-999}}"#, r#"{"a":-0,"b":1e-999}"#),
            ("a whole pair", r#"{"payload":{"a":"\ud83d\ude00"}}"#, r#"{"a":"\ud83d\ude00"}"#),
            ("escapes", r#"{"payload":{"a":"\u00e9\/"}}"#, r#"{"a":"\u00e9\/"}"#),
            ("string", r#"{"payload":"{\"a\": 1.0}"}"#, r#"{"a": 1.0}"#),
            ("string with space around", r#"{"payload":" {\"a\":1}\n"}"#, r#"{"a":1}"#),
            ("twice: the last", r#"{"payload":{"a":1},"payload":{"a":2}}"#, r#"{"a":2}"#),
            ("escaped name", r#"{"p\u0061yload":{"a":1}}"#, r#"{"a":1}"#),
        ] {
            assert_eq!(payload(body, 1_000).as_deref(), Ok(expected), "{case}");
        }
    }

    #[test]
    fn an_invalid_payload_is_a_fault() {
        let invalid = PayloadFault::invalid;
        let half_a_pair = invalid("has half of a surrogate pair");
        let too_large = invalid("has a number that is too large");
        let repeated = invalid("has a repeated key");
        let deep = format!("{}1{}", r#"{"a":"#.repeat(129), "}".repeat(129));
        let deep_string = json!({ "payload": deep }).to_string();
        let deep = format!(r#"{{"payload":{deep}}}"#);
        let deepest = format!(r#"{{"payload":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        for (case, body, expected) in [
            ("array", r#"{"payload":[]}"#, invalid("must be an object")),
            ("number", r#"{"payload":1}"#, invalid("must be an object")),
            ("false", r#"{"payload":false}"#, invalid("must be an object")),
            ("string of an array", r#"{"payload":"[]"}"#, invalid("must be an object")),
            ("string of null", r#"{"payload":"null"}"#, invalid("must be an object")),
            ("string of a string", r#"{"payload":"\"{}\""}"#, invalid("must be an object")),
            ("empty string", r#"{"payload":""}"#, invalid("is not valid JSON")),
            ("text", r#"{"payload":"hello"}"#, invalid("is not valid JSON")),
            ("two objects", r#"{"payload":"{}{}"}"#, invalid("is not valid JSON")),
            ("half a pair", r#"{"payload":"{\"a\":\"\ud800\"}"}"#, invalid("is not valid JSON")),
            ("half a pair in an object", r#"{"payload":{"a":"\ud800"}}"#, half_a_pair),
            ("half a pair in a key", r#"{"payload":{"a":[{"\udfff":1}]}}"#, half_a_pair),
            ("half a pair in a string", r#"{"payload":"{\"a\":\"\\ud800\"}"}"#, half_a_pair),
            ("a huge number", r#"{"payload":{"a":[1e999]}}"#, too_large),
            ("a huge number in a string", r#"{"payload":"{\"a\":-1E400}"}"#, too_large),
            ("a key twice", r#"{"payload":{"a":1,"a":2}}"#, repeated),
            ("a key twice, escaped", r#"{"payload":{"a":1,"\u0061":2}}"#, repeated),
            ("a key twice in a string", r#"{"payload":"{\"b\":{\"a\":1,\"a\":2}}"}"#, repeated),
            ("deep", &deep, invalid("is nested too deeply")),
            ("deep string", &deep_string, invalid("is nested too deeply")),
            ("absurdly deep array", &deepest, invalid("must be an object")),
        ] {
            assert_eq!(payload(body, 1_000_000), Err(expected), "{case}");
        }
    }

    #[test]
    fn a_payload_of_just_the_limit_is_taken() {
        let body = r#"{"payload":"  {\"a\":1}  "}"#;
        assert_eq!(payload(body, 7).as_deref(), Ok(r#"{"a":1}"#));
        assert_eq!(payload(body, 6), Err(PayloadFault::TooLarge { bytes_max: 6 }));
    }

    #[test]
    fn bytes_come_in_standard_base64_padded_or_not() {
        for (case, body, expected) in [
            ("padded", r#"{"payload_base64":"AP8="}"#, r#"b"\0\xff""#),
            ("not padded", r#"{"payload_base64":"AP8"}"#, r#"b"\0\xff""#),
            ("the standard alphabet", r#"{"payload_base64":"+/\/+"}"#, r#"b"\xfb\xff\xfe""#),
            ("no bytes at all", r#"{"payload_base64":""}"#, "b\"\""),
            ("beside a null", r#"{"payload":null,"payload_base64":"eA=="}"#, r#"b"x""#),
            ("null beside an object", r#"{"payload":{},"payload_base64":null}"#, "{}"),
            ("null beside nothing", r#"{"payload_base64":null}"#, "{}"),
            ("twice: the last", r#"{"payload_base64":"eA","payload_base64":"eQ"}"#, r#"b"y""#),
        ] {
            assert_eq!(payload(body, 1_000).as_deref(), Ok(expected), "{case}");
        }
    }

    #[test]
    fn invalid_base64_is_a_fault_of_its_field() {
        let not_base64 = PayloadFault::invalid_base64("is not valid base64");
        let no_string = PayloadFault::invalid_base64("must be a string");
        let both = PayloadFault::invalid_base64("cannot come together with payload");
        for (case, body, expected) in [
            ("the URL's alphabet", r#"{"payload_base64":"-__-"}"#, not_base64),
            ("spaces", r#"{"payload_base64":"eA ="}"#, not_base64),
            ("lines", r#"{"payload_base64":"eA==\n"}"#, not_base64),
            ("one letter", r#"{"payload_base64":"e"}"#, not_base64),
            ("bits left over", r#"{"payload_base64":"eB=="}"#, not_base64),
            ("too much padding", r#"{"payload_base64":"eA==="}"#, not_base64),
            ("padding within", r#"{"payload_base64":"eA==eA=="}"#, not_base64),
            ("accents", r#"{"payload_base64":"\u00e9\u00e9"}"#, not_base64),
            ("number", r#"{"payload_base64":1}"#, no_string),
            ("list", r#"{"payload_base64":["eA=="]}"#, no_string),
            ("both", r#"{"payload":{},"payload_base64":"eA=="}"#, both),
            ("both, empty", r#"{"payload":"","payload_base64":""}"#, both),
        ] {
            assert_eq!(payload(body, 1_000), Err(expected), "{case}");
        }
    }

    #[test]
    fn bytes_are_measured_after_decoding() {
        let body = r#"{"payload_base64":"eHh4eHh4eA=="}"#;
        assert_eq!(payload(body, 7).as_deref(), Ok(r#"b"xxxxxxx""#));
        assert_eq!(payload(body, 6), Err(PayloadFault::TooLarge { bytes_max: 6 }));
    }

    #[test]
    fn forms_are_read_like_json() {
        for (form, expected) in [
            ("payload=%7B%22a%22%3A+1.0%7D", r#"{"a": 1.0}"#),
            ("payload[message]=y", r#"{"message":"y"}"#),
            ("topic=t", "{}"),
            ("payload_base64=AP%2B%2F", r#"b"\0\xff\xbf""#),
        ] {
            let body = Body { kind: BodySyntax::Form, bytes: form.to_owned().into() };
            let body = Json::from_body(body).expect("a form");
            let payload = EventFields::of_body(&body).expect("an object").payload(1_000);
            assert_eq!(payload.as_ref().map(spelled).as_deref(), Ok(expected), "{form}");
        }
    }

    #[test]
    fn names_are_text() {
        for (case, topic, expected) in [
            ("text", r#""caf\u00e9""#, Ok("caf\u{e9}")),
            ("null", "null", Err("must not be empty")),
            ("number", "1", Err("must be a string")),
            ("object", "{}", Err("must be a string")),
            ("half a pair", r#""\ud800""#, Err("is not valid text")),
        ] {
            let body = json_body(&format!(r#"{{"topic":{topic}}}"#));
            let read = EventFields::of_body(&body).expect("an object").topic();
            assert_eq!(read.as_deref().map_err(|fault| &**fault), expected, "{case}");
        }
    }

    #[test]
    fn a_scope_is_public_where_none_is_given() {
        for (case, body, expected) in [
            ("absent", "{}", Ok("public")),
            ("null", r#"{"scope":null}"#, Ok("public")),
            ("given", r#"{"scope":"private"}"#, Ok("private")),
            ("empty", r#"{"scope":""}"#, Err("must not be empty")),
            ("number", r#"{"scope":1}"#, Err("must be a string")),
            ("colon", r#"{"scope":"a:b"}"#, Err("has a character that is not allowed")),
        ] {
            let body = json_body(body);
            let scope = EventFields::of_body(&body).expect("an object").scope();
            let scope = scope.as_ref().map(Scope::as_str).map_err(|fault| &**fault);
            assert_eq!(scope, expected, "{case}");
        }
    }

    #[test]
    fn a_body_that_is_not_an_object_is_malformed() {
        let not_json = || ApiError::Malformed("request body is not valid JSON".into());
        let no_object = || ApiError::Malformed("request body must be a JSON object".into());
        let deep_and_broken = format!(r#"{{"a":{}}}"#, "[".repeat(100_000));
        for (case, text, expected) in [
            ("nothing", "", not_json()),
            ("half", r#"{"topic":"#, not_json()),
            ("more after it", "{} {}", not_json()),
            ("a byte order mark", "\u{feff}{}", not_json()),
            ("deep and broken", deep_and_broken.as_str(), not_json()),
            ("null", "null", no_object()),
            ("array", "[]", no_object()),
            ("string", r#""{}""#, no_object()),
        ] {
            let body = json_body(text);
            assert_eq!(EventFields::of_body(&body).map(|_| ()), Err(expected), "{case}");
        }
        let not_utf8 = Json::from(bytes::Bytes::from_static(b"{\"payload\":{\"a\":\"\xff\"}}"));
        assert_eq!(EventFields::of_body(&not_utf8).map(|_| ()), Err(not_json()));
    }
}
