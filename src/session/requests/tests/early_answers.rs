//! Answers that are written while a part of the request, or of the answer, is still to come.

use super::*;

/// A request whose body comes in chunks, without its last one.
const CHUNKED: &str =
    "POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";

#[tokio::test]
async fn an_answer_that_does_not_need_the_body_is_the_last_one() {
    let head = "POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 1000\r\n\r\n";
    let mut pipe = Pipe::new();
    pipe.client.write_all(format!("{head}half").as_bytes()).await.expect("room");
    assert_eq!(pipe.handed_over(), format!("{head}half"));
    pipe.answer();
    let ended = timeout(DEADLINE, pipe.stream.read(&mut [0])).await.expect("in time");
    assert_eq!(ended.expect("an end"), 0);
    // Bytes that the client goes on sending are read and dropped; otherwise the answer would be lost.
    pipe.client.write_all(&[b'x'; 900]).await.expect("room");
    let mut closing = pin!(pipe.stream.shutdown());
    assert!(poll_once(&mut closing).is_pending(), "the client may send more");
    drop(pipe.client);
    timeout(DEADLINE, closing).await.expect("in time").expect("an end");
}

#[tokio::test]
async fn a_body_in_chunks_that_is_not_needed_is_read_to_its_end_and_the_connection_stays() {
    let mut pipe = Pipe::new();
    pipe.client.write_all(CHUNKED.as_bytes()).await.expect("room");
    assert_eq!(pipe.handed_over(), CHUNKED);
    pipe.answer();
    assert_eq!(pipe.handed_over(), "");
    // The HTTP server drops the rest, which it is handed over.
    let rest = "3\r\nabc\r\n0\r\n\r\n";
    pipe.client.write_all([rest, REQUESTS[0]].concat().as_bytes()).await.expect("room");
    assert_eq!(pipe.handed_over(), rest);
    pipe.flush();
    assert_eq!(pipe.handed_over(), REQUESTS[0]);
}

#[tokio::test]
async fn a_body_in_chunks_that_is_not_needed_and_has_no_end_is_cut_off_in_time() {
    let mut pipe = Pipe::with(ConnectionRules { idle_timeout: SHORT, ..rules() }, PIPE_BYTES);
    pipe.client.write_all(CHUNKED.as_bytes()).await.expect("room");
    assert_eq!(pipe.handed_over(), CHUNKED);
    pipe.answer();
    let flood = async {
        let chunks = "3\r\nabc\r\n".repeat(1_000);
        while pipe.client.write_all(chunks.as_bytes()).await.is_ok() {}
    };
    let reading = async {
        let mut space = [0; 8 * 1024];
        loop {
            match pipe.stream.read(&mut space).await {
                Ok(bytes) => assert!(bytes > 0, "it is read until then"),
                Err(error) => return error.kind(),
            }
        }
    };
    let ended = timeout(DEADLINE, async {
        tokio::select! {
            kind = reading => Some(kind),
            () = flood => None,
        }
    });
    assert_eq!(ended.await.expect("an end in time"), Some(io::ErrorKind::TimedOut));
}

#[tokio::test]
async fn an_answer_that_is_flushed_in_parts_is_over_only_with_its_body() {
    let mut pipe = Pipe::new();
    pipe.client.write_all(REQUESTS[..2].concat().as_bytes()).await.expect("room");
    assert_eq!(pipe.handed_over(), REQUESTS[0]);
    let answering = pipe.stream.turn().answer();
    pipe.flush();
    assert_eq!(pipe.handed_over(), "", "the next part may still come");
    drop(answering);
    pipe.flush();
    assert_eq!(pipe.handed_over(), REQUESTS[1]);
}
