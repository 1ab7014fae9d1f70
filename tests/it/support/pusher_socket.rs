//! A raw client of Pusher's protocol: whole messages are sent and compared.

use herald::pusher::signature::sign;
use serde_json::{Value, json};

use super::{App, Socket, TestServer};

/// A connected client.
pub struct PusherSocket {
    pub socket: Socket,
    /// The socket id.
    pub id: String,
    app: App,
    /// Whether it receives the messages with the number of subscribers, instead of skipping them.
    pub hears_counts: bool,
}

/// The path of an app's sockets, as pusher-js requests it.
pub fn path(app: &App) -> String {
    format!("/app/{}?protocol=7&client=js&version=8.6.0&flash=false", app.key)
}

/// The `auth` value for some texts, signed with an app's key pair.
pub fn auth(app: &App, parts: &[&str]) -> String {
    format!("{}:{}", app.key, sign(&app.secret.as_str().into(), parts))
}

impl PusherSocket {
    /// Connects to the seeded app.
    pub async fn connect(server: &TestServer) -> Self {
        Self::of(server, &App::seeded()).await
    }

    /// Connects to an app.
    pub async fn of(server: &TestServer, app: &App) -> Self {
        Self::over(Socket::open(server, &path(app)).await, app).await
    }

    /// Uses a connection over which nothing has been received yet.
    pub async fn over(mut socket: Socket, app: &App) -> Self {
        let first: Value = serde_json::from_str(&socket.frame().await).expect("JSON");
        assert_eq!(first["event"], "pusher:connection_established", "{first}");
        assert!(first.get("channel").is_none(), "{first}");
        let data: Value =
            serde_json::from_str(first["data"].as_str().expect("text")).expect("JSON");
        assert!(data["activity_timeout"].as_u64().is_some_and(|timeout_s| timeout_s > 0), "{data}");
        let id = data["socket_id"].as_str().expect("a socket id").to_owned();
        let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        assert!(id.split_once('.').is_some_and(|(a, b)| is_number(a) && is_number(b)), "{id}");
        Self { socket, id, app: app.clone(), hears_counts: false }
    }

    /// Sends a message.
    pub async fn say(&mut self, message: Value) {
        self.socket.text(message.to_string()).await;
    }

    /// Sends a command.
    pub async fn command(&mut self, event: &str, data: Value) {
        self.say(json!({ "event": event, "data": data })).await;
    }

    /// The next message.
    pub async fn next(&mut self) -> Value {
        serde_json::from_str(&self.frame().await).expect("JSON")
    }

    /// The text of the next message.
    pub async fn frame(&mut self) -> String {
        loop {
            let text = self.socket.frame().await;
            if self.hears_counts || !text.contains(r#""pusher_internal:subscription_count""#) {
                return text;
            }
        }
    }

    /// Reads until the server closes; answers its code.
    pub async fn closed(&mut self) -> u16 {
        self.socket.rest().await.1
    }

    /// The next message must be exactly this text.
    pub async fn hears(&mut self, text: &str) {
        assert_eq!(self.frame().await, text);
    }

    /// The next message must be an error; answers its code.
    pub async fn hears_error(&mut self) -> Value {
        let message = self.next().await;
        assert_eq!(message["event"], "pusher:error", "{message}");
        assert!(message["data"]["message"].is_string(), "{message}");
        message["data"]["code"].clone()
    }

    /// The next messages must be the two errors of a refused subscription; answers the status.
    pub async fn hears_refusal(&mut self, channel: &str) -> Value {
        let message = self.next().await;
        assert_eq!(message["event"], "pusher:subscription_error", "{message}");
        assert_eq!(message["channel"], channel);
        self.hears_error().await;
        message["data"]["status"].clone()
    }

    /// Asks for a subscription, with the signature of the application if the channel needs one.
    pub async fn ask(&mut self, channel: &str, channel_data: Option<&str>) {
        let auth = match (
            channel.starts_with("private-") || channel.starts_with("presence-"),
            channel_data,
        ) {
            (false, _) => String::new(),
            (true, None) => auth(&self.app, &[&self.id, ":", channel]),
            (true, Some(data)) => auth(&self.app, &[&self.id, ":", channel, ":", data]),
        };
        let mut data = json!({ "channel": channel, "auth": auth });
        if let Some(channel_data) = channel_data {
            data["channel_data"] = channel_data.into();
        }
        self.command("pusher:subscribe", data).await;
    }

    /// The next message must be the success of a subscription; answers its data.
    pub async fn succeeded(&mut self, channel: &str) -> Value {
        let message = self.next().await;
        assert_eq!(message["event"], "pusher_internal:subscription_succeeded", "{message}");
        assert_eq!(message["channel"], channel);
        serde_json::from_str(message["data"].as_str().expect("text")).expect("JSON")
    }

    /// Subscribes; answers the data of the success.
    pub async fn subscribe(&mut self, channel: &str) -> Value {
        self.ask(channel, None).await;
        self.succeeded(channel).await
    }

    /// Joins a presence channel as a user; answers the roster.
    pub async fn enter(&mut self, channel: &str, channel_data: &str) -> Value {
        self.ask(channel, Some(channel_data)).await;
        self.succeeded(channel).await["presence"].clone()
    }

    /// Asks to sign in, with the signature of the application.
    pub async fn sign_in(&mut self, user_data: &str) {
        let auth = auth(&self.app, &[&self.id, "::user::", user_data]);
        self.command("pusher:signin", json!({ "auth": auth, "user_data": user_data })).await;
    }

    /// Checks that no message is waiting: the error for an unknown command must be the next to arrive. The answer
    /// to a ping would not show this, because it overtakes messages that the server is still handling.
    pub async fn assert_quiet(&mut self) {
        self.command("pusher:quiet", json!({})).await;
        let answer = self.next().await;
        let fault = r#""pusher:quiet" is not a command of clients"#;
        assert_eq!(answer["data"]["message"], fault, "{answer}");
    }
}
