//! Peers: the questions and messages between the nodes of a cluster.
//!
//! A message is a version, the length of a name, the name and a body. Each module that asks other nodes
//! registers a function that answers its questions, under a name of its own. A node that does not know a
//! name says so, and the asker's question fails, because a sum without that node would be too low.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::{self, BoxFuture, FutureExt};
use log::warn;
use parking_lot::RwLock;

use crate::{
    broker::{
        node::NodeId,
        topics::{Topics, Unanswered},
    },
    engine::{EngineState, MESSAGE_BYTES_MAX},
};

use super::Cluster;

/// The version that this node writes, and the only one so far.
const VERSION: u8 = 1;

/// The first byte of an answer. Any other first byte means that the node cannot answer.
const ANSWERED: u8 = 1;

/// Answers a question for this node; `None` if this node cannot answer it.
type Answer = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Option<Bytes>> + Send + Sync>;

/// Handles a message of a node. It is called without a body if messages may have been missed.
type Hear = Arc<dyn Fn(Option<Bytes>) + Send + Sync>;

/// The functions that answer the questions and handle the messages of nodes, by the names of these.
#[derive(Default)]
pub(super) struct Peers {
    answers: RwLock<HashMap<&'static str, Answer>>,
    hears: RwLock<HashMap<&'static str, Hear>>,
}

fn written(name: &str, body: &[u8]) -> Bytes {
    debug_assert!(name.len() <= usize::from(u8::MAX), "names are short");
    let mut message = BytesMut::with_capacity(2 + name.len() + body.len());
    message.put_slice(&[VERSION, name.len() as u8]);
    message.put_slice(name.as_bytes());
    message.put_slice(body);
    message.freeze()
}

/// The name and the body of a message.
fn read(message: &Bytes) -> Option<(&str, Bytes)> {
    let (&[version, length], rest) = message.split_first_chunk::<2>()?;
    let (name, _) = rest.split_at_checked(usize::from(length))?;
    (version == VERSION).then_some(())?;
    Some((str::from_utf8(name).ok()?, message.slice(2 + name.len()..)))
}

fn answer_of(mut answered: Bytes) -> Result<Bytes, Unanswered> {
    match answered.first() {
        Some(&ANSWERED) => Ok(answered.split_off(1)),
        _ => Err(Unanswered),
    }
}

impl Peers {
    /// Answers a question of a node. An answer that is too large to be sent is replaced by one that says that this
    /// node cannot answer, so that the asker need not wait.
    pub(super) fn asked(&self, question: &Bytes) -> BoxFuture<'static, Bytes> {
        let answers = self.answers.read();
        let found =
            read(question).and_then(|(name, body)| Some((answers.get(name)?.clone(), body)));
        let Some((answer, body)) = found else { return future::ready(Bytes::new()).boxed() };
        async move {
            match answer(body).await {
                Some(answer) if answer.len() < MESSAGE_BYTES_MAX => {
                    [&[ANSWERED], &answer[..]].concat().into()
                }
                Some(answer) => {
                    warn!("an answer of {} bytes is too large for another node", answer.len());
                    Bytes::new()
                }
                None => Bytes::new(),
            }
        }
        .boxed()
    }

    /// Takes a message of a node.
    pub(super) fn told(&self, message: &Bytes) {
        let hears = self.hears.read();
        if let Some((name, body)) = read(message)
            && let Some(hear) = hears.get(name)
        {
            hear(Some(body));
        }
    }

    /// Takes notice that messages may have been missed.
    pub(super) fn told_lost(&self) {
        let hears = self.hears.read();
        hears.values().for_each(|hear| hear(None));
    }
}

impl Topics {
    /// The number of this node.
    pub fn node(&self) -> NodeId {
        self.cluster().map_or(NodeId::ONLY, |cluster| cluster.engine.node())
    }

    /// Returns whether this server is a node of a cluster.
    pub fn is_clustered(&self) -> bool {
        self.cluster().is_some()
    }

