//! The state machine of one connection: messages in, effects out.
//!
//! The rules follow section 5 of the protocol document, in its order of evaluation. The state
//! machine has no I/O, clock or task, so every rule can be tested as a table.

mod push;

use std::{borrow::Cow, net::IpAddr, sync::Arc, time::Duration};

use bytestring::ByteString;

use crate::{
    admission::{self, PlaceInApp, Standing},
    app::{
        AppId,
        refusals::{Attempt, Refused, Target},
    },
    broker::{
        Addressing, PublishError, TopicName,
        feed::{AttemptKind, RefusedAttempt},
        outbox::Ending,
        presence::Persona,
        recovery::Recovery,
        subscriber::{Disconnect, Frame, Joined, Place, SessionId, SubscribeError, Subscription},
    },
    metrics::labels::{self, JoinOutcome, Limit, RefusalReason, SessionKind, Transport},
    session::{
        self, CloseCode, Effect, Farewell, Patience, Received, Replay, bucket::Bucket, places::Full,
    },
};

use push::PushRefusal;

use super::{
    admission::{Admitted, ConnectCredentials, JoinRefusal, TokenJudge},
    farewell,
    joins::{EndedJoins, Join, Joins, PendingJoin},
    message::{ClientMessage, Label, Malformed, Outgoing, Ref, Version},
    presence::{self, Profile},
    recovery,
};

/// The rules of Phoenix's conversations.
#[derive(Debug)]
pub struct PhoenixRules {
    /// The rules that all protocols share.
    pub shared: Arc<admission::Rules>,
    /// Judges joins.
    pub judge: TokenJudge,
    /// The longest `ref`.
    pub ref_bytes_max: usize,
}

/// One client's side of the protocol.
pub struct PhoenixConversation {
    version: Version,
    transport: Transport,
    caller: Box<ConnectCredentials>,
    rules: Arc<PhoenixRules>,
    joins: Joins,
    pushed: Option<Box<Pushed>>,
    events: Bucket,
    join_tries: Bucket,
}

/// A publication or an update that the broker has not answered yet, with the parts of the reply
/// that a failure needs.
struct Pushed {
    topic: ByteString,
    join_ref: Ref,
    reference: Ref,
}

/// The event of heartbeats.
const HEARTBEAT: &str = "heartbeat";

/// The longest message that is checked for a heartbeat before its turn; a client's heartbeat has
/// about 50 bytes.
const HEARTBEAT_BYTES_MAX: usize = 512;

const OK: &str = r#"{"status":"ok","response":{}}"#;
const JOINED: &str = r#"{"status":"ok","response":{"message":"Joined"}}"#;
const CHANNEL_CRASH: &str = r#"{"reason":"channel_crash"}"#;

impl PhoenixConversation {
    /// A conversation that has not begun.
    pub fn new(
        version: Version,
        transport: Transport,
        caller: ConnectCredentials,
        rules: Arc<PhoenixRules>,
    ) -> Self {
        let caller = Box::new(caller);
        Self {
            version,
            transport,
            caller,
            rules,
            joins: Joins::default(),
            pushed: None,
            events: Bucket::default(),
            join_tries: Bucket::default(),
        }
    }

    fn dispatch(&mut self, message: ClientMessage<'_>, now_s: f64) -> Vec<Effect> {
        let ClientMessage { join_ref, reference, topic, event, .. } = &message;
        let event = event.as_text();
        if message.is_heartbeat() {
            return vec![Effect::SendAhead(self.alive(&message))];
        }
        let open = topic.as_text().and_then(|topic| self.joins.position(topic));
        match (open, event) {
            (_, Some("phx_join")) => self.join(message, now_s),
            (None, Some("phx_leave")) => vec![self.reply(join_ref, reference, topic, OK)],
            (None, _) => {
                let refusal = error(&JoinRefusal::UnmatchedTopic.response());
                vec![self.reply(&Ref::null(), reference, topic, &refusal)]
            }
            // The message is ignored, and not answered with an error, because clients send
            // such messages while they rejoin.
            (Some(at), _) if !self.joins.at(at).is_meant_by(join_ref) => Vec::new(),
            (Some(at), Some("phx_leave")) => self.leave(at, reference),
            (Some(at), _) => self.push(at, &message, now_s),
        }
    }

