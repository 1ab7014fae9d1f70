//! Decides by tokens which clients may join, and whether a join may continue after its app was changed.
//!
//! Pure: the inputs are the apps as of now, the client's credentials and the time.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use secrecy::SecretString;
use serde_json::{Map, Value, value::RawValue};

use crate::{
    admission::{self, OriginNotAllowed, Standing},
    app::{
        App, Apps,
        token::{self, Chosen, Grant, Signer, TokenError, TokenKeys, TokenPair, Verifier},
        visitor::Visitor,
    },
    broker::{Addressing, TopicName},
    metrics::labels::{JoinOutcome, Limit, RefusalReason},
    session::places::HeldPlace,
};

use super::{message::ClientPayload, presence::MetaFault};

/// The credentials that a client sent when it connected.
pub struct ConnectCredentials {
    /// The origin of the client's page; `None` if the client is not a browser.
    pub origin: Option<Box<str>>,
    /// Tokens among the connect params.
    pub tokens: TokenPair,
    /// A token in the subprotocol.
    pub bearer: Option<Box<str>>,
    /// The client's address, as the log shows it.
    pub address: IpAddr,
    /// The client's place among the sessions from its address.
    pub place: HeldPlace<IpAddr>,
}

/// A client without credentials or address.
impl Default for ConnectCredentials {
    fn default() -> Self {
        Self {
            origin: None,
            tokens: TokenPair::default(),
            bearer: None,
            address: Ipv4Addr::UNSPECIFIED.into(),
            place: HeldPlace::default(),
        }
    }
}

impl ConnectCredentials {
    /// Keeps the token that came outside the params, unless a token among them precedes it in every join.
    pub(super) fn keep_bearer(&mut self, token: String, token_bytes_max: usize) {
        if self.tokens.token.is_none() {
            self.bearer = Some(token::bounded(token.into_boxed_str(), token_bytes_max));
        }
    }
}

/// Shows which credentials are present, never their values.
impl fmt::Debug for ConnectCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectCredentials")
            .field("origin", &self.origin)
            .field("tokens", &self.tokens)
            .field("bearer", &self.bearer.as_ref().map(|_| "[REDACTED]"))
            .finish()
    }
}

/// The grounds of a join: the credential is the grant of its token.
pub type TokenFooting = admission::Footing<Arc<Grant>>;

/// A permitted join, with the visitor's identity where the topic tracks its members.
#[derive(Debug)]
pub struct Admitted {
    /// The grounds of the join.
    pub footing: TokenFooting,
    /// The visitor; present exactly on topics that track their members.
    pub visitor: Option<Visitor>,
}

/// The reason why a join is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinRefusal {
    /// The topic's name is not valid.
    UnmatchedTopic,
    /// There is no such app.
    UnknownApp,
    /// The app is inactive.
    InactiveApp,
    /// The session has joined as many topics as the limit allows.
    TooManyChannels,
    /// The app does not accept this page's origin.
    OriginNotAllowed,
    /// The scope needs a token, and none came.
    NoToken,
    /// The token does not permit the topic.
    NotPermitted,
    /// The token is not valid.
    Token(TokenError),
    /// The token does not name the member.
    Anonymous,
    /// The member's meta cannot be shown.
    Meta(MetaFault),
    /// The channel tracks as many members as the limit allows.
    TooManyMembers,
    /// The app has subscribers in as many scopes as the limit allows.
    TooManyScopes,
    /// The client exceeded the rate of joins.
    TooManyJoins,
    /// The app has as many sessions as the limit allows.
    TooManySessions,
    /// The app was changed before the join completed.
    AppChanged,
    /// The app ended the join before it completed.
    Disconnected,
    /// The broker did not answer in time.
    Unavailable,
}

impl JoinRefusal {
    /// The outcome that the metrics count.
    pub fn outcome(self) -> JoinOutcome {
        match self {
            Self::UnmatchedTopic => JoinOutcome::UnmatchedTopic,
            Self::UnknownApp => JoinOutcome::UnknownApp,
            Self::InactiveApp => JoinOutcome::InactiveApp,
            Self::TooManyChannels => JoinOutcome::TooManyChannels,
            Self::OriginNotAllowed => JoinOutcome::OriginNotAllowed,
            Self::NoToken => JoinOutcome::NoToken,
            Self::NotPermitted => JoinOutcome::NotPermitted,
            Self::Token(_) => JoinOutcome::BadToken,
            Self::Anonymous => JoinOutcome::Anonymous,
            Self::Meta(_) => JoinOutcome::BadPresence,
            Self::TooManyMembers => JoinOutcome::TooManyMembers,
            Self::TooManyScopes => JoinOutcome::TooManyScopes,
            Self::TooManyJoins => JoinOutcome::TooManyJoins,
            Self::TooManySessions => JoinOutcome::TooManySessions,
            Self::AppChanged => JoinOutcome::AppChanged,
            Self::Disconnected => JoinOutcome::Disconnected,
            Self::Unavailable => JoinOutcome::Unavailable,
        }
    }

