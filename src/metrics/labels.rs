//! The closed sets of labels.

use super::closed::{Closed, closed_label};

closed_label! {
    /// A limit. Its label is the last part of its setting's name; `docs/limits.md` says what happens
    /// to whoever hits it.
    Limit as "limit" {
        /// The payload of a trigger.
        TriggerPayloadBytes = "trigger_payload_bytes_max",
        /// The payload of a client's event.
        ClientEventBytes = "client_event_bytes_max",
        /// Events of a client within a second.
        ClientEventsPerSecond = "client_events_per_second_max",
        /// Joins of a client within a second.
        JoinsPerSecond = "joins_per_second_max",
        /// A socket's message.
        MessageBytes = "message_bytes_max",
        /// Unfinished messages and request heads of all clients.
        UnfinishedBytes = "unfinished_bytes_max",
        /// Frames of a client within a second.
        FramesPerSecond = "frames_per_second_max",
        /// A request's body.
        RequestBodyBytes = "request_body_bytes_max",
        /// The bodies of all requests under way.
        BodiesBytes = "bodies_bytes_max",
        /// A token.
        TokenBytes = "token_bytes_max",
        /// A `ref` or `join_ref`.
        RefBytes = "ref_bytes_max",
        /// Topics joined over one transport.
        ChannelsPerTransport = "channels_per_transport_max",
        /// Scopes of an app that have subscribers.
        ScopesPerApp = "scopes_per_app_max",
        /// Members of a presence channel.
        PresenceMembers = "presence_members_max",
        /// Frames waiting for a session.
        OutboxFrames = "outbox_frames_max",
        /// Bytes waiting for a session.
        OutboxBytes = "outbox_bytes_max",
        /// Bytes waiting for all sessions.
        OutboxesBytes = "outboxes_bytes_max",
        /// Publications on their way.
        PublicationsInFlight = "publications_in_flight_max",
        /// Failed logins to the admin API.
        FailedAdminLogins = "failed_admin_logins_per_minute_max",
        /// Sessions in all.
        Sessions = "sessions_max",
        /// Sessions of one app.
        SessionsPerApp = "sessions_per_app_max",
        /// Sessions from one address.
        SessionsPerAddress = "sessions_per_address_max",
        /// Plain HTTP connections.
        HttpConnections = "http_connections_max",
        /// Plain HTTP connections that wait for their clients.
        HttpWaiting = "http_waiting_max",
        /// Silence of a client.
        Idle = "idle_timeout",
        /// A message that does not come to its end.
        Message = "message_timeout",
        /// A request that does not come.
        Handshake = "handshake_timeout",
        /// A write without progress.
        Write = "write_timeout",
        /// Between two fetches of a long-poll client.
        LongPollWindow = "long_poll_window",
        /// A long-poll session without a joined topic.
        LongPollUnjoined = "long_poll_unjoined_timeout",
    }
}

closed_label! {
    /// What came of a join.
    JoinOutcome as "outcome" {
        /// Joined.
        Ok = "ok",
        /// It is not the name of a topic.
        UnmatchedTopic = "unmatched_topic",
        /// There is no such app.
        UnknownApp = "unknown_app",
        /// The app is inactive.
        InactiveApp = "inactive_app",
        /// The app does not let this page join.
        OriginNotAllowed = "origin_not_allowed",
        /// The scope needs a token, and none came.
        NoToken = "no_token",
        /// The token does not permit the topic.
        NotPermitted = "not_permitted",
        /// The token is bad; [`RefusalReason`] says why.
        BadToken = "bad_token",
        /// As many topics are joined as may be.
        TooManyChannels = "too_many_channels",
        /// The app has subscribers in as many scopes as it may.
        TooManyScopes = "too_many_scopes",
        /// The token does not say who is to be seen, on a presence channel.
        Anonymous = "anonymous",
        /// What is to be seen there cannot be shown.
        BadPresence = "bad_presence",
        /// As many are tracked on the channel as may be.
        TooManyMembers = "too_many_members",
        /// More joins than may be within a second.
        TooManyJoins = "too_many_joins",
        /// The app has as many sessions as it may.
        TooManySessions = "too_many_sessions",
        /// The app was changed while the join was under way.
        AppChanged = "app_changed",
        /// Its app ended it while it was under way.
        Disconnected = "disconnected",
        /// The topic did not answer.
        Unavailable = "unavailable",
    }
}

