//! Subscribing to channels and unsubscribing from them.

use std::sync::Arc;

use crate::{
    admission::{Footing, Standing},
    app::{refusals::Attempt, visitor::ShownSub},
    broker::{
        feed::{AttemptKind, RefusedAttempt},
        presence::Persona,
        recovery::{Recovery, Since, Wanted},
        subscriber::{Cached, Joined, SubscribeError, Subscription},
    },
    metrics::labels::JoinOutcome,
    session::{Effect, Replay},
};

use super::{
    super::{
        auth::{self, AuthFault},
        channel::{Channel, ChannelKind},
        cursor,
        format::{self, SpokenMessages},
        frame, member,
        message::{Subscribe, TextField},
        refusal::SubscriptionRefusal,
        subscriptions::{PendingSubscription, PusherSigner, Subscribed},
    },
    PusherConversation,
};

impl PusherConversation {
    pub(super) fn subscribe(&mut self, ask: &Subscribe, now_s: f64) -> Vec<Effect> {
        // The rate is checked first, so that an attempt beyond the rate costs little.
        let is_in_time = self.join_tries.take(1, self.rules.shared.joins_max, now_s);
        let admitted = match is_in_time {
            true => self.admit(ask, now_s),
            false => Err(SubscriptionRefusal::TooManyJoins),
        };
        match admitted {
            Ok(subscribed) => {
                let is_signed = subscribed.channel.kind.is_signed();
                // The signature counts from now on, because the broker's answer may come after the time limit.
                self.is_authorized |= is_signed;
                let since = match &ask.channel_data {
                    TextField::Text(data) if is_signed => cursor::read(data),
                    _ => None,
                };
                let subscription = Subscription {
                    place: subscribed.place(),
                    topic: subscribed.topic(),
                    format: format::of(SpokenMessages {
                        positions: since.is_some(),
                        counts: self.is_told_counts(subscribed.channel.kind),
                    }),
                    persona: subscribed.persona.as_deref().cloned(),
                    user: self.user_of(&subscribed),
                    wanted: since.map(|since| Wanted { since, newest_max: 0 }),
                };
                self.subscriptions.under_way =
                    Some(Box::new(PendingSubscription { subscribed, since }));
                vec![Effect::Subscribe(subscription)]
            }
            Err(refusal) => {
                self.count_refused(&refusal, &ask.channel);
                if let Some(reason) = refusal.reason() {
                    self.note(reason, Attempt::Join(&ask.channel), now_s);
                }
                refusal.messages(&ask.channel)
            }
        }
    }

    /// The user as whom a channel is subscribed: the member that others see there, or else the user
    /// that is signed in.
    fn user_of(&self, subscribed: &Subscribed) -> Option<Arc<ShownSub>> {
        let member = subscribed.persona.as_ref().map(|persona| &*persona.key);
        let id = member.or_else(|| Some(self.user.as_ref()?.id.as_str()))?;
        Some(Arc::new(ShownSub::named(id)))
    }

    /// Returns whether the subscribers of such a channel are sent their number. The app can switch that
    /// off. Subscribers of a presence channel receive the members instead, and a user's channel has no
    /// other subscribers.
    fn is_told_counts(&self, kind: ChannelKind) -> bool {
        let apps = self.rules.shared.directory.load();
        !matches!(kind, ChannelKind::Presence | ChannelKind::User)
            && apps.by_id(self.guest.app).is_some_and(|app| app.settings.subscription_count)
    }

    /// Judges a subscription.
    fn admit(&self, ask: &Subscribe, now_s: f64) -> Result<Subscribed, SubscriptionRefusal> {
        let channel = Channel::parse_within(&ask.channel, self.rules.channel_bytes_max)?;
        if self.subscriptions.get(&ask.channel).is_some() {
            return Err(SubscriptionRefusal::Subscribed);
        }
        if self.subscriptions.len() >= self.rules.shared.channels_max {
            return Err(SubscriptionRefusal::TooManyChannels);
        }
        let apps = self.rules.shared.directory.load();
        // The connection of an app that is gone or inactive is about to be closed.
        let app = self.app(&apps).map_err(|_| SubscriptionRefusal::AppChanged)?;
        let needs_credential = channel.kind.is_signed();
        let data = match &ask.channel_data {
            // Subscriptions that nobody signs have no data.
            _ if !needs_credential => None,
            TextField::Text(data) => Some(data.as_str()),
            TextField::Absent => None,
            TextField::Other(_) => return Err(AuthFault::DataNotText.into()),
        };
        let mut credential = None;
        if needs_credential {
            let pair = auth::channel(app, &self.socket_id(), &ask.channel, data, &ask.auth)?;
            credential = Some(self.subscriptions.shared(PusherSigner::of(app, pair)));
        }
        let user = self.user.as_ref().map(|user| user.id.as_str());
        if channel.kind == ChannelKind::User && channel.user() != user {
            return Err(SubscriptionRefusal::NotTheUser);
        }
        let persona = match channel.kind {
            ChannelKind::Presence => Some(Box::new(self.persona(data, now_s)?)),
            _ => None,
        };
        let footing = Footing { app: app.id, credential, needs_credential };
        Ok(Subscribed { channel, footing, persona })
    }

