//! Cubins: ELF files of machine code.
//!
//! What is checked here is that a file is whole and for the right kind of device, so that damage is found before a driver sees it. A cubin is
//! executable code all the same: whoever may write it may run code on the device.

use std::collections::BTreeMap;
use std::ops::Range;

use thiserror::Error;

use crate::architecture::Architecture;
use crate::source::KernelSource;

/// The most bytes of a cubin. Those of real kernels have less than a megabyte.
pub const MAX_CUBIN_BYTES: usize = 64 << 20;

/// `e_machine` of CUDA.
const EM_CUDA: u16 = 190;
/// Version of the ELF ABI from which on `e_flags` has the architecture in its second byte; before it was in the first.
const FLAGS_SECOND_BYTE: u8 = 8;
/// Bytes of the header of a 64-bit ELF file.
const HEADER: usize = 64;

/// What is wrong with a cubin.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CubinError {
    /// It is not CUDA's kind of ELF file.
    #[error("it is not a cubin: {0}")]
    NotACubin(&'static str),
    /// A table lies outside.
    #[error("the cubin is damaged: its {0} lies outside the file")]
    Outside(&'static str),
    /// It is for another device.
    #[error("the cubin is for sm_{found}, not for {wanted}")]
    Architecture {
        /// What it is for.
        found: u32,
        /// What is wanted.
        wanted: Architecture,
    },
}

/// Checks the header of a cubin: kind, architecture, and that its tables lie inside.
///
/// # Errors
/// It is something else, cut off, or for another architecture.
pub fn check_cubin(bytes: &[u8], architecture: Architecture) -> Result<(), CubinError> {
    let header: &[u8; HEADER] =
        bytes.first_chunk().ok_or(CubinError::NotACubin("it is shorter than an ELF header"))?;
    if bytes.len() > MAX_CUBIN_BYTES {
        return Err(CubinError::NotACubin("it has more than 64 MiB"));
    }
    if !header.starts_with(b"\x7fELF\x02\x01\x01") {
        return Err(CubinError::NotACubin("it does not begin as a 64-bit little-endian ELF file"));
    }
    if number(header, 18..20) != u64::from(EM_CUDA) {
        return Err(CubinError::NotACubin("it is for another kind of machine"));
    }
    let flags = number(header, 48..52) as u32;
    let found = if header[8] >= FLAGS_SECOND_BYTE { flags >> 8 & 0xff } else { flags & 0xff };
    if found != architecture.capability() {
        return Err(CubinError::Architecture { found, wanted: architecture });
    }
    let tables = [("program table", 32..40, 54..56, 56..58), ("section table", 40..48, 58..60, 60..62)];
    for (name, offset, entry, count) in tables {
        let size = number(header, entry) * number(header, count);
        let end = number(header, offset).checked_add(size);
        if end.is_none_or(|end| end > bytes.len() as u64) {
            return Err(CubinError::Outside(name));
        }
    }
    Ok(())
}

/// A little-endian number in a header.
fn number(header: &[u8; HEADER], range: Range<usize>) -> u64 {
    header[range].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// What a cubin was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CubinKey {
    /// The architecture.
    pub architecture: Architecture,
    /// blake3 of the translation unit.
    pub text: [u8; 32],
}

impl CubinKey {
    /// The key of a kernel for an architecture.
    pub fn of(source: &KernelSource, architecture: Architecture) -> CubinKey {
        CubinKey { architecture, text: *blake3::hash(source.text.as_bytes()).as_bytes() }
    }

    /// As text: `sm_90.` and 64 hexadecimal digits.
    pub fn name(&self) -> String {
        format!("{}.{}", self.architecture, blake3::Hash::from_bytes(self.text).to_hex())
    }

    /// The key of this name.
    pub fn from_name(name: &str) -> Option<CubinKey> {
        let (architecture, text) = name.split_once('.')?;
        let text = blake3::Hash::from_hex(text).ok()?;
        let key = CubinKey { architecture: architecture.parse().ok()?, text: *text.as_bytes() };
        // Only one spelling is a name.
        (key.name() == name).then_some(key)
    }
}

/// Cubins by what they were made from: those that an artifact carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredCubins {
    cubins: BTreeMap<CubinKey, Vec<u8>>,
}

impl StoredCubins {
    /// None.
    pub fn new() -> StoredCubins {
        StoredCubins::default()
    }

    /// Adds a cubin.
    ///
    /// # Errors
    /// It is not a whole cubin for the architecture.
    pub fn insert(&mut self, key: CubinKey, cubin: Vec<u8>) -> Result<(), CubinError> {
        check_cubin(&cubin, key.architecture)?;
        self.cubins.insert(key, cubin);
        Ok(())
    }

    /// The cubin of a kernel, if it is here.
    pub fn get(&self, source: &KernelSource, architecture: Architecture) -> Option<&[u8]> {
        self.cubins.get(&CubinKey::of(source, architecture)).map(Vec::as_slice)
    }

    /// All, by architecture and text.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&CubinKey, &[u8])> {
        self.cubins.iter().map(|(key, cubin)| (key, cubin.as_slice()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.cubins.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.cubins.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with both tables, of one entry each, behind it.
    fn cubin() -> Vec<u8> {
        let mut bytes = vec![0; HEADER + 56 + 64];
        bytes[..9].copy_from_slice(b"\x7fELF\x02\x01\x01A\x08");
        bytes[18] = 190;
        bytes[32] = HEADER as u8;
        bytes[40] = HEADER as u8 + 56;
        bytes[49] = 90;
        (bytes[54], bytes[56], bytes[58], bytes[60]) = (56, 1, 64, 1);
        bytes
    }

    #[test]
    fn damage_is_found_by_length_kind_and_tables() {
        let whole = cubin();
        assert_eq!(check_cubin(&whole, Architecture::SM90), Ok(()));
        for length in 0..whole.len() {
            assert!(check_cubin(&whole[..length], Architecture::SM90).is_err(), "{length} bytes");
        }
        for at in [0, 1, 2, 3, 4, 5, 6, 18, 19, 32, 39, 40, 47, 49, 54, 56, 58, 60] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x80;
            assert!(check_cubin(&bytes, Architecture::SM90).is_err(), "byte {at}");
        }
        let error = check_cubin(&whole, Architecture::SM80).expect_err("it is for another architecture");
        assert_eq!(error.to_string(), "the cubin is for sm_90, not for sm_80");
    }

    #[test]
    fn names_of_keys_read_back_and_nothing_else_does() {
        let key = CubinKey { architecture: Architecture::SM80, text: [0xab; 32] };
        assert_eq!(CubinKey::from_name(&key.name()), Some(key));
        for name in ["", "sm_80", "sm_80.ab", "sm_81.", &key.name().to_uppercase(), &key.name()[1..]] {
            assert_eq!(CubinKey::from_name(name), None, "{name}");
        }
    }
}
