//! The audit trail: a record of each change of an app, with its author, its time, the address of the request
//! and the names of the changed fields.
//!
//! The store writes an entry in the transaction of the change, so there is never one without the
//! other. Entries hold the names of fields and never their values, and outlive their app.

use std::net::IpAddr;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

use super::{
    App, AppId, Slug,
    key_pair::Pair,
    pair_digests::{PairDigests, TextDigest},
};

/// The party that makes a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// The administrator, through the admin API.
    Admin,
    /// A person or a program at the command line; also a server that seeds its database.
    Cli,
    /// The web application with this id, with its own key and secret.
    App(AppId),
}

impl Actor {
    /// The actor's name, as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Cli => "cli",
            Self::App(_) => "app",
        }
    }
}

/// The party that makes a change, and the address of its request.
#[derive(Debug, Clone, Copy)]
pub struct ChangedBy {
    /// The party that makes the change.
    pub actor: Actor,
    /// The address from which the request came; `None` without a request.
    pub address: Option<IpAddr>,
    /// The key and secret with which a web application was authenticated; `None` for the other parties.
    login: Option<TextDigest>,
}

impl ChangedBy {
    /// The command line.
    pub const CLI: Self = Self { actor: Actor::Cli, address: None, login: None };

    /// The administrator at this address.
    pub fn admin(address: IpAddr) -> Self {
        Self { actor: Actor::Admin, address: Some(address), login: None }
    }

    /// The web application of this app, at this address, which was authenticated by the app's current pair.
    pub fn app(app: &App, address: IpAddr) -> Self {
        let login = TextDigest::of_login(&app.key, &app.secret);
        Self { actor: Actor::App(app.id), address: Some(address), login: Some(login) }
    }

    /// The pair with which the party may act for an app, whose state may be newer than the one by which the
    /// party was authenticated. The operator counts as the current pair. A web application has the pair of its
    /// own app that has its key and secret; `None` if no pair of the app has them any longer.
    pub fn pair_of(&self, app: &App) -> Option<Pair> {
        match self.actor {
            Actor::Admin | Actor::Cli => Some(Pair::Current),
            Actor::App(own) if own == app.id => PairDigests::of(app).find_login(self.login?),
            Actor::App(_) => None,
        }
    }
}

/// The kind of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The app was created.
    Create,
    /// Fields of the app were changed.
    Update,
    /// The app got a new key pair.
    Rotate,
    /// The app was deleted.
    Delete,
}

impl Action {
    /// The action's name, as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Rotate => "rotate",
            Self::Delete => "delete",
        }
    }
}

/// An entry of the audit trail, as the database has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// The number of the entry; later entries have larger numbers.
    pub id: i64,
    /// The time at which the change was made.
    #[serde(serialize_with = "rfc3339")]
    pub at: DateTime<Utc>,
    /// The name of the actor.
    pub actor: String,
    /// The address from which the request came; `None` without a request.
    pub address: Option<String>,
    /// The name of the action.
    pub action: String,
    /// The slug that the app had after the change.
    pub app: String,
    /// The names of the fields that the change set, in the order of the app's fields.
    pub fields: Vec<String>,
}

fn rfc3339<S: Serializer>(time: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::Micros, true))
}

/// The selection of the entries of one page of the audit trail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditPage {
    /// The app whose entries are listed.
    pub of: Of,
    /// Only entries with a smaller number are listed.
    pub before: Option<i64>,
    /// The most entries of the page.
    pub limit: u64,
}

/// The app whose entries are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Of {
    /// All apps.
    All,
    /// The app with this id, under all slugs that it had.
    App(AppId),
    /// All apps that had this slug at the time of the entry, also deleted ones.
    Slug(Slug),
}
