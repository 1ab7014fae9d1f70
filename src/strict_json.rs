//! Strict JSON: text that every reader accepts, and reads alike.
//!
//! Payloads are relayed exactly as they were typed, so text that the publisher's own reader tolerates
//! can crash or silence every subscriber. RFC 7493 (I-JSON) names the differences between readers.
//! [`check`] refuses these:
//!
//! - half of a surrogate pair, such as `"\ud800"`: it is no character, and most languages cannot
//!   hold it in a string;
//! - a number whose magnitude exceeds the range of a double, such as `1e999`: readers fail, or hold
//!   infinity, which they cannot write again;
//! - a key that occurs twice in one object, however it is escaped: readers keep the first value, the
//!   last, or none;
//! - nesting deeper than [`DEPTH_MAX`]: readers that recurse fail.
//!
//! Everything else passes, because every reader holds it in some form: `-0`, `1e-999` (zero),
//! integers beyond 64 bits (a big integer, or the nearest double), `\u0000`, and noncharacters.

use std::collections::{BTreeMap, HashSet};

use memchr::memchr2;
use serde_json::value::RawValue;
use smallvec::SmallVec;

/// The greatest depth of nested JSON: `[]` has depth 1.
pub const DEPTH_MAX: usize = 128;

/// Objects of up to this many keys are searched for repeated keys pair by pair.
const PAIRWISE_KEYS_MAX: usize = 16;

/// Every integer of at most this many bytes is within the range of a double.
const SAFE_NUMBER_BYTES: usize = 308;

/// The end of a string is sought in this many words of 8 bytes before [`memchr2`] is called. The call
/// pays only for longer strings.
const WORDS_BEFORE_CALL: usize = 2;

/// The reason why a reader may refuse some JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.as_str())]
pub enum NotStrict {
    /// The JSON is nested deeper than [`DEPTH_MAX`].
    TooDeep,
    /// A string has half of a surrogate pair.
    LoneSurrogate,
    /// A number is beyond the range of a double.
    NumberTooLarge,
    /// An object has the same key twice.
    RepeatedKey,
}

impl NotStrict {
    /// The fault in words, to be read after the name of the field: `has a repeated key`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TooDeep => "is nested too deeply",
            Self::LoneSurrogate => "has half of a surrogate pair",
            Self::NumberTooLarge => "has a number that is too large",
            Self::RepeatedKey => "has a repeated key",
        }
    }
}

/// Checks valid JSON in one pass over its text.
///
/// The time is linear in the length of the text. Memory is allocated only for objects of more than
/// 16 keys and for keys with escapes, and is proportional to them.
///
/// # Errors
/// [`NotStrict`]; of several faults, the first in the text. A repeated key counts at the end of its
/// object.
pub fn check(json: &RawValue) -> Result<(), NotStrict> {
    let mut tokens = Tokens::of(json);
    match tokens.next()? {
        Some(token) => check_value(&mut tokens, token, 1),
        None => Ok(()),
    }
}

/// The members of a JSON object, checked; none for any other value.
///
/// # Errors
/// Those of [`check`].
pub fn members(object: &RawValue) -> Result<BTreeMap<String, &RawValue>, NotStrict> {
    check(object)?;
    Ok(serde_json::from_str(object.get()).unwrap_or_default())
}

/// Checks the value that begins with `token`, up to its end. If it is an array or an object, `depth` is its
/// own depth.
#[inline]
fn check_value(tokens: &mut Tokens<'_>, token: Token<'_>, depth: usize) -> Result<(), NotStrict> {
    match token {
        Token::Open(_) if depth > DEPTH_MAX => Err(NotStrict::TooDeep),
        Token::Open(Container::Array) => check_items(tokens, depth),
        Token::Open(Container::Object) => check_members(tokens, depth),
        Token::Close | Token::Text { .. } | Token::Number(_) | Token::Word(_) => Ok(()),
    }
}

/// Checks the items of an array that has just been opened, up to its end.
fn check_items(tokens: &mut Tokens<'_>, depth: usize) -> Result<(), NotStrict> {
    loop {
        match tokens.next()? {
            None | Some(Token::Close) => return Ok(()),
            Some(token) => check_value(tokens, token, depth + 1)?,
        }
    }
}

