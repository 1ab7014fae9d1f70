//! Presence: the members of one channel, as they are and as they were announced.
//!
//! The type is pure: it has no actor, no clock and no encoding. Each subscriber of a channel keeps
//! a list of the members: it begins with the members that were announced when the subscriber
//! joined, and each later announcement changes it. All lists are therefore equal at any moment, and
//! no member, not even a new one, is in a list twice. Changes between two announcements are
//! announced together, and changes that cancel out are never announced.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
    sync::Arc,
};

use bytestring::ByteString;
use serde_json::value::RawValue;

use crate::strict_json::{self, NotStrict};

use super::{
    fanout::WorkerId,
    node::NodeId,
    publication::{JsonObject, JsonText},
    reserved,
    subscriber::SessionId,
};

/// The identity under which a session joins a channel where it is tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persona {
    /// The key of the user. Several sessions may have the same key.
    pub key: ByteString,
    /// The data that other members see.
    pub meta: Meta,
}

/// The data of a member that others see. Each protocol encodes it in its own way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// The time of the join, in Unix milliseconds.
    pub since_ms: u64,
    /// The object of the join, if the join had one. No field of the object is called [`Meta::CUSTOM`], or has
    /// a [reserved name](reserved::is_presence_field).
    pub info: Option<JsonObject>,
    /// The value that the member itself has set, if it has; it may change.
    pub custom: Option<JsonText>,
}

impl Meta {
    /// The name of the member's own custom data within its meta.
    pub const CUSTOM: &'static str = "custom";

    /// Takes the JSON object that describes a member which joins now; any other JSON counts as
    /// absent. Reserved names are left out.
    ///
    /// # Errors
    /// [`NotStrict`] if some subscribers could not read the object, or would read it differently.
    pub fn new(since_ms: u64, said: Option<&RawValue>) -> Result<Self, NotStrict> {
        let said = said.filter(|said| said.get().starts_with('{'));
        let mut members = said.map(strict_json::members).transpose()?.unwrap_or_default();
        let custom = members.remove(Self::CUSTOM).map(JsonText::from_raw).transpose()?;
        members.retain(|name, _| !reserved::is_presence_field(name));
        Ok(Self { since_ms, info: said.map(|_| JsonObject::of(&members)), custom })
    }

    /// The object of the join, or an empty one.
    pub fn info_text(&self) -> &str {
        self.info.as_ref().map_or("{}", JsonObject::as_str)
    }
}

/// One tracked join as others see it.
#[derive(Debug, PartialEq, Eq)]
pub struct Member {
    /// The identity of the member, and the data that others see.
    pub persona: Persona,
    /// A reference that distinguishes it from every other member, also from its own earlier state.
    pub reference: ByteString,
    /// The reference of the announced state that this one replaces, if its session updated it.
    pub previous: Option<ByteString>,
}

/// Members by key, each key's in the order in which their sessions began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roster(BTreeMap<ByteString, Vec<Arc<Member>>>);

impl Roster {
    /// The keys with their members, in the order of keys. Each key has at least one member.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Arc<Member>])> {
        self.0.iter().map(|(key, members)| (&**key, members.as_slice()))
    }

    /// Returns whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, member: &Arc<Member>) {
        self.0.entry(member.persona.key.clone()).or_default().push(member.clone());
    }
}

impl<'a> FromIterator<&'a Arc<Member>> for Roster {
    fn from_iter<I: IntoIterator<Item = &'a Arc<Member>>>(members: I) -> Self {
        let mut roster = Self::default();
        members.into_iter().for_each(|member| roster.add(member));
        roster
    }
}

/// The content of one announcement. A member that was updated is in both rosters.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The members that have come.
    pub joins: Roster,
    /// The members that have left.
    pub leaves: Roster,
    /// The keys that had no members before.
    pub arrived: Vec<Arrival>,
    /// The keys that have no members any more.
    pub departed: Vec<ByteString>,
}

/// A key that had no members before.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The first member of the key.
    pub member: Arc<Member>,
    /// The sessions of all members of the key, that of the first one first.
    pub sessions: Vec<SessionId>,
}

impl Change {
    /// Returns whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.joins.is_empty() && self.leaves.is_empty()
    }
}

/// The location of a member's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// On a thread of this server, which is not part of a cluster.
    Worker(WorkerId),
    /// On a node of the cluster.
    Node(NodeId),
}

impl From<WorkerId> for Home {
    fn from(worker: WorkerId) -> Self {
        Self::Worker(worker)
    }
}

/// The error of a channel that has as many members as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChannelFull;

/// The members of one channel.
#[derive(Debug)]
pub(super) struct Presence {
    members_max: usize,
    sessions: BTreeMap<SessionId, Attendance>,
    /// Sessions whose state is not the announced one.
    changed: BTreeSet<SessionId>,
    /// The number of announced members of each key. Keys without any are absent.
    announced_by_key: HashMap<ByteString, usize>,
    /// The number of members.
    count: usize,
}

/// The announced and the present state of one session. They are equal unless the session is in `changed`.
#[derive(Debug)]
struct Attendance {
    home: Home,
    announced: Option<Arc<Member>>,
    current: Option<Arc<Member>>,
}

impl Attendance {
    /// Takes a state, and returns whether it differs from the announced one.
    ///
    /// A node writes a state once more if it does not learn that it was written. Such a state has the same
    /// reference, and changes nothing: clients would remove a reference that joins and leaves at once.
    fn take(&mut self, member: Member) -> bool {
        let is_same = |known: &&Arc<Member>| known.reference == member.reference;
        let known =
            self.current.as_ref().filter(is_same).or(self.announced.as_ref().filter(is_same));
        let current = known.cloned().unwrap_or_else(|| Arc::new(member));
        let is_announced = self.announced.as_ref().is_some_and(|it| Arc::ptr_eq(it, &current));
        self.current = Some(current);
        !is_announced
    }
}

