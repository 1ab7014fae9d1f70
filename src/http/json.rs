//! Bodies as JSON text, read member by member, so that each value keeps its exact text.

use std::borrow::Cow;

use actix_web::{HttpRequest, web};
use bytes::Bytes;
use serde_json::{Deserializer, value::RawValue};

use super::{
    Services,
    body::{Body, BodySyntax},
    error::ApiError,
};
use crate::{
    broker::NameError,
    json::{Text, members},
    session::body::BudgetShare,
};

/// A body as JSON text; a form becomes the object it describes.
pub(super) struct Json(Bytes);

impl From<Bytes> for Json {
    fn from(text: Bytes) -> Self {
        Self(text)
    }
}

impl Json {
    /// Reads a request's body.
    ///
    /// # Errors
    /// Those of [`Body::read`], and [`ApiError::Malformed`].
    pub(super) async fn read(
        request: &HttpRequest,
        payload: web::Payload,
        services: &Services,
        share: BudgetShare,
    ) -> Result<Self, ApiError> {
        Self::from_body(Body::read(services, request, payload, share).await?)
    }

    /// Wraps a body that was read before.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] for a form that cannot be read.
    pub(super) fn from_body(body: Body) -> Result<Self, ApiError> {
        match body.kind {
            BodySyntax::Json => Ok(Self(body.bytes)),
            BodySyntax::Form => serde_json::to_vec(&body.to_map()?)
                .map(|json| Self(json.into()))
                .map_err(|_| ApiError::Malformed("request body is not a form".into())),
        }
    }

    /// The members with these names, of a body that is an object.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] if the body is not JSON, or not an object.
    pub(super) fn members<const N: usize>(
        &self,
        names: [&'static str; N],
    ) -> Result<[Option<&RawValue>; N], ApiError> {
        members(Deserializer::from_slice(&self.0), names).map_err(|error| {
            // The parser's message quotes the body, which may hold a secret.
            ApiError::Malformed(match error.classify() {
                serde_json::error::Category::Data => "request body must be a JSON object".into(),
                _ => "request body is not valid JSON".into(),
            })
        })
    }
}

/// A fault of a field, worded to follow its name: `must not be empty`.
pub(super) type FieldFault = Cow<'static, str>;

/// Words the fault of an invalid name.
pub(super) fn fault(error: NameError) -> FieldFault {
    error.to_string().into()
}

/// A JSON null counts as absent.
pub(super) fn present(raw: Option<&RawValue>) -> Option<&RawValue> {
    raw.filter(|raw| raw.get() != "null")
}

/// A member that must be a string.
pub(super) fn text(raw: Option<&RawValue>) -> Result<Cow<'_, str>, FieldFault> {
    let Some(raw) = present(raw) else {
        return Err(fault(NameError::Empty));
    };
    // A value that is quoted but cannot be read as a string has half of a surrogate pair.
    let fault = if raw.get().starts_with('"') { "is not valid text" } else { "must be a string" };
    serde_json::from_str(raw.get()).map(|Text(text)| text).map_err(|_| fault.into())
}

/// A member that is true, false or absent: a JSON boolean, or a string as forms spell one. An empty
/// string counts as false.
pub(super) fn flag(raw: Option<&RawValue>) -> Result<bool, FieldFault> {
    match present(raw).map(RawValue::get) {
        None | Some("false" | r#""false""# | r#""0""# | r#""""#) => Ok(false),
        Some("true" | r#""true""# | r#""1""#) => Ok(true),
        Some(_) => Err("must be true or false".into()),
    }
}
