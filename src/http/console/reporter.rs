//! The reporter: the task that publishes the events of watched apps to the consoles that watch them.
//!
//! In a cluster, each node tells the others which apps its consoles watch, and all nodes collect the
//! events of these apps. The live node with the lowest number takes the collected events of all nodes,
//! adds up the deliveries of each publication, and publishes each event once. It holds events for one
//! interval first, so that the deliveries of all nodes have arrived.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use actix_web::web;
use bytes::Bytes;
use chrono::Utc;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::watching::LoginChecks;
use crate::{
    app::{AppId, Slug},
    broker::{
        ChannelName, Destination, EventName, JsonObject, Payload, Publication, PublicationOrigin,
        Scope,
        feed::{
            AttemptKind, EVENTS_MAX, Extent, FeedEvent, RefusedAttempt, TopicSession, Watched, What,
        },
        node::NodeId,
    },
    engine::NodeInfo,
    http::{Services, connections::ConnectionIds},
    metrics::labels::Source,
};

/// The interval at which the collected events are published.
const INTERVAL: Duration = Duration::from_millis(250);

/// The number of these intervals between two samples of the rates of an app, and between two checks
/// whether the sessions of the watchers have ended.
const INTERVALS_PER_SAMPLE: u32 = 4;

/// The time within which a node must answer the question for its collected events. The publishing node
/// waits for it.
const TAKE_MAX: Duration = Duration::from_secs(1);

/// The interval at which a node repeats which apps are watched on it. It must be less than the time for
/// which an app goes on being watched.
const REPEAT_INTERVAL: Duration = Duration::from_secs(10);

/// The name of the message by which a node tells the others which apps its consoles watch.
const WATCHED: &str = "feed_watched";

/// The name of the question by which the publishing node takes a node's collected events.
const TAKE: &str = "feed_take";

/// The events and counts that one node has collected of an app, as it sends them to another node.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct NodeCollected {
    app: i32,
    entries: Vec<ShownEvent>,
    dropped: u64,
    publications: u64,
    deliveries: u64,
}

/// An event as the feed publishes it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ShownEvent {
    /// The JSON that pages receive.
    shown: Value,
    /// The position and the topic of a publication, by which the reports of several nodes about one
    /// publication are recognised; `None` for other events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    publication: Option<String>,
    /// Whether another node has accepted the publication, and this one has only delivered it.
    #[serde(default)]
    is_part: bool,
}

/// Answers the messages and questions of other nodes about the feed.
pub fn take_part(services: &web::Data<Services>) {
    let feed = services.topics.feed().clone();
    services.topics.on_message(WATCHED, move |message| {
        let apps: Option<Vec<i32>> = message.and_then(|apps| serde_json::from_slice(&apps).ok());
        feed.linger(apps.into_iter().flatten().map(AppId));
    });
    let collector = Collector::new(services.clone());
    services.topics.on_question(TAKE, move |_| {
        let parts = serde_json::to_vec(&collector.take()).ok().map(Bytes::from);
        async move { parts }
    });
}

/// Publishes the events of the watched apps, for as long as this runs. While no app is watched, it
/// sleeps.
pub async fn run(services: web::Data<Services>) {
    let checks = LoginChecks::start(services.clone());
    let mut reporter = Reporter::new(services);
    loop {
        reporter.services.topics.feed().watched().await;
        for nth in 1..=INTERVALS_PER_SAMPLE {
            reporter.tell_watched().await;
            tokio::time::sleep(INTERVAL).await;
            reporter.report(nth == INTERVALS_PER_SAMPLE).await;
        }
        checks.request();
    }
}

/// Takes the events that this node has collected, and spells them for pages.
struct Collector {
    services: web::Data<Services>,
    ids: ConnectionIds,
}

struct Reporter {
    services: web::Data<Services>,
    collector: Collector,
    /// The apps about which the other nodes were told last, and the time of that message.
    told: Option<(Instant, Vec<AppId>)>,
    /// The state of each app that is watched.
    apps: HashMap<AppId, WatchedApp>,
    /// Whether a node has failed to answer since the last sample. The rates would be too low then.
    is_incomplete: bool,
}

/// An app that is watched.
struct WatchedApp {
    /// The events that wait for the deliveries of other nodes.
    held: ShownEvents,
    /// The number of events that could not be published.
    lost: u64,
    rate: Rate,
}

/// Events, and the number of those that were left out.
#[derive(Debug, Default, PartialEq)]
struct ShownEvents {
    all: Vec<ShownEvent>,
    /// The index in `all` of each publication, by [`ShownEvent::publication`].
    publications: HashMap<String, usize>,
    dropped: u64,
}

