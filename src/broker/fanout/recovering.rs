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

/// The frames of the publications that a join missed.
struct ReplayedFrames {
    /// The number of publications, the oldest ones, whose frames would take too many bytes.
    left_out: usize,
    /// The number of publications that have frames.
    replayed: usize,
    frames: Vec<Frame>,
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
        let RecoveringJoin { place, outbox, topic, .. } = *reader;
        let (missed, replayed) = self.missed(stream, reader, wanted?, ctx);
        let Missed { incomplete, limit, position, attached, .. } = missed;
        limit.into_iter().for_each(|limit| self.topics.metrics().hit(limit));
        let listeners = self.scopes.get_mut(&place.key);
        let group = listeners.and_then(|listeners| listeners.group(place.channel.as_ref()));
        if let Some(group) = group {
            group.set_attached(outbox.session(), topic, attached);
        }
        let ReplayedFrames { replayed, frames, .. } = replayed;
        Some(Box::new(Recovery { incomplete, position, replayed, frames }))
    }

    /// Reads the publications that a join missed, and encodes them. If the frames would take too many bytes, a gap
    /// counts as too large to be closed, and of the newest publications only those that fit are left.
    fn missed(
        &mut self,
        stream: &Stream,
        reader: &RecoveringJoin<'_>,
        wanted: Wanted,
        ctx: &mut Context<Self>,
    ) -> (Missed, ReplayedFrames) {
        let RecoveringJoin { place, attached, boundary, .. } = *reader;
        let is_ahead =
            matches!(wanted.since, Since::Position(since) if since.offset > boundary.offset);
        let log_head = is_ahead.then(|| self.topics.directory().log_head(&place.key)).flatten();
        let channel = place.channel.as_ref();
        let reading = Reading { channel, attached, boundary, log_head };
        let mut missed = stream.missed(&reading, wanted, now_ms());
        let mut replayed = self.replay(reader, &missed.publications, ctx);
        let closes_gap = missed.incomplete.is_none() && wanted.since != Since::Now;
        if replayed.left_out > 0 && closes_gap {
            let newest = Wanted { since: Since::Now, ..wanted };
            let (incomplete, limit) = (Some(Incomplete::TooMuch), Some(Limit::HistoryReplayBytes));
            missed = Missed { incomplete, limit, ..stream.missed(&reading, newest, now_ms()) };
            replayed = self.replay(reader, &missed.publications, ctx);
        }
        if replayed.left_out > 0 {
            missed = missed.without_first(replayed.left_out, &reading);
        }
        (missed, replayed)
    }

    /// Encodes the publications that a join missed: as many of the newest ones as leave room for live frames.
    fn replay(
        &mut self,
        reader: &RecoveringJoin<'_>,
        publications: &[(u64, Retained)],
        ctx: &mut Context<Self>,
    ) -> ReplayedFrames {
        let RecoveringJoin { place, outbox, topic, format, boundary, .. } = *reader;
        let level = if place.channel.is_some() { Level::Channel } else { Level::Scope };
        let (now, was_empty) = (Instant::now(), self.replays.is_empty());
        let (mut left_out, mut bytes) = (publications.len(), 0);
        let (mut replayed, mut frames) = (0, Vec::with_capacity(publications.len()));
        // From the newest to the oldest.
        for (offset, retained) in publications.iter().rev() {
            let (channel, event) = (retained.channel(), retained.event());
            let (payload, sender) = (retained.payload(), retained.sender());
            let position = StreamPosition { offset: *offset, ..boundary };
            let spoken = SpokenPublication { channel, event, payload, position, sender };
            if let Some(frame) = self.replays.frame(&spoken, format, level, topic, now) {
                let is_bytes = matches!(payload, RetainedPayload::Bytes(_));
                let tells_position = is_bytes || format.tells_positions_of_json();
                let encode = format.encode_position.filter(|_| tells_position);
                let told =
                    encode.map(|encode| self.topics.backlog().count(encode(topic, position)));
                bytes += frame.size_bytes() + told.as_ref().map_or(0, Frame::size_bytes);
                if bytes > outbox.replay_bytes_max() {
                    break;
                }
                frames.extend(told.into_iter().chain([frame]));
                replayed += 1;
            }
            left_out -= 1;
        }
        frames.reverse();
        if was_empty && !self.replays.is_empty() {
            Self::forget_replays(ctx);
        }
        ReplayedFrames { left_out, replayed, frames }
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
