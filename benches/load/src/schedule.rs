//! When the operating system runs a client that shares the server's machine, where it stands for one that does not.

use std::io;

use thread_priority::{
    NormalThreadSchedulePolicy::Idle, RealtimeThreadSchedulePolicy::Fifo, ThreadPriority,
    ThreadSchedulePolicy, thread_native_id, unix::set_thread_priority_and_policy,
};

/// Lets this thread run whenever it has something to do: it takes the processor from the server, as a client on
/// another machine has a processor of its own.
///
/// # Errors
/// If the operating system refuses, because this user may not do that.
pub fn at_once() -> io::Result<()> {
    set(ThreadPriority::Min, ThreadSchedulePolicy::Realtime(Fifo))
}

/// Lets this thread run only while nobody else has anything to do: it takes no processor from the server.
///
/// # Errors
/// If the operating system refuses.
pub fn when_idle() -> io::Result<()> {
    set(ThreadPriority::Min, ThreadSchedulePolicy::Normal(Idle))
}

fn set(priority: ThreadPriority, policy: ThreadSchedulePolicy) -> io::Result<()> {
    set_thread_priority_and_policy(thread_native_id(), priority, policy)
        .map_err(|error| io::Error::other(error.to_string()))
}
