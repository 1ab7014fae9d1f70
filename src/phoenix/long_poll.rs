//! Long-poll as Phoenix has it: the status lives in the body.
//!
//! Section 9 of the protocol document. Sessions themselves are `session::long_poll`'s; this file
//! reads requests and spells answers. Every answer is HTTP 200 with JSON, whose `status` clients act
//! on; older ones throw on any status that is not 200, 204, 410 or 500.

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
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use bytestring::ByteString;
use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
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
    connect::{Connect, Door},
    message::{Transport, Version},
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
}

/// The tokens by which clients name their sessions: unguessable, and recognised after a restart.
#[derive(Clone)]
pub struct SessionTokens(SecretString);

impl SessionTokens {
    /// Signs with a key of the server's own, which survives restarts.
    pub fn new(secret_key_base: SecretString) -> Self {
        Self(secret_key_base)
    }

    /// A session's token.
    pub fn mint(&self, id: Uuid) -> String {
        let signature = self.mac(id).finalize().into_bytes();
        format!("{}.{}", URL_SAFE_NO_PAD.encode(id), URL_SAFE_NO_PAD.encode(signature))
    }

    /// The session that a token names; `None` if it is not ours.
    pub fn read(&self, token: &str) -> Option<Uuid> {
        let (id, signature) = token.split_once('.')?;
        let id = Uuid::from_slice(&URL_SAFE_NO_PAD.decode(id).ok()?).ok()?;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        self.mac(id).verify_slice(&signature).ok()?;
        Some(id)
    }

    fn mac(&self, id: Uuid) -> Hmac<Sha256> {
        let key = self.0.expose_secret().as_bytes();
        let mut mac = Hmac::new_from_slice(key).expect("HMAC takes keys of any length");
        mac.update(b"herald long-poll session");
        mac.update(id.as_bytes());
        mac
    }
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
        let version = self.version_of(request);
        match self.sessions.poll(id).await {
            // A token of ours without a session. On 410 clients up to 1.8.1 would take a new
            // session for the old one and stay deaf; on 500 every generation comes back and joins.
            Polled::Gone => status(500),
            Polled::Frames(frames) if frames.is_empty() => self.messages(204, id, version, &[]),
            Polled::Frames(frames) => self.messages(200, id, version, &frames),
        }
    }

    fn open(&self, request: &HttpRequest, handshake: &Handshake<'_>) -> HttpResponse {
        let Ok(Connect { version, mut caller, .. }) = self.door.connect(handshake) else {
            return status(403);
        };
        let auth = request.headers().get(AUTH_HEADER).and_then(|token| token.to_str().ok());
        caller.bearer = auth.map(Box::from);
        let rules = self.door.rules.clone();
        let conversation = Conversation::new(version, Transport::LongPoll, caller, rules);
        match self.sessions.open(conversation, &self.worker) {
            Some(id) => self.messages(410, id, version, &[]),
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
        let messages = match is_batch {
            true => batch(&body),
            false => ByteString::try_from(body).ok().map(|text| vec![Received::Text(text)]),
        };
        let Some(messages) = messages else {
            return HttpResponse::new(StatusCode::INTERNAL_SERVER_ERROR);
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

    /// The version that a session's client named; it does so in every request.
    fn version_of(&self, request: &HttpRequest) -> Version {
        let params = form::parse(request.query_string().as_bytes());
        let vsn = params.get("vsn").and_then(|vsn| vsn.as_str());
        Version::negotiate(vsn).unwrap_or(Version::V2)
    }

    fn messages(&self, status: u16, id: Uuid, version: Version, frames: &[Frame]) -> HttpResponse {
        let token = self.tokens.mint(id);
        let items =
            frames.iter().filter_map(|frame| item(version, frame)).collect::<Vec<_>>().join(",");
        json(format!(r#"{{"status":{status},"token":"{token}","messages":[{items}]}}"#))
    }
}

/// A frame among `messages`: text for version 2; an object for version 1, whose clients would choke
/// on text (section 9.4).
///
/// Nothing for bytes, which are not sent this way: [`Transport::LongPoll`] has no format for them.
fn item(version: Version, frame: &Frame) -> Option<String> {
    match (frame, version) {
        (Frame::Text(text), Version::V1) => Some(text.to_string()),
        (Frame::Text(text), Version::V2) => Some(super::message::json_string(text)),
        (Frame::Binary(_), _) => None,
    }
}

/// The lines of a batch: `[…` is text, anything else a binary message in base64; empty lines are
/// nobody's message. `None` if a line is neither.
fn batch(body: &[u8]) -> Option<Vec<Received>> {
    let lines = std::str::from_utf8(body).ok()?.lines().filter(|line| !line.is_empty());
    let message = |line: &str| {
        if line.starts_with('[') {
            return Some(Received::Text(line.into()));
        }
        STANDARD.decode(line).ok().map(|bytes| Received::Binary(bytes.into()))
    };
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
