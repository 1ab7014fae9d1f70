//! The sockets of all clients and of the web application, on one thread.

use std::{
    io,
    net::TcpStream,
    time::{Duration, Instant},
};

use super::{
    audience::{Audience, Carrier, Polls, Role, version},
    client::{State, name},
    doors::Doors,
    events::{PublishedEvents, SPEAKERS, TRIGGERS},
    tally::Tally,
};
use crate::{
    crowd::{Crowd, Cut},
    observe::Observed,
    subject::Subject,
};

/// Clients that begin on one channel.
pub(super) const PER_CHANNEL: usize = 25;

/// How many of them use long-poll: the first ones.
const POLLERS: usize = 2;

/// The clients of a channel that publish and stay: one over long-poll, and one of each version over WebSocket.
const SPEAKS: [usize; SPEAKERS] = [0, 2, 3];

/// Keep-alive connections of the web application. All triggers of a channel use the same one,
/// because events that arrive over several connections have no common order.
const LINES: usize = 8;

/// Bytes of an event's payload.
const PAYLOAD_BYTES: usize = 128;

/// How long all clients may take to join.
const ENTER_MAX: Duration = Duration::from_secs(60);

/// A server and all its clients.
pub(super) struct Hall {
    subject: Subject,
    crowd: Crowd,
    /// Connections so far.
    dialled: usize,
    pub(super) audience: Audience,
}

impl Hall {
    /// Lets this number of clients connect and join.
    pub(super) fn open(subject: Subject, clients: usize) -> io::Result<Self> {
        let audience = Audience {
            clients: Vec::new(),
            roles: Vec::new(),
            lines: Vec::new(),
            events: PublishedEvents::new((clients / PER_CHANNEL).max(1)),
            tally: Tally::new(),
            doors: Doors::of(&subject),
            outgoing: Vec::new(),
            began: Instant::now(),
        };
        let mut hall = Self { subject, crowd: Crowd::empty()?, dialled: 0, audience };
        for _ in 0..LINES {
            let line = hall.connect(Role::Line)?;
            hall.audience.lines.push(line);
        }
        for nth in 0..clients {
            hall.enter(nth)?;
            // So that few are on their way in at once.
            if nth.is_multiple_of(50) {
                hall.listen(Duration::from_millis(5))?;
            }
        }
        hall.await_joins()?;
        Ok(hall)
    }

    fn await_joins(&mut self) -> io::Result<()> {
        let began = Instant::now();
        while !self.audience.clients.iter().all(|(client, _)| client.state == State::Joined) {
            self.listen(Duration::from_millis(50))?;
            if began.elapsed() > ENTER_MAX {
                return Err(io::Error::other("not all clients could join"));
            }
        }
        Ok(())
    }

    /// The server's accounts.
    pub(super) fn observed(&self) -> Observed {
        self.subject.observed
    }

    /// Opens a connection; answers its number.
    fn connect(&mut self, role: Role) -> io::Result<usize> {
        self.audience.roles.push(role);
        let socket = self.dial()?;
        self.crowd.add(socket, Cut::Answers)
    }

    fn dial(&mut self) -> io::Result<TcpStream> {
        self.dialled += 1;
        self.subject.dial(self.dialled, None)
    }

    /// Has a client knock.
    fn enter(&mut self, nth: usize) -> io::Result<()> {
        let channel = nth / PER_CHANNEL % self.audience.events.channels();
        let doors = &self.audience.doors;
        let client = doors.client(version(nth), channel);
        let (open, upgrade) = (doors.open(client.version), doors.upgrade(client.version));
        let carrier = if nth % PER_CHANNEL < POLLERS {
            let poller = self.connect(Role::Poller(nth))?;
            let poster = self.connect(Role::Poster(nth))?;
            self.audience.outgoing.push((poller, open));
            Carrier::Poll(Polls::new(poller, poster))
        } else {
            let member = self.connect(Role::Socket(nth))?;
            self.audience.outgoing.push((member, upgrade));
            Carrier::Socket { member }
        };
        self.audience.clients.push((client, carrier));
        Ok(())
    }

