//! Long-poll requests that arrive at a node other than that of their session.
//!
//! The id of the session contains its node, and the request is passed to that node as a question. Frames
//! must not be lost with a client that disconnects before its fetch is answered: the node at which the fetch
//! arrived then recalls it. The session's node abandons the fetch, or puts the frames back with which it
//! answered, unless a later fetch of the client was answered meanwhile.
//!
//! A session outlives an interruption of the engine. A fetch whose answer may be lost is recalled before its client
//! is told to fetch again. Only if the recall is not confirmed, the client is told that its session is gone: the
//! frames may be lost, and the client must join again to learn what it has missed.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use bytestring::ByteString;
use log::warn;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use crate::{
    broker::{Topics, node::NodeId, subscriber::Frame},
    engine::{EngineState, MESSAGE_BYTES_MAX},
};

use super::{
    LongPolls, Polled, Posted,
    actor::{EndBroken, PutBack},
};
use crate::session::Received;

/// The name of these questions.
const QUESTION: &str = "long_poll";

/// The time that another node may take to answer, in addition to a window.
const SLACK: Duration = Duration::from_secs(2);

/// The time after which a question that was not answered is repeated, or its client asks again.
const PAUSE: Duration = Duration::from_secs(1);

/// The most bytes of frames in one answer of a node. The rest waits for the next fetch. A single frame may have more.
const FRAMES_BYTES_MAX: usize = 3 << 20;

/// The most bytes of a frame that another node can fetch: an answer has a few bytes of its own.
const FRAME_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 64;

/// The bytes before each frame and message on the wire.
const ITEM_HEAD_BYTES: usize = 5;

/// The version of the questions.
const VERSION: u8 = 1;

const FETCH: u8 = 0;
const POST: u8 = 1;
const RECALL: u8 = 2;

const GONE: u8 = 0;
const DONE: u8 = 1;
const LATE: u8 = 2;

const TEXT: u8 = 0;
const BINARY: u8 = 1;

/// A new id for a session on a node. In a cluster, the first two bytes are the number of the node.
pub(super) fn number_on(node: NodeId) -> Uuid {
    let mut bytes = Uuid::new_v4().into_bytes();
    if node != NodeId::ONLY {
        bytes[..2].copy_from_slice(&node.0.to_be_bytes());
    }
    Uuid::from_bytes(bytes)
}

fn node_of(id: Uuid) -> NodeId {
    let [high, low, ..] = id.into_bytes();
    NodeId(u16::from_be_bytes([high, low]))
}

/// A fetch that was passed to another node. Unless its answer has reached the client, it is recalled.
pub(super) struct PassedOn {
    topics: Topics,
    node: NodeId,
    id: Uuid,
    number: Uuid,
    is_answered: bool,
}

impl Drop for PassedOn {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        // If the node does not answer, it has failed, or its session will end because it is not fetched.
        actix_rt::spawn(self.recall(Instant::now() + self.topics.wait_max()));
    }
}

impl PassedOn {
    /// Fetches at the session's node.
    async fn fetch(&self, window: Duration) -> Polled {
        let (begun, none) = (Instant::now(), Polled::Frames(Vec::new()));
        if self.topics.engine_state() != Some(EngineState::Up) {
            // The node is not asked, so nothing can be lost.
            let _ = timeout(window, self.topics.until_engine(is_up)).await;
            return none;
        }
        let question = written(FETCH, self.id, self.number.as_bytes());
        let answer = tokio::select! {
            answer = self.topics.ask_node(self.node, QUESTION, &question, window + SLACK) => answer.ok(),
            // The answer may be lost on its way.
            () = self.topics.until_engine(|state| !is_up(state)) => None,
        };
        if let Some(answer) = answer {
            return read_frames(answer).map_or(Polled::Gone, Polled::Frames);
        }
        if !self.recall(begun + window + 2 * SLACK).await {
            return Polled::Gone;
        }
        // The client asks again as soon as it is answered.
        sleep(PAUSE).await;
        none
    }

    /// Recalls the fetch, again and again until the node confirms it. Returns `false` if it has not done so in time,
    /// or is gone.
    fn recall(&self, until: Instant) -> impl Future<Output = bool> + use<> {
        let (topics, node) = (self.topics.clone(), self.node);
        let question = written(RECALL, self.id, self.number.as_bytes());
        async move {
            let confirmed = async {
                loop {
                    topics.until_engine(is_up).await;
                    if topics.ask_node(node, QUESTION, &question, PAUSE).await.is_ok() {
                        return true;
                    }
                    if !topics.is_live(node) {
                        return false;
                    }
                    // The question may have failed at once.
                    sleep(PAUSE / 4).await;
                }
            };
            timeout_at(until, confirmed).await.unwrap_or(false)
        }
    }

