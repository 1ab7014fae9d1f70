//! The state machine of one connection: messages in, effects out.
//!
//! Section 5 of the protocol document, in its order of evaluation. There is no I/O, clock or task
//! here, so every rule is a table to test.

mod push;

use std::sync::Arc;

use crate::{
    app::{
        AppDirectory, AppId,
        refusals::{Attempt, Refused, Target},
        subject::Subject,
        token::Grant,
    },
    broker::{
        Addressing, TopicName,
        presence::Persona,
        subscriber::{Disconnect, Frame, Joined, Place, ScopeKey, Subscription},
    },
    metrics::{
        Metrics,
        labels::{self, JoinOutcome, Limit, RefusalReason, SessionKind},
    },
    session::{
        self, CloseCode, Effect, Failure, Received,
        bucket::{Bucket, PerSecond},
        places::{Full, Held, Places},
    },
};

use push::PushRefusal;

use super::{
    admission::{Admitted, Caller, Footing, JoinRefusal, Judge, Standing},
    message::{Label, Malformed, Message, Outgoing, Ref, Transport, Version},
    presence::{self, Profile},
};

/// The rules that all conversations of a server share.
#[derive(Debug)]
pub struct Rules {
    /// The apps.
    pub directory: AppDirectory,
    /// Who may join.
    pub judge: Judge,
    /// Topics joined at once.
    pub channels_max: usize,
    /// The longest `ref`.
    pub ref_bytes_max: usize,
    /// The largest payload of a client event.
    pub client_event_bytes_max: usize,
    /// Events that a client may publish.
    pub client_events_max: PerSecond,
    /// Joins that a client may try.
    pub joins_max: PerSecond,
    /// How many sessions an app may have.
    pub app_sessions: Places<AppId>,
    /// What counts.
    pub metrics: Arc<Metrics>,
}

/// One client's side of the protocol.
pub struct Conversation {
    version: Version,
    transport: Transport,
    caller: Box<Caller>,
    rules: Arc<Rules>,
    /// Few and small: most clients join one topic, none more than a hundred.
    joins: Vec<Join>,
    asked: Option<Box<Asked>>,
    events: Bucket,
    join_tries: Bucket,
}

/// A joined topic.
struct Join {
    topic: TopicName,
    /// What the client called this incarnation; its `ref` if it did not say (decision 13.10).
    join_ref: Ref,
    footing: Footing,
    /// The session's place among those of the app, shared by its joins.
    place_in_app: Arc<Held<AppId>>,
    /// What others see of it, where it is tracked.
    profile: Option<Box<Profile>>,
}

/// What the broker was asked for and has not answered yet.
enum Asked {
    /// A join, with the `join_ref` and `ref` of its message, and whether its app wants it ended
    /// meanwhile.
    Join { join: Join, join_ref: Ref, reference: Ref, is_disconnected: bool },
    /// A publication or an update, with what its reply needs if it fails.
    Push { topic: Label, join_ref: Ref, reference: Ref },
}

/// The event of heartbeats.
const HEARTBEAT: &str = "heartbeat";

/// The longest message that is looked into for a heartbeat before its turn; clients' have about 50.
const HEARTBEAT_BYTES_MAX: usize = 512;

const OK: &str = r#"{"status":"ok","response":{}}"#;
const JOINED: &str = r#"{"status":"ok","response":{"message":"Joined"}}"#;
const CHANNEL_CRASH: &str = r#"{"reason":"channel_crash"}"#;

impl Conversation {
    /// A conversation that has not begun.
    pub fn new(version: Version, transport: Transport, caller: Caller, rules: Arc<Rules>) -> Self {
        let caller = Box::new(caller);
        Self {
            version,
            transport,
            caller,
            rules,
            joins: Vec::new(),
            asked: None,
            events: Bucket::default(),
            join_tries: Bucket::default(),
        }
    }

    fn dispatch(&mut self, message: Message, now_s: f64) -> Vec<Effect> {
        let Message { join_ref, reference, topic, event, .. } = &message;
        let event = event.as_text();
        if message.is_heartbeat() {
            return vec![Effect::Send(self.alive(&message))];
        }
        match (self.joined(topic), event) {
            (_, Some("phx_join")) => self.join(&message, now_s),
            (None, Some("phx_leave")) => vec![self.reply(join_ref, reference, topic, OK)],
            (None, _) => {
                let refusal = error(&JoinRefusal::UnmatchedTopic.response());
                vec![self.reply(&Ref::null(), reference, topic, &refusal)]
            }
            // Silence, not an error: clients race their own rejoins.
            (Some(at), _) if !self.joins[at].is_meant_by(join_ref) => Vec::new(),
            (Some(at), Some("phx_leave")) => self.leave(at, reference),
            (Some(at), _) => self.push(at, &message, now_s),
        }
    }

