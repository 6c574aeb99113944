"""DRConv in a model that is built already, by module name: ``convert``, and ``Retrofit`` from a config."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from ..registration import register
from .build_report import report, report_pending
from .conv_type import OWN_ARGUMENTS, ApplyTo, refuse_unknown
from .drconv import DRConv2d


def convert(
    model: nn.Module,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    *,
    apply_to: dict | None = None,
    **drconv,
) -> dict[str, DRConv2d]:
    """Replaces convolutions of any PyTorch model by DRConv layers, in place; the model computes what it did before.

    Weights, bias, device, dtype, training mode and ``requires_grad`` are taken over.

    Args:
        model: Any module that is not a convolution itself.
        include: Shell patterns of module names (``'backbone.layer1.*'``; ``*`` crosses dots). A name stands for all
            that lies below it as well. A module that stands at several places is replaced at all of them, if one of its
            names matches.
        exclude: Patterns that are left alone, in the same form.
        apply_to: Of the convolutions named, those that become dynamic: a dict of `ApplyTo`'s arguments.
        **drconv: `DRConv2d`'s own arguments: ``num_regions``, ``generator``, ``guide_kernel_size``, ...

    Returns:
        The new layers by name.

    Raises:
        ValueError: An argument that `DRConv2d` does not have; a pattern that matches no convolution, with near misses;
            nothing that may become dynamic, with the reasons; or a generator without the static kernel that weights go
            into. The model is as it was.
    """
    refuse_unknown("convert has no argument", drconv, [*OWN_ARGUMENTS, "apply_to", "include", "exclude"])
    include, exclude = _patterns("include", include), _patterns("exclude", exclude)
    rule, num_regions = ApplyTo.from_config(apply_to), drconv.get("num_regions", 8)
    generator = drconv.get("generator")
    if isinstance(generator, dict) and not generator.get("static", True):
        raise ValueError(f"generator={generator!r} has no static kernel for the weights to go into; leave `static` out")
    if isinstance(model, nn.Conv2d):
        raise ValueError("model is a convolution itself and can't be replaced in place; build a DRConv2d instead")
    convolutions = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, (nn.Conv2d, DRConv2d))
    }
    for argument, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not any(_matches(name, pattern) for name in convolutions):
                parts = [name.split(".") for name in convolutions]
                known = {".".join(names[:end]) for names in parts for end in range(1, len(names) + 1)}
                near = difflib.get_close_matches(pattern.rstrip(".*"), sorted(known), 3, 0.4)
                raise ValueError(
                    f"{argument}={pattern!r} matches none of the {len(convolutions)} convolutions"
                    f"{'; near misses: ' + ', '.join(near) if near else ''}. "
                    "See dict(model.named_modules()) for the names; '*' stands for any part"
                )
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    plain: Counter = Counter()
    # A module that stands at several places (a shared head) is one: named by any of its names, at all of them.
    places: dict[int, list[str]] = {}
    for name, module in convolutions.items():
        places.setdefault(id(module), []).append(name)
    chosen: list[list[str]] = []
    for names in places.values():
        module = convolutions[names[0]]
        named, left_out = (any(_matches(n, p) for n in names for p in patterns) for patterns in (include, exclude))
        if named and not left_out and not isinstance(module, DRConv2d):
            tied = any(owners[id(p)] > 1 for p in module.parameters(recurse=False))
            reason = "it shares a parameter with another module" if tied else _why_not(module, rule, num_regions)
            if reason is None:
                chosen.append(names)
            else:
                plain[reason] += 1
    if not chosen:
        reasons = "; ".join(f"{count}: {reason}" for reason, count in plain.most_common()) or "all are DRConv already"
        raise ValueError(f"none of the convolutions named may become DRConv ({reasons}); change include or apply_to")
    layers = [_from_conv(convolutions[names[0]], drconv) for names in chosen]
    changed = {name: layer for names, layer in zip(chosen, layers, strict=True) for name in names}
    for name, layer in changed.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)
    report(layers, plain)
    return changed


def _patterns(argument: str, patterns: str | Sequence[str]) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"{argument} must be a pattern or a list of them, got {patterns!r}")
    if argument == "include" and not patterns:
        raise ValueError("include is empty, which names nothing; leave it out to name every convolution")
    return patterns


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


def _why_not(module: nn.Conv2d, rule: ApplyTo, num_regions: int) -> str | None:
    # A subclass with a forward of its own (weight standardisation, adaptive padding, ...) computes something else.
    if type(module) is not nn.Conv2d and not type(module).__module__.startswith("mmcv.cnn.bricks.wrappers"):
        return f"it is a {type(module).__name__}, not a plain Conv2d"
    if "weight" not in module._parameters:
        return "its weight is parametrized (weight or spectral norm)"
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hook is not report_pending for found in hooks for hook in found.values()):
        return "it has hooks, which would be lost"
    return rule.why_not(module.in_channels, module.out_channels, module.kernel_size, module.groups, num_regions)


def _from_conv(conv: nn.Conv2d, drconv: dict) -> DRConv2d:
    layer = DRConv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups,
        conv.bias is not None, conv.padding_mode, conv.weight.device, conv.weight.dtype, **drconv,
    )  # fmt: skip
    layer.load_state_dict(conv.state_dict())
    layer.train(conv.training)
    layer.requires_grad_(conv.weight.requires_grad)
    if conv.bias is not None:
        layer.bias.requires_grad_(conv.bias.requires_grad)
        layer.copied_bias = None if conv.bias.is_meta else conv.bias.detach().cpu().clone()
    return layer


@register
class Retrofit:
    """A model of a config with DRConv in chosen places, the config staying flat.

    ``model=dict(type='drconv_mm.Retrofit', drconv=dict(model_type='RetinaNet', include=['backbone.layer1']), ...)``
    builds what ``type='RetinaNet'`` would build from the other keys, and converts it. Code that reads
    ``cfg.model.backbone`` still works, and so does a checkpoint of the plain model.

    Args:
        drconv: ``model_type``, the type of the model, and `convert`'s arguments.
        **model: The model's own config.

    Returns:
        The model itself.

    Raises:
        ValueError: ``drconv`` without ``model_type``; or what `convert` raises.
    """

    def __new__(cls, drconv: dict, **model) -> nn.Module:
        """Builds the model."""
        from mmengine.registry import MODELS

        arguments = dict(drconv)
        if "model_type" not in arguments:
            raise ValueError(f"drconv must name the model as model_type='RetinaNet' or the like, got {drconv!r}")
        built = MODELS.build(dict(model, type=arguments.pop("model_type")))
        convert(built, **arguments)
        return built
