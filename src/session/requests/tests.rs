//! The stream, over a pipe.

mod early_answers;
mod giving_way;

use std::{
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use actix_codec::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::{Instant, timeout},
};

use super::{
    ConnectionLimit, ConnectionRules, HttpStream, WorkQueue,
    stream::{FIRST_READ_BYTES_MAX, STUCK_MAX, TURN_BYTES_MAX},
    waiting::Parked,
};
use crate::{
    metrics::{Metrics, labels::Limit},
    session::{
        bucket::PerSecond, connection::ConnectionSlot, unfinished::Unfinished,
        worker::SessionCounter,
    },
};

const DEADLINE: Duration = Duration::from_secs(10);
const SHORT: Duration = Duration::from_millis(100);
const PIPE_BYTES: usize = 1 << 20;

/// Counts how often a task is woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// A client and the stream that it is served over, with a task that is never run.
struct Pipe {
    client: DuplexStream,
    stream: HttpStream<DuplexStream>,
    work_queue: Rc<WorkQueue>,
    wakes: Arc<Wakes>,
}

fn rules() -> ConnectionRules {
    ConnectionRules {
        handshake_timeout: DEADLINE * 6,
        idle_timeout: DEADLINE * 6,
        keep_alive: DEADLINE * 6,
        is_socket: Rc::new(|_: &str| false),
        metrics: Metrics::new(0),
        unfinished: Unfinished::new(1 << 20),
        limit: limit(usize::MAX),
        waiting: Rc::default(),
        waiting_max: usize::MAX,
        stuck: Rc::default(),
        work_queue: Rc::default(),
    }
}

/// A limit of this many connections, without any sessions.
fn limit(connections: usize) -> ConnectionLimit {
    let unfinished = Unfinished::new(1 << 20);
    let sessions = SessionCounter::new(1, unfinished, Metrics::new(0));
    ConnectionLimit::new(None, connections, 1, sessions)
}

/// A place among the connections of a thread.
fn slot() -> ConnectionSlot {
    ConnectionSlot::take(&Arc::default())
}

impl Pipe {
    fn new() -> Self {
        Self::with(rules(), PIPE_BYTES)
    }

    fn with(rules: ConnectionRules, bytes: usize) -> Self {
        Self::among(&Rc::new(rules), bytes)
    }

    /// A connection of a thread that may have others.
    fn among(rules: &Rc<ConnectionRules>, bytes: usize) -> Self {
        let (client, io) = duplex(bytes);
        let stream = HttpStream::new(io, slot(), None, rules.clone());
        Self { client, stream, work_queue: rules.work_queue.clone(), wakes: Arc::default() }
    }

