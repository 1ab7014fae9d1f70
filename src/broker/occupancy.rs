//! Occupancy: the number of subscribers of an app's topics, counted when it is requested.
//!
//! The question goes to every fan-out of every node, which answers for its own thread with no more places
//! than were requested, and the answers are added up. If one does not answer, the question fails, because
//! the sum would be too low.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap},
    sync::Arc,
};

use actix::prelude::*;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;

use crate::app::AppId;

use super::{
    cluster::ClusterQuestion,
    counts::ScheduledCount,
    fanout::Fanout,
    fanouts::Asked,
    now_ms,
    pages::{self, Page},
    stream::Stream,
    subscriber::Place,
    topic_name::{ChannelName, Scope},
    topics::{Topics, Unanswered},
};

/// A place in the order of listings, which is the order of the topics' texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rank {
    /// The scope.
    pub scope: Scope,
    /// The channel; `None` is the scope as a whole.
    pub channel: Option<ChannelName>,
}

impl Ord for Rank {
    /// In a topic's text a colon ends the scope, and the scope as a whole comes before its channels.
    fn cmp(&self, other: &Self) -> Ordering {
        let (one, another) = (self.scope.as_str().bytes(), other.scope.as_str().bytes());
        let scopes = one.chain([b':']).cmp(another.chain([b':']));
        scopes.then_with(|| self.channel.cmp(&other.channel))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A selection of an app's occupied places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Survey {
    /// The app.
    pub app: AppId,
    /// The only scope; `None` selects all.
    pub scope: Option<Scope>,
    /// The prefix of the channels that are counted. A scope as a whole counts only with an empty
    /// prefix.
    pub prefix: String,
    /// The place after which the selection begins; `None` selects all.
    pub after: Option<Rank>,
    /// The most places in the answer; the first ones are taken.
    pub places_max: usize,
}

impl Survey {
    fn wants(&self, rank: &Rank) -> bool {
        let channel = rank.channel.as_ref().map_or("", ChannelName::as_str);
        channel.starts_with(&self.prefix) && self.after.as_ref().is_none_or(|after| rank > after)
    }
}

/// The number of subscribers of each place, in the order of places. Places without subscribers are
/// absent.
pub type Occupied = BTreeMap<Rank, usize>;

/// Asks a fan-out or a node for its places of a survey.
#[derive(Debug, Clone, Message, Serialize, Deserialize)]
#[rtype(result = "Occupied")]
pub(super) struct Occupancy(Survey);

/// Asks a fan-out or a node for the number of its subscribers of a place.
#[derive(Debug, Clone, Message, Serialize, Deserialize)]
#[rtype(result = "usize")]
pub(super) struct Subscribers(Place);

impl Handler<Occupancy> for Fanout {
    type Result = MessageResult<Occupancy>;

    fn handle(&mut self, Occupancy(survey): Occupancy, _: &mut Self::Context) -> Self::Result {
        // No more places are kept than were requested: the last one is dropped.
        let mut first = BinaryHeap::new();
        for (rank, subscribers) in self.occupied(survey.app, survey.scope.as_ref()) {
            if survey.wants(&rank) {
                first.push((rank, subscribers));
                if first.len() > survey.places_max {
                    first.pop();
                }
            }
        }
        MessageResult(first.into_iter().collect())
    }
}

impl Handler<Subscribers> for Fanout {
    type Result = usize;

    fn handle(&mut self, Subscribers(place): Subscribers, _: &mut Self::Context) -> usize {
        self.subscribers_of(&place)
    }
}

impl Topics {
    /// The places of an app that have subscribers, as a survey selects them, over all threads of
    /// all nodes.
    ///
    /// # Errors
    /// [`Unanswered`] if not every thread answered in time.
    pub async fn occupied(&self, mut survey: Survey) -> Result<Occupied, Unanswered> {
        let mut all = Occupied::new();
        loop {
            let pages = self.everywhere(Occupancy(survey.clone())).await?;
            let (places, cut) = pages::joined(pages, |(rank, _)| rank.clone());
            let found = added_up(places.into_iter(), survey.places_max);
            survey.places_max -= found.len();
            all.extend(found);
            if cut.is_none() || survey.places_max == 0 {
                return Ok(all);
            }
            survey.after = cut;
        }
    }

    /// The number of subscribers of a place, over all threads of all nodes.
    ///
    /// # Errors
    /// [`Unanswered`] if not every thread answered in time.
    pub async fn subscribers(&self, place: Place) -> Result<usize, Unanswered> {
        Ok(self.everywhere(Subscribers(place)).await?.into_iter().sum())
    }

    /// Sends the number of a channel's subscribers to those that are sent it, until it has not changed
    /// since it was counted.
    pub(super) async fn tell_count_until_settled(
        &self,
        mut scheduled: ScheduledCount,
        place: Place,
        stream: Arc<Stream>,
    ) {
        while let Some(next) = self.tell_count(scheduled, &place, &stream).await {
            scheduled = next;
        }
    }

