//! Hexadecimal encoding of bytes.

/// Encodes `bytes` in lower-case digits.
pub fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Decodes `text`, which must have exactly `2 N` digits; otherwise `None`.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let [hi, lo] = *pair else { return None };
        let (hi, lo) = (char::from(hi).to_digit(16)?, char::from(lo).to_digit(16)?);
        *byte = u8::try_from(hi * 16 + lo).ok()?;
    }
    Some(out)
}