    /// Everything that is handed over now, in reads of at most this many bytes. No other connection
    /// waits in the work queue, so its turns are begun here.
    fn handed_over_by(&mut self, bytes: usize) -> String {
        let waker = Waker::from(self.wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let mut all = Vec::new();
        loop {
            let mut space = vec![0; bytes];
            let mut read = ReadBuf::new(&mut space);
            match Pin::new(&mut self.stream).poll_read(&mut cx, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => all.extend(read.filled()),
                Poll::Pending if self.work_queue.turn(1) > 0 => {}
                Poll::Ready(Ok(())) | Poll::Pending => break,
                Poll::Ready(Err(error)) => panic!("{error}"),
            }
        }
        String::from_utf8(all).expect("text")
    }

    fn handed_over(&mut self) -> String {
        self.handed_over_by(8 * 1024)
    }

    /// Answers the request that was handed over, and writes the answer.
    fn answer(&mut self) {
        drop(self.stream.turn().answer());
        self.flush();
    }

    /// Writes what there is of an answer.
    fn flush(&mut self) {
        let waker = Waker::from(self.wakes.clone());
        let flushed = Pin::new(&mut self.stream).poll_flush(&mut Context::from_waker(&waker));
        assert!(flushed.is_ready());
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(Relaxed)
    }
}

/// Requests of every kind, each whole.
const REQUESTS: [&str; 6] = [
    "GET /1 HTTP/1.1\r\nhost: h\r\n\r\n",
    "POST /2 HTTP/1.1\r\nhost: h\r\ncontent-length: 34\r\n\r\nGET /no HTTP/1.1\r\nhost: h\r\n\r\n12345",
    "POST /3 HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n\
     1d\r\nGET /no HTTP/1.1\r\nhost: h\r\n\r\n\r\n0\r\ntrailer: t\r\n\r\n",
    "POST /4 HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n",
    "HEAD /5 HTTP/1.0\r\n\r\n",
    "DELETE /6 HTTP/1.1\r\nhost: h\r\n\r\n",
];

#[tokio::test]
async fn a_request_is_handed_over_once_the_one_before_it_is_answered() {
    let all = REQUESTS.concat();
    for bytes in [1, 7, 8 * 1024] {
        let mut pipe = Pipe::new();
        pipe.client.write_all(all.as_bytes()).await.expect("room");
        for request in REQUESTS {
            assert_eq!(pipe.handed_over_by(bytes), request);
            assert_eq!(pipe.handed_over_by(bytes), "", "before it is answered");
            pipe.answer();
        }
        assert_eq!(pipe.handed_over_by(bytes), "");
    }
}

#[tokio::test]
async fn wherever_requests_are_split_they_are_handed_over_as_they_were_sent() {
    let all = REQUESTS.concat();
    let ends: Vec<usize> = (1..=REQUESTS.len()).map(|n| REQUESTS[..n].concat().len()).collect();
    for at in 0..all.len() {
        let mut pipe = Pipe::new();
        let (first, second) = all.as_bytes().split_at(at);
        let mut handed_over = String::new();
        for part in [first, second] {
            pipe.client.write_all(part).await.expect("room");
            for _ in REQUESTS {
                handed_over += &pipe.handed_over();
                if ends.contains(&handed_over.len()) {
                    pipe.answer();
                }
            }
        }
        assert_eq!(handed_over, all, "split at {at}");
    }
}

#[tokio::test]
async fn a_client_that_sends_ahead_is_not_read_and_wakes_nobody() {
    let request = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    let count = PIPE_BYTES / request.len();
    let mut pipe = Pipe::new();
    pipe.client.write_all(request.repeat(count).as_bytes()).await.expect("room");
    assert_eq!(pipe.handed_over(), request);
    assert_eq!(pipe.handed_over(), "");
    let woken = pipe.wakes();
    for _ in 0..10 {
        assert_eq!(pipe.handed_over(), "");
    }
    assert_eq!(pipe.wakes(), woken, "nothing moves, and nobody is woken");
    let (_, read_ahead, _) = pipe.stream.into_parts();
    assert!(read_ahead.len() <= FIRST_READ_BYTES_MAX, "{}", read_ahead.len());
}

/// The number of bytes of `request` that are handed over each time before the HTTP server looks at
/// them.
fn handed_over_at_once(pipe: &mut Pipe, request: &str) -> Vec<usize> {
    let mut pieces = Vec::new();
    while pieces.iter().sum::<usize>() < request.len() {
        let woken = pipe.wakes();
        let piece = pipe.handed_over();
        let is_last = pieces.iter().sum::<usize>() + piece.len() == request.len();
        assert_eq!(pipe.wakes() > woken, !is_last, "it goes on by itself");
        pieces.push(piece.len());
    }
    pieces
}

#[tokio::test]
async fn a_large_request_is_handed_over_piece_by_piece() {
    let body = "x".repeat(20_000);
    let request = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 20000\r\n\r\n{body}");
    let mut pipe = Pipe::new();
    pipe.client.write_all(request.as_bytes()).await.expect("room");
    let pieces = handed_over_at_once(&mut pipe, &request);
    assert!(pieces.len() > 2, "{pieces:?}");
    let most = TURN_BYTES_MAX + 8 * 1024;
    assert!(pieces.iter().all(|piece| *piece <= most), "{pieces:?}");
}

#[tokio::test]
async fn a_client_that_takes_no_answer_gives_way_where_there_are_too_many() {
    let rules = Rc::new(ConnectionRules { metrics: Metrics::new(0), ..rules() });
    let mut pipes: Vec<_> = (0..=STUCK_MAX).map(|_| Pipe::among(&rules, 64)).collect();
    let mut ends = Vec::new();
    for pipe in &mut pipes {
        pipe.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
        assert_eq!(pipe.handed_over(), REQUESTS[0]);
        assert!(poll_once(&mut pin!(pipe.stream.write_all(&[b'x'; 100]))).is_pending());
        ends.push(rules.metrics.limit_hits.of(Limit::HttpConnections).get());
    }
    assert_eq!(ends[STUCK_MAX - 1..], [0, 1]);
    let mut is_over = |nth: usize| {
        let pipe: &mut Pipe = &mut pipes[nth];
        poll_once(&mut pin!(pipe.stream.write_all(&[b'x'; 100]))).is_ready()
    };
    assert_eq!([0, 1, STUCK_MAX].map(&mut is_over), [true, false, false]);
}

#[tokio::test]
async fn of_more_that_wait_than_may_the_one_that_has_waited_longest_gives_way_and_strangers_first()
{
    let rules = Rc::new(ConnectionRules { waiting_max: 2, ..rules() });
    let mut pipes = Vec::new();
    for is_trusted in [true, false, false, true] {
        let mut pipe = Pipe::among(&rules, PIPE_BYTES);
        pipe.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
        assert_eq!(pipe.handed_over(), REQUESTS[0]);
        if is_trusted {
            pipe.stream.turn().trust();
        }
        pipe.answer();
        assert_eq!(pipe.handed_over(), "");
        pipes.push(pipe);
    }
    let mut ended = Vec::new();
    for pipe in &mut pipes {
        ended.push(poll_once(&mut pin!(pipe.stream.read(&mut [0]))).is_ready());
    }
    assert_eq!(ended, [false, true, true, false]);
    assert_eq!(rules.metrics.limit_hits.of(Limit::HttpWaiting).get(), 2);
}

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_request_that_was_read_ahead_wakes_the_task_once_it_may_be_served() {
    let request = "GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    let mut pipe = Pipe::new();
    pipe.client.write_all(request.repeat(3).as_bytes()).await.expect("room");
    for left in [2, 1, 0] {
        assert_eq!(pipe.handed_over(), request);
        let woken = pipe.wakes();
        pipe.answer();
        assert_eq!(pipe.wakes() - woken, usize::from(left > 0), "{left} are left");
    }
}

#[tokio::test]
async fn an_end_is_told_at_once_unless_requests_came_before_it() {
    let [first, .., second] = REQUESTS;
    let mut pipe = Pipe::new();
    pipe.client.write_all([first, second, "GET /half"].concat().as_bytes()).await.expect("room");
    pipe.client.shutdown().await.expect("an end");
    for request in [first, second] {
        assert_eq!(pipe.handed_over(), request);
        pipe.answer();
    }
    let ended = timeout(DEADLINE, pipe.stream.read(&mut [0])).await.expect("in time");
    assert_eq!(ended.expect("an end"), 0, "half a request is none");

    let mut pipe = Pipe::new();
    pipe.client.write_all(first.as_bytes()).await.expect("room");
    assert_eq!(pipe.handed_over(), first);
    pipe.client.shutdown().await.expect("an end");
    let ended = timeout(DEADLINE, pipe.stream.read(&mut [0])).await.expect("in time");
    assert_eq!(ended.expect("an end"), 0, "while the first is being served");
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_answered_here_and_counted() {
    let malformed = "HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let too_large = "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\
                     connection: close\r\n\r\n";
    let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(200_000));
    for (bytes, expected) in [
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", malformed),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0", malformed),
        ("SSH-2.0-OpenSSH_9.6\r\n", malformed),
        ("GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", malformed),
        (&long, too_large),
    ] {
        let rules = rules();
        let metrics = rules.metrics.clone();
        let mut pipe = Pipe::with(rules, PIPE_BYTES);
        pipe.client.write_all(bytes.as_bytes()).await.expect("room");
        assert_eq!(pipe.handed_over(), "", "{bytes}");
        let closing = async {
            pipe.stream.shutdown().await.expect("an end");
            drop(pipe.stream);
        };
        let mut answer = String::new();
        let both = async { tokio::join!(closing, pipe.client.read_to_string(&mut answer)) };
        timeout(DEADLINE, both).await.expect("in time").1.expect("text");
        assert_eq!(answer, expected);
        assert_eq!(metrics.malformed_requests.get(), 1);
    }
}

