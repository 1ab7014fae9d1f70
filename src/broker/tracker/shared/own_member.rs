//! A member of this node: the state that it should have in the log, and what the log is known to have.

use actix::prelude::*;
use bytestring::ByteString;

use crate::broker::{
    cluster::MemberValue,
    fanout::{Entered, Fanout, WorkerId},
    subscriber::{Format, Place, SessionId, SubscribeError, SubscriptionId},
};

/// A member of this node.
pub(super) struct OwnMember {
    /// The worker thread of its session.
    pub(super) worker: WorkerId,
    /// The fan-out of that thread.
    pub(super) fanout: Addr<Fanout>,
    /// The state that it should have in the log; `None` if it should not be there.
    pub(super) wanted: Option<MemberValue>,
    /// Whether the log may have another state.
    pub(super) is_dirty: bool,
    /// Whether a change of the member is being appended. At most one is, so the changes keep their order.
    pub(super) is_under_way: bool,
    /// Whether the log may have the member: its state was written, and the log has not acknowledged a removal
    /// since. Only such a member has to be removed.
    pub(super) may_be_logged: bool,
    /// The offset of its last acknowledged state in this incarnation; `None` if the next state is a join.
    pub(super) put_at: Option<u64>,
    /// The offset of the last change of the member that was read from the log.
    changed_at: Option<u64>,
    /// The join that waits until the member is read from the log.
    pub(super) entering: Option<EnteringMember>,
}

/// A join that waits until the member is read from the log.
pub(super) struct EnteringMember {
    pub(super) fanout: Addr<Fanout>,
    pub(super) place: Place,
    pub(super) session: SessionId,
    pub(super) id: SubscriptionId,
    pub(super) format: Format,
    /// The reference of the state with which the member joins.
    pub(super) reference: String,
}

impl EnteringMember {
    /// Refuses the join.
    pub(super) fn refuse(self, refused: SubscribeError) {
        let Self { fanout, place, session, id, .. } = self;
        fanout.do_send(Entered { place, session, id, members: Err(refused) });
    }
}

impl OwnMember {
    /// A session of this thread that is not in the log.
    pub(super) fn new(worker: WorkerId, fanout: Addr<Fanout>) -> Self {
        Self {
            worker,
            fanout,
            wanted: None,
            is_dirty: false,
            is_under_way: false,
            may_be_logged: false,
            put_at: None,
            changed_at: None,
            entering: None,
        }
    }

    /// Refuses the pending join, if there is one.
    pub(super) fn refuse(&mut self, refused: SubscribeError) {
        if let Some(entering) = self.entering.take() {
            entering.refuse(refused);
        }
    }

    /// Notes that the log has taken a state of the member, or its removal, at this offset.
    pub(super) fn taken(&mut self, is_put: bool, offset: u64) {
        self.may_be_logged = is_put;
        // A newer join of the session may have replaced the one that was written.
        let is_replaced = self.is_dirty && self.entering.is_some();
        self.put_at = (is_put && !is_replaced).then_some(offset);
        self.mend();
        if !is_put && self.changed_at.is_some_and(|at| at > offset) {
            // It must be removed once more.
            (self.is_dirty, self.may_be_logged) = (true, true);
        }
    }

    /// Notes that a change of the member was read from the log at this offset. Returns whether the member must be
    /// written again.
    pub(super) fn changed(&mut self, offset: u64) -> bool {
        self.changed_at = Some(offset);
        self.mend()
    }

    /// If the log has changed or removed the member after its last acknowledged state, although it should have that
    /// state, it must be written again, as a join. While a change is being appended, its acknowledgement decides.
    /// The changes up to that state are the member's own, which may be read later than they are acknowledged.
    fn mend(&mut self) -> bool {
        let is_changed = self.put_at.zip(self.changed_at).is_some_and(|(put, other)| other > put);
        let is_lost = is_changed && self.wanted.is_some() && !self.is_under_way;
        if is_lost {
            (self.is_dirty, self.put_at) = (true, None);
        }
        is_lost
    }

    /// Notes that the log has no state of the member any more. It must be written again, as a join and with
    /// another reference.
    pub(super) fn put_anew(&mut self, reference: impl Fn() -> ByteString) {
        (self.is_dirty, self.put_at) = (true, None);
        if let Some(value) = &mut self.wanted {
            value.reference = reference().to_string();
            if let Some(entering) = &mut self.entering {
                entering.reference.clone_from(&value.reference);
            }
        }
    }

    /// Forgets all offsets, because the log may have another numbering from now on.
    pub(super) fn forget_offsets(&mut self) {
        (self.put_at, self.changed_at) = (None, None);
    }
}
