//! Turns of apps and rounds of the thread: which task is done when, and when the sessions write.

use super::*;

/// The most publications, announcements and counts of an app that are handed out in one turn. Publications
/// that nobody on the thread hears do not count. Before the app's next turn, all its sessions that were
/// handed frames get to write. Without this limit a burst would fill the outboxes of healthy sessions; with
/// it several frames still leave in one write.
pub(super) const PUBLICATIONS_PER_TURN: usize = 16;

/// The number of frames at which a turn ends, counted as if one session had got all of them. By default a session
/// may join 100 channels, so all its frames of one `#general` leave in one write. If an outbox is small, a turn
/// ends earlier, see [`Outbox::load_per_turn`].
pub(super) const FRAMES_PER_TURN: usize = 128;

/// When a session may have got this fraction (1/8) of a turn's frames or bytes, a round is scheduled even if no session
/// waits, so that the app begins a new turn. Below it, the rest of the turn has room for one `#general` to the
/// 100 channels that a session may join by default.
const RENEWED_SHARE: usize = 8;

/// The most frames for each session that the fan-out writes itself. Longer writes are left to the sessions, between
/// which other tasks of the thread run.
const WRITTEN_FRAMES_MAX: usize = 16;

/// The number of deliveries after which a fan-out lets the other tasks of the thread run: about 100 µs. A round
/// may exceed it, because the delivery of a frame to one group is never divided.
const DELIVERIES_PER_ROUND: usize = 1_024;

/// The number of deliveries that take about as long as a join, or as another task that is not a
/// publication.
const DELIVERIES_PER_ACT: usize = 16;

/// The work of one turn of an app.
#[derive(Default)]
pub(super) struct HandedOut {
    publications: usize,
    /// The most that one session of the app may have got.
    each_max: Load,
    /// The number of frames, over all sessions of the app.
    pub(super) frames: usize,
    /// The number of sessions that have to be served for these frames.
    pub(super) sessions: usize,
    /// Whether the turn is used up. The app gets its next turn once its sessions have run.
    is_all: bool,
}

impl HandedOut {
    /// Returns whether the turn is used up.
    fn is_used_up(&self, per_turn: Load) -> bool {
        self.publications >= PUBLICATIONS_PER_TURN || reaches(self.each_max, per_turn)
    }

    /// Returns whether so much of the turn is used up that the next publication may not fit into the rest.
    fn is_to_renew(&self, per_turn: Load) -> bool {
        let part =
            Load { frames: per_turn.frames / RENEWED_SHARE, bytes: per_turn.bytes / RENEWED_SHARE };
        self.publications >= PUBLICATIONS_PER_TURN / 2 || reaches(self.each_max, part)
    }
}

/// Returns whether a load is as large as `bound` in one respect.
fn reaches(load: Load, bound: Load) -> bool {
    load.frames >= bound.frames || load.bytes >= bound.bytes
}

/// Something that waits for the turn of its app.
pub(super) enum Task {
    /// Handing out a batch, or the rest of one.
    HandOut(Course),
    /// Sending an announcement.
    Announce(Arc<Announcement>),
    /// Sending the number of a channel's subscribers.
    TellCount(TellCount),
    /// Telling the watchers of a user whether it is online.
    TellOnline(TellOnline),
    /// Any other work that a message requests.
    Other(AppId, Box<Act>),
}

/// The work that a message requests from the fan-out.
type Act = dyn FnOnce(&mut Fanout, &mut Context<Fanout>);

impl Task {
    fn app(&self) -> AppId {
        match self {
            Self::HandOut(course) => course.app(),
            Self::Announce(announcement) => announcement.key.app,
            Self::TellCount(tell) => tell.key.app,
            Self::TellOnline(tell) => tell.app,
            Self::Other(app, _) => *app,
        }
    }

    /// Returns whether this is a batch that has not been begun.
    fn is_new_batch(&self) -> bool {
        matches!(self, Self::HandOut(course) if !course.is_begun())
    }
}

impl Fanout {
    /// Counts work for an app towards its turn and this round. `each_max` is the most that it may have added to one
    /// outbox.
    pub(super) fn note_handed_out(
        &mut self,
        app: AppId,
        publications: usize,
        each_max: Load,
        deliveries: usize,
    ) -> &mut HandedOut {
        self.delivered_this_round += deliveries;
        let handed_out = self.handed_out.entry(app).or_default();
        handed_out.publications += publications;
        handed_out.each_max.add(each_max);
        handed_out.is_all = handed_out.is_used_up(self.load_per_turn);
        self.is_any_to_renew |= handed_out.is_to_renew(self.load_per_turn);
        handed_out
    }

    /// Returns whether an app rests: its turn is over, and its sessions get to write.
    pub(super) fn rests(&self, app: AppId) -> bool {
        self.handed_out.get(&app).is_some_and(|handed_out| handed_out.is_all)
    }

    /// Returns whether this round is over: the other tasks of the thread run before more is handed out.
    pub(super) fn is_round_over(&self) -> bool {
        self.delivered_this_round >= DELIVERIES_PER_ROUND
    }

    /// Hands something out at once, unless another app has a queue or the turn of its own app is over.
    pub(super) fn hand_out(&mut self, task: Task, ctx: &mut Context<Self>) {
        let app = task.app();
        if !self.turns.is_empty() || self.rests(app) {
            self.turns.push(app, task);
        } else if let Some(rest) = self.run(task, ctx) {
            self.turns.push(app, rest);
        }
        self.go_on(ctx);
    }

