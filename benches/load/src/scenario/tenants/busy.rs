//! A busy app: sessions on many channels each, and what is published to all of them.

use std::{
    io::{self, Read},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use super::CHANNELS;
use crate::{
    FIRST,
    crowd::{Crowd, Cut},
    payload, schedule,
    subject::Subject,
    wire,
};

/// Clients that connect at the same time.
const THREADS: usize = 16;

/// The size of the receive buffer of a session that does not read, or reads slowly: nearly nothing.
const RECEIVE_BYTES: usize = 4 * 1024;

/// Bytes of a slow session that are read at once.
const SLOW_READ_BYTES: usize = 16 * 1024;

/// How long what was published once may take.
const ONCE_MAX: Duration = Duration::from_secs(20);

/// How the sessions read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reads {
    /// All that comes.
    Everything,
    /// No byte.
    Nothing,
    /// This number of bytes a second.
    BytesPerSecond(usize),
}

/// How the busy app publishes to `#general`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Publishes {
    /// A client pushes at this rate.
    Pushes { payload_bytes: usize, per_second: u32 },
    /// The app's server triggers at this rate.
    Triggers { payload_bytes: usize, per_second: u32 },
    /// A client pushes once.
    OnePush { payload_bytes: usize },
    /// The app's server triggers once.
    OneTrigger { payload_bytes: usize },
}

impl Publishes {
    fn payload_bytes(self) -> usize {
        match self {
            Self::Pushes { payload_bytes, .. } | Self::Triggers { payload_bytes, .. } => {
                payload_bytes
            }
            Self::OnePush { payload_bytes } | Self::OneTrigger { payload_bytes } => payload_bytes,
        }
    }

    fn are_pushes(self) -> bool {
        matches!(self, Self::Pushes { .. } | Self::OnePush { .. })
    }

    /// The pause between two, if there are several.
    fn every(self) -> Option<Duration> {
        match self {
            Self::Pushes { per_second, .. } | Self::Triggers { per_second, .. } => {
                Some(Duration::from_secs(1) / per_second.max(1))
            }
            Self::OnePush { .. } | Self::OneTrigger { .. } => None,
        }
    }
}

/// The sessions of a busy app.
pub(super) struct Busy {
    crowd: Crowd,
    /// Those that do not read.
    deaf: Vec<TcpStream>,
    slow: Option<Slow>,
    sessions: usize,
}

/// The result of a busy app over the time that was measured.
pub(super) struct Played {
    /// When it began to count.
    pub(super) from: Instant,
    /// When it ended.
    pub(super) until: Instant,
    /// Frames that its sessions have read meanwhile.
    pub(super) deliveries: usize,
    /// Sessions that the server has dropped.
    pub(super) dropped: usize,
    /// A remark for the reader of the report.
    pub(super) remark: Option<String>,
}

impl Busy {
    /// Connects this number of sessions, which all join the same channels.
    ///
    /// # Errors
    /// If the server does not let them in.
    pub(super) fn connect(subject: &Subject, sessions: usize, reads: Reads) -> io::Result<Self> {
        let joins: Vec<_> = (0..CHANNELS).map(|nth| subject.join(&format!("room-{nth}"))).collect();
        let receive_bytes = match reads {
            Reads::Everything => None,
            Reads::Nothing | Reads::BytesPerSecond(_) => Some(RECEIVE_BYTES),
        };
        let sockets = thread::scope(|scope| {
            let arrive = |thread: usize| {
                let joins = &joins;
                scope.spawn(move || {
                    let mine = (thread..sessions).step_by(THREADS);
                    mine.map(|nth| subject.connect_to(nth, receive_bytes, joins))
                        .collect::<io::Result<Vec<_>>>()
                })
            };
            let threads: Vec<_> = (0..THREADS).map(arrive).collect();
            let ends = threads
                .into_iter()
                .map(|thread| thread.join().map_err(|_| io::Error::other("a client panicked"))?);
            ends.collect::<io::Result<Vec<Vec<_>>>>()
        })?;
        let sockets = sockets.into_iter().flatten().collect::<Vec<_>>();
        let mut busy = Self { crowd: Crowd::empty()?, deaf: Vec::new(), slow: None, sessions };
        match reads {
            Reads::Everything => busy.crowd = Crowd::new(sockets)?,
            Reads::Nothing => busy.deaf = sockets,
            Reads::BytesPerSecond(bytes) => {
                busy.slow = sockets
                    .into_iter()
                    .next()
                    .map(|socket| Slow::new(socket, bytes))
                    .transpose()?;
            }
        }
        Ok(busy)
    }

    /// Publishes for so long after a warm-up, or once and until all has arrived, and reads what comes.
    ///
    /// # Errors
    /// If the server is gone.
    pub(super) fn play(
        self,
        subject: &Subject,
        publishes: Publishes,
        warm_up: Duration,
        lasting: Duration,
    ) -> io::Result<Played> {
        // The thread cannot leave this schedule again, so it ends with this.
        let play = || {
            schedule::when_idle()?;
            self.work(subject, publishes, warm_up, lasting)
        };
        let played = thread::scope(|scope| scope.spawn(play).join());
        played.map_err(|_| io::Error::other("the busy app panicked"))?
    }

