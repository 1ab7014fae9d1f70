//! The live feed: `POST /console/live` mints the token with which a console joins it. The
//! [`reporter`](super::reporter) publishes the events of the apps that are watched.
//!
//! The feed is a topic of the reserved app, `console:_console:<number of the app>`. The reserved app is in
//! no database and no list, it accepts no calls, and its secret is derived from the server's own key: no
//! token of another app, and no token signed with `GUARDIAN_SECRET`, can join the topic. A join of the
//! feed ends with the login of the console on which it rests: its token names the session as its `sub`, and
//! [`watching`](super::watching) checks the sessions of all joins.

use std::time::Duration;

use actix_web::{HttpMessage, HttpRequest, HttpResponse, http::header::CACHE_CONTROL, web};
use chrono::{DateTime, Utc};
use hmac::{Hmac, Mac};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sha2::Sha256;

use super::session::{LoggedIn, Session};
use crate::{
    app::{
        App, AppDirectory, AppId, ClientEvents, Slug,
        refusals::{Attempt, Refused, Target},
        settings::{AppSettings, UpTo},
        subject::Subject,
        token::{self, SigningAlgorithm},
    },
    broker::{
        Scope,
        feed::{AttemptKind, Feed, RefusedAttempt},
        subscriber::Disconnect,
    },
    http::{Services, body::Body, error::ApiError},
    session::body::BudgetShare,
    settings::Settings,
};

/// The time for which a token may be used to join. A join stays when its token expires.
const TOKEN_TTL: Duration = Duration::from_secs(60);

/// The number of publications that the feed of an app retains, so that a page whose connection was
/// cut misses nothing. It covers [`RETAINED_S`]: a second has at most four batches of events and one
/// sample.
const RETAINED_PUBLICATIONS: u64 = 300;
/// The time for which the feed of an app retains publications, in seconds.
const RETAINED_S: u64 = 60;

/// The answer to a login of an app that asks for the feed of another app.
const NOT_OWN: &str = "this login is for another app";

/// The input from which the reserved app's secret is derived by the server's key.
const PURPOSE: &[u8] = b"herald console live";

/// The reserved app, whose secret only servers with this `SECRET_KEY_BASE` know.
pub fn reserved_app(settings: &Settings) -> App {
    let key_base = settings.secrets.secret_key_base.expose_secret().as_bytes();
    let mut mac = Hmac::<Sha256>::new_from_slice(key_base).expect("HMAC takes keys of any length");
    mac.update(PURPOSE);
    let secret: String =
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    App {
        id: AppId::CONSOLE,
        name: Slug::CONSOLE.to_owned(),
        slug: Slug::console(),
        key: Slug::CONSOLE.to_owned(),
        secret: secret.into(),
        last_use: Default::default(),
        previous: None,
        digests: Default::default(),
        settings: AppSettings {
            client_events: ClientEvents::None,
            history_publications: UpTo::new(RETAINED_PUBLICATIONS),
            history_seconds: UpTo::new(RETAINED_S),
            ..AppSettings::default()
        },
        // The times are the same at each start, so that the saved history of the feed is restored.
        inserted_at: DateTime::<Utc>::UNIX_EPOCH,
        updated_at: DateTime::<Utc>::UNIX_EPOCH,
    }
}

/// Mints a token for the session of a request, and answers the topic of the app whose slug the body has
/// as `app`. Without `app`, a login of an app is answered the topic of its own app, and the administrator
/// the part with which the topics of all apps begin.
///
/// # Errors
/// [`ApiError::Unauthorized`]; [`ApiError::Forbidden`] and [`ApiError::NotFound`] for an app that the
/// session may not watch; [`ApiError::Unavailable`].
pub(super) async fn create(
    request: HttpRequest,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let session = request.extensions().get::<Session>().cloned().ok_or(ApiError::Unauthorized)?;
    let body = Body::read(&services, &request, payload, BudgetShare::Whole).await?.to_map()?;
    let wanted = match body.get("app") {
        None => None,
        Some(Value::String(slug)) => Some(slug.as_str()),
        Some(_) => return Err(ApiError::invalid("app", "must be a string")),
    };
    let apps = services.directory.load();
    let whole = format!("{}:{}", Scope::CONSOLE, Slug::CONSOLE);
    let of_app = |id: AppId| format!("{whole}:{}", id.0);
    let (topic, listen) = match session.holder(&services).ok_or(ApiError::Unauthorized)? {
        LoggedIn::Admin => {
            let found = |slug| apps.by_slug(slug).filter(|app| app.id != AppId::CONSOLE);
            let wanted = wanted.map(|slug| found(slug).ok_or(ApiError::NotFound));
            let wanted = wanted.transpose()?.map(|app| of_app(app.id));
            (wanted.unwrap_or_else(|| whole.clone()), format!("{whole}:*"))
        }
        LoggedIn::App(app, _) if wanted.is_none_or(|slug| slug == app.slug.as_str()) => {
            (of_app(app.id), of_app(app.id))
        }
        LoggedIn::App(..) => return Err(ApiError::Forbidden(NOT_OWN)),
    };
    let exp = (Utc::now() + TOKEN_TTL).timestamp();
    let claims = json!({ "exp": exp, "sub": session.id(), "listen": [listen] });
    let key = apps.by_id(AppId::CONSOLE).map(|app| app.secret.clone());
    let key = key.ok_or(ApiError::Unavailable)?;
    let token = token::mint(&claims, &key, SigningAlgorithm::Hs256);
    let token = token.map_err(|_| ApiError::Unavailable)?;
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(json!({
        "data": { "token": token, "topic": topic, "expires_in_seconds": TOKEN_TTL.as_secs() }
    })))
}

/// Ends the joins of the feed that rest on a session.
pub(super) async fn end(services: &Services, session: &str) {
    let Ok(raw) = serde_json::value::to_raw_value(session) else { return };
    let Ok(subject) = Subject::of(&raw) else { return };
    let joins = Disconnect::Subject { app: AppId::CONSOLE, subject };
    if services.topics.disconnect(joins).await.is_err() {
        log::warn!(
            "a thread did not answer in time: joins of the live feed may go on for a login of the \
             console that has ended, until the next check a second later"
        );
    }
}

/// The consoles that watch apps, for the task that reports a refused call to them.
pub(in crate::http) struct Watchers {
    feed: Feed,
    apps: AppDirectory,
}

impl Watchers {
    /// The consoles of this server, or `None` while no app is watched.
    pub(in crate::http) fn of(services: &Services) -> Option<Self> {
        let feed = services.topics.feed();
        let apps = || services.directory.clone();
        feed.is_watched().then(|| Self { feed: feed.clone(), apps: apps() })
    }

    /// Reports a refused call to the consoles that watch its app.
    pub(in crate::http) fn tell_refused_call(&self, refused: &Refused<'_>) {
        let &Refused { attempt, app, address, reason } = refused;
        let Attempt::Call { method, path, topic } = attempt else { return };
        let (Target::App(slug) | Target::Configured(slug)) = app else { return };
        let Some(app) = self.apps.load().by_slug(slug.as_str()).map(|app| app.id) else { return };
        self.feed.refused(app, || {
            let kind = AttemptKind::Call(format!("{method} {path}").into());
            let topic = topic.map(Into::into);
            RefusedAttempt { kind, topic, reason: reason.as_str(), address }
        });
    }
}
