//! The sessions that have joined topics of an app. Each fan-out indexes the sessions of its thread
//! by app, so that the cost of a question depends on the size of the answer and not on the number
//! of sessions.
//!
//! If a thread does not answer, the whole question fails, because the list would be too short.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    num::NonZeroI32,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use actix::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    app::{AppId, visitor::ShownSub},
    metrics::labels::SessionKind,
};

use super::{
    cluster::ClusterQuestion,
    disconnection::Disconnection,
    fanout::Fanout,
    fanouts::Asked,
    outbox::{Load, News},
    pages::{self, Page},
    subscriber::{Disconnect, Place, SessionId},
    topics::{Topics, Unanswered},
};

/// The facts about a session apart from the topics that it joined. They take 28 bytes of each session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    address: [u8; 16],
    since_s: u32,
    #[serde(with = "kind", default)]
    kind: Option<SessionKind>,
    /// The id of an app, which is never 0.
    #[serde(default)]
    app: Option<NonZeroI32>,
}

/// The encoding of a session's kind between nodes: its name, which a node of another version may not know.
mod kind {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::metrics::{closed::Closed, labels::SessionKind};

    fn name(kind: &SessionKind) -> String {
        format!("{:?} {:?}", kind.transport, kind.version)
    }

    pub(super) fn serialize<S: Serializer>(
        kind: &Option<SessionKind>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        kind.as_ref().map(name).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<SessionKind>, D::Error> {
        let told = Option::<String>::deserialize(deserializer)?;
        let is_told = |kind: &&SessionKind| told.as_ref().is_some_and(|told| *told == name(kind));
        Ok(SessionKind::ALL.iter().find(is_told).copied())
    }
}

impl About {
    /// The facts about a session of this kind and address that begins now.
    pub fn new(kind: SessionKind, address: IpAddr) -> Self {
        let address = match address {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let since_s = u32::try_from(now_s).unwrap_or(u32::MAX);
        Self { address: address.octets(), since_s, kind: Some(kind), app: None }
    }

    /// Adds the app to which the whole connection belongs, if there is one.
    pub fn of_app(self, app: Option<AppId>) -> Self {
        let app = app.and_then(|app| NonZeroI32::new(app.0));
        Self { app, ..self }
    }

    /// The app that the whole connection belongs to, if it belongs to one.
    pub fn app(&self) -> Option<AppId> {
        self.app.map(|app| AppId(app.get()))
    }

    /// The client's address.
    pub fn address(&self) -> IpAddr {
        IpAddr::from(self.address).to_canonical()
    }

    /// The time at which the session began, in Unix seconds.
    pub fn since_s(&self) -> u32 {
        self.since_s
    }

    /// The protocol and the transport; `None` if another node named a kind that this node does not know.
    pub fn kind(&self) -> Option<SessionKind> {
        self.kind
    }
}

#[cfg(test)]
impl Default for About {
    fn default() -> Self {
        let address = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();
        Self { address, since_s: 0, kind: None, app: None }
    }
}

/// A session that has joined topics of an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connected {
    /// The session.
    pub session: SessionId,
    /// The client's address, the time of its arrival and its protocol.
    pub about: About,
    /// The topics of this app that it has joined.
    pub places: Vec<Place>,
    /// The users as whom it has joined them, in alphabetical order.
    #[serde(default)]
    pub subs: Vec<ShownSub>,
    /// The frames and bytes that wait for it.
    pub queue: Load,
}

/// Some of an app's sessions, oldest first, and the number of all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionList {
    /// The sessions.
    pub sessions: Vec<Connected>,
    /// The number of all sessions of the app.
    pub total: usize,
}

/// Asks a fan-out or a node for its sessions of an app: the first ones after a session.
#[derive(Debug, Clone, Copy, Message, Serialize, Deserialize)]
#[rtype(result = "ConnectionList")]
pub(super) struct ListConnections {
    app: AppId,
    after: Option<SessionId>,
    sessions_max: usize,
}

/// Ends the joins of an app on one session, which ends the session if it has no others. The answer is
/// whether the session is on this thread, or on this node.
#[derive(Debug, Clone, Copy, Message, Serialize, Deserialize)]
#[rtype(result = "bool")]
pub(super) struct EndConnection {
    app: AppId,
    session: SessionId,
}

