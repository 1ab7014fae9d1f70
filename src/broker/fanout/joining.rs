//! Joining and leaving: which sessions are members of which places on this thread.

use super::*;

impl Fanout {
    /// Makes a session a member of a place and answers its join. All further frames of the place
    /// follow the answer in the session's outbox. If the session is to be tracked, the tracker of the
    /// scope decides first.
    pub(super) fn attach(&mut self, attach: Attach, ctx: &mut Context<Self>) {
        let Attach { session, id, subscription } = attach;
        let Subscription { place, topic, format, persona, user, wanted } = subscription;
        // A whole scope has no tracked members.
        let persona = persona.filter(|_| place.channel.is_some());
        // A session that has left needs no answer.
        let Some(present) = self.sessions.get_mut(&session) else { return };
        let outbox = present.outbox.clone();
        let listeners = match self.scopes.entry(place.key.clone()) {
            hash_map::Entry::Occupied(open) => open.into_mut(),
            hash_map::Entry::Vacant(closed) => {
                let own = FanoutAddr::new(self.worker, ctx.address(), &self.batches);
                match self.topics.open(closed.key(), own, now_ms()) {
                    Ok(listeners) => closed.insert(listeners),
                    Err(refused) => return outbox.answer(id, Err(refused)),
                }
            }
        };
        let boundary = listeners.heard();
        let mut member = TopicSubscriber::new(outbox.clone(), id, format, boundary.offset);
        (member.user, member.is_tracked) = (user, persona.is_some());
        let group = listeners.group_mut(&place, &topic);
        let (is_new, attached) = match persona {
            None => {
                let before = group.join(session, topic.clone(), member);
                (before.is_none(), before.unwrap_or(boundary.offset))
            }
            Some(_) => (group.expect(session, topic.clone(), member, wanted), boundary.offset),
        };
        if is_new {
            if present.places.is_empty() {
                // One is the common case, and an idle session should not keep room for four.
                present.places.reserve_exact(1);
            }
            present.places.push(group.place().clone());
            self.by_app.entry(place.key.app).or_default().insert(session);
        }
        let Some(persona) = persona else {
            let stream = listeners.stream.clone();
            if is_new && let Some(channel) = &place.channel {
                if format.encode_count.is_some() && stream.counts().came(channel) {
                    self.topics.want_count(&place);
                }
                self.note_size(&place, &stream);
            }
            let (place, topic, outbox) = (&place, &topic, &*outbox);
            let reader = RecoveringJoin { place, outbox, topic, format, attached, boundary };
            let recovery = self.recover(&stream, &reader, wanted, ctx);
            let cached = self.cached(&reader, ctx);
            return outbox.answer(id, Ok(Joined { boundary, members: None, recovery, cached }));
        };
        let stream = &listeners.stream;
        let Some(tracker) = stream.tracker_or_start(|| self.topics.start_tracker(stream)) else {
            outbox.answer(id, Err(SubscribeError::Unavailable));
            return self.detach(&Detach { session, id, place });
        };
        let (worker, fanout) = (self.worker, ctx.address());
        tracker.do_send(EnterChannel { worker, fanout, place, session, id, persona, format });
    }

    /// Handles the tracker's answer for a session. If the tracker accepted the session, it is sent
    /// the members, and all further announcements.
    pub(super) fn entered(&mut self, entered: Entered, ctx: &mut Context<Self>) {
        let Entered { place, session, id, members } = entered;
        let Some(listeners) = self.scopes.get_mut(&place.key) else { return };
        let (boundary, stream) = (listeners.heard(), listeners.stream.clone());
        let Some(group) = listeners.group(place.channel.as_ref()) else { return };
        let Some(outbox) = group.expected(session, id) else { return };
        match members {
            Ok(members) => {
                let Some(taken_in) = group.take_in(session, boundary.offset) else { return };
                let TakenIn { topic, format, attached, wanted } = taken_in;
                let (place, topic, outbox) = (&place, &topic, &*outbox);
                let reader = RecoveringJoin { place, outbox, topic, format, attached, boundary };
                let recovery = self.recover(&stream, &reader, wanted, ctx);
                let cached = self.cached(&reader, ctx);
                let members = Some(members);
                outbox.answer(id, Ok(Joined { boundary, members, recovery, cached }));
            }
            Err(refused) => {
                if refused == SubscribeError::TooManyMembers {
                    self.topics.metrics().hit(Limit::PresenceMembers);
                }
                outbox.answer(id, Err(refused));
                self.detach(&Detach { session, id, place });
            }
        }
    }

