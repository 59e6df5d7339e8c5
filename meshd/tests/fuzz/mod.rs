//! Bytes by chance against everything that reads bytes from outside: nothing panics, and what comes of them is bounded.
//!
//! A target is a plain function of bytes. The driver begins with its seeds, changes them by chance, and keeps what comes
//! to something new. Each input may take two seconds of this thread's time, and all of them 64 MiB.
//!
//! `MESH_FUZZ_SECONDS=600 MESH_FUZZ_SEED=7 cargo test --release -p meshd --test main fuzz::yaml -- --nocapture` runs one
//! of them for ten minutes; without a name all run (those against sockets too, `proxy::fuzz`).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use mutate::Mutator;

mod mutate;
mod targets;

const SEED: u64 = 0x006d_6573_6864;
/// How long each fuzz runs, in seconds.
const LONG: u64 = 3;
/// How much of a core one input may have, in a build that is not optimised, too.
const MOST_TIME: Duration = Duration::from_secs(2);
/// How much memory all inputs together may leave behind.
const MOST_KIB: u64 = 64 * 1024;
/// Inputs kept, beside the seeds.
const MOST_KEPT: usize = 2_000;

/// What reads bytes; a number that stands for what became of them.
type Target = fn(&[u8]) -> u64;

/// How long a fuzz runs, and what chance begins with.
pub(crate) fn wanted() -> (Duration, u64) {
    let number = |name: &str, default: u64| {
        std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
    };
    (Duration::from_secs(number("MESH_FUZZ_SECONDS", LONG)), number("MESH_FUZZ_SEED", SEED))
}

fn fuzz(name: &str, target: Target, mut corpus: Vec<Vec<u8>>, words: &[&[u8]]) {
    let (long, seed) = wanted();
    let mut mutator = Mutator::new(seed, words);
    let mut known: HashSet<u64> = corpus.iter().map(|bytes| run(name, seed, target, bytes)).collect();
    let most = corpus.len() + MOST_KEPT;
    let (began, before, mut rounds) = (Instant::now(), resident_kib(), 0_u64);
    while began.elapsed() < long {
        let bytes = mutator.next(&corpus);
        if known.insert(run(name, seed, target, &bytes)) && corpus.len() < most {
            corpus.push(bytes);
        }
        rounds += 1;
    }
    let grown = resident_kib().saturating_sub(before);
    eprintln!("{name}: seed {seed:#x}, {rounds} inputs, {} kinds of outcome, {grown} KiB more", known.len());
    assert!(grown < MOST_KIB, "{name}: {grown} KiB more after {rounds} inputs");
}

/// Runs one input; a panic or too long a time shows it.
fn run(name: &str, seed: u64, target: Target, bytes: &[u8]) -> u64 {
    let began = on_core();
    let outcome = std::panic::catch_unwind(|| target(bytes));
    let took = on_core().saturating_sub(began);
    let shown = || format!("{name}, seed {seed:#x}, {} bytes: b\"{}\"", bytes.len(), bytes.escape_ascii());
    let Ok(outcome) = outcome else { panic!("it panicked: {}", shown()) };
    assert!(took <= MOST_TIME, "it took {took:?}: {}", shown());
    outcome
}

/// The time that this thread has had a core for, by the kernel's account: other work does not lengthen it.
fn on_core() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("an account");
    let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok()).expect("nanoseconds");
    Duration::from_nanos(nanos)
}

pub(crate) fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn yaml() {
    fuzz("yaml", targets::yaml, targets::rules(), targets::YAML_WORDS);
}

#[test]
fn compile() {
    fuzz("compile", targets::compile, targets::rules(), targets::YAML_WORDS);
}

#[test]
fn http1() {
    fuzz("http1", targets::http1, targets::http1_seeds(), targets::HTTP1_WORDS);
}

#[test]
fn http2() {
    fuzz("http2", targets::http2, targets::http2_seeds(), targets::HTTP2_WORDS);
}

#[test]
fn client_hello() {
    fuzz("client_hello", targets::client_hello, targets::hello_seeds(), targets::HELLO_WORDS);
}

#[test]
fn proxy_header() {
    let (target, words) = (targets::proxy_header, targets::PROXY_HEADER_WORDS);
    fuzz("proxy_header", target, targets::proxy_header_seeds(), words);
}

#[test]
fn sniff() {
    let seeds = [targets::http1_seeds(), targets::http2_seeds(), targets::hello_seeds()].concat();
    fuzz("sniff", targets::sniff, seeds, targets::HTTP1_WORDS);
}

#[test]
fn dns() {
    fuzz("dns", targets::dns, targets::dns_seeds(), targets::DNS_WORDS);
}

#[test]
fn frames() {
    fuzz("frames", targets::frames, targets::frame_seeds(), &[b"\0\0\0\x05", b"\xff\xff\xff\xff"]);
}