    /// Counts the subscribers of a channel once it is time, and sends their number. Returns the next count
    /// if the number has changed meanwhile.
    pub(super) async fn tell_count(
        &self,
        scheduled: ScheduledCount,
        place: &Place,
        stream: &Stream,
    ) -> Option<ScheduledCount> {
        let (channel, counts) = (place.channel.as_ref()?, stream.counts());
        if !scheduled.wait.is_zero() {
            sleep(scheduled.wait).await;
        }
        let round = counts.begin(channel, scheduled, now_ms())?;
        let Ok(count) = self.subscribers(place.clone()).await else {
            return counts.fail(channel, &round, now_ms());
        };
        if counts.counted(channel, &round, count, now_ms()) {
            stream.tell_count(channel, count);
        }
        counts.end(channel, &round, now_ms())
    }
}

/// The first places of all answers. None is missing, because each answer has the first places of its
/// thread or node.
fn added_up(parts: impl Iterator<Item = (Rank, usize)>, places_max: usize) -> Occupied {
    let mut all = Occupied::new();
    for (rank, subscribers) in parts {
        *all.entry(rank).or_default() += subscribers;
    }
    all.into_iter().take(places_max).collect()
}

impl ClusterQuestion for Occupancy {
    const NAME: &'static str = "occupied";
    /// A list, because the keys of a JSON object are text.
    type Answer = Page<(Rank, usize)>;

    async fn answer(self, topics: Topics) -> Result<Self::Answer, Unanswered> {
        let places_max = self.0.places_max;
        let asked = topics.fanouts().ask(self, topics.wait_max()).await;
        let of_threads: Vec<_> = asked.into_iter().map(answer).collect::<Result<_, _>>()?;
        let places = added_up(of_threads.into_iter().flatten(), places_max);
        Ok(Page::of(places.into_iter().collect()))
    }
}

impl ClusterQuestion for Subscribers {
    const NAME: &'static str = "subscribers";
    type Answer = usize;

    async fn answer(self, topics: Topics) -> Result<usize, Unanswered> {
        let asked = topics.fanouts().ask(self, topics.wait_max()).await;
        asked.into_iter().map(answer).sum()
    }
}

/// Takes the answer of a thread. A thread that was lost during the question makes it fail, because its
/// subscribers may have reconnected to other threads meanwhile, or not.
fn answer<T>(asked: Asked<T>) -> Result<T, Unanswered> {
    match asked {
        Asked::Answered(answer) => Ok(answer),
        Asked::Lost | Asked::Late => Err(Unanswered),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Broker, channel, key, whole};
    use super::*;

    fn rank(topic: &str) -> Rank {
        let (scope, channel) = topic.split_once(':').expect("a colon");
        let channel = (channel != "*").then(|| ChannelName::parse(channel).expect("a channel"));
        Rank { scope: Scope::parse(scope).expect("a scope"), channel }
    }

    fn survey(scope: Option<&str>, prefix: &str, after: Option<&str>, places_max: usize) -> Survey {
        let scope = scope.map(|scope| Scope::parse(scope).expect("a scope"));
        Survey { app: AppId(1), scope, prefix: prefix.into(), after: after.map(rank), places_max }
    }

    #[test]
    fn places_rank_as_their_topics_do_as_text() {
        let app = "app";
        let spell = |Rank { scope, channel }: &Rank| match channel {
            Some(channel) => format!("{scope}:{app}:{channel}"),
            None => format!("{scope}:{app}"),
        };
        let mut ranks: Vec<_> = [
            "b:*", "a:x", "a:*", "a-b:x", "a1:x", "ab:*", "A:x", "a:x:y", "a:x y", "a:\u{e9}",
            "a:X",
        ]
        .map(rank)
        .into();
        let mut topics: Vec<_> = ranks.iter().map(spell).collect();
        ranks.sort();
        topics.sort();
        assert_eq!(ranks.iter().map(spell).collect::<Vec<_>>(), topics);
    }

    #[actix_web::test]
    async fn subscribers_are_added_up_over_all_threads_and_filtered() {
        let broker = Broker::start();
        let other = broker.another_thread();
        let (public, private) = (key(1, "public"), key(1, "private"));
        for (at, id, places) in [
            (&broker, 1, vec![whole(&public), channel(&public, "a"), channel(&public, "ab")]),
            (&broker, 2, vec![channel(&public, "a"), channel(&private, "a")]),
            (&other, 3, vec![channel(&public, "a"), channel(&public, "b"), whole(&public)]),
            (&other, 4, vec![whole(&key(2, "public")), channel(&key(2, "public"), "a")]),
        ] {
            let probe = at.session(id).await;
            for place in places {
                // A place that is found twice is counted once.
                at.join(&probe, place.clone()).await.expect("a place");
                at.join(&probe, place).await.expect("a place");
            }
        }
        let all =
            [("private:a", 1), ("public:*", 2), ("public:a", 3), ("public:ab", 1), ("public:b", 1)];
        for (survey, expected) in [
            (survey(None, "", None, 10), &all[..]),
            (survey(Some("public"), "", None, 10), &all[1..]),
            (survey(Some("none"), "", None, 10), &[]),
            (survey(Some("public"), "a", None, 10), &all[2..4]),
            (survey(None, "", None, 2), &all[..2]),
            (survey(None, "", Some("public:*"), 2), &all[2..4]),
            (survey(None, "", Some("public:aa"), 2), &all[3..]),
            (survey(None, "", Some("public:b"), 2), &[]),
        ] {
            let found = broker.topics.occupied(survey.clone()).await.expect("answers");
            let expected: Vec<_> = expected.iter().map(|(topic, n)| (rank(topic), *n)).collect();
            assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "{survey:?}");
        }
        for (place, expected) in [
            (channel(&public, "a"), 3),
            (whole(&public), 2),
            (channel(&public, "c"), 0),
            (whole(&private), 0),
            (whole(&key(2, "public")), 1),
        ] {
            assert_eq!(broker.topics.subscribers(place.clone()).await, Ok(expected), "{place:?}");
        }
    }
}