    /// Notes that the answer is sent to the client, so that the fetch is not recalled.
    pub(super) fn answered(mut self) {
        self.is_answered = true;
    }
}

fn is_up(state: EngineState) -> bool {
    state == EngineState::Up
}

impl LongPolls {
    /// Begins to pass requests on to other nodes, and to answer theirs. Does nothing without a cluster.
    pub fn share(&mut self, topics: &Topics) {
        if !topics.is_clustered() {
            return;
        }
        self.topics = Some(topics.clone());
        // This copy does not hold the broker, because the broker keeps this function: the two would keep each
        // other alive.
        let polls = Self { topics: None, ..self.clone() };
        topics.on_question(QUESTION, move |question| {
            let polls = polls.clone();
            async move { polls.answer(question).await }
        });
    }

    /// The broker and the node of a session, if it belongs to another node.
    fn elsewhere(&self, id: Uuid) -> Option<(&Topics, NodeId)> {
        let (topics, node) = (self.topics.as_ref()?, node_of(id));
        (node != topics.node()).then_some((topics, node))
    }

    /// Fetches from a session of another node; `None` if it is one of this node.
    pub(super) async fn poll_elsewhere(&self, id: Uuid) -> Option<(Polled, PassedOn)> {
        let (topics, node) = self.elsewhere(id)?;
        let (topics, number) = (topics.clone(), Uuid::new_v4());
        let passed_on = PassedOn { topics, node, id, number, is_answered: false };
        Some((passed_on.fetch(self.times.window).await, passed_on))
    }

    /// Posts to a session of another node; `None` if it is one of this node.
    pub(super) async fn post_elsewhere(&self, id: Uuid, messages: &[Received]) -> Option<Posted> {
        let (topics, node) = self.elsewhere(id)?;
        let mut body = BytesMut::new();
        for message in messages {
            match message {
                Received::Text(text) => put_item(&mut body, TEXT, text.as_bytes()),
                Received::Binary(bytes) => put_item(&mut body, BINARY, bytes),
            }
        }
        let question = written(POST, id, &body);
        let window = self.times.window;
        if timeout(window, topics.until_engine(is_up)).await.is_err() {
            return Some(Posted::Late);
        }
        let answer = topics.ask_node(node, QUESTION, &question, window + SLACK).await;
        Some(match answer.as_deref().map(<[u8]>::first) {
            Ok(Some(&DONE)) => Posted::Done,
            Ok(Some(&LATE)) => Posted::Late,
            // The question is not repeated, because the session may have handled the messages.
            Err(_) if topics.is_live(node) => Posted::Late,
            _ => Posted::Gone,
        })
    }

    /// Answers a request that another node has passed on.
    async fn answer(&self, mut question: Bytes) -> Option<Bytes> {
        if question.len() < 18 || question.get_u8() != VERSION {
            return None;
        }
        let kind = question.get_u8();
        let id = Uuid::from_slice(&question.split_to(16)).ok()?;
        match kind {
            FETCH => Some(self.fetched_by(id, Uuid::from_slice(&question).ok()?).await),
            POST => {
                let posted = self.post(id, read_messages(question)?).await;
                Some(Bytes::from_static(match posted {
                    Posted::Done => &[DONE],
                    Posted::Late => &[LATE],
                    Posted::Gone => &[GONE],
                }))
            }
            RECALL => {
                self.recalled(id, Uuid::from_slice(&question).ok()?);
                Some(Bytes::new())
            }
            _ => None,
        }
    }

    /// Fetches for another node. The frames are kept until the client's next fetch is answered.
    pub(super) async fn fetched_by(&self, id: Uuid, number: Uuid) -> Bytes {
        let mut fetch = self.passed.lock().begin(id, number);
        let polled = fetch.unless_given_up(Box::pin(self.poll_here(id))).await;
        let mut frames = match polled {
            Some(Polled::Frames(frames)) => frames,
            Some(Polled::Gone) => {
                self.passed.lock().forget_fetches(id);
                return Bytes::from_static(&[GONE]);
            }
            None => Vec::new(),
        };
        if let Some(frame) = frames.first().filter(|frame| frame.size_bytes() > FRAME_BYTES_MAX) {
            warn!(
                "a long-poll session ends, because another node cannot fetch a frame of {} bytes: it is too large",
                frame.size_bytes()
            );
            self.find(id).into_iter().for_each(|session| session.do_send(EndBroken));
            return Bytes::from_static(&[GONE]);
        }
        let mut bytes = 0;
        let fits = frames.iter().take_while(|frame| {
            bytes += ITEM_HEAD_BYTES + frame.size_bytes();
            bytes <= FRAMES_BYTES_MAX
        });
        let fits = fits.count().max(1).min(frames.len());
        let rest = frames.split_off(fits);
        let answer = write_frames(&frames);
        let mut passed = self.passed.lock();
        let (back, answer) = match passed.end(id, &fetch, frames) {
            Ok(()) => (rest, answer),
            Err(mut frames) => {
                frames.extend(rest);
                (frames, Bytes::from_static(&[DONE]))
            }
        };
        self.put_back(id, back);
        answer
    }

