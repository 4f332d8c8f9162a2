//! `VectorBoard`: the shared memory of a vector of environments.

use std::{sync::Arc, time::Duration};

use drama_core::{Board, Outcome};
use numpy::{PyArray1, PyReadonlyArray1, ndarray::ArrayView1};
use pyo3::{
    exceptions::{PyIndexError, PyValueError},
    prelude::*,
    types::PyBytes,
};

use crate::error::to_python;

/// Memory in which worker processes step their shares of environments; see `drama.envs.vector`.
#[pyclass(frozen, module = "drama._native")]
pub(crate) struct VectorBoard {
    pub(crate) board: Arc<Board>,
}

/// Rewards, terminated, truncated, and the environments that gave more.
type Results<'py> = (Bound<'py, PyArray1<f64>>, Bound<'py, PyArray1<bool>>, Bound<'py, PyArray1<bool>>, Vec<usize>);

impl VectorBoard {
    pub(crate) fn env(&self, env: i64) -> PyResult<usize> {
        let num_envs = self.board.num_envs();
        usize::try_from(env).ok().filter(|env| *env < num_envs).ok_or_else(|| {
            PyIndexError::new_err(format!("environment: got {env}, expected one from 0 to {}", num_envs - 1))
        })
    }

    pub(crate) fn worker(&self, worker: i64) -> PyResult<usize> {
        let workers = self.board.num_workers();
        usize::try_from(worker).ok().filter(|worker| *worker < workers).ok_or_else(|| {
            PyIndexError::new_err(format!("worker: got {worker}, expected one from 0 to {}", workers - 1))
        })
    }

    fn read<'py>(&self, py: Python<'py>, slot: usize) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &py.detach(|| self.board.read_mail(slot)).map_err(to_python)?))
    }

    fn envs(&self, envs: Option<Vec<i64>>) -> PyResult<Vec<usize>> {
        match envs {
            Some(envs) => envs.into_iter().map(|env| self.env(env)).collect(),
            None => Ok((0..self.board.num_envs()).collect()),
        }
    }
}

fn duration(seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|error| PyValueError::new_err(format!("seconds: got {seconds}: {error}")))
}

#[pymethods]
impl VectorBoard {
    /// `shares` are the numbers of environments of the workers. In a worker, `fd` is the parent's `fd`, and is taken
    /// over.
    #[new]
    #[pyo3(signature = (shares, *, shared, crowded, fd=None))]
    fn new(shares: Vec<usize>, shared: bool, crowded: bool, fd: Option<i32>) -> PyResult<Self> {
        let board = match fd {
            None => Board::new(&shares, shared, crowded),
            #[cfg(unix)]
            Some(fd) if fd >= 0 => {
                use std::os::fd::FromRawFd;
                // SAFETY: the caller hands it over.
                Board::attach(&shares, unsafe { std::fs::File::from_raw_fd(fd) }, crowded)
            }
            Some(fd) => return Err(PyValueError::new_err(format!("fd: got {fd}, expected a file descriptor"))),
        };
        Ok(Self { board: Arc::new(board.map_err(to_python)?) })
    }

    /// The same board with regions, `rows` their bytes per environment, to be used in the place of this one.
    fn with_regions(&self, rows: Vec<usize>) -> PyResult<Self> {
        Ok(Self { board: Arc::new(self.board.with_regions(&rows).map_err(to_python)?) })
    }

    /// What a worker attaches with, until `close`.
    #[getter]
    fn fd(&self) -> Option<i32> {
        #[cfg(unix)]
        return self.board.file().as_ref().map(std::os::fd::AsRawFd::as_raw_fd);
        #[cfg(not(unix))]
        None
    }

    /// No more workers will attach, and no mail be sent.
    fn close(&self) {
        self.board.close();
    }

