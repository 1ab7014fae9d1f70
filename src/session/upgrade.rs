//! From an upgrade request to a session: takes the bare socket out of the HTTP server.
//!
//! Every request that asks for a WebSocket on a socket's path arrives here, and every `CONNECT`;
//! neither arrives at the actix-web app. Whether it becomes a session is the [`Doorkeeper`]'s word; how its socket is taken
//! is this file's: nothing of the HTTP connection is kept, or it would stay for the session's life.

use std::{future::Future, io, net::SocketAddr, pin::Pin, rc::Rc, time::Duration};

use actix_codec::Framed;
use actix_http::{
    Request, RequestHead, StatusCode, h1,
    header::{HeaderMap, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION},
    ws,
};
use actix_web::http::Method;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use log::debug;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::{
    Conversation,
    pump::Transport,
    requests::{HttpStream, Leaving},
    websocket,
    worker::{Admission, Worker},
};

/// How long a refused client may take to read its answer.
const REFUSAL_TIME_MAX: Duration = Duration::from_secs(5);

/// A request for an upgrade, or for what only an upgrade can give. It cannot be printed: its query
/// and its headers may hold tokens.
pub struct Handshake<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path.
    pub path: &'a str,
    /// Its query string.
    pub query: &'a str,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// The address at the other end of the socket.
    pub peer: Option<SocketAddr>,
}

/// A handshake that is let in.
pub struct Welcome<C> {
    /// The protocol's side of the connection.
    pub conversation: C,
    /// The subprotocol to answer with.
    pub subprotocol: Option<&'static str>,
}

/// A handshake that is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body, plain text, often empty.
    pub body: String,
}

impl Refusal {
    /// A refusal without words.
    pub fn silent(status: StatusCode) -> Self {
        Self { status, body: String::new() }
    }

    /// A plain request where only an upgrade makes sense.
    pub fn not_an_upgrade() -> Self {
        let body = handshake_fault(&ws::HandshakeError::NoConnectionUpgrade).to_owned();
        Self { status: StatusCode::BAD_REQUEST, body }
    }

    /// The server has no room, or stops: come back later.
    pub fn unavailable() -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, body: "no room for another session".into() }
    }
}

/// Decides who is let in.
pub type Doorkeeper<C> = Rc<dyn Fn(&Handshake<'_>) -> Result<Welcome<C>, Refusal>>;

/// A connection that is taken over.
pub(super) type Upgrading = Pin<Box<dyn Future<Output = Result<(), actix_web::Error>>>>;

/// Refuses to have a connection taken over, where no sessions are.
pub(super) fn refuse_all<T: Transport>(framed: Framed<HttpStream<T>, h1::Codec>) -> Upgrading {
    let parts = framed.into_parts();
    let (io, _, leaving) = parts.io.into_parts();
    Box::pin(async move {
        refuse(io, parts.write_buf, Refusal::not_an_upgrade(), leaving).await;
        Ok(())
    })
}

/// Serves one upgraded connection up to its first frame.
///
/// From then on the pump is a task of its own, and the HTTP server lets go of all that it keeps per
/// connection: 1.4 KB. Who waits for connections does not wait for sessions therefore; a shutdown has
/// seen to them before, one by one.
pub(super) fn serve<T: Transport, C: Conversation + Unpin>(
    request: Request,
    framed: Framed<HttpStream<T>, h1::Codec>,
    worker: Rc<Worker>,
    doorkeeper: Doorkeeper<C>,
) -> Upgrading {
    let answer = decide(&request, &worker, &doorkeeper);
    let parts = framed.into_parts();
    let pending = parts.write_buf;
    // Nothing that follows the head was handed over to the HTTP server.
    let (io, early, leaving) = parts.io.into_parts();
    drop((request, doorkeeper));
    Box::pin(async move {
        let pump = match answer {
            Ok(accepted) => match Box::pin(welcome(io, pending, accepted.head)).await {
                Ok(io) => {
                    websocket::start(io, early, accepted.conversation, accepted.admission, worker)
                }
                Err(_) => return Ok(()),
            },
            Err(refusal) => {
                Box::pin(refuse(io, pending, refusal, leaving)).await;
                return Ok(());
            }
        };
        actix_rt::spawn(pump);
        Ok(())
    })
}

/// A handshake that is let in, with the response head that says so.
struct Accepted<C> {
    head: String,
    conversation: C,
    admission: Admission,
}

fn decide<C>(
    request: &Request,
    worker: &Worker,
    doorkeeper: &Doorkeeper<C>,
) -> Result<Accepted<C>, Refusal> {
    let handshake = Handshake {
        method: request.method(),
        path: request.path(),
        query: request.uri().query().unwrap_or_default(),
        headers: request.head().headers(),
        peer: request.peer_addr(),
    };
    let Welcome { conversation, subprotocol } = doorkeeper(&handshake)?;
    let accept_key = verify(request.head())?;
    let admission = worker.sessions.admit().ok_or_else(Refusal::unavailable)?;
    Ok(Accepted { head: switching_protocols(&accept_key, subprotocol), conversation, admission })
}

/// Judges the upgrade itself, last of all; answers the key of the 101. Its method and what it lists
/// in `Connection` and `Upgrade` have been judged where its head was read.
fn verify(head: &RequestHead) -> Result<String, Refusal> {
    let refused = |fault: ws::HandshakeError| Refusal {
        status: StatusCode::BAD_REQUEST,
        body: handshake_fault(&fault).to_owned(),
    };
    let headers = head.headers();
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(refused(ws::HandshakeError::UnsupportedVersion));
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).map_or(&b""[..], |key| key.as_bytes());
    if STANDARD.decode(key).map(|nonce| nonce.len()) != Ok(16) {
        return Err(refused(ws::HandshakeError::BadWebsocketKey));
    }
    Ok(String::from_utf8_lossy(&ws::hash_key(key)).into_owned())
}

