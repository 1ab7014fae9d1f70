//! The keeper: the actor that writes the ledger at regular intervals, and answers questions for usage.
//!
//! It lives on the thread where the server is built, which outlives the worker threads: connections to
//! the database belong to the thread that opened them.

use std::{sync::Arc, time::Duration};

use actix::{
    Actor, Addr, AsyncContext, Context, Handler, Message, ResponseFuture, fut::wrap_future,
};
use tokio::time::sleep;

use super::{
    ledger::{ReportError, UsageLedger, UsageQuestion},
    report::Report,
};
use crate::app::store::{StoreError, usage::Hour};

/// The interval at which expired rows are deleted.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3_600);

/// Writes everything that was counted up to now to the database.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Result<(), StoreError>")]
pub struct WriteUsage;

/// Asks for the usage of apps.
#[derive(Debug, Clone, Message)]
#[rtype(result = "Result<Report, ReportError>")]
pub struct AskUsage(pub UsageQuestion);

/// The actor that owns the ledger.
pub struct UsageKeeper {
    ledger: Arc<UsageLedger>,
    write_interval: Duration,
    retention_days: u32,
}

impl UsageKeeper {
    /// Starts the actor on the calling thread. It writes after each interval and at the end of each
    /// hour, and once an hour deletes rows that are older than the retention.
    pub fn start(ledger: UsageLedger, write_interval: Duration, retention_days: u32) -> Addr<Self> {
        Actor::start(Self { ledger: Arc::new(ledger), write_interval, retention_days })
    }
}

impl Actor for UsageKeeper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(wrap_future(keep(self.ledger.clone(), self.write_interval)));
        ctx.spawn(wrap_future(sweep(self.ledger.clone(), self.retention_days)));
    }
}

/// Writes after each interval, and at the end of each hour.
async fn keep(ledger: Arc<UsageLedger>, write_interval: Duration) {
    loop {
        let now_ms = ledger.now_ms();
        let left_ms = Hour::of_ms(now_ms).next().starts_ms().saturating_sub(now_ms);
        sleep(Duration::from_millis(left_ms).min(write_interval)).await;
        // An hour ends here even if another writer, or a reader, makes this one wait.
        ledger.close();
        // `write` logs its error itself, and the next call writes what this one could not.
        let _ = ledger.write().await;
    }
}

/// Deletes, once an hour, the rows that are older than the retention.
async fn sweep(ledger: Arc<UsageLedger>, retention_days: u32) {
    loop {
        if let Err(error) = ledger.forget(retention_days).await {
            log::warn!("old usage cannot be deleted and is kept for another hour: {error}");
        }
        sleep(SWEEP_INTERVAL).await;
    }
}

impl Handler<WriteUsage> for UsageKeeper {
    type Result = ResponseFuture<Result<(), StoreError>>;

    fn handle(&mut self, _: WriteUsage, _: &mut Self::Context) -> Self::Result {
        let ledger = self.ledger.clone();
        Box::pin(async move { ledger.write().await })
    }
}

impl Handler<AskUsage> for UsageKeeper {
    type Result = ResponseFuture<Result<Report, ReportError>>;

    fn handle(&mut self, AskUsage(question): AskUsage, _: &mut Self::Context) -> Self::Result {
        let ledger = self.ledger.clone();
        Box::pin(async move { ledger.report(&question).await })
    }
}
