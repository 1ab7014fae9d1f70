//! Requests that need no authentication: their rate is limited for each connection, and they give
//! way to others.

use std::{future::Future, time::Instant};

use actix_web::HttpRequest;
use tokio::time::sleep;

use super::{turn::Turn, waiting::Parked};
use crate::{metrics::labels::Limit, session::worker::Worker};

/// Waits until the connection of a request is within its rate, that of a session's frames.
///
/// A proxy sends the requests of many clients over one connection. Nothing is refused here,
/// therefore, and a request waits only until the next one may come.
pub async fn in_its_time(request: &HttpRequest, worker: &Worker) {
    let Some(turn) = request.conn_data::<Turn>() else { return };
    let rate = worker.limits.frames_per_second_max;
    while let Err(wait) = turn.note_asked(rate, worker.seconds_at(Instant::now())) {
        worker.metrics.hit(Limit::FramesPerSecond);
        sleep(wait).await;
    }
}

/// Waits for something on behalf of a request; `None` if its connection has to give way to a new one
/// before it comes. The answer should then be the last one of the connection.
pub async fn unless_in_the_way<T>(
    request: &HttpRequest,
    waits_for: impl Future<Output = T>,
) -> Option<T> {
    let Some(turn) = request.conn_data::<Turn>() else { return Some(waits_for.await) };
    let mut parked = Parked::among(turn.waiting());
    tokio::select! {
        biased;
        done = waits_for => Some(done),
        () = parked.give_way() => None,
    }
}
