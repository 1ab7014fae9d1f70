//! Authenticates the caller of a trigger: the web application by its key and secret or by a session
//! of the console, or the holder of a token.
//!
//! An unknown app, an inactive app and wrong credentials get the same answer after the same work,
//! so that a caller cannot find out which apps exist.

use std::{sync::Arc, time::Duration};

use actix_web::{
    HttpMessage, HttpRequest,
    http::header::{AUTHORIZATION, HeaderName},
    rt,
};
use secrecy::SecretString;

use super::{
    Services, basic,
    client::client_of,
    console::{
        live,
        session::{LoggedIn, Session},
    },
    error::ApiError,
};
use crate::{
    app::{
        App, AppId, ClientEvents, Slug,
        audit::Actor,
        key_pair::Pair,
        pair_digests::{PairDigests, TextDigest},
        refusals::{Attempt, Refused, Target},
        token::{self, Grant, SharedTokens, Signer, TokenError, TokenKeys, Verifier},
    },
    broker::{Addressing, Destination, Scope, idempotency::KeyOwner},
    metrics::labels::{Limit, RefusalReason},
    session::body::BudgetShare,
    settings::LimitSettings,
};

/// The secret that stands in for that of an unknown app when a token is verified; no token is accepted
/// with it.
const DUMMY: &str = "00000000-0000-0000-0000-000000000000";

/// The most apps whose keys are tried on a token before the request's body names the app.
const APPS_TRIED_MAX: usize = 32;

/// The answer to a change by the previous pair of a rotation.
pub(super) const PREVIOUS_PAIR: &str = "the previous key and secret do not permit this";

/// The header with the text that a page's token of `aud: "csrf"` is bound to.
static CSRF_TOKEN: HeaderName = HeaderName::from_static("x-csrf-token");

/// The way in which the web application itself authenticates for a trigger. In either case a token is
/// accepted, too.
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

/// The web application of an app, or the administrator in its place.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The app.
    pub app: Arc<App>,
    /// The pair that the credentials match. The administrator counts as the current pair.
    pub pair: Pair,
    /// The party that sends the request.
    pub actor: Actor,
}

