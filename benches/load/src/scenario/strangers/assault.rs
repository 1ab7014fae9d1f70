//! Many hostile connections, driven by one thread.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    thread,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};

use super::{
    attacks::{Attack, Hostile},
    script::Script,
};
use crate::{observe::Watch, report::say, subject::Subject};

/// How long all attackers together may take to connect.
const ENTER_MAX: Duration = Duration::from_secs(60);

/// Connections refused one after another before the rest give up.
const REFUSALS_MAX: usize = 100;

/// An attack is called off when the server's memory exceeds this: the machine has other users.
pub(super) const MEMORY_MAX: u64 = 3_000_000_000;

/// How often the server's memory is looked at, and drips are sent.
const TICK: Duration = Duration::from_millis(100);

/// Bytes written to, or read from, one connection before it is the next one's turn.
const TURN_BYTES: usize = 64 * 1024;

/// Events of the operating system looked at in one go.
const READY_MAX: usize = 1_024;

/// By how much the attackers' scheduling priority is lower. They stand for other machines, so they
/// must not take the processor from the server or from the neighbour.
const NICE: i32 = 10;

/// The figures of an attack.
pub(super) struct Played {
    /// When the first connection was opened.
    pub(super) began: Instant,
    /// When all connections were about to be closed.
    pub(super) ended: Instant,
    /// Connections that the server accepted.
    pub(super) entered: usize,
    /// Connections that the server had not closed at the end.
    pub(super) open: usize,
    /// Whether it was called off because of [`MEMORY_MAX`].
    pub(super) is_called_off: bool,
    /// Cores that the server kept busy in the second half: what it costs that they stay.
    pub(super) cores: f64,
}

/// Opens the connections of an attack, has them attack for so long, and closes them.
///
/// # Errors
/// The errors of the operating system.
pub(super) fn play(
    attack: &Attack,
    subject: &Subject,
    connections: usize,
    lasting: Duration,
) -> io::Result<Played> {
    // A priority cannot be raised again, so the thread that has lowered its own ends with the attack.
    let attackers = || {
        rustix::process::nice(NICE)?;
        let mut assault = Assault::new(subject)?;
        let began = Instant::now();
        assault.enter(attack, connections)?;
        let entered = assault.members.len();
        let cores = assault.run(lasting)?;
        Ok(Played {
            began,
            ended: Instant::now(),
            entered,
            open: assault.members.iter().flatten().count(),
            is_called_off: assault.is_called_off,
            cores,
        })
    };
    let joined = thread::scope(|scope| scope.spawn(attackers).join());
    joined.unwrap_or_else(|_| Err(io::Error::other("the attackers panicked")))
}

/// An attack under way; all its connections are closed when this is dropped.
struct Assault<'a> {
    subject: &'a Subject,
    poll: Poll,
    /// Those that the server has closed have left an empty place.
    members: Vec<Option<Member>>,
    /// Those that can go on without waiting for the operating system.
    eager: VecDeque<usize>,
    buffer: Vec<u8>,
    is_called_off: bool,
}

struct Member {
    socket: TcpStream,
    script: Script,
    is_eager: bool,
    dripped: Instant,
}

/// The outcome of a turn of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// There is more to do at once.
    More,
    /// The socket takes no more, and has no more.
    Waits,
    /// The server has closed the connection.
    Closed,
}

impl<'a> Assault<'a> {
    fn new(subject: &'a Subject) -> io::Result<Self> {
        Ok(Self {
            subject,
            poll: Poll::new()?,
            members: Vec::new(),
            eager: VecDeque::new(),
            buffer: vec![0; TURN_BYTES],
            is_called_off: false,
        })
    }

    /// Opens all connections before any of them attacks.
    fn enter(&mut self, attack: &Attack, connections: usize) -> io::Result<()> {
        let (began, mut refused) = (Instant::now(), 0);
        let mut hostile = (attack.arm)(self.subject, connections);
        for nth in 0..connections {
            match hostile(nth) {
                Ok(hostile) => {
                    refused = 0;
                    self.add(hostile)?;
                }
                Err(error) => {
                    refused += 1;
                    if refused == REFUSALS_MAX {
                        say(&format!("{refused} connections in a row were refused: {error}"));
                        break;
                    }
                }
            }
            if began.elapsed() > ENTER_MAX || (nth % 64 == 0 && self.must_stop()?) {
                break;
            }
        }
        Ok(())
    }

