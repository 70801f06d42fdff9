"""Two or four processes with a part of the batch each against one process with the whole batch."""

import contextlib
import multiprocessing
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from zoo.data.pairs import PairBatch
from zoo.distributed import gather, gather_with_grad, shared_permutation
from zoo.losses import InfoNCE
from zoo.losses.distillation import DualMarginMSE, RewardDistillation
from zoo.methods.distillation import Distillation, TeacherMargins, TeacherRewards
from zoo.methods.dual import DualEncoder, Encoded
from zoo.methods.momentum import MomentumContrast
from zoo.methods.siamese import SiameseContrast
from zoo.negatives.miners import Rules, mine
from zoo.search import top_k

ROWS = {2: 6, 4: 8}  # processes: pairs in a batch
K, WIDTH, DIM, STEPS, QUEUE = 2, 5, 4, 4, 8
METHODS = ["simclr", "simclr explicit", "simclr views", "moco", "moco explicit", "moco symmetric"]
METHODS += ["simclr views cached", "moco symmetric cached"]
DUAL = {
    "dual": {},
    "dual explicit": {},
    "dual explicit blocks": {"blocks": ("qd", "qq", "dq", "dd")},
    "dual explicit symmetric": {"symmetric": True, "shared": False},
    "dual explicit blocks cached": {"blocks": ("qd", "qq", "dq", "dd"), "cache_chunk": 2},
}
DISTILLED = {
    "margins explicit": TeacherMargins(DualMarginMSE()),
    "rewards explicit": TeacherRewards(RewardDistillation(temperature=0.3)),
}
METHODS += [*DUAL, *DISTILLED]


class Encoder(nn.Module):
    """No batch normalisation: rows do not see each other, so that halves of a batch add up."""

    dim = DIM

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh(), nn.Linear(8, DIM))

    def forward(self, inputs):
        return self.layers(inputs)


def whole_batch(step, rows=6):
    """Pair 1 recurs as pair 4, on another rank; pair 0 of each step is that of the step before; some padding."""
    draw = torch.Generator().manual_seed(step)
    anchor, positive = (torch.randn(rows, WIDTH, generator=draw, dtype=torch.float64) for _ in range(2))
    keys = torch.arange(rows) + 100 * step
    keys[4], keys[0] = keys[1], 100 * (step - 1) + 5 if step else 0
    mask = torch.ones(rows, K, dtype=torch.bool)
    mask[4, 1] = mask[2] = False
    negatives = torch.randn(rows * K, WIDTH, generator=draw, dtype=torch.float64)
    own_keys = torch.where(mask, 1000 + torch.arange(rows * K).view(rows, K), -1)
    return PairBatch(anchor, positive, torch.arange(rows), keys, keys, negatives, own_keys, mask)


class Teacher(nn.Module):
    """Embeds whatever it gets with fixed weights."""

    def forward(self, batch):
        weights = torch.linspace(-1, 1, WIDTH * 3, dtype=torch.float64).sin().view(WIDTH, 3)
        query, positive, negatives = (x @ weights for x in (batch.anchor, batch.positive, batch.negatives))
        return Encoded(query, positive, negatives.view(len(query), K, 3))


def with_known(batch):
    """Query 2 also has the document of pair 5, and the hard negative 0 of pair 4, which are other ranks'."""
    known = torch.stack([batch.positive_key, torch.full_like(batch.positive_key, -1)], 1)
    known = torch.cat([known, known[:, 1:]], 1)
    known[2, 1:] = torch.stack([batch.positive_key[5], batch.negative_key[4, 0]])
    return batch.replace(known=known)


def with_views(batch):
    return batch.replace(views=(batch.anchor.flip(1),))


def part(batch, rank, world, explicit):
    size = len(batch) // world
    rows, own = slice(rank * size, (rank + 1) * size), slice(rank * size * K, (rank + 1) * size * K)
    fields = (
        "anchor",
        "positive",
        "index",
        "anchor_key",
        "positive_key",
        *(["known"] if batch.known is not None else []),
    )
    batch = batch.replace(**{name: getattr(batch, name)[rows] for name in fields}, negatives=batch.negatives[own],
                          negative_key=batch.negative_key[rows], negative_mask=batch.negative_mask[rows])  # fmt: skip
    batch = batch.replace(views=tuple(view[rows] for view in batch.views))
    return batch if explicit else batch.replace(negatives=None, negative_key=None, negative_mask=None)


