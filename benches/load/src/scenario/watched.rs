//! A console that watches a busy app, and one that asks about the app's connections and channels every second.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;

use super::{
    Scenario,
    fanout::plan,
    stage::{Measured, Pace, Plan, gather, play},
};
use crate::{
    options::Options,
    report::{Bound, Figure, Report, say},
    subject::{Subject, Target},
    wire,
};

/// The sessions that listen elsewhere while somebody asks: with the subscribers they are 15,000.
const ELSEWHERE: usize = 14_000;

/// The channel that they have joined.
const OTHER_CHANNEL: &str = "elsewhere";

/// The questions of the console's lists.
const QUESTIONS: [&str; 2] = ["connections?limit=100", "channels?limit=100"];

/// The time between two rounds of questions.
const EVERY: Duration = Duration::from_secs(1);

/// `fanout-steady` with one console open at the app's live events, and without; then with 15,000
/// sessions, with somebody who asks and without.
pub(super) fn watched(options: &Options, target: &Target) -> io::Result<Report> {
    let plan =
        Plan { lasting: options.lasting(4), ..plan(options, 1_000, 128, Pace::PerSecond(50)) };
    let [watched, alone] = pairs(options.rounds(9), "a console", |is_watched| {
        measure_watched(target, plan, is_watched)
    })?;
    let [asked, left_alone] =
        pairs(options.rounds(5), "questions", |is_asked| measure_asked(target, plan, is_asked))?;
    let figure = |name: &str, [ours, base]: [&[Measured]; 2], value: &dyn Fn(&Measured) -> f64| {
        let values = |measured: &[Measured]| measured.iter().map(value).collect();
        Figure::new(name, values(ours), values(base), Bound::None).in_pairs()
    };
    let (of_watched, of_asked) = ([&*watched, &*alone], [&*asked, &*left_alone]);
    let cpu = &Measured::cpu_per_delivery_us;
    let p99 = &|measured: &Measured| measured.latency_ms(0.99);
    let mut figures = vec![
        figure("CPU per delivery with a console open, us", of_watched, cpu),
        figure("latency p99 with a console open, ms", of_watched, p99),
        figure("latency p99 while somebody asks, ms", of_asked, p99),
        figure("CPU per delivery while somebody asks, us", of_asked, cpu),
    ];
    figures[0].bound = Bound::RatioAtMost(1.05);
    figures[2].bound = Bound::RatioAtMost(1.1);
    let all = || watched.iter().chain(&alone).chain(&asked).chain(&left_alone);
    Ok(Report {
        scenario: Scenario::Watched.name(),
        base: "nobody",
        figures,
        remarks: all().flat_map(|measured| measured.remarks.clone()).collect(),
        faults: all().flat_map(|measured| measured.faults.clone()).collect(),
    })
}

/// Measures with something and without it, by turns.
fn pairs(
    rounds: usize,
    what: &str,
    mut measure: impl FnMut(bool) -> io::Result<Measured>,
) -> io::Result<[Vec<Measured>; 2]> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        say(&format!("round {}: with {what}, and without", round + 1));
        let is_even = round % 2 == 0;
        for is_with in [is_even, !is_even] {
            let measured = measure(is_with)?;
            let all = if is_with { &mut with } else { &mut without };
            all.push(measured);
        }
    }
    Ok([with, without])
}

fn measure_watched(target: &Target, plan: Plan, is_watched: bool) -> io::Result<Measured> {
    let mut subject = Subject::server(target)?;
    let crowd = gather(&mut subject, plan)?;
    let console = is_watched.then(|| Console::open(&subject, plan.subscribers)).transpose()?;
    let mut measured = play(&mut subject, crowd, plan)?;
    if let Some(console) = console {
        measured.faults.extend(console.close()?);
    }
    Ok(measured)
}

fn measure_asked(target: &Target, plan: Plan, is_asked: bool) -> io::Result<Measured> {
    let mut subject = Subject::server(target)?;
    let crowd = gather(&mut subject, plan)?;
    let joins = [subject.join(OTHER_CHANNEL)];
    let elsewhere = ELSEWHERE.min(14 * plan.subscribers);
    let connect = |nth| subject.connect_to(plan.subscribers + nth, None, &joins);
    let others = (0..elsewhere).map(connect).collect::<io::Result<Vec<_>>>()?;
    let asking =
        is_asked.then(|| Asking::begin(&subject, plan.subscribers + elsewhere)).transpose()?;
    let mut measured = play(&mut subject, crowd, plan)?;
    if let Some(asking) = asking {
        measured.faults.extend(asking.end(plan.lasting)?);
    }
    drop(others);
    Ok(measured)
}

