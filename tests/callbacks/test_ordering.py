"""Order statistics and pair temperatures: plain counts are the oracle."""

from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from zoo.callbacks.ordering import OrderStatistics, PairTemperatures, auc
from zoo.data import PairBatch
from zoo.losses import AMCL
from zoo.methods.siamese import in_batch_candidates


def test_auc_is_scikit_learns():
    torch.manual_seed(0)
    positives, negatives = (torch.randn(40) + 0.5).round(decimals=1), torch.randn(90).round(decimals=1)
    labels = torch.cat([torch.ones(40), torch.zeros(90)])
    want = roc_auc_score(labels.numpy(), torch.cat([positives, negatives]).numpy())
    assert auc(positives, negatives).item() == pytest.approx(want)


@pytest.mark.parametrize("negatives_from", ["all", "same"])
@pytest.mark.parametrize("views", [2, 3])
def test_ordering_counts_negatives_of_the_own_view(negatives_from, views):
    torch.manual_seed(0)
    keys = torch.tensor([0, 1, 2, 3, 4, 0])
    z = [torch.randn(6, 3) for _ in range(views)]
    x = in_batch_candidates(z, keys, negatives_from=negatives_from)
    positives, negatives, mask = x.scores()
    callback = OrderStatistics(every_n_steps=1)
    outputs = {"positives": positives, "negatives": negatives, "mask": mask}
    module = SimpleNamespace(negatives_from=negatives_from)
    batch = PairBatch(z[0], z[1], keys, keys, keys, views=tuple(z[2:]))
    callback.on_train_batch_end(None, module, outputs, batch, 0)
    unit = [torch.nn.functional.normalize(v, dim=1) for v in z]
    ordered = []
    for a in range(views):
        for i in range(6):
            weakest = min(unit[a][i] @ unit[v][i] for v in range(views) if v != a)
            hardest = max(unit[a][i] @ unit[a][j] for j in range(6) if keys[j] != keys[i])
            ordered.append(bool(weakest > hardest))
    assert 0 < sum(ordered) < len(ordered)
    assert callback.sums["train/ordering_accuracy"] == pytest.approx(sum(ordered) / len(ordered))
    module.negatives_from = "all"
    resumed = OrderStatistics(every_n_steps=1)
    resumed.load_state_dict(callback.state_dict())
    easy = {"positives": positives + 9, "negatives": negatives, "mask": mask}
    resumed.on_train_batch_end(None, module, easy, batch, 1)
    assert resumed.sums["train/ordering_accuracy"] == pytest.approx(sum(ordered) / len(ordered) + 1)
    assert resumed.sums["train/ordering_accuracy_first"] == pytest.approx(2 * sum(ordered) / len(ordered))
    assert callback.sums["scores/auc"] == pytest.approx(auc(positives.flatten(), negatives[mask]).item())


def test_temperatures_of_the_ambiguous_and_the_clear_half():
    torch.manual_seed(0)
    loss = AMCL(2, 4, low=0.05, high=1.0, initial=0.3)
    with torch.no_grad():
        loss.temperature_of.last.weight.mul_(20)
    loss(in_batch_candidates([torch.randn(8, 8), torch.randn(8, 8)], torch.arange(8)))
    got = PairTemperatures().observe(SimpleNamespace(loss=loss), {})
    positive, hardest, _ = loss.seen
    halves = {"ambiguous": [], "clear": []}
    for c in range(2):
        margin = (positive.similarity - hardest.similarity)[c, :, 0]
        order = sorted(range(16), key=lambda i: margin[i].item())
        halves["ambiguous"] += [positive.temperature[c, i, 0] for i in order[:8]]
        halves["clear"] += [positive.temperature[c, i, 0] for i in order[8:]]
    for name, values in halves.items():
        torch.testing.assert_close(got[f"temperature/{name}"], torch.stack(values).mean())
    both = torch.cat([positive.temperature, hardest.temperature])
    assert got["temperature/min"] == both.min() and got["temperature/max"] == both.max()
    near = (both < 0.05 + 0.0095) | (both > 1 - 0.0095)
    torch.testing.assert_close(got["temperature/saturated"], near.double().mean())
