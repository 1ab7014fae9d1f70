//! Presence: who is there on one channel, as it is and as it was announced.
//!
//! Pure: no actor, no clock, no spelling. Everybody who hears a channel keeps a picture of who is
//! there: it begins with all that was announced when they came, and is changed by each announcement
//! since. So all pictures are equal at any moment, and nobody, least of all a newcomer, is in a
//! picture twice. What happens between two announcements travels together; what cancels out there
//! is never told.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use bytestring::ByteString;

use super::{fanout::WorkerId, publication::JsonObject, subscriber::SessionId};

/// As whom a session joins a channel where it is tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Persona {
    /// Who it is; several sessions may be the same.
    pub key: ByteString,
    /// What others see of it.
    pub meta: JsonObject,
}

/// One tracked join as others see it.
#[derive(Debug, PartialEq, Eq)]
pub struct Member {
    /// Who, and what is seen.
    pub persona: Persona,
    /// Tells it from every other member, also from its own earlier state.
    pub reference: ByteString,
    /// The announced state that this one replaces, if its session updated it.
    pub previous: Option<ByteString>,
}

/// Members by key, each key's in the order in which their sessions began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Roster(BTreeMap<ByteString, Vec<Arc<Member>>>);

impl Roster {
    /// Keys with their members, in the order of keys; none is without members.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Arc<Member>])> {
        self.0.iter().map(|(key, members)| (&**key, members.as_slice()))
    }

    /// Whether nobody is in it.
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

/// What one announcement tells. Who was updated is among both.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Who is there now.
    pub joins: Roster,
    /// Who is there no more.
    pub leaves: Roster,
}

impl Change {
    /// Whether nothing has changed.
    pub fn is_empty(&self) -> bool {
        self.joins.is_empty() && self.leaves.is_empty()
    }
}

/// As many are there as may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

/// Who is there on one channel.
#[derive(Debug)]
pub(super) struct Presence {
    members_max: usize,
    sessions: BTreeMap<SessionId, Attendance>,
    /// Sessions whose state is not the announced one.
    changed: BTreeSet<SessionId>,
    /// How many are there.
    count: usize,
}

/// One session: what was announced of it, and what is so. Equal unless it is among `changed`.
#[derive(Debug)]
struct Attendance {
    worker: WorkerId,
    announced: Option<Arc<Member>>,
    current: Option<Arc<Member>>,
}

impl Presence {
    /// Nobody is there, and at most so many ever at once.
    pub(super) fn new(members_max: usize) -> Self {
        let (sessions, changed) = (BTreeMap::new(), BTreeSet::new());
        Self { members_max, sessions, changed, count: 0 }
    }

    /// A session comes, or comes anew: then what it was ends.
    ///
    /// # Errors
    /// [`Full`]: nothing has changed.
    pub(super) fn track(
        &mut self,
        session: SessionId,
        worker: WorkerId,
        persona: Persona,
        reference: ByteString,
    ) -> Result<(), Full> {
        let was_there = self.sessions.get(&session).is_some_and(|a| a.current.is_some());
        if !was_there && self.count >= self.members_max {
            return Err(Full);
        }
        self.count += usize::from(!was_there);
        let member = Arc::new(Member { persona, reference, previous: None });
        let absent = Attendance { worker, announced: None, current: None };
        let attendance = self.sessions.entry(session).or_insert(absent);
        attendance.worker = worker;
        attendance.current = Some(member);
        self.changed.insert(session);
        Ok(())
    }

    /// A session shows another meta; one that is not there shows none.
    pub(super) fn update(&mut self, session: SessionId, meta: JsonObject, reference: ByteString) {
        let Some(attendance) = self.sessions.get_mut(&session) else { return };
        let Some(current) = &attendance.current else { return };
        let is_announced = attendance.announced.as_ref().is_some_and(|a| Arc::ptr_eq(a, current));
        // A state that was never announced is nobody's previous one.
        let previous = match is_announced {
            true => Some(current.reference.clone()),
            false => current.previous.clone(),
        };
        let persona = Persona { key: current.persona.key.clone(), meta };
        attendance.current = Some(Arc::new(Member { persona, reference, previous }));
        self.changed.insert(session);
    }

    /// A session goes; one that is not there is gone already.
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

    /// All sessions of a thread go.
    pub(super) fn untrack_worker(&mut self, worker: WorkerId) {
        let gone: Vec<_> =
            self.sessions.iter().filter(|(_, a)| a.worker == worker).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|session| self.untrack(session));
    }

    /// Whether there is something to announce.
    pub(super) fn has_news(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Whether nobody is there. Then nobody is left who could be told of who has gone.
    pub(super) fn is_deserted(&self) -> bool {
        self.count == 0
    }

    /// What everybody's picture is.
    pub(super) fn announced(&self) -> Roster {
        self.sessions.values().filter_map(|a| a.announced.as_ref()).collect()
    }

    /// What is so.
    pub(super) fn current(&self) -> Roster {
        self.sessions.values().filter_map(|a| a.current.as_ref()).collect()
    }

    /// Makes what is so the announced state; answers what that changes.
    pub(super) fn announce(&mut self) -> Change {
        let mut change = Change::default();
        for session in mem::take(&mut self.changed) {
            let Some(attendance) = self.sessions.get_mut(&session) else { continue };
            if let Some(left) = &attendance.announced {
                change.leaves.add(left);
            }
            attendance.announced.clone_from(&attendance.current);
            match &attendance.current {
                Some(joined) => change.joins.add(joined),
                None => {
                    self.sessions.remove(&session);
                }
            }
        }
        change
    }
}

#[cfg(test)]
mod tests;