/// A console at the live events of the app: it reads what it is sent.
struct Console {
    socket: TcpStream,
    reading: JoinHandle<usize>,
}

impl Console {
    /// Logs in as the app, and joins its feed.
    fn open(subject: &Subject, nth: usize) -> io::Result<Self> {
        let (key, secret) = &subject.target().credentials;
        let credentials = format!(r#"{{"key":"{key}","secret":"{secret}"}}"#);
        let mut socket = subject.dial(nth, None)?;
        socket.write_all(&request(subject, "POST", "/console/login", "", &credentials))?;
        let answer = read_answer(&mut socket)?;
        let mut lines = answer.lines().filter_map(|line| line.split_once(": "));
        let cookie = lines.find(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
        let cookie = cookie.map(|(_, value)| value);
        let cookie = cookie.and_then(|cookie| cookie.split(';').next()).unwrap_or_default();
        let cookie = format!("Cookie: {cookie}\r\nSec-Fetch-Site: same-origin\r\n");
        socket.write_all(&request(subject, "POST", "/console/live", &cookie, "{}"))?;
        let answer = read_answer(&mut socket)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body: Value = serde_json::from_str(body).map_err(io::Error::other)?;
        let text = |name: &str| body["data"][name].as_str().unwrap_or_default().to_owned();
        let (topic, token) = (text("topic"), text("token"));
        let join = format!(r#"["1","1","{topic}","phx_join",{{"guardian_token":"{token}"}}]"#);
        let socket = subject.connect(nth + 1, Some(&join))?;
        let reader = socket.try_clone()?;
        Ok(Self { socket, reading: thread::spawn(move || events_in(reader)) })
    }

    /// Leaves; answers what was wrong.
    fn close(self) -> io::Result<Option<String>> {
        self.socket.shutdown(Shutdown::Both)?;
        let events = self.reading.join().unwrap_or_default();
        Ok((events == 0).then(|| "the console was told nothing".to_owned()))
    }
}

/// Reads until the end; answers how many batches of events came.
fn events_in(mut socket: TcpStream) -> usize {
    let (mut all, mut buffer, mut batches) = (Vec::new(), [0; 16 * 1024], 0);
    while let Ok(read @ 1..) = socket.read(&mut buffer) {
        all.extend_from_slice(buffer.get(..read).unwrap_or_default());
        while let Some(payload) = wire::payload(&all) {
            let frame = all.get(payload.clone()).unwrap_or_default();
            batches += usize::from(memchr::memmem::find(frame, br#""events""#).is_some());
            all.drain(..payload.end);
        }
    }
    batches
}

/// Somebody who asks the questions of the console's lists every second.
struct Asking {
    stop: mpsc::Sender<()>,
    asking: JoinHandle<io::Result<usize>>,
}

impl Asking {
    fn begin(subject: &Subject, nth: usize) -> io::Result<Self> {
        let mut socket = subject.dial(nth, None)?;
        let authorization = format!("Authorization: {}\r\n", subject.basic());
        let app = &subject.target().app;
        let requests = QUESTIONS.map(|question| {
            let path = format!("/api/apps/{app}/{question}");
            request(subject, "GET", &path, &authorization, "")
        });
        let (stop, stopped) = mpsc::channel();
        let asking = thread::spawn(move || {
            let mut rounds = 0;
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                for request in &requests {
                    socket.write_all(request)?;
                    read_answer(&mut socket)?;
                }
                rounds += 1;
            }
            Ok(rounds)
        });
        Ok(Self { stop, asking })
    }

    /// Stops; answers what was wrong.
    fn end(self, lasting: Duration) -> io::Result<Option<String>> {
        drop(self.stop);
        let asked = self.asking.join();
        let rounds = asked.map_err(|_| io::Error::other("who asks has panicked"))??;
        let least = usize::try_from(lasting.as_secs()).unwrap_or(usize::MAX).saturating_sub(1);
        Ok((rounds < least).then(|| format!("only {rounds} rounds of questions were answered")))
    }
}

fn request(subject: &Subject, method: &str, path: &str, lines: &str, body: &str) -> Vec<u8> {
    let (host, length) = (subject.address, body.len());
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Reads one answer, which has to be 200.
fn read_answer(socket: &mut TcpStream) -> io::Result<String> {
    let (mut all, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    while wire::answer(&all).is_none() {
        match socket.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => all.extend_from_slice(buffer.get(..read).unwrap_or_default()),
        }
    }
    let answer = String::from_utf8_lossy(&all).into_owned();
    match answer.starts_with("HTTP/1.1 200") {
        true => Ok(answer),
        false => Err(io::Error::other(answer)),
    }
}