closed_label! {
    /// Why a client was not allowed to do something: to join, to publish, to call the API.
    RefusalReason as "reason" {
        /// There is no such app.
        UnknownApp = "unknown_app",
        /// The app is inactive.
        InactiveApp = "inactive_app",
        /// The page's origin is not allowed, by the app or by the server.
        OriginNotAllowed = "origin_not_allowed",
        /// The scope needs a token, and none came.
        NoToken = "no_token",
        /// The token does not permit joining the topic.
        NotPermitted = "not_permitted",
        /// No token permits publishing to the topic.
        PublishNotPermitted = "publish_not_permitted",
        /// The app takes no client events.
        NoClientEvents = "no_client_events",
        /// A call came without an `Authorization` header, or with several.
        NoCredentials = "no_credentials",
        /// A call came with a wrong key or secret.
        WrongCredentials = "wrong_credentials",
        /// The token is too long.
        TokenTooLong = "token_too_long",
        /// The token cannot be read.
        TokenMalformed = "token_malformed",
        /// The token names another algorithm, or asks for more than a signature.
        TokenUnsupported = "token_unsupported",
        /// No key of the app signed the token.
        TokenForged = "token_forged",
        /// The token would be valid if the app had `shared_tokens`.
        TokenNotShared = "token_not_shared",
        /// The token's times are not in seconds.
        TokenNotInSeconds = "token_not_in_seconds",
        /// The token has expired.
        TokenExpired = "token_expired",
        /// The token is not valid yet.
        TokenNotYetValid = "token_not_yet_valid",
        /// The CSRF token that the token needs is missing, or does not fit.
        TokenWithoutCsrf = "token_without_csrf",
    }
}

closed_label! {
    /// Why a session is over.
    SessionEnd as "reason" {
        /// The client left or broke the protocol, or nothing it held was left to it.
        Left = "left",
        /// More frames waited for it than may.
        OutboxFrames = "outbox_frames",
        /// More bytes waited for it than may.
        OutboxBytes = "outbox_bytes",
        /// More bytes waited for all sessions than may, and most of them for it.
        OutboxesBytes = "outboxes_bytes",
        /// It took nothing of what was written to it.
        Stuck = "write_timeout",
        /// Nothing was heard of it.
        Idle = "idle",
        /// It began a message and did not complete it.
        SlowMessage = "message_timeout",
        /// It went on sending too many frames.
        TooManyFrames = "frames_per_second",
        /// It held the most of all unfinished messages.
        Unfinished = "unfinished_bytes",
        /// It fetched nothing, over long-poll.
        NotFetching = "not_fetching",
        /// It was opened and then never fetched, over long-poll.
        NeverFetched = "never_fetched",
        /// It joined nothing, over long-poll.
        Unjoined = "unjoined",
        /// It sent more than may wait for its turn, over long-poll.
        InboxFull = "inbox_full",
        /// What it depended on was lost.
        Broken = "broken",
        /// The server stopped.
        Shutdown = "shutdown",
    }
}

closed_label! {
    /// What came of reading the table of apps.
    RefreshOutcome as "outcome" {
        /// It was read.
        Ok = "ok",
        /// The database did not answer.
        Failed = "failed",
    }
}

closed_label! {
    /// Where a publication came from.
    Source as "source" {
        /// A call to the API.
        Trigger = "trigger",
        /// A client's push.
        Client = "client",
    }
}

/// What carries a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// One WebSocket.
    WebSocket,
    /// A row of requests.
    LongPoll,
}

/// Which wire version is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `vsn` 1.
    V1,
    /// `vsn` 2.
    V2,
}

/// What kind of session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionKind {
    /// What carries it.
    pub transport: Transport,
    /// What is spoken.
    pub version: Version,
}

impl Closed for SessionKind {
    const ALL: &'static [Self] = &[
        Self { transport: Transport::WebSocket, version: Version::V1 },
        Self { transport: Transport::WebSocket, version: Version::V2 },
        Self { transport: Transport::LongPoll, version: Version::V1 },
        Self { transport: Transport::LongPoll, version: Version::V2 },
    ];

    fn index(self) -> usize {
        2 * self.transport as usize + self.version as usize
    }

    fn labels(self) -> &'static [(&'static str, &'static str)] {
        match (self.transport, self.version) {
            (Transport::WebSocket, Version::V1) => &[("transport", "websocket"), ("version", "1")],
            (Transport::WebSocket, Version::V2) => &[("transport", "websocket"), ("version", "2")],
            (Transport::LongPoll, Version::V1) => &[("transport", "longpoll"), ("version", "1")],
            (Transport::LongPoll, Version::V2) => &[("transport", "longpoll"), ("version", "2")],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<L: Closed + PartialEq + std::fmt::Debug>() {
        for (nth, member) in L::ALL.iter().enumerate() {
            assert_eq!(member.index(), nth, "{member:?}");
            let alike = L::ALL.iter().filter(|other| other.labels() == member.labels());
            assert_eq!(alike.count(), 1, "{member:?}");
        }
    }

    #[test]
    fn every_member_has_a_place_and_labels_of_its_own() {
        check::<Limit>();
        check::<JoinOutcome>();
        check::<RefusalReason>();
        check::<SessionEnd>();
        check::<RefreshOutcome>();
        check::<Source>();
        check::<SessionKind>();
    }
}
