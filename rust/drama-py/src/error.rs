//! The one place where errors of the core become Python exceptions.

use std::sync::{Mutex, MutexGuard, PoisonError};

use drama_core::Error;
use pyo3::{
    PyErr,
    exceptions::{PyIndexError, PyKeyError, PyOSError, PyRuntimeError, PyValueError},
};

pub(crate) fn to_python(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Value(_) | Error::Corrupt { .. } => PyValueError::new_err(message),
        Error::Index(_) => PyIndexError::new_err(message),
        Error::Key(_) => PyKeyError::new_err(message),
        Error::Runtime(_) => PyRuntimeError::new_err(message),
        // With its number, so that Python picks FileNotFoundError and the like.
        Error::Io { path, source } => match source.raw_os_error() {
            Some(code) => PyOSError::new_err((code, source.to_string(), path)),
            None => PyOSError::new_err(message),
        },
        Error::Room { path, field, bytes, source } => {
            let reason = format!("cannot reserve {bytes} bytes for field {field:?}: {source}");
            PyOSError::new_err((source.raw_os_error(), reason, path))
        }
    }
}

/// Locks; what a panicking thread left behind is still consistent, for the core checks before it writes.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