/// The counts of an app since its last sample.
struct Rate {
    since: Instant,
    publications: u64,
    deliveries: u64,
}

impl Reporter {
    fn new(services: web::Data<Services>) -> Self {
        let collector = Collector::new(services.clone());
        Self { services, collector, told: None, apps: HashMap::new(), is_incomplete: false }
    }

    /// Tells the other nodes which apps are watched here, if that has changed or the last message is
    /// [`REPEAT_INTERVAL`] old.
    async fn tell_watched(&mut self) {
        if !self.services.topics.is_clustered() {
            return;
        }
        let apps = self.services.topics.feed().watched_here();
        let is_known = self
            .told
            .as_ref()
            .is_some_and(|(at, told)| at.elapsed() < REPEAT_INTERVAL && *told == apps);
        if is_known || apps.is_empty() {
            return;
        }
        let ids: Vec<_> = apps.iter().map(|app| app.0).collect();
        let message = serde_json::to_vec(&ids).unwrap_or_default();
        let told = self.services.topics.tell_nodes(WATCHED, &message).await;
        // If a node could not be told, all are told again after the next interval.
        self.told = told.ok().map(|()| (Instant::now(), apps));
    }

    /// The nodes whose events this node publishes, including its own; empty if another node publishes.
    fn nodes(&self) -> Vec<NodeId> {
        let own = self.services.topics.node();
        let Some(engine) = self.services.topics.engine() else { return vec![own] };
        let nodes: Vec<_> = engine.nodes().iter().map(|NodeInfo { node, .. }| *node).collect();
        match nodes.iter().min() {
            Some(lowest) if *lowest == own => nodes,
            _ => Vec::new(),
        }
    }

    async fn report(&mut self, is_sample_due: bool) {
        let nodes = self.nodes();
        if nodes.is_empty() {
            // Another node publishes, and takes this node's events from its feed.
            self.apps.clear();
            self.services.topics.feed().forget_unwatched(Instant::now());
            return;
        }
        let mut found: BTreeMap<AppId, Vec<NodeCollected>> = BTreeMap::new();
        for taken in join_all(nodes.iter().map(|node| self.take_of(*node))).await {
            self.is_incomplete |= taken.is_none();
            for part in taken.into_iter().flatten() {
                found.entry(AppId(part.app)).or_default().push(part);
            }
        }
        self.apps.retain(|app, _| found.contains_key(app));
        for (app, parts) in found {
            let slug = self.services.directory.load().by_id(app).map(|app| app.slug.clone());
            // The events of an app that has been deleted meanwhile are dropped.
            let Some(slug) = slug else {
                self.publish(app, "deleted", &json!({})).await;
                continue;
            };
            let watch = self.apps.entry(app).or_insert_with(WatchedApp::new);
            let mut due = watch.take(parts, EVENTS_MAX);
            due.dropped += watch.lost;
            let lost = match self.publish_entries(app, due).await {
                Ok(()) => 0,
                Err(missed) => missed,
            };
            if let Some(watch) = self.apps.get_mut(&app) {
                watch.lost = lost;
            }
            if is_sample_due {
                self.publish_sample(app, &slug).await;
            }
        }
        self.is_incomplete &= !is_sample_due;
    }

    /// Takes the collected events of a node; `None` if it does not answer in time.
    async fn take_of(&self, node: NodeId) -> Option<Vec<NodeCollected>> {
        let topics = &self.services.topics;
        if node == topics.node() {
            return Some(self.collector.take());
        }
        let taken = topics.ask_node(node, TAKE, b"", TAKE_MAX).await.ok()?;
        serde_json::from_slice(&taken).ok()
    }

    /// Publishes events.
    ///
    /// # Errors
    /// The number of events that the watchers have missed.
    async fn publish_entries(
        &self,
        app: AppId,
        ShownEvents { all, dropped, .. }: ShownEvents,
    ) -> Result<(), u64> {
        if all.is_empty() && dropped == 0 {
            return Ok(());
        }
        let missed = all.len() as u64 + dropped;
        let events: Vec<_> = all.into_iter().map(|entry| entry.shown).collect();
        let batch = json!({ "events": events, "dropped": dropped });
        if self.publish(app, "events", &batch).await { Ok(()) } else { Err(missed) }
    }

    async fn publish_sample(&mut self, app: AppId, slug: &Slug) {
        let Some(watch) = self.apps.get_mut(&app) else { return };
        let rate = std::mem::replace(&mut watch.rate, Rate::begin());
        // A sample is left out if its rates would be too low.
        if self.is_incomplete {
            return;
        }
        let Ok(found) = self.services.topics.connections(app, None, 0).await else { return };
        let per_second = |count: u64| count as f64 / rate.since.elapsed().as_secs_f64().max(0.001);
        let sample = json!({
            "at": Utc::now().timestamp_millis(),
            // A page learns by this that the app was renamed.
            "app": slug.as_str(),
            "sessions": found.total,
            "publications": per_second(rate.publications),
            "deliveries": per_second(rate.deliveries),
        });
        self.publish(app, "sample", &sample).await;
    }

