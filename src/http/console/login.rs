//! `POST /console/login`, `POST /console/logout`, `GET /console/session`.

use std::sync::Arc;

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, HOST, HeaderMap, SET_COOKIE},
    web,
};
use chrono::SecondsFormat;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq;
use url::Url;

use super::{
    live,
    session::{COOKIE_NAME, LIFETIME, LoggedIn, Session},
};
use crate::{
    app::{App, key_pair::Pair, pair_digests::TextDigest},
    http::{
        Services, admin,
        auth::find_active,
        body::Body,
        client::{client_of, is_this_machine},
        error::ApiError,
        own_host,
    },
    metrics::labels::FailedLogin,
    session::{body::BudgetShare, client::Client},
};

/// The credentials that stand in for those of an unknown app.
const DUMMY: &str = "00000000-0000-0000-0000-000000000000";

const NO_TLS: &str = "without TLS the console's login works on this machine only; serve Herald behind \
    TLS (server.trusted_proxies), or set console.insecure = true";

/// Logs in, as the administrator or as an app, and sets the cookie of a new session. A session that the
/// request has ends.
///
/// # Errors
/// [`ApiError::Forbidden`] without TLS, [`ApiError::Unauthorized`], [`ApiError::TooManyRequests`],
/// [`ApiError::Invalid`] for a body without credentials, [`ApiError::Unavailable`].
pub(super) async fn create(
    request: HttpRequest,
    payload: web::Payload,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    own_host::check(request.headers(), &services.settings)?;
    let client = client_of(&request, &services.settings.server);
    if !is_private(&client, request.headers()) && !services.settings.console.insecure {
        return Err(ApiError::Forbidden(NO_TLS));
    }
    let body = Body::read(&services, &request, payload, BudgetShare::Half).await?.to_map()?;
    let holder = match Given::read(&body)? {
        Given::Admin(pair) => {
            log_in_admin(&services, &request, &pair)?;
            None
        }
        Given::App(pair) => Some(log_in_app(&services, &request, &pair)?),
    };
    let of_app = holder.as_ref().map(|(app, pair)| (&**app, *pair));
    let (value, session) = services.console.begin(&services.settings, of_app).await?;
    let old = request.extensions().get::<Session>().cloned();
    if let Some(old) = old {
        services.console.end(&old).await?;
        live::end(&services, old.id()).await;
    }
    let answer = shown(&session, &services).ok_or(ApiError::Unauthorized)?;
    let cookie = cookie(&value, LIFETIME.as_secs(), client.is_secure);
    Ok(HttpResponse::Ok()
        .insert_header((SET_COOKIE, cookie))
        .insert_header((CACHE_CONTROL, "no-store"))
        .json(answer))
}

/// Answers which party is logged in: the administrator, or an app by its slug and its number, which stays
/// the same when the app is renamed.
///
/// # Errors
/// [`ApiError::Unauthorized`].
pub(super) async fn show(
    request: HttpRequest,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let session = request.extensions().get::<Session>().cloned();
    let answer = session.and_then(|session| shown(&session, &services));
    Ok(HttpResponse::Ok().json(answer.ok_or(ApiError::Unauthorized)?))
}

/// Logs out: removes the session from the database, and its cookie from the browser.
///
/// # Errors
/// [`ApiError::Unauthorized`], [`ApiError::Unavailable`].
pub(super) async fn delete(
    request: HttpRequest,
    services: web::Data<Services>,
) -> Result<HttpResponse, ApiError> {
    let session = request.extensions().get::<Session>().cloned();
    let session = session.ok_or(ApiError::Unauthorized)?;
    services.console.end(&session).await?;
    live::end(&services, session.id()).await;
    let client = client_of(&request, &services.settings.server);
    let cookie = cookie("", 0, client.is_secure);
    Ok(HttpResponse::NoContent().insert_header((SET_COOKIE, cookie)).finish())
}

fn shown(session: &Session, services: &Services) -> Option<Value> {
    let (login, app) = match session.holder(services)? {
        LoggedIn::Admin => ("admin", None),
        LoggedIn::App(app, _) => ("app", Some(app)),
    };
    let slug = app.as_ref().map(|app| app.slug.to_string());
    let app_id = app.map(|app| app.id.0);
    let expires_at = session.expires_at().to_rfc3339_opts(SecondsFormat::Micros, true);
    let single_app = services.settings.single_app.as_ref().map(ToString::to_string);
    Some(json!({ "data": {
        "as": login, "app": slug, "app_id": app_id, "expires_at": expires_at, "single_app": single_app
    } }))
}

fn cookie(value: &str, max_age_s: u64, is_secure: bool) -> String {
    let secure = if is_secure { "; Secure" } else { "" };
    format!("{COOKIE_NAME}={value}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}")
}