#[tokio::test]
async fn a_body_in_broken_chunks_is_handed_over_up_to_the_fault_and_no_further() {
    let request =
        "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\n12345\r\n0\r\n\r\n";
    let mut pipe = Pipe::new();
    pipe.client.write_all(request.as_bytes()).await.expect("room");
    assert_eq!(pipe.handed_over(), request);
    pipe.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
    pipe.answer();
    assert_eq!(pipe.handed_over(), "");
}

/// The way in which a connection ends on which the client does nothing more, the bytes that the client is
/// sent, and the numbers of hits of the limits `Handshake` and `Idle`.
async fn end(
    rules: ConnectionRules,
    bytes: &str,
    is_answered: bool,
) -> (Result<(), io::ErrorKind>, String, [u64; 2]) {
    let metrics = rules.metrics.clone();
    let mut pipe = Pipe::with(rules, PIPE_BYTES);
    pipe.client.write_all(bytes.as_bytes()).await.expect("room");
    pipe.handed_over();
    if is_answered {
        pipe.answer();
    }
    let ended = timeout(DEADLINE, pipe.stream.read(&mut [0])).await.expect("an end in time");
    let ended = ended.map(|bytes| assert_eq!(bytes, 0)).map_err(|error| error.kind());
    let mut said = String::new();
    if ended.is_ok() {
        pipe.client.shutdown().await.expect("an end");
        pipe.stream.shutdown().await.expect("an end");
        drop(pipe.stream);
        pipe.client.read_to_string(&mut said).await.expect("text");
    }
    (ended, said, [Limit::Handshake, Limit::Idle].map(|limit| metrics.limit_hits.of(limit).get()))
}

