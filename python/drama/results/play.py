"""Watching an agent play, and playing inside its world model."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from drama.agent.player import Player
from drama.config import Config
from drama.envs import AtariEnv, failing, known_game, make_env
from drama.interface import Continuous, Interface, Observations
from drama.results.dream import RealPlay
from drama.results.evaluation import load_learner, scored
from drama.training.pictures import picture

Picture = NDArray[np.uint8]  # [H, W, 1 or 3]
EMULATOR_FPS = 60
STEPS_PER_SECOND = 30  # of environments that are no Atari games
BUTTONS = {"up": "UP", "down": "DOWN", "left": "LEFT", "right": "RIGHT", "space": "FIRE"}  # pygame's names of keys
END = 0.5  # a predicted continuation below this ends a dream, as it ends an imagined trajectory


class Played(NamedTuple):
    """One step of an agent in the real game."""

    picture: Picture  # what a person sees, before the action
    episode: int
    step: int
    score: float  # of the episode, before the action
    action: str


def watch(
    run: Path, *, episodes: int, greedy: bool | None, seed: int, device: str = "auto", trust: bool = False
) -> Iterator[Played]:
    """The steps of the last checkpoint's agent in `episodes` episodes; `greedy` None follows the run's protocol."""
    config, learner, _ = load_learner(run, device, trust=trust)
    interface = learner.world_model.interface
    env = make_env(config.game, scored(config).env, pictures=True)
    greedy = config.env.protocol == "paper" if greedy is None else greedy
    player = Player(learner.world_model, learner.agent, 1, greedy=greedy)
    torch.manual_seed(seed)
    observation, _ = env.reset(seed=seed)
    for episode in range(1, episodes + 1):
        score, step, ended = 0.0, 0, False
        while not ended:
            parts = interface.parts(observation)
            batch = {name: array[None] for name, array in parts.items()}
            action = player.act(batch, np.array([step == 0]))[0]
            yield Played(_picture(env, interface, parts), episode, step, score, interface.meaning(action))
            with failing(0):
                observation, reward, terminated, truncated, _ = env.step(action)
            ended = bool(terminated or truncated)
            score += float(reward)
            step += 1
        yield Played(_picture(env, interface, interface.parts(observation)), episode, step, score, "-")
        observation, _ = env.reset()
    env.close()


def _picture(env: gymnasium.Env[Any, Any], interface: Interface, parts: Observations) -> Picture:
    """The environment's own picture where there is one, else what the agent sees."""
    own = env.render() if isinstance(env, AtariEnv) or env.render_mode == "rgb_array" else None
    if isinstance(own, np.ndarray):
        return own
    return picture(interface, {name: torch.from_numpy(array) for name, array in parts.items()})


class Dream:
    """A game inside the world model of a run's last checkpoint, one step for each action.

    Every `restart` plays the real game a little further with the agent, and dreams on from its last steps.

    Args:
        run: the run folder.
        seed: seed of the real game and of all sampling.
        device: `auto`, `cpu` or `cuda`.
        trust: import what an export names to make its environment.
    """

    def __init__(self, run: Path, *, seed: int, device: str = "auto", trust: bool = False) -> None:
        self.config, self._learner, _ = load_learner(run, device, trust=trust)
        self._model = self._learner.world_model
        self.interface = self._model.interface
        self._real = RealPlay(self.config, self._learner, seed)
        self._random = np.random.default_rng(seed)
        self.restart()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin another dream: `frame` is then the last real step, reconstructed, and the score is 0."""
        context = self.config.train.context
        obs, actions, is_first = self._real.last(context, of=context + int(self._random.integers(60)))
        with self._model.autocast():
            self._belief = self._model.recall(self._model.sample(self._model.encode(obs)), actions, is_first)
        self.frame = self._shown()
        self.score, self.reward, self.continuation, self.steps = 0.0, 0.0, 1.0, 0

    @property
    def ended(self) -> bool:
        """Whether the world model has predicted the end of the episode."""
        return self.continuation < END

    @torch.no_grad()
    def step(self, action: Any) -> None:
        """Dream one step; `frame`, `reward`, `continuation` (a probability), `score` and `steps` tell of it."""
        with self._model.autocast():
            taken = torch.from_numpy(np.asarray(action, self.interface.action.dtype)[None]).to(self._learner.device)
            self._belief = self._model.advance(self._belief, taken)
            reward, termination = self._model.predict_outcome(self._belief.d, self._belief.z)
        self.frame = self._shown()
        self.reward = self._model.two_hot.decode(reward).item()
        self.continuation = torch.sigmoid(-termination.float()).item()
        self.score += self.reward
        self.steps += 1

    def _shown(self) -> Picture:
        with self._model.autocast():
            parts = self._model.show(self._belief.z)
        return picture(self.interface, {name: x[0] for name, x in parts.items()})


def action_for(pressed: set[str], interface: Interface) -> Any:
    """The action for the pressed of UP, DOWN, LEFT, RIGHT, FIRE or digits.

    Of continuous actions left and right push the first number to its ends, down and up the second; of several choices
    the first takes the digit that is pressed, the others their first.
    """
    action = interface.action
    if isinstance(action, Continuous):
        pushes = [("LEFT" in pressed, "RIGHT" in pressed), ("DOWN" in pressed, "UP" in pressed)]
        values = np.zeros(action.size, np.float32)
        for i, (down, up) in enumerate(pushes[: action.size]):
            values[i] = float(up) - float(down)
        return values
    if action.single:
        return action_of_keys(pressed, interface.meanings or tuple(map(str, range(action.counts[0]))))
    chosen = np.zeros(len(action.counts), np.int64)
    digits = [int(key) for key in pressed if key.isdigit() and int(key) < action.counts[0]]
    chosen[0] = digits[0] if digits else 0
    return chosen


def action_of_keys(pressed: set[str], meanings: Sequence[str]) -> int:
    """The action for the pressed of UP, DOWN, LEFT, RIGHT, FIRE or digits.

    It is the one that means most of them and nothing else; the first, which in ALE is NOOP, if there is none.
    """
    best, most = 0, 0
    for action, meaning in enumerate(meanings):
        parts = {part for part in ("UP", "DOWN", "LEFT", "RIGHT", "FIRE") if part in meaning} or {str(action)}
        if parts <= pressed and len(parts) > most:
            best, most = action, len(parts)
    return best


def frames_per_second(config: Config, speed: float) -> float:
    """Steps per second at `speed`, where 1 is the speed of the real game."""
    if not speed > 0:
        raise ValueError(f"speed: {speed} must be more than 0; 1 is the speed of the real game")
    if known_game(config.game) is None:
        return speed * STEPS_PER_SECOND / config.env.action_repeat
    return speed * EMULATOR_FPS / config.env.frame_skip


def play_dream(dream: Dream, window: Window, fps: float) -> None:
    """Let a person play: arrows and space act, R starts again, P pauses, Esc or Q quits."""
    paused = False
    while True:
        typed, down = window.keys()
        if typed & {"escape", "q", "quit"}:
            return
        if "r" in typed:
            dream.restart()
        if "p" in typed:
            paused = not paused
        action = action_for({BUTTONS.get(key, key) for key in down}, dream.interface)
        if not (paused or dream.ended):
            dream.step(action)
        state = "the world model predicts the end: R starts again" if dream.ended else "paused" if paused else ""
        lines = [
            f"score {dream.score:.1f}   step {dream.steps}   {state}",
            f"predicted reward {dream.reward:+.2f}   predicted to go on {dream.continuation:.0%}",
            f"{dream.config.game}, all of it dreamt   action {dream.interface.meaning(action)}",
            "arrows and space act   R again   P pause   Esc or Q quit",
        ]
        window.show(dream.frame, lines)
        window.wait(fps)


def play_agent(steps: Iterator[Played], window: Window, fps: float) -> None:
    """Show an agent's steps: P pauses, Esc or Q quits."""
    paused = False
    for played in steps:
        lines = [
            f"score {played.score:g}   episode {played.episode}   step {played.step}   action {played.action}",
            "P pause   Esc or Q quit",
        ]
        while True:
            typed, _ = window.keys()
            if typed & {"escape", "q", "quit"}:
                return
            if "p" in typed:
                paused = not paused
            window.show(played.picture, lines)
            window.wait(fps)
            if not paused:
                break


