"""The engine room: schedules, denoisers, solvers, guidance and the one sampling loop. Knows torch and nothing else."""

from medseg_diff.diffusion.condition import Condition
from medseg_diff.diffusion.denoiser import Clipped, Denoiser, Prediction
from medseg_diff.diffusion.guidance import ClassifierFree, ClassifierGuided, Pinned
from medseg_diff.diffusion.noise import SeededNoise
from medseg_diff.diffusion.schedule import Level, NoiseSchedule
from medseg_diff.diffusion.solvers import DDIM, DDPM, AnySolver, DPMSolverPP
from medseg_diff.diffusion.walk import trajectory, walk

__all__ = [
    "DDIM",
    "DDPM",
    "AnySolver",
    "ClassifierFree",
    "ClassifierGuided",
    "Clipped",
    "Condition",
    "DPMSolverPP",
    "Denoiser",
    "Level",
    "NoiseSchedule",
    "Pinned",
    "Prediction",
    "SeededNoise",
    "trajectory",
    "walk",
]
