//! The parts of HTTP and WebSocket that a load needs: handshakes, sending, and counting frames.

use std::{
    io::{self, Read, Write},
    ops::Range,
};

/// How many bytes of a handshake's answer are looked at.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// The answer to [`upgrade`]; the key's answer is that of the one key that is sent here.
pub const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
     sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Shakes hands on a blocking socket, as a browser would.
///
/// # Errors
/// The error of the socket; [`io::ErrorKind::ConnectionRefused`] if the answer is not 101.
pub fn shake_hands(socket: &mut (impl Read + Write), path: &str, host: &str) -> io::Result<()> {
    socket.write_all(upgrade(path, host).as_bytes())?;
    let head = read_head(socket)?;
    if head.starts_with(b"HTTP/1.1 101") {
        return Ok(());
    }
    let first = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Err(io::Error::new(
        io::ErrorKind::ConnectionRefused,
        String::from_utf8_lossy(first).into_owned(),
    ))
}

/// Reads the head of an answer, and no byte behind it: the first message may follow at once.
fn read_head(socket: &mut impl Read) -> io::Result<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0; 1]);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        socket.read_exact(&mut byte)?;
        head.extend(byte);
    }
    Ok(head)
}

/// Reads what the next frame of a server carries, and no byte behind it.
///
/// # Errors
/// The error of the socket; [`io::ErrorKind::ConnectionAborted`] if the message is a close.
pub fn read_message(socket: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = vec![0; 2];
    socket.read_exact(&mut head)?;
    let more = match head[1] & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    head.resize(2 + more, 0);
    socket.read_exact(head.get_mut(2..).unwrap_or_default())?;
    let length = length(&head).ok_or(io::ErrorKind::InvalidData)?;
    let mut message = Vec::new();
    socket.take(length as u64).read_to_end(&mut message)?;
    if message.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if head[0] & 0x0f == 8 {
        let why = String::from_utf8_lossy(message.get(2..).unwrap_or_default()).into_owned();
        return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
    }
    Ok(message)
}

/// The length that the head of a frame announces.
fn length(head: &[u8]) -> Option<usize> {
    match usize::from(*head.get(1)? & 0x7f) {
        126 => Some(usize::from(u16::from_be_bytes(head.get(2..4)?.try_into().ok()?))),
        127 => usize::try_from(u64::from_be_bytes(head.get(2..10)?.try_into().ok()?)).ok(),
        short => Some(short),
    }
}

/// The request for a WebSocket.
pub fn upgrade(path: &str, host: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Origin: http://{host}\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)\r\n\r\n"
    )
}

/// Reads, byte for byte of what arrives, until `is_whole`.
///
/// # Errors
/// The error of the socket; [`io::ErrorKind::UnexpectedEof`] if it ends, or sends too much, before.
pub fn read_until(socket: &mut impl Read, is_whole: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while !is_whole(&all) {
        let read = socket.read(&mut buffer)?;
        if read == 0 || all.len() > HEAD_BYTES_MAX {
            let said = String::from_utf8_lossy(&all).into_owned();
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, said));
        }
        all.extend_from_slice(buffer.get(..read).unwrap_or_default());
    }
    Ok(all)
}

/// A client's text frame. Its mask is zero, which leaves the text as it is.
pub fn client_frame(text: &str) -> Vec<u8> {
    let mut frame = frame_head(text.len(), 0x80);
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text.as_bytes());
    frame
}

/// A server's text frame.
pub fn server_frame(text: &str) -> Vec<u8> {
    let mut frame = frame_head(text.len(), 0);
    frame.extend_from_slice(text.as_bytes());
    frame
}

fn frame_head(len: usize, mask_bit: u8) -> Vec<u8> {
    let mut head = vec![0x81_u8];
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short @ 0..=125), _) => head.push(mask_bit | short),
        (_, Ok(middle)) => {
            head.push(mask_bit | 126);
            head.extend_from_slice(&middle.to_be_bytes());
        }
        _ => {
            head.push(mask_bit | 127);
            head.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    head
}

/// Where the payload of the first frame in `bytes` lies; `None` until it is whole.
pub fn payload(bytes: &[u8]) -> Option<Range<usize>> {
    let start: usize = match *bytes.get(1)? & 0x7f {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    let end = start.checked_add(length(bytes)?)?;
    (bytes.len() >= end).then_some(start..end)
}

/// Where the body of the first HTTP answer in `bytes` lies; `None` until it is whole.
pub fn answer(bytes: &[u8]) -> Option<Range<usize>> {
    let start = memchr::memmem::find(bytes, b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(bytes.get(..start)?).unwrap_or_default();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value = name.eq_ignore_ascii_case("content-length").then_some(value)?;
        value.trim().parse().ok()
    });
    let end = start.checked_add(length.unwrap_or(0))?;
    (bytes.len() >= end).then_some(start..end)
}

/// The number of an event, which its payload carries as `"n":<digits>`.
pub fn sequence(payload: &[u8]) -> Option<u64> {
    number(payload, br#""n":"#)
}

/// The number that follows the first `key`.
pub fn number(text: &[u8], key: &[u8]) -> Option<u64> {
    // A search that is set up for each call would cost more than these few comparisons.
    let starts = memchr::memchr_iter(*key.first()?, text);
    let at = starts.into_iter().find(|at| text[*at..].starts_with(key))? + key.len();
    let digits = text.get(at..)?.iter().take_while(|byte| byte.is_ascii_digit());
    let mut number = None;
    for digit in digits {
        number = Some(number.unwrap_or(0_u64) * 10 + u64::from(digit - b'0'));
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_are_found_when_they_are_whole() {
        for len in [0, 1, 125, 126, 65_535, 65_536] {
            let frame = server_frame(&"x".repeat(len));
            assert_eq!(payload(&frame).map(|range| range.len()), Some(len), "{len}");
            assert_eq!(payload(&frame[..frame.len() - 1]), None, "{len}");
            let mut two = &[frame.as_slice(), b"next"].concat()[..];
            assert_eq!(read_message(&mut two).map(|message| message.len()).ok(), Some(len));
            assert_eq!(two, b"next", "nothing behind the frame is read");
            assert!(read_message(&mut &frame[..frame.len() - 1]).is_err());
        }
    }

    #[test]
    fn an_answer_is_whole_with_its_body() {
        let one = b"HTTP/1.1 200 OK\r\ncontent-Length: 2\r\n\r\n{}";
        for cut in 0..one.len() {
            assert_eq!(answer(&one[..cut]), None, "{cut}");
        }
        let two = [one.as_slice(), one].concat();
        assert_eq!(answer(&two), Some(one.len() - 2..one.len()));
        assert_eq!(answer(b"HTTP/1.1 101 Switching\r\n\r\n\x81"), Some(26..26));
    }

    #[test]
    fn an_event_is_known_by_its_number() {
        let numbered = br#"[null,null,"public:a","msg",{"n":120,"pad":"x"}]"#;
        assert_eq!(sequence(numbered), Some(120));
        assert_eq!(sequence(br#"{"n":}"#), None);
        assert_eq!(sequence(b"{}"), None);
    }
}
