from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from drconv_mm.models.face.arcface_head import ArcFaceHead
from drconv_mm.models.face.class_centers import sample_classes
from drconv_mm.models.face.margins import angle_between, cosine_with_margins

ARCFACE, COSFACE, SPHEREFACE, COMBINED = (1.0, 0.5, 0.0), (1.0, 0.0, 0.35), (4.0, 0.0, 0.0), (1.2, 0.3, 0.2)
MARGINS = [ARCFACE, COSFACE, SPHEREFACE, COMBINED]


def oracle(embeddings, centers, label, scale, margins):
    """Mean cross entropy, one number at a time; `centers` is a list of lists of rows."""
    m1, m2, m3 = margins
    losses = []
    for x, own in zip(embeddings.tolist(), label.tolist(), strict=True):
        logits = []
        for number, rows in enumerate(centers):
            cosine = max(sum(a * b for a, b in zip(x, w, strict=True)) / math.hypot(*x) / math.hypot(*w) for w in rows)
            if number == own:
                phi, falls = m1 * math.acos(cosine) + m2, 0
                while phi >= math.pi:
                    phi, falls = phi - math.pi, falls + 1
                cosine = math.cos(phi) - 2 * falls - m3
            logits.append(scale * cosine)
        highest = max(logits)
        losses.append(highest + math.log(sum(math.exp(v - highest) for v in logits)) - logits[own])
    return sum(losses) / len(losses)


def make(margins=ARCFACE, num_classes=6, in_channels=5, **kwargs):
    return ArcFaceHead(num_classes, in_channels, margins=margins, **kwargs).double()


@pytest.mark.parametrize("sub_centers", [1, 3])
@pytest.mark.parametrize("margins", MARGINS)
def test_equals_the_oracle(margins, sub_centers):
    head = make(margins, sub_centers=sub_centers, scale=8.0)
    embeddings, label = 3 * torch.randn(9, 5).double(), torch.randint(6, (9,))
    expected = oracle(embeddings, head.weight.view(6, sub_centers, 5).tolist(), label, 8.0, margins)
    assert head.loss(embeddings, label)["loss"].item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sub_centers", [1, 3])
@pytest.mark.parametrize("margins", MARGINS)
def test_gradients(margins, sub_centers):
    head = make(margins, sub_centers=sub_centers, scale=8.0)
    embeddings, label = torch.randn(7, 5).double().requires_grad_(), torch.randint(6, (7,))

    def loss(embeddings, weight):
        return torch.func.functional_call(Loss(head), {"head.weight": weight}, (embeddings, label))

    weight = torch.randn_like(head.weight).requires_grad_()
    assert torch.autograd.gradcheck(loss, (embeddings, weight))


class Loss(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, embeddings, label):
        return self.head.loss(embeddings, label)["loss"]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("length", [4.0, -4.0, 3.7, -3.7])
@pytest.mark.parametrize("margins", MARGINS)
def test_at_and_beyond_cosine_one(margins, length, autocast):
    head = ArcFaceHead(200, 48, margins=margins, scale=8.0)
    nn.init.normal_(head.weight)
    label = torch.arange(200)
    embeddings = (length * head.weight.detach()).requires_grad_()
    cosines = (F.normalize(embeddings) * F.normalize(head.weight)).sum(dim=1)
    assert (cosines.abs() > 1).any() and (cosines.abs() == 1).any()

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = head.loss(embeddings, label)["loss"]
    loss.backward()

    # The own logit has a kink here; with the subgradient of least norm, 0, it is a constant.
    exact = embeddings.detach().double().requires_grad_()
    weight = head.weight.detach().double().requires_grad_()
    own = 8.0 * cosine_with_margins(torch.tensor(0.0 if length > 0 else math.pi).double(), *margins)
    logits = 8.0 * F.normalize(exact) @ F.normalize(weight).T
    expected = F.cross_entropy(torch.where(torch.eye(200) > 0, own, logits), label)
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for grad, other in [(embeddings.grad, exact.grad), (head.weight.grad, weight.grad)]:
        assert grad.isfinite().all()
        if abs(length) == 4:  # a power of two: the normalised rows are the same to the last bit
            torch.testing.assert_close(grad.double(), other, rtol=1e-3, atol=1e-7)
        else:  # beside the kink the slope of a row's loss is at most m1 * scale over the row's length, here above 1
            assert (grad - other).norm(dim=1).max() <= margins[0] * 8.0 / 200


