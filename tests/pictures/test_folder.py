from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textual_inversion.errors import DatasetError
from textual_inversion.pictures.folder import find_images, natural_key, require_images


def test_found_in_natural_order_without_hidden_files_folders_and_other_files(tmp_path: Path) -> None:
    for name in ("10.png", "2.PNG", "b2.webp", "B1.jpeg", "a.avif", ".hidden.png", "._2.png", "notes.txt", "x.json"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "sub.png").mkdir()
    (tmp_path / "sub.png" / "inner.png").write_bytes(b"")
    assert [path.name for path in find_images(tmp_path)] == ["2.PNG", "10.png", "a.avif", "B1.jpeg", "b2.webp"]


@given(st.lists(st.text(alphabet="ab019_- ٣", min_size=1, max_size=8), unique=True))
def test_order_is_total_and_ignores_what_comes_first(names: list[str]) -> None:
    paths = [Path(f"x{name}.png") for name in names]
    assert sorted(paths, key=natural_key) == sorted(reversed(paths), key=natural_key)


def test_a_missing_folder_a_file_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file.png").write_bytes(b"")
    for name, fault in (("gone", "does not exist; choose"), ("file.png", "is a file, not a folder")):
        with pytest.raises(DatasetError, match=fault) as error:
            find_images(tmp_path / name)
        assert error.value.path == tmp_path / name
    with pytest.raises(DatasetError, match="No folder"):
        find_images("  ")


def test_a_folder_without_pictures_says_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="it is empty"):
        require_images(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DatasetError, match=r"1 other file and 1 subfolder, not searched\); put PNG"):
        require_images(tmp_path)
