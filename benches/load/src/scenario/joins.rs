//! Many clients that join at once.

use std::{cell::Cell, io, net::TcpStream, ops::Range, thread};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac};

use super::Scenario;
use crate::{
    CHANNEL,
    floor::Command as Order,
    observe::{Seen, Watch},
    options::Options,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target, join},
};

/// Clients that connect at the same time.
const THREADS: usize = 64;

/// 10,000 clients connect and join, without a token and each with its own.
pub(super) fn joins(options: &Options, target: &Target) -> io::Result<Report> {
    let clients = options.connections.unwrap_or(10_000);
    let plain = join(&target.topic(CHANNEL));
    let (mut handshakes, mut answers) = (Vec::new(), Vec::new());
    let (mut public, mut private) = (Vec::new(), Vec::new());
    // A server that runs already has seen the clients of the storms before.
    let storms = Cell::new(0);
    let storm = |subject, join: &(dyn Fn(usize) -> String + Sync)| {
        let first = storms.replace(storms.get() + 1) * clients;
        storm(subject, first..first + clients, join)
    };
    for round in 0..options.rounds(5) {
        say(&format!("round {}: {clients} joins", round + 1));
        handshakes.push(storm(Subject::floor(target)?, &|_| plain.clone())?);
        answers.push(storm(Subject::bare(target)?, &|_| plain.clone())?);
        public.push(storm(Subject::server(target)?, &|_| plain.clone())?);
        let tokens: Vec<String> = (0..clients)
            .map(|nth| token(target, nth))
            .collect::<Option<_>>()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let with_token = |nth: usize| {
            let token = tokens.get(nth % clients).map(String::as_str).unwrap_or_default();
            let topic = format!("private:{}:{CHANNEL}", target.app);
            format!(r#"["1","1","{topic}","phx_join",{{"guardian_token":"{token}"}}]"#)
        };
        private.push(storm(Subject::server(target)?, &with_token)?);
    }
    let all = || handshakes.iter().chain(&answers).chain(&public).chain(&private);
    let remarks = all().filter_map(|stormed| stormed.remark()).collect();
    let cpu = |stormed: &[Stormed]| stormed.iter().map(Stormed::cpu_us).collect::<Vec<_>>();
    let last = |stormed: &[Stormed]| stormed.iter().map(Stormed::last_s).collect::<Vec<_>>();
    let figures = vec![
        Figure::new(
            "CPU per public join over a handshake, us",
            cpu(&public),
            cpu(&handshakes),
            Bound::RatioAtMost(2.9),
        ),
        Figure::new(
            "CPU per public join over a bare answer, us",
            cpu(&public),
            cpu(&answers),
            Bound::None,
        ),
        Figure::new(
            "CPU per join with a JWT over a public one, us",
            cpu(&private),
            cpu(&public),
            Bound::RatioAtMost(1.5),
        ),
        Figure::new(
            "time to the last public join, s",
            last(&public),
            last(&handshakes),
            Bound::None,
        ),
        Figure::new(
            "time to the last join with a JWT, s",
            last(&private),
            last(&handshakes),
            Bound::None,
        ),
    ];
    let scenario = Scenario::Joins.name();
    Ok(Report { scenario, base: "base", figures, remarks, faults: Vec::new() })
}

/// This number of clients connect and join without a token, on a server that has had no other.
pub(super) fn public(subject: Subject, clients: usize) -> io::Result<Stormed> {
    let plain = subject.join(CHANNEL);
    storm(subject, 0..clients, &|_| plain.clone())
}

pub(super) struct Stormed {
    who: &'static str,
    clients: usize,
    seen: Seen,
}

impl Stormed {
    pub(super) fn cpu_us(&self) -> f64 {
        self.seen.cpu.as_secs_f64() * 1e6 / self.clients as f64
    }

    fn last_s(&self) -> f64 {
        self.seen.elapsed.as_secs_f64()
    }

    pub(super) fn remark(&self) -> Option<String> {
        self.seen.limit(THREADS).map(|limit| format!("{}: {limit}", self.who))
    }
}

/// Everybody connects and joins; each stays until the last has.
fn storm(
    mut subject: Subject,
    clients: Range<usize>,
    join: &(dyn Fn(usize) -> String + Sync),
) -> io::Result<Stormed> {
    subject.order(&Order::Accept(clients.len()))?;
    let watch = Watch::begin(subject.observed)?;
    let everybody = thread::scope(|scope| {
        let arrive = |thread: usize| {
            let (subject, clients) = (&subject, clients.clone());
            scope.spawn(move || {
                let mine = clients.skip(thread).step_by(THREADS);
                mine.map(|nth| subject.connect(nth, Some(&join(nth))))
                    .collect::<io::Result<Vec<_>>>()
            })
        };
        let threads: Vec<_> = (0..THREADS).map(arrive).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| io::Error::other("a client panicked"))?)
            .collect::<io::Result<Vec<Vec<TcpStream>>>>()
    })?;
    subject.obeyed()?;
    let seen = watch.seen()?;
    drop(everybody);
    Ok(Stormed { who: subject.who(), clients: clients.len(), seen })
}

/// A token of the app, no two alike, as a web application would mint it.
fn token(target: &Target, nth: usize) -> Option<String> {
    let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
    let Target { app, credentials: (_, secret), .. } = target;
    let claims = format!(r#"{{"sub":"user-{nth}","listen":["private:{app}:*"],"exp":4102444800}}"#);
    let signed = format!("{}.{}", part(r#"{"alg":"HS256","typ":"JWT"}"#), part(&claims));
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).ok()?;
    mac.update(signed.as_bytes());
    Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes())))
}
