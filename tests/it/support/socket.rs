//! A raw client for both wire versions, over WebSocket or long-poll: whole frames are sent and
//! compared.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        Error, Message,
        client::IntoClientRequest,
        handshake::client::Response,
        http::{HeaderName, HeaderValue},
        protocol::Role,
    },
};

use super::{DEADLINE, Poller, TestServer};

/// `vsn` 1.0.0.
pub const V1: &str = "1.0.0";
/// `vsn` 2.0.0.
pub const V2: &str = "2.0.0";

/// `vsn` 1.0.0, over long-poll.
pub const V1_POLLED: &str = "1.0.0 polled";
/// `vsn` 2.0.0, over long-poll.
pub const V2_POLLED: &str = "2.0.0 polled";

/// All pairs of a version and a transport, as [`Socket::connect`] takes them.
pub const WAYS: [&str; 4] = [V1, V2, V1_POLLED, V2_POLLED];
/// Those of version 2.
pub const V2_WAYS: [&str; 2] = [V2, V2_POLLED];

/// The transport of the frames.
enum Carrier {
    WebSocket(Box<WebSocketStream<TcpStream>>),
    LongPoll(Box<Poller>),
}

/// A connected client.
pub struct Socket {
    carrier: Carrier,
    is_v2: bool,
    questions: u32,
}

impl Socket {
    /// Connects to `/socket/websocket` with a version, or to `/socket/longpoll`.
    pub async fn connect(server: &TestServer, vsn: &str) -> Self {
        if let Some(vsn) = vsn.strip_suffix(" polled") {
            return Self::polled(Poller::connect(server, vsn).await, vsn);
        }
        Self::open(server, &format!("/socket/websocket?vsn={vsn}")).await
    }

    /// Makes a socket of a session over long-poll.
    pub fn polled(poller: Poller, vsn: &str) -> Self {
        let carrier = Carrier::LongPoll(Box::new(poller));
        Self { carrier, is_v2: vsn.starts_with('2'), questions: 0 }
    }

    /// The session over long-poll underneath.
    pub fn into_poller(self) -> Poller {
        match self.carrier {
            Carrier::LongPoll(poller) => *poller,
            Carrier::WebSocket(_) => panic!("a WebSocket is not polled"),
        }
    }

    fn over_websocket(stream: WebSocketStream<TcpStream>, is_v2: bool) -> Self {
        Self { carrier: Carrier::WebSocket(Box::new(stream)), is_v2, questions: 0 }
    }

    /// Connects to any path; the handshake must be accepted.
    pub async fn open(server: &TestServer, path: &str) -> Self {
        Self::open_with(server, path, &[]).await.expect("to be let in").0
    }

