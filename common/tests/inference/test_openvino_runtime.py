from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pixelgate_common.inference.openvino_runtime import Graph, best_precision, cpu_has_bf16, infer, openvino


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A graph of two inputs and two outputs: a sum and a product."""
    ops = openvino.opset13
    a, b = ops.parameter([-1, 3], np.float32), ops.parameter([-1, 3], np.float32)
    target = tmp_path_factory.mktemp("graph") / "two.xml"
    openvino.save_model(openvino.Model([ops.add(a, b), ops.multiply(a, b)], [a, b]), target)
    return target


@pytest.mark.parametrize("side_by_side", [False, True], ids=["alone", "side by side"])
def test_all_outputs_come_back_whoever_else_computes(path: Path, side_by_side: bool) -> None:
    graph = Graph(path, "fp32", 2, side_by_side=side_by_side)
    assert graph.workers == (2 if side_by_side else 1)

    def compute(number: int) -> bool:
        a = np.full((number % 5 + 1, 3), number, np.float32)
        total, product = graph(a, a)
        return bool((total == 2 * a).all() and (product == a * a).all() and total.shape == a.shape)

    with ThreadPoolExecutor(4) as pool:  # more than there are requests: they wait their turn
        assert all(pool.map(compute, range(100)))


def test_outputs_are_the_callers_own(path: Path) -> None:
    graph = Graph(path, "fp32", 1, side_by_side=False)
    first, _ = graph(np.ones((1, 3), np.float32), np.ones((1, 3), np.float32))
    graph(np.zeros((1, 3), np.float32), np.zeros((1, 3), np.float32))
    assert (first == 2).all()


def test_a_request_can_be_held_for_several_steps_and_comes_back_after_an_error(path: Path) -> None:
    graph = Graph(path, "fp32", 1, side_by_side=False)
    ones = np.ones((1, 3), np.float32)
    with graph.request() as request:
        for _ in range(3):
            total, _ = infer(request, [ones, ones])
            assert (total == 2).all()
    with pytest.raises(RuntimeError):
        graph(np.ones((1, 4), np.float32), ones)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(graph, ones, ones).result(30), "the request of the failed call is free again"


def test_bf16_is_chosen_only_where_the_cpu_has_it() -> None:
    assert best_precision() == ("bf16" if cpu_has_bf16() else "fp32")
