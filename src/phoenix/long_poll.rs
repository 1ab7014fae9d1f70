//! Long-poll as Phoenix has it: the status lives in the body.
//!
//! Section 9 of the protocol document. Sessions themselves are `session::long_poll`'s; this file
//! reads requests and spells answers. Every outcome is HTTP 200 with JSON, whose `status` clients
//! act on; older ones throw on any status that is not 200, 204, 410 or 500.

use std::rc::Rc;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{
        Method, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
            CACHE_CONTROL, CONTENT_TYPE,
        },
    },
    web,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use bytestring::ByteString;
use uuid::Uuid;

use crate::{
    broker::subscriber::Frame,
    form,
    session::{
        Received,
        long_poll::{LongPolls, Polled, Posted},
        upgrade::Handshake,
        worker::Worker,
    },
};

use super::{
    Conversation,
    connect::{Door, MOUNTS},
    message::{Transport, push_json_string},
    session_token::SessionTokens,
};

/// The lines of one batch that are looked at; the rest is ignored, as Phoenix does.
const BATCH_LINES_MAX: usize = 100;

/// Where newer clients put their session's token; it wins over the param.
const TOKEN_HEADER: &str = "x-phoenix-longpoll-token";

/// Where newer clients put the token of their `authToken` option.
const AUTH_HEADER: &str = "x-phoenix-authtoken";

/// What long-poll requests need; one per worker thread.
pub struct LongPollDoor {
    /// Who is let in.
    pub door: Rc<Door>,
    /// What the sessions of this thread share.
    pub worker: Rc<Worker>,
    /// The sessions.
    pub sessions: LongPolls<Conversation>,
    /// Signs the tokens of sessions.
    pub tokens: SessionTokens,
    /// The largest body.
    pub body_bytes_max: usize,
    /// The largest message in it.
    pub message_bytes_max: usize,
}

/// Whether a path is a mount's `longpoll`.
pub fn is_long_poll(path: &str) -> bool {
    MOUNTS.iter().any(|mount| path.strip_prefix(mount) == Some("/longpoll"))
}

/// Answers a request to a mount's `longpoll`.
pub async fn answer(
    request: HttpRequest,
    body: web::Payload,
    door: web::ThinData<Rc<LongPollDoor>>,
) -> HttpResponse {
    let door = &*door.0;
    let is_known = [Method::GET, Method::POST, Method::OPTIONS].contains(request.method());
    if !is_known {
        return HttpResponse::new(StatusCode::BAD_REQUEST);
    }
    let handshake = Handshake {
        method: request.method(),
        path: request.path(),
        query: request.query_string(),
        headers: request.headers(),
        peer: request.peer_addr(),
    };
    if door.door.check_origin(&handshake).is_err() {
        return status(403);
    }
    match *request.method() {
        Method::OPTIONS => preflight(&request),
        Method::POST => door.post(&request, body).await,
        _ => door.get(&request, &handshake).await,
    }
}

impl LongPollDoor {
    /// Fetches, or opens a session for who has none.
    async fn get(&self, request: &HttpRequest, handshake: &Handshake<'_>) -> HttpResponse {
        let Some(id) = self.session_of(request) else { return self.open(request, handshake) };
        match self.sessions.poll(id).await {
            // A token of ours without a session. On 410 clients up to 1.8.1 would take a new
            // session for the old one and stay deaf; on 500 every generation comes back and joins.
            Polled::Gone => status(500),
            Polled::Frames(frames) if frames.is_empty() => self.messages(204, id, &[]),
            Polled::Frames(frames) => self.messages(200, id, &frames),
        }
    }

    fn open(&self, request: &HttpRequest, handshake: &Handshake<'_>) -> HttpResponse {
        let Ok((version, mut caller)) = self.door.connect(handshake) else { return status(403) };
        let auth = request.headers().get(AUTH_HEADER).and_then(|token| token.to_str().ok());
        caller.bearer = auth.map(|token| self.door.bearer(token.to_owned()));
        let rules = self.door.rules.clone();
        let conversation = Conversation::new(version, Transport::LongPoll, caller, rules);
        match self.sessions.open(conversation, &self.worker) {
            Some(id) => self.messages(410, id, &[]),
            // No room, or the server stops: clients come back after a while.
            None => status(500),
        }
    }