    async fn publish(&self, app: AppId, event: &str, payload: &Value) -> bool {
        let (Ok(scope), Ok(channel), Ok(event), Ok(payload)) = (
            Scope::parse(Scope::CONSOLE),
            ChannelName::parse(&app.0.to_string()),
            EventName::parse(event),
            JsonObject::parse(&payload.to_string()),
        ) else {
            return false;
        };
        let publication = Publication {
            app: AppId::CONSOLE,
            scope,
            destination: Destination::Channel(channel),
            event,
            payload: Payload::from(payload),
            origin: PublicationOrigin::Trigger,
            except: None,
        };
        self.services.topics.publish(publication).await.is_ok()
    }
}

impl WatchedApp {
    fn new() -> Self {
        Self { held: ShownEvents::default(), lost: 0, rate: Rate::begin() }
    }

    /// Takes the collected events of all nodes, and returns the events that are due. Events of a single
    /// node are due at once, those of several nodes one interval later.
    fn take(&mut self, parts: Vec<NodeCollected>, entries_max: usize) -> ShownEvents {
        let is_alone = parts.len() == 1;
        let mut new = ShownEvents::default();
        for part in parts {
            self.rate.publications += part.publications;
            self.rate.deliveries += part.deliveries;
            new.dropped += part.dropped;
            for entry in part.entries {
                if !self.held.add_up(&entry) && !new.add_up(&entry) {
                    new.push(entry);
                }
            }
        }
        let held = std::mem::replace(&mut self.held, new);
        let mut due = match is_alone {
            true => held.followed_by(std::mem::take(&mut self.held)),
            false => held,
        };
        due.all.sort_by_key(|entry| entry.shown["at"].as_u64());
        due.keep(entries_max);
        due
    }
}

impl ShownEvents {
    /// Adds the deliveries of a publication to the entry that another node has reported for it. Returns
    /// `false` if there is no such entry.
    fn add_up(&mut self, entry: &ShownEvent) -> bool {
        let nth = entry.publication.as_ref().and_then(|name| self.publications.get(name));
        let Some(same) = nth.and_then(|nth| self.all.get_mut(*nth)) else { return false };
        let deliveries = [&*same, entry].map(|each| each.shown["deliveries"].as_u64());
        same.shown["deliveries"] = deliveries.iter().flatten().sum::<u64>().into();
        same.is_part &= entry.is_part;
        true
    }

    fn push(&mut self, entry: ShownEvent) {
        if let Some(name) = &entry.publication {
            self.publications.insert(name.clone(), self.all.len());
        }
        self.all.push(entry);
    }

    fn followed_by(mut self, other: Self) -> Self {
        self.dropped += other.dropped;
        other.all.into_iter().for_each(|entry| self.push(entry));
        self
    }

    /// Drops the parts of publications that the accepting node did not report, and then the events beyond
    /// `entries_max`, which are counted as dropped.
    fn keep(&mut self, entries_max: usize) {
        self.all.retain(|entry| !entry.is_part);
        self.dropped += self.all.len().saturating_sub(entries_max) as u64;
        self.all.truncate(entries_max);
    }
}

impl Rate {
    fn begin() -> Self {
        Self { since: Instant::now(), publications: 0, deliveries: 0 }
    }
}

impl Collector {
    fn new(services: web::Data<Services>) -> Self {
        let ids = ConnectionIds::new(&services.settings.secrets.secret_key_base);
        Self { services, ids }
    }

    /// The collected events of each app that is watched on any node.
    fn take(&self) -> Vec<NodeCollected> {
        let taken = self.services.topics.feed().take(Instant::now()).into_iter();
        let apps = self.services.directory.load();
        let part = |Watched { app, collected }| {
            // The events of a deleted app are dropped.
            let slug = apps.by_id(app).map(|app| app.slug.clone());
            let spelled = |slug| collected.events.into_iter().map(move |e| self.spell(&slug, e));
            NodeCollected {
                app: app.0,
                entries: slug.map(spelled).into_iter().flatten().collect(),
                dropped: collected.dropped,
                publications: collected.publications,
                deliveries: collected.deliveries,
            }
        };
        taken.map(part).collect()
    }

