//! Herald: a self-hosted realtime broker that speaks Phoenix Channels and Pusher's protocol.
//!
//! A web application triggers events with one HTTP POST, and every browser that runs an unmodified
//! `phoenix.js` and has joined the matching topic receives them at once. Many apps share one Herald, and
//! no app receives the events of another.
//!
//! # The picture
//!
//! ```text
//!             protocol (pure: frame in, effects out)   transports (actors)      core
//! phoenix.js ─ PhoenixConversation ────────────┬── session::websocket ─┐
//! pusher-js  ─ PusherConversation ─────────────┤                       │
//!              (one for both transports)       └── session::long_poll ─┤
//! Rails      ─ http::events ───────────────────────────────────────────┴─► Stream ──► Fanout ──► sessions
//!                                                                          one per    one actor per
//!                                                                          scope      worker thread
//! ```
//!
//! Every entry point reads the `AppDirectory`'s snapshot, which `app::registry` keeps through `app::store`.
//!
//! # Words
//!
//! Apps and their rights:
//!
//! - **App**: a tenant with key and secret; its *slug* is its public id. The *directory* of apps is the
//!   snapshot that all threads read; the *registry* is the actor that keeps it.
//! - **Key pair**: an app's key and secret. A *rotation* gives the app a new pair, and the previous
//!   pair stays valid until its *overlap* has passed.
//! - **Token**: a signed JWT that an app's web application mints for a visitor. A valid one yields a
//!   *grant*: the *patterns* of the topics that it may listen to and publish on. Its *subject* is its
//!   `sub`.
//! - **Visitor**: a person in front of a page. A token, or a signature of the web application, says which
//!   *user* the visitor is.
//! - **Web application**: the program that owns an app: it triggers events and mints tokens. The
//!   *administrator* has the login of the admin API; the *operator* runs the server.
//! - **Origin** of a page, or of the address of a request: scheme, host and port, as a browser sends them.
//! - **Footing**: the grounds on which a join was permitted. They are judged again when the app changes. The
//!   *standing* is what is still valid of them.
//! - **Refusal**: a request that was not permitted, as it is answered, logged and counted.
//!
//! Topics:
//!
//! - **Scope**: a set of topics with the same rule of access: `public` needs no token, every other scope
//!   does.
//! - **Topic**: the name that a client joins: `<scope>:<app>`, or `<scope>:<app>:<channel>`.
//! - **Channel**: a named stream of events inside one scope of an app; `#general` means every channel
//!   of it. A *cache channel* keeps its last event.
//! - **Place**: the position of a subscription in the broker: a whole scope, or one channel of it. Topics
//!   are spelled differently by each protocol, places are not.
//!
//! Publishing:
//!
//! - **Event**: the name under which a payload arrives.
//! - **Publication**: one payload on its way to subscribers. Its *publisher* is a call of the API or a
//!   client; a *trigger* is a publication by the API. To *hear* a publication is to be sent it.
//! - **Stream**: the one order of a scope's publications. A *position* is a point in it: an
//!   *epoch*, which is one unbroken numbering, and an *offset*.
//! - **Receipt**: the positions of accepted publications, and the number of skipped subscribers.
//! - **Idempotency key**: a text by which a publisher can repeat a request without publishing twice.
//! - **Permit**: the right of one publication to be under way; each app has a limited number.
//! - **Batch**: publications that reach the fan-outs in one message; in the engine, the records that are
//!   appended in one call.
//! - **Fan-out**: the actor of a worker thread that delivers publications to the thread's sessions. It
//!   gives each app its *turn*, and works in *rounds* of about 100 µs, after which the other tasks of the thread run.
//! - **Delivery**: a publication as one subscriber is sent it. A *format* is the encoding of publications for
//!   one kind of client, and a *frame* is the encoded text or bytes. A fan-out *hands out* a publication when
//!   it puts it into the outboxes of all subscribers of its thread; each of these frames is a delivery.
//! - **Outbox**: the queue of frames between a fan-out and one session. The *backlog* is the sum of all
//!   outboxes.
//!
//! Joining:
//!
//! - **Join** and **leave**: the verbs of clients, which join and leave topics. A session *subscribes* to
//!   a place and *unsubscribes* from it. Inside the broker a session *enters* the fan-out of its thread
//!   when it begins and *leaves* it when it ends, and each subscription is *attached* to the fan-out and
//!   *detached* from it.
//! - **Boundary**: the position after which a join receives publications.
//! - **Gap**: the publications that a join has missed since the position that it names.
//! - **Disconnect**: a command of an app that ends joins, such as those of one user or on one topic, on all
//!   threads and nodes.
//! - **History**: the publications that a stream retains; its *retention* is how many, and for how long.
//!   The *retention ledger* counts what each app retains. *Recovery* is the answer to a join that names a position,
//!   and a *replay* is the frames that this join is sent.
//! - **Archive**: the file in which a stop saves the history and the idempotency keys.
//! - **Presence**: the members of a channel of the scope `presence`. A *member* is one tracked join: its
//!   *key* identifies the visitor, its *meta* is the data that others see. A *roster* is a list of
//!   members. The *tracker* is the actor that keeps the members of one scope.
//! - **Announcement**: the changes among the members of a channel that are sent at one moment.
//! - **Occupancy**: the numbers of subscribers of an app's topics.
//!
//! Sessions:
//!
//! - **Session**: one connected client, over WebSocket or long-poll. Its *public id* is the text by which
//!   clients name it; Pusher's clients call it a socket id. Its *connection id* is the text that an app is shown.
//! - **Conversation**: the part of a session that implements its protocol: messages of the client go
//!   in, *effects* come out. The *driver* carries them out.
//! - **Transport**: WebSocket or long-poll.
//! - **Farewell**: the last frames of a session that is being closed.
//! - **Handshake**: the request with which a session begins. The *entrance* checks its origin and its
//!   client's address, and takes its place among the sessions.
//! - **Gate**: the state that stops a session from reading while it is too fast.
//! - **Frame writer**: the part of a socket by which a fan-out writes the frames of a session to it.
//! - **Pump**: the task that reads the messages of a client, and writes to its socket what the fan-out could
//!   not.
//! - **Worker**: a thread, and the state that its sessions share.
//! - **Work queue**: the queue in which the work of unauthenticated clients waits for its turn.
//! - **Unfinished work**: the bytes of incomplete requests and messages, counted over all clients. A
//!   *holding* is the part of it that one client holds.
//!
//! Operation:
//!
//! - **Usage**: the publications, deliveries and connections of each app, by the hour. The *usage
//!   ledger* has the counts that the database does not have yet. A *seat* is the number under which a node counts
//!   usage.
//! - **Audit trail**: the changes of apps: which fields, when, and by whom.
//! - **Engine**: the log in *partitions* that several nodes share, and the messages between nodes. A *node*
//!   is one server of a cluster, a *lease* is its proof of life, an *incarnation* is its time under one
//!   lease, and a *life* is a node together with its incarnation. A *record* is one entry of the log: a
//!   publication, a change of members or a disconnect. A *follower* receives the records of the log.
//! - **Console**: the pages for the administrator and for apps. Its *feed* sends a page the events of an
//!   app as they happen.
//!
//! # Rooms, in reading order
//!
//! Each room uses rooms above it, never below; a test reads the `use` lines and keeps this true.
//! Only [`app::store`] speaks SeaORM, only [`session`] sees actix-http and actix-web-actors.
//!
//! # What always holds
//!
//! 1. Waiting flows inward, deliveries never wait. Sessions and handlers may wait for a permit, or for
//!    the tracker of a scope. A stream never waits while it holds its lock, and a fan-out waits neither
//!    for its sessions nor for another actor. Each publication holds a permit, for which its publisher
//!    waited; an announcement waits for its permit, and changes that happen meanwhile become part of it.
//! 2. A join's reply leaves before anything else of that join. Its fan-out puts the answer into the
//!    session's outbox at its place among the frames: the session is sent every publication after the
//!    boundary, and none up to it.
//! 3. All subscribers of one scope see one order, that of the offsets. A stream gives a publication
//!    its offset and passes it to the fan-outs under one lock, and announcements pass under the same
//!    lock. The announcements that a member of a presence channel has received add up, at any moment, to
//!    the members that were announced.
//! 4. Clients create map entries, never unbounded actors or tasks; each map that a client can grow
//!    has a limit.
//! 5. A panic ends one actor, visibly, and no session stays joined without being sent its publications.
//!    A fan-out that is dropped ends its sessions, also those that had yet to attach; a tracker that is
//!    dropped ends the sessions that it tracked; the next caller that needs one starts another. No actor
//!    stands between a publisher and the fan-outs, so no accepted publication is lost or reordered by a
//!    panic.
//! 6. Safety devices fail closed; a setting that cannot be honoured stops the start.
//! 7. There are no globals: addresses are passed in, and tests run side by side.
//! 8. Secrets have a type that cannot be printed.
//!
//! # One event, function by function
//!
//! `http::events::create` authenticates the app against the snapshot, reads the body once into a
//! [`broker::Publication`] and calls [`broker::Topics::publish`]. The stream of the scope gives it its
//! position and passes it to the fan-out of each thread that has subscribers, in one message. The
//! fan-out selects the subscribers, encodes one frame for each format, and puts it into each session's
//! [outbox](broker::outbox). From there the fan-out has it written to the socket of a WebSocket, together with
//! all other waiting frames; what the socket does not take at once, the pump of the session writes. A
//! long-poll's actor keeps the frame for the parked request, or for the next one.
//! A client's push takes the same way from `Topics::publish` on.

pub mod form;

pub mod json;

pub mod strict_json;

pub mod metrics;

pub mod app;

pub mod usage;

pub mod settings;

pub mod engine;

pub mod broker;

pub mod session;

pub mod admission;

pub mod phoenix;

pub mod pusher;

pub mod http;

pub mod server;

pub mod cli;
