//! From an upgrade request to a session: takes the bare socket out of the HTTP server.
//!
//! Every request that asks for a WebSocket on a socket's path arrives here, and every `CONNECT`;
//! neither arrives at the actix-web app. The [`UpgradeHandler`] decides whether it becomes a
//! session, and this file takes its socket. Nothing of the HTTP connection is kept, or it would
//! stay in memory for the session's life.

use std::{future::Future, io, net::SocketAddr, pin::Pin, rc::Rc, time::Duration};

use actix_codec::Framed;
use actix_http::{
    Request, RequestHead, StatusCode, h1,
    header::{HeaderMap, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION},
    ws::{self, CloseReason, OpCode, Parser},
};
use actix_web::http::Method;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use bytestring::ByteString;
use log::debug;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    Close, CloseCode, Conversation, HeldConversation,
    frame_socket::SocketTransport,
    requests::{HttpStream, LeavingConnection},
    websocket,
    worker::{Admission, Worker},
};

/// The time within which a client must take the answer to its handshake. A refused client must close the
/// connection within the same time.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(5);

/// A request for an upgrade, or one that needs an upgrade. It cannot be printed: its query and its
/// headers may hold tokens.
pub struct Handshake<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path.
    pub path: &'a str,
    /// The query string.
    pub query: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The address at the other end of the socket.
    pub peer: Option<SocketAddr>,
}

/// A handshake that is accepted.
pub struct Welcome<C> {
    /// The protocol's side of the connection.
    pub conversation: C,
    /// The subprotocol to answer with.
    pub subprotocol: Option<&'static str>,
    /// The answer to a client that finds no room among the sessions. With `None` the upgrade is refused instead.
    pub when_full: Option<Closing>,
}

/// A handshake that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnedAway {
    /// The upgrade is refused with an HTTP status.
    Refused(UpgradeRefusal),
    /// The upgrade is completed, and the WebSocket is closed at once. Browsers tell a page nothing of a
    /// refused upgrade.
    Closed(Closing),
}

/// A WebSocket that is closed as soon as it is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// The subprotocol to answer with.
    pub subprotocol: Option<&'static str>,
    /// A message before the close frame.
    pub last: Option<ByteString>,
    /// The close frame.
    pub close: Close,
}

impl From<UpgradeRefusal> for TurnedAway {
    fn from(refusal: UpgradeRefusal) -> Self {
        Self::Refused(refusal)
    }
}

/// The answer to an upgrade that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpgradeRefusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body, plain text, often empty.
    pub body: String,
}

impl UpgradeRefusal {
    /// A refusal without a body.
    pub fn silent(status: StatusCode) -> Self {
        Self { status, body: String::new() }
    }

    /// The answer to a plain request on a path for upgrades.
    pub fn not_an_upgrade() -> Self {
        Self::bad_handshake(
            "'connection' header must contain 'upgrade' and 'upgrade' header 'websocket', without a body",
        )
    }

    /// The answer to a client that does not speak WebSocket.
    fn bad_handshake(fault: &str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, body: fault.to_owned() }
    }

    /// The answer of a server that has no room, or stops. The client may retry later.
    pub fn unavailable() -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, body: "no room for another session".into() }
    }
}

/// Whether a WebSocket may be requested on a path.
pub type IsSocket = Rc<dyn Fn(&str) -> bool>;

/// A protocol over WebSockets, on paths of its own.
pub trait Protocol: Send + Sync {
    /// Returns whether a path, without empty segments, is one of the protocol's.
    fn is_socket(&self, path: &str) -> bool;

    /// Judges a handshake on one of these paths.
    ///
    /// # Errors
    /// [`TurnedAway`] if the handshake is not accepted.
    fn welcome(
        &self,
        handshake: &Handshake<'_>,
    ) -> Result<Welcome<Box<dyn Conversation>>, TurnedAway>;
}

