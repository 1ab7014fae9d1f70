//! Questions to other nodes that wait for their answers.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::engine::{NodeId, NodeInfo, NodeUnanswered};

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

impl Question {
    /// Whether no node has yet to answer.
    fn is_answered(&self) -> bool {
        self.answers.values().all(Option::is_some)
    }
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
        if question.is_answered() {
            self.settle(id);
        }
    }

    /// Stops waiting for nodes that have left. Their sessions are gone, so the answers of the others are all that
    /// there are. A question fails if it was only for nodes that have left.
    pub(super) fn keep_to(&mut self, nodes: &[NodeInfo]) {
        let is_live = |node: &NodeId| nodes.iter().any(|info| info.node == *node);
        for question in self.0.values_mut() {
            question.answers.retain(|node, answer| answer.is_some() || is_live(node));
        }
        let settled = self.0.iter().filter(|(_, question)| question.is_answered());
        for id in settled.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.settle(id);
        }
    }

    fn settle(&mut self, id: u64) {
        let Some(Question { answers, answered, .. }) = self.0.remove(&id) else { return };
        let answers: Vec<_> =
            answers.into_iter().filter_map(|(node, body)| Some((node, body?))).collect();
        let _ = answered.send(if answers.is_empty() { Err(NodeUnanswered) } else { Ok(answers) });
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::Incarnation;

    /// Asks these nodes.
    fn ask(
        questions: &mut Questions,
        nodes: [u16; 2],
    ) -> oneshot::Receiver<Result<Vec<(NodeId, Bytes)>, NodeUnanswered>> {
        let (answered, answer) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(3_600);
        assert!(questions.ask(7, nodes.map(NodeId), deadline, answered));
        answer
    }

    #[test]
    fn a_node_that_leaves_is_not_waited_for() {
        let body = Bytes::from_static(b"x");
        let info = |node| NodeInfo {
            node: NodeId(node),
            incarnation: Incarnation(1),
            info: Bytes::new(),
            since_ms: 0,
            seen_ms: 0,
        };
        let mut questions = Questions::default();
        let mut answer = ask(&mut questions, [1, 2]);
        questions.answer(7, NodeId(1), body.clone());
        questions.keep_to(&[info(1), info(2)]);
        assert!(answer.try_recv().is_err(), "the other one is still there");
        questions.keep_to(&[info(1), info(3)]);
        assert_eq!(answer.try_recv(), Ok(Ok(vec![(NodeId(1), body.clone())])));

        let mut answer = ask(&mut questions, [1, 2]);
        questions.keep_to(&[info(3)]);
        assert_eq!(answer.try_recv(), Ok(Err(NodeUnanswered)));

        // An answer that has come is not lost with its node.
        let mut answer = ask(&mut questions, [1, 2]);
        questions.answer(7, NodeId(2), body.clone());
        questions.keep_to(&[info(1)]);
        questions.answer(7, NodeId(1), body.clone());
        assert_eq!(answer.try_recv(), Ok(Ok(vec![(NodeId(1), body.clone()), (NodeId(2), body)])));
    }
}
