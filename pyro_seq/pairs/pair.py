"""`Pair`: a model and a guide, with the weights of both, wherever these are kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from pyro.params.param_store import StateDict
from torch import Tensor, nn

from pyro_seq._rng import preserve_rng_state
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.pairs._modules_used import modules_used_by
from pyro_seq.pairs._weights import check_weights, load_weights

Stochastic = Callable[[SequenceBatch], Any]


def no_guide(batch: SequenceBatch) -> None:
    """Do nothing: the guide of a model without latents, whose ELBO is exact."""


class Pair:
    """A model and a guide: callables on a `SequenceBatch` that are valid Pyro.

    They may be functions, `nn.Module`s or `PyroModule`s.

    Pyro registers parameters by name in one global store, where two pairs with the same names would
    silently share them; inside `scope()` the store holds this pair's parameters alone. All tools
    work inside it.

    What functions have learnt in a loop of one's own lies in Pyro's store outside of any scope:
    `Pair.from_param_store` makes a pair of it. Modules hold their own parameters, and need no such
    call.

    Modules that functions use (`pyro.module`, in their closures or among their globals) are put
    into training and evaluation mode and moved between devices with the pair.
    """

    # the pairs whose scopes are open; the last one's parameters are in Pyro's store
    _entered: ClassVar[list[Pair]] = []

    def __init__(self, model: Stochastic, guide: Stochastic = no_guide) -> None:
        self.model, self.guide = model, guide
        self._store: StateDict = {"params": {}, "constraints": {}}
        # what sites the sides have on longer sequences, as `time_sites` has found them
        self.longer_runs: dict[Any, Any] = {}

    @classmethod
    def from_param_store(cls, model: Stochastic, guide: Stochastic, batch: SequenceBatch) -> Pair:
        """Make a pair of functions that were trained outside of it, as by Pyro's `SVI`.

        The functions are called once, on `batch`, without dropout and without an effect on torch's
        random state. Each parameter that they ask Pyro's store for is copied into the pair's own;
        those of modules stay with the modules. The store itself is left as it is.
        """
        pair, outside = cls(model, guide), pyro.get_param_store().get_state()
        with preserve_rng_state(), pair.evaluating(), torch.no_grad(), pair._own_store():
            guided = poutine.trace(guide).get_trace(batch)
            poutine.replay(model, trace=guided)(batch)
        for name in pair._of_functions().keys() & outside["params"].keys():
            p = outside["params"][name]
            pair._store["params"][name] = p.detach().clone().requires_grad_(p.requires_grad)
            pair._store["constraints"][name] = outside["constraints"][name]
        return pair

    def with_sides(self, model: Stochastic, guide: Stochastic) -> Pair:
        """Return a pair of other sides with the same parameters, those of Pyro's store."""
        other = copy(self)
        other.model, other.guide, other.longer_runs = model, guide, {}
        return other

    def _of_functions(self) -> dict[str, Tensor]:
        """The unconstrained parameters in this pair's store that are of no module; outside of
        `scope()`.
        """
        owned = {id(p) for module in self._all_modules() for p in module.parameters()}
        params = self._store["params"]
        # names that `pyro.module` has made hold its sign
        return {name: p for name, p in params.items() if "$$$" not in name and id(p) not in owned}

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Make Pyro's parameter store this pair's own inside, also after an error.

        May be nested, also in and around the scopes of other pairs.

        Warns of parameters that functions have begun anew, though Pyro's store holds some of their
        names outside.
        """
        known, outermost = set(self._store["params"]), not self._entered
        with self._own_store():
            yield
        new = pyro.get_param_store().keys() & self._store["params"].keys() - known
        if outermost and new and (names := new & self._of_functions().keys()):
            warnings.warn(
                f"this pair has begun {', '.join(sorted(names))} anew, though Pyro's store outside "
                "holds parameters of these names: Pair.from_param_store(model, guide, batch) makes "
                "a pair of what was trained there",
                stacklevel=3,
            )

    @contextmanager
    def _own_store(self) -> Iterator[None]:
        """What `scope()` does, without its warning."""
        around = self._entered[-1] if self._entered else None
        if around is not None and around._store is self._store:
            yield
            return
        store = pyro.get_param_store()
        outside = store.get_state()
        # should its scope be entered again in here, it finds what it has registered so far
        if around is not None:
            around._store.update(outside)
            outside = around._store
        store.clear()
        store.set_state(self._store)
        self._entered.append(self)
        try:
            yield
        finally:
            self._entered.pop()
            self._store.update(store.get_state())
            store.clear()
            store.set_state(outside)
            # `get_state` deletes references to unconstrained values, which a step of SVI that is
            # under way asks for; reading a parameter sets its reference again
            list(store.values())

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules among model and guide, by the names `model` and `guide`."""
        sides = {"model": self.model, "guide": self.guide}
        return {name: side for name, side in sides.items() if isinstance(side, nn.Module)}

    def _all_modules(self) -> list[nn.Module]:
        """Return model and guide where they are modules, else the modules that they use."""
        return [module for side in (self.model, self.guide) for module in modules_used_by(side)]

    def train(self, mode: bool = True) -> None:
        """Put the modules into training (or, with `False`, evaluation) mode."""
        for module in self._all_modules():
            module.train(mode)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the modules into evaluation mode inside, and restore each part's mode on exit."""
        modes = [
            (part, part.training) for module in self._all_modules() for part in module.modules()
        ]
        self.train(False)
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode

    def to(self, device: torch.device | str) -> Pair:
        """Move modules, and functions' parameters registered so far, to a device."""
        for module in self._all_modules():
            module.to(device)
        with self.scope():
            for parameter in self._free().values():
                parameter.data = parameter.data.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """The device of the weights; the CPU if there are none.

        Functions' weights exist once they have been registered.
        """
        of_modules = (
            p for module in self._all_modules() for p in (*module.parameters(), *module.buffers())
        )
        with self.scope():
            found: Tensor | None = next(of_modules, next(iter(self._free().values()), None))
        return torch.device("cpu") if found is None else found.device

    def parameters(self) -> dict[str, Tensor]:
        """Return all parameters that training may change, unconstrained, by name.

        To be called inside `scope()`, after a first call has registered functions' parameters.

        The modules' parameters are taken from the modules, not from the store, where a parameter of
        the model and one of the guide with the same name would be one entry.
        """
        named: dict[int, tuple[str, Tensor]] = {}
        for side, module in self.modules().items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    named.setdefault(id(parameter), (f"{side}.{name}", parameter))
        return dict(named.values()) | self._free()

    def _free(self) -> dict[str, Tensor]:
        """Return the parameters in Pyro's store that belong to functions, not to modules."""
        owned = {id(p) for module in self.modules().values() for p in module.parameters()}
        return {
            name: p for name, p in pyro.get_param_store().named_parameters() if id(p) not in owned
        }

    def buffers(self) -> list[Tensor]:
        """Return the modules' buffers, as running statistics.

        Modules that functions use are among them.
        """
        return [buffer for module in self._all_modules() for buffer in module.buffers()]

    def _used(self) -> dict[str, Tensor]:
        """Return what the modules that functions use hold and Pyro's store does not.

        These are buffers and frozen parameters; to be called inside `scope()`.
        """
        known = {id(p) for _, p in pyro.get_param_store().named_parameters()}
        known |= {
            id(x)
            for module in self.modules().values()
            for x in module.state_dict(keep_vars=True).values()
        }
        used = {}
        for side, function in (("model", self.model), ("guide", self.guide)):
            for i, module in enumerate(
                [] if isinstance(function, nn.Module) else modules_used_by(function)
            ):
                for name, x in module.state_dict(keep_vars=True).items():
                    if isinstance(x, Tensor) and id(x) not in known:
                        known.add(id(x))
                        used[f"{side}'s module {i}: {name}"] = x.detach()
        return used

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return all weights: the modules' states, and what functions keep.

        Functions keep parameters in Pyro's store, unconstrained, and in modules; to be called
        inside `scope()`.
        """
        free = {name: p.detach() for name, p in self._free().items()}
        return {name: dict(module.state_dict()) for name, module in self.modules().items()} | {
            "store": free | self._used()
        }

    def load_weights(self, weights: object, where: str | Path) -> None:
        """Load weights that `weights()` returned.

        To be called inside `scope()`, and for functions' parameters after a first call has
        registered them.

        Raises `UserError` if names or shapes differ or a number is not finite; then nothing was
        taken over.
        """
        load_weights(*self._side_by_side(weights, where), where)

    def check_weights(self, weights: object, where: str | Path) -> None:
        """Raise the errors of `load_weights`; to be called inside `scope()`."""
        check_weights(*self._side_by_side(weights, where), where)

    def _side_by_side(
        self, weights: object, where: str | Path
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return (this pair's weights, a file's weights) by name.

        Raises `UserError` for weights of other sides.
        """
        parts = self.weights()
        if (
            not isinstance(weights, dict)
            or set(weights) != set(parts)
            or not all(isinstance(part, dict) for part in weights.values())
        ):
            what = sorted(map(str, weights)) if isinstance(weights, dict) else "no weights"
            raise UserError(f"{where} does not fit this pair: it holds {what}, not {sorted(parts)}")
        target, found = (
            {f"{side}.{name}": w for side, part in whole.items() for name, w in part.items()}
            for whole in (parts, weights)
        )
        return target, found