    fn join(&mut self, message: ClientMessage<'_>, now_s: f64) -> Vec<Effect> {
        // The rate is checked first, so that a client which tries too often costs little.
        let is_in_time = self.join_tries.take(1, self.rules.shared.joins_max, now_s);
        let admitted = match is_in_time {
            true => self.admit(&message, now_s),
            false => Err(JoinRefusal::TooManyJoins),
        };
        let ClientMessage { join_ref, reference, topic, payload, .. } = message;
        match admitted {
            Ok((join, persona)) => {
                let wanted = recovery::wanted(&payload);
                let subscription = Subscription {
                    place: join.place(),
                    topic: join.topic.wire().clone(),
                    format: self.version.format(self.transport, wanted.is_some()),
                    persona,
                    user: join.user(),
                    wanted,
                };
                self.joins.ask(join, join_ref, reference);
                vec![Effect::Subscribe(subscription)]
            }
            Err(refusal) => {
                self.count(refusal, self.app_of(&topic));
                self.tell_consoles(AttemptKind::Join, refusal.outcome().as_str(), &topic);
                if let Some(reason) = refusal.reason() {
                    self.note_join(reason, &topic, now_s);
                }
                let join_ref = if refusal.is_unmatched() { Ref::null() } else { join_ref };
                let reply = self.reply(&join_ref, &reference, &topic, &error(&refusal.response()));
                let mut effects = vec![reply];
                // A client that joins again has given up its old join, whatever the outcome of the
                // new one.
                if let Some(old) = topic.as_text().and_then(|topic| self.joins.give_up(topic)) {
                    effects.push(self.given_up(&old));
                    effects.extend(self.joins.unsubscribe(&old));
                }
                effects
            }
        }
    }

    /// Judges a join. The result has a persona if the topic tracks its members.
    fn admit(
        &self,
        message: &ClientMessage<'_>,
        now_s: f64,
    ) -> Result<(Join, Option<Persona>), JoinRefusal> {
        let ClientMessage { join_ref, reference, topic, payload, .. } = message;
        let text = topic.as_text().ok_or(JoinRefusal::UnmatchedTopic)?;
        let mut name = TopicName::parse(text, &self.rules.judge.addressing)
            .map_err(|_| JoinRefusal::UnmatchedTopic)?;
        let apps = self.rules.shared.directory.load();
        let app = apps.by_slug(name.app.as_str()).ok_or(JoinRefusal::UnknownApp)?;
        if !app.settings.active {
            return Err(JoinRefusal::InactiveApp);
        }
        // All joins share this value, so that none has a copy of its own.
        name.app = app.slug.clone();
        if self.joins.position(text).is_none() && self.joins.len() >= self.rules.shared.channels_max
        {
            return Err(JoinRefusal::TooManyChannels);
        }
        let Admitted { mut footing, visitor } =
            self.rules.judge.admit(&self.caller, app, &name, payload, now_s)?;
        footing.credential = footing.credential.map(|grant| self.joins.shared(grant));
        let (profile, persona) = match visitor {
            Some(visitor) => {
                let (profile, persona) = Profile::of(visitor, now_s).map_err(JoinRefusal::Meta)?;
                (Some(profile), Some(persona))
            }
            None => (None, None),
        };
        let place_in_app = self.place_in(app.id)?;
        let join_ref = if join_ref.is_null() { reference } else { join_ref }.clone();
        Ok((Join { topic: name, join_ref, footing, place_in_app, profile }, persona))
    }

    /// The app that a topic names, if it exists.
    fn app_of(&self, topic: &Label<'_>) -> Option<AppId> {
        let name = TopicName::parse(topic.as_text()?, &self.rules.judge.addressing).ok()?;
        self.rules.shared.directory.load().by_slug(name.app.as_str()).map(|app| app.id)
    }

    /// This session's place among the sessions of an app: the one that it holds, or a new one.
    fn place_in(&self, app: AppId) -> Result<Arc<PlaceInApp>, JoinRefusal> {
        if let Some(place) = self.joins.place_in(app) {
            return Ok(place);
        }
        self.rules.shared.place_in(app).map_err(|Full| JoinRefusal::TooManySessions)
    }

    /// Counts a refused join, for the app if the topic names any.
    fn count(&self, refusal: JoinRefusal, app: Option<AppId>) {
        self.rules.shared.count_refused(refusal.outcome(), refusal.limit(), app);
    }

    /// Tells the consoles that watch the app of a refused join or push. `reason` is a label of the
    /// metrics.
    fn tell_consoles(&self, kind: AttemptKind, reason: &'static str, topic: &Label<'_>) {
        if !self.rules.shared.feed.is_watched() {
            return;
        }
        let Some(app) = self.app_of(topic) else { return };
        self.rules.shared.feed.refused(app, || RefusedAttempt {
            kind,
            topic: topic.as_text().map(Into::into),
            reason,
            address: self.caller.address,
        });
    }

