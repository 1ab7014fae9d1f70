//! The protocols that one listener serves.

use std::{
    ops::{Deref, DerefMut},
    rc::Rc,
    sync::Arc,
};

use crate::{
    phoenix::{self, connect::Endpoint},
    session::{
        Conversation,
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

impl Deref for ServedConversation {
    type Target = dyn Conversation;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Phoenix(conversation) => conversation,
            Self::Other(conversation) => &**conversation,
        }
    }
}

impl DerefMut for ServedConversation {
    fn deref_mut(&mut self) -> &mut Self::Target {
        match self {
            Self::Phoenix(conversation) => conversation,
            Self::Other(conversation) => &mut **conversation,
        }
    }
}