    /// Registers the function that answers the questions of any node under this name. `None` makes the
    /// question fail. A server without a cluster is never asked.
    pub fn on_question<A>(
        &self,
        name: &'static str,
        answer: impl Fn(Bytes) -> A + Send + Sync + 'static,
    ) where
        A: Future<Output = Option<Bytes>> + Send + 'static,
    {
        if let Some(Cluster { peers, .. }) = self.cluster() {
            let mut answers = peers.answers.write();
            answers.insert(name, Arc::new(move |body| answer(body).boxed()));
        }
    }

    /// Registers the function that handles the messages of any node under this name. It is called without a
    /// body if messages may have been missed.
    pub fn on_message(
        &self,
        name: &'static str,
        hear: impl Fn(Option<Bytes>) + Send + Sync + 'static,
    ) {
        if let Some(Cluster { peers, .. }) = self.cluster() {
            let mut hears = peers.hears.write();
            hears.insert(name, Arc::new(hear));
        }
    }

    /// Asks all live nodes, including this one, under a name. The answer is empty on a server without a cluster.
    ///
    /// # Errors
    /// [`Unanswered`] if any node has no answer in time.
    pub async fn ask_nodes(
        &self,
        name: &str,
        body: &[u8],
        wait_max: Duration,
    ) -> Result<Vec<(NodeId, Bytes)>, Unanswered> {
        self.ask(None, name, body, wait_max).await
    }

    /// Asks one node under a name.
    ///
    /// # Errors
    /// [`Unanswered`] if it has no answer in time, or is not alive.
    pub async fn ask_node(
        &self,
        node: NodeId,
        name: &str,
        body: &[u8],
        wait_max: Duration,
    ) -> Result<Bytes, Unanswered> {
        let answers = self.ask(Some(node), name, body, wait_max).await?;
        answers.into_iter().next().map(|(_, answer)| answer).ok_or(Unanswered)
    }

    /// Asks all live nodes, or one.
    async fn ask(
        &self,
        to: Option<NodeId>,
        name: &str,
        body: &[u8],
        wait_max: Duration,
    ) -> Result<Vec<(NodeId, Bytes)>, Unanswered> {
        let Some(engine) = self.engine() else { return Ok(Vec::new()) };
        let answers = engine.ask(to, written(name, body), Instant::now() + wait_max).await;
        let answers = answers.map_err(|_| Unanswered)?;
        answers.into_iter().map(|(node, answer)| Ok((node, answer_of(answer)?))).collect()
    }

    /// Returns whether a node is alive, as far as this one knows.
    pub fn is_live(&self, node: NodeId) -> bool {
        self.engine().is_some_and(|engine| engine.nodes().iter().any(|info| info.node == node))
    }

    /// Waits until the engine of the cluster has such a state. Never resolves on a server without a cluster.
    pub async fn until_engine(&self, is_so: impl Fn(EngineState) -> bool) {
        let Some(engine) = self.engine() else { return future::pending().await };
        // The engine is kept by the broker, so it does not end meanwhile.
        let _ = engine.state().wait_for(|state| is_so(*state)).await;
    }

    /// Sends a message under a name to all live nodes, including this one. A node that is disconnected for a
    /// short time receives it later. A server without a cluster sends nothing.
    ///
    /// # Errors
    /// [`Unanswered`] if nodes may not receive it.
    pub async fn tell_nodes(&self, name: &str, body: &[u8]) -> Result<(), Unanswered> {
        let Some(cluster) = self.cluster() else { return Ok(()) };
        let deadline = Instant::now() + self.wait_max();
        cluster.engine.tell(written(name, body), deadline).await.map_err(|_| Unanswered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written_and_another_version_is_not() {
        let message = written("name", b"body");
        assert_eq!(message, &b"\x01\x04namebody"[..], "in every version of Herald");
        assert_eq!(read(&message), Some(("name", Bytes::from_static(b"body"))));
        for broken in [&b""[..], b"\x01", b"\x01\x05name", b"\x02\x04namebody", b"\x01\x01\xff"] {
            assert_eq!(read(&Bytes::copy_from_slice(broken)), None, "{broken:?}");
        }
    }
}
