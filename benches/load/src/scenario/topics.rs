//! Many topics of one subscriber each.

use std::{
    io,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{
    Scenario,
    stage::{ARRIVE_MAX, WARM_UP, histogram},
};
use crate::{
    FIRST,
    crowd::{Arrival, Crowd},
    floor::Command as Order,
    observe::Watch,
    options::Options,
    payload,
    publisher::Publisher,
    report::{Bound, Figure, Report, say},
    subject::{Kind, Subject, Target},
    wire,
};

/// Events that one request brings.
const BULK: u64 = 100;

/// Requests a second.
const BULKS_PER_S: u32 = 50;

const PAYLOAD_BYTES: usize = 128;

/// 10,000 topics, events round robin.
pub(super) fn many(options: &Options, target: &Target) -> io::Result<Report> {
    let topics = options.connections.unwrap_or(10_000);
    let lasting = options.lasting(5);
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for round in 0..options.rounds(5) {
        say(&format!("round {}: {topics} topics", round + 1));
        base.push(measure(Subject::floor(target)?, topics, lasting)?);
        ours.push(measure(Subject::server(target)?, topics, lasting)?);
    }
    let figure = |name: &str, value: &dyn Fn(&Measured) -> f64, bound| {
        let values = |measured: &[Measured]| measured.iter().map(value).collect();
        Figure::new(name, values(&ours), values(&base), bound)
    };
    let all = || base.iter().chain(&ours);
    Ok(Report {
        scenario: Scenario::TopicsMany.name(),
        base: "floor",
        figures: vec![
            figure("CPU per delivery, us", &Measured::cpu_us, Bound::RatioAtMost(1.8)),
            figure("latency p99, ms", &Measured::p99_ms, Bound::None),
        ],
        remarks: all().filter_map(|measured| measured.remark.clone()).collect(),
        faults: all().filter_map(|measured| measured.fault.clone()).collect(),
    })
}

fn channel(nth: usize) -> String {
    format!("t{nth}")
}

pub(super) struct Measured {
    deliveries: u64,
    cpu: Duration,
    latency_us: Histogram<u64>,
    pub(super) remark: Option<String>,
    pub(super) fault: Option<String>,
}

impl Measured {
    pub(super) fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.deliveries.max(1) as f64
    }

    fn p99_ms(&self) -> f64 {
        self.latency_us.value_at_quantile(0.99) as f64 / 1e3
    }
}

pub(super) fn measure(
    mut subject: Subject,
    topics: usize,
    lasting: Duration,
) -> io::Result<Measured> {
    let mut circle = Circle::gather(&mut subject, topics)?;
    circle.play(WARM_UP)?;
    circle.forget();
    let watch = Watch::begin(circle.subject.observed)?;
    circle.play(lasting)?;
    let seen = watch.seen()?;
    Ok(Measured {
        deliveries: circle.heard(),
        cpu: seen.cpu,
        remark: seen.limit(1).map(|limit| format!("{}: {limit}", circle.subject.who())),
        fault: circle.fault(),
        latency_us: circle.latency_us,
    })
}

/// Topics that take turns.
pub(super) struct Circle<'a> {
    subject: &'a mut Subject,
    publisher: Publisher,
    crowd: Crowd,
    published: u64,
    heard: u64,
    /// How many of them were heard before the measurement.
    heard_before: u64,
    /// The next event of each topic.
    next: Vec<u64>,
    strayed: u64,
    /// When each bulk was published.
    sent: Vec<Instant>,
    latency_us: Histogram<u64>,
}

