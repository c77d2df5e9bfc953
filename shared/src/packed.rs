//! What the build put into the binary: compressed, for it has to stay small.

use std::io::{self, Read};

/// A file that `build.rs` compressed.
#[derive(Debug, Clone, Copy)]
pub struct Packed(&'static [u8]);

impl Packed {
    /// From the compressed bytes.
    pub const fn new(bytes: &'static [u8]) -> Self {
        Self(bytes)
    }

    /// Reads it.
    ///
    /// # Errors
    /// The binary is damaged.
    pub fn reader(self) -> io::Result<impl Read> {
        ruzstd::decoding::StreamingDecoder::new(self.0).map_err(io::Error::other)
    }

    /// All of it.
    ///
    /// # Errors
    /// The binary is damaged.
    pub fn unpack(self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.reader()?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}