#[tokio::test]
async fn a_client_that_stands_still_is_closed_when_its_time_is_up() {
    let late = "HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let first = || ConnectionRules { handshake_timeout: SHORT, ..rules() };
    let rest = || ConnectionRules { idle_timeout: SHORT, ..rules() };
    let next = || ConnectionRules { keep_alive: SHORT, ..rules() };
    let [whole, half_body, ..] = REQUESTS;
    let half_body = &half_body[..half_body.len() - 1];
    let second_head = [whole, "GET /half"].concat();
    let timed_out = Err(io::ErrorKind::TimedOut);
    assert_eq!(end(first(), "", false).await, (Ok(()), late.to_owned(), [1, 0]));
    assert_eq!(end(first(), "GET /half", false).await, (Ok(()), late.to_owned(), [1, 0]));
    assert_eq!(end(next(), whole, true).await, (Ok(()), String::new(), [0, 0]));
    assert_eq!(end(rest(), &second_head, true).await, (timed_out, String::new(), [0, 1]));
    assert_eq!(end(rest(), half_body, false).await, (timed_out, String::new(), [0, 1]));
}

#[tokio::test]
async fn an_answer_that_is_not_taken_ends_the_connection() {
    let rules = ConnectionRules { idle_timeout: SHORT, ..rules() };
    let metrics = rules.metrics.clone();
    let mut pipe = Pipe::with(rules, 64);
    pipe.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
    assert_eq!(pipe.handed_over(), REQUESTS[0]);
    let written = timeout(DEADLINE, pipe.stream.write_all(&[b'a'; 65])).await.expect("in time");
    assert_eq!(written.map_err(|error| error.kind()), Err(io::ErrorKind::TimedOut));
    assert_eq!(metrics.limit_hits.of(Limit::Idle).get(), 1);
}

