//! `AtariStepper`: one agent step of an emulator in one call.

use std::sync::{Mutex, MutexGuard};

use drama_core::{Colours, Screens, Slot};
use numpy::{PyArray1, PyArray3, PyArrayMethods, PyReadwriteArray3, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    intern,
    prelude::*,
    types::{PyBytes, PyDict},
};

use crate::{
    arrays::{bytes, size},
    error::to_python,
};

/// Frame skip, maximum over the last two frames and resize by area, as `gymnasium.wrappers.AtariPreprocessing` does
/// them, around an `ale_py.ALEInterface` with a game loaded.
#[pyclass(frozen, module = "drama._native")]
pub(crate) struct AtariStepper {
    ale: Py<PyAny>,
    act: Py<PyAny>,
    game_over: Py<PyAny>,
    game_over_options: Py<PyDict>,
    /// The emulator draws here: colour indices, and colours when one is to be learnt.
    indices: Py<PyUntypedArray>,
    rendered: Py<PyUntypedArray>,
    render: &'static str,
    frame_skip: usize,
    shape: [usize; 3],
    screens: Mutex<Screens>,
}

impl AtariStepper {
    /// Python code called on the way could come back here, so nothing waits for the lock.
    fn screens(&self) -> PyResult<MutexGuard<'_, Screens>> {
        self.screens.try_lock().map_err(|_| PyRuntimeError::new_err("the stepper is in use by another call"))
    }

    fn output<'py>(&self, out: &Bound<'py, PyAny>) -> PyResult<PyReadwriteArray3<'py, u8>> {
        let shape = self.shape;
        let refuse = |got: String| {
            PyValueError::new_err(format!(
                "out: got {got}, expected a writable C-contiguous uint8 array of shape {shape:?}"
            ))
        };
        let Ok(array) = out.cast::<PyArray3<u8>>() else {
            return Err(refuse(match out.cast::<PyUntypedArray>() {
                Ok(array) => format!("dtype {} and shape {:?}", array.dtype(), array.shape()),
                Err(_) => out.get_type().name()?.to_string(),
            }));
        };
        if array.shape() != shape {
            return Err(refuse(format!("shape {:?}", array.shape())));
        }
        if !array.is_c_contiguous() {
            return Err(refuse("an array that is not C-contiguous".into()));
        }
        array.try_readwrite().map_err(|error| refuse(error.to_string()))
    }

    /// Takes the emulator's screen, asking it for colours only where one is new.
    fn grab(&self, py: Python<'_>, screens: &mut Screens, slot: Slot) -> PyResult<()> {
        let (ale, indices) = (self.ale.bind(py), self.indices.bind(py));
        ale.call_method1(intern!(py, "getScreen"), (indices,))?;
        if !screens.take(slot, bytes(indices)).map_err(to_python)? {
            let rendered = self.rendered.bind(py);
            ale.call_method1(self.render, (rendered,))?;
            screens.learn(bytes(indices), bytes(rendered)).map_err(to_python)?;
            screens.take(slot, bytes(indices)).map_err(to_python)?;
        }
        Ok(())
    }

    fn show(&self, py: Python<'_>, screens: &mut Screens, out: &mut PyReadwriteArray3<'_, u8>) -> PyResult<()> {
        let out = out.as_slice_mut()?;
        let pooled = self.frame_skip > 1;
        py.detach(|| {
            if pooled {
                screens.pool();
            }
            screens.show(out)
        })
        .map_err(to_python)
    }

    /// Whether the game has ended, and whether it was cut off.
    fn ended(&self, py: Python<'_>) -> PyResult<(bool, bool)> {
        let terminated = self.game_over.bind(py).call((), Some(self.game_over_options.bind(py)))?;
        let truncated = self.ale.bind(py).call_method0(intern!(py, "game_truncated"))?;
        Ok((terminated.extract()?, truncated.extract()?))
    }
}

#[pymethods]
impl AtariStepper {
    #[new]
    #[pyo3(signature = (ale, *, frame_skip, size, grayscale))]
    fn new(ale: &Bound<'_, PyAny>, frame_skip: i64, size: (i64, i64), grayscale: bool) -> PyResult<Self> {
        let py = ale.py();
        let frame_skip = self::size("frame_skip", frame_skip)?;
        if frame_skip == 0 {
            return Err(PyValueError::new_err("frame_skip must be at least 1, got 0"));
        }
        let size = (self::size("size", size.0)?, self::size("size", size.1)?);
        let (height, width): (usize, usize) = ale.call_method0(intern!(py, "getScreenDims"))?.extract()?;
        let (colours, render) =
            if grayscale { (Colours::Gray, "getScreenGrayscale") } else { (Colours::Rgb, "getScreenRGB") };
        let screens = Screens::new(height, width, size, colours).map_err(to_python)?;
        let screen = |channels: usize| PyArray1::<u8>::zeros(py, height * width * channels, false);
        let rendered = if grayscale {
            screen(1).reshape([height, width])?.into_any()
        } else {
            screen(3).reshape([height, width, 3])?.into_any()
        };
        let game_over_options = PyDict::new(py);
        game_over_options.set_item("with_truncation", false)?;
        Ok(Self {
            act: ale.getattr(intern!(py, "act"))?.unbind(),
            game_over: ale.getattr(intern!(py, "game_over"))?.unbind(),
            game_over_options: game_over_options.unbind(),
            ale: ale.clone().unbind(),
            indices: screen(1).reshape([height, width])?.into_any().cast_into::<PyUntypedArray>()?.unbind(),
            rendered: rendered.cast_into::<PyUntypedArray>()?.unbind(),
            render,
            frame_skip,
            shape: [size.0, size.1, colours.channels()],
            screens: Mutex::new(screens),
        })
    }

    /// Starts from the emulator's present screen and writes the observation to `out`.
    fn reset(&self, out: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = out.py();
        let (mut out, mut screens) = (self.output(out)?, self.screens()?);
        self.grab(py, &mut screens, Slot::Last)?;
        screens.clear_previous();
        self.show(py, &mut screens, &mut out)
    }

    /// Repeats `action` and writes the observation to `out`; gives reward, terminated, truncated and lives.
    fn step(&self, action: i64, out: &Bound<'_, PyAny>) -> PyResult<(f64, bool, bool, i64)> {
        let py = out.py();
        let (mut out, mut screens) = (self.output(out)?, self.screens()?);
        let act = self.act.bind(py);
        let (mut reward, mut terminated, mut truncated) = (0.0, false, false);
        for left in (0..self.frame_skip).rev() {
            reward += act.call1((action,))?.extract::<f64>()?;
            (terminated, truncated) = self.ended(py)?;
            if terminated || truncated {
                break;
            }
            match left {
                1 => self.grab(py, &mut screens, Slot::Previous)?,
                0 => self.grab(py, &mut screens, Slot::Last)?,
                _ => {}
            }
        }
        self.show(py, &mut screens, &mut out)?;
        let lives = self.ale.bind(py).call_method0(intern!(py, "lives"))?.extract()?;
        Ok((reward, terminated, truncated, lives))
    }

    /// The two screens that the next step may still show, for `set_state`.
    fn state<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        let screens = self.screens()?;
        Ok((PyBytes::new(py, screens.screen(Slot::Last)), PyBytes::new(py, screens.screen(Slot::Previous))))
    }

    /// Takes over what `state` gave.
    fn set_state(&self, state: (Vec<u8>, Vec<u8>)) -> PyResult<()> {
        self.screens()?.set_screens(&state.0, &state.1).map_err(to_python)
    }
}