/// Checks the members of an object that has just been opened, up to its end.
fn check_members(tokens: &mut Tokens<'_>, depth: usize) -> Result<(), NotStrict> {
    let mut keys = ObjectKeys::default();
    while let Some(Token::Text { quoted, is_escaped }) = tokens.next()? {
        keys.push(quoted, is_escaped);
        if let Some(token) = tokens.next()? {
            check_value(tokens, token, depth + 1)?;
        }
    }
    keys.check()
}

/// The keys of one object, as they are written, with their quotes.
#[derive(Default)]
struct ObjectKeys<'a> {
    written: SmallVec<[&'a [u8]; PAIRWISE_KEYS_MAX]>,
    is_any_escaped: bool,
}

impl<'a> ObjectKeys<'a> {
    fn push(&mut self, quoted: &'a [u8], is_escaped: bool) {
        self.written.push(quoted);
        self.is_any_escaped |= is_escaped;
    }

    fn check(&self) -> Result<(), NotStrict> {
        let is_repeated = match self.is_any_escaped {
            false => has_repeated(&self.written),
            true => {
                let decode = |quoted: &&[u8]| serde_json::from_slice(quoted);
                let decoded: Result<Vec<String>, _> = self.written.iter().map(decode).collect();
                let decoded = decoded.map_err(|_| NotStrict::LoneSurrogate)?;
                let decoded: Vec<_> = decoded.iter().map(String::as_bytes).collect();
                has_repeated(&decoded)
            }
        };
        if is_repeated { Err(NotStrict::RepeatedKey) } else { Ok(()) }
    }
}

fn has_repeated(keys: &[&[u8]]) -> bool {
    if keys.len() <= PAIRWISE_KEYS_MAX {
        return keys.iter().enumerate().any(|(nth, key)| keys[..nth].contains(key));
    }
    // The hasher is seeded at random, so that a client cannot choose keys that collide.
    let mut seen = HashSet::with_capacity(keys.len());
    !keys.iter().all(|key| seen.insert(key))
}

/// White space and the separators `,` and `:`.
const BETWEEN: u8 = 1;
/// The bytes of a number.
const NUMBER: u8 = 2;
/// The letters of an exponent.
const EXPONENT: u8 = 4;
/// The letters of `true`, `false` and `null`.
const WORD: u8 = 8;

/// The classes of every byte.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < classes.len() {
        classes[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | b',' | b':' => BETWEEN,
            b'0'..=b'9' | b'.' | b'-' | b'+' => NUMBER,
            b'E' => NUMBER | EXPONENT,
            b'e' => NUMBER | EXPONENT | WORD,
            b'a'..=b'z' => WORD,
            _ => 0,
        };
        byte += 1;
    }
    classes
};

/// An array or an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Container {
    /// `[…]`
    Array,
    /// `{…}`, in which keys and values take turns.
    Object,
}

