//! Seeded mutations: what a parser's author did not think of, made from what it accepts.

use tests::rng::Rng;

/// Numbers at the edges of their types, as text.
const NUMBERS: &[&str] = &[
    "0",
    "-1",
    "1",
    "2",
    "64",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "1152921504606846976",
    "9223372036854775807",
    "18446744073709551600",
    "18446744073709551616",
    "-9223372036854775809",
    "1e308",
    "1e999",
    "-0.0",
    "0.5",
    "NaN",
    "1e-320",
    "null",
    "true",
    "\"x\"",
    "[]",
    "{}",
    "[[]]",
    "{\"a\":{}}",
];
/// The same as little-endian words.
const WORDS: &[u64] = &[
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 40,
    1 << 60,
    i64::MAX as u64,
    u64::MAX - 7,
    u64::MAX,
];
/// Bits of text that parsers treat in ways of their own.
const TEXTS: &[&str] = &[
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "\u{feff}",
    "\u{0}",
    "é",
    "🎉",
    "\u{202e}",
    "..",
    "/",
    "\n",
    "\r\n",
    "{% for x in range(99999) %}",
    "{% endfor %}",
    "{% set x = x ~ x %}",
    "{{ x * 99999999 }}",
    "|tojson",
    ".format(x)",
    "[0]",
    "(",
    ")",
    "' * 9'",
    "loop",
    "messages",
    "none",
];

/// One to six changes of one of `seeds`.
pub fn mutated(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[rng.number() as usize % seeds.len()].clone();
    let changes = rng.between(1, 6).min(rng.between(1, 6));
    for _ in 0..changes {
        change(rng, &mut bytes, seeds);
    }
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
    let at = place(rng, bytes);
    match rng.between(0, 11) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.between(0, 7),
        1 if at < bytes.len() => bytes[at] = rng.number() as u8,
        2 => drop(bytes.drain(range(rng, bytes))),
        3 => bytes.truncate(at),
        4 => replace_number(rng, bytes, at),
        5 => replace_number(rng, bytes, at),
        6 => {
            let text = rng.pick(TEXTS);
            bytes.splice(at..at, text.bytes());
        }
        7 => word(rng, bytes, at),
        8 => {
            // A part again, mostly once, seldom so often that nesting gets deep.
            let part = bytes[range(rng, bytes)].to_vec();
            let times = if rng.percent(5) { 2_000 } else { 1 };
            let part = &part[..part.len().min(if times == 1 { 4_096 } else { 8 })];
            bytes.splice(at..at, part.repeat(times));
        }
        9 => {
            let other = &seeds[rng.number() as usize % seeds.len()];
            let part = other[range(rng, other)].to_vec();
            let end = bytes.len().min(at + part.len());
            bytes.splice(at..end, part);
        }
        10 => replace_value(rng, bytes, at),
        _ => bytes.splice(at..at, [rng.number() as u8]).for_each(drop),
    }
}

fn place(rng: &mut Rng, bytes: &[u8]) -> usize {
    rng.number() as usize % (bytes.len() + 1)
}

/// Mostly short.
fn range(rng: &mut Rng, bytes: &[u8]) -> std::ops::Range<usize> {
    let start = place(rng, bytes);
    let most = if rng.percent(80) { 16 } else { bytes.len() };
    let length = rng.number() as usize % (most + 1);
    start..bytes.len().min(start + length)
}

/// Overwrites the next run of digits from `at` on, with its sign.
fn replace_number(rng: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let Some(start) = (at..bytes.len()).find(|i| bytes[*i].is_ascii_digit()) else { return };
    let end = (start..bytes.len())
        .find(|i| !bytes[*i].is_ascii_digit() && bytes[*i] != b'.')
        .unwrap_or(bytes.len());
    bytes.splice(start..end, rng.pick(NUMBERS).bytes());
}

/// Overwrites the next JSON value after a colon, up to a comma or bracket.
fn replace_value(rng: &mut Rng, bytes: &mut Vec<u8>, at: usize) {
    let Some(start) = (at..bytes.len()).find(|i| bytes[*i] == b':').map(|i| i + 1) else { return };
    let end = (start..bytes.len()).find(|i| matches!(bytes[*i], b',' | b'}' | b']')).unwrap_or(bytes.len());
    bytes.splice(start..end, rng.pick(NUMBERS).bytes());
}

/// Overwrites four or eight bytes with a number at an edge.
fn word(rng: &mut Rng, bytes: &mut [u8], at: usize) {
    let value = rng.pick(WORDS).to_le_bytes();
    let length = if rng.percent(50) { 8 } else { 4 };
    for (byte, new) in bytes.iter_mut().skip(at).zip(&value[..length]) {
        *byte = *new;
    }
}
