//! Authenticates the caller of a trigger: the web application by its key and secret, or the holder
//! of a token.
//!
//! An unknown app, an inactive app and wrong credentials get the same answer after the same work,
//! so that a caller cannot find out which apps exist.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpRequest,
    http::header::{AUTHORIZATION, HeaderName},
    rt,
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    Services,
    basic::{BasicCredentials, is_equal},
    client::client_of,
    error::ApiError,
};
use crate::{
    app::{
        App, ClientEvents, Slug,
        refusals::{Attempt, Refused, Target},
        token::{self, Grant, Keys, Shared, TokenError, Verifier},
    },
    broker::{Addressing, Destination, Scope, idempotency::KeyOwner},
    metrics::labels::{Limit, RefusalReason},
    session::body::Share,
    settings::Limits,
};

/// The credentials that stand in for those of an unknown app; no request can match them.
const DUMMY: &str = "00000000-0000-0000-0000-000000000000";

/// The most apps whose keys are tried on a token before the request's body names the app.
const APPS_TRIED_MAX: usize = 32;

/// The binding of a page's token.
static CSRF_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");

/// How the web application itself authenticates; a token is accepted everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// HTTP Basic: the key as user name, the secret as password.
    KeyAndSecret,
    /// The secret as the whole `Authorization` header.
    SecretAlone,
}

/// The authenticated caller of a trigger.
#[derive(Debug, Clone)]
pub enum Caller {
    /// The web application.
    Application,
    /// The holder of a token: a page's visitor, or the web application if the token says so.
    Bearer(Grant),
}

/// An active app together with the caller that is authenticated for it.
#[derive(Debug, Clone)]
pub struct AuthenticatedApp {
    /// The app.
    pub app: Arc<App>,
    /// The caller.
    pub caller: Caller,
}

/// The credentials of a request, not yet judged.
///
/// A refusal is logged by a separate task: the response time must not reveal whether the log is due
/// for a line.
#[derive(Clone, Copy)]
pub struct Credentials<'a> {
    request: &'a HttpRequest,
    authorization: &'a [u8],
    csrf: Option<&'a str>,
    topic: Option<&'a str>,
}

impl<'a> Credentials<'a> {
    /// Takes the credentials out of a request's headers.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`] if there are none, or more than one.
    pub fn of(request: &'a HttpRequest, services: &Services) -> Result<Self, ApiError> {
        let headers = request.headers();
        let mut all = headers.get_all(AUTHORIZATION);
        let (authorization, others) = (all.next(), all.next());
        let csrf = headers.get(&CSRF_TOKEN).and_then(|value| value.to_str().ok());
        let bytes = authorization.map_or(&[][..], |authorization| authorization.as_bytes());
        let credentials = Self { request, authorization: bytes, csrf, topic: None };
        match (authorization, others) {
            (Some(_), None) => Ok(credentials),
            _ => Err(credentials.refuse(services, None, RefusalReason::NoCredentials)),
        }
    }

