//! NumPy arrays as bytes, and the checks on the way.

use drama_core::{DType, Field};
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods, npyffi::flags::NPY_ARRAY_WRITEABLE};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    intern,
    prelude::*,
    types::{PyDict, PyString, PyTuple},
};

use crate::error::to_python;

/// A size given as a Python integer.
pub(crate) fn size(name: &str, value: &Bound<'_, PyAny>) -> PyResult<usize> {
    natural(name, integer(name, value, "63")?)
}

pub(crate) fn natural(name: &str, value: i64) -> PyResult<usize> {
    usize::try_from(value).map_err(|_| PyValueError::new_err(format!("{name} must not be negative, got {value}")))
}

/// A seed given as a Python integer.
pub(crate) fn seed(value: &Bound<'_, PyAny>) -> PyResult<u64> {
    integer("seed", value, "64")
}

fn integer<'py, T: FromPyObjectOwned<'py>>(name: &str, value: &Bound<'py, PyAny>, bits: &str) -> PyResult<T> {
    value.extract().map_err(|_| {
        if value.hasattr("__index__").unwrap_or(false) {
            PyValueError::new_err(format!("{name} must be from 0 to 2**{bits} - 1, got {value}"))
        } else {
            PyTypeError::new_err(format!("{name} must be an integer, got {value:?}"))
        }
    })
}

/// A Python number.
pub(crate) fn number(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    value.extract().map_err(|_| PyTypeError::new_err(format!("{name} must be a number, got {value:?}")))
}

/// The arrays of one `add`, in schema order; `partial` allows to leave fields out. `leading` is the shape before the
/// row's own; its sides that are `None` take their length from the first array. Gives that length, or 1.
pub(crate) fn columns<'py>(
    fields: &[Field],
    given: &Bound<'py, PyDict>,
    leading: &[Option<usize>],
    partial: bool,
) -> PyResult<(usize, Vec<Option<Bound<'py, PyUntypedArray>>>)> {
    for key in given.keys() {
        let name: String = key.extract()?;
        if !fields.iter().any(|field| field.name() == name) {
            let known: Vec<_> = fields.iter().map(Field::name).collect();
            let (hint, known) = (hint(&name, &known), known.join(", "));
            return Err(PyValueError::new_err(format!("unknown field {name:?}, expected {known}{hint}")));
        }
    }
    let mut leading = leading.to_vec();
    let mut columns = Vec::with_capacity(fields.len());
    for field in fields {
        let Some(value) = given.get_item(field.name())? else {
            if partial || field.name() == "is_first" {
                columns.push(None);
                continue;
            }
            return Err(PyValueError::new_err(format!("field {:?} is missing", field.name())));
        };
        columns.push(Some(input(field, &value, &mut leading)?));
    }
    let rows = if leading.len() > 1 { leading[0].unwrap_or(0) } else { 1 };
    Ok((rows, columns))
}

/// The different environments in the int64 array `value`.
pub(crate) fn envs(value: &Bound<'_, PyAny>, num_envs: usize) -> PyResult<Vec<usize>> {
    let dtype = DType::from_name("int64").map_err(to_python)?;
    let field = Field::new("envs", dtype, Vec::new()).map_err(to_python)?;
    let array = input(&field, value, &mut [None])?;
    let number = |bytes: &[u8]| {
        let env = bytes.try_into().map_or(-1, i64::from_ne_bytes);
        usize::try_from(env)
            .map_err(|_| PyValueError::new_err(format!("envs: got {env}, expected indices from 0 to {}", num_envs - 1)))
    };
    bytes(&array).chunks_exact(8).map(number).collect()
}

/// What to give in place of a name that is usual elsewhere.
fn hint(name: &str, known: &[&str]) -> String {
    let ours = match name {
        "done" | "dones" | "terminal" | "terminals" => {
            return "; an episode ends by `terminated`, where nothing is to come, or `truncated`, where it was cut off"
                .into();
        }
        "next_obs" | "next_observation" | "next_observations" | "next_state" | "final_obs" => {
            return "; what follows a row is read from the next one, and after an episode's last row it is what \
                    `set_final` is given; `StepWriter` sees to both"
                .into();
        }
        "observation" | "observations" | "state" | "states" => "obs",
        "act" | "actions" => "action",
        "rew" | "rewards" => "reward",
        "terminateds" | "termination" | "terminations" => "terminated",
        "truncateds" | "truncation" | "truncations" | "timeout" | "timeouts" => "truncated",
        "first" | "is_start" | "episode_start" | "episode_starts" => "is_first",
        _ => return String::new(),
    };
    if known.contains(&ours) { format!("; `{ours}` is what it is called here") } else { String::new() }
}

/// What is given for a field, cast where that loses nothing.
fn input<'py>(
    field: &Field,
    value: &Bound<'py, PyAny>,
    leading: &mut [Option<usize>],
) -> PyResult<Bound<'py, PyUntypedArray>> {
    if let Ok(array) = column(field, value, leading) {
        return Ok(array);
    }
    let py = value.py();
    let cast = py.import(intern!(py, "drama.replay.casting"))?.getattr(intern!(py, "as_column"))?;
    let given = (field.name(), field.dtype().name(), field.shape().len(), leading.to_vec(), value);
    column(field, &cast.call1(given)?, leading)
}

