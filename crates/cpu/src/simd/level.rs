//! The instruction sets that kernels are built for, chosen at run time.

/// A set of vector instructions, in ascending order of width. Every kernel exists at every level.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SimdLevel {
    /// Portable code without explicit vector instructions.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
}

impl SimdLevel {
    /// Every level, narrowest first.
    pub const ALL: [SimdLevel; 3] = [SimdLevel::Scalar, SimdLevel::Avx2, SimdLevel::Avx512];

    /// The widest level that this processor has.
    pub fn detect() -> SimdLevel {
        SimdLevel::ALL.into_iter().rev().find(|l| l.is_available()).unwrap_or(SimdLevel::Scalar)
    }

    /// True when this processor has the level's instructions.
    pub(crate) fn is_available(self) -> bool {
        match self {
            SimdLevel::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            SimdLevel::Avx512 => {
                SimdLevel::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The levels that this processor has, narrowest first.
    pub fn available() -> Vec<SimdLevel> {
        SimdLevel::ALL.into_iter().filter(|l| l.is_available()).collect()
    }

    /// The widest available level that is no wider than this one.
    pub(crate) fn or_narrower(self) -> SimdLevel {
        SimdLevel::ALL.into_iter().rev().find(|l| *l <= self && l.is_available()).unwrap_or(SimdLevel::Scalar)
    }

    /// Name for people and options: `scalar`, `avx2`, `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            SimdLevel::Scalar => "scalar",
            SimdLevel::Avx2 => "avx2",
            SimdLevel::Avx512 => "avx512",
        }
    }

    /// Parses a name, in any case.
    pub fn parse(name: &str) -> Option<SimdLevel> {
        SimdLevel::ALL.into_iter().find(|l| l.name().eq_ignore_ascii_case(name))
    }

    /// The instruction sets that the level's kernels use.
    pub fn features(self) -> &'static [&'static str] {
        match self {
            SimdLevel::Scalar => &[],
            SimdLevel::Avx2 => &["avx2", "fma", "f16c"],
            SimdLevel::Avx512 => {
                &["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"]
            }
        }
    }
}

impl std::fmt::Display for SimdLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detection_is_consistent() {
        let best = SimdLevel::detect();
        assert!(best.is_available());
        assert_eq!(SimdLevel::Avx512.or_narrower(), best);
        assert_eq!(SimdLevel::Scalar.or_narrower(), SimdLevel::Scalar);
        for level in SimdLevel::ALL {
            assert_eq!(SimdLevel::parse(&level.name().to_uppercase()), Some(level));
        }
    }
}
