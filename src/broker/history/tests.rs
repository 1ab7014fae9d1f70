//! Histories step by step, then at random against a listener who misses nothing.

use std::ops::Range;

use proptest::prelude::*;

use super::{
    super::{
        position::Epochs,
        publication::Payload,
        testing::{key, publication},
    },
    channels::CHANNEL_BYTES,
    log::{PLACE_BYTES, tests::LOOKUPS},
    *,
};
use bytes::Bytes;

const ROOMY: Retention =
    Retention { publications_max: 1_000, age_max: Duration::from_secs(1_000), channels_max: 1_000 };

/// A history on a clock that is set by hand.
struct Clocked {
    history: History,
    retention: Retention,
    bytes_max: usize,
    now_ms: u64,
}

impl Clocked {
    fn new(retention: Retention) -> Self {
        let history = History::new(Epochs::new().give(&key(1, "public")));
        Self { history, retention, bytes_max: usize::MAX, now_ms: 1_000_000 }
    }

    fn publish(&mut self, destination: &str) -> u64 {
        let publication = publication(&key(1, "public"), destination, "msg");
        let position = self.history.append(&publication, self.now_ms, &self.retention);
        assert_eq!(position, self.history.head());
        self.shrink();
        position.offset
    }

    fn publish_all(&mut self, destinations: &[&str]) {
        for destination in destinations {
            self.publish(destination);
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.now_ms += seconds * 1_000;
        self.history.expire(self.now_ms, &self.retention);
    }

    fn at(&self, offset: u64) -> StreamPosition {
        StreamPosition { offset, ..self.history.head() }
    }

    /// The offsets that a subscriber of a channel, or of the whole scope (`*`), missed.
    fn missed(&self, place: &str, since: u64) -> Result<Vec<u64>, Gap> {
        self.missed_up_to(place, since, self.history.head().offset)
    }

    fn missed_up_to(&self, place: &str, since: u64, up_to: u64) -> Result<Vec<u64>, Gap> {
        let channel = (place != "*").then(|| ChannelName::parse(place).expect("a channel"));
        let missed = self.history.after(channel.as_ref(), self.at(since), up_to, usize::MAX)?;
        Ok(missed.into_iter().map(|(offset, _)| offset).collect())
    }
}

#[test]
fn each_place_is_given_what_it_would_have_heard_in_order() {
    let mut clocked = Clocked::new(ROOMY);
    clocked.publish_all(&["a", "b", "#general", "a", "b", "#general"]);
    for (place, since, up_to, expected) in [
        ("*", 0, 6, &[1, 2, 3, 4, 5, 6][..]),
        ("*", 2, 5, &[3, 4, 5]),
        ("a", 0, 6, &[1, 3, 4, 6]),
        ("b", 2, 6, &[3, 5, 6]),
        ("b", 2, 4, &[3]),
        ("c", 0, 6, &[3, 6]),
        ("c", 6, 6, &[]),
    ] {
        let missed = clocked.missed_up_to(place, since, up_to);
        assert_eq!(missed.as_deref(), Ok(expected), "{place} {since} {up_to}");
    }
}

#[test]
fn a_join_visits_no_more_publications_than_it_is_sent() {
    let mut clocked = Clocked::new(Retention { publications_max: 10_000, ..ROOMY });
    clocked.publish_all(&["a", "#general"].repeat(5_000));
    let (channel, head) = (ChannelName::parse("a").expect("a channel"), clocked.history.head());
    let (history, channel) = (&clocked.history, Some(&channel));
    let offsets = |publications: Vec<(u64, Retained)>| {
        publications.into_iter().map(|(offset, _)| offset).collect::<Vec<_>>()
    };
    let newest = |n: usize| offsets(history.newest(channel, head.offset, n));
    LOOKUPS.set(0);
    assert_eq!(newest(0), [0; 0]);
    assert_eq!(LOOKUPS.get(), 0);
    assert_eq!(newest(3), [9_998, 9_999, 10_000]);
    assert!(LOOKUPS.get() <= 20, "{}", LOOKUPS.get());
    LOOKUPS.set(0);
    let after = |since, publications_max| {
        history.after(channel, clocked.at(since), head.offset, publications_max)
    };
    assert_eq!(after(0, 5), Err(Gap::TooMuch));
    assert_eq!(after(9_994, 5), Err(Gap::TooMuch));
    assert_eq!(after(9_995, 5).map(offsets), Ok((9_996..=10_000).collect()));
    assert!(LOOKUPS.get() <= 100, "{}", LOOKUPS.get());
}

#[test]
fn a_position_of_another_numbering_or_of_the_future_is_recognised() {
    let mut clocked = Clocked::new(ROOMY);
    clocked.publish("a");
    let other = History::new(Epochs::new().give(&key(1, "public"))).head();
    assert_eq!(clocked.history.after(None, other, 1, usize::MAX), Err(Gap::Epoch));
    assert_eq!(clocked.missed("*", 2), Err(Gap::Unknown));
    assert_eq!(clocked.missed("a", 1), Ok(vec![]));
}

#[test]
fn each_channel_retains_the_newest_of_its_own() {
    let mut clocked = Clocked::new(Retention { publications_max: 2, ..ROOMY });
    clocked.publish_all(&["idle", "#general", "busy", "busy", "busy", "busy"]);
    assert_eq!(clocked.missed("busy", 3), Err(Gap::Expired));
    assert_eq!(clocked.missed("busy", 4), Ok(vec![5, 6]));
    assert_eq!(clocked.missed("*", 3), Err(Gap::Expired));
    assert_eq!(clocked.missed("*", 4), Ok(vec![5, 6]));
    assert_eq!(clocked.missed("idle", 0), Ok(vec![1, 2]), "not because another was busy");
    assert_eq!(clocked.missed("never", 0), Ok(vec![2]));
    clocked.publish_all(&["#general", "#general"]);
    assert_eq!(clocked.missed("idle", 1), Err(Gap::Expired), "it would have heard the first");
    assert_eq!(clocked.missed("idle", 2), Ok(vec![7, 8]));
}

#[test]
fn old_publications_expire_and_too_many_bytes_evict_the_oldest() {
    let mut clocked = Clocked::new(Retention { age_max: Duration::from_secs(10), ..ROOMY });
    clocked.publish_all(&["a", "b"]);
    clocked.pass(9);
    clocked.publish("a");
    clocked.pass(1);
    assert_eq!(clocked.missed("a", 0), Err(Gap::Expired));
    assert_eq!(clocked.missed("a", 1), Ok(vec![3]));
    assert_eq!(clocked.missed("b", 2), Ok(vec![]));
    clocked.pass(9);
    assert!(clocked.history.is_empty());
    assert_eq!(clocked.missed("*", 3), Ok(vec![]));
    assert_eq!(clocked.history.bytes(), 2 * (CHANNEL_BYTES + 1), "the channels are remembered");
    clocked.history.shrink();
    assert_eq!((clocked.history.bytes(), clocked.missed("a", 3)), (0, Ok(vec![])));

    let mut clocked = Clocked::new(ROOMY);
    let (first, second) = (clocked.publish_bytes("a", b""), clocked.publish_bytes("a", b""));
    let (one, ring) = (second - first, 2 * first - second);
    let bytes_max = 3 * one + 2 * ring;
    let mut clocked = Clocked { bytes_max, ..Clocked::new(ROOMY) };
    clocked.publish_all(&["a", "b", "a"]);
    clocked.publish("b");
    assert_eq!(clocked.missed("a", 0), Err(Gap::Expired));
    assert_eq!(clocked.missed("b", 0), Ok(vec![2, 4]));
    assert_eq!(
        clocked.publish_bytes("c", &[0; 10_000]),
        3 * (CHANNEL_BYTES + 1),
        "it does not fit"
    );
    assert!(clocked.history.is_empty());
    assert_eq!(clocked.missed("c", 4), Err(Gap::Expired));
    assert_eq!(clocked.missed("a", 4), Ok(vec![]));
}

impl Clocked {
    /// Publishes bytes; answers how much is retained then.
    fn publish_bytes(&mut self, destination: &str, bytes: &[u8]) -> usize {
        let payload = Payload::Bytes(Bytes::copy_from_slice(bytes));
        let text = publication(&key(1, "public"), destination, "msg");
        let publication = if bytes.is_empty() { text } else { Publication { payload, ..text } };
        self.history.append(&publication, self.now_ms, &self.retention);
        self.shrink();
        self.history.bytes()
    }

