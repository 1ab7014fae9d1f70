//! Recovery: a join is first sent the publications that it missed, and then new ones.

use super::*;

/// A join that is about to be answered. The answer may carry replayed frames, or the last event of a cache
/// channel.
pub(super) struct RecoveringJoin<'a> {
    pub(super) place: &'a Place,
    pub(super) outbox: &'a Outbox,
    pub(super) topic: &'a ByteString,
    pub(super) format: Format,
    /// The offset after which every publication is delivered to the session.
    pub(super) attached: u64,
    /// The position of the newest publication that this thread has delivered.
    pub(super) boundary: StreamPosition,
}

impl Fanout {
    /// Reads the history for a join, if `wanted` requests it. Returns the result with the frames that the join is
    /// sent.
    pub(super) fn recover(
        &mut self,
        stream: &Stream,
        reader: &RecoveringJoin<'_>,
        wanted: Option<Wanted>,
        ctx: &mut Context<Self>,
    ) -> Option<Box<Recovery>> {
        let RecoveringJoin { place, outbox, topic, attached, boundary, .. } = *reader;
        let wanted = wanted?;
        let is_ahead =
            matches!(wanted.since, Since::Position(since) if since.offset > boundary.offset);
        let log_head = is_ahead.then(|| self.topics.directory().log_head(&place.key)).flatten();
        let channel = place.channel.as_ref();
        let reading = Reading { channel, attached, boundary, log_head };
        let missed = stream.missed(&reading, wanted, now_ms());
        let Missed { mut incomplete, mut limit, mut position, mut attached, publications } = missed;
        let (mut replayed, mut frames) = self.replay(reader, &publications, ctx);
        if frames.iter().map(Frame::size_bytes).sum::<usize>() > outbox.replay_bytes_max() {
            (incomplete, limit) = (Some(Incomplete::TooMuch), Some(Limit::HistoryReplayBytes));
            (position, attached) = (boundary, reader.attached);
            (replayed, frames) = (0, Vec::new());
        }
        limit.into_iter().for_each(|limit| self.topics.metrics().hit(limit));
        let listeners = self.scopes.get_mut(&place.key);
        let group = listeners.and_then(|listeners| listeners.group(place.channel.as_ref()));
        if let Some(group) = group {
            group.set_attached(outbox.session(), topic, attached);
        }
        Some(Box::new(Recovery { incomplete, position, replayed, frames }))
    }

    /// Encodes the publications that a join missed. Returns the number of those that its format can carry, and
    /// their frames.
    fn replay(
        &mut self,
        reader: &RecoveringJoin<'_>,
        publications: &[(u64, Retained)],
        ctx: &mut Context<Self>,
    ) -> (usize, Vec<Frame>) {
        let RecoveringJoin { place, topic, format, boundary, .. } = *reader;
        let level = if place.channel.is_some() { Level::Channel } else { Level::Scope };
        let (now, was_empty) = (Instant::now(), self.replays.is_empty());
        let (mut replayed, mut frames) = (0, Vec::with_capacity(publications.len()));
        for (offset, retained) in publications {
            let (channel, event) = (retained.channel(), retained.event());
            let (payload, sender) = (retained.payload(), retained.sender());
            let position = StreamPosition { offset: *offset, ..boundary };
            let spoken = SpokenPublication { channel, event, payload, position, sender };
            let Some(frame) = self.replays.frame(&spoken, format, level, topic, now) else {
                continue;
            };
            replayed += 1;
            frames.push(frame);
            let is_bytes = matches!(payload, RetainedPayload::Bytes(_));
            if (is_bytes || format.tells_positions_of_json())
                && let Some(encode) = format.encode_position
            {
                frames.push(self.topics.backlog().count(encode(topic, position)));
            }
        }
        if was_empty && !self.replays.is_empty() {
            Self::forget_replays(ctx);
        }
        (replayed, frames)
    }

    /// The last event of a cache channel, which a join is sent first; `None` if the channel is no cache channel, or
    /// if the format does not begin with its last event. An event after the boundary is delivered live, except to
    /// the session that its publisher left out. That session is sent it here, as any later join would be.
    pub(super) fn cached(
        &mut self,
        reader: &RecoveringJoin<'_>,
        ctx: &mut Context<Self>,
    ) -> Option<Cached> {
        let RecoveringJoin { place, outbox, topic, format, boundary, .. } = *reader;
        let channel = place.channel.as_ref().filter(|channel| {
            let is_cache = || reserved::is_cache(place.key.scope.as_str(), channel.as_str());
            format.begins_with_last_event && is_cache()
        })?;
        let Some(last) = self.topics.last_event(place) else { return Some(Cached::Miss) };
        let LastEvent { event, payload, position, except, .. } = last;
        let is_ahead = position.epoch == boundary.epoch && position.offset > boundary.offset;
        if is_ahead && except != Some(outbox.session()) {
            return Some(Cached::ComesLive);
        }
        let (event, payload) = (event.as_str(), RetainedPayload::Json(payload.as_str()));
        let (channel, sender) = (Some(channel.as_str()), Sender::Trigger);
        let spoken = SpokenPublication { channel, event, payload, position, sender };
        let (now, was_empty) = (Instant::now(), self.replays.is_empty());
        let frame = self.replays.frame(&spoken, format, Level::Channel, topic, now);
        if was_empty && !self.replays.is_empty() {
            Self::forget_replays(ctx);
        }
        Some(frame.map_or(Cached::Miss, Cached::Event))
    }

    /// Drops the frames of replays once they have not been used for a while.
    fn forget_replays(ctx: &mut Context<Self>) {
        ctx.run_later(replays::GENERATION_AGE, |fanout, ctx| {
            fanout.replays.turn(Instant::now());
            if !fanout.replays.is_empty() {
                Self::forget_replays(ctx);
            }
        });
    }
}
