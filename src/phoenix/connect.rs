//! Accepts or refuses handshakes: the checks in Phoenix's order.
//!
//! It follows section 3.2 of the protocol document: method, query, origin, token, subprotocol, version. The
//! room `session` checks the upgrade itself last, so a handshake that fails a check here is refused with 403
//! even if it is not a valid upgrade.

use std::{net::IpAddr, sync::Arc};

use actix_web::http::{
    Method, StatusCode,
    header::{HeaderMap, SEC_WEBSOCKET_PROTOCOL},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use serde_json::{Map, Value};

use crate::{
    admission::{Entrance, NotAdmitted},
    app::{
        refusals::{Attempt, Refused, Target},
        token::{self, TokenPair},
    },
    form::{self, NotUtf8},
    metrics::labels::{Limit, RefusalReason, Transport},
    session::{
        body::BodyBudget,
        long_poll::LongPolls,
        places::{Full, HeldPlace},
        upgrade::{Handshake, UpgradeRefusal, Welcome},
    },
};

use super::{
    PhoenixConversation, PhoenixRules, admission::ConnectCredentials, message::Version,
    session_token::SessionTokens,
};

/// The paths of the sockets, as in the first and in the second of the two articles from which the project's
/// specification starts.
pub const MOUNTS: [&str; 2] = ["/socket", "/events"];

/// The subprotocol that clients with an `authToken` require.
const SUBPROTOCOL: &str = "phoenix";

/// The prefix of the token among the offered subprotocols. Despite its name, clients use the
/// standard alphabet; both alphabets are accepted.
const BEARER_PREFIX: &str = "base64url.bearer.phx.";

/// The socket endpoint of a server: the state that all its threads share for Phoenix's sockets.
pub struct Endpoint {
    /// The rules that its conversations share.
    pub rules: Arc<PhoenixRules>,
    /// Judges handshakes. All protocols share it.
    pub entrance: Arc<Entrance>,
    /// The long-poll sessions.
    pub long_polls: LongPolls,
    /// Signs the tokens of long-poll sessions.
    pub tokens: SessionTokens,
    /// The budget of request bodies.
    pub bodies: BodyBudget,
    /// The largest body of a long-poll request, in bytes.
    pub body_bytes_max: usize,
    /// The largest message in a body, in bytes.
    pub message_bytes_max: usize,
}

/// A handshake that passed the checks.
#[derive(Debug)]
pub struct Connect {
    /// The wire version that the client asked for.
    pub version: Version,
    /// The credentials that the client sent.
    pub caller: ConnectCredentials,
    /// The subprotocol to answer with.
    pub subprotocol: Option<&'static str>,
}

impl Endpoint {
    /// Judges a handshake.
    ///
    /// # Errors
    /// [`UpgradeRefusal`] with the status that Phoenix answers with.
    pub fn welcome(
        &self,
        handshake: &Handshake<'_>,
    ) -> Result<Welcome<PhoenixConversation>, UpgradeRefusal> {
        let Connect { version, mut caller, subprotocol } = self.check(handshake)?;
        caller.place = self.place(caller.address)?;
        let rules = self.rules.clone();
        let conversation = PhoenixConversation::new(version, Transport::WebSocket, caller, rules);
        Ok(Welcome { conversation, subprotocol, when_full: None })
    }

    /// Judges a request to a socket's URL as far as it can be judged without the upgrade itself.
    ///
    /// # Errors
    /// [`UpgradeRefusal`].
    pub fn check(&self, handshake: &Handshake<'_>) -> Result<Connect, UpgradeRefusal> {
        if !is_socket(handshake.path) {
            return Err(UpgradeRefusal::silent(StatusCode::NOT_FOUND));
        }
        if handshake.method != Method::GET {
            return Err(UpgradeRefusal::silent(StatusCode::BAD_REQUEST));
        }
        let (version, mut caller) = self.connect(handshake)?;
        let (bearer, subprotocol) = offered(handshake.headers).map_err(|unusable| {
            if unusable == Unusable::Token {
                self.note_unreadable_token(handshake, caller.address);
            }
            forbidden()
        })?;
        if let Some(token) = bearer {
            self.take_bearer(&mut caller, token);
        }
        Ok(Connect { version, caller, subprotocol })
    }

    /// Judges the credentials that a client sends over any transport: its origin and its params.
    ///
    /// # Errors
    /// [`UpgradeRefusal`].
    pub(super) fn connect(
        &self,
        handshake: &Handshake<'_>,
    ) -> Result<(Version, ConnectCredentials), UpgradeRefusal> {
        let params = params(handshake.query)?;
        let origin = self.check_origin(handshake)?;
        let version = match params.get("vsn") {
            None => Version::negotiate(None),
            Some(Value::String(vsn)) => Version::negotiate(Some(vsn)),
            Some(_) => None,
        };
        let version = version.ok_or_else(forbidden)?;
        // The session keeps these values for as long as it lives, because later joins are judged by
        // them.
        let origin = origin.map(Entrance::kept);
        let tokens = TokenPair::from_params(&params);
        for token in [&tokens.token, &tokens.csrf].into_iter().flatten() {
            self.note_length(token);
        }
        let tokens = tokens.bounded(self.rules.judge.token_bytes_max);
        let address = self.entrance.client(handshake).address;
        Ok((
            version,
            ConnectCredentials { origin, tokens, address, ..ConnectCredentials::default() },
        ))
    }

    /// Takes a place among the sessions from the same address.
    ///
    /// # Errors
    /// [`UpgradeRefusal`] if there are as many sessions as the limit allows.
    pub(super) fn place(&self, address: IpAddr) -> Result<HeldPlace<IpAddr>, UpgradeRefusal> {
        self.entrance.place(address).map_err(|Full| {
            let body = "too many sessions from this address".to_owned();
            UpgradeRefusal { status: StatusCode::TOO_MANY_REQUESTS, body }
        })
    }

    /// Logs a token that no join will ever see, because it cannot be decoded.
    fn note_unreadable_token(&self, handshake: &Handshake<'_>, address: IpAddr) {
        let (method, path) = (handshake.method.as_str(), handshake.path);
        let attempt = Attempt::Call { method, path, topic: None };
        let reason = RefusalReason::TokenMalformed;
        let refused = Refused { attempt, app: Target::Unnamed, address, reason };
        self.rules.shared.judge.refusals.note(&refused, token::now_s());
    }

    fn note_length(&self, token: &str) {
        if token.len() > self.rules.judge.token_bytes_max {
            self.rules.shared.metrics.hit(Limit::TokenBytes);
        }
    }

    /// Takes the token that came outside the params.
    pub(super) fn take_bearer(&self, caller: &mut ConnectCredentials, token: String) {
        self.note_length(&token);
        caller.keep_bearer(token, self.rules.judge.token_bytes_max);
    }

    /// The page's origin, if the global check allows it.
    ///
    /// # Errors
    /// [`UpgradeRefusal`].
    pub(super) fn check_origin<'a>(
        &self,
        handshake: &'a Handshake<'_>,
    ) -> Result<Option<&'a str>, UpgradeRefusal> {
        self.entrance.check(handshake).map_err(|refused| match refused {
            NotAdmitted::NotSecure => {
                let body = "this server takes connections over TLS only".to_owned();
                UpgradeRefusal { status: StatusCode::FORBIDDEN, body }
            }
            NotAdmitted::Origin => forbidden(),
        })
    }
}

