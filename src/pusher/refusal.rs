//! The reasons why a client is not subscribed to a channel, and the messages to the client.
//!
//! They follow sections 4.1 and 5.2 of the document of Pusher's protocol. A client is sent two errors: one
//! of the channel, which Laravel Echo and the channel's own listeners receive, and one of the connection,
//! which Pusher's own service sends.

use crate::{
    broker::subscriber::SubscribeError,
    metrics::labels::{JoinOutcome, Limit, RefusalReason},
    session::Effect,
};

use super::{auth::AuthFault, channel::ChannelFault, frame, member::MemberFault};

/// The reason why a subscription is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum SubscriptionRefusal {
    /// The name is not that of a channel.
    #[error("{0}")]
    Channel(#[from] ChannelFault),
    /// The connection is subscribed already.
    #[error("existing subscription to this channel")]
    Subscribed,
    /// The connection has as many subscriptions as the limit allows.
    #[error("the connection has too many subscriptions")]
    TooManyChannels,
    /// The client exceeded the rate of subscriptions.
    #[error("too many subscriptions per second")]
    TooManyJoins,
    /// The application has not signed the subscription.
    #[error("{0}")]
    Auth(#[from] AuthFault),
    /// The channel is another user's.
    #[error("the connection is not signed in as the user of this channel")]
    NotTheUser,
    /// The application has not named the member.
    #[error("channel_data is missing, and the connection is not signed in")]
    Anonymous,
    /// The member's data is not valid.
    #[error("{0}")]
    Member(#[from] MemberFault),
    /// The app has subscribers in as many scopes as the limit allows.
    #[error("the app has too many scopes")]
    TooManyScopes,
    /// The channel has as many members as the limit allows.
    #[error("the channel has too many members")]
    TooManyMembers,
    /// The app was changed before the subscription completed.
    #[error("the app was changed")]
    AppChanged,
    /// The broker did not answer in time.
    #[error("the server cannot take the subscription now")]
    Unavailable,
}

impl From<SubscribeError> for SubscriptionRefusal {
    fn from(refused: SubscribeError) -> Self {
        match refused {
            SubscribeError::TooManyScopes => Self::TooManyScopes,
            SubscribeError::TooManyMembers => Self::TooManyMembers,
            SubscribeError::Unavailable => Self::Unavailable,
        }
    }
}

impl SubscriptionRefusal {
    /// The messages to the client. `channel` is the name that the client sent.
    pub(super) fn messages(&self, channel: &str) -> Vec<Effect> {
        let text = self.to_string();
        let error = Effect::Send(frame::error(None, &text));
        let Some((kind, status)) = self.kind() else { return vec![error] };
        vec![Effect::Send(frame::subscription_error(channel, kind, &text, status)), error]
    }

    /// The type and the status of the error of the channel. A second subscription to the same channel has
    /// none, because the first one continues.
    fn kind(&self) -> Option<(&'static str, u16)> {
        Some(match self {
            Self::Subscribed => return None,
            Self::Auth(_) | Self::NotTheUser | Self::Anonymous => ("AuthError", 401),
            Self::Channel(ChannelFault::TooLong { .. }) => ("LimitReached", 4009),
            Self::Channel(_) => ("InvalidChannel", 400),
            Self::Member(MemberFault::TooLarge) => ("LimitReached", 4301),
            Self::Member(_) => ("InvalidMember", 400),
            Self::TooManyChannels | Self::TooManyScopes | Self::TooManyMembers => {
                ("LimitReached", 4100)
            }
            Self::TooManyJoins => ("LimitReached", 4301),
            Self::AppChanged | Self::Unavailable => ("Unavailable", 503),
        })
    }

    /// The outcome that the metrics count.
    pub(super) fn outcome(&self) -> JoinOutcome {
        match self {
            Self::Channel(_) | Self::Subscribed => JoinOutcome::UnmatchedTopic,
            Self::TooManyChannels => JoinOutcome::TooManyChannels,
            Self::TooManyJoins => JoinOutcome::TooManyJoins,
            Self::Auth(AuthFault::Missing) => JoinOutcome::NoToken,
            Self::Auth(_) => JoinOutcome::BadToken,
            Self::NotTheUser => JoinOutcome::NotPermitted,
            Self::Anonymous => JoinOutcome::Anonymous,
            Self::Member(_) => JoinOutcome::BadPresence,
            Self::TooManyScopes => JoinOutcome::TooManyScopes,
            Self::TooManyMembers => JoinOutcome::TooManyMembers,
            Self::AppChanged => JoinOutcome::AppChanged,
            Self::Unavailable => JoinOutcome::Unavailable,
        }
    }

    /// The limit that was exceeded, if the refusal is due to one.
    pub(super) fn limit(&self) -> Option<Limit> {
        match self {
            Self::TooManyChannels => Some(Limit::ChannelsPerTransport),
            Self::TooManyScopes => Some(Limit::ScopesPerApp),
            Self::TooManyJoins => Some(Limit::JoinsPerSecond),
            _ => None,
        }
    }

    /// The reason for the log, if the refusal concerns the client's rights.
    pub(super) fn reason(&self) -> Option<RefusalReason> {
        match self {
            Self::Auth(AuthFault::Missing) => Some(RefusalReason::NoToken),
            Self::Auth(AuthFault::DataNotText | AuthFault::Malformed | AuthFault::UnknownKey) => {
                Some(RefusalReason::TokenMalformed)
            }
            Self::Auth(AuthFault::Forged { .. }) => Some(RefusalReason::TokenForged),
            Self::NotTheUser => Some(RefusalReason::NotPermitted),
            _ => None,
        }
    }
}
