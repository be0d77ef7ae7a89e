"""A GAN and a VAE-GAN from a table to scans by the verbs of every synthesis: what is kept, that it goes on, whose bytes."""

import json

import pytest

from medseg_diff import audit, synthesise, train_synth
from medseg_diff.errors import UsageError
from medseg_diff.training.runner import Course
from tests.stories.test_synthesis import digests, halves

GANS = ("quick/lsgan", "quick/vae_gan")
TINY_GAN = (
    "preparation.spacing_mm=[6.0,6.0,6.0]",
    "view.size=[24,32,24]",
    "network.widths=[8,8]",
    "network.groups=4",
    "network.latent=4",
    "training.steps=4",
    "training.batch=2",
    "training.precision=fp32",
    "training.decay=constant",
    "training.validate_every=2",
    "validation.images=2",
    "validation.drawn=1",
    "sampling.network_batch=2",
)


def train(phantoms, config, out, **options):
    compute = {"runs": out.parent / "runs", "device": "cpu", "mlflow": False}
    return train_synth(phantoms, config=config, overrides=TINY_GAN, out=out, **compute, **options)


@pytest.fixture(scope="module", params=GANS)
def generator(request, phantoms, tmp_path_factory):
    return request.param, train(phantoms, request.param, tmp_path_factory.mktemp("gan") / "tiny")


def test_the_run_keeps_the_generator_and_says_how_alike_its_scans_are(generator):
    config, run = generator
    assert {path.stem for path in (run.folder / "weights").glob("*")} == {"denoiser"}
    names = {point.name for point in run.numbers()}
    assert {"denoiser_deceived", "denoiser_discriminator", "denoiser_val_ms_ssim_of_pairs"} <= names
    assert ("denoiser_divergence" in names) == (config == "quick/vae_gan")
    assert {picture.series for picture in run.trajectories} == {"trajectories/denoiser"}


def test_a_scan_is_the_same_however_many_are_drawn_and_takes_one_step(generator, tmp_path):
    _, run = generator
    folders = synthesise(out=tmp_path / "three", model=run.folder, number=3, device="cpu")
    facts = json.loads((folders[0] / "case.json").read_text())
    assert facts["network_evaluations"] == 1 and facts["covariates"] == {}
    synthesise(out=tmp_path / "one", model=run.folder, number=1, device="cpu")
    assert digests(tmp_path / "one").items() <= digests(tmp_path / "three").items()
    assert len(set(digests(tmp_path / "three").values())) == 3


def test_what_a_generator_cannot_do_is_refused(generator, phantoms, tmp_path):
    _, run = generator
    for options, said in (({"steps": 2}, "2 steps"), ({"guidance": 2.0}, "guidance"), ({"age": 40}, "age_years")):
        with pytest.raises(UsageError, match=said):
            synthesise(out=tmp_path / "out", model=run.folder, number=1, device="cpu", **options)
    with pytest.raises(UsageError, match="covariates"):
        audit(data=halves(phantoms), out=tmp_path / "a", model=run.folder, device="cpu")


def test_it_goes_on_where_it_stopped_with_all_that_learns(generator, phantoms, tmp_path, monkeypatch):
    """To the same bytes of the generator, and of the discriminator and the encoder in the checkpoint."""
    config, through = generator
    whole = Course._go

    def broken(course, stop):
        course.phase = course.phase.__class__(**{**vars(course.phase), "settings": course.phase.settings.but(steps=2)})
        whole(course, stop)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Course, "_go", broken)
        with pytest.raises(KeyboardInterrupt):
            train(phantoms, config, tmp_path / "tiny")
    resumed = train(phantoms, config, tmp_path / "tiny", resume="must")
    assert resumed.weights("denoiser").read_bytes() == through.weights("denoiser").read_bytes()
    states = [(run.checkpoints("denoiser") / "step_00000004.safetensors").read_bytes() for run in (resumed, through)]
    assert states[0] == states[1]
