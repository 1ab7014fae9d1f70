//! The requests of other threads, and the letters of other nodes.

use std::time::Instant;

use bytes::Bytes;
use log::warn;
use tokio::sync::oneshot;

use super::{
    AnswersSender, AppendedSender, Call, Leaving, Log, MEMBERS_CALLS_MAX, Machine, Output,
};
use crate::engine::{
    Append, AppendError, EngineState, MESSAGE_BYTES_MAX, NodeId, NodeUnanswered, Partition, Record,
    Snapshot, Unavailable,
    request::{Life, LogIndex, LogRequest, Recipient},
    wire::{Letter, LetterKind},
};

impl Machine {
    /// Appends records to a partition.
    pub(in crate::engine) fn append(
        &mut self,
        partition: Partition,
        append: Append,
        deadline: Instant,
        appended: AppendedSender,
    ) {
        if partition.0 < self.config.partitions {
            self.append_to(LogIndex(partition.0), append, deadline, appended);
        } else {
            let _ = appended.send(Err(AppendError::TooLarge));
        }
    }

    fn append_to(
        &mut self,
        log: LogIndex,
        append: Append,
        deadline: Instant,
        appended: AppendedSender,
    ) {
        if !append.is_bounded() {
            let _ = appended.send(Err(AppendError::TooLarge));
        } else if self.log(log).line.is_none() || self.has_left {
            let _ = appended.send(Err(AppendError::Unavailable));
        } else {
            self.log(log).commits.queue(append, deadline, appended);
            self.filled.insert(log);
        }
    }

    /// Sends a message to all nodes.
    pub(in crate::engine) fn tell(
        &mut self,
        message: Bytes,
        deadline: Instant,
        told: AppendedSender,
    ) {
        if message.len() > MESSAGE_BYTES_MAX {
            let _ = told.send(Err(AppendError::TooLarge));
            return;
        }
        let scope = Bytes::copy_from_slice(&self.lease.node.0.to_be_bytes());
        let append = Append::records(vec![Record { scope, body: message }]);
        self.append_to(self.control(), append, deadline, told);
    }

    /// Reads the members of a place.
    pub(in crate::engine) fn members(
        &mut self,
        partition: Partition,
        place: Bytes,
        deadline: Instant,
        snapshot: oneshot::Sender<Result<Snapshot, Unavailable>>,
    ) {
        let has_begun = |log: &Log| log.reading.at().is_some();
        let log = self.logs.get(usize::from(partition.0)).filter(|log| has_begun(log));
        if partition.0 >= self.config.partitions || log.is_none() {
            let _ = snapshot.send(Err(Unavailable));
            return;
        }
        let log = LogIndex(partition.0);
        if self.log(log).line.is_none() || self.members_calls >= MEMBERS_CALLS_MAX {
            let _ = snapshot.send(Err(Unavailable));
            return;
        }
        self.call(log, Call::Members(Some(snapshot), deadline), LogRequest::Members { place });
    }

    /// Asks all live nodes, or one.
    pub(in crate::engine) fn ask(
        &mut self,
        to: Option<NodeId>,
        question: Bytes,
        deadline: Instant,
        answered: AnswersSender,
        now: Instant,
    ) {
        let is_up = *self.shared.state.borrow() == EngineState::Up;
        let Some(follower) = self.follower.clone().filter(|_| is_up) else {
            let _ = answered.send(Err(NodeUnanswered));
            return;
        };
        let (id, recipient) = (self.rng.next(), to.map_or(Recipient::All, Recipient::Node));
        let nodes = self.lease.live.iter().map(|info| info.node);
        let nodes: Vec<_> = nodes.filter(|node| to.is_none_or(|to| to == *node)).collect();
        let own = self.lease.node;
        let (asks_self, asks_others) =
            (nodes.contains(&own), nodes.iter().any(|node| *node != own));
        if question.len() > MESSAGE_BYTES_MAX {
            let _ = answered.send(Err(NodeUnanswered));
            return;
        }
        if !self.questions.ask(id, recipient, nodes, deadline, answered) {
            return;
        }
        if asks_others {
            let patience_ms = deadline.saturating_duration_since(now).as_millis();
            let letter = Letter {
                kind: LetterKind::Question,
                id,
                from: own,
                patience_ms: u32::try_from(patience_ms).unwrap_or(u32::MAX),
                body: question.clone(),
            };
            self.post(recipient, letter.encode(), Some(id));
        }
        if asks_self {
            let answer = follower.asked(own, question);
            self.outputs.push(Output::Spawn { id, to: own, deadline, answer });
        }
    }

    /// Takes the answer of this node's follower.
    pub(in crate::engine) fn answered(&mut self, id: u64, to: NodeId, body: Bytes) {
        let from = self.lease.node;
        if to == from {
            self.questions.answer(id, from, body);
            return;
        }
        let letter = Letter { kind: LetterKind::Answer, id, from, patience_ms: 0, body };
        self.post(Recipient::Node(to), letter.encode(), None);
    }

    /// Takes a letter of another node.
    pub(super) fn received(&mut self, bytes: Bytes, now: Instant) {
        let Some(letter) = Letter::decode(bytes) else {
            warn!("a question of a node of another version cannot be read, and is not answered");
            return;
        };
        let Letter { kind, id, from, patience_ms, body } = letter;
        match (kind, &self.follower) {
            (LetterKind::Answer, _) => self.questions.answer(id, from, body),
            // A question to all nodes arrives at the asking node, too, which has asked itself already.
            (LetterKind::Question, Some(follower)) if from != self.lease.node => {
                let answer = follower.asked(from, body);
                let deadline = now + std::time::Duration::from_millis(patience_ms.into());
                self.outputs.push(Output::Spawn { id, to: from, deadline, answer });
            }
            (LetterKind::Question, _) => {}
        }
    }

    /// Sets what the node publishes about itself.
    pub(in crate::engine) fn describe(&mut self, info: Bytes, now: Instant) {
        self.lease.describe(info, now);
        self.renew(now);
    }

    /// Continues with a partition that the follower has paused.
    pub(in crate::engine) fn resume(&mut self, partition: Partition) {
        let log = LogIndex(partition.0);
        if log < self.control() && self.log(log).reading.resume() {
            self.read(log);
        }
    }

    /// Gives up the lease.
    pub(in crate::engine) fn leave(
        &mut self,
        deadline: Instant,
        done: oneshot::Sender<()>,
        now: Instant,
    ) {
        if self.has_left || self.leaving.is_some() {
            return;
        }
        let life = self.lease.life();
        self.leaving = Some(Leaving { life, done, deadline });
        self.has_left = true;
        for log in &mut self.logs {
            log.commits.refuse_queue();
        }
        let condemn = LogRequest::Condemn { life, is_forced: true };
        if self.call(self.control(), Call::Condemn(life), condemn).is_none() {
            self.left(life);
        }
        self.judge_state(now);
    }

    /// Completes a call of [`Machine::leave`] that gave up the lease of this incarnation, if there is one.
    pub(super) fn left(&mut self, life: Life) {
        if let Some(Leaving { done, .. }) = self.leaving.take_if(|leaving| leaving.life == life) {
            let _ = done.send(());
        }
    }
}
