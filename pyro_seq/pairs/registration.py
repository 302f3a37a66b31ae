"""Register modules in Pyro's parameter store, also several modules of one class."""

from __future__ import annotations

from itertools import count
from typing import Any
from weakref import ref

import pyro
import torch
from pyro.nn import PyroModule
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from pyro_seq.errors import UserError

# parameters that have been registered here → a weak reference to their module
_OWNERS: Any = WeakTensorKeyDictionary()


def register(module: nn.Module) -> bool:
    """Register a module in Pyro's store by its class's name, so that its parameters are trained.

    `pyro.module` leaves a parameter that it finds under a name in the store as it is. So a second
    module of the class, as from a notebook's cell that runs twice, would silently never learn.
    Therefore

    - parameters of a module that was deleted (or that has other parameters by now) are removed from
      the store;
    - beside a module of the class that is still alive, the next one is called `RNN_2`, and so on,
      so that several can learn side by side. Without gradients no module is registered.

    Random weights (`PyroSample`) are drawn here, once for all sequences: networks inside the plate
    of the sequences would draw other weights for each sequence. Returns whether there are any.

    Raises `UserError` for parameters of these names that no module of this package has registered,
    as after `get_param_store().load(…)`, and for random weights in a module that has not been
    converted as a whole.
    """
    title = _free_title(module)
    if title is not None:
        pyro.module(title, module)
    return _draw_weights(module)


def _free_title(module: nn.Module) -> str | None:
    """Return the name to register a module by; `None` to leave the module alone.

    The name is the module's own already, or free now.
    """
    store: Any = pyro.get_param_store()
    known, kind = store._params, type(module).__name__
    own = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for number in count(1):
        title = kind if number == 1 else f"{kind}_{number}"
        names = {f"{title}$$${name}": parameter for name, parameter in own.items()}
        others = [
            name for name, parameter in names.items() if known.get(name, parameter) is not parameter
        ]
        if all(_owner(known[name], name) in (None, module) for name in others):
            break
        if not torch.is_grad_enabled():
            return None
    if others:  # left by modules that are no more, or by this one
        for name in [
            name for name in known if name.startswith(f"{title}$$$") and known[name] in _OWNERS
        ]:
            if _OWNERS[known[name]]() in (None, module):
                del store[name]
    if not names.keys() <= known.keys():
        owner = ref(module)
        for parameter in own.values():
            _OWNERS[parameter] = owner
    return title


def _draw_weights(module: nn.Module) -> bool:
    """Draw the random weights of a module's parts for this call; return whether there are any."""
    found = False
    for path, part in module.named_modules():
        names = list(part._pyro_samples) if isinstance(part, PyroModule) else []
        if names and not (isinstance(module, PyroModule) and part._pyro_context.active):
            at = f"{path}.{names[0]}".lstrip(".")
            raise UserError(
                f"the weight {at!r} of this {type(module).__name__} is random, and each use of it "
                "would draw another one: convert the model "
                "as a whole before any weight is made a PyroSample, "
                "pyro.nn.module.to_pyro_module_(model), and call it as model(batch)"
            )
        for name in names:
            getattr(part, name)
            found = True
        if names and isinstance(part, nn.RNNBase):  # which has a list of its weights besides
            part._flat_weights = [getattr(part, name) for name in part._flat_weights_names]
    return found


def _owner(parameter: object, name: str) -> nn.Module | None:
    """Return the living module that has registered a parameter and still has it, or `None`.

    Raises `UserError` for a parameter that no module of ours has registered.
    """
    owner = _OWNERS.get(parameter)
    if owner is None:
        kind = name.partition("$$$")[0]
        raise UserError(
            f"Pyro's parameter store holds {name!r}, which is not this {kind}'s own, so that "
            "training would not move it: "
            f"pyro.clear_param_store() forgets what the store holds, and pyro.module({kind!r}, "
            "model, update_module_params=True) takes over "
            "what was loaded into it"
        )
    module: nn.Module | None = owner()
    return (
        module if module is not None and any(parameter is p for p in module.parameters()) else None
    )
