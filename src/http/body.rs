//! Request bodies: read up to a limit, as a form or as JSON.

use actix_web::{HttpMessage, HttpRequest, http::header, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use serde_json::{Map, Value};

use super::{Services, error::ApiError};
use crate::{form, metrics::labels::Limit};

/// The format of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `application/x-www-form-urlencoded`; every leaf is a string.
    Form,
    /// `application/json`, or any type that ends in `+json`.
    Json,
}

/// A whole request body, not yet parsed: whoever must keep the exact text reads `bytes`.
#[derive(Debug, Clone)]
pub struct Body {
    /// How `bytes` are to be read.
    pub kind: Kind,
    /// The body as it came.
    pub bytes: Bytes,
}

impl Body {
    /// Reads a request's body; one without a content type must be empty and is an empty form.
    ///
    /// # Errors
    /// [`ApiError::UnsupportedMediaType`] before anything is read, [`ApiError::TooLarge`] beyond
    /// `bytes_max`, [`ApiError::Malformed`] if the body breaks off.
    pub async fn read(
        request: &HttpRequest,
        payload: web::Payload,
        bytes_max: usize,
    ) -> Result<Self, ApiError> {
        let kind = kind(request)?;
        let bytes = collect(payload, bytes_max).await?;
        match kind {
            Some(kind) => Ok(Self { kind, bytes }),
            None if bytes.is_empty() => Ok(Self { kind: Kind::Form, bytes }),
            None => Err(ApiError::UnsupportedMediaType),
        }
    }

    /// Reads a request's body, as large as the settings allow.
    ///
    /// # Errors
    /// As [`Body::read`].
    pub async fn read_for(
        services: &Services,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Result<Self, ApiError> {
        let bytes_max = services.settings.limits.request_body_bytes_max;
        Self::read(request, payload, bytes_max).await.inspect_err(|error| {
            if matches!(error, ApiError::TooLarge { .. }) {
                services.metrics.hit(Limit::RequestBodyBytes);
            }
        })
    }

    /// Parses the body as one object.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] if it is no JSON, nested beyond 128 levels, or no object.
    pub fn to_map(&self) -> Result<Map<String, Value>, ApiError> {
        match self.kind {
            Kind::Form => Ok(form::parse(&self.bytes)),
            Kind::Json => match serde_json::from_slice(&self.bytes) {
                Ok(Value::Object(map)) => Ok(map),
                Ok(_) => Err(ApiError::Malformed("request body must be a JSON object".into())),
                // The parser's own words quote the body, which may hold a secret.
                Err(_) => Err(ApiError::Malformed("request body is not valid JSON".into())),
            },
        }
    }
}

fn kind(request: &HttpRequest) -> Result<Option<Kind>, ApiError> {
    // Nothing is inflated here: a small body that unpacks to a huge one is not even begun.
    let encoding = request.headers().get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(ApiError::UnsupportedMediaType);
    }
    let mime = request.mime_type().map_err(|_| ApiError::UnsupportedMediaType)?;
    let Some(mime) = mime else { return Ok(None) };
    let is_json = mime.essence_str() == "application/json"
        || mime.suffix().is_some_and(|suffix| suffix == "json");
    match mime.essence_str() {
        _ if is_json => Ok(Some(Kind::Json)),
        "application/x-www-form-urlencoded" => Ok(Some(Kind::Form)),
        _ => Err(ApiError::UnsupportedMediaType),
    }
}

async fn collect(mut payload: web::Payload, bytes_max: usize) -> Result<Bytes, ApiError> {
    let mut bytes = Bytes::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|_| ApiError::Malformed("request body broke off".into()))?;
        if bytes.len() + chunk.len() > bytes_max {
            return Err(ApiError::TooLarge { what: "request body", bytes_max });
        }
        // Most bodies come in one piece, which is not copied.
        bytes = if bytes.is_empty() { chunk } else { append(bytes, &chunk) };
    }
    Ok(bytes)
}

