"""A torch module executed by OpenVINO on the CPU. Nothing calls home: OpenVINO's telemetry is never imported."""

from __future__ import annotations

import copy
import sys
import warnings
from typing import Any

import torch
from torch import nn

from diffuser_core.backends.phase_conv import PhaseConv

__all__ = ['OpenVinoGraph']


class _Mish(nn.Module):
    """x tanh(log(1 + e^x)), written with one exponential: OpenVINO can merge that with its neighbours, its own Mish it cannot."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e = torch.exp(x.clamp(max=20.0))
        n = e * (e + 2.0)
        return x * (n / (n + 2.0))


def _exported(module: nn.Module, precision: str) -> nn.Module:
    """`module`, changed in place to layers that OpenVINO is fast at: it has no transposed convolution in bfloat16."""
    for name, child in module.named_children():
        if isinstance(child, nn.Mish):
            setattr(module, name, _Mish())
        elif isinstance(child, nn.ConvTranspose1d) and precision == 'bf16':
            setattr(module, name, PhaseConv(child.weight, child.bias, child.stride[0], int(child.padding[0])))
        else:
            _exported(child, precision)
    return module


class _Request:
    """A compiled graph with its own memory for inputs and outputs, seen as tensors: handing new arrays over at every call costs
    more than copying into it."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.inputs, self.outputs = ([torch.from_numpy(tensor.data) for tensor in tensors]
                                     for tensors in (request.input_tensors, request.output_tensors))

    def run(self) -> None:
        """From the inputs to the outputs."""
        self._request.infer(share_outputs=True)


class OpenVinoGraph:
    """`module` as a function of tensors with the ranks and types of `inputs`.

    Every combination of shapes is compiled when it is first seen, and kept. Results are the caller's: later calls leave them
    alone. As many threads as torch has at that time. No gradients flow through it.
    """

    def __init__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], precision: str = 'f32') -> None:
        openvino = _openvino()
        self._core = openvino.Core()
        self._precision = precision
        self._requests: dict[tuple[torch.Size, ...], _Request] = {}
        module = _exported(copy.deepcopy(module), precision)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            self._model = openvino.convert_model(module, example_input=inputs)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
            raise ValueError("gradients cannot flow through the backend 'openvino'; use 'traced' for the guidance rule "
                             "'posterior' and for Sampling(through=True)")
        request = self._request(tuple(x.shape for x in inputs))
        for own, x in zip(request.inputs, inputs):
            own.copy_(x.detach())
        request.run()
        results = tuple(own.clone() for own in request.outputs)
        return results[0] if len(results) == 1 else results

    def _request(self, shapes: tuple[torch.Size, ...]) -> _Request:
        if shapes not in self._requests:
            model = self._model.clone()
            model.reshape({n: list(shape) for n, shape in enumerate(shapes)})
            compiled = self._core.compile_model(model, 'CPU', {
                'INFERENCE_NUM_THREADS': torch.get_num_threads(), 'NUM_STREAMS': '1', 'PERFORMANCE_HINT': 'LATENCY',
                'INFERENCE_PRECISION_HINT': self._precision})
            self._requests[shapes] = _Request(compiled.create_infer_request())
        return self._requests[shapes]


def _openvino() -> Any:
    """The package, imported with its telemetry shut out; ValueError, saying what to install, if it is not there."""
    sys.modules.setdefault('openvino_telemetry', None)  # type: ignore[arg-type]  # its import then fails, and a stub is used
    try:
        import openvino
    except ImportError as error:
        raise ValueError("the backend 'openvino' needs OpenVINO: pip install 'diffuser-ros[openvino]'") from error
    return openvino
