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
    """Do nothing: the guide of a model without latents, whose ELBO is exact."""


class _TakeOver(Messenger):
    """Copy a parameter from Pyro's outer store when a function first asks for it."""

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
    """A model and a guide: callables on a `SequenceBatch` that are valid Pyro.

    They may be functions, `nn.Module`s or `PyroModule`s.

    Pyro registers parameters by name in one global store, where two pairs with the same names would
    silently share them; inside `scope()` the store holds this pair's parameters alone. All tools
    work inside it.

    If you trained with plain `SVI` outside `scope()`, the pair copies those parameters, by name,
    the first time its functions ask for them (by `pyro.param`) inside `scope()`. Nothing else is
    copied, and the outer store is not changed: modules hold their own parameters, and entries of
    their names in the store could be another module's.

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
        """Make Pyro's parameter store this pair's own inside, also after an error.

        May be nested, also in and around the scopes of other pairs.
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
        """Return the modules among model and guide, by the names `model` and `guide`."""
        sides = {"model": self.model, "guide": self.guide}
        return {name: side for name, side in sides.items() if isinstance(side, nn.Module)}

    def _all_modules(self) -> list[nn.Module]:
        """Return model and guide where they are modules, else the modules that they use."""
        return [module for side in (self.model, self.guide) for module in modules_of(side)]

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
                [] if isinstance(function, nn.Module) else modules_of(function)
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

    def load_weights(self, weights: Any, where: str | Path) -> None:
        """Load weights that `weights()` returned.

        To be called inside `scope()`, and for functions' parameters after a first call has
        registered them.

        Raises `UserError` if names or shapes differ or a number is not finite; then nothing was
        taken over.
        """
        load_weights(*self._side_by_side(weights, where), where)

    def check_weights(self, weights: Any, where: str | Path) -> None:
        """Raise the errors of `load_weights`; to be called inside `scope()`."""
        check_weights(*self._side_by_side(weights, where), where)

    def _side_by_side(
        self, weights: Any, where: str | Path
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
