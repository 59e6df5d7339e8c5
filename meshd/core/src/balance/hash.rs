//! XXH64: fast, the same on every machine and in every version, so that all hosts agree on who owns a key.
//!
//! Not for secrets or for tables that strangers fill. Here rather than from a package because rings must not change
//! when a package does. Source: the xxHash specification, version 0.1.1.

const PRIME: [u64; 5] = [
    0x9E37_79B1_85EB_CA87,
    0xC2B2_AE3D_27D4_EB4F,
    0x1656_67B1_9E37_79F9,
    0x85EB_CA77_C2B2_AE63,
    0x27D4_EB2F_1656_67C5,
];

/// Returns the XXH64 of some bytes.
pub(super) fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    let mut blocks = bytes.chunks_exact(32);
    let mut hash = if bytes.len() < 32 {
        seed.wrapping_add(PRIME[4])
    } else {
        let mut lanes = [
            seed.wrapping_add(PRIME[0]).wrapping_add(PRIME[1]),
            seed.wrapping_add(PRIME[1]),
            seed,
            seed.wrapping_sub(PRIME[0]),
        ];
        for block in &mut blocks {
            for (lane, part) in lanes.iter_mut().zip(block.chunks_exact(8)) {
                *lane = round(*lane, number(part));
            }
        }
        converge(lanes)
    };
    hash = hash.wrapping_add(bytes.len() as u64);
    avalanche(rest(hash, blocks.remainder()))
}

fn round(lane: u64, input: u64) -> u64 {
    lane.wrapping_add(input.wrapping_mul(PRIME[1])).rotate_left(31).wrapping_mul(PRIME[0])
}

fn converge(lanes: [u64; 4]) -> u64 {
    let turns = [1, 7, 12, 18];
    let sum =
        lanes.iter().zip(turns).fold(0_u64, |sum, (lane, turn)| sum.wrapping_add(lane.rotate_left(turn)));
    lanes
        .iter()
        .fold(sum, |hash, lane| (hash ^ round(0, *lane)).wrapping_mul(PRIME[0]).wrapping_add(PRIME[3]))
}

fn rest(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        hash = (hash ^ round(0, number(word))).rotate_left(27).wrapping_mul(PRIME[0]).wrapping_add(PRIME[3]);
    }
    let mut halves = words.remainder().chunks_exact(4);
    for half in &mut halves {
        let mixed = hash ^ number(half).wrapping_mul(PRIME[0]);
        hash = mixed.rotate_left(23).wrapping_mul(PRIME[1]).wrapping_add(PRIME[2]);
    }
    for byte in halves.remainder() {
        hash = (hash ^ u64::from(*byte).wrapping_mul(PRIME[4])).rotate_left(11).wrapping_mul(PRIME[0]);
    }
    hash
}

fn avalanche(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(PRIME[1]);
    hash = (hash ^ (hash >> 29)).wrapping_mul(PRIME[2]);
    hash ^ (hash >> 32)
}

/// Reads up to eight bytes, the first being the lowest.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_reference_implementation() {
        let long = "The quick brown fox jumps over the lazy dog";
        let cases = [
            ("", 0xEF46_DB37_51D8_E999),
            ("a", 0xD24E_C4F1_A98C_6E5B),
            ("abc", 0x44BC_2CF5_AD77_0999),
            (long, 0x0B24_2D36_1FDA_71BC),
        ];
        for (text, expected) in cases {
            assert_eq!(xxh64(text.as_bytes(), 0), expected, "{text}");
        }
    }
}
