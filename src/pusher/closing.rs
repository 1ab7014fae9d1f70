//! The close codes.
//!
//! They follow section 4.2 of the document of Pusher's protocol. No connection is closed with a code from
//! 4300 on, because clients would never reconnect; Herald uses these codes for errors only.

use crate::{
    broker::outbox::Ending,
    session::{Close, CloseCode},
};

/// The app takes connections over TLS only; clients come back over TLS.
pub(super) const NOT_SECURE: Close = close(4000, "this server takes connections over TLS only");
/// No app has the key.
pub(super) const UNKNOWN_APP: Close = close(4001, "no app has this key");
/// The app is inactive, or does not speak Pusher's protocol.
pub(super) const DISABLED: Close = close(4003, "the app is disabled");
/// The app has as many connections as it may.
pub(super) const OVER_QUOTA: Close = close(4004, "the app has too many connections");
/// The path names no key.
pub(super) const NOT_FOUND: Close = close(4005, "the path must be /app/ and the key of an app");
/// The version of the protocol is not supported.
pub(super) const UNSUPPORTED: Close = close(4007, "protocol must be 4, 5, 6 or 7");
/// The client does not say which version of the protocol it speaks.
pub(super) const NO_VERSION: Close = close(4008, "protocol is missing");
/// The page's origin is not allowed.
pub(super) const ORIGIN: Close = close(4009, "the page's origin is not allowed");
/// The connection was not authorized in time.
pub(super) const UNAUTHORIZED: Close = close(4009, "the connection was not authorized in time");
/// The application has ended the user's connections.
pub(super) const TERMINATED: Close = close(4009, "the connections of this user were terminated");
/// The server, or the client's address, has as many connections as it may.
pub(super) const FULL: Close = close(4100, "too many connections");
/// The client must reconnect, so that it is judged anew.
pub(super) const AGAIN: Close = close(4200, "please connect again");
/// The client sent a binary message, which the protocol does not have.
pub(super) const BINARY: Close = close(1003, "messages must be text");

const fn close(code: u16, reason: &'static str) -> Close {
    Close { code: CloseCode(code), reason }
}

/// The close frame of a session that is to end.
pub(super) fn of(ending: Ending) -> Close {
    match ending {
        Ending::SlowConsumer(_) | Ending::Stuck | Ending::InboxFull => {
            close(4100, "the client does not keep up")
        }
        Ending::Idle | Ending::NotFetching | Ending::NeverFetched | Ending::Unjoined => {
            close(4201, "no pong was received in time")
        }
        Ending::SlowMessage => {
            Close { reason: "a message took too long", ..CloseCode::POLICY.into() }
        }
        Ending::TooManyFrames => Close { reason: "too many messages", ..CloseCode::POLICY.into() },
        Ending::Unfinished => CloseCode::TOO_BIG.into(),
        Ending::Shutdown => AGAIN,
        Ending::Broken => CloseCode::INTERNAL.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::outbox::Excess;

    #[test]
    fn p026_p185_p186_a_session_ends_with_a_code_after_which_clients_come_back() {
        for (ending, code) in [
            (Ending::SlowConsumer(Excess::Bytes), 4100),
            (Ending::Stuck, 4100),
            (Ending::Idle, 4201),
            (Ending::SlowMessage, 1008),
            (Ending::TooManyFrames, 1008),
            (Ending::Unfinished, 1009),
            (Ending::Shutdown, 4200),
            (Ending::Broken, 1011),
        ] {
            assert_eq!(of(ending).code, CloseCode(code), "{ending:?}");
        }
        let all = [
            NOT_SECURE,
            UNKNOWN_APP,
            DISABLED,
            OVER_QUOTA,
            NOT_FOUND,
            UNSUPPORTED,
            NO_VERSION,
            ORIGIN,
            UNAUTHORIZED,
            TERMINATED,
            FULL,
            AGAIN,
            BINARY,
        ];
        assert!(all.iter().all(|close| close.code.0 < 4300 && close.reason.len() < 124));
    }
}