    /// The limit that was exceeded, if the refusal is due to one.
    pub fn limit(self) -> Option<Limit> {
        match self {
            Self::TooManyChannels => Some(Limit::ChannelsPerTransport),
            Self::TooManyScopes => Some(Limit::ScopesPerApp),
            Self::TooManyJoins => Some(Limit::JoinsPerSecond),
            Self::TooManySessions => Some(Limit::SessionsPerApp),
            Self::Token(TokenError::TooLong) => Some(Limit::TokenBytes),
            _ => None,
        }
    }

    /// The reason for the metrics and the log, if the refusal concerns the client's rights. A
    /// refused origin is not among these reasons, because [`admission::Judge`] has logged it.
    pub fn reason(self) -> Option<RefusalReason> {
        match self {
            Self::UnknownApp => Some(RefusalReason::UnknownApp),
            Self::InactiveApp => Some(RefusalReason::InactiveApp),
            Self::NoToken => Some(RefusalReason::NoToken),
            Self::NotPermitted => Some(RefusalReason::NotPermitted),
            Self::Token(error) => Some(error.into()),
            _ => None,
        }
    }

    /// Returns whether no client at all can join the topic now.
    pub fn is_unmatched(self) -> bool {
        matches!(self, Self::UnmatchedTopic | Self::UnknownApp | Self::InactiveApp)
    }

