"""Messages are for people: whatever a file claims, they fit on a screen."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from data_shards.errors import InputError, RetinaforgeError
from data_shards.packing.existing import index_folder


def test_a_member_name_of_megabytes_is_cut_in_messages(tmp_path: Path) -> None:
    for number, name in enumerate(("x" * 2_000_000 + ".json", "x y " * 500_000 + ".json", "../" + "z" * 2_000_000)):
        (tmp_path / f"{number}").mkdir()
        with tarfile.open(tmp_path / f"{number}" / "train-000000.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
        with pytest.raises(RetinaforgeError) as caught:
            index_folder(tmp_path / f"{number}")
        assert len(str(caught.value)) < 8000
        assert "train-000000.tar" in str(caught.value)


def test_what_is_cut_keeps_its_ends_and_its_length() -> None:
    error = InputError("a" * 3000 + "end", where="/x/" + "b" * 9000, expected="c " * 9000, mend="rm -r /data/old")
    assert "3003 characters" in error.what
    assert error.what.startswith("aaa")
    assert error.what.endswith("aend")
    assert error.mend == "rm -r /data/old"
    assert len(str(error)) < 8000
