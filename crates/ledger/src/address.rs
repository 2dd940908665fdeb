//! Ethereum addresses as people write them, in arguments and configuration files.
//!
//! Owns the rule that an address in mixed case must have the right checksum. Source: EIP-55. Use it in
//! `#[serde(with = "openrelay_ledger::address")]`; [`optional`] and [`list`] are for `Option` and `Vec`.

use alloy_primitives::Address;
use serde::{Deserialize, Deserializer, Serializer};

/// Why a text is not an address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddressError {
    /// It has another form.
    #[error("must be an address: 0x and 40 hexadecimal digits")]
    Malformed,
    /// It has upper-case and lower-case letters, and they are not the checksum. The right letters are not shown,
    /// because they would make a mistyped address valid.
    #[error(
        "has a wrong checksum (EIP-55), so a character of the address is wrong; \
         copy it again from its source, and do not correct it by hand"
    )]
    Checksum,
}

/// Parses an address of 40 hexadecimal digits, with or without `0x`. Digits in one case have no checksum.
///
/// # Errors
/// [`AddressError`].
pub fn parse(text: &str) -> Result<Address, AddressError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let address = crate::hex::decode::<20>(digits).map(Address::new).ok_or(AddressError::Malformed)?;
    let has = |is: fn(&u8) -> bool| digits.as_bytes().iter().any(is);
    let is_mixed = has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase);
    if is_mixed && address.to_checksum(None).strip_prefix("0x") != Some(digits) {
        return Err(AddressError::Checksum);
    }
    Ok(address)
}

/// An address that was read from a file.
struct Checked(Address);

impl<'a> Deserialize<'a> for Checked {
    fn deserialize<D: Deserializer<'a>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Reads an address from a file.
///
/// # Errors
/// Those of the format, and [`AddressError`].
pub fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Address, D::Error> {
    Checked::deserialize(deserializer).map(|checked| checked.0)
}

/// Writes an address with its checksum.
///
/// # Errors
/// Those of the format.
pub fn serialize<S: Serializer>(address: &Address, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(address)
}

/// An address that may be missing. Needs `#[serde(default)]` too.
pub mod optional {
    use super::{Address, Checked, Deserialize, Deserializer, Serializer};

    /// Reads an address from a file.
    ///
    /// # Errors
    /// Those of the format, and [`super::AddressError`].
    pub fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<Address>, D::Error> {
        Ok(Option::<Checked>::deserialize(deserializer)?.map(|checked| checked.0))
    }

    /// Writes an address with its checksum, or nothing.
    ///
    /// # Errors
    /// Those of the format.
    pub fn serialize<S: Serializer>(address: &Option<Address>, serializer: S) -> Result<S::Ok, S::Error> {
        match address {
            Some(address) => serializer.collect_str(address),
            None => serializer.serialize_none(),
        }
    }
}

/// A list of addresses.
pub mod list {
    use super::{Address, Checked, Deserialize, Deserializer};

    /// Reads addresses from a file.
    ///
    /// # Errors
    /// Those of the format, and [`super::AddressError`].
    pub fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Vec<Address>, D::Error> {
        Ok(Vec::<Checked>::deserialize(deserializer)?.into_iter().map(|checked| checked.0).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    /// Examples of EIP-55: mixed case, all upper-case, all lower-case.
    const VALID: [&str; 8] = [
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
        "0x52908400098527886E0F7030069857D2E4169EE7",
        "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
        "0xde709f2102306220921060314715629080e2fb77",
        "0x27b1fdb04752bbc536007a920d24acb045561c26",
    ];

    #[test]
    fn every_changed_case_of_a_letter_is_refused() {
        for text in VALID {
            let address = parse(text).unwrap();
            assert_eq!(parse(&text.to_lowercase()), Ok(address));
            let digits = text.strip_prefix("0x").unwrap();
            assert_eq!(parse(digits), Ok(address), "0x is optional");
            for (at, digit) in digits.char_indices().filter(|(_, digit)| digit.is_ascii_alphabetic()) {
                let flip =
                    if digit.is_ascii_uppercase() { digit.to_ascii_lowercase() } else { digit.to_ascii_uppercase() };
                let mut wrong = digits.to_owned();
                wrong.replace_range(at..=at, &flip.to_string());
                assert_eq!(parse(&wrong), Err(AddressError::Checksum), "{wrong}");
            }
        }
    }

    #[test]
    fn text_of_another_form_is_refused() {
        for text in [
            "",
            "0x",
            "0x00",
            "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAedd",
            "0X5aaeb6053f3e94c9b9a09f33669435e7ef1beaed",
        ] {
            assert_eq!(parse(text), Err(AddressError::Malformed), "{text:?}");
        }
    }

    #[derive(serde::Serialize, serde::Deserialize)]
    struct File {
        #[serde(with = "super")]
        one: Address,
        #[serde(with = "super::optional", default)]
        other: Option<Address>,
        #[serde(deserialize_with = "super::list::deserialize", default)]
        all: Vec<Address>,
    }

    #[test]
    fn files_are_written_with_checksums_and_read_by_the_same_rule() {
        let file = File { one: parse(VALID[0]).unwrap(), other: Some(parse(VALID[1]).unwrap()), all: Vec::new() };
        let text = serde_json::to_string(&file).unwrap();
        assert!(text.contains(VALID[0]) && text.contains(VALID[1]), "{text}");
        assert_eq!(serde_json::from_str::<File>(&text).unwrap().one, file.one);
        let wrong = VALID[0].replace("aA", "Aa");
        for text in [
            format!("{{\"one\":\"{wrong}\"}}"),
            format!("{{\"one\":\"{}\",\"other\":\"{wrong}\"}}", VALID[0]),
            format!("{{\"one\":\"{}\",\"all\":[\"{wrong}\"]}}", VALID[0]),
        ] {
            let said = serde_json::from_str::<File>(&text).err().unwrap().to_string();
            assert!(said.contains("wrong checksum (EIP-55)"), "{said}");
        }
    }
}
