//! Several servers that share a Redis, beside one alone, and a Redis that does nothing else than `PUBLISH`.
//!
//! Each part of [`PARTS`] starts a Redis and the servers for each of its measurements. [`cluster`] starts them,
//! [`publishers`] triggers on many connections at once, [`publish`] is the Redis that they are compared with, and
//! [`restart`] has a Redis go away and come back.

mod cluster;
mod latency;
mod publish;
mod publishers;
mod restart;

use std::{io, thread, time::Duration};

use super::{
    Scenario,
    fanout::plan,
    idle,
    stage::{self, Pace, Plan, WARM_UP},
};
use crate::{
    CHANNEL, FIRST,
    observe::{Observed, Seen, Watch},
    options::{Options, chosen},
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
};
use cluster::Cluster;
use publish::Publishing;
use publishers::{Publisher, Publishers};

/// Nodes of the parts that compare with `PUBLISH`: as many connections listen there.
const NODES: usize = 2;

/// Bytes of the payload of an event.
const PAYLOAD_BYTES: usize = 128;

/// Publications of a bulk of the part `throughput`, and `PUBLISH` commands that are sent together.
const AT_ONCE: usize = 20;

/// A part that can be run alone.
struct Part {
    name: &'static str,
    measure: fn(&Options, &Target, &mut Report) -> io::Result<()>,
}

const PARTS: [Part; 7] = [
    Part { name: "deliveries", measure: deliveries },
    Part { name: "publications", measure: publications },
    Part { name: "redis", measure: redis },
    Part { name: "throughput", measure: throughput },
    Part { name: "latency", measure: latency::latency },
    Part { name: "restart", measure: restart::restart },
    Part { name: "memory", measure: memory },
];

/// All parts, or those that the options name, one after another.
pub(super) fn nodes(options: &Options, target: &Target) -> io::Result<Report> {
    if target.running.is_some() {
        return Err(io::Error::other("nodes starts its own servers: leave --address out"));
    }
    let mut report = Report {
        scenario: Scenario::Nodes.name(),
        base: "base",
        figures: Vec::new(),
        remarks: Vec::new(),
        faults: Vec::new(),
    };
    for part in chosen("part", &options.part, &PARTS, |one| one.name)? {
        say(part.name);
        (part.measure)(options, target, &mut report)?;
    }
    Ok(report)
}

/// Measures both in each of this number of rounds, in an order that alternates from round to round.
fn by_turns(rounds: usize, mut measure: impl FnMut(bool) -> io::Result<()>) -> io::Result<()> {
    for round in 0..rounds {
        say(&format!("round {}", round + 1));
        let is_even = round % 2 == 0;
        measure(is_even)?;
        measure(!is_even)?;
    }
    Ok(())
}

/// `fanout-steady` on a node, and on a server alone.
fn deliveries(options: &Options, target: &Target, report: &mut Report) -> io::Result<()> {
    let plan = Plan {
        lasting: options.lasting(4),
        ..plan(options, 1_000, PAYLOAD_BYTES, Pace::PerSecond(50))
    };
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    by_turns(options.rounds(9), |is_clustered| {
        let measured = if is_clustered {
            let mut cluster = Cluster::start(target, 1)?;
            stage::measure(cluster.take_first()?, plan)?
        } else {
            stage::measure(Subject::server(target)?, plan)?
        };
        let all = if is_clustered { &mut ours } else { &mut base };
        all.push(measured.cpu_per_delivery_us());
        report.remarks.extend(measured.remarks);
        report.faults.extend(measured.faults);
        Ok(())
    })?;
    let bound = Bound::RatioAtMost(1.05);
    let name = "CPU per delivery, over local, us";
    report.figures.push(Figure::new(name, ours, base, bound).in_pairs());
    Ok(())
}

