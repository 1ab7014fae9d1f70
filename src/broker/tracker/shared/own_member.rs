//! A member of this node: the state that it should have in the log, and what the log is known to have.

use actix::prelude::*;

use crate::broker::{
    cluster::MemberValue,
    fanout::{Entered, Fanout, WorkerId},
    subscriber::{Format, Place, SessionId, SubscribeError, SubscriptionId},
};

/// A member of this node.
pub(super) struct OwnMember {
    pub(super) worker: WorkerId,
    /// The state that it should have in the log; `None` if it should not be there.
    pub(super) wanted: Option<MemberValue>,
    /// Whether the log may have another state.
    pub(super) is_dirty: bool,
    /// Whether a change of the member is being appended. At most one is, so the changes keep their order.
    pub(super) is_under_way: bool,
    /// Whether the log may have the member: its state was written, and the log has not acknowledged a removal
    /// since. Only such a member has to be removed.
    pub(super) may_be_logged: bool,
    /// Whether the log has had the member in this incarnation.
    pub(super) is_put: bool,
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
    pub(super) fn new(worker: WorkerId) -> Self {
        Self {
            worker,
            wanted: None,
            is_dirty: false,
            is_under_way: false,
            may_be_logged: false,
            is_put: false,
            entering: None,
        }
    }

    /// Refuses the pending join, if there is one.
    pub(super) fn refuse(&mut self, refused: SubscribeError) {
        if let Some(entering) = self.entering.take() {
            entering.refuse(refused);
        }
    }

    /// Notes that the log has taken a state of the member, or its removal.
    pub(super) fn taken(&mut self, is_put: bool) {
        self.may_be_logged = is_put;
        // A newer join of the session may have replaced the one that was written.
        let is_replaced = self.is_dirty && self.entering.is_some();
        self.is_put = is_put && !is_replaced;
    }
}
