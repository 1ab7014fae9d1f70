//! The registry: the actor that owns the apps, and the server's only writer of them.
//!
//! Before a change is answered, it is in the database, then in the [`AppDirectory`], and then
//! announced to every watcher. Changes run one at a time. The command line and SQL write too: the
//! table is read again periodically, and differences are announced. While the database is
//! unavailable the last snapshot stays in use; reads and changes through the registry fail, and the
//! rest of the server continues.
//!
//! In a cluster, a change is answered once the other nodes have read it, as far as they can be reached.

mod handlers;
mod messages;
mod tasks;

use std::{future::Future, sync::Arc, time::Duration};

use actix::{
    Actor, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, MessageResult, Recipient,
    ResponseActFuture, SpawnHandle, WrapFuture,
};
use chrono::Utc;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::metrics::{Metrics, labels::RefreshOutcome};

use super::{
    App, AppDirectory, AppId, Apps, Slug,
    audit::{AuditEntry, AuditPage, ChangedBy},
    change::{self, ChangeError},
    fields::AppFields,
    key_pair::{Overlap, PairUse},
    store::{AppListing, AppStore, StoreError, UnreadableRow},
};
pub use messages::{
    AppChanged, DatabaseHealth, DatabaseState, HaveOthersRead, ReadAgain, ReviewChange,
    ReviewChanges, ShareChanges, WatchApps, WriteUses,
};
use messages::{Refresh, SweepAudit};
pub use tasks::{
    RegistryTask, create_app, delete_app, list_apps, read_audit, rotate_app, show_app, update_app,
};

/// The interval at which the last uses of key pairs are written.
const USES_INTERVAL: Duration = Duration::from_secs(60);

/// The interval at which old entries of the audit trail are removed.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The intervals and periods of the registry.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The interval at which the table is read again.
    pub refresh: Duration,
    /// The time for which entries of the audit trail are kept.
    pub audit_retention: Duration,
}

