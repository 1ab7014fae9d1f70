//! The record of all published events, with which each subscriber's deliveries are compared: all of them, in order,
//! and once.
//!
//! Each source numbers what it publishes on each channel: 1, 2, 3, … Between the reply to its join
//! and that to its leave, a subscriber must hear every source without a gap.

use crate::{padded, wire};

/// A publisher on a channel: the web application first, then clients.
pub(super) const SOURCES: usize = 1 + SPEAKERS;

/// The web application, by triggers.
pub(super) const TRIGGERS: usize = 0;

/// Clients that publish on a channel.
pub(super) const SPEAKERS: usize = 3;

/// An event, as its payload says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) channel: usize,
    pub(super) source: usize,
    /// The source's own count on this channel, from 1.
    pub(super) number: u64,
    /// When it was published, in microseconds of the run.
    pub(super) sent_us: u64,
}

impl Event {
    /// Its payload, of this number of bytes.
    pub(super) fn payload(&self, bytes: usize) -> String {
        let Self { channel, source, number, sent_us } = self;
        padded(&format!(r#""n":{number},"c":{channel},"s":{source},"t":{sent_us}"#), bytes)
    }

    /// Finds the payload of one in a message; `None` in any other message.
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let index = |key: &[u8]| usize::try_from(wire::number(message, key)?).ok();
        Some(Self {
            number: wire::sequence(message)?,
            channel: index(br#""c":"#)?,
            source: index(br#""s":"#).filter(|source| *source < SOURCES)?,
            sent_us: wire::number(message, br#""t":"#)?,
        })
    }
}

/// A number of each source.
pub(super) type Numbers = [u64; SOURCES];

/// The number of events that were published on each channel.
pub(super) struct PublishedEvents {
    published: Vec<Numbers>,
}

impl PublishedEvents {
    pub(super) fn new(channels: usize) -> Self {
        Self { published: vec![[0; SOURCES]; channels] }
    }

    /// How many channels there are.
    pub(super) fn channels(&self) -> usize {
        self.published.len()
    }

    /// Enters an event that is published now.
    pub(super) fn publish(&mut self, channel: usize, source: usize, sent_us: u64) -> Event {
        self.published[channel][source] += 1;
        Event { channel, source, number: self.published[channel][source], sent_us }
    }

    /// The last that each source published on a channel.
    pub(super) fn published(&self, channel: usize) -> Numbers {
        self.published[channel]
    }
}

/// A fault of the deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// This number of events is missing.
    Missing(u64),
    /// One came after a later one.
    OutOfOrder,
    /// One came again.
    Twice,
    /// An event arrived at a client that had not joined.
    Stray,
}

/// One join of a subscriber, from its reply to its leave's.
#[derive(Debug, Clone)]
pub(super) struct Span {
    /// The numbers of published events when the reply arrived: the subscriber must receive all later events.
    at_reply: Numbers,
    /// The last that was heard.
    last: [Option<u64>; SOURCES],
}

impl Span {
    /// Begins with the reply.
    pub(super) fn begin(published: Numbers) -> Self {
        Self { at_reply: published, last: [None; SOURCES] }
    }

    /// Judges what was heard. The first may be any of those that were under way during the join.
    pub(super) fn hear(&mut self, source: usize, number: u64) -> Result<(), Fault> {
        let expected = match self.last[source] {
            Some(last) => last + 1,
            None => number.min(self.at_reply[source] + 1),
        };
        if number < expected {
            let is_last = number + 1 == expected;
            return Err(if is_last { Fault::Twice } else { Fault::OutOfOrder });
        }
        self.last[source] = Some(number);
        match number - expected {
            0 => Ok(()),
            skipped => Err(Fault::Missing(skipped)),
        }
    }

    /// How many have still to be heard.
    pub(super) fn awaited(&self, published: Numbers) -> u64 {
        let awaited = |source: usize| {
            published[source].saturating_sub(self.last[source].unwrap_or(self.at_reply[source]))
        };
        (0..SOURCES).map(awaited).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: Event = Event { channel: 12, source: 3, number: 45, sent_us: 678 };

    #[test]
    fn an_event_is_read_from_its_payload() {
        let payload = EVENT.payload(128);
        assert_eq!(payload.len(), 128);
        assert_eq!(
            Event::read(format!(r#"[null,null,"t","msg",{payload}]"#).as_bytes()),
            Some(EVENT)
        );
        assert_eq!(
            Event::read(br#"["1","1","t","phx_reply",{"status":"ok","response":{}}]"#),
            None
        );
    }

    /// Of a subscriber whose join was answered when five had been published.
    fn joined() -> Span {
        Span::begin([5; SOURCES])
    }

    #[test]
    fn the_first_may_be_one_that_was_under_way_during_the_join() {
        for (first, judged) in [(4, Ok(())), (5, Ok(())), (6, Ok(())), (7, Err(Fault::Missing(1)))]
        {
            assert_eq!(joined().hear(TRIGGERS, first), judged, "{first}");
        }
    }

    #[test]
    fn messages_after_the_reply_have_no_gap_and_arrive_once() {
        let mut span = joined();
        for (number, judged) in [
            (6, Ok(())),
            (7, Ok(())),
            (7, Err(Fault::Twice)),
            (6, Err(Fault::OutOfOrder)),
            (8, Ok(())),
            (11, Err(Fault::Missing(2))),
            (12, Ok(())),
        ] {
            assert_eq!(span.hear(1, number), judged, "{number}");
        }
        assert_eq!(span.hear(2, 4), Ok(()), "each source has a count of its own");
    }

    #[test]
    fn messages_published_since_the_reply_are_awaited() {
        let mut span = joined();
        assert_eq!(span.awaited([5; SOURCES]), 0);
        assert_eq!(span.awaited([5, 5, 5, 7]), 2);
        assert_eq!(span.hear(3, 6), Ok(()));
        assert_eq!(span.awaited([5, 5, 5, 7]), 1);
    }

    #[test]
    fn each_source_counts_for_itself_on_each_channel() {
        let mut events = PublishedEvents::new(2);
        let numbers = [(0, 0), (0, 0), (1, 0), (0, 1)]
            .map(|(channel, source)| events.publish(channel, source, 0).number);
        assert_eq!(numbers, [1, 2, 1, 1]);
        assert_eq!(events.published(0), [2, 1, 0, 0]);
    }
}
