"""Every option, in one place: typed dataclasses, the presets, and their JSON form.

The presets are plain values: `paper` holds the numbers of the paper (arXiv 2410.08893), `paper-m` and `paper-l` are the
same in larger sizes, `cpu` is what two cores can train in an evening, `small` learns the small tasks in minutes,
`vector` learns from numbers instead of images, `debug` runs in seconds.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


class _Plain:
    """Takes NumPy's numbers as Python's, and lists where tuples are."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if (plain := _plain(value)) is not value:
                object.__setattr__(self, name, plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class EnvConfig(_Plain):
    """The environment. Those of Atari games alone have the names of Gymnasium's and ale_py's wrappers."""

    protocol: Literal["standard", "paper"] = "standard"
    """`standard`: up to 30 no-ops at reset, sampled actions. `paper`: no no-ops, greedy evaluation."""
    size: int | tuple[int, int] = 64
    """Height and width of a frame in pixels; one number makes a square."""
    grayscale: bool = False
    """One channel instead of three."""
    frame_skip: int = 4
    """Emulator frames per step."""
    pool: bool = True
    """Show the maximum of a step's last two emulator frames, not the last alone."""
    frame_stack: int = 1
    """Frames in an observation: `[H, W, C]` for 1, else `[frame_stack, H, W, C]`, oldest first. Training takes 1."""
    noop_max: int | None = None
    """Largest number of no-ops at reset, of which there is then at least one; None leaves it to the protocol."""
    fire_reset: bool = False
    """Press FIRE for one emulator frame after the no-ops, in games that have it."""
    repeat_action_probability: float = 0.0
    """Sticky actions: the probability that an emulator frame repeats the last frame's action."""
    full_action_space: bool = False
    """All 18 actions instead of those that the game uses."""
    life_loss_terminal: bool = False
    """End the episode where a life is lost. Without it, `info["life_lost"]` tells, and the episode goes on."""
    clip_rewards: bool = False
    """Only the sign of the reward."""
    max_frames: int = 108_000
    """Emulator frames after which an episode is truncated; 0 for no limit."""
    imports: tuple[str, ...] = ()
    """Modules to import first, such as one that registers environments with Gymnasium."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, as JSON: {"continuous": true}. Not for Atari games and small tasks."""
    render: bool = False
    """See the rendered frames instead of the observations."""
    without: tuple[str, ...] = ()
    """Parts of a dictionary observation that are left out."""
    action_repeat: int = 1
    """Steps of the environment for each action, whose rewards are summed. Atari games have `frame_skip`."""
    max_steps: int = 0
    """Steps after which an episode is truncated; 0 leaves it to the environment. Atari games have `max_frames`."""
    check: bool = True
    """Stop where an observation is outside of its space."""

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def noops(self) -> int:
        """The largest number of no-ops at reset."""
        return {"standard": 30, "paper": 0}[self.protocol] if self.noop_max is None else self.noop_max

    def validate(self) -> None:
        """Raise ValueError that names the field, for a value that has no meaning."""
        size, probability = self.size, self.repeat_action_probability
        checks = {
            f"env.protocol: {self.protocol!r} must be 'standard' or 'paper'": self.protocol in ("standard", "paper"),
            f"env.size: {size!r} must be one whole number of at least 1, or two: height and width": (
                _is_whole(size, 1)
                or (isinstance(size, tuple) and len(size) == 2 and all(_is_whole(side, 1) for side in size))
            ),
            f"env.repeat_action_probability: {probability!r} must be a number from 0 to 1": (
                isinstance(probability, int | float) and 0 <= probability <= 1
            ),
        }
        least_of = {
            "frame_skip": 1,
            "frame_stack": 1,
            "noop_max": 0,
            "max_frames": 0,
            "action_repeat": 1,
            "max_steps": 0,
        }
        for name, least in least_of.items():
            value = getattr(self, name)
            fine = _is_whole(value, least) or (name == "noop_max" and value is None)
            checks[f"env.{name}: {value!r} must be a whole number of at least {least}"] = fine
        flags = ("grayscale", "pool", "fire_reset", "full_action_space", "life_loss_terminal", "clip_rewards")
        for name in (*flags, "render", "check"):
            value = getattr(self, name)
            checks[f"env.{name}: {value!r} must be True or False"] = isinstance(value, bool)
        _refuse(checks)


@dataclass(frozen=True)
class VisionConfig(_Plain):
    """The convolutional encoder; the decoder mirrors it."""

    channels: tuple[int, ...] = (16, 32, 48, 64, 64)
    """Output channels of each convolution."""
    strides: tuple[int, ...] = (1, 2, 2, 2, 2)
    """Stride of each convolution. One above 2 takes patches of that side without overlap, whatever the kernel, which
    is much faster on a CPU."""
    kernel: int = 5
    """Kernel size of the other convolutions, odd."""
    output: Literal["sigmoid", "linear"] = "sigmoid"
    """The decoder's last activation."""
    mean_pixel_bias: bool = False
    """Start the decoder's last bias at the mean pixel of the first frames, which shortens the blank-frame plateau."""


@dataclass(frozen=True)
class VectorConfig(_Plain):
    """The encoder and decoder of observations that are numbers: multilayer perceptrons on their symlog."""

    units: int = 256
    """Width of each layer."""
    layers: int = 2
    """Layers of each."""


@dataclass(frozen=True)
class LatentConfig(_Plain):
    """The categorical latent variables."""

    variables: int = 32
    """Number of categorical variables."""
    classes: int = 32
    """Classes of each variable."""
    unimix: float = 0.01
    """Share of the uniform distribution mixed into each."""
    posterior_gain: float = 0.0
    """Batch-normalise the posterior's logits with this gain to begin with, so that it cannot become the same for all
    frames while small objects are still ignored; 0 leaves the logits as they are."""
    local: bool = False
    """Of an observation that is one image, each cell of the encoder's grid has its own share of the variables: told
    from that cell's features alone, by weights that all cells share, and decoded there. So what is learned of an
    object holds wherever the others are. Without, as published, each variable tells of the whole image."""


@dataclass(frozen=True)
class SequenceConfig(_Plain):
    """The sequence model."""

    backend: str = "mamba2"
    """`mamba2`, `mamba`, `transformer`, or the name of a registered one."""
    width: int = 512
    """Width of the model and of its output."""
    layers: int = 2
    """Number of residual layers."""
    state: int = 16
    """State size of each head (mamba2) or channel (mamba)."""
    expand: int = 2
    """Inner width as a multiple of the width (mamba2, mamba)."""
    head_dim: int = 64
    """Channels of each head (mamba2)."""
    groups: int = 1
    """Groups of heads that share their input and output maps (mamba2)."""
    conv: int = 4
    """Width of the causal convolution (mamba2, mamba)."""
    chunk: int = 32
    """Block length of the parallel form, on CUDA at least 128; changes the cost, not the result (mamba2)."""
    kernels: Literal["portable", "mamba_ssm", "auto"] = "auto"
    """What scans the sequence (mamba2): PyTorch, the Triton kernels of `mamba_ssm` on CUDA, or (`auto`) those where
    they are installed and, tried once, agree with PyTorch."""
    heads: int = 8
    """Attention heads (transformer)."""
    window: int = 64
    """Tokens that attention reaches back, the present one included (transformer)."""
    dropout: float = 0.1
    """Dropout rate while training (transformer)."""


@dataclass(frozen=True)
class WorldModelConfig(_Plain):
    """The world model and its losses."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    vector: VectorConfig = field(default_factory=VectorConfig)
    latent: LatentConfig = field(default_factory=LatentConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    head_units: int = 256
    """Hidden width of the reward and termination heads."""
    bins: int = 255
    """Two-hot bins of the reward."""
    bin_limit: float = 20.0
    """The bins span [-limit, limit] in symlog space."""
    reconstruction_scale: float = 1.0
    """Weight of the squared error of images; small gray objects need more than the 1 that suits three channels."""
    vector_scale: float = 1.0
    """Weight of the squared error of numbers, in symlog space."""
    motion_scale: float = 0.0
    """Extra weight of the pixels that change from the frame before or to the next, over the 1 that all have, so that
    small moving objects are seen at all; 0 as published."""
    decoded_share: float = 1.0
    """Share of the steps of a batch, drawn anew for each update, whose images are decoded and scored; 1 as
    published. All numbers are decoded."""
    balance: Literal["fixed", "harmony"] = "fixed"
    """`fixed`: the losses are summed with their scales, as published. `harmony`: observation, reward and latent losses
    are, with their scales, divided by learned sizes besides, so that none of them drowns another (HarmonyDream, arXiv
    2310.00344)."""
    dynamics_scale: float = 1.0
    """Weight of KL(stop(posterior) || prior)."""
    representation_scale: float = 0.1
    """Weight of KL(posterior || stop(prior))."""
    free_bits: float = 1.0
    """Both KL terms count only above this many nats (batch mean)."""
    two_hot_mean: Literal["symlog", "raw"] = "symlog"
    """Where rewards and values are averaged over their bins: in symlog space, as published, which shrinks rare ones
    (1 with a probability of 5 % is read as 0.035), or as they are (DreamerV3 of 2024)."""
    reward_from: Literal["output", "next"] = "output"
    """`output`: the reward of an action is told from the sequence model's output alone, as published. `next`: from it
    and the latent of the observation that followed, which shows what happened (DreamerV3); in imagination from the one
    that is sampled."""
    reset_state: bool = True
    """Forget the past where an episode begins; the published code does not."""


@dataclass(frozen=True)
class AgentConfig(_Plain):
    """The actor, the critic and their losses."""

    policy: Literal["reinforce", "ppo"] = "reinforce"
    """How the actor learns."""
    replay_value_scale: float = 0.0
    """Weight of the critic's loss on real steps of the replay, beside that on imagined ones: 0 as published, 0.3 in
    DreamerV3 of 2024. Needs `train.imagine_from` batch."""
    act_on: Literal["posterior", "prior"] = "posterior"
    """The latent that the actor sees in the real environment: that of the current frame, or the one predicted for it,
    as the published code does."""
    ppo_clip: float = 0.2
    """Clip range of the probability ratio (ppo)."""
    ppo_epochs: int = 3
    """Passes over each imagined batch (ppo)."""
    ppo_minibatch: int = 16_384
    """Imagined steps per gradient step (ppo)."""
    ppo_kl_limit: float = 0.01
    """KL from the acting policy after which the passes stop (ppo)."""
    actor_units: int = 256
    """Width of the actor's layers."""
    critic_units: int = 512
    """Width of the critic's layers."""
    layers: int = 3
    """Layers of each."""
    discount: float = 0.985
    """Discount of one environment step."""
    lambda_: float = 0.95
    """Mixing of the lambda-return."""
    entropy: float = 3e-4
    """Weight of the entropy bonus."""
    unimix: float = 0.0
    """Share of the uniform distribution mixed into the policy (DreamerV3: 0.01)."""
    normalize: bool = True
    """Normalise the features by their running mean and variance, as published."""
    slow_critic_decay: float = 0.98
    """EMA decay of the slow critic per update."""
    return_scale_decay: float = 0.99
    """EMA decay of the 5 % to 95 % range of returns."""


@dataclass(frozen=True)
class TrainConfig(_Plain):
    """Batches, schedules and optimizers."""

    replay_capacity: int = 100_000
    """Rows that the replay holds."""
    num_envs: int = 1
    """Environments that are stepped together; every count of steps is over all of them."""
    start_step: int = 1032
    """Environment steps with random actions before the first update."""
    train_every: int = 1
    """Environment steps per world-model update and agent update."""
    batch_size: int = 16
    """Sequences of a world-model batch."""
    batch_length: int = 128
    """Steps of a world-model sequence."""
    shift: int = 0
    """Move the frames of each world-model sequence together by up to this many pixels, so that few steps are not
    learned by heart (random shifts, arXiv 2004.13649)."""
    imagination_batch: int = 1024
    """Imagined trajectories per agent update."""
    imagine_from: Literal["replay", "batch"] = "replay"
    """Where imaginations start: after steps drawn and encoded for them, as published, or inside the sequences that the
    world model has just learned from, whose latents are known and cost nothing."""
    agent_start: int = 0
    """Environment steps before the first agent update, while the world model is not yet worth following; actions are
    the first policy's, which is almost uniform."""
    context: int = 8
    """Real steps before the imagination starts."""
    horizon: int = 16
    """Imagined steps."""
    sampler: Literal["dfs", "uniform"] = "dfs"
    """How sequences are drawn: dynamic frequency-based sampling, or all alike."""
    dfs_temperature: float = 10.0
    """Temperature of the dynamic frequency-based sampling."""
    world_model_lr: float = 4e-5
    """Learning rate of the world model (LaProp)."""
    agent_lr: float = 4e-5
    """Learning rate of actor and critic (LaProp)."""
    warmup_updates: int = 1000
    """Updates over which both learning rates rise linearly."""
    cooldown: float = 0.0
    """Share of the run, at its end, over which both learning rates fall linearly to a twentieth; 0 as published."""
    statistics_frames: int = 0
    """Frames of the replay on which batch norm's statistics are taken anew after each update of the world model: what
    acts and imagines is then what learned. 0 keeps running means over past batches, as published, which at high rates
    tell of weights that are long gone."""
    world_model_clip: float = 1000.0
    """Gradient-norm limit of the world model."""
    agent_clip: float = 100.0
    """Gradient-norm limit of actor and critic."""
    cuda_graph: bool = True
    """On CUDA, record the imagination and the world-model update once each as a graph and replay them."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile acting and the updates with `torch.compile`. `auto`: on a CPU, where there is a C++ compiler and the run
    is long enough to earn back the minutes that this takes the first time; torch keeps the result on disk."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast on CUDA, and on a CPU that multiplies it in hardware; else float32. On a CPU few
    environments are acted in at float32, which is faster there."""


@dataclass(frozen=True)
class LogConfig(_Plain):
    """What a run writes, and how often."""

    log_every: int = 250
    """Environment steps between two lines of training metrics."""
    image_every: int = 10_000
    """Environment steps between two sets of reconstructions and dreams in TensorBoard."""
    checkpoint_every: int = 10_000
    """Environment steps between two checkpoints."""
    checkpoint_minutes: float = 5.0
    """Minutes between two checkpoints, more where they would take over 1 % of the time; 0 for none by the clock."""
    eval_episodes: int = 10
    """Episodes of the evaluation at the end of a run; 0 leaves it out."""
    eval_envs: int = 8
    """Environments that evaluation steps together."""


@dataclass(frozen=True)
class Config(_Plain):
    """One training run, resolved."""

    game: str = "Pong"
    """An Atari game in any case, as `pong` or `ALE/Pong-v5`; a small task; the id of an environment that is registered
    with Gymnasium; or `package.module:function`, which returns one."""
    preset: str = "paper"
    """Name of the preset that the values started from."""
    steps: int = 100_000
    """Environment steps; one step is `frame_skip` emulator frames."""
    seed: int = 0
    """Seed of everything random."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes CUDA where there is one."""
    threads: int = 0
    """Threads of the updates on a CPU; 0 leaves it to PyTorch: one for each core. Others round otherwise."""
    env: EnvConfig = field(default_factory=EnvConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def validate(self) -> None:
        """Raise ValueError, naming the field, if the values cannot work together."""
        if isinstance(self.env, EnvConfig):
            self.env.validate()
        _check_types(self, "")
        t, vision = self.train, self.world_model.vision
        height, width = self.env.frame_size
        first_batch = t.num_envs * t.batch_length + t.batch_size
        first_batch = max(first_batch, t.statistics_frames)
        if t.imagine_from == "replay":
            first_batch = max(first_batch, t.num_envs * t.context + t.imagination_batch)
        inside = t.batch_size * (t.batch_length - t.context + 1)
        scale = max(1, math.prod(vision.strides))  # of strides that are refused below, too
        cells, latent = (height // scale) ** 2, self.world_model.latent
        checks = {
            f"train.start_step: {t.start_step} rows cannot fill the first batch, which needs {first_batch}; raise it": (
                t.start_step >= first_batch
            ),
            f"steps: {self.steps} is fewer than the warm-up train.start_step = {t.start_step}": (
                self.steps > t.start_step
            ),
            f"train.replay_capacity: {t.replay_capacity} is less than train.start_step = {t.start_step}": (
                t.replay_capacity >= t.start_step
            ),
            f"world_model.vision.strides: {vision.strides} must hold a whole number of at least 1 for each of the"
            f" {len(vision.channels)} channels": (
                len(vision.strides) == len(vision.channels) and all(_is_whole(stride, 1) for stride in vision.strides)
            ),
            f"world_model.vision.kernel: {vision.kernel} must be odd": vision.kernel % 2 == 1,
            f"env.size: {self.env.size} must be square, a multiple of {scale}, the encoder's total stride": (
                height == width and height % scale == 0
            ),
            f"world_model.latent.variables: {latent.variables} must be a multiple of {cells}, the cells of the"
            " encoder's grid (world_model.latent.local)": not latent.local or latent.variables % max(cells, 1) == 0,
            f"env.frame_stack: {self.env.frame_stack} must be 1: the world model's state is its memory": (
                self.env.frame_stack == 1
            ),
            f"train.context: {t.context} must be at least 2": t.context >= 2,
            f"train.batch_length: {t.batch_length} must be more than train.context = {t.context}, to draw dreams": (
                t.batch_length > t.context
            ),
            f"train.cooldown: {t.cooldown} must be from 0 to 1": 0 <= t.cooldown <= 1,
            f"world_model.decoded_share: {self.world_model.decoded_share} must be above 0 and at most 1": (
                0 < self.world_model.decoded_share <= 1
            ),
            f"agent.replay_value_scale: {self.agent.replay_value_scale} has no sequences to learn of with"
            f" train.imagine_from {t.imagine_from!r}, which must be 'batch'": (
                self.agent.replay_value_scale <= 0 or t.imagine_from == "batch"
            ),
            f"agent.unimix: {self.agent.unimix} must be at least 0 and below 1": 0 <= self.agent.unimix < 1,
            f"train.batch_length: {t.batch_length} must be at least train.context = {t.context}, as imaginations start"
            " in these sequences (train.imagine_from)": t.imagine_from == "replay" or t.batch_length >= t.context,
            f"train.imagination_batch: {t.imagination_batch} is more than the {inside} places to start from in"
            f" {t.batch_size} sequences (train.imagine_from)": (
                t.imagine_from == "replay" or t.imagination_batch <= inside
            ),
        }
        not_negative = {
            "seed": self.seed,
            "threads": self.threads,
            "train.shift": t.shift,
            "train.agent_start": t.agent_start,
            "train.statistics_frames": t.statistics_frames,
            "world_model.motion_scale": self.world_model.motion_scale,
            "agent.replay_value_scale": self.agent.replay_value_scale,
            "log.eval_episodes": self.log.eval_episodes,
            "log.checkpoint_minutes": self.log.checkpoint_minutes,
        }
        checks |= {f"{name}: {value} must not be negative": value >= 0 for name, value in not_negative.items()}
        rates = ("world_model_lr", "agent_lr", "world_model_clip", "agent_clip")
        checks |= {f"train.{name}: {getattr(t, name)} must be above 0": getattr(t, name) > 0 for name in rates}
        for name in ("num_envs", "train_every", "batch_size", "batch_length", "imagination_batch", "horizon"):
            checks[f"train.{name}: {getattr(t, name)} must be at least 1"] = getattr(t, name) >= 1
        sizes = {
            **{
                f"world_model.latent.{name}": getattr(self.world_model.latent, name)
                for name in ("variables", "classes")
            },
            **{f"world_model.vector.{name}": getattr(self.world_model.vector, name) for name in ("units", "layers")},
            **{f"agent.{name}": getattr(self.agent, name) for name in ("actor_units", "critic_units", "layers")},
            "world_model.head_units": self.world_model.head_units,
            "world_model.bins": self.world_model.bins - 1,
        }
        checks |= {f"{name}: {value} is too small": value >= 1 for name, value in sizes.items()}
        sequence = self.world_model.sequence
        most = {  # what no weight's shape tells: a config may be somebody else's
            "world_model.sequence.layers": (sequence.layers, 1000),
            "world_model.sequence.chunk": (sequence.chunk, 65_536),
            "world_model.sequence.window": (sequence.window, 65_536),
            "world_model.vector.layers": (self.world_model.vector.layers, 1000),
            "agent.layers": (self.agent.layers, 1000),
        }
        checks |= {f"{name}: {value} must be at most {limit}": value <= limit for name, (value, limit) in most.items()}
        for name in ("log_every", "image_every", "checkpoint_every", "eval_envs"):
            checks[f"log.{name}: {getattr(self.log, name)} must be at least 1"] = getattr(self.log, name) >= 1
        _refuse(checks)

    def to_json(self) -> str:
        """The config as indented JSON; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Config:
        """Read what `to_json` wrote. Missing fields have their defaults; raises ValueError for an unknown one."""
        try:
            values = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        return _structure(Config, values, "")

    @staticmethod
    def load(path: Path) -> Config:
        """Read a run's `config.json`."""
        try:
            return Config.from_json(path.read_text())
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_types(config: Any, prefix: str) -> None:
    """Raise ValueError for the first field that is of another type than it says."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, hint):  # type: ignore[arg-type]
                raise ValueError(f"{prefix}{name}: {value!r} is no {_named(hint)}")
            _check_types(value, f"{prefix}{name}.")
        elif not _is_of(value, hint):
            said = " or ".join(map(repr, get_args(hint))) if get_origin(hint) is Literal else f"of type {_named(hint)}"
            raise ValueError(f"{prefix}{name}: {value!r} must be {said}")


def _is_of(value: Any, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        members = inner[:1] * len(value) if isinstance(value, tuple) and inner[-1] is Ellipsis else inner
        fits = isinstance(value, tuple) and len(value) == len(members)
        return fits and all(_is_of(item, member) for item, member in zip(value, members, strict=True))
    if origin is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if inner:  # a union
        return any(_is_of(value, one) for one in inner)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _named(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if not get_args(hint) else str(hint)


def _refuse(checks: dict[str, bool]) -> None:
    """Raise ValueError with the first message whose check failed."""
    for message, fine in checks.items():
        if not fine:
            raise ValueError(message)


def _structure(cls: Any, values: Any, where: str) -> Any:
    """Build the dataclass `cls` from nested dicts, refusing unknown fields by name."""
    hints = get_type_hints(cls)
    if not isinstance(values, dict):
        raise ValueError(f"{where or 'config'}: expected an object, found {type(values).__name__}")
    for name in values.keys() - hints.keys():
        raise ValueError(f"{where}{name}: unknown field{did_you_mean(name, hints)}")
    out = {}
    for name, hint in hints.items():
        if name not in values:  # of a file from before the field: its default is what the code did then
            continue
        value = values[name]
        if dataclasses.is_dataclass(hint):
            value = _structure(hint, value, f"{where}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        out[name] = value
    return cls(**out)


def _paper() -> Config:
    return Config()


def _paper_times(factor: int, name: str) -> Config:
    """`paper` with every width, channel and number of latent variables times `factor`, and `factor - 1` more layers of
    the sequence model; what the layers see and the schedules stay."""
    paper = _paper()
    model, agent = paper.world_model, paper.agent
    vision, latent, sequence = model.vision, model.latent, model.sequence
    return dataclasses.replace(
        paper,
        preset=name,
        world_model=dataclasses.replace(
            model,
            vision=dataclasses.replace(vision, channels=tuple(factor * count for count in vision.channels)),
            latent=dataclasses.replace(latent, variables=factor * latent.variables),
            sequence=dataclasses.replace(sequence, width=factor * sequence.width, layers=sequence.layers + factor - 1),
            head_units=factor * model.head_units,
        ),
        agent=dataclasses.replace(
            agent, actor_units=factor * agent.actor_units, critic_units=factor * agent.critic_units
        ),
    )


def _paper_m() -> Config:
    return _paper_times(2, "paper-m")


def _paper_l() -> Config:
    return _paper_times(3, "paper-l")


def _cpu() -> Config:
    return Config(
        preset="cpu",
        env=EnvConfig(grayscale=True),
        world_model=WorldModelConfig(
            vision=VisionConfig(
                channels=(32, 48, 64), strides=(4, 2, 2), kernel=3, output="linear", mean_pixel_bias=True
            ),
            latent=LatentConfig(variables=16, classes=16, posterior_gain=3.0),
            sequence=SequenceConfig(width=192, head_dim=32),
            head_units=128,
            reconstruction_scale=8.0,
            motion_scale=30.0,
            free_bits=0.1,
            two_hot_mean="raw",
            bins=127,  # half as many over half the width
            bin_limit=10.0,
        ),
        agent=AgentConfig(actor_units=128, critic_units=128, layers=2, entropy=3e-3),
        train=TrainConfig(
            train_every=4,
            batch_size=8,
            batch_length=64,
            imagination_batch=256,
            imagine_from="batch",
            context=8,
            horizon=12,
            dfs_temperature=1.25,  # as new to rows as the paper's: 10 for 16 sequences a step, here 2
            world_model_lr=2e-3,
            agent_lr=3e-4,
            agent_start=6000,
            warmup_updates=200,
            statistics_frames=128,
        ),
    )


def _small() -> Config:
    cpu = _cpu()
    return dataclasses.replace(
        cpu,
        game="Catch",
        preset="small",
        steps=3000,
        env=EnvConfig(size=32, grayscale=True),
        world_model=dataclasses.replace(
            cpu.world_model,
            vision=dataclasses.replace(cpu.world_model.vision, channels=(32, 64), strides=(4, 2)),
            sequence=dataclasses.replace(cpu.world_model.sequence, width=128),
            reconstruction_scale=32.0,
            motion_scale=0.0,
        ),
        agent=dataclasses.replace(cpu.agent, entropy=1e-3),
        train=dataclasses.replace(
            cpu.train,
            agent_start=0,
            start_step=500,
            train_every=2,
            batch_length=32,
            dfs_temperature=10.0,
            imagine_from="replay",
            imagination_batch=128,
            horizon=10,
            world_model_lr=1e-3,
            warmup_updates=100,
        ),
    )


def _debug() -> Config:
    return Config(
        preset="debug",
        steps=120,
        env=EnvConfig(size=32, grayscale=True),
        world_model=WorldModelConfig(
            vision=VisionConfig(channels=(8, 8, 8), strides=(2, 2, 2), output="linear", mean_pixel_bias=True),
            latent=LatentConfig(variables=4, classes=4),
            sequence=SequenceConfig(width=32, head_dim=16, state=8),
            head_units=16,
            bins=41,
        ),
        agent=AgentConfig(actor_units=16, critic_units=16, layers=1),
        train=TrainConfig(
            replay_capacity=1000,
            start_step=64,
            train_every=4,
            batch_size=4,
            batch_length=16,
            imagination_batch=16,
            context=4,
            horizon=4,
            warmup_updates=10,
            world_model_lr=1e-3,
            agent_lr=1e-3,
            compile="off",
        ),
        log=LogConfig(log_every=20, image_every=60, checkpoint_every=60, eval_episodes=2, eval_envs=2),
    )


def _vector() -> Config:
    cpu = _cpu()
    return dataclasses.replace(
        cpu,
        game="CartPole-v1",
        preset="vector",
        steps=15_000,
        env=EnvConfig(),
        world_model=dataclasses.replace(
            cpu.world_model,
            vector=VectorConfig(units=128, layers=2),
            latent=LatentConfig(variables=16, classes=16),
            sequence=dataclasses.replace(cpu.world_model.sequence, width=64),
            vector_scale=10.0,
        ),
        # Where nothing is left to gain, a large bonus makes the policy forget what it can.
        agent=dataclasses.replace(cpu.agent, discount=0.995, entropy=3e-4),
        train=dataclasses.replace(
            cpu.train,
            agent_start=0,
            start_step=500,
            train_every=2,
            batch_size=16,
            batch_length=32,
            imagination_batch=128,
            horizon=15,
            dfs_temperature=10.0,  # old failures must not be forgotten
            cooldown=0.4,
            world_model_lr=1e-3,
            warmup_updates=100,
            statistics_frames=0,
            precision="float32",  # networks as small as these are not faster in bfloat16
        ),
    )


PRESETS = {
    "paper": _paper,
    "paper-m": _paper_m,
    "paper-l": _paper_l,
    "cpu": _cpu,
    "small": _small,
    "vector": _vector,
    "debug": _debug,
}


def preset(name: str) -> Config:
    """The preset `name`. Raises ValueError that lists the presets (and the nearest one)."""
    if name not in PRESETS:
        raise ValueError(f"preset: {name!r} is unknown{did_you_mean(name, PRESETS)}; there are {', '.join(PRESETS)}")
    return PRESETS[name]()


def with_options(config: Config, options: Mapping[str, Any]) -> Config:
    """`config` with other values for the fields that `options` names, as in `{"train.batch_size": 8}`.

    Raises ValueError for a field that there is none of; the message names the nearest ones.
    """
    for name, value in options.items():
        config = _replaced(config, name, name.split("."), value)
    return config


def _replaced(config: Any, name: str, path: Sequence[str], value: Any) -> Any:
    fields = [field.name for field in dataclasses.fields(config)]
    if path[0] not in fields or (len(path) > 1) != dataclasses.is_dataclass(getattr(config, path[0])):
        known = [*flat(Config())]
        raise ValueError(f"options: {name!r} is no field of the config{did_you_mean(name, known)}")
    if len(path) > 1:
        value = _replaced(getattr(config, path[0]), name, path[1:], value)
    return dataclasses.replace(config, **{path[0]: value})


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """The value of each field, by the name that `with_options` takes."""
    found: dict[str, Any] = {}
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        if dataclasses.is_dataclass(value):
            found |= flat(value, f"{prefix}{field_.name}.")
        else:
            found[f"{prefix}{field_.name}"] = value
    return found


def option_docs() -> dict[str, str]:
    """What each field is, by the name that `with_options` takes: the text below it in this file."""
    return dict(_docs(Config, "", _texts()))


def _texts() -> dict[str, dict[str, str]]:
    """The text below each field, by class."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[__name__])).body:
        if not isinstance(node, ast.ClassDef):
            continue
        texts = found[node.name] = {}
        for field_, text in zip(node.body, node.body[1:], strict=False):
            if isinstance(field_, ast.AnnAssign) and isinstance(field_.target, ast.Name) and isinstance(text, ast.Expr):
                texts[field_.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def _docs(cls: Any, prefix: str, texts: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _docs(hint, f"{prefix}{name}.", texts)
        else:
            yield f"{prefix}{name}", texts[cls.__name__].get(name, "")


def did_you_mean(name: str, known: Any) -> str:
    """` (did you mean ...?)` with the names nearest to `name`, or nothing."""
    by_lower = {k.lower(): k for k in known}
    near = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)]
    return f" (did you mean {' or '.join(near)}?)" if near else ""
