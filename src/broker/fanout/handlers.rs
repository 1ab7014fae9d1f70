//! The handlers of a fan-out's messages.

use super::*;

/// The time after which a fan-out checks again whether this node has read a publication from the log.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(5);

impl Handler<Enter> for Fanout {
    type Result = ();

    fn handle(&mut self, mut enter: Enter, _: &mut Self::Context) {
        let Some(outbox) = enter.0.take() else { return };
        if self.stopping {
            outbox.end(Ending::Shutdown);
        }
        let Load { frames, bytes } = outbox.load_per_turn();
        self.load_per_turn.frames = self.load_per_turn.frames.min(frames);
        self.load_per_turn.bytes = self.load_per_turn.bytes.min(bytes);
        let present = Present { outbox, places: Vec::new(), about: enter.1 };
        if let Some(app) = present.about.app() {
            self.by_app.entry(app).or_default().insert(present.outbox.session());
        }
        growth::make_room(&mut self.sessions);
        if self.sessions.insert(present.outbox.session(), present).is_none() {
            self.topics.backlog().enter();
        }
    }
}

impl Handler<Leave> for Fanout {
    type Result = ();

    fn handle(&mut self, Leave(session): Leave, _: &mut Self::Context) {
        self.leave(session);
    }
}

impl Handler<Attach> for Fanout {
    type Result = ();

    fn handle(&mut self, attach: Attach, ctx: &mut Self::Context) {
        let app = attach.subscription.place.key.app;
        self.in_order(app, ctx, |fanout, ctx| fanout.attach(attach, ctx));
    }
}

impl Handler<Detach> for Fanout {
    type Result = ();

    fn handle(&mut self, detach: Detach, ctx: &mut Self::Context) {
        self.in_order(detach.place.key.app, ctx, move |fanout, _| fanout.detach(&detach));
    }
}

impl Handler<Confirm> for Fanout {
    type Result = ();

    fn handle(&mut self, mut confirm: Confirm, ctx: &mut Self::Context) {
        let Some((key, position)) = confirm.publications.pop() else {
            if let Some(present) = self.sessions.get(&confirm.session) {
                present.outbox.tell(News::Confirmed);
            }
            return;
        };
        self.in_order(key.app, ctx, move |fanout, ctx| {
            if fanout.awaits(&confirm, &key, position) {
                confirm.publications.push((key, position));
                fanout.await_heard(confirm, ctx);
            } else {
                ctx.notify(confirm);
            }
        });
    }
}

impl Fanout {
    /// Returns whether a session waits for a publication that this node has not read from the log yet.
    fn awaits(&self, confirm: &Confirm, key: &ScopeKey, position: StreamPosition) -> bool {
        let listeners = self.scopes.get(key);
        let is_ahead = listeners.is_some_and(|listeners| listeners.is_to_hear(position));
        is_ahead && Instant::now() < confirm.until
    }

    /// Waits for the last publication of a session that waits for it, outside the turns of its app, because many
    /// sessions may wait. Then the session takes its place in the order of the app.
    fn await_heard(&mut self, confirm: Confirm, ctx: &mut Context<Self>) {
        let next = confirm.publications.last();
        if next.is_some_and(|(key, position)| self.awaits(&confirm, key, *position)) {
            ctx.run_later(CONFIRM_INTERVAL, |fanout, ctx| fanout.await_heard(confirm, ctx));
        } else {
            ctx.notify(confirm);
        }
    }
}

impl Handler<Relieve> for Fanout {
    type Result = ();

    fn handle(&mut self, Relieve: Relieve, _: &mut Self::Context) {
        self.relieve();
    }
}

impl Handler<Dispatch> for Fanout {
    type Result = ();

    fn handle(&mut self, Dispatch(batch): Dispatch, ctx: &mut Self::Context) {
        self.hand_out(Task::HandOut(Course::new(batch)), ctx);
    }
}

impl Handler<Entered> for Fanout {
    type Result = ();

    fn handle(&mut self, entered: Entered, ctx: &mut Self::Context) {
        self.in_order(entered.place.key.app, ctx, |fanout, ctx| fanout.entered(entered, ctx));
    }
}

impl Handler<PlaceLost> for Fanout {
    type Result = ();

    fn handle(&mut self, PlaceLost { place, session }: PlaceLost, ctx: &mut Self::Context) {
        self.in_order(place.key.app, ctx, move |fanout, _| {
            let Some(Present { outbox, places, .. }) = fanout.sessions.get(&session) else {
                return;
            };
            if let Some(held) = places.iter().find(|held| ***held == place) {
                outbox.tell(News::Interrupted(vec![held.clone()]));
            }
        });
    }
}

impl Handler<Announce> for Fanout {
    type Result = ();

    fn handle(&mut self, Announce(announcement): Announce, ctx: &mut Self::Context) {
        self.hand_out(Task::Announce(announcement), ctx);
    }
}

impl Handler<TellCount> for Fanout {
    type Result = ();

