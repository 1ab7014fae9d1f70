//! Herald from outside: whole servers, real sockets, real databases.
//!
//! All these tests are one binary, because linking is what takes long. A module is named after the part of the
//! server that it tests. A test whose name begins with `e` and a number shows the entry of that number in the
//! protocol document (see `docs/conformance.md`).

#![allow(unreachable_pub, missing_docs, reason = "a test binary has no public face")]

use herald::engine;

#[path = "../memory_engine/mod.rs"]
#[allow(dead_code, reason = "the unit tests use it, too")]
mod memory_engine;
mod support;

mod app_changes;
mod apps;
mod asking;
mod audience;
mod audit;
mod binary;
mod broadcast;
mod client_events;
mod command_line;
mod comments;
mod conformance;
mod console;
mod console_on_nodes;
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
mod limits_on_nodes;
mod live_feed;
mod long_poll;
mod long_poll_limits;
mod long_poll_sessions;
mod metrics;
mod names;
mod neighbours;
mod nodes;
mod nodes_on_cluster;
mod nodes_on_redis;
mod nodes_under_faults;
mod ops;
mod ordering;
mod other_apps;
mod outage;
mod own_app;
mod paths;
mod pipelining;
mod presence;
mod presence_limits;
mod presence_pictures;
mod pusher_auth;
mod pusher_channels;
mod pusher_client_events;
mod pusher_conformance;
mod pusher_connection;
mod pusher_events;
mod pusher_meets_phoenix;
mod pusher_on_nodes;
mod pusher_operators;
mod pusher_presence;
mod pusher_queries;
mod pusher_users;
mod pushing;
mod recovery;
mod refusals;
mod rejoining;
mod repeating;
mod restarts;
mod rooms;
mod rotation;
mod second_conversation;
mod secrecy;
mod settings;
mod settings_page;
mod shutdown;
mod single_app;
mod slow_clients;
mod strict_json;
mod tokens;
mod triggers;
mod unfinished;
mod unread_log;
mod usage;
mod usage_ledger;
