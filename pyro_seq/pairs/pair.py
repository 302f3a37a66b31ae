"""`Pair`: a model and a guide, with the weights of both, wherever these are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_seq._weights import check_weights, load_weights
from pyro_seq.batch import SequenceBatch
from pyro_seq.errors import UserError
from pyro_seq.pairs._modules_used import modules_of

Stochastic = Callable[[SequenceBatch], Any]


def no_guide(batch: SequenceBatch) -> None:
    """The guide of a model without latents: nothing to infer, and the ELBO is the exact
    log-likelihood.
    """


class _TakeOver(Messenger):
    """Copies a parameter from another state of Pyro's store at the moment that a function asks for
    it and has none of its own.
    """

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def _pyro_param(self, msg: Any) -> None:
        name, store = msg["name"], pyro.get_param_store()
        # as `pyro.module` and `PyroModule` register them
        of_module = any(isinstance(given, nn.Parameter) for given in msg["args"])
        if name in self.state["params"] and name not in store and not of_module:
            original = self.state["params"][name]
            copied = original.detach().clone().requires_grad_(original.requires_grad)
            store.set_state(
                {"params": {name: copied}, "constraints": {name: self.state["constraints"][name]}}
            )


class Pair:
    """Any model and guide: callables on a `SequenceBatch` that are valid Pyro (functions,
    `nn.Module`s, `PyroModule`s).

    Pyro registers parameters by name in one global store, where two pairs with the same names would
    silently share them; inside `scope()` the store holds this pair's parameters alone. All tools
    work inside it.

    A pair trained by hand, with parameters in Pyro's store as it stands outside of any scope, is a
    pair of what was learnt: a parameter that its functions ask for (by `pyro.param`) inside
    `scope()` for the first time is a copy of the one of its name outside, if there is one. Nothing
    else is taken over, and nothing outside is changed: modules hold their own parameters, and names
    in the store that are theirs could be another module's.

    Modules that functions use (`pyro.module`, in their closures or among their globals) are put
    into training and evaluation mode and moved between devices with the pair.
    """

    # the pairs whose scopes are open; the last one's parameters are in Pyro's store
    _entered: ClassVar[list[Pair]] = []

    def __init__(self, model: Stochastic, guide: Stochastic = no_guide) -> None:
        self.model, self.guide = model, guide
        self._store: Any = {"params": {}, "constraints": {}}
        # what sites the sides have on longer sequences, as `time_sites` has found them
        self.longer_runs: dict[Any, Any] = {}

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Inside, Pyro's parameter store is this pair's own, also after an error; may be nested,
        also in and around other pairs'.
        """
        around = self._entered[-1] if self._entered else None
        if around is self:
            yield
            return
        store = pyro.get_param_store()
        outside: Any = store.get_state()
        # should its scope be entered again in here, it finds what it has registered so far
        if around is not None:
            around._store.update(outside)
            outside = around._store
        trained_by_hand = around is None and outside["params"]
        store.clear()
        store.set_state(self._store)
        self._entered.append(self)
        try:
            with _TakeOver(outside) if trained_by_hand else nullcontext():
                yield
        finally:
            self._entered.pop()
            self._store.update(store.get_state())
            store.clear()
            store.set_state(outside)
            # get_state has taken from parameters what a step of SVI that is under way asks them for
            for _ in store.values():
                pass

    def modules(self) -> dict[str, nn.Module]:
        """Those of model and guide that are modules, by the names `model` and `guide`."""
        sides = {"model": self.model, "guide": self.guide}
        return {name: side for name, side in sides.items() if isinstance(side, nn.Module)}

    def _all_modules(self) -> list[nn.Module]:
        """Model and guide where they are modules, and the modules that they use where they are
        functions.
        """
        return [module for side in (self.model, self.guide) for module in modules_of(side)]

    def train(self, mode: bool = True) -> None:
        """Put the modules into training (or, with `False`, evaluation) mode."""
        for module in self._all_modules():
            module.train(mode)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, the modules are in evaluation mode; afterwards each module and submodule is in
        its own mode again.
        """
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
        """Move the modules and the functions' parameters that have been registered so far to a
        device.
        """
        for module in self._all_modules():
            module.to(device)
        with self.scope():
            for parameter in self._free().values():
                parameter.data = parameter.data.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights lie, those of functions once they have been registered; the CPU if
        there are none.
        """
        of_modules = (
            p for module in self._all_modules() for p in (*module.parameters(), *module.buffers())
        )
        with self.scope():
            found: Tensor | None = next(of_modules, next(iter(self._free().values()), None))
        return torch.device("cpu") if found is None else found.device

    def parameters(self) -> dict[str, Tensor]:
        """All that training may change, unconstrained, by name; inside `scope()`, after a first
        call has registered functions' parameters.

        The modules' own parameters are taken from them, not from the store, where one of the model
        and one of the guide that have the same name would be one entry.
        """
        named: dict[int, tuple[str, Tensor]] = {}
        for side, module in self.modules().items():
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    named.setdefault(id(parameter), (f"{side}.{name}", parameter))
        return dict(named.values()) | self._free()

    def _free(self) -> dict[str, Tensor]:
        """The parameters in Pyro's store that belong to no module: those of functions."""
        owned = {id(p) for module in self.modules().values() for p in module.parameters()}
        return {
            name: p for name, p in pyro.get_param_store().named_parameters() if id(p) not in owned
        }

    def buffers(self) -> list[Tensor]:
        """What the modules keep that is no parameter, as running statistics, also of those that
        functions use.
        """
        return [buffer for module in self._all_modules() for buffer in module.buffers()]

    def _used(self) -> dict[str, Tensor]:
        """What the modules that functions use hold and Pyro's store does not: buffers and frozen
        parameters; inside `scope()`.
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
                [] if isinstance(function, nn.Module) else modules_of(function)
            ):
                for name, x in module.state_dict(keep_vars=True).items():
                    if isinstance(x, Tensor) and id(x) not in known:
                        known.add(id(x))
                        used[f"{side}'s module {i}: {name}"] = x.detach()
        return used

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """All weights: the modules' states, and what functions keep in Pyro's store, unconstrained,
        and in modules; inside `scope()`.
        """
        free = {name: p.detach() for name, p in self._free().items()}
        return {name: dict(module.state_dict()) for name, module in self.modules().items()} | {
            "store": free | self._used()
        }

    def load_weights(self, weights: Any, where: str | Path) -> None:
        """Take over what `weights()` gave; inside `scope()`, and for functions' parameters after a
        first call has registered them.

        Raises `UserError` if names or shapes differ or a number is not finite; then nothing was
        taken over.
        """
        load_weights(*self._side_by_side(weights, where), where)

    def check_weights(self, weights: Any, where: str | Path) -> None:
        """Raise what `load_weights` would raise; inside `scope()`."""
        check_weights(*self._side_by_side(weights, where), where)

    def _side_by_side(
        self, weights: Any, where: str | Path
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(this pair's weights, those of a file) by name; raises `UserError` for those of other
        sides.
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
