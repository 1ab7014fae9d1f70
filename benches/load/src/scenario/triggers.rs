//! HTTP triggers, compared with a bare handler.

use std::{
    io::{self, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use super::{Scenario, stage::WARM_UP};
use crate::{
    CHANNEL, FIRST,
    observe::{Seen, Watch},
    options::Options,
    publisher::read_answer,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
};

/// Keep-alive connections that trigger at the same time.
pub(super) const CONNECTIONS: usize = 8;

/// Triggers a second with nobody who hears them, with one subscriber, and signed for Pusher's API.
pub(super) fn triggers(options: &Options, target: &Target) -> io::Result<Report> {
    let lasting = options.lasting(5);
    let (mut bare, mut unheard, mut heard) = (Vec::new(), Vec::new(), Vec::new());
    let mut signed = Vec::new();
    for round in 0..options.rounds(5) {
        say(&format!("round {}: {CONNECTIONS} connections", round + 1));
        bare.push(measure(&Subject::handler(target)?, lasting)?);
        unheard.push(measure(&Subject::server(target)?, lasting)?);
        heard.push(self::heard(Subject::server(target)?, lasting)?);
        signed.push(measure_signed(&Subject::server(target)?, lasting)?);
    }
    let figure = |name: &str, ours: &[Measured], value: fn(&Measured) -> f64, bound| {
        let values = |measured: &[Measured]| measured.iter().map(value).collect();
        Figure::new(name, values(ours), values(&bare), bound)
    };
    let bound = Bound::RatioAtLeast(0.8);
    let all = || bare.iter().chain(&unheard).chain(&heard).chain(&signed);
    let per_second =
        |measured: &[Measured]| measured.iter().map(Measured::per_second).collect::<Vec<_>>();
    let signed_over_basic = Figure::new(
        "signed triggers per second, beside those with a password",
        per_second(&signed),
        per_second(&unheard),
        Bound::RatioAtLeast(0.85),
    );
    Ok(Report {
        scenario: Scenario::Triggers.name(),
        base: "bare handler",
        figures: vec![
            figure("triggers per second, nobody hears", &unheard, Measured::per_second, bound),
            figure("triggers per second, one hears", &heard, Measured::per_second, bound),
            signed_over_basic,
            figure("CPU per trigger, nobody hears, us", &unheard, Measured::cpu_us, Bound::None),
            figure("CPU per trigger, one hears, us", &heard, Measured::cpu_us, Bound::None),
        ],
        remarks: all().filter_map(Measured::remark).collect(),
        faults: Vec::new(),
    })
}

pub(super) struct Measured {
    answered: u64,
    seen: Seen,
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.answered as f64 / self.seen.elapsed.as_secs_f64()
    }

    pub(super) fn cpu_us(&self) -> f64 {
        self.seen.cpu.as_secs_f64() * 1e6 / self.answered.max(1) as f64
    }

    pub(super) fn remark(&self) -> Option<String> {
        self.seen.limit(CONNECTIONS).map(str::to_owned)
    }
}

/// The same with one subscriber.
pub(super) fn heard(subject: Subject, lasting: Duration) -> io::Result<Measured> {
    let mut heard = Heard::open(subject)?;
    heard.play(WARM_UP)?;
    let watch = Watch::begin(heard.subject.observed)?;
    let answered = heard.play(lasting)?;
    Ok(Measured { answered, seen: watch.seen()? })
}

/// A subject with a subscriber, whose events are triggered.
pub(super) struct Heard {
    subject: Subject,
    request: Vec<u8>,
}

impl Heard {
    /// Connects the subscriber. A thread of its own reads what it hears until the subject ends.
    ///
    /// # Errors
    /// If it is not let in.
    pub(super) fn open(subject: Subject) -> io::Result<Self> {
        let subscriber = subject.connect(0, Some(&subject.join(CHANNEL)))?;
        thread::spawn(move || io::copy(&mut &subscriber, &mut io::sink()));
        let request = subject.trigger(&crate::trigger_body(FIRST, 128));
        Ok(Self { subject, request })
    }

    /// Triggers for so long; answers how many events it were.
    ///
    /// # Errors
    /// If the subject refuses one, or is gone.
    pub(super) fn play(&mut self, lasting: Duration) -> io::Result<u64> {
        rate(&self.subject, &self.request, lasting)
    }
}

/// Triggers on all connections at once, each as soon as its last is answered.
fn measure(subject: &Subject, lasting: Duration) -> io::Result<Measured> {
    measure_with(subject, &subject.trigger(&crate::trigger_body(FIRST, 128)), lasting)
}

/// The same through Pusher's API.
fn measure_signed(subject: &Subject, lasting: Duration) -> io::Result<Measured> {
    measure_with(subject, &subject.signed_trigger(&crate::pusher_body(FIRST, 128)), lasting)
}

fn measure_with(subject: &Subject, request: &[u8], lasting: Duration) -> io::Result<Measured> {
    rate(subject, request, WARM_UP)?;
    let watch = Watch::begin(subject.observed)?;
    let answered = rate(subject, request, lasting)?;
    Ok(Measured { answered, seen: watch.seen()? })
}

/// Requests answered.
fn rate(subject: &Subject, request: &[u8], lasting: Duration) -> io::Result<u64> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(|| trigger_for(subject, request, lasting)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<u64>>| {
            thread.join().map_err(|_| io::Error::other("a publisher panicked"))?
        };
        threads.into_iter().map(join).sum()
    })
}

fn trigger_for(subject: &Subject, request: &[u8], lasting: Duration) -> io::Result<u64> {
    let mut socket = TcpStream::connect(subject.address)?;
    socket.set_nodelay(true)?;
    let began = Instant::now();
    let mut answered = 0;
    while began.elapsed() < lasting {
        socket.write_all(request)?;
        read_answer(&mut socket)?;
        answered += 1;
    }
    Ok(answered)
}
