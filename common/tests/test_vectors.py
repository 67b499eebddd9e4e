import base64

import numpy as np
import pytest
from pixelgate_common.vectors import decode_vector, encode_vector


def test_a_vector_survives_the_wire_exactly() -> None:
    vector = np.random.default_rng(1).normal(size=512).astype(np.float32)
    np.testing.assert_array_equal(decode_vector(encode_vector(vector)), vector)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("%%%", id="not-base64"),
        pytest.param("", id="empty"),
        pytest.param(base64.b64encode(b"abcde").decode(), id="not-a-multiple-of-4"),
        pytest.param(encode_vector([np.nan, 1.0]), id="not-a-number"),
        pytest.param(encode_vector([np.inf, 1.0]), id="infinite"),
    ],
)
def test_what_is_no_vector_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|finite"):
        decode_vector(text)
