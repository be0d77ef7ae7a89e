"""A card that nobody has: tensors that lie on `cuda` without any numbers, and whatever would make the host wait for it.

torch's fake tensors know shape, type and device alone. What is done to them is judged by the rules of a real card:
tensors of two devices do not meet, autocast rounds to bfloat16, and a question to the card (`.item()`, `bool`, the places
of a mask) finds no answer. A build of torch without CUDA lacks the guard that chooses a card before something is indexed,
its generator, and the belief that autocast is there: `lend` lends them. Autograd on a card has streams, which cannot be
lent: there every gradient is like its parameter, and `Card("meta")`, the device that has no numbers either but autograd,
shows the way back.
"""

import contextlib
import ctypes
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medseg_diff.diffusion import Condition, NoiseSchedule, noise, schedule
from medseg_diff.methods import tiled
from medseg_diff.networks.bottleneck import BottleneckSettings
from medseg_diff.networks.encoded import WithEncoderSettings
from medseg_diff.networks.monai_unet import MonaiUNetSettings
from medseg_diff.networks.noisy_classifier import NoisyClassifierSettings
from medseg_diff.networks.prior import WithPriorSettings
from medseg_diff.networks.spade_unet import SpadeUNetSettings
from medseg_diff.networks.unet import UNetSettings
from medseg_diff.training.fit import channels_last

ATEN = torch.ops.aten
# Whose answer, or the shape of it, the host has to wait for.
WAITS = {
    ATEN._local_scalar_dense, ATEN.is_nonzero, ATEN.equal, ATEN.nonzero, ATEN.masked_select, ATEN.argwhere,
    ATEN.unique_consecutive, ATEN._unique2, ATEN.unique_dim, ATEN.bincount, ATEN._linalg_check_errors, ATEN.histc,
}  # fmt: skip
COPIES = {ATEN._to_copy, ATEN.copy_, ATEN._copy_from}
INDEXING = {ATEN.index, ATEN.index_put, ATEN.index_put_, ATEN._index_put_impl_}
# Kernels that take one number from the host as an argument; all others would copy it, or refuse.
TAKE_A_NUMBER = {
    getattr(ATEN, name + in_place)
    for name in ("add", "sub", "mul", "div", "pow", "eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum", "fill")
    for in_place in ("", "_")
    if hasattr(ATEN, name + in_place)
}
GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry: CPU, CUDA, …
PACKAGE = str(Path(schedule.__file__).parents[1])
WALK = str(Path(PACKAGE, "diffusion", "walk.py"))


class HostWaits(AssertionError):
    """An operation that a card is waited for, or that is given what lies elsewhere."""