    /// The bytes of a region, which keep the memory alive.
    fn region<'py>(slf: &Bound<'py, Self>, index: usize) -> Bound<'py, PyArray1<u8>> {
        let board = &slf.get().board;
        let (pointer, row) = board.region(index);
        // SAFETY: the region has this many initialised bytes, and lives as long as the board. Who may write to which
        // row at which time is the protocol of the board; a view used outside it sees mixed bytes.
        unsafe {
            let view = ArrayView1::from_shape_ptr(row * board.num_envs(), pointer.cast_const());
            PyArray1::borrow_from_array(&view, slf.clone().into_any())
        }
    }

    /// Checks one discrete action for each of `envs` (all if `None`) and writes them less `start` to region `index`.
    #[pyo3(signature = (index, actions, start, count, envs=None))]
    fn write_choices(
        &self,
        index: usize,
        actions: PyReadonlyArray1<'_, i64>,
        start: i64,
        count: i64,
        envs: Option<Vec<i64>>,
    ) -> PyResult<()> {
        let (envs, actions) = (self.envs(envs)?, actions.as_array());
        if actions.len() != envs.len() {
            return Err(PyValueError::new_err(format!(
                "actions: got shape [{}], expected [{}]",
                actions.len(),
                envs.len()
            )));
        }
        if let Some((env, action)) = envs
            .iter()
            .zip(actions)
            .find(|(_, action)| action.checked_sub(start).is_none_or(|choice| !(0..count).contains(&choice)))
        {
            return Err(PyValueError::new_err(format!(
                "actions: got {action} for environment {env}, expected {start} to {}",
                start + count - 1
            )));
        }
        for (env, action) in envs.into_iter().zip(actions) {
            let (row, bytes) = self.board.row(index, env);
            assert_eq!(bytes, 8, "a region of choices has 8 bytes per environment");
            // SAFETY: the row has 8 bytes, and its slot is the parent's.
            unsafe { row.cast::<i64>().write_unaligned(action - start) };
        }
        Ok(())
    }

    /// Hands environments (all if `None`) to their workers; `own` is the parent's own worker number, which needs no
    /// bell.
    #[pyo3(signature = (own, envs=None))]
    fn post(&self, own: Option<usize>, envs: Option<Vec<i64>>) -> PyResult<()> {
        let board = &self.board;
        let mut rung = vec![false; board.num_workers()];
        for env in self.envs(envs)? {
            board.post(env);
            rung[board.worker(env)] = true;
        }
        for (worker, _) in rung.iter().enumerate().filter(|(worker, rung)| **rung && Some(*worker) != own) {
            board.wake(worker);
        }
        Ok(())
    }

    /// Waits until `wanted` environments are done; False if they are not after `seconds`.
    fn wait(&self, py: Python<'_>, wanted: usize, seconds: f64) -> PyResult<bool> {
        let timeout = duration(seconds)?;
        Ok(py.detach(|| self.board.wait(wanted, timeout)))
    }

    /// Takes the results of environments (all if `None`), which must be done.
    #[pyo3(signature = (envs=None))]
    fn take<'py>(&self, py: Python<'py>, envs: Option<Vec<i64>>) -> PyResult<Results<'py>> {
        let envs = self.envs(envs)?;
        let outcomes: Vec<Outcome> = envs.iter().map(|env| self.board.take(*env)).collect();
        Ok((
            PyArray1::from_iter(py, outcomes.iter().map(|outcome| outcome.reward)),
            PyArray1::from_iter(py, outcomes.iter().map(|outcome| outcome.terminated)),
            PyArray1::from_iter(py, outcomes.iter().map(|outcome| outcome.truncated)),
            envs.iter().zip(&outcomes).filter_map(|(env, outcome)| outcome.more.then_some(*env)).collect(),
        ))
    }

    /// Environments that are done, longest first.
    fn ready(&self) -> Vec<usize> {
        self.board.ready()
    }

    /// Environments that are handed over and not done.
    fn pending(&self) -> Vec<usize> {
        (0..self.board.num_envs()).filter(|env| self.board.posted(*env)).collect()
    }

    /// Gives results in the place of a worker that died; more is kept for the environment.
    fn cut_off(&self, env: i64) -> PyResult<()> {
        let outcome = Outcome { truncated: true, more: true, ..Outcome::default() };
        self.board.finish(self.env(env)?, outcome);
        Ok(())
    }

    fn set_ended(&self, env: i64, ended: bool) -> PyResult<()> {
        self.board.set_ended(self.env(env)?, ended);
        Ok(())
    }

    /// Which environments are to be reset by their next step.
    fn ended<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<bool>> {
        PyArray1::from_iter(py, (0..self.board.num_envs()).map(|env| self.board.ended(env)))
    }

    /// Gives a worker an order, which makes it return from `serve` or `listen` once it has stepped what it was posted.
    fn order(&self, py: Python<'_>, worker: i64, order: &[u8]) -> PyResult<()> {
        let worker = self.worker(worker)?;
        let desk = self.board.desk(worker);
        py.detach(|| self.board.write_mail(desk, order)).map_err(to_python)?;
        self.board.post(desk);
        self.board.wake(worker);
        Ok(())
    }

    /// For a worker without regions: waits for an order.
    fn listen(&self, py: Python<'_>, worker: i64) -> PyResult<()> {
        let worker = self.worker(worker)?;
        self.board.serve(worker, |_| Ok(()), |wait| py.detach(wait))
    }

    /// For a worker: what it was ordered.
    fn read_order<'py>(&self, py: Python<'py>, worker: i64) -> PyResult<Bound<'py, PyBytes>> {
        self.read(py, self.board.desk(self.worker(worker)?))
    }

    /// For a worker: the answer to its order.
    fn answer(&self, py: Python<'_>, worker: i64, answer: &[u8]) -> PyResult<()> {
        let desk = self.board.desk(self.worker(worker)?);
        py.detach(|| self.board.write_mail(desk, answer)).map_err(to_python)?;
        self.board.finish(desk, Outcome::default());
        Ok(())
    }

    /// A worker's answer to its order, or None if there is none after `seconds`.
    fn take_answer<'py>(&self, py: Python<'py>, worker: i64, seconds: f64) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let (worker, timeout) = (self.worker(worker)?, duration(seconds)?);
        if !py.detach(|| self.board.wait_for_order(worker, timeout)) {
            return Ok(None);
        }
        let desk = self.board.desk(worker);
        self.board.take(desk);
        self.read(py, desk).map(Some)
    }

    /// Whether a worker was given an order whose answer has not been taken.
    fn owes(&self, worker: i64) -> PyResult<bool> {
        let desk = self.board.desk(self.worker(worker)?);
        Ok(self.board.posted(desk) || self.board.is_done(desk))
    }

    /// A new worker takes the place of one that died, whose order is not for it.
    fn forget(&self, worker: i64) -> PyResult<()> {
        self.board.take(self.board.desk(self.worker(worker)?));
        Ok(())
    }

    /// Seconds until a worker without work answers, or None after `seconds`.
    fn echo(&self, py: Python<'_>, worker: i64, seconds: f64) -> PyResult<Option<f64>> {
        let (worker, timeout) = (self.worker(worker)?, duration(seconds)?);
        Ok(py.detach(|| self.board.echo(worker, timeout)).map(|time| time.as_secs_f64()))
    }

    /// Puts bytes into the mail of an environment.
    fn write_mail(&self, py: Python<'_>, env: i64, bytes: &[u8]) -> PyResult<()> {
        let env = self.env(env)?;
        py.detach(|| self.board.write_mail(env, bytes)).map_err(to_python)
    }

    /// The mail of an environment, which may be read once.
    fn read_mail<'py>(&self, py: Python<'py>, env: i64) -> PyResult<Bound<'py, PyBytes>> {
        self.read(py, self.env(env)?)
    }

    /// Ends this process soon after the one with the number `parent`.
    #[staticmethod]
    fn die_with_parent(parent: u32) -> PyResult<()> {
        #[cfg(unix)]
        return Ok(drama_core::die_with_parent(parent)?);
        #[cfg(not(unix))]
        Err(PyValueError::new_err(format!("process {parent}: worker processes need Linux or macOS")))
    }
}