def build(method, rank):
    torch.manual_seed(0)
    loss = InfoNCE(0.3, learn_temperature=True)
    chunk = 2 if "cached" in method else None
    if method.startswith("moco"):
        symmetric = "symmetric" in method
        module = MomentumContrast(Encoder(), loss, QUEUE, momentum=0.5, symmetric=symmetric, cache_chunk=chunk)
    elif method in DUAL:
        module = DualEncoder(Encoder(), loss, **DUAL[method])
    elif method in DISTILLED:
        module = Distillation(Encoder(), loss, DISTILLED[method], [Teacher()])
    else:
        scope = "later" if "views" in method else "all"
        module = SiameseContrast(Encoder(), loss, negatives_from=scope, cache_chunk=chunk)
    module.double()._trainer = SimpleNamespace(global_rank=rank, current_epoch=0, global_step=0, log_every_n_steps=10)
    module._trainer.precision_plugin = SimpleNamespace(forward_context=contextlib.nullcontext)
    return module


def train(method, rank, world, rows=6):
    """Steps of plain SGD with gradients averaged over ranks, as DDP does it; what is seen on the way."""
    module = build(method, rank)
    torch.manual_seed(rank)
    history = []
    for step in range(STEPS):
        whole = whole_batch(step, rows)
        whole = with_known(whole) if method in {**DUAL, **DISTILLED} else whole
        whole = with_views(whole) if "views" in method else whole
        out = module.training_step(part(whole, rank, world, "explicit" in method), step)
        module.zero_grad()
        module.backward(out["loss"])
        module.on_after_backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        loss = out["loss"].detach()
        for value in (loss, *gradients.values()) if world > 1 else ():
            dist.all_reduce(value)
            value /= world
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in gradients:
                    parameter -= 0.2 * gradients[name]
        gradients = {name: value.clone() for name, value in gradients.items()}
        history.append({"loss": loss, "gradients": gradients, "effective": out["mask"].sum(1)})
    return {"history": history, "state": {k: v.clone() for k, v in module.state_dict().items()}}


def probe(rank, world):
    """Primitives under several processes."""
    torch.manual_seed(rank)
    module = build("moco", rank)
    seen = []
    module.key_encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].clone()))
    own = whole_batch(0, ROWS[world]).anchor.chunk(world)[rank]
    keys = module.encode_keys(own)
    (shuffled,) = seen
    x = (torch.arange(6.0).view(3, 2) + 10 * rank).requires_grad_()
    weights = torch.arange(6.0 * world).view(-1, 2) * (rank + 1)
    (gather_with_grad(x) * weights).sum().backward()
    torch.manual_seed(rank)
    return {
        "keys": keys, "expected": module.key_encoder(own), "shuffled": shuffled, "gathered": gather(x.detach()),
        "gradient": x.grad, "permutation": shared_permutation(50, x.device),
    }  # fmt: skip