class Card(TorchDispatchMode):
    """While it is entered, `device` has tensors: of kind `cuda`, or `meta`. What is done to them is looked at only in
    `watched`; all else is computed as ever."""

    def __init__(self, kind: str = "cuda") -> None:
        super().__init__()
        self.device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
        self.fake = FakeTensorMode(allow_non_fake_inputs=True) if kind == "cuda" else contextlib.nullcontext()
        self.watching = False
        self.operations = 0

    def __enter__(self) -> "Card":
        self.lent = contextlib.ExitStack()
        lend(self.lent, self.device.type)
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self.lent.close()

    @contextlib.contextmanager
    def watched(self) -> Iterator["Card"]:
        """A training step or the drawing of samples: HostWaits where the host would wait."""
        self.watching, self.operations = True, 0
        try:
            yield self
        finally:
            self.watching = False

    def here(self, device: torch.device | str | None) -> bool:
        return device is not None and torch.device(device).type == self.device.type

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not (self.here(kwargs.get("device")) or any(self.here(each.device) for each in tensors)):
            return func(*args, **kwargs)
        if self.watching and func.namespace == "aten":
            self.operations += 1
            self.check(func, tensors, args, kwargs)
        if "generator" in kwargs:
            kwargs = kwargs | {"generator": None}  # see `GeneratorsAtHome`
        with self.fake:
            return func(*args, **kwargs)

    def check(self, func: Any, tensors: list[Tensor], args: Any, kwargs: Any) -> None:
        packet = func.overloadpacket
        if packet in WAITS or func is ATEN.repeat_interleave.Tensor:
            raise HostWaits(f"{func} asks the card{place()}")
        elsewhere = [each for each in tensors if not self.here(each.device)]
        if packet in COPIES:
            self.check_copy(func, args, kwargs)
        elif packet in INDEXING:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                raise HostWaits(f"{func} with a mask asks the card how many{place()}")
            if any(not self.here(index.device) for index in indices):
                raise HostWaits(f"{func} copies its indices to the card{place()}")
        elif any(each.ndim for each in elsewhere):
            raise HostWaits(f"{func} is given a tensor of {elsewhere[0].device}{place()}")
        elif elsewhere and packet not in TAKE_A_NUMBER:
            raise HostWaits(f"{func} copies a number to the card{place()}")
        if any(self.here(each.device) and each.dtype == torch.float64 and each.ndim > 2 for each in tensors):
            shapes = {tuple(each.shape) for each in tensors if each.dtype == torch.float64}
            if any(sum(n > 1 for n in shape) > 1 for shape in shapes):
                raise HostWaits(f"{func} computes images of {shapes} in float64{place()}")

    def check_copy(self, func: Any, args: Any, kwargs: Any) -> None:
        if func.overloadpacket is ATEN._to_copy:
            source, target = args[0].device, torch.device(kwargs.get("device") or args[0].device)
            at_once = kwargs.get("non_blocking", False)
        else:
            source, target = args[1].device, args[0].device
            at_once = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if source.type == target.type:
            return
        if self.here(source):
            raise HostWaits(f"{func} brings numbers to the host{place()}")
        if in_a_walk():
            raise HostWaits(f"{func} copies to the card within a walk{place()}")
        if not at_once:
            raise HostWaits(f"{func} copies to the card and waits for it (non_blocking is False){place()}")


