//! Many clients that reconnect at once and recover the events that they missed.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use super::{
    Scenario,
    fanout::plan,
    stage::{self, ARRIVE_MAX, Pace},
};
use crate::{
    CHANNEL, FIRST,
    crowd::{Crowd, Cut},
    observe::{Seen, Watch},
    options::Options,
    publisher::Publisher,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
    wire,
};

/// Threads that connect at the same time.
const THREADS: usize = 8;

/// Events that everybody misses.
const MISSED: u64 = 20;

/// Events a second while the clients come back.
const PER_SECOND: u32 = 2;

const PAYLOAD_BYTES: usize = 128;

/// 10,000 clients lose their connections at once, miss 20 events each, and join again while events go
/// on: with the position of the last event that they heard, and without.
pub(super) fn recovery(options: &Options, target: &Target) -> io::Result<Report> {
    let clients = options.connections.unwrap_or(10_000);
    let saturated =
        plan(&Options { connections: None, ..options.clone() }, 1_000, 128, Pace::Window(8));
    let (mut recovered, mut anew, mut live) = (Vec::new(), Vec::new(), Vec::new());
    let (mut remarks, mut faults) = (Vec::new(), Vec::new());
    for round in 0..options.rounds(3) {
        say(&format!("round {}: {clients} clients come back", round + 1));
        let measured = stage::measure(Subject::server(target)?, saturated)?;
        live.push(measured.cpu_per_delivery_us());
        remarks.extend(measured.remarks);
        faults.extend(measured.faults);
        for (is_recovered, storms) in [(false, &mut anew), (true, &mut recovered)] {
            let storm = storm(Subject::server(target)?, clients, is_recovered)?;
            remarks.extend(storm.seen.limit(THREADS).map(str::to_owned));
            faults.extend(storm.faults());
            storms.push(storm);
        }
    }
    let of =
        |storms: &[Storm], value: fn(&Storm) -> f64| storms.iter().map(value).collect::<Vec<_>>();
    let (with, without) = (of(&recovered, Storm::cpu_us), of(&anew, Storm::cpu_us));
    let replayed = (clients as u64 * MISSED) as f64;
    let per_replay = with.iter().zip(&without).map(|(with, without)| (with - without) / replayed);
    let figures = vec![
        Figure::new(
            "CPU per replayed frame over a live delivery, us",
            per_replay.collect(),
            live,
            Bound::RatioAtMost(1.5),
        ),
        Figure::new(
            "CPU of the storm per client, us",
            with.iter().map(|cpu| cpu / clients as f64).collect(),
            without.iter().map(|cpu| cpu / clients as f64).collect(),
            Bound::None,
        ),
        Figure::new(
            "time until the last client is complete, s",
            of(&recovered, Storm::lasted_s),
            of(&anew, Storm::lasted_s),
            Bound::None,
        ),
    ];
    let scenario = Scenario::Recovery.name();
    Ok(Report { scenario, base: "base", figures, remarks, faults })
}

/// The measurements of one storm.
struct Storm {
    seen: Seen,
    counted: Counted,
    lost: usize,
}

impl Storm {
    fn cpu_us(&self) -> f64 {
        self.seen.cpu.as_secs_f64() * 1e6
    }

    fn lasted_s(&self) -> f64 {
        self.seen.elapsed.as_secs_f64()
    }

    fn faults(&self) -> Vec<String> {
        let Counted { missing, wrong, refused } = self.counted;
        [
            (missing, "events are missing"),
            (wrong, "events came twice or out of order"),
            (refused, "joins were not answered as complete"),
            (self.lost as u64, "clients were hung up on"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect()
    }
}

/// The events that clients missed or received wrongly, and the joins that were not complete.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    missing: u64,
    wrong: u64,
    refused: u64,
}

/// The state that the threads share while the clients reconnect.
struct Signals {
    /// The clients that have been answered.
    joined: AtomicUsize,
    /// The last event that is published; 0 until it is.
    last: AtomicU64,
    /// The clients that have heard it.
    complete: AtomicUsize,
    has_failed: AtomicBool,
}

/// Everybody is there, is cut off, and comes back.
fn storm(mut subject: Subject, clients: usize, is_recovered: bool) -> io::Result<Storm> {
    let mut publisher = Publisher::open(&subject, 1)?;
    let mut next = FIRST;
    let everybody = connect_all(&subject, clients)?;
    let position = hear(&mut subject, &mut publisher, next)?;
    next += 1;
    drop(everybody);
    for _ in 0..MISSED {
        publisher.publish(&mut subject, next, PAYLOAD_BYTES)?;
        next += 1;
    }
    publisher.settle()?;
    let join = joining(&subject, is_recovered.then_some(&position));
    let expected = is_recovered.then_some(FIRST + 1);
    let signals = Signals {
        joined: AtomicUsize::new(0),
        last: AtomicU64::new(0),
        complete: AtomicUsize::new(0),
        has_failed: AtomicBool::new(false),
    };
    let watch = Watch::begin(subject.observed)?;
    let address = &subject;
    let (counted, lost, publisher) = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (join, signals) = (&join, &signals);
                scope.spawn(move || {
                    let mine = (thread..clients).step_by(THREADS);
                    let came = come_back(address, mine, join, expected, signals);
                    signals.has_failed.fetch_or(came.is_err(), Relaxed);
                    came
                })
            })
            .collect();
        let published = go_on(address, publisher, next, clients, &signals);
        signals.has_failed.fetch_or(published.is_err(), Relaxed);
        let (mut all, mut lost) = (Counted::default(), 0);
        for thread in threads {
            let came = thread.join().map_err(|_| io::Error::other("a client panicked"))??;
            all.missing += came.0.missing;
            all.wrong += came.0.wrong;
            all.refused += came.0.refused;
            lost += came.1;
        }
        io::Result::Ok((all, lost, published?))
    })?;
    drop(publisher);
    Ok(Storm { seen: watch.seen()?, counted, lost })
}