    fn join(&mut self, message: &Message, now_s: f64) -> Vec<Effect> {
        let Message { join_ref, reference, topic, .. } = message;
        // Before anything is looked at: a client that tries too often is to cost little.
        let is_in_time = self.join_tries.take(1, self.rules.joins_max, now_s);
        let admitted = match is_in_time {
            true => self.admit(message, now_s),
            false => Err(JoinRefusal::TooManyJoins),
        };
        match admitted {
            Ok((join, persona)) => {
                let subscription = Subscription {
                    place: join.place(),
                    topic: join.topic.wire().clone(),
                    format: self.version.format(self.transport),
                    persona,
                };
                let (join_ref, reference) = (join_ref.clone(), reference.clone());
                let is_disconnected = false;
                let asked = Asked::Join { join, join_ref, reference, is_disconnected };
                self.asked = Some(Box::new(asked));
                vec![Effect::Subscribe(subscription)]
            }
            Err(refusal) => {
                self.count(refusal);
                if let Some(reason) = refusal.reason() {
                    self.note_join(reason, topic, now_s);
                }
                let join_ref = if refusal.is_unmatched() { &Ref::null() } else { join_ref };
                let reply = self.reply(join_ref, reference, topic, &error(&refusal.response()));
                let mut effects = vec![reply];
                // Who joins anew has given up what it had, whatever comes of it.
                if let Some(at) = self.joined(topic) {
                    let old = self.joins.swap_remove(at);
                    effects.extend(self.replaced(&old));
                    effects.extend(self.unsubscribe(&old));
                }
                effects
            }
        }
    }

    /// Judges a join; where it will be tracked it has a persona.
    fn admit(&self, message: &Message, now_s: f64) -> Result<(Join, Option<Persona>), JoinRefusal> {
        let Message { join_ref, reference, topic, payload, .. } = message;
        let text = topic.as_text().ok_or(JoinRefusal::UnmatchedTopic)?;
        let mut name = TopicName::parse(text, &self.rules.judge.addressing)
            .map_err(|_| JoinRefusal::UnmatchedTopic)?;
        let apps = self.rules.directory.load();
        let app = apps.by_slug(name.app.as_str()).ok_or(JoinRefusal::UnknownApp)?;
        if !app.settings.active {
            return Err(JoinRefusal::InactiveApp);
        }
        // The same for all who join, instead of a copy each.
        name.app = app.slug.clone();
        if self.joined(topic).is_none() && self.joins.len() >= self.rules.channels_max {
            return Err(JoinRefusal::TooManyChannels);
        }
        let Admitted { mut footing, visitor } =
            self.rules.judge.admit(&self.caller, app, &name, payload, now_s)?;
        footing.grant = footing.grant.map(|grant| self.shared(grant));
        let (profile, persona) = match visitor {
            Some(visitor) => {
                let (profile, persona) = Profile::of(visitor, now_s).map_err(JoinRefusal::Meta)?;
                (Some(Box::new(profile)), Some(persona))
            }
            None => (None, None),
        };
        let place_in_app = self.place_in(app.id)?;
        let join_ref = if join_ref.is_null() { reference } else { join_ref }.clone();
        Ok((Join { topic: name, join_ref, footing, place_in_app, profile }, persona))
    }

    /// A grant that this session has already and that says the same, or else this one. A token may
    /// have kilobytes of patterns; a session keeps them once, however many topics it joins with it.
    fn shared(&self, grant: Arc<Grant>) -> Arc<Grant> {
        let mut held = self.joins.iter().filter_map(|join| join.footing.grant.as_ref());
        held.find(|held| held.says_the_same_as(&grant)).cloned().unwrap_or(grant)
    }

