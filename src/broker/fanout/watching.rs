//! Watching: what the sessions of this thread are told of the users that they watch.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashSet;

use super::{
    super::users::{EncodeOnline, WatchedUsers},
    *,
};

/// The interval at which a fan-out looks for users whose watchers are to be told of their state.
const DUE_INTERVAL: Duration = Duration::from_millis(10);

/// The users that sessions of this thread watch.
#[derive(Default)]
pub(super) struct Watchlists {
    apps: FxHashMap<AppId, HashMap<Box<str>, WatchedUser>>,
    of_sessions: FxHashMap<SessionId, (AppId, WatchedUsers)>,
    /// The users whose watchers will be told of their state, each with the time for it.
    due: BTreeSet<(Instant, AppId, Arc<str>)>,
    /// Whether `tell_due` is scheduled.
    is_due_awaited: bool,
}

/// A user that sessions of this thread watch.
struct WatchedUser {
    watchers: FxHashSet<SessionId>,
    /// The encoding for the watchers. They share it, because only one protocol has watchlists.
    encode: EncodeOnline,
    is_online: bool,
    /// The state that the watchers have been told.
    told: bool,
    /// The time at which the watchers were told of the last change.
    told_at: Option<Instant>,
    /// Whether the watchers will be told of the present state once the interval is over.
    is_due: bool,
}

impl WatchedUser {
    /// A user that nobody watches yet.
    fn new(is_online: bool, encode: EncodeOnline) -> Self {
        let watchers = FxHashSet::default();
        Self { watchers, encode, is_online, told: is_online, told_at: None, is_due: false }
    }

    /// The time until the watchers may be told of the next change.
    fn wait(&self, interval: Duration, now: Instant) -> Option<Duration> {
        let wait = (self.told_at? + interval).saturating_duration_since(now);
        (!wait.is_zero()).then_some(wait)
    }
}

impl Watchlists {
    fn user(&mut self, app: AppId, user: &str) -> Option<&mut WatchedUser> {
        self.apps.get_mut(&app)?.get_mut(user)
    }

    /// Forgets the users that a session watches.
    pub(super) fn forget(&mut self, session: SessionId) {
        let Some((app, watched)) = self.of_sessions.remove(&session) else { return };
        let Some(users) = self.apps.get_mut(&app) else { return };
        for user in &*watched {
            let Some(of) = users.get_mut(user) else { continue };
            of.watchers.remove(&session);
            if of.watchers.is_empty() {
                users.remove(user);
            }
        }
        if users.is_empty() {
            self.apps.remove(&app);
        }
    }
}

impl Fanout {
    /// Has a session watch users instead of those that it watched before, and tells it which of them are online.
    pub(super) fn watch(&mut self, watch: Watch, ctx: &mut Context<Self>) {
        let Watch { session, app, watched, are_online, encode } = watch;
        self.watchlists.forget(session);
        let Some(present) = self.sessions.get(&session).filter(|_| !watched.is_empty()) else {
            return;
        };
        let outbox = present.outbox.clone();
        let users = self.watchlists.apps.entry(app).or_default();
        let (mut seen, mut late) = (OnlineChange::default(), Vec::new());
        for (user, is_online) in watched.iter().zip(are_online) {
            let new = || WatchedUser::new(is_online, encode);
            let of = users.entry(user.clone()).or_insert_with(new);
            of.watchers.insert(session);
            of.is_online = is_online;
            if of.told != is_online {
                late.push(Arc::from(&**user));
            }
            // The others are told of a change later, and this session together with them.
            let named = if of.told { &mut seen.online } else { &mut seen.offline };
            named.push(user.clone());
        }
        self.watchlists.of_sessions.insert(session, (app, watched));
        let added = self.send_online(&seen, encode, &[outbox]);
        self.note_delivered(app, 0, 1, added);
        for user in late {
            self.tell_online(TellOnline { app, user, change: None }, ctx);
        }
    }

    /// Tells the watchers of a user that it has come online or gone offline. After each change that they are told of,
    /// they are told of no other one for an interval, and then of the state at its end, if it is another one.
    pub(super) fn tell_online(&mut self, tell: TellOnline, ctx: &mut Context<Self>) {
        let TellOnline { app, user, change } = tell;
        let Some(of) = self.watchlists.user(app, &user) else { return };
        of.is_online = change.unwrap_or(of.is_online);
        if of.is_online == of.told || of.is_due {
            return;
        }
        let now = Instant::now();
        if let Some(wait) = of.wait(self.topics.limits().online_interval, now) {
            of.is_due = true;
            self.watchlists.due.insert((now + wait, app, user));
            self.await_due(ctx);
            return;
        }
        (of.told, of.told_at) = (of.is_online, Some(now));
        let mut change = OnlineChange::default();
        let named = if of.is_online { &mut change.online } else { &mut change.offline };
        named.push((*user).into());
        let encode = of.encode;
        let watchers: Vec<_> = of
            .watchers
            .iter()
            .filter_map(|session| Some(self.sessions.get(session)?.outbox.clone()))
            .collect();
        let added = self.send_online(&change, encode, &watchers);
        self.note_delivered(app, 1, watchers.len(), added);
    }

