//! The parameters of a query string.

use std::{fmt::Display, str::FromStr};

use actix_web::HttpRequest;
use serde_json::{Map, Value};

use super::{error::ApiError, json::FieldFault};
use crate::{app::fields::Faults, form};

/// The parameters of a query string, and the faults of those that have been read, so that a caller is told all
/// of them at once.
pub(super) struct Query {
    parameters: Map<String, Value>,
    faults: Faults,
}

impl Query {
    /// Parses the query string of a request.
    ///
    /// # Errors
    /// [`ApiError::Malformed`] if it is not UTF-8.
    pub(super) fn of(request: &HttpRequest) -> Result<Self, ApiError> {
        let parameters = form::parse_query(request.query_string().as_bytes())?;
        Ok(Self { parameters, faults: Faults::default() })
    }

    /// The value of a parameter; `None` if it is absent or faulty. The fault of a bad one is recorded.
    pub(super) fn read<T>(
        &mut self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, FieldFault>,
    ) -> Option<T> {
        let read = match self.parameters.get(name)? {
            Value::String(text) => parse(text),
            _ => Err("must be a string".into()),
        };
        self.faults.note(name, read)
    }

    /// The text of a parameter.
    pub(super) fn text(&mut self, name: &'static str) -> Option<String> {
        self.read(name, |text| Ok(text.to_owned()))
    }

    /// The parameter `limit`, a number from 1 to `max`.
    pub(super) fn limit<N>(&mut self, default: N, max: N) -> N
    where
        N: Copy + Display + From<u8> + FromStr + PartialOrd,
    {
        let limit = self.read("limit", |raw| {
            let limit = raw.parse().ok().filter(|limit| (N::from(1)..=max).contains(limit));
            limit.ok_or_else(|| format!("must be a number from 1 to {max}").into())
        });
        limit.unwrap_or(default)
    }

    /// Refuses a query that has faults, or from which something else could not be read.
    ///
    /// # Errors
    /// [`ApiError::Invalid`].
    pub(super) fn check<T>(mut self, read: Result<T, Faults>) -> Result<T, ApiError> {
        match read {
            Ok(value) if self.faults.is_empty() => Ok(value),
            Ok(_) => Err(self.faults.into()),
            Err(faults) => {
                self.faults.extend(faults);
                Err(self.faults.into())
            }
        }
    }
}