    fn handle(&mut self, tell: TellCount, ctx: &mut Self::Context) {
        self.hand_out(Task::TellCount(tell), ctx);
    }
}

impl Handler<Watch> for Fanout {
    type Result = ();

    fn handle(&mut self, watch: Watch, ctx: &mut Self::Context) {
        self.in_order(watch.app, ctx, |fanout, ctx| fanout.watch(watch, ctx));
    }
}

impl Handler<TellOnline> for Fanout {
    type Result = ();

    fn handle(&mut self, tell: TellOnline, ctx: &mut Self::Context) {
        self.hand_out(Task::TellOnline(tell), ctx);
    }
}

impl Handler<AppChanged> for Fanout {
    type Result = ();

    fn handle(&mut self, AppChanged(app): AppChanged, ctx: &mut Self::Context) {
        self.in_order(app, ctx, move |fanout, _| {
            let mut visited = 0;
            for present in fanout.present_in(app) {
                present.outbox.tell(News::AppChanged(app));
                visited += 1;
            }
            fanout.delivered_this_round += visited;
        });
    }
}

impl Handler<TrackerLost> for Fanout {
    type Result = ();

    fn handle(&mut self, TrackerLost(key): TrackerLost, ctx: &mut Self::Context) {
        self.in_order(key.app, ctx, move |fanout, _| {
            let Some(listeners) = fanout.scopes.get(&key) else { return };
            let mut ended = 0;
            let tracked = listeners.channels.values().flat_map(Group::tracked);
            for outbox in tracked.filter(|outbox| outbox.ended().is_none()) {
                outbox.end(Ending::Broken);
                ended += 1;
            }
            warn!("{ended} sessions of a lost tracker are ended");
        });
    }
}

impl Handler<Interrupt> for Fanout {
    type Result = ();

    fn handle(&mut self, Interrupt { key, begin }: Interrupt, ctx: &mut Self::Context) {
        self.in_order(key.app, ctx, move |fanout, _| {
            let Some(listeners) = fanout.scopes.get_mut(&key) else { return };
            if !listeners.interrupt(begin) {
                return;
            }
            let mut concerned: FxHashMap<SessionId, (&Arc<Outbox>, Vec<Arc<Place>>)> =
                FxHashMap::default();
            let mut visited = 0;
            for group in listeners.whole.iter().chain(listeners.channels.values()) {
                for outbox in group.outboxes() {
                    visited += 1;
                    let of_session = concerned.entry(outbox.session());
                    let (_, places) = of_session.or_insert_with(|| (outbox, Vec::new()));
                    // A session may have joined a place under several names.
                    if !places.last().is_some_and(|last| Arc::ptr_eq(last, group.place())) {
                        places.push(group.place().clone());
                    }
                }
            }
            for (outbox, places) in concerned.into_values() {
                outbox.tell(News::Interrupted(places));
            }
            fanout.delivered_this_round += visited;
        });
    }
}

impl Handler<EndJoins> for Fanout {
    type Result = ();

    /// A session with a pending join gets the message as well, whatever it joins, because the join may
    /// still be on its way to this fan-out.
    fn handle(&mut self, EndJoins(disconnection): EndJoins, ctx: &mut Self::Context) {
        self.in_order(disconnection.joins.app(), ctx, move |fanout, _| {
            let (joins, app) = (&disconnection.joins, disconnection.joins.app());
            let mut visited = 0;
            let joining = fanout.joining.borrow();
            let of_app = fanout.by_app.get(&app);
            let is_elsewhere =
                |session: &&SessionId| of_app.is_none_or(|all| !all.contains(session));
            let of_app_sessions = of_app.into_iter().flatten();
            for session in of_app_sessions.chain(joining.iter().filter(is_elsewhere)) {
                visited += 1;
                let Some(Present { outbox, places, about }) = fanout.sessions.get(session) else {
                    continue;
                };
                if joining.contains(session)
                    || about.app() == Some(app)
                    || places.iter().any(|place| joins.may_concern(place))
                {
                    outbox.tell(News::Disconnect(disconnection.clone()));
                }
            }
            drop(joining);
            fanout.delivered_this_round += visited;
        });
    }
}

impl Handler<EndAll> for Fanout {
    type Result = usize;

    fn handle(&mut self, _: EndAll, _: &mut Self::Context) -> usize {
        self.stopping = true;
        for present in self.sessions.values() {
            present.outbox.end(Ending::Shutdown);
        }
        self.sessions.len()
    }
}

impl Handler<EndSome> for Fanout {
    type Result = MessageResult<EndSome>;

    fn handle(&mut self, EndSome(sessions_max): EndSome, _: &mut Self::Context) -> Self::Result {
        let open = || self.sessions.values().filter(|present| present.outbox.ended().is_none());
        let mut ended = 0;
        for present in open().take(sessions_max) {
            present.outbox.end(Ending::Shutdown);
            ended += 1;
        }
        MessageResult(EndedSessions { ended, left: open().count() })
    }
}
