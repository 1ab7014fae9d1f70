//! `GET /api/admin/nodes`: the nodes of the cluster.
//!
//! Each node sends the others a description of itself every second, so that the list can be read while a
//! node does not answer. A server without a cluster is the only node of its list.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix_web::{HttpResponse, web};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Services, channels::answer, error::ApiError};
use crate::{
    broker::node::NodeId,
    engine::{EngineState, NodeInfo},
};

/// The interval at which a node sends its description.
const INTERVAL: Duration = Duration::from_secs(1);

/// A node's description of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Description {
    address: String,
    version: String,
    started_at: String,
    /// The number of open sessions of all apps.
    sessions: i64,
    /// The number of scopes that have subscribers or retained publications on this node.
    scopes: usize,
    /// The number of records of the log that the node has not read yet.
    lag: u64,
    /// The seat under which the node counts usage.
    #[serde(skip_serializing_if = "is_none")]
    seat: u16,
}

/// Returns whether this is the seat of a server without a cluster, which is not sent.
fn is_none(seat: &u16) -> bool {
    *seat == 0
}

/// A node as the answer lists it.
#[derive(Debug, Serialize)]
struct NodeView {
    id: u16,
    #[serde(flatten)]
    description: Description,
    /// The time since the node was last seen, in milliseconds.
    seen_ms_ago: u64,
    /// Whether this is the node that answers the request.
    this: bool,
}

impl Description {
    /// Describes this node.
    pub(super) fn of(services: &Services) -> Self {
        let started_at = services.overview.started_at();
        Self {
            address: services.address.get().map(SocketAddr::to_string).unwrap_or_default(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: rfc3339(started_at),
            sessions: super::console::overview::sessions(&services.metrics, |_| true),
            scopes: services.topics.scopes(),
            lag: services.metrics.engine.lag_records.get() as u64,
            seat: services.seat.number(),
        }
    }
}

/// The nodes in the order of their ids, each with its description and the milliseconds since it was last
/// seen. A description that this version cannot read is replaced by an empty one.
pub(super) fn all(services: &Services) -> Vec<(NodeId, Description, u64)> {
    let own = services.topics.node();
    let Some(engine) = services.topics.engine() else {
        return vec![(own, Description::of(services), 0)];
    };
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let listed = |NodeInfo { node, info, seen_ms, .. }: &NodeInfo| {
        let seen_ms_ago = (now_ms as u64).saturating_sub(*seen_ms);
        match *node == own {
            // This node's own description is made now, the others' are the last that they sent.
            true => (own, Description::of(services), seen_ms_ago),
            false => (*node, serde_json::from_slice(info).unwrap_or_default(), seen_ms_ago),
        }
    };
    engine.nodes().iter().map(listed).collect()
}

/// Lists the nodes that this node knows to be alive.
///
/// # Errors
/// [`ApiError::Unavailable`] if this node is cut off from the others.
pub async fn list(services: web::Data<Services>) -> Result<HttpResponse, ApiError> {
    if services.topics.engine_state().is_some_and(|state| state != EngineState::Up) {
        return Err(ApiError::Unavailable);
    }
    let own = services.topics.node();
    let nodes = all(&services).into_iter().map(|(id, description, seen_ms_ago)| NodeView {
        id: id.0,
        description,
        seen_ms_ago,
        this: id == own,
    });
    Ok(answer(&json!({ "data": nodes.collect::<Vec<_>>() })))
}

/// Sends this node's description to the others every second, and makes sure that its seat differs from
/// theirs. Never returns.
pub async fn keep_described(services: web::Data<Services>) {
    let Some(engine) = services.topics.engine().cloned() else { return };
    loop {
        let own = services.topics.node();
        let others = all(&services).into_iter().filter(|(node, ..)| *node != own);
        services.seat.take(own.0, others.map(|(node, description, _)| (node.0, description.seat)));
        let description = serde_json::to_vec(&Description::of(&services)).unwrap_or_default();
        engine.describe(description.into());
        tokio::time::sleep(INTERVAL).await;
    }
}

fn rfc3339(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

#[cfg(test)]
mod tests {
    use actix_web::{http::header, test::TestRequest};
    use serde_json::Value;

    use super::*;
    use crate::http::testing::{TestServices, basic};

    #[actix_web::test]
    async fn a_server_that_shares_its_topics_with_no_other_is_the_only_node() {
        let login = [("PUSHER_ADMIN_USERNAME", "admin"), ("PUSHER_ADMIN_PASSWORD", "pa:ss")];
        let services = TestServices::start_with(&login).await;
        let get = TestRequest::get().uri("/api/admin/nodes");
        let (status, _) = services.call(get).await;
        assert_eq!(status, 401);
        let get = TestRequest::get().uri("/api/admin/nodes");
        let get = get.insert_header((header::AUTHORIZATION, basic("admin", "pa:ss")));
        let (status, body) = services.call(get).await;
        assert_eq!(status, 200);
        let [node] = &body["data"].as_array().expect("a list")[..] else { panic!("{body}") };
        assert_eq!(
            (&node["id"], &node["this"], &node["sessions"]),
            (&0.into(), &Value::Bool(true), &0.into())
        );
        assert_eq!(node["version"], env!("CARGO_PKG_VERSION"));
    }

    #[test]
    fn a_node_of_another_version_is_listed_with_what_is_understood() {
        let newer = br#"{"address":"a:1","sessions":3,"mood":"fine"}"#;
        let read: Description = serde_json::from_slice(newer).expect("a description");
        let expected = Description { address: "a:1".into(), sessions: 3, ..Description::default() };
        assert_eq!(read, expected);
    }
}
