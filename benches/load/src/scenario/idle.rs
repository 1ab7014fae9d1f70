//! The cost of idle connections.

use std::{
    io,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use super::Scenario;
use crate::{
    CHANNEL,
    crowd::{Arrival, Crowd},
    observe::{Seen, Watch},
    options::Options,
    protocol::Protocol,
    report::{Bound, Figure, PROGRESS, Report, say},
    subject::{Subject, Target},
    wire,
};

/// How often a client of the real world sends a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Connections that come and go first: what they set up stays, and is nobody's in particular.
const WARM_UP: usize = 200;

/// Connections in all.
pub(super) const MANY: usize = 15_000;

/// Connections of the short form.
pub(super) const SHORT: usize = 4_000;

/// Memory per connection at 1,000 and 15,000, and the processor time of the latter's heartbeats,
/// beside what these cost a bare server.
pub(super) fn idle(options: &Options, target: &Target) -> io::Result<Report> {
    let many = options.connections.unwrap_or(if options.short { SHORT } else { MANY });
    let few = many.min(1_000);
    // Even the short form lasts longer than the work that connecting leaves behind.
    let watch = options.lasting_short(30, 10);
    let memory = Bound::ValueAtMost(match target.protocol {
        Protocol::Phoenix => 2.85,
        Protocol::Pusher => 3.0,
    });
    let mut figures = [
        (format!("resident memory per connection at {few}, KB"), Bound::None),
        (format!("resident memory per connection at {many}, KB"), memory),
        ("CPU with heartbeats every 30 s, % of a core".to_owned(), Bound::ValueAtMost(2.0)),
    ]
    .map(|(name, bound)| Figure::new(&name, Vec::new(), Vec::new(), bound));
    let (mut remarks, mut faults) = (Vec::new(), Vec::new());
    for round in 0..options.rounds(if options.short { 1 } else { 3 }) {
        say(&format!("round {}: {many} connections", round + 1));
        let measured = measure(Subject::server(target)?, [few, many], watch)?;
        let bare = measure(Subject::bare(target)?, [few, many], watch)?;
        for (figure, value) in figures.iter_mut().zip(measured.figures) {
            figure.ours.push(value);
        }
        let [_, _, heartbeats] = &mut figures;
        let [_, _, bare_heartbeats] = bare.figures;
        heartbeats.base.push(bare_heartbeats);
        for measured in [measured, bare] {
            remarks.extend(measured.remark);
            faults.extend(measured.fault);
        }
    }
    let scenario = Scenario::Idle.name();
    Ok(Report { scenario, base: "bare", figures: figures.into(), remarks, faults })
}

struct Measured {
    figures: [f64; 3],
    remark: Option<String>,
    fault: Option<String>,
}

fn measure(subject: Subject, sizes: [usize; 2], watch: Duration) -> io::Result<Measured> {
    let (each_kb, sockets) = connect(&subject, sizes)?;
    let mut crowd = Crowd::new(sockets)?;
    let Beaten { seen, unanswered } = beat(&subject, &mut crowd, watch)?;
    Ok(Measured {
        figures: [each_kb[0], each_kb[1], seen.cores() * 100.0],
        remark: seen.limit(1).map(|limit| format!("{}: {limit}", subject.who())),
        fault: (unanswered > 0)
            .then(|| format!("{}: {unanswered} heartbeats were not answered", subject.who())),
    })
}

/// Connects up to the first size, and then up to the second. Returns the memory of each connection at both sizes,
/// in KB, and the sockets.
pub(super) fn connect(
    subject: &Subject,
    sizes: [usize; 2],
) -> io::Result<([f64; 2], Vec<TcpStream>)> {
    let join = subject.join(CHANNEL);
    let connect = |nth| subject.connect(nth, Some(&join));
    let [_, many] = sizes;
    drop((many..many + WARM_UP).map(connect).collect::<io::Result<Vec<_>>>()?);
    let before = settled(subject)?;
    let mut sockets = Vec::new();
    let mut each_kb = [0.0; 2];
    for (each, size) in each_kb.iter_mut().zip(sizes) {
        while sockets.len() < size {
            sockets.push(connect(sockets.len())?);
        }
        let grown = settled(subject)?.saturating_sub(before);
        *each = grown as f64 / size as f64 / 1024.0;
        say(&format!("{}: {size} connections: {each:.2} KB each", subject.who()));
    }
    Ok((each_kb, sockets))
}

/// Resident memory once it has stopped moving.
fn settled(subject: &Subject) -> io::Result<u64> {
    let mut last = 0;
    for _ in 0..50 {
        thread::sleep(Duration::from_millis(100));
        let now = subject.observed.resident_bytes()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}

/// The result of heartbeats.
struct Beaten {
    seen: Seen,
    unanswered: usize,
}

/// Sends every connection's heartbeats, evenly spread.
fn beat(subject: &Subject, crowd: &mut Crowd, watch: Duration) -> io::Result<Beaten> {
    let protocol = subject.target().protocol;
    let heartbeat = wire::client_frame(protocol.heartbeat());
    let is_beat = |arrival: Arrival<'_>| usize::from(protocol.is_beat(arrival.payload));
    let every = HEARTBEAT / u32::try_from(crowd.len()).unwrap_or(u32::MAX).max(1);
    let (began, spent) = (Instant::now(), Watch::begin(subject.observed)?);
    let (mut due, mut said) = (began, began);
    let (mut sent, mut answered) = (0, 0);
    while began.elapsed() < watch {
        while due.elapsed() > Duration::ZERO {
            crowd.write(sent % crowd.len(), &heartbeat)?;
            sent += 1;
            due += every;
        }
        crowd.listen(Duration::from_millis(5), |arrival| answered += is_beat(arrival))?;
        if said.elapsed() > PROGRESS {
            said = Instant::now();
            say(&format!("{} s of {} s", began.elapsed().as_secs(), watch.as_secs()));
        }
    }
    let (seen, over) = (spent.seen()?, Instant::now());
    while answered < sent && over.elapsed() < Duration::from_secs(5) {
        crowd.listen(Duration::from_millis(5), |arrival| answered += is_beat(arrival))?;
    }
    Ok(Beaten { seen, unanswered: sent - answered })
}
