"""How much memory a card needs for each recipe, counted without one: every tensor of a step, none with numbers in it.

    python -m benchmarks.memory [TASK/RECIPE …] [KEY=VALUE …] [--out DIR]     (without names every recipe but the quick ones)

For each network a training step at the recipe's own size and batch, in bf16: forward, backward and AdamW beside the moving
average that a run keeps; and a pass without gradients, over as many samples as the recipe draws at once, over one image for
an autoencoder. Counted are the tensors that exist at once. Workspaces of convolutions, gaps of the allocator, and CUDA
itself, about half a GiB, come on top.
"""

import argparse
import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.reporting import number, table
from medseg_diff.data.datasets.batch import Batch
from medseg_diff.files import configs_folder, write_json
from medseg_diff.networks.noisy_classifier import NoisyClassifier
from medseg_diff.recipes.base import Recipe
from medseg_diff.recipes.lookup import load_recipe
from medseg_diff.recipes.spaces import LatentSettings
from medseg_diff.tasks.train import anomaly, enhancement, segmentation, synthesis
from medseg_diff.training.compression import Compression
from medseg_diff.training.estimate import Work
from medseg_diff.training.fit import FitSettings

GIB = 2**30
HERE = torch.device("meta")  # where tensors have shapes, types and a way back, but no numbers
ROUNDED = {  # computed in bf16 in an autocast, which this device has none of
    functional: ("conv2d", "conv3d", "conv_transpose2d", "conv_transpose3d", "linear", "scaled_dot_product_attention"),
    torch: ("matmul", "bmm", "baddbmm", "einsum"),
}
Losses = Callable[[], Iterator[Tensor]]


class Memory(NamedTuple):
    """Bytes at once: a training step over `batch` pieces, and passes without gradients by what they are for."""

    batch: int
    training: int
    passes: dict[str, int]


def works_of(recipe: Any) -> dict[str, Work]:
    """The trainings of a recipe by what learns, without an autoencoder's."""
    if recipe.task == "segment":
        return {"network": segmentation.work_of(recipe, UNTOUCHED)}
    if recipe.task == "enhance":
        return {"denoiser": enhancement.work_of(recipe, UNTOUCHED, ())}  # type: ignore[arg-type]  # nothing is loaded
    works = (anomaly if recipe.task == "anomaly" else synthesis).works_of(recipe, UNTOUCHED)
    names = ("denoiser", "regressor" if recipe.task == "synthesise" else "classifier")
    return dict(zip((name for name in names if name in recipe.parts()), works, strict=False))


class Untouched:
    """A bench on which nothing was trained yet."""

    def left(self, name: str, settings: FitSettings) -> FitSettings:
        return settings


UNTOUCHED: Any = Untouched()


def memory_of(recipe: Recipe) -> dict[str, Memory]:
    """What each network of a recipe needs, by its name."""
    with HERE:
        found = {name: _of_network(work, drawn_at_once(recipe)) for name, work in works_of(recipe).items()}
        if isinstance(recipe.space, LatentSettings):
            found["autoencoder"] = _of_autoencoder(recipe, recipe.space)
    return found


def drawn_at_once(recipe: Any) -> int:
    """Samples in a pass of the network when the recipe is used."""
    return int((recipe.engine if recipe.task == "anomaly" else recipe.sampling).network_batch)


def _of_network(work: Work, at_once: int) -> Memory:
    """A loss that is a square stands for every loss: beside the network it takes nothing."""
    network, batch = work.build(), work.settings.passes_batch

    def losses() -> Iterator[Tensor]:
        yield work.forward(network, batch, HERE).float().square().mean()

    training = _step_bytes([network], losses)
    return Memory(batch, training, {"sampling": _pass_bytes(network, lambda: work.forward(network, at_once, HERE))})


def _of_autoencoder(recipe: Any, space: LatentSettings) -> Memory:
    """With all of its losses, and the turn of the discriminator where there is one."""
    settings, channels = space.compression.but(adversarial_from=0), len(recipe.channels)
    autoencoder = recipe.build_autoencoder()
    judge = settings.discriminator(dims=recipe.view.dims, channels=channels)
    seen = recipe.build_regressor().requires_grad_(False) if settings.perceptual else None

    def features(image: Tensor) -> Sequence[Tensor]:
        assert isinstance(seen, NoisyClassifier)
        return seen.read(image).maps

    objective = Compression(autoencoder, settings, features=features, discriminator=judge)
    batch = space.training.passes_batch
    image = torch.zeros(batch, channels, *recipe.view.size)

    def losses() -> Iterator[Tensor]:
        yield from (turn.loss for turn in objective.turns(Batch(image), 0))

    training = _step_bytes([each for each in (autoencoder, judge) if each is not None], losses)
    one, latent = image[:1], torch.zeros(1, space.autoencoder.latent, *space.autoencoder.grid(recipe.view.size))
    passes = {"encoding": lambda: autoencoder.encode(one), "decoding": lambda: autoencoder.decode(latent)}
    return Memory(batch, training, {name: _pass_bytes(autoencoder, run) for name, run in passes.items()})