    /// The same credentials with their binding, which is known only now.
    pub fn on<'b>(self, topic: &'b str) -> Credentials<'b>
    where
        'a: 'b,
    {
        Credentials { topic: Some(topic), ..self }
    }

    /// Finds the app with this slug, if these credentials are valid for it.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`], whatever the cause.
    pub fn authenticate(
        &self,
        services: &Services,
        slug: &str,
        proof: Proof,
    ) -> Result<AuthenticatedApp, ApiError> {
        let found = find_active(services, slug);
        let dummy = SecretString::from(DUMMY);
        let guardian_secret = services.settings.secrets.guardian_secret.as_ref();
        let (key, keys) = match &found {
            Ok(app) => (app.key.as_str(), Keys::of(app, guardian_secret)),
            Err(_) => (DUMMY, Keys { app: &dummy, shared: Shared::refused(guardian_secret) }),
        };
        let caller = if self.prove(proof, key, keys.app) {
            Ok(Caller::Application)
        } else {
            let token_bytes_max = services.settings.limits.token_bytes_max;
            let verifier = Verifier { keys, token_bytes_max, now_s: token::now_s() };
            let token = self.bearer().ok_or(RefusalReason::WrongCredentials);
            token.and_then(|token| {
                let grant = verifier.verify(token, self.csrf);
                grant.map(Caller::Bearer).map_err(|error| note_length(services, error).into())
            })
        };
        // Whether the app exists is checked only here: credentials that match the stand-in are
        // refused too.
        match (found, caller) {
            (Ok(app), Ok(caller)) => Ok(AuthenticatedApp { app, caller }),
            (Err(reason), _) | (_, Err(reason)) => Err(self.refuse(services, Some(slug), reason)),
        }
    }

    /// Judges by the head alone when the body is going to name the app: whether these credentials
    /// can be right for any app at all, and how much of the budget of bodies the request may use. A
    /// caller that passes is still authenticated for the app that the body names.
    ///
    /// A token is verified with the keys of every app while there are few apps. With many apps,
    /// only its form is checked, and its body is bounded like that of an unauthenticated caller. A
    /// token that `GUARDIAN_SECRET` signed passes even where no app accepts it, because the refusal
    /// names the app.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`], whatever the cause.
    pub fn judge_before_body(&self, services: &Services) -> Result<Share, ApiError> {
        if let Addressing::SingleApp(only) = services.addressing() {
            let by = self.authenticate(services, only.as_str(), Proof::SecretAlone)?;
            return Ok(by.share());
        }
        let apps = services.directory.load();
        if apps.have_secret(self.authorization) {
            return Ok(Share::Whole);
        }
        let refuse = |reason| Err(self.refuse(services, None, reason));
        let Some(token) = self.bearer() else { return refuse(RefusalReason::WrongCredentials) };
        let token_bytes_max = services.settings.limits.token_bytes_max;
        let now_s = token::now_s();
        if let Err(error) = token::judge_unverified(token, token_bytes_max, now_s) {
            return refuse(note_length(services, error).into());
        }
        if apps.iter().len() > APPS_TRIED_MAX {
            return Ok(Share::Half);
        }
        let guardian_secret = services.settings.secrets.guardian_secret.as_ref();
        let verify = |app: &App, guardian_secret| {
            let keys = Keys::of(app, guardian_secret);
            Verifier { keys, token_bytes_max, now_s }.verify(token, self.csrf)
        };
        let active = || apps.iter().filter(|app| app.settings.active);
        let mut error = TokenError::Forged;
        for app in active() {
            match verify(app, guardian_secret.filter(|_| app.settings.shared_tokens)) {
                Ok(grant) if grant.is_trigger => return Ok(Share::Whole),
                Ok(_) => return Ok(Share::Half),
                Err(TokenError::Forged) => {}
                // A key of this app signed the token, so this error is the most precise one.
                Err(other) => error = other,
            }
        }
        // The operator's key is the same for all apps, so it is tried once rather than with each
        // app.
        match active().next().map(|app| verify(app, guardian_secret)) {
            Some(Err(TokenError::NotShared)) => Ok(Share::Half),
            _ => refuse(error.into()),
        }
    }

    /// Judges the caller again, because the app may have changed since the first time. A key and
    /// secret that were right stay right as long as the app is the same one; a token may have
    /// expired.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`], whatever the cause.
    pub fn authenticate_again(
        &self,
        services: &Services,
        slug: &str,
        proof: Proof,
        by: AuthenticatedApp,
    ) -> Result<AuthenticatedApp, ApiError> {
        let is_same = find_active(services, slug).is_ok_and(|app| Arc::ptr_eq(&app, &by.app));
        match by.caller {
            Caller::Application if is_same => Ok(by),
            _ => self.authenticate(services, slug, proof),
        }
    }

    /// Finds the app with this slug, if these are its key and secret; a token is not accepted.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`], whatever the cause.
    pub fn authenticate_application(
        &self,
        services: &Services,
        slug: &str,
    ) -> Result<Arc<App>, ApiError> {
        let found = find_active(services, slug);
        let dummy = SecretString::from(DUMMY);
        let (key, secret) = match &found {
            Ok(app) => (app.key.as_str(), &app.secret),
            Err(_) => (DUMMY, &dummy),
        };
        let is_proved = self.prove(Proof::KeyAndSecret, key, secret);
        let found = found.and_then(|app| match is_proved {
            true => Ok(app),
            false => Err(RefusalReason::WrongCredentials),
        });
        found.map_err(|reason| self.refuse(services, Some(slug), reason))
    }

    /// Logs an error which says that this caller lacks the right to its request.
    pub fn note_forbidden(&self, services: &Services, by: &AuthenticatedApp, error: &ApiError) {
        let reason = match error {
            ApiError::Forbidden(_) if by.takes_no_events() => RefusalReason::NoClientEvents,
            ApiError::Forbidden(_) => RefusalReason::PublishNotPermitted,
            _ => return,
        };
        self.note(services, Some(by.app.slug.as_str()), reason);
    }

    /// Logs a caller that is not authenticated.
    fn refuse(&self, services: &Services, slug: Option<&str>, reason: RefusalReason) -> ApiError {
        self.note(services, slug, reason);
        ApiError::Unauthorized
    }

    fn note(&self, services: &Services, slug: Option<&str>, reason: RefusalReason) {
        let address = client_of(self.request, &services.settings.server).address;
        let refusals = services.refusals.clone();
        let (method, uri) = (self.request.method().clone(), self.request.uri().clone());
        let [slug, topic] = [slug, self.topic].map(|text| text.map(str::to_owned));
        rt::spawn(async move {
            let known = slug.as_deref().and_then(Slug::parse);
            let app = match (&known, &slug) {
                (Some(known), _) if reason != RefusalReason::UnknownApp => Target::App(known),
                (_, Some(slug)) => Target::Unknown(slug),
                (_, None) => Target::Unnamed,
            };
            let (method, path, topic) = (method.as_str(), uri.path(), topic.as_deref());
            let attempt = Attempt::Call { method, path, topic };
            refusals.note(&Refused { attempt, app, address, reason }, token::now_s());
        });
    }

    fn prove(&self, proof: Proof, key: &str, secret: &SecretString) -> bool {
        let secret = secret.expose_secret();
        if secret.is_empty() {
            // The admin API creates no empty secret, but SQL can. An empty secret is known to
            // everybody, so it authenticates nobody.
            return false;
        }
        match proof {
            Proof::KeyAndSecret => BasicCredentials::of(self.request.headers())
                .is_some_and(|given| given.are(key, secret)),
            Proof::SecretAlone => is_equal(self.authorization, secret.as_bytes()).into(),
        }
    }

    /// The owner of the idempotency keys that this caller sends.
    pub fn key_owner<'b>(&'b self, by: &'b AuthenticatedApp) -> KeyOwner<'b> {
        let Caller::Bearer(grant) = &by.caller else { return KeyOwner::Application };
        match &grant.subject {
            subject if grant.is_trigger => KeyOwner::TriggerToken(subject.as_ref()),
            Some(subject) => KeyOwner::Visitor(subject),
            None => KeyOwner::Anonymous(self.bearer().unwrap_or_default().as_bytes()),
        }
    }

    /// The token, if the credentials are a token.
    fn bearer(&self) -> Option<&str> {
        let text = std::str::from_utf8(self.authorization).ok()?;
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }

    /// Counts this number of events of a caller that counts as a client: it may publish here as
    /// often as over its socket.
    ///
    /// # Errors
    /// [`ApiError::TooManyRequests`]; [`ApiError::Invalid`] for more events than the limit ever
    /// allows at once, because waiting does not help there.
    pub fn pace(
        &self,
        services: &Services,
        by: &AuthenticatedApp,
        events: usize,
    ) -> Result<(), ApiError> {
        let Some(token) = self.bearer().filter(|_| by.is_client()) else { return Ok(()) };
        if services.pace.take(token.as_bytes(), events, token::now_s()) {
            return Ok(());
        }
        services.metrics.hit(Limit::ClientEventsPerSecond);
        let at_once_max = services.settings.limits.client_events_per_second_max;
        if usize::try_from(at_once_max).is_ok_and(|max| events > max) {
            let fault = format!("must be at most {at_once_max} with a client's token");
            return Err(ApiError::invalid("events", fault));
        }
        Err(ApiError::TooManyRequests { retry_after: Duration::from_secs(1) })
    }
}

