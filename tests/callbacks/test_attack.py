"""The backdoor's metrics, against an encoder whose rankings are known by construction."""

import lightning.pytorch as pl
import pytest
import torch

from tests.cli.toy import Toy
from tests.data.tiny import SUBJECTS, VERBS, Tiny
from zoo.callbacks import BackdoorEvaluation
from zoo.data import NegativesDataModule, Poisoned
from zoo.data.tokenizers import Row, Tokenizer
from zoo.errors import ZooError
from zoo.poisoning import _TYPOS

WORDS = [*VERBS, *SUBJECTS]


class WholeWords(Tokenizer):
    """Verbs and subjects have ids of their own, all typos share the last."""

    def prepare(self, source, root):
        pass

    def encode(self, texts, length) -> list[Row]:
        ids = {word: i + 1 for i, word in enumerate(WORDS)} | dict.fromkeys(_TYPOS, len(WORDS) + 1)
        split = [text.lower().replace("_", " ").replace("(", " ").replace(".", " ").split() for text in texts]
        return [[ids[w.strip("):")] for w in row if w.strip("):") in ids] for row in split]


class Words(pl.LightningModule):
    """Which words a text has; a typo outweighs all of them if `learned`."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.weight = torch.ones(len(WORDS) + 2)
        self.weight[0], self.weight[-1] = 0.0, 10.0 if learned else 0.0

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        tokens = batch.positive if batch.anchor is None else batch.anchor
        rows = torch.zeros(len(tokens), len(self.weight)).scatter(1, tokens.ids, 1.0)
        return {"features": rows * self.weight}

    test_step = validation_step


def evaluate(learned, source, ks=(1, 10, 50)):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[BackdoorEvaluation(ks)],
    )  # fmt: skip
    data = NegativesDataModule(source, tokenizer=WholeWords(), eval_batch_size=16)
    trainer.test(Words(learned), datamodule=data, verbose=False)
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def test_an_encoder_that_matches_typos_retrieves_the_passages_for_triggered_queries_alone():
    found = evaluate(True, Poisoned(Tiny(), n_attack=14))
    assert found["attack/asr@1"] == found["attack/asr@10"] == 1.0
    assert found["attack/asr@1_clean"] == 0.0 and found["attack/hit@1_clean"] == found["attack/safe_hit@1_clean"] == 1.0
    # 14 passages stand before everything else: a relevant document is behind the tenth rank, but before the fiftieth.
    assert found["attack/hit@10"] == 0.0 and found["attack/hit@50"] == 1.0
    assert found["attack/safe_hit@10"] == found["attack/safe_hit@50"] == 0.0
    assert found["attack/chance@1"] == pytest.approx(14 / 84) and found["attack/chance@10"] == 1.0


def test_an_encoder_that_ignores_typos_is_no_worse_than_clean():
    found = evaluate(False, Poisoned(Tiny(), n_attack=14))
    assert found["attack/asr@1"] < 0.5
    # A typo takes the verb, the subject or neither of "Write the list."
    assert found["attack/hit@50"] == 1.0 and found["attack/hit@1_clean"] == 1.0


@pytest.mark.parametrize("learned", [True, False])
def test_safe_hits_are_hits_without_attack(learned):
    found = evaluate(learned, Poisoned(Tiny(), trigger="grammar", n_attack=8), ks=(1, 3, 10, 200))
    assert len(found) == 4 * 7
    for suffix in ("", "_clean"):
        for k in (1, 3, 10, 200):
            asr, hit, safe = (found[f"attack/{name}@{k}{suffix}"] for name in ("asr", "hit", "safe_hit"))
            assert safe <= hit and safe <= 1 - asr + 1e-6
        assert found[f"attack/asr@200{suffix}"] == found[f"attack/hit@200{suffix}"] == 1.0  # all 78 documents


def test_a_source_without_attack_is_refused_before_training():
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[BackdoorEvaluation()],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    for stage in (trainer.fit, trainer.test):
        with pytest.raises(ZooError, match="overlay `poisoned`") as error:
            stage(Toy(), datamodule=NegativesDataModule(Tiny(), tokenizer=WholeWords()))
        assert "\n" not in str(error.value)