def mined():
    """A table, and how many queries this process searched for."""
    draw = torch.Generator().manual_seed(7)
    queries, documents = torch.randn(7, 5, generator=draw), torch.randn(30, 5, generator=draw)
    searched = []

    def spy(rows, *args):
        searched.append(len(rows))
        return top_k(rows, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.negatives.miners.top_k", spy)
        table = mine(queries, documents, 4, torch.arange(7), Rules(relative_margin=0.1))
    return {"ids": torch.from_numpy(table.ids), "scores": torch.from_numpy(table.scores), "searched": sum(searched)}


def worker(rank, folder, world):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = {method: train(method, rank, world, ROWS[world]) for method in METHODS} | {
        "probe": probe(rank, world),
        "mined": mined(),
    }
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def ranks(request, tmp_path_factory):
    world = request.param
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.set_forkserver_preload(["zoo.methods.momentum", "zoo.methods.distillation"])  # one import for all
    mp.start_processes(worker, (folder, world), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_processes_equal_one_with_the_whole_batch(ranks, method):
    rows = ROWS[len(ranks)]
    single = train(method.removesuffix(" cached"), 0, 1, rows)
    for rank, found in enumerate(run[method] for run in ranks):
        for step in range(STEPS):
            ours, theirs = found["history"][step], single["history"][step]
            assert_close(ours["loss"], theirs["loss"])
            temperature = {"loss.log_temperature"} - ({"loss.log_temperature"} if method in DISTILLED else set())
            assert ours["gradients"].keys() == theirs["gradients"].keys() >= temperature
            for name, gradient in theirs["gradients"].items():
                assert gradient.abs().max() > 1e-6, name
                assert_close(ours["gradients"][name], gradient)
            views = theirs["effective"].view(-1, rows)  # SimCLR's queries are the first views, then the second ones
            assert ours["effective"].tolist() == views.chunk(len(ranks), 1)[rank].flatten().tolist()
        assert found["state"].keys() == single["state"].keys()
        for name, value in single["state"].items():
            assert_close(found["state"][name], value)


def test_effective_negatives_by_hand(ranks):
    if len(ranks) > 2:
        return  # counted for two
    counts = [run["simclr explicit"]["history"][0]["effective"] for run in ranks]
    # 12 views; own pair takes 2, a duplicate pair 2 more; 2 explicit ones less what is padding.
    assert counts[0].tolist() == [12, 10, 10] * 2
    assert counts[1].tolist() == [12, 9, 12] * 2
    # 6 documents and 12 explicit ones; known are the pair's own and a duplicate, one more of each kind to query 2; 3
    # explicit ones are padding.
    counts = [run["dual explicit"]["history"][0]["effective"].tolist() for run in ranks]
    assert counts == [[14, 13, 12], [14, 13, 14]]
    # Pair 5 of the step before is pair 0 of this one, and its key lies in the queue.
    assert [run["moco"]["history"][1]["effective"].tolist() for run in ranks] == [[7, 8, 8], [8, 8, 8]]


def test_queue_is_the_same_on_all_ranks_and_holds_every_key(ranks):
    states = [run["moco"]["state"] for run in ranks]
    for name in ("queue.rows", "queue.keys", "queue.pointer"):
        assert torch.equal(states[0][name], states[1][name])
    rows = ROWS[len(ranks)]
    last = torch.cat([whole_batch(step, rows).positive_key for step in range(STEPS)])[-QUEUE:]
    assert states[0]["queue.keys"].sort().values.tolist() == last.sort().values.tolist()
    assert states[0]["queue.pointer"] == STEPS * rows % QUEUE


def test_shuffled_keys_come_back_in_order(ranks):
    probes = [run["probe"] for run in ranks]
    for probe in probes:
        assert_close(probe["keys"], probe["expected"])
    assert torch.equal(probes[0]["permutation"], probes[1]["permutation"])
    assert probes[0]["permutation"].sort().values.tolist() == list(range(50))
    seen = torch.cat([probe["shuffled"] for probe in probes])
    whole = whole_batch(0, ROWS[len(ranks)]).anchor
    assert {tuple(row) for row in seen.tolist()} == {tuple(row) for row in whole.tolist()}
    halves = [{tuple(row) for row in x.tolist()} for x in (probes[0]["shuffled"], whole[: len(whole) // len(ranks)])]
    assert halves[0] != halves[1]  # images did change ranks


def test_ranks_share_a_search_and_find_what_one_process_finds(ranks):
    single = mined()
    for rank in ranks:
        assert torch.equal(rank["mined"]["ids"], single["ids"]) and torch.equal(
            rank["mined"]["scores"], single["scores"]
        )
        assert rank["mined"]["searched"] == -(-7 // len(ranks)) < single["searched"] == 7


def test_gather(ranks):
    world = len(ranks)
    everything = torch.cat([torch.arange(6.0).view(3, 2) + 10 * rank for rank in range(world)])
    weights = torch.arange(6.0 * world).view(-1, 2) * sum(range(1, world + 1))
    for rank, probe in enumerate(run["probe"] for run in ranks):
        assert torch.equal(probe["gathered"], everything)
        assert torch.equal(probe["gradient"], weights.chunk(world)[rank])
