//! A subject, its subscribers and its publisher, while events are under way.

use std::{
    io::{self, Write},
    net::TcpStream,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use crate::{
    CHANNEL, FIRST,
    crowd::{Arrival, Crowd},
    floor::Command as Order,
    observe::{Seen, Watch},
    publisher::{Publisher, read_answer},
    subject::Subject,
};

/// How long whatever is under way at the end may take to arrive.
pub(super) const ARRIVE_MAX: Duration = Duration::from_secs(10);

/// How long everything is warmed up for.
pub(super) const WARM_UP: Duration = Duration::from_millis(500);

/// When the next event is due.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// This number of events a second, whatever arrives.
    PerSecond(u32),
    /// As soon as fewer than this number are under way.
    Window(usize),
    /// The same over one connection, which brings each event after the answer to the one before.
    OneByOne(usize),
}

impl Pace {
    /// Connections to publish over. Only what comes over one has an order of its own.
    fn publishers(self) -> usize {
        match self {
            Self::PerSecond(_) | Self::OneByOne(_) => 1,
            Self::Window(events) => events,
        }
    }
}

/// The plan of a measurement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) subscribers: usize,
    pub(super) payload_bytes: usize,
    pub(super) pace: Pace,
    pub(super) lasting: Duration,
}

/// The result of a measurement.
pub(super) struct Measured {
    deliveries: u64,
    seen: Seen,
    latency_us: Histogram<u64>,
    pub(super) resident_bytes: u64,
    pub(super) remarks: Vec<String>,
    pub(super) faults: Vec<String>,
}

impl Measured {
    pub(super) fn cpu_per_delivery_us(&self) -> f64 {
        self.seen.cpu.as_secs_f64() * 1e6 / self.deliveries.max(1) as f64
    }

    pub(super) fn deliveries_per_s(&self) -> f64 {
        self.deliveries as f64 / self.seen.elapsed.as_secs_f64()
    }

    /// How many cores the load generator kept busy.
    pub(super) fn own_cores(&self) -> f64 {
        self.seen.own_cores()
    }

    pub(super) fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Connects everybody, warms up, measures.
pub(super) fn measure(mut subject: Subject, plan: Plan) -> io::Result<Measured> {
    let crowd = gather(&mut subject, plan)?;
    play(&mut subject, crowd, plan)
}

/// Warms up, and measures with a crowd that is there.
pub(super) fn play(subject: &mut Subject, crowd: Crowd, plan: Plan) -> io::Result<Measured> {
    play_over(subject, crowd, plan, None)
}

/// The same, with events that come one by one over a connection which is given.
pub(super) fn play_over(
    subject: &mut Subject,
    crowd: Crowd,
    plan: Plan,
    connection: Option<TcpStream>,
) -> io::Result<Measured> {
    let mut stage = Stage::new(subject, crowd, connection, plan)?;
    stage.play(WARM_UP)?;
    stage.forget();
    let watch = Watch::begin(stage.subject.observed)?;
    stage.play(plan.lasting)?;
    let seen = watch.seen()?;
    if let Some(single) = stage.single.take() {
        single.settle()?;
    }
    Ok(Measured {
        deliveries: stage.heard,
        seen,
        resident_bytes: stage.subject.observed.resident_bytes()?,
        remarks: stage.remarks(seen),
        faults: stage.faults(),
        latency_us: stage.latency_us,
    })
}

/// Connects everybody.
pub(super) fn gather(subject: &mut Subject, plan: Plan) -> io::Result<Crowd> {
    subject.order(&Order::Accept(plan.subscribers))?;
    let join = subject.join(CHANNEL);
    let connect = |nth| subject.connect(nth, Some(&join));
    let sockets = (0..plan.subscribers).map(connect).collect::<io::Result<_>>()?;
    subject.obeyed()?;
    subject.order(&Order::Ready(plan.payload_bytes))?;
    subject.obeyed()?;
    Crowd::new(sockets)
}

/// A subject with its subscribers and its publisher, while events are under way.
pub(super) struct Stage<'a> {
    subject: &'a mut Subject,
    crowd: Crowd,
    publisher: Publisher,
    single: Option<SinglePublisher>,
    plan: Plan,
    next: u64,
    /// When each event was published, and by how many it has not been heard.
    events: Vec<(Instant, usize)>,
    first: u64,
    /// Deliveries that were missing when their events were forgotten.
    missing_before: usize,
    under_way: usize,
    /// The last event each subscriber heard.
    last: Vec<u64>,
    heard: u64,
    twice: u64,
    out_of_order: u64,
    latency_us: Histogram<u64>,
}

/// The connection over which events come one by one, each after the answer to the one before. A thread
/// of its own waits for the answers, so that nobody who listens does.
struct SinglePublisher {
    requests: mpsc::Sender<Vec<u8>>,
    sending: JoinHandle<io::Result<()>>,
}

impl SinglePublisher {
    fn open(mut socket: TcpStream) -> Self {
        let (requests, requested) = mpsc::channel::<Vec<u8>>();
        let sending = thread::spawn(move || {
            for request in requested {
                socket.write_all(&request)?;
                read_answer(&mut socket)?;
            }
            Ok(())
        });
        Self { requests, sending }
    }

