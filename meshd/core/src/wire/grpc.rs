//! Messages of gRPC in the bytes of a body: counted, not kept.
//!
//! Source: gRPC over HTTP/2, "Length-Prefixed-Message": a byte of flags, four of length, as many bytes.

/// Counts the messages of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Messages {
    /// Bytes of the prefix that are there.
    prefix: usize,
    length: u32,
    /// Bytes of the message that are still to come.
    left: u64,
    count: u64,
}

const PREFIX: usize = 5;

impl Messages {
    /// Takes the next bytes in.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while let Some(first) = bytes.first() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            if self.prefix > 0 {
                self.length = self.length << 8 | u32::from(*first);
            }
            self.prefix += 1;
            if self.prefix == PREFIX {
                self.count += 1;
                self.left = self.length.into();
                (self.prefix, self.length) = (0, 0);
            }
            bytes = &bytes[1..];
        }
    }

    /// Returns how many messages have begun.
    pub const fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_their_bytes_are_cut() {
        let mut bytes = Vec::new();
        for length in [0_u32, 3, 300, 1] {
            bytes.push(0);
            bytes.extend(length.to_be_bytes());
            bytes.extend(vec![0xff; length as usize]);
        }
        for cut in [1, 2, 5, 7, bytes.len()] {
            let mut messages = Messages::default();
            bytes.chunks(cut).for_each(|part| messages.take(part));
            assert_eq!(messages.count(), 4, "in parts of {cut}");
        }
    }
}
