//! The messages that the registry takes in addition to its tasks.

use std::sync::Arc;

use actix::{Message, Recipient};
use futures_util::future::BoxFuture;

use super::super::AppId;

/// Asks for a message about each app that changes or is removed, until the recipient dies.
#[derive(Message)]
#[rtype(result = "()")]
pub struct WatchApps(pub Recipient<AppChanged>);

/// Announces that an app was changed or removed. Its joins are to be judged anew by the directory,
/// which already has the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct AppChanged(pub AppId);

/// A function that reviews an app that was changed or removed. It is called once for each change, while the directory
/// has the app as the change has left it.
pub type ReviewChange = Arc<dyn Fn(AppId) + Send + Sync>;

/// Sets the function that reviews apps. An announcement cannot take its place: when a watcher gets to it, the directory
/// may already have the next change.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ReviewChanges(pub ReviewChange);

/// Reads the table again, because another node has changed it. The answer comes when that is done, or has
/// failed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReadAgain;

/// A function that makes the other nodes read the table again. Its future resolves when they have, or after a
/// time limit.
pub type HaveOthersRead = Arc<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// Sets the function that makes other nodes read the table again after a change.
#[derive(Message)]
#[rtype(result = "()")]
pub struct ShareChanges(pub HaveOthersRead);

/// Asks for the state of the database when it was last used. The answer comes at once, even while a change is
/// under way.
#[derive(Debug, Message)]
#[rtype(result = "DatabaseHealth")]
pub struct DatabaseState;

/// The state of the database when it was last used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseHealth {
    /// The database answered.
    Ok,
    /// The database did not answer.
    Failed,
}

/// Writes the times at which key pairs were last used. The registry does so once a minute, and a stopping
/// server requests it. The answer comes when that is done, or has failed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct WriteUses;

/// Removes the expired entries of the audit trail.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct SweepAudit;

/// Reads the table again.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Refresh;
