"""Time of one network call of the shipped planner: as a module and as the traced graph that plans, interleaved, one thread.

    python benchmarks/network_call.py
"""

import time

import numpy as np
import torch

from diffuser_core.planner import Planner
from diffuser_core.shipped import checkpoint_folder

WARM_UP, CALLS = 20, 300


def main() -> None:
    """Print median and p99 of both in milliseconds, and how far their numbers differ."""
    torch.set_num_threads(1)
    planner = Planner.from_checkpoint(checkpoint_folder('kuka_stack'))
    network, graph = planner.checkpoint.network(), planner._denoiser.network
    x = torch.randn(1, planner.checkpoint.horizon, len(planner.channels), generator=torch.Generator().manual_seed(0))
    i = torch.tensor([5])
    times: dict[str, list[float]] = {'module': [], 'graph': []}
    with torch.inference_mode():
        context = network.encode(x, torch.ones_like(x, dtype=torch.bool))
        for n in range(WARM_UP + CALLS):
            for name, call in (('module', network), ('graph', graph)):
                began = time.perf_counter()
                call(x, i, context)
                if n >= WARM_UP:
                    times[name].append(1e3 * (time.perf_counter() - began))
        difference = float((network(x, i, context) - graph(x, i, context)).abs().max())
    for name, values in times.items():
        print(f'{name:<8} p50 {np.percentile(values, 50):.2f} ms   p99 {np.percentile(values, 99):.2f} ms')
    print(f'largest difference {difference:.1e}')


if __name__ == '__main__':
    main()