fn joining(subject: &Subject, since: Option<&str>) -> Vec<u8> {
    let topic = subject.target().topic(CHANNEL);
    let params = since.map_or(String::from("{}"), |since| format!(r#"{{"since":"{since}"}}"#));
    wire::client_frame(&format!(r#"["1","1","{topic}","phx_join",{params}]"#))
}

fn connect_all(subject: &Subject, clients: usize) -> io::Result<Vec<std::net::TcpStream>> {
    let join = subject.join(CHANNEL);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let join = &join;
                scope.spawn(move || {
                    let mine = (thread..clients).step_by(THREADS);
                    mine.map(|nth| subject.connect(nth, Some(join))).collect::<io::Result<Vec<_>>>()
                })
            })
            .collect();
        let mut all = Vec::with_capacity(clients);
        for thread in threads {
            all.extend(thread.join().map_err(|_| io::Error::other("a client panicked"))??);
        }
        Ok(all)
    })
}

/// Publishes an event and answers its position, as a client hears it that asked for positions.
fn hear(subject: &mut Subject, publisher: &mut Publisher, number: u64) -> io::Result<String> {
    let mut socket = subject.connect(usize::from(u16::MAX), Some(&asking(subject)))?;
    publisher.publish(subject, number, PAYLOAD_BYTES)?;
    publisher.settle()?;
    let frame = wire::read_until(&mut socket, |read| wire::payload(read).is_some())?;
    let range = wire::payload(&frame).unwrap_or_default();
    let text = String::from_utf8_lossy(frame.get(range).unwrap_or_default()).into_owned();
    // `[null,"<position>",…`
    text.split('"').nth(1).map(str::to_owned).ok_or_else(|| io::Error::other(text.clone()))
}

fn asking(subject: &Subject) -> String {
    format!(r#"["1","1","{}","phx_join",{{"since":""}}]"#, subject.target().topic(CHANNEL))
}

/// Publishes until all clients have been answered, and one more event for all.
fn go_on(
    subject: &Subject,
    mut publisher: Publisher,
    mut next: u64,
    clients: usize,
    signals: &Signals,
) -> io::Result<Publisher> {
    let mut due = Instant::now();
    while !signals.has_failed.load(Relaxed) {
        let is_last = signals.joined.load(Relaxed) >= clients;
        let body = crate::trigger_body(next, PAYLOAD_BYTES);
        publisher.send(&subject.trigger(&body))?;
        publisher.settle()?;
        if is_last {
            signals.last.store(next, Relaxed);
            break;
        }
        next += 1;
        due += Duration::from_secs(1) / PER_SECOND;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(publisher)
}

/// Clients come back, one after another, and hear everything from `expected` on, or else from
/// whatever they hear first.
fn come_back(
    subject: &Subject,
    clients: impl Iterator<Item = usize>,
    join: &[u8],
    expected: Option<u64>,
    signals: &Signals,
) -> io::Result<(Counted, usize)> {
    let mut crowd = Crowd::empty()?;
    let mut next: Vec<Option<u64>> = Vec::new();
    let mut counted = Counted::default();
    let mut listen = |crowd: &mut Crowd, next: &mut [Option<u64>], wait| {
        crowd.listen(wait, |arrival| {
            let awaited = &mut next[arrival.member];
            let Some(number) = wire::sequence(arrival.payload) else {
                let is_ok = memchr::memmem::find(arrival.payload, br#""status":"ok""#).is_some();
                let is_whole =
                    memchr::memmem::find(arrival.payload, br#""complete":false"#).is_none();
                counted.refused += u64::from(!is_ok || !is_whole);
                signals.joined.fetch_add(1, Relaxed);
                return;
            };
            match *awaited {
                Some(awaited) if number > awaited => counted.missing += number - awaited,
                Some(awaited) if number < awaited => counted.wrong += 1,
                _ => {}
            }
            *awaited = Some((*awaited).unwrap_or_default().max(number + 1));
            let last = signals.last.load(Relaxed);
            if last == number && last > 0 {
                signals.complete.fetch_add(1, Relaxed);
            }
        })
    };
    for nth in clients {
        // Beyond the addresses of the connections that were cut off, which the kernel still knows.
        let mut socket = subject.dial(nth + 2 * usize::from(u16::MAX), None)?;
        wire::shake_hands(&mut socket, &subject.target().path, &subject.address.to_string())?;
        socket.write_all(join)?;
        crowd.add(socket, Cut::Frames)?;
        next.push(expected);
        listen(&mut crowd, &mut next, Duration::ZERO)?;
        if signals.has_failed.load(Relaxed) {
            break;
        }
    }
    let mut waits_since = None;
    loop {
        let last = signals.last.load(Relaxed);
        let is_complete = |awaited: &Option<u64>| last > 0 && *awaited == Some(last + 1);
        let is_over = next.iter().all(is_complete) || signals.has_failed.load(Relaxed);
        if last > 0 {
            let since: Instant = *waits_since.get_or_insert_with(Instant::now);
            if is_over || since.elapsed() > ARRIVE_MAX {
                let unheard = |awaited: &Option<u64>| last + 1 - awaited.unwrap_or(last);
                counted.missing += next.iter().map(unheard).sum::<u64>();
                return Ok((counted, crowd.lost()));
            }
        } else if signals.has_failed.load(Relaxed) {
            return Ok((counted, crowd.lost()));
        }
        listen(&mut crowd, &mut next, Duration::from_millis(20))?;
    }
}
