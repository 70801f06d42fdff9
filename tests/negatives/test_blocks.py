"""Blocks of scores: how filters stack, and what is logged of them."""

import pytest
import torch

from tests.methods.test_dual import attach, batch_of, embeddings
from zoo.losses import InfoNCE
from zoo.methods.dual import DualEncoder
from zoo.methods.text_encoders import TokenBag
from zoo.negatives.blocks import Block, HardnessWeight, OwnNegativesOnly, Vetting, join, score_blocks
from zoo.negatives.known import all_distinct


class Drop(Vetting):
    """Drops given columns of `qd`."""

    def __init__(self, columns, start_epoch=0):
        super().__init__(start_epoch)
        self.columns = columns

    def forward(self, blocks, embeddings, guide):
        keep = torch.ones_like(blocks["qd"].scores, dtype=torch.bool)
        keep[:, self.columns] = False
        return {**blocks, "qd": Block(blocks["qd"].scores, blocks["qd"].weight * keep)}


def step(module, batch):
    """One step that logs; what it said, and its numbers."""
    logged = {}
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    module.log_dict = lambda values, **_: logged.update({name: float(value) for name, value in values.items()})
    module.trainer.global_step = 9
    return module.training_step(batch, 0), logged


def build(*vetting, **kwargs):
    torch.manual_seed(0)
    return attach(DualEncoder(TokenBag(50, 8), InfoNCE(0.2), vetting=vetting, **kwargs))


def test_only_own_negatives_remain_and_their_toll_is_logged_for_every_block():
    out, logged = step(build(OwnNegativesOnly(), blocks=("qd", "qq")), batch_of(4, 2))
    assert out["negatives"].shape == (4, 12)
    assert out["mask"].nonzero().tolist() == [[i, 4 + i + 4 * slot] for i in range(4) for slot in (0, 1)]
    assert logged["vetting/removed_qd"] == pytest.approx(9 / 11) and logged["vetting/removed_qq"] == 1


def test_filters_wait_for_their_epoch_and_act_in_order():
    batch = batch_of(4, 1)
    module = build(Drop([1]), Drop([2, 6], start_epoch=3))
    assert step(module, batch)[0]["mask"].sum(0).tolist() == [3, 0, 3, 3, 4, 4, 4, 4]
    module.trainer.current_epoch = 3
    assert step(module, batch)[0]["mask"].sum(0).tolist() == [3, 0, 0, 3, 4, 4, 0, 4]


def test_precision_and_recall_of_a_filter_by_hand():
    batch = batch_of(4, 1).replace(group=torch.tensor([0, 0, 1, 1]))
    _, logged = step(build(Drop([1, 4])), batch)
    # 28 candidates of which 4 share a group (explicit ones have none); 3 + 4 are removed, 1 of them rightly.
    expected = {"removed_qd": 7 / 28, "false_negatives": 4 / 28, "recall": 1 / 4, "precision": 1 / 7}
    assert {k.removeprefix("vetting/"): v for k, v in logged.items() if "vetting" in k} == pytest.approx(expected)


def test_masks_and_weights_stand_side_by_side():
    x = embeddings(batch_of(3, 1))
    blocks = score_blocks(x, ("qd", "qq"))
    scores, mask = join(blocks)
    assert scores.shape == mask.shape == (3, 9) and mask.dtype == torch.bool
    weighted = HardnessWeight(2.0, "all")(blocks, x, None)
    weight = join(weighted)[1]
    expected = torch.cat([(2 * blocks["qd"].scores).exp() * blocks["qd"].weight, blocks["qq"].weight], 1)
    torch.testing.assert_close(weight, expected)
    assert join({"qd": Block(scores, None), "qq": blocks["qq"]})[1][:, :9].all()


@pytest.mark.parametrize(
    ("known", "keys", "distinct"),
    [
        ([[0], [1]], [0, 1], True),
        ([[0, 5], [1, -1]], [0, 1], True),
        ([[0, 1], [1, -1]], [0, 1], False),
        ([[0], [0]], [0, 0], False),
        ([[0], [1]], [0, 1, -1, 7], False),
        ([[0], [1]], [0, 1, 6, 7], True),
    ],
)
def test_masks_are_needed_where_a_candidate_is_somebody_else_s_positive(known, keys, distinct):
    assert all_distinct(torch.tensor(known), torch.tensor(keys)) == distinct
