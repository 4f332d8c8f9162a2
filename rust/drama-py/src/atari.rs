//! `AtariStepper`: one agent step of an emulator in one call.

use std::sync::{Mutex, MutexGuard};

use drama_core::{Colours, Moment, Screens, Source, Stack, Sticky};
use numpy::{PyArray1, PyArrayDyn, PyArrayMethods, PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    intern,
    prelude::*,
    types::{PyBytes, PyDict},
};

use crate::{
    arrays::{bytes, natural},
    error::to_python,
};

/// Random numbers of the sticky actions, where they stand, and the action that may be repeated.
type StickyState = (Vec<u32>, usize, i64);

/// Frame skip, maximum over the last two frames, resize by area and stack, as
/// `gymnasium.wrappers.AtariPreprocessing` and `FrameStackObservation` do them, around an `ale_py.ALEInterface` with a
/// game loaded.
#[pyclass(frozen, module = "drama._native")]
pub(crate) struct AtariStepper {
    ale: Py<PyAny>,
    act: Py<PyAny>,
    game_over: Py<PyAny>,
    lives: Py<PyAny>,
    get_screen: Py<PyAny>,
    game_over_options: Py<PyDict>,
    /// The emulator draws here: colour indices, and colours when one is to be learnt.
    indices: Py<PyUntypedArray>,
    rendered: Py<PyUntypedArray>,
    render: &'static str,
    frame_skip: usize,
    pool: bool,
    life_loss_terminal: bool,
    shape: Vec<usize>,
    game: Mutex<Game>,
}

/// What changes from step to step.
struct Game {
    screens: Screens,
    stack: Stack,
    sticky: Option<Sticky>,
    lives: i64,
}

impl AtariStepper {
    /// Python code called on the way could come back here, so nothing waits for the lock.
    fn game(&self) -> PyResult<MutexGuard<'_, Game>> {
        self.game.try_lock().map_err(|_| PyRuntimeError::new_err("the stepper is in use by another call"))
    }

    fn output<'py>(&self, out: &Bound<'py, PyAny>) -> PyResult<PyReadwriteArrayDyn<'py, u8>> {
        let shape = &self.shape;
        let refuse = |got: String| {
            PyValueError::new_err(format!(
                "out: got {got}, expected a writable C-contiguous uint8 array of shape {shape:?}"
            ))
        };
        let Ok(array) = out.cast::<PyArrayDyn<u8>>() else {
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
    fn grab(&self, py: Python<'_>, screens: &mut Screens, moment: Moment) -> PyResult<()> {
        let indices = self.indices.bind(py);
        self.get_screen.bind(py).call1((indices,))?;
        if !screens.take(moment, bytes(indices)).map_err(to_python)? {
            let rendered = self.rendered.bind(py);
            self.ale.bind(py).call_method1(self.render, (rendered,))?;
            screens.learn(bytes(indices), bytes(rendered)).map_err(to_python)?;
            screens.take(moment, bytes(indices)).map_err(to_python)?;
        }
        Ok(())
    }

    /// One emulator frame.
    fn frame(&self, py: Python<'_>, game: &mut Game, action: i64) -> PyResult<f64> {
        let action = game.sticky.as_mut().map_or(action, |sticky| sticky.choose(action));
        self.act.bind(py).call1((action,))?.extract()
    }

    fn lives(&self, py: Python<'_>) -> PyResult<i64> {
        self.lives.bind(py).call0()?.extract()
    }

    /// Whether the game has ended, and whether it was cut off.
    fn ended(&self, py: Python<'_>) -> PyResult<(bool, bool)> {
        let game_over = self.game_over.bind(py);
        if !game_over.call0()?.extract::<bool>()? {
            return Ok((false, false));
        }
        let terminated = game_over.call((), Some(self.game_over_options.bind(py)))?;
        let truncated = self.ale.bind(py).call_method0(intern!(py, "game_truncated"))?;
        Ok((terminated.extract()?, truncated.extract()?))
    }
}

