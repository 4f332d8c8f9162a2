//! The one error type of the crate.

use std::{io, path::PathBuf};

/// What can go wrong; each variant stands for one kind of Python exception.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument that has the right type but no sensible meaning.
    #[error("{0}")]
    Value(String),
    /// More memory than there is, where a caller or a file decided how much.
    #[error("{0}")]
    Memory(String),
    /// A start index outside the stored rows.
    #[error("{0}")]
    Index(String),
    /// A field that the schema does not know, or one that is missing.
    #[error("{0}")]
    Key(String),
    /// An object used in a state that does not allow it.
    #[error("{0}")]
    Runtime(String),
    /// A file that is not what was saved.
    #[error("{}: {reason}", path.display())]
    Corrupt {
        /// The file that was refused.
        path: PathBuf,
        /// Why it was refused.
        reason: String,
    },
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// There is no room for a field's storage.
    #[error("{}: cannot reserve {bytes} bytes for field {field:?}: {source}", path.display())]
    Room {
        /// The directory of the storage.
        path: PathBuf,
        /// The field concerned.
        field: String,
        /// What its rows take.
        bytes: usize,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn value<T>(message: impl Into<String>) -> Result<T> {
        Err(Self::Value(message.into()))
    }
}

/// Result with the crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
