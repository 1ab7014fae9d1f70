//! Connections that end because others need their room, or because their clients have had their time. As with
//! the HTTP server, nothing is read from a connection after an answer until its task is woken.

use std::future::{pending, poll_fn};

use tokio::{
    io::{Repeat, repeat},
    time::sleep,
};

use super::*;

/// A connection over which one request was answered.
async fn answered(rules: &Rc<ConnectionRules>) -> Pipe {
    let mut pipe = Pipe::among(rules, PIPE_BYTES);
    pipe.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
    assert_eq!(pipe.handed_over(), REQUESTS[0]);
    pipe.answer();
    pipe
}

/// A connection that was told to give way while its client waited, one that has waited less, and the one that
/// needed the room.
async fn told() -> [Pipe; 3] {
    let rules = Rc::new(ConnectionRules { limit: limit(2), ..rules() });
    let [told, other] = [answered(&rules).await, answered(&rules).await];
    let woken = [told.wakes(), other.wakes()];
    let fresh = Pipe::among(&rules, PIPE_BYTES);
    assert_eq!([told.wakes(), other.wakes()], [woken[0] + 1, woken[1]]);
    [told, other, fresh]
}

/// Reads the end of a connection, which is not an error.
async fn ended(pipe: &mut Pipe) {
    let ended = timeout(DEADLINE, pipe.stream.read(&mut [0])).await.expect("an end in time");
    assert_eq!(ended.expect("it ends between two requests"), 0);
}

#[tokio::test]
async fn a_connection_that_was_answered_is_woken_when_it_must_give_way() {
    let [mut told, other, _fresh] = told().await;
    ended(&mut told).await;
    let woken = other.wakes();
    told.stream.shutdown().await.expect("an end");
    drop(told);
    assert_eq!(other.wakes(), woken, "there is room now");
}

#[tokio::test]
async fn a_connection_is_kept_no_longer_although_a_timer_ended_while_it_was_served() {
    let rules = ConnectionRules { handshake_timeout: SHORT, keep_alive: 4 * SHORT, ..rules() };
    let (mut client, io) = duplex(PIPE_BYTES);
    let mut stream = HttpStream::new(io, slot(), None, Rc::new(rules));
    // It waits for the first request, so that the timer wakes the task that serves it.
    let ((), written) =
        tokio::join!(stream.begun(pending()), client.write_all(REQUESTS[0].as_bytes()));
    written.expect("room");
    let began = Instant::now();
    let mut answer = pin!(sleep(2 * SHORT));
    let mut is_answered = false;
    let served = poll_fn(|cx| {
        let mut space = [0; 1024];
        loop {
            let mut read = ReadBuf::new(&mut space);
            match Pin::new(&mut stream).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if read.filled().is_empty() => return Poll::Ready(()),
                Poll::Ready(done) => done.expect("a request"),
                Poll::Pending => break,
            }
        }
        if !is_answered && answer.as_mut().poll(cx).is_ready() {
            is_answered = true;
            drop(stream.turn().answer());
            assert!(Pin::new(&mut stream).poll_flush(cx).is_ready());
        }
        Poll::Pending
    });
    timeout(DEADLINE, served).await.expect("an end in time");
    let took = began.elapsed();
    assert!((5 * SHORT..DEADLINE).contains(&took), "{took:?}");
}

#[tokio::test]
async fn a_request_that_comes_while_its_connection_is_told_to_end_is_served_as_the_last_one() {
    let [mut told, other, _fresh] = told().await;
    let woken = other.wakes();
    told.client.write_all(REQUESTS[0].repeat(2).as_bytes()).await.expect("room");
    assert_eq!(told.handed_over(), REQUESTS[0]);
    assert_eq!(told.handed_over(), "", "it is being served");
    let woken_told = told.wakes();
    told.answer();
    assert!(told.wakes() > woken_told, "its task learns that it is the last one");
    ended(&mut told).await;
    let mut closing = pin!(told.stream.shutdown());
    assert!(poll_once(&mut closing).is_pending(), "a reset would overtake the answer");
    assert_eq!(other.wakes(), woken, "the room is there as soon as it is answered");
}

#[tokio::test]
async fn a_body_is_awaited_although_its_connection_was_told_to_end_and_another_one_ends() {
    let request = REQUESTS[1];
    let (first, second) = request.split_at(request.len() - 10);
    let [mut told, mut other, _fresh] = told().await;
    told.client.write_all(first.as_bytes()).await.expect("room");
    assert_eq!(told.handed_over(), first);
    assert_eq!(told.handed_over(), "", "it is not cut off");
    ended(&mut other).await;
    told.client.write_all(second.as_bytes()).await.expect("room");
    assert_eq!(told.handed_over(), second);
    told.answer();
    ended(&mut told).await;
}

#[tokio::test]
async fn half_a_head_on_a_connection_that_was_told_to_end_is_answered() {
    let [mut told, other, _fresh] = told().await;
    let woken = other.wakes();
    told.client.write_all(b"GET /half").await.expect("room");
    assert_eq!(told.handed_over(), "");
    assert_eq!(farewell(told).await, UNAVAILABLE);
    assert_eq!(other.wakes(), woken);
}

#[tokio::test]
async fn a_request_whose_connection_is_told_to_end_before_its_turn_is_served_whole() {
    const TURNS: usize = 16;
    let rules = Rc::new(ConnectionRules { limit: limit(TURNS + 1), ..rules() });
    let mut served = Vec::new();
    for _ in 0..TURNS {
        let mut pipe = Pipe::among(&rules, PIPE_BYTES);
        pipe.client.write_all(REQUESTS[0].as_bytes()).await.expect("room");
        let read = poll_once(&mut pin!(pipe.stream.read(&mut [0; 1024])));
        assert!(read.is_ready(), "the turn has room");
        served.push(pipe);
    }
    let request = REQUESTS[1];
    let (first, second) = request.split_at(request.len() - 10);
    let mut last = Pipe::among(&rules, PIPE_BYTES);
    last.client.write_all(first.as_bytes()).await.expect("room");
    assert!(poll_once(&mut pin!(last.stream.read(&mut [0]))).is_pending(), "it has to wait");
    let mut fresh = Pipe::among(&rules, PIPE_BYTES);
    assert_eq!(fresh.handed_over(), "");
    rules.work_queue.turn(0);
    assert_eq!(last.handed_over(), first);
    assert_eq!(last.handed_over(), "", "it is not cut off");
    ended(&mut fresh).await;
    last.client.write_all(second.as_bytes()).await.expect("room");
    assert_eq!(last.handed_over(), second);
    last.answer();
    ended(&mut last).await;
}

/// A client that always has more to say, and takes everything.
struct Flood(Repeat);

impl AsyncRead for Flood {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, out)
    }
}

impl AsyncWrite for Flood {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_client_that_floods_a_connection_that_is_being_closed_is_dropped_in_time() {
    let mut stream = HttpStream::new(Flood(repeat(b'x')), slot(), None, Rc::new(rules()));
    let closed = timeout(DEADLINE, stream.shutdown()).await.expect("an end in time");
    closed.expect("an end");
}
