"""Encoder of the geo arena: one tower for views of one size, two for views of two."""

import pytest
import torch
from torch import nn

from zoo.methods.geo_encoders import CrossViewNet


def test_the_card_s_layers():
    net = CrossViewNet()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.stride) for c in convs] == [
        (3, 24, (1, 2)),
        (24, 48, (2, 2)),
        (48, 64, (2, 2)),
    ]
    (head,) = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert head.in_features == 64 * 4 * 8 and head.out_features == 64


def test_one_tower_serves_both_views():
    net = CrossViewNet().eval()
    images = torch.rand(5, 3, 16, 64)
    assert net.tower("query") is net.tower("document")
    assert torch.equal(net(images), net.tower("document")(images))
    assert len(list(net.parameters())) == 11 and len(net.state_dict()) == len(CrossViewNet().state_dict())
    norms = net(images).norm(dim=1)
    assert (norms - 1).abs().min() > 1e-3  # raw: normalising is the method's


def test_square_tiles_get_a_tower_of_their_own():
    net = CrossViewNet(tile=(24, 24), dim=32)
    assert net.tower("query")(torch.rand(4, 3, 16, 64)).shape == (4, 32)
    assert net.tower("document")(torch.rand(4, 3, 24, 24)).shape == (4, 32)
    query, document = (set(net.tower(side).parameters()) for side in ("query", "document"))
    assert not query & document and query | document == set(net.parameters())


@pytest.mark.parametrize("size", [(16, 64), (15, 61), (24, 24), (7, 9)])
def test_any_size_is_read_to_its_border(size):
    net = CrossViewNet(size).eval()
    images = torch.rand(2, 3, *size, requires_grad=True)
    assert net(images).shape == (2, 64)
    net(images).square().sum().backward()
    assert (images.grad.abs().sum((0, 1)) > 0).all()


def test_a_direction_matters():
    # Turning the world must change the embedding: nothing is pooled over directions.
    net = CrossViewNet().eval()
    images = torch.rand(3, 3, 16, 64)
    assert not torch.allclose(net(images), net(images.roll(16, 3)), atol=1e-3)
