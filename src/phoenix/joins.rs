//! The joins of one conversation, as a separate state machine. Pure: it neither sends nor asks.
//!
//! A session asks for one join at a time, so a topic is in one of these states:
//!
//! ```text
//!          ask               settle, open                leave, give_up, end
//! absent ───────► under way ──────────────► open ─────────────────────────────► absent
//!                     └── settle ──► absent
//! ```
//!
//! A rejoin is under way beside the open join of the same topic, which it replaces when it is settled,
//! whether it is granted or refused.

use std::sync::Arc;

use crate::{
    admission::PlaceInApp,
    app::{AppId, subject::Subject, token::Grant, visitor::ShownSub},
    broker::{
        TopicName,
        subscriber::{Disconnect, Place, ScopeKey},
    },
    session::Effect,
};

use super::{admission::TokenFooting, message::Ref, presence::Profile};

/// A joined topic.
pub(super) struct Join {
    pub(super) topic: TopicName,
    /// The client's `join_ref`, which tells this join from others of the same topic, or else the `ref` of the join
    /// (decision 13.10 of the protocol document).
    pub(super) join_ref: Ref,
    pub(super) footing: TokenFooting,
    /// The session's place among those of the app, shared by its joins.
    pub(super) place_in_app: Arc<PlaceInApp>,
    /// The member that others see, if the topic tracks its members.
    pub(super) profile: Option<Profile>,
}

/// A join that the broker has not answered yet.
pub(super) struct PendingJoin {
    pub(super) join: Join,
    /// The refs of the client's message.
    pub(super) join_ref: Ref,
    pub(super) reference: Ref,
    /// Whether the join must be refused, because the app has ended it since, or because publications to its place
    /// may be missing.
    pub(super) is_disconnected: bool,
}

/// The joins of one conversation.
#[derive(Default)]
pub(super) struct Joins {
    /// A short list: most clients join one topic, and none joins more than a hundred.
    open: Vec<Join>,
    under_way: Option<Box<PendingJoin>>,
}

/// The joins that end when an app changes, or when it disconnects clients.
pub(super) enum EndedJoins {
    /// These joins. The session also holds joins of other apps.
    Joins(Vec<Join>),
    /// The whole session, because it holds joins of no other app. Its client reconnects and is
    /// judged anew.
    Session,
}

// Transitions.
impl Joins {
    /// Notes that the client requests a join.
    pub(super) fn ask(&mut self, join: Join, join_ref: Ref, reference: Ref) {
        let is_disconnected = false;
        self.under_way = Some(Box::new(PendingJoin { join, join_ref, reference, is_disconnected }));
    }

    /// Takes the join under way, because the broker has answered it, and the open join that it replaces.
    pub(super) fn settle(&mut self) -> Option<(Box<PendingJoin>, Option<Join>)> {
        let settled = self.under_way.take()?;
        let replaced = self.give_up(settled.join.topic.as_str());
        Some((settled, replaced))
    }

    /// Adds a settled join that is granted.
    pub(super) fn open(&mut self, join: Join) {
        // One topic is the common case, and an idle session should not reserve space for four.
        if self.open.is_empty() {
            self.open.reserve_exact(1);
        }
        self.open.push(join);
    }

    /// Removes the open join at this index, because the client leaves the topic.
    pub(super) fn leave(&mut self, at: usize) -> Join {
        self.open.swap_remove(at)
    }

    /// Removes the open join of a topic, if there is one, because the client has joined the topic again.
    pub(super) fn give_up(&mut self, topic: &str) -> Option<Join> {
        self.position(topic).map(|at| self.open.swap_remove(at))
    }

    /// Reviews the joins of an app. Returns those for which `keep` is false, which end.
    pub(super) fn review(
        &mut self,
        app: AppId,
        mut keep: impl FnMut(&mut Join) -> bool,
    ) -> Option<EndedJoins> {
        let ended = self.open.extract_if(.., |join| join.footing.app == app && !keep(join));
        let ended = ended.collect();
        self.ended(app, ended)
    }

