//! The attributes of channels that callers request with the parameter `info`.

use serde_json::{Map, Value, json};

use super::{Services, error::PusherError};
use crate::{
    app::AppId,
    broker::{subscriber::Place, topics::Unanswered},
    pusher::{
        channel::{Channel, ChannelKind},
        payload::data_of,
    },
};

/// The attributes of a channel that a caller asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) user_count: bool,
    pub(super) subscription_count: bool,
    pub(super) cache: bool,
    /// Whether the list has an attribute that does not exist.
    pub(super) is_unknown: bool,
}

impl Attributes {
    /// Reads a list that is separated by commas.
    pub(super) fn parse(list: &str) -> Self {
        let mut asked = Self::default();
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "user_count" => asked.user_count = true,
                "subscription_count" => asked.subscription_count = true,
                "cache" => asked.cache = true,
                _ => asked.is_unknown = true,
            }
        }
        asked
    }

    /// Checks that there are no attributes besides the permitted ones.
    ///
    /// # Errors
    /// [`PusherError::BadRequest`].
    pub(super) fn check(self, permitted: Self) -> Result<(), PusherError> {
        let refused = |is_asked: bool, is_permitted: bool| is_asked && !is_permitted;
        let text = if self.is_unknown {
            "info may have user_count, subscription_count and cache"
        } else if refused(self.user_count, permitted.user_count) {
            "user_count exists for presence channels only"
        } else if refused(self.cache, permitted.cache) {
            "cache exists for a single cache channel only"
        } else {
            return Ok(());
        };
        Err(PusherError::bad(text))
    }

    /// The attributes that a channel has.
    pub(super) fn of(channel: &Channel) -> Self {
        let user_count = channel.kind == ChannelKind::Presence;
        Self { user_count, subscription_count: true, cache: channel.is_cache, is_unknown: false }
    }

    /// The attributes that are in both lists.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            user_count: self.user_count && other.user_count,
            subscription_count: self.subscription_count && other.subscription_count,
            cache: self.cache && other.cache,
            is_unknown: false,
        }
    }
}

/// The requested counts of a channel's subscribers and users. An attribute that the channel does not have
/// is left out.
///
/// # Errors
/// [`PusherError::Unavailable`] if a thread did not answer, because the number would be too low.
pub(super) async fn counts(
    services: &Services,
    app: AppId,
    channel: &Channel,
    asked: Attributes,
) -> Result<Map<String, Value>, PusherError> {
    let asked = asked.and(Attributes::of(channel));
    let mut told = Map::new();
    if asked.subscription_count {
        let count = subscribers(services, channel.place(app)).await?;
        told.insert("subscription_count".into(), count.into());
    }
    if asked.user_count {
        let users = services.topics.users(&channel.place(app)).await;
        let users = users.map_err(|Unanswered| PusherError::Unavailable)?;
        told.insert("user_count".into(), users.len().into());
    }
    Ok(told)
}

/// The number of subscribers of a place.
///
/// # Errors
/// As [`counts`].
pub(super) async fn subscribers(services: &Services, place: Place) -> Result<usize, PusherError> {
    let count = services.topics.subscribers(place).await;
    count.map_err(|Unanswered| PusherError::Unavailable)
}

/// The last event of a cache channel with the seconds for which it is still kept, or null.
pub(super) fn cache(services: &Services, app: AppId, channel: &Channel) -> Value {
    match services.topics.last_event(&channel.place(app)) {
        Some(last) => json!({ "data": data_of(last.payload.as_str()), "ttl": last.left.as_secs() }),
        None => Value::Null,
    }
}