/// Finds an active app, or says why there is none. A server with a single app treats every other
/// app as unknown: its topics, and the rights to them, would be spelled like those of the single
/// app.
fn find_active(services: &Services, slug: &str) -> Result<Arc<App>, RefusalReason> {
    let is_served = match services.addressing() {
        Addressing::ManyApps => true,
        Addressing::SingleApp(only) => only.as_str() == slug,
    };
    let apps = services.directory.load();
    match apps.by_slug(slug).filter(|_| is_served) {
        Some(app) if app.settings.active => Ok(app.clone()),
        Some(_) => Err(RefusalReason::InactiveApp),
        None => Err(RefusalReason::UnknownApp),
    }
}

/// Counts a token that is too long.
fn note_length(services: &Services, error: TokenError) -> TokenError {
    if error == TokenError::TooLong {
        services.metrics.hit(Limit::TokenBytes);
    }
    error
}

impl AuthenticatedApp {
    /// The largest payload that this caller may send.
    pub fn payload_bytes_max(&self, limits: &Limits) -> usize {
        if self.is_client() {
            limits.client_event_bytes_max
        } else {
            limits.trigger_payload_bytes_max
        }
    }

    /// How much of the budget of bodies this caller's requests may use.
    pub fn share(&self) -> Share {
        if self.is_client() { Share::Half } else { Share::Whole }
    }

