//! The registry: the actor that owns the apps, and the server's only writer of them.
//!
//! Before a change is answered, it is in the database, then in the [`AppDirectory`], and then
//! announced to every watcher. Changes run one at a time. The command line and SQL write too: the
//! table is read again periodically, and differences are announced. While the database is
//! unavailable the last snapshot stays in use; reads and changes through the registry fail, and the
//! rest of the server continues.

use std::{future::Future, sync::Arc, time::Duration};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, MessageResult, Recipient,
    ResponseActFuture, WrapFuture,
};
use tokio::sync::Mutex;

use crate::metrics::{Metrics, labels::RefreshOutcome};

use super::{
    App, AppDirectory, AppId, Apps, Slug,
    change::{self, ChangeError, Update},
    fields::{AppFields, Faults},
    store::{AppStore, Listing, StoreError, UnreadableRow},
};

/// Asks for all apps, oldest first, as the database has them.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<App>, RegistryError>")]
pub struct ListApps;

/// Asks for the app with this slug, as the database has it.
#[derive(Debug, Message)]
#[rtype(result = "Result<App, RegistryError>")]
pub struct ShowApp(pub String);

/// Creates an app.
#[derive(Debug, Message)]
#[rtype(result = "Result<App, RegistryError>")]
pub struct CreateApp(pub AppFields);

/// Changes the given fields of an app.
#[derive(Debug, Message)]
#[rtype(result = "Result<App, RegistryError>")]
pub struct UpdateApp {
    /// The slug of the app.
    pub slug: String,
    /// The fields to change.
    pub fields: AppFields,
}

/// Deletes the app with this slug.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), RegistryError>")]
pub struct DeleteApp(pub String);

/// Asks for a message about each app that changes or is removed, until the recipient dies.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Watch(pub Recipient<AppChanged>);

/// Announces that an app was changed or removed. Its joins are to be judged anew by the directory,
/// which already has the change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct AppChanged(pub AppId);

/// Asks for the state of the database when it was last used. Answered at once, even while a change
/// is under way.
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

/// Reads the table again.
#[derive(Message)]
#[rtype(result = "()")]
struct Refresh;

/// Why the registry did not do a request. It has already logged the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// There is no such app.
    #[error("there is no such app")]
    NotFound,
    /// The requested values are not valid.
    #[error("some fields are not valid")]
    Invalid(Faults),
    /// The database is unavailable. The change may still have happened: then the next refresh shows
    /// it.
    #[error("the database is unavailable")]
    Unavailable,
}

impl From<ChangeError> for RegistryError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotFound => Self::NotFound,
            ChangeError::Invalid(faults) => Self::Invalid(faults),
            ChangeError::Store(_) => Self::Unavailable,
        }
    }
}

/// The actor that owns the apps.
pub struct AppRegistry {
    store: AppStore,
    directory: AppDirectory,
    refresh: Duration,
    /// Held from the first query of a change until its announcement; waiters are served first come,
    /// first served. It is a lock rather than a blocked mailbox, so that reads need not wait for a
    /// slow change.
    turn: Arc<Mutex<()>>,
    watchers: Vec<Recipient<AppChanged>>,
    database: DatabaseHealth,
    unreadable: Vec<UnreadableRow>,
    is_refreshing: bool,
    metrics: Arc<Metrics>,
}

