//! Who listens where: how many subscribers an app's topics have, found out when somebody asks.
//!
//! Every fan-out answers for its own thread with no more than was asked for; the answers are added
//! up. If one does not answer there is no figure at all, rather than one that is too low.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap},
};

use actix::prelude::*;

use crate::app::AppId;

use super::{
    fanout::Fanout,
    fanouts::Asked,
    subscriber::Place,
    topic_name::{ChannelName, Scope},
    topics::{Topics, Unanswered},
};

/// A place as listings rank it: where its topic's text stands among an app's topics.
#[derive(Debug, Clone, PartialEq, Eq)]
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

/// Which of an app's occupied places are asked for, and how many at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Whose.
    pub app: AppId,
    /// Of this scope alone.
    pub scope: Option<Scope>,
    /// Whose channel begins like this; a scope as a whole begins like nothing.
    pub prefix: String,
    /// Those that come after this one.
    pub after: Option<Rank>,
    /// So many at most, the first ones.
    pub places_max: usize,
}

impl Survey {
    fn wants(&self, rank: &Rank) -> bool {
        let channel = rank.channel.as_ref().map_or("", ChannelName::as_str);
        channel.starts_with(&self.prefix) && self.after.as_ref().is_none_or(|after| rank > after)
    }
}

/// How many subscribers places have, in their order; never none.
pub type Occupied = BTreeMap<Rank, usize>;

/// Asks a fan-out for what a survey wants of its thread.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Occupied")]
struct Occupancy(Survey);

/// Asks a fan-out how many subscribers of its thread a place has.
#[derive(Debug, Clone, Message)]
#[rtype(result = "usize")]
struct Subscribers(Place);

impl Handler<Occupancy> for Fanout {
    type Result = MessageResult<Occupancy>;

    fn handle(&mut self, Occupancy(survey): Occupancy, _: &mut Self::Context) -> Self::Result {
        // However many there are, no more are kept than may be wanted: the last one gives way.
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
    /// The places of an app that have subscribers, as a survey wants them, over all threads.
    ///
    /// # Errors
    /// [`Unanswered`] if not every thread answered in time.
    pub async fn occupied(&self, survey: Survey) -> Result<Occupied, Unanswered> {
        let places_max = survey.places_max;
        let mut all = Occupied::new();
        for asked in self.fanouts().ask(Occupancy(survey), self.wait_max()).await {
            for (rank, subscribers) in answer(asked)? {
                *all.entry(rank).or_default() += subscribers;
            }
        }
        // Each thread has named its first ones, so of the first ones of all none is missing.
        Ok(all.into_iter().take(places_max).collect())
    }

    /// How many subscribers a place has, over all threads.
    ///
    /// # Errors
    /// [`Unanswered`] if not every thread answered in time.
    pub async fn subscribers(&self, place: Place) -> Result<usize, Unanswered> {
        let asked = self.fanouts().ask(Subscribers(place), self.wait_max()).await;
        asked.into_iter().map(answer).sum()
    }
}

/// A thread that was lost while it was asked had subscribers that may be back by now.
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
                // Twice is once.
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