    /// Logs a refused join.
    fn note_join(&self, reason: RefusalReason, topic: &Label<'_>, now_s: f64) {
        let Some(text) = topic.as_text() else { return };
        let addressing = &self.rules.judge.addressing;
        let Ok(name) = TopicName::parse(text, addressing) else { return };
        let app = match (reason, addressing) {
            (RefusalReason::UnknownApp | RefusalReason::InactiveApp, Addressing::SingleApp(_)) => {
                Target::Configured(&name.app)
            }
            (RefusalReason::UnknownApp, Addressing::ManyApps) => Target::Unknown(name.app.as_str()),
            _ => Target::App(&name.app),
        };
        self.note(reason, Attempt::Join(text), app, now_s);
    }

    fn note(&self, reason: RefusalReason, attempt: Attempt<'_>, app: Target<'_>, now_s: f64) {
        let address = self.caller.address;
        self.rules.shared.judge.refusals.note(&Refused { attempt, app, address, reason }, now_s);
    }

    /// Handles the broker's answer to a join. The join is judged once more, because the apps may
    /// have changed since the first time, and the change may have been announced before this
    /// session could receive it.
    fn settle(
        &mut self,
        settled: Box<PendingJoin>,
        old: Option<Join>,
        outcome: Result<Joined, JoinRefusal>,
    ) -> Vec<Effect> {
        let PendingJoin { mut join, join_ref, reference, .. } = *settled;
        let topic = Label::from(join.topic.as_str());
        let readmitted = outcome.and_then(|joined| {
            let apps = self.rules.shared.directory.load();
            let footing = self.rules.judge.readmit(&self.caller, &join.topic, &join.footing, &apps);
            Ok((footing.ok_or(JoinRefusal::AppChanged)?, joined))
        });
        let mut after = None;
        let mut effects = Vec::with_capacity(2);
        // If another app has taken over the slug since, the old place is not the new one.
        if let Some(left) = old.as_ref().filter(|left| left.footing.app != join.footing.app) {
            effects.extend(self.joins.unsubscribe(left));
        }
        match readmitted {
            Ok((footing, joined)) => {
                self.rules.shared.metrics.joins.of(JoinOutcome::Ok).inc();
                let replayed = joined.recovery.as_ref().map_or(0, |recovery| recovery.replayed);
                let usage = || self.rules.shared.metrics.usage.of(join.footing.app.0);
                join.place_in_app.connect(usage).joined(replayed as u64);
                join.footing = footing;
                let members = joined.members.map(|members| self.state(&join, &members));
                let reply = success(join.topic.scope.is_public(), joined.recovery.as_deref());
                effects.push(self.reply(&join_ref, &reference, &topic, &reply));
                let frames = joined.recovery.map(|recovery| recovery.frames).unwrap_or_default();
                // If nothing is replayed, the members are sent in the same write as the reply.
                after = match frames.is_empty() {
                    true => members.map(Effect::Send),
                    false => {
                        let (place, topic) = (join.place(), join.topic.wire().clone());
                        Some(Effect::Replay(Replay { place, topic, frames, members }))
                    }
                };
                self.joins.open(join);
                effects.extend(old.and_then(|old| self.replaced(&old)));
            }
            Err(refusal) => {
                self.count(refusal, Some(join.footing.app));
                self.tell_consoles(AttemptKind::Join, refusal.outcome().as_str(), &topic);
                effects.extend(self.joins.unsubscribe(&join));
                let refusal = error(&refusal.response());
                effects.push(self.reply(&join_ref, &reference, &topic, &refusal));
                effects.extend(old.map(|old| self.given_up(&old)));
            }
        }
        effects.extend(after);
        effects
    }

    /// The frame with the members of the joined channel.
    fn state(&self, join: &Join, members: &str) -> Frame {
        let (reference, topic) = (&Ref::null(), &Label::from(join.topic.as_str()));
        let (join_ref, event, payload) = (&join.join_ref, presence::STATE, members);
        self.version.encode(&Outgoing { join_ref, reference, topic, event, payload })
    }

    /// The message to the client about the join that its new join of the same topic replaced.
    ///
    /// In version 1 there is none, because its clients would take the close for that of the new join
    /// (decision 13.2 of the protocol document).
    fn replaced(&self, old: &Join) -> Option<Effect> {
        (self.version == Version::V2).then(|| self.end_of(old, "phx_close", "{}"))
    }