    fn spell(&self, slug: &Slug, FeedEvent { at_ms, what }: FeedEvent) -> ShownEvent {
        let is_part = matches!(what, What::Published { extent: Extent::Part, .. });
        let shown = match what {
            What::Published {
                scope,
                destination,
                event,
                position,
                bytes,
                deliveries,
                source,
                extent: _,
            } => {
                json!({
                    "at": at_ms,
                    "kind": "publication",
                    "topic": self.topic(slug, &scope, &destination),
                    "event": event.as_str(),
                    "position": position.to_string(),
                    "bytes": bytes,
                    "deliveries": deliveries,
                    "by": if source == Source::Trigger { "http" } else { "client" },
                })
            }
            What::Joined(whose) => self.of_session("join", at_ms, &whose),
            What::Left(whose) => self.of_session("leave", at_ms, &whose),
            What::Refused(RefusedAttempt { kind, topic, reason, address }) => {
                let (of, call) = match &kind {
                    AttemptKind::Join => ("join", None),
                    AttemptKind::Push => ("push", None),
                    AttemptKind::Call(call) => ("call", Some(&**call)),
                };
                json!({
                    "at": at_ms,
                    "kind": "refusal",
                    "of": of,
                    "call": call,
                    "topic": topic.as_deref(),
                    "reason": reason,
                    "address": address.to_string(),
                })
            }
        };
        let publication = match (shown["topic"].as_str(), shown["position"].as_str()) {
            (Some(topic), Some(position)) => Some(format!("{position} {topic}")),
            _ => None,
        };
        ShownEvent { shown, publication, is_part }
    }

    fn of_session(&self, kind: &str, at_ms: u64, whose: &TopicSession) -> Value {
        let TopicSession { topic, session, sub } = whose;
        json!({
            "at": at_ms,
            "kind": kind,
            "topic": &**topic,
            "session": self.ids.id(*session),
            "sub": sub.as_deref(),
        })
    }

    /// The topic of a destination. That of `#general` has this word in place of a channel.
    fn topic(&self, slug: &Slug, scope: &Scope, destination: &Destination) -> String {
        match destination {
            Destination::Channel(channel) => {
                self.services.addressing().spell(scope, slug, Some(channel))
            }
            Destination::General => format!("{scope}:{slug}:{}", destination.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: Option<&str>, at: u64, deliveries: u64, is_part: bool) -> ShownEvent {
        let shown = json!({ "at": at, "deliveries": deliveries });
        ShownEvent { shown, publication: name.map(str::to_owned), is_part }
    }

    fn part(entries: Vec<ShownEvent>, dropped: u64) -> NodeCollected {
        NodeCollected {
            entries,
            dropped,
            publications: 1,
            deliveries: 2,
            ..NodeCollected::default()
        }
    }

    /// The time and the deliveries of each event, and how many were left out.
    fn shown(due: ShownEvents) -> (Vec<(u64, u64)>, u64) {
        let number =
            |entry: &ShownEvent, field: &str| entry.shown[field].as_u64().expect("a number");
        let all = due.all.iter().map(|entry| (number(entry, "at"), number(entry, "deliveries")));
        (all.collect(), due.dropped)
    }

    #[test]
    fn deliveries_of_one_publication_are_added_up_over_nodes_and_intervals() {
        let mut watch = WatchedApp::new();
        let mut round = |parts| shown(watch.take(parts, 3));
        // The part of one node comes before the whole of another.
        let first = vec![
            part(vec![entry(Some("a"), 5, 1, true), entry(None, 4, 0, false)], 0),
            part(vec![entry(Some("b"), 3, 2, false)], 1),
        ];
        assert_eq!(round(first), (vec![], 0), "all of it waits for the other nodes");
        let second = vec![
            part(vec![entry(Some("b"), 3, 7, true)], 0),
            part(vec![entry(Some("a"), 5, 4, false), entry(Some("c"), 6, 0, true)], 0),
        ];
        assert_eq!(round(second), (vec![(3, 9), (4, 0), (5, 5)], 1));
        // A part whose publication was left out is not shown, and what is too much is counted.
        let third = (0..5).map(|at| entry(None, at, 0, false)).collect();
        assert_eq!(round(vec![part(third, 0), part(vec![], 0)]), (vec![], 0));
        let rest = (vec![(0, 0), (1, 0), (2, 0)], 2);
        assert_eq!(round(vec![part(vec![], 0), part(vec![], 0)]), rest);
        assert_eq!((watch.rate.publications, watch.rate.deliveries), (8, 16));
    }

    #[test]
    fn a_single_node_waits_for_no_other() {
        let mut watch = WatchedApp::new();
        let due = watch.take(vec![part(vec![entry(Some("a"), 1, 1, false)], 2)], 3);
        assert_eq!(shown(due), (vec![(1, 1)], 2));
    }
}
