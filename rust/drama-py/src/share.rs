//! `EnvShare`: the environments that one process steps.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use drama_core::{Board, Outcome};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::{
    exceptions::{PyException, PyRuntimeError, PyTypeError, PyValueError},
    intern,
    prelude::*,
    types::{PyDict, PyList, PyMapping, PyTuple},
};

use crate::{arrays::bytes, vector::VectorBoard};

#[derive(Clone, Copy, PartialEq)]
enum Autoreset {
    NextStep,
    SameStep,
    Disabled,
}

/// The calls of one environment, looked up once. With `out`, its row of the observations, it is one that writes there.
struct Calls {
    step: Py<PyAny>,
    reset: Py<PyAny>,
    out: Option<Py<PyAny>>,
}

type StepResetOut = (Py<PyAny>, Py<PyAny>, Option<Py<PyAny>>);

/// What an environment's `step` or `reset` left to say.
struct Extra<'py> {
    info: Option<Bound<'py, PyAny>>,
    last: Option<Bound<'py, PyTuple>>,
    objects: Option<Bound<'py, PyAny>>,
}

/// What is wrong with a part of what an environment gave.
fn wrong(what: &str, value: &Bound<'_, PyAny>, expected: &str) -> PyErr {
    PyTypeError::new_err(format!("{what}: got {value:?}, expected {expected}"))
}

/// What an environment's call named `what` gave, which are `count` values in a tuple or a list.
fn parts<'py>(what: &str, result: &Bound<'py, PyAny>, count: usize, expected: &str) -> PyResult<Bound<'py, PyTuple>> {
    let values = match result.cast::<PyTuple>() {
        Ok(values) => values.clone(),
        Err(_) => result.cast::<PyList>().map_err(|_| wrong(what, result, expected))?.to_tuple(),
    };
    if values.len() != count {
        let got = values.len();
        return Err(PyTypeError::new_err(format!("{what}: got {got} values, expected {expected}")));
    }
    Ok(values)
}

/// What 0 or 1 stands for, as in an array or a tensor of one element.
fn boolean(value: &Bound<'_, PyAny>) -> Option<bool> {
    let is = |number: u8| value.eq(number).unwrap_or(false);
    if is(1) { Some(true) } else { is(0).then_some(false) }
}

/// A deep copy, or the object itself where it cannot be copied.
fn kept<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let py = object.py();
    let copied = py.import(intern!(py, "copy"))?.call_method1(intern!(py, "deepcopy"), (object,));
    copied.or_else(|error| if error.is_instance_of::<PyException>(py) { Ok(object.clone()) } else { Err(error) })
}

/// Steps one worker's environments on a `VectorBoard`.
#[pyclass(frozen, module = "drama._native")]
pub(crate) struct EnvShare {
    board: Arc<Board>,
    worker: usize,
    autoreset: Autoreset,
    calls: Vec<Calls>,
    /// The actions of region 0 as Python objects, where there are few.
    choices: Vec<Py<PyAny>>,
    decode: Py<PyAny>,
    /// The region of the observations and their dtype and shape, where they are one array.
    row: Option<(usize, Py<PyArrayDescr>, Vec<usize>)>,
    encode: Py<PyAny>,
    /// Info fields that lie in shared memory.
    infos: Vec<(String, Py<PyAny>)>,
    keep: Py<PyAny>,
    /// Where `run` goes on.
    turn: AtomicUsize,
}

impl EnvShare {
    fn calls(&self, env: usize) -> &Calls {
        &self.calls[env - self.board.share(self.worker).start]
    }

