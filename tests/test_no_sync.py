"""What would make the host wait for a card is found, and all else is let through; networks on a card that nobody has."""

import pytest
import torch

from medseg_diff.diffusion import DDIM, Prediction, walk
from medseg_diff.networks.norm import GroupNorm, _GroupNorm
from tests.no_sync import NETWORKS, SCHEDULE, HostWaits, known_to, put, sampling


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_computes_in_bfloat16_inside_of_autocast(card, kind):
    outputs = 1 if kind == "with_prior" else 2  # which says everything twice
    network = put(NETWORKS[kind].build(dims=2, channels=2, outputs=outputs, image_channels=2), card.device)
    x, image = torch.zeros(2, 2, 9, 7, device=card.device), torch.zeros(2, 2, 9, 7, device=card.device)
    with torch.no_grad(), sampling(card):
        said = network(x, torch.full((1,), 5, device=card.device), known_to(kind, image))
    dtype = torch.float32 if kind == "with_prior" else torch.bfloat16  # a sum of what two networks say
    assert (said.device, said.dtype, said.shape) == (card.device, dtype, x.shape) and card.operations > 50


def test_the_norms_way_back_in_bfloat16(card):
    norm, x = GroupNorm(8, 4).to(card.device), torch.zeros(2, 8, 6, 5, device=card.device, dtype=torch.bfloat16)
    normalised = norm(x.requires_grad_(True), *torch.zeros(2, 2, 8, device=card.device, dtype=torch.bfloat16))
    assert normalised.dtype == torch.bfloat16
    with card.watched():
        of_x, *of_the_rest = _GroupNorm.backward(normalised.grad_fn, torch.empty_like(normalised))[:3]
    assert (of_x.shape, of_x.dtype) == (x.shape, x.dtype)
    assert [tuple(each.shape) for each in of_the_rest] == [(2, 8), (2, 8)]


REFUSED = {
    "a number": lambda x, host: x.sum().item(),
    "a yes or no": lambda x, host: bool((x > 0).any()),
    "a list": lambda x, host: x[0].tolist(),
    "a copy": lambda x, host: x.cpu(),
    "a copy that does not wait": lambda x, host: x.to("cpu", non_blocking=True),
    "a copy into": lambda x, host: host.copy_(x),
    "places": lambda x, host: x.nonzero(),
    "a choice": lambda x, host: x[x > 0],
    "a choice that is set": lambda x, host: x.__setitem__(x > 0, 1.0),
    "sameness": lambda x, host: torch.equal(x, x),
    "distinct values": lambda x, host: x.unique(),
    "repeats": lambda x, host: x.repeat_interleave(torch.ones(3, dtype=torch.long, device=x.device), dim=0),
    "a root that is checked": lambda x, host: torch.linalg.cholesky(x),
    "a list of places": lambda x, host: x[[0, 2]],
    "places on the host": lambda x, host: x[torch.tensor([0, 2])],
    "numbers of the host": lambda x, host: torch.tensor([1.0, 2.0], device=x.device),
    "a tensor of the host, waited for": lambda x, host: host.to(x.device),
    "a tensor of the host": lambda x, host: x + host,
    "one number of the host, where none is taken": lambda x, host: torch.where(x > 0, torch.tensor(0.5), x),
    "noise of the host's": lambda x, host: x.normal_(generator=torch.Generator()),
    "an image in float64": lambda x, host: x.double()[None] * 2,
}
ALLOWED = {
    "filling": lambda x: torch.full((1,), 5, device=x.device) + torch.arange(3, device=x.device),
    "one number of the host": lambda x: torch.tensor(0.5, dtype=torch.float64) * x,
    "a copy to the card": lambda x: torch.zeros(3).to(x.device, non_blocking=True),
    "places on the card": lambda x: x[:, torch.arange(2, device=x.device)],
    "a mask": lambda x: torch.where(x > 0, 0, x).masked_fill(x > 1, 2.0),
    "noise": lambda x: x.normal_(generator=torch.Generator(x.device).manual_seed(1)),
    "a root": lambda x: torch.linalg.cholesky_ex(x).L,
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_the_host_wait_is_found(card, what):
    x, host = torch.zeros(3, 3, device=card.device), torch.zeros(3, 3)
    with card.watched(), pytest.raises(HostWaits):
        REFUSED[what](x, host)


@pytest.mark.parametrize("what", ALLOWED)
def test_what_does_not_is_let_through(card, what):
    x = torch.zeros(3, 3, device=card.device)
    with card.watched():
        assert ALLOWED[what](x).device == card.device


def test_nothing_at_all_is_copied_to_the_card_within_a_walk(card):
    class Copies:
        schedule = SCHEDULE

        def __call__(self, x_t, t, condition):
            return Prediction(x_t, torch.zeros(1, 1, 2, 2).to(x_t.device, non_blocking=True))

    x = torch.zeros(1, 1, 2, 2, device=card.device)
    with card.watched(), pytest.raises(HostWaits, match=r"within a walk\n.*\n  diffusion/walk.py"):
        walk(Copies(), DDIM(), x, [1000, 500])


def test_the_host_keeps_its_own_numbers(card):
    assert bool(torch.ones(3).all()) and torch.zeros(2).to(card.device).device == card.device
