//! Which instruction set the kernels use: found at run time, or named by `NUCLEUS_ISA`.

use std::fmt;

/// Instruction sets with kernels of their own, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512 with dot products of bf16 pairs.
    Avx512Bf16,
    /// AVX-512 F, BW, DQ, VL; bf16 operands are widened to f32.
    Avx512,
    /// AVX2 and FMA; bf16 operands are widened to f32.
    Avx2,
    /// 64-bit Arm; bf16 operands are widened to f32.
    Neon,
    /// Plain loops.
    Portable,
}

/// `NUCLEUS_ISA` names nothing that this machine can run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NUCLEUS_ISA={name:?} is not an instruction set of this machine; it has: {}", join(.choices))]
pub struct IsaError {
    name: String,
    choices: Vec<Isa>,
}

fn join(choices: &[Isa]) -> String {
    choices.iter().map(Isa::name).collect::<Vec<_>>().join(", ")
}

impl Isa {
    const ALL: [Self; 5] = [Self::Avx512Bf16, Self::Avx512, Self::Avx2, Self::Neon, Self::Portable];

    /// The name that `NUCLEUS_ISA` understands.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Avx512Bf16 => "avx512-bf16",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Portable => "portable",
        }
    }

    /// Every instruction set this machine can run; never empty, the last is [`Isa::Portable`].
    #[must_use]
    pub fn supported() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_supported()).collect()
    }

    /// The fastest instruction set of this machine, unless the environment variable `NUCLEUS_ISA` names another.
    ///
    /// # Errors
    /// The variable names an unknown instruction set, or one that this machine lacks.
    pub fn select() -> Result<Self, IsaError> {
        match std::env::var_os("NUCLEUS_ISA") {
            Some(name) if !name.is_empty() => Self::named(&name.to_string_lossy()),
            _ => Ok(Self::fastest()),
        }
    }

    /// The instruction set called `name`, if this machine has it.
    ///
    /// # Errors
    /// The name is unknown, or the machine lacks it.
    pub fn named(name: &str) -> Result<Self, IsaError> {
        let choices = Self::supported();
        let found = choices.iter().copied().find(|isa| isa.name() == name);
        found.ok_or_else(|| IsaError { name: name.to_owned(), choices })
    }

    /// The fastest instruction set of this machine.
    #[must_use]
    pub fn fastest() -> Self {
        let mut choices = Self::supported().into_iter();
        let best = choices.next().unwrap_or(Self::Portable);
        // Intel cores issue one 512-bit bf16 dot product every other cycle against two FMAs every cycle, so
        // that widening to f32 is twice as fast there. On AMD cores the dot product runs at the FMA's rate.
        if best == Self::Avx512Bf16 && is_intel() { choices.next().unwrap_or(best) } else { best }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_supported(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        match self {
            Self::Avx512Bf16 => avx512 && is_x86_feature_detected!("avx512bf16"),
            Self::Avx512 => avx512,
            Self::Avx2 => avx2,
            Self::Neon => false,
            Self::Portable => true,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_supported(self) -> bool {
        match self {
            Self::Avx512Bf16 | Self::Avx512 | Self::Avx2 => false,
            // Every 64-bit Arm core has it.
            Self::Neon => cfg!(target_arch = "aarch64"),
            Self::Portable => true,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portable_kernels_run_everywhere() {
        assert_eq!(Isa::supported().last(), Some(&Isa::Portable));
        assert!(Isa::supported().contains(&Isa::fastest()));
    }

    #[test]
    fn every_supported_name_is_understood() {
        for isa in Isa::supported() {
            assert_eq!(Isa::named(isa.name()), Ok(isa));
        }
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_choices() {
        let message = Isa::named("sse9").unwrap_err().to_string();
        assert!(message.contains("\"sse9\"") && message.contains("portable"), "{message}");
    }
}
