//! The handshake of Pusher's clients: accepts their WebSockets, or refuses them with a close code.
//!
//! It follows sections 2.1 to 2.4 of the document of Pusher's protocol. A refused client is upgraded
//! first and then closed with a code, because a browser does not tell a page why an upgrade was refused.

use std::sync::Arc;

use actix_web::http::{Method, StatusCode, header::SEC_WEBSOCKET_PROTOCOL};

use crate::{
    admission::{Entrance, NotAdmitted},
    app::AppId,
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
    version::PusherVersion,
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

impl PusherEndpoint {
    /// The part that follows `/app` in a path of this endpoint.
    fn below_app<'a>(&self, path: &'a str) -> Option<&'a str> {
        let rest = path.strip_prefix(&*self.path_prefix)?.strip_prefix(APP)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    }

    fn guest(&self, handshake: &Handshake<'_>, version: PusherVersion) -> Result<Guest, Close> {
        version.check()?;
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
        Ok(Guest { app, key: key.into(), version, origin, address, place, place_in_app })
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
        let closed_with = |close| {
            let last = version.ok().and_then(|version| version.error_before(close));
            Closing { subprotocol, last, close }
        };
        let guest = version.and_then(|version| self.guest(handshake, version));
        let guest = guest.map_err(|close| TurnedAway::Closed(closed_with(close)))?;
        let conversation = Box::new(PusherConversation::new(guest, self.rules.clone()));
        Ok(Welcome { conversation, subprotocol, when_full: Some(closed_with(closing::FULL)) })
    }
}

fn offers_subprotocol(handshake: &Handshake<'_>) -> bool {
    let offered = handshake.headers.get_all(SEC_WEBSOCKET_PROTOCOL);
    let mut offered =
        offered.filter_map(|line| line.to_str().ok()).flat_map(|line| line.split(','));
    offered.any(|offered| offered.trim() == SUBPROTOCOL)
}
