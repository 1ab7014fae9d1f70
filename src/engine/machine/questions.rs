//! Questions to other nodes that wait for their answers.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::engine::{NodeId, NodeUnanswered};

/// The most questions that may wait at once. Further ones fail at once.
const WAITING_MAX: usize = 4_096;

/// The sender of all nodes' answers to the asker.
pub(in crate::engine) type AnswersSender =
    oneshot::Sender<Result<Vec<(NodeId, Bytes)>, NodeUnanswered>>;

#[derive(Debug)]
struct Question {
    answers: BTreeMap<NodeId, Option<Bytes>>,
    deadline: Instant,
    answered: AnswersSender,
}

/// The questions that wait for answers, by their ids.
#[derive(Debug, Default)]
pub(super) struct Questions(HashMap<u64, Question>);

impl Questions {
    /// Adds a question to these nodes. Returns `false`, and fails the question, if too many wait already or
    /// there are no nodes.
    pub(super) fn ask(
        &mut self,
        id: u64,
        nodes: impl IntoIterator<Item = NodeId>,
        deadline: Instant,
        answered: AnswersSender,
    ) -> bool {
        let answers: BTreeMap<_, _> = nodes.into_iter().map(|node| (node, None)).collect();
        if self.0.len() >= WAITING_MAX || answers.is_empty() {
            let _ = answered.send(Err(NodeUnanswered));
            return false;
        }
        self.0.insert(id, Question { answers, deadline, answered });
        true
    }

    /// Takes an answer. A late or repeated one is dropped.
    pub(super) fn answer(&mut self, id: u64, from: NodeId, body: Bytes) {
        let Some(question) = self.0.get_mut(&id) else { return };
        if let Some(answer) = question.answers.get_mut(&from) {
            answer.get_or_insert(body);
        }
        if question.answers.values().any(Option::is_none) {
            return;
        }
        if let Some(Question { answers, answered, .. }) = self.0.remove(&id) {
            let answers = answers.into_iter().filter_map(|(node, body)| Some((node, body?)));
            let _ = answered.send(Ok(answers.collect()));
        }
    }

    /// Fails a question.
    pub(super) fn fail(&mut self, id: u64) {
        if let Some(question) = self.0.remove(&id) {
            let _ = question.answered.send(Err(NodeUnanswered));
        }
    }

    /// Fails the questions whose deadline has passed, and drops those whose asker is gone.
    pub(super) fn expire(&mut self, now: Instant) {
        let is_over =
            |question: &Question| question.deadline <= now || question.answered.is_closed();
        let over = self.0.iter().filter(|(_, question)| is_over(question));
        for id in over.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.fail(id);
        }
    }
}
