//! Reading of fixed layouts.
//!
//! Owns the bounds: nothing reads past the end, and what is left over is seen.

use crate::refusal::Refusal;

/// Bytes that are read from the front.
#[derive(Clone, Copy, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    /// Begins to read `bytes`, which are said to be a `what`.
    pub const fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// [`Refusal::Truncated`].
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Refusal> {
        let (front, rest) = self.rest.split_at_checked(count).ok_or(Refusal::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(front)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`Refusal::Truncated`].
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (front, rest) = self.rest.split_first_chunk().ok_or(Refusal::Truncated { what: self.what })?;
        self.rest = rest;
        Ok(*front)
    }

    /// A number of two bytes, little-endian.
    ///
    /// # Errors
    /// [`Refusal::Truncated`].
    pub fn u16_le(&mut self) -> Result<u16, Refusal> {
        self.array().map(u16::from_le_bytes)
    }

    /// A number of four bytes, little-endian.
    ///
    /// # Errors
    /// [`Refusal::Truncated`].
    pub fn u32_le(&mut self) -> Result<u32, Refusal> {
        self.array().map(u32::from_le_bytes)
    }

    /// What has not been read.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// [`Refusal::TrailingBytes`].
    pub const fn end(&self) -> Result<(), Refusal> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Refusal::TrailingBytes { what: self.what, count: self.rest.len() })
        }
    }
}
