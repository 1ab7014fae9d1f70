//! Users: the users of apps that are signed in, and the sessions that watch them.
//!
//! A user is online while at least one session of any node is signed in as the user. A session that signs in
//! may watch other users: it is told once which of them are online, and from then on each change, in the
//! order in which the changes happened.
//!
//! The nodes of a cluster tell each other which users come online and go offline there.

use std::{
    collections::{BTreeMap, HashSet, btree_map},
    mem,
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use actix::Addr;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::app::AppId;

use super::{
    fanout::{Fanout, TellOnline, ThreadFanout, Watch, WorkerId},
    other_nodes::{KeyChange, OtherNodes},
    subscriber::{Frame, SessionId},
};

/// The shortest time between two changes of a user that its watchers are told of. Without it, a user that comes and
/// goes all the time would cost as many frames each time as it has watchers.
pub const ONLINE_INTERVAL: Duration = Duration::from_secs(1);

/// Encodes a change for the sessions that watch the users.
pub type EncodeOnline = fn(&OnlineChange) -> Frame;

/// The users that a session watches, each once.
pub type WatchedUsers = Arc<[Box<str>]>;

/// A session that is signed in.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// The app.
    pub app: AppId,
    /// The user.
    pub user: Box<str>,
    /// The users that the session watches.
    pub watched: WatchedUsers,
    /// The encoding of what the session is told of them.
    pub encode: EncodeOnline,
}

/// The watched users that have come online or gone offline.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OnlineChange {
    /// The users that are online.
    pub online: Vec<Box<str>>,
    /// The users that are offline.
    pub offline: Vec<Box<str>>,
}

/// The users of all apps that are signed in or watched.
///
/// One lock guards all users. It is held while a change is passed to the threads on which the user is watched. The
/// fan-out of each thread knows the watchers there, and tells them in the turn of their app.
#[derive(Default)]
pub struct Users {
    all: Mutex<AllUsers>,
    has_changed: Notify,
}

/// A user of an app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct UserKey {
    app: i32,
    user: Box<str>,
}

/// A user, and whether it is online on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OnlineHere {
    #[serde(flatten)]
    pub(super) key: UserKey,
    is_online: bool,
}

impl From<OnlineHere> for KeyChange<UserKey, ()> {
    fn from(OnlineHere { key, is_online }: OnlineHere) -> Self {
        (key, is_online.then_some(()))
    }
}

#[derive(Default)]
struct AllUsers {
    /// In order, so that all pages together pass each user once, and nothing is sorted.
    apps: BTreeMap<AppId, BTreeMap<Box<str>, UserSessions>>,
    /// The users about whom the other nodes have yet to be told; `None` without a cluster.
    changed: Option<HashSet<UserKey>>,
    /// The users that are known to be online on each other node.
    elsewhere: OtherNodes<UserKey, ()>,
}

/// The sessions that are signed in as one user, and those that watch it.
#[derive(Default)]
struct UserSessions {
    /// The number of sessions on this node that are signed in as the user.
    sessions: usize,
    /// The number of other nodes on which the user is online.
    elsewhere: usize,
    watching: Vec<WatchingThread>,
}

/// A thread with sessions that watch a user.
struct WatchingThread {
    worker: WorkerId,
    fanout: Addr<Fanout>,
    sessions: usize,
}

impl UserSessions {
    fn is_online(&self) -> bool {
        self.sessions > 0 || self.elsewhere > 0
    }

    /// Has the watchers told whether the user is online.
    fn tell(&self, app: AppId, user: &str) {
        if self.watching.is_empty() {
            return;
        }
        let (user, change) = (Arc::<str>::from(user), Some(self.is_online()));
        for thread in &self.watching {
            thread.fanout.do_send(TellOnline { app, user: user.clone(), change });
        }
    }

    /// Notes that one more session of a thread watches the user.
    fn add_watcher(&mut self, thread: &ThreadFanout) {
        if let Some(known) = self.watching.iter_mut().find(|known| known.worker == thread.worker) {
            known.sessions += 1;
        } else {
            let (worker, fanout) = (thread.worker, thread.addr.clone());
            self.watching.push(WatchingThread { worker, fanout, sessions: 1 });
        }
    }

    /// Notes that one session less of a thread watches the user.
    fn remove_watcher(&mut self, worker: WorkerId) {
        self.watching.retain_mut(|thread| {
            thread.sessions -= usize::from(thread.worker == worker);
            thread.sessions > 0
        });
    }
}

