//! The subject: the process that is measured. It accepts subscribers and sends them events.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use md5::Md5;
use sha2::Sha256;

use crate::{
    CHANNEL, bare,
    floor::{self, Command as Order},
    handler,
    observe::Observed,
    protocol::Protocol,
    publisher::read_answer,
    wire,
};

/// How long a server may take to start.
const START_MAX: Duration = Duration::from_secs(30);

/// The settings of a server that waits long for silent clients: those that came first are still there
/// when the last has come, however long that takes.
const PATIENT: &[(&str, &str)] =
    &[("HERALD__SOCKET__IDLE_TIMEOUT", "10m"), ("HERALD__PUSHER__ACTIVITY_TIMEOUT", "10m")];

/// The administrator of a server in development.
pub const ADMIN: &str = "pusher_admin_username:pusher_admin_password";

/// Which of the two is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bare `write()` calls.
    Floor,
    /// The least that a server of many sockets does.
    Bare,
    /// A server that speaks the protocol.
    Server,
}

/// Where a server is, and how it is spoken to.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its program; started anew for each measurement unless `running` names one.
    pub program: String,
    /// A server that runs already: its address and its process.
    pub running: Option<(SocketAddr, u32)>,
    /// The protocol of the subscribers.
    pub protocol: Protocol,
    /// The path of its WebSocket, with the query.
    pub path: String,
    /// The app's slug.
    pub app: String,
    /// Key and secret of the app.
    pub credentials: (String, String),
}

impl Target {
    /// The topic of a channel that anybody may join.
    pub fn topic(&self, channel: &str) -> String {
        self.protocol.topic(&self.app, channel)
    }

    /// The same server, whose subscribers speak another protocol at its usual path.
    #[must_use]
    pub fn speaking(&self, protocol: Protocol) -> Self {
        Self { protocol, path: protocol.path(&self.credentials.0), ..self.clone() }
    }
}

/// A process under measurement; it ends with this value.
pub struct Subject {
    /// Which it is.
    pub kind: Kind,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its accounts.
    pub observed: Observed,
    target: Target,
    /// The number of its first client among those of the server.
    first_client: usize,
    process: Option<Child>,
    orders: Option<(ChildStdin, BufReader<ChildStdout>)>,
    _folder: Option<tempfile::TempDir>,
}