impl AppRegistry {
    /// Loads all apps into `directory` and starts the actor on the current arbiter.
    ///
    /// # Errors
    /// [`StoreError`] if the table cannot be read; nothing is started.
    pub async fn start(
        store: AppStore,
        directory: AppDirectory,
        refresh: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<Addr<Self>, StoreError> {
        let listing = store.list().await?;
        let mut registry = Self {
            store,
            directory,
            refresh,
            turn: Arc::default(),
            watchers: Vec::new(),
            database: DatabaseHealth::Ok,
            unreadable: Vec::new(),
            is_refreshing: false,
            metrics,
        };
        registry.adopt(listing);
        Ok(Actor::start(registry))
    }

    /// Makes the snapshot equal to the table, and announces the differences.
    fn adopt(&mut self, listing: Listing) {
        self.complain(listing.unreadable);
        let old = self.directory.load();
        let new: Apps = listing.apps.into_iter().collect();
        let changed: Vec<AppId> = old
            .iter()
            .filter(|app| !new.by_id(app.id).is_some_and(|now| is_same(app, now)))
            .map(|app| app.id)
            .collect();
        let is_grown = new.iter().any(|app| old.by_id(app.id).is_none());
        if changed.is_empty() && !is_grown {
            return;
        }
        self.show(new);
        for id in changed {
            self.announce(id);
        }
    }

    /// Warns of each row that is not a valid app once.
    fn complain(&mut self, unreadable: Vec<UnreadableRow>) {
        for row in unreadable.iter().filter(|row| !self.unreadable.contains(row)) {
            log::warn!("app {} is not served: its {} cannot be read", row.id.0, row.column);
        }
        self.unreadable = unreadable;
    }

    /// Puts one changed app into the snapshot, or removes it, and announces the change.
    fn replace(&mut self, id: AppId, app: Option<&App>) {
        let old = self.directory.load();
        let others = old.iter().filter(|other| other.id != id).map(|other| App::clone(other));
        let new: Apps = others.chain(app.cloned()).collect();
        let is_new = old.by_id(id).is_none();
        self.show(new);
        if !is_new {
            self.announce(id);
        }
    }

    /// Replaces the snapshot. The metrics know an app before any client can use it.
    fn show(&self, apps: Apps) {
        self.metrics.apps.keep(apps.iter().map(|app| (app.id.0, app.slug.as_str())));
        self.directory.replace(apps);
    }

    fn announce(&mut self, id: AppId) {
        self.watchers.retain(Recipient::connected);
        for watcher in &self.watchers {
            // Not `try_send`: a watcher that misses this message would keep a client whose join
            // must end. The rate at which an operator changes apps bounds the queue.
            watcher.do_send(AppChanged(id));
        }
    }

    /// Records whether the database answered, and logs when that changes.
    fn note<T>(&mut self, outcome: &Result<T, ChangeError>) {
        let health = match outcome {
            Err(ChangeError::Store(error)) => {
                if self.database == DatabaseHealth::Ok {
                    log::warn!("{error}; going on with the apps known so far");
                }
                DatabaseHealth::Failed
            }
            _ => DatabaseHealth::Ok,
        };
        if (self.database, health) == (DatabaseHealth::Failed, DatabaseHealth::Ok) {
            log::info!("database is back");
        }
        self.database = health;
    }

    /// Reads without waiting for a change that is under way.
    fn read<T: Send + 'static>(
        &self,
        query: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
    ) -> ResponseActFuture<Self, Result<T, RegistryError>> {
        Box::pin(guarded(query).into_actor(self).map(|outcome, registry, _ctx| {
            registry.note(&outcome);
            outcome.map_err(Into::into)
        }))
    }

    /// Writes when it is this change's turn, and then calls `publish` to show the change.
    fn write<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
        publish: impl FnOnce(&mut Self, &T) + 'static,
    ) -> ResponseActFuture<Self, Result<T, RegistryError>> {
        let turn = self.turn.clone();
        let change = async move {
            let turn = turn.lock_owned().await;
            (guarded(change).await, turn)
        };
        Box::pin(change.into_actor(self).map(move |(outcome, _turn), registry, ctx| {
            registry.note(&outcome);
            match &outcome {
                Ok(done) => publish(registry, done),
                // The outcome of the change is unknown. If it happened after this, the next refresh
                // shows it.
                Err(ChangeError::Store(_)) => ctx.notify(Refresh),
                Err(_) => {}
            }
            outcome.map_err(Into::into)
        }))
    }
}

/// Runs a query as a separate task, so that its panic ends the task and not the registry.
async fn guarded<T: Send + 'static>(
    query: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
) -> Result<T, ChangeError> {
    match tokio::spawn(query).await {
        Ok(outcome) => outcome,
        Err(error) => {
            log::error!("a query of the app registry did not end: {error}");
            Err(ChangeError::Store(StoreError::Unavailable("a query did not end".into())))
        }
    }
}