impl Users {
    /// Signs a session of a thread in, and has it told which of the users that it watches are online. `before` is its
    /// previous sign-in, which must be as the same user; watchers are not told of a repeated sign-in.
    pub fn sign_in(
        &self,
        thread: &ThreadFanout,
        session: SessionId,
        signed_in: &SignedIn,
        before: Option<&SignedIn>,
    ) {
        let SignedIn { app, user, watched, encode } = signed_in;
        let mut all = self.all.lock();
        let AllUsers { apps, changed, .. } = &mut *all;
        let users = apps.entry(*app).or_default();
        match before {
            None => {
                let of = users.entry(user.clone()).or_default();
                let was_online = of.is_online();
                of.sessions += 1;
                if of.sessions == 1 {
                    self.note_changed(changed, *app, user);
                }
                if !was_online {
                    of.tell(*app, user);
                }
            }
            Some(before) => stop_watching(users, before, thread.worker),
        }
        let mut are_online = Vec::with_capacity(watched.len());
        for user in &**watched {
            let of = users.entry(user.clone()).or_default();
            of.add_watcher(thread);
            are_online.push(of.is_online());
        }
        if !watched.is_empty() || before.is_some_and(|before| !before.watched.is_empty()) {
            let (app, watched, encode) = (*app, watched.clone(), *encode);
            // It is sent under the lock, so that the fan-out gets it in order with the changes of these users.
            thread.addr.do_send(Watch { session, app, watched, are_online, encode });
        }
    }

    /// Signs a session of a thread out, because it is over. The fan-out forgets its watchlist when the session leaves.
    pub fn sign_out(&self, worker: WorkerId, signed_in: &SignedIn) {
        let SignedIn { app, user, .. } = signed_in;
        let mut all = self.all.lock();
        let AllUsers { apps, changed, .. } = &mut *all;
        let Some(users) = apps.get_mut(app) else { return };
        stop_watching(users, signed_in, worker);
        if let btree_map::Entry::Occupied(mut of) = users.entry(user.clone()) {
            of.get_mut().sessions = of.get().sessions.saturating_sub(1);
            if of.get().sessions == 0 {
                self.note_changed(changed, *app, user);
            }
            if !of.get().is_online() {
                of.get().tell(*app, user);
                forget_if_unknown(of);
            }
        }
        all.forget_if_empty(*app);
    }

    fn note_changed(&self, changed: &mut Option<HashSet<UserKey>>, app: AppId, user: &str) {
        let Some(changed) = changed else { return };
        if changed.insert(UserKey { app: app.0, user: user.into() }) {
            self.has_changed.notify_one();
        }
    }

    /// Begins to collect which users come online and go offline, because other nodes must be told.
    pub(super) fn share(&self) {
        self.all.lock().changed.get_or_insert_default();
    }

    /// Waits until there is a change that was not [taken](Self::take_changed).
    pub(super) async fn changed(&self) {
        self.has_changed.notified().await;
    }

    /// Takes the users that have come online or gone offline on this node since the last call.
    pub(super) fn take_changed(&self) -> Vec<OnlineHere> {
        let mut all = self.all.lock();
        let changed = all.changed.as_mut().map(mem::take).unwrap_or_default();
        let here = |key: UserKey| OnlineHere { is_online: all.is_online_here(&key), key };
        changed.into_iter().map(here).collect()
    }

    /// Puts taken users back, because the other nodes could not be told.
    pub(super) fn put_back(&self, told: Vec<OnlineHere>) {
        if let Some(changed) = &mut self.all.lock().changed {
            changed.extend(told.into_iter().map(|told| told.key));
        }
        self.has_changed.notify_one();
    }

    /// The first `users_max` users after `after`, in order, that are online on this node.
    pub(super) fn page(&self, after: Option<&UserKey>, users_max: usize) -> Vec<UserKey> {
        let all = self.all.lock();
        let first = after.map_or(i32::MIN, |after| after.app);
        let users = all.apps.range(AppId(first)..).flat_map(|(app, users)| {
            let after = after.filter(|after| after.app == app.0).map(|after| &*after.user);
            let first = after.map_or(Bound::Unbounded, Bound::Excluded);
            users
                .range::<str, _>((first, Bound::Unbounded))
                .map(move |(user, of)| (app.0, user, of))
        });
        let online = users.filter(|(_, _, of)| of.sessions > 0).take(users_max);
        online.map(|(app, user, _)| UserKey { app, user: user.clone() }).collect()
    }

    /// Changes what is known of the users of other nodes, and tells the watchers.
    pub(super) fn change_elsewhere(
        &self,
        change: impl FnOnce(&mut OtherNodes<UserKey, ()>) -> Vec<KeyChange<UserKey, ()>>,
    ) {
        let mut all = self.all.lock();
        for (key, online) in change(&mut all.elsewhere) {
            all.set_elsewhere(key, online.is_some());
        }
    }