impl Subject {
    /// Starts the floor: this very program, told to be it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn floor(target: &Target) -> io::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args([floor::ARGUMENT, target.protocol.name(), &target.topic(CHANNEL)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(input), Some(output)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line)?;
        let port: u16 = line.trim().parse().map_err(io::Error::other)?;
        Ok(Self {
            kind: Kind::Floor,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            observed: Observed { pid: process.id() },
            target: target.clone(),
            first_client: 0,
            process: Some(process),
            orders: Some((input, output)),
            _folder: None,
        })
    }

    /// Starts the server with an empty database, or takes the one that runs.
    ///
    /// # Errors
    /// If it does not start.
    pub fn server(target: &Target) -> io::Result<Self> {
        Self::server_with(target, PATIENT)
    }

    /// Starts the server with an empty database, for apps that retain little: 4 MB, of which 2 MB are for the names
    /// of 10,000 channels.
    ///
    /// # Errors
    /// If it does not start.
    pub fn server_with_full_history(target: &Target) -> io::Result<Self> {
        let little = ("HERALD__HISTORY__APP_BYTES_MAX", "4000000");
        Self::server_with(target, &[PATIENT, &[little]].concat())
    }

    /// Starts the server with the defaults of a machine with 512 MB, or takes the one that runs.
    ///
    /// One default depends on the machine: what may wait for all sessions together is a quarter of its
    /// memory. Fixed, it means the same everywhere.
    ///
    /// # Errors
    /// If it does not start.
    pub fn server_as_shipped(target: &Target) -> io::Result<Self> {
        Self::server_with(target, &[("HERALD__LIMITS__OUTBOXES_BYTES_MAX", "134217728")])
    }

    /// Starts the server with these settings besides, such as those of a node.
    ///
    /// # Errors
    /// If it does not start.
    pub fn node(target: &Target, settings: &[(&str, &str)]) -> io::Result<Self> {
        Self::server_with(target, &[PATIENT, settings].concat())
    }

    /// The same server, spoken to as another app, which is created unless it exists. `settings` are members of the
    /// app's JSON besides its name, slug and login, such as `,"history_publications":0`. Its clients connect from the
    /// addresses of the server's clients from the `first_client`-th on, so that they can connect beside those.
    ///
    /// It does not end with this value, but with the one that started it.
    ///
    /// # Errors
    /// If the server does not create it.
    pub fn app(&self, slug: &str, settings: &str, first_client: usize) -> io::Result<Self> {
        let (key, secret) = (format!("{slug}-key"), format!("{slug}-secret-0123456789"));
        let body = format!(
            r#"{{"app":{{"name":"{slug}","slug":"{slug}","key":"{key}","secret":"{secret}"{settings}}}}}"#
        );
        let mut socket = TcpStream::connect(self.address)?;
        socket.write_all(&self.post("/api/admin/apps", &basic(ADMIN), &body))?;
        if let Err(error) = read_answer(&mut socket) {
            // 422 says that the slug is taken.
            let answer = error.to_string();
            if !["HTTP/1.1 201", "HTTP/1.1 422"].iter().any(|known| answer.starts_with(known)) {
                return Err(error);
            }
        }
        let target =
            Target { app: slug.to_owned(), credentials: (key, secret), ..self.target.clone() };
        Ok(Self {
            kind: self.kind,
            address: self.address,
            observed: self.observed,
            target,
            first_client,
            process: None,
            orders: None,
            _folder: None,
        })
    }

    fn server_with(target: &Target, settings: &[(&str, &str)]) -> io::Result<Self> {
        if let Some((address, pid)) = target.running {
            return Ok(Self {
                kind: Kind::Server,
                address,
                observed: Observed { pid },
                target: target.clone(),
                first_client: 0,
                process: None,
                orders: None,
                _folder: None,
            });
        }
        let folder = tempfile::tempdir()?;
        let process = Command::new(&target.program)
            .current_dir(folder.path())
            .env_clear()
            .env("PORT", "0")
            .env("RUST_LOG", "warn,herald=info")
            .envs(settings.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Self::started(Kind::Server, target, process, folder)
    }

    /// Starts the bare handler: this very program, told to be it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn handler(target: &Target) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let process = Command::new(std::env::current_exe()?)
            .arg(handler::ARGUMENT)
            .stdout(Stdio::piped())
            .spawn()?;
        Self::started(Kind::Bare, target, process, folder)
    }

    /// Starts the bare server: this very program, told to be it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn bare(target: &Target) -> io::Result<Self> {
        let folder = tempfile::tempdir()?;
        let process = Command::new(std::env::current_exe()?)
            .args([bare::ARGUMENT, &target.protocol.answer(&target.topic(CHANNEL))])
            .stdout(Stdio::piped())
            .spawn()?;
        Self::started(Kind::Bare, target, process, folder)
    }

    /// Waits until a server says where it listens.
    fn started(
        kind: Kind,
        target: &Target,
        mut process: Child,
        folder: tempfile::TempDir,
    ) -> io::Result<Self> {
        let output = process.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut lines = BufReader::new(output).lines();
        let address = lines.by_ref().find_map(|line| address_in(&line.ok()?));
        // Its later output must not fill the pipe.
        thread::spawn(move || lines.for_each(drop));
        let address =
            address.ok_or_else(|| io::Error::other("the server does not say where it listens"))?;
        let subject = Self {
            kind,
            address,
            observed: Observed { pid: process.id() },
            target: target.clone(),
            first_client: 0,
            process: Some(process),
            orders: None,
            _folder: Some(folder),
        };
        subject.await_listener()?;
        Ok(subject)
    }

    fn await_listener(&self) -> io::Result<()> {
        let began = Instant::now();
        loop {
            match TcpStream::connect(self.address) {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > START_MAX => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Gives the floor an order; nothing happens where this is a server.
    ///
    /// # Errors
    /// If the floor is gone.
    pub fn order(&mut self, order: &Order) -> io::Result<()> {
        self.order_all(std::slice::from_ref(order))
    }

    /// Gives the floor several orders in one write, as one request brings a server several events.
    ///
    /// # Errors
    /// If the floor is gone.
    pub fn order_all(&mut self, orders: &[Order]) -> io::Result<()> {
        let lines: String = orders.iter().map(Order::line).collect();
        match &mut self.orders {
            Some((orders, _)) => orders.write_all(lines.as_bytes()),
            None => Ok(()),
        }
    }

    /// Waits until the floor has carried out an order that it answers.
    ///
    /// # Errors
    /// If the floor is gone.
    pub fn obeyed(&mut self) -> io::Result<()> {
        match &mut self.orders {
            Some((_, answers)) => answers.read_line(&mut String::new()).map(drop),
            None => Ok(()),
        }
    }

    /// Connects a subscriber from one of the loopback addresses, and joins it to a topic.
    ///
    /// # Errors
    /// If it is not let in.
    pub fn connect(&self, nth: usize, join: Option<&str>) -> io::Result<TcpStream> {
        self.welcome(self.dial(nth, None)?, join)
    }

    /// Connects a subscriber, which joins topics. Without a given size, the kernel chooses the size of its receive
    /// buffer.
    ///
    /// # Errors
    /// If it is not let in.
    pub fn connect_to(
        &self,
        nth: usize,
        receive_bytes: Option<usize>,
        joins: &[String],
    ) -> io::Result<TcpStream> {
        let joins = joins.iter().map(String::as_str);
        self.welcome(self.dial(nth, receive_bytes)?, joins)
    }

    /// Connects from the address and port of the n-th client. Without a given size, the kernel chooses the size of
    /// the receive buffer.
    ///
    /// # Errors
    /// If nobody listens, or the n-th has connected to the same server before.
    pub fn dial(&self, nth: usize, receive_bytes: Option<usize>) -> io::Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        if let Some(bytes) = receive_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        // The ports of the round before, whose server had another one, are as good as new.
        socket.set_reuse_address(true)?;
        let source = source(self.first_client + nth);
        // Where somebody listens on that very port, any other will do. The kernel is not asked for all
        // of them: among tens of thousands it searches long.
        let any = SocketAddr::from((source.ip(), 0));
        socket.bind(&source.into()).or_else(|_| socket.bind(&any.into()))?;
        socket.connect(&self.address.into())?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket.into())
    }

    /// Shakes hands, and joins what is to be joined.
    fn welcome<'a>(
        &self,
        mut socket: TcpStream,
        joins: impl IntoIterator<Item = &'a str>,
    ) -> io::Result<TcpStream> {
        let protocol = self.target.protocol;
        socket.set_read_timeout(Some(START_MAX))?;
        wire::shake_hands(&mut socket, &self.target.path, &self.address.to_string())?;
        if self.kind == Kind::Server && protocol.is_greeted() {
            wire::read_message(&mut socket)?;
        }
        if self.kind != Kind::Floor {
            for join in joins {
                socket.write_all(&wire::client_frame(join))?;
                read_joined(protocol, &mut socket)?;
            }
        }
        Ok(socket)
    }

    /// Its name in remarks.
    pub fn who(&self) -> &'static str {
        match self.kind {
            Kind::Floor => "floor",
            Kind::Bare => "bare",
            Kind::Server => "server",
        }
    }

    /// Where it is, and how it is spoken to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The join of a channel that anybody may join.
    pub fn join(&self, channel: &str) -> String {
        self.target.protocol.join(&self.target.topic(channel))
    }

    /// A request that triggers an event with this number, through the API of the protocol.
    pub fn numbered_trigger(&self, number: u64, payload_bytes: usize) -> Vec<u8> {
        match self.target.protocol {
            Protocol::Phoenix => self.trigger(&crate::trigger_body(number, payload_bytes)),
            Protocol::Pusher => self.signed_trigger(&crate::pusher_body(number, payload_bytes)),
        }
    }

    /// A request that triggers one event.
    pub fn trigger(&self, body: &str) -> Vec<u8> {
        self.post(&format!("/api/apps/{}/events", self.target.app), &self.basic(), body)
    }

    /// A request of Pusher's API that triggers one event. It is signed now, and good for ten minutes.
    pub fn signed_trigger(&self, body: &str) -> Vec<u8> {
        let (key, secret) = &self.target.credentials;
        let path = format!("/apps/{}/events", self.target.app);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let digest = hex(&<Md5 as md5::Digest>::digest(body.as_bytes()));
        let query = format!(
            "auth_key={key}&auth_timestamp={}&auth_version=1.0&body_md5={digest}",
            now.as_secs()
        );
        let mut mac =
            Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes all keys");
        mac.update(format!("POST\n{path}\n{query}").as_bytes());
        let signature = hex(&mac.finalize().into_bytes());
        let (host, length) = (self.address, body.len());
        format!(
            "POST {path}?{query}&auth_signature={signature} HTTP/1.1\r\nHost: {host}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }

    /// A request that triggers several events at once.
    pub fn bulk(&self, body: &str) -> Vec<u8> {
        self.post("/api/publish/bulk", &self.target.credentials.1, body)
    }

    /// A request with a body of JSON.
    pub fn post(&self, path: &str, authorization: &str, body: &str) -> Vec<u8> {
        post(self.address, path, authorization, body)
    }

    /// The app's key and secret as an `Authorization` header has them.
    pub fn basic(&self) -> String {
        let (key, secret) = &self.target.credentials;
        basic(&format!("{key}:{secret}"))
    }

    /// The metrics of the server; `None` if it does not show them to the administrator of a server in
    /// development.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn metrics(&self) -> io::Result<Option<String>> {
        let mut socket = TcpStream::connect(self.address)?;
        socket.set_read_timeout(Some(START_MAX))?;
        let (host, authorization) = (self.address, basic(ADMIN));
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\n\
             Connection: close\r\n\r\n"
        );
        socket.write_all(request.as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200").then_some(answer))
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let ended = process.kill().and_then(|()| process.wait());
            if let Err(error) = ended {
                crate::report::say(&format!("a measured process does not end: {error}"));
            }
        }
    }
}

