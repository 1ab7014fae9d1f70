//! The engine's thread: it passes events to the machine, and carries out the machine's outputs.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use redis::{ErrorKind, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection};
use tokio::{
    sync::{mpsc, oneshot},
    time::MissedTickBehavior,
};

use super::{
    connect::describe,
    keys::RedisKeys,
    script::{self, LogRetention, ReplyReader, RequestSpelling},
    supervisor::Up,
};
use crate::engine::{
    NodeId,
    machine::{LineId, Machine, Output, Push},
    request::{CallId, LogIndex, LogRequest, Reply, RequestFailure},
};

/// The interval at which the machine is told the time.
const TICK: Duration = Duration::from_millis(50);

/// The most events that are handled together. Their appends to one log go into one batch.
const EVENTS_AT_ONCE: usize = 512;

/// An event that the driver reacts to.
pub(super) enum DriverEvent {
    /// A connection was made.
    Up(Up),
    /// A connection broke, or (line 0) could not be made.
    Down(LineId, String),
    /// Redis pushed a message; the number is the bytes of its payload.
    Pushed(LineId, Push, usize),
    /// Redis answered.
    Replied(CallId, Result<Reply, RequestFailure>),
    /// The follower answered a question of another node or of this one.
    Answered(u64, NodeId, Bytes),
    /// Another thread made a request.
    Requested(ThreadRequest),
}

/// A request of another thread, which is called on the thread of the machine with the present time.
pub(super) type ThreadRequest = Box<dyn FnOnce(&mut Machine, Instant) + Send>;

struct PipelineLine {
    commands: MultiplexedConnection,
    waiting: Arc<AtomicUsize>,
}

/// The driver of one machine.
pub(super) struct MachineDriver {
    pub(super) machine: Machine,
    pub(super) keys: RedisKeys,
    pub(super) kept: LogRetention,
    pub(super) events: mpsc::UnboundedSender<DriverEvent>,
    pub(super) breaks: mpsc::UnboundedSender<(LineId, String)>,
    lines: BTreeMap<LineId, PipelineLine>,
}

impl MachineDriver {
    pub(super) fn new(
        machine: Machine,
        keys: RedisKeys,
        kept: LogRetention,
        events: mpsc::UnboundedSender<DriverEvent>,
        breaks: mpsc::UnboundedSender<(LineId, String)>,
    ) -> Self {
        Self { machine, keys, kept, events, breaks, lines: BTreeMap::new() }
    }

    /// Runs until `stop` resolves.
    pub(super) async fn run(
        mut self,
        mut received: mpsc::UnboundedReceiver<DriverEvent>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            let gathers_until = self.machine.gathers_until();
            let gathered = async {
                match gathers_until {
                    Some(until) => tokio::time::sleep_until(until.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = received.recv_many(&mut batch, EVENTS_AT_ONCE) => {
                    for event in batch.drain(..) {
                        self.handle(event);
                    }
                }
                _ = tick.tick() => self.machine.tick(Instant::now()),
                () = gathered => {}
                _ = &mut stop => return,
            }
            self.act();
        }
    }

    fn handle(&mut self, event: DriverEvent) {
        let now = Instant::now();
        match event {
            DriverEvent::Up(Up { line, identity, logs, commands, waiting }) => {
                self.lines.insert(line, PipelineLine { commands, waiting });
                self.machine.line_up(line, identity, logs, now);
            }
            DriverEvent::Down(line, reason) => {
                self.lines.remove(&line);
                self.machine.line_down(line, &reason, now);
            }
            DriverEvent::Pushed(line, push, bytes) => {
                if let Some(line) = self.lines.get(&line) {
                    line.waiting.fetch_sub(bytes, Relaxed);
                }
                self.machine.pushed(line, push, now);
            }
            DriverEvent::Replied(call, reply) => self.machine.replied(call, reply, now),
            DriverEvent::Answered(id, to, body) => self.machine.answered(id, to, body),
            DriverEvent::Requested(request) => request(&mut self.machine, now),
        }
    }

    fn act(&mut self) {
        for output in self.machine.outputs(Instant::now()) {
            match output {
                Output::Call(id, line, log, request) => self.call(id, line, log, request),
                Output::Reconnect(line, reason) => {
                    let _ = self.breaks.send((line, reason));
                }
                Output::Spawn { id, to, deadline, answer } => {
                    let events = self.events.clone();
                    tokio::spawn(async move {
                        let answer = tokio::time::timeout_at(deadline.into(), answer).await;
                        if let Ok(answer) = answer {
                            let _ = events.send(DriverEvent::Answered(id, to, answer));
                        }
                    });
                }
            }
        }
    }

    fn call(&self, id: CallId, line: LineId, log: LogIndex, request: LogRequest) {
        let Some(line) = self.lines.get(&line) else { return };
        let (commands, events) = (line.commands.clone(), self.events.clone());
        let read = script::reader_of(&request);
        let spelling = script::spell(&self.keys, log, request, self.kept);
        tokio::spawn(async move {
            let reply = ask(commands, spelling, read).await;
            let _ = events.send(DriverEvent::Replied(id, reply));
        });
    }
}

/// Sends a request to Redis, and reads its answer.
pub(super) async fn ask(
    mut commands: MultiplexedConnection,
    spelling: RequestSpelling,
    read: ReplyReader,
) -> Result<Reply, RequestFailure> {
    let value: Result<Value, _> = match spelling {
        RequestSpelling::Commands(pipeline) => pipeline.query_async(&mut commands).await,
        RequestSpelling::Script(script, arguments) => {
            let answer = script.evalsha(&arguments).query_async(&mut commands).await;
            match answer {
                Err(error) if is_unknown(&error) => {
                    script.eval(&arguments).query_async(&mut commands).await
                }
                answer => answer,
            }
        }
    };
    let value = value.map_err(|error| failure(&error))?;
    let strange = || RequestFailure::Refused {
        text: "the answer has an unexpected form".to_owned(),
        is_elsewhere: true,
    };
    read(value).ok_or_else(strange)
}

fn is_unknown(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}

fn failure(error: &RedisError) -> RequestFailure {
    let is_answer = error.code().is_some();
    if !is_answer || error.is_unrecoverable_error() {
        return RequestFailure::Broken;
    }
    // Older versions of Redis name the reason for a script's failed command only within the text.
    const ELSEWHERE: [&str; 10] = [
        "READONLY",
        "LOADING",
        "MASTERDOWN",
        "CLUSTERDOWN",
        "MOVED",
        "ASK ",
        "NOAUTH",
        "WRONGPASS",
        "NOPERM",
        // The answer of `commit.lua` over a line that may append nothing more: the next line may.
        "FENCED",
    ];
    let text = describe(error);
    let is_elsewhere = ELSEWHERE.iter().any(|code| text.contains(code));
    RequestFailure::Refused { text, is_elsewhere }
}
