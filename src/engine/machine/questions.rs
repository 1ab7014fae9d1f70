//! Questions to other nodes that wait for their answers.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::engine::{NodeId, NodeInfo, NodeUnanswered, request::Recipient};

/// The most questions to all nodes that may wait at once. Further ones fail at once.
const TO_ALL_MAX: usize = 4_096;

/// The most questions to single nodes that may wait at once. Nearly all of them are fetches of long-poll clients. A
/// fetch may wait for a whole window, so fetches take no room from the questions to all nodes. Each fetch has an HTTP
/// connection to this node, and the limit on connections is reached before this one.
const TO_ONE_MAX: usize = 1 << 20;

/// The sender of all nodes' answers to the asker.
pub(in crate::engine) type AnswersSender =
    oneshot::Sender<Result<Vec<(NodeId, Bytes)>, NodeUnanswered>>;

#[derive(Debug)]
struct Question {
    to: Recipient,
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

/// The questions that wait for answers.
#[derive(Debug, Default)]
pub(super) struct Questions {
    /// By their ids.
    waiting: HashMap<u64, Question>,
    /// The number of those to all nodes.
    to_all: usize,
}

impl Questions {
    /// Adds a question to these nodes, which are all nodes or one. Returns `false`, and fails the question, if too
    /// many wait already or there are no nodes.
    pub(super) fn ask(
        &mut self,
        id: u64,
        to: Recipient,
        nodes: impl IntoIterator<Item = NodeId>,
        deadline: Instant,
        answered: AnswersSender,
    ) -> bool {
        let answers: BTreeMap<_, _> = nodes.into_iter().map(|node| (node, None)).collect();
        let has_room = match to {
            Recipient::All => self.to_all < TO_ALL_MAX,
            Recipient::Node(_) => self.waiting.len() - self.to_all < TO_ONE_MAX,
        };
        if !has_room || answers.is_empty() {
            let _ = answered.send(Err(NodeUnanswered));
            return false;
        }
        self.to_all += usize::from(to == Recipient::All);
        self.waiting.insert(id, Question { to, answers, deadline, answered });
        true
    }

    fn take(&mut self, id: u64) -> Option<Question> {
        let question = self.waiting.remove(&id)?;
        self.to_all -= usize::from(question.to == Recipient::All);
        Some(question)
    }

    /// Takes an answer. A late or repeated one is dropped.
    pub(super) fn answer(&mut self, id: u64, from: NodeId, body: Bytes) {
        let Some(question) = self.waiting.get_mut(&id) else { return };
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
        for question in self.waiting.values_mut() {
            question.answers.retain(|node, answer| answer.is_some() || is_live(node));
        }
        let settled = self.waiting.iter().filter(|(_, question)| question.is_answered());
        for id in settled.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.settle(id);
        }
    }

    fn settle(&mut self, id: u64) {
        let Some(Question { answers, answered, .. }) = self.take(id) else { return };
        let answers: Vec<_> =
            answers.into_iter().filter_map(|(node, body)| Some((node, body?))).collect();
        let _ = answered.send(if answers.is_empty() { Err(NodeUnanswered) } else { Ok(answers) });
    }

    /// Fails a question.
    pub(super) fn fail(&mut self, id: u64) {
        if let Some(question) = self.take(id) {
            let _ = question.answered.send(Err(NodeUnanswered));
        }
    }

    /// Fails the questions whose deadline has passed, and drops those whose asker is gone.
    pub(super) fn expire(&mut self, now: Instant) {
        let is_over =
            |question: &Question| question.deadline <= now || question.answered.is_closed();
        let over = self.waiting.iter().filter(|(_, question)| is_over(question));
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
        assert!(questions.ask(7, Recipient::All, nodes.map(NodeId), deadline, answered));
        answer
    }

    #[test]
    fn questions_that_wait_for_one_node_leave_room_for_those_to_all() {
        let deadline = Instant::now() + Duration::from_secs(3_600);
        let (mut questions, mut ids) = (Questions::default(), 0..);
        let mut ask = |questions: &mut Questions, to| {
            let (id, (answered, answer)) = (ids.next().expect("an id"), oneshot::channel());
            let is_asked = questions.ask(id, to, [NodeId(1)], deadline, answered);
            (is_asked.then_some(id), answer)
        };
        let to_one = Recipient::Node(NodeId(1));
        let waiting: Vec<_> = (0..=TO_ALL_MAX).map(|_| ask(&mut questions, to_one)).collect();
        assert!(waiting.iter().all(|(id, _)| id.is_some()));
        let to_all: Vec<_> = (0..TO_ALL_MAX).map(|_| ask(&mut questions, Recipient::All)).collect();
        assert!(to_all.iter().all(|(id, _)| id.is_some()));
        let (refused, mut answer) = ask(&mut questions, Recipient::All);
        assert_eq!((refused, answer.try_recv()), (None, Ok(Err(NodeUnanswered))));
        assert!(ask(&mut questions, to_one).0.is_some());
        // A question that is answered or fails makes room for another one, and so does one whose asker is gone.
        questions.answer(to_all[0].0.expect("asked"), NodeId(1), Bytes::new());
        questions.fail(to_all[1].0.expect("asked"));
        let more = [(); 2].map(|()| ask(&mut questions, Recipient::All));
        assert!(more.iter().all(|(id, _)| id.is_some()));
        drop((to_all, more));
        questions.expire(Instant::now());
        assert_eq!(questions.to_all, 0);
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