    fn add(&mut self, Hostile { socket, script }: Hostile) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket);
        let (nth, both) = (self.members.len(), Interest::READABLE | Interest::WRITABLE);
        self.poll.registry().register(&mut socket, Token(nth), both)?;
        let dripped = Instant::now();
        self.members.push(Some(Member { socket, script, is_eager: false, dripped }));
        Ok(())
    }

    fn must_stop(&mut self) -> io::Result<bool> {
        self.is_called_off |= self.subject.observed.resident_bytes()? > MEMORY_MAX;
        Ok(self.is_called_off)
    }

    /// Has all of them attack for so long; answers how many cores the second half kept busy.
    fn run(&mut self, lasting: Duration) -> io::Result<f64> {
        let mut ready = Events::with_capacity(READY_MAX);
        let (began, mut ticked) = (Instant::now(), Instant::now());
        let (mut watch, mut is_half_way) = (Watch::begin(self.subject.observed)?, false);
        while began.elapsed() < lasting && !self.is_called_off {
            if began.elapsed() > lasting / 2 && !is_half_way {
                (watch, is_half_way) = (Watch::begin(self.subject.observed)?, true);
            }
            let wait = if self.eager.is_empty() { TICK / 10 } else { Duration::ZERO };
            match self.poll.poll(&mut ready, Some(wait)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                polled => polled?,
            }
            for event in &ready {
                self.wake(event.token().0);
            }
            for _ in 0..self.eager.len().min(READY_MAX) {
                let Some(nth) = self.eager.pop_front() else { break };
                self.turn(nth);
            }
            if ticked.elapsed() > TICK {
                ticked = Instant::now();
                self.must_stop()?;
                self.drip();
            }
        }
        Ok(watch.seen()?.cores())
    }

    fn wake(&mut self, nth: usize) {
        if let Some(Some(member)) = self.members.get_mut(nth)
            && !std::mem::replace(&mut member.is_eager, true)
        {
            self.eager.push_back(nth);
        }
    }

    fn turn(&mut self, nth: usize) {
        let Some(place) = self.members.get_mut(nth) else { return };
        let Some(member) = place else { return };
        member.is_eager = false;
        match member.turn(&mut self.buffer) {
            Turn::More => self.wake(nth),
            Turn::Waits => {}
            Turn::Closed => *place = None,
        }
    }

    fn drip(&mut self) {
        for place in &mut self.members {
            if place.as_mut().is_some_and(|member| member.drip() == Turn::Closed) {
                *place = None;
            }
        }
    }
}

impl Member {
    /// Writes and reads as much as one turn allows.
    fn turn(&mut self, buffer: &mut [u8]) -> Turn {
        let written = self.write();
        let read = if self.script.reads() { self.read(buffer) } else { Turn::Waits };
        match (written, read) {
            (Turn::Closed, _) | (_, Turn::Closed) => Turn::Closed,
            (Turn::More, _) | (_, Turn::More) => Turn::More,
            (Turn::Waits, Turn::Waits) => Turn::Waits,
        }
    }

    fn write(&mut self) -> Turn {
        let piece = self.script.next();
        if piece.is_empty() {
            return Turn::Waits;
        }
        let written = self.socket.write(piece.get(..TURN_BYTES).unwrap_or(piece));
        if let Ok(bytes) = written {
            self.script.advance(bytes);
        }
        turn_of(written.map(|bytes| bytes.max(1)))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Turn {
        turn_of(self.socket.read(buffer))
    }

    fn drip(&mut self) -> Turn {
        let Some(drip) = self.script.drip() else { return Turn::Waits };
        if self.dripped.elapsed() < drip.every {
            return Turn::Waits;
        }
        self.dripped = Instant::now();
        turn_of(self.socket.write(&drip.bytes))
    }
}

fn turn_of(moved: io::Result<usize>) -> Turn {
    match moved {
        Ok(0) => Turn::Closed,
        Ok(_) => Turn::More,
        Err(error) => match error.kind() {
            ErrorKind::WouldBlock => Turn::Waits,
            ErrorKind::Interrupted => Turn::More,
            _ => Turn::Closed,
        },
    }
}