impl<'a> Circle<'a> {
    /// Connects one client per topic, and joins it.
    ///
    /// # Errors
    /// If one is not let in.
    pub(super) fn gather(subject: &'a mut Subject, topics: usize) -> io::Result<Self> {
        subject.order(&Order::Accept(topics))?;
        let connect = |nth| subject.connect(nth, Some(&subject.join(&channel(nth))));
        let sockets = (0..topics).map(connect).collect::<io::Result<_>>()?;
        subject.obeyed()?;
        subject.order(&Order::Ready(PAYLOAD_BYTES))?;
        subject.obeyed()?;
        let publisher = Publisher::open(subject, 1)?;
        Ok(Self {
            subject,
            publisher,
            crowd: Crowd::new(sockets)?,
            published: 0,
            heard: 0,
            heard_before: 0,
            next: (0..topics as u64).map(|nth| FIRST + nth).collect(),
            strayed: 0,
            sent: Vec::new(),
            latency_us: histogram(),
        })
    }

    /// Deliveries since the last [`Self::forget`].
    pub(super) fn heard(&self) -> u64 {
        self.heard - self.heard_before
    }

    /// Forgets what was measured so far, apart from what came amiss.
    pub(super) fn forget(&mut self) {
        self.heard_before = self.heard;
        self.latency_us.reset();
    }

    /// Publishes for so long, and waits until everything has arrived.
    ///
    /// # Errors
    /// If the subject refuses an event, or is gone.
    pub(super) fn play(&mut self, lasting: Duration) -> io::Result<()> {
        let began = Instant::now();
        let mut due = began;
        while began.elapsed() < lasting {
            if due.elapsed() > Duration::ZERO {
                self.publish()?;
                due += Duration::from_secs(1) / BULKS_PER_S;
            }
            self.listen(due.saturating_duration_since(Instant::now()))?;
        }
        let over = Instant::now();
        while self.heard < self.published && over.elapsed() < ARRIVE_MAX {
            self.listen(Duration::from_millis(100))?;
        }
        self.publisher.settle()
    }

    /// Publishes to the topics that come next.
    fn publish(&mut self) -> io::Result<()> {
        let topics = self.crowd.len() as u64;
        let numbers = self.published..self.published + BULK;
        self.sent.push(Instant::now());
        self.published += BULK;
        if self.subject.kind == Kind::Floor {
            let single = |nth: u64| Order::Single(FIRST + nth, (nth % topics) as usize);
            return self.subject.order_all(&numbers.map(single).collect::<Vec<_>>());
        }
        let event = |nth: u64| {
            let payload = payload(&(FIRST + nth).to_string(), PAYLOAD_BYTES);
            let topic = self.subject.target().topic(&channel((nth % topics) as usize));
            format!(r#"{{"topic":"{topic}","event":"msg","payload":{payload}}}"#)
        };
        let events: Vec<String> = numbers.map(event).collect();
        let request = self.subject.bulk(&format!(r#"{{"events":[{}]}}"#, events.join(",")));
        self.publisher.send(&request)
    }

    fn listen(&mut self, wait_max: Duration) -> io::Result<()> {
        let topics = self.crowd.len() as u64;
        let Self { crowd, heard, next, strayed, sent, latency_us, .. } = self;
        crowd.listen(wait_max, |Arrival { member, at, payload }| {
            let Some(number) = wire::sequence(payload) else { return };
            *heard += 1;
            *strayed += u64::from(number != next[member]);
            next[member] = number + topics;
            let bulk = number.checked_sub(FIRST).map_or(usize::MAX, |nth| (nth / BULK) as usize);
            let Some(sent) = sent.get(bulk) else { return };
            let latency = at.saturating_duration_since(*sent).as_micros();
            latency_us.saturating_record(u64::try_from(latency).unwrap_or(u64::MAX));
        })
    }

    /// The faults.
    pub(super) fn fault(&self) -> Option<String> {
        let (who, missing) = (self.subject.who(), self.published.saturating_sub(self.heard));
        let (strayed, lost) = (self.strayed, self.crowd.lost());
        let is_wrong = missing > 0 || strayed > 0 || lost > 0;
        is_wrong.then(|| {
            format!(
                "{who}: {missing} deliveries are missing, {strayed} came amiss, \
                 {lost} subscribers were hung up on"
            )
        })
    }
}
