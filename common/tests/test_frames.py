import pytest
from pixelgate_common.frames import decode_frames, encode_frames


def test_frames_come_back_as_they_were() -> None:
    frames = [("1", b"abc"), ("2", None), ("3", b""), ("4", b"\n\x00line\n")]
    assert list(decode_frames(encode_frames(frames))) == frames


@pytest.mark.parametrize("cut", [1, 5])
def test_a_body_cut_short_is_noticed(cut: int) -> None:
    with pytest.raises(ValueError, match="cut short"):
        list(decode_frames(encode_frames([("1", b"abcdef")])[:-cut]))


def test_something_else_is_noticed() -> None:
    with pytest.raises(ValueError, match="not a body of frames"):
        list(decode_frames(b"\xff\xd8\xff"))
