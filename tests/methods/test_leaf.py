"""LEAF: a student in the place of its teacher."""

import copy

import pytest
import torch
from torch import nn

from tests.methods.test_dual import attach, batch_of
from tests.methods.test_rankers import lengthened, trained
from zoo.losses import InfoNCE
from zoo.losses.regression import EmbeddingRegression
from zoo.losses.scores import normalize
from zoo.methods.leaf import EmbeddingDistillation
from zoo.methods.text_encoders import TextTransformer, TokenBag

VOCAB = 50


def leaf(encoder=None, teacher=None, epoch=0, **kwargs):
    torch.manual_seed(0)
    encoder = encoder or TextTransformer(VOCAB, 8, 1, 2)
    teacher = teacher or TextTransformer(VOCAB, 12, 1, 2)
    module = attach(EmbeddingDistillation(encoder, InfoNCE(0.2), teacher, EmbeddingRegression(), **kwargs))
    module.trainer.current_epoch = epoch
    return module


def test_the_loss_is_the_squared_distance_of_all_single_texts():
    module, batch = leaf(), batch_of(5, 0)
    loss = module.training_step(batch, 0)["loss"]
    distances = []
    for tokens in (batch.anchor, batch.positive):
        student = normalize(module.project(module.encoder(tokens)))
        distances += (student - normalize(module.teacher(tokens))).square().sum(1)
    torch.testing.assert_close(loss, torch.stack(distances).mean())
    assert 0 < loss < 4
    loss.backward()
    assert trained(module) == {"encoder", "project"}


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    teacher = TextTransformer(VOCAB, 8, 1, 2)
    module, batch = leaf(copy.deepcopy(teacher), teacher), batch_of(5, 0)
    with torch.no_grad():
        module.project.weight.copy_(torch.eye(8))
        module.project.bias.zero_()
    assert module.training_step(batch, 0)["loss"] < 1e-10
    found = module.validation_step(batch, 0)
    torch.testing.assert_close(found["features"], found["teacher"])


def test_padding_does_not_change_the_student():
    module, batch = leaf(), batch_of(5, 0)
    torch.testing.assert_close(module.embed_queries(lengthened(batch.anchor)), module.embed_queries(batch.anchor))


def test_the_teacher_is_frozen_and_in_evaluation_mode_while_the_student_learns():
    module, batch = (
        leaf(teacher=TextTransformer(VOCAB, 12, 1, 2, dropout=0.5), epoch=2, teacher_epochs=2),
        batch_of(5, 0),
    )
    module.train()
    before = copy.deepcopy(module.teacher.state_dict())
    module.regression.forward = lambda student, teacher: targets.append(teacher) or student.sum()
    targets, optimizer = [], torch.optim.AdamW(module.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        module.training_step(batch, 0)["loss"].backward()
        optimizer.step()
    assert torch.equal(*targets) and not targets[0].requires_grad
    assert all(torch.equal(v, before[k]) for k, v in module.teacher.state_dict().items())
    assert module.encoder.training


def test_first_the_teacher_alone_is_trained_on_its_prefixes():
    module, batch = leaf(teacher_epochs=2, epoch=1, dims=[4, 12]), batch_of(5, 2)
    step = module.training_step(batch, 0)
    step["loss"].backward()
    assert trained(module) == {"teacher"}
    expected = 0.0
    for dim in (4, 12):
        q, p = (normalize(module.teacher(t)[:, :dim]) for t in (batch.anchor, batch.positive))
        expected += nn.functional.cross_entropy(q @ p.T / 0.2, torch.arange(5))
    torch.testing.assert_close(step["loss"], expected)


def test_a_teacher_without_dims_learns_on_whole_vectors():
    module, batch = leaf(teacher_epochs=1), batch_of(5, 0)
    q, p = (normalize(module.teacher(t)) for t in (batch.anchor, batch.positive))
    expected = nn.functional.cross_entropy(q @ p.T / 0.2, torch.arange(5))
    torch.testing.assert_close(module.training_step(batch, 0)["loss"], expected)


def test_evaluation_has_both_models_and_the_teacher_s_documents_need_no_student():
    module, batch = leaf(TokenBag(VOCAB, 4)), batch_of(5, 0)
    for side in (batch.replace(anchor=None), batch.replace(positive=None)):
        tokens = side.positive if side.anchor is None else side.anchor
        found = module.validation_step(side, 0)
        torch.testing.assert_close(found["teacher"], normalize(module.teacher(tokens)))
        torch.testing.assert_close(found["features"], normalize(module.project(module.encoder(tokens))))
        assert found["features"].shape == (5, 12)
    module.encoder = None
    assert module.embed_teacher(batch.positive).shape == (5, 12)


def test_the_teacher_of_a_checkpoint(tmp_path):
    trained_teacher = TokenBag(VOCAB, 12)
    state = {f"encoder.{k}": v for k, v in trained_teacher.state_dict().items()} | {"loss.x": torch.zeros(())}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    module = leaf(teacher=TokenBag(VOCAB, 12), checkpoint=tmp_path / "last.ckpt")
    assert torch.equal(module.teacher.embedding.weight, trained_teacher.embedding.weight)


@pytest.mark.parametrize("chunk", [2, 5])
def test_the_gradient_cache_serves_the_student(chunk):
    batch, found = batch_of(5, 1), []
    for size in (None, chunk):
        module = leaf(cache_chunk=size).double()
        loss = module.training_step(batch, 0)["loss"]
        module.backward(loss)
        found.append([p.grad for part in (module.encoder, module.project) for p in part.parameters()])
    torch.testing.assert_close(*found)


def test_teacher_and_student_have_a_schedule_each():
    student, teacher = TokenBag(50, 4), TokenBag(50, 8)
    method = EmbeddingDistillation(student, InfoNCE(), teacher, EmbeddingRegression(), teacher_epochs=2)
    rates = [method.rate(epoch, 6) for epoch in (0, 1, 1.999, 2, 4, 6)]
    assert rates == pytest.approx([1, 0.5, 0, 1, 0.5, 0], abs=1e-5)
