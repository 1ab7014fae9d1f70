//! The orderly shutdown: accepted publications are delivered, and sessions are closed in batches, so that
//! their clients do not all reconnect at the same moment. Meanwhile the retained publications are saved.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use actix::Addr;
use log::{error, info, warn};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use super::{archive_file::ArchiveFile, threads::Threads};
use crate::{
    app::registry::{AppRegistry, WriteUses},
    broker::Topics,
    session::worker::SessionCounter,
    usage::keeper::{UsageKeeper, WriteUsage},
};

/// The interval at which a shutdown checks whether the sessions have ended.
const LOOK: Duration = Duration::from_millis(20);

/// The time that a hurried shutdown may still take: enough to send the close frames, and longer
/// than a long-poll session waits for its client's last fetch.
const HURRIED_MAX: Duration = Duration::from_secs(3);

/// The time that a thread may take to receive the command to end its sessions, so that the other
/// threads do not wait for it.
const THREAD_WAIT_MAX: Duration = Duration::from_secs(1);

/// The fraction of the time limit within which the retained publications must be saved.
const SAVE_SHARE: (u32, u32) = (9, 10);

/// The signals that end the process.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        let (terminate, interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt })
    }

    /// Waits for the next signal, and returns its name.
    pub(super) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The rate at which sessions are closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClosingPace {
    /// The sessions of one batch, over all threads.
    pub(super) batch_sessions: usize,
    /// The time from one batch to the next.
    pub(super) interval: Duration,
}

impl ClosingPace {
    /// The number of open sessions to close now, if all are to be closed within `left`.
    fn batch(self, open: usize, left: Duration) -> usize {
        // The number of batches in the remaining time, including this one.
        let turns = 1 + left.as_nanos() / self.interval.as_nanos().max(1);
        let needed = open.div_ceil(usize::try_from(turns).unwrap_or(usize::MAX));
        self.batch_sessions.max(needed)
    }
}

/// The parts of the server that a shutdown needs.
pub(super) struct Shutdown {
    pub(super) topics: Topics,
    pub(super) sessions: SessionCounter,
    pub(super) draining: Arc<AtomicBool>,
    pub(super) pace: ClosingPace,
    pub(super) timeout: Duration,
    /// The file in which the retained publications are saved, if they are.
    pub(super) archive: Option<Arc<ArchiveFile>>,
    /// The registry, which writes the times at which key pairs were last used.
    pub(super) registry: Addr<AppRegistry>,
    /// The keeper, which writes the usage of apps.
    pub(super) usage: Addr<UsageKeeper>,
}