def place() -> str:
    """Where in the package this happens, for a message."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
    return "".join(f"\n  {Path(f.filename).relative_to(PACKAGE)}:{f.lineno} {f.line}" for f in frames)


def in_a_walk() -> bool:
    return any(frame.filename == WALK for frame in traceback.extract_stack())


class CardGenerator(torch.Generator):
    """A generator that says of itself where it was asked to be; nothing is drawn from it."""

    def __new__(cls, device: torch.device | str = "cpu") -> "CardGenerator":
        generator = super().__new__(cls, "cpu")
        generator.asked = torch.device(device)
        return generator

    @property
    def device(self) -> torch.device:
        return self.asked


class GeneratorsAtHome(TorchFunctionMode):
    """A card draws from its own generators alone. (Further down a generator is no longer seen as what it was made as.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        if isinstance(generator, torch.Generator) and generator.device.type != drawn.device.type:
            raise HostWaits(f"{func.__name__} draws on {drawn.device} from a generator of {generator.device}{place()}")
        return drawn


def lend(stack: contextlib.ExitStack, kind: str) -> None:
    """What this build of torch lacks, until the stack is closed; and no table that lies on the card is left behind."""
    for table in (schedule._alpha_sigma, noise._lattice, tiled._blending):
        table.cache_clear()
        stack.callback(table.cache_clear)
    stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(…, device=…)` is then seen as the copy that it is
    stack.enter_context(mock.patch.object(torch, "Generator", CardGenerator))
    stack.enter_context(GeneratorsAtHome())
    if kind == "meta":
        stack.enter_context(mock.patch.object(torch, "autocast", no_autocast(torch.autocast)))
        return
    stack.enter_context(mock.patch.object(torch.cuda, "_lazy_init", lambda: None))
    stack.enter_context(mock.patch.object(torch.cuda, "is_bf16_supported", lambda *_: True))
    stack.enter_context(mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
    stack.enter_context(mock.patch.object(torch.nn.Module, "_apply", moved))
    stack.enter_context(mock.patch.object(torch.autograd, "grad", gradients_like))
    stack.enter_context(mock.patch.object(Tensor, "backward", gradients_of_leaves))
    if not torch.cuda._is_compiled():
        guards = (ctypes.c_void_p * 2).in_dll(ctypes.CDLL(torch._C.__file__), GUARDS)
        stack.callback(guards.__setitem__, 1, guards[1])
        guards[1] = guards[0]  # the CPU's, which does nothing


def no_autocast(real: type) -> Any:
    """torch.autocast, but none on `meta`, which knows none."""

    def autocast(device: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device == "meta" else real(device, *args, **kwargs)

    return autocast


def moved(module: torch.nn.Module, fn: Any, recurse: bool = True) -> torch.nn.Module:
    """In the place of Module._apply, which cannot put a tensor without numbers into one that has them: what lies and looks
    as it should stays the same parameter, as it does on a real card."""
    for part in module.modules():
        for name, old in [*part._parameters.items(), *part._buffers.items()]:
            new = None if old is None else fn(old.detach())
            if new is None or (new.device, new.dtype, new.stride()) == (old.device, old.dtype, old.stride()):
                continue
            if name in part._buffers:
                part._buffers[name] = new
            else:
                part._parameters[name] = torch.nn.Parameter(new, old.requires_grad)
    return module


def gradients_like(outputs: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Tensor, ...]:
    """In the place of torch.autograd.grad."""
    return tuple(torch.empty_like(each) for each in ([inputs] if isinstance(inputs, Tensor) else inputs))


def gradients_of_leaves(loss: Tensor, *_: Any, inputs: Any = None, **__: Any) -> None:
    """In the place of Tensor.backward: every parameter that the loss hangs on has a gradient like itself."""
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ahead += [following for following, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and (inputs is None or any(leaf is each for each in inputs)):
            leaf.grad = torch.empty_like(leaf)


SCHEDULE = NoiseSchedule(kind="cosine")
ONE_LEVEL = {"width": 8, "multipliers": (1,), "blocks": 1, "attention": (), "groups": 4}
TWO_LEVELS = ONE_LEVEL | {"multipliers": (1, 1), "attention": (1,), "time_embedding": "adaptive", "stem": 2}
CLASSIFIER = NoisyClassifierSettings(**ONE_LEVEL, head_width=None, pooling="max_mean")
NETWORKS = {
    "unet": UNetSettings(**TWO_LEVELS),
    "monai_unet": MonaiUNetSettings(widths=(8, 8), blocks=(1, 1), attention=(1,), groups=4),
    "with_prior": WithPriorSettings(**ONE_LEVEL, correction=UNetSettings(**ONE_LEVEL)),
    "with_encoder": WithEncoderSettings(**ONE_LEVEL, code=4, encoder=CLASSIFIER),
    "bottleneck": BottleneckSettings(**ONE_LEVEL, code=2),
    "covariates": UNetSettings(**TWO_LEVELS, covariates=2, covariates_by=("embedding", "channels", "attention")),
    "spade": SpadeUNetSettings(**TWO_LEVELS, map_channels=2, hidden=4),
}


def known_to(kind: str, image: Tensor) -> Condition:
    """What a network of NETWORKS looks at, made of an image [B, 2, *S]."""
    if kind == "covariates":
        return Condition(image=image, covariates=image.flatten(2).mean(2))
    return Condition(image=image, mask=(image > 0).to(image.dtype) if kind == "spade" else None)


def put(network: torch.nn.Module, device: torch.device | str) -> torch.nn.Module:
    """A network as it samples."""
    return channels_last(network.eval().to(device))


@contextlib.contextmanager
def sampling(card: Card) -> Iterator[None]:
    """Autocast to bfloat16, where the card has it; watched."""
    with torch.autocast(card.device.type, torch.bfloat16), card.watched():
        yield