/// One subscriber, 32 publishers at once: on the first of two nodes, and on a server alone.
fn publications(options: &Options, target: &Target, report: &mut Report) -> io::Result<()> {
    const PUBLISHERS: usize = 32;
    let lasting = options.lasting(4);
    let (mut ours, mut base, mut reading) = (Vec::new(), Vec::new(), Vec::new());
    by_turns(options.rounds(5), |is_clustered| {
        if is_clustered {
            let cluster = Cluster::start(target, NODES)?;
            let first = cluster.nth(0);
            let reader = Watch::begin(cluster.nth(1).observed)?;
            let heard = heard(first, PUBLISHERS, lasting)?;
            ours.push(heard.cpu_us());
            // The second node reads what the first one's warm-up publishes, too.
            reading.push(per_unit_us(reader.seen()?.cpu, heard.answered_ever));
            report.remarks.extend(heard.remark);
        } else {
            let heard = heard(&Subject::server(target)?, PUBLISHERS, lasting)?;
            base.push(heard.cpu_us());
            report.remarks.extend(heard.remark);
        }
        Ok(())
    })?;
    report.figures.extend([
        Figure::new("CPU per publication, over local, us", ours, base, Bound::RatioAtMost(2.0)),
        Figure::new("CPU per publication of another node, us", reading, Vec::new(), Bound::None),
    ]);
    Ok(())
}

/// Publications on one server.
struct Heard {
    answered: u64,
    answered_ever: u64,
    seen: Seen,
    remark: Option<String>,
}

impl Heard {
    fn cpu_us(&self) -> f64 {
        per_unit_us(self.seen.cpu, self.answered)
    }
}

/// Triggers on a server that has one subscriber.
fn heard(subject: &Subject, publishers: usize, lasting: Duration) -> io::Result<Heard> {
    let subscriber = subject.connect(0, Some(&subject.join(CHANNEL)))?;
    let (reads, ends) = (subscriber.try_clone()?, subscriber);
    let drain = thread::spawn(move || io::copy(&mut &reads, &mut io::sink()));
    let request = subject.trigger(&crate::trigger_body(FIRST, PAYLOAD_BYTES));
    let all = Publishers::new(vec![Publisher::new(subject, request); publishers]);
    let warmed_up = all.publish(WARM_UP)?;
    let watch = Watch::begin(subject.observed)?;
    let answered = all.publish(lasting)?;
    let seen = watch.seen()?;
    ends.shutdown(std::net::Shutdown::Both)?;
    // The subscriber has ended.
    let _ = drain.join();
    let remark = seen.limit(publishers).map(|limit| format!("publications: {limit}"));
    Ok(Heard { answered, answered_ever: answered + warmed_up, seen, remark })
}

fn per_unit_us(cpu: Duration, units: u64) -> f64 {
    cpu.as_secs_f64() * 1e6 / units.max(1) as f64
}

/// 64 publishers at once on two nodes, in one scope and in 64, and as many that publish without Herald.
fn redis(options: &Options, target: &Target, report: &mut Report) -> io::Result<()> {
    const PUBLISHERS: usize = 64;
    /// `PUBLISH` is measured again with this number of further listeners: the difference is the cost of a listener.
    const LISTENERS_MORE: usize = 20;
    let lasting = options.lasting(4);
    let bare = Publishing { connections: PUBLISHERS, at_once: 1, listeners: NODES };
    let piped = Publishing { connections: 1, at_once: PUBLISHERS, listeners: NODES };
    let many = Publishing { listeners: NODES + LISTENERS_MORE, ..bare };
    let (mut one, mut spread) = (Vec::new(), Vec::new());
    let (mut alone, mut pipelined, mut heard_by_many) = (Vec::new(), Vec::new(), Vec::new());
    by_turns(options.rounds(5), |is_clustered| {
        if is_clustered {
            for (scopes, all) in [(1, &mut one), (PUBLISHERS, &mut spread)] {
                let cluster = Cluster::start(target, NODES)?;
                let publishers = cluster.publishers(PUBLISHERS, scopes, 1);
                publishers.publish(WARM_UP)?;
                let cost = cost(cluster.redis(), || publishers.publish(lasting))?;
                all.push(cost.cpu_us());
            }
        } else {
            for (publishing, all) in
                [(bare, &mut alone), (piped, &mut pipelined), (many, &mut heard_by_many)]
            {
                all.push(publishing.measure(lasting)?.cpu_us());
            }
        }
        Ok(())
    })?;
    let figure = |name: &str, ours: &[f64], base: &[f64], bound| {
        Figure::new(name, ours.to_vec(), base.to_vec(), bound)
    };
    let bound = Bound::RatioAtMost(1.3);
    let more = heard_by_many.iter().zip(&alone);
    let more: Vec<_> = more.map(|(many, few)| (many - few) / LISTENERS_MORE as f64).collect();
    report.figures.extend([
        figure("Redis CPU per publication, one scope, us", &one, &alone, bound),
        figure("Redis CPU per publication, 64 scopes, us", &spread, &alone, bound),
        figure("the same over PUBLISH in a pipeline, us", &one, &pipelined, Bound::None),
        figure("Redis CPU per PUBLISH and listener, us", &more, &[], Bound::None),
    ]);
    Ok(())
}

