"""A Gaussian distribution of trajectories, for which every quantity of diffusion planning has a closed form (float64)."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from diffuser_core.sampler import Denoiser, Guidance, denoise
from diffuser_core.schedule import NoiseSchedule, strided_levels


@dataclass(frozen=True)
class Gaussian:
    """Trajectories of shape `shape` whose flattened entries have this mean (n,) and covariance (n, n)."""

    mean: np.ndarray
    covariance: np.ndarray
    shape: tuple[int, int] = (3, 2)

    @classmethod
    def random(cls, seed=0, shape=(3, 2)):
        rng = np.random.default_rng(seed)
        n = shape[0] * shape[1]
        root = rng.normal(size=(n, n)) / math.sqrt(n)
        return cls(0.5 * rng.normal(size=n), root @ root.T + 0.1 * np.eye(n), shape)

    def gain(self, a):
        """d E[clean | noisy] / d noisy at signal share `a`."""
        n = len(self.mean)
        return math.sqrt(a) * self.covariance @ np.linalg.inv(a * self.covariance + (1 - a) * np.eye(n))

    def left(self, a):
        """Cov[clean | noisy] at signal share `a`."""
        return self.covariance - math.sqrt(a) * self.gain(a) @ self.covariance

    def clean(self, flat, a):
        """E[clean | noisy] of rows `flat` (batch, n)."""
        return self.mean + (flat - math.sqrt(a) * self.mean) @ self.gain(a).T

    def given(self, known):
        """This distribution, given entries {index: value}: those keep their value, the others are conditioned on them."""
        index = np.array(sorted(known))
        values = np.array([known[k] for k in index])
        rest = np.setdiff1d(np.arange(len(self.mean)), index)
        c = self.covariance
        gain = c[np.ix_(rest, index)] @ np.linalg.inv(c[np.ix_(index, index)])
        mean, covariance = self.mean.copy(), np.zeros_like(c)
        mean[index] = values
        mean[rest] = self.mean[rest] + gain @ (values - self.mean[index])
        covariance[np.ix_(rest, rest)] = c[np.ix_(rest, rest)] - gain @ c[np.ix_(index, rest)]
        return Gaussian(mean, covariance, self.shape)

    def tilted(self, slope, curvature=None):
        """The distribution proportional to p(x) exp(slope x - x curvature x / 2)."""
        n = len(self.mean)
        curvature = np.zeros((n, n)) if curvature is None else curvature
        covariance = np.linalg.inv(np.linalg.inv(self.covariance) + curvature)
        return Gaussian(covariance @ (np.linalg.solve(self.covariance, self.mean) + slope), covariance, self.shape)

    def network(self, schedule, prediction='x0'):
        """The exact network for this distribution."""
        def call(noisy, i, context):
            a = schedule.alpha_bar[i[0]].item()
            flat = noisy.double().numpy().reshape(len(noisy), -1)
            clean = self.clean(flat, a)
            noise = (flat - math.sqrt(a) * clean) / math.sqrt(1 - a)
            out = {'x0': clean, 'epsilon': noise, 'v': math.sqrt(a) * noise - math.sqrt(1 - a) * clean}[prediction]
            return torch.from_numpy(out.reshape(noisy.shape))
        return call

    def differentiable(self, schedule):
        """The exact x0 network, in torch operations."""
        def call(noisy, i, context):
            a = schedule.alpha_bar[i[0]].item()
            gain, mean = torch.from_numpy(self.gain(a)), torch.from_numpy(self.mean)
            return (mean + (noisy.flatten(1) - math.sqrt(a) * mean) @ gain.T).reshape(noisy.shape)
        return call

    def exact_guide(self, schedule, slope, curvature=None):
        """Gradient of J_i(x) = log E[exp J | x at level i] for J = slope x - x curvature x / 2, as the sampler asks for it."""
        n = len(self.mean)
        curvature = np.zeros((n, n)) if curvature is None else curvature

        def gradient(x, i):
            a = schedule.alpha_bar[i].item()
            left = self.left(a)
            clean = self.clean(x.numpy().reshape(len(x), n), a)
            # x0 | x is normal with mean m = clean and covariance C = left, so
            # log E[exp J] = const - (m - d) S^-1 (m - d) / 2 with J = -(x - d) Q (x - d) / 2 ..., differentiated by m:
            shrunk = np.linalg.inv(np.eye(n) + curvature @ left)
            by_mean = (slope - clean @ curvature) @ shrunk.T
            return torch.zeros(len(x)), torch.from_numpy((by_mean @ self.gain(a)).reshape(x.shape))
        return gradient


def affine_map(denoiser, levels, prior, *, guidance=None, solver='ddim', known=None, mask=None, soft=None):
    """The deterministic sampler as the affine map it is for a Gaussian: (matrix, offset) from flat start to flat result."""
    n = len(prior.mean)
    start = torch.from_numpy(np.vstack([np.zeros(n), np.eye(n)]).reshape(n + 1, *prior.shape))
    known = torch.zeros(prior.shape, dtype=torch.float64) if known is None else known
    mask = torch.zeros(prior.shape, dtype=torch.bool) if mask is None else mask
    out = denoise(denoiser, start, levels, known, mask, torch.Generator().manual_seed(0), solver=solver, guidance=guidance,
                  soft=soft).clean.numpy().reshape(n + 1, n)
    return (out[1:] - out[0]).T, out[0]


def deterministic_error(prior, truth, steps, solver, *, levels=1000, prediction='x0', gradient=None, rule='score',
                        differentiable=False):
    """Largest error of mean and of covariance of a deterministic sampler started from its exact normal noise."""
    schedule = NoiseSchedule.cosine(levels)
    network = prior.differentiable(schedule) if differentiable else prior.network(schedule, prediction)
    denoiser = Denoiser(network, schedule, prediction, clip=False)
    guidance = None if gradient is None else Guidance(gradient(schedule), rule)
    matrix, offset = affine_map(denoiser, strided_levels(levels, steps), prior, guidance=guidance, solver=solver)
    return np.abs(offset - truth.mean).max(), np.abs(matrix @ matrix.T - truth.covariance).max()
