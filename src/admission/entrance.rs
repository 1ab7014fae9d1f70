//! The checks of a handshake that concern no protocol.

use std::{net::IpAddr, sync::Arc};

use actix_web::http::header::{HOST, ORIGIN};
use ipnet::IpNet;

use crate::{
    app::{
        origin::{Origin, OriginPolicy},
        refusals::{OriginSetting, Refusals},
    },
    metrics::{Metrics, labels::Limit},
    session::{
        client::{self, Client, PeerConnection},
        places::{Full, HeldPlace, Places},
        upgrade::Handshake,
    },
};

/// The most bytes of an origin that are kept. A longer one cannot be that of a page.
const ORIGIN_BYTES_MAX: usize = 1_024;

/// Judges the handshakes of a server's sockets.
#[derive(Debug)]
pub struct Entrance {
    /// The global origin check.
    pub check_origin: OriginPolicy,
    /// Proxies that are trusted to report the client's address and scheme.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether handshakes without TLS are refused.
    pub force_ssl: bool,
    /// The sessions from each address, and their maximum.
    pub addresses: Places<IpAddr>,
    /// The log of refusals.
    pub refusals: Arc<Refusals>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
}

/// The reason why a handshake is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdmitted {
    /// The handshake came without TLS.
    NotSecure,
    /// The server accepts no pages of this origin. The refusal has been logged.
    Origin,
}

impl Entrance {
    /// The client behind a handshake.
    pub fn client(&self, handshake: &Handshake<'_>) -> Client {
        let connection = PeerConnection { peer: handshake.peer.map(|p| p.ip()), is_tls: false };
        connection.client(handshake.headers, &self.trusted_proxies)
    }

    /// Checks that a client uses TLS if `force_ssl` is set, and the page's origin. Returns the origin.
    ///
    /// # Errors
    /// [`NotAdmitted`].
    pub fn check<'a>(&self, handshake: &'a Handshake<'_>) -> Result<Option<&'a str>, NotAdmitted> {
        let client = self.client(handshake);
        if self.force_ssl && !client.is_secure {
            return Err(NotAdmitted::NotSecure);
        }
        // A header that is not text counts as an unreadable origin, which every check refuses.
        let origin = handshake.headers.get(ORIGIN).map(|o| o.to_str().unwrap_or_default());
        let target = || {
            let host = handshake.headers.get(HOST).and_then(|host| host.to_str().ok());
            Origin::of(client.scheme(), host?)
        };
        if self.check_origin.allow(origin, target) {
            return Ok(origin);
        }
        let setting = OriginSetting::CheckOrigin(&self.check_origin);
        self.refusals.note_origin(origin.unwrap_or_default(), setting);
        Err(NotAdmitted::Origin)
    }

    /// The form in which a session keeps the origin of its page, by which its later joins are judged. An origin of
    /// more than 1,024 bytes becomes `?`.
    pub fn kept(origin: &str) -> Box<str> {
        match origin.len() {
            0..=ORIGIN_BYTES_MAX => Box::from(origin),
            _ => Box::from("?"),
        }
    }

    /// Takes a place among the sessions from the same address.
    ///
    /// # Errors
    /// [`Full`] if there are as many sessions as the limit allows; the refusal has been counted.
    pub fn place(&self, address: IpAddr) -> Result<HeldPlace<IpAddr>, Full> {
        let place = self.addresses.take(&client::block(address));
        place.inspect_err(|Full| self.metrics.hit(Limit::SessionsPerAddress))
    }
}
