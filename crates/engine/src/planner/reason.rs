//! Why a placement was chosen, in words made of the numbers that decided.

/// What does not fit.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum Misfit {
    /// A memory is too small.
    #[error(
        "{name} would need {} of {}{}",
        gigabytes(*needed),
        gigabytes(*available),
        if *budget { " that it may take" } else { "" }
    )]
    Memory {
        /// The memory, or the device whose budget it is.
        name: String,
        /// Bytes needed.
        needed: u64,
        /// Bytes that there are.
        available: u64,
        /// A budget was set for it.
        budget: bool,
    },
    /// A device could not do its part, whatever the memory; why.
    #[error("{0}")]
    Refused(String),
}

impl Misfit {
    /// Bytes that are missing; the most of all where bytes would not help.
    pub fn lacking(&self) -> u64 {
        match self {
            Misfit::Memory { needed, available, .. } => needed.saturating_sub(*available),
            Misfit::Refused(_) => u64::MAX,
        }
    }
}

fn gigabytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// Why a placement was chosen, or none.
#[derive(Clone, PartialEq, Debug)]
pub enum Reason {
    /// One device alone is best.
    Alone {
        /// The next best device alone, with how many times as long it takes.
        next: Option<(String, f64)>,
        /// The best of several devices, with how many times as fast it is predicted, and the margin that this had to pass.
        several: Option<(String, f64, f64)>,
    },
    /// Several devices are better than the best alone.
    Several {
        /// The best alone.
        than: String,
        /// How many times as fast.
        gain: f64,
        /// What this had to pass.
        margin: f64,
    },
    /// No device alone can hold the model; the one that comes nearest.
    NoSingleFits(Option<Misfit>),
    /// No placement fits; the one that comes nearest.
    NoneFits(Misfit),
    /// It was asked for. The best device alone with how many times as fast this is.
    Asked {
        /// The best device alone.
        than_single: Option<(String, f64)>,
    },
    /// There was nothing to choose from.
    Nothing,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        match self {
            Reason::Alone { next, several } => {
                match next {
                    Some((rules, times)) => {
                        write!(f, "one device alone; {rules} takes {times:.2} times as long")?
                    }
                    None => write!(f, "one device alone")?,
                }
                match several {
                    Some((rules, gain, margin)) => write!(
                        f,
                        "; of several devices {rules} is best at {gain:.2}x, and less than {:.2}x is not sure to be faster",
                        1.0 + margin
                    ),
                    None => Ok(()),
                }
            }
            Reason::Several { than, gain, margin } => {
                let margin = percent(*margin);
                write!(
                    f,
                    "{gain:.2}x of the best device alone ({than}), more than predictions are off ({margin})"
                )
            }
            Reason::NoSingleFits(Some(misfit)) => write!(f, "no device alone can hold the model: {misfit}"),
            Reason::NoSingleFits(None) => write!(f, "no device alone can hold the model"),
            Reason::NoneFits(misfit) => write!(f, "it does not fit: {misfit}"),
            Reason::Asked { than_single: Some((rules, gain)) } => {
                write!(f, "asked for; {gain:.2}x of the best device alone ({rules})")
            }
            Reason::Asked { than_single: None } => write!(f, "asked for; no device alone can hold the model"),
            Reason::Nothing => write!(f, "there is nothing to choose from"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_say_the_numbers() {
        let (name, needed, available) = ("vulkan:0".into(), 4_900_000_000, 512 << 20);
        let misfit = Misfit::Memory { name, needed, available, budget: true };
        assert_eq!(misfit.to_string(), "vulkan:0 would need 4.90 GB of 537 MB that it may take");
        let several = Reason::Several { than: "0-31=a".into(), gain: 1.724, margin: 0.08 };
        assert_eq!(
            several.to_string(),
            "1.72x of the best device alone (0-31=a), more than predictions are off (8 %)"
        );
        let alone = Reason::Alone {
            next: Some(("0-31=cpu".into(), 12.0)),
            several: Some(("mixer=a,ffn=b".into(), 1.02, 0.08)),
        };
        let text = alone.to_string();
        assert!(
            text.contains("12.00 times as long") && text.contains("1.02x") && text.contains("1.08x"),
            "{text}"
        );
    }
}