    /// Keeps to the bytes.
    fn shrink(&mut self) {
        while self.history.bytes() > self.bytes_max {
            self.history.shrink();
        }
    }
}

#[test]
fn the_newest_come_in_order_and_more_than_may_be_replayed_is_a_gap() {
    let mut clocked = Clocked::new(ROOMY);
    clocked.publish_all(&["a", "b", "#general", "a", "b", "#general"]);
    let a = ChannelName::parse("a").expect("a channel");
    for (channel, up_to, publications_max, expected) in [
        (Some(&a), 6, 2, &[4, 6][..]),
        (Some(&a), 5, 2, &[3, 4]),
        (Some(&a), 6, 9, &[1, 3, 4, 6]),
        (Some(&a), 0, 9, &[]),
        (None, 6, 3, &[4, 5, 6]),
        (None, 4, 3, &[2, 3, 4]),
        (None, 6, 0, &[]),
    ] {
        let newest = clocked.history.newest(channel, up_to, publications_max);
        let newest: Vec<_> = newest.into_iter().map(|(offset, _)| offset).collect();
        assert_eq!(newest, expected, "{channel:?} {up_to} {publications_max}");
    }
    for (channel, publications_max, expected) in
        [(Some(&a), 4, Ok(4)), (Some(&a), 3, Err(Gap::TooMuch)), (None, 5, Err(Gap::TooMuch))]
    {
        let missed = clocked.history.after(channel, clocked.at(0), 6, publications_max);
        assert_eq!(missed.map(|missed| missed.len()), expected);
    }
}

#[test]
fn the_channels_that_were_quiet_the_longest_are_forgotten_and_nothing_is_claimed_of_them() {
    let mut clocked = Clocked::new(Retention { channels_max: 8, ..ROOMY });
    for nth in 0..8 {
        clocked.publish(&format!("c{nth}"));
    }
    assert_eq!(clocked.missed("c0", 0), Ok(vec![1]));
    clocked.publish("c0");
    clocked.publish("one too many");
    assert_eq!(clocked.history.channels.len(), 7);
    assert_eq!(clocked.missed("c1", 1), Err(Gap::Expired));
    assert_eq!(clocked.missed("never", 2), Err(Gap::Expired), "it may be one that was forgotten");
    assert_eq!(clocked.missed("never", 3), Ok(vec![]));
    assert_eq!(clocked.missed("c3", 0), Ok(vec![4]), "this one was not");
    assert_eq!(clocked.missed("c0", 0), Ok(vec![1, 9]));
    assert_eq!(clocked.missed("*", 2), Err(Gap::Expired));
    // A channel that is published to again has not been complete all along.
    clocked.publish("c1");
    assert_eq!(clocked.missed("c1", 0), Err(Gap::Expired));
    assert_eq!(clocked.missed("c1", 3), Ok(vec![11]));
}

#[test]
fn where_nothing_is_retained_nothing_is_claimed_but_that_nothing_came() {
    let mut clocked = Clocked::new(ROOMY);
    clocked.publish_all(&["a", "#general"]);
    clocked.retention = Retention::NONE;
    clocked.publish("b");
    assert!(clocked.history.is_empty());
    for place in ["a", "b", "*"] {
        assert_eq!(clocked.missed(place, 2), Err(Gap::Expired), "{place}");
        assert_eq!(clocked.missed(place, 3), Ok(vec![]), "{place}");
    }
    clocked.retention = ROOMY;
    clocked.publish("a");
    assert_eq!(clocked.missed("a", 3), Ok(vec![4]));
    assert_eq!(clocked.missed("a", 2), Err(Gap::Expired));
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Step {
    Publish(u8, usize),
    Pass(u64),
    /// The scope's history is lost, and begins anew.
    Forget,
    SwitchOff,
    Ask {
        place: u8,
        back: u64,
        range: u64,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = 0_u8..8;
    let step = prop_oneof![
        12 => (place.clone(), 0_usize..600).prop_map(|(place, size)| Step::Publish(place, size)),
        3 => (0_u64..4).prop_map(Step::Pass),
        1 => Just(Step::Forget),
        1 => Just(Step::SwitchOff),
        12 => (place, 0_u64..30, 0_u64..30)
            .prop_map(|(place, back, range)| Step::Ask { place, back, range }),
    ];
    proptest::collection::vec(step, 1..200)
}

fn bounds() -> impl Strategy<Value = (Retention, usize)> {
    (1_usize..8, 1_usize..30, 1_u64..12, 1_usize..10).prop_map(
        |(publications, bytes, age, channels)| {
            let retention = Retention {
                publications_max: publications,
                age_max: Duration::from_secs(age),
                channels_max: channels,
            };
            (retention, bytes * 400)
        },
    )
}

/// Hears everything: what was published where, by offset. Its position stays while the numbering does.
#[derive(Default)]
struct Perfect(Vec<&'static str>);

/// Places 0 to 5 are channels, of which the last is never published to; 6 is `#general`.
const PLACES: [&str; 7] = ["c0", "c1", "c2", "c3", "c4", "quiet", "#general"];

impl Perfect {
    fn heard(&self, place: &str, offsets: Range<u64>) -> Vec<u64> {
        let concerns = |destination: &str| {
            place == "*" || destination == place || destination == Destination::GENERAL
        };
        let published = (1..).zip(&self.0);
        let heard = published.filter(|(offset, d)| offsets.contains(offset) && concerns(d));
        heard.map(|(offset, _)| offset).collect()
    }
}

proptest! {
    #[test]
    fn a_complete_answer_is_exactly_what_a_perfect_listener_heard(
        (retention, bytes_max) in bounds(),
        steps in steps(),
    ) {
        let epochs = Epochs::new();
        let mut clocked = Clocked { bytes_max, ..Clocked::new(retention) };
        let mut perfect = Perfect::default();
        let mut stale = epochs.give(&key(1, "public"));
        for step in steps {
            match step {
                Step::Publish(place, size) => {
                    let destination = match PLACES[usize::from(place) % 7] {
                        "quiet" => Destination::GENERAL,
                        destination => destination,
                    };
                    clocked.publish_bytes(destination, &vec![0; size]);
                    perfect.0.push(destination);
                }
                Step::Pass(seconds) => clocked.pass(seconds),
                Step::Forget => {
                    stale = clocked.history.head().epoch;
                    clocked.history = History::new(epochs.give(&key(1, "public")));
                    perfect = Perfect::default();
                }
                Step::SwitchOff => {
                    clocked.retention = Retention::NONE;
                    clocked.publish("c0");
                    perfect.0.push("c0");
                    clocked.retention = retention;
                }
                Step::Ask { place, back, range } => {
                    let place = match PLACES[usize::from(place) % 7] {
                        "#general" => "*",
                        channel => channel,
                    };
                    let head = clocked.history.head().offset;
                    let since = head.saturating_sub(back);
                    let up_to = head.min(since + range);
                    let heard = perfect.heard(place, since + 1..up_to + 1);
                    match clocked.missed_up_to(place, since, up_to) {
                        Ok(missed) => prop_assert_eq!(missed, heard),
                        // Nothing is called expired where all of it is retained, and no channel
                        // was forgotten that it could be mistaken for.
                        Err(gap) => {
                            prop_assert_eq!(gap, Gap::Expired);
                            let retained = &clocked.history.retained;
                            let later = perfect.heard(place, since + 1..head + 1);
                            let is_whole = later.iter().all(|offset| retained.get(*offset).is_some());
                            let forgotten = clocked.history.forgotten;
                            prop_assert!(!is_whole || forgotten > since, "{} {}", place, since);
                        }
                    }
                    let other = StreamPosition { epoch: stale, offset: since };
                    prop_assert_eq!(clocked.history.after(None, other, up_to, usize::MAX), Err(Gap::Epoch));
                }
            }
            let History { retained, channels, general, .. } = &clocked.history;
            prop_assert!(clocked.history.bytes() <= bytes_max);
            prop_assert!(channels.len() <= retention.channels_max);
            let lists = || channels.iter().map(|(_, list)| list).chain([general]);
            prop_assert!(lists().all(|list| list.len() <= retention.publications_max));
            prop_assert_eq!(lists().map(List::len).sum::<usize>(), retained.len());
            let sizes = retained.iter().map(|(_, retained)| PLACE_BYTES + retained.size_bytes());
            let names = channels.iter().map(|(channel, _)| CHANNEL_BYTES + channel.as_str().len());
            prop_assert_eq!(sizes.chain(names).sum::<usize>(), clocked.history.bytes());
        }
    }
}
