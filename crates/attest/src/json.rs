//! Typed access to fields of JSON objects.
//!
//! Owns the refusals of missing and mistyped fields. It never refuses unknown fields, so that later publishers can add
//! some.

use serde_json::Value;

use crate::refusal::Refusal;

/// Returns a refusal with this reason.
pub(crate) fn malformed(why: impl Into<String>) -> Refusal {
    Refusal::MalformedCollateral(why.into())
}

/// Parses an object, whose `schema` field must name this schema.
pub(crate) fn object(bytes: &[u8], schema: &str) -> Result<Value, Refusal> {
    object_of(bytes, &[schema]).map(|(object, _)| object)
}

/// Parses an object, whose `schema` field must name one of these schemas, and returns that schema too.
pub(crate) fn object_of<'a>(bytes: &[u8], schemas: &[&'a str]) -> Result<(Value, &'a str), Refusal> {
    let object: Value = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
    let named = object.get("schema").and_then(Value::as_str);
    let schema = schemas.iter().find(|schema| named == Some(**schema)).copied();
    let schema = schema.ok_or_else(|| malformed(format!("its schema is not {}", schemas.join(" or "))))?;
    Ok((object, schema))
}

/// Returns a string field.
pub(crate) fn text<'a>(object: &'a Value, name: &str) -> Result<&'a str, Refusal> {
    object.get(name).and_then(Value::as_str).ok_or_else(|| malformed(format!("{name} is missing, or is not a string")))
}

/// Returns a number field.
pub(crate) fn number<T: TryFrom<u64>>(object: &Value, name: &str) -> Result<T, Refusal> {
    let number = object.get(name).and_then(Value::as_u64).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| malformed(format!("{name} is missing, or is not a number in range")))
}

/// Returns a list field.
pub(crate) fn list<'a>(object: &'a Value, name: &str) -> Result<&'a [Value], Refusal> {
    let list = object.get(name).and_then(Value::as_array);
    list.map(Vec::as_slice).ok_or_else(|| malformed(format!("{name} is missing, or is not a list")))
}

/// Decodes a field of `N` bytes in lower-case hexadecimal digits.
pub(crate) fn bytes<const N: usize>(text: Option<&str>, name: &str) -> Result<[u8; N], Refusal> {
    let plain = text.filter(|text| !text.bytes().any(|byte| byte.is_ascii_uppercase()));
    let bytes = plain.and_then(from_hex).and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| malformed(format!("{name} is missing, or is not {N} bytes in lower-case hexadecimal digits")))
}

/// Decodes hexadecimal digits.
pub(crate) fn from_hex(text: &str) -> Option<Vec<u8>> {
    let text = text.trim().as_bytes();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks_exact(2).map(|pair| Some(16 * digit(pair[0])? + digit(pair[1])?)).collect()
}

/// Encodes bytes in lower-case hexadecimal digits.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