    /// Connects with extra headers.
    pub async fn open_with(
        server: &TestServer,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<(Self, Response), Error> {
        let url = format!("ws://127.0.0.1:{}{path}", server.port);
        let mut request = url.into_client_request()?;
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
            request.headers_mut().append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let tcp = TcpStream::connect(("127.0.0.1", server.port)).await?;
        let handshake = timeout(DEADLINE, client_async(request, tcp));
        let (stream, response) = handshake.await.expect("an answer in time")?;
        let is_v2 = path.contains("vsn=2");
        Ok((Self::over_websocket(stream, is_v2), response))
    }

    /// Makes a socket of a stream whose handshake the test has done by itself.
    pub async fn over(tcp: TcpStream, vsn: &str) -> Self {
        let stream = WebSocketStream::from_raw_socket(tcp, Role::Client, None).await;
        Self::over_websocket(stream, vsn.starts_with('2'))
    }

    /// The HTTP status and body with which a handshake is refused; 101 if it is accepted.
    pub async fn refused(
        server: &TestServer,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (u16, String) {
        match Self::open_with(server, path, headers).await {
            Ok(_) => (101, String::new()),
            Err(Error::Http(response)) => {
                let body = response.body().clone().unwrap_or_default();
                (response.status().as_u16(), String::from_utf8_lossy(&body).into_owned())
            }
            Err(other) => panic!("neither let in nor refused: {other}"),
        }
    }

    /// Sends anything.
    pub async fn send(&mut self, message: Message) {
        match (&mut self.carrier, message) {
            (Carrier::WebSocket(stream), message) => {
                stream.send(message).await.expect("the socket takes it");
            }
            (Carrier::LongPoll(poller), Message::Text(text)) => {
                assert_eq!(poller.post(&text).await, 200, "the session takes it");
            }
            (Carrier::LongPoll(_), other) => panic!("long-poll carries no {other:?}"),
        }
    }

    /// Sends text as it is.
    pub async fn text(&mut self, text: impl Into<String>) {
        self.send(Message::text(text.into())).await;
    }

    /// Sends `[join_ref, ref, topic, event, payload]`, or the object of version 1 with the same.
    pub async fn push(&mut self, parts: Value) {
        let text = if self.is_v2 {
            parts.to_string()
        } else {
            let mut object = json!({
                "topic": parts[2], "event": parts[3], "payload": parts[4], "ref": parts[1],
            });
            if !parts[0].is_null() {
                object["join_ref"] = parts[0].clone();
            }
            object.to_string()
        };
        self.text(text).await;
    }

    /// The next message of any kind. The end of a session over long-poll counts as a close without a code.
    pub async fn message(&mut self) -> Message {
        match &mut self.carrier {
            Carrier::WebSocket(stream) => {
                let next = timeout(DEADLINE, stream.next()).await.expect("a message in time");
                next.expect("an open socket").expect("a whole message")
            }
            Carrier::LongPoll(poller) => {
                let next = timeout(DEADLINE, poller.next()).await.expect("a message in time");
                next.map_or(Message::Close(None), Message::text)
            }
        }
    }

    /// The next frame's text.
    pub async fn frame(&mut self) -> String {
        match self.message().await {
            Message::Text(text) => text.as_str().to_owned(),
            other => panic!("expected text, got {other:?}"),
        }
    }

    /// The next frame as `[join_ref, ref, topic, event, payload]`; version 1 has no join_ref, and
    /// exactly its four keys.
    pub async fn next(&mut self) -> Value {
        let frame: Value = serde_json::from_str(&self.frame().await).expect("JSON");
        if self.is_v2 {
            assert_eq!(frame.as_array().map(Vec::len), Some(5), "{frame}");
            return frame;
        }
        let keys: Vec<_> = frame.as_object().expect("an object").keys().cloned().collect();
        let mut sorted = keys.clone();
        sorted.sort();
        assert_eq!(sorted, ["event", "payload", "ref", "topic"], "{frame}");
        json!([null, frame["ref"], frame["topic"], frame["event"], frame["payload"]])
    }

    /// Plays a conversation, written in version 2: a line `> frame` is sent, the frame of a line `< frame` must
    /// be the next to arrive, and nothing may arrive after the last one.
    ///
    /// Version 2 is compared as text. In version 1 the same frames are sent without join_ref, as its clients
    /// do, and compared as JSON.
    pub async fn play(&mut self, script: &str) {
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            match line.split_once(' ') {
                Some((">", frame)) => self.say(frame).await,
                Some(("<", frame)) => self.hear(frame).await,
                _ => panic!("a line begins with > or <: {line}"),
            }
        }
        self.assert_quiet().await;
    }

    /// Sends a frame written in version 2.
    async fn say(&mut self, frame: &str) {
        if self.is_v2 {
            return self.text(frame).await;
        }
        let mut parts: Value = serde_json::from_str(frame).expect("JSON");
        parts[0] = Value::Null;
        self.push(parts).await;
    }

    /// The next frame must be this one, written in version 2.
    async fn hear(&mut self, expected: &str) {
        if self.is_v2 {
            return assert_eq!(self.frame().await, expected);
        }
        let mut expected: Value = serde_json::from_str(expected).expect("JSON");
        expected[0] = Value::Null;
        assert_eq!(self.next().await, expected);
    }

    /// Joins a topic with ref and join_ref `1`; answers the reply's payload.
    pub async fn try_join(&mut self, topic: &str, payload: Value) -> Value {
        self.push(json!(["1", "1", topic, "phx_join", payload])).await;
        let reply = self.next().await;
        assert_eq!((&reply[2], &reply[3]), (&json!(topic), &json!("phx_reply")), "{reply}");
        reply[4].clone()
    }

    /// Joins a topic; the join must succeed.
    pub async fn join(&mut self, topic: &str, payload: Value) {
        let reply = self.try_join(topic, payload).await;
        assert_eq!(reply["status"], "ok", "{topic}: {reply}");
    }

    /// Checks that no frame is waiting: the reply to leaving a topic that was never joined must be the next to
    /// arrive. The reply to a heartbeat would not show this, because it overtakes messages that the server is
    /// still handling.
    pub async fn assert_quiet(&mut self) {
        let unexpected = self.waiting().await;
        assert!(unexpected.is_empty(), "{unexpected:?}");
    }

    /// Checks that no frames but presence diffs are waiting. An announcement takes its place in the order at a time
    /// of its own, so a diff may arrive before or after an event that was published at the same moment.
    pub async fn assert_quiet_but_for_diffs(&mut self) {
        let mut unexpected = self.waiting().await;
        unexpected.retain(|frame| frame[3] != "presence_diff");
        assert!(unexpected.is_empty(), "{unexpected:?}");
    }

    /// The frames that arrive before the reply to leaving a topic that was never joined.
    async fn waiting(&mut self) -> Vec<Value> {
        self.questions += 1;
        let reference = format!("quiet-{}", self.questions);
        self.push(json!([null, reference, "nowhere", "phx_leave", {}])).await;
        let reply =
            json!([null, reference, "nowhere", "phx_reply", {"status": "ok", "response": {}}]);
        let mut waiting = Vec::new();
        loop {
            match self.next().await {
                frame if frame == reply => return waiting,
                frame => waiting.push(frame),
            }
        }
    }

    /// The next message must be the server's close; answers its code.
    pub async fn closed(&mut self) -> u16 {
        match self.message().await {
            Message::Close(Some(frame)) => frame.code.into(),
            other => panic!("expected a close frame, got {other:?}"),
        }
    }

    /// The next message must be the end of the session; answers its code, which a session over long-poll does not
    /// have.
    pub async fn ended_with(&mut self) -> Option<u16> {
        match self.message().await {
            Message::Close(frame) => frame.map(|frame| frame.code.into()),
            other => panic!("expected the end, got {other:?}"),
        }
    }

    /// As [`Socket::ended_with`], for a server that stops: it may be gone before the next request of a session over
    /// long-poll.
    pub async fn ended_or_gone(&mut self) -> Option<u16> {
        let Carrier::LongPoll(poller) = &mut self.carrier else { return self.ended_with().await };
        loop {
            let fetched = timeout(DEADLINE, poller.try_fetch()).await.expect("an answer in time");
            match fetched.map(|answer| answer["status"].clone()) {
                None => return None,
                Some(status) if status == 500 => return None,
                Some(status) => assert_eq!(status, 204, "nothing but the end"),
            }
        }
    }

    /// Checks that no further message arrives, and that the stream ends without an error.
    pub async fn ended(&mut self) {
        let next = timeout(DEADLINE, self.websocket().next()).await.expect("the end in time");
        assert!(next.is_none(), "expected the end, got {next:?}");
    }

    /// All text frames that arrive until the server closes, and the code of the close.
    pub async fn rest(&mut self) -> (Vec<String>, u16) {
        let mut frames = Vec::new();
        loop {
            match self.message().await {
                Message::Text(text) => frames.push(text.as_str().to_owned()),
                Message::Close(Some(frame)) => return (frames, frame.code.into()),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The stream underneath, for a test that does not need the rest.
    pub fn into_tcp(self) -> TcpStream {
        match self.carrier {
            Carrier::WebSocket(stream) => stream.into_inner(),
            Carrier::LongPoll(_) => panic!("long-poll has no stream of its own"),
        }
    }

    /// The stream underneath, for a test that breaks the rules.
    pub fn tcp(&mut self) -> &mut TcpStream {
        self.websocket().get_mut()
    }

    fn websocket(&mut self) -> &mut WebSocketStream<TcpStream> {
        match &mut self.carrier {
            Carrier::WebSocket(stream) => stream,
            Carrier::LongPoll(_) => panic!("long-poll has no stream of its own"),
        }
    }
}