def _step_bytes(networks: Sequence[nn.Module], losses: Losses) -> int:
    """Of a step of networks that learn in turns, each from a loss of its own."""
    averages = [copy.deepcopy(network).requires_grad_(False) for network in networks]
    optimizers = [torch.optim.AdamW(network.parameters(), foreach=False) for network in networks]

    def step() -> None:
        turns = losses()
        for optimizer in optimizers:
            with in_bfloat16():
                loss = next(turns)
                loss.backward()  # in there, because what is computed a second time is rounded, too
            del loss
            optimizer.step()
            optimizer.zero_grad()

    step()  # from the second on there is what AdamW remembers
    remembered = [part for each in optimizers for state in each.state.values() for part in state.values()]
    return _peak(step, *networks, *averages, tensors=remembered)


def _pass_bytes(network: nn.Module, run: Callable[[], object]) -> int:
    def drawn() -> None:
        with torch.no_grad(), in_bfloat16():
            run()

    return _peak(drawn, network.eval())


def _peak(run: Callable[[], None], *held: nn.Module, tensors: Iterable[Any] = ()) -> int:
    """The most bytes of tensors at once while it runs, with those of modules and others that are there all along."""
    tracker = Tracker()
    tracker.add(tensors)
    for module in held:
        tracker.add([*module.parameters(), *module.buffers()])
    with tracker:
        run()
    return tracker.most


@contextmanager
def in_bfloat16() -> Iterator[None]:
    """What an autocast does to the arguments of convolutions and products."""
    with ExitStack() as changed:
        for room, names in ROUNDED.items():
            for name in names:
                changed.enter_context(mock.patch.object(room, name, _rounding(getattr(room, name))))
        yield


def _rounding(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def round_one(tensor: Tensor) -> Tensor:
        return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor

    def rounding(*args: Any, **kwargs: Any) -> Tensor:
        args, kwargs = tree_map_only(Tensor, round_one, (args, kwargs))
        return function(*args, **kwargs)

    return rounding


class Tracker(TorchDispatchMode):
    """Counts the bytes of storages from when they are made until they are freed: now, and at the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        self.add(leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor))
        return answer

    def add(self, tensors: Iterable[Tensor]) -> None:
        for storage in (tensor.untyped_storage() for tensor in tensors):
            if id(storage) not in self.known:
                self.known[id(storage)] = weakref.ref(storage, partial(self._freed, id(storage), storage.nbytes()))
                self.now += storage.nbytes()
        self.most = max(self.most, self.now)

    def _freed(self, key: int, size: int, _: object) -> None:
        del self.known[key]
        self.now -= size


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="such as segment/mask_logits training.batch=16")
    parser.add_argument("--out", type=Path, help="folder for memory.json")
    options = parser.parse_args(words)
    overrides = [word for word in options.words if "=" in word]
    every = (f"{path.parent.name}/{path.stem}" for path in configs_folder().glob("*/*.yaml"))
    names = [word for word in options.words if "=" not in word] or sorted(every)
    found: dict[str, dict[str, Memory]] = {}
    for name in names:
        task, _, recipe = name.partition("/")
        found[name] = memory_of(load_recipe(recipe, task=task, overrides=overrides))
        for network, memory in found[name].items():
            passes = ", ".join(f"{what} {size / GIB:.2f}" for what, size in memory.passes.items())
            print(f"{name} {network}: step of {memory.batch} {memory.training / GIB:.2f} GiB; {passes}", flush=True)
    rows = [
        [
            f"{name} {network}",
            str(memory.batch),
            number(memory.training / GIB, 1),
            number(max(memory.passes.values()) / GIB, 1),
        ]
        for name, networks in found.items()
        for network, memory in networks.items()
    ]
    print("\n" + table(["recipe, network", "batch", "training step, GiB", "a pass, GiB"], rows))
    if options.out:
        plain = {name: {network: memory._asdict() for network, memory in each.items()} for name, each in found.items()}
        write_json(options.out / "memory.json", {"schema": 1, "benchmark": "memory", "bytes": plain})


if __name__ == "__main__":
    main()