/// The actor that owns the apps.
pub struct AppRegistry {
    store: AppStore,
    directory: AppDirectory,
    times: Times,
    /// Held from the first query of a change until its announcement; waiters are served first come,
    /// first served. It is a lock rather than a blocked mailbox, so that reads need not wait for a
    /// slow change.
    turn: Arc<Mutex<()>>,
    watchers: Vec<Recipient<AppChanged>>,
    review: Option<ReviewChange>,
    /// Makes other nodes read the table again after a change; `None` without a cluster.
    have_others_read: Option<HaveOthersRead>,
    database: DatabaseHealth,
    unreadable: Vec<UnreadableRow>,
    is_refreshing: bool,
    /// The timer for the end of the next previous pair.
    next_end: Option<SpawnHandle>,
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
        times: Times,
        metrics: Arc<Metrics>,
    ) -> Result<Addr<Self>, StoreError> {
        let listing = store.list().await?;
        let mut registry = Self {
            store,
            directory,
            times,
            turn: Arc::default(),
            watchers: Vec::new(),
            review: None,
            have_others_read: None,
            database: DatabaseHealth::Ok,
            unreadable: Vec::new(),
            is_refreshing: false,
            next_end: None,
            metrics,
        };
        registry.adopt(listing);
        Ok(Actor::start(registry))
    }

    /// Makes the snapshot equal to the table, and announces the differences.
    fn adopt(&mut self, listing: AppListing) {
        self.complain(listing.unreadable);
        self.replace_all(listing.apps);
    }

    /// Makes the snapshot equal to `apps`, and announces the differences.
    fn replace_all(&mut self, mut apps: Vec<App>) {
        let now = Utc::now();
        apps.iter_mut().for_each(|app| app.end_overlap(now));
        let old = self.directory.load();
        let new = self.with_shared_uses(apps);
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

    /// Ends the previous pairs whose overlap has passed. The database is not needed: the pairs must
    /// end in time even during an outage.
    fn end_pairs(&mut self) {
        let (now, apps) = (Utc::now(), self.directory.load());
        let is_over = |app: &Arc<App>| app.previous.as_ref().is_some_and(|pair| pair.is_over(now));
        if apps.iter().any(is_over) {
            self.replace_all(apps.iter().map(|app| App::clone(app)).collect());
        }
    }

    /// Sets the timer for the end of the next previous pair.
    fn await_next_end(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.next_end.take() {
            ctx.cancel_future(timer);
        }
        let apps = self.directory.load();
        let ends = apps.iter().filter_map(|app| app.previous.as_ref()).map(|pair| pair.expires_at);
        let Some(end) = ends.min() else { return };
        let wait = (end - Utc::now()).to_std().unwrap_or_default();
        self.next_end = Some(ctx.run_later(wait, |registry, ctx| {
            registry.next_end = None;
            registry.end_pairs();
            registry.await_next_end(ctx);
            // The refresh also removes the pairs from the database.
            ctx.notify(Refresh);
        }));
    }

    /// The apps as a snapshot that shares the records of last uses with the present one.
    fn with_shared_uses(&self, mut apps: Vec<App>) -> Apps {
        apps.iter_mut().for_each(|app| share_uses(&self.directory, app));
        apps.into_iter().collect()
    }

    /// Warns of each row that is not a valid app once.
    fn complain(&mut self, unreadable: Vec<UnreadableRow>) {
        for row in unreadable.iter().filter(|row| !self.unreadable.contains(row)) {
            log::warn!(
                "app {} is not served: its column {} has a value that is not valid; correct it by SQL",
                row.id.0,
                row.column
            );
        }
        self.unreadable = unreadable;
    }

    /// Puts one changed app into the snapshot, or removes it, and announces the change.
    fn replace(&mut self, id: AppId, app: Option<&App>) {
        let old = self.directory.load();
        let others = old.iter().filter(|other| other.id != id).map(|other| App::clone(other));
        let new = self.with_shared_uses(others.chain(app.cloned()).collect());
        let is_new = old.by_id(id).is_none();
        self.show(new);
        if !is_new {
            self.announce(id);
        }
    }

    /// Replaces the snapshot. The metrics know an app before any client can use it.
    fn show(&self, apps: Apps) {
        let slugs = || apps.iter().map(|app| (app.id.0, app.slug.as_str()));
        self.metrics.apps.keep(slugs());
        self.metrics.usage.keep(slugs());
        self.directory.replace(apps);
    }

    fn announce(&mut self, id: AppId) {
        if let Some(review) = &self.review {
            review(id);
        }
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
                    log::warn!("{error}; Herald continues with the apps as they were last read");
                }
                DatabaseHealth::Failed
            }
            _ => DatabaseHealth::Ok,
        };
        if (self.database, health) == (DatabaseHealth::Failed, DatabaseHealth::Ok) {
            log::info!("the database answers again");
        }
        self.database = health;
    }

    /// Reads without waiting for a change that is under way.
    fn read<T: Send + 'static>(
        &self,
        query: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
    ) -> ResponseActFuture<Self, Result<T, ChangeError>> {
        Box::pin(guarded(query).into_actor(self).map(|outcome, registry, _ctx| {
            registry.note(&outcome);
            outcome
        }))
    }

    /// Writes when it is this change's turn, and then calls `publish` to show the change.
    fn write<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, ChangeError>> + Send + 'static,
        publish: impl FnOnce(&mut Self, &T) + 'static,
    ) -> ResponseActFuture<Self, Result<T, ChangeError>> {
        let turn = self.turn.clone();
        let change = async move {
            let turn = turn.lock_owned().await;
            (guarded(change).await, turn)
        };
        let written =
            change.into_actor(self).map(move |(outcome, _turn), registry: &mut Self, ctx| {
                registry.note(&outcome);
                let mut have_others_read = None;
                match &outcome {
                    Ok(done) => {
                        publish(registry, done);
                        registry.await_next_end(ctx);
                        have_others_read.clone_from(&registry.have_others_read);
                    }
                    // The outcome of the change is unknown, so the table is read again. If the database
                    // makes the change only after that, the next refresh shows it. It is also read again if the
                    // row shows that the pair by which the caller was authenticated has ended.
                    Err(
                        ChangeError::Store(_)
                        | ChangeError::NotPermitted
                        | ChangeError::PreviousPair,
                    ) => ctx.notify(Refresh),
                    Err(_) => {}
                }
                (outcome, have_others_read)
            });
        Box::pin(written.then(|(outcome, have_others_read), registry, _| {
            async move {
                if let Some(have_others_read) = have_others_read {
                    have_others_read().await;
                }
                outcome
            }
            .into_actor(registry)
        }))
    }

    /// Like [`write`](Self::write), for a change after which the app still has uses that the snapshot knows.
    fn write_sharing(
        &self,
        change: impl Future<Output = Result<App, ChangeError>> + Send + 'static,
        publish: impl FnOnce(&mut Self, &App) + 'static,
    ) -> ResponseActFuture<Self, Result<App, ChangeError>> {
        Box::pin(self.write(change, publish).map(|mut outcome, registry, _| {
            if let Ok(app) = &mut outcome {
                share_uses(&registry.directory, app);
            }
            outcome
        }))
    }

    /// Reads the table, after the change that is under way.
    fn list(
        &self,
    ) -> impl Future<Output = (Result<AppListing, ChangeError>, OwnedMutexGuard<()>)> + use<> {
        let (store, turn) = (self.store.clone(), self.turn.clone());
        async move {
            let turn = turn.lock_owned().await;
            let listing = guarded(async move {
                let listing = store.list().await?;
                if listing.has_ended_pairs {
                    store.forget_ended_pairs().await?;
                }
                Ok(listing)
            });
            (listing.await, turn)
        }
    }

    /// Makes the snapshot equal to what was read.
    fn refreshed(&mut self, listing: Result<AppListing, ChangeError>, ctx: &mut Context<Self>) {
        self.note(&listing);
        let outcome = if listing.is_ok() { RefreshOutcome::Ok } else { RefreshOutcome::Failed };
        self.metrics.registry_refreshes.of(outcome).inc();
        if let Ok(listing) = listing {
            self.adopt(listing);
            self.await_next_end(ctx);
        }
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

/// Makes an app that was read from the database share the records of last uses with the snapshot.
fn share_uses(directory: &AppDirectory, app: &mut App) {
    if let Some(known) = directory.load().by_id(app.id) {
        app.share_uses_of(known);
    }
}

/// Returns whether both states of an app are equal except for the last uses of its pairs.
fn is_same(one: &App, other: &App) -> bool {
    let is_same_previous = match (&one.previous, &other.previous) {
        (Some(one), Some(other)) => one.is_same(other),
        (one, other) => one.is_none() && other.is_none(),
    };
    is_same_previous
        && super::fields::AppValues::from(one).are_those_of(other)
        && (one.inserted_at, one.updated_at) == (other.inserted_at, other.updated_at)
}

impl Actor for AppRegistry {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(self.times.refresh, |_, ctx| ctx.notify(Refresh));
        ctx.notify(SweepAudit);
        ctx.run_interval(SWEEP_INTERVAL, |_, ctx| ctx.notify(SweepAudit));
        ctx.run_interval(USES_INTERVAL, |_, ctx| ctx.notify(WriteUses));
        self.await_next_end(ctx);
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
