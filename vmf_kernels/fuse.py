"""A model for inference: what follows a convolution is computed in it."""

import copy
import inspect
import logging
import operator
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_weights, parametrize
from torch.utils import _pytree as pytree

from vmf_kernels import onednn
from vmf_kernels.accelerate import inference, swap
from vmf_kernels.layers import (
    IN_PLACE,
    AcceleratedConv3d,
    DepthwiseConv3d,
    FusedConv3d,
    FusedDepthwiseConv3d,
    multiply_in_place,
)

ACTIVATIONS: dict[Any, str] = {
    nn.ReLU: "relu",
    F.relu: "relu",
    torch.relu: "relu",
    "relu": "relu",
    "relu_": "relu",
    nn.ReLU6: "relu6",
    F.relu6: "relu6",
    nn.Hardswish: "hardswish",
    F.hardswish: "hardswish",
    nn.SiLU: "silu",
    F.silu: "silu",
    nn.GELU: "gelu",
    F.gelu: "gelu",
}
ACTIVATION_MODULES = tuple(key for key in ACTIVATIONS if isinstance(key, type))
ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
PRODUCTS = (operator.mul, torch.mul, "mul")
# What they return is no view.
NEW = (operator.add, torch.add, *PRODUCTS, multiply_in_place)
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)  # when inferring
NORMS = (nn.BatchNorm3d, nn.SyncBatchNorm)
CONVOLUTIONS = (nn.Conv3d, DepthwiseConv3d, AcceleratedConv3d)
FUSED = (FusedConv3d, FusedDepthwiseConv3d)
POOLS = (nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d, nn.AvgPool3d, nn.MaxPool3d)
# Layers whose output is memory of its own, and which keep none of their input.
MAKING = (*CONVOLUTIONS, *FUSED, *NORMS, *POOLS)
WRITING = (operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_log = logging.getLogger("vmf_kernels")


def fuse(model: nn.Module, sample: Any = None) -> nn.Module:
    """A copy of a model for inference, with fewer passes over its features.

    BatchNorms are folded into the 3D convolutions before them. An activation after a convolution
    (ReLU, ReLU6, Hardswish, SiLU, exact GELU), and the addition of a residual, become part of its
    pass; other activations and products write where they read, and an addition where its residual
    is, if nobody else reads that. The depthwise layers run our kernels, as after `accelerate`; the
    others run oneDNN's where they can, in float32 on a CPU.

    The model's forward is traced by `torch.fx`. Where it cannot be (its path depends on the
    features' values or shapes) its children are, each on its own; what is not understood, shared,
    hooked or parametrized stays as it is. Arguments with a default value keep that value. A forward
    that asks for the type of its features may be misread, which a sample finds.

    Args:
        model: any module, in whatever mode; it stays as it is.
        sample: a clip (N, C, T, H, W), or a tuple of the model's arguments: with it the two
            models' outputs are compared.

    Returns:
        The copy, in eval mode, its parameters without gradients: a `torch.fx.GraphModule` where
        the model could be traced as a whole and something was fused, else the model's class. The
        logger `vmf_kernels` is told (level INFO) how much was fused.

    Raises:
        TypeError: it is no module.
        RuntimeError: the outputs for the sample differ by more than rounding.

    Example:
        >>> fused = fuse(model, sample=clip)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: takes an nn.Module (got {type(model).__name__})")
    copied = swap(copy.deepcopy(model).eval().requires_grad_(False))
    counts: Counter[str] = Counter()
    fused = _fuse(copied, counts)
    if fused is not copied:  # its hooks are around it
        vars(fused).update({k: v for k, v in vars(copied).items() if k.startswith("_forward_")})
    _log.info(
        "fuse: moved into convolutions: %d BatchNorms, %d activations, %d residuals; "
        "%d layers write where they read",
        *(counts[what] for what in ("BatchNorms", "activations", "residuals", "in place")),
    )
    if sample is not None:
        _compare(model, fused, sample if isinstance(sample, tuple) else (sample,))
    return fused


def _fuse(module: nn.Module, counts: Counter[str]) -> nn.Module:
    """The fused graph of a module; the module itself where there is none."""
    if _is_leaf(module):
        return module
    graph, opaque = _trace(module)
    if graph is None:
        for name, child in list(module.named_children()):
            _plant(module, name, child, counts)
        return module
    rewriting = _Rewriting(module, graph)
    fused = rewriting.result()
    counts.update(rewriting.counts)
    before = counts.total()
    for name in opaque:
        _plant(fused, name, fused.get_submodule(name), counts)
    if not rewriting.counts and counts.total() == before:
        return module
    return fused


def _plant(owner: nn.Module, name: str, module: nn.Module, counts: Counter[str]) -> None:
    """Lets calls of a module run its fused graph, which the owner keeps.

    The module stays what others may take it for: its class, its hooks, its children.
    """
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        for child_name, child in module.named_children():
            _plant(owner, f"{name}.{child_name}", child, counts)
        return
    fused = _fuse(module, counts)
    if fused is not module:
        owner.add_module("fused_" + name.replace(".", "_"), fused)
        vars(module)["forward"] = fused.forward


class _Tracer(fx.Tracer):
    # The default is for `torch.load`, which makes one to read a saved graph with.
    def __init__(self, opaque: Collection[nn.Module] = ()) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return _is_leaf(module) or _has_hooks(module) or module in self.opaque


def _is_leaf(module: nn.Module) -> bool:
    ours = isinstance(module, nn.Conv3d | nn.ConvTranspose3d)
    return ours or fx.Tracer().is_leaf_module(module, "")


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _trace(module: nn.Module) -> tuple[fx.Graph | None, list[str]]:
    """What its forward does, and the names of those within whose forwards are not in it.

    These have hooks, or go ways that depend on the features; a module that does has no graph.
    """
    opaque: list[nn.Module] = []
    graph = _graph(module, opaque)
    if graph is None:
        within = [child for child in reversed(list(module.modules())) if child is not module]
        for child in within:
            callable_ = not isinstance(child, nn.ModuleList | nn.ModuleDict)
            if callable_ and not _is_leaf(child) and _graph(child, opaque) is None:
                opaque.append(child)
        graph = _graph(module, opaque)
    if graph is None:
        return None, []
    called = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    return graph, [name for name in called if not _is_leaf(module.get_submodule(name))]


def _graph(module: nn.Module, opaque: Collection[nn.Module]) -> fx.Graph | None:
    """What a forward does with the defaults of its optional arguments; None if that varies."""
    if "forward" in vars(module):
        return None  # torch.fx would trace its class's
    parameters = inspect.signature(module.forward).parameters.values()
    constants = {
        p.name: p.default
        for p in parameters
        if p.default is None or isinstance(p.default, bool | int | float | str)
    }
    try:
        return _Tracer(opaque).trace(module, concrete_args=constants or None)
    except Exception:  # whatever a model's own code raises when it meets a placeholder
        return None


class _Rewriting:
    """A module's graph while its convolutions take in what follows them."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        self.counts: Counter[str] = Counter()
        self.model = fx.GraphModule(module, graph, type(module).__name__)
        self.graph = self.model.graph
        calls = Counter(node.target for node in self.graph.nodes if node.op == "call_module")
        for node in list(self.graph.nodes):
            if self._module(node, NOTHING) is not None:
                self._skip(node)
        for node in list(self.graph.nodes):
            layer = self._module(node, CONVOLUTIONS)
            if layer is not None and calls[node.target] == 1 and len(node.args) == 1:
                self._fuse(node, layer)
        for node in list(self.graph.nodes):
            self._write_in_place(node)
        for node in self.graph.nodes:
            self._overwrite_residual(node)
            self._multiply_in_place(node)

    def result(self) -> fx.GraphModule:
        """The fused module."""
        self.graph.lint()
        self.model.delete_all_unused_submodules()
        self.model.recompile()
        return self.model

    def _module(self, node: fx.Node | None, types: tuple[type, ...]) -> Any:
        """The module that a node calls, if it is of these very types, and plain."""
        if node is None or node.op != "call_module":
            return None
        module = self.model.get_submodule(str(node.target))
        plain = type(module) in types and not _has_hooks(module)
        return module if plain and "forward" not in vars(module) else None

    def _skip(self, node: fx.Node) -> None:
        node.replace_all_uses_with(node.all_input_nodes[0])
        self.graph.erase_node(node)

    def _fuse(self, node: fx.Node, layer: nn.Conv3d) -> None:
        if parametrize.is_parametrized(layer):
            return
        norm = self._module(_only_user(node), NORMS)
        if norm is not None and norm.running_mean is not None:
            layer = _with_norm(layer, norm)
            self.model.set_submodule(str(node.target), layer)
            self._skip(next(iter(node.users)))
            self.counts["BatchNorms"] += 1
        ours = isinstance(layer, DepthwiseConv3d)
        follower, residual = _only_user(node), None
        addition = follower
        if follower is not None and (residual := _added(follower, node)) is not None:
            follower = _only_user(follower)
        activation = self._activation(follower)
        if residual is not None and not ours and activation not in onednn.AFTER_RESIDUAL:
            activation = None
        if residual is None and activation is None:
            return
        if residual is not None:
            assert addition is not None
            if self._writes_between(node, addition):
                return
            node = self._at(addition, node, residual)
            self.counts["residuals"] += 1
        if activation is not None:
            assert follower is not None
            self._skip(follower)
            self.counts["activations"] += 1
        fused: Any = _copied(layer)
        fused.__class__ = FusedDepthwiseConv3d if ours else FusedConv3d
        fused.activation = activation
        self.model.set_submodule(str(node.target), fused)

    def _write_in_place(self, node: fx.Node) -> None:
        """An activation writes where it reads, if nobody else reads that."""
        function = IN_PLACE.get(self._activation(node) or "")
        if function is None or len((source := node.all_input_nodes[0]).users) > 1:
            return
        if self._is_new(source):
            with self.graph.inserting_before(node):
                written = self.graph.call_function(function, (source,), {"inplace": True})
            node.replace_all_uses_with(written)
            self.graph.erase_node(node)
            self.counts["in place"] += 1

    def _overwrite_residual(self, node: fx.Node) -> None:
        """A convolution writes where its residual is, if nobody reads that later."""
        layer = self._module(node, (FusedConv3d,))
        if layer is None or len(node.args) == 1:
            return
        residual = node.args[1]
        if node.args[0] is not residual and self._is_last_read_by(node, residual):
            layer.overwrites = True
            self.counts["in place"] += 1

    def _multiply_in_place(self, node: fx.Node) -> None:
        """A product is written where its first factor is, if nobody reads that later."""
        plain = node.target in PRODUCTS and len(node.args) == 2 and not node.kwargs
        if plain and self._is_last_read_by(node, node.args[0]):
            node.op, node.target = "call_function", multiply_in_place
            self.counts["in place"] += 1

    def _is_last_read_by(self, node: fx.Node, value: Any) -> bool:
        """Whether a value is memory that nobody reads after this node."""
        if not isinstance(value, fx.Node) or not self._is_new(value):
            return False
        others = [user for user in value.users if user is not node]
        return all(user < node and self._module(user, MAKING) for user in others)

    def _is_new(self, node: fx.Node) -> bool:
        """Whether its output is memory that nobody else has."""
        return node.target in NEW or self._module(node, MAKING) is not None

    def _writes_between(self, first: fx.Node, last: fx.Node) -> bool:
        """Whether something between two nodes may change a tensor that the first one reads."""
        node = first.next
        while node is not last:
            name = str(node.target)
            module = self.model.get_submodule(name) if node.op == "call_module" else None
            if (
                (node.op == "call_method" and name.endswith("_") and not name.endswith("__"))
                or node.target in WRITING
                or node.kwargs.get("inplace")
                or node.kwargs.get("out") is not None
                or getattr(module, "inplace", False)
            ):
                return True
            node = node.next
        return False

    def _activation(self, node: fx.Node | None) -> str | None:
        if node is None:
            return None
        if node.op == "call_module":
            module = self._module(node, ACTIVATION_MODULES)
            if module is None or getattr(module, "approximate", "none") != "none":
                return None
            return ACTIVATIONS[type(module)]
        if len(node.args) != 1 or node.kwargs.keys() - {"inplace"}:
            return None
        return ACTIVATIONS.get(node.target)

    def _at(self, addition: fx.Node, node: fx.Node, residual: fx.Node) -> fx.Node:
        """The convolution in place of the addition, where its residual is known."""
        with self.graph.inserting_before(addition):
            moved = self.graph.call_module(str(node.target), (*node.args, residual))
        addition.replace_all_uses_with(moved)
        self.graph.erase_node(addition)
        self.graph.erase_node(node)
        return moved


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _added(node: fx.Node, part: fx.Node) -> fx.Node | None:
    """What a node adds to one of its parts, if that is all it does."""
    if node.target not in ADDITIONS or len(node.args) != 2 or node.kwargs:
        return None
    others = [arg for arg in node.args if arg is not part]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _copied(layer: nn.Conv3d) -> nn.Conv3d:
    """Another layer with the same parameters, whose hooks are its own."""
    copied = copy.copy(layer)
    vars(copied).update({k: copy.copy(v) for k, v in vars(layer).items() if isinstance(v, dict)})
    return copied


def _with_norm(layer: nn.Conv3d, norm: Any) -> nn.Conv3d:
    """A copy of the convolution that computes what the two did."""
    folded = _copied(layer)
    folded.weight, folded.bias = fuse_conv_bn_weights(
        layer.weight,
        layer.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    return folded.requires_grad_(False)


def _compare(model: nn.Module, fused: nn.Module, sample: tuple[Any, ...]) -> None:
    with inference(model):
        expected, found = (pytree.tree_leaves(m(*copy.deepcopy(sample))) for m in (model, fused))
    for a, b in zip(expected, found, strict=True):
        if isinstance(a, Tensor) and a.dtype in TOLERANCES and a.numel():
            most = TOLERANCES[a.dtype] * a.abs().max().item()
            error = (a - b).abs().max().item()
            if not error <= most:
                raise RuntimeError(
                    "fuse: the outputs for the sample must not differ by more than rounding "
                    f"(got {error:.2g}, allowed {most:.2g})"
                )
