"""Our numbers against those of the official implementations."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.fidelity.adapters import ADAPTERS

GOLDEN = Path(__file__).parent / "golden"
OUTPUTS = json.loads((GOLDEN / "outputs.json").read_text())
# Ranks of scores that saturate: many are 1 up to the last bit, which differs from processor to processor.
LOOSE = {"auroc_atd": 0.02, "fpr95_atd": 0.05}


@pytest.mark.parametrize("stem", sorted(OUTPUTS))
def test_adapter_reproduces_golden_outputs(stem: str) -> None:
    arrays = dict(np.load(GOLDEN / f"{stem}.npz"))
    tolerances = OUTPUTS[stem]["outputs"]
    got = ADAPTERS[stem]({name: array for name, array in arrays.items() if name not in tolerances})
    assert set(got) == set(tolerances)
    for name, tolerance in {**tolerances, **{name: LOOSE[name] for name in LOOSE.keys() & tolerances}}.items():
        want, value = arrays[name], np.asarray(got[name])
        assert value.shape == want.shape, name
        if tolerance == 0:
            np.testing.assert_array_equal(value, want, err_msg=name)
        else:
            np.testing.assert_allclose(value, want, rtol=tolerance, atol=tolerance, err_msg=name)
