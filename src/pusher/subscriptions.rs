//! The subscriptions of one connection. Pure: nothing here sends or asks.

use std::sync::Arc;

use bytestring::ByteString;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    admission::Footing,
    app::{App, key_pair::Pair},
    broker::{presence::Persona, recovery::Since, subscriber::Place},
};

use super::channel::Channel;

/// The pair that has signed a subscription or a user, as it was at that time.
pub(super) struct PusherSigner {
    key: String,
    secret: SecretString,
}

impl PusherSigner {
    /// Copies one of an app's pairs.
    pub(super) fn of(app: &App, pair: Pair) -> Arc<Self> {
        let (key, secret) = match (pair, &app.previous) {
            (Pair::Previous, Some(previous)) => (&previous.key, &previous.secret),
            _ => (&app.key, &app.secret),
        };
        Arc::new(Self { key: key.clone(), secret: secret.clone() })
    }

    /// Returns whether an app still has the pair.
    pub(super) fn is_of(&self, app: &App) -> bool {
        let found = app.pair_with_key(&self.key);
        found.is_some_and(|(_, secret)| secret.expose_secret() == self.secret.expose_secret())
    }

    /// Returns whether both are the same pair.
    fn is_same(&self, other: &Self) -> bool {
        self.key == other.key && self.secret.expose_secret() == other.secret.expose_secret()
    }
}

/// A channel that the connection is subscribed to.
pub(super) struct Subscribed {
    pub(super) channel: Channel,
    pub(super) footing: Footing<Arc<PusherSigner>>,
    /// The member that others see, on presence channels.
    pub(super) persona: Option<Box<Persona>>,
}

/// A subscription that the broker has not answered yet.
pub(super) struct PendingSubscription {
    pub(super) subscribed: Subscribed,
    /// The position after which the client requests the publications that it missed, if it does.
    pub(super) since: Option<Since>,
}

/// The subscriptions of one connection.
#[derive(Default)]
pub(super) struct Subscriptions {
    open: Vec<Subscribed>,
    pub(super) under_way: Option<Box<PendingSubscription>>,
}

impl Subscriptions {
    /// The number of subscriptions, without the pending one.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// The subscription to a channel, unless it is still pending.
    pub(super) fn get(&self, channel: &str) -> Option<&Subscribed> {
        self.open.iter().find(|subscribed| subscribed.channel.name() == channel)
    }

    /// All subscriptions except for the pending one.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Subscribed> {
        self.open.iter()
    }

    /// Adds a subscription.
    pub(super) fn open(&mut self, subscribed: Subscribed) {
        // One subscription is the common case, and an idle session should not reserve space for four.
        if self.open.is_empty() {
            self.open.reserve_exact(1);
        }
        self.open.push(subscribed);
    }

    /// Removes the subscription to a channel.
    pub(super) fn close(&mut self, channel: &str) -> Option<Subscribed> {
        let at = self.open.iter().position(|subscribed| subscribed.channel.name() == channel)?;
        Some(self.open.swap_remove(at))
    }

    /// The signer of an open subscription if it is the same pair as this one, or else this one.
    pub(super) fn shared(&self, signer: Arc<PusherSigner>) -> Arc<PusherSigner> {
        let mut held = self.open.iter().filter_map(|open| open.footing.credential.as_ref());
        held.find(|held| held.is_same(&signer)).cloned().unwrap_or(signer)
    }

    /// The number of subscriptions that `is_meant` selects, including the pending one.
    pub(super) fn count(&self, is_meant: impl Fn(&Subscribed) -> bool) -> usize {
        let under_way = self.under_way.iter().map(|under_way| &under_way.subscribed);
        self.open.iter().chain(under_way).filter(|subscribed| is_meant(subscribed)).count()
    }
}

impl Subscribed {
    /// The subscription's place in the broker.
    pub(super) fn place(&self) -> Place {
        self.channel.place(self.footing.app)
    }

    /// The topic under which the session receives its events.
    pub(super) fn topic(&self) -> ByteString {
        self.channel.name().into()
    }
}
