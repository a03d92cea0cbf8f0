"""Both ways of multiplying against each other, whichever of them this machine prefers."""

from pathlib import Path

import pytest
import torch

from common import products
from common.products import gradient_by_states, gradient_by_weight, has_faster_onednn, project

SHAPES = [(5, 7, 3), (1, 1, 1), (64, 96, 40), (3, 10, 30), (3, 30, 10)]
"""Rows, I and O."""


@pytest.fixture(params=[False, True], ids=["mkl", "onednn"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Which library multiplies; sides above 8 are long ones."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "has_faster_onednn", lambda: request.param)
    monkeypatch.setattr(products, "LONG", 8)
    monkeypatch.setattr(products, "LARGE", 0)
    monkeypatch.setattr(products, "ROWS", 1)
    return request.param


def numbers(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n", "i", "o"), SHAPES)
def test_all_products_of_a_layer_and_its_gradient(way: bool, n: int, i: int, o: int, dtype: torch.dtype) -> None:
    rows, weight, by_output = (numbers(*shape, dtype=dtype) for shape in ((n, i), (o, i), (n, o)))
    tolerance = {"rtol": 1e-5, "atol": 1e-5}
    expected = (rows.double() @ weight.double().t()).to(dtype)
    for any_order in (False, True):
        torch.testing.assert_close(project(rows, weight, any_order=any_order), expected, **tolerance)
    before = by_output.clone()
    torch.testing.assert_close(project(rows, weight, plus=by_output), expected + by_output, **tolerance)
    assert torch.equal(by_output, before)
    back = (by_output.double() @ weight.double()).to(dtype)
    torch.testing.assert_close(project(by_output, weight.t()), back, **tolerance)
    torch.testing.assert_close(gradient_by_states(by_output, weight), back, **tolerance)
    assert project(rows, weight).is_contiguous()
    by_weight = (by_output.double().t() @ rows.double()).to(dtype)
    torch.testing.assert_close(gradient_by_weight(by_output, rows), by_weight, **tolerance)
    assert gradient_by_weight(by_output, rows).is_contiguous()


def test_onednn_gets_no_products_that_it_would_have_to_compile_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(products, "has_faster_onednn", lambda: True)
    monkeypatch.setattr(products, "LARGE", 64 * 5 * 7)

    def by_onednn(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        asked.append(len(rows))
        return rows @ weight.t()

    monkeypatch.setattr(products, "_by_onednn", by_onednn)
    for n in (63, 64, 65, 100, 128):
        project(numbers(n, 5, dtype=torch.float32), numbers(7, 5, dtype=torch.float32))
    project(numbers(64, 5, dtype=torch.float32), numbers(6, 5, dtype=torch.float32))
    assert asked == [64, 128]


def test_operands_may_lie_column_by_column(way: bool) -> None:
    rows, weight = numbers(12, 5, dtype=torch.float32).t(), numbers(12, 7, dtype=torch.float32).t()
    torch.testing.assert_close(project(rows, weight), rows.contiguous() @ weight.contiguous().t())
    torch.testing.assert_close(gradient_by_weight(rows, rows), rows.contiguous().t() @ rows.contiguous())


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id\t: GenuineIntel\n", False), (None, False)],
)
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_the_way_follows_from_the_processors_maker(
    cpuinfo: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(products, "CPUINFO", tmp_path / "cpuinfo")
    assert has_faster_onednn.__wrapped__() is expected

    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("no such operation")

    monkeypatch.setattr(products, "_by_onednn", refuse)
    assert has_faster_onednn.__wrapped__() is False
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert has_faster_onednn.__wrapped__() is False
