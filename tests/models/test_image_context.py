"""Images in context: labels, the readout by similarity, and encoders that are refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distmeta import TaskSpec, conv4, image_context, mlp
from distmeta.errors import ModelContractError

SPEC = TaskSpec((1, 16, 16), 4, "classification", 6, 5)


def built(encoder=None, **settings):
    torch.manual_seed(0)
    return image_context(encoder, width=16, heads=2, **settings)(SPEC)


def task(rows=6):
    return torch.randn(1, rows, 1, 16, 16), torch.arange(rows)[None] % 3, torch.randn(1, 5, 1, 16, 16)


def test_the_probability_of_a_class_is_the_attention_over_its_rows():
    model = built()
    support_x, support_y, query_x = task()
    encoded = model.encode_support(support_x, support_y)
    features = model._features(query_x)
    tokens = model.query_out(model.stack.decode(encoded, features + model.unknown))
    similarity = 10 * F.normalize(features, dim=2) @ encoded["features"].mT + tokens @ encoded["tokens"].mT / 16
    attention = similarity.softmax(2)
    expected = torch.stack([attention[:, :, support_y[0] == label].sum(2) for label in range(3)], 2)
    found = model(support_x, support_y, query_x)
    torch.testing.assert_close(found[..., :3].softmax(2), expected)
    assert (found[..., 3] < -1e8).all()  # class 3 has no support rows


def test_a_query_that_is_a_support_image_has_its_class_before_training():
    model = built()
    support_x, support_y, _ = task()
    assert model(support_x, support_y, support_x).argmax(2).equal(support_y)


def test_labels_renamed_rename_the_predictions_where_the_codes_are_equal():
    model = built()
    model.label.weight.data[:] = model.label.weight.data[:1]
    support_x, support_y, query_x = task()
    renamed = torch.tensor([2, 0, 1, 3])
    found = model(support_x, renamed[support_y], query_x)
    torch.testing.assert_close(found[..., renamed], model(support_x, support_y, query_x))


def test_codes_of_labels_are_orthogonal():
    codes = built().label.weight
    torch.testing.assert_close(codes @ codes.T, 16 * torch.eye(4), atol=1e-4, rtol=0)


def test_encoders_of_any_kind():
    assert built(mlp((12,), head=False))(*task()).shape == (1, 5, 4)
    spec = TaskSpec((7,), 4, "classification", 6, 5)
    model = image_context(mlp((12,), head=False), width=16, heads=2)(spec)
    assert model(torch.randn(1, 6, 7), torch.arange(6)[None] % 3, torch.randn(1, 5, 7)).shape == (1, 5, 4)


def test_batch_norm_is_refused_unless_it_is_frozen():
    with pytest.raises(ModelContractError, match=r"batch norm \(features\.0\.1\).*norm='group'"):
        built(conv4(8, head=False))
    frozen = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).requires_grad_(False).eval()
    assert built(lambda _: frozen)(*task()).shape == (1, 5, 4)


def test_what_is_no_classification_or_no_encoder_is_refused():
    with pytest.raises(ModelContractError, match=r"image_context classifies; the tasks are regression"):
        image_context()(TaskSpec((1, 16, 16), 1, "regression", 6, 5))
    for shape in ((1, 15, 16), (7,)):
        with pytest.raises(ModelContractError, match=r"at least 16x16.*image_context\(mlp\(head=False\)\)"):
            image_context()(TaskSpec(shape, 5, "classification", 6, 5))
    with pytest.raises(ModelContractError, match=r"\[1, 4, 16, 16\].*Flatten"):
        built(lambda _: nn.Conv2d(1, 4, 3, padding=1))
