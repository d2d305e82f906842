"""Files are replaced whole or not at all."""

from pathlib import Path

import pytest

from aftershock.files import replace_file


@pytest.mark.parametrize(("content", "stored"), [("é\n", b"\xc3\xa9\n"), (b"\r\n\x00", b"\r\n\x00")])
def test_the_old_content_is_replaced_and_nothing_is_left_beside(
    content: str | bytes, stored: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"something old and longer")
    replace_file(path, content)
    assert path.read_bytes() == stored
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_half_way_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def half(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError(28, "no space")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
