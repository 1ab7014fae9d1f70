//! Herald from outside: whole servers, real sockets, real databases.
//!
//! One binary, for linking is what costs. Modules are named after what they ask of the server; a
//! test whose name begins with `e` and a number shows the entry of that number in the protocol
//! document (see `docs/conformance.md`).

#![allow(unreachable_pub, missing_docs, reason = "a test binary has no public face")]

mod support;

mod app_changes;
mod apps;
mod asking;
mod audience;
mod binary;
mod broadcast;
mod client_events;
mod command_line;
mod conformance;
mod databases;
mod disconnecting;
mod file_handles;
mod forms;
mod framing;
mod full_disk;
mod fuzzing;
mod handshake;
mod heads;
mod history;
mod history_bounds;
mod hostile_http;
mod hostile_sockets;
mod joining;
mod leaving;
mod limit_hits;
mod limits;
mod long_poll;
mod long_poll_limits;
mod long_poll_sessions;
mod metrics;
mod neighbours;
mod ordering;
mod outage;
mod paths;
mod pipelining;
mod presence;
mod presence_limits;
mod presence_pictures;
mod pushing;
mod recovery;
mod refusals;
mod rejoining;
mod repeating;
mod restarts;
mod rooms;
mod secrecy;
mod settings;
mod shutdown;
mod single_app;
mod slow_clients;
mod strict_json;
mod tokens;
mod triggers;
mod unfinished;
mod unread_log;
