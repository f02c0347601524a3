from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.runs import Place
from tests.ranks import ranks


@pytest.fixture(scope="session")
def place(packed: Path, tmp_path_factory: pytest.TempPathFactory):
    pytest.importorskip("deepspeed", reason="the extra 'deepspeed' is not installed: pip install -c constraints.txt -e '.[deepspeed]'")
    with ranks() as server:
        yield Place(tmp_path_factory.mktemp("faults"), packed, server)
