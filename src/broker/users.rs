//! Users: the users of apps that are signed in, and the sessions that watch them.
//!
//! A user is online while at least one session of any node is signed in as the user. A session that signs in
//! may watch other users: it is told once which of them are online, and from then on each change, in the
//! order in which the changes happened.
//!
//! The nodes of a cluster tell each other which users come online and go offline there.

use std::{
    collections::{BTreeMap, HashMap, HashSet, btree_map},
    mem,
    ops::Bound,
    sync::Arc,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::app::AppId;

use super::{
    other_nodes::{KeyChange, OtherNodes},
    outbox::{News, Outbox},
    subscriber::SessionId,
};

/// A session that is signed in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedIn {
    /// The app.
    pub app: AppId,
    /// The user.
    pub user: Box<str>,
    /// The users that the session watches, each once.
    pub watched: Vec<Box<str>>,
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
/// One lock guards all users. It is held while the watchers of one user are told, which never waits.
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
    /// In order, so that a page of them costs no more than what is on it.
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
    watchers: HashMap<SessionId, Arc<Outbox>>,
}

impl UserSessions {
    fn is_online(&self) -> bool {
        self.sessions > 0 || self.elsewhere > 0
    }

    /// Tells the watchers whether the user is online.
    fn tell(&self, user: &str) {
        if self.watchers.is_empty() {
            return;
        }
        let (mut online, mut offline) = (Vec::new(), Vec::new());
        let named = if self.is_online() { &mut online } else { &mut offline };
        named.push(user.into());
        let change = Arc::new(OnlineChange { online, offline });
        for outbox in self.watchers.values() {
            outbox.tell(News::Online(change.clone()));
        }
    }
}

