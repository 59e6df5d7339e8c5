//! Ids as hexadecimal digits: each request has some, and `format!` takes its time.

/// Writes a number with sixteen digits, in lower case.
pub fn sixteen(number: u64) -> [u8; 16] {
    let [high, low] = [number >> 32, number & u64::from(u32::MAX)].map(eight);
    let mut digits = [0; 16];
    digits[..8].copy_from_slice(&high);
    digits[8..].copy_from_slice(&low);
    digits
}

/// Writes a number with 32 digits, in lower case.
pub fn thirty_two(number: u128) -> [u8; 32] {
    let mut digits = [0; 32];
    for (eight_digits, four_bytes) in
        digits.as_chunks_mut().0.iter_mut().zip(number.to_be_bytes().as_chunks().0)
    {
        *eight_digits = eight(u32::from_be_bytes(*four_bytes).into());
    }
    digits
}

/// Writes the lower half of a number with eight digits at once: each half of a byte gets a byte, and what is above nine a
/// letter.
fn eight(number: u64) -> [u8; 8] {
    const EACH: u64 = u64::MAX / 0xff;
    let mut spread = number;
    spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    spread = (spread | spread << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    let letters = ((spread + EACH * 6) >> 4) & EACH;
    (spread + EACH * u64::from(b'0') + letters * u64::from(b'a' - b'0' - 10)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_those_that_rust_writes() {
        let each_digit_in_each_place =
            (0..32).flat_map(|place| (0..16_u128).map(move |digit| digit << (4 * place)));
        for number in each_digit_in_each_place.chain([u128::MAX, 0x0123_4567_89ab_cdef_fedc_ba98_7654_3210]) {
            let low = u64::try_from(number & u128::from(u64::MAX)).expect("64 bits");
            assert_eq!(thirty_two(number), format!("{number:032x}").as_bytes());
            assert_eq!(sixteen(low), format!("{low:016x}").as_bytes());
        }
    }
}
