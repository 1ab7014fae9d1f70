//! A gathering: one channel's presence in time.

use bytestring::ByteString;

use super::{
    presence::{Change, Presence, Roster},
    subscriber::Format,
};

/// One channel whose members are tracked: who is there, and whether it is time to say so.
///
/// What changes after a quiet time is announced at once; from then on it rests, and what changes
/// meanwhile is announced together.
pub(super) struct Gathering {
    pub(super) presence: Presence,
    /// The announced members as newcomers are told of them, spelled for the first of a moment.
    spelled: Option<ByteString>,
    is_resting: bool,
}

impl Gathering {
    pub(super) fn new(members_max: usize) -> Self {
        Self { presence: Presence::new(members_max), spelled: None, is_resting: false }
    }

    /// What a newcomer is told: everybody who was announced. It is not among them itself, for the
    /// next announcement tells all of it, the newcomer included.
    pub(super) fn spelled(&mut self, format: Format) -> ByteString {
        let spell = || (format.spell_members)(&self.presence.announced());
        self.spelled.get_or_insert_with(spell).clone()
    }

    /// Who is there.
    pub(super) fn members(&self) -> Roster {
        self.presence.current()
    }

    /// Whether an announcement is due; if so it rests from now on.
    pub(super) fn wants_to_announce(&mut self) -> bool {
        let is_due = !self.is_resting && self.presence.has_news();
        self.is_resting |= is_due;
        is_due
    }

    /// Takes what is to be announced.
    pub(super) fn announce(&mut self) -> Change {
        self.spelled = None;
        self.presence.announce()
    }

    /// It has rested.
    pub(super) fn wake(&mut self) {
        self.is_resting = false;
    }

    /// Whether nobody is there, so that whoever comes next begins anew.
    pub(super) fn is_over(&self) -> bool {
        self.presence.is_deserted()
    }
}

#[cfg(test)]
mod tests;
