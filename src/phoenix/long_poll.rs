//! Long-poll as in Phoenix: the status is in the body.
//!
//! It follows section 9 of the protocol document. `session::long_poll` owns the sessions; this file parses
//! requests and encodes answers. Nearly every answer is HTTP 200 with a JSON object, whose `status` clients
//! interpret; older clients throw on any `status` other than 200, 204, 410 or 500.

use std::{rc::Rc, sync::Arc};

use actix_web::{
    HttpRequest, HttpResponse, HttpResponseBuilder,
    body::MessageBody,
    http::{
        ConnectionType, Method, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
            CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER,
        },
    },
    web,
};
use bytestring::ByteString;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    broker::subscriber::Frame,
    metrics::labels::{Limit, Transport},
    session::{
        body::{self, BudgetShare, UnreadBody},
        long_poll::{Polled, Posted},
        requests,
        upgrade::Handshake,
        worker::Worker,
    },
};

use super::{
    PhoenixConversation,
    batch::{self, BodyFault, BodyKind},
    connect::{self, Endpoint, MOUNTS},
    message::push_json_string,
};

/// The header in which newer clients send their session's token; it takes precedence over the
/// param.
const TOKEN_HEADER: &str = "x-phoenix-longpoll-token";

/// The header in which newer clients send the token of their `authToken` option.
const AUTH_HEADER: &str = "x-phoenix-authtoken";

/// The size beyond which an answer counts in the backlog, and is passed to the HTTP server in pieces.
const LARGE_BYTES: usize = 4 * 1024;

/// An endpoint on one worker thread.
pub struct EndpointThread {
    /// The state that all threads share.
    pub endpoint: Arc<Endpoint>,
    /// The state that the sessions of this thread share.
    pub worker: Rc<Worker>,
}

/// Returns whether a path is the `longpoll` of a mount.
pub fn is_long_poll(path: &str) -> bool {
    MOUNTS.iter().any(|mount| path.strip_prefix(mount) == Some("/longpoll"))
}

/// Answers a request to the `longpoll` of a mount.
pub async fn answer(
    request: HttpRequest,
    body: web::Payload,
    thread: web::ThinData<Rc<EndpointThread>>,
) -> HttpResponse {
    let thread = &*thread.0;
    let is_known = [Method::GET, Method::POST, Method::OPTIONS].contains(request.method());
    if !is_known {
        return bad_request();
    }
    requests::in_its_time(&request, &thread.worker).await;
    let handshake = Handshake {
        method: request.method(),
        path: request.path(),
        query: request.query_string(),
        headers: request.headers(),
        peer: request.peer_addr(),
    };
    // Checked before the rest of the request is read, as in Phoenix.
    let Ok(params) = connect::params(handshake.query) else {
        return bad_request();
    };
    let token = token_of(&request, &params);
    if thread.endpoint.check_origin(&handshake).is_err() {
        return status(403);
    }
    match *request.method() {
        Method::OPTIONS => preflight(&request),
        Method::POST => thread.post(token, &request, body).await,
        _ => thread.get(token, &request, &handshake).await,
    }
}

impl EndpointThread {
    /// Polls the client's session, or opens one for a client that has none.
    async fn get(
        &self,
        token: Option<&str>,
        request: &HttpRequest,
        handshake: &Handshake<'_>,
    ) -> HttpResponse {
        let Some(id) = self.session_of(token) else { return self.open(request, handshake) };
        let poll = self.endpoint.long_polls.poll(id);
        match requests::unless_in_the_way(request, poll).await {
            // A new connection needs the room. The client polls again over another one, and then gets the
            // frames that the session may have sent at this moment.
            None => last(self.messages(204, id, &[])),
            Some(polled) => self.polled(id, &polled),
        }
    }

    fn polled(&self, id: Uuid, polled: &Polled) -> HttpResponse {
        match polled {
            // The token is authentic, but its session no longer exists. With 410, clients up to
            // 1.8.1 would take a new session for the old one and never join; with 500, every
            // generation of clients reconnects and joins.
            Polled::Gone => status(500),
            Polled::Frames(frames) if frames.is_empty() => self.messages(204, id, &[]),
            Polled::Frames(frames) => self.messages(200, id, frames),
        }
    }

    fn open(&self, request: &HttpRequest, handshake: &Handshake<'_>) -> HttpResponse {
        let Ok((version, mut caller)) = self.endpoint.connect(handshake) else {
            return status(403);
        };
        let auth = request.headers().get(AUTH_HEADER).and_then(|token| token.to_str().ok());
        if let Some(token) = auth {
            self.endpoint.take_bearer(&mut caller, token.to_owned());
        }
        match self.endpoint.place(caller.address) {
            Ok(place) => caller.place = place,
            Err(_) => return status(500),
        }
        let rules = self.endpoint.rules.clone();
        let conversation = PhoenixConversation::new(version, Transport::LongPoll, caller, rules);
        match self.endpoint.long_polls.open(conversation, &self.worker) {
            Some(id) => self.messages(410, id, &[]),
            // There is no room, or the server is stopping: clients reconnect after a while.
            None => status(500),
        }
    }

