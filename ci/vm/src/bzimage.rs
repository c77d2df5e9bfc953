//! The kernel inside a bzImage.
//!
//! QEMU can start the uncompressed kernel directly (PVH), which saves the guest from decompressing itself: under
//! emulation a third of the time to boot.

use std::io::Read;

use anyhow::{Context, Result};

const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// The uncompressed kernel, if it is compressed in the way that Debian does.
pub fn extract(image: &[u8]) -> Result<Option<Vec<u8>>> {
    // Documentation/arch/x86/boot.rst: the protected-mode code begins after the boot sector and the setup sectors,
    // and the payload lies within that code.
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("not a bzImage")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let setup_sectors = *image.get(0x1f1).context("not a bzImage")? as usize;
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let payload = image.get(start..start + word(0x24c)?).context("not a bzImage")?;
    if !payload.starts_with(ZSTD) {
        return Ok(None);
    }
    let mut kernel = Vec::new();
    // One frame; the size of its content follows in four bytes.
    zstd::Decoder::with_buffer(payload)?.single_frame().read_to_end(&mut kernel)?;
    Ok(Some(kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with one setup sector and this payload 16 bytes into the code.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * 512 + 16];
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"more code");
        image
    }

    #[test]
    fn a_zstd_payload_is_decompressed() {
        let mut payload = zstd::encode_all(&b"the kernel"[..], 1).unwrap();
        payload.extend_from_slice(&10u32.to_le_bytes());
        assert_eq!(extract(&image(&payload)).unwrap().as_deref(), Some(&b"the kernel"[..]));
    }

    #[test]
    fn other_payloads_are_left_to_the_kernel_itself() {
        assert_eq!(extract(&image(b"\x02\x21\x4c\x18....")).unwrap(), None);
        assert!(extract(b"short").is_err());
    }
}