    /// The message to the client about the join that it has lost because its new join of the same topic was
    /// refused.
    ///
    /// A client of version 1 may still have a channel for the old join. With an error that channel joins again.
    /// Clients of 1.2 take the error for no other join. In clients before 1.2 all channels of the topic join again,
    /// which is less harm than a channel that never hears anything again.
    fn given_up(&self, old: &Join) -> Effect {
        match self.version {
            Version::V1 => self.end_of(old, "phx_error", CHANNEL_CRASH),
            Version::V2 => self.end_of(old, "phx_close", "{}"),
        }
    }

    fn leave(&mut self, at: usize, reference: &Ref) -> Vec<Effect> {
        let join = self.joins.leave(at);
        let topic = Label::from(join.topic.as_str());
        let left = self.joins.unsubscribe(&join);
        let reply = self.reply(&join.join_ref, reference, &topic, OK);
        left.into_iter().chain([reply, self.end_of(&join, "phx_close", "{}")]).collect()
    }

    fn push(&mut self, at: usize, message: &ClientMessage<'_>, now_s: f64) -> Vec<Effect> {
        let is_in_time = self.events.take(1, self.rules.shared.client_events_max, now_s);
        let join = self.joins.at(at);
        let (join_ref, reference) = (join.join_ref.clone(), message.reference.clone());
        let ordered = match is_in_time {
            true => self.ordered(join, message),
            false => Err(PushRefusal::TooMany),
        };
        match ordered {
            Ok(effect) => {
                let topic = join.topic.wire().clone();
                self.pushed = Some(Box::new(Pushed { topic, join_ref, reference }));
                vec![effect]
            }
            Err(refusal) => {
                if let Some(limit) = refusal.limit() {
                    self.rules.shared.metrics.hit(limit);
                }
                if let Some(reason) = refusal.label() {
                    self.tell_consoles(AttemptKind::Push, reason, &message.topic);
                }
                if let PushRefusal::NotPermitted(Some(reason)) = refusal {
                    let topic = &join.topic;
                    let attempt = Attempt::Push(topic.as_str());
                    self.note(reason, attempt, Target::App(&topic.app), now_s);
                }
                let refusal = error(&refusal.response());
                vec![self.reply(&join_ref, &reference, &message.topic, &refusal)]
            }
        }
    }

    /// Reports joins that have ended to the client and to the broker.
    fn end(&self, ended: Option<EndedJoins>) -> Vec<Effect> {
        let ended = match ended {
            None => return Vec::new(),
            Some(EndedJoins::Session) => {
                return vec![Effect::Close(CloseCode::GOING_AWAY.into())];
            }
            Some(EndedJoins::Joins(ended)) => ended,
        };
        let end = |join: &Join| {
            let end = self.end_of(join, "phx_error", CHANNEL_CRASH);
            self.joins.unsubscribe(join).into_iter().chain([end])
        };
        ended.iter().flat_map(end).collect()
    }

    /// The answer to a heartbeat.
    fn alive(&self, heartbeat: &ClientMessage<'_>) -> Frame {
        let ClientMessage { reference, topic, .. } = heartbeat;
        let join_ref = &Ref::null();
        let event = "phx_reply";
        self.version.encode(&Outgoing { join_ref, reference, topic, event, payload: OK })
    }

    fn reply(&self, join_ref: &Ref, reference: &Ref, topic: &Label<'_>, payload: &str) -> Effect {
        self.send(&Outgoing { join_ref, reference, topic, event: "phx_reply", payload })
    }

    /// The message that ends a join. Both refs name the join, so that no client takes the message for the end of
    /// another join.
    fn end_of(&self, join: &Join, event: &str, payload: &str) -> Effect {
        let (join_ref, topic) = (&join.join_ref, &Label::from(join.topic.as_str()));
        self.send(&Outgoing { join_ref, reference: join_ref, topic, event, payload })
    }

    fn send(&self, outgoing: &Outgoing<'_>) -> Effect {
        let frame: Frame = self.version.encode(outgoing);
        Effect::Send(frame)
    }
}

impl session::Conversation for PhoenixConversation {
    /// Returns nothing, because Phoenix's clients send the first message.
    fn begun(&mut self, _session: SessionId, _now_s: f64) -> Vec<Effect> {
        Vec::new()
    }

    fn received(&mut self, message: Received, now_s: f64) -> Vec<Effect> {
        match self.version.decode(&message, self.rules.ref_bytes_max) {
            Ok(message) => self.dispatch(message, now_s),
            Err(malformed) => {
                if malformed == Malformed::Ref {
                    self.rules.shared.metrics.hit(Limit::RefBytes);
                }
                vec![Effect::Close(CloseCode::INTERNAL.into())]
            }
        }
    }

