//! The sessions of the console: how a cookie names one, and what ends it.
//!
//! The cookie holds random bytes and their signature by the server's key, so that a forged cookie
//! costs no query. The database holds a hash of these bytes, and a keyed hash of the credentials on
//! which the session rests. Every use compares the latter with the present credentials: a changed
//! password, a rotated or changed key, and a deactivated or deleted app end a session on each node as
//! soon as the node knows of them. A row is used for [`READ_AGE_MAX`] without being read again, so a
//! logout takes effect at once on its own node, and after that time on the others.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::http::header::{COOKIE, HeaderMap};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, SubsecRound, Utc};
use hmac::{Hmac, Mac};
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use crate::{
    app::{
        App,
        key_pair::{NewPair, Pair},
        store::{AppStore, StoreError, console::ConsoleSession},
    },
    http::{Services, auth::find_active, error::ApiError, tally::Tally},
    settings::Settings,
};

/// The cookie's name.
pub(super) const COOKIE_NAME: &str = "herald_console";

/// The time for which a session lasts.
pub(super) const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// The reason why a writing call with a cookie is refused.
pub(crate) const NO_EVIDENCE: &str =
    "writing calls with the console's cookie must come from a page of this server";

/// The time for which a row is used without being read again.
const READ_AGE_MAX: Duration = Duration::from_secs(1);

/// The most sessions whose [`SessionFacts`] are kept in memory.
const REMEMBERED_MAX: usize = 10_000;

/// The interval at which sessions that have expired are removed from the database.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Prefixes of what is signed, so that no signature is valid for another purpose.
const COOKIE_PURPOSE: &[u8] = b"herald console cookie";
const CREDENTIALS_PURPOSE: &[u8] = b"herald console credentials";

/// The party that has logged in.
#[derive(Debug, Clone)]
pub(crate) enum LoggedIn {
    /// The administrator.
    Admin,
    /// An app, which has logged in with this pair.
    App(Arc<App>, Pair),
}

/// A session that was found. Its credentials are checked anew at each use.
#[derive(Debug, Clone)]
pub(crate) struct Session(Arc<ConsoleSession>);

impl Session {
    /// The party that has logged in, unless its credentials have changed since.
    pub(crate) fn holder(&self, services: &Services) -> Option<LoggedIn> {
        services.console.holder(services, &self.0)
    }

    /// The time at which the session ends.
    pub(super) fn expires_at(&self) -> DateTime<Utc> {
        self.0.expires_at
    }

    /// The session's id. It is no secret: it is a hash, and does not yield the cookie.
    pub(super) fn id(&self) -> &str {
        &self.0.id
    }
}

/// The sessions of the console, with a cache of those used lately. Cheap to clone.
#[derive(Clone)]
pub struct LoginSessions {
    store: AppStore,
    key: SecretString,
    remembered: Arc<Mutex<Tally<String, SessionFacts>>>,
}

/// The cached facts about a session.
#[derive(Clone)]
enum SessionFacts {
    /// The row, and the time at which it was read.
    Read(Arc<ConsoleSession>, Instant),
    /// This server has ended the session. A row that a concurrent query has read before is not used.
    Ended,
}

impl LoginSessions {
    /// The sessions of this database, with cookies that the server's own key signs.
    pub fn new(store: AppStore, settings: &Settings) -> Self {
        let key = settings.secrets.secret_key_base.clone();
        Self { store, key, remembered: Arc::new(Mutex::new(Tally::new(REMEMBERED_MAX))) }
    }

    /// Begins a session for an app, which has proved one of its pairs, or for the administrator.
    /// Returns the cookie's value and the session.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`].
    pub(super) async fn begin(
        &self,
        settings: &Settings,
        login: Option<(&App, Pair)>,
    ) -> Result<(String, Session), ApiError> {
        let bytes = [*Uuid::new_v4().as_bytes(), *Uuid::new_v4().as_bytes()].concat();
        let rests_on = match login {
            Some((app, pair)) => self.rests_on_app(app, pair),
            None => Some(self.rests_on_admin(settings)),
        };
        let session = ConsoleSession {
            id: id_of(&bytes),
            app: login.map(|(app, _)| app.id),
            rests_on: rests_on.ok_or(ApiError::Unauthorized)?,
            expires_at: (Utc::now() + LIFETIME).trunc_subsecs(6),
        };
        self.store.add_console_session(&session).await.map_err(unavailable)?;
        let signature = self.sign(COOKIE_PURPOSE, &[&bytes]);
        let value = format!("{}.{signature}", URL_SAFE_NO_PAD.encode(&bytes));
        Ok((value, Session(Arc::new(session))))
    }

