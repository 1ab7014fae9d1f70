//! The quiet app: one subscriber, and one trigger at a time.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::super::stage::{ARRIVE_MAX, histogram};
use crate::{
    CHANNEL, FIRST,
    crowd::{Crowd, Cut},
    schedule,
    subject::Subject,
    trigger_body, wire,
};

/// The app, which is created for the measurement.
const SLUG: &str = "quiet-app";

/// Bytes of a payload.
const PAYLOAD_BYTES: usize = 128;

/// The pause between an arrival and the next trigger.
const PAUSE: Duration = Duration::from_millis(2);

/// Where its clients connect from: beyond the ports of the busy app.
const FIRST_CLIENT: usize = 40_000;

/// The subscriber, as the crowd numbers it; the publisher comes after it.
const SUBSCRIBER: usize = 0;

const PUBLISHER: usize = 1;

/// A quiet app at work, in a thread of its own.
pub(super) struct Quiet {
    stops: Arc<AtomicBool>,
    work: JoinHandle<io::Result<Heard>>,
}

/// Its measurements.
pub(super) struct Heard {
    latencies: Vec<(Instant, Duration)>,
    /// Whether it never waits for the processor while the server has it.
    pub(super) is_prompt: bool,
    /// The faults, which no busy app may cause.
    pub(super) faults: Vec<String>,
}

impl Quiet {
    /// Creates the app, connects, and begins to measure.
    ///
    /// # Errors
    /// If the server does not let it in.
    pub(super) fn start(subject: &Subject) -> io::Result<Self> {
        let app = subject.app(SLUG, "", FIRST_CLIENT)?;
        let mut crowd = Crowd::empty()?;
        crowd.add(app.connect(0, Some(&app.join(CHANNEL)))?, Cut::Frames)?;
        crowd.add(app.dial(1, None)?, Cut::Answers)?;
        let requests = (FIRST..)
            .map(move |number| (number, app.trigger(&trigger_body(number, PAYLOAD_BYTES))));
        let stops = Arc::new(AtomicBool::new(false));
        let is_over = stops.clone();
        let work = thread::spawn(move || {
            let mut heard = Heard {
                latencies: Vec::new(),
                faults: Vec::new(),
                is_prompt: schedule::at_once().is_ok(),
            };
            for (number, request) in requests {
                if is_over.load(Relaxed) {
                    break;
                }
                heard.trigger(&mut crowd, number, &request)?;
                thread::sleep(PAUSE);
            }
            Ok(heard)
        });
        Ok(Self { stops, work })
    }

    /// Waits for what is under way, and stops.
    ///
    /// # Errors
    /// If the server hung up on it.
    pub(super) fn stop(self) -> io::Result<Heard> {
        self.stops.store(true, Relaxed);
        self.work.join().map_err(|_| io::Error::other("the quiet app panicked"))?
    }
}

impl Heard {
    /// The latencies of the events that were triggered from one moment to another, in microseconds.
    pub(super) fn between(&self, from: Instant, to: Instant) -> Histogram<u64> {
        let mut latencies = histogram();
        for (_, latency) in self.latencies.iter().filter(|(at, _)| (from..to).contains(at)) {
            latencies.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        }
        latencies
    }

    /// Triggers one event, and waits for its arrival and for the answer.
    fn trigger(&mut self, crowd: &mut Crowd, number: u64, request: &[u8]) -> io::Result<()> {
        let triggered = Instant::now();
        crowd.write(PUBLISHER, request)?;
        let (mut arrived, mut is_answered, mut refusal) = (None, false, None);
        while arrived.is_none() || !is_answered {
            crowd.listen(Duration::from_millis(100), |arrival| match arrival.member {
                SUBSCRIBER if wire::sequence(arrival.payload) == Some(number) => {
                    arrived = Some(arrival.at);
                }
                PUBLISHER => {
                    is_answered = true;
                    if !arrival.payload.starts_with(b"HTTP/1.1 200") {
                        let answer = String::from_utf8_lossy(arrival.payload);
                        refusal = answer.lines().next().map(str::to_owned);
                    }
                }
                _ => {}
            })?;
            let is_over = refusal.is_some() || triggered.elapsed() > ARRIVE_MAX;
            if is_over || crowd.lost() > 0 {
                break;
            }
        }
        if crowd.lost() > 0 {
            return Err(io::Error::other("the server hung up on the quiet app"));
        }
        let latency = arrived.map_or(ARRIVE_MAX, |at| at.saturating_duration_since(triggered));
        self.latencies.push((triggered, latency));
        match (refusal, arrived) {
            (Some(answer), _) => self.faults.push(format!("a trigger was answered {answer}")),
            (None, None) => self.faults.push("a delivery is missing".to_owned()),
            _ => {}
        }
        Ok(())
    }
}
