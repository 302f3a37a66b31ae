"""Encoders: features against their definition, blanks, types, and definitions that do not fit."""

from __future__ import annotations

import pytest
import torch

from pyro_seq.encoders import Embedding, Encoder, Flatten, Joint, MLPEncoder, OneHot, Sequential


@pytest.mark.parametrize("lead", [(), (3,), (2, 3, 4)])
class TestFeatures:
    def test_one_hot(self, lead: tuple[int, ...]) -> None:
        encoder, x = OneHot(5), torch.randint(5, lead)
        assert encoder(x).equal(torch.eye(5)[x])
        assert encoder.num_features == 5 and encoder.blank(*lead).equal(
            torch.zeros(lead, dtype=torch.long)
        )

    def test_embedding(self, lead: tuple[int, ...]) -> None:
        encoder, x = Embedding(5, 3), torch.randint(5, lead)
        assert encoder(x).equal(encoder.table.weight[x])
        assert encoder(encoder.blank(*lead)).shape == (*lead, encoder.num_features) == (*lead, 3)

    @pytest.mark.parametrize(
        "dtype", [torch.bool, torch.long, torch.uint8, torch.float32, torch.float64]
    )
    def test_flatten(self, lead: tuple[int, ...], dtype: torch.dtype) -> None:
        x = torch.randint(2, (*lead, 2, 4)).to(dtype)
        assert Flatten((2, 4))(x).equal(x.reshape(*lead, 8).float())
        assert Flatten(8)(x.reshape(*lead, 8)).equal(x.reshape(*lead, 8).float())
        assert Flatten((2, 4)).blank(*lead).shape == (*lead, 2, 4)
        assert Flatten(()).event_shape == () and Flatten(())(x[..., 0, 0]).shape == (*lead, 1)

    @pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.float32, torch.float64])
    def test_mlp(self, lead: tuple[int, ...], dtype: torch.dtype) -> None:
        encoder, x = (
            MLPEncoder(4, (6, 3), activation="tanh"),
            torch.randint(2, (*lead, 4)).to(dtype),
        )
        first, second = encoder.layers[0], encoder.layers[2]
        expected = torch.tanh(
            torch.tanh(x.float() @ first.weight.t() + first.bias) @ second.weight.t() + second.bias
        )
        torch.testing.assert_close(encoder(x), expected)
        assert encoder.num_features == 3
        assert MLPEncoder(4, ())(x).equal(x.float()) and MLPEncoder(4, ()).num_features == 4
        assert encoder.double()(x).dtype == torch.float64

    def test_sequential(self, lead: tuple[int, ...]) -> None:
        first, second, x = OneHot(5), MLPEncoder(5, (3,)), torch.randint(5, lead)
        encoder = Sequential(first, second)
        assert encoder(x).equal(second(first(x)))
        assert (encoder.num_features, encoder.event_shape, encoder.dtype) == (3, (), torch.long)
        assert encoder(encoder.blank(*lead)).shape == (*lead, 3)

    def test_group(self, lead: tuple[int, ...]) -> None:
        group = Joint({"symbol": OneHot(5), "vector": Flatten(2)})
        x = {"vector": torch.randn(*lead, 2), "symbol": torch.randint(5, lead)}
        assert group.num_features == 7
        assert group(x).equal(torch.cat([torch.eye(5)[x["symbol"]], x["vector"]], -1)), (
            "in the group's order"
        )
        assert group(group.blank(*lead)).shape == (*lead, 7)

    def test_a_group_in_a_sequence(self, lead: tuple[int, ...]) -> None:
        encoder = Sequential(
            Joint({"symbol": OneHot(5), "vector": Flatten(2)}), MLPEncoder(7, (3,))
        )
        blank = encoder.blank(*lead)
        assert blank["symbol"].shape == lead and blank["vector"].shape == (*lead, 2)
        assert encoder(blank).shape == (*lead, 3)


def test_blanks_lie_where_they_are_asked_for() -> None:
    group = Sequential(Joint({"a": OneHot(5), "b": Flatten(2)}), MLPEncoder(7, (3,)))
    assert {x.device.type for x in group.blank(2, device=torch.device("meta")).values()} == {"meta"}


def test_symbols_out_of_range() -> None:
    for encoder in (OneHot(3), Embedding(3, 2)):
        with pytest.raises((RuntimeError, IndexError)):
            encoder(torch.tensor([3]))


def test_definitions_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError,
        match=r"MLPEncoder encodes events of shape \[4\], but OneHot before it gives \[5\]",
    ):
        Sequential(OneHot(5), MLPEncoder(4, (3,)))
    with pytest.raises(ValueError, match="at least one encoder"):
        Sequential()
    with pytest.raises(TypeError, match="Encoder must define forward"):
        Encoder()(torch.zeros(1))
