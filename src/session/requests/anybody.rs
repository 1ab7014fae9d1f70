//! Requests that need no authentication: their rate is limited for each connection, and they are ended early
//! if other connections need the room.

use std::{future::Future, time::Instant};

use actix_web::HttpRequest;
use tokio::time::sleep;

use super::{turn::Turn, waiting::Parked};
use crate::{metrics::labels::Limit, session::worker::Worker};

/// Waits until the connection of a request is within its rate, which is the rate of a session's frames.
///
/// Requests are delayed and not refused, because a proxy sends the requests of many clients over one
/// connection. A request waits only until it is within the rate.
pub async fn in_its_time(request: &HttpRequest, worker: &Worker) {
    let Some(turn) = request.conn_data::<Turn>() else { return };
    let rate = worker.limits.frames_per_second_max;
    while let Err(wait) = turn.note_asked(rate, worker.seconds_at(Instant::now())) {
        worker.metrics.hit(Limit::FramesPerSecond);
        sleep(wait).await;
    }
}

/// Waits for a future on behalf of a request; `None` if a new connection needs the room before it resolves.
/// Then the future is dropped, whatever it has done, and the answer should be the last one of the connection.
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