impl Owner {
    fn app(app: Arc<App>, pair: Pair) -> Self {
        let actor = Actor::App(app.id);
        Self { app, pair, actor }
    }
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
            (None, _) if request.extensions().contains::<Session>() => Ok(credentials),
            _ => Err(credentials.refuse(services, None, RefusalReason::NoCredentials)),
        }
    }

    /// The same credentials for an event on this topic; the log names the topic if they are refused.
    pub fn on<'b>(self, topic: &'b str) -> Credentials<'b>
    where
        'a: 'b,
    {
        Credentials { topic: Some(topic), ..self }
    }

    /// Finds the app with this slug, if these credentials are valid for it.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`], whatever is wrong with the credentials of a header; for a session of the
    /// console also [`ApiError::Forbidden`] and [`ApiError::NotFound`].
    pub fn authenticate(
        &self,
        services: &Services,
        slug: &str,
        proof: Proof,
    ) -> Result<AuthenticatedApp, ApiError> {
        if let Some(session) = self.session().filter(|_| proof == Proof::KeyAndSecret) {
            let app = by_session(services, slug, &session)?.app;
            // The administrator sees every app, but an app that is not served takes no events.
            find_active(services, slug).map_err(|reason| match reason {
                RefusalReason::InactiveApp => ApiError::Forbidden("the app is inactive"),
                _ => ApiError::Forbidden("this server does not serve the app"),
            })?;
            return Ok(AuthenticatedApp { app, caller: Caller::Application });
        }
        let found = find_active(services, slug);
        let dummy = SecretString::from(DUMMY);
        let guardian_secret = services.settings.secrets.guardian_secret.as_ref();
        let keys = match &found {
            Ok(app) => TokenKeys::of(app, guardian_secret),
            Err(_) => {
                let shared = SharedTokens::refused(guardian_secret);
                TokenKeys { app: &dummy, previous: None, shared }
            }
        };
        let caller = if let Some(pair) = self.prove(proof, found.as_deref().ok()) {
            Ok((Caller::Application, Signer::App(pair)))
        } else {
            let token_bytes_max = services.settings.limits.token_bytes_max;
            let verifier = Verifier { keys, token_bytes_max, now_s: token::now_s() };
            let token = self.bearer().ok_or(RefusalReason::WrongCredentials);
            token.and_then(|token| {
                let grant = verifier.verify(token, self.csrf);
                let grant = grant.map_err(|error| note_length(services, error))?;
                let signer = grant.signer;
                Ok((Caller::Bearer(grant), signer))
            })
        };
        // Whether the app exists is checked only here: credentials that match the stand-in are
        // refused too.
        match (found, caller) {
            (Ok(app), Ok((caller, signer))) => {
                note_use(&app, signer);
                Ok(AuthenticatedApp { app, caller })
            }
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
    pub fn judge_before_body(&self, services: &Services) -> Result<BudgetShare, ApiError> {
        if let Addressing::SingleApp(only) = services.addressing() {
            let by = self.authenticate(services, only.as_str(), Proof::SecretAlone)?;
            return Ok(by.share());
        }
        let apps = services.directory.load();
        if apps.have_secret(self.authorization) {
            return Ok(BudgetShare::Whole);
        }
        let refuse = |reason| Err(self.refuse(services, None, reason));
        let Some(token) = self.bearer() else { return refuse(RefusalReason::WrongCredentials) };
        let token_bytes_max = services.settings.limits.token_bytes_max;
        let now_s = token::now_s();
        if let Err(error) = token::judge_unverified(token, token_bytes_max, now_s) {
            return refuse(note_length(services, error).into());
        }
        if apps.iter().len() > APPS_TRIED_MAX {
            return Ok(BudgetShare::Half);
        }
        let guardian_secret = services.settings.secrets.guardian_secret.as_ref();
        let verify = |app: &App, guardian_secret| {
            let keys = TokenKeys::of(app, guardian_secret);
            Verifier { keys, token_bytes_max, now_s }.verify(token, self.csrf)
        };
        let active = || apps.iter().filter(|app| app.settings.active);
        let mut error = TokenError::Forged;
        for app in active() {
            match verify(app, guardian_secret.filter(|_| app.settings.shared_tokens)) {
                Ok(grant) if grant.is_trigger => return Ok(BudgetShare::Whole),
                Ok(_) => return Ok(BudgetShare::Half),
                Err(TokenError::Forged) => {}
                // A key of this app signed the token, so this error is the most precise one.
                Err(other) => error = other,
            }
        }
        // The operator's key is the same for all apps, so it is tried once rather than with each
        // app.
        match active().next().map(|app| verify(app, guardian_secret)) {
            Some(Err(TokenError::NotShared)) => Ok(BudgetShare::Half),
            _ => refuse(error.into()),
        }
    }

    /// Judges the caller again, because the app may have changed since the first time. A key and
    /// secret that were right stay right as long as the app is the same one; a token may have
    /// expired.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`], whatever is wrong with the credentials of a header; for a session of the
    /// console also [`ApiError::Forbidden`] and [`ApiError::NotFound`].
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
    /// [`ApiError::Unauthorized`], whatever is wrong with the credentials of a header; for a session of the
    /// console also [`ApiError::Forbidden`] and [`ApiError::NotFound`].
    pub fn authenticate_application(
        &self,
        services: &Services,
        slug: &str,
    ) -> Result<Arc<App>, ApiError> {
        self.authenticate_owner(services, slug).map(|owner| owner.app)
    }

    /// Like [`Credentials::authenticate_application`], for what the previous pair of a rotation may
    /// not do: the holder of a secret that has leaked must neither get the new one nor change the
    /// app.
    ///
    /// # Errors
    /// Those of [`Credentials::authenticate_owner`]; [`ApiError::Forbidden`] to the previous pair.
    pub fn authenticate_current(&self, services: &Services, slug: &str) -> Result<Owner, ApiError> {
        match self.authenticate_owner(services, slug)? {
            owner if owner.pair == Pair::Current => Ok(owner),
            _ => Err(ApiError::Forbidden(PREVIOUS_PAIR)),
        }
    }

    /// Like [`Credentials::authenticate_application`], and says which of the app's pairs the
    /// credentials are.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`], whatever is wrong with the credentials of a header; for a session of the
    /// console also [`ApiError::Forbidden`] and [`ApiError::NotFound`].
    pub fn authenticate_owner(&self, services: &Services, slug: &str) -> Result<Owner, ApiError> {
        if let Some(session) = self.session() {
            return by_session(services, slug, &session);
        }
        let found = find_active(services, slug);
        let proved = self.prove(Proof::KeyAndSecret, found.as_deref().ok());
        let found = found.and_then(|app| match proved {
            Some(pair) => Ok((app, pair)),
            None => Err(RefusalReason::WrongCredentials),
        });
        let (app, pair) = found.map_err(|reason| self.refuse(services, Some(slug), reason))?;
        app.note_use(pair);
        Ok(Owner::app(app, pair))
    }

    /// The console's session, which stands in for the key and secret of a request without
    /// `Authorization`.
    fn session(&self) -> Option<Session> {
        match self.authorization {
            [] => self.request.extensions().get::<Session>().cloned(),
            _ => None,
        }
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
        note_refused_call(self.request, services, slug, self.topic, reason);
    }

    /// Which of the app's pairs these credentials are. The time reveals neither whether there is an app
    /// nor whether it has a previous pair.
    fn prove(&self, proof: Proof, app: Option<&App>) -> Option<Pair> {
        let pairs = app.map_or(&PairDigests::NONE, |app| &app.digests);
        match proof {
            Proof::KeyAndSecret => pairs.find_login(basic::login(self.request.headers())?),
            Proof::SecretAlone => pairs.find_secret(TextDigest::of(self.authorization)),
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
pub(super) fn find_active(services: &Services, slug: &str) -> Result<Arc<App>, RefusalReason> {
    let is_served = match services.addressing() {
        Addressing::ManyApps => true,
        Addressing::SingleApp(only) => only.as_str() == slug,
    };
    let apps = services.directory.load();
    // The reserved app takes no calls.
    match apps.by_slug(slug).filter(|app| is_served && app.id != AppId::CONSOLE) {
        Some(app) if app.settings.active => Ok(app.clone()),
        Some(_) => Err(RefusalReason::InactiveApp),
        None => Err(RefusalReason::UnknownApp),
    }
}

/// Finds an app for a session of the console: any app for the administrator, also one that is not served,
/// and for an app itself alone. The refusal is the same whether another app exists or not.
///
/// # Errors
/// [`ApiError::Forbidden`], [`ApiError::NotFound`], [`ApiError::Unauthorized`].
fn by_session(services: &Services, slug: &str, session: &Session) -> Result<Owner, ApiError> {
    match session.holder(services).ok_or(ApiError::Unauthorized)? {
        LoggedIn::App(own, _) if own.slug.as_str() != slug => {
            Err(ApiError::Forbidden("this login is for another app"))
        }
        LoggedIn::App(own, pair) => Ok(Owner::app(own, pair)),
        LoggedIn::Admin => {
            let apps = services.directory.load();
            let app = apps.by_slug(slug).filter(|app| app.id != AppId::CONSOLE);
            let app = app.cloned().ok_or(ApiError::NotFound)?;
            Ok(Owner { app, pair: Pair::Current, actor: Actor::Admin })
        }
    }
}

/// Records a use of the pair that authenticated a caller.
fn note_use(app: &App, signer: Signer) {
    match signer {
        Signer::App(pair) => app.note_use(pair),
        Signer::Operator => {}
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
    pub fn payload_bytes_max(&self, limits: &LimitSettings) -> usize {
        if self.is_client() {
            limits.client_event_bytes_max
        } else {
            limits.trigger_payload_bytes_max
        }
    }

    /// The share of the budget of bodies that this caller's requests may use.
    pub fn share(&self) -> BudgetShare {
        if self.is_client() { BudgetShare::Half } else { BudgetShare::Whole }
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

    /// Returns whether the app refuses all events from this caller, whatever its token says.
    fn takes_no_events(&self) -> bool {
        self.is_client() && self.app.settings.client_events == ClientEvents::None
    }

    /// Returns whether the caller counts as a client. A page's visitors hold tokens, so a token makes its
    /// caller a client, unless it is the web application's own.
    fn is_client(&self) -> bool {
        matches!(&self.caller, Caller::Bearer(grant) if !grant.is_trigger)
    }
}

/// Logs a refused call, and reports it to the consoles that watch its app. A separate task does so, because the
/// response time must not reveal whether a line is logged.
pub(in crate::http) fn note_refused_call(
    request: &HttpRequest,
    services: &Services,
    slug: Option<&str>,
    topic: Option<&str>,
    reason: RefusalReason,
) {
    let address = client_of(request, &services.settings.server).address;
    let refusals = services.refusals.clone();
    let watched = live::Watchers::of(services);
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let [slug, topic] = [slug, topic].map(|text| text.map(str::to_owned));
    rt::spawn(async move {
        let known = slug.as_deref().and_then(Slug::parse);
        let app = match (&known, &slug) {
            (Some(known), _) if reason != RefusalReason::UnknownApp => Target::App(known),
            (_, Some(slug)) => Target::Unknown(slug),
            (_, None) => Target::Unnamed,
        };
        let (method, path, topic) = (method.as_str(), uri.path(), topic.as_deref());
        let attempt = Attempt::Call { method, path, topic };
        let refused = Refused { attempt, app, address, reason };
        refusals.note(&refused, token::now_s());
        if let Some(watchers) = watched {
            watchers.tell_refused_call(&refused);
        }
    });
}

#[cfg(test)]
mod tests;
