"""The whole drawing of plans as one CUDA graph: all levels, guidance with its gradients, wanted values, inpainting, units.

Run operation by operation, a GPU waits for Python most of the time: a small network is a few hundred kernels of microseconds
each. A graph is recorded once and then launched as a whole. It repeats the recorded operations on the same memory, so whatever
differs from call to call is copied into a buffer that the graph reads, and whatever else Python decides is fixed when it is
recorded: the shape, the levels, the options and the guide, which together are its key. Random numbers come from the planner's
generator, registered with the graph, so that every replay draws new ones and a seed means what it means elsewhere.

Guides must be made of tensor operations on the device. The numbers that a guide holds in Python (a factor, a target) are recorded
with the graph; to change them, make another guide.

No GPU has run this so far. What is tested without one (test/test_cuda_graph.py): the loop reads no tensor on the host and makes
none there, for every solver, rule and option, and its recorded operations, repeated on new inputs, give the numbers of the
loop itself.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ['LoopGraphs', 'cuda_capture']

Capture = Callable[[Callable[[], Any], torch.Generator], tuple[Callable[[], object], Any]]

WARM_UP = 3
"""Runs before the recording, as PyTorch asks for: libraries choose kernels, guides copy their constants to the device."""


def cuda_capture(function: Callable[[], Any], generator: torch.Generator) -> tuple[Callable[[], object], Any]:
    """`function` as a CUDA graph: what replays it, and its results, which every replay overwrites.

    `generator` is left as it was. ValueError if something in `function` cannot be captured.
    """
    with torch.cuda.device(generator.device):
        state = generator.get_state()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(side)
        generator.set_state(state)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(graph):
                results = function()
        except RuntimeError as error:
            raise ValueError('the denoising loop cannot be captured as a CUDA graph; a guide that reads numbers on the host '
                             "(item, a branch on a tensor) or makes tensors there needs the backend 'traced': "
                             f'{str(error).splitlines()[0]}') from error
    return graph.replay, results


@dataclass(frozen=True)
class _Graph:
    buffer: torch.Tensor
    replay: Callable[[], object]
    results: Any
    function: Callable[[torch.Tensor], Any]  # keeps the guide alive, whose identity is part of the key


class LoopGraphs:
    """Captured loops by key, the `size` last used: guides may be new at every call, and a graph holds memory.

    capture  how a function is captured: see `cuda_capture`
    """

    def __init__(self, capture: Capture = cuda_capture, size: int = 8) -> None:
        if size < 1:
            raise ValueError(f'at least one graph must be kept, got {size}')
        self._capture, self._size = capture, size
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self.captured = 0
        """Graphs made so far."""

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, function: Callable[[torch.Tensor], Any], inputs: torch.Tensor,
            generator: torch.Generator) -> Any:
        """What `function(inputs)` returns, by the graph for `key` and the shape of `inputs`; captured if there is none.

        Equal keys must mean functions of the same operations. The tensors in the result are valid until the next call.
        """
        key = key, inputs.shape
        graph = self._graphs.get(key)
        if graph is None:
            while len(self._graphs) >= self._size:
                self._graphs.popitem(last=False)
            buffer = inputs.to(generator.device, copy=True)
            replay, results = self._capture(lambda: function(buffer), generator)
            graph = self._graphs[key] = _Graph(buffer, replay, results, function)
            self.captured += 1
        else:
            graph.buffer.copy_(inputs)
        self._graphs.move_to_end(key)
        graph.replay()
        return graph.results