fn parse_slug(raw: &str) -> Result<Slug, ChangeError> {
    Slug::parse(raw).ok_or(ChangeError::NotFound)
}

fn is_same(one: &App, other: &App) -> bool {
    super::fields::AppValues::from(one).are_those_of(other)
        && (one.inserted_at, one.updated_at) == (other.inserted_at, other.updated_at)
}

impl Actor for AppRegistry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.refresh, |_, ctx| ctx.notify(Refresh));
    }
}

impl Handler<ListApps> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<Vec<App>, RegistryError>>;

    fn handle(&mut self, _: ListApps, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        self.read(async move { Ok(store.list().await?.apps) })
    }
}

impl Handler<ShowApp> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<App, RegistryError>>;

    fn handle(&mut self, ShowApp(slug): ShowApp, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        self.read(
            async move { store.find(&parse_slug(&slug)?).await?.ok_or(ChangeError::NotFound) },
        )
    }
}

impl Handler<CreateApp> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<App, RegistryError>>;

    fn handle(&mut self, CreateApp(fields): CreateApp, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        let create = async move { change::create(&store, fields).await };
        self.write(create, |registry, app| registry.replace(app.id, Some(app)))
    }
}

impl Handler<UpdateApp> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<App, RegistryError>>;

    fn handle(&mut self, message: UpdateApp, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        let update = async move {
            let slug = parse_slug(&message.slug)?;
            change::update(&store, &slug, message.fields).await
        };
        let publish = |registry: &mut Self, update: &Update| {
            // The row is also shown when nothing changed now: the row may be newer than the
            // snapshot.
            let known = registry.directory.load();
            let is_known = known.by_id(update.app.id).is_some_and(|app| is_same(app, &update.app));
            if !is_known {
                registry.replace(update.app.id, Some(&update.app));
            }
        };
        let answer = self.write(update, publish);
        Box::pin(answer.map(|outcome, _, _| outcome.map(|update| update.app)))
    }
}

impl Handler<DeleteApp> for AppRegistry {
    type Result = ResponseActFuture<Self, Result<(), RegistryError>>;

    fn handle(&mut self, DeleteApp(slug): DeleteApp, _: &mut Self::Context) -> Self::Result {
        let store = self.store.clone();
        let delete = async move { change::delete(&store, &parse_slug(&slug)?).await };
        let answer = self.write(delete, |registry, id| registry.replace(*id, None));
        Box::pin(answer.map(|outcome, _, _| outcome.map(drop)))
    }
}

impl Handler<Watch> for AppRegistry {
    type Result = ();

    fn handle(&mut self, Watch(watcher): Watch, _: &mut Self::Context) {
        self.watchers.retain(Recipient::connected);
        self.watchers.push(watcher);
    }
}

impl Handler<DatabaseState> for AppRegistry {
    type Result = MessageResult<DatabaseState>;

    fn handle(&mut self, _: DatabaseState, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.database)
    }
}

impl Handler<Refresh> for AppRegistry {
    type Result = ();

    fn handle(&mut self, _: Refresh, ctx: &mut Self::Context) {
        if self.is_refreshing {
            return;
        }
        self.is_refreshing = true;
        let (store, turn) = (self.store.clone(), self.turn.clone());
        let list = async move {
            let turn = turn.lock_owned().await;
            let listing = guarded(async move { Ok(store.list().await?) }).await;
            (listing, turn)
        };
        ctx.spawn(list.into_actor(self).map(|(listing, _turn), registry, _ctx| {
            registry.is_refreshing = false;
            registry.note(&listing);
            let outcome = if listing.is_ok() { RefreshOutcome::Ok } else { RefreshOutcome::Failed };
            registry.metrics.registry_refreshes.of(outcome).inc();
            if let Ok(listing) = listing {
                registry.adopt(listing);
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_web::test]
    async fn a_query_that_panics_is_an_outage_and_no_end() {
        let outcome = guarded::<()>(async { panic!("on purpose") }).await;
        let Err(ChangeError::Store(error)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(error, StoreError::Unavailable("a query did not end".into()));
    }
}
