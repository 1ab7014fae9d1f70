//! Sockets that are misused: each ends with the right close code or is tolerated, no other client is affected, and
//! memory stays bounded.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinHandle,
    time::timeout,
};
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::support::{figures::Figures, raw, *};

/// A masked frame whose mask is zero, with a length of two bytes.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&[first, 0x80 | 126], &length[..], &[0; 4], payload].concat()
}

/// A short masked frame.
fn short(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short payload");
    [&[first, 0x80 | length], &[0; 4][..], payload].concat()
}

/// The head of a frame that claims this length.
fn claim(first: u8, length: u64) -> Vec<u8> {
    [&[first, 0x80 | 127][..], &length.to_be_bytes()].concat()
}

/// The time that a round trip takes; nothing else may arrive.
async fn heartbeat(socket: &mut Socket) -> Duration {
    let began = Instant::now();
    socket.assert_quiet().await;
    began.elapsed()
}

#[tokio::test]
async fn broken_frames_end_their_socket_with_the_right_code_and_no_other() {
    let server = TestServer::start();
    let mut bystander = Socket::connect(&server, V2).await;
    bystander.join("public:test-app", json!({})).await;
    let (vsn1, vsn2) = (V1, V2);
    let fragments = |count: usize| {
        let piece = frame(0x00, &[b'x'; 60_000]);
        [frame(0x01, b""), piece.repeat(count), short(0x80, b"")].concat()
    };
    let pieces = |count: usize| {
        let piece = frame(0x00, &[b'x'; 3_000]);
        [frame(0x01, b""), piece.repeat(count), short(0x80, b"")].concat()
    };
    let mut unmasked = short(0x81, b"");
    unmasked.truncate(2);
    unmasked[1] = 5;
    for (case, vsn, bytes, code) in [
        ("unmasked", vsn2, [unmasked, b"hello".to_vec()].concat(), 1002),
        ("opcode 3", vsn2, short(0x83, b""), 1002),
        ("opcode 15", vsn2, short(0x8f, b""), 1002),
        ("a reserved bit", vsn2, short(0xc1, b"x"), 1002),
        ("a ping in fragments", vsn2, short(0x09, b""), 1002),
        ("a long ping", vsn2, frame(0x89, &[0; 126]), 1002),
        ("a continuation of nothing", vsn2, short(0x80, b"x"), 1002),
        ("text within fragments", vsn2, [short(0x01, b"["), short(0x81, b"[")].concat(), 1002),
        ("not UTF-8", vsn2, short(0x81, b"\xff"), 1007),
        ("a terabyte, by its head", vsn2, claim(0x81, 1 << 40), 1009),
        ("all there is, by its head", vsn2, claim(0x82, u64::MAX), 1009),
        ("a terabyte of fragment", vsn2, [short(0x01, b""), claim(0x80, 1 << 40)].concat(), 1009),
        ("fragments beyond the limit", vsn2, fragments(18), 1009),
        ("fragments that are no JSON", vsn2, pieces(17), 1011),
        ("no JSON", vsn2, short(0x81, b"hello"), 1011),
        ("nothing at all", vsn2, short(0x81, b""), 1011),
        ("an object where an array belongs", vsn2, short(0x81, b"{}"), 1011),
        ("an array where an object belongs", vsn1, short(0x81, b"[]"), 1011),
        ("four parts", vsn2, short(0x81, br#"[null,"1","phoenix","heartbeat"]"#), 1011),
        ("deep and broken", vsn2, frame(0x81, &[b'['; 50_000]), 1011),
        ("a nested ref", vsn2, short(0x81, br#"[null,["1"],"phoenix","heartbeat",{}]"#), 1011),
        ("a nested join_ref", vsn2, short(0x81, br#"[{},"1","phoenix","heartbeat",{}]"#), 1011),
        ("half a surrogate pair", vsn2, short(0x81, br#"[null,"1","\ud800","e",{}]"#), 1011),
        ("binary nonsense", vsn2, short(0x82, &[0xff; 60]), 1011),
        ("a close of one byte", vsn2, short(0x88, b"\x03"), 1002),
    ] {
        let mut socket = Socket::connect(&server, vsn).await;
        let began = Instant::now();
        // The server may hang up before it has read all of it.
        let _ = socket.tcp().write_all(&bytes).await;
        assert_eq!(socket.closed().await, code, "{case}");
        assert!(began.elapsed() < Duration::from_secs(5), "{case}: {:?}", began.elapsed());
    }
    bystander.assert_quiet().await;
}

#[tokio::test]
async fn odd_messages_that_break_no_rule_are_borne() {
    let server = TestServer::start();
    let mut socket = Socket::connect(&server, V2).await;
    let deep = format!("{}{}", "[".repeat(25_000), "]".repeat(25_000));
    let unmatched = |reference: &str, topic: &str| {
        format!(
            r#"[null,{reference},{topic},"phx_reply",{{"status":"error","response":{{"reason":"unmatched topic"}}}}]"#
        )
    };
    for (case, sent, expected) in [
        (
            "an unknown topic",
            r#"["1","1","nowhere","phx_join",{}]"#.to_owned(),
            unmatched(r#""1""#, r#""nowhere""#),
        ),
        (
            "a NUL in the topic",
            r#"["1","1","public:test-app:a\u0000b","phx_join",{}]"#.to_owned(),
            unmatched(r#""1""#, r#""public:test-app:a\u0000b""#),
        ),
        (
            "a long topic",
            format!(r#"["1","1","public:test-app:{}","phx_join",{{}}]"#, "x".repeat(250)),
            unmatched(r#""1""#, &format!(r#""public:test-app:{}""#, "x".repeat(250))),
        ),
        (
            "a topic of another type",
            r#"[1,2,{"a":[]},"phx_join",{}]"#.to_owned(),
            unmatched("2", r#"{"a":[]}"#),
        ),
        ("an event of another type", r#"[1,2,"x",[],{}]"#.to_owned(), unmatched("2", r#""x""#)),
        ("a deep payload", format!(r#"[1,2,"x","phx_join",{deep}]"#), unmatched("2", r#""x""#)),
        (
            "a leave of nothing",
            r#"["1","2","nowhere","phx_leave",{}]"#.to_owned(),
            r#"["1","2","nowhere","phx_reply",{"status":"ok","response":{}}]"#.to_owned(),
        ),
    ] {
        socket.text(sent).await;
        assert_eq!(socket.frame().await, expected, "{case}");
    }
    socket.text(r#"[null,"1","phoenix","heartbeat",{},"a sixth part"]"#).await;
    let reply = r#"[null,"1","phoenix","phx_reply",{"status":"ok","response":{}}]"#;
    assert_eq!(socket.frame().await, reply);
    let topic = "public:test-app:\u{202e}e\u{301}\u{1f600}\u{200b}";
    socket.join(topic, json!(null)).await;
    socket.push(json!(["1", "2", topic, "msg", {}])).await;
    assert_eq!(socket.next().await, json!([null, null, topic, "msg", {}]));
    for (case, event) in [("NUL", "a\0b"), ("reserved", "phx_x"), ("long", &"x".repeat(201))] {
        socket.push(json!(["1", "3", topic, event, {}])).await;
        let expected = json!({"status": "error", "response": {"reason": "invalid event"}});
        assert_eq!(socket.next().await[4], expected, "{case}");
    }
    for (case, payload) in [("a list", json!([])), ("text", json!("x")), ("nothing", json!(null))] {
        socket.push(json!(["1", "4", topic, "msg", payload])).await;
        let reason = json!({"reason": "payload must be an object"});
        let expected = json!({"status": "error", "response": reason});
        assert_eq!(socket.next().await[4], expected, "{case}");
    }
    socket.assert_quiet().await;
}

#[tokio::test]
async fn pings_are_answered_one_by_one_however_many() {
    const COUNT: u32 = 20_000;
    let server = TestServer::start();
    let mut other = Socket::connect(&server, V2).await;
    let (mut reading, mut writing) = Socket::connect(&server, V2).await.into_tcp().into_split();
    let flood = tokio::spawn(async move {
        for nth in 0..COUNT {
            writing.write_all(&short(0x89, &nth.to_be_bytes())).await.expect("an open socket");
        }
        writing
    });
    let pongs = tokio::spawn(async move {
        for nth in 0..COUNT {
            let mut pong = [0; 6];
            reading.read_exact(&mut pong).await.expect("an open socket");
            assert_eq!(pong[..], [&[0x8a, 4][..], &nth.to_be_bytes()].concat());
        }
    });
    assert!(heartbeat(&mut other).await < Duration::from_secs(2));
    timeout(2 * DEADLINE, pongs).await.expect("in time").expect("every pong, in order");
    flood.abort();
}

#[tokio::test]
async fn handshakes_that_never_finish_are_ended() {
    let handshake_timeout = Duration::from_secs(1);
    let server = TestServer::start_with(|settings| {
        settings.socket.handshake_timeout = handshake_timeout;
    });
    let head = "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\n";
    let began = Instant::now();
    let all = (0..200).map(|nth| {
        let begun = &head.as_bytes()[..nth % head.len()];
        let server = &server;
        async move {
            let mut stream = raw::connect(server).await;
            stream.write_all(begun).await.expect("room");
            raw::hung_up(&mut stream).await
        }
    });
    for rest in join_all(all).await {
        let rest = String::from_utf8(rest).expect("text");
        assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 408"), "{rest}");
    }
    let took = began.elapsed();
    assert!(took >= handshake_timeout && took < handshake_timeout * 5, "{took:?}");
    heartbeat(&mut Socket::connect(&server, V2).await).await;
}

#[tokio::test]
async fn a_handshake_that_trickles_is_ended_all_the_same() {
    let server = TestServer::start_with(|settings| {
        settings.socket.handshake_timeout = Duration::from_secs(1);
    });
    let began = Instant::now();
    let (mut reading, mut writing) = raw::connect(&server).await.into_split();
    let trickle = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        for byte in b"GET /socket/websocket HTTP/1.1\r\nx: ".iter().chain(std::iter::repeat(&b'y'))
        {
            pace.tick().await;
            if writing.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
    });
    let mut rest = Vec::new();
    let _ = timeout(DEADLINE, reading.read_to_end(&mut rest)).await.expect("an end in time");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    trickle.abort();
}

#[tokio::test]
async fn a_thousand_sockets_that_never_join_hold_nobody_up_and_end_when_idle() {
    let idle_timeout = Duration::from_secs(6);
    let server = TestServer::start_with(|settings| settings.socket.idle_timeout = idle_timeout);
    let connect = || Socket::connect(&server, V2);
    let mut idlers = join_all((0..1_000).map(|_| connect())).await;
    let began = Instant::now();
    let mut socket = connect().await;
    socket.join("public:test-app", json!({})).await;
    server.trigger(&App::seeded(), json!({"topic": "t", "event": "e"})).await;
    assert_eq!(socket.next().await[3], "t:e");
    assert!(began.elapsed() < idle_timeout, "not before they end: {:?}", began.elapsed());
    let codes = join_all(idlers.iter_mut().map(Socket::closed)).await;
    assert!(codes.iter().all(|code| *code == 1001), "{codes:?}");
}

#[tokio::test]
async fn a_client_that_is_heard_now_and_then_does_not_idle_and_half_an_open_socket_does() {
    let idle_timeout = Duration::from_millis(1_500);
    let server = TestServer::start_with(|settings| settings.socket.idle_timeout = idle_timeout);
    let began = Instant::now();
    let mut lively = Socket::connect(&server, V2).await;
    let mut silent = Socket::connect(&server, V2).await;
    // Half a message is no sign of life.
    let mut halting = Socket::connect(&server, V2).await;
    halting.tcp().write_all(&claim(0x81, 1_000)).await.expect("room");
    // A client that only receives: the server cannot tell it from a peer that is gone without a close.
    let mut listening = Socket::connect(&server, V1).await;
    listening.join("public:test-app", json!({})).await;
    let mut pace = tokio::time::interval(idle_timeout / 6);
    let beat = async {
        for _ in 0..12 {
            pace.tick().await;
            lively.send(Message::Ping("p".into())).await;
            assert!(lively.message().await.is_pong());
        }
        lively.assert_quiet().await;
    };
    let ends = async {
        for (case, socket) in
            [("silent", &mut silent), ("halting", &mut halting), ("listening", &mut listening)]
        {
            assert_eq!(socket.closed().await, 1001, "{case}");
            assert!(began.elapsed() >= idle_timeout, "{case}");
        }
    };
    tokio::join!(beat, ends);
    assert!(began.elapsed() > idle_timeout, "the lively client outlives the timeout");
}

#[tokio::test]
async fn thousands_of_joins_on_one_socket_are_answered_and_a_hundred_let_in() {
    const COUNT: usize = 3_000;
    let server = TestServer::start();
    let mut bystander = Socket::connect(&server, V2).await;
    let mut socket = Socket::connect(&server, V2).await;
    for nth in 0..COUNT {
        let topic = format!("public:test-app:{nth}");
        let reference = nth.to_string();
        socket.push(json!([reference, reference, topic, "phx_join", {}])).await;
        if nth % 500 == 0 {
            assert!(heartbeat(&mut bystander).await < Duration::from_secs(2));
        }
    }
    for nth in 0..COUNT {
        let reply = socket.next().await;
        let expected = if nth < 100 {
            json!({"status": "ok", "response": {}})
        } else {
            json!({"status": "error", "response": {"reason": "too many channels joined"}})
        };
        assert_eq!((&reply[1], &reply[4]), (&json!(nth.to_string()), &expected));
    }
    let everyone = json!({"topic": "#general", "event": "e"});
    server.trigger(&App::seeded(), everyone).await;
    for _ in 0..100 {
        assert_eq!(socket.next().await[3], "#general:e");
    }
    socket.assert_quiet().await;
}

/// A socket with a small receive buffer, which is soon full.
async fn narrow(server: &TestServer) -> TcpStream {
    let tcp = TcpSocket::new_v4().expect("a socket");
    tcp.set_recv_buffer_size(4_096).expect("a small buffer");
    let address = ([127, 0, 0, 1], server.port).into();
    let mut stream = tcp.connect(address).await.expect("a connection");
    let handshake = "GET /socket/websocket?vsn=2.0.0 HTTP/1.1\r\nhost: h\r\nupgrade: websocket\r\n\
                     connection: upgrade\r\nsec-websocket-version: 13\r\n\
                     sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(handshake.as_bytes()).await.expect("room");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(DEADLINE, stream.read_u8()).await.expect("in time").expect("a head"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    stream
}

#[tokio::test]
async fn a_subscriber_that_never_reads_is_dropped_and_the_others_receive_everything() {
    const COUNT: usize = 120;
    let server = TestServer::start_with(|settings| {
        settings.limits.outbox_bytes_max = 1 << 20;
    });
    let mut deaf = narrow(&server).await;
    let join = short(0x81, br#"["1","1","public:test-app:t","phx_join",{}]"#);
    deaf.write_all(&join).await.expect("room");
    let reply = br#"["1","1","public:test-app:t","phx_reply",{"status":"ok","response":{}}]"#;
    let mut got = vec![0; 2 + reply.len()];
    deaf.read_exact(&mut got).await.expect("the reply to the join");
    assert_eq!(&got[2..], reply);
    let mut readers = Vec::new();
    for vsn in [V1, V2] {
        let mut socket = Socket::connect(&server, vsn).await;
        socket.join("public:test-app:t", json!({})).await;
        readers.push(socket);
    }
    let filler = "x".repeat(50_000);
    for nth in 0..COUNT {
        let payload = json!({"n": nth, "filler": filler});
        server
            .trigger(&App::seeded(), json!({"topic": "t", "event": "e", "payload": payload}))
            .await;
        for socket in &mut readers {
            assert_eq!(socket.next().await[4]["n"], nth);
        }
    }
    let mut rest = Vec::new();
    // The connection is reset, because a client that does not read would not receive a close frame.
    let end = timeout(DEADLINE, deaf.read_to_end(&mut rest)).await.expect("it is dropped in time");
    assert!(end.is_err() && rest.len() < COUNT * filler.len() / 2, "{end:?}, {}", rest.len());
}

/// Starts a client that repeats a valid message as fast as the connection allows, until the task is aborted.
fn flood(mut tcp: TcpStream, message: Value, is_reading: bool) -> JoinHandle<()> {
    let chunk = frame(0x81, message.to_string().as_bytes()).repeat(500);
    tokio::spawn(async move {
        let mut scratch = vec![0; 65_536];
        let (mut reading, mut writing) = tcp.split();
        let write = async {
            // The server may drop the client because of the flood, which ends it.
            while writing.write_all(&chunk).await.is_ok() {}
        };
        let read = async {
            while is_reading && reading.read(&mut scratch).await.is_ok_and(|n| n > 0) {}
            std::future::pending::<()>().await;
        };
        tokio::select! { () = write => (), () = read => () }
    })
}

#[tokio::test]
async fn a_flood_of_valid_messages_takes_no_memory_and_delays_nobody_for_long() {
    let process = Process::start(&[]);
    let server = &process.server;
    let other = server.create_app(json!({"name": "other-app"})).await;
    let mut bystander = Socket::connect(server, V2).await;
    bystander.join("public:other-app", json!({})).await;
    let before = process.resident_bytes();
    let heartbeat_message = json!([null, "1", "phoenix", "heartbeat", {}]);
    let push = json!(["1", "2", "public:test-app", "x:msg", {"filler": "y".repeat(200)}]);
    let unmatched = json!(["1", "2", "nowhere", "phx_join", {"filler": "y".repeat(2_000)}]);
    for (case, message, is_reading) in [
        ("heartbeats, not reading", &heartbeat_message, false),
        ("heartbeats, reading", &heartbeat_message, true),
        ("publications, not reading", &push, false),
        ("publications, reading", &push, true),
        ("refused joins, not reading", &unmatched, false),
    ] {
        let mut socket = Socket::connect(server, V2).await;
        socket.join("public:test-app", json!({})).await;
        let flood = flood(socket.into_tcp(), message.clone(), is_reading);
        let began = Instant::now();
        let (mut slowest, mut most, mut rounds) = (Duration::ZERO, 0, 0);
        while began.elapsed() < Duration::from_secs(2) {
            let asked = Instant::now();
            let event = json!({"topic": "t", "event": "e", "payload": {"n": rounds}});
            server.trigger(&other, event).await;
            assert_eq!(bystander.next().await[4]["n"], rounds, "{case}");
            slowest = slowest.max(asked.elapsed());
            most = most.max(process.resident_bytes());
            rounds += 1;
        }
        flood.abort();
        let grown = most.saturating_sub(before);
        assert!(grown < 64 << 20, "{case}: grown by {grown} bytes");
        assert!(slowest < Duration::from_secs(2), "{case}: the bystander waited {slowest:?}");
    }
}

#[tokio::test]
async fn half_messages_of_many_are_held_to_what_has_really_come() {
    const COUNT: usize = 500;
    let process = Process::start(&[]);
    let server = &process.server;
    let mut bystander = Socket::connect(server, V2).await;
    let before = process.resident_bytes();
    let mut all = join_all((0..COUNT).map(|_| Socket::connect(server, V2))).await;
    for socket in &mut all {
        // Until a session has joined, its messages may only be small.
        socket.join("public:test-app", json!({})).await;
        // After a ping, the head announces nearly 1 MB, and a kilobyte of it follows.
        let ping = [0x89, 0x80, 0, 0, 0, 0];
        let begun = [&ping[..], &claim(0x81, 1_000_000), &[0; 4], &[b'['; 1_000]].concat();
        socket.tcp().write_all(&begun).await.expect("room");
    }
    for socket in &mut all {
        // The server has read the half message with the ping.
        assert!(socket.message().await.is_pong());
    }
    bystander.assert_quiet().await;
    let grown = process.resident_bytes().saturating_sub(before);
    let sessions =
        Figures::of(server).await.get(r#"herald_sessions{transport="websocket",version="2"}"#);
    assert_eq!(sessions, COUNT as f64 + 1.0, "no session has ended");
    assert!(grown < COUNT as u64 * 32_768, "grown by {grown} bytes");
}

#[tokio::test]
async fn a_handshake_that_is_refused_leaves_the_others_alone() {
    let server = TestServer::start();
    let huge = "x".repeat(20_000);
    for (case, path, headers, status) in [
        ("an unknown version", "/socket/websocket?vsn=3.0.0", vec![], 403),
        ("a version that is a list", "/socket/websocket?vsn[]=2.0.0", vec![], 403),
        ("a version that is none", "/socket/websocket?vsn=%00", vec![], 403),
        ("bytes that are no text", "/socket/websocket?vsn=2.0.0&%ff=1", vec![], 400),
        ("a path behind it", "/socket/websocket/x", vec![], 404),
        ("nowhere", "/nowhere", vec![], 404),
        (
            "a subprotocol of one's own",
            "/socket/websocket",
            vec![("sec-websocket-protocol", "x")],
            403,
        ),
        (
            "a bearer that is no base64",
            "/socket/websocket",
            vec![("sec-websocket-protocol", "phoenix, base64url.bearer.phx.%%%")],
            403,
        ),
    ] {
        assert_eq!(Socket::refused(&server, path, &headers).await.0, status, "{case}");
    }
    for (case, path) in [
        ("a huge token", format!("/socket/websocket?vsn=2.0.0&guardian_token={huge}")),
        ("broken escapes", "/socket/websocket?vsn=2.0.0&guardian_token=%zz&%f=%".to_owned()),
        ("deep parameters", format!("/socket/websocket?vsn=2.0.0&a{}=1", "[b]".repeat(5_000))),
        ("many parameters", format!("/socket/websocket?vsn=2.0.0{}", "&a=1".repeat(5_000))),
        ("a token that is a list", "/socket/websocket?vsn=2.0.0&guardian_token[]=x".to_owned()),
    ] {
        let mut socket = Socket::open(&server, &path).await;
        socket.join("public:test-app", json!({})).await;
        let reply = socket.try_join("private:test-app", json!({})).await;
        assert_eq!(reply["status"], "error", "{case}: {reply}");
        socket.assert_quiet().await;
    }
    match Socket::open_with(&server, "/socket/websocket?vsn=2.0.0", &[("origin", &huge)]).await {
        Ok((mut socket, _)) => socket.assert_quiet().await,
        Err(Error::Http(response)) => panic!("refused: {response:?}"),
        Err(other) => panic!("{other}"),
    }
}