    fn work(
        mut self,
        subject: &Subject,
        publishes: Publishes,
        warm_up: Duration,
        lasting: Duration,
    ) -> io::Result<Played> {
        let readers = self.crowd.len();
        let publisher = self.publisher(subject, publishes)?;
        let began = Instant::now();
        let from = if publishes.every().is_some() { began + warm_up } else { began };
        let (mut due, mut refused, mut heard) = (Some(began), 0, 0);
        let mut number = FIRST;
        loop {
            let now = Instant::now();
            if due.is_some_and(|due| due <= now) {
                due = publishes.every().and_then(|every| Some(due? + every));
                let request = request(subject, publishes, number);
                self.crowd.write(publisher, &request)?;
                number += 1;
            }
            let is_slow = self.slow.is_some();
            let wait =
                due.map_or(Duration::from_millis(100), |due| due.saturating_duration_since(now));
            let wait = if is_slow { wait.min(Duration::from_millis(2)) } else { wait };
            self.crowd.listen(wait, |arrival| {
                if arrival.member < readers {
                    heard += usize::from(arrival.at >= from);
                } else if is_refusal(arrival.payload) {
                    refused += 1;
                }
            })?;
            let is_reading = match &mut self.slow {
                Some(slow) => slow.read() && began.elapsed() < ONCE_MAX,
                None => false,
            };
            if now > from + lasting && !is_reading {
                break;
            }
        }
        let until = Instant::now();
        heard += self.slow.as_ref().map_or(0, |slow| slow.heard);
        let is_dropped = |socket: &&TcpStream| matches!(socket.take_error(), Ok(Some(_)));
        let deaf = self.deaf.iter().filter(is_dropped).count();
        let slow = self.slow.iter().filter(|slow| !slow.is_open).count();
        let dropped = self.crowd.lost() + deaf + slow;
        let remark =
            (refused > 0).then(|| format!("{refused} events of the busy app were refused"));
        Ok(Played { from, until, deliveries: heard, dropped, remark })
    }

    /// Connects the client that publishes; answers its number in the crowd.
    fn publisher(&mut self, subject: &Subject, publishes: Publishes) -> io::Result<usize> {
        if !publishes.are_pushes() {
            return self.crowd.add(subject.dial(self.sessions, None)?, Cut::Answers);
        }
        let join = crate::subject::join(&format!("public:{}", subject.target().app));
        self.crowd.add(subject.connect(self.sessions, Some(&join))?, Cut::Frames)
    }
}

/// The request, or the frame, that publishes one event.
fn request(subject: &Subject, publishes: Publishes, number: u64) -> Vec<u8> {
    let payload = payload(&(number - FIRST).to_string(), publishes.payload_bytes());
    if publishes.are_pushes() {
        let topic = format!("public:{}", subject.target().app);
        return wire::client_frame(&format!(r#"["1","2","{topic}","msg",{payload}]"#));
    }
    subject.trigger(&format!(r##"{{"topic":"#general","event":"msg","payload":{payload}}}"##))
}

/// Whether an answer to the publisher says that an event was not accepted.
fn is_refusal(answer: &[u8]) -> bool {
    let is_reply = memchr::memmem::find(answer, b"\"phx_reply\"").is_some();
    let is_ok = memchr::memmem::find(answer, b"\"status\":\"ok\"").is_some();
    let is_http = answer.starts_with(b"HTTP/1.1 ");
    (is_reply && !is_ok) || (is_http && !answer.starts_with(b"HTTP/1.1 200"))
}

/// A session that reads slowly.
struct Slow {
    socket: TcpStream,
    bytes_per_second: usize,
    began: Instant,
    read: usize,
    partial: Vec<u8>,
    heard: usize,
    is_open: bool,
}

impl Slow {
    fn new(socket: TcpStream, bytes_per_second: usize) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let (began, partial) = (Instant::now(), Vec::new());
        Ok(Self { socket, bytes_per_second, began, read: 0, partial, heard: 0, is_open: true })
    }

    /// Reads as much as is due; answers whether there is more to come.
    fn read(&mut self) -> bool {
        let mut buffer = [0; SLOW_READ_BYTES];
        loop {
            let due = self.began.elapsed().as_secs_f64() * self.bytes_per_second as f64;
            let bytes = (due as usize).saturating_sub(self.read).min(buffer.len());
            if bytes == 0 {
                break;
            }
            match self.socket.read(&mut buffer[..bytes]) {
                Ok(0) => self.is_open = false,
                Ok(read) => {
                    self.read += read;
                    self.partial.extend_from_slice(&buffer[..read]);
                    self.count();
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // Nothing more is there to read. The session does not make up for it later.
                    self.read = due as usize;
                }
                Err(_) => self.is_open = false,
            }
            break;
        }
        self.is_open && self.heard < CHANNELS
    }

    fn count(&mut self) {
        while let Some(frame) = wire::payload(&self.partial) {
            self.partial.drain(..frame.end);
            self.heard += 1;
        }
    }
}