/// Ends the joins of an app on these sessions, as far as they are on this thread.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
struct EndConnections {
    app: AppId,
    sessions: Arc<[SessionId]>,
}

impl Handler<ListConnections> for Fanout {
    type Result = MessageResult<ListConnections>;

    fn handle(&mut self, asked: ListConnections, _: &mut Self::Context) -> Self::Result {
        let ListConnections { app, after, sessions_max } = asked;
        let sessions = self.connected(app, after).take(sessions_max).collect();
        MessageResult(ConnectionList { sessions, total: self.sessions_of_app(app) })
    }
}

impl Handler<EndConnection> for Fanout {
    type Result = bool;

    fn handle(
        &mut self,
        EndConnection { app, session }: EndConnection,
        _: &mut Context<Self>,
    ) -> bool {
        let Some(outbox) = self.outbox_of(app, session) else { return false };
        outbox.tell(News::Disconnect(Disconnection::new(Disconnect::App(app)).into()));
        true
    }
}

impl Handler<EndConnections> for Fanout {
    type Result = ();

    fn handle(&mut self, EndConnections { app, sessions }: EndConnections, _: &mut Context<Self>) {
        let disconnection = Arc::new(Disconnection::new(Disconnect::App(app)));
        for outbox in sessions.iter().filter_map(|session| self.outbox_of(app, *session)) {
            outbox.tell(News::Disconnect(disconnection.clone()));
        }
    }
}

impl ConnectionList {
    /// Keeps at most this number of sessions, the first ones.
    fn first(mut self, sessions_max: usize) -> Self {
        self.sessions.sort_unstable_by_key(|connected| connected.session);
        self.sessions.truncate(sessions_max);
        self
    }
}

/// The answer of a node: some of its sessions of an app, oldest first, and the number of all of them.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ConnectionPage {
    sessions: Page<Connected>,
    total: usize,
}

impl ClusterQuestion for ListConnections {
    const NAME: &'static str = "connections";
    type Answer = ConnectionPage;

    async fn answer(self, topics: Topics) -> Result<ConnectionPage, Unanswered> {
        let ConnectionList { sessions, total } = topics.connections_here(self).await?;
        Ok(ConnectionPage { sessions: Page::of(sessions), total })
    }
}

impl ClusterQuestion for EndConnection {
    const NAME: &'static str = "end_connection";
    type Answer = bool;

    async fn answer(self, topics: Topics) -> Result<bool, Unanswered> {
        let told = topics.fanouts().ask(self, topics.wait_max()).await;
        if told.contains(&Asked::Answered(true)) {
            return Ok(true);
        }
        if told.contains(&Asked::Late) { Err(Unanswered) } else { Ok(false) }
    }
}

impl Topics {
    /// The sessions that have joined topics of an app, oldest first: the first ones after a session.
    ///
    /// # Errors
    /// [`Unanswered`] if not every thread answered in time.
    pub async fn connections(
        &self,
        app: AppId,
        after: Option<SessionId>,
        sessions_max: usize,
    ) -> Result<ConnectionList, Unanswered> {
        let mut question = ListConnections { app, after, sessions_max };
        let mut all = Vec::new();
        loop {
            let of_nodes = self.everywhere(question).await?;
            let total = of_nodes.iter().map(|of_node| of_node.total).sum();
            let pages = of_nodes.into_iter().map(|of_node| of_node.sessions).collect();
            let (sessions, cut) = pages::joined(pages, |connected| connected.session);
            let found = ConnectionList { sessions, total }.first(question.sessions_max);
            question.sessions_max -= found.sessions.len();
            all.extend(found.sessions);
            if cut.is_none() || question.sessions_max == 0 {
                return Ok(ConnectionList { sessions: all, total });
            }
            question.after = cut;
        }
    }

    async fn connections_here(&self, ask: ListConnections) -> Result<ConnectionList, Unanswered> {
        let mut all = ConnectionList::default();
        for asked in self.fanouts().ask(ask, self.wait_max()).await {
            match asked {
                Asked::Answered(of_thread) => {
                    all.total += of_thread.total;
                    all.sessions.extend(of_thread.sessions);
                }
                // The sessions of the fan-out ended with it.
                Asked::Lost => {}
                Asked::Late => return Err(Unanswered),
            }
        }
        Ok(all.first(ask.sessions_max))
    }

