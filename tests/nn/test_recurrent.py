"""Every kernel of a recurrence against PyTorch's own modules, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_seq.nn.recurrent import KINDS, Recurrence, State, _GRULayer

LEADS = [(), (3,), (2, 3)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def recurrence(kind: str, **options: object) -> Recurrence:
    return Recurrence(3, 4, kind=kind, **options).double()


def by_torch(module: Recurrence, inputs: Tensor, state: State) -> tuple[Tensor, State]:
    """The same network by PyTorch over the flattened batch."""
    lead = inputs.shape[:-2]
    flat = [s.reshape(-1, *s.shape[-2:]).transpose(0, 1).contiguous() for s in state]
    flat_inputs = inputs.reshape(-1, *inputs.shape[-2:])
    outputs, final = module.rnn(flat_inputs, flat[0] if module.kind != "lstm" else tuple(flat))
    final = (final,) if module.kind != "lstm" else final
    final = tuple(s.transpose(0, 1).reshape(*lead, *state[0].shape[-2:]) for s in final)
    return outputs.reshape(*lead, *outputs.shape[-2:]), final


def gradients(
    value: tuple[Tensor, State], weights: tuple[Tensor, State], leaves: list[Tensor]
) -> tuple[Tensor, ...]:
    loss = (value[0] * weights[0]).sum() + sum(
        (s * w).sum() for s, w in zip(value[1], weights[1], strict=True)
    )
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("lead", LEADS)
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_values_and_gradients_are_those_of_torch(
    kind: str, num_layers: int, steps: int, lead: tuple[int, ...]
) -> None:
    module = recurrence(kind, num_layers=num_layers)
    inputs = torch.randn(*lead, steps, 3, dtype=torch.double, requires_grad=True)
    state = tuple(torch.randn_like(s).requires_grad_() for s in module.initial(*lead))
    actual, expected = module(inputs, state), by_torch(module, inputs, state)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(module(inputs, state), expected, rtol=1e-10, atol=1e-12)

    weights = (torch.randn_like(actual[0]), tuple(torch.randn_like(s) for s in actual[1]))
    leaves = [inputs, *state, *module.parameters()]
    torch.testing.assert_close(
        gradients(actual, weights, leaves),
        gradients(expected, weights, leaves),
        rtol=1e-10,
        atol=1e-11,
    )


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_gradcheck(kind: str) -> None:
    module = recurrence(kind, num_layers=2)
    inputs = torch.randn(2, 3, 3, dtype=torch.double, requires_grad=True)
    state = tuple(torch.randn_like(s).requires_grad_() for s in module.initial(2))

    def run(inputs: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        outputs, final = module(inputs, state)
        return outputs, *final

    assert torch.autograd.gradcheck(run, (inputs, *state))


def test_gradcheck_of_the_gru_layer() -> None:
    shapes = [(3, 2, 6), (2, 2), (6, 2), (6,)]
    assert torch.autograd.gradcheck(
        _GRULayer.apply,
        [torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in shapes],
    )


def test_second_derivatives_of_the_gru_raise() -> None:
    inputs = torch.randn(2, 3, 3, dtype=torch.double, requires_grad=True)
    outputs, _ = recurrence("gru")(inputs)
    (grad,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_steps_one_at_a_time_give_the_whole_sequence(kind: str) -> None:
    module = recurrence(kind, num_layers=2)
    inputs = torch.randn(2, 5, 3, dtype=torch.double)
    expected, final = module(inputs)
    state, outputs = None, []
    for t in range(5):
        output, state = module(inputs[:, t : t + 1], state)
        outputs.append(output)
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(state, final, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_batch_dimensions_broadcast(kind: str, steps: int) -> None:
    module = recurrence(kind)
    inputs = torch.randn(3, steps, 3, dtype=torch.double)
    state = tuple(torch.randn(2, 1, 1, 4, dtype=torch.double) for _ in module.initial())
    outputs, final = module(inputs, state)
    assert outputs.shape == (2, 3, steps, 4)
    expected = module(inputs.expand(2, 3, steps, 3), tuple(s.expand(2, 3, 1, 4) for s in state))
    torch.testing.assert_close((outputs, final), expected)


@pytest.mark.parametrize(("lead", "steps"), [((), 0), ((3,), 0), ((0,), 4), ((2, 0), 1)])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_nothing_to_run_over(kind: str, lead: tuple[int, ...], steps: int) -> None:
    module = recurrence(kind, num_layers=2)
    state = tuple(torch.randn_like(s) for s in module.initial(*lead))
    outputs, final = module(torch.zeros(*lead, steps, 3, dtype=torch.double), state)
    assert outputs.shape == (*lead, steps, 4) and outputs.dtype == torch.double
    torch.testing.assert_close(final, state)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_dropout_stands_between_layers_in_training(kind: str, steps: int) -> None:
    inputs = torch.randn(2, steps, 3, dtype=torch.double)
    module = recurrence(kind, num_layers=2, dropout=0.5)
    torch.manual_seed(1)
    first = module(inputs)[0]
    assert any(not torch.equal(first, module(inputs)[0]) for _ in range(9))
    torch.manual_seed(1)
    assert torch.equal(first, module(inputs)[0])
    module.eval()
    assert torch.equal(module(inputs)[0], module(inputs)[0])
    single = recurrence(kind, dropout=0.5)
    assert torch.equal(single(inputs)[0], single(inputs)[0])


def test_dropout_of_one_cuts_the_layers_apart() -> None:
    module = recurrence("gru", num_layers=2, dropout=1.0)
    for steps in (1, 4):
        outputs = [module(torch.randn(2, steps, 3, dtype=torch.double))[0] for _ in range(2)]
        torch.testing.assert_close(outputs[0], outputs[1])


def test_forget_gate_opens_at_the_given_bias() -> None:
    for forget_bias in (1.0, -2.0):
        rnn = Recurrence(3, 4, num_layers=2, forget_bias=forget_bias).rnn
        for _, _, bias_ih, bias_hh in rnn.all_weights:
            torch.testing.assert_close((bias_ih + bias_hh)[4:8], torch.full((4,), forget_bias))
    torch.manual_seed(0)
    module = Recurrence(3, 4, forget_bias=None)
    torch.manual_seed(0)
    expected = nn.LSTM(3, 4)
    torch.testing.assert_close(list(module.rnn.parameters()), list(expected.parameters()))


def test_initial_state_is_zero_and_batch_first() -> None:
    lstm = recurrence("lstm", num_layers=2)
    assert [s.shape for s in lstm.initial(5, 3)] == [(5, 3, 2, 4)] * 2
    (h,) = recurrence("gru").initial()
    assert h.shape == (1, 4) and h.dtype == torch.double and not h.any()
    inputs = torch.randn(3, 4, 3, dtype=torch.double)
    torch.testing.assert_close(lstm(inputs), lstm(inputs, lstm.initial(3)))
    assert lstm.output_size == 4


def test_single_steps_see_weights_as_they_are() -> None:
    """Also where weights were changed in a way that PyTorch does not count."""
    module = recurrence("lstm", num_layers=2)
    inputs = torch.randn(2, 1, 3, dtype=torch.double)
    with torch.no_grad():
        before, _ = module(inputs)
    for parameter in module.parameters():
        parameter.data.mul_(2.0)
    with torch.no_grad():
        after, _ = module(inputs)
    expected, _ = by_torch(module, inputs, module.initial(2))
    torch.testing.assert_close(after, expected, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(before, after)


@pytest.mark.parametrize("kind", ["lstm", "gru", "relu", "tanh"])
@pytest.mark.parametrize("supported", [None, False])
def test_mixed_precision_runs(
    kind: str, supported: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a CPU whose LSTM has no bfloat16."""
    if supported is not None:
        monkeypatch.setattr("pyro_seq.nn.recurrent.has_bfloat16_lstm", lambda device: supported)
    module, inputs = Recurrence(3, 4, kind=kind), torch.randn(2, 5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, state = module(inputs)
        module(inputs, tuple(s.bfloat16() for s in state))
    torch.testing.assert_close(outputs.float(), module(inputs)[0], rtol=0.05, atol=0.02)
    outputs.float().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown recurrence 'ltsm'; did you mean 'lstm'"):
        Recurrence(3, 4, kind="ltsm")
    with pytest.raises(ValueError, match=r"over 3 features was given inputs of shape \[2, 5, 4\]"):
        Recurrence(3, 4)(torch.zeros(2, 5, 4))
