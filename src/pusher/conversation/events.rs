//! The events that clients publish.

use crate::{
    app::{ClientEvents, refusals::Attempt},
    broker::{Destination, EventName, JsonText, Payload, Publication, PublicationOrigin},
    metrics::labels::{Limit, RefusalReason},
    session::Effect,
    strict_json::NotStrict,
};

use super::{
    super::{channel::Channel, frame, message::ClientEvent},
    PusherConversation,
};

/// The reason why an event is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum EventRefusal {
    #[error("the app takes no client events")]
    Off,
    #[error(
        "the name of the event must have at most {} bytes, no control characters and no reserved beginning",
        EventName::BYTES_MAX
    )]
    Name,
    #[error("client events are taken on private and presence channels only")]
    Public,
    #[error("the connection is not subscribed to this channel")]
    NotSubscribed,
    #[error("the app was changed")]
    AppChanged,
    #[error("the data of the event has too many bytes")]
    TooLarge,
    #[error("the data of the event {0}")]
    NotStrict(#[from] NotStrict),
    #[error("too many client events per second")]
    TooMany,
}

impl EventRefusal {
    /// The code of the error; `None` unless a limit was exceeded.
    fn code(self) -> Option<u16> {
        self.limit().map(|_| 4301)
    }

    fn limit(self) -> Option<Limit> {
        match self {
            Self::TooLarge => Some(Limit::ClientEventBytes),
            Self::TooMany => Some(Limit::ClientEventsPerSecond),
            _ => None,
        }
    }

    fn reason(self) -> Option<RefusalReason> {
        match self {
            Self::Off => Some(RefusalReason::NoClientEvents),
            Self::Public | Self::NotSubscribed => Some(RefusalReason::PublishNotPermitted),
            _ => None,
        }
    }
}

impl PusherConversation {
    /// Publishes an event. Only a refusal is answered.
    pub(super) fn publish(&mut self, event: &ClientEvent<'_>, now_s: f64) -> Vec<Effect> {
        let publication = self.publication(event);
        let publication = publication.and_then(|publication| {
            match self.events.take(1, self.rules.shared.client_events_max, now_s) {
                true => Ok(publication),
                false => Err(EventRefusal::TooMany),
            }
        });
        match publication {
            Ok(publication) => vec![Effect::Publish(publication)],
            Err(refusal) => {
                if let Some(limit) = refusal.limit() {
                    self.rules.shared.metrics.hit(limit);
                }
                if let Some(reason) = refusal.reason() {
                    self.note(reason, Attempt::Push(&event.channel), now_s);
                }
                vec![Effect::Send(frame::error(refusal.code(), &refusal.to_string()))]
            }
        }
    }

    /// The publication of an event. It is not delivered to its sender.
    fn publication(&self, event: &ClientEvent<'_>) -> Result<Publication, EventRefusal> {
        let apps = self.rules.shared.directory.load();
        let app = self.app(&apps).map_err(|_| EventRefusal::AppChanged)?;
        if app.settings.client_events == ClientEvents::None {
            return Err(EventRefusal::Off);
        }
        let name = EventName::parse(&event.event).map_err(|_| EventRefusal::Name)?;
        let channel = Channel::parse(&event.channel).map_err(|_| EventRefusal::NotSubscribed)?;
        if !channel.kind.is_signed() {
            return Err(EventRefusal::Public);
        }
        let subscribed =
            self.subscriptions.get(&event.channel).ok_or(EventRefusal::NotSubscribed)?;
        if !self.stands(subscribed) {
            return Err(EventRefusal::AppChanged);
        }
        if event.data.get().len() > self.rules.shared.client_event_bytes_max {
            return Err(EventRefusal::TooLarge);
        }
        let payload = Payload::Json(JsonText::from_raw(event.data)?);
        // The place of a Pusher channel is always a channel, never a whole scope.
        let place = subscribed.place();
        let channel = place.channel.ok_or(EventRefusal::NotSubscribed)?;
        Ok(Publication {
            app: app.id,
            scope: place.key.scope,
            destination: Destination::Channel(channel),
            event: name,
            payload,
            origin: PublicationOrigin::Session {
                user: subscribed.persona.as_ref().map(|persona| persona.key.clone()),
            },
            except: self.session,
        })
    }
}
