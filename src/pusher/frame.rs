//! The messages to clients.
//!
//! They follow section 3 of the document of Pusher's protocol. The `data` of nearly every message is a
//! string that holds JSON; that of errors is an object.

use bytestring::ByteString;

use crate::broker::{JsonText, subscriber::Frame};

/// The most characters of the text of an error.
const ERROR_CHARS_MAX: usize = 1_500;

/// The `data` of messages that have none.
pub(super) const NOTHING: &str = "{}";

/// A message whose `data` is a string that holds this JSON.
pub(super) fn event(event: &str, channel: Option<&str>, data: &str) -> Frame {
    object_event(event, channel, JsonText::of_text(data).as_str())
}

/// A message whose `data` is this JSON itself.
pub(super) fn object_event(event: &str, channel: Option<&str>, data: &str) -> Frame {
    Frame::Text(text(event, channel, None, data))
}

/// A message from this user. Its `data` is the last field, so that the frames of many channels can share it.
pub(super) fn text(
    event: &str,
    channel: Option<&str>,
    user: Option<&str>,
    data: &str,
) -> ByteString {
    let bytes = 64 + event.len() + channel.map_or(0, str::len) + data.len();
    let mut text = String::with_capacity(bytes);
    text.push_str("{\"event\":");
    text.push_str(JsonText::of_text(event).as_str());
    if let Some(channel) = channel {
        text.push_str(",\"channel\":");
        text.push_str(JsonText::of_text(channel).as_str());
    }
    if let Some(user) = user {
        text.push_str(",\"user_id\":");
        text.push_str(JsonText::of_text(user).as_str());
    }
    text.push_str(",\"data\":");
    text.push_str(data);
    text.push('}');
    text.into()
}

/// The first message of a connection.
pub(super) fn connection_established(socket_id: &str, activity_timeout_s: u64) -> Frame {
    let data = format!(r#"{{"socket_id":"{socket_id}","activity_timeout":{activity_timeout_s}}}"#);
    event("pusher:connection_established", None, &data)
}

/// The answer to a ping.
pub(super) fn pong() -> Frame {
    event("pusher:pong", None, NOTHING)
}

/// The probe of a silent client, which the client must answer.
pub(super) fn ping() -> Frame {
    event("pusher:ping", None, NOTHING)
}

/// An error. It has a code only where Pusher's protocol defines one.
pub(super) fn error(code: Option<u16>, message: &str) -> Frame {
    Frame::Text(error_text(code, message))
}

/// The text of an error.
pub(super) fn error_text(code: Option<u16>, message: &str) -> ByteString {
    let message = JsonText::of_text(cut(message));
    let code = code.map_or("null".to_owned(), |code| code.to_string());
    let data = format!(r#"{{"code":{code},"message":{}}}"#, message.as_str());
    text("pusher:error", None, None, &data)
}

/// The error of a refused subscription. `channel` is the name that the client sent, valid or not.
pub(super) fn subscription_error(channel: &str, kind: &str, error: &str, status: u16) -> Frame {
    let error = JsonText::of_text(cut(error));
    let data = format!(r#"{{"type":"{kind}","error":{},"status":{status}}}"#, error.as_str());
    object_event("pusher:subscription_error", Some(cut(channel)), &data)
}

fn cut(text: &str) -> &str {
    match text.char_indices().nth(ERROR_CHARS_MAX) {
        Some((cut, _)) => &text[..cut],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(frame: Frame) -> String {
        match frame {
            Frame::Text(text) => text.to_string(),
            other => panic!("no text: {other:?}"),
        }
    }

    #[test]
    fn p001_p022_messages_have_their_data_as_text_and_errors_as_an_object() {
        for (frame, expected) in [
            (
                connection_established("1.2", 120),
                r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.2\",\"activity_timeout\":120}"}"#,
            ),
            (pong(), r#"{"event":"pusher:pong","data":"{}"}"#),
            (ping(), r#"{"event":"pusher:ping","data":"{}"}"#),
            (
                error(None, "a \"b\""),
                r#"{"event":"pusher:error","data":{"code":null,"message":"a \"b\""}}"#,
            ),
            (
                error(Some(4301), "x"),
                r#"{"event":"pusher:error","data":{"code":4301,"message":"x"}}"#,
            ),
            (
                subscription_error("private-a", "AuthError", "no", 401),
                r#"{"event":"pusher:subscription_error","channel":"private-a","data":{"type":"AuthError","error":"no","status":401}}"#,
            ),
            (event("e", Some("c"), "[1]"), r#"{"event":"e","channel":"c","data":"[1]"}"#),
        ] {
            assert_eq!(shown(frame), expected);
        }
        let long = "é".repeat(10_000);
        assert!(shown(error(None, &long)).chars().count() < ERROR_CHARS_MAX + 100);
    }
}
