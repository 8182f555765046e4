"""How networks are executed: one interface, several ways, all tested to agree with eager float32."""

from diffuser_core.backends.cuda_graph import LoopGraphs
from diffuser_core.backends.registry import BACKENDS, execute, value_gradient, value_only

__all__ = ['BACKENDS', 'LoopGraphs', 'execute', 'value_gradient', 'value_only']
