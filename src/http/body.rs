//! Request bodies: read up to a limit, as a form or as JSON.

use actix_web::{
    HttpRequest,
    http::header::{self, HeaderMap},
    web,
};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Services, error::ApiError};
use crate::{
    form,
    metrics::labels::Limit,
    session::body::{BudgetShare, UnreadBody, media_type},
};

/// The format of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodySyntax {
    /// `application/x-www-form-urlencoded`; every leaf is a string.
    Form,
    /// `application/json`, or any type that ends in `+json`.
    Json,
}

/// A whole request body, not yet parsed. A caller that needs the exact text reads `bytes`.
#[derive(Debug, Clone)]
pub struct Body {
    /// The format of `bytes`.
    pub kind: BodySyntax,
    /// The body as received.
    pub bytes: Bytes,
}

impl Body {
    /// Reads a request's body. A body without a content type must be empty and counts as an empty
    /// form.
    ///
    /// # Errors
    /// [`ApiError::UnsupportedMediaType`]; [`ApiError::TooLarge`], before anything is read if the
    /// announced length is too large; [`ApiError::Unavailable`] if too many bodies are being read
    /// at once; [`ApiError::Malformed`] if the body breaks off.
    pub async fn read(
        services: &Services,
        request: &HttpRequest,
        payload: web::Payload,
        share: BudgetShare,
    ) -> Result<Self, ApiError> {
        let headers = request.headers();
        let kind = kind(headers)?;
        let bytes_max = services.settings.limits.request_body_bytes_max;
        let bytes = match services.bodies.read(headers, payload, bytes_max, share).await {
            Ok(body) => body.into_charged_bytes(),
            Err(unread) => return Err(refuse(unread, bytes_max, services)),
        };
        match kind {
            Some(kind) => Ok(Self { kind, bytes }),
            None if bytes.is_empty() => Ok(Self { kind: BodySyntax::Form, bytes }),
            None => Err(ApiError::UnsupportedMediaType),
        }
    }

    /// Parses the body as one object.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] if the body is not JSON, is nested beyond 128 levels, is not an
    /// object, or is a form that is not text; [`ApiError::BadParameter`] if it is a form with an
    /// invalid parameter.
    pub fn to_map(&self) -> Result<Map<String, Value>, ApiError> {
        match self.kind {
            BodySyntax::Form => Ok(form::parse(&self.bytes)?),
            BodySyntax::Json => match serde_json::from_slice(&self.bytes) {
                Ok(Value::Object(map)) => Ok(map),
                Ok(_) => Err(ApiError::Malformed("request body must be a JSON object".into())),
                // The parser's message quotes the body, which may hold a secret.
                Err(_) => Err(ApiError::Malformed("request body is not valid JSON".into())),
            },
        }
    }
}

fn refuse(unread: UnreadBody, bytes_max: usize, services: &Services) -> ApiError {
    match unread {
        UnreadBody::TooLarge => {
            services.metrics.hit(Limit::RequestBodyBytes);
            ApiError::TooLarge { what: "request body", bytes_max }
        }
        UnreadBody::NoRoom => {
            services.metrics.hit(Limit::BodiesBytes);
            ApiError::Unavailable
        }
        UnreadBody::BrokenOff => ApiError::Malformed("request body broke off".into()),
    }
}

fn kind(headers: &HeaderMap) -> Result<Option<BodySyntax>, ApiError> {
    // Bodies are never decompressed, because a small body can unpack to a huge one.
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::UnsupportedMediaType);
    }
    let Some(media_type) = media_type(headers) else { return Ok(None) };
    let media_type = media_type.to_ascii_lowercase();
    match media_type.split_once('/') {
        Some(("application", "x-www-form-urlencoded")) => Ok(Some(BodySyntax::Form)),
        Some(("application", "json")) => Ok(Some(BodySyntax::Json)),
        Some((_, subtype)) if subtype.ends_with("+json") => Ok(Some(BodySyntax::Json)),
        _ => Err(ApiError::UnsupportedMediaType),
    }
}

#[cfg(test)]
mod tests {
    use actix_web::{FromRequest, test::TestRequest};
    use serde_json::json;

    use super::*;
    use crate::http::testing::TestServices;

    const BYTES_MAX: usize = 1000;

    async fn services() -> TestServices {
        TestServices::start_with(&[
            ("HERALD__LIMITS__TRIGGER_PAYLOAD_BYTES_MAX", "900"),
            ("HERALD__LIMITS__REQUEST_BODY_BYTES_MAX", "1000"),
        ])
        .await
    }

    async fn read(
        services: &TestServices,
        content_type: &str,
        body: &[u8],
    ) -> Result<Value, ApiError> {
        let mut request = TestRequest::post().set_payload(body.to_vec());
        if !content_type.is_empty() {
            request = request.insert_header((header::CONTENT_TYPE, content_type));
        }
        read_request(services, request).await
    }

