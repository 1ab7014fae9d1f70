//! The figures of the sessions of a thread, for questions to all threads.

use crate::app::visitor::ShownSub;

use super::*;

impl Fanout {
    /// The number of frames that wait for the sessions of this thread, and of the topics that they joined.
    pub(in crate::broker) fn count(&self) -> Count {
        let mut count = Count::default();
        for load in self.sessions.values().map(|present| present.outbox.load()) {
            count.add(load);
        }
        for (key, listeners) in &self.scopes {
            let groups = listeners.whole.iter().chain(listeners.channels.values());
            let joined: usize = groups.map(Group::len).sum();
            *count.subscriptions.entry(key.app.0).or_default() += joined as u64;
        }
        count
    }

    /// The places of an app that have subscribers on this thread, of one scope or of all that topics can
    /// name.
    pub(in crate::broker) fn occupied(
        &self,
        app: AppId,
        scope: Option<&Scope>,
    ) -> impl Iterator<Item = (Rank, usize)> {
        let is_asked_for = move |key: &ScopeKey| {
            let is_wanted = scope.map_or(!key.scope.is_user(), |scope| key.scope == *scope);
            key.app == app && is_wanted
        };
        let scopes = self.scopes.iter().filter(move |(key, _)| is_asked_for(key));
        scopes.flat_map(|(key, ScopeSubscribers { whole, channels, .. })| {
            let whole = whole.iter().map(|group| (None, group));
            let channels = channels.iter().map(|(channel, group)| (Some(channel.clone()), group));
            let groups = whole
                .chain(channels)
                .map(|(channel, group)| (Rank { scope: key.scope.clone(), channel }, group.len()));
            // A group of sessions that still wait for the tracker's answer has no members yet.
            groups.filter(|(_, members)| *members > 0)
        })
    }

    /// The sessions of this thread that have joined anything of an app, or belong to it as a whole.
    pub(super) fn present_in(&self, app: AppId) -> impl Iterator<Item = &Present> {
        let sessions = self.by_app.get(&app).into_iter().flatten();
        sessions.filter_map(|session| self.sessions.get(session))
    }

    /// The number of sessions of this thread that have joined anything of an app, or belong to it as a whole.
    pub(in crate::broker) fn sessions_of_app(&self, app: AppId) -> usize {
        self.by_app.get(&app).map_or(0, BTreeSet::len)
    }

    /// The sessions of this thread that have joined anything of an app, or belong to it as a whole, oldest first.
    /// With `after`, those that follow this session.
    pub(in crate::broker) fn connected(
        &self,
        app: AppId,
        after: Option<SessionId>,
    ) -> impl Iterator<Item = Connected> {
        let first = after.map_or(Bound::Unbounded, Bound::Excluded);
        let sessions = self.by_app.get(&app).into_iter();
        let sessions = sessions.flat_map(move |all| all.range((first, Bound::Unbounded)));
        sessions.filter_map(move |session| {
            let Present { outbox, places, about } = self.sessions.get(session)?;
            let places = places.iter().filter(|place| place.key.app == app);
            let places: Vec<_> = places.map(|place| Place::clone(place)).collect();
            let subs = places.iter().flat_map(|place| self.users_of(*session, place));
            let subs = subs.cloned().collect::<BTreeSet<_>>().into_iter().collect();
            Some(Connected { session: *session, about: *about, places, subs, queue: outbox.load() })
        })
    }

    /// The users of the joins of a session at a place.
    fn users_of(&self, session: SessionId, place: &Place) -> impl Iterator<Item = &ShownSub> {
        let listeners = self.scopes.get(&place.key);
        let group = listeners.and_then(|listeners| match &place.channel {
            None => listeners.whole.as_ref(),
            Some(channel) => listeners.channels.get(channel),
        });
        group.into_iter().flat_map(move |group| group.users_of(session))
    }

    /// The outbox of a session of this thread, if it has joined anything of an app, or belongs to it as a whole.
    pub(in crate::broker) fn outbox_of(&self, app: AppId, session: SessionId) -> Option<&Outbox> {
        self.by_app.get(&app).filter(|sessions| sessions.contains(&session))?;
        Some(&self.sessions.get(&session)?.outbox)
    }

    /// The number of subscribers that a place has on this thread.
    pub(in crate::broker) fn subscribers_of(&self, place: &Place) -> usize {
        let Some(listeners) = self.scopes.get(&place.key) else { return 0 };
        let group = match &place.channel {
            None => listeners.whole.as_ref(),
            Some(channel) => listeners.channels.get(channel),
        };
        group.map_or(0, Group::len)
    }
}
