//! A Redis that does nothing else than `PUBLISH`: it is what a broker over Redis costs at least.

use std::{
    io::{self, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::{Cost, PAYLOAD_BYTES, WARM_UP, cost};
use crate::{
    CHANNEL, FIRST,
    redis::{Redis, command, read_lines},
};

/// Clients that publish, each as soon as all of them are answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Publishing {
    /// The clients.
    pub(super) connections: usize,
    /// The commands that each sends together.
    pub(super) at_once: usize,
    /// The connections that listen to the channel.
    pub(super) listeners: usize,
}

impl Publishing {
    /// Starts a Redis, and publishes for so long.
    pub(super) fn measure(self, lasting: Duration) -> io::Result<Cost> {
        let redis = Redis::start()?;
        for _ in 0..self.listeners {
            redis.listen(CHANNEL)?;
        }
        let sockets = (0..self.connections).map(|_| redis.connect());
        let mut sockets = sockets.collect::<io::Result<Vec<_>>>()?;
        let text = crate::trigger_body(FIRST, PAYLOAD_BYTES);
        let commands = command(&["PUBLISH", CHANNEL, &text]).repeat(self.at_once);
        self.publish(&mut sockets, &commands, WARM_UP)?;
        cost(redis.observed, || self.publish(&mut sockets, &commands, lasting))
    }

    /// Answers how many commands were answered.
    fn publish(
        self,
        sockets: &mut [TcpStream],
        commands: &[u8],
        lasting: Duration,
    ) -> io::Result<u64> {
        let (began, mut published) = (Instant::now(), 0);
        while began.elapsed() < lasting {
            for socket in sockets.iter_mut() {
                socket.write_all(commands)?;
            }
            for socket in sockets.iter_mut() {
                read_lines(socket, self.at_once)?;
            }
            published += (sockets.len() * self.at_once) as u64;
        }
        Ok(published)
    }
}
