"""Memory that is counted rather than used: of sums that can be done by hand, and of a small recipe."""

import json
from functools import partial

import torch
from torch import nn

from benchmarks.memory import HERE, _pass_bytes, _step_bytes, main, memory_of
from medseg_diff.recipes.lookup import load_recipe

WEIGHTS, IMAGE = 4 * 9 * 8 * 8, 4 * 8 * 32 * 32  # bytes in float32 of a convolution of 8 channels, and of what it sees


def convolutions(count):
    with HERE:
        return nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(count)))


def test_a_pass_holds_two_images_however_deep_it_is():
    image = torch.zeros(1, 8, 32, 32, device=HERE)
    few, many = (_pass_bytes(convolutions(count), lambda: None) for count in (2, 6))
    assert (few, many) == (2 * WEIGHTS, 6 * WEIGHTS)
    few, many = (_pass_bytes(network, partial(network, image)) for network in map(convolutions, (2, 6)))
    assert many - few == 4 * WEIGHTS  # rounded weights are gone with their layer
    assert few >= 2 * WEIGHTS + IMAGE


def test_a_step_holds_every_image_and_what_is_remembered_of_every_weight():
    image = torch.zeros(1, 8, 32, 32, device=HERE)

    def bytes_of(count):
        network = convolutions(count)

        def losses():
            yield network(image).float().square().mean()

        return _step_bytes([network], losses)

    more = bytes_of(7) - bytes_of(6)
    kept = IMAGE // 2 + WEIGHTS // 2  # by the layer for its way back, in bf16
    assert 4 * WEIGHTS + kept <= more <= 6 * WEIGHTS + kept + IMAGE  # weights, average, AdamW's two; gradients


def test_an_autoencoder_learns_in_less_where_levels_are_computed_again(tmp_path, capsys):
    small = ["view.size=[32,32,32]", "space.autoencoder.widths=[16,16]", "space.autoencoder.groups=8"]
    small += [f"{part}.{size}" for part in ("network", "regressor") for size in ("width=8", "groups=8")]
    small += ["network.head_width=null", "space.compression.adversarial=0", "space.compression.perceptual=0"]
    again = ("space.autoencoder.checkpointing=true", "space.autoencoder.checkpointing=false")
    recipes = [load_recipe("brain_ldm_3d", task="synthesise", overrides=[*small, each]) for each in again]
    found = [memory_of(recipe) for recipe in recipes]
    assert found[0].keys() == {"denoiser", "regressor", "autoencoder"}
    assert found[0]["autoencoder"].training < found[1]["autoencoder"].training
    assert found[0]["autoencoder"].passes == found[1]["autoencoder"].passes
    main(["synthesise/brain_ldm_3d", *small, "--out", str(tmp_path)])
    written = json.loads((tmp_path / "memory.json").read_text())["bytes"]["synthesise/brain_ldm_3d"]
    assert written["autoencoder"]["training"] == found[0]["autoencoder"].training
    assert "synthesise/brain_ldm_3d autoencoder" in capsys.readouterr().out
