//! The caller: the app in the path, and the signature that proves it.

use std::{sync::Arc, time::SystemTime};

use actix_web::{HttpRequest, web};
use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::{Services, error::PusherError};
use crate::{
    app::{App, AppId, Apps, Slug},
    http::auth::note_refused_call,
    metrics::labels::{Limit, RefusalReason},
    pusher::signature::{SignatureError, SignedQuery},
    session::{
        body::{BudgetShare, UnreadBody},
        requests::trust,
    },
};

/// An app that has signed a request, and the parameters of the request.
pub(super) struct SignedCaller<'a> {
    pub(super) app: Arc<App>,
    pub(super) query: SignedQuery,
    request: &'a HttpRequest,
    services: &'a Services,
}

impl<'a> SignedCaller<'a> {
    /// Judges a request by its head.
    ///
    /// # Errors
    /// [`PusherError::NotFound`] for an unknown app, [`PusherError::Unauthorized`], and
    /// [`PusherError::Forbidden`] for an app that is inactive or has `pusher` off.
    pub(super) fn of(
        request: &'a HttpRequest,
        services: &'a Services,
    ) -> Result<Self, PusherError> {
        let query = SignedQuery::parse(request.query_string());
        let found = find(&services.directory.load(), request, query.as_ref().ok());
        let Some(app) = found else {
            note(request, services, None, RefusalReason::UnknownApp);
            return Err(match request.match_info().get("app") {
                Some(_) => PusherError::NotFound("there is no app with this id or slug"),
                None => SignatureError::UnknownKey.into(),
            });
        };
        let verified = query.and_then(|query| {
            let (method, now_s) = (request.method().as_str(), now_s());
            let path = signed_path(request, services);
            query.verify((method, path), &app, now_s).map(|pair| (query, pair))
        });
        let (query, pair) = verified.inspect_err(|_| {
            note(request, services, Some(&app.slug), RefusalReason::WrongCredentials);
        })?;
        app.note_use(pair);
        let refusal = match (app.settings.active, app.settings.pusher) {
            (true, true) => return Ok(Self { app, query, request, services }),
            (false, _) => PusherError::Forbidden("this app is inactive"),
            (true, false) => PusherError::Forbidden("this app takes no calls of Pusher's SDKs"),
        };
        note(request, services, Some(&app.slug), RefusalReason::InactiveApp);
        Err(refusal)
    }

    /// Reads the body, which must be the one that was signed. The app is judged again afterwards, because
    /// it may have changed meanwhile.
    ///
    /// # Errors
    /// [`PusherError`].
    pub(super) async fn with_body(
        self,
        payload: web::Payload,
    ) -> Result<(Self, Bytes), PusherError> {
        let Self { app, query, request, services } = self;
        trust(request);
        let bytes_max = services.settings.limits.request_body_bytes_max;
        let body =
            services.bodies.read(request.headers(), payload, bytes_max, BudgetShare::Whole).await;
        let body = body.map_err(|unread| refuse(unread, bytes_max, services))?.into_charged_bytes();
        query.verify_body(&body).inspect_err(|_| {
            note(request, services, Some(&app.slug), RefusalReason::WrongCredentials);
        })?;
        let now = services.directory.load().by_id(app.id).cloned();
        let is_same = now.is_some_and(|now| Arc::ptr_eq(&now, &app));
        let caller = match is_same {
            true => Self { app, query, request, services },
            false => Self::of(request, services)?,
        };
        Ok((caller, body))
    }
}

/// The app that the path names; without one, the app that has the key.
fn find(apps: &Apps, request: &HttpRequest, query: Option<&SignedQuery>) -> Option<Arc<App>> {
    let found = match request.match_info().get("app") {
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().ok().and_then(|id| apps.by_id(AppId(id)))
        }
        Some(slug) => apps.by_slug(slug),
        None => query.and_then(|query| query.get("auth_key")).and_then(|key| apps.by_key(key)),
    };
    // The reserved app takes no calls.
    found.filter(|app| app.id != AppId::CONSOLE).cloned()
}

/// The path as it was sent, without `pusher.path_prefix`: SDKs that can be given a prefix do not sign it.
fn signed_path<'a>(request: &'a HttpRequest, services: &Services) -> &'a str {
    let path = request.uri().path();
    path.strip_prefix(services.settings.pusher.path_prefix.as_str()).unwrap_or(path)
}

/// The name of a channel or of a user that the path has, decoded.
///
/// # Errors
/// [`PusherError::BadRequest`] if it is not UTF-8.
pub(super) fn name_in_path(
    request: &HttpRequest,
    services: &Services,
) -> Result<String, PusherError> {
    let nth = if request.match_info().get("app").is_some() { 4 } else { 2 };
    let name = signed_path(request, services).split('/').nth(nth).unwrap_or_default();
    let decoded = percent_decode_str(name).decode_utf8();
    decoded.map(Into::into).map_err(|_| PusherError::bad("the path is not UTF-8"))
}

fn refuse(unread: UnreadBody, bytes_max: usize, services: &Services) -> PusherError {
    match unread {
        UnreadBody::TooLarge => {
            services.metrics.hit(Limit::RequestBodyBytes);
            PusherError::BodyTooLarge { bytes_max }
        }
        UnreadBody::NoRoom => {
            services.metrics.hit(Limit::BodiesBytes);
            PusherError::Unavailable
        }
        UnreadBody::BrokenOff => PusherError::bad("the request body broke off"),
    }
}

fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn note(request: &HttpRequest, services: &Services, app: Option<&Slug>, reason: RefusalReason) {
    let slug = app.map(Slug::as_str).or_else(|| request.match_info().get("app"));
    note_refused_call(request, services, slug, None, reason);
}
