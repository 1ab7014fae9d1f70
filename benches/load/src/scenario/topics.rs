//! Many topics of one subscriber each.

use std::{
    io,
    time::{Duration, Instant},
};

use super::Scenario;
use crate::{
    FIRST, SLUG,
    crowd::Crowd,
    floor::Command as Order,
    options::Options,
    payload,
    publisher::Publisher,
    report::{Bound, Figure, Report, say},
    subject::{Kind, Subject, Target, join},
    wire,
};

/// Events that one request brings.
const BULK: usize = 100;

/// Requests a second.
const BULKS_PER_S: u32 = 50;

/// How long whatever is under way at the end may take to arrive.
const ARRIVE_MAX: Duration = Duration::from_secs(10);

const PADDING_BYTES: usize = 128;

/// 10,000 topics, events round robin.
pub(super) fn many(options: &Options, target: &Target) -> io::Result<Report> {
    let topics = options.connections.unwrap_or(10_000);
    let lasting = options.lasting(5);
    let (mut ours, mut base, mut remarks) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds(5) {
        say(&format!("round {}: {topics} topics", round + 1));
        for (subject, figures) in
            [(Subject::floor(target)?, &mut base), (Subject::server(target)?, &mut ours)]
        {
            let (cpu_us, remark) = measure(subject, topics, lasting)?;
            figures.push(cpu_us);
            remarks.extend(remark);
        }
    }
    let name = "CPU per delivery, us".to_owned();
    let figures = vec![Figure { name, ours, base, bound: Bound::RatioAtMost(2.0) }];
    Ok(Report { scenario: Scenario::TopicsMany.name(), base: "floor", figures, remarks })
}

fn topic(nth: usize) -> String {
    format!("public:{SLUG}:t{nth}")
}

/// Processor time per delivery, and what was not as it must be.
fn measure(
    mut subject: Subject,
    topics: usize,
    lasting: Duration,
) -> io::Result<(f64, Option<String>)> {
    subject.order(&Order::Accept(topics))?;
    let connect = |nth| subject.connect(nth, Some(&join(&topic(nth))));
    let sockets = (0..topics).map(connect).collect::<io::Result<_>>()?;
    subject.obeyed()?;
    subject.order(&Order::Ready(PADDING_BYTES))?;
    subject.obeyed()?;
    let mut publisher = Publisher::open(&subject, 4)?;
    let mut crowd = Crowd::new(sockets)?;
    let (mut published, mut heard) = (0, 0);
    let (began, cpu_before) = (Instant::now(), subject.observed.cpu()?);
    let mut due = began;
    let mut over = None;
    while over.is_none_or(|over: Instant| heard < published && over.elapsed() < ARRIVE_MAX) {
        if began.elapsed() >= lasting {
            over.get_or_insert_with(Instant::now);
        } else if due.elapsed() > Duration::ZERO {
            publish(&mut subject, &mut publisher, published, topics)?;
            published += BULK;
            due += Duration::from_secs(1) / BULKS_PER_S;
        }
        crowd.listen(Duration::from_millis(5), |arrival| {
            heard += usize::from(wire::sequence(arrival.payload).is_some());
        })?;
    }
    publisher.settle()?;
    let cpu = subject.observed.cpu()?.saturating_sub(cpu_before);
    let missing = published - heard;
    let remark = (missing > 0).then(|| format!("{missing} deliveries are missing"));
    Ok((cpu.as_secs_f64() * 1e6 / heard.max(1) as f64, remark))
}

/// Publishes to the topics that come next.
fn publish(
    subject: &mut Subject,
    publisher: &mut Publisher,
    published: usize,
    topics: usize,
) -> io::Result<()> {
    let mut numbers = (published..published + BULK).map(|nth| (FIRST + nth as u64, nth % topics));
    if subject.kind == Kind::Floor {
        return numbers.try_for_each(|(number, nth)| subject.order(&Order::Single(number, nth)));
    }
    let events: Vec<String> = numbers
        .map(|(number, nth)| {
            let payload = payload(&number.to_string(), PADDING_BYTES);
            format!(r#"{{"topic":"{}","event":"msg","payload":{payload}}}"#, topic(nth))
        })
        .collect();
    let request = subject.bulk(&format!(r#"{{"events":[{}]}}"#, events.join(",")));
    publisher.send(&request)
}
