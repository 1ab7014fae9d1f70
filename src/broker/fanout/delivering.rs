//! Delivering: publications, announcements and counts, to the subscribers of this thread.

use super::*;

/// The progress of handing out a batch.
pub(super) struct Course {
    batch: Arc<Batch>,
    /// The number of its publications that have been begun.
    begun: usize,
    /// The channels that the last begun publication has yet to reach.
    channels: Vec<ChannelName>,
}

impl Course {
    pub(super) fn new(batch: Arc<Batch>) -> Self {
        Self { batch, begun: 0, channels: Vec::new() }
    }

    pub(super) fn app(&self) -> AppId {
        self.batch.key.app
    }

    pub(super) fn is_begun(&self) -> bool {
        self.begun > 0
    }

    fn is_over(&self) -> bool {
        self.channels.is_empty() && self.begun >= self.batch.publications.len()
    }

    /// The next publication, with its scope.
    fn begin(&mut self) -> Option<(&ScopeKey, &Placed)> {
        let placed = self.batch.publications.get(self.begun)?;
        self.begun += 1;
        Some((&self.batch.key, placed))
    }

    /// The next channel that the last begun publication has yet to reach.
    fn go_on(&mut self) -> Option<(&ScopeKey, &Placed, ChannelName)> {
        let channel = self.channels.pop()?;
        let placed = self.batch.publications.get(self.begun.checked_sub(1)?)?;
        Some((&self.batch.key, placed, channel))
    }
}

impl Fanout {
    /// Hands out a batch until it is done, or until this round or the turn of its app is over. Returns the
    /// rest.
    pub(super) fn proceed(&mut self, mut course: Course) -> Option<Course> {
        let app = course.app();
        while !course.is_over() {
            if self.is_round_over() || self.rests(app) {
                return Some(course);
            }
            if let Some((key, placed, channel)) = course.go_on() {
                self.spread(key, placed, &channel);
            } else if let Some((key, placed)) = course.begin() {
                course.channels = self.dispatch(key, placed);
            }
        }
        None
    }

    /// Hands out a publication to the subscribers of the whole scope and of its channel. For `#general`,
    /// returns the channels that it has yet to reach.
    fn dispatch(&mut self, key: &ScopeKey, placed: &Placed) -> Vec<ChannelName> {
        let listeners = self.scopes.get(key).filter(|all| all.hear(placed.position()));
        let Some(listeners) = listeners else { return Vec::new() };
        let (mut added, mut members) = (AddedFrames::default(), 0);
        if let Some(whole) = &listeners.whole {
            added += self.hand(whole, placed, Level::Scope, &listeners.counted);
            members += whole.len();
        }
        let left = match placed.destination() {
            Destination::Channel(channel) => {
                if let Some(group) = listeners.channels.get(channel) {
                    added += self.hand(group, placed, Level::Channel, &listeners.counted);
                    members += group.len();
                }
                Vec::new()
            }
            Destination::General => {
                // The channels share one body.
                added.each_max.bytes += placed.payload_bytes() as usize;
                listeners.channels.keys().cloned().collect()
            }
        };
        // A publication that nobody here hears fills no outbox, so it takes no part of the turn.
        let publications = usize::from(members > 0 || !left.is_empty());
        self.note_delivered(key.app, publications, members, added);
        left
    }

    /// Hands a publication to one of the channels that `#general` reaches.
    fn spread(&mut self, key: &ScopeKey, placed: &Placed, channel: &ChannelName) {
        let Some(listeners) = self.scopes.get(key) else { return };
        if let Some(group) = listeners.channels.get(channel) {
            let added = self.hand(group, placed, Level::Channel, &listeners.counted);
            self.note_delivered(key.app, 0, group.len(), added);
        }
    }

    /// Hands a publication to the members of one group, and samples the latency of one of them
    /// now and then.
    fn hand(
        &self,
        group: &Group,
        placed: &Placed,
        level: Level,
        counted: &DeliveryCounters,
    ) -> AddedFrames {
        let turn = self.sampler.turn(placed.taken_at());
        let sampled = turn.map(|turn| turn % group.len().max(1));
        group.deliver(placed, level, sampled, counted, &mut self.serving.new_sessions())
    }

    /// Sends the tracked members of a channel the changes among them.
    pub(super) fn announce(&mut self, announcement: &Announcement) {
        let Some(listeners) = self.scopes.get(&announcement.key) else { return };
        let Some(group) = listeners.channels.get(&announcement.channel) else { return };
        let traffic = &listeners.counted.traffic;
        let added = group.announce(announcement, traffic, &mut self.serving.new_sessions());
        self.note_delivered(announcement.key.app, 1, group.len(), added);
    }

    /// Sends the number of a channel's subscribers to those that are sent it.
    pub(super) fn tell_count(&mut self, TellCount { key, channel, count }: &TellCount) {
        let Some(listeners) = self.scopes.get(key) else { return };
        let Some(group) = listeners.channels.get(channel) else { return };
        let (backlog, traffic) = (self.topics.backlog(), &listeners.counted.traffic);
        let added = group.tell_count(*count, backlog, traffic, &mut self.serving.new_sessions());
        self.note_delivered(key.app, 1, group.len(), added);
    }

    /// Notes the frames that this many members were handed, and that this many publications were begun with
    /// them. The sessions that were idle wait to be served.
    pub(super) fn note_delivered(
        &mut self,
        app: AppId,
        publications: usize,
        members: usize,
        added: AddedFrames,
    ) {
        let sessions = self.serving.take_new(app);
        let deliveries = 1 + members;
        let handed_out = self.note_handed_out(app, publications, added.each_max, deliveries);
        handed_out.frames += added.all;
        handed_out.sessions += sessions;
    }
}