    /// Writes what is to be written, waits at most so long, and looks at what came.
    pub(super) fn listen(&mut self, wait_max: Duration) -> io::Result<()> {
        self.write();
        let Self { crowd, audience, .. } = self;
        crowd.listen(wait_max, |arrival| audience.arrived(&arrival))?;
        self.write();
        Ok(())
    }

    fn write(&mut self) {
        let Audience { outgoing, tally, .. } = &mut self.audience;
        for (member, bytes) in outgoing.drain(..) {
            if let Err(error) = self.crowd.write(member, &bytes) {
                tally.failed(&format!("a write: {error}"));
            }
        }
    }

    /// The web application publishes on the next channel.
    pub(super) fn trigger(&mut self, nth: usize) {
        let sent_us = elapsed_us(self.audience.began);
        let Audience { events, lines, outgoing, .. } = &mut self.audience;
        let channel = nth % events.channels();
        let line = lines[channel % lines.len()];
        let event = events.publish(channel, TRIGGERS, sent_us);
        let payload = event.payload(PAYLOAD_BYTES);
        let body = format!(r#"{{"topic":"{}","event":"msg","payload":{payload}}}"#, name(channel));
        outgoing.push((line, self.subject.trigger(&body)));
        self.audience.tally.triggers += 1;
    }

    /// The next of those who publish does.
    pub(super) fn push(&mut self, nth: usize) {
        let channels = self.audience.events.channels();
        let (channel, speaker) = (nth % channels, nth / channels % SPEAKERS);
        let speaking = channel * PER_CHANNEL + SPEAKS[speaker];
        let sent_us = elapsed_us(self.audience.began);
        let Audience { clients, events, tally, .. } = &mut self.audience;
        let Some((client, _)) = clients.get_mut(speaking) else { return };
        let event = events.publish(channel, 1 + speaker, sent_us);
        let message = client.push(&event, PAYLOAD_BYTES);
        tally.pushes += 1;
        self.audience.say(speaking, message);
    }

    /// The n-th client leaves its channel, for another.
    pub(super) fn leave(&mut self, nth: usize) {
        let nth = nth % self.audience.clients.len();
        if self.may_go(nth) {
            let leave = self.audience.clients[nth].0.leave();
            self.audience.say(nth, leave);
        }
    }

    /// The n-th client hangs up, and comes back over another connection.
    pub(super) fn reconnect(&mut self, nth: usize) -> io::Result<()> {
        let nth = nth % self.audience.clients.len();
        let (client, Carrier::Socket { member }) = &self.audience.clients[nth] else {
            return Ok(());
        };
        let (version, channel, member) = (client.version, client.channel, *member);
        if self.may_go(nth) {
            self.write();
            let socket = self.dial()?;
            self.crowd.replace(member, socket, Cut::Answers)?;
            self.audience.clients[nth].0 = self.audience.doors.client(version, channel);
            self.audience.outgoing.push((member, self.audience.doors.upgrade(version)));
            self.audience.tally.reconnects += 1;
        }
        Ok(())
    }

    fn may_go(&self, nth: usize) -> bool {
        let is_joined = self.audience.clients[nth].0.state == State::Joined;
        is_joined && !SPEAKS.contains(&(nth % PER_CHANNEL))
    }

    /// The n-th client says that it is still there.
    pub(super) fn heartbeat(&mut self, nth: usize) {
        let nth = nth % self.audience.clients.len();
        if self.audience.clients[nth].0.state != State::Opening {
            let heartbeat = self.audience.clients[nth].0.heartbeat();
            self.audience.say(nth, heartbeat);
        }
    }

    /// Waits until everything has arrived, at most so long; counts what is missing then.
    pub(super) fn settle(&mut self, wait_max: Duration) -> io::Result<()> {
        let over = Instant::now();
        while over.elapsed() < wait_max && self.audience.awaited() > 0 {
            self.listen(Duration::from_millis(50))?;
        }
        self.audience.note_missing();
        for _ in 0..self.crowd.lost() {
            self.audience.tally.failed("a connection was hung up on");
        }
        Ok(())
    }
}

fn elapsed_us(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}