    /// Handles heartbeats only: they concern no topic, and clients give up on a server that does
    /// not answer them (section 7 of the protocol document, on head-of-line blocking).
    fn meanwhile(&self, message: &Received) -> Option<Frame> {
        if !may_be_heartbeat(message) {
            return None;
        }
        let message = self.version.decode(message, self.rules.ref_bytes_max).ok()?;
        message.is_heartbeat().then(|| self.alive(&message))
    }

    fn subscribed(&mut self, outcome: Result<Joined, SubscribeError>, _now_s: f64) -> Vec<Effect> {
        let Some((settled, replaced)) = self.joins.settle() else { return Vec::new() };
        let outcome = match settled.is_disconnected {
            true => Err(JoinRefusal::Disconnected),
            false => outcome.map_err(JoinRefusal::from),
        };
        self.settle(settled, replaced, outcome)
    }

    fn answered(&mut self, outcome: Result<(), PublishError>, _now_s: f64) -> Vec<Effect> {
        match (self.pushed.take(), outcome) {
            (Some(pushed), Err(_)) => {
                let Pushed { topic, join_ref, reference } = &*pushed;
                let refusal = error(&JoinRefusal::Unavailable.response());
                vec![self.reply(join_ref, reference, &Label::from(&**topic), &refusal)]
            }
            // A success has no reply: the clients of the specification's articles rely on that.
            _ => Vec::new(),
        }
    }

    fn app_changed(&mut self, app: AppId, _now_s: f64) -> Vec<Effect> {
        let apps = self.rules.shared.directory.load();
        let ended = self.joins.review(app, |Join { topic, footing, .. }| {
            let standing = self.rules.judge.review(&self.caller, topic, footing, &apps);
            if standing == Some(Standing::WithoutCredential) {
                footing.credential = None;
            }
            standing.is_some()
        });
        self.end(ended)
    }

    fn disconnected(&mut self, disconnect: &Disconnect) -> (Vec<Effect>, usize) {
        let (ended, count) = self.joins.disconnect(disconnect);
        (self.end(ended), count)
    }

    /// Ends only the joins of this place, even if the session has no others, because a client that keeps its
    /// connection rejoins sooner.
    fn interrupted(&mut self, place: &Place) -> Vec<Effect> {
        let ended = self.joins.interrupt(place);
        self.end((!ended.is_empty()).then_some(EndedJoins::Joins(ended)))
    }

    fn address(&self) -> IpAddr {
        self.caller.address
    }

    /// Ends the session, because clients send heartbeats, so a silent one is gone.
    fn silent(&mut self, _lasted: Duration) -> Patience {
        Patience::End
    }

    fn farewell(&mut self, ending: Ending) -> Farewell {
        farewell::farewell(ending)
    }

    fn kind(&self) -> SessionKind {
        SessionKind {
            transport: self.transport,
            version: match self.version {
                Version::V1 => labels::ProtocolVersion::V1,
                Version::V2 => labels::ProtocolVersion::V2,
            },
        }
    }
}

/// Returns whether a message may be a heartbeat, so that it is parsed before its turn. If it is none, it is
/// parsed again in its turn.
fn may_be_heartbeat(message: &Received) -> bool {
    let bytes = match message {
        Received::Text(text) => text.as_bytes(),
        Received::Binary(bytes) => bytes,
    };
    let name = HEARTBEAT.as_bytes();
    bytes.len() <= HEARTBEAT_BYTES_MAX && bytes.windows(name.len()).any(|part| part == name)
}

impl ClientMessage<'_> {
    /// Returns whether the message is a heartbeat.
    fn is_heartbeat(&self) -> bool {
        self.topic.as_text() == Some("phoenix") && self.event.as_text() == Some(HEARTBEAT)
    }
}

impl From<SubscribeError> for JoinRefusal {
    fn from(refused: SubscribeError) -> Self {
        match refused {
            SubscribeError::TooManyScopes => Self::TooManyScopes,
            SubscribeError::TooManyMembers => Self::TooManyMembers,
            SubscribeError::Unavailable => Self::Unavailable,
        }
    }
}

/// The payload of the reply to a join that was granted.
fn success(is_public: bool, recovery: Option<&Recovery>) -> Cow<'static, str> {
    let Some(recovery) = recovery else {
        return Cow::Borrowed(if is_public { OK } else { JOINED });
    };
    let message = if is_public { "" } else { r#""message":"Joined","# };
    let recovery = recovery::described(recovery);
    Cow::Owned(format!(r#"{{"status":"ok","response":{{{message}{recovery}}}}}"#))
}

/// The payload of a reply with status `error`.
fn error(response: &str) -> String {
    format!(r#"{{"status":"error","response":{response}}}"#)
}

#[cfg(test)]
mod tests;
