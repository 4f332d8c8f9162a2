//! The one place where errors of the core become Python exceptions.

use std::{
    io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use drama_core::Error;
use pyo3::{
    PyErr,
    exceptions::{PyIndexError, PyKeyError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError},
};

pub(crate) fn to_python(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Value(_) | Error::Corrupt { .. } => PyValueError::new_err(message),
        Error::Index(_) => PyIndexError::new_err(message),
        Error::Key(_) => PyKeyError::new_err(message),
        Error::Runtime(_) => PyRuntimeError::new_err(message),
        Error::Memory(_) => PyMemoryError::new_err(message),
        Error::Io { path, source } => system(&source, &reason(&source), &path),
        Error::Room { path, field, bytes, source } => {
            let reason = format!("cannot reserve {bytes} bytes for field {field:?}: {}", reason(&source));
            system(&source, &reason, &path)
        }
    }
}

/// With its number, so that Python picks FileNotFoundError and the like.
fn system(source: &io::Error, reason: &str, path: &Path) -> PyErr {
    match source.raw_os_error() {
        Some(code) => PyOSError::new_err((code, reason.to_owned(), path.as_os_str().to_owned())),
        None => PyOSError::new_err(format!("{}: {reason}", path.display())),
    }
}

/// What went wrong, without the number that Rust adds and Python shows itself.
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let number = error.raw_os_error().map(|code| format!(" (os error {code})"));
    number.and_then(|number| text.strip_suffix(&number)).unwrap_or(&text).to_owned()
}

/// Locks; what a panicking thread left behind is still consistent, for the core checks before it writes.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