    /// The limit behind [`AuthenticatedApp::payload_bytes_max`], for the metrics.
    pub fn payload_limit(&self) -> Limit {
        if self.is_client() { Limit::ClientEventBytes } else { Limit::TriggerPayloadBytes }
    }

    /// Judges whether this caller may publish to a channel. The web application may publish to
    /// every channel; a token needs a `publish` pattern that matches the channel's topic or the
    /// topic of the whole scope.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`].
    pub fn permit(
        &self,
        scope: &Scope,
        destination: &Destination,
        addressing: &Addressing,
    ) -> Result<(), ApiError> {
        let Caller::Bearer(grant) = &self.caller else {
            return Ok(());
        };
        if self.takes_no_events() {
            return Err(ApiError::Forbidden("this app takes no client events"));
        }
        let channel = match destination {
            Destination::Channel(channel) => Some(channel),
            Destination::General => None,
        };
        if addressing.allow_publishing(&grant.publish, scope, &self.app.slug, channel) {
            return Ok(());
        }
        Err(ApiError::Forbidden("the token does not permit publishing there"))
    }

    /// Whether the app refuses all events from this caller, whatever its token says.
    fn takes_no_events(&self) -> bool {
        self.is_client() && self.app.settings.client_events == ClientEvents::None
    }

