//! The state machine of one connection: messages in, effects out.
//!
//! The rules follow sections 5 to 9 of the document of Pusher's protocol. A connection belongs to one
//! app. Like the conversation of Phoenix, this state machine has no I/O, clock or task.

mod events;
mod signing_in;
mod subscribing;
#[cfg(test)]
mod tests;

use std::{mem, net::IpAddr, sync::Arc, time::Duration};

use serde_json::value::RawValue;

use crate::{
    admission::{self, PlaceInApp, Standing},
    app::{
        App, AppId, Apps,
        refusals::{Attempt, Refused, Target},
        subject::Subject,
    },
    broker::{
        JsonText, PublishError,
        outbox::Ending,
        subscriber::{Disconnect, Frame, Joined, SessionId, SubscribeError},
    },
    metrics::labels::{ProtocolVersion, RefusalReason, SessionKind, Transport},
    session::{
        self, Close, Effect, Farewell, Patience, Received, bucket::Bucket, places::HeldPlace,
        public_id::PublicIds,
    },
};

use super::{
    closing, frame, message::PusherMessage, subscriptions::Subscriptions, version::PusherVersion,
};
use signing_in::User;

/// The longest message that is checked for a ping before its turn; a client's ping has about 40 bytes.
const PING_BYTES_MAX: usize = 512;

/// The rules of Pusher's conversations.
pub struct PusherRules {
    /// The rules that all protocols share.
    pub shared: Arc<admission::Rules>,
    /// The public names of sessions, which are the socket ids.
    pub ids: PublicIds,
    /// The time for which a client may be silent before it is probed.
    pub activity_timeout: Duration,
    /// The time that a client may take to answer the probe.
    pub pong_timeout: Duration,
    /// The time that a client of an app with `authorized_only` may take to show a signature.
    pub authorization_timeout: Duration,
    /// The longest name of a channel.
    pub channel_bytes_max: usize,
}

/// A client as it connected.
pub struct Guest {
    /// The app.
    pub app: AppId,
    /// The key by which the client named the app.
    pub key: Box<str>,
    /// The version of the protocol that the client speaks.
    pub version: PusherVersion,
    /// The origin of the client's page; `None` if the client is not a browser.
    pub origin: Option<Box<str>>,
    /// The client's address, as the log shows it.
    pub address: IpAddr,
    /// The client's place among the sessions from its address.
    pub place: HeldPlace<IpAddr>,
    /// The client's place among the sessions of the app.
    pub place_in_app: Arc<PlaceInApp>,
}

/// One client's side of the protocol.
pub struct PusherConversation {
    rules: Arc<PusherRules>,
    guest: Box<Guest>,
    session: Option<SessionId>,
    subscriptions: Subscriptions,
    /// The user that the connection is signed in as.
    user: Option<Box<User>>,
    /// Whether the client has shown a signature.
    is_authorized: bool,
    /// The time since which the app wants a signature from the client, in Unix seconds; `None` if it wants none.
    wanted_since_s: Option<f64>,
    /// Whether [`reminded`](session::Conversation::reminded) will be called.
    is_reminder_set: bool,
    events: Bucket,
    join_tries: Bucket,
}

impl PusherConversation {
    /// A conversation that has not begun.
    pub fn new(guest: Guest, rules: Arc<PusherRules>) -> Self {
        Self {
            rules,
            guest: Box::new(guest),
            session: None,
            subscriptions: Subscriptions::default(),
            user: None,
            is_authorized: false,
            wanted_since_s: None,
            is_reminder_set: false,
            events: Bucket::default(),
            join_tries: Bucket::default(),
        }
    }

    fn socket_id(&self) -> String {
        self.session.map_or_else(String::new, |session| self.rules.ids.spell(session))
    }