    /// Finds the session whose cookie a request has.
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] if the database does not answer.
    pub(crate) async fn find(
        &self,
        services: &Services,
        headers: &HeaderMap,
    ) -> Result<Option<Session>, ApiError> {
        if !services.settings.console.enabled {
            return Ok(None);
        }
        match cookie(headers).and_then(|value| self.read_cookie(value)) {
            Some(id) => self.find_by_id(services, id).await,
            None => Ok(None),
        }
    }

    async fn find_by_id(
        &self,
        services: &Services,
        id: String,
    ) -> Result<Option<Session>, ApiError> {
        match self.remembered(&id) {
            Some(SessionFacts::Read(row, at))
                if at.elapsed() < READ_AGE_MAX && self.is_valid(services, &row) =>
            {
                return Ok(Some(Session(row)));
            }
            Some(SessionFacts::Ended) => return Ok(None),
            // A session that has just changed its app's keys, in another tab or through another node, rests
            // on the new pair in the database, and on the old one in the cache.
            Some(SessionFacts::Read(..)) | None => {}
        }
        let row = self.store.console_session(&id).await.map_err(unavailable)?;
        let Some(row) = row.map(Arc::new) else { return Ok(None) };
        let is_valid = self.remember(id, &row) && self.is_valid(services, &row);
        Ok(is_valid.then_some(Session(row)))
    }

    fn is_valid(&self, services: &Services, session: &ConsoleSession) -> bool {
        session.expires_at > Utc::now() && self.holder(services, session).is_some()
    }

    /// Ends a session, here at once and on other nodes within [`READ_AGE_MAX`].
    ///
    /// # Errors
    /// [`ApiError::Unavailable`] if the database does not answer. The session may go on then.
    pub(super) async fn end(&self, session: &Session) -> Result<(), ApiError> {
        self.store.end_console_session(session.id()).await.map_err(unavailable)?;
        self.remembered.lock().insert(session.id().to_owned(), SessionFacts::Ended);
        Ok(())
    }

    /// Keeps a session that has itself just given this pair to its app: it rests on the pair from now on, and
    /// only the other sessions of the app end. If another party has changed the pair since, the session ends,
    /// too.
    pub(crate) async fn renew(&self, services: &Services, session: &Session, made: &NewPair) {
        let Some(id) = session.0.app else { return };
        let is_made = |app: &&Arc<App>| {
            let is_secret = app.secret.expose_secret() == made.secret.expose_secret();
            app.settings.active && app.key == made.key && is_secret
        };
        let app = services.directory.load().by_id(id).filter(is_made).cloned();
        let rests_on = app.and_then(|app| self.rests_on_app(&app, Pair::Current));
        let Some(rests_on) = rests_on else { return };
        if self.store.rest_console_session(session.id(), &rests_on).await.is_ok() {
            self.forget(session.id());
        }
    }

    /// The sessions among these that have ended, by their ids. While the database does not answer, they are
    /// those that have ended as far as this server remembers: they have expired, or their credentials have
    /// changed.
    pub(super) async fn ended_among(
        &self,
        services: &Services,
        ids: BTreeSet<String>,
    ) -> Vec<String> {
        let goes_on: HashSet<String> = match self.store.console_sessions(&ids).await {
            Ok(rows) => {
                // A session that the database no longer has must not go on with its cached row.
                ids.iter().for_each(|id| self.forget(id));
                let is_valid = |row: &Arc<ConsoleSession>| {
                    self.remember(row.id.clone(), row) && self.is_valid(services, row)
                };
                let rows = rows.into_iter().map(Arc::new).filter(is_valid);
                rows.map(|row| row.id.clone()).collect()
            }
            Err(error) => {
                log::debug!("the logins of the live feed cannot be read: {error}");
                let may_go_on = |id: &&String| match self.remembered(id) {
                    Some(SessionFacts::Read(row, _)) => self.is_valid(services, &row),
                    Some(SessionFacts::Ended) => false,
                    None => true,
                };
                ids.iter().filter(may_go_on).cloned().collect()
            }
        };
        ids.into_iter().filter(|id| !goes_on.contains(id)).collect()
    }

    /// Removes sessions that have expired, for as long as this runs.
    pub async fn keep_swept(self) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            if let Err(error) = self.store.sweep_console_sessions().await {
                log::warn!("cannot remove expired sessions of the console: {error}");
            }
        }
    }

    fn holder(&self, services: &Services, session: &ConsoleSession) -> Option<LoggedIn> {
        let is_it = |rests_on: String| -> bool {
            rests_on.as_bytes().ct_eq(session.rests_on.as_bytes()).into()
        };
        let Some(id) = session.app else {
            return is_it(self.rests_on_admin(&services.settings)).then_some(LoggedIn::Admin);
        };
        let slug = services.directory.load().by_id(id)?.slug.clone();
        let app = find_active(services, slug.as_str()).ok()?;
        let pairs = [Pair::Current, Pair::Previous];
        let rests_on = |pair: &Pair| self.rests_on_app(&app, *pair).is_some_and(is_it);
        pairs.into_iter().find(rests_on).map(|pair| LoggedIn::App(app, pair))
    }

    fn remembered(&self, id: &str) -> Option<SessionFacts> {
        self.remembered.lock().peek(id).cloned()
    }

    /// Caches a row. Returns `false` if this server has ended the session meanwhile.
    fn remember(&self, id: String, row: &Arc<ConsoleSession>) -> bool {
        let mut remembered = self.remembered.lock();
        if matches!(remembered.peek(&id), Some(SessionFacts::Ended)) {
            return false;
        }
        remembered.insert(id, SessionFacts::Read(row.clone(), Instant::now()));
        true
    }

    fn forget(&self, id: &str) {
        let mut remembered = self.remembered.lock();
        if !matches!(remembered.peek(id), Some(SessionFacts::Ended)) {
            remembered.remove(id);
        }
    }

    /// The session that a cookie names; `None` if this server did not make the cookie.
    fn read_cookie(&self, value: &str) -> Option<String> {
        let (bytes, signature) = value.split_once('.')?;
        let bytes = URL_SAFE_NO_PAD.decode(bytes).ok()?;
        let expected = self.sign(COOKIE_PURPOSE, &[&bytes]);
        let is_ours: bool = expected.as_bytes().ct_eq(signature.as_bytes()).into();
        is_ours.then(|| id_of(&bytes))
    }

    fn rests_on_admin(&self, settings: &Settings) -> String {
        let (user, password) = (&settings.admin.username, settings.admin.password.expose_secret());
        self.sign(CREDENTIALS_PURPOSE, &[b"admin", user.as_bytes(), password.as_bytes()])
    }

    /// The hash for a login with one of the app's pairs; `None` if there is no such pair. It covers the
    /// current pair in any case, so that a rotation ends all sessions that began before it.
    fn rests_on_app(&self, app: &App, pair: Pair) -> Option<String> {
        let previous = match pair {
            Pair::Current => None,
            Pair::Previous => Some(app.previous.as_ref().filter(|pair| !pair.is_over(Utc::now()))?),
        };
        let (key, secret) =
            previous.map_or(("", ""), |pair| (pair.key.as_str(), pair.secret.expose_secret()));
        let parts = [
            &b"app"[..],
            &app.id.0.to_be_bytes(),
            app.key.as_bytes(),
            app.secret.expose_secret().as_bytes(),
            key.as_bytes(),
            secret.as_bytes(),
        ];
        Some(self.sign(CREDENTIALS_PURPOSE, &parts))
    }

    fn sign(&self, purpose: &[u8], parts: &[&[u8]]) -> String {
        let key = self.key.expose_secret().as_bytes();
        let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(purpose);
        for part in parts {
            // Each part is preceded by its length, so that no two lists of parts yield the same bytes.
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())
    }
}

/// Returns whether a request has the console's cookie.
pub(crate) fn has_cookie(headers: &HeaderMap) -> bool {
    cookies(headers).next().is_some()
}

/// The value of the console's cookie; `None` if there are several. A site under the same parent domain
/// can set one of its own, and the server cannot tell which is which.
fn cookie(headers: &HeaderMap) -> Option<&str> {
    let mut all = cookies(headers);
    let (value, None) = (all.next()?, all.next()) else { return None };
    Some(value)
}

fn cookies(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(COOKIE).filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| name.trim() == COOKIE_NAME).map(|(_, value)| value.trim())
}

fn id_of(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(bytes))
}

fn unavailable(error: StoreError) -> ApiError {
    log::warn!("the console's sessions cannot be read or written: {error}");
    ApiError::Unavailable
}

#[cfg(test)]
mod tests;
