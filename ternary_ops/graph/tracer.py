# SPDX-License-Identifier: Apache-2.0
"""torch.fx tracers of networks: one whose values have any size, one whose values are at hand."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from ternary_ops.graph.constants import attribute_of
from ternary_ops.graph.lines import calling_line
from ternary_ops.graph.nodes import layer_class
from ternary_ops.graph.sizes import decide_check
from ternary_ops.graph.torch_ops import BY_NAME

# Of these a tensor's shape alone matters: their results are constants of a trace with sizes.
_BY_SHAPE = {
    "zeros_like", "ones_like", "full_like", "empty_like",
    "new_zeros", "new_ones", "new_full", "new_empty", "new_tensor",
}  # fmt: skip
# These return no tensor, and say nothing of a tensor's values.
_ABOUT = {
    "size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "element_size",
    "get_device", "is_floating_point", "is_complex", "is_signed", "type", "storage_offset",
    "__len__", "result_type", "is_tensor", "is_inference", "is_pinned", "is_conj", "is_neg",
    "getattr",
}  # fmt: skip
# The shape of their results depends on values.
_DYNAMIC = {
    "nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount",
    "repeat_interleave",
}  # fmt: skip


class DependsOnValues(TypeError):
    """Python code asks for the values of a tensor, which a trace does not have."""


class NetworkTracer(fx.Tracer):
    """Symbolic: values of any size. Layers of torch.nn and ternary_ops.nn, and modules in `whole`,
    are calls.

    fails: the line of a check of channels or rank that is to fail, see `to_bool`. failed: the
    innermost module that raised. outside: one that is called and not in the tree.
    """

    def __init__(self, whole: Collection[nn.Module] = (), fails: str = "") -> None:
        super().__init__(param_shapes_constant=True)
        self.whole, self._fails = set(whole), fails
        self.checks: set[str] = set()
        self._paths: dict[int, str] = {}  # of parameters and buffers, by id
        self.failed: str | None = None
        self.outside: nn.Module | None = None

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As the base class, and remember the innermost module that raises."""
        if m not in (self.submodule_paths or {}):
            self.outside = m
            raise NameError(f"a {type(m).__name__} is called that is held outside the module tree")
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.failed is None:
                self.failed = self.path_of_module(m)
            raise

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """As the base class; it would look for each tensor among all."""
        tensors = (*root.named_buffers(), *root.named_parameters())
        self._paths = {id(tensor): path for path, tensor in tensors}
        return super().trace(root, concrete_args)

    def create_arg(self, a: Any) -> Any:
        """As the base class."""
        path = self._paths.get(id(a)) if isinstance(a, Tensor) else None
        return super().create_arg(a) if path is None else self.create_node("get_attr", path, (), {})

    def create_proxy(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class, and note the line of the model's code, for messages."""
        proxy = super().create_proxy(*args, **kwargs)
        proxy.node.meta["line"] = calling_line()
        return proxy

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A check of the number of channels or axes passes; other decisions on values stop the
        trace.
        """
        passes = decide_check(obj.node)
        if passes is None:
            return super().to_bool(obj)
        line = calling_line()
        self.checks.add(line)
        return passes != (line == self._fails)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Layers of torch.nn and ternary_ops.nn stay whole, and subclasses that compute alike."""
        return m in self.whole or layer_class(m) is not None


class ValueTracer(NetworkTracer):
    """Runs the network on an example while it traces: sizes, dtypes and devices are Python values,
    and so are constants; only what depends on the input's values is traced.
    """

    def __init__(self, example: Tensor, whole: Collection[nn.Module] = ()) -> None:
        super().__init__(whole)
        self._example = example
        self._running = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """As the base class. A function under torch.fx.wrap that was looked into marks its last
        call as wrapped, and torch.fx would then wrap that function, torch.cat say, for good.
        """
        graph = super().trace(root, concrete_args)
        for node in graph.nodes:
            if _name(node.target) not in BY_NAME:
                node.meta.pop("is_wrapped", None)
        return graph

    def call_module(
        self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """As the base class; what a layer calls while it computes is no part of the trace."""
        if self._running:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """As the base class, while nothing computes."""
        path = self._paths.get(id(attr_val)) if isinstance(attr_val, nn.Parameter) else None
        if self._running or path is None:
            return attr_val
        if path not in parameter_proxy_cache:
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
        return parameter_proxy_cache[path]

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Any:
        """Compute what the call returns: tensors are traced, everything else is a Python value.
        Functions under torch.fx.wrap are looked into, unless they are known by name.
        """
        if isinstance(target, FunctionType) and not target.__module__.startswith("torch."):
            if target.__name__ not in BY_NAME:
                return target(*args, **kwargs)
        node = super().create_proxy(kind, target, args, kwargs, name, type_expr).node
        if kind == "placeholder":
            return AtHand(node, self, self._example, False)
        if kind == "get_attr":
            with self._computing():
                return AtHand(node, self, attribute_of(self.root, target), True)
        read: list[AtHand] = []

        def value_of(a: Any) -> Any:
            if not isinstance(a, AtHand):
                return a
            read.append(a)
            return a.value

        plain_args, plain_kwargs = map_aggregate((args, kwargs), value_of)
        called = _name(target) if kind != "call_module" else ""
        constant = all(part.constant for part in read)
        if not constant:
            _check_shape(called, plain_args, read)
        value = self._compute(kind, target, plain_args, plain_kwargs)
        by_shape = called in _BY_SHAPE
        if not by_shape and _holds_tensor(value):
            return self._traced(node, value, constant)
        if not (constant or by_shape or called in _ABOUT or value is None):
            raise DependsOnValues(f"{called}() asks for the values of a tensor")
        self.graph.erase_node(node)
        return value

    def _compute(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        with self._computing(), torch.no_grad():
            if kind == "call_module":
                return attribute_of(self.root, target)(*args, **kwargs)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        former, self._running = self._running, True
        try:
            yield
        finally:
            self._running = former

    def _traced(self, node: fx.Node, value: Any, constant: bool) -> Any:
        """What a node makes: a tensor, or tuples, lists and dicts of them."""
        if isinstance(value, Tensor):
            return AtHand(node, self, value, constant)
        if isinstance(value, dict):
            return {key: self._part(node, key, v, constant) for key, v in value.items()}
        if not isinstance(value, (tuple, list)):
            return value
        parts = [self._part(node, i, v, constant) for i, v in enumerate(value)]
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        return type(value)(parts)

    def _part(self, node: fx.Node, key: Any, value: Any, constant: bool) -> Any:
        if not _holds_tensor(value):
            return value
        part = self.create_node("call_function", operator.getitem, (node, key), {})
        part.meta["line"] = node.meta.get("line", "")
        return self._traced(part, value, constant)

    def to_bool(self, obj: Any) -> bool:
        """Of a constant its value; others stop the trace."""
        return bool(self.number(obj, "if, while or bool()"))

    def number(self, obj: Any, asks: str) -> Any:
        """The value of a constant for Python code; others stop the trace."""
        if not obj.constant:
            raise DependsOnValues(f"{asks} asks for the values of a tensor")
        return obj.value


class AtHand(fx.Proxy):
    """A traced tensor whose value is known.

    constant: it does not depend on the input.
    """

    tracer: ValueTracer

    def __init__(self, node: fx.Node, tracer: ValueTracer, value: Any, constant: bool) -> None:
        super().__init__(node, tracer)
        self.value, self.constant = value, constant

    def __getattr__(self, k: str) -> Any:
        """Methods and tensors are traced; shape, dtype and their kin are the value's own."""
        found = getattr(self.__dict__["value"], k)
        if isinstance(found, Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, k), {})
        return fx.proxy.Attribute(self, k) if callable(found) else found

    def __len__(self) -> int:
        """The size of the first axis."""
        return len(self.value)

    def __iter__(self) -> Iterator[Any]:
        """The parts along the first axis."""
        me: Any = self
        return iter([me[i] for i in range(len(self.value))])

    def __setitem__(self, key: Any, value: Any) -> None:
        """A write into a part of a tensor changes values that are traced already, unless all of
        it is constant.
        """
        me: Any = self
        part = me[key] if self.constant else me
        kept = part.value.untyped_storage().data_ptr() == self.value.untyped_storage().data_ptr()
        if part is self or not kept or not getattr(value, "constant", True):
            raise DependsOnValues("an assignment writes into a part of a tensor")
        part.copy_(value) if isinstance(value, (AtHand, Tensor)) else part.fill_(value)

    def __float__(self) -> float:
        """Of a constant."""
        return float(self.tracer.number(self, "float()"))

    def __int__(self) -> int:
        """Of a constant."""
        return int(self.tracer.number(self, "int()"))

    def __index__(self) -> int:
        """Of a constant."""
        return int(self.tracer.number(self, "an index"))

    def __array__(self, *args: Any) -> Any:
        """Of a constant."""
        return self.tracer.number(self, "NumPy").detach().numpy()


def _name(target: Any) -> str:
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def _check_shape(called: str, args: Any, read: list[AtHand]) -> None:
    """Raise DependsOnValues for a call whose result has a shape that depends on values."""
    masked = called == "getitem" and any(
        isinstance(a, Tensor) and a.dtype in (torch.bool, torch.uint8) for a in _flat(args[1:])
    )
    tensors = sum(isinstance(a, Tensor) for a in args)
    counted = called in _DYNAMIC and (called != "repeat_interleave" or tensors > 1)
    alone = called == "where" and len(args) == 1
    if masked or counted or alone:
        what = "a mask as index" if masked else f"{called}()"
        raise DependsOnValues(f"{what} makes a shape that depends on the values of a tensor")


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return any(_holds_tensor(part) for part in value)
    return isinstance(value, Tensor)
