//! The handshake of Pusher's clients: accepts their WebSockets, or refuses them with a close code.
//!
//! It follows sections 2.1 to 2.4 of the document of Pusher's protocol. A refused client is upgraded
//! first and then closed with a code, because a browser does not tell a page why an upgrade was refused.

use std::sync::Arc;

use actix_web::http::{Method, StatusCode, header::SEC_WEBSOCKET_PROTOCOL};
use serde_json::Value;

use crate::{
    admission::{Entrance, NotAdmitted},
    app::AppId,
    form,
    metrics::labels::Limit,
    session::{
        self, Close,
        places::Full,
        upgrade::{Closing, Handshake, Protocol, TurnedAway, UpgradeRefusal, Welcome},
    },
};

use super::{
    closing,
    conversation::{Guest, PusherConversation, PusherRules},
    frame,
};

/// The subprotocol that some clients require.
const SUBPROTOCOL: &str = "pusher-channels-protocol-7";

/// The segment of the path before the key.
const APP: &str = "/app";

/// The socket endpoint of a server for Pusher's clients.
pub struct PusherEndpoint {
    /// The rules that all conversations of this endpoint share.
    pub rules: Arc<PusherRules>,
    /// Judges handshakes. All protocols share it, and the limits of connections with it.
    pub entrance: Arc<Entrance>,
    /// The path that precedes `/app`; `pusher.path_prefix`.
    pub path_prefix: String,
    /// Whether clients must say which version of the protocol they speak.
    pub strict_protocol: bool,
}

/// A version of the protocol. Versions differ in how a client is told that it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PusherVersion(u8);

impl PusherVersion {
    const LATEST: Self = Self(7);

    /// Reads the parameter `protocol`. A client without it counts as one of the latest version, unless the
    /// endpoint is strict.
    fn read(query: &str, is_strict: bool) -> Result<Self, Close> {
        let params = form::parse_query(query.as_bytes()).map_err(|_| closing::UNSUPPORTED)?;
        match params.get("protocol") {
            None if is_strict => Err(closing::NO_VERSION),
            None => Ok(Self::LATEST),
            Some(Value::String(text)) => match text.parse() {
                Ok(version @ 4..=7) => Ok(Self(version)),
                _ => Err(closing::UNSUPPORTED),
            },
            Some(_) => Err(closing::UNSUPPORTED),
        }
    }

    /// Returns whether a client is sent an error before it is closed.
    fn is_told_by_error(self) -> bool {
        self.0 < 6
    }
}

impl PusherEndpoint {
    /// The part that follows `/app` in a path of this endpoint.
    fn below_app<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(&*self.path_prefix)?.strip_prefix(APP)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    }

    fn guest(&self, handshake: &Handshake<'_>) -> Result<Guest, Close> {
        let origin = self.entrance.check(handshake).map_err(|refused| match refused {
            NotAdmitted::NotSecure => closing::NOT_SECURE,
            NotAdmitted::Origin => closing::ORIGIN,
        })?;
        let key = self.below_app(handshake.path).and_then(|rest| rest.strip_prefix('/'));
        let key = key.filter(|key| !key.is_empty() && !key.contains('/'));
        let key = key.ok_or(closing::NOT_FOUND)?;
        let app = self.app(key, origin)?;
        let address = self.entrance.client(handshake).address;
        let shared = &self.rules.shared;
        let place_in_app = shared.place_in(app).map_err(|Full| {
            shared.metrics.hit(Limit::SessionsPerApp);
            closing::OVER_QUOTA
        })?;
        let place = self.entrance.place(address).map_err(|Full| closing::FULL)?;
        let origin = origin.map(Entrance::kept);
        Ok(Guest { app, key: key.into(), origin, address, place, place_in_app })
    }

    /// The app with this key, if it takes Pusher's clients from pages of this origin.
    fn app(&self, key: &str, origin: Option<&str>) -> Result<AppId, Close> {
        let shared = &self.rules.shared;
        let apps = shared.directory.load();
        let app = apps.by_key(key).ok_or(closing::UNKNOWN_APP)?;
        if !app.settings.active || !app.settings.pusher {
            return Err(closing::DISABLED);
        }
        shared.judge.check_origin(origin, app).map_err(|_| closing::ORIGIN)?;
        Ok(app.id)
    }
}

impl Protocol for PusherEndpoint {
    fn is_socket(&self, path: &str) -> bool {
        self.below_app(path).is_some()
    }

    fn welcome(
        &self,
        handshake: &Handshake<'_>,
    ) -> Result<Welcome<Box<dyn session::Conversation>>, TurnedAway> {
        if handshake.method != Method::GET {
            return Err(UpgradeRefusal::silent(StatusCode::BAD_REQUEST).into());
        }
        let subprotocol = offers_subprotocol(handshake).then_some(SUBPROTOCOL);
        let version = PusherVersion::read(handshake.query, self.strict_protocol);
        let guest = version.and_then(|_| self.guest(handshake));
        let guest = guest.map_err(|close| {
            let is_told = version.is_ok_and(PusherVersion::is_told_by_error);
            let last = is_told.then(|| frame::error_text(Some(close.code.0), close.reason));
            TurnedAway::Closed(Closing { subprotocol, last, close })
        })?;
        let conversation = Box::new(PusherConversation::new(guest, self.rules.clone()));
        Ok(Welcome { conversation, subprotocol, when_full: Some(closing::FULL) })
    }
}

fn offers_subprotocol(handshake: &Handshake<'_>) -> bool {
    let offered = handshake.headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    let mut offered =
        offered.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    offered.any(|offered| offered.trim() == SUBPROTOCOL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p008_p009_p010_p011_p018_the_version_is_read_from_the_query() {
        for (query, is_strict, expected) in [
            ("protocol=7&client=js&version=8.6.0&flash=false", true, Ok(PusherVersion(7))),
            ("protocol=6", false, Ok(PusherVersion(6))),
            ("protocol=5", false, Ok(PusherVersion(5))),
            ("protocol=4", false, Ok(PusherVersion(4))),
            ("protocol=8", false, Err(closing::UNSUPPORTED)),
            ("protocol=3", false, Err(closing::UNSUPPORTED)),
            ("protocol=0", false, Err(closing::UNSUPPORTED)),
            ("protocol=-7", false, Err(closing::UNSUPPORTED)),
            ("protocol=abc", false, Err(closing::UNSUPPORTED)),
            ("protocol=", false, Err(closing::UNSUPPORTED)),
            ("protocol=7.0", false, Err(closing::UNSUPPORTED)),
            ("protocol=99999999999", false, Err(closing::UNSUPPORTED)),
            ("protocol[]=7", false, Err(closing::UNSUPPORTED)),
            ("x=%ff", false, Err(closing::UNSUPPORTED)),
            ("", false, Ok(PusherVersion(7))),
            ("client=js", true, Err(closing::NO_VERSION)),
        ] {
            assert_eq!(PusherVersion::read(query, is_strict), expected, "{query}");
        }
    }
}