/// Decides which handshakes become sessions.
pub type UpgradeHandler<C> = Rc<dyn Fn(&Handshake<'_>) -> Result<Welcome<C>, TurnedAway>>;

/// The task that serves a connection which was taken over from the HTTP server.
pub(super) type Upgrading = Pin<Box<dyn Future<Output = Result<(), actix_web::Error>>>>;

/// Refuses all upgrades, on a port without sessions.
pub(super) fn refuse_all<T: SocketTransport>(
    framed: Framed<Box<HttpStream<T>>, h1::Codec>,
) -> Upgrading {
    let parts = framed.into_parts();
    let (io, _, leaving) = parts.io.into_parts();
    Box::pin(async move {
        let answer = UpgradeRefusal::not_an_upgrade().into();
        turn_away(leaving, io, parts.write_buf, answer).await;
        Ok(())
    })
}

/// Serves one upgraded connection up to its first frame.
///
/// From then on the pump is a separate task, and the HTTP server drops its state of the connection, which is
/// 1.4 KB. When the server waits for its connections at a shutdown, sessions are not among them: they have
/// been ended before.
pub(super) fn serve<T: SocketTransport, C: HeldConversation>(
    request: Request,
    framed: Framed<Box<HttpStream<T>>, h1::Codec>,
    worker: Rc<Worker>,
    upgrade_handler: UpgradeHandler<C>,
) -> Upgrading {
    let answer = decide(&request, &worker, &upgrade_handler);
    let parts = framed.into_parts();
    let pending = parts.write_buf;
    // The bytes after the head were not handed over to the HTTP server.
    let (io, early, leaving) = parts.io.into_parts();
    drop((request, upgrade_handler));
    Box::pin(async move {
        let pump = match answer {
            Ok(accepted) => match Box::pin(welcome(io, pending, accepted.head)).await {
                Ok(io) => {
                    let places = (accepted.admission, leaving.into_slot());
                    websocket::start(io, early, accepted.conversation, places, worker)
                }
                Err(_) => return Ok(()),
            },
            Err(answer) => {
                Box::pin(turn_away(leaving, io, pending, answer)).await;
                return Ok(());
            }
        };
        actix_rt::spawn(pump);
        Ok(())
    })
}

/// An accepted handshake, with the head of the 101 response.
struct AcceptedUpgrade<C> {
    head: Vec<u8>,
    conversation: C,
    admission: Admission,
}

/// Decides whether a handshake is accepted. Otherwise it is answered with the returned bytes.
fn decide<C>(
    request: &Request,
    worker: &Worker,
    upgrade_handler: &UpgradeHandler<C>,
) -> Result<AcceptedUpgrade<C>, BytesMut> {
    let handshake = Handshake {
        method: request.method(),
        path: request.path(),
        query: request.uri().query().unwrap_or_default(),
        headers: request.head().headers(),
        peer: request.peer_addr(),
    };
    // Some of the protocols' close codes tell a client never to come back, and another server may let it in.
    if worker.sessions.is_closed() {
        return Err(UpgradeRefusal::unavailable().into());
    }
    let Welcome { conversation, subprotocol, when_full } = match upgrade_handler(&handshake) {
        Ok(welcome) => welcome,
        Err(TurnedAway::Refused(refusal)) => return Err(refusal.into()),
        Err(TurnedAway::Closed(closing)) => return Err(close(request, closing)?),
    };
    let head = switching_protocols(&verify(request.head())?, subprotocol);
    let Some(admission) = worker.sessions.admit() else {
        // The server may have begun to stop meanwhile.
        return Err(match when_full.filter(|_| !worker.sessions.is_closed()) {
            Some(closing) => close(request, closing)?,
            None => UpgradeRefusal::unavailable().into(),
        });
    };
    Ok(AcceptedUpgrade { head, conversation, admission })
}

/// The answer that completes the upgrade and closes the WebSocket at once.
fn close(request: &Request, closing: Closing) -> Result<BytesMut, UpgradeRefusal> {
    let Closing { subprotocol, last, close } = closing;
    let head = switching_protocols(&verify(request.head())?, subprotocol);
    let mut answer = BytesMut::from(&head[..]);
    if let Some(last) = last {
        Parser::write_message(&mut answer, last, OpCode::Text, true, false);
    }
    let Close { code: CloseCode(code), reason } = close;
    let reason = CloseReason { code: code.into(), description: Some(reason.to_owned()) };
    Parser::write_close(&mut answer, Some(reason), false);
    Ok(answer)
}

/// Judges the upgrade itself, after all other checks, and returns the key of the 101 response. The method,
/// `Connection` and `Upgrade` were checked when the head was read.
fn verify(head: &RequestHead) -> Result<[u8; 28], UpgradeRefusal> {
    let headers = head.headers();
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(UpgradeRefusal::bad_handshake("'sec-websocket-version' header must be '13'"));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map_or(&b""[..], |key| key.as_bytes());
    if STANDARD.decode_slice(key, &mut [0; 18]) != Ok(16) {
        let fault = "'sec-websocket-key' header is missing or malformed";
        return Err(UpgradeRefusal::bad_handshake(fault));
    }
    Ok(ws::hash_key(key))
}

fn switching_protocols(accept_key: &[u8], subprotocol: Option<&str>) -> Vec<u8> {
    let begin: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
        connection: Upgrade\r\nsec-websocket-accept: ";
    let field = subprotocol.map_or([""; 2], |name| ["\r\nsec-websocket-protocol: ", name]);
    let [name, value] = field.map(str::as_bytes);
    [begin, accept_key, name, value, b"\r\n\r\n"].concat()
}

/// Writes the pending answers to earlier requests, then the 101 response.
async fn welcome<T: SocketTransport>(mut io: T, pending: BytesMut, head: Vec<u8>) -> io::Result<T> {
    let write = async {
        io.write_all(&pending).await?;
        io.write_all(&head).await
    };
    timeout(REFUSAL_TIME_MAX, write).await??;
    Ok(io)
}

impl From<UpgradeRefusal> for BytesMut {
    /// The bytes of the answer.
    fn from(UpgradeRefusal { status, body }: UpgradeRefusal) -> Self {
        let reason = status.canonical_reason().unwrap_or_default();
        let retry = match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => "retry-after: 1\r\n",
            _ => "",
        };
        let answer = format!(
            "HTTP/1.1 {} {reason}\r\nconnection: close\r\ncontent-length: {}\r\n{retry}\r\n{body}",
            status.as_u16(),
            body.len(),
        );
        answer.as_bytes().into()
    }
}

/// Answers, then waits a little for the client to close. Closing with unread bytes at once would be a reset,
/// which can overtake the answer. Until then the connection counts as a plain one, and is ended like others
/// if its room is needed.
async fn turn_away<T: SocketTransport>(
    mut leaving: LeavingConnection,
    mut io: T,
    pending: BytesMut,
    answer: BytesMut,
) {
    let exchange = async {
        io.write_all(&pending).await?;
        io.write_all(&answer).await?;
        io.shutdown().await?;
        let mut rest = [0; 1024];
        while io.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    tokio::select! {
        done = timeout(REFUSAL_TIME_MAX, exchange) => {
            if !matches!(done, Ok(Ok(()))) {
                debug!("a refused client disconnected before it read its answer");
            }
        }
        () = leaving.give_way() => {}
    }
}