    pub(super) fn detach(&mut self, Detach { session, id, place }: &Detach) {
        let departure = self.vacate(*session, place, Some(*id));
        let Some(present) = self.sessions.get_mut(session) else { return };
        present.outbox.detached(*id);
        // The place is listed once for each name by which the session joined it.
        let held = present.places.iter().position(|held| **held == *place);
        if let Some(nth) = held.filter(|_| departure != Departure::Absent) {
            present.places.swap_remove(nth);
            if !present.is_of(place.key.app) {
                self.forget_in_app(*session, place.key.app);
            }
        }
    }

    pub(super) fn forget_in_app(&mut self, session: SessionId, app: AppId) {
        let Some(sessions) = self.by_app.get_mut(&app) else { return };
        sessions.remove(&session);
        if sessions.is_empty() {
            self.by_app.remove(&app);
        }
    }

    /// Removes the subscription that a session has at a place under this id, or, without an id, all its
    /// subscriptions there. Tells the tracker if the session is no longer tracked there, and closes the scope
    /// for this thread if no member is left.
    fn vacate(
        &mut self,
        session: SessionId,
        place: &Place,
        id: Option<SubscriptionId>,
    ) -> Departure {
        let Some(listeners) = self.scopes.get_mut(&place.key) else { return Departure::Absent };
        let stream = &listeners.stream;
        let is_counted = stream.counts().is_any() || self.topics.is_any_count_wanted();
        let counted = place.channel.as_ref().filter(|_| is_counted);
        let is_told = counted.is_some_and(|channel| listeners.is_told_count(channel, session));
        let departure = listeners.remove(place.channel.as_ref(), session, id);
        let counted = counted.filter(|_| departure != Departure::Absent);
        let counted = counted.map(|channel| (channel.clone(), listeners.stream.clone()));
        if let (Departure::LeftPresence, Some(channel)) = (departure, &place.channel) {
            listeners.stream.tell_tracker(Untrack { channel: channel.clone(), session });
        }
        if listeners.is_empty() {
            self.scopes.remove(&place.key);
            self.topics.directory().close(&place.key, self.worker, now_ms());
        }
        if let Some((channel, stream)) = counted {
            if is_told {
                stream.counts().left(&channel);
            }
            self.note_size(place, &stream);
        }
        departure
    }

    /// Notes that the number of a channel's subscribers has changed. If subscribers here or on other nodes are
    /// sent the number, it is counted and sent to them.
    fn note_size(&self, place: &Place, stream: &Arc<Stream>) {
        self.topics.note_count_changed(place);
        let Some(channel) = place.channel.as_ref().filter(|_| stream.counts().is_any()) else {
            return;
        };
        if let Some(count) = stream.counts().changed(channel, Cause::Here, now_ms()) {
            let (topics, place, stream) = (self.topics.clone(), place.clone(), stream.clone());
            actix::spawn(
                async move { topics.tell_count_until_settled(count, place, stream).await },
            );
        }
    }

    pub(super) fn leave(&mut self, session: SessionId) {
        self.joining.borrow_mut().remove(&session);
        self.watchlists.forget(session);
        let Some(present) = self.sessions.swap_remove(&session) else { return };
        self.topics.backlog().leave();
        if let Some(app) = present.about.app() {
            self.forget_in_app(session, app);
        }
        for place in &present.places {
            self.forget_in_app(session, place.key.app);
            self.vacate(session, place, None);
        }
    }
}