    /// Calls a function with the users of other nodes, without telling the watchers.
    pub(super) fn with_elsewhere<T>(
        &self,
        ask: impl FnOnce(&mut OtherNodes<UserKey, ()>) -> T,
    ) -> T {
        ask(&mut self.all.lock().elsewhere)
    }
}

impl AllUsers {
    fn is_online_here(&self, UserKey { app, user }: &UserKey) -> bool {
        let of = self.apps.get(&AppId(*app)).and_then(|users| users.get(user));
        of.is_some_and(|of| of.sessions > 0)
    }

    /// Notes that a user has come online or gone offline on another node.
    fn set_elsewhere(&mut self, key: UserKey, is_online: bool) {
        let UserKey { app, user } = key;
        let users = self.apps.entry(AppId(app)).or_default();
        let of = users.entry(user.clone()).or_default();
        let was_online = of.is_online();
        of.elsewhere = match is_online {
            true => of.elsewhere + 1,
            false => of.elsewhere.saturating_sub(1),
        };
        if of.is_online() != was_online {
            of.tell(AppId(app), &user);
        }
        if let btree_map::Entry::Occupied(of) = users.entry(user) {
            forget_if_unknown(of);
        }
        self.forget_if_empty(AppId(app));
    }

    fn forget_if_empty(&mut self, app: AppId) {
        if self.apps.get(&app).is_some_and(BTreeMap::is_empty) {
            self.apps.remove(&app);
        }
    }
}

fn stop_watching(
    users: &mut BTreeMap<Box<str>, UserSessions>,
    signed_in: &SignedIn,
    worker: WorkerId,
) {
    for user in &*signed_in.watched {
        if let btree_map::Entry::Occupied(mut of) = users.entry(user.clone()) {
            of.get_mut().remove_watcher(worker);
            forget_if_unknown(of);
        }
    }
}

