//! The last events of cache channels, which a new subscriber is sent before anything is published.
//!
//! Cache channels belong to Pusher's protocol. Only events that the application triggers are kept,
//! for a time that does not depend on the history settings, so they are stored beside the history.
//! A stream stores an event here while it assigns the position of the event: a join whose boundary is
//! not before that position therefore finds it here, and all other joins receive it live.
//!
//! A starting node asks another one for the events, because the log of the cluster may no longer have all
//! of them. A node that could not read a part of the log drops the events of the scopes concerned: a newer
//! event may have been in that part, and an older one must not pass for the last one.

use std::{
    collections::{BinaryHeap, HashMap},
    mem,
    time::Duration,
};

use bytestring::ByteString;
use hashlink::LinkedHashMap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{app::AppId, metrics::labels::Limit, settings::PusherSettings};

use super::{
    directory::SERVER_SLACK_SHARE,
    position::StreamPosition,
    publication::{Destination, EventName, JsonText, Payload, Publication, PublicationOrigin},
    reserved,
    subscriber::{Place, ScopeKey, SessionId},
    topic_name::{ChannelName, Scope},
};

/// The memory that an event takes in addition to its texts, in bytes.
const ENTRY_BYTES: usize = 256;

/// The bounds of the kept events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastEventLimits {
    /// The time for which an event is kept.
    pub ttl: Duration,
    /// The memory of one app's events, in bytes; beyond it the oldest events of the app are dropped.
    pub app_bytes_max: usize,
    /// The memory of all apps' events, in bytes; beyond it the app that keeps the most drops its oldest events.
    pub bytes_max: usize,
}

impl From<&PusherSettings> for LastEventLimits {
    fn from(settings: &PusherSettings) -> Self {
        let PusherSettings { cache_ttl, cache_app_bytes_max, cache_bytes_max, .. } = settings;
        let (app_bytes_max, bytes_max) = (*cache_app_bytes_max, *cache_bytes_max);
        Self { ttl: *cache_ttl, app_bytes_max, bytes_max }
    }
}

/// The last event of a cache channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastEvent {
    /// Its name.
    pub event: EventName,
    /// Its payload.
    pub payload: JsonText,
    /// Its position in the order of the scope. A stream that was forgotten and made again has
    /// another epoch, and everything of an earlier epoch came before it.
    pub position: StreamPosition,
    /// The session to which its live delivery is not made.
    pub except: Option<SessionId>,
    /// The time for which the event is still kept.
    pub left: Duration,
}

/// The last events of all cache channels.
pub(super) struct LastEvents {
    limits: LastEventLimits,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    apps: HashMap<AppId, OfApp>,
    bytes: usize,
}

#[derive(Default)]
struct OfApp {
    /// Oldest first, except while those of another node are being adopted.
    events: LinkedHashMap<(Scope, ChannelName), LastEntry>,
    bytes: usize,
}

/// A cache channel of an app. Nodes send each other their events in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct CacheKey {
    app: i32,
    scope: Scope,
    channel: ChannelName,
}

/// The last event of a channel, as one node sends it to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ToldEvent {
    /// The channel.
    pub(super) key: CacheKey,
    event: String,
    payload: String,
    position: String,
    at_ms: u64,
}

impl ToldEvent {
    /// The scope of the channel.
    pub(super) fn scope(&self) -> ScopeKey {
        ScopeKey { app: AppId(self.key.app), scope: self.key.scope.clone() }
    }

    /// The position of the event; `None` if it cannot be read.
    pub(super) fn position(&self) -> Option<StreamPosition> {
        self.position.parse().ok()
    }
}

struct LastEntry {
    event: EventName,
    payload: JsonText,
    position: StreamPosition,
    except: Option<SessionId>,
    at_ms: u64,
    bytes: usize,
}

/// The cache channel that keeps a publication, if there is one.
pub(super) fn cache_channel(publication: &Publication) -> Option<&ChannelName> {
    let Publication { scope, destination, event, payload, origin, .. } = publication;
    let (Destination::Channel(channel), Payload::Json(_)) = (destination, payload) else {
        return None;
    };
    let is_kept = *origin == PublicationOrigin::Trigger
        && reserved::is_cache(scope.as_str(), channel.as_str())
        && !reserved::is_pusher_event(event.as_str());
    is_kept.then_some(channel)
}

impl LastEvents {
    pub(super) fn new(limits: LastEventLimits) -> Self {
        Self { limits, kept: Mutex::default() }
    }

    /// Keeps a publication that was given its position at `now_ms`, in Unix milliseconds, if it is for a
    /// cache channel. Returns the bound that was exceeded by it, if any.
    pub(super) fn note(
        &self,
        publication: &Publication,
        position: StreamPosition,
        now_ms: u64,
    ) -> Option<Limit> {
        let (key, entry) = LastEntry::of(publication, position, now_ms)?;
        let mut kept = self.kept.lock();
        kept.insert(publication.app, key, entry);
        kept.keep_to(publication.app, &self.limits)
    }