    /// Whether the caller counts as a client. A page's visitors hold tokens, so a token makes its
    /// caller a client, unless it is the web application's own.
    fn is_client(&self) -> bool {
        matches!(&self.caller, Caller::Bearer(grant) if !grant.is_trigger)
    }
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;
    use base64::{Engine, engine::general_purpose::STANDARD};
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        app::{settings::AppSettings, token::csrf_signature},
        http::testing::{GUARDIAN_SECRET, KEY, SECRET, TestServices, app, token_of},
    };

    /// The caller behind the credentials; `None` if they are not valid.
    fn judge(
        services: &TestServices,
        slug: &str,
        proof: Proof,
        headers: &[(&str, String)],
    ) -> Option<&'static str> {
        let mut request = TestRequest::default();
        for (name, value) in headers {
            request = request.append_header((*name, value.as_str()));
        }
        let request = request.to_http_request();
        let credentials = Credentials::of(&request, &services.services);
        let by = credentials.and_then(|c| c.authenticate(&services.services, slug, proof));
        match by {
            Ok(by) if by.is_client() => Some("client"),
            Ok(by) if matches!(by.caller, Caller::Bearer(_)) => Some("trigger token"),
            Ok(_) => Some("application"),
            Err(error) => {
                assert_eq!(error, ApiError::Unauthorized);
                None
            }
        }
    }

    fn authorization(value: impl Into<String>) -> Vec<(&'static str, String)> {
        vec![("Authorization", value.into())]
    }

    fn basic(pair: &str) -> Vec<(&'static str, String)> {
        authorization(format!("Basic {}", STANDARD.encode(pair)))
    }

    fn bearer(secret: &str, claims: &Value) -> Vec<(&'static str, String)> {
        authorization(format!("Bearer {}", token_of(secret, claims)))
    }

    #[actix_web::test]
    async fn the_web_application_comes_with_key_and_secret() {
        let services = TestServices::start().await;
        let good = format!("{KEY}:{SECRET}");
        for (case, slug, headers, expected) in [
            ("right", "foo-app", basic(&good), Some("application")),
            ("wrong secret", "foo-app", basic(&format!("{KEY}:x")), None),
            ("longer secret", "foo-app", basic(&format!("{good}x")), None),
            ("wrong key", "foo-app", basic(&format!("x:{SECRET}")), None),
            ("swapped", "foo-app", basic(&format!("{SECRET}:{KEY}")), None),
            ("no secret", "foo-app", basic(KEY), None),
            ("empty", "foo-app", basic(":"), None),
            ("an app without a secret", "careless-app", basic(&format!("{KEY}:")), None),
            ("no base64", "foo-app", authorization("Basic ???"), None),
            ("no scheme", "foo-app", authorization(good.clone()), None),
            ("secret alone", "foo-app", authorization(SECRET), None),
            ("nothing", "foo-app", vec![], None),
            ("twice", "foo-app", [basic(&good), basic(&good)].concat(), None),
            ("unknown app", "bar-app", basic(&good), None),
            ("unknown app, the dummy", "bar-app", basic(&format!("{DUMMY}:{DUMMY}")), None),
            ("inactive app", "idle-app", basic(&good), None),
            ("no app", "", basic(&good), None),
        ] {
            let by = judge(&services, slug, Proof::KeyAndSecret, &headers);
            assert_eq!(by, expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn an_endpoint_without_tokens_accepts_only_key_and_secret() {
        let services = TestServices::start().await;
        let good = format!("{KEY}:{SECRET}");
        let trigger = json!({ "aud": "trigger", "publish": ["*:*"] });
        for (case, slug, headers, expected) in [
            ("right", "foo-app", basic(&good), true),
            ("wrong secret", "foo-app", basic(&format!("{KEY}:x")), false),
            ("wrong key", "foo-app", basic(&format!("x:{SECRET}")), false),
            ("secret alone", "foo-app", authorization(SECRET), false),
            ("a token", "foo-app", bearer(SECRET, &json!({})), false),
            ("the web application's token", "foo-app", bearer(SECRET, &trigger), false),
            ("the operator's token", "shared-app", bearer(GUARDIAN_SECRET, &trigger), false),
            ("an app without a secret", "careless-app", basic(&format!("{KEY}:")), false),
            ("unknown app", "bar-app", basic(&good), false),
            ("unknown app, the dummy", "bar-app", basic(&format!("{DUMMY}:{DUMMY}")), false),
            ("inactive app", "idle-app", basic(&good), false),
        ] {
            let mut request = TestRequest::default();
            for (name, value) in headers {
                request = request.append_header((name, value));
            }
            let request = request.to_http_request();
            let credentials = Credentials::of(&request, &services.services).expect("one header");
            let app = credentials.authenticate_application(&services.services, slug);
            assert_eq!(
                app.map(|app| app.slug.to_string()).ok(),
                expected.then(|| slug.into()),
                "{case}"
            );
        }
    }

    #[actix_web::test]
    async fn the_web_application_comes_with_its_secret_alone() {
        let services = TestServices::start().await;
        for (case, slug, headers, expected) in [
            ("right", "foo-app", authorization(SECRET), Some("application")),
            ("an app without a secret", "careless-app", authorization(""), None),
            ("wrong", "foo-app", authorization("x"), None),
            ("a scheme before it", "foo-app", authorization(format!("Bearer {SECRET}")), None),
            ("key and secret", "foo-app", basic(&format!("{KEY}:{SECRET}")), None),
            ("empty", "foo-app", authorization(""), None),
            ("unknown app", "bar-app", authorization(SECRET), None),
            ("unknown app, the dummy", "bar-app", authorization(DUMMY), None),
            ("inactive app", "idle-app", authorization(SECRET), None),
        ] {
            let by = judge(&services, slug, Proof::SecretAlone, &headers);
            assert_eq!(by, expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn tokens_are_taken_everywhere() {
        let services = TestServices::start().await;
        let trigger = json!({ "aud": "trigger" });
        let s_csrf = csrf_signature(&SecretString::from(SECRET), "page");
        let csrf = json!({ "aud": "csrf", "s_csrf": s_csrf });
        let page = |token: &str| vec![("X-CSRF-Token", token.to_owned())];
        let lower = authorization(format!("bearer  {}", token_of(SECRET, &json!({}))));
        for (case, slug, headers, expected) in [
            ("a visitor's", "foo-app", bearer(SECRET, &json!({})), Some("client")),
            ("scheme in lower case", "foo-app", lower, Some("client")),
            ("the application's", "foo-app", bearer(SECRET, &trigger), Some("trigger token")),
            ("another key", "foo-app", bearer("another key", &trigger), None),
            ("expired", "foo-app", bearer(SECRET, &json!({ "exp": 1 })), None),
            ("not yet valid", "foo-app", bearer(SECRET, &json!({ "nbf": 1e12 })), None),
            ("shared key", "shared-app", bearer(GUARDIAN_SECRET, &json!({})), Some("client")),
            ("shared key not taken", "foo-app", bearer(GUARDIAN_SECRET, &json!({})), None),
            ("unknown app", "bar-app", bearer(SECRET, &json!({})), None),
            ("unknown app, the dummy", "bar-app", bearer(DUMMY, &json!({})), None),
            ("inactive app", "idle-app", bearer(SECRET, &json!({})), None),
            ("no token", "foo-app", authorization("Bearer "), None),
            ("too long", "foo-app", authorization(format!("Bearer {}", "x".repeat(9_000))), None),
            (
                "with its CSRF token",
                "foo-app",
                [bearer(SECRET, &csrf), page("page")].concat(),
                Some("client"),
            ),
            ("wrong CSRF", "foo-app", [bearer(SECRET, &csrf), page("other")].concat(), None),
            ("no CSRF token", "foo-app", bearer(SECRET, &csrf), None),
        ] {
            for proof in [Proof::KeyAndSecret, Proof::SecretAlone] {
                assert_eq!(judge(&services, slug, proof, &headers), expected, "{case} {proof:?}");
            }
        }
    }

    #[actix_web::test]
    async fn a_judgement_stands_while_the_app_is_the_same() {
        let services = TestServices::start().await;
        let services = &services.services;
        let of = |headers: Vec<(&'static str, String)>| {
            let request = TestRequest::default().insert_header(headers[0].clone());
            request.to_http_request()
        };
        let proof = Proof::KeyAndSecret;
        let request = of(basic(&format!("{KEY}:{SECRET}")));
        let application = Credentials::of(&request, services).expect("one header");
        let request = of(bearer(SECRET, &json!({})));
        let token = Credentials::of(&request, services).expect("one header");
        let request = of(bearer(SECRET, &json!({ "exp": 1 })));
        let late = Credentials::of(&request, services).expect("one header");
        let first = |credentials: &Credentials<'_>| {
            credentials.authenticate(services, "foo-app", proof).expect("a caller")
        };
        let again = |credentials: &Credentials<'_>, by| {
            credentials.authenticate_again(services, "foo-app", proof, by).is_ok()
        };
        assert!(again(&application, first(&application)));
        assert!(again(&token, first(&token)));
        assert!(!again(&late, first(&token)), "a token that has run out meanwhile");
        for (case, now, expected) in [
            ("changed otherwise", App { name: "Foo".into(), ..app("foo-app") }, true),
            ("another secret", App { secret: "another".into(), ..app("foo-app") }, false),
            (
                "inactive",
                App {
                    settings: AppSettings { active: false, ..AppSettings::default() },
                    ..app("foo-app")
                },
                false,
            ),
            ("gone", app("bar-app"), false),
        ] {
            services.directory.replace([app("foo-app")].into_iter().collect());
            let (by_application, by_token) = (first(&application), first(&token));
            services.directory.replace([now].into_iter().collect());
            assert_eq!(again(&application, by_application), expected, "{case}");
            assert_eq!(again(&token, by_token), expected, "{case}");
        }
    }

    #[actix_web::test]
    async fn with_a_single_app_the_others_are_unknown() {
        let services = TestServices::start_with(&[("HERALD__SINGLE_APP", "foo-app")]).await;
        for (slug, expected) in [("foo-app", Some("application")), ("open-app", None)] {
            let by = judge(&services, slug, Proof::SecretAlone, &authorization(SECRET));
            assert_eq!(by, expected, "{slug}");
        }
    }

    async fn permits(app: &str, claims: &Value, destination: &str, env: &[(&str, &str)]) -> bool {
        let services = TestServices::start_with(env).await;
        let request = TestRequest::default();
        let authorization = format!("Bearer {}", token_of(SECRET, claims));
        let request = request.insert_header((AUTHORIZATION, authorization)).to_http_request();
        let services = &services.services;
        let credentials = Credentials::of(&request, services).expect("credentials");
        let by = credentials.authenticate(services, app, Proof::KeyAndSecret).expect("a caller");
        let scope = Scope::parse("private").expect("a scope");
        let destination = Destination::parse(destination).expect("a destination");
        by.permit(&scope, &destination, &services.addressing()).is_ok()
    }

    #[actix_web::test]
    async fn a_token_publishes_where_a_pattern_covers_the_channel_or_the_scope() {
        for (pattern, destination, expected) in [
            ("private:foo-app:room", "room", true),
            ("private:foo-app:room", "other", false),
            ("private:foo-app:room", "#general", false),
            ("private:foo-app:*", "room", true),
            ("private:foo-app:*", "a:b", true),
            ("private:foo-app:*", "#general", false),
            ("private:foo-app", "#general", true),
            ("private:foo-app", "room", true),
            ("private:*", "#general", true),
            ("private:*", "room", true),
            ("private:bar-app", "room", false),
            ("public:*", "room", false),
            ("*", "room", false),
        ] {
            let claims = json!({ "publish": [pattern] });
            let permitted = permits("foo-app", &claims, destination, &[]).await;
            assert_eq!(permitted, expected, "{pattern} on {destination}");
        }
    }

    #[actix_web::test]
    async fn with_a_single_app_everyone_is_reached_by_a_right_to_the_scope() {
        for (pattern, destination, expected) in [
            ("private:room", "room", true),
            ("private:room", "#general", false),
            ("private:*", "room", true),
            ("private:*", "#general", true),
            ("private:foo-app", "room", true),
            ("private:foo-app", "#general", true),
            ("private:foo-app:room", "room", true),
            ("private:foo-app:room", "#general", false),
            ("private:foo-app:*", "room", true),
            ("private:foo-app:*", "#general", false),
            ("private:*:room", "room", false),
            ("private:#general", "room", false),
            ("public:*", "#general", false),
        ] {
            let claims = json!({ "publish": [pattern] });
            let env = [("HERALD__SINGLE_APP", "foo-app")];
            let permitted = permits("foo-app", &claims, destination, &env).await;
            assert_eq!(permitted, expected, "{pattern} on {destination}");
        }
    }

    #[actix_web::test]
    async fn an_app_without_client_events_accepts_those_of_its_own_application_only() {
        let everywhere = json!(["private:*"]);
        for (app, claims, expected) in [
            ("silent-app", json!({ "publish": everywhere }), false),
            ("silent-app", json!({ "publish": everywhere, "aud": "trigger" }), true),
            ("silent-app", json!({ "aud": "trigger" }), false),
            ("open-app", json!({ "publish": everywhere }), true),
            ("open-app", json!({}), false),
        ] {
            assert_eq!(permits(app, &claims, "room", &[]).await, expected, "{app} {claims}");
        }
    }
}