    /// The users as whom sessions of this node have joined topics of an app. Those of a thread that does not
    /// answer in time are missing.
    pub async fn subs_here(&self, app: AppId) -> BTreeSet<ShownSub> {
        let ask = ListConnections { app, after: None, sessions_max: usize::MAX };
        let mut subs = BTreeSet::new();
        for asked in self.fanouts().ask(ask, self.wait_max()).await {
            if let Asked::Answered(of_thread) = asked {
                subs.extend(of_thread.sessions.into_iter().flat_map(|session| session.subs));
            }
        }
        subs
    }

    /// Ends the joins of an app on one session; `false` if the session has none. A session without
    /// other joins is closed.
    ///
    /// # Errors
    /// [`Unanswered`] if a thread did not answer in time.
    pub async fn end_connection(&self, app: AppId, session: SessionId) -> Result<bool, Unanswered> {
        let answers = self.everywhere(EndConnection { app, session }).await?;
        Ok(answers.contains(&true))
    }

    /// Ends the joins of an app on its `count` newest sessions on this node.
    ///
    /// # Errors
    /// [`Unanswered`] if a thread did not answer in time; some sessions may have been ended.
    pub async fn end_newest(&self, app: AppId, count: usize) -> Result<(), Unanswered> {
        let all = ListConnections { app, after: None, sessions_max: usize::MAX };
        let all = self.connections_here(all).await?.sessions;
        let newest = all.iter().rev().take(count).map(|connected| connected.session).collect();
        let end = EndConnections { app, sessions: newest };
        match self.fanouts().ask(end, self.wait_max()).await.contains(&Asked::Late) {
            true => Err(Unanswered),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::super::testing::{Broker, channel, key, whole};
    use super::*;
    use crate::metrics::labels::{ProtocolVersion, Transport};

    #[test]
    fn an_address_is_told_as_it_was_given() {
        let kind = SessionKind { transport: Transport::LongPoll, version: ProtocolVersion::V1 };
        for address in [IpAddr::from([192, 0, 2, 7]), Ipv6Addr::LOCALHOST.into()] {
            let about = About::new(kind, address);
            assert_eq!((about.address(), about.kind()), (address, Some(kind)));
        }
        assert!(size_of::<About>() <= 28);
    }

    #[actix_web::test]
    async fn the_sessions_of_an_app_are_found_page_by_page_until_they_leave() {
        let broker = Broker::start();
        broker.topics.start_fanout();
        let (app, other) = (key(1, "public"), key(2, "public"));
        let mut probes = Vec::new();
        for nth in 1..=3 {
            let probe = broker.stuck_session(nth, 100).await;
            broker.join(&probe, whole(&app)).await.expect("a place");
            probes.push(probe);
        }
        broker.join(&probes[1], channel(&app, "room")).await.expect("a place");
        broker.join(&probes[2], whole(&other)).await.expect("a place");
        let found = async |after: Option<u64>, max| {
            let found = broker.topics.connections(app.app, after.map(SessionId), max).await;
            let ConnectionList { sessions, total } = found.expect("an answer");
            let sessions: Vec<_> =
                sessions.iter().map(|each| (each.session.0, each.places.len())).collect();
            (sessions, total)
        };
        assert_eq!(found(None, 10).await, (vec![(1, 1), (2, 2), (3, 1)], 3));
        assert_eq!(found(None, 2).await, (vec![(1, 1), (2, 2)], 3));
        assert_eq!(found(Some(2), 2).await, (vec![(3, 1)], 3));
        let of_other = broker.topics.connections(other.app, None, 10).await.expect("an answer");
        assert_eq!((of_other.sessions.len(), of_other.total), (1, 1));
        let end = async |app, session| {
            broker.topics.end_connection(app, SessionId(session)).await.expect("an answer")
        };
        assert!(end(app.app, 2).await);
        assert!(!end(other.app, 2).await, "it has joined nothing of that app");
        assert!(!end(app.app, 9).await);
        broker.fanout.send(super::super::fanout::Leave(SessionId(2))).await.expect("a fan-out");
        assert_eq!(found(None, 10).await, (vec![(1, 1), (3, 1)], 2));
    }
}