/// What a client that speaks no WebSocket is told.
fn handshake_fault(fault: &ws::HandshakeError) -> &'static str {
    match fault {
        ws::HandshakeError::GetMethodRequired => "a WebSocket handshake is a GET request",
        ws::HandshakeError::NoConnectionUpgrade => "'connection' header must contain 'upgrade'",
        ws::HandshakeError::NoWebsocketUpgrade => "'upgrade' header must contain 'websocket'",
        ws::HandshakeError::NoVersionHeader | ws::HandshakeError::UnsupportedVersion => {
            "'sec-websocket-version' header must be '13'"
        }
        ws::HandshakeError::BadWebsocketKey => "'sec-websocket-key' header is missing",
    }
}

fn switching_protocols(accept_key: &str, subprotocol: Option<&str>) -> String {
    let subprotocol =
        subprotocol.map(|name| format!("sec-websocket-protocol: {name}\r\n")).unwrap_or_default();
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
         sec-websocket-accept: {accept_key}\r\n{subprotocol}\r\n"
    )
}

/// Writes what was pipelined before, then the 101.
async fn welcome<T: Transport>(mut io: T, pending: BytesMut, head: String) -> io::Result<T> {
    let write = async {
        io.write_all(&pending).await?;
        io.write_all(head.as_bytes()).await
    };
    timeout(REFUSAL_TIME_MAX, write).await??;
    Ok(io)
}

/// Answers, then waits a little for the client to hang up: a close over unread bytes would be a
/// reset that overtakes the answer. Until then it is a plain connection, and gives way as others do.
async fn refuse<T: Transport>(
    mut io: T,
    pending: BytesMut,
    refusal: Refusal,
    mut leaving: Leaving,
) {
    let Refusal { status, body } = refusal;
    let reason = status.canonical_reason().unwrap_or_default();
    let retry = match status {
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => "retry-after: 1\r\n",
        _ => "",
    };
    let response = format!(
        "HTTP/1.1 {} {reason}\r\nconnection: close\r\ncontent-length: {}\r\n{retry}\r\n{body}",
        status.as_u16(),
        body.len(),
    );
    let exchange = async {
        io.write_all(&pending).await?;
        io.write_all(response.as_bytes()).await?;
        io.shutdown().await?;
        let mut rest = [0; 1024];
        while io.read(&mut rest).await? > 0 {}
        io::Result::Ok(())
    };
    tokio::select! {
        done = timeout(REFUSAL_TIME_MAX, exchange) => {
            if !matches!(done, Ok(Ok(()))) {
                debug!("a refused client was gone before its answer was read");
            }
        }
        () = leaving.give_way() => {}
    }
}