class Window:
    """A window with a picture and lines of text below it, and the keyboard.

    Args:
        title: the window's title.
        instead: what can be done where no window can be opened.
        size: width and height of the picture in it.

    Raises:
        ValueError: if no window can be opened.
    """

    TEXT = 22  # pixels of a line

    def __init__(self, title: str, instead: str, size: tuple[int, int] = (640, 640), lines: int = 4) -> None:
        import pygame

        self._pygame = pygame
        try:
            pygame.display.init()
            pygame.font.init()
            self._screen = pygame.display.set_mode((size[0], size[1] + self.TEXT * lines + 12))
        except pygame.error as error:
            raise ValueError(f"no window can be opened ({error}); {instead}") from error
        driver = pygame.display.get_driver()
        if driver in ("offscreen", "dummy") and os.environ.get("SDL_VIDEODRIVER") != driver:
            raise ValueError(f"no window can be opened: there is no display; {instead}")
        pygame.display.set_caption(title)
        self._size = size
        self._font = pygame.font.Font(None, self.TEXT)
        self._next = time.perf_counter()
        self._held: set[str] = set()

    def show(self, picture: Picture, lines: Sequence[str]) -> None:
        """Draw a picture `[H, W, 1 or 3]`, as large as fits, and the lines."""
        pygame = self._pygame
        if picture.shape[-1] == 1:
            picture = np.repeat(picture, 3, axis=-1)
        height, width = picture.shape[:2]
        scale = min(self._size[0] / width, self._size[1] / height)
        surface = pygame.surfarray.make_surface(picture.swapaxes(0, 1))
        surface = pygame.transform.scale(surface, (round(width * scale), round(height * scale)))
        self._screen.fill((20, 20, 20))
        self._screen.blit(surface, ((self._size[0] - surface.get_width()) // 2, 0))
        for i, line in enumerate(lines):
            text = self._font.render(line, True, (230, 230, 230))
            self._screen.blit(text, (10, self._size[1] + 8 + i * self.TEXT))
        pygame.display.flip()

    def keys(self) -> tuple[set[str], set[str]]:
        """Names of the keys that went down since the last call, and of those that were down at any time since it.

        The names are pygame's, such as `left`, `space` and `r`; `quit` is the closed window. A key that was tapped
        between two frames counts as down for one, so that no tap is lost.
        """
        pygame = self._pygame
        typed: set[str] = set()
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                typed.add("quit")
            elif event.type == pygame.KEYDOWN:
                typed.add(pygame.key.name(event.key))
                self._held.add(pygame.key.name(event.key))
            elif event.type == pygame.KEYUP:
                self._held.discard(pygame.key.name(event.key))
        return typed, self._held | typed

    def wait(self, fps: float) -> None:
        """Sleep until the next frame is due."""
        now = time.perf_counter()
        self._next = max(self._next + 1 / fps, now)
        time.sleep(self._next - now)

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *error: object) -> None:
        self._pygame.quit()
