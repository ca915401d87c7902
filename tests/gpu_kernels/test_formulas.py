"""Compiled kernels on disk."""

import os
from pathlib import Path
from typing import Any

import pytest
from numba.core.caching import IndexDataCacheFile

from gpu_kernels import formulas

SOURCE = """from numba import int64
from gpu_kernels.formulas import kernel

@kernel(int64(int64))
def stepped(x):
    return x + {step}
"""


def compiled(folder: Path, step: int) -> Any:
    """A kernel of a file that looks unchanged: as when only a formula that it calls has changed."""
    path = folder / "module.py"
    text = SOURCE.format(step=step)
    path.write_text(text)
    os.utime(path, (1, 1))
    names: dict[str, Any] = {"__name__": "module"}
    exec(compile(text, path, "exec"), names)  # not imported: that would keep byte code of its own
    return names["stepped"]


def killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_kernel_whose_writing_was_interrupted_is_not_read_from_an_older_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formulas, "_SOURCES", "before")
    assert compiled(tmp_path, 1)(10) == 11
    monkeypatch.setattr(formulas, "_SOURCES", "after")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(IndexDataCacheFile, "_save_data", killed)
        with pytest.raises(KeyboardInterrupt):
            compiled(tmp_path, 2)
    assert compiled(tmp_path, 2)(10) == 12
    monkeypatch.setattr(formulas, "_SOURCES", "before")
    assert compiled(tmp_path, 1)(10) == 11
