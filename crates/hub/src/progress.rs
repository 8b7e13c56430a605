//! What a caller is told while a model is fetched.

use std::ops::ControlFlow;

/// What happens during a pull. Files come one after the other: `Begin`, some `Advance`, `End`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// For the user: which source is used and why, licence terms, retries.
    Message(&'a str),
    /// Files beside the weights are not there and cannot be fetched; the model works without them.
    Lacking {
        /// Their names.
        files: &'a [&'a str],
        /// For the user: the files, why they cannot be fetched, and what is not known without them.
        text: &'a str,
    },
    /// A download begins or continues.
    Begin {
        /// File or package.
        file: &'a str,
        /// Bytes already there from an earlier attempt.
        have: u64,
        /// Bytes in all, where known.
        total: Option<u64>,
    },
    /// More bytes are there. Comes often: draw at most some times a second.
    Advance {
        /// File or package.
        file: &'a str,
        /// Bytes so far.
        have: u64,
        /// Bytes in all, where known.
        total: Option<u64>,
    },
    /// Nothing new; asks whether to go on, and keeps a spinner turning.
    Waiting,
    /// A file is complete.
    End {
        /// File or package.
        file: &'a str,
        /// Its size in bytes.
        bytes: u64,
        /// The hub told its SHA-256, and that is what it has.
        verified: bool,
    },
}

/// Called with every [`Event`]; `Break` stops the pull with [`HubError::Interrupted`](crate::HubError::Interrupted), and
/// the next one continues it.
pub(crate) type Progress<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;

/// Tells the user something. Whether to go on is asked at the next event.
pub(crate) fn say(progress: &mut Progress<'_>, text: &str) {
    let _ = progress(Event::Message(text));
}
