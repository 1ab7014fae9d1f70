//! Herald: a self-hosted realtime broker that speaks Phoenix Channels.
//!
//! A web application triggers events with one HTTP POST; every browser that runs an unmodified
//! `phoenix.js` and joined the matching topic hears them at once. Many apps share one Herald, and
//! none can hear another.
//!
//! # The picture
//!
//! ```text
//!             wire (pure: frame in, effects out)   transports (actors)      core
//! phoenix.js ─ phoenix::Conversation ──────────┬── session::websocket ─┐
//!              (one for both transports)       └── session::long_poll ─┤
//! Rails      ─ http::events ───────────────────────────────────────────┼─► Stream ──► Fanout ──► sessions
//! every door ─ asks the AppDirectory's snapshot                        │   one per    an actor per
//!              (kept by app::registry through app::store)              ┘   scope      worker thread
//! ```
//!
//! # Words
//!
//! - **App**: a tenant with key and secret; its *slug* is its public id.
//! - **Scope**: who may hear. `public` needs no token, every other scope does.
//! - **Topic**: what a client joins: `<scope>:<app>`, or `<scope>:<app>:<channel>`.
//! - **Channel**: a named stream inside one scope of an app; `#general` means every channel of it.
//! - **Event**: the name under which a payload arrives.
//! - **Publication**: one payload on its way to subscribers.
//! - **Stream**: the one order of a scope's publications. A *position* names a place in it: an
//!   *epoch*, which is one unbroken numbering, and an *offset*.
//! - **Boundary**: the position at which a join begins to hear.
//! - **History**: the publications that a stream retains. *Recovery* is what a join that knows a
//!   position is told and *replayed* of them.
//! - **Presence**: who is there, on a channel of the scope `presence`. A *member* is one tracked
//!   join: its *key* says who, its *meta* what others see of it.
//! - **Announcement**: what has changed among the members of a channel, all of one moment together.
//! - **Session**: one connected client, over WebSocket or long-poll.
//!
//! # Rooms, in reading order
//!
//! Each room uses rooms above it, never below; a test reads the `use` lines and keeps this true.
//! Only [`app::store`] speaks SeaORM, only [`session`] sees actix-http and actix-web-actors.
//!
//! # What always holds
//!
//! 1. Waiting flows inward, deliveries never wait: sessions and handlers may wait for a permit, or for
//!    the tracker of a scope. A stream never waits while it holds its lock; a fan-out waits for none
//!    of its sessions, and for no other actor. What is under way is bounded by a permit inside each
//!    publication, for which its publisher waited, and inside each announcement, which waits for it
//!    while what happens meanwhile joins it.
//! 2. A join's reply leaves before anything else of that join. Its fan-out puts the answer into the
//!    session's outbox at its place among the frames: the session is sent every publication after the
//!    boundary, and none up to it.
//! 3. All subscribers of one scope see one order, that of the offsets. A stream gives a publication
//!    its offset and hands it to the fan-outs under one lock, and announcements pass under the same
//!    lock. What a member of a presence channel is told adds up, at any moment, to all that was
//!    announced.
//! 4. Clients create map entries, never unbounded actors or tasks; each map that a client can grow
//!    has a limit.
//! 5. A panic ends one actor, visibly, and nobody is left joined but deaf. A fan-out that is dropped
//!    ends its sessions, also those that it had yet to take in; a tracker that is dropped ends the
//!    sessions that it tracked; whoever needs one next starts another. No actor stands between a
//!    publisher and the fan-outs, so no publication that was accepted is lost or reordered with one.
//! 6. Safety devices fail closed; a setting that cannot be honoured stops the start.
//! 7. There are no globals: addresses are passed in, and tests run side by side.
//! 8. Secrets have a type that cannot be printed.
//!
//! # One event, function by function
//!
//! `http::events::create` authenticates the app against the snapshot, reads the body once into a
//! [`broker::Publication`] and calls [`broker::Topics::publish`]. The stream of the scope gives it its
//! position and hands it to the fan-out of each thread that has subscribers, in one message; the
//! fan-out picks audience and frame and puts it into each session's
//! [outbox](broker::outbox). From there a WebSocket's pump writes it to the socket, with all else that
//! waits, while a long-poll's actor keeps it for the request that is parked, or for the next. A
//! client's push is the same from `Topics::publish` on.

pub mod form;

pub mod strict_json;

pub mod metrics;

pub mod app;

pub mod settings;

pub mod broker;

pub mod session;

pub mod phoenix;

pub mod http;

pub mod server;

pub mod cli;
