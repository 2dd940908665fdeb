//! Reading of JSON objects by hand: what is asked for by name and must be of a kind.
//!
//! Owns the refusals of what is missing. Objects may hold more: who publishes them later may say more.

use serde_json::Value;

use crate::refusal::Refusal;

/// A refusal that says what is wrong.
pub(crate) fn malformed(why: impl Into<String>) -> Refusal {
    Refusal::MalformedCollateral(why.into())
}

/// The object in these bytes, which must say that it is of this schema.
pub(crate) fn object(bytes: &[u8], schema: &str) -> Result<Value, Refusal> {
    object_of(bytes, &[schema]).map(|(object, _)| object)
}

/// The object in these bytes, and which of the schemas it says that it is of.
pub(crate) fn object_of<'a>(bytes: &[u8], schemas: &[&'a str]) -> Result<(Value, &'a str), Refusal> {
    let object: Value = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let named = object.get("schema").and_then(Value::as_str);
    let schema = schemas.iter().find(|schema| named == Some(**schema)).copied();
    let schema = schema.ok_or_else(|| malformed(format!("it is not of the schema {}", schemas.join(" or "))))?;
    Ok((object, schema))
}

/// A text.
pub(crate) fn text<'a>(object: &'a Value, name: &str) -> Result<&'a str, Refusal> {
    object.get(name).and_then(Value::as_str).ok_or_else(|| malformed(format!("{name} is missing, or is no text")))
}

/// A number.
pub(crate) fn number<T: TryFrom<u64>>(object: &Value, name: &str) -> Result<T, Refusal> {
    let number = object.get(name).and_then(Value::as_u64).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| malformed(format!("{name} is missing, or is no number that fits")))
}

/// A list.
pub(crate) fn list<'a>(object: &'a Value, name: &str) -> Result<&'a [Value], Refusal> {
    let list = object.get(name).and_then(Value::as_array);
    list.map(Vec::as_slice).ok_or_else(|| malformed(format!("{name} is missing, or is no list")))
}

/// Bytes in lower-case hexadecimal digits.
pub(crate) fn bytes<const N: usize>(text: Option<&str>, name: &str) -> Result<[u8; N], Refusal> {
    let plain = text.filter(|text| !text.bytes().any(|byte| byte.is_ascii_uppercase()));
    let bytes = plain.and_then(from_hex).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| malformed(format!("{name} is missing, or is not {N} bytes in lower-case hexadecimal digits")))
}

/// Bytes of hexadecimal digits.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2).map(|pair| Some(16 * digit(pair[0])? + digit(pair[1])?)).collect()
}

/// Hexadecimal digits of bytes.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