fn column<'py>(
    field: &Field,
    value: &Bound<'py, PyAny>,
    leading: &mut [Option<usize>],
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let refuse = |what: &str, got: String, expected: String| {
        let name = field.name();
        Err(PyValueError::new_err(format!("field {name:?}: got {what} {got}, expected {expected}")))
    };
    let Ok(array) = value.cast::<PyUntypedArray>() else {
        return refuse("type", value.get_type().name()?.to_string(), "a NumPy array".into());
    };
    let dtype = array.dtype();
    // Not by NumPy's own comparison, which needs a second object: of some types there are two alike.
    let native = dtype.is_native_byteorder().unwrap_or(true);
    if !native || dtype.kind() != kind(field.dtype()) || dtype.itemsize() != field.dtype().itemsize() {
        return refuse("dtype", dtype.to_string(), field.dtype().name().into());
    }
    let shape = array.shape();
    let matches = shape.len() == leading.len() + field.shape().len()
        && leading.iter().zip(shape).all(|(side, got)| side.is_none_or(|side| side == *got))
        && shape[leading.len()..] == *field.shape();
    if !matches {
        let sides = leading.iter().map(|side| side.map_or("T".into(), |side| side.to_string()));
        let sides: Vec<String> = sides.chain(field.shape().iter().map(usize::to_string)).collect();
        return refuse("shape", format!("{shape:?}"), format!("[{}]", sides.join(", ")));
    }
    if !array.is_c_contiguous() {
        return refuse("an array that is", "not C-contiguous".into(), "a C-contiguous one".into());
    }
    for (side, got) in leading.iter_mut().zip(shape) {
        *side = Some(*got);
    }
    Ok(array.clone())
}

/// NumPy's letter for the kind of number.
fn kind(dtype: DType) -> u8 {
    match dtype.name().as_bytes()[0] {
        b'f' => b'f',
        b'i' => b'i',
        b'u' => b'u',
        _ => b'b',
    }
}

/// Number of bytes of a contiguous array.
fn nbytes(array: &Bound<'_, PyUntypedArray>) -> usize {
    array.len() * array.dtype().itemsize()
}

/// The bytes of a C-contiguous array.
pub(crate) fn bytes<'a>(array: &'a Bound<'_, PyUntypedArray>) -> &'a [u8] {
    if array.is_empty() {
        return &[];
    }
    // SAFETY: `array` is C-contiguous, so its data spans this many bytes, and is kept alive by the borrow. As for
    // every NumPy function, a thread that writes to it meanwhile gets mixed data, which is plain bytes here.
    unsafe { std::slice::from_raw_parts((*array.as_array_ptr()).fields.data.cast::<u8>(), nbytes(array)) }
}

/// Arrays that a batch is gathered into, `[leading..., ...]` for each field. No two share memory.
pub(crate) struct Outputs<'py>(Vec<(Bound<'py, PyString>, Bound<'py, PyUntypedArray>)>);

impl<'py> Outputs<'py> {
    /// The arrays in `out`, and new ones for the fields that it lacks.
    pub(crate) fn new(
        py: Python<'py>,
        fields: &[Field],
        leading: &[usize],
        out: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Self> {
        if let Some(name) = fields.iter().enumerate().find_map(|(at, field)| {
            fields[..at].iter().any(|other| other.name() == field.name()).then_some(field.name())
        }) {
            return Err(PyValueError::new_err(format!("the batch would have two entries {name:?}")));
        }
        let mut sides: Vec<_> = leading.iter().copied().map(Some).collect();
        let array = |field: &Field| {
            let name = PyString::new(py, field.name());
            let Some(given) = out.map(|out| out.get_item(&name)).transpose()?.flatten() else {
                let shape = [leading, field.shape()].concat();
                let bytes = shape.iter().try_fold(field.dtype().itemsize(), |bytes, side| bytes.checked_mul(*side));
                if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
                    let name = field.name();
                    return Err(PyValueError::new_err(format!(
                        "field {name:?}: a batch {shape:?} is beyond any memory"
                    )));
                }
                let shape = PyTuple::new(py, shape)?;
                let empty = py.import(intern!(py, "numpy"))?.getattr(intern!(py, "empty"))?;
                let array = empty.call1((shape, field.dtype().name()))?.cast_into::<PyUntypedArray>()?;
                return Ok((name, array));
            };
            let array = column(field, &given, &mut sides)?;
            // SAFETY: the array is alive.
            if unsafe { (*array.as_array_ptr()).fields.flags } & NPY_ARRAY_WRITEABLE == 0 {
                return Err(PyValueError::new_err(format!("field {:?}: the array is read-only", field.name())));
            }
            Ok((name, array))
        };
        let arrays = fields.iter().map(array).collect::<PyResult<Vec<_>>>()?;
        let mut spans: Vec<_> = arrays.iter().map(|(_, array)| bytes(array).as_ptr_range()).collect();
        spans.sort_unstable_by_key(|span| span.start);
        if spans.windows(2).any(|pair| pair[0].end > pair[1].start) {
            return Err(PyValueError::new_err("out: two fields share memory"));
        }
        Ok(Self(arrays))
    }

    /// The memory of the arrays.
    pub(crate) fn bytes(&mut self) -> Vec<&mut [u8]> {
        let slice = |(_, array): &(_, Bound<'py, PyUntypedArray>)| {
            if array.is_empty() {
                return &mut [][..];
            }
            // SAFETY: `new` saw to it that the arrays are contiguous, writable and apart, any byte is a valid `u8`,
            // and the borrow of `self` keeps them alive. A thread that uses an array given as `out` gets mixed data.
            unsafe { std::slice::from_raw_parts_mut((*array.as_array_ptr()).fields.data.cast::<u8>(), nbytes(array)) }
        };
        self.0.iter().map(slice).collect()
    }

    /// Hands the arrays over by field name.
    pub(crate) fn into_dict(self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        for (name, array) in self.0 {
            dict.set_item(name, array)?;
        }
        Ok(dict)
    }
}