/// Returns whether a path is that of a socket: `<mount>/websocket`, or the bare mount, which clients before 0.15
/// use. `session::path` has already dropped empty segments.
pub fn is_socket(path: &str) -> bool {
    MOUNTS.contains(&path.strip_suffix("/websocket").unwrap_or(path))
}

/// The params of a query string.
///
/// # Errors
/// [`UpgradeRefusal`] with 400 for a query that is not UTF-8, as in Plug.
pub(super) fn params(query: &str) -> Result<Map<String, Value>, UpgradeRefusal> {
    let not_text = |NotUtf8| UpgradeRefusal::silent(StatusCode::BAD_REQUEST);
    form::parse_query(query.as_bytes()).map_err(not_text)
}

fn forbidden() -> UpgradeRefusal {
    UpgradeRefusal::silent(StatusCode::FORBIDDEN)
}

/// The reason why a handshake is refused because of the subprotocols that it offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unusable {
    /// The token among the subprotocols cannot be decoded.
    Token,
    /// The server supports none of the subprotocols.
    Subprotocol,
}

/// Reads the offered subprotocols: the token, if there is exactly one, and the subprotocol to
/// answer with.
///
/// See section 3.5 of the protocol document. The entry with the token is never echoed.
fn offered(headers: &HeaderMap) -> Result<(Option<String>, Option<&'static str>), Unusable> {
    let mut offered: Vec<&str> = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .collect();
    let mut tokens = offered.iter().filter_map(|entry| entry.strip_prefix(BEARER_PREFIX));
    let bearer = match (tokens.next(), tokens.next()) {
        (Some(encoded), None) => {
            let token = decode_bearer(encoded).ok_or(Unusable::Token)?;
            offered.retain(|entry| !entry.starts_with(BEARER_PREFIX));
            Some(token)
        }
        _ => None,
    };
    match offered.as_slice() {
        [] => Ok((bearer, None)),
        entries if entries.contains(&SUBPROTOCOL) => Ok((bearer, Some(SUBPROTOCOL))),
        _ => Err(Unusable::Subprotocol),
    }
}

fn decode_bearer(encoded: &str) -> Option<String> {
    let encoded = encoded.trim_end_matches('=');
    let bytes = STANDARD_NO_PAD.decode(encoded).or_else(|_| URL_SAFE_NO_PAD.decode(encoded));
    String::from_utf8(bytes.ok()?).ok()
}