/// A name and a password, joined by a colon, as an `Authorization` header has them.
pub fn basic(login: &str) -> String {
    format!("Basic {}", STANDARD.encode(login))
}

/// A request to a host, with a body of JSON.
pub fn post(host: SocketAddr, path: &str, authorization: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: {authorization}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The join of a topic, as version 2 spells it.
pub fn join(topic: &str) -> String {
    format!(r#"["1","1","{topic}","phx_join",{{}}]"#)
}

/// Where the n-th client connects from: one address has some 28,000 ports. Load generators that run
/// side by side have addresses of their own, and leave servers those of 127.0.0.1.
fn source(nth: usize) -> SocketAddr {
    /// Below those that the kernel chooses by itself.
    const FIRST_PORT: u16 = 10_000;
    const PER_ADDRESS: usize = 20_000;
    let [.., high, low] = std::process::id().to_be_bytes();
    let host = u8::try_from(1 + nth / PER_ADDRESS).unwrap_or(u8::MAX);
    let port = FIRST_PORT + u16::try_from(nth % PER_ADDRESS).unwrap_or_default();
    SocketAddr::from(([127, high | 1, low, host], port))
}

/// Reads the answer to a join, and nothing behind it.
fn read_joined(protocol: Protocol, socket: &mut impl Read) -> io::Result<()> {
    loop {
        let message = wire::read_message(socket)?;
        if protocol.is_joined(&message) {
            return Ok(());
        }
        if !protocol.may_precede_join(&message) {
            return Err(io::Error::other(String::from_utf8_lossy(&message).into_owned()));
        }
    }
}

/// The address in what a server prints when it has started.
fn address_in(line: &str) -> Option<SocketAddr> {
    let url = line.split_once("http://")?.1;
    let end = url.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(url.len());
    url.get(..end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_where_a_server_prints_it() {
        let line = "Herald listens on http://127.0.0.1:4000/ (development)";
        assert_eq!(address_in(line), Some(SocketAddr::from(([127, 0, 0, 1], 4000))));
        assert_eq!(address_in("nothing"), None);
    }
}