    /// Ends joins because the app disconnects clients. Returns the joins that end, and their number. The number
    /// includes the join under way, which is refused when it is settled.
    pub(super) fn disconnect(&mut self, disconnect: &Disconnect) -> (Option<EndedJoins>, usize) {
        let mut count = 0;
        if let Some(asked) = self.under_way.as_deref_mut()
            && !asked.is_disconnected
            && asked.join.is_among(disconnect)
        {
            asked.is_disconnected = true;
            count = 1;
        }
        let ended: Vec<_> = self.open.extract_if(.., |join| join.is_among(disconnect)).collect();
        count += ended.len();
        (self.ended(disconnect.app(), ended), count)
    }

    /// Ends the joins of a place to which publications may be missing, and returns them. The join under way is
    /// refused when it is settled.
    pub(super) fn interrupt(&mut self, place: &Place) -> Vec<Join> {
        if let Some(asked) = self.under_way.as_deref_mut() {
            asked.is_disconnected |= asked.join.place() == *place;
        }
        self.open.extract_if(.., |join| join.place() == *place).collect()
    }

    fn ended(&self, app: AppId, ended: Vec<Join>) -> Option<EndedJoins> {
        let mut left = self.open.iter().chain(self.under_way.iter().map(|asked| &asked.join));
        match ended.is_empty() {
            true => None,
            false if left.all(|join| join.footing.app == app) => Some(EndedJoins::Session),
            false => Some(EndedJoins::Joins(ended)),
        }
    }
}

// Questions.
impl Joins {
    /// The number of open joins.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// The index of the open join of a topic.
    pub(super) fn position(&self, topic: &str) -> Option<usize> {
        self.open.iter().position(|join| join.topic.as_str() == topic)
    }

    /// The open join at this index.
    pub(super) fn at(&self, at: usize) -> &Join {
        &self.open[at]
    }

    /// The grant of an open join if it is equal to this one, or else this one. A token may have
    /// kilobytes of patterns; a session keeps them once, however many topics it joins with it.
    pub(super) fn shared(&self, grant: Arc<Grant>) -> Arc<Grant> {
        let mut held = self.open.iter().filter_map(|join| join.footing.credential.as_ref());
        held.find(|held| held.says_the_same_as(&grant)).cloned().unwrap_or(grant)
    }

    /// The session's place among those of an app, if it has one.
    pub(super) fn place_in(&self, app: AppId) -> Option<Arc<PlaceInApp>> {
        let join = self.open.iter().find(|join| join.footing.app == app)?;
        Some(join.place_in_app.clone())
    }

    /// Gives up the subscription of a join that has ended, unless a rejoin under way needs it.
    pub(super) fn unsubscribe(&self, ended: &Join) -> Option<Effect> {
        let is_needed = self.under_way.as_ref().is_some_and(|asked| asked.join.hears_as(ended));
        (!is_needed).then(|| Effect::Unsubscribe(ended.place(), ended.topic.wire().clone()))
    }
}

impl Join {
    /// The user as whom the topic is joined.
    pub(super) fn user(&self) -> Option<Arc<ShownSub>> {
        self.footing.credential.as_ref()?.shown_sub.clone()
    }

    /// Returns whether a message with this `join_ref` is for this join, and not for another one of the same topic.
    pub(super) fn is_meant_by(&self, join_ref: &Ref) -> bool {
        join_ref.is_null() || *join_ref == self.join_ref
    }

    /// The place of the joined topic.
    pub(super) fn place(&self) -> Place {
        let key = ScopeKey { app: self.footing.app, scope: self.topic.scope.clone() };
        Place { key, channel: self.topic.channel.clone() }
    }

    /// Returns whether a disconnect selects this join.
    fn is_among(&self, disconnect: &Disconnect) -> bool {
        match disconnect {
            Disconnect::App(app) => self.footing.app == *app,
            Disconnect::Place(place) => self.place() == *place,
            Disconnect::Subject { app, subject } => {
                self.footing.app == *app && self.minted_for() == Some(subject)
            }
            Disconnect::Members { app, members } => {
                let minted_for = self.minted_for();
                self.footing.app == *app && minted_for.is_some_and(|subject| subject.has(members))
            }
            // Only Pusher's connections are signed in as users.
            Disconnect::User { .. } => false,
        }
    }

    /// The subject of its token, if the token has one.
    fn minted_for(&self) -> Option<&Subject> {
        self.footing.credential.as_ref()?.subject.as_ref()
    }

    /// Returns whether both are one subscription: the same place under the same name.
    fn hears_as(&self, other: &Self) -> bool {
        self.footing.app == other.footing.app && self.topic.wire() == other.topic.wire()
    }
}
