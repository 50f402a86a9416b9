"""Encoders: networks from one observation to features, for images, observations of several parts, or your own module.

    policy = networks.encoded_policy(family, networks.cnn(family))                     # for MAML
    network = networks.recurrent_actor_critic(family, gru(64), encoder=networks.cnn(family))  # for RL²

In place of ``networks.cnn(family)`` both take a flax module of yours.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmeta import checks
from jaxmeta.networks.dense import Dense
from jaxmeta.tasks import composite, environments
from jaxmeta.tasks.family import TaskFamily
from jaxmeta.types import Params


class Encoder(NamedTuple):
    """A network from one observation to features; callers ``vmap``."""

    init: Callable[[jax.Array], Params]
    """``(key) -> params``."""
    apply: Callable[[Params, jax.Array], jax.Array]
    """``(params, obs [*obs_shape]) -> features [F]``."""
    size: int
    """F."""


Module: TypeAlias = Encoder | nn.Module | Callable[..., Any]
"""An `Encoder`; a flax linen module; or for flax nnx a function ``rngs -> module``."""


@checks.arguments
def encoder(family: TaskFamily, module: Module) -> Encoder:
    """The encoder of a flax module of your own.

    The module is called with *one* observation, without a batch axis, and returns features ``[F]``. It gets
    ``obs [*obs_shape]``, floats; if the environment's observation space has several parts, it gets the parts instead,
    as `tasks.unflatten` gives them: a dictionary for a `Dict`, categories one-hot.

    Args:
        family: The family whose observations are read.
        module: A linen module, ``Net()``; a function that makes an nnx module, ``lambda rngs: Net(rngs=rngs)``; an
            `Encoder` is returned as it is.

    Raises:
        ValueError: the module raises an error on one observation; its output is not of one axis; or it has state beside
            parameters, like running means, or draws random numbers, like Dropout: the library's functions are pure and
            would lose the one and repeat the other.
        TypeError: ``module`` is a class, or an nnx module that is already made.
    """
    if isinstance(module, Encoder):
        return module
    if isinstance(module, type):
        raise TypeError(f"module is the class {module.__name__}; {_instead_of(module)}")
    space = environments.declared_observation_space(family.env)
    shape = family.observation_shape
    init, apply = _linen(module) if isinstance(module, nn.Module) else _nnx(module)

    def parts(obs: jax.Array) -> Any:
        return composite.unflatten(space, obs)

    def init_on_zeros(key: jax.Array) -> Params:
        return init(key, parts(jnp.zeros(shape)))

    def apply_to_parts(params: Params, obs: jax.Array) -> jax.Array:
        return apply(params, parts(obs))

    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        features = jax.eval_shape(
            lambda key, obs: apply_to_parts(init_on_zeros(key), obs),
            key,
            jax.ShapeDtypeStruct(shape, jnp.result_type(float)),
        )
    except Exception as error:
        if isinstance(error, ValueError | TypeError) and str(error).startswith("module"):
            raise
        shapes = jax.tree.map(
            jnp.shape, parts(jnp.zeros(shape)), is_leaf=lambda x: hasattr(x, "ndim")
        )
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise ValueError(
            f"module failed on one observation, {'the parts' if isinstance(shapes, dict) else 'an array'} of shape "
            f"{shapes}, without a batch axis: {type(error).__name__}: {first_line}"
        ) from error
    if len(getattr(features, "shape", ())) != 1:
        raise ValueError(
            f"module returned {environments.summary(features)} for one observation; it must return features of shape [F]"
        )
    return Encoder(init_on_zeros, apply_to_parts, features.shape[0])


def _instead_of(module: type) -> str:
    """The object to give instead of a class."""
    nnx = sys.modules.get("flax.nnx")  # who has a class of its own has imported it
    if nnx is not None and issubclass(module, nnx.Module):
        return f"it must be a function of rngs that makes one: lambda rngs: {module.__name__}(..., rngs=rngs)"
    if issubclass(module, nn.Module):
        return f"it must be a linen module: {module.__name__}(...)"
    return "it must be a linen module, Net(), or for nnx a function of rngs that makes one"


DRAWS = (
    "module draws random numbers when it is called, as Dropout does; it must be a function of the observation alone: leave "
    "such layers out, or make them deterministic (deterministic=True)"
)


def _linen(module: nn.Module) -> tuple[Callable, Callable]:
    """``(key, obs) -> params`` and ``(params, obs) -> features`` of a linen module."""

    def init(key: jax.Array, obs: Any) -> Params:
        variables = dict(drawing_nothing(module.init, key, obs))
        params = variables.pop("params", {})
        if variables:
            raise ValueError(
                f"module has the collections {', '.join(variables)} beside parameters; it must have parameters alone"
            )
        return params

    def apply(params: Params, obs: Any) -> Any:
        return drawing_nothing(module.apply, {"params": params}, obs)

    def drawing_nothing(function: Callable, *args: Any) -> Any:
        try:
            return function(*args)
        except flax.errors.InvalidRngError as error:
            raise ValueError(DRAWS) from error

    return init, apply


def _nnx(make: Callable[..., Any]) -> tuple[Callable, Callable]:
    """``(key, obs) -> params`` and ``(params, obs) -> features`` of the nnx module that ``make(rngs)`` makes."""
    from flax import nnx  # slow to import, and few need it

    if isinstance(make, nnx.Module):
        raise TypeError(
            f"module is a {type(make).__name__} that is already made, so that all seeds would start alike; it must be "
            f"a function of rngs: lambda rngs: {type(make).__name__}(rngs=rngs)"
        )

    def split(key: jax.Array) -> tuple[Any, Any]:
        module = make(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise TypeError(f"module(rngs) is a {type(module).__name__}; it must be an nnx module")
        # `apply` checks that nothing is drawn, so the streams of random numbers are only carried along.
        graph, params, streams, others = nnx.split(module, nnx.Param, nnx.RngState, ...)  # type: ignore[misc]
        if jax.tree.leaves(others):
            raise ValueError("module has state beside parameters; it must have parameters alone")
        return (graph, streams), params

    def init(key: jax.Array, obs: Any) -> Params:
        return nnx.to_pure_dict(split(key)[1])

    def apply(params: Params, obs: Any) -> Any:
        (graph, streams), state = split(jax.random.key(0))
        nnx.replace_by_pure_dict(state, params)
        module = nnx.merge(graph, state, streams)

        def counts() -> list:
            return jax.tree.leaves(nnx.state(module, nnx.RngCount))

        before = counts()
        features = module(obs)
        if any(x is not y for x, y in zip(before, counts(), strict=True)):
            raise ValueError(DRAWS)
        return features

    return init, apply


class _Convolution(nn.Module):
    """A convolution with zeros around the image, as a product of a matrix of patches.

    On a CPU that is many times as fast as XLA's convolution, whose derivatives under a ``vmap`` are slow.
    """

    channels: int
    kernel: int
    stride: int

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        k, stride, dtype = self.kernel, self.stride, jnp.result_type(float)
        initial = nn.initializers.lecun_normal()
        shape = (k, k, image.shape[-1], self.channels)
        kernel = self.param("kernel", initial, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,), dtype)
        sizes = [-(-n // stride) for n in image.shape[:2]]
        missing = [
            max((size - 1) * stride + k - n, 0)
            for size, n in zip(sizes, image.shape[:2], strict=True)
        ]
        padded = jnp.pad(image, [*((n // 2, n - n // 2) for n in missing), (0, 0)])
        (height, width), reach = sizes, [(size - 1) * stride + 1 for size in sizes]
        patches = [
            padded[i : i + reach[0] : stride, j : j + reach[1] : stride]
            for i in range(k)
            for j in range(k)
        ]
        rows = jnp.concatenate(patches, axis=-1).reshape(height * width, -1)
        filtered = rows @ kernel.reshape(-1, self.channels) + bias[None]
        return filtered.reshape(height, width, self.channels)


class _Convolutions(nn.Module):
    channels: tuple[int, ...]
    kernel: int
    stride: int
    size: int

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        x = image if image.ndim == 3 else image[..., None]
        for i, channels in enumerate(self.channels):
            layer = _Convolution(channels, self.kernel, self.stride, name=f"Conv_{i}")
            x = nn.relu(layer(x))
        return nn.relu(Dense(self.size, math.sqrt(2.0))(x.reshape(-1)))


@checks.arguments
def cnn(
    family: TaskFamily,
    *,
    channels: Sequence[int] = (16,),
    kernel: int = 3,
    stride: int = 1,
    size: int = 128,
) -> Encoder:
    """A convolutional network from an image ``[H, W]`` or ``[H, W, C]`` to features, ``[size]``.

    The defaults are the network of Young & Tian 2019, "MinAtar: an Atari-inspired testbed for thorough and reproducible
    reinforcement learning experiments": one layer of 16 3×3 filters and one of 128 units, with rectified outputs.

    Args:
        family: The family whose observations are images.
        channels: Filters of each convolution.
        kernel: Width and height of a filter.
        stride: Step of a filter, in pixels.
        size: Features, the outputs of a dense layer.

    Raises:
        ValueError: observations are no images, or a size is below 1.
    """
    shape = family.observation_shape
    if len(shape) not in (2, 3):
        raise ValueError(
            f"family={family.name!r} has observations of shape {shape}, where images [H, W] or [H, W, C] are needed: "
            "an image that is a part of a dictionary needs a module of your own, which gets the parts"
        )
    channels = checks.each_at_least("channels", channels, 1)
    for name, value in dict(kernel=kernel, stride=stride, size=size).items():
        checks.at_least(name, value, 1)
    return encoder(family, _Convolutions(tuple(channels), kernel, stride, size))