    /// Recalls a fetch, because its client has disconnected before the answer reached it.
    pub(super) fn recalled(&self, id: Uuid, number: Uuid) {
        let mut passed = self.passed.lock();
        // A session that ends is forgotten after it has left the list, so nothing is kept for it.
        if self.find(id).is_none() {
            return;
        }
        let frames = passed.recall(id, number);
        self.put_back(id, frames);
    }

    fn put_back(&self, id: Uuid, frames: Vec<Frame>) {
        if let Some(session) = self.find(id).filter(|_| !frames.is_empty()) {
            session.do_send(PutBack(frames));
        }
    }
}

fn written(kind: u8, id: Uuid, body: &[u8]) -> Vec<u8> {
    [&[VERSION, kind], &id.as_bytes()[..], body].concat()
}

fn put_item(to: &mut BytesMut, kind: u8, bytes: &[u8]) {
    to.put_u8(kind);
    to.put_u32_le(bytes.len() as u32);
    to.put_slice(bytes);
}

/// Takes the next item.
fn take_item(from: &mut Bytes) -> Option<(u8, Bytes)> {
    if from.len() < ITEM_HEAD_BYTES {
        return None;
    }
    let (kind, length) = (from.get_u8(), usize::try_from(from.get_u32_le()).ok()?);
    (length <= from.len()).then(|| (kind, from.split_to(length)))
}

fn write_frames(frames: &[Frame]) -> Bytes {
    let mut answer = BytesMut::new();
    answer.put_u8(DONE);
    for frame in frames {
        match frame.clone().into_whole() {
            Frame::Text(text) => put_item(&mut answer, TEXT, text.as_bytes()),
            Frame::Binary(bytes) => put_item(&mut answer, BINARY, &bytes),
            Frame::Split(_) => {}
        }
    }
    answer.freeze()
}

/// The frames of an answer; `None` if the session is gone.
pub(super) fn read_frames(mut answer: Bytes) -> Option<Vec<Frame>> {
    (!answer.is_empty() && answer.get_u8() == DONE).then_some(())?;
    let mut frames = Vec::new();
    while !answer.is_empty() {
        frames.push(match take_item(&mut answer)? {
            (TEXT, text) => Frame::Text(ByteString::try_from(text).ok()?),
            (_, bytes) => Frame::Binary(bytes),
        });
    }
    Some(frames)
}

fn read_messages(mut body: Bytes) -> Option<Vec<Received>> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        messages.push(match take_item(&mut body)? {
            (TEXT, text) => Received::Text(ByteString::try_from(text).ok()?),
            (_, bytes) => Received::Binary(bytes),
        });
    }
    Some(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_names_its_node_where_there_may_be_several() {
        for node in [NodeId(1), NodeId(258), NodeId(u16::MAX)] {
            let numbers = [number_on(node), number_on(node)];
            assert_eq!(numbers.map(node_of), [node; 2]);
            assert_ne!(numbers[0], numbers[1]);
        }
    }

    #[test]
    fn frames_and_messages_are_read_as_they_were_written() {
        let frames = [Frame::Text("caf\u{e9}".into()), Frame::Binary(Bytes::from_static(b"\xff"))];
        assert_eq!(read_frames(write_frames(&frames)), Some(frames.into()));
        assert_eq!(read_frames(write_frames(&[])), Some(Vec::new()));
        for broken in [&b""[..], b"\0", b"\x01\0", b"\x01\0\x02\0\0\0a", b"\x01\0\x01\0\0\0\xff"] {
            assert_eq!(read_frames(Bytes::copy_from_slice(broken)), None, "{broken:?}");
        }
        let mut body = BytesMut::new();
        put_item(&mut body, TEXT, b"a");
        put_item(&mut body, BINARY, b"\xff");
        let expected =
            vec![Received::Text("a".into()), Received::Binary(Bytes::from_static(b"\xff"))];
        assert_eq!(read_messages(body.freeze()), Some(expected));
    }
}
