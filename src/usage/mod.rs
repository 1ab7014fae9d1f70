//! Usage: what each app uses by the hour, exact to the event.
//!
//! ```text
//! broker, phoenix ─► metrics::usage ─► Ledger ─► app::store::usage        every answer:
//!    (count)         (since taken)     (by hour,   (the database)         the database + the ledger
//!                                       not yet
//!                                       written)
//! ```
//!
//! The [`ledger`] takes what was counted, puts it to the hour it belongs to, and adds it to the
//! database within `usage.write_interval`, at most a minute, and when the server stops. What the database does not take
//! stays in the ledger and is written later, exactly once. The [`keeper`] is the actor that does so in
//! time. A [`span`] says what is asked for; a [`report`] is the answer, the same for the HTTP API and
//! the command line. A [`seat`] tells the nodes of a cluster apart.

pub mod keeper;
pub mod ledger;
pub mod report;
pub mod seat;
pub mod span;
