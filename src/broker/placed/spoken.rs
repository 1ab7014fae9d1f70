//! The encoding of a publication, whether it is on its way or retained.

use std::borrow::Cow;

use super::{
    super::{
        position::StreamPosition,
        publication::{Destination, EventName, Sender},
        retained::RetainedPayload,
        subscriber::{Delivery, Format, Frame},
    },
    Level,
};

/// A publication to encode, whether it is on its way or retained.
#[derive(Clone, Copy)]
pub(in crate::broker) struct SpokenPublication<'a> {
    /// The channel to which it was published; `None` for `#general`.
    pub(in crate::broker) channel: Option<&'a str>,
    pub(in crate::broker) event: &'a str,
    pub(in crate::broker) payload: RetainedPayload<'a>,
    pub(in crate::broker) position: StreamPosition,
    pub(in crate::broker) sender: Sender<'a>,
}

/// A payload as a format carries it: JSON may have been converted, bytes never are.
pub(super) enum Carried<'a> {
    Json(Cow<'a, str>),
    Bytes(&'a [u8]),
}

impl<'a> SpokenPublication<'a> {
    /// The frame for the members that joined `topic`, which is of this level; `None` for formats that cannot
    /// carry it.
    pub(in crate::broker) fn encode(
        &self,
        format: Format,
        level: Level,
        topic: &str,
    ) -> Option<Frame> {
        self.encode_carried(&self.carried(format), format, level, topic)
    }

    pub(super) fn carried(&self, format: Format) -> Carried<'a> {
        match self.payload {
            RetainedPayload::Json(json) => {
                Carried::Json((format.carry)(json, self.event, self.sender))
            }
            RetainedPayload::Bytes(bytes) => Carried::Bytes(bytes),
        }
    }

    pub(super) fn encode_carried(
        &self,
        payload: &Carried<'_>,
        format: Format,
        level: Level,
        topic: &str,
    ) -> Option<Frame> {
        let Self { channel, event, position, sender, .. } = *self;
        if !(format.has_event)(event) {
            return None;
        }
        let is_bare = matches!((level, channel), (Level::Scope, None) | (Level::Channel, Some(_)));
        let prefixed;
        let event = if is_bare {
            event
        } else {
            prefixed = format!("{}:{event}", channel.unwrap_or(Destination::GENERAL));
            // Protocols that bound each name alone can publish both, but no client can name them together.
            if prefixed.len() > EventName::PREFIXED_BYTES_MAX {
                return None;
            }
            &prefixed
        };
        match payload {
            Carried::Json(payload) => {
                (format.encode)(&Delivery { topic, event, payload, position, sender })
            }
            Carried::Bytes(payload) => format.encode_bytes?(&Delivery {
                topic,
                event,
                payload: *payload,
                position,
                sender,
            }),
        }
    }
}
