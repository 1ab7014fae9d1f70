//! The errors of a REST call: the only file that turns an error into a status.

use std::{borrow::Cow, time::Duration};

use actix_web::{
    HttpResponse, HttpResponseBuilder, ResponseError,
    http::{StatusCode, header},
};
use serde_json::json;

use crate::{
    app::fields::Faults,
    form::{FormError, NotUtf8},
};

/// The reason why a REST call fails. The details are shown to the caller, so they never hold a
/// secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The request cannot be understood at all.
    #[error("{0}")]
    Malformed(Cow<'static, str>),
    /// Credentials are missing or wrong; the answer never tells which.
    #[error("authentication required")]
    Unauthorized,
    /// The call is not permitted to this caller, or to anybody.
    #[error("{0}")]
    Forbidden(&'static str),
    /// There is nothing at this address.
    #[error("not found")]
    NotFound,
    /// The address exists, but not with this method.
    #[error("method not allowed")]
    MethodNotAllowed {
        /// The `Allow` header: the permitted methods, separated by commas.
        allow: &'static str,
    },
    /// Some part of the request has more bytes than its limit.
    #[error("{what} is larger than {bytes_max} bytes")]
    TooLarge {
        /// The part that is too large, for example `request body`.
        what: &'static str,
        /// The limit, in bytes.
        bytes_max: usize,
    },
    /// The format of the body is not supported.
    #[error("content type must be application/json or application/x-www-form-urlencoded")]
    UnsupportedMediaType,
    /// The request is well-formed, but some of its fields are not valid.
    #[error("some fields are not valid")]
    Invalid(Faults),
    /// The body is a form with a parameter whose name is invalid.
    #[error("the parameter {name:?} {fault}")]
    BadParameter {
        /// The name, as received.
        name: String,
        /// The fault, worded to follow the name.
        fault: &'static str,
    },
    /// The caller has exceeded a rate: of failed logins, of events with a token, or of changes of its app.
    #[error("too many attempts, try again later")]
    TooManyRequests {
        /// The time for which the caller should wait before it tries again.
        retry_after: Duration,
    },
    /// The call cannot be done now, but may succeed later.
    #[error("service unavailable, try again later")]
    Unavailable,
}

impl ApiError {
    /// A fault of a single field.
    pub fn invalid(field: &'static str, fault: impl Into<Cow<'static, str>>) -> Self {
        let mut faults = Faults::default();
        faults.add(field, fault);
        Self::Invalid(faults)
    }

    fn add_headers(&self, response: &mut HttpResponseBuilder) {
        match self {
            Self::Unauthorized => {
                response.insert_header((header::WWW_AUTHENTICATE, r#"Basic realm="Herald""#));
            }
            Self::MethodNotAllowed { allow } => {
                response.insert_header((header::ALLOW, *allow));
            }
            Self::TooManyRequests { retry_after } => {
                // Rounded up, so that a caller that waits for this time does not return too early.
                let seconds = retry_after.as_millis().div_ceil(1000).max(1);
                response.insert_header((header::RETRY_AFTER, seconds.to_string()));
            }
            Self::Unavailable => {
                response.insert_header((header::RETRY_AFTER, "1"));
            }
            _ => {}
        }
    }
}

impl From<FormError> for ApiError {
    fn from(error: FormError) -> Self {
        match error {
            FormError::NotText => Self::Malformed("request body is not a valid form".into()),
            FormError::BadName { name, fault } => Self::BadParameter { name, fault },
        }
    }
}

impl From<Faults> for ApiError {
    fn from(faults: Faults) -> Self {
        Self::Invalid(faults)
    }
}

impl From<NotUtf8> for ApiError {
    fn from(NotUtf8: NotUtf8) -> Self {
        Self::Malformed("query string is not valid UTF-8".into())
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Invalid(_) | Self::BadParameter { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyRequests { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        self.add_headers(&mut response);
        match self {
            Self::Invalid(faults) => response.json(json!({ "errors": faults })),
            Self::BadParameter { name, fault } => {
                response.json(json!({ "errors": { name: [fault] } }))
            }
            other => response.json(json!({ "errors": { "detail": other.to_string() } })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use actix_web::body::to_bytes;
    use serde_json::Value;

    async fn answer(error: ApiError) -> (u16, Option<(String, String)>, Value) {
        let response = error.error_response();
        let extra = response
            .headers()
            .iter()
            .find(|(name, _)| *name != header::CONTENT_TYPE)
            .map(|(name, value)| (name.to_string(), value.to_str().expect("text").to_owned()));
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body()).await.expect("a body");
        (status, extra, serde_json::from_slice(&body).expect("JSON"))
    }

    fn detail(text: &str) -> Value {
        json!({ "errors": { "detail": text } })
    }

    #[actix_web::test]
    async fn each_error_has_one_status_and_one_shape() {
        let header = |name: &str, value: &str| Some((name.to_owned(), value.to_owned()));
        let too_many = |ms| ApiError::TooManyRequests { retry_after: Duration::from_millis(ms) };
        let later = "too many attempts, try again later";
        for (error, status, extra, body) in [
            (ApiError::Malformed("no JSON".into()), 400, None, detail("no JSON")),
            (
                ApiError::Unauthorized,
                401,
                header("www-authenticate", r#"Basic realm="Herald""#),
                detail("authentication required"),
            ),
            (ApiError::Forbidden("not permitted"), 403, None, detail("not permitted")),
            (ApiError::NotFound, 404, None, detail("not found")),
            (
                ApiError::MethodNotAllowed { allow: "GET, POST" },
                405,
                header("allow", "GET, POST"),
                detail("method not allowed"),
            ),
            (
                ApiError::TooLarge { what: "request body", bytes_max: 10 },
                413,
                None,
                detail("request body is larger than 10 bytes"),
            ),
            (
                ApiError::UnsupportedMediaType,
                415,
                None,
                detail(
                    "content type must be application/json or application/x-www-form-urlencoded",
                ),
            ),
            (
                ApiError::invalid("name", "can't be blank"),
                422,
                None,
                json!({ "errors": { "name": ["can't be blank"] } }),
            ),
            (
                ApiError::BadParameter { name: "a[b".to_owned(), fault: "is nested too deeply" },
                422,
                None,
                json!({ "errors": { "a[b": ["is nested too deeply"] } }),
            ),
            (too_many(1), 429, header("retry-after", "1"), detail(later)),
            (too_many(1001), 429, header("retry-after", "2"), detail(later)),
            (
                ApiError::Unavailable,
                503,
                header("retry-after", "1"),
                detail("service unavailable, try again later"),
            ),
        ] {
            assert_eq!(answer(error.clone()).await, (status, extra, body), "{error:?}");
        }
    }
}
