//! The events that clients push: their effects, and the client's right to them.

use crate::{
    admission::Standing,
    app::ClientEvents,
    broker::{
        JsonObject, JsonText, Payload, PayloadError, Publication, PublicationOrigin, TopicName,
        address,
    },
    metrics::labels::{Limit, RefusalReason},
    session::Effect,
    strict_json::NotStrict,
};

use super::{
    super::{
        joins::Join,
        message::{ClientMessage, ClientPayload},
        presence::{self, MetaFault, Profile},
    },
    PhoenixConversation,
};

impl PhoenixConversation {
    /// The effect of a client's event: a publication, or an update of the client's own meta.
    pub(super) fn ordered(
        &self,
        join: &Join,
        message: &ClientMessage<'_>,
    ) -> Result<Effect, PushRefusal> {
        match (&join.profile, message.event.as_text()) {
            (Some(profile), Some(presence::METADATA)) => {
                let custom = self.custom(join, profile, &message.payload)?;
                Ok(Effect::Update(join.place(), custom))
            }
            _ => self.publication(join, message).map(Effect::Publish),
        }
    }

    /// The update of the client's own meta. It needs no right to publish, but a join that its app still permits.
    fn custom(
        &self,
        join: &Join,
        profile: &Profile,
        payload: &ClientPayload<'_>,
    ) -> Result<JsonText, PushRefusal> {
        let apps = self.rules.shared.directory.load();
        let standing = self.rules.judge.review(&self.caller, &join.topic, &join.footing, &apps);
        if standing != Some(Standing::Whole) {
            return Err(PushRefusal::NotPermitted(None));
        }
        if payload.size_bytes() > self.rules.shared.client_event_bytes_max {
            return Err(PushRefusal::TooLarge);
        }
        let ClientPayload::Json(payload) = payload else { return Err(PushRefusal::NoCustom) };
        let custom = presence::custom(payload).map_err(PushRefusal::Meta)?;
        let custom = custom.ok_or(PushRefusal::NoCustom)?;
        profile.check(Some(&custom)).map_err(PushRefusal::Meta)?;
        Ok(custom)
    }

    /// The publication of a client's event.
    fn publication(
        &self,
        join: &Join,
        message: &ClientMessage<'_>,
    ) -> Result<Publication, PushRefusal> {
        self.may_publish(join)?;
        let event = message.event.as_text().ok_or(PushRefusal::InvalidEvent)?;
        let (destination, event) = address(&join.topic, event, &self.rules.judge.addressing)
            .map_err(|_| PushRefusal::InvalidEvent)?;
        if message.payload.size_bytes() > self.rules.shared.client_event_bytes_max {
            return Err(PushRefusal::TooLarge);
        }
        let payload = match &message.payload {
            ClientPayload::Json(json) => {
                JsonObject::from_raw(json).map(Payload::from).map_err(PushRefusal::Payload)?
            }
            ClientPayload::Bytes(bytes) => Payload::Bytes(bytes.clone()),
        };
        let scope = join.topic.scope.clone();
        let user = join.profile.as_ref().map(|profile| profile.key.clone());
        let (app, origin) = (join.footing.app, PublicationOrigin::Session { user });
        // The event is also sent to the client that pushed it, as in Phoenix.
        Ok(Publication { app, scope, destination, event, payload, origin, except: None })
    }

    /// Checks that the join still permits publishing. It is checked for each event, so that a change of the app
    /// takes effect even before this session is told about it.
    fn may_publish(&self, join: &Join) -> Result<(), PushRefusal> {
        let apps = self.rules.shared.directory.load();
        let ended = PushRefusal::NotPermitted(None);
        let Some(app) = apps.by_id(join.footing.app) else { return Err(ended) };
        let standing = self.rules.judge.review(&self.caller, &join.topic, &join.footing, &apps);
        let grant = match standing {
            Some(Standing::Whole) => join.footing.credential.as_deref(),
            Some(Standing::WithoutCredential) => None,
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

/// The reason why a client's event is refused.
pub(super) enum PushRefusal {
    /// The event is not permitted, for this reason. There is no reason if the join itself is about to end.
    NotPermitted(Option<RefusalReason>),
    InvalidEvent,
    TooLarge,
    TooMany,
    Payload(PayloadError),
    /// The payload has no `custom`, which is the only field of its meta that a client can set.
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

    /// The label of the reason in the metrics, if the metrics count it.
    pub(super) fn label(&self) -> Option<&'static str> {
        match self {
            Self::NotPermitted(reason) => reason.map(|reason| reason.as_str()),
            _ => self.limit().map(|limit| limit.as_str()),
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