impl Shutdown {
    /// Stops the threads in order, within the time limit. A second signal closes the remaining sessions at once,
    /// and a third one ends the shutdown.
    ///
    /// # Errors
    /// The reason why the shutdown ended before all threads had stopped.
    pub(super) async fn stop(
        &self,
        threads: Threads,
        signals: &mut Signals,
    ) -> Result<(), &'static str> {
        let deadline = Instant::now() + self.timeout;
        let hurry = Notify::new();
        let end_sessions = async {
            self.drain(deadline, &hurry).await;
            threads.finish().await;
        };
        let in_order = async {
            tokio::join!(end_sessions, self.save(deadline));
            tokio::join!(self.write_uses(deadline), self.write_usage(deadline));
            self.topics.leave_nodes(deadline.saturating_duration_since(Instant::now())).await;
        };
        tokio::pin!(in_order);
        tokio::select! {
            () = &mut in_order => return Ok(()),
            () = sleep_until(deadline.into()) => return Err("some requests did not end in time"),
            name = signals.next() => warn!("{name} again: closing the remaining sessions at once"),
        }
        hurry.notify_one();
        tokio::select! {
            () = in_order => Ok(()),
            () = sleep(HURRIED_MAX) => Err("some requests did not end at once"),
            () = sleep_until(deadline.into()) => Err("some requests did not end in time"),
            _ = signals.next() => Err("a third signal"),
        }
    }

    /// Stops accepting publications, delivers the accepted ones, and ends the sessions.
    async fn drain(&self, deadline: Instant, hurry: &Notify) {
        let left = || deadline.saturating_duration_since(Instant::now());
        self.draining.store(true, SeqCst);
        self.sessions.close();
        let in_turn = async {
            self.topics.finish(left() / 2).await;
            // A quarter of the remaining time is kept for clients to close, and for requests to end.
            self.end_in_batches(left() * 3 / 4).await;
        };
        tokio::select! {
            () = in_turn => {}
            () = hurry.notified() => self.topics.finish(Duration::ZERO).await,
        }
        // The remaining sessions, and those that have begun meanwhile, are ended.
        self.topics.end_all(left() / 2).await;
        match timeout(left(), self.until_empty()).await {
            Ok(()) => info!("all sessions are closed"),
            Err(_) => warn!("{} sessions did not close in time", self.sessions.open()),
        }
    }

    /// Saves the retained publications, while sessions are closed. It is cancelled a little before the time limit
    /// of the shutdown.
    async fn save(&self, deadline: Instant) {
        let Some(archive) = &self.archive else { return };
        let wait_max =
            deadline.saturating_duration_since(Instant::now()) * SAVE_SHARE.0 / SAVE_SHARE.1;
        // A cancelled save logs that itself.
        let _ = timeout(wait_max, archive.clone().save(self.topics.clone())).await;
    }

    /// Writes the times at which key pairs were last used. If the database does not answer in time, the uses of the
    /// last minute are lost.
    async fn write_uses(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        // The registry logs a failure, and a registry that has died was reported before.
        let _ = timeout(left, self.registry.send(WriteUses)).await;
    }

    /// Writes the usage of apps since the last write. If the database does not answer in time, this usage is
    /// lost.
    pub(super) async fn write_usage(&self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout(left, self.usage.send(WriteUsage)).await {
            Ok(Ok(Ok(()))) => {}
            _ => error!(
                "the usage of apps since the last write is lost: the database did not answer in time"
            ),
        }
    }

    /// Waits until no session is open.
    async fn until_empty(&self) {
        let mut look = interval(LOOK);
        while self.sessions.open() > 0 {
            look.tick().await;
        }
    }

    /// Ends the sessions of all threads batch by batch, within `wait_max`. Resolves early when all have ended.
    async fn end_in_batches(&self, wait_max: Duration) {
        let until = Instant::now() + wait_max;
        let mut turn = interval(self.pace.interval);
        // After a late batch, the next one waits for the whole interval.
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = self.sessions.open();
        while open > 0 {
            tokio::select! {
                _ = turn.tick() => {}
                () = self.until_empty() => return,
            }
            let left = until.saturating_duration_since(Instant::now());
            let batch = self.pace.batch(open, left);
            open = self.topics.end_some(batch, left.min(THREAD_WAIT_MAX)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_only_where_the_pace_would_exceed_the_limit() {
        let pace = ClosingPace { batch_sessions: 10, interval: Duration::from_millis(100) };
        for (open, left_ms, expected) in [
            (0, 1_000, 10),
            (5, 0, 10),
            (110, 1_000, 10),
            (111, 1_000, 11),
            (1_000, 1_000, 91),
            (1_000, 150, 500),
            (1_000, 99, 1_000),
            (1_000, 0, 1_000),
            (1_000, 3_600_000, 10),
        ] {
            let batch = pace.batch(open, Duration::from_millis(left_ms));
            assert_eq!(batch, expected, "{open} within {left_ms} ms");
        }
    }

    #[test]
    fn at_this_pace_all_are_closed_in_time() {
        for (open, batch_sessions, interval_ms, limit_ms) in
            [(1_000, 1, 100, 3_000), (7, 3, 250, 250), (50_000, 1_000, 100, 2_000), (9, 9, 1, 0)]
        {
            let pace = ClosingPace { batch_sessions, interval: Duration::from_millis(interval_ms) };
            let (mut left, mut at_ms) = (open, 0);
            while left > 0 {
                assert!(at_ms <= limit_ms, "{left} of {open} are left after {at_ms} ms");
                left -= pace.batch(left, Duration::from_millis(limit_ms - at_ms)).min(left);
                at_ms += interval_ms;
            }
        }
    }
}