impl Users {
    /// Signs a session in, and tells it which of the users that it watches are online. `before` is its previous
    /// sign-in, which must be as the same user; watchers are not told of a repeated sign-in.
    pub fn sign_in(&self, outbox: &Arc<Outbox>, signed_in: &SignedIn, before: Option<&SignedIn>) {
        let SignedIn { app, user, watched } = signed_in;
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
                    of.tell(user);
                }
            }
            Some(before) => stop_watching(users, before, outbox.session()),
        }
        let mut seen = OnlineChange::default();
        for user in watched {
            let of = users.entry(user.clone()).or_default();
            of.watchers.insert(outbox.session(), outbox.clone());
            let named = if of.is_online() { &mut seen.online } else { &mut seen.offline };
            named.push(user.clone());
        }
        if !watched.is_empty() {
            outbox.tell(News::Online(seen.into()));
        }
    }

    /// Signs a session out, because it is over.
    pub fn sign_out(&self, session: SessionId, signed_in: &SignedIn) {
        let SignedIn { app, user, .. } = signed_in;
        let mut all = self.all.lock();
        let AllUsers { apps, changed, .. } = &mut *all;
        let Some(users) = apps.get_mut(app) else { return };
        stop_watching(users, signed_in, session);
        if let btree_map::Entry::Occupied(mut of) = users.entry(user.clone()) {
            of.get_mut().sessions = of.get().sessions.saturating_sub(1);
            if of.get().sessions == 0 {
                self.note_changed(changed, *app, user);
            }
            if !of.get().is_online() {
                of.get().tell(user);
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
            of.tell(&user);
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
    session: SessionId,
) {
    for user in &signed_in.watched {
        if let btree_map::Entry::Occupied(mut of) = users.entry(user.clone()) {
            of.get_mut().watchers.remove(&session);
            forget_if_unknown(of);
        }
    }
}

/// Removes a user that has no sessions and no watchers.
fn forget_if_unknown(user: btree_map::OccupiedEntry<'_, Box<str>, UserSessions>) {
    if !user.get().is_online() && user.get().watchers.is_empty() {
        user.remove();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{
        super::{
            node::NodeId,
            outbox::{Load, ToSession},
        },
        *,
    };

    const APP: AppId = AppId(1);

    fn outbox(session: u64) -> Arc<Outbox> {
        Outbox::new(SessionId(session), Load { frames: 100, bytes: 1_000 })
    }

    fn signed_in(app: AppId, user: &str, watched: &[&str]) -> SignedIn {
        let watched = watched.iter().map(|user| (*user).into()).collect();
        SignedIn { app, user: user.into(), watched }
    }

    /// All that a session was told: `+` and the users that are online, `-` and those that are not.
    fn told(outbox: &Outbox) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(ToSession::News(News::Online(change))) = outbox.take() {
            let OnlineChange { online, offline } = &*change;
            told.push(format!("+{} -{}", online.join(","), offline.join(",")));
        }
        told
    }

    #[test]
    fn watchers_are_told_the_present_state_and_then_its_changes() {
        let users = Users::default();
        let (watcher, first, second) = (outbox(1), outbox(2), outbox(3));
        let (u2, u3) = (signed_in(APP, "u2", &[]), signed_in(APP, "u3", &[]));
        users.sign_in(&first, &u2, None);
        users.sign_in(&watcher, &signed_in(APP, "u1", &["u2", "u3", "u1"]), None);
        assert_eq!(told(&watcher), ["+u2,u1 -u3"]);
        users.sign_in(&first, &u3, None);
        users.sign_in(&second, &u3, None);
        // Another app's user of the same name is another user.
        users.sign_in(&second, &signed_in(AppId(2), "u2", &[]), None);
        users.sign_out(SessionId(3), &signed_in(AppId(2), "u2", &[]));
        assert_eq!(told(&watcher), ["+u3 -"]);
        users.sign_out(SessionId(2), &u3);
        assert!(told(&watcher).is_empty(), "a session is left");
        users.sign_out(SessionId(3), &u3);
        users.sign_out(SessionId(2), &u2);
        assert_eq!(told(&watcher), ["+ -u3", "+ -u2"]);
        assert!(told(&first).is_empty() && told(&second).is_empty(), "they watch nobody");
    }

    #[test]
    fn a_session_that_signs_in_again_watches_the_users_that_it_names_then() {
        let users = Users::default();
        let (watcher, other) = (outbox(1), outbox(2));
        let (before, after) = (signed_in(APP, "u1", &["a", "b"]), signed_in(APP, "u1", &["b"]));
        let sees_u1 = signed_in(APP, "u9", &["u1"]);
        users.sign_in(&other, &sees_u1, None);
        users.sign_in(&watcher, &before, None);
        users.sign_in(&watcher, &after, Some(&before));
        assert_eq!(told(&watcher), ["+ -a,b", "+ -b"]);
        assert_eq!(told(&other), ["+ -u1", "+u1 -"], "u1 was never away");
        for user in ["a", "b"] {
            users.sign_in(&other, &signed_in(APP, user, &[]), None);
        }
        assert_eq!(told(&watcher), ["+b -"]);
        users.sign_out(SessionId(1), &after);
        for user in ["a", "b"] {
            users.sign_out(SessionId(2), &signed_in(APP, user, &[]));
        }
        users.sign_out(SessionId(2), &sees_u1);
        assert!(users.all.lock().apps.is_empty(), "nobody is signed in, and nobody is remembered");
    }

    #[test]
    fn a_user_is_online_while_it_is_signed_in_on_any_node() {
        let users = Users::default();
        let (watcher, here) = (outbox(1), outbox(2));
        let (u1, u2) = (signed_in(APP, "u1", &["u2", "u3"]), signed_in(APP, "u2", &[]));
        let key = |user: &str| UserKey { app: APP.0, user: user.into() };
        let online = |user, is_online| vec![OnlineHere { key: key(user), is_online }];
        users.sign_in(&watcher, &u1, None);
        assert!(users.take_changed().is_empty(), "nobody is told");
        users.share();
        assert_eq!(users.page(None, 10), [key("u1")], "others are told of it as a whole");
        let (one, other) = (NodeId(7), NodeId(8));
        let note = |node, told: Vec<OnlineHere>| {
            let told = told.into_iter().map(KeyChange::from).collect();
            users.change_elsewhere(|elsewhere| elsewhere.note(node, None, told));
        };
        for node in [one, one, other] {
            note(node, online("u2", true));
        }
        assert_eq!(told(&watcher), ["+ -u2,u3", "+u2 -"], "once");
        users.sign_in(&here, &u2, None);
        assert_eq!(users.take_changed(), online("u2", true));
        assert_eq!(users.page(Some(&key("u1")), 10), [key("u2")]);
        assert_eq!(users.page(None, 1), [key("u1")]);
        note(one, online("u2", false));
        users.change_elsewhere(|elsewhere| elsewhere.retain(&[]));
        assert!(told(&watcher).is_empty(), "it is online here");
        users.sign_out(SessionId(2), &u2);
        assert_eq!(
            (users.take_changed(), told(&watcher)),
            (online("u2", false), vec!["+ -u2".into()])
        );
        users.put_back(online("u2", true));
        assert_eq!(users.take_changed(), online("u2", false), "as it is now");
        note(one, online("u3", true));
        users.change_elsewhere(|elsewhere| elsewhere.retain(&[]));
        assert_eq!(told(&watcher), ["+u3 -", "+ -u3"], "its node is gone");
        users.sign_out(SessionId(1), &u1);
        assert!(users.all.lock().apps.is_empty());
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
