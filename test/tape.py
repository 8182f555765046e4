"""What a CUDA graph does, on a CPU: operations are recorded once and repeated on the same tensors, no Python between them."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffuser_core.backends import LoopGraphs
from diffuser_core.planner import Planner

READS = {'_local_scalar_dense', 'equal', 'is_nonzero', 'nonzero', 'masked_select', 'unique2', '_unique2', 'item'}
"""Operations whose result, or whose result's shape, the host has to wait for."""


class HostAccess(RuntimeError):
    """The recorded function read a tensor on the host, or used one that was made there meanwhile."""


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.numel()]


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """Records operations. With `known`, the tensors of an earlier run, it raises HostAccess where a CUDA graph could not record:
    where the host reads, or where an operand is neither known nor the result of a recorded operation."""

    def __init__(self, known=None):
        super().__init__()
        self.strict = known is not None
        self.seen = dict(known or {})  # storage -> tensor, which keeps the storage from being used again
        self.steps = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.strict and func.overloadpacket.__name__ in READS:
            raise HostAccess(f'{func} is read on the host')
        for operand in tensors((args, kwargs)):
            if self.strict and storage(operand) not in self.seen:
                raise HostAccess(f'{func} has an operand of shape {tuple(operand.shape)} that was made on the host')
            self.seen.setdefault(storage(operand), operand)
        results = func(*args, **kwargs)
        self.seen.update((storage(result), result) for result in tensors(results))
        self.steps.append((func, args, kwargs, results))
        return results

    def replay(self):
        with torch.no_grad():
            for func, args, kwargs, results in self.steps:
                own = {storage(operand) for operand in tensors((args, kwargs))}
                for old, new in zip(tensors(results), tensors(func(*args, **kwargs)), strict=True):
                    if storage(old) not in own:  # neither a view nor in place
                        old.copy_(new)


def taped(function, generator):
    """Stands in for `cuda_capture`."""
    state = generator.get_state()
    with Tape() as first:
        function()
    generator.set_state(state)
    with Tape(first.seen) as tape:
        results = function()
    generator.set_state(state)  # what is recorded is not run
    return tape.replay, results


class TapedPlanner(Planner):
    """Plans as the backend 'cudagraph' does, with tapes in place of CUDA graphs."""

    def __init__(self, checkpoint, size=8, **options):
        super().__init__(checkpoint, backend='eager', **options)
        self._graphs = LoopGraphs(taped, size)
