//! HTTP triggers, beside a bare handler.

use std::{
    io::{self, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use super::Scenario;
use crate::{
    FIRST, SLUG,
    options::Options,
    publisher::read_answer,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target, join},
};

/// Keep-alive connections that trigger at the same time.
const CONNECTIONS: usize = 8;

/// Triggers a second with nobody who hears them, and with one subscriber.
pub(super) fn triggers(options: &Options, target: &Target) -> io::Result<Report> {
    let lasting = options.lasting(5);
    let (mut bare, mut unheard, mut heard) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..options.rounds(5) {
        say(&format!("round {}: {CONNECTIONS} connections", round + 1));
        bare.push(rate(&Subject::handler(target)?, lasting)?);
        unheard.push(rate(&Subject::server(target)?, lasting)?);
        let subject = Subject::server(target)?;
        let subscriber = subject.connect(0, Some(&join(&format!("public:{SLUG}:bench"))))?;
        let drain = thread::spawn(move || io::copy(&mut &subscriber, &mut io::sink()));
        heard.push(rate(&subject, lasting)?);
        drop(subject);
        // It ends with the server.
        let _ = drain.join();
    }
    let figure = |name: &str, ours| Figure {
        name: name.to_owned(),
        ours,
        base: bare.clone(),
        bound: Bound::RatioAtLeast(0.7),
    };
    let figures = vec![
        figure("triggers per second, nobody hears", unheard),
        figure("triggers per second, one subscriber", heard),
    ];
    let base = "bare handler";
    Ok(Report { scenario: Scenario::Triggers.name(), base, figures, remarks: Vec::new() })
}

/// Requests answered per second.
fn rate(subject: &Subject, lasting: Duration) -> io::Result<f64> {
    let request = subject.trigger(&crate::trigger_body(FIRST, 128));
    let answered: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS)
            .map(|_| scope.spawn(|| trigger_for(subject, &request, lasting)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, io::Result<u64>>| {
            thread.join().map_err(|_| io::Error::other("a publisher panicked"))?
        };
        threads.into_iter().map(join).sum::<io::Result<u64>>()
    })?;
    Ok(answered as f64 / lasting.as_secs_f64())
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