    /// The last event of a channel, at `now_ms`.
    pub(super) fn of(&self, place: &Place, now_ms: u64) -> Option<LastEvent> {
        let key = (place.key.scope.clone(), place.channel.clone()?);
        let kept = self.kept.lock();
        let LastEntry { event, payload, position, except, at_ms, .. } =
            kept.apps.get(&place.key.app)?.events.get(&key)?;
        let age = Duration::from_millis(now_ms.saturating_sub(*at_ms));
        let left = self.limits.ttl.checked_sub(age).filter(|left| !left.is_zero())?;
        let (event, payload) = (event.clone(), payload.clone());
        Some(LastEvent { event, payload, position: *position, except: *except, left })
    }

    /// The events of the channels after `after`, in their order, up to `bytes_max` bytes. At least one event is
    /// returned if there is any.
    pub(super) fn page(&self, after: Option<&CacheKey>, bytes_max: usize) -> Vec<ToldEvent> {
        let kept = self.kept.lock();
        let mut apps: Vec<_> = kept.apps.iter().collect();
        apps.retain(|(app, _)| after.is_none_or(|after| app.0 >= after.app));
        apps.sort_unstable_by_key(|(app, _)| **app);
        // More events than this have more than `bytes_max` bytes.
        let events_max = bytes_max / ENTRY_BYTES + 1;
        let (mut told, mut bytes) = (Vec::new(), 0);
        for (app, of_app) in apps {
            let after = after.filter(|after| after.app == app.0);
            let is_after = |((scope, channel), _): &(&(Scope, ChannelName), &LastEntry)| {
                after.is_none_or(|after| (scope, channel) > (&after.scope, &after.channel))
            };
            let mut events: Vec<_> = of_app.events.iter().filter(is_after).collect();
            if events.len() > events_max {
                // The others are not sorted, because they are not on this page.
                events.select_nth_unstable_by_key(events_max, |(key, _)| *key);
                events.truncate(events_max);
            }
            events.sort_unstable_by_key(|(key, _)| *key);
            for ((scope, channel), entry) in events {
                bytes += entry.bytes;
                if bytes > bytes_max && !told.is_empty() {
                    return told;
                }
                let (app, scope, channel) = (app.0, scope.clone(), channel.clone());
                told.push(entry.told(CacheKey { app, scope, channel }));
            }
        }
        told
    }

    /// Keeps an event of another node, unless a newer one of the same channel is kept. Returns the bound that
    /// was exceeded by it, if any.
    pub(super) fn adopt(&self, told: ToldEvent) -> Option<Limit> {
        let (ScopeKey { app, scope }, position) = (told.scope(), told.position()?);
        let ToldEvent { key: CacheKey { channel, .. }, event, payload, at_ms, .. } = told;
        let publication = Publication {
            app,
            scope,
            destination: Destination::Channel(channel),
            event: EventName::parse_any(&event).ok()?,
            payload: Payload::Json(JsonText::of_json(ByteString::from(payload))),
            origin: PublicationOrigin::Trigger,
            except: None,
        };
        let (key, entry) = LastEntry::of(&publication, position, at_ms)?;
        let is_older = |own: &LastEntry| match own.position.epoch == position.epoch {
            true => own.position.offset < position.offset,
            false => own.at_ms < at_ms,
        };
        // The lock is held from the comparison on, so that no newer event is noted in between and replaced.
        let mut kept = self.kept.lock();
        let own = kept.apps.get(&app).and_then(|of_app| of_app.events.get(&key));
        if !own.is_none_or(is_older) {
            return None;
        }
        kept.insert(app, key, entry);
        kept.keep_to(app, &self.limits)
    }

    /// The time at which an event of `now_ms` has expired, both in Unix milliseconds.
    pub(super) fn expiry_ms(&self, now_ms: u64) -> u64 {
        let ttl_ms = u64::try_from(self.limits.ttl.as_millis()).unwrap_or(u64::MAX);
        now_ms.saturating_add(ttl_ms)
    }

    /// Drops the events of all scopes for which `is_gone` is true, because newer ones may be missing here.
    pub(super) fn forget(&self, is_gone: impl Fn(&ScopeKey) -> bool) {
        self.kept.lock().forget(is_gone);
    }

    /// Orders the events of each app by their time, after those of another node were adopted in the order of their
    /// channels.
    pub(super) fn sort_by_time(&self) {
        for of_app in self.kept.lock().apps.values_mut() {
            let mut events: Vec<_> = mem::take(&mut of_app.events).into_iter().collect();
            events.sort_by_key(|(_, entry)| entry.at_ms);
            of_app.events = events.into_iter().collect();
        }
    }

