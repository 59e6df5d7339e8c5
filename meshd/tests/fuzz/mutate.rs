//! Changes bytes by chance: seeded, so that the same seed makes the same inputs from the same corpus.

/// The longest input.
const MOST_BYTES: usize = 32 * 1024;
/// Numbers at the ends of what types hold.
const NUMBERS: [&[u8]; 8] =
    [b"0", b"-1", b"65536", b"4294967296", b"99999999999999999999", b"1e309", b"0.0000001", b"255"];

/// Makes inputs out of others.
pub(super) struct Mutator<'w> {
    rng: fastrand::Rng,
    words: &'w [&'w [u8]],
}

impl<'w> Mutator<'w> {
    pub(super) fn new(seed: u64, words: &'w [&'w [u8]]) -> Self {
        Self { rng: fastrand::Rng::with_seed(seed), words }
    }

    /// Returns one of the corpus, changed some times.
    pub(super) fn next(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = self.one(corpus).to_vec();
        for _ in 0..=self.rng.usize(0..6) {
            self.change(&mut bytes, corpus);
        }
        bytes.truncate(MOST_BYTES);
        bytes
    }

    fn one<'c>(&mut self, corpus: &'c [Vec<u8>]) -> &'c [u8] {
        if corpus.is_empty() { &[] } else { &corpus[self.rng.usize(..corpus.len())] }
    }

    fn change(&mut self, bytes: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.rng.usize(..=bytes.len());
        let (begin, end) = self.range(bytes.len());
        match self.rng.u8(0..10) {
            0 if !bytes.is_empty() => {
                let at = self.rng.usize(..bytes.len());
                bytes[at] = self.rng.u8(..);
            }
            1 if !bytes.is_empty() => {
                let at = self.rng.usize(..bytes.len());
                bytes[at] ^= 1 << self.rng.u8(0..8);
            }
            2 => drop(bytes.drain(begin..end)),
            3 => bytes.truncate(at),
            4 => {
                let part = bytes[begin..end].to_vec();
                let times = self.rng.usize(1..40);
                if part.len() * times < MOST_BYTES {
                    drop(bytes.splice(at..at, part.repeat(times)));
                }
            }
            5 => {
                let other = self.one(corpus);
                let (begin, end) = self.range(other.len());
                drop(bytes.splice(at..at, other[begin..end].to_vec()));
            }
            6 => {
                let other = self.one(corpus);
                let (first, last) = self.range(other.len());
                drop(bytes.splice(begin..end, other[first..last].to_vec()));
            }
            7 => self.number(bytes),
            _ if !self.words.is_empty() => {
                let word = self.words[self.rng.usize(..self.words.len())];
                drop(bytes.splice(at..at, word.iter().copied()));
            }
            _ => {}
        }
    }

    /// A range, mostly a short one.
    fn range(&mut self, length: usize) -> (usize, usize) {
        let begin = self.rng.usize(..=length);
        let most = if self.rng.u8(0..4) == 0 { length } else { 64 };
        (begin, length.min(begin + self.rng.usize(..=most)))
    }

    /// Puts another number in the place of one.
    fn number(&mut self, bytes: &mut Vec<u8>) {
        let digits: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()).collect();
        if digits.is_empty() {
            return;
        }
        let at = digits[self.rng.usize(..digits.len())];
        let number = NUMBERS[self.rng.usize(..NUMBERS.len())];
        drop(bytes.splice(at..=at, number.iter().copied()));
    }
}
