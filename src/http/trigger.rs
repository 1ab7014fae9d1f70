//! What the body of a trigger holds: read so that a payload keeps the very text in which it came.

use std::{borrow::Cow, fmt};

use actix_web::{HttpRequest, HttpResponse, web};
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    Services,
    body::{Body, Kind},
    error::ApiError,
};
use crate::{
    app::fields::Faults,
    broker::{NameError, Payload, PayloadError, Publication, PublishError, Scope},
};

/// A body as JSON text; a form becomes the object it describes.
pub(super) struct Json(bytes::Bytes);

impl Json {
    /// Takes a body.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] for a form that is none.
    pub(super) fn from_body(body: Body) -> Result<Self, ApiError> {
        match body.kind {
            Kind::Json => Ok(Self(body.bytes)),
            Kind::Form => serde_json::to_vec(&body.to_map()?)
                .map(|json| Self(json.into()))
                .map_err(|_| ApiError::Malformed("request body is not a form".into())),
        }
    }

    /// The members of these names, of the object that the body is.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] if it is no JSON, or no object.
    pub(super) fn members<const N: usize>(
        &self,
        names: [&'static str; N],
    ) -> Result<[Option<&RawValue>; N], ApiError> {
        members(&self.0, names).map_err(|error| {
            // The parser's own words quote the body, which may hold a secret.
            ApiError::Malformed(match error.classify() {
                serde_json::error::Category::Data => "request body must be a JSON object".into(),
                _ => "request body is not valid JSON".into(),
            })
        })
    }
}

fn members<'a, const N: usize>(
    json: &'a [u8],
    names: [&'static str; N],
) -> Result<[Option<&'a RawValue>; N], serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let found = Members(names).deserialize(&mut reader)?;
    reader.end()?;
    Ok(found)
}

/// Reads the named members of an object as raw text. Of duplicates the last one counts, as it does
/// for every JSON parser that a web application is likely to have tested against.
struct Members<const N: usize>([&'static str; N]);

impl<'de, const N: usize> DeserializeSeed<'de> for Members<N> {
    type Value = [Option<&'de RawValue>; N];

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, const N: usize> Visitor<'de> for Members<N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            match self.0.iter().position(|name| *name == key) {
                Some(nth) => found[nth] = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// The members of one event, as they came.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    topic: Option<&'a RawValue>,
    event: Option<&'a RawValue>,
    scope: Option<&'a RawValue>,
    payload: Option<&'a RawValue>,
}

impl<'a> Fields<'a> {
    const NAMES: [&'static str; 4] = ["topic", "event", "scope", "payload"];

    /// The fields of a body that is one event.
    ///
    /// # Errors
    /// [`ApiError::Malformed`].
    pub(super) fn of_body(json: &'a Json) -> Result<Self, ApiError> {
        json.members(Self::NAMES).map(Self::new)
    }

    /// The fields of one event among several; `None` if it is no object.
    pub(super) fn of_event(event: &'a RawValue) -> Option<Self> {
        members(event.get().as_bytes(), Self::NAMES).ok().map(Self::new)
    }

    fn new([topic, event, scope, payload]: [Option<&'a RawValue>; 4]) -> Self {
        Self { topic, event, scope, payload }
    }

    /// The `topic` as text.
    pub(super) fn topic(&self) -> Result<String, Fault> {
        text(self.topic)
    }

    /// The `event` as text.
    pub(super) fn event(&self) -> Result<String, Fault> {
        text(self.event)
    }

    /// The `scope`, `public` if absent.
    pub(super) fn scope(&self) -> Result<Scope, Fault> {
        match present(self.scope) {
            None => Ok(Scope::public()),
            given => Scope::parse(&text(given)?).map_err(fault),
        }
    }

    /// The `payload`: an object, or a string that holds one; `{}` if absent.
    pub(super) fn payload(&self, bytes_max: usize) -> Result<Payload, PayloadFault> {
        let payload = match present(self.payload) {
            None => return Ok(Payload::empty()),
            Some(raw) if raw.get().starts_with('"') => {
                let held = text(Some(raw)).map_err(|_| PayloadError::NotJson);
                held.and_then(|held| Payload::parse(&held))
            }
            Some(raw) => Payload::from_raw(raw),
        };
        match payload {
            Ok(payload) if payload.as_str().len() > bytes_max => {
                Err(PayloadFault::TooLarge { bytes_max })
            }
            Ok(payload) => Ok(payload),
            Err(PayloadError::NotJson) => Err(PayloadFault::Invalid("is not valid JSON")),
            Err(PayloadError::NotAnObject) => Err(PayloadFault::Invalid("must be an object")),
            Err(PayloadError::TooDeep) => Err(PayloadFault::Invalid("is nested too deeply")),
        }
    }
}

/// What is wrong with a field, to be read after its name: `must not be empty`.
pub(super) type Fault = Cow<'static, str>;

/// Says what is wrong with a name.
pub(super) fn fault(error: NameError) -> Fault {
    error.to_string().into()
}

/// Why a payload is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PayloadFault {
    /// It is no object.
    Invalid(&'static str),
    /// It has more bytes than this caller may send.
    TooLarge { bytes_max: usize },
}

/// Collects what is wrong with an event, so that a caller hears of everything at once.
#[derive(Default)]
pub(super) struct Findings(Faults);

impl Findings {
    /// Keeps a good value, notes a bad one.
    pub(super) fn note<T>(&mut self, field: &'static str, read: Result<T, Fault>) -> Option<T> {
        read.map_err(|fault| self.0.add(field, fault)).ok()
    }

    /// Keeps a good payload, notes a bad one.
    ///
    /// # Errors
    /// [`ApiError::TooLarge`], which is not a matter of one field among others.
    pub(super) fn note_payload(
        &mut self,
        read: Result<Payload, PayloadFault>,
    ) -> Result<Option<Payload>, ApiError> {
        match read {
            Ok(payload) => Ok(Some(payload)),
            Err(PayloadFault::TooLarge { bytes_max }) => {
                Err(ApiError::TooLarge { what: "payload", bytes_max })
            }
            Err(PayloadFault::Invalid(fault)) => {
                self.0.add("payload", fault);
                Ok(None)
            }
        }
    }
}

impl From<Findings> for ApiError {
    fn from(findings: Findings) -> Self {
        Self::Invalid(findings.0)
    }
}

/// Reads a request's body as JSON text.
///
/// # Errors
/// Those of [`Body::read`], and [`ApiError::Malformed`].
pub(super) async fn read_json(
    request: &HttpRequest,
    payload: web::Payload,
    services: &Services,
) -> Result<Json, ApiError> {
    let bytes_max = services.settings.limits.request_body_bytes_max;
    Json::from_body(Body::read(request, payload, bytes_max).await?)
}

/// Publishes all or none, and answers as the articles do.
///
/// # Errors
/// [`ApiError::Unavailable`] when they cannot be taken now.
pub(super) async fn publish(
    services: &Services,
    publications: Vec<Publication>,
) -> Result<HttpResponse, ApiError> {
    let published = services.topics.publish_all(publications).await;
    published.map_err(|PublishError::Busy| ApiError::Unavailable)?;
    Ok(HttpResponse::Ok().json(serde_json::json!({})))
}

/// A JSON null is as good as nothing.
fn present(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

fn text(raw: Option<&RawValue>) -> Result<String, Fault> {
    let Some(raw) = present(raw) else {
        return Err(fault(NameError::Empty));
    };
    // What looks like a string and still is none has half of a surrogate pair.
    let fault = if raw.get().starts_with('"') { "is not valid text" } else { "must be a string" };
    serde_json::from_str(raw.get()).map_err(|_| fault.into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn json_body(text: &str) -> Json {
        Json(text.to_owned().into())
    }

    fn payload(body: &str, bytes_max: usize) -> Result<String, PayloadFault> {
        let body = json_body(body);
        let fields = Fields::of_body(&body).expect("an object");
        fields.payload(bytes_max).map(|payload| payload.as_str().to_owned())
    }

    #[test]
    fn a_payload_keeps_its_text() {
        for (case, body, expected) in [
            ("absent", r#"{}"#, "{}"),
            ("null", r#"{"payload":null}"#, "{}"),
            ("object", r#"{"payload":{"a" : 1.0,"b":1e2}}"#, r#"{"a" : 1.0,"b":1e2}"#),
            ("duplicate keys within", r#"{"payload":{"a":1,"a":2}}"#, r#"{"a":1,"a":2}"#),
            ("numbers beyond any float", r#"{"payload":{"a":1e999}}"#, r#"{"a":1e999}"#),
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
    fn what_is_no_payload_is_a_fault() {
        let invalid = PayloadFault::Invalid;
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
    fn forms_are_read_like_json() {
        for (form, expected) in [
            ("payload=%7B%22a%22%3A+1.0%7D", r#"{"a": 1.0}"#),
            ("payload[message]=y", r#"{"message":"y"}"#),
            ("topic=t", "{}"),
        ] {
            let body = Body { kind: Kind::Form, bytes: form.to_owned().into() };
            let body = Json::from_body(body).expect("a form");
            let payload = Fields::of_body(&body).expect("an object").payload(1_000);
            assert_eq!(payload.as_ref().map(Payload::as_str), Ok(expected), "{form}");
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
            let read = Fields::of_body(&body).expect("an object").topic();
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
            let scope = Fields::of_body(&body).expect("an object").scope();
            let scope = scope.as_ref().map(Scope::as_str).map_err(|fault| &**fault);
            assert_eq!(scope, expected, "{case}");
        }
    }

    #[test]
    fn what_is_no_object_is_malformed() {
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
            assert_eq!(Fields::of_body(&body).map(|_| ()), Err(expected), "{case}");
        }
        let not_utf8 = Json(bytes::Bytes::from_static(b"{\"payload\":{\"a\":\"\xff\"}}"));
        assert_eq!(Fields::of_body(&not_utf8).map(|_| ()), Err(not_json()));
    }
}