    async fn read_request(
        services: &TestServices,
        request: TestRequest,
    ) -> Result<Value, ApiError> {
        let (request, mut payload) = request.to_http_parts();
        let payload = web::Payload::from_request(&request, &mut payload).await.expect("a payload");
        let body = Body::read(&services.services, &request, payload, BudgetShare::Whole).await?;
        body.to_map().map(Value::Object)
    }

    #[actix_web::test]
    async fn forms_and_json_become_one_object() {
        let services = services().await;
        let nested = json!({ "app": { "name": "foo-app" } });
        let json_text = br#"{"app":{"name":"foo-app"}}"#;
        let form = "application/x-www-form-urlencoded";
        for (case, content_type, body, expected) in [
            ("form", form, b"app[name]=foo-app".as_slice(), nested.clone()),
            (
                "form with a charset",
                "application/x-www-form-urlencoded; charset=UTF-8",
                b"app%5Bname%5D=foo-app",
                nested.clone(),
            ),
            ("empty form", form, b"", json!({})),
            ("JSON", "application/json", json_text, nested.clone()),
            ("JSON with a charset", "application/json; charset=utf-8", json_text, nested.clone()),
            ("JSON in capitals", "Application/JSON", json_text, nested.clone()),
            ("JSON by suffix", "application/vnd.api+json", json_text, nested.clone()),
            ("JSON with half a parameter", "application/json;", json_text, nested.clone()),
            ("JSON with a space", "Application/JSON ; charset", json_text, nested),
            ("neither type nor body", "", b"", json!({})),
        ] {
            assert_eq!(read(&services, content_type, body).await, Ok(expected), "{case}");
        }
    }

    #[actix_web::test]
    async fn an_unsupported_body_is_refused() {
        let services = services().await;
        let malformed = |text: &'static str| ApiError::Malformed(text.into());
        let not_json = malformed("request body is not valid JSON");
        let no_object = malformed("request body must be a JSON object");
        let too_large = ApiError::TooLarge { what: "request body", bytes_max: BYTES_MAX };
        let (json, form) = ("application/json", "application/x-www-form-urlencoded");
        let not_form = malformed("request body is not a valid form");
        let bad_name = ApiError::BadParameter {
            name: "payload[a".to_owned(),
            fault: "is not a well-formed name such as a, a[b] or a[]",
        };
        let deep = [b"[".repeat(BYTES_MAX / 2), b"]".repeat(BYTES_MAX / 2)].concat();
        let deep_objects = br#"{"a":"#.repeat(BYTES_MAX / 5);
        for (case, content_type, body, expected) in [
            ("text", "text/plain", b"{}".as_slice(), ApiError::UnsupportedMediaType),
            ("multipart", "multipart/form-data; boundary=x", b"", ApiError::UnsupportedMediaType),
            ("no MIME type", "json", b"{}", ApiError::UnsupportedMediaType),
            ("body without a type", "", b"{}", ApiError::UnsupportedMediaType),
            ("nothing", json, b"", not_json.clone()),
            ("half", json, b"{\"app\":", not_json.clone()),
            ("trailing text", json, b"{} {}", not_json.clone()),
            ("a form that is not UTF-8", form, b"a=%ff", not_form.clone()),
            ("a form with half an escape", form, b"a=%f", not_form),
            ("a form with half a name", form, b"payload[a=1", bad_name),
            ("not UTF-8", json, b"{\"a\":\"\xff\"}", not_json.clone()),
            ("lone surrogate", json, br#"{"a":"\ud800"}"#, not_json.clone()),
            ("number beyond any float", json, b"{\"a\":1e999}", not_json.clone()),
            ("deep arrays", json, &deep, not_json.clone()),
            ("deep and broken objects", json, &deep_objects, not_json),
            ("array", json, b"[]", no_object.clone()),
            ("string", json, b"\"{}\"", no_object.clone()),
            ("null", json, b"null", no_object),
            ("one byte too many", json, &[b' '; BYTES_MAX + 1], too_large.clone()),
            ("ten times too large", json, &[b'['; BYTES_MAX * 10], too_large),
        ] {
            assert_eq!(read(&services, content_type, body).await, Err(expected), "{case}");
        }
    }

    #[actix_web::test]
    async fn a_body_of_just_the_limit_is_read() {
        let services = services().await;
        let body = format!("{{}}{}", " ".repeat(BYTES_MAX - 2));
        assert_eq!(read(&services, "application/json", body.as_bytes()).await, Ok(json!({})));
    }

    #[actix_web::test]
    async fn a_compressed_body_is_refused() {
        let services = services().await;
        for (encoding, expected) in
            [("gzip", Err(ApiError::UnsupportedMediaType)), ("identity", Ok(json!({})))]
        {
            let request = TestRequest::post()
                .insert_header((header::CONTENT_TYPE, "application/json"))
                .insert_header((header::CONTENT_ENCODING, encoding))
                .set_payload("{}");
            assert_eq!(read_request(&services, request).await, expected, "{encoding}");
        }
    }
}