/// A piece of JSON text. Commas, colons and white space are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// `[` or `{`.
    Open(Container),
    /// `]` or `}`.
    Close,
    /// A string with its quotes, and whether it has escapes.
    Text { quoted: &'a [u8], is_escaped: bool },
    /// A number as it is written.
    Number(&'a [u8]),
    /// `true`, `false` or `null`.
    Word(&'a [u8]),
}

/// Reads valid JSON piece by piece, and checks the strings and the numbers in it.
pub(crate) struct Tokens<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Tokens<'a> {
    /// The pieces of this JSON.
    pub(crate) fn of(json: &'a RawValue) -> Self {
        Self { text: json.get().as_bytes(), at: 0 }
    }

    /// The next piece, unless the text has ended.
    ///
    /// # Errors
    /// [`NotStrict::LoneSurrogate`], [`NotStrict::NumberTooLarge`].
    // It is inlined so that a piece stays in registers: called, it costs a third more instructions.
    #[inline(always)]
    pub(crate) fn next(&mut self) -> Result<Option<Token<'a>>, NotStrict> {
        let (from, byte) = loop {
            let Some(byte) = self.text.get(self.at) else { return Ok(None) };
            self.at += 1;
            if CLASSES[usize::from(*byte)] & BETWEEN == 0 {
                break (self.at - 1, *byte);
            }
        };
        Ok(Some(match byte {
            b'"' => self.text(from)?,
            b'{' => Token::Open(Container::Object),
            b'[' => Token::Open(Container::Array),
            b'}' | b']' => Token::Close,
            b't' | b'f' | b'n' => Token::Word(self.run(from, WORD).0),
            _ => self.number(from)?,
        }))
    }

    /// Reads a string whose opening quote is at `from`.
    #[inline(always)]
    fn text(&mut self, from: usize) -> Result<Token<'a>, NotStrict> {
        let mut is_escaped = false;
        while let Some(at) = quote_or_backslash(self.text, self.at) {
            self.at = at + 1;
            if self.text[at] == b'"' {
                break;
            }
            is_escaped = true;
            self.escape()?;
        }
        Ok(Token::Text { quoted: &self.text[from..self.at], is_escaped })
    }

    /// Reads an escape whose backslash was just read: both halves of a surrogate pair together.
    fn escape(&mut self) -> Result<(), NotStrict> {
        let is_unicode = self.text.get(self.at) == Some(&b'u');
        self.at = (self.at + 1).min(self.text.len());
        if !is_unicode {
            return Ok(());
        }
        match self.hex() {
            Some(0xd800..=0xdbff) if self.text[self.at..].starts_with(b"\\u") => {
                self.at += 2;
                match self.hex() {
                    Some(0xdc00..=0xdfff) => Ok(()),
                    _ => Err(NotStrict::LoneSurrogate),
                }
            }
            Some(0xd800..=0xdfff) => Err(NotStrict::LoneSurrogate),
            _ => Ok(()),
        }
    }

    /// Reads the four hex digits of an escape.
    fn hex(&mut self) -> Option<u16> {
        let digits = self.text.get(self.at..self.at + 4)?;
        self.at += 4;
        u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
    }

    /// Reads a number that begins at `from`.
    #[inline(always)]
    fn number(&mut self, from: usize) -> Result<Token<'a>, NotStrict> {
        let (number, classes) = self.run(from, NUMBER);
        let is_safe = classes & EXPONENT == 0 && number.len() <= SAFE_NUMBER_BYTES;
        if is_safe || is_finite(number) {
            Ok(Token::Number(number))
        } else {
            Err(NotStrict::NumberTooLarge)
        }
    }

    /// Reads on while bytes are of the class of a piece that began at `from`. The second value has the
    /// classes of all bytes after the first.
    #[inline(always)]
    fn run(&mut self, from: usize, class: u8) -> (&'a [u8], u8) {
        let (mut at, mut classes) = (self.at, 0);
        while let Some(byte) = self.text.get(at) {
            let of = CLASSES[usize::from(*byte)];
            if of & class == 0 {
                break;
            }
            classes |= of;
            at += 1;
        }
        self.at = at;
        (&self.text[from..at], classes)
    }
}

/// The index of the first `"` or `\` at or after `from`.
#[inline(always)]
fn quote_or_backslash(text: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    for _ in 0..WORDS_BEFORE_CALL {
        let Some(word) = text.get(at..).and_then(<[u8]>::first_chunk) else { break };
        let word = u64::from_le_bytes(*word);
        let found = zero_bytes(word ^ repeated(b'"')) | zero_bytes(word ^ repeated(b'\\'));
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    memchr2(b'"', b'\\', text.get(at..)?).map(|found| at + found)
}

/// A word of 8 times this byte.
const fn repeated(byte: u8) -> u64 {
    u64::from_le_bytes([byte; 8])
}

/// Sets the highest bit of the lowest zero byte, and no lower bit. Higher bits mean nothing.
const fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(repeated(0x01)) & !word & repeated(0x80)
}

/// Returns whether the nearest double to this number is finite.
fn is_finite(number: &[u8]) -> bool {
    let number = str::from_utf8(number).ok().and_then(|number| number.parse::<f64>().ok());
    number.is_some_and(f64::is_finite)
}

#[cfg(test)]
mod tests;
