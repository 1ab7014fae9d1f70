//! The protocols that one listener serves.

use std::{net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use crate::{
    app::AppId,
    broker::{
        PublishError,
        outbox::Ending,
        subscriber::{Disconnect, Frame, Joined, Place, SessionId, SubscribeError},
        users::OnlineChange,
    },
    metrics::labels::SessionKind,
    phoenix::{self, connect::Endpoint},
    session::{
        Conversation, Effect, Farewell, Patience, Received,
        upgrade::{IsSocket, Protocol, UpgradeHandler, Welcome},
    },
};

/// The conversation of a WebSocket, in the protocol that its client speaks.
///
/// Phoenix's conversations are stored in the session itself, because nearly all sessions have one,
/// and a box would cost each of them an allocation.
pub(super) enum ServedConversation {
    Phoenix(phoenix::PhoenixConversation),
    Other(Box<dyn Conversation>),
}

/// The test for paths of sockets: those of Phoenix, and those of the other protocols.
pub(super) fn is_socket(others: &Arc<[Arc<dyn Protocol>]>) -> IsSocket {
    let others = others.clone();
    Rc::new(move |path| {
        phoenix::connect::is_socket(path) || others.iter().any(|other| other.is_socket(path))
    })
}

/// Judges the handshakes of all protocols. The path decides about the protocol.
pub(super) fn upgrade_handler(
    endpoint: Arc<Endpoint>,
    others: Arc<[Arc<dyn Protocol>]>,
) -> UpgradeHandler<ServedConversation> {
    Rc::new(move |handshake| {
        let Some(other) = others.iter().find(|other| other.is_socket(handshake.path)) else {
            let Welcome { conversation, subprotocol, when_full } = endpoint.welcome(handshake)?;
            let conversation = ServedConversation::Phoenix(conversation);
            return Ok(Welcome { conversation, subprotocol, when_full });
        };
        let Welcome { conversation, subprotocol, when_full } = other.welcome(handshake)?;
        Ok(Welcome {
            conversation: ServedConversation::Other(conversation),
            subprotocol,
            when_full,
        })
    })
}

impl ServedConversation {
    fn as_mut(&mut self) -> &mut dyn Conversation {
        match self {
            Self::Phoenix(conversation) => conversation,
            Self::Other(conversation) => &mut **conversation,
        }
    }

    fn as_ref(&self) -> &dyn Conversation {
        match self {
            Self::Phoenix(conversation) => conversation,
            Self::Other(conversation) => &**conversation,
        }
    }
}

impl Conversation for ServedConversation {
    fn begun(&mut self, session: SessionId, now_s: f64) -> Vec<Effect> {
        self.as_mut().begun(session, now_s)
    }

    fn received(&mut self, message: Received, now_s: f64) -> Vec<Effect> {
        self.as_mut().received(message, now_s)
    }

    fn meanwhile(&self, message: &Received) -> Option<Frame> {
        self.as_ref().meanwhile(message)
    }

    fn subscribed(&mut self, outcome: Result<Joined, SubscribeError>, now_s: f64) -> Vec<Effect> {
        self.as_mut().subscribed(outcome, now_s)
    }

    fn answered(&mut self, outcome: Result<(), PublishError>, now_s: f64) -> Vec<Effect> {
        self.as_mut().answered(outcome, now_s)
    }

    fn app_changed(&mut self, app: AppId, now_s: f64) -> Vec<Effect> {
        self.as_mut().app_changed(app, now_s)
    }

    fn disconnected(&mut self, disconnect: &Disconnect) -> (Vec<Effect>, usize) {
        self.as_mut().disconnected(disconnect)
    }

    fn interrupted(&mut self, place: &Place) -> Vec<Effect> {
        self.as_mut().interrupted(place)
    }

    fn silent(&mut self, lasted: Duration) -> Patience {
        self.as_mut().silent(lasted)
    }

    fn silence_max(&self, idle_timeout: Duration) -> Duration {
        self.as_ref().silence_max(idle_timeout)
    }

    fn reminded(&mut self, now_s: f64) -> Vec<Effect> {
        self.as_mut().reminded(now_s)
    }

    fn online(&mut self, change: &OnlineChange) -> Vec<Effect> {
        self.as_mut().online(change)
    }

    fn farewell(&mut self, ending: Ending) -> Farewell {
        self.as_mut().farewell(ending)
    }

    fn app(&self) -> Option<AppId> {
        self.as_ref().app()
    }

    fn kind(&self) -> SessionKind {
        self.as_ref().kind()
    }

    fn address(&self) -> IpAddr {
        self.as_ref().address()
    }
}