    /// This session's place among those of an app: the one it has, or a new one.
    fn place_in(&self, app: AppId) -> Result<Arc<Held<AppId>>, JoinRefusal> {
        match self.joins.iter().find(|join| join.footing.app == app) {
            Some(join) => Ok(join.place_in_app.clone()),
            None => {
                let place = self.rules.app_sessions.take(&app);
                place.map(Arc::new).map_err(|Full| JoinRefusal::TooManySessions)
            }
        }
    }

    fn count(&self, refusal: JoinRefusal) {
        self.rules.metrics.joins.of(refusal.outcome()).inc();
        if let Some(limit) = refusal.limit() {
            self.rules.metrics.hit(limit);
        }
    }

    /// Leaves a trace of a join that is refused.
    fn note_join(&self, reason: RefusalReason, topic: &Label, now_s: f64) {
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
        self.rules.judge.refusals.note(&Refused { attempt, app, address, reason }, now_s);
    }

    /// A join's subscription was taken, or not. The apps may have changed since it was judged, and
    /// the change may have been announced before this session could hear of it: so it is judged
    /// once more.
    fn joined_or_not(
        &mut self,
        mut join: Join,
        (join_ref, reference): (&Ref, &Ref),
        outcome: Result<Joined, JoinRefusal>,
    ) -> Vec<Effect> {
        let topic = Label::from(join.topic.as_str());
        let old = self.joined(&topic).map(|at| self.joins.swap_remove(at));
        let readmitted = outcome.and_then(|joined| {
            let apps = self.rules.directory.load();
            let footing = self.rules.judge.readmit(&self.caller, &join.topic, &join.footing, &apps);
            Ok((footing.ok_or(JoinRefusal::AppChanged)?, joined.members))
        });
        let mut members = None;
        let mut effects = Vec::with_capacity(2);
        // The slug may have passed to another app since: then the old place is not the new one.
        if let Some(left) = old.as_ref().filter(|left| left.footing.app != join.footing.app) {
            effects.extend(self.unsubscribe(left));
        }
        match readmitted {
            Ok((footing, who_is_there)) => {
                self.rules.metrics.joins.of(JoinOutcome::Ok).inc();
                join.footing = footing;
                members = who_is_there.map(|members| self.state(&join, &members));
                let response = if join.topic.scope.is_public() { OK } else { JOINED };
                effects.push(self.reply(join_ref, reference, &topic, response));
                // One topic is the common case, and an idle session should not keep room for four.
                if self.joins.is_empty() {
                    self.joins.reserve_exact(1);
                }
                self.joins.push(join);
            }
            Err(refusal) => {
                self.count(refusal);
                effects.extend(self.unsubscribe(&join));
                let refusal = error(&refusal.response());
                effects.push(self.reply(join_ref, reference, &topic, &refusal));
            }
        }
        if let Some(old) = old {
            effects.extend(self.replaced(&old));
        }
        effects.extend(members);
        effects
    }

    /// The members of the channel that was joined.
    fn state(&self, join: &Join, members: &str) -> Effect {
        let (reference, topic) = (&Ref::null(), &Label::from(join.topic.as_str()));
        let (join_ref, event, payload) = (&join.join_ref, presence::STATE, members);
        self.send(&Outgoing { join_ref, reference, topic, event, payload })
    }

    /// What a client hears of the incarnation that its new join replaced.
    ///
    /// In version 1 nothing: its clients would take the close for the new one's (decision 13.2).
    fn replaced(&self, old: &Join) -> Option<Effect> {
        (self.version == Version::V2).then(|| self.end_of(old, "phx_close", "{}"))
    }

    fn leave(&mut self, at: usize, reference: &Ref) -> Vec<Effect> {
        let join = self.joins.swap_remove(at);
        let topic = Label::from(join.topic.as_str());
        let left = self.unsubscribe(&join);
        let reply = self.reply(&join.join_ref, reference, &topic, OK);
        left.into_iter().chain([reply, self.end_of(&join, "phx_close", "{}")]).collect()
    }

