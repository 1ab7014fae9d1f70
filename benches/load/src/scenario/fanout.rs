//! One topic, many subscribers.

use std::{
    io,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::Scenario;
use crate::{
    FIRST,
    crowd::{Arrival, Crowd},
    floor::Command as Order,
    observe::Observed,
    options::Options,
    publisher::Publisher,
    report::{Bound, Figure, Report, say},
    subject::{Kind, Subject, Target, join_shared},
    wire,
};

/// How long whatever is under way at the end may take to arrive.
const ARRIVE_MAX: Duration = Duration::from_secs(10);

/// How long everything is warmed up for.
const WARM_UP: Duration = Duration::from_millis(500);

/// When the next event is due.
#[derive(Debug, Clone, Copy)]
pub(super) enum Pace {
    /// So many a second, whatever arrives.
    PerSecond(u32),
    /// As soon as fewer than so many are under way.
    Window(usize),
}

impl Pace {
    /// Connections to publish over. Only what comes over one has an order of its own.
    fn publishers(self) -> usize {
        match self {
            Self::PerSecond(_) => 1,
            Self::Window(events) => events,
        }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) subscribers: usize,
    pub(super) padding_bytes: usize,
    pub(super) pace: Pace,
    pub(super) lasting: Duration,
}

/// What came of it.
pub(super) struct Measured {
    deliveries: u64,
    cpu: Duration,
    elapsed: Duration,
    latency_us: Histogram<u64>,
    resident_bytes: u64,
    remarks: Vec<String>,
}

impl Measured {
    fn cpu_per_delivery_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.deliveries.max(1) as f64
    }

    fn deliveries_per_s(&self) -> f64 {
        self.deliveries as f64 / self.elapsed.as_secs_f64()
    }

    fn latency_ms(&self, quantile: f64) -> f64 {
        self.latency_us.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// 1,000 subscribers, 50 events a second of 128 bytes.
pub(super) fn steady(options: &Options, target: &Target) -> io::Result<Report> {
    let plan = plan(options, 1_000, 128, Pace::PerSecond(50));
    let [server, floor] = take_turns(options, target, plan)?;
    Ok(report(Scenario::FanoutSteady, &server, &floor, Bound::RatioAtMost(1.25), Bound::None))
}

/// The same, with eight events under way.
pub(super) fn saturated(options: &Options, target: &Target) -> io::Result<Report> {
    let plan = plan(options, 1_000, 128, Pace::Window(8));
    let [server, floor] = take_turns(options, target, plan)?;
    let scenario = Scenario::FanoutSaturated;
    Ok(report(scenario, &server, &floor, Bound::RatioAtMost(0.4), Bound::RatioAtLeast(2.0)))
}

/// 10,000 subscribers, five events a second; compared with what 1,000 cost.
pub(super) fn large(options: &Options, target: &Target) -> io::Result<Report> {
    let large = plan(options, 10_000, 128, Pace::PerSecond(5));
    let small = Plan { subscribers: 1_000, pace: Pace::PerSecond(50), ..large };
    let (mut many, mut few) = (Vec::new(), Vec::new());
    for round in 0..options.rounds(3) {
        say(&format!("round {}: {} and 1,000 subscribers", round + 1, large.subscribers));
        few.push(measure(Subject::server(target)?, small)?);
        many.push(measure(Subject::server(target)?, large)?);
    }
    let mut report =
        report(Scenario::FanoutLarge, &many, &few, Bound::RatioAtMost(1.2), Bound::None);
    report.base = "at 1,000";
    Ok(report)
}

/// 1,000 subscribers, 10 KB of payload.
pub(super) fn with_payload(options: &Options, target: &Target) -> io::Result<Report> {
    let plan = plan(options, 1_000, 10 * 1024, Pace::PerSecond(20));
    let [server, floor] = take_turns(options, target, plan)?;
    Ok(report(Scenario::FanoutPayload, &server, &floor, Bound::RatioAtMost(1.25), Bound::None))
}

fn plan(options: &Options, subscribers: usize, padding_bytes: usize, pace: Pace) -> Plan {
    Plan {
        subscribers: options.connections.unwrap_or(subscribers),
        padding_bytes,
        pace,
        lasting: options.lasting(5),
    }
}

/// The floor, the server, the floor, the server, …
fn take_turns(options: &Options, target: &Target, plan: Plan) -> io::Result<[Vec<Measured>; 2]> {
    let (mut server, mut floor) = (Vec::new(), Vec::new());
    for round in 0..options.rounds(5) {
        say(&format!("round {}: {} subscribers", round + 1, plan.subscribers));
        floor.push(measure(Subject::floor(target)?, plan)?);
        server.push(measure(Subject::server(target)?, plan)?);
    }
    Ok([server, floor])
}

fn report(
    scenario: Scenario,
    ours: &[Measured],
    base: &[Measured],
    cpu_bound: Bound,
    rate_bound: Bound,
) -> Report {
    let figure = |name: &str, value: &dyn Fn(&Measured) -> f64, bound| Figure {
        name: name.to_owned(),
        ours: ours.iter().map(value).collect(),
        base: base.iter().map(value).collect(),
        bound,
    };
    let remarks = ours.iter().chain(base).flat_map(|measured| measured.remarks.clone()).collect();
    Report {
        scenario: scenario.name(),
        base: "floor",
        figures: vec![
            figure("CPU per delivery, us", &Measured::cpu_per_delivery_us, cpu_bound),
            figure("deliveries per second", &Measured::deliveries_per_s, rate_bound),
            figure("latency p50, ms", &|measured| measured.latency_ms(0.5), Bound::None),
            figure("latency p99, ms", &|measured| measured.latency_ms(0.99), Bound::None),
            figure(
                "resident memory, MB",
                &|measured| measured.resident_bytes as f64 / 1e6,
                Bound::None,
            ),
        ],
        remarks,
    }
}

/// Connects everybody, warms up, measures.
pub(super) fn measure(mut subject: Subject, plan: Plan) -> io::Result<Measured> {
    let crowd = gather(&mut subject, plan)?;
    let publisher = Publisher::open(&subject, plan.pace.publishers())?;
    let mut stage = Stage::new(subject, crowd, publisher, plan);
    stage.play(WARM_UP)?;
    stage.forget();
    let own = Observed { pid: std::process::id() };
    let (began, cpu_before, own_before) =
        (Instant::now(), stage.subject.observed.cpu()?, own.cpu()?);
    stage.play(plan.lasting)?;
    let elapsed = began.elapsed();
    let cpu = stage.subject.observed.cpu()?.saturating_sub(cpu_before);
    let own_share = (own.cpu()? - own_before).as_secs_f64() / elapsed.as_secs_f64();
    Ok(Measured {
        deliveries: stage.heard,
        cpu,
        elapsed,
        resident_bytes: stage.subject.observed.resident_bytes()?,
        remarks: stage.remarks(own_share),
        latency_us: stage.latency_us,
    })
}

fn gather(subject: &mut Subject, plan: Plan) -> io::Result<Crowd> {
    subject.order(&Order::Accept(plan.subscribers))?;
    let join = join_shared();
    let connect = |nth| subject.connect(nth, Some(&join));
    let sockets = (0..plan.subscribers).map(connect).collect::<io::Result<_>>()?;
    subject.obeyed()?;
    subject.order(&Order::Ready(plan.padding_bytes))?;
    subject.obeyed()?;
    Crowd::new(sockets)
}

/// A subject with its subscribers and its publisher, while events are under way.
struct Stage {
    subject: Subject,
    crowd: Crowd,
    publisher: Publisher,
    plan: Plan,
    next: u64,
    /// When each event was published, and by how many it has not been heard.
    events: Vec<(Instant, usize)>,
    first: u64,
    under_way: usize,
    /// The last event each subscriber heard.
    last: Vec<u64>,
    heard: u64,
    twice: u64,
    out_of_order: u64,
    latency_us: Histogram<u64>,
}

impl Stage {
    fn new(subject: Subject, crowd: Crowd, publisher: Publisher, plan: Plan) -> Self {
        let last = vec![0; crowd.len()];
        Self {
            subject,
            crowd,
            publisher,
            plan,
            next: FIRST,
            events: Vec::new(),
            first: FIRST,
            under_way: 0,
            last,
            heard: 0,
            twice: 0,
            out_of_order: 0,
            latency_us: histogram(),
        }
    }

    /// Forgets what was measured so far.
    fn forget(&mut self) {
        self.first = self.next;
        self.events.clear();
        self.heard = 0;
        self.latency_us = histogram();
    }

    /// Publishes for so long, and waits until everything has arrived.
    fn play(&mut self, lasting: Duration) -> io::Result<()> {
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
                Pace::Window(events) => {
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
        self.publisher.publish(&mut self.subject, self.next, self.plan.padding_bytes)?;
        self.next += 1;
        Ok(())
    }

    fn listen(&mut self, wait_max: Duration) -> io::Result<()> {
        let has_order = self.plan.pace.publishers() == 1;
        let Self { crowd, events, first, last, heard, .. } = self;
        let Self { twice, out_of_order, under_way, latency_us, .. } = self;
        crowd.listen(wait_max, |Arrival { member, at, payload }| {
            let Some(number) = wire::sequence(payload) else { return };
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

    /// What was not as it must be.
    fn remarks(&self, own_share: f64) -> Vec<String> {
        let who = match self.subject.kind {
            Kind::Floor => "floor",
            Kind::Server => "server",
        };
        let missing: usize = self.events.iter().map(|(_, missing)| missing).sum();
        let lost = self.crowd.lost();
        [
            (missing > 0, format!("{who}: {missing} deliveries are missing")),
            (
                self.out_of_order > 0,
                format!("{who}: {} deliveries are out of order", self.out_of_order),
            ),
            (self.twice > 0, format!("{who}: {} deliveries came twice", self.twice)),
            (lost > 0, format!("{who}: {lost} subscribers were hung up on")),
            (own_share > 0.95, format!("{who}: this load generator is the limit, not the server")),
        ]
        .into_iter()
        .filter_map(|(is_so, remark)| is_so.then_some(remark))
        .collect()
    }
}

/// From a microsecond to a minute, to three digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("these bounds are in order")
}