    fn send(&self, request: Vec<u8>) -> io::Result<()> {
        self.requests.send(request).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Waits for the answers that are owed.
    fn settle(self) -> io::Result<()> {
        drop(self.requests);
        self.sending.join().map_err(|_| io::Error::other("the publisher has panicked"))?
    }
}

impl<'a> Stage<'a> {
    /// Opens the publisher's connections, unless one is given.
    ///
    /// # Errors
    /// If the subject does not take them.
    pub(super) fn new(
        subject: &'a mut Subject,
        crowd: Crowd,
        connection: Option<TcpStream>,
        plan: Plan,
    ) -> io::Result<Self> {
        let (last, single) = (vec![0; crowd.len()], connection.map(SinglePublisher::open));
        let publisher = match single {
            Some(_) => Publisher::open(subject, 0)?,
            None => Publisher::open(subject, plan.pace.publishers())?,
        };
        Ok(Self {
            subject,
            crowd,
            publisher,
            single,
            plan,
            next: FIRST,
            events: Vec::new(),
            first: FIRST,
            missing_before: 0,
            under_way: 0,
            last,
            heard: 0,
            twice: 0,
            out_of_order: 0,
            latency_us: histogram(),
        })
    }

    /// Deliveries since the last [`Self::forget`].
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    /// Forgets what was measured so far, apart from what came amiss.
    pub(super) fn forget(&mut self) {
        self.missing_before = self.missing();
        self.under_way = 0;
        self.first = self.next;
        self.events.clear();
        self.heard = 0;
        self.latency_us = histogram();
    }

    /// Publishes for so long, and waits until everything has arrived.
    ///
    /// # Errors
    /// If the subject refuses an event, or is gone.
    pub(super) fn play(&mut self, lasting: Duration) -> io::Result<()> {
        let began = Instant::now();
        let mut due = began;
        while began.elapsed() < lasting {
            let wait = match self.plan.pace {
                Pace::PerSecond(events) => {
                    if due.elapsed() > Duration::ZERO {
                        self.publish()?;
                        due += Duration::from_secs(1) / events.max(1);
                    }
                    due.saturating_duration_since(Instant::now())
                }
                Pace::Window(events) | Pace::OneByOne(events) => {
                    while self.under_way < events {
                        self.publish()?;
                    }
                    Duration::from_millis(100)
                }
            };
            self.listen(wait)?;
        }
        let over = Instant::now();
        while self.under_way > 0 && over.elapsed() < ARRIVE_MAX && self.crowd.lost() == 0 {
            self.listen(Duration::from_millis(100))?;
        }
        self.publisher.settle()
    }

    fn publish(&mut self) -> io::Result<()> {
        self.events.push((Instant::now(), self.crowd.len()));
        self.under_way += 1;
        let (number, payload_bytes) = (self.next, self.plan.payload_bytes);
        match &self.single {
            Some(single) => single.send(self.subject.numbered_trigger(number, payload_bytes))?,
            None => self.publisher.publish(self.subject, number, payload_bytes)?,
        }
        self.next += 1;
        Ok(())
    }

    fn listen(&mut self, wait_max: Duration) -> io::Result<()> {
        let has_order = self.plan.pace.publishers() == 1;
        let Self { crowd, events, first, last, heard, .. } = self;
        let Self { twice, out_of_order, under_way, latency_us, .. } = self;
        let protocol = self.subject.target().protocol;
        crowd.listen(wait_max, |Arrival { member, at, payload }| {
            let Some(number) = protocol.sequence(payload) else { return };
            let nth = number.checked_sub(*first).and_then(|nth| usize::try_from(nth).ok());
            let Some((sent, missing)) = nth.and_then(|nth| events.get_mut(nth)) else { return };
            *heard += 1;
            let Some(left) = missing.checked_sub(1) else {
                *twice += 1;
                return;
            };
            *missing = left;
            *under_way -= usize::from(left == 0);
            *out_of_order += u64::from(has_order && last[member] >= number);
            last[member] = number;
            let latency = at.saturating_duration_since(*sent).as_micros();
            latency_us.saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
        })
    }

    /// Remarks for the reader of the report, such as that the generator was the limit.
    fn remarks(&self, seen: Seen) -> Vec<String> {
        seen.limit(1).map(|limit| format!("{}: {limit}", self.subject.who())).into_iter().collect()
    }

    fn missing(&self) -> usize {
        self.missing_before + self.events.iter().map(|(_, missing)| missing).sum::<usize>()
    }

    /// The faults.
    pub(super) fn faults(&self) -> Vec<String> {
        let (who, missing) = (self.subject.who(), self.missing());
        let lost = self.crowd.lost();
        [
            (missing > 0, format!("{who}: {missing} deliveries are missing")),
            (
                self.out_of_order > 0,
                format!("{who}: {} deliveries are out of order", self.out_of_order),
            ),
            (self.twice > 0, format!("{who}: {} deliveries came twice", self.twice)),
            (lost > 0, format!("{who}: {lost} subscribers were hung up on")),
        ]
        .into_iter()
        .filter_map(|(is_so, fault)| is_so.then_some(fault))
        .collect()
    }
}

/// From a microsecond to a minute, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("these bounds are in order")
}