impl Presence {
    /// A channel without members. `members_max` is the most that it may have at the same time.
    pub(super) fn new(members_max: usize) -> Self {
        let (sessions, changed) = (BTreeMap::new(), BTreeSet::new());
        Self { members_max, sessions, changed, announced_by_key: HashMap::new(), count: 0 }
    }

    /// Adds a session, or replaces its earlier state.
    ///
    /// # Errors
    /// [`ChannelFull`]: nothing has changed.
    pub(super) fn track(
        &mut self,
        session: SessionId,
        home: impl Into<Home>,
        persona: Persona,
        reference: ByteString,
    ) -> Result<(), ChannelFull> {
        let was_there = self.sessions.get(&session).is_some_and(|a| a.current.is_some());
        if !was_there && self.count >= self.members_max {
            return Err(ChannelFull);
        }
        self.count += usize::from(!was_there);
        let home = home.into();
        let absent = Attendance { home, announced: None, current: None };
        let attendance = self.sessions.entry(session).or_insert(absent);
        attendance.home = home;
        let is_changed = attendance.take(Member { persona, reference, previous: None });
        self.note(session, is_changed);
        Ok(())
    }

    /// Changes the custom data of a session; does nothing if the session is not a member.
    pub(super) fn update(&mut self, session: SessionId, custom: JsonText, reference: ByteString) {
        let Some(attendance) = self.sessions.get_mut(&session) else { return };
        let Some(current) = &attendance.current else { return };
        let is_announced = attendance.announced.as_ref().is_some_and(|a| Arc::ptr_eq(a, current));
        // A state that was never announced cannot be a previous one.
        let previous = match is_announced {
            true => Some(current.reference.clone()),
            false => current.previous.clone(),
        };
        let Persona { key, meta } = current.persona.clone();
        let persona = Persona { key, meta: Meta { custom: Some(custom), ..meta } };
        let is_changed = attendance.take(Member { persona, reference, previous });
        self.note(session, is_changed);
    }

    /// Notes whether the state of a session differs from the announced one.
    fn note(&mut self, session: SessionId, is_changed: bool) {
        match is_changed {
            true => self.changed.insert(session),
            false => self.changed.remove(&session),
        };
    }

    /// Returns whether a session is a member.
    pub(super) fn has(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_some_and(|attendance| attendance.current.is_some())
    }

    /// Removes a session, if it is a member.
    pub(super) fn untrack(&mut self, session: SessionId) {
        let Some(attendance) = self.sessions.get_mut(&session) else { return };
        if attendance.current.take().is_none() {
            return;
        }
        self.count -= 1;
        if attendance.announced.is_some() {
            self.changed.insert(session);
        } else {
            self.sessions.remove(&session);
            self.changed.remove(&session);
        }
    }

    /// Removes all sessions of a thread, or of a node.
    pub(super) fn untrack_home(&mut self, home: impl Into<Home>) {
        let home = home.into();
        let gone: Vec<_> =
            self.sessions.iter().filter(|(_, a)| a.home == home).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|session| self.untrack(session));
    }

    /// Returns whether there are changes to announce.
    pub(super) fn has_news(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Returns whether there are no members. Then there is also no session to which departures could be
    /// announced.
    pub(super) fn is_deserted(&self) -> bool {
        self.count == 0
    }

    /// The members as all sessions know them.
    pub(super) fn announced(&self) -> Roster {
        self.sessions.values().filter_map(|a| a.announced.as_ref()).collect()
    }

    /// The members that are present now.
    pub(super) fn current(&self) -> Roster {
        self.sessions.values().filter_map(|a| a.current.as_ref()).collect()
    }

    /// Makes the present state the announced one, and returns the difference.
    pub(super) fn announce(&mut self) -> Change {
        let mut change = Change::default();
        let (mut came, mut left) = (Vec::new(), BTreeSet::new());
        for session in mem::take(&mut self.changed) {
            let Some(attendance) = self.sessions.get_mut(&session) else { continue };
            let before = mem::replace(&mut attendance.announced, attendance.current.clone());
            if let Some(before) = before {
                change.leaves.add(&before);
                left.insert(before.persona.key.clone());
            }
            match &attendance.current {
                Some(joined) => {
                    change.joins.add(joined);
                    came.push((session, joined.clone()));
                }
                None => {
                    self.sessions.remove(&session);
                }
            }
        }
        self.count_by_key(&mut change, came, left);
        change
    }

    /// Counts the members of each key in the change, and notes the keys that arrived and departed. A key with a
    /// member before and after the change has done neither.
    fn count_by_key(
        &mut self,
        change: &mut Change,
        came: Vec<(SessionId, Arc<Member>)>,
        left: BTreeSet<ByteString>,
    ) {
        for (key, members) in change.leaves.iter() {
            if let Some(count) = self.announced_by_key.get_mut(key) {
                *count -= members.len();
            }
        }
        // The index of each key's arrival.
        let mut arrivals = HashMap::new();
        for (session, member) in came {
            let key = member.persona.key.clone();
            let count = self.announced_by_key.entry(key.clone()).or_insert_with(|| {
                arrivals.insert(key.clone(), change.arrived.len());
                change.arrived.push(Arrival { member, sessions: Vec::new() });
                0
            });
            *count += 1;
            if let Some(nth) = arrivals.get(&key) {
                change.arrived[*nth].sessions.push(session);
            }
        }
        for key in left {
            if self.announced_by_key.get(&key) == Some(&0) {
                self.announced_by_key.remove(&key);
                change.departed.push(key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