    fn push(&mut self, at: usize, message: &Message, now_s: f64) -> Vec<Effect> {
        let is_in_time = self.events.take(1, self.rules.client_events_max, now_s);
        let join = &self.joins[at];
        let (join_ref, reference) = (join.join_ref.clone(), message.reference.clone());
        let ordered = match is_in_time {
            true => self.ordered(join, message),
            false => Err(PushRefusal::TooMany),
        };
        match ordered {
            Ok(effect) => {
                let topic = message.topic.clone();
                self.asked = Some(Box::new(Asked::Push { topic, join_ref, reference }));
                vec![effect]
            }
            Err(refusal) => {
                if let Some(limit) = refusal.limit() {
                    self.rules.metrics.hit(limit);
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

    /// Gives up the subscription of a join, unless a rejoin that is under way needs it.
    fn unsubscribe(&self, left: &Join) -> Option<Effect> {
        let is_needed =
            matches!(self.asked.as_deref(), Some(Asked::Join { join, .. }) if join.hears_as(left));
        (!is_needed).then(|| Effect::Unsubscribe(left.place(), left.topic.wire().clone()))
    }

    /// Ends joins of an app, which are no longer among this session's. One that holds nothing of
    /// another app is closed as a whole: its client comes back and is judged anew.
    fn end(&self, app: AppId, ended: &[Join]) -> Vec<Effect> {
        if ended.is_empty() {
            return Vec::new();
        }
        let asked = match self.asked.as_deref() {
            Some(Asked::Join { join, .. }) => Some(join),
            _ => None,
        };
        if self.joins.iter().chain(asked).all(|join| join.footing.app == app) {
            return vec![Effect::Close(CloseCode::GOING_AWAY)];
        }
        let end = |join: &Join| {
            let end = self.end_of(join, "phx_error", CHANNEL_CRASH);
            self.unsubscribe(join).into_iter().chain([end])
        };
        ended.iter().flat_map(end).collect()
    }

    fn joined(&self, topic: &Label) -> Option<usize> {
        let topic = topic.as_text()?;
        self.joins.iter().position(|join| join.topic.as_str() == topic)
    }

    /// The answer to a heartbeat.
    fn alive(&self, heartbeat: &Message) -> Frame {
        let Message { reference, topic, .. } = heartbeat;
        let join_ref = &Ref::null();
        let event = "phx_reply";
        self.version.encode(&Outgoing { join_ref, reference, topic, event, payload: OK })
    }

    fn reply(&self, join_ref: &Ref, reference: &Ref, topic: &Label, payload: &str) -> Effect {
        self.send(&Outgoing { join_ref, reference, topic, event: "phx_reply", payload })
    }

    /// The end of a join. Both refs name it, so that no client takes it for another's.
    fn end_of(&self, join: &Join, event: &str, payload: &str) -> Effect {
        let (join_ref, topic) = (&join.join_ref, &Label::from(join.topic.as_str()));
        self.send(&Outgoing { join_ref, reference: join_ref, topic, event, payload })
    }

    fn send(&self, outgoing: &Outgoing<'_>) -> Effect {
        let frame: Frame = self.version.encode(outgoing);
        Effect::Send(frame)
    }
}

impl session::Conversation for Conversation {
    fn received(&mut self, message: Received, now_s: f64) -> Vec<Effect> {
        match self.version.decode(&message, self.rules.ref_bytes_max) {
            Ok(message) => self.dispatch(message, now_s),
            Err(malformed) => {
                if malformed == Malformed::Ref {
                    self.rules.metrics.hit(Limit::RefBytes);
                }
                vec![Effect::Close(CloseCode::INTERNAL)]
            }
        }
    }

    /// Heartbeats alone: they say nothing of any topic, and clients give up on a server that does not
    /// answer them (section 7 of the protocol document, on head-of-line blocking).
    fn meanwhile(&self, message: &Received) -> Option<Frame> {
        if !may_be_heartbeat(message) {
            return None;
        }
        let message = self.version.decode(message, self.rules.ref_bytes_max).ok()?;
        message.is_heartbeat().then(|| self.alive(&message))
    }

    fn subscribed(&mut self, outcome: Result<Joined, Failure>, _now_s: f64) -> Vec<Effect> {
        let asked = self.asked.take().map(|asked| *asked);
        let Some(Asked::Join { join, join_ref, reference, is_disconnected }) = asked else {
            return Vec::new();
        };
        let outcome = match is_disconnected {
            true => Err(JoinRefusal::Disconnected),
            false => outcome.map_err(JoinRefusal::from),
        };
        self.joined_or_not(join, (&join_ref, &reference), outcome)
    }

    fn answered(&mut self, outcome: Result<(), Failure>, _now_s: f64) -> Vec<Effect> {
        let asked = self.asked.take().map(|asked| *asked);
        match (asked, outcome) {
            (Some(Asked::Push { topic, join_ref, reference }), Err(_)) => {
                let refusal = error(&JoinRefusal::Unavailable.response());
                vec![self.reply(&join_ref, &reference, &topic, &refusal)]
            }
            // No reply on success: that is the articles' contract.
            _ => Vec::new(),
        }
    }

    fn app_changed(&mut self, app: AppId, _now_s: f64) -> Vec<Effect> {
        let apps = self.rules.directory.load();
        let mut joins = std::mem::take(&mut self.joins);
        let is_ended = |join: &mut Join| {
            if join.footing.app != app {
                return false;
            }
            let Join { topic, footing, .. } = join;
            match self.rules.judge.review(&self.caller, topic, footing, &apps) {
                Some(Standing::Whole) => false,
                Some(Standing::WithoutGrant) => {
                    footing.grant = None;
                    false
                }
                None => true,
            }
        };
        let ended: Vec<_> = joins.extract_if(.., is_ended).collect();
        self.joins = joins;
        self.end(app, &ended)
    }

    fn disconnected(&mut self, disconnect: &Disconnect) -> (Vec<Effect>, usize) {
        let mut refused = 0;
        if let Some(Asked::Join { join, is_disconnected, .. }) = self.asked.as_deref_mut()
            && !*is_disconnected
            && join.is_among(disconnect)
        {
            *is_disconnected = true;
            refused = 1;
        }
        let ended: Vec<_> = self.joins.extract_if(.., |join| join.is_among(disconnect)).collect();
        (self.end(disconnect.app(), &ended), ended.len() + refused)
    }

    fn kind(&self) -> SessionKind {
        SessionKind {
            transport: match self.transport {
                Transport::WebSocket => labels::Transport::WebSocket,
                Transport::LongPoll => labels::Transport::LongPoll,
            },
            version: match self.version {
                Version::V1 => labels::Version::V1,
                Version::V2 => labels::Version::V2,
            },
        }
    }
}

/// Whether a message is worth reading twice: once now, in case it is a heartbeat, and again in its
/// turn if it is not.
fn may_be_heartbeat(message: &Received) -> bool {
    let bytes = match message {
        Received::Text(text) => text.as_bytes(),
        Received::Binary(bytes) => bytes,
    };
    let name = HEARTBEAT.as_bytes();
    bytes.len() <= HEARTBEAT_BYTES_MAX && bytes.windows(name.len()).any(|part| part == name)
}

impl Message {
    /// Whether its sender only wants to know that somebody is there.
    fn is_heartbeat(&self) -> bool {
        self.topic.as_text() == Some("phoenix") && self.event.as_text() == Some(HEARTBEAT)
    }
}

impl Join {
    /// Whether a message with this `join_ref` is for this incarnation.
    fn is_meant_by(&self, join_ref: &Ref) -> bool {
        join_ref.is_null() || *join_ref == self.join_ref
    }

    /// Whether its app wants it ended.
    fn is_among(&self, disconnect: &Disconnect) -> bool {
        match disconnect {
            Disconnect::Place(place) => self.place() == *place,
            Disconnect::Subject { app, subject } => {
                self.footing.app == *app && self.minted_for() == Some(subject)
            }
            Disconnect::Members { app, members } => {
                let minted_for = self.minted_for();
                self.footing.app == *app && minted_for.is_some_and(|subject| subject.has(members))
            }
        }
    }

    /// Whom its token was minted for, if it has one that says so.
    fn minted_for(&self) -> Option<&Subject> {
        self.footing.grant.as_ref()?.subject.as_ref()
    }

    /// Whether both are one subscription: the same place by the same name.
    fn hears_as(&self, other: &Self) -> bool {
        self.footing.app == other.footing.app && self.topic.wire() == other.topic.wire()
    }

    fn place(&self) -> Place {
        let key = ScopeKey { app: self.footing.app, scope: self.topic.scope.clone() };
        Place { key, channel: self.topic.channel.clone() }
    }
}

impl From<Failure> for JoinRefusal {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TooManyScopes => Self::TooManyScopes,
            Failure::TooManyMembers => Self::TooManyMembers,
            Failure::Unavailable => Self::Unavailable,
        }
    }
}

/// The payload of a reply with status `error`.
fn error(response: &str) -> String {
    format!(r#"{{"status":"error","response":{response}}}"#)
}

#[cfg(test)]
mod tests;
