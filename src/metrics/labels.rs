//! The closed sets of labels.

use prometheus_client::encoding::EncodeLabelSet;

use super::closed::{Closed, closed_label};

closed_label! {
    /// A limit. Its label is the last part of its setting's name, after `history_` for a setting of the
    /// section `history`; `docs/limits.md` says what happens to a client that exceeds it.
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
        /// The bodies of all requests that are being read.
        BodiesBytes = "bodies_bytes_max",
        /// A token.
        TokenBytes = "token_bytes_max",
        /// A `ref` or `join_ref`.
        RefBytes = "ref_bytes_max",
        /// Topics joined by one session.
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
        /// Publications of an app that are under way.
        PublicationsInFlight = "publications_in_flight_max",
        /// Bytes that an app retains of its publications.
        HistoryAppBytes = "history_app_bytes_max",
        /// Bytes that all apps retain of their publications.
        HistoryBytes = "history_bytes_max",
        /// Channels of a scope whose history is remembered.
        HistoryChannels = "history_channels_max",
        /// Publications that are replayed to one join.
        HistoryReplay = "history_replay_max",
        /// Bytes of publications that are replayed to one join.
        HistoryReplayBytes = "history_replay_bytes_max",
        /// The data of an event that is triggered through Pusher's API.
        EventBytes = "event_bytes_max",
        /// Bytes of the last events that an app keeps of its cache channels.
        CacheAppBytes = "cache_app_bytes_max",
        /// Bytes of the last events that all apps keep of their cache channels.
        CacheBytes = "cache_bytes_max",
        /// Idempotency keys of one app.
        IdempotencyKeys = "idempotency_keys_max",
        /// Failed logins to the admin API.
        FailedAdminLogins = "failed_admin_logins_per_minute_max",
        /// Sessions in total.
        Sessions = "sessions_max",
        /// Sessions of one app.
        SessionsPerApp = "sessions_per_app_max",
        /// Sessions from one address.
        SessionsPerAddress = "sessions_per_address_max",
        /// Plain HTTP connections.
        HttpConnections = "http_connections_max",
        /// Plain HTTP connections that wait for their clients.
        HttpWaiting = "http_waiting_max",
        /// Time without a message from a client.
        Idle = "idle_timeout",
        /// Time to complete a message.
        Message = "message_timeout",
        /// Time until a request arrives.
        Handshake = "handshake_timeout",
        /// A write without progress.
        Write = "write_timeout",
        /// Time between two polls of a long-poll client.
        LongPollWindow = "long_poll_window",
        /// A long-poll session without a joined topic.
        LongPollUnjoined = "long_poll_unjoined_timeout",
    }
}

closed_label! {
    /// The outcome of a join.
    JoinOutcome as "outcome" {
        /// Joined.
        Ok = "ok",
        /// The topic's name is not valid.
        UnmatchedTopic = "unmatched_topic",
        /// There is no such app.
        UnknownApp = "unknown_app",
        /// The app is inactive.
        InactiveApp = "inactive_app",
        /// The app does not accept this page's origin.
        OriginNotAllowed = "origin_not_allowed",
        /// The scope needs a token, and none came.
        NoToken = "no_token",
        /// The token does not permit the topic.
        NotPermitted = "not_permitted",
        /// The token is not valid; [`RefusalReason`] says why.
        BadToken = "bad_token",
        /// The session has joined as many topics as the limit allows.
        TooManyChannels = "too_many_channels",
        /// The app has subscribers in as many scopes as the limit allows.
        TooManyScopes = "too_many_scopes",
        /// The token does not name the member, on a presence channel.
        Anonymous = "anonymous",
        /// The member's meta cannot be shown.
        BadPresence = "bad_presence",
        /// The channel tracks as many members as the limit allows.
        TooManyMembers = "too_many_members",
        /// The client exceeded the rate of joins.
        TooManyJoins = "too_many_joins",
        /// The app has as many sessions as the limit allows.
        TooManySessions = "too_many_sessions",
        /// The app was changed before the join completed.
        AppChanged = "app_changed",
        /// The app ended the join before it completed.
        Disconnected = "disconnected",
        /// The topic did not answer.
        Unavailable = "unavailable",
    }
}

