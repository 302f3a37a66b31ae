"""Recurrent networks over sequences and single steps, states with batch dimensions first.

Three kernels give the same numbers, and `Recurrence` picks the fastest one that a call allows. A
single step (generation) has a fused cell, a whole sequence PyTorch's own kernel. Training anything
but an LSTM on a CPU, where PyTorch records every small operation of every step, has one autograd
function per layer (`_GRULayer`, `_ElmanLayer`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pyro_seq.errors import did_you_mean
from pyro_seq.nn.precision import full_precision, has_bfloat16_lstm

State = tuple[Tensor, ...]

KINDS: dict[str, Callable[..., nn.RNNBase]] = {
    "gru": nn.GRU,
    "lstm": nn.LSTM,
    "relu": partial(nn.RNN, nonlinearity="relu"),
    "tanh": partial(nn.RNN, nonlinearity="tanh"),
}

CELLS = {"gru": torch.gru_cell, "relu": torch.rnn_relu_cell, "tanh": torch.rnn_tanh_cell}


class Recurrence(nn.Module):
    """An LSTM, a GRU or an Elman network of one or more layers, run from left to right.

    LSTM: Hochreiter & Schmidhuber 1997; GRU: arXiv 1406.1078.

    `kind` is `lstm`, `gru`, or an Elman network's activation: `tanh` or `relu`. The equations and
    the parameters are those of `torch.nn.LSTM`, `torch.nn.GRU` and `torch.nn.RNN` (one of which is
    the submodule `rnn`), initialised as theirs, but for the LSTM's forget gate. The total bias of
    that gate starts at `forget_bias`, so that a new network remembers (`None` leaves PyTorch's
    initialisation; the others ignore it). `dropout` acts between layers, in training only.

    A state is `(h, c)` for an LSTM and `(h,)` for the others, each
    `[*lead, num_layers, hidden_size]`: batch dimensions first, so that a carried state is selected,
    repeated and detached like any other tensor of a batch.

    Raises `ValueError` for an unknown `kind`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        kind: str = "lstm",
        num_layers: int = 1,
        dropout: float = 0.0,
        forget_bias: float | None = 1.0,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"unknown recurrence {kind!r}{did_you_mean(kind, KINDS)}")
        self.kind = kind
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = hidden_size
        # PyTorch warns of a dropout that has no two layers to stand between
        between = dropout if num_layers > 1 else 0.0
        self.rnn = KINDS[kind](
            input_size, hidden_size, num_layers, dropout=between, batch_first=True
        )
        if kind == "lstm" and forget_bias is not None:
            # PyTorch's gates come as input, forget, cell, output
            forget = slice(hidden_size, 2 * hidden_size)
            with torch.no_grad():
                for _, _, bias_ih, bias_hh in self.rnn.all_weights:
                    bias_ih[forget] = forget_bias - bias_hh[forget]

    def initial(self, *lead: int) -> State:
        """Return the zero state of the batch dimensions `lead`.

        Its tensors are `[*lead, num_layers, hidden_size]`, on the module's device.
        """
        like = self.rnn.all_weights[0][0]
        return tuple(
            like.new_zeros(*lead, self.rnn.num_layers, self.hidden_size)
            for _ in range(2 if self.kind == "lstm" else 1)
        )

    def forward(self, inputs: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Run over `inputs` `[*lead, T, input_size]` from `state` (zeros if not given).

        Returns the outputs of the last layer, `[*lead, T, hidden_size]`, and the state after the
        last step, which for `T = 0` is the one before the first. The batch dimensions of inputs and
        state are broadcast against each other.

        Raises `ValueError` if the inputs do not have `input_size` features.
        """
        if inputs.shape[-1] != self.input_size:
            raise ValueError(
                f"a recurrence over {self.input_size} features was given inputs of shape "
                f"{list(inputs.shape)}"
            )
        *lead, steps, _ = inputs.shape
        if state is None:
            state = self.initial(*lead)
        elif any(s.shape[:-2] != inputs.shape[:-2] for s in state):
            lead = list(torch.broadcast_shapes(lead, *(s.shape[:-2] for s in state)))
            inputs = inputs.expand(*lead, *inputs.shape[-2:])
            state = tuple(s.expand(*lead, *s.shape[-2:]) for s in state)
        if steps == 0 or 0 in lead:
            return inputs.new_zeros(*lead, steps, self.hidden_size), state
        if len(lead) == 1:
            return self._run(inputs, state)
        outputs, state = self._run(
            inputs.reshape(-1, *inputs.shape[-2:]),
            tuple(s.reshape(-1, *s.shape[-2:]) for s in state),
        )
        return outputs.reshape(*lead, *outputs.shape[-2:]), tuple(
            s.reshape(*lead, *s.shape[-2:]) for s in state
        )

    def _run(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run over one batch dimension, `[N, T, input_size]`, by the fastest kernel."""
        if inputs.shape[1] == 1:
            return self._step(inputs, state)
        if self.kind != "lstm" and inputs.device.type == "cpu" and torch.is_grad_enabled():
            # its preallocated buffers know only one type
            with torch.autocast("cpu", enabled=False):
                return self._layers(full_precision(inputs), tuple(full_precision(s) for s in state))
        if (
            self.kind == "lstm"
            and torch.is_autocast_enabled(inputs.device.type)
            and not has_bfloat16_lstm(inputs.device)
        ):
            with torch.autocast(inputs.device.type, enabled=False):
                return self._run(full_precision(inputs), tuple(full_precision(s) for s in state))
        h, *c = (s.transpose(0, 1).contiguous() for s in state)
        outputs, final = self.rnn(inputs, (h, *c) if c else h)
        return outputs, tuple(s.transpose(0, 1) for s in (final if c else (final,)))

    def _step(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run one step, `[N, 1, input_size]`, by the cell, which is up to four times faster."""
        x = inputs[:, 0]
        states: list[State] = []
        for layer, weights in enumerate(self.rnn.all_weights):
            if layer and self.rnn.dropout:
                x = functional.dropout(x, self.rnn.dropout, self.training)
            previous = [s[:, layer] for s in state]
            if self.kind == "lstm":
                states.append(torch.lstm_cell(x, previous, *weights))
            else:
                states.append((CELLS[self.kind](x, previous[0], *weights),))
            x = states[-1][0]
        if len(states) == 1:  # a view: the copy would be felt
            return x[:, None], tuple(s[:, None] for s in states[0])
        return x[:, None], tuple(torch.stack(parts, 1) for parts in zip(*states, strict=True))

    def _layers(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Run a GRU or an Elman network over `[N, T, input_size]`, layer by layer.

        The layout is `[T, N, F]`, as `_GRULayer` takes it.
        """
        x, final = inputs.transpose(0, 1), []
        for layer, (weight_ih, weight_hh, bias_ih, bias_hh) in enumerate(self.rnn.all_weights):
            if layer and self.rnn.dropout:
                x = functional.dropout(x, self.rnn.dropout, self.training)
            products = functional.linear(x, weight_ih, bias_ih).contiguous()
            first = state[0][:, layer]
            if self.kind == "gru":
                x = _GRULayer.apply(products, first, weight_hh, bias_hh)
            else:
                x = _ElmanLayer.apply(products + bias_hh, first, weight_hh, self.kind == "relu")
            final.append(x[-1])
        return x.transpose(0, 1), (torch.stack(final, 1),)


class _GRULayer(torch.autograd.Function):
    """One GRU layer over a whole sequence, given the products of inputs and input weights.

    With the products `x = (x_r, x_u, x_n)` and `(v_r, v_u, v_n) = W h_{t-1} + b`:

        r = sigmoid(x_r + v_r),  u = sigmoid(x_u + v_u),  n = tanh(x_n + r * v_n),
        h_t = n + u * (h_{t-1} - n)

    products `[T, N, 3H]`, h_0 `[N, H]`, W `[3H, H]`, b `[3H]`; returns h_1 … h_T `[T, N, H]`. Only
    the products with W are truly sequential: the backward pass computes the derivatives of the
    gates for all steps at once before its loop, and the gradients of W and b after it.
    """

    @staticmethod
    def forward(ctx: Any, products: Tensor, first: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        steps, batch, size = *products.shape[:2], first.shape[-1]
        gates = products + bias
        gates[..., 2 * size :] = bias[2 * size :]  # v_n is gated by r before it meets x_n
        candidates, outputs = products.new_empty(2, steps, batch, size).unbind()
        transposed, h = weight.t().contiguous(), first
        for gate, opening, r, u, v_n, x_n, n, output in zip(
            gates.unbind(),
            gates[..., : 2 * size].unbind(),
            *(g.unbind() for g in gates.chunk(3, -1)),
            products[..., 2 * size :].unbind(),
            candidates.unbind(),
            outputs.unbind(),
            strict=True,
        ):
            gate.addmm_(h, transposed)
            opening.sigmoid_()
            torch.addcmul(x_n, r, v_n, out=n).tanh_()
            h = torch.lerp(n, h, u, out=output)
        ctx.save_for_backward(gates, candidates, first, outputs, weight)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gates, n, first, outputs, weight = ctx.saved_tensors
        steps, batch, size = outputs.shape
        r, u, v_n = gates.chunk(3, -1)
        previous = torch.cat([first[None], outputs[:-1]])
        through_n = (1 - u) * (1 - n * n)  # dh_t / dx_n
        # dh_t / d(v_r, v_u, v_n), each times dL/dh_t once the loop has passed
        slopes = torch.empty_like(gates)
        slope_r, slope_u, slope_n = slopes.chunk(3, -1)
        torch.mul(through_n, r, out=slope_n)
        torch.mul(slope_n * v_n, 1 - r, out=slope_r)
        torch.mul((previous - n) * u, 1 - u, out=slope_u)
        # dL/dh_t for t = 0 … T, complete from the end backwards
        adjoint = torch.cat([torch.zeros_like(grad[:1]), grad])
        h, by_gate = adjoint.unbind(), slopes.view(steps, batch, 3, size).unbind()
        for t, (u_t, grad_v) in reversed(
            list(enumerate(zip(u.unbind(), slopes.unbind(), strict=True)))
        ):
            by_gate[t].mul_(h[t + 1][:, None])
            h[t].addcmul_(h[t + 1], u_t).addmm_(grad_v, weight)
        grad_products = torch.cat([slopes[..., : 2 * size], adjoint[1:] * through_n], -1)
        grad_weight = slopes.flatten(0, 1).t() @ previous.flatten(0, 1)
        return grad_products, adjoint[0], grad_weight, slopes.sum((0, 1))


class _ElmanLayer(torch.autograd.Function):
    """h_t = f(x_t + W h_{t-1}) over a whole sequence, f the ReLU or tanh.

    The inputs' products and bias are x `[T, N, H]`.

    h_0 `[N, H]`, W `[H, H]`; returns h_1 … h_T `[T, N, H]`. As in `_GRULayer`, derivatives are
    taken for all steps at once before the backward loop, and the gradient of W after it.
    """

    @staticmethod
    def forward(
        ctx: Any, products: Tensor, first: Tensor, weight: Tensor, rectified: bool
    ) -> Tensor:
        outputs, transposed, h = products.clone(), weight.t().contiguous(), first
        for output in outputs.unbind():
            output.addmm_(h, transposed)
            h = output.relu_() if rectified else output.tanh_()
        ctx.save_for_backward(first, outputs, weight)
        ctx.rectified = rectified
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        first, outputs, weight = ctx.saved_tensors
        # dh_t / dx_t, then dL/dx_t
        slopes = (outputs > 0).to(outputs.dtype) if ctx.rectified else 1 - outputs * outputs
        # dL/dh_t for t = 0 … T, complete from the end backwards
        adjoint = torch.cat([torch.zeros_like(grad[:1]), grad])
        h, steps = adjoint.unbind(), slopes.unbind()
        for t in range(len(steps) - 1, -1, -1):
            h[t].addmm_(steps[t].mul_(h[t + 1]), weight)
        grad_weight = slopes.flatten(0, 1).t() @ torch.cat([first[None], outputs[:-1]]).flatten(
            0, 1
        )
        return slopes, adjoint[0], grad_weight, None