    /// The app of the connection, as long as it allows the connection.
    ///
    /// # Errors
    /// How the connection is to be closed.
    fn app<'a>(&self, apps: &'a Apps) -> Result<&'a Arc<App>, Close> {
        let app = apps.by_id(self.guest.app).ok_or(closing::UNKNOWN_APP)?;
        if !app.settings.active || !app.settings.pusher {
            return Err(closing::DISABLED);
        }
        let judge = &self.rules.shared.judge;
        judge.check_origin(self.guest.origin.as_deref(), app).map_err(|_| closing::ORIGIN)?;
        // A client whose key is no longer valid must reconnect, and is then told that no app has the key.
        app.pair_with_key(&self.guest.key).ok_or(closing::AGAIN)?;
        Ok(app)
    }

    /// Judges the connection, its subscriptions and its user by the apps as of now.
    ///
    /// # Errors
    /// How the connection is to be closed.
    fn review(&self) -> Result<(), Close> {
        let apps = self.rules.shared.directory.load();
        let app = self.app(&apps)?;
        let origin = self.guest.origin.as_deref();
        let judge = &self.rules.shared.judge;
        let stands = self.subscriptions.iter().all(|subscribed| {
            let footing = &subscribed.footing;
            let standing =
                judge.review(origin, &app.slug, footing, &apps, |signer, app| signer.is_of(app));
            standing == Some(Standing::Whole)
        });
        let is_signed_in = self.user.as_ref().is_none_or(|user| user.signer.is_of(app));
        if stands && is_signed_in { Ok(()) } else { Err(closing::AGAIN) }
    }

    /// Returns whether the app wants a signature that the client has not shown yet.
    fn lacks_signature(&self) -> bool {
        let apps = self.rules.shared.directory.load();
        let is_wanted = |app: &Arc<App>| app.settings.authorized_only;
        !self.is_authorized && apps.by_id(self.guest.app).is_some_and(is_wanted)
    }

    /// The rest of the client's time to show a signature; `None` if the app wants none.
    fn time_left(&mut self, now_s: f64) -> Option<Duration> {
        if !self.lacks_signature() {
            self.wanted_since_s = None;
            return None;
        }
        // If the clock was set back, the time begins anew.
        let since_s = self.wanted_since_s.filter(|since_s| *since_s <= now_s).unwrap_or(now_s);
        self.wanted_since_s = Some(since_s);
        let passed = Duration::try_from_secs_f64(now_s - since_s).unwrap_or_default();
        Some(self.rules.authorization_timeout.saturating_sub(passed))
    }

    /// Starts the client's time to show a signature, if the app wants one and the time is not running yet.
    fn remind(&mut self, now_s: f64) -> Option<Effect> {
        let left = self.time_left(now_s)?;
        (!mem::replace(&mut self.is_reminder_set, true)).then_some(Effect::Remind(left))
    }

    /// Closes the connection.
    fn close(&self, close: Close) -> Vec<Effect> {
        let last = self.guest.version.error_before(close).map(Frame::Text);
        last.map(Effect::Send).into_iter().chain([Effect::Close(close)]).collect()
    }

    fn dispatch(&mut self, message: PusherMessage<'_>, now_s: f64) -> Vec<Effect> {
        match message {
            PusherMessage::Ping => vec![Effect::Send(frame::pong())],
            PusherMessage::Pong => Vec::new(),
            PusherMessage::Subscribe(ask) => self.subscribe(&ask, now_s),
            PusherMessage::Unsubscribe(channel) => self.unsubscribe(&channel),
            PusherMessage::SignIn(ask) => self.sign_in(&ask),
            PusherMessage::Event(event) => self.publish(&event, now_s),
        }
    }

    /// Logs that the client was refused something.
    fn note(&self, reason: RefusalReason, attempt: Attempt<'_>, now_s: f64) {
        let apps = self.rules.shared.directory.load();
        let Some(app) = apps.by_id(self.guest.app) else { return };
        let (app, address) = (Target::App(&app.slug), self.guest.address);
        let refused = Refused { attempt, app, address, reason };
        self.rules.shared.judge.refusals.note(&refused, now_s);
    }

    /// Returns whether `subject`, which is spelled like the `sub` of a token, is the user with this id. An id has no
    /// type: `10` is both the text and the number, because a `user_id` may be signed as either.
    fn is_subject(user: &str, subject: &Subject) -> bool {
        let is = |json: &str| {
            let raw: Option<&RawValue> = serde_json::from_str(json).ok();
            let raw = raw.filter(|raw| raw.get() == json);
            raw.is_some_and(|raw| Subject::of(raw).is_ok_and(|user| user == *subject))
        };
        let may_be_number = user.starts_with(|first: char| first == '-' || first.is_ascii_digit());
        is(JsonText::of_text(user).as_str()) || may_be_number && is(user)
    }
}

impl session::Conversation for PusherConversation {
    fn begun(&mut self, session: SessionId, now_s: f64) -> Vec<Effect> {
        self.session = Some(session);
        let (rules, app) = (&self.rules, self.guest.app);
        self.guest.place_in_app.connect(|| rules.shared.metrics.usage.of(app.0));
        // A fraction of a second is cut off, but zero is never sent, because clients reject it.
        let timeout_s = rules.activity_timeout.as_secs().max(1);
        let mut effects =
            vec![Effect::Send(frame::connection_established(&self.socket_id(), timeout_s))];
        effects.extend(self.remind(now_s));
        // The app may have changed since the handshake, before this session could be told.
        effects.extend(self.review().err().into_iter().flat_map(|close| self.close(close)));
        effects
    }

