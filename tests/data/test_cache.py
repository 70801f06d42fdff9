"""Cached arrays: whole, made once, and made again where they were damaged."""

import subprocess
import sys

import numpy as np
import pytest

from zoo.data.cache import cached_arrays
from zoo.errors import ZooError


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"x" + data[1:]])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    paths, calls = [tmp_path / "a.npy", tmp_path / "b.npy"], []

    def make():
        calls.append(1)
        return [np.arange(5), np.ones((2, 3))]

    for _ in range(2):
        first, second = cached_arrays(paths, make)
        assert first.tolist() == [0, 1, 2, 3, 4] and second.shape == (2, 3)
    assert len(calls) == 1
    del first, second
    paths[1].write_bytes(damage(paths[1].read_bytes()))
    assert cached_arrays(paths, make)[1].tolist() == [[1, 1, 1], [1, 1, 1]] and len(calls) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npy", "b.npy"]


def test_a_folder_that_may_not_be_written(tmp_path):
    with pytest.raises(ZooError, match="cannot write the cache .* set ZOO_CACHE"):
        cached_arrays([tmp_path / "absent" / "a.npy"], lambda: [np.ones(3)])


def test_two_runs_may_fill_one_cache_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path; from zoo.data import Shapes; "
        "s = Shapes(n_train=600, n_val=20, n_test=20); s.prepare(Path(sys.argv[1])); "
        "print(int(s.split('train', Path(sys.argv[1])).images.sum()))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [run.communicate()[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and len({*sums}) == 1 and sums[0]
    assert len(list(tmp_path.iterdir())) == 3