    async fn post(&self, request: &HttpRequest, body: web::Payload) -> HttpResponse {
        let Some(id) = self.session_of(request) else { return status(410) };
        let is_batch =
            request.headers().get(CONTENT_TYPE).is_some_and(|t| t == "application/x-ndjson");
        let Ok(Ok(body)) = body.to_bytes_limited(self.body_bytes_max).await else {
            return HttpResponse::new(StatusCode::BAD_REQUEST);
        };
        let messages = match messages(is_batch, body, self.message_bytes_max) {
            Ok(messages) => messages,
            Err(fault) => return HttpResponse::new(fault.status()),
        };
        match self.sessions.post(id, messages).await {
            Posted::Done => status(200),
            Posted::Late => status(408),
            Posted::Gone => status(410),
        }
    }

    /// The session that a request names, by header or else by the last `token` param.
    fn session_of(&self, request: &HttpRequest) -> Option<Uuid> {
        let header = request.headers().get(TOKEN_HEADER).and_then(|token| token.to_str().ok());
        if let Some(token) = header {
            return self.tokens.read(token);
        }
        self.tokens.read(form::parse(request.query_string().as_bytes()).get("token")?.as_str()?)
    }

    fn messages(&self, status: u16, id: Uuid, frames: &[Frame]) -> HttpResponse {
        let token = self.tokens.mint(id);
        let bytes: usize = frames.iter().map(|frame| frame.size_bytes() + 16).sum();
        let mut body = String::with_capacity(128 + bytes);
        body.push_str(&format!(r#"{{"status":{status},"token":"{token}","messages":["#));
        for (nth, text) in frames.iter().filter_map(text_of).enumerate() {
            if nth > 0 {
                body.push(',');
            }
            push_item(&mut body, text);
        }
        body.push_str("]}");
        json(body)
    }
}

/// A frame's text. Bytes are not sent this way: [`Transport::LongPoll`] has no format for them.
fn text_of(frame: &Frame) -> Option<&str> {
    match frame {
        Frame::Text(text) => Some(text),
        Frame::Binary(_) => None,
    }
}

/// Appends a frame to `messages`: version 2's arrays as text; version 1's objects as they are, for
/// its clients would choke on text (section 9.4).
fn push_item(body: &mut String, text: &str) {
    if text.starts_with('{') {
        body.push_str(text);
    } else {
        push_json_string(body, text);
    }
}

/// Why a body is not taken.
#[derive(Debug, PartialEq, Eq)]
enum BodyFault {
    /// It is not text, or holds a message that is too large.
    Unreadable,
    /// A line of a batch is neither a message nor base64.
    NoMessage,
}

impl BodyFault {
    /// The HTTP status, as Phoenix has it: one of the few that are not 200.
    fn status(&self) -> StatusCode {
        match self {
            Self::Unreadable => StatusCode::BAD_REQUEST,
            Self::NoMessage => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// The messages of a body: the lines of a batch, or all of it as one text.
fn messages(is_batch: bool, body: Bytes, bytes_max: usize) -> Result<Vec<Received>, BodyFault> {
    let body = ByteString::try_from(body).map_err(|_| BodyFault::Unreadable)?;
    let messages = match is_batch {
        true => batch(&body)?,
        false => vec![Received::Text(body)],
    };
    match messages.iter().any(|message| message.size_bytes() > bytes_max) {
        true => Err(BodyFault::Unreadable),
        false => Ok(messages),
    }
}

/// The lines of a batch: `[…` is text, anything else a binary message in base64; empty lines are
/// nobody's message.
fn batch(body: &ByteString) -> Result<Vec<Received>, BodyFault> {
    let message = |line: &str| {
        if line.starts_with('[') {
            // A copy: a slice would keep the whole body for as long as one line waits.
            return Ok(Received::Text(ByteString::from(line)));
        }
        let bytes = STANDARD.decode(line).map_err(|_| BodyFault::NoMessage)?;
        Ok(Received::Binary(bytes.into()))
    };
    let lines = body.lines().filter(|line| !line.is_empty());
    lines.take(BATCH_LINES_MAX).map(message).collect()
}

fn preflight(request: &HttpRequest) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response
        .insert_header((ACCESS_CONTROL_ALLOW_ORIGIN, "*"))
        .insert_header((ACCESS_CONTROL_ALLOW_METHODS, "get, post, options"))
        .insert_header((ACCESS_CONTROL_MAX_AGE, "3600"))
        .insert_header((CACHE_CONTROL, "no-store"));
    if let Some(asked) = request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS) {
        response.insert_header((ACCESS_CONTROL_ALLOW_HEADERS, asked.clone()));
    }
    response.finish()
}

fn status(status: u16) -> HttpResponse {
    json(format!(r#"{{"status":{status}}}"#))
}

fn json(body: String) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "application/json; charset=utf-8"))
        .insert_header((ACCESS_CONTROL_ALLOW_ORIGIN, "*"))
        .insert_header((CACHE_CONTROL, "no-store"))
        .body(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: usize = 20;

    fn text(message: &str) -> Received {
        Received::Text(message.into())
    }

    fn binary(message: &'static [u8]) -> Received {
        Received::Binary(Bytes::from_static(message))
    }

    #[test]
    fn e144_e147_the_messages_of_a_batch_are_its_lines() {
        let (fits, too_large) = (format!("[{:19}", ""), format!("[{:20}", ""));
        for (case, body, expected) in [
            ("nothing", "", Ok(vec![])),
            ("one", "[1]", Ok(vec![text("[1]")])),
            ("several", "[1]\n[2]\r\n[3]", Ok(vec![text("[1]"), text("[2]"), text("[3]")])),
            ("empty lines", "\n[1]\n\r\n\n", Ok(vec![text("[1]")])),
            ("binary", "[1]\nAAH/\n[2]", Ok(vec![text("[1]"), binary(b"\0\x01\xff"), text("[2]")])),
            ("padded", "AA==", Ok(vec![binary(b"\0")])),
            ("not padded", "AA", Err(BodyFault::NoMessage)),
            ("base64 for URLs", "AAH_", Err(BodyFault::NoMessage)),
            ("an object", r#"{"topic":"t"}"#, Err(BodyFault::NoMessage)),
            ("a space before", " [1]", Err(BodyFault::NoMessage)),
            ("one of several", "[1]\n!\n[2]", Err(BodyFault::NoMessage)),
            ("what just fits", &fits, Ok(vec![text(&fits)])),
            ("one that is too large", &too_large, Err(BodyFault::Unreadable)),
        ] {
            let body = Bytes::copy_from_slice(body.as_bytes());
            assert_eq!(messages(true, body, BYTES_MAX), expected, "{case}");
        }
    }

    #[test]
    fn e146_lines_beyond_the_hundredth_are_not_even_looked_at() {
        let body = format!("{}!!!", "[1]\n".repeat(BATCH_LINES_MAX));
        let taken = messages(true, body.into(), BYTES_MAX).expect("messages");
        assert_eq!(taken, vec![text("[1]"); BATCH_LINES_MAX]);
    }

    #[test]
    fn e148_any_other_body_is_one_message_whatever_it_says() {
        for body in ["", "[1]\n[2]", r#"{"topic":"t"}"#, "nonsense"] {
            let found = messages(false, Bytes::copy_from_slice(body.as_bytes()), BYTES_MAX);
            assert_eq!(found, Ok(vec![text(body)]), "{body:?}");
        }
    }

    #[test]
    fn what_is_no_text_is_not_read() {
        for is_batch in [true, false] {
            let broken = Bytes::from_static(b"[\xff]");
            assert_eq!(messages(is_batch, broken, BYTES_MAX), Err(BodyFault::Unreadable));
        }
        let large = Bytes::from_static(&[b'x'; BYTES_MAX + 1]);
        assert_eq!(messages(false, large, BYTES_MAX), Err(BodyFault::Unreadable));
    }

    #[test]
    fn e132_e133_items_are_text_or_objects() {
        for (frame, expected) in [
            (r#"[null,"t"]"#, r#""[null,\"t\"]""#),
            ("[\"\\u00e9\\n é\"]", r#""[\"\\u00e9\\n é\"]""#),
            (r#"{"topic":"t","payload":{"a":1.50}}"#, r#"{"topic":"t","payload":{"a":1.50}}"#),
        ] {
            let mut body = String::new();
            push_item(&mut body, frame);
            assert_eq!(body, expected, "{frame}");
            serde_json::from_str::<serde_json::Value>(&body).expect("JSON");
        }
    }
}
