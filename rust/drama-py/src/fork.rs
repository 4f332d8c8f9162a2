//! Forks: none happens while a thread is at work here, for the locks that it holds would stay locked in the child.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread::sleep,
    time::Duration,
};

use pyo3::{intern, prelude::*, types::PyDict, wrap_pyfunction};

/// How often it is looked whether a fork is over, or may begin.
const PAUSE: Duration = Duration::from_micros(50);

// Not locks of the system's, which would remember threads that the child does not have.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);
static FORKING: AtomicBool = AtomicBool::new(false);

struct Work;

impl Work {
    fn begin() -> Self {
        loop {
            while FORKING.load(SeqCst) {
                sleep(PAUSE);
            }
            AT_WORK.fetch_add(1, SeqCst);
            let work = Self;
            if !FORKING.load(SeqCst) {
                return work;
            }
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(1, SeqCst);
    }
}

/// Does work that takes locks; no fork happens meanwhile. Who calls it has not the interpreter.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> T {
    let _work = Work::begin();
    work()
}

/// Releases the interpreter for work that takes locks; no fork happens meanwhile.
pub(crate) fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> T + Send) -> T {
    py.detach(|| guarded(work))
}

#[pyfunction]
fn before(py: Python<'_>) {
    py.detach(|| {
        while FORKING.compare_exchange(false, true, SeqCst, SeqCst).is_err() {
            sleep(PAUSE);
        }
        while AT_WORK.load(SeqCst) > 0 {
            sleep(PAUSE);
        }
    });
}

#[pyfunction]
fn in_parent() {
    FORKING.store(false, SeqCst);
}

#[pyfunction]
fn in_child() {
    // One that had just seen the fork may have been about to step back.
    AT_WORK.store(0, SeqCst);
    FORKING.store(false, SeqCst);
}

/// Lets Python tell of its forks.
pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let os = py.import(intern!(py, "os"))?;
    if os.hasattr(intern!(py, "register_at_fork"))? {
        let hooks = PyDict::new(py);
        hooks.set_item("before", wrap_pyfunction!(before, module)?)?;
        hooks.set_item("after_in_parent", wrap_pyfunction!(in_parent, module)?)?;
        hooks.set_item("after_in_child", wrap_pyfunction!(in_child, module)?)?;
        os.call_method(intern!(py, "register_at_fork"), (), Some(&hooks))?;
    }
    Ok(())
}