    async fn post(
        &self,
        token: Option<&str>,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> HttpResponse {
        let Some(id) = self.session_of(token) else { return status(410) };
        let media_type = body::media_type(request.headers()).unwrap_or_default();
        let kind = match media_type.eq_ignore_ascii_case("application/x-ndjson") {
            true => BodyKind::Batch,
            false => BodyKind::OneText,
        };
        let read = self.endpoint.bodies.read(
            request.headers(),
            payload,
            self.endpoint.body_bytes_max,
            BudgetShare::Half,
        );
        let body = match read.await {
            Ok(body) => body,
            Err(UnreadBody::BrokenOff) => return bad_request(),
            Err(UnreadBody::TooLarge) => return self.too_large(Limit::RequestBodyBytes),
            Err(UnreadBody::NoRoom) => return self.no_room(),
        };
        let messages = match batch::read(kind, body.bytes(), self.endpoint.message_bytes_max) {
            Ok(messages) => messages,
            Err(BodyFault::TooLarge) => return self.too_large(Limit::MessageBytes),
            Err(BodyFault::Unreadable | BodyFault::NoMessage) => {
                return bad_request();
            }
        };
        let post = self.endpoint.long_polls.post(id, messages);
        match requests::unless_in_the_way(request, post).await {
            Some(Posted::Done) => status(200),
            Some(Posted::Late) => status(408),
            Some(Posted::Gone) => status(410),
            // A new connection needs the room. The session still handles the messages.
            None => last(status(408)),
        }
    }

    fn too_large(&self, limit: Limit) -> HttpResponse {
        self.endpoint.rules.shared.metrics.hit(limit);
        bad_request()
    }

    /// The answer while the budget of bodies is exhausted. Clients of every generation reconnect after it.
    fn no_room(&self) -> HttpResponse {
        self.endpoint.rules.shared.metrics.hit(Limit::BodiesBytes);
        let mut response = status(503);
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        response
    }

    /// The session that a token names.
    fn session_of(&self, token: Option<&str>) -> Option<Uuid> {
        self.endpoint.tokens.read(token?)
    }

    fn messages(&self, status: u16, id: Uuid, frames: &[Frame]) -> HttpResponse {
        let token = self.endpoint.tokens.mint(id);
        let bytes: usize = frames.iter().map(|frame| frame.size_bytes() + 16).sum();
        let mut body = String::with_capacity(128 + bytes);
        body.push_str(&format!(r#"{{"status":{status},"token":"{token}","messages":["#));
        for (nth, text) in frames.iter().cloned().filter_map(text_of).enumerate() {
            if nth > 0 {
                body.push(',');
            }
            push_item(&mut body, &text);
        }
        body.push_str("]}");
        match body.len() > LARGE_BYTES {
            true => json(self.worker.waiting_body(body.into())),
            false => json(body),
        }
    }
}

/// A request's token: from the header, or else from the last `token` param.
fn token_of<'a>(request: &'a HttpRequest, params: &'a Map<String, Value>) -> Option<&'a str> {
    let header = request.headers().get(TOKEN_HEADER).and_then(|token| token.to_str().ok());
    header.or_else(|| params.get("token")?.as_str())
}

/// A frame's text. Bytes cannot be sent this way: [`Transport::LongPoll`] has no format for them.
fn text_of(frame: Frame) -> Option<ByteString> {
    match frame.into_whole() {
        Frame::Text(text) => Some(text),
        _ => None,
    }
}

/// Appends a frame to `messages`: the arrays of version 2 as text, the objects of version 1 as they
/// are, because its clients cannot read text (section 9.4).
fn push_item(body: &mut String, text: &str) {
    if text.starts_with('{') {
        body.push_str(text);
    } else {
        push_json_string(body, text);
    }
}

fn preflight(request: &HttpRequest) -> HttpResponse {
    let mut response = answer_of(StatusCode::OK);
    response
        .insert_header((ACCESS_CONTROL_ALLOW_METHODS, "get, post, options"))
        .insert_header((ACCESS_CONTROL_MAX_AGE, "3600"));
    if let Some(asked) = request.headers().get(ACCESS_CONTROL_REQUEST_HEADERS) {
        response.insert_header((ACCESS_CONTROL_ALLOW_HEADERS, asked.clone()));
    }
    response.finish()
}

/// An answer that closes its connection.
fn last(mut response: HttpResponse) -> HttpResponse {
    response.head_mut().set_connection_type(ConnectionType::Close);
    response
}

fn status(status: u16) -> HttpResponse {
    json(format!(r#"{{"status":{status}}}"#))
}

fn json(body: impl MessageBody + 'static) -> HttpResponse {
    answer_of(StatusCode::OK)
        .insert_header((CONTENT_TYPE, "application/json; charset=utf-8"))
        .body(body)
}

/// One of the few answers with an HTTP status other than 200, as in Phoenix.
fn bad_request() -> HttpResponse {
    answer_of(StatusCode::BAD_REQUEST).finish()
}

/// An answer that pages of every origin can read, and that is not cached.
fn answer_of(status: StatusCode) -> HttpResponseBuilder {
    let mut response = HttpResponse::build(status);
    response
        .insert_header((ACCESS_CONTROL_ALLOW_ORIGIN, "*"))
        .insert_header((CACHE_CONTROL, "no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

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