    /// Drops expired events, and all events of the apps for which `keeps` is false.
    pub(super) fn sweep(&self, now_ms: u64, keeps: impl Fn(AppId) -> bool) {
        let apps: Vec<_> = self.kept.lock().apps.keys().copied().collect();
        // The lock is taken for each app separately, so that no publisher waits for all of them.
        for app in apps {
            self.sweep_app(app, now_ms, keeps(app));
        }
    }

    /// Drops the expired events of an app, or all of them unless `keeps_app`.
    pub(super) fn sweep_app(&self, app: AppId, now_ms: u64, keeps_app: bool) {
        let ttl_ms = u64::try_from(self.limits.ttl.as_millis()).unwrap_or(u64::MAX);
        let is_over = |entry: &LastEntry| now_ms.saturating_sub(entry.at_ms) >= ttl_ms;
        let mut kept = self.kept.lock();
        while kept.oldest(app).is_some_and(|oldest| !keeps_app || is_over(oldest)) {
            kept.drop_oldest(app);
        }
    }
}

impl LastEntry {
    /// The entry of a publication, with its scope and its channel; `None` if it is not for a cache channel.
    fn of(
        publication: &Publication,
        position: StreamPosition,
        at_ms: u64,
    ) -> Option<((Scope, ChannelName), Self)> {
        let channel = cache_channel(publication)?;
        let Payload::Json(payload) = &publication.payload else { return None };
        let (scope, channel) = (publication.scope.clone(), channel.detached());
        let event = publication.event.clone();
        let texts = [scope.as_str(), channel.as_str(), event.as_str(), payload.as_str()];
        let bytes = ENTRY_BYTES + texts.map(str::len).iter().sum::<usize>();
        let (payload, except) = (payload.detached(), publication.except);
        let entry = Self { event, payload, position, except, at_ms, bytes };
        Some(((scope, channel), entry))
    }

    fn told(&self, key: CacheKey) -> ToldEvent {
        ToldEvent {
            key,
            event: self.event.as_str().to_owned(),
            payload: self.payload.as_str().to_owned(),
            position: self.position.to_string(),
            at_ms: self.at_ms,
        }
    }
}

impl Kept {
    fn insert(&mut self, app: AppId, key: (Scope, ChannelName), entry: LastEntry) {
        let of_app = self.apps.entry(app).or_default();
        // The event of the channel is removed first, so that the new one is the newest.
        let before = of_app.events.remove(&key).map_or(0, |before| before.bytes);
        let added = entry.bytes;
        of_app.events.insert(key, entry);
        of_app.bytes = of_app.bytes + added - before;
        self.bytes = self.bytes + added - before;
    }

    fn keep_to(&mut self, app: AppId, limits: &LastEventLimits) -> Option<Limit> {
        let mut exceeded = None;
        while self.apps.get(&app).is_some_and(|of_app| of_app.bytes > limits.app_bytes_max) {
            exceeded = Some(Limit::CacheAppBytes);
            self.drop_oldest(app);
        }
        if self.bytes <= limits.bytes_max {
            return exceeded;
        }
        let mut fullest: BinaryHeap<_> =
            self.apps.iter().map(|(app, of_app)| (of_app.bytes, *app)).collect();
        // A little more is dropped, so that not every further event makes all apps be looked at.
        let bytes = limits.bytes_max - limits.bytes_max / SERVER_SLACK_SHARE;
        while self.bytes > bytes {
            let Some((_, app)) = fullest.pop() else { break };
            self.drop_oldest(app);
            fullest.extend(self.apps.get(&app).map(|of_app| (of_app.bytes, app)));
        }
        Some(Limit::CacheBytes)
    }

    fn forget(&mut self, is_gone: impl Fn(&ScopeKey) -> bool) {
        for (app, of_app) in &mut self.apps {
            let (mut bytes, mut judged) = (0, HashMap::new());
            of_app.events.retain(|(scope, _), entry| {
                // An app has few scopes, and may have many channels.
                let is_scope_gone = *judged
                    .entry(scope.clone())
                    .or_insert_with(|| is_gone(&ScopeKey { app: *app, scope: scope.clone() }));
                let stays = !is_scope_gone;
                bytes += if stays { 0 } else { entry.bytes };
                stays
            });
            of_app.bytes -= bytes;
            self.bytes -= bytes;
        }
        self.apps.retain(|_, of_app| !of_app.events.is_empty());
    }

    fn oldest(&self, app: AppId) -> Option<&LastEntry> {
        self.apps.get(&app)?.events.front().map(|(_, oldest)| oldest)
    }

    fn drop_oldest(&mut self, app: AppId) {
        let Some(of_app) = self.apps.get_mut(&app) else { return };
        let dropped = of_app.events.pop_front().map_or(0, |(_, dropped)| dropped.bytes);
        of_app.bytes -= dropped;
        self.bytes -= dropped;
        if of_app.events.is_empty() {
            self.apps.remove(&app);
        }
    }
}

#[cfg(test)]
mod tests;