    fn received(&mut self, message: Received, now_s: f64) -> Vec<Effect> {
        let Received::Text(text) = message else { return self.close(closing::BINARY) };
        match PusherMessage::read(&text) {
            Ok(message) => self.dispatch(message, now_s),
            Err(fault) => vec![Effect::Send(frame::error(None, &fault.to_string()))],
        }
    }

    /// Handles pings only, because clients give up on a server that does not answer them.
    fn meanwhile(&self, message: &Received) -> Option<Frame> {
        let Received::Text(text) = message else { return None };
        let may_be_ping = text.len() <= PING_BYTES_MAX && text.contains("pusher:ping");
        let is_ping = may_be_ping && matches!(PusherMessage::read(text), Ok(PusherMessage::Ping));
        is_ping.then(frame::pong)
    }

    fn subscribed(&mut self, outcome: Result<Joined, SubscribeError>, _now_s: f64) -> Vec<Effect> {
        match self.subscriptions.under_way.take() {
            Some(under_way) => self.settle(*under_way, outcome),
            None => Vec::new(),
        }
    }

    fn answered(&mut self, outcome: Result<(), PublishError>, _now_s: f64) -> Vec<Effect> {
        match outcome {
            Ok(()) => Vec::new(),
            Err(_) => {
                let text = "the server cannot take the event now";
                vec![Effect::Send(frame::error(None, text))]
            }
        }
    }

    fn app_changed(&mut self, app: AppId, now_s: f64) -> Vec<Effect> {
        if app != self.guest.app {
            return Vec::new();
        }
        match self.review() {
            Ok(()) => self.remind(now_s).into_iter().collect(),
            Err(close) => self.close(close),
        }
    }

    /// Closes the connection if the disconnect selects any of its subscriptions, or its user. Except where the
    /// application terminates a user's connections, the client reconnects and is judged anew.
    fn disconnected(&mut self, disconnect: &Disconnect) -> (Vec<Effect>, usize) {
        let app = self.guest.app;
        let user = self.user.as_ref().map(|user| user.id.as_str());
        let (close, count) = match disconnect {
            _ if disconnect.app() != app => return (Vec::new(), 0),
            Disconnect::App(_) => (closing::AGAIN, self.subscriptions.count(|_| true).max(1)),
            Disconnect::Place(place) => (
                closing::AGAIN,
                self.subscriptions.count(|subscribed| subscribed.place() == *place),
            ),
            Disconnect::Subject { subject, .. } => {
                let is_meant = |key: Option<&str>| {
                    key.or(user).is_some_and(|key| Self::is_subject(key, subject))
                };
                let count = self.subscriptions.count(|subscribed| {
                    is_meant(subscribed.persona.as_ref().map(|persona| &*persona.key))
                });
                (closing::AGAIN, count.max(usize::from(is_meant(None))))
            }
            // A user of Pusher's protocol is a mere id, which has no fields to match.
            Disconnect::Members { .. } => return (Vec::new(), 0),
            Disconnect::User { user: meant, .. } => {
                (closing::TERMINATED, usize::from(user == Some(&**meant)))
            }
        };
        match count {
            0 => (Vec::new(), 0),
            _ => (self.close(close), count),
        }
    }

    fn silent(&mut self, lasted: Duration) -> Patience {
        match self.rules.activity_timeout.checked_sub(lasted).filter(|left| !left.is_zero()) {
            Some(left) => Patience::Wait(left),
            None => Patience::Probe(frame::ping(), self.rules.pong_timeout),
        }
    }

    fn silence_max(&self, idle_timeout: Duration) -> Duration {
        idle_timeout.max(self.rules.activity_timeout) + self.rules.pong_timeout
    }

    fn reminded(&mut self, now_s: f64) -> Vec<Effect> {
        self.is_reminder_set = false;
        match self.time_left(now_s) {
            None => Vec::new(),
            Some(Duration::ZERO) => self.close(closing::UNAUTHORIZED),
            // The app has switched the demand off and on again meanwhile.
            Some(_) => self.remind(now_s).into_iter().collect(),
        }
    }

    fn farewell(&mut self, ending: Ending) -> Farewell {
        let close = closing::of(ending);
        Farewell { last: self.guest.version.error_before(close).map(Frame::Text), close }
    }

    fn app(&self) -> Option<AppId> {
        Some(self.guest.app)
    }

    fn kind(&self) -> SessionKind {
        SessionKind { transport: Transport::WebSocket, version: ProtocolVersion::Pusher }
    }

    fn address(&self) -> IpAddr {
        self.guest.address
    }
}