/// Appends a piece; where `bytes` came from here it grows in place.
fn append(bytes: Bytes, chunk: &[u8]) -> Bytes {
    let mut bytes = BytesMut::from(bytes);
    bytes.extend_from_slice(chunk);
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::{FromRequest, dev::Payload, error::PayloadError, test::TestRequest};
    use serde_json::json;

    const BYTES_MAX: usize = 1000;

    async fn read(content_type: &str, body: &[u8]) -> Result<Value, ApiError> {
        let mut request = TestRequest::post().set_payload(body.to_vec());
        if !content_type.is_empty() {
            request = request.insert_header((header::CONTENT_TYPE, content_type));
        }
        read_request(request).await
    }

    async fn read_request(request: TestRequest) -> Result<Value, ApiError> {
        let (request, mut payload) = request.to_http_parts();
        let payload = web::Payload::from_request(&request, &mut payload).await.expect("a payload");
        Body::read(&request, payload, BYTES_MAX).await?.to_map().map(Value::Object)
    }

    #[actix_web::test]
    async fn forms_and_json_become_one_object() {
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
            ("JSON by suffix", "application/vnd.api+json", json_text, nested),
            ("neither type nor body", "", b"", json!({})),
        ] {
            assert_eq!(read(content_type, body).await, Ok(expected), "{case}");
        }
    }

    #[actix_web::test]
    async fn what_is_no_body_of_ours_is_refused() {
        let malformed = |text: &'static str| ApiError::Malformed(text.into());
        let not_json = malformed("request body is not valid JSON");
        let no_object = malformed("request body must be a JSON object");
        let too_large = ApiError::TooLarge { what: "request body", bytes_max: BYTES_MAX };
        let json = "application/json";
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
            assert_eq!(read(content_type, body).await, Err(expected), "{case}");
        }
    }

    #[actix_web::test]
    async fn a_body_of_just_the_limit_is_read() {
        let body = format!("{{}}{}", " ".repeat(BYTES_MAX - 2));
        assert_eq!(read("application/json", body.as_bytes()).await, Ok(json!({})));
    }

    #[actix_web::test]
    async fn a_body_in_pieces_is_put_together_up_to_the_limit() {
        let too_large = ApiError::TooLarge { what: "request body", bytes_max: BYTES_MAX };
        let broke_off = ApiError::Malformed("request body broke off".into());
        let half = vec![b'x'; BYTES_MAX / 2];
        for (case, pieces, expected) in [
            ("none", vec![], Ok(vec![])),
            ("one", vec![Some(b"one".as_slice())], Ok(b"one".to_vec())),
            (
                "three",
                vec![Some(b"one"), Some(b" two"), Some(b" three")],
                Ok(b"one two three".to_vec()),
            ),
            ("an empty one", vec![Some(b"one"), Some(b""), Some(b"two")], Ok(b"onetwo".to_vec())),
            ("just the limit", vec![Some(&half), Some(&half)], Ok(half.repeat(2))),
            ("one byte more", vec![Some(&half), Some(&half), Some(b"x")], Err(too_large)),
            ("a broken one", vec![Some(b"one"), None], Err(broke_off)),
        ] {
            let pieces: Vec<_> = pieces
                .into_iter()
                .map(|piece| {
                    piece.map(Bytes::copy_from_slice).ok_or(PayloadError::Incomplete(None))
                })
                .collect();
            let request = TestRequest::default().to_http_request();
            let stream = futures_util::stream::iter(pieces);
            let mut payload = Payload::Stream { payload: stream.boxed_local() };
            let payload = web::Payload::from_request(&request, &mut payload).await;
            let read = collect(payload.expect("a payload"), BYTES_MAX).await;
            assert_eq!(read.map(|bytes| bytes.to_vec()), expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn a_compressed_body_is_refused() {
        for (encoding, expected) in
            [("gzip", Err(ApiError::UnsupportedMediaType)), ("identity", Ok(json!({})))]
        {
            let request = TestRequest::post()
                .insert_header((header::CONTENT_TYPE, "application/json"))
                .insert_header((header::CONTENT_ENCODING, encoding))
                .set_payload("{}");
            assert_eq!(read_request(request).await, expected, "{encoding}");
        }
    }
}
