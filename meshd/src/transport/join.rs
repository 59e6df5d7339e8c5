//! The proof that a joining host holds a token's secret, bound to the channel it is sent on.
//!
//! The secret itself is never sent. The proof is an HMAC over what both ends derived from the TLS channel and over the
//! joiner's public key, so that it is worth nothing on another channel or for another key. The store holds only
//! [`verifier`]: a hash from which the secret cannot be computed, which still must be kept from strangers while the
//! token is unused.

use aws_lc_rs::{digest, hmac};

/// The label under which both ends export keying material from a join channel (RFC 8446, section 7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-meshd-join";

/// Derives what the store keeps of a token's secret, and the key of the proof.
pub fn verifier(secret: &[u8; 16]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"meshd join token v1\0");
    context.update(secret);
    bytes(context.finish().as_ref())
}

/// Computes the proof that the joiner sends.
pub fn proof(secret: &[u8; 16], exporter: &[u8; 32], host_public_key: &[u8]) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &verifier(secret));
    bytes(hmac::sign(&key, &message(exporter, host_public_key)).as_ref())
}

/// Checks a proof against what the store keeps; takes constant time.
pub fn is_proven(verifier: &[u8; 32], exporter: &[u8; 32], host_public_key: &[u8], proof: &[u8]) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, verifier);
    hmac::verify(&key, &message(exporter, host_public_key), proof).is_ok()
}

/// The exporter has a fixed length, so that the two parts cannot be shifted against each other.
fn message(exporter: &[u8; 32], host_public_key: &[u8]) -> Vec<u8> {
    [exporter.as_slice(), host_public_key].concat()
}

fn bytes(digest: &[u8]) -> [u8; 32] {
    digest.try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_secret_channel_and_key_only() {
        let (secret, exporter, key) = ([1; 16], [2; 32], b"public key".as_slice());
        let proven = proof(&secret, &exporter, key);
        assert!(is_proven(&verifier(&secret), &exporter, key, &proven));
        assert!(!is_proven(&verifier(&[9; 16]), &exporter, key, &proven));
        assert!(!is_proven(&verifier(&secret), &[9; 32], key, &proven));
        assert!(!is_proven(&verifier(&secret), &exporter, b"other", &proven));
        assert!(!is_proven(&verifier(&secret), &exporter, key, &proven[..31]));
        assert!(!is_proven(&verifier(&secret), &exporter, key, b""));
    }
}