    /// The member that the application has signed, or else the user that is signed in.
    fn persona(&self, data: Option<&str>, now_s: f64) -> Result<Persona, SubscriptionRefusal> {
        match (data, &self.user) {
            (Some(data), _) => Ok(member::read(data, now_s)?),
            (None, Some(user)) => {
                Ok(member::persona(user.id.clone().into(), user.info.as_deref(), now_s)?)
            }
            (None, None) => Err(SubscriptionRefusal::Anonymous),
        }
    }

    /// Handles the broker's answer to a subscription. It is judged once more, because the app may have
    /// changed since the first time.
    pub(super) fn settle(
        &mut self,
        PendingSubscription { subscribed, since }: PendingSubscription,
        outcome: Result<Joined, SubscribeError>,
    ) -> Vec<Effect> {
        let outcome = outcome.map_err(SubscriptionRefusal::from);
        let outcome = outcome.and_then(|joined| match self.stands(&subscribed) {
            true => Ok(joined),
            false => Err(SubscriptionRefusal::AppChanged),
        });
        match outcome {
            Ok(joined) => self.welcome(subscribed, since, joined),
            Err(refusal) => {
                self.count_refused(&refusal, subscribed.channel.name());
                let unsubscribe = Effect::Unsubscribe(subscribed.place(), subscribed.topic());
                let mut effects = vec![unsubscribe];
                effects.extend(refusal.messages(subscribed.channel.name()));
                effects
            }
        }
    }

    pub(super) fn stands(&self, subscribed: &Subscribed) -> bool {
        let apps = self.rules.shared.directory.load();
        let Ok(app) = self.app(&apps) else { return false };
        let (origin, footing) = (self.guest.origin.as_deref(), &subscribed.footing);
        let judge = &self.rules.shared.judge;
        let is_valid = |signer: &Arc<PusherSigner>, app: &_| signer.is_of(app);
        judge.review(origin, &app.slug, footing, &apps, is_valid) == Some(Standing::Whole)
    }

    /// The effects of a granted subscription: the success, then the missed events or the last event.
    fn welcome(
        &mut self,
        subscribed: Subscribed,
        since: Option<Since>,
        joined: Joined,
    ) -> Vec<Effect> {
        let Joined { members, recovery, cached, .. } = joined;
        let metrics = &self.rules.shared.metrics;
        metrics.joins.of(JoinOutcome::Ok).inc();
        let replayed = recovery.as_ref().map_or(0, |recovery| recovery.replayed);
        let usage = || metrics.usage.of(self.guest.app.0);
        self.guest.place_in_app.connect(usage).joined(replayed as u64);
        let name = subscribed.channel.name();
        let data = match (&subscribed.persona, members) {
            (Some(persona), Some(members)) => member::roster(&members, persona),
            _ => frame::NOTHING.to_owned(),
        };
        let success = frame::event("pusher_internal:subscription_succeeded", Some(name), &data);
        let mut effects = vec![Effect::Send(success)];
        let is_gap_closed = matches!(since, Some(Since::Position(_)))
            && recovery.as_ref().is_some_and(|recovery| recovery.incomplete.is_none());
        if let Some(recovery) = &recovery {
            let data = cursor::described(recovery);
            effects.push(Effect::Send(frame::event("herald:recovery", Some(name), &data)));
        }
        match cached {
            // The replay contains the last event, or the client has received it before.
            _ if is_gap_closed => {}
            Some(Cached::Event(event)) => effects.push(Effect::Send(event)),
            Some(Cached::Miss) => {
                let miss = frame::event("pusher:cache_miss", Some(name), frame::NOTHING);
                effects.push(Effect::Send(miss));
            }
            Some(Cached::ComesLive) | None => {}
        }
        if let Some(Recovery { frames, .. }) = recovery.map(|recovery| *recovery)
            && !frames.is_empty()
        {
            let (place, topic) = (subscribed.place(), subscribed.topic());
            effects.push(Effect::Replay(Replay { place, topic, frames, members: None }));
        }
        self.subscriptions.open(subscribed);
        effects
    }

    /// Ends the subscription to a channel, if there is one. The protocol has no answer to this.
    pub(super) fn unsubscribe(&mut self, channel: &str) -> Vec<Effect> {
        let closed = self.subscriptions.close(channel);
        let left = closed.map(|left| Effect::Unsubscribe(left.place(), left.topic()));
        left.into_iter().collect()
    }

    fn count_refused(&self, refusal: &SubscriptionRefusal, channel: &str) {
        let (shared, outcome) = (&self.rules.shared, refusal.outcome());
        shared.count_refused(outcome, refusal.limit(), Some(self.guest.app));
        if shared.feed.is_watched() {
            shared.feed.refused(self.guest.app, || RefusedAttempt {
                kind: AttemptKind::Join,
                topic: Some(channel.into()),
                reason: outcome.as_str(),
                address: self.guest.address,
            });
        }
    }
}