    /// Does a task until it is done, or until this round or the turn of its app is over. Returns the rest.
    fn run(&mut self, task: Task, ctx: &mut Context<Self>) -> Option<Task> {
        if task.is_new_batch() {
            self.batches.note_begun();
        }
        match task {
            Task::HandOut(course) => {
                if let Some(rest) = self.proceed(course) {
                    return Some(Task::HandOut(rest));
                }
            }
            Task::Announce(announcement) => self.announce(&announcement),
            Task::TellCount(tell) => self.tell_count(&tell),
            Task::TellOnline(tell) => self.tell_online(tell, ctx),
            Task::Other(app, act) => self.act(app, ctx, act),
        }
        self.relieve();
        None
    }

    /// Does work that a message requests. It may add an item of news to each outbox.
    fn act(
        &mut self,
        app: AppId,
        ctx: &mut Context<Self>,
        act: impl FnOnce(&mut Self, &mut Context<Self>),
    ) {
        act(self, ctx);
        self.note_handed_out(app, 0, Load { frames: 1, bytes: 0 }, DELIVERIES_PER_ACT);
    }

    /// Does what a message requests at once, unless its app has a queue or rests; then it waits. So all members see
    /// one order, and a join finds a batch either handed out as a whole, or not begun.
    pub(super) fn in_order(
        &mut self,
        app: AppId,
        ctx: &mut Context<Self>,
        act: impl FnOnce(&mut Self, &mut Context<Self>) + 'static,
    ) {
        match self.turns.has(app) || self.rests(app) {
            true => self.turns.push(app, Task::Other(app, Box::new(act))),
            false => self.act(app, ctx, act),
        }
        self.go_on(ctx);
    }

    /// Does waiting tasks, as many as fit into one round.
    fn take_turn(&mut self, ctx: &mut Context<Self>) {
        self.is_turn_due = false;
        while !self.is_round_over() {
            let handed_out = &self.handed_out;
            let rests = |app| handed_out.get(&app).is_some_and(|handed_out| handed_out.is_all);
            let Some(task) = self.turns.next(|app| !rests(app)) else { break };
            if let Some(rest) = self.run(task, ctx) {
                self.turns.put_back(rest);
            }
        }
        self.turns.pass();
        self.go_on(ctx);
    }

    /// Serves sessions, and schedules the next round if this one is over, if a session has yet to be served, or
    /// if an app is to begin a new turn. Also schedules the waiting tasks of apps that do not rest. If this
    /// round is over, `ctx.wait` keeps the fan-out from messages and tasks until the next one.
    pub(super) fn go_on(&mut self, ctx: &mut Context<Self>) {
        self.serve();
        if self.is_round_over() {
            ctx.wait(self.rest_of_round());
        } else if !self.is_round_ending && (self.is_any_to_renew || !self.serving.is_empty()) {
            ctx.spawn(self.rest_of_round());
        }
        if !self.is_turn_due && self.turns.any(|app| !self.rests(app)) {
            self.is_turn_due = true;
            let turn = actix::fut::ready(()).into_actor(self);
            ctx.spawn(turn.map(|(), fanout, ctx| fanout.take_turn(ctx)));
        }
    }

    /// Waits until all sessions that were woken have run and the thread has looked at its sockets, and begins the
    /// next round. A round that is waited for
    /// already may then turn out to be over. It is then waited for twice, and ends once.
    fn rest_of_round(&mut self) -> impl ActorFuture<Self, Output = ()> + use<> {
        self.is_round_ending = true;
        let round = self.round;
        pause().into_actor(self).map(move |(), fanout, ctx| {
            if fanout.round == round {
                fanout.begin_round(ctx);
            }
        })
    }

    /// Begins a round. Each app without a session that waits to be served begins a new turn: all its sessions
    /// have run.
    fn begin_round(&mut self, ctx: &mut Context<Self>) {
        self.round += 1;
        (self.is_round_ending, self.delivered_this_round) = (false, 0);
        self.serving.begin_round();
        self.handed_out.retain(|app, _| self.serving.has(*app));
        let is_to_renew = |of: &HandedOut| of.is_to_renew(self.load_per_turn);
        self.is_any_to_renew = self.handed_out.values().any(is_to_renew);
        self.go_on(ctx);
    }

    /// Serves as many sessions as fit into this round: writes their frames, or wakes them. While an app has waiting
    /// tasks and its turn is not over, its sessions wait, so that all frames of the turn leave at once.
    fn serve(&mut self) {
        if self.serving.is_empty() {
            return;
        }
        let (turns, all) = (&self.turns, &self.handed_out);
        let per_session = |app| {
            let HandedOut { frames, sessions, is_all, .. } = all.get(&app)?;
            (*is_all || !turns.has(app)).then(|| frames.div_ceil((*sessions).max(1)))
        };
        let may_write = !self.batches.is_any_waiting();
        self.serving.serve_some(per_session, |outbox, frames| {
            let is_short = frames <= WRITTEN_FRAMES_MAX;
            if !(may_write && is_short && self.writers.write_waiting(outbox)) {
                outbox.wake_for_frames();
            }
        });
    }
}
