//! A DER encoder for mock certificates and revocation lists, including invalid ones that no library would produce.
//!
//! Owns tags and lengths. Never parses. Source: X.690.

/// Encodes a tag, the length and the content.
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    match length {
        0..=0x7f => out.push(u8::try_from(length).unwrap_or(0)),
        0x80..=0xff => out.extend([0x81, u8::try_from(length).unwrap_or(0)]),
        _ => {
            out.push(0x82);
            out.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(content);
    out
}

/// Encodes a SEQUENCE.
pub fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// Encodes a SET with one element.
pub fn set(part: &[u8]) -> Vec<u8> {
    tlv(0x31, part)
}

/// Encodes a small INTEGER.
pub fn integer(value: u8) -> Vec<u8> {
    if value < 0x80 { tlv(2, &[value]) } else { tlv(2, &[0, value]) }
}

/// Encodes a non-negative INTEGER of any length from its big-endian bytes.
pub fn magnitude(bytes: &[u8]) -> Vec<u8> {
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len().saturating_sub(1));
    let rest = &bytes[first..];
    if rest.first().is_some_and(|byte| *byte >= 0x80) { tlv(2, &[&[0], rest].concat()) } else { tlv(2, rest) }
}

/// Encodes a BOOLEAN.
pub fn boolean(value: bool) -> Vec<u8> {
    tlv(1, &[if value { 0xff } else { 0 }])
}

/// Encodes an OBJECT IDENTIFIER.
pub fn oid(text: &str) -> Vec<u8> {
    let numbers: Vec<u32> = text.split('.').map(|number| number.parse().unwrap_or(0)).collect();
    let (first, rest) = numbers.split_at(2);
    let mut content = vec![u8::try_from(first[0] * 40 + first[1]).unwrap_or(0)];
    for number in rest {
        let mut groups = vec![number & 0x7f];
        let mut left = number >> 7;
        while left > 0 {
            groups.push(left & 0x7f | 0x80);
            left >>= 7;
        }
        content.extend(groups.iter().rev().map(|group| u8::try_from(*group).unwrap_or(0)));
    }
    tlv(6, &content)
}

/// Encodes a BIT STRING of whole bytes.
pub fn bits(content: &[u8]) -> Vec<u8> {
    tlv(3, &[&[0], content].concat())
}

/// Encodes an OCTET STRING.
pub fn octets(content: &[u8]) -> Vec<u8> {
    tlv(4, content)
}

/// Encodes a time, given in seconds since the Unix epoch, as UTCTime or GeneralizedTime.
pub fn time(seconds: u64) -> Vec<u8> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let text = format!("{year:04}{month:02}{day:02}{:02}{:02}{:02}Z", second / 3_600, second / 60 % 60, second % 60);
    // Certificates must use UTCTime, the shorter form, until 2050. Source: RFC 5280, section 4.1.2.5.
    if year < 2050 { tlv(0x17, &text.as_bytes()[2..]) } else { tlv(0x18, text.as_bytes()) }
}

/// Formats a time, given in seconds since the Unix epoch, as JSON documents do. Source: RFC 3339.
pub fn rfc3339(seconds: u64) -> String {
    let ((year, month, day), second) = (date(seconds / 86_400), seconds % 86_400);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3_600, second / 60 % 60, second % 60)
}

/// Returns year, month and day of a number of days since the Unix epoch.
fn date(mut days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    (year, month as u64 + 1, days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_identifiers_match_the_standards() {
        assert_eq!(time(1_709_164_800), b"\x17\x0d240229000000Z");
        assert_eq!(time(2_524_608_000), b"\x18\x0f20500101000000Z");
        assert_eq!(time(1_750_799_999), b"\x17\x0d250624211959Z");
        assert_eq!(oid("1.2.840.113549.1.1.10"), [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10]);
        assert_eq!(rfc3339(1_750_799_999), "2025-06-24T21:19:59Z");
        assert_eq!(
            (magnitude(&[0, 0, 5]), magnitude(&[0x80]), magnitude(&[0])),
            (vec![2, 1, 5], vec![2, 2, 0, 0x80], vec![2, 1, 0])
        );
        assert_eq!(tlv(4, &[0; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(tlv(4, &[0; 200])[..3], [4, 0x81, 200]);
    }
}
