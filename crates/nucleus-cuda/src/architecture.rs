//! The architectures that kernels are compiled for.

use std::fmt;
use std::str::FromStr;

/// A compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Architecture {
    /// Compute capability times ten: 80, 89, 90, 120.
    capability: u32,
}

/// Compute capability, bytes of shared memory that a block may ask for, registers and threads of a multiprocessor.
const KNOWN: [(u32, u32, u32); 6] = [
    (80, 163 * 1024, 2048),
    (86, 99 * 1024, 1536),
    (89, 99 * 1024, 1536),
    (90, 227 * 1024, 2048),
    (100, 227 * 1024, 2048),
    (120, 99 * 1024, 1536),
];

/// An architecture that no kernel is written for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown architecture `{0}`; there are sm_80, sm_86, sm_89, sm_90, sm_100 and sm_120")]
pub struct UnknownArchitecture(String);

impl Architecture {
    /// A100.
    pub const SM80: Architecture = Architecture { capability: 80 };
    /// H100, H200.
    pub const SM90: Architecture = Architecture { capability: 90 };

    /// The newest known architecture whose kernels a device of this compute capability runs: of the same major number, not newer.
    pub fn for_device(major: u32, minor: u32) -> Option<Architecture> {
        let device = major * 10 + minor;
        let fits = |(capability, ..): &&(u32, u32, u32)| capability / 10 == major && *capability <= device;
        KNOWN.iter().filter(fits).max().map(|&(capability, ..)| Architecture { capability })
    }

    /// Compute capability times ten.
    pub fn capability(self) -> u32 {
        self.capability
    }

    /// The most bytes of shared memory of a block, dynamic ones included.
    pub fn shared_memory(self) -> u32 {
        self.known().1
    }

    /// The most threads that a multiprocessor holds at a time.
    pub fn threads_per_multiprocessor(self) -> u32 {
        self.known().2
    }

    fn known(self) -> (u32, u32, u32) {
        KNOWN.into_iter().find(|(capability, ..)| *capability == self.capability).unwrap_or(KNOWN[0])
    }
}

impl fmt::Display for Architecture {
    /// As compilers name it: `sm_90`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}", self.capability)
    }
}

impl FromStr for Architecture {
    type Err = UnknownArchitecture;

    fn from_str(text: &str) -> Result<Architecture, UnknownArchitecture> {
        let unknown = || UnknownArchitecture(text.to_owned());
        let capability =
            text.strip_prefix("sm_").and_then(|number| number.parse().ok()).ok_or_else(unknown)?;
        let known = KNOWN.iter().any(|(other, ..)| *other == capability);
        known.then_some(Architecture { capability }).ok_or_else(unknown)
    }
}