/// The processor time that a process has spent on a number of publications.
struct Cost {
    published: u64,
    seen: Seen,
}

impl Cost {
    fn cpu_us(&self) -> f64 {
        per_unit_us(self.seen.cpu, self.published)
    }

    fn per_second(&self) -> f64 {
        self.published as f64 / self.seen.elapsed.as_secs_f64()
    }
}

fn cost(observed: Observed, publish: impl FnOnce() -> io::Result<u64>) -> io::Result<Cost> {
    let watch = Watch::begin(observed)?;
    let published = publish()?;
    Ok(Cost { published, seen: watch.seen()? })
}

/// Bulks on two nodes, in one scope and in 64, and `PUBLISH` in pipelines of as many.
fn throughput(options: &Options, target: &Target, report: &mut Report) -> io::Result<()> {
    const CONNECTIONS: usize = 64;
    let lasting = options.lasting(4);
    let bare = Publishing { connections: CONNECTIONS, at_once: AT_ONCE, listeners: NODES };
    let (mut one, mut spread, mut base) = (Vec::new(), Vec::new(), Vec::new());
    let mut costs = [Vec::new(), Vec::new()];
    by_turns(options.rounds(5), |is_clustered| {
        if !is_clustered {
            base.push(bare.measure(lasting)?.per_second());
            return Ok(());
        }
        let [of_one, of_spread] = &mut costs;
        for (scopes, rates, costs) in [(1, &mut one, of_one), (CONNECTIONS, &mut spread, of_spread)]
        {
            let cluster = Cluster::start(target, NODES)?;
            let publishers = cluster.publishers(CONNECTIONS, scopes, AT_ONCE);
            publishers.publish(WARM_UP)?;
            let each = AT_ONCE as u64;
            let cost = cost(cluster.redis(), || Ok(publishers.publish(lasting)? * each))?;
            rates.push(cost.per_second());
            costs.push(cost.cpu_us());
            report
                .remarks
                .extend(cost.seen.limit(CONNECTIONS).map(|limit| format!("throughput: {limit}")));
        }
        Ok(())
    })?;
    let [cost_one, cost_spread] = costs;
    let figure = |name: &str, ours, base| Figure::new(name, ours, base, Bound::None);
    report.figures.extend([
        figure("publications per second, one partition", one, base.clone()),
        figure("publications per second, 16 partitions", spread, base),
        figure("Redis CPU for each, one partition, us", cost_one, Vec::new()),
        figure("Redis CPU for each, 16 partitions, us", cost_spread, Vec::new()),
    ]);
    Ok(())
}

/// Idle connections to a node, and to a server alone.
fn memory(options: &Options, target: &Target, report: &mut Report) -> io::Result<()> {
    let many = if options.short { idle::SHORT } else { idle::MANY };
    let many = options.connections.unwrap_or(many);
    let sizes = [many.min(1_000), many];
    let (mut ours, mut base) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds(if options.short { 1 } else { 3 }) {
        let mut cluster = Cluster::start(target, 1)?;
        let ([_, each_kb], sockets) = idle::connect(&cluster.take_first()?, sizes)?;
        ours.push(each_kb);
        drop(sockets);
        let ([_, each_kb], _) = idle::connect(&Subject::server(target)?, sizes)?;
        base.push(each_kb);
    }
    let name = format!("memory per connection at {many}, KB");
    report.figures.push(Figure::new(&name, ours, base, Bound::ValueAtMost(3.0)));
    Ok(())
}
