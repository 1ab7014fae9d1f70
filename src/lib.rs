//! Herald: a self-hosted realtime broker that speaks Phoenix Channels.
//!
//! A web application triggers events with one HTTP POST; every browser that runs an unmodified
//! `phoenix.js` and joined the matching topic hears them at once. Many apps share one Herald, and
//! none can hear another.
//!
//! # The picture
//!
//! ```text
//!             wire (pure: frame in, effects out)   transports (actors)      core (actors)
//! phoenix.js ─ phoenix::Conversation ──────────┬── session::websocket ─┐
//!              (one for both transports)       └── session::long_poll ─┤
//! Rails      ─ http::events ───────────────────────────────────────────┼─► Topic ──► Fanout ──► sessions
//! every door ─ asks the AppDirectory's snapshot                        │   one per   one per
//!              (kept by app::registry through app::store)              ┘   scope     worker thread
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
//! 1. Waiting flows inward, deliveries never wait: sessions and handlers may wait for a topic; a
//!    topic waits for nobody, a fan-out for none of its sessions. What is under way between them is
//!    bounded by a permit inside each publication, for which its publisher waited, and inside each
//!    announcement, which waits for it while what happens meanwhile joins it.
//! 2. A join's reply leaves before anything else of that join; what is published after the reply
//!    was decided arrives.
//! 3. All subscribers of one scope see one order.
//!    What a member of a presence channel is told adds up, at any moment, to all that was announced.
//! 4. Clients create map entries, never unbounded actors or tasks; each map that a client can grow
//!    has a limit.
//! 5. A panic ends one actor, visibly, and nobody is left joined but deaf: a topic's drop tells the
//!    fan-outs, a fan-out's drop tells its sessions, and whoever finds an address dead starts anew.
//! 6. Safety devices fail closed; a setting that cannot be honoured stops the start.
//! 7. There are no globals: addresses are passed in, and tests run side by side.
//! 8. Secrets have a type that cannot be printed.
//!
//! # One event, function by function
//!
//! `http::events::create` authenticates the app against the snapshot, reads the body once into a
//! [`broker::Publication`] and calls [`broker::Topics::publish`]. Its place in the topic's mailbox is
//! its place in the order; the topic sends one message to the fan-out of each thread that has
//! subscribers; the fan-out picks audience and frame and puts it into each session's
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