/// Removes a user that has no sessions and no watchers.
fn forget_if_unknown(user: btree_map::OccupiedEntry<'_, Box<str>, UserSessions>) {
    if !user.get().is_online() && user.get().watching.is_empty() {
        user.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{
        super::{
            count::CountAll,
            node::NodeId,
            outbox::ToSession,
            testing::{Broker, DEADLINE, Probe},
        },
        *,
    };

    const APP: AppId = AppId(1);

    fn signed_in(app: AppId, user: &str, watched: &[&str]) -> SignedIn {
        let watched = watched.iter().map(|user| (*user).into()).collect();
        SignedIn { app, user: user.into(), watched, encode: spell }
    }

    /// `+` and the users that are online, `-` and those that are not.
    fn spell(OnlineChange { online, offline }: &OnlineChange) -> Frame {
        Frame::Text(format!("+{} -{}", online.join(","), offline.join(",")).into())
    }

    /// All users, and sessions of one thread.
    struct Bench {
        users: Users,
        broker: Broker,
    }

    impl Bench {
        fn start() -> Self {
            Self { users: Users::default(), broker: Broker::start() }
        }

        async fn session(&self, id: u64) -> Probe {
            self.broker.stuck_session(id, 100).await
        }

        fn sign_in(&self, probe: &Probe, signed_in: &SignedIn, before: Option<&SignedIn>) {
            self.users.sign_in(&self.broker.thread, probe.session, signed_in, before);
        }

        fn sign_out(&self, signed_in: &SignedIn) {
            self.users.sign_out(self.broker.worker, signed_in);
        }

        /// All that a session was told.
        async fn told(&self, probe: &Probe) -> Vec<String> {
            // The fan-out answers this after it has handled the changes.
            self.broker.topics.fanouts().ask(CountAll, DEADLINE).await;
            let mut told = Vec::new();
            while let Some(ToSession::Frame(Frame::Text(text), _)) = probe.outbox.take() {
                told.push(text.to_string());
            }
            told
        }
    }

    #[actix_web::test]
    async fn watchers_are_told_the_present_state_and_then_its_changes() {
        let bench = Bench::start();
        let (watcher, first) = (bench.session(1).await, bench.session(2).await);
        let second = bench.session(3).await;
        let (u2, u3) = (signed_in(APP, "u2", &[]), signed_in(APP, "u3", &[]));
        bench.sign_in(&first, &u2, None);
        bench.sign_in(&watcher, &signed_in(APP, "u1", &["u2", "u3", "u1"]), None);
        assert_eq!(bench.told(&watcher).await, ["+u2,u1 -u3"]);
        bench.sign_in(&first, &u3, None);
        bench.sign_in(&second, &u3, None);
        // Another app's user of the same name is another user.
        bench.sign_in(&second, &signed_in(AppId(2), "u2", &[]), None);
        bench.sign_out(&signed_in(AppId(2), "u2", &[]));
        assert_eq!(bench.told(&watcher).await, ["+u3 -"]);
        bench.sign_out(&u3);
        assert!(bench.told(&watcher).await.is_empty(), "a session is left");
        bench.sign_out(&u3);
        bench.sign_out(&u2);
        assert_eq!(bench.told(&watcher).await, ["+ -u3", "+ -u2"]);
        for probe in [&first, &second] {
            assert!(bench.told(probe).await.is_empty(), "it watches nobody");
        }
    }

    #[actix_web::test]
    async fn a_session_that_signs_in_again_watches_the_users_that_it_names_then() {
        let bench = Bench::start();
        let (watcher, other) = (bench.session(1).await, bench.session(2).await);
        let (before, after) = (signed_in(APP, "u1", &["a", "b"]), signed_in(APP, "u1", &["b"]));
        let sees_u1 = signed_in(APP, "u9", &["u1"]);
        bench.sign_in(&other, &sees_u1, None);
        bench.sign_in(&watcher, &before, None);
        bench.sign_in(&watcher, &after, Some(&before));
        assert_eq!(bench.told(&watcher).await, ["+ -a,b", "+ -b"]);
        assert_eq!(bench.told(&other).await, ["+ -u1", "+u1 -"], "u1 was never away");
        for user in ["a", "b"] {
            bench.sign_in(&other, &signed_in(APP, user, &[]), None);
        }
        assert_eq!(bench.told(&watcher).await, ["+b -"]);
        bench.sign_out(&after);
        for user in ["a", "b"] {
            bench.sign_out(&signed_in(APP, user, &[]));
        }
        bench.sign_out(&sees_u1);
        assert!(
            bench.users.all.lock().apps.is_empty(),
            "nobody is signed in, and nobody is remembered"
        );
    }

    #[actix_web::test]
    async fn a_user_is_online_while_it_is_signed_in_on_any_node() {
        let bench = Bench::start();
        let (watcher, here) = (bench.session(1).await, bench.session(2).await);
        let (u1, u2) = (signed_in(APP, "u1", &["u2", "u3"]), signed_in(APP, "u2", &[]));
        let key = |user: &str| UserKey { app: APP.0, user: user.into() };
        let online = |user, is_online| vec![OnlineHere { key: key(user), is_online }];
        bench.sign_in(&watcher, &u1, None);
        assert!(bench.users.take_changed().is_empty(), "nobody is told");
        bench.users.share();
        assert_eq!(bench.users.page(None, 10), [key("u1")], "others are told of it as a whole");
        let (one, other) = (NodeId(7), NodeId(8));
        let note = |node, told: Vec<OnlineHere>| {
            let told = told.into_iter().map(KeyChange::from).collect();
            bench.users.change_elsewhere(|elsewhere| elsewhere.note(node, None, told));
        };
        for node in [one, one, other] {
            note(node, online("u2", true));
        }
        assert_eq!(bench.told(&watcher).await, ["+ -u2,u3", "+u2 -"], "once");
        bench.sign_in(&here, &u2, None);
        assert_eq!(bench.users.take_changed(), online("u2", true));
        assert_eq!(bench.users.page(Some(&key("u1")), 10), [key("u2")]);
        assert_eq!(bench.users.page(None, 1), [key("u1")]);
        note(one, online("u2", false));
        bench.users.change_elsewhere(|elsewhere| elsewhere.retain(&[]));
        assert!(bench.told(&watcher).await.is_empty(), "it is online here");
        bench.sign_out(&u2);
        assert_eq!(
            (bench.users.take_changed(), bench.told(&watcher).await),
            (online("u2", false), vec!["+ -u2".into()])
        );
        bench.users.put_back(online("u2", true));
        assert_eq!(bench.users.take_changed(), online("u2", false), "as it is now");
        note(one, online("u3", true));
        bench.users.change_elsewhere(|elsewhere| elsewhere.retain(&[]));
        assert_eq!(bench.told(&watcher).await, ["+u3 -", "+ -u3"], "its node is gone");
        bench.sign_out(&u1);
        assert!(bench.users.all.lock().apps.is_empty());
    }

    #[test]
    fn all_pages_together_take_about_as_long_as_the_users_are_many() {
        const USERS: usize = 20_000;
        let users = Users::default();
        {
            let mut all = users.all.lock();
            for nth in 0..USERS {
                let of = all.apps.entry(AppId(nth as i32 % 3)).or_default();
                of.entry(format!("u{nth}").into()).or_default().sessions = 1;
            }
        }
        let (started, mut after, mut pages) = (Instant::now(), None, Vec::new());
        loop {
            let page = users.page(after.as_ref(), 10);
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            pages.push(page);
        }
        // Looking at all users for each of the 2,000 pages takes a hundred times as long.
        assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
        let all = pages.concat();
        assert!(all.is_sorted() && all.len() == USERS && pages.len() == USERS / 10);
    }
}