    /// Schedules `tell_due` if users are due. One timer serves all of them, because actix polls each timer of an
    /// actor whenever it polls the actor.
    fn await_due(&mut self, ctx: &mut Context<Self>) {
        let Watchlists { due, is_due_awaited, .. } = &mut self.watchlists;
        if !due.is_empty() && !mem::replace(is_due_awaited, true) {
            ctx.run_later(DUE_INTERVAL, Self::tell_due);
        }
    }

    /// Has the watchers of users told of their state, if the interval after their last change is over.
    fn tell_due(&mut self, ctx: &mut Context<Self>) {
        self.watchlists.is_due_awaited = false;
        let now = Instant::now();
        while self.watchlists.due.first().is_some_and(|(at, ..)| *at <= now) {
            let Some((_, app, user)) = self.watchlists.due.pop_first() else { break };
            if let Some(of) = self.watchlists.user(app, &user) {
                of.is_due = false;
            }
            // They wait for their turn, because the first ones may end the round.
            self.turns.push(app, Task::TellOnline(TellOnline { app, user, change: None }));
        }
        self.go_on(ctx);
        self.await_due(ctx);
    }

    /// Sends some sessions a change of users that they watch. It is encoded once for all of them.
    fn send_online(
        &self,
        change: &OnlineChange,
        encode: EncodeOnline,
        watchers: &[Arc<Outbox>],
    ) -> AddedFrames {
        let frame = self.topics.backlog().count(encode(change));
        let (mut idle, mut all) = (self.serving.new_sessions(), 0);
        for outbox in watchers {
            let is_sent = outbox.deliver_to_session(&frame, || idle.push(outbox.clone()));
            all += usize::from(is_sent);
        }
        let each_max = Load { frames: 1, bytes: frame.size_bytes() };
        AddedFrames { all, each_max }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::timeout;

    use super::{
        super::super::{
            outbox::ToSession,
            testing::{Broker, DEADLINE, Probe},
            users::{SignedIn, Users},
        },
        *,
    };

    const APP: AppId = AppId(1);

    thread_local! {
        static ENCODED: Cell<usize> = const { Cell::new(0) };
    }

    /// The users that are online, and counts the call.
    fn spell(change: &OnlineChange) -> Frame {
        ENCODED.set(ENCODED.get() + 1);
        Frame::Text(format!("online: {}", change.online.join(",")).into())
    }

    fn signed_in(user: &str, watched: &[&str]) -> SignedIn {
        let watched = watched.iter().map(|user| (*user).into()).collect();
        SignedIn { app: APP, user: user.into(), watched, encode: spell }
    }

    fn told(probe: &Probe) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(ToSession::Frame(Frame::Text(text), _)) = probe.outbox.take() {
            told.push(text.to_string());
        }
        told
    }

    #[actix_web::test]
    async fn watchers_of_a_user_that_comes_and_goes_are_told_twice_at_most_and_in_the_end_the_truth()
     {
        const WATCHERS: usize = 50;
        let broker = Broker::start_with(|limits| limits.online_interval = Duration::from_secs(1));
        let (users, thread) = (Users::default(), &broker.thread);
        let mut watchers = Vec::new();
        for nth in 1..=WATCHERS as u64 {
            let probe = broker.stuck_session(nth, 16).await;
            users.sign_in(thread, probe.session, &signed_in("fan", &["celebrity"]), None);
            watchers.push(probe);
        }
        let celebrity = signed_in("celebrity", &[]);
        for _ in 0..100 {
            users.sign_in(thread, SessionId(1_000), &celebrity, None);
            users.sign_out(thread.worker, &celebrity);
            // Each change reaches the fan-out alone.
            tokio::task::yield_now().await;
        }
        let changes = ["online: ", "online: celebrity", "online: "];
        for watcher in &watchers {
            let mut all = Vec::new();
            let waits = async {
                while all.len() < changes.len() {
                    all.extend(told(watcher));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(DEADLINE, waits).await.expect("the last change comes");
            assert_eq!(all, changes);
        }
        assert_eq!(ENCODED.get(), WATCHERS + 2, "once for each list, and once for each change");
    }

    #[test]
    fn a_session_that_leaves_is_forgotten_and_users_that_nobody_watches_too() {
        let mut lists = Watchlists::default();
        let watched: WatchedUsers = ["a".into(), "b".into()].into();
        for session in [1, 2].map(SessionId) {
            let users = lists.apps.entry(APP).or_default();
            for user in &*watched {
                let of =
                    users.entry(user.clone()).or_insert_with(|| WatchedUser::new(false, spell));
                of.watchers.insert(session);
            }
            lists.of_sessions.insert(session, (APP, watched.clone()));
        }
        lists.forget(SessionId(1));
        assert_eq!(lists.apps[&APP].len(), 2);
        lists.forget(SessionId(2));
        assert!(lists.apps.is_empty() && lists.of_sessions.is_empty());
    }
}
