//! A gathering: the members of one channel, and the times at which changes of them are announced.

use bytestring::ByteString;

use super::{
    presence::{Change, Presence, Roster},
    subscriber::Format,
};

/// One channel whose members are tracked, with the schedule of its announcements.
///
/// A change after a quiet time is announced immediately. Further changes are gathered for an
/// interval and then announced together.
pub(super) struct Gathering {
    pub(super) presence: Presence,
    /// The announced members, encoded for the first new member and kept for others that join before
    /// the next announcement.
    spelled: [Option<ByteString>; Format::ROSTERS],
    is_resting: bool,
}

impl Gathering {
    pub(super) fn new(members_max: usize) -> Self {
        Self {
            presence: Presence::new(members_max),
            spelled: Default::default(),
            is_resting: false,
        }
    }

    /// The members that a new member is sent: all that were announced. The new member is not among
    /// them, because the next announcement tells all members of it, itself included.
    pub(super) fn spelled(&mut self, format: Format) -> ByteString {
        let spell = || (format.spell_members)(&self.presence.announced());
        let spelled = &mut self.spelled[usize::from(format.roster_slot)];
        spelled.get_or_insert_with(spell).clone()
    }

    /// The members that are present.
    pub(super) fn members(&self) -> Roster {
        self.presence.current()
    }

    /// Returns whether an announcement is due. If it is, an interval begins.
    pub(super) fn wants_to_announce(&mut self) -> bool {
        let is_due = !self.is_resting && self.presence.has_news();
        self.is_resting |= is_due;
        is_due
    }

    /// Takes the changes that are to be announced.
    pub(super) fn announce(&mut self) -> Change {
        self.spelled = Default::default();
        self.presence.announce()
    }

    /// Notes that the interval is over.
    pub(super) fn wake(&mut self) {
        self.is_resting = false;
    }

    /// Marks the present members as announced, because the subscribers of this node have not been
    /// sent anything yet.
    pub(super) fn adopt(&mut self) {
        self.announce();
    }

    /// Returns whether there are no members, so that this can be dropped.
    pub(super) fn is_over(&self) -> bool {
        self.presence.is_deserted()
    }
}

#[cfg(test)]
mod tests;