    /// The reply's response, as JSON.
    pub fn response(self) -> String {
        match self {
            Self::UnmatchedTopic | Self::UnknownApp | Self::InactiveApp => {
                r#"{"reason":"unmatched topic"}"#.to_owned()
            }
            Self::TooManyChannels => r#"{"reason":"too many channels joined"}"#.to_owned(),
            Self::OriginNotAllowed => r#"{"reason":"origin not allowed"}"#.to_owned(),
            Self::NoToken | Self::NotPermitted => r#""authentication_required""#.to_owned(),
            Self::Token(error) => format!(r#"{{"error":"{}"}}"#, error.reason()),
            Self::Anonymous => {
                let bytes_max = Visitor::KEY_BYTES_MAX;
                format!(
                    r#"{{"reason":"presence needs a sub, id or email of at most {bytes_max} bytes"}}"#
                )
            }
            Self::Meta(fault) => format!(r#"{{"reason":"{}"}}"#, fault.reason()),
            Self::TooManyMembers => r#"{"reason":"presence channel full"}"#.to_owned(),
            Self::TooManyScopes => r#"{"reason":"too many scopes"}"#.to_owned(),
            Self::TooManyJoins => r#"{"reason":"too many joins"}"#.to_owned(),
            Self::TooManySessions => r#"{"reason":"too many sessions"}"#.to_owned(),
            Self::AppChanged => r#"{"reason":"app changed"}"#.to_owned(),
            Self::Disconnected => r#"{"reason":"disconnected"}"#.to_owned(),
            Self::Unavailable => r#"{"reason":"unavailable"}"#.to_owned(),
        }
    }
}

impl From<OriginNotAllowed> for JoinRefusal {
    fn from(OriginNotAllowed: OriginNotAllowed) -> Self {
        Self::OriginNotAllowed
    }
}

/// Judges joins by their tokens, and by the state of their apps.
#[derive(Debug)]
pub struct TokenJudge {
    /// The spelling of topics.
    pub addressing: Addressing,
    /// The operator's own key for tokens.
    pub guardian_secret: Option<SecretString>,
    /// The length limit of tokens.
    pub token_bytes_max: usize,
    /// The rules that concern no protocol.
    pub shared: Arc<admission::Rules>,
}

impl TokenJudge {
    /// Decides whether a caller may join `topic` of `app` with this join payload.
    ///
    /// # Errors
    /// [`JoinRefusal`].
    pub fn admit(
        &self,
        caller: &ConnectCredentials,
        app: &App,
        topic: &TopicName,
        payload: &ClientPayload<'_>,
        now_s: f64,
    ) -> Result<Admitted, JoinRefusal> {
        self.shared.judge.check_origin(caller.origin.as_deref(), app)?;
        let Chosen { pair, from_join_payload } =
            token::choose(tokens_of(payload), &caller.tokens, caller.bearer.as_deref());
        let needs_grant = from_join_payload || !topic.scope.is_public();
        let verifier =
            Verifier { keys: self.keys(app), token_bytes_max: self.token_bytes_max, now_s };
        let verify = |token: &str| verifier.verify(token, pair.csrf.as_deref());
        let mut grant = match pair.token.as_deref().map(verify).transpose() {
            Ok(grant) => grant,
            Err(error) if needs_grant => return Err(JoinRefusal::Token(error)),
            Err(_) => None,
        };
        if let Some(Grant { signer: Signer::App(pair), .. }) = &grant {
            app.note_use(*pair);
        }
        if !topic.scope.is_public() {
            let grant = grant.as_ref().ok_or(JoinRefusal::NoToken)?;
            let TopicName { scope, app: slug, channel, .. } = topic;
            if !self.addressing.allow(&grant.listen, scope, slug, channel.as_ref()) {
                return Err(JoinRefusal::NotPermitted);
            }
        }
        let visitor = grant.as_mut().and_then(|grant| grant.visitor.take());
        let visitor = match topic.is_tracked() {
            true => Some(visitor.ok_or(JoinRefusal::Anonymous)?),
            false => None,
        };
        let (credential, needs_credential) = (grant.map(Arc::new), needs_grant);
        let footing = TokenFooting { app: app.id, credential, needs_credential };
        Ok(Admitted { footing, visitor })
    }

    /// Judges a join again by the present apps; `None` if it must end. A grant whose key is no longer valid is
    /// removed, even if the join may continue without it.
    pub fn readmit(
        &self,
        caller: &ConnectCredentials,
        topic: &TopicName,
        footing: &TokenFooting,
        apps: &Apps,
    ) -> Option<TokenFooting> {
        let standing = self.review(caller, topic, footing, apps)?;
        Some(footing.clone().after(standing))
    }

    /// The part of a join's grounds that the apps as of now still support; `None` if the join must
    /// end.
    pub fn review(
        &self,
        caller: &ConnectCredentials,
        topic: &TopicName,
        footing: &TokenFooting,
        apps: &Apps,
    ) -> Option<Standing> {
        let origin = caller.origin.as_deref();
        let is_valid = |grant: &Arc<Grant>, app: &App| grant.is_signed_by(&self.keys(app));
        self.shared.judge.review(origin, &topic.app, footing, apps, is_valid)
    }

    fn keys<'a>(&'a self, app: &'a App) -> TokenKeys<'a> {
        TokenKeys::of(app, self.guardian_secret.as_ref())
    }
}

/// The tokens of a join payload, which may be any JSON and large.
fn tokens_of(payload: &ClientPayload<'_>) -> TokenPair {
    // A payload of bytes holds no token.
    let ClientPayload::Json(payload) = payload else { return TokenPair::default() };
    let Ok(fields) = serde_json::from_str::<BTreeMap<String, &RawValue>>(payload.get()) else {
        return TokenPair::default();
    };
    let mut params = Map::new();
    for name in ["guardian_token", "csrf_token"] {
        if let Some(raw) = fields.get(name) {
            // A value that is nested too deeply to be read counts as present, but is not a valid
            // token.
            let value = serde_json::from_str(raw.get()).unwrap_or(Value::Bool(false));
            params.insert(name.to_owned(), value);
        }
    }
    TokenPair::from_params(&params)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_keeps_one_token_from_its_handshake_and_none_that_is_too_long() {
        let kept = |token: Option<&str>, bearer: &str| {
            let tokens = TokenPair { token: token.map(Into::into), csrf: None };
            let mut caller = ConnectCredentials { tokens, ..ConnectCredentials::default() };
            caller.keep_bearer(bearer.to_owned(), 8);
            caller.bearer
        };
        for (token, bearer, expected) in [
            (None, "12345678", Some("12345678")),
            (None, "123456789", Some("?")),
            (Some("a.b.c"), "12345678", None),
        ] {
            assert_eq!(kept(token, bearer).as_deref(), expected, "{token:?} {bearer}");
        }
    }
}
