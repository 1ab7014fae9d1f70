//! The end of the joins of the live feed whose login has ended.
//!
//! Each node checks the joins that it holds, whichever node has minted their tokens. The `sub` of a join names
//! the session of the console on which the join rests. There is no list of tokens, which could be too short or
//! lost with a restart, and the next check finds each join that a check could not end.

use std::{collections::BTreeSet, sync::Arc};

use actix_web::{rt, web};
use futures_util::future::join_all;
use tokio::sync::Notify;

use super::live;
use crate::{app::AppId, http::Services};

/// The task that checks the logins on which joins of the live feed rest.
pub(super) struct LoginChecks(Arc<Notify>);

impl LoginChecks {
    /// Starts the task, which ends together with its thread. It is separate from the task that publishes the
    /// live feed, because a check may wait for the database.
    pub(super) fn start(services: web::Data<Services>) -> Self {
        let due = Arc::new(Notify::new());
        let checks = Self(due.clone());
        rt::spawn(async move {
            loop {
                due.notified().await;
                end_joins(&services).await;
            }
        });
        checks
    }

    /// Requests a check. Requests during a check lead to one more check.
    pub(super) fn request(&self) {
        self.0.notify_one();
    }
}

/// Ends the joins on this node whose logins have ended.
async fn end_joins(services: &Services) {
    let joined = services.topics.subs_here(AppId::CONSOLE).await;
    let joined: BTreeSet<String> = joined.iter().map(|sub| sub.as_str().to_owned()).collect();
    if joined.is_empty() {
        return;
    }
    let ended = services.console.ended_among(services, joined).await;
    join_all(ended.iter().map(|session| live::end(services, session))).await;
}
