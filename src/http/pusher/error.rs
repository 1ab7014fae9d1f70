//! The errors of Pusher's HTTP API: each is a status and one line of plain text, which the SDKs show to
//! their callers as it is.

use std::borrow::Cow;

use actix_web::{
    HttpResponse, ResponseError,
    http::{
        StatusCode,
        header::{self, ContentType},
    },
};

use crate::pusher::{channel::ChannelFault, signature::SignatureError};

/// The reason why a call fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PusherError {
    /// The request is malformed, or one of its fields is not valid.
    #[error("{0}")]
    BadRequest(Cow<'static, str>),
    /// The request is not signed by the app.
    #[error("{0}")]
    Unauthorized(#[from] SignatureError),
    /// The app takes no such calls.
    #[error("{0}")]
    Forbidden(&'static str),
    /// There is no such app, or nothing at this address.
    #[error("{0}")]
    NotFound(&'static str),
    /// The address exists, but not with this method.
    #[error("use the method {allow}")]
    MethodNotAllowed {
        /// The permitted method.
        allow: &'static str,
    },
    /// The data of an event is too large.
    #[error("The data content of this event exceeds the allowed maximum ({bytes_max} bytes)")]
    DataTooLarge {
        /// The limit, in bytes.
        bytes_max: usize,
    },
    /// The events of one request are too large together, each counted once for each of its channels.
    #[error("the events of this request exceed the allowed maximum ({bytes_max} bytes)")]
    EventsTooLarge {
        /// The limit, in bytes.
        bytes_max: usize,
    },
    /// The body is too large.
    #[error("the request body exceeds the allowed maximum ({bytes_max} bytes)")]
    BodyTooLarge {
        /// The limit, in bytes.
        bytes_max: usize,
    },
    /// The call cannot be done now, but may succeed later.
    #[error("service unavailable, try again later")]
    Unavailable,
}

impl PusherError {
    /// A request that is not valid.
    pub(super) fn bad(text: impl Into<Cow<'static, str>>) -> Self {
        Self::BadRequest(text.into())
    }

    /// A field that is not valid; the fault is worded to follow the field's name.
    pub(super) fn field(name: &str, fault: &str) -> Self {
        Self::BadRequest(format!("{name} {fault}").into())
    }
}

impl From<ChannelFault> for PusherError {
    fn from(fault: ChannelFault) -> Self {
        Self::bad(fault.to_string())
    }
}

impl ResponseError for PusherError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::DataTooLarge { .. } | Self::EventsTooLarge { .. } | Self::BodyTooLarge { .. } => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        match self {
            Self::Unauthorized(_) => {
                response.insert_header((header::WWW_AUTHENTICATE, r#"Pusher realm="Herald""#));
            }
            Self::MethodNotAllowed { allow } => {
                response.insert_header((header::ALLOW, *allow));
            }
            Self::Unavailable => {
                response.insert_header((header::RETRY_AFTER, "1"));
            }
            _ => {}
        }
        response.content_type(ContentType::plaintext()).body(format!("{self}\n"))
    }
}