@pytest.mark.parametrize("theta", [1e-6, 1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_float32_slope_beside_cosine_one(theta, side):
    center = torch.tensor([[side, 0.0, 0.0]])
    embedding = torch.tensor([[math.cos(theta), math.sin(theta), 0.0]], requires_grad=True)
    angle = angle_between(F.normalize(embedding), center)
    cosine_with_margins(angle, m2=0.5).backward()
    exact = theta if side > 0 else math.pi - theta
    assert angle.item() == pytest.approx(exact, rel=1e-6)
    slope = -side * abs(math.sin(exact + 0.5))
    torch.testing.assert_close(
        embedding.grad, torch.tensor([[-slope * math.sin(theta), slope * math.cos(theta), 0.0]]), rtol=1e-4, atol=1e-6
    )


def test_angle_at_its_ends():
    unit = F.normalize(torch.randn(4, 16))
    pairs = unit.clone().requires_grad_()
    angles = angle_between(pairs, torch.cat([unit[:2], -unit[2:]]))
    angles.sum().backward()
    torch.testing.assert_close(angles, torch.tensor([0.0, 0.0, math.pi, math.pi]))
    assert pairs.grad.eq(0).all()


@pytest.mark.parametrize("margins", [*MARGINS, (1.0, 3.0, 0.0), (2.5, 1.0, 0.1)])
def test_falls_over_all_angles(margins):
    angle = torch.linspace(0, math.pi, 20001).double().requires_grad_()
    value = cosine_with_margins(angle, *margins)
    value.sum().backward()
    m1, m2, m3 = margins
    steps = value.detach().diff()
    assert steps.max() < 0 and steps.min() > -1.01 * m1 * math.pi / 20000  # falls, and nowhere jumps
    torch.testing.assert_close(angle.grad, -m1 * (m1 * angle.detach() + m2).sin().abs())
    inside = m1 * angle + m2 < math.pi
    torch.testing.assert_close(value[inside], (m1 * angle + m2).cos()[inside] - m3)


def test_half_precision_embeddings_give_the_loss_of_their_float32_copy():
    head = ArcFaceHead(6, 5)
    embeddings, label = torch.randn(8, 5).bfloat16().requires_grad_(), torch.randint(6, (8,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head.loss(embeddings, label)["loss"]
    loss.backward()
    assert loss.equal(head.loss(embeddings.detach().float(), label)["loss"])
    assert embeddings.grad.dtype == torch.bfloat16 and embeddings.grad.isfinite().all()


def test_margin_factor():
    embeddings, label = torch.randn(8, 5).double(), torch.randint(6, (8,))
    head = make(COMBINED)
    head.margin_factor = 0.5
    half = make((1.1, 0.15, 0.1))
    half.load_state_dict(head.state_dict())
    torch.testing.assert_close(head.loss(embeddings, label)["loss"], half.loss(embeddings, label)["loss"])
    head.margin_factor = 0.0
    softmax = F.cross_entropy(64 * F.normalize(embeddings) @ F.normalize(head.weight).T, label)
    torch.testing.assert_close(head.loss(embeddings, label)["loss"], softmax)


def test_accuracy_is_without_margins():
    head = ArcFaceHead(4, 4, margins=(1.0, 0.5, 0.35), sub_centers=2)
    with torch.no_grad():
        head.weight.copy_(torch.cat([torch.eye(4), -torch.eye(4)]).view(2, 4, 4).transpose(0, 1).reshape(8, 4))
    embeddings = torch.tensor([[9.0, 8, 0, 0], [0, -9, 8, 0], [0, 0, 7, 8], [0, 0, 0, 1]])
    assert head.loss(embeddings, torch.tensor([0, 1, 2, 3]))["accuracy"].item() == 75


@pytest.mark.parametrize("sub_centers", [1, 2])
def test_sampled_classes(sub_centers):
    head = make(num_classes=20, sample_rate=0.4, sub_centers=sub_centers, scale=8.0)
    embeddings, label = torch.randn(6, 5).double(), torch.tensor([3, 3, 7, 19, 0, 7])
    torch.manual_seed(1)
    loss = head.loss(embeddings, label)["loss"]
    loss.backward()
    torch.manual_seed(1)
    sampled = sample_classes(label, 20, 0.4).tolist()
    centers = head.weight.view(20, sub_centers, 5)[sampled].tolist()
    places = torch.tensor([sampled.index(c) for c in label.tolist()])
    assert loss.item() == pytest.approx(oracle(embeddings, centers, places, 8.0, ARCFACE), rel=1e-12)
    touched = head.weight.grad.view(20, -1).abs().sum(dim=1) > 0
    assert set(touched.nonzero().flatten().tolist()) <= set(sampled)


def test_checkpoint_holds_one_weight():
    head = ArcFaceHead(7, 3, sub_centers=2)
    head.loss(torch.randn(4, 3), torch.tensor([0, 1, 2, 6]))["loss"].backward()
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {"weight": (14, 3)}
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.5)


def test_defaults_are_arcfaces():
    head = ArcFaceHead(5, 4)
    assert (head.scale, head.margins) == (64.0, (1.0, 0.5, 0.0))
    with pytest.raises(ValueError, match="m3 >= 0"):
        ArcFaceHead(5, 4, margins=(1.0, 0.0, -0.35))


def test_many_centres_are_drawn_block_by_block(monkeypatch):
    monkeypatch.setattr("drconv_mm.models.face.arcface_head._ROWS_DRAWN_AT_ONCE", 4)
    torch.manual_seed(3)
    head = ArcFaceHead(11, 5)
    torch.manual_seed(3)
    expected = torch.cat([torch.empty(rows, 5).normal_(std=0.01) for rows in (4, 4, 3)])
    assert torch.equal(head.weight, expected)


def test_is_sharded_only_among_several_processes():
    head = ArcFaceHead(7, 3, sharded=True)
    assert not head.sharded and head.classes == range(7) and "weight" in head.state_dict()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(num_classes=1), "one identity only"),
        (dict(in_channels=0), "in_channels=0"),
        (dict(scale=0.0), "scale=0.0"),
        (dict(sub_centers=0), "sub_centers=0"),
        (dict(margins=(0.5, 0.0, 0.0)), "m1 >= 1"),
        (dict(margins=(1.0, -0.1, 0.0)), "m2 >= 0"),
        (dict(margins=(1.0, 0.5)), "must be (m1, m2, m3)"),
        (dict(sample_rate=0.0), "sample_rate"),
        (dict(sample_rate=1.5), "sample_rate"),
    ],
)
def test_wrong_arguments(kwargs, message):
    with pytest.raises(ValueError) as error:
        ArcFaceHead(**dict(dict(num_classes=5, in_channels=4), **kwargs))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("embeddings", "label", "error", "message"),
    [
        (torch.ones(2, 4), [0, 5], IndexError, "label 5 is not one of num_classes=5"),
        (torch.ones(2, 4), [-1, 2], IndexError, "label -1 is not one of"),
        (torch.ones(2, 3), [0, 1], ValueError, r"embeddings must be [N, 4]"),
        (torch.ones(0, 4), [], ValueError, "at least one image"),
        (torch.ones(2, 4), [0, 1, 2], ValueError, "label must be int64 [2]"),
        (torch.ones(2, 4), [0.0, 1.0], ValueError, "label must be int64"),
        (torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]), [0, 1], ValueError, "embedding of length 0"),
    ],
)
def test_wrong_batches(embeddings, label, error, message):
    label = torch.tensor(label) if label else torch.empty(0, dtype=torch.int64)
    with pytest.raises(error) as caught:
        ArcFaceHead(5, 4).loss(embeddings, label)
    assert message in str(caught.value)
