//! The close codes of Phoenix's sockets.
//!
//! They follow section 8 of the protocol document. The code is never 1000, because clients from 1.6.3 to 1.8.15
//! would not reconnect.

use crate::{
    broker::outbox::Ending,
    session::{CloseCode, Farewell},
};

/// The close frame of a session that must end. Clients are sent no other last message.
pub(super) fn farewell(ending: Ending) -> Farewell {
    let code = match ending {
        Ending::SlowConsumer(_) | Ending::Stuck | Ending::InboxFull => CloseCode::TRY_LATER,
        Ending::Idle | Ending::NotFetching | Ending::NeverFetched | Ending::Unjoined => {
            CloseCode::GOING_AWAY
        }
        Ending::SlowMessage | Ending::TooManyFrames => CloseCode::POLICY,
        Ending::Unfinished => CloseCode::TOO_BIG,
        Ending::Shutdown => CloseCode::RESTART,
        Ending::Broken => CloseCode::INTERNAL,
    };
    Farewell { last: None, close: code.into() }
}