    fn action<'py>(&self, py: Python<'py>, env: usize) -> PyResult<Bound<'py, PyAny>> {
        if self.choices.is_empty() {
            return self.decode.bind(py).call1((env,));
        }
        let (row, _) = self.board.row(0, env);
        // SAFETY: a region of choices has 8 bytes per environment, and this one is ours to step.
        let choice = unsafe { row.cast::<i64>().read_unaligned() };
        let choice = usize::try_from(choice).ok().and_then(|choice| self.choices.get(choice));
        choice.map(|choice| choice.bind(py).clone()).ok_or_else(|| PyValueError::new_err("action: out of range"))
    }

    /// Puts an observation into its place; gives what of it has none.
    fn observe<'py>(&self, env: usize, observation: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let py = observation.py();
        if let (Some((region, dtype, shape)), Ok(array)) = (&self.row, observation.cast_exact::<PyUntypedArray>())
            && array.shape() == shape
            && array.dtype().is_equiv_to(dtype.bind(py))
            && array.is_c_contiguous()
        {
            let (from, (to, len)) = (bytes(array), self.board.row(*region, env));
            assert_eq!(from.len(), len, "the region was laid out for this shape and dtype");
            // SAFETY: the row has as many bytes and is ours; an observation that lies in it is allowed.
            unsafe { std::ptr::copy(from.as_ptr(), to, len) };
            return Ok(None);
        }
        let objects = self.encode.bind(py).call1((env, observation))?;
        Ok((!objects.is_none()).then_some(objects))
    }

    /// Moves what has a place in shared memory out of an info; gives the rest.
    fn inform<'py>(&self, env: usize, info: Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.infos.is_empty() {
            if !info.is_truthy()? {
                return Ok(None);
            }
            let expected = || wrong("info", &info, "a dict");
            return info.cast::<PyMapping>().map(|_| Some(info.clone())).map_err(|_| expected());
        }
        for (name, places) in &self.infos {
            places.bind(info.py()).set_item(env, info.get_item(name)?)?;
        }
        if info.len()? == self.infos.len() {
            return Ok(None);
        }
        let rest = info.cast::<PyDict>()?.copy()?;
        for (name, _) in &self.infos {
            rest.del_item(name)?;
        }
        Ok(Some(rest.into_any()))
    }

    /// Starts an episode.
    fn begin<'py>(&self, py: Python<'py>, env: usize, arguments: Option<&Bound<'py, PyDict>>) -> PyResult<Extra<'py>> {
        let calls = self.calls(env);
        let (info, objects) = if let Some(out) = &calls.out {
            (calls.reset.bind(py).call((out.bind(py),), arguments)?, None)
        } else {
            let result = parts("reset", &calls.reset.bind(py).call((), arguments)?, 2, "observation and info")?;
            (result.get_item(1)?, self.observe(env, &result.get_item(0)?)?)
        };
        self.board.set_ended(env, false);
        Ok(Extra { info: self.inform(env, info)?, last: None, objects })
    }

    fn step<'py>(&self, py: Python<'py>, env: usize) -> PyResult<(Outcome, Extra<'py>)> {
        if self.board.ended(env) && self.autoreset == Autoreset::NextStep {
            return Ok((Outcome::default(), self.begin(py, env, None)?));
        }
        let calls = self.calls(env);
        let action = self.action(py, env)?;
        let (observation, result) = if let Some(out) = &calls.out {
            (None, calls.step.bind(py).call1((action, out.bind(py)))?)
        } else {
            let expected = "observation, reward, terminated, truncated and info";
            let result = parts("step", &calls.step.bind(py).call1((action,))?, 5, expected)?;
            (Some(result.get_item(0)?), result.get_slice(1, 5).into_any())
        };
        let result = result.cast_into::<PyTuple>()?;
        let flag = |name, place| {
            let value = result.get_item(place)?;
            value.extract::<bool>().ok().or_else(|| boolean(&value)).ok_or_else(|| wrong(name, &value, "a boolean"))
        };
        let (terminated, truncated) = (flag("terminated", 1)?, flag("truncated", 2)?);
        let (reward, info) = (result.get_item(0)?, result.get_item(3)?);
        let reward = reward.extract().map_err(|_| wrong("reward", &reward, "a number"))?;
        let outcome = Outcome { reward, terminated, truncated, ..Outcome::default() };
        let ended = terminated || truncated;
        if ended && self.autoreset == Autoreset::SameStep {
            let observation = match (observation, &calls.out) {
                (Some(observation), _) => observation,
                (None, Some(out)) => out.bind(py).call_method0(intern!(py, "copy"))?,
                (None, None) => return Err(PyRuntimeError::new_err("step: no observation")),
            };
            if calls.out.is_none() {
                self.observe(env, &observation)?; // only to be checked: the first of the next episode comes there
            }
            // The environment may give the same objects again, and write over them in its reset.
            let last = (kept(&observation)?, kept(&info)?).into_pyobject(py)?;
            let extra = self.begin(py, env, None)?;
            return Ok((outcome, Extra { last: Some(last), ..extra }));
        }
        let objects = observation.map(|observation| self.observe(env, &observation)).transpose()?.flatten();
        self.board.set_ended(env, ended);
        Ok((outcome, Extra { info: self.inform(env, info)?, last: None, objects }))
    }

    /// Steps one environment and hands over what came out, an exception included.
    fn work(&self, py: Python<'_>, env: usize) -> PyResult<()> {
        let (mut outcome, payload) = match self.step(py, env) {
            Ok((outcome, Extra { info: None, last: None, objects: None })) => {
                self.board.finish(env, outcome);
                return Ok(());
            }
            Ok((outcome, Extra { info, last, objects })) => {
                (outcome, (info, last, objects).into_pyobject(py)?.into_any())
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                (Outcome::default(), error.into_value(py).into_bound(py).into_any())
            }
            Err(error) => return Err(error),
        };
        self.keep.bind(py).call1((env, payload))?;
        outcome.more = true;
        self.board.finish(env, outcome);
        Ok(())
    }
}

