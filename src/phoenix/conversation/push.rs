//! A client's own events: the effects that they ask for, and whether the client may cause them.

use crate::{
    app::ClientEvents,
    broker::{JsonObject, Payload, PayloadError, Publication, TopicName, address},
    metrics::labels::{Limit, RefusalReason},
    session::Effect,
    strict_json::NotStrict,
};

use super::{
    super::{
        admission::Standing,
        joins::Join,
        message::{Body, Message},
        presence::{self, MetaFault, Profile},
    },
    Conversation,
};

impl Conversation {
    /// The effect that a client's event asks for: a publication, or an update of the client's own
    /// meta.
    pub(super) fn ordered(&self, join: &Join, message: &Message) -> Result<Effect, PushRefusal> {
        match (&join.profile, message.event.as_text()) {
            (Some(profile), Some(presence::METADATA)) => {
                let meta = self.meta(join, profile, &message.payload)?;
                Ok(Effect::Update(join.place(), meta))
            }
            _ => self.publication(join, message).map(Effect::Publish),
        }
    }

    /// The update of the client's own meta. It needs no right to publish, but a join that its app
    /// still allows.
    fn meta(
        &self,
        join: &Join,
        profile: &Profile,
        payload: &Body,
    ) -> Result<JsonObject, PushRefusal> {
        let apps = self.rules.directory.load();
        let standing = self.rules.judge.review(&self.caller, &join.topic, &join.footing, &apps);
        if standing != Some(Standing::Whole) {
            return Err(PushRefusal::NotPermitted(None));
        }
        if payload.size_bytes() > self.rules.client_event_bytes_max {
            return Err(PushRefusal::TooLarge);
        }
        let Body::Json(payload) = payload else { return Err(PushRefusal::NoCustom) };
        let custom = presence::custom(payload).map_err(PushRefusal::Meta)?;
        let custom = custom.ok_or(PushRefusal::NoCustom)?;
        profile.meta(Some(custom)).map_err(PushRefusal::Meta)
    }

    /// The publication that a client's event asks for.
    fn publication(&self, join: &Join, message: &Message) -> Result<Publication, PushRefusal> {
        self.may_publish(join)?;
        let event = message.event.as_text().ok_or(PushRefusal::InvalidEvent)?;
        let (destination, event) =
            address(&join.topic, event).map_err(|_| PushRefusal::InvalidEvent)?;
        if message.payload.size_bytes() > self.rules.client_event_bytes_max {
            return Err(PushRefusal::TooLarge);
        }
        let payload = match &message.payload {
            Body::Json(json) => {
                JsonObject::from_raw(json).map(Payload::Object).map_err(PushRefusal::Payload)?
            }
            Body::Bytes(bytes) => Payload::Bytes(bytes.clone()),
        };
        let scope = join.topic.scope.clone();
        Ok(Publication { app: join.footing.app, scope, destination, event, payload })
    }

    /// Checked again for each event, so that a change of the app takes effect at once, even before
    /// this session receives the announcement.
    fn may_publish(&self, join: &Join) -> Result<(), PushRefusal> {
        let apps = self.rules.directory.load();
        let ended = PushRefusal::NotPermitted(None);
        let Some(app) = apps.by_id(join.footing.app) else { return Err(ended) };
        let standing = self.rules.judge.review(&self.caller, &join.topic, &join.footing, &apps);
        let grant = match standing {
            Some(Standing::Whole) => join.footing.grant.as_deref(),
            Some(Standing::WithoutGrant) => None,
            None => return Err(ended),
        };
        let TopicName { scope, app: slug, channel, .. } = &join.topic;
        let addressing = &self.rules.judge.addressing;
        let claimed = || {
            grant.is_some_and(|grant| {
                addressing.allow_publishing(&grant.publish, scope, slug, channel.as_ref())
            })
        };
        let reason = match app.settings.client_events {
            ClientEvents::None => RefusalReason::NoClientEvents,
            ClientEvents::All if scope.is_public() => return Ok(()),
            ClientEvents::All | ClientEvents::Authorized if claimed() => return Ok(()),
            ClientEvents::All | ClientEvents::Authorized => RefusalReason::PublishNotPermitted,
        };
        Err(PushRefusal::NotPermitted(Some(reason)))
    }
}

/// Why a client's event is refused.
pub(super) enum PushRefusal {
    /// A refusal with a reason for the metrics and the log; it has none if the join itself is about
    /// to end.
    NotPermitted(Option<RefusalReason>),
    InvalidEvent,
    TooLarge,
    TooMany,
    Payload(PayloadError),
    /// A meta without `custom`, the only member that a client can set.
    NoCustom,
    Meta(MetaFault),
}

impl PushRefusal {
    /// The limit that was exceeded, if the refusal is due to one.
    pub(super) fn limit(&self) -> Option<Limit> {
        match self {
            Self::TooLarge => Some(Limit::ClientEventBytes),
            Self::TooMany => Some(Limit::ClientEventsPerSecond),
            Self::NotPermitted(_)
            | Self::InvalidEvent
            | Self::Payload(_)
            | Self::NoCustom
            | Self::Meta(_) => None,
        }
    }

    /// The reply's response, as JSON.
    pub(super) fn response(&self) -> String {
        match self {
            Self::NotPermitted(_) => "{}".to_owned(),
            Self::InvalidEvent => r#"{"reason":"invalid event"}"#.to_owned(),
            Self::TooLarge => r#"{"reason":"payload too large"}"#.to_owned(),
            Self::TooMany => r#"{"reason":"too many events"}"#.to_owned(),
            Self::Payload(PayloadError::NotStrict(
                NotStrict::LoneSurrogate | NotStrict::NumberTooLarge | NotStrict::RepeatedKey,
            )) => r#"{"reason":"invalid payload"}"#.to_owned(),
            Self::Payload(error) => format!(r#"{{"reason":"{error}"}}"#),
            Self::NoCustom => r#"{"reason":"payload must have a custom"}"#.to_owned(),
            Self::Meta(fault) => format!(r#"{{"reason":"{}"}}"#, fault.reason()),
        }
    }
}