closed_label! {
    /// The reason why a client was refused a join, a publication or a call of the API.
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
        /// A call came without an `Authorization` header, or with more than one.
        NoCredentials = "no_credentials",
        /// A call came with a wrong key or secret.
        WrongCredentials = "wrong_credentials",
        /// The token is too long.
        TokenTooLong = "token_too_long",
        /// The token cannot be read.
        TokenMalformed = "token_malformed",
        /// The token names another algorithm, or demands more than the check of a signature.
        TokenUnsupported = "token_unsupported",
        /// No key of the app signed the token.
        TokenForged = "token_forged",
        /// The token would be valid only if the app had `shared_tokens`.
        TokenNotShared = "token_not_shared",
        /// The token's times are not in seconds.
        TokenNotInSeconds = "token_not_in_seconds",
        /// The token has expired.
        TokenExpired = "token_expired",
        /// The token is not valid yet.
        TokenNotYetValid = "token_not_yet_valid",
        /// The CSRF token that the token requires is missing or does not match.
        TokenWithoutCsrf = "token_without_csrf",
    }
}

closed_label! {
    /// The entry point on which a login with wrong credentials was tried.
    FailedLogin as "login" {
        /// A call of the admin API, or of `/metrics`.
        AdminApi = "admin_api",
        /// The console, as the administrator.
        ConsoleAdmin = "console_admin",
        /// The console, as an app.
        ConsoleApp = "console_app",
    }
}

closed_label! {
    /// The reason why a session ended.
    SessionEnd as "reason" {
        /// The client left or broke the protocol, or all that the session held was ended.
        Left = "left",
        /// More frames waited for the session than its limit allows.
        OutboxFrames = "outbox_frames",
        /// More bytes waited for the session than its limit allows.
        OutboxBytes = "outbox_bytes",
        /// More bytes waited for all sessions than the limit allows, and this session had the most.
        OutboxesBytes = "outboxes_bytes",
        /// The client accepted none of the bytes that were written to it.
        Stuck = "write_timeout",
        /// The client sent nothing for too long.
        Idle = "idle",
        /// The client began a message and did not complete it.
        SlowMessage = "message_timeout",
        /// The client went on sending too many frames.
        TooManyFrames = "frames_per_second",
        /// The session held the most bytes of unfinished messages.
        Unfinished = "unfinished_bytes",
        /// The client did not poll, over long-poll.
        NotFetching = "not_fetching",
        /// The session was opened and then never polled, over long-poll.
        NeverFetched = "never_fetched",
        /// The client joined nothing, over long-poll.
        Unjoined = "unjoined",
        /// The client sent more messages than may wait to be handled, over long-poll.
        InboxFull = "inbox_full",
        /// A part of the server that the session depends on was lost.
        Broken = "broken",
        /// The server stopped.
        Shutdown = "shutdown",
    }
}

closed_label! {
    /// The outcome of reading the table of apps, or of writing the usage.
    RefreshOutcome as "outcome" {
        /// The table was read, or the usage was written.
        Ok = "ok",
        /// The database did not answer.
        Failed = "failed",
    }
}

closed_label! {
    /// The source of a publication.
    Source as "source" {
        /// A call to the API.
        Trigger = "trigger",
        /// A client's push.
        Client = "client",
    }
}

closed_label! {
    /// The transport of a session.
    Transport as "transport" {
        /// One WebSocket.
        WebSocket = "websocket",
        /// A series of requests.
        LongPoll = "longpoll",
    }
}

closed_label! {
    /// The wire version of a session.
    ProtocolVersion as "version" {
        /// `vsn` 1 of Phoenix's protocol.
        V1 = "1",
        /// `vsn` 2 of Phoenix's protocol.
        V2 = "2",
        /// Pusher's protocol, which is spoken over WebSockets only.
        Pusher = "pusher",
    }
}

/// The kind of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionKind {
    /// Its transport.
    pub transport: Transport,
    /// Its wire version.
    pub version: ProtocolVersion,
}

impl Closed for SessionKind {
    const ALL: &'static [Self] = &[
        Self { transport: Transport::WebSocket, version: ProtocolVersion::V1 },
        Self { transport: Transport::WebSocket, version: ProtocolVersion::V2 },
        Self { transport: Transport::LongPoll, version: ProtocolVersion::V1 },
        Self { transport: Transport::LongPoll, version: ProtocolVersion::V2 },
        Self { transport: Transport::WebSocket, version: ProtocolVersion::Pusher },
    ];

    fn index(self) -> usize {
        match self.version {
            ProtocolVersion::V1 | ProtocolVersion::V2 => {
                2 * self.transport as usize + self.version as usize
            }
            ProtocolVersion::Pusher => 4,
        }
    }

    fn labels(self) -> impl EncodeLabelSet + PartialEq {
        [("transport", self.transport.as_str()), ("version", self.version.as_str())]
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
        check::<FailedLogin>();
        check::<SessionEnd>();
        check::<RefreshOutcome>();
        check::<Source>();
        check::<SessionKind>();
    }
}