#[pymethods]
impl EnvShare {
    /// `calls` are `(step, reset, out)` of each environment, where `out` is None, or its row of the observations if
    /// `step` and `reset` write there. `choices` are the actions of region 0 if it holds discrete ones; otherwise
    /// `decode(env)` gives the action. `row` is `(region, dtype, shape)` of observations that are one array; what
    /// does not match goes through `encode(env, observation)`, which returns what is left over. `infos` are fields of
    /// the infos and the arrays they are written to. `keep(env, payload)` stores what else there is.
    #[new]
    #[pyo3(signature = (board, worker, autoreset, calls, *, choices, decode, row, encode, infos, keep))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        board: &Bound<'_, VectorBoard>,
        worker: i64,
        autoreset: &str,
        calls: Vec<StepResetOut>,
        choices: Vec<Py<PyAny>>,
        decode: Py<PyAny>,
        row: Option<(usize, Py<PyArrayDescr>, Vec<usize>)>,
        encode: Py<PyAny>,
        infos: Vec<(String, Py<PyAny>)>,
        keep: Py<PyAny>,
    ) -> PyResult<Self> {
        let autoreset = match autoreset {
            "NextStep" => Autoreset::NextStep,
            "SameStep" => Autoreset::SameStep,
            "Disabled" => Autoreset::Disabled,
            _ => return Err(PyValueError::new_err(format!("autoreset: {autoreset:?} is unknown"))),
        };
        let worker = board.get().worker(worker)?;
        let board = Arc::clone(&board.get().board);
        if board.share(worker).len() != calls.len() {
            let (got, expected) = (calls.len(), board.share(worker).len());
            return Err(PyValueError::new_err(format!("calls: got {got}, expected {expected}")));
        }
        let calls = calls.into_iter().map(|(step, reset, out)| Calls { step, reset, out }).collect();
        Ok(Self { board, worker, autoreset, calls, choices, decode, row, encode, infos, keep, turn: 0.into() })
    }

    /// Resets an environment with the keyword arguments given; what else it said goes to `keep`'s first result.
    fn reset<'py>(&self, env: usize, arguments: &Bound<'py, PyDict>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let share = self.board.share(self.worker);
        if !share.contains(&env) {
            return Err(PyValueError::new_err(format!("environment: got {env}, expected one of {share:?}")));
        }
        match self.begin(arguments.py(), env, Some(arguments))? {
            Extra { info: None, objects: None, .. } => Ok(None),
            Extra { info, last, objects } => Ok(Some((info, last, objects).into_pyobject(arguments.py())?)),
        }
    }

    /// For the parent: steps its posted environments, at least one, until `enough` of all are done.
    fn run(&self, py: Python<'_>, enough: usize) -> PyResult<()> {
        let (all, share) = (enough >= self.board.num_envs(), self.board.share(self.worker));
        // Going around, or those that are sent again at once would keep the others from their turn.
        let begin = if all { 0 } else { self.turn.load(Relaxed) };
        for offset in 0..share.len() {
            let place = (begin + offset) % share.len();
            let env = share.start + place;
            if self.board.posted(env) {
                self.turn.store(place + 1, Relaxed);
                self.work(py, env)?;
                if !all && self.board.ready().len() >= enough {
                    break;
                }
            }
        }
        Ok(())
    }

    /// For a worker: steps what is posted until there is an order.
    fn serve(&self, py: Python<'_>) -> PyResult<()> {
        self.board.serve(self.worker, |env| self.work(py, env), |wait| py.detach(wait))
    }
}