/// Sends a byte in each quarter of [`SHORT`], until the other side has closed the connection.
async fn trickle(client: &mut DuplexStream) {
    let mut pace = tokio::time::interval(SHORT / 4);
    loop {
        pace.tick().await;
        if client.write_u8(b'\n').await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_request_that_trickles_has_as_long_as_silence_has() {
    let [whole, half_body, ..] = REQUESTS;
    let half_body = half_body.split_inclusive("\r\n\r\n").next().expect("a head");
    for (begun, is_answered) in [(half_body, false), (whole, true)] {
        let mut pipe = Pipe::with(ConnectionRules { idle_timeout: SHORT, ..rules() }, PIPE_BYTES);
        pipe.client.write_all(begun.as_bytes()).await.expect("room");
        assert_eq!(pipe.handed_over(), begun);
        if is_answered {
            pipe.answer();
        }
        let began = Instant::now();
        let reading = async {
            loop {
                if let Err(error) = pipe.stream.read_u8().await {
                    return error.kind();
                }
            }
        };
        let ended = timeout(DEADLINE, async {
            tokio::select! {
                kind = reading => Some(kind),
                () = trickle(&mut pipe.client) => None,
            }
        });
        assert_eq!(ended.await.expect("an end in time"), Some(io::ErrorKind::TimedOut));
        assert!(began.elapsed() >= SHORT / 2, "not at once");
    }
}

#[tokio::test]
async fn of_more_connections_than_may_be_the_one_that_has_waited_longest_gives_way() {
    let rules = Rc::new(ConnectionRules { limit: limit(3), ..rules() });
    let hits = || rules.metrics.limit_hits.of(Limit::HttpConnections).get();
    let open = || Pipe::among(&rules, PIPE_BYTES);
    let (mut served, mut useful, mut half) = (open(), open(), open());
    half.client.write_all(b"GET /half").await.expect("room");
    assert_eq!(half.handed_over(), "");
    for pipe in [&mut served, &mut useful] {
        pipe.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
        assert_eq!(pipe.handed_over(), REQUESTS[0]);
    }
    useful.answer();
    assert_eq!((useful.handed_over(), hits()), (String::new(), 0), "as many as may be");

    // `half` has waited for longer than `useful`: since before the answer to it.
    let wakes = half.wakes();
    let mut late = open();
    assert_eq!((hits(), half.wakes()), (1, wakes + 1));
    let ended = timeout(DEADLINE, half.stream.read(&mut [0])).await.expect("an end in time");
    assert_eq!(ended.expect("it is told"), 0);
    half.stream.shutdown().await.expect("an end");
    drop(half.stream);
    let mut said = String::new();
    half.client.read_to_string(&mut said).await.expect("text");
    assert!(said.starts_with("HTTP/1.1 408 "), "{said}");

    // Without it there is room; the next has to go once there is none.
    drop(late.stream);
    late = open();
    assert_eq!(hits(), 1);
    let another = open();
    assert_eq!(hits(), 2);
    let ended = timeout(DEADLINE, useful.stream.read(&mut [0])).await.expect("an end in time");
    assert_eq!(ended.expect("it is told nothing"), 0);
    drop((late, useful));

    // The one that is served is left alone, and answered.
    served.answer();
    served.client.write_all(REQUESTS[5].as_bytes()).await.expect("room");
    assert_eq!(served.handed_over(), REQUESTS[5]);
    drop(another);
}

#[tokio::test]
async fn where_every_connection_is_served_a_new_one_is_told_to_come_back() {
    let rules = Rc::new(ConnectionRules { limit: limit(1), ..rules() });
    let mut served = Pipe::among(&rules, PIPE_BYTES);
    served.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
    assert_eq!(served.handed_over(), REQUESTS[0]);
    let mut refused = Pipe::among(&rules, PIPE_BYTES);
    refused.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
    refused.client.shutdown().await.expect("an end");
    assert_eq!(refused.handed_over(), "");
    refused.stream.shutdown().await.expect("an end");
    drop(refused.stream);
    let mut said = String::new();
    refused.client.read_to_string(&mut said).await.expect("text");
    assert_eq!(said, UNAVAILABLE);
    served.answer();
    drop(served);
    let mut welcome = Pipe::among(&rules, PIPE_BYTES);
    welcome.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
    assert_eq!(welcome.handed_over(), REQUESTS[0]);
}

/// The first half of a head, which has this many bytes, and the other half.
fn halves(bytes: usize) -> (String, String) {
    let around = "GET / HTTP/1.1\r\nhost: h\r\na: \r\n\r\n".len();
    let head =
        format!("GET / HTTP/1.1\r\nhost: h\r\na: {}\r\n\r\n", "b".repeat(2 * bytes - around));
    let (first, second) = head.split_at(bytes);
    (first.to_owned(), second.to_owned())
}

/// Connections that share a budget of unfinished work. Each has sent the first half of a head; `sizes`
/// are the bytes of these halves.
async fn half_heads(budget: usize, sizes: &[usize]) -> (Rc<ConnectionRules>, Vec<Pipe>) {
    let rules = Rc::new(ConnectionRules { unfinished: Unfinished::new(budget), ..rules() });
    let mut pipes = Vec::new();
    for size in sizes {
        let mut pipe = Pipe::among(&rules, PIPE_BYTES);
        pipe.client.write_all(halves(*size).0.as_bytes()).await.expect("room");
        assert_eq!(pipe.handed_over(), "");
        pipes.push(pipe);
    }
    (rules, pipes)
}

/// The last bytes that a client is sent on a connection that ends.
async fn farewell(mut pipe: Pipe) -> String {
    let ended = timeout(DEADLINE, pipe.stream.read(&mut [0])).await.expect("an end in time");
    assert_eq!(ended.expect("it can be told"), 0);
    pipe.client.shutdown().await.expect("an end");
    pipe.stream.shutdown().await.expect("an end");
    drop(pipe.stream);
    let mut said = String::new();
    pipe.client.read_to_string(&mut said).await.expect("text");
    said
}

const UNAVAILABLE: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\n\
                           connection: close\r\n\r\n";

#[tokio::test]
async fn half_heads_share_a_budget_and_the_largest_gives_way() {
    let (rules, mut pipes) = half_heads(150_000, &[10_000, 40_000, 20_000]).await;
    let hits = || rules.metrics.limit_hits.of(Limit::UnfinishedBytes).get();
    assert_eq!(hits(), 0);
    let woken = pipes[1].wakes();
    let mut last = Pipe::among(&rules, PIPE_BYTES);
    last.client.write_all(halves(30_000).0.as_bytes()).await.expect("room");
    assert_eq!(last.handed_over(), "");
    assert_eq!(pipes[1].wakes(), woken + 1, "whoever it is that came last");
    assert_eq!(farewell(pipes.remove(1)).await, UNAVAILABLE);
    assert_eq!(hits(), 1);
    pipes.push(last);
    for (pipe, size) in pipes.iter_mut().zip([10_000, 20_000, 30_000]) {
        let (first, second) = halves(size);
        pipe.client.write_all(second.as_bytes()).await.expect("room");
        // In two turns, if it is large.
        let handed_over = pipe.handed_over() + &pipe.handed_over();
        assert!(handed_over == first + &second, "the others go on: {size}");
        pipe.answer();
    }
}

#[tokio::test]
async fn small_half_heads_count_as_well_and_what_is_complete_counts_no_more() {
    let (rules, mut pipes) = half_heads(20_000, &[3_000; 6]).await;
    let hits = || rules.metrics.limit_hits.of(Limit::UnfinishedBytes).get();
    let (first, second) = halves(3_000);
    let half = || async {
        let mut pipe = Pipe::among(&rules, PIPE_BYTES);
        pipe.client.write_all(first.as_bytes()).await.expect("room");
        pipe
    };
    let mut seventh = half().await;
    assert_eq!(farewell(seventh).await, UNAVAILABLE, "of seven that are alike one is too many");
    pipes.truncate(2);
    // A large request that is being served counts until it is answered.
    for pipe in &mut pipes {
        pipe.client.write_all(second.as_bytes()).await.expect("room");
        assert_eq!(pipe.handed_over().len(), 6_000);
    }
    let mut others = [half().await, half().await];
    assert_eq!((others[0].handed_over(), others[1].handed_over()), (String::new(), String::new()));
    assert_eq!(hits(), 1, "18,000 of 20,000 bytes");
    seventh = half().await;
    assert_eq!(seventh.handed_over(), "");
    let ended = timeout(DEADLINE, pipes[1].stream.read(&mut [0])).await.expect("in time");
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionAborted));
    assert_eq!(hits(), 2);
    pipes[0].answer();
    for mut pipe in others.into_iter().chain([seventh]) {
        pipe.client.write_all(second.as_bytes()).await.expect("room");
        assert_eq!(pipe.handed_over().len(), 6_000);
        pipe.answer();
    }
    assert_eq!(hits(), 2, "what is answered counts no more");
}