#[pymethods]
impl AtariStepper {
    #[new]
    #[pyo3(signature = (
        ale, *, frame_skip, size, grayscale, pool = true, stack = 1, repeat_action_probability = 0.0,
        life_loss_terminal = false
    ))]
    #[allow(clippy::too_many_arguments)] // Keywords in Python.
    fn new(
        ale: &Bound<'_, PyAny>,
        frame_skip: i64,
        size: (i64, i64),
        grayscale: bool,
        pool: bool,
        stack: i64,
        repeat_action_probability: f64,
        life_loss_terminal: bool,
    ) -> PyResult<Self> {
        let py = ale.py();
        let frame_skip = natural("frame_skip", frame_skip)?;
        if frame_skip == 0 {
            return Err(PyValueError::new_err("frame_skip must be at least 1, got 0"));
        }
        let size = (natural("size", size.0)?, natural("size", size.1)?);
        let depth = natural("stack", stack)?;
        let (height, width): (usize, usize) = ale.call_method0(intern!(py, "getScreenDims"))?.extract()?;
        let (colours, render) =
            if grayscale { (Colours::Gray, "getScreenGrayscale") } else { (Colours::Rgb, "getScreenRGB") };
        let screens = Screens::new(height, width, size, colours).map_err(to_python)?;
        let stack = Stack::new(depth, screens.frame().len()).map_err(to_python)?;
        let sticky = Sticky::new(repeat_action_probability).map_err(to_python)?;
        let screen = |channels: usize| PyArray1::<u8>::zeros(py, height * width * channels, false);
        let rendered = if grayscale {
            screen(1).reshape([height, width])?.into_any()
        } else {
            screen(3).reshape([height, width, 3])?.into_any()
        };
        let game_over_options = PyDict::new(py);
        game_over_options.set_item("with_truncation", false)?;
        let frame = [size.0, size.1, colours.channels()];
        Ok(Self {
            act: ale.getattr(intern!(py, "act"))?.unbind(),
            game_over: ale.getattr(intern!(py, "game_over"))?.unbind(),
            lives: ale.getattr(intern!(py, "lives"))?.unbind(),
            get_screen: ale.getattr(intern!(py, "getScreen"))?.unbind(),
            game_over_options: game_over_options.unbind(),
            ale: ale.clone().unbind(),
            indices: screen(1).reshape([height, width])?.into_any().cast_into::<PyUntypedArray>()?.unbind(),
            rendered: rendered.cast_into::<PyUntypedArray>()?.unbind(),
            render,
            frame_skip,
            pool: pool && frame_skip > 1,
            life_loss_terminal,
            shape: if depth == 1 { frame.to_vec() } else { [&[depth], &frame[..]].concat() },
            game: Mutex::new(Game {
                screens,
                stack,
                sticky: (repeat_action_probability > 0.0).then_some(sticky),
                lives: 0,
            }),
        })
    }

    /// To be called where the emulator was reset; `seed` is the seed that it was given, if any.
    #[pyo3(signature = (seed = None))]
    fn begin(&self, seed: Option<u32>) -> PyResult<()> {
        if let Some(sticky) = &mut self.game()?.sticky {
            sticky.forget();
            if let Some(seed) = seed {
                sticky.seed(seed);
            }
        }
        Ok(())
    }

    /// Plays one emulator frame that is not shown.
    fn act(&self, py: Python<'_>, action: i64) -> PyResult<f64> {
        self.frame(py, &mut *self.game()?, action)
    }

    /// Starts from the emulator's present screen and writes the observation to `out`; gives the lives.
    fn reset(&self, out: &Bound<'_, PyAny>) -> PyResult<i64> {
        let py = out.py();
        let (mut out, mut game) = (self.output(out)?, self.game()?);
        let Game { screens, stack, lives, .. } = &mut *game;
        self.grab(py, screens, Moment::Last)?;
        *lives = self.lives(py)?;
        let out = out.as_slice_mut()?;
        py.detach(|| {
            screens.compose(Source::Last);
            stack.fill(screens.frame());
            stack.write(out);
        });
        Ok(*lives)
    }

    /// Repeats `action` and writes the observation to `out`; gives reward, terminated, truncated, lives and whether
    /// one was lost.
    fn step(&self, action: i64, out: &Bound<'_, PyAny>) -> PyResult<(f64, bool, bool, i64, bool)> {
        let py = out.py();
        let (mut out, mut game) = (self.output(out)?, self.game()?);
        let game = &mut *game;
        let (mut reward, mut terminated, mut truncated, mut lives) = (0.0, false, false, game.lives);
        let mut source = None;
        for left in (0..self.frame_skip).rev() {
            reward += self.frame(py, game, action)?;
            (terminated, truncated) = self.ended(py)?;
            if self.life_loss_terminal {
                let before = std::mem::replace(&mut lives, self.lives(py)?);
                terminated |= lives < before;
            }
            if terminated || truncated {
                break;
            }
            match left {
                1 if self.pool => {
                    self.grab(py, &mut game.screens, Moment::Previous)?;
                    source = Some(Source::ShownAndPrevious);
                }
                0 => {
                    self.grab(py, &mut game.screens, Moment::Last)?;
                    source = Some(if self.pool { Source::Both } else { Source::Last });
                }
                _ => {}
            }
        }
        let Game { screens, stack, .. } = game;
        let out = out.as_slice_mut()?;
        py.detach(|| {
            if let Some(source) = source {
                screens.compose(source);
            }
            stack.push(screens.frame());
            stack.write(out);
        });
        let lives = self.lives(py)?;
        let before = std::mem::replace(&mut game.lives, lives);
        Ok((reward, terminated, truncated, lives, lives < before))
    }

    /// What decides the future beside the emulator's own state, for `set_state`.
    #[allow(clippy::type_complexity)] // One value, opaque to its users.
    fn state<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>, Option<StickyState>, i64)> {
        let game = self.game()?;
        let mut frames = vec![0; game.stack.nbytes()];
        game.stack.write(&mut frames);
        let sticky = game.sticky.as_ref().map(|sticky| {
            let (words, next, action) = sticky.state();
            (words.to_vec(), next, action)
        });
        Ok((PyBytes::new(py, game.screens.state()), PyBytes::new(py, &frames), sticky, game.lives))
    }

    /// Takes over what `state` gave.
    fn set_state(&self, state: (Vec<u8>, Vec<u8>, Option<StickyState>, i64)) -> PyResult<()> {
        let mut game = self.game()?;
        let (screen, frames, sticky, lives) = state;
        game.screens.set_state(&screen).map_err(to_python)?;
        game.stack.read(&frames).map_err(to_python)?;
        match (&mut game.sticky, sticky) {
            (Some(own), Some((words, next, action))) => own.set_state(&words, next, action).map_err(to_python)?,
            (None, None) => {}
            _ => return Err(PyValueError::new_err("the state is of other sticky actions: one has none")),
        }
        game.lives = lives;
        Ok(())
    }
}
