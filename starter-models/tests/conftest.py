"""Fixtures shared by the tests of scenes, training and weights."""

from collections.abc import Callable

import pytest
from starter_models.captions import Facts
from starter_models.scenes import Scene, Split, draw_scene


@pytest.fixture(scope="session")
def test_scenes() -> list[Scene]:
    return [draw_scene("test", index, 160) for index in range(120)]


@pytest.fixture(scope="session")
def facts(test_scenes: list[Scene]) -> list[Facts]:
    return [scene.facts for scene in test_scenes]


@pytest.fixture(scope="session")
def labels_of() -> Callable[[Split, int], tuple[str, ...]]:
    """The sorted labels of one scene, drawn as small as possible."""

    def labels(split: Split, index: int) -> tuple[str, ...]:
        return tuple(sorted(item.label for item in draw_scene(split, index, 64).objects))

    return labels