/// Returns whether nobody else can read the traffic between the client and this server: it uses TLS, or
/// the browser is on this machine. A proxy on this machine that is not in `trusted_proxies` is detected
/// by its headers, or by the `Host` that it forwards.
fn is_private(client: &Client, headers: &HeaderMap) -> bool {
    let is_forwarded = ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-real-ip", "via"]
        .into_iter()
        .any(|name| headers.contains_key(name));
    let is_local = client.address.is_loopback() && !is_forwarded && is_local_host(headers);
    client.is_secure || is_local
}

fn is_local_host(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let url = host.and_then(|host| Url::parse(&format!("http://{host}/")).ok());
    url.as_ref().is_some_and(is_this_machine)
}

/// A name and the secret that proves it: user name and password, or key and secret.
struct NameAndProof {
    name: String,
    proof: SecretString,
}

/// The credentials of a login.
enum Given {
    Admin(NameAndProof),
    App(NameAndProof),
}

impl Given {
    fn read(body: &Map<String, Value>) -> Result<Self, ApiError> {
        let text = |name: &'static str| match body.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(ApiError::invalid(name, "must be a string")),
            None => Err(ApiError::invalid(name, "must be given")),
        };
        let pair = |name, proof| {
            Ok(NameAndProof { name: text(name)?, proof: SecretString::from(text(proof)?) })
        };
        match body.contains_key("key") {
            true => pair("key", "secret").map(Self::App),
            false => pair("user", "password").map(Self::Admin),
        }
    }
}

fn log_in_admin(
    services: &Services,
    request: &HttpRequest,
    given: &NameAndProof,
) -> Result<(), ApiError> {
    let admin = &services.settings.admin;
    let is_right = || {
        let is_name = TextDigest::of(given.name.as_bytes()).is_of(&admin.username);
        let is_password = TextDigest::of(given.proof.expose_secret().as_bytes())
            .is_of(admin.password.expose_secret());
        (is_name & is_password).into()
    };
    admin::attempt(services, request, FailedLogin::ConsoleAdmin, is_right)
}

fn log_in_app(
    services: &Services,
    request: &HttpRequest,
    given: &NameAndProof,
) -> Result<(Arc<App>, Pair), ApiError> {
    let found = find_by_key(services, &given.name);
    let mut proved = None;
    let is_right = || {
        // An unknown key is compared with a dummy secret, so that the time does not reveal which keys
        // exist. An app whose secret is empty cannot log in, because everybody knows that secret.
        let secret = found.as_ref().map(|(app, pair)| secret_of(app, *pair));
        let secret = secret.filter(|secret| !secret.is_empty()).unwrap_or(DUMMY);
        let is_secret = TextDigest::of(given.proof.expose_secret().as_bytes()).is_of(secret);
        let is_right = bool::from(is_secret) && secret != DUMMY;
        proved = found.clone().filter(|_| is_right);
        proved.is_some()
    };
    admin::attempt(services, request, FailedLogin::ConsoleApp, is_right)?;
    let (app, pair) = proved.ok_or(ApiError::Unauthorized)?;
    app.note_use(pair);
    Ok((app, pair))
}

fn find_by_key(services: &Services, key: &str) -> Option<(Arc<App>, Pair)> {
    let is_it = |own: &str| bool::from(own.as_bytes().ct_eq(key.as_bytes()));
    let now = chrono::Utc::now();
    let apps = services.directory.load();
    let (app, pair) = apps.iter().find_map(|app| match &app.previous {
        _ if is_it(&app.key) => Some((app, Pair::Current)),
        Some(pair) if is_it(&pair.key) && !pair.is_over(now) => Some((app, Pair::Previous)),
        _ => None,
    })?;
    find_active(services, app.slug.as_str()).ok().map(|app| (app, pair))
}

fn secret_of(app: &App, pair: Pair) -> &str {
    match (pair, &app.previous) {
        (Pair::Previous, Some(previous)) => previous.secret.expose_secret(),
        _ => app.secret.expose_secret(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use actix_web::{http::header::HOST, test::TestRequest};

    use super::*;
    use crate::http::testing::{KEY, SECRET, TestServices, app};

    /// The API and the command line refuse an empty secret, but the table may have one.
    #[actix_web::test]
    async fn an_app_whose_secret_is_empty_or_the_dummy_cannot_log_in() {
        let test = TestServices::start_with(&[]).await;
        for (own, given, status) in
            [(SECRET, SECRET, 200), ("", "", 401), ("", DUMMY, 401), (DUMMY, DUMMY, 401)]
        {
            let own = App { secret: own.into(), ..app("foo-app") };
            test.services.directory.replace([own].into_iter().collect());
            let login = serde_json::json!({ "key": KEY, "secret": given });
            let request = TestRequest::post().uri("/console/login").set_json(login);
            let request = request.insert_header((HOST, "localhost"));
            let request = request.peer_addr(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
            let (answered, body) = test.call(request).await;
            assert_eq!(answered, status, "{given:?} {body}");
        }
    }
}
