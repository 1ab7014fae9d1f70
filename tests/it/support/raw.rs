//! HTTP as bytes, for requests that no client library would send.

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{DEADLINE, TestServer};

/// The bytes that came back before the server hung up, or before the deadline.
#[derive(Debug)]
pub struct Exchange {
    pub bytes: Vec<u8>,
    /// Whether the server has hung up.
    pub is_closed: bool,
}

impl Exchange {
    /// The statuses of all answers, in order.
    pub fn statuses(&self) -> Vec<u16> {
        let text = self.text();
        let heads = text.split("HTTP/1.").skip(1);
        heads.map(|head| head.get(2..5).and_then(|s| s.parse().ok()).unwrap_or(0)).collect()
    }

    /// Everything as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A connection over which nothing has been sent yet.
pub async fn connect(server: &TestServer) -> TcpStream {
    TcpStream::connect(("127.0.0.1", server.port)).await.expect("a connection")
}

/// Writes bytes, as long as the server reads them, and reads until the server hangs up.
pub async fn exchange(server: &TestServer, bytes: &[u8]) -> Exchange {
    let (mut reading, mut writing) = connect(server).await.into_split();
    let bytes = bytes.to_vec();
    let written = tokio::spawn(async move {
        // A server that has answered may stop reading. Only its answer counts.
        let _ = writing.write_all(&bytes).await;
        writing
    });
    let mut got = Vec::new();
    let end = timeout(DEADLINE, reading.read_to_end(&mut got)).await;
    written.abort();
    Exchange { bytes: got, is_closed: end.is_ok() }
}

/// Reads until the server hangs up; fails if it does not in time.
pub async fn hung_up(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    // A reset is an end as well.
    let _ = timeout(DEADLINE, stream.read_to_end(&mut rest)).await.expect("an end in time");
    rest
}

/// Reads one answer that has a `content-length`.
pub async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> (u16, String) {
    let read = async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a whole head"));
        }
        let head = String::from_utf8(head).expect("a head of text").to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().expect("a length"))];
        stream.read_exact(&mut body).await.expect("a whole body");
        let status = head[9..12].parse().expect("a status");
        (status, String::from_utf8(body).expect("a body of text"))
    };
    timeout(DEADLINE, read).await.expect("an answer in time")
}
