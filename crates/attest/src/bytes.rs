//! Reading of fixed layouts.
//!
//! Owns the bounds checks. It never reads past the end of the input, and it reports bytes that are left over.

use crate::refusal::Refusal;

/// A cursor that reads bytes from the front of a slice.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    /// Starts reading `bytes`; refusals call them `what`.
    pub const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// Reads the next `count` bytes.
    ///
    /// # Errors
    /// [`Refusal::Truncated`] if fewer bytes remain.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let (front, rest) = self.rest.split_at_checked(count).ok_or(Refusal::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(front)
    }

    /// Reads the next `N` bytes.
    ///
    /// # Errors
    /// [`Refusal::Truncated`] if fewer bytes remain.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (front, rest) = self.rest.split_first_chunk().ok_or(Refusal::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(*front)
    }

    /// Reads a 16-bit number, little-endian.
    ///
    /// # Errors
    /// [`Refusal::Truncated`] if fewer than two bytes remain.
    pub fn u16_le(&mut self) -> Result<u16, Refusal> {
        self.array().map(u16::from_le_bytes)
    }

    /// Reads a 32-bit number, little-endian.
    ///
    /// # Errors
    /// [`Refusal::Truncated`] if fewer than four bytes remain.
    pub fn u32_le(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_le_bytes)
    }

    /// Returns the bytes that are not read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Checks that no bytes remain.
    ///
    /// # Errors
    /// [`Refusal::TrailingBytes`] if some do.
    pub const fn end(&self) -> Result<(), Refusal> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Refusal::TrailingBytes { what: self.what, count: self.rest.len() })
        }
    }
}