#[tokio::test]
async fn bytes_read_ahead_count_and_a_large_buffer_is_not_kept_for_few_bytes() {
    let rules = Rc::new(ConnectionRules { unfinished: Unfinished::new(20_000), ..rules() });
    let mut pipe = Pipe::among(&rules, PIPE_BYTES);
    let (first, second) = halves(5_000);
    let bytes = [first.as_str(), second.as_str(), "GET /second"].concat();
    pipe.client.write_all(bytes.as_bytes()).await.expect("room");
    assert!(pipe.handed_over() == first + &second);
    // 10,000 are served, a few read ahead; the buffer that they came in was larger than both.
    let mut other = Pipe::among(&rules, PIPE_BYTES);
    other.client.write_all(halves(9_000).0.as_bytes()).await.expect("room");
    assert_eq!(other.handed_over(), "");
    assert!(timeout(SHORT, pipe.stream.read(&mut [0])).await.is_err(), "it goes on");
    pipe.client.write_all("x".repeat(8_000).as_bytes()).await.expect("room");
    let ended = timeout(DEADLINE, pipe.stream.read(&mut [0])).await.expect("in time");
    assert_eq!(ended.map_err(|error| error.kind()), Err(io::ErrorKind::ConnectionAborted));
    assert_eq!(rules.metrics.limit_hits.of(Limit::UnfinishedBytes).get(), 1);
}

#[tokio::test]
async fn a_large_body_is_handed_over_in_turns() {
    const BODY: usize = 100_000;
    let mut pipe = Pipe::new();
    let head = format!("POST / HTTP/1.1\r\nhost: h\r\ncontent-length: {BODY}\r\n\r\n");
    let request = format!("{head}{}", "b".repeat(BODY));
    pipe.client.write_all(request.as_bytes()).await.expect("room");
    let mut turns = Vec::new();
    while turns.iter().sum::<usize>() < request.len() {
        let woken = pipe.wakes();
        turns.push(pipe.handed_over().len());
        let is_last = turns.iter().sum::<usize>() == request.len();
        assert!(is_last || pipe.wakes() > woken, "it goes on by itself: {turns:?}");
    }
    assert!(turns.iter().all(|bytes| *bytes <= 40 * 1024), "{turns:?}");
}

#[tokio::test]
async fn where_none_waits_for_its_client_the_request_that_is_parked_longest_is_answered() {
    let rules = Rc::new(ConnectionRules { limit: limit(2), ..rules() });
    let mut pipes = [Pipe::among(&rules, PIPE_BYTES), Pipe::among(&rules, PIPE_BYTES)];
    for pipe in &mut pipes {
        pipe.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
        assert_eq!(pipe.handed_over(), REQUESTS[0]);
    }
    let [mut first, mut second] =
        pipes.each_ref().map(|pipe| Parked::among(pipe.stream.turn().waiting()));
    let mut fresh = Pipe::among(&rules, PIPE_BYTES);
    fresh.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
    assert_eq!(fresh.handed_over(), REQUESTS[0], "it is let in");
    timeout(DEADLINE, first.give_way()).await.expect("it is told");
    assert!(timeout(SHORT, second.give_way()).await.is_err(), "the other goes on waiting");
    drop((first, second));
    let mut refused = Pipe::among(&rules, PIPE_BYTES);
    assert_eq!(refused.handed_over(), "", "none is parked any more");
}

#[tokio::test]
async fn requests_that_anybody_may_send_are_paced_for_each_connection() {
    let rules = Rc::new(rules());
    let turns = [0; 2].map(|_| Pipe::among(&rules, PIPE_BYTES).stream.turn());
    for turn in &turns {
        let taken = (0..100).take_while(|_| turn.note_asked(PerSecond(10), 1.0).is_ok());
        assert_eq!(taken.count(), 10);
        let wait = turn.note_asked(PerSecond(10), 1.05).expect_err("too many");
        assert_eq!(wait.as_millis(), 50);
        assert_eq!(turn.note_asked(PerSecond(10), 1.1), Ok(()));
    }
}
